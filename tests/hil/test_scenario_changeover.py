"""A changeover is a transaction: all of the line on the new product, or all of it back, and never two at a time."""

from __future__ import annotations

from typing import Any

import pytest
from scenario_bench import STATIONS, Scene

from controller.core.events import ChangeoverChanged
from controller.core.packml import State
from drivers.port import Outcome
from hil.bench import SECOND

RAILED = ("infeed", "filler", "capper", "labeler", "packer")
RAIL = {"water_330": 62.0, "water_500": 72.0}


def never_mixed(scene: Scene) -> None:
    """No two formats are on the line at a time, and none is where the rails do not fit it."""
    products = scene.bench.world.truth()["products"]
    assert not (products["330"]["in_process"] and products["500"]["in_process"]), products
    assert not any(name.endswith("mixed_product") for name in scene.active())


def steps(scene: Scene, number: int) -> list[str]:
    return [e.step for e in scene.events if isinstance(e, ChangeoverChanged) and e.id == number]


def read_back(scene: Scene, recipe: str) -> None:
    """Every set-point of the recipe stands in its PLC, and every rail is where it belongs."""
    logic = scene.bench.logic
    for (station, name), wanted in logic.recipes[recipe].values.items():
        tag = logic.parameters.all[station, name].output.tag
        assert scene.at_plant(tag) == (pytest.approx(wanted) if isinstance(wanted, float) else wanted), tag
    for station in RAILED:
        assert scene.at_plant(f"{station}.rail_pos") == pytest.approx(RAIL[recipe], abs=0.3)


def running_line(seed: int) -> Scene:
    scene = Scene(seed)
    scene.each_step.append(lambda: never_mixed(scene))
    scene.bring_up()
    scene.run(5)
    return scene


def first_good(scene: Scene, product: str) -> float:
    """Seconds until the first good bottle of the product is out."""
    return scene.until(
        lambda: scene.bench.world.truth()["products"][product]["good"] > 0, 90, f"a good bottle of {product}"
    )


def test_changeover_on_the_running_line_and_back() -> None:
    scene = running_line(31)
    ordered = scene.bench.now_ns
    scene.must("line", "changeover", recipe="water_500", start=True)
    for step in ("running_out", "staging"):
        scene.until(lambda step=step: steps(scene, 2)[-1] == step, 60, step)  # type: ignore[misc]
        refused = scene.order("line", "changeover", "somebody else", recipe="water_330")
        assert not refused.accepted
        assert f"changeover 2 to water_500 is in progress ({step})" in refused.reason
    assert scene.bench.world.truth()["line"]["in_process"] == 0, "staged on an empty line"
    first_good(scene, "500")
    assert (scene.bench.now_ns - ordered) / SECOND < 90
    assert steps(scene, 2) == ["planned", "running_out", "staging", "verified", "committed"]
    read_back(scene, "water_500")
    scene.produce(5)
    scene.must("line", "changeover", recipe="water_330", start=True)
    scene.until(lambda: steps(scene, 3)[-1:] == ["committed"], 90, "the way back")
    scene.produce(5)
    read_back(scene, "water_330")
    scene.finish()

    truth, logic = scene.bench.world.truth(), scene.bench.logic
    booked: dict[str, dict[str, int]] = {}
    for name, station in logic.stations.items():
        assert station.parts.tally is not None
        for product, counts in station.parts.tally.products.items():
            row = booked.setdefault(product, {"good": 0, "rejected": 0})
            row["rejected"] += counts["rejected"]
            row["good"] += counts["good"] if name == "packer" else 0
    for recipe, made in (("water_330", "330"), ("water_500", "500")):
        plant = truth["products"][made]
        assert booked[logic.recipes[recipe].product] == {"good": plant["good"], "rejected": plant["rejected"]}
        assert plant["rejected"] <= 0.1 * plant["infeed"] + 1
    assert truth["packed_bad"] == 0


def test_a_rail_that_does_not_arrive_rolls_the_line_back() -> None:
    """The rail does not move while its guard is open."""
    scene = running_line(32)
    scene.must("line", "changeover", recipe="water_500", start=True)
    scene.until(lambda: steps(scene, 2)[-1] == "staging", 60, "staging")
    scene.bench.world.inject("door_open", station="capper")
    scene.until(lambda: scene.bench.logic.changeover is None, 90, "the end of it")
    assert steps(scene, 2) == ["planned", "running_out", "staging", "rolling_back", "rolled_back"]
    assert "capper.rail" in scene.bench.logic.block
    read_back(scene, "water_330")
    assert scene.running() == []
    scene.bench.world.clear("door_open", station="capper")
    scene.run(10)
    for target in ("line", *STATIONS):
        if target == "line":
            scene.must("line", "reset")
            scene.until(lambda: scene.line is State.IDLE, 30, "the line Idle")
        refused = scene.order(target, "start")
        assert not refused.accepted
        assert "changeover to water_500 failed" in refused.reason, refused.reason
        assert "every station is back on water_330" in refused.reason
    assert scene.running() == []

    scene.must("line", "changeover", recipe="water_500", start=True)
    scene.until(lambda: scene.line is State.EXECUTE, 90, "the line in Execute")
    assert steps(scene, 3)[-1] == "committed"
    first_good(scene, "500")
    scene.produce(3)
    scene.finish()


