"""A real line for the command line to talk to: the bench's logic behind a real north socket, in a thread."""

from __future__ import annotations

import asyncio
import logging
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import structlog
from typer.testing import CliRunner

from controller.cli.commands import app
from controller.core.commands import Command, Reply
from controller.north.publisher import Publisher
from controller.north.server import NorthServer
from controller.north.view import LineView
from hil.bench import Bench

STEP_S = 0.004
"""Real seconds per scan of 100 ms: the line runs about twenty times as fast."""


@pytest.fixture(autouse=True)
def quiet_log() -> Iterator[None]:
    """The served line's log would go to the stdout that is being looked at."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    yield
    structlog.reset_defaults()


@dataclass
class Result:
    """How a command ended."""

    code: int
    out: str
    err: str


Run = Callable[..., Result]


@pytest.fixture(scope="session")
def cli() -> Run:
    runner = CliRunner()

    def invoke(*argv: object) -> Result:
        result = runner.invoke(app, [str(a) for a in argv])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return Result(result.exit_code, result.stdout, result.stderr)

    return invoke


class ServedLine:
    """The bottling line on the bench, published on a socket; commands from there go into its scan."""

    def __init__(self, socket: Path) -> None:
        self.socket = socket
        self.bench = Bench("bottling", 7)
        view = LineView(self.bench.logic)
        hello = view.hello(version="test", config_hash=self.bench.config.config_hash, description="a test line")
        self._view = view
        self._ids: dict[str, str] = {}
        self._seq = 0
        self._publisher = Publisher(hello, self._submit, lambda: self.bench.now_ns)
        self._ready, self._stop = threading.Event(), threading.Event()
        self.failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run)

    def _submit(self, command: Command) -> Reply | None:
        self.bench.command(command.target, command.name, command.user, **command.args)
        self._ids[str(len(self._ids) + 1)] = command.id
        return None

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except Exception as error:
            self.failure = error
            self._ready.set()

    async def _serve(self) -> None:
        async with NorthServer(self._publisher, self.socket):
            while not self._stop.is_set():
                self.scan()
                self._ready.set()
                await asyncio.sleep(STEP_S)

    def scan(self) -> None:
        result = self.bench.step()
        if result.events:
            self._publisher.events(self._seq + 1, result.events)
            self._seq += len(result.events)
        values, bad = self._view.collect()
        self._publisher.publish(values, bad, self.bench.now_ns)
        for reply in result.replies:
            self._publisher.answer(Reply(id=self._ids[reply.id], accepted=reply.accepted, reason=reply.reason))

    def __enter__(self) -> ServedLine:
        self._thread.start()
        assert self._ready.wait(20)
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(20)
        assert not self._thread.is_alive()
        assert self.failure is None, self.failure


@pytest.fixture
def line() -> Iterator[ServedLine]:
    with tempfile.TemporaryDirectory(prefix="lw-") as folder, ServedLine(Path(folder) / "north.sock") as served:
        yield served
