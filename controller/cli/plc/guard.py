"""Whether a controller is at work on this machine: two of us must never write to one PLC."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from controller.cli.connect import SOCKET, SYSTEM_RUN, SYSTEM_STATE
from controller.runtime.instance import InstanceError, InstanceLock, runtime_dir, state_dir

LOCK = "controller.lock"


def running(line: str | None, state: Path | None = None) -> str:
    """Why to believe that a controller runs: for this line, or for any when ``line`` is ``None``; else empty."""
    for name, folder in _folders(line, state):
        if _locked(folder / LOCK):
            return f"line {name} is controlled by a running controller (lock {folder / LOCK})"
        if _listens(folder / SOCKET):
            return f"line {name} is controlled by a running controller (socket {folder / SOCKET})"
    return ""


@contextlib.contextmanager
def kept_out(line: str | None, state: Path | None = None) -> Iterator[str]:
    """While it lasts no controller of this line can start here. Yields why that could not be had, else an empty text.

    Of a PLC that is known by its URL alone nobody knows the line: then this only looks.
    """
    reason = running(line, state)
    if reason or line is None:
        yield reason
        return
    try:
        with InstanceLock(state or state_dir(line), line):
            yield ""
    except InstanceError as error:
        yield str(error)


def _folders(line: str | None, state: Path | None) -> list[tuple[str, Path]]:
    """Where a controller keeps its lock and socket: the folder given, systemd's, this user's."""
    if line is not None:
        found = [state_dir(line), runtime_dir(line), SYSTEM_STATE / line, SYSTEM_RUN / line]
        return [(line, folder) for folder in dict.fromkeys([*([state] if state else []), *found])]
    every: list[tuple[str, Path]] = [(state.name, state)] if state else []
    for base in (state_dir("x").parent, SYSTEM_STATE, SYSTEM_RUN):
        with contextlib.suppress(OSError):  # not there, or not for this user to look into
            every += [(folder.name, folder) for folder in sorted(base.iterdir()) if folder.is_dir()]
    return every


def _locked(path: Path) -> bool:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(fd)
    return False


def _listens(path: Path) -> bool:
    """A socket that somebody accepts connections on; one that we may not connect to counts."""
    if not path.is_socket():
        return False
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except (PermissionError, TimeoutError):
            return True
        except OSError:
            return False
    return True
