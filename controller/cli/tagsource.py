"""Tag lists as they come: CSV, a sheet of a workbook, or what an OPC UA server shows. Only texts and their places."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from controller.cli import console

MAX_BYTES = 32_000_000
MAX_ROWS = 200_000


@dataclass
class Source:
    """A table: its header, and each row with the line or row it stands on. ``file`` is for messages."""

    file: str
    header: list[str] = field(default_factory=list)
    rows: list[tuple[int, list[str]]] = field(default_factory=list)
    odd: dict[tuple[int, int], str] = field(default_factory=dict)
    """Cells (row number, column index) that must not be used as they are, and why."""


def read_csv(path: Path, encoding: str) -> Source:
    """A CSV file: ``,``, ``;`` or tabs. Raises :class:`console.CliError` (usage)."""
    try:
        data = path.read_bytes()
    except OSError as error:
        console.fail(f"{path}: cannot be read: {error.strerror}", console.Exit.USAGE)
    if len(data) > MAX_BYTES:
        console.fail(f"{path}: larger than {MAX_BYTES} bytes; is it a tag list?", console.Exit.USAGE)
    try:
        text = data.decode("utf-8-sig" if encoding.lower() in ("utf-8", "utf8") else encoding)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        what = f"byte 0x{data[error.start]:02x} is no {encoding}; say what it is, e.g. --encoding cp1252"
        console.fail(f"{path}:{line}: {what}", console.Exit.USAGE)
    except LookupError:
        console.fail(f"--encoding {encoding}: there is no such encoding", console.Exit.USAGE)
    first = next((line for line in text.splitlines() if line.strip()), "")
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=max(",;\t", key=first.count), strict=True)
    source, line = Source(str(path)), 1
    try:
        for cells in reader:
            here, line = line, reader.line_num + 1
            _take(source, here, [cell.strip() for cell in cells])
    except csv.Error as error:
        console.fail(f"{path}:{line}: not valid CSV: {error}; check the quotes", console.Exit.USAGE)
    return _whole(source)


def read_xlsx(path: Path, sheet: str | None) -> Source:
    """A sheet of a workbook: values, not formulas. Raises :class:`console.CliError` (usage)."""
    from openpyxl import load_workbook  # noqa: PLC0415 - only for workbooks

    try:
        values = load_workbook(path, read_only=True, data_only=True)
        formulas = load_workbook(path, read_only=True, data_only=False)
    except Exception as error:  # a broken archive may raise anything
        console.fail(f"{path}: cannot be read as a workbook: {error}", console.Exit.USAGE)
    try:
        names = values.sheetnames
        if sheet is None and len(names) > 1:
            console.fail(f"{path}: say which sheet with --sheet: {', '.join(names)}", console.Exit.USAGE)
        name = sheet or names[0]
        if name not in names:
            console.fail(f"{path}: there is no sheet {name!r}; there are: {', '.join(names)}", console.Exit.USAGE)
        source = Source(f"{path} sheet {name}" if len(names) > 1 else str(path))
        pairs = zip(values[name].iter_rows(values_only=True), formulas[name].iter_rows(values_only=True), strict=True)
        for number, (row, written) in enumerate(pairs, 1):
            cells = [_text(source, number, n, cell, written[n]) for n, cell in enumerate(row)]
            _take(source, number, cells)
    finally:
        values.close()
        formulas.close()
    return _whole(source)


def _text(source: Source, number: int, column: int, cell: Any, written: Any) -> str:
    """A cell as text; what a spreadsheet may have changed is marked."""
    if cell is None:
        if isinstance(written, str) and written.startswith("="):
            source.odd[number, column] = "a formula without a value; open and save the workbook, or write the value"
            return written
        return ""
    if isinstance(cell, bool):
        return str(cell).lower()
    if isinstance(cell, int):
        return str(cell)
    if isinstance(cell, float):
        return str(int(cell)) if cell == int(cell) else repr(cell)
    return str(cell).strip()


def fraction(text: str) -> bool:
    """Whether a spreadsheet's number has lost what stood behind its point: 40001.1 may have been 40001.10."""
    head, point, tail = text.partition(".")
    return bool(point) and head.isdecimal() and tail == "1"


def _take(source: Source, number: int, cells: list[str]) -> None:
    if not any(cells) or cells[0].startswith("#"):
        return
    if not source.header:
        source.header = cells
        return
    while len(cells) > len(source.header) and not cells[-1]:
        cells.pop()
    if len(cells) > len(source.header):
        source.odd[number, -1] = f"{len(cells)} cells, {len(source.header)} columns; check separators and quotes"
    source.rows.append((number, cells))
    if len(source.rows) > MAX_ROWS:
        console.fail(f"{source.file}: more than {MAX_ROWS} rows; is it a tag list?", console.Exit.USAGE)


def _whole(source: Source) -> Source:
    if not source.header:
        console.fail(f"{source.file}: empty; the first row names the columns", console.Exit.USAGE)
    return source
