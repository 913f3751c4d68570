"""The program of a virtual PLC: life signs both ways, and one unit per machine.

A *unit* reacts to what its station reports, to what clients write and to time; between those nothing runs, so an
idle machine costs nothing. All reactions happen at the instant of their cause (an infinitely fast PLC scan).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from hil.plant import MS, NEVER, SECOND, Agenda
from hil.plc.memory import Setter
from hil.plc.virtual import VirtualPlc

HEARTBEAT = 100 * MS
WATCHDOG = SECOND
MAP_VERSION = 1
PATTERN = 0x01020304
"""What shows a wrong word order: every byte is another one."""


CLOCK_JUMP = 120_000
"""Milliseconds by which the clock jumps ahead at each start: more than any command is valid for."""


class Unit(Protocol):
    """One machine's part of a program; ``name`` is the group of its points."""

    name: str

    def power_up(self) -> None:
        """Start with volatile state lost, and show everything."""

    def power_down(self) -> None:
        """Outputs drop."""

    def written(self, point: str) -> None:
        """A client wrote the point ``<name>.<point>``."""

    def look(self) -> None:
        """Show values that move by themselves."""

    def evaluate(self) -> None:
        """Something that may stop or free the machine changed."""


class PlcProgram:
    """Heartbeat, identity (map version, and a pattern where numbers span registers), boot counter, a clock where the
    register list has one, watchdog over the controller, and the units.

    The watchdog is armed by the first change of its word. If the word then stands for 1 s, ``tripped`` is set and
    every unit stops with fault 9; the next change only lifts the cause, the fault stays until it is reset.
    """

    def __init__(self, plc: VirtualPlc, agenda: Agenda, units: Sequence[Unit]) -> None:
        self.plc, self.units = plc, units
        self.tripped = False
        self._agenda = agenda
        self._by_name = {unit.name: unit for unit in units}
        self._heartbeat = plc.setter(f"{plc.name}.heartbeat")
        self._boots = plc.setter(f"{plc.name}.boot_count")
        self._version = plc.setter(f"{plc.name}.map_version")
        self._pattern = self._if_listed("pattern")
        self._clock = self._if_listed("clock")
        self._word = f"{plc.name}.watchdog"
        self._last_word: object = 0
        self._last_change = 0
        self._armed = False
        self._check_at = NEVER
        self._up_since = 0
        self._kept_clock = 0

    def power_up(self) -> None:
        """Start: watchdog not armed, units faultless and at rest."""
        self.tripped = self._armed = False
        self._last_word = 0
        self._check_at = NEVER
        self._kept_clock += CLOCK_JUMP
        self._up_since = self._agenda.now
        self._boots(self.plc.boot_count % 65536)
        self._version(MAP_VERSION)
        if self._pattern is not None:
            self._pattern(PATTERN)
        for unit in self.units:
            unit.power_up()

    def power_down(self) -> None:
        """Everything stops."""
        self._kept_clock = self.clock()
        self._check_at = NEVER
        for unit in self.units:
            unit.power_down()

    def written(self, point: str) -> None:
        """Feed the watchdog, or hand the write to its unit."""
        if point == self._word:
            self._fed()
            return
        group, _, name = point.partition(".")
        self._by_name[group].written(name)

    def look(self) -> None:
        """Count the heartbeat; let the units show what moves."""
        self._heartbeat((self._agenda.now - self._up_since) // HEARTBEAT % 65536)
        if self._clock is not None:
            self._clock(self.clock())
        for unit in self.units:
            unit.look()

    def clock(self) -> int:
        """Milliseconds, as a UDINT; retained, and ahead of every validity given before the last start."""
        return (self._kept_clock + (self._agenda.now - self._up_since) // MS) % (1 << 32)

    def _if_listed(self, point: str) -> Setter | None:
        name = f"{self.plc.name}.{point}"
        return self.plc.setter(name) if name in self.plc.points else None

    def _fed(self) -> None:
        word = self.plc.peek(self._word)
        if word == self._last_word:
            return
        self._last_word = word
        self._last_change = self._agenda.now
        self._armed = True
        if self._check_at == NEVER:
            self._check_at = self._last_change + WATCHDOG
            self._agenda.at(self._check_at, self._check)
        if self.tripped:
            self.tripped = False
            for unit in self.units:
                unit.evaluate()

    def _check(self) -> None:
        now = self._agenda.now
        if now != self._check_at or not self._armed:
            return
        due = self._last_change + WATCHDOG
        if due > now:
            self._check_at = due
            self._agenda.at(due, self._check)
            return
        self._check_at = NEVER
        self.tripped = True
        for unit in self.units:
            unit.evaluate()
