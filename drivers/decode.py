"""Pure: one block of a plan -> the function that turns its bytes into values.

The functions are generated, because a line reads many tags many times a second. A block has two of them:

* the *swift* one gives all values of the block, or ``None`` as soon as one of them is doubtful: one ``struct`` call,
  bits by table, and one test for all full-range REALs at once (their sum is finite exactly when all of them are);
* the *careful* one judges value by value. It is made when the first doubtful value comes, and used until none is left.

Blocks of the same shape share their functions, so only relative places and numbers enter the source. What the
functions do not decide (the words of a reason) is left to :mod:`drivers.codec`.
"""

from __future__ import annotations

import hashlib
import math
import struct
import weakref
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from drivers import codec
from drivers.port import Area, DataType, ModbusAddress, Tag, Value

BITS = (Area.COIL, Area.DISCRETE_INPUT)

Swift = Callable[[bytes], Sequence[Value | None] | None]
Careful = Callable[[bytes, Sequence[Tag], int, dict[int, str]], Sequence[Value | None]]


def address_of(tag: Tag) -> ModbusAddress:
    """The tag's Modbus address."""
    assert isinstance(tag.address, ModbusAddress)
    return tag.address


def swift(base: int, size: int, tags: Sequence[Tag]) -> Swift:
    """``decode(data)`` for the tags of one area, by rising address, in a block of ``size`` bytes from address ``base``.

    It gives the values in the order of the tags, or ``None`` when one of them is doubtful.
    """
    return _Writer(base, size, tags).swift()


def careful(base: int, size: int, tags: Sequence[Tag]) -> Careful:
    """``decode(data, tags, first, bad)``: as :func:`swift`, but a doubtful value is ``None`` in its place and
    ``bad`` says why, under its place plus ``first``.
    """
    return _Writer(base, size, tags).careful()


class _Field(NamedTuple):
    """A stretch of a block that one ``struct`` code reads; bits and masks of one register share it."""

    start: int
    code: str
    swapped: bool
    endian: str

    @property
    def stop(self) -> int:
        return self.start + struct.calcsize(">" + self.code)


class _Item(NamedTuple):
    """One tag: how to get its raw value, its value from that, and when it is good."""

    raw: str
    value: str
    good: str = ""
    """A condition over ``raw``, empty when every raw value is good."""
    finite: bool = False
    """A REAL of full range: good when finite."""


