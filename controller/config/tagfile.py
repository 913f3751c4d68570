"""Tag lists as CSV, the form that engineers keep in a spreadsheet.

UTF-8 (with or without a byte order mark), separated by ``,`` or ``;`` or tabs, decimal point. The first row
names the columns, in any order: name, plc, address and type are required; word_order, length, scale, offset,
unit, low, high, access, scan_class, mask, array and description may be left out. Empty cells take the default,
empty rows and rows that begin with ``#`` are skipped.
"""

from __future__ import annotations

import csv
import io
import math
import re
from dataclasses import dataclass, field
from typing import Any

from controller.config.model import TagModel
from recipes.problem import Path, Place, Problem, nearest, problem
from recipes.validate import validate_data

REQUIRED = ("name", "plc", "address", "type")
COLUMNS = ("name", *TagModel.model_fields)
_NUMBERS = ("scale", "offset", "low", "high", "length", "mask", "array")
TAG = re.compile(r"[a-z][a-z0-9_]{0,39}\.[a-z][a-z0-9_]{0,39}")


@dataclass(slots=True)
class TagFile:
    """The tags of one file, where each cell stands, and what is wrong with the file."""

    tags: dict[str, TagModel] = field(default_factory=dict)
    places: dict[Path, Place] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    broken: set[str] = field(default_factory=set)
    """Names of tags that are in the file but not usable, so that nobody calls them unknown."""


def read_tags(text: str, file: str) -> TagFile:
    """Read a tag list; ``file`` is named in messages. Never raises: see :attr:`TagFile.problems`."""
    result = TagFile()
    first = text.split("\n", 1)[0]
    delimiter = max(",;\t", key=first.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    columns: list[str] | None = None
    line = 1
    try:
        for row in reader:
            here, line = line, reader.line_num + 1
            cells = [cell.strip() for cell in row]
            if not any(cells) or cells[0].startswith("#"):
                continue
            if columns is None:
                columns = _header([c.lower() for c in cells], Place(file, here, 1), result)
                if columns is None:
                    return result
            else:
                _row(cells, columns, Place(file, here, 1), result)
    except csv.Error as error:
        place = Place(file, line, 1)
        result.problems.append(problem(place, f"not valid CSV: {error}", "check the quotes"))
    if columns is None and not result.problems:
        result.problems.append(problem(Place(file, 1, 1), "no header row", f"it names {', '.join(REQUIRED)} …"))
    return result


def _header(cells: list[str], place: Place, result: TagFile) -> list[str] | None:
    problems: list[Problem] = []
    for cell in cells:
        if cell not in COLUMNS:
            problems.append(problem(place, f'unknown column "{cell}"', nearest(cell, COLUMNS)))
        elif cells.count(cell) > 1:
            problems.append(problem(place, f'column "{cell}" is given twice', "remove one"))
    for name in REQUIRED:
        if name not in cells:
            problems.append(
                problem(place, f'column "{name}" is missing', f"the header must have {', '.join(REQUIRED)}")
            )
    result.problems += dict.fromkeys(problems)
    return None if problems else cells


def _row(cells: list[str], columns: list[str], place: Place, result: TagFile) -> None:
    given = {c: v for c, v in zip(columns, cells, strict=False) if v}
    name = given.pop("name", "")
    before = len(result.problems)
    path: Path = ("tags", name)
    if len(cells) != len(columns):
        what = f"{len(cells)} cells in this row, {len(columns)} columns in the header"
        result.problems.append(problem(place, what, "check separators and quotes", path))
    if not TAG.fullmatch(name):
        hint = "a tag is written group.point in lower-case letters, digits and _"
        result.problems.append(problem(place, f'"{name}" is not a valid tag name', hint, path))
    elif path in result.places:
        first = result.places[path].line
        result.problems.append(problem(place, f'tag "{name}" is given twice', f"first on line {first}", path))
        return
    result.places.setdefault(path, place)
    data: dict[str, Any] = {}
    for column, text in given.items():
        result.places.setdefault((*path, column), place)
        try:
            data[column] = _number(text, column) if column in _NUMBERS else text
        except ValueError:
            hint = f"write {text.replace(',', '.')}" if "," in text else "write the number alone"
            what = f'{column} of {name} must be a number, not "{text}"'
            result.problems.append(problem(place, what, hint, (*path, column)))
    model, found = validate_data(TagModel, data, lambda _path, _key: place)
    for _, p in found:
        what = f"{name}: {p.what}"
        result.problems.append(problem(place, what, p.hint.replace(": …", ""), path))
    if model is None or len(result.problems) > before:
        result.broken.add(name)
    else:
        result.tags[name] = model


def _number(text: str, column: str) -> int | float:
    if column == "mask":
        number: int | float = int(text, 0)  # mostly written 0x0FF0
    else:
        number = int(text) if column in ("length", "array") else float(text)
    if not math.isfinite(number) or "_" in text:
        raise ValueError(text)
    return number
