"""Pure: a line protocol as declared, and everything that can be wrong with it.

A device sends *messages*: texts, cut out of its bytes by the *framing*, of which a pattern makes named fields. A
message with ``ask`` comes as the answer to that text; one without comes by itself. A *command* is a text with fields
that is sent once per job number.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, NamedTuple

from drivers.serial.pattern import PatternError, compile_pattern
from drivers.serial.template import Escape, Template, TemplateError

Encoding = Literal["ascii", "latin-1", "utf-8"]
ANY = "*"
"""In ``bad``: every text that is not named."""
COUNT, LOST = "count", "lost"
"""Fields that every message has: how many came (the number of this one), and how many that came by themselves were
lost; both since the start, UDINT, wrapping.
"""
JOB = "job"
"""Field that every command has: the number of the job; a new one sends it, 0 sends nothing."""
MAX_LENGTH = 4096


@dataclass(frozen=True, kw_only=True)
class Checksum:
    """A check over the payload. ``hex`` is two or four upper or lower case digits, the high one first; ``binary`` one
    byte, or for ``crc16`` (Modbus: A001h reflected, start FFFFh) two, the low one first.

    ``after_end``: it follows the end mark, which it then covers (STX text ETX BCC); else it precedes that.
    """

    kind: Literal["xor", "sum8", "crc16"]
    form: Literal["hex", "binary"] = "hex"
    after_end: bool = False
    with_start: bool = False
    """The start mark is covered, too."""

    @property
    def size(self) -> int:
        """Bytes on the wire."""
        return (2 if self.kind == "crc16" else 1) * (2 if self.form == "hex" else 1)


@dataclass(frozen=True, kw_only=True)
class Framing:
    """How messages are told apart: by an ``end`` mark, a fixed ``length`` (bytes of payload), or silence alone.

    ``gap_ms`` of silence end a message that has neither; otherwise what was begun before is thrown away.
    """

    start: bytes = b""
    """Must not occur inside a message: a new one means that the last was cut off."""
    end: bytes = b""
    length: int = 0
    max_length: int = 256
    gap_ms: int = 1000
    checksum: Checksum | None = None
    encoding: Encoding = "ascii"
    frame_sends: bool = False
    """What is sent gets start mark, checksum and end mark, too; else it goes out as it is written."""


@dataclass(frozen=True, kw_only=True)
class Message:
    """One kind of message; ``pattern`` must match all of it. Names of its groups are its fields."""

    pattern: str
    ask: str = ""
    """What is sent to get it; empty when it comes by itself."""
    lines: int = 1
    """Messages of the framing that make up the answer; the pattern sees them joined by a line feed."""
    write: str = ""
    """Template with one field, sent to change that field in the device; then it is asked for to verify."""
    bad: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """By field and text: the reason why the message must not be used. ``*`` is any other text, an empty reason good."""
    keep: Literal["each", "newest"] = "each"
    """Of messages that come by themselves: each reaches the scan, or the newest is enough."""
    queue: int = 64
    """Messages that may wait for the scan; more are lost, the oldest first, and counted."""
    every_ms: int = 0
    """A message that comes by itself at least this often is BAD when it does not; 0: it comes when it comes."""


@dataclass(frozen=True, kw_only=True)
class Command:
    """A text with fields, sent once per job number; never twice."""

    send: str
    escape: Escape = "refuse"
    check: str = ""
    """Message asked for before (when it is bad nothing is sent) and, without ``answer``, after, until it is good."""
    answer: str = ""
    """Message with which the device acknowledges; a bad one means that the command was not executed."""
    timeout_ms: int = 0
    """For the acknowledgement; 0: the PLC's."""


class Flaw(NamedTuple):
    """Something wrong with a protocol: where (keys below ``protocol``), what, and what to write."""

    path: tuple[str, ...]
    what: str
    hint: str = ""


