"""The line over three machines: order, run-out, emergency stop, recovery, modes."""

from __future__ import annotations

import pytest
from helpers.core_rig import NAMES, LineRig, S

from controller.core.coordination import LineSettings
from controller.core.image import WriteReport
from controller.core.packml import Options, State, Trigger
from drivers.port import Outcome


@pytest.fixture
def rig() -> LineRig:
    return LineRig()


def order(rig: LineRig, target: str) -> list[str]:
    return [station for station, state in rig.transitions(target) if station != "line"]


def test_start_is_from_the_last_to_the_first_each_running_before_the_next(rig: LineRig) -> None:
    rig.run()
    way = [t for t in rig.transitions() if t[1] in ("Starting", "Execute")]
    assert way == [
        ("line", "Starting"), ("c", "Starting"), ("c", "Execute"), ("b", "Starting"), ("b", "Execute"),
        ("a", "Starting"), ("a", "Execute"), ("line", "Execute"),
    ]  # fmt: skip


def test_stop_is_from_the_first_to_the_last(rig: LineRig) -> None:
    rig.run()
    rig.to("stop", State.STOPPED)
    assert [t for t in rig.transitions() if t[1] in ("Stopping", "Stopped")][-8:] == [
        ("line", "Stopping"), ("a", "Stopping"), ("a", "Stopped"), ("b", "Stopping"), ("b", "Stopped"),
        ("c", "Stopping"), ("c", "Stopped"), ("line", "Stopped"),
    ]  # fmt: skip
    rig.scan()
    assert [rig.memory[f"{n}.run"] for n in NAMES] == [False] * 3


def test_hold_and_unhold(rig: LineRig) -> None:
    rig.run()
    rig.to("hold", State.HELD)
    assert order(rig, "Holding") == ["a", "b", "c"]
    assert set(rig.states().values()) == {"Held"}
    rig.events.clear()
    rig.to("unhold", State.EXECUTE)
    assert order(rig, "Unholding") == ["c", "b", "a"]
    assert set(rig.states().values()) == {"Execute"}


def test_suspend_and_unsuspend(rig: LineRig) -> None:
    rig.run()
    rig.to("suspend", State.SUSPENDED)
    assert set(rig.states().values()) == {"Suspended"}
    rig.to("unsuspend", State.EXECUTE)
    rig.until(lambda: set(rig.states().values()) == {"Execute"})


def test_run_out_follows_the_product_and_wakes_a_starved_station(rig: LineRig) -> None:
    rig.run()
    rig.memory["c.starved"] = True
    rig.until(lambda: rig.stations["c"].state is State.SUSPENDED)
    for name in NAMES:
        rig.memory[f"{name}.empty"] = False
    rig.events.clear()
    assert rig.give("line", "complete").accepted
    for name in NAMES:
        rig.until(lambda n=name: rig.stations[n].state is State.COMPLETING)
        for _ in range(5):
            rig.scan()
        assert rig.line.state is State.COMPLETING
        rig.memory[f"{name}.empty"] = True
    rig.until(lambda: rig.line.state is State.COMPLETE)
    assert order(rig, "Complete") == ["a", "b", "c"]
    assert ("c", "Unsuspending") in rig.transitions()
    rig.to("reset", State.IDLE)
    assert all(s.may_starve for s in rig.stations.values())


def test_run_out_that_never_ends_stops_the_line_with_an_alarm(rig: LineRig) -> None:
    rig.run()
    rig.memory["b.empty"] = False
    rig.give("line", "complete")
    rig.until(lambda: rig.line.state is State.STOPPED, 400)
    assert rig.alarm("b.does_not_empty")
    assert all(s.may_starve for s in rig.stations.values())


def test_a_start_that_takes_too_long_stops_the_line() -> None:
    rig = LineRig(settings=LineSettings(limit_s=1.0))
    rig.run()
    rig.to("stop", State.STOPPED)
    rig.to("reset", State.IDLE)
    rig.programs["b"].stuck = True  # its own limit of 2 s is longer
    rig.give("line", "start")
    rig.until(lambda: rig.line.state is State.STOPPED)
    assert "b to start" in rig.alarm("line.start_timeout")
    assert "Execute" not in [s for n, s in rig.transitions() if n == "a"][-6:]


# --- emergency stop and abort


