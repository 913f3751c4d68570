"""The Modbus driver: a plan of requests, over a unit's handle on the link that it may share with others."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from drivers.codec import EncodeError
from drivers.factory import Links
from drivers.modbus import pdu
from drivers.modbus.ascii import AsciiWire
from drivers.modbus.bus import READ, WRITE, Bus, Unit
from drivers.modbus.mbap import MbapWire
from drivers.modbus.rtu import RtuWire
from drivers.modbus.udp import UdpWire
from drivers.modbus.wire import Exchange, Wire
from drivers.options import ModbusSerialOptions, ModbusTcpOptions, ModbusUdpOptions, SerialOptions
from drivers.plan import ModbusPlan, Request, WriteRequest
from drivers.port import (
    Area,
    DeviceRefused,
    DriverStats,
    FieldBusError,
    Outcome,
    ReadGroup,
    Reading,
    Tag,
    Value,
    WriteOutcome,
)

LinkOptions = ModbusTcpOptions | ModbusUdpOptions | ModbusSerialOptions
FIRST_REGISTER = pdu.read_call(Request(Area.HOLDING_REGISTER, 0, 1))
"""Asked of a unit without readable tags, to see whether it lives; a refusal is as good an answer."""


class ModbusDriver:
    """One unit of a Modbus server (see :class:`drivers.port.Driver` for the calls)."""

    def __init__(self, plan: ModbusPlan, unit: Unit, *, single_writes: bool) -> None:
        self._plan, self._unit, self._single = plan, unit, single_writes
        self._exchanges = [
            tuple(self._exchange(pdu.read_call(request), index) for index, request in enumerate(plan.requests(n)))
            for n in range(len(plan.groups))
        ]
        self._reading = False

    @property
    def name(self) -> str:
        """The PLC's name."""
        return self._unit.name

    @property
    def endpoint(self) -> str:
        """Where the PLC is, for people."""
        return self._unit.endpoint

    @property
    def groups(self) -> tuple[ReadGroup, ...]:
        """The read groups, one per scan class."""
        return self._plan.groups

    async def connect(self, timeout_s: float) -> None:
        """Open the connection, or join the other units of the link.

        Raises :class:`~drivers.port.LinkDown`; with ``retry_s`` when this unit is silent on a link that others use.
        """
        probe = next((group[0].call for group in self._exchanges if group), FIRST_REGISTER)
        await self._unit.open(timeout_s, probe)

    async def read(self, group: int, timeout_s: float) -> Reading:
        """Read one group with the plan's requests; as many of them at once as the link's options allow.

        What the device refuses is BAD with its reason; :class:`DeviceRefused` is raised when it refuses all, or when a
        gateway says that it does not reach the device. ``RuntimeError``: another read is under way.
        """
        if self._reading:
            raise RuntimeError(f"{self.name}: two reads at once; one task reads a PLC")
        exchanges = self._exchanges[group]
        self._reading = True
        try:
            job = await self._unit.run(exchanges, int(timeout_s * 1e9))
        finally:
            self._reading = False
        data = self._reasons(exchanges, job.data) if job.refused else job.data
        values, bad = self._plan.decode(group, data)  # type: ignore[arg-type] # no exception among them now
        return Reading(values, exchanges[0].sent_ns, bad)

    async def write(self, tag: str, value: Value, timeout_s: float) -> WriteOutcome:
        """Write one tag, read it back and compare the raw values. Never sends twice.

        VERIFIED: the value reads back. REJECTED: not sent, refused, or acknowledged but another value reads back.
        UNKNOWN: no, or no clear, answer to the write or to the read-back.
        """
        try:
            write = self._plan.encode_write(tag, value)
        except EncodeError as exc:
            return WriteOutcome(Outcome.REJECTED, str(exc))
        return await self._write(write, repr(value), timeout_s)

    async def write_block(self, values: Mapping[str, Value], timeout_s: float) -> WriteOutcome:
        """Write several adjacent holding registers by one request, read them back and compare; see :meth:`write`."""
        try:
            write = self._plan.encode_block(values)
        except EncodeError as exc:
            return WriteOutcome(Outcome.REJECTED, str(exc))
        return await self._write(write, repr(dict(values)), timeout_s)

    def block_problem(self, tags: Sequence[str]) -> str:
        """Why :meth:`write_block` cannot write these tags together; empty when it can."""
        return self._plan.block_problem(tags)

    async def execute(self, call: pdu.Call, timeout_s: float) -> bytes:
        """Any request, for engineers' tools: the data of its good answer. Writes go ahead of reads, unverified.

        Raises :class:`LinkDown`, :class:`ExchangeFailed`, :class:`DeviceRefused`.
        """
        rank = WRITE if call.pdu[0] in pdu.WRITES else READ
        job = await self._unit.run((self._exchange(call),), int(timeout_s * 1e9), rank)
        reply = job.data[0]
        if isinstance(reply, pdu.ExceptionReply):
            raise self._refusal(call, reply) from reply
        return reply

    async def identify(self, category: int, timeout_s: float) -> dict[int, bytes]:
        """Identification objects (function 43 / 14), all of them: ``category`` 1 basic, 2 regular, 3 extended.

        Raises as :meth:`execute`; ``DeviceRefused`` also when the device sends us round in a circle.
        """
        objects: dict[int, bytes] = {}
        first: int | None = 0
        while first is not None:
            call = pdu.identification_call(category, first)
            part, follows = pdu.identification(await self.execute(call, timeout_s))
            objects |= part
            if follows is not None and follows <= first:
                what = f"{call.what}: object {follows} is said to follow"
                raise DeviceRefused(self.name, what, where=self.endpoint, hint="the device breaks the protocol")
            first = follows
        return objects

    def stats(self) -> DriverStats:
        """A snapshot of the counters; strays are those of the whole link."""
        return self._unit.stats()

    async def close(self) -> None:
        """Close and forget; safe at any time and more than once."""
        await self._unit.close()

    def _exchange(self, call: pdu.Call, index: int = 0) -> Exchange:
        exchange = Exchange(call, self._unit.number)
        exchange.index = index
        return exchange

    async def _write(self, write: WriteRequest, shown: str, timeout_s: float) -> WriteOutcome:
        where = f"{write.what} of {self.name} ({self.endpoint})"
        if down := self._unit.down:
            return WriteOutcome(Outcome.REJECTED, f"{where}: not sent, {down}")
        timeout_ns = int(timeout_s * 1e9)
        exchange = self._exchange(pdu.write_call(write, single=self._single))
        try:
            reply = (await self._unit.run((exchange,), timeout_ns, WRITE)).data[0]
        except FieldBusError as exc:
            if not exchange.sent_ns:
                return WriteOutcome(Outcome.REJECTED, f"{where}: not sent, {exc.what}")
            return WriteOutcome(Outcome.UNKNOWN, f"{where}: {exc.what}")
        if isinstance(reply, pdu.ExceptionReply):
            return self._refused(reply, write, where)
        exchange = self._exchange(pdu.read_call(write.read_back))
        try:
            data = (await self._unit.run((exchange,), timeout_ns, WRITE)).data[0]
        except FieldBusError as exc:
            return WriteOutcome(Outcome.UNKNOWN, f"{where}: acknowledged, but the read-back failed: {exc.what}")
        if isinstance(data, pdu.ExceptionReply):
            return WriteOutcome(Outcome.UNKNOWN, f"{where}: acknowledged, but not readable: {data}")
        equal, found = self._plan.confirm(write, data)
        if equal:
            return WriteOutcome(Outcome.VERIFIED, read_back=found)
        reason = f"{where}: {shown} was acknowledged, but {found!r} reads back"
        return WriteOutcome(Outcome.REJECTED, reason, found)

    def _refused(self, exc: pdu.ExceptionReply, write: WriteRequest, where: str) -> WriteOutcome:
        hint = exc.hint
        if exc.code == pdu.ILLEGAL_FUNCTION and write.mask is not None:
            # Reading the register, changing the bit and writing it back would undo what the PLC, or
            # somebody else, writes to its neighbours in between.
            hint = "the device cannot write single bits of a register (function 22); use a coil or a whole register"
        outcome = Outcome.REJECTED if exc.code in pdu.NOT_EXECUTED else Outcome.UNKNOWN
        return WriteOutcome(outcome, f"{where}: {exc}; {hint}")

    def _reasons(self, exchanges: Sequence[Exchange], data: Sequence[bytes | pdu.ExceptionReply]) -> list[bytes | str]:
        """The answers, with the device's reason in the place of each refused one. Raises :class:`DeviceRefused`."""
        refusals = {i: reply for i, reply in enumerate(data) if isinstance(reply, pdu.ExceptionReply)}
        gateway = [i for i, reply in refusals.items() if reply.code in pdu.GATEWAY]
        if gateway or len(refusals) == len(data):
            first = gateway[0] if gateway else 0
            raise self._refusal(exchanges[first].call, refusals[first])
        return [
            f"{exchanges[i].call.what}: {reply}; {reply.hint}" if isinstance(reply, pdu.ExceptionReply) else reply
            for i, reply in enumerate(data)
        ]

    def _refusal(self, call: pdu.Call, exc: pdu.ExceptionReply) -> DeviceRefused:
        return DeviceRefused(self.name, f"{call.what}: {exc}", where=self.endpoint, hint=exc.hint)