def test_a_write_that_a_plc_refuses_rolls_the_line_back(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = running_line(33)
    memory = next(link for link in scene.bench.links if link.name == "dry")._memory
    write = memory.write

    def stubborn(tag: str, value: Any) -> tuple[Outcome, str]:
        if (tag, value) == ("labeler.job", "WATER-500"):
            return Outcome.REJECTED, "illegal data value"
        return write(tag, value)

    monkeypatch.setattr(memory, "write", stubborn)
    scene.must("line", "changeover", recipe="water_500", start=True)
    scene.until(lambda: scene.bench.logic.changeover is None, 120, "the end of it")
    assert steps(scene, 2)[-2:] == ["rolling_back", "rolled_back"]
    assert "labeler.job = WATER-500 was rejected: illegal data value" in scene.bench.logic.block
    read_back(scene, "water_330")
    assert "labeler.output_failed" not in scene.active(), "what could not be written is not wanted any more"
    monkeypatch.setattr(memory, "write", write)
    scene.to_recipe("water_330")
    scene.to_idle()
    scene.start()
    scene.produce(3)
    scene.finish()


@pytest.mark.parametrize("plc", ["wet", "dry", "inspect"])
def test_a_plc_dies_while_the_recipe_is_staged(plc: str) -> None:
    """Then there is no way back either: the line says that it holds a mix, and runs only after a whole changeover."""
    scene = running_line(34)
    scene.must("line", "changeover", recipe="water_500", start=True)
    scene.until(lambda: steps(scene, 2)[-1] == "staging", 60, "staging")
    scene.bench.world.inject("plc_kill", plc=plc)
    scene.until(lambda: scene.bench.logic.changeover is None, 120, "the end of it")
    assert steps(scene, 2)[-2:] == ["rolling_back", "failed"]
    scene.bench.world.clear("plc_kill", plc=plc)
    scene.run(15)
    assert scene.running() == []
    assert "the stations hold a mix of recipes" in scene.bench.logic.block
    for name in [name for name, state in scene.states.items() if state is State.ABORTED]:
        scene.must(name, "clear")
    scene.until(lambda: State.CLEARING not in scene.states.values(), 20, "the stations cleared")
    scene.must("line", "reset")
    scene.until(lambda: scene.line is State.IDLE, 20, "the line Idle")
    for target in ("line", *STATIONS):
        refused = scene.order(target, "start")
        assert not refused.accepted
        assert "hold a mix of recipes" in refused.reason, refused.reason
    scene.to_recipe("water_500")
    read_back(scene, "water_500")
    scene.start()
    first_good(scene, "500")
    scene.produce(3)
    scene.finish()


def test_a_changeover_is_refused_where_it_cannot_be() -> None:
    scene = Scene(seed=35)
    scene.bring_up()
    assert "there is no recipe 'beer'" in scene.order("line", "changeover", recipe="beer").reason
    scene.must("line", "hold")
    scene.until(lambda: scene.line is State.HELD, 20, "the line Held")
    assert "while the line is Held" in scene.order("line", "changeover", recipe="water_500").reason
    scene.must("line", "stop")
    scene.until(lambda: scene.bench.logic.at_rest, 30, "everything at rest")
    scene.must("line", "changeover", recipe="water_500")
    scene.run(5)
    last = scene.bench.logic.last_changeover
    assert last is not None
    assert "product of water_330 is left on the line" in last.detail
    assert scene.bench.logic.recipe is not None
    assert scene.bench.logic.recipe.id == "water_330", "nothing was written"
    read_back(scene, "water_330")


@pytest.mark.parametrize("press", ["stop", "abort"])
def test_stop_and_abort_are_heard_during_a_changeover(press: str) -> None:
    scene = running_line(36)
    scene.must("line", "changeover", recipe="water_500", start=True)
    scene.until(lambda: steps(scene, 2)[-1] == "running_out", 10, "running out")
    scene.run(3)
    scene.must("line", press)
    scene.until(lambda: scene.bench.logic.at_rest, 30, "everything at rest")
    scene.run(3)
    assert (scene.running(), scene.run_bits()) == ([], [])
    assert steps(scene, 2)[-1] == "failed"
    read_back(scene, "water_330")
    scene.to_idle()
    scene.start()
    scene.must("line", "changeover", recipe="water_500", start=True)
    first_good(scene, "500")
    scene.finish()


def test_bottles_on_the_line_are_remembered_when_no_recipe_is_in_force() -> None:
    """After a load that failed both ways only the recipe of what stands on the line can be loaded."""
    scene = running_line(37)
    scene.must("line", "stop")
    scene.until(lambda: scene.bench.logic.at_rest, 30, "everything at rest")
    scene.must("line", "changeover", recipe="water_330")
    scene.bench.world.inject("plc_kill", plc="wet")
    scene.until(lambda: scene.bench.logic.changeover is None, 60, "the end of it")
    assert steps(scene, 2)[-1] == "failed"
    assert scene.bench.logic.recipe is None
    scene.bench.world.clear("plc_kill", plc="wet")
    scene.run(5)
    scene.must("line", "changeover", recipe="water_500", start=True)
    scene.until(lambda: scene.bench.logic.changeover is None, 60, "the end of it")
    last = scene.bench.logic.last_changeover
    assert last is not None
    assert "product of water_330 is left on the line" in last.detail
    scene.to_recipe("water_330")
    scene.to_idle()
    scene.start()
    scene.produce(3)
    scene.finish()
