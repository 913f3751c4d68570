"""``linewright plc read``: the values of tags now, or one value in every word order."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from controller.cli import console
from controller.cli.picture import QUIET
from controller.cli.plc.sample import Sample, look, shown, utc, with_raw
from controller.cli.plc.target import Target, opened
from drivers import codec
from drivers.port import Area, DataType, ModbusAddress, Tag, WordOrder

NARROW = 100
"""Columns of a terminal under which descriptions are left out of a table."""
LONG = 24
"""Characters from which an address may be broken into lines."""
BAD = "bold red"


async def read(target: Target, *, as_json: bool) -> bool:
    """Read once and print. Whether every value was good."""
    async with opened(target, with_raw(target.tags)) as driver:
        samples = await look(driver, target.tags, target.timeout_s)
        where = driver.endpoint
    if as_json:
        for sample in samples:
            console.emit(sample.as_json())
    else:
        screen = console.console()
        screen.print(table(samples, screen.width))
        for line in reasons(samples):
            screen.print(Text(line, style=BAD))
        oldest = max(sample.age_ms for sample in samples)
        bad = sum(bool(sample.reason) for sample in samples)
        counted = f"{len(samples)} values, {bad} bad" if bad else f"{len(samples)} values, all good"
        screen.print(Text(f"{where}: {counted}; at most {oldest:.0f} ms old", style=BAD if bad else QUIET))
    return not any(sample.reason for sample in samples)


def reasons(samples: Sequence[Sample]) -> list[str]:
    """Why values are bad, once for all tags of one reason."""
    by_reason: dict[str, list[str]] = {}
    for sample in samples:
        if sample.reason:
            by_reason.setdefault(sample.reason, []).append(sample.tag.name)
    found: list[str] = []
    for reason, names in by_reason.items():
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        found.append(f"BAD {', '.join(names[:3])}{more}: {reason}")
    return found


def table(samples: Sequence[Sample], width: int) -> Table:
    """One row per tag; columns that would be empty or repeat another are left out."""
    named = not all(s.tag.name.startswith(str(s.tag.address)) for s in samples)
    raw = any(s.raw for s in samples)
    sources = any(s.source_ns is not None for s in samples)
    described = width >= NARROW and any(s.tag.description for s in samples)
    grid = Table(box=None, pad_edge=False, header_style=QUIET)
    short = all(len(str(s.tag.address)) <= LONG for s in samples)
    if named:
        grid.add_column("tag", no_wrap=True, overflow="fold")
    grid.add_column("address", no_wrap=short, overflow="fold", min_width=None if short else LONG)
    grid.add_column("type", no_wrap=True)
    grid.add_column("value", overflow="fold", min_width=8)
    grid.add_column("quality", no_wrap=True)
    grid.add_column("age", no_wrap=True, justify="right")
    for present, name in ((raw, "raw (hex)"), (sources, "source time")):
        if present:
            grid.add_column(name, overflow="fold", min_width=9 if name == "raw (hex)" else 12)
    if described:
        grid.add_column("description", style=QUIET)
    for sample in samples:
        quality = Text("BAD", style=BAD) if sample.reason else Text("good", style=QUIET)
        cells: list[Text] = [Text(sample.tag.name)] if named else []
        cells += [Text(str(sample.tag.address), style=QUIET), Text(sample.tag.type, style=QUIET)]
        cells += [Text(shown(sample.tag, sample.value)), quality, Text(f"{sample.age_ms:.0f} ms", style=QUIET)]
        if raw:
            cells.append(Text(sample.raw_text, style=QUIET))
        if sources:
            cells.append(Text("" if sample.source_ns is None else utc(sample.source_ns)[11:-6], style=QUIET))
        if described:
            cells.append(Text(sample.tag.description, style=QUIET))
        grid.add_row(*cells)
    return grid


# --- every word order --------------------------------------------------------------------------------------------


async def orders(target: Target, *, as_json: bool) -> None:
    """Show the registers at each address as every number they could be."""
    tags = [_doubled(tag) for tag in target.tags]
    async with opened(target, tags) as driver:
        samples = await look(driver, tags, target.timeout_s)
    for tag, sample in zip(target.tags, samples, strict=True):
        if sample.value is None:
            console.fail(f"{tag.address}: {sample.reason}")
        data = int(sample.value).to_bytes(codec.register_count(sample.tag) * 2, "big")
        rows = readings(tag, data)
        if as_json:
            console.emit({"address": str(tag.address), "raw": data.hex(), "orders": rows})
            continue
        words = " ".join(data[n : n + 2].hex().upper() for n in range(0, len(data), 2))
        print(f"{tag.address}, {len(data) // 2} registers: {words}")
        grid = Table(box=None, pad_edge=False, header_style=QUIET)
        for name in ("word order", *next(iter(rows.values()))):
            grid.add_column(name, justify="left" if name == "word order" else "right")
        for order, values in rows.items():
            grid.add_row(order, *[_plausible(value) for value in values.values()])
        console.console().print(grid)


def readings(tag: Tag, data: bytes) -> dict[str, dict[str, int | float]]:
    """By word order, and by type: what the bytes say."""
    kinds = (DataType.DINT, DataType.UDINT, DataType.REAL) if len(data) == 4 else (
        DataType.LINT, DataType.ULINT, DataType.LREAL)  # fmt: skip
    found: dict[str, dict[str, int | float]] = {}
    for order in WordOrder:
        row: dict[str, int | float] = {}
        for kind in kinds:
            as_kind = Tag(name=tag.name, address=tag.address, type=kind, word_order=order)
            raw = codec.unpack(as_kind, data)
            assert not isinstance(raw, str)
            row[kind] = raw
        found[order] = row
    return found


def _doubled(tag: Tag) -> Tag:
    """The same place as one plain number of two registers, or of four for the long types."""
    address = tag.address
    if not isinstance(address, ModbusAddress) or address.area in (Area.COIL, Area.DISCRETE_INPUT):
        console.fail(f"{tag.address}: --orders is for registers (hr:, ir:)", console.Exit.USAGE)
    if tag.type in (DataType.STRING, DataType.BOOL):
        console.fail(f"{tag.address}: --orders is for numbers, not for {tag.type}", console.Exit.USAGE)
    long = codec.register_count(tag) == 4
    kind = DataType.ULINT if long else DataType.UDINT
    if address.offset > 65536 - (4 if long else 2):
        console.fail(f"{tag.address}: a number of {4 if long else 2} registers would pass 65535", console.Exit.USAGE)
    return Tag(name=tag.name, address=address, type=kind, scan_class="all")


def _plausible(value: float) -> Text:
    """A number; in grey what hardly anybody stores: nearly 0, huge, or not a number."""
    if isinstance(value, int):
        return Text(str(value))
    text = f"{value:.7g}"
    odd = not math.isfinite(value) or (value != 0 and not 1e-6 <= abs(value) <= 1e12)
    return Text(text, style=QUIET if odd else "bold")
