"""Changing the recipe: all of it in force, or none of it."""

from __future__ import annotations

import pytest
from helpers.core_rig import NAMES, LineRig

from controller.core.accounting import CountSlots, Tally
from controller.core.events import ChangeoverChanged
from controller.core.packml import State

WATER, JUICE = [1.0, 2.0, 3.0], [1.5, 2.5, 3.5]


@pytest.fixture
def rig() -> LineRig:
    return LineRig()


def test_commit_at_rest(rig: LineRig) -> None:
    rig.load("water")
    assert rig.changeover_steps() == ["planned", "staging", "verified", "committed"]
    assert rig.speeds() == WATER
    assert rig.logic.product == "product water"
    rig.load("juice")
    assert rig.speeds() == JUICE
    assert rig.logic.recipe is not None
    assert rig.logic.recipe.id == "juice"
    assert rig.line.state is State.ABORTED


def test_changeover_of_a_running_line_runs_it_out_and_starts_again_only_if_asked(rig: LineRig) -> None:
    rig.run("water")
    rig.load("juice")
    assert rig.line.state is State.COMPLETE
    rig.to("reset", State.IDLE)
    rig.to("start", State.EXECUTE)
    rig.load("water", start=True)
    rig.until(lambda: rig.line.state is State.EXECUTE)
    assert rig.speeds() == WATER
    assert rig.changeover_steps()[-5:] == ["planned", "running_out", "staging", "verified", "committed"]


def test_nothing_is_written_before_every_station_has_run_out(rig: LineRig) -> None:
    rig.run("water")
    rig.memory["c.empty"] = False
    rig.plant.written.clear()
    rig.give("line", "changeover", recipe="juice")
    for _ in range(50):
        rig.scan()
    assert [rig.stations[n].state for n in NAMES] == [State.COMPLETE, State.COMPLETE, State.COMPLETING]
    assert not [t for t, _ in rig.plant.written if t.endswith(".speed")]
    assert "in progress (running_out)" in rig.give("line", "changeover", recipe="water").reason
    rig.memory["c.empty"] = True
    rig.until(lambda: rig.logic.changeover is None)
    assert rig.speeds() == JUICE


def test_a_starved_station_resumes_to_run_out_for_the_changeover(rig: LineRig) -> None:
    rig.run("water")
    rig.memory["c.starved"] = True
    rig.until(lambda: rig.stations["c"].state is State.SUSPENDED)
    rig.load("juice")
    assert rig.speeds() == JUICE
    assert rig.changeover_steps()[-1] == "committed"


@pytest.mark.parametrize("name", ["stop", "abort"])
def test_stop_during_run_out_writes_nothing(rig: LineRig, name: str) -> None:
    rig.run("water")
    rig.memory["b.empty"] = False
    rig.give("line", "changeover", recipe="juice")
    for _ in range(5):
        rig.scan()
    rig.plant.written.clear()
    assert rig.give("line", name).accepted
    rig.until(lambda: rig.logic.changeover is None)
    assert rig.changeover_steps()[-1] == "failed"
    assert not [t for t, _ in rig.plant.written if t.endswith(".speed")]
    assert rig.logic.recipe is not None
    assert rig.logic.recipe.id == "water"
    assert rig.logic.block == ""


@pytest.mark.parametrize("station", NAMES)
@pytest.mark.parametrize("how", ["rejected", "swallowed", "not confirmed", "read back bad"])
def test_a_failure_at_any_position_rolls_back_and_start_is_refused_with_the_reason(station: str, how: str) -> None:
    rig = LineRig(confirm=True)
    rig.load("water")
    rig.to("clear", State.STOPPED)
    rig.to("reset", State.IDLE)
    tag = f"{station}.speed"
    if how == "rejected":
        rig.plant.rejected[tag] = "illegal data value"
    elif how == "swallowed":
        rig.plant.swallowed.add(tag)
    elif how == "not confirmed":
        rig.frozen.add(station)
    else:
        rig.plant.bad[tag] = "NaN"
    rig.give("line", "changeover", recipe="juice")
    rig.until(lambda: rig.changeover_steps()[-1] == "rolling_back")
    assert not rig.give("line", "start").accepted
    rig.plant.bad.clear()
    rig.until(lambda: rig.logic.changeover is None)
    assert rig.changeover_steps()[-1] == "rolled_back"
    assert rig.speeds() == WATER
    assert rig.logic.parameters.differences() == []
    assert rig.logic.recipe is not None
    assert rig.logic.recipe.id == "water"
    refused = rig.give("line", "start")
    assert not refused.accepted
    assert "changeover to juice failed" in refused.reason
    assert f"{station}.speed" in refused.reason
    assert "every station is back on water" in refused.reason
    assert not rig.give(station, "start").accepted
    rig.plant.rejected.clear()
    rig.plant.swallowed.clear()
    rig.frozen.clear()
    rig.load("juice")
    rig.to("start", State.EXECUTE)
    assert rig.speeds() == JUICE


