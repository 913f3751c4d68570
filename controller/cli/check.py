"""``linewright check`` and ``linewright schema``: is the configuration right, and what does it say."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from controller.app import read_endpoints
from controller.build import kind_infos
from controller.cli import console
from controller.config.address import parse_range
from controller.config.line import LineConfig
from controller.config.load import load
from controller.config.plcs import ModbusOptions
from controller.config.problems import ConfigError
from controller.config.report import as_dicts, render, summary
from controller.config.schema import recipe_schema, schema, text_of
from drivers.plan import ModbusPlan, PlanOptions

LinePath = Annotated[Path, typer.Argument(metavar="LINE.YAML", help="The line's configuration.", show_default=False)]
Endpoints = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", help="JSON with other addresses per PLC, as `hil serve` writes it.", show_default=False
    ),
]


class Which(StrEnum):
    """The two kinds of file that people write."""

    LINE = "line"
    RECIPE = "recipe"


def overrides(path: Path | None) -> Mapping[str, Mapping[str, Any]] | None:
    """PLC fields to override, by PLC. Raises :class:`console.CliError` (usage) when the file is of no use."""
    try:
        return read_endpoints(path)
    except ValueError as error:
        if path is not None and not path.exists():
            what = "there is no such endpoints file; `linewright hil serve` writes it as soon as every PLC listens"
            console.fail(f"{path}: {what}", console.Exit.USAGE)
        console.fail(str(error), console.Exit.USAGE)


def must_be_file(line: Path) -> None:
    """Raises :class:`console.CliError` (usage) when this is not a file."""
    what = "is a folder" if line.is_dir() else "there is no such file"
    if not line.is_file():
        console.fail(f"{line}: {what}; give the line's line.yaml", console.Exit.USAGE)


@console.command
def check(
    line: LinePath,
    endpoints: Endpoints = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Check a line's files, recipes included. Exit 0 when it can run, 1 when something is wrong."""
    must_be_file(line)
    replaced = overrides(endpoints)
    try:
        config = load(line, replaced, kinds=kind_infos())
    except ConfigError as error:
        if as_json:
            console.emit({"ok": False, "problems": as_dicts(error.problems)})
        else:
            sys.stdout.write(render(error.problems, error.sources))
        console.fail("")
    facts = summarise(config)
    if as_json:
        warnings = as_dicts(config.warnings, "warning")
        console.emit({"ok": True, "config_hash": config.config_hash, "problems": warnings, "summary": facts})
        return
    if config.warnings:
        sys.stdout.write(render((), config.sources, config.warnings))
    _print(config, facts)


def summarise(config: LineConfig) -> dict[str, Any]:
    """Figures of a sound line, and what each PLC is asked per read of each scan class."""
    file = config.file
    plcs = {name: _plc(config, name) for name in file.plcs}
    return {
        "line": file.line.name,
        "scan_ms": file.line.scan_ms,
        "stations": list(file.stations),
        "plcs": plcs,
        "tags": len(config.tags),
        "recipes": list(config.control_recipes),
        "requests_per_scan": round(sum(p["requests_per_scan"] for p in plcs.values()), 2),
    }


def _plc(config: LineConfig, name: str) -> dict[str, Any]:
    spec = config.file.plcs[name]
    tags = [tag for tag in config.tags.values() if config.tag_plc[tag.name] == name]
    if isinstance(spec, ModbusOptions):
        limits = {key: getattr(spec, key) for key in ("max_registers", "max_bits", "max_gap", "max_write_registers")}
        plan = ModbusPlan(tags, PlanOptions(avoid=tuple(parse_range(text) for text in spec.avoid), **limits))
        requests = {group.scan_class: len(plan.requests(n)) for n, group in enumerate(plan.groups)}
    else:  # one Read service call per group; a device that speaks by itself is asked at most as often
        requests = dict.fromkeys((tag.scan_class for tag in tags), 1)
    classes, scan_ms = config.file.scan_classes, config.file.line.scan_ms
    return {
        "driver": spec.driver,
        "tags": len(tags),
        "requests": requests,
        "requests_per_scan": round(sum(n * scan_ms / classes[c].period_ms for c, n in requests.items()), 2),
    }


def _print(config: LineConfig, facts: dict[str, Any]) -> None:
    head = config.file.line
    print(f"{config.path}: line {head.name} is sound ({summary(0, len(config.warnings))})")
    print(f"  scan       every {head.scan_ms} ms, {facts['requests_per_scan']:g} requests per scan on average")
    print(f"  stations   {' → '.join(facts['stations'])}")
    print(f"  tags       {facts['tags']}")
    print(f"  recipes    {', '.join(facts['recipes']) or 'none'}; at start-up {head.recipe or 'none'}")
    for name, plc in facts["plcs"].items():
        asked = ", ".join(f"{n} per {c} read" for c, n in plc["requests"].items())
        print(f"  PLC {name:<10} {plc['driver']}, {plc['tags']} tags, requests: {asked}")
    print(f"  config     sha256 {config.config_hash}")


@console.command
def print_schema(
    which: Annotated[Which, typer.Argument(help="Of line.yaml or of a recipe.")] = Which.LINE,
) -> None:
    """Print the JSON Schema, for editors that complete and check while one types."""
    sys.stdout.write(text_of(schema() if which is Which.LINE else recipe_schema()))
