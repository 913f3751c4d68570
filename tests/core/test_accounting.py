"""Production counts: nothing lost, nothing doubled."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
from helpers.core_rig import Plant
from hypothesis import given

from controller.core.accounting import Counter, CountSlots, Tally
from controller.core.image import LinkReport


@pytest.mark.parametrize("bits", [16, 32])
def test_roll_over(bits: int) -> None:
    top = (1 << bits) - 1
    counter = Counter(bits)
    assert counter.take(top - 2) == 0
    assert counter.take(top) == 2
    assert counter.take(0) == 1
    assert counter.take(4) == 4
    assert (counter.total, counter.restarts) == (7, 0)


@pytest.mark.parametrize("bits", [16, 32])
def test_restart_at_zero_counts_what_it_shows(bits: int) -> None:
    counter = Counter(bits)
    counter.take(5_000)
    counter.take(5_010)
    assert counter.take(3) == 3
    assert (counter.total, counter.restarts) == (13, 1)
    assert counter.take(0) == 0
    assert (counter.total, counter.restarts) == (13, 2)


@given(st.sampled_from([16, 32]), st.data())
def test_any_way_of_reading_a_running_counter_gives_the_same_total(bits: int, data: st.DataObject) -> None:
    modulus = 1 << bits
    start = data.draw(st.integers(0, modulus - 1))
    steps = data.draw(st.lists(st.integers(0, modulus // 10), max_size=30))
    counter = Counter(bits)
    counter.take(start)
    true = start
    for step in steps:
        true += step
        counter.take(true % modulus)
    assert counter.total == true - start
    assert counter.restarts == 0


COUNTS = {"x.infeed": 100, "x.good": 90, "x.rejected": 3, "x.wip": 7}


def tally_of(plant: Plant) -> Tally:
    slots = plant.layout.slots
    return Tally(
        plant.image,
        CountSlots((slots["x.infeed"], 16), (slots["x.good"], 16), (slots["x.rejected"], 16), slots["x.wip"]),
    )


def scan(plant: Plant, tally: Tally, product: str) -> str:
    plant.tick({})
    plant.image.latch(plant.now, plant.buffer)
    return tally.scan(product)


@pytest.fixture
def plant() -> Plant:
    plant = Plant({"one": dict(COUNTS)})
    plant.connect()
    return plant


def test_first_reading_is_the_base_and_products_are_apart(plant: Plant) -> None:
    tally = tally_of(plant)
    assert scan(plant, tally, "A") == ""
    assert tally.totals == {"infeed": 0, "good": 0, "rejected": 0}
    assert tally.in_process == 7
    plant.memory |= {"x.infeed": 110, "x.good": 98, "x.rejected": 4}
    scan(plant, tally, "A")
    generation = tally.generation
    scan(plant, tally, "A")
    assert tally.generation == generation
    plant.memory |= {"x.infeed": 111}
    scan(plant, tally, "B")
    assert tally.totals == {"infeed": 11, "good": 8, "rejected": 1}
    assert tally.products == {
        "A": {"infeed": 10, "good": 8, "rejected": 1},
        "B": {"infeed": 1, "good": 0, "rejected": 0},
    }


def test_counts_made_while_the_link_was_down_are_taken_when_it_is_back(plant: Plant) -> None:
    tally = tally_of(plant)
    scan(plant, tally, "A")
    plant.cut("one")
    plant.memory |= {"x.infeed": 150}
    for _ in range(3):
        scan(plant, tally, "A")
    assert tally.totals["infeed"] == 0
    plant.join("one")
    scan(plant, tally, "A")
    assert tally.totals["infeed"] == 50
    scan(plant, tally, "A")
    assert tally.totals["infeed"] == 50


def test_a_bad_counter_is_not_used(plant: Plant) -> None:
    tally = tally_of(plant)
    scan(plant, tally, "A")
    plant.bad = {"x.good": "NaN", "x.wip": "NaN"}
    plant.memory |= {"x.infeed": 101, "x.good": 0, "x.wip": 99}
    scan(plant, tally, "A")
    assert tally.totals == {"infeed": 1, "good": 0, "rejected": 0}
    assert tally.in_process == 7


def test_every_counter_that_restarted_is_noted(plant: Plant) -> None:
    tally = tally_of(plant)
    scan(plant, tally, "A")
    plant.memory |= {"x.infeed": 0, "x.good": 2, "x.rejected": 0}
    note = scan(plant, tally, "A")
    for part in ("x.infeed went back from 100 to 0", "x.good went back from 90 to 2", "x.rejected went back from 3"):
        assert part in note
    assert tally.totals == {"infeed": 0, "good": 2, "rejected": 0}


def test_a_restarted_controller_goes_on_from_its_record(plant: Plant) -> None:
    first = tally_of(plant)
    scan(plant, first, "A")
    plant.memory |= {"x.infeed": 130}
    scan(plant, first, "A")
    totals, raw = dict(first.totals), first.raw()
    plant.memory |= {"x.infeed": 135}  # while no controller runs
    second = tally_of(plant)
    second.restore(totals, raw, "A")
    scan(plant, second, "A")
    assert second.totals["infeed"] == 35
    assert second.products["A"]["infeed"] == 35


@given(st.lists(st.tuples(st.sampled_from(["make", "cut", "join", "bad", "good"]), st.integers(0, 2000)), max_size=40))
def test_nothing_is_lost_or_doubled_over_gaps(steps: list[tuple[str, int]]) -> None:
    plant = Plant({"one": dict(COUNTS)})
    plant.connect()
    tally = tally_of(plant)
    scan(plant, tally, "A")
    made = since = 0
    for what, count in steps:
        if what == "make" and since + count <= 6000:  # a tenth of the range between two readings
            made, since = made + count, since + count
            plant.memory["x.infeed"] = (100 + made) % 65536
        elif what == "cut":
            plant.cut("one")
        elif what == "join":
            plant.join("one")
        elif what == "bad":
            plant.bad = {"x.infeed": "out of range"}
        elif what == "good":
            plant.bad = {}
        assert scan(plant, tally, "A") == ""
        if not plant.down and not plant.bad:
            assert tally.totals["infeed"] == made
            since = 0
    plant.bad = {}
    plant.buffer.link(LinkReport("one", True))
    plant.down.clear()
    scan(plant, tally, "A")
    assert tally.totals["infeed"] == made == sum(p["infeed"] for p in tally.products.values())


# --- with a boot counter in the PLC


def booted(infeed: int) -> tuple[Plant, Tally]:
    """A plant with a boot counter on a PLC of its own group of tags, and a tally that has taken its base."""
    plant = Plant({"one": {**COUNTS, "x.infeed": infeed, "one.boot": 1}})
    plant.connect()
    tally = tally_with_boot(plant)
    assert scan(plant, tally, "A") == ""
    return plant, tally


def tally_with_boot(plant: Plant) -> Tally:
    slots = plant.layout.slots
    counts = CountSlots((slots["x.infeed"], 16), (slots["x.good"], 16), (slots["x.rejected"], 16), slots["x.wip"])
    return Tally(plant.image, counts, {"one": slots["one.boot"]})


def test_a_16_bit_counter_that_restarts_near_its_end_does_not_pass_for_one_that_rolled_over() -> None:
    plant, tally = booted(65_000)
    plant.cut("one")
    plant.memory |= {"x.infeed": 12, "one.boot": 2}
    scan(plant, tally, "A")
    plant.join("one")
    note = scan(plant, tally, "A")
    assert "x.infeed went back from 65000 to 12: the PLC restarted it; counted 12 since" in note
    assert tally.totals["infeed"] == 12, "and not 548"


def test_a_roll_over_without_a_restart_is_one_and_waits_only_for_the_boot_counter() -> None:
    plant, tally = booted(65_530)
    plant.memory["x.infeed"] = 4
    scan(plant, tally, "A")
    assert tally.totals["infeed"] == 0, "the boot counter was read with it, not after it"
    assert scan(plant, tally, "A") == ""
    assert tally.totals["infeed"] == 10
    plant.memory["x.infeed"] = 9
    scan(plant, tally, "A")
    assert tally.totals["infeed"] == 15


def test_zeroed_counters_seen_before_the_boot_counter_are_not_taken_for_a_roll_over() -> None:
    plant, tally = booted(65_000)
    plant.memory["x.infeed"] = 3  # read just before the PLC shows that it restarted
    scan(plant, tally, "A")
    plant.cut("one", "restarted")
    scan(plant, tally, "A")
    plant.memory |= {"x.infeed": 5, "one.boot": 2}
    plant.join("one")
    assert "the PLC restarted it; counted 5 since" in scan(plant, tally, "A")
    assert tally.totals["infeed"] == 5


def test_a_retained_counter_goes_on_over_a_restart() -> None:
    plant, tally = booted(500)
    plant.memory |= {"x.infeed": 520, "one.boot": 2}
    assert scan(plant, tally, "A") == ""
    assert tally.totals["infeed"] == 20
    plant.memory |= {"one.boot": 3}
    assert scan(plant, tally, "A") == ""
    plant.memory |= {"x.infeed": 65_530}
    scan(plant, tally, "A")
    plant.memory |= {"x.infeed": 1}
    scan(plant, tally, "A")
    assert scan(plant, tally, "A") == "", "a restart before does not make a restart of this roll-over"
    assert tally.totals["infeed"] == 20 + 65_010 + 7


def test_a_counter_reset_without_a_restart_is_noted_as_such() -> None:
    plant, tally = booted(30_000)
    plant.memory["x.infeed"] = 2
    scan(plant, tally, "A")
    note = scan(plant, tally, "A")
    assert "x.infeed went back from 30000 to 2: it was reset without a restart of the PLC; counted 2 since" in note
    assert tally.totals["infeed"] == 2


def test_a_step_back_waits_as_long_as_the_boot_counter_cannot_be_read() -> None:
    plant, tally = booted(65_000)
    plant.bad = {"one.boot": "exception 2"}
    plant.memory["x.infeed"] = 10
    for _ in range(5):
        assert scan(plant, tally, "A") == ""
    assert tally.totals["infeed"] == 0
    plant.bad = {}
    plant.memory["one.boot"] = 2
    scan(plant, tally, "A")
    assert tally.totals["infeed"] == 10


def test_a_restarted_controller_knows_the_plc_restarted_too() -> None:
    plant, first = booted(65_000)
    totals, raw = dict(first.totals), first.raw()
    plant.memory |= {"x.infeed": 7, "one.boot": 2}  # the power was off for both
    second = tally_with_boot(plant)
    second.restore(totals, raw, "A")
    assert "the PLC restarted it" in scan(plant, second, "A")
    assert second.totals["infeed"] == 7
