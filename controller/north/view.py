"""The view north: which variables the line publishes, and their present values.

Built once from the line's logic; :meth:`LineView.collect` copies plain values out of it after a scan, so nobody
outside ever holds a live object. Paths are stable: they are what OPC UA node ids and scripts rest on.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import partial
from typing import Literal

from controller.core.commands import LINE
from controller.core.image import ProcessImage
from controller.core.line import LineLogic
from controller.core.packml import COMMANDS, Machine, State
from controller.core.station import Station
from controller.north.frames import PROTOCOL, CommandInfo, Hello, Node, Scalar, StationInfo
from drivers.port import DataType, Tag

Kind = Literal["bool", "int", "float", "str"]
Getter = Callable[[], Scalar]
Extras = Mapping[str, tuple[Kind, str, Getter]]
"""More variables from outside the scan (link statistics, scan times): path → (type, unit, getter)."""

RAW_RANGES: dict[DataType, tuple[float, float]] = {
    DataType.SINT: (-128, 127), DataType.USINT: (0, 255), DataType.INT: (-32768, 32767), DataType.UINT: (0, 65535),
    DataType.DINT: (-(2**31), 2**31 - 1),
}  # fmt: skip
"""Ranges of integer tags that declare none, so that a client knows how wide a type it needs."""
STATES = {s.value: s.text for s in State}


class LineView:
    """Nodes in publishing order, and the getters behind them."""

    def __init__(self, logic: LineLogic, extras: Extras | None = None) -> None:
        self._logic = logic
        self.nodes: list[Node] = []
        self._getters: list[Getter] = []
        self._tags: list[tuple[int, int]] = []
        """(node index, slot) of every tag."""
        self._add_line()
        for station in logic.stations.values():
            self._add_station(station)
        self._add_tags()
        for plc in logic.image.layout.plcs:
            self._add(f"plcs.{plc}.up", "bool", partial(logic.image.up.__getitem__, plc))
            self._add(f"plcs.{plc}.reason", "str", partial(_down_reason, logic, plc))
        self.add(extras or {})

    def add(self, extras: Extras) -> None:
        """Publish more variables; only before :meth:`hello`."""
        for path, (kind, unit, getter) in extras.items():
            self._add(path, kind, getter, unit=unit)

    def collect(self) -> tuple[list[Scalar], dict[int, str]]:
        """All values in the order of :attr:`nodes`, and why some of them are bad."""
        values = [getter() for getter in self._getters]
        bad: dict[int, str] = {}
        image = self._logic.image
        for index, slot in self._tags:
            reason = image.bad[slot]
            if reason is not None:
                bad[index] = reason
        return values, bad

    def hello(self, *, version: str, config_hash: str, description: str) -> Hello:
        """The static model, for a client's first frame."""
        logic = self._logic
        layout = logic.image.layout
        stations = []
        for name, station in logic.stations.items():
            tags = [t for t in layout.slots if t.startswith(f"{name}.")]
            stations.append(
                StationInfo(
                    name=name,
                    kind=type(station.behaviour).__name__,
                    description=station.parts.description,
                    upstream=list(logic.upstream[name]),
                    downstream=list(logic.parts.downstream.get(name, ())),
                    plcs=sorted({layout.plc_of[t] for t in tags}),
                )
            )
        packml = [CommandInfo(name=t.name.lower(), description=f"PackML {t.text}") for t in COMMANDS]
        line = [
            *packml,
            CommandInfo("set_mode", {"mode": "str"}, "Change the unit mode of line and stations"),
            CommandInfo(
                "changeover", {"recipe": "str", "start": "bool"}, "Change over to a recipe; start: run on after"
            ),
            CommandInfo("acknowledge", {"alarm": "str"}, "Acknowledge one alarm by its id"),
            CommandInfo("acknowledge_all", {}, "Acknowledge every alarm"),
        ]
        return Hello(
            protocol=PROTOCOL,
            line=logic.name,
            description=description,
            version=version,
            config_hash=config_hash,
            stations=stations,
            nodes=self.nodes,
            commands={LINE: line, **dict.fromkeys(logic.stations, packml)},
            recipes=list(logic.recipes),
        )

    # --- inside ---------------------------------------------------------------------------------------------

    def _add(
        self,
        path: str,
        kind: Kind,
        getter: Getter,
        *,
        unit: str = "",
        description: str = "",
        low: float | None = None,
        high: float | None = None,
        enum: dict[int, str] | None = None,
    ) -> None:
        self.nodes.append(Node(path, kind, unit, description, low, high, enum))
        self._getters.append(getter)

    def _add_unit(self, prefix: str, unit: Station) -> None:
        """What line and stations have in common."""
        logic, machine = self._logic, unit.machine
        self._add(f"{prefix}.state_current", "int", lambda: machine.state.value, enum=STATES,
                  description="PackML state (ISA-TR88.00.02 number)")  # fmt: skip
        self._add(f"{prefix}.state_text", "str", lambda: machine.state.text)
        self._add(f"{prefix}.unit_mode_current", "int", lambda: machine.mode.number,
                  enum={m.number: m.name for m in machine.modes.values()})  # fmt: skip
        self._add(f"{prefix}.unit_mode_text", "str", lambda: machine.mode.name)
        self._add(f"{prefix}.state_time", "int", lambda: machine.time_in_state_ns(logic.context.now_ns) // 10**9,
                  unit="s", description="Time since the present state was entered")  # fmt: skip
        for state in State:
            self._add(f"{prefix}.times.{state.name.lower()}", "int", partial(_state_time, logic, machine, state),
                      unit="s", low=0, high=2**31 - 1,
                      description=f"Time in {state.text} since start-up, in this unit mode")  # fmt: skip
        self._add(f"{prefix}.stop_reason", "str", lambda: unit.stop_reason)
        self._add(f"{prefix}.first_out", "str", lambda: unit.first_out,
                  description="What went wrong first, since the last recovery")  # fmt: skip
        self._add(f"{prefix}.why_not_start", "str", lambda: "; ".join(unit.why_not_start()),
                  description="Why it cannot start now, and what to do")  # fmt: skip
        self._add(f"{prefix}.waiting_for", "str", lambda: unit.waiting_for)

    def _add_line(self) -> None:
        logic = self._logic
        self._add_unit("line", logic.line)
        self._add("line.product", "str", lambda: logic.product)
        self._add("line.recipe", "str", lambda: logic.recipe.id if logic.recipe else "")
        self._add("line.block", "str", lambda: logic.block, description="Why the line refuses to run at all")
        self._add("line.changeover_step", "str", lambda: _changeover(logic, "step"))
        self._add("line.changeover_detail", "str", lambda: _changeover(logic, "detail"))
        self._add("line.changeovers", "int", lambda: logic.changeovers, description="Changeovers begun since start-up")
        for key in ("infeed", "good", "rejected", "in_process"):
            self._add(f"line.{key}", "int", partial(_line_count, logic, key))
        self._add("line.active_alarms", "int", lambda: sum(a.active for a in logic.alarms.alarms.values()))
        self._add(
            "line.unacknowledged_alarms", "int", lambda: sum(not a.acknowledged for a in logic.alarms.alarms.values())
        )
        self._add("line.alarm_list", "str", lambda: "\n".join(f"{a.id}: {a.text}" for a in logic.alarms.listed()),
                  description="Active and unacknowledged alarms, highest priority first")  # fmt: skip
        self._add("line.alarm_table", "str", _AlarmTable(logic).text,
                  description="The alarm list as JSON, with state, priority (1..4) and response")  # fmt: skip
        self._add("line.scan_count", "int", lambda: logic.scans)
        self._add("line.heartbeat", "int", lambda: logic.scans & 0x7FFF, description="Changes with every scan")

    def _add_station(self, station: Station) -> None:
        logic, prefix = self._logic, f"stations.{station.name}"
        self._add_unit(prefix, station)
        self._add(f"{prefix}.starved", "bool", lambda: station.starved)
        self._add(f"{prefix}.blocked", "bool", lambda: station.blocked)
        self._add(f"{prefix}.lost_time", "int", lambda: logic.losses.caused_by(station.name) // 10**9, unit="s",
                  description="Time that the line lost through this station")  # fmt: skip
        tally = station.parts.tally
        if tally is not None:
            self._add(f"{prefix}.prod_processed_count", "int", lambda: tally.totals["good"] + tally.totals["rejected"])
            self._add(f"{prefix}.prod_defective_count", "int", lambda: tally.totals["rejected"])
            self._add(f"{prefix}.infeed_count", "int", lambda: tally.totals["infeed"])
            self._add(f"{prefix}.good_count", "int", lambda: tally.totals["good"])
            self._add(f"{prefix}.in_process", "int", lambda: tally.in_process)
        for key, parameter in logic.parameters.all.items():
            if parameter.station == station.name:
                kind = _kind(logic.image.layout.tags[parameter.output.slot])
                path = f"{prefix}.parameters.{parameter.name}"
                self._add(f"{path}.setpoint", kind, partial(logic.parameters.wanted.get, key), unit=parameter.unit)
        for rule in station.parts.alarm_rules:
            alarm, path = rule.alarm, f"{prefix}.alarms.{rule.alarm.spec.name}"
            self._add(f"{path}.active", "bool", partial(getattr, alarm, "active"), description=alarm.spec.text)
            self._add(f"{path}.acknowledged", "bool", partial(getattr, alarm, "acknowledged"))

    def _add_tags(self) -> None:
        logic, image = self._logic, self._logic.image
        for tag in image.layout.tags:
            group, point = tag.name.split(".", 1)
            owner = f"stations.{group}" if group in logic.stations else f"groups.{group}"
            slot = image.layout.slots[tag.name]
            self._tags.append((len(self.nodes), slot))
            kind = _kind(tag)
            low, high = RAW_RANGES.get(tag.type, (None, None)) if kind == "int" else (None, None)
            self._add(f"{owner}.tags.{point}", kind, partial(_good_value, image, slot),
                      unit=tag.unit, description=tag.description,
                      low=low if tag.low is None else tag.low, high=high if tag.high is None else tag.high)  # fmt: skip


