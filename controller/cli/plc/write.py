"""``linewright plc write``: one guarded write at a time, shown before, asked about, read back.

A connection is never held while somebody thinks: what is there is read, then asked, then read again; when it changed
meanwhile, it is asked anew. Nothing is ever sent twice.
"""

from __future__ import annotations

import enum
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import typer
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from controller.cli import console
from controller.cli.picture import QUIET
from controller.cli.plc.guard import kept_out
from controller.cli.plc.read import BAD, reasons
from controller.cli.plc.sample import Sample, look, shown, with_raw
from controller.cli.plc.target import Target, make, opened
from drivers import codec
from drivers.port import DataType, Driver, FieldBusError, ModbusAddress, Outcome, Tag, Value, WriteOutcome


class WriteExit(enum.IntEnum):
    """Exit codes of ``plc write``; 3 (no connection) also means that nothing was sent."""

    VERIFIED = 0
    REJECTED = 1
    UNKNOWN = 2


@dataclass(frozen=True)
class Change:
    """A tag and the value to write into it, checked."""

    tag: Tag
    value: Value

    def raw_text(self) -> str:
        """The registers to be written, in hexadecimal; empty where there are none."""
        if not isinstance(self.tag.address, ModbusAddress) or self.tag.type is DataType.BOOL or self.tag.mask:
            return ""
        data = codec.encode(self.tag, self.value)
        return " ".join(data[n : n + 2].hex().upper() for n in range(0, len(data), 2))


@dataclass(frozen=True, kw_only=True)
class How:
    """What was said on the command line about the writing."""

    yes: bool = False
    anyway: bool = False
    block: bool = False
    as_json: bool = False
    state: Path | None = None


def split(words: Sequence[str], value: str | None, *, by_url: bool) -> tuple[list[str], list[str]]:
    """The words without the values, and the values. Raises :class:`console.CliError`.

    Behind a URL the last ``=`` counts, since node ids and options have their own; else the first.
    """
    head, pairs = ([], list(words)) if by_url else (list(words[:1]), list(words[1:]))
    if value is not None:
        if len(pairs) != 1:
            _reject("--value is for exactly one tag")
        return [*head, pairs[0]], [value]
    if not pairs:
        _reject("say what to write: TAG=VALUE")
    names: list[str] = []
    texts: list[str] = []
    for pair in pairs:
        name, equals, text = pair.rpartition("=") if by_url else pair.partition("=")
        if not equals or not name:
            _reject(f"{pair}: say the value: {pair}=…")
        names.append(name)
        texts.append(text)
    return [*head, *names], texts


def parse_changes(target: Target, texts: Sequence[str]) -> list[Change]:
    """Values by the tags of ``target``, one text each, checked before anything is sent.

    Raises :class:`console.CliError` (rejected): out of range, NaN, not writable, the same place twice.
    """
    changes: list[Change] = []
    for tag, text in zip(target.tags, texts, strict=True):
        where = tag.name if tag.name == str(tag.address) else f"{tag.name} at {tag.address}"
        if not tag.writable:
            hint = "its access in line.yaml is r" if target.line else "inputs cannot be written"
            _reject(f"{where}: read-only; {hint}")
        try:
            value = parse_value(tag, text)
            codec.to_raw(tag, value)
        except ValueError as error:
            _reject(str(error) if str(error).startswith(tag.name) else f"{where}: {error}")
        for other in changes:
            if places(tag) & places(other.tag):
                _reject(f"{tag.name} and {other.tag.name} are the same place; give one value for it")
        changes.append(Change(tag, value))
    return changes


def places(tag: Tag) -> set[tuple[object, ...]]:
    """What a write of the tag touches, register by register or bit by bit."""
    address = tag.address
    if not isinstance(address, ModbusAddress):
        return {(str(address),)}
    if address.bit is not None:
        return {(address.area, address.offset, address.bit)}
    count = 1 if tag.type is DataType.BOOL else codec.register_count(tag)
    bits = range(16) if count and address.area == "hr" else (0,)
    return {(address.area, address.offset + n, bit) for n in range(count) for bit in bits}


def parse_value(tag: Tag, text: str) -> Value:
    """The text as a value of the tag's kind. Raises ``ValueError``."""
    if tag.type is DataType.STRING:
        return text
    if tag.type is DataType.BOOL:
        values = {"true": True, "false": False, "1": True, "0": False}
        if text.lower() not in values:
            raise ValueError(f"a BOOL takes true or false, not {text!r}")
        return values[text.lower()]
    try:
        return int(text)
    except ValueError:
        pass
    try:
        return float(text)
    except ValueError:
        hint = f"; write {text.replace(',', '.')}" if "," in text else "; the number alone, without unit"
        raise ValueError(f"{tag.type} takes a number, not {text!r}{hint}") from None


