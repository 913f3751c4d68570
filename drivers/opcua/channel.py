"""One secure channel on one TCP connection: requests out, each answer to the one who asked (OPC 10000-6, 6.7 and 7.1).

Of asyncua only the encoding and the cryptography of messages are used, not its client: that starts tasks which
outlive a cancelled wait, and has time-outs and reconnections of its own. Here the event loop's callbacks do
everything; there is no task, no timer and no retry. Any doubt ends the channel: a frame that cannot be read, an answer
that nobody asked for, one of another kind than asked. A time limit is the caller's, who then drops the channel.
"""

from __future__ import annotations

import asyncio
import struct
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, TypeVar

from asyncua import ua
from asyncua.common.connection import SecureConnection, TransportLimits
from asyncua.common.utils import Buffer, create_nonce
from asyncua.crypto.security_policies import SecurityPolicy
from asyncua.ua.object_ids import ObjectIds
from asyncua.ua.ua_binary import header_from_binary, nodeid_from_binary, struct_from_binary, struct_to_binary

from drivers.opcua.meter import Meter
from drivers.opcua.values import status_name

CHUNK = 65_535
"""Largest chunk taken and given, in bytes."""
MAX_MESSAGE = 16 * 1024 * 1024
"""Largest answer taken, in bytes; a server that sends more has lost its mind, or is none."""
NEVER = datetime(2200, 1, 1, tzinfo=UTC)
EPOCH_TICKS = 116_444_736_000_000_000
"""1970-01-01 in the ticks of OPC UA: 100 ns since 1601-01-01 (OPC 10000-6, 5.2.2.5)."""

NO_TOKEN = b"\0\0"
"""The null node id."""
_HEL = struct.Struct("<4sIIIIII")
_FRAME = struct.Struct("<3scI")
_HEADER = struct.Struct("<qIIiI")
_ANSWER = struct.Struct("<BBHqII")
_NO_MORE = (b"\0\xff\xff\xff\xff\0\0\0", b"\0\0\0\0\0\0\0\0")
"""End of a response header without diagnostics, string table (null or empty) and additional header."""
REQUEST_PREFIX = 4 + len(struct_to_binary(ua.RequestHeader()))
"""Bytes of type id and request header before a request's own parameters."""
SERVICE_FAULT = int(ObjectIds.ServiceFault_Encoding_DefaultBinary)

Take = Callable[[bytes | Exception], None]
T = TypeVar("T")


class ChannelLost(Exception):
    """The connection is over; what happened and what to look at."""

    def __init__(self, what: str, hint: str = "", *, timed_out: bool = False) -> None:
        self.what, self.hint, self.timed_out = what, hint, timed_out
        super().__init__(what)


class ServiceFault(Exception):
    """The server answered a request with a Bad service result; the connection is sound."""

    def __init__(self, code: int, text: str = "") -> None:
        self.code = code
        super().__init__(text or status_name(code))


def type_id(name: str) -> int:
    """Number of the binary encoding of a request or response type."""
    return int(getattr(ObjectIds, f"{name}_Encoding_DefaultBinary"))


def encode(request: Any) -> tuple[str, bytes]:
    """Name of the service and the encoded parameters of a request; the header is put before them when it is sent."""
    return type(request).__name__.removesuffix("Request"), struct_to_binary(request)[REQUEST_PREFIX:]


def utc_ticks() -> int:
    """Now, in the ticks of OPC UA."""
    return time.time_ns() // 100 + EPOCH_TICKS


class _Aborted(Exception):
    def __init__(self, request_id: int, code: int) -> None:
        self.request_id, self.code = request_id, code
        super().__init__(request_id)


class _Secure(SecureConnection):
    def _receive(self, msg: Any) -> ua.Message | None:
        if msg.MessageHeader.ChunkType == ua.ChunkType.Abort:
            self._drop_incoming_parts()
            self._check_incoming_chunk(msg)
            raise _Aborted(msg.SequenceHeader.RequestId, struct.unpack_from("<I", msg.Body)[0])
        return super()._receive(msg)


