"""A whole line on the wire: endpoints, clock, OPC UA, control socket, power."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from asyncua import Client, Node, ua

from hil.plc import World
from hil.wire import ControlClient, ControlError, Wire, run_wire, serve
from hil.wire.control import ControlServer
from hil.wire.opcua import OpcUaServer

pytestmark = pytest.mark.wire
URI = "urn:linewright:hil:bottling"


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    logger = logging.getLogger("asyncua")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    yield
    logger.setLevel(before)


@asynccontextmanager
async def client(endpoint: str) -> AsyncIterator[tuple[Client, int]]:
    connection = Client(endpoint, timeout=5)
    async with connection:
        yield connection, await connection.get_namespace_index(URI)


def leftovers(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


async def until(check: Any, limit_s: float = 5.0) -> None:
    async with asyncio.timeout(limit_s):
        while not await check():  # noqa: ASYNC110 - of what is outside there is no event
            await asyncio.sleep(0.02)


async def test_opcua_nodes_and_power() -> None:
    """One server for all of it: building asyncua's address space takes seconds."""
    world = World(seed=1)
    inspect = world.plcs["inspect"]
    server = OpcUaServer(inspect, lambda: None, "127.0.0.1", 0)
    await server.start()
    try:
        endpoint, port = server.endpoint, server.port
        async with client(endpoint) as (connection, index):

            def node(identifier: str) -> Node:
                return connection.get_node(f"ns={index};s={identifier}")

            await types_match(world, connection, index)
            limit = node("Checkweigher.Command.LimitLow")
            await limit.write_value(325.3, ua.VariantType.Float)
            assert inspect.get("checkweigher.limit_low") == pytest.approx(325.3), "at once, within the Write service"
            for target, value, kind in (
                (limit, "x", ua.VariantType.String),
                (node("PLC.Heartbeat"), 3, ua.VariantType.UInt16),
            ):
                with pytest.raises(ua.UaStatusCodeError):
                    await target.write_value(value, kind)
            assert inspect.get("checkweigher.limit_low") == pytest.approx(325.3)
            await changes_are_notified(world, connection, node("PLC.Heartbeat"))

            world.inject("plc_kill", plc="inspect")
            await server.stop()
            with pytest.raises((ua.UaError, OSError, asyncio.TimeoutError)):
                await limit.read_value()
        with pytest.raises(OSError):
            await asyncio.open_connection("127.0.0.1", port)
        world.clear("plc_kill")
        await server.start()
        assert server.endpoint == endpoint
        async with client(endpoint) as (connection, index):
            assert await connection.get_node(f"ns={index};s=PLC.BootCount").read_value() == 2
            assert await connection.get_node(f"ns={index};s=Checkweigher.Command.LimitLow").read_value() == 0.0
    finally:
        await server.close()
    await server.close()


async def types_match(world: World, connection: Client, index: int) -> None:
    kinds = {"UINT": "UInt16", "DINT": "Int32", "UDINT": "UInt32", "REAL": "Float", "LREAL": "Double"}
    for point in world.plcs["inspect"].points.values():
        node = connection.get_node(f"ns={index};s={point.node_id.partition(';s=')[2]}")
        kind = (await node.read_data_value()).Value.VariantType.name  # type: ignore[union-attr]
        assert kind == kinds.get(point.type, {"BOOL": "Boolean", "STRING": "String"}.get(point.type))
        writable = ua.AccessLevel.CurrentWrite in await node.get_access_level()
        assert writable == point.writable, point.name


async def changes_are_notified(world: World, connection: Client, node: Node) -> None:
    seen: asyncio.Queue[int] = asyncio.Queue()

    class Handler:
        def datachange_notification(self, _node: Node, value: int, _data: object) -> None:
            seen.put_nowait(value)

    subscription = await connection.create_subscription(50, Handler())
    await subscription.subscribe_data_change(node)
    async with asyncio.timeout(5):
        await seen.get()
        world.advance(world.now + 500_000_000)
        while await seen.get() != 5:
            pass
    await subscription.delete()


