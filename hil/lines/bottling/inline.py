"""The stations through which bottles pass one by one: infeed, capper, labeler, checkweigher."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import count
from random import Random

from hil.plant import MS, Agenda, Bottle, Format, Lag, Pipeline
from hil.plant.motion import TOLERANCE_MM

EYE_MM = 15.0
"""A photo-eye sees a bottle whose axis is this near."""
METERED = 8
"""Bottles that the infeed's separator keeps on the way to a running filler: two sets of four."""


class Infeed(Pipeline):
    """Belt with a separator (gate) at its inlet. The depalletizer offers the format that the rails are set to.

    A queue sensor at the filler holds the separator while :data:`METERED` bottles are under way to a filler
    that works; to one that stands or is blocked, bottles go on until the belts are full.
    """

    def __init__(self, agenda: Agenda, rng: Random, rail: float, formats: tuple[Format, ...]) -> None:
        super().__init__(agenda, "infeed", rng, length=450.0, capacity=6, rail=rail, pitch=0, dwell=0, places=1)
        self.speed = 0.0
        self.gate = False
        self.stuck_eye: bool | None = None
        """What a stuck outlet eye says; ``None`` while it works."""
        self._formats = formats
        self._serials = count(1)
        self._last_out = -1e9

    def set_gate(self, is_open: bool) -> None:
        """Open or close the separator."""
        self.gate = is_open
        self.neighbour_changed()

    def supply(self) -> Format | None:
        """The format on offer; ``None`` when none fits the rails."""
        rail = self.rail.position(self.agenda.now)
        return next((f for f in self._formats if abs(f.diameter - rail) <= 2.0), None)

    def eye_in(self) -> bool:
        """Photo-eye at the inlet."""
        return bool(self.zone) and self.belt.x(self.agenda.now) - (self.zone[-1].x - self.length) <= EYE_MM

    def eye_out(self) -> bool:
        """Photo-eye at the outlet; may be stuck."""
        if self.stuck_eye is not None:
            return self.stuck_eye
        if self.in_work:
            return True
        x = self.belt.x(self.agenda.now)
        return x - self._last_out <= EYE_MM or (bool(self.zone) and self.zone[0].x - x <= EYE_MM)

    def amps(self) -> float:
        """Motor current: 1.2 + 0.9 v + 0.02 n, + 1.6 when jammed; 0 without drive."""
        if not self.running:
            return 0.0
        n = len(self.zone) + len(self.in_work)
        return 1.2 + 0.9 * self.belt.v(self.agenda.now) / 1000 + 0.02 * n + (1.6 if self.jammed else 0.0)

    def work(self) -> None:
        """Move bottles on, then release new ones."""
        super().work()
        if self.moving and self.gate and not self._metered() and self._has_room():
            kind = self.supply()
            if kind is not None:
                self.admit(Bottle(next(self._serials), kind), self.belt.x(self.agenda.now))

    def next_due(self, now: int) -> int:
        """Also the next release."""
        due = super().next_due(now)
        if self.gate and len(self.zone) < self.capacity and not self._metered() and self.supply() is not None:
            due = min(due, self.belt.when(self._inlet, now))
        return due

    def complete(self, bottle: Bottle) -> None:
        """A bottle has come to the outlet."""
        self._last_out = self.belt.x(self.agenda.now) + TOLERANCE_MM

    def _metered(self) -> bool:
        down = self.down
        if down is None or not down.running or down.waiting:
            return False
        return len(self.zone) + len(self.in_work) + len(down.zone) >= METERED


class Capper(Pipeline):
    """Turret with four heads. Torque T = k (theta - theta_s) once the cap is seated at theta_s ~ N(720°, 25°).

    Caps come from a chute of 20 that the feeder keeps full while the hopper has any.
    """

    CHUTE = 20
    STIFFNESS = 0.05
    """k in N·m per degree."""

    def __init__(self, agenda: Agenda, rng: Random, rail: float) -> None:
        super().__init__(
            agenda, "capper", rng, length=300.0, capacity=4, rail=rail, pitch=600 * MS, dwell=2200 * MS, places=4
        )
        self.torque_sp = 0.0
        self.feeder = False
        self.hopper_ok = True
        self.air_ok: Callable[[], bool] = lambda: True
        self.torque = self.angle = 0.0
        """Of the last cap."""
        self._caps = self.CHUTE
        self._angles: dict[int, float] = {}

    @property
    def material_ok(self) -> bool:
        """Caps in the chute, and air."""
        return self._caps > 0 and self.air_ok()

    def feed(self) -> None:
        """Fill the chute if the feeder runs and there are caps in the hopper."""
        if self.feeder and self.hopper_ok:
            self._caps = self.CHUTE

    def ready(self) -> bool:
        """Whether the pick-up has a cap."""
        return self.material_ok

    def begin(self, bottle: Bottle) -> None:
        """Screw on a cap; one in about 500 goes wrong (cross-thread or slip)."""
        self._caps -= 1
        self.feed()
        if self._caps == 0:
            self.sensors.changed()
        rng = self.rng
        luck, seat = rng.random(), rng.gauss(720.0, 25.0)
        torque = self.torque_sp + rng.gauss(0.0, 0.03)
        bottle.cap_ok = True
        if luck < 0.001:
            seat, bottle.cap_ok = seat * 0.45, False
        elif luck < 0.002:
            torque, bottle.cap_ok = torque * 0.4, False
        bottle.torque = max(torque, 0.0)
        self._angles[bottle.serial] = seat + bottle.torque / self.STIFFNESS

    def complete(self, bottle: Bottle) -> None:
        """The cap is on."""
        self.torque, self.angle = bottle.torque, self._angles.pop(bottle.serial)
        self.sensors.result()


