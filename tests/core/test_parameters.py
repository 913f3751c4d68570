"""Recipe parameters: staging, read-back, confirmation."""

from __future__ import annotations

import math

import hypothesis.strategies as st
import pytest
from helpers.core_rig import Plant
from hypothesis import given

from controller.core.image import WriteReport
from controller.core.io import Input, Output
from controller.core.parameters import Parameter, ParameterSet, same
from drivers.port import DataType, Outcome, Value

RAIL, JOB = ("a", "rail"), ("a", "job")


@pytest.fixture
def plant() -> Plant:
    plant = Plant({"one": {"a.rail": 0.0, "a.pos": 0.0, "a.job": "", "b.on": False}})
    plant.connect()
    return plant


def made(plant: Plant) -> ParameterSet:
    image = plant.image
    return ParameterSet(image, [
        Parameter("a", "rail", Output(image, "a.rail"), "mm", Input(image, "a.pos"), 0.3, 5.0),
        Parameter("a", "job", Output(image, "a.job"), "", None, 0.0, 5.0),
        Parameter("b", "on", Output(image, "b.on"), "", None, 0.0, 5.0),
    ])  # fmt: skip


def scan(plant: Plant) -> None:
    plant.tick(plant.image.take_outputs())
    _, reports = plant.image.latch(plant.now, plant.buffer)
    for report in reports:
        plant.reports.append(report)  # type: ignore[attr-defined]


@pytest.fixture
def rig(plant: Plant) -> tuple[Plant, ParameterSet]:
    plant.reports = []  # type: ignore[attr-defined]
    scan(plant)
    return plant, made(plant)


def test_in_force_only_when_read_back_and_confirmed(rig: tuple[Plant, ParameterSet]) -> None:
    plant, parameters = rig
    parameters.stage({RAIL: 62.0, JOB: "WATER"})
    assert parameters.differences() == ["a.rail reads 0 mm, recipe says 62 mm", "a.job reads , recipe says WATER"]
    scan(plant)
    assert parameters.differences() == ["a.rail: a.pos shows 0 mm, recipe says 62 mm"]
    assert not parameters.in_force("a")
    assert parameters.in_force("b")
    plant.memory["a.pos"] = 61.8
    scan(plant)
    assert parameters.differences() == []
    assert parameters.in_force("a")


def test_a_reading_from_before_the_write_proves_nothing(rig: tuple[Plant, ParameterSet]) -> None:
    plant, parameters = rig
    plant.memory |= {"a.job": "WATER"}
    scan(plant)
    staged = plant.now
    parameters.stage({JOB: "WATER"})
    assert parameters.difference(JOB, staged) == "a.job has not been read back yet"
    scan(plant)
    assert parameters.difference(JOB, staged) == ""


@pytest.mark.parametrize(("tag", "text"), [("a.rail", "cannot be read back: a.rail is BAD: NaN"),
                                           ("a.pos", "is not confirmed: a.pos is BAD: NaN")])  # fmt: skip
def test_bad_is_not_in_force(rig: tuple[Plant, ParameterSet], tag: str, text: str) -> None:
    plant, parameters = rig
    parameters.stage({RAIL: 0.0})
    scan(plant)
    assert parameters.in_force("a")
    plant.bad = {tag: "NaN"}
    scan(plant)
    assert parameters.differences() == [f"a.rail {text}"]


def test_zeroed_set_points_are_seen_and_staging_again_writes_again(rig: tuple[Plant, ParameterSet]) -> None:
    plant, parameters = rig
    parameters.stage({JOB: "WATER"})
    scan(plant)
    scan(plant)
    plant.memory["a.job"] = ""
    scan(plant)
    assert parameters.differences("a") == ["a.job reads , recipe says WATER"]
    parameters.stage({JOB: "WATER"})
    scan(plant)
    assert plant.memory["a.job"] == "WATER"


def test_rejected_is_told_until_it_is_staged_anew_and_only_for_the_wanted_value(
    rig: tuple[Plant, ParameterSet],
) -> None:
    plant, parameters = rig
    parameters.stage({RAIL: 62.0})
    plant.image.take_outputs()
    parameters.report(WriteReport("b.other", 1, Outcome.REJECTED, "no such"))
    parameters.report(WriteReport("a.rail", 72.0, Outcome.REJECTED, "late word of an older write"))
    parameters.report(WriteReport("a.rail", 62.0, Outcome.UNKNOWN, "no answer"))
    assert parameters.refused([RAIL]) == ""
    parameters.report(WriteReport("a.rail", 62.0, Outcome.REJECTED, "illegal value"))
    assert parameters.refused([RAIL, JOB]) == "a.rail = 62 mm was rejected: illegal value"
    assert parameters.refused([JOB]) == ""
    parameters.report(WriteReport("a.rail", 62.0, Outcome.VERIFIED))
    assert parameters.refused([RAIL]) == ""
    parameters.report(WriteReport("a.rail", 62.0, Outcome.REJECTED, "write-protected"))
    plant.memory |= {"a.rail": 62.0, "a.pos": 62.0}
    scan(plant)
    assert parameters.refused([RAIL]) == ""  # it is there, whoever wrote it
    plant.memory |= {"a.rail": 0.0}
    scan(plant)
    assert parameters.refused([RAIL]) != ""
    parameters.stage({RAIL: 63.0})
    assert parameters.refused([RAIL]) == ""


@given(st.floats(-1e6, 1e6), st.sampled_from([0.1, 0.01, 0.001, 1.0]))
def test_a_scaled_value_survives_its_raw_grid_and_the_next_step_does_not(value: float, step: float) -> None:
    raw = round(value / step)
    assert same(raw * step, raw * step, DataType.INT, step)
    assert same(raw * step + 0.2 * step, raw * step, DataType.INT, step)
    assert not same((raw + 1) * step, raw * step, DataType.INT, step)


@pytest.mark.parametrize(
    ("actual", "wanted", "kind", "equal"),
    [
        (math.nan, 1.0, DataType.REAL, False), (None, 0.0, DataType.REAL, False), (None, False, DataType.BOOL, False),
        (1.0000001, 1.0, DataType.REAL, True), (1.00001, 1.0, DataType.REAL, False), ("A", "A", DataType.STRING, True),
        ("A", "B", DataType.STRING, False), ("1", 1, DataType.STRING, False), (True, True, DataType.BOOL, True),
        (2_000_000_001, 2_000_000_000, DataType.UDINT, False), (1.0, 1.0, DataType.LREAL, True),
        (1.00000001, 1.0, DataType.LREAL, False), (math.nan, 1.0, DataType.LREAL, False),
        (False, True, DataType.BOOL, False), (5, 5, DataType.UINT, True), (6, 5, DataType.UINT, False),
    ],
)  # fmt: skip
def test_same(actual: Value | None, wanted: Value, kind: DataType, equal: bool) -> None:
    assert same(actual, wanted, kind, 0.0) is equal
