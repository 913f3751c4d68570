"""A validated, immutable line: what everything else is built from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from controller.config.model import LineFile
from controller.core.expr import Expr
from drivers.port import Tag
from recipes.model import ControlRecipe, MasterRecipe, ParameterSpec
from recipes.problem import Problem


@dataclass(frozen=True, slots=True, kw_only=True)
class LineConfig:
    """A line that passed every check, with what the checks worked out on the way."""

    file: LineFile
    """line.yaml as written, overrides applied; :attr:`tags` also has those of the tag files."""
    path: Path
    tags: Mapping[str, Tag]
    """Every tag, resolved: word order of its PLC, canonical unit."""
    tag_plc: Mapping[str, str]
    exprs: Mapping[str, Expr]
    """Every condition by its text, checked: ``exprs[text].compile(slots)``."""
    specs: tuple[ParameterSpec, ...]
    """Every recipe parameter of the stations, in the order of the file."""
    recipes: Mapping[str, MasterRecipe]
    control_recipes: Mapping[str, ControlRecipe]
    """The same recipes, bound to this line."""
    config_hash: str
    """SHA-256 over the contents of all files used; the same wherever they lie. Overrides do not enter it."""
    warnings: tuple[Problem, ...]
    sources: Mapping[str, str] = field(repr=False)
    """Text of every file read, by the name used in problems."""
    where: Callable[..., tuple[str, int]] = field(repr=False, compare=False)
    """``where("stations", "filler", "alarms", "no_air")`` → (file, line), for errors that show up later."""

    def tag_of(self, station: str, point: str) -> str:
        """The tag behind a name used in a station: a tag's own name, what ``io`` says, or ``<station>.<point>``.

        Holds for I/O points, the targets of ``set`` steps and of ``safe``. Raises ``KeyError`` for an unknown
        station.
        """
        if "." in point:
            return point
        return self.file.stations[station].io.get(point, f"{station}.{point}")
