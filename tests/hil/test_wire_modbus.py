"""The wire tier's own Modbus servers, against pymodbus, pyserial and bare sockets."""

from __future__ import annotations

import asyncio
import socket
import struct
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
import serial
from pymodbus.client import AsyncModbusTcpClient

from hil.plc import World
from hil.wire.modbus_rtu import ModbusRtuServer, crc16
from hil.wire.modbus_tcp import ModbusTcpServer
from hil.wire.pdu import answer

pytestmark = pytest.mark.wire


@asynccontextmanager
async def tcp(world: World) -> AsyncIterator[ModbusTcpServer]:
    server = ModbusTcpServer(world.plcs["wet"], 10, lambda: None, "127.0.0.1", 0)
    await server.start()
    try:
        yield server
    finally:
        await server.stop()


@asynccontextmanager
async def rtu(world: World, folder: Path) -> AsyncIterator[ModbusRtuServer]:
    server = ModbusRtuServer(world.plcs["dry"], 17, lambda: None, folder / "dry")
    await server.start()
    try:
        yield server
    finally:
        await server.stop()


@asynccontextmanager
async def raw(server: ModbusTcpServer) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection(server.host, server.port)
    try:
        yield reader, writer
    finally:
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()


def frame(transaction: int, pdu: bytes, unit: int = 10) -> bytes:
    return struct.pack(">HHHB", transaction, 0, len(pdu) + 1, unit) + pdu


async def response(reader: asyncio.StreamReader) -> tuple[int, int, bytes]:
    async with asyncio.timeout(5):
        transaction, _, length, unit = struct.unpack(">HHHB", await reader.readexactly(7))
        return transaction, unit, await reader.readexactly(length - 1)


@pytest.fixture
def world() -> World:
    return World(seed=1)


# ---- PDU


@pytest.mark.parametrize(
    ("request_hex", "code"),
    [
        ("03 0000 0000", 3),
        ("03 0000 007e", 3),
        ("04 0000 007d", 2),
        ("01 0010 07d1", 3),
        ("01 0000 0001", 2),
        ("04 0005 0001", 2),
        ("05 0010 1234", 3),
        ("05 0013 ff00", 2),
        ("06 0066 0001", 2),
        ("0f 0010 0002 02 03 00", 3),
        ("0f 0010 0000 00", 3),
        ("10 0064 0001 02 00", 3),
        ("10 0064 007c f8" + "00" * 248, 3),
        ("10 0064 0003 06" + "00" * 6, 2),
        ("03 0000", 3),
        ("07", 1),
        ("2b 0e 01 00", 1),
        ("17 0000 0001 0000 0001 02 0000", 1),
    ],
)
def test_exceptions_are_exact(world: World, request_hex: str, code: int) -> None:
    pdu = bytes.fromhex(request_hex.replace(" ", ""))
    assert answer(world.plcs["wet"], pdu) == bytes((pdu[0] | 0x80, code))


def test_writes_echo_and_reach_the_plc(world: World) -> None:
    wet = world.plcs["wet"]
    for text in ("05 0010 ff00", "06 0064 01c2"):
        pdu = bytes.fromhex(text.replace(" ", ""))
        assert answer(wet, pdu) == pdu
    assert wet.get("infeed.run") is True
    assert wet.get("infeed.speed_sp") == 0.45
    assert answer(wet, bytes.fromhex("0f00100003010500")[:7]) == bytes.fromhex("0f00100003")
    assert (wet.get("infeed.run"), wet.get("infeed.reset"), wet.get("infeed.gate")) == (True, False, True)
    assert answer(wet, bytes.fromhex("10006400020400640290")) == bytes.fromhex("1000640002")
    assert wet.get("infeed.rail_sp") == 65.6


# ---- TCP


