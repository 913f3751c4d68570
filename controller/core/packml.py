"""The PackML state machine (ISA-TR88.00.02), as one table.

Rule 1: everything that changes a unit's state is in this file. The table says what is possible; the
:class:`Machine` runs it on the ``transitions`` library and adds what the table cannot say: modes that lack
states, when the mode may change, and the time spent in each state.

The table is the 2015 core. What the editions leave open is an :class:`Options` choice
(docs/decisions/0004-packml-edition.md):

* Hold from Suspended (2015 optional, 2022 core): on by default;
* Hold from Starting, Unholding, Suspending, Unsuspending: off;
* Complete from Held and Suspended (2022): off;
* Execute left by state-complete (drawn in 2008/2015): off; Execute is left by the Complete command.

Stop and Abort win over state-complete and over other commands of the same scan; the order in which the scan
fires triggers sees to that. A disabled acting state is skipped: its wait state is entered at once.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import transitions

from controller.core.commands import CommandRejected


class State(enum.IntEnum):
    """The 17 states with their TR88 numbers (StateCurrent)."""

    CLEARING = 1
    STOPPED = 2
    STARTING = 3
    IDLE = 4
    SUSPENDED = 5
    EXECUTE = 6
    STOPPING = 7
    ABORTING = 8
    ABORTED = 9
    HOLDING = 10
    HELD = 11
    UNHOLDING = 12
    SUSPENDING = 13
    UNSUSPENDING = 14
    RESETTING = 15
    COMPLETING = 16
    COMPLETE = 17

    @property
    def text(self) -> str:
        """The state's name as people write it."""
        return self.name.capitalize()


class Trigger(enum.IntEnum):
    """The ten commands with their TR88 numbers (CntrlCmd), and state-complete."""

    RESET = 1
    START = 2
    STOP = 3
    HOLD = 4
    UNHOLD = 5
    SUSPEND = 6
    UNSUSPEND = 7
    ABORT = 8
    CLEAR = 9
    COMPLETE = 10
    STATE_COMPLETE = 99

    @property
    def text(self) -> str:
        """The command's name as people write it."""
        return "state complete" if self is Trigger.STATE_COMPLETE else self.name.capitalize()


S, T = State, Trigger
COMMANDS = tuple(t for t in Trigger if t is not T.STATE_COMPLETE)
COMMAND_BY_NAME = {t.name.lower(): t for t in COMMANDS}

ACTING = frozenset({
    S.CLEARING, S.STARTING, S.STOPPING, S.ABORTING, S.HOLDING, S.UNHOLDING, S.SUSPENDING, S.UNSUSPENDING,
    S.RESETTING, S.COMPLETING,
})  # fmt: skip
"""States that end by state-complete. Execute is dual: it acts, and waits for a command."""

MANDATORY = frozenset({S.STOPPED, S.IDLE, S.EXECUTE, S.ABORTED})
"""States that no mode may lack."""

Table = Mapping[State, Mapping[Trigger, State]]

_STOP_ABORT = {T.STOP: S.STOPPING, T.ABORT: S.ABORTING}

CORE: Table = {
    S.CLEARING: {T.ABORT: S.ABORTING, T.STATE_COMPLETE: S.STOPPED},
    S.STOPPED: {T.RESET: S.RESETTING, T.ABORT: S.ABORTING},
    S.STARTING: {**_STOP_ABORT, T.STATE_COMPLETE: S.EXECUTE},
    S.IDLE: {T.START: S.STARTING, **_STOP_ABORT},
    S.SUSPENDED: {T.UNSUSPEND: S.UNSUSPENDING, **_STOP_ABORT},
    S.EXECUTE: {T.HOLD: S.HOLDING, T.SUSPEND: S.SUSPENDING, T.COMPLETE: S.COMPLETING, **_STOP_ABORT},
    S.STOPPING: {T.ABORT: S.ABORTING, T.STATE_COMPLETE: S.STOPPED},
    S.ABORTING: {T.STATE_COMPLETE: S.ABORTED},
    S.ABORTED: {T.CLEAR: S.CLEARING},
    S.HOLDING: {**_STOP_ABORT, T.STATE_COMPLETE: S.HELD},
    S.HELD: {T.UNHOLD: S.UNHOLDING, **_STOP_ABORT},
    S.UNHOLDING: {**_STOP_ABORT, T.STATE_COMPLETE: S.EXECUTE},
    S.SUSPENDING: {**_STOP_ABORT, T.STATE_COMPLETE: S.SUSPENDED},
    S.UNSUSPENDING: {**_STOP_ABORT, T.STATE_COMPLETE: S.EXECUTE},
    S.RESETTING: {**_STOP_ABORT, T.STATE_COMPLETE: S.IDLE},
    S.COMPLETING: {**_STOP_ABORT, T.STATE_COMPLETE: S.COMPLETE},
    S.COMPLETE: {T.RESET: S.RESETTING, **_STOP_ABORT},
}
"""The 2015 core without any optional transition."""


