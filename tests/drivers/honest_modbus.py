"""Protocol-true Modbus servers for the tests (TCP, and RTU over a pty), which misbehave on command only.

``server.script`` holds what to do with the next requests, one word each; without one the server is honest.
Addresses 0..``SIZE`` - 1 exist in every area; the others are refused with exception 2.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import pty
import struct
import tty
from collections import deque
from pathlib import Path
from typing import Self

SIZE = 2048
RESET = struct.pack("ii", 1, 0)


class Refusal(Exception):
    def __init__(self, code: int) -> None:
        self.code = code


class Memory:
    """The four areas, and the application protocol on them. ``writes`` logs every executed write request."""

    def __init__(self) -> None:
        self.co, self.di = [False] * SIZE, [False] * SIZE
        self.ir, self.hr = [0] * SIZE, [0] * SIZE
        self.writes: list[bytes] = []
        self.functions = {1, 2, 3, 4, 5, 6, 15, 16, 22}

    def put(self, area: str, offset: int, data: bytes) -> None:
        words = struct.unpack(f">{len(data) // 2}H", data)
        getattr(self, area)[offset : offset + len(words)] = words

    def answer(self, pdu: bytes) -> bytes:
        if pdu[0] not in self.functions:
            return bytes((pdu[0] | 0x80, 1))
        try:
            return bytes(pdu[:1]) + (self._read(pdu) if pdu[0] <= 4 else self._write(pdu))
        except Refusal as exc:
            return bytes((pdu[0] | 0x80, exc.code))

    def _read(self, pdu: bytes) -> bytes:
        function, offset, count = struct.unpack(">BHH", pdu)
        bits = function <= 2
        if not 1 <= count <= (2000 if bits else 125):
            raise Refusal(3)
        if offset + count > SIZE:
            raise Refusal(2)
        values = {1: self.co, 2: self.di, 3: self.hr, 4: self.ir}[function][offset : offset + count]
        if not bits:
            return bytes((2 * count,)) + struct.pack(f">{count}H", *values)
        packed = bytearray((count + 7) // 8)
        for i, bit in enumerate(values):
            packed[i // 8] |= bit << i % 8
        return bytes((len(packed),)) + bytes(packed)

    def _write(self, pdu: bytes) -> bytes:
        function, offset, value = struct.unpack(">BHH", pdu[:5])
        count = value if function in (15, 16) else 1
        if offset + count > SIZE:
            raise Refusal(2)
        if function == 5:
            if value not in (0, 0xFF00):
                raise Refusal(3)
            self.co[offset] = value == 0xFF00
        elif function == 6:
            self.hr[offset] = value
        elif function == 15:
            if len(pdu) != 6 + (count + 7) // 8:
                raise Refusal(3)
            for i in range(count):
                self.co[offset + i] = bool(pdu[6 + i // 8] >> i % 8 & 1)
        elif function == 16:
            if not 1 <= count <= 123 or pdu[5] != 2 * count or len(pdu) != 6 + 2 * count:
                raise Refusal(3)
            self.put("hr", offset, pdu[6:])
        else:
            and_mask, or_mask = struct.unpack(">HH", pdu[3:])
            self.hr[offset] = self.hr[offset] & and_mask | or_mask & ~and_mask & 0xFFFF
        self.writes.append(pdu)
        return pdu[1:5] if function in (15, 16) else pdu[1:]


class Answering:
    """Applies the script to one request: the reply's PDU (or ``None`` for silence)."""

    def __init__(self) -> None:
        self.memory = Memory()
        self.script: deque[str] = deque()
        self.requests: list[bytes] = []

    def reply(self, pdu: bytes, word: str) -> bytes | None:
        if word.startswith("exc"):
            return bytes((pdu[0] | 0x80, int(word[3:])))
        if word == "silence":
            return None
        if word == "no_exec":
            return pdu[:5] if pdu[0] in (15, 16) else pdu
        reply = self.memory.answer(pdu)
        if word == "exec_silence":
            return None
        if word == "short":
            return bytes((reply[0], reply[1] - 2)) + reply[2:-2]
        if word == "long":
            return bytes((reply[0], reply[1] + 2)) + reply[2:] + b"\0\0"
        if word == "odd":
            return bytes((reply[0], reply[1] - 1)) + reply[2:-1]
        if word == "trailing":
            return reply + b"\0\0"
        if word == "truncated":
            return reply[:-2]
        if word == "empty":
            return bytes((reply[0], 0))
        if word == "count_lies":
            return bytes((reply[0], reply[1] - 2)) + reply[2:]
        if word == "wrong_fc":
            return bytes((reply[0] ^ 7,)) + reply[1:]
        if word == "refuse_wrong_fc":
            return bytes((0x86 if pdu[0] != 6 else 0x83, 2))
        if word == "bad_echo":
            return reply[:-1] + bytes((reply[-1] ^ 1,))
        return reply


