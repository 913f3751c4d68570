"""``linewright journal``: the record of what happened, read from its file; the controller need not run."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from controller.cli import console
from controller.cli.connect import LineName, StateDir, journal_path
from controller.core.events import (
    AlarmChanged,
    AnyEvent,
    ChangeoverChanged,
    CommandDone,
    CountsChanged,
    LinkChanged,
    ModeChanged,
    Note,
    OutputFailed,
    ScanOverrun,
    StopRecorded,
    Transition,
)
from controller.runtime.journal import JournalError, Row, read, verify

_AGO = re.compile(r"(\d+(?:\.\d+)?)\s*([smhd])")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


@console.command
def journal(
    kind: Annotated[
        list[str] | None, typer.Option(help="Only this kind of event; may be given more than once.")
    ] = None,
    station: Annotated[str | None, typer.Option(help="Only this station (`line` for the line itself).")] = None,
    since: Annotated[
        str | None, typer.Option(metavar="WHEN", help="`30m`, `8h`, `2d` ago, or a date and time (UTC unless it says).")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=1_000_000, help="The newest so many.")] = 100,
    check: Annotated[bool, typer.Option("--verify", help="Check the hash chain over the whole record.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object per row.")] = False,
    line: LineName = None,
    state_dir: StateDir = None,
    path: Annotated[Path | None, typer.Option("--journal", metavar="FILE", help="The journal's file itself.")] = None,
) -> None:
    """Show what happened, newest last; or check that nobody altered it. Exit 1 when the record is not sound."""
    file = journal_path(line, state_dir, path)
    try:
        if check:
            _verify(file, as_json=as_json)
            return
        rows = read(file, kinds=kind or (), station=station, since_ns=parse_since(since), limit=limit)
    except JournalError as error:
        console.fail(str(error))
    except ValueError as error:
        console.fail(str(error), console.Exit.USAGE)
    for row in rows:
        if as_json:
            console.emit(as_dict(row))
        else:
            print(f"{row.seq:>8}  {describe(row.event)}")


def _verify(file: Path, *, as_json: bool) -> None:
    verdict = verify(file)
    if as_json:
        console.emit({"ok": not verdict.fault, "rows": verdict.rows, "fault": verdict.fault, "journal": str(file)})
    elif not verdict.fault:
        print(f"{file}: {verdict.rows} rows, the hash chain is whole")
    if verdict.fault:
        console.fail(
            f"{file}: {verdict.fault}, after {verdict.rows} sound rows; the record was altered or damaged: "
            "keep the file as evidence and compare it with the last backup"
        )


def parse_since(text: str | None, now: datetime | None = None) -> int | None:
    """UTC nanoseconds of ``8h`` (ago) or of an ISO 8601 date and time. Raises :class:`ValueError`."""
    if text is None:
        return None
    ago = _AGO.fullmatch(text.strip())
    if ago:
        when = (now or datetime.now(UTC)) - timedelta(seconds=float(ago[1]) * _SECONDS[ago[2]])
    else:
        try:
            when = datetime.fromisoformat(text.strip())
        except ValueError:
            raise ValueError(
                f"--since {text!r}: give a time ago such as 30m, 8h or 2d, or a date such as 2026-03-01T06:00"
            ) from None
        if when.tzinfo is None:
            when = when.replace(tzinfo=UTC)
    return int(when.timestamp() * 1_000_000) * 1000


def as_dict(row: Row) -> dict[str, object]:
    """A row for programs: the event's own fields, its number and its hash."""
    fields = msgspec.to_builtins(row.event)
    assert isinstance(fields, dict)
    return {"seq": row.seq, **fields, "hash": row.hash}


def stamp(at_ns: int) -> str:
    """UTC time of an event, to the millisecond."""
    seconds, rest = divmod(at_ns, 1_000_000_000)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S}.{rest // 1_000_000:03d}Z"


def describe(event: AnyEvent) -> str:
    """An event as one line: when, where, what."""
    return f"{stamp(event.at)}  {event.station or '-':<14} {sentence(event)}"


def sentence(event: AnyEvent) -> str:
    """What an event says, without time and place."""
    match event:
        case Transition():
            return f"{event.source} → {event.target} ({event.cause})" + _tail(event.reason)
        case ModeChanged():
            return f"unit mode {event.source} → {event.target}"
        case CommandDone():
            who = event.user or "nobody named"
            args = "".join(f" {k}={v}" for k, v in event.args.items())
            verdict = "accepted" if event.accepted else "REFUSED"
            return f"command {event.command}{args} by {who} ({event.client}): {verdict}" + _tail(event.reason)
        case AlarmChanged():
            who = f" by {event.user}" if event.user else ""
            return f"alarm {event.alarm} {event.change}{who}, priority {event.priority}: {event.text}"
        case CountsChanged():
            return (
                f"counts of {event.product or 'no product'}: infeed {event.infeed}, good {event.good}, "
                f"rejected {event.rejected}, in process {event.in_process}"
            )
        case ChangeoverChanged():
            return f"changeover {event.id} {event.source or 'none'} → {event.target}: {event.step}" + _tail(
                event.detail
            )
        case LinkChanged():
            return f"PLC {event.plc} {'connected' if event.up else 'NOT connected'}" + _tail(event.reason)
        case OutputFailed():
            return f"output {event.tag} = {event.value} {event.outcome}" + _tail(event.reason)
        case StopRecorded():
            return f"stop of {event.seconds:.1f} s caused by {event.cause_station}" + _tail(event.reason)
        case ScanOverrun():
            return f"scan overrun: {event.skipped} skipped, {event.late_ms:g} ms late"
        case Note():
            return event.text


def _tail(text: str) -> str:
    return f": {text}" if text else ""
