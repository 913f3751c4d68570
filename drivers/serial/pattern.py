"""Pure: regular expressions that take bounded time, whatever a device sends.

Python's engine tries every way to share a text among the repeats of a pattern. Where several repeats can take
the same characters, the ways multiply: ``(a+)+`` is exponential, ``.*.*.*x`` is of the third power. A scanner with a
bad cable would then stop the whole controller. So a pattern is looked at once, when it is declared, and refused when
its worst case is too long for its longest line.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from re import _constants as op  # type: ignore[attr-defined]
from re import _parser as parser  # type: ignore[attr-defined]
from typing import Any

MAX_WAYS = 300_000
"""Ways to match that the engine may have to try on one line: some 10 ms."""
MAX_PATHS = 256
"""Paths through alternatives and optional parts."""
_OTHER = 1 << 256
_ALL = (1 << 257) - 1
_CATEGORIES = {
    op.CATEGORY_DIGIT: r"\d", op.CATEGORY_NOT_DIGIT: r"\D", op.CATEGORY_SPACE: r"\s",
    op.CATEGORY_NOT_SPACE: r"\S", op.CATEGORY_WORD: r"\w", op.CATEGORY_NOT_WORD: r"\W",
}  # fmt: skip


class PatternError(ValueError):
    """A pattern that cannot be used: what is wrong (``str``) and what to write (:attr:`hint`)."""

    def __init__(self, what: str, hint: str = "") -> None:
        self.hint = hint
        super().__init__(what)


@dataclass(frozen=True, slots=True)
class _Item:
    """Characters that may stand at one place, and how many times less than the most they may."""

    mask: int
    least: int = 1
    spread: int = 0


_Paths = list[tuple[_Item, ...]]


def compile_pattern(pattern: str, longest: int) -> re.Pattern[str]:
    """The pattern, for lines of ``longest`` characters at most. Raises :class:`PatternError`."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", FutureWarning)  # "[[" will mean something else one day
            tree = parser.parse(pattern, re.ASCII)
    except (re.error, OverflowError, FutureWarning) as exc:
        raise PatternError(f"not a regular expression: {exc}", "see docs/serial-devices.md") from None
    except RecursionError:
        raise PatternError("too deeply nested", "write it flat") from None
    if tree.state.flags & ~(re.ASCII | re.UNICODE):
        raise PatternError("flags like (?i) are not taken", "write [Aa] instead")
    ways = sum(_ways(path, longest) for path in _paths(tree))
    if ways > MAX_WAYS:
        hint = "make parts that follow each other take different characters, or lower max_length"
        raise PatternError(f"a line of {longest} characters could be matched in {ways:.0e} ways", hint)
    return re.compile(pattern, re.ASCII)


def _paths(tree: Any) -> _Paths:
    """Every way through the alternatives, each as the items that follow each other."""
    paths: _Paths = [()]
    for kind, value in tree:
        choices = _choices(kind, value)
        paths = [path + choice for path in paths for choice in choices]
        if len(paths) > MAX_PATHS:
            raise PatternError(f"more than {MAX_PATHS} combinations of alternatives", "declare several messages")
    return paths


def _choices(kind: Any, value: Any) -> _Paths:
    if kind in (op.LITERAL, op.NOT_LITERAL, op.ANY, op.IN):
        return [(_Item(_mask(kind, value)),)]
    if kind is op.AT:
        return [()]
    if kind is op.SUBPATTERN:
        if value[1] or value[2]:
            raise PatternError("flags like (?i:…) are not taken", "write [Aa] instead")
        return _paths(value[3])
    if kind is op.ATOMIC_GROUP:
        return _paths(value)
    if kind is op.BRANCH:
        return [path for branch in value[1] for path in _paths(branch)]
    if kind in (op.MAX_REPEAT, op.MIN_REPEAT, op.POSSESSIVE_REPEAT):
        return _repeat(*value)
    raise PatternError("looking ahead or behind and back references are not taken", "match the text as it stands")


def _repeat(least: int, most: int, body: Any) -> _Paths:
    inner = _paths(body)
    if (least, most) == (0, 1):
        return [(), *inner]
    if most == 1:
        return inner
    if len(inner) > 1 or any(item.spread for item in inner[0]):
        hint = "repeat one set of characters, not a group that itself varies"
        raise PatternError("a repeat inside a repeat can take exponential time", hint)
    width = sum(item.least for item in inner[0])
    if not width:
        return [()]
    mask = 0
    for item in inner[0]:
        mask |= item.mask
    unbounded = most >= 1 << 20
    return [(_Item(mask, least * width, 1 << 20 if unbounded else (most - least) * width),)]


def _ways(path: Sequence[_Item], longest: int) -> float:
    """The product over the worst chain of repeats that can hand characters to each other."""
    best: list[float] = []
    varying = [n for n, item in enumerate(path) if item.spread]
    for place, n in enumerate(varying):
        before = 1.0
        for k, other in enumerate(varying[:place]):
            first = path[other].mask
            between = (item for item in path[other + 1 : n] if item.least)
            if first & path[n].mask and all(item.mask & first for item in between):
                before = max(before, best[k])
        best.append(before * (min(path[n].spread, longest) + 1))
    return max(best, default=1.0)


def _mask(kind: Any, value: Any) -> int:
    """The characters as bits 0..255, all others as bit 256."""
    if kind is op.LITERAL:
        return 1 << min(int(value), 256)
    if kind is op.NOT_LITERAL:
        return _ALL & ~(1 << value) if value < 256 else _ALL
    if kind is op.ANY:
        return _ALL & ~(1 << 10)
    mask = 0
    negate = False
    for part, detail in value:
        if part is op.NEGATE:
            negate = True
        elif part is op.RANGE:
            low, high = detail
            mask |= ((1 << min(high, 256) + 1) - 1) & ~((1 << min(low, 256)) - 1)
        elif part is op.CATEGORY:
            mask |= _category(detail)
        else:
            mask |= 1 << min(detail, 256)
    # A set of some far characters leaves other far characters out of it: both it and its negation have bit 256.
    return (_ALL & ~mask) | _OTHER if negate else mask


def _category(category: Any) -> int:
    test = re.compile(_CATEGORIES[category], re.ASCII)
    mask: int = sum(1 << n for n in range(256) if test.fullmatch(chr(n)))
    negated = (op.CATEGORY_NOT_DIGIT, op.CATEGORY_NOT_SPACE, op.CATEGORY_NOT_WORD)
    return mask | _OTHER if category in negated else mask
