"""``linewright tags import``: from other people's tag lists to ours, with everything told that does not fit."""

from __future__ import annotations

import csv
import io
import os
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from controller.cli import console
from controller.cli.picture import QUIET
from controller.cli.plc.url import UaLogin, is_url, parse_url
from controller.cli.tagmap import FIELDS, MapError, Rules, columns_of, row_of
from controller.cli.tagsource import Source, fraction, read_csv, read_xlsx
from controller.config.check_tags import check_tags
from controller.config.context import Context
from controller.config.line import LineConfig
from controller.config.model import LineFile, LineHead, ScanClass, TagModel
from controller.config.plcs import ModbusTcpPlc, OpcUaPlc, Plc
from controller.config.tagfile import read_tags
from drivers.options import OpcUaOptions
from drivers.port import Area, WordOrder
from recipes.problem import Path as DataPath
from recipes.problem import Place, Problem, problem

app = typer.Typer(no_args_is_help=True, help="Tag lists (docs/tools.md).")


@dataclass
class Import:
    """What came of a list: rows in our columns, renames, and all that does not fit, each with its place."""

    source: Source
    rows: dict[str, dict[str, str]] = field(default_factory=dict)
    places: dict[str, Place] = field(default_factory=dict)
    renamed: dict[str, str] = field(default_factory=dict)
    """Their name -> ours, where it differs by more than case."""
    unused: list[str] = field(default_factory=list)
    """Columns that have no counterpart."""
    problems: list[Problem] = field(default_factory=list)
    warnings: list[Problem] = field(default_factory=list)


@app.callback()
def _root() -> None:
    """A group of its own, whatever the number of its commands."""


@app.command("import")
@console.command
def import_(
    source: Annotated[str, typer.Argument(metavar="FILE|URL", help="CSV, XLSX, or opc.tcp://… to browse.",
                                          show_default=False)],
    plc: Annotated[str | None, typer.Option(metavar="NAME", help="The PLC's name in line.yaml.")] = None,
    out: Annotated[Path | None, typer.Option("--out", metavar="FILE", help="Write here; default: stdout.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite FILE.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check and report only.")] = False,
    partial: Annotated[bool, typer.Option("--partial", help="Write what fits although something does not.")] = False,
    line: Annotated[Path | None, typer.Option(metavar="LINE.YAML", help="Check against this line's PLCs and tags.")]
    = None,
    map_: Annotated[list[str] | None, typer.Option("--map", metavar="FIELD=COLUMN", help="Which column is which.")]
    = None,
    modicon: Annotated[int | None, typer.Option(min=0, max=1, help="40001 (1) or 40000 (0) is the first register.")]
    = None,
    area: Annotated[Area | None, typer.Option(help="Area of addresses that are numbers alone, from 0.")] = None,
    rule: Annotated[list[str] | None, typer.Option(metavar="PREFIX=AREA:FIRST", help="%MW=hr:0: %MW7 is hr:7.")] = None,
    kepware: Annotated[bool, typer.Option("--kepware", help="Types and texts as in Kepware's exports.")] = False,
    group: Annotated[str | None, typer.Option(help="Group of names that have none; default: the PLC's name.")] = None,
    word_order: Annotated[WordOrder | None, typer.Option(help="Of types of several registers.")] = None,
    scan_class: Annotated[str | None, typer.Option(help="Scan class of rows that name none.")] = None,
    access: Annotated[str | None, typer.Option(metavar="r|rw", help="Access of rows that name none; default r.")]
    = None,
    unit: Annotated[list[str] | None, typer.Option(metavar="THEIRS=OURS", help="Spelling of a unit.")] = None,
    sheet: Annotated[str | None, typer.Option(help="Sheet of a workbook that has several.")] = None,
    encoding: Annotated[str, typer.Option(help="Of a CSV file.")] = "utf-8",
    depth: Annotated[int, typer.Option(min=1, max=50, help="OPC UA: levels of the tree.")] = 8,
    nodes: Annotated[int, typer.Option(min=1, max=100_000, help="OPC UA: variables at most.")] = 10_000,
    timeout: Annotated[float, typer.Option(min=1, max=3600, help="OPC UA: seconds for all of it.")] = 60.0,
    user: Annotated[str | None, typer.Option("--user", metavar="NAME", help="OPC UA: log in as.")] = None,
    password_file: Annotated[Path | None, typer.Option(metavar="FILE", help="OPC UA: holds the password.")] = None,
    security: Annotated[str | None, typer.Option(metavar="POLICY", help="OPC UA: e.g. Basic256Sha256.")] = None,
    pki: Annotated[Path, typer.Option(metavar="DIR", help="OPC UA: certificates.")] = Path("pki"),
) -> None:  # fmt: skip
    """Turn a tag list into ours. Nothing is guessed, nothing left out silently. Exit 1 when a row does not fit."""
    if access not in (None, "r", "rw"):
        console.fail(f"--access {access}: r or rw", console.Exit.USAGE)
    if out is not None and out.exists() and not force and not dry_run:
        console.fail(f"{out} is there already; --force overwrites it", console.Exit.USAGE)
    rules = Rules(
        plc=plc, group=group, modicon=modicon, area=area, rules=_rules(rule), kepware=kepware, word_order=word_order,
        scan_class=scan_class, access=access, units=_pairs(unit, "--unit"), columns=_columns(map_),
    )  # fmt: skip
    if is_url(source):
        if plc is None:
            console.fail("say the PLC's name in line.yaml: --plc NAME", console.Exit.USAGE)
        options = parse_url(source, login=UaLogin(user=user, password_file=password_file, security=security, pki=pki))
        if not isinstance(options, OpcUaOptions):
            console.fail(f"{source}: only an OPC UA server can be browsed; Modbus knows no names", console.Exit.USAGE)
        made = _browsed(options, source, depth, nodes, timeout)
    elif Path(source).suffix.lower() in (".xlsx", ".xlsm"):
        made = read_xlsx(Path(source), sheet)
    else:
        made = read_csv(Path(source), encoding)
    result = convert(made, rules)
    check(result, _line(line), opcua=is_url(source))
    report(result)
    text = to_csv(result)
    if not dry_run and (partial or not result.problems):
        _write(text, out, force=force)
    elif result.problems:
        console.say("nothing was written; mend the list, or take what fits with --partial")
    if result.problems:
        raise typer.Exit(console.Exit.FAILED)


