"""Bytes to and from a serial line: a port of this machine, or a device server that carries its bytes over TCP.

A line has no task of its own. It hands over what it hears as it comes, in pieces of any size, and says once that
it is lost. What the bytes mean, how long to wait for them and when to speak is the business of whoever owns it.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import fcntl
import os
import socket
import struct
import termios
from collections.abc import Callable
from typing import Protocol, cast

import serial

from drivers.options import SerialOptions, TcpLineOptions

CLOSE_S = 1.0
"""How long a close waits for the event loop to confirm it."""
UNACKNOWLEDGED_MS = 2000
"""A device server that acknowledges nothing for so long is lost; what it has not taken is thrown away by then, so
that a healed network does not deliver old requests.
"""
KEEPALIVE = ((socket.TCP_KEEPIDLE, 5), (socket.TCP_KEEPINTVL, 2), (socket.TCP_KEEPCNT, 3))
"""Finds a pulled cable within about ten seconds where nothing is ever sent, as to a scanner."""
LINGER_RESET = struct.pack("ii", 1, 0)
PULLED = "check that the adapter is plugged in and powered"
TAKEN = "check power and network of the device server, and that nobody else is connected to it"

OnBytes = Callable[[bytes], None]
OnLost = Callable[[str, str], None]
"""What happened, and what to look at."""


class LineFailed(Exception):
    """A line that cannot be opened: what happened, and what to look at."""

    def __init__(self, what: str, hint: str, *, timed_out: bool = False) -> None:
        self.what, self.hint, self.timed_out = what, hint, timed_out
        super().__init__(f"{what}; {hint}")


class Line(Protocol):
    """A serial line. All calls from the event loop's thread."""

    endpoint: str
    """For people: ``/dev/ttyUSB0 19200 8E1``, ``192.168.1.20:4001``."""
    char_ns: int
    """How long one character takes, in ns; 0 where nobody here knows (behind a device server)."""

    @property
    def unsent(self) -> int:
        """Bytes written that have not left this machine, or that the device server has not acknowledged yet."""

    async def open(self, timeout_s: float, on_bytes: OnBytes, on_lost: OnLost) -> None:
        """Open it. Raises :class:`LineFailed` (then it is closed); a cancellation leaves it closed too.

        ``on_bytes`` gets what is heard from then on; ``on_lost`` is called at most once, and not after ``close``.
        Neither is called from inside another call of this class.
        """

    def write(self, data: bytes) -> None:
        """Send, after what was written before. Never blocks: what does not go out at once waits for the line."""

    def discard(self) -> int:
        """Forget what has not gone out, as far as that can still be done. How many bytes certainly never left."""

    async def close(self, *, reset: bool = False) -> None:
        """Close it; ``reset`` tells a device server that we gave up. Safe at any time and more than once."""


def make_line(options: SerialOptions | TcpLineOptions) -> Line:
    """The line for ``options``, not open yet."""
    return SerialLine(options) if isinstance(options, SerialOptions) else TcpLine(options)


