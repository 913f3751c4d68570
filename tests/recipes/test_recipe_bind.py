"""From recipe text to control recipe, and the plan of a changeover."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recipes.bind import Misfit, bind, fit
from recipes.load import read_recipe
from recipes.model import ControlRecipe, MasterRecipe, ParameterSpec, RecipeError, Setpoint, plan
from recipes.problem import Place

RAIL = ParameterSpec(
    station="infeed", name="rail", kind="float", unit="mm", low=50, high=80, resolution=0.1, origin=0.0
)
SPEED = ParameterSpec(station="infeed", name="speed", kind="float", unit="m/s", low=0.0, high=0.5)
SIZE = ParameterSpec(station="packer", name="size", kind="int", low=1, high=24, resolution=1.0)
VALVE = ParameterSpec(station="packer", name="valve", kind="bool")
JOB = ParameterSpec(station="labeler", name="job", kind="str", choices=("WATER-330", "WATER-500"), max_length=20)
CODE = ParameterSpec(station="labeler", name="code", kind="str", max_length=8)
SPECS = (RAIL, SPEED, SIZE, VALVE, JOB, CODE)

TEXT = """\
recipe: water_330
version: 1.0.0
product: Still water 330 ml
description: The small one
parameters:
  infeed: {rail: 62 mm, speed: {value: 400, unit: mm/s}}
  packer: {size: 12, valve: true}
  labeler: {job: WATER-330, code: "0330"}
"""


def master(text: str = TEXT) -> MasterRecipe:
    return read_recipe(text, "r.yaml")


def test_binding() -> None:
    bound = bind(master(), SPECS)
    assert (bound.id, bound.version, bound.product) == ("water_330", "1.0.0", "Still water 330 ml")
    assert list(bound.values.items()) == [
        (("infeed", "rail"), 62.0),
        (("infeed", "speed"), 0.4),
        (("packer", "size"), 12),
        (("packer", "valve"), True),
        (("labeler", "job"), "WATER-330"),
        (("labeler", "code"), "0330"),
    ]
    assert [type(v) for v in bound.values.values()] == [float, float, int, bool, str, str]
    with pytest.raises(TypeError):
        bound.values["infeed", "rail"] = 1.0  # type: ignore[index]


def test_master_recipe_knows_its_places() -> None:
    recipe = master()
    speed = next(s for s in recipe.setpoints if s.parameter == "speed")
    assert speed == Setpoint("infeed", "speed", 400, "mm/s", Place("r.yaml", 6, 32))
    assert recipe.description == "The small one" and recipe.where.line == 1


def test_hash_follows_content_not_spelling() -> None:
    first = bind(master(), SPECS)
    assert bind(master(TEXT.replace("62 mm", "6.2 cm").replace("# ", "")), SPECS).content_hash == first.content_hash
    assert bind(master(TEXT), reversed(SPECS)).content_hash == first.content_hash
    for old, new in (("62 mm", "63 mm"), ("1.0.0", "1.0.1"), ("valve: true", "valve: false"), ("Still", "Fizzy")):
        assert bind(master(TEXT.replace(old, new)), SPECS).content_hash != first.content_hash


def test_all_problems_at_once_each_with_its_line() -> None:
    text = """\
recipe: bad
version: 1.0.0
product: x
parameters:
  infeed:
    rail: 620 mm
    sped: 0.4 m/s
  packr: {size: 12}
  labeler:
    job: MILK
    code: .nan
