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

SOCKET, JOURNAL = "north.sock", "journal.db"
SYSTEM_RUN, SYSTEM_STATE = Path("/run/linewright"), Path("/var/lib/linewright")
"""Where the units in deploy/ keep the lines' sockets and journals."""
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
    if os.environ.get("RUNTIME_DIRECTORY") or os.environ.get("STATE_DIRECTORY"):
        return runtime_dir(line or "") / SOCKET
    return _one(_found(SOCKET, SYSTEM_RUN), line, SOCKET, "line running here", console.Exit.NO_CONNECTION,
                "start one with `linewright run LINE.YAML`, or name its socket with --socket")  # fmt: skip


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
        return state / JOURNAL
    if os.environ.get("STATE_DIRECTORY"):
        return state_dir(line or "") / JOURNAL
    return _one(_found(JOURNAL, SYSTEM_STATE), line, JOURNAL, "journal", console.Exit.USAGE,
                "give --state-dir or --journal")  # fmt: skip


def _found(name: str, system: Path) -> dict[str, Path]:
    """Files of this name by line: this user's lines, and those that systemd runs."""
    found: dict[str, Path] = {}
    for base in (system, state_dir("x").parent):
        with contextlib.suppress(OSError):  # not there, or not for this user to look into
            found |= {folder.name: folder / name for folder in base.iterdir() if (folder / name).exists()}
    return found


def _one(found: dict[str, Path], line: str | None, name: str, what: str, code: console.Exit, remedy: str) -> Path:
    if line is not None:
        return found.get(line) or state_dir(line) / name
    if len(found) > 1:
        console.fail(f"there is more than one {what}: {', '.join(sorted(found))}; say which with --line",
                     console.Exit.USAGE)  # fmt: skip
    if not found:
        console.fail(f"there is no {what} for this user (looked in {state_dir('x').parent}); {remedy}", code)
    return next(iter(found.values()))