@pytest.mark.parametrize("when", ["execute", "starting", "held", "completing", "clearing"])
def test_emergency_stop_aborts_everybody_in_the_scan_that_reads_it(rig: LineRig, when: str) -> None:
    if when == "clearing":
        rig.load("water")
        rig.give("line", "clear")
    else:
        rig.run()
    if when == "starting":
        rig.to("stop", State.STOPPED)
        rig.to("reset", State.IDLE)
        rig.give("line", "start")
    elif when == "held":
        rig.to("hold", State.HELD)
    elif when == "completing":
        rig.memory["a.empty"] = False
        rig.give("line", "complete")
    rig.memory["line.estop_ok"] = False
    result = rig.scan()
    assert set(rig.states().values()) == {"Aborted"}
    if when == "execute":
        assert {t: v for t, v in result.outputs.items() if t.endswith(".run")} == {f"{n}.run": False for n in NAMES}
    assert "emergency stop pressed" in rig.line.first_out


@pytest.mark.parametrize("how", ["bad", "silent"])
def test_an_emergency_stop_that_cannot_be_read_aborts_too(rig: LineRig, how: str) -> None:
    rig.run()
    if how == "bad":
        rig.plant.bad["line.estop_ok"] = "NaN"
    else:
        rig.plant.silent.add("one")
    rig.until(lambda: set(rig.states().values()) == {"Aborted"}, 8)
    assert "line.estop_ok is BAD" in rig.line.first_out


def test_recovery_is_refused_while_the_emergency_stop_is_pressed(rig: LineRig) -> None:
    rig.run()
    rig.memory["line.estop_ok"] = False
    rig.scan()
    for target in ("line", "a"):
        reply = rig.give(target, "clear")
        assert not reply.accepted
        assert "emergency stop pressed (needs line.estop_ok == True; line.estop_ok = off)" in reply.reason
    rig.memory["line.estop_ok"] = True
    rig.scan()
    assert set(rig.states().values()) == {"Aborted"}  # nothing by itself
    rig.run()


def test_emergency_stop_reaches_a_station_that_runs_while_the_line_is_aborted(rig: LineRig) -> None:
    rig.load("water")
    for name in ("clear", "reset", "start"):
        rig.give("a", name)
        rig.scan()
        rig.scan()
    assert (rig.line.state, rig.stations["a"].state) == (State.ABORTED, State.EXECUTE)
    rig.memory["line.estop_ok"] = False
    rig.scan()
    assert rig.stations["a"].state is State.ABORTED


@pytest.mark.parametrize(("name", "end"), [("stop", State.STOPPED), ("abort", State.ABORTED)])
def test_stop_and_abort_of_a_standing_line_reach_a_station_that_runs_alone(rig: LineRig, name: str, end: State) -> None:
    rig.load("water")
    for command in ("clear", "reset", "start"):
        rig.give("b", command)
        rig.scan()
        rig.scan()
    assert rig.stations["b"].state is State.EXECUTE
    reply = rig.give("line", name)
    assert reply.accepted
    assert "already Aborted" in reply.reason
    assert "given to b" in reply.reason
    rig.until(lambda: rig.stations["b"].state is end, 5)


def test_stop_twice_and_abort_twice_are_fine(rig: LineRig) -> None:
    rig.run()
    replies = rig.scan(rig.command("line", "stop"), rig.command("line", "stop")).replies
    assert [r.accepted for r in replies] == [True, True]
    rig.until(lambda: rig.line.state is State.STOPPED)
    assert order(rig, "Stopping") == ["a", "b", "c"]
    replies = rig.scan(rig.command("line", "abort"), rig.command("line", "abort"), rig.command("line", "stop")).replies
    assert [r.accepted for r in replies] == [True] * 3
    rig.until(lambda: set(rig.states().values()) == {"Aborted"}, 3)


def test_stop_and_start_of_two_people_in_one_scan(rig: LineRig) -> None:
    rig.run()
    rig.to("stop", State.STOPPED)
    rig.to("reset", State.IDLE)
    rig.events.clear()
    stop, start = rig.scan(rig.command("line", "stop"), rig.command("line", "start")).replies  # as the queue drains
    assert stop.accepted
    assert not start.accepted
    assert "Start is not possible in Stopping" in start.reason
    rig.until(lambda: rig.line.state is State.STOPPED)
    assert order(rig, "Starting") == []


# --- a station leaves the line


@pytest.mark.parametrize(
    ("action", "end"), [("hold", "Held"), ("stop", "Stopped"), ("abort", "Aborted"), ("none", "Execute")]
)
def test_a_station_that_aborts_takes_the_line_along_as_configured(action: str, end: str) -> None:
    rig = LineRig(settings=LineSettings(limit_s=5.0, on_station_abort=action))
    rig.run()
    rig.give("b", "abort")
    for _ in range(10):
        rig.scan()
    rig.until(lambda: rig.line.state.text == end)
    assert rig.stations["b"].state is State.ABORTED


