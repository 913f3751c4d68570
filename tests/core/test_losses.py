"""Lost time belongs to the station that caused it, and to exactly one."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import hypothesis.strategies as st
from hypothesis import given

from controller.core.losses import LossLedger
from controller.core.packml import State
from controller.core.station import ScanContext

S = 1_000_000_000
UP = {"a": [], "b": ["a"], "c": ["b"]}
DOWN = {"a": ["b"], "b": ["c"], "c": []}


@dataclass
class Standing:
    """What the ledger looks at of a station."""

    state: State = State.EXECUTE
    starved: bool = False
    blocked: bool = False
    stop_reason: str = ""


@dataclass
class Ledger:
    up: Any = field(default_factory=lambda: UP)
    down: Any = field(default_factory=lambda: DOWN)

    def __post_init__(self) -> None:
        self.ledger = LossLedger(self.up, self.down)
        self.context = ScanContext()
        self.stations: Any = {n: Standing() for n in "abc"}

    def scan(self, seconds: int, producing: bool = True) -> None:
        self.context.now_ns = self.context.utc_ns = seconds * S
        self.ledger.scan(producing, self.stations, self.context)

    def set(self, name: str, state: State, **flags: Any) -> None:
        self.stations[name] = Standing(state, **flags)


def test_starved_stations_charge_the_station_that_stopped_upstream() -> None:
    rig = Ledger()
    rig.scan(0)
    rig.set("a", State.HELD, stop_reason="guard open")
    rig.scan(10)
    rig.set("b", State.SUSPENDED, starved=True, stop_reason="starved")
    rig.scan(12)
    rig.set("c", State.SUSPENDED, starved=True)
    rig.scan(15)
    assert rig.ledger.caused_by("a") == 8 * S, "also before the stops end"
    for name in "abc":
        rig.set(name, State.EXECUTE)
    rig.scan(20)
    assert rig.ledger.lost_ns == {("a", "a"): 10 * S, ("b", "a"): 8 * S, ("c", "a"): 5 * S}
    assert rig.ledger.caused_by("a") == 23 * S
    assert rig.ledger.caused_by("b") == 0
    stops = {e.station: e for e in rig.context.events}
    assert (stops["a"].reason, stops["a"].cause_station, stops["a"].seconds) == ("guard open", "a", 10.0)
    assert (stops["b"].cause_station, stops["b"].started) == ("a", 12 * S)


def test_blocked_stations_charge_the_station_downstream() -> None:
    rig = Ledger()
    rig.set("c", State.ABORTED)
    rig.set("b", State.SUSPENDED, blocked=True)
    rig.set("a", State.SUSPENDING, blocked=True)
    rig.scan(0)
    rig.scan(4, producing=False)
    assert rig.ledger.lost_ns == {("a", "c"): 4 * S, ("b", "c"): 4 * S, ("c", "c"): 4 * S}


def test_a_suspension_of_its_own_making_is_its_own_loss() -> None:
    rig = Ledger()
    rig.set("b", State.SUSPENDED)
    rig.scan(0)
    rig.scan(3, producing=False)
    assert rig.ledger.lost_ns == {("b", "b"): 3 * S}


def test_nothing_is_lost_while_the_line_is_not_to_produce() -> None:
    rig = Ledger()
    rig.set("a", State.STOPPED)
    rig.scan(0, producing=False)
    rig.scan(100, producing=False)
    assert rig.ledger.lost_ns == {}
    assert rig.context.events == []


def test_a_changed_cause_ends_one_stop_and_begins_another() -> None:
    rig = Ledger()
    rig.set("b", State.SUSPENDED, starved=True)
    rig.set("a", State.HELD)
    rig.scan(0)
    rig.set("b", State.SUSPENDED, blocked=True)
    rig.set("c", State.HELD)
    rig.scan(6)
    rig.set("b", State.EXECUTE)
    rig.scan(10)
    assert rig.ledger.lost_ns == {("b", "a"): 6 * S, ("b", "c"): 4 * S}


def test_a_short_stop_counts_but_is_not_recorded_by_itself() -> None:
    rig = Ledger()
    rig.set("a", State.HELD)
    rig.scan(0)
    rig.set("a", State.EXECUTE)
    rig.scan(1)
    assert rig.ledger.caused_by("a") == S
    assert rig.context.events == []


def test_a_ring_of_neighbours_ends() -> None:
    rig = Ledger({"a": ["c"], "b": ["a"], "c": ["b"]}, {"a": [], "b": [], "c": []})
    for name in "abc":
        rig.set(name, State.SUSPENDED, starved=True)
    rig.scan(0)
    rig.scan(1, producing=False)
    assert sum(rig.ledger.lost_ns.values()) == 3 * S


def test_of_several_feeders_the_one_that_stands_is_the_cause() -> None:
    rig = Ledger({"a": [], "b": [], "c": ["a", "b"]}, {"a": ["c"], "b": ["c"], "c": []})
    rig.set("b", State.HELD)
    rig.set("c", State.SUSPENDED, starved=True)
    assert rig.ledger.cause("c", rig.stations) == "b"


STATES = st.sampled_from([State.EXECUTE, State.HELD, State.SUSPENDED, State.SUSPENDING, State.ABORTED])
STATION = st.builds(Standing, STATES, st.booleans(), st.booleans())


@given(st.lists(st.tuples(st.booleans(), st.tuples(STATION, STATION, STATION), st.integers(2, 60)), max_size=30))
def test_every_lost_second_is_counted_once(scans: list[tuple[bool, tuple[Standing, Standing, Standing], int]]) -> None:
    rig = Ledger()
    now = 0
    lost = dict.fromkeys("abc", 0)
    for producing, stations, seconds in scans:
        rig.stations = dict(zip("abc", stations, strict=True))
        rig.scan(now, producing)
        now += seconds
        for name, station in rig.stations.items():
            lost[name] += seconds if producing and station.state is not State.EXECUTE else 0
    rig.scan(now, producing=False)
    for name in "abc":
        assert sum(ns for (who, _), ns in rig.ledger.lost_ns.items() if who == name) == lost[name] * S
    assert sum(rig.ledger.caused_by(n) for n in "abc") == sum(lost.values()) * S
    assert round(sum(e.seconds for e in rig.context.events)) == sum(lost.values())
