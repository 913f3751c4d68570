"""Pure: the levels that a link wants of its PLC, what it knows to be so, and both life signs. No I/O, no clock."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from drivers import codec
from drivers.port import Outcome, Reading, Tag, Value, WriteOutcome

S = 1_000_000_000
Place = Mapping[str, tuple[int, int]]
"""Where a tag is read: number of its group, and its index there."""
RETRY_S, RETRY_MAX_S = 1.0, 30.0
"""Pause after a rejected write, doubling with each further one of the same value."""


def alike(a: Value | None, b: Value | None) -> bool:
    """Whether two values are the same, type and all; NaN is like NaN, so that it is not taken for news for ever."""
    return repr(a) == repr(b)


def levels_by_group(
    place: Place, tags: Mapping[str, Tag], commands: frozenset[str], groups: int
) -> tuple[list[tuple[str, int]], ...]:
    """Per read group, the outputs that are levels, each with its index there."""
    found: tuple[list[tuple[str, int]], ...] = tuple([] for _ in range(groups))
    for name, (group, index) in place.items():
        if tags[name].writable and name not in commands:
            found[group].append((name, index))
    return found


@dataclass(frozen=True, kw_only=True)
class HeartbeatOptions:
    """Life signs; see ``heartbeat`` in line.yaml."""

    read: str | None = None
    write: str | None = None
    period_s: float = 0.2
    timeout_s: float = 1.0


class Outputs:
    """What is wanted, what is confirmed, and what has to wait. Bounded by the writable tags.

    Reads and writes overlap, so every reading carries what :meth:`asked` gave when it was requested: it says nothing
    about a tag whose write had not ended by then.
    """

    def __init__(self, tags: Mapping[str, Tag]) -> None:
        self._tags = {name: tag for name, tag in tags.items() if tag.writable}
        self.wanted: dict[str, Value] = {}
        self._confirmed: dict[str, Value] = {}
        self._todo: dict[str, int] = {}
        """Tags (and commands, by their number) to write, in order of their becoming so, with the time before which
        not to."""
        self._doubt: dict[str, Value] = {}
        """Writes of unknown outcome, with the value sent."""
        self._begun: set[str] = set()
        self._writing: str | None = None
        self._ends = 0
        """Writes ended so far."""
        self._ended: dict[str, tuple[int, int]] = {}
        """The number and the time of the last end, by tag."""
        self._failures: dict[str, int] = {}
        self.rejected = self.unknown = 0

    def want(self, tag: str, value: Value) -> None:
        """Want this value. Raises ``KeyError`` for a tag that cannot be written."""
        known = self._tags[tag]
        before = self.wanted.get(tag)
        if not alike(before, value):
            self._failures.pop(tag, None)
            self._todo.pop(tag, None)
        self.wanted[tag] = value
        if tag in self._confirmed and codec.same(known, value, self._confirmed[tag]):
            self._todo.pop(tag, None)
        else:
            self._todo.setdefault(tag, 0)

    def force(self, tag: str, value: Value) -> None:
        """Want it, and write it even if it is confirmed."""
        self._confirmed.pop(tag, None)
        self._failures.pop(tag, None)
        self._todo.pop(tag, None)
        self._begun.discard(tag)
        self.want(tag, value)

    def queue(self, command: str, at: int = 0) -> None:
        """A command is to be sent after what is to be written by now."""
        self._todo.pop(command, None)
        self._todo[command] = at

    def unqueue(self, command: str) -> None:
        """It is not, any more."""
        self._todo.pop(command, None)

    def next(self, now: int) -> str | None:
        """The tag or command to write now. One whose last write is in doubt waits for its read-back."""
        return next((t for t, at in self._todo.items() if at <= now and t not in self._doubt), None)

    def next_retry(self) -> int | None:
        """When the next one may be written; ``None`` without one."""
        return min((at for t, at in self._todo.items() if t not in self._doubt), default=None)

    def begin(self, tag: str) -> Value:
        """A write begins: the value to send."""
        self._begun.add(tag)
        self._writing = tag
        self._confirmed.pop(tag, None)
        return self.wanted[tag]

    def unfinished(self, tag: str) -> Outcome:
        """Outcome of a forced write that did not end: certainly not sent, or unknown."""
        return Outcome.UNKNOWN if tag in self._begun else Outcome.REJECTED

    def asked(self) -> int:
        """A reading is requested now: the number of writes that it can have seen ended."""
        return self._ends

    def shows(self, tag: str, asked: int, stamp_ns: int) -> bool:
        """Whether a reading requested then says anything about the tag."""
        number, at = self._ended.get(tag, (0, 0))
        return asked >= number and stamp_ns >= at and tag != self._writing

    def touched(self, tags: Iterable[str], now: int) -> None:
        """A write of these tags ended."""
        self._ends += 1
        self._ended.update(dict.fromkeys(tags, (self._ends, now)))

    def ended(self, tag: str, value: Value, outcome: WriteOutcome, now: int) -> None:
        """The write of ``value`` ended; what is wanted may have changed meanwhile."""
        self.touched([tag], now)
        self.rejected += outcome.outcome is Outcome.REJECTED
        self.unknown += outcome.outcome is Outcome.UNKNOWN
        if self._writing != tag:
            return  # the link was lost meanwhile: only a comparison with everything read anew counts
        self._writing = None
        if outcome.outcome is Outcome.VERIFIED:
            self._accept(tag, value)
            return
        failures = self._failures[tag] = self._failures.get(tag, 0) + 1 if alike(value, self.wanted[tag]) else 0
        if outcome.outcome is Outcome.UNKNOWN:
            self._doubt[tag] = value
            failures -= 1  # the first one is settled, and written again, without a pause
        pause = min(RETRY_S * 2 ** min(failures - 1, 16), RETRY_MAX_S) if failures > 0 else 0.0
        self._todo.pop(tag, None)
        self._todo[tag] = now + round(pause * S)

    @property
    def in_doubt(self) -> bool:
        """Whether there is any such tag as :meth:`doubtful` gives."""
        return bool(self._doubt)

    def doubtful(self) -> list[str]:
        """Tags whose last write is of unknown outcome."""
        return list(self._doubt)

    def settle(self, tag: str, found: Value | None) -> Value | None:
        """Read back after an unknown outcome: the value when it is in force after all, else it is written again."""
        sent = self._doubt.pop(tag)
        if codec.same(self._tags[tag], sent, found):
            self._accept(tag, sent)
            return sent
        return None

    def compare(self, tag: str, found: Value | None) -> None:
        """On a new connection: what the PLC holds as wanted need not be written."""
        if codec.same(self._tags[tag], self.wanted[tag], found):
            self._confirmed[tag] = self.wanted[tag]
            self._todo.pop(tag, None)
        else:
            self._todo[tag] = 0

    def look(
        self, members: Sequence[tuple[str, int]], values: Sequence[Value | None], asked: int, stamp_ns: int
    ) -> bool:
        """A reading of these tags (name and index). What no longer holds, or reads BAD (``None``), is not confirmed.

        It is not written again by itself (the PLC, or somebody at its panel, had a reason); the scan sees the
        difference, acts on it, and may ask again. Returns whether the reading said something of every tag that differs.
        """
        complete = True
        for tag, index in members:
            value = self._confirmed.get(tag)
            found = values[index]
            if value is None or found is value or (found == value and type(found) is type(value)):
                continue
            if not self.shows(tag, asked, stamp_ns):
                complete = False
            elif found is not None and codec.same(self._tags[tag], value, found):
                self._confirmed[tag] = found  # as a REAL gives it back: equal at once the next time
            else:
                del self._confirmed[tag]  # a newer value that waits to be written goes on waiting
        return complete

    def forget(self) -> None:
        """The link is lost: nothing is confirmed any more, and what is still being written proves nothing."""
        self._writing = None
        self._confirmed.clear()
        self._doubt.clear()
        self._failures.clear()
        self._todo = dict.fromkeys(self.wanted, 0)

    def _accept(self, tag: str, value: Value) -> None:
        self._confirmed[tag] = value
        self._failures.pop(tag, None)
        if codec.same(self._tags[tag], self.wanted[tag], value):
            self._todo.pop(tag, None)


class Heart:
    """Both life signs of one PLC."""

    def __init__(
        self,
        options: HeartbeatOptions,
        tags: Mapping[str, Tag],
        place: Place,
        period_ns: list[int],
    ) -> None:
        self.beat: int | None = None
        self.group: int | None = None
        self.alive = options.read is None
        self._timeout_ns = round(options.timeout_s * S)
        self._period_ns = round(options.period_s * S)
        self._read, self._write = options.read, options.write
        self._last: Value | None = None
        self._changed_ns = 0
        self._written_ns: int | None = None
        self._modulus = 1
        self._failing = False
        if options.read is not None:
            if options.read not in place:
                raise ValueError(f"heartbeat: {options.read} is not a tag of this PLC")
            self.group, self._index = place[options.read]
            if period_ns[self.group] >= self._timeout_ns:
                raise ValueError(
                    f"heartbeat: {options.read} is read every {period_ns[self.group] / S:g} s, too seldom for a"
                    f" timeout of {options.timeout_s:g} s; give it a faster scan class or raise timeout_ms"
                )
        if options.write is not None:
            tag = tags.get(options.write)
            if tag is None or not tag.writable or tag.type not in codec.INTEGER_RANGE or tag.scaled:
                raise ValueError(f"heartbeat: {options.write} must be a writable, unscaled integer tag of this PLC")
            self._modulus = int(codec.bounds(tag)[1]) + 1

    @property
    def stopped(self) -> str:
        """Why the PLC counts as down."""
        return f"PLC stopped counting: {self._read} has been {self._last!r} for over {self._timeout_ns / S:g} s"

    def start(self, readings: Sequence[Reading | None], now: int) -> None:
        """A new connection: alive only once the counter is seen to change."""
        self._failing = False
        self._written_ns = self.beat = None  # a life sign from before the connection proves nothing now
        if self.group is not None:
            self.alive = False
            reading = readings[self.group]
            self._last = None if reading is None else reading.values[self._index]
            self._changed_ns = now

    def see(self, reading: Reading | None, now: int) -> None:
        """A reading of the counter's group, or a failed one."""
        value = reading.values[self._index] if reading is not None else None
        if value is not None and value != self._last:
            self.alive = self._last is not None
            self._last, self._changed_ns = value, now
        elif self.overdue(now):
            self.alive = False

    def overdue(self, now: int) -> bool:
        """Whether the counter has not changed for too long."""
        return self.group is not None and now - self._changed_ns > self._timeout_ns

    def write_due(self, now: int) -> bool:
        """Whether there is a beat to write, and the period has passed."""
        due = self.next_write()
        return due is not None and due <= now

    def next_write(self) -> int | None:
        """When to write the beat that waits; ``None`` without one."""
        if self.beat is None or self._write is None:
            return None
        return 0 if self._written_ns is None else self._written_ns + self._period_ns

    def want(self, counter: int) -> bool:
        """A newer life sign; returns whether there was none waiting."""
        was, self.beat = self.beat, counter
        return was is None and self._write is not None

    def take(self, now: int) -> tuple[str, int]:
        """The tag and the value to write now."""
        assert self._write is not None
        assert self.beat is not None
        value, self.beat = self.beat % self._modulus, None
        self._written_ns = now
        return self._write, value

    def changed(self, outcome: WriteOutcome) -> bool:
        """Whether this outcome begins a failure, or ends one."""
        was, self._failing = self._failing, outcome.outcome is not Outcome.VERIFIED
        return self._failing is not was