class TcpServer(Answering):
    """``async with TcpServer(unit) as server`` listens on ``server.port`` of the loopback interface."""

    def __init__(self, unit: int = 3) -> None:
        super().__init__()
        self.unit, self.port = unit, 0
        self.connections = 0
        self.tids: list[int] = []
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.writers: set[asyncio.StreamWriter] = set()

    async def __aenter__(self) -> TcpServer:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Stop listening and reset every connection."""
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()
            self._server = None
        for writer in list(self.writers):
            self.reset(writer)
        for task in list(self._tasks):
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    def reset(self, writer: asyncio.StreamWriter) -> None:
        sock = writer.get_extra_info("socket")
        if sock.fileno() >= 0:
            import socket

            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        writer.transport.abort()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.writers.add(writer)
        self.connections += 1
        try:
            while True:
                header = await reader.readexactly(7)
                tid, pid, length, unit = struct.unpack(">HHHB", header)
                pdu = await reader.readexactly(length - 1)
                assert pid == 0
                self.requests.append(pdu)
                self.tids.append(tid)
                await self._serve(writer, tid, unit, pdu)
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            self._tasks.discard(task)
            self.writers.discard(writer)
            writer.close()

    async def _serve(self, writer: asyncio.StreamWriter, tid: int, unit: int, pdu: bytes) -> None:
        word = self.script.popleft() if self.script else "ok"
        if unit != self.unit:
            word = "exc11"
        if word == "rst":
            self.reset(writer)
            return
        if word.startswith("late"):
            await asyncio.sleep(float(word[4:]))
        reply = self.reply(pdu, word)
        if reply is None:
            return
        if word == "wrong_unit":
            unit ^= 0x55
        tid = {"wrong_tid": tid + 1, "zero_tid": 0}.get(word, tid)
        length = {"huge": 4000, "zero_length": 0}.get(word, len(reply) + 1)
        frame = struct.pack(">HHHB", tid, 7 if word == "pid" else 0, length, unit) + reply
        if word in ("rst_mid", "fin_mid"):
            writer.write(frame[:9])
            await writer.drain()
            if word == "rst_mid":
                self.reset(writer)
            else:
                writer.close()
            return
        if word == "dup":
            frame += frame
        if word == "unasked_next":
            frame += struct.pack(">HHHB", tid + 1, 0, length, unit) + reply[:-1] + b"\x63"
        if word == "dribble":
            for i in range(len(frame)):
                writer.write(frame[i : i + 1])
                await asyncio.sleep(0.05)
            return
        if word == "split":
            writer.write(frame[:5])
            await asyncio.sleep(0.02)
            frame = frame[5:]
        writer.write(frame)


def crc(data: bytes) -> bytes:
    """CRC-16 of Serial Line V1.02, 6.2.2, worked bit by bit."""
    value = 0xFFFF
    for byte in data:
        value ^= byte
        for _ in range(8):
            value = value >> 1 ^ (0xA001 if value & 1 else 0)
    return value.to_bytes(2, "little")


def lrc(data: bytes) -> int:
    """LRC of Serial Line V1.02, 6.2.1: the two's complement of the sum."""
    return -sum(data) & 0xFF


def rtu_frame(unit: int, pdu: bytes) -> bytes:
    return bytes((unit,)) + pdu + crc(bytes((unit,)) + pdu)


def ascii_frame(unit: int, pdu: bytes) -> bytes:
    body = bytes((unit,)) + pdu
    return b":" + body.hex().upper().encode() + b"%02X" % lrc(body) + b"\r\n"


