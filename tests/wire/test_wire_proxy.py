"""The fault proxies: each fault does what it says, nothing else, and the same again with the same seed."""

from __future__ import annotations

import asyncio
import os
import pty
import socket
import struct
import time
import tty
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest

from hil.wire.faults import Counts, Direction, Faults, Pipe, mbap_frames
from hil.wire.proxy import PtyProxy, TcpProxy, UdpProxy

pytestmark = pytest.mark.wire
MBAP = struct.Struct(">HHHB")
LINGER = struct.pack("ii", 1, 0)


def frame(tid: int, pdu: bytes = b"\x03\x02\x00\x07") -> bytes:
    return MBAP.pack(tid, 0, len(pdu) + 1, 1) + pdu


class Peer(asyncio.Protocol):
    """Keeps what it gets and says how its connection ended."""

    def __init__(self, echo: bool = False) -> None:
        self.echo = echo
        self.pieces: list[bytes] = []
        self.eof = False
        self.ended: asyncio.Future[Exception | None] = asyncio.get_running_loop().create_future()
        self.news = asyncio.Event()
        self.transport: asyncio.Transport

    @property
    def got(self) -> bytes:
        return b"".join(self.pieces)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.pieces.append(data)
        self.news.set()
        if self.echo:
            self.transport.write(data)

    def eof_received(self) -> bool:
        self.eof = True
        self.news.set()
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        self.ended.set_result(exc)
        self.news.set()

    async def until(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(3.0):
            while not condition():
                self.news.clear()
                await self.news.wait()


class Net:
    """A server, a proxy to it, and clients."""

    def __init__(self, proxy: TcpProxy, servers: list[Peer]) -> None:
        self.proxy, self.servers = proxy, servers
        self.clients: list[Peer] = []

    async def client(self) -> Peer:
        loop = asyncio.get_running_loop()
        _, peer = await loop.create_connection(Peer, "127.0.0.1", self.proxy.port)
        self.clients.append(peer)
        return peer


@asynccontextmanager
async def net(*, echo: bool = True, **options: object) -> AsyncIterator[Net]:
    servers: list[Peer] = []

    def accept() -> Peer:
        servers.append(Peer(echo))
        return servers[-1]

    server = await asyncio.get_running_loop().create_server(accept, "127.0.0.1", 0)
    async with TcpProxy(server.sockets[0].getsockname()[1], **options) as proxy:  # type: ignore[arg-type]
        made = Net(proxy, servers)
        try:
            yield made
        finally:
            for peer in (*made.clients, *servers):
                peer.transport.abort()
            server.close()
            await server.wait_closed()
    assert proxy.connections == 0


@pytest.fixture(autouse=True)
async def nothing_left() -> AsyncIterator[None]:
    before = asyncio.all_tasks()
    yield
    await asyncio.sleep(0.01)
    assert not {task for task in asyncio.all_tasks() - before - {asyncio.current_task()} if not task.done()}


async def test_honest_without_faults() -> None:
    async with net() as n:
        client = await n.client()
        data = os.urandom(300_000)
        client.transport.write(data)
        await client.until(lambda: len(client.got) == len(data))
        assert client.got == data
        assert n.proxy.counts_up.delivered == n.proxy.counts_down.delivered == len(data)
        client.transport.write_eof()
        await n.servers[0].until(lambda: n.servers[0].eof)
        n.servers[0].transport.write(b"last words")
        await client.until(lambda: client.got.endswith(b"last words"))
        n.servers[0].transport.close()
        await client.until(lambda: client.eof)
        assert n.proxy.counts_up == Counts(frames=n.proxy.counts_up.frames, delivered=len(data))


async def test_latency_and_jitter_keep_the_order() -> None:
    async with net(echo=False) as n:
        n.proxy.up = Faults(latency_s=0.05, jitter_s=0.03)
        client = await n.client()
        start = time.monotonic()
        for number in range(20):
            client.transport.write(b"%02d" % number)
            await asyncio.sleep(0.001)
        await until_served(n)
        server = n.servers[0]
        await server.until(lambda: len(server.got) == 40)
        assert time.monotonic() - start >= 0.05
        assert server.got == b"".join(b"%02d" % number for number in range(20))


async def eventually(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(5.0):
        while not condition():  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.001)


async def until_served(n: Net) -> None:
    await eventually(lambda: n.servers)


async def test_half_open_swallows_everything_and_keeps_the_connection() -> None:
    async with net() as n:
        client = await n.client()
        client.transport.write(b"one")
        await client.until(lambda: client.got == b"one")
        n.proxy.half_open()
        client.transport.write(b"two")
        await eventually(lambda: n.proxy.counts_up.swallowed == 1)
        n.servers[0].transport.abort()
        await eventually(lambda: n.proxy.counts_down.swallowed == 1)  # its end
        await asyncio.sleep(0.02)
        assert (client.got, client.eof, client.ended.done()) == (b"one", False, False)
        other, number = await n.client(), len(n.servers)
        await eventually(lambda: len(n.servers) == number + 1)
        n.servers[-1].transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER)
        n.servers[-1].transport.abort()
        await asyncio.sleep(0.02)
        assert not other.ended.done(), "a reset is swallowed as well"
        assert n.proxy.connections == 2
        n.proxy.heal()
        client.transport.write(b"three")
        await asyncio.sleep(0.02)
        assert client.got == b"one"


