"""A capper: caps from a feeder, a head that its PLC turns."""

from __future__ import annotations

from controller.core.io import Output
from controller.core.sequence import Steps
from controller.stations.equipment import MachineIO
from controller.stations.machine import Machine


class CapperIO(MachineIO):
    """A machine with a cap feeder."""

    feeder: Output[bool]


class Capper(Machine):
    """The feeder runs with the machine."""

    IO = CapperIO
    io: CapperIO

    def starting(self) -> Steps:
        """Caps first, then the machine."""
        self.io.feeder.set(True)
        yield from super().starting()

    def holding(self) -> Steps:
        """Machine and feeder off."""
        yield from self.stopping()

    def unholding(self) -> Steps:
        """On again."""
        self.io.feeder.set(True)
        yield from super().unholding()

    def stopping(self) -> Steps:
        """Machine off, then the feeder."""
        yield from super().stopping()
        self.io.feeder.set(False)
