"""RTU through a device server: what TCP adds to the serial line. (What they share is in test_modbus_serial.)"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import pytest
from honest_modbus import RtuTcpServer, rtu_frame
from serial_rig import Recorder, T, read

from drivers.modbus.rtu import RtuWire
from drivers.modbus.serial_wire import SerialWire
from drivers.modbus.wire import OpenFailed
from drivers.options import TcpLineOptions

pytestmark = [pytest.mark.wire, pytest.mark.usefixtures("no_leaks")]


@pytest.fixture
async def server() -> AsyncIterator[RtuTcpServer]:
    async with RtuTcpServer() as server:
        server.memory.hr[:100] = range(1000, 1100)
        yield server


@pytest.fixture
async def wire(server: RtuTcpServer) -> AsyncIterator[SerialWire]:
    line = TcpLineOptions(host="127.0.0.1", port=server.port)
    wire = RtuWire(line, echo=False, monotonic_ns=time.monotonic_ns)
    yield wire
    await wire.close()


async def test_frames_split_and_glued_anywhere(server: RtuTcpServer, wire: SerialWire) -> None:
    owner = Recorder()
    await wire.open(1.0, owner)
    assert wire.endpoint == f"127.0.0.1:{server.port}"
    server.add(18)
    assert (await owner.ask(wire, read(0, unit=18))).value == 0
    whole = rtu_frame(18, b"\x03\x02\x00\x09") + rtu_frame(17, b"\x03\x02\x12\x34") + rtu_frame(18, b"\x83\x02")
    for cut in range(1, len(whole)):
        server.script.append("silence")
        asking = asyncio.create_task(owner.insist(wire, read(1)))
        async with asyncio.timeout(5):
            while server.script:  # noqa: ASYNC110 - until the request has arrived
                await asyncio.sleep(0.001)
        server.say(whole[:cut])
        await asyncio.sleep(0.002)
        server.say(whole[cut:])
        assert (await asking).value == 0x1234
        await asyncio.sleep(0.01)
    assert any("unit 18: an answer that nobody waits for" in text for text in owner.strays)


async def test_the_line_stays_silent_between_frames(server: RtuTcpServer, wire: SerialWire) -> None:
    owner = Recorder()
    await wire.open(1.0, owner)
    await owner.ask(wire, read(1))
    start = time.monotonic()
    for _ in range(10):
        await owner.ask(wire, read(1))
    assert time.monotonic() - start >= 10 * 0.004


async def test_a_lost_connection_ends_the_exchange_and_a_new_one_owes_its_answer(
    server: RtuTcpServer, wire: SerialWire
) -> None:
    """The device behind the server does not notice, and its answer comes through the new connection."""
    owner = Recorder()
    await wire.open(1.0, owner)
    server.script.append(f"late{0.9 * T}")
    wire.start([read(1)])
    await asyncio.sleep(0.3 * T)
    assert server.client is not None
    server.client.transport.abort()
    await owner.until(lambda: owner.losses)
    assert (owner.ends, wire.under_way) == ([], 0)
    await wire.open(1.0, owner)
    assert (await owner.ask(wire, read(2, timeout_s=1))).value == 1002
    assert owner.lates == [(17, True)]
    assert (server.connections, server.loopbacks) == (2, 1)


async def test_close_resets_only_what_is_outstanding(server: RtuTcpServer, wire: SerialWire) -> None:
    owner = Recorder()
    await wire.open(1.0, owner)
    await owner.ask(wire, read(1))
    await wire.close()
    await wire.open(1.0, owner)
    server.script.append("silence")
    wire.start([read(1)])
    await asyncio.sleep(0.02)
    await wire.close()
    await server.stop()
    with pytest.raises(OpenFailed, match="cannot connect"):
        await wire.open(1.0, owner)
    assert owner.losses == []
