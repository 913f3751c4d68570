"""``linewright plc scan``: says what it will send, sends it, shows what was found."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence

import typer
from rich.status import Status
from rich.table import Table
from rich.text import Text

from controller.cli import console
from controller.cli.picture import QUIET
from controller.cli.plc import explore
from controller.cli.plc.explore import Span
from controller.cli.plc.guard import running
from controller.cli.plc.scan_modbus import Scan, Scope, UnitFound
from controller.cli.plc.target import Target

Progress = Callable[[str], None]


def allowed(words: str, *, line: str | None, yes: bool, anyway: bool) -> None:
    """Say what will be sent, and let somebody at a terminal decide. Raises :class:`console.CliError`."""
    busy = running(line)
    if busy and line is not None and not anyway:
        console.fail(f"{busy}: stop it, or give --anyway")
    console.say(words)
    if busy:
        console.say(f"warning: {busy}")
    if not yes and sys.stdin.isatty() and sys.stderr.isatty() and not typer.confirm("Go on?", default=True, err=True):
        console.fail("nothing was sent")


@contextlib.contextmanager
def progress() -> Iterator[Progress]:
    """One line that changes, on a terminal; nothing elsewhere."""
    screen = console.console(stderr=True)
    if not screen.is_terminal:
        yield lambda _text: None
        return
    with Status("", console=screen) as status:
        yield lambda text: status.update(Text(text))


def scan_modbus(target: Target, scope: Scope, *, as_json: bool) -> console.Exit:
    """Scan and print; what was found is printed also after Ctrl-C."""
    interrupted = False
    with progress() as tell:
        scan = Scan(target, scope, tell)
        try:
            console.run(scan.run())
        except KeyboardInterrupt:
            interrupted = True
    if as_json:
        for unit in scan.units:
            areas = [area.as_json() for area in unit.areas]
            console.emit({"unit": unit.unit, "identity": unit.identity, "areas": areas, "slowest_ms": unit.slowest_ms})
        console.emit({
            "answering": scan.answering, "silent": scan.silent, "gateway_answers": scan.gateway,
            "every_unit": scan.every_unit, "requests": scan.requests, "out_of_time": scan.out_of_time,
        })  # fmt: skip
    else:
        for line in verdict(scan):
            print(line)
        screen = console.console()
        for unit in scan.units:
            screen.print()
            screen.print(Text(f"unit {unit.unit}, slowest answer {unit.slowest_ms:.0f} ms", style="bold"))
            for name, value in unit.identity.items():
                screen.print(Text(f"  {name}: {value}"))
            screen.print(area_table(unit))
            if any(area.unsettled for area in unit.areas):
                what = "not settled: refused as a block, or not tried; look closer with --addresses and --requests"
                screen.print(Text(what, style=QUIET))
    if interrupted:
        console.say("interrupted: what is not shown was not looked at")
        return console.Exit.INTERRUPTED
    return console.Exit.OK if scan.answering else console.Exit.FAILED


def verdict(scan: Scan) -> list[str]:
    """Who answers, in words."""
    lines = []
    asked = len(scan.answering) + len(scan.silent) + len(scan.gateway)
    if scan.every_unit:
        lines.append(f"every one of the first {asked} units answers: the device does not look at the unit; "
                     f"shown for unit {scan.answering[0]}")  # fmt: skip
    elif scan.answering:
        lines.append(f"{_units(scan.answering)} of {asked} asked")
    else:
        lines.append(
            f"none of {asked} units answers; check unit, wiring, baud rate and parity, or the gateway's routes"
        )
    if scan.gateway:
        lines.append(f"for {explore.text(explore.spans(scan.gateway))} the gateway answers that nobody is there")
    if scan.out_of_time:
        lines.append("stopped by --limit before the end: what is not shown was not looked at")
    lines.append(f"{scan.requests} requests sent, all of them reads")
    return lines


def area_table(unit: UnitFound) -> Table:
    """One row per area."""
    grid = Table(box=None, pad_edge=False, header_style=QUIET)
    grid.add_column("area", no_wrap=True)
    grid.add_column("can be read", overflow="fold")
    grid.add_column("not settled", overflow="fold", style=QUIET)
    grid.add_column("block", justify="right")
    grid.add_column("note", overflow="fold", style=QUIET)
    for area in unit.areas:
        grid.add_row(
            area.area, _short(area.readable) or "nothing", _short(area.unsettled), str(area.largest or "–"), area.note
        )
    return grid


def _short(runs: Sequence[Span]) -> str:
    more = f" … and {len(runs) - 8} more (--json)" if len(runs) > 8 else ""
    return explore.text(runs[:8]) + more


def _units(units: list[int]) -> str:
    return f"unit{'s' * (len(units) > 1)} {explore.text(explore.spans(units))} answer{'s' * (len(units) == 1)}"
