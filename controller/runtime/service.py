"""The life of the process: service manager, signals, orderly stop, gateway processes.

The first SIGTERM, SIGINT or SIGHUP asks the line to stop in order and waits for it to come to rest; the second
aborts. Then, and also when any part of the program dies, the outputs are made safe, the record is flushed and
the links are closed. A part that dies always ends the process: there is no such thing as half a controller.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import uuid
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import structlog

from controller.core.commands import LINE, Command, Reply
from controller.runtime.clock import Clock
from controller.runtime.scan_loop import ScanFailed

EXIT_OK = 0
EXIT_PART_DIED = 1
EXIT_SCAN_FAILED = 70
"""EX_SOFTWARE of sysexits(3): a fault of this program."""
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
Part = Callable[[], Coroutine[Any, Any, None]]
_log = structlog.get_logger("service")


# -------------------------------------------------------------------------------------------- service manager


class Notifier:
    """Speaks sd_notify(3) to systemd; without ``$NOTIFY_SOCKET`` it does nothing.

    :meth:`completed` is for completed scans only: the first makes the service ready, and from then on they feed
    the watchdog (``$WATCHDOG_USEC``), four times per period.
    """

    def __init__(self, environ: Mapping[str, str] = os.environ) -> None:
        address = environ.get("NOTIFY_SOCKET", "")
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._socket: socket.socket | None = None
        if self._address.startswith(("/", "\0")):
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
            self._socket.setblocking(False)
        usec = environ.get("WATCHDOG_USEC", "")
        ours = environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        self._interval_ns = int(usec) * 1000 // 4 if usec.isdecimal() and ours else 0
        self._fed_ns: int | None = None
        self._ready = False
        self._complained = False

    def completed(self, now_ns: int) -> None:
        """A scan was completed at ``now_ns`` (monotonic)."""
        if not self._ready:
            self._ready = self._send("READY=1")  # again with the next scan when it did not get through
        due = self._fed_ns is None or now_ns - self._fed_ns >= self._interval_ns
        if self._interval_ns and due and self._send("WATCHDOG=1"):
            self._fed_ns = now_ns

    def status(self, text: str) -> None:
        """One line for ``systemctl status``."""
        self._send("STATUS=" + " ".join(text.split()))

    def stopping(self) -> None:
        """The orderly stop has begun."""
        self._send("STOPPING=1")

    def close(self) -> None:
        """Close the socket."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _send(self, text: str) -> bool:
        if self._socket is None:
            return True
        try:
            self._socket.sendto(text.encode(), self._address)
        except OSError as exc:  # a manager that is busy or gone is not our end
            if not self._complained:
                self._complained = True
                _log.warning("the service manager cannot be told", socket=self._address, error=str(exc))
            return False
        return True


# ------------------------------------------------------------------------------------------------- the life


class Scan(Protocol):
    """The scan loop, as far as its life is concerned."""

    async def completed(self) -> None:
        """Wait for a scan that begins after this call."""

    def submit(self, command: Command) -> Reply | None:
        """Queue a command."""

    def note(self, text: str) -> None:
        """Have a note recorded with the next scan."""

    def make_safe(self) -> None:
        """Tell every link to bring its outputs to their safe values."""

    async def write_safe(self, timeout_s: float) -> int:
        """Write the safe outputs and see them verified; returns how many were not."""


class Closing(Protocol):
    """The journal, as far as its end is concerned."""

    async def close(self, timeout_s: float) -> int:
        """Write what waits; returns how many events could not be written."""


