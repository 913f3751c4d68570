"""Hardening of asyncua 2.1.0's server: transport, secure channel, session take-over, limits.

asyncua buffers whatever a size field announces, keeps a connection open on any protocol error, binds a session
to a new channel *before* it checks who asks, and takes registrations from anyone. The classes here close that,
by overriding the few methods named in :data:`REPLACED`; :func:`check_asyncua` refuses to start with any other
asyncua than the one they were written against.
"""

# mypy: disable-error-code="no-untyped-call"
# asyncua's processor carries no annotations.

from __future__ import annotations

import asyncio
import contextlib
import importlib.metadata
import ipaddress
import struct
import time
from typing import Any, cast

import structlog
from asyncua import ua
from asyncua.common.connection import SecureConnection, TransportLimits
from asyncua.common.utils import Buffer, ServiceError
from asyncua.crypto.permission_rules import User, UserRole
from asyncua.server import address_space, uaprocessor
from asyncua.server.binary_server_asyncio import BinaryServer, OPCUAProtocol
from asyncua.server.internal_server import InternalServer
from asyncua.server.internal_session import InternalSession
from asyncua.server.internal_subscription import InternalSubscription
from asyncua.server.monitored_item_service import MonitoredItemService
from asyncua.server.server import Server
from asyncua.server.subscription_service import SubscriptionService
from asyncua.server.uaprocessor import UaProcessor
from asyncua.server.user_managers import UserManager
from asyncua.ua.ua_binary import header_from_binary, struct_from_binary, uatcp_to_binary

from controller.gateways.opcua_session import Desk, GuardedSession
from controller.gateways.opcua_subscriptions import GuardedSubscriptionService
from controller.gateways.opcua_ua import ObjectIds, StatusCodes, UaStatusCodeError, status, std
from controller.gateways.opcua_users import Users

log = structlog.get_logger("controller.gateways.opcua")

ASYNCUA = "2.1.0"
REPLACED: tuple[tuple[type, tuple[str, ...]], ...] = (
    (OPCUAProtocol, ("connection_made", "connection_lost", "data_received", "_process_received_message_loop",
                     "_activation_watchdog")),
    (UaProcessor, ("process", "_process_message", "send_response", "close", "forward_publish_response",
                   "get_publish_request", "_session_watchdog_loop")),
    (BinaryServer, ("_make_protocol", "start", "stop", "_close_task_loop", "_close_tasks")),
    (Server, ("start", "stop", "_setup_server_nodes", "_get_bind_socket_info")),
    (InternalServer, ("create_session", "register_server", "register_external_session", "lookup_external_session",
                      "start", "stop")),
    (InternalSession, ("create_session", "activate_session", "close_session", "read", "write", "call", "browse",
                       "publish", "republish", "transfer_subscriptions", "_start_timeout_watchdog")),
    (SubscriptionService, ("create_subscription", "republish", "transfer_subscriptions", "_clamp_keep_alive_count")),
    (MonitoredItemService, ("create_monitored_items", "_create_data_change_monitored_item",
                            "_create_events_monitored_item", "_modify_monitored_item", "_delete_monitored_items",
                            "datachange_callback")),
    (InternalSubscription, ("publish_results", "_pop_triggered_datachanges")),
    (SecureConnection, ("is_open", "receive_from_header_and_body")),
    (address_space.AddressSpace, ("read_attribute_value", "delete_datachange_callback")),
)  # fmt: skip
"""What is overridden or relied on, by class; all of it must be there at start."""

MAX_CHUNK = 65_535
"""Bytes of one chunk; a longer one is refused when its header arrives, before it is buffered."""
MAX_REQUEST = 2 * 1024 * 1024
"""Bytes of one request, all chunks together."""
MAX_UNREAD = 8 * 1024 * 1024
"""Bytes that wait for a client that does not read; past this it is disconnected."""
MIN_BUFFER = 8_192
"""Part 6, 7.1.2.3: the least buffer size that a client may announce."""
MAX_CONNECTIONS = 100
MAX_SUBSCRIPTIONS = 200
MAX_QUEUE = 100
ACTIVATION_S = 10.0
"""A connection without an activated session is closed after this time."""
PAUSE_AT, RESUME_AT = 32, 8
"""Requests that wait in one connection before its socket is not read any more, and is read again."""
MAX_PENDING_CALLS = 16
"""Calls and writes of one connection that wait for the controller; one more is refused, not queued."""

