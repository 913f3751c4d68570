"""An in-memory plant for the pure core: PLC memories, machine programs, and the scan around a station or a line.

One ``scan()`` is 100 ms: outputs of the scan before reach the PLCs, their programs run, they are read, the scan runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from controller.core.alarms import AlarmBook, AlarmSpec
from controller.core.behaviour import Behaviour
from controller.core.commands import Command, Reply
from controller.core.conditions import Condition, Interlock, Permissive
from controller.core.coordination import LineBehaviour, LineSettings
from controller.core.events import AnyEvent
from controller.core.image import InputBuffer, Layout, LinkReport, ProcessImage, WriteReport
from controller.core.io import Input, Output
from controller.core.line import LineLogic, LineParts, ScanResult
from controller.core.packml import STANDARD_MODES, Machine, Mode, Options, State, Trigger
from controller.core.parameters import Parameter, ParameterSet
from controller.core.station import AlarmRule, Parts, ScanContext, Station
from controller.stations.equipment import MachineIO, MachineSettings
from controller.stations.machine import Machine as MachineKind
from drivers.port import Area, DataType, ModbusAddress, Outcome, ReadGroup, Reading, Tag, Value
from recipes.model import ControlRecipe

MS = 1_000_000
S = 1_000_000_000
PERIOD = 100 * MS
STALE = 500 * MS
TYPES = {bool: DataType.BOOL, int: DataType.UDINT, float: DataType.REAL, str: DataType.STRING}


class Plant:
    """PLC memories: ``plcs`` maps a PLC to its tags and their first values. Every tag is writable by name."""

    def __init__(self, plcs: Mapping[str, Mapping[str, Value]]) -> None:
        groups = {}
        for plc, tags in plcs.items():
            made = tuple(
                Tag(name=name, address=ModbusAddress(Area.HOLDING_REGISTER, n), type=TYPES[type(v)], writable=True)
                for n, (name, v) in enumerate(tags.items())
            )
            groups[plc] = (ReadGroup("fast", made),)
        self.layout = Layout(groups.items(), {"fast": STALE})
        self.image = ProcessImage(self.layout)
        self.buffer = InputBuffer(self.layout)
        self.memory: dict[str, Value] = {t: v for tags in plcs.values() for t, v in tags.items()}
        self.bad: dict[str, str] = {}
        """Tags that read BAD, and why."""
        self.down: set[str] = set()
        self.silent: set[str] = set()
        """PLCs that are connected but answer no read."""
        self.rejected: dict[str, str] = {}
        """Tags whose writes the PLC refuses, and why."""
        self.swallowed: set[str] = set()
        """Tags whose writes are lost, with an unknown outcome."""
        self.programs: list[Callable[[], None]] = []
        self.written: list[tuple[str, Value]] = []
        self.now = 1_000 * S
        self._linked: set[str] = set()

    def connect(self) -> None:
        """Every link that is not cut comes up."""
        for plc in self.layout.plcs:
            self.buffer.link(LinkReport(plc, True))
            self._linked.add(plc)

    def cut(self, plc: str, reason: str = "cable pulled") -> None:
        self.down.add(plc)
        self.buffer.link(LinkReport(plc, False, reason))

    def join(self, plc: str) -> None:
        self.down.discard(plc)
        self.buffer.link(LinkReport(plc, True))

    def tick(self, outputs: Mapping[str, Value]) -> None:
        """Let 100 ms pass."""
        self.now += PERIOD
        for tag, value in outputs.items():
            self._write(tag, value)
        for program in self.programs:
            program()
        for plc in self.layout.plcs:
            if plc not in self.down and plc not in self.silent:
                self._read(plc)

    def _write(self, tag: str, value: Value) -> None:
        if self.layout.plc_of[tag] in self.down:
            return
        self.written.append((tag, value))
        if tag in self.rejected:
            report = WriteReport(tag, value, Outcome.REJECTED, self.rejected[tag])
        elif tag in self.swallowed:
            report = WriteReport(tag, value, Outcome.UNKNOWN, "no answer")
        else:
            self.memory[tag] = value
            report = WriteReport(tag, value, Outcome.VERIFIED)
        self.buffer.report(report)

    def _read(self, plc: str) -> None:
        group = self.layout.groups[self.layout.number[plc, 0]]
        bad = {n: self.bad[t.name] for n, t in enumerate(group.tags) if t.name in self.bad}
        values = tuple(None if n in bad else self.memory[t.name] for n, t in enumerate(group.tags))
        self.buffer.put(plc, 0, Reading(values, self.now - 10 * MS, bad))

    # --- conditions over it

    def condition(self, tag: str, wanted: Value = True) -> Condition:
        slot = self.layout.slots[tag]
        return Condition(
            self.image, f"{tag} == {wanted}", lambda v, b: None if b[slot] is not None else v[slot] == wanted, [tag]
        )

    def interlock(self, tag: str, otherwise: str, text: str = "") -> Interlock:
        condition = self.condition(tag)
        return Interlock(tag, condition, otherwise, text or f"{tag} is lost", condition.why)

    def permissive(self, tag: str) -> Permissive:
        condition = self.condition(tag)
        return Permissive(tag, condition, f"{tag} is missing", condition.why)


class StationRig:
    """One station with a scan around it, in the order in which the line does it."""

    def __init__(
        self, plant: Plant, behaviour: Behaviour, parts: Parts | None = None, *,
        options: Options | None = None, modes: Iterable[Mode] = STANDARD_MODES, state: State = State.ABORTED,
    ) -> None:  # fmt: skip
        self.plant, self.image = plant, plant.image
        self.alarms, self.context = AlarmBook(), ScanContext()
        self.events: list[AnyEvent] = []
        self.alarms.subscribe(lambda a, c, u: self.alarm_changes.append((a.id, c)))
        self.alarm_changes: list[tuple[str, str]] = []
        machine = Machine(options, modes, state=state, now_ns=plant.now)
        self.station = Station(behaviour.name, machine, behaviour, parts or Parts(), self.alarms, self.context)
        self._outputs: Mapping[str, Value] = {}
        plant.connect()

    @property
    def state(self) -> State:
        return self.station.state

    def scan(self, *commands: Trigger) -> State:
        """One scan; a refused command raises."""
        self.plant.tick(self._outputs)
        self.context.now_ns, self.context.utc_ns, self.context.events = self.plant.now, self.plant.now, []
        self.image.latch(self.plant.now, self.plant.buffer)
        self.station.scan_safety()
        try:
            for command in commands:
                self.station.command(command, "by test")
        finally:
            self.station.scan_logic()
            self._outputs = self.image.take_outputs()
            self.events += self.context.events
        return self.state

    def until(self, wanted: State, scans: int = 200) -> None:
        """Scan until that state; fails when it does not come."""
        for _ in range(scans):
            if self.scan() is wanted:
                return
        raise AssertionError(f"{self.station.name} is {self.state.text}, not {wanted.text}; {self.active()}")

    def drive(self, *commands: Trigger) -> None:
        """Give the commands one after another, each when the state before has settled."""
        goals = {
            Trigger.CLEAR: State.STOPPED, Trigger.RESET: State.IDLE, Trigger.START: State.EXECUTE,
            Trigger.HOLD: State.HELD, Trigger.UNHOLD: State.EXECUTE, Trigger.STOP: State.STOPPED,
            Trigger.COMPLETE: State.COMPLETE, Trigger.ABORT: State.ABORTED,
        }  # fmt: skip
        for command in commands:
            self.scan(command)
            if self.state is not goals[command]:
                self.until(goals[command])

    def active(self) -> list[str]:
        return [f"{a.id}: {a.text}" for a in self.alarms.alarms.values() if a.active]

    def visited(self) -> list[str]:
        return [e.target for e in self.events if type(e).__name__ == "Transition"]

    def rule(self, spec: AlarmSpec, condition: Condition) -> AlarmRule:
        return AlarmRule(self.alarms.add(self.station.name, spec), condition)


def machine_tags(name: str) -> dict[str, Value]:
    """Tags of one machine at rest."""
    return {
        f"{name}.run": False, f"{name}.running": False, f"{name}.reset": False, f"{name}.fault": False,
        f"{name}.fault_code": 0, f"{name}.empty": True, f"{name}.starved": False, f"{name}.blocked": False,
        f"{name}.guard": True,
    }  # fmt: skip


class MachineProgram:
    """What a machine's PLC does: run while enabled, latch a fault, reset it on the rising edge if its cause is gone."""

    def __init__(self, plant: Plant, name: str) -> None:
        self._memory, self.name = plant.memory, name
        self.cause = 0
        self.stuck = False
        self._reset = False
        plant.programs.append(self)

    def __call__(self) -> None:
        memory, name = self._memory, self.name
        reset = bool(memory[f"{name}.reset"])
        if self.cause:
            memory[f"{name}.fault"], memory[f"{name}.fault_code"] = True, self.cause
        elif reset and not self._reset:
            memory[f"{name}.fault"], memory[f"{name}.fault_code"] = False, 0
        self._reset = reset
        if not self.stuck:
            memory[f"{name}.running"] = bool(memory[f"{name}.run"]) and not memory[f"{name}.fault"]


