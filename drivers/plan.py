"""Pure: the tags of one Modbus PLC -> fewest legal requests, and their answers -> values.

No sockets: give it bytes, it gives values. A driver sends its requests; a bench can answer them from the
memory of a virtual PLC, in the same step of virtual time::

    plan = ModbusPlan(tags, PlanOptions(max_registers=125, max_bits=2000, max_gap=8))
    for number, group in enumerate(plan.groups):                 # one group per scan class
        data = [serve(r.area, r.offset, r.count) for r in plan.requests(number)]
        values, bad = plan.decode(number, data)                  # values in the order of group.tags

    write = plan.encode_write("filler.target", 331.0)            # EncodeError: nothing is sent
    if write.mask is None:    put write.payload at (write.area, write.offset)
    else:                     register = register & and_mask | or_mask & ~and_mask
    r = write.read_back
    ok, found = plan.confirm(write, serve(r.area, r.offset, r.count))   # compares raw, not scaled, values

*Bytes.* For registers: two bytes each, high byte first, ``count * 2`` in all (``struct.pack(">nH", …)``). For
coils and discrete inputs: packed as in the answer to function 1 and 2, the first one in bit 0 of the first byte,
``(count + 7) // 8`` bytes in all. The payload of a written coil is one byte, 1 or 0.

*Speed.* Each request's answer is decoded by one function generated at construction (one ``struct`` call where the
addresses allow it). An answer whose bytes equal the last one's is not decoded again, and a group in which
nothing changed returns the identical ``values`` tuple; as decoding is pure, that is always right.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from drivers import codec
from drivers.port import Area, DataType, ModbusAddress, ReadGroup, Tag, Value

BITS = (Area.COIL, Area.DISCRETE_INPUT)
MAX_WRITE_REGISTERS = 123
"""Most registers in one write (MODBUS Application Protocol V1.1b3, 6.12)."""
UNCHANGED: Mapping[int, str] = {}


@dataclass(frozen=True, kw_only=True)
class PlanOptions:
    """What the device takes in one request, and how many unused addresses a request may bridge."""

    max_registers: int = 125
    max_bits: int = 2000
    max_gap: int = 8
    """Unused addresses (registers; coils and discrete inputs likewise) read along to save a request. A device
    that refuses addresses it does not have needs 0.
    """

    def __post_init__(self) -> None:
        for name, low, high in (("max_registers", 1, 125), ("max_bits", 1, 2000), ("max_gap", 0, 124)):
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be {low} to {high}")


@dataclass(frozen=True, slots=True)
class Request:
    """One read: ``count`` registers or bits from ``offset`` on."""

    area: Area
    offset: int
    count: int

    @property
    def size(self) -> int:
        """Bytes of data in the answer."""
        return (self.count + 7) // 8 if self.area in BITS else self.count * 2

    def __str__(self) -> str:
        return f"{self.area}:{self.offset}" + (f"..{self.offset + self.count - 1}" if self.count > 1 else "")


@dataclass(frozen=True, slots=True)
class WriteRequest:
    """One write, with the read that confirms it.

    ``payload`` is ``count * 2`` bytes for registers, one byte (1 or 0) for a coil. ``mask`` is
    ``(and_mask, or_mask)`` for a bit inside a register (function 22), else ``None``.
    """

    tag: Tag
    raw: Value
    area: Area
    offset: int
    count: int
    payload: bytes
    mask: tuple[int, int] | None
    read_back: Request


class ModbusPlan:
    """The compiled plan of one PLC. Keeps the last answers, so use one plan per connection owner.

    Raises ``ValueError`` at construction when a tag contradicts itself or cannot be read in one request.
    """

    def __init__(self, tags: Sequence[Tag], options: PlanOptions | None = None) -> None:
        options = options or PlanOptions()
        by_class: dict[str, list[Tag]] = {}
        self._tags: dict[str, Tag] = {}
        for tag in tags:
            if tag.name in self._tags:
                raise ValueError(f"{tag.name} is declared twice")
            _check(tag, options)
            self._tags[tag.name] = tag
            by_class.setdefault(tag.scan_class, []).append(tag)
        self.groups = tuple(ReadGroup(name, tuple(members)) for name, members in by_class.items())
        """The read groups, one per scan class, in the order in which the tags name them."""
        self._compiled = [_Group(group.tags, options) for group in self.groups]

    def requests(self, group: int) -> tuple[Request, ...]:
        """The reads that bring in group number ``group``, in the order in which ``decode`` wants the answers."""
        return self._compiled[group].requests

    def decode(self, group: int, data: list[bytes]) -> tuple[tuple[Value | None, ...], Mapping[int, str]]:
        """Answers (one per request) to ``(values, bad)``; ``bad`` says by index why a value is ``None``.

        Raises ``ValueError`` when an answer has the wrong length; nothing is taken over then.
        """
        compiled = self._compiled[group]
        if data == compiled.last:
            return compiled.result
        return compiled.decode(data)

    def encode_write(self, name: str, value: Value) -> WriteRequest:
        """The write of an engineering value. Raises :class:`~drivers.codec.EncodeError`."""
        tag = self._tags.get(name)
        if tag is None:
            raise codec.EncodeError(name, value, "no such tag on this PLC")
        if not tag.writable:
            raise codec.EncodeError(name, value, "the tag is read-only (access: r)")
        raw = codec.to_raw(tag, value)
        address = _address(tag)
        count = codec.register_count(tag)
        mask = None
        if address.bit is not None:
            bit = 1 << address.bit
            mask = (0xFFFF ^ bit, bit if raw else 0)
        read_back = Request(address.area, address.offset, count)
        payload = codec.pack(tag, raw)
        return WriteRequest(tag, raw, address.area, address.offset, count, payload, mask, read_back)

    def confirm(self, write: WriteRequest, data: bytes) -> tuple[bool, Value | None]:
        """Whether the answer to ``write.read_back`` shows the value written, and the engineering value it shows."""
        if len(data) != write.read_back.size:
            raise ValueError(f"{write.tag.name}: {len(data)} bytes read back, not {write.read_back.size}")
        raw = bool(data[0] & 1) if write.area in BITS else codec.unpack(write.tag, data)
        return raw == write.raw, codec.judge(write.tag, raw)[0]


class _Group:
    """One group: its blocks, and what the last answers were and meant."""

    def __init__(self, tags: Sequence[Tag], options: PlanOptions) -> None:
        blocks = coalesce(tags, options)
        self.requests = tuple(request for request, _ in blocks)
        self._sizes = [request.size for request in self.requests]
        self._decoders = [_compile(request, members, tags) for request, members in blocks]
        self._out: list[Value | None] = [None] * len(tags)
        self._bad: list[dict[int, str]] = [{} for _ in blocks]
        self.last: list[bytes | None] = [None] * len(blocks)
        self.result: tuple[tuple[Value | None, ...], Mapping[int, str]] = ((), UNCHANGED)

    def decode(self, data: Sequence[bytes]) -> tuple[tuple[Value | None, ...], Mapping[int, str]]:
        if [len(answer) for answer in data] != self._sizes:
            raise ValueError(f"answers of {[len(answer) for answer in data]} bytes, expected {self._sizes}")
        changed = False
        for number, answer in enumerate(data):
            if answer != self.last[number]:
                bad: dict[int, str] = {}
                self._decoders[number](answer, self._out, bad)
                self._bad[number] = bad
                self.last[number] = bytes(answer)
                changed = True
        if changed:
            all_bad = {index: reason for bad in self._bad for index, reason in bad.items()}
            self.result = (tuple(self._out), all_bad or UNCHANGED)
        return self.result


def coalesce(tags: Sequence[Tag], options: PlanOptions) -> list[tuple[Request, list[int]]]:
    """The fewest requests that cover the tags within the limits, and per request the indices of its tags.

    Taking the tags of an area by rising address and opening a request only where the next tag does not fit
    is optimal: some request must hold the first tag, and none reaches further than the one that begins there.
    """
    blocks: list[tuple[Request, list[int]]] = []
    for area in Area:
        limit = options.max_bits if area in BITS else options.max_registers
        spans = sorted(
            (_address(tag).offset, _address(tag).offset + codec.register_count(tag), index)
            for index, tag in enumerate(tags)
            if _address(tag).area is area
        )
        first, end, members = 0, 0, list[int]()
        for start, stop, index in spans:
            if members and start - end <= options.max_gap and max(end, stop) - first <= limit:
                members.append(index)
                end = max(end, stop)
                continue
            if members:
                blocks.append((Request(area, first, end - first), members))
            first, end, members = start, stop, [index]
        if members:
            blocks.append((Request(area, first, end - first), members))
    return blocks


Decoder = Callable[[bytes, list[Value | None], dict[int, str]], None]


def _compile(request: Request, members: Sequence[int], tags: Sequence[Tag]) -> Decoder:
    """Generate ``decode(data, out, bad)`` for one request. Only numbers made here enter the source."""
    names: dict[str, Any] = {}
    lines: list[str] = []
    if request.area in BITS:
        for index in members:
            byte, bit = divmod(_address(tags[index]).offset - request.offset, 8)
            lines.append(f"o[{index}] = d[{byte}] & {1 << bit} != 0")
    else:
        fields = _fields(request, members, tags)
        _unpack_lines(request, fields, names, lines)
        for field in fields:
            for index in field.members:
                _value_lines(index, tags[index], field, names, lines)
    source = "def decode(d, o, bad):\n" + "".join(f"    {line}\n" for line in lines)
    exec(compile(source, f"<decode {request}>", "exec"), names)
    decoder: Decoder = names["decode"]
    return decoder


class _Field(NamedTuple):
    """A stretch of a block that one ``struct`` code reads; bits of one register share it."""

    variable: str
    start: int
    code: str
    swapped: bool
    endian: str
    members: list[int]


def _fields(request: Request, members: Sequence[int], tags: Sequence[Tag]) -> list[_Field]:
    fields: dict[tuple[int, str, bool, str], _Field] = {}
    for index in members:
        tag = tags[index]
        if tag.type is DataType.STRING:
            code = f"{codec.register_count(tag) * 2}s"
        else:
            code = codec.STRUCT_CODE.get(tag.type, "H")
        start = (_address(tag).offset - request.offset) * 2
        key = (start, code, codec.swapped(tag), codec.endian(tag))
        if key not in fields:
            fields[key] = _Field(f"v{len(fields)}", *key, [])
        fields[key].members.append(index)
    return sorted(fields.values(), key=lambda field: field.start)


def _unpack_lines(request: Request, fields: Sequence[_Field], names: dict[str, Any], lines: list[str]) -> None:
    """One ``struct`` per byte order in use, and a further one wherever tags overlap."""
    if any(field.swapped for field in fields):
        names["swap"] = codec.swap_bytes
        lines.append("s = swap(d)")
    passes: dict[tuple[bool, str], list[list[_Field]]] = {}
    for field in fields:
        layers = passes.setdefault((field.swapped, field.endian), [])
        for layer in layers:
            if layer[-1].start + struct.calcsize(">" + layer[-1].code) <= field.start:
                layer.append(field)
                break
        else:
            layers.append([field])
    for (is_swapped, order), layers in passes.items():
        for layer in layers:
            layout, position = order, 0
            for field in layer:
                layout += f"{field.start - position}x{field.code}"
                position = field.start + struct.calcsize(">" + field.code)
            unpack = f"u{len(names)}"
            names[unpack] = struct.Struct(f"{layout}{request.size - position}x").unpack
            targets = "".join(f"{field.variable}, " for field in layer)
            lines.append(f"{targets}= {unpack}({'s' if is_swapped else 'd'})")


def _value_lines(index: int, tag: Tag, field: _Field, names: dict[str, Any], lines: list[str]) -> None:
    variable = field.variable
    if tag.type is DataType.BOOL:
        lines.append(f"o[{index}] = {variable} & {1 << (_address(tag).bit or 0)} != 0")
        return
    if tag.type is DataType.STRING:
        lines.append(f'o[{index}] = {variable}[:{tag.length}].split(b"\\0", 1)[0].decode("latin-1")')
        return
    value = f"{variable} * {tag.scale!r} + {tag.offset!r}" if tag.scaled else variable
    lowest, highest = codec.bounds(tag)
    if (lowest, highest) == codec.INTEGER_RANGE.get(tag.type) and tag.type not in (DataType.SINT, DataType.USINT):
        lines.append(f"o[{index}] = {value}")
        return
    # NaN fails both comparisons, infinity one of them, so that this line is the whole test.
    lines.append(f"if {lowest!r} <= {variable} <= {highest!r}: o[{index}] = {value}")
    names[f"t{index}"], names["judge"] = tag, codec.judge
    lines.append(f"else: o[{index}], bad[{index}] = judge(t{index}, {variable})")


def _address(tag: Tag) -> ModbusAddress:
    assert isinstance(tag.address, ModbusAddress)
    return tag.address


def _check(tag: Tag, options: PlanOptions) -> None:
    if not isinstance(tag.address, ModbusAddress):
        raise ValueError(f"{tag.name}: {tag.address} is not a Modbus address (co:n, di:n, ir:n, hr:n, hr:n.bit)")  # noqa: TRY004 - a tag's fault, like the others
    codec.check(tag)
    count = codec.register_count(tag)
    if tag.address.area not in BITS and count > options.max_registers:
        raise ValueError(
            f"{tag.name} takes {count} registers, the PLC gives {options.max_registers} at once; shorten it"
        )
    if tag.writable and count > MAX_WRITE_REGISTERS:
        raise ValueError(f"{tag.name} takes {count} registers; one write holds {MAX_WRITE_REGISTERS}")
