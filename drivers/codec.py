"""Pure: the bytes of a tag on the wire <-> its engineering value.

Three steps, each usable alone. *raw* is what the PLC holds, as a Python value of the tag's type::

    engineering value  --to_raw-->  raw  --pack-->  bytes     (writing; refuses, never clamps)
    engineering value  <-judge--  raw  <-unpack--  bytes      (reading; a doubtful value is a reason, not a value)

``to_raw``, ``judge`` and ``same`` know nothing of registers and serve OPC UA too.

Registers are given as their bytes in the order of the wire: two per register, high byte first (MODBUS
Application Protocol V1.1b3, 4.2). A number of one register is always in that order; of several, ``word_order``
says where its bytes lie. A STRING has two characters per register, in rising registers, filled up with NUL;
the first character is in the high byte, with BADC and DCBA in the low byte. Characters are ISO/IEC 8859-1
(IEC 61131-3: STRING is of single-byte characters, row 00 of ISO/IEC 10646).

BCD and LBCD hold a decimal digit in every four bits; bits that are no digit (A to F) unpack to ``-1 - bits``, which no
limit lets pass, so that the reason can name them. A tag with a ``mask`` is the field of bits that the mask covers, in
two's complement if its type is signed.
"""

from __future__ import annotations

import math
import struct
from array import array

from drivers.port import Area, DataType, ModbusAddress, Tag, Value, WordOrder

STRUCT_CODE = {
    DataType.SINT: "h",
    DataType.USINT: "H",
    DataType.INT: "h",
    DataType.UINT: "H",
    DataType.DINT: "i",
    DataType.UDINT: "I",
    DataType.LINT: "q",
    DataType.ULINT: "Q",
    DataType.REAL: "f",
    DataType.LREAL: "d",
    DataType.BCD: "H",
    DataType.LBCD: "I",
}
"""``struct`` format character of each numeric type in whole registers; SINT and USINT take one register."""

INTEGER_RANGE = {
    DataType.SINT: (-(1 << 7), (1 << 7) - 1),
    DataType.USINT: (0, (1 << 8) - 1),
    DataType.INT: (-(1 << 15), (1 << 15) - 1),
    DataType.UINT: (0, (1 << 16) - 1),
    DataType.DINT: (-(1 << 31), (1 << 31) - 1),
    DataType.UDINT: (0, (1 << 32) - 1),
    DataType.LINT: (-(1 << 63), (1 << 63) - 1),
    DataType.ULINT: (0, (1 << 64) - 1),
    DataType.BCD: (0, 9999),
    DataType.LBCD: (0, 99_999_999),
}
DECIMAL = (DataType.BCD, DataType.LBCD)
MASKABLE = (DataType.SINT, DataType.USINT, DataType.INT, DataType.UINT)
"""Types that may have a mask."""
REALS = (DataType.REAL, DataType.LREAL)
REAL_MAX: float = struct.unpack(">f", b"\x7f\x7f\xff\xff")[0]
LREAL_MAX = 1.7e308
"""Largest magnitude taken or given, scaled or not, a little under the format's, so that scaling has room."""
_RANGES = {**INTEGER_RANGE, DataType.REAL: (-REAL_MAX, REAL_MAX), DataType.LREAL: (-LREAL_MAX, LREAL_MAX)}


class EncodeError(ValueError):
    """A value that must not be sent: which tag, what value, and the limit or rule it breaks."""

    def __init__(self, tag: str, value: object, limit: str) -> None:
        self.tag, self.value, self.limit = tag, value, limit
        super().__init__(f"{tag}: {value!r} is not written: {limit}")


def register_count(tag: Tag) -> int:
    """Registers that the tag takes: 1..120. (A bit inside a register takes one.)"""
    if tag.type is DataType.STRING:
        return (tag.length + 1) // 2
    if tag.type is DataType.BOOL:
        return 1
    return struct.calcsize(">" + STRUCT_CODE[tag.type]) // 2


def swapped(tag: Tag) -> bool:
    """Whether the two bytes of each register must be exchanged before anything else."""
    if tag.type is DataType.STRING:
        return tag.word_order in (WordOrder.BADC, WordOrder.DCBA)
    return register_count(tag) > 1 and tag.word_order in (WordOrder.CDAB, WordOrder.BADC)


