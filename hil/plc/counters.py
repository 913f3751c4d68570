"""What every machine of a line shows about its bottles: retained counters, starved and blocked."""

from __future__ import annotations

from hil.plant import MS, NEVER, Agenda, Sensors, Station
from hil.plc.virtual import VirtualPlc

DELAY = 500 * MS
"""How long starved or blocked must last before it is shown."""
ROLL_OVER = 1 << 32


class Counters(Sensors):
    """Counts in, good and rejected (32 bit, retained); bottles inside; starved and blocked with their delay.

    Base of the machines' programs. ``wanting`` says whether an empty station counts as starved; by default any.
    """

    def __init__(self, plc: VirtualPlc, agenda: Agenda, station: Station) -> None:
        self.plc, self.agenda, self.station, self.name = plc, agenda, station, station.name
        self.count_in = self.count_good = self.count_reject = self.inside = 0
        self._shows = {
            point: plc.setter(f"{self.name}.{point}")
            for point in (
                "count_in", "count_good", "count_reject", "in_process", "empty", "starved", "blocked",
                "fault_code", "door_closed", "estop_ok",
            )
        }  # fmt: skip
        self._show_in, self._show_good = self._shows["count_in"], self._shows["count_good"]
        self._show_inside, self._show_empty = self._shows["in_process"], self._shows["empty"]
        self._starved_since = self._blocked_since = NEVER
        self._delay_due = NEVER
        station.sensors = self

    def bottle_in(self) -> None:
        """Count a bottle in."""
        self.count_in = (self.count_in + 1) % ROLL_OVER
        self._show_in(self.count_in)
        self._inside(1)

    def bottle_out(self) -> None:
        """Count a good bottle out."""
        self.count_good = (self.count_good + 1) % ROLL_OVER
        self._show_good(self.count_good)
        self._inside(-1)

    def bottle_rejected(self) -> None:
        """Count a rejected bottle."""
        self.count_reject = (self.count_reject + 1) % ROLL_OVER
        self._shows["count_reject"](self.count_reject)
        self._inside(-1)

    def discharge_changed(self) -> None:
        """A bottle waits, or no longer."""
        self.watch_flow()

    def wanting(self) -> bool:
        """Whether the empty station wants bottles."""
        return True

    def show_counters(self) -> None:
        """Show everything anew, after power-up."""
        self._show_in(self.count_in)
        self._show_good(self.count_good)
        self._shows["count_reject"](self.count_reject)
        self._starved_since = self._blocked_since = self._delay_due = NEVER
        self._inside(0)

    def watch_flow(self) -> None:
        """Begin or end the delays of starved and blocked."""
        running, now = self.station.running, self.agenda.now
        starved = running and self.inside == 0 and self.wanting()
        blocked = running and self.station.waiting
        if starved != (self._starved_since != NEVER):
            self._starved_since = now if starved else NEVER
            if not starved:
                self._shows["starved"](False)
        if blocked != (self._blocked_since != NEVER):
            self._blocked_since = now if blocked else NEVER
            if not blocked:
                self._shows["blocked"](False)
        if (starved or blocked) and self._delay_due == NEVER:
            self._delay(now + DELAY)

    def _inside(self, step: int) -> None:
        before = self.inside
        self.inside = inside = before + step
        self._show_inside(inside)
        if inside == 0 or before == 0:
            self._show_empty(inside == 0)
            self.watch_flow()

    def _delay(self, due: int) -> None:
        self._delay_due = due
        self.agenda.at(due, self._delayed)

    def _delayed(self) -> None:
        now = self.agenda.now
        if now != self._delay_due:
            return
        self._delay_due = NEVER
        pending: list[int] = []
        for since, show in (
            (self._starved_since, self._shows["starved"]),
            (self._blocked_since, self._shows["blocked"]),
        ):
            if since == NEVER:
                continue
            if now - since >= DELAY:
                show(True)
            else:
                pending.append(since + DELAY)
        if pending:
            self._delay(min(pending))
