"""Golden requests and answers of every function, after the examples of the MODBUS Application Protocol V1.1b3."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mbap_peer import HandServer, frame

from drivers.factory import make_driver
from drivers.modbus import ModbusDriver, pdu
from drivers.modbus.pdu import BadReply, Call, ExceptionReply
from drivers.options import ModbusTcpOptions
from drivers.plan import ModbusPlan, Request
from drivers.port import Area, DataType, DeviceRefused, ModbusAddress, Tag

HOLDING, INPUT, COIL, DISCRETE = Area.HOLDING_REGISTER, Area.INPUT_REGISTER, Area.COIL, Area.DISCRETE_INPUT


def write(address: ModbusAddress, value: int, *, single: bool, kind: DataType = DataType.UINT) -> Call:
    plan = ModbusPlan([Tag(name="a.x", address=address, type=kind, writable=True)])
    return pdu.write_call(plan.encode_write("a.x", value), single=single)


def block() -> Call:
    tags = [
        Tag(name=f"a.x{i}", address=ModbusAddress(HOLDING, 1 + i), type=DataType.UINT, writable=True) for i in (0, 1)
    ]
    return pdu.write_call(ModbusPlan(tags).encode_block({"a.x0": 0x000A, "a.x1": 0x0102}), single=True)


IDENTITY = "2b 0e 01 01 00 00 03 00 04 41 42 43 44 01 02 58 59 02 05 56 31 2e 30 31"
GOLDEN = {
    # function: the call, its request, a good answer, the data in it
    "1": (pdu.read_call(Request(COIL, 0x13, 0x13)), "01 00 13 00 13", "01 03 cd 6b 05", "cd 6b 05"),
    "2": (pdu.read_call(Request(DISCRETE, 0xC4, 0x16)), "02 00 c4 00 16", "02 03 ac db 35", "ac db 35"),
    "3": (
        pdu.read_call(Request(HOLDING, 0x6B, 3)),
        "03 00 6b 00 03",
        "03 06 02 2b 00 00 00 64",
        "02 2b 00 00 00 64",
    ),
    "4": (pdu.read_call(Request(INPUT, 8, 1)), "04 00 08 00 01", "04 02 00 0a", "00 0a"),
    "5": (
        write(ModbusAddress(COIL, 0xAC), True, single=True, kind=DataType.BOOL),
        "05 00 ac ff 00",
        "05 00 ac ff 00",
        "",
    ),
    "6": (write(ModbusAddress(HOLDING, 1), 3, single=True), "06 00 01 00 03", "06 00 01 00 03", ""),
    "15": (
        write(ModbusAddress(COIL, 0x13), True, single=False, kind=DataType.BOOL),
        "0f 00 13 00 01 01 01",
        "0f 00 13 00 01",
        "",
    ),
    "16": (block(), "10 00 01 00 02 04 00 0a 01 02", "10 00 01 00 02", ""),
    "16 of one": (write(ModbusAddress(HOLDING, 1), 3, single=False), "10 00 01 00 01 02 00 03", "10 00 01 00 01", ""),
    "22": (
        write(ModbusAddress(HOLDING, 4, 3), True, single=True, kind=DataType.BOOL),
        "16 00 04 ff f7 00 08",
        "16 00 04 ff f7 00 08",
        "",
    ),
    "23": (
        pdu.read_write_call(Request(HOLDING, 3, 6), 14, [255, 255, 255]),
        "17 00 03 00 06 00 0e 00 03 06 00 ff 00 ff 00 ff",
        "17 0c 00 fe 0a cd 00 01 00 03 00 0d 00 ff",
        "00 fe 0a cd 00 01 00 03 00 0d 00 ff",
    ),
    "8": (pdu.loopback_call(b"\xa5\x37"), "08 00 00 a5 37", "08 00 00 a5 37", ""),
    "17": (pdu.server_id_call(), "11", "11 04 42 43 44 ff", "04 42 43 44 ff"),
    "24": (
        pdu.fifo_call(0x04DE),
        "18 04 de",
        "18 00 06 00 02 01 b8 12 84",
        "00 06 00 02 01 b8 12 84",
    ),
    "43/14": (pdu.identification_call(1), "2b 0e 01 00", IDENTITY, IDENTITY[9:]),
}
VARYING = ("17", "24", "43/14")


@pytest.mark.parametrize("name", GOLDEN)
def test_golden(name: str) -> None:
    call, request, answer, data = GOLDEN[name]
    assert call.pdu == bytes.fromhex(request)
    assert call.payload(bytes.fromhex(answer)) == bytes.fromhex(data)
    assert call.what


@pytest.mark.parametrize("name", GOLDEN)
def test_nothing_shorter_or_longer_is_accepted(name: str) -> None:
    call, _, answer, _ = GOLDEN[name]
    good = bytes.fromhex(answer)
    for bad in [*(good[:n] for n in range(1, len(good))), good + b"\0", good * 2]:
        with pytest.raises(BadReply):
            call.payload(bad)


@pytest.mark.parametrize("name", GOLDEN)
def test_function_count_and_echo_must_be_those_asked_for(name: str) -> None:
    call, _, answer, _ = GOLDEN[name]
    good = bytes.fromhex(answer)
    for at in range(len(call.echo)):
        for bit in range(8):
            bad = bytearray(good)
            bad[at] ^= 1 << bit
            with pytest.raises(BadReply):
                call.payload(bytes(bad))


@pytest.mark.parametrize("name", GOLDEN)
def test_exceptions(name: str) -> None:
    call, _, _, _ = GOLDEN[name]
    function = call.pdu[0] | 0x80
    for code in range(256):
        if code in pdu.EXCEPTIONS:
            with pytest.raises(ExceptionReply, match=pdu.EXCEPTIONS[code][0]) as caught:
                call.payload(bytes((function, code)))
            assert caught.value.code == code
        else:
            with pytest.raises(BadReply, match="does not exist"):
                call.payload(bytes((function, code)))
    for other in range(0x80, 0x100):
        if other != function:
            with pytest.raises(BadReply):
                call.payload(bytes((other, 2)))


@pytest.mark.parametrize("name", GOLDEN)
def test_the_length_is_known_from_the_beginning(name: str) -> None:
    """A serial line has to cut the answer out of the stream: too few bytes say nothing, never something wrong."""
    call, _, answer, _ = GOLDEN[name]
    good = bytes.fromhex(answer)
    for n in range(len(good) + 1):
        assert call.length(good[:n]) in (0, len(good))
    assert call.length(good) == call.length(good + b"more") == len(good)
    assert call.length(bytes((good[0] | 0x80,))) == 2


@pytest.mark.parametrize(
    ("name", "bad"),
    [
        ("17", "11 00"),
        ("17", "11 05 42 43 44 ff"),
        ("24", "18 00 06 00 03 01 b8 12 84"),
        ("24", "18 00 08 00 02 01 b8 12 84"),
        ("24", "18 00 42 00 20" + " 00 00" * 32),
        ("43/14", IDENTITY.replace("2b 0e 01 01", "2b 0e 02 01")),
        ("43/14", IDENTITY.replace("2b 0e 01 01", "2b 0e 01 04")),
        ("43/14", IDENTITY.replace("01 00 00 03", "01 01 00 03")),
        ("43/14", IDENTITY.replace("00 00 03 00", "00 00 04 00")),
        ("43/14", IDENTITY.replace("00 04 41", "00 05 41")),
    ],
)
def test_varying_answers_must_agree_with_themselves(name: str, bad: str) -> None:
    with pytest.raises(BadReply):
        GOLDEN[name][0].payload(bytes.fromhex(bad))


@given(st.sampled_from(sorted(GOLDEN)), st.binary(min_size=1, max_size=260))
def test_whatever_comes_it_is_good_data_or_an_error(name: str, reply: bytes) -> None:
    call = GOLDEN[name][0]
    try:
        data = call.payload(reply)
    except (BadReply, ExceptionReply):
        return
    assert call.echo + data == reply
    assert reply[0] == call.pdu[0]


def test_identification_objects() -> None:
    data = GOLDEN["43/14"][0].payload(bytes.fromhex(IDENTITY))
    assert pdu.identification(data) == ({0: b"ABCD", 1: b"XY", 2: b"V1.01"}, None)
    more = bytes.fromhex("2b 0e 03 83 ff 80 01 00 01 41")
    assert pdu.identification(pdu.identification_call(3).payload(more)) == ({0: b"A"}, 0x80)


# --- through the driver, as engineers' tools do


async def ask(server: HandServer, driver: ModbusDriver, call: Call, *answers: str) -> bytes:
    done = len(server.requests)
    task = asyncio.create_task(driver.execute(call, 1.0))
    for n, answer in enumerate(answers):
        seen = (await server.until(done + n + 1))[done + n]
        server.say(frame(seen.tid, seen.unit, bytes.fromhex(answer)))
    return await task


@pytest.mark.wire
async def test_any_request_can_be_executed(no_leaks: None) -> None:
    async with HandServer() as server:
        driver = make_driver("plc", ModbusTcpOptions(host="127.0.0.1", port=server.port, unit=3), [])
        assert isinstance(driver, ModbusDriver)
        await driver.connect(1.0)
        for call, request, answer, data in GOLDEN.values():
            assert await ask(server, driver, call, answer) == bytes.fromhex(data)
            assert server.requests[-1].pdu == bytes.fromhex(request)
        with pytest.raises(DeviceRefused, match="report server id: exception 1, illegal function"):
            await ask(server, driver, pdu.server_id_call(), "91 01")
        await driver.close()


@pytest.mark.wire
async def test_identification_goes_on_while_more_follows(no_leaks: None) -> None:
    async with HandServer() as server:
        driver = make_driver("plc", ModbusTcpOptions(host="127.0.0.1", port=server.port, unit=3), [])
        assert isinstance(driver, ModbusDriver)
        await driver.connect(1.0)
        parts = [
            "2b 0e 02 02 ff 01 01 00 01 41",
            "2b 0e 02 02 ff 04 02 01 01 42 02 00",
            "2b 0e 02 02 00 00 01 04 02 43 44",
        ]
        task = asyncio.create_task(driver.identify(2, 1.0))
        for n, part in enumerate(parts):
            seen = (await server.until(n + 1))[n]
            server.say(frame(seen.tid, seen.unit, bytes.fromhex(part)))
        assert await task == {0: b"A", 1: b"B", 2: b"", 4: b"CD"}
        assert [seen.pdu.hex() for seen in server.requests] == ["2b0e0200", "2b0e0201", "2b0e0204"]
        task = asyncio.create_task(driver.identify(2, 1.0))
        for n in (3, 4):
            seen = (await server.until(n + 1))[n]
            server.say(frame(seen.tid, seen.unit, bytes.fromhex("2b 0e 02 02 ff 01 01 00 01 41")))
        with pytest.raises(DeviceRefused, match="object 1 is said to follow"):
            await task
        await driver.close()
