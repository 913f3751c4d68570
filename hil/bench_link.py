"""The controller's side of one PLC on the bench: its memory, read as the drivers do, and the link over it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from controller.config.line import LineConfig
from controller.core.image import InputBuffer, LinkReport, WriteReport
from controller.runtime.bus_commands import RETRY_NS, Command, Commands
from controller.runtime.bus_options import link_options
from controller.runtime.bus_peer import Peer
from controller.runtime.bus_state import Heart, Outputs, S, levels_by_group
from drivers import codec
from drivers.plan import ModbusPlan, PlanOptions, Request
from drivers.port import Area, OpcUaAddress, Outcome, ReadGroup, Reading, Tag, Value, WriteOutcome
from hil.plc import IllegalAddress, IllegalValue, PlcOffline, VirtualPlc

BITS = (Area.COIL, Area.DISCRETE_INPUT)


class Memory(Protocol):
    """How one kind of PLC is read and written on the bench."""

    groups: tuple[ReadGroup, ...]

    def read(self, group: int) -> tuple[Sequence[Value | None], Mapping[int, str]]:
        """Values of a group, and why some are bad."""

    def write(self, tag: str, value: Value) -> tuple[Outcome, str]:
        """Write and verify."""

    def write_block(self, values: Mapping[str, Value]) -> tuple[Outcome, str]:
        """Write several at once and verify."""


@dataclass(slots=True)
class _Block:
    """One request, and the version of the memory under it when it was last answered."""

    request: Request
    versions: Sequence[int]
    place: int
    seen: int = -1


class ModbusMemory:
    """A Modbus PLC's memory, read through the drivers' plan.

    A block that has not changed since it was last read is not asked for again. A request for an address that the
    PLC does not have makes the group's tags BAD, as on the wire.
    """

    def __init__(self, plc: VirtualPlc, tags: Sequence[Tag], options: PlanOptions) -> None:
        self._plc, self._plan = plc, ModbusPlan(tags, options)
        self.groups = self._plan.groups
        self._blocks: list[list[_Block]] = []
        self._refused: list[str] = []
        for number in range(len(self.groups)):
            self._refused.append("")
            blocks: list[_Block] = []
            for request in self._plan.requests(number):
                try:
                    self._fetch(request)
                    versions, place = plc.watch(request.area.value, request.offset)
                    blocks.append(_Block(request, versions, place))
                except IllegalAddress as error:
                    self._refused[-1] = f"{request}: illegal data address ({error})"
            self._blocks.append(blocks)
        self._data: list[list[bytes]] = [[b""] * len(blocks) for blocks in self._blocks]

    def read(self, group: int) -> tuple[Sequence[Value | None], Mapping[int, str]]:
        """Fetch what changed, decode what differs."""
        self._plc.look()
        if self._refused[group]:
            count = len(self.groups[group].tags)
            return (None,) * count, dict.fromkeys(range(count), self._refused[group])
        data = self._data[group]
        for n, block in enumerate(self._blocks[group]):
            version = block.versions[block.place]
            if version != block.seen:
                block.seen = version
                data[n] = self._fetch(block.request)
        return self._plan.decode(group, data)

    def write(self, tag: str, value: Value) -> tuple[Outcome, str]:
        """As the driver does: encode, write, read back, compare raw."""
        try:
            write = self._plan.encode_write(tag, value)
        except codec.EncodeError as error:
            return Outcome.REJECTED, str(error)
        try:
            if write.area in BITS:
                self._plc.write_bits(write.offset, (bool(write.payload[0]),))
            elif write.mask is not None:
                old = int.from_bytes(self._plc.read_registers(write.area.value, write.offset, 1), "big")
                new = (old & write.mask[0]) | (write.mask[1] & ~write.mask[0])
                self._plc.write_registers(write.offset, new.to_bytes(2, "big"))
            else:
                self._plc.write_registers(write.offset, write.payload)
            equal, found = self._plan.confirm(write, self._fetch(write.read_back))
        except (IllegalAddress, IllegalValue) as error:
            return Outcome.REJECTED, str(error)
        return (Outcome.VERIFIED, "") if equal else (Outcome.REJECTED, f"{found!r} reads back")

    def write_block(self, values: Mapping[str, Value]) -> tuple[Outcome, str]:
        """One write of registers that follow each other, all or nothing."""
        try:
            writes = sorted((self._plan.encode_write(t, v) for t, v in values.items()), key=lambda w: w.offset)
            self._plc.write_registers(writes[0].offset, b"".join(write.payload for write in writes))
            wrong = [w.tag.name for w in writes if not self._plan.confirm(w, self._fetch(w.read_back))[0]]
        except (codec.EncodeError, IllegalAddress, IllegalValue) as error:
            return Outcome.REJECTED, str(error)
        return (Outcome.REJECTED, f"{', '.join(wrong)} read back otherwise") if wrong else (Outcome.VERIFIED, "")

    def _fetch(self, request: Request) -> bytes:
        if request.area in BITS:
            return self._plc.read_bits(request.area.value, request.offset, request.count)
        return self._plc.read_registers(request.area.value, request.offset, request.count)


class NodeMemory:
    """An OPC UA PLC's memory."""

    def __init__(self, plc: VirtualPlc, tags: Sequence[Tag]) -> None:
        self._plc = plc
        by_class: dict[str, list[Tag]] = {}
        for tag in tags:
            by_class.setdefault(tag.scan_class, []).append(tag)
        self.groups = tuple(ReadGroup(name, tuple(members)) for name, members in by_class.items())
        self._tags = {t.name: t for t in tags}
        self._ids = [tuple(_node_id(t) for t in g.tags) for g in self.groups]
        self._version: list[int] = [-1] * len(self.groups)
        self._raw: list[list[Value]] = [[] for _ in self.groups]
        self._last: list[tuple[Sequence[Value | None], Mapping[int, str]]] = [((), {})] * len(self.groups)

    def read(self, group: int) -> tuple[Sequence[Value | None], Mapping[int, str]]:
        """The nodes of the group; those whose value is as before are not judged again."""
        version = self._plc.version("ua")
        if version == self._version[group]:
            return self._last[group]
        self._version[group] = version
        raw = self._plc.read_nodes(self._ids[group])
        before, (values, bad) = self._raw[group], self._last[group]
        changed = [n for n, value in enumerate(raw) if not before or value != before[n]]
        if changed:
            self._raw[group] = raw
            taken, reasons = list(values) or [None] * len(raw), dict(bad)
            for n in changed:
                taken[n], reason = codec.judge(self.groups[group].tags[n], raw[n])
                reasons.pop(n, None)
                if reason:
                    reasons[n] = reason
            self._last[group] = (tuple(taken), reasons)
        return self._last[group]

    def write(self, tag: str, value: Value) -> tuple[Outcome, str]:
        """Write, read back, compare."""
        spec = self._tags[tag]
        try:
            raw = codec.to_raw(spec, value)
            self._plc.write_node(_node_id(spec), raw)
            found = self._plc.read_nodes((_node_id(spec),))[0]
        except (codec.EncodeError, IllegalAddress, IllegalValue) as error:
            return Outcome.REJECTED, str(error)
        return (Outcome.VERIFIED, "") if codec.same(spec, value, found) else (Outcome.REJECTED, f"{found!r} reads back")

    def write_block(self, values: Mapping[str, Value]) -> tuple[Outcome, str]:
        """One after the other, in the order given."""
        for tag, value in values.items():
            outcome, reason = self.write(tag, value)
            if outcome is not Outcome.VERIFIED:
                return outcome, f"{tag}: {reason}"
        return Outcome.VERIFIED, ""


