"""The scan loop: the heartbeat of the controller.

Every tick: take the queued commands, scan, hand the outputs to the links, record the events, publish the values.
Nothing in it awaits anything but the timer. Outputs go out at once; answers to commands only when the record of
them is durable (or, while no record can be kept, with words that say so). What proves that we are alive, the
PLCs' heartbeats and the service manager's watchdog, comes from a completed scan and from nowhere else.

If the scan itself raises, that is a fault of ours: outputs are made safe and the process ends. A controller that
is dead must look dead.
"""

from __future__ import annotations

import asyncio
import gc
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, ParamSpec, Protocol

import msgspec
import structlog

from controller.core.commands import Command, CommandQueue, Reply
from controller.core.events import AnyEvent, Note, ScanOverrun
from controller.core.image import InputBuffer, WriteReport
from controller.north.frames import Scalar
from controller.runtime.clock import Clock
from controller.runtime.journal import Health, OnSettled
from controller.runtime.timer import Timer
from drivers.port import Outcome, Value

WINDOW = 1000
"""Scans over which scan times are summed up."""
_SECOND = 1_000_000_000
_CLOCK_STEP_NS = _SECOND
_log = structlog.get_logger("scan")
P = ParamSpec("P")
Kind = Literal["bool", "int", "float", "str"]


class Result(Protocol):
    """What a scan gives back."""

    @property
    def events(self) -> Sequence[AnyEvent]:
        """What happened, in order."""

    @property
    def replies(self) -> Sequence[Reply]:
        """Answers to the commands of this scan."""

    @property
    def outputs(self) -> Mapping[str, Value]:
        """Outputs whose wanted value changed, by tag name."""


class Logic(Protocol):
    """The pure logic of the line."""

    def scan(self, now_ns: int, utc_ns: int, buffer: InputBuffer, commands: Iterable[Command]) -> Result:
        """One scan."""

    def safe_outputs(self) -> Mapping[str, Value]:
        """Every output that has a safe value, with it."""

    def concern(self, name: str, text: str) -> None:
        """Raise (or, with an empty text, clear) an alarm of the line about the controller itself."""


class View(Protocol):
    """What is to be seen of the line after a scan."""

    def collect(self) -> tuple[Sequence[Scalar], Mapping[int, str]]:
        """All values, and by index why some are bad."""


class LinkPort(Protocol):
    """The link to one PLC, as far as the scan needs it. The first two return at once and do not raise."""

    def set_outputs(self, outputs: Mapping[str, Value]) -> None:
        """Want these values on the PLC from now on."""

    def beat(self, counter: int) -> None:
        """A scan was completed: the life sign for the PLC's watchdog."""

    async def write_now(self, outputs: Mapping[str, Value], timeout_s: float) -> Mapping[str, WriteReport]:
        """Write these values, whatever is thought to be there, and say how each write ended. Does not raise."""


class JournalPort(Protocol):
    """The record, as far as the scan needs it."""

    def append(self, events: Sequence[AnyEvent], on_settled: OnSettled | None = None) -> int:
        """Queue events; see :meth:`controller.runtime.journal.Journal.append`."""

    def poll(self) -> Health:
        """Health now."""

    def refusal(self, command: Command) -> str | None:
        """Why a command must not be queued now."""


class NorthPort(Protocol):
    """The way out, as far as the scan needs it. No call may block."""

    def publish(self, values: Sequence[Scalar], bad: Mapping[int, str], at: int) -> None:
        """The values after a scan."""

    def events(self, first: int, events: Sequence[AnyEvent]) -> None:
        """Recorded events."""

    def answer(self, reply: Reply) -> None:
        """The answer to a command, for whoever sent it."""

    def drop_clients(self, reason: str) -> None:
        """End all clients' streams."""


class Nowhere:
    """North while nobody is there yet."""

    def publish(self, values: Sequence[Scalar], bad: Mapping[int, str], at: int) -> None:
        """Nobody looks."""

    def events(self, first: int, events: Sequence[AnyEvent]) -> None:
        """Nobody listens."""

    def answer(self, reply: Reply) -> None:
        """Nobody asked."""

    def drop_clients(self, reason: str) -> None:
        """Nobody is there."""


