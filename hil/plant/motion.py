"""Closed formulas of what moves by itself: belts, axes, first-order lags, and clocks that can be stopped."""

from __future__ import annotations

import math

from hil.plant.agenda import NEVER, SECOND

_SETTLED = 20.0
"""Time constants after which a lag counts as settled (what is left is 2e-9 of the step)."""
TOLERANCE_MM = 1e-3


class Belt:
    """A belt whose speed follows its set-point with a first-order lag: v' = (v_cmd - v) / tau. In mm and mm/s."""

    __slots__ = ("_since", "_tau", "_v0", "_vc", "_x0")

    def __init__(self, tau_s: float = 0.25) -> None:
        self._tau = tau_s
        self._x0 = self._v0 = self._vc = 0.0
        self._since = 0

    def x(self, now: int) -> float:
        """How far the belt has run since the beginning."""
        dt = (now - self._since) / SECOND
        lead = self._v0 - self._vc
        if lead == 0.0:
            return self._x0 + self._vc * dt
        if dt > _SETTLED * self._tau:
            self._x0 += self._vc * dt + lead * self._tau
            self._v0, self._since = self._vc, now
            return self._x0
        return self._x0 + self._vc * dt - lead * self._tau * math.expm1(-dt / self._tau)

    def v(self, now: int) -> float:
        """Speed."""
        if self._v0 == self._vc:
            return self._vc
        return self._vc + (self._v0 - self._vc) * math.exp(-(now - self._since) / SECOND / self._tau)

    def drive(self, now: int, speed: float) -> None:
        """Set-point; the belt follows with its lag."""
        self._x0, self._v0 = self.x(now), self.v(now)
        self._since, self._vc = now, speed

    def brake(self, now: int) -> None:
        """Stand still at once."""
        self._x0 = self.x(now)
        self._since, self._v0, self._vc = now, 0.0, 0.0

    def when(self, x: float, now: int) -> int:
        """The time at which the belt will have run to ``x``; :data:`NEVER` when it will not at its set-point."""
        here = self.x(now)
        if here >= x - TOLERANCE_MM:
            return now
        if self._v0 == self._vc:
            return NEVER if self._vc <= 0.0 else now + math.ceil((x - here) / self._vc * SECOND)
        if self._vc <= 0.0 and self._x0 + self._v0 * self._tau <= x:
            return NEVER
        low, step = now, SECOND // 8
        while self.x_at(low + step) < x:
            low += step
            step *= 2
        high = low + step
        while high - low > 1000:
            middle = (low + high) // 2
            if self.x_at(middle) < x:
                low = middle
            else:
                high = middle
        return high

    def x_at(self, later: int) -> float:
        """As :meth:`x`, for a time to come; changes nothing."""
        dt = (later - self._since) / SECOND
        return self._x0 + self._vc * dt - (self._v0 - self._vc) * self._tau * math.expm1(-dt / self._tau)


class RunClock:
    """Nanoseconds for which something has been moving; cycles count on it, so that a stop only delays them."""

    __slots__ = ("_base", "_since", "moving")

    def __init__(self) -> None:
        self._base = self._since = 0
        self.moving = False

    def value(self, now: int) -> int:
        """Moving time so far (ns)."""
        return self._base + now - self._since if self.moving else self._base

    def run(self, now: int, moving: bool) -> None:
        """Go on, or stop."""
        if moving != self.moving:
            self._base = self.value(now)
            self._since, self.moving = now, moving

    def when(self, value: int, now: int) -> int:
        """The time at which the clock will show ``value``, :data:`NEVER` when it stands."""
        here = self.value(now)
        if here >= value:
            return now
        return now + value - here if self.moving else NEVER


class Axis:
    """A positioning axis of constant speed (mm/s) that moves only while it is let."""

    __slots__ = ("_enabled", "_from", "_since", "_speed", "_target")

    def __init__(self, position: float, speed: float) -> None:
        self._from = self._target = position
        self._speed = speed
        self._since = 0
        self._enabled = False

    def position(self, now: int) -> float:
        """Where the axis is (mm)."""
        if not self._enabled or self._from == self._target:
            return self._from
        travel = (now - self._since) / SECOND * self._speed
        distance = self._target - self._from
        return self._target if travel >= abs(distance) else self._from + math.copysign(travel, distance)

    def settled(self, now: int) -> bool:
        """Whether it is where it was sent."""
        return self.position(now) == self._target

    def move(self, now: int, target: float, enabled: bool) -> None:
        """Send it to ``target``, or hold it where it is."""
        self._from = self.position(now)
        self._target, self._enabled, self._since = target, enabled, now


class Lag:
    """A first-order lag towards a set-point."""

    __slots__ = ("_since", "_target", "_tau", "_v0")

    def __init__(self, value: float, tau_s: float) -> None:
        self._v0 = self._target = value
        self._tau = tau_s
        self._since = 0

    def value(self, now: int) -> float:
        """The value."""
        dt = (now - self._since) / SECOND / self._tau
        return self._target if dt > _SETTLED else self._target + (self._v0 - self._target) * math.exp(-dt)

    def drive(self, now: int, target: float, tau_s: float | None = None) -> None:
        """A new set-point, and a new time constant if given."""
        self._v0 = self.value(now)
        self._target, self._since = target, now
        if tau_s is not None:
            self._tau = tau_s

    def when(self, value: float, now: int) -> int:
        """When ``value`` will be crossed; :data:`NEVER` if it lies not between here and the set-point."""
        here = self.value(now)
        if not min(here, self._target) < value < max(here, self._target):
            return NEVER
        return now + math.ceil(self._tau * math.log((here - self._target) / (value - self._target)) * SECOND)
