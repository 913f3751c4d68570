"""The process image: what the scan knows of the plant, and what it wants of it.

Tags have *slots*. The slots of one read group are contiguous, so that latching a reading is one slice copy,
and a group whose wire bytes did not change costs one identity test. Quality is per tag: ``bad[slot]`` is
``None`` for a good value, else the reason in words, and ``since[slot]`` the monotonic time it went bad.

The :class:`InputBuffer` is what link tasks fill between scans; only :meth:`ProcessImage.latch` empties it.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from drivers.port import Outcome, ReadGroup, Reading, Tag, Value

NEVER_READ = "not read yet"


@dataclass(frozen=True, slots=True)
class Group:
    """One read group in the image: which PLC, which slots, and from what age (ns) on it is stale."""

    plc: str
    index: int
    """The group's number within its driver."""
    first: int
    tags: tuple[Tag, ...]
    stale_ns: int


@dataclass(frozen=True, slots=True)
class LinkReport:
    """A PLC's link came up (``up``) or is down, and why.

    ``restarted``: its boot counter shows that the PLC has restarted since it was last up.
    """

    plc: str
    up: bool
    reason: str = ""
    restarted: bool = False


@dataclass(frozen=True, slots=True)
class WriteReport:
    """How the write of an output ended; ``value`` is what was to be written."""

    tag: str
    value: Value
    outcome: Outcome
    reason: str = ""


class Slots(Mapping[str, int]):
    """The slot of every tag, by name: the slots in the order of their names. A dict would take ten times the memory,
    and nothing looks names up while the line runs but a few reports.
    """

    def __init__(self, tags: Sequence[Tag]) -> None:
        self._tags = tags
        self._order = array("I", sorted(range(len(tags)), key=self._name))

    def __getitem__(self, name: str) -> int:
        place = bisect_left(self._order, name, key=self._name)
        if place < len(self._order) and self._name(self._order[place]) == name:
            return self._order[place]
        raise KeyError(name)

    def __iter__(self) -> Iterator[str]:
        return (tag.name for tag in self._tags)

    def __len__(self) -> int:
        return len(self._tags)

    def _name(self, slot: int) -> str:
        return self._tags[slot].name


