"""Pure: the tags of one Modbus PLC -> fewest legal requests, and their answers -> values.

No sockets: give it bytes, it gives values. A driver sends its requests; a bench can answer them from the
memory of a virtual PLC, in the same step of virtual time::

    plan = ModbusPlan(tags, PlanOptions(max_registers=125, max_bits=2000, max_gap=8))
    for number, group in enumerate(plan.groups):                 # one group per scan class
        data = [serve(r.area, r.offset, r.count) for r in plan.requests(number)]
        values, bad = plan.decode(number, data)                  # values in the order of group.tags

    write = plan.encode_write("filler.target", 331.0)            # EncodeError: nothing is sent; encode_block likewise
    if write.mask is None:    put write.payload at (write.area, write.offset)
    else:                     register = register & and_mask | or_mask & ~and_mask
    r = write.read_back
    ok, found = plan.confirm(write, serve(r.area, r.offset, r.count))   # compares raw, not scaled, values

*Bytes.* For registers: two bytes each, high byte first, ``count * 2`` in all (``struct.pack(">nH", …)``). For
coils and discrete inputs: packed as in the answer to function 1 and 2, the first one in bit 0 of the first byte,
``(count + 7) // 8`` bytes in all. The payload of a written coil is one byte, 1 or 0.

*Speed.* Each request's answer is decoded by one function generated at construction (:mod:`drivers.decode`). An answer
whose bytes equal the last one's is not decoded again, and a group in which nothing changed returns the identical
``values`` tuple; as decoding is pure, that is always right.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from drivers import codec, decode
from drivers.decode import BITS, address_of
from drivers.port import Area, ModbusAddress, ReadGroup, Tag, Value

__all__ = ["BITS", "ModbusPlan", "PlanOptions", "Range", "Request", "WriteRequest", "coalesce"]

NONE_BAD: Mapping[int, str] = {}
Decoded = tuple[tuple[Value | None, ...], Mapping[int, str]]
_AREAS = tuple(Area)


@dataclass(frozen=True, slots=True)
class Range:
    """Addresses ``first`` to ``last``, both included, of one area."""

    area: Area
    first: int
    last: int


@dataclass(frozen=True, kw_only=True)
class PlanOptions:
    """What the device takes in one request, and how many unused addresses a request may bridge."""

    max_registers: int = 125
    max_bits: int = 2000
    max_gap: int = 8
    """Unused addresses (registers; coils and discrete inputs likewise) read along to save a request. A device
    that refuses addresses it does not have needs 0.
    """
    max_write_registers: int = 123
    """Most registers in one write."""
    avoid: tuple[Range, ...] = ()
    """Addresses that a request must not touch unless a tag lies there: reading them does something, or is refused."""

    def __post_init__(self) -> None:
        limits = (
            ("max_registers", 1, 125),
            ("max_bits", 1, 2000),
            ("max_gap", 0, 124),
            ("max_write_registers", 1, 123),
        )
        for name, low, high in limits:
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
    ``(and_mask, or_mask)`` for a bit or a field of bits inside a register (function 22), else ``None``.
    """

    tags: tuple[Tag, ...]
    """What is written, by rising address: one tag, or the registers of a block."""
    raws: tuple[Value, ...]
    area: Area
    offset: int
    count: int
    payload: bytes
    mask: tuple[int, int] | None
    read_back: Request

    @property
    def tag(self) -> Tag:
        """The tag, of a block the first one."""
        return self.tags[0]

    @property
    def what(self) -> str:
        """For people: ``a.x at hr:5``, ``a.x and 3 more at hr:5..8``."""
        if len(self.tags) == 1:
            return f"{self.tag.name} at {self.tag.address}"
        return f"{self.tag.name} and {len(self.tags) - 1} more at {self.read_back}"


