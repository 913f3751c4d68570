from __future__ import annotations

import asyncio
import contextlib
import io
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog

from controller.core.commands import Command, Reply
from controller.runtime.clock import SystemClock
from controller.runtime.log import LogStream, configure_logging
from controller.runtime.scan_loop import ScanFailed
from controller.runtime.service import (
    EXIT_OK,
    EXIT_PART_DIED,
    EXIT_SCAN_FAILED,
    GatewaySpec,
    Notifier,
    Service,
    Supervisor,
)


class Manager:
    """A service manager's end of $NOTIFY_SOCKET."""

    def __init__(self, address: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(address)
        self.socket.setblocking(False)

    def heard(self) -> list[str]:
        words = []
        with contextlib.suppress(BlockingIOError):
            while True:
                words.append(self.socket.recv(4096).decode())
        return words


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Manager, str]]:
    name = f"linewright-test-{os.getpid()}-{time.monotonic_ns()}"
    path = str(tmp_path / "notify")
    manager = Manager(path if request.param == "path" else "\0" + name)
    yield manager, path if request.param == "path" else "@" + name
    manager.socket.close()


class TestNotifier:
    def test_ready_and_watchdog_come_from_scans(self, manager: tuple[Manager, str]) -> None:
        listener, address = manager
        environ = {"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "4000000", "WATCHDOG_PID": str(os.getpid())}
        notifier = Notifier(environ)
        assert listener.heard() == []
        begin = 5_000_000_000
        words: list[str] = []
        for n in range(101):  # ten seconds at 100 ms
            notifier.completed(begin + n * 100_000_000)
            words += listener.heard()
        assert words[0] == "READY=1"
        assert words.count("READY=1") == 1
        assert words.count("WATCHDOG=1") == 11  # once a second for a limit of four
        notifier.status("two\nlines")
        notifier.stopping()
        assert listener.heard() == ["STATUS=two lines", "STOPPING=1"]
        notifier.close()
        notifier.close()
        notifier.status("nobody")

    def test_a_ready_that_does_not_get_through_is_said_again(self, manager: tuple[Manager, str]) -> None:
        listener, address = manager
        notifier = Notifier({"NOTIFY_SOCKET": address})
        for n in range(100):  # more than a manager's socket holds
            notifier.status(f"{n}")
        notifier.completed(1)
        assert "READY=1" not in listener.heard()
        notifier.completed(2)
        notifier.completed(3)
        notifier.close()
        assert listener.heard() == ["READY=1"]

    def test_a_watchdog_meant_for_another_process_is_not_fed(self, manager: tuple[Manager, str]) -> None:
        listener, address = manager
        notifier = Notifier({"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "4000000", "WATCHDOG_PID": "1"})
        notifier.completed(1)
        notifier.close()
        assert listener.heard() == ["READY=1"]

    def test_without_a_manager_nothing_happens(self, tmp_path: Path) -> None:
        for environ in ({}, {"NOTIFY_SOCKET": str(tmp_path / "gone")}, {"NOTIFY_SOCKET": "nonsense"}):
            notifier = Notifier(environ)
            notifier.completed(1)
            notifier.stopping()
            notifier.close()


class FakeScan:
    """A scan that comes every few milliseconds, and a line that stops after ``stops_after`` scans."""

    def __init__(self, stops_after: int | None = 3) -> None:
        self.stops_after = stops_after
        self.commands: list[Command] = []
        self.log: list[str] = []
        self.scans = 0
        self.stop_at: int | None = None
        self.fails = False
        self._waiters: list[asyncio.Future[None]] = []

    async def run(self) -> None:
        try:
            while True:
                await asyncio.sleep(0.002)
                if self.fails:
                    raise ScanFailed("broken")
                self.scans += 1
                for waiter in self._waiters:
                    if not waiter.done():
                        waiter.set_result(None)
                self._waiters.clear()
        finally:
            self.log.append("scan ended")

    async def completed(self) -> None:
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        await waiter

    def submit(self, command: Command) -> Reply | None:
        self.commands.append(command)
        if self.stops_after is not None and self.stop_at is None:
            self.stop_at = self.scans + self.stops_after
        return None

    def at_rest(self) -> bool:
        return self.stop_at is not None and self.scans >= self.stop_at

    def note(self, text: str) -> None:
        self.log.append(f"note: {text}")

    def make_safe(self) -> None:
        self.log.append("safe")

    async def write_safe(self, timeout_s: float) -> int:
        self.log.append("safe written")
        return 0


class FakeJournal:
    def __init__(self, scan: FakeScan) -> None:
        self._scan = scan

    async def close(self, timeout_s: float) -> int:
        self._scan.log.append("journal closed")
        return 0


class Rig:
    def __init__(self, scan: FakeScan, **options: float) -> None:
        self.scan = scan
        self.part_error: Exception | None = None
        self.part_ends = False
        self.service = Service(
            scan=scan,
            run_scan=scan.run,
            parts={"links": self._part, "north": self._part},
            at_rest=scan.at_rest,
            journal=FakeJournal(scan),
            notifier=Notifier({}),
            **options,
        )

    async def _part(self) -> None:
        try:
            while not self.part_ends:
                await asyncio.sleep(0.002)
                if self.part_error is not None:
                    raise self.part_error
        finally:
            self.scan.log.append("part closed")

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[asyncio.Task[int]]:
        task = asyncio.create_task(self.service.run())
        await self.scan.completed()
        yield task
        async with asyncio.timeout(10):
            await task


END = ["scan ended", "safe", "safe written", "journal closed", "part closed", "part closed"]


class TestService:
    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
    async def test_a_signal_stops_the_line_in_order(self, number: signal.Signals) -> None:
        scan = FakeScan()
        async with Rig(scan).running() as task:
            os.kill(os.getpid(), number)
        assert task.result() == EXIT_OK
        assert [(c.name, c.target, c.user) for c in scan.commands] == [("stop", "line", "system")]
        assert scan.log == ["note: the controller ends", *END]

    async def test_it_waits_for_the_line_and_not_longer_than_the_limit(self) -> None:
        scan = FakeScan(stops_after=None)
        begin = time.monotonic()
        async with Rig(scan, stop_limit_s=0.3).running() as task:
            os.kill(os.getpid(), signal.SIGTERM)
        assert 0.3 <= time.monotonic() - begin < 2.0
        assert task.result() == EXIT_OK
        assert [c.name for c in scan.commands] == ["stop", "abort"]
        assert "did not come to rest within 0.3 s" in scan.log[0]

    async def test_a_second_signal_aborts_at_once(self) -> None:
        scan = FakeScan(stops_after=None)
        begin = time.monotonic()
        async with Rig(scan, stop_limit_s=60).running() as task:
            os.kill(os.getpid(), signal.SIGTERM)
            await scan.completed()
            await scan.completed()
            assert not task.done()
            os.kill(os.getpid(), signal.SIGINT)
        assert time.monotonic() - begin < 2.0
        assert [c.name for c in scan.commands] == ["stop", "abort"]
        assert scan.log[-6:] == END

    async def test_two_signals_together_too(self) -> None:
        scan = FakeScan(stops_after=None)
        async with Rig(scan, stop_limit_s=60).running():
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGINT)
        assert [c.name for c in scan.commands] == ["stop", "abort"]

    async def test_a_scan_that_fails_ends_the_process_with_safe_outputs(self) -> None:
        scan = FakeScan()
        async with Rig(scan).running() as task:
            scan.fails = True
        assert task.result() == EXIT_SCAN_FAILED
        assert scan.log == END
        assert scan.commands == []

    async def test_a_part_that_dies_or_ends_by_itself_ends_the_process(self) -> None:
        for how in ("dies", "ends"):
            scan = FakeScan()
            rig = Rig(scan)
            async with rig.running() as task:
                rig.part_error = RuntimeError("a poller died") if how == "dies" else None
                rig.part_ends = how == "ends"
            assert task.result() == EXIT_PART_DIED
            assert sorted(scan.log) == sorted(END)
            assert scan.log.index("scan ended") < scan.log.index("safe") < scan.log.index("safe written")

    async def test_a_part_that_dies_during_the_stop_does_not_hang_it(self) -> None:
        scan = FakeScan(stops_after=None)
        rig = Rig(scan, stop_limit_s=60)
        async with rig.running() as task:
            rig.service.ask_to_stop("test")
            await scan.completed()
            rig.part_error = RuntimeError("late")
        assert task.result() == EXIT_PART_DIED
        assert "safe written" in scan.log

    async def test_cancelling_it_still_makes_the_outputs_safe(self) -> None:
        scan = FakeScan()
        task = asyncio.create_task(Rig(scan).service.run())
        await scan.completed()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert "safe" in scan.log


async def until(condition: Callable[[], object], limit_s: float = 10.0) -> None:
    async with asyncio.timeout(limit_s):
        while not condition():  # noqa: ASYNC110 - of another process
            await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def run_task(work: Coroutine[Any, Any, None]) -> AsyncIterator[asyncio.Task[None]]:
    task = asyncio.create_task(work)
    try:
        yield task
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


class TestSupervisor:
    async def test_a_gateway_that_dies_is_started_again_and_noted(self) -> None:
        notes: list[str] = []
        spec = GatewaySpec("opcua", python("import time; time.sleep(60)"))
        supervisor = Supervisor([spec], notes.append, SystemClock(), first_s=0.01)
        async with run_task(supervisor.run()):
            await until(lambda: supervisor.pids)
            first = supervisor.pids["opcua"]
            os.kill(first, signal.SIGKILL)
            await until(lambda: supervisor.pids.get("opcua", first) != first)
            second = supervisor.pids["opcua"]
            assert alive(second)
        assert not alive(second)
        assert supervisor.restarts == {"opcua": 1}
        assert notes == ["gateway opcua was ended by SIGKILL; it is started again in 0.01 s (number 1)"]

    async def test_the_pause_grows_and_is_bounded(self) -> None:
        notes: list[str] = []
        spec = GatewaySpec("bad", python("raise SystemExit(3)"))
        supervisor = Supervisor([spec], notes.append, SystemClock(), first_s=0.01, max_s=0.03)
        async with run_task(supervisor.run()):
            await until(lambda: len(notes) >= 4)
        pauses = [n.split("again in ")[1].split(" s")[0] for n in notes]
        assert pauses[:4] == ["0.01", "0.02", "0.03", "0.03"]
        assert "exit code 3" in notes[0]

    async def test_one_that_cannot_be_started_disturbs_no_other(self) -> None:
        notes: list[str] = []
        specs = [
            GatewaySpec("none", ["/nonexistent/program"]),
            GatewaySpec("good", python("import time; time.sleep(60)")),
        ]
        supervisor = Supervisor(specs, notes.append, SystemClock(), first_s=0.01)
        async with run_task(supervisor.run()):
            await until(lambda: supervisor.pids and notes)
            assert alive(supervisor.pids["good"])
        assert "could not be started" in notes[0]
        assert supervisor.restarts["good"] == 0

    async def test_one_that_ignores_sigterm_is_killed_with_its_children(self, tmp_path: Path) -> None:
        pidfile = tmp_path / "pid"
        code = (
            "import os, pathlib, signal, subprocess, sys, time\n"
            "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
            "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
            f"pathlib.Path({str(pidfile)!r} + '.new').write_text(str(child.pid))\n"
            f"os.rename({str(pidfile)!r} + '.new', {str(pidfile)!r})\n"
            "time.sleep(60)\n"
        )
        supervisor = Supervisor([GatewaySpec("deaf", python(code))], print, SystemClock(), kill_s=0.1)
        async with run_task(supervisor.run()):
            await until(pidfile.exists)
            pid = supervisor.pids["deaf"]
            child = int(await asyncio.to_thread(pidfile.read_text))
        assert not alive(pid)
        await until(lambda: not _running(child))

    async def test_the_environment_without_the_managers_words(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("NOTIFY_SOCKET", "/x")
        monkeypatch.setenv("WATCHDOG_USEC", "1")
        out = tmp_path / "env"
        code = (
            "import json, os, pathlib, time\n"
            f"pathlib.Path({str(out)!r}).write_text(json.dumps(dict(os.environ)) + '!')\n"
            "time.sleep(60)\n"
        )
        supervisor = Supervisor([GatewaySpec("env", python(code), {"EXTRA": "1"})], print, SystemClock())
        async with run_task(supervisor.run()):
            await until(lambda: out.exists() and out.read_text().endswith("!"))
        environ = json.loads((await asyncio.to_thread(out.read_text))[:-1])
        assert environ["EXTRA"] == "1"
        assert "NOTIFY_SOCKET" not in environ and "WATCHDOG_USEC" not in environ

    async def test_without_gateways_it_just_waits(self) -> None:
        async with run_task(Supervisor([], print, SystemClock()).run()) as task:
            await asyncio.sleep(0.02)
            assert not task.done()


def _running(pid: int) -> bool:
    """Whether a process runs; a zombie that nobody waits for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().split(")")[-1].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.fixture
def clean_logging() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    structlog.reset_defaults()
    root.handlers[:] = handlers
    root.setLevel(level)


class Blocked(io.StringIO):
    """A terminal that takes nothing until it is released."""

    def __init__(self) -> None:
        super().__init__()
        self.released = threading.Event()

    def write(self, text: str) -> int:
        self.released.wait(10)
        return super().write(text)


class TestLog:
    def test_json_lines_for_machines_also_from_libraries(self, clean_logging: None) -> None:
        target = io.StringIO()
        stream = configure_logging("info", target)
        structlog.get_logger("x").info("hello", station="filler", value=1)
        structlog.get_logger("x").debug("not this")
        try:
            1 // 0  # noqa: B018
        except ZeroDivisionError:
            structlog.get_logger("x").exception("bad")
        logging.getLogger("asyncua").warning("from a library: %s", 7)
        logging.getLogger("asyncua").info("not this")
        stream.close()
        lines = [json.loads(line) for line in target.getvalue().splitlines()]
        assert [x["event"] for x in lines] == ["hello", "bad", "from a library: 7"]
        assert (lines[0]["level"], lines[0]["station"], lines[0]["value"]) == ("info", "filler", 1)
        assert "ZeroDivisionError" in lines[1]["exception"]
        assert lines[0]["timestamp"].endswith("Z")

    def test_a_blocked_terminal_blocks_nobody_and_drops_are_told(self) -> None:
        target = Blocked()
        stream = LogStream(target, limit=10)
        begin = time.monotonic()
        for n in range(100):
            stream.write(f"line {n}\n")
        assert time.monotonic() - begin < 1.0
        assert stream.dropped >= 89
        target.released.set()
        stream.close()
        assert f"{stream.dropped} log lines were dropped here" in target.getvalue()
        assert "line 0\n" in target.getvalue()


def test_the_modules_ask_for_no_root_and_import_quickly() -> None:
    code = "import controller.runtime.service, controller.runtime.journal, controller.north.client"
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, timeout=20)
