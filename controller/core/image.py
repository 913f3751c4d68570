"""The process image: what the scan knows of the plant, and what it wants of it.

Tags have *slots*. The slots of one read group are contiguous, so that latching a reading is one slice copy,
and a group whose wire bytes did not change costs one identity test. Quality is per tag: ``bad[slot]`` is
``None`` for a good value, else the reason in words, and ``since[slot]`` the monotonic time it went bad.

The :class:`InputBuffer` is what link tasks fill between scans; only :meth:`ProcessImage.latch` empties it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

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
    """A PLC's link came up (``up``) or is down, and why."""

    plc: str
    up: bool
    reason: str = ""


@dataclass(frozen=True, slots=True)
class WriteReport:
    """How the write of an output ended; ``value`` is what was to be written."""

    tag: str
    value: Value
    outcome: Outcome
    reason: str = ""


class Layout:
    """Which tag has which slot. Built once from the drivers' read groups; immutable."""

    def __init__(self, plcs: Iterable[tuple[str, Sequence[ReadGroup]]], stale_ns: dict[str, int]) -> None:
        groups: list[Group] = []
        self.slots: dict[str, int] = {}
        self.tags: list[Tag] = []
        self.plc_of: dict[str, str] = {}
        self.plcs: list[str] = []
        for plc, read_groups in plcs:
            self.plcs.append(plc)
            for index, group in enumerate(read_groups):
                groups.append(Group(plc, index, len(self.tags), group.tags, stale_ns[group.scan_class]))
                for tag in group.tags:
                    assert tag.name not in self.slots, f"tag {tag.name} is in two read groups"
                    self.slots[tag.name] = len(self.tags)
                    self.tags.append(tag)
                    self.plc_of[tag.name] = plc
        self.groups: tuple[Group, ...] = tuple(groups)
        self.number = {(g.plc, g.index): n for n, g in enumerate(groups)}


class InputBuffer:
    """Latest reading per group, link states and write reports since the last scan. Bounded by its layout.

    Write reports are bounded too: one per output tag and scan is kept (the latest).
    """

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.readings: list[Reading | None] = [None] * len(layout.groups)
        self.links: dict[str, LinkReport] = {}
        self.reports: dict[str, WriteReport] = {}

    def put(self, plc: str, group: int, reading: Reading) -> None:
        """A reading of the PLC's group number ``group``."""
        self.readings[self.layout.number[plc, group]] = reading

    def link(self, report: LinkReport) -> None:
        """The PLC's link changed. Readings taken before a loss and not yet latched are dropped with it."""
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
    expressions, which see to that. ``out[slot]`` is the wanted value of a writable tag, ``None`` while nobody
    has asked for one yet.
    """

    def __init__(self, layout: Layout) -> None:
        n = len(layout.tags)
        self.layout = layout
        self.values: list[Value | None] = [None] * n
        self.bad: list[str | None] = [NEVER_READ] * n
        self.since: list[int] = [0] * n
        self.out: list[Value | None] = [None] * n
        self.changed_out: dict[int, Value] = {}
        self.up: dict[str, bool] = dict.fromkeys(layout.plcs, False)
        self.down_reason: dict[str, str] = dict.fromkeys(layout.plcs, "not connected yet")
        self.down_since: dict[str, int] = dict.fromkeys(layout.plcs, 0)
        self.versions: list[int] = [0] * len(layout.groups)
        """Per read group, counts readings that differed from the one before, and losses."""
        self._stamp: list[int | None] = [None] * len(layout.groups)
        self._last: list[Sequence[Value | None] | None] = [None] * len(layout.groups)
        self._clean: list[bool] = [False] * len(layout.groups)

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
                if reading.values is not self._last[n] or reading.bad or not self._clean[n]:
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
        for n, group in enumerate(self.layout.groups):
            if group.first <= slot < group.first + len(group.tags):
                return n
        raise IndexError(slot)

    def readable(self, slot: int) -> bool:
        """Whether the PLC answers for this slot: what is BAD all the same is BAD by itself, not by a lost PLC."""
        return self._stamp[self.group_of(slot)] is not None

    def stamp_of(self, slot: int) -> int:
        """Monotonic time of the request that last read this slot (0 = never)."""
        return self._stamp[self.group_of(slot)] or 0

    def write(self, slot: int, value: Value) -> None:
        """Want ``value`` on an output from this scan on.

        It is told to the PLC when it is new, and again when the PLC reads back something else, or something BAD
        (a set-point that the PLC lost reads 0, which may be out of its range).
        """
        bad = self.bad[slot]
        elsewhere = bad != NEVER_READ and (bad is not None or self.values[slot] != value)
        if elsewhere or self.out[slot] != value or type(self.out[slot]) is not type(value):
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
        self.values[first : first + count] = reading.values
        self._last[n] = reading.values
        if not reading.bad:
            self.bad[first : first + count] = [None] * count
            self._clean[n] = True
            return
        self._clean[n] = False
        for i in range(count):
            reason = reading.bad.get(i)
            slot = first + i
            if reason is None:
                self.bad[slot] = None
            else:
                if self.bad[slot] is None:
                    self.since[slot] = now_ns
                self.bad[slot] = reason

    def _spoil(self, n: int, group: Group, reason: str, now_ns: int) -> None:
        self._clean[n] = False
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
