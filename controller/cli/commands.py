"""All commands, put together. One module per group of commands beside this one."""

from __future__ import annotations

from importlib.metadata import version
from typing import Annotated

import typer

from controller.cli import check, demo, hil, journal, links, operate, plc, run, status, tags

app = typer.Typer(
    name="linewright",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="The control layer of a production line. Exit codes: 0 ok, 1 check failed or refused, 2 usage, "
    "3 no connection, 4 internal fault.",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"linewright {version('linewright')}")
        raise typer.Exit


@app.callback()
def _root(
    show_version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Options before the command."""


app.command("check")(check.check)
app.command("schema")(check.print_schema)
app.command("run")(run.run)
app.add_typer(run.gateway, name="gateway")
app.command("status")(status.status)
app.command("alarms")(status.alarms)
app.command("command")(operate.command)
app.command("changeover")(operate.changeover)
app.command("ack")(operate.ack)
app.command("journal")(journal.journal)
app.command("links")(links.links)
app.add_typer(plc.app, name="plc")
app.add_typer(tags.app, name="tags")
app.add_typer(hil.app, name="hil")
app.command("demo")(demo.demo)
