"""The clock: the one place where time enters the program.

One :class:`Clock` is made when the program is wired together and handed to whatever needs time. Timers run on
the monotonic clock only; UTC is for people and for the record, and may step.
"""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """Time in integer nanoseconds."""

    def monotonic_ns(self) -> int:
        """Nanoseconds since some fixed point; never goes back, never steps."""

    def utc_ns(self) -> int:
        """Nanoseconds since 1970-01-01T00:00Z as the operating system believes; may step either way."""


class SystemClock:
    """The machine's clocks (``CLOCK_MONOTONIC``, ``CLOCK_REALTIME``)."""

    def monotonic_ns(self) -> int:
        """Nanoseconds of ``CLOCK_MONOTONIC``."""
        return time.monotonic_ns()

    def utc_ns(self) -> int:
        """Nanoseconds of ``CLOCK_REALTIME``."""
        return time.time_ns()


class ManualClock:
    """A clock that moves only when told; for tests and the bench."""

    def __init__(self, monotonic_ns: int = 1_000_000_000, utc_ns: int = 1_750_000_000_000_000_000) -> None:
        self._monotonic_ns = monotonic_ns
        self._utc_ns = utc_ns

    def monotonic_ns(self) -> int:
        """The monotonic time last set."""
        return self._monotonic_ns

    def utc_ns(self) -> int:
        """The UTC time last set."""
        return self._utc_ns

    def advance(self, ns: int) -> None:
        """Let ``ns`` >= 0 nanoseconds pass on both clocks."""
        if ns < 0:
            raise ValueError(f"time cannot go back by {-ns} ns; use step_utc for the wall clock")
        self._monotonic_ns += ns
        self._utc_ns += ns

    def step_utc(self, ns: int) -> None:
        """Step the wall clock alone, as NTP or a person does."""
        self._utc_ns += ns