async def test_pymodbus_reads_and_writes(world: World) -> None:
    async with tcp(world) as server:
        client = AsyncModbusTcpClient(server.host, port=server.port, retries=0, timeout=2)
        assert await client.connect()
        try:
            block = await client.read_input_registers(0, count=3, device_id=10)
            assert block.registers == [0, 1, 1]
            await client.write_registers(100, [450, 620], device_id=10)
            assert (await client.read_holding_registers(100, count=2, device_id=10)).registers == [450, 620]
            await client.write_coils(16, [True, False, True], device_id=10)
            assert (await client.read_coils(16, count=3, device_id=10)).bits[:3] == [True, False, True]
            assert (await client.read_discrete_inputs(18, count=3, device_id=10)).bits[:3] == [True, True, True]
            assert (await client.read_input_registers(50, count=1, device_id=10)).exception_code == 2
            assert (await client.read_input_registers(0, count=1, device_id=3)).exception_code == 0x0B
        finally:
            client.close()
    assert world.plcs["wet"].get("infeed.speed_sp") == 0.45


async def test_pipelined_requests_in_one_segment_are_all_answered_in_order(world: World) -> None:
    async with tcp(world) as server, raw(server) as (reader, writer):
        reads = bytes.fromhex("0400000003")
        writer.write(b"".join(frame(n, reads) for n in range(1, 33)))
        for n in range(1, 33):
            transaction, unit, pdu = await response(reader)
            assert (transaction, unit, pdu) == (n, 10, bytes.fromhex("04060000 0001 0001".replace(" ", "")))


async def test_a_request_dribbled_byte_by_byte_is_answered_once(world: World) -> None:
    async with tcp(world) as server, raw(server) as (reader, writer):
        writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in frame(7, bytes.fromhex("0400010001")):
            writer.write(bytes((byte,)))
            await writer.drain()
            await asyncio.sleep(0)
        assert await response(reader) == (7, 10, bytes.fromhex("04020001"))
        writer.write(frame(8, b"\x2b\x0e\x01\x00") + frame(9, bytes.fromhex("0400010001"), unit=99))
        assert await response(reader) == (8, 10, b"\xab\x01")
        assert await response(reader) == (9, 99, b"\x84\x0b")


@pytest.mark.parametrize("junk", ["000100010006 0a 0400010001", "000100000001 0a", "0001000000ff 0a" + "00" * 254])
async def test_what_is_not_modbus_ends_the_connection(world: World, junk: str) -> None:
    async with tcp(world) as server, raw(server) as (reader, writer):
        writer.write(bytes.fromhex(junk.replace(" ", "")))
        with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
            await response(reader)
        async with raw(server) as (reader2, writer2):
            writer2.write(frame(1, bytes.fromhex("0400010001")))
            assert (await response(reader2))[2] == bytes.fromhex("04020001")


async def test_connections_are_bounded(world: World) -> None:
    async with tcp(world) as server:
        writers = [(await asyncio.open_connection(server.host, server.port))[1] for _ in range(16)]
        try:
            async with raw(server) as (reader, writer):
                writer.write(frame(1, bytes.fromhex("0400010001")))
                with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
                    await response(reader)
        finally:
            for open_writer in writers:
                open_writer.close()


async def test_a_client_that_never_reads_is_cut_off(world: World) -> None:
    async with tcp(world) as server:
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.setblocking(False)
        loop = asyncio.get_running_loop()
        try:
            await loop.sock_connect(sock, (server.host, server.port))
            requests = b"".join(frame(n, bytes.fromhex("04008c000f")) for n in range(2000))
            with pytest.raises((ConnectionResetError, BrokenPipeError)):
                async with asyncio.timeout(20):
                    while True:
                        await loop.sock_sendall(sock, requests)
        finally:
            sock.close()


async def test_kill_cuts_connections_and_the_port_comes_back(world: World) -> None:
    async with tcp(world) as server:
        port = server.port
        async with raw(server) as (reader, writer):
            writer.write(frame(1, bytes.fromhex("0400010001")))
            await response(reader)
            await server.stop()
            assert await reader.read() == b""
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", port)
        await server.start()
        assert server.port == port
        async with raw(server) as (reader, writer):
            writer.write(frame(2, bytes.fromhex("0400010001")))
            assert (await response(reader))[0] == 2


# ---- RTU


def adu(body: bytes) -> bytes:
    return body + crc16(body).to_bytes(2, "little")


def ask(device: Path, request: bytes, answer_bytes: int, timeout_s: float = 2.0) -> bytes:
    with serial.Serial(str(device), 115200, timeout=timeout_s) as port:
        port.write(request)
        return bytes(port.read(answer_bytes))