def test_when_the_way_back_fails_too_there_is_no_recipe_until_one_is_loaded_again(rig: LineRig) -> None:
    rig.load("water")
    rig.plant.rejected["c.speed"] = "broken"
    rig.give("line", "changeover", recipe="juice")
    rig.until(lambda: rig.memory["b.speed"] == 2.5)
    rig.plant.rejected["b.speed"] = "broken"  # b has taken the new value and does not take the old one back
    rig.until(lambda: rig.logic.changeover is None)
    assert rig.changeover_steps()[-1] == "failed"
    assert rig.logic.recipe is None
    assert "the way back failed too" in rig.logic.block
    assert "the stations hold a mix of recipes" in rig.logic.block
    rig.plant.rejected.clear()
    rig.load("water")  # the very values that were last wanted
    assert rig.speeds() == WATER
    assert rig.logic.block == ""


def test_a_plc_lost_while_staging_rolls_back_what_it_can_and_says_so(rig: LineRig) -> None:
    rig.load("water")
    rig.give("line", "changeover", recipe="juice")
    rig.plant.cut("two")
    rig.until(lambda: rig.logic.changeover is None)
    assert rig.logic.recipe is None
    assert "c.speed cannot be read back: c.speed is BAD: two is not connected" in rig.logic.block


def test_a_stale_read_back_is_not_taken_for_the_new_value(rig: LineRig) -> None:
    rig.load("water")
    rig.plant.silent.add("two")
    rig.give("line", "changeover", recipe="water")
    for _ in range(3):
        rig.scan()
    assert rig.logic.changeover is not None
    rig.plant.silent.clear()
    rig.until(lambda: rig.logic.changeover is None)
    assert rig.changeover_steps()[-1] == "committed"


def test_the_same_recipe_again_restores_what_a_plc_has_lost(rig: LineRig) -> None:
    rig.load("water")
    rig.memory["b.speed"] = 0.0
    rig.scan()
    rig.load("water")
    assert rig.speeds() == WATER


def test_a_restart_that_is_refused_leaves_the_new_recipe_in_force_and_the_scan_alive(rig: LineRig) -> None:
    rig.run("water")
    rig.memory["a.empty"] = False
    rig.give("line", "changeover", recipe="juice", start=True)
    rig.scan()
    rig.memory["a.empty"] = True
    rig.until(lambda: rig.line.state is State.COMPLETE)
    rig.memory["b.guard"] = False  # nobody can start like this
    rig.until(lambda: rig.logic.changeover is None)
    assert rig.changeover_steps()[-2:] == ["committed", "committed"]
    last = [e for e in rig.events if type(e).__name__ == "ChangeoverChanged"][-1]
    assert "juice is in force, but the line did not start: line: Start refused: b: guard of b is open" in last.detail
    assert rig.line.state is State.IDLE
    rig.memory["b.guard"] = True
    rig.scan()
    rig.to("start", State.EXECUTE)


def test_a_mode_without_completing_refuses_the_run_out_and_the_scan_lives(rig: LineRig) -> None:
    rig.load("water")
    rig.give("line", "set_mode", mode="manual")
    rig.run()
    rig.give("line", "changeover", recipe="juice")
    rig.until(lambda: rig.logic.changeover is None)
    assert rig.changeover_steps()[-1] == "failed"
    assert rig.line.state is State.EXECUTE
    assert rig.speeds() == WATER


def test_product_left_on_the_line_refuses_the_changeover(rig: LineRig) -> None:
    slots = rig.plant.layout.slots
    for name in NAMES:
        count = (slots[f"{name}.count"], 32)
        rig.stations[name].parts.tally = Tally(
            rig.plant.image, CountSlots(count, count, None, slots[f"{name}.in_process"])
        )
    rig.load("water")
    rig.memory["b.in_process"] = 4
    rig.scan()
    rig.load("juice")
    assert rig.changeover_steps()[-1] == "failed"
    assert any("product of water is left on the line: 4 in b" in getattr(e, "detail", "") for e in rig.events)
    assert rig.speeds() == WATER


