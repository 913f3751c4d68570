"""The program of the PLC ``inspect``: the checkweigher, which runs PackML itself, and the line's utilities."""

from __future__ import annotations

import math
from collections.abc import Callable

from hil.lines.bottling.inline import Checkweigher
from hil.lines.bottling.plant import Utility
from hil.plant import MS, NEVER, SECOND, Agenda
from hil.plc import packml
from hil.plc.commands import Arrival, NumberedCommand
from hil.plc.counters import Counters
from hil.plc.machine import ESTOP, GUARD, JAM, MIXED, MOTOR, VISION, WATCHDOG
from hil.plc.virtual import VirtualPlc

ACTING = {packml.STARTING: 500 * MS, packml.RESETTING: 400 * MS, packml.COMPLETING: 300 * MS}
"""How long an acting state lasts at least; 200 ms when not listed."""
RECIPE_TAKEOVER = 400 * MS
ACCEPTED, REFUSED, EXPIRED = 1, 2, 3


class CheckweigherProgram(Counters):
    """PackML, the command handshake, the verdict on each bottle.

    Start is refused without sound limits and a code; Clear as long as the cause of the abort is there.
    """

    station: Checkweigher

    def __init__(
        self, plc: VirtualPlc, agenda: Agenda, station: Checkweigher, *,
        estop_ok: Callable[[], bool], tripped: Callable[[], bool], clock: Callable[[], int],
    ) -> None:  # fmt: skip
        super().__init__(plc, agenda, station)
        self._estop_ok, self._tripped, self._clock = estop_ok, tripped, clock
        self.state = packml.ABORTED
        self.fault = 0
        self._done_due = self._recipe_due = self._overload_due = NEVER
        self._low = self._high = 0.0
        self._recipe = self._wanted = ""
        self._commands = NumberedCommand()
        points = (
            "state_current", "cmd_ack", "cmd_result", "weight", "cap_ok", "label_ok", "code_text", "frame_id",
            "reject_full", "recipe_active",
        )  # fmt: skip
        self._results = {point: plc.setter(f"checkweigher.{point}") for point in points}

    # ---- Unit

    def power_up(self) -> None:
        """Aborted, without recipe; counters kept."""
        self.fault = 0
        self._commands.restart()
        self._done_due = self._recipe_due = self._overload_due = NEVER
        self._recipe = self._wanted = ""
        self._low = self._high = 0.0
        self._enter(packml.ABORTED)
        self.show_counters()
        self._show_bottle()
        self.evaluate()

    def power_down(self) -> None:
        """The belt drops."""
        self._done_due = self._recipe_due = self._overload_due = NEVER
        self.station.drive(False)

    def written(self, point: str) -> None:
        """Command, limits, code."""
        if point == "cmd_id":
            self._numbered()
        elif point in ("limit_low", "limit_high"):
            self._low, self._high = self._real("limit_low"), self._real("limit_high")
        elif point == "recipe_id":
            self._wanted = str(self.plc.peek("checkweigher.recipe_id"))
            self._recipe_later()

    def look(self) -> None:
        """Nothing moves by itself."""

    def evaluate(self) -> None:
        """Abort when something is wrong; show guards and bin."""
        if not self.plc.alive:
            return
        cause = self._cause()
        if cause:
            self._abort(cause)
        self._watch_overload()
        self._results["reject_full"](self.station.bin_full)
        self._shows["fault_code"](self.fault)
        self._shows["door_closed"](self.station.door_closed)
        self._shows["estop_ok"](self._estop_ok())
        self.watch_flow()

    # ---- Sensors

    def changed(self) -> None:
        """Something about the station changed."""
        self.evaluate()

    def judge(self) -> bool:
        """Reject what is out of limits (a NaN limit rejects everything), or has a bad cap, label or code."""
        self._show_bottle()
        station = self.station
        good = self._low <= station.weight <= self._high and station.cap_ok and station.label_ok
        return not (good and station.code == self._recipe)

    # ---- PackML

    def _numbered(self) -> None:
        arrival = self._commands.arrived(self._whole("cmd_id"), self._whole("cmd_valid_until"), self._clock())
        if arrival is Arrival.OLD:
            return
        if arrival is Arrival.LATE:
            self._results["cmd_result"](EXPIRED)
        else:
            self._results["cmd_result"](ACCEPTED if self._command(self._whole("cntrl_cmd")) else REFUSED)
        self._results["cmd_ack"](self._commands.last)

    def _command(self, command: int) -> bool:
        target = packml.COMMANDS.get((self.state, command))
        if target is None:
            return False
        if command == packml.CLEAR and (self._cause() or self.station.jammed):
            return False
        sound = math.isfinite(self._low) and math.isfinite(self._high) and 0.0 <= self._low < self._high
        if command == packml.START and not (sound and self._recipe):
            return False
        self._enter(target)
        return True

    def _enter(self, state: int) -> None:
        self.state = state
        if state == packml.CLEARING:
            self.fault = 0
            self._shows["fault_code"](0)
        self._results["state_current"](state)
        self.station.drive(state in (packml.EXECUTE, packml.COMPLETING))
        self._done_due = NEVER
        if state in packml.DONE and self.state == state:
            self._done_later(ACTING.get(state, 200 * MS))
        if self._wanted != self._recipe and self._recipe_due == NEVER:
            self._recipe_later()
        self.watch_flow()

    def _done_later(self, delay: int) -> None:
        self._done_due = self.agenda.now + delay
        self.agenda.at(self._done_due, self._done)

    def _done(self) -> None:
        if self.agenda.now != self._done_due or not self.plc.alive:
            return
        if self.state == packml.COMPLETING and self.inside:
            self._done_later(100 * MS)
            return
        self._enter(packml.DONE[self.state])

    def _abort(self, cause: int) -> None:
        if not self.fault:
            self.fault = cause
        if self.state not in (packml.ABORTING, packml.ABORTED):
            self._enter(packml.ABORTING)

    def _cause(self) -> int:
        if not self._estop_ok():
            return ESTOP
        if not self.station.door_closed:
            return GUARD
        if not self.station.motor_ok:
            return MOTOR
        if self._tripped():
            return WATCHDOG
        if not self.station.vision_ok:
            return VISION
        return MIXED if self.station.misfit else 0

    def _watch_overload(self) -> None:
        if not (self.station.running and self.station.jammed):
            self._overload_due = NEVER
        elif self._overload_due == NEVER:
            self._overload_due = self.agenda.now + SECOND
            self.agenda.at(self._overload_due, self._overloaded)

    def _overloaded(self) -> None:
        if self.agenda.now == self._overload_due and self.plc.alive:
            self._overload_due = NEVER
            self._abort(JAM)
            self.evaluate()

    # ---- recipe and results

    def _recipe_later(self) -> None:
        self._recipe_due = self.agenda.now + RECIPE_TAKEOVER
        self.agenda.at(self._recipe_due, self._take_recipe)

    def _take_recipe(self) -> None:
        if self.agenda.now != self._recipe_due or not self.plc.alive:
            return
        self._recipe_due = NEVER
        if not self.station.running:
            self._recipe = self._wanted
            self._results["recipe_active"](self._recipe)

    def _show_bottle(self) -> None:
        station, show = self.station, self._results
        show["weight"](station.weight)
        show["cap_ok"](station.cap_ok)
        show["label_ok"](station.label_ok)
        show["code_text"](station.code)
        show["frame_id"](station.frame_id)

    def _whole(self, point: str) -> int:
        value = self.plc.peek(f"checkweigher.{point}")
        assert isinstance(value, int)
        return value

    def _real(self, point: str) -> float:
        value = self.plc.peek(f"checkweigher.{point}")
        assert isinstance(value, int | float)
        return float(value)


