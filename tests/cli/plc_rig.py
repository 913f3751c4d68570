"""Real servers in a thread of their own: the commands run their own event loop in this one."""

from __future__ import annotations

import asyncio
import os
import pty
import select
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Coroutine
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, TypeVar

S = TypeVar("S")
CLI = [sys.executable, "-m", "controller.cli"]
IDENTITY = {0: b"Maker", 1: b"P-100", 2: b"v2.1", 4: b"Pump drive", 128: b"own"}


class Served(Generic[S]):
    """``with Served(lambda: TcpServer(3)) as served:`` — the server is ``served.server``."""

    def __init__(self, make: Callable[[], AbstractAsyncContextManager[S]]) -> None:
        self._make = make
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="served")
        self._context: AbstractAsyncContextManager[S]

    def do(self, job: Coroutine[Any, Any, Any]) -> Any:
        """Run this in the server's loop."""
        return asyncio.run_coroutine_threadsafe(job, self._loop).result(20)

    def __enter__(self) -> Served[S]:
        self._thread.start()
        self.server: S = self.do(self._enter())
        return self

    async def _enter(self) -> S:
        self._context = self._make()
        return await self._context.__aenter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.do(self._context.__aexit__(None, None, None))
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(20)
        self._loop.close()


def identifies(answer: Callable[[bytes], bytes]) -> Callable[[bytes], bytes]:
    """A memory's ``answer`` that also knows functions 17 and 43/14, the latter two objects at a time."""

    def with_identity(pdu: bytes) -> bytes:
        if pdu == b"\x11":
            return b"\x11\x05PLC7\xff"
        if pdu[:2] != b"\x2b\x0e":
            return answer(pdu)
        numbers = [n for n in IDENTITY if n >= pdu[3]]
        now, later = numbers[:2], numbers[2:]
        objects = b"".join(bytes((n, len(IDENTITY[n]))) + IDENTITY[n] for n in now)
        more = bytes((0xFF, later[0])) if later else b"\0\0"
        return b"\x2b\x0e" + pdu[2:3] + b"\x83" + more + bytes((len(now),)) + objects

    return with_identity


class Terminal:
    """A command on a terminal of its own."""

    def __init__(self, *argv: object, width: int = 80, env: dict[str, str] | None = None) -> None:
        self._ours, theirs = pty.openpty()
        environ = {**os.environ, "COLUMNS": str(width), "LINES": "40", "TERM": "xterm", **(env or {})}
        self.process = subprocess.Popen(
            [*CLI, *map(str, argv)], stdin=theirs, stdout=theirs, stderr=theirs, env=environ, start_new_session=True
        )
        os.close(theirs)
        self.seen = ""

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._ours)

    def until(self, text: str, limit_s: float = 20.0) -> str:
        """Read until this was seen; returns everything since the last call."""
        end, since = time.monotonic() + limit_s, len(self.seen)
        while text not in self.seen[since:]:
            assert time.monotonic() < end, f"no {text!r} in {self.seen!r}"
            if not self._read(0.2) and self.process.poll() is not None:
                raise AssertionError(f"ended without {text!r}: {self.seen!r}")
        return self.seen[since:]

    def type(self, text: str) -> None:
        """What a person types."""
        os.write(self._ours, text.encode())

    def end(self, limit_s: float = 20.0) -> int:
        """Read to the end; the exit code."""
        end = time.monotonic() + limit_s
        while self.process.poll() is None:
            assert time.monotonic() < end, f"does not end: {self.seen!r}"
            self._read(0.1)
        while self._read(0.0):
            pass
        return self.process.returncode

    def _read(self, wait_s: float) -> bool:
        if not select.select([self._ours], [], [], wait_s)[0]:
            return False
        try:
            data = os.read(self._ours, 65536)
        except OSError:  # the other end is closed
            return False
        self.seen += data.decode(errors="replace")
        return bool(data)


def endpoints(folder: Path, text: str) -> Path:
    """An endpoints file."""
    path = folder / "endpoints.json"
    path.write_text(text, encoding="utf-8")
    return path
