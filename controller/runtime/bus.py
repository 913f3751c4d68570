"""The link to one PLC: one task that connects, polls, writes, and starts over when the link is lost.

The scan and the link meet in three places only, none of which waits: the link puts readings, link changes and
write reports into the :class:`~controller.core.image.InputBuffer`; the scan hands its outputs to
:meth:`Link.set_outputs` and its life sign to :meth:`Link.beat`. What is wanted and what is known of the PLC is kept
in ``controller.runtime.bus_state``.

*Up* means: connected, every group read since then, and (where the PLC has a life sign) seen counting. Only then
are outputs written. After a loss nothing is reported up, and so nothing written, before the scan has latched the
loss: outputs wanted before it must not reach a PLC that has restarted meanwhile.

*Outputs are levels.* The link keeps what is wanted and what the PLC is confirmed to hold, and writes where
they differ, one write at a time: the life sign first, then outputs, then polls. Once a poll is late by a whole
period they take turns, so that no flood of one starves the others. A write of unknown outcome is settled by
reading the group back, never by sending again blindly. What is confirmed is forgotten with the link. A PLC that
changes a confirmed output by itself (a command taken and cleared) is not written again: only the scan can know why.
"""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from controller.core.image import InputBuffer, LinkReport, WriteReport
from controller.runtime.bus_state import Heart, HeartbeatOptions, Outputs, S, alike
from controller.runtime.clock import Clock
from drivers.port import (
    DeviceRefused,
    Driver,
    ExchangeFailed,
    FieldBusError,
    LinkDown,
    Outcome,
    Reading,
    Tag,
    Value,
)

__all__ = ["HeartbeatOptions", "Link", "LinkOptions", "LinkStats"]

FIRST_DELAY_S = 0.25
"""Mean delay before the first reconnection; doubles with each failure, ±50 %."""
LATCH_POLL_S = 0.005


@dataclass(frozen=True, kw_only=True)
class LinkOptions:
    """How a link is run. ``periods_s`` gives the period of every scan class in use."""

    periods_s: Mapping[str, float]
    timeout_s: float = 0.5
    """For each request on the wire."""
    connect_timeout_s: float = 3.0
    reconnect_max_s: float = 5.0
    heartbeat: HeartbeatOptions = field(default_factory=HeartbeatOptions)


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkStats:
    """What a link has done since it was made. Counts never reset."""

    up: bool
    reason: str
    """Why it is not up, or why it last was not."""
    requests: int
    """Group reads and writes attempted."""
    timeouts: int
    failed: int
    """Connections and reads that failed otherwise."""
    refused: int
    """Reads that the device refused."""
    rejected: int
    """Writes rejected."""
    unknown: int
    """Writes of unknown outcome."""
    reconnects: int
    """Connections made after the first."""
    skipped: int
    """Polling periods left out because the link was busy."""
    last_round_trip_ms: float
    """Duration of the last group read."""