@dataclass(frozen=True, kw_only=True)
class LineProtocol:
    """How a serial line device frames and words its messages."""

    framing: Framing = field(default_factory=Framing)
    messages: Mapping[str, Message] = field(default_factory=dict)
    commands: Mapping[str, Command] = field(default_factory=dict)

    @cached_property
    def patterns(self) -> dict[str, re.Pattern[str]]:
        """Every message's pattern. Raises :class:`PatternError`."""
        return {name: compile_pattern(m.pattern, self.longest(m)) for name, m in self.messages.items()}

    @cached_property
    def sends(self) -> dict[str, Template]:
        """Templates by the name of their command, or of the message that they write. Raises :class:`TemplateError`."""
        encoding = self.framing.encoding
        marks = (self.framing.start, self.framing.end) if self.framing.frame_sends else ()
        found = {name: Template(c.send, c.escape, encoding, marks) for name, c in self.commands.items()}
        return found | {n: Template(m.write, "refuse", encoding, marks) for n, m in self.messages.items() if m.write}

    def longest(self, message: Message) -> int:
        """Characters that the message's pattern may have to look at."""
        return ((self.framing.length or self.framing.max_length) + 1) * message.lines

    def fields(self, name: str) -> tuple[str, ...]:
        """Fields of the message or command, those that every one has included."""
        if name in self.messages:
            return (*self.patterns[name].groupindex, COUNT, LOST)
        return tuple(dict.fromkeys((*self.sends[name].fields, JOB)))

    def pushed(self, name: str) -> bool:
        """Whether the message comes by itself."""
        return not self.messages[name].ask and not any(name == c.answer for c in self.commands.values())

    def flaws(self) -> list[Flaw]:
        """Everything wrong; empty when the protocol can be used."""
        found = [Flaw(("framing", *f.path), f.what, f.hint) for f in _framing(self.framing)]
        for name, message in self.messages.items():
            found += [Flaw(("messages", name, *f.path), f.what, f.hint) for f in self._message(message)]
        for name, command in self.commands.items():
            found += [Flaw(("commands", name, *f.path), f.what, f.hint) for f in self._command(name, command)]
        if not self.messages and not self.commands:
            found.append(Flaw((), "neither messages nor commands are declared", "see docs/serial-devices.md"))
        return found

    def _message(self, message: Message) -> Iterator[Flaw]:
        names: set[str] = set()
        try:
            names = set(compile_pattern(message.pattern, self.longest(message)).groupindex)
        except PatternError as exc:
            yield Flaw(("pattern",), str(exc), exc.hint)
        for reserved in sorted(names & {COUNT, LOST}):
            yield Flaw(("pattern",), f'every message has a field "{reserved}" already', "choose another name")
        yield from _escapes("ask", message.ask)
        if message.ask and not _encodes(message.ask, self.framing.encoding):
            yield Flaw(("ask",), f"it is not {self.framing.encoding}", "set encoding: of the framing")
        for given in sorted(set(message.bad) - names) if names else ():
            yield Flaw(("bad", given), f'the pattern has no field "{given}"', f"it has {', '.join(sorted(names))}")
        if message.lines > 1 and not message.ask:
            yield Flaw(("lines",), "only an answer can have several lines", "add ask:, or remove lines:")
        if message.ask and message.every_ms:
            yield Flaw(("every_ms",), "a message that is asked for comes when it is asked for", "remove it")
        if message.write:
            yield from self._write(message, names)

    def _write(self, message: Message, names: set[str]) -> Iterator[Flaw]:
        yield from _escapes("write", message.write)
        if not message.ask:
            yield Flaw(("write",), "without ask: what was written cannot be read back", "add ask:")
        try:
            fields = Template(message.write, "refuse", self.framing.encoding).fields
        except TemplateError as exc:
            yield Flaw(("write",), str(exc), exc.hint)
            return
        if len(fields) != 1 or (names and not set(fields) <= names):
            hint = f"fields of the pattern: {', '.join(sorted(names))}"
            yield Flaw(("write",), f"it must have one field of the pattern, not {', '.join(fields) or 'none'}", hint)

    def _command(self, name: str, command: Command) -> Iterator[Flaw]:
        if name in self.messages:
            yield Flaw((), f'a message is called "{name}", too', "tags could mean either: rename one")
        yield from _escapes("send", command.send)
        try:
            Template(command.send, command.escape, self.framing.encoding)
        except TemplateError as exc:
            yield Flaw(("send",), str(exc), exc.hint)
        for key, other in (("check", command.check), ("answer", command.answer)):
            if other and other not in self.messages:
                yield Flaw((key,), f'no message is called "{other}"', f"there are {', '.join(self.messages) or 'none'}")
        if command.check and command.check in self.messages and not self.messages[command.check].ask:
            yield Flaw(("check",), f'message "{command.check}" cannot be asked for', "give it ask:")


def _framing(framing: Framing) -> Iterator[Flaw]:
    for key, mark in (("start", framing.start), ("end", framing.end)):
        yield from _escapes(key, mark.decode("latin-1"))
    if framing.end and framing.length:
        yield Flaw(("length",), "either end or length tells where a message ends, not both", "remove one")
    if set(framing.start) & set(framing.end):
        yield Flaw(("start",), "start and end share a character", "they must be told apart")
    if framing.start and not framing.end and not framing.length:
        yield Flaw(("start",), "a start mark needs an end mark or a length", "add end:")
    check = framing.checksum
    if check is None:
        return
    if not framing.end and not framing.length:
        yield Flaw(("checksum",), "messages that end by silence have no checksum here", "add end: or length:")
    elif check.after_end and not framing.end:
        yield Flaw(("checksum", "after_end"), "there is no end mark", "remove after_end")
    elif framing.end and not check.after_end and check.form == "binary":
        what = "a binary checksum before the end mark can look like that mark"
        yield Flaw(("checksum", "form"), what, "after_end: true or form: hex, as the device has it")


def _escapes(key: str, text: str) -> Iterator[Flaw]:
    if re.search(r"\\(?:x[0-9A-Fa-f]{2}|[rnt0](?![A-Za-z]))", text):
        yield Flaw(
            (key,), "it has a backslash where a control character is meant", 'write it in double quotes: "\\r\\n"'
        )


def _encodes(text: str, encoding: Encoding) -> bool:
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return False
    return True