def endian(tag: Tag) -> str:
    """``struct`` byte order of the tag once :func:`swapped` was seen to."""
    little = tag.word_order in (WordOrder.CDAB, WordOrder.DCBA)
    return "<" if little and register_count(tag) > 1 and tag.type is not DataType.STRING else ">"


def swap_bytes(data: bytes) -> bytes:
    """Exchange the two bytes of every register."""
    words = array("H", data)
    words.byteswap()
    return words.tobytes()


def field(mask: int) -> tuple[int, int]:
    """A mask's lowest bit and its number of bits."""
    shift = (mask & -mask).bit_length() - 1
    return shift, mask.bit_length() - shift


def is_signed(tag: Tag) -> bool:
    """Whether the tag's integer type has a sign."""
    return INTEGER_RANGE[tag.type][0] < 0


def full_range(tag: Tag) -> tuple[float, float]:
    """Lowest and highest raw number that the tag's type, or its mask, can carry. Integers give ``int``."""
    if tag.mask is None:
        return _RANGES[tag.type]
    bits = field(tag.mask)[1]
    return (-(1 << bits - 1), (1 << bits - 1) - 1) if is_signed(tag) else (0, (1 << bits) - 1)


def bounds(tag: Tag) -> tuple[float, float]:
    """Lowest and highest raw number that is good: the type's range, narrowed by ``low`` and ``high``.

    The limits are compared in raw space, because 0.1 as REAL, or 3 steps of 0.1, come back a little
    above what was written. Integers give ``int``. Raises ``ValueError`` when no value at all would be good.
    """
    lowest, highest = full_range(tag)
    if tag.scaled:  # what scaling would carry beyond a double
        most = (LREAL_MAX - abs(tag.offset)) / max(abs(tag.scale), 1.0)
        if highest > most or lowest < -most:
            whole = tag.type in INTEGER_RANGE
            lowest, highest = (max(lowest, -int(most)), min(highest, int(most))) if whole else (-most, most)
    low, high = (tag.low, tag.high) if tag.scale > 0 else (tag.high, tag.low)
    if low is not None:
        lowest = max(lowest, _limit(tag, low, up=False))
    if high is not None:
        highest = min(highest, _limit(tag, high, up=True))
    if lowest > highest:
        raise ValueError(f"{tag.name}: no {tag.type} lies between low {tag.low} and high {tag.high}; widen them")
    return lowest, highest


def check(tag: Tag) -> None:
    """Raise ``ValueError`` when the tag contradicts itself; the text says what to change."""
    if tag.type in (DataType.BOOL, DataType.STRING):
        if tag.mask is not None:
            raise ValueError(f"{tag.name}: a {tag.type} has no mask; remove it")
        if tag.scaled or tag.low is not None or tag.high is not None:
            raise ValueError(f"{tag.name}: a {tag.type} has no scale, offset, low or high; remove them")
    else:
        if tag.mask is not None:
            _check_mask(tag, tag.mask)
        given = [x for x in (tag.scale, tag.offset, tag.low, tag.high) if x is not None]
        if not all(map(math.isfinite, given)) or tag.scale == 0.0:
            raise ValueError(f"{tag.name}: scale, offset, low and high must be finite, and scale not 0")
        bounds(tag)
    address = tag.address
    if isinstance(address, ModbusAddress):
        _check_modbus(tag, address)
    elif tag.mask is not None or tag.type in DECIMAL:
        raise ValueError(f"{tag.name} at {address}: masks, BCD and LBCD are for Modbus registers")


def to_raw(tag: Tag, value: Value) -> Value:
    """Engineering value to raw. Raises :class:`EncodeError`; rounds half to even, never clamps."""
    if tag.type is DataType.BOOL:
        if not isinstance(value, bool):
            raise EncodeError(tag.name, value, "a BOOL takes true or false")
        return value
    if tag.type is DataType.STRING:
        return _check_text(tag, value)
    if isinstance(value, bool | str):
        raise EncodeError(tag.name, value, f"{tag.type} takes a number")
    try:
        return _number_to_raw(tag, value)
    except OverflowError:
        raise EncodeError(tag.name, value, f"too large for {tag.type}") from None