async def test_the_line_on_the_wire(tmp_path: Path) -> None:
    endpoints_file, control_socket = tmp_path / "endpoints.json", tmp_path / "control.sock"
    async with run_wire(endpoints_file=endpoints_file, control_socket=control_socket, rate=2.0) as wire:
        endpoints = json.loads(endpoints_file.read_text())
        assert endpoints == wire.endpoints
        assert set(endpoints) == {"wet", "dry", "inspect"}
        assert endpoints["dry"]["parity"] == "N", "a pseudo-terminal knows no parity and refuses to set one"
        assert tmp_path / "dry" == Path(endpoints["dry"]["device"])
        async with ControlClient(control_socket) as control:
            await clock_keeps_its_rate(wire, control)
            await refusals_say_why(control)
            assert (await control.truth())["line"]["infeed"] == 0
            await control.inject("door_open", station="filler")
            assert (await control.call("faults"))["active"] == [{"fault": "door_open", "station": "filler"}]
            assert "jam" in (await control.call("faults"))["known"]
            await control.clear()
            assert (await control.call("faults"))["active"] == []
            await power_is_followed(wire, control, endpoints)
            await control.call("shutdown")
            assert wire.stopping.is_set()
    assert not leftovers(tmp_path), "files, sockets and links are gone"


async def clock_keeps_its_rate(wire: Wire, control: ControlClient) -> None:
    before, began = (await control.call("ping"))["now_s"], time.monotonic()
    await asyncio.sleep(0.5)
    after, took = (await control.call("ping"))["now_s"], time.monotonic() - began
    assert after - before == pytest.approx(2.0 * took, rel=0.2)
    start, lost = wire.world.now, wire.lost_ns
    time.sleep(0.5)  # noqa: ASYNC251 - the process is held up
    wire.sync()
    assert wire.world.now - start <= 2 * 220_000_000
    assert wire.lost_ns - lost > 250_000_000


async def refusals_say_why(control: ControlClient) -> None:
    for fields, message in (
        ({"op": "dance"}, "unknown op 'dance'"),
        ({"op": "inject", "fault": "quake"}, "there are: .*jam"),
        ({"op": "inject", "fault": "jam", "params": [1]}, "params is an object"),
        ({"op": "kill", "plc": "moist"}, "one of wet, dry, inspect"),
    ):
        with pytest.raises(ControlError, match=message):
            await control.call(**fields)  # type: ignore[arg-type]


async def power_is_followed(wire: Wire, control: ControlClient, endpoints: dict[str, Any]) -> None:
    host, port = endpoints["wet"]["host"], endpoints["wet"]["port"]
    reader, writer = await asyncio.open_connection(host, port)
    await control.kill("wet")
    assert await reader.read() == b""
    writer.close()
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection(host, port)
    await control.restart("wet")
    reader, writer = await asyncio.open_connection(host, port)
    writer.write(bytes.fromhex("0001000000060a0400010001"))
    async with asyncio.timeout(5):
        assert (await reader.readexactly(11))[-2:] == b"\x00\x02"
    wire.world.inject("plc_kill", plc="wet")  # not through the socket: the server follows all the same
    async with asyncio.timeout(5):
        assert await reader.read() == b""
    writer.close()
    wire.world.clear("plc_kill")

    async def back() -> bool:
        try:
            _, again = await asyncio.open_connection(host, port)
        except ConnectionRefusedError:
            return False
        again.close()
        return True

    await until(back)
    await control.restart("inspect")
    async with client(endpoints["inspect"]["endpoint"]) as (connection, index):
        assert await connection.get_node(f"ns={index};s=PLC.BootCount").read_value() == 2


async def test_serve_ends_when_told_and_refuses_what_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there are: bottling"):
        await serve("brewery", 1, {}, None, None, 1.0)
    with pytest.raises(ValueError, match="no PLC moist"):
        await serve("bottling", 1, {"moist": 1}, None, None, 1.0)
    with pytest.raises(ValueError, match="rate"):
        await serve("bottling", 1, {}, None, None, 0.0)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(OSError, match=r"address already in use|Address already in use"):
            await serve("bottling", 1, {"wet": taken.getsockname()[1]}, tmp_path / "e.json", None, 1.0)
    assert not leftovers(tmp_path)


async def test_control_socket_survives_bad_clients_and_is_private(tmp_path: Path) -> None:
    path = tmp_path / "c.sock"

    async def handle(request: dict[str, Any]) -> dict[str, Any]:
        return {"echo": request.get("op")}

    server = ControlServer(path, handle)
    await server.start()
    try:
        assert path.stat().st_mode & 0o777 == 0o600
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(b"not json\n[1]\n")
        assert json.loads(await reader.readline())["ok"] is False
        assert json.loads(await reader.readline()) == {"ok": True, "echo": None}
        writer.write(b"x" * (2 << 20))
        try:
            await writer.drain()
            assert await reader.read() == b"", "a line without end is hung up on"
        except ConnectionError:
            pass
        writer.close()
        async with ControlClient(path) as control:
            assert (await control.call("hello"))["echo"] == "hello"
    finally:
        await server.stop()
    with pytest.raises(ControlError, match="is it being served"):
        await ControlClient(path).connect()