"""
    with pytest.raises(RecipeError) as caught:
        bind(master(text), SPECS)
    found = {(p.line, p.what.split(",")[0], p.hint) for p in caught.value.problems}
    assert found == {
        (6, "infeed.rail is 620 mm", "choose 50 … 80 mm, or change the equipment's limit in line.yaml"),
        (7, 'infeed has no parameter "sped"', 'did you mean "speed"?'),
        (8, 'no station "packr" with parameters', 'did you mean "packer"?'),
        (10, 'labeler.job cannot be "MILK"', "known: WATER-330, WATER-500"),
        (11, "labeler.code is a text", 'quote it: "nan"'),
        (6, "recipe bad gives no infeed.speed", "add speed: 0 m/s under parameters: infeed:"),
        (1, "recipe bad gives no packer.size", "add size: 1 under parameters: packer:"),
        (1, "recipe bad gives no packer.valve", "add valve: true under parameters: packer:"),
    }
    assert str(caught.value).count("r.yaml:") == 8


@pytest.mark.parametrize(
    ("spec", "value", "unit", "what", "hint"),
    [
        (RAIL, 49.9, "", "below the limit 50 mm", "50 … 80 mm"),
        (RAIL, "0.09 m", "", "is 90 mm, above the limit", "50 … 80"),
        (RAIL, 62.05, "", "steps of 0.1 mm and cannot carry 62.05 mm", "62 and 62.1"),
        (RAIL, math.nan, "", "not a number", "50 mm"),
        (RAIL, math.inf, "", "not a number", "50 mm"),
        (RAIL, 62, "g", "g does not fit infeed.rail: it is in mm", "50 mm"),
        (RAIL, "62 mmm", "", 'unknown unit "mmm"', "mm"),
        (RAIL, "9" * 400 + " mm", "", "not a number", "50 mm"),
        (RAIL, 1e308, "m", "too large", "50 mm"),
        (RAIL, "wide", "", 'is a number, not "wide"', "50 mm"),
        (RAIL, True, "", "is a number, not true", "50 mm"),
        (SIZE, 12.5, "", "steps of 1 and cannot carry 12.5", "12 and 13"),
        (SIZE, "12 mm", "", "mm does not fit packer.size: it has no unit", "1"),
        (VALVE, 1, "", "is true or false, not 1", "true or false"),
        (VALVE, "on", "", 'is true or false, not "on"', "true or false"),
        (JOB, "water-330", "", 'cannot be "water-330"', "WATER-330"),
        (CODE, 330, "", "is a text, not 330", 'quote it: "330"'),
        (CODE, "123456789", "", "at most 8 characters", "shorten"),
        (CODE, "a\nb", "", "printable", "replace"),
        (CODE, "grün", "", "printable ASCII", "replace"),
        (CODE, "abc ", "", "ends with a space", "remove"),
    ],
)
def test_what_does_not_fit(spec: ParameterSpec, value: float | str, unit: str, what: str, hint: str) -> None:
    with pytest.raises(Misfit) as caught:
        fit(spec, value, unit)
    assert what in str(caught.value) and hint in caught.value.hint, (str(caught.value), caught.value.hint)


def test_what_fits() -> None:
    assert fit(SIZE, 12.0) == 12 and type(fit(SIZE, 12.0)) is int
    assert fit(RAIL, 62) == 62.0 and type(fit(RAIL, 62)) is float
    assert fit(RAIL, " 62.1 mm ") == 62.1
    assert fit(RAIL, "6.21", "cm") == 62.1 and fit(RAIL, 6.21, "cm") == 62.1
    wide = ParameterSpec(station="a", name="b", kind="int", low=0, high=2**64 - 1, resolution=1.0)
    assert fit(wide, 2**64 - 1) == 2**64 - 1
    with pytest.raises(Misfit):
        fit(wide, 2**64)
    offset = ParameterSpec(station="a", name="b", kind="float", unit="°C", resolution=0.5, origin=-20.25)
    assert fit(offset, "20.25 °C") == 20.25
    with pytest.raises(Misfit):
        fit(offset, 20.5)


@pytest.mark.parametrize(
    ("text", "line", "what"),
    [
        ("", 1, "empty"),
        ("recipe: x: y", 1, "not valid YAML"),
        ("- a", 1, ""),
        ("recipe: x\nversion: 1.0.0\n", 1, '"product" is missing'),
        ("recipe: X\nversion: 1.0.0\nproduct: x\n", 1, "not a valid name"),
        ("recipe: x\nversion: 1.0\nproduct: x\n", 2, "must be a text"),
        ("recipe: x\nversion: v1\nproduct: x\n", 2, '"version" cannot be "v1"'),
        (
            "recipe: x\nversion: 1.0.0\nproduct: x\nparameters:\n  a: {b: {value: 1, unti: g}}\n",
            5,
            'unknown key "unti"',
        ),
        ("recipe: x\nversion: 1.0.0\nproduct: x\nparameters:\n  a: {b: {value: x}}\n", 5, ""),
        ("recipe: x\nversion: 1.0.0\nproduct: x\nparameters:\n  a: {b: [1]}\n", 5, ""),
        ("recipe: x\nversion: 1.0.0\nproduct: x\nparameters:\n  a: {b: on}\n", 5, '"on" means true'),
    ],
)
def test_broken_recipe_files(text: str, line: int, what: str) -> None:
    with pytest.raises(RecipeError) as caught:
        master(text)
    assert any(p.line == line and what in p.what for p in caught.value.problems), caught.value
    assert not any("RecipeFile" in str(p) or "tag" in p.what for p in caught.value.problems), caught.value


def recipe_of(values: dict[tuple[str, str], bool | int | float | str]) -> ControlRecipe:
    return ControlRecipe("r", "1.0.0", "p", values, "")


keys = st.tuples(st.sampled_from("abc"), st.sampled_from("xyz"))
values = st.one_of(st.booleans(), st.integers(0, 3), st.floats(0, 3), st.sampled_from(["s", "t"]))
recipes = st.dictionaries(keys, values).map(recipe_of)


@settings(deadline=None)  # the machine may be busy
@given(recipes, recipes)
def test_a_plan_applied_to_the_old_gives_the_new(old: ControlRecipe, new: ControlRecipe) -> None:
    changes = plan(old, new)
    after = dict(old.values)
    for change in changes:
        key = (change.station, change.parameter)
        assert after.pop(key, None) == change.old
        if change.new is not None:
            after[key] = change.new
    assert after == new.values
    assert [(c.station, c.parameter) for c in changes] == sorted({(c.station, c.parameter) for c in changes})
    assert all(repr(c.old) != repr(c.new) for c in changes)


@settings(deadline=None)  # the machine may be busy
@given(recipes)
def test_plans_at_the_ends(new: ControlRecipe) -> None:
    assert plan(new, new) == ()
    assert {(c.station, c.parameter): c.new for c in plan(None, new)} == new.values
    assert all(c.old is None for c in plan(None, new))
    shuffled = recipe_of(dict(reversed(list(new.values.items()))))
    assert plan(None, shuffled) == plan(None, new)


def test_true_is_not_one() -> None:
    assert len(plan(recipe_of({("a", "x"): 1}), recipe_of({("a", "x"): True}))) == 1
    assert plan(recipe_of({("a", "x"): 1}), recipe_of({("a", "x"): 1.0})) == ()


@settings(deadline=None)  # the machine may be busy
@given(
    st.integers(-1000, 70000),
    st.sampled_from([1.0, 0.1, 0.01, 0.001, 0.5, 0.0625]),
    st.sampled_from([0.0, -20.0, 0.25]),
)
def test_every_raw_step_fits_and_what_lies_between_does_not(raw: int, scale: float, origin: float) -> None:
    spec = ParameterSpec(station="a", name="b", kind="float", resolution=scale, origin=origin)
    value = raw * scale + origin
    assert fit(spec, value) == value
    assert fit(spec, round(value, 6)) == round(value, 6)  # as a person writes it
    with pytest.raises(Misfit):
        fit(spec, value + scale / 2)


@settings(deadline=None)  # the machine may be busy
@given(st.floats(allow_nan=True, allow_infinity=True), st.sampled_from(["", "mm", "cm", "m"]))
def test_nothing_outside_the_limits_gets_through(value: float, unit: str) -> None:
    spec = ParameterSpec(station="a", name="b", kind="float", unit="mm", low=50, high=80)
    try:
        fitted = fit(spec, value, unit)
    except Misfit:
        return
    assert isinstance(fitted, float) and 50 <= fitted <= 80
