"""Units of measure: the known ones, what they measure, and exact conversion.

A small, closed table: an unknown unit is an error, never guessed. Two units *fit* when they measure the same
thing. °C and K are kept apart on purpose: whether a text means a temperature or a difference cannot be known.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from fractions import Fraction

Number = int | float


class UnitError(ValueError):
    """A unit that is unknown, or two that do not fit."""


@dataclass(frozen=True, slots=True)
class Unit:
    """A unit of a ``dimension``; a value times ``factor`` is the value in the dimension's base unit."""

    symbol: str
    dimension: str
    factor: Fraction


_F = Fraction
_TABLE: tuple[tuple[str, str, Fraction, tuple[str, ...]], ...] = (
    ("%", "ratio", _F(1, 100), ("percent",)),
    ("‰", "ratio", _F(1, 1000), ()),
    ("mg", "mass", _F(1, 1000), ()),
    ("g", "mass", _F(1), ()),
    ("kg", "mass", _F(1000), ()),
    ("t", "mass", _F(1_000_000), ()),
    ("µm", "length", _F(1, 1000), ("um", "μm")),
    ("mm", "length", _F(1), ()),
    ("cm", "length", _F(10), ()),
    ("m", "length", _F(1000), ()),
    ("mm/s", "speed", _F(1), ()),
    ("m/s", "speed", _F(1000), ()),
    ("m/min", "speed", _F(1000, 60), ()),
    ("ms", "time", _F(1, 1000), ()),
    ("s", "time", _F(1), ("sec",)),
    ("min", "time", _F(60), ()),
    ("h", "time", _F(3600), ()),
    ("mA", "current", _F(1, 1000), ()),
    ("A", "current", _F(1), ()),
    ("mV", "voltage", _F(1, 1000), ()),
    ("V", "voltage", _F(1), ()),
    ("W", "power", _F(1), ()),
    ("kW", "power", _F(1000), ()),
    ("W·h", "energy", _F(3600), ("Wh",)),
    ("kW·h", "energy", _F(3_600_000), ("kWh",)),
    ("J", "energy", _F(1), ()),
    ("kJ", "energy", _F(1000), ()),
    ("Pa", "pressure", _F(1), ()),
    ("mbar", "pressure", _F(100), ("hPa",)),
    ("kPa", "pressure", _F(1000), ()),
    ("bar", "pressure", _F(100_000), ()),
    ("MPa", "pressure", _F(1_000_000), ()),
    ("°C", "temperature", _F(1), ("degC", "deg C", "℃")),
    ("K", "temperature difference", _F(1), ()),
    ("N", "force", _F(1), ()),
    ("kN", "force", _F(1000), ()),
    ("N·cm", "torque", _F(1, 100), ("Ncm",)),
    ("N·m", "torque", _F(1), ("Nm",)),
    ("°", "angle", _F(1), ("deg",)),
    ("ml", "volume", _F(1, 1000), ("mL",)),
    ("cl", "volume", _F(1, 100), ("cL",)),
    ("l", "volume", _F(1), ("L",)),
    ("m³", "volume", _F(1000), ("m3",)),
    ("ml/s", "volume flow", _F(1, 1000), ("mL/s",)),
    ("l/s", "volume flow", _F(1), ("L/s",)),
    ("l/min", "volume flow", _F(1, 60), ("L/min",)),
    ("l/h", "volume flow", _F(1, 3600), ("L/h",)),
    ("m³/h", "volume flow", _F(1000, 3600), ("m3/h",)),
    ("g/s", "mass flow", _F(1), ()),
    ("kg/h", "mass flow", _F(1000, 3600), ()),
    ("1/h", "frequency", _F(1, 3600), ()),
    ("1/min", "frequency", _F(1, 60), ("rpm",)),
    ("1/s", "frequency", _F(1), ("Hz",)),
)
UNITS: dict[str, Unit] = {}
"""Every accepted spelling, aliases included."""
for _symbol, _dimension, _factor, _aliases in _TABLE:
    for _spelling in (_symbol, *_aliases):
        UNITS[_spelling] = Unit(_symbol, _dimension, _factor)
SYMBOLS: tuple[str, ...] = tuple(row[0] for row in _TABLE)
"""The canonical symbols, in the order of the table."""


def unit(text: str) -> Unit:
    """The unit with this spelling (case matters: mA is not MA). Raises :class:`UnitError`."""
    found = UNITS.get(text.strip())
    if found is None:
        raise UnitError(f'unknown unit "{text}"')
    return found


def canonical(text: str) -> str:
    """The canonical symbol of a spelling (``Nm`` → ``N·m``); empty stays empty. Raises :class:`UnitError`."""
    return unit(text).symbol if text.strip() else ""


def fits(a: str, b: str) -> bool:
    """Whether two known spellings measure the same thing; "no unit" fits only itself."""
    if not a or not b:
        return a == b
    return unit(a).dimension == unit(b).dimension


def convert(value: Number, source: str, target: str) -> Number:
    """``value`` of ``source`` in ``target``, correctly rounded.

    The same unit returns the value as it is. Raises :class:`UnitError` when the units do not fit, the value
    is not finite, or the result is beyond a double.
    """
    a, b = unit(source), unit(target)
    if a.dimension != b.dimension:
        raise UnitError(f"{a.symbol} is a unit of {a.dimension}, {b.symbol} of {b.dimension}")
    if a.symbol == b.symbol:
        return value
    if not math.isfinite(value):
        raise UnitError(f"{value} {a.symbol} is not a number")
    exact = Fraction(value) * a.factor / b.factor
    try:
        return float(exact)
    except OverflowError:
        raise UnitError(f"{value} {a.symbol} is too large") from None


_QUANTITY = re.compile(r"\s*([+-]?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?)\s*(.*?)\s*")


def split_quantity(text: str) -> tuple[Number, str] | None:
    """``"62 mm"`` → ``(62, "mm")``, the unit unchecked; ``None`` when the text does not begin with a number."""
    match = _QUANTITY.fullmatch(text)
    if match is None or "\n" in text:
        return None
    digits, symbol = match.groups()
    whole = digits.lstrip("+-").isdigit() and len(digits) <= 20
    return (int(digits) if whole else float(digits)), symbol