_SESSIONLESS = frozenset(
    std(number)
    for number in (
        ObjectIds.FindServersRequest_Encoding_DefaultBinary,
        ObjectIds.GetEndpointsRequest_Encoding_DefaultBinary,
        ObjectIds.RegisterServerRequest_Encoding_DefaultBinary,
        ObjectIds.RegisterServer2Request_Encoding_DefaultBinary,
    )
)
_CREATE = std(ObjectIds.CreateSessionRequest_Encoding_DefaultBinary)
_ACTIVATE = std(ObjectIds.ActivateSessionRequest_Encoding_DefaultBinary)
_AWAITS_CONTROLLER = frozenset(
    {
        std(ObjectIds.CallRequest_Encoding_DefaultBinary),
        std(ObjectIds.WriteRequest_Encoding_DefaultBinary),
    }
)
_HEADER = struct.Struct("<3scI")
_HELLO = struct.Struct("<IIIII")


def check_asyncua() -> None:
    """Refuse to run on an asyncua that the guard was not written for.

    Raises:
        RuntimeError: another version, or a replaced method is missing.
    """
    found = importlib.metadata.version("asyncua")
    if found != ASYNCUA:
        raise RuntimeError(f"the OPC UA gateway is written for asyncua {ASYNCUA}, found {found}: install the former")
    for owner, names in REPLACED:
        for name in names:
            if name not in vars(owner):
                raise RuntimeError(f"asyncua {found}: {owner.__name__}.{name} is missing; reinstall asyncua {ASYNCUA}")
    if uaprocessor.UaProcessor is not UaProcessor:
        raise RuntimeError("asyncua's UaProcessor has been replaced by something else in this process")


