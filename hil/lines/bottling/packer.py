"""The case packer: rows of up to three bottles, gripped and set into a case by a portal axis."""

from __future__ import annotations

import math
from collections.abc import Iterator
from random import Random

from hil.plant import MS, NEVER, SECOND, Agenda, Bottle, Station

ROW = 3
TRAVEL_MM, ACCELERATION, SPEED = 600.0, 4000.0, 1200.0
GRIP, RELEASE = 200 * MS, 150 * MS
TRAVEL = 800 * MS
"""Of 600 mm at 4 m/s² and 1.2 m/s."""
CASE_CHANGE = 700 * MS
PARTIAL_AFTER = 1500 * MS
"""A row that is not complete is picked when no bottle has followed for this long."""


class Packer(Station):
    """Collects a row, carries it into the case; a full case is ejected. A bottle counts as packed when it is set."""

    def __init__(self, agenda: Agenda, rng: Random, rail: float) -> None:
        super().__init__(agenda, "packer", rng, length=375.0, capacity=5, rail=rail)
        self.case_size = 0
        self.in_case = 0
        self.cases = 0
        self.packed_bad = 0
        """Packed bottles whose cap or label is truly bad."""
        self._case_format = ""
        self._row: list[Bottle] = []
        self._carried: list[Bottle] = []
        self._last_take = 0
        self._place_due = NEVER
        self._home_due = self._case_due = 0

    def bottles(self) -> Iterator[Bottle]:
        """Every bottle in the station that is not in a case yet."""
        yield from self.zone
        yield from self._row
        yield from self._carried

    def x_position(self) -> float:
        """Portal axis, mm from home (the pick-up)."""
        clock = self.clock.value(self.agenda.now)
        if self._carried:
            return trapezoid(clock - (self._place_due - RELEASE - TRAVEL))
        return TRAVEL_MM - trapezoid(clock - (self._home_due - TRAVEL)) if clock < self._home_due else 0.0

    def vacuum(self) -> float:
        """Gripper vacuum, kPa: 80 with bottles, P' = (P_sp - P) / 0.3 s."""
        clock = self.clock.value(self.agenda.now)
        if self._carried:
            gripped = clock - (self._place_due - RELEASE - TRAVEL - GRIP)
            return 80.0 * -math.expm1(-gripped / (0.3 * SECOND))
        released = clock - (self._home_due - TRAVEL)
        return 80.0 * math.exp(-released / (0.3 * SECOND)) if 0 <= released < 10 * SECOND else 0.0

    def work(self) -> None:
        """Set down, collect, pick up."""
        while self.moving and self._one_step(self.clock.value(self.agenda.now)):
            pass

    def next_due(self, now: int) -> int:
        """The earliest of set-down, pick-up and arrival."""
        due = self._place_due
        if self._row and not self._carried:
            ready = max(self._home_due, self._case_due)
            if len(self._row) < self._wanted():
                ready = max(ready, self._last_take + PARTIAL_AFTER)
            due = min(due, ready)
        when = self.clock.when(due, now) if due < NEVER else NEVER
        if self.zone and len(self._row) < self._wanted() and not self.misfit:
            when = min(when, self._arrival(now))
        return when

    def _wanted(self) -> int:
        """Bottles in the next row: what the case still takes, at most :data:`ROW`."""
        room = self.case_size - self.in_case - len(self._carried)
        return min(ROW, room if room > 0 else self.case_size)

    def _one_step(self, clock: int) -> bool:
        if self._place_due <= clock:
            self._place(clock)
            return True
        if len(self._row) < self._wanted():
            bottle = self._take()
            if bottle is not None:
                self._row.append(bottle)
                self._last_take = clock
                return True
        complete = len(self._row) >= self._wanted() or clock >= self._last_take + PARTIAL_AFTER
        if self._row and complete and not self._carried and clock >= max(self._home_due, self._case_due):
            return self._pick(clock)
        return False

    def _pick(self, clock: int) -> bool:
        kind = self._row[0].format.name
        if self.in_case and (self._case_format != kind or self.in_case >= self.case_size):
            self._eject(clock)
            return True
        self._case_format = kind
        self._carried, self._row = self._row, []
        self._place_due = clock + GRIP + TRAVEL + RELEASE
        return True

    def _place(self, clock: int) -> None:
        placed, self._carried = self._carried, []
        self._place_due, self._home_due = NEVER, clock + TRAVEL
        self.in_case += len(placed)
        for bottle in placed:
            self._book(self.tally.good, bottle)
            self.packed_bad += not (bottle.cap_ok and bottle.label_ok)
            self.sensors.bottle_out()
        if self.in_case >= self.case_size:
            self._eject(clock)

    def _eject(self, clock: int) -> None:
        self.cases += 1
        self.in_case = 0
        self._case_due = clock + CASE_CHANGE
        self.sensors.result()


def trapezoid(elapsed: int) -> float:
    """Position (mm) ``elapsed`` ns into a travel of :data:`TRAVEL_MM`."""
    t, total, ramp = elapsed / SECOND, TRAVEL / SECOND, SPEED / ACCELERATION
    if t <= 0.0:
        return 0.0
    if t >= total:
        return TRAVEL_MM
    if t < ramp:
        return ACCELERATION * t * t / 2
    if t > total - ramp:
        return TRAVEL_MM - ACCELERATION * (total - t) ** 2 / 2
    return SPEED * (t - ramp / 2)
