"""Waiting for a time or for a ring, whichever comes first: no task, no time-out object, and timers that are shared.

Polls of many links are due at the same moments (``bus.SLOTS`` to a period). A :class:`Ticker` has one timer for all
that wait for one of them, and wakes them in one turn of the event loop, so that their requests go out together.
"""

from __future__ import annotations

import asyncio

from drivers.wake import Wake

S = 1_000_000_000


class Ticker:
    """The moments for which somebody waits, and their timers. Bounded by those who wait."""

    __slots__ = ("_moments",)

    def __init__(self) -> None:
        self._moments: dict[int, tuple[asyncio.TimerHandle, dict[Wake, None]]] = {}

    def add(self, wake: Wake, at_ns: int, seconds: float) -> None:
        """Resume ``wake`` at a moment, which is ``seconds`` from now."""
        moment = self._moments.get(at_ns)
        if moment is None:
            timer = wake.get_loop().call_later(seconds, self._fire, at_ns)
            moment = self._moments[at_ns] = (timer, {})
        moment[1][wake] = None

    def remove(self, wake: Wake, at_ns: int) -> None:
        """It does not wait for that moment any more."""
        moment = self._moments.get(at_ns)
        if moment is not None:
            timer, wakes = moment
            wakes.pop(wake, None)
            if not wakes:
                timer.cancel()
                del self._moments[at_ns]

    def _fire(self, at_ns: int) -> None:
        _, wakes = self._moments.pop(at_ns)
        for wake in wakes:
            wake.resume()


class Bell:
    """One task waits, anybody rings. A ring while nobody waits is kept for the next :meth:`wait`."""

    __slots__ = ("_rung", "_ticker", "_waiter")

    def __init__(self, ticker: Ticker | None = None) -> None:
        self._ticker = ticker or Ticker()
        self._waiter: Wake | None = None
        self._rung = False

    def ring(self) -> None:
        """Wake whoever waits. From the event loop's thread."""
        self._rung = True
        if self._waiter is not None:
            self._waiter.end()

    async def wait(self, now_ns: int, until_ns: int | None) -> None:
        """Until rung, or until the moment ``until_ns`` of the clock that says it is ``now_ns``. May be cancelled."""
        if self._rung or (until_ns is not None and until_ns <= now_ns):
            self._rung = False
            return
        self._waiter = wake = Wake(asyncio.get_running_loop())
        if until_ns is not None:
            self._ticker.add(wake, until_ns, (until_ns - now_ns) / S)
        try:
            await wake
        finally:
            self._waiter = None
            self._rung = False
            if until_ns is not None:
                self._ticker.remove(wake, until_ns)
