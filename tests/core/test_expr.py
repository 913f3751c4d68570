"""The condition language: what it accepts, what it refuses and where, and that it computes what Python does."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controller.core.expr import ExprError, Finding, TagInfo, parse
from drivers.port import Area, DataType, ModbusAddress, Tag

TAGS = {
    "filler.level": TagInfo("number", "%"),
    "filler.fault": TagInfo("bool"),
    "filler.running": TagInfo("bool"),
    "capper.torque": TagInfo("number", "N·m"),
    "scale.g": TagInfo("number", "g"),
    "scale.kg": TagInfo("number", "kg"),
    "scale.code": TagInfo("text"),
    "line.n": TagInfo("number"),
    "line.m": TagInfo("number"),
    "pump.speed": TagInfo("number", "1/min"),
    "belt.speed": TagInfo("number", "m/s"),
}
SLOTS = {name: n for n, name in enumerate(TAGS)}
BEFORE: dict[str, Any] = {
    "filler.level": 25.0, "filler.fault": False, "filler.running": True, "capper.torque": 1.85, "scale.g": 500.0,
    "scale.kg": 0.5, "scale.code": "W-330", "line.n": 7, "line.m": 0, "pump.speed": 90.0, "belt.speed": 0.4,
}  # fmt: skip


def run(text: str, bad: str | None = None, **changes: Any) -> bool | None:
    values = {**BEFORE, **{k.replace("__", "."): v for k, v in changes.items()}}
    reasons = ["cable" if name == bad else None for name in TAGS]
    return parse(text).compile(SLOTS, TAGS.get)([values[name] for name in TAGS], reasons)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("filler.level >= 20 % and not filler.fault", True),
        ("filler.level<20%", False),
        ("capper.torque > 1.8 N·m", True),
        ("capper.torque > 1.8 Nm", True),
        ("belt.speed == 0.4 m/s", True),
        ("belt.speed == 400 mm/s", True),
        ("pump.speed > 60 1/min", True),
        ("pump.speed > 60 rpm", True),
        ("pump.speed > 2 Hz", False),
        ("scale.g > 0.4 kg and scale.g < 600", True),
        ("scale.g == 0.4 kg + 100 g", True),
        ("scale.g == -(-0.5 kg)", True),
        ("scale.g - 100 == 0.4 kg", True),
        ("max(scale.g, 1 kg) == 1000", True),
        ("min(2 kg, 700 g, scale.g) == 500 g", True),
        ("abs(scale.g - 600) <= 100 g", True),
        ("scale.g / 0.25 kg == 2", True),
        ("scale.g * 2 == 1 kg", True),
        ("scale.g > abs(-300 g)", True),
        ('scale.code == "W-330"', True),
        ("scale.code != 'W-330'", False),
        ("filler.fault == false", True),
        ("filler.running != filler.fault", True),
        ("filler.fault or filler.running and not filler.fault", True),
        ("(filler.running or filler.fault) and filler.fault", False),
        ("not filler.running == filler.fault", True),
        ("2 + 3 * line.n - 4 / 2 == 21", True),
        ("-line.n == -7", True),
        ("- -line.n == 7", True),
        ("line.n - 2 - 1 == 4", True),
        ("10 / 5 / 2 == line.m + 1", True),
        ("true", True),
        ("not true", False),
        ("line.n > 1e0 and line.n < 1.5e+2", True),
    ],
)
def test_answers(text: str, answer: bool) -> None:
    assert run(text) is answer


def test_a_bad_tag_makes_the_answer_unknown_whatever_the_others_say() -> None:
    text = "filler.running or filler.level > 20 % or scale.g > 0"
    assert run(text) is True
    for tag in ("filler.running", "filler.level", "scale.g"):
        assert run(text, bad=tag) is None
    assert run(text, bad="scale.kg") is True
    assert run("filler.running and line.n * 0 == 0", bad="line.n") is None


def test_arithmetic_without_an_answer_is_unknown() -> None:
    assert run("line.n / line.m > 1") is None
    assert run("line.m != 0 and line.n / line.m > 1") is False  # guarded by its author
    assert run("line.n * line.n < 1", line__n=1e200) is None
    assert run("line.n - line.n * line.n < 1", line__n=1e200) is None
    assert run("max(line.n * line.n, 1) > 1", line__n=1e200) is None
    assert run("line.n / line.m < 1", line__n=10**400, line__m=3) is None
    assert run("line.n > 1", line__n=2**64) is True


@pytest.mark.parametrize(
    ("text", "column", "message", "hint"),
    [
        ("", 1, "ends too early", "a tag"),
        ("line.n >", 9, "ends too early", "a tag"),
        ("line.n = 5", 8, '"=" is not part', "write =="),
        ("line.n > 5 && filler.fault", 12, '"&&"', "write and"),
        ("!filler.fault", 1, '"!"', "write not"),
        ("line.n <> 5", 8, '"<>"', "write !="),
        ("line.n ≥ 5", 8, '"≥"', "write >="),
        ("1 < line.n < 3", 12, "chained", "a < b and b < c"),
        ("line.n > 1,5", 11, '","', "point"),
        ("line.n > .5", 10, '"."', "0.5"),
        ("(line.n > 1", 1, "without its )", "add )"),
        ("line.n > 1)", 11, '")" cannot stand here', "operator"),
        ("filler.fault AND filler.running", 14, '"AND"', "small letters"),
        ("line.n > 5 kgg", 12, 'unknown unit "kgg"', '"kg"'),
        ("line.n > 5 m/h2", 12, 'unknown unit "m/h2"', "m³/h"),
        ("level > 5", 1, '"level"', "group.point"),
        ("Filler.level > 5", 1, '"Filler.level"', "lower-case"),
        ("a.b.c > 5", 1, '"a.b.c"', "group.point"),
        ("sqrt(line.n) > 2", 1, 'unknown function "sqrt"', "abs"),
        ("max(line.n) > 2", 1, "takes 2 to 8 numbers, not 1", ""),
        ("abs(line.n, 1) > 2", 1, "takes 1 numbers, not 2", ""),
        ("abs > 2", 1, "abs is a function", "abs(…)"),
        ('scale.code == "x', 15, "closing quote", 'add "'),
        ("line.n > 1e999", 10, "too large", ""),
        ("line.n # 5", 8, '"#"', ""),
        ("(" * 60 + "filler.fault" + ")" * 60, 41, "nested more than 40", "split"),
        ("not " * 60 + "filler.fault", 161, "nested more than 40", "split"),
        ("-" * 60 + "line.n > 1", 41, "nested more than 40", "split"),
    ],
)
def test_refused_with_the_column(text: str, column: int, message: str, hint: str) -> None:
    with pytest.raises(ExprError) as caught:
        parse(text)
    assert message in caught.value.message and hint in caught.value.hint, caught.value
    assert caught.value.column == column, caught.value


def test_bounds() -> None:
    assert run(" and ".join(["line.n > 1"] * 130)) is True
    with pytest.raises(ExprError, match="longer than"):
        parse("line.n > 1 or " * 200)
    with pytest.raises(ExprError, match="nested"):
        parse("+".join(["line.n"] * 60) + " > 1")


@pytest.mark.parametrize(
    ("text", "column", "message", "hint"),
    [
        ("filler.levle > 5", 1, 'unknown tag "filler.levle"', '"filler.level"'),
        ("filler.fault == 1", 14, "filler.fault is true/false and 1 is a number", "alone or with not"),
        ("filler.level and filler.fault", 1, "and needs true/false", "compare"),
        ("not line.n", 5, "not needs true/false", "compare"),
        ("filler.fault + 1 > 0", 1, "+ needs a number", "alone"),
        ("-filler.fault", 2, "- needs a number", "alone"),
        ("abs(scale.code) > 1", 5, "abs() needs a number", ""),
        ("filler.fault > false", 14, "> needs numbers", "=="),
        ('scale.code < "x"', 12, "< needs numbers", "=="),
        ("scale.code == 5", 12, "is a text and 5 is a number", "like with like"),
        ("line.n + 1", 8, "is a number, not a condition", "compare"),
        ("scale.g > 20 %", 9, "20 % is in %", "write it in g"),
        ("line.n > 5 g", 8, "line.n has no unit", "number alone"),
        ("scale.g > scale.kg", 9, "not in the same unit", "scale"),
        ("scale.g > line.n", 9, "units do not fit", "like with like"),
        ("scale.g * scale.kg > 1", 9, "g times kg", "bare number"),
        ("1 / scale.g > 1", 3, "dividing by g", "like by like"),
        ("scale.g / belt.speed > 1", 9, "units do not fit", ""),
        ("line.n / 0 > 1", 8, "division by zero", "never hold"),
        ("line.n > 1e308 * 10", 16, "has no answer", "too large"),
        ("min(scale.g, 5 mm) > 1", 1, "units do not fit", "write it in g"),
    ],
)
def test_findings(text: str, column: int, message: str, hint: str) -> None:
    expr = parse(text)
    (finding,) = expr.check(TAGS.get, list(TAGS))
    assert isinstance(finding, Finding)
    assert message in finding and hint in finding.hint, (finding, finding.hint)
    assert finding.column == column, (finding, finding.column)
    with pytest.raises(ExprError):
        expr.compile(SLOTS)
    with pytest.raises(ExprError, match="column 1"):
        expr.compile(SLOTS, TAGS.get)


def test_all_findings_at_once_and_no_followers() -> None:
    found = parse("a.b + 1 > c.d and filler.fault == 1 or not line.n").check(TAGS.get)
    assert len(found) == 4


def test_it_must_be_checked_before_it_is_compiled() -> None:
    expr = parse("scale.g > 1 kg")
    with pytest.raises(ExprError, match="not checked"):
        expr.compile(SLOTS)
    assert expr.check(TAGS.get) == []
    assert expr.compile(SLOTS)([2000.0] * len(SLOTS), [None] * len(SLOTS)) is True
    with pytest.raises(KeyError):
        expr.compile({})


def test_tags_in_order_of_first_use() -> None:
    expr = parse("filler.fault or max(line.n, line.m) > line.n * 2 and not filler.fault")
    assert expr.tags == ("filler.fault", "line.n", "line.m")
    assert expr.text.startswith("filler.fault or")


def test_tag_info_of_a_tag() -> None:
    address = ModbusAddress(Area.HOLDING_REGISTER, 0)
    assert TagInfo.of(Tag(name="a.b", address=address, type=DataType.INT, unit="mm")) == TagInfo("number", "mm")
    assert TagInfo.of(Tag(name="a.b", address=address, type=DataType.BOOL)) == TagInfo("bool")
    assert TagInfo.of(Tag(name="a.b", address=address, type=DataType.STRING, length=4)) == TagInfo("text")


def test_quotes_and_backslashes_stay_text() -> None:
    tricky = '\\\' + __import__("os") + \\n {0}'
    text = "scale.code == '" + tricky.replace("'", "") + "'"
    assert run(text, scale__code=tricky.replace("'", "")) is True
    assert run(text) is False


# Random expressions as (text, the same computed by Python on the same numbers); None where there is no answer.

Built = tuple[str, Callable[[dict[str, Any]], Any]]
NUMBERS = ("line.n", "line.m")
BOOLS = ("filler.fault", "filler.running")
OPERATORS: dict[str, Callable[[Any, Any], Any]] = {
    "+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv,
    "==": operator.eq, "!=": operator.ne, "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge,
}  # fmt: skip


def _finite(value: Any) -> Any:
    """As the language has it: arithmetic that leaves the doubles has no answer."""
    if not math.isfinite(value):
        raise OverflowError
    return value


def joined(op: str) -> Callable[[Built, Built], Built]:
    return lambda a, b: (f"({a[0]} {op} {b[0]})", lambda v: _finite(OPERATORS[op](a[1](v), b[1](v))))


def called(name: str, function: Callable[..., Any]) -> Callable[..., Built]:
    return lambda *args: (f"{name}({', '.join(a[0] for a in args)})", lambda v: function(*(a[1](v) for a in args)))


def _p(a: Built) -> Built:
    return f"({a[0]})", a[1]


constants = st.one_of(st.integers(0, 9), st.floats(0, 9).map(lambda x: round(x, 3)))


def _constant(value: float) -> Built:
    text = f"{value:f}" if isinstance(value, float) else str(value)
    return text, lambda v: float(text) if "." in text else int(text)


leaves: st.SearchStrategy[Built] = st.one_of(
    st.sampled_from(NUMBERS).map(lambda n: (n, lambda v: v[n])), constants.map(_constant)
)
numbers: st.SearchStrategy[Built] = st.recursive(
    leaves,
    lambda sub: st.one_of(
        *(st.builds(joined(op), sub, sub) for op in "+-*/"),
        st.builds(lambda a: (f"-{a[0]}", lambda v: -a[1](v)), sub),
        st.builds(called("max", max), sub, sub),
        st.builds(called("min", min), sub, sub),
        st.builds(called("abs", abs), sub),
    ),
    max_leaves=6,
)
comparisons = st.one_of(*(st.builds(joined(op), numbers, numbers) for op in ("==", "!=", "<", "<=", ">", ">=")))
conditions: st.SearchStrategy[Built] = st.recursive(
    st.one_of(st.sampled_from(BOOLS).map(lambda n: (n, lambda v: v[n])), comparisons),
    lambda sub: st.one_of(
        st.builds(lambda a, b: (f"{a[0]} and {b[0]}", lambda v: a[1](v) and b[1](v)), sub.map(_p), sub.map(_p)),
        st.builds(lambda a, b: (f"{a[0]} or {b[0]}", lambda v: a[1](v) or b[1](v)), sub.map(_p), sub.map(_p)),
        st.builds(lambda a: (f"not {a[0]}", lambda v: not a[1](v)), sub.map(_p)),
    ),
    max_leaves=5,
)


values = st.one_of(st.integers(-5, 5), st.floats(-5, 5))


@settings(deadline=None)  # the machine may be busy
@given(conditions, values, values, st.booleans(), st.booleans())
def test_computes_what_python_computes(built: Built, n: Any, m: Any, fault: bool, running: bool) -> None:
    text, compute = built
    expr = parse(text)
    if expr.check(TAGS.get):  # a constant division by zero is refused beforehand
        with pytest.raises(ExprError):
            expr.compile(SLOTS)
        return
    seen = {**BEFORE, "line.n": n, "line.m": m, "filler.fault": fault, "filler.running": running}
    try:
        wanted = compute(seen)
    except ArithmeticError:
        wanted = None
    got = expr.compile(SLOTS)([seen[name] for name in TAGS], [None] * len(TAGS))
    assert got is wanted, text
    for bad in expr.tags:
        reasons = ["bad" if name == bad else None for name in TAGS]
        assert expr.compile(SLOTS)([seen[name] for name in TAGS], reasons) is None


@settings(deadline=None)  # the machine may be busy
@given(st.text(alphabet="abn.line()<>=!&|+-*/ \"'0159%_andortue\n\t°", max_size=40))
def test_any_text_is_parsed_or_refused_in_order(text: str) -> None:
    try:
        expr = parse(text)
    except ExprError as error:
        assert 1 <= error.column <= len(text) + 1
        return
    expr.check(TAGS.get)


def test_one_call_is_fast() -> None:
    import timeit

    test = parse("filler.level >= 20 % and not filler.fault").compile(SLOTS, TAGS.get)
    row, bad = [BEFORE[name] for name in TAGS], [None] * len(TAGS)
    best = min(timeit.repeat(lambda: test(row, bad), number=10_000, repeat=5)) / 10_000
    assert best < 3e-6 and math.isfinite(best)


def test_a_unit_ends_where_a_division_by_a_tag_or_function_begins() -> None:
    assert parse("3 m/line.n > 1").tags == ("line.n",)
    assert parse("3 m/abs(line.n) < 1").check(TAGS.get) == []