def is_loopback(host: str) -> bool:
    """Whether ``host`` is certainly this computer: ``localhost`` or a loopback address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        return False


def _error(code: int, reason: str) -> bytes:
    return uatcp_to_binary(cast("Any", ua.MessageType.Error), ua.ErrorMessage(status(code), ua.String(reason)))


class GuardedProcessor(UaProcessor):
    """One secure channel.

    Any protocol error ends the connection with an ERR (Part 6, 7.1.5). A session answers only on the channel it
    was activated on, and only to its authentication token. ActivateSession from another channel checks the
    signature, the password and that it is the same user, and only then moves the session (Part 4, 5.6.3).
    """

    iserver: GuardedInternalServer
    session: GuardedSession | None

    def __init__(self, internal_server: InternalServer, transport: Any, limits: TransportLimits) -> None:
        super().__init__(internal_server, transport, limits)
        self._calls: set[asyncio.Task[None]] = set()
        peer = self.name[0] if isinstance(self.name, tuple) and self.name else ""
        self.loopback = is_loopback(str(peer))

    async def process(self, header: Any, body: Buffer) -> bool:
        """Process one chunk. Returns whether the connection may stay."""
        try:
            secured = header.MessageType in (ua.MessageType.SecureMessage, ua.MessageType.SecureClose)
            if not secured or self._connection.is_open():
                return bool(await super().process(header, body))
            self._refuse(StatusCodes.BadTcpSecureChannelUnknown, ServiceError(0))
        except (ServiceError, UaStatusCodeError) as error:
            self._refuse(int(error.code), error)
        except Exception as error:
            self._refuse(StatusCodes.BadSecurityChecksFailed, error)
        return False

    def _refuse(self, code: int, error: Exception) -> None:
        log.warning("protocol error, connection closed", peer=str(self.name), error=str(error)[:200])
        self._transport.write(_error(code, "protocol error"))

    async def _process_message(self, typeid: Any, requesthdr: Any, seqhdr: Any, body: Buffer) -> bool:
        if self.session is not None and (self.session.closed or self.session.channel not in (None, self)):
            self.session = None
        if typeid == _ACTIVATE:
            await self._activate(requesthdr, seqhdr, body)
            return True
        if typeid == _CREATE:
            if self.session is not None:
                raise ServiceError(StatusCodes.BadTooManySessions)
            keep = bool(await super()._process_message(typeid, requesthdr, seqhdr, body))
            created = cast("GuardedSession | None", self.session)
            if created is not None:
                created.channel = self
            return keep
        token = None if self.session is None else self.session.auth_token
        if typeid not in _SESSIONLESS and (token is None or requesthdr.AuthenticationToken != token):
            raise ServiceError(StatusCodes.BadSessionIdInvalid)
        if typeid in _AWAITS_CONTROLLER:
            if len(self._calls) >= MAX_PENDING_CALLS:
                raise ServiceError(StatusCodes.BadTooManyOperations)
            task = asyncio.create_task(self._answer_later(typeid, requesthdr, seqhdr, body))
            self._calls.add(task)
            task.add_done_callback(self._calls.discard)
            return True
        return bool(await super()._process_message(typeid, requesthdr, seqhdr, body))

    async def _answer_later(self, typeid: Any, requesthdr: Any, seqhdr: Any, body: Buffer) -> None:
        """A Call or Write waits for the controller's answer; a Stop behind it must not wait with it."""
        code = StatusCodes.BadInternalError
        try:
            await super()._process_message(typeid, requesthdr, seqhdr, body)
        except (ServiceError, UaStatusCodeError) as error:
            code = int(error.code)
        except Exception:
            log.exception("a call or write failed", peer=str(self.name))
        else:
            return
        fault = ua.ServiceFault()
        fault.ResponseHeader.ServiceResult = status(code)
        self.send_response(requesthdr.RequestHandle, seqhdr, fault)

    async def _activate(self, requesthdr: Any, seqhdr: Any, body: Buffer) -> None:
        params = struct_from_binary(ua.ActivateSessionParameters, body)
        token = requesthdr.AuthenticationToken
        session = self.session or self.iserver.lookup_external_session(token)
        if not isinstance(session, GuardedSession) or session.auth_token != token or session.closed:
            raise ServiceError(StatusCodes.BadSessionIdInvalid)
        moving = session.channel is not self
        if moving and not session.is_activated():
            raise ServiceError(StatusCodes.BadSessionIdInvalid)
        policy = self._connection.security_policy
        signed = (policy.host_certificate or b"") + (session.nonce or b"")
        policy.asymmetric_cryptography.verify(signed, params.ClientSignature.Signature)
        account = await session.identify(params, password_allowed=self.loopback)
        if moving and account != session.account:
            log.warning("a session is kept from another user", client=session.client, peer=str(self.name))
            raise ServiceError(StatusCodes.BadUserAccessDenied)
        result = session.admit(account)
        self.session_last_activity = time.monotonic()
        if moving:
            self._take(session)
        response = ua.ActivateSessionResponse()
        response.Parameters = result
        self.send_response(requesthdr.RequestHandle, seqhdr, response)

    def _take(self, session: GuardedSession) -> None:
        """Move an activated session, and the notifications of its subscriptions, to this channel."""
        previous, session.channel, self.session = session.channel, self, session
        if previous is not None:
            previous.session = None
        self._closing = False
        if self._session_watchdog_task is None or self._session_watchdog_task.done():
            self._session_watchdog_task = asyncio.create_task(self._session_watchdog_loop())
        for subscription in self.iserver.subscription_service.subscriptions.values():
            if subscription.session_id == session.session_id:
                subscription.pub_result_callback = self.forward_publish_response
                subscription.pub_request_callback = cast("Any", self.get_publish_request)

    def send_response(
        self, requesthandle: Any, seqhdr: Any, response: Any, msgtype: Any = ua.MessageType.SecureMessage
    ) -> None:
        """Send, unless the client has stopped reading: then it is disconnected and nobody else waits for it."""
        if self._transport.is_closing():
            return
        super().send_response(requesthandle, seqhdr, response, msgtype)
        if self._transport.get_write_buffer_size() > MAX_UNREAD:
            log.warning("client does not read, disconnected", peer=str(self.name), unread_bytes=MAX_UNREAD)
            self._transport.abort()

    async def close(self) -> None:
        """The connection is gone: end its tasks, and leave alone a session that has moved elsewhere."""
        calls = tuple(self._calls)
        for task in calls:
            task.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
        self._publish_requests.clear()
        self._publish_results_subs.clear()
        if self.session is not None and self.session.channel not in (None, self):
            self.session = None
        await super().close()


