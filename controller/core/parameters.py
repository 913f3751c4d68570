"""Recipe parameters of the stations: staging, read-back, and whether the recipe is in force."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from controller.core.conditions import shown
from controller.core.image import ProcessImage, WriteReport
from controller.core.io import Input, Output
from drivers.port import DataType, Outcome, Value

Key = tuple[str, str]
"""(station, parameter)."""


@dataclass(frozen=True, slots=True)
class Parameter:
    """One recipe parameter: the tag that carries it, and optionally the tag that confirms it within ``tolerance``."""

    station: str
    name: str
    output: Output[Any]
    unit: str
    confirm: Input[Any] | None
    tolerance: float
    limit_s: float

    @property
    def key(self) -> Key:
        """(station, parameter)."""
        return self.station, self.name


class ParameterSet:
    """All parameters of the line, and the values that the recipe in force asks for."""

    def __init__(self, image: ProcessImage, parameters: Iterable[Parameter]) -> None:
        self.image = image
        self.generation = 0
        """Counts changes of what is wanted."""
        self._watched: dict[str, _Watched] = {}
        self.all: dict[Key, Parameter] = {p.key: p for p in parameters}
        self.wanted: dict[Key, Value] = {}
        self._failed: dict[str, WriteReport] = {}
        self._of_tag = {p.output.tag: p.key for p in self.all.values()}

    def report(self, report: WriteReport) -> None:
        """Note how a write of a parameter ended; other tags, and values no longer wanted, are ignored."""
        key = self._of_tag.get(report.tag)
        if key is not None and report.value == self.wanted.get(key):
            if report.outcome is Outcome.VERIFIED:
                self._failed.pop(report.tag, None)
            else:
                self._failed[report.tag] = report

    def not_connected(self) -> list[str]:
        """PLCs that carry a parameter and are not connected now."""
        plcs = {self.image.layout.plc_of[p.output.tag] for p in self.all.values()}
        return sorted(plc for plc in plcs if not self.image.up[plc])

    def stage(self, values: Mapping[Key, Value]) -> None:
        """Want these values on the PLCs from this scan on."""
        self.generation += 1
        for key, value in values.items():
            self.wanted[key] = value
            output = self.all[key].output
            self._failed.pop(output.tag, None)
            output.set(value)

    def refused(self, keys: Iterable[Key]) -> str:
        """Which write was rejected, and why; empty if none, or if what was to be written is there all the same."""
        for key in keys:
            report = self._failed.get(self.all[key].output.tag)
            if report is not None and report.outcome is Outcome.REJECTED and self.difference(key):
                return f"{report.tag} = {shown(report.value, self.all[key].unit)} was rejected: {report.reason}"
        return ""

    def difference(self, key: Key, after_ns: int = -1) -> str:
        """How the PLC's read-back differs from what is wanted; empty when it is in force.

        With ``after_ns`` the reading must have been asked for later than that.
        """
        parameter, wanted = self.all[key], self.wanted[key]
        output, image = parameter.output, self.image
        where = f"{parameter.station}.{parameter.name}"
        reason = image.bad[output.slot]
        if reason is not None:
            return f"{where} cannot be read back: {output.tag} is BAD: {reason}"
        actual = image.values[output.slot]
        if not same(actual, wanted, image.layout.tags[output.slot].type, image.layout.tags[output.slot].resolution):
            return f"{where} reads {shown(actual, parameter.unit)}, recipe says {shown(wanted, parameter.unit)}"
        if after_ns >= 0 and image.stamp_of(output.slot) <= after_ns:
            return f"{where} has not been read back yet"
        confirm = parameter.confirm
        if confirm is not None:
            if not confirm.ok:
                return f"{where} is not confirmed: {confirm.tag} is BAD: {image.bad[confirm.slot]}"
            reached = confirm.value
            if isinstance(wanted, str) or isinstance(reached, str):
                fits = reached == wanted
            else:
                fits = abs(float(reached) - float(wanted)) <= parameter.tolerance + 1e-9
            if not fits:
                return (
                    f"{where}: {confirm.tag} shows {shown(reached, parameter.unit)}, "
                    f"recipe says {shown(wanted, parameter.unit)}"
                )
        return ""

    def differences(self, station: str = "") -> list[str]:
        """Every parameter (of one station) that is not in force."""
        keys = [k for k in self.wanted if not station or k[0] == station]
        return [d for k in keys if (d := self.difference(k))]

    def in_force(self, station: str) -> bool:
        """Whether every wanted parameter of the station is in force; quick, for every scan."""
        watched = self._watched.get(station)
        if watched is None:
            watched = self._watched[station] = _Watched(self, station)
        return watched.in_force(self.generation)


class _Watched:
    """One station's parameters: looked at again only when a reading that carries one of them has changed."""

    def __init__(self, parameters: ParameterSet, station: str) -> None:
        self._parameters, self._station = parameters, station
        image = parameters.image
        tags: list[Input[Any]] = [p.output for p in parameters.all.values() if p.station == station]
        tags += [p.confirm for p in parameters.all.values() if p.station == station and p.confirm]
        self._versions = image.versions
        self._groups = sorted({image.group_of(t.slot) for t in tags})
        self._seen: tuple[int, ...] = ()
        self._answer = False

    def in_force(self, generation: int) -> bool:
        versions = self._versions
        seen = (generation, *[versions[g] for g in self._groups])
        if seen != self._seen:
            self._seen = seen
            keys = [k for k in self._parameters.wanted if k[0] == self._station]
            self._answer = not any(self._parameters.difference(k) for k in keys)
        return self._answer


def same(actual: Value | None, wanted: Value, kind: DataType, resolution: float) -> bool:
    """Whether a read-back equals what was written, as far as the tag's type can carry it."""
    if isinstance(actual, str) or isinstance(wanted, str) or actual is None:
        return actual == wanted
    if resolution:
        return abs(float(actual) - float(wanted)) <= resolution / 2
    if kind not in (DataType.REAL, DataType.LREAL):
        return actual == wanted
    share = 1e-6 if kind is DataType.REAL else 1e-9
    return abs(float(actual) - float(wanted)) <= share * max(1.0, abs(float(wanted)))