async def test_swallows_one_way_only() -> None:
    async with net() as n:
        client = await n.client()
        n.proxy.down = Faults(swallow=True)
        client.transport.write(b"one")
        await until_served(n)
        await n.servers[0].until(lambda: n.servers[0].got == b"one")
        await eventually(lambda: n.proxy.counts_down.swallowed)
        assert client.got == b""
        assert (n.proxy.counts_up.swallowed, n.proxy.counts_down.swallowed) == (0, 1)


async def test_reset() -> None:
    async with net() as n:
        client = await n.client()
        client.transport.write(b"one")
        await client.until(lambda: client.got)
        n.proxy.reset()
        assert isinstance(await client.ended, ConnectionResetError)
        assert isinstance(await n.servers[0].ended, ConnectionResetError)
        again = await n.client()
        again.transport.write(b"two")
        await again.until(lambda: again.got == b"two")
        n.proxy.up = Faults(reset=1.0)
        again.transport.write(b"three")
        assert isinstance(await again.ended, ConnectionResetError)
        assert n.proxy.counts_up.resets == 1


async def test_a_reset_of_the_server_reaches_the_client() -> None:
    async with net() as n:
        client = await n.client()
        await until_served(n)
        n.servers[0].transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER)
        n.servers[0].transport.abort()
        assert isinstance(await client.ended, ConnectionResetError)


async def test_refuse_and_stop() -> None:
    async with net() as n:
        n.proxy.refuse = True
        client = await n.client()
        assert isinstance(await client.ended, ConnectionResetError)
        assert (n.proxy.refused, n.proxy.accepted) == (1, 0)
        n.proxy.refuse = False
        port = n.proxy.port
        await n.proxy.stop()
        with pytest.raises(ConnectionRefusedError):
            await n.client()
        await n.proxy.start()
        assert n.proxy.port == port
        client = await n.client()
        client.transport.write(b"one")
        await client.until(lambda: client.got == b"one")


async def test_nobody_behind_it_is_a_reset() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        async with TcpProxy(free.getsockname()[1]) as proxy:
            _, peer = await asyncio.get_running_loop().create_connection(Peer, "127.0.0.1", proxy.port)
            assert isinstance(await peer.ended, ConnectionResetError)


async def test_stall_closes_the_window_and_loses_nothing() -> None:
    async with net(echo=False, window=4096) as n:
        client = await n.client()
        await until_served(n)
        n.proxy.up = Faults(stall=True)
        data = os.urandom(8_000_000)
        client.transport.write(data)
        await asyncio.sleep(0.1)
        assert client.transport.get_write_buffer_size() > 1_000_000
        assert n.servers[0].got == b""
        n.proxy.heal()
        async with asyncio.timeout(20):
            while len(n.servers[0].got) < len(data):  # noqa: ASYNC110 - pieces come by the thousand
                await asyncio.sleep(0.01)
        assert n.servers[0].got == data


async def test_split() -> None:
    async with net(echo=False) as n:
        client = await n.client()
        await until_served(n)
        n.proxy.up = Faults(split=3, split_gap_s=0.01)
        start = time.monotonic()
        client.transport.write(b"0123456789")
        server = n.servers[0]
        await server.until(lambda: server.got == b"0123456789")
        assert time.monotonic() - start >= 0.03
        assert n.proxy.counts_up.split == 1
    out: list[bytes | None] = []
    way = Direction("seed", None)
    way.faults = Faults(split=3)
    Pipe(way, out.append, lambda: None, stream=True).put(b"0123456789")
    assert out == [b"012", b"345", b"678", b"9"]