def test_unhold_works_once_the_aborted_station_was_cleared_and_reset(rig: LineRig) -> None:
    rig.run()
    rig.give("b", "abort")
    rig.until(lambda: rig.line.state is State.HELD)
    assert "b is Aborting: Abort by anna" in rig.line.stop_reason
    refused = rig.give("line", "unhold")
    assert not refused.accepted
    assert "b is Aborted: give it Clear and Reset" in refused.reason
    rig.give("b", "clear")
    rig.until(lambda: rig.stations["b"].state is State.STOPPED)
    assert "b is Stopped: give it Reset" in rig.give("line", "unhold").reason
    rig.give("b", "reset")
    rig.until(lambda: rig.stations["b"].state is State.IDLE)
    rig.to("unhold", State.EXECUTE)
    assert set(rig.states().values()) == {"Execute"}


def test_a_station_that_fails_in_the_scan_in_which_the_line_reaches_execute_is_not_overlooked(rig: LineRig) -> None:
    rig.load("water")
    rig.to("clear", State.STOPPED)
    rig.to("reset", State.IDLE)
    rig.give("line", "start")
    for _ in range(100):
        waiting = rig.stations["a"].state is State.EXECUTE and rig.line.state is State.STARTING
        if waiting:  # the line goes to Execute in the next scan; c fails in the same one
            rig.memory["c.running"] = False
            rig.plant.bad["c.fault"] = "wire break"
        rig.scan()
        if waiting:
            break
    assert (rig.line.state, rig.stations["c"].state) == (State.EXECUTE, State.ABORTING)
    rig.until(lambda: rig.line.state is State.HELD, 10)


def test_a_station_restarted_on_its_own_is_still_watched(rig: LineRig) -> None:
    rig = LineRig(settings=LineSettings(limit_s=5.0, on_station_abort="hold", on_station_hold="none"))
    rig.run()
    rig.give("b", "hold")
    rig.until(lambda: rig.stations["b"].state is State.HELD)
    rig.to("suspend", State.SUSPENDED)
    rig.to("unsuspend", State.EXECUTE)
    rig.give("b", "unhold")
    rig.until(lambda: rig.stations["b"].state is State.EXECUTE)
    rig.give("b", "abort")
    rig.until(lambda: rig.line.state is State.HELD, 10)


def test_without_hold_from_suspended_the_line_stops_instead() -> None:
    rig = LineRig(options=Options(hold_from_suspended=False))
    rig.run()
    rig.to("suspend", State.SUSPENDED)
    rig.give("b", "abort")
    rig.until(lambda: rig.line.state is State.STOPPED, 30)


@pytest.mark.parametrize(("action", "end"), [("hold", "Held"), ("none", "Execute")])
def test_a_held_station(action: str, end: str) -> None:
    rig = LineRig(settings=LineSettings(limit_s=5.0, on_station_hold=action))
    rig.run()
    rig.memory["b.guard"] = False
    rig.until(lambda: rig.stations["b"].state is State.HELD)
    for _ in range(10):
        rig.scan()
    assert rig.line.state.text == end


def test_line_start_is_refused_with_all_reasons(rig: LineRig) -> None:
    refused = rig.give("line", "start")
    assert "Start is not possible in Aborted; possible now: Clear" in refused.reason
    rig.load("water")
    rig.to("clear", State.STOPPED)
    rig.to("reset", State.IDLE)
    rig.memory |= {"a.guard": False, "b.guard": False}
    rig.give("c", "stop")
    rig.until(lambda: rig.stations["c"].state is State.STOPPED)
    refused = rig.give("line", "start")
    assert not refused.accepted
    for part in ("a: guard of a is open", "b: guard of b is open", "c is Stopped: give it Reset"):
        assert part in refused.reason
    assert rig.line.state is State.IDLE


def test_what_all_stations_say_alike_is_said_once(rig: LineRig) -> None:
    rig.to("clear", State.STOPPED)
    rig.to("reset", State.IDLE)
    reason = rig.give("line", "start").reason
    assert "a, b, c: no recipe is loaded" in reason
    assert reason.count("no recipe is loaded") == 2


# --- links