class SerialUnit(Answering):
    """One unit of a serial line. Like a real one it works on one request at a time, and answers in their order.

    ``loopback`` is what it does with function 8: ``refuse`` (exception 1), ``return`` or ``ignore``; these requests
    are counted apart and leave the script alone. ``dead`` is silent; ``delay`` is the time for every answer.
    """

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number
        self.loopback, self.loopbacks = "refuse", 0
        self.dead, self.delay, self.busy = False, 0.0, 0.0
        self.heard: list[bytes] = []
        """Every PDU that reached it, loop-backs and those not answered among them."""

    def take(self, pdu: bytes) -> tuple[str, bytes | None]:
        """The word of the script that holds, and the answer."""
        self.heard.append(pdu)
        if self.dead:
            return "silence", None
        if pdu[0] == 8:
            self.loopbacks += 1
            return "ok", {"refuse": b"\x88\x01", "return": pdu, "ignore": None}[self.loopback]
        self.requests.append(pdu)
        word = self.script.popleft() if self.script else "ok"
        return word, self.reply(pdu, word)


class SerialBus(SerialUnit):
    """A serial line with units on it; itself its first unit. ``echo`` is an adapter that hands back what is sent.

    ``pieces`` bytes at a time are sent, a few milliseconds apart, when it is not 0.
    """

    def __init__(self, unit: int) -> None:
        super().__init__(unit)
        self.units: dict[int, SerialUnit] = {unit: self}
        self.echo, self.pieces = False, 0
        self.order: list[int] = []
        """The unit of every request on the line."""
        self._buffer = bytearray()
        self._timers: list[asyncio.TimerHandle] = []

    def add(self, *numbers: int) -> None:
        for number in numbers:
            self.units[number] = SerialUnit(number)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def start(self) -> None:
        raise NotImplementedError

    async def stop(self) -> None:
        raise NotImplementedError

    def say(self, data: bytes) -> None:
        raise NotImplementedError

    def frame(self, unit: int, pdu: bytes) -> bytes:
        raise NotImplementedError

    def cut(self) -> bytes | None:
        """The next whole request in the buffer, taken out of it: unit and PDU."""
        raise NotImplementedError

    def on_bytes(self, data: bytes) -> None:
        if self.echo:
            self.say(data)
        self._buffer += data
        while request := self.cut():
            self.order.append(request[0])
            if unit := self.units.get(request[0]):
                self._serve(unit, request[1:])

    def _serve(self, unit: SerialUnit, pdu: bytes) -> None:
        word, reply = unit.take(pdu)
        loop = asyncio.get_running_loop()
        delay = unit.delay + (float(word[4:]) if word.startswith("late") else 0.0)
        if unit.busy > loop.time():
            delay += 0.0005  # timers of one time do not fire in order
        unit.busy = max(unit.busy, loop.time()) + delay
        if reply is None:
            return
        frame = self._frame(unit.number, pdu, reply, word)
        if delay or unit.busy > loop.time():
            self._timers.append(loop.call_at(unit.busy, self.say, frame))
        elif self.pieces:
            for i in range(0, len(frame), self.pieces):
                self._timers.append(loop.call_later(i / self.pieces * 0.003, self.say, frame[i : i + self.pieces]))
        else:
            self.say(frame)

    def _frame(self, unit: int, pdu: bytes, reply: bytes, word: str) -> bytes:
        frame = self.frame(unit + 1 if word == "wrong_unit" else unit, reply)
        if word == "crc":  # the last byte or digit in front of the end
            at = -1 if frame[-1:] != b"\n" else -3
            frame = bytes((*frame[:at], frame[at] ^ 1, *frame[len(frame) + at + 1 :]))
        if word == "noise_before":
            frame = b"\xff\x00" + frame
        if word == "noise_after":
            frame += b"\x00"
        if word == "echo":
            frame = self.frame(unit, pdu)
        if word == "dup":
            frame += frame
        if word == "half":
            frame = frame[: len(frame) // 2]
        return frame


class RtuSide(SerialBus):
    """RTU framing."""

    def frame(self, unit: int, pdu: bytes) -> bytes:
        return rtu_frame(unit, pdu)

    def cut(self) -> bytes | None:
        if len(self._buffer) < 8:
            return None
        size = {15: 9 + self._buffer[6], 16: 9 + self._buffer[6], 22: 10}.get(self._buffer[1], 8)
        if len(self._buffer) < size:
            return None
        frame = bytes(self._buffer[:size])
        del self._buffer[:size]
        assert crc(frame[:-2]) == frame[-2:], frame.hex(" ")
        return frame[:-2]


class AsciiSide(SerialBus):
    """ASCII framing."""

    def frame(self, unit: int, pdu: bytes) -> bytes:
        return ascii_frame(unit, pdu)

    def cut(self) -> bytes | None:
        end = self._buffer.find(b"\r\n")
        if end < 0:
            return None
        frame = bytes(self._buffer[:end])
        del self._buffer[: end + 2]
        assert frame[:1] == b":", frame
        assert frame.isascii()
        assert frame == frame.upper(), frame
        body = bytes.fromhex(frame[1:].decode())
        assert sum(body) & 0xFF == 0, frame
        return body[:-1]


class PtySide(SerialBus):
    """Behind the serial port ``device``, a link to a pseudo-terminal."""

    def __init__(self, folder: Path, unit: int = 17) -> None:
        super().__init__(unit)
        self.device = folder / "ttyPLC"
        self._master = self._slave = -1

    async def start(self) -> None:
        """Plug the adapter in."""
        self._master, self._slave = pty.openpty()
        tty.setraw(self._slave)  # what is said before the port is opened must not come back as an echo
        os.set_blocking(self._master, False)
        self.device.unlink(missing_ok=True)
        self.device.symlink_to(os.ttyname(self._slave))
        self._buffer.clear()
        asyncio.get_running_loop().add_reader(self._master, self._readable)

    async def stop(self) -> None:
        """Pull the adapter out."""
        for timer in self._timers:
            timer.cancel()
        if self._master >= 0:
            asyncio.get_running_loop().remove_reader(self._master)
            os.close(self._master)
            os.close(self._slave)
            self._master = self._slave = -1
        self.device.unlink(missing_ok=True)

    def say(self, data: bytes) -> None:
        if self._master >= 0:
            os.write(self._master, data)

    def deaf(self) -> None:
        """Take nothing more from the port, as an adapter that died or flow control does."""
        asyncio.get_running_loop().remove_reader(self._master)

    def _readable(self) -> None:
        with contextlib.suppress(OSError):
            self.on_bytes(os.read(self._master, 4096))


class RtuServer(PtySide, RtuSide):
    """``async with RtuServer(folder) as server`` answers RTU on the serial port ``server.device``."""


class AsciiServer(PtySide, AsciiSide):
    """``async with AsciiServer(folder) as server`` answers ASCII on the serial port ``server.device``."""


class RtuTcpServer(RtuSide):
    """A device server: the bytes of the serial line for one client at a time, on ``port`` of the loopback interface."""

    def __init__(self, unit: int = 17) -> None:
        super().__init__(unit)
        self.port = self.connections = 0
        self._listener: asyncio.Server | None = None
        self.client: _Client | None = None

    async def start(self) -> None:
        loop = asyncio.get_running_loop()
        self._listener = await loop.create_server(lambda: _Client(self), "127.0.0.1", self.port)
        self.port = self._listener.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Take it from the network."""
        for timer in self._timers:
            timer.cancel()
        if self._listener is not None:
            self._listener.close()
            await self._listener.wait_closed()
            self._listener = None
        if self.client is not None:
            self.client.transport.abort()
            self.client = None

    def say(self, data: bytes) -> None:
        if self.client is not None:
            self.client.transport.write(data)


class _Client(asyncio.Protocol):
    transport: asyncio.Transport

    def __init__(self, server: RtuTcpServer) -> None:
        self.server = server

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.server.client = self
        self.server.connections += 1

    def data_received(self, data: bytes) -> None:
        self.server.on_bytes(data)

    def connection_lost(self, exc: Exception | None) -> None:
        if self.server.client is self:
            self.server.client = None