class SerialLine:
    """A serial port, opened exclusively and without blocking.

    A character that arrives with a wrong parity or stop bit is handed over as ``\\0``.
    """

    def __init__(self, options: SerialOptions) -> None:
        self._options = options
        bits = f"{options.bytesize}{options.parity}{options.stopbits}"
        self.endpoint = f"{options.device} {options.baudrate} {bits}"
        length = 1 + options.bytesize + (options.parity != "N") + options.stopbits
        self.char_ns = length * 1_000_000_000 // options.baudrate
        self._port: serial.Serial | None = None
        self._fd = -1
        self._unwritten = bytearray()
        self._on_bytes: OnBytes = _nobody
        self._on_lost: OnLost = _nobody_lost

    @property
    def unsent(self) -> int:
        """Bytes that wait here or in the system's queue."""
        return len(self._unwritten) + (_queued(self._fd) if self._fd >= 0 else 0)

    async def open(self, timeout_s: float, on_bytes: OnBytes, on_lost: OnLost) -> None:
        """Open the port. Raises :class:`LineFailed`. ``timeout_s`` is not needed: opening does not wait."""
        await self.close()
        options = self._options
        # A pseudo-terminal has no parity bit, and refuses one as soon as nothing else is left to change.
        pseudo = os.path.realpath(options.device).startswith("/dev/pts/")  # noqa: ASYNC240
        parity = "N" if pseudo else options.parity
        try:
            port = serial.Serial(
                options.device,
                baudrate=options.baudrate,
                bytesize=options.bytesize,
                parity=parity,
                stopbits=options.stopbits,
                timeout=0,
                exclusive=True,
            )
        except (OSError, ValueError, termios.error) as exc:  # SerialException is an OSError
            raise LineFailed(
                f"cannot open the serial port: {exc}",
                "check the adapter, its by-id path, the rights, and that no other program has it open",
            ) from exc
        self._port, self._fd = port, port.fileno()
        try:
            os.set_blocking(self._fd, False)
            if parity != "N":
                _check_parity(self._fd)
        except (OSError, termios.error) as exc:
            await self.close()
            raise LineFailed(f"cannot set up the serial port: {exc}", PULLED) from exc
        # Some USB adapters hold what they hear for 16 ms; those that can be told not to are told.
        with contextlib.suppress(OSError, ValueError, NotImplementedError):
            port.set_low_latency_mode(True)
        self._on_bytes, self._on_lost = on_bytes, on_lost
        asyncio.get_running_loop().add_reader(self._fd, self._readable)

    def write(self, data: bytes) -> None:
        """Hand the bytes to the port, which takes them at once unless flow control or a dead adapter stalls it."""
        if self._fd < 0:
            return
        idle = not self._unwritten
        self._unwritten += data
        if idle and not self._flush() and self._fd >= 0:
            asyncio.get_running_loop().add_writer(self._fd, self._writable)

    def discard(self) -> int:
        """Forget what waits here and in the system's queue. Only of the former is it certain that it never left."""
        never = len(self._unwritten)
        self._unwritten.clear()
        if self._fd >= 0:
            asyncio.get_running_loop().remove_writer(self._fd)
            with contextlib.suppress(OSError, termios.error):
                termios.tcflush(self._fd, termios.TCOFLUSH)
        return never

    async def close(self, *, reset: bool = False) -> None:
        """Close the port. What has not gone out is dropped: the system would wait for it up to 30 s."""
        self._close()

    def _readable(self) -> None:
        try:
            data = os.read(self._fd, 4096)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as exc:
            self._lose(str(exc))
            return
        if data:
            self._on_bytes(data)
        else:
            self._lose("end of file")

    def _writable(self) -> None:
        if self._flush() and self._fd >= 0:
            asyncio.get_running_loop().remove_writer(self._fd)

    def _flush(self) -> bool:
        """Whether nothing is left to write."""
        try:
            del self._unwritten[: os.write(self._fd, self._unwritten)]
        except (BlockingIOError, InterruptedError):
            pass
        except OSError as exc:
            self._unwritten.clear()
            # Not from inside the caller's write: it is in the middle of something.
            asyncio.get_running_loop().call_soon(self._lose_port, self._port, str(exc))
        return not self._unwritten

    def _lose_port(self, port: serial.Serial | None, why: str) -> None:
        if port is self._port:
            self._lose(why)

    def _lose(self, why: str) -> None:
        if self._fd >= 0:
            on_lost = self._on_lost
            self._close()  # at once: while it is held open, a replugged adapter gets another name
            on_lost(f"serial port lost: {why}", PULLED)

    def _close(self) -> None:
        """Stop listening, for a lost port stays readable for ever and would spin the loop; and close."""
        self.discard()
        fd, self._fd = self._fd, -1
        self._on_bytes, self._on_lost = _nobody, _nobody_lost
        if fd >= 0:
            loop = asyncio.get_running_loop()
            loop.remove_reader(fd)
            loop.remove_writer(fd)
        port, self._port = self._port, None
        if port is not None:
            with contextlib.suppress(OSError):
                port.close()


