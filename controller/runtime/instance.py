"""One controller per line: where it keeps its state, and the lock that keeps a second one out.

The lock is ``flock`` on a file in the state directory, so it ends with the process, however that dies, and is
taken before the journal is opened or a PLC is spoken to.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType


class InstanceError(Exception):
    """This line is controlled by another process already, or its state directory cannot be used."""


def state_dir(line: str, environ: Mapping[str, str] = os.environ) -> Path:
    """Where the line's journal and lock live: ``$STATE_DIRECTORY`` (systemd), else below the user's own state."""
    given = environ.get("STATE_DIRECTORY", "").split(":")[0]
    if given:
        return Path(given)
    base = environ.get("XDG_STATE_HOME") or str(Path(environ.get("HOME") or "~").expanduser() / ".local/state")
    return Path(base) / "linewright" / line


def runtime_dir(line: str, environ: Mapping[str, str] = os.environ) -> Path:
    """Where the line's sockets live: ``$RUNTIME_DIRECTORY`` (systemd), else the state directory."""
    given = environ.get("RUNTIME_DIRECTORY", "").split(":")[0]
    return Path(given) if given else state_dir(line, environ)


class InstanceLock:
    """Held from entry to exit, or to the end of the process. Raises :class:`InstanceError` on entry."""

    def __init__(self, directory: Path, line: str) -> None:
        self.path = directory / "controller.lock"
        self._line = line
        self._fd = -1

    def __enter__(self) -> InstanceLock:
        try:
            self.path.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
            fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
        except OSError as exc:
            raise InstanceError(
                f"{self.path}: the state directory of line {self._line} cannot be used: {exc}; "
                "make it writable for this user, or name another with STATE_DIRECTORY"
            ) from exc
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(fd, 0)
            os.write(fd, f"{os.getpid()}\n".encode())
        except BlockingIOError:
            holder = os.pread(fd, 32, 0).decode("ascii", "replace").strip()
            os.close(fd)
            raise InstanceError(
                f"line {self._line} is already controlled by process {holder or 'unknown'} (lock {self.path}); "
                "two controllers must never write to the same PLCs: stop that one first"
            ) from None
        except OSError as exc:
            os.close(fd)
            raise InstanceError(f"{self.path}: cannot be locked: {exc}; the disk may be full or remote") from exc
        self._fd = fd
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        # The file stays: removing it would let two processes lock two files of the same name.
        os.close(self._fd)
        self._fd = -1
