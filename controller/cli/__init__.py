"""The command line: ``linewright …``. Data on stdout, messages on stderr, fixed exit codes (``console.Exit``)."""

from __future__ import annotations

import sys
import traceback


def main() -> None:
    """Entry point of the ``linewright`` program; never returns.

    Anything that nobody expected ends with exit code 4 and the traceback that its report needs.
    """
    from controller.cli.commands import app  # noqa: PLC0415 - the import is part of what may fail

    try:
        app(prog_name="linewright")
    except Exception:
        traceback.print_exc()
        print("linewright: this is a fault of the program, not of the line; please report it", file=sys.stderr)
        sys.exit(4)