def _node_id(tag: Tag) -> str:
    assert isinstance(tag.address, OpcUaAddress)
    return tag.address.node_id


class BenchLink:
    """What a supervised link does, in virtual time: the state of a real one, over a memory that answers at once."""

    def __init__(self, name: str, memory: Memory, config: LineConfig, buffer: InputBuffer) -> None:
        self.name, self._memory, self._buffer = name, memory, buffer
        options = link_options(config.file.plcs[name], config.file.scan_classes)
        places = [(tag, (n, i)) for n, group in enumerate(memory.groups) for i, tag in enumerate(group.tags)]
        tags, place = {tag.name: tag for tag, _ in places}, {tag.name: where for tag, where in places}
        self._periods = [round(options.periods_s[g.scan_class] * S) for g in memory.groups]
        self._due = [0] * len(memory.groups)
        self._latest: list[Reading | None] = [None] * len(memory.groups)
        self._place = place
        self._heart = Heart(options.heartbeat, tags, place, self._periods)
        self._peer = Peer(options.identity, options.boot_counter, tags, place)
        self._outputs = Outputs(tags)
        self._commands = Commands(options.blocks, tags, place)
        self._levels = levels_by_group(place, tags, self._commands.members, len(memory.groups))
        self._connected = self._up = False
        self._reason = "not connected yet"
        self._retry_ns = 0

    def poll(self, now_ns: int) -> None:
        """Read what is due."""
        try:
            if not self._connected:
                if now_ns >= self._retry_ns:
                    self._connect(now_ns)
                return
            for n, due in enumerate(self._due):
                if due <= now_ns and self._connected:
                    self._due[n] = now_ns + self._periods[n] - (now_ns - due) % self._periods[n]
                    self._take(n, self._read(n, now_ns), now_ns)
        except PlcOffline as error:
            self._lost(str(error), now_ns)

    def write(self, outputs: dict[str, Value], now_ns: int, scans: int) -> None:
        """Take what the scan wants; write what the PLC does not hold, and the life sign of a completed scan."""
        self._want(outputs, now_ns)
        self._heart.beat = scans
        if not self._connected:
            return
        try:
            if self._heart.write_due(now_ns):
                self._memory.write(*self._heart.take(now_ns))
            self._give_up(self._commands.over(now_ns), "not done in time")
            while self._up and (tag := self._outputs.next(now_ns)) is not None:
                command = self._commands.get(tag)
                if command is None:
                    self._write(tag, now_ns)
                else:
                    self._send(command, now_ns)
        except PlcOffline as error:
            self._lost(str(error), now_ns)

    # --- reading

    def _read(self, group: int, now_ns: int) -> Reading:
        values, bad = self._memory.read(group)
        reading = self._latest[group] = Reading(values, now_ns, bad)
        return reading

    def _connect(self, now_ns: int) -> None:
        """Look who answers, and come up when it lives."""
        readings = [self._read(n, now_ns) for n in range(len(self._due))]
        self._due = [now_ns + period for period in self._periods]
        stranger = self._peer.stranger(readings)
        if stranger:
            self._lost(stranger, now_ns)
            return
        for n in self._peer.groups:
            self._peer.boot(n, readings[n])
        if not self._connected:
            self._connected = True
            self._heart.start(readings, now_ns)
        if self._heart.alive:
            self._go_up(readings)

    def _take(self, group: int, reading: Reading, now_ns: int) -> None:
        if group in self._peer.groups:
            stranger = self._peer.changed(group, reading)
            if stranger:
                self._lost(stranger, now_ns)
                return
            restart = self._peer.boot(group, reading)
            if restart:
                self._go_down(restart)
                self._heart.start(self._latest, now_ns)
        if self._up:
            self._buffer.put(self.name, group, reading)
            self._outputs.look(self._levels[group], reading.values, self._outputs.asked(), now_ns)
            for tag in self._outputs.doubtful():
                if self._place[tag][0] == group:
                    self._outputs.settle(tag, reading.values[self._place[tag][1]])
        if self._heart.group == group:
            self._heart.see(reading, now_ns)
            if self._heart.overdue(now_ns):
                self._go_down(self._heart.stopped)
        latched = self.name not in self._buffer.links or self._buffer.links[self.name].up
        if not self._up and self._heart.alive and latched:
            self._connect(now_ns)

    # --- writing

    def _want(self, outputs: dict[str, Value], now_ns: int) -> None:
        together = {tag: value for tag, value in outputs.items() if tag in self._commands.members}
        for tag, value in outputs.items():
            if tag not in together:
                self._outputs.want(tag, value)
        for command in self._commands.ask(together, now_ns):
            self._outputs.queue(command.id)
        if not self._up:
            self._give_up(self._commands.drop(), f"{self.name} is not connected: {self._reason}")

    def _write(self, tag: str, now_ns: int) -> None:
        value = self._outputs.begin(tag)
        outcome, reason = self._memory.write(tag, value)
        self._outputs.ended(tag, value, WriteOutcome(outcome, reason), now_ns)
        self._buffer.report(WriteReport(tag, value, outcome, reason))

    def _send(self, command: Command, now_ns: int) -> None:
        values = self._commands.begin(command, self._latest, now_ns)
        outcome, reason = (Outcome.REJECTED, values) if isinstance(values, str) else self._memory.write_block(values)
        self._commands.ended(command, WriteOutcome(outcome, reason))
        self._outputs.unqueue(command.id)
        if outcome is Outcome.REJECTED:
            self._outputs.queue(command.id, now_ns + RETRY_NS)
        self._buffer.report(command.report(outcome, reason))

    def _give_up(self, commands: Sequence[Command], why: str) -> None:
        for command in commands:
            self._outputs.unqueue(command.id)
            report = command.given_up(why)
            if report is not None:
                self._buffer.report(report)

    # --- up and down

    def _go_up(self, readings: Sequence[Reading]) -> None:
        self._up = True
        self._buffer.link(LinkReport(self.name, True, restarted=self._peer.take_restarted()))
        for n, reading in enumerate(readings):
            self._buffer.put(self.name, n, reading)
        for tag in self._outputs.wanted:
            group, index = self._place[tag]
            self._outputs.compare(tag, readings[group].values[index])

    def _go_down(self, reason: str) -> None:
        was, self._up, self._reason = self._up, False, reason
        self._outputs.forget()
        self._give_up(self._commands.drop(), f"the link was lost: {reason}")
        if was:
            self._buffer.link(LinkReport(self.name, False, reason))

    def _lost(self, reason: str, now_ns: int) -> None:
        self._connected = False
        self._retry_ns = now_ns + S
        self._go_down(reason)
