"""The lying server of :mod:`bench.adversary` on a serial line: Modbus RTU over a pseudo-terminal.

An RTU frame carries no transaction id. An earlier answer given again *in the place of* the right one, same unit,
function and length, can be told by nobody; so that is not among the oddities. One that comes after the right one, or
after the client gave up, is.
"""

from __future__ import annotations

import asyncio
import os
import random
import termios
import tty

from bench.adversary import Liar, Memory
from hil.wire.modbus_rtu import crc16

RTU_ODDITIES = (
    "wrong_unit", "wrong_function", "wrong_exception", "no_such_exception", "byte_count", "short", "long", "empty",
    "echo_request", "bytewise", "doubled", "late", "silence", "garbage", "noise_before", "noise_after",
    "bit_error", "cut",
)  # fmt: skip


def _crc(data: bytes) -> bytes:
    return crc16(data).to_bytes(2, "little")


class AdversaryRtu:
    """``async with AdversaryRtu(memory, rng, share, late_s=…) as server``: answers every unit on ``server.device``."""

    def __init__(
        self,
        memory: Memory,
        rng: random.Random,
        share: float,
        *,
        late_s: float,
        only: tuple[str, ...] = RTU_ODDITIES,
    ) -> None:
        self.liar = Liar(memory, rng, share, late_s=late_s, only=only)
        self._rng, self._late_s = rng, late_s
        self._buffer = bytearray()
        self._master = -1
        self.device = ""

    async def __aenter__(self) -> AdversaryRtu:
        self._master, slave = os.openpty()
        tty.setraw(slave, termios.TCSANOW)
        self.device = os.ttyname(slave)
        os.close(slave)
        os.set_blocking(self._master, False)
        asyncio.get_running_loop().add_reader(self._master, self._read)
        return self

    async def __aexit__(self, *_: object) -> None:
        asyncio.get_running_loop().remove_reader(self._master)
        os.close(self._master)
        self._master = -1

    def _read(self) -> None:
        try:
            self._buffer += os.read(self._master, 4096)
        except OSError:  # nobody has the line open at the moment
            return
        buffer = self._buffer
        while len(buffer) >= 8:
            size = 9 + buffer[6] if buffer[1] in (15, 16) else 8
            if len(buffer) < size:
                return
            frame = bytes(buffer[:size])
            if _crc(frame[:-2]) != frame[-2:]:
                buffer.clear()
                return
            del buffer[:size]
            self._answer(frame[0], frame[1:-2])

    def _answer(self, unit: int, request: bytes) -> None:
        liar, rng = self.liar, self._rng
        name, honest = liar.draw(), liar.memory.answer(request)
        body = bytes((unit ^ (1 if name == "wrong_unit" else 0),)) + liar.mangle(name, request, honest)
        frame = body + _crc(body)
        if name == "silence":
            return
        if name == "late":
            self._later(self._late_s * rng.uniform(1.0, 2.0), frame)
            return
        if name == "bytewise":
            for number in range(len(frame)):
                self._later(number * 0.0002, frame[number : number + 1])
            return
        if name == "bit_error":
            place = rng.randrange(len(frame))
            frame = frame[:place] + bytes((frame[place] ^ 1 << rng.randrange(8),)) + frame[place + 1 :]
        elif name == "cut":
            frame = frame[: rng.randrange(1, len(frame))]
        elif name == "doubled":
            frame += frame
        elif name == "garbage":
            frame = rng.randbytes(rng.randrange(1, 200))
        elif name == "noise_before":
            frame = rng.randbytes(rng.randrange(1, 4)) + frame
        elif name == "noise_after":
            frame += rng.randbytes(rng.randrange(1, 4))
        self._write(frame)

    def _later(self, delay_s: float, data: bytes) -> None:
        asyncio.get_running_loop().call_later(delay_s, self._write, data)

    def _write(self, data: bytes) -> None:
        if self._master >= 0:
            try:
                os.write(self._master, data)
            except OSError:  # full, or nobody has the line open: as lost as on a real one
                return
