"""The programs of the PLCs ``wet`` and ``dry``: what each machine has beyond the standard one."""

from __future__ import annotations

from collections.abc import Callable

from hil.lines.bottling.filler import Filler
from hil.lines.bottling.inline import Capper, Infeed, Labeler
from hil.lines.bottling.packer import Packer
from hil.plant import MS, NEVER, Agenda
from hil.plc.counters import ROLL_OVER
from hil.plc.machine import Machine
from hil.plc.virtual import VirtualPlc

JOB_TAKEOVER = 1200 * MS
Check = Callable[[], bool]


class InfeedProgram(Machine):
    """Belt speed and separator; counts good bottles by the outlet eye."""

    station: Infeed

    def __init__(self, plc: VirtualPlc, agenda: Agenda, station: Infeed, *, estop_ok: Check, tripped: Check) -> None:
        super().__init__(plc, agenda, station, estop_ok=estop_ok, tripped=tripped)
        self._speed, self._amps = plc.setter("infeed.speed"), plc.setter("infeed.amps")
        self._eye_in, self._eye_out = plc.setter("infeed.eye_in"), plc.setter("infeed.eye_out")
        self._at_rest = False

    def wanting(self) -> bool:
        """An empty infeed is starved when its gate is open and there is nothing on offer."""
        return self.station.gate and self.station.supply() is None

    def bottle_out(self) -> None:
        """A stuck eye sees no bottle pass: it is missing in the count, though not in the station's stock."""
        if self.station.stuck_eye is None:
            super().bottle_out()
        else:
            self._inside(-1)

    def take_setpoints(self) -> None:
        """Speed at once, gate at once."""
        speed = self.number("speed_sp") * 1000
        if speed != self.station.speed:
            self.station.set_speed(min(speed, 500.0))
        gate = bool(self.plc.peek("infeed.gate"))
        if gate != self.station.gate:
            self.station.set_gate(gate)

    def power_up(self) -> None:
        """Show everything anew."""
        super().power_up()
        self._at_rest = False

    def power_down(self) -> None:
        """The separator closes without power."""
        super().power_down()
        self.station.set_gate(False)

    def look(self) -> None:
        """Speed, current and eyes, while there is something to see."""
        super().look()
        station, running = self.station, self.station.running
        self._eye_out(station.eye_out())
        if not running and self._at_rest:
            return
        self._at_rest = not running
        self._speed(station.belt.v(self.agenda.now) / 1000)
        self._amps(station.amps())
        self._eye_in(station.eye_in())


class FillerProgram(Machine):
    """Target weight, pump, weights, bowl."""

    station: Filler

    def __init__(self, plc: VirtualPlc, agenda: Agenda, station: Filler, *, estop_ok: Check, tripped: Check) -> None:
        super().__init__(plc, agenda, station, estop_ok=estop_ok, tripped=tripped)
        self._weights = [plc.setter(f"filler.weight_{n}") for n in (1, 2, 3, 4)]
        self._level, self._temp = plc.setter("filler.bowl_level"), plc.setter("filler.bowl_temp")
        self._air = plc.setter("filler.air_ok")

    def take_setpoints(self) -> None:
        """A new target counts from the next fill on."""
        self.station.target = self.number("target")
        self._pump()

    def setpoints_ok(self) -> bool:
        """50..1500 g."""
        return 50.0 <= self.station.target <= 1500.0

    def result(self) -> None:
        """Weights of a fill."""
        for show, weight in zip(self._weights, self.station.weights, strict=True):
            show(weight)

    def evaluate(self) -> None:
        """Also air and pump."""
        super().evaluate()
        if self.plc.alive:
            self._air(self.station.air_ok())
            self._pump()

    def power_up(self) -> None:
        """The last weights stay visible."""
        super().power_up()
        self.result()

    def power_down(self) -> None:
        """The pump drops too."""
        super().power_down()
        self.station.enable_pump(False)

    def look(self) -> None:
        """Bowl."""
        super().look()
        self._level(self.station.level())
        self._temp(self.station.temperature())

    def _pump(self) -> None:
        self.station.enable_pump(bool(self.plc.peek("filler.pump")) and not self.hard_cause())


