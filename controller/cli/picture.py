"""What a client sees of the line, and how it is drawn. Pure: values in, rich renderables out.

Grey and calm; colour only for what is abnormal, and never colour alone: every state has a shape and its name
(ISA-101, High Performance HMI).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import msgspec
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from controller.north.frames import Hello, Scalar

LINE = "line"
SHAPES = {
    "Execute": "▶", "Completing": "▷", "Complete": "●", "Idle": "○", "Stopped": "■", "Stopping": "□",
    "Held": "‖", "Holding": "‖", "Unholding": "▷", "Suspended": "◇", "Suspending": "◇", "Unsuspending": "▷",
    "Starting": "▷", "Resetting": "▷", "Clearing": "▷", "Aborted": "✖", "Aborting": "✖",
}  # fmt: skip
ABNORMAL = {"Aborted": "bold red", "Aborting": "bold red", "Held": "yellow", "Holding": "yellow"}
QUIET = "bright_black"
PRIORITY = {1: "low", 2: "medium", 3: "high", 4: "critical"}
RUNNING = frozenset({"Execute", "Suspended", "Suspending", "Unsuspending", "Starting", "Completing", "Unholding"})


class AlarmRow(msgspec.Struct, frozen=True):
    """One line of the alarm list, as the line publishes it. ``priority`` 1 low to 4 critical; ``since`` UTC in ns."""

    id: str
    text: str
    priority: int
    active: bool
    acknowledged: bool
    since: int
    response: str = ""


@dataclass(frozen=True)
class Picture:
    """Values by path, why some are bad, and the static model they belong to."""

    hello: Hello
    values: Mapping[str, Scalar]
    bad: Mapping[str, str]

    def text(self, path: str) -> str:
        """The value as people read it; ``?`` when there is none or it must not be trusted."""
        value = self.values.get(path)
        if value is None or path in self.bad:
            return "?"
        return str(value)

    def number(self, path: str) -> int:
        """A count; 0 while there is none."""
        value = self.values.get(path)
        return value if isinstance(value, int) else 0

    def flag(self, path: str) -> bool:
        """Whether a published condition holds."""
        return self.values.get(path) is True

    def state(self, target: str) -> str:
        """The PackML state's name of ``line`` or a station."""
        return self.text(f"{prefix(target)}.state_text")

    @property
    def stations(self) -> list[str]:
        """Station names in the order of the product's flow."""
        return [s.name for s in self.hello.stations]

    @property
    def plcs(self) -> list[str]:
        """PLC names."""
        return [n.path.split(".")[1] for n in self.hello.nodes if n.path.startswith("plcs.") and n.path.endswith(".up")]

    def counts(self, target: str) -> dict[str, int | None]:
        """``infeed``, ``good``, ``rejected``, ``in_process`` of ``line`` or a station; ``None`` where not counted."""
        names = {"infeed": "infeed", "good": "good", "rejected": "rejected", "in_process": "in_process"}
        if target != LINE:
            names |= {"infeed": "infeed_count", "good": "good_count", "rejected": "prod_defective_count"}
        found: dict[str, int | None] = {}
        for key, name in names.items():
            value = self.values.get(f"{prefix(target)}.{name}")
            found[key] = value if isinstance(value, int) else None
        return found

    def alarms(self) -> list[AlarmRow]:
        """Active and unacknowledged alarms, highest priority first."""
        table = self.values.get("line.alarm_table")
        if not isinstance(table, str):
            return []
        return msgspec.json.decode(table, type=list[AlarmRow])

    def advice(self, target: str) -> str:
        """One line: what went wrong first, what is waited for, or why it cannot start."""
        base, state = prefix(target), self.state(target)
        if state in ("Execute", "Complete"):
            return ""
        if state in RUNNING:
            return str(self.values.get(f"{base}.waiting_for") or self.values.get(f"{base}.stop_reason") or "")
        names = ("why_not_start",) if state == "Idle" else ("first_out", "stop_reason", "why_not_start")
        for name in names:
            if text := str(self.values.get(f"{base}.{name}") or ""):
                return text
        return ""

    def as_json(self) -> dict[str, object]:
        """Every value with its quality, for programs."""
        values: dict[str, object] = {}
        for node in self.hello.nodes:
            entry: dict[str, object] = {"value": self.values.get(node.path), "quality": "good"}
            if node.path in self.bad:
                entry |= {"quality": "bad", "reason": self.bad[node.path]}
            if node.unit:
                entry["unit"] = node.unit
            values[node.path] = entry
        head = self.hello
        return {
            "line": head.line,
            "description": head.description,
            "version": head.version,
            "config_hash": head.config_hash,
            "stations": self.stations,
            "recipes": list(head.recipes),
            "values": values,
        }