def test_one_changeover_at_a_time_and_only_from_a_state_that_allows_it(rig: LineRig) -> None:
    rig.load("water")
    rig.frozen.add("a")
    rig.plant.swallowed.add("a.speed")
    rig.give("line", "changeover", recipe="juice")
    assert "changeover 2 to juice is in progress" in rig.give("line", "changeover", recipe="water").reason
    rig.plant.swallowed.clear()
    rig.until(lambda: rig.logic.changeover is None)
    rig.load("water")
    rig.run()
    rig.to("hold", State.HELD)
    assert "cannot begin while the line is Held" in rig.give("line", "changeover", recipe="juice").reason


def test_a_station_that_runs_on_its_own_bars_a_changeover_at_rest(rig: LineRig) -> None:
    rig.load("water")
    for name in ("clear", "reset", "start"):
        rig.give("b", name)
        rig.scan()
        rig.scan()
    reply = rig.give("line", "changeover", recipe="juice")
    assert not reply.accepted
    assert "every station at rest; not so: b" in reply.reason


def test_no_station_starts_while_a_changeover_is_staging(rig: LineRig) -> None:
    rig.load("water")
    rig.to("clear", State.STOPPED)
    rig.to("reset", State.IDLE)
    rig.plant.swallowed.add("c.speed")
    rig.give("line", "changeover", recipe="juice")
    rig.scan()
    for target in ("line", "a", "c"):
        assert "changeover to juice is in progress (staging)" in rig.give(target, "start").reason


# --- start-up and PLC restarts


def test_the_initial_recipe_is_loaded_when_every_plc_is_there_and_not_before() -> None:
    rig = LineRig(initial="water", connected=False)
    rig.plant.down |= {"one", "two"}
    for _ in range(5):
        rig.scan()
    rig.plant.join("one")
    for _ in range(5):
        rig.scan()
    assert rig.logic.changeovers == 0
    assert not [t for t, _ in rig.plant.written if t.endswith(".speed")]
    assert "recipe water is not loaded yet" in rig.stations["a"].why_not_start()
    rig.plant.join("two")
    rig.until(lambda: rig.logic.recipe is not None)
    assert rig.speeds() == WATER
    assert rig.line.state is State.ABORTED


def test_an_initial_load_that_fails_blocks_and_can_be_repeated() -> None:
    rig = LineRig(initial="water", connected=False)
    rig.plant.rejected["b.speed"] = "illegal address"
    rig.plant.connect()
    rig.until(lambda: bool(rig.logic.block))
    assert "loading water failed: b.speed = 2 m/s was rejected: illegal address" in rig.logic.block
    rig.plant.rejected.clear()
    rig.load("water")
    assert rig.speeds() == WATER
    rig.run()


def test_a_restored_controller_loads_what_was_last_in_force_and_does_not_run_by_itself() -> None:
    rig = LineRig(initial="water", connected=False)
    rig.logic.restore({}, "juice")
    rig.memory |= {"a.run": True, "b.run": True}  # the PLCs ran on while the controller was dead
    rig.plant.connect()
    rig.until(lambda: rig.logic.recipe is not None)
    assert rig.speeds() == JUICE
    for _ in range(20):
        rig.scan()
    assert set(rig.states().values()) == {"Aborted"}
    assert [rig.memory[f"{n}.run"] for n in NAMES] == [False] * 3


@pytest.mark.parametrize("link_seen", [True, False])
def test_zeroed_set_points_bar_every_start_until_the_recipe_is_read_back(rig: LineRig, link_seen: bool) -> None:
    rig.run("water")
    rig.to("stop", State.STOPPED)
    rig.to("reset", State.IDLE)
    if link_seen:
        rig.plant.cut("two")
        rig.scan()
    rig.memory |= {"c.speed": 0.0, "c.run": False}
    if link_seen:
        rig.plant.join("two")
        rig.scan()
        rig.give("c", "clear")
        rig.until(lambda: rig.stations["c"].state is State.STOPPED)
        rig.give("c", "reset")
        rig.until(lambda: rig.stations["c"].state is State.IDLE)
    rig.scan()
    for target in ("line", "c"):
        refused = rig.give(target, "start")
        assert not refused.accepted
        assert "the recipe is not in force: c.speed reads 0 m/s, recipe says 3 m/s" in refused.reason
    assert rig.memory["c.run"] is False
    rig.load("water")
    rig.to("start", State.EXECUTE)
    assert rig.speeds() == WATER


def test_a_suspended_station_does_not_resume_on_zeroed_set_points(rig: LineRig) -> None:
    rig.run("water")
    rig.memory["c.starved"] = True
    rig.until(lambda: rig.stations["c"].state is State.SUSPENDED)
    rig.memory |= {"c.speed": 0.0, "c.starved": False}
    for _ in range(20):
        rig.scan()
    assert rig.stations["c"].state is State.SUSPENDED
    rig.memory["c.speed"] = 3.0
    rig.until(lambda: rig.stations["c"].state is State.EXECUTE)


