"""The MBAP wire on UDP: one frame per datagram.

A datagram may be lost, doubled or late, and none of this says anything about the next one. So nothing is reset here:
what does not fit an outstanding request is counted and dropped.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Callable, Sequence

from drivers.modbus.mbap import HEADER, Transactions, no_answer
from drivers.modbus.pdu import MAX_PDU
from drivers.modbus.wire import Exchange, OpenFailed, Owner
from drivers.options import ModbusUdpOptions


class UdpWire(Transactions):
    """A connected UDP socket: the kernel drops what comes from elsewhere, and tells when nobody listens there."""

    single_writes = True

    def __init__(self, options: ModbusUdpOptions, monotonic_ns: Callable[[], int]) -> None:
        self._host, self._port, self._monotonic_ns = options.host, options.port, monotonic_ns
        self.endpoint = f"{options.host}:{options.port} UDP"
        self.window = options.in_flight
        self.pending = {}
        self._socket: socket.socket | None = None
        self._buffer = bytearray(HEADER.size + MAX_PDU + 1)  # one more shows a datagram that is too long

    @property
    def under_way(self) -> int:
        """Exchanges started and not ended."""
        return len(self.pending)

    async def open(self, timeout_s: float, owner: Owner) -> None:
        """Make the socket. Whether anybody is there shows with the first request. Raises :class:`OpenFailed`."""
        await self.close()
        loop = asyncio.get_running_loop()
        sock = None
        try:
            async with asyncio.timeout(timeout_s):
                family, address = await self._address()
            sock = socket.socket(family, socket.SOCK_DGRAM)
            sock.setblocking(False)
            sock.connect(address)
        except TimeoutError:
            what = f"{self._host} not resolved within {timeout_s:g} s"
            raise OpenFailed(what, "check the name and the network", timed_out=True) from None
        except OSError as exc:
            if sock is not None:
                sock.close()
            raise OpenFailed(f"cannot connect: {exc}", "check network, address and port") from exc
        super().__init__(owner, self._monotonic_ns)
        self._socket = sock
        loop.add_reader(sock, self._readable)

    def start(self, exchanges: Sequence[Exchange]) -> None:
        """Send these, a datagram each."""
        sock = self._socket
        assert sock is not None
        for exchange, frame in zip(exchanges, self.frames(exchanges), strict=True):
            try:
                sock.send(frame)
            except OSError as exc:
                # A full buffer, or the refusal of an earlier datagram: this one has not gone out.
                tid = self.find(exchange)
                if tid is not None:
                    del self.pending[tid]
                    self._loop.call_soon(self._unsent, sock, exchange, exc)

    def abandon(self, exchange: Exchange) -> None:
        """Nobody waits for this one: its answer is counted and dropped."""
        tid = self.find(exchange)
        if tid is not None:
            self.give_up(tid)

    def expired(self, tids: list[int]) -> None:
        """A datagram lost, or the device slow or gone."""
        for exchange in [self.give_up(tid) for tid in tids]:
            self.owner.failed(exchange, no_answer(exchange), timed_out=True)

    async def close(self) -> None:
        """Close the socket."""
        sock, self._socket = self._socket, None
        if sock is not None:
            self._loop.remove_reader(sock)
            sock.close()
            self.forget()

    async def _address(self) -> tuple[socket.AddressFamily, tuple[object, ...]]:
        try:
            version = ipaddress.ip_address(self._host).version
        except ValueError:
            found = await asyncio.get_running_loop().getaddrinfo(self._host, self._port, type=socket.SOCK_DGRAM)
            return found[0][0], found[0][4]
        return (socket.AF_INET if version == 4 else socket.AF_INET6), (self._host, self._port)

    def _readable(self) -> None:
        """Take what is there, at most as many datagrams as there are requests, then let others have their turn."""
        for _ in range(self.window):
            if self._socket is None:
                return
            try:
                size = self._socket.recv_into(self._buffer)
            except BlockingIOError:
                return
            except OSError as exc:
                self._unreachable(exc)
                return
            self._datagram(bytes(self._buffer[:size]))

    def _datagram(self, frame: bytes) -> None:
        if len(frame) < HEADER.size + 2:
            self.owner.stray(f"a datagram of {len(frame)} bytes")
            return
        tid, protocol, length, unit = HEADER.unpack_from(frame)
        if protocol or length != len(frame) - 6 or length > MAX_PDU + 1:
            self.owner.stray(f"not a Modbus frame (protocol id {protocol}, length {length} of {len(frame) - 6})")
            return
        if doubt := self.judge(tid, unit, frame[HEADER.size :]):
            self.owner.stray(doubt)
            if tid in self.pending:
                self.owner.failed(self.give_up(tid), doubt)

    def _unreachable(self, exc: OSError) -> None:
        """The network says that a datagram did not arrive; not which one."""
        for exchange in [self.give_up(tid) for tid in list(self.pending)]:
            self.owner.failed(exchange, f"{exchange.call.what}: cannot be reached: {exc}")

    def _unsent(self, sock: socket.socket, exchange: Exchange, exc: OSError) -> None:
        if sock is self._socket:
            self.owner.failed(exchange, f"{exchange.call.what}: not sent: {exc}", sent=False)
