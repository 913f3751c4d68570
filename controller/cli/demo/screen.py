"""What one sees of the demo: a live view on a terminal, plain lines elsewhere. Both on stderr.

stdout is kept for the result.
"""

from __future__ import annotations

import time
from collections import deque
from types import TracebackType
from typing import Protocol, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from controller.cli.picture import QUIET, Picture, alarm_table, header, station_table
from controller.core.events import AlarmChanged, AnyEvent, ChangeoverChanged, LinkChanged, ModeChanged, Transition

LOG_LINES = 40
"""Lines of the log that are kept; as many are shown as the terminal has room for."""
AROUND = 19
"""Lines of the view that are not log: line, stations, a few alarms, the endpoint."""
PEOPLE = ("operator", "technician", "demo")


class Screen(Protocol):
    """Where the demo tells what goes on."""

    def tell(self, who: str, text: str, *, detail: bool = False) -> None:
        """One line of the log; a ``detail`` is left out where there is no live view."""

    def show(self, picture: Picture) -> None:
        """The line as it is now."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class PlainScreen:
    """Lines on stderr, each with the seconds since the start."""

    def __init__(self, console: Console) -> None:
        self._console, self._start = console, time.monotonic()

    def tell(self, who: str, text: str, *, detail: bool = False) -> None:
        """Print it, unless it is a detail."""
        if not detail:
            line = Text(f"[{time.monotonic() - self._start:6.1f} s] {who}: {text}")
            self._console.print(line, soft_wrap=True)

    def show(self, picture: Picture) -> None:
        """Nothing: lines tell enough."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing to restore."""


class LiveScreen:
    """The line, its stations, alarms and a log, redrawn in place."""

    def __init__(self, console: Console, endpoint: str, limit_s: float) -> None:
        self._start = time.monotonic()
        self._endpoint, self._limit_s = endpoint, limit_s
        self._log: deque[Text] = deque(maxlen=LOG_LINES)
        self._picture: Picture | None = None
        self._live = Live(console=console, auto_refresh=False, screen=False, vertical_overflow="crop")

    def tell(self, who: str, text: str, *, detail: bool = False) -> None:
        """Add to the log."""
        line = Text(f"{time.monotonic() - self._start:6.1f} s  ", style=QUIET)
        line.append(f"{who:<13}", style="bold" if who in PEOPLE else "")
        line.append(text, style=QUIET if detail else "")
        self._log.append(line)
        self._draw()

    def show(self, picture: Picture) -> None:
        """Redraw."""
        self._picture = picture
        self._draw()

    def __enter__(self) -> Self:
        self._live.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.__exit__(kind, error, trace)

    def _draw(self) -> None:
        elapsed = f"{time.monotonic() - self._start:.0f} s of at most {self._limit_s:.0f} s"
        parts: list[RenderableType] = []
        if self._picture is not None:
            picture = self._picture
            parts += [
                header(picture, elapsed, brief=True),
                Text(),
                station_table(picture),
                Text(),
                alarm_table(picture),
                Text(),
            ]
        else:
            parts.append(Text(f"starting the bench and the controller   {elapsed}", style=QUIET))
        room = max(3, self._live.console.height - AROUND)
        parts += list(self._log)[-room:]
        parts += [Text(), Text(f"look at it with a client of your own: {self._endpoint} (OPC UA)", style=QUIET)]
        self._live.update(Group(*parts), refresh=True)


def worth_telling(event: AnyEvent) -> bool | None:
    """``True``: tell it everywhere; ``False``: only in the live view; ``None``: not at all."""
    if isinstance(event, Transition):
        return event.station == "line"
    if isinstance(event, AlarmChanged | ChangeoverChanged | LinkChanged):
        return True
    if isinstance(event, ModeChanged):
        return False
    return None