class _AlarmTable:
    """The alarm list as JSON, written anew only when an alarm changed."""

    def __init__(self, logic: LineLogic) -> None:
        self._logic, self._generation, self._text = logic, -1, "[]"

    def text(self) -> str:
        """A JSON array; ``since`` is UTC in ns since 1970, when the alarm last became active."""
        alarms = self._logic.alarms
        if alarms.generation != self._generation:
            self._generation = alarms.generation
            rows = [
                {
                    "id": a.id, "text": a.text, "priority": a.spec.priority, "active": a.active,
                    "acknowledged": a.acknowledged, "since": a.since_utc, "response": a.spec.response,
                }
                for a in alarms.listed()
            ]  # fmt: skip
            self._text = json.dumps(rows, ensure_ascii=False)
        return self._text


def _kind(tag: Tag) -> Kind:
    if tag.type is DataType.BOOL:
        return "bool"
    if tag.type is DataType.STRING:
        return "str"
    return "float" if tag.scaled or tag.type in (DataType.REAL, DataType.LREAL) else "int"


def _state_time(logic: LineLogic, machine: Machine, state: State) -> int:
    return machine.total_ns(machine.mode, state, logic.context.now_ns) // 10**9


def _down_reason(logic: LineLogic, plc: str) -> str:
    return "" if logic.image.up[plc] else logic.image.down_reason[plc]


def _line_count(logic: LineLogic, key: str) -> int:
    return logic.line_counts()[key]


def _good_value(image: ProcessImage, slot: int) -> Scalar:
    return image.values[slot] if image.bad[slot] is None else None


def _changeover(logic: LineLogic, what: Literal["step", "detail"]) -> str:
    changeover = logic.changeover or logic.last_changeover
    return str(getattr(changeover, what)) if changeover else ""
