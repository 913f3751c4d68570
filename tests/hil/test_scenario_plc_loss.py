"""A PLC is lost in the middle of production, or the controller is: nothing moves by itself, nothing is lost."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from scenario_bench import STATIONS, Scene, line_where_a_lost_estop_input_aborts

from controller.core.events import ChangeoverChanged, CountsChanged, LinkChanged
from controller.core.packml import State
from drivers.port import Outcome
from hil.bench import SECOND, Bench

ESTOP = {"wet": "infeed.estop_ok", "dry": "capper.estop_ok", "inspect": "checkweigher.estop_ok"}
PLCS = tuple(ESTOP)


def stations_of(plc: str) -> list[str]:
    return [name for name, owner in STATIONS.items() if owner == plc]


def reads_by_plc(scene: Scene) -> Counter[str]:
    """Counts from now on the readings that each PLC delivers."""
    reads: Counter[str] = Counter()
    put = scene.bench.buffer.put

    def counting(plc: str, group: int, reading: Any) -> None:
        reads[plc] += 1
        put(plc, group, reading)

    scene.bench.buffer.put = counting  # type: ignore[method-assign]
    return reads


def bad_tags(scene: Scene, plc: str) -> list[str]:
    image = scene.bench.logic.image
    slots = image.layout.slots.items()
    return [name for name, slot in slots if image.layout.plc_of[name] == plc and image.bad[slot] is not None]


@pytest.mark.parametrize("plc", PLCS)
def test_a_plc_is_killed_and_comes_back(plc: str) -> None:
    scene = Scene(seed=11)
    world = scene.bench.world
    scene.bring_up()
    reads = reads_by_plc(scene)
    scene.run(12)
    usual = dict(reads)
    others = [name for name in PLCS if name != plc]

    world.inject("plc_kill", plc=plc)
    scene.step()
    assert scene.active()[f"line.plc_{plc}"].startswith(f"PLC {plc} ")
    assert {scene.states[name] for name in stations_of(plc)} == {State.ABORTED}, "aborted in the scan that saw it"
    scene.until(lambda: scene.line is State.HELD, 15, "the line Held")
    assert any(name in scene.bench.logic.line.stop_reason for name in stations_of(plc)), "the reason names a station"
    assert scene.run_bits() == []
    assert scene.running() == []

    reads.clear()
    before = world.truth()["stations"]

    def others_are_good() -> None:
        assert [tag for name in others for tag in bad_tags(scene, name)] == []

    scene.each_step.append(others_are_good)
    scene.run(12)
    assert {name: reads[name] for name in others} == {name: usual[name] for name in others}
    assert reads[plc] == 0
    assert world.truth()["stations"] == before, "nothing moved"
    refused = scene.order("line", "unhold")
    assert not refused.accepted
    assert any(name in refused.reason for name in stations_of(plc))
    refused = scene.order(stations_of(plc)[0], "clear")
    assert not refused.accepted
    assert plc in refused.reason, refused.reason

    world.clear("plc_kill", plc=plc)
    scene.run(5)
    assert f"line.plc_{plc}" not in scene.active()
    assert {scene.states[name] for name in stations_of(plc)} == {State.ABORTED}, "a PLC that is back starts nothing"
    assert scene.running() == []
    scene.recover(*stations_of(plc))
    assert scene.running() == []
    scene.must("line", "unhold")
    scene.until(lambda: scene.line is State.EXECUTE, 40, "the line in Execute")
    scene.produce(10)
    counts = scene.finish()
    assert counts["good"] > 13
    links = [(e.plc, e.up) for e in scene.events if isinstance(e, LinkChanged) and e.plc == plc]
    assert links == [(plc, True), (plc, False), (plc, True)]


@pytest.mark.parametrize("plc", PLCS)
def test_an_emergency_stop_input_that_is_lost_with_its_plc_aborts_the_line(
    plc: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The default: what cannot be seen is not taken for closed."""
    line = line_where_a_lost_estop_input_aborts(tmp_path / "line")
    monkeypatch.setattr("hil.bench.line_folder", lambda _: line.parent)
    scene = Scene(seed=12)
    scene.bring_up()
    scene.bench.world.inject("plc_kill", plc=plc)
    scene.step()
    assert {scene.line, *scene.states.values()} == {State.ABORTED}
    assert plc in scene.bench.logic.line.first_out
    scene.step()
    assert (scene.running(), scene.run_bits()) == ([], [])
    refused = scene.order("line", "clear")
    assert not refused.accepted
    assert f"{ESTOP[plc]} is BAD" in refused.reason
    scene.run(5)
    scene.bench.world.clear("plc_kill", plc=plc)
    scene.run(5)
    assert scene.running() == []
    scene.to_idle()
    scene.start()
    scene.produce(5)
    assert scene.finish()["good"] > 8