def prefix(target: str) -> str:
    """The path that a target's values begin with."""
    return LINE if target == LINE else f"stations.{target}"


def state_text(state: str) -> Text:
    """A state with its shape."""
    return Text(f"{SHAPES.get(state, '?')} {state}", style=ABNORMAL.get(state, ""))


def header(picture: Picture, extra: str = "", *, brief: bool = False) -> RenderableType:
    """The line: state, mode, recipe, product, counts and links; ``brief`` keeps every text on one line."""
    head = Text()
    head.append(f"{picture.hello.line} ", style="bold")
    head.append_text(state_text(picture.state(LINE)))
    mode = picture.text("line.unit_mode_text")
    recipe, product = picture.text("line.recipe"), picture.text("line.product")
    head.append(f"   mode {mode}   recipe {recipe or 'none'}   {product}", style="")
    if extra:
        head.append(f"   {extra}")
    counts = picture.counts(LINE)
    second = Text("   ".join(f"{key.replace('_', ' ')} {counts[key]}" for key in counts), style=QUIET)
    second.append("   PLCs ")
    for plc in picture.plcs:
        if picture.flag(f"plcs.{plc}.up"):
            second.append(f"{plc} ✓ ")
        else:
            second.append(f"{plc} ✗ not connected ", style="bold red")
    rows = [head, second]
    step = str(picture.values.get("line.changeover_step") or "")
    over = step in ("rolled_back", "failed") and picture.state(LINE) in RUNNING  # somebody has decided to go on
    if step and step != "committed" and not over:
        detail = str(picture.values.get("line.changeover_detail") or "")
        style = "yellow" if step in ("rolling_back", "rolled_back", "failed") else ""
        rows.append(Text(f"changeover: {step.replace('_', ' ')}, {detail}", style=style))
    if block := str(picture.values.get("line.block") or ""):
        rows.append(Text(f"the line is blocked: {block}", style="yellow"))
    if advice := picture.advice(LINE):
        rows.append(Text(advice, style=QUIET))
    if brief:
        for row in rows:
            row.no_wrap, row.overflow = True, "ellipsis"
    return Group(*rows)


def station_table(picture: Picture, *, reasons: bool = True) -> Table:
    """A row per station, in the order of the flow; ``reasons`` adds them, cut to one line."""
    table = Table(box=None, pad_edge=False, header_style=QUIET, expand=reasons)
    for name in ("station", "state", "mode"):
        table.add_column(name, no_wrap=True)
    for name in ("in", "good", "rejected", "in process"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("flow", no_wrap=True)
    if reasons:
        table.add_column("reason", ratio=1, no_wrap=True, overflow="ellipsis")
    for name in picture.stations:
        base = prefix(name)
        counts = ["–" if n is None else str(n) for n in picture.counts(name).values()]
        flow = [word for word in ("starved", "blocked") if picture.flag(f"{base}.{word}")]
        state = picture.state(name)
        table.add_row(
            name,
            state_text(state),
            Text(picture.text(f"{base}.unit_mode_text"), style=QUIET),
            *counts,
            Text(", ".join(flow)),
            *([Text(picture.advice(name), style="" if state in ABNORMAL else QUIET)] if reasons else []),
        )
    return table


def alarm_table(picture: Picture) -> RenderableType:
    """The alarm list, or that there is none."""
    rows = picture.alarms()
    if not rows:
        return Text("no alarms", style=QUIET)
    table = Table(box=None, pad_edge=False, header_style=QUIET)
    for name in ("alarm", "priority", "state", "text"):
        table.add_column(name, no_wrap=name != "text")
    for row in rows:
        parts = ["active" if row.active else "cleared"] + ([] if row.acknowledged else ["unacknowledged"])
        shape, style = ("●", "bold red") if row.active else ("○", "yellow")
        text = f"{row.text}: {row.response}" if row.response and row.active else row.text
        table.add_row(Text(f"{shape} {row.id}", style=style), PRIORITY[row.priority], ", ".join(parts), text)
    return table


def page(picture: Picture) -> RenderableType:
    """What ``status`` shows: as the live view, with every reason at full length below."""
    parts: list[RenderableType] = [header(picture), Text(), station_table(picture, reasons=False), Text()]
    reasons = [(name, picture.advice(name)) for name in picture.stations]
    parts += [Text(f"{name}: {reason}", style=QUIET) for name, reason in reasons if reason]
    return Group(*parts, alarm_table(picture))