class UtilityProgram:
    """Air, power, energy, temperature; the compressor's switch, on by default."""

    name = "utility"

    def __init__(self, plc: VirtualPlc, agenda: Agenda, utility: Utility) -> None:
        self._plc, self._agenda, self._utility = plc, agenda, utility
        self._air, self._power = plc.setter("utility.air_pressure"), plc.setter("utility.power")
        self._energy, self._temp = plc.setter("utility.energy"), plc.setter("utility.hall_temp")
        self._compressor = plc.setter("utility.compressor_run")

    def power_up(self) -> None:
        """Compressor on."""
        self._compressor(True)
        self._utility.set_air(compressor=True)

    def power_down(self) -> None:
        """The compressor drops."""
        self._utility.set_air(compressor=False)

    def written(self, point: str) -> None:
        """Switch the compressor."""
        if point == "compressor_run":
            self._utility.set_air(compressor=bool(self._plc.peek("utility.compressor_run")))

    def look(self) -> None:
        """Show the meters, to the resolution of each."""
        utility = self._utility
        self._air(round(utility.air.value(self._agenda.now), 2))
        self._power(round(utility.power(), 2))
        self._energy(round(utility.energy(), 3))
        self._temp(round(utility.hall_temperature(), 1))

    def evaluate(self) -> None:
        """Nothing of the line's faults concerns the utilities."""
