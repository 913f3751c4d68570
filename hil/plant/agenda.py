"""What will happen when: the event heap that all of a simulated line shares."""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush

MS = 1_000_000
SECOND = 1_000_000_000
NEVER = 1 << 62
"""A time that does not come (146 years)."""


class Agenda:
    """Entries are carried out in order of time, entries of one instant in the order they were made.

    An entry cannot be withdrawn; whoever changes its mind ignores it when it comes.
    """

    __slots__ = ("_heap", "_made", "now")

    def __init__(self) -> None:
        self.now = 0
        self._heap: list[tuple[int, int, Callable[[], None]]] = []
        self._made = 0

    def at(self, when: int, action: Callable[[], None]) -> None:
        """Carry out ``action`` at ``when`` (ns), or as the next thing if that has passed."""
        self._made += 1
        heappush(self._heap, (when if when > self.now else self.now, self._made, action))

    def advance(self, until_ns: int) -> None:
        """Carry out everything due up to and including ``until_ns``. Raises ``ValueError`` for a time in the past."""
        if until_ns < self.now:
            raise ValueError(f"time cannot go back from {self.now} to {until_ns} ns")
        heap = self._heap
        while heap and heap[0][0] <= until_ns:
            self.now, _, action = heappop(heap)
            action()
        self.now = until_ns
