"""Our OPC UA client against a server that is not written in Python (node-opcua)."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, Literal, get_args

import pytest

from bench.peers.build import Peer
from drivers.factory import make_driver
from drivers.options import OpcUaOptions, UaSecurity
from drivers.port import DataType, Driver, LinkDown, OpcUaAddress, Outcome, Reading, Tag, Value

pytestmark = [pytest.mark.peer, pytest.mark.wire]
URI = "urn:linewright:peer:plant"
T, CONNECT = 5.0, 15.0
PERIOD_S = 0.3
"""node-opcua publishes every 50 ms at best, and a subscription has to show life within the period."""
TYPES: dict[str, tuple[DataType, tuple[Value, ...]]] = {
    "Boolean": (DataType.BOOL, (True, False)),
    "SByte": (DataType.SINT, (-128, 127)),
    "Byte": (DataType.USINT, (0, 255)),
    "Int16": (DataType.INT, (-32768, 32767)),
    "UInt16": (DataType.UINT, (0, 65535)),
    "Int32": (DataType.DINT, (-(2**31), 2**31 - 1)),
    "UInt32": (DataType.UDINT, (0, 2**32 - 1)),
    "Int64": (DataType.LINT, (-(2**63), 2**63 - 1)),
    "UInt64": (DataType.ULINT, (0, 2**64 - 1)),
    "Float": (DataType.REAL, (-1.5, 3.25)),
    "Double": (DataType.LREAL, (-2.5e300, 0.1)),
    "String": (DataType.STRING, ("", "Süd 330 ml")),
}
Policy = Literal["Basic256Sha256", "Aes128_Sha256_RsaOaep", "Aes256_Sha256_RsaPss"]
Mode = Literal["sign", "sign_and_encrypt"]
Reads = Literal["subscribe", "poll"]


class Server:
    """The server, and what it holds."""

    def __init__(self, peer: Peer) -> None:
        self._peer = peer
        self.endpoint = f"opc.tcp://127.0.0.1:{peer.port()}"

    async def ask(self, text: str) -> Any:
        """Off the loop: while the server thinks, our client goes on."""
        return json.loads(await asyncio.to_thread(self._peer.ask, text))

    async def get(self, name: str) -> Value:
        value = await self.ask(f"get {name}")
        return int(value) if name in ("Int64", "UInt64") else value

    async def set(self, name: str, value: Value) -> None:
        text = str(value) if name in ("Int64", "UInt64") else value
        assert await self.ask(f"set {name} {json.dumps(text)}") == "ok"


@pytest.fixture(scope="module")
def server(
    node_opcua: list[str | Path], server_certificate: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    with Peer([*node_opcua, tmp_path_factory.mktemp("server"), *server_certificate]) as peer:
        yield Server(peer)


def tags() -> list[Tag]:
    made = [
        Tag(
            name=f"a.{name}".lower(),
            address=OpcUaAddress(f"nsu={URI};s={name}"),
            type=kind,
            length=40 if kind is DataType.STRING else 0,
            writable=True,
        )
        for name, (kind, _) in TYPES.items()
    ]
    sealed = OpcUaAddress(f"nsu={URI};s=Sealed")
    return [*made, Tag(name="a.sealed", address=sealed, type=DataType.UINT, writable=True)]


def client(server: Server, reading: Reads, security: UaSecurity | None = None) -> Driver:
    login = {"user": "line", "password": "fill it"} if security else {}
    options = OpcUaOptions(
        endpoint=server.endpoint, reading=reading, periods_s={"fast": PERIOD_S}, security=security, **login
    )
    return make_driver("filler", options, tags())


def place(driver: Driver, name: str) -> int:
    return [tag.name for tag in driver.groups[0].tags].index(f"a.{name}".lower())


async def until(driver: Driver, seen: Callable[[Reading], bool]) -> Reading:
    """Read as a link does, once a period, until it is there."""
    async with asyncio.timeout(20):
        while not seen(reading := await driver.read(0, T)):  # noqa: ASYNC110 - reading is what a link does
            await asyncio.sleep(PERIOD_S)
    return reading


async def reads(server: Server, driver: Driver, turn: int) -> None:
    """The plant changes every variable; the driver sees each with its type and value."""
    for name, (_, values) in TYPES.items():
        await server.set(name, values[turn])
    wanted = {place(driver, name): values[turn] for name, (_, values) in TYPES.items()}
    reading = await until(driver, lambda r: all(r.values[at] == value for at, value in wanted.items()))
    assert not reading.bad
    assert all(type(reading.values[at]) is type(value) for at, value in wanted.items())
    assert reading.sources, "the server gives source timestamps"


async def writes(server: Server, driver: Driver, turn: int) -> None:
    for name, (_, values) in TYPES.items():
        outcome = await driver.write(f"a.{name}".lower(), values[turn], T)
        assert outcome.outcome is Outcome.VERIFIED, outcome.reason
        assert await server.get(name) == values[turn]


def trust(certificate: Path, folder: Path) -> None:
    """What an engineer does with a certificate that was refused."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(certificate, folder)


