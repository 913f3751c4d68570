from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from honest_modbus import RtuServer, crc

from drivers.factory import make_driver
from drivers.modbus import ModbusRtuDriver
from drivers.options import ModbusRtuOptions
from drivers.port import (
    Area,
    DataType,
    DeviceRefused,
    ExchangeFailed,
    LinkDown,
    ModbusAddress,
    Outcome,
    Tag,
)

pytestmark = [pytest.mark.wire, pytest.mark.usefixtures("no_leaks")]


def hr(name: str, offset: int, group: str) -> Tag:
    address = ModbusAddress(Area.HOLDING_REGISTER, offset)
    return Tag(name=name, address=address, type=DataType.UINT, writable=True, scan_class=group)


TAGS = [
    hr("a.one", 0, "one"),
    hr("a.two", 1, "two"),
    Tag(
        name="a.coil",
        address=ModbusAddress(Area.COIL, 9),
        type=DataType.BOOL,
        writable=True,
        scan_class="bits",
    ),
]
T = 0.1


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[RtuServer]:
    async with RtuServer(tmp_path) as server:
        yield server


@pytest.fixture
async def driver(server: RtuServer) -> AsyncIterator[ModbusRtuDriver]:
    driver = make_driver("oven", ModbusRtuOptions(device=str(server.device), unit=17, baudrate=115200), TAGS)
    assert isinstance(driver, ModbusRtuDriver)
    await driver.connect(1.0)
    yield driver
    await driver.close()


def test_checksum_of_the_test_server_is_that_of_the_specification() -> None:
    # Worked example of the specification's predecessor: 02 07 -> 41 12
    assert crc(b"\x02\x07") == b"\x41\x12"


async def test_a_late_answer_is_never_taken_for_another_registers(server: RtuServer, driver: ModbusRtuDriver) -> None:
    """Both groups ask with the same function and count: nothing but time tells their answers apart."""
    server.memory.hr[0], server.memory.hr[1] = 1111, 2222
    for delay in (1.2, 1.6, 2.2):
        server.script.append(f"late{delay * T}")
        with pytest.raises(ExchangeFailed, match="no answer within") as caught:
            await driver.read(0, T)
        assert caught.value.timed_out
        assert (await driver.read(1, T)).values == (2222,)
        assert (await driver.read(0, T)).values == (1111,)


async def test_silence_is_kept_across_close_and_connect(server: RtuServer, driver: ModbusRtuDriver) -> None:
    server.memory.hr[0], server.memory.hr[1] = 1111, 2222
    server.script.append(f"late{1.3 * T}")
    task = asyncio.create_task(driver.read(0, T))
    await asyncio.sleep(T / 2)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await driver.close()
    await driver.connect(1.0)
    assert (await driver.read(1, T)).values == (2222,)


@pytest.mark.parametrize(
    ("word", "text"),
    [
        ("crc", "CRC"),
        ("wrong_unit", "unit 18 answers instead of 17"),
        ("noise_before", "noise"),
        ("silence", "no answer within"),
        ("short", "no answer within 0.1 s, only"),
        ("long", "CRC"),
        ("echo", "CRC"),
        ("exc255", "does not exist"),
        ("wrong_fc", "expected"),
    ],
)
async def test_one_bad_exchange_is_survived(server: RtuServer, driver: ModbusRtuDriver, word: str, text: str) -> None:
    server.memory.hr[0] = 7
    server.script.append(word)
    with pytest.raises(ExchangeFailed, match=text):
        await driver.read(0, T)
    start = time.monotonic()
    assert (await driver.read(0, T)).values == (7,)
    assert time.monotonic() - start > 0.9 * T, "the line must stay silent for longer than the time-out"


async def test_noise_after_the_frame_costs_nothing(server: RtuServer, driver: ModbusRtuDriver) -> None:
    server.memory.hr[0] = 7
    server.script.extend(["noise_after"] * 3)
    start = time.monotonic()
    for _ in range(4):
        assert (await driver.read(0, T)).values == (7,)
    assert time.monotonic() - start < T


