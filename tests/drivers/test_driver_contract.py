"""What holds for every driver: one suite over all of them, each against a real server."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from asyncua import ua
from honest_modbus import AsciiServer, RtuServer, RtuTcpServer, TcpServer
from mbap_peer import Authority, TlsServer, UdpServer
from opcua_plc import URI, Proxy, UaPlc, trusting

from drivers.factory import Links, make_driver
from drivers.options import (
    DriverOptions,
    ModbusSerialOptions,
    ModbusTcpOptions,
    ModbusUdpOptions,
    OpcUaOptions,
    SerialOptions,
    TcpLineOptions,
    TlsOptions,
    UaSecurity,
)
from drivers.port import (
    Address,
    Area,
    DataType,
    Driver,
    ExchangeFailed,
    LinkDown,
    ModbusAddress,
    OpcUaAddress,
    Outcome,
    Reading,
    Tag,
    WriteOutcome,
)

pytestmark = [pytest.mark.wire, pytest.mark.usefixtures("no_leaks")]
T = 0.3
CONNECT = 5.0


class Rig:
    """A PLC with Count (UDINT 7), Rail (UINT 60, steps of 0.1), Run (BOOL), Speed (REAL, slow), and its cable.

    Count and Rail can be written together.
    """

    options: DriverOptions
    addresses: dict[str, Address]
    instant: tuple[str, ...] = ()
    """Calls that end without ever waiting."""
    links: Links | None = None

    async def pull(self) -> None:
        """The cable is out, or the PLC is off."""

    async def plug(self) -> None:
        """And in again."""

    async def mute(self) -> None:
        """From now on the PLC does not answer."""

    async def get(self, name: str) -> Any:
        """What the PLC holds (raw)."""

    async def put(self, name: str, raw: Any) -> None:
        """Have the PLC change a value."""

    def connections(self) -> int:
        """How many connections the PLC has open."""
        return 0

    def driver(self) -> Driver:
        kinds = {"Count": DataType.UDINT, "Rail": DataType.UINT, "Run": DataType.BOOL, "Speed": DataType.REAL}
        tags = [
            Tag(
                name=f"plc.{name.lower()}",
                address=self.addresses[name],
                type=kind,
                scale=0.1 if name == "Rail" else 1.0,
                high=100.0 if name == "Rail" else None,
                writable=True,
                scan_class="slow" if name == "Speed" else "fast",
            )
            for name, kind in kinds.items()
        ]
        return make_driver("plc", self.options, tags, links=self.links)


class ModbusRig(Rig):
    server: TcpServer | UdpServer | RtuServer | AsciiServer | RtuTcpServer

    def __init__(self) -> None:
        holding, coil = Area.HOLDING_REGISTER, Area.COIL
        self.addresses = {
            "Count": ModbusAddress(holding, 0),
            "Rail": ModbusAddress(holding, 2),
            "Run": ModbusAddress(coil, 3),
            "Speed": ModbusAddress(holding, 40),
        }
        memory = self.server.memory
        memory.put("hr", 0, b"\0\0\0\7")
        memory.put("hr", 40, bytes.fromhex("3FC00000"))
        memory.hr[2] = 60

    async def pull(self) -> None:
        await self.server.stop()

    async def plug(self) -> None:
        self.server.script.clear()
        await self.server.start()

    async def mute(self) -> None:
        self.server.script.extend(["silence"] * 100)

    async def get(self, name: str) -> Any:
        memory = self.server.memory
        if name == "Run":
            return memory.co[3]
        return memory.hr[2] if name == "Rail" else memory.hr[0] << 16 | memory.hr[1]

    async def put(self, name: str, raw: Any) -> None:
        self.server.memory.hr[2 if name == "Rail" else 1] = raw


class TcpRig(ModbusRig):
    def __init__(self, server: TcpServer, tls: TlsOptions | None = None, *, shared: bool = False) -> None:
        self.server = server
        self.options = ModbusTcpOptions(host="127.0.0.1", port=server.port, unit=3, in_flight=1, tls=tls)
        if shared:
            self.links = Links()
            neighbour = ModbusTcpOptions(host="127.0.0.1", port=server.port, unit=4, in_flight=1, tls=tls)
            make_driver("neighbour", neighbour, [], links=self.links)
        super().__init__()

    def connections(self) -> int:
        assert isinstance(self.server, TcpServer)
        return len(self.server.writers)


class UdpRig(ModbusRig):
    instant = ("connect", "close")

    def __init__(self, server: UdpServer) -> None:
        self.server = server
        self.options = ModbusUdpOptions(host="127.0.0.1", port=server.port, unit=3)
        super().__init__()


class RtuRig(ModbusRig):
    instant = ("connect", "close")

    def __init__(self, server: RtuServer | AsciiServer) -> None:
        self.server = server
        line = SerialOptions(device=str(server.device), baudrate=115200)
        framing: Any = "rtu" if isinstance(server, RtuServer) else "ascii"
        self.options = ModbusSerialOptions(line=line, framing=framing, unit=17)
        super().__init__()


class RtuTcpRig(ModbusRig):
    def __init__(self, server: RtuTcpServer) -> None:
        self.server = server
        self.options = ModbusSerialOptions(line=TcpLineOptions(host="127.0.0.1", port=server.port), unit=17)
        super().__init__()


class UaRig(Rig):
    def __init__(self, plc: UaPlc, proxy: Proxy) -> None:
        self.plc, self.proxy = plc, proxy
        self.options = OpcUaOptions(endpoint=f"opc.tcp://127.0.0.1:{proxy.port}")
        self.addresses = {n: OpcUaAddress(f"nsu={URI};s=PLC.{n}") for n in ("Count", "Rail", "Run", "Speed")}

    def connections(self) -> int:
        return len(self.proxy.pairs)

    async def pull(self) -> None:
        await self.proxy.stop()

    async def plug(self) -> None:
        await self.proxy.start()

    async def mute(self) -> None:
        self.proxy.swallow_down = self.proxy.swallow_up = True

    async def get(self, name: str) -> Any:
        return await self.plc.get(name)

    async def put(self, name: str, raw: Any) -> None:
        kind = ua.VariantType.UInt16 if name == "Rail" else ua.VariantType.UInt32
        await self.plc.put(name, ua.DataValue(ua.Variant(raw, kind)))


class UaSubscribeRig(UaRig):
    """The server tells what changed; a change shows in the first reading that is newer than it."""

    def __init__(self, plc: UaPlc, proxy: Proxy) -> None:
        super().__init__(plc, proxy)
        assert isinstance(self.options, OpcUaOptions)
        self.options = replace(self.options, reading="subscribe", periods_s={"fast": 0.05, "slow": 0.2})

    def driver(self) -> Driver:
        self.made = super().driver()
        return self.made

    async def put(self, name: str, raw: Any) -> None:
        await super().put(name, raw)
        now = time.monotonic_ns()
        async with asyncio.timeout(2.0):
            while (await self.made.read(0, 1.0)).stamp_ns < now:  # noqa: ASYNC110 - the PLC knows of no event
                await asyncio.sleep(0.005)


@pytest.fixture(scope="session")
def ua_security(secure_ua_plc: UaPlc, tmp_path_factory: pytest.TempPathFactory) -> UaSecurity:
    return trusting(secure_ua_plc, tmp_path_factory.mktemp("ua"))


@pytest.fixture(scope="session")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pki")
    authority = Authority(folder)
    authority.issue("device")
    authority.issue("controller")
    return folder


MODBUS_TCP = ("modbus_tcp", "modbus_tls", "modbus_gateway")
OPC_UA = ("opcua", "opcua_subscribe", "opcua_secure")
MODBUS_SERIAL = ("modbus_rtu", "modbus_ascii", "modbus_rtu_tcp")


@pytest.fixture(params=[*MODBUS_TCP, "modbus_udp", *MODBUS_SERIAL, *OPC_UA])
async def rig(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Rig]:
    if request.param == "modbus_tls":
        pki: Path = request.getfixturevalue("pki")
        files = TlsOptions(ca=pki / "ca.pem", certificate=pki / "controller.pem", key=pki / "controller.key")
        async with TlsServer(pki, "device", "ca") as tls:
            yield TcpRig(tls, files)
    elif request.param in MODBUS_TCP:
        async with TcpServer(unit=3) as tcp:
            yield TcpRig(tcp, shared=request.param == "modbus_gateway")
    elif request.param == "modbus_udp":
        async with UdpServer(unit=3) as udp:
            yield UdpRig(udp)
    elif request.param == "modbus_rtu":
        async with RtuServer(tmp_path) as rtu:
            yield RtuRig(rtu)
    elif request.param == "modbus_ascii":
        async with AsciiServer(tmp_path) as ascii_:
            yield RtuRig(ascii_)
    elif request.param == "modbus_rtu_tcp":
        async with RtuTcpServer() as rtu_tcp:
            yield RtuTcpRig(rtu_tcp)
    else:
        secure = request.param == "opcua_secure"
        security: UaSecurity | None = request.getfixturevalue("ua_security") if secure else None
        plc: UaPlc = request.getfixturevalue("secure_ua_plc" if secure else "ua_plc")
        await plc.reset()
        proxy = Proxy(plc.port)
        await proxy.start()
        ua_rig = UaSubscribeRig(plc, proxy) if request.param == "opcua_subscribe" else UaRig(plc, proxy)
        assert isinstance(ua_rig.options, OpcUaOptions)
        ua_rig.options = replace(ua_rig.options, security=security)
        yield ua_rig
        await proxy.stop()


def named(driver: Driver, group: int, reading: Reading) -> dict[str, Any]:
    """A reading by the tags' names: the order within a group is the driver's."""
    return {tag.name: value for tag, value in zip(driver.groups[group].tags, reading.values, strict=True)}


FAST = {"plc.count": 7, "plc.rail": 6.0, "plc.run": False}


async def read(driver: Driver, group: int, timeout_s: float = 1.0) -> Reading:
    return await driver.read(group, timeout_s)


async def lost(call: Callable[[], Awaitable[object]]) -> LinkDown:
    """The link must be given up within three exchanges (a serial line survives two)."""
    for _ in range(3):
        try:
            await call()
        except ExchangeFailed:
            continue
        except LinkDown as exc:
            return exc
    raise AssertionError("the loss was not seen")


async def test_reads_every_group(rig: Rig) -> None:
    driver = rig.driver()
    assert [(g.scan_class, sorted(t.name for t in g.tags)) for g in driver.groups] == [
        ("fast", ["plc.count", "plc.rail", "plc.run"]),
        ("slow", ["plc.speed"]),
    ]
    await driver.connect(CONNECT)
    before = time.monotonic_ns()
    fast, slow = await read(driver, 0), await read(driver, 1)
    assert (named(driver, 0, fast), named(driver, 1, slow)) == (FAST, {"plc.speed": 1.5})
    assert not fast.bad
    assert before <= fast.stamp_ns <= slow.stamp_ns <= time.monotonic_ns()
    await rig.put("Rail", 1001)
    reading = await read(driver, 0)
    assert named(driver, 0, reading) == FAST | {"plc.rail": None}
    assert [driver.groups[0].tags[i].name for i in reading.bad] == ["plc.rail"]
    assert "100" in next(iter(reading.bad.values()))
    await driver.close()


async def test_verifies_a_write(rig: Rig) -> None:
    driver = rig.driver()
    await driver.connect(CONNECT)
    for tag, value, name, raw in (
        ("plc.run", True, "Run", True),
        ("plc.rail", 33.1, "Rail", 331),
        ("plc.count", 123456789, "Count", 123456789),
    ):
        got = await driver.write(tag, value, 1.0)
        assert got.outcome is Outcome.VERIFIED, got.reason
        assert got.read_back == pytest.approx(value)
        assert await rig.get(name) == raw
    await driver.close()


async def test_verifies_a_block(rig: Rig) -> None:
    driver = rig.driver()
    await driver.connect(CONNECT)
    block = {"plc.count": 70_000, "plc.rail": 12.5}
    problem = driver.block_problem(tuple(block))
    got = await driver.write_block(block, 1.0)
    assert (problem == "") == isinstance(rig, ModbusRig | UaRig)
    if problem:
        assert got.outcome is Outcome.REJECTED
        assert (await rig.get("Count"), await rig.get("Rail")) == (7, 60)
        await driver.close()
        return
    assert got.outcome is Outcome.VERIFIED, got.reason
    assert (await rig.get("Count"), await rig.get("Rail")) == (70_000, 125)
    for bad, text in (({"plc.count": 1, "plc.x": 2}, "plc.x"), ({"plc.count": 1, "plc.rail": 100.1}, "plc.rail")):
        got = await driver.write_block(bad, 1.0)
        assert got.outcome is Outcome.REJECTED
        assert text in got.reason
    assert driver.block_problem(("plc.count", "plc.x"))
    assert (await rig.get("Count"), await rig.get("Rail")) == (70_000, 125)
    await driver.close()


async def test_writes_while_it_reads(rig: Rig) -> None:
    """One task reads on and on, another one writes; neither disturbs the other."""
    driver = rig.driver()
    await driver.connect(CONNECT)
    reading = True

    async def poll() -> int:
        count = 0
        while reading:
            for group in (0, 1):
                assert not (await read(driver, group)).bad
                count += 1
        return count

    polling = asyncio.create_task(poll())
    for n in range(10):
        got = await driver.write("plc.rail", n / 10, 1.0)
        assert got.outcome is Outcome.VERIFIED, got.reason
        assert await rig.get("Rail") == n
    reading = False
    assert await polling >= 2
    stats = driver.stats()
    assert stats.answered >= 12
    assert (stats.timeouts, stats.refused, stats.late, stats.strays, stats.breaker) == (0, 0, 0, 0, "closed")
    assert 0.0 < stats.p50_ms <= stats.p99_ms
    await driver.close()


@pytest.mark.parametrize("operation", ["read", "write"])
async def test_close_ends_what_is_under_way(rig: Rig, operation: str) -> None:
    driver = rig.driver()
    await driver.connect(CONNECT)
    await rig.mute()
    calls: dict[str, Callable[[], Awaitable[object]]] = {
        "read": lambda: driver.read(0, 5.0),
        "write": lambda: driver.write("plc.rail", 5.0, 5.0),
    }
    task = asyncio.ensure_future(calls[operation]())
    await asyncio.sleep(0.05)
    start = time.monotonic()
    await driver.close()
    (result,) = await asyncio.gather(task, return_exceptions=True)
    assert time.monotonic() - start < 1.5
    if operation == "read":
        assert isinstance(result, LinkDown)
    else:
        assert isinstance(result, WriteOutcome)
        assert result.outcome is Outcome.UNKNOWN


async def test_refuses_what_must_not_be_sent(rig: Rig) -> None:
    driver = rig.driver()
    await driver.connect(CONNECT)
    for tag, value in (("plc.rail", 100.1), ("plc.rail", float("nan")), ("plc.count", -1), ("plc.x", 0)):
        got = await driver.write(tag, value, 1.0)
        assert got.outcome is Outcome.REJECTED
        assert tag in got.reason
    assert (await rig.get("Rail"), await rig.get("Count")) == (60, 7)
    await driver.close()


async def test_before_connect_and_after_close_nothing_goes(rig: Rig) -> None:
    driver = rig.driver()
    for _ in range(2):
        with pytest.raises(LinkDown):
            await driver.read(0, T)
        assert (await driver.write("plc.rail", 5.0, T)).outcome is Outcome.REJECTED
        await driver.connect(CONNECT)
        await driver.close()
        await driver.close()
    assert await rig.get("Rail") == 60


async def test_a_pulled_cable_is_seen_and_a_plugged_one_taken_up(rig: Rig) -> None:
    driver = rig.driver()
    await driver.connect(CONNECT)
    await read(driver, 0)
    await rig.pull()
    start = time.monotonic()
    exc = await lost(lambda: driver.read(0, T))
    assert time.monotonic() - start < 0.5
    assert exc.plc == "plc"
    assert driver.endpoint in str(exc)
    assert (await driver.write("plc.rail", 5.0, T)).outcome is not Outcome.VERIFIED
    await driver.close()
    with pytest.raises(LinkDown):
        await driver.connect(T)
    await driver.close()
    await rig.plug()
    await driver.connect(CONNECT)
    assert named(driver, 0, await read(driver, 0)) == FAST
    await driver.close()


async def test_silence_is_a_lost_link_and_an_unknown_write(rig: Rig) -> None:
    driver = rig.driver()
    await driver.connect(CONNECT)
    await rig.mute()
    start = time.monotonic()
    got = await driver.write("plc.rail", 5.0, 0.1)
    assert time.monotonic() - start < 0.4
    assert got.outcome is Outcome.UNKNOWN
    assert "plc.rail" in got.reason
    exc = await lost(lambda: driver.read(0, 0.1))
    assert time.monotonic() - start < 1.5
    assert "no answer" in str(exc) or "not connected" in str(exc)
    await driver.close()


SERVERS = ("Proxy.", "TcpServer.", "BaseSelectorEventLoop._accept")


def tasks() -> set[asyncio.Task[Any]]:
    """All tasks but those of the test servers."""
    return {
        task for task in asyncio.all_tasks() if not task.done() and not task.get_coro().__qualname__.startswith(SERVERS)
    }


@pytest.mark.parametrize("operation", ["connect", "read", "write", "close"])
async def test_cancelled_at_any_await(rig: Rig, operation: str) -> None:
    """After n turns of the event loop, for every n until it gets through; then the driver works again."""
    driver = rig.driver()
    calls: dict[str, Callable[[], Awaitable[object]]] = {
        "connect": lambda: driver.connect(CONNECT),
        "read": lambda: driver.read(0, 0.05),
        "write": lambda: driver.write("plc.rail", 5.0, 0.05),
        "close": driver.close,
    }
    cancelled = 0
    for turns in [*range(12), 16, 20, 30, 50, 100, 200, 400]:
        if operation != "connect":
            await driver.connect(CONNECT)
        before = tasks()
        task = asyncio.ensure_future(calls[operation]())
        for _ in range(turns):
            await asyncio.sleep(0)
        through = task.done()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        cancelled += task.cancelled()
        if not through:
            assert task.cancelled(), f"the cancellation after {turns} turns was swallowed: {task}"
        await driver.close()
        assert tasks() == before
        async with asyncio.timeout(1.0):
            while rig.connections():  # noqa: ASYNC110 - the other end knows of no event
                await asyncio.sleep(0.001)
        if through:
            break
    if operation not in rig.instant:
        assert cancelled >= 1
    await driver.connect(CONNECT)
    assert named(driver, 0, await read(driver, 0))["plc.count"] == 7
    await driver.close()
