"""The OPC UA client driver: one batched Read per group, verified writes; no subscription.

Of asyncua's client only the services are used, never ``Client.connect``: that starts a supervisor, a watchdog
and a renewal task, which outlive a cancelled wait and decide on their own. Here nothing runs between the calls; the
secure channel is renewed by the read that finds it due, and any doubt ends the connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TypeVar

from asyncua import ua
from asyncua.client.client import Client
from asyncua.ua.attribute_ids import AttributeIds
from asyncua.ua.object_ids import ObjectIds
from asyncua.ua.uaerrors import UaError, UaStatusCodeError

from drivers import codec
from drivers.opcua.values import MAYBE_EXECUTED, SESSION_LOST, NodeValue, parse, resolve, status_name
from drivers.options import OpcUaOptions
from drivers.port import (
    DeviceRefused,
    FieldBusError,
    LinkDown,
    Outcome,
    ReadGroup,
    Reading,
    Tag,
    Value,
    WriteOutcome,
)

T = TypeVar("T")
GOODBYE_S = 0.5
"""How long a close waits for the server to take leave of the session."""
NEVER = datetime(2200, 1, 1, tzinfo=UTC)


@dataclass(slots=True)
class _Session:
    """One live connection with the node ids as this server numbers them."""

    client: Client
    node_ids: dict[str, ua.NodeId]
    reads: list[list[ua.ReadParameters]]
    renew_at_ns: int


class OpcUaDriver:
    """One OPC UA server (see :class:`drivers.port.Driver` for the calls)."""

    def __init__(
        self,
        name: str,
        tags: Sequence[Tag],
        options: OpcUaOptions,
        *,
        monotonic_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._name, self._options, self._now = name, options, monotonic_ns
        by_class: dict[str, list[Tag]] = {}
        self._nodes: dict[str, NodeValue] = {}
        for tag in tags:
            if tag.name in self._nodes:
                raise ValueError(f"{tag.name} is declared twice")
            parse(str(tag.address))
            codec.check(tag)
            self._nodes[tag.name] = NodeValue(tag)
            by_class.setdefault(tag.scan_class, []).append(tag)
        self._groups = tuple(ReadGroup(name, tuple(members)) for name, members in by_class.items())
        self._last: list[tuple[Value | None, ...]] = [()] * len(self._groups)
        self._client: Client | None = None
        self._session: _Session | None = None

    @property
    def name(self) -> str:
        """The PLC's name."""
        return self._name

    @property
    def endpoint(self) -> str:
        """The server's URL."""
        return self._options.endpoint

    @property
    def groups(self) -> tuple[ReadGroup, ...]:
        """The read groups, one per scan class."""
        return self._groups

    async def connect(self, timeout_s: float) -> None:
        """Open channel and session and look the namespaces up, all within ``timeout_s``.

        Raises :class:`~drivers.port.LinkDown`, also when the server lacks a namespace that a tag names.
        """
        await self.close()
        task = asyncio.current_task()
        assert task is not None
        cancelling = task.cancelling()
        client = self._client = self._new_client(timeout_s)
        await self._call("connect", self._open(client), timeout_s)
        if task.cancelling() > cancelling:
            # asyncua opens its socket under wait_for, which on Python 3.11 can swallow a cancellation.
            self._drop()
            raise asyncio.CancelledError

    async def read(self, group: int, timeout_s: float) -> Reading:
        """Read one group, in one Read unless the server limits its size."""
        session = self._require()
        if self._now() >= session.renew_at_ns:
            await self._call("renew the secure channel", self._renew(session), timeout_s)
        stamp_ns = self._now()
        results: list[ua.DataValue] = []
        for part in session.reads[group]:
            answer = await self._call("read", session.client.uaclient.read(part), timeout_s)
            if len(answer) != len(part.NodesToRead):
                raise self._lost(f"{len(answer)} values for {len(part.NodesToRead)} nodes", "a server fault")
            results += answer
        values: list[Value | None] = []
        bad: dict[int, str] = {}
        for index, (tag, data) in enumerate(zip(self._groups[group].tags, results, strict=True)):
            value, reason = self._nodes[tag.name].value(data)
            values.append(value)
            if reason:
                bad[index] = f"{tag.address}: {reason}"
        found = tuple(values)
        if found == self._last[group]:
            found = self._last[group]
        self._last[group] = found
        return Reading(found, stamp_ns, bad)

    async def write(self, tag: str, value: Value, timeout_s: float) -> WriteOutcome:
        """Write one tag as its own type, read it back and compare the raw values. Never sends twice."""
        node = self._nodes.get(tag)
        if node is None or not node.tag.writable:
            what = "no such tag on this PLC" if node is None else "the tag is read-only (access: r)"
            return WriteOutcome(Outcome.REJECTED, str(codec.EncodeError(tag, value, what)))
        try:
            raw = codec.to_raw(node.tag, value)
        except codec.EncodeError as exc:
            return WriteOutcome(Outcome.REJECTED, str(exc))
        where = f"{tag} at {node.tag.address} of {self._name} ({self.endpoint})"
        session = self._session
        if session is None:
            return WriteOutcome(Outcome.REJECTED, f"{where}: not sent, not connected")
        refusal = await self._send(session, node, raw, where, timeout_s)
        return refusal or await self._read_back(session, node, raw, where, timeout_s)

    async def close(self) -> None:
        """Take leave of the server if the connection is sound, then drop it; safe at any time."""
        client, session = self._client, self._session
        if client is None:
            return
        try:
            if session is not None:
                with contextlib.suppress(UaError, OSError, TimeoutError):
                    async with asyncio.timeout(GOODBYE_S):
                        await client.uaclient.close_session(True)
                        await client.close_secure_channel()
        finally:
            self._drop()

    def _new_client(self, timeout_s: float) -> Client:
        options = self._options
        # The library's own time-outs only back ours up; they must not be the shorter ones.
        client = Client(options.endpoint, timeout=max(10.0, 2 * timeout_s))
        client.name = client.description = f"Linewright {self._name}"
        client.application_uri = "urn:linewright:controller"
        client.session_timeout = int(options.session_timeout_s * 1000)
        client.secure_channel_timeout = int(options.channel_lifetime_s * 1000)
        if options.user is not None:
            client.set_user(options.user)
            client.set_password(options.password or "")
        return client

    async def _open(self, client: Client) -> None:
        await client.connect_socket()
        await client.send_hello()
        await client.open_secure_channel()
        self._trust_own_clock(client)
        renew_at_ns = self._renewal_due(client)
        await client.create_session()
        await client.activate_session(client._username, client._password)
        node_ids, most = await self._look_up(client)
        reads = [
            [_read_parameters([node_ids[t.name] for t in part]) for part in _parts(group.tags, most)]
            for group in self._groups
        ]
        self._session = _Session(client, node_ids, reads, renew_at_ns)

    async def _look_up(self, client: Client) -> tuple[dict[str, ua.NodeId], int]:
        """Node ids by tag, and how many nodes the server takes in one Read (0 = any number)."""
        ids = ObjectIds
        asked = (
            ids.Server_NamespaceArray,
            ids.Server_ServerCapabilities_OperationLimits_MaxNodesPerRead,
        )
        parameters = _read_parameters([ua.NodeId(ua.Int32(i)) for i in asked])
        array, limit = await client.uaclient.read(parameters)
        namespaces = array.Value.Value if array.Value is not None else None
        if not isinstance(namespaces, list):
            raise self._lost("the server does not tell its namespaces", "a server fault")
        node_ids: dict[str, ua.NodeId] = {}
        for name, node in self._nodes.items():
            try:
                node_ids[name] = resolve(str(node.tag.address), namespaces)
            except LookupError as exc:
                raise self._lost(
                    f"{name}: {exc.args[0]}", "another PLC or another program version answers, or the tag is wrong"
                ) from None
        most = limit.Value.Value if limit.Value is not None else None
        return node_ids, most if isinstance(most, int) else 0

    async def _renew(self, session: _Session) -> None:
        """New security token, in use at once (OPC 10000-4, 5.5.2: after three quarters of its lifetime)."""
        await session.client.open_secure_channel(renew=True)
        session.client.uaclient.revolve_security_token()
        self._trust_own_clock(session.client)
        session.renew_at_ns = self._renewal_due(session.client)

    def _renewal_due(self, client: Client) -> int:
        return self._now() + int(client.secure_channel_timeout * 0.75e6)

    @staticmethod
    def _trust_own_clock(client: Client) -> None:
        """Have the token's age counted by our renewal alone.

        asyncua compares the server's time of issue with our wall clock, and drops the connection at the first
        renewal when the PLC's clock is behind.
        """
        protocol = client.uaclient.protocol
        if protocol is not None:
            protocol._connection.security_token.CreatedAt = NEVER

    async def _send(
        self, session: _Session, node: NodeValue, raw: Value, where: str, timeout_s: float
    ) -> WriteOutcome | None:
        """The Write service. ``None`` when the server says it is done, which is yet to be verified."""
        item = ua.WriteValue()
        item.NodeId = session.node_ids[node.tag.name]
        item.AttributeId = AttributeIds.Value
        item.Value = node.data_value(raw)
        parameters = ua.WriteParameters()
        parameters.NodesToWrite = [item]
        try:
            results = await self._call("write", session.client.uaclient.write(parameters), timeout_s)
        except FieldBusError as exc:
            return WriteOutcome(Outcome.UNKNOWN, f"{where}: {exc.what}")
        if len(results) != 1:
            return WriteOutcome(Outcome.UNKNOWN, f"{where}: {len(results)} results for one write")
        status = results[0]
        if not status.is_bad():
            return None
        outcome = Outcome.UNKNOWN if status.value in MAYBE_EXECUTED else Outcome.REJECTED
        return WriteOutcome(outcome, f"{where}: {status.name}: {status.doc}")

    async def _read_back(
        self, session: _Session, node: NodeValue, raw: Value, where: str, timeout_s: float
    ) -> WriteOutcome:
        parameters = _read_parameters([session.node_ids[node.tag.name]])
        try:
            results = await self._call("read back", session.client.uaclient.read(parameters), timeout_s)
        except FieldBusError as exc:
            return WriteOutcome(Outcome.UNKNOWN, f"{where}: acknowledged, but the read-back failed: {exc.what}")
        found, reason = node.raw(results[0]) if len(results) == 1 else (None, "no value")
        if found is None:
            return WriteOutcome(Outcome.UNKNOWN, f"{where}: acknowledged, but not readable: {reason}")
        value = codec.judge(node.tag, found)[0]
        if found == raw:
            return WriteOutcome(Outcome.VERIFIED, read_back=value)
        return WriteOutcome(Outcome.REJECTED, f"{where}: {raw!r} was acknowledged, but {found!r} reads back", value)

    def _require(self) -> _Session:
        if self._session is None:
            raise self._lost("not connected")
        return self._session

    async def _call(self, what: str, service: Awaitable[T], timeout_s: float) -> T:
        """One step with one deadline; whatever goes wrong on the wire ends as a ``FieldBusError``.

        Raises :class:`LinkDown` after dropping the connection, or :class:`DeviceRefused`.
        """
        try:
            async with asyncio.timeout(timeout_s) as deadline:
                result = await service
        except TimeoutError:
            raise self._late(what, timeout_s) from None
        except asyncio.CancelledError:
            self._drop()
            raise
        except FieldBusError:
            raise
        except UaStatusCodeError as exc:
            code = int(exc.code)
            text = f"{what}: {status_name(code)}"
            if self._session is None or code in SESSION_LOST:
                raise self._lost(text, "check user, password and the server's session limit") from exc
            raise DeviceRefused(self._name, text, where=self.endpoint) from exc
        except OSError as exc:
            raise self._lost(f"{what}: {exc}", "check power, network and address") from exc
        except Exception as exc:
            # asyncua decodes answers without checking them; a malformed one may raise anything.
            raise self._lost(f"{what}: unreadable answer ({exc!r})", "a server fault") from exc
        if deadline.expired():  # the cancellation was swallowed inside; see connect()
            raise self._late(what, timeout_s)
        return result

    def _drop(self) -> None:
        """Let go of the connection at once, without a word to the server; leaves no task behind."""
        client, self._client, self._session = self._client, None, None
        protocol = client.uaclient.protocol if client is not None else None
        if protocol is not None and protocol.transport is not None:
            protocol.transport.abort()

    def _late(self, what: str, timeout_s: float) -> LinkDown:
        return self._lost(f"{what}: no answer within {timeout_s:g} s", "check that the server runs", timed_out=True)

    def _lost(self, what: str, hint: str = "", *, timed_out: bool = False) -> LinkDown:
        self._drop()
        return LinkDown(self._name, what, where=self.endpoint, hint=hint, timed_out=timed_out)


def _parts(tags: Sequence[Tag], most: int) -> list[Sequence[Tag]]:
    """The tags in slices of at most ``most`` (0 = all in one)."""
    size = most or max(1, len(tags))
    return [tags[first : first + size] for first in range(0, len(tags), size)]


def _read_parameters(node_ids: Sequence[ua.NodeId]) -> ua.ReadParameters:
    parameters = ua.ReadParameters()
    parameters.TimestampsToReturn = ua.TimestampsToReturn.Neither
    for node_id in node_ids:
        item = ua.ReadValueId()
        item.NodeId = node_id
        item.AttributeId = AttributeIds.Value
        parameters.NodesToRead.append(item)
    return parameters