async def test_an_unasked_frame_brings_silence(server: RtuServer, driver: ModbusRtuDriver) -> None:
    server.memory.hr[1] = 5
    frame = bytes.fromhex("11 03 02 00 63")
    server.say(frame + crc(frame))
    await asyncio.sleep(0.01)
    start = time.monotonic()
    assert (await driver.read(1, T)).values == (5,)
    assert time.monotonic() - start > T


async def test_a_line_that_never_falls_silent_is_an_error(server: RtuServer, driver: ModbusRtuDriver) -> None:
    async def babble() -> None:
        while True:
            server.say(b"\xaa" * 8)
            await asyncio.sleep(0.002)

    task = asyncio.create_task(babble())
    await asyncio.sleep(0.01)
    with pytest.raises(ExchangeFailed, match="does not fall silent"):
        await driver.read(0, T)
    got = await driver.write("a.one", 1, T)
    assert got.outcome is Outcome.REJECTED
    assert "not sent" in got.reason
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert server.requests == []


async def test_three_in_a_row_are_a_lost_link(server: RtuServer, driver: ModbusRtuDriver) -> None:
    server.script.extend(["silence", "silence", "ok", "silence", "silence", "silence"])
    for kind in (ExchangeFailed, ExchangeFailed, None, ExchangeFailed, ExchangeFailed, LinkDown):
        if kind is None:
            await driver.read(0, T)
        else:
            with pytest.raises(kind):
                await driver.read(0, T)
    with pytest.raises(LinkDown, match="3 times in a row"):
        await driver.read(0, T)
    await driver.connect(1.0)
    await driver.read(0, T)


async def test_a_refusal_leaves_the_line_sound(server: RtuServer, driver: ModbusRtuDriver) -> None:
    server.script.append("exc2")
    with pytest.raises(DeviceRefused, match="illegal data address"):
        await driver.read(0, T)
    start = time.monotonic()
    await driver.read(0, T)
    assert time.monotonic() - start < T


@pytest.mark.parametrize(
    ("tag", "value", "pdu"), [("a.one", 258, "10 0000 0001 02 0102"), ("a.coil", True, "0f 0009 0001 01 01")]
)
async def test_writes_never_echo_their_request(
    server: RtuServer, driver: ModbusRtuDriver, tag: str, value: int, pdu: str
) -> None:
    assert (await driver.write(tag, value, T)).outcome is Outcome.VERIFIED
    assert server.memory.writes == [bytes.fromhex(pdu)]
    # A dead device on an echoing adapter must not acknowledge.
    server.script.append("echo")
    assert (await driver.write(tag, type(value)(0), T)).outcome is Outcome.UNKNOWN


async def test_pulling_the_adapter_is_seen_at_once_and_does_not_spin(
    server: RtuServer, driver: ModbusRtuDriver
) -> None:
    task = asyncio.create_task(driver.read(0, 0.5))
    server.script.append("silence")
    await asyncio.sleep(0.05)
    await server.stop()
    start, busy = time.monotonic(), time.process_time()
    with pytest.raises(LinkDown, match="serial port lost"):
        await task
    await asyncio.sleep(0.1)
    assert time.monotonic() - start < 1.0
    assert time.process_time() - busy < 0.1
    with pytest.raises(LinkDown, match="cannot open"):
        await driver.connect(1.0)
    await server.start()
    await driver.connect(1.0)
    await driver.read(0, T)


async def test_the_port_is_ours_alone(server: RtuServer, driver: ModbusRtuDriver) -> None:
    other = ModbusRtuDriver("oven2", TAGS, ModbusRtuOptions(device=str(server.device), unit=18))
    with pytest.raises(LinkDown, match="cannot open the serial port"):
        await other.connect(1.0)


def test_unit_zero_is_a_broadcast() -> None:
    with pytest.raises(ValueError, match="1 to 247"):
        ModbusRtuOptions(device="/dev/null", unit=0)
