"""An event loop whose time passes only while nothing is to be done: a day of waiting takes no time.

Sockets are real, so both ends of a connection must live in this loop: on loopback what one end sends is readable at the
other end before ``send`` returns, and time does not move while anything is readable. What another process, a thread
or a serial driver has to say would come too late; do not wait for those here.
"""

from __future__ import annotations

import asyncio
import os
import selectors
from collections.abc import Callable
from typing import Any


class _Selector(selectors.DefaultSelector):
    """Waits for nobody: without anything to read it lets the time pass that the loop wanted to wait."""

    def __init__(self, passes: Callable[[float], None]) -> None:
        super().__init__()
        self._passes = passes

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        events = super().select(0)
        if events or timeout == 0:
            return events
        # The kernel may have put a delivery off to a thread of its own.
        os.sched_yield()
        events = super().select(0)
        if events:
            return events
        if timeout is None:
            raise RuntimeError("nothing is due and nothing is readable: the program waits for ever")
        self._passes(timeout)
        return []


class VirtualLoop(asyncio.SelectorEventLoop):
    """Starts at time 1000 s, so that no monotonic stamp is zero. Also a clock (``controller.runtime.clock.Clock``)."""

    def __init__(self) -> None:
        self._virtual_s = 1000.0
        super().__init__(_Selector(self._pass))

    def _pass(self, seconds: float) -> None:
        self._virtual_s += seconds

    def time(self) -> float:
        """Virtual seconds."""
        return self._virtual_s

    def monotonic_ns(self) -> int:
        """Virtual nanoseconds; the same clock as :meth:`time`."""
        return round(self._virtual_s * 1e9)

    def utc_ns(self) -> int:
        """Virtual nanoseconds since 1970, from some day on."""
        return 1_750_000_000_000_000_000 + self.monotonic_ns()

    def run_in_executor(self, *_: Any) -> Any:
        """Refused: a thread would take real time."""
        raise RuntimeError("no threads in virtual time")