class GuardedProtocol(OPCUAProtocol):
    """One connection: sizes and order are judged from the header, before anything is buffered."""

    processor: GuardedProcessor | None
    _hello = False
    _paused = False
    _ended = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the connection, or refuse it at once when there are too many."""
        assert isinstance(transport, asyncio.Transport)
        self.peer_name = transport.get_extra_info("peername")
        if len(self.clients) >= self.iserver.max_connections:
            log.warning("connection refused: too many", peer=str(self.peer_name), most=self.iserver.max_connections)
            transport.abort()
            return
        self.transport = transport
        self.processor = GuardedProcessor(self.iserver, transport, self.limits)
        self.processor.set_policies(self.policies)
        self.iserver.asyncio_transports.append(transport)
        self.clients.append(self)
        self._task = asyncio.create_task(self._process_received_message_loop())
        self._activation_watchdog_task = asyncio.create_task(self._activation_watchdog())

    def connection_lost(self, ex: BaseException | None) -> None:
        """Forget the connection; its tasks are ended, and awaited by the server."""
        if self.transport is None:
            return
        self._ended = True
        self.iserver.asyncio_transports.remove(self.transport)
        self.clients.remove(self)
        self.closing_tasks.append(asyncio.create_task(self._end()))

    async def _end(self) -> None:
        tasks = [task for task in (self._task, self._activation_watchdog_task) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self.processor is not None:
            await self.processor.close()

    def data_received(self, data: bytes) -> None:
        """Cut the stream into chunks (Part 6, 7.1.2.2)."""
        if self._ended or self.transport is None:
            return
        buffer, position = self._buffer + data, 0
        while len(buffer) - position >= _HEADER.size:
            kind, chunk, size = _HEADER.unpack_from(buffer, position)
            code = self._judge(kind, chunk, size)
            if code:
                self._refuse(code)
                return
            if len(buffer) - position < size:
                break
            frame = Buffer(buffer[position : position + size])
            position += size
            if kind == b"HEL" and not self._greet(frame):
                self._refuse(StatusCodes.BadConnectionRejected)
                return
            try:
                self.messages.put_nowait((header_from_binary(frame), frame))
            except asyncio.QueueFull:
                self._refuse(StatusCodes.BadTcpNotEnoughResources)
                return
        self._buffer = buffer[position:]
        if not self._paused and self.messages.qsize() >= PAUSE_AT:
            self._paused = True
            self.transport.pause_reading()

    def _judge(self, kind: bytes, chunk: bytes, size: int) -> int:
        if kind not in (b"HEL", b"OPN", b"MSG", b"CLO") or (kind == b"HEL") == self._hello:
            return StatusCodes.BadTcpMessageTypeInvalid
        if chunk != b"F" and (kind != b"MSG" or chunk not in (b"C", b"A")):
            return StatusCodes.BadTcpMessageTypeInvalid
        if size > MAX_CHUNK:
            return StatusCodes.BadTcpMessageTooLarge
        return StatusCodes.BadTcpMessageTypeInvalid if size < (32 if kind == b"HEL" else 24) else 0

    def _greet(self, frame: Buffer) -> bool:
        _, receive, send, _, _ = _HELLO.unpack(frame.copy(28).read(28)[8:])
        self._hello = receive >= MIN_BUFFER and send >= MIN_BUFFER
        return self._hello

    def _refuse(self, code: int) -> None:
        assert self.transport is not None
        log.warning("protocol error, connection closed", peer=str(self.peer_name), status=status(code).name)
        self.transport.write(_error(code, "protocol error"))
        self._hang_up()

    def _hang_up(self) -> None:
        """Close; a client that does not read the rest within two seconds is cut off."""
        self._ended = True
        self._buffer = b""
        if self.transport is not None:
            self.transport.close()
            asyncio.get_running_loop().call_later(2.0, self.transport.abort)

    async def _process_received_message_loop(self) -> None:
        while not self._ended:
            header, frame = await self.messages.get()
            if self._paused and self.messages.qsize() <= RESUME_AT and self.transport is not None:
                self._paused = False
                if not self.transport.is_closing():
                    self.transport.resume_reading()
            if self.processor is not None and not await self.processor.process(header, frame):
                self._hang_up()


class _NobodyElse(UserManager):
    """Users are identified by :class:`GuardedSession` alone; asyncua's own way in is shut."""

    def get_user(
        self, iserver: InternalServer, username: Any = None, password: Any = None, certificate: Any = None
    ) -> User | None:
        return None


