"""Modbus on UDP: what is lost, doubled or late is seen and never used."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import pytest
from mbap_peer import UdpServer

from drivers.factory import make_driver
from drivers.modbus import ModbusDriver
from drivers.options import ModbusUdpOptions
from drivers.port import Area, DataType, DeviceRefused, ExchangeFailed, LinkDown, ModbusAddress, Outcome, Tag

pytestmark = [pytest.mark.wire, pytest.mark.usefixtures("no_leaks")]
T = 0.1
TAGS = [
    Tag(name="u.one", address=ModbusAddress(Area.HOLDING_REGISTER, 0), type=DataType.UINT, writable=True),
    Tag(name="u.two", address=ModbusAddress(Area.HOLDING_REGISTER, 1), type=DataType.UINT),
]


@pytest.fixture
async def server() -> AsyncIterator[UdpServer]:
    async with UdpServer() as server:
        server.memory.put("hr", 0, b"\0\7\0\x2a")
        yield server


@pytest.fixture
async def driver(server: UdpServer) -> AsyncIterator[ModbusDriver]:
    driver = make_driver("wet", ModbusUdpOptions(host="127.0.0.1", port=server.port, unit=3), TAGS)
    assert isinstance(driver, ModbusDriver)
    await driver.connect(1.0)
    yield driver
    await driver.close()


async def test_reads_and_writes(server: UdpServer, driver: ModbusDriver) -> None:
    assert (await driver.read(0, T)).values == (7, 42)
    assert (await driver.write("u.one", 9, T)).outcome is Outcome.VERIFIED
    assert server.memory.writes == [bytes.fromhex("06 0000 0009")]


async def test_a_lost_datagram_costs_one_read(server: UdpServer, driver: ModbusDriver) -> None:
    server.script.append("silence")
    with pytest.raises(ExchangeFailed, match=r"no answer within 0\.1 s"):
        await driver.read(0, T)
    assert (await driver.read(0, T)).values == (7, 42)
    assert driver.stats().timeouts == 1


async def test_three_in_a_row_are_a_lost_link_and_it_must_answer_to_come_back(
    server: UdpServer, driver: ModbusDriver
) -> None:
    server.script.extend(["silence"] * 4)
    for _ in range(2):
        with pytest.raises(ExchangeFailed):
            await driver.read(0, T)
    with pytest.raises(LinkDown, match="3 times in a row"):
        await driver.read(0, T)
    sent = len(server.requests)
    with pytest.raises(LinkDown):
        await driver.read(0, T)
    assert len(server.requests) == sent
    await driver.close()
    with pytest.raises(LinkDown, match="still silent"):
        await driver.connect(1.0)
    await driver.close()
    await driver.connect(1.0)
    assert (await driver.read(0, T)).values == (7, 42)


async def test_a_late_answer_is_counted_and_never_taken(server: UdpServer, driver: ModbusDriver) -> None:
    server.script.append(f"late{1.5 * T}")
    with pytest.raises(ExchangeFailed):
        await driver.read(0, T)
    server.memory.hr[0] = 8
    server.script.append(f"late{0.8 * T}")
    assert (await driver.read(0, T)).values == (8, 42)
    assert driver.stats().late == 1


async def test_a_doubled_answer_is_counted_and_never_taken(server: UdpServer, driver: ModbusDriver) -> None:
    server.script.extend(["dup"] * 5)
    for n in range(5):
        server.memory.hr[0] = n
        assert (await driver.read(0, T)).values == (n, 42)
    await asyncio.sleep(0.01)
    assert driver.stats().strays == 5
    assert driver.stats().answered == 5


@pytest.mark.parametrize(
    ("word", "text"),
    [
        ("wrong_tid", "no answer"),
        ("pid", "no answer"),
        ("runt", "no answer"),
        ("glued", "no answer"),
        ("wrong_unit", "answered by unit 2"),
        ("short", "expected"),
        ("long", "expected"),
        ("count_lies", "expected"),
        ("wrong_fc", "expected"),
        ("exc9", "does not exist"),
    ],
)
async def test_what_does_not_fit_is_never_taken(server: UdpServer, driver: ModbusDriver, word: str, text: str) -> None:
    server.script.append(word)
    with pytest.raises(ExchangeFailed, match=text):
        await driver.read(0, T)
    assert driver.stats().strays == 1
    assert (await driver.read(0, T)).values == (7, 42)


async def test_a_refusal_is_one(server: UdpServer, driver: ModbusDriver) -> None:
    server.script.append("exc2")
    with pytest.raises(DeviceRefused, match="illegal data address"):
        await driver.read(0, T)


async def test_an_unanswered_write_is_unknown_and_not_repeated(server: UdpServer, driver: ModbusDriver) -> None:
    server.script.append("exec_silence")
    got = await driver.write("u.one", 5, T)
    assert got.outcome is Outcome.UNKNOWN
    assert "no answer" in got.reason
    assert len(server.memory.writes) == 1


async def test_nobody_listening_is_told_by_the_network_at_once(server: UdpServer, driver: ModbusDriver) -> None:
    await server.stop()
    start = time.monotonic()
    with pytest.raises(LinkDown, match="times in a row") as caught:
        for _ in range(3):
            try:
                await driver.read(0, 5.0)
            except ExchangeFailed as exc:
                assert "refused" in str(exc)
    assert time.monotonic() - start < 1.0
    assert "check power, network, address, port and unit" in str(caught.value)


async def test_a_cancelled_read_does_not_end_the_link(server: UdpServer, driver: ModbusDriver) -> None:
    server.script.append(f"late{T / 4}")
    task = asyncio.create_task(driver.read(0, T))
    await asyncio.sleep(T / 10)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    server.memory.hr[0] = 8
    assert (await driver.read(0, T)).values == (8, 42)
    await asyncio.sleep(T / 2)
    assert driver.stats().late == 1
