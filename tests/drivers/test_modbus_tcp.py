from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator

import pytest
from honest_modbus import TcpServer

from drivers.factory import make_driver
from drivers.modbus import ModbusDriver
from drivers.options import ModbusTcpOptions
from drivers.port import Area, DataType, DeviceRefused, LinkDown, ModbusAddress, Outcome, Tag

pytestmark = [pytest.mark.wire, pytest.mark.usefixtures("no_leaks")]


def hr(name: str, offset: int, kind: DataType = DataType.UINT, bit: int | None = None) -> Tag:
    address = ModbusAddress(Area.HOLDING_REGISTER, offset, bit)
    return Tag(name=name, address=address, type=kind, writable=True)


TAGS = [
    hr("a.one", 0),
    hr("a.two", 1),
    hr("a.bit", 2, DataType.BOOL, 4),
    hr("a.long", 4, DataType.UDINT),
    Tag(name="a.coil", address=ModbusAddress(Area.COIL, 9), type=DataType.BOOL, writable=True),
]
T = 0.15
COIL, ONE, TWO, BIT, LONG = range(5)
"""Where the tags are in a reading: by area and address."""


@pytest.fixture
async def server() -> AsyncIterator[TcpServer]:
    async with TcpServer(unit=3) as server:
        yield server


@pytest.fixture
async def driver(server: TcpServer) -> AsyncIterator[ModbusDriver]:
    driver = make_driver("wet", ModbusTcpOptions(host="127.0.0.1", port=server.port, unit=3), TAGS)
    assert isinstance(driver, ModbusDriver)
    await driver.connect(2.0)
    yield driver
    await driver.close()


REFUSED_REPLIES = {
    "wrong_tid": "transaction",
    "zero_tid": "transaction 0",
    "wrong_unit": "unit",
    "short": "expected",
    "long": "expected",
    "odd": "expected",
    "trailing": "expected",
    "truncated": "expected",
    "empty": "expected",
    "count_lies": "expected",
    "wrong_fc": "expected",
    "refuse_wrong_fc": "expected",
    "exc9": "exception 9, which does not exist",
    "exc255": "exception 255, which does not exist",
    "exc0": "exception 0, which does not exist",
    "rst": "lost",
    "rst_mid": "lost",
    "fin_mid": "closed",
    "pid": "not a Modbus frame",
    "huge": "length 4000",
    "zero_length": "length 0",
    "silence": "no answer within",
    "dribble": "no answer within",
}


@pytest.mark.parametrize("word", REFUSED_REPLIES)
async def test_any_doubt_ends_the_connection_and_gives_no_value(
    server: TcpServer, driver: ModbusDriver, word: str
) -> None:
    await driver.read(0, 2.0)
    # The second request of the group, so that the first one's data must not be used either.
    server.script.extend(["ok", word])
    start = time.monotonic()
    with pytest.raises(LinkDown, match=REFUSED_REPLIES[word]):
        await driver.read(0, T)
    assert time.monotonic() - start < 3 * T
    sent = len(server.requests)
    with pytest.raises(LinkDown):
        await driver.read(0, T)
    assert len(server.requests) == sent, "nothing may be sent on a connection in doubt"
    await driver.close()
    server.script.clear()
    await driver.connect(2.0)
    assert list((await driver.read(0, 2.0)).values) == [False, 0, 0, False, 0]


@pytest.mark.parametrize("word", ["dup", "unasked_next"])
async def test_an_unasked_frame_is_never_taken(server: TcpServer, driver: ModbusDriver, word: str) -> None:
    """``unasked_next`` even carries the id that the next request would have."""
    server.script.append("ok")
    server.script.append(word)
    with pytest.raises(LinkDown, match="nobody asked"):
        for _ in range(3):
            server.memory.hr[0] += 1
            assert (await driver.read(0, T)).values[ONE] == server.memory.hr[0]


