"""Bottles, and stations that pass them on: accumulation, back-pressure, jams and the books over it all.

A bottle is always in exactly one place: a station's zone (the belt that feeds it) or its work places. It enters
station k + 1 in the instant in which it leaves station k. A station that is not running moves nothing and lets
nothing in: its inlet stop closes without power.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from random import Random

from hil.plant.agenda import NEVER, Agenda
from hil.plant.motion import TOLERANCE_MM, Axis, Belt, RunClock

PITCH_MM = 75.0
"""Least distance of two bottles on a belt."""
RAIL_TOLERANCE_MM = 2.0
RAIL_SPEED = 4.0
BELT_SPEED = 500.0


@dataclass(frozen=True, slots=True)
class Format:
    """A kind of bottle: name (its content in ml) and body diameter in mm."""

    name: str
    diameter: float


class Bottle:
    """One bottle and what was done to it. ``mass`` is the true net content in g, ``torque`` in N·m."""

    __slots__ = ("cap_ok", "code", "due", "format", "label_ok", "mass", "rejected", "serial", "torque", "x")

    def __init__(self, serial: int, kind: Format) -> None:
        self.serial = serial
        self.format = kind
        self.mass = 0.0
        self.torque = 0.0
        self.cap_ok = False
        self.label_ok = False
        self.code = ""
        self.rejected = False
        self.x = 0.0
        """Belt position at which it reaches the end of the zone."""
        self.due = 0
        """Run-clock time at which its work is done; -1 when it is."""


class Tally:
    """A station's books by format: bottles in, good ones on, bottles rejected. Counted where they move."""

    __slots__ = ("good", "infeed", "rejected")

    def __init__(self) -> None:
        self.infeed: dict[str, int] = {}
        self.good: dict[str, int] = {}
        self.rejected: dict[str, int] = {}


class Sensors:
    """What a station tells its PLC, as it happens. The PLC's program overrides what it listens to."""

    def bottle_in(self) -> None:
        """A bottle came in."""

    def bottle_out(self) -> None:
        """A bottle went on, good."""

    def bottle_rejected(self) -> None:
        """A bottle went to the reject bin."""

    def discharge_changed(self) -> None:
        """A finished bottle began or ceased to wait for room downstream (``station.waiting``)."""

    def changed(self) -> None:
        """A guard, a chain, a supply, a jam: ``station`` says what."""

    def result(self) -> None:
        """A cycle has ended; its results are in the station."""

    def judge(self) -> bool:
        """Whether the bottle at the pusher is to be rejected."""
        return False


