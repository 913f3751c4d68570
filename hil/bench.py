"""The bench tier: the pure scan, the virtual PLCs and the plant together in virtual time, with no sockets.

The controller side reads the PLCs' memories through the same compiled plan and codec as the Modbus drivers, at the
addresses of line.yaml; the PLCs lay their memories out by the plant's own register list. A wrong tag map therefore
fails here as it would on the wire. Same seed, same configuration: byte-identical event log.
"""

from __future__ import annotations

import hashlib
import random
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec

from controller.build import build_line, kind_infos
from controller.config.load import load
from controller.config.plcs import ModbusOptions, OpcUaPlc
from controller.core.commands import Command, Reply
from controller.core.events import AnyEvent
from controller.core.line import ScanResult
from controller.core.packml import State, Trigger
from drivers.plan import PlanOptions
from drivers.port import Value
from hil.bench_link import BenchLink, Memory, ModbusMemory, NodeMemory
from hil.plc import World

MS = 1_000_000
SECOND = 1_000_000_000
EPOCH_NS = 1_767_225_600 * SECOND
"""Virtual UTC at the bench's time 0: 2026-01-01T00:00:00Z."""


def line_folder(line: str) -> Path:
    """The folder of a reference line. Raises ``FileNotFoundError`` naming those that exist."""
    root = Path(__file__).parent / "lines"
    folder = root / line
    if not (folder / "line.yaml").is_file():
        known = ", ".join(sorted(p.parent.name for p in root.glob("*/line.yaml")))
        raise FileNotFoundError(f"there is no reference line {line!r}; there are: {known}")
    return folder


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
        if isinstance(spec, OpcUaPlc):
            return NodeMemory(plc, tags)
        assert isinstance(spec, ModbusOptions), f"{name}: the bench has no line devices"
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
