"""``linewright status`` and ``linewright alarms``: look, and change nothing."""

from __future__ import annotations

import asyncio
import sys
from typing import Annotated

import msgspec
import typer
from rich.live import Live

from controller.cli import console
from controller.cli.connect import LineName, Socket, connected, picture
from controller.cli.picture import alarm_table, page

Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")]
REFRESH_S = 0.25


@console.command
def status(
    line: LineName = None,
    socket: Socket = None,
    watch: Annotated[bool, typer.Option("--watch", help="Keep showing it; Ctrl-C ends.")] = False,
    as_json: Json = False,
) -> None:
    """Line and stations: state, mode, counts, what went wrong first, why it cannot start, PLC links, alarms."""
    if watch and as_json:
        console.fail("--watch is for people, --json for programs: give one of them", console.Exit.USAGE)
    if watch:
        try:
            console.run(_watch(line, socket))
        except KeyboardInterrupt:
            return
    else:
        console.run(_once(line, socket, as_json=as_json))


async def _once(line: LineName, socket: Socket, *, as_json: bool) -> None:
    async with connected(line, socket) as client:
        if as_json:
            console.emit({**picture(client).as_json(), "at": client.mirror.at})
        else:
            console.console().print(page(picture(client)))


async def _watch(line: LineName, socket: Socket) -> None:
    """Until Ctrl-C, or until the connection is lost: what is on the screen is never older than it looks."""
    async with connected(line, socket) as client:
        screen = console.console()
        if not screen.is_terminal:
            console.fail("--watch needs a terminal; use --json in a program", console.Exit.USAGE)
        with Live(page(picture(client)), console=screen, auto_refresh=False, transient=False) as live:
            while client.closed is None:
                live.update(page(picture(client)), refresh=True)
                await asyncio.sleep(REFRESH_S)
        raise client.closed


@console.command
def alarms(line: LineName = None, socket: Socket = None, as_json: Json = False) -> None:
    """The alarm list: active and unacknowledged alarms, highest priority first."""

    async def show() -> None:
        async with connected(line, socket) as client:
            now = picture(client)
            if as_json:
                rows = [msgspec.to_builtins(row) for row in now.alarms()]
                console.emit({"line": now.hello.line, "alarms": rows})
            else:
                console.console().print(alarm_table(now))
                sys.stdout.flush()

    console.run(show())
