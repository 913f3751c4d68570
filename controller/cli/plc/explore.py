"""Pure: which addresses of an area answer, found with few read requests.

Blocks as large as the device takes are tried first. One that is refused holds at least one address that is not there;
it is halved, first where it borders on what can be read (there the edge is found in seven requests), in the end the
largest. In between the round addresses are tried one by one, since register lists mostly begin there. Asked to the
end it settles every address; what a budget does not reach is told as not settled, never as absent.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from dataclasses import dataclass

Span = tuple[int, int]
"""First and last address."""
ROUND = 100
"""Addresses that are tried by themselves are multiples of this."""
FLOOR = 16
"""A device's limit is never taken to be below so many addresses a request."""


@dataclass(frozen=True)
class Found:
    """The end of an exploration."""

    readable: tuple[Span, ...]
    absent: tuple[Span, ...]
    """Refused one by one."""
    unsettled: tuple[Span, ...]
    """Not tried, or refused as a block: some of it may be readable."""


class Explorer:
    """Ask :meth:`next` what to read, tell :meth:`tell` how it went, until there is nothing more to ask."""

    def __init__(self, first: int, last: int, limit: int, avoid: Iterable[Span] = ()) -> None:
        self.limit = limit
        self._largest = 1
        """Largest block that the device took."""
        self._fresh: list[Span] = list(reversed(without((first, last), avoid)))
        self._round = list(range(last - last % ROUND, first - 1, -ROUND))
        self._open: dict[Span, bool] = {}
        """Blocks to be looked into, and whether each is known to hold an address that is refused."""
        self._first: dict[int, Span] = {}
        self._last: dict[int, Span] = {}
        self._near: list[Span] = []
        """Of these, those that border on what can be read (some may be done with), and ..."""
        self._largest_first: list[tuple[int, int, Span]] = []
        """... all of them by size."""
        self._readable: set[int] = set()
        self._absent: set[int] = set()
        self._asked: tuple[Span, Span | None] | None = None
        """What was asked, and of which refused block it is a half."""

    def next(self) -> Span | None:
        """The block to read now; ``None`` when every address is settled, but for those without an answer."""
        assert self._asked is None, "tell first"
        if self._fresh:
            first, last = self._fresh.pop()
            end = min(last, first + self.limit - 1)
            if end < last:
                self._fresh.append((end + 1, last))
            self._asked = ((first, end), None)
            return first, end
        span = self._near_one() or self._round_one() or self._largest_one()
        if span is None:
            return None
        if not self._open.pop(span):
            self._asked = (span, None)
            return span
        first, last = span
        half = (last - first + 1) // 2
        left = last + 1 not in self._readable or first - 1 in self._readable
        part = (first, first + half - 1) if left else (last - half + 1, last)
        self._asked = (part, span)
        return part

    def tell(self, *, readable: bool, too_many: bool = False) -> None:
        """How the last block went. ``too_many``: the device refused the count, as far as it says."""
        assert self._asked is not None, "ask first"
        (first, last), whole = self._asked
        self._asked = None
        size = last - first + 1
        rest = None if whole is None else (last + 1, whole[1]) if first == whole[0] else (whole[0], first - 1)
        if readable:
            self._readable.update(range(first, last + 1))
            self._near += [span for span in (self._first.get(last + 1), self._last.get(first - 1)) if span]
            self._largest = max(self._largest, size)
            if rest is not None:  # the whole was refused, and this half is not why
                self._blame(rest)
            return
        if rest is not None:
            self._add(rest, refused=False)
        if too_many and size > 1:  # then nothing is known of the addresses, only that this is asked in halves
            if size > max(FLOOR, self._largest):
                self.limit = max(FLOOR, self._largest, min(self.limit, size // 2))
            middle = (first + last) // 2
            self._add((first, middle), refused=False)
            self._add((middle + 1, last), refused=False)
        else:
            self._blame((first, last))

    def leave(self) -> None:
        """The last block got no answer: it stays unsettled."""
        assert self._asked is not None, "ask first"
        self._asked = None

    def found(self, first: int, last: int) -> Found:
        """What is known of these addresses."""
        rest = [n for n in range(first, last + 1) if n not in self._readable and n not in self._absent]
        return Found(spans(self._readable), spans(self._absent), spans(rest))

    def _blame(self, span: Span) -> None:
        if span[0] == span[1]:
            self._absent.add(span[0])
        else:
            self._add(span, refused=True)

    def _add(self, span: Span, *, refused: bool) -> None:
        first, last = span
        self._open[span] = refused
        self._first[first] = self._last[last] = span
        heapq.heappush(self._largest_first, (first - last, first, span))
        if first - 1 in self._readable or last + 1 in self._readable:
            self._near.append(span)

    def _near_one(self) -> Span | None:
        """An open block that borders on what can be read."""
        while self._near:
            span = self._near.pop()
            if span in self._open:
                return span
        return None

    def _round_one(self) -> Span | None:
        """The next round address inside an open block, which is then three."""
        while self._round:
            number = self._round.pop()
            around = next((span for span in self._open if span[0] <= number <= span[1]), None)
            if around is None:
                continue
            del self._open[around]
            for part in without(around, [(number, number)]):
                self._add(part, refused=False)
            self._add((number, number), refused=False)
            return number, number
        return None

    def _largest_one(self) -> Span | None:
        while self._largest_first:
            span = heapq.heappop(self._largest_first)[2]
            if span in self._open:
                return span
        return None


def without(span: Span, avoid: Iterable[Span]) -> list[Span]:
    """The span in pieces that leave these out, ascending."""
    pieces = [span]
    for first, last in avoid:
        cut: list[Span] = []
        for low, high in pieces:
            if low < first:
                cut.append((low, min(high, first - 1)))
            if high > last:
                cut.append((max(low, last + 1), high))
        pieces = [(low, high) for low, high in cut if low <= high]
    return sorted(set(pieces))


def spans(numbers: Iterable[int]) -> tuple[Span, ...]:
    """Numbers as runs."""
    found: list[list[int]] = []
    for number in sorted(numbers):
        if found and found[-1][1] == number - 1:
            found[-1][1] = number
        else:
            found.append([number, number])
    return tuple((first, last) for first, last in found)


def text(runs: Iterable[Span], area: str = "") -> str:
    """``hr:0..124 hr:200``."""
    lead = f"{area}:" if area else ""
    return " ".join(f"{lead}{first}" + (f"..{last}" if last > first else "") for first, last in runs)
