"""Pure: tags on the messages and commands of a line protocol, and the values that texts make."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from drivers import codec
from drivers.port import DataType, ReadGroup, SerialAddress, Tag, Value
from drivers.serial.protocol import ANY, COUNT, JOB, LOST, LineProtocol, Message

Fields = Mapping[str, str | None]
"""A message taken apart: the text of every field, ``None`` where its group took no part."""
TYPES = frozenset(DataType) - {DataType.BCD, DataType.LBCD}
_INTEGER = re.compile(r"[+-]? *[0-9]+")
_REAL = re.compile(r"[+-]? *(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")


class PlanError(ValueError):
    """A tag, or a command, that does not fit the protocol: what is wrong (``str``), what to write, and where."""

    def __init__(
        self, what: str, hint: str, *, tag: str = "", key: str = "address", path: tuple[str, ...] = ()
    ) -> None:
        self.hint, self.tag, self.key, self.path = hint, tag, key, path
        super().__init__(what)


@dataclass(frozen=True, slots=True)
class Source:
    """Where a tag comes from: message or command, and its field."""

    name: str
    field: str


def source_of(protocol: LineProtocol, tag: Tag) -> Source:
    """What the tag's address means. Raises :class:`PlanError` when the protocol lacks it, or the tag does not fit."""
    name, _, field = tag.address.path.partition(".") if isinstance(tag.address, SerialAddress) else ("", "", "")
    if name not in protocol.messages and name not in protocol.commands:
        known = ", ".join((*protocol.messages, *protocol.commands))
        what = f"{tag.name}: {tag.address} is no field of a message or command"
        raise PlanError(what, f"write message.field; there are {known}", tag=tag.name)
    fields = protocol.fields(name)
    if field not in fields:
        raise PlanError(f'{tag.name}: {name} has no field "{field}"', f"it has {', '.join(fields)}", tag=tag.name)
    _check_type(protocol, tag, Source(name, field))
    return Source(name, field)


def _check_type(protocol: LineProtocol, tag: Tag, source: Source) -> None:
    if tag.type not in TYPES:
        raise PlanError(f"{tag.name}: a serial device has no {tag.type}", "use UDINT", tag=tag.name, key="type")
    codec.check(tag)
    number = source.field == JOB if source.name in protocol.commands else source.field in (COUNT, LOST)
    if number and (tag.type is not DataType.UDINT or tag.scaled or tag.low is not None or tag.high is not None):
        what = f"{tag.name}: {tag.address} is a number from 0 to 4294967295"
        raise PlanError(what, "type UDINT, without scale, offset, low and high", tag=tag.name, key="type")
    template = protocol.sends.get(source.name)
    if tag.writable and source.name in protocol.messages and (template is None or source.field not in template.fields):
        what = f"{tag.name}: {tag.address} cannot be written"
        raise PlanError(what, f"access r, or declare write: in message {source.name}", tag=tag.name, key="access")
    decimals = [place.decimals for place in template.places if place.field == source.field] if template else []
    if any(given is not None for given in decimals) and tag.type not in codec.REALS:
        hint = f"write {{{source.field}}} in the text to send"
        raise PlanError(f"{tag.name}: a {tag.type} has no decimals", hint, tag=tag.name, key="type")


