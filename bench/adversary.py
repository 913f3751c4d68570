"""A Modbus server that lies: every answer that a broken device, gateway or network could give, drawn from a seed.

It is there to show that a client never takes a wrong value for a good one. What it holds is known exactly, so every
value that a client reports can be judged: a register holds a fixed function of its address, except that each pair at
a multiple of 16 holds the number of requests received so far (UDINT, high word first). A late or doubled answer
shows by its number. Writes to ``hr`` 60000 and above are executed, once per request, and logged.

It lies about answers only: it executes each write at once and says so or something else; it never says done for
what it did not do.
"""

from __future__ import annotations

import asyncio
import random
import socket
import struct
from collections import Counter
from collections.abc import Callable

MBAP = struct.Struct(">HHHB")
WRITABLE = 60_000
RESET = struct.pack("ii", 1, 0)

ODDITIES = (
    "wrong_tid", "tid_zero", "next_tid", "wrong_unit", "wrong_function", "wrong_exception", "no_such_exception",
    "byte_count", "short", "long", "empty", "echo_request", "bytewise", "doubled", "late", "silence", "garbage",
    "glued_stray", "cut", "protocol_id", "length_huge", "length_small", "previous", "reset",
)  # fmt: skip
"""What may happen to an answer, by name. ``bytewise`` only splits the honest one; all others are lies or losses."""


def register(address: int) -> int:
    """The word that an ordinary register holds for ever."""
    return (address * 40_503 + 12_345) & 0xFFFF


class Memory:
    """What the server holds, the log of executed writes, and the number of requests received."""

    def __init__(self) -> None:
        self.received = 0
        self.executed: Counter[int] = Counter()
        """How often each value (UDINT at hr 60000) was written."""
        self.values = [0] * (65_536 - WRITABLE)

    def word(self, address: int) -> int:
        """The register's word now."""
        if address >= WRITABLE:
            return self.values[address - WRITABLE]
        place = address % 16
        if place == 0:
            return self.received >> 16 & 0xFFFF
        return self.received & 0xFFFF if place == 1 else register(address)

    def answer(self, pdu: bytes) -> bytes:
        """The honest answer; executes a write."""
        self.received += 1
        function, first, count = struct.unpack(">BHH", pdu[:5])
        if function in (3, 4):
            words = [self.word(address) for address in range(first, first + count)]
            return struct.pack(f">BB{count}H", function, 2 * count, *words)
        if function in (1, 2):
            bits = sum((register(first + n) & 1) << n for n in range(count))
            size = (count + 7) // 8
            return bytes((function, size)) + bits.to_bytes(size, "little")
        if function == 16 and first >= WRITABLE:
            words = list(struct.unpack(f">{count}H", pdu[6:]))
            self.values[first - WRITABLE : first - WRITABLE + count] = words
            if first == WRITABLE and count == 2:
                self.executed[words[0] << 16 | words[1]] += 1
            return pdu[:5]
        return bytes((function | 0x80, 1))