class Link:
    """Supervises one driver. Run :meth:`run` as a task; everything else returns at once.

    Raises ``ValueError`` at construction when there are no tags, or a heartbeat tag is missing, read-only, or
    polled too slowly.
    """

    def __init__(
        self, driver: Driver, buffer: InputBuffer, clock: Clock, options: LinkOptions, rng: random.Random
    ) -> None:
        self.name = driver.name
        self._driver, self._buffer, self._clock, self._options, self._rng = driver, buffer, clock, options, rng
        if not driver.groups:
            raise ValueError(f"{self.name}: a PLC without tags has nothing to read; add tags or remove the PLC")
        tags: dict[str, Tag] = {}
        self._place: dict[str, tuple[int, int]] = {}
        for number, group in enumerate(driver.groups):
            for index, tag in enumerate(group.tags):
                tags[tag.name] = tag
                self._place[tag.name] = (number, index)
        self._period_ns = [round(options.periods_s[g.scan_class] * S) for g in driver.groups]
        self._due = [0] * len(driver.groups)
        self._heart = Heart(options.heartbeat, tags, self._place, self._period_ns)
        self._outputs = Outputs(tags)
        self._last_values: dict[int, Sequence[Value | None]] = {}
        self._wake = asyncio.Event()
        self._up = False
        self._reported: LinkReport | None = None
        self._reason = "not connected yet"
        self._connections = self._requests = self._timeouts = self._failed = self._refused = self._skipped = 0
        self._round_trip_ms = 0.0
        self._final: dict[str, WriteReport | None] = {}
        self._final_changed = asyncio.Event()

    def set_outputs(self, outputs: Mapping[str, Value]) -> None:
        """Want these values from now on. Bounded by the PLC's writable tags; the latest value of a tag counts.

        Raises ``KeyError`` for a tag that is not a writable one of this PLC: the line was wired wrongly.
        """
        for tag, value in outputs.items():
            self._outputs.want(tag, value)
        self._wake.set()

    def beat(self, counter: int) -> None:
        """A scan was completed. The newest counter is written once per period; without one, nothing is."""
        self._heart.beat = counter
        self._wake.set()

    def stats(self) -> LinkStats:
        """A snapshot of the counters."""
        return LinkStats(
            up=self._up,
            reason=self._reason,
            requests=self._requests,
            timeouts=self._timeouts,
            failed=self._failed,
            refused=self._refused,
            rejected=self._outputs.rejected,
            unknown=self._outputs.unknown,
            reconnects=max(0, self._connections - 1),
            skipped=self._skipped,
            last_round_trip_ms=self._round_trip_ms,
        )

    async def run(self) -> None:
        """Keep the link until cancelled; then close it. Anything but the plant's faults propagates."""
        failures = 0
        try:
            while True:
                try:
                    await self._driver.connect(self._options.connect_timeout_s)
                    self._connections += 1
                    await self._loss_latched()
                    await self._serve()
                except LinkDown as exc:
                    self._count(exc)
                    failures = 0 if self._up else failures + 1
                    self._go_down(str(exc))
                await self._driver.close()
                mean = min(FIRST_DELAY_S * 2 ** min(failures, 16), self._options.reconnect_max_s)
                await asyncio.sleep(min(mean * self._rng.uniform(0.5, 1.5), self._options.reconnect_max_s))
        finally:
            self._go_down("the link was shut down")
            self._final_changed.set()
            await self._driver.close()

    async def write_now(self, outputs: Mapping[str, Value], timeout_s: float) -> dict[str, WriteReport]:
        """Write these (safe) values and say how each ended, within one deadline; for shutdown, :meth:`run` going on.

        Everything is written, also what is confirmed already. Stop the scan first: a later
        :meth:`set_outputs` of the same tag would win. A tag not written in time is REJECTED when it was never
        sent and UNKNOWN when it was. With the link down all are REJECTED at once.
        """
        self._final = dict.fromkeys(outputs)
        for tag, value in outputs.items():
            self._outputs.force(tag, value)
        self._wake.set()
        late = f"not done within {timeout_s:g} s"
        try:
            async with asyncio.timeout(timeout_s):
                while self._up and None in self._final.values():
                    self._final_changed.clear()
                    await self._final_changed.wait()
        except TimeoutError:
            pass
        else:
            late = f"{self.name} is not connected: {self._reason}"
        done, self._final = self._final, {}
        return {
            tag: done[tag] or WriteReport(tag, value, self._outputs.unfinished(tag), late)
            for tag, value in outputs.items()
        }

    # --- the life of one connection

    async def _loss_latched(self) -> None:
        """Wait until the scan has taken note of the last loss, so that it decides the outputs after it."""
        while (report := self._buffer.links.get(self.name)) is not None and not report.up:  # noqa: ASYNC110
            # The scan empties the buffer and tells nobody: it must not know who waits.
            await asyncio.sleep(LATCH_POLL_S)

    async def _serve(self) -> None:
        """Serve a fresh connection until it is lost. Raises ``LinkDown``."""
        readings = await self._read_all()
        self._heart.start(readings, self._clock.monotonic_ns())
        if self._heart.alive:
            self._go_up(readings)
        turns = dict.fromkeys(("beat", "write", "poll"), 0)
        for turn in itertools.count(1):
            self._wake.clear()
            now = self._clock.monotonic_ns()
            group = min(range(len(self._due)), key=self._due.__getitem__)
            tag = self._outputs.next(now) if self._up else None
            ready = ["beat"] * self._heart.write_due(now) + ["write"] * (tag is not None)
            ready += ["poll"] * (now >= self._due[group])
            if not ready:
                await self._sleep(now, group)
                continue
            late = now >= self._due[group] + self._period_ns[group]
            action = min(ready, key=turns.__getitem__) if late else ready[0]
            turns[action] = turn
            if action == "beat":
                await self._write_beat(now)
            elif action == "write" and tag is not None:
                await self._write(tag)
            else:
                await self._poll(group)

    async def _sleep(self, now: int, group: int) -> None:
        """Until the next poll, retry or life sign is due, or the scan brings something."""
        times = [self._due[group], self._heart.next_write()]
        times += [self._outputs.next_retry()] if self._up else []
        next_ns = min(t for t in times if t is not None)
        try:
            async with asyncio.timeout(max(0, next_ns - now) / S):
                await self._wake.wait()
        except TimeoutError:
            pass

    async def _read_all(self) -> list[Reading]:
        """Read every group once, and set the schedule from here. Raises ``LinkDown``."""
        readings = []
        for group in range(len(self._due)):
            while (reading := await self._read(group)) is None:
                pass  # bounded: a driver turns repeated failures into LinkDown
            readings.append(reading)
        now = self._clock.monotonic_ns()
        self._due = [now + period for period in self._period_ns]
        return readings

    async def _poll(self, group: int) -> None:
        """Read one group that is due. Periods missed are skipped and counted, never caught up."""
        reading = await self._read(group)
        now = self._clock.monotonic_ns()
        period = self._period_ns[group]
        self._due[group] += period
        if self._due[group] <= now:
            missed = (now - self._due[group]) // period + 1
            self._skipped += missed
            self._due[group] += missed * period
        if reading is not None and self._up:
            self._buffer.put(self.name, group, reading)
            self._settle(group, reading)
            self._notice_drift(group, reading)
        if self._heart.group == group:
            await self._check_heart(reading, now)

    async def _check_heart(self, reading: Reading | None, now: int) -> None:
        self._heart.see(reading, now)
        if self._heart.overdue(now):
            self._go_down(self._heart.stopped)
        elif self._heart.alive and not self._up:
            # It counts (again). It may have restarted meanwhile: look at everything before anything is written.
            await self._loss_latched()
            self._go_up(await self._read_all())

    async def _read(self, group: int) -> Reading | None:
        """One read: a reading (all bad when the device refused), or ``None`` when this one failed."""
        self._requests += 1
        start = self._clock.monotonic_ns()
        try:
            reading = await self._driver.read(group, self._options.timeout_s)
        except DeviceRefused as exc:
            self._refused += 1
            count = len(self._driver.groups[group].tags)
            return Reading((None,) * count, start, dict.fromkeys(range(count), str(exc)))
        except ExchangeFailed as exc:
            self._count(exc)
            return None
        self._round_trip_ms = (self._clock.monotonic_ns() - start) / 1e6
        return reading

    # --- outputs

    async def _write_beat(self, now: int) -> None:
        """Write the newest life sign. Only the beginning and the end of its failing are reported."""
        tag, value = self._heart.take(now)
        self._requests += 1
        outcome = await self._driver.write(tag, value, self._options.timeout_s)
        if self._heart.changed(outcome):
            reason = f"life sign: {outcome.reason}" if outcome.reason else ""
            self._buffer.report(WriteReport(tag, value, outcome.outcome, reason))

    async def _write(self, tag: str) -> None:
        value = self._outputs.begin(tag)
        self._requests += 1
        outcome = await self._driver.write(tag, value, self._options.timeout_s)
        self._outputs.ended(tag, value, outcome, self._clock.monotonic_ns())
        self._last_values.pop(self._place[tag][0], None)  # the next reading is news, even if it is as before the write
        report = WriteReport(tag, value, outcome.outcome, outcome.reason)
        self._buffer.report(report)
        if outcome.outcome is Outcome.UNKNOWN:
            # Next thing read; until then the tag is not written. On a lost link this read says so.
            group = self._place[tag][0]
            reading = None
            while reading is None:
                reading = await self._read(group)
            self._buffer.put(self.name, group, reading)
            self._settle(group, reading)
        else:
            self._finish(report)

    def _notice_drift(self, group: int, reading: Reading) -> None:
        if reading.values is self._last_values.get(group):
            return
        self._last_values[group] = reading.values
        for tag in self._outputs.confirmed():
            place, index = self._place[tag]
            if place == group:
                self._outputs.seen(tag, reading.values[index])

    def _settle(self, group: int, reading: Reading) -> None:
        """A fresh reading settles the writes of unknown outcome in its group."""
        for tag in self._outputs.doubtful():
            place, index = self._place[tag]
            if place == group:
                value = self._outputs.settle(tag, reading.values[index])
                if value is not None:
                    report = WriteReport(tag, value, Outcome.VERIFIED, "found in force by read-back")
                    self._buffer.report(report)
                    self._finish(report)

    def _finish(self, report: WriteReport) -> None:
        """Tell :meth:`write_now`, unless this was the write of an older value."""
        if report.tag in self._final and alike(report.value, self._outputs.wanted[report.tag]):
            self._final[report.tag] = report
            self._final_changed.set()

    # --- up and down

    def _go_up(self, readings: list[Reading]) -> None:
        self._up = True
        self._report(LinkReport(self.name, True))
        for group, reading in enumerate(readings):
            self._buffer.put(self.name, group, reading)
        for tag in self._outputs.wanted:
            group, index = self._place[tag]
            self._outputs.compare(tag, readings[group].values[index])

    def _go_down(self, reason: str) -> None:
        self._up = False
        self._reason = reason
        self._outputs.forget()
        self._final_changed.set()
        self._report(LinkReport(self.name, False, reason))

    def _report(self, report: LinkReport) -> None:
        """Only changes are reported."""
        if self._reported is None or self._reported.up != report.up:
            self._reported = report
            self._buffer.link(report)

    def _count(self, exc: FieldBusError) -> None:
        if exc.timed_out:
            self._timeouts += 1
        else:
            self._failed += 1
