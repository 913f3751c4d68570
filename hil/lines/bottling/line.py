"""Wires the bottling plant to its PLCs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from hil.lines.bottling.faults import catalogue
from hil.lines.bottling.inspect import CheckweigherProgram, UtilityProgram
from hil.lines.bottling.plant import BottlingPlant
from hil.lines.bottling.programs import (
    CapperProgram,
    FillerProgram,
    InfeedProgram,
    LabelerProgram,
    PackerProgram,
)
from hil.plant import Agenda
from hil.plc.program import PlcProgram
from hil.plc.virtual import VirtualPlc
from hil.plc.world import Line

REGISTERS = Path(__file__).with_name("registers.csv")
DEVICE_IDS = {"wet": 10, "dry": 17}
"""Modbus unit identifiers of the PLCs."""
SERIAL = ("dry",)
"""PLCs on a serial line (Modbus RTU)."""


def build(seed: int, agenda: Agenda, plcs: Mapping[str, VirtualPlc]) -> Line:
    """The plant with a program in each of its PLCs, not switched on yet."""
    plant = BottlingPlant(seed, agenda)
    programs: dict[str, PlcProgram] = {}

    def estop_ok() -> bool:
        return plant.estop_ok

    def watchdog(name: str) -> bool:
        return name in programs and programs[name].tripped

    wet, dry, inspect = plcs["wet"], plcs["dry"], plcs["inspect"]

    def on_wet() -> bool:
        return watchdog("wet")

    def on_dry() -> bool:
        return watchdog("dry")

    def on_inspect() -> bool:
        return watchdog("inspect")

    def clock() -> int:
        return programs["inspect"].clock()

    programs["wet"] = PlcProgram(
        wet,
        agenda,
        (
            InfeedProgram(wet, agenda, plant.infeed, estop_ok=estop_ok, tripped=on_wet),
            FillerProgram(wet, agenda, plant.filler, estop_ok=estop_ok, tripped=on_wet),
            PackerProgram(wet, agenda, plant.packer, estop_ok=estop_ok, tripped=on_wet),
        ),
    )
    programs["dry"] = PlcProgram(
        dry,
        agenda,
        (
            CapperProgram(dry, agenda, plant.capper, estop_ok=estop_ok, tripped=on_dry),
            LabelerProgram(dry, agenda, plant.labeler, estop_ok=estop_ok, tripped=on_dry),
        ),
    )
    programs["inspect"] = PlcProgram(
        inspect,
        agenda,
        (
            CheckweigherProgram(
                inspect, agenda, plant.checkweigher, estop_ok=estop_ok, tripped=on_inspect, clock=clock
            ),
            UtilityProgram(inspect, agenda, plant.utility),
        ),
    )
    return Line(programs=programs, faults=catalogue(plant, plcs), truth=plant.truth)
