"""The measurements themselves: they run, end by themselves, and never make a figure up."""

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
ROOT = Path(__file__).resolve().parent.parent.parent


def run(script: str, *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, f"bench/{script}.py", *options]
    env = {**os.environ, **environment}
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=100, check=False)


def children(pid: int) -> list[int]:
    """The processes that it started and that still run."""
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()]


@pytest.mark.peer
def test_the_last_line_is_json(modbus_server: Path) -> None:
    done = run("drivers", "--quick", "--json", "--only", "unchanged", "memory")
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout.splitlines()[-1])
    assert figures.keys() == {"unchanged_ns_per_tag", "bytes_per_tag"}
    assert all(0 < value < 5000 for value in figures.values())


def test_without_libmodbus_nothing_is_compared() -> None:
    done = run("drivers", "--quick", "--json", PKG_CONFIG_LIBDIR="/nonexistent", PKG_CONFIG_PATH="")
    assert done.returncode == 2
    assert "make peers" in done.stderr
    assert not done.stdout


@pytest.mark.peer
def test_stopped_in_the_middle_it_leaves_nothing_running(modbus_server: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "bench/drivers.py", "--only", "requests"],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    programs: list[int] = []
    deadline = time.monotonic() + 60
    while len(programs) < 2:  # the server and the libmodbus client; gcc runs alone
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.02)
        programs = children(process.pid)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 1, errors
    assert "Traceback" not in errors
    assert not [pid for pid in programs if Path(f"/proc/{pid}").exists()]


def test_a_short_soak() -> None:
    """Twenty disconnects in half an hour of virtual time."""
    done = run("soak", "--disconnects", "20", "--hours", "0.5", "--json")
    figures = json.loads(done.stdout.splitlines()[-1])
    assert done.returncode == 0, done.stdout + done.stderr
    assert figures["disconnects"] == 20
    assert figures["back_max_s"] <= 5.0
