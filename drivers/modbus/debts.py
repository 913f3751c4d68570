"""Pure: what a unit of a serial line may still say to requests that were given up, and when it may be asked again."""

from __future__ import annotations

from drivers.modbus.pdu import Call

DIRECT_FACTOR = 4
"""Silence, in its longest time-outs, after which a unit that ignores loop-backs is asked without one."""
UNKNOWN_NS = 10_000_000_000
"""The least of that silence for a unit of which it is not known whether it answers loop-backs."""
REPLACED_NS = 60_000_000_000
"""And for one that has answered them: it must have been replaced by one that does not."""
ANYTHING = 0
"""Owed by a unit that spoke unasked: the answer to no function in particular."""
MANY = 1 << 30
"""Loop-backs that were not counted: only a pause tells that there are no more."""


class Debts:
    """What one unit may still say."""

    __slots__ = ("direct_ns", "longest_ns", "loops", "mute", "owes", "rest_until_ns", "unreturned")

    def __init__(self) -> None:
        self.owes: dict[int, Call | None] = {}
        """Requests given up since the last proof that nothing older is to come, by function."""
        self.rest_until_ns = 0
        self.longest_ns = 0
        """Longest time-out it was given."""
        self.direct_ns = 0
        """From when on it may be asked without a loop-back, if it is mute."""
        self.mute = False
        """It left a loop-back unanswered, and was not heard since."""
        self.loops: bool | None = None
        """Whether it answers loop-backs; ``None`` as long as it was not seen."""
        self.unreturned = 0
        """Loop-backs that it may still answer. Their refusals are all alike: only the last one proves anything."""

    def may_owe(self, function: int) -> bool:
        """Whether an answer of this function could be that of a request given up."""
        return function in self.owes or ANYTHING in self.owes

    def owe_nothing(self) -> None:
        """It answered something newer than all of it."""
        self.owes.clear()
        self.unreturned = 0

    def returned(self, *, refused: bool) -> bool:
        """It answered an older loop-back. True: it refused one that was not counted, so there may be more."""
        if refused and not self.unreturned:
            self.unreturned = MANY
            self.owes[ANYTHING] = None
            return True
        self.unreturned -= self.unreturned > 0
        return False

    def be_patient(self, now: int) -> None:
        """It spoke, or was left without an answer, and still owes one."""
        least = 0 if self.loops is False else REPLACED_NS if self.loops else UNKNOWN_NS
        self.direct_ns = max(self.direct_ns, now + max(least, DIRECT_FACTOR * self.longest_ns))
