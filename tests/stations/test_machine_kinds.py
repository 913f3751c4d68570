"""Machine, conveyor, filler and capper over a scripted PLC."""

from __future__ import annotations

from typing import Any

import pytest
from helpers.core_rig import MachineProgram, Plant, StationRig, machine_io, machine_tags

from controller.core.packml import State, Trigger
from controller.core.station import Parts
from controller.stations.capper import Capper
from controller.stations.conveyor import Conveyor
from controller.stations.equipment import MachineSettings
from controller.stations.filler import Filler, FillerSettings
from controller.stations.machine import Machine
from drivers.port import Value

CLEAR, RESET, START, STOP, HOLD, UNHOLD, COMPLETE, ABORT = (
    Trigger.CLEAR, Trigger.RESET, Trigger.START, Trigger.STOP, Trigger.HOLD, Trigger.UNHOLD, Trigger.COMPLETE,
    Trigger.ABORT,
)  # fmt: skip
UP = (CLEAR, RESET, START)
KINDS: dict[str, tuple[Any, Any, dict[str, Value]]] = {
    "machine": (Machine, MachineSettings(limit_s=1.0, empty_limit_s=3.0), {}),
    "conveyor": (Conveyor, MachineSettings(limit_s=1.0, empty_limit_s=3.0), {"x.gate": False}),
    "filler": (Filler, FillerSettings(limit_s=1.0, empty_limit_s=3.0, bowl_min=30.0, fill_limit_s=5.0),
               {"x.pump": False, "x.bowl_level": 10.0}),
    "capper": (Capper, MachineSettings(limit_s=1.0, empty_limit_s=3.0), {"x.feeder": False}),
}  # fmt: skip


class Rig(StationRig):
    program: MachineProgram

    def __getitem__(self, point: str) -> Value:
        return self.plant.memory[f"x.{point}"]

    def __setitem__(self, point: str, value: Value) -> None:
        self.plant.memory[f"x.{point}"] = value


def made(kind: str, without: tuple[str, ...] = ()) -> Rig:
    behaviour_type, settings, more = KINDS[kind]
    tags = {t: v for t, v in {**machine_tags("x"), **more}.items() if t.removeprefix("x.") not in without}
    plant = Plant({"one": tags})
    if not without:
        program = MachineProgram(plant, "x")

    def pump() -> None:
        if plant.memory["x.pump"]:
            plant.memory["x.bowl_level"] = min(80.0, float(plant.memory["x.bowl_level"]) + 2.0)

    if kind == "filler":
        plant.programs.append(pump)
    behaviour = behaviour_type("x", machine_io(plant, "x", behaviour_type.IO), settings)
    safe = dict.fromkeys(behaviour.io.outputs, False)
    rig = Rig(plant, behaviour, Parts(safe=safe, outputs=behaviour.io.outputs))
    if not without:
        rig.program = program
    rig.scan()
    return rig


def outputs(rig: Rig) -> dict[str, Value]:
    """What the PLC holds after the next scan."""
    rig.scan()
    return {point: rig[point] for point in rig.station.parts.outputs}


@pytest.mark.parametrize("kind", KINDS)
def test_the_whole_way(kind: str) -> None:
    rig = made(kind)
    rig.drive(*UP)
    rig.scan()
    assert outputs(rig) == {**dict.fromkeys(rig.station.parts.outputs, True), "reset": False}
    assert rig["running"] is True
    rig.drive(HOLD)
    assert not any(outputs(rig).values())
    rig.drive(UNHOLD)
    rig.scan()
    assert rig["running"] is True
    rig["empty"] = False
    rig.scan(COMPLETE)
    for _ in range(5):
        assert rig.scan() is State.COMPLETING
    assert rig["running"] is True
    rig["empty"] = True
    rig.until(State.COMPLETE)
    assert not any(outputs(rig).values())
    rig.drive(RESET, START, STOP)
    assert not any(outputs(rig).values())
    assert rig.active() == []


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("after", [(), (CLEAR,), (CLEAR, RESET), UP, (*UP, HOLD)])
def test_abort_from_anywhere_is_safe_in_the_next_write(kind: str, after: tuple[Trigger, ...]) -> None:
    rig = made(kind)
    rig.drive(*after)
    if after:
        rig.scan(ABORT)
    assert rig.state is State.ABORTED
    assert not any(outputs(rig).values())


@pytest.mark.parametrize("kind", KINDS)
def test_does_not_start(kind: str) -> None:
    rig = made(kind)
    rig.drive(CLEAR, RESET)
    rig.program.stuck = True
    rig.scan(START)
    rig.until(State.ABORTED)
    assert rig.active() == ["x.does_not_start: x running after run was set: not within 1 s"]
    assert not any(outputs(rig).values())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("command", [HOLD, STOP, COMPLETE])
