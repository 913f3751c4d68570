"""``linewright links``: how the running controller gets on with each of its PLCs."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

import typer
from rich.console import Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from controller.cli import console
from controller.cli.connect import LineName, Socket, connected, picture
from controller.cli.picture import QUIET, Picture
from controller.north.frames import Scalar

REFRESH_S = 0.5
WIDE = 150
"""Columns from which everything stands in one table."""
FIGURES: Mapping[str, tuple[str, str]] = {
    "breaker": ("breaker", ""),
    "requests_per_s": ("req/s", ""),
    "p50": ("p50 ms", ""),
    "p99": ("p99 ms", ""),
    "requests": ("requests", ""),
}
"""How fast: by the name it is published under, how it is called here."""
FAULTS: Mapping[str, tuple[str, str]] = {
    "timeouts": ("time-outs", "no answer in time: cable, a busy PLC, a time limit that is too short"),
    "failed": ("failed", "exchanges and connections that failed otherwise: noise, resets"),
    "refused": ("refused", "exceptions: addresses or functions that the PLC does not have"),
    "late": ("late", "answers to requests given up: timeout_ms is too short, or the PLC too busy"),
    "strays": ("strays", "frames that fit no request: another master, a faulty gateway"),
    "missed": ("missed", "changes that a subscription lost; each was read anew"),
    "rejected": ("rejected", "writes that were certainly not executed"),
    "unknown": ("unknown", "writes that may or may not have been executed"),
    "reconnects": ("reconn.", "connections made anew"),
    "restarts": ("restarts", "the PLC's boot counter changed"),
    "skipped": ("skipped", "readings left out because the link was busy: slower scan classes, or a faster link"),
}
"""What went wrong, counted since the start: how it is called here, and what it mostly means."""


@dataclass(frozen=True)
class LinkRow:
    """One link as the line shows it. A figure that it does not publish, or that must not be trusted, is ``None``."""

    name: str
    up: bool
    reason: str
    figures: Mapping[str, Scalar]


def rows(now: Picture) -> list[LinkRow]:
    """All links, in the order of the line's PLCs."""
    found: list[LinkRow] = []
    for name in now.plcs:
        base = f"plcs.{name}"
        figures: dict[str, Scalar] = {}
        for key in (*FIGURES, *FAULTS):
            path = f"{base}.{key}"
            value = None if path in now.bad else now.values.get(path)
            figures[key] = value
        reason = now.values.get(f"{base}.reason")
        found.append(LinkRow(name, now.flag(f"{base}.up"), str(reason or ""), figures))
    return found


@console.command
def links(
    line: LineName = None,
    socket: Socket = None,
    watch: Annotated[bool, typer.Option("--watch", help="Keep showing it; Ctrl-C ends.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object per link.")] = False,
) -> None:
    """Every link of the running controller: up or why not, how fast, and what went wrong. Exit 1 when one is down."""
    if watch and as_json:
        console.fail("--watch is for people, --json for programs: give one of them", console.Exit.USAGE)
    if watch:
        try:
            console.run(_watch(line, socket))
        except KeyboardInterrupt:
            return
    elif not console.run(_once(line, socket, as_json=as_json)):
        raise typer.Exit(console.Exit.FAILED)


async def _once(line: LineName, socket: Socket, *, as_json: bool) -> bool:
    async with connected(line, socket) as client:
        found = rows(picture(client))
        if as_json:
            for row in found:
                console.emit({"link": row.name, "up": row.up, "reason": row.reason, **row.figures})
        else:
            screen = console.console()
            screen.print(page(found, screen.width))
        return all(row.up for row in found)


async def _watch(line: LineName, socket: Socket) -> None:
    """Until Ctrl-C, or until the connection is lost; what was counted meanwhile stands behind each count."""
    async with connected(line, socket) as client:
        screen = console.console()
        if not screen.is_terminal:
            console.fail("--watch needs a terminal; use --json in a program", console.Exit.USAGE)
        before = rows(picture(client))
        with Live(page(before, screen.width, before), console=screen, auto_refresh=False) as live:
            while client.closed is None:
                live.update(page(rows(picture(client)), screen.width, before), refresh=True)
                await asyncio.sleep(REFRESH_S)
        raise client.closed


def page(found: list[LinkRow], width: int, before: list[LinkRow] | None = None) -> RenderableType:
    """The links in one table, or in two where the screen is narrow; below, what the faults there are mean."""
    since = {row.name: row.figures for row in before or []}
    every = {**FIGURES, **FAULTS}
    parts: list[RenderableType] = []
    faults = list(FAULTS)
    for keys in [list(every)] if width >= WIDE else [list(FIGURES), faults[:6], faults[6:]]:
        shown = [key for key in keys if any(row.figures[key] is not None for row in found)]
        if shown or not parts:
            parts += [_table(found, shown, since, state=not parts), Text()]
    parts += [Text(f"{row.name}: {row.reason}", style="bold red") for row in found if not row.up and row.reason]
    for key, (name, meaning) in FAULTS.items():
        if any(row.figures[key] for row in found):
            parts.append(Text(f"{name}: {meaning}", style=QUIET))
    while parts and isinstance(parts[-1], Text) and not parts[-1].plain:
        parts.pop()
    return Group(*parts)


def _table(found: list[LinkRow], keys: list[str], since: Mapping[str, Mapping[str, Scalar]], *, state: bool) -> Table:
    grid = Table(box=None, pad_edge=False, header_style=QUIET)
    grid.add_column("link", no_wrap=True)
    if state:
        grid.add_column("state", no_wrap=True)
    for key in keys:
        grid.add_column({**FIGURES, **FAULTS}[key][0], justify="right", no_wrap=True)
    for row in found:
        cells = [Text(row.name)]
        if state:
            cells.append(Text("✓ up") if row.up else Text("✗ down", style="bold red"))
        cells += [_cell(key, row.figures[key], since.get(row.name, {}).get(key)) for key in keys]
        grid.add_row(*cells)
    return grid


def _cell(key: str, value: Scalar, before: Scalar) -> Text:
    if value is None:
        return Text("–", style=QUIET)
    if isinstance(value, str):
        return Text(value, style="" if value == "closed" else "bold red")
    if isinstance(value, float):
        return Text(f"{value:.2f}" if value < 10 else f"{value:.0f}")
    text = Text(str(value), style="" if value or key not in FAULTS else QUIET)
    if key in FAULTS and isinstance(before, int) and value > before:
        text = Text(f"{value} (+{value - before})", style="bold yellow")
    return text