async def test_a_late_answer_is_never_taken_for_another(server: TcpServer, driver: ModbusDriver) -> None:
    server.memory.hr[0] = 1111
    server.script.append(f"late{2 * T}")
    with pytest.raises(LinkDown, match="no answer"):
        await driver.read(0, T)
    server.memory.hr[0] = 2222
    await driver.connect(2.0)
    await asyncio.sleep(2 * T)
    assert (await driver.read(0, 2.0)).values[ONE] == 2222


async def test_a_frame_in_two_pieces_is_one_frame(server: TcpServer, driver: ModbusDriver) -> None:
    server.memory.hr[1] = 7
    server.script.extend(["split", "split"])
    assert (await driver.read(0, 2.0)).values[TWO] == 7


@pytest.mark.parametrize(("code", "name"), [(1, "illegal function"), (6, "busy"), (2, "illegal data address")])
async def test_when_all_is_refused_the_group_is(server: TcpServer, driver: ModbusDriver, code: int, name: str) -> None:
    server.script.extend([f"exc{code}"] * 2)
    with pytest.raises(DeviceRefused, match=name) as caught:
        await driver.read(0, 2.0)
    assert "127.0.0.1" in str(caught.value)
    assert caught.value.hint
    assert len((await driver.read(0, 2.0)).values) == len(TAGS)
    assert server.connections == 1


@pytest.mark.parametrize("code", [10, 11])
async def test_a_gateway_without_its_device_is_asked_no_further(
    server: TcpServer, driver: ModbusDriver, code: int
) -> None:
    server.script.append(f"exc{code}")
    with pytest.raises(DeviceRefused, match="gateway"):
        await driver.read(0, 2.0)
    assert len(server.requests) == 1
    assert len((await driver.read(0, 2.0)).values) == len(TAGS)
    assert server.connections == 1


async def test_one_refused_request_leaves_the_other_tags_good(server: TcpServer, driver: ModbusDriver) -> None:
    server.memory.hr[0] = 11
    server.script.append("exc2")
    reading = await driver.read(0, 2.0)
    assert list(reading.values) == [None, 11, 0, False, 0]
    assert list(reading.bad) == [COIL]
    assert "read co:9: exception 2, illegal data address" in reading.bad[COIL]
    assert list((await driver.read(0, 2.0)).values) == [False, 11, 0, False, 0]
    assert driver.stats().refused == 1


@pytest.mark.parametrize(
    ("tag", "value", "pdu"),
    [
        ("a.one", 258, "06 0000 0102"),
        ("a.long", 0x11223344, "10 0004 0002 04 11223344"),
        ("a.coil", True, "05 0009 ff00"),
        ("a.coil", False, "05 0009 0000"),
        ("a.bit", True, "16 0002 ffef 0010"),
        ("a.bit", False, "16 0002 ffef 0000"),
    ],
)
async def test_writes_as_seen_on_the_wire(
    server: TcpServer, driver: ModbusDriver, tag: str, value: int, pdu: str
) -> None:
    server.memory.hr[2] = 0x8011 if value is False else 0x8001
    outcome = await driver.write(tag, value, 2.0)
    assert (outcome.outcome, outcome.read_back) == (Outcome.VERIFIED, value)
    assert server.memory.writes == [bytes.fromhex(pdu)]
    if tag == "a.bit":
        assert server.memory.hr[2] == (0x8011 if value else 0x8001), "the register's other bits are not ours"