class TcpLine:
    """The bytes of a serial line over TCP, from a device server in raw ("TCP server", "socket") mode."""

    char_ns = 0

    def __init__(self, options: TcpLineOptions) -> None:
        self._options = options
        self.endpoint = f"{options.host}:{options.port}"
        self._connection: _Connection | None = None

    @property
    def unsent(self) -> int:
        """Bytes that wait here, in the system's queue, or for the device server to acknowledge them."""
        return self._connection.unsent() if self._connection else 0

    async def open(self, timeout_s: float, on_bytes: OnBytes, on_lost: OnLost) -> None:
        """Connect. Raises :class:`LineFailed`."""
        await self.close()
        options = self._options
        connection = _Connection(on_bytes)
        try:
            async with asyncio.timeout(timeout_s):
                await asyncio.get_running_loop().create_connection(lambda: connection, options.host, options.port)
        except TimeoutError:
            raise LineFailed(
                f"no connection within {timeout_s:g} s", "check power, network and address", timed_out=True
            ) from None
        except OSError as exc:
            raise LineFailed(
                f"cannot connect: {exc}", "check power, network, address and port of the device server"
            ) from exc
        if connection.closed.done():
            raise LineFailed("connected, and closed at once by the device server", TAKEN)
        self._connection, connection.on_lost = connection, on_lost

    def write(self, data: bytes) -> None:
        """Send the bytes; what the device server does not take yet waits."""
        if self._connection and self._connection.transport:
            self._connection.transport.write(data)

    def discard(self) -> int:
        """Nothing: TCP takes nothing back. A server that takes nothing is lost after ``UNACKNOWLEDGED_MS``."""
        return 0

    async def close(self, *, reset: bool = False) -> None:
        """Close; with a reset when asked for or when bytes are unsent."""
        connection, self._connection = self._connection, None
        if connection is None or connection.transport is None:
            return
        connection.on_bytes, connection.on_lost = _nobody, _nobody_lost
        if reset or connection.unsent():
            connection.reset()
        else:
            connection.transport.close()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_S):
                await asyncio.shield(connection.closed)


class _Connection(asyncio.Protocol):
    """One TCP connection: outlives its line's interest in it without a word."""

    def __init__(self, on_bytes: OnBytes) -> None:
        self.on_bytes: OnBytes = on_bytes
        self.on_lost: OnLost = _nobody_lost
        self.transport: asyncio.Transport | None = None
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def unsent(self) -> int:
        """Bytes in the transport, and in the socket up to their acknowledgement (SIOCOUTQ)."""
        assert self.transport is not None
        sock = self._socket()
        return self.transport.get_write_buffer_size() + (_queued(sock.fileno()) if sock else 0)

    def reset(self) -> None:
        """End with a reset (RST): nothing of what is queued goes out any more."""
        assert self.transport is not None
        if sock := self._socket():
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_RESET)
        self.transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Part of ``asyncio.Protocol``."""
        # Not by isinstance: the transports of other event loops do not inherit from asyncio's.
        transport = cast(asyncio.Transport, transport)
        self.transport = transport
        if sock := self._socket():
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
                for option, value in (*KEEPALIVE, (socket.TCP_USER_TIMEOUT, UNACKNOWLEDGED_MS)):
                    sock.setsockopt(socket.IPPROTO_TCP, option, value)

    def data_received(self, data: bytes) -> None:
        """Part of ``asyncio.Protocol``."""
        self.on_bytes(data)

    def eof_received(self) -> bool:
        """The device server closed its half; so do we."""
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """Part of ``asyncio.Protocol``."""
        if not self.closed.done():
            self.closed.set_result(None)
        on_lost, self.on_bytes, self.on_lost = self.on_lost, _nobody, _nobody_lost
        why = f"connection lost: {exc}" if exc else "connection closed by the device server"
        on_lost(why, TAKEN)

    def _socket(self) -> socket.socket | None:
        assert self.transport is not None
        sock: socket.socket | None = self.transport.get_extra_info("socket")
        return sock if sock is not None and sock.fileno() >= 0 else None


def _queued(fd: int) -> int:
    """Bytes in the output queue of a port or socket (TIOCOUTQ and SIOCOUTQ are one number)."""
    count = array.array("i", [0])
    try:
        fcntl.ioctl(fd, termios.TIOCOUTQ, count)
    except OSError:
        return 0  # a lost line: whoever reads it is told
    return count[0]


def _check_parity(fd: int) -> None:
    """Have the system check the parity, which pyserial leaves undone: a wrong character is read as a zero byte."""
    attributes = termios.tcgetattr(fd)
    attributes[0] = (attributes[0] | termios.INPCK) & ~(termios.IGNPAR | termios.PARMRK)
    termios.tcsetattr(fd, termios.TCSANOW, attributes)


def _nobody(_data: bytes) -> None:
    """Nobody listens any more."""


def _nobody_lost(_what: str, _hint: str) -> None:
    """Nobody cares any more."""
