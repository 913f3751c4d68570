"""What a tag can carry: ranges of the wire types, and a tag as a parameter specification."""

from __future__ import annotations

from drivers.port import DataType, Tag
from recipes.model import Kind, ParameterSpec

_BITS = {
    DataType.SINT: 8, DataType.USINT: 8, DataType.INT: 16, DataType.UINT: 16,
    DataType.DINT: 32, DataType.UDINT: 32, DataType.LINT: 64, DataType.ULINT: 64,
}  # fmt: skip
_LARGEST = {DataType.REAL: 3.4028234663852886e38, DataType.LREAL: 1.7976931348623157e308}
UNSIGNED = (DataType.USINT, DataType.UINT, DataType.UDINT, DataType.ULINT)


def is_integer(type_: DataType) -> bool:
    """Whether the wire type is an integer."""
    return type_ in _BITS


def raw_range(type_: DataType, scale: float, offset: float) -> tuple[float, float]:
    """Lowest and highest engineering value that a numeric type can carry (IEC 61131-3, table 10)."""
    if type_ in _LARGEST:
        largest = _LARGEST[type_]
        # A scale above 1 would pass the doubles; what a double holds is then the limit.
        return max(-largest * abs(scale) + offset, -_LARGEST[DataType.LREAL]), min(
            largest * abs(scale) + offset, _LARGEST[DataType.LREAL]
        )
    bits = _BITS[type_]
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
    least, most = raw_range(tag.type, tag.scale, tag.offset)
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
