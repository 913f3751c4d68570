"""``linewright run`` and ``linewright gateway``: the controller's process, and its gateways'."""

from __future__ import annotations

import sqlite3
import sys
from pathlib import Path
from typing import Annotated

import typer

from controller.cli import console
from controller.cli.check import Endpoints, LinePath, must_be_file, overrides
from controller.cli.connect import StateDir
from controller.cli.processes import end_with_parent

DEFAULT_OPCUA = "opc.tcp://127.0.0.1:4840"
gateway = typer.Typer(no_args_is_help=True, help="Run one gateway by itself (under systemd each is a unit).")


@console.command
def run(
    line: LinePath,
    endpoints: Endpoints = None,
    state_dir: StateDir = None,
    socket: Annotated[Path | None, typer.Option(metavar="PATH", help="North socket to listen on.")] = None,
    opcua: Annotated[
        str, typer.Option(metavar="URL|off", help="Endpoint of the OPC UA gateway, or `off`.")
    ] = DEFAULT_OPCUA,
    opcua_users: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Users of the OPC UA gateway (docs/opcua.md).")
    ] = None,
    no_gateways: Annotated[bool, typer.Option("--no-gateways", help="Start none; they run as units.")] = False,
    stop_limit: Annotated[float, typer.Option(min=0, help="Seconds an orderly stop may take before Abort.")] = 20.0,
    log_level: Annotated[str, typer.Option(help="debug, info, warning or error.")] = "info",
) -> None:
    """Control a line until SIGTERM or Ctrl-C: the first stops it in order, the second aborts it.

    Exit 0 when stopped in order, 1 when a part died or the line cannot be run, 4 (or 70) for a fault of ours.
    """
    from controller import app  # noqa: PLC0415 - drivers and all
    from controller.config.problems import ConfigError  # noqa: PLC0415
    from controller.config.report import render  # noqa: PLC0415
    from controller.north.server import NorthError  # noqa: PLC0415
    from controller.runtime.instance import InstanceError  # noqa: PLC0415
    from controller.runtime.journal import JournalError  # noqa: PLC0415
    from controller.runtime.log import configure_logging  # noqa: PLC0415

    end_with_parent()
    must_be_file(line)
    overrides(endpoints)  # a wrong file is told before anything starts
    if log_level not in ("debug", "info", "warning", "error"):
        console.fail(f"--log-level {log_level!r}: debug, info, warning or error", console.Exit.USAGE)
    options = app.RunOptions(
        line=line,
        endpoints=endpoints,
        state_dir=state_dir,
        socket=socket,
        opcua=None if opcua == "off" else opcua,
        opcua_users=opcua_users,
        gateways=not no_gateways,
        stop_limit_s=stop_limit,
    )
    log = configure_logging(log_level)
    try:
        code = console.run(app.run(options))
    except ConfigError as error:
        console.fail(render(error.problems, error.sources).rstrip())
    except (InstanceError, JournalError, NorthError, sqlite3.Error, OSError) as error:
        console.fail(str(error))
    finally:
        log.close()
    raise typer.Exit(code)


@gateway.command("opcua")
@console.command
def gateway_opcua(
    north: Annotated[Path, typer.Option(metavar="PATH", help="The controller's north socket.", show_default=False)],
    endpoint: Annotated[str, typer.Option(metavar="URL", help="Where to listen.")] = DEFAULT_OPCUA,
    users: Annotated[Path | None, typer.Option(metavar="FILE", help="Users file (docs/opcua.md).")] = None,
    ready_file: Annotated[Path | None, typer.Option(hidden=True)] = None,
) -> None:
    """The OPC UA server of a line, following its controller; needs nothing else of it."""
    from controller.gateways import opcua  # noqa: PLC0415 - the OPC UA library takes its time

    argv = ["--north", str(north), "--endpoint", endpoint]
    if users is not None:
        argv += ["--users", str(users)]
    if ready_file is not None:
        argv += ["--ready-file", str(ready_file)]
    code = opcua.main(argv)
    sys.stdout.flush()
    raise typer.Exit(code)
