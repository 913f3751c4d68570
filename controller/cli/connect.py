"""Which line is meant, where its socket and journal are, and how to reach it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated

import typer

from controller.cli import console
from controller.cli.picture import Picture
from controller.north.client import NorthClient, NorthClosed
from controller.runtime.instance import runtime_dir, state_dir

LineName = Annotated[
    str | None,
    typer.Option(
        "--line",
        metavar="NAME",
        envvar="LINEWRIGHT_LINE",
        help="The line's name, where several run.",
        show_default=False,
    ),
]
Socket = Annotated[
    Path | None,
    typer.Option(
        "--socket",
        metavar="PATH",
        envvar="LINEWRIGHT_SOCKET",
        help="The controller's north socket itself.",
        show_default=False,
    ),
]
StateDir = Annotated[
    Path | None,
    typer.Option("--state-dir", metavar="DIR", help="Where the controller keeps its state.", show_default=False),
]
User = Annotated[
    str,
    typer.Option(metavar="NAME", envvar="LINEWRIGHT_USER", help="Who gives the command, for the record."),
]


def default_user() -> str:
    """The name that commands are recorded under when none is given: the account's."""
    import getpass  # noqa: PLC0415

    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"uid {os.getuid()}"


def socket_path(line: str | None, socket: Path | None) -> Path:
    """The socket that is meant. Raises :class:`console.CliError` when that cannot be told."""
    if socket is not None:
        return socket
    if line is not None:
        return runtime_dir(line) / "north.sock"
    if os.environ.get("RUNTIME_DIRECTORY") or os.environ.get("STATE_DIRECTORY"):
        return runtime_dir("") / "north.sock"
    running = _lines_with("north.sock")
    if len(running) == 1:
        return runtime_dir(running[0]) / "north.sock"
    if running:
        console.fail(f"several lines run here: {', '.join(running)}; say which with --line", console.Exit.USAGE)
    console.fail(
        f"no line runs here for this user (looked in {state_dir('x').parent}); start one with "
        "`linewright run LINE.YAML`, or give the socket of a line run by somebody else with --socket",
        console.Exit.NO_CONNECTION,
    )


@contextlib.asynccontextmanager
async def connected(line: str | None, socket: Path | None) -> AsyncIterator[NorthClient]:
    """The controller of the line that is meant. A lost or missing connection ends the command with exit code 3."""
    path = socket_path(line, socket)
    try:
        async with NorthClient(path) as client:
            yield client
    except NorthClosed as error:
        console.fail(
            f"{error}\nsocket {path}: start the line's controller (`linewright run LINE.YAML`) or look at its log "
            "(`journalctl -u linewright@LINE`); if it runs elsewhere, name its socket with --socket",
            console.Exit.NO_CONNECTION,
        )


def picture(client: NorthClient) -> Picture:
    """What the line shows now."""
    return Picture(client.hello, client.values, client.bad)


def journal_path(line: str | None, state: Path | None, journal: Path | None) -> Path:
    """The journal that is meant; it need not exist. Raises :class:`console.CliError` when it cannot be told."""
    if journal is not None:
        return journal
    if state is not None:
        return state / "journal.db"
    if line is not None:
        return state_dir(line) / "journal.db"
    if os.environ.get("STATE_DIRECTORY"):
        return state_dir("") / "journal.db"
    known = _lines_with("journal.db")
    if len(known) == 1:
        return state_dir(known[0]) / "journal.db"
    where = state_dir("x").parent
    if known:
        console.fail(f"there are journals of several lines: {', '.join(known)}; say which with --line",
                     console.Exit.USAGE)  # fmt: skip
    console.fail(f"there is no journal below {where}; give --state-dir or --journal", console.Exit.USAGE)


def _lines_with(name: str) -> list[str]:
    """Names of this user's lines whose state directory holds a file of this name."""
    base = state_dir("x").parent
    try:
        return sorted(p.name for p in base.iterdir() if (p / name).exists())
    except OSError:
        return []
