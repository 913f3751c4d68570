"""A station whose PLC runs PackML itself: follow its state, hand it commands, check that both agree.

Commands go through a handshake: ``cntrl_cmd`` is written and read back, then a new ``cmd_id``; the PLC takes the
command once per id and answers with the id in ``cmd_ack`` and 1 (accepted), 2 (refused) or 3 (too late, dropped) in
``cmd_result``. Where both are one command block, they are asked for at once and written in one request. However the
handshake ends, ``cntrl_cmd`` goes back to 0, so that a PLC which restarts is not handed an old command again.
"""

from __future__ import annotations

from dataclasses import dataclass

from controller.core.behaviour import Behaviour, Settings
from controller.core.io import IO, Input, Output
from controller.core.packml import State, Trigger
from controller.core.sequence import Fail, Progress, Runner, Steps, Until
from drivers.port import DataType

S, T = State, Trigger


class PackmlIO(IO):
    """PackML state and the command handshake of the PLC (TR88 numbers)."""

    state_current: Input[int]
    cntrl_cmd: Output[int]
    cmd_id: Output[int]
    cmd_ack: Input[int]
    cmd_result: Input[int]


@dataclass(frozen=True, slots=True)
class PackmlSettings(Settings):
    """Limits in seconds for the handshake, for an acting state, and for running empty.

    ``forward_suspend``: whether Suspend and Unsuspend are handed on, or are the line's own bookkeeping only.
    """

    ack_limit_s: float = 3.0
    limit_s: float = 10.0
    empty_limit_s: float = 120.0
    forward_suspend: bool = False


FOLLOW = {
    S.ABORTING: "abort", S.ABORTED: "abort", S.STOPPING: "stop", S.STOPPED: "stop", S.HOLDING: "hold", S.HELD: "hold",
    S.SUSPENDING: "suspend", S.SUSPENDED: "suspend", S.COMPLETING: "complete", S.COMPLETE: "complete",
    S.CLEARING: "stop", S.RESETTING: "stop", S.IDLE: "stop", S.STARTING: "stop",
}  # fmt: skip
"""What our station does when the PLC is found in this state while ours executes."""

UNDER_WAY = {
    T.ABORT: S.ABORTING, T.CLEAR: S.CLEARING, T.STOP: S.STOPPING, T.RESET: S.RESETTING, T.START: S.STARTING,
    T.HOLD: S.HOLDING, T.UNHOLD: S.UNHOLDING, T.SUSPEND: S.SUSPENDING, T.UNSUSPEND: S.UNSUSPENDING,
    T.COMPLETE: S.COMPLETING,
}  # fmt: skip
"""The PLC in this state does what the command would ask for, and would refuse the command."""

NO_COMMAND = 0
ACCEPTED, EXPIRED = 1, 3
LARGEST_ID = {
    DataType.SINT: 0x7F, DataType.USINT: 0xFF, DataType.INT: 0x7FFF, DataType.UINT: 0xFFFF, DataType.DINT: 0x7FFF_FFFF,
    DataType.LINT: (1 << 63) - 1, DataType.ULINT: (1 << 64) - 1, DataType.BCD: 9999, DataType.LBCD: 99_999_999,
}  # fmt: skip
"""By the type of ``cmd_id``; UDINT counts to 2^32 - 1."""
AT_REST = frozenset({S.STOPPED, S.IDLE, S.HELD, S.COMPLETE})
MOVES = frozenset({
    S.STARTING, S.EXECUTE, S.UNHOLDING, S.SUSPENDING, S.SUSPENDED, S.UNSUSPENDING, S.COMPLETING,
})  # fmt: skip


