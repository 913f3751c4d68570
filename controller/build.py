"""From a validated configuration to the line's logic: wiring only, no I/O.

``build_line(config, groups)`` needs to know how each PLC's tags are grouped for reading; that is the drivers' word
(or, on the bench, the same plan's).
"""

from __future__ import annotations

import typing
from collections.abc import Mapping, Sequence
from dataclasses import fields
from functools import partial
from typing import Any

from controller.config import model
from controller.config.kinds import KindInfo, PointInfo, PointType
from controller.config.line import LineConfig
from controller.core import packml
from controller.core.accounting import CountSlots, Tally
from controller.core.alarms import PRIORITIES, AlarmBook, AlarmSpec
from controller.core.behaviour import Behaviour
from controller.core.conditions import Condition, Interlock, Permissive
from controller.core.coordination import LineBehaviour, LineSettings
from controller.core.image import InputBuffer, Layout, ProcessImage
from controller.core.io import IO, Input, Output
from controller.core.line import LineLogic, LineParts
from controller.core.packml import Machine, State
from controller.core.parameters import Parameter, ParameterSet
from controller.core.sequence import Delay
from controller.core.station import AlarmRule, Parts, ScanContext, Station
from controller.stations import KINDS, SEQUENCE
from controller.stations.sequence import SequenceStation, SetStep, Step, WaitStep
from drivers.port import DataType, ReadGroup, Value

MS = 1_000_000
WIDTHS = {DataType.USINT: 8, DataType.UINT: 16, DataType.UDINT: 32, DataType.ULINT: 64}


def kind_infos() -> dict[str, KindInfo]:
    """What the configuration check must know of every station kind."""
    types: dict[type, PointType] = {bool: "bool", int: "number", float: "number", str: "text"}
    infos = {SEQUENCE: KindInfo()}
    for name, kind in KINDS.items():
        points = {p.name: PointInfo(types[p.type], p.writable, p.optional) for p in kind.IO.points().values()}
        settings = typing.get_type_hints(kind.Settings)
        infos[name] = KindInfo(points, {f.name: settings[f.name] for f in fields(kind.Settings)})
    return infos


def build_line(config: LineConfig, groups: Mapping[str, Sequence[ReadGroup]]) -> tuple[LineLogic, InputBuffer]:
    """The line's logic and the buffer that the links (or the bench) fill for it."""
    return _Builder(config, groups).build()


def flow_order(stations: Mapping[str, model.Station]) -> list[str]:
    """Station names in the order of the product's flow; ties in the order of the file."""
    upstream = dict.fromkeys(stations, 0)
    for station in stations.values():
        for name in station.downstream:
            upstream[name] += 1
    order: list[str] = []
    ready = [name for name, count in upstream.items() if count == 0]
    while ready:
        name = ready.pop(0)
        order.append(name)
        for after in stations[name].downstream:
            upstream[after] -= 1
            if upstream[after] == 0:
                ready.append(after)
    assert len(order) == len(stations), "the stations form a ring; the configuration check lets none through"
    return order


