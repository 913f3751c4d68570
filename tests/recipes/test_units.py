"""The table of units: aliases, what fits, exact conversion."""

from __future__ import annotations

import math

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from recipes.units import SYMBOLS, UNITS, UnitError, canonical, convert, fits, split_quantity, unit

symbols = st.sampled_from(SYMBOLS)
plain = st.floats(-1e9, 1e9)


@pytest.mark.parametrize(
    ("value", "source", "target", "result"),
    [
        (2, "kg", "g", 2000),
        (0.1, "m", "mm", 100.0),
        (400, "mm/s", "m/s", 0.4),
        (6, "bar", "kPa", 600),
        (1, "kWh", "J", 3_600_000),
        (90, "rpm", "Hz", 1.5),
        (330, "ml", "l", 0.33),
        (5, "‰", "%", 0.5),
        (1.8, "Nm", "Ncm", 180.0),
        (60, "m/min", "m/s", 1.0),
        (36, "m³/h", "l/s", 10.0),
        (21.5, "degC", "°C", 21.5),
    ],
)
def test_conversions(value: float, source: str, target: str, result: float) -> None:
    assert convert(value, source, target) == result


def test_aliases_are_one_unit_with_their_symbol() -> None:
    assert canonical("Nm") == "N·m" and canonical("") == "" and canonical(" kWh ") == "kW·h"
    assert all(canonical(spelling) in SYMBOLS for spelling in UNITS)
    assert len(set(SYMBOLS)) == len(SYMBOLS)


@pytest.mark.parametrize("text", ["KG", "ma", "foo", "mm ²", "1/x"])
def test_unknown_units(text: str) -> None:
    with pytest.raises(UnitError, match="unknown unit"):
        unit(text)


def test_what_does_not_fit() -> None:
    assert not fits("g", "mm") and not fits("", "g") and not fits("g", "") and fits("", "")
    assert not fits("°C", "K")
    with pytest.raises(UnitError, match="g is a unit of mass, mm of length"):
        convert(1, "g", "mm")
    for value in (math.nan, math.inf):
        with pytest.raises(UnitError, match="not a number"):
            convert(value, "kg", "g")
    with pytest.raises(UnitError, match="too large"):
        convert(1e308, "kg", "mg")


@settings(deadline=None)  # the machine may be busy
@given(plain, symbols, symbols)
def test_there_and_back(value: float, a: str, b: str) -> None:
    assume(fits(a, b))
    assert math.isclose(convert(convert(value, a, b), b, a), value, rel_tol=1e-15, abs_tol=1e-300)


@settings(deadline=None)  # the machine may be busy
@given(plain, plain, symbols, symbols)
def test_order_is_kept(x: float, y: float, a: str, b: str) -> None:
    assume(fits(a, b))
    if x <= y:
        assert convert(x, a, b) <= convert(y, a, b)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("62 mm", (62, "mm")),
        ("62mm", (62, "mm")),
        (" -0.5 °C ", (-0.5, "°C")),
        ("60 1/min", (60, "1/min")),
        ("1e3 g", (1000.0, "g")),
        ("12", (12, "")),
        ("mm", None),
        ("", None),
        ("6\n2", None),
    ],
)
def test_split_quantity(text: str, parts: tuple[float, str] | None) -> None:
    assert split_quantity(text) == parts