class ModbusPlan:
    """The compiled plan of one PLC. Keeps the last answers, so use one plan per connection owner.

    Raises ``ValueError`` at construction when a tag contradicts itself or cannot be read, or written, in one request.
    """

    def __init__(self, tags: Sequence[Tag], options: PlanOptions | None = None) -> None:
        self._options = options = options or PlanOptions()
        by_class: dict[str, list[Tag]] = {}
        names: set[str] = set()
        for tag in tags:
            if tag.name in names:
                raise ValueError(f"{tag.name} is declared twice")
            names.add(tag.name)
            _check(tag, options)
            by_class.setdefault(tag.scan_class, []).append(tag)
        self._writable = tuple(sorted((tag for tag in tags if tag.writable), key=_name))
        self.groups = tuple(ReadGroup(name, tuple(sorted(m, key=_place))) for name, m in by_class.items())
        """The read groups, one per scan class, in the order in which the tags name them; their tags by area and
        address, so that the values of a request are a slice.
        """
        self._compiled = [_Group(group.tags, options) for group in self.groups]

    def requests(self, group: int) -> tuple[Request, ...]:
        """The reads that bring in group number ``group``, in the order in which ``decode`` wants the answers."""
        return self._compiled[group].requests

    def decode(self, group: int, data: Sequence[bytes | str]) -> Decoded:
        """Answers (one per request) to ``(values, bad)``; ``bad`` says by index why a value is ``None``.

        A text in the place of an answer is the reason why the values of that request are bad. Raises ``ValueError``
        when an answer has the wrong length; nothing is taken over then.
        """
        compiled = self._compiled[group]
        if data == compiled.last:
            return compiled.result
        return compiled.decode(data)

    def encode_write(self, name: str, value: Value) -> WriteRequest:
        """The write of an engineering value. Raises :class:`~drivers.codec.EncodeError`."""
        tag = self._output(name)
        if tag is None:
            raise codec.EncodeError(name, value, self._unwritable(name))
        raw = codec.to_raw(tag, value)
        address = address_of(tag)
        count = codec.register_count(tag)
        payload = codec.pack(tag, raw)
        mask = None
        if address.bit is not None:
            bit = 1 << address.bit
            mask = (0xFFFF ^ bit, bit if raw else 0)
        elif tag.mask is not None:
            mask = (0xFFFF ^ tag.mask, int.from_bytes(payload, "big"))
        read_back = Request(address.area, address.offset, count)
        return WriteRequest((tag,), (raw,), address.area, address.offset, count, payload, mask, read_back)

    def encode_block(self, values: Mapping[str, Value]) -> WriteRequest:
        """One write of registers that follow each other. Raises :class:`~drivers.codec.EncodeError`."""
        if problem := self.block_problem(tuple(values)):
            raise codec.EncodeError(", ".join(values), tuple(values.values()), problem)
        tags = self._members(values)
        raws = tuple(codec.to_raw(tag, values[tag.name]) for tag in tags)
        payload = b"".join(codec.pack(tag, raw) for tag, raw in zip(tags, raws, strict=True))
        area, offset, count = Area.HOLDING_REGISTER, address_of(tags[0]).offset, len(payload) // 2
        return WriteRequest(tags, raws, area, offset, count, payload, None, Request(area, offset, count))

    def block_problem(self, names: Sequence[str]) -> str:
        """Why these tags cannot be written in one request; empty when they can."""
        if not names:
            return "nothing is to be written"
        for name in names:
            tag = self._output(name)
            if tag is None:
                return f"{name}: {self._unwritable(name)}"
            address = address_of(tag)
            if address.area is not Area.HOLDING_REGISTER or address.bit is not None or tag.mask is not None:
                return f"{name} at {address} is no whole holding register; a block is made of those only"
        tags = self._members(names)
        first = end = address_of(tags[0]).offset
        for before, tag in zip([None, *tags], tags, strict=False):
            offset = address_of(tag).offset
            if offset != end and before is not None:
                how = "overlaps" if offset < end else "does not follow"
                return f"{tag.name} at {tag.address} {how} {before.name} at {before.address}; a block has no gaps"
            end = offset + codec.register_count(tag)
        most = min(self._options.max_write_registers, self._options.max_registers)
        return f"it takes {end - first} registers, the PLC takes {most} at once" if end - first > most else ""

    def confirm(self, write: WriteRequest, data: bytes) -> tuple[bool, Value | None]:
        """Whether the answer to ``write.read_back`` shows every value written, and the engineering value it shows.

        Of a block the second is a text that names the values which differ, ``None`` when there are none.
        """
        if len(data) != write.read_back.size:
            raise ValueError(f"{write.what}: {len(data)} bytes read back, not {write.read_back.size}")
        if write.area in BITS:
            found = bool(data[0] & 1)
            return found == write.raws[0], found
        differ: list[str] = []
        value: Value | None = None
        for tag, wanted in zip(write.tags, write.raws, strict=True):
            start = (address_of(tag).offset - write.offset) * 2
            raw = codec.unpack(tag, data[start : start + codec.register_count(tag) * 2])
            value, reason = codec.judge(tag, raw)
            if raw != wanted:
                differ.append(f"{tag.name} = {reason or repr(value)}")
        return not differ, value if len(write.tags) == 1 else ", ".join(differ) or None

    def _output(self, name: str) -> Tag | None:
        """The writable tag of this name. A search by halves: a dict of all outputs takes five times the memory."""
        place = bisect_left(self._writable, name, key=_name)
        found = self._writable[place] if place < len(self._writable) else None
        return found if found is not None and found.name == name else None

    def _members(self, names: Iterable[str]) -> tuple[Tag, ...]:
        """The writable tags of these names, by address."""
        return tuple(sorted((tag for name in names if (tag := self._output(name))), key=_place))

    def _unwritable(self, name: str) -> str:
        known = any(tag.name == name for group in self.groups for tag in group.tags)
        return "the tag is read-only (access: r)" if known else "no such tag on this PLC"


