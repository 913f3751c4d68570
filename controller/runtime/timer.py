"""A periodic timer that is not late, and never catches up.

Ticks lie on an absolute grid, ``start + n * period``, so lateness of one tick does not move the next. When the
owner is not back in time, the periods missed are skipped and counted; there is never a burst. On Linux the
timer is a ``timerfd`` watched by the event loop: epoll's own time-outs are rounded up to a millisecond, a
descriptor's readiness is not. Elsewhere it is ``call_at``.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import sys
from dataclasses import dataclass
from typing import Protocol

from controller.runtime.clock import Clock

_CLOCK_MONOTONIC = 1
_TFD_TIMER_ABSTIME = 1
_TFD_NONBLOCK = os.O_NONBLOCK
_TFD_CLOEXEC = getattr(os, "O_CLOEXEC", 0)
_SECOND = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Tick:
    """One tick. ``due_ns`` is when the first period not yet served was due, ``skipped`` how many were left out."""

    due_ns: int
    skipped: int


class Timer(Protocol):
    """What the scan loop needs of a timer."""

    async def tick(self) -> Tick:
        """Wait for the next tick. For one task at a time; may be cancelled."""

    def close(self) -> None:
        """End it; safe more than once."""


class TimerError(OSError):
    """The operating system refused a timer: its limits (``LimitNOFILE``) are the administrator's to raise."""


class _Timespec(ctypes.Structure):
    _fields_ = (("tv_sec", ctypes.c_long), ("tv_nsec", ctypes.c_long))


class _Itimerspec(ctypes.Structure):
    _fields_ = (("it_interval", _Timespec), ("it_value", _Timespec))


def _spec(ns: int) -> _Timespec:
    return _Timespec(ns // _SECOND, ns % _SECOND)


class TimerFd:
    """Periodic timer on Linux' ``timerfd`` (timerfd_create(2)), read through the running event loop.

    ``start_ns`` is the first tick on ``CLOCK_MONOTONIC``; ``period_ns`` > 0. Raises :class:`TimerError`.
    """

    def __init__(self, start_ns: int, period_ns: int) -> None:
        if period_ns <= 0 or start_ns <= 0:
            raise ValueError(f"period {period_ns} ns and start {start_ns} ns must be positive")
        self._period_ns = period_ns
        self._next_ns = start_ns
        self._expired = 0
        self._waiter: asyncio.Future[None] | None = None
        self._loop = asyncio.get_running_loop()
        libc = ctypes.CDLL(None, use_errno=True)
        self._fd = int(libc.timerfd_create(_CLOCK_MONOTONIC, _TFD_NONBLOCK | _TFD_CLOEXEC))
        if self._fd < 0:
            code = ctypes.get_errno()
            raise TimerError(code, f"no timer for the scan: timerfd_create: {os.strerror(code)}")
        spec = _Itimerspec(_spec(period_ns), _spec(start_ns))
        if libc.timerfd_settime(self._fd, _TFD_TIMER_ABSTIME, ctypes.byref(spec), None) != 0:
            code = ctypes.get_errno()
            os.close(self._fd)
            self._fd = -1
            raise TimerError(code, f"no timer for the scan: timerfd_settime: {os.strerror(code)}")
        self._loop.add_reader(self._fd, self._readable)

    def _readable(self) -> None:
        # Read here and not only in tick(), or a descriptor left readable would keep the loop spinning.
        self._drain()
        if self._waiter is not None:
            _wake(self._waiter)

    def _drain(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self._expired += int.from_bytes(os.read(self._fd, 8), sys.byteorder)

    async def tick(self) -> Tick:
        """Wait for the next tick."""
        while True:
            if self._fd < 0:
                raise ValueError("the timer is closed")
            self._drain()
            if self._expired:
                break
            self._waiter = self._loop.create_future()
            await self._waiter
        due, expired = self._next_ns, self._expired
        self._expired = 0
        self._next_ns += expired * self._period_ns
        return Tick(due, expired - 1)

    def close(self) -> None:
        """Close the descriptor; a waiting task is woken and gets :class:`ValueError`."""
        if self._fd < 0:
            return
        self._loop.remove_reader(self._fd)
        os.close(self._fd)
        self._fd = -1
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class CallAtTimer:
    """The same on any platform, about a millisecond later: the event loop's own ``call_at``.

    The loop's clock must be ``clock``'s monotonic one, as it is for asyncio's loops.
    """

    def __init__(self, clock: Clock, start_ns: int, period_ns: int) -> None:
        if period_ns <= 0:
            raise ValueError(f"period {period_ns} ns must be positive")
        self._clock = clock
        self._period_ns = period_ns
        self._next_ns = start_ns
        self._closed = False
        self._waiter: asyncio.Future[None] | None = None

    async def tick(self) -> Tick:
        """Wait for the next tick."""
        loop = asyncio.get_running_loop()
        while True:
            if self._closed:
                raise ValueError("the timer is closed")
            left = self._next_ns - self._clock.monotonic_ns()
            if left <= 0:
                break
            self._waiter = loop.create_future()
            handle = loop.call_at(loop.time() + left / _SECOND, _wake, self._waiter)
            try:
                await self._waiter
            finally:
                handle.cancel()
        due = self._next_ns
        expired = 1 + (self._clock.monotonic_ns() - due) // self._period_ns
        self._next_ns += expired * self._period_ns
        return Tick(due, expired - 1)

    def close(self) -> None:
        """End it; a waiting task is woken and gets :class:`ValueError`."""
        self._closed = True
        if self._waiter is not None:
            _wake(self._waiter)


def _wake(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)


def periodic(clock: Clock, period_ns: int) -> Timer:
    """The best timer of this platform, its first tick one period from now. Call it with the loop running."""
    start = clock.monotonic_ns() + period_ns
    if os.uname().sysname == "Linux":
        return TimerFd(start, period_ns)
    return CallAtTimer(clock, start, period_ns)
