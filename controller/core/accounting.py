"""Production counts: from the PLC's free-running counters to totals that lose and double nothing.

A PLC counter is unsigned, rolls over, may advance while the link is down (those counts are taken when it is
back), and may restart at zero with the PLC. A step back that is not a roll-over is such a restart: what it
shows then has been counted since, and the restart is noted in the record.
"""

from __future__ import annotations

from dataclasses import dataclass

from controller.core.image import ProcessImage


class Counter:
    """One PLC counter of ``bits`` width."""

    __slots__ = ("_modulus", "raw", "restarts", "total")

    def __init__(self, bits: int) -> None:
        self._modulus = 1 << bits
        self.raw: int | None = None
        """The PLC's value that :attr:`total` rests on; ``None`` before the first good reading."""
        self.total = 0
        self.restarts = 0

    def take(self, raw: int) -> int:
        """Account for a good reading; returns what was added.

        The first reading only sets the base. A step back counts as roll-over if it is shorter the other way
        round by far (a tenth of the range), else as a restart at zero.
        """
        if self.raw is None:
            self.raw = raw
            return 0
        step = raw - self.raw
        if step < 0:
            rolled = step + self._modulus
            if rolled <= self._modulus // 10:
                step = rolled
            else:
                step = raw
                self.restarts += 1
        self.raw = raw
        self.total += step
        return step


@dataclass(frozen=True, slots=True)
class CountSlots:
    """Slots of a station's counters in the image, and their widths in bits."""

    infeed: tuple[int, int]
    good: tuple[int, int]
    rejected: tuple[int, int] | None = None
    in_process: int | None = None


class Tally:
    """Counts of one station, in all and per product."""

    __slots__ = ("_bad", "_counters", "_image", "_slots", "generation", "in_process", "products", "totals")

    KEYS = ("infeed", "good", "rejected")

    def __init__(self, image: ProcessImage, slots: CountSlots) -> None:
        self._image = image
        pairs = [(k, getattr(slots, k)) for k in self.KEYS]
        self._counters = [(k, p[0], Counter(p[1])) for k, p in pairs if p is not None]
        self._slots = slots
        self.totals = dict.fromkeys(self.KEYS, 0)
        self.products: dict[str, dict[str, int]] = {}
        self.in_process: int | None = None
        self.generation = 0

    def scan(self, product: str) -> str:
        """Take this scan's counters. Returns a note of those that restarted at zero, else an empty text."""
        values, bad = self._image.values, self._image.bad
        notes: list[str] = []
        for key, slot, counter in self._counters:
            raw = values[slot]
            if bad[slot] is not None or raw == counter.raw:
                continue
            assert isinstance(raw, int), f"{self._image.layout.tags[slot].name} is no integer"
            before, old = counter.restarts, counter.raw
            added = counter.take(raw)
            if counter.restarts != before:
                name = self._image.layout.tags[slot].name
                notes.append(f"{name} went back from {old} to {raw}: the PLC restarted it; counted {raw} since")
            if added:
                self.totals[key] += added
                self.products.setdefault(product, dict.fromkeys(self.KEYS, 0))[key] += added
                self.generation += 1
        slot_in = self._slots.in_process
        if slot_in is not None and bad[slot_in] is None:
            now_in = values[slot_in]
            assert isinstance(now_in, int)
            self.in_process = now_in
        return "; ".join(notes)

    def left(self, station: str) -> str:
        """What is in the station, in words; empty if it is known to be empty, or does not count what is in it."""
        slot = self._slots.in_process
        if slot is None:
            return ""
        reason = self._image.bad[slot]
        if reason is not None:
            return f"an unknown number in {station} ({self._image.layout.tags[slot].name} is BAD: {reason})"
        return f"{self._image.values[slot]} in {station}" if self._image.values[slot] else ""

    def raw(self) -> dict[str, int]:
        """The PLC values that the totals rest on."""
        return {key: counter.raw for key, _, counter in self._counters if counter.raw is not None}

    def restore(self, totals: dict[str, int], raw: dict[str, int], product: str) -> None:
        """Go on from a record: totals, and the PLC values that they rest on."""
        for key, _, counter in self._counters:
            if key in raw:
                counter.raw, counter.total = raw[key], totals.get(key, 0)
                self.totals[key] = totals.get(key, 0)
        self.products[product] = dict(self.totals)
