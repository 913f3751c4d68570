"""A link in virtual time: a driver that does as it is told, a scan that latches, a loop whose clock jumps."""

from __future__ import annotations

import asyncio
import random
import selectors
from collections import deque
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any

from controller.core.image import InputBuffer, Layout, LinkReport, ProcessImage, WriteReport
from controller.runtime.bus import Link, LinkOptions
from drivers.port import (
    Address,
    Area,
    DataType,
    DriverStats,
    LinkDown,
    ModbusAddress,
    Outcome,
    ReadGroup,
    Reading,
    Tag,
    Value,
    WriteOutcome,
)

MS = 1_000_000


class SkippingSelector(selectors.DefaultSelector):
    """Instead of waiting, moves the loop's clock."""

    now = 1000.0

    def select(self, timeout: float | None = None) -> list[Any]:
        ready = super().select(0)
        if not ready:
            assert timeout is not None, "everything waits for something that never comes"
            self.now += timeout
        return ready


class VirtualLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self.skipping = SkippingSelector()
        super().__init__(self.skipping)

    def time(self) -> float:
        return self.skipping.now


class LoopClock:
    def monotonic_ns(self) -> int:
        return round(asyncio.get_running_loop().time() * 1e9)

    def utc_ns(self) -> int:
        return self.monotonic_ns()


def address(n: int) -> Address:
    return ModbusAddress(Area.HOLDING_REGISTER, n)


def tag(name: str, n: int, kind: DataType = DataType.UINT, **more: Any) -> Tag:
    return Tag(name=name, address=address(n), type=kind, **more)


GROUPS = (
    ReadGroup(
        "fast",
        (
            tag("p.heart", 0),
            tag("p.level", 1),
            tag("p.run", 2, writable=True),
            tag("p.speed", 3, DataType.REAL, writable=True),
            tag("p.life", 4, writable=True),
        ),
    ),
    ReadGroup("slow", (tag("p.temp", 5, scan_class="slow"), tag("p.rail", 6, scan_class="slow", writable=True))),
)


