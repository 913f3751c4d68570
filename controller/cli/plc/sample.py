"""One look at tags of a PLC: values with their quality, age and the registers they were made from."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from drivers import codec
from drivers.port import Area, DataType, Driver, FieldBusError, LinkDown, ModbusAddress, Tag, Value

_WIDTHS = {1: DataType.UINT, 2: DataType.UDINT, 4: DataType.ULINT}
_MARK = "\0"


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One tag as it was read. ``value`` is ``None`` exactly when ``reason`` says why it must not be used."""

    tag: Tag
    value: Value | None
    reason: str
    raw: tuple[int, ...]
    """Registers (or 0 and 1 of a coil) as they were on the wire; empty where there are none."""
    age_ms: float
    source_ns: int | None
    """When the PLC says that the value is from, UTC; only OPC UA has it."""

    @property
    def raw_text(self) -> str:
        """``0x1234 0xABCD``."""
        if isinstance(self.tag.address, ModbusAddress) and self.tag.address.area in (Area.COIL, Area.DISCRETE_INPUT):
            return " ".join(map(str, self.raw))
        return " ".join(f"{word:04X}" for word in self.raw)

    def as_json(self) -> dict[str, object]:
        """For ``--json``."""
        tag = self.tag
        return {
            "tag": tag.name,
            "address": str(tag.address),
            "type": tag.type,
            "value": self.value,
            "unit": tag.unit,
            "quality": "bad" if self.reason else "good",
            "reason": self.reason,
            "raw": [f"{word:04X}" for word in self.raw],
            "age_ms": round(self.age_ms, 3),
            "source_time": None if self.source_ns is None else utc(self.source_ns),
            "writable": tag.writable,
            "description": tag.description,
        }


def with_raw(tags: Sequence[Tag]) -> list[Tag]:
    """The tags, and beside each of a register the same registers as plain numbers: one answer brings both."""
    shadows = [shadow for tag in tags for shadow in _shadows(tag)]
    return [*tags, *{shadow.name: shadow for shadow in shadows}.values()]


async def look(driver: Driver, tags: Sequence[Tag], timeout_s: float) -> list[Sample]:
    """Read all groups; a group that is refused is BAD with the device's reason. Raises :class:`LinkDown`.

    ``driver`` was made with :func:`with_raw` of these tags, or with the tags alone.
    """
    seen: dict[str, tuple[Value | None, str, int, int | None]] = {}
    for number, group in enumerate(driver.groups):
        asked_ns = time.monotonic_ns()
        try:
            reading = await driver.read(number, timeout_s)
        except LinkDown:
            raise
        except FieldBusError as error:
            seen |= {tag.name: (None, str(error), asked_ns, None) for tag in group.tags}
            continue
        sources = reading.sources or [None] * len(group.tags)
        for index, tag in enumerate(group.tags):
            reason = reading.bad.get(index, "")
            seen[tag.name] = (reading.values[index], reason, reading.stamp_ns, sources[index])
    now = time.monotonic_ns()
    found: list[Sample] = []
    for tag in tags:
        value, reason, stamp_ns, source = seen[tag.name]
        if value is None and not reason:
            reason = "nothing was received yet"
        raw = tuple(word for shadow in _shadows(tag) for word in _words(shadow, seen.get(shadow.name)))
        found.append(
            Sample(tag=tag, value=value, reason=reason, raw=raw, age_ms=(now - stamp_ns) / 1e6, source_ns=source)
        )
    return found


def _shadows(tag: Tag) -> list[Tag]:
    address = tag.address
    if not isinstance(address, ModbusAddress):
        return []
    if address.area in (Area.COIL, Area.DISCRETE_INPUT):
        return [_shadow(tag, address.offset, DataType.BOOL)]
    count = codec.register_count(tag)
    if count in _WIDTHS and tag.type is not DataType.STRING:
        return [_shadow(tag, address.offset, _WIDTHS[count])]
    return [_shadow(tag, address.offset + n, DataType.UINT) for n in range(count)]


def _shadow(tag: Tag, offset: int, type_: DataType) -> Tag:
    assert isinstance(tag.address, ModbusAddress)
    address = ModbusAddress(tag.address.area, offset)
    return Tag(
        name=f"{_MARK}{address}:{type_}:{tag.scan_class}", address=address, type=type_, scan_class=tag.scan_class
    )


def _words(shadow: Tag, seen: tuple[Value | None, str, int, int | None] | None) -> list[int]:
    if seen is None or seen[0] is None:
        return []
    number = int(seen[0])
    if shadow.type is DataType.BOOL:
        return [number]
    count = codec.register_count(shadow)
    return [number >> 16 * (count - 1 - n) & 0xFFFF for n in range(count)]


def shown(tag: Tag, value: Value | None) -> str:
    """A value as people read it, with its unit; ``–`` when there is none."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return '"' + "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in value) + '"'
    text = f"{value:.9g}" if isinstance(value, float) and tag.type is not DataType.LREAL else str(value)
    return f"{text} {tag.unit}".rstrip()


def utc(ns: int) -> str:
    """A time stamp, UTC, to the millisecond."""
    return datetime.fromtimestamp(ns / 1e9, UTC).isoformat(timespec="milliseconds")