class Service:
    """Runs the parts of the program until a signal, or until one of them dies.

    ``run_scan`` is the scan loop's task, ``parts`` the others by name (links, north, gateways); none of them may
    end by itself. ``at_rest`` says whether nothing moves any more. ``stop_limit_s`` bounds the orderly stop,
    ``safe_limit_s`` the writing of the safe outputs.
    """

    def __init__(
        self,
        *,
        scan: Scan,
        run_scan: Part,
        parts: Mapping[str, Part],
        at_rest: Callable[[], bool],
        journal: Closing,
        notifier: Notifier,
        stop_limit_s: float = 20.0,
        safe_limit_s: float = 2.0,
    ) -> None:
        self._scan, self._run_scan, self._parts = scan, run_scan, parts
        self._at_rest, self._journal, self._notifier = at_rest, journal, notifier
        self._stop_limit_s, self._safe_limit_s = stop_limit_s, safe_limit_s
        self._asked = 0
        self._exit = EXIT_OK
        self._over = False
        self._wake = asyncio.Event()

    def ask_to_stop(self, reason: str) -> None:
        """The first call stops in order, the second aborts; what the signals call."""
        self._asked += 1
        _log.info("asked to stop" if self._asked == 1 else "asked to abort", reason=reason)
        self._wake.set()

    async def run(self) -> int:
        """Run to the end; returns the exit code (0 stopped, 1 a part died, 70 the scan failed)."""
        loop = asyncio.get_running_loop()
        for number in SIGNALS:
            loop.add_signal_handler(number, self.ask_to_stop, signal.Signals(number).name)
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._live(name, part), name=name) for name, part in self._parts.items()]
                scan = group.create_task(self._live("scan", self._run_scan), name="scan")
                try:
                    await self._until_over()
                    self._over = True
                    scan.cancel()
                    await asyncio.wait([scan])
                finally:
                    # Also when this task is cancelled: the links then have what they are to write last.
                    self._over = True
                    self._scan.make_safe()
                await self._scan.write_safe(self._safe_limit_s)
                left = await self._journal.close(5.0)
                if left:
                    _log.error("events could not be recorded before the end", count=left)
                for task in tasks:
                    task.cancel()
        finally:
            for number in SIGNALS:
                loop.remove_signal_handler(number)
            self._notifier.close()
        return self._exit

    async def _live(self, name: str, part: Part) -> None:
        """A part of the program. Its death is noticed here and ends all, in order, not by cancellation."""
        try:
            await part()
        except ScanFailed as exc:
            _log.critical("the scan failed", error=str(exc))
            self._died(EXIT_SCAN_FAILED)
        except Exception:
            _log.exception("a part of the controller died", part=name)
            self._died(EXIT_PART_DIED)
        else:
            if not self._over:
                _log.critical("a part of the controller ended by itself", part=name)
                self._died(EXIT_PART_DIED)

    def _died(self, code: int) -> None:
        if not self._over:
            self._exit = max(self._exit, code)
        self._wake.set()

    async def _until_over(self) -> None:
        """Return when the line is at rest, or must be left, or a part died."""
        await self._wake.wait()
        if self._exit:
            self._notifier.status("a part of the controller died; outputs are made safe")
            return
        self._notifier.stopping()
        self._notifier.status("stopping the line in order")
        self._command("stop")
        await self._one_scan()
        try:
            async with asyncio.timeout(self._stop_limit_s):
                while not self._at_rest() and self._asked < 2 and not self._exit:
                    self._wake.clear()
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(0.05):
                            await self._wake.wait()
        except TimeoutError:
            text = f"the line did not come to rest within {self._stop_limit_s:g} s of the stop; it is aborted"
            _log.error(text)
            self._scan.note(text)
        if not self._exit and not self._at_rest():
            self._command("abort")
        self._scan.note("the controller ends")
        await self._one_scan()

    def _command(self, name: str) -> None:
        command = Command(id=f"service-{uuid.uuid4().hex}", target=LINE, name=name, user="system", client="service")
        self._scan.submit(command)

    async def _one_scan(self) -> None:
        """Let one whole scan pass, if there still is one."""
        if not self._exit:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1.0):
                    await self._scan.completed()


# ---------------------------------------------------------------------------------------- gateway processes


@dataclass(frozen=True, slots=True)
class GatewaySpec:
    """A gateway to run: its name, its command line, and what to add to its environment."""

    name: str
    argv: Sequence[str]
    env: Mapping[str, str] = field(default_factory=dict)


class Supervisor:
    """Runs gateway processes and starts them again when they die; their death never touches the scan.

    The pause before a restart doubles from ``first_s`` to ``max_s`` and begins anew once a process has lived for
    ``steady_s``. ``note`` puts each death into the record. At the end each gets SIGTERM and, after ``kill_s``,
    SIGKILL, with all its children.
    """

    def __init__(
        self,
        gateways: Sequence[GatewaySpec],
        note: Callable[[str], None],
        clock: Clock,
        *,
        first_s: float = 0.5,
        max_s: float = 30.0,
        steady_s: float = 60.0,
        kill_s: float = 5.0,
    ) -> None:
        self._gateways, self._note, self._clock = gateways, note, clock
        self._first_s, self._max_s, self._steady_s, self._kill_s = first_s, max_s, steady_s, kill_s
        self.restarts: dict[str, int] = dict.fromkeys((g.name for g in gateways), 0)
        self.pids: dict[str, int] = {}
        """Process ids of the gateways that run now."""

    async def run(self) -> None:
        """Run them all until cancelled."""
        async with asyncio.TaskGroup() as group:
            for spec in self._gateways:
                group.create_task(self._keep(spec), name=f"gateway {spec.name}")
            await asyncio.get_running_loop().create_future()  # also with no gateway: not the end

    async def _keep(self, spec: GatewaySpec) -> None:
        pause = self._first_s
        while True:
            began = self._clock.monotonic_ns()
            how = await self._run_once(spec)
            if self._clock.monotonic_ns() - began >= self._steady_s * 1e9:
                pause = self._first_s
            self.restarts[spec.name] += 1
            text = f"gateway {spec.name} {how}; it is started again in {pause:g} s (number {self.restarts[spec.name]})"
            _log.error(text)
            self._note(text)
            await asyncio.sleep(pause)
            pause = min(self._max_s, pause * 2)

    async def _run_once(self, spec: GatewaySpec) -> str:
        """Start it and wait for its end; returns how that came."""
        # The service manager's words are the controller's, not a gateway's.
        env = {k: v for k, v in os.environ.items() if k not in ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")}
        try:
            process = await asyncio.create_subprocess_exec(
                *spec.argv, stdin=asyncio.subprocess.DEVNULL, env={**env, **spec.env}, start_new_session=True
            )
        except OSError as exc:
            return f"could not be started: {exc}"
        self.pids[spec.name] = process.pid
        _log.info("gateway started", gateway=spec.name, pid=process.pid)
        try:
            code = await process.wait()
        finally:
            await self._end(process)
            del self.pids[spec.name]
        return f"ended with exit code {code}" if code >= 0 else f"was ended by {signal.Signals(-code).name}"

    async def _end(self, process: asyncio.subprocess.Process) -> None:
        try:
            if process.returncode is None:
                _signal_group(process.pid, signal.SIGTERM)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._kill_s):
                        await process.wait()
        finally:
            _signal_group(process.pid, signal.SIGKILL)  # whatever of its group is left
        await process.wait()


def _signal_group(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, number)