@pytest.fixture
async def closing() -> Any:
    """Drivers given to it are closed in the end."""
    drivers: list[Driver] = []

    def keep(driver: Driver) -> Driver:
        drivers.append(driver)
        return driver

    yield keep
    for driver in drivers:
        await driver.close()


Keep = Callable[[Driver], Driver]


@pytest.mark.parametrize("reading", get_args(Reads))
async def test_every_type_both_ways(server: Server, closing: Keep, reading: Reads) -> None:
    driver = closing(client(server, reading))
    await driver.connect(CONNECT)
    for turn in (0, 1, 0):
        await reads(server, driver, turn)
        await writes(server, driver, 1 - turn)


@pytest.mark.parametrize("mode", get_args(Mode))
@pytest.mark.parametrize("policy", get_args(Policy))
async def test_secured(
    server: Server, closing: Keep, tmp_path: Path, server_certificate: tuple[Path, Path], policy: Policy, mode: Mode
) -> None:
    """Refused until its certificate is trusted; then everything works, subscribed, with a user's password."""
    security = UaSecurity(
        policy=policy,
        mode=mode,
        certificate=tmp_path / "own.der",
        key=tmp_path / "own.key",
        trusted=tmp_path / "trusted",
    )
    driver = closing(client(server, "subscribe", security))
    with pytest.raises(LinkDown, match="trusted"):
        await driver.connect(CONNECT)
    trust(server_certificate[0], tmp_path / "trusted")
    await driver.connect(CONNECT)
    await reads(server, driver, 0)
    await writes(server, driver, 1)
    await reads(server, driver, 1)


async def test_a_wrong_password_is_said_to_be_one(
    server: Server, closing: Keep, tmp_path: Path, server_certificate: tuple[Path, Path]
) -> None:
    trust(server_certificate[0], tmp_path / "trusted")
    security = UaSecurity(
        policy="Basic256Sha256", certificate=tmp_path / "c.der", key=tmp_path / "c.key", trusted=tmp_path / "trusted"
    )
    options = OpcUaOptions(
        endpoint=server.endpoint, user="line", password="guess", security=security, periods_s={"fast": PERIOD_S}
    )
    before = await server.ask("sessions")
    driver = closing(make_driver("filler", options, tags()))
    with pytest.raises(LinkDown, match=r"(?i)user|password"):
        await driver.connect(CONNECT)
    await driver.close()
    # A refused session must not take a place on the server, which has few.
    await _eventually(lambda: server.ask("sessions"), before)


@pytest.mark.parametrize("reading", get_args(Reads))
async def test_quality_and_refusals(server: Server, closing: Keep, reading: Reads) -> None:
    driver = closing(client(server, reading))
    await driver.connect(CONNECT)
    at = place(driver, "Float")
    assert await server.ask("status Float BadDeviceFailure") == "ok"
    try:
        bad = await until(driver, lambda r: at in r.bad)
        assert "BadDeviceFailure" in bad.bad[at]
        assert bad.values[at] is None
    finally:
        assert await server.ask("status Float Good") == "ok"
    good = await until(driver, lambda r: at not in r.bad)
    assert isinstance(good.values[at], float)
    outcome = await driver.write("a.sealed", 4, T)
    assert outcome.outcome is Outcome.REJECTED
    assert await server.get("Sealed") == 3


async def test_every_change_is_seen_by_a_subscription(server: Server, closing: Keep) -> None:
    """Changes slower than the period arrive one by one, in order, none twice."""
    driver = closing(client(server, "subscribe"))
    await driver.connect(CONNECT)
    at, seen = place(driver, "UInt32"), list[Value | None]()
    await server.set("UInt32", 1000)
    await until(driver, lambda r: r.values[at] == 1000)
    for number in range(1001, 1011):
        await server.set("UInt32", number)

        def news(reading: Reading) -> bool:
            if not seen or reading.values[at] != seen[-1]:
                seen.append(reading.values[at])
            return seen[-1] == number  # noqa: B023 - called in this turn only

        await until(driver, news)
    assert [value for value in seen if value != 1000] == list(range(1001, 1011))


@pytest.mark.parametrize("reading", get_args(Reads))
async def test_nothing_is_left_on_the_server(server: Server, reading: Reads) -> None:
    before = await server.ask("sessions")
    for _ in range(3):
        driver = client(server, reading)
        await driver.connect(CONNECT)
        await driver.read(0, T)
        assert await server.ask("sessions") == before + 1
        await driver.close()
        await _eventually(lambda: server.ask("sessions"), before)


async def _eventually(ask: Callable[[], Awaitable[Any]], wanted: object) -> None:
    async with asyncio.timeout(10):
        while await ask() != wanted:  # noqa: ASYNC110 - the server is another process
            await asyncio.sleep(0.05)


async def test_the_server_dies(
    node_opcua: list[str | Path], server_certificate: tuple[Path, Path], tmp_path: Path, closing: Keep
) -> None:
    with Peer([*node_opcua, tmp_path, *server_certificate]) as peer:
        driver = closing(client(Server(peer), "subscribe"))
        await driver.connect(CONNECT)
        await driver.read(0, T)
    with pytest.raises(LinkDown):
        await until(driver, lambda _: False)