# --- two people, a cable and a changeover


def staging(rig: LineRig) -> None:
    """A changeover with start, from Execute, that waits for ``c`` to take its set-point."""
    rig.run("water")
    rig.frozen.add("c")
    assert rig.give("line", "changeover", recipe="juice", start=True).accepted
    rig.until(lambda: rig.logic.changeover is not None and rig.logic.changeover.step == "staging")


def last_detail(rig: LineRig) -> str:
    return [e.detail for e in rig.events if isinstance(e, ChangeoverChanged)][-1]


@pytest.mark.parametrize("name", ["stop", "abort"])
def test_after_a_stop_during_staging_the_changeover_starts_nothing(name: str) -> None:
    rig = LineRig(confirm=True)
    staging(rig)
    assert rig.give("line", name).accepted
    for _ in range(3):
        rig.scan()
    stands = rig.line.state
    rig.frozen.clear()
    rig.until(lambda: rig.logic.changeover is None)
    for _ in range(30):
        rig.scan()
    assert rig.line.state is stands
    assert stands in (State.STOPPED, State.ABORTED)
    assert rig.speeds() == JUICE
    assert "juice is in force, but the line did not start" in last_detail(rig)


def test_a_stop_of_a_line_that_stands_already_bars_the_start_after_its_changeover() -> None:
    rig = LineRig(confirm=True)
    rig.load("water")
    rig.to("clear", State.STOPPED)
    rig.frozen.add("c")
    rig.give("line", "changeover", recipe="juice", start=True)
    rig.scan()
    assert "already Stopped" in rig.give("line", "stop").reason
    rig.frozen.clear()
    rig.until(lambda: rig.logic.changeover is None)
    for _ in range(30):
        rig.scan()
    assert rig.line.state is State.STOPPED


def test_a_stop_while_the_changeover_resets_the_line_is_not_undone_by_the_next_person_s_reset(rig: LineRig) -> None:
    rig.run("water")
    rig.give("line", "changeover", recipe="juice", start=True)
    rig.until(lambda: rig.line.state is State.RESETTING)
    assert rig.give("line", "stop").accepted
    rig.until(lambda: rig.line.state is State.STOPPED)
    assert rig.give("line", "reset").accepted
    for _ in range(30):
        rig.scan()
    assert rig.line.state is State.IDLE
    assert rig.logic.changeover is None


def test_an_aborted_line_says_that_it_was_not_started(rig: LineRig) -> None:
    rig.load("water", start=True)
    assert last_detail(rig) == "water is in force, but the line did not start: the line is Aborted"


def test_a_jam_during_run_out_can_be_mended(rig: LineRig) -> None:
    rig.run("water")
    rig.memory["a.empty"] = False
    rig.give("line", "changeover", recipe="juice")
    rig.scan()
    rig.memory["c.guard"] = False
    rig.until(lambda: rig.stations["c"].state is State.HELD)
    rig.memory["c.guard"] = True
    rig.scan()
    reply = rig.give("c", "unhold")
    assert reply.accepted, reply.reason
    rig.memory["a.empty"] = True
    rig.until(lambda: rig.logic.changeover is None)
    assert rig.speeds() == JUICE


def test_with_a_plc_known_to_be_away_nothing_is_written(rig: LineRig) -> None:
    rig.load("water")
    rig.plant.cut("two")
    rig.scan()
    rig.load("juice")
    assert last_detail(rig) == "PLC two is not connected; nothing was written, water stays in force"
    assert rig.logic.recipe is not None
    assert rig.speeds() == WATER


def test_what_cannot_be_seen_is_not_empty(rig: LineRig) -> None:
    slots = rig.plant.layout.slots
    count = (slots["b.count"], 32)
    tally = Tally(rig.plant.image, CountSlots(count, count, None, slots["b.in_process"]))
    rig.stations["b"].parts.tally = tally
    rig.load("water")
    rig.plant.bad["b.in_process"] = "out of range"
    rig.scan()
    rig.load("juice")
    assert "an unknown number in b (b.in_process is BAD: out of range)" in last_detail(rig)
    assert rig.speeds() == WATER


def test_a_recorded_recipe_that_is_gone_is_not_replaced_by_another() -> None:
    rig = LineRig(initial="water", connected=False)
    rig.logic.restore({}, "milk")
    rig.plant.connect()
    for _ in range(10):
        rig.scan()
    assert rig.speeds() == [0.0] * 3
    rig.to("clear", State.STOPPED)
    rig.to("reset", State.IDLE)
    assert "recipe milk, last in force, is none of this line's any more" in rig.give("line", "start").reason
    rig.load("juice")
    rig.to("start", State.EXECUTE)
