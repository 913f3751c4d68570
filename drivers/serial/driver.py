"""The driver of a serial line device (see :class:`drivers.port.Driver` for the calls)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from drivers import codec
from drivers.options import SerialDeviceOptions
from drivers.port import (
    DriverStats,
    FieldBusError,
    LinkDown,
    Outcome,
    ReadGroup,
    Reading,
    Tag,
    Value,
    WriteOutcome,
)
from drivers.serial.plan import SerialPlan, value_of, verdict
from drivers.serial.protocol import COUNT, JOB, LOST
from drivers.serial.talk import MS, NotSent, Taken, Talk

CHECK_S = 0.1
"""Pause between two looks at whether a job is done."""


@dataclass(slots=True)
class _Job:
    """The last job of a command: its number, its contents, and whether it is known to be done."""

    number: int = 0
    sent: Mapping[str, Value] = field(default_factory=dict)
    doubt: str = ""


class SerialDeviceDriver:
    """A scanner, scale or printer. Raises ``ValueError`` when tags do not fit the protocol; the text says how."""

    def __init__(
        self,
        name: str,
        tags: Sequence[Tag],
        options: SerialDeviceOptions,
        *,
        monotonic_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._name, self._now = name, monotonic_ns
        self._plan = SerialPlan(options.protocol, tags)
        self._talk = Talk(name, options, self._plan, monotonic_ns)
        self._asked = [self._plan.asked(n) for n in range(len(self._plan.groups))]
        self._shown: dict[str, Taken] = {}
        """The message of every queued kind that the last reading handed over."""
        self._numbers: dict[str, int] = {}
        self._contents: dict[str, Value] = {}
        """What was written into the fields of commands (raw), by tag."""
        self._jobs = {name: _Job() for name in options.protocol.commands}
        self._last: dict[int, Reading] = {}

    @property
    def name(self) -> str:
        """The PLC's name."""
        return self._name

    @property
    def endpoint(self) -> str:
        """Where the device is, for people."""
        return self._talk.endpoint

    @property
    def groups(self) -> tuple[ReadGroup, ...]:
        """The read groups, one per scan class."""
        return self._plan.groups

    async def connect(self, timeout_s: float) -> None:
        """Open the line. Raises :class:`~drivers.port.LinkDown`."""
        self._shown.clear()
        await self._talk.open(timeout_s)

    async def read(self, group: int, timeout_s: float) -> Reading:
        """Ask for the group's messages, one after the other, and take one that came by itself, if there is one."""
        talk = self._talk
        talk.check()
        stamp_ns = 0
        for message in self._asked[group]:
            async with talk.turn:
                taken = await talk.ask(message, timeout_s)
            stamp_ns = stamp_ns or taken.stamp_ns
        if (came := talk.next_message(group)) is not None:
            self._shown[came[0]] = came[1]
        return self._reading(group, stamp_ns or self._now())

    async def write(self, tag: str, value: Value, timeout_s: float) -> WriteOutcome:
        """Write one field of a message and ask for it, or one field of a command, or a job. Never sends twice.

        VERIFIED: the value reads back, is noted for the next job, or the device acknowledged the job.
        """
        return await self._write({tag: value}, timeout_s)

    async def write_block(self, values: Mapping[str, Value], timeout_s: float) -> WriteOutcome:
        """Note the fields of a command and send its job, all or nothing."""
        problem = self.block_problem(tuple(values))
        if problem:
            return WriteOutcome(Outcome.REJECTED, problem)
        return await self._write(values, timeout_s)

    def block_problem(self, tags: Sequence[str]) -> str:
        """Why these tags cannot be written together: a block is the job of one command, with its fields."""
        sources = [self._plan.sources.get(tag) for tag in tags]
        for tag, source in zip(tags, sources, strict=True):
            if source is None or not self._plan.tags[tag].writable:
                return f"{tag} is no writable tag of {self._name}"
        names = {source.name for source in sources if source}
        jobs = [source for source in sources if source and source.field == JOB]
        if len(names) != 1 or len(jobs) != 1 or jobs[0].name not in self._jobs:
            return f"{', '.join(tags)} of {self._name}: a block is the job of one command and its fields"
        return ""

    def stats(self) -> DriverStats:
        """A snapshot of the counters."""
        return self._talk.stats()

    async def close(self) -> None:
        """Close and forget; safe at any time and more than once."""
        await self._talk.close()

    # --- reading

    def _reading(self, group: int, stamp_ns: int) -> Reading:
        values: list[Value | None] = []
        bad: dict[int, str] = {}
        for index, tag in enumerate(self._plan.groups[group].tags):
            value, reason = self._value(tag)
            values.append(value)
            if reason:
                bad[index] = reason
        last = self._last.get(group)
        if last is not None and last.values == tuple(values) and last.bad == bad:
            reading = Reading(last.values, stamp_ns, last.bad)
        else:
            reading = Reading(tuple(values), stamp_ns, bad)
        self._last[group] = reading
        return reading

    def _value(self, tag: Tag) -> tuple[Value | None, str]:
        source, messages = self._plan.sources[tag.name], self._plan.protocol.messages
        if source.name not in messages:
            return self._command_value(tag)
        if source.field == LOST:
            return self._talk.lost[source.name], ""
        taken = (self._shown if self._plan.queued(source.name) else self._talk.latest).get(source.name)
        if source.field == COUNT:
            number = taken.number if taken else self._numbers.get(source.name, 0)
            self._numbers[source.name] = number
            return number, ""
        if taken is None:
            heard = f"; heard {self._talk.last_stray}" if self._talk.last_stray else ""
            return None, f"no {source.name} since the connection was made{heard}"
        declared = messages[source.name]
        age_ms = (self._now() - taken.stamp_ns) // MS
        if 0 < declared.every_ms < age_ms:
            return None, f"no {source.name} for {age_ms / 1000:.1f} s"
        return value_of(tag, source.field, declared, taken.fields)

    def _command_value(self, tag: Tag) -> tuple[Value | None, str]:
        source = self._plan.sources[tag.name]
        if source.field == JOB:
            job = self._jobs[source.name]
            return (None, job.doubt) if job.doubt else (job.number, "")
        if tag.name not in self._contents:
            return None, "not written yet"
        return codec.judge(tag, self._contents[tag.name])

    # --- writing

    async def _write(self, values: Mapping[str, Value], timeout_s: float) -> WriteOutcome:
        raws: dict[str, Value] = {}
        for name, value in values.items():
            tag = self._plan.tags.get(name)
            if tag is None or not tag.writable:
                return WriteOutcome(Outcome.REJECTED, f"{name} is no writable tag of {self._name}")
            try:
                raws[name] = codec.to_raw(tag, value)
            except codec.EncodeError as exc:
                return WriteOutcome(Outcome.REJECTED, str(exc))
        first = next(iter(values))
        where = f"{first} at {self._plan.tags[first].address} of {self._name} ({self.endpoint})"
        source = self._plan.sources[first]
        if (again := self._in_doubt(source.name, raws)) is not None:
            return WriteOutcome(Outcome.UNKNOWN, f"{where}: {again}")
        if self._talk.down:
            return WriteOutcome(Outcome.REJECTED, f"{where}: not sent, {self._talk.down}")
        if source.name in self._plan.protocol.messages:
            return await self._write_field(self._plan.tags[first], values[first], raws[first], where, timeout_s)
        job = self._plan.at[source.name, JOB]
        number = raws.pop(job, None)
        if number is None:
            self._contents.update(raws)
            return WriteOutcome(Outcome.VERIFIED, read_back=codec.judge(self._plan.tags[first], raws[first])[0])
        assert isinstance(number, int)
        contents = {name: self._contents[name] for name in self._fields(source.name) if name in self._contents}
        return await self._do(source.name, number, contents | raws, where, timeout_s)

    def _in_doubt(self, name: str, raws: Mapping[str, Value]) -> str | None:
        """What is not known of the job that is to be written, if it is the last one and that is in doubt."""
        job = self._jobs.get(name)
        same = job is not None and job.doubt and raws.get(self._plan.at[name, JOB]) == job.number
        return job.doubt if job is not None and same else None

    async def _write_field(self, tag: Tag, value: Value, raw: Value, where: str, timeout_s: float) -> WriteOutcome:
        """Send the message's write, then ask for it: only what reads back is verified."""
        source = self._plan.sources[tag.name]
        try:
            data = self._talk.framed_bytes(self._plan.protocol.sends[source.name].fill({source.field: raw}))
        except ValueError as exc:
            return WriteOutcome(Outcome.REJECTED, f"{where}: {exc}")
        try:
            async with self._talk.turn:
                await self._talk.settle(source.name, timeout_s)
                sent_ns = self._talk.send(data)
                self._talk.send(self._talk.framed(self._plan.protocol.messages[source.name].ask))
                taken = await self._talk.answer(source.name, timeout_s, sent_ns)
        except NotSent as exc:
            return WriteOutcome(Outcome.REJECTED, f"{where}: not sent, {exc.what}")
        except FieldBusError as exc:
            return WriteOutcome(Outcome.UNKNOWN, f"{where}: {exc.what}")
        found, reason = value_of(tag, source.field, self._plan.protocol.messages[source.name], taken.fields)
        if codec.same(tag, value, found):
            return WriteOutcome(Outcome.VERIFIED, read_back=found)
        return WriteOutcome(
            Outcome.REJECTED, f"{where}: {value!r} was sent, but {reason or repr(found)} reads back", found
        )

    def _fields(self, command: str) -> list[str]:
        """The tags of the command's fields."""
        template = self._plan.protocol.sends[command]
        return [self._plan.at[command, name] for name in template.fields if name != JOB]

    async def _do(
        self, name: str, number: int, contents: Mapping[str, Value], where: str, timeout_s: float
    ) -> WriteOutcome:
        """Send a job, unless it is the one that was sent last: that is never sent again, whatever became of it."""
        job = self._jobs[name]
        if number == 0:
            self._contents.update(contents)
            self._jobs[name] = _Job()
            return WriteOutcome(Outcome.VERIFIED, read_back=0)
        if number == job.number:
            if contents != job.sent:
                reason = f"{where}: job {number} was sent with other contents; give a new number"
                return WriteOutcome(Outcome.REJECTED, reason)
            return WriteOutcome(Outcome.VERIFIED, read_back=number)
        missing = [tag for tag in self._fields(name) if tag not in contents]
        if missing:
            return WriteOutcome(Outcome.REJECTED, f"{where}: {', '.join(missing)} has not been written yet")
        values = {self._plan.sources[tag].field: value for tag, value in contents.items()} | {JOB: number}
        try:
            data = self._talk.framed_bytes(self._plan.protocol.sends[name].fill(values))
        except ValueError as exc:
            return WriteOutcome(Outcome.REJECTED, f"{where}: {exc}")
        self._contents.update(contents)
        return await self._send_job(name, _Job(number, dict(contents)), data, where, timeout_s)

    async def _send_job(self, name: str, job: _Job, data: bytes, where: str, timeout_s: float) -> WriteOutcome:
        command, talk = self._plan.protocol.commands[name], self._talk
        limit_s = command.timeout_ms / 1000 or timeout_s
        reason = ""
        async with talk.turn:
            try:
                if command.check and (reason := await self._ask_reason(command.check, timeout_s)):
                    return WriteOutcome(Outcome.REJECTED, f"{where}: not sent, {reason}")
                await talk.settle(name, timeout_s)
            except FieldBusError as exc:
                return WriteOutcome(Outcome.REJECTED, f"{where}: not sent, {exc.what}")
            job.doubt = f"job {job.number} was sent and not acknowledged; look at the device, then give a new number"
            self._jobs[name] = job  # before the first byte: whatever happens now, it is not sent again
            sent_ns = talk.send(data)
            if command.answer:
                try:
                    taken = await talk.answer(command.answer, limit_s, sent_ns)
                except FieldBusError as exc:
                    return WriteOutcome(Outcome.UNKNOWN, f"{where}: {exc.what}; {job.doubt}")
                reason = verdict(self._plan.protocol.messages[command.answer], taken.fields)[0]
        if reason:
            self._jobs[name] = _Job()
            return WriteOutcome(Outcome.REJECTED, f"{where}: the device refused job {job.number}: {reason}")
        if not command.answer and (reason := await self._checked(command.check, limit_s, timeout_s)):
            return WriteOutcome(Outcome.UNKNOWN, f"{where}: {reason}; {job.doubt}")
        job.doubt = ""
        return WriteOutcome(Outcome.VERIFIED, read_back=job.number)

    async def _checked(self, check: str, limit_s: float, timeout_s: float) -> str:
        """Ask until the device is ready again; empty when it is, else what it said last. Reads take turns with it."""
        if not check:
            return "this command has neither check: nor answer:"
        until = self._now() + int(limit_s * 1e9)
        while True:
            try:
                async with self._talk.turn:
                    reason = await self._ask_reason(check, timeout_s)
            except LinkDown as exc:
                return exc.what
            except FieldBusError as exc:
                reason = exc.what
            if not reason or self._now() >= until:
                return reason
            await asyncio.sleep(CHECK_S)

    async def _ask_reason(self, message: str, timeout_s: float) -> str:
        """Ask for a message; why it is bad, empty when it is good."""
        taken = await self._talk.ask(message, timeout_s)
        return verdict(self._plan.protocol.messages[message], taken.fields)[0]
