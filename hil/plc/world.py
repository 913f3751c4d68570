"""A line's plant and its PLCs, stepped together."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from hil.plant import Agenda
from hil.plc.points import load_points
from hil.plc.virtual import Program, VirtualPlc

Value = bool | int | float | str
Params = Mapping[str, Value]


class FaultError(ValueError):
    """Unknown fault or parameter; the text lists what there is."""


@dataclass(frozen=True, slots=True)
class Param:
    """A parameter of a fault: default, and what is allowed."""

    default: Value
    choices: tuple[str, ...] = ()
    low: float | None = None
    high: float | None = None

    def check(self, where: str, value: object) -> Value:
        """The value, if allowed. Raises :class:`FaultError`."""
        wanted = type(self.default)
        if wanted is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if not isinstance(value, bool | int | float | str) or type(value) is not wanted:
            raise FaultError(f"{where} is to be of type {wanted.__name__}, not {value!r}")
        if self.choices and value not in self.choices:
            raise FaultError(f"{where} is to be one of {', '.join(self.choices)}, not {value!r}")
        if not isinstance(value, bool | str):
            low, high = self.low, self.high
            if (low is not None and not value >= low) or (high is not None and not value <= high):
                raise FaultError(f"{where} is to be within {low}..{high}, not {value!r}")
        return value


@dataclass(frozen=True, slots=True)
class Fault:
    """A fault: what it is, its parameters, and how it is made and unmade.

    Without ``make`` it cannot be injected, without ``unmake`` it is over at once. ``key`` are the parameters that
    tell two instances apart; empty means all.
    """

    text: str
    params: Mapping[str, Param]
    make: Callable[[Params], object] | None
    unmake: Callable[[Params], object] | None
    key: tuple[str, ...] = ()
    ends: str = ""
    """Name of a fault that is over when this one happens."""

    def identity(self, params: Params) -> tuple[tuple[str, Value], ...]:
        """What tells this instance from others of the same name."""
        return tuple((name, params[name]) for name in sorted(self.key or self.params))


@dataclass(frozen=True, slots=True)
class Line:
    """What a line's package builds for the world."""

    programs: Mapping[str, Program]
    faults: Mapping[str, Fault]
    truth: Callable[[], dict[str, Any]]


class World:
    """Plant and PLCs of a reference line at time 0, switched on. All times are integer ns of plant time."""

    def __init__(self, line: str = "bottling", seed: int = 1) -> None:
        root = Path(__file__).parent.parent / "lines"
        known = sorted(path.parent.name for path in root.glob("*/registers.csv"))
        if line not in known:
            raise ValueError(f"there is no reference line {line!r}; there are: {', '.join(known)}")
        package = import_module(f"hil.lines.{line}")
        self.line, self.seed = line, seed
        self.agenda = Agenda()
        self.plcs: dict[str, VirtualPlc] = {
            name: VirtualPlc(name, points, self.agenda) for name, points in load_points(package.REGISTERS).items()
        }
        self._line: Line = package.build(seed, self.agenda, self.plcs)
        self._active: dict[tuple[str, tuple[tuple[str, Value], ...]], dict[str, Value]] = {}
        for name, plc in self.plcs.items():
            plc.attach(self._line.programs[name])

    @property
    def now(self) -> int:
        """Plant time, ns."""
        return self.agenda.now

    def advance(self, until_ns: int) -> None:
        """Simulate up to a time. Raises ``ValueError`` for one in the past."""
        self.agenda.advance(until_ns)

    def inject(self, fault: str, **params: Value) -> None:
        """Make something go wrong, now. Once it is there, doing so again changes nothing.

        Raises :class:`FaultError` for a name or parameter that does not exist.
        """
        spec, given = self._spec(fault, params)
        if spec.make is None:
            raise FaultError(f"{fault} cannot be injected: {spec.text}")
        key = (fault, spec.identity(given))
        if self._active.get(key) == given:
            return
        if spec.unmake is not None:
            self._active[key] = given
        self._active.pop((spec.ends, spec.identity(given)), None)
        spec.make(given)

    def clear(self, fault: str | None = None, **params: Value) -> None:
        """Mend a fault; without parameters all of that name, without a name all there are.

        Mending what is not broken changes nothing. Raises :class:`FaultError` as :meth:`inject`.
        """
        if fault is None:
            for name, _ in list(self._active):
                self.clear(name)
            return
        spec, given = self._spec(fault, params)
        if spec.unmake is None:
            return
        active = [key for key in self._active if key[0] == fault]
        if params or not active:
            key = (fault, spec.identity(given))
            if key in self._active or spec.make is None:
                self._active.pop(key, None)
                spec.unmake(given)
            return
        for key in active:
            spec.unmake(self._active.pop(key))

    def faults(self) -> list[dict[str, Value]]:
        """The faults that are there now, with their parameters; ``fault`` is the name."""
        return [{"fault": name, **params} for (name, _), params in self._active.items()]

    def known_faults(self) -> dict[str, str]:
        """Every fault's name and what it is."""
        return {name: spec.text for name, spec in self._line.faults.items()}

    def truth(self) -> dict[str, Any]:
        """What really is where, counted from the plant and not by the PLCs."""
        return self._line.truth()

    def fingerprint(self) -> str:
        """Hash of the truth and of every PLC's memory; equal for equal seed and equal inputs."""
        digest = hashlib.sha256(json.dumps(self.truth(), sort_keys=True).encode())
        for plc in self.plcs.values():
            digest.update(plc.digest())
        return digest.hexdigest()

    def _spec(self, fault: str, params: Mapping[str, Value]) -> tuple[Fault, dict[str, Value]]:
        spec = self._line.faults.get(fault)
        if spec is None:
            raise FaultError(f"there is no fault {fault!r}; there are: {', '.join(sorted(self._line.faults))}")
        unknown = params.keys() - spec.params.keys()
        if unknown:
            known = ", ".join(spec.params) or "none"
            raise FaultError(f"{fault} has no parameter {', '.join(sorted(unknown))}; it has: {known}")
        return spec, {
            name: param.check(f"{fault}: {name}", params.get(name, param.default))
            for name, param in spec.params.items()
        }
