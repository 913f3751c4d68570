"""Ten thousand pulses to a PLC that loses 5 % of its answers to writes, while 5,000 of its registers are polled.

Run: ``python -m bench.pulse_writes [--pulses 10000] [--seed 1] [--json]``. A pulse is a new number in one output. It
is done when the link says VERIFIED, or, after a lost answer, when a reading asked for later shows it. The PLC logs
what it executed: each number must be there once, whatever was lost. The time of a pulse runs from the scan's wish to
that. As in a line, wishes come with a scan: one every 10 ms at most.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import time
from collections import Counter
from dataclasses import dataclass, field

from bench.adversary import WRITABLE, AdversaryTcp, Liar, Memory
from controller.core.image import InputBuffer, Layout, ProcessImage, WriteReport
from controller.runtime.bus import Link, LinkOptions
from controller.runtime.clock import SystemClock
from drivers.factory import make_driver
from drivers.options import ModbusTcpOptions
from drivers.port import Area, DataType, ModbusAddress, Outcome, Tag

PLC = "plc"
REGISTERS = 5_000
SCAN_S = 0.01
TIMEOUT_S = 0.03
GIVE_UP_S = 10.0


class Lossy(Liar):
    """Loses answers to writes: four in five of the losses after the write was executed, one before."""

    def mbap(self, tid: int, unit: int, request: bytes) -> list[tuple[float, bytes | None]]:
        if request[0] == 16 and self._rng.random() < self.share:
            executed = self._rng.random() < 0.8
            self.done["answer lost" if executed else "request lost"] += 1
            if executed:
                self.memory.answer(request)
            return []
        return [(0.0, self._frame(tid, unit, self.memory.answer(request)))]


class Buffer(InputBuffer):
    """Tells of each write's end at once, so that the scan's period is not part of what is measured."""

    def __init__(self, layout: Layout) -> None:
        super().__init__(layout)
        self.ended: list[WriteReport] = []
        self.news, self.scanned = asyncio.Event(), asyncio.Event()

    def report(self, report: WriteReport) -> None:
        super().report(report)
        self.ended.append(report)
        self.news.set()


@dataclass
class Score:
    pulses: int = 0
    lost: Counter[str] = field(default_factory=Counter)
    doubled: int = 0
    missing: int = 0
    falsely_verified: int = 0
    never_done: int = 0
    p50_ms: float = 0.0
    p99_ms: float = 0.0
    max_ms: float = 0.0
    reads_per_s: float = 0.0

    @property
    def sound(self) -> bool:
        return not (self.doubled or self.missing or self.falsely_verified or self.never_done)


def tags() -> list[Tag]:
    pulse = Tag(
        name="pulse",
        address=ModbusAddress(Area.HOLDING_REGISTER, WRITABLE),
        type=DataType.UDINT,
        writable=True,
        scan_class="out",
    )
    polled = [
        Tag(name=f"r{n}", address=ModbusAddress(Area.HOLDING_REGISTER, n), type=DataType.UINT) for n in range(REGISTERS)
    ]
    return [*polled, pulse]


async def pulses(count: int, seed: int) -> Score:
    """The whole run."""
    memory = Memory()
    liar = Lossy(memory, random.Random(seed), 0.05, late_s=0.0)
    score = Score(pulses=count)
    async with AdversaryTcp(liar) as server:
        options = ModbusTcpOptions(host="127.0.0.1", port=server.port, unit=1)
        driver = make_driver(PLC, options, tags())
        layout = Layout([(PLC, driver.groups)], {"fast": 500_000_000, "out": 500_000_000})
        buffer, image = Buffer(layout), ProcessImage(layout)
        periods = {"fast": 0.1, "out": 0.1}
        link_options = LinkOptions(periods_s=periods, timeout_s=TIMEOUT_S, connect_timeout_s=1.0)
        clock = SystemClock()
        link = Link(driver, buffer, clock, link_options, random.Random(seed))
        async with asyncio.TaskGroup() as group:
            running = group.create_task(link.run())
            scanning = group.create_task(scan(image, buffer, clock))
            times = [await pulse(number, link, buffer, image, memory, score) for number in range(1, count + 1)]
            score.reads_per_s = link.stats().requests / sum(times)
            running.cancel()
            scanning.cancel()
    times.sort()
    score.p50_ms, score.p99_ms, score.max_ms = (
        round(1e3 * times[min(len(times) - 1, int(len(times) * share))], 2) for share in (0.5, 0.99, 1.0)
    )
    score.lost = liar.done
    score.doubled = sum(1 for n in range(1, count + 1) if memory.executed[n] > 1)
    score.missing = sum(1 for n in range(1, count + 1) if memory.executed[n] == 0)
    return score


async def scan(image: ProcessImage, buffer: Buffer, clock: SystemClock) -> None:
    """What the scan does with the image, and no more."""
    while True:
        image.latch(clock.monotonic_ns(), buffer)
        buffer.news.set()
        buffer.scanned.set()
        await asyncio.sleep(SCAN_S)


async def pulse(number: int, link: Link, buffer: Buffer, image: ProcessImage, memory: Memory, score: Score) -> float:
    """One pulse; returns how long it took in s."""
    slot = image.layout.slots["pulse"]
    buffer.ended.clear()
    buffer.scanned.clear()
    await buffer.scanned.wait()
    start = time.monotonic()
    link.set_outputs({"pulse": number})
    while time.monotonic() - start < GIVE_UP_S:
        buffer.news.clear()
        for report in buffer.ended:
            if report.value == number and report.outcome is Outcome.VERIFIED:
                score.falsely_verified += memory.executed[number] != 1
                return time.monotonic() - start
        if image.bad[slot] is None and image.values[slot] == number:
            return time.monotonic() - start
        await buffer.news.wait()
    score.never_done += 1
    return time.monotonic() - start


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pulses", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="the JSON line alone")
    options = parser.parse_args()
    score = asyncio.run(pulses(options.pulses, options.seed))
    shown = {**vars(score), "lost": dict(score.lost)}
    if not options.json:
        for key, value in shown.items():
            print(f"{key:20} {value}")
    print(json.dumps(shown))
    return 0 if score.sound else 1


if __name__ == "__main__":
    sys.exit(main())
