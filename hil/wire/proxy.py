"""A bad network between a client and a server that are both honest: TCP, UDP, or a serial line between two ptys.

A proxy forwards what it gets, and does to it what its :class:`~hil.wire.faults.Faults` say, in each direction by
themselves; they may be exchanged at any time (``proxy.down = Faults(loss=0.1)``). All chance comes from one seed per
direction, so that the same traffic meets the same faults. It knows nothing of protocols, except where frames end
when it is given a splitter: then loss, doubling and the like hit whole frames, else pieces as they come. Loopback only.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
import tty
from pathlib import Path
from typing import Self

from hil.wire.faults import HONEST, WAITING_LIMIT, Counts, Direction, Faults, Pipe, Splitter

LOOPBACK = "127.0.0.1"
LINGER_RESET = struct.pack("ii", 1, 0)
PEERS = 64
"""Clients of a UDP proxy that are remembered; the one longest known is forgotten first."""


class Proxy:
    """What the proxies have in common: two directions, ``up`` to the server and ``down`` to the client."""

    def __init__(self, seed: int = 0, splitter: Splitter | None = None) -> None:
        self._up, self._down = Direction(f"{seed}/up", splitter), Direction(f"{seed}/down", splitter)

    @property
    def up(self) -> Faults:
        """What happens on the way to the server."""
        return self._up.faults

    @up.setter
    def up(self, faults: Faults) -> None:
        self._up.faults = faults
        self._apply()

    @property
    def down(self) -> Faults:
        """What happens on the way to the client."""
        return self._down.faults

    @down.setter
    def down(self, faults: Faults) -> None:
        self._down.faults = faults
        self._apply()

    @property
    def counts_up(self) -> Counts:
        """What was done on the way to the server."""
        return self._up.counts

    @property
    def counts_down(self) -> Counts:
        """What was done on the way to the client."""
        return self._down.counts

    def heal(self) -> None:
        """No faults any more, in either direction. What was swallowed stays lost."""
        self.up = self.down = HONEST

    def half_open(self) -> None:
        """Swallow everything both ways and keep the connections, as a switch does that lost its table."""
        self.up = self.down = Faults(swallow=True)

    def _apply(self) -> None:
        """The faults were changed."""

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def start(self) -> None:
        """Open the client's side. Raises ``OSError``."""
        raise NotImplementedError

    async def stop(self) -> None:
        """End every connection; a client finds nobody."""
        raise NotImplementedError


def _abort(transport: asyncio.Transport) -> None:
    """End with a reset (RST)."""
    sock = transport.get_extra_info("socket")
    if sock is not None and sock.fileno() >= 0:
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_RESET)
    transport.abort()


class _Side(asyncio.Protocol):
    """One end of a TCP connection through the proxy; its pipe leads to the other end."""

    def __init__(self, proxy: TcpProxy, pair: _Pair, direction: Direction) -> None:
        self.proxy, self.pair, self.direction = proxy, pair, direction
        self.transport: asyncio.Transport | None = None
        self.other: _Side = self
        self.pipe = Pipe(direction, self._to_other, pair.reset, stream=True)
        self.pipe.drained = self.hold
        self.full = False
        """It takes no more for now."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Part of ``asyncio.Protocol``."""
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.pair.made(self)

    def data_received(self, data: bytes) -> None:
        """Part of ``asyncio.Protocol``."""
        self.pipe.put(data)
        self.hold()

    def eof_received(self) -> bool:
        """Part of ``asyncio.Protocol``. The other way stays open."""
        self.pipe.end()
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        """Part of ``asyncio.Protocol``."""
        self.transport = None
        if exc is not None and not self.direction.faults.swallow:
            self.pair.reset()
        self.pair.lost()

    def pause_writing(self) -> None:
        """Part of ``asyncio.Protocol``."""
        self.full = True
        self.other.hold()

    def resume_writing(self) -> None:
        """Part of ``asyncio.Protocol``."""
        self.full = False
        self.other.hold()

    def hold(self) -> None:
        """Read this side, or not: what it sends must fit somewhere."""
        if self.transport is None:
            return
        if self.direction.faults.stall or self.other.full or self.pipe.waiting > WAITING_LIMIT or not self.pair.whole:
            self.transport.pause_reading()
        else:
            self.transport.resume_reading()

    def _to_other(self, data: bytes | None) -> None:
        transport = self.other.transport
        if transport is None or transport.is_closing():
            return
        if data is not None:
            transport.write(data)
        elif transport.can_write_eof():
            transport.write_eof()
            self.pair.ended += 1
            self.pair.close_when_done()


