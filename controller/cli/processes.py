"""Child processes that never outlive us, with their logs kept where they can be shown.

Each child leads a session of its own, so that Ctrl-C reaches us alone and we stop the children in order. What a
child leaves behind when it is killed is handed to us by the kernel (we are its *subreaper*) and ended as well.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
KILL_LIMIT_S = 5.0
TAIL = 25
"""Lines of a child's log that are shown when something failed."""


class ChildDied(Exception):
    """A child ended by itself; the text says which and how."""


@dataclass
class Child:
    """One child. ``stop_s`` is what it gets between SIGTERM and SIGKILL."""

    name: str
    process: asyncio.subprocess.Process
    log: Path
    stop_s: float

    @property
    def how(self) -> str:
        """How it ended."""
        code = self.process.returncode
        if code is None:
            return "runs"
        return f"ended with exit code {code}" if code >= 0 else f"was ended by {signal.Signals(-code).name}"


class Children:
    """Starts children that log into ``folder``; on exit all of them are stopped, the last one first."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._children: list[Child] = []
        self._others: set[int] = set()
        """Children of this process that are not ours to end."""

    async def __aenter__(self) -> Self:
        self._others = set(_orphans(set()))
        _prctl(_PR_SET_CHILD_SUBREAPER, 1)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            for child in reversed(self._children):
                await _stop(child)
        finally:
            self.kill()

    async def start(self, name: str, argv: Sequence[str], *, stop_s: float) -> Child:
        """Run ``linewright`` with these arguments as a child."""
        log = self._folder / f"{name}.log"
        with log.open("ab") as out:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "controller.cli", *argv,
                stdin=asyncio.subprocess.DEVNULL, stdout=out, stderr=out,
                start_new_session=True, env={**os.environ, "LINEWRIGHT_PARENT": str(os.getpid())},
            )  # fmt: skip
        child = Child(name, process, log, stop_s)
        self._children.append(child)
        return child

    async def watch(self) -> None:
        """Until cancelled; raises :class:`ChildDied` as soon as one ends by itself."""
        waiting = {asyncio.create_task(child.process.wait()): child for child in self._children}
        try:
            done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in waiting:
                task.cancel()
            await asyncio.wait(waiting)
        child = waiting[done.pop()]
        raise ChildDied(f"{child.name} {child.how} while it was needed")

    def tails(self) -> str:
        """The ends of all logs, for the report of a failure."""
        parts = []
        for child in self._children:
            lines = child.log.read_text(encoding="utf-8", errors="replace").splitlines()
            parts.append(f"--- {child.log} ({child.how}), last {min(TAIL, len(lines))} of {len(lines)} lines")
            parts += lines[-TAIL:]
        return "\n".join(parts)

    def kill(self) -> None:
        """End at once whatever is left, children's children included. Blocks for a moment if there is something."""
        left = [child.process.pid for child in self._children if child.process.returncode is None]
        for pid in left:
            _signal_group(pid, signal.SIGKILL)
        # What a child leaves behind becomes ours only when it has ended.
        end = time.monotonic() + KILL_LIMIT_S
        while any(map(_lives, left)) and time.monotonic() < end:
            time.sleep(0.01)
        known = self._others | {child.process.pid for child in self._children}
        while (orphans := _orphans(known)) and time.monotonic() < end:
            for pid in orphans:
                _signal_group(pid, signal.SIGKILL)
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(pid, 0)
        _prctl(_PR_SET_CHILD_SUBREAPER, 0)


async def _stop(child: Child) -> None:
    if child.process.returncode is None:
        _signal_group(child.process.pid, signal.SIGTERM)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(child.stop_s):
                await child.process.wait()
    if child.process.returncode is None:
        _signal_group(child.process.pid, signal.SIGKILL)
    await child.process.wait()


def end_with_parent() -> None:
    """For a child: get SIGTERM when the process that started us dies, however it dies.

    Only when that process asked for it (``LINEWRIGHT_PARENT``); raises :class:`SystemExit` when it is gone already.
    """
    parent = os.environ.pop("LINEWRIGHT_PARENT", "")
    if not parent:
        return
    _prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != int(parent):
        sys.exit(1)


def _prctl(option: int, value: int) -> None:
    """prctl(2); elsewhere than on Linux there is none, and the orderly ways have to do."""
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(option, value, 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "prctl failed")


def _lives(pid: int) -> bool:
    """Whether the process runs; one that ended and is not waited for yet does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _orphans(known: set[int]) -> list[int]:
    """Processes that were left to us, besides the children that we started ourselves.

    Read from every process's own entry: the kernel's list of children may leave some out while others end.
    """
    ours = str(os.getpid())
    found: list[int] = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            if entry.read_text().rpartition(")")[2].split()[1] == ours:
                found.append(int(entry.parent.name))
    return [pid for pid in found if pid not in known]


def _signal_group(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, number)