class PlcOf(Mapping[str, str]):
    """The PLC of every tag, by name."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout

    def __getitem__(self, name: str) -> str:
        return self._layout.groups[self._layout.group_of(self._layout.slots[name])].plc

    def __iter__(self) -> Iterator[str]:
        return iter(self._layout.slots)

    def __len__(self) -> int:
        return len(self._layout.slots)


class Layout:
    """Which tag has which slot. Built once from the drivers' read groups; immutable.

    ``commands`` maps the outputs that are written together, as one command, to the output that numbers it.
    """

    def __init__(
        self,
        plcs: Iterable[tuple[str, Sequence[ReadGroup]]],
        stale_ns: dict[str, int],
        commands: Mapping[str, str] | None = None,
    ) -> None:
        groups: list[Group] = []
        self.commands: Mapping[str, str] = dict(commands or {})
        tags: list[Tag] = []
        self.plcs: list[str] = []
        for plc, read_groups in plcs:
            self.plcs.append(plc)
            for index, group in enumerate(read_groups):
                groups.append(Group(plc, index, len(tags), group.tags, stale_ns[group.scan_class]))
                tags += group.tags
        self.tags = tuple(tags)
        self.groups = tuple(groups)
        self.number = {(g.plc, g.index): n for n, g in enumerate(groups)}
        self.slots = Slots(self.tags)
        self.plc_of = PlcOf(self)
        self._first = [g.first for g in groups]
        for slot, tag in enumerate(tags):
            assert self.slots[tag.name] == slot, f"tag {tag.name} is in two read groups"

    def group_of(self, slot: int) -> int:
        """Number of the read group that brings this slot. Raises ``IndexError`` if there is no such slot."""
        if not 0 <= slot < len(self.tags):
            raise IndexError(slot)
        return bisect_right(self._first, slot) - 1


class InputBuffer:
    """Latest reading per group, link states and write reports since the last scan. Bounded by its layout.

    Write reports are bounded too: one per output tag and scan is kept (the latest).
    """

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.readings: list[Reading | None] = [None] * len(layout.groups)
        self.links: dict[str, LinkReport] = {}
        self.reports: dict[str, WriteReport] = {}
        self._restarted: set[str] = set()
        """PLCs whose restart was told by a report that was replaced before it was latched."""

    def put(self, plc: str, group: int, reading: Reading) -> None:
        """A reading of the PLC's group number ``group``."""
        self.readings[self.layout.number[plc, group]] = reading

    def pending(self, plc: str, group: int) -> bool:
        """Whether the group's last reading still waits for the scan to latch it: another one would replace it."""
        return self.readings[self.layout.number[plc, group]] is not None

    def link(self, report: LinkReport) -> None:
        """The PLC's link changed. Readings taken before a loss and not yet latched are dropped with it: their tags
        are BAD from the next scan on, and say so. A restart that was not latched is told when the link is up again.
        """
        before = self.links.get(report.plc)
        if before is not None and before.restarted:
            self._restarted.add(report.plc)
        if report.up and report.plc in self._restarted:
            self._restarted.discard(report.plc)
            report = replace(report, restarted=True)
        self.links[report.plc] = report
        if not report.up:
            for n, group in enumerate(self.layout.groups):
                if group.plc == report.plc:
                    self.readings[n] = None

    def report(self, report: WriteReport) -> None:
        """A write ended."""
        self.reports[report.tag] = report


