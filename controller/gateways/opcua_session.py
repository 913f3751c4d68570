"""A client's session at the gateway, put over asyncua's.

A client's Write never reaches the address space: all it can write are command variables, and those go to the
:class:`Desk` together with who wrote and from where, exactly as a Call does.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, cast

import structlog
from asyncua import ua
from asyncua.common.utils import ServiceError, create_nonce
from asyncua.crypto.permission_rules import User, UserRole
from asyncua.server.address_space import AddressSpace
from asyncua.server.internal_session import InternalSession, SessionState
from asyncua.server.internal_subscription import InternalSubscription
from asyncua.server.subscription_service import SubscriptionService

from controller.gateways.opcua_ua import AttributeIds, ObjectIds, StatusCodes, status, std
from controller.gateways.opcua_users import Account

if TYPE_CHECKING:
    from controller.gateways.opcua_guard import GuardedInternalServer, GuardedProcessor

log = structlog.get_logger("controller.gateways.opcua")

MAX_SUBSCRIPTIONS_PER_SESSION = 20
MAX_OPERATIONS = 10_000
"""Nodes of one Read, Browse …, as published in the server's OperationLimits (Part 5, 6.3.11)."""
MAX_COMMANDS_PER_REQUEST = 100
LOGIN_DELAY_S = 0.5
"""A wrong password is answered this much later, so that guessing is slow."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks: ``user`` is empty for anonymous; ``client`` says which program from which address."""

    user: str
    client: str
    may_command: bool


class Desk(Protocol):
    """Where commands go: which nodes take them, and what happens when somebody does."""

    def takes_write(self, node: ua.NodeId) -> bool:
        """Whether the node is a command variable."""

    def takes_call(self, method: ua.NodeId) -> bool:
        """Whether the node is one of our methods."""

    async def write(self, node: ua.NodeId, value: ua.Variant | None, caller: Caller) -> ua.StatusCode:
        """A client wrote a command variable."""

    async def call(self, request: ua.CallMethodRequest, caller: Caller) -> ua.CallMethodResult:
        """A client called a method."""


