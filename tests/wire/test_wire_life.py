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
        assert {e.target for e in events[-60:] if e.station == "line" and hasattr(e, "target")} >= {"Stopping", "Stopped"}
        assert any(isinstance(e, Note) and e.text == "the controller ends" for e in events)
        # the outputs, read at the PLC by somebody else
        await line.run_controller()
        await line.until(lambda: bool(line.value("line.recipe")), 20, "the recipe in force again")
        for name in ("infeed", "filler", "capper", "labeler", "packer"):
            assert line.value(f"stations.{name}.tags.run") is False
        await line.counts_agree()