class ProcessImage:
    """Inputs as latched for this scan, and outputs as wanted after it.

    ``values[slot]`` may only be used when ``bad[slot] is None``; logic goes through ``Input`` and compiled
    expressions, which see to that. ``out[slot]`` is the wanted value of a writable tag, missing while nobody
    has asked for one yet.
    """

    def __init__(self, layout: Layout) -> None:
        n = len(layout.tags)
        self.layout = layout
        self.values: list[Value | None] = [None] * n
        self.bad: list[str | None] = [NEVER_READ] * n
        self.since: list[int] = [0] * n
        self.out: dict[int, Value] = {}
        self.changed_out: dict[int, Value] = {}
        self.up: dict[str, bool] = dict.fromkeys(layout.plcs, False)
        self.down_reason: dict[str, str] = dict.fromkeys(layout.plcs, "not connected yet")
        self.down_since: dict[str, int] = dict.fromkeys(layout.plcs, 0)
        self.versions: list[int] = [0] * len(layout.groups)
        """Per read group, counts readings that differed from the one before, and losses; also when they went BAD."""
        self._stamp: list[int | None] = [None] * len(layout.groups)
        self._last: list[Sequence[Value | None] | None] = [None] * len(layout.groups)
        """Per read group, the values of the last reading; ``None`` when the image does not show them."""
        self._last_bad: list[Mapping[int, str]] = [{}] * len(layout.groups)
        """Per read group, a copy of what was bad in it: the driver's own may change."""
        self._sources: list[Sequence[int | None]] = [()] * len(layout.groups)

    def latch(self, now_ns: int, buffer: InputBuffer) -> tuple[list[LinkReport], list[WriteReport]]:
        """Take over what the links brought. Returns the link changes and write reports since the last scan."""
        links: list[LinkReport] = []
        if buffer.links:
            for report in buffer.links.values():
                if not report.up and (self.up[report.plc] or not self.down_since[report.plc]):
                    self.down_since[report.plc] = now_ns
                self.up[report.plc] = report.up
                self.down_reason[report.plc] = report.reason
                if not report.up:
                    self._lose(report.plc, report.reason, now_ns)
                links.append(report)
            buffer.links.clear()
        readings = buffer.readings
        for n, group in enumerate(self.layout.groups):
            reading = readings[n]
            if reading is not None:
                readings[n] = None
                self._stamp[n] = reading.stamp_ns
                self._sources[n] = reading.sources
                if reading.values is not self._last[n] or reading.bad != self._last_bad[n]:
                    self._take(n, group, reading, now_ns)
            stamp = self._stamp[n]
            if stamp is not None and now_ns - stamp > group.stale_ns:
                self._stamp[n] = None
                self._spoil(n, group, f"stale: last read {(now_ns - stamp) / 1e9:.2f} s ago", now_ns)
        reports: list[WriteReport] = []
        if buffer.reports:
            reports = list(buffer.reports.values())
            buffer.reports.clear()
        return links, reports

    def group_of(self, slot: int) -> int:
        """Number of the read group that brings this slot. Raises ``IndexError`` if there is no such slot."""
        return self.layout.group_of(slot)

    def readable(self, slot: int) -> bool:
        """Whether the PLC answers for this slot: what is BAD all the same is BAD by itself, not by a lost PLC."""
        return self._stamp[self.group_of(slot)] is not None

    def stamp_of(self, slot: int) -> int:
        """Monotonic time of the request that last read this slot (0 = never)."""
        return self._stamp[self.group_of(slot)] or 0

    def source_of(self, slot: int) -> int | None:
        """When the value arose at its source, by the source's clock: UTC in ns since 1970, ``None`` if not known.

        It belongs to the reading shown last, and is ``None`` once that is stale or lost.
        """
        n = self.group_of(slot)
        sources = self._sources[n]
        return sources[slot - self.layout.groups[n].first] if sources else None

    def write(self, slot: int, value: Value) -> None:
        """Want ``value`` on an output from this scan on.

        It is told to the PLC when it is new, and again when the PLC reads back something else, or something BAD
        (a set-point that the PLC lost reads 0, which may be out of its range).
        """
        bad = self.bad[slot]
        elsewhere = bad != NEVER_READ and (bad is not None or self.values[slot] != value)
        wanted = self.out.get(slot)
        if elsewhere or wanted != value or type(wanted) is not type(value):
            self.out[slot] = value
            self.changed_out[slot] = value

    def take_outputs(self) -> dict[str, Value]:
        """The outputs whose wanted value changed in this scan, by tag name."""
        if not self.changed_out:
            return {}
        tags = self.layout.tags
        changed = {tags[slot].name: value for slot, value in self.changed_out.items()}
        self.changed_out.clear()
        return changed

    def _take(self, n: int, group: Group, reading: Reading, now_ns: int) -> None:
        self.versions[n] += 1
        first, count = group.first, len(group.tags)
        assert len(reading.values) == count, f"{group.plc}: reading of {len(reading.values)} values for {count} tags"
        slots = slice(first, first + count)
        if self._last[n] is None or self._last_bad[n] or reading.bad:
            before = self.bad[slots]
            self.bad[slots] = [None] * count
            for i, reason in reading.bad.items():
                if before[i] is None:
                    self.since[first + i] = now_ns
                self.bad[first + i] = reason
            self._last_bad[n] = dict(reading.bad)
        self.values[slots] = reading.values
        self._last[n] = reading.values

    def _spoil(self, n: int, group: Group, reason: str, now_ns: int) -> None:
        self._last[n], self._sources[n] = None, ()
        self.versions[n] += 1
        for slot in range(group.first, group.first + len(group.tags)):
            if self.bad[slot] is None:
                self.since[slot] = now_ns
            self.bad[slot] = reason

    def _lose(self, plc: str, reason: str, now_ns: int) -> None:
        for n, group in enumerate(self.layout.groups):
            if group.plc == plc:
                self._stamp[n] = None
                self._spoil(n, group, f"{plc} is not connected: {reason}", now_ns)
