"""Our Modbus drivers against a device made of libmodbus, over TCP and over a serial line."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from bench.peers.build import Peer
from drivers.factory import Links, make_driver
from drivers.options import ModbusSerialOptions, ModbusTcpOptions, SerialOptions
from drivers.port import (
    Area,
    DataType,
    DeviceRefused,
    Driver,
    LinkDown,
    ModbusAddress,
    Outcome,
    Reading,
    Tag,
    Value,
    WordOrder,
)

pytestmark = [pytest.mark.peer, pytest.mark.wire]
T = 2.0
UNIT = 17
KINDS: dict[DataType, tuple[str, tuple[Value, ...]]] = {
    DataType.INT: ("s16", (-32768, -7, 32767)),
    DataType.UINT: ("u16", (0, 40000, 65535)),
    DataType.DINT: ("s32", (-(2**31), -70000, 2**31 - 1)),
    DataType.UDINT: ("u32", (0, 0x01020304, 2**32 - 1)),
    DataType.LINT: ("s64", (-(2**63), -(2**40) - 1, 2**63 - 1)),
    DataType.ULINT: ("u64", (0, 0x0102030405060708, 2**64 - 1)),
    DataType.REAL: ("f32", (-1.5, 3.4e38, 1.1754944e-38)),
    DataType.LREAL: ("f64", (-2.5e300, math.pi, 5e-324)),
}
ORDERS = {kind: list(WordOrder) if kind not in (DataType.INT, DataType.UINT) else [WordOrder.ABCD] for kind in KINDS}


def numbers(area: Area) -> list[Tag]:
    """A tag of every numeric type in every order, four registers apart."""
    pairs = [(kind, order) for kind, orders in ORDERS.items() for order in orders]
    return [
        Tag(
            name=f"{area}.{kind}_{order}".lower(),
            address=ModbusAddress(area, 100 + 4 * n),
            type=kind,
            word_order=order,
            writable=area is Area.HOLDING_REGISTER,
        )
        for n, (kind, order) in enumerate(pairs)
    ]


def peer_kind(tag: Tag) -> str:
    """The type in the words of the server."""
    return f"{KINDS[tag.type][0]}-{tag.word_order.lower()}"


def same(tag: Tag, text: str, value: Value) -> bool:
    """Whether the server's words say ``value``; a REAL has 24 bits."""
    if tag.type is DataType.REAL:
        return math.isclose(float(text), float(value), rel_tol=1e-7)
    return (float(text) if tag.type is DataType.LREAL else int(text)) == value


def offset(tag: Tag) -> int:
    assert isinstance(tag.address, ModbusAddress)
    return tag.address.offset


@asynccontextmanager
async def connected(*drivers: Driver) -> AsyncIterator[None]:
    try:
        for driver in drivers:
            await driver.connect(10.0)
        yield
    finally:
        for driver in drivers:
            await driver.close()


def values(driver: Driver, reading: Reading) -> dict[str, Value | None]:
    """The good values by tag name."""
    tags = driver.groups[0].tags
    return {
        tag.name: value for n, (tag, value) in enumerate(zip(tags, reading.values, strict=True)) if n not in reading.bad
    }


async def every_type_both_ways(server: Peer, driver: Driver, tags: list[Tag], turns: int) -> None:
    for turn in range(turns):
        wanted: dict[str, Value] = {}
        for tag in tags:
            wanted[tag.name] = KINDS[tag.type][1][turn]
            area = tag.name.partition(".")[0]
            assert server.ask(f"set {UNIT} {area} {offset(tag)} {peer_kind(tag)} {wanted[tag.name]!r}") == "ok"
        got = values(driver, await driver.read(0, T))
        for tag in tags:
            assert got[tag.name] == pytest.approx(wanted[tag.name], rel=1e-7, abs=0), tag.name
        for tag in tags:
            if tag.writable:
                value = KINDS[tag.type][1][(turn + 1) % 3]
                outcome = await driver.write(tag.name, value, T)
                assert outcome.outcome is Outcome.VERIFIED, outcome.reason
                text = server.ask(f"get {UNIT} hr {offset(tag)} {peer_kind(tag)}")
                assert same(tag, text, value), f"{tag.name}: {value} was written, the device holds {text}"