async def test_throttled() -> None:
    async with net(echo=False) as n:
        client = await n.client()
        await until_served(n)
        n.proxy.up = Faults(bytes_per_s=10_000)
        start = time.monotonic()
        for _ in range(4):
            client.transport.write(b"x" * 500)
            await asyncio.sleep(0.001)
        await n.servers[0].until(lambda: len(n.servers[0].got) == 2000)
        assert time.monotonic() - start >= 0.19


async def frames_through(faults: Faults, count: int, seed: int = 1) -> tuple[list[int], Counts, bytes]:
    """The tids that arrive of ``count`` MBAP frames, which are sent glued and torn."""
    async with net(echo=False, splitter=mbap_frames, seed=seed) as n:
        client = await n.client()
        await until_served(n)
        n.proxy.up = faults
        stream = b"".join(frame(tid) for tid in range(count))
        for place in range(0, len(stream), 37):
            client.transport.write(stream[place : place + 37])
        client.transport.write_eof()
        server = n.servers[0]
        await server.until(lambda: server.eof)
        got = bytearray(server.got)
        return [int.from_bytes(f[:2], "big") for f in mbap_frames(bytearray(got))], n.proxy.counts_up, bytes(got)


async def test_loss_of_whole_frames() -> None:
    tids, counts, _ = await frames_through(Faults(loss=0.2), 400)
    assert counts.frames == 400
    assert counts.lost == 400 - len(tids)
    assert 40 < counts.lost < 120
    assert tids == sorted(set(tids))
    assert (await frames_through(Faults(loss=0.2), 400))[0] == tids, "the same seed, the same losses"
    assert (await frames_through(Faults(loss=0.2), 400, seed=2))[0] != tids


async def test_duplicates() -> None:
    tids, counts, _ = await frames_through(Faults(duplicate=0.1), 300)
    assert len(tids) == 300 + counts.duplicated
    assert counts.duplicated > 10
    assert sorted(set(tids)) == list(range(300))
    assert tids == sorted(tids), "a double comes right behind"


async def test_stale_frames() -> None:
    tids, counts, _ = await frames_through(Faults(stale=0.1), 300)
    old = [(place, tid) for place, tid in enumerate(tids) if tid != place]
    assert len(tids) == 300
    assert len(old) == counts.stale > 10
    assert all(0 < place - tid <= 16 for place, tid in old)


async def test_garbage_comes_between_frames() -> None:
    _, counts, got = await frames_through(Faults(garbage=0.2), 100)
    assert counts.garbage > 5
    at = 0
    for tid in range(100):
        there = got.find(frame(tid), at)
        assert 0 <= there - at <= 16, tid
        at = there + len(frame(tid))
    assert len(got) == counts.delivered


