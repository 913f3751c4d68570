"""A problem in a file that people write: what is wrong, where, and what to do about it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple


class Place(NamedTuple):
    """A place in a file; line and column count from 1."""

    file: str
    line: int
    column: int


Path = tuple[str | int, ...]
"""A path into the data of a file: ``("stations", "filler", "alarms", "no_air")``."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One problem. ``path`` is the dotted place in the data, empty when it is the file as such."""

    file: str
    line: int
    column: int
    what: str
    hint: str = ""
    path: str = ""

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.what}" + (f"; {self.hint}" if self.hint else "")


def problem(place: Place, what: str, hint: str = "", path: Path = ()) -> Problem:
    """A problem at a place."""
    return Problem(place.file, place.line, place.column, what, hint, dotted(path))


def dotted(path: Path) -> str:
    """The path as people write it: ``line.estop[0]``."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def nearest(name: str, known: Iterable[str], kind: str = "") -> str:
    """A hint with the names most like ``name``, else with all of them if they are few."""
    names = sorted(set(known))
    close = difflib.get_close_matches(name, names, 3, 0.6)
    likeness = [difflib.SequenceMatcher(None, c, name).ratio() for c in close]
    close = [c for c, like in zip(close, likeness, strict=True) if like > likeness[0] - 0.1]
    if close:
        return "did you mean " + " or ".join(f'"{c}"' for c in close) + "?"
    if not names:
        return f"there is no {kind} yet" if kind else ""
    if len(names) <= 12:
        return "known: " + ", ".join(names)
    return ""
