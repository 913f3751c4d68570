"""A quarter of a shift of the bottling line on the bench tier: simulated seconds per second of CPU.

Side by side in one run, each in a process of its own, in turn:

* ``skip``: as it is. Blocks of PLC memory that did not change are neither fetched nor decoded.
* ``all``: the baseline. Every block is fetched and decoded at every poll, as a client without memory would.

    python bench/shift.py [simulated seconds] [rounds]
"""

from __future__ import annotations

import multiprocessing
import statistics
import sys
import time

from hil import bench


def run(how: str, seconds: int) -> float:
    """CPU seconds for so many simulated ones."""
    line = bench.Bench("bottling", 7)
    shift = bench.Shift(line, 7, seconds * bench.SECOND)
    memories = [link._memory for link in line.links]
    begin = time.process_time()
    while line.now_ns < seconds * bench.SECOND:
        if how == "all":
            for memory in memories:
                forget(memory)
        shift.act()
        line.step()
    return time.process_time() - begin


def forget(memory: bench.Memory) -> None:
    """Make the reader take everything for new."""
    if isinstance(memory, bench.ModbusMemory):
        for blocks in memory._blocks:
            for block in blocks:
                block.seen = -1
        for group in memory._plan._compiled:
            group.last = [None] * len(group.last)
    elif isinstance(memory, bench.NodeMemory):
        memory._version = [-1] * len(memory._version)
        memory._raw = [[] for _ in memory._raw]


def main() -> None:
    seconds = int(sys.argv[1]) if len(sys.argv) > 1 else 600
    rounds = int(sys.argv[2]) if len(sys.argv) > 2 else 3
    times: dict[str, list[float]] = {"skip": [], "all": []}
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        for _ in range(rounds):
            for how, found in times.items():
                found.append(pool.apply(run, (how, seconds)))
    skip, everything = (statistics.median(times[how]) for how in ("skip", "all"))
    print(f"{seconds} simulated s at a 100 ms scan, median of {rounds}")
    print(f"  skip   {skip:6.2f} s CPU   {seconds / skip:6.0f} simulated s per CPU s")
    print(f"  all    {everything:6.2f} s CPU   {seconds / everything:6.0f} simulated s per CPU s")
    print(f"  ratio  {skip / everything:6.2f}   an 8 h shift takes about {28800 / seconds * skip:.0f} s CPU")


if __name__ == "__main__":
    main()
