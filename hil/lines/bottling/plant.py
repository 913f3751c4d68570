"""The bottling plant as a whole: six stations in a row, compressed air, power, and the books."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

from hil.lines.bottling.filler import Filler
from hil.lines.bottling.inline import Capper, Checkweigher, Infeed, Labeler
from hil.lines.bottling.packer import Packer
from hil.plant import SECOND, Agenda, Format, Lag, Station, generator

FORMATS = (Format("330", 62.0), Format("500", 72.0))
"""Bottles by content (ml) and body diameter (mm)."""
FIRST_RAIL_MM = 62.0
"""Where all rails stand when the line is switched on for the first time."""
AIR_BAR, AIR_MIN_BAR, LEAK_BAR = 7.0, 4.5, 2.0
"""Pressure with the compressor running, least that valves and heads need, and what a burst hose leaves."""
KILOWATTS = {"infeed": 0.4, "filler": 1.5, "capper": 0.9, "labeler": 0.7, "checkweigher": 0.3, "packer": 1.2}
BASE_KW, COMPRESSOR_KW = 2.0, 4.0


class BottlingPlant:
    """Physics of the line. PLC programs hang themselves into the stations' ``sensors`` and call their drives."""

    def __init__(self, seed: int, agenda: Agenda | None = None) -> None:
        self.agenda = agenda or Agenda()
        a, rail = self.agenda, FIRST_RAIL_MM
        self.infeed = Infeed(a, generator(seed, "infeed"), rail, FORMATS)
        self.filler = Filler(a, generator(seed, "filler"), rail)
        self.capper = Capper(a, generator(seed, "capper"), rail)
        self.labeler = Labeler(a, generator(seed, "labeler"), rail)
        self.checkweigher = Checkweigher(a, generator(seed, "checkweigher"), rail)
        self.packer = Packer(a, generator(seed, "packer"), rail)
        row: list[Station] = [
            self.infeed, self.filler, self.capper, self.labeler, self.checkweigher, self.packer,
        ]  # fmt: skip
        for up, down in pairwise(row):
            up.down, down.up = down, up
        self.stations = {station.name: station for station in row}
        self.estop_ok = True
        self.utility = Utility(self)
        for station in row:
            station.driven = self.utility.load_changed
        self.filler.air_ok = self.capper.air_ok = lambda: self.utility.air_ok

    def advance(self, until_ns: int) -> None:
        """Simulate up to a time. Raises ``ValueError`` for one in the past."""
        self.agenda.advance(until_ns)

    def set_estop(self, ok: bool) -> None:
        """Open or close the emergency stop chain of the whole line."""
        if ok != self.estop_ok:
            self.estop_ok = ok
            for station in self.stations.values():
                station.sensors.changed()

    def truth(self) -> dict[str, Any]:
        """What really is where: per station, for the line and per format, counted from the bottles themselves.

        ``in_process`` counts the bottles that are there now; the other columns were counted as bottles moved. Then
        infeed = good + rejected + in_process, for each station, the line, and each format.
        """
        stations: dict[str, dict[str, int]] = {}
        inside: dict[str, int] = {kind.name: 0 for kind in FORMATS}
        for name, station in self.stations.items():
            present = 0
            for bottle in station.bottles():
                present += 1
                inside[bottle.format.name] += 1
            stations[name] = _row(
                sum(station.tally.infeed.values()),
                sum(station.tally.good.values()),
                sum(station.tally.rejected.values()),
                present,
            )
        everywhere = self.stations.values()
        products = {
            name: _row(
                self.infeed.tally.infeed.get(name, 0),
                self.packer.tally.good.get(name, 0),
                sum(s.tally.rejected.get(name, 0) for s in everywhere),
                present,
            )
            for name, present in inside.items()
        }
        line = {column: sum(row[column] for row in products.values()) for column in _row(0, 0, 0, 0)}
        return {
            "now_s": self.agenda.now / SECOND,
            "stations": stations,
            "line": line,
            "products": products,
            "cases": self.packer.cases,
            "packed_bad": self.packer.packed_bad,
        }


class Utility:
    """Compressed air and electricity of the line."""

    def __init__(self, plant: BottlingPlant) -> None:
        self._plant, self._agenda = plant, plant.agenda
        self.compressor = True
        self.leak = False
        self.air = Lag(AIR_BAR, 60.0)
        self.air_ok = True
        self._energy = 0.0
        self._since = 0
        self._kw = self._load()

    def set_air(self, *, compressor: bool | None = None, leak: bool | None = None) -> None:
        """Switch the compressor, or burst (or mend) a hose."""
        self.compressor = self.compressor if compressor is None else compressor
        self.leak = self.leak if leak is None else leak
        target = 0.0 if not self.compressor else LEAK_BAR if self.leak else AIR_BAR
        self.air.drive(self._agenda.now, target, 4.0 if self.leak or target > 0.0 else 60.0)
        self.load_changed()
        self._agenda.at(self.air.when(AIR_MIN_BAR, self._agenda.now), self._check)

    def load_changed(self) -> None:
        """A drive was switched: book the energy so far."""
        self._energy = self.energy()
        self._since, self._kw = self._agenda.now, self._load()

    def energy(self) -> float:
        """kW·h since commissioning."""
        return self._energy + self._kw * (self._agenda.now - self._since) / (3600 * SECOND)

    def power(self) -> float:
        """kW now."""
        return self._kw

    def hall_temperature(self) -> float:
        """°C: 21 with the day's swing of 1.5."""
        return 21.0 + 1.5 * math.sin(self._agenda.now / SECOND * math.tau / 86_400)

    def _load(self) -> float:
        running = sum(KILOWATTS[name] for name, station in self._plant.stations.items() if station.running)
        return BASE_KW + running + (COMPRESSOR_KW if self.compressor else 0.0)

    def _check(self) -> None:
        ok = self.air.value(self._agenda.now + 1000) >= AIR_MIN_BAR
        if ok != self.air_ok:
            self.air_ok = ok
            for station in (self._plant.filler, self._plant.capper):
                station.sensors.changed()
                station.neighbour_changed()


def _row(infeed: int, good: int, rejected: int, in_process: int) -> dict[str, int]:
    return {"infeed": infeed, "good": good, "rejected": rejected, "in_process": in_process}
