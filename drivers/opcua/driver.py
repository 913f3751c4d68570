"""The OPC UA client driver: subscriptions where the server lets be, reads where not, verified writes.

Nothing runs between the calls but the event loop's callbacks: the secure channel is renewed, and the server's
state looked at, by the read that finds it due. Any doubt ends the connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from asyncua import ua
from asyncua.ua.attribute_ids import AttributeIds
from asyncua.ua.object_ids import ObjectIds

from drivers import codec
from drivers.opcua.channel import ChannelLost, ServiceFault
from drivers.opcua.groups import GroupState, Part, parts
from drivers.opcua.meter import Meter
from drivers.opcua.methods import call_method
from drivers.opcua.pki import CertificateProblem
from drivers.opcua.redundancy import Servers
from drivers.opcua.session import Session, host_and_port
from drivers.opcua.subscribe import Feed, Publisher
from drivers.opcua.values import MAYBE_EXECUTED, SESSION_LOST, NodeValue, parse, resolve, status_text
from drivers.options import OpcUaOptions
from drivers.port import (
    DeviceRefused,
    DriverStats,
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
STATE_PERIODS = 3
"""The server's state is read once in so many periods of the fastest scan class, at most once a second."""


@dataclass(slots=True)
class _Group:
    """How one group is brought in. ``whole`` reads all of it; with a ``feed``, ``rest`` is what it does not bring."""

    state: GroupState
    whole: list[Part]
    feed: Feed | None = None
    rest: list[Part] = field(default_factory=list)


@dataclass(slots=True)
class _Link:
    """One live connection with the node ids as this server numbers them."""

    session: Session
    node_ids: dict[str, ua.NodeId]
    groups: list[_Group]
    publisher: Publisher
    state_due_ns: int
    most_read: int
    most_written: int


@dataclass(frozen=True, slots=True)
class _Write:
    """One tag of a write, checked and converted."""

    node: NodeValue
    raw: Value