@pytest.mark.parametrize(
    ("script", "outcome", "executed", "text"),
    [
        (["no_exec"], Outcome.REJECTED, 0, "was acknowledged, but 0 reads back"),
        (["exc2"], Outcome.REJECTED, 0, "illegal data address"),
        (["exc3"], Outcome.REJECTED, 0, "illegal data value"),
        (["exc6"], Outcome.REJECTED, 0, "busy"),
        (["exc4"], Outcome.UNKNOWN, 0, "device failure"),
        (["exc11"], Outcome.UNKNOWN, 0, "target device"),
        (["bad_echo"], Outcome.UNKNOWN, 1, "expected"),
        (["exec_silence"], Outcome.UNKNOWN, 1, "no answer"),
        (["silence"], Outcome.UNKNOWN, 0, "no answer"),
        (["rst"], Outcome.UNKNOWN, 0, "lost"),
        (["rst_mid"], Outcome.UNKNOWN, 1, "lost"),
        (["ok", "silence"], Outcome.UNKNOWN, 1, "read-back failed"),
        (["ok", "exc2"], Outcome.UNKNOWN, 1, "not readable"),
        (["ok", "short"], Outcome.UNKNOWN, 1, "read-back failed"),
    ],
)
async def test_write_outcomes_are_told_apart_and_nothing_is_sent_twice(
    server: TcpServer, driver: ModbusDriver, script: list[str], outcome: Outcome, executed: int, text: str
) -> None:
    server.script.extend(script)
    got = await driver.write("a.one", 5, T)
    assert got.outcome is outcome
    assert text in got.reason
    assert "a.one at hr:0" in got.reason
    await asyncio.sleep(2 * T)
    assert len(server.memory.writes) == executed
    assert len([pdu for pdu in server.requests if pdu[0] == 6]) == 1


async def test_values_that_must_not_be_sent_are_not(server: TcpServer, driver: ModbusDriver) -> None:
    for tag, value in (("a.one", 65536), ("a.one", float("nan")), ("a.none", 1), ("a.coil", 1)):
        assert (await driver.write(tag, value, T)).outcome is Outcome.REJECTED
    assert server.requests == []


async def test_a_bit_is_refused_rather_than_read_modified_and_written(server: TcpServer, driver: ModbusDriver) -> None:
    server.memory.functions.discard(22)
    got = await driver.write("a.bit", True, 2.0)
    assert got.outcome is Outcome.REJECTED
    assert "function 22" in got.reason
    assert [pdu[0] for pdu in server.requests] == [22]


async def test_write_without_a_connection_is_certainly_not_executed(server: TcpServer, driver: ModbusDriver) -> None:
    await driver.close()
    got = await driver.write("a.one", 5, T)
    assert got.outcome is Outcome.REJECTED
    assert "not connected" in got.reason


async def test_silence_while_connecting_and_nobody_there() -> None:
    async with TcpServer() as server:
        port = server.port
    driver = make_driver("wet", ModbusTcpOptions(host="127.0.0.1", port=port), TAGS)
    with pytest.raises(LinkDown, match=f"wet \\(127.0.0.1:{port} unit 1\\): cannot connect"):
        await driver.connect(1.0)
    await driver.close()


async def test_transaction_ids_start_anywhere_and_cannot_be_guessed(server: TcpServer, driver: ModbusDriver) -> None:
    for _ in range(20):
        await driver.read(0, 2.0)
    await driver.close()
    first, steps = server.tids[0], {(b - a) % 0x10000 for a, b in itertools.pairwise(server.tids)}
    assert len(set(server.tids)) == len(server.tids)
    assert len(steps) == 1, "each id takes its turn, so that none comes again soon"
    assert steps.pop() > 1, "not the next number, which is what a device would make up"
    await driver.connect(2.0)
    await driver.read(0, 2.0)
    assert server.tids[-2] != first, "a new connection begins anew"


async def test_a_cancelled_request_ends_the_connection(server: TcpServer, driver: ModbusDriver) -> None:
    server.script.append("silence")
    task = asyncio.create_task(driver.read(0, 2.0))
    await asyncio.sleep(0.02)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.sleep(0.02)
    assert not server.writers, "reset at once, not when somebody gets round to close()"
    with pytest.raises(LinkDown, match="given up"):
        await driver.read(0, 2.0)


async def test_stamp_is_the_time_of_the_request(server: TcpServer) -> None:
    now = [100]
    options = ModbusTcpOptions(host="127.0.0.1", port=server.port, unit=3)
    driver = make_driver("wet", options, TAGS, monotonic_ns=lambda: now[0])
    await driver.connect(2.0)
    server.script.append("late0.05")
    asyncio.get_running_loop().call_later(0.02, now.__setitem__, 0, 999)
    assert (await driver.read(0, 2.0)).stamp_ns == 100
    assert now == [999]
    await driver.close()
