"""Station kinds: one small, pure file per kind of station.

``KINDS`` maps the ``kind`` of line.yaml to its class. ``sequence`` stations are declared in line.yaml itself.
"""

from controller.core.behaviour import Behaviour
from controller.stations.capper import Capper
from controller.stations.conveyor import Conveyor
from controller.stations.filler import Filler
from controller.stations.machine import Machine
from controller.stations.packml_plc import PackmlPlc

SEQUENCE = "sequence"

KINDS: dict[str, type[Behaviour]] = {
    "machine": Machine,
    "conveyor": Conveyor,
    "filler": Filler,
    "capper": Capper,
    "packml_plc": PackmlPlc,
}
"""Kinds written in Python; ``sequence`` is the one that needs none."""
