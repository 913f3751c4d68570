"""The standard machine program: run, reset, latched faults, guide rail. Machines extend it by their own points."""

from __future__ import annotations

from collections.abc import Callable

from hil.plant import NEVER, SECOND, Agenda, Station
from hil.plc.counters import Counters
from hil.plc.memory import Setter
from hil.plc.virtual import VirtualPlc

JAM, MOTOR, MATERIAL, GUARD, ESTOP, MIXED, SETPOINT, VISION, WATCHDOG = 1, 2, 3, 4, 5, 6, 7, 8, 9
"""Fault codes, as in the register list."""
OVERLOAD = SECOND
"""A drive that draws too much for this long has jammed."""
RAIL_RANGE_MM = (40.0, 120.0)
"""Rail set-points outside of this are not followed (0 after a restart)."""


class Machine(Counters):
    """One machine.

    The drive runs while ``run`` is set, no fault is latched, and ``run`` was raised after the last fault was reset
    (or after power-up): a reset alone never starts anything (IEC 60204-1:2016, 9.2.3.4.2). Open guard, open
    emergency stop chain, tripped motor and watchdog latch at any time; jam, missing material, mixed product and a
    missing set-point only when the machine runs or is to run.
    """

    def __init__(
        self, plc: VirtualPlc, agenda: Agenda, station: Station, *,
        estop_ok: Callable[[], bool], tripped: Callable[[], bool],
    ) -> None:  # fmt: skip
        super().__init__(plc, agenda, station)
        self.fault = 0
        self._estop_ok, self._tripped = estop_ok, tripped
        points = ("running", "fault", "motor_ok", "rail_pos")
        self._bits: dict[str, Setter] = {p: plc.setter(f"{self.name}.{p}") for p in points}
        self._run = self._reset = False
        self._may_run = False
        self._overload_due = NEVER
        self._rail_moving = False

    # ---- Unit

    def power_up(self) -> None:
        """No run, no fault, counters kept."""
        self.fault = 0
        self._run = self._reset = False
        self._may_run = True
        self._overload_due = NEVER
        self.show_counters()
        self.take_setpoints()
        self._bits["rail_pos"](self.station.rail.position(self.agenda.now))
        self.evaluate()

    def power_down(self) -> None:
        """The drive drops; the rail stays where it is."""
        self._overload_due = NEVER
        self.station.drive(False)
        self._move_rail(False)

    def written(self, point: str) -> None:
        """Run and reset; everything else is a set-point."""
        value = self.plc.peek(f"{self.name}.{point}")
        if point == "run":
            self._run = bool(value)
            self._may_run = self._may_run or not self._run
        elif point == "reset":
            rising = bool(value) and not self._reset
            self._reset = bool(value)
            if rising:
                self._try_reset()
        else:
            self.take_setpoints()
        self.evaluate()

    def look(self) -> None:
        """Show the rail while it moves."""
        if self._rail_moving:
            self._bits["rail_pos"](self.station.rail.position(self.agenda.now))
            self._rail_moving = not self.station.rail.settled(self.agenda.now)

    def evaluate(self) -> None:
        """Latch what must be latched, switch the drive, show it all."""
        if not self.plc.alive:
            return
        wanted = self._run and self._may_run
        if not self.fault:
            self.fault = self.hard_cause() or (self.soft_cause() if wanted or self.station.running else 0)
            if not self.fault and wanted and not self.setpoints_ok():
                self.fault = SETPOINT
        self.station.drive(wanted and not self.fault)
        self._watch_overload()
        self._move_rail(self._rail_free())
        shows = self._shows
        self._bits["running"](self.station.running)
        self._bits["fault"](self.fault != 0)
        self._bits["motor_ok"](self.station.motor_ok)
        shows["fault_code"](self.fault)
        shows["door_closed"](self.station.door_closed)
        shows["estop_ok"](self._estop_ok())
        self.watch_flow()

    # ---- Sensors

    def changed(self) -> None:
        """Something about the station changed."""
        self.evaluate()

    # ---- for machines

    def take_setpoints(self) -> None:
        """Take over the machine's own set-points; called at power-up and after each write of one."""

    def setpoints_ok(self) -> bool:
        """Whether the machine can run with the set-points it has."""
        return True

    def number(self, point: str) -> float:
        """A set-point as written by the client, engineering unit."""
        value = self.plc.peek(f"{self.name}.{point}")
        assert isinstance(value, int | float)
        return float(value)

    def hard_cause(self) -> int:
        """The fault that is there now and stops the machine in any case; 0 when none."""
        if not self._estop_ok():
            return ESTOP
        if not self.station.door_closed:
            return GUARD
        if not self.station.motor_ok:
            return MOTOR
        return WATCHDOG if self._tripped() else 0

    def soft_cause(self) -> int:
        """The fault that is there now and prevents running; 0 when none. A jam is latched by its overload."""
        if self.station.misfit:
            return MIXED
        return 0 if self.station.material_ok else MATERIAL

    def _try_reset(self) -> None:
        cause = self.hard_cause() or self.soft_cause() or (JAM if self.fault and self.station.jammed else 0)
        if not self.fault or cause:
            self.fault = cause if self.fault else 0  # what is in the way now, not what once was
            return
        self.fault = 0
        self._may_run = not self._run

    def _watch_overload(self) -> None:
        if not (self.station.running and self.station.jammed):
            self._overload_due = NEVER
        elif self._overload_due == NEVER:
            self._overload_due = self.agenda.now + OVERLOAD
            self.agenda.at(self._overload_due, self._overloaded)

    def _overloaded(self) -> None:
        if self.agenda.now == self._overload_due and self.plc.alive:
            self._overload_due = NEVER
            if not self.fault:
                self.fault = JAM
            self.evaluate()

    def _rail_free(self) -> bool:
        return not self.station.running and self._estop_ok() and self.station.door_closed and self.plc.alive

    def _move_rail(self, free: bool) -> None:
        now, rail = self.agenda.now, self.station.rail
        target = self.number("rail_sp")
        if not RAIL_RANGE_MM[0] <= target <= RAIL_RANGE_MM[1]:
            target = rail.position(now)
        rail.move(now, target, free)
        self._rail_moving = True
