"""What a PLC shows to the network: Modbus areas as bytes, or OPC UA nodes as values, with version counters.

A *block* is a run of listed addresses; up to :data:`MAX_GAP` unlisted ones inside it read as 0, as in PLCs that
reserve a structure. Anything else is an illegal address, so that a wrong tag map is noticed and not answered.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence

from hil.plc.points import IllegalValue, Point, Value

MAX_GAP = 8
"""Unlisted addresses that a block may bridge."""

__all__ = ["MAX_GAP", "IllegalAddress", "IllegalValue", "ModbusMemory", "NodeMemory", "PlcOffline"]

Setter = Callable[[float | int | str | bool], None]


class IllegalAddress(LookupError):
    """Nothing is listed at this address, or it cannot be written."""


class PlcOffline(ConnectionError):
    """The PLC has no power: nothing answers."""


class _Area:
    """Blocks and versions of one area."""

    def __init__(self, plc: str, area: str, points: Sequence[Point]) -> None:
        self.name = f"{plc} {area}"
        self.points = sorted(points, key=lambda p: p.offset)
        self.blocks: list[tuple[int, int]] = []
        for point in self.points:
            end = point.offset + point.size
            if self.blocks and point.offset - self.blocks[-1][1] <= MAX_GAP:
                self.blocks[-1] = (self.blocks[-1][0], end)
            else:
                self.blocks.append((point.offset, end))
        self.versions = [0] * len(self.blocks)
        self.clears = 0
        """How often the memory lost power."""
        self.owner: dict[int, Point] = {p.offset + i: p for p in self.points for i in range(p.size)}
        self.end = self.blocks[-1][1] if self.blocks else 0

    def block(self, offset: int, count: int) -> int:
        """Number of the block that holds the whole range. Raises :class:`IllegalAddress`."""
        for n, (first, end) in enumerate(self.blocks):
            if first <= offset and offset + count <= end:
                return n
        raise IllegalAddress(f"{self.name}: nothing is listed at {offset}..{offset + count - 1}")

    def touched(self, offset: int, count: int) -> list[Point]:
        """Points in a range that is to be written. Raises :class:`IllegalAddress` for a gap in it."""
        found: dict[str, Point] = {}
        for address in range(offset, offset + count):
            point = self.owner.get(address)
            if point is None or not point.writable:
                raise IllegalAddress(f"{self.name}: {address} is not a point that can be written")
            found[point.name] = point
        return list(found.values())


class ModbusMemory:
    """The four data areas (MODBUS Application Protocol V1.1b3, 4.3) of one PLC.

    Bits are held as one integer per area, registers as one bytearray per area, so that a read is a slice.
    """

    def __init__(self, plc: str, points: Sequence[Point]) -> None:
        self._areas = {a: _Area(plc, a, [p for p in points if p.area == a]) for a in ("co", "di", "ir", "hr")}
        self._bits = {"co": 0, "di": 0}
        self._data = {a: bytearray(2 * self._areas[a].end) for a in ("ir", "hr")}

    def clear(self) -> None:
        """Zero everything, as after a loss of power."""
        for name in self._bits:
            self._bits[name] = 0
        for data in self._data.values():
            data[:] = bytes(len(data))
        for area in self._areas.values():
            area.versions[:] = [version + 1 for version in area.versions]
            area.clears += 1

    def version(self, area: str, offset: int | None = None) -> int:
        """Counter of changes in an area, or in the block that holds ``offset``. Raises :class:`IllegalAddress`."""
        found = self._area(area)
        return sum(found.versions) if offset is None else found.versions[found.block(offset, 1)]

    def watch(self, area: str, offset: int) -> tuple[Sequence[int], int]:
        """The live versions of an area's blocks, and the number of the block that holds ``offset``."""
        found = self._area(area)
        return found.versions, found.block(offset, 1)

    def read_registers(self, area: str, offset: int, count: int) -> bytes:
        """Registers as big-endian words. Raises :class:`IllegalAddress`."""
        if area not in self._data:
            raise IllegalAddress(f"{area!r} is not a register area; use ir or hr")
        self._areas[area].block(offset, count)
        return bytes(self._data[area][2 * offset : 2 * (offset + count)])

    def read_bits(self, area: str, offset: int, count: int) -> bytes:
        """Bits packed as on the wire, the first in the least significant place. Raises :class:`IllegalAddress`."""
        if area not in self._bits:
            raise IllegalAddress(f"{area!r} is not a bit area; use co or di")
        self._areas[area].block(offset, count)
        return ((self._bits[area] >> offset) & ((1 << count) - 1)).to_bytes((count + 7) // 8, "little")

    def write_registers(self, offset: int, data: bytes) -> list[Point]:
        """Write holding registers; returns the points touched. All or nothing. Raises :class:`IllegalAddress`."""
        if not data or len(data) % 2:
            raise IllegalValue(f"{len(data)} bytes are not a whole number of registers")
        area, held = self._areas["hr"], self._data["hr"]
        points = area.touched(offset, len(data) // 2)
        if held[2 * offset : 2 * offset + len(data)] != data:
            held[2 * offset : 2 * offset + len(data)] = data
            area.versions[area.block(offset, 1)] += 1
        return points

    def write_bits(self, offset: int, values: Sequence[bool]) -> list[Point]:
        """Write coils; returns the points touched. All or nothing. Raises :class:`IllegalAddress`."""
        area = self._areas["co"]
        points = area.touched(offset, len(values))
        before = self._bits["co"]
        word = before
        for n, value in enumerate(values, offset):
            word = word | 1 << n if value else word & ~(1 << n)
        if word != before:
            self._bits["co"] = word
            area.versions[area.block(offset, 1)] += 1
        return points

    def get(self, point: Point) -> Value:
        """The raw value of a point."""
        if point.area in self._bits:
            return bool(self._bits[point.area] >> point.offset & 1)
        return point.decode(bytes(self._data[point.area][2 * point.offset : 2 * (point.offset + point.size)]))

    def setter(self, point: Point) -> Setter:
        """A function by which the PLC's program shows a value (engineering unit); cheap when nothing changed.

        A number beyond the range of its register is shown as the nearest end of the range, as PLCs scale.
        """
        if point.area in self._bits:
            return self._bit_setter(point)
        area, data = self._areas[point.area], self._data[point.area]
        block = area.block(point.offset, 1)
        first, last = 2 * point.offset, 2 * (point.offset + point.size)
        if point.type in ("UINT", "INT") and point.order in ("ABCD", "CDAB"):
            return _word_setter(area, data, block, point)
        if point.type == "UDINT" and point.scale == 1.0 and point.order in ("ABCD", "CDAB"):
            return _counter_setter(area, data, block, point)

        shown: list[object] = [None, -1]

        def show(value: float | int | str | bool) -> None:
            if shown[0] == value and shown[1] == area.clears:
                return
            shown[:] = value, area.clears
            encoded = point.encode(_fit(point, value))
            if data[first:last] != encoded:
                data[first:last] = encoded
                area.versions[block] += 1

        return show

    def digest(self) -> bytes:
        """Everything that the memory holds, for hashing."""
        bits = b"".join(word.to_bytes(64, "little") for word in self._bits.values())
        return bits + bytes(self._data["ir"]) + bytes(self._data["hr"])

    def _bit_setter(self, point: Point) -> Setter:
        bits, name, area = self._bits, point.area, self._areas[point.area]
        mask, block = 1 << point.offset, area.block(point.offset, 1)

        def show(value: float | int | str | bool) -> None:
            word = bits[name]
            if bool(word & mask) != bool(value):
                bits[name] = word ^ mask
                area.versions[block] += 1

        return show

    def _area(self, area: str) -> _Area:
        try:
            return self._areas[area]
        except KeyError:
            raise IllegalAddress(f"{area!r} is not a Modbus data area; use co, di, ir or hr") from None


class NodeMemory:
    """The values behind an OPC UA server, by node id."""

    def __init__(self, plc: str, points: Sequence[Point]) -> None:
        self._plc = plc
        self.points = {p.node_id: p for p in points}
        self._values: dict[str, Value] = {p.node_id: p.zero for p in points}
        self._shown: dict[str, Value] = {}
        """What the program showed last, before it was fitted to the type; spares the fitting."""
        self._version = 0

    def clear(self) -> None:
        """Zero everything, as after a loss of power."""
        for node_id, point in self.points.items():
            self._values[node_id] = point.zero
        self._shown.clear()
        self._version += 1

    def version(self, area: str, offset: int | None = None) -> int:
        """Counter of changes; the only area is ``ua``."""
        if area != "ua" or offset is not None:
            raise IllegalAddress(f"{self._plc} speaks OPC UA; its only area is ua, without offset")
        return self._version

    def read(self, node_ids: Sequence[str]) -> list[Value]:
        """The values of nodes. Raises :class:`IllegalAddress`."""
        values = self._values
        try:
            return [values[node_id] for node_id in node_ids]
        except KeyError as error:
            raise IllegalAddress(f"{self._plc}: no node {error.args[0]}") from None

    def write(self, node_id: str, value: Value) -> list[Point]:
        """Write a node. Raises :class:`IllegalAddress` and :class:`IllegalValue`."""
        point = self.points.get(node_id)
        if point is None or not point.writable:
            raise IllegalAddress(f"{self._plc}: {node_id} is not a node that can be written")
        self._put(point, point.coerce(value))
        self._shown.pop(node_id, None)
        return [point]

    def get(self, point: Point) -> Value:
        """The value of a point."""
        return self._values[point.node_id]

    def setter(self, point: Point) -> Setter:
        """A function by which the PLC's program shows a value; cheap when nothing changed."""
        values, node_id = self._values, point.node_id
        if point.type in ("BOOL", "STRING"):

            def show(value: float | int | str | bool) -> None:
                if values[node_id] != value:
                    values[node_id] = value
                    self._version += 1

            return show

        shown = self._shown

        def show_number(value: float | int | str | bool) -> None:
            if shown.get(node_id) == value:
                return
            shown[node_id] = value
            fitted = _fit(point, value)
            if values[node_id] != fitted:
                values[node_id] = fitted
                self._version += 1

        return show_number

    def digest(self) -> bytes:
        """Everything that the memory holds, for hashing."""
        return repr(list(self._values.items())).encode()

    def _put(self, point: Point, value: Value) -> None:
        if self._values[point.node_id] != value:
            self._values[point.node_id] = value
            self._version += 1


def _word_setter(area: _Area, data: bytearray, block: int, point: Point) -> Setter:
    scale, first, (low, high) = point.scale, 2 * point.offset, point.limits
    codec = struct.Struct(">H" if low == 0 else ">h")
    unpack, pack, versions = codec.unpack_from, codec.pack_into, area.versions

    def show(value: float | int | str | bool) -> None:
        raw = round(value / scale)  # type: ignore[operator]  # never a text: the point is a number
        if raw != unpack(data, first)[0]:
            raw = low if raw < low else min(raw, high)
            pack(data, first, raw)
            versions[block] += 1

    return show


def _counter_setter(area: _Area, data: bytearray, block: int, point: Point) -> Setter:
    first, versions, swapped = 2 * point.offset, area.versions, point.order == "CDAB"
    unpack, pack = struct.Struct(">I").unpack_from, struct.Struct(">I").pack_into

    def show(value: float | int | str | bool) -> None:
        raw = int(value) & 0xFFFFFFFF
        if swapped:
            raw = (raw & 0xFFFF) << 16 | raw >> 16
        if raw != unpack(data, first)[0]:
            pack(data, first, raw)
            versions[block] += 1

    return show


def _fit(point: Point, value: float | int | str | bool) -> Value:
    """The raw value that shows an engineering value, held within the range of the point's type."""
    if isinstance(value, str | bool):
        return value
    if point.type in ("REAL", "LREAL"):
        return point.coerce(float(value))
    raw = round(value / point.scale)
    low, high = point.limits
    return min(max(raw, low), high)
