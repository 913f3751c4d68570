"""What one OPC UA driver has seen on the wire."""

from __future__ import annotations

from collections import deque

from drivers.port import DriverStats


class Meter:
    """Counters that outlive the connections, and the last round trips."""

    __slots__ = ("_round_trips", "answered", "missed", "refused", "requests", "strays", "timeouts")

    def __init__(self) -> None:
        self.requests = self.answered = self.timeouts = self.refused = self.strays = self.missed = 0
        self._round_trips: deque[int] = deque(maxlen=512)

    def took(self, nanoseconds: int) -> None:
        """One round trip. Publish requests are none: the server holds them on purpose."""
        self._round_trips.append(nanoseconds)

    def stats(self) -> DriverStats:
        """A snapshot."""
        ordered = sorted(self._round_trips)
        middle, high = (ordered[len(ordered) // 2], ordered[len(ordered) * 99 // 100]) if ordered else (0, 0)
        return DriverStats(
            requests=self.requests,
            answered=self.answered,
            timeouts=self.timeouts,
            refused=self.refused,
            strays=self.strays,
            missed=self.missed,
            p50_ms=middle / 1e6,
            p99_ms=high / 1e6,
        )
