"""Drivers of several units on one serial line, from options to values."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from honest_modbus import RtuServer

from drivers.factory import Links, make_driver
from drivers.options import ModbusSerialOptions, SerialOptions, TcpLineOptions
from drivers.port import Area, DataType, Driver, ExchangeFailed, LinkDown, ModbusAddress, Outcome, Tag

pytestmark = [pytest.mark.wire, pytest.mark.usefixtures("no_leaks")]
T = 0.1


def hr(name: str, offset: int, group: str) -> Tag:
    address = ModbusAddress(Area.HOLDING_REGISTER, offset)
    return Tag(name=name, address=address, type=DataType.UINT, writable=True, scan_class=group)


TAGS = [
    hr("a.one", 0, "one"),
    hr("a.two", 1, "two"),
    Tag(name="a.coil", address=ModbusAddress(Area.COIL, 9), type=DataType.BOOL, writable=True, scan_class="bits"),
]


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[RtuServer]:
    async with RtuServer(tmp_path) as server:
        server.add(*range(1, 16))
        for number, unit in server.units.items():
            unit.memory.hr[:2] = [1000 * number + 1, 1000 * number + 2]
        yield server


def make(server: RtuServer, unit: int, links: Links | None = None) -> Driver:
    line = SerialOptions(device=str(server.device), baudrate=115200)
    return make_driver(f"unit{unit}", ModbusSerialOptions(line=line, unit=unit), TAGS, links=links)


@pytest.fixture
async def driver(server: RtuServer) -> AsyncIterator[Driver]:
    driver = make(server, 17)
    await driver.connect(1.0)
    yield driver
    await driver.close()


async def test_a_late_answer_is_never_taken_for_another_registers(server: RtuServer, driver: Driver) -> None:
    for delay in (1.2, 1.6, 2.2, 3.1):
        server.script.append(f"late{delay * T}")
        with pytest.raises(ExchangeFailed, match="no answer within") as caught:
            await driver.read(0, T)
        assert caught.value.timed_out
        assert "check wiring, termination, baud rate, parity and unit" in str(caught.value)
        for _ in range(3):
            try:
                assert (await driver.read(1, T)).values == (17002,)
                break
            except ExchangeFailed as exc:
                assert "an answer is still owed" in str(exc)
        assert (await driver.read(0, T)).values == (17001,)
    assert driver.stats().late >= 4


async def test_a_cancelled_read_costs_no_wrong_value_even_across_a_close(server: RtuServer, driver: Driver) -> None:
    server.script.append(f"late{1.3 * T}")
    task = asyncio.create_task(driver.read(0, T))
    await asyncio.sleep(T / 2)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await driver.close()
    await driver.connect(1.0)
    assert (await driver.read(1, T)).values == (17002,)


async def test_three_in_a_row_are_a_lost_link_where_nobody_shares_it(server: RtuServer, driver: Driver) -> None:
    server.dead = True
    for kind in (ExchangeFailed, ExchangeFailed, LinkDown):
        with pytest.raises(kind):
            await driver.read(0, 0.03)
    server.dead = False
    await driver.close()
    await driver.connect(1.0)


@pytest.mark.parametrize(
    ("tag", "value", "pdu"), [("a.one", 258, "10 0000 0001 02 0102"), ("a.coil", True, "0f 0009 0001 01 01")]
)
async def test_writes_never_have_their_own_echo_for_an_answer(
    server: RtuServer, driver: Driver, tag: str, value: int, pdu: str
) -> None:
    assert (await driver.write(tag, value, T)).outcome is Outcome.VERIFIED
    assert server.memory.writes == [bytes.fromhex(pdu)]
    server.script.append("echo")  # a dead device on an echoing adapter
    got = await driver.write(tag, type(value)(0), T)
    assert got.outcome is Outcome.UNKNOWN
    assert "set echo: true" in got.reason


async def test_a_write_into_doubt_is_rejected_not_sent(server: RtuServer, driver: Driver) -> None:
    server.script.append("silence")
    assert (await driver.write("a.one", 7, T)).outcome is Outcome.UNKNOWN
    server.dead = True
    got = await driver.write("a.one", 8, T)
    assert got.outcome is Outcome.REJECTED
    assert "not sent: an answer is still owed" in got.reason
    assert [pdu for pdu in server.heard if pdu[0] == 16] == [bytes.fromhex("10 0000 0001 02 0007")]


async def test_sixteen_units_one_of_them_silent(server: RtuServer) -> None:
    """The neighbours keep their pace, and the silent one is back soon after it answers again."""
    links = Links()
    units = {number: make(server, number, links) for number in server.units}
    await asyncio.gather(*(driver.connect(1.0) for driver in units.values()))

    async def round_trip() -> float:
        start = time.monotonic()
        for number, driver in units.items():
            if number != 5:
                assert (await driver.read(0, 1.0)).values == (1000 * number + 1,)
        return time.monotonic() - start

    sound = max([await round_trip() for _ in range(5)])
    server.units[5].dead = True

    async def nurse() -> None:
        """What a link does: read; after a loss connect anew, when the driver says so."""
        while True:
            try:
                while True:
                    assert (await units[5].read(0, T)).values == (5001,)
                    await asyncio.sleep(0.01)
            except ExchangeFailed:
                continue
            except LinkDown as exc:
                pause = exc.retry_s
            while True:
                await units[5].close()
                await asyncio.sleep(0.25 if pause is None else pause)
                try:
                    await units[5].connect(1.0)
                    break
                except LinkDown as exc:
                    pause = exc.retry_s

    task = asyncio.create_task(nurse())
    async with asyncio.timeout(10):
        while units[5].stats().breaker == "closed":
            await round_trip()
    rounds = sorted([await round_trip() for _ in range(15)])
    assert rounds[7] < 1.5 * sound + 0.03, "a time-out in every round would add 0.1 s"
    server.units[5].dead, start = False, time.monotonic()
    before = units[5].stats().answered
    async with asyncio.timeout(10):
        while units[5].stats().answered <= before:
            await round_trip()
    assert time.monotonic() - start < 2.0
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    for driver in units.values():
        await driver.close()


async def test_units_of_a_line_agree_about_it(server: RtuServer) -> None:
    links = Links()
    make(server, 1, links)
    line = SerialOptions(device=str(server.device), baudrate=9600)
    with pytest.raises(ValueError, match="a link has one owner"):
        make_driver("two", ModbusSerialOptions(line=line, unit=2), TAGS, links=links)


def test_unit_zero_is_a_broadcast() -> None:
    with pytest.raises(ValueError, match="1 to 247"):
        ModbusSerialOptions(line=TcpLineOptions(host="127.0.0.1", port=1), unit=0)
