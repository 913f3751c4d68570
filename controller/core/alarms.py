"""Alarms of the line: states per ISA-18.2, on- and off-delay, first version.

An alarm is *active* while its condition holds and *unacknowledged* until someone has seen it; it leaves the
list when it is neither. Shelving, suppression and flood handling come with the alarm engine.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from controller.core.commands import CommandRejected

Change = Literal["active", "cleared", "acknowledged"]
PRIORITIES = {"low": 1, "medium": 2, "high": 3, "critical": 4}


@dataclass(frozen=True, slots=True)
class AlarmSpec:
    """What an alarm is, why it matters and what to do (ISA-18.2 rationalisation).

    ``action`` is what the station does while it is active: ``none``, ``hold``, ``stop`` or ``abort``; recovery
    is then refused, unless the fault is ``plc_latched``: kept by the PLC until the recovery sequence resets it.
    """

    name: str
    text: str
    priority: int = 2
    on_delay_ns: int = 0
    off_delay_ns: int = 0
    action: str = "none"
    plc_latched: bool = False
    cause: str = ""
    consequence: str = ""
    response: str = ""


class Alarm:
    """One alarm and its state."""

    __slots__ = (
        "_clears_ns",
        "_pending_ns",
        "acknowledged",
        "active",
        "id",
        "since_utc",
        "spec",
        "station",
        "text",
    )

    def __init__(self, station: str, spec: AlarmSpec) -> None:
        self.station, self.spec = station, spec
        self.id = f"{station or 'line'}.{spec.name}"
        self.active = False
        self.acknowledged = True
        self.text = spec.text
        self.since_utc = 0
        self._pending_ns: int | None = None
        self._clears_ns: int | None = None

    @property
    def listed(self) -> bool:
        """Whether it is in the alarm list: active, or not yet acknowledged."""
        return self.active or not self.acknowledged

    @property
    def timing(self) -> bool:
        """Whether an on- or off-delay is running."""
        return self._pending_ns is not None or self._clears_ns is not None

    def due(self, condition: bool | None, now_ns: int) -> bool | None:
        """Apply the delays. ``True``: becomes active; ``False``: clears; ``None``: no change.

        An unknown condition (BAD input) changes nothing and restarts the delay: what cannot be seen is
        neither raised nor cleared; the PLC's own alarm tells of it.
        """
        if condition is None:
            self._pending_ns = self._clears_ns = None
            return None
        if condition == self.active:
            self._pending_ns = self._clears_ns = None
            return None
        if condition:
            if self._pending_ns is None:
                self._pending_ns = now_ns
            if now_ns - self._pending_ns >= self.spec.on_delay_ns:
                self._pending_ns = None
                return True
            return None
        if self._clears_ns is None:
            self._clears_ns = now_ns
        if now_ns - self._clears_ns >= self.spec.off_delay_ns:
            self._clears_ns = None
            return False
        return None


class AlarmBook:
    """All alarms of the line, in the order of their definition."""

    def __init__(self) -> None:
        self._on_change: Callable[[Alarm, Change, str], None] = lambda *_: None
        self.alarms: dict[str, Alarm] = {}
        self.generation = 0
        """Counts changes, so that views need not compare."""

    def subscribe(self, on_change: Callable[[Alarm, Change, str], None]) -> None:
        """``on_change(alarm, change, user)`` is told of every change from now on; the scan makes it an event."""
        self._on_change = on_change

    def add(self, station: str, spec: AlarmSpec) -> Alarm:
        """Define an alarm. A second one of the same id is a mistake in the line's wiring."""
        alarm = Alarm(station, spec)
        assert alarm.id not in self.alarms, f"alarm {alarm.id} is defined twice"
        self.alarms[alarm.id] = alarm
        return alarm

    def get(self, station: str, spec: AlarmSpec) -> Alarm:
        """The alarm of that name, as declared; one that nobody declared is defined now."""
        return self.alarms.get(Alarm(station, spec).id) or self.add(station, spec)

    def evaluate(self, alarm: Alarm, condition: bool | None, now_ns: int) -> bool:
        """Feed the condition of this scan. Returns whether the alarm became active just now."""
        change = alarm.due(condition, now_ns)
        if change is None:
            return False
        if change:
            self.activate(alarm, alarm.spec.text)
        else:
            self.clear(alarm)
        return change

    def activate(self, alarm: Alarm, text: str) -> None:
        """Make it active with this text; a new text on an active alarm counts as a new occurrence."""
        if alarm.active and alarm.text == text:
            return
        alarm.active, alarm.acknowledged, alarm.text = True, False, text
        self.generation += 1
        self._on_change(alarm, "active", "")

    def clear(self, alarm: Alarm) -> None:
        """The condition is gone; it stays listed until acknowledged."""
        if alarm.active:
            alarm.active = False
            self.generation += 1
            self._on_change(alarm, "cleared", "")

    def acknowledge(self, alarm_id: str, user: str) -> None:
        """A person has seen it. Raises :class:`CommandRejected` for an unknown or already acknowledged one."""
        alarm = self.alarms.get(alarm_id)
        if alarm is None:
            raise CommandRejected(f"there is no alarm {alarm_id!r}")
        if alarm.acknowledged:
            raise CommandRejected(f"alarm {alarm_id} is already acknowledged")
        alarm.acknowledged = True
        self.generation += 1
        self._on_change(alarm, "acknowledged", user)

    def listed(self) -> list[Alarm]:
        """Active or unacknowledged alarms: highest priority first, then in order of definition."""
        return sorted((a for a in self.alarms.values() if a.listed), key=lambda a: -a.spec.priority)