class Labeler(Pipeline):
    """Applies one label per 80 mm of web. Two spindles: a roll that ends is spliced to the other on the fly."""

    ROLL_MM, CORE_MM = 300.0, 90.0
    LABEL_MM, WEB_MM = 80.0, 0.1

    def __init__(self, agenda: Agenda, rng: Random, rail: float) -> None:
        super().__init__(
            agenda, "labeler", rng, length=300.0, capacity=4, rail=rail, pitch=550 * MS, dwell=500 * MS, places=1
        )
        self.job = ""
        """Print job in force; its text is what the label says."""
        self.vacuum = False
        self.web_ok = True
        self.tension = Lag(0.0, 0.4)
        self.roll_dia = self.ROLL_MM

    @property
    def material_ok(self) -> bool:
        """The web is whole."""
        return self.web_ok

    def ready(self) -> bool:
        """Whether there is a label."""
        return self.web_ok

    def drive(self, on: bool) -> None:
        """The web is under tension (12 N) while the drive runs."""
        if on != self.running:
            self.tension.drive(self.agenda.now, 12.0 if on and self.web_ok else 0.0)
        super().drive(on)

    def set_web(self, whole: bool) -> None:
        """Break or mend the web."""
        if whole == self.web_ok:
            return
        self.web_ok = whole
        self.tension.drive(self.agenda.now, 12.0 if whole and self.running else 0.0)
        self.sensors.changed()
        self.neighbour_changed()

    def begin(self, bottle: Bottle) -> None:
        """Print and apply a label; one in about 500 is skewed or unreadable, none sticks without vacuum."""
        square = self.roll_dia**2 - 4 * self.LABEL_MM * self.WEB_MM / math.pi
        self.roll_dia = math.sqrt(square) if square > self.CORE_MM**2 else self.ROLL_MM
        luck = self.rng.random()
        bottle.label_ok = self.vacuum and luck >= 0.001
        bottle.code = (self.job if luck < 0.999 else self.job[:-1] + "?") if self.vacuum else ""

    def complete(self, bottle: Bottle) -> None:
        """The label is on."""
        self.sensors.result()


class Checkweigher(Pipeline):
    """Weigh belt (dynamic scale, reading 180 ms after the trigger) and camera; the PLC judges, a pusher rejects.

    The scale is of second order (25 rad/s, damping 0.3) and at the reading still rings by a known fraction,
    which its calibration takes out; what is left is noise of 0.3 g. The camera errs: 0.2 % false alarms and
    0.05 % misses, for cap and label each.
    """

    FALSE_ALARM, MISS = 0.002, 0.0005

    def __init__(self, agenda: Agenda, rng: Random, rail: float) -> None:
        super().__init__(
            agenda, "checkweigher", rng, length=225.0, capacity=3, rail=rail, pitch=500 * MS, dwell=450 * MS, places=1
        )
        self.vision_ok = True
        self.bin_full = False
        self.weight = 0.0
        self.cap_ok = self.label_ok = False
        self.code = ""
        self.frame_id = 0

    def _fits(self, bottle: Bottle) -> bool:
        """Its belts carry bottles from below: there are no rails to set."""
        return True

    def begin(self, bottle: Bottle) -> None:
        """Weigh and look."""
        rng = self.rng
        self.weight = max(bottle.mass + rng.gauss(0.0, 0.3), 0.0)
        cap, label = rng.random(), rng.random()
        self.cap_ok = cap >= self.FALSE_ALARM if bottle.cap_ok else cap < self.MISS
        self.label_ok = label >= self.FALSE_ALARM if bottle.label_ok else label < self.MISS
        self.code = bottle.code
        self.frame_id += 1

    def complete(self, bottle: Bottle) -> None:
        """At the pusher: the PLC's verdict counts."""
        bottle.rejected = self.sensors.judge()

    def discard(self, bottle: Bottle) -> bool:
        """Push it into the bin, if there is room."""
        self._set_waiting(self.bin_full)
        return not self.bin_full and super().discard(bottle)

    @property
    def misfit(self) -> bool:
        """Never: the belt of a scale is flat and has no rails."""
        return False

    def set_bin(self, full: bool) -> None:
        """Fill or empty the reject bin."""
        self.bin_full = full
        self.neighbour_changed()
