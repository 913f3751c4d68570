"""The register list of a line, read from its ``registers.csv``, and how each point looks on the wire.

Deliberately independent of the controller's own tag list and codec: an error in one of the two then shows.
"""

from __future__ import annotations

import csv
import math
import struct
from dataclasses import dataclass
from pathlib import Path

Value = bool | int | float | str

_INTEGERS = {
    "SINT": ("b", 1), "USINT": ("B", 1), "INT": ("h", 1), "UINT": ("H", 1), "DINT": ("i", 2),
    "UDINT": ("I", 2), "LINT": ("q", 4), "ULINT": ("Q", 4),
}  # fmt: skip
_BITS = {name: 8 * struct.calcsize("<" + letter) for name, (letter, _) in _INTEGERS.items()}
_REALS = {"REAL": ("f", 2), "LREAL": ("d", 4)}
_AREAS = ("co", "di", "ir", "hr", "ua")
_COLUMNS = {"plc", "point", "area", "address", "type", "word_order", "scale", "access"}


class IllegalValue(ValueError):
    """A value that does not fit the point's type or range."""


@dataclass(frozen=True, slots=True)
class Point:
    """One point of a PLC. ``raw * scale`` is the value in ``unit``; ``length`` is the characters of a STRING."""

    plc: str
    name: str
    area: str
    offset: int
    """Zero-based protocol address; -1 for an OPC UA point."""
    node_id: str
    """``nsu=<namespace>;s=<identifier>``; empty for a Modbus point."""
    type: str
    order: str
    scale: float
    length: int
    writable: bool
    unit: str
    description: str

    @property
    def size(self) -> int:
        """Registers (or bits, in co and di) that the point takes."""
        if self.type == "STRING":
            return (self.length + 1) // 2
        if self.type in _INTEGERS:
            return _INTEGERS[self.type][1]
        return _REALS[self.type][1] if self.type in _REALS else 1

    @property
    def limits(self) -> tuple[int, int]:
        """Least and greatest raw value of an integer type."""
        bits = _BITS[self.type]
        return (0, (1 << bits) - 1) if self.type.startswith("U") else (-(1 << (bits - 1)), (1 << (bits - 1)) - 1)

    @property
    def zero(self) -> Value:
        """The value of a register after power-up."""
        zeros: dict[str, Value] = {"BOOL": False, "STRING": "", "REAL": 0.0, "LREAL": 0.0}
        return zeros.get(self.type, 0)

    def coerce(self, value: Value) -> Value:
        """The raw value as the point's type holds it. Raises :class:`IllegalValue`."""
        if self.type == "BOOL":
            if isinstance(value, bool):
                return value
        elif self.type == "STRING":
            if isinstance(value, str):
                return value
        elif isinstance(value, bool | str):
            pass
        elif self.type in _REALS:
            try:
                number: float = struct.unpack(
                    "<" + _REALS[self.type][0], struct.pack("<" + _REALS[self.type][0], value)
                )[0]
            except OverflowError:
                raise IllegalValue(f"{self.plc}: {self.name} is {self.type}; {value!r} does not fit") from None
            return number
        elif isinstance(value, int):
            try:
                struct.pack("<" + _INTEGERS[self.type][0], value)
            except struct.error:
                pass
            else:
                return value
        raise IllegalValue(f"{self.plc}: {self.name} is {self.type}; {value!r} does not fit")

    def raw(self, value: Value) -> Value:
        """Engineering value to raw value. Raises :class:`IllegalValue`."""
        if self.scale != 1.0 and not isinstance(value, bool | str):
            if not math.isfinite(value):
                raise IllegalValue(f"{self.plc}: {self.name} cannot hold {value!r}")
            return self.coerce(round(value / self.scale))
        return self.coerce(value)

    def value(self, raw: Value) -> Value:
        """Raw value to engineering value."""
        return round(raw * self.scale, 9) if self.scale != 1.0 and not isinstance(raw, str) else raw

    def encode(self, raw: Value) -> bytes:
        """The registers of a raw value, two bytes each, in the point's word order. Raises :class:`IllegalValue`."""
        raw = self.coerce(raw)
        if isinstance(raw, str):
            data = raw.encode("utf-8")
            if len(data) > self.length:
                raise IllegalValue(f"{self.plc}: {self.name} holds {self.length} bytes, {raw!r} has {len(data)}")
            return data.ljust(2 * self.size, b"\0")
        letter = (_INTEGERS | _REALS)[self.type][0]
        width = {"b": "h", "B": "H"}.get(letter, letter)
        return _reorder(struct.pack(">" + width, raw), self.order)

    def decode(self, data: bytes) -> Value:
        """The raw value of its registers."""
        if self.type == "STRING":
            return data[: self.length].split(b"\0", 1)[0].decode("utf-8", "replace")
        letter = (_INTEGERS | _REALS)[self.type][0]
        width = {"b": "h", "B": "H"}.get(letter, letter)
        raw: Value = struct.unpack(">" + width, _reorder(data, self.order))[0]
        return raw


