"""``linewright plc watch``: values as they change, with their extremes, through every loss of the connection."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from controller.cli import console
from controller.cli.picture import QUIET
from controller.cli.plc.read import LONG
from controller.cli.plc.sample import Sample, look, shown
from controller.cli.plc.target import Target, make
from drivers.port import Driver, FieldBusError, Tag, Value

FRESH_S = 2.0
"""How long a changed value is highlighted."""
RETRY_S, RETRY_MAX_S = 0.25, 2.0
RATE_OVER_S = 10.0
"""The rate of a number is its change over the last so many seconds."""


@dataclass
class Watched:
    """What was seen of one tag so far."""

    tag: Tag
    value: Value | None = None
    reason: str = "not read yet"
    changes: int = 0
    bad: int = 0
    """How often it turned BAD."""
    changed_at: float = 0.0
    low: float | None = None
    high: float | None = None
    _trail: list[tuple[float, float]] = field(default_factory=list)

    def take(self, sample: Sample, now: float) -> bool:
        """Take over what was read; whether that is news."""
        first = self.reason == "not read yet"
        news = (sample.value, bool(sample.reason)) != (self.value, bool(self.reason))
        if news and not first:
            self.changes += 1
            self.changed_at = now
        if sample.reason and not self.reason:
            self.bad += 1
        self.value, self.reason = sample.value, sample.reason
        number = sample.value
        if isinstance(number, int | float) and not isinstance(number, bool):
            self.low = number if self.low is None else min(self.low, number)
            self.high = number if self.high is None else max(self.high, number)
            self._trail = [p for p in self._trail if p[0] >= now - RATE_OVER_S] + [(now, number)]
        else:
            self._trail.clear()
        return news or first

    def lose(self, reason: str) -> None:
        """The connection is gone: what was seen is no longer known."""
        if not self.reason:
            self.bad += 1
        self.value, self.reason = None, reason
        self._trail.clear()

    @property
    def rate(self) -> float | None:
        """Change per second over the last seconds; ``None`` where there is none."""
        if len(self._trail) < 2 or self._trail[-1][0] <= self._trail[0][0]:
            return None
        (t0, v0), (t1, v1) = self._trail[0], self._trail[-1]
        return (v1 - v0) / (t1 - t0)


class Watch:
    """Reads again and again until told to end; a loss is shown and the connection made anew."""

    def __init__(self, target: Target, every_s: float, tell: Callable[[str, Watched | None], None]) -> None:
        self._target, self._every_s, self._tell = target, every_s, tell
        self.rows = [Watched(tag) for tag in target.tags]
        self.link = "connecting"
        self.reads = self.losses = self.late = 0
        self.began = time.monotonic()
        self._endpoint = ""

    async def run(self, seconds: float | None) -> None:
        """Until cancelled, or for so many seconds."""
        driver = make(self._target, self._target.tags)
        self._endpoint = driver.endpoint
        self.began = time.monotonic()
        delay = RETRY_S
        end = None if seconds is None else self.began + seconds
        try:
            while end is None or time.monotonic() < end:
                try:
                    await driver.connect(max(3.0, self._target.timeout_s))
                    self.link = "connected"
                    self._tell(f"connected to {driver.endpoint}", None)
                    delay = RETRY_S
                    await self._follow(driver, end)
                except FieldBusError as error:
                    self._lost(str(error))
                await driver.close()
                left = delay if end is None else end - time.monotonic()
                if left > 0:
                    await asyncio.sleep(min(delay, left))
                    delay = min(delay * 2, RETRY_MAX_S)
        finally:
            await driver.close()

    async def _follow(self, driver: Driver, end: float | None) -> None:
        due = time.monotonic()
        while end is None or time.monotonic() < end:
            samples = await look(driver, self._target.tags, self._target.timeout_s)
            now = time.monotonic()
            self.reads += 1
            for row, sample in zip(self.rows, samples, strict=True):
                if row.take(sample, now):
                    self._tell("", row)
            due += self._every_s
            if due < now:  # slower than asked for: never caught up
                self.late += 1
                due = now
            await asyncio.sleep(due - now)

    def _lost(self, why: str) -> None:
        self.losses += self.link == "connected"
        if self.link != why:
            self.link = why
            self._tell(f"no connection: {why}", None)
        for row in self.rows:
            row.lose("no connection")

    # --- for people ---

    def table(self, width: int) -> RenderableType:
        """The live view."""
        grid = Table(box=None, pad_edge=False, header_style=QUIET)
        grid.add_column("tag", no_wrap=all(len(row.tag.name) <= LONG for row in self.rows), overflow="fold")
        grid.add_column("value", overflow="fold", min_width=10)
        for name in ("changes", "min", "max", "per s"):
            grid.add_column(name, justify="right", no_wrap=True)
        if width >= 100:
            grid.add_column("description", style=QUIET)
        now = time.monotonic()
        for row in self.rows:
            fresh = row.changes and now - row.changed_at < FRESH_S
            value = Text(("● " if fresh else "  ") + shown(row.tag, row.value), style="bold yellow" if fresh else "")
            if row.reason:
                value = Text(f"✗ BAD: {row.reason}", style="bold red")
            figures = [str(row.changes), number(row.low), number(row.high), number(row.rate)]
            described = [Text(row.tag.description)] if width >= 100 else []
            grid.add_row(Text(row.tag.name), value, *figures, *described)
        up = self.link == "connected"
        head = Text(f"{self._target.name}  {self._endpoint}  ", style="bold")
        head.append("✓ connected" if up else f"✗ {self.link}", style="" if up else "bold red")
        return Group(head, grid, Text(self.tally(), style=QUIET))

    def tally(self) -> str:
        """One line: how long, how often, how well."""
        parts = [f"{time.monotonic() - self.began:.0f} s", f"{self.reads} reads", f"{self.losses} losses of connection"]
        if self.late:
            parts.append(f"{self.late} reads slower than every {self._every_s:g} s")
        return ", ".join(parts) + "; Ctrl-C ends"

    def summary(self) -> list[str]:
        """At the end: what changed, and what did not."""
        lines = [self.tally().removesuffix("; Ctrl-C ends")]
        for row in self.rows:
            if row.changes or row.bad:
                extremes = f", {number(row.low)} … {number(row.high)} {row.tag.unit}".rstrip()
                extremes = "" if row.low is None else extremes
                bad = f", BAD {row.bad} times" if row.bad else ""
                last = f"BAD: {row.reason}" if row.reason else shown(row.tag, row.value)
                lines.append(f"{row.tag.name}: {row.changes} changes{extremes}{bad}; last {last}")
        still = sum(not row.changes and not row.bad for row in self.rows)
        if still:
            lines.append(f"{still} of {len(self.rows)} tags did not change")
        return lines


def number(value: float | None) -> str:
    """A figure for a narrow column."""
    if value is None:
        return "–"
    return str(int(value)) if value == int(value) and abs(value) < 1e12 else f"{value:.6g}"


def watch(target: Target, every_s: float, seconds: float | None, *, as_json: bool) -> None:
    """Show until Ctrl-C or the end of ``seconds``; then the summary."""
    screen = console.console()
    live = screen.is_terminal and not as_json
    teller = (lambda _text, _row: None) if live else (_json_line if as_json else _plain_line)
    seen = Watch(target, every_s, teller)
    console.run(_until_told(seen, seconds, screen if live else None))
    if as_json:
        return
    for line in seen.summary():
        print(line, flush=True)


async def _until_told(seen: Watch, seconds: float | None, screen: Console | None) -> None:
    """Run it; Ctrl-C and SIGTERM end it in order."""
    loop = asyncio.get_running_loop()
    task = asyncio.create_task(seen.run(seconds), name="watch")
    for number_ in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number_, task.cancel)
    try:
        if screen is None:
            await asyncio.wait([task])
        else:
            with Live(seen.table(screen.width), console=screen, auto_refresh=False) as view:
                while not task.done():
                    view.update(seen.table(screen.width), refresh=True)
                    await asyncio.wait([task], timeout=0.25)
                view.update(seen.table(screen.width), refresh=True)
    finally:
        for number_ in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number_)
        task.cancel()
        await asyncio.wait([task])
    if not task.cancelled():
        task.result()  # raises what went wrong


def _plain_line(text: str, row: Watched | None) -> None:
    at = datetime.now().strftime("%H:%M:%S.%f")[:-3]
    if row is None:
        print(f"{at} {text}", flush=True)
        return
    print(f"{at} {row.tag.name} {f'BAD: {row.reason}' if row.reason else shown(row.tag, row.value)}", flush=True)


def _json_line(text: str, row: Watched | None) -> None:
    at = time.time_ns()
    if row is None:
        console.emit({"at": at, "link": text})
        return
    quality = "bad" if row.reason else "good"
    facts = {"tag": row.tag.name, "value": row.value, "unit": row.tag.unit, "quality": quality, "reason": row.reason}
    console.emit({"at": at, **facts, "changes": row.changes})