async def bits_both_ways(server: Peer, driver: Driver) -> None:
    """Coils, discrete inputs and a bit inside a register (function 22)."""
    for state in (1, 0):
        server.ask(f"set {UNIT} co 9 bit {state}")
        server.ask(f"set {UNIT} di 11 bit {state}")
        got = values(driver, await driver.read(0, T))
        assert (got["b.coil"], got["b.input"]) == (bool(state), bool(state))
        server.ask(f"set {UNIT} hr 50 u16 {0 if state else 0xFFFF}")
        for tag in ("b.coil", "b.bit"):
            assert (await driver.write(tag, bool(state), T)).outcome is Outcome.VERIFIED
        assert server.ask(f"get {UNIT} co 9 bit") == str(state)
        assert server.ask(f"get {UNIT} hr 50 u16") == str(8 if state else 0xFFFF ^ 8), "another bit was touched"


BITS = [
    Tag(name="b.coil", address=ModbusAddress(Area.COIL, 9), type=DataType.BOOL, writable=True),
    Tag(name="b.input", address=ModbusAddress(Area.DISCRETE_INPUT, 11), type=DataType.BOOL),
    Tag(name="b.bit", address=ModbusAddress(Area.HOLDING_REGISTER, 50, 3), type=DataType.BOOL, writable=True),
]


@pytest.mark.parametrize("in_flight", [1, 16])
async def test_every_type_over_tcp(modbus_server: Path, in_flight: int) -> None:
    tags = numbers(Area.HOLDING_REGISTER) + numbers(Area.INPUT_REGISTER)
    with Peer([modbus_server, "tcp", str(UNIT)]) as server:
        where = ModbusTcpOptions(host="127.0.0.1", port=server.port(), unit=UNIT)
        # A request for each tag, so that the answers are many and pipelined.
        driver = make_driver("wet", replace(where, in_flight=in_flight, max_registers=4), tags + BITS)
        async with connected(driver):
            await every_type_both_ways(server, driver, tags, 3)
            await bits_both_ways(server, driver)


async def test_every_type_over_a_serial_line(modbus_server: Path, serial_pair: tuple[Path, Path]) -> None:
    tags = numbers(Area.HOLDING_REGISTER) + numbers(Area.INPUT_REGISTER)
    ours, theirs = serial_pair
    with Peer([modbus_server, "rtu", str(theirs), str(UNIT)]) as server:
        assert server.line() == "ready"
        options = ModbusSerialOptions(line=SerialOptions(device=str(ours), parity="N"), unit=UNIT)
        driver = make_driver("dry", options, tags + BITS)
        async with connected(driver):
            await every_type_both_ways(server, driver, tags, 3)
            await bits_both_ways(server, driver)


async def test_registers_written_together_arrive_in_one_request(modbus_server: Path) -> None:
    kinds = (DataType.UINT, DataType.REAL, DataType.DINT)
    places = (200, 201, 203)
    tags = [
        Tag(name=f"job.{kind}".lower(), address=ModbusAddress(Area.HOLDING_REGISTER, at), type=kind, writable=True)
        for kind, at in zip(kinds, places, strict=True)
    ]
    with Peer([modbus_server, "tcp", str(UNIT)]) as server:
        driver = make_driver("wet", ModbusTcpOptions(host="127.0.0.1", port=server.port(), unit=UNIT), tags)
        async with connected(driver):
            assert not driver.block_problem([tag.name for tag in tags])
            outcome = await driver.write_block({"job.uint": 7, "job.real": -0.5, "job.dint": -100000}, T)
            assert outcome.outcome is Outcome.VERIFIED, outcome.reason
            asked = [
                server.ask(f"get {UNIT} hr {at} {kind}") for at, kind in zip(places, ("u16", "f32", "s32"), strict=True)
            ]
            assert asked == ["7", "-0.5", "-100000"]


@pytest.mark.parametrize(("code", "said"), [(1, "function"), (2, "address"), (3, "value"), (4, "fail"), (6, "busy")])
async def test_exceptions_say_what_the_device_said(modbus_server: Path, code: int, said: str) -> None:
    tag = Tag(name="a.b", address=ModbusAddress(Area.HOLDING_REGISTER, 5), type=DataType.UINT, writable=True)
    with Peer([modbus_server, "tcp", str(UNIT)]) as server:
        driver = make_driver("wet", ModbusTcpOptions(host="127.0.0.1", port=server.port(), unit=UNIT), [tag])
        async with connected(driver):
            assert server.ask(f"refuse {UNIT} {code}") == "ok"
            with pytest.raises(DeviceRefused, match=f"(?i){said}"):
                await driver.read(0, T)
            outcome = await driver.write("a.b", 9, T)
            # 4 means that it failed while it was at it: what came of it only a reading can tell.
            assert outcome.outcome is (Outcome.UNKNOWN if code == 4 else Outcome.REJECTED)
            assert said in outcome.reason.lower()
            assert server.ask(f"get {UNIT} hr 5 u16") == "0"
            assert server.ask(f"refuse {UNIT} 0") == "ok"
            assert (await driver.write("a.b", 9, T)).outcome is Outcome.VERIFIED
            assert values(driver, await driver.read(0, T)) == {"a.b": 9}


