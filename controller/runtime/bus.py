"""The link to one PLC: connects, polls, writes, and starts over when the link is lost.

The scan and the link meet in three places only, none of which waits: the link puts readings, link changes and
write reports into the :class:`~controller.core.image.InputBuffer`; the scan hands its outputs to
:meth:`Link.set_outputs` and its life sign to :meth:`Link.beat`. This module connects and reads,
``bus_writer`` writes. Levels and life signs are in ``bus_state``, commands in ``bus_commands``, who the PLC is in
``bus_peer``: all three pure.

*Up* means: connected, every group read since then, recognised by its identity, and (where the PLC has a life sign) seen
counting. Only then are outputs written. A PLC that is not the one meant is never written to at all. After a loss
nothing is reported up, and so nothing written, before the scan has latched the loss: outputs wanted before it must not
reach a PLC that has restarted meanwhile. A restart that the PLC's boot counter shows is a loss, connection or not.

*Writes do not wait for polls.* One task reads and another one writes: the life sign first, then outputs in the order in
which they came to be wanted, one at a time. As both overlap, a reading that was requested before a write ended says
nothing about it. While a poll is late by a whole period the writer rests after each write for as long as that took, so
that no flood of outputs starves the polls.

*Outputs are levels.* The link keeps what is wanted and what the PLC is confirmed to hold, and writes where
they differ. A write of unknown outcome is settled by reading the group back, never by sending again blindly. What is
confirmed is forgotten with the link. A PLC that changes a confirmed output by itself (a command taken and cleared) is
not written again: only the scan can know why. *Commands* (command blocks) are no levels: see ``bus_commands``.
"""

from __future__ import annotations

import asyncio
import random
import zlib
from collections.abc import Mapping, Sequence

from controller.core.image import InputBuffer, LinkReport, WriteReport
from controller.runtime.bus_options import LinkOptions
from controller.runtime.bus_peer import Peer
from controller.runtime.bus_state import Heart, S
from controller.runtime.bus_stats import LinkStats, Rate
from controller.runtime.bus_wait import Bell, Ticker
from controller.runtime.bus_writer import Seen, Writer
from controller.runtime.clock import Clock
from drivers.port import (
    DeviceRefused,
    Driver,
    DriverStats,
    ExchangeFailed,
    FieldBusError,
    LinkDown,
    Reading,
    Tag,
    Value,
)

__all__ = ["Link", "LinkOptions", "LinkStats"]

FIRST_DELAY_S = 0.25
"""Mean delay before the first reconnection; doubles with each failure, ±50 %."""
LEAST_DELAY_S = 0.01
FLAP_S = 0.05
"""From coming up to the attempt after the next loss, at least: a link that was up longer is tried again at once."""
LATCH_POLL_S = 0.005
WIRE_STATS_NS = S // 2
SLOTS = 4
"""Polls of one period are spread over so many points in it: enough against bursts, and few awakenings."""


