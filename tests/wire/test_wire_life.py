"""The controller's own life on the wire: an orderly end, a sudden one, and what is the same as on the bench."""

from __future__ import annotations

import asyncio
import signal
import sqlite3
import time
from pathlib import Path

import pytest
from wire_rig import STATIONS, rig

from controller.build import kind_infos
from controller.config.load import load
from controller.core.events import Note
from controller.runtime.journal import read
from hil.bench import line_folder

pytestmark = pytest.mark.wire


async def test_sigterm_stops_the_line_in_order(tmp_path: Path) -> None:
    async with rig(tmp_path) as line:
        await line.run_controller()
        config = load(line_folder("bottling") / "line.yaml", kinds=kind_infos())
        assert line.north.hello.line == config.file.line.name
        assert set(line.north.hello.recipes) == set(config.control_recipes), "what the bench runs, unchanged"
        await line.bring_up()
        code, took = await line.end_controller(signal.SIGTERM)
        assert code == 0, line.children.tails()
        assert took < 20
        assert not await line.moving()
        rows = line.journal_is_sound()
        assert rows > 50
        events = [row.event for row in read(line.journal, limit=rows)]
        assert {e.target for e in events[-60:] if e.station == "line" and hasattr(e, "target")} >= {
            "Stopping",
            "Stopped",
        }
        assert any(isinstance(e, Note) and e.text == "the controller ends" for e in events)
        # the outputs, read at the PLC by somebody else
        await line.run_controller()
        await line.until(lambda: bool(line.value("line.recipe")), 20, "the recipe in force again")
        for name in ("infeed", "filler", "capper", "labeler", "packer"):
            assert line.value(f"stations.{name}.tags.run") is False
        await line.counts_agree()


async def test_kill_9_in_the_middle_of_production(tmp_path: Path) -> None:
    """The PLCs stop by themselves; the next controller goes on from the record and waits for a person."""
    async with rig(tmp_path) as line:
        await line.run_controller()
        await line.bring_up(6)
        code, _ = await line.end_controller(signal.SIGKILL)
        died = (await line.plant.truth())["now_s"]
        assert code == -signal.SIGKILL
        while (stood := await line.plant.truth())["now_s"] < died + 1.2:
            await asyncio.sleep(0.02)
        assert not await line.moving(), "each PLC's watchdog stops its machines within a second of its own time"
        assert line.journal_is_sound() > 50

        await line.run_controller()
        await line.until(lambda: bool(line.value("line.recipe")), 20, "the recipe last in force, in force again")
        assert line.value("line.recipe") == "water_330"
        assert {line.state_of("line"), *line.states().values()} == {"Aborted"}
        assert not await line.moving()
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


async def test_a_second_controller_of_the_same_line_writes_nothing(tmp_path: Path) -> None:
    async with rig(tmp_path) as line:
        await line.run_controller()
        await line.until(lambda: bool(line.value("line.recipe")), 20, "a recipe in force")
        scans = line.value("line.scan_count")
        second = await line.children.start(
            "second", ["run", str(line.line), f"--endpoints={tmp_path / 'endpoints.json'}", f"--state-dir={line.state}",
                       f"--socket={tmp_path / 'second.sock'}", "--opcua=off"], stop_s=5,
        )  # fmt: skip
        async with asyncio.timeout(15):
            assert await second.process.wait() == 1
        assert "runs" in second.log.read_text() or "already" in second.log.read_text()
        assert all(line.value(f"plcs.{plc}.reconnects") == 0 for plc in ("wet", "dry", "inspect"))
        await line.until(lambda: line.value("line.scan_count") > scans + 5, 5, "the first one scanning on")
