"""What the checks of one configuration share: the parsed line, its resolved tags, and the lists of findings."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from controller.config.kinds import KindInfo
from controller.config.model import LineFile, TagModel
from controller.core.expr import Expr, TagInfo
from drivers.port import Tag
from recipes.model import ParameterSpec
from recipes.problem import Path, Place, Problem, nearest, problem


class PlaceOf(Protocol):
    """Where something stands in the files."""

    def __call__(self, path: Path, key: bool = False, /) -> Place:
        """The place of the value at ``path``, or of its key."""


@dataclass(slots=True, kw_only=True)
class Context:
    """One configuration under check. Findings are collected, nothing is raised."""

    file: LineFile
    place: PlaceOf
    inside: Callable[[Path, int], Place]
    """The place of the n-th character (from 1) of the text at a path."""
    models: Mapping[str, TagModel]
    """Tags from line.yaml and from the tag files."""
    kinds: Mapping[str, KindInfo] | None = None
    array_of: Mapping[str, str] = field(default_factory=dict)
    """The array that declares a tag, by the tag's name; tags declared alone are not in it."""
    broken: set[Path] = field(default_factory=set)
    """What was given but is not usable, and already reported: never also reported as unknown."""
    errors: list[Problem] = field(default_factory=list)
    warnings: list[Problem] = field(default_factory=list)
    tags: dict[str, Tag] = field(default_factory=dict)
    exprs: dict[str, Expr] = field(default_factory=dict)
    specs: list[ParameterSpec] = field(default_factory=list)
    _numbers: dict[str, float] = field(default_factory=dict)

    def error(self, path: Path, what: str, hint: str = "", *, key: bool = False) -> None:
        """An error at the value at ``path``, or at its key."""
        self.errors.append(problem(self.place(path, key), what, hint, path))

    def error_inside(self, path: Path, column: int, what: str, hint: str = "") -> None:
        """An error at the ``column``-th character (from 1) of the text at ``path``."""
        what = f"column {column} of the condition: {what}"
        self.errors.append(problem(self.inside(path, column), what, hint, path))

    def warn(self, path: Path, what: str, hint: str = "", *, key: bool = False) -> None:
        """A warning: the line can run, but probably not as meant."""
        self.warnings.append(problem(self.place(path, key), what, hint, path))

    def declared(self, name: str) -> str:
        """The name under which a tag stands in the files: its own, or that of its array."""
        return self.array_of.get(name, name)

    def one(self, number: float | None) -> float | None:
        """The same number, one object for all tags: ten thousand tags have few different ones."""
        return number if number is None else self._numbers.setdefault(repr(number), number)

    def tag(self, path: Path, name: str, user: str) -> Tag | None:
        """The tag that ``user`` names at ``path``; reports an unknown one."""
        tag = self.tags.get(name)
        if tag is None and ("tags", name) not in self.broken:
            self.error(path, f'{user}: unknown tag "{name}"', nearest(name, self.models, "tag"))
        return tag

    def info(self, name: str) -> TagInfo | None:
        """What conditions must know of a tag."""
        tag = self.tags.get(name)
        return None if tag is None else TagInfo.of(tag)

    def point_tag(self, station: str, point: str) -> str:
        """The tag behind a name used in a station: a tag's own name, what ``io`` says, or ``<station>.<point>``."""
        if "." in point:
            return point
        return self.file.stations[station].io.get(point, f"{station}.{point}")
