"""What can be made to go wrong in the bottling line, by name."""

from __future__ import annotations

from collections.abc import Mapping

from hil.lines.bottling.plant import BottlingPlant
from hil.plc.virtual import VirtualPlc
from hil.plc.world import Fault, FaultError, Param


def catalogue(plant: BottlingPlant, plcs: Mapping[str, VirtualPlc]) -> dict[str, Fault]:
    """All faults of the line. ``FaultError`` is raised by those whose parameters name nothing."""
    stations = tuple(plant.stations)
    faults: dict[str, Fault] = {}
    faults.update(_machine_faults(plant, stations))
    faults.update(_process_faults(plant))
    faults.update(_plc_faults(plcs))
    return faults


def _machine_faults(plant: BottlingPlant, stations: tuple[str, ...]) -> dict[str, Fault]:
    station = Param("infeed", choices=stations)

    def door(name: str, closed: bool) -> None:
        plant.stations[name].door_closed = closed
        plant.stations[name].sensors.changed()

    def motor(name: str, ok: bool) -> None:
        plant.stations[name].motor_ok = ok
        plant.stations[name].sensors.changed()

    return {
        "jam": Fault(
            "A bottle sticks at the station's work place; clear = the technician frees it",
            {"station": station},
            lambda p: plant.stations[str(p["station"])].arm_jam(),
            lambda p: plant.stations[str(p["station"])].free_jam(),
        ),
        "motor_trip": Fault(
            "Motor protection trips",
            {"station": station},
            lambda p: motor(str(p["station"]), False),
            lambda p: motor(str(p["station"]), True),
        ),
        "door_open": Fault(
            "A guard door is opened",
            {"station": station},
            lambda p: door(str(p["station"]), False),
            lambda p: door(str(p["station"]), True),
        ),
        "estop": Fault(
            "Emergency stop, the whole line",
            {},
            lambda p: plant.set_estop(False),
            lambda p: plant.set_estop(True),
        ),
        "mixed_product": Fault(
            "Not injected but made, by wrong rails; clear = the technician takes bottles that do not fit out",
            {"station": station},
            None,
            lambda p: plant.stations[str(p["station"])].scrap_misfits(),
        ),
    }


def _process_faults(plant: BottlingPlant) -> dict[str, Fault]:
    filler, infeed, cw = plant.filler, plant.infeed, plant.checkweigher

    def stick(value: bool | None) -> None:
        infeed.stuck_eye = value

    def hopper(ok: bool) -> None:
        plant.capper.hopper_ok = ok
        plant.capper.feed()
        plant.capper.sensors.changed()
        plant.capper.neighbour_changed()

    def clog(nozzle: int, share: float | None) -> None:
        if share is None:
            filler.clogged.pop(nozzle - 1, None)
        else:
            filler.clogged[nozzle - 1] = share

    def vision(ok: bool) -> None:
        cw.vision_ok = ok
        cw.sensors.changed()

    def bin_full(full: bool) -> None:
        cw.set_bin(full)
        cw.sensors.changed()

    nozzle = Param(1, low=1, high=4)
    return {
        "sensor_stuck": Fault(
            "An eye says the same for ever; bottles that pass it meanwhile are missing in the PLC's count",
            {"sensor": Param("infeed.eye_out", choices=("infeed.eye_out",)), "value": Param(True)},
            lambda p: stick(bool(p["value"])),
            lambda p: stick(None),
        ),
        "web_break": Fault(
            "The label web tears",
            {},
            lambda p: plant.labeler.set_web(False),
            lambda p: plant.labeler.set_web(True),
        ),
        "hopper_empty": Fault(
            "No caps in the hopper; the chute still has some", {}, lambda p: hopper(False), lambda p: hopper(True)
        ),
        "clogged_nozzle": Fault(
            "A nozzle lets through only a share of its flow",
            {"nozzle": nozzle, "share": Param(0.5, low=0.0, high=1.0)},
            lambda p: clog(int(p["nozzle"]), float(p["share"])),
            lambda p: clog(int(p["nozzle"]), None),
            key=("nozzle",),
        ),
        "scale_drift": Fault(
            "The filler's scales drift (g per minute, positive = bottles get too light)",
            {"rate": Param(0.1, low=-100.0, high=100.0)},
            lambda p: filler.set_drift(float(p["rate"])),
            lambda p: filler.set_drift(0.0),
        ),
        "air_loss": Fault(
            "A hose bursts: compressed air falls",
            {},
            lambda p: plant.utility.set_air(leak=True),
            lambda p: plant.utility.set_air(leak=False),
        ),
        "vision_offline": Fault("The camera is off", {}, lambda p: vision(False), lambda p: vision(True)),
        "reject_full": Fault("The reject bin is full", {}, lambda p: bin_full(True), lambda p: bin_full(False)),
    }


def _plc_faults(plcs: Mapping[str, VirtualPlc]) -> dict[str, Fault]:
    plc = {"plc": Param(next(iter(plcs)), choices=tuple(plcs))}

    def restart(name: str) -> None:
        if not plcs[name].alive:
            plcs[name].restart()

    return {
        "plc_kill": Fault(
            "A PLC loses power; clear = power is back",
            plc,
            lambda p: plcs[str(p["plc"])].kill(),
            lambda p: restart(str(p["plc"])),
        ),
        "plc_restart": Fault(
            "A PLC restarts, or comes back when it was off",
            plc,
            lambda p: plcs[str(p["plc"])].restart(),
            None,
            ends="plc_kill",
        ),
    }


__all__ = ["FaultError", "catalogue"]
