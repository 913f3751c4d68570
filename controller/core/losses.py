"""Lost time, attributed to the station that caused it.

A starved station loses no time of its own: the cause is looked for upstream, along the declared topology, until
a station that is not itself starved; a blocked one likewise downstream. Every instant of a station that is down
while the line produces belongs to exactly one cause.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from controller.core.events import StopRecorded
from controller.core.packml import State
from controller.core.station import ScanContext, Station

S = State
RECORD_NS = 2_000_000_000
"""Shorter stops count as lost time but are not recorded one by one."""


@dataclass(slots=True)
class Stop:
    """A stop in progress."""

    cause: str
    reason: str
    started_ns: int
    started_utc: int


class LossLedger:
    """Seconds lost per (station, causing station), and a record of each stop as it ends."""

    def __init__(self, upstream: Mapping[str, Sequence[str]], downstream: Mapping[str, Sequence[str]]) -> None:
        self._upstream, self._downstream = upstream, downstream
        self._open: dict[str, Stop] = {}
        self._now_ns = 0
        self.lost_ns: dict[tuple[str, str], int] = {}

    def scan(self, producing: bool, stations: Mapping[str, Station], context: ScanContext) -> None:
        """Account for this scan; ``producing`` is whether the line is meant to produce now."""
        self._now_ns = context.now_ns
        for name, station in stations.items():
            stop = self._open.get(name)
            if not producing or station.state is S.EXECUTE:
                if stop is not None:
                    self._end(name, context)
                continue
            cause = self.cause(name, stations)
            if stop is not None and cause != name and stations[cause].state is S.EXECUTE:
                cause = stop.cause  # all are running again: the gap that it made is still on its way through the line
            if stop is not None and stop.cause != cause:
                self._end(name, context)
                stop = None
            if stop is None:
                reason = station.stop_reason or station.state.text
                self._open[name] = Stop(cause, reason, context.now_ns, context.utc_ns)

    def cause(self, name: str, stations: Mapping[str, Station]) -> str:
        """The station that makes ``name`` stand."""
        seen = {name}
        while True:
            station = stations[name]
            if station.state in (S.SUSPENDING, S.SUSPENDED) and (station.starved or station.blocked):
                way = self._upstream if station.starved else self._downstream
                neighbours = [n for n in way.get(name, ()) if n not in seen]
                if neighbours:
                    # among several, the one that is not running; else the first
                    name = next((n for n in neighbours if stations[n].state is not S.EXECUTE), neighbours[0])
                    seen.add(name)
                    continue
            return name

    def caused_by(self, name: str) -> int:
        """Nanoseconds that all stations lost through ``name``, up to the last scan."""
        ended = sum(lost for (_, cause), lost in self.lost_ns.items() if cause == name)
        return ended + sum(self._now_ns - stop.started_ns for stop in self._open.values() if stop.cause == name)

    def _end(self, name: str, context: ScanContext) -> None:
        stop = self._open.pop(name)
        lost = context.now_ns - stop.started_ns
        key = (name, stop.cause)
        self.lost_ns[key] = self.lost_ns.get(key, 0) + lost
        if lost < RECORD_NS:
            return
        context.events.append(
            StopRecorded(
                at=context.utc_ns,
                station=name,
                reason=stop.reason,
                cause_station=stop.cause,
                started=stop.started_utc,
                seconds=round(lost / 1e9, 3),
            )
        )
