"""What goes wrong in the plant while the line runs: the right station reacts, says why, and recovers by command."""

from __future__ import annotations

import pytest
from scenario_bench import STATIONS, Scene

from controller.core.events import StopRecorded, Transition
from controller.core.packml import State

UP = {"filler": "infeed", "capper": "filler", "labeler": "capper", "checkweigher": "labeler", "packer": "checkweigher"}
DOWN = {up: down for down, up in UP.items()}


def unhold(scene: Scene, station: str) -> None:
    scene.must(station, "unhold", "technician")
    scene.until(lambda: scene.states[station] is State.EXECUTE, 20, f"{station} in Execute")


# --- emergency stop


def pressed(scene: Scene) -> None:
    """Press it, and scan until the controller has read one of its inputs."""
    image = scene.bench.logic.image
    slots = [image.layout.slots[f"{name}.estop_ok"] for name in ("infeed", "capper", "checkweigher")]
    scene.bench.world.inject("estop")
    scene.until(lambda: any(image.values[s] is False for s in slots), 1, "the emergency stop read")


@pytest.mark.parametrize("moment", ["execute", "starting", "held", "completing"])
def test_emergency_stop(moment: str) -> None:
    scene = Scene(seed=21)
    if moment == "starting":
        scene.to_idle()
        scene.must("line", "start")
        scene.until(lambda: scene.states["packer"] is State.EXECUTE, 10, "the first machine running")
        assert scene.line is State.STARTING
    else:
        scene.bring_up()
    if moment == "held":
        scene.must("line", "hold")
        scene.until(lambda: scene.line is State.HELD, 20, "the line Held")
    elif moment == "completing":
        scene.must("line", "complete")
        scene.run(2)
        assert scene.line is State.COMPLETING
    pressed(scene)
    assert {scene.line, *scene.states.values()} == {State.ABORTED}, "in the scan that read it"
    assert (scene.running(), scene.run_bits()) == ([], [])
    assert scene.at_plant("infeed.gate") is False
    assert scene.at_plant("filler.pump") is False
    before = scene.bench.world.truth()["stations"]
    for target in ("line", *STATIONS):
        refused = scene.order(target, "clear")
        assert not refused.accepted
        assert "Emergency stop" in refused.reason, refused.reason
        assert "estop_ok = off" in refused.reason, refused.reason
    scene.run(5)
    assert scene.bench.world.truth()["stations"] == before

    scene.bench.world.clear("estop")
    scene.run(5)
    assert {scene.line, *scene.states.values()} == {State.ABORTED}, "releasing it starts nothing"
    assert scene.running() == []
    scene.to_idle()
    assert scene.running() == []
    scene.start()
    scene.produce(5)
    scene.finish()


# --- jams and lost time


@pytest.mark.parametrize("station", ["infeed", "capper", "labeler"])
def test_jam(station: str) -> None:
    scene = Scene(seed=22)
    scene.bring_up()
    scene.run(5)
    lost, mark = scene.lost_s(), len(scene.events)
    scene.bench.world.inject("jam", station=station)
    scene.until(lambda: scene.states[station] is State.HELD, 20, f"{station} Held")
    assert f"Bottle jam at the {station}" in scene.active(station)[f"{station}.jam"]
    assert scene.line is State.EXECUTE, "the others go on as long as they can"
    begin = scene.bench.now_ns
    after = DOWN[station]
    scene.until(lambda: scene.states[after] is State.SUSPENDED, 60, f"{after} starved")
    assert "starved" in scene.bench.logic.stations[after].stop_reason
    if station in UP:
        before = UP[station]
        scene.until(lambda: scene.states[before] is State.SUSPENDED, 60, f"{before} blocked")
        assert "blocked" in scene.bench.logic.stations[before].stop_reason
    scene.until(lambda: set(scene.states.values()) <= {State.HELD, State.SUSPENDED}, 90, "all that can stand, standing")
    scene.run(20)
    stood_s = (scene.bench.now_ns - begin) / 1e9
    scene.bench.world.clear("jam", station=station)
    scene.run(1)
    assert scene.states[station] is State.HELD, "mending starts nothing"
    unhold(scene, station)
    assert f"{station}.jam" not in scene.active()
    scene.produce(5)
    caused = {name: seconds - lost[name] for name, seconds in scene.lost_s().items()}
    assert caused[station] > stood_s, caused
    assert sum(caused.values()) - caused[station] < 0.02 * sum(caused.values()), caused
    stops = [e for e in scene.events[mark:] if isinstance(e, StopRecorded) and e.seconds > 15]
    assert {e.cause_station for e in stops} == {station}
    scene.finish()


def test_unhold_before_the_jam_is_freed() -> None:
    """A cause that its PLC latches is only seen to be gone by trying: the try fails, says why, and nothing runs."""
    scene = Scene(seed=27)
    scene.bring_up()
    scene.bench.world.inject("jam", station="capper")
    scene.until(lambda: scene.states["capper"] is State.HELD, 20, "the capper Held")
    scene.must("capper", "unhold", "technician")
    scene.until(lambda: scene.states["capper"] is State.STOPPED, 20, "the try given up")
    assert "capper" not in scene.running()
    assert "fault gone after reset (jam; remove its cause first)" in scene.active("capper")["capper.fault_remains"]
    scene.until(lambda: scene.line is State.HELD, 20, "the line Held")
    refused = scene.order("line", "unhold")
    assert "capper is Stopped: give it Reset" in refused.reason
    scene.bench.world.clear("jam", station="capper")
    scene.recover("capper")
    scene.must("line", "unhold")
    scene.until(lambda: scene.line is State.EXECUTE, 40, "the line in Execute")
    assert scene.active("capper") == {}
    scene.produce(5)
    scene.finish()


