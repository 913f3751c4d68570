"""Does the demo's verdict find what does not add up."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from rich.console import Console

from controller.cli.demo.verdict import Row, Verdict, as_json, judge, products, summary
from controller.cli.picture import Picture
from controller.core.events import AlarmChanged, ChangeoverChanged, CountsChanged
from controller.north.frames import Hello, StationInfo

STATIONS = ("filler", "packer")


def counted(station: str, product: str, infeed: int, good: int, rejected: int) -> CountsChanged:
    return CountsChanged(
        at=0, station=station, product=product, infeed=infeed, good=good, rejected=rejected, in_process=0
    )


def picture(**changed: int) -> Picture:
    """20 in, 2 rejected at the filler, 18 out at the packer."""
    values: dict[str, bool | int | float | str | None] = {
        "line.infeed": 20, "line.good": 18, "line.rejected": 2, "line.in_process": 0,
        "stations.filler.infeed_count": 20, "stations.filler.good_count": 18,
        "stations.filler.prod_defective_count": 2, "stations.filler.in_process": 0,
        "stations.packer.infeed_count": 18, "stations.packer.good_count": 18,
        "stations.packer.prod_defective_count": 0, "stations.packer.in_process": 0,
    }  # fmt: skip
    values |= {path.replace("__", "."): value for path, value in changed.items()}
    stations = [StationInfo(n, "machine", "", [], [], []) for n in STATIONS]
    return Picture(Hello(1, "test", "", "", "", stations, [], {}, []), values, {})


TRUTH = {
    "line": {"infeed": 20, "good": 18, "rejected": 2, "in_process": 0},
    "stations": {
        "filler": {"infeed": 20, "good": 18, "rejected": 2, "in_process": 0},
        "packer": {"infeed": 18, "good": 18, "rejected": 0, "in_process": 0},
    },
    "products": {"a": {"infeed": 11, "good": 10, "rejected": 1, "in_process": 0}},
}
RECORD = [
    counted("filler", "a", 5, 4, 1),
    counted("packer", "a", 4, 4, 0),
    AlarmChanged(at=0, station="filler", alarm="filler.jam", change="active", priority=3, text="jam"),
    counted("filler", "a", 11, 10, 1),
    counted("packer", "a", 10, 10, 0),
    ChangeoverChanged(at=0, station="line", id=1, source="", target="a", step="committed"),
    ChangeoverChanged(at=0, station="line", id=2, source="a", target="b", step="committed"),
    counted("filler", "b", 20, 18, 2),
    counted("packer", "b", 18, 18, 0),
]


def test_what_adds_up_is_in_order() -> None:
    verdict = judge(picture(), TRUTH, RECORD)
    assert verdict.failures == ()
    assert verdict.products == {"a": {"good": 10, "rejected": 1}, "b": {"good": 8, "rejected": 1}}
    assert verdict.changeovers == 1, "loading the first recipe is no changeover"
    assert [a["id"] for a in verdict.alarms] == ["filler.jam"]
    data = as_json(verdict, 12.3456)
    assert (data["ok"], data["wall_s"], data["line"], data["plant"]) == (True, 12.346, TRUTH["line"], TRUTH["line"])


@pytest.mark.parametrize(
    ("wrong", "fragment"),
    [
        ({"line__good": 17}, "line: infeed 20 is not good + rejected + in process = 19"),
        ({"stations__filler__good_count": 17}, "filler: good 17, but 18 in the plant"),
        ({"stations__packer__in_process": 1}, "packer: in_process 1, but 0 in the plant"),
        ({"line__infeed": 19, "line__rejected": 1}, "products: rejected adds up to 2"),
    ],
)
def test_one_bottle_off_is_found(wrong: dict[str, int], fragment: str) -> None:
    verdict = judge(picture(**wrong), TRUTH, RECORD)
    assert not verdict.ok
    assert any(fragment in text for text in verdict.failures), verdict.failures
    out = io.StringIO()
    Console(file=out, width=160).print(summary(verdict, 1.0))
    assert "✗" in out.getvalue()
    assert fragment in out.getvalue()
    assert "NOT add up" in out.getvalue()


def test_counts_of_a_station_that_is_not_the_last_are_no_product() -> None:
    assert products([counted("filler", "a", 5, 5, 0)], "packer") == {}


def test_summary_ticks_what_holds() -> None:
    row = Row("line", TRUTH["line"], TRUTH["line"])
    verdict = Verdict(row, (replace(row, name="filler"),), {"a": {"good": 18, "rejected": 2}}, {}, 1, ())
    out = io.StringIO()
    Console(file=out, width=160).print(summary(verdict, 99.6))
    assert out.getvalue().count("✓") == 3
    assert "everything adds up (100 s)" in out.getvalue()
