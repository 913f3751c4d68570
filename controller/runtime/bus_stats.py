"""Pure: what a link has done, in figures."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

S = 1_000_000_000
WINDOW_NS = 5 * S
"""A rate is over the last five seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkStats:
    """What a link has done since it was made. Counts never reset."""

    up: bool
    reason: str
    """Why it is not up, or why it last was not."""
    requests: int
    """Group reads and writes attempted."""
    timeouts: int
    failed: int
    """Connections and reads that failed otherwise."""
    refused: int
    """Reads that the device refused."""
    rejected: int
    """Writes rejected."""
    unknown: int
    """Writes of unknown outcome."""
    reconnects: int
    """Connections made after the first."""
    restarts: int
    """Restarts of the PLC, by its boot counter."""
    skipped: int
    """Polling periods left out because the link was busy."""
    last_round_trip_ms: float
    """Duration of the last group read."""
    requests_per_s: float
    """Requests on the wire (Modbus PDUs, OPC UA service calls), mean of the last seconds."""
    p50_ms: float
    """Median round trip of one request on the wire."""
    p99_ms: float
    late: int
    """Answers to requests that had been given up: dropped."""
    strays: int
    """Frames that fit no request: never used."""
    missed: int
    """Changes that a subscription lost, each read anew."""
    breaker: str
    """``closed``: in use; ``open``: silent on a shared link, probed within its budget."""


class Rate:
    """How fast a counter rises, over the last seconds. It is told now and then, whenever somebody looks."""

    __slots__ = ("_seen",)

    def __init__(self) -> None:
        self._seen: deque[tuple[int, int]] = deque()

    def note(self, now: int, count: int) -> None:
        """The counter's value now. Times rise."""
        self._seen.append((now, count))
        while len(self._seen) > 2 and self._seen[1][0] <= now - WINDOW_NS:
            self._seen.popleft()

    def per_s(self) -> float:
        """Mean rise per second over the window, or between the first and the last value when that is longer."""
        if len(self._seen) < 2 or self._seen[-1][0] <= self._seen[0][0]:
            return 0.0
        (then, before), (now, count) = self._seen[0], self._seen[-1]
        return (count - before) * S / (now - then)
