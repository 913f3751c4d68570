"""The PackML machine against the table of ISA-TR88.00.02, written out here once more."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from controller.core.commands import CommandRejected
from controller.core.packml import MAINTENANCE, MANUAL, PRODUCTION, Machine, Mode, Options, State, Trigger

COLUMNS = ("reset", "start", "stop", "hold", "unhold", "suspend", "unsuspend", "abort", "clear", "complete",
           "state_complete")  # fmt: skip
TABLE = """
Clearing     (1)  |           |          |          |         |           |            |              | Aborting |          |            | Stopped
Stopped      (2)  | Resetting |          |          |         |           |            |              | Aborting |          |            |
Starting     (3)  |           |          | Stopping | b       |           |            |              | Aborting |          |            | Execute
Idle         (4)  |           | Starting | Stopping |         |           |            |              | Aborting |          |            |
Suspended    (5)  |           |          | Stopping | a       |           |            | Unsuspending | Aborting |          | d          |
Execute      (6)  |           |          | Stopping | Holding |           | Suspending |              | Aborting |          | Completing | c
Stopping     (7)  |           |          |          |         |           |            |              | Aborting |          |            | Stopped
Aborting     (8)  |           |          |          |         |           |            |              |          |          |            | Aborted
Aborted      (9)  |           |          |          |         |           |            |              |          | Clearing |            |
Holding      (10) |           |          | Stopping |         |           |            |              | Aborting |          |            | Held
Held         (11) |           |          | Stopping |         | Unholding |            |              | Aborting |          | e          |
Unholding    (12) |           |          | Stopping | b       |           |            |              | Aborting |          |            | Execute
Suspending   (13) |           |          | Stopping | b       |           |            |              | Aborting |          |            | Suspended
Unsuspending (14) |           |          | Stopping | b       |           |            |              | Aborting |          |            | Execute
Resetting    (15) |           |          | Stopping |         |           |            |              | Aborting |          |            | Idle
Completing   (16) |           |          | Stopping |         |           |            |              | Aborting |          |            | Complete
Complete     (17) | Resetting |          | Stopping |         |           |            |              | Aborting |          |            |
"""  # noqa: E501
FOOTNOTES = {"a": "Holding", "b": "Holding", "c": "Completing", "d": "Completing", "e": "Completing"}
COMMAND_NUMBERS = {
    "reset": 1, "start": 2, "stop": 3, "hold": 4, "unhold": 5, "suspend": 6, "unsuspend": 7, "abort": 8, "clear": 9,
    "complete": 10,
}  # fmt: skip
CHOICES = {
    "default": (Options(), "a"),
    "bare 2015 core": (Options(hold_from_suspended=False), ""),
    "hold from acting": (Options(hold_from_suspended=False, hold_from_acting=True), "b"),
    "execute by state complete": (Options(hold_from_suspended=False, execute_state_complete=True), "c"),
    "complete from suspended": (Options(hold_from_suspended=False, complete_from_suspended=True), "d"),
    "complete from held": (Options(hold_from_suspended=False, complete_from_held=True), "e"),
    "2022": (Options.edition_2022(), "ade"),
    "everything": (Options(True, True, True, True, True), "abcde"),
}


def expected(footnotes: str) -> dict[tuple[State, Trigger], State | None]:
    cells: dict[tuple[State, Trigger], State | None] = {}
    for line in TABLE.strip().splitlines():
        head, *row = (cell.strip() for cell in line.split("|"))
        name, number = head.split()
        source = State(int(number.strip("()")))
        assert source.text == name
        for column, cell in zip(COLUMNS, row, strict=True):
            if cell in FOOTNOTES:
                cell = FOOTNOTES[cell] if cell in footnotes else ""  # noqa: PLW2901
            cells[source, Trigger[column.upper()]] = State[cell.upper()] if cell else None
    return cells


def test_numbers() -> None:
    assert {t.name.lower(): t.value for t in Trigger if t is not Trigger.STATE_COMPLETE} == COMMAND_NUMBERS
    assert sorted(State) == list(range(1, 18))


@pytest.mark.parametrize("choice", CHOICES)
def test_every_cell(choice: str) -> None:
    options, footnotes = CHOICES[choice]
    cells = expected(footnotes)
    assert len(cells) == 17 * 11
    for (source, trigger), target in cells.items():
        machine = Machine(options, state=source, now_ns=5)
        assert machine.target(trigger) is target, (source, trigger)
        if target is not None:
            assert machine.refusal(trigger) == ""
            assert machine.fire(trigger, 9) is target
            assert (machine.state, machine.entered_ns) == (target, 9)
            continue
        possible = [t.text for (s, t), end in cells.items() if s is source and end and t is not Trigger.STATE_COMPLETE]
        with pytest.raises(CommandRejected) as refused:
            machine.fire(trigger, 9)
        text = str(refused.value)
        assert source.text in text
        assert trigger.text in text
        assert (", ".join(p for p in COMMANDS_IN_ORDER if p in possible) or "nothing but waiting") in text
        assert (machine.state, machine.entered_ns, machine.times_ns) == (source, 5, {})


COMMANDS_IN_ORDER = [n.capitalize() for n in COMMAND_NUMBERS]


def test_starts_aborted() -> None:
    assert Machine().state is State.ABORTED


# --- modes


def test_a_disabled_acting_state_is_skipped() -> None:
    mode = Mode(4, "quick", frozenset({State.STARTING, State.RESETTING, State.STOPPING}))
    machine = Machine(modes=(PRODUCTION, mode), state=State.STOPPED)
    machine.set_mode("quick", 1)
    assert machine.fire(Trigger.RESET, 2) is State.IDLE
    assert machine.fire(Trigger.START, 3) is State.EXECUTE
    assert machine.fire(Trigger.STOP, 4) is State.STOPPED


def test_a_command_into_a_missing_wait_state_is_refused_with_the_mode_named() -> None:
    machine = Machine(state=State.IDLE)
    machine.set_mode("manual", 1)
    machine.fire(Trigger.START, 2)
    machine.fire(Trigger.STATE_COMPLETE, 3)
    assert machine.state is State.EXECUTE
    for trigger in (Trigger.HOLD, Trigger.SUSPEND, Trigger.COMPLETE):
        with pytest.raises(CommandRejected, match=r"in Execute: mode manual has no .*possible now: Stop, Abort$"):
            machine.fire(trigger, 4)
    assert machine.state is State.EXECUTE


@pytest.mark.parametrize("state", [State.STOPPED, State.IDLE, State.EXECUTE, State.ABORTED])
def test_no_mode_may_lack_the_mandatory_states(state: State) -> None:
    with pytest.raises(ValueError, match=state.text):
        Mode(4, "broken", frozenset({state}))


@pytest.mark.parametrize("state", [State.HELD, State.STARTING, State.COMPLETE])
def test_production_must_be_whole(state: State) -> None:
    with pytest.raises(ValueError, match="Production has the whole model"):
        Mode(1, "produce", frozenset({state}))


def test_an_acting_state_cannot_outlive_its_wait_state() -> None:
    with pytest.raises(ValueError, match="Holding but not Held"):
        Mode(4, "half", frozenset({State.HELD}))


@pytest.mark.parametrize("number", [0, 32, -1])
def test_mode_numbers(number: int) -> None:
    with pytest.raises(ValueError, match=r"not in 1\.\.31"):
        Mode(number, "off")


def test_two_modes_with_one_number() -> None:
    with pytest.raises(ValueError, match="same number"):
        Machine(modes=(PRODUCTION, Mode(4, "x"), Mode(4, "y")))


@pytest.mark.parametrize("state", list(State))
def test_mode_changes_only_in_stopped_idle_aborted(state: State) -> None:
    machine = Machine(state=state)
    if state in (State.STOPPED, State.IDLE, State.ABORTED):
        machine.set_mode("maintenance", 7)
        assert machine.mode is MAINTENANCE
    else:
        with pytest.raises(CommandRejected, match=f"{state.text}; it can in Stopped, Idle, Aborted"):
            machine.set_mode("maintenance", 7)
        assert machine.mode is PRODUCTION


def test_mode_change_needs_the_state_in_both_modes() -> None:
    narrow = Mode(5, "clean", change_in=frozenset({State.STOPPED}))
    machine = Machine(modes=(PRODUCTION, narrow), state=State.IDLE)
    with pytest.raises(CommandRejected, match="it can in Stopped"):
        machine.set_mode("clean", 1)  # the new one forbids it
    machine.fire(Trigger.STOP, 2)
    machine.fire(Trigger.STATE_COMPLETE, 3)
    machine.set_mode("clean", 4)
    machine.fire(Trigger.RESET, 5)
    machine.fire(Trigger.STATE_COMPLETE, 6)
    with pytest.raises(CommandRejected, match="clean cannot change to production in Idle"):
        machine.set_mode("production", 7)  # the old one forbids it


def test_unknown_mode_names_the_modes() -> None:
    with pytest.raises(CommandRejected, match="production, maintenance, manual"):
        Machine().set_mode("nonsense", 1)


# --- random walks

WALK = (PRODUCTION, MAINTENANCE, MANUAL, Mode(7, "short", frozenset({State.STARTING, State.CLEARING})))


class Walk(RuleBasedStateMachine):
    """Whatever is asked for, the machine stays in the table, and every nanosecond is in one (mode, state)."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0
        self.machine = Machine(Options.edition_2022(), WALK)
        self.cells = expected("ade")
        self.stays: dict[tuple[int, State], int] = {}

    def wait(self, ns: int) -> None:
        key = (self.machine.mode.number, self.machine.state)
        self.stays[key] = self.stays.get(key, 0) + ns
        self.now += ns

    @rule(trigger=st.sampled_from(list(Trigger)), ns=st.integers(0, 10**12))
    def ask(self, trigger: Trigger, ns: int) -> None:
        self.wait(ns)
        before = self.machine.state
        in_table = self.cells[before, trigger]
        try:
            after = self.machine.fire(trigger, self.now)
        except CommandRejected:
            assert self.machine.state is before
            assert in_table is None or in_table in self.machine.mode.disabled
        else:
            assert in_table is not None
            assert after is in_table or in_table in self.machine.mode.disabled

    @precondition(lambda self: self.machine.possible())
    @rule(data=st.data(), ns=st.integers(0, 10**12))
    def go_on(self, data: st.DataObject, ns: int) -> None:
        self.wait(ns)
        trigger = data.draw(st.sampled_from(self.machine.possible()))
        self.machine.fire(trigger, self.now)

    @rule(mode=st.sampled_from([m.name for m in WALK]), ns=st.integers(0, 10**12))
    def change_mode(self, mode: str, ns: int) -> None:
        self.wait(ns)
        if self.machine.state in (State.STOPPED, State.IDLE, State.ABORTED):
            self.machine.set_mode(mode, self.now)
            assert self.machine.mode.name == mode
        elif mode != self.machine.mode.name:
            with pytest.raises(CommandRejected):
                self.machine.set_mode(mode, self.now)

    @invariant()
    def state_is_one_that_the_mode_has(self) -> None:
        assert self.machine.state not in self.machine.mode.disabled

    @invariant()
    def abort_and_stop_are_never_out_of_reach(self) -> None:
        state = self.machine.state
        assert (self.machine.target(Trigger.ABORT) is None) == (state in (State.ABORTING, State.ABORTED))
        no_stop = {State.CLEARING, State.STOPPED, State.STOPPING, State.ABORTING, State.ABORTED}
        assert (self.machine.target(Trigger.STOP) is None) == (state in no_stop)

    @invariant()
    def times_add_up(self) -> None:
        total = 0
        for mode in WALK:
            for state in State:
                spent = self.machine.total_ns(mode, state, self.now)
                assert spent == self.stays.get((mode.number, state), 0)
                total += spent
        assert total == self.now


TestWalk = Walk.TestCase
TestWalk.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)