class PackmlPlc(Behaviour):
    """The PLC's machine leads inside its acting states; ours waits for it."""

    IO = PackmlIO
    Settings = PackmlSettings
    io: PackmlIO
    settings: PackmlSettings

    _abort: Runner | None = None
    _complaint = ""
    _followed_suspend = False

    def clearing(self) -> Steps:
        """Clear, unless it is cleared already."""
        yield from self._bring(T.CLEAR, {S.STOPPED}, "abort")

    def resetting(self) -> Steps:
        """Reset to Idle."""
        yield from self._bring(T.RESET, {S.IDLE}, "stop")

    def starting(self) -> Steps:
        """Start to Execute."""
        yield from self._bring(T.START, {S.EXECUTE}, "abort")

    def completing(self) -> Steps:
        """Complete; the PLC runs itself empty."""
        yield from self._bring(T.COMPLETE, {S.COMPLETE}, "stop", self.settings.empty_limit_s)

    def holding(self) -> Steps:
        """Hold."""
        yield from self._bring(T.HOLD, {S.HELD}, "abort")

    def unholding(self) -> Steps:
        """Unhold to Execute."""
        yield from self._bring(T.UNHOLD, {S.EXECUTE}, "stop")

    def suspending(self) -> Steps:
        """Suspend, if the PLC is to know."""
        if self.settings.forward_suspend:
            yield from self._bring(T.SUSPEND, {S.SUSPENDED}, "abort")

    def unsuspending(self) -> Steps:
        """Unsuspend, if the PLC is to know."""
        if self.settings.forward_suspend:
            yield from self._bring(T.UNSUSPEND, {S.EXECUTE}, "abort")

    def stopping(self) -> Steps:
        """Stop."""
        yield from self._bring(T.STOP, {S.STOPPED}, "abort")

    def watch(self, now_ns: int) -> tuple[str, str] | None:
        """Follow what the PLC did by itself; drive it to Aborted as long as ours is and it is not."""
        if not self.io.state_current.ok:
            self._end_abort()
            return None
        plc = self._plc_state()
        if plc is None:
            self._complaint = f"{self.name}: PackML state {self.io.state_current.value} of its PLC is none of 1..17"
            return None if self.state in (S.ABORTING, S.ABORTED) else ("abort", self._complaint)
        ours = self.state
        if ours in (S.ABORTING, S.ABORTED):
            self._drive_abort(plc, now_ns)
            return None
        self._end_abort()
        self._complaint = ""
        reason = f"its PLC went to {plc.text} by itself"
        if plc in (S.ABORTING, S.ABORTED) and ours is not S.CLEARING:
            return "abort", reason
        if ours in AT_REST:
            if plc in MOVES:
                return "abort", reason
            return ("stop", reason) if plc in (S.STOPPING, S.STOPPED) and ours is not S.STOPPED else None
        if ours is S.SUSPENDED:
            if plc is S.EXECUTE and self._followed_suspend:
                return "unsuspend", reason
            if plc in (S.SUSPENDING, S.SUSPENDED):
                return None
        if ours in (S.EXECUTE, S.SUSPENDED) and plc in FOLLOW:
            self._followed_suspend = FOLLOW[plc] == "suspend"
            return FOLLOW[plc], reason
        if ours is S.EXECUTE:
            self._followed_suspend = False
        return None

    def obstacles(self, trigger: Trigger) -> list[str]:
        """Clear has to wait until the PLC is known to be Aborted, or Stopped already."""
        state = self.io.state_current
        if trigger is not T.CLEAR or (state.ok and self._plc_state() in (S.ABORTED, S.CLEARING, S.STOPPED)):
            return []
        plc = self._plc_state() if state.ok else None
        return [f"its PLC is in {plc.text if plc else 'an unknown state'}, not in Aborted"]

    def complaint(self) -> str:
        """The PLC does not follow an Abort, or shows a state that does not exist."""
        return self._complaint

    def _plc_state(self) -> State | None:
        number = self.io.state_current.value
        return State(number) if number in State._value2member_map_ else None

    def _drive_abort(self, plc: State, now_ns: int) -> None:
        if plc in (S.ABORTING, S.ABORTED):
            self._end_abort()
            self._complaint = ""
            return
        if self._abort is None:
            self._abort = Runner(self._bring(T.ABORT, {S.ABORTING, S.ABORTED}, "abort"))
        if self._abort.step(now_ns) is not Progress.RUNNING:
            failure = self._abort.failure
            self._complaint = failure.text if failure else ""
            self._end_abort()  # and again, until it follows or its link is lost

    def _end_abort(self) -> None:
        runner, self._abort = self._abort, None
        if runner is not None:
            runner.close()

    def _bring(self, trigger: Trigger, goal: set[State], action: str, limit_s: float | None = None) -> Steps:
        plc = self._plc_state()
        if plc in goal:
            return
        if plc is not UNDER_WAY[trigger]:
            yield from self._command(trigger, action)
        names = " or ".join(s.text for s in goal)
        yield Until(
            lambda: self._plc_state() in goal,
            limit_s or self.settings.limit_s, "plc_does_not_follow", f"{self.name}: its PLC in {names}", action,
        )  # fmt: skip

    def _command(self, trigger: Trigger, action: str) -> Steps:
        io, limit = self.io, self.settings.ack_limit_s
        number = trigger.value
        cmd_id = self._next_id()
        what = f"{self.name}: {trigger.text}"
        took, answered = f"{what} read back from its PLC", f"{what} acknowledged by its PLC"
        try:
            io.cntrl_cmd.set(number)
            if not io.cntrl_cmd.goes_with(io.cmd_id):
                yield Until(lambda: io.cntrl_cmd.is_(number), limit, "plc_no_answer", took, action)
            io.cmd_id.set(cmd_id)
            yield Until(lambda: io.cmd_ack.is_(cmd_id), limit, "plc_no_answer", answered, action)
            if not io.cmd_result.is_(ACCEPTED):
                # one reading may hold the result of before and the new id: only a later one tells
                seen = io.cmd_ack.stamp
                yield Until(lambda: io.cmd_result.stamp > seen, limit, "plc_no_answer", answered, action)
            if io.cmd_result.is_(EXPIRED):
                yield Fail("plc_refused", f"{what} reached its PLC too late and was dropped there", action)
            elif not io.cmd_result.is_(ACCEPTED):
                plc = self._plc_state()
                state = plc.text if plc else "an unknown state"
                yield Fail("plc_refused", f"{what} was refused by its PLC in {state}", action)
        finally:
            # outputs are levels: a PLC that restarts is told id and command again, and must find no command there
            io.cntrl_cmd.set(NO_COMMAND)

    def _next_id(self) -> int:
        """The id after the newest one that was asked for, or that the PLC holds; never one that is in use, nor 0.

        It follows the PLC's own memory, so that a restarted controller never repeats one (nor one whose write has
        not been read back yet).
        """
        number, ack = self.io.cmd_id, self.io.cmd_ack
        largest = LARGEST_ID.get(number.type, 0xFFFF_FFFF)
        known = [n for n in (number.wanted, number.value, ack.value) if n]
        newest = known[0] if known else 0
        for other in known[1:]:
            if 0 < (other - newest) % largest < largest // 2:
                newest = other
        while (newest := newest % largest + 1) in known:
            pass  # three ids are in use at most
        return newest
