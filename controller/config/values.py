"""What a tag can carry: ranges of the wire types, and a tag as a parameter specification."""

from __future__ import annotations

from drivers.port import DataType, Tag
from recipes.model import Kind, ParameterSpec

_BITS = {
    DataType.SINT: 8, DataType.USINT: 8, DataType.INT: 16, DataType.UINT: 16,
    DataType.DINT: 32, DataType.UDINT: 32, DataType.LINT: 64, DataType.ULINT: 64,
}  # fmt: skip
_DECIMAL = {DataType.BCD: 9999, DataType.LBCD: 99_999_999}
_MASKABLE = (DataType.SINT, DataType.USINT, DataType.INT, DataType.UINT)
_LARGEST = {DataType.REAL: 3.4028234663852886e38, DataType.LREAL: 1.7976931348623157e308}
UNSIGNED = (DataType.USINT, DataType.UINT, DataType.UDINT, DataType.ULINT)


def is_integer(type_: DataType) -> bool:
    """Whether the wire type is an integer."""
    return type_ in _BITS or type_ in _DECIMAL


def mask_problem(type_: DataType, mask: int) -> tuple[str, str] | None:
    """Why a tag of this type cannot have this mask, and what to do."""
    if type_ not in _MASKABLE:
        return f"a mask is for {', '.join(_MASKABLE)}, not for {type_}", "remove it or change the type"
    low = (mask & -mask).bit_length() - 1
    bits = mask.bit_length() - low
    if mask.bit_count() != bits:
        return f"the bits of mask 0x{mask:04X} are not next to each other", "declare a tag for each field"
    if bits > _BITS[type_]:
        return f"mask 0x{mask:04X} has {bits} bits, a {type_} holds {_BITS[type_]}", "narrow it or change the type"
    return None


def raw_range(type_: DataType, scale: float, offset: float, mask: int | None = None) -> tuple[float, float]:
    """Lowest and highest engineering value that a numeric type (IEC 61131-3, table 10), or its mask, can carry."""
    if type_ in _LARGEST:
        largest = _LARGEST[type_]
        # A scale above 1 would pass the doubles; what a double holds is then the limit.
        return max(-largest * abs(scale) + offset, -_LARGEST[DataType.LREAL]), min(
            largest * abs(scale) + offset, _LARGEST[DataType.LREAL]
        )
    if type_ in _DECIMAL:
        low, high = 0, _DECIMAL[type_]
    else:
        bits = _BITS[type_] if mask is None else mask.bit_length() - (mask & -mask).bit_length() + 1
        low, high = (0, 2**bits - 1) if type_ in UNSIGNED else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    if scale == 1.0 and offset == 0.0:
        return low, high
    ends = sorted((low * scale + offset, high * scale + offset))
    return ends[0], ends[1]


def kind_of(tag: Tag) -> Kind:
    """The type of the tag's engineering value."""
    if tag.type is DataType.BOOL:
        return "bool"
    if tag.type is DataType.STRING:
        return "str"
    return "int" if is_integer(tag.type) and not tag.scaled else "float"


def spec_of(
    tag: Tag,
    station: str,
    name: str,
    *,
    low: float | None = None,
    high: float | None = None,
    choices: tuple[str, ...] | None = None,
) -> ParameterSpec:
    """The tag as a parameter: what may be written to it, narrowed by ``low``, ``high`` and ``choices``."""
    kind = kind_of(tag)
    if kind == "bool":
        return ParameterSpec(station=station, name=name, kind=kind)
    if kind == "str":
        return ParameterSpec(station=station, name=name, kind=kind, choices=choices, max_length=tag.length)
    least, most = raw_range(tag.type, tag.scale, tag.offset, tag.mask)
    lows = [v for v in (least, tag.low, low) if v is not None]
    highs = [v for v in (most, tag.high, high) if v is not None]
    step = abs(tag.scale) if is_integer(tag.type) else 0.0
    return ParameterSpec(
        station=station,
        name=name,
        kind=kind,
        unit=tag.unit,
        low=max(lows),
        high=min(highs),
        resolution=step,
        origin=tag.offset,
    )