def set_points_fit(scene: Scene) -> None:
    """Whatever runs has the recipe's set-points in its PLC."""
    logic = scene.bench.logic
    assert logic.recipe is not None
    for (station, name), wanted in logic.recipe.values.items():
        if station in scene.running():
            tag = logic.parameters.all[station, name].output.tag
            assert scene.at_plant(tag) == (pytest.approx(wanted) if isinstance(wanted, float) else wanted), tag


@pytest.mark.parametrize("plc", PLCS)
def test_zeroed_set_points_start_nothing(plc: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The PLC comes back empty and takes its recipe late: until it is read back no station of it starts."""
    scene = Scene(seed=13)
    world = scene.bench.world
    scene.bring_up()
    scene.each_step.append(lambda: set_points_fit(scene))
    world.inject("plc_kill", plc=plc)
    scene.run(3)
    memory = next(link for link in scene.bench.links if link.name == plc)._memory
    write = memory.write
    set_points = {p.output.tag for p in scene.bench.logic.parameters.all.values()}

    def deaf(tag: str, value: Any) -> tuple[Outcome, str]:
        return (Outcome.REJECTED, "out of order") if tag in set_points else write(tag, value)

    monkeypatch.setattr(memory, "write", deaf)
    world.clear("plc_kill", plc=plc)
    scene.run(3)
    mine = stations_of(plc)
    assert any("out of order" in text for text in scene.active().values()), "the alarm says what is not taken"
    scene.until(lambda: scene.line is State.HELD, 15, "the line Held")
    scene.recover(*mine)
    for target, command in (("line", "unhold"), *((name, "start") for name in mine)):
        refused = scene.order(target, command)
        assert not refused.accepted
        assert "recipe is not in force" in refused.reason, refused.reason
    assert scene.running() == []

    monkeypatch.setattr(memory, "write", write)
    scene.run(8)
    scene.must("line", "unhold")
    scene.until(lambda: scene.line is State.EXECUTE, 40, "the line in Execute")
    scene.produce(5)
    scene.finish()


@pytest.mark.parametrize("plc", PLCS)
def test_a_plc_restarts_so_fast_that_its_link_never_breaks(plc: str) -> None:
    scene = Scene(seed=14)
    scene.bring_up()
    scene.each_step.append(lambda: set_points_fit(scene))
    scene.bench.world.inject("plc_restart", plc=plc)
    scene.run(3)
    mine = stations_of(plc)
    assert State.EXECUTE not in {scene.states[name] for name in mine}
    assert set(mine).isdisjoint(scene.running())
    for name in mine:
        assert not scene.order(name, "unhold").accepted
    scene.must("line", "stop")
    scene.until(lambda: scene.bench.logic.at_rest, 60, "everything at rest")
    scene.to_recipe("water_330")
    if scene.line is not State.IDLE:
        scene.to_idle()
    scene.start()
    scene.produce(5)
    scene.finish()


@pytest.mark.parametrize("outage_s", [0.4, 20.0])
def test_the_controller_is_restarted_while_the_line_runs(outage_s: float, monkeypatch: pytest.MonkeyPatch) -> None:
    first = Scene(seed=15)
    world = first.bench.world
    first.bring_up()
    first.run(7.3)
    assert len(first.running()) == 6
    died_ns = world.now
    made = first.good()

    world.advance(died_ns + round(outage_s * SECOND))
    if outage_s > 1.5:
        assert first.running() == [], "each PLC's watchdog has stopped its machines"
        assert first.at_plant("filler.fault_code") == 9

    monkeypatch.setattr("hil.bench.World", lambda line, seed: world)
    again = Scene(bench=Bench("bottling", 15))
    again.bench.now_ns = world.now
    counts = {e.station: e for e in first.events if isinstance(e, CountsChanged)}
    changeovers = [e for e in first.events if isinstance(e, ChangeoverChanged) and e.step == "committed"]
    again.bench.logic.restore(counts, changeovers[-1].target)
    assert sum(c.good for c in counts.values()) < sum(row["good"] for row in first.counted().values()), (
        "the record is older than the last scan, as after a power cut"
    )

    again.step()
    assert {again.line, *again.states.values()} == {State.ABORTED}
    again.run(2)
    assert (again.running(), again.run_bits()) == ([], []), "nothing runs before a command"
    stood = world.truth()
    again.run(15)
    assert world.truth()["stations"] == stood["stations"]
    assert again.bench.logic.recipe is not None
    assert again.bench.logic.recipe.id == "water_330"
    again.to_idle()
    again.start()
    again.produce(5)
    assert again.finish()["good"] > made + 5


def test_the_plcs_stop_by_themselves_within_a_second_of_the_controllers_death() -> None:
    scene = Scene(seed=16)
    world = scene.bench.world
    scene.bring_up()
    assert len(scene.running()) == 6
    died_ns = world.now
    while scene.running():
        world.advance(world.now + SECOND // 100)
        assert world.now - died_ns <= 1.05 * SECOND