def make_modbus(
    name: str, tags: Sequence[Tag], options: LinkOptions, links: Links, monotonic_ns: Callable[[], int]
) -> ModbusDriver:
    """The driver of one unit, on the bus of its link; the first unit of a link makes the bus.

    Raises ``ValueError`` when a tag does not suit Modbus, the unit has a driver already, or the link's settings differ
    from those of its other units.
    """
    plan = ModbusPlan(tags, options)
    bus = links.bus(options.link(), lambda: Bus(*_wire(options, monotonic_ns), monotonic_ns, _settings(options)))
    for setting, value in _settings(options).items():
        there = bus.settings.get(setting)
        if there != value:
            raise ValueError(
                f"{name}: {setting} is {value}, but other units of the link {bus.wire.endpoint} have {there};"
                " a link has one owner, so make them the same"
            )
    return ModbusDriver(plan, bus.unit(options.unit, name), single_writes=bus.wire.single_writes)


def _wire(options: LinkOptions, monotonic_ns: Callable[[], int]) -> tuple[Wire, str]:
    """The wire, and what to look at when a unit does not answer."""
    if isinstance(options, ModbusTcpOptions):
        return MbapWire(options, monotonic_ns), "check power, cable and device id behind the gateway"
    if isinstance(options, ModbusUdpOptions):
        return UdpWire(options, monotonic_ns), "check power, network, address, port and unit"
    kind = RtuWire if options.framing == "rtu" else AsciiWire
    hint = "check wiring, termination, baud rate, parity and unit"
    return kind(options.line, echo=options.echo, monotonic_ns=monotonic_ns), hint


def _settings(options: LinkOptions) -> dict[str, object]:
    """What belongs to the link, and neither to one of its units nor to what tells it from others."""
    if isinstance(options, ModbusTcpOptions):
        return {"in_flight": options.in_flight, "connections": options.connections, "tls": options.tls}
    if isinstance(options, ModbusUdpOptions):
        return {"in_flight": options.in_flight}
    line = options.line if isinstance(options.line, SerialOptions) else None
    return {"line": line, "framing": options.framing, "echo": options.echo}
