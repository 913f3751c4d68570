"""From line.yaml to stations: what the wiring must not lose."""

from __future__ import annotations

from pathlib import Path

import pytest

from controller.build import build_line, kind_infos
from controller.config.load import load
from controller.core.image import InputBuffer, LinkReport
from controller.core.line import LineLogic
from controller.core.packml import State, Trigger
from drivers.port import ReadGroup, Reading

MS = 1_000_000
LINE = """
line: {name: small, scan_ms: 100, estop: [a.estop_ok, b.estop_ok], estop_on_loss: station}
plcs:
  one: {driver: modbus_tcp, host: 127.0.0.1, port: 15998, unit: 1}
  two: {driver: modbus_tcp, host: 127.0.0.1, port: 15999, unit: 1}
scan_classes:
  fast: {period_ms: 100, stale_ms: 500}
tags:
  a.estop_ok: {plc: one, address: "di:0", type: BOOL}
  a.run: {plc: one, address: "co:0", type: BOOL, access: rw}
  b.estop_ok: {plc: two, address: "di:0", type: BOOL}
  b.run: {plc: two, address: "co:0", type: BOOL, access: rw}
  utility.run: {plc: two, address: "co:1", type: BOOL, access: rw}
stations:
  a: {kind: sequence, outputs: [a.run, utility.run], downstream: [b]}
  b: {kind: sequence, outputs: [b.run]}
"""
GROUPS = {"one": 0, "two": 0}


class Built:
    def __init__(self, folder: Path, packml: str = "{}") -> None:
        path = folder / "line.yaml"
        path.write_text(LINE.replace("scan_ms: 100,", f"scan_ms: 100, packml: {packml},"), encoding="utf-8")
        config = load(path, kinds=kind_infos())
        self.tags = {p: tuple(t for t in config.tags.values() if config.tag_plc[t.name] == p) for p in GROUPS}
        groups = {plc: (ReadGroup("fast", tags),) for plc, tags in self.tags.items()}
        made: tuple[LineLogic, InputBuffer] = build_line(config, groups)
        self.logic, self.buffer = made
        self.now = 1000 * MS

    def scan(self, bad: str = "", silent: str = "") -> list[str]:
        """100 ms; the line's emergency stop interlocks that are lost."""
        self.now += 100 * MS
        for plc, tags in self.tags.items():
            if plc == silent:
                continue
            spoiled = {n: "sensor failure" for n, t in enumerate(tags) if t.name == bad}
            values = tuple(None if n in spoiled else t.name.endswith("ok") for n, t in enumerate(tags))
            self.buffer.put(plc, 0, Reading(values, self.now, spoiled))
        self.logic.scan(self.now, self.now, self.buffer)
        return [i.name for i in self.logic.line.parts.interlocks if i.condition() is not True]


@pytest.fixture
def built(tmp_path: Path) -> Built:
    made = Built(tmp_path)
    for plc in GROUPS:
        made.buffer.link(LinkReport(plc, True))
    assert made.scan() == []
    return made


def test_outputs_of_the_same_point_in_two_groups_are_both_made_safe(built: Built) -> None:
    assert built.logic.safe_outputs() == {"a.run": False, "utility.run": False, "b.run": False}


def test_a_station_depends_on_every_plc_that_it_drives(built: Built) -> None:
    names = {n: [i.name for i in s.parts.interlocks] for n, s in built.logic.stations.items()}
    assert names == {"a": ["link_one", "link_two"], "b": ["link_two"]}


def test_an_emergency_stop_input_of_a_lost_plc_is_left_to_the_others(built: Built) -> None:
    built.buffer.link(LinkReport("two", False, "cable pulled"))
    assert built.scan(silent="two") == []


def test_one_that_went_stale_too(built: Built) -> None:
    assert [built.scan(silent="two") for _ in range(10)] == [[]] * 10


def test_one_that_is_bad_by_itself_is_not(built: Built) -> None:
    assert built.scan(bad="b.estop_ok") == ["estop_2"]


@pytest.mark.parametrize(
    ("option", "state", "trigger", "target"),
    [
        ("hold_from_suspended: false", State.SUSPENDED, Trigger.HOLD, None),
        ("hold_from_acting: true", State.STARTING, Trigger.HOLD, State.HOLDING),
        ("complete_from_held: true", State.HELD, Trigger.COMPLETE, State.COMPLETING),
        ("complete_from_suspended: true", State.SUSPENDED, Trigger.COMPLETE, State.COMPLETING),
        ("execute_state_complete: true", State.EXECUTE, Trigger.STATE_COMPLETE, State.COMPLETING),
        ('edition: "2022"', State.HELD, Trigger.COMPLETE, State.COMPLETING),
    ],
)
def test_every_packml_option_reaches_the_machines(
    tmp_path: Path, option: str, state: State, trigger: Trigger, target: State | None
) -> None:
    found = []
    for packml in ("{}", f"{{{option}}}"):
        machine = Built(tmp_path, packml).logic.stations["a"].machine
        machine.state = state
        found.append(machine.target(trigger))
    assert found[1] is target
    assert found[0] is not target, "the option makes the difference"
