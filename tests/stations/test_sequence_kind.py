"""A station declared without Python."""

from __future__ import annotations

from helpers.core_rig import Plant, StationRig

from controller.core.io import Output
from controller.core.packml import State, Trigger
from controller.core.sequence import Delay
from controller.core.station import Parts
from controller.stations.sequence import SequenceStation, SetStep, WaitStep


def made(action: str = "abort") -> StationRig:
    plant = Plant({"one": {"x.run": False, "x.vacuum": False, "x.running": False}})
    plant.programs.append(lambda: plant.memory.__setitem__("x.running", plant.memory["x.run"]))
    run, vacuum = (Output[bool](plant.image, f"x.{p}") for p in ("run", "vacuum"))
    sequences = {
        State.STARTING: (
            SetStep(((vacuum, True),)),
            Delay(0.5),
            SetStep(((run, True),)),
            WaitStep(plant.condition("x.running"), 1.0, "does_not_start", "x running", action),
        ),
        State.STOPPING: (
            SetStep(((run, False),)),
            WaitStep(plant.condition("x.running", False), 1.0, "does_not_stop", "x standing", "abort"),
        ),
    }
    parts = Parts(safe={"run": False, "vacuum": False}, outputs={"run": run, "vacuum": vacuum})
    rig = StationRig(plant, SequenceStation("x", sequences), parts)
    rig.scan()
    return rig


def test_steps_run_in_order_and_states_without_steps_complete() -> None:
    rig = made()
    rig.drive(Trigger.CLEAR, Trigger.RESET)
    started = rig.plant.now
    rig.plant.written.clear()
    rig.drive(Trigger.START)
    assert rig.plant.written == [("x.vacuum", True), ("x.run", True)]
    assert rig.plant.now - started >= 500_000_000
    rig.drive(Trigger.HOLD)
    rig.scan()
    assert rig.plant.memory["x.run"] is False  # Held is safe, whatever the steps say
    rig.drive(Trigger.UNHOLD, Trigger.STOP)
    assert rig.active() == []


def test_a_wait_that_fails_acts_as_declared() -> None:
    for action, end in (("hold", State.STOPPED), ("stop", State.STOPPED), ("abort", State.ABORTED)):
        rig = made(action)
        rig.drive(Trigger.CLEAR, Trigger.RESET)
        rig.plant.programs.clear()
        rig.scan(Trigger.START)
        rig.until(end)
        assert "Execute" not in rig.visited()
        assert rig.active() == ["x.does_not_start: x running: not within 1 s"]


def test_an_unknown_condition_does_not_hold() -> None:
    rig = made()
    rig.drive(Trigger.CLEAR, Trigger.RESET)
    rig.plant.bad["x.running"] = "wire break"
    rig.scan(Trigger.START)
    rig.until(State.ABORTED)
    assert "Execute" not in rig.visited()


def test_the_steps_begin_anew_each_time() -> None:
    rig = made()
    for _ in range(2):
        rig.scan()
        rig.plant.written.clear()
        rig.drive(Trigger.CLEAR, Trigger.RESET, Trigger.START)
        assert [w for w in rig.plant.written if w[1] is True] == [("x.vacuum", True), ("x.run", True)]
        rig.drive(Trigger.ABORT)
