"""Modbus TCP, one device: a scan of 10,000 tags, and bare requests. docs/bench.md says what exactly is measured."""

from __future__ import annotations

import gc
import time
from contextlib import AsyncExitStack
from typing import Any

from pymodbus.client import AsyncModbusTcpClient

from bench import images
from bench.common import mixed_tags
from bench.peers.build import Peer
from bench.ratio import Row, in_turns, median, median_ratio
from bench.setting import HOST, Setting, cost
from controller.core.image import InputBuffer, Layout, ProcessImage
from drivers.factory import make_driver
from drivers.options import ModbusTcpOptions
from drivers.plan import ModbusPlan
from drivers.port import Area, DataType, Driver, ModbusAddress, Tag, Value, WordOrder

TAGS = 10_000
BLOCK = 125
BLOCKS = 128
IN_FLIGHT = 16
STALE_NS = 60 * 10**9


class Ours:
    """Our driver with the process image behind it."""

    def __init__(self, tags: list[Tag], port: int, in_flight: int, name: str = "plc") -> None:
        options = ModbusTcpOptions(host=HOST, port=port, in_flight=in_flight)
        self.driver: Driver = make_driver(name, options, tags)
        self.name = name
        self.layout = Layout([(name, self.driver.groups)], {"fast": STALE_NS})
        self.buffer, self.image = InputBuffer(self.layout), ProcessImage(self.layout)

    async def scan(self) -> None:
        """Read everything, and latch it with quality and age as the controller does."""
        for group in range(len(self.driver.groups)):
            self.buffer.put(self.name, group, await self.driver.read(group, 1.0))
        self.image.latch(time.monotonic_ns(), self.buffer)

    def values(self, tags: list[Tag]) -> list[Value | None]:
        """The image's good values in the order of ``tags``; ``None`` where one is bad."""
        image, slots = self.image, self.layout.slots
        return [None if image.bad[slots[t.name]] else image.values[slots[t.name]] for t in tags]


class Baseline:
    """The stock pymodbus client: the same blocks one after the other, and ``convert_from_registers`` per tag."""

    def __init__(self, tags: list[Tag], port: int) -> None:
        self.client = AsyncModbusTcpClient(HOST, port=port, timeout=5, retries=0)
        self.values: list[Value | None] = [None] * len(tags)
        kinds = self.client.DATATYPE
        types = {
            DataType.INT: kinds.INT16, DataType.UINT: kinds.UINT16, DataType.DINT: kinds.INT32,
            DataType.UDINT: kinds.UINT32, DataType.LINT: kinds.INT64, DataType.ULINT: kinds.UINT64,
            DataType.REAL: kinds.FLOAT32, DataType.LREAL: kinds.FLOAT64,
        }  # fmt: skip
        read = {
            Area.COIL: self.client.read_coils,
            Area.DISCRETE_INPUT: self.client.read_discrete_inputs,
            Area.INPUT_REGISTER: self.client.read_input_registers,
            Area.HOLDING_REGISTER: self.client.read_holding_registers,
        }
        self.blocks: list[tuple[Any, int, int, list[Any]]] = []
        for request in ModbusPlan(tags).requests(0):
            members = []
            for index, tag in enumerate(tags):
                address = tag.address
                assert isinstance(address, ModbusAddress)
                at = address.offset - request.offset
                if address.area is request.area and 0 <= at < request.count:
                    kind = types.get(tag.type)
                    order = "little" if tag.word_order is WordOrder.CDAB else "big"
                    size = kind.value[1] if kind else 1
                    members.append((index, at, at + size, kind, order, address.bit, tag.scale, tag.offset, tag.scaled))
            self.blocks.append((read[request.area], request.offset, request.count, members))

    async def scan(self) -> None:
        """Read and convert everything."""
        values, convert = self.values, self.client.convert_from_registers
        for read, offset, count, members in self.blocks:
            answer = await read(offset, count=count)
            registers, bits = answer.registers, answer.bits
            for index, first, last, kind, order, bit, scale, add, scaled in members:
                if kind is None:
                    values[index] = bits[first] if bit is None else registers[first] & 1 << bit != 0
                else:
                    value = convert(registers[first:last], kind, order)
                    values[index] = value * scale + add if scaled else value