async def test_exceptions_over_a_serial_line(modbus_server: Path, serial_pair: tuple[Path, Path]) -> None:
    tag = Tag(name="a.b", address=ModbusAddress(Area.HOLDING_REGISTER, 5), type=DataType.UINT, writable=True)
    ours, theirs = serial_pair
    with Peer([modbus_server, "rtu", str(theirs), str(UNIT)]) as server:
        assert server.line() == "ready"
        options = ModbusSerialOptions(line=SerialOptions(device=str(ours), parity="N"), unit=UNIT)
        driver = make_driver("dry", options, [tag])
        async with connected(driver):
            assert server.ask(f"refuse {UNIT} 6") == "ok"
            with pytest.raises(DeviceRefused, match=r"(?i)busy"):
                await driver.read(0, T)
            assert (await driver.write("a.b", 9, T)).outcome is Outcome.REJECTED
            assert server.ask(f"refuse {UNIT} 0") == "ok"
            assert (await driver.write("a.b", 9, T)).outcome is Outcome.VERIFIED
            assert values(driver, await driver.read(0, T)) == {"a.b": 9}


async def test_the_device_dies(modbus_server: Path) -> None:
    tag = Tag(name="a.b", address=ModbusAddress(Area.HOLDING_REGISTER, 5), type=DataType.UINT, writable=True)
    with Peer([modbus_server, "tcp", str(UNIT)]) as server:
        driver = make_driver("wet", ModbusTcpOptions(host="127.0.0.1", port=server.port(), unit=UNIT), [tag])
        async with connected(driver):
            assert values(driver, await driver.read(0, T)) == {"a.b": 0}
            server.close()
            with pytest.raises(LinkDown):
                await driver.read(0, T)
            assert (await driver.write("a.b", 9, T)).outcome is Outcome.REJECTED
            await driver.close()
            with pytest.raises(LinkDown, match="cannot connect"):
                await driver.connect(T)


async def test_an_address_that_is_not_there(modbus_server: Path) -> None:
    tag = Tag(name="a.b", address=ModbusAddress(Area.HOLDING_REGISTER, 2048), type=DataType.UINT, writable=True)
    with Peer([modbus_server, "tcp", str(UNIT)]) as server:
        driver = make_driver("wet", ModbusTcpOptions(host="127.0.0.1", port=server.port(), unit=UNIT), [tag])
        async with connected(driver):
            with pytest.raises(DeviceRefused, match=r"(?i)address"):
                await driver.read(0, T)
            assert (await driver.write("a.b", 9, T)).outcome is Outcome.REJECTED


async def test_many_units_behind_one_gateway(modbus_server: Path) -> None:
    """Eight units share a connection: each reads and is written its own values, and one that refuses harms nobody."""
    units = range(1, 9)
    tags = [
        Tag(name=f"a.{n}", address=ModbusAddress(Area.HOLDING_REGISTER, 20 * n), type=DataType.UDINT, writable=True)
        for n in range(10)
    ]
    with Peer([modbus_server, "tcp", *(str(unit) for unit in units)]) as server:
        port, links = server.port(), Links()
        for unit in units:
            for n in range(10):
                server.ask(f"set {unit} hr {20 * n} u32 {1000 * unit + n}")
        drivers = [
            make_driver(
                f"unit{unit}", ModbusTcpOptions(host="127.0.0.1", port=port, unit=unit, in_flight=4), tags, links=links
            )
            for unit in units
        ]
        async with connected(*drivers):
            for _ in range(20):
                readings = await asyncio.gather(*(driver.read(0, T) for driver in drivers))
                for unit, driver, reading in zip(units, drivers, readings, strict=True):
                    assert values(driver, reading) == {f"a.{n}": 1000 * unit + n for n in range(10)}
            outcomes = await asyncio.gather(*(driver.write("a.3", 70000 + n, T) for n, driver in enumerate(drivers)))
            assert {outcome.outcome for outcome in outcomes} == {Outcome.VERIFIED}
            assert [server.ask(f"get {unit} hr 60 u32") for unit in units] == [str(70000 + n) for n in range(8)]
            server.ask("refuse 5 4")
            results = await asyncio.gather(*(driver.read(0, T) for driver in drivers), return_exceptions=True)
            assert [isinstance(result, Reading) for result in results] == [unit != 5 for unit in units]
            assert isinstance(results[4], DeviceRefused)
