"""Production counts: from the PLC's free-running counters to totals that lose and double nothing.

A PLC counter is unsigned, rolls over, may advance while the link is down (those counts are taken when it is
back), and may restart at zero with the PLC: what it shows then has been counted since.

A step back is a roll-over or a restart. Only a boot counter in the PLC can tell which: with one, a step back is not
taken before the boot counter was read after it, so that a counter which restarts near the end of its range does
not pass for one that rolled over. Without one the shorter way decides.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from controller.core.image import ProcessImage
from drivers.port import Value


class Counter:
    """One PLC counter of ``bits`` width."""

    __slots__ = ("_modulus", "back_ns", "boot", "raw", "restarts", "total")

    def __init__(self, bits: int) -> None:
        self._modulus = 1 << bits
        self.raw: int | None = None
        """The PLC's value that :attr:`total` rests on; ``None`` before the first good reading."""
        self.boot: Value | None = None
        """The PLC's boot counter when :attr:`raw` was taken; ``None`` when that is not known."""
        self.back_ns: int | None = None
        """Request time of the reading that first stepped back and waits for the boot counter."""
        self.total = 0
        self.restarts = 0

    def take(self, raw: int, *, restarted: bool = False) -> int:
        """Account for a good reading; returns what was added.

        The first reading only sets the base. After a restart of the PLC a lower value is counted from zero, a
        higher one from where it was (a retained counter). Otherwise a step back counts as roll-over if it is shorter
        the other way round by far (a tenth of the range), else as a restart at zero.
        """
        if self.raw is None:
            self.raw = raw
            return 0
        step = raw - self.raw
        if step < 0:
            rolled = step + self._modulus
            if not restarted and rolled <= self._modulus // 10:
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
    """Counts of one station, in all and per product. ``boots`` are the slots of the PLCs' boot counters, by PLC."""

    __slots__ = ("_counters", "_image", "_slots", "generation", "in_process", "products", "totals")

    KEYS = ("infeed", "good", "rejected")

    def __init__(self, image: ProcessImage, slots: CountSlots, boots: Mapping[str, int] | None = None) -> None:
        self._image = image
        pairs = [(k, getattr(slots, k)) for k in self.KEYS]
        boots = boots or {}

        def boot_of(slot: int) -> int | None:
            return boots.get(image.layout.plc_of[image.layout.tags[slot].name])

        self._counters = [(k, p[0], Counter(p[1]), boot_of(p[0])) for k, p in pairs if p is not None]
        self._slots = slots
        self.totals = dict.fromkeys(self.KEYS, 0)
        self.products: dict[str, dict[str, int]] = {}
        self.in_process: int | None = None
        self.generation = 0

    def scan(self, product: str) -> str:
        """Take this scan's counters. Returns a note of those that restarted at zero, else an empty text."""
        values, bad = self._image.values, self._image.bad
        notes: list[str] = []
        for key, slot, counter, boot_slot in self._counters:
            raw = values[slot]
            if bad[slot] is not None:
                continue
            boot = values[boot_slot] if boot_slot is not None and bad[boot_slot] is None else None
            if raw == counter.raw and (boot is None or boot == counter.boot):
                counter.back_ns = None
                continue
            assert isinstance(raw, int), f"{self._image.layout.tags[slot].name} is no integer"
            restarted = boot is not None and counter.boot is not None and boot != counter.boot
            back = counter.raw is not None and raw < counter.raw and not restarted
            if back and boot_slot is not None and not (boot is not None and self._is_newer(boot_slot, slot, counter)):
                continue
            before, old = counter.restarts, counter.raw
            added = counter.take(raw, restarted=restarted)
            counter.back_ns = None
            counter.boot = counter.boot if boot is None else boot
            if counter.restarts != before:
                name = self._image.layout.tags[slot].name
                who = (
                    "it was reset without a restart of the PLC"
                    if boot is not None and not restarted
                    else ("the PLC restarted it")
                )
                notes.append(f"{name} went back from {old} to {raw}: {who}; counted {raw} since")
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

    def _is_newer(self, boot_slot: int, slot: int, counter: Counter) -> bool:
        """Whether the boot counter was asked for after the reading that first stepped back."""
        if counter.back_ns is None:
            counter.back_ns = self._image.stamp_of(slot)
        return self._image.stamp_of(boot_slot) > counter.back_ns

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
        """The PLC values that the totals rest on; ``boot_<counter>`` is the boot counter that goes with one."""
        raw = {key: counter.raw for key, _, counter, _ in self._counters if counter.raw is not None}
        boots = {f"boot_{key}": counter.boot for key, _, counter, _ in self._counters}
        return raw | {key: boot for key, boot in boots.items() if isinstance(boot, int)}

    def restore(self, totals: dict[str, int], raw: dict[str, int], product: str) -> None:
        """Go on from a record: totals, and the PLC values that they rest on."""
        for key, _, counter, _ in self._counters:
            if key in raw:
                counter.raw, counter.total = raw[key], totals.get(key, 0)
                counter.boot = raw.get(f"boot_{key}")
                self.totals[key] = totals.get(key, 0)
        self.products[product] = dict(self.totals)