@dataclass(frozen=True, slots=True)
class Options:
    """What the editions of the standard leave to the user."""

    hold_from_suspended: bool = True
    hold_from_acting: bool = False
    complete_from_held: bool = False
    complete_from_suspended: bool = False
    execute_state_complete: bool = False

    @classmethod
    def edition_2022(cls) -> Options:
        """TR88.00.02-2022: Hold from Suspended, Complete from Held and Suspended."""
        return cls(complete_from_held=True, complete_from_suspended=True)

    def table(self) -> Table:
        """The core plus the chosen options."""
        extra: list[tuple[State, Trigger, State]] = []
        if self.hold_from_suspended:
            extra.append((S.SUSPENDED, T.HOLD, S.HOLDING))
        if self.hold_from_acting:
            acting = (S.STARTING, S.UNHOLDING, S.SUSPENDING, S.UNSUSPENDING)
            extra.extend((s, T.HOLD, S.HOLDING) for s in acting)
        if self.complete_from_held:
            extra.append((S.HELD, T.COMPLETE, S.COMPLETING))
        if self.complete_from_suspended:
            extra.append((S.SUSPENDED, T.COMPLETE, S.COMPLETING))
        if self.execute_state_complete:
            extra.append((S.EXECUTE, T.STATE_COMPLETE, S.COMPLETING))
        table = {state: dict(row) for state, row in CORE.items()}
        for source, trigger, target in extra:
            table[source][trigger] = target
        return table


@dataclass(frozen=True, slots=True)
class Mode:
    """A unit mode: number 1..31, name, the states it lacks, and the states in which it may be entered or left.

    1 Production has the whole model; 2 Maintenance, 3 Manual; 4..31 are the user's.
    ``change_in`` defaults to Stopped, Idle and Aborted.
    """

    number: int
    name: str
    disabled: frozenset[State] = frozenset()
    change_in: frozenset[State] = frozenset({S.STOPPED, S.IDLE, S.ABORTED})

    def __post_init__(self) -> None:
        if not 1 <= self.number <= 31:
            raise ValueError(f"mode {self.name}: number {self.number} is not in 1..31")
        if self.disabled & MANDATORY:
            names = ", ".join(sorted(s.text for s in self.disabled & MANDATORY))
            raise ValueError(f"mode {self.name} cannot lack {names}: every mode has them")
        if self.number == 1 and self.disabled:
            raise ValueError("mode Production has the whole model; define another mode to drop states")
        for state in ACTING - self.disabled:
            target = CORE[state][T.STATE_COMPLETE]
            if target in self.disabled:
                raise ValueError(
                    f"mode {self.name} has {state.text} but not {target.text}, which {state.text} ends in; "
                    f"drop both or keep both"
                )


PRODUCTION = Mode(1, "production")
MAINTENANCE = Mode(2, "maintenance")
MANUAL = Mode(3, "manual", frozenset({
    S.SUSPENDING, S.SUSPENDED, S.UNSUSPENDING, S.HOLDING, S.HELD, S.UNHOLDING, S.COMPLETING, S.COMPLETE,
}))  # fmt: skip
STANDARD_MODES = (PRODUCTION, MAINTENANCE, MANUAL)


class _Model:
    """What ``transitions`` hangs the state on."""

    state: str


