"""What all commands share: exit codes, how to fail, how to print.

Data goes to stdout and nothing else does; messages go to stderr. With ``--json`` the last line of stdout is one
JSON object, or one object per row where the command lists rows.
"""

from __future__ import annotations

import asyncio
import enum
import functools
import os
import sys
from collections.abc import Callable, Coroutine
from typing import Any, NoReturn, ParamSpec, TypeVar

import msgspec
import typer
from rich.console import Console

P = ParamSpec("P")
R = TypeVar("R")


class Exit(enum.IntEnum):
    """Exit codes of every command; part of the interface."""

    OK = 0
    FAILED = 1
    """A check failed, or a command was refused."""
    USAGE = 2
    """The command line itself is wrong, or names a file that is not there."""
    NO_CONNECTION = 3
    """The controller or the bench does not answer."""
    INTERNAL = 4
    """A fault of this program."""
    INTERRUPTED = 130
    """Ctrl-C."""


class CliError(Exception):
    """An expected end with a message for stderr: what, where, and what to do next. No traceback."""

    def __init__(self, message: str, code: Exit = Exit.FAILED) -> None:
        super().__init__(message)
        self.code = code


def command(function: Callable[P, R]) -> Callable[P, R]:
    """Turn expected ends of a command into messages and exit codes."""

    @functools.wraps(function)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return function(*args, **kwargs)
        except CliError as error:
            if str(error):
                say(str(error))
            raise typer.Exit(error.code) from None
        except KeyboardInterrupt:
            raise typer.Exit(Exit.INTERRUPTED) from None
        except BrokenPipeError:
            # Whoever read our stdout (head, less) has gone: that is no error, but flushing again would be one.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(Exit.OK) from None

    return guarded


def run(coroutine: Coroutine[Any, Any, R]) -> R:
    """Run a command's asynchronous part."""
    return asyncio.run(coroutine)


def say(message: str) -> None:
    """A message for the person, on stderr, exactly as it is (no markup)."""
    print(message, file=sys.stderr, flush=True)


def fail(message: str, code: Exit = Exit.FAILED) -> NoReturn:
    """End with this message. Raises :class:`CliError`."""
    raise CliError(message, code)


def emit(value: object) -> None:
    """One JSON value on a line of its own on stdout. A NaN becomes ``null``, as JSON has none."""
    sys.stdout.write(msgspec.json.encode(value).decode() + "\n")
    sys.stdout.flush()


def console(*, stderr: bool = False) -> Console:
    """A console; where there is no terminal it writes plain text, wide enough for every table."""
    terminal = (sys.stderr if stderr else sys.stdout).isatty()
    # No markup and no emoji: hr:100:DINT is an address, not a sign between colons.
    return Console(stderr=stderr, highlight=False, markup=False, emoji=False, width=None if terminal else 160)