def judge(tag: Tag, raw: Value) -> tuple[Value | None, str]:
    """Raw to engineering value: ``(value, "")``, or ``(None, reason)`` when it must not be used."""
    if isinstance(raw, bool | str):
        return raw, ""
    if isinstance(raw, float) and not math.isfinite(raw):
        return None, "NaN (not a number)" if math.isnan(raw) else f"infinite ({raw})"
    if raw < 0 and tag.type in DECIMAL:
        return None, f"not BCD: 0x{-1 - int(raw):0{register_count(tag) * 4}X} has digits above 9"
    lowest, highest = bounds(tag)
    if not lowest <= raw <= highest:
        value = raw * tag.scale + tag.offset if tag.scaled else raw
        low = "" if tag.low is None else f"{tag.low:g}"
        high = "" if tag.high is None else f"{tag.high:g}"
        limits = f"{low}..{high}" if low or high else f"{lowest}..{highest} of {tag.type}"
        return None, f"out of range: {value:.10g} {tag.unit}".rstrip() + f" is outside {limits}"
    return (raw * tag.scale + tag.offset if tag.scaled else raw), ""


def from_bcd(bits: int) -> int:
    """The number whose decimal digits stand in ``bits``; ``-1 - bits`` when one is no digit."""
    try:
        return int(f"{bits:x}")
    except ValueError:
        return -1 - bits


def pack(tag: Tag, raw: Value) -> bytes:
    """Raw to register bytes. A BOOL gives one byte, 0 or 1; a tag with a mask its register, other bits 0."""
    if tag.type is DataType.BOOL:
        return b"\x01" if raw else b"\x00"
    if isinstance(raw, str):
        data = raw.encode("latin-1").ljust(register_count(tag) * 2, b"\0")
    elif tag.mask is not None:
        assert isinstance(raw, int)
        data = (raw << field(tag.mask)[0] & tag.mask).to_bytes(2, "big")
    else:
        bits = int(str(raw), 16) if tag.type in DECIMAL else raw
        data = struct.pack(endian(tag) + STRUCT_CODE[tag.type], bits)
    return swap_bytes(data) if swapped(tag) else data


def unpack(tag: Tag, data: bytes) -> Value:
    """Register bytes (of a BOOL in a register: that register) to raw. Raises ``ValueError`` on a wrong length."""
    if len(data) != register_count(tag) * 2:
        raise ValueError(f"{tag.name}: {len(data)} bytes for {register_count(tag)} registers")
    if tag.type is DataType.BOOL:
        bit = tag.address.bit if isinstance(tag.address, ModbusAddress) else None
        return bool(int.from_bytes(data, "big") >> (bit or 0) & 1)
    if swapped(tag):
        data = swap_bytes(data)
    if tag.type is DataType.STRING:
        return data[: tag.length].split(b"\0", 1)[0].decode("latin-1")
    if tag.mask is not None:
        shift, bits = field(tag.mask)
        sign = 1 << bits - 1 if is_signed(tag) else 0
        return ((int.from_bytes(data, "big") & tag.mask) >> shift ^ sign) - sign
    raw: int | float = struct.unpack(endian(tag) + STRUCT_CODE[tag.type], data)[0]
    return from_bcd(int(raw)) if tag.type in DECIMAL else raw


def encode(tag: Tag, value: Value) -> bytes:
    """Engineering value to register bytes. Raises :class:`EncodeError`."""
    return pack(tag, to_raw(tag, value))


def decode(tag: Tag, data: bytes) -> tuple[Value | None, str]:
    """Register bytes to engineering value: ``(value, "")`` or ``(None, reason)``."""
    return judge(tag, unpack(tag, data))


def same(tag: Tag, wanted: Value, found: Value | None) -> bool:
    """Whether both are the same raw value, i.e. writing ``wanted`` over ``found`` would change nothing."""
    if found is None or isinstance(found, bool) != (tag.type is DataType.BOOL):
        return False
    try:
        raw = to_raw(tag, wanted)
        if isinstance(found, str) or isinstance(raw, bool | str):
            return raw == found
        # Not to_raw: the value read may lie a rounding error outside of the limits.
        other = (found - tag.offset) / tag.scale if tag.scaled else found
        if tag.type is DataType.LREAL and tag.scaled:
            return math.isclose(raw, other, rel_tol=1e-12, abs_tol=1e-12 * abs(tag.offset / tag.scale))
        return raw == (_to_real(tag, found, other) if tag.type in REALS else round(other))
    except (EncodeError, OverflowError):
        return False


