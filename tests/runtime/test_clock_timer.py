from __future__ import annotations

import asyncio
import time

import pytest

from controller.runtime.clock import ManualClock, SystemClock
from controller.runtime.timer import CallAtTimer, Tick, TimerFd, periodic

MS = 1_000_000


def test_manual_clock_moves_only_when_told() -> None:
    clock = ManualClock(5, 7)
    assert (clock.monotonic_ns(), clock.utc_ns()) == (5, 7)
    clock.advance(10)
    assert (clock.monotonic_ns(), clock.utc_ns()) == (15, 17)
    clock.step_utc(-17)
    assert (clock.monotonic_ns(), clock.utc_ns()) == (15, 0)
    with pytest.raises(ValueError, match="cannot go back"):
        clock.advance(-1)


def test_system_clock_is_the_machines() -> None:
    clock = SystemClock()
    assert abs(clock.monotonic_ns() - time.monotonic_ns()) < 1_000_000_000
    assert abs(clock.utc_ns() - time.time_ns()) < 1_000_000_000


def make(kind: str, start_ns: int, period_ns: int) -> TimerFd | CallAtTimer:
    return TimerFd(start_ns, period_ns) if kind == "timerfd" else CallAtTimer(SystemClock(), start_ns, period_ns)


@pytest.mark.parametrize("kind", ["timerfd", "call_at"])
async def test_ticks_lie_on_an_absolute_grid_and_never_early(kind: str) -> None:
    start, period = time.monotonic_ns() + 5 * MS, 5 * MS
    timer = make(kind, start, period)
    expected = start
    try:
        for _ in range(8):
            tick = await timer.tick()
            assert tick.due_ns == expected
            assert time.monotonic_ns() >= tick.due_ns
            expected += (tick.skipped + 1) * period
    finally:
        timer.close()


@pytest.mark.parametrize("kind", ["timerfd", "call_at"])
async def test_missed_periods_are_counted_and_skipped_not_caught_up(kind: str) -> None:
    start, period = time.monotonic_ns() + 5 * MS, 5 * MS
    timer = make(kind, start, period)
    try:
        first = await timer.tick()
        time.sleep(0.052)  # noqa: ASYNC251 - the stalled loop is the point
        late = await timer.tick()
        served = time.monotonic_ns()
        after = await timer.tick()
        assert late.due_ns == first.due_ns + (first.skipped + 1) * period
        assert late.skipped >= 9
        assert after.due_ns == late.due_ns + (late.skipped + 1) * period
        assert after.due_ns > served - period  # on the grid ahead, not one of those missed
    finally:
        timer.close()


async def test_timerfd_does_not_spin_the_loop_while_nobody_waits() -> None:
    timer = TimerFd(time.monotonic_ns() + MS, MS)
    try:
        before = time.process_time()
        await asyncio.sleep(0.1)
        assert time.process_time() - before < 0.07
        tick = await timer.tick()
        assert tick.skipped >= 50
    finally:
        timer.close()


@pytest.mark.parametrize("kind", ["timerfd", "call_at"])
async def test_a_cancelled_wait_loses_no_tick(kind: str) -> None:
    start = time.monotonic_ns() + 30 * MS
    timer = make(kind, start, 30 * MS)
    try:
        waiting = asyncio.create_task(timer.tick())
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert (await timer.tick()).due_ns == start
    finally:
        timer.close()


@pytest.mark.parametrize("kind", ["timerfd", "call_at"])
async def test_close_wakes_the_waiter_and_may_be_repeated(kind: str) -> None:
    timer = make(kind, time.monotonic_ns() + 60_000 * MS, MS)
    waiting = asyncio.create_task(timer.tick())
    await asyncio.sleep(0)
    timer.close()
    timer.close()
    with pytest.raises(ValueError, match="closed"):
        await waiting


async def test_bad_periods_are_refused() -> None:
    with pytest.raises(ValueError, match="positive"):
        TimerFd(1, 0)
    with pytest.raises(ValueError, match="positive"):
        CallAtTimer(SystemClock(), 1, -1)


async def test_periodic_starts_one_period_from_now() -> None:
    clock = SystemClock()
    before = clock.monotonic_ns()
    timer = periodic(clock, 20 * MS)
    try:
        tick = await timer.tick()
        assert isinstance(tick, Tick)
        assert tick.due_ns >= before + 20 * MS
    finally:
        timer.close()