class PackerProgram(Machine):
    """Case size, axis, gripper, cases."""

    station: Packer

    def __init__(self, plc: VirtualPlc, agenda: Agenda, station: Packer, *, estop_ok: Check, tripped: Check) -> None:
        super().__init__(plc, agenda, station, estop_ok=estop_ok, tripped=tripped)
        self._cases, self._x = plc.setter("packer.cases"), plc.setter("packer.x_pos")
        self._vacuum, self._grip = plc.setter("packer.vacuum"), plc.setter("packer.grip_ok")
        self._home = plc.setter("packer.x_home")
        self._at_rest = False

    def take_setpoints(self) -> None:
        """Bottles per case."""
        self.station.case_size = int(self.number("case_size"))

    def setpoints_ok(self) -> bool:
        """1..48 bottles."""
        return 1 <= self.station.case_size <= 48

    def result(self) -> None:
        """A case was ejected."""
        self._cases(self.station.cases % ROLL_OVER)

    def power_up(self) -> None:
        """Cases are retained."""
        super().power_up()
        self.result()
        self._at_rest = False

    def look(self) -> None:
        """Axis and gripper, while they move."""
        super().look()
        station = self.station
        if not station.running and self._at_rest:
            return
        self._at_rest = not station.running
        x, vacuum = station.x_position(), station.vacuum()
        self._x(x)
        self._home(x < 0.5)
        self._vacuum(vacuum)
        self._grip(vacuum > 60.0)


class CapperProgram(Machine):
    """Torque, feeder, hopper."""

    station: Capper

    def __init__(self, plc: VirtualPlc, agenda: Agenda, station: Capper, *, estop_ok: Check, tripped: Check) -> None:
        super().__init__(plc, agenda, station, estop_ok=estop_ok, tripped=tripped)
        self._torque, self._angle = plc.setter("capper.torque"), plc.setter("capper.angle")
        self._low, self._air = plc.setter("capper.hopper_low"), plc.setter("capper.air_ok")

    def take_setpoints(self) -> None:
        """Target torque; feeder."""
        self.station.torque_sp = self.number("torque_sp")
        self.station.feeder = bool(self.plc.peek("capper.feeder"))
        self.station.feed()

    def setpoints_ok(self) -> bool:
        """0.3..5 N·m."""
        return 0.3 <= self.station.torque_sp <= 5.0

    def result(self) -> None:
        """A cap is on."""
        self._torque(self.station.torque)
        self._angle(self.station.angle)

    def evaluate(self) -> None:
        """Also hopper and air."""
        super().evaluate()
        if self.plc.alive:
            self._low(not self.station.hopper_ok)
            self._air(self.station.air_ok())

    def power_up(self) -> None:
        """The last result stays visible."""
        super().power_up()
        self.result()

    def power_down(self) -> None:
        """The feeder drops too."""
        super().power_down()
        self.station.feeder = False


class LabelerProgram(Machine):
    """Print job, vacuum, web. A job is taken over 1.2 s after it was written, and only at rest."""

    station: Labeler

    def __init__(self, plc: VirtualPlc, agenda: Agenda, station: Labeler, *, estop_ok: Check, tripped: Check) -> None:
        super().__init__(plc, agenda, station, estop_ok=estop_ok, tripped=tripped)
        self._tension, self._roll = plc.setter("labeler.web_tension"), plc.setter("labeler.roll_dia")
        self._job_active = plc.setter("labeler.job_active")
        self._ribbon, self._web = plc.setter("labeler.ribbon_ok"), plc.setter("labeler.web_ok")
        self._job_due = NEVER
        self._wanted = ""

    def take_setpoints(self) -> None:
        """Vacuum at once; a new job after its time."""
        self.station.vacuum = bool(self.plc.peek("labeler.vacuum"))
        wanted = str(self.plc.peek("labeler.job"))
        if wanted != self._wanted:
            self._wanted = wanted
            self._later()

    def setpoints_ok(self) -> bool:
        """There is a print job."""
        return self.station.job != ""

    def result(self) -> None:
        """A label is on."""
        self._roll(self.station.roll_dia)

    def evaluate(self) -> None:
        """Also web and ribbon; a job that waits for the machine to stand."""
        super().evaluate()
        if self.plc.alive:
            self._ribbon(True)
            self._web(self.station.web_ok)
            if self._wanted != self.station.job and self._job_due == NEVER and not self.station.running:
                self._later()

    def power_up(self) -> None:
        """The printer forgets its job."""
        self._job_due = NEVER
        self._wanted = self.station.job = ""
        super().power_up()
        self.result()
        self._job_active("")

    def look(self) -> None:
        """Web tension."""
        super().look()
        self._tension(self.station.tension.value(self.agenda.now))

    def _later(self) -> None:
        self._job_due = self.agenda.now + JOB_TAKEOVER
        self.agenda.at(self._job_due, self._take_job)

    def _take_job(self) -> None:
        if self.agenda.now != self._job_due:
            return
        self._job_due = NEVER
        if self.plc.alive and not self.station.running and self._wanted:
            self.station.job = self._wanted
            self._job_active(self._wanted)
