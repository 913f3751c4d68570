"""Children of the command line: noticed when they die, gone when we are."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from controller.cli.processes import ChildDied, Children


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def gone(pid: int, limit_s: float = 10.0) -> bool:
    end = time.monotonic() + limit_s
    while alive(pid):
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


async def test_a_child_that_ends_is_noticed_and_its_log_shown(tmp_path: Path) -> None:
    children = Children(tmp_path)
    async with children:
        await children.start("short", ["check", "/none/line.yaml"], stop_s=1)
        async with asyncio.timeout(20):
            with pytest.raises(ChildDied, match="short ended with exit code 2"):
                await children.watch()
    assert "/none/line.yaml: there is no such file" in children.tails()


async def test_children_are_stopped_when_the_block_is_left(tmp_path: Path) -> None:
    children = Children(tmp_path)
    with pytest.raises(RuntimeError, match="something else failed"):
        async with children:
            child = await children.start(
                "bench", ["hil", "serve", "bottling", f"--control={tmp_path / 's'}"], stop_s=10
            )
            end = time.monotonic() + 30
            while not (tmp_path / "s").exists():
                assert time.monotonic() < end, children.tails()
                await asyncio.sleep(0.05)
            raise RuntimeError("something else failed")
    assert child.process.returncode == 0, "SIGTERM does not end it in order"
    assert not alive(child.process.pid)
    assert not (tmp_path / "s").exists()


ORPHAN = """
import asyncio, subprocess, sys
from pathlib import Path
from controller.cli.processes import Children

async def main():
    async with Children(Path(sys.argv[1])):
        shell = await asyncio.create_subprocess_exec(
            "sh", "-c", "setsid sleep 300 >/dev/null & echo $!", stdout=asyncio.subprocess.PIPE)
        out, _ = await shell.communicate()
        print(int(out), flush=True)

asyncio.run(main())
"""


def test_what_a_dead_child_left_behind_is_ended_too(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", ORPHAN, str(tmp_path)], capture_output=True, text=True, timeout=30, check=True
    )
    pid = int(done.stdout)
    try:
        assert gone(pid), "the orphan is still there"
    finally:
        if alive(pid):
            os.kill(pid, signal.SIGKILL)


PARENT = """
import asyncio, sys
from pathlib import Path
from controller.cli.processes import Children

async def main():
    folder = Path(sys.argv[1])
    async with Children(folder) as children:
        child = await children.start("bench", ["hil", "serve", "bottling", f"--control={folder / 's'}"], stop_s=5)
        while not (folder / "s").exists():
            await asyncio.sleep(0.05)
        print(child.process.pid, flush=True)
        await asyncio.sleep(60)

asyncio.run(main())
"""


def test_a_child_ends_when_its_parent_is_killed(tmp_path: Path) -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert alive(pid)
        parent.kill()
        assert gone(pid), "the child outlived its parent"
    finally:
        parent.kill()
        parent.communicate(timeout=10)
