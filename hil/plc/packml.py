"""PackML inside a PLC: state and command numbers and the transition table of ISA-TR88.00.02 (2015 core, Hold from
Suspended and Complete from Execute included). Written down here anew, so that the controller's table is checked
against another one.
"""

from __future__ import annotations

(
    CLEARING, STOPPED, STARTING, IDLE, SUSPENDED, EXECUTE, STOPPING, ABORTING, ABORTED, HOLDING, HELD, UNHOLDING,
    SUSPENDING, UNSUSPENDING, RESETTING, COMPLETING, COMPLETE,
) = range(1, 18)  # fmt: skip

RESET, START, STOP, HOLD, UNHOLD, SUSPEND, UNSUSPEND, ABORT, CLEAR, TO_COMPLETE = range(1, 11)

DONE = {
    CLEARING: STOPPED, STARTING: EXECUTE, STOPPING: STOPPED, ABORTING: ABORTED, HOLDING: HELD, UNHOLDING: EXECUTE,
    SUSPENDING: SUSPENDED, UNSUSPENDING: EXECUTE, RESETTING: IDLE, COMPLETING: COMPLETE,
}  # fmt: skip
"""Acting state -> the state entered when it is complete."""

_STOPPABLE = set(range(1, 18)) - {CLEARING, STOPPED, STOPPING, ABORTING, ABORTED}
_ABORTABLE = set(range(1, 18)) - {ABORTING, ABORTED}
COMMANDS: dict[tuple[int, int], int] = {
    (STOPPED, RESET): RESETTING,
    (COMPLETE, RESET): RESETTING,
    (IDLE, START): STARTING,
    (EXECUTE, HOLD): HOLDING,
    (SUSPENDED, HOLD): HOLDING,
    (HELD, UNHOLD): UNHOLDING,
    (EXECUTE, SUSPEND): SUSPENDING,
    (SUSPENDED, UNSUSPEND): UNSUSPENDING,
    (EXECUTE, TO_COMPLETE): COMPLETING,
    (ABORTED, CLEAR): CLEARING,
    **{(state, STOP): STOPPING for state in _STOPPABLE},
    **{(state, ABORT): ABORTING for state in _ABORTABLE},
}
"""(state, command) -> the state entered; a pair that is not here is refused."""