def convert(source: Source, rules: Rules) -> Import:
    """Map every row. Raises :class:`console.CliError` (usage) when the columns cannot be told."""
    result = Import(source)
    try:
        columns, result.unused = columns_of(source.header, rules)
    except MapError as error:
        console.fail(f"{source.file}: {error}; {error.hint}", console.Exit.USAGE)
    workbook = source.file.split(" sheet ")[0].lower().endswith((".xlsx", ".xlsm"))
    for number, cells in source.rows:
        place = Place(source.file, number, 1)
        given = {key: cells[index] for key, index in columns.items() if index < len(cells)}
        label = given.get("name", "")
        odd = [
            what for (row, column), what in source.odd.items() if row == number and column in (-1, *columns.values())
        ]
        if workbook and fraction(given.get("address", "")):
            odd.append(f"{given['address']} may have been {given['address']}0: make the column text in the spreadsheet")
        if odd:
            result.problems.append(problem(place, f"{label}: {odd[0]}"))
            continue
        try:
            row = row_of(given, rules)
        except MapError as error:
            result.problems.append(problem(place, f"{label}: {error}" if label else str(error), error.hint))
            continue
        name = row["name"]
        if name in result.rows:
            first = result.places[name]
            what = f'"{label}" becomes {name}, and so does row {first.line}'
            result.problems.append(problem(place, what, "rename one of them in the list"))
            continue
        if name != label:
            result.renamed[label] = name
        result.rows[name], result.places[name] = row, place
    return result


def check(result: Import, line: LineConfig | None, *, opcua: bool) -> None:
    """The same checks as line.yaml's; rows that do not pass are taken out and told."""
    found = read_tags(to_csv(result), result.source.file)
    by_line = dict(enumerate(result.rows, 2))

    def blame(name: str | None, what: str, hint: str, *, warning: bool = False) -> None:
        place = result.places.get(name or "", Place(result.source.file, 1, 1))
        (result.warnings if warning else result.problems).append(problem(place, what, hint))

    broken: set[str] = set(found.broken)
    for p in found.problems:
        blame(by_line.get(p.line), p.what, p.hint)
        broken.add(by_line.get(p.line, ""))
    models: dict[str, TagModel] = dict(found.tags)
    if line is not None:
        for name in [name for name in models if name in line.tags]:
            blame(name, f"{name} is in {line.path} already", "rename one of them, or leave it out")
            broken.add(name)
    file = _stand_in(models, opcua=opcua) if line is None else line.file

    def place(path: DataPath, key: bool = False, /) -> Place:
        return result.places.get(str(path[1]), Place("", 0, 0)) if path[:1] == ("tags",) else Place("", 0, 0)

    context = Context(file=file, place=place, inside=lambda path, _column: place(path), models=models)
    check_tags(context)
    for problems, warning in ((context.errors, False), (context.warnings, True)):
        for p in problems:
            if p.file:  # others are the line's own, which `linewright check` tells
                (result.warnings if warning else result.problems).append(p)
    broken |= {str(path[1]) for path in context.broken if path[:1] == ("tags",)}
    bad_places = {(p.file, p.line) for p in result.problems}
    broken |= {name for name, at in result.places.items() if (at.file, at.line) in bad_places}
    for name in broken:
        result.rows.pop(name, None)


