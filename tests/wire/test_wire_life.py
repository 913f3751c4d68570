"""The controller's own life on the wire: an orderly end, a sudden one, and what is the same as on the bench."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import pytest
from wire_rig import MACHINES, Rig, rig

from controller.build import kind_infos
from controller.config.load import load
from controller.core.events import Note
from controller.runtime.journal import read
from hil.bench import line_folder

pytestmark = pytest.mark.wire
STOPPED, ABORTED = 2, 9


async def a_second_controller_writes_nothing(line: Rig) -> None:
    """Started by mistake for a line that is controlled already: it says so and ends, before any PLC hears of it."""
    connections = {plc: line.value(f"plcs.{plc}.reconnects") for plc in ("wet", "dry", "inspect")}
    second = await line.children.start(
        "second", ["run", str(line.line), f"--endpoints={line.folder / 'endpoints.json'}", f"--state-dir={line.state}",
                   f"--socket={line.folder / 'second.sock'}", "--opcua=off"], stop_s=5,
    )  # fmt: skip
    async with asyncio.timeout(20):
        assert await second.process.wait() == 1
    said = await asyncio.to_thread(second.log.read_text)
    assert "bottling" in said, said
    assert "already" in said, said
    assert {plc: line.value(f"plcs.{plc}.reconnects") for plc in connections} == connections


async def test_sigterm_stops_the_line_in_order(tmp_path: Path) -> None:
    async with rig(tmp_path) as line:
        await line.run_controller()
        config = load(line_folder("bottling") / "line.yaml", kinds=kind_infos())
        assert line.north.hello.line == config.file.line.name
        assert set(line.north.hello.recipes) == set(config.control_recipes), "what the bench runs, unchanged"
        await asyncio.gather(line.bring_up(), a_second_controller_writes_nothing(line))
        code, took = await line.end_controller(signal.SIGTERM)
        assert code == 0, line.children.tails()
        assert took < 20
        left = await line.read_plcs()
        assert {left[f"{name}.run"] for name in MACHINES} == {False}, "the outputs as the controller left them"
        assert (left["infeed.gate"], left["filler.pump"], left["labeler.vacuum"]) == (False, False, False)
        assert {left[f"{name}.running"] for name in MACHINES} == {False}
        assert left["checkweigher.state_current"] in (STOPPED, ABORTED), (
            "Stopped; its watchdog aborts it a second later"
        )
        assert not await line.moving()
        rows = line.journal_is_sound()
        assert rows > 50
        events = [row.event for row in read(line.journal, limit=rows)]
        assert {e.target for e in events[-60:] if e.station == "line" and hasattr(e, "target")} >= {
            "Stopping",
            "Stopped",
        }
        assert any(isinstance(e, Note) and e.text == "the controller ends" for e in events)


async def test_kill_9_in_the_middle_of_production(tmp_path: Path) -> None:
    """The PLCs stop by themselves; the next controller goes on from the record and waits for a person."""
    async with rig(tmp_path) as line:
        await line.run_controller()
        await line.bring_up(6)
        code, _ = await line.end_controller(signal.SIGKILL)
        died = (await line.plant.truth())["now_s"]
        assert code == -signal.SIGKILL
        while (stood := await line.plant.truth())["now_s"] < died + 1.2:  # noqa: ASYNC110 - plant time
            await asyncio.sleep(0.02)
        left = await line.read_plcs()
        assert {left[f"{name}.run"] for name in MACHINES} == {True}, "nobody took the run bits away"
        assert {left[f"{name}.running"] for name in MACHINES} == {False}, "and yet the machines stand"
        assert {left[f"{name}.fault_code"] for name in MACHINES} == {9}, "each PLC's watchdog did it, within its second"
        assert left["checkweigher.state_current"] == ABORTED
        assert line.journal_is_sound() > 50

        await line.run_controller()
        await line.until(lambda: bool(line.value("line.recipe")), 20, "the recipe last in force, in force again")
        assert line.value("line.recipe") == "water_330"
        assert {line.state_of("line"), *line.states().values()} == {"Aborted"}
        assert not await line.moving()
        assert {line.value(f"stations.{name}.tags.run") for name in MACHINES} == {False}, "safe at first"
        assert (await line.plant.truth())["stations"] == stood["stations"], "nothing moved since, nor does by itself"
        counts = await line.counts_agree()
        assert counts["infeed"] >= 6
        await line.to_idle()
        await line.must("line", "start")
        await line.line_is("Execute")
        await line.produce(4)
        after = await line.hold_and_compare()
        assert after["infeed"] >= counts["infeed"] + 4
        assert line.journal_is_sound() > 100