class _Pair:
    """A client's connection and ours to the server."""

    def __init__(self, proxy: TcpProxy) -> None:
        self.proxy = proxy
        self.client, self.server = _Side(proxy, self, proxy.ways[0]), _Side(proxy, self, proxy.ways[1])
        self.client.other, self.server.other = self.server, self.client
        self.whole = False
        """Both ends are connected."""
        self.ended = 0
        """Directions whose end was delivered."""

    def made(self, side: _Side) -> None:
        if side is self.client:
            self.proxy.taken(self)
        else:
            self.whole = True
        self.hold()

    def hold(self) -> None:
        self.client.hold()
        self.server.hold()

    def close_when_done(self) -> None:
        if self.ended == 2:
            for side in (self.client, self.server):
                if side.transport is not None:
                    side.transport.close()

    def lost(self) -> None:
        if self.client.transport is None and self.server.transport is None:
            self.client.pipe.close()
            self.server.pipe.close()
            self.proxy.gone(self)

    def reset(self) -> None:
        """End both with a reset, at once."""
        for side in (self.client, self.server):
            side.pipe.close()
            if side.transport is not None:
                _abort(side.transport)


class TcpProxy(Proxy):
    """Forwards TCP connections to ``target`` at 127.0.0.1; ``port`` is where to connect to, kept over a restart.

    ``window`` is the receive buffer in bytes: small, a stalled sender feels it soon.
    """

    def __init__(
        self, target: int, *, seed: int = 0, splitter: Splitter | None = None, window: int | None = None
    ) -> None:
        super().__init__(seed, splitter)
        self.target, self.port = target, 0
        self.refuse = False
        """A new connection is reset at once, as by a device without a free one. (Stopped, nobody listens at all.)"""
        self.accepted = self.refused = 0
        self.ways = (self._up, self._down)
        self._window = window
        self._server: asyncio.Server | None = None
        self._pairs: set[_Pair] = set()
        self._tasks: dict[_Pair, asyncio.Task[None]] = {}
        self._empty = asyncio.Event()

    @property
    def connections(self) -> int:
        """Connections open now, half open ones among them."""
        return len(self._pairs)

    async def start(self) -> None:
        """Listen. Raises ``OSError``."""
        sock = self._socket()
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind((LOOPBACK, self.port))
            self.port = sock.getsockname()[1]
            loop = asyncio.get_running_loop()
            self._server = await loop.create_server(lambda: _Pair(self).client, sock=sock)
        except OSError:
            sock.close()
            raise

    async def stop(self) -> None:
        """Stop listening and reset every connection."""
        server, self._server = self._server, None
        if server is not None:
            server.close()
        self.reset()
        for task in list(self._tasks.values()):
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)
        while self._pairs:
            self._empty.clear()
            await self._empty.wait()
        if server is not None:
            await server.wait_closed()

    def reset(self) -> None:
        """Reset every connection, as a switch that loses power does when it is back."""
        for pair in list(self._pairs):
            pair.reset()

    def taken(self, pair: _Pair) -> None:
        """A client has connected."""
        self._pairs.add(pair)
        assert pair.client.transport is not None
        if self.refuse:
            self.refused += 1
            _abort(pair.client.transport)
            return
        self.accepted += 1
        task = self._tasks[pair] = asyncio.get_running_loop().create_task(self._reach(pair))
        task.add_done_callback(lambda _: self._tasks.pop(pair, None))

    def gone(self, pair: _Pair) -> None:
        """Both ends are closed."""
        self._pairs.discard(pair)
        self._empty.set()

    async def _reach(self, pair: _Pair) -> None:
        """Connect to the server; where that fails the client is reset."""
        loop = asyncio.get_running_loop()
        sock = self._socket()
        try:
            await loop.sock_connect(sock, (LOOPBACK, self.target))
            await loop.create_connection(lambda: pair.server, sock=sock)
        except OSError:
            sock.close()
            pair.reset()
        except asyncio.CancelledError:
            sock.close()
            raise
        if pair.client.transport is None:
            pair.reset()

    def _socket(self) -> socket.socket:
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        sock.setblocking(False)
        if self._window is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self._window)
        return sock

    def _apply(self) -> None:
        for pair in self._pairs:
            pair.hold()


class _Peer:
    """A client of a UDP proxy, and our socket to the server for it."""

    def __init__(self, proxy: UdpProxy, address: tuple[str, int], up: Direction, down: Direction) -> None:
        self.sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.sock.setblocking(False)
        self.sock.connect((LOOPBACK, proxy.target))
        self.up = Pipe(up, self._to_server, lambda: None, stream=False)
        self.down = Pipe(down, lambda data: proxy.to_client(address, data), lambda: None, stream=False)
        asyncio.get_running_loop().add_reader(self.sock, self._readable)

    def _readable(self) -> None:
        with contextlib.suppress(BlockingIOError, ConnectionRefusedError):
            self.down.put(self.sock.recv(65_535))

    def _to_server(self, data: bytes | None) -> None:
        # Nobody there, or no room: as on any network, the datagram is gone.
        with contextlib.suppress(BlockingIOError, ConnectionRefusedError):
            self.sock.send(data or b"")

    def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self.sock)
        self.sock.close()
        self.up.close()
        self.down.close()


