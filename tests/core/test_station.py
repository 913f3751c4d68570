"""One station: interlocks, alarms, sequences, recovery."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from helpers.core_rig import MS, Plant, S, StationRig

from controller.core.alarms import AlarmSpec
from controller.core.behaviour import Behaviour
from controller.core.commands import CommandRejected
from controller.core.io import IO, Input, Output
from controller.core.packml import Options, State, Trigger
from controller.core.sequence import Steps, Until
from controller.core.station import Parts

CLEAR, RESET, START, STOP, HOLD, UNHOLD, ABORT = (
    Trigger.CLEAR, Trigger.RESET, Trigger.START, Trigger.STOP, Trigger.HOLD, Trigger.UNHOLD, Trigger.ABORT,
)  # fmt: skip
UP = (CLEAR, RESET, START)
TAGS = {"x.run": False, "x.running": False, "x.ok": True, "x.door": True, "x.air": True, "x.starved": False,
        "x.blocked": False, "x.fault": False}  # fmt: skip


class PumpIO(IO):
    run: Output[bool]
    running: Input[bool]


class Pump(Behaviour):
    """Starting takes until ``running``; holding can be made to fail; everything else is at once."""

    IO = PumpIO
    io: PumpIO

    def __init__(self, plant: Plant) -> None:
        super().__init__("x", PumpIO(plant.image, {"run": "x.run", "running": "x.running"}), None)
        self.log: list[str] = []
        self.break_in = ""
        self.break_watch = self.break_close = False
        self.wish: tuple[str, str] | None = None

    def starting(self) -> Steps:
        self.log.append("starting")
        try:
            self.io.run.set(True)
            yield Until(lambda: self.io.running.is_(True), 1.0, "does_not_start", "x running")
        finally:
            self.log.append("starting left")
            if self.break_close:
                raise ZeroDivisionError("clean-up")

    def execute(self) -> Steps:
        try:
            while True:
                if self.break_in == "execute":
                    raise ZeroDivisionError("bug")
                if not self.io.running.value:
                    self.log.append("stands")
                yield None
        finally:
            self.log.append("execute left")

    def holding(self) -> Steps:
        if self.break_in == "holding":
            yield Until(lambda: False, 0.5, "does_not_hold", "x held", "hold")
        self.io.run.set(False)
        yield Until(lambda: self.io.running.is_(False), 1.0, "does_not_stop", "x standing")

    def stopping(self) -> Steps:
        if self.break_in == "stopping":
            yield Until(lambda: False, 0.5, "does_not_stop", "x standing", "stop")
        yield None

    def aborting(self) -> Steps:
        if self.break_in == "aborting":
            yield Until(lambda: False, 0.5, "does_not_abort", "x safe", "abort")

    def watch(self, now_ns: int) -> tuple[str, str] | None:
        if self.break_watch:
            raise ZeroDivisionError("watch")
        return self.wish


def rig_of(make: Callable[[Plant], Parts] | None = None, **more: Any) -> tuple[StationRig, Pump]:
    plant = Plant({"one": dict(TAGS)})
    plant.programs.append(lambda: plant.memory.__setitem__("x.running", plant.memory["x.run"]))
    behaviour = Pump(plant)
    parts = make(plant) if make else Parts()
    parts.safe, parts.outputs = {"run": False}, behaviour.io.outputs
    rig = StationRig(plant, behaviour, parts, **more)
    rig.scan()
    return rig, behaviour


def interlocked(*what: tuple[str, str]) -> Callable[[Plant], Parts]:
    return lambda plant: Parts(interlocks=tuple(plant.interlock(tag, otherwise) for tag, otherwise in what))


def test_the_way_up_and_down() -> None:
    rig, pump = rig_of()
    rig.drive(*UP)
    assert rig.plant.memory["x.run"] is True
    rig.drive(HOLD, UNHOLD, STOP)
    assert rig.visited() == [
        "Clearing", "Stopped", "Resetting", "Idle", "Starting", "Execute", "Holding", "Held", "Unholding", "Execute",
        "Stopping", "Stopped",
    ]  # fmt: skip
    assert pump.log == ["starting", "starting left"]  # Execute was held before its first step


@pytest.mark.parametrize(("otherwise", "end"), [("hold", "Held"), ("stop", "Stopped"), ("abort", "Aborted")])
def test_a_lost_interlock_acts_as_configured(otherwise: str, end: str) -> None:
    rig, _ = rig_of(interlocked(("x.ok", otherwise)))
    rig.drive(*UP)
    rig.plant.memory["x.ok"] = False
    rig.scan()
    assert rig.state.text in {"hold": "Holding", "stop": "Stopping", "abort": "Aborted"}[otherwise]
    rig.until(State[end.upper()])
    rig.scan()
    assert rig.plant.memory["x.run"] is False
    assert rig.station.first_out == "x.ok is lost (needs x.ok == True; x.ok = off)"
    assert rig.station.stop_reason == rig.station.first_out


def test_hold_becomes_stop_where_hold_is_illegal() -> None:
    rig, _ = rig_of(interlocked(("x.ok", "hold")))
    rig.drive(CLEAR, RESET)
    rig.plant.programs.clear()  # it never runs up
    rig.scan(START)
    rig.plant.memory["x.ok"] = False
    assert rig.scan() is State.STOPPING
    rig.until(State.STOPPED)


def test_hold_from_starting_where_the_option_says_so() -> None:
    rig, _ = rig_of(interlocked(("x.ok", "hold")), options=Options(hold_from_acting=True))
    rig.drive(CLEAR, RESET)
    rig.plant.programs.clear()
    rig.scan(START)
    rig.plant.memory["x.ok"] = False
    rig.until(State.HELD, 3)
    assert rig.visited()[-3:] == ["Starting", "Holding", "Held"]


def test_a_severer_interlock_overtakes_and_first_out_stays_the_first() -> None:
    rig, _ = rig_of(interlocked(("x.door", "hold"), ("x.air", "stop"), ("x.ok", "abort")))
    rig.drive(*UP)
    for tag, state in (("x.door", State.HOLDING), ("x.air", State.STOPPING), ("x.ok", State.ABORTED)):
        rig.plant.memory[tag] = False
        assert rig.scan() is state
    assert rig.station.first_out.startswith("x.door is lost")
    assert rig.station.stop_reason.startswith("x.ok is lost")


def test_two_lost_in_one_scan_take_the_severer_state() -> None:
    rig, _ = rig_of(interlocked(("x.door", "hold"), ("x.ok", "abort")))
    rig.drive(*UP)
    rig.plant.memory |= {"x.door": False, "x.ok": False}
    assert rig.scan() is State.ABORTED


@pytest.mark.parametrize("how", ["bad", "silent", "cut"])
def test_an_input_that_cannot_be_known_fails_its_interlock_and_is_named(how: str) -> None:
    rig, _ = rig_of(interlocked(("x.ok", "abort")))
    rig.drive(*UP)
    if how == "bad":
        rig.plant.bad["x.ok"] = "NaN"
    elif how == "silent":
        rig.plant.silent.add("one")
    else:
        rig.plant.cut("one", "reset by peer")
    rig.until(State.ABORTED, 8)
    words = {"bad": "x.ok is BAD: NaN", "silent": "x.ok is BAD: stale", "cut": "x.ok is BAD: one is not connected"}
    assert words[how] in rig.station.first_out


def test_recovery_is_refused_while_the_cause_is_present_and_says_so() -> None:
    rig, _ = rig_of(interlocked(("x.ok", "abort"), ("x.door", "hold")))
    rig.plant.memory["x.ok"] = False
    rig.scan()
    with pytest.raises(CommandRejected, match=r"x: Clear refused: x\.ok is lost"):
        rig.scan(CLEAR)
    assert rig.state is State.ABORTED
    rig.plant.memory |= {"x.ok": True, "x.door": False}
    rig.scan()
    rig.drive(CLEAR, RESET)  # an open door may be closed later
    with pytest.raises(CommandRejected, match=r"x: Start refused: x\.door is lost"):
        rig.scan(START)
    assert rig.state is State.IDLE
    rig.plant.memory["x.door"] = True
    rig.scan()
    rig.drive(START)
    rig.plant.memory["x.door"] = False
    rig.until(State.HELD)
    with pytest.raises(CommandRejected, match=r"Unhold refused: x\.door is lost"):
        rig.scan(UNHOLD)
    rig.plant.memory["x.door"] = True
    rig.scan()
    rig.drive(UNHOLD)
    assert rig.station.first_out == ""
    assert rig.station.stop_reason == ""


def test_permissives_bar_reset_and_start_only() -> None:
    rig, _ = rig_of(lambda plant: Parts(permissives=(plant.permissive("x.air"),)))
    rig.drive(CLEAR)
    rig.plant.memory["x.air"] = False
    rig.scan()
    with pytest.raises(CommandRejected, match=r"Reset refused: x\.air is missing"):
        rig.scan(RESET)
    rig.plant.memory["x.air"] = True
    rig.scan()
    rig.drive(RESET, START)
    rig.plant.memory["x.air"] = False
    for _ in range(5):
        assert rig.scan() is State.EXECUTE


def test_why_not_start_names_the_way_and_every_obstacle() -> None:
    rig, _ = rig_of(interlocked(("x.ok", "abort"), ("x.door", "hold")))
    rig.station.line_block = lambda t: "no recipe" if t is START else ""
    rig.plant.memory |= {"x.ok": False, "x.door": False}
    rig.scan()
    reasons = rig.station.why_not_start()
    assert reasons[0] == "x is Aborted: give Clear, then Reset, then Start"
    assert [any(part in r for r in reasons) for part in ("x.ok is lost", "x.door is lost", "no recipe")] == [True] * 3
    assert len(reasons) == len(set(reasons)) == 4
    rig.plant.memory |= {"x.ok": True, "x.door": True}
    rig.scan()
    rig.station.line_block = lambda _: ""
    rig.drive(CLEAR, RESET)
    assert rig.station.why_not_start() == []
    rig.drive(START)
    assert rig.station.why_not_start() == []


# --- sequences


def test_a_time_limit_raises_its_alarm_and_acts_and_the_state_does_not_complete() -> None:
    rig, pump = rig_of()
    rig.plant.programs.clear()
    rig.drive(CLEAR, RESET)
    rig.scan(START)
    rig.until(State.ABORTED)
    assert "Execute" not in rig.visited()
    assert rig.active() == ["x.does_not_start: x running: not within 1 s"]
    assert rig.station.first_out == "x running: not within 1 s"
    assert pump.log == ["starting", "starting left"]
    rig.drive(CLEAR)
    assert rig.active() == []
    assert rig.station.first_out == ""


@pytest.mark.parametrize("state", ["holding", "stopping"])
def test_a_failed_acting_state_never_completes_nor_stays_for_ever(state: str) -> None:
    rig, pump = rig_of()
    rig.drive(*UP)
    pump.break_in = state
    rig.scan(HOLD if state == "holding" else STOP)
    pump_end = State.STOPPED if state == "holding" else State.ABORTED  # hold → stop; stop → abort
    rig.until(pump_end)
    way = ["Holding", "Stopping", "Stopped"] if state == "holding" else ["Stopping", "Aborting", "Aborted"]
    assert rig.visited()[6:] == way
    rig.scan()
    assert rig.plant.memory["x.run"] is False
    assert len(rig.active()) == 1


def test_aborting_that_fails_still_ends_in_aborted_with_its_alarm() -> None:
    rig, pump = rig_of()
    rig.drive(*UP)
    pump.break_in = "aborting"
    rig.scan(ABORT)
    rig.until(State.ABORTED)
    assert rig.active() == ["x.does_not_abort: x safe: not within 0.5 s"]


def test_safe_outputs_are_wanted_in_the_very_scan_of_the_abort() -> None:
    rig, pump = rig_of(interlocked(("x.ok", "abort")))
    rig.drive(*UP)
    pump.break_in = "aborting"  # it stays in Aborting for a while
    rig.plant.memory["x.ok"] = False
    assert rig.scan() is State.ABORTING
    rig.plant.tick(rig._outputs)
    assert rig.plant.memory["x.run"] is False


def test_leaving_a_state_runs_its_finally() -> None:
    rig, pump = rig_of()
    rig.drive(*UP)
    rig.scan()
    rig.scan(STOP)
    assert pump.log[-1] == "execute left"


@pytest.mark.parametrize("where", ["execute", "watch", "close", "steps"])
def test_a_software_fault_aborts_the_station_and_is_alarmed(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rig, pump = rig_of()
    if where == "close":
        rig.plant.programs.clear()
        rig.drive(CLEAR, RESET)
        pump.break_close = True
        rig.scan(START)
        rig.scan(STOP)
    else:
        rig.drive(*UP)
        pump.break_in, pump.break_watch = where, where == "watch"
        if where == "steps":
            monkeypatch.setattr(pump, "holding", lambda: 1 / 0)
            rig.scan(HOLD)
        else:
            rig.scan()
    rig.until(State.ABORTED, 2)
    assert len(rig.active()) == 1
    assert rig.active()[0].startswith("x.internal_error: software fault in x: ZeroDivisionError")
    rig.scan()
    assert rig.plant.memory["x.run"] is False
    changes = len(rig.alarm_changes)
    for _ in range(5):
        rig.scan()
    assert len(rig.alarm_changes) == changes


def test_a_bad_input_in_a_step_aborts_and_names_it() -> None:
    rig, _ = rig_of()
    rig.drive(*UP)
    rig.plant.bad["x.running"] = "wire break"
    rig.until(State.ABORTED, 2)
    assert rig.active() == ["x.bad_input: x.running is BAD: wire break; the step in progress needs it"]


# --- alarms


def alarmed(action: str, plc_latched: bool = False, on_delay_ns: int = 0) -> tuple[StationRig, Pump]:
    rig, pump = rig_of()
    spec = AlarmSpec("fault", "fault of x", action=action, plc_latched=plc_latched, on_delay_ns=on_delay_ns)
    rig.station.parts.alarm_rules = (rig.rule(spec, rig.plant.condition("x.fault")),)
    return rig, pump


def test_an_alarm_acts_after_its_delay_and_bars_recovery_while_active() -> None:
    rig, _ = alarmed("hold", on_delay_ns=300 * MS)
    rig.drive(*UP)
    rig.plant.memory["x.fault"] = True
    assert [rig.scan() for _ in range(3)] == [State.EXECUTE] * 3
    assert rig.scan() is State.HOLDING
    rig.until(State.HELD)
    with pytest.raises(CommandRejected, match="alarm fault is active: fault of x"):
        rig.scan(UNHOLD)
    rig.plant.memory["x.fault"] = False
    rig.scan()
    rig.drive(UNHOLD)


def test_an_alarm_without_action_changes_nothing() -> None:
    rig, _ = alarmed("none")
    rig.drive(*UP)
    rig.plant.memory["x.fault"] = True
    for _ in range(5):
        assert rig.scan() is State.EXECUTE
    assert rig.active() == ["x.fault: fault of x"]


@pytest.mark.parametrize("action", ["hold", "stop", "abort"])
def test_what_the_plc_latches_does_not_bar_the_commands_whose_sequences_reset_it(action: str) -> None:
    rig, _ = alarmed(action, plc_latched=True)
    rig.drive(*UP)
    rig.plant.memory["x.fault"] = True
    rig.scan()
    end = {"hold": State.HELD, "stop": State.STOPPED, "abort": State.ABORTED}[action]
    if rig.state is not end:
        rig.until(end)
    way = {"hold": (UNHOLD,), "stop": (RESET, START), "abort": (CLEAR, RESET, START)}[action]
    rig.scan(way[0])
    assert rig.state is not end
    rig.plant.memory["x.fault"] = False  # the sequence did it
    rig.until({UNHOLD: State.EXECUTE, RESET: State.IDLE, CLEAR: State.STOPPED}[way[0]])
    rig.drive(*way[1:])
    assert rig.state is State.EXECUTE


def test_a_latched_fault_that_the_sequence_did_not_reset_trips_again() -> None:
    rig, _ = alarmed("hold", plc_latched=True)
    rig.drive(*UP)
    rig.plant.memory["x.fault"] = True
    rig.until(State.HELD)
    seen = len(rig.visited())
    rig.scan(UNHOLD)
    rig.until(State.HELD, 5)
    assert rig.visited()[seen:] == ["Unholding", "Execute", "Holding", "Held"]
    assert rig.station.first_out == "fault of x"


# --- starved and blocked


def flowing() -> tuple[StationRig, Pump]:
    return rig_of(
        lambda plant: Parts(
            starved=plant.condition("x.starved"), blocked=plant.condition("x.blocked"), suspend_delay_ns=300 * MS
        )
    )


@pytest.mark.parametrize("cause", ["starved", "blocked"])
def test_suspends_and_resumes_by_itself_after_the_delay(cause: str) -> None:
    rig, _ = flowing()
    rig.drive(*UP)
    rig.plant.memory[f"x.{cause}"] = True
    assert [rig.scan() for _ in range(3)] == [State.EXECUTE] * 3
    rig.until(State.SUSPENDED, 3)
    assert cause in rig.station.stop_reason
    assert getattr(rig.station, cause)
    rig.plant.memory[f"x.{cause}"] = False
    assert [rig.scan() for _ in range(2)] == [State.SUSPENDED] * 2
    rig.until(State.EXECUTE, 5)
    assert rig.station.stop_reason == ""


def test_a_flicker_does_not_suspend_and_the_unknown_does_not_resume() -> None:
    rig, _ = flowing()
    rig.drive(*UP)
    for n in range(12):
        rig.plant.memory["x.starved"] = n % 3 != 2
        assert rig.scan() is State.EXECUTE
    rig.plant.memory["x.starved"] = True
    rig.until(State.SUSPENDED)
    rig.plant.bad["x.starved"] = "NaN"
    for _ in range(10):
        assert rig.scan() is State.SUSPENDED


def test_does_not_resume_from_a_person_s_suspend_nor_against_an_obstacle() -> None:
    rig, _ = flowing()
    rig.drive(*UP)
    rig.scan(Trigger.SUSPEND)
    for _ in range(10):
        rig.scan()
    assert rig.state is State.SUSPENDED
    rig.scan(Trigger.UNSUSPEND)
    rig.until(State.EXECUTE)
    rig.plant.memory["x.starved"] = True
    rig.until(State.SUSPENDED)
    rig.station.line_block = lambda t: "the recipe is not in force" if t is Trigger.UNSUSPEND else ""
    rig.plant.memory["x.starved"] = False
    for _ in range(10):
        assert rig.scan() is State.SUSPENDED
    rig.station.line_block = lambda _: ""
    rig.until(State.EXECUTE, 4)


def test_a_bug_in_what_a_kind_has_against_a_command_bars_the_station_only(monkeypatch: pytest.MonkeyPatch) -> None:
    rig, pump = rig_of()
    monkeypatch.setattr(pump, "obstacles", lambda trigger: 1 / 0)
    with pytest.raises(CommandRejected, match="software fault in x: ZeroDivisionError"):
        rig.scan(CLEAR)
    assert "software fault" in "; ".join(rig.station.why_not_start())
    assert rig.scan() is State.ABORTED


# --- commands


def test_stop_and_start_in_one_scan_stop_wins() -> None:
    rig, _ = rig_of()
    rig.drive(CLEAR, RESET)
    with pytest.raises(CommandRejected, match="Start is not possible in Stopping"):
        rig.scan(STOP, START)
    rig.until(State.STOPPED)
    assert "Starting" not in rig.visited()
    assert rig.plant.memory["x.run"] is False


def test_a_refused_command_changes_nothing() -> None:
    rig, _ = rig_of()
    events = len(rig.events)
    with pytest.raises(CommandRejected, match="x: Start is not possible in Aborted; possible now: Clear"):
        rig.scan(START)
    assert (rig.state, len(rig.events)) == (State.ABORTED, events)


@pytest.mark.parametrize("wish", ["hold", "stop", "abort"])
def test_what_the_equipment_asks_for_is_followed_and_escalates(wish: str) -> None:
    rig, pump = rig_of(options=Options(hold_from_suspended=False))
    rig.drive(*UP)
    rig.scan(Trigger.SUSPEND)
    rig.until(State.SUSPENDED)
    pump.wish = (wish, "its own will")
    rig.scan()
    pump.wish = None
    assert rig.state in (State.STOPPING, State.ABORTED)
    assert rig.station.first_out == "its own will"


def test_first_scan_makes_outputs_safe_and_time_in_state_counts() -> None:
    rig, _ = rig_of()
    assert ("x.run", False) in [(t, v) for t, v in rig._outputs.items()]
    before = rig.station.machine.time_in_state_ns(rig.plant.now)
    for _ in range(10):
        rig.scan()
    assert rig.station.machine.time_in_state_ns(rig.plant.now) - before == S
