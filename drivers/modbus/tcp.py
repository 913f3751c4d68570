"""One connection to a Modbus TCP server: strict exchanges, one at a time (MODBUS Messaging on TCP/IP V1.0b).

An answer is taken only when its transaction id (never 0), protocol id, length, unit and content fit the one
outstanding request. Anything else — another answer, a frame nobody asked for, no answer in time, a cancelled
wait — leaves doubt about what the next frame will be, and ends the connection with a reset (RST).
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct

from pymodbus.framer import FramerSocket
from pymodbus.pdu import DecodePDU

from drivers.modbus.pdu import BadReply, Call
from drivers.port import LinkDown

HEADER = struct.Struct(">HHHB")
MAX_PDU = 253
LINGER_RESET = struct.pack("ii", 1, 0)
CLOSE_S = 1.0
"""How long a close waits for the event loop to confirm it."""


class _Connection(asyncio.Protocol):
    """Cuts the byte stream into frames and matches them with the one expected answer."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.transport: asyncio.Transport | None = None
        self.lost = ""
        """Why the connection is over; empty while it stands."""
        self.closed: asyncio.Future[None] = loop.create_future()
        self.answer: asyncio.Future[bytes] | None = None
        self._buffer = bytearray()
        self._expected = (0, 0)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Part of ``asyncio.Protocol``."""
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        """Part of ``asyncio.Protocol``."""
        self._end(f"connection lost: {exc}" if exc else "connection closed by the PLC")
        if not self.closed.done():
            self.closed.set_result(None)

    def eof_received(self) -> bool:
        """The PLC closed its half; so do we."""
        self._end("connection closed by the PLC")
        return False

    def data_received(self, data: bytes) -> None:
        """Part of ``asyncio.Protocol``. Bounded: more than one frame's worth unread ends the connection."""
        if self.lost:
            return
        self._buffer += data
        while len(self._buffer) >= HEADER.size and not self.lost:
            tid, protocol, length, unit = HEADER.unpack_from(self._buffer)
            # Checked before the rest of the frame is waited for: a wrong length could otherwise keep us waiting.
            if self.answer is None:
                self.fail("a frame that nobody asked for")
            elif protocol != 0 or not 3 <= length <= MAX_PDU + 1:
                self.fail(f"not a Modbus frame (protocol id {protocol}, length {length})")
            elif (tid, unit) != self._expected:
                self.fail(
                    f"answer with transaction {tid}, unit {unit}, expected {self._expected[0]}, {self._expected[1]}"
                )
            elif len(self._buffer) < length + 6:
                return
            else:
                frame = bytes(self._buffer[HEADER.size : length + 6])
                del self._buffer[: length + 6]
                if not self.answer.done():
                    self.answer.set_result(frame)
                self.answer = None

    def expect(self, tid: int, unit: int) -> asyncio.Future[bytes]:
        """The future answer to the request about to be sent; empty bytes when the connection ends first."""
        if self._buffer:
            self.fail("bytes that nobody asked for")
        self._expected = (tid, unit)
        self.answer = asyncio.get_running_loop().create_future()
        return self.answer

    def fail(self, reason: str) -> None:
        """Give the connection up at once, with a reset, dropping what is not sent yet."""
        self._end(reason)
        transport = self.transport
        if transport is not None:
            sock: socket.socket | None = transport.get_extra_info("socket")
            if sock is not None and sock.fileno() >= 0:
                with contextlib.suppress(OSError):
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_RESET)
            transport.abort()

    def _end(self, reason: str) -> None:
        self.lost = self.lost or reason
        if self.answer is not None and not self.answer.done():
            self.answer.set_result(b"")
        self.answer = None


class TcpChannel:
    """Connection to one unit of one server. Exchanges one at a time; never reconnects, never re-sends."""

    single_writes = True

    def __init__(self, name: str, host: str, port: int, unit: int) -> None:
        self.endpoint = f"{host}:{port} unit {unit}"
        self._name, self._host, self._port, self._unit = name, host, port, unit
        self._framer = FramerSocket(DecodePDU(False))
        self._connection: _Connection | None = None
        self._tid = 0

    def down(self) -> str:
        """Why no request can be sent now; empty when one can."""
        return self._connection.lost if self._connection else "not connected"

    async def open(self, timeout_s: float) -> None:
        """Connect. Raises :class:`LinkDown`."""
        await self.close()
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(timeout_s):
                _, self._connection = await loop.create_connection(_Connection, self._host, self._port)
        except TimeoutError:
            raise self._lost(
                f"no connection within {timeout_s:g} s", "check power, network and address", timed_out=True
            ) from None
        except OSError as exc:
            raise self._lost(f"cannot connect: {exc}", "check power, network, address and port") from exc

    async def exchange(self, call: Call, timeout_s: float) -> bytes:
        """Send one request and return its answer's data; ``timeout_s`` is for all of it.

        Raises :class:`LinkDown`, and ``ExceptionReply`` when the device refuses (the connection is sound then).
        """
        connection = self._connection
        if connection is None or connection.lost or connection.transport is None:
            raise self._lost(self.down())
        self._tid = self._tid % 0xFFFF + 1  # 1..65535: 0 is what broken servers answer with
        answer = connection.expect(self._tid, self._unit)
        if connection.lost:
            raise self._lost(connection.lost)
        connection.transport.write(self._framer.encode(call.pdu, self._unit, self._tid))
        try:
            async with asyncio.timeout(timeout_s):
                reply = await answer
        except TimeoutError:
            connection.fail(f"{call.what}: no answer within {timeout_s:g} s")
            raise self._lost(connection.lost, "check that the PLC runs", timed_out=True) from None
        except asyncio.CancelledError:
            connection.fail(f"{call.what}: given up while waiting for the answer")
            raise
        if not reply:
            raise self._lost(f"{call.what}: {connection.lost}")
        try:
            return call.payload(reply)
        except BadReply as exc:
            connection.fail(str(exc))
            raise self._lost(str(exc), "the device breaks the protocol, or another one answers") from None

    async def close(self) -> None:
        """Close; with a reset when an answer is outstanding or bytes are unsent. Safe at any time."""
        connection, self._connection = self._connection, None
        if connection is None or connection.transport is None:
            return
        if connection.answer is not None or connection.lost or connection.transport.get_write_buffer_size():
            connection.fail("closed")
        else:
            connection.transport.close()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_S):
                await asyncio.shield(connection.closed)

    def _lost(self, what: str, hint: str = "", *, timed_out: bool = False) -> LinkDown:
        return LinkDown(self._name, what, where=self.endpoint, hint=hint, timed_out=timed_out)