def check(tags: list[Tag], got: list[Value | None], last: list[Value | None]) -> None:
    """Both sides must have read what the device holds, and something new in every tag."""
    for tag, value, before in zip(tags, got, last, strict=True):
        assert value is not None and value != before, f"{tag.name}: {value} after {before}"
    for number in range(images.COUNT):
        wanted = images.expected(tags, number)
        if all(a == b for a, b in zip(got, wanted, strict=True)):
            return
    raise AssertionError("the values read are in no image of the device")


async def scan_10k(setting: Setting) -> list[Row]:
    """10,000 mixed tags of one device, every value another one in every scan."""
    tags = mixed_tags(TAGS)
    async with setting.device(tags) as device, AsyncExitStack() as stack:
        port = device.port()
        many, one = Ours(tags, port, IN_FLIGHT), Ours(tags, port, 1)
        base = Baseline(tags, port)
        stack.callback(base.client.close)
        assert await base.client.connect()
        for side in (many, one):
            stack.push_async_callback(side.driver.close)
            await side.driver.connect(5.0)
            await side.scan()
            before = side.values(tags)
            await side.scan()
            check(tags, side.values(tags), before)
        await base.scan()
        old = list(base.values)
        await base.scan()
        check(tags, base.values, old)
        gc.collect()
        times, ratios = await in_turns(
            setting.rounds,
            lambda: cost(many.scan, 40),
            lambda: cost(base.scan, 3),
            lambda: cost(one.scan, 20),
        )
    single = median_ratio(times[2], times[1])
    ours, stock, alone = (f"{median(side) / TAGS * 1e6:.3f} µs/tag" for side in times)
    return [
        Row("scan_10k_vs_pymodbus", "scan of 10,000 changing tags", ratios[0], "≤ 0.10", "0.04", ours, stock),
        Row("", "  the same, one request at a time", single, "", "", alone, stock),
    ]


def words(count: int) -> list[Tag]:
    """``count`` UINT tags, one register each."""
    return [
        Tag(name=f"w.{n}", address=ModbusAddress(Area.HOLDING_REGISTER, n), type=DataType.UINT) for n in range(count)
    ]


class Classic:
    """The libmodbus client in C, and what it said last."""

    def __init__(self, peer: Peer, count: int) -> None:
        self._peer, self._count = peer, count

    async def _run(self) -> tuple[float, float]:
        spent, wall, changes = (int(word) for word in self._peer.ask(str(self._count)).split())
        assert changes >= self._count - 1, "the device must show other values every time"
        return spent / self._count / 1e9, wall / self._count / 1e9

    async def cpu(self) -> float:
        """Processor time of a request, s."""
        return (await self._run())[0]

    async def wall(self) -> float:
        """Time of a request on the clock, s."""
        return (await self._run())[1]


async def requests(setting: Setting) -> list[Row]:
    """Requests of 125 registers: processor time at one outstanding, and how many a second with 16."""
    small, large, count = words(BLOCK), words(BLOCK * BLOCKS), 400 if setting.quick else 1000
    # More and shorter rounds than elsewhere: what else runs on the machine shows most here.
    rounds = setting.rounds * 3
    async with setting.device(large) as device, AsyncExitStack() as stack:
        port = device.port()
        classic = Classic(stack.enter_context(Peer([setting.client, port], core=setting.client_core)), count)
        one, many = Ours(small, port, 1), Ours(large, port, IN_FLIGHT)
        for side in (one, many):
            stack.push_async_callback(side.driver.close)
            await side.driver.connect(5.0)
        busy: list[float] = []

        async def pipelined() -> float:
            start, served, times = time.perf_counter(), device.cpu_s(), count // 50
            for _ in range(times):
                await many.driver.read(0, 1.0)
            spent = time.perf_counter() - start
            busy.append((device.cpu_s() - served) / spent)
            return spent / times / BLOCKS

        gc.collect()
        spent, ratio = await in_turns(rounds, lambda: cost(lambda: one.driver.read(0, 1.0), count), classic.cpu)
        walls, slower = await in_turns(rounds, pipelined, classic.wall)
    ours, theirs = (f"{median(side) * 1e6:.1f} µs" for side in spent)
    fast, slow = (f"{1 / median(side):,.0f}/s" for side in walls)
    return [
        Row("request_vs_libmodbus", "one request of 125 registers", ratio[0], "≤ 1.6", "1.2", ours, theirs),
        Row("pipelined_rps_vs_libmodbus", "requests a second, 16 outstanding", 1 / slower[0], "≥ 4", "8", fast, slow),
        Row("", "  share of its core the C server works then", median(busy)),
    ]
