"""One serial line to one Modbus RTU device (MODBUS over Serial Line V1.02).

A frame on a serial line carries no transaction id: a late answer looks like the answer to the next request.
So after any doubt — no answer in time, noise, a wrong frame, a cancelled wait — the line is left silent for longer
than the time-out and everything heard is thrown away, before anything is sent again. That silence is kept at
the start of the next exchange, and outlives a close, because the device does not know that we closed.

One bad exchange is an :class:`ExchangeFailed`; the third in a row is a :class:`LinkDown`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import termios
from collections.abc import Callable
from typing import NoReturn

import serial
from pymodbus.framer import FramerRTU
from pymodbus.pdu import DecodePDU

from drivers.modbus.pdu import BadReply, Call, ExceptionReply
from drivers.port import ExchangeFailed, LinkDown

GIVE_UP_AFTER = 3
SHORTEST_FRAME = 5
MAX_FRAME = 256
SILENCE_FACTOR = 1.5
"""Silence after doubt, in time-outs."""


class NotSent(ExchangeFailed):
    """The exchange failed before anything was sent."""


class RtuChannel:
    """The serial port and the exchanges on it. The port is opened exclusively, non-blocking, 8 data bits."""

    single_writes = False

    def __init__(
        self,
        name: str,
        device: str,
        unit: int,
        *,
        baudrate: int,
        parity: str,
        stopbits: int,
        monotonic_ns: Callable[[], int],
    ) -> None:
        self.endpoint = f"{device} {baudrate} 8{parity}{stopbits} unit {unit}"
        self._name, self._device, self._unit = name, device, unit
        self._baudrate, self._parity, self._stopbits = baudrate, parity, stopbits
        self._now = monotonic_ns
        # 3.5 characters of 11 bits between frames; above 19200 baud a fixed 1.75 ms (2.5.1.1).
        self._gap_ns = max(1_750_000, 38_500_000_000 // baudrate)
        self._silence_ns = self._gap_ns
        self._heard_ns = 0
        self._framer = FramerRTU(DecodePDU(False))
        self._port: serial.Serial | None = None
        self._fd = -1
        self._lost = "not connected"
        self._buffer = bytearray()
        self._arrived = asyncio.Event()
        self._failures = 0

    def down(self) -> str:
        """Why no request can be sent now; empty when one can."""
        return self._lost

    async def open(self, timeout_s: float) -> None:
        """Open the port. Raises :class:`LinkDown`. ``timeout_s`` is not needed: opening does not wait."""
        await self.close()
        # A pseudo-terminal has no parity bit, and refuses one as soon as nothing else is left to change.
        parity = "N" if os.path.realpath(self._device).startswith("/dev/pts/") else self._parity  # noqa: ASYNC240
        try:
            self._port = serial.Serial(
                self._device,
                baudrate=self._baudrate,
                parity=parity,
                stopbits=self._stopbits,
                timeout=0,
                exclusive=True,
            )
        except (OSError, ValueError, termios.error) as exc:  # SerialException is an OSError
            raise self._down(
                f"cannot open the serial port: {exc}", "check the adapter, its by-id path and the rights"
            ) from exc
        self._fd = self._port.fileno()
        os.set_blocking(self._fd, False)
        self._lost, self._failures = "", 0
        self._buffer.clear()
        self._heard_ns = max(self._heard_ns, self._now())
        asyncio.get_running_loop().add_reader(self._fd, self._on_readable)

    async def exchange(self, call: Call, timeout_s: float) -> bytes:
        """Send one request and return its answer's data; ``timeout_s`` runs from the sending on.

        Raises :class:`LinkDown`, :class:`ExchangeFailed`, and ``ExceptionReply`` when the device refuses.
        """
        await self._keep_silence(timeout_s)
        frame = self._framer.encode(call.pdu, self._unit, 0)
        self._silence_ns = self._long_silence_ns(timeout_s)  # doubt, until the right answer has come
        try:
            async with asyncio.timeout(timeout_s):
                await self._send(frame)
                reply = await self._receive(call)
        except TimeoutError:
            heard = f", only {bytes(self._buffer[:16]).hex(' ')}" if self._buffer else ""
            self._fail(f"{call.what}: no answer within {timeout_s:g} s{heard}", timed_out=True)
        except BadReply as exc:
            self._fail(str(exc))
        finally:
            self._heard_ns = self._now()
        try:
            data = call.payload(reply)
        except BadReply as exc:
            self._fail(str(exc))
        except ExceptionReply:
            self._silence_ns, self._failures = self._gap_ns, 0
            raise
        self._silence_ns, self._failures = self._gap_ns, 0
        return data

    async def close(self) -> None:
        """Close the port. Safe at any time, and more than once."""
        port, self._port = self._port, None
        self._end("not connected")
        self._lost = "not connected"
        if port is not None:
            with contextlib.suppress(OSError):
                port.close()

    async def _keep_silence(self, timeout_s: float) -> None:
        """Wait until nothing was heard for long enough; then forget what was heard."""
        if len(self._buffer) >= SHORTEST_FRAME:  # less is the noise of a line changing hands
            self._silence_ns = self._long_silence_ns(timeout_s)
        limit = self._now() + 2 * self._silence_ns + int(timeout_s * 1e9)
        while not self._lost:
            now = self._now()
            wait = self._heard_ns + self._silence_ns - now
            if wait <= 0:
                self._buffer.clear()
                return
            if now > limit:
                self._fail("the line does not fall silent", NotSent)
            self._arrived.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait / 1e9):
                    await self._arrived.wait()
        raise self._down(self._lost)

    def _long_silence_ns(self, timeout_s: float) -> int:
        return int(SILENCE_FACTOR * timeout_s * 1e9) + self._gap_ns

    async def _send(self, frame: bytes) -> None:
        """Hand the frame to the port, which takes it at once unless flow control or a dead adapter stalls it."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                frame = frame[os.write(self._fd, frame) :]
            except BlockingIOError:
                pass
            except OSError as exc:
                self._end(f"serial port lost: {exc}")
            if self._lost:
                raise self._down(self._lost)
            if not frame:
                return
            writable = asyncio.Event()
            loop.add_writer(self._fd, writable.set)
            try:
                await writable.wait()
            finally:
                if self._fd >= 0:
                    loop.remove_writer(self._fd)

    async def _receive(self, call: Call) -> bytes:
        """Collect bytes until the answer is complete. Raises :class:`BadReply` as soon as it cannot be one."""
        while True:
            if self._lost:
                raise self._down(f"{call.what}: {self._lost}")
            heard = bytes(self._buffer)
            if heard and heard[0] != self._unit:
                raise BadReply(f"{call.what}: unit {heard[0]} answers instead of {self._unit}, or noise")
            refused = len(heard) > 1 and heard[1] & 0x80
            size = 5 if refused else call.size + 3
            if len(heard) >= size:
                if not self._framer.check_CRC(heard[: size - 2], int.from_bytes(heard[size - 2 : size], "big")):
                    raise BadReply(f"{call.what}: checksum (CRC) wrong")
                del self._buffer[:size]
                return heard[1 : size - 2]
            self._arrived.clear()
            await self._arrived.wait()

    def _on_readable(self) -> None:
        try:
            data = os.read(self._fd, 4096)
        except BlockingIOError:
            return
        except OSError as exc:
            self._end(f"serial port lost: {exc}")
            return
        if not data:
            self._end("serial port lost: end of file")
            return
        self._heard_ns = self._now()
        if len(self._buffer) <= MAX_FRAME:  # more than a frame is noise anyway; do not hoard it
            self._buffer += data
        self._arrived.set()

    def _end(self, reason: str) -> None:
        """Stop listening: a lost port stays readable for ever and would spin the loop."""
        self._lost = self._lost or reason
        fd, self._fd = self._fd, -1
        if fd >= 0:
            loop = asyncio.get_running_loop()
            loop.remove_reader(fd)
            loop.remove_writer(fd)
        self._arrived.set()

    def _fail(self, what: str, kind: type[ExchangeFailed] = ExchangeFailed, *, timed_out: bool = False) -> NoReturn:
        self._failures += 1
        hint = "check wiring, termination, baud rate, parity and unit"
        if self._failures >= GIVE_UP_AFTER:
            self._end(f"{what}, {self._failures} times in a row")
            raise self._down(self._lost, hint, timed_out=timed_out) from None
        raise kind(self._name, what, where=self.endpoint, hint=hint, timed_out=timed_out) from None

    def _down(self, what: str, hint: str = "", *, timed_out: bool = False) -> LinkDown:
        return LinkDown(self._name, what, where=self.endpoint, hint=hint, timed_out=timed_out)
