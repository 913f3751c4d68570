from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from controller.runtime.instance import InstanceError, InstanceLock, runtime_dir, state_dir


def test_directories_come_from_systemd_or_the_user() -> None:
    environ = {"STATE_DIRECTORY": "/var/lib/a:/var/lib/b", "RUNTIME_DIRECTORY": "/run/a", "HOME": "/home/u"}
    assert state_dir("l1", environ) == Path("/var/lib/a")
    assert runtime_dir("l1", environ) == Path("/run/a")
    assert state_dir("l1", {"HOME": "/home/u"}) == Path("/home/u/.local/state/linewright/l1")
    assert state_dir("l1", {"HOME": "/home/u", "XDG_STATE_HOME": "/x"}) == Path("/x/linewright/l1")
    assert runtime_dir("l1", {"HOME": "/home/u"}) == Path("/home/u/.local/state/linewright/l1")
    assert runtime_dir("l1", {"STATE_DIRECTORY": "/s"}) == Path("/s")


def test_a_second_one_is_kept_out_and_told_by_whom(tmp_path: Path) -> None:
    with InstanceLock(tmp_path / "state", "l1") as lock:
        assert lock.path.read_text() == f"{os.getpid()}\n"
        with (
            pytest.raises(InstanceError, match=rf"line l1 is already controlled by process {os.getpid()} "),
            InstanceLock(tmp_path / "state", "l1"),
        ):
            pass
        with InstanceLock(tmp_path / "other", "l2"):
            pass  # another line is another matter
    with InstanceLock(tmp_path / "state", "l1"):
        pass


def test_the_lock_ends_with_the_process_however_it_dies(tmp_path: Path) -> None:
    code = (
        "import pathlib, sys, time\n"
        "from controller.runtime.instance import InstanceLock\n"
        "with InstanceLock(pathlib.Path(sys.argv[1]), 'l1'):\n"
        "    print('locked', flush=True)\n"
        "    time.sleep(60)\n"
    )
    argv = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "locked\n"
        with pytest.raises(InstanceError, match=f"process {process.pid}"), InstanceLock(tmp_path, "l1"):
            pass
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        with InstanceLock(tmp_path, "l1"):
            pass


def test_a_child_process_does_not_inherit_the_lock(tmp_path: Path) -> None:
    with InstanceLock(tmp_path, "l1"):
        argv = [sys.executable, "-c", "print('up', flush=True); input()"]
        child = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, close_fds=False)
        assert child.stdout is not None
        assert child.stdout.readline() == b"up\n"
    try:
        with InstanceLock(tmp_path, "l1"):
            pass
    finally:
        child.kill()
        child.communicate()


def test_a_directory_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InstanceError, match="cannot be used"), InstanceLock(tmp_path / "file" / "state", "l1"):
        pass
