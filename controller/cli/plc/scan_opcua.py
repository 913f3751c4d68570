"""``linewright plc scan`` and ``id`` on OPC UA: endpoints, state, namespaces and the tree of variables. Reads only."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from datetime import UTC, datetime

from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from controller.cli import console
from controller.cli.picture import QUIET
from controller.cli.plc.scan import Progress
from controller.cli.plc.target import Target
from drivers.opcua.browse import BrowsedTag, browse
from drivers.opcua.survey import ServerFacts, survey
from drivers.options import OpcUaOptions
from drivers.port import FieldBusError

WORDS = (
    "This sends read requests only: GetEndpoints, reads of the server's status, and Browse down to {depth} levels,\n"
    "up to {limit} variables. On a running line it takes the server's time from the controller."
)


async def server_facts(options: OpcUaOptions, timeout_s: float) -> dict[str, str]:
    """For ``plc id``. Raises :class:`console.CliError` when the server cannot be reached."""
    facts = await _survey(options, timeout_s)
    if facts.problem:
        console.fail(facts.problem, console.Exit.NO_CONNECTION)
    return {"endpoint": options.endpoint, **facts.build, "state": facts.state, **_clock(facts)}


async def scan_opcua(target: Target, *, depth: int, limit: int, as_json: bool, progress: Progress) -> bool:
    """Print what the server is and has. Whether a session could be had."""
    assert isinstance(target.options, OpcUaOptions)
    options = target.options
    progress("endpoints and state")
    facts = await _survey(options, max(3.0, target.timeout_s))
    tags: list[BrowsedTag] = []
    if not facts.problem:
        progress("browsing")
        try:
            tags = await browse(options, depth=depth, limit=limit)
        except FieldBusError as error:
            console.say(f"browsing ended: {error}")
    if as_json:
        console.emit({**asdict(facts), "variables": [asdict(tag) for tag in tags]})
    else:
        _print(facts, tags)
    return not facts.problem


async def _survey(options: OpcUaOptions, timeout_s: float) -> ServerFacts:
    try:
        return await survey(options, timeout_s)
    except FieldBusError as error:
        console.fail(str(error), console.Exit.NO_CONNECTION)


def _print(facts: ServerFacts, tags: list[BrowsedTag]) -> None:
    screen = console.console()
    grid = Table(box=None, pad_edge=False, header_style=QUIET)
    for name in ("endpoint", "security", "log in with"):
        grid.add_column(name, overflow="fold")
    for each in sorted(facts.endpoints, key=lambda e: -e.level):
        secure = each.policy != "None"
        security = Text(f"{each.policy} {each.mode}".replace("None None_", "none"), style="" if secure else "yellow")
        grid.add_row(each.url, security, ", ".join(each.users))
    screen.print(grid)
    if facts.problem:
        console.say(f"no session: {facts.problem}")
        return
    screen.print(f"state {facts.state}" + (f", service level {facts.level}" if facts.level is not None else ""))
    for name, value in {**_clock(facts), **facts.build}.items():
        screen.print(Text(f"{name} {value}"))
    by_space = Counter(tag.address.partition(";")[0] for tag in tags)
    for number, uri in enumerate(facts.namespaces):
        count = by_space.get(f"nsu={uri}", 0)
        screen.print(Text(f"namespace {number} {uri}" + (f": {count} variables" if count else "")))
    fit = sum(tag.type is not None for tag in tags)
    screen.print(Text(f"{len(tags)} variables, {fit} of them can be tags"))
    screen.print(tree(tags))


def tree(tags: list[BrowsedTag]) -> Tree:
    """The variables by their browse paths."""
    root = Tree("Objects", guide_style=QUIET)
    folders: dict[tuple[str, ...], Tree] = {(): root}
    for tag in tags:
        *folder, name = tag.path.split("/")
        at: tuple[str, ...] = ()
        for part in folder:
            below = (*at, part)
            if below not in folders:
                folders[below] = folders[at].add(Text(part, style="bold"))
            at = below
        kind = tag.type or f"no tag: {tag.problem}"
        label = Text(name)
        label.append(f"  {kind} {'rw' if tag.writable else 'r'}  {tag.address}", style=QUIET)
        folders[at].add(label)
    return root


def _clock(facts: ServerFacts) -> dict[str, str]:
    found: dict[str, str] = {}
    if facts.started is not None:
        found["running since"] = facts.started.replace(tzinfo=UTC).isoformat(timespec="seconds")
    if facts.now is not None:
        off = (facts.now.replace(tzinfo=UTC) - datetime.now(UTC)).total_seconds()
        found["clock"] = f"{off:+.1f} s beside this computer's"
    return found
