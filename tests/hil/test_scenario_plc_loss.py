"""A PLC is lost in the middle of production, or the controller is: nothing moves by itself, nothing is lost."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from scenario_bench import STATIONS, Scene, line_with_estop_inputs

from controller.core.events import CountsChanged, LinkChanged
from controller.core.packml import State
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
def test_a_plc_is_killed_and_comes_back(plc: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    line = line_with_estop_inputs(tmp_path / "line", *(tag for name, tag in ESTOP.items() if name != plc))
    monkeypatch.setattr("hil.bench.line_folder", lambda _: line.parent)
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
