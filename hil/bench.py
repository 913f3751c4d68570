"""The bench tier: the pure scan, the virtual PLCs and the plant together in virtual time, with no sockets.

The controller side reads the PLCs' memories through the same compiled plan and codec as the Modbus drivers, at the
addresses of line.yaml; the PLCs lay their memories out by the plant's own register list. A wrong tag map therefore
fails here as it would on the wire. Same seed, same configuration: byte-identical event log.
"""

from __future__ import annotations

import hashlib
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import msgspec

from controller.build import build_line, kind_infos
from controller.config.line import LineConfig
from controller.config.load import load
from controller.core.commands import Command, Reply
from controller.core.events import AnyEvent
from controller.core.image import InputBuffer, LinkReport, WriteReport
from controller.core.line import ScanResult
from controller.core.packml import State, Trigger
from drivers import codec
from drivers.plan import ModbusPlan, PlanOptions, Request
from drivers.port import Area, OpcUaAddress, Outcome, ReadGroup, Reading, Tag, Value
from hil.plc import IllegalAddress, IllegalValue, PlcOffline, VirtualPlc, World

MS = 1_000_000
SECOND = 1_000_000_000
EPOCH_NS = 1_767_225_600 * SECOND
"""Virtual UTC at the bench's time 0: 2026-01-01T00:00:00Z."""
BITS = (Area.COIL, Area.DISCRETE_INPUT)


def line_folder(line: str) -> Path:
    """The folder of a reference line. Raises ``FileNotFoundError`` naming those that exist."""
    root = Path(__file__).parent / "lines"
    folder = root / line
    if not (folder / "line.yaml").is_file():
        known = ", ".join(sorted(p.parent.name for p in root.glob("*/line.yaml")))
        raise FileNotFoundError(f"there is no reference line {line!r}; there are: {known}")
    return folder


class Memory(Protocol):
    """How one kind of PLC is read and written on the bench."""

    groups: tuple[ReadGroup, ...]

    def read(self, group: int) -> tuple[Sequence[Value | None], Mapping[int, str]]:
        """Values of a group, and why some are bad."""

    def write(self, tag: str, value: Value) -> tuple[Outcome, str]:
        """Write and verify."""


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


def _node_id(tag: Tag) -> str:
    assert isinstance(tag.address, OpcUaAddress)
    return tag.address.node_id


class BenchLink:
    """What a supervised link does, in virtual time: polls, verified level writes, life signs, loss and return."""

    def __init__(self, name: str, memory: Memory, config: LineConfig, buffer: InputBuffer) -> None:
        self.name, self._memory, self._buffer = name, memory, buffer
        classes = config.file.scan_classes
        self._periods = [classes[g.scan_class].period_ms * MS for g in memory.groups]
        self._due = [0] * len(memory.groups)
        self._up = False
        self._retry_ns = 0
        self._wanted: dict[str, Value] = {}
        self._open: dict[str, int] = {}
        """Outputs not yet confirmed, in the order in which they were asked for, with the time before which not to
        write them: a rejected one is tried again after a second."""
        heartbeat = config.file.plcs[name].heartbeat
        self._beat_tag = heartbeat.write if heartbeat else None
        self._beat_ns = heartbeat.period_ms * MS if heartbeat else 0
        self._beat_due = 0

    def poll(self, now_ns: int) -> None:
        """Read what is due."""
        if not self._up and now_ns < self._retry_ns:
            return
        try:
            for n, due in enumerate(self._due):
                if due <= now_ns or not self._up:
                    values, bad = self._memory.read(n)
                    self._due[n] = (
                        now_ns + self._periods[n] - (now_ns - due if due and self._up else 0) % self._periods[n]
                    )
                    reading = Reading(values, now_ns, bad)
                    if self._up:
                        self._buffer.put(self.name, n, reading)
                    elif n == len(self._due) - 1:
                        self._connected(now_ns)
        except PlcOffline as error:
            self._lost(str(error), now_ns)

    def write(self, outputs: dict[str, Value], now_ns: int, scans: int) -> None:
        """Write what is wanted and not yet confirmed, and the life sign of a completed scan."""
        for tag, value in outputs.items():
            self._wanted[tag] = value
            self._open[tag] = 0
        if not self._up:
            return
        try:
            for tag in [t for t, not_before in self._open.items() if not_before <= now_ns]:
                outcome, reason = self._memory.write(tag, self._wanted[tag])
                if outcome is Outcome.VERIFIED:
                    del self._open[tag]
                else:
                    self._open[tag] = now_ns + SECOND
                self._buffer.report(WriteReport(tag, self._wanted[tag], outcome, reason))
            if self._beat_tag and now_ns >= self._beat_due:
                self._beat_due = now_ns + self._beat_ns
                self._memory.write(self._beat_tag, scans & 0xFFFF)
        except PlcOffline as error:
            self._lost(str(error), now_ns)

    def _connected(self, now_ns: int) -> None:
        self._up = True
        self._open = dict.fromkeys(self._wanted, 0)
        self._buffer.link(LinkReport(self.name, True))
        for n in range(len(self._due)):
            values, bad = self._memory.read(n)
            self._buffer.put(self.name, n, Reading(values, now_ns, bad))

    def _lost(self, reason: str, now_ns: int) -> None:
        self._retry_ns = now_ns + SECOND
        if self._up:
            self._up = False
            self._buffer.link(LinkReport(self.name, False, reason))


