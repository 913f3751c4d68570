"""A simulated day with a thousand disconnects: does every link come back, and does nothing grow?

    python bench/soak.py [--disconnects 1000] [--hours 24] [--seed 1] [--json]

Four PLCs (two of them units behind one gateway) are polled, and written a new set-point every minute, over real
sockets on 127.0.0.1, in virtual time. At random moments a device resets its connections, has no power, hangs and
answers nothing, hangs and answers everything late, or forgets its connections without a word.

Fails (exit code 1) when a link needs more than 5 s after its device is back, when an output is not what was wanted in
the end, when a task is left over, or when memory grows from the 100th disconnect to the last.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import random
import socket
import struct
import sys
import time
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

# The folder of this file would hide the package `drivers` behind drivers.py.
sys.path[0] = str(Path(__file__).resolve().parent.parent)

from bench.virtual_loop import VirtualLoop  # noqa: E402
from controller.core.image import InputBuffer, Layout, LinkReport, ProcessImage  # noqa: E402
from controller.runtime.bus import Link, LinkOptions  # noqa: E402
from drivers.factory import Links, make_driver  # noqa: E402
from drivers.options import ModbusTcpOptions  # noqa: E402
from drivers.port import Area, DataType, ModbusAddress, Tag  # noqa: E402

HOST = "127.0.0.1"
BACK_WITHIN_S = 5.0
SCAN_S = 0.5
POLL_S = 2.0
SETPOINT_S = 60.0
FIRST_LOOK = 100
GROWTH_BYTES = 64 * 1024
"""What may be more at the end than after the first 100 disconnects: a deque that fills, a string that is longer."""
RESET = struct.pack("ii", 1, 0)
REGISTERS = 20


class Device:
    """A Modbus TCP device with some units, and what can happen to it."""

    def __init__(self, units: Iterable[int]) -> None:
        self.memory = {unit: [0] * REGISTERS for unit in units}
        self.port = 0
        self.deaf = False
        """Takes requests and answers none."""
        self.held: list[Callable[[], None]] | None = None
        """Answers held back, while it hangs."""
        self.connections: set[Connection] = set()
        self._server: asyncio.Server | None = None

    async def power_on(self) -> None:
        """Listen, on the same port as before."""
        self._server = await asyncio.get_running_loop().create_server(lambda: Connection(self), HOST, self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def power_off(self) -> None:
        """Neither listen nor be connected."""
        assert self._server is not None
        self._server.close()
        self.reset()
        await self._server.wait_closed()
        self._server = None

    def reset(self) -> None:
        """Cut every connection."""
        for connection in list(self.connections):
            connection.cut()

    def forget(self) -> None:
        """Know nothing of the connections any more, and say so to nobody: they are half open."""
        for connection in self.connections:
            connection.forgotten = True


class Connection(asyncio.Protocol):
    """One client's connection to a device."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._buffer = b""
        self.forgotten = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._device.connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._device.connections.discard(self)

    def cut(self) -> None:
        """Reset it."""
        self._transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        self._transport.abort()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while len(self._buffer) >= 12:
            size = 6 + int.from_bytes(self._buffer[4:6], "big")
            frame, self._buffer = self._buffer[:size], self._buffer[size:]
            if self._device.held is not None and not self.forgotten:
                self._device.held.append(lambda frame=frame: self._answer(frame))  # type: ignore[misc]
            elif not self._device.deaf and not self.forgotten:
                self._answer(frame)

    def _answer(self, frame: bytes) -> None:
        if self._transport.is_closing():
            return
        head, unit, function = frame[:4], frame[6], frame[7]
        registers = self._device.memory[unit]
        offset, value = struct.unpack_from(">HH", frame, 8)
        if function == 3:
            registers[0] = (registers[0] + 1) & 0xFFFF
            data = struct.pack(f">{value}H", *registers[offset : offset + value])
            pdu = bytes((3, len(data))) + data
        elif function == 6:
            registers[offset] = value
            pdu = frame[7:12]
        else:
            pdu = bytes((function | 0x80, 1))
        self._transport.write(head + struct.pack(">HB", 1 + len(pdu), unit) + pdu)


class Watch(InputBuffer):
    """An input buffer that notes when links go down and come up."""

    def __init__(self, layout: Layout, loop: VirtualLoop) -> None:
        super().__init__(layout)
        self._loop = loop
        self.up: dict[str, asyncio.Event] = {plc: asyncio.Event() for plc in layout.plcs}
        self.at: dict[str, float] = dict.fromkeys(layout.plcs, 0.0)
        self.downs = 0

    def link(self, report: LinkReport) -> None:
        """As always, and a note."""
        super().link(report)
        self.at[report.plc] = self._loop.time()
        if report.up:
            self.up[report.plc].set()
        else:
            self.downs += 1
            self.up[report.plc].clear()


