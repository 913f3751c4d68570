"""How late is a tick? Lateness of the scan's timer, beside asyncio's own and beside garbage collection.

    python bench/scan_timer.py [--period-ms 10] [--seconds 10] [--objects 1000000]

Prints microseconds (p50, p99, max). Trust ratios, not absolutes; on a shared machine run it more than once.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import time

from controller.runtime.clock import SystemClock
from controller.runtime.timer import CallAtTimer, Timer, TimerFd


async def lateness(timer: Timer, ticks: int, work: int = 0) -> tuple[list[int], int]:
    late, skipped = [], 0
    try:
        for _ in range(ticks):
            tick = await timer.tick()
            late.append(time.monotonic_ns() - tick.due_ns)
            skipped += tick.skipped
            _ = [[n] for n in range(work)]  # what a scan allocates, for the collector to count
    finally:
        timer.close()
    return late, skipped


def report(name: str, late: list[int], skipped: int) -> dict[str, object]:
    late = sorted(late)
    row = {
        "timer": name,
        "p50_us": late[len(late) // 2] // 1000,
        "p99_us": late[len(late) * 99 // 100] // 1000,
        "max_us": late[-1] // 1000,
        "skipped": skipped,
    }
    print(json.dumps(row), flush=True)
    return row


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--period-ms", type=float, default=10.0)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--objects", type=int, default=1_000_000, help="live objects in the garbage collector's cases")
    options = parser.parse_args()
    period = int(options.period_ms * 1e6)
    ticks = max(1, int(options.seconds * 1e9 / period))
    clock = SystemClock()

    report("call_at", *await lateness(CallAtTimer(clock, clock.monotonic_ns() + period, period), ticks))
    report("timerfd", *await lateness(TimerFd(clock.monotonic_ns() + period, period), ticks))

    live = [[n] for n in range(options.objects)]
    work = 2000
    report("timerfd, many live objects", *await lateness(TimerFd(clock.monotonic_ns() + period, period), ticks, work))
    gc.collect()
    gc.freeze()
    report("the same after gc.freeze()", *await lateness(TimerFd(clock.monotonic_ns() + period, period), ticks, work))
    del live


if __name__ == "__main__":
    asyncio.run(main())
