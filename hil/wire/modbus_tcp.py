"""A Modbus TCP server in front of a virtual PLC, true to the protocol where it hurts.

Pipelined requests are answered in order, split and joined segments are taken apart by the MBAP header, a unit that
is not there is answered with exception 0x0B as a gateway does, and a header that is not Modbus ends the connection.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable

from hil.plc import PlcOffline, VirtualPlc
from hil.wire.pdu import MAX_PDU, TARGET_FAILED, answer, exception

HEADER = struct.Struct(">HHHB")
MAX_CONNECTIONS = 16
HIGH_WATER = 65536
"""Bytes of answers that may wait for a client that does not read; then its connection is aborted."""


class _Connection(asyncio.Protocol):
    def __init__(self, server: ModbusTcpServer) -> None:
        self._server = server
        self._buffer = bytearray()
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        if len(self._server.transports) >= MAX_CONNECTIONS:
            transport.abort()
            return
        self._server.transports.add(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._transport is not None:
            self._server.transports.discard(self._transport)

    def data_received(self, data: bytes) -> None:
        transport, buffer = self._transport, self._buffer
        if transport is None or transport.is_closing():
            return
        buffer += data
        out = bytearray()
        while len(buffer) >= HEADER.size:
            transaction, protocol, length, unit = HEADER.unpack_from(buffer)
            if protocol != 0 or not 2 <= length <= MAX_PDU + 1:
                transport.abort()
                return
            if len(buffer) < 6 + length:
                break
            pdu = bytes(buffer[7 : 6 + length])
            del buffer[: 6 + length]
            try:
                response = self._server.respond(unit, pdu)
            except PlcOffline:
                transport.abort()
                return
            out += HEADER.pack(transaction, 0, len(response) + 1, unit) + response
        if out:
            transport.write(bytes(out))
            if transport.get_write_buffer_size() > HIGH_WATER:
                transport.abort()


class ModbusTcpServer:
    """Serves one PLC on a loopback address; ``sync`` brings the plant up to the present before each request."""

    def __init__(self, plc: VirtualPlc, device_id: int, sync: Callable[[], None], host: str, port: int) -> None:
        self._plc, self._device_id, self._sync = plc, device_id, sync
        self.host, self.port = host, port
        self.transports: set[asyncio.Transport] = set()
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Listen; port 0 takes a free one, and keeps it from then on. Raises ``OSError``."""
        if self._server is None:
            loop = asyncio.get_running_loop()
            self._server = await loop.create_server(lambda: _Connection(self), self.host, self.port, reuse_address=True)
            self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Stop listening and cut every connection, as a loss of power does."""
        server, self._server = self._server, None
        if server is not None:
            server.close()
            for transport in list(self.transports):
                transport.abort()
            await server.wait_closed()

    def respond(self, device_id: int, pdu: bytes) -> bytes:
        """The response PDU. Raises :class:`PlcOffline`."""
        self._sync()
        if device_id != self._device_id:
            return exception(pdu[0], TARGET_FAILED)
        return answer(self._plc, pdu)
