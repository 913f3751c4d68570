"""The link's supervision over a real driver and a real server, in real time."""

from __future__ import annotations

import asyncio
import random
import struct
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
from honest_modbus import Memory, TcpServer

from controller.core.image import InputBuffer, Layout, LinkReport, ProcessImage, WriteReport
from controller.runtime.bus import Link
from controller.runtime.bus_commands import BlockOptions
from controller.runtime.bus_options import LinkOptions
from controller.runtime.clock import SystemClock
from drivers.factory import make_driver
from drivers.options import ModbusTcpOptions
from drivers.port import Area, DataType, ModbusAddress, Outcome, Tag, WordOrder
from hil.plc.commands import Arrival, NumberedCommand

pytestmark = [pytest.mark.wire, pytest.mark.usefixtures("no_leaks")]

TAGS = [
    Tag(name="a.level", address=ModbusAddress(Area.INPUT_REGISTER, 0), type=DataType.UINT),
    Tag(name="a.run", address=ModbusAddress(Area.COIL, 0), type=DataType.BOOL, writable=True),
]


class Scan:
    """A scan that only latches, and keeps what it was told."""

    def __init__(self, link: Link, image: ProcessImage, buffer: InputBuffer) -> None:
        self.link, self.image, self.buffer = link, image, buffer
        self.links: list[LinkReport] = []
        self.reports: list[WriteReport] = []

    @property
    def ups(self) -> list[bool]:
        return [report.up for report in self.links]

    async def until(self, condition: Callable[[], object], within_s: float = 5.0) -> None:
        async with asyncio.timeout(within_s):
            while not condition():
                links, reports = self.image.latch(SystemClock().monotonic_ns(), self.buffer)
                self.links += links
                self.reports += reports
                await asyncio.sleep(0.005)

    async def pause(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        await self.until(lambda: time.monotonic() >= end)

    @property
    def up(self) -> bool:
        return self.image.up["wet"]

    def good(self, name: str) -> bool:
        return self.image.bad[self.image.layout.slots[name]] is None

    def value(self, name: str) -> Any:
        return self.image.values[self.image.layout.slots[name]]


@asynccontextmanager
async def running(server: TcpServer, tags: Sequence[Tag], options: LinkOptions, **more: Any) -> AsyncIterator[Scan]:
    """A link to the server, with a scan."""
    driver = make_driver("wet", ModbusTcpOptions(host="127.0.0.1", port=server.port, unit=3, **more), tags)
    layout = Layout([("wet", driver.groups)], {"fast": 2_000_000_000})
    buffer, image = InputBuffer(layout), ProcessImage(layout)
    link = Link(driver, buffer, SystemClock(), options, random.Random(3))
    task = asyncio.create_task(link.run())
    try:
        yield Scan(link, image, buffer)
    finally:
        task.cancel()
        ended = await asyncio.gather(task, return_exceptions=True)
    assert isinstance(ended[0], asyncio.CancelledError), ended
    assert not link.stats().up


async def test_values_in_outputs_out_and_back_again_after_a_reset() -> None:
    async with (
        TcpServer(unit=3) as server,
        running(server, TAGS, LinkOptions(periods_s={"fast": 0.02}, timeout_s=0.2)) as scan,
    ):
        server.memory.ir[0] = 41
        await scan.until(lambda: scan.up and scan.good("a.level"))
        assert scan.value("a.level") == 41
        scan.link.set_outputs({"a.run": True})
        await scan.until(lambda: server.memory.co[0])
        await scan.until(lambda: scan.value("a.run") is True)

        server.memory.co[0] = False
        await server.stop()
        await scan.until(lambda: not scan.up)
        assert not scan.good("a.level")
        await server.start()
        await scan.until(lambda: server.memory.co[0] and scan.up)
        assert scan.ups == [True, False, True]
        assert (await scan.link.write_now({"a.run": False}, 1.0))["a.run"].outcome == "verified"
        assert not server.memory.co[0]
        stats = scan.link.stats()
        assert stats.reconnects == 1
        assert stats.breaker == "closed"


# --- a PLC that keeps the contract


def register(name: str, area: Area, offset: int, kind: DataType = DataType.UINT, *, writable: bool = False) -> Tag:
    address = ModbusAddress(area, offset)
    return Tag(name=name, address=address, type=kind, word_order=WordOrder.CDAB, writable=writable)


IR, HR, UDINT = Area.INPUT_REGISTER, Area.HOLDING_REGISTER, DataType.UDINT
CONTRACT = [
    register("a.boot", IR, 1),
    register("a.version", IR, 2),
    register("a.pattern", IR, 3, UDINT),
    register("a.clock", IR, 5, UDINT),
    register("a.ack", IR, 7, UDINT),
    register("a.cmd", HR, 10, writable=True),
    register("a.until", HR, 11, UDINT, writable=True),
    register("a.id", HR, 13, UDINT, writable=True),
    register("a.speed", HR, 20, writable=True),
]
OPTIONS = LinkOptions(
    periods_s={"fast": 0.03},
    timeout_s=0.15,
    reconnect_max_s=0.4,
    identity={"a.version": 3, "a.pattern": 0x01020304},
    boot_counter="a.boot",
    blocks=(
        BlockOptions(id="a.id", tags=("a.cmd",), ack="a.ack", valid_until="a.until", clock="a.clock", valid_ms=800),
    ),
)


class ContractPlc(Memory):
    """Registers with low word first. Restarts by :meth:`restart`."""

    def __init__(self) -> None:
        super().__init__()
        self.boots = 0
        self.command = NumberedCommand()
        self.done: list[tuple[int, int]] = []
        self.late: list[int] = []
        self.restart()

    def restart(self) -> None:
        self.boots += 1
        self.hr[:] = [0] * len(self.hr)
        self.ir[1:3] = [self.boots, 3]
        self.ir[3:5] = [0x0304, 0x0102]
        self.command.restart()
        self.since = time.monotonic()
        self.show(7, 0)

    def show(self, offset: int, value: int) -> None:
        self.ir[offset : offset + 2] = [value & 0xFFFF, value >> 16]

    def clock(self) -> int:
        return int((time.monotonic() - self.since) * 1000) % 2**32

    def answer(self, pdu: bytes) -> bytes:
        self.show(5, self.clock())
        reply = super().answer(pdu)
        until, number = (self.hr[n] | self.hr[n + 1] << 16 for n in (11, 13))
        arrival = self.command.arrived(number, until, self.clock())
        if arrival is Arrival.NEW:
            self.done.append((number, self.hr[10]))
        elif arrival is Arrival.LATE:
            self.late.append(number)
        self.show(7, self.command.last)
        return reply

    def blocks(self) -> list[bytes]:
        """The writes of the command block."""
        return [pdu for pdu in self.writes if struct.unpack(">H", pdu[1:3])[0] == 10]


@asynccontextmanager
async def contract(options: LinkOptions = OPTIONS, tags: Sequence[Tag] = tuple(CONTRACT)) -> AsyncIterator[Any]:
    async with TcpServer(unit=3) as server:
        server.memory = plc = ContractPlc()
        async with running(server, tags, options) as scan:
            yield server, plc, scan


async def test_a_command_is_one_request_executed_once() -> None:
    async with contract() as (_, plc, scan):
        await scan.until(lambda: scan.up)
        scan.link.set_outputs({"a.cmd": 7, "a.id": 70_001})
        await scan.until(lambda: scan.reports)
        await scan.until(lambda: scan.value("a.ack") == 70_001)
        assert plc.done == [(70_001, 7)]
        (block,) = plc.blocks()
        assert (block[0], len(block)) == (16, 6 + 10), "five registers by one function 16"
        assert scan.reports == [WriteReport("a.id", 70_001, Outcome.VERIFIED)]


async def test_a_restart_with_zeroed_registers_gets_its_outputs_and_no_old_command() -> None:
    async with contract() as (server, plc, scan):
        await scan.until(lambda: scan.up)
        scan.link.set_outputs({"a.cmd": 7, "a.id": 5, "a.speed": 300})
        await scan.until(lambda: plc.hr[20] == 300 and plc.done)
        await server.stop()
        plc.restart()
        await scan.until(lambda: not scan.up)
        await server.start()
        await scan.until(lambda: scan.up and plc.hr[20] == 300)
        await scan.pause(0.3)
        assert [(r.up, r.restarted) for r in scan.links] == [(True, False), (False, False), (True, True)]
        assert plc.done == [(5, 7)]
        assert len(plc.blocks()) == 1

        plc.restart()  # and so fast that the connection does not notice
        connections = server.connections
        await scan.until(lambda: len(scan.links) == 5 and plc.hr[20] == 300)
        assert [(r.up, r.restarted) for r in scan.links[3:]] == [(False, False), (True, True)]
        assert server.connections == connections
        assert len(plc.blocks()) == 1


async def test_a_command_whose_answer_is_lost_is_executed_once_and_reported_unknown() -> None:
    async with contract() as (server, plc, scan):
        await scan.until(lambda: scan.up)
        answer = server.reply

        def deaf(pdu: bytes, word: str) -> bytes | None:
            if pdu[0] == 16:
                server.reply = answer
                word = "exec_silence"
            reply: bytes | None = answer(pdu, word)
            return reply

        server.reply = deaf
        scan.link.set_outputs({"a.cmd": 7, "a.id": 5})
        await scan.until(lambda: len(scan.links) == 3)
        await scan.pause(0.3)
        assert plc.done == [(5, 7)]
        assert len(plc.blocks()) == 1
        assert {r.outcome for r in scan.reports if r.tag == "a.id"} == {Outcome.UNKNOWN}
        scan.link.set_outputs({"a.cmd": 8, "a.id": 6})
        await scan.until(lambda: plc.done == [(5, 7), (6, 8)])


async def test_a_command_that_the_plc_executes_late_is_dropped_there() -> None:
    async with contract() as (server, plc, scan):
        await scan.until(lambda: scan.up)
        serve = server._serve

        async def frozen(writer: Any, tid: int, unit: int, pdu: bytes) -> None:
            if pdu[0] == 16:
                server._serve = serve
                await asyncio.sleep(1.0)
            await serve(writer, tid, unit, pdu)

        server._serve = frozen
        scan.link.set_outputs({"a.cmd": 7, "a.id": 5})
        await scan.until(lambda: plc.late)
        assert plc.late == [5]
        assert plc.done == []


@pytest.mark.parametrize("order", [WordOrder.ABCD, WordOrder.BADC, WordOrder.DCBA])
async def test_a_wrong_word_order_is_named_and_nothing_is_written(order: WordOrder) -> None:
    tags = [replace(t, word_order=order) for t in CONTRACT]
    async with contract(tags=tags) as (server, plc, scan):
        scan.link.set_outputs({"a.speed": 300})
        await scan.until(lambda: server.connections >= 3)
        assert plc.writes == []
        assert not scan.up
        assert "a.pattern at ir:3" in scan.links[-1].reason
        assert "word_order: CDAB would fit" in scan.links[-1].reason


async def test_another_device_at_the_same_address_is_not_written_to() -> None:
    async with contract() as (server, plc, scan):
        await scan.until(lambda: scan.up)
        scan.link.set_outputs({"a.speed": 300})
        await scan.until(lambda: plc.hr[20] == 300)
        await server.stop()
        server.memory = other = ContractPlc()
        other.ir[2] = 4
        await server.start()
        before = server.connections
        await scan.until(lambda: server.connections >= before + 3)
        assert other.writes == []
        assert "a.version at ir:2 is 4; it must be 3" in scan.links[-1].reason


class SlowPlc(TcpServer):
    """Takes 5 ms for every request."""

    async def _serve(self, writer: asyncio.StreamWriter, tid: int, unit: int, pdu: bytes) -> None:
        await asyncio.sleep(0.005)
        await super()._serve(writer, tid, unit, pdu)


async def test_two_writes_beside_a_poll_of_forty_requests() -> None:
    """A write goes before what is left of the poll: counted in requests, which no busy machine changes."""
    tags = [register(f"b.n{n}", IR, 40 * n) for n in range(40)]
    tags += [register("b.x", HR, 0, writable=True), register("b.y", HR, 900, writable=True)]
    between: list[int] = []
    async with (
        SlowPlc(unit=3) as server,
        running(server, tags, LinkOptions(periods_s={"fast": 0.25}, timeout_s=1.0), max_gap=0) as scan,
    ):
        await scan.until(lambda: scan.up)
        for n in range(1, 40):
            at = len(server.requests)
            scan.link.set_outputs({"b.x": n, "b.y": n})
            await scan.until(lambda n=n: (server.memory.hr[0], server.memory.hr[900]) == (n, n))
            pdus = server.requests[at:]
            last = max(i for i, pdu in enumerate(pdus) if pdu[0] in (6, 16))
            between.append(sum(pdu[0] == 4 for pdu in pdus[:last]))
            await scan.pause(0.017)
        reads = [pdu for pdu in server.requests if pdu[0] == 4]
    assert len(reads) >= 40 * 4, "and the polls go on"
    assert max(between) <= 12, f"reads that went before two writes: {between}"
