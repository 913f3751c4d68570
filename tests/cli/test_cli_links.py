"""links: what is on the screen, and how it ends."""

from __future__ import annotations

import io
import json

import pytest
from rich.console import Console

from controller import app
from controller.cli.links import FAULTS, FIGURES, LinkRow, page, rows
from controller.cli.picture import Picture
from controller.north.client import LocalNorth
from controller.north.frames import Scalar


def link(name: str, up: bool = True, **figures: Scalar) -> LinkRow:
    every: dict[str, Scalar] = {
        "breaker": "closed",
        "requests_per_s": 139.7,
        "p50": 0.06,
        "p99": 5.36,
        "requests": 1234567,
    }
    every |= dict.fromkeys(FAULTS, 0)
    return LinkRow(
        name, up, "" if up else "wet (10.0.0.1:502 unit 1): cannot connect; check power", {**every, **figures}
    )


def drawn(found: list[LinkRow], width: int, before: list[LinkRow] | None = None) -> str:
    out = io.StringIO()
    Console(file=out, width=width, markup=False, emoji=False).print(page(found, width, before))
    return out.getvalue()


def test_every_figure_shown_is_one_that_the_controller_publishes() -> None:
    assert {*FIGURES, *FAULTS} <= set(app._FIGURES)


@pytest.mark.parametrize("width", [80, 120, 160])
def test_everything_can_be_read(width: int) -> None:
    found = [link("wet"), link("dry", False, timeouts=12, breaker="open"), link("inspect", late=99999)]
    text = drawn(found, width)
    assert "…" not in text
    assert all(len(row) <= width for row in text.splitlines())
    for name, _ in (*FIGURES.values(), *FAULTS.values()):
        assert name in text
    assert "✗ down" in text
    assert "dry: wet (10.0.0.1:502 unit 1): cannot connect" in text.replace("\n", " ")
    assert "time-outs: no answer in time" in text
    assert "strays: " not in text, "only faults that there are need their meaning"


def test_what_was_counted_meanwhile_stands_out() -> None:
    assert "12 (+5)" in drawn([link("wet", timeouts=12)], 160, [link("wet", timeouts=7)])
    assert "(+" not in drawn([link("wet", timeouts=7)], 160, [link("wet", timeouts=7)])


def test_a_figure_that_must_not_be_trusted_or_is_not_there_is_none(line) -> None:
    north = LocalNorth(line._publisher)
    north.poll()
    values = {**north.mirror.values, "plcs.wet.timeouts": 5, "plcs.wet.late": 7}
    now = Picture(north.mirror.hello, values, {"plcs.wet.late": "stale"})
    north.close()
    wet = next(row for row in rows(now) if row.name == "wet")
    assert (wet.figures["timeouts"], wet.figures["late"], wet.figures["p50"]) == (5, None, None)
    assert "–" in drawn([wet, link("dry")], 160)


def test_of_a_running_controller(cli, line) -> None:
    result = cli("links", "--socket", line.socket, "--json")
    found = {row["link"]: row for row in map(json.loads, result.out.splitlines())}
    assert set(found) == {"wet", "dry", "inspect"}
    assert result.code == (0 if all(row["up"] for row in found.values()) else 1)
    shown = cli("links", "--socket", line.socket)
    assert "wet" in shown.out


def test_usage_and_nobody_there(cli, tmp_path) -> None:
    assert cli("links", "--watch", "--json", "--socket", tmp_path / "x").code == 2
    assert cli("links", "--socket", tmp_path / "x").code == 3
