"""Sixteen units behind one gateway, polled as fast as it serves them; one falls silent, and comes back.

Run: ``python -m bench.silent_unit [--json]``. The gateway serves one request after the other, as a serial line forces
it to; for the silent unit it waits its own time-out and then says nothing. Each unit is a PLC with its own link, as in
a line. Shown are the neighbours' cycle with and without the silent unit, and how soon the image knows.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import random
import statistics
import struct
import sys
import time
from dataclasses import dataclass

from controller.core.image import InputBuffer, Layout, ProcessImage
from controller.runtime.bus import Link, LinkOptions
from controller.runtime.clock import SystemClock
from drivers.factory import Links, make_driver
from drivers.options import ModbusTcpOptions
from drivers.port import Area, DataType, ModbusAddress, Reading, Tag

UNITS = 16
EXCHANGE_S = 0.005
BLOCKED_S = 0.015
"""How long the gateway waits for a unit that does not answer."""
SCAN_S = 0.01
TIMEOUT_S = 0.03
MBAP = struct.Struct(">HHHB")


class Gateway:
    """Serves unit 1 to 16 one after the other; ``silent`` ones not at all."""

    def __init__(self) -> None:
        self.port = 0
        self.silent: set[int] = set()
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Gateway:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            while True:
                tid, _, length, unit = MBAP.unpack(await reader.readexactly(7))
                _, first, count = struct.unpack(">BHH", await reader.readexactly(length - 1))
                if unit in self.silent:
                    await asyncio.sleep(BLOCKED_S)
                    continue
                await asyncio.sleep(EXCHANGE_S)
                words = [unit * 1000 + first + n & 0xFFFF for n in range(count)]
                pdu = struct.pack(f">BB{count}H", 3, 2 * count, *words)
                writer.write(MBAP.pack(tid, 0, len(pdu) + 1, unit) + pdu)
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            writer.close()
        finally:
            self._tasks.discard(task)


class Buffer(InputBuffer):
    """Notes when each unit was read."""

    def __init__(self, layout: Layout) -> None:
        super().__init__(layout)
        self.times: dict[str, list[float]] = {plc: [] for plc in layout.plcs}

    def put(self, plc: str, group: int, reading: Reading) -> None:
        super().put(plc, group, reading)
        self.times[plc].append(time.monotonic())


@dataclass
class Score:
    healthy_cycle_ms: float = 0.0
    cycle_ms: float = 0.0
    cycle_ratio: float = 0.0
    worst_cycle_ratio: float = 0.0
    """Longest single cycle of a neighbour while the unit was silent (its last steady seconds)."""
    onset_ms: float = 0.0
    """Longest single cycle of a neighbour when it fell silent."""
    bad_after_scans: float = 0.0
    """In cycles, from the last answer on."""
    back_after_scans: float = 0.0


def cycles(buffer: Buffer, start: float, end: float) -> list[float]:
    """Cycle times in s of units 2 to 16 between two instants."""
    found: list[float] = []
    for plc, times in buffer.times.items():
        if plc != "u1":
            inside = [t for t in times if start <= t <= end]
            found += [b - a for a, b in itertools.pairwise(inside)]
    return found


async def measure(steady_s: float) -> Score:
    """The whole run, about three times ``steady_s``."""
    score = Score()
    clock = SystemClock()
    async with Gateway() as gateway:
        links, drivers = Links(), {}
        for unit in range(1, UNITS + 1):
            tag = Tag(name=f"u{unit}.a", address=ModbusAddress(Area.HOLDING_REGISTER, 10), type=DataType.UINT)
            options = ModbusTcpOptions(host="127.0.0.1", port=gateway.port, unit=unit)
            drivers[f"u{unit}"] = make_driver(f"u{unit}", options, [tag], links=links)
        layout = Layout([(name, driver.groups) for name, driver in drivers.items()], {"fast": 10_000_000_000})
        buffer, image = Buffer(layout), ProcessImage(layout)
        options = LinkOptions(periods_s={"fast": 0.01}, timeout_s=TIMEOUT_S)
        runs = [Link(driver, buffer, clock, options, random.Random(name)) for name, driver in drivers.items()]
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(link.run()) for link in runs]
            tasks.append(group.create_task(_scan(image, buffer, clock)))
            await asyncio.sleep(1.0)
            start = time.monotonic()
            await asyncio.sleep(steady_s)
            healthy = statistics.mean(cycles(buffer, start, time.monotonic()))
            silent = time.monotonic()
            gateway.silent.add(1)
            slot = image.layout.slots["u1.a"]
            bad = await _when(lambda: image.bad[slot] is not None)
            await asyncio.sleep(1.0)
            score.onset_ms = round(1e3 * max(cycles(buffer, silent - healthy, time.monotonic())), 1)
            start = time.monotonic()
            await asyncio.sleep(steady_s)
            found = cycles(buffer, start, time.monotonic())
            back = time.monotonic()
            gateway.silent.clear()
            good = await _when(lambda: image.bad[slot] is None)
            for task in tasks:
                task.cancel()
    score.healthy_cycle_ms = round(1e3 * healthy, 1)
    score.cycle_ms = round(1e3 * statistics.mean(found), 1)
    score.cycle_ratio = round(statistics.mean(found) / healthy, 3)
    score.worst_cycle_ratio = round(max(found) / healthy, 2)
    score.bad_after_scans = round((bad - silent) / healthy, 2)
    score.back_after_scans = round((good - back) / healthy, 2)
    return score


async def _when(condition: object) -> float:
    assert callable(condition)
    while not condition():  # noqa: ASYNC110 - the image tells nobody
        await asyncio.sleep(0.002)
    return time.monotonic()


async def _scan(image: ProcessImage, buffer: InputBuffer, clock: SystemClock) -> None:
    while True:
        image.latch(clock.monotonic_ns(), buffer)
        await asyncio.sleep(SCAN_S)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--json", action="store_true", help="the JSON line alone")
    options = parser.parse_args()
    score = asyncio.run(measure(options.seconds))
    if not options.json:
        for key, value in vars(score).items():
            print(f"{key:20} {value}")
    print(json.dumps(vars(score)))
    return 0 if score.cycle_ratio <= 1.2 else 1


if __name__ == "__main__":
    sys.exit(main())
