"""From a master recipe to a control recipe: each value checked against the equipment."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable

from drivers.port import Value
from recipes.model import ControlRecipe, Key, MasterRecipe, ParameterSpec, RecipeError, Setpoint
from recipes.problem import Problem, nearest, problem
from recipes.units import SYMBOLS, UNITS, UnitError, convert, fits, split_quantity, unit

GRID_TOLERANCE = 1e-6
"""Share of one step of the raw value that a value may be off and still count as that step."""


class Misfit(ValueError):
    """A value that a parameter cannot carry: what is wrong (``str``) and what to do (:attr:`hint`)."""

    def __init__(self, what: str, hint: str = "") -> None:
        self.hint = hint
        super().__init__(what)


def fit(spec: ParameterSpec, value: Value, given_unit: str = "") -> Value:
    """The value as the parameter takes it, in the parameter's unit. Raises :class:`Misfit`.

    A number without a unit is in the parameter's unit. A text such as ``"62 mm"`` is a number with a unit
    when the parameter is a number.
    """
    if spec.kind == "bool":
        if not isinstance(value, bool):
            raise Misfit(f"{spec.label} is true or false, not {_shown(value)}", "write true or false")
        return value
    if spec.kind == "str":
        return _fit_text(spec, value)
    if isinstance(value, str):
        parts = split_quantity(value)
        if parts is None:
            raise Misfit(f"{spec.label} is a number, not {_shown(value)}", f"write e.g. {_example(spec)}")
        value, given_unit = parts[0], parts[1] or given_unit
    if isinstance(value, bool):
        raise Misfit(f"{spec.label} is a number, not {_shown(value)}", f"write e.g. {_example(spec)}")
    return _fit_number(spec, value, given_unit)


def bind(master: MasterRecipe, specs: Iterable[ParameterSpec]) -> ControlRecipe:
    """Bind a recipe to the parameters of a line. Raises :class:`RecipeError` with all problems."""
    known: dict[Key, ParameterSpec] = {(s.station, s.name): s for s in specs}
    stations = {station for station, _ in known}
    problems: list[Problem] = []
    given: dict[Key, Value] = {}
    seen: set[Key] = set()
    for setpoint in master.setpoints:
        key = (setpoint.station, setpoint.parameter)
        path = ("parameters", *key)
        spec = known.get(key)
        if spec is None:
            problems.append(problem(setpoint.where, *_unknown(setpoint, known, stations), path=path))
            continue
        if key in seen:
            problems.append(problem(setpoint.where, f"{spec.label} is given twice", "remove one", path))
            continue
        seen.add(key)
        try:
            given[key] = fit(spec, setpoint.value, setpoint.unit)
        except Misfit as misfit:
            problems.append(problem(setpoint.where, str(misfit), misfit.hint, path))
    for key, spec in known.items():
        if key not in seen:
            hint = f"add {spec.name}: {_example(spec)} under parameters: {spec.station}:"
            path = ("parameters", *key)
            beside = next((x.where for x in master.setpoints if x.station == spec.station), master.where)
            problems.append(problem(beside, f"recipe {master.id} gives no {spec.label}", hint, path))
    if problems:
        raise RecipeError(problems)
    values = {key: given[key] for key in known}
    return ControlRecipe(master.id, master.version, master.product, values, _hash(master, values))


def _hash(master: MasterRecipe, values: dict[Key, Value]) -> str:
    content = [master.id, master.version, master.product, [[*k, v] for k, v in sorted(values.items())]]
    return hashlib.sha256(json.dumps(content, ensure_ascii=False).encode()).hexdigest()


def _unknown(setpoint: Setpoint, known: dict[Key, ParameterSpec], stations: set[str]) -> tuple[str, str]:
    if setpoint.station not in stations:
        what = f'no station "{setpoint.station}" with parameters'
        return what, nearest(setpoint.station, stations, "station with parameters")
    names = [name for station, name in known if station == setpoint.station]
    return f'{setpoint.station} has no parameter "{setpoint.parameter}"', nearest(setpoint.parameter, names)


def _fit_text(spec: ParameterSpec, value: Value) -> str:
    if not isinstance(value, str):
        raise Misfit(f"{spec.label} is a text, not {_shown(value)}", f'quote it: "{value}"')
    if spec.choices is not None and value not in spec.choices:
        raise Misfit(f"{spec.label} cannot be {_shown(value)}", nearest(value, spec.choices))
    if spec.max_length and len(value) > spec.max_length:
        what = f"{spec.label} takes at most {spec.max_length} characters, {_shown(value)} has {len(value)}"
        raise Misfit(what, "shorten it")
    if not value.isprintable() or (spec.max_length and not value.isascii()):
        what = f"{spec.label} takes printable ASCII characters only, not {_shown(value)}"
        raise Misfit(what, "replace the others")
    if value != value.rstrip():
        raise Misfit(f"{spec.label}: {_shown(value)} ends with a space", "devices drop it: remove it")
    return value


def _fit_number(spec: ParameterSpec, value: int | float, given_unit: str) -> Value:
    if not math.isfinite(value):
        raise Misfit(f"{spec.label} is {value}, which is not a number", f"write e.g. {_example(spec)}")
    if given_unit:
        if given_unit not in UNITS:
            raise Misfit(f'unknown unit "{given_unit}" of {spec.label}', nearest(given_unit, SYMBOLS))
        if not fits(given_unit, spec.unit):
            of = f"it is in {spec.unit}" if spec.unit else "it has no unit"
            what = f"{unit(given_unit).symbol} does not fit {spec.label}: {of}"
            raise Misfit(what, f"write e.g. {_example(spec)}")
        try:
            value = convert(value, given_unit, spec.unit)
        except UnitError as error:
            raise Misfit(f"{spec.label}: {error}", f"write e.g. {_example(spec)}") from None
    label = f"{value:.12g} {spec.unit}".rstrip()
    limits = f"choose {_number(spec.low)} … {_number(spec.high)} {spec.unit}".rstrip()
    limits += ", or change the equipment's limit in line.yaml"
    if spec.low is not None and value < spec.low:
        raise Misfit(f"{spec.label} is {label}, below the limit {_number(spec.low)} {spec.unit}".rstrip(), limits)
    if spec.high is not None and value > spec.high:
        raise Misfit(f"{spec.label} is {label}, above the limit {_number(spec.high)} {spec.unit}".rstrip(), limits)
    step = spec.resolution or (1.0 if spec.kind == "int" else 0.0)
    if step:
        _check_grid(spec, value, step, label)
    return round(value) if spec.kind == "int" else float(value)


def _check_grid(spec: ParameterSpec, value: int | float, step: float, label: str) -> None:
    if isinstance(value, int) and step == 1.0 and spec.origin == 0.0:
        return
    steps = (value - spec.origin) / step
    if abs(steps - round(steps)) > GRID_TOLERANCE:
        below, above = (spec.origin + n * step for n in (math.floor(steps), math.ceil(steps)))
        what = f"{spec.label} moves in steps of {step:g} {spec.unit}".rstrip() + f" and cannot carry {label}"
        raise Misfit(what, f"the nearest are {below:.12g} and {above:.12g}")


def _number(value: float | None) -> str:
    return "any" if value is None else f"{value:.12g}"


def _example(spec: ParameterSpec) -> str:
    if spec.kind == "bool":
        return "true"
    if spec.kind == "str":
        return spec.choices[0] if spec.choices else "TEXT"
    value = next((v for v in (spec.low, spec.high) if v is not None), 0.0)
    return f"{value:.12g} {spec.unit}".rstrip()


def _shown(value: Value) -> str:
    return str(value).lower() if isinstance(value, bool) else f'"{value}"' if isinstance(value, str) else str(value)
