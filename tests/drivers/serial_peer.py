"""Devices of our own for the tests of serial line devices: on a pty, or behind a device server (TCP).

A device is a function from a line it is told to what it says; ``say`` has it speak by itself. It misbehaves on
command only.
"""

from __future__ import annotations

import asyncio
import os
import pty
from collections.abc import Callable, Iterable
from pathlib import Path

Told = Callable[[bytes], Iterable[bytes]]


class Device:
    """What is common: cuts what it hears at ``end``, answers with what ``told`` gives, and keeps everything heard."""

    def __init__(self, told: Told = lambda line: (), end: bytes = b"\r\n") -> None:
        self.told, self.end = told, end
        self.heard: list[bytes] = []
        self.mute = False
        self.news = asyncio.Event()
        self._buffer = bytearray()

    def hear(self, data: bytes) -> None:
        self._buffer += data
        while (at := self._buffer.find(self.end)) >= 0:
            line = bytes(self._buffer[:at])
            del self._buffer[: at + len(self.end)]
            self.heard.append(line)
            self.news.set()
            if not self.mute:
                for answer in self.told(line):
                    self.say(answer)

    async def told_of(self, line: bytes) -> None:
        """Wait until the device was told this."""
        async with asyncio.timeout(2.0):
            while line not in self.heard:
                self.news.clear()
                await self.news.wait()

    def say(self, data: bytes) -> None:
        raise NotImplementedError


class PtyDevice(Device):
    """``async with PtyDevice(folder, …) as device``: on the serial port ``device.path``, a link to a pty."""

    def __init__(self, folder: Path, told: Told = lambda line: (), end: bytes = b"\r\n") -> None:
        super().__init__(told, end)
        self.path = folder / "ttyDEV"
        self._master = self._slave = -1
        self._unsaid = bytearray()

    async def __aenter__(self) -> PtyDevice:
        self.plug()
        return self

    async def __aexit__(self, *_: object) -> None:
        self.pull()

    def plug(self) -> None:
        self._master, self._slave = pty.openpty()
        os.set_blocking(self._master, False)
        self.path.symlink_to(os.ttyname(self._slave))
        self._buffer.clear()
        asyncio.get_running_loop().add_reader(self._master, self._readable)

    def pull(self) -> None:
        if self._master >= 0:
            asyncio.get_running_loop().remove_reader(self._master)
            asyncio.get_running_loop().remove_writer(self._master)
            self._unsaid.clear()
            os.close(self._master)
            os.close(self._slave)
            self._master = self._slave = -1
            self.path.unlink()

    def say(self, data: bytes) -> None:
        self._unsaid += data
        asyncio.get_running_loop().add_writer(self._master, self._writable)
        self._writable()

    def _writable(self) -> None:
        try:
            del self._unsaid[: os.write(self._master, self._unsaid)]
        except BlockingIOError:
            return
        if not self._unsaid:
            asyncio.get_running_loop().remove_writer(self._master)

    def _readable(self) -> None:
        try:
            self.hear(os.read(self._master, 4096))
        except OSError:
            return


class TcpDevice(Device):
    """``async with TcpDevice(…) as device``: behind a device server at 127.0.0.1:``device.port``."""

    def __init__(self, told: Told = lambda line: (), end: bytes = b"\r\n") -> None:
        super().__init__(told, end)
        self.port = 0
        self.transports: set[asyncio.Transport] = set()
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> TcpDevice:
        await self.plug()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.pull()

    async def plug(self) -> None:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: _Connection(self), "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def pull(self) -> None:
        for transport in self.transports:
            transport.abort()
        if self._server:
            self._server.close()
            await self._server.wait_closed()

    def say(self, data: bytes) -> None:
        for transport in self.transports:
            transport.write(data)


class _Connection(asyncio.Protocol):
    def __init__(self, device: TcpDevice) -> None:
        self.device = device

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.device.transports.add(transport)

    def data_received(self, data: bytes) -> None:
        self.device.hear(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self.device.transports.discard(self.transport)
