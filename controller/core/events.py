"""What happened: frozen values, from the scan to the journal and north.

``at`` is UTC in nanoseconds since 1970, taken from the scan's time and therefore the same for all events of
one scan; the journal's sequence number, not ``at``, orders events.
"""

from __future__ import annotations

from typing import Literal

import msgspec


class Event(msgspec.Struct, frozen=True, tag_field="event", kw_only=True):
    """Base of all events."""

    at: int
    station: str = ""
    """Station name, ``line`` for the line as a unit, or empty where no station is concerned."""


class Transition(Event, frozen=True, tag="transition", kw_only=True):
    """A PackML state change (ISA-TR88.00.02)."""

    source: str
    target: str
    cause: str
    """The command, ``state_complete`` or ``mode``."""
    reason: str = ""
    """Why, in words: user, interlock, alarm or starved/blocked."""


class ModeChanged(Event, frozen=True, tag="mode", kw_only=True):
    """A unit mode change."""

    source: str
    target: str


class CommandDone(Event, frozen=True, tag="command", kw_only=True):
    """A command and its answer, for the audit trail."""

    id: str
    command: str
    args: dict[str, str | int | float | bool] = {}
    user: str
    client: str
    accepted: bool
    reason: str = ""


class AlarmChanged(Event, frozen=True, tag="alarm", kw_only=True):
    """An alarm became active, cleared, or was acknowledged (ISA-18.2)."""

    alarm: str
    change: Literal["active", "cleared", "acknowledged"]
    priority: int
    text: str
    user: str = ""


class CountsChanged(Event, frozen=True, tag="counts", kw_only=True):
    """Production counts of a station: totals since the job began, with the PLC's raw counters they rest on."""

    product: str
    infeed: int
    good: int
    rejected: int
    in_process: int
    raw: dict[str, int] = {}


class ChangeoverChanged(Event, frozen=True, tag="changeover", kw_only=True):
    """Progress of a changeover; ``step`` is ``planned``, ``running_out``, ``staging``, ``verified``, ``committed``,
    ``rolling_back``, ``rolled_back`` or ``failed``.
    """

    id: int
    source: str
    target: str
    step: str
    detail: str = ""


class LinkChanged(Event, frozen=True, tag="link", kw_only=True):
    """A PLC's link came up or went down."""

    plc: str
    up: bool
    reason: str = ""


class OutputFailed(Event, frozen=True, tag="output_failed", kw_only=True):
    """A write to a PLC was rejected or its outcome is unknown."""

    tag: str
    value: str | int | float | bool
    outcome: str
    reason: str


class StopRecorded(Event, frozen=True, tag="stop", kw_only=True):
    """A stop of a station ended: how long it took, and which station caused it."""

    reason: str
    cause_station: str
    started: int
    seconds: float


class ScanOverrun(Event, frozen=True, tag="overrun", kw_only=True):
    """A scan missed its period; ``skipped`` periods were left out, not caught up."""

    skipped: int
    late_ms: float


class Note(Event, frozen=True, tag="note", kw_only=True):
    """Anything else that belongs in the record (start-up, shutdown, counter resets)."""

    text: str


AnyEvent = (
    Transition
    | ModeChanged
    | CommandDone
    | AlarmChanged
    | CountsChanged
    | ChangeoverChanged
    | LinkChanged
    | OutputFailed
    | StopRecorded
    | ScanOverrun
    | Note
)