class Liar:
    """Turns a request into what goes back: a list of ``(delay in s, bytes)``; ``None`` for bytes is a reset.

    ``share`` of the requests meet an oddity, ``only`` names those in play.
    """

    def __init__(
        self, memory: Memory, rng: random.Random, share: float, *, late_s: float, only: tuple[str, ...] = ODDITIES
    ) -> None:
        self.memory, self.share, self.only = memory, share, only
        self.done: Counter[str] = Counter()
        self._rng, self._late_s = rng, late_s
        self._previous = b""

    def draw(self) -> str:
        """What happens to the next request."""
        name = self._rng.choice(self.only) if self._rng.random() < self.share else "honest"
        self.done[name] += 1
        return name

    def mangle(self, name: str, request: bytes, reply: bytes) -> bytes:
        """The answer's PDU, as far as the oddity lies in it."""
        if name == "wrong_function":
            return bytes((reply[0] ^ 7,)) + reply[1:]
        if name == "wrong_exception":
            return bytes((request[0] ^ 5 | 0x80, 2))
        if name == "no_such_exception":
            return bytes((request[0] | 0x80, self._rng.choice((0, 9, 99, 255))))
        if name == "byte_count":
            return reply[:1] + bytes((reply[1] ^ self._rng.choice((1, 2, 4, 254)),)) + reply[2:]
        if name == "short":
            return bytes((reply[0], max(0, reply[1] - 2))) + reply[2:-2]
        if name == "long":
            return bytes((reply[0], reply[1] + 2 & 0xFF)) + reply[2:] + b"\xab\xcd"
        if name == "empty":
            return reply[:1] + b"\0"
        if name == "echo_request":
            return request
        return reply

    def mbap(self, tid: int, unit: int, request: bytes) -> list[tuple[float, bytes | None]]:
        """Frames with an MBAP header."""
        name, honest = self.draw(), self.memory.answer(request)
        reply = self.mangle(name, request, honest)
        if name in ("wrong_function", "byte_count", "short", "long", "empty", "echo_request") and reply == honest:
            return [(0.0, self._frame(tid, unit, honest))]
        tid = {"wrong_tid": tid ^ 0x0101, "tid_zero": 0, "next_tid": tid % 0xFFFF + 1}.get(name, tid)
        unit ^= 1 if name == "wrong_unit" else 0
        frame = self._frame(tid, unit, reply)
        if name == "protocol_id":
            frame = frame[:3] + b"\1" + frame[4:]
        elif name == "length_huge":
            frame = frame[:4] + b"\xff\xff" + frame[6:]
        elif name == "length_small":
            frame = frame[:4] + b"\0\1" + frame[6:]
        previous, self._previous = self._previous, frame
        return self._deliver(name, frame, previous)

    def _deliver(self, name: str, frame: bytes, previous: bytes) -> list[tuple[float, bytes | None]]:
        rng = self._rng
        if name == "bytewise":
            return [(0.0, frame[i : i + 1]) for i in range(len(frame))]
        if name == "doubled":
            return [(0.0, frame), (0.0, frame)]
        if name == "late":
            return [(self._late_s * rng.uniform(1.0, 2.0), frame)]
        if name == "garbage":
            return [(0.0, rng.randbytes(rng.randrange(1, 300)))]
        if name == "glued_stray":
            return [(0.0, frame + self._frame(rng.randrange(65_536), rng.randrange(256), b"\3\2\x12\x34"))]
        if name == "cut":
            return [(0.0, frame[: rng.randrange(1, len(frame))]), (0.0, None)]
        if name == "previous":
            return [(0.0, previous)] if previous else []
        if name == "reset":
            return [(0.0, None)]
        return [] if name == "silence" else [(0.0, frame)]

    @staticmethod
    def _frame(tid: int, unit: int, pdu: bytes) -> bytes:
        return MBAP.pack(tid, 0, len(pdu) + 1, unit) + pdu


class _Connection(asyncio.Protocol):
    def __init__(self, server: AdversaryTcp) -> None:
        self._server, self._buffer = server, bytearray()
        self._timers: set[asyncio.TimerHandle] = set()
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self._server.connections.add(self)
        self._server.accepted += 1
        sock: socket.socket = transport.get_extra_info("socket")
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def connection_lost(self, exc: Exception | None) -> None:
        self._server.connections.discard(self)
        for timer in self._timers:
            timer.cancel()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while len(self._buffer) >= 8:
            tid, _, length, unit = MBAP.unpack_from(self._buffer)
            if len(self._buffer) < length + 6:
                return
            pdu = bytes(self._buffer[7 : length + 6])
            del self._buffer[: length + 6]
            for delay_s, frame in self._server.liar.mbap(tid, unit, pdu):
                if delay_s:
                    loop = asyncio.get_running_loop()
                    self._timers.add(loop.call_later(delay_s, self._send, frame))
                else:
                    self._send(frame)

    def _send(self, frame: bytes | None) -> None:
        transport = self.transport
        if transport is None or transport.is_closing():
            return
        if frame is not None:
            transport.write(frame)
            return
        sock: socket.socket = transport.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        transport.abort()


class AdversaryTcp:
    """``async with AdversaryTcp(liar) as server``: listens on ``server.port`` of the loopback interface."""

    def __init__(self, liar: Liar) -> None:
        self.liar, self.port, self.accepted = liar, 0, 0
        self.connections: set[_Connection] = set()
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> AdversaryTcp:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: _Connection(self), "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for connection in list(self.connections):
            if connection.transport is not None:
                connection.transport.abort()
        await self._server.wait_closed()


class AdversaryUdp(asyncio.DatagramProtocol):
    """The same in datagrams. ``async with AdversaryUdp(liar) as server``."""

    def __init__(self, liar: Liar) -> None:
        self.liar, self.port = liar, 0
        self._transport: asyncio.DatagramTransport | None = None

    async def __aenter__(self) -> AdversaryUdp:
        loop = asyncio.get_running_loop()
        make: Callable[[], AdversaryUdp] = lambda: self  # noqa: E731
        self._transport, _ = await loop.create_datagram_endpoint(make, local_addr=("127.0.0.1", self.port))
        self.port = self._transport.get_extra_info("sockname")[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._transport is not None
        self._transport.close()
        await asyncio.sleep(0)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        """Part of ``asyncio.DatagramProtocol``."""
        tid, _, length, unit = MBAP.unpack_from(data)
        pdu = data[7 : length + 6]
        for delay_s, frame in self.liar.mbap(tid, unit, pdu):
            if frame is not None:
                asyncio.get_running_loop().call_later(delay_s, self._send, frame, addr)

    def _send(self, frame: bytes, addr: tuple[str, int]) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.sendto(frame, addr)