class OpcUaDriver:
    """One OPC UA server, or a redundant set (see :class:`drivers.port.Driver` for the calls)."""

    def __init__(
        self,
        name: str,
        tags: Sequence[Tag],
        options: OpcUaOptions,
        *,
        monotonic_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._name, self._options, self._now = name, options, monotonic_ns
        for url in (options.endpoint, *options.backups):
            host_and_port(url)
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
        for group in self._groups if options.reading == "subscribe" else ():
            if group.scan_class not in options.periods_s:
                raise ValueError(f"{name}: to subscribe, scan class {group.scan_class} needs a period")
        self._places = {
            tag.name: (number, index)
            for number, group in enumerate(self._groups)
            for index, tag in enumerate(group.tags)
        }
        known = [options.periods_s[g.scan_class] for g in self._groups if g.scan_class in options.periods_s]
        self._state_every_ns = int(max(1.0, STATE_PERIODS * min(known, default=0.0)) * 1e9)
        self._fastest_s = min(known, default=0.0)
        self._servers = Servers(options)
        self._meter = Meter()
        self._session: Session | None = None
        self._link: _Link | None = None

    @property
    def name(self) -> str:
        """The PLC's name."""
        return self._name

    @property
    def endpoint(self) -> str:
        """The URL of the server in use, or of the one tried last."""
        return self._servers.url

    @property
    def groups(self) -> tuple[ReadGroup, ...]:
        """The read groups, one per scan class."""
        return self._groups

    def stats(self) -> DriverStats:
        """A snapshot of the counters."""
        return self._meter.stats()

    async def connect(self, timeout_s: float) -> None:
        """Open channel and session, look the namespaces up, subscribe; all within ``timeout_s``.

        After a loss the next server of a redundant set is tried. Raises :class:`~drivers.port.LinkDown`, also when the
        server lacks a namespace that a tag names.
        """
        await self.close()
        await self._guard("connect", self._connect(timeout_s), timeout_s)

    async def read(self, group: int, timeout_s: float) -> Reading:
        """The group's newest values: as notified, or read in one Read unless the server limits its size."""
        link = self._require()
        await self._look_after(link, timeout_s)
        one = link.groups[group]
        if one.feed is not None:
            return await self._from_feed(link, one, one.feed, timeout_s)
        stamp_ns = self._now()
        for part in one.whole:
            await self._guard("read", part.read(link.session.channel), timeout_s)
        return one.state.reading(stamp_ns)

    async def write(self, tag: str, value: Value, timeout_s: float) -> WriteOutcome:
        """Write one tag as its own type, read it back and compare the raw values. Never sends twice."""
        return await self.write_block({tag: value}, timeout_s)

    async def write_block(self, values: Mapping[str, Value], timeout_s: float) -> WriteOutcome:
        """Write these tags, in this order, with one Write, read them back with one Read and compare the raw values.

        OPC UA does not promise that a server takes all or none: when it took some only, the outcome is UNKNOWN.
        """
        writes: list[_Write] = []
        for tag, value in values.items():
            node = self._nodes.get(tag)
            if node is None or not node.tag.writable:
                what = "no such tag on this PLC" if node is None else "the tag is read-only (access: r)"
                return WriteOutcome(Outcome.REJECTED, str(codec.EncodeError(tag, value, what)))
            try:
                writes.append(_Write(node, codec.to_raw(node.tag, value)))
            except codec.EncodeError as exc:
                return WriteOutcome(Outcome.REJECTED, str(exc))
        where = ", ".join(f"{each.node.tag.name} at {each.node.tag.address}" for each in writes)
        where += f" of {self._name} ({self.endpoint})"
        problem = self.block_problem(list(values))
        if problem:
            return WriteOutcome(Outcome.REJECTED, f"{where}: not sent: {problem}")
        link = self._link
        if link is None:
            return WriteOutcome(Outcome.REJECTED, f"{where}: not sent, not connected")
        outcome = await self._send(link, writes, where, timeout_s)
        outcome = outcome or await self._read_back(link, writes, where, timeout_s)
        if outcome.outcome is Outcome.UNKNOWN:
            # What was notified up to now may be older than the write.
            for each in writes:
                feed = link.groups[self._places[each.node.tag.name][0]].feed
                if feed is not None:
                    feed.behind = True
        return outcome

    def block_problem(self, tags: Sequence[str]) -> str:
        """Why these tags cannot be written together; empty when they can."""
        if not tags:
            return "nothing to write"
        for tag in tags:
            node = self._nodes.get(tag)
            if node is None or not node.tag.writable:
                return f"{tag} is no writable tag of {self._name}"
        if len(set(tags)) < len(tags):
            return "a tag is named twice"
        most = self._link.most_written if self._link is not None else 0
        return f"the server takes {most} values in one Write, not {len(tags)}" if 0 < most < len(tags) else ""

    async def call(self, object_id: str, method_id: str, args: Sequence[Value], timeout_s: float) -> tuple[Value, ...]:
        """Call a method (OPC 10000-4, 5.12) and return its output arguments, which must be scalars.

        Node ids are written as tag addresses are. The arguments must be as many as the method declares, and fit the
        declared types; nothing is converted. May run beside :meth:`read`, not beside a write. Raises ``ValueError``
        when nothing was sent, :class:`DeviceRefused` when the server refused, and :class:`LinkDown`: then the method
        may have been executed.
        """
        link = self._require()
        return await self._guard("call", call_method(link.session, object_id, method_id, args), timeout_s)

    async def close(self) -> None:
        """Take leave of the server if the connection is sound, then drop it; safe at any time."""
        session, link, self._link = self._session, self._link, None
        try:
            if session is not None and link is not None:
                await self._bye(session)
        finally:
            self._drop(ChannelLost("closed"))

    # --- connecting

    async def _open(self, url: str) -> Session:
        """A session with one server, its state looked at."""
        if self._session is not None:
            self._session.drop(ChannelLost("closed"), polite=True)
        session = self._session = Session(self._name, url, self._options, self._meter, self._now)
        await session.open()
        await session.check_state()
        if session.timeout_s < self._fastest_s:
            what = f"the server keeps a session for {session.timeout_s:g} s only"
            raise ChannelLost(what, f"the fastest scan class is read every {self._fastest_s:g} s: read one faster")
        return session

    async def _connect(self, timeout_s: float) -> None:
        session = await self._servers.connect(self._open, self._bye, timeout_s)
        node_ids, most_read = await self._look_up(session)
        asked = (
            ObjectIds.Server_ServerCapabilities_OperationLimits_MaxNodesPerWrite,
            ObjectIds.Server_ServerCapabilities_OperationLimits_MaxMonitoredItemsPerCall,
        )
        limits = await session.read_scalars([ua.NodeId(ua.Int32(i)) for i in asked])
        most_written, most_monitored = (one.value if isinstance(one.value, int) else 0 for one in limits)
        publisher = Publisher(session.channel, self._meter, self._now)
        groups = []
        for group in self._groups:
            ids = [node_ids[tag.name] for tag in group.tags]
            groups.append(await self._group(group, ids, publisher, most_read, most_monitored))
        publisher.start(self._meter.stats().p50_ms / 1e3)
        due_ns = self._now() + self._state_every_ns
        self._link = _Link(session, node_ids, groups, publisher, due_ns, most_read, most_written)

    async def _group(
        self, group: ReadGroup, ids: Sequence[ua.NodeId], publisher: Publisher, most_read: int, most_monitored: int
    ) -> _Group:
        """Plan the group's reads, and subscribe it if that is wanted and possible."""
        nodes = [self._nodes[tag.name] for tag in group.tags]
        state, everything, options = GroupState(nodes), range(len(ids)), self._options
        polled = _Group(state, parts(state, everything, ids, most_read))
        if options.reading == "poll" or group.scan_class not in options.periods_s:
            return polled
        feed = Feed(group.scan_class, GroupState(nodes), options.periods_s[group.scan_class], self._meter)
        problem, refused = await publisher.subscribe(feed, ids, most_monitored)
        if options.reading == "auto":
            if problem:
                return polled
            return _Group(state, polled.whole, feed, parts(feed.state, sorted(refused), ids, most_read))
        if problem:
            hint = "lengthen its period, or use reading: auto"
            raise ChannelLost(f"scan class {group.scan_class}: {problem}", hint)
        for index, reason in refused.items():
            state.explain(index, reason)
            feed.state.explain(index, reason)
        kept = [index for index in everything if index not in refused]
        return _Group(state, parts(state, kept, ids, most_read), feed)

    async def _look_up(self, session: Session) -> tuple[dict[str, ua.NodeId], int]:
        """Node ids by tag, and how many nodes the server takes in one Read (0 = any number)."""
        asked = (
            ObjectIds.Server_NamespaceArray,
            ObjectIds.Server_ServerCapabilities_OperationLimits_MaxNodesPerRead,
        )
        array, limit = await session.read([ua.NodeId(ua.Int32(i)) for i in asked])
        namespaces = array.Value.Value if array.Value is not None else None
        if not isinstance(namespaces, list):
            raise ChannelLost("the server does not tell its namespaces", "a server fault")
        node_ids: dict[str, ua.NodeId] = {}
        for name, node in self._nodes.items():
            try:
                node_ids[name] = resolve(str(node.tag.address), namespaces)
            except LookupError as exc:
                hint = "another PLC or another program version answers, or the tag is wrong"
                raise ChannelLost(f"{name}: {exc.args[0]}", hint) from None
        most = limit.Value.Value if limit.Value is not None else None
        return node_ids, most if isinstance(most, int) else 0

    # --- reading

    async def _look_after(self, link: _Link, timeout_s: float) -> None:
        """See whether the connection still is, and what falls due: the channel's token, the server's state."""
        gone = link.session.channel.lost
        if gone is not None:
            raise self._lost(link, gone)
        if link.publisher.problem is not None:
            raise self._lost(link, link.publisher.problem, polite=True)
        await self._guard("renew the secure channel", link.session.renew_if_due(), timeout_s)
        now = self._now()
        if now >= link.state_due_ns:
            link.state_due_ns = now + self._state_every_ns
            await self._guard("server state", link.session.check_state(), timeout_s)

    async def _from_feed(self, link: _Link, one: _Group, feed: Feed, timeout_s: float) -> Reading:
        """What the subscription told; read where it missed something or does not bring all."""
        await asyncio.sleep(0)  # there may be nothing to wait for, but what arrived must get its turn
        stamp_ns = self._now()
        silent_ns = stamp_ns - feed.heard_ns
        if silent_ns > 3 * feed.life_ns + int(timeout_s * 1e9):
            what = f"the subscription of scan class {feed.name} is silent for {silent_ns / 1e9:.1f} s"
            raise self._lost(link, ChannelLost(what, "check that the server runs", timed_out=True))
        channel = link.session.channel
        if feed.behind or feed.torn:
            feed.behind = False
            try:
                for part in one.whole:
                    await self._guard("read", part.read(channel), timeout_s)
            except FieldBusError:
                feed.behind = True
                raise
            if feed.torn:
                return one.state.reading(stamp_ns)
            feed.hold(one.state.reading(stamp_ns))
        else:
            for part in one.rest:
                await self._guard("read", part.read(channel), timeout_s)
        return feed.reading()

    # --- writing

    async def _send(self, link: _Link, writes: Sequence[_Write], where: str, timeout_s: float) -> WriteOutcome | None:
        """The Write service. ``None`` when the server says it is done, which is yet to be verified."""
        request = ua.WriteRequest()
        for each in writes:
            item = ua.WriteValue()
            item.NodeId = link.node_ids[each.node.tag.name]
            item.AttributeId = AttributeIds.Value
            item.Value = each.node.data_value(each.raw)
            request.Parameters.NodesToWrite.append(item)
        try:
            answer = await self._guard("write", link.session.request(request, ua.WriteResponse), timeout_s)
        except FieldBusError as exc:
            return WriteOutcome(Outcome.UNKNOWN, f"{where}: {exc.what}")
        results = answer.Results
        if len(results) != len(writes):
            return WriteOutcome(Outcome.UNKNOWN, f"{where}: {len(results)} results for {len(writes)} values")
        bad = [(each, status) for each, status in zip(writes, results, strict=True) if status.is_bad()]
        if not bad:
            return None
        maybe = len(bad) < len(writes) or any(status.value in MAYBE_EXECUTED for _, status in bad)
        what = "; ".join(f"{each.node.tag.name}: {status_text(status.value)}" for each, status in bad)
        return WriteOutcome(Outcome.UNKNOWN if maybe else Outcome.REJECTED, f"{where}: {what}")

    async def _read_back(self, link: _Link, writes: Sequence[_Write], where: str, timeout_s: float) -> WriteOutcome:
        ids = [link.node_ids[each.node.tag.name] for each in writes]
        size = link.most_read or len(ids)
        data, stamp_ns = [], self._now()
        try:
            for first in range(0, len(ids), size):
                data += await self._guard("read back", link.session.read_scalars(ids[first : first + size]), timeout_s)
        except FieldBusError as exc:
            return WriteOutcome(Outcome.UNKNOWN, f"{where}: acknowledged, but the read-back failed: {exc.what}")
        differ = []
        for each, datum in zip(writes, data, strict=True):
            group, index = self._places[each.node.tag.name]
            feed = link.groups[group].feed
            if feed is not None:
                feed.read_back(index, datum, stamp_ns)
            found, reason = each.node.raw(datum)
            if found is None:
                return WriteOutcome(Outcome.UNKNOWN, f"{where}: acknowledged, but not readable: {reason}")
            if found != each.raw:
                differ.append(f"{each.raw!r} was acknowledged, but {found!r} reads back")
        value = codec.judge(writes[0].node.tag, found)[0] if len(writes) == 1 and found is not None else None
        if not differ:
            return WriteOutcome(Outcome.VERIFIED, read_back=value)
        outcome = Outcome.REJECTED if len(differ) == len(writes) else Outcome.UNKNOWN
        return WriteOutcome(outcome, f"{where}: {'; '.join(differ)}", value)

    # --- what goes wrong

    def _require(self) -> _Link:
        if self._link is None:
            raise LinkDown(self._name, "not connected", where=self.endpoint)
        return self._link

    async def _guard(self, what: str, service: Awaitable[T], timeout_s: float) -> T:
        """One step with one deadline; whatever goes wrong on the wire ends as a ``FieldBusError``.

        Raises :class:`LinkDown` after dropping the connection, or :class:`DeviceRefused`.
        """
        link, polite = self._link, False
        try:
            async with asyncio.timeout(timeout_s):
                return await service
        except TimeoutError:
            why = ChannelLost(f"{what}: no answer within {timeout_s:g} s", "check that the server runs", timed_out=True)
        except asyncio.CancelledError:
            self._drop(ChannelLost("closed"), link)
            raise
        except ChannelLost as exc:
            polite = not exc.timed_out
            why = ChannelLost(f"{what}: {exc.what}", exc.hint, timed_out=exc.timed_out)
        except CertificateProblem as exc:
            why = ChannelLost(exc.what, exc.hint)
        except ServiceFault as exc:
            if link is not None and exc.code not in SESSION_LOST:
                raise DeviceRefused(self._name, f"{what}: {exc}", where=self.endpoint) from exc
            polite = True
            why = ChannelLost(f"{what}: {exc}", "see the server's log")
        except OSError as exc:
            why = ChannelLost(f"{what}: {exc}", "check power, network and address")
        raise self._lost(link, why, polite=polite)

    def _lost(self, link: _Link | None, why: ChannelLost, *, polite: bool = False) -> LinkDown:
        if why.timed_out:
            self._meter.timeouts += 1
        if link is None or self._link is link:
            self._servers.lost()
        error = LinkDown(self._name, why.what, where=self.endpoint, hint=why.hint, timed_out=why.timed_out)
        self._drop(why, link, polite=polite)
        return error

    def _drop(self, why: ChannelLost, link: _Link | None = None, *, polite: bool = False) -> None:
        """Let go of the connection at once; ``link`` names it where it may have been replaced meanwhile."""
        if link is not None and self._link is not link:
            link.session.drop(why, polite=polite)
            return
        session, self._session, self._link = self._session, None, None
        if session is not None:
            session.drop(why, polite=polite)

    async def _bye(self, session: Session) -> None:
        try:
            with contextlib.suppress(ChannelLost, ServiceFault, OSError):
                async with asyncio.timeout(GOODBYE_S):
                    await session.close()
        finally:
            session.drop(ChannelLost("closed"))