class Machine:
    """One unit's PackML state, its mode, and the time spent in each.

    It never decides by itself: :meth:`fire` is called by the scan. It starts in Aborted, so that after any
    restart a person (or a line command) has to decide.
    """

    def __init__(
        self,
        options: Options | None = None,
        modes: Iterable[Mode] = STANDARD_MODES,
        *,
        state: State = S.ABORTED,
        now_ns: int = 0,
    ) -> None:
        self._table = (options or Options()).table()
        self.modes = {m.name: m for m in modes}
        if len({m.number for m in self.modes.values()}) != len(self.modes):
            raise ValueError("two unit modes have the same number")
        self.mode = self.modes.get("production", next(iter(self.modes.values())))
        self.state = state
        self.entered_ns = now_ns
        self.times_ns: dict[tuple[int, State], int] = {}
        self._model = _Model()
        self._machine: Any = transitions.Machine(
            model=self._model,
            states=[s.name for s in State],
            initial=state.name,
            transitions=[
                [trigger.name, source.name, target.name]
                for source, row in self._table.items()
                for trigger, target in row.items()
            ],
            auto_transitions=False,
            send_event=False,
        )

    def begin(self, now_ns: int) -> None:
        """Times count from here: the first scan."""
        self.entered_ns = now_ns

    def target(self, trigger: Trigger) -> State | None:
        """Where ``trigger`` would lead now (skipping disabled acting states), or ``None`` if refused."""
        target = self._table[self.state].get(trigger)
        while target is not None and target in self.mode.disabled:
            target = self._table[target].get(T.STATE_COMPLETE) if target in ACTING else None
        return target

    def possible(self) -> list[Trigger]:
        """The commands that are legal now."""
        return [t for t in COMMANDS if self.target(t) is not None]

    def refusal(self, trigger: Trigger) -> str:
        """Why ``trigger`` is refused now, in words; empty if it is legal."""
        if self.target(trigger) is not None:
            return ""
        in_table = self._table[self.state].get(trigger)
        possible = ", ".join(t.text for t in self.possible()) or "nothing but waiting"
        if in_table is not None:
            why = f"mode {self.mode.name} has no {in_table.text}"
            return f"{trigger.text} is not possible in {self.state.text}: {why}; possible now: {possible}"
        return f"{trigger.text} is not possible in {self.state.text}; possible now: {possible}"

    def fire(self, trigger: Trigger, now_ns: int) -> State:
        """Take a command or state-complete. Returns the new state.

        Raises :class:`CommandRejected` if it is illegal in this state and mode; then nothing has changed.
        """
        target = self.target(trigger)
        if target is None:
            raise CommandRejected(self.refusal(trigger))
        self._machine.events[trigger.name].trigger(self._model)
        for _ in State:
            if State[self._model.state] is target:
                break
            self._machine.events[T.STATE_COMPLETE.name].trigger(self._model)
        assert State[self._model.state] is target, f"{self.state} --{trigger.name}--> {self._model.state}, not {target}"
        self._account(now_ns)
        self.state = target
        return target

    def mode_refusal(self, name: str) -> str:
        """Why the mode cannot change to ``name`` now, in words; empty if it can."""
        mode = self.modes.get(name)
        if mode is None:
            return f"there is no mode {name!r}; modes are {', '.join(self.modes)}"
        if mode is self.mode:
            return ""
        if self.state not in self.mode.change_in or self.state not in mode.change_in:
            allowed = ", ".join(s.text for s in sorted(self.mode.change_in & mode.change_in)) or "no state"
            return f"mode {self.mode.name} cannot change to {name} in {self.state.text}; it can in {allowed}"
        return f"mode {name} has no {self.state.text}" if self.state in mode.disabled else ""

    def set_mode(self, name: str, now_ns: int) -> None:
        """Change the unit mode. Raises :class:`CommandRejected` with the reason; then nothing has changed."""
        refusal = self.mode_refusal(name)
        if refusal:
            raise CommandRejected(refusal)
        self._account(now_ns)
        self.mode = self.modes[name]

    def time_in_state_ns(self, now_ns: int) -> int:
        """Time since the present state was entered."""
        return now_ns - self.entered_ns

    def total_ns(self, mode: Mode, state: State, now_ns: int) -> int:
        """Time spent in ``state`` of ``mode`` since start-up, the present stay included."""
        total = self.times_ns.get((mode.number, state), 0)
        if mode is self.mode and state is self.state:
            total += now_ns - self.entered_ns
        return total

    def _account(self, now_ns: int) -> None:
        key = (self.mode.number, self.state)
        self.times_ns[key] = self.times_ns.get(key, 0) + now_ns - self.entered_ns
        self.entered_ns = now_ns