async def test_faults_are_checked() -> None:
    for wrong in ({"loss": 1.1}, {"latency_s": -1.0}, {"split": -1}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            Faults(**wrong)
    assert replace(Faults(loss=0.5), latency_s=0.1) == Faults(loss=0.5, latency_s=0.1)


def test_mbap_frames() -> None:
    buffer = bytearray(frame(1) + frame(2) + frame(3)[:5])
    assert mbap_frames(buffer) == [frame(1), frame(2)]
    assert buffer == frame(3)[:5]
    buffer += frame(3)[5:] + b"no MBAP at all"
    assert mbap_frames(buffer) == [frame(3), b"no MBAP at all"]


async def test_what_is_on_its_way_is_cut_off_too() -> None:
    out: list[bytes | None] = []
    way = Direction("seed", None)
    way.faults = Faults(latency_s=0.01)
    pipe = Pipe(way, out.append, lambda: None, stream=True)
    pipe.put(b"one")
    assert pipe.waiting == 3
    way.faults = Faults(swallow=True)
    await asyncio.sleep(0.03)
    assert (out, pipe.waiting, way.counts.swallowed) == ([], 0, 1)


# --- UDP


class Datagrams(asyncio.DatagramProtocol):
    def __init__(self, echo: bool = False) -> None:
        self.echo = echo
        self.got: list[bytes] = []
        self.transport: asyncio.DatagramTransport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self.got.append(data)
        if self.echo:
            self.transport.sendto(data, addr)


async def test_udp() -> None:
    loop = asyncio.get_running_loop()
    _, server = await loop.create_datagram_endpoint(lambda: Datagrams(True), ("127.0.0.1", 0))
    async with UdpProxy(server.transport.get_extra_info("sockname")[1], seed=3) as proxy:
        clients = []
        for _ in range(2):
            clients.append((await loop.create_datagram_endpoint(Datagrams, remote_addr=("127.0.0.1", proxy.port)))[1])

        async def exchange(count: int) -> list[list[bytes]]:
            for client in clients:
                client.got.clear()
            for number in range(count):
                for place, client in enumerate(clients):
                    client.transport.sendto(b"%d:%d" % (place, number))
                await asyncio.sleep(0.001)
            heard = -1
            while heard != sum(len(client.got) for client in clients):  # until nothing came for a while
                heard = sum(len(client.got) for client in clients)
                await asyncio.sleep(0.1)
            return [list(client.got) for client in clients]

        assert await exchange(5) == [[b"%d:%d" % (place, n) for n in range(5)] for place in range(2)]
        proxy.down = Faults(loss=0.3, duplicate=0.3)
        some = await exchange(20)
        counts = proxy.counts_down
        assert sum(map(len, some)) == 40 - counts.lost + counts.duplicated
        assert counts.lost > 3
        assert counts.duplicated > 3
        proxy.down = Faults(jitter_s=0.05)
        mixed = await exchange(20)
        assert [sorted(got) for got in mixed] == [sorted(b"%d:%d" % (p, n) for n in range(20)) for p in range(2)]
        assert mixed[0] != [b"0:%d" % n for n in range(20)], "datagrams overtake each other"
        proxy.half_open()
        assert await exchange(2) == [[], []]
        for client in clients:
            client.transport.close()
    server.transport.close()


# --- a serial line


class PtyEcho:
    """A device on a pty that says everything back."""

    def __init__(self) -> None:
        self.master, self.slave = pty.openpty()
        tty.setraw(self.slave)
        self.path = Path(os.ttyname(self.slave))
        self.got = b""
        asyncio.get_running_loop().add_reader(self.master, self._readable)

    def _readable(self) -> None:
        data = os.read(self.master, 4096)
        self.got += data
        os.write(self.master, data)

    def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self.master)
        os.close(self.master)
        os.close(self.slave)


async def hear(fd: int, count: int, within_s: float = 2.0) -> bytes:
    """Read until so much came, or the time is over."""
    heard = b""
    end = time.monotonic() + within_s
    while len(heard) < count and time.monotonic() < end:
        try:
            heard += os.read(fd, 4096)
        except BlockingIOError:
            await asyncio.sleep(0.002)
    return heard


async def test_pty(tmp_path: Path) -> None:
    echo = PtyEcho()
    device = tmp_path / "ttyP"
    async with PtyProxy(echo.path, device, seed=5) as proxy:
        fd = os.open(device, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
        os.write(fd, b"\x01\x03\x00\r\n")
        assert await hear(fd, 5) == b"\x01\x03\x00\r\n"
        proxy.down = Faults(loss=1.0)
        os.write(fd, b"gone")
        assert await hear(fd, 1, 0.05) == b""
        assert proxy.counts_down.lost == 1
        proxy.down = Faults(garbage=1.0, split=1)
        os.write(fd, b"ab")
        heard = b""
        async with asyncio.timeout(2.0):
            while not heard.endswith(b"ab"):
                heard += await hear(fd, 1)
        assert len(heard) > 2
        assert proxy.counts_down.garbage == 1
        proxy.heal()
        proxy.up = Faults(stall=True)
        os.write(fd, b"later")
        assert await hear(fd, 1, 0.05) == b""
        proxy.heal()
        assert await hear(fd, 5) == b"later"
        proxy.pull()
        assert not device.exists()
        with pytest.raises(OSError, match="Input/output error"):
            await hear_error(fd)
        os.close(fd)
        await proxy.start()
        fd = os.open(device, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
        os.write(fd, b"back")
        assert await hear(fd, 4) == b"back"
        os.close(fd)
    assert not device.exists()
    echo.close()


async def hear_error(fd: int) -> None:
    """A pulled line says so, or is at its end."""
    if os.read(fd, 1) == b"":
        raise OSError(5, "Input/output error")