def _number_to_raw(tag: Tag, value: int | float) -> int | float:
    if not math.isfinite(value):
        raise EncodeError(tag.name, value, "not a finite number")
    if tag.low is not None and value < tag.low:
        raise EncodeError(tag.name, value, f"below low {tag.low:g} {tag.unit}".rstrip())
    if tag.high is not None and value > tag.high:
        raise EncodeError(tag.name, value, f"above high {tag.high:g} {tag.unit}".rstrip())
    raw = (value - tag.offset) / tag.scale if tag.scaled else value
    if tag.type in REALS:
        return _to_real(tag, value, raw)
    if not tag.scaled and raw != int(raw):
        raise EncodeError(tag.name, value, f"{tag.type} takes whole numbers")
    number = round(raw)
    lowest, highest = bounds(tag)
    if not lowest <= number <= highest:
        raise EncodeError(tag.name, value, f"raw {number} is outside {lowest}..{highest} of {tag.type}")
    return number


def _limit(tag: Tag, limit: float, *, up: bool) -> float:
    """An engineering limit in raw space; for REALs moved outward to what survives the format's rounding."""
    raw = (limit - tag.offset) / tag.scale if tag.scaled else limit
    if tag.type in REALS:
        if tag.type is DataType.REAL:
            raw_single: float = max(-REAL_MAX, min(REAL_MAX, raw))
            raw_single = struct.unpack(">f", struct.pack(">f", raw_single))[0]
            return max(raw, raw_single) if up else min(raw, raw_single)
        return raw
    slack = max(1e-6, abs(raw) * 1e-15) if tag.scaled else 0.0
    return math.floor(raw + slack) if up else math.ceil(raw - slack)


def _to_real(tag: Tag, value: Value, raw: float) -> float:
    number = float(raw)
    if tag.type is DataType.REAL:
        number = struct.unpack(">f", struct.pack(">f", number))[0]
    if abs(number) > (REAL_MAX if tag.type is DataType.REAL else LREAL_MAX):
        raise EncodeError(tag.name, value, f"too large for {tag.type}")
    return number


def _check_text(tag: Tag, value: Value) -> str:
    if not isinstance(value, str):
        raise EncodeError(tag.name, value, "a STRING takes text")
    if tag.length and len(value) > tag.length:
        raise EncodeError(tag.name, value, f"longer than {tag.length} characters")
    if "\0" in value or any(ord(c) > 0xFF for c in value):
        raise EncodeError(tag.name, value, "a STRING holds ISO 8859-1 characters without NUL")
    return value


def _check_mask(tag: Tag, mask: int) -> None:
    if tag.type not in MASKABLE or not 1 <= mask <= 0xFFFF:
        raise ValueError(f"{tag.name}: a mask is 0x0001 to 0xFFFF and for {', '.join(MASKABLE)}")
    bits, room = field(mask)[1], 8 if tag.type in (DataType.SINT, DataType.USINT) else 16
    if mask.bit_count() != bits:
        raise ValueError(f"{tag.name}: the bits of mask 0x{mask:04X} are not next to each other; use a tag per field")
    if bits > room:
        raise ValueError(f"{tag.name}: mask 0x{mask:04X} has {bits} bits, a {tag.type} holds {room}")


def _check_modbus(tag: Tag, address: ModbusAddress) -> None:
    where = f"{tag.name} at {address}"
    if address.area in (Area.COIL, Area.DISCRETE_INPUT):
        if tag.type is not DataType.BOOL or address.bit is not None:
            raise ValueError(f"{where}: a coil or discrete input is a BOOL without a bit number")
    elif (tag.type is DataType.BOOL) != (address.bit is not None):
        raise ValueError(
            f"{where}: a BOOL in a register needs a bit ({address.area}:n.0 .. .15), other types have none"
        )
    if address.bit is not None and not 0 <= address.bit <= 15:
        raise ValueError(f"{where}: a register has bits 0 to 15")
    if tag.type is DataType.STRING and not 1 <= tag.length <= 240:
        raise ValueError(f"{where}: a STRING in registers needs a length of 1 to 240 characters")
    if not 0 <= address.offset <= 65536 - register_count(tag):
        raise ValueError(f"{where}: addresses are 0 to 65535")
    if tag.writable and address.area in (Area.DISCRETE_INPUT, Area.INPUT_REGISTER):
        raise ValueError(f"{where}: discrete inputs and input registers cannot be written; make the tag read-only")