class _Group:
    """One group: its blocks, and what the last answers were and meant."""

    __slots__ = ("_blocks", "_sizes", "_tags", "last", "requests", "result")

    def __init__(self, tags: tuple[Tag, ...], options: PlanOptions) -> None:
        self._tags = tags
        spans = coalesce(tags, options)
        self.requests = tuple(request for request, _, _ in spans)
        self._sizes = [request.size for request in self.requests]
        self._blocks = [_Block(request, tags, first, stop) for request, first, stop in spans]
        self.last: list[bytes | str | None] = [None] * len(spans)
        self.result: Decoded = ((None,) * len(tags), NONE_BAD)

    def decode(self, data: Sequence[bytes | str]) -> Decoded:
        if list(map(len, data)) != self._sizes:
            self._check_sizes(data)
        if len(data) == 1:  # most groups
            self.result = (tuple(self._blocks[0].decode(data[0], self._tags)), self._blocks[0].bad or NONE_BAD)
            self.last = [data[0]]
            return self.result
        before, last = self.result[0], list(self.last)
        out: list[Value | None] = []
        bad: dict[int, str] = {}
        for number, answer in enumerate(data):
            block = self._blocks[number]
            if answer == last[number]:
                out += before[block.first : block.stop]
            else:
                out += block.decode(answer, self._tags)
                last[number] = answer
            if block.bad:
                bad |= block.bad
        # Both at the end: an answer counts as known only together with what it means.
        self.last, self.result = last, (tuple(out), bad or NONE_BAD)
        return self.result

    def _check_sizes(self, data: Sequence[bytes | str]) -> None:
        found = [None if isinstance(answer, str) else len(answer) for answer in data]
        fits = len(found) == len(self._sizes)
        if not fits or any(n not in (None, size) for n, size in zip(found, self._sizes, strict=True)):
            raise ValueError(f"answers of {found} bytes, expected {self._sizes}")


class _Block:
    """One request's tags, ``first`` to ``stop`` of its group, and what was bad in its last answer."""

    __slots__ = ("_careful", "_doubtful", "_swift", "bad", "first", "request", "stop")

    def __init__(self, request: Request, tags: Sequence[Tag], first: int, stop: int) -> None:
        self.request, self.first, self.stop = request, first, stop
        self.bad: Mapping[int, str] = NONE_BAD
        self._swift = decode.swift(request.offset, request.size, tags[first:stop])
        self._careful: decode.Careful | None = None
        self._doubtful = False

    def decode(self, answer: bytes | str, group: Sequence[Tag]) -> Sequence[Value | None]:
        if isinstance(answer, str):
            self.bad = dict.fromkeys(range(self.first, self.stop), answer)
            return (None,) * (self.stop - self.first)
        values = None if self._doubtful else self._swift(answer)
        if values is not None:
            self.bad = NONE_BAD
        else:
            tags = group[self.first : self.stop]
            if self._careful is None:
                self._careful = decode.careful(self.request.offset, self.request.size, tags)
            bad: dict[int, str] = {}
            values = self._careful(answer, tags, self.first, bad)
            self.bad, self._doubtful = bad or NONE_BAD, bool(bad)
        return values


def coalesce(tags: Sequence[Tag], options: PlanOptions) -> list[tuple[Request, int, int]]:
    """The fewest requests that cover the tags within the limits, and which tags (first, behind the last) each covers.

    The tags are given by area and rising address. Opening a request only where the next tag does not fit is optimal:
    some request must hold the first tag, and none reaches further than the one that begins there.
    """
    found: list[tuple[Request, int, int]] = []
    members = start = end = 0
    area = Area.COIL
    for index, tag in enumerate(tags):
        address = address_of(tag)
        stop = address.offset + codec.register_count(tag)
        limit = options.max_bits if area in BITS else options.max_registers
        joins = (
            index > 0
            and address.area is area
            and max(end, stop) - start <= limit
            and address.offset - end <= options.max_gap
            and not any(r.area is area and max(r.first, end) < min(r.last + 1, address.offset) for r in options.avoid)
        )
        if not joins:
            if index:
                found.append((Request(area, start, end - start), members, index))
            area, start, end, members = address.area, address.offset, stop, index
        end = max(end, stop)
    if tags:
        found.append((Request(area, start, end - start), members, len(tags)))
    return found


def _name(tag: Tag) -> str:
    return tag.name


def _place(tag: Tag) -> tuple[int, int, int, int]:
    address = address_of(tag)
    inside = address.bit or 0 if tag.mask is None else codec.field(tag.mask)[0]
    return _AREAS.index(address.area), address.offset, inside, codec.register_count(tag)


def _check(tag: Tag, options: PlanOptions) -> None:
    if not isinstance(tag.address, ModbusAddress):
        raise ValueError(f"{tag.name}: {tag.address} is not a Modbus address (co:n, di:n, ir:n, hr:n, hr:n.bit)")  # noqa: TRY004 - a tag's fault, like the others
    codec.check(tag)
    count = codec.register_count(tag)
    if tag.address.area not in BITS and count > options.max_registers:
        raise ValueError(
            f"{tag.name} takes {count} registers, the PLC gives {options.max_registers} at once; shorten it"
        )
    if tag.writable and count > options.max_write_registers:
        raise ValueError(f"{tag.name} takes {count} registers, the PLC takes {options.max_write_registers} in a write")
