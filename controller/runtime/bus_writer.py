"""The writing half of a link: the life sign, outputs and commands, one at a time, and what readings say of them.

See ``controller.runtime.bus`` for the rules. The writer writes while it is told that the link is :attr:`Writer.up`; the
life sign as long as its task runs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from controller.core.image import InputBuffer, WriteReport
from controller.runtime.bus_commands import RETRY_NS, BlockOptions, Command, Commands
from controller.runtime.bus_state import Heart, Outputs, Place, S, alike, levels_by_group
from controller.runtime.bus_wait import Bell
from controller.runtime.clock import Clock
from drivers.port import Driver, Outcome, Reading, Tag, Value, WriteOutcome


class Seen(NamedTuple):
    """A reading, with what had been written when it was requested, and whether the device gave it at all."""

    reading: Reading
    asked: int
    answered: bool


class Writer:
    """Everything that is written to one PLC. ``latest`` is kept up to date by the reader; ``read_next`` asks it to read
    groups before others.

    Raises ``ValueError`` at construction for a command block that cannot be written.
    """

    def __init__(
        self,
        driver: Driver,
        buffer: InputBuffer,
        clock: Clock,
        timeout_s: float,
        tags: Mapping[str, Tag],
        place: Place,
        heart: Heart,
        blocks: Sequence[BlockOptions],
        latest: Sequence[Reading | None],
        read_next: Callable[[set[int]], None],
    ) -> None:
        self._driver, self._buffer, self._clock, self._timeout_s = driver, buffer, clock, timeout_s
        self._place, self._heart, self._latest, self._read_next = place, heart, latest, read_next
        self.outputs = Outputs(tags)
        self.commands = Commands(blocks, tags, place)
        for block in blocks:
            if problem := driver.block_problem(block.written):
                raise ValueError(f"{driver.name}: command block {block.id}: {problem}")
        self._members = levels_by_group(place, tags, self.commands.members, len(latest))
        self.up = False
        self.requests = 0
        self.pen = asyncio.Lock()
        """Whoever writes holds it; and who reads everything anew, so that nothing is written meanwhile."""
        self._bell = Bell()
        self._why_not = "not connected yet"
        self._compared: dict[int, Sequence[Value | None]] = {}
        """Per group, the values last looked through for drift."""
        self._final: dict[str, WriteReport | None] = {}
        self._final_changed = asyncio.Event()

    # --- what the scan wants

    def want(self, outputs: Mapping[str, Value]) -> None:
        """Want these values. Raises ``KeyError`` for a tag that is not a writable one of this PLC."""
        together: dict[str, Value] = {}
        for tag, value in outputs.items():
            if tag in self.commands.members:
                together[tag] = value
            else:
                self.outputs.want(tag, value)
        if together:
            for command in self.commands.ask(together, self._clock.monotonic_ns()):
                self.outputs.queue(command.id)
            if not self.up:
                self._give_up(self.commands.drop(), f"{self._driver.name} is not connected: {self._why_not}")
        self._bell.ring()

    def beat(self, counter: int) -> None:
        """The newest life sign."""
        if self._heart.want(counter):
            self._bell.ring()

    async def write_now(self, outputs: Mapping[str, Value], timeout_s: float) -> dict[str, WriteReport]:
        """As :meth:`controller.runtime.bus.Link.write_now`."""
        # Nobody watches any more what a command does that goes out, or is tried again, after the safe values.
        self._give_up(self.commands.drop(), "the outputs are made safe")
        levels = {tag: value for tag, value in outputs.items() if tag not in self.commands.members}
        self._final = dict.fromkeys(levels)
        for tag, value in levels.items():
            self.outputs.force(tag, value)
        self._bell.ring()
        late = f"not done within {timeout_s:g} s"
        try:
            async with asyncio.timeout(timeout_s):
                while self.up and None in self._final.values():
                    self._final_changed.clear()
                    await self._final_changed.wait()
        except TimeoutError:
            pass
        else:
            late = f"{self._driver.name} is not connected: {self._why_not}"
        done, self._final = self._final, {}
        told = {t: done[t] or WriteReport(t, v, self.outputs.unfinished(t), late) for t, v in levels.items()}
        part = "it is part of a command, which only the scan gives"
        return {t: told.get(t) or WriteReport(t, v, Outcome.REJECTED, part) for t, v in outputs.items()}

    # --- up and down

    def go_up(self, seen: Sequence[Seen]) -> None:
        """The link is up; the PLC holds this. The caller has the pen."""
        self.up = True
        for tag in self.outputs.wanted:
            group, index = self._place[tag]
            self.outputs.compare(tag, seen[group].reading.values[index])
        self._bell.ring()

    def go_down(self, reason: str) -> None:
        """The link is lost: nothing is confirmed any more, and no command is sent again."""
        self.up, self._why_not = False, reason
        self.outputs.forget()
        self._compared.clear()
        self._give_up(self.commands.drop(), f"the link was lost: {reason}")
        self._final_changed.set()

    # --- what readings say

    def notice_drift(self, group: int, seen: Seen) -> None:
        """What a reading shows of outputs that were confirmed."""
        values = seen.reading.values
        if values is self._compared.get(group):
            return
        if self.outputs.look(self._members[group], values, seen.asked, seen.reading.stamp_ns):
            self._compared[group] = values

    def settle(self, group: int, seen: Seen) -> None:
        """A fresh reading settles the writes of unknown outcome in its group."""
        if not (self.outputs.in_doubt or self.commands.open):
            return
        for tag in self.outputs.doubtful():
            place, index = self._place[tag]
            if place == group and self.outputs.shows(tag, seen.asked, seen.reading.stamp_ns):
                value = self.outputs.settle(tag, seen.reading.values[index])
                if value is not None:
                    report = WriteReport(tag, value, Outcome.VERIFIED, "found in force by read-back")
                    self._buffer.report(report)
                    self._finish(report)
                self._bell.ring()
        for tag in self.commands.doubtful():
            place, index = self._place[tag]
            if place == group and self.outputs.shows(tag, seen.asked, seen.reading.stamp_ns):
                settled = self.commands.settle(tag, seen.reading.values[index])
                if settled is not None:
                    command, taken = settled
                    if taken:
                        self._buffer.report(command.report(Outcome.VERIFIED, "found in the PLC by read-back"))
                    else:
                        self.outputs.queue(command.id)  # with the same number, so that it is executed once at most
                        self._bell.ring()

    # --- writing

    async def run(self, late: Callable[[int], bool]) -> None:
        """Write what there is to write, and rest where that would make ``late`` polls later still. Never returns."""
        while True:
            start = self._clock.monotonic_ns()
            async with self.pen:
                wrote = await self._write_next()
            now = self._clock.monotonic_ns()
            if not wrote:
                await self._bell.wait(now, self._idle_until(now))
            elif late(now):
                await asyncio.sleep((now - start) / S)  # leave the wire to the poll that is late

    def _idle_until(self, now: int) -> int | None:
        """Until when there is nothing to write, if nobody asks for anything."""
        times: list[int | None] = [self._heart.next_write()]
        if self.up:
            times += [self.outputs.next_retry(), self.commands.next_end()]
        known = [t for t in times if t is not None]
        return max(now, min(known)) if known else None

    async def _write_next(self) -> bool:
        """Write one thing; returns whether there was anything to write now."""
        now = self._clock.monotonic_ns()
        if self._heart.write_due(now):
            await self._write_beat(now)
            return True
        if not self.up:
            return False
        self._give_up(self.commands.over(now), "not done in time")
        tag = self.outputs.next(now)
        if tag is None:
            return False
        command = self.commands.get(tag)
        if command is None:
            await self._write(tag)
        else:
            await self._send(command, now)
        return True

    async def _write_beat(self, now: int) -> None:
        """Write the newest life sign. Only the beginning and the end of its failing are reported."""
        tag, value = self._heart.take(now)
        self.requests += 1
        outcome = await self._driver.write(tag, value, self._timeout_s)
        if self._heart.changed(outcome):
            reason = f"life sign: {outcome.reason}" if outcome.reason else ""
            self._buffer.report(WriteReport(tag, value, outcome.outcome, reason))

    async def _write(self, tag: str) -> None:
        value = self.outputs.begin(tag)
        self.requests += 1
        outcome = await self._driver.write(tag, value, self._timeout_s)
        self.outputs.ended(tag, value, outcome, self._clock.monotonic_ns())
        self._compared.pop(self._place[tag][0], None)  # the next reading is news, even if it is as before the write
        report = WriteReport(tag, value, outcome.outcome, outcome.reason)
        self._buffer.report(report)
        if outcome.outcome is Outcome.UNKNOWN:
            # Next thing read; until then the tag is not written. On a lost link this read says so.
            self._read_next({self._place[tag][0]})
        else:
            self._finish(report)

    def _finish(self, report: WriteReport) -> None:
        """Tell :meth:`write_now`, unless this was the write of an older value."""
        if report.tag in self._final and alike(report.value, self.outputs.wanted[report.tag]):
            self._final[report.tag] = report
            self._final_changed.set()

    # --- commands

    async def _send(self, command: Command, now: int) -> None:
        """Send a command, for the first time or again."""
        values = self.commands.begin(command, self._latest, now)
        if isinstance(values, str):
            outcome = WriteOutcome(Outcome.REJECTED, values)
        else:
            self.requests += 1
            outcome = await self._driver.write_block(values, self._timeout_s)
        now = self._clock.monotonic_ns()
        counts = self.commands.ended(command, outcome)
        self.outputs.touched(command.tags, now)
        self.outputs.rejected += outcome.outcome is Outcome.REJECTED
        self.outputs.unknown += outcome.outcome is Outcome.UNKNOWN
        self._buffer.report(command.report(outcome.outcome, outcome.reason))
        if not counts:
            return
        self.outputs.unqueue(command.id)
        if outcome.outcome is Outcome.REJECTED:
            self.outputs.queue(command.id, now + RETRY_NS)
        elif outcome.outcome is Outcome.UNKNOWN:
            self._read_next({self._place[tag][0] for tag in command.doubt})

    def _give_up(self, commands: Sequence[Command], why: str) -> None:
        for command in commands:
            self.outputs.unqueue(command.id)
            report = command.given_up(why)
            if report is not None:
                self._buffer.report(report)
