"""Does it add up? What the controller counted beside what was really in the plant. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from controller.cli.picture import QUIET, Picture
from controller.core.events import AlarmChanged, AnyEvent, ChangeoverChanged, CountsChanged

KEYS = ("infeed", "good", "rejected", "in_process")
Counts = Mapping[str, int]


@dataclass(frozen=True)
class Row:
    """Counts of the line or one station: the controller's and the plant's."""

    name: str
    ours: Counts
    plant: Counts

    @property
    def problems(self) -> list[str]:
        """What does not hold, in words; empty when all does."""
        found = []
        balance = self.ours["good"] + self.ours["rejected"] + self.ours["in_process"]
        if self.ours["infeed"] != balance:
            found.append(f"infeed {self.ours['infeed']} is not good + rejected + in process = {balance}")
        found += [
            f"{k} {self.ours[k]}, but {self.plant[k]} in the plant" for k in KEYS if self.ours[k] != self.plant[k]
        ]
        return found


@dataclass(frozen=True)
class Verdict:
    """The end of a run. ``failures`` are all reasons why it is not in order."""

    line: Row
    stations: tuple[Row, ...]
    products: Mapping[str, Counts]
    plant_products: Mapping[str, Counts]
    changeovers: int
    alarms: tuple[Mapping[str, object], ...]
    opcua: Counts = field(default_factory=dict)
    """The line's counts as an OPC UA client sees them."""
    facts: Mapping[str, object] = field(default_factory=dict)
    """What else is to be told to programs: plant time, scans, overruns, the hash of the record."""
    failures: tuple[str, ...] = field(default=())

    @property
    def ok(self) -> bool:
        """Whether everything holds."""
        return not self.failures


def numbers(counts: Mapping[str, Any]) -> dict[str, int]:
    """The four counts as integers; what is not counted is 0."""
    return {key: int(counts.get(key) or 0) for key in KEYS}


def products(events: Iterable[AnyEvent], last: str) -> dict[str, dict[str, int]]:
    """Good (out of station ``last``) and rejected (anywhere) per product, from the record.

    Each counts event closes what came since the station's one before, all of it of the event's product: a
    changeover closes the books of the old product before the new one begins.
    """
    before: dict[str, tuple[int, int]] = {}
    found: dict[str, dict[str, int]] = {}
    for event in events:
        if not isinstance(event, CountsChanged):
            continue
        good, rejected = before.get(event.station, (0, 0))
        before[event.station] = (event.good, event.rejected)
        added = (event.good - good if event.station == last else 0, event.rejected - rejected)
        if any(added):
            entry = found.setdefault(event.product, {"good": 0, "rejected": 0})
            entry["good"] += added[0]
            entry["rejected"] += added[1]
    return found


def judge(picture: Picture, truth: Mapping[str, Any], events: Iterable[AnyEvent]) -> Verdict:
    """Compare what the controller shows and recorded with the plant's truth."""
    events = tuple(events)
    line = Row("line", numbers(picture.counts("line")), numbers(truth["line"]))
    stations = tuple(
        Row(name, numbers(picture.counts(name)), numbers(truth["stations"].get(name, {}))) for name in picture.stations
    )
    made = products(events, picture.stations[-1])
    real = {name: numbers(counts) for name, counts in truth["products"].items()}
    failures = [f"{row.name}: {text}" for row in (line, *stations) for text in row.problems]
    for key in ("good", "rejected"):
        total = sum(p[key] for p in made.values())
        if total != line.ours[key]:
            failures.append(f"products: {key} adds up to {total} in the record, the line shows {line.ours[key]}")
    alarms = tuple(
        {"id": e.alarm, "station": e.station, "text": e.text, "priority": e.priority, "at": e.at}
        for e in events
        if isinstance(e, AlarmChanged) and e.change == "active"
    )
    committed = [e for e in events if isinstance(e, ChangeoverChanged) and e.step == "committed" and e.source]
    numbers_of = {e.id for e in committed}
    return Verdict(line, stations, made, real, len(numbers_of), alarms, failures=tuple(failures))


def summary(verdict: Verdict, wall_s: float) -> RenderableType:
    """The table at the end: the controller's figures, the plant's beside them, a tick or the difference."""
    table = Table(box=None, pad_edge=False, header_style=QUIET, title_justify="left")
    table.add_column("")
    for key in KEYS:
        table.add_column(key.replace("_", " "), justify="right", no_wrap=True)
    table.add_column("plant", no_wrap=True, style=QUIET)
    table.add_column("infeed = good + rejected + in process, and as in the plant")
    for row in (*verdict.stations, verdict.line):
        problems = row.problems
        mark = Text("✓") if not problems else Text("✗ " + "; ".join(problems), style="bold red")
        plant = "/".join(str(row.plant[key]) for key in KEYS)
        table.add_row(row.name, *(str(row.ours[key]) for key in KEYS), plant, mark,
                      style="bold" if row.name == "line" else "")  # fmt: skip
    parts: list[RenderableType] = [Text(), table, Text()]
    for name, counts in verdict.products.items():
        parts.append(Text(f"product {name}: {counts['good']} good, {counts['rejected']} rejected"))
    if verdict.opcua:
        parts.append(Text("over OPC UA: " + ", ".join(f"{k.replace('_', ' ')} {n}" for k, n in verdict.opcua.items())))
    parts.append(Text(f"changeovers {verdict.changeovers}, alarms {len(verdict.alarms)}: "
                      + (", ".join(str(a["id"]) for a in verdict.alarms) or "none")))  # fmt: skip
    for text in verdict.failures:
        parts.append(Text(f"✗ {text}", style="bold red"))
    end = "everything adds up" if verdict.ok else "it does NOT add up"
    parts.append(
        Text(f"{'✓' if verdict.ok else '✗'} {end} ({wall_s:.0f} s)", style="bold" if verdict.ok else "bold red")
    )
    return Group(*parts)


def as_json(verdict: Verdict, wall_s: float) -> dict[str, object]:
    """The same for programs."""
    return {
        "ok": verdict.ok,
        "wall_s": round(wall_s, 3),
        **verdict.facts,
        "good": verdict.line.ours["good"],
        "rejected": verdict.line.ours["rejected"],
        "line": dict(verdict.line.ours),
        "plant": dict(verdict.line.plant),
        "products": {name: dict(counts) for name, counts in verdict.products.items()},
        "plant_products": {name: dict(counts) for name, counts in verdict.plant_products.items()},
        "stations": {row.name: dict(row.ours) for row in verdict.stations},
        "opcua": dict(verdict.opcua),
        "changeovers": verdict.changeovers,
        "alarms": [dict(alarm) for alarm in verdict.alarms],
        "failures": list(verdict.failures),
    }