class SerialPlan:
    """Which tags are read together, and what their messages are. Raises ``ValueError``, saying what to change."""

    def __init__(self, protocol: LineProtocol, tags: Sequence[Tag]) -> None:
        flaws = protocol.flaws()
        if flaws:
            texts = (f"protocol.{'.'.join(flaw.path)}: {flaw.what}; {flaw.hint}" for flaw in flaws)
            raise PlanError("; ".join(texts), "correct the protocol")
        self.protocol = protocol
        self.tags = {tag.name: tag for tag in tags}
        self.sources = {tag.name: source_of(protocol, tag) for tag in tags}
        self.at: dict[tuple[str, str], str] = {}
        """The tag of a message or command and its field."""
        for tag in tags:
            source = self.sources[tag.name]
            other = self.at.setdefault((source.name, source.field), tag.name)
            if other != tag.name:
                what = f"{tag.name} and {other} are the same field {tag.address}"
                raise PlanError(what, "use one of them for both", tag=tag.name)
        self.group_of: dict[str, int] = {}
        """The read group of every message and command that tags use."""
        self.groups = self._group(tags)
        self._check_commands()

    def _group(self, tags: Sequence[Tag]) -> tuple[ReadGroup, ...]:
        classes: dict[str, list[Tag]] = {}
        for tag in tags:
            classes.setdefault(tag.scan_class, []).append(tag)
        groups = []
        for number, (scan_class, members) in enumerate(classes.items()):
            each = False
            for tag in members:
                name = self.sources[tag.name].name
                if self.group_of.setdefault(name, number) != number:
                    what = f"{tag.name}: all tags of {name} need one scan class, to be of one message"
                    raise PlanError(what, "give them the same", tag=tag.name, key="scan_class")
                each |= self.queued(name)
            groups.append(ReadGroup(scan_class, tuple(members), each))
        return tuple(groups)

    def _check_commands(self) -> None:
        """A command that is used must have a job, and something that fills its fields."""
        for name in self.protocol.commands:
            if name in self.group_of:
                for field in self.protocol.fields(name):
                    tag = self.tags.get(self.at.get((name, field), ""))
                    if tag is None or not tag.writable:
                        what = f"command {name}: nothing writes {name}.{field}"
                        raise PlanError(what, "add a tag with access: rw", path=("commands", name, "send"))

    def queued(self, name: str) -> bool:
        """Whether every single message of this kind must reach the scan."""
        messages = self.protocol.messages
        return name in messages and self.protocol.pushed(name) and messages[name].keep == "each"

    def asked(self, group: int) -> list[str]:
        """Messages that a read of the group asks for."""
        messages = self.protocol.messages
        return [name for name, at in self.group_of.items() if at == group and name in messages and messages[name].ask]


def match(protocol: LineProtocol, name: str, text: str) -> Fields | None:
    """The message's fields, if the text is one."""
    found = protocol.patterns[name].fullmatch(text)
    return None if found is None else found.groupdict()


def verdict(message: Message, fields: Fields) -> tuple[str, str]:
    """Why the message must not be used, and the field that says so; both empty when it may be."""
    for field, reasons in message.bad.items():
        text = fields[field]
        if text is not None:
            reason = reasons.get(text, reasons.get(ANY, ""))
            if reason:
                return reason, field
    return "", ""


def value_of(tag: Tag, field: str, message: Message, fields: Fields) -> tuple[Value | None, str]:
    """The tag's value in this message, or ``None`` and the reason why there is none."""
    reason, because = verdict(message, fields)
    # The field that says so is text to show; as a number it would be used.
    if reason and not (field == because and tag.type is DataType.STRING):
        return None, reason
    text = fields[field]
    if text is None:
        return None, f"this message has no {field}"
    return text_value(tag, text)


def text_value(tag: Tag, text: str) -> tuple[Value | None, str]:
    """The value that a text means for the tag's type, or ``None`` and the reason. A sign may be set off by blanks."""
    shown = repr(text[:40])
    if tag.type is DataType.STRING:
        return (text, "") if not tag.length or len(text) <= tag.length else (None, f"longer than {tag.length}: {shown}")
    if tag.type is DataType.BOOL:
        return (text == "1", "") if text in ("0", "1") else (None, f"{shown} is neither 0 nor 1")
    real = tag.type in codec.REALS
    text = text.strip(" ")
    if len(text) > 40 or not (_REAL if real else _INTEGER).fullmatch(text):
        return None, f"{shown} is no {'number' if real else 'whole number'}"
    digits = text.replace(" ", "")
    return codec.judge(tag, float(digits) if real else int(digits))
