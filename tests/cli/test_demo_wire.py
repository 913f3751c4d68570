"""The whole thing, as a newcomer sees it first: real processes, real protocols, real time."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.wire


def start(folder: Path, *argv: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "controller.cli", "demo", *argv],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(folder)},
    )


def processes_that_name(folder: Path) -> list[str]:
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = entry.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if str(folder) in line:
            found.append(line)
    return found


def test_the_demo_starts_changes_over_survives_a_jam_and_adds_up(tmp_path: Path) -> None:
    demo = start(tmp_path, "--bottles", "4", "--json")
    out, err = demo.communicate(timeout=110)
    assert demo.returncode == 0, err
    data = json.loads(out.splitlines()[-1])
    line = data["line"]
    assert data["ok"] is True
    assert line["infeed"] == line["good"] + line["rejected"] + line["in_process"]
    assert data["plant"] == line == data["opcua"]
    assert len(data["products"]) == 2
    assert all(counts["good"] >= 4 for counts in data["products"].values())
    assert sum(counts["good"] for counts in data["products"].values()) == line["good"]
    assert data["changeovers"] == 1
    stations = [(a["id"], a["station"]) for a in data["alarms"] if a["station"] != "line"]  # a slow disk is the line's
    assert stations == [("infeed.jam", "infeed")]
    assert "technician: frees the bottle at the infeed" in err
    assert list(tmp_path.iterdir()) == [], "something is left of the demo"
    assert processes_that_name(tmp_path) == []


def test_sigterm_during_the_start_leaves_nothing_behind(tmp_path: Path) -> None:
    demo = start(tmp_path)
    try:
        end = time.monotonic() + 30
        while not list(tmp_path.glob("*/bench.log")):
            assert time.monotonic() < end and demo.poll() is None
            time.sleep(0.02)
        demo.terminate()
        _, said = demo.communicate(timeout=30)
    finally:
        demo.kill()
        demo.communicate(timeout=10)
    assert demo.returncode == 130, said
    assert "Traceback" not in said
    assert list(tmp_path.iterdir()) == []
    assert processes_that_name(tmp_path) == []


def test_ctrl_c_and_a_killed_controller_leave_nothing_behind(tmp_path: Path) -> None:
    interrupted, killed = tmp_path / "interrupted", tmp_path / "killed"
    for folder in (interrupted, killed):
        folder.mkdir()
    first, second = start(interrupted), start(killed, "--json")
    try:
        controller = None
        end = time.monotonic() + 80
        while not (controller and list(interrupted.glob("*/north.sock"))):
            assert time.monotonic() < end, "the controllers do not come up"
            time.sleep(0.1)
            if list(killed.glob("*/north.sock")):
                controller = next(iter(_pids(killed, " run ")), None)
        time.sleep(0.5)  # somewhere in the middle of it; where does not matter
        first.send_signal(signal.SIGINT)
        time.sleep(0.3)
        first.send_signal(signal.SIGINT)  # impatient: the controller is not waited for, and must still be gone
        os.kill(controller, signal.SIGKILL)
        _, said = first.communicate(timeout=30)
        assert first.returncode == 130, said
        assert "interrupted" in said
        out, said = second.communicate(timeout=30)
        assert second.returncode == 1
        assert json.loads(out.splitlines()[-1])["ok"] is False
        assert "failed:" in said
        assert "controller.log" in said, "no tail of the logs"
    finally:
        for process in (first, second):
            process.kill()
            process.communicate(timeout=10)
    for folder in (interrupted, killed):
        assert list(folder.iterdir()) == []
        end = time.monotonic() + 3  # a gateway that was just being started ends by itself when it finds us gone
        while processes_that_name(folder) and time.monotonic() < end:
            time.sleep(0.05)
        assert processes_that_name(folder) == []


def _pids(folder: Path, word: str) -> list[int]:
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = entry.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if str(folder) in line and word in line:
            found.append(int(entry.parent.name))
    return found
