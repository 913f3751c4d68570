"""Pure: what the framings of a serial line have in common.

A frame carries no length. Where it ends follows from its function, and for some functions from a byte count in it.
"""

from __future__ import annotations

from collections.abc import Callable, Container
from typing import NamedTuple, Protocol

from drivers.modbus.pdu import Call

LOOPBACK = 8
FIXED = {5: 5, 6: 5, LOOPBACK: 5, 15: 5, 16: 5, 22: 7}
"""Bytes of the answer's PDU."""
COUNTED = frozenset({1, 2, 3, 4, 17, 23})
"""Functions whose answer gives its number of bytes after the function code."""

Measure = Callable[[int, bytes], int]
"""From a unit and what follows it to the PDU's size: 0 is too short to tell, -1 no frame that we could know."""


class Found(NamedTuple):
    """A frame with the right checksum: ``noise`` bytes before it, and where it ends."""

    noise: int
    end: int
    unit: int
    pdu: bytes


class Framing(Protocol):
    """How a PDU becomes a frame on the line, and back. Pure."""

    char_gap_ns: int
    """Longest pause between two characters of a frame; 0 where it is not bounded (RTU over USB or TCP cannot be)."""

    def encode(self, unit: int, pdu: bytes) -> bytes:
        """The frame."""

    def find(
        self, heard: bytearray, units: Container[int], measure: Measure, settled: bool
    ) -> tuple[Found | None, bool]:
        """The first sound frame of one of ``units``, and whether one may have begun before that is not complete yet.

        With ``settled`` nothing more is expected, and what is not complete is passed over.
        """

    def damaged(self, heard: bytearray, unit: int, call: Call) -> bool:
        """Whether a whole answer of ``unit`` to ``call`` is there, but for its checksum."""


def pdu_size(head: bytes, call: Call | None) -> int:
    """Bytes of the answer's PDU that begins with ``head``: 0 while too short to tell, -1 where it is no answer.

    ``call`` is the request of that function which may be meant; without it, a function of unknown length is no answer.
    """
    if not head:
        return 0
    function, size = head[0], -1
    if function & 0x80:
        return 2
    if function in COUNTED:
        if len(head) < 2:
            return 0
        return 2 + head[1] if 1 <= head[1] <= 251 else -1
    if call is not None:
        size = call.length(head)
    return FIXED.get(function, -1) if size < 0 else size
