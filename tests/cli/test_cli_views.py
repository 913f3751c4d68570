"""What is on the screen: shapes and words beside colour, nothing that must not be trusted shown as good."""

from __future__ import annotations

import io
import json
import os
import pty
import select
import signal
import subprocess
import sys
import time

import pytest
from rich.console import Console

from controller.cli.demo.screen import LiveScreen, PlainScreen, worth_telling
from controller.cli.picture import SHAPES, Picture, page, state_text
from controller.core.events import CountsChanged, Transition
from controller.core.packml import State
from controller.north.client import LocalNorth


def drawn(picture: Picture, width: int = 150) -> str:
    out = io.StringIO()
    Console(file=out, width=width).print(page(picture))
    return out.getvalue()


@pytest.fixture
def picture(line) -> Picture:
    north = LocalNorth(line._publisher)
    north.poll()
    now = Picture(north.mirror.hello, dict(north.mirror.values), dict(north.mirror.bad))
    north.close()
    return now


def test_every_state_has_a_shape_of_its_own_kind_and_its_name() -> None:
    for state in State:
        assert state_text(state.text).plain == f"{SHAPES[state.text]} {state.text}"
    waits = [SHAPES[s] for s in ("Execute", "Held", "Suspended", "Stopped", "Idle", "Complete", "Aborted")]
    assert len(set(waits)) == len(waits), "two states that stay look the same without colour"


def test_a_bad_value_is_shown_as_a_question_mark(picture: Picture) -> None:
    assert picture.text("line.product") != "?"
    spoilt = Picture(picture.hello, picture.values, {"line.product": "cable"})
    assert spoilt.text("line.product") == "?"
    assert spoilt.as_json()["values"]["line.product"] == {  # type: ignore[index]
        "value": picture.values["line.product"],
        "quality": "bad",
        "reason": "cable",
    }


def test_a_changeover_that_failed_is_shown_until_the_line_runs_again(picture: Picture) -> None:
    failed = {**picture.values, "line.changeover_step": "failed", "line.changeover_detail": "nothing was written"}
    for state, shown in (("Stopped", True), ("Idle", True), ("Execute", False)):
        now = Picture(picture.hello, {**failed, "line.state_text": state}, picture.bad)
        assert ("nothing was written" in drawn(now)) is shown, state


def test_alarms_are_read_from_the_table_with_their_states(picture: Picture) -> None:
    jam = {"id": "infeed.jam", "text": "Bottle jam: at the exit", "priority": 3, "active": False,
           "acknowledged": False, "since": 5, "response": "Free the bottle"}  # fmt: skip
    lost = {**jam, "id": "line.plc_wet", "text": "PLC wet is not connected", "active": True, "acknowledged": True}
    values = {**picture.values, "line.alarm_table": json.dumps([jam, lost])}
    rows = Picture(picture.hello, values, {}).alarms()
    assert [(r.id, r.text, r.active, r.acknowledged) for r in rows] == [
        ("infeed.jam", "Bottle jam: at the exit", False, False),
        ("line.plc_wet", "PLC wet is not connected", True, True),
    ]
    shown = drawn(Picture(picture.hello, values, {}))
    assert "○ infeed.jam" in shown
    assert "cleared, unacknowledged" in shown
    assert "PLC wet is not connected: Free the bottle" in shown


def test_the_live_view_fits_and_shows_line_stations_log_and_endpoint(picture: Picture) -> None:
    out = io.StringIO()
    console = Console(file=out, width=150, height=40, force_terminal=True)
    with LiveScreen(console, "opc.tcp://127.0.0.1:1", 160) as screen:
        screen.show(picture)
        for n in range(60):
            screen.tell("operator", f"act {n}")
    last = out.getvalue().rsplit("act 58", 1)[1]
    assert "act 59" in last
    assert "opc.tcp://127.0.0.1:1" in last
    frame = out.getvalue().rsplit("\x1b[1A", 1)[-1]
    assert frame.count("\n") <= 40
    assert "labeler" in out.getvalue()


def test_plain_lines_leave_details_out() -> None:
    out = io.StringIO()
    with PlainScreen(Console(file=out, width=150)) as screen:
        screen.tell("operator", "start")
        screen.tell("filler", "Idle → Starting", detail=True)
    assert "operator: start" in out.getvalue()
    assert "Starting" not in out.getvalue()
    assert worth_telling(Transition(at=0, station="line", source="a", target="b", cause="start")) is True
    assert worth_telling(Transition(at=0, station="filler", source="a", target="b", cause="start")) is False
    counts = CountsChanged(at=0, station="filler", product="", infeed=0, good=0, rejected=0, in_process=0)
    assert worth_telling(counts) is None


def test_watch_draws_on_a_terminal_until_ctrl_c(line) -> None:
    ours, terminal = pty.openpty()
    argv = [sys.executable, "-m", "controller.cli", "status", "--watch", f"--socket={line.socket}"]
    with subprocess.Popen(argv, stdin=terminal, stdout=terminal, stderr=terminal) as watch:
        try:
            os.close(terminal)
            seen, end = b"", time.monotonic() + 20
            while seen.count(b"packer") < 2 and time.monotonic() < end:  # drawn, and drawn again
                if select.select([ours], [], [], 0.2)[0]:
                    seen += os.read(ours, 65536)
            watch.send_signal(signal.SIGINT)
            assert watch.wait(10) == 0, seen.decode(errors="replace")
        finally:
            watch.kill()
            os.close(ours)
    assert seen.count(b"packer") >= 2, seen.decode(errors="replace")