class GuardedSession(InternalSession):
    """A client's session.

    asyncua's authentication tokens are counted up and can be guessed; its default users let ``admin`` in with
    any password; any session may change any other's subscriptions; no user reaches a method.
    """

    iserver: GuardedInternalServer

    def __init__(
        self,
        internal_server: GuardedInternalServer,
        aspace: AddressSpace,
        submgr: SubscriptionService,
        name: str,
        user: User | None = None,
        external: bool = False,
    ) -> None:
        super().__init__(internal_server, aspace, submgr, name, user=user or User(role=UserRole.Anonymous))
        self.auth_token = ua.NodeId(ua.ByteString(secrets.token_bytes(32)), ua.Int16(0), ua.NodeIdType.ByteString)
        self.external = external
        if external:
            internal_server.register_external_session(self)
        self.channel: GuardedProcessor | None = None
        self.account: Account | None = None
        self.client = str(name)

    @property
    def closed(self) -> bool:
        """Whether the session has ended (closed, timed out)."""
        return self.state is SessionState.Closed

    @property
    def caller(self) -> Caller:
        """Who uses this session, for a command's record."""
        if self.account is None:
            return Caller("", self.client, False)
        return Caller(self.account.name, self.client, self.account.role.commands)

    async def create_session(
        self, params: ua.CreateSessionParameters, sockname: tuple[str, int] | None = None
    ) -> ua.CreateSessionResult:
        """Part 4, 5.6.2. Remembers what the client calls itself."""
        described = params.ClientDescription.ApplicationName
        label = (described.Text if described is not None else None) or params.SessionName or "unnamed client"
        peer = self.name if isinstance(self.name, str) else ":".join(str(part) for part in tuple(self.name)[:2])
        self.client = "".join(c for c in label[:80] if c.isprintable()) + f" at {peer}"
        result = await super().create_session(params, sockname)
        result.MaxRequestMessageSize = ua.UInt32(self.iserver.max_request_bytes)
        return result

    async def identify(self, params: ua.ActivateSessionParameters, password_allowed: bool) -> Account | None:
        """Whose identity token this is (``None``: anonymous). Changes nothing.

        Raises:
            ServiceError: BadIdentityTokenRejected (a kind that is not accepted here), BadUserAccessDenied
                (unknown user or wrong password, answered with a delay).
        """
        token = params.UserIdentityToken
        if token is None or isinstance(token, ua.AnonymousIdentityToken):
            return None
        if isinstance(token, ua.ExtensionObject) and token.TypeId == std(ObjectIds.Null):
            return None
        if not isinstance(token, ua.UserNameIdentityToken) or token.EncryptionAlgorithm:
            raise ServiceError(StatusCodes.BadIdentityTokenRejected)
        if not password_allowed:
            log.warning("a password came in clear over the network and was not looked at", client=self.client)
            raise ServiceError(StatusCodes.BadIdentityTokenRejected)
        name, raw = token.UserName or "", token.Password or b""
        try:
            password = raw if isinstance(raw, str) else bytes(raw).decode()
        except UnicodeDecodeError as error:
            raise ServiceError(StatusCodes.BadIdentityTokenInvalid) from error
        account = await self.iserver.users.verify(name, password)
        if account is None:
            log.warning("login refused", user=name[:64], client=self.client)
            await asyncio.sleep(LOGIN_DELAY_S)
            raise ServiceError(StatusCodes.BadUserAccessDenied)
        return account

    def admit(self, account: Account | None) -> ua.ActivateSessionResult:
        """Activate for an identity already checked (Part 4, 5.6.3).

        Raises:
            ServiceError: BadSessionIdInvalid, BadMaxConnectionsReached.
        """
        if self.closed:
            raise ServiceError(StatusCodes.BadSessionIdInvalid)
        if self.state is SessionState.Created:
            if InternalSession._current_connections >= InternalSession.max_connections:
                raise ServiceError(StatusCodes.BadMaxConnectionsReached)
            InternalSession._current_connections += 1
        self.account = account
        self.user = User(role=UserRole.User, name=account.name if account else None)
        self.nonce = create_nonce(32)
        self.state = SessionState.Activated
        self.touch()
        self._start_timeout_watchdog()
        result = ua.ActivateSessionResult()
        result.ServerNonce = self.nonce
        log.info("session activated", user=account.name if account else "anonymous", client=self.client)
        return result

    # -- reading, writing, calling ---------------------------------------------------------------------------

    async def read(self, params: ua.ReadParameters) -> list[ua.DataValue]:
        """Part 4, 5.10.2, with UserAccessLevel and UserExecutable as this user has them."""
        _limit(params.NodesToRead, MAX_OPERATIONS)
        results = await super().read(params)
        if not self.caller.may_command:
            desk = self.iserver.desk
            for i, wanted in enumerate(params.NodesToRead):
                if wanted.AttributeId == AttributeIds.UserAccessLevel and desk.takes_write(wanted.NodeId):
                    results[i] = ua.DataValue(ua.Variant(ua.AccessLevel.CurrentRead.mask, ua.VariantType.Byte))
                elif wanted.AttributeId == AttributeIds.UserExecutable and desk.takes_call(wanted.NodeId):
                    results[i] = ua.DataValue(ua.Variant(False, ua.VariantType.Boolean))
        return results

    async def write(self, params: ua.WriteParameters) -> list[ua.StatusCode]:
        """Part 4, 5.10.4. Only command variables can be written, only their values, only by who may command."""
        _limit(params.NodesToWrite, MAX_COMMANDS_PER_REQUEST)
        return [await self._write_one(item) for item in params.NodesToWrite]

    async def _write_one(self, item: ua.WriteValue) -> ua.StatusCode:
        caller = self.caller
        if not caller.may_command:
            return status(StatusCodes.BadUserAccessDenied)
        if item.NodeId not in self.aspace:
            return status(StatusCodes.BadNodeIdUnknown)
        if item.AttributeId != AttributeIds.Value or not self.iserver.desk.takes_write(item.NodeId):
            return status(StatusCodes.BadNotWritable)
        if item.IndexRange:
            return status(StatusCodes.BadIndexRangeNoData)
        value = item.Value
        if value.StatusCode is not None and not value.StatusCode.is_good():
            return status(StatusCodes.BadWriteNotSupported)
        return await self.iserver.desk.write(item.NodeId, value.Value, caller)

    async def call(self, params: list[ua.CallMethodRequest]) -> list[ua.CallMethodResult]:
        """Part 4, 5.11.2. Methods of the line and its stations go to the desk, with the caller."""
        _limit(params, MAX_COMMANDS_PER_REQUEST)
        results: list[ua.CallMethodResult] = []
        for request in params:
            if self.iserver.desk.takes_call(request.MethodId):
                results.append(await self.iserver.desk.call(request, self.caller))
            else:
                results.extend(await super().call([request]))
        return results

    async def browse(self, params: ua.BrowseParameters) -> list[ua.BrowseResult]:
        """Part 4, 5.8.2; an unknown node is BadNodeIdUnknown."""
        _limit(params.NodesToBrowse, MAX_OPERATIONS)
        results = await super().browse(params)
        for result in results:
            if result.StatusCode.value == StatusCodes.BadNodeIdInvalid:
                result.StatusCode = status(StatusCodes.BadNodeIdUnknown)
        return results

    async def history_read(self, params: ua.HistoryReadParameters) -> list[ua.HistoryReadResult]:
        """There is no history here yet, and an empty Good answer would look like one."""
        _limit(params.NodesToRead, MAX_OPERATIONS)
        code = status(StatusCodes.BadHistoryOperationUnsupported)
        return [ua.HistoryReadResult(StatusCode=code) for _ in params.NodesToRead]

    # -- subscriptions: only the session's own ---------------------------------------------------------------

    def _owns(self, subscription_id: int) -> bool:
        found = self.subscription_service.subscriptions.get(subscription_id)
        return found is not None and found.session_id == self.session_id

    def _must_own(self, subscription_id: int) -> None:
        if not self._owns(subscription_id):
            raise ServiceError(StatusCodes.BadSubscriptionIdInvalid)

    def _own(self) -> list[InternalSubscription]:
        return [s for s in self.subscription_service.subscriptions.values() if s.session_id == self.session_id]

    async def create_subscription(
        self,
        params: ua.CreateSubscriptionParameters,
        callback: Callable[..., Any],
        request_callback: Callable[..., Any] | None = None,
    ) -> ua.CreateSubscriptionResult:
        """At most 20 in one session, so that one client cannot use up the server's."""
        if len(self._own()) >= MAX_SUBSCRIPTIONS_PER_SESSION:
            raise ServiceError(StatusCodes.BadTooManySubscriptions)
        return await super().create_subscription(params, callback, request_callback)

    def modify_subscription(self, params: ua.ModifySubscriptionParameters) -> ua.ModifySubscriptionResult:
        """Own subscriptions only; the parameters stay as they were revised at creation."""
        self._must_own(params.SubscriptionId)
        return super().modify_subscription(params)

    async def create_monitored_items(
        self, params: ua.CreateMonitoredItemsParameters
    ) -> list[ua.MonitoredItemCreateResult]:
        """Own subscriptions only."""
        _limit(params.ItemsToCreate, MAX_OPERATIONS)
        self._must_own(params.SubscriptionId)
        return await super().create_monitored_items(params)

    async def modify_monitored_items(
        self, params: ua.ModifyMonitoredItemsParameters
    ) -> list[ua.MonitoredItemModifyResult]:
        """Own subscriptions only."""
        self._must_own(params.SubscriptionId)
        return await super().modify_monitored_items(params)

    async def delete_monitored_items(self, params: ua.DeleteMonitoredItemsParameters) -> list[ua.StatusCode]:
        """Own subscriptions only."""
        self._must_own(params.SubscriptionId)
        return await super().delete_monitored_items(params)

    async def set_monitoring_mode(self, params: ua.SetMonitoringModeParameters) -> list[ua.StatusCode]:
        """Own subscriptions only."""
        self._must_own(params.SubscriptionId)
        return await super().set_monitoring_mode(params)

    def republish(self, params: ua.RepublishParameters) -> ua.NotificationMessage:
        """Own subscriptions only."""
        self._must_own(params.SubscriptionId)
        return super().republish(params)

    async def set_publishing_mode(self, params: ua.SetPublishingModeParameters) -> list[ua.StatusCode]:
        """Own subscriptions only."""
        wanted = list(params.SubscriptionIds)
        params.SubscriptionIds = [i for i in wanted if self._owns(i)]
        return self._merge(wanted, params.SubscriptionIds, await super().set_publishing_mode(params))

    async def delete_subscriptions(self, ids: list[int]) -> list[ua.StatusCode]:
        """Own subscriptions only."""
        mine = [i for i in dict.fromkeys(ids) if self._owns(i)]
        return self._merge(ids, mine, await super().delete_subscriptions(mine))

    @staticmethod
    def _merge(wanted: Sequence[int], done: Sequence[int], results: Sequence[ua.StatusCode]) -> list[ua.StatusCode]:
        by_id = dict(zip(done, results, strict=True))
        return [by_id.get(i, status(StatusCodes.BadSubscriptionIdInvalid)) for i in wanted]

    def publish(self, acks: Iterable[ua.SubscriptionAcknowledgement] | None = None) -> tuple[int, list[ua.StatusCode]]:
        """Part 4, 5.13.5; a session without subscriptions is BadNoSubscription."""
        own = {s.data.SubscriptionId: s for s in self._own()}
        if not own:
            raise ServiceError(StatusCodes.BadNoSubscription)
        results: list[ua.StatusCode] = []
        for ack in acks or ():
            subscription = own.get(ack.SubscriptionId)
            if subscription is None:
                results.append(status(StatusCodes.BadSubscriptionIdInvalid))
            elif ack.SequenceNumber not in subscription._not_acknowledged_results:
                results.append(status(StatusCodes.BadSequenceNumberUnknown))
            else:
                subscription.publish([ack.SequenceNumber])
                results.append(ua.StatusCode())
        return len(own), results

    async def transfer_subscriptions(  # type: ignore[override]  # as in asyncua's own session
        self, params: ua.TransferSubscriptionsParameters, callback: Callable[..., Awaitable[None]]
    ) -> list[ua.TransferResult]:
        """Part 4, 5.13.7: only between sessions of one named user; notifications go on over this channel."""
        results: list[ua.TransferResult] = []
        for subscription_id in params.SubscriptionIds:
            subscription = self.subscription_service.subscriptions.get(subscription_id)
            if subscription is not None and not self._may_take(subscription):
                results.append(ua.TransferResult(StatusCode=status(StatusCodes.BadUserAccessDenied)))
                continue
            one = ua.TransferSubscriptionsParameters()
            one.SubscriptionIds = [subscription_id]
            one.SendInitialValues = params.SendInitialValues
            results.extend(await super().transfer_subscriptions(one, callback))
            if subscription is not None and self.channel is not None:
                subscription.pub_request_callback = cast("Any", self.channel.get_publish_request)
        return results

    def _may_take(self, subscription: InternalSubscription) -> bool:
        if subscription.session_id == self.session_id:
            return True
        if self.account is None:
            return False
        for session in self.iserver._external_sessions.values():
            if session.session_id == subscription.session_id:
                return isinstance(session, GuardedSession) and session.account == self.account
        return False


def _limit(operations: Sequence[Any] | None, most: int) -> None:
    if not operations:
        raise ServiceError(StatusCodes.BadNothingToDo)
    if len(operations) > most:
        raise ServiceError(StatusCodes.BadTooManyOperations)
