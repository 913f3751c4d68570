"""Sequences: generators stepped once per scan.

A behaviour's method for an acting state is a generator. It yields what it waits for:

* ``yield`` (None): the next scan;
* ``yield Delay(seconds)``: a time;
* ``yield Until(condition, limit_s, alarm, text)``: a condition, with a time limit and the alarm to raise when
  the limit passes.

Leaving the state closes the generator, so its ``finally`` clauses run then.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Generator
from dataclasses import dataclass

from controller.core.io import BadInput


@dataclass(frozen=True, slots=True)
class Delay:
    """Wait for a time in seconds."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Until:
    """Wait until ``condition()`` holds, for at most ``limit_s`` seconds.

    A condition that meets a BAD input counts as not holding. When the limit passes, ``alarm`` is raised with
    ``text`` and the station takes ``action`` (``hold``, ``stop`` or ``abort``).
    """

    condition: Callable[[], bool]
    limit_s: float
    alarm: str
    text: str
    action: str = "abort"


@dataclass(frozen=True, slots=True)
class Fail:
    """Yielded to give up at once: raise ``alarm`` with ``text`` and take ``action``."""

    alarm: str
    text: str
    action: str = "abort"


Steps = Generator["Delay | Until | Fail | None", None, None]


class Progress(enum.Enum):
    """How a step ended."""

    RUNNING = enum.auto()
    DONE = enum.auto()
    FAILED = enum.auto()


class Runner:
    """Runs one generator; :attr:`failure` says why when a step returned FAILED."""

    __slots__ = ("_bad", "_since_ns", "_steps", "_waiting", "failure")

    def __init__(self, steps: Steps) -> None:
        self._steps = steps
        self._waiting: Delay | Until | None = None
        self._since_ns = 0
        self._bad: BadInput | None = None
        self.failure: Fail | None = None

    @property
    def waiting_for(self) -> str:
        """What the sequence waits for now, in words."""
        if isinstance(self._waiting, Until):
            return self._waiting.text
        return "a set time" if self._waiting else ""

    def step(self, now_ns: int) -> Progress:
        """Advance as far as this scan allows."""
        for _ in range(32):  # a sequence that never waits would stall the scan
            if self._waiting is not None and not self._satisfied(now_ns):
                return Progress.FAILED if self.failure else Progress.RUNNING
            self._waiting = None
            try:
                wanted = next(self._steps)
            except StopIteration:
                return Progress.DONE
            except BadInput as bad:
                self.failure = Fail("bad_input", f"{bad}; the step in progress needs it")
                return Progress.FAILED
            if wanted is None:
                return Progress.RUNNING
            if isinstance(wanted, Fail):
                self.failure = wanted
                return Progress.FAILED
            self._waiting, self._since_ns = wanted, now_ns
        return Progress.RUNNING

    def close(self) -> None:
        """End the generator; its ``finally`` clauses run."""
        self._steps.close()

    def _satisfied(self, now_ns: int) -> bool:
        waiting = self._waiting
        elapsed_ns = now_ns - self._since_ns
        if isinstance(waiting, Delay):
            return elapsed_ns >= waiting.seconds * 1e9
        assert waiting is not None
        self._bad = None
        try:
            if waiting.condition():
                return True
        except BadInput as bad:
            self._bad = bad
        if elapsed_ns > waiting.limit_s * 1e9:
            because = f" ({self._bad})" if self._bad else ""
            self.failure = Fail(
                waiting.alarm, f"{waiting.text}: not within {waiting.limit_s:g} s{because}", waiting.action
            )
        return False