class Link:
    """Supervises one driver. Run :meth:`run` as a task; everything else returns at once.

    Raises ``ValueError`` at construction when there are no tags, when a tag of the handshake is missing, cannot be
    written or is polled too slowly, or when the driver cannot write a command block in one request. Links with the same
    ``ticker`` poll together, which costs the process fewer awakenings.
    """

    def __init__(
        self,
        driver: Driver,
        buffer: InputBuffer,
        clock: Clock,
        options: LinkOptions,
        rng: random.Random,
        ticker: Ticker | None = None,
    ) -> None:
        self.name = driver.name
        self._driver, self._buffer, self._clock, self._options, self._rng = driver, buffer, clock, options, rng
        if not driver.groups:
            raise ValueError(f"{self.name}: a PLC without tags has nothing to read; add tags or remove the PLC")
        tags: dict[str, Tag] = {}
        place: dict[str, tuple[int, int]] = {}
        for number, group in enumerate(driver.groups):
            for index, tag in enumerate(group.tags):
                tags[tag.name] = tag
                place[tag.name] = (number, index)
        self._period_ns = [round(options.periods_s[g.scan_class] * S) for g in driver.groups]
        self._slots = [zlib.crc32(f"{self.name} {group.scan_class}".encode()) % SLOTS for group in driver.groups]
        self._each = [group.each for group in driver.groups]
        self._due = [0] * len(driver.groups)
        self._latest: list[Reading | None] = [None] * len(driver.groups)
        self._heart = Heart(options.heartbeat, tags, place, self._period_ns)
        self._peer = Peer(options.identity, options.boot_counter, tags, place)
        self._urgent: set[int] = set()
        """Groups to read next, to settle writes of unknown outcome."""
        self._bell = Bell(ticker)
        blocks, timeout_s = options.blocks, options.timeout_s
        self._writer = Writer(
            driver, buffer, clock, timeout_s, tags, place, self._heart, blocks, self._latest, self._read_next
        )
        self._reported = ""
        self._up_ns = 0
        self._reason = "not connected yet"
        self._connections = self._requests = self._timeouts = self._failed = self._refused = self._skipped = 0
        self._round_trip_ms = 0.0
        self._rate = Rate()
        self._wire, self._wire_due_ns = DriverStats(), 0

    def set_outputs(self, outputs: Mapping[str, Value]) -> None:
        """Want these values from now on. Bounded by the PLC's writable tags; the latest value of a tag counts.

        Raises ``KeyError`` for a tag that is not a writable one of this PLC: the line was wired wrongly.
        """
        self._writer.want(outputs)

    def beat(self, counter: int) -> None:
        """A scan was completed. The newest counter is written once per period; without one, nothing is."""
        self._writer.beat(counter)

    def stats(self) -> LinkStats:
        """A snapshot of the counters; what the driver counts and measures is up to half a second old."""
        now = self._clock.monotonic_ns()
        if now >= self._wire_due_ns:
            self._wire, self._wire_due_ns = self._driver.stats(), now + WIRE_STATS_NS
            self._rate.note(now, self._wire.requests)
        wire = self._wire
        return LinkStats(
            up=self._writer.up,
            reason=self._reason,
            requests=self._requests + self._writer.requests,
            timeouts=self._timeouts,
            failed=self._failed,
            refused=self._refused,
            rejected=self._writer.outputs.rejected,
            unknown=self._writer.outputs.unknown,
            reconnects=max(0, self._connections - 1),
            restarts=self._peer.restarts,
            skipped=self._skipped,
            last_round_trip_ms=self._round_trip_ms,
            requests_per_s=self._rate.per_s(),
            p50_ms=wire.p50_ms,
            p99_ms=wire.p99_ms,
            late=wire.late,
            strays=wire.strays,
            missed=wire.missed,
            breaker=wire.breaker,
        )

    async def run(self) -> None:
        """Keep the link until cancelled; then close it. Anything but the plant's faults propagates."""
        failures = 0
        try:
            while True:
                pause_s = LEAST_DELAY_S
                try:
                    await self._driver.connect(self._options.connect_timeout_s)
                    self._connections += 1
                    await self._loss_latched()
                    await self._serve()
                except LinkDown as exc:
                    self._count(exc)
                    failures = 0 if self._writer.up else failures + 1
                    pause_s = self._pause_s(failures) if exc.retry_s is None else exc.retry_s
                    self._go_down(str(exc), stranger=isinstance(exc, _Stranger))
                await self._driver.close()
                await asyncio.sleep(max(pause_s, LEAST_DELAY_S))
        finally:
            self._go_down("the link was shut down")
            await self._driver.close()

    async def write_now(self, outputs: Mapping[str, Value], timeout_s: float) -> dict[str, WriteReport]:
        """Write these (safe) values and say how each ended, within one deadline; for shutdown, :meth:`run` going on.

        Everything is written, also what is confirmed already; but no part of a command block, which is REJECTED. Stop
        the scan first: a later :meth:`set_outputs` of the same tag would win. A tag not written in time is REJECTED
        when it was never sent and UNKNOWN when it was. With the link down all are REJECTED at once.
        """
        return await self._writer.write_now(outputs, timeout_s)

    # --- the life of one connection

    def _pause_s(self, failures: int) -> float:
        """Before the next attempt; none for a link that was up for a while, where mostly one answer is lost.

        One that begins a moment too early takes its time-outs before it fails: they are part of the longest pause.
        """
        if self._writer.up:
            return FLAP_S - (self._clock.monotonic_ns() - self._up_ns) / S
        options = self._options
        longest = max(options.reconnect_max_s - 2 * options.timeout_s, options.reconnect_max_s / 2)
        mean = min(FIRST_DELAY_S * (1 << min(failures, 16)), longest)
        return min(mean * self._rng.uniform(0.5, 1.5), longest)

    async def _loss_latched(self) -> None:
        """Wait until the scan has taken note of the last loss, so that it decides the outputs after it."""
        while (report := self._buffer.links.get(self.name)) is not None and not report.up:  # noqa: ASYNC110
            # The scan empties the buffer and tells nobody: it must not know who waits.
            await asyncio.sleep(LATCH_POLL_S)

    async def _serve(self) -> None:
        """Serve a fresh connection until it is lost: one task writes, this one reads. Raises ``LinkDown``."""
        self._urgent.clear()
        seen = await self._recognise()
        self._heart.start(self._latest, self._clock.monotonic_ns())
        if self._heart.alive:
            self._go_up(seen)
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._writer.run(self._late), name=f"{self.name} writes")
                await self._read_always()
        except ExceptionGroup as group:
            # What is not the plant's fault is ours, and must not hide behind a lost link.
            first = next((e for e in group.exceptions if not isinstance(e, LinkDown)), group.exceptions[0])
            raise first from group

    async def _recognise(self) -> list[Seen]:
        """Read every group once, set the schedule from here, and see whose values those are. Raises ``LinkDown``."""
        seen: list[Seen] = []
        for group in range(len(self._due)):
            while (one := await self._read(group)) is None:
                pass  # bounded: a driver turns repeated failures into LinkDown
            seen.append(one)
        now = self._clock.monotonic_ns()
        self._due = [_next(now, period, slot) for period, slot in zip(self._period_ns, self._slots, strict=True)]
        problem = self._peer.stranger([one.reading for one in seen])
        if problem:
            raise self._stranger(problem)
        for group in self._peer.groups:
            self._peer.boot(group, seen[group].reading)
        return seen

    def _stranger(self, problem: str) -> LinkDown:
        return _Stranger(self.name, problem, where=self._driver.endpoint, retry_s=self._options.reconnect_max_s)

    # --- reading

    def _read_next(self, groups: set[int]) -> None:
        """Read these before any other: a write into them is in doubt."""
        self._urgent |= groups
        self._bell.ring()

    def _late(self, now: int) -> bool:
        """Whether a poll is late by a whole period."""
        return now >= min(map(int.__add__, self._due, self._period_ns))

    def _must_wait(self, group: int) -> bool:
        """Whether the last message of such a group waits for the scan, or there is no scan to take one."""
        return not self._writer.up or self._buffer.pending(self.name, group)

    async def _read_always(self) -> None:
        """What is in doubt first, then what is due. Never returns; raises ``LinkDown``."""
        while True:
            now = self._clock.monotonic_ns()
            if self._urgent:
                group = self._urgent.pop()
                if self._each[group] and self._must_wait(group):
                    continue
                before, seen = self._latest[group], await self._read(group)
                if seen is None:
                    self._urgent.add(group)  # bounded, as above
                await self._take(group, before, seen)
                continue
            due = min(self._due)
            if due > now:
                await self._bell.wait(now, due)
                continue
            group = self._due.index(due)
            if self._each[group] and self._must_wait(group):
                self._advance(group, now)
                continue
            before, seen = self._latest[group], await self._read(group)
            now = self._clock.monotonic_ns()
            self._skipped += self._advance(group, now)
            await self._take(group, before, seen)

    def _advance(self, group: int, now: int) -> int:
        """The group's next time; returns the periods missed, which are never caught up."""
        period = self._period_ns[group]
        due = self._due[group] + period
        missed = 0
        if due <= now:
            missed = (now - due) // period + 1
            due += missed * period
        self._due[group] = due
        return missed

    async def _read(self, group: int) -> Seen | None:
        """One read: a reading (all bad when the device refused), or ``None`` when this one failed."""
        self._requests += 1
        asked = self._writer.outputs.asked()
        start = self._clock.monotonic_ns()
        try:
            reading = await self._driver.read(group, self._options.timeout_s)
        except DeviceRefused as exc:
            self._refused += 1
            count = len(self._driver.groups[group].tags)
            reading = Reading((None,) * count, start, dict.fromkeys(range(count), str(exc)))
            self._latest[group] = reading
            return Seen(reading, asked, False)
        except ExchangeFailed as exc:
            self._count(exc)
            return None
        self._round_trip_ms = (self._clock.monotonic_ns() - start) / 1e6
        self._latest[group] = reading
        return Seen(reading, asked, True)

    async def _take(self, group: int, before: Reading | None, seen: Seen | None) -> None:
        """What follows from a reading, or from none."""
        if seen is not None:
            reading = seen.reading
            if group in self._peer.groups and (before is None or reading.values is not before.values):
                self._look_who(group, reading)
            if self._writer.up:
                self._buffer.put(self.name, group, reading)
                if seen.answered:
                    self._writer.settle(group, seen)
                self._writer.notice_drift(group, seen)
        if self._heart.group == group:
            now = self._clock.monotonic_ns()
            self._heart.see(None if seen is None else seen.reading, now)
            if self._heart.overdue(now):
                self._go_down(self._heart.stopped)
        if not self._writer.up and self._heart.alive:
            # It counts (again), or has restarted. Look at everything before anything is written.
            await self._loss_latched()
            async with self._writer.pen:
                self._go_up(await self._recognise())

    def _look_who(self, group: int, reading: Reading) -> None:
        """Raises ``LinkDown`` when it is another PLC by now; a restarted one is down until it was read anew."""
        problem = self._peer.changed(group, reading)
        if problem:
            raise self._stranger(problem)
        restart = self._peer.boot(group, reading)
        if restart:
            self._go_down(restart)
            self._heart.start(self._latest, self._clock.monotonic_ns())

    # --- up and down

    def _go_up(self, seen: Sequence[Seen]) -> None:
        self._up_ns = self._clock.monotonic_ns()
        self._report("up", LinkReport(self.name, True, restarted=self._peer.take_restarted()))
        for group, one in enumerate(seen):
            self._buffer.put(self.name, group, one.reading)
        self._writer.go_up(seen)

    def _go_down(self, reason: str, *, stranger: bool = False) -> None:
        self._reason = reason
        self._writer.go_down(reason)
        self._report("stranger" if stranger else "down", LinkReport(self.name, False, reason))

    def _report(self, kind: str, report: LinkReport) -> None:
        """Only changes are reported."""
        if self._reported != kind:
            self._reported = kind
            self._buffer.link(report)

    def _count(self, exc: FieldBusError) -> None:
        if exc.timed_out:
            self._timeouts += 1
        else:
            self._failed += 1


class _Stranger(LinkDown):
    """What answers is not the PLC that the configuration means."""


def _next(now: int, period_ns: int, slot: int) -> int:
    """The next time of a slot.

    Not all links and groups poll at once, and those of one slot do, which costs the process one awakening.
    """
    due = now - now % period_ns + slot * period_ns // SLOTS
    return due if due > now else due + period_ns
