"""Protocol-true Modbus servers for the tests (TCP, and RTU over a pty), which misbehave on command only.

``server.script`` holds what to do with the next requests, one word each; without one the server is honest.
Addresses 0..``SIZE`` - 1 exist in every area; the others are refused with exception 2.
"""

from __future__ import annotations

import asyncio
import os
import pty
import struct
from collections import deque
from pathlib import Path

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


class RtuServer(Answering):
    """``async with RtuServer(folder) as server`` answers on the serial port ``server.device``, a link to a pty."""

    def __init__(self, folder: Path, unit: int = 17) -> None:
        super().__init__()
        self.unit, self.device = unit, folder / "ttyPLC"
        self._master = self._slave = -1
        self._buffer = bytearray()
        self._timers: list[asyncio.TimerHandle] = []

    async def __aenter__(self) -> RtuServer:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def start(self) -> None:
        """Plug the adapter in."""
        self._master, self._slave = pty.openpty()
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

    def _readable(self) -> None:
        try:
            self._buffer += os.read(self._master, 4096)
        except OSError:
            return
        while len(self._buffer) >= 8:
            size = {15: 9 + self._buffer[6], 16: 9 + self._buffer[6], 22: 10}.get(self._buffer[1], 8)
            if len(self._buffer) < size:
                return
            frame = bytes(self._buffer[:size])
            del self._buffer[:size]
            assert crc(frame[:-2]) == frame[-2:], frame.hex(" ")
            if frame[0] == self.unit:
                self._serve(frame[1:-2])

    def _serve(self, pdu: bytes) -> None:
        self.requests.append(pdu)
        word = self.script.popleft() if self.script else "ok"
        reply = self.reply(pdu, word)
        if reply is None:
            return
        unit = self.unit + 1 if word == "wrong_unit" else self.unit
        frame = bytes((unit,)) + reply
        frame += crc(frame)
        if word == "crc":
            frame = frame[:-1] + bytes((frame[-1] ^ 1,))
        if word == "noise_before":
            frame = b"\xff\x00" + frame
        if word == "noise_after":
            frame += b"\x00"
        if word == "echo":
            request = bytes((self.unit,)) + pdu
            frame = request + crc(request)
        if word.startswith("late"):
            self._timers.append(asyncio.get_running_loop().call_later(float(word[4:]), self.say, frame))
        else:
            self.say(frame)
