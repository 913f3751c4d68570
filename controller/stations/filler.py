"""A filler: a bowl that its pump keeps full, and nozzles that the PLC opens and shuts."""

from __future__ import annotations

from dataclasses import dataclass

from controller.core.io import Input, Output
from controller.core.sequence import Steps, Until
from controller.stations.equipment import MachineIO, MachineSettings
from controller.stations.machine import Machine


class FillerIO(MachineIO):
    """A machine with a bowl and its pump."""

    pump: Output[bool]
    bowl_level: Input[float]


@dataclass(frozen=True, slots=True)
class FillerSettings(MachineSettings):
    """``bowl_min`` in % is needed to start; the pump has ``fill_limit_s`` to reach it."""

    bowl_min: float = 30.0
    fill_limit_s: float = 30.0


class Filler(Machine):
    """Fill the bowl, then the bottles."""

    IO = FillerIO
    Settings = FillerSettings
    io: FillerIO
    settings: FillerSettings

    def starting(self) -> Steps:
        """Pump on, bowl filled, machine on."""
        io, settings = self.io, self.settings
        io.pump.set(True)
        yield Until(
            lambda: io.bowl_level.value >= settings.bowl_min,
            settings.fill_limit_s, "bowl_not_filled", f"bowl filled to {settings.bowl_min:g} %",
        )  # fmt: skip
        yield from super().starting()

    def unholding(self) -> Steps:
        """Pump and machine on again."""
        self.io.pump.set(True)
        yield from super().unholding()

    def stopping(self) -> Steps:
        """Machine off, then the pump."""
        yield from super().stopping()
        self.io.pump.set(False)
