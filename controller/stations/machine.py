"""A machine that needs nothing but its run bit: its PLC does the rest."""

from __future__ import annotations

from controller.core.behaviour import Behaviour
from controller.core.sequence import Steps
from controller.stations.equipment import (
    MachineIO,
    MachineSettings,
    reset_fault,
    run_down,
    run_empty,
    run_up,
    supervise,
)


class Machine(Behaviour):
    """Run while executing; run empty on Complete. Kinds that add a pump or a gate extend the states it touches."""

    IO = MachineIO
    Settings = MachineSettings
    io: MachineIO
    settings: MachineSettings

    def clearing(self) -> Steps:
        """A fault is gone before the station is Stopped."""
        yield from reset_fault(self.name, self.io, self.settings.limit_s, "abort")

    def resetting(self) -> Steps:
        """The same before it is Idle."""
        yield from reset_fault(self.name, self.io, self.settings.limit_s, "stop")

    def starting(self) -> Steps:
        """Run, with feedback."""
        yield from run_up(self.name, self.io, self.settings.limit_s)

    def execute(self) -> Steps:
        """Supervise."""
        yield from supervise(self.name, self.io)

    def completing(self) -> Steps:
        """Run empty, then stand."""
        yield from run_empty(self.name, self.io, self.settings.empty_limit_s)
        yield from self.stopping()

    def holding(self) -> Steps:
        """Stand; what is in the station stays where it is."""
        yield from run_down(self.name, self.io, self.settings.limit_s)

    def unholding(self) -> Steps:
        """Run again."""
        yield from run_up(self.name, self.io, self.settings.limit_s, "stop")

    def stopping(self) -> Steps:
        """Stand."""
        yield from run_down(self.name, self.io, self.settings.limit_s)