def test_a_lost_plc_is_named_and_its_stations_abort(rig: LineRig) -> None:
    rig.run()
    rig.plant.cut("two", "connection reset by peer")
    rig.scan()
    assert rig.alarm("line.plc_two") == "PLC two (10.0.0.2:502) is not connected: connection reset by peer"
    assert rig.alarm("line.plc_one") == ""
    assert rig.stations["c"].state is State.ABORTED
    assert "PLC two is lost (connection reset by peer)" in rig.stations["c"].first_out
    rig.until(lambda: rig.line.state is State.HELD)
    assert [rig.stations[n].state for n in "ab"] == [State.HELD] * 2
    refused = rig.give("c", "clear")
    assert "PLC two is lost" in refused.reason
    rig.plant.join("two")
    for _ in range(20):
        rig.scan()
    assert rig.alarm("line.plc_two") == ""
    assert rig.stations["c"].state is State.ABORTED
    rig.give("c", "clear")
    rig.until(lambda: rig.stations["c"].state is State.STOPPED)


def test_a_failed_output_is_alarmed_and_recorded_and_the_alarm_clears_when_it_is_written(rig: LineRig) -> None:
    rig.plant.rejected["a.reset"] = "illegal address"
    rig.load("water")
    rig.memory["a.fault"] = True
    rig.programs["a"].cause = 1
    rig.scan()
    rig.give("a", "clear")
    rig.until(lambda: bool(rig.alarm("line.output_failed")), 20)
    failed = [e for e in rig.events if type(e).__name__ == "OutputFailed"]
    assert (failed[0].tag, failed[0].outcome, failed[0].reason) == ("a.reset", "rejected", "illegal address")
    rig.plant.rejected.clear()
    rig.programs["a"].cause = 0
    rig.until(lambda: not rig.alarm("line.output_failed"), 20)
    rig.until(lambda: rig.stations["a"].state is State.STOPPED)
    assert rig.memory["a.fault"] is False


# --- commands of the line


def test_mode_change_is_all_or_none(rig: LineRig) -> None:
    rig.load("water")
    rig.to("clear", State.STOPPED)
    rig.give("b", "reset")
    rig.until(lambda: rig.stations["b"].state is State.IDLE)
    rig.give("b", "start")
    rig.until(lambda: rig.stations["b"].state is State.EXECUTE)
    refused = rig.give("line", "set_mode", mode="maintenance")
    assert refused.reason.startswith("b: mode production cannot change to maintenance in Execute")
    units = [rig.line, *rig.stations.values()]
    assert {u.machine.mode.name for u in units} == {"production"}
    rig.give("b", "stop")
    rig.until(lambda: rig.stations["b"].state is State.STOPPED)
    assert rig.give("line", "set_mode", mode="maintenance").accepted
    assert {u.machine.mode.name for u in units} == {"maintenance"}
    changed = [e.station for e in rig.events if type(e).__name__ == "ModeChanged"]
    assert changed == ["line", *NAMES]
    assert "there is no mode 'x'" in rig.give("line", "set_mode", mode="x").reason


@pytest.mark.parametrize(
    ("target", "name", "args", "part"),
    [
        ("nowhere", "start", {}, "there is no station 'nowhere'; there are line, a, b, c"),
        ("a", "changeover", {"recipe": "water"}, "PackML commands only"),
        ("line", "explode", {}, "the line does not know 'explode'"),
        ("line", "changeover", {"recipe": "beer"}, "there is no recipe 'beer'; recipes are water, juice"),
        ("line", "changeover", {"recipe": "water", "start": "false"}, "start is true or false, not 'false'"),
        ("line", "acknowledge", {"alarm": "line.x"}, "there is no alarm 'line.x'"),
        ("line", "set_mode", {}, "there is no mode ''"),
    ],
)
def test_refused_commands_are_answered_and_recorded(
    rig: LineRig, target: str, name: str, args: dict[str, str], part: str
) -> None:
    reply = rig.give(target, name, **args)
    assert not reply.accepted
    assert part in reply.reason
    done = rig.events[-1]
    assert (done.command, done.accepted, done.reason, done.user) == (name, False, reply.reason, "anna")  # type: ignore[union-attr]


def test_acknowledge_all(rig: LineRig) -> None:
    rig.plant.cut("one")
    rig.plant.cut("two")
    rig.scan()
    assert rig.give("line", "acknowledge", alarm="line.plc_one").accepted
    assert rig.give("line", "acknowledge_all").reason == "1 alarms acknowledged"
    alarm = rig.logic.alarms.alarms["line.plc_one"]
    assert alarm.acknowledged
    assert alarm.since_utc > 0


def test_a_bug_in_one_station_leaves_the_others_running(rig: LineRig, monkeypatch: pytest.MonkeyPatch) -> None:
    rig = LineRig(settings=LineSettings(on_station_abort="none"))
    rig.run()

    def broken(now_ns: int) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(rig.stations["b"].behaviour, "watch", broken)
    for _ in range(10):
        rig.scan()
    assert rig.states() == {"line": "Execute", "a": "Execute", "b": "Aborted", "c": "Execute"}
    assert "software fault in b" in rig.alarm("b.internal_error")


