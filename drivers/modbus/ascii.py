"""Modbus ASCII: ``:``, hexadecimal digits with an LRC, CR LF (MODBUS over Serial Line V1.02, 2.5.2)."""

from __future__ import annotations

import binascii
from collections.abc import Callable, Container

from pymodbus.framer import FramerAscii
from pymodbus.pdu import DecodePDU

from drivers.line import make_line
from drivers.modbus.framing import Found, Measure
from drivers.modbus.pdu import Call
from drivers.modbus.serial_wire import SerialWire
from drivers.options import SerialOptions, TcpLineOptions

START, STOP = b":", b"\r\n"
SHORTEST, LONGEST = 3, 255
"""Bytes between the colon and CR LF: unit, a PDU of 1 to 253 bytes, LRC."""


class AsciiFraming:
    """Two digits for each byte. Upper and lower case are taken; everything else is strict."""

    char_gap_ns = 1_000_000_000
    """2.5.2.1: a pause of more than a second inside a frame is an error."""

    def __init__(self) -> None:
        self._framer = FramerAscii(DecodePDU(False))

    def encode(self, unit: int, pdu: bytes) -> bytes:
        """The frame, 9 to 513 characters."""
        return self._framer.encode(pdu, unit, 0)

    def find(
        self, heard: bytearray, units: Container[int], measure: Measure, settled: bool
    ) -> tuple[Found | None, bool]:
        """The first sound frame of one of ``units``. Its length needs no measuring, and no settling: it has an end."""
        at = heard.find(START)
        while at >= 0:
            stop, again = heard.find(STOP, at), heard.find(START, at + 1)
            if again >= 0 and (again < stop or stop < 0):
                at = again  # a colon always begins a frame
                continue
            if stop < 0:
                break
            body = _bytes(heard[at + 1 : stop])
            if body and sum(body) & 0xFF == 0 and body[0] in units:
                return Found(at, stop + 2, body[0], body[1:-1]), False
            at = again
        return None, False

    def damaged(self, heard: bytearray, unit: int, call: Call) -> bool:
        """Whether a whole frame is there that begins as the answer would."""
        at = heard.upper().find(b":%02X%02X" % (unit, call.pdu[0]))
        return at >= 0 and heard.find(STOP, at) >= 0


class AsciiWire(SerialWire):
    """ASCII on a serial port, or over TCP to a device server that passes the bytes on."""

    def __init__(self, line: SerialOptions | TcpLineOptions, *, echo: bool, monotonic_ns: Callable[[], int]) -> None:
        super().__init__(make_line(line), AsciiFraming(), echo=echo, monotonic_ns=monotonic_ns)


def _bytes(digits: bytearray) -> bytes:
    """What the digits stand for; nothing where they are none, or too many or few."""
    try:
        body = binascii.unhexlify(digits)
    except binascii.Error:
        return b""
    return body if SHORTEST <= len(body) <= LONGEST else b""
