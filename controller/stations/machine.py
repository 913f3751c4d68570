"""A machine that needs nothing but its run bit: its PLC does the rest."""

from __future__ import annotations

from controller.core.behaviour import Behaviour
from controller.core.packml import State
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

AT_REST = frozenset({State.ABORTED, State.STOPPED, State.IDLE, State.HELD, State.COMPLETE})
RUN_OUT_NS = 3_000_000_000
"""Time a drive may take to come to rest and its feedback to say so."""


class Machine(Behaviour):
    """Run while executing; run empty on Complete. Kinds that add a pump or a gate extend the states it touches."""

    IO = MachineIO
    Settings = MachineSettings
    io: MachineIO
    settings: MachineSettings
    _runs_since_ns: int | None = None
    _runs_alone = False

    def watch(self, now_ns: int) -> tuple[str, str] | None:
        """Notice a machine that runs while nobody asked it to."""
        if self.state not in AT_REST or not self.io.running.is_(True):
            self._runs_since_ns, self._runs_alone = None, False
        elif self._runs_since_ns is None:
            self._runs_since_ns = now_ns
        else:
            self._runs_alone = now_ns - self._runs_since_ns > RUN_OUT_NS
        return None

    def complaint(self) -> str:
        """Motion without a command: somebody started it at the PLC, or it does not obey."""
        if not self._runs_alone:
            return ""
        return f"{self.name} runs while it is {self.state.text}: it was started at the PLC, or does not obey"

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