class Station:
    """A station: a feeding zone, work, and an outlet into the next station. Subclasses are the machines."""

    def __init__(
        self,
        agenda: Agenda,
        name: str,
        rng: Random,
        *,
        length: float,
        capacity: int,
        rail: float,
        speed: float = BELT_SPEED,
    ) -> None:
        self.agenda, self.name, self.rng = agenda, name, rng
        self.length, self.capacity, self.speed = length, capacity, speed
        self.sensors = Sensors()
        self.driven: Callable[[], None] = lambda: None
        """Called after the drive was switched."""
        self.up: Station | None = None
        self.down: Station | None = None
        self.belt, self.clock = Belt(), RunClock()
        self.rail = Axis(rail, RAIL_SPEED)
        self.zone: deque[Bottle] = deque()
        self.tally = Tally()
        self.running = False
        self.waiting = False
        self.jam_armed = self.jammed = False
        self.door_closed = self.motor_ok = True
        self.refused = False
        """Whoever is upstream was turned away and is to be told of room."""
        self._due = NEVER
        self._inlet = self._released = -1e9

    # ---- the PLC's side

    def drive(self, on: bool) -> None:
        """Switch the drive; takes effect at once."""
        if on != self.running:
            self.running = on
            self.driven()
            self._set_motion()
            if not on and self.refused and self.up is not None:
                self.up.neighbour_changed()

    def set_speed(self, speed: float) -> None:
        """Belt speed wanted, mm/s."""
        self.speed = speed
        if self.running and not self.jammed:
            self.belt.drive(self.agenda.now, speed)
            self._schedule()

    @property
    def misfit(self) -> bool:
        """Whether the bottle at the work place does not fit between the rails."""
        return bool(self.zone) and self._at_end() and not self._fits(self.zone[0])

    @property
    def material_ok(self) -> bool:
        """Whether product, caps, label web and air are there, as far as the station needs them."""
        return True

    # ---- faults

    def arm_jam(self) -> None:
        """The bottle at the work place, or the next one to get there, sticks."""
        self.jam_armed = True
        if self.running:
            self.step()

    def free_jam(self) -> None:
        """The technician frees the bottle; it goes on its way."""
        was = self.jammed
        self.jam_armed = self.jammed = False
        if was:
            self._set_motion()
            self.sensors.changed()

    def scrap_misfits(self) -> int:
        """The technician takes bottles that do not fit out of the zone, into the reject bin; returns how many."""
        out = [bottle for bottle in self.zone if not self._fits(bottle)]
        if out:
            self.zone = deque(bottle for bottle in self.zone if self._fits(bottle))
            for bottle in out:
                self._book(self.tally.rejected, bottle)
                self.sensors.bottle_rejected()
            self.sensors.changed()
            self.step()
        return len(out)

    # ---- bottles

    def bottles(self) -> Iterator[Bottle]:
        """Every bottle in the station."""
        yield from self.zone

    def offer(self, bottle: Bottle) -> bool:
        """The station upstream hands over a bottle; ``False`` when there is no room, and it will be told of room."""
        now = self.agenda.now
        x = self.belt.x(now)
        if not self.running or len(self.zone) >= self.capacity or x < self._inlet - TOLERANCE_MM:
            self.refused = True
            if self.running:
                self._schedule()
            return False
        self.admit(bottle, x)
        if len(self.zone) == 1:
            self._schedule()
        return True

    def admit(self, bottle: Bottle, x: float) -> None:
        """Put a bottle on the zone's belt at its inlet."""
        self._inlet = x + PITCH_MM
        bottle.x = x + self.length
        self.zone.append(bottle)
        self._book(self.tally.infeed, bottle)
        self.sensors.bottle_in()

    def neighbour_changed(self) -> None:
        """Downstream has room again, or stopped."""
        if self.running:
            self.step()

    def step(self) -> None:
        """Do everything that is due now, and note when the next thing is."""
        self.work()
        if self.refused and self.running and self.up is not None and self._has_room():
            self.refused = False
            self.up.neighbour_changed()
        self._schedule()

    def work(self) -> None:
        """The machine's own part of :meth:`step`."""
        raise NotImplementedError

    def next_due(self, now: int) -> int:
        """When the machine has something to do next; only asked while it moves."""
        raise NotImplementedError

    # ---- for subclasses

    @property
    def moving(self) -> bool:
        """Whether the drive runs and nothing sticks."""
        return self.running and not self.jammed

    def _at_end(self) -> bool:
        """Whether the first bottle of the zone has reached its end."""
        return self.belt.x(self.agenda.now) >= max(self.zone[0].x, self._released) - TOLERANCE_MM

    def _arrival(self, now: int) -> int:
        """When the first bottle of the zone reaches its end."""
        return self.belt.when(max(self.zone[0].x, self._released), now) if self.zone else NEVER

    def _take(self) -> Bottle | None:
        """Take the first bottle off the zone if it has reached the end; it may stick, or not fit."""
        if not self.zone or not self._at_end() or self._sticks():
            return None
        if not self._fits(self.zone[0]):
            self.sensors.changed()
            return None
        self._released = self.belt.x(self.agenda.now) + PITCH_MM
        return self.zone.popleft()

    def _sticks(self) -> bool:
        if self.jam_armed and not self.jammed:
            self.jammed = True
            self._set_motion()
            self.sensors.changed()
        return self.jammed

    def _fits(self, bottle: Bottle) -> bool:
        return abs(self.rail.position(self.agenda.now) - bottle.format.diameter) <= RAIL_TOLERANCE_MM

    def _pass_on(self, bottle: Bottle) -> bool:
        """Hand a finished bottle downstream."""
        assert self.down is not None, f"{self.name} has nothing downstream"
        if not self.down.offer(bottle):
            self._set_waiting(True)
            return False
        self._book(self.tally.good, bottle)
        if self.waiting:
            self._set_waiting(False)
        self.sensors.bottle_out()
        return True

    def _set_waiting(self, waiting: bool) -> None:
        if waiting != self.waiting:
            self.waiting = waiting
            self.sensors.discharge_changed()

    def _set_motion(self) -> None:
        now = self.agenda.now
        self.clock.run(now, self.moving)
        if self.moving:
            self.belt.drive(now, self.speed)
            self.step()
        else:
            self.belt.brake(now)

    def _has_room(self) -> bool:
        return len(self.zone) < self.capacity and self.belt.x(self.agenda.now) >= self._inlet - TOLERANCE_MM

    @staticmethod
    def _book(column: dict[str, int], bottle: Bottle) -> None:
        name = bottle.format.name
        column[name] = column.get(name, 0) + 1

    def _schedule(self) -> None:
        if not self.moving:
            self._due = NEVER
            return
        now = self.agenda.now
        due = self.next_due(now)
        if self.refused and len(self.zone) < self.capacity:
            due = min(due, self.belt.when(self._inlet, now))
        if due <= now:
            due = now + 1000
        if due != self._due:
            self._due = due
            if due < NEVER:
                self.agenda.at(due, self._wake)

    def _wake(self) -> None:
        if self.agenda.now == self._due:
            self._due = NEVER
            self.step()