def test_does_not_stop(kind: str, command: Trigger) -> None:
    rig = made(kind)
    rig.drive(*UP)
    rig.program.stuck = True
    rig.scan(command)
    rig.until(State.ABORTED)
    assert rig.active() == ["x.does_not_stop: x standing after run was taken away: not within 1 s"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_fault_in_execute_holds_and_says_which_and_unhold_resets_it(kind: str) -> None:
    rig = made(kind)
    rig.drive(*UP)
    rig.program.cause = 1
    rig.until(State.HELD)
    assert rig.active() == ["x.machine_fault: x: jam"]
    rig.scan(UNHOLD)  # the bottle is still there
    rig.until(State.STOPPED)
    assert rig.active() == ["x.fault_remains: x: fault gone after reset (jam; remove its cause first): not within 1 s"]
    rig.program.cause = 0
    rig.drive(RESET, START)
    assert rig.active() == []
    assert rig["reset"] is False


def test_clear_with_the_cause_present_does_not_get_to_stopped() -> None:
    rig = made("machine")
    rig.program.cause = 4
    rig.scan()
    rig.scan(CLEAR)
    rig.until(State.ABORTED)
    assert "fault gone after reset (guard door open" in rig.active()[0]
    assert rig.visited() == ["Clearing", "Aborting", "Aborted"]
    rig.program.cause = 0
    rig.drive(CLEAR)


def test_reset_is_an_edge_also_when_the_bit_was_left_on() -> None:
    rig = made("machine")
    rig["reset"], rig["fault"], rig["fault_code"] = True, True, 2
    rig.program._reset = True
    rig.drive(CLEAR)
    assert rig["fault"] is False
    rig.scan()
    assert rig["reset"] is False


def test_a_reset_that_the_plc_does_not_take_is_named() -> None:
    rig = made("machine")
    rig["fault"] = True
    rig.plant.rejected["x.reset"] = "illegal address"
    rig.scan()
    rig.scan(CLEAR)
    rig.until(State.ABORTED)
    assert rig.active() == ["x.reset_not_taken: x.reset read back on: not within 1 s"]


def test_a_machine_that_stops_by_itself_without_a_fault_is_held() -> None:
    rig = made("machine")
    rig.drive(*UP)
    rig.scan()
    rig.program.stuck = True
    rig["running"] = False
    for _ in range(8):
        assert rig.scan() is State.EXECUTE  # it has a second to come back
    rig.until(State.HELD)
    assert "x running while it should: not within 1 s" in rig.active()[0]


def test_does_not_empty_stops() -> None:
    rig = made("machine")
    rig.drive(*UP)
    rig["empty"] = False
    rig.scan(COMPLETE)
    rig.until(State.STOPPED)
    assert rig.active() == ["x.does_not_empty: x empty: not within 3 s"]


@pytest.mark.parametrize("point", ["running", "fault"])
def test_a_feedback_that_cannot_be_read_is_not_trusted(point: str) -> None:
    rig = made("machine")
    rig.drive(*UP)
    rig.scan()
    rig.plant.bad[f"x.{point}"] = "NaN"
    rig.until(State.ABORTED, 3)
    assert f"x.{point} is BAD: NaN" in rig.active()[0]


def test_optional_points_may_be_missing() -> None:
    rig = made("machine", without=("reset", "fault", "fault_code", "empty"))
    rig.plant.programs.append(lambda: rig.plant.memory.__setitem__("x.running", rig.plant.memory["x.run"]))
    rig.drive(*UP, COMPLETE)
    assert rig.active() == []


def test_conveyor_gate_is_open_in_execute_alone() -> None:
    rig = made("conveyor")
    rig.drive(*UP)
    rig.scan()
    rig.scan()
    assert rig["gate"] is True
    rig["empty"] = False
    rig.scan(COMPLETE)
    rig.scan()
    assert (rig["gate"], rig["run"]) == (False, True)
    rig["empty"] = True
    rig.until(State.COMPLETE)
    rig.drive(RESET, START)
    rig.scan()
    rig.scan(Trigger.SUSPEND)
    rig.scan()
    assert (rig["gate"], rig["run"]) == (False, True)


def test_filler_fills_its_bowl_before_it_runs() -> None:
    rig = made("filler")
    rig.drive(CLEAR, RESET)
    rig.scan(START)
    while not rig["run"]:
        rig.scan()
    assert float(rig["bowl_level"]) >= 30.0
    rig.until(State.EXECUTE)


def test_filler_without_product_gives_up_and_a_bad_level_is_not_a_full_one() -> None:
    rig = made("filler")
    rig.drive(CLEAR, RESET)
    rig["bowl_level"] = 90.0
    rig.plant.bad["x.bowl_level"] = "wire break"
    rig.scan(START)
    rig.until(State.ABORTED)
    assert rig.active() == ["x.bowl_not_filled: bowl filled to 30 %: not within 5 s (x.bowl_level is BAD: wire break)"]
    assert rig["run"] is False


def test_capper_feeds_caps_before_it_runs_and_stands_with_the_feeder_off() -> None:
    rig = made("capper")
    rig.drive(CLEAR, RESET)
    rig.plant.written.clear()
    rig.drive(START)
    order = [tag for tag, value in rig.plant.written if value is True]
    assert order == ["x.feeder", "x.run"]
    rig.drive(STOP)
    assert not any(outputs(rig).values())


@pytest.mark.parametrize("kind", KINDS)
def test_a_machine_that_runs_without_a_command_is_alarmed_until_it_stands(kind: str) -> None:
    rig = made(kind)
    rig.drive(CLEAR, RESET)
    assert rig.station.state is State.IDLE
    rig.program.stuck = True  # somebody starts it at the PLC
    rig["running"] = True
    for _ in range(25):
        rig.scan()
    assert rig.active() == [], "a drive takes its time to come to rest"
    for _ in range(10):
        rig.scan()
    assert len(rig.active()) == 1
    assert rig.active()[0].startswith("x.equipment: x runs while it is Idle")
    rig["running"] = False
    rig.scan()
    rig.scan()
    assert rig.active() == []