def test_crc_against_a_published_frame() -> None:
    """MODBUS over Serial Line V1.02, appendix B: 02 07 has the CRC 41 12."""
    assert adu(b"\x02\x07") == bytes.fromhex("02074112")


async def test_rtu_reads_writes_and_stays_silent_for_others(world: World, tmp_path: Path) -> None:
    async with rtu(world, tmp_path) as server:
        device = server.device
        assert device.is_symlink()
        read = adu(bytes.fromhex("110400010001"))
        assert await asyncio.to_thread(ask, device, read, 7) == adu(bytes.fromhex("1104020001"))
        write = adu(bytes.fromhex("1110006400010200b4"))
        assert await asyncio.to_thread(ask, device, write, 8) == adu(bytes.fromhex("111000640001"))
        assert world.plcs["dry"].get("capper.torque_sp") == 1.8
        assert await asyncio.to_thread(ask, device, adu(bytes.fromhex("120400010001")), 7, 0.2) == b""
        assert await asyncio.to_thread(ask, device, read[:-1] + b"\0", 7, 0.2) == b"", "a bad CRC is not answered"
        assert await asyncio.to_thread(ask, device, read, 7) == adu(bytes.fromhex("1104020001")), "and not remembered"
        assert await asyncio.to_thread(ask, device, adu(bytes.fromhex("000600640078")), 8, 0.2) == b"", "broadcast"
        assert world.plcs["dry"].get("capper.torque_sp") == 1.2
        assert await asyncio.to_thread(ask, device, adu(b"\x11\x41\x00"), 5) == adu(b"\x11\xc1\x01")
    assert not device.exists()


async def test_rtu_gets_over_noise(world: World, tmp_path: Path) -> None:
    async with rtu(world, tmp_path) as server:
        read, good = adu(bytes.fromhex("110400010001")), adu(bytes.fromhex("1104020001"))
        for noise in (b"\xff\x00\x55", b"\x11", b"\x11\x10\x00\x64\x00\x01\xf0", b"\x7e\x04"):
            assert await asyncio.to_thread(ask, server.device, noise + read, 7) == good, noise.hex()


async def test_rtu_answers_two_requests_in_one_write(world: World, tmp_path: Path) -> None:
    async with rtu(world, tmp_path) as server:
        read, good = adu(bytes.fromhex("110400010001")), adu(bytes.fromhex("1104020001"))
        assert await asyncio.to_thread(ask, server.device, read + read, 14) == good + good


async def test_rtu_line_opens_again_and_again(world: World, tmp_path: Path) -> None:
    async with rtu(world, tmp_path) as server:
        read, good = adu(bytes.fromhex("110400010001")), adu(bytes.fromhex("1104020001"))
        for _ in range(3):
            assert await asyncio.to_thread(ask, server.device, read, 7) == good


async def test_rtu_without_power_is_silent(world: World, tmp_path: Path) -> None:
    async with rtu(world, tmp_path) as server:
        read = adu(bytes.fromhex("110400010001"))
        world.inject("plc_kill", plc="dry")
        assert await asyncio.to_thread(ask, server.device, read, 7, 0.2) == b""
        world.clear("plc_kill")
        assert await asyncio.to_thread(ask, server.device, read, 7) == adu(bytes.fromhex("1104020002"))


async def test_rtu_line_that_nobody_reads_does_not_hold_the_plant_up(world: World, tmp_path: Path) -> None:
    async with rtu(world, tmp_path) as server:
        read = adu(bytes.fromhex("110400640000")[:4] + b"\x00\x0b")

        def flood() -> None:
            with serial.Serial(str(server.device), 115200, write_timeout=2) as port:
                for _ in range(2000):
                    port.write(read)

        began = time.monotonic()
        await asyncio.to_thread(flood)
        assert time.monotonic() - began < 10
        async with asyncio.timeout(5):
            good = b""
            while good != adu(bytes.fromhex("1104020001")):
                good = await asyncio.to_thread(ask_clean, server.device, adu(bytes.fromhex("110400010001")))


def ask_clean(device: Path, request: bytes) -> bytes:
    with serial.Serial(str(device), 115200, timeout=0.3) as port:
        time.sleep(0.05)
        port.reset_input_buffer()
        port.write(request)
        return bytes(port.read(7))
