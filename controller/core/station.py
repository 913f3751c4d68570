"""A station: machine, behaviour, interlocks, alarms and I/O, composed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from controller.core.accounting import Tally
from controller.core.alarms import Alarm, AlarmBook, AlarmSpec
from controller.core.behaviour import Behaviour
from controller.core.commands import CommandRejected
from controller.core.conditions import Condition, Debounce, Interlock, Permissive
from controller.core.events import AnyEvent, Transition
from controller.core.io import Output
from controller.core.packml import COMMAND_BY_NAME, Machine, State, Trigger
from controller.core.sequence import Progress, Runner
from drivers.port import Value

S, T = State, Trigger

SAFE_ON_ENTRY = frozenset({S.ABORTING, S.ABORTED, S.STOPPED, S.IDLE, S.COMPLETE, S.HELD})
"""Entering one of these drives every output that has a safe value to it, whatever the behaviour did."""

MOVING = frozenset({
    S.STARTING, S.EXECUTE, S.UNHOLDING, S.SUSPENDING, S.SUSPENDED, S.UNSUSPENDING, S.COMPLETING,
})  # fmt: skip
"""States in which a hold- or stop-interlock must hold."""

ACTS_IN: Mapping[str, frozenset[State]] = {
    "hold": MOVING,
    "stop": MOVING | {S.HOLDING, S.HELD, S.RESETTING},
    "abort": frozenset(State) - {S.ABORTING, S.ABORTED},
}
"""In which states a lost interlock of that severity changes the state."""

RECOVERING = frozenset({S.CLEARING, S.STOPPED, S.RESETTING, S.IDLE, S.STARTING, S.UNHOLDING})
"""States in which a fault that the PLC latches may still stand: their sequences are what resets it."""

SEVERITY = {"hold": 1, "stop": 2, "abort": 3}
NEEDED = {T.CLEAR: 3, T.RESET: 2, T.UNHOLD: 1, T.UNSUSPEND: 1, T.START: 1}
"""Interlocks of at least this severity must hold for the command."""

RESETS_FAULTS = frozenset({T.CLEAR, T.RESET, T.START, T.UNHOLD})
"""Commands whose sequences reset what the PLC latches; such a fault does not bar them."""


@dataclass(slots=True)
class ScanContext:
    """What every part of a scan shares: its time, and the events it has produced so far."""

    now_ns: int = 0
    utc_ns: int = 0
    events: list[AnyEvent] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class AlarmRule:
    """A declared alarm of a station and the condition that makes it active."""

    alarm: Alarm
    condition: Condition


@dataclass(slots=True)
class Parts:
    """What a station is composed of; see the fields' types."""

    interlocks: tuple[Interlock, ...] = ()
    permissives: tuple[Permissive, ...] = ()
    alarm_rules: tuple[AlarmRule, ...] = ()
    starved: Condition | None = None
    blocked: Condition | None = None
    suspend_delay_ns: int = 1_000_000_000
    safe: Mapping[str, Value] = field(default_factory=dict)
    """Safe values by output point."""
    outputs: Mapping[str, Output[Any]] = field(default_factory=dict)
    tally: Tally | None = None
    mach_speed: float | None = None
    description: str = ""