# --- guards, motors, material


CASES = {
    "door of the infeed": ("infeed", "door_open", {"station": "infeed"}, "Guard door of the infeed is open"),
    "door of the filler": ("filler", "door_open", {"station": "filler"}, "Guard door of the filler is open"),
    "door of the labeler": ("labeler", "door_open", {"station": "labeler"}, "Guard door of the labeler is open"),
    "motor of the capper": ("capper", "motor_trip", {"station": "capper"}, "Motor protection of the capper"),
    "motor of the packer": ("packer", "motor_trip", {"station": "packer"}, "Motor protection of the packer"),
    "web": ("labeler", "web_break", {}, "label web is broken"),
    "caps": ("capper", "hopper_empty", {}, "run out of caps"),
    "reject bin": ("checkweigher", "reject_full", {}, "Reject bin of the checkweigher is full"),
}


@pytest.mark.parametrize("case", CASES)
def test_a_station_holds_and_goes_on(case: str) -> None:
    station, fault, params, text = CASES[case]
    scene = Scene(seed=23)
    scene.bring_up()
    scene.bench.world.inject(fault, **params)
    scene.until(lambda: scene.states[station] is not State.EXECUTE, 90, f"{station} reacts")
    scene.until(lambda: scene.states[station] is State.HELD, 10, f"{station} Held")
    assert scene.line is State.EXECUTE
    assert station not in scene.running()
    assert text in " ".join(scene.active(station).values())
    assert text in scene.bench.logic.stations[station].first_out
    if fault != "hopper_empty":  # which its PLC latches: see the jam that is not freed
        refused = scene.order(station, "unhold", "technician")
        assert not refused.accepted
        assert text in refused.reason
    scene.run(3)
    assert station not in scene.running()

    scene.bench.world.clear(fault, **params)
    scene.run(2)
    assert scene.states[station] is State.HELD, "mending starts nothing"
    unhold(scene, station)
    assert text not in " ".join(scene.active(station).values())
    scene.produce(5)
    scene.finish()


def test_compressed_air_is_lost() -> None:
    """One cause, two stations: filler and capper hold, neither goes on before the pressure is back."""
    scene = Scene(seed=24)
    scene.bring_up()
    scene.bench.world.inject("air_loss")
    scene.until(lambda: scene.states["filler"] is State.HELD, 90, "the filler Held")
    scene.until(lambda: scene.states["capper"] is State.HELD, 10, "the capper Held")
    for station in ("filler", "capper"):
        assert "No compressed air" in scene.bench.logic.stations[station].first_out
        assert "No compressed air" in scene.order(station, "unhold").reason
    scene.bench.world.clear("air_loss")
    scene.until(lambda: scene.at_plant("filler.air_ok") is True, 60, "pressure")
    scene.run(1)
    unhold(scene, "filler")
    unhold(scene, "capper")
    scene.produce(5)
    scene.finish()


def test_vision_offline() -> None:
    """A PLC that aborts by itself is followed; the line holds, and no bottle passes unseen."""
    scene = Scene(seed=25)
    scene.bring_up()
    scene.bench.world.inject("vision_offline")
    scene.until(lambda: scene.states["checkweigher"] is State.ABORTED, 15, "the checkweigher Aborted")
    assert "Vision of the checkweigher is offline" in " ".join(scene.active("checkweigher").values())
    scene.until(lambda: scene.line is State.HELD, 20, "the line Held")
    assert scene.running() == []
    refused = scene.order("line", "unhold")
    assert not refused.accepted
    assert "checkweigher is Aborted: give it Clear and Reset" in refused.reason
    passed = scene.bench.world.truth()["stations"]["checkweigher"]["good"]
    scene.run(10)
    assert scene.bench.world.truth()["stations"]["checkweigher"]["good"] == passed
    scene.bench.world.clear("vision_offline")
    scene.run(1)
    scene.recover("checkweigher")
    scene.must("line", "unhold")
    scene.until(lambda: scene.line is State.EXECUTE, 40, "the line in Execute")
    scene.produce(5)
    scene.finish()


def test_every_transition_of_a_bad_day_is_told_once_and_in_order() -> None:
    scene = Scene(seed=26)
    scene.bring_up()
    for fault, params in (("door_open", {"station": "filler"}), ("web_break", {})):
        scene.bench.world.inject(fault, **params)
        scene.run(5)
        scene.bench.world.clear(fault, **params)
        scene.run(1)
        for name, state in scene.states.items():
            if state is State.HELD:
                unhold(scene, name)
    scene.finish()
    at = dict.fromkeys(("line", *STATIONS), State.ABORTED.text)
    for event in scene.events:
        if isinstance(event, Transition):
            assert event.source == at[event.station], event
            at[event.station] = event.target
    assert at == {name: unit.text for name, unit in {**scene.states, "line": scene.line}.items()}
