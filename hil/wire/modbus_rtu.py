"""A Modbus RTU server on a pseudo-terminal in front of a virtual PLC.

The client opens ``device``, a symbolic link with a stable name, without parity: a pty knows none, and Linux refuses
to set it. Frames end where their function says (MODBUS over
Serial Line V1.02, 2.5.1: a pty has no 3.5-character gaps); what is not a frame with a good CRC is skipped byte by
byte. Requests to other devices are not answered, broadcasts (0) are carried out without an answer. Without power
the line stays open and nothing answers.
"""

from __future__ import annotations

import asyncio
import os
import tty
from collections.abc import Callable
from pathlib import Path

from hil.plc import PlcOffline, VirtualPlc
from hil.wire.pdu import answer

MAX_ADU = 256
_FIXED = {1: 8, 2: 8, 3: 8, 4: 8, 5: 8, 6: 8, 7: 4, 8: 8, 11: 4, 12: 4, 17: 4, 22: 10, 24: 6}
"""Length of request frames by function code, CRC included."""
_COUNTED = {15: 6, 16: 6, 20: 2, 21: 2, 23: 10}
"""Where a byte count says how long the request is."""


def crc16(data: bytes) -> int:
    """CRC-16/MODBUS (polynomial A001h reflected, start FFFFh)."""
    crc = 0xFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ 0xA001 if crc & 1 else crc >> 1
    return crc


def frame_length(data: bytes | bytearray) -> int | None:
    """Length of the request that begins here; ``None`` when that is not known yet, 0 when it is no request."""
    if len(data) < 2:
        return None
    function = data[1]
    if function in _FIXED:
        return _FIXED[function]
    if function in _COUNTED:
        at = _COUNTED[function]
        return data[at] + at + 3 if len(data) > at else None
    return 0


class ModbusRtuServer:
    """Serves one PLC on a pty. ``sync`` brings the plant up to the present before each request."""

    def __init__(self, plc: VirtualPlc, device_id: int, sync: Callable[[], None], device: Path) -> None:
        self._plc, self._device_id, self._sync = plc, device_id, sync
        self.device = device
        self._buffer = bytearray()
        self._ends: tuple[int, int] | None = None

    async def start(self) -> None:
        """Open the pty and point the symbolic link at it. Raises ``OSError``."""
        if self._ends is not None:
            return
        ours, theirs = os.openpty()
        self._ends = ours, theirs
        try:
            tty.setraw(theirs)
            os.set_blocking(ours, False)
            link = self.device.with_name(f".{self.device.name}.{os.getpid()}")
            link.unlink(missing_ok=True)
            link.symlink_to(os.ttyname(theirs))
            link.replace(self.device)
        except OSError:
            await self.stop()
            raise
        asyncio.get_running_loop().add_reader(ours, self._readable)

    async def stop(self) -> None:
        """Close the pty and take the link away."""
        ends, self._ends = self._ends, None
        if ends is not None:
            asyncio.get_running_loop().remove_reader(ends[0])
            os.close(ends[0])
            os.close(ends[1])
            self.device.unlink(missing_ok=True)

    def _readable(self) -> None:
        assert self._ends is not None
        try:
            data = os.read(self._ends[0], 4096)
        except BlockingIOError:
            return
        self._buffer += data
        while (length := frame_length(self._buffer)) is not None:
            if length and length <= MAX_ADU and len(self._buffer) < length:
                if self._stale(length):
                    continue
                return
            frame = bytes(self._buffer[:length])
            if 4 <= length <= MAX_ADU and crc16(frame[:-2]) == int.from_bytes(frame[-2:], "little"):
                del self._buffer[:length]
                self._request(frame)
            elif length == 0 and self._unknown():
                continue
            else:
                del self._buffer[0]

    def _stale(self, length: int) -> bool:
        """A start that waits for more, while a whole good request to us follows it, was noise: drop it."""
        for at in range(1, len(self._buffer) - 3):
            rest = self._buffer[at:]
            inner = frame_length(rest)
            if inner and rest[0] in (self._device_id, 0) and 4 <= inner <= len(rest):
                frame = bytes(rest[:inner])
                if crc16(frame[:-2]) == int.from_bytes(frame[-2:], "little"):
                    del self._buffer[:at]
                    return True
        return False

    def _unknown(self) -> bool:
        """A function code of unknown length: a frame if all that has come makes one."""
        frame = bytes(self._buffer)
        if 4 <= len(frame) <= MAX_ADU and crc16(frame[:-2]) == int.from_bytes(frame[-2:], "little"):
            self._buffer.clear()
            self._request(frame)
            return True
        return False

    def _request(self, frame: bytes) -> None:
        device_id, pdu = frame[0], frame[1:-2]
        if device_id not in (self._device_id, 0):
            return
        self._sync()
        try:
            response = answer(self._plc, pdu)
        except PlcOffline:
            return
        if device_id == 0 or self._ends is None:
            return
        adu = bytes((device_id,)) + response
        try:
            os.write(self._ends[0], adu + crc16(adu).to_bytes(2, "little"))
        except BlockingIOError:
            return  # nobody reads the line: as on a wire, the answer is gone