def tags(plc: str) -> list[Tag]:
    """A counter, some values, and a set-point."""
    made = [
        Tag(name=f"{plc}.w{n}", address=ModbusAddress(Area.HOLDING_REGISTER, n), type=DataType.UINT)
        for n in range(REGISTERS - 1)
    ]
    address = ModbusAddress(Area.HOLDING_REGISTER, REGISTERS - 1)
    return [*made, Tag(name=f"{plc}.sp", address=address, type=DataType.UINT, writable=True)]


class Day:
    """The plant, its links and the record of what happened."""

    def __init__(self, loop: VirtualLoop, seed: int) -> None:
        self.loop, self.rng = loop, random.Random(seed)
        self.devices = [Device([1]), Device([1]), Device([1, 2])]
        self.plcs: dict[str, tuple[Device, int]] = {}
        self.links: dict[str, Link] = {}
        self.changing = True
        """Whether set-points change; in the end they must not, to be compared."""
        self.fault = "start"
        self.faults: Counter[str] = Counter()
        self.recoveries: list[float] = []
        self.slow: list[str] = []
        self.wanted: dict[str, int] = {}
        self.done = 0
        self.looks: list[dict[str, float]] = []

    async def build(self) -> None:
        """Power on, and make the links."""
        shared, drivers = Links(), []
        for device in self.devices:
            await device.power_on()
            for unit in device.memory:
                name = f"plc{len(self.plcs)}"
                self.plcs[name] = device, unit
                options = ModbusTcpOptions(host=HOST, port=device.port, unit=unit)
                drivers.append(
                    make_driver(name, options, tags(name), links=shared, monotonic_ns=self.loop.monotonic_ns)
                )
        layout = Layout([(driver.name, driver.groups) for driver in drivers], {"fast": round(3 * POLL_S * 1e9)})
        self.buffer, self.image = Watch(layout, self.loop), ProcessImage(layout)
        options_ = LinkOptions(periods_s={"fast": POLL_S})
        for driver in drivers:
            rng = random.Random(self.rng.random())
            self.links[driver.name] = Link(driver, self.buffer, self.loop, options_, rng)

    async def scan(self) -> None:
        """What the controller does: latch, and want."""
        changed = 0.0
        while True:
            await asyncio.sleep(SCAN_S)
            self.image.latch(self.loop.monotonic_ns(), self.buffer)
            if self.changing and self.loop.time() - changed >= SETPOINT_S:
                changed = self.loop.time()
                for name, link in self.links.items():
                    self.wanted[name] = self.rng.randrange(65536)
                    link.set_outputs({f"{name}.sp": self.wanted[name]})

    async def disturb(self, disconnects: int, seconds: float) -> None:
        """The faults of the day, one after the other, each device recovered before the next one."""
        begin = self.loop.time()
        await self._all_back(self.plcs, begin)
        for number in range(1, disconnects + 1):
            await asyncio.sleep(self.rng.expovariate(disconnects / (seconds * 0.9)))
            device = self.rng.choice(self.devices)
            concerned = [name for name, (where, _) in self.plcs.items() if where is device]
            fault = self.rng.choice((self._reset, self._off, self._hang, self._late, self._forget))
            self.fault = fault.__name__.strip("_")
            self.faults[self.fault] += 1
            # From shorter than a time-out to longer than any: most faults are short, some last minutes.
            await fault(device, 10 ** self.rng.uniform(-2.0, 1.8))
            await self._all_back(concerned, self.loop.time())
            self.done = number
            if number in (FIRST_LOOK, disconnects):
                self._look()
        await asyncio.sleep(max(0.0, begin + seconds - self.loop.time()))

    async def _all_back(self, names: Iterable[str], since: float) -> None:
        """Every link must be up, and have been proven so since then."""
        for name in names:
            before = self.buffer.layout.number[name, 0]
            try:
                async with asyncio.timeout_at(since + 60.0):
                    while True:
                        await self.buffer.up[name].wait()
                        await self._fresh(name, before, since)
                        if self.buffer.up[name].is_set():
                            break
            except TimeoutError:
                self.slow.append(f"{name} is not back after 60 s: {self.links[name].stats().reason}")
                continue
            took = max(0.0, self.buffer.at[name] - since)
            self.recoveries.append(took)
            if took > BACK_WITHIN_S:
                self.slow.append(f"{name} took {took:.2f} s at {self.loop.time():.0f} s, after: {self.fault}")

    async def _fresh(self, name: str, group: int, since: float) -> None:
        """Until a reading was asked for after ``since`` and latched, or the link went down."""
        slot = self.image.layout.groups[group].first
        while self.buffer.up[name].is_set() and self.image.stamp_of(slot) < since * 1e9:  # noqa: ASYNC110
            await asyncio.sleep(SCAN_S / 5)

    async def _reset(self, device: Device, _: float) -> None:
        device.reset()

    async def _off(self, device: Device, seconds: float) -> None:
        await device.power_off()
        await asyncio.sleep(seconds)
        await device.power_on()

    async def _hang(self, device: Device, seconds: float) -> None:
        device.deaf = True
        await asyncio.sleep(seconds)
        device.deaf = False

    async def _late(self, device: Device, seconds: float) -> None:
        device.held = []
        await asyncio.sleep(seconds)
        held, device.held = device.held, None
        for answer in held:
            answer()

    async def _forget(self, device: Device, _: float) -> None:
        device.forget()

    def _look(self) -> None:
        gc.collect()
        # Statistics of this program itself are no leak of the links.
        own = sum(sys.getsizeof(value) for value in self.recoveries) + sys.getsizeof(self.recoveries)
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
        self.looks.append(
            {
                "disconnects": self.done,
                "traced_kb": (tracemalloc.get_traced_memory()[0] - own) / 1024,
                "rss_mb": pages * 4096 / 2**20,
                "tasks": len(asyncio.all_tasks()),
                "sockets": len(list(Path("/proc/self/fd").iterdir())),
            }
        )