class GuardedInternalServer(InternalServer):
    """The services behind all connections, with caps, guarded sessions, and no open registration."""

    subscription_service: GuardedSubscriptionService

    def __init__(self, users: Users, desk: Desk) -> None:
        super().__init__(user_manager=_NobodyElse())
        self.users = users
        self.desk = desk
        self.max_request_bytes = MAX_REQUEST
        self.subscription_service = GuardedSubscriptionService(self.aspace, iserver=self)
        self.isession.subscription_service = self.subscription_service
        self.allow_remote_admin = False
        self.max_connections = MAX_CONNECTIONS
        self.max_subscriptions = MAX_SUBSCRIPTIONS
        self.max_monitored_item_queue_size = MAX_QUEUE
        self.max_unacked_messages_per_subscription = MAX_QUEUE
        self.max_pending_activation_seconds = ACTIVATION_S
        self.supported_tokens = cast("Any", (ua.AnonymousIdentityToken, ua.UserNameIdentityToken))

    def create_session(self, name: str, user: User | None = None, external: bool = False) -> GuardedSession:
        """A session of a client."""
        anonymous = user or User(role=UserRole.Anonymous)
        return GuardedSession(self, self.aspace, self.subscription_service, name, user=anonymous, external=external)

    def register_server(self, server: Any, conf: Any = None) -> None:
        """This is no discovery server."""
        raise ServiceError(StatusCodes.BadServiceUnsupported)

    async def stop(self) -> None:
        """End the clock, then every session with its subscriptions."""
        if self.time_task is not None:
            self.time_task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self.time_task
            self.time_task = None
        for session in tuple(self._external_sessions.values()):
            timeout = session._timeout_task
            await session.close_session(True)
            if timeout is not None:
                await asyncio.gather(timeout, return_exceptions=True)
        await super().stop()


class GuardedBinaryServer(BinaryServer):
    """The listening socket."""

    def _make_protocol(self) -> OPCUAProtocol:
        return GuardedProtocol(
            iserver=self.iserver,
            policies=self._policies,
            clients=self.clients,
            closing_tasks=self.closing_tasks,
            limits=self.limits,
        )

    async def bind(self) -> None:
        """Take the port (0: a free one) without answering yet. Raises ``OSError``."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(self._make_protocol, self.hostname, self.port, start_serving=False)
        self.port = self._server.sockets[0].getsockname()[1]

    async def start(self) -> None:
        """Answer connections from now on."""
        assert isinstance(self._server, asyncio.Server)
        await self._server.start_serving()
        self.cleanup_task = asyncio.create_task(self._close_task_loop())

    async def stop(self) -> None:
        """Stop listening, cut every connection and wait until all their tasks have ended."""
        if self._server is not None:
            self._server.close()
        for transport in tuple(self.iserver.asyncio_transports):
            transport.abort()
        while self.clients:  # noqa: ASYNC110 - abort() has scheduled connection_lost for each of them
            await asyncio.sleep(0)
        if self.cleanup_task is not None:
            self.cleanup_task.cancel()
            await asyncio.gather(self.cleanup_task, return_exceptions=True)
        await self._close_tasks()


class GuardedServer(Server):
    """The server of the gateway: policy None, anonymous and user name tokens, guarded throughout."""

    iserver: GuardedInternalServer

    def __init__(self, iserver: GuardedInternalServer, host: str, port: int) -> None:
        super().__init__(iserver=iserver)
        self.limits = TransportLimits(
            max_recv_buffer=MAX_CHUNK,
            max_send_buffer=MAX_CHUNK,
            max_chunk_count=MAX_REQUEST // MAX_CHUNK + 1,
            max_message_size=MAX_REQUEST,
        )
        self.application_type = ua.ApplicationType.Server
        self.set_security_policy([ua.SecurityPolicyType.NoSecurity])
        self._host, self._port = host, port

    async def take_port(self) -> None:
        """Take the port and put its real number into the endpoint; nothing is answered yet. Raises ``OSError``."""
        self.bserver = GuardedBinaryServer(self.iserver, self._host, self._port, self.limits)
        await self.bserver.bind()
        shown = f"[{self._host}]" if ":" in self._host else self._host
        self.set_endpoint(f"opc.tcp://{shown}:{self.bserver.port}/")

    async def start(self) -> None:
        """Answer clients. Raises ``OSError`` when another process has come to listen on the port meanwhile."""
        assert self.bserver is not None, "take_port() comes first"
        await self._setup_server_nodes()
        self.bserver.set_policies(self._policies)
        await self.iserver.start()
        await self.bserver.start()