class UdpProxy(Proxy):
    """Forwards datagrams to ``target`` at 127.0.0.1 and the answers back; ``port`` is where to send to."""

    def __init__(self, target: int, *, seed: int = 0) -> None:
        super().__init__(seed)
        self.target, self.port = target, 0
        self._sock: socket.socket | None = None
        self._peers: dict[tuple[str, int], _Peer] = {}

    async def start(self) -> None:
        """Listen. Raises ``OSError``."""
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        try:
            sock.setblocking(False)
            sock.bind((LOOPBACK, self.port))
        except OSError:
            sock.close()
            raise
        self._sock, self.port = sock, sock.getsockname()[1]
        asyncio.get_running_loop().add_reader(sock, self._readable)

    async def stop(self) -> None:
        """Close; datagrams under way are gone."""
        sock, self._sock = self._sock, None
        if sock is not None:
            asyncio.get_running_loop().remove_reader(sock)
            sock.close()
        for peer in self._peers.values():
            peer.close()
        self._peers.clear()

    def to_client(self, address: tuple[str, int], data: bytes | None) -> None:
        """A datagram for the client at ``address``."""
        if self._sock is not None:
            with contextlib.suppress(BlockingIOError, ConnectionRefusedError):
                self._sock.sendto(data or b"", address)

    def _readable(self) -> None:
        assert self._sock is not None
        try:
            data, address = self._sock.recvfrom(65_535)
        except (BlockingIOError, ConnectionRefusedError):
            return
        peer = self._peers.get(address)
        if peer is None:
            if len(self._peers) >= PEERS:
                self._peers.pop(next(iter(self._peers))).close()
            peer = self._peers[address] = _Peer(self, address, self._up, self._down)
        peer.up.put(data)


class _Port:
    """One file descriptor of a serial line, without blocking."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._unwritten = bytearray()
        os.set_blocking(fd, False)

    def write(self, data: bytes) -> None:
        self._unwritten += data
        self._flush()

    def _flush(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            del self._unwritten[: os.write(self.fd, self._unwritten)]
        except BlockingIOError:
            pass
        except OSError:
            self._unwritten.clear()  # pulled; whoever reads it sees that
        if self._unwritten:
            loop.add_writer(self.fd, self._flush)
        else:
            loop.remove_writer(self.fd)

    def close(self) -> None:
        loop = asyncio.get_running_loop()
        loop.remove_reader(self.fd)
        loop.remove_writer(self.fd)
        os.close(self.fd)


class PtyProxy(Proxy):
    """Stands between a client, which opens ``device``, and a server behind the serial port ``target``.

    ``device`` is a symbolic link that the proxy makes. A pty has no timing of its own: what was written at once may be
    read in pieces, and the other way round.
    """

    def __init__(self, target: Path, device: Path, *, seed: int = 0, splitter: Splitter | None = None) -> None:
        super().__init__(seed, splitter)
        self.target, self.device = target, device
        self._client: _Port | None = None
        self._server: _Port | None = None
        self._kept = -1
        self._pipes: tuple[Pipe, ...] = ()

    async def start(self) -> None:
        """Plug the line in. Raises ``OSError`` when there is no ``target``."""
        await self.stop()
        server = _Port(os.open(self.target, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK))
        tty.setraw(server.fd)
        master, self._kept = os.openpty()
        tty.setraw(self._kept)
        client = _Port(master)
        self._client, self._server = client, server
        self.device.symlink_to(os.ttyname(self._kept))
        up = Pipe(self._up, lambda data: server.write(data or b""), self.pull, stream=True)
        down = Pipe(self._down, lambda data: client.write(data or b""), self.pull, stream=True)
        self._pipes = (up, down)
        self._apply()

    async def stop(self) -> None:
        """Pull the line out; safe more than once."""
        self.pull()

    def pull(self) -> None:
        """Pull the line out: the client's port is gone."""
        for pipe in self._pipes:
            pipe.close()
        self._pipes = ()
        for port in (self._client, self._server):
            if port is not None:
                port.close()
        self._client = self._server = None
        if self._kept >= 0:
            os.close(self._kept)
            self._kept = -1
            self.device.unlink(missing_ok=True)

    def _readable(self, port: _Port, pipe: Pipe) -> None:
        try:
            data = os.read(port.fd, 4096)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if data:
            pipe.put(data)
        else:
            self.pull()

    def _apply(self) -> None:
        """A stalled side is not read: its writes fill the line and then wait."""
        if not self._pipes:
            return
        loop = asyncio.get_running_loop()
        for port, pipe, faults in zip((self._client, self._server), self._pipes, (self.up, self.down), strict=True):
            assert port is not None
            if faults.stall:
                loop.remove_reader(port.fd)
            else:
                loop.add_reader(port.fd, self._readable, port, pipe)