def test_losses_are_charged_to_the_station_that_stood(rig: LineRig) -> None:
    rig.run()
    rig.memory |= {"a.guard": False, "b.starved": True, "c.starved": True}
    rig.until(lambda: rig.stations["c"].state is State.SUSPENDED)
    for _ in range(30):
        rig.scan()
    rig.memory |= {"a.guard": True, "b.starved": False, "c.starved": False}
    rig.scan()
    rig.give("a", "unhold")
    rig.until(lambda: set(rig.states().values()) == {"Execute"})
    rig.scan()
    lost = rig.logic.losses.lost_ns
    assert {who for who, cause in lost if cause == "a"} == {"a", "b", "c"}
    assert rig.logic.losses.caused_by("a") > 8 * S
    assert rig.logic.losses.caused_by("b") < S


def test_why_not_start_of_the_line_names_the_way(rig: LineRig) -> None:
    reasons = rig.line.why_not_start()
    assert reasons[0] == "line is Aborted: give Clear, then Reset, then Start"
    assert any("no recipe is loaded" in r for r in reasons)
    assert rig.line.obstacles(Trigger.CLEAR) == []


@pytest.mark.parametrize("how", ["suspend", "hold"])
def test_a_starved_station_does_not_resume_in_a_line_that_stands(how: str) -> None:
    rig = LineRig(options=Options(hold_from_suspended=False))
    rig.run()
    rig.memory["c.starved"] = True
    rig.until(lambda: rig.stations["c"].state is State.SUSPENDED)
    rig.to(how, State.SUSPENDED if how == "suspend" else State.HELD)
    rig.memory["c.starved"] = False
    for _ in range(20):
        rig.scan()
    assert rig.stations["c"].state is State.SUSPENDED
    assert f"the line is {rig.line.state.text}" in rig.give("c", "unsuspend").reason
    rig.give("line", f"un{how}")
    rig.until(lambda: set(rig.states().values()) == {"Execute"})


def test_an_output_alarm_from_before_a_loss_is_gone_when_the_plc_is_back(rig: LineRig) -> None:
    """The link found the output in force when it compared: there is no write that could clear it."""
    rig.run()
    rig.plant.buffer.report(WriteReport("c.run", True, Outcome.UNKNOWN, "no answer"))
    rig.scan()
    assert rig.alarm("line.output_failed")
    rig.plant.cut("two")
    rig.scan()
    assert rig.alarm("line.output_failed")
    rig.plant.join("two")
    rig.scan()
    assert not rig.alarm("line.output_failed")


def test_times_in_states_count_from_the_first_scan(rig: LineRig) -> None:
    for unit in (rig.line, *rig.stations.values()):
        assert unit.machine.time_in_state_ns(rig.plant.now) == 0


def test_a_station_that_cannot_be_cleared_brings_the_line_back_to_aborted_at_once_and_is_named() -> None:
    rig = LineRig(settings=LineSettings(limit_s=60.0))
    rig.programs["b"].cause = 6  # its fault does not go with a reset
    rig.scan()
    assert rig.give("line", "clear").accepted
    begin = rig.plant.now
    rig.until(lambda: rig.line.state is State.ABORTED)
    assert rig.plant.now - begin < 5 * S, "no waiting for the line's own limit"
    assert rig.alarm("line.clear_failed").startswith("b is Abort")
    assert "mixed product" in rig.alarm("line.clear_failed")
    rig.programs["b"].cause = 0
    rig.to("clear", State.STOPPED)
    assert rig.alarm("line.clear_failed") == ""


def test_a_station_stopped_by_a_person_while_the_line_starts_ends_the_start_at_once() -> None:
    rig = LineRig(initial="water", settings=LineSettings(limit_s=60.0))
    rig.until(lambda: rig.logic.recipe is not None)
    rig.to("clear", State.STOPPED)
    rig.to("reset", State.IDLE)
    rig.programs["b"].stuck = True  # does not come up by itself
    rig.give("line", "start")
    rig.until(lambda: rig.stations["b"].state is State.STARTING)
    rig.give("b", "stop")
    rig.programs["b"].stuck = False
    begin = rig.plant.now
    rig.until(lambda: rig.line.state is State.STOPPED)
    assert rig.plant.now - begin < 5 * S
    assert rig.line.stop_reason.startswith("b is Stop")