async def run(day: Day, disconnects: int, seconds: float) -> list[str]:
    """The day. Returns what was wrong."""
    before = asyncio.all_tasks()
    await day.build()
    tasks = [asyncio.create_task(link.run(), name=f"link {name}") for name, link in day.links.items()]
    tasks.append(asyncio.create_task(day.scan(), name="scan"))
    trouble = asyncio.create_task(day.disturb(disconnects, seconds), name="trouble")
    await asyncio.wait([*tasks, trouble], return_when=asyncio.FIRST_COMPLETED)
    wrong = [f"{task.get_name()} ended: {task.exception()!r}" for task in tasks if task.done()]
    if trouble.done():
        await trouble
    day.changing = False
    await asyncio.sleep(2 * POLL_S)
    for name, (device, unit) in day.plcs.items():
        if name in day.wanted and device.memory[unit][-1] != day.wanted[name]:
            wrong.append(f"{name} holds {device.memory[unit][-1]}, wanted is {day.wanted[name]}")
    for task in [*tasks, trouble]:
        task.cancel()
    await asyncio.gather(*tasks, trouble, return_exceptions=True)
    for device in day.devices:
        await device.power_off()
    left = asyncio.all_tasks() - before - {asyncio.current_task()}
    wrong += [f"left behind: {task.get_name()}" for task in left]
    return wrong + day.slow + _growth(day.looks)


def _growth(looks: list[dict[str, float]]) -> list[str]:
    """What is more at the end than it was at the first look."""
    first, last = looks[0], looks[-1]
    more = [what for what in ("tasks", "sockets") if last[what] > first[what]]
    wrong = [f"{last[what]:g} {what} after {first[what]:g}" for what in more]
    grown = (last["traced_kb"] - first["traced_kb"]) * 1024
    if grown > GROWTH_BYTES:
        wrong.append(f"memory grew by {grown:.0f} bytes")
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--disconnects", type=int, default=1000)
    parser.add_argument("--hours", type=float, default=24.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    options = parser.parse_args()
    start = time.monotonic()
    tracemalloc.start()
    loop = VirtualLoop()
    day = Day(loop, options.seed)
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        wrong = runner.run(run(day, options.disconnects, options.hours * 3600))
    hours = (loop.time() - 1000) / 3600
    print(f"{day.done} disconnects in {hours:.1f} h ({time.monotonic() - start:.0f} s): {dict(day.faults)}")
    recoveries = sorted(day.recoveries)
    p50, p99, worst = (recoveries[int(share * (len(recoveries) - 1))] for share in (0.5, 0.99, 1.0))
    print(f"back after {p50:.2f} s (p50), {p99:.2f} s (p99), {worst:.2f} s (most)")
    print(f"links went down {day.buffer.downs} times")
    for look in day.looks:
        print("  ".join(f"{name} {value:10.1f}" for name, value in look.items()))
    for text in wrong:
        print("WRONG:", text)
    if options.json:
        grown = day.looks[-1]["traced_kb"] - day.looks[0]["traced_kb"]
        figures = {"disconnects": day.done, "hours": round(hours, 2), "back_p99_s": round(p99, 3)}
        figures |= {"back_max_s": round(worst, 3), "growth_kb": round(grown, 1), "wrong": len(wrong)}
        print(json.dumps(figures))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