class FakeDriver:
    """A PLC in memory. ``reads``/``writes``/``connects`` hold what the next calls do instead of succeeding."""

    name, endpoint = "wet", "10.0.0.1:502"

    def __init__(self, groups: tuple[ReadGroup, ...] = GROUPS) -> None:
        self.groups = groups
        self.memory: dict[str, Value | None] = {t.name: 0 for g in groups for t in g.tags}
        self.connected = False
        self.read_s = self.write_s = 0.001
        self.connects: deque[Exception | None] = deque()
        self.reads: deque[Exception | None] = deque()
        self.writes: deque[Outcome | str] = deque()
        self.log: list[tuple[int, str]] = []
        self.blocks: deque[Outcome | str] = deque()
        self.counting = True
        self._busy: set[str] = set()

    async def connect(self, timeout_s: float) -> None:
        self._note("connect")
        await asyncio.sleep(0.001)
        if self.connects and (exc := self.connects.popleft()):
            raise exc
        self.connected = True

    async def read(self, group: int, timeout_s: float) -> Reading:
        stamp = LoopClock().monotonic_ns()
        self._note(f"read {group}")
        await self._alone("read", self.read_s)
        if self.reads and (exc := self.reads.popleft()):
            raise exc
        self._check()
        if self.counting:
            self.memory["p.heart"] = stamp // (100 * MS) % 65536
        self.program(stamp)
        return Reading(tuple(self.memory[t.name] for t in self.groups[group].tags), stamp)

    async def write(self, tag: str, value: Value, timeout_s: float) -> WriteOutcome:
        self._note(f"write {tag}={value}")
        return await self._write({tag: value}, self.writes)

    async def write_block(self, values: Mapping[str, Value], timeout_s: float) -> WriteOutcome:
        self._note("block " + " ".join(f"{tag}={value}" for tag, value in values.items()))
        return await self._write(values, self.blocks)

    def block_problem(self, tags: Sequence[str]) -> str:
        return "there is a gap" if "p.rail" in tags else ""

    def stats(self) -> DriverStats:
        return DriverStats(requests=len(self.log))

    def program(self, now: int) -> None:
        """What else the PLC does, before each reading."""

    def executed(self, values: Mapping[str, Value]) -> None:
        """The PLC takes over what was written."""
        self.memory |= values

    async def _write(self, values: Mapping[str, Value], words: deque[Outcome | str]) -> WriteOutcome:
        await self._alone("write", self.write_s)
        word = words.popleft() if words else Outcome.VERIFIED
        if not self.connected:
            return WriteOutcome(Outcome.REJECTED, "not connected")
        if word in (Outcome.VERIFIED, "executed"):
            self.executed(values)
        if word == "executed":
            return WriteOutcome(Outcome.UNKNOWN, "no answer")
        if word == "lost":
            self.connected = False
            return WriteOutcome(Outcome.UNKNOWN, "lost")
        return WriteOutcome(Outcome(word), "" if word is Outcome.VERIFIED else f"as told: {word}")

    async def close(self) -> None:
        self.connected = False
        self._note("close")

    def _check(self) -> None:
        if not self.connected:
            raise LinkDown("wet", "cable pulled")

    async def _alone(self, what: str, seconds: float) -> None:
        assert what not in self._busy, f"two {what}s at once"
        self._busy.add(what)
        try:
            await asyncio.sleep(seconds)
        finally:
            self._busy.discard(what)

    def _note(self, text: str) -> None:
        self.log.append((LoopClock().monotonic_ns() // MS - 1_000_000, text))

    def times(self, text: str) -> list[int]:
        return [at for at, what in self.log if what.startswith(text)]

    def said(self, *starts: str) -> list[str]:
        return [what for _, what in self.log if what.startswith(starts)]


class Bench:
    """Link, driver, and a scan that latches every 10 ms and keeps what it was told."""

    def __init__(self, driver: FakeDriver | None = None, **options: Any) -> None:
        self.driver = driver or FakeDriver()
        layout = Layout([(self.driver.name, self.driver.groups)], {"fast": 500 * MS, "slow": 3000 * MS})
        self.buffer, self.image = InputBuffer(layout), ProcessImage(layout)
        defaults: dict[str, Any] = {"periods_s": {"fast": 0.1, "slow": 1.0}}
        self.link = Link(self.driver, self.buffer, LoopClock(), LinkOptions(**defaults | options), random.Random(1))
        self.links: list[LinkReport] = []
        self.reports: list[WriteReport] = []
        self.scans = 0
        self.beating = False
        self.latching = True

    def value(self, name: str) -> Value | None:
        slot = self.image.layout.slots[name]
        return self.image.values[slot] if self.image.bad[slot] is None else None

    def why(self, name: str) -> str | None:
        return self.image.bad[self.image.layout.slots[name]]

    async def scan(self) -> None:
        while True:
            if self.latching:
                links, reports = self.image.latch(LoopClock().monotonic_ns(), self.buffer)
                self.links += links
                self.reports += reports
                self.scans += 1
                if self.beating:
                    self.link.beat(self.scans)
            await asyncio.sleep(0.01)


def virtual(test: Callable[[Bench], Coroutine[Any, Any, None]], **options: Any) -> Bench:
    """Run ``test`` beside a running link and scan, in virtual time; ``options`` are the link's, and ``driver``."""

    async def main() -> Bench:
        bench = Bench(**options)
        tasks = [asyncio.create_task(bench.link.run()), asyncio.create_task(bench.scan())]
        try:
            await test(bench)
        finally:
            failed = [task for task in tasks if task.done()]
            for task in tasks:
                task.cancel()
            results = await asyncio.gather(*tasks, return_exceptions=True)
        assert not failed, results
        assert all(isinstance(r, asyncio.CancelledError) for r in results), results
        assert asyncio.all_tasks() == {asyncio.current_task()}
        assert not bench.driver.connected
        return bench

    loop = VirtualLoop()
    try:
        return loop.run_until_complete(main())
    finally:
        loop.close()
