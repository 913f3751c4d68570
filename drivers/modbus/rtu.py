"""Modbus RTU: binary frames with a CRC, told apart by silence (MODBUS over Serial Line V1.02, 2.5.1).

Neither a USB adapter nor a device server keeps the pauses between characters. So a frame is found by its
content — unit, function, the length that follows from them, and the CRC — and silence is only kept, before sending.
"""

from __future__ import annotations

from collections.abc import Callable, Container

from pymodbus.framer import FramerRTU
from pymodbus.pdu import DecodePDU

from drivers.line import make_line
from drivers.modbus.framing import Found, Measure
from drivers.modbus.pdu import Call
from drivers.modbus.serial_wire import SerialWire
from drivers.options import SerialOptions, TcpLineOptions


class RtuFraming:
    """Unit, PDU, CRC with its low byte first."""

    char_gap_ns = 0

    def __init__(self) -> None:
        self._framer = FramerRTU(DecodePDU(False))

    def encode(self, unit: int, pdu: bytes) -> bytes:
        """The frame, 4 to 256 bytes."""
        return self._framer.encode(pdu, unit, 0)

    def find(
        self, heard: bytearray, units: Container[int], measure: Measure, settled: bool
    ) -> tuple[Found | None, bool]:
        """The first sound frame of one of ``units``; see :class:`~drivers.modbus.framing.Framing`."""
        for at, unit in enumerate(heard):
            if unit not in units:
                continue
            size = measure(unit, bytes(heard[at + 1 :]))
            end = at + size + 3
            if size < 0:
                continue
            if size == 0 or len(heard) < end:
                if settled:
                    continue
                return None, True
            if self._sound(heard, at, end):
                return Found(at, end, unit, bytes(heard[at + 1 : end - 2])), False
        return None, False

    def damaged(self, heard: bytearray, unit: int, call: Call) -> bool:
        """Whether unit, function and byte count (or echo) are there, and as many bytes as belong to them."""
        at = heard.find(bytes((unit,)) + call.echo)
        if at < 0:
            return False
        size = call.length(bytes(heard[at + 1 :]))
        return size > 0 and len(heard) >= at + size + 3

    def _sound(self, heard: bytearray, at: int, end: int) -> bool:
        return self._framer.check_CRC(bytes(heard[at : end - 2]), int.from_bytes(heard[end - 2 : end], "big"))


class RtuWire(SerialWire):
    """RTU on a serial port, or over TCP to a device server that passes the bytes on."""

    def __init__(self, line: SerialOptions | TcpLineOptions, *, echo: bool, monotonic_ns: Callable[[], int]) -> None:
        super().__init__(make_line(line), RtuFraming(), echo=echo, monotonic_ns=monotonic_ns)
