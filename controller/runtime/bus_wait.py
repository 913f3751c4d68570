"""Waiting for a time or for a ring, whichever comes first: one future and one timer, no task, no time-out object."""

from __future__ import annotations

import asyncio


class Bell:
    """One task waits, anybody rings. A ring while nobody waits is kept for the next :meth:`wait`."""

    __slots__ = ("_rung", "_waiter")

    def __init__(self) -> None:
        self._waiter: asyncio.Future[None] | None = None
        self._rung = False

    def ring(self) -> None:
        """Wake whoever waits. From the event loop's thread."""
        self._rung = True
        _finish(self._waiter)

    async def wait(self, seconds: float | None) -> None:
        """Until rung, for ``seconds`` at most; ``None`` is without end. May be cancelled."""
        if self._rung or (seconds is not None and seconds <= 0.0):
            self._rung = False
            return
        loop = asyncio.get_running_loop()
        self._waiter = waiter = loop.create_future()
        timer = None if seconds is None else loop.call_later(seconds, _finish, waiter)
        try:
            await waiter
        finally:
            self._waiter = None
            self._rung = False
            if timer is not None:
                timer.cancel()


def _finish(waiter: asyncio.Future[None] | None) -> None:
    if waiter is not None and not waiter.done():
        waiter.set_result(None)
