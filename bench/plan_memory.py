"""What a Modbus plan costs: time per tag to decode and to latch, and memory per tag.

Run: ``python bench/plan_memory.py [tags]``. Medians of several rounds; trust ratios, not absolutes.
"""

from __future__ import annotations

import gc
import itertools
import statistics
import sys
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

# The folder of this file would hide the package `drivers` behind drivers.py.
sys.path[0] = str(Path(__file__).resolve().parent.parent)

from bench.common import answers, mixed_tags  # noqa: E402
from controller.core.image import InputBuffer, Layout, ProcessImage  # noqa: E402
from drivers.plan import ModbusPlan  # noqa: E402
from drivers.port import Reading  # noqa: E402

ROUNDS = 9


def nanos(call: Callable[[], object], times: int, tags: int) -> float:
    """CPU nanoseconds of one call per tag: the median of several rounds."""
    rounds = []
    for _ in range(ROUNDS):
        start = time.process_time_ns()
        for _ in range(times):
            call()
        rounds.append((time.process_time_ns() - start) / times / tags)
    return statistics.median(rounds)


def speed(count: int) -> dict[str, float]:
    """Nanoseconds per tag: everything changed, nothing changed, and latching either."""
    plan = ModbusPlan(mixed_tags(count))
    turns = itertools.cycle([answers(plan, 1), answers(plan, 2)])
    same = answers(plan, 1)
    copies = itertools.cycle([[bytes(bytearray(a)) for a in same] for _ in range(2)])
    layout = Layout([("plc", plan.groups)], {"fast": 10**18})
    image, buffer = ProcessImage(layout), InputBuffer(layout)
    readings = itertools.cycle([Reading(plan.decode(0, next(turns))[0], 1) for _ in range(2)])

    def latch() -> None:
        buffer.put("plc", 0, next(readings))
        image.latch(1, buffer)

    for _ in range(50):  # the interpreter specialises code that has run some times
        plan.decode(0, next(turns))
    found = {"decode, all changed": nanos(lambda: plan.decode(0, next(turns)), 20, count)}
    plan.decode(0, same)
    found["decode, nothing changed"] = nanos(lambda: plan.decode(0, next(copies)), 200, count)
    found["latch, all changed"] = nanos(latch, 100, count)
    same_reading = itertools.repeat(next(readings))
    readings = itertools.cycle([next(same_reading)])
    found["latch, nothing changed"] = nanos(latch, 100, count)
    return found


def memory(count: int) -> dict[str, float]:
    """Bytes per tag that stay allocated: tags, plan, image, last values.

    No plan of these tags may be alive: plans share what is the same in them.
    """
    gc.collect()
    tracemalloc.start()
    marks = [tracemalloc.get_traced_memory()[0]]

    def mark() -> None:
        gc.collect()
        marks.append(tracemalloc.get_traced_memory()[0])

    tags = mixed_tags(count)
    mark()
    plan = ModbusPlan(tags)
    del tags
    mark()
    layout = Layout([("plc", plan.groups)], {"fast": 10**18})
    image, buffer = ProcessImage(layout), InputBuffer(layout)
    mark()
    for seed in range(3):
        values, bad = plan.decode(0, answers(plan, seed))
        buffer.put("plc", 0, Reading(values, 1, bad))
        image.latch(1, buffer)
        del values, bad
    mark()
    tracemalloc.stop()
    steps = [(b - a) / count for a, b in itertools.pairwise(marks)]
    return dict(zip(("tags", "plan", "image", "values"), steps, strict=True)) | {"together": sum(steps)}


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
    for what, figure in memory(count).items():
        print(f"{what:<26}{figure:8.1f} bytes per tag")
    start = time.perf_counter()
    plan = ModbusPlan(mixed_tags(count))
    print(f"{count} tags in {len(plan.requests(0))} requests, planned in {time.perf_counter() - start:.2f} s")
    for what, figure in speed(count).items():
        print(f"{what:<26}{figure:8.1f} ns per tag")


if __name__ == "__main__":
    main()
