"""The two lines: what they hand over, what they say when they are lost, and that nothing stays behind."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import pty
import socket
import termios
import time
import tty
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from drivers.line import LineFailed, SerialLine, TcpLine, make_line
from drivers.options import SerialOptions, TcpLineOptions

pytestmark = [pytest.mark.wire, pytest.mark.usefixtures("no_leaks")]


class Ear:
    """Listens to a line."""

    def __init__(self) -> None:
        self.heard = bytearray()
        self.lost: list[tuple[str, str]] = []
        self.over = asyncio.Event()

    def on_bytes(self, data: bytes) -> None:
        self.heard += data

    def on_lost(self, what: str, hint: str) -> None:
        self.lost.append((what, hint))
        self.over.set()

    async def until_lost(self) -> None:
        async with asyncio.timeout(5):
            await self.over.wait()


class Pty:
    """A serial port with its other end."""

    def __init__(self) -> None:
        self.master, self.slave = pty.openpty()
        tty.setraw(self.slave)
        os.set_blocking(self.master, False)
        self.device = os.ttyname(self.slave)

    def unplug(self) -> None:
        for fd in (self.master, self.slave):
            with contextlib.suppress(OSError):
                os.close(fd)

    def read(self) -> bytes:
        heard = b""
        with contextlib.suppress(BlockingIOError):
            while piece := os.read(self.master, 65536):
                heard += piece
        return heard


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.fixture
def port() -> Iterator[Pty]:
    port = Pty()
    yield port
    port.unplug()


@pytest.fixture
async def line(port: Pty) -> AsyncIterator[SerialLine]:
    line = SerialLine(SerialOptions(device=port.device, baudrate=9600))
    yield line
    await line.close()


def test_what_is_said_of_a_line() -> None:
    made = make_line(SerialOptions(device="/dev/ttyUSB0", baudrate=9600, bytesize=7, parity="E", stopbits=1))
    assert (made.endpoint, made.char_ns, made.unsent) == ("/dev/ttyUSB0 9600 7E1", 1_041_666, 0)
    assert make_line(SerialOptions(device="x", parity="N")).char_ns == 10_000_000_000 // 19200
    tcp = make_line(TcpLineOptions(host="127.0.0.1", port=4001))
    assert (tcp.endpoint, tcp.char_ns, tcp.unsent) == ("127.0.0.1:4001", 0, 0)


async def test_a_port_hears_and_writes(port: Pty, line: SerialLine) -> None:
    ear = Ear()
    line.write(b"before it is open")
    await line.open(1.0, ear.on_bytes, ear.on_lost)
    line.write(b"\x00\x11\x13\r\n")
    os.write(port.master, bytes(range(256)))
    await asyncio.sleep(0.02)
    assert port.read() == b"\x00\x11\x13\r\n", "raw: no flow control and no translation"
    assert ear.heard == bytes(range(256))
    await line.close()
    await line.close()
    os.write(port.master, b"x")
    await asyncio.sleep(0.01)
    assert (len(ear.heard), ear.lost) == (256, [])


async def test_a_port_is_ours_alone(port: Pty, line: SerialLine) -> None:
    ear = Ear()
    await line.open(1.0, ear.on_bytes, ear.on_lost)
    other = SerialLine(SerialOptions(device=port.device))
    with pytest.raises(LineFailed, match=r"cannot open the serial port.*no other program has it open"):
        await other.open(1.0, ear.on_bytes, ear.on_lost)
    await line.close()
    await other.open(1.0, ear.on_bytes, ear.on_lost)
    await other.close()


@pytest.mark.parametrize("make", ["missing", "file"])
async def test_what_is_no_port_says_so(tmp_path: Path, make: str) -> None:
    device = tmp_path / "tty"
    if make == "file":
        device.write_bytes(b"")
    ear = Ear()
    line = SerialLine(SerialOptions(device=str(device)))
    with pytest.raises(LineFailed, match=r"cannot open the serial port: .*check the adapter, its by-id path") as caught:
        await line.open(1.0, ear.on_bytes, ear.on_lost)
    assert not caught.value.timed_out


async def test_a_stalled_port_waits_and_forgets_on_demand(port: Pty, line: SerialLine) -> None:
    ear = Ear()
    await line.open(1.0, ear.on_bytes, ear.on_lost)
    data = bytes(range(256)) * 400
    line.write(data)
    line.write(b"more")
    waiting = line.unsent
    assert 4 < waiting < len(data)
    busy = time.process_time()
    await asyncio.sleep(0.05)
    assert time.process_time() - busy < 0.03, "it does not spin"
    heard = b""
    async with asyncio.timeout(5):
        while line.unsent:
            heard += port.read()
            await asyncio.sleep(0.002)
    await asyncio.sleep(0.01)
    assert heard + port.read() == data + b"more"
    line.write(data)
    waiting = line.unsent
    assert line.discard() == waiting
    assert (line.unsent, line.discard()) == (0, 0)
    port.read()
    await asyncio.sleep(0.01)
    port.read()
    line.write(b"again")
    await asyncio.sleep(0.01)
    assert port.read() == b"again"


async def test_a_pulled_adapter_is_lost_once_and_let_go(port: Pty, line: SerialLine) -> None:
    ear = Ear()
    await line.open(1.0, ear.on_bytes, ear.on_lost)
    before = open_files()
    port.unplug()
    await ear.until_lost()
    assert ear.lost[0][0].startswith("serial port lost: ")
    assert ear.lost[0][1] == "check that the adapter is plugged in and powered"
    assert open_files() < before - 2, "our end is closed, or a new adapter gets another name"
    busy = time.process_time()
    line.write(b"x")
    await asyncio.sleep(0.05)
    assert time.process_time() - busy < 0.03
    assert len(ear.lost) == 1


async def test_a_write_that_fails_is_a_loss_told_later(
    port: Pty, line: SerialLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    ear = Ear()
    await line.open(1.0, ear.on_bytes, ear.on_lost)

    def write(fd: int, data: bytes) -> int:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "write", write)
    line.write(b"x")
    assert ear.lost == [], "not from inside the caller's write"
    await asyncio.sleep(0)
    assert ear.lost == [("serial port lost: [Errno 5] Input/output error", ear.lost[0][1])]
    line.write(b"y")
    await asyncio.sleep(0)
    assert len(ear.lost) == 1


async def test_parity_is_asked_for_where_there_is_one() -> None:
    """A pty knows no parity, so this looks at what the set-up asks for."""
    from drivers.line import _check_parity

    master, slave = pty.openpty()
    try:
        _check_parity(slave)
        flags = termios.tcgetattr(slave)[0]
        assert flags & termios.INPCK
        assert not flags & (termios.IGNPAR | termios.PARMRK)
    finally:
        os.close(master)
        os.close(slave)


class Server(asyncio.Protocol):
    """A device server."""

    def __init__(self, greeting: bytes | None) -> None:
        self.heard, self.greeting = bytearray(), greeting
        self.lost: asyncio.Future[Exception | None] = asyncio.get_running_loop().create_future()
        self.transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        if self.greeting is None:
            transport.abort()
        elif self.greeting:
            transport.write(self.greeting)

    def data_received(self, data: bytes) -> None:
        self.heard += data

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.set_result(exc)


class Listening:
    def __init__(self) -> None:
        self.servers: list[Server] = []
        self.greet: bytes | None = b""
        """What is said at once; with ``None`` the connection is closed at once."""

    def make(self) -> Server:
        server = Server(self.greet)
        self.servers.append(server)
        return server


@pytest.fixture
async def listening() -> AsyncIterator[tuple[Listening, TcpLine]]:
    servers = Listening()
    listener = await asyncio.get_running_loop().create_server(servers.make, "127.0.0.1", 0)
    line = TcpLine(TcpLineOptions(host="127.0.0.1", port=listener.sockets[0].getsockname()[1]))
    yield servers, line
    await line.close()
    listener.close()
    for server in servers.servers:
        server.transport.abort()
    await listener.wait_closed()
    await asyncio.sleep(0.01)


async def test_bytes_through_a_device_server(listening: tuple[Listening, TcpLine]) -> None:
    servers, line = listening
    servers.greet = b"scanned in the first moment"
    ear = Ear()
    await line.open(1.0, ear.on_bytes, ear.on_lost)
    line.write(b"\x00\xff")
    await asyncio.sleep(0.05)
    assert servers.servers[0].heard == b"\x00\xff"
    assert ear.heard == b"scanned in the first moment"
    assert line.unsent == 0
    await line.close()
    assert await servers.servers[0].lost is None
    assert ear.lost == []
    await line.open(1.0, ear.on_bytes, ear.on_lost)
    await line.close(reset=True)
    assert isinstance(await servers.servers[1].lost, ConnectionResetError)


async def test_a_lost_device_server(listening: tuple[Listening, TcpLine]) -> None:
    servers, line = listening
    for how in ("fin", "rst"):
        ear = Ear()
        await line.open(1.0, ear.on_bytes, ear.on_lost)
        await asyncio.sleep(0.01)
        server = servers.servers[-1]
        if how == "rst":
            server.transport.get_extra_info("socket").setsockopt(
                socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0"
            )
            server.transport.abort()
        else:
            server.transport.close()
        await ear.until_lost()
        text = "connection closed by the device server" if how == "fin" else "connection lost: [Errno 104]"
        assert ear.lost[0][0].startswith(text)
        assert "nobody else is connected" in ear.lost[0][1]
        line.write(b"x")
        await asyncio.sleep(0.01)
        assert len(ear.lost) == 1


async def test_a_device_server_that_takes_nothing_holds_nothing_back(listening: tuple[Listening, TcpLine]) -> None:
    servers, line = listening
    ear = Ear()
    await line.open(1.0, ear.on_bytes, ear.on_lost)
    await asyncio.sleep(0.01)
    servers.servers[0].transport.pause_reading()
    line.write(bytes(20_000_000))
    assert line.unsent > 1_000_000
    assert line.discard() == 0
    start = time.monotonic()
    await line.close()
    assert time.monotonic() - start < 0.5
    servers.servers[0].transport.resume_reading()
    assert isinstance(await servers.servers[0].lost, ConnectionResetError)


async def test_no_device_server() -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        line = TcpLine(TcpLineOptions(host="127.0.0.1", port=bound.getsockname()[1]))
        ear = Ear()
        with pytest.raises(LineFailed, match=r"cannot connect: .*check power, network, address and port"):
            await line.open(1.0, ear.on_bytes, ear.on_lost)
        await line.close()


async def test_a_device_server_that_is_full(listening: tuple[Listening, TcpLine]) -> None:
    servers, line = listening
    servers.greet = None
    ear = Ear()
    with contextlib.suppress(LineFailed):
        await line.open(1.0, ear.on_bytes, ear.on_lost)
        await ear.until_lost()
    assert len(ear.lost) <= 1


async def test_a_device_server_that_does_not_answer_and_a_cancelled_open() -> None:
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        address = full.getsockname()
        with contextlib.ExitStack() as stack:
            for _ in range(3):  # the queue of those who wait is full now
                sock = stack.enter_context(socket.socket())
                sock.setblocking(False)
                sock.connect_ex(address)
            line = TcpLine(TcpLineOptions(host="127.0.0.1", port=address[1]))
            ear = Ear()
            with pytest.raises(LineFailed, match=r"no connection within 0.1 s") as caught:
                await line.open(0.1, ear.on_bytes, ear.on_lost)
            assert caught.value.timed_out
            task = asyncio.create_task(line.open(5.0, ear.on_bytes, ear.on_lost))
            await asyncio.sleep(0.02)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert line.unsent == 0
            line.write(b"x")
            await line.close()
