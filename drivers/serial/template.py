"""Pure: texts to send, with values filled in so that no value can become a command."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Literal

from drivers.port import Value

Escape = Literal["refuse", "zpl"]
SPECIAL = '"\\^~'
"""Characters that ``refuse`` does not let through, besides control characters: they begin commands or end texts."""
_PLACE = re.compile(r"\{\{|\}\}|\{([a-z][a-z0-9_]*)(?::\.(\d))?\}|[{}]")
_ZPL_PLAIN = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789 !#$%&'()*+,-./:;=?@[]{|}")


class TemplateError(ValueError):
    """A template that cannot be used: what is wrong (``str``) and what to write (:attr:`hint`)."""

    def __init__(self, what: str, hint: str = "") -> None:
        self.hint = hint
        super().__init__(what)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a value goes, with its number of decimals where one is given."""

    field: str
    decimals: int | None


class Template:
    """Text with ``{field}`` or ``{field:.2}`` (two decimals); ``{{`` and ``}}`` are braces.

    With ``zpl`` every field must stand in field data with hexadecimal escapes, ``^FH^FD…{field}…^FS``. Raises
    :class:`TemplateError`.
    """

    def __init__(self, text: str, escape: Escape, encoding: str, marks: Sequence[bytes] = ()) -> None:
        """``marks`` are put around the text when it is sent: no value may bring one of its own."""
        self.escape, self._encoding = escape, encoding
        self._marks = [mark for mark in marks if mark]
        self._parts: list[str | Place] = []
        at = 0
        for match in _PLACE.finditer(text):
            self._parts.append(text[at : match.start()])
            at = match.end()
            if match[0] in ("{{", "}}"):
                self._parts.append(match[0][0])
            elif match[1] is None:
                raise TemplateError(f'"{match[0]}" at character {match.start() + 1} is no field', "write {name}, or {{")
            else:
                self._parts.append(Place(match[1], None if match[2] is None else int(match[2])))
                if escape == "zpl":
                    _check_zpl(text, match.start(), match[0])
        self._parts.append(text[at:])
        self.places = tuple(part for part in self._parts if isinstance(part, Place))
        self.fields = tuple(dict.fromkeys(place.field for place in self.places))
        try:
            for part in self._parts:
                if isinstance(part, str):
                    part.encode(encoding)
        except UnicodeEncodeError as exc:
            raise TemplateError(
                f"{exc.object[exc.start]!r} is not {encoding}", "set encoding: of the framing"
            ) from None

    def fill(self, values: Mapping[str, Value]) -> bytes:
        """The bytes to send. Raises ``ValueError`` when a value cannot be sent safely; the text says why."""
        literal, pieces = [], []
        for part in self._parts:
            if isinstance(part, str):
                literal.append(part.encode(self._encoding))
                pieces.append(literal[-1])
            else:
                pieces.append(self._value(part, values[part.field]))
        data = b"".join(pieces)
        for mark in self._marks:
            if data.count(mark) > sum(each.count(mark) for each in literal):
                raise ValueError(f"a value brings {mark!r}, which begins or ends what is sent, and is not sent")
        return data

    def _value(self, place: Place, value: Value) -> bytes:
        text = value if isinstance(value, str) else _number(value, place.decimals)
        try:
            data = text.encode(self._encoding)
        except UnicodeEncodeError as exc:
            raise ValueError(f"{place.field}: {exc.object[exc.start]!r} is not {self._encoding}") from None
        if self.escape == "zpl":
            return b"".join(bytes((b,)) if b in _ZPL_PLAIN else b"_%02X" % b for b in data)
        for char in text:
            if char in SPECIAL or ord(char) < 0x20 or 0x7F <= ord(char) <= 0x9F:
                raise ValueError(f"{place.field}: {char!r} could act as a command in the device and is not sent")
        return data


def _number(value: float, decimals: int | None) -> str:
    if isinstance(value, bool):
        return str(int(value))
    if isinstance(value, int):
        return str(value) if decimals is None else f"{value}.{'0' * decimals}".rstrip(".")
    # The shortest digits that mean this number, never with an exponent.
    return format(Decimal(repr(value)), "f") if decimals is None else f"{value:.{decimals}f}"


def _check_zpl(text: str, at: int, place: str) -> None:
    """Outside of ^FD…^FS, or without ^FH, a value would be read as commands, or its escapes be printed."""
    begun = max(text.rfind("^FS", 0, at), text.rfind("^XA", 0, at))
    inside = text[begun + 3 if begun >= 0 else 0 : at].upper()
    hexed, data = inside.rfind("^FH"), inside.rfind("^FD")
    if not 0 <= hexed < data or "^" in inside[data + 3 :] or "~" in inside[data + 3 :]:
        raise TemplateError(f"{place} does not stand in escaped field data", f"write ^FH^FD{place}^FS")
    if inside[hexed + 3 : hexed + 4] not in ("^", "_"):
        raise TemplateError(f"{place}: ^FH with an escape character of its own", "write ^FH alone; it is then _")
