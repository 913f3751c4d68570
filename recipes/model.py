"""What to make: master recipes as they are written, control recipes as the line takes them (ISA-88).

A :class:`MasterRecipe` is what a person wrote: values with units, not yet checked against any equipment. A
:class:`ControlRecipe` is bound to one line: every value in the line's unit and inside
the limits of its equipment. All pure; files are read elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from drivers.port import Value
from recipes.problem import Place, Problem

Kind = Literal["bool", "int", "float", "str"]
Key = tuple[str, str]
"""Station and parameter."""
Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,39}$")]


class Quantity(BaseModel):
    """A value and its unit, written apart."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    value: int | float
    unit: str = ""


class RecipeFile(BaseModel):
    """A recipe file: header (ISA-88 recipe header) and formula."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    recipe: Name
    """Id of the recipe, unique on the line."""
    version: str = Field(pattern=r"^\d+\.\d+\.\d+$")
    product: str = Field(min_length=1)
    description: str = ""
    parameters: dict[Name, dict[Name, bool | int | float | str | Quantity]] = {}
    """By station, by parameter: ``62 mm``, ``{value: 62, unit: mm}``, a number, true/false or a text."""


@dataclass(frozen=True, slots=True)
class Setpoint:
    """One value as written. ``unit`` is only set where it was written apart from the value."""

    station: str
    parameter: str
    value: Value
    unit: str
    where: Place


@dataclass(frozen=True, slots=True)
class MasterRecipe:
    """A recipe as written, for no equipment in particular."""

    id: str
    version: str
    product: str
    description: str
    setpoints: tuple[Setpoint, ...]
    where: Place


@dataclass(frozen=True, slots=True, kw_only=True)
class ParameterSpec:
    """What a station's parameter can carry: type, the line's unit, limits, and the grid of its raw value.

    A number must lie in ``low`` … ``high`` and, where ``resolution`` > 0, on ``origin + n * resolution``.
    A text must be one of ``choices`` (if any), of at most ``max_length`` characters (0 = no limit).
    """

    station: str
    name: str
    kind: Kind
    unit: str = ""
    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] | None = None
    max_length: int = 0
    resolution: float = 0.0
    origin: float = 0.0

    @property
    def label(self) -> str:
        """``station.parameter``, for people."""
        return f"{self.station}.{self.name}"


@dataclass(frozen=True, slots=True)
class ControlRecipe:
    """A recipe bound to the line. ``values`` are in the line's units and read-only.

    ``content_hash`` is SHA-256 over id, version, product and all values: equal hash, equal downloads.
    """

    id: str
    version: str
    product: str
    values: Mapping[Key, Value] = field(hash=False)
    content_hash: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "values", MappingProxyType(dict(self.values)))


@dataclass(frozen=True, slots=True)
class Change:
    """One parameter that differs between two recipes; ``None`` where a side does not have it."""

    station: str
    parameter: str
    old: Value | None
    new: Value | None


class RecipeError(Exception):
    """The recipe's author's to mend: every problem of the recipe, each with its place."""

    def __init__(self, problems: list[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(str(p) for p in problems))


def plan(old: ControlRecipe | None, new: ControlRecipe) -> tuple[Change, ...]:
    """What must change to go from ``old`` to ``new``, ordered by station and parameter.

    Without an ``old`` everything must be downloaded. A parameter that only ``old`` has is listed with
    ``new = None``: the caller leaves it alone or refuses, but knows.
    """
    before: Mapping[Key, Value] = {} if old is None else old.values
    changes: list[Change] = []
    for key in sorted(before.keys() | new.values.keys()):
        was, becomes = before.get(key), new.values.get(key)
        if was != becomes or isinstance(was, bool) != isinstance(becomes, bool):
            changes.append(Change(*key, was, becomes))
    return tuple(changes)