class _Builder:
    def __init__(self, config: LineConfig, groups: Mapping[str, Sequence[ReadGroup]]) -> None:
        self.config, self.file = config, config.file
        stale = {name: c.stale_ms * MS for name, c in self.file.scan_classes.items()}
        blocks = [block for plc in self.file.plcs.values() for block in plc.command_blocks]
        self.layout = Layout(groups.items(), stale, {tag: b.id for b in blocks for tag in (*b.tags, b.id)})
        self.image = ProcessImage(self.layout)
        self.alarms = AlarmBook()
        self.context = ScanContext()
        self.options = self._packml()
        self.modes = self._modes()
        self.station_of_tag: dict[str, str] = {}
        self.order = flow_order(self.file.stations)
        wanted = [(s, n, p) for s in self.order for n, p in self.file.stations[s].parameters.items()]
        self.parameters = ParameterSet(self.image, [self._parameter(*each) for each in wanted])

    def build(self) -> tuple[LineLogic, InputBuffer]:
        stations = {name: self._station(name, self.file.stations[name]) for name in self.order}
        head = self.file.line
        settings = LineSettings(
            limit_s=head.start_limit_s,
            run_out_limit_s=head.run_out_limit_s,
            on_station_abort=head.on_station_abort,
            on_station_hold=head.on_station_hold,
        )
        estop = self._estop(head)
        behaviour = LineBehaviour("line", settings, tuple(stations.values()))
        line = Station("line", self._machine(), behaviour, Parts(interlocks=estop), self.alarms, self.context)
        parts = LineParts(
            name=head.name,
            image=self.image,
            context=self.context,
            alarms=self.alarms,
            line=line,
            stations=stations,
            parameters=self.parameters,
            recipes=self.config.control_recipes,
            downstream={name: station.downstream for name, station in self.file.stations.items()},
            station_of_tag=self.station_of_tag,
        )
        return LineLogic(parts, head.recipe), InputBuffer(self.layout)

    def _estop(self, head: model.LineHead) -> tuple[Interlock, ...]:
        """One interlock per emergency stop condition; see ``estop_on_loss`` for what an unreadable one does."""
        conditions = [self._condition(text) for text in head.estop]

        def holds(condition: Condition) -> bool | None:
            value = condition()
            if value is None and head.estop_on_loss == "station" and not any(map(self.image.readable, condition.bad())):
                others = [other() for other in conditions]
                return True if True in others and False not in others else None
            return value

        return tuple(
            Interlock(f"estop_{n}", partial(holds, c), "abort", f"Emergency stop: {c.text} is lost", c.why)
            for n, c in enumerate(conditions, 1)
        )

    # --- the PackML model ---------------------------------------------------------------------------------

    def _packml(self) -> packml.Options:
        chosen = self.file.line.packml
        newer = chosen.edition == "2022"
        return packml.Options(
            hold_from_suspended=chosen.hold_from_suspended,
            hold_from_acting=chosen.hold_from_acting,
            complete_from_held=chosen.complete_from_held or newer,
            complete_from_suspended=chosen.complete_from_suspended or newer,
            execute_state_complete=chosen.execute_state_complete,
        )

    def _modes(self) -> tuple[packml.Mode, ...]:
        modes = {m.name: m for m in packml.STANDARD_MODES}
        for name, mode in self.file.line.modes.items():
            modes[name] = packml.Mode(mode.number, name, frozenset(State[s.upper()] for s in mode.disabled_states))
        return tuple(modes.values())

    def _machine(self) -> Machine:
        return Machine(self.options, self.modes)

    # --- a station -----------------------------------------------------------------------------------------

    def _station(self, name: str, config: model.Station) -> Station:
        behaviour, io_tags = self._behaviour(name, config)
        outputs = self._outputs(name, config, behaviour)
        for output in outputs.values():
            self.station_of_tag[output.tag] = name
        points = {output.tag: point for point, output in outputs.items()}
        safe: dict[str, Value] = {
            p: False for p, o in outputs.items() if self.layout.tags[o.slot].type is DataType.BOOL
        }
        for key, value in config.safe.items():
            tag = self.config.tag_of(name, key)
            safe[points[tag]] = self._typed(tag, value)
        used = [*io_tags.values(), *(output.tag for output in outputs.values())]
        interlocks = [self._link_interlock(plc) for plc in self._plcs_of(name, used)]
        interlocks += [self._interlock(n, i.require, i.otherwise, i.text) for n, i in config.interlocks.items()]
        if config.parameters:
            interlocks.append(self._recipe_interlock(name))
        parts = Parts(
            interlocks=tuple(interlocks),
            permissives=tuple(self._permissive(n, p) for n, p in config.permissives.items()),
            alarm_rules=tuple(self._alarm(name, n, a) for n, a in config.alarms.items()),
            starved=self._condition(config.starved) if config.starved else None,
            blocked=self._condition(config.blocked) if config.blocked else None,
            suspend_delay_ns=config.suspend_delay_ms * MS,
            safe=safe,
            outputs=outputs,
            tally=self._tally(config.counts),
            mach_speed=config.mach_speed,
            description=config.description,
        )
        return Station(name, self._machine(), behaviour, parts, self.alarms, self.context)

    def _behaviour(self, name: str, config: model.Station) -> tuple[Behaviour, dict[str, str]]:
        if config.kind == SEQUENCE:
            sequences = {State[s.upper()]: self._steps(name, steps) for s, steps in config.sequences.items()}
            return SequenceStation(name, sequences), {}
        kind = KINDS[config.kind]
        tags = {p: config.io.get(p, f"{name}.{p}") for p in kind.IO.points()}
        tags = {p: t for p, t in tags.items() if t in self.layout.slots}
        known = {f.name for f in fields(kind.Settings)}
        settings = kind.Settings(**{k: v for k, v in config.settings.items() if k in known})
        return kind(name, kind.IO(self.image, tags), settings), tags

    def _outputs(self, name: str, config: model.Station, behaviour: Behaviour) -> dict[str, Output[Any]]:
        if isinstance(behaviour.io, IO):
            return dict(behaviour.io.outputs)
        steps = [s for steps in config.sequences.values() for s in steps if isinstance(s, model.Set)]
        named = [self.config.tag_of(name, target) for step in steps for target in step.set]
        # a tag of another group keeps its whole name, so that two of the same point do not take each other's place
        tags = dict.fromkeys([*config.outputs, *named])
        return {t.removeprefix(f"{name}."): Output(self.image, t) for t in tags}

    def _plcs_of(self, name: str, used: Sequence[str]) -> list[str]:
        tags = [t for t in self.layout.slots if t.startswith(f"{name}.")]
        return sorted({self.layout.plc_of[t] for t in [*tags, *used]})

    def _link_interlock(self, plc: str) -> Interlock:
        image = self.image
        return Interlock(
            f"link_{plc}",
            lambda: image.up[plc],
            self.file.plcs[plc].on_loss,
            f"PLC {plc} is not connected; look at its power and cable",
            lambda: image.down_reason[plc],
            alarmed=False,  # the PLC's own alarm says it once for all its stations
        )

    def _interlock(self, name: str, require: str, otherwise: str, text: str) -> Interlock:
        condition = self._condition(require)
        return Interlock(name, condition, otherwise, text, condition.why)

    def _permissive(self, name: str, config: model.Permissive) -> Permissive:
        condition = self._condition(config.require)
        return Permissive(name, condition, config.text, condition.why)

    def _alarm(self, station: str, name: str, config: model.Alarm) -> AlarmRule:
        spec = AlarmSpec(
            name=name,
            text=config.text,
            priority=PRIORITIES[config.priority],
            on_delay_ns=config.on_delay_ms * MS,
            off_delay_ns=config.off_delay_ms * MS,
            action=config.action,
            plc_latched=config.plc_latched,
            cause=config.cause,
            consequence=config.consequence,
            response=config.response,
        )
        return AlarmRule(self.alarms.add(station, spec), self._condition(config.when))

    def _recipe_interlock(self, station: str) -> Interlock:
        """A set-point that no longer reads back as the recipe says holds the station."""
        parameters = self.parameters
        return Interlock(
            "recipe",
            lambda: parameters.in_force(station),
            "hold",
            "The recipe is not in force on the PLC; load it again",
            lambda: "; ".join(parameters.differences(station)),
        )

    def _parameter(self, station: str, name: str, config: model.Parameter) -> Parameter:
        confirm: Input[Any] | None = Input(self.image, config.confirm) if config.confirm else None
        output: Output[Any] = Output(self.image, config.tag)
        self.station_of_tag[config.tag] = station
        unit = config.unit or self.layout.tags[output.slot].unit
        return Parameter(station, name, output, unit, confirm, config.tolerance, config.limit_s)

    def _tally(self, counts: model.Counts | None) -> Tally | None:
        if counts is None:
            return None
        slot = self.layout.slots
        slots = CountSlots(
            infeed=self._counter(counts.infeed),
            good=self._counter(counts.good),
            rejected=self._counter(counts.rejected) if counts.rejected else None,
            in_process=slot[counts.in_process] if counts.in_process else None,
        )
        plcs = self.file.plcs.items()
        return Tally(self.image, slots, {name: slot[plc.boot_counter] for name, plc in plcs if plc.boot_counter})

    def _counter(self, tag: str) -> tuple[int, int]:
        slot = self.layout.slots[tag]
        return slot, WIDTHS[self.layout.tags[slot].type]

    def _steps(self, station: str, steps: Sequence[model.Step]) -> list[Step]:
        made: list[Step] = []
        for step in steps:
            if isinstance(step, model.Set):
                targets = [(self.config.tag_of(station, t), v) for t, v in step.set.items()]
                made.append(SetStep(tuple((Output(self.image, t), self._typed(t, v)) for t, v in targets)))
            elif isinstance(step, model.Delay):
                made.append(Delay(step.delay_s))
            else:
                wait = step.wait
                text = wait.text or f"{station}: {wait.until}"
                made.append(WaitStep(self._condition(wait.until), wait.limit_s, wait.alarm, text, wait.action))
        return made

    # --- tags and conditions --------------------------------------------------------------------------------

    def _typed(self, tag: str, value: Value) -> Value:
        """A value from YAML in the tag's own type, so that the read-back compares equal."""
        spec = self.layout.tags[self.layout.slots[tag]]
        whole = isinstance(value, int) and not isinstance(value, bool)
        return float(value) if whole and (spec.scaled or spec.type in (DataType.REAL, DataType.LREAL)) else value

    def _condition(self, text: str) -> Condition:
        parsed = self.config.exprs[text]
        return Condition(self.image, text, parsed.compile(self.layout.slots), parsed.tags)
