"""The programs of others that we are compared with and tested against: found, compiled, run and ended.

``make peers`` installs what they need. A program here talks in lines over its standard input and output, and ends when
its input does, so that none outlives us even if we are killed.
"""

from __future__ import annotations

import os
import select
import shutil
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

HERE = Path(__file__).resolve().parent
REMEDY = "run: make peers"


class PeerMissing(Exception):
    """A program or library that is not installed. The text names it, and the command that installs it."""


def tool(name: str) -> str:
    """The full path of a program. Raises :class:`PeerMissing`."""
    path = shutil.which(name)
    if path is None:
        raise PeerMissing(f"{name} is not installed; {REMEDY}")
    return path


def compile_peer(name: str, folder: Path) -> Path:
    """Compile ``name``.c, with libmodbus where it uses it, into ``folder``. Raises :class:`PeerMissing`.

    Raises ``RuntimeError`` with the compiler's words when the source is at fault.
    """
    source, program = HERE / f"{name}.c", folder / name
    flags: list[str] = []
    if "#include <modbus.h>" in source.read_text(encoding="utf-8"):
        asked = [tool("pkg-config"), "--cflags", "--libs", "libmodbus"]
        found = subprocess.run(asked, capture_output=True, text=True, timeout=20, check=False)
        if found.returncode:
            raise PeerMissing(f"libmodbus-dev is not installed; {REMEDY}")
        flags = found.stdout.split()
    command = [tool("gcc"), "-O2", "-Wall", "-Wextra", "-Werror", "-o", str(program), str(source), *flags]
    made = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    if made.returncode:
        raise RuntimeError(f"{source} does not compile:\n{made.stderr}")
    return program


class Peer:
    """A running program. Use it as a context manager: at the end its input is closed, and it is waited for.

    ``core`` is the processor core it is to run on; without one it runs where ours may.
    """

    def __init__(self, command: Sequence[str | Path], *, cwd: Path | None = None, core: int | None = None) -> None:
        self.name = Path(command[0]).name
        self._process = subprocess.Popen(
            [str(word) for word in command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0, cwd=cwd
        )
        if core is not None:
            os.sched_setaffinity(self._process.pid, {core})
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._in, self._out = self._process.stdin, self._process.stdout
        self._buffer = b""

    def __enter__(self) -> Peer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def line(self, timeout_s: float = 20.0) -> str:
        """The next line that it prints. Raises ``RuntimeError`` when it ends or says nothing in time."""
        deadline = time.monotonic() + timeout_s
        while b"\n" not in self._buffer:
            ready, _, _ = select.select([self._out], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                raise RuntimeError(f"{self.name} said nothing for {timeout_s:g} s")
            data = os.read(self._out.fileno(), 65536)
            if not data:
                raise RuntimeError(f"{self.name} ended with {self._process.wait(5)}")
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line.decode()

    def ask(self, text: str, timeout_s: float = 20.0) -> str:
        """Give it a line, and take the line that it answers."""
        self._in.write(text.encode() + b"\n")
        return self.line(timeout_s)

    def port(self) -> int:
        """The port it listens on, from its first line ``port N``."""
        word, _, number = self.line().partition(" ")
        assert word == "port", f"{self.name} said {word!r} instead of its port"
        return int(number)

    def cpu_s(self) -> float:
        """Processor time that it has taken so far, s (Linux)."""
        return int(Path(f"/proc/{self._process.pid}/schedstat").read_text(encoding="ascii").split()[0]) / 1e9

    def close(self) -> None:
        """End it: by closing its input, and by force where that does not help."""
        self._in.close()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        finally:
            self._out.close()
