"""What the demo runs on: the bench and the controller as processes of their own, and our lines to both.

Everything lies in one private folder, and everything goes through public interfaces: ``hil serve`` with its
control socket, ``run`` with its north socket and its OPC UA gateway.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from controller.cli.processes import Child, Children
from controller.north.client import NorthClient, NorthClosed
from hil.wire import ControlClient, ControlError

BENCH_STOP_S = 4.0
LINE_STOP_S = 5.0
"""Seconds that the controller may take for the orderly stop before it aborts; the whole process gets twice that."""
UP_LIMIT_S = 40.0
"""Seconds until bench and controller must be up; two slow processors included."""
_POLL_S = 0.05


class StageError(Exception):
    """Something did not come up; the text says what and what to look at."""


@dataclass(frozen=True)
class Stage:
    """The running processes, and how to talk to them."""

    client: NorthClient
    control: ControlClient
    journal: Path
    endpoint: str


class Folder:
    """A private folder, removed at the end unless it is to be kept. A context manager."""

    def __init__(self, *, keep: bool) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="linewright-"))
        self._keep = keep

    def __enter__(self) -> Path:
        return self.path

    def __exit__(self, *_: object) -> None:
        if self._keep:
            print(f"kept: {self.path} (logs, journal)", file=sys.stderr)
        else:
            shutil.rmtree(self.path, ignore_errors=True)


def free_endpoint() -> str:
    """An OPC UA endpoint on a loopback port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"opc.tcp://127.0.0.1:{probe.getsockname()[1]}"


@contextlib.asynccontextmanager
async def set_up(children: Children, folder: Path, line: Path, seed: int, endpoint: str) -> AsyncIterator[Stage]:
    """Start bench and controller, and connect to both. Raises :class:`StageError`.

    The processes are the children's to stop; this only closes the connections.
    """
    endpoints, control, state = folder / "endpoints.json", folder / "hil.sock", folder / "state"
    bench = await children.start(
        "bench",
        ["hil", "serve", line.parent.name, f"--seed={seed}", f"--endpoints={endpoints}", f"--control={control}"],
        stop_s=BENCH_STOP_S,
    )
    deadline = time.monotonic() + UP_LIMIT_S
    while not endpoints.exists():
        await _wait(bench, deadline, "the bench does not listen")
    controller = await children.start(
        "controller",
        ["run", str(line), f"--endpoints={endpoints}", f"--state-dir={state}", f"--socket={folder / 'north.sock'}",
         f"--opcua={endpoint}", f"--stop-limit={LINE_STOP_S}"],
        stop_s=2 * LINE_STOP_S,
    )  # fmt: skip
    async with contextlib.AsyncExitStack() as stack:
        while True:
            try:
                client = await stack.enter_async_context(NorthClient(folder / "north.sock"))
                break
            except NorthClosed:
                await _wait(controller, deadline, "the controller does not answer")
        try:
            bench_control = await stack.enter_async_context(ControlClient(control))
        except ControlError as error:
            raise StageError(str(error)) from error
        yield Stage(client, bench_control, state / "journal.db", endpoint)


async def _wait(child: Child, deadline: float, what: str) -> None:
    if child.process.returncode is not None:
        raise StageError(f"{what}: {child.name} {child.how}")
    if time.monotonic() > deadline:
        raise StageError(f"{what} within {UP_LIMIT_S:g} s")
    await asyncio.sleep(_POLL_S)
