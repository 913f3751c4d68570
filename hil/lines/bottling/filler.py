"""The filler: four nozzles over four scales, a product bowl, and a star wheel that spaces bottles out again."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator
from random import Random

from hil.plant import MS, NEVER, SECOND, Agenda, Bottle, Station

NOZZLES = 4
COARSE, FINE = 160.0, 35.0
"""Flow of the valves at nominal level, g/s."""
DEAD_S, SCALE_LAG_S = 0.08, 0.06
FINE_PART_G = 12.0
NOMINAL_LEVEL = 78.0
FULL_KG = 100.0
"""Content of the bowl at 100 %."""
PUMP_G_S = 900.0
PUMP_ON, PUMP_OFF, DRY = 78.0, 84.0, 3.0
"""Levels (%) at which the bowl's level switch starts and stops the pump, and below which nothing flows."""
SETTLE = 300 * MS
PARTIAL_AFTER = 1000 * MS
"""A set that is not complete is filled when no bottle has followed for this long."""


class Filler(Station):
    """Collects up to four bottles, fills them by weight (coarse and fine), passes them on evenly spaced."""

    def __init__(self, agenda: Agenda, rng: Random, rail: float) -> None:
        super().__init__(agenda, "filler", rng, length=600.0, capacity=8, rail=rail)
        self.target = 0.0
        self.weights = [0.0] * NOZZLES
        """Scale readings of the last fill, g."""
        self.clogged: dict[int, float] = {}
        """Nozzle (0..3) -> share of its flow that is left."""
        self.drift_rate = 0.0
        """g per minute by which the scales read more and more too high."""
        self.air_ok: Callable[[], bool] = lambda: True
        self._drift_since = 0
        self._pockets: list[Bottle] = []
        self._last_take = 0
        self._readings: list[float] = []
        self._fill_due = NEVER
        self._filled = False
        self._draw = 0.0
        self._star: deque[Bottle] = deque()
        self._star_due = 0
        self._pace = 700 * MS
        self._pump_enabled = self._pumping = False
        self._mass = 0.8 * FULL_KG * 1000
        self._mass_since = 0
        self._net = 0.0
        self._level_check = NEVER

    def bottles(self) -> Iterator[Bottle]:
        """Every bottle in the station."""
        yield from self.zone
        yield from self._pockets
        yield from self._star

    # ---- bowl

    @property
    def material_ok(self) -> bool:
        """Product in the bowl, and air for the valves."""
        return self.level() > DRY and self.air_ok()

    def level(self) -> float:
        """Bowl level in %."""
        return self._content() / (FULL_KG * 10)

    def temperature(self) -> float:
        """Product temperature, °C: drifts by half a degree over the day."""
        return 12.0 + 0.5 * math.sin(self.agenda.now / SECOND * math.tau / 86_400)

    def enable_pump(self, on: bool) -> None:
        """Let the level switch run the pump."""
        self._pump_enabled = on
        self._flows()

    def _content(self) -> float:
        """Grams in the bowl."""
        return max(self._mass + self._net * (self.agenda.now - self._mass_since) / SECOND, 0.0)

    def _flows(self) -> None:
        """What flows in or out changed: note the content, work the pump, look again at the next switching level."""
        now = self.agenda.now
        self._mass, self._mass_since = self._content(), now
        level = self.level()
        wanted = level < PUMP_OFF if self._pumping else level <= PUMP_ON
        self._pumping = self._pump_enabled and wanted
        drawing = self._draw if self.moving and self._fill_due != NEVER else 0.0
        self._net = (PUMP_G_S if self._pumping else 0.0) - drawing
        to_go = ((PUMP_OFF if self._pumping else PUMP_ON) - level) * FULL_KG * 10
        self._level_check = NEVER
        if self._pump_enabled and self._net and to_go / self._net > 0:
            self._level_check = now + math.ceil(to_go / self._net * SECOND) + 1000
            self.agenda.at(self._level_check, self._check_level)

    def _check_level(self) -> None:
        if self.agenda.now == self._level_check:
            self._flows()

    # ---- faults

    def set_drift(self, rate: float) -> None:
        """Let the scales drift by ``rate`` g/min from now on; 0 = newly adjusted."""
        self.drift_rate, self._drift_since = rate, self.agenda.now

    def _drift(self) -> float:
        return self.drift_rate * (self.agenda.now - self._drift_since) / (60 * SECOND)

    # ---- cycle

    def drive(self, on: bool) -> None:
        """The separator at the infeed depends on whether the filler runs."""
        super().drive(on)
        self._flows()
        if self.up is not None:
            self.up.neighbour_changed()

    def work(self) -> None:
        """Discharge from the star wheel, end a fill, collect, begin a fill."""
        before, waited = len(self.zone), self.waiting
        while self.moving and self._one_step(self.clock.value(self.agenda.now)):
            pass
        if (len(self.zone) < before or self.waiting != waited) and self.up is not None:
            self.up.neighbour_changed()

    def next_due(self, now: int) -> int:
        """The earliest of discharge, end of fill, arrival and patience with an incomplete set."""
        due = self._fill_due
        if self._star and not self.waiting:
            due = min(due, self._star_due)
        collecting = self._fill_due == NEVER and not self._filled
        if collecting and self._pockets and not self.zone:
            due = min(due, self._last_take + PARTIAL_AFTER)
        when = self.clock.when(due, now) if due < NEVER else NEVER
        if collecting and self.zone and not self.misfit:
            when = min(when, self._arrival(now))
        return when

    def _one_step(self, clock: int) -> bool:
        """One thing that is due; ``False`` when nothing is."""
        if self._star and clock >= self._star_due and self._pass_on(self._star[0]):
            self._star.popleft()
            self._star_due = clock + self._pace
            return True
        if self._fill_due <= clock:
            self._end_fill()
            return True
        if self._filled:
            if self._star:
                return False
            self._star.extend(self._pockets)
            self._pockets.clear()
            self._filled, self._star_due = False, clock
            return True
        if self._fill_due != NEVER:
            return False
        if len(self._pockets) < NOZZLES:
            bottle = self._take()
            if bottle is not None:
                self._pockets.append(bottle)
                self._last_take = clock
                return True
            if not self._pockets or self.zone or clock < self._last_take + PARTIAL_AFTER:
                return False
        return self._begin_fill(clock)

    def _begin_fill(self, clock: int) -> bool:
        if not self.material_ok:
            self.sensors.changed()
            return False
        strength = math.sqrt(self.level() / NOMINAL_LEVEL)
        limit_s = 1.35 * fill_time(self.target, 1.0)
        longest = 0.0
        drift = self._drift()
        self._readings = [0.0] * NOZZLES
        for nozzle, bottle in enumerate(self._pockets):
            mass, seconds = fill(self.target - drift, strength * self.clogged.get(nozzle, 1.0), limit_s)
            bottle.mass = max(mass + self.rng.gauss(0.0, 0.5), 0.0)
            self._readings[nozzle] = max(bottle.mass + drift + self.rng.gauss(0.0, 0.15), 0.0)
            longest = max(longest, seconds)
        self._draw = sum(bottle.mass for bottle in self._pockets) / longest
        self._fill_due = clock + round(longest * SECOND) + SETTLE
        self._pace = min(max((self._fill_due - clock + 500 * MS) // NOZZLES - 20 * MS, 620 * MS), 1200 * MS)
        self._flows()
        return True

    def _end_fill(self) -> None:
        self._fill_due, self._filled = NEVER, True
        self._flows()
        self.weights = self._readings
        self.sensors.result()


def fill(target: float, strength: float, limit_s: float) -> tuple[float, float]:
    """Closed form of one fill: net mass (g) and duration (s) at a flow of ``strength`` times nominal.

    Both valves are open until the scale, which lags, says that :data:`FINE_PART_G` are left; then fine alone. The
    PLC closes early by what is under way at nominal flow, so that only a deviation from it is seen in the mass.
    The fill ends at ``limit_s`` at the latest, short of weight.
    """
    if strength <= 0.0 or target <= 0.0:
        return 0.0, limit_s
    under_way = DEAD_S + SCALE_LAG_S
    coarse_part = max(target - FINE_PART_G - COARSE * under_way * (1.0 - strength), 0.0)
    coarse_s = coarse_part / ((COARSE + FINE) * strength)
    mass = max(target - FINE * under_way * (1.0 - strength), coarse_part)
    seconds = DEAD_S + coarse_s + (mass - coarse_part) / (FINE * strength)
    if seconds <= limit_s:
        return mass, seconds
    flowing = limit_s - DEAD_S
    if flowing < coarse_s:
        return (COARSE + FINE) * strength * flowing, limit_s
    return coarse_part + FINE * strength * (flowing - coarse_s), limit_s


def fill_time(target: float, strength: float) -> float:
    """Seconds that a fill takes without limit."""
    return fill(target, strength, math.inf)[1]