def _reorder(data: bytes, order: str) -> bytes:
    words = [data[i : i + 2] for i in range(0, len(data), 2)]
    if order in ("CDAB", "DCBA"):
        words.reverse()
    if order in ("BADC", "DCBA"):
        words = [word[::-1] for word in words]
    return b"".join(words)


def load_points(path: Path) -> dict[str, tuple[Point, ...]]:
    """Read a register list: PLC name -> its points, in file order.

    Raises ``ValueError`` with file, line and what to mend when the list contradicts itself.
    """
    points: dict[str, list[Point]] = {}
    seen: dict[str, int] = {}
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        missing = _COLUMNS - set(reader.fieldnames or ())
        if missing:
            raise ValueError(f"{path}:1: the register list lacks the columns {', '.join(sorted(missing))}")
        for row in reader:
            place = f"{path}:{reader.line_num}"
            point = _point(row, place)
            if point.name in seen:
                raise ValueError(f"{place}: point {point.name} is already listed in line {seen[point.name]}")
            seen[point.name] = reader.line_num
            points.setdefault(point.plc, []).append(point)
    for plc, listed in points.items():
        _check_overlap(path, plc, listed)
    return {plc: tuple(listed) for plc, listed in points.items()}


def _point(row: dict[str, str], place: str) -> Point:
    area, kind = row["area"], row["type"]
    if area not in _AREAS:
        raise ValueError(f"{place}: area {area!r} is unknown; use one of {', '.join(_AREAS)}")
    if kind not in _INTEGERS and kind not in _REALS and kind not in ("BOOL", "STRING"):
        raise ValueError(f"{place}: type {kind!r} is unknown")
    if (area in ("co", "di")) != (kind == "BOOL") and area != "ua":
        raise ValueError(f"{place}: {kind} cannot be in area {area}; BOOL goes in co or di, all else in ir or hr")
    length = int(row.get("length") or 0)
    if kind == "STRING" and area != "ua" and not 1 <= length <= 240:
        raise ValueError(f"{place}: a STRING in registers needs a length of 1..240 characters")
    return Point(
        plc=row["plc"],
        name=row["point"],
        area=area,
        offset=-1 if area == "ua" else int(row["address"]),
        node_id=row["address"] if area == "ua" else "",
        type=kind,
        order=row["word_order"] or "ABCD",
        scale=float(row["scale"] or 1),
        length=length,
        writable=row["access"] == "rw",
        unit=row.get("unit") or "",
        description=row.get("description") or "",
    )


def _check_overlap(path: Path, plc: str, points: list[Point]) -> None:
    taken: dict[tuple[str, int], str] = {}
    for point in points:
        if point.area == "ua":
            continue
        for address in range(point.offset, point.offset + point.size):
            other = taken.setdefault((point.area, address), point.name)
            if other != point.name:
                raise ValueError(f"{path}: {plc} {point.area}:{address} is taken by {other} and by {point.name}")
