"""An infeed conveyor with a gate: the belt runs, the gate lets product into the line."""

from __future__ import annotations

from controller.core.io import Output
from controller.core.sequence import Steps
from controller.stations.equipment import MachineIO, supervise
from controller.stations.machine import Machine


class ConveyorIO(MachineIO):
    """A machine with a gate at its inlet."""

    gate: Output[bool]


class Conveyor(Machine):
    """The gate is open in Execute alone, so run-out begins by closing it."""

    IO = ConveyorIO
    io: ConveyorIO

    def execute(self) -> Steps:
        """Gate open as long as the state lasts."""
        self.io.gate.set(True)
        try:
            yield from supervise(self.name, self.io)
        finally:
            self.io.gate.set(False)