class ScanFailed(Exception):
    """The scan raised: a fault of this program. The outputs have been told to be safe; the process must end."""


@dataclass(frozen=True, slots=True)
class ScanStats:
    """Scan times in milliseconds over the last :data:`WINDOW` scans, and counts since the start."""

    p50_ms: float = 0.0
    p99_ms: float = 0.0
    max_ms: float = 0.0
    late_max_ms: float = 0.0
    scans: int = 0
    overruns: int = 0
    skipped: int = 0


class ScanLoop:
    """Runs the scan. ``plc_of`` maps a tag to its PLC, ``links`` a PLC to its link; ``on_completed`` is called
    with the monotonic time after each completed scan (the watchdog).
    """

    def __init__(
        self,
        *,
        logic: Logic,
        view: View,
        clock: Clock,
        buffer: InputBuffer,
        queue: CommandQueue,
        links: Mapping[str, LinkPort],
        plc_of: Mapping[str, str],
        journal: JournalPort,
        north: NorthPort | None = None,
        on_completed: Callable[[int], None] | None = None,
    ) -> None:
        self._logic, self._view, self._clock = logic, view, clock
        self._buffer, self._queue = buffer, queue
        self._links, self._plc_of = links, plc_of
        self._journal = journal
        self._north: NorthPort = north or Nowhere()
        self._on_completed = on_completed
        self._safe = dict(logic.safe_outputs())
        self._notes: list[str] = []
        self._health = Health(True, "", 0, 0)
        self._refused = 0
        self._clock_offset: int | None = None
        self._durations: deque[int] = deque(maxlen=WINDOW)
        self._lates: deque[int] = deque(maxlen=WINDOW)
        self._scans = self._overruns = self._skipped = 0
        self._unreported_skips, self._unreported_late = 0, 0
        self._overrun_reported_ns = self._stats_ns = 0
        self._north_failed_ns: int | None = None
        self._stats = ScanStats()
        self._completed: asyncio.Future[None] | None = None

    # --------------------------------------------------------------------------------------- from outside

    def submit(self, command: Command) -> Reply | None:
        """Queue a command for the next scan; returns a refusal at once when that is not possible.

        While no record can be kept, only stop, abort and hold are taken.
        """
        refusal = self._journal.refusal(command)
        if refusal is not None:
            self._refused += 1
            return Reply(id=command.id, accepted=False, reason=refusal)
        return self._queue.put(command)

    def note(self, text: str) -> None:
        """Have a note recorded with the next scan (at most 1,000 wait; the rest is logged only)."""
        _log.info("note", text=text)
        if len(self._notes) < 1000:
            self._notes.append(text)

    @property
    def stats(self) -> ScanStats:
        """Scan times, renewed once a second."""
        return self._stats

    @staticmethod
    def extras_of(loop: Callable[[], ScanLoop]) -> dict[str, tuple[Kind, str, Callable[[], Scalar]]]:
        """Variables about the loop itself for the view: path → (type, unit, getter).

        ``loop`` is asked with every scan only, since the view has to be made before the loop that shows it.
        """
        return {
            "line.scan_time_p50": ("float", "ms", lambda: loop()._stats.p50_ms),
            "line.scan_time_p99": ("float", "ms", lambda: loop()._stats.p99_ms),
            "line.scan_time_max": ("float", "ms", lambda: loop()._stats.max_ms),
            "line.scan_late_max": ("float", "ms", lambda: loop()._stats.late_max_ms),
            "line.scan_overruns": ("int", "", lambda: loop()._overruns),
            "line.scans_skipped": ("int", "", lambda: loop()._skipped),
            "line.journal_healthy": ("bool", "", lambda: loop()._health.healthy),
            "line.journal_reason": ("str", "", lambda: loop()._health.reason),
            "line.journal_waiting": ("int", "", lambda: loop()._health.waiting),
            "line.journal_lost": ("int", "", lambda: loop()._health.lost),
        }

    def publish_to(self, north: NorthPort) -> None:
        """Publish there from the next scan on. North needs the loop (for commands), so the loop is made first."""
        self._north = north

    async def completed(self) -> None:
        """Wait until a scan that begins after this call is completed."""
        if self._completed is None:
            self._completed = asyncio.get_running_loop().create_future()
        await asyncio.shield(self._completed)

    def make_safe(self) -> None:
        """Tell every link to bring its outputs to their safe values. One failing link does not spare the others."""
        for plc, outputs in self._split(self._safe).items():
            try:
                self._links[plc].set_outputs(outputs)
            except Exception:
                _log.exception("safe outputs could not be handed to the link", plc=plc)

    async def write_safe(self, timeout_s: float) -> int:
        """Write the safe outputs of all PLCs at once and see them verified; for the end, the scan being stopped.

        Returns how many were not verified; they are logged. The PLC's own watchdog is what then remains.
        """
        failed = 0

        async def one(plc: str, outputs: dict[str, Value]) -> None:
            nonlocal failed
            try:
                reports = await self._links[plc].write_now(outputs, timeout_s)
            except Exception:
                failed += len(outputs)
                _log.exception("safe outputs could not be written", plc=plc)
                return
            bad = [r for r in reports.values() if r.outcome is not Outcome.VERIFIED]
            failed += len(bad)
            if bad:
                _log.error(
                    "safe outputs are not verified; the PLC's watchdog must stop its machines",
                    plc=plc,
                    tags={r.tag: r.outcome.value for r in bad},
                    reason=bad[0].reason,
                )

        async with asyncio.TaskGroup() as group:
            for plc, outputs in self._split(self._safe).items():
                group.create_task(one(plc, outputs))
        return failed

    # ------------------------------------------------------------------------------------------ the scan

    async def run(self, timer: Timer) -> None:
        """Scan at every tick until cancelled. Raises :class:`ScanFailed` when a scan does."""
        # What is built by now lives as long as the process: a collector that walks it all stops the scan for
        # tens of milliseconds.
        gc.collect()
        gc.freeze()
        while True:
            tick = await timer.tick()
            self.step(tick.due_ns, tick.skipped)

    def step(self, due_ns: int, skipped: int = 0) -> None:
        """One scan, due at ``due_ns`` (monotonic), after ``skipped`` periods that were left out."""
        begin, utc = self._clock.monotonic_ns(), self._clock.utc_ns()
        try:
            own = self._own_events(begin, utc, due_ns, skipped)
            result = self._logic.scan(begin, utc, self._buffer, self._queue.drain())
            for plc, outputs in self._split(result.outputs).items():
                self._links[plc].set_outputs(outputs)
            self._scans += 1
            for link in self._links.values():
                link.beat(self._scans)
            self._record([*own, *result.events], list(result.replies))
        except Exception as exc:
            self._fail(exc, utc)
            raise ScanFailed(f"the scan failed: {exc!r}; outputs were told to be safe; report this fault") from exc
        self._publish(begin, utc)
        end = self._clock.monotonic_ns()
        self._durations.append(end - begin)
        self._lates.append(max(0, begin - due_ns))
        if end - self._stats_ns >= _SECOND:
            self._sum_up(end)
        if self._on_completed is not None:
            self._on_completed(end)
        if self._completed is not None:
            if not self._completed.done():
                self._completed.set_result(None)
            self._completed = None

    def _split(self, outputs: Mapping[str, Value]) -> dict[str, dict[str, Value]]:
        by_plc: dict[str, dict[str, Value]] = {}
        for tag, value in outputs.items():
            by_plc.setdefault(self._plc_of[tag], {})[tag] = value
        return by_plc

    def _record(self, events: list[AnyEvent], replies: list[Reply]) -> None:
        if not events and not replies:
            return

        def settled(first: int, durable: bool) -> None:
            if events:
                self._to_north(self._north.events, first, events)
            for reply in replies:
                if not durable:
                    why = self._health.reason or "the disk is not in order"
                    text = f"{reply.reason} (not recorded yet: {why})".lstrip()
                    reply = msgspec.structs.replace(reply, reason=text)  # noqa: PLW2901
                self._to_north(self._north.answer, reply)

        self._journal.append(events, settled)

    def _publish(self, begin: int, utc: int) -> None:
        if self._north_failed_ns is not None and begin - self._north_failed_ns < 10 * _SECOND:
            return
        try:
            values, bad = self._view.collect()
            self._north.publish(values, bad, utc)
        except Exception:
            # Nobody shall look at values that no longer move: the clients are told, and the line runs on.
            self._north_failed_ns = begin
            _log.exception("publishing failed; clients are disconnected, next attempt in 10 s")
            self.note("publishing failed, a fault of this program; clients were disconnected, see the log")
            self._to_north(self._north.drop_clients, "publishing failed, a fault of the controller; see its log")
        else:
            self._north_failed_ns = None

    @staticmethod
    def _to_north(call: Callable[P, None], *args: P.args, **kwargs: P.kwargs) -> None:
        """A fault on the way out is logged; it must not reach the scan or the record."""
        try:
            call(*args, **kwargs)
        except Exception:
            _log.exception("a frame could not be sent north")

    # --------------------------------------------------------------------------------- about the loop itself

    def _own_events(self, begin: int, utc: int, due_ns: int, skipped: int) -> list[AnyEvent]:
        events: list[AnyEvent] = []
        if skipped:
            self._overruns += 1
            self._skipped += skipped
            self._unreported_skips += skipped
            self._unreported_late = max(self._unreported_late, begin - due_ns)
        # A loop that is always late must not fill the record: one event a second sums them up.
        if self._unreported_skips and begin - self._overrun_reported_ns >= _SECOND:
            events.append(
                ScanOverrun(at=utc, skipped=self._unreported_skips, late_ms=round(self._unreported_late / 1e6, 3))
            )
            self._unreported_skips = self._unreported_late = 0
            self._overrun_reported_ns = begin
        offset = utc - begin
        if self._clock_offset is not None and abs(offset - self._clock_offset) > _CLOCK_STEP_NS:
            step = (offset - self._clock_offset) / 1e9
            self.note(f"the wall clock was stepped by {step:+.1f} s; the order of the record is by number")
        self._clock_offset = offset
        self._watch_journal()
        events += [Note(at=utc, text=text) for text in self._notes]
        self._notes.clear()
        return events

    def _watch_journal(self) -> None:
        before, now = self._health, self._journal.poll()
        self._health = now
        if before.healthy != now.healthy:
            refused = "commands other than stop, abort and hold are refused"
            text = "" if now.healthy else f"no record can be kept: {now.reason}; {refused}; make room or mend the disk"
            self._logic.concern("journal", text)
        if before.healthy and not now.healthy:
            self._refused = 0
            self.note(f"no record can be kept: {now.reason}; only stop, abort and hold are taken")
        elif now.healthy and not before.healthy:
            self.note(
                f"the record is kept again; {now.waiting} events were late, {now.lost} are lost since the start, "
                f"{self._refused} commands were refused meanwhile"
            )
        elif now.lost != before.lost and now.healthy:
            self.note(f"{now.lost - before.lost} events were lost, the disk was too slow")

    def _sum_up(self, end: int) -> None:
        times = sorted(self._durations)
        self._stats_ns = end
        self._stats = ScanStats(
            p50_ms=times[len(times) // 2] / 1e6,
            p99_ms=times[len(times) * 99 // 100] / 1e6,
            max_ms=times[-1] / 1e6,
            late_max_ms=max(self._lates) / 1e6,
            scans=self._scans,
            overruns=self._overruns,
            skipped=self._skipped,
        )

    def _fail(self, exc: Exception, utc: int) -> None:
        _log.critical("the scan failed; outputs are made safe and the process ends", exc_info=exc)
        self.make_safe()
        try:
            self._journal.append([Note(at=utc, text=f"the scan failed, the controller ends: {exc!r}")])
        except Exception:
            _log.exception("the failure could not be recorded")
