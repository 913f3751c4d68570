"""What a PLC does with numbered commands: each number once, and in time or not at all.

The same as FB_LW_Command of docs/plc-contract.md, written down here anew.
"""

from __future__ import annotations

import enum

WRAP = 1 << 32
"""Numbers and clock are UDINTs, and are compared by the sign of their difference."""


class Arrival(enum.Enum):
    """What a written number turns out to be."""

    OLD = enum.auto()
    """Nothing new: taken or dropped before, overtaken by a newer one on its way, or no command (0)."""
    NEW = enum.auto()
    LATE = enum.auto()
    """New, but its validity has passed: dropped."""


class NumberedCommand:
    """One command block."""

    def __init__(self) -> None:
        self.last = 0
        """Number last taken or dropped: what the PLC acknowledges."""
        self._known = False

    def restart(self) -> None:
        """The PLC starts, its registers zeroed."""
        self.last = 0
        self._known = False

    def arrived(self, number: int, valid_until: int, clock: int) -> Arrival:
        """The number was written. ``clock`` is the PLC's; a validity up to half its range ahead has not passed."""
        if number == 0 or (self._known and not 0 < (number - self.last) % WRAP < WRAP // 2):
            return Arrival.OLD
        self.last, self._known = number, True
        return Arrival.NEW if (valid_until - clock) % WRAP < WRAP // 2 else Arrival.LATE