class Bench:
    """One line on the bench. ``now_ns`` is virtual time since power-up.

    ``step()`` is one scan period: the plant advances, the links poll, the scan runs, outputs are written.
    """

    def __init__(self, line: str, seed: int, scan_ms: int | None = None) -> None:
        self.config = load(line_folder(line) / "line.yaml", kinds=kind_infos())
        self.world = World(line=line, seed=seed)
        self.scan_ns = (scan_ms or self.config.file.line.scan_ms) * MS
        memories = {name: self._memory(name) for name in self.config.file.plcs}
        groups = {name: memory.groups for name, memory in memories.items()}
        self.logic, self.buffer = build_line(self.config, groups)
        self.links = [BenchLink(name, memory, self.config, self.buffer) for name, memory in memories.items()]
        self._link_of = {
            tag: link for link in self.links for tag, plc in self.config.tag_plc.items() if plc == link.name
        }
        self.now_ns = 0
        self._commands: list[Command] = []
        self._number = 0
        self.replies: list[Reply] = []

    def _memory(self, name: str) -> Memory:
        plc, spec = self.world.plcs[name], self.config.file.plcs[name]
        tags = [t for t in self.config.tags.values() if self.config.tag_plc[t.name] == name]
        if spec.driver == "opcua":
            return NodeMemory(plc, tags)
        options = PlanOptions(max_registers=spec.max_registers, max_bits=spec.max_bits, max_gap=spec.max_gap)
        return ModbusMemory(plc, tags, options)

    def command(self, target: str, name: str, user: str = "operator", **args: str | int | float | bool) -> None:
        """Queue a command for the next scan."""
        self._number += 1
        self._commands.append(
            Command(id=str(self._number), target=target, name=name, args=args, user=user, client="bench")
        )

    def step(self) -> ScanResult:
        """One scan period."""
        self.now_ns += self.scan_ns
        now_ns = self.now_ns
        self.world.advance(now_ns)
        for link in self.links:
            link.poll(now_ns)
        commands, self._commands = self._commands, []
        result = self.logic.scan(now_ns, EPOCH_NS + now_ns, self.buffer, commands)
        self.replies = list(result.replies)
        outputs: dict[str, dict[str, Value]] = {}
        for tag, value in result.outputs.items():
            outputs.setdefault(self.config.tag_plc[tag], {})[tag] = value
        for link in self.links:
            link.write(outputs.get(link.name, {}), now_ns, self.logic.scans)
        return result