class Station:
    """One station (= one ISA-88 unit). Only the line calls it, from inside the scan."""

    def __init__(
        self,
        name: str,
        machine: Machine,
        behaviour: Behaviour,
        parts: Parts,
        alarms: AlarmBook,
        context: ScanContext,
    ) -> None:
        self.name, self.machine, self.behaviour, self.parts = name, machine, behaviour, parts
        self._alarms, self._context = alarms, context
        self._runner: Runner | None = None
        self._starved = Debounce(parts.suspend_delay_ns)
        self._blocked = Debounce(parts.suspend_delay_ns)
        self._self_suspended = False
        self._raised: list[Alarm] = []
        self._lost_alarms: dict[str, tuple[Interlock, Alarm]] = {}
        self._complaint: Alarm | None = None
        self.first_out = ""
        self.stop_reason = ""
        self.line_block: Callable[[Trigger], str] = lambda _: ""
        """Set by the line: what it has against a recovery or start command (recipe not in force …), or nothing."""
        behaviour.state = machine.state
        self.may_starve = True
        """Cleared by the line during run-out: an empty station is then done, not starved."""
        self._ready = False

    @property
    def state(self) -> State:
        """The PackML state."""
        return self.machine.state

    @property
    def starved(self) -> bool:
        """No work from upstream, for longer than the suspend delay."""
        return self._starved.value

    @property
    def blocked(self) -> bool:
        """No room downstream, for longer than the suspend delay."""
        return self._blocked.value

    @property
    def waiting_for(self) -> str:
        """What the running sequence waits for, in words."""
        return self._runner.waiting_for if self._runner else ""

    # --- commands -------------------------------------------------------------------------------------

    def command(self, trigger: Trigger, reason: str) -> None:
        """Take a command. Raises :class:`CommandRejected` with every reason why not; then nothing changed."""
        refusal = self.machine.refusal(trigger)
        if refusal:
            raise CommandRejected(f"{self.name}: {refusal}")
        against = self.obstacles(trigger)
        if against:
            raise CommandRejected(f"{self.name}: {trigger.text} refused: " + "; ".join(against))
        if trigger in NEEDED:
            self._settle()
        self._self_suspended = False
        self._fire(trigger, trigger.name.lower(), reason)

    def obstacles(self, trigger: Trigger, *, later: bool = False) -> list[str]:
        """Why the equipment does not allow this command now; empty if it does. The state is not looked at.

        With ``later`` the command is not the next one due, and what the kind itself has against it is left out.
        """
        needed = NEEDED.get(trigger)
        if needed is None:
            return []
        against = [
            i.explain() for i in self.parts.interlocks if SEVERITY[i.otherwise] >= needed and i.condition() is not True
        ]
        against += [
            f"alarm {r.alarm.spec.name} is active: {r.alarm.text}"
            for r in self.parts.alarm_rules
            if r.alarm.active
            and not (r.alarm.spec.plc_latched and trigger in RESETS_FAULTS)
            and SEVERITY.get(r.alarm.spec.action, 0) >= needed
        ]
        if trigger in (T.RESET, T.START):
            against += [p.explain() for p in self.parts.permissives if p.condition() is not True]
        if block := self.line_block(trigger):
            against.append(block)
        if later:
            return against
        try:
            return against + self.behaviour.obstacles(trigger)
        except Exception as error:  # a bug in a kind bars its station, and leaves the scan alive
            return [*against, f"software fault in {self.name}: {error!r}; report it with the log"]

    def why_not_start(self) -> list[str]:
        """Answers "why can't it start?": the way through the states first, then every obstacle."""
        way = {
            S.ABORTED: (T.CLEAR, "is Aborted: give Clear, then Reset, then Start"),
            S.STOPPED: (T.RESET, "is Stopped: give Reset, then Start"),
            S.COMPLETE: (T.RESET, "is Complete: give Reset, then Start"),
            S.HELD: (T.UNHOLD, "is Held: give Unhold"),
            S.IDLE: (T.START, ""),
        }
        if self.state not in way:
            return []
        trigger, text = way[self.state]
        reasons = [f"{self.name} {text}"] if text else []
        if self.first_out:
            reasons.append(f"first out: {self.first_out}")
        seen: list[str] = []
        for wanted in (trigger, T.START):
            seen += [o for o in self.obstacles(wanted, later=wanted is not trigger) if o not in seen]
        return reasons + seen

    # --- the scan, in the order in which the line calls it ----------------------------------------------

    def lost(self) -> str:
        """The first abort-interlock that does not hold, explained; empty if all do."""
        lost = (i for i in self.parts.interlocks if i.otherwise == "abort" and i.condition() is not True)
        return next((i.explain() for i in lost), "")

    def scan_safety(self) -> None:
        """Alarms and interlocks, before any command of this scan is looked at."""
        now_ns = self._context.now_ns
        for rule in self.parts.alarm_rules:
            condition, alarm = rule.condition(), rule.alarm
            if condition is alarm.active and not alarm.timing:
                continue
            if self._alarms.evaluate(alarm, condition, now_ns):
                self.trip(alarm.spec.action, alarm.text)
        if self._lost_alarms:
            self._clear_regained()
        if not self._ready:
            return
        for interlock in self.parts.interlocks:
            if self.machine.state in ACTS_IN[interlock.otherwise] and interlock.condition() is not True:
                self._lose(interlock)
        for rule in self.parts.alarm_rules:
            if rule.alarm.active and not (rule.alarm.spec.plc_latched and self.state in RECOVERING):
                self.trip(rule.alarm.spec.action, rule.alarm.text)

    def _lose(self, interlock: Interlock) -> None:
        text = interlock.explain()
        if interlock.alarmed:
            priority = 4 if interlock.otherwise == "abort" else 3
            spec = AlarmSpec(f"interlock_{interlock.name}", interlock.text, priority, action="none")
            alarm = self._alarms.get(self.name, spec)
            self._alarms.activate(alarm, text)
            self._lost_alarms[alarm.id] = (interlock, alarm)
        self.trip(interlock.otherwise, text)

    def _clear_regained(self) -> None:
        for interlock, alarm in list(self._lost_alarms.values()):
            if interlock.condition() is True:
                self._alarms.clear(alarm)
                del self._lost_alarms[alarm.id]

    def scan_logic(self) -> None:
        """Starved and blocked, the equipment's own requests, and one step of the running sequence."""
        if not self._ready:
            self._ready = True
            self._make_safe()
        now_ns = self._context.now_ns
        try:
            watched, complaint = self.behaviour.watch(now_ns), self.behaviour.complaint()
        except Exception as error:
            self._broken(error)
        else:
            if watched is not None:
                self._follow(*watched)
            self._complain(complaint)
        self._suspend_or_resume(now_ns)
        self._step(now_ns)

    def scan_counts(self, product: str) -> str:
        """Take the counters; returns a note for the record, or an empty text."""
        return self.parts.tally.scan(product) if self.parts.tally else ""

    # --- inside -----------------------------------------------------------------------------------------

    def _step(self, now_ns: int) -> None:
        """One step of the running sequence, and what follows from its end.

        A state entered earlier in this scan gets its first step now, so an abort with nothing to wait for is
        Aborted in the scan that saw its cause.
        """
        if self._runner is None:
            if self.state is not S.EXECUTE and self.machine.target(T.STATE_COMPLETE) is not None:
                self._fire(T.STATE_COMPLETE, "state_complete", "")
            return
        try:
            progress = self._runner.step(now_ns)
        except Exception as error:
            self._broken(error)
            return
        if progress is Progress.FAILED:
            failure = self._runner.failure
            assert failure is not None
            self._fail(failure.alarm, failure.text, failure.action)
        elif progress is Progress.DONE:
            self._runner = None
            if self.machine.target(T.STATE_COMPLETE) is not None:
                self._fire(T.STATE_COMPLETE, "state_complete", "")

    def _broken(self, error: Exception) -> None:
        """A bug in one station makes that station safe, and leaves the others their eyes."""
        self._fail("internal_error", f"software fault in {self.name}: {error!r}; report it with the log", "abort")

    def _fail(self, name: str, text: str, action: str) -> None:
        alarm = self._alarms.get(self.name, AlarmSpec(name, text, priority=3, action=action))
        self._alarms.activate(alarm, text)
        if alarm not in self._raised:
            self._raised.append(alarm)
        if self._close_runner() is not None:
            action = "abort"  # its clean-up failed as well
        # Every state but Aborting has Stop or Abort, so a failed acting state is always left, never completed.
        self._force(action, text)

    def trip(self, action: str, reason: str) -> None:
        """A lost interlock or an alarm wants the state changed, in the states in which it acts."""
        if action != "none" and self.state in ACTS_IN[action]:
            self._force(action, reason)

    def _force(self, action: str, reason: str) -> None:
        """Hold, stop or abort; where the milder is illegal, the next severer."""
        if self.state not in (S.ABORTING, S.ABORTED) and not self.first_out:
            self.first_out = reason
        order = {"hold": (T.HOLD, T.STOP, T.ABORT), "stop": (T.STOP, T.ABORT), "abort": (T.ABORT,)}[action]
        for trigger in order:
            if self.machine.target(trigger) is not None:
                self._self_suspended = False
                self._fire(trigger, trigger.name.lower(), reason)
                return

    def _complain(self, text: str) -> None:
        if text:
            if self._complaint is None:
                spec = AlarmSpec("equipment", "the equipment disagrees with its commands", priority=3)
                self._complaint = self._alarms.get(self.name, spec)
            self._alarms.activate(self._complaint, text)
        elif self._complaint is not None:
            self._alarms.clear(self._complaint)

    def _follow(self, trigger_name: str, reason: str) -> None:
        trigger = COMMAND_BY_NAME[trigger_name]
        if trigger_name in SEVERITY:
            self._force(trigger_name, reason)
        elif self.machine.target(trigger) is not None:
            self._fire(trigger, trigger.name.lower(), reason)

    def _suspend_or_resume(self, now_ns: int) -> None:
        parts = self.parts
        starved = self._starved(parts.starved() if parts.starved and self.may_starve else False, now_ns)
        blocked = self._blocked(parts.blocked() if parts.blocked else False, now_ns)
        if self.state is S.EXECUTE and (starved or blocked):
            if self.machine.target(T.SUSPEND) is not None:
                self._self_suspended = True
                self._fire(
                    T.SUSPEND,
                    "suspend",
                    "starved: no work from upstream" if starved else "blocked downstream",
                )
        elif (
            self.state is S.SUSPENDED
            and self._self_suspended
            and not (starved or blocked)
            and not self.obstacles(T.UNSUSPEND)
        ):
            self._self_suspended = False
            self._fire(T.UNSUSPEND, "unsuspend", "work and room again")

    def _fire(self, trigger: Trigger, cause: str, reason: str) -> None:
        source = self.machine.state
        target = self.machine.fire(trigger, self._context.now_ns)
        fault = self._close_runner()
        self.behaviour.state = target
        if target is S.EXECUTE:
            self.stop_reason = ""
        elif reason:
            self.stop_reason = reason
        if target in SAFE_ON_ENTRY:
            self._make_safe()
        try:
            steps = self.behaviour.steps(target)
        except Exception as error:
            steps, fault = None, error
        if steps is not None:
            self._runner = Runner(steps)
        self._context.events.append(
            Transition(
                at=self._context.utc_ns,
                station=self.name,
                source=source.text,
                target=target.text,
                cause=cause,
                reason=reason,
            )
        )
        if fault is not None:
            self._broken(fault)

    def _close_runner(self) -> Exception | None:
        """End the running sequence; returns what its ``finally`` clauses raised, if they did."""
        runner, self._runner = self._runner, None
        try:
            if runner is not None:
                runner.close()
        except Exception as error:
            return error
        return None

    def _make_safe(self) -> None:
        for point, value in self.parts.safe.items():
            self.parts.outputs[point].set(value)

    def _settle(self) -> None:
        """A recovery command was accepted: what sequences raised is over, and first-out starts anew."""
        for alarm in self._raised:
            self._alarms.clear(alarm)
        self._raised.clear()
        self.first_out = ""


__all__ = ["MOVING", "AlarmRule", "CommandRejected", "Parts", "ScanContext", "Station"]