def machine_io(plant: Plant, name: str, io: type[MachineIO] = MachineIO) -> Any:
    tags = {p: f"{name}.{p}" for p in io.points() if f"{name}.{p}" in plant.layout.slots}
    return io(plant.image, tags)


NAMES = ("a", "b", "c")
PLC_OF = {"a": "one", "b": "one", "c": "two"}


def recipe(name: str, *values: float) -> ControlRecipe:
    """A recipe that gives every station its ``speed``."""
    speeds = {(n, "speed"): v for n, v in zip(NAMES, values, strict=True)}
    return ControlRecipe(name, "1.0.0", f"product {name}", speeds, f"hash of {name}")


class LineRig:
    """Machines a → b → c on the PLCs ``one`` (a, b) and ``two`` (c), each with a recipe parameter ``speed``."""

    def __init__(
        self, *, initial: str | None = None, settings: LineSettings | None = None, options: Options | None = None,
        connected: bool = True, confirm: bool = False,
    ) -> None:  # fmt: skip
        tags: dict[str, dict[str, Value]] = {"one": {"line.estop_ok": True}, "two": {}}
        for name in NAMES:
            tags[PLC_OF[name]] |= {**machine_tags(name), f"{name}.speed": 0.0, f"{name}.in_process": 0,
                                   f"{name}.count": 0, f"{name}.reached": 0.0}  # fmt: skip
        self.plant = Plant(tags)
        self.programs = {n: MachineProgram(self.plant, n) for n in NAMES}
        self.frozen: set[str] = set()
        """Stations whose equipment does not follow its set-point."""
        self.plant.programs.append(self._follow_speed)
        self.settings = settings or LineSettings(limit_s=5.0, run_out_limit_s=20.0)
        self.logic = self._build(options, initial, confirm)
        self.line, self.stations = self.logic.line, self.logic.stations
        self.memory = self.plant.memory
        self.events: list[AnyEvent] = []
        self._outputs: Mapping[str, Value] = {}
        self._ids = 0
        if connected:
            self.plant.connect()
            self.scan()

    def _follow_speed(self) -> None:
        for name in NAMES:
            if name not in self.frozen:
                self.plant.memory[f"{name}.reached"] = self.plant.memory[f"{name}.speed"]

    def _build(self, options: Options | None, initial: str | None, confirm: bool) -> LineLogic:
        plant, image = self.plant, self.plant.image
        alarms, context = AlarmBook(), ScanContext()
        stations = {}
        for name in NAMES:
            io = machine_io(plant, name)
            parts = Parts(
                interlocks=(
                    Interlock("link", lambda n=name: image.up[PLC_OF[n]], "abort", f"PLC {PLC_OF[name]} is lost",
                              lambda n=name: image.down_reason[PLC_OF[n]]),
                    plant.interlock(f"{name}.guard", "hold", f"guard of {name} is open"),
                ),
                starved=plant.condition(f"{name}.starved"),
                blocked=plant.condition(f"{name}.blocked"),
                suspend_delay_ns=300 * MS,
                safe={"run": False, "reset": False},
                outputs=io.outputs,
            )  # fmt: skip
            behaviour = MachineKind(name, io, MachineSettings(limit_s=2.0, empty_limit_s=10.0))
            stations[name] = Station(name, Machine(options), behaviour, parts, alarms, context)
        line = Station(
            "line", Machine(options), LineBehaviour("line", self.settings, tuple(stations.values())),
            Parts(interlocks=(plant.interlock("line.estop_ok", "abort", "emergency stop pressed"),)), alarms, context,
        )  # fmt: skip
        parameters = [
            Parameter(n, "speed", Output(image, f"{n}.speed"), "m/s",
                      Input(image, f"{n}.reached") if confirm else None, 0.01, 2.0)
            for n in NAMES
        ]  # fmt: skip
        recipes = {r.id: r for r in (recipe("water", 1.0, 2.0, 3.0), recipe("juice", 1.5, 2.5, 3.5))}
        return LineLogic(
            LineParts(
                name="test", image=image, context=context, alarms=alarms, line=line, stations=stations,
                parameters=ParameterSet(image, parameters), recipes=recipes,
                downstream={"a": ("b",), "b": ("c",)}, endpoints={"one": "10.0.0.1:502", "two": "10.0.0.2:502"},
            ),
            initial,
        )  # fmt: skip

    # --- driving it

    def command(self, target: str, name: str, **args: Any) -> Command:
        self._ids += 1
        return Command(id=str(self._ids), target=target, name=name, args=args, user="anna", client="test")

    def scan(self, *commands: Command) -> ScanResult:
        self.plant.tick(self._outputs)
        result = self.logic.scan(self.plant.now, self.plant.now, self.plant.buffer, commands)
        self._outputs = result.outputs
        self.events += result.events
        return result

    def give(self, target: str, name: str, **args: Any) -> Reply:
        return self.scan(self.command(target, name, **args)).replies[0]

    def until(self, condition: Callable[[], bool], scans: int = 300) -> None:
        for _ in range(scans):
            if condition():
                return
            self.scan()
        alarms = [f"{a.id}: {a.text}" for a in self.logic.alarms.alarms.values() if a.active]
        raise AssertionError(f"never so; {self.states()}; {alarms}; {self.changeover_steps()[-1:]}")

    def to(self, name: str, wanted: State) -> None:
        """Give the line a command and wait for the state."""
        reply = self.give("line", name)
        assert reply.accepted, reply.reason
        self.until(lambda: self.line.state is wanted)

    def run(self, recipe_id: str = "water") -> None:
        """From a cold start to Execute."""
        if self.logic.recipe is None:
            self.load(recipe_id)
        self.to("clear", State.STOPPED)
        self.to("reset", State.IDLE)
        self.to("start", State.EXECUTE)

    def load(self, recipe_id: str, **args: Any) -> None:
        reply = self.give("line", "changeover", recipe=recipe_id, **args)
        assert reply.accepted, reply.reason
        self.until(lambda: self.logic.changeover is None)

    # --- looking at it

    def states(self) -> dict[str, str]:
        return {"line": self.line.state.text} | {n: s.state.text for n, s in self.stations.items()}

    def transitions(self, target: str = "") -> list[tuple[str, str]]:
        """(station, state entered) in order."""
        return [
            (e.station, e.target) for e in self.events if type(e).__name__ == "Transition" and target in ("", e.target)
        ]

    def changeover_steps(self) -> list[str]:
        return [e.step for e in self.events if type(e).__name__ == "ChangeoverChanged"]

    def alarm(self, alarm_id: str) -> str:
        """Text of an active alarm, else empty."""
        found = self.logic.alarms.alarms.get(alarm_id)
        return found.text if found and found.active else ""

    def speeds(self) -> list[Value]:
        return [self.memory[f"{n}.speed"] for n in NAMES]