class _Writer:
    """Writes the source of both functions of one block."""

    def __init__(self, base: int, size: int, tags: Sequence[Tag]) -> None:
        self._base, self._size, self._tags = base, size, tags
        self._fields = [self._field(tag) for tag in tags]
        self._passes = _passes(sorted(set(self._fields)))
        self._names = {f: f"v{n}_{k}" for n, run in enumerate(self._passes) for k, f in enumerate(run)}

    def swift(self) -> Swift:
        items = [self._item(n) for n in range(len(self._tags))]
        if [[item.value for item in items]] == [[self._names[field] for field in run] for run in self._passes]:
            finite = {item.finite for item in items}
            if len(finite) == 1 and not any(item.good for item in items):
                test = "return v if finite(sum(v)) else None" if finite == {True} else "return v"
                return self._make((f"v = {self._unpack(0)}", test), "d")
        conditions = [item.good for item in items if item.good]
        if reals := [item.raw for item in items if item.finite]:
            conditions.append(f"finite({' + '.join(reals)})")
        result = f"[{', '.join(self._values(items))}]"
        if conditions:
            result += f" if {' and '.join(conditions)} else None"
        return self._make((*self._assign(), f"return {result}"), "d")

    def careful(self) -> Careful:
        parts = []
        for n in range(len(self._tags)):
            item = self._item(n)
            good = f"finite({item.raw})" if item.finite else item.good
            doubt = f" if {good} else doubt(t, {n}, {item.raw}, n, bad)" if good else ""
            parts.append(item.value + doubt)
        return self._make((*self._assign(), f"return [{', '.join(parts)}]"), "d, t, n, bad")

    def _make(self, lines: Sequence[str], arguments: str) -> Callable[..., Any]:
        unpackers = "".join(f", u{number}" for number in range(len(self._passes)))
        source = f"def decode({arguments}{unpackers}):\n" + "".join(f"    {line}\n" for line in lines)
        return _build(source, tuple(_format(run, self._size) for run in self._passes))

    def _field(self, tag: Tag) -> _Field:
        """Where ``struct`` finds the tag; of a BOOL, its byte."""
        address = address_of(tag)
        place = address.offset - self._base
        if tag.type is DataType.BOOL:
            byte = place // 8 if address.bit is None else place * 2 + (address.bit < 8)
            return _Field(byte, "B", False, ">")
        if tag.type is DataType.STRING:
            return _Field(place * 2, f"{codec.register_count(tag) * 2}s", codec.swapped(tag), ">")
        code = "H" if tag.mask is not None else codec.STRUCT_CODE[tag.type]
        return _Field(place * 2, code, codec.swapped(tag), codec.endian(tag))

    def _bit(self, tag: Tag) -> int:
        """Which bit of its byte a BOOL is."""
        address = address_of(tag)
        return (address.offset - self._base if address.bit is None else address.bit) % 8

    def _unpack(self, number: int) -> str:
        return f"u{number}({'swap(d)' if self._passes[number][0].swapped else 'd'})"

    def _assign(self) -> list[str]:
        """Lines that unpack the block into a name per field."""
        return [
            f"{''.join(self._names[field] + ', ' for field in run)}= {self._unpack(number)}"
            for number, run in enumerate(self._passes)
        ]

    def _item(self, n: int) -> _Item:
        tag = self._tags[n]
        raw = self._names[self._fields[n]]
        if tag.type is DataType.BOOL:
            bit = self._bit(tag)
            return _Item(raw, f"bit{bit}_{bit}[{raw}]")
        if tag.type is DataType.STRING:
            return _Item(raw, f'{raw}[:{tag.length}].split(b"\\0", 1)[0].decode("latin-1")')
        if tag.type in codec.DECIMAL:
            raw = f"bcd({raw})"
        elif tag.mask is not None:
            shift, bits = codec.field(tag.mask)
            raw = f"({raw} >> {shift} & {(1 << bits) - 1})"
            if codec.is_signed(tag):
                raw = f"(({raw} ^ {1 << bits - 1}) - {1 << bits - 1})"
        value = raw
        if tag.scaled:
            # The float first: an int would ask its own type before. Adding 0.0 makes a zero of -0.0, which whole
            # numbers only give with a negative scale.
            plain = tag.offset == 0.0 and tag.scale > 0.0 and tag.type in codec.INTEGER_RANGE
            value = f"{tag.scale!r} * {raw}" + ("" if plain else f" + {tag.offset!r}")
        return _Item(raw, value, *self._test(tag, raw))

    def _test(self, tag: Tag, raw: str) -> tuple[str, bool]:
        """When a raw number is good: a condition, and whether it only must be finite."""
        (lowest, highest), (least, most) = codec.bounds(tag), self._carried(tag)
        if tag.type is DataType.REAL and (lowest, highest) == (least, most):
            return "", True
        if tag.type in codec.REALS or (lowest > least and highest < most):
            # NaN fails both comparisons, infinity one of them, so that this is the whole test.
            return f"{lowest!r} <= {raw} <= {highest!r}", False
        return (f"{raw} >= {lowest!r}" if lowest > least else f"{raw} <= {highest!r}" if highest < most else ""), False

    def _carried(self, tag: Tag) -> tuple[float, float]:
        """The least and the largest raw number that the bits in the PLC can make."""
        if tag.mask is not None or tag.type in codec.REALS:
            return codec.full_range(tag)
        if tag.type in codec.DECIMAL:  # bits that are no digits count below 0
            return -math.inf, codec.INTEGER_RANGE[tag.type][1]
        bits = codec.register_count(tag) * 16
        return (-(1 << bits - 1), (1 << bits - 1) - 1) if codec.is_signed(tag) else (0, (1 << bits) - 1)

    def _values(self, items: Sequence[_Item]) -> list[str]:
        """An expression per value, or per run of bits in one byte."""
        parts: list[str] = []
        n = 0
        while n < len(items):
            tag, first = self._tags[n], n
            n += 1
            if tag.type is not DataType.BOOL:
                parts.append(items[first].value)
                continue
            low = high = self._bit(tag)
            while n < len(items) and (self._fields[n], self._bit(self._tags[n])) == (self._fields[first], high + 1):
                n, high = n + 1, high + 1
            parts.append(f"{'*' if low < high else ''}bit{low}_{high}[{items[first].raw}]")
        return parts


