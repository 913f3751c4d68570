"""The handshake with the PLCs on the bottling line: identity, life sign, restarts, numbered commands."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from scenario_bench import STATIONS, Scene

from controller.core.events import LinkChanged, Note
from controller.core.packml import State
from drivers.port import Outcome, Value
from hil.bench import SECOND, Bench, line_folder

CHECKWEIGHER = "checkweigher"


def link_of(scene: Scene, plc: str) -> Any:
    return next(link for link in scene.bench.links if link.name == plc)


def stations_of(plc: str) -> list[str]:
    return [name for name, owner in STATIONS.items() if owner == plc]


def test_every_command_goes_out_in_one_piece_and_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(seed=41)
    memory = link_of(scene, "inspect")._memory
    write_block, write = memory.write_block, memory.write
    sent: list[dict[str, Value]] = []

    def noting(values: Mapping[str, Value]) -> tuple[Outcome, str]:
        sent.append(dict(values))
        ended: tuple[Outcome, str] = write_block(values)
        return ended

    def alone(tag: str, value: Value) -> tuple[Outcome, str]:
        assert sent or tag not in ("checkweigher.cntrl_cmd", "checkweigher.cmd_id"), f"{tag} was written by itself"
        ended: tuple[Outcome, str] = write(tag, value)
        return ended

    monkeypatch.setattr(memory, "write_block", noting)
    scene.bring_up()
    monkeypatch.setattr(memory, "write", alone)
    scene.produce(5)
    assert [list(values) for values in sent] == [
        ["checkweigher.cntrl_cmd", "checkweigher.cmd_valid_until", "checkweigher.cmd_id"]
    ] * len(sent)
    assert [values["checkweigher.cmd_id"] for values in sent] == list(range(1, len(sent) + 1))
    assert len(sent) >= 3
    scene.finish()


def test_a_command_that_is_late_is_dropped_and_the_station_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(seed=42)
    scene.run(8)
    memory = link_of(scene, "inspect")._memory
    write_block = memory.write_block

    def late(values: dict[str, Value]) -> tuple[Outcome, str]:
        until = values["checkweigher.cmd_valid_until"]
        assert isinstance(until, int)
        ended: tuple[Outcome, str] = write_block(values | {"checkweigher.cmd_valid_until": (until - 5000) % 2**32})
        return ended

    monkeypatch.setattr(memory, "write_block", late)
    before = scene.at_plant("checkweigher.state_current")
    scene.order("line", "clear")
    scene.run(6)
    assert scene.at_plant("checkweigher.cmd_result") == 3
    assert scene.at_plant("checkweigher.cmd_ack") == scene.at_plant("checkweigher.cmd_id"), (
        "taken note of, not executed"
    )
    assert scene.at_plant("checkweigher.state_current") == before
    assert any("too late and was dropped" in text for text in scene.active(CHECKWEIGHER).values())


def test_a_command_is_executed_once_however_often_it_arrives() -> None:
    scene = Scene(seed=43)
    scene.bring_up()
    plc = scene.bench.world.plcs["inspect"]
    node = "nsu=urn:linewright:hil:bottling;s=Checkweigher.Command.CmdId"
    number = scene.at_plant("checkweigher.cmd_id")
    for _ in range(5):
        plc.write_node(node, number)
        scene.step()
    assert scene.at_plant("checkweigher.state_current") == 6
    scene.produce(3)
    scene.finish()


@pytest.mark.parametrize("plc", ["wet", "dry", "inspect"])
def test_a_plc_that_stops_counting_is_lost_though_it_answers(plc: str, monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(seed=44)
    scene.bring_up()
    program = scene.bench.world.plcs[plc]._program
    monkeypatch.setattr(program, "look", lambda: None)
    scene.run(3)
    assert f"PLC stopped counting: {plc}.heartbeat" in scene.active()[f"line.plc_{plc}"]
    assert {scene.states[name] for name in stations_of(plc)} == {State.ABORTED}
    monkeypatch.undo()
    scene.run(1)
    assert f"line.plc_{plc}" not in scene.active()
    assert {scene.states[name] for name in stations_of(plc)} == {State.ABORTED}


@pytest.mark.parametrize("plc", ["wet", "dry", "inspect"])
def test_another_program_version_after_a_restart_is_not_written_to(plc: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hil.plc.program.MAP_VERSION", 1)
    scene = Scene(seed=45)
    scene.bring_up()
    world = scene.bench.world
    world.inject("plc_kill", plc=plc)
    scene.run(1)
    monkeypatch.setattr("hil.plc.program.MAP_VERSION", 2)
    memory = link_of(scene, plc)._memory
    writes: list[object] = []
    monkeypatch.setattr(memory, "write", lambda *given: writes.append(given))
    world.clear("plc_kill", plc=plc)
    scene.run(10)
    assert writes == []
    image = scene.bench.logic.image
    assert not image.up[plc]
    assert f"identity: {plc}.map_version" in link_of(scene, plc)._reason
    assert "is 2; it must be 1" in link_of(scene, plc)._reason


def test_a_wrong_word_order_is_found_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "line"
    shutil.copytree(line_folder("bottling"), folder)
    text = (folder / "line.yaml").read_text()
    assert text.count("word_order: CDAB") == 1
    (folder / "line.yaml").write_text(text.replace("word_order: CDAB", "word_order: ABCD"))
    monkeypatch.setattr("hil.bench.line_folder", lambda _: folder)
    scene = Scene(bench=Bench("bottling", 46))
    hr = scene.bench.world.plcs["wet"].version("hr")
    scene.run(5)
    reason = link_of(scene, "wet")._reason
    assert "wet.pattern at ir:3" in reason
    assert "word_order: CDAB would fit" in reason
    assert not scene.bench.logic.image.up["wet"]
    assert scene.bench.world.plcs["wet"].version("hr") == hr


def test_a_restart_is_told_and_no_count_is_lost_or_doubled() -> None:
    scene = Scene(seed=47)
    scene.bring_up()
    scene.produce(5)
    scene.bench.world.inject("plc_restart", plc="wet")
    scene.run(1)
    links = [(e.up, e.reason) for e in scene.events if isinstance(e, LinkChanged) and e.plc == "wet"]
    assert [up for up, _ in links] == [True, False, True]
    assert "restarted: its boot counter wet.boot_count went from 1 to 2" in links[1][1]
    assert links[2][1] == "the PLC has restarted"
    assert not [e for e in scene.events if isinstance(e, Note) and "went back" in e.text], "its counters are retained"
    scene.must("line", "stop")
    scene.until(lambda: scene.bench.logic.at_rest, 60, "everything at rest")
    scene.settled_counts()


def test_life_signs_go_on_once_per_period() -> None:
    scene = Scene(seed=48)
    seen: list[Value] = []
    for _ in range(100):
        scene.step()
        seen.append(scene.bench.world.plcs["wet"].get("wet.watchdog"))
    changes = sum(a != b for a, b in pairwise(seen))
    assert 45 <= changes <= 50, "every 200 ms, from completed scans"
    assert scene.bench.now_ns == 10 * SECOND