class Pipeline(Station):
    """A station whose work places move on together (a turret, a weigh belt): fixed pitch and dwell, in order.

    ``pitch`` and ``dwell`` are in ns, ``places`` is how many bottles are in work at most. When the first finished
    bottle cannot leave, all stand.
    """

    def __init__(
        self, agenda: Agenda, name: str, rng: Random, *, length: float, capacity: int, rail: float,
        pitch: int, dwell: int, places: int,
    ) -> None:  # fmt: skip
        super().__init__(agenda, name, rng, length=length, capacity=capacity, rail=rail)
        self.pitch, self.dwell, self.places = pitch, dwell, places
        self.in_work: deque[Bottle] = deque()
        self._next_take = 0

    def bottles(self) -> Iterator[Bottle]:
        """Every bottle in the station."""
        yield from self.zone
        yield from self.in_work

    def begin(self, bottle: Bottle) -> None:
        """Work on a bottle begins: settle its result."""

    def complete(self, bottle: Bottle) -> None:
        """Work on a bottle is done: tell the result."""

    def ready(self) -> bool:
        """Whether another bottle may be taken to work."""
        return True

    def work(self) -> None:
        """Discharge what is done, take what has come."""
        self._discharge()
        while self.moving and not self.waiting and len(self.in_work) < self.places:
            clock = self.clock.value(self.agenda.now)
            if clock < self._next_take or not self.zone or not self.ready():
                return
            bottle = self._take()
            if bottle is None:
                return
            bottle.due = clock + self.dwell
            self._next_take = clock + self.pitch
            self.in_work.append(bottle)
            self.begin(bottle)
            if self.dwell == 0:
                self._discharge()

    def next_due(self, now: int) -> int:
        """The next discharge or arrival."""
        if self.waiting:
            return NEVER
        due = self.clock.when(self.in_work[0].due, now) if self.in_work else NEVER
        if self.zone and len(self.in_work) < self.places and self.ready() and not self.misfit:
            due = min(due, max(self._arrival(now), self.clock.when(self._next_take, now)))
        return due

    def discard(self, bottle: Bottle) -> bool:
        """Put a rejected bottle into the bin; ``False`` when it does not go in."""
        self._book(self.tally.rejected, bottle)
        self.sensors.bottle_rejected()
        return True

    def _discharge(self) -> None:
        while self.in_work and self.moving:
            bottle = self.in_work[0]
            if bottle.due >= 0:
                if self.clock.value(self.agenda.now) < bottle.due:
                    return
                bottle.due = -1
                self.complete(bottle)
                if not self.running:
                    return
            gone = self.discard(bottle) if bottle.rejected else self._pass_on(bottle)
            if gone:
                self.in_work.popleft()
            self.clock.run(self.agenda.now, self.moving and gone)
            if not gone:
                return
