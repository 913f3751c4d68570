"""Plant physics, pure: time is handed in as integer nanoseconds, noise comes from seeded generators.

Nothing is stepped. Whatever will happen next (a bottle reaches a place, a cycle ends) is an entry in the
:class:`Agenda`; what moves in between (a belt, an axis, a pressure) is a closed formula that is worked out when
somebody looks.
"""

from hil.plant.agenda import MS, NEVER, SECOND, Agenda
from hil.plant.motion import Axis, Belt, Lag, RunClock
from hil.plant.noise import generator
from hil.plant.station import Bottle, Format, Pipeline, Sensors, Station, Tally

__all__ = [
    "MS",
    "NEVER",
    "SECOND",
    "Agenda",
    "Axis",
    "Belt",
    "Bottle",
    "Format",
    "Lag",
    "Pipeline",
    "RunClock",
    "Sensors",
    "Station",
    "Tally",
    "generator",
]