def write(target: Target, changes: Sequence[Change], how: How) -> WriteExit:
    """Show, ask, write, verify. Raises :class:`console.CliError`: then nothing was sent."""
    if how.block:
        problem = make(target, [c.tag for c in changes]).block_problem([c.tag.name for c in changes])
        if problem:
            _reject(f"--block: {problem}")
    if not how.yes and not (sys.stdin.isatty() and sys.stderr.isatty()):
        _reject("nothing is written without asking somebody, and there is no terminal; "
                "look first with `linewright plc read`, then give --yes")  # fmt: skip
    with kept_out(target.line.file.line.name if target.line else None, how.state) as busy:
        if busy and not how.anyway:
            whose = "" if target.line else "; whether this PLC is one of its own cannot be told from a URL"
            _reject(f"{busy}{whose}: it would write its own values over yours, or yours would upset its stations. Stop "
                    "it, or command the line instead (`linewright command`); --anyway writes all the same")  # fmt: skip
        if busy:
            console.say(f"warning: {busy}; writing anyway")
        before = console.run(_look(target, changes))
        while True:
            if not (how.as_json and how.yes):
                console.console(stderr=True).print(preview(target, changes, before))
            if not how.yes and not typer.confirm("Write?", err=True):
                _reject("not written")
            act = _Act(target, changes, how)
            try:
                moved = console.run(act.go(before))
            except KeyboardInterrupt:
                return act.interrupted()
            if moved is None:
                return act.worst
            console.say("What is there has changed meanwhile:")
            before = moved


def preview(target: Target, changes: Sequence[Change], before: Sequence[Sample]) -> RenderableType:
    """What is there now, and what will be."""
    grid = Table(box=None, pad_edge=False, header_style=QUIET, title=Text(f"to be written to {target.name}"))
    grid.title_justify = "left"
    for name in ("tag", "address", "now", "new", "registers now → new", "description"):
        grid.add_column(name, overflow="fold")
    for change, sample in zip(changes, before, strict=True):
        tag = change.tag
        now = Text("BAD", style=BAD) if sample.reason else Text(shown(tag, sample.value))
        registers = f"{sample.raw_text} → {change.raw_text()}" if change.raw_text() else ""
        new = Text(shown(tag, change.value), style="bold")
        quiet = [Text(text, style=QUIET) for text in (str(tag.address), registers, tag.description)]
        grid.add_row(Text(tag.name), quiet[0], now, new, *quiet[1:])
    return Group(grid, *[Text(line, style=BAD) for line in reasons(before)])


async def _look(target: Target, changes: Sequence[Change]) -> list[Sample]:
    tags = [c.tag for c in changes]
    async with opened(target, with_raw(tags)) as driver:
        return await look(driver, tags, target.timeout_s)


class _Act:
    """The writing itself, and how far it came."""

    def __init__(self, target: Target, changes: Sequence[Change], how: How) -> None:
        self._target, self._changes, self._how = target, changes, how
        self.worst = WriteExit.VERIFIED
        self._sending: Sequence[Change] = ()
        self._left = list(changes)

    async def go(self, before: Sequence[Sample]) -> list[Sample] | None:
        """Write one after the other, up to the first that is not verified. Returns what is there if it changed."""
        target = self._target
        tags = [c.tag for c in self._changes]
        async with opened(target, with_raw(tags)) as driver:
            now = await look(driver, tags, target.timeout_s)
            if not self._how.yes and [(s.value, s.reason) for s in now] != [(s.value, s.reason) for s in before]:
                return now
            for part in [self._changes] if self._how.block else [[change] for change in self._changes]:
                outcome = await self._send(driver, part)
                if outcome.outcome is not Outcome.VERIFIED:
                    break
        if self.worst is WriteExit.UNKNOWN:
            await self._advise()
        for change in self._left:
            self._tell(change, "not sent", "after the one before")
        return None

    async def _send(self, driver: Driver, part: Sequence[Change]) -> WriteOutcome:
        self._sending = part
        self._left = [change for change in self._left if change not in part]
        timeout_s = self._target.timeout_s
        if self._how.block:
            outcome = await driver.write_block({c.tag.name: c.value for c in part}, timeout_s)
        else:
            outcome = await driver.write(part[0].tag.name, part[0].value, timeout_s)
        self._sending = ()
        codes = {Outcome.VERIFIED: WriteExit.VERIFIED, Outcome.REJECTED: WriteExit.REJECTED}
        self.worst = codes.get(outcome.outcome, WriteExit.UNKNOWN)
        for change in part:
            self._tell(change, outcome.outcome, outcome.reason)
        return outcome

    async def _advise(self) -> None:
        """After a write of unknown outcome: what reads now, if anything does."""
        console.say("UNKNOWN: it may have been executed, or may still be. Do not repeat it: look at the machine, then "
                    "read the tag again (`linewright plc read`) and decide.")  # fmt: skip
        tags = [c.tag for c in self._changes]
        driver = make(self._target, tags)
        try:
            await driver.connect(self._target.timeout_s)
            for sample in await look(driver, tags, self._target.timeout_s):
                console.say(f"  {sample.tag.name} reads {sample.reason or shown(sample.tag, sample.value)} now")
        except FieldBusError as error:
            console.say(f"  it cannot be read now: {error}")
        finally:
            await driver.close()

    def interrupted(self) -> WriteExit:
        """After Ctrl-C: what is known."""
        for change in self._sending:
            self._tell(change, Outcome.UNKNOWN, "interrupted while it was under way")
        for change in self._left:
            self._tell(change, "not sent", "interrupted")
        if self._sending:
            console.say("UNKNOWN: it may have been executed; read it before anything else")
            return WriteExit.UNKNOWN
        return WriteExit.REJECTED if self._left else self.worst

    def _tell(self, change: Change, outcome: str, reason: str) -> None:
        tag = change.tag
        if self._how.as_json:
            row = {"tag": tag.name, "address": str(tag.address), "value": change.value}
            console.emit({**row, "outcome": str(outcome), "reason": reason})
            return
        print(f"{tag.name} = {shown(tag, change.value)}: {outcome}" + (f": {reason}" if reason else ""), flush=True)


def _reject(message: str) -> NoReturn:
    console.fail(message, console.Exit.FAILED)