def _passes(fields: Sequence[_Field]) -> list[list[_Field]]:
    """The fields, by rising start, as runs that one ``struct`` each can read: one per byte order, more on overlaps."""
    passes: list[list[_Field]] = []
    for field in fields:
        for run in passes:
            last = run[-1]
            if (last.swapped, last.endian) == (field.swapped, field.endian) and last.stop <= field.start:
                run.append(field)
                break
        else:
            passes.append([field])
    return passes


def _format(run: Sequence[_Field], size: int) -> str:
    """The run as a ``struct`` format of ``size`` bytes. Repeats are counted: a code takes memory each time."""
    parts: list[list[Any]] = []
    position = 0
    for field in run:
        if field.start > position:
            parts.append([f"{field.start - position}x", 0])
        if parts and parts[-1][0] == field.code and len(field.code) == 1:
            parts[-1][1] += 1
        else:
            parts.append([field.code, 1])
        position = field.stop
    layout = "".join(f"{count if count > 1 else ''}{code}" for code, count in parts)
    return f"{run[0].endian}{layout}{size - position}x"


def _doubt(tags: Sequence[Tag], index: int, raw: Value, first: int, bad: dict[int, str]) -> Value | None:
    value, reason = codec.judge(tags[index], raw)
    if reason:
        bad[first + index] = reason
    return value


def _flags(low: int, high: int) -> tuple[Any, ...]:
    """By the value of a byte: its bits ``low`` to ``high``, of one bit alone the bit itself."""
    runs = [tuple(bool(number >> bit & 1) for bit in range(high - low + 1)) for number in range(1 << high - low + 1)]
    found = [runs[byte >> low & (1 << high - low + 1) - 1] for byte in range(256)]
    return tuple(found) if low < high else tuple(run[0] for run in found)


_SCOPE: dict[str, Any] = {
    **{f"bit{low}_{high}": _flags(low, high) for high in range(8) for low in range(high + 1)},
    "bcd": codec.from_bcd, "swap": codec.swap_bytes, "finite": math.isfinite, "doubt": _doubt,
}  # fmt: skip


_MADE: weakref.WeakValueDictionary[bytes, Callable[..., Any]] = weakref.WeakValueDictionary()


def _build(source: str, formats: tuple[str, ...]) -> Callable[..., Any]:
    """The function of this source, one and the same for all blocks of this shape that are in use."""
    key = hashlib.sha256("\n".join((source, *formats)).encode()).digest()
    function = _MADE.get(key)
    if function is None:
        made: dict[str, Any] = {}
        exec(compile(source, "<block>", "exec"), _SCOPE, made)
        function = _MADE[key] = made["decode"]
        # Nobody can look up the source, and the table of places in it would outweigh the code. An entry of
        # FFh stands for eight units of code without a place, F8h for one, F9h for two and so on.
        eights, rest = divmod(len(function.__code__.co_code) // 2, 8)
        places = b"\xff" * eights + (bytes((0xF7 + rest,)) if rest else b"")
        function.__code__ = function.__code__.replace(co_linetable=places)
        function.__defaults__ = tuple(struct.Struct(text).unpack for text in formats)
    return function
