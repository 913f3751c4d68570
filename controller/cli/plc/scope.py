"""From the words of ``plc scan`` to a scope: units, areas, addresses. Everything wrong is a usage error."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence

from controller.cli import console
from controller.cli.plc.scan_modbus import Scope
from controller.cli.plc.target import Target
from controller.config.address import AddressError, parse_range
from drivers.port import Area

_SPAN = re.compile(r"(\d{1,5})(?:\.\.(\d{1,5}))?")


def units(text: str | None, known: int | None, *, serial: bool) -> list[int]:
    """``1..247,255``; without it the unit that is known, else every one that a device can have."""
    top = 247 if serial else 255
    if text is None:
        return [known] if known is not None else [*range(1, 248), *([] if serial else [255])]
    found: list[int] = []
    for part in text.split(","):
        first, last = _span(part.strip(), "--units", "1..247 or 1,5,17")
        if not (0 if not serial else 1) <= first <= last <= top:
            console.fail(f"--units {part}: units are {1 if serial else 0} to {top}", console.Exit.USAGE)
        found += range(first, last + 1)
    return list(dict.fromkeys(found))


def scope(*, units: Sequence[int], areas: str, addresses: str, budget: int, rate: float, limit_s: float) -> Scope:
    """The scope. Raises :class:`console.CliError` (usage)."""
    first, last = _span(addresses, "--addresses", "0..9999")
    if not first <= last <= 65535:
        console.fail(f"--addresses {addresses}: from 0 to 65535, the lower one first", console.Exit.USAGE)
    chosen: list[Area] = []
    for name in areas.split(","):
        if name.strip() not in set(Area):
            console.fail(f"--areas {areas}: {name!r} is none of hr, ir, co, di", console.Exit.USAGE)
        chosen.append(Area(name.strip()))
    return Scope(
        units=units,
        areas=tuple(dict.fromkeys(chosen)),
        first=first,
        last=last,
        budget=budget,
        rate=rate,
        limit_s=limit_s,
    )


def avoiding(target: Target, texts: Sequence[str]) -> Target:
    """The target, with these ranges left out as well. Raises :class:`console.CliError` (usage)."""
    try:
        more = tuple(parse_range(text) for text in texts)
    except AddressError as error:
        console.fail(f"--avoid: {error}; {error.hint}", console.Exit.USAGE)
    modbus = target.modbus
    return dataclasses.replace(target, options=dataclasses.replace(modbus, avoid=(*modbus.avoid, *more)))


def _span(text: str, option: str, example: str) -> tuple[int, int]:
    match = _SPAN.fullmatch(text)
    if match is None:
        console.fail(f"{option} {text}: write {example}", console.Exit.USAGE)
    return int(match[1]), int(match[2] or match[1])