class Shift:
    """The people of a shift: an operator who brings the line up, and a technician who mends it. Seeded."""

    def __init__(self, bench: Bench, seed: int, length_ns: int) -> None:
        self._bench = bench
        self._random = random.Random(f"{seed}/shift")
        self._length_ns = length_ns
        self._next_ns = 2 * SECOND
        self._fault_ns = self._draw(1800)
        self._mend: tuple[int, str] | None = None
        self._changed = False

    def act(self) -> None:
        """Look at the line every second and do what a person would."""
        bench = self._bench
        now_ns = bench.now_ns
        if now_ns < self._next_ns:
            return
        self._next_ns = now_ns + SECOND
        logic = bench.logic
        state = logic.line.state
        if self._mend is not None and now_ns >= self._mend[0]:
            bench.world.clear("jam", station=self._mend[1])
            self._mend = None
        if self._mend is None and now_ns >= self._fault_ns and state is State.EXECUTE:
            station = self._random.choice(("infeed", "capper", "labeler"))
            bench.world.inject("jam", station=station)
            self._mend = (now_ns + self._random.randrange(30, 120) * SECOND, station)
            self._fault_ns = now_ns + self._draw(2400)
        if logic.changeover is not None:
            return
        if state is State.ABORTED:
            bench.command("line", "clear")
        elif state is State.STOPPED or (state is State.COMPLETE and not logic.block):
            bench.command("line", "reset")
        elif state is State.IDLE and not logic.line.obstacles(Trigger.START):
            bench.command("line", "start")
        elif state is State.EXECUTE:
            if self._mend is None:
                for name, unit in logic.stations.items():
                    if unit.state is State.HELD:
                        bench.command(name, "unhold", user="technician")
            if not self._changed and now_ns > self._length_ns // 2 and len(logic.recipes) > 1 and logic.recipe:
                self._changed = True
                other = next(r for r in logic.recipes if r != logic.recipe.id)
                bench.command("line", "changeover", recipe=other, start=True)
        elif state is State.HELD and self._mend is None:
            bench.command("line", "unhold", user="technician")

    def _draw(self, mean_s: float) -> int:
        return self._bench.now_ns + int(self._random.expovariate(1 / mean_s) * SECOND)


class BenchResult(msgspec.Struct, frozen=True):
    """What a run on the bench came to. Times in seconds; counts in bottles."""

    sim_s: float
    wall_s: float
    scans: int
    overruns: int
    good: int
    rejected: int
    infeed: int
    in_process: int
    changeovers: int
    events: int
    plant: dict[str, int]
    products: dict[str, dict[str, int]]
    balanced: bool
    event_log_sha256: str


def run_shift(line: str, hours: float, seed: int, scan_ms: int | None = None, log: Path | None = None) -> BenchResult:
    """A shift of ``hours`` on the bench; ``log`` receives the event log, one JSON object per line.

    ``overruns`` counts scans whose computing took longer than their period in wall time.
    """
    started = time.perf_counter()
    bench = Bench(line, seed, scan_ms)
    length_ns = int(hours * 3600 * SECOND)
    shift = Shift(bench, seed, length_ns)
    digest = hashlib.sha256()
    encode = msgspec.json.Encoder().encode
    events = overruns = 0
    handle = log.open("wb") if log else None
    budget_s = bench.scan_ns / 1e9
    try:
        while bench.now_ns < length_ns:
            before = time.perf_counter()
            shift.act()
            happened: Sequence[AnyEvent] = bench.step().events
            if happened:
                events += len(happened)
                for event in happened:
                    row = encode(event) + b"\n"
                    digest.update(row)
                    if handle is not None:
                        handle.write(row)
            overruns += time.perf_counter() - before > budget_s
    finally:
        if handle is not None:
            handle.close()
    return _result(bench, started, overruns, events, digest.hexdigest())


def _result(bench: Bench, started: float, overruns: int, events: int, digest: str) -> BenchResult:
    counts = bench.logic.line_counts()
    products: dict[str, dict[str, int]] = {}
    for name, station in bench.logic.stations.items():
        tally = station.parts.tally
        if tally is None:
            continue
        for product, numbers in tally.products.items():
            row = products.setdefault(product, {"good": 0, "rejected": 0})
            row["rejected"] += numbers["rejected"]
            if not bench.logic.parts.downstream.get(name):
                row["good"] += numbers["good"]
    plant = {key: int(bench.world.truth()["line"][key]) for key in ("infeed", "good", "rejected", "in_process")}
    return BenchResult(
        sim_s=bench.now_ns / 1e9,
        wall_s=round(time.perf_counter() - started, 3),
        scans=bench.logic.scans,
        overruns=overruns,
        good=counts["good"],
        rejected=counts["rejected"],
        infeed=counts["infeed"],
        in_process=counts["in_process"],
        changeovers=bench.logic.changeovers,
        events=events,
        plant=plant,
        products=products,
        balanced=counts["infeed"] == counts["good"] + counts["rejected"] + counts["in_process"],
        event_log_sha256=digest,
    )