class Channel(asyncio.Protocol):
    """See the module. ``token`` is the session's authentication token, encoded; requests carry it.

    ``waiting`` counts requests without an answer.
    """

    def __init__(self, policy: SecurityPolicy, meter: Meter, monotonic_ns: Callable[[], int]) -> None:
        self.policy, self._meter, self._now = policy, meter, monotonic_ns
        self.lost: ChannelLost | None = None
        self.token = NO_TOKEN
        self.lifetime_ms = 0
        self._secure = _Secure(policy, TransportLimits(CHUNK, CHUNK, MAX_MESSAGE // 8192, MAX_MESSAGE))
        self._transport: asyncio.Transport | None = None
        self._buffer = bytearray()
        self._last_id = 0
        self._pending: dict[int, tuple[int, Take]] = {}
        self._hello: asyncio.Future[None] | None = None

    @property
    def waiting(self) -> int:
        """Requests without an answer."""
        return len(self._pending)

    async def open(self, host: str, port: int, url: str, lifetime_ms: int) -> None:
        """Connect, greet, and open the secure channel. Raises :class:`ChannelLost` or ``OSError``."""
        loop = asyncio.get_running_loop()
        await loop.create_connection(lambda: self, host, port)
        self._hello = loop.create_future()
        text = url.encode()
        size = _HEL.size + 4 + len(text)
        self._write(_HEL.pack(b"HELF", size, 0, CHUNK, CHUNK, MAX_MESSAGE, 0) + struct.pack("<I", len(text)) + text)
        await self._hello
        self.lifetime_ms = lifetime_ms
        await self._open_secure(ua.SecurityTokenRequestType.Issue)

    async def renew(self) -> None:
        """A new security token, in use at once (OPC 10000-4, 5.6.2: due after three quarters of its lifetime)."""
        await self._open_secure(ua.SecurityTokenRequestType.Renew)
        if self._secure.next_security_token.TokenId:
            self._secure.revolve_tokens()

    def send(self, service: str, parameters: bytes, take: Take, *, hint_ms: int = 0) -> int:
        """Send one request; ``take`` is called once, with the answer's body, a ``ServiceFault`` or ``ChannelLost``.

        Returns the monotonic time of sending in ns. Raises :class:`ChannelLost` when nothing can be sent any more.
        """
        return self._send(service, parameters, take, ua.MessageType.SecureMessage, hint_ms)

    async def call(self, service: str, parameters: bytes) -> bytes:
        """One request and the body of its answer. Raises :class:`ServiceFault` or :class:`ChannelLost`."""
        future: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        sent_ns = self.send(service, parameters, lambda answer: settle(future, answer))
        body = await future
        self._meter.took(self._now() - sent_ns)
        return body

    async def request(self, request: Any, answer: type[T]) -> T:
        """One request of any service, and its decoded answer."""
        return decode(answer, await self.call(*encode(request)))

    def goodbye(self, *, session: bool = False) -> None:
        """Tell the server that the channel, and maybe the session, ends; close. Its answer is not waited for."""
        transport = self._transport
        if self.lost is None and transport is not None and self._secure.is_open():
            if session and self.token != NO_TOKEN:
                request = ua.CloseSessionRequest()
                request.DeleteSubscriptions = True
                self.send(*encode(request), lambda _: None)
            farewell = ua.CloseSecureChannelRequest()
            self._send(*encode(farewell), lambda _: None, ua.MessageType.SecureClose, 0)
            if not transport.get_write_buffer_size():
                transport.close()  # else the peer takes nothing any more, and the drop resets
        self.drop(ChannelLost("closed"))

    def drop(self, why: ChannelLost) -> None:
        """End it with a reset; everyone who waits is told. Safe at any time."""
        if self.lost is None:
            self.lost = why
        if self._transport is not None:
            transport, self._transport = self._transport, None
            if not transport.is_closing():
                transport.abort()
        if self._hello is not None and not self._hello.done():
            self._hello.set_exception(self.lost)
            self._hello.exception()  # seen to: the waiter may have been cancelled
        pending, self._pending = self._pending, {}
        for _, take in pending.values():
            take(self.lost)

    # --- the event loop's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Of asyncio."""
        assert isinstance(transport, asyncio.Transport)
        if self.lost is not None:
            transport.abort()
            return
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        """Of asyncio."""
        what = f"connection lost ({exc})" if exc else "the server closed the connection"
        self.drop(ChannelLost(what, "check power, network and the server's log"))

    def data_received(self, data: bytes) -> None:
        """Of asyncio."""
        self._buffer += data
        try:
            while self.lost is None and self._take_frame():
                pass
        except ChannelLost as exc:
            self.drop(exc)
        except Exception as exc:
            # The decoders check nothing; a malformed or forged frame may raise anything.
            self._meter.strays += 1
            self.drop(ChannelLost(f"unreadable frame ({exc!r})", "a server fault, or not an OPC UA server"))

    def _take_frame(self) -> bool:
        buffer = self._buffer
        if len(buffer) < _FRAME.size:
            return False
        kind, _, size = _FRAME.unpack_from(buffer)
        if kind not in (b"MSG", b"OPN", b"ACK", b"ERR") or not _FRAME.size < size <= CHUNK + 1024:
            self._meter.strays += 1
            raise ChannelLost(
                f"a frame of type {bytes(kind)!r} and {size} bytes", "not an OPC UA server, or a fault of it"
            )
        if len(buffer) < size:
            return False
        frame = bytes(buffer[:size])
        del buffer[:size]
        if kind == b"ACK":
            self._take_acknowledge(frame)
        elif kind == b"ERR":
            code, length = struct.unpack_from("<Ii", frame, 8)
            text = frame[16 : 16 + max(0, length)].decode("utf-8", "replace")
            raise ChannelLost(f"the server ended the connection: {status_name(code)} {text}".rstrip())
        else:
            self._take_message(frame)
        return True

    def _take_acknowledge(self, frame: bytes) -> None:
        if self._hello is None or self._hello.done():
            raise ChannelLost("an acknowledge that nobody asked for")
        _, receive, _, _, _ = struct.unpack_from("<IIIII", frame, 8)
        if receive < 8192:
            raise ChannelLost(f"the server takes chunks of {receive} bytes only", "OPC UA wants 8192 at least")
        self._secure._limits.max_send_buffer = min(CHUNK, receive)
        self._hello.set_result(None)

    def _take_message(self, frame: bytes) -> None:
        buffer = Buffer(frame)
        header = header_from_binary(buffer)
        try:
            message = self._secure.receive_from_header_and_body(header, buffer)
        except _Aborted as exc:
            self._hand_over(exc.request_id, ServiceFault(exc.code))
            return
        if message is not None:
            body = message.body()
            self._hand_over(message.request_id(), body.read(len(body)))

    def _hand_over(self, request_id: int, answer: bytes | Exception) -> None:
        entry = self._pending.pop(request_id, None)
        if entry is None:
            self._meter.strays += 1
            raise ChannelLost("an answer that nobody asked for", "a server fault")
        expected, take = entry
        if isinstance(answer, bytes):
            answer = self._judge(answer, request_id, expected)
        if isinstance(answer, ServiceFault):
            self._meter.refused += 1
        else:
            self._meter.answered += 1
        take(answer)

    def _judge(self, body: bytes, handle: int, expected: int) -> bytes | ServiceFault:
        """The body when it is a good answer to that request. Raises :class:`ChannelLost` when it is no answer to it."""
        if body[:2] == b"\x01\0":
            _, _, kind, _, found, code = _ANSWER.unpack_from(body)
        else:
            buffer = Buffer(body)
            kind = nodeid_from_binary(buffer).Identifier
            header = struct_from_binary(ua.ResponseHeader, buffer)
            found, code = header.RequestHandle, header.ServiceResult.value
        if found != handle or kind not in (expected, SERVICE_FAULT):
            self._meter.strays += 1
            raise ChannelLost(
                f"an answer of type {kind} to request {found}, not {expected} to {handle}", "a server fault"
            )
        if kind == SERVICE_FAULT or code >> 31:
            return ServiceFault(code)
        return body

    # --- sending

    def _send(self, service: str, parameters: bytes, take: Take, kind: Any, hint_ms: int) -> int:
        if self._transport is None:
            raise self.lost or ChannelLost("not connected")
        self._last_id = self._last_id % 0xFFFF_FFFF + 1
        number = self._last_id
        head = struct.pack("<BBH", 1, 0, type_id(service + "Request")) + self.token
        body = head + _HEADER.pack(utc_ticks(), number, 0, -1, hint_ms) + b"\0\0\0" + parameters
        data = self._secure.message_to_binary(body, message_type=kind, request_id=number)
        self._pending[number] = (type_id(service + "Response"), take)
        self._meter.requests += 1
        sent_ns = self._now()
        self._write(data)
        return sent_ns

    def _write(self, data: bytes) -> None:
        if self._transport is None:
            raise self.lost or ChannelLost("not connected")
        self._transport.write(data)

    async def _open_secure(self, kind: ua.SecurityTokenRequestType) -> None:
        request = ua.OpenSecureChannelRequest()
        request.Parameters.RequestType = kind
        request.Parameters.SecurityMode = self.policy.Mode
        request.Parameters.RequestedLifetime = self.lifetime_ms
        nonce = create_nonce(self.policy.secure_channel_nonce_length)
        request.Parameters.ClientNonce = nonce
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def opened(answer: bytes | Exception) -> None:
            # At once, not when the waiter wakes up: the next frame may need the new keys already.
            if isinstance(answer, bytes):
                result = decode(ua.OpenSecureChannelResponse, answer).Parameters
                # The token's age is counted by our renewal alone: asyncua compares the server's time of issue
                # with our clock, and refuses everything when the PLC's clock is behind.
                result.SecurityToken.CreatedAt = NEVER
                self.lifetime_ms = result.SecurityToken.RevisedLifetime
                self._secure.set_channel(result, kind, nonce)
            settle(future, None if isinstance(answer, bytes) else answer)

        service, parameters = encode(request)
        self._send(service, parameters, opened, ua.MessageType.SecureOpen, 0)
        await future


def settle(future: asyncio.Future[T], answer: T | Exception) -> None:
    """Hand an answer to who waits for it, if he still does."""
    if future.done():
        return
    if isinstance(answer, Exception):
        future.set_exception(answer)
        future.exception()  # the waiter may be cancelled in this very turn; then nobody else looks at it
    else:
        future.set_result(answer)


def decode(kind: type[T], body: bytes) -> T:
    """The answer as asyncua's class. Raises :class:`ChannelLost` when it cannot be read."""
    try:
        result: T = struct_from_binary(kind, Buffer(body))
    except Exception as exc:
        raise ChannelLost(f"unreadable answer ({exc!r})", "a server fault") from exc
    return result


def results_at(body: bytes) -> int:
    """Where an answer's own parameters begin, after type id and response header."""
    if body[:2] == b"\x01\0" and body[20:28] in _NO_MORE:
        return 28
    buffer = Buffer(body)
    try:
        nodeid_from_binary(buffer)
        struct_from_binary(ua.ResponseHeader, buffer)
    except Exception as exc:
        raise ChannelLost(f"unreadable answer ({exc!r})", "a server fault") from exc
    return len(body) - len(buffer)
