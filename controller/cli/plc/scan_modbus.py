"""``linewright plc scan`` on Modbus: who is there, what can be read, who it says that it is. Reads only."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from controller.cli import console
from controller.cli.plc import explore
from controller.cli.plc.asker import ILLEGAL_FUNCTION, ILLEGAL_VALUE, NOBODY_THERE, Asker, Pace, Refused, Silent
from controller.cli.plc.explore import Explorer, Span
from controller.cli.plc.identify import identify
from controller.cli.plc.target import Target
from drivers.factory import Links
from drivers.plan import BITS
from drivers.port import Area, FieldBusError

AREAS = (Area.HOLDING_REGISTER, Area.INPUT_REGISTER, Area.COIL, Area.DISCRETE_INPUT)
ID_REQUESTS = 6
"""Requests of an identification, about."""
GIVE_UP = 3
"""Requests in a row without an answer after which an area is left."""
EVERYWHERE = 8
"""So many units asked, all of which answer: then the device does not look at the unit."""


@dataclass(frozen=True, kw_only=True)
class Scope:
    """How far to look."""

    units: Sequence[int]
    areas: Sequence[Area] = AREAS
    first: int = 0
    last: int = 9999
    budget: int = 300
    """Requests per unit and area."""
    rate: float = 50.0
    """Requests a second."""
    limit_s: float = 600.0

    def words(self, target: Target) -> str:
        """What will be sent, and how long that can take."""
        areas = len(self.areas) * self.budget + ID_REQUESTS
        units = len(self.units)
        waits = units * max(1 / self.rate, target.timeout_s)
        which = f"unit {self.units[0]}" if units == 1 else f"{units} units ({explore.text(explore.spans(self.units))})"
        names = ", ".join(f"{a} ({_function(a)})" for a in self.areas)
        return (
            f"This sends read requests only, one at a time, at most {self.rate:g} a second:\n"
            f"  1. function 3, one register, to {which}: up to {waits:.0f} s if nobody answers\n"
            f"  2. to each unit that answers, at most {self.budget} requests for each of\n"
            f"     {names}, addresses {self.first}..{self.last}\n"
            f"  3. functions 43/14 and 17; with 2. up to {areas / self.rate:.0f} s a unit\n"
            f"It ends after {self.limit_s:g} s at the latest.\n"
            "Do not do this on a running line: it takes the bus's time from the controller, and in\n"
            "some devices reading an address has an effect (a counter is cleared, a fault reset).\n"
            "Leave such addresses out with --avoid."
        )


@dataclass
class AreaFound:
    """One area of one unit."""

    area: Area
    readable: Sequence[Span] = ()
    unsettled: Sequence[Span] = ()
    largest: int = 0
    """Most addresses that were read in one request."""
    requests: int = 0
    note: str = ""

    def as_json(self) -> dict[str, object]:
        """For ``--json``."""
        return {
            "area": self.area, "readable": list(self.readable), "not_settled": list(self.unsettled),
            "largest_block": self.largest, "requests": self.requests, "note": self.note,
        }  # fmt: skip


@dataclass
class UnitFound:
    """One unit that answers."""

    unit: int
    areas: list[AreaFound] = field(default_factory=list)
    identity: dict[str, str] = field(default_factory=dict)
    slowest_ms: float = 0.0


class Scan:
    """Runs a scope; what was found so far is kept, whatever ends it."""

    def __init__(self, target: Target, scope: Scope, progress: Callable[[str], None]) -> None:
        self._target, self._scope, self._progress = target, scope, progress
        self._pace = Pace(scope.rate)
        links = Links()
        self._askers = {unit: Asker(target, unit, self._pace, links, first=scope.first) for unit in scope.units}
        self._end = time.monotonic() + scope.limit_s
        self.answering: list[int] = []
        self.gateway: list[int] = []
        """Units that a gateway answered for."""
        self.silent: list[int] = []
        self.every_unit = False
        self.units: list[UnitFound] = []
        self.out_of_time = False

    @property
    def requests(self) -> int:
        """Requests sent."""
        return self._pace.requests

    async def run(self) -> None:
        """Raises :class:`console.CliError` when there is not even a connection."""
        try:
            await self._sweep()
            for unit in self.answering[:1] if self.every_unit else self.answering:
                if not self._late():
                    await self._look_into(unit)
        finally:
            for asker in self._askers.values():
                await asker.close()

    async def _sweep(self) -> None:
        """Which units answer: anything but a gateway's exception is an answer."""
        scope, last = self._scope, None
        for number, (unit, asker) in enumerate(self._askers.items(), 1):
            if self._late():
                return
            self._progress(f"unit {unit} ({number} of {len(scope.units)}), {len(self.answering)} answer")
            try:
                await asker.connect()
            except FieldBusError as error:
                if last is None:
                    console.fail(str(error), console.Exit.NO_CONNECTION)
            if last is not None:
                await last.close()  # only now, so that the connection they share stays
            last = asker
            answer = await asker.knock()
            if isinstance(answer, Silent):
                self.silent.append(unit)
            elif isinstance(answer, Refused) and answer.code in NOBODY_THERE:
                self.gateway.append(unit)
            else:
                self.answering.append(unit)
            if number == EVERYWHERE and len(self.answering) == number:
                self.every_unit = True
                return

    async def _look_into(self, unit: int) -> None:
        asker, found = self._askers[unit], UnitFound(unit)
        self.units.append(found)
        for area in self._scope.areas:
            found.areas.append(await self._area(asker, unit, area))
        if not self._late():
            self._progress(f"unit {unit}: identification")
            found.identity = await identify(asker)
        found.slowest_ms = asker.slowest_ms

    async def _area(self, asker: Asker, unit: int, area: Area) -> AreaFound:
        scope, options = self._scope, self._target.modbus
        limit = options.max_bits if area in BITS else options.max_registers
        avoid = [(r.first, r.last) for r in options.avoid if r.area is area]
        explorer, found = Explorer(scope.first, scope.last, limit, avoid), AreaFound(area)
        silent = 0
        while found.requests < scope.budget and silent < GIVE_UP and not self._late():
            span = explorer.next()
            if span is None:
                break
            count = span[1] - span[0] + 1
            self._progress(f"unit {unit}: {area}:{span[0]}..{span[1]} (request {found.requests + 1})")
            answer = await asker.read(area, span[0], count)
            found.requests += 1
            silent = silent + 1 if isinstance(answer, Silent) else 0
            if isinstance(answer, Refused) and answer.code == ILLEGAL_FUNCTION:
                explorer.leave()
                found.note = f"the device does not know function {_function(area)}"
                return found
            if isinstance(answer, Silent) or (isinstance(answer, Refused) and answer.code > ILLEGAL_VALUE):
                explorer.leave()
                found.note = f"{area}:{span[0]}: {answer.what}"
                continue
            good = isinstance(answer, bytes)
            explorer.tell(readable=good, too_many=isinstance(answer, Refused) and answer.code == ILLEGAL_VALUE)
            found.largest = max(found.largest, count if good else 0)
        else:
            if found.requests >= scope.budget:
                found.note = f"stopped after {scope.budget} requests"
        known = explorer.found(scope.first, scope.last)
        found.readable, found.unsettled = known.readable, known.unsettled
        return found

    def _late(self) -> bool:
        self.out_of_time = self.out_of_time or time.monotonic() >= self._end
        return self.out_of_time


def _function(area: Area) -> int:
    return {Area.COIL: 1, Area.DISCRETE_INPUT: 2, Area.HOLDING_REGISTER: 3, Area.INPUT_REGISTER: 4}[area]