def _stand_in(models: Mapping[str, TagModel], *, opcua: bool) -> LineFile:
    """A line with the PLCs that the list names, for the checks; their options are not known."""
    plcs: dict[str, Plc] = {}
    for model in models.values():
        node = opcua or model.address.partition("=")[0] in ("ns", "nsu", "i", "s", "g", "b")
        if node:
            plcs[model.plc] = OpcUaPlc.model_validate({"driver": "opcua", "endpoint": f"opc.tcp://{model.plc}"})
        else:
            plcs[model.plc] = ModbusTcpPlc.model_validate({"driver": "modbus_tcp", "host": model.plc, "unit": 1})
    classes = {"fast": (100, 500), "slow": (1000, 3000)} | {m.scan_class: (1000, 3000) for m in models.values()
                                                         if m.scan_class not in ("fast", "slow")}  # fmt: skip
    return LineFile.model_construct(
        line=LineHead.model_validate({"name": "stand_in"}),
        plcs=plcs,
        scan_classes={name: ScanClass(period_ms=p, stale_ms=s) for name, (p, s) in classes.items()},
        tags={},
        stations={},
    )


def to_csv(result: Import) -> str:
    """Our tag list: the columns that are in use, in our order."""
    used = [f for f in FIELDS if f in ("name", "plc", "address", "type") or any(f in r for r in result.rows.values())]
    out = io.StringIO()
    writer = csv.DictWriter(out, used, lineterminator="\n")
    writer.writeheader()
    writer.writerows(result.rows.values())
    return out.getvalue()


def report(result: Import) -> None:
    """On stderr: renames, unused columns, and every row that does not fit, with its place."""
    screen = console.console(stderr=True)
    if result.renamed:
        grid = Table(box=None, pad_edge=False, header_style=QUIET)
        grid.add_column("renamed", overflow="fold")
        grid.add_column("to", overflow="fold")
        for old, new in result.renamed.items():
            grid.add_row(Text(old), new)
        screen.print(grid)
    if result.unused:
        console.say(f"columns not taken over: {', '.join(result.unused)}")
    for p in result.warnings:
        console.say(f"warning: {p}")
    for p in sorted(set(result.problems), key=lambda p: (p.line, p.what)):
        console.say(str(p))
    bad = len({p.line for p in result.problems})
    count = len(result.source.rows)
    console.say(
        f"{result.source.file}: {count} rows, {len(result.rows)} tags" + (f", {bad} rows do not fit" if bad else "")
    )


def _write(text: str, out: Path | None, *, force: bool) -> None:
    """In one piece, or not at all."""
    if out is None:
        sys.stdout.write(text)
        sys.stdout.flush()
        return
    draft = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        draft.write_text(text, encoding="utf-8")
        if force:
            draft.replace(out)
        else:
            os.link(draft, out)  # fails when somebody was faster
            draft.unlink()
    except OSError as error:
        draft.unlink(missing_ok=True)
        console.fail(f"{out}: cannot be written: {error.strerror}")


def _browsed(options: OpcUaOptions, url: str, depth: int, nodes: int, timeout_s: float) -> Source:
    """The variables of a server as a table."""
    from drivers.opcua.browse import browse  # noqa: PLC0415 - the OPC UA library takes its time
    from drivers.port import FieldBusError, LinkDown  # noqa: PLC0415

    try:
        found = console.run(browse(options, depth=depth, limit=nodes, timeout_s=timeout_s))
    except FieldBusError as error:
        code = console.Exit.NO_CONNECTION if isinstance(error, LinkDown) else console.Exit.FAILED
        console.fail(str(error), code)
    source = Source(url, ["name", "address", "type", "unit", "low", "high", "access", "description"])
    for number, tag in enumerate(found, 1):
        if tag.type is None or not tag.readable:
            source.odd[number, -1] = tag.problem or "this user may not read it"
        low, high = ("" if limit is None else repr(limit) for limit in (tag.low, tag.high))
        source.rows.append((number, [tag.path, tag.address, tag.type or "", tag.unit, low, high,
                                     "rw" if tag.writable else "r", tag.description]))  # fmt: skip
    return source


def _line(path: Path | None) -> LineConfig | None:
    if path is None:
        return None
    from controller.build import kind_infos  # noqa: PLC0415
    from controller.cli.check import must_be_file  # noqa: PLC0415
    from controller.config.load import load  # noqa: PLC0415
    from controller.config.problems import ConfigError  # noqa: PLC0415
    from controller.config.report import render  # noqa: PLC0415

    must_be_file(path)
    try:
        return load(path, kinds=kind_infos())
    except ConfigError as error:
        console.fail(render(error.problems, error.sources).rstrip())


def _pairs(texts: Iterable[str] | None, option: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for text in texts or []:
        key, equals, value = text.partition("=")
        if not key or not equals:
            console.fail(f"{option} {text!r} is not of the form A=B", console.Exit.USAGE)
        found[key] = value
    return found


def _columns(texts: Iterable[str] | None) -> dict[str, str]:
    found = _pairs(texts, "--map")
    for key in found:
        if key not in FIELDS:
            console.fail(f"--map {key}: our columns are {', '.join(FIELDS)}", console.Exit.USAGE)
    return found


def _rules(texts: Iterable[str] | None) -> dict[str, tuple[Area, int]]:
    found: dict[str, tuple[Area, int]] = {}
    for prefix, place in _pairs(texts, "--rule").items():
        area, _, first = place.partition(":")
        if area not in set(Area) or not first.isdecimal():
            console.fail(f"--rule {prefix}={place}: write {prefix}=hr:0", console.Exit.USAGE)
        found[prefix] = (Area(area), int(first))
    return found
