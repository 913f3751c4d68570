"""The process image: latch, quality, age, losses, outputs."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
from helpers.core_rig import MS, STALE, Plant, S
from hypothesis import given

from controller.core.image import NEVER_READ, Layout, LinkReport, WriteReport
from controller.core.io import IO, BadInput, Input, Output
from drivers.port import Outcome, ReadGroup, Reading


@pytest.fixture
def plant() -> Plant:
    return Plant({"one": {"x.level": 1.5, "x.run": False}, "two": {"y.count": 7}})


def put(plant: Plant, *values: object, at: int, bad: dict[int, str] | None = None, plc: str = "one") -> Reading:
    reading = Reading(values, at, bad or {})  # type: ignore[arg-type]
    plant.buffer.put(plc, 0, reading)
    return reading


def level(plant: Plant) -> Input[float]:
    return Input(plant.image, "x.level")


def test_nothing_is_good_before_it_was_read(plant: Plant) -> None:
    with pytest.raises(BadInput, match=f"x.level is BAD: {NEVER_READ}"):
        _ = level(plant).value
    assert not level(plant).ok
    assert not level(plant).is_(1.5)


def test_latch_takes_the_latest_reading_and_empties_the_buffer(plant: Plant) -> None:
    put(plant, 1.0, False, at=1)
    put(plant, 2.0, True, at=2)
    plant.image.latch(3, plant.buffer)
    assert level(plant).value == 2.0
    assert plant.buffer.readings == [None, None]
    assert plant.image.stamp_of(0) == plant.image.stamp_of(1) == 2
    assert plant.image.stamp_of(2) == 0
    with pytest.raises(IndexError):
        plant.image.stamp_of(3)


def test_age_is_counted_from_the_request_and_since_from_the_scan_that_saw_it(plant: Plant) -> None:
    put(plant, 1.0, False, at=S)
    plant.image.latch(S + STALE, plant.buffer)
    assert level(plant).ok
    plant.image.latch(S + STALE + 1, plant.buffer)
    with pytest.raises(BadInput, match=r"stale: last read 0\.50 s ago") as bad:
        _ = level(plant).value
    assert bad.value.since_ns == S + STALE + 1
    plant.image.latch(S + 2 * STALE, plant.buffer)
    assert plant.image.since[0] == S + STALE + 1


def test_a_late_reading_that_is_already_too_old_is_never_good(plant: Plant) -> None:
    put(plant, 1.0, False, at=S)
    plant.image.latch(3 * S, plant.buffer)
    assert not level(plant).ok


def test_the_identical_reading_makes_a_stale_value_good_again(plant: Plant) -> None:
    values = (1.0, False)
    plant.buffer.put("one", 0, Reading(values, S))
    plant.image.latch(S, plant.buffer)
    plant.image.latch(3 * S, plant.buffer)
    assert not level(plant).ok
    plant.buffer.put("one", 0, Reading(values, 3 * S))
    plant.image.latch(3 * S, plant.buffer)
    assert level(plant).value == 1.0


def test_only_the_bad_tag_of_a_group_is_bad(plant: Plant) -> None:
    put(plant, None, True, at=1, bad={0: "NaN"})
    plant.image.latch(1, plant.buffer)
    assert plant.image.bad[:2] == ["NaN", None]
    assert Input(plant.image, "x.run").value is True
    put(plant, None, True, at=2, bad={0: "out of range"})
    plant.image.latch(2, plant.buffer)
    assert plant.image.bad[0] == "out of range"
    values = (3.0, True)
    put(plant, *values, at=3)
    plant.image.latch(3, plant.buffer)
    assert level(plant).value == 3.0


def test_bad_since_when_keeps_the_first_time_over_changing_reasons(plant: Plant) -> None:
    put(plant, 1.0, True, at=10)
    plant.image.latch(10, plant.buffer)
    for now, reason in ((20, "NaN"), (30, "out of range")):
        put(plant, None, True, at=now, bad={0: reason})
        plant.image.latch(now, plant.buffer)
    plant.buffer.link(LinkReport("one", False, "cable pulled"))
    plant.image.latch(40, plant.buffer)
    assert plant.image.since[:2] == [20, 40]
    assert plant.image.bad[0] == plant.image.bad[1] == "one is not connected: cable pulled"


def test_bad_tags_that_stay_bad_are_no_news(plant: Plant) -> None:
    """One broken sensor among many: the group's version moves with its values and reasons only."""
    values = (None, True)
    version = plant.image.versions[0]
    for at, reasons, moves in (
        (1, {0: "NaN"}, 1),
        (2, {0: "NaN"}, 0),
        (3, {0: "wire break"}, 1),
        (4, {}, 1),
        (5, {}, 0),
    ):
        plant.buffer.put("one", 0, Reading(values, at, reasons))
        plant.image.latch(at, plant.buffer)
        version += moves
        assert plant.image.versions[0] == version, at
        assert plant.image.bad[:2] == [reasons.get(0), None]
    assert plant.image.since[0] == 0, "it was BAD before it was read"


def test_reasons_that_the_driver_changes_in_place_are_seen(plant: Plant) -> None:
    values, reasons = (None, True), {0: "NaN"}
    plant.buffer.put("one", 0, Reading(values, 1, reasons))
    plant.image.latch(1, plant.buffer)
    reasons[0] = "wire break"
    plant.buffer.put("one", 0, Reading(values, 2, reasons))
    plant.image.latch(2, plant.buffer)
    assert plant.image.bad[0] == "wire break"


def test_source_times_belong_to_the_reading_shown(plant: Plant) -> None:
    values = (1.0, True)
    assert plant.image.source_of(0) is None
    plant.buffer.put("one", 0, Reading(values, S, sources=(111, None)))
    plant.image.latch(S, plant.buffer)
    assert [plant.image.source_of(n) for n in range(3)] == [111, None, None]
    plant.buffer.put("one", 0, Reading(values, S, sources=(222, 333)))
    plant.image.latch(S, plant.buffer)
    assert [plant.image.source_of(n) for n in range(2)] == [222, 333], "newer, though the values are the same"
    plant.image.latch(S + STALE + 1, plant.buffer)
    assert plant.image.source_of(0) is None
    plant.buffer.put("one", 0, Reading(values, 2 * S, sources=(444, 444)))
    plant.image.latch(2 * S, plant.buffer)
    assert plant.image.source_of(0) == 444
    plant.buffer.link(LinkReport("one", False, "gone"))
    plant.image.latch(2 * S, plant.buffer)
    assert plant.image.source_of(0) is None
    put(plant, 1.0, True, at=2 * S)
    plant.image.latch(2 * S, plant.buffer)
    assert plant.image.source_of(0) is None, "Modbus has none"


def test_a_reading_is_pending_until_it_is_latched_or_lost(plant: Plant) -> None:
    assert not plant.buffer.pending("one", 0)
    put(plant, 1.0, True, at=1)
    assert plant.buffer.pending("one", 0)
    assert not plant.buffer.pending("two", 0)
    plant.image.latch(1, plant.buffer)
    assert not plant.buffer.pending("one", 0)
    put(plant, 1.0, True, at=2)
    plant.buffer.link(LinkReport("one", False, "gone"))
    assert not plant.buffer.pending("one", 0)
    with pytest.raises(KeyError):
        plant.buffer.pending("one", 1)


def test_layout_finds_every_tag_by_name() -> None:
    layout = Plant({"one": {"x.b": 1, "x.a": 2}, "two": {"y.a": 3, "a.z": 4}}).layout
    assert list(layout.slots) == ["x.b", "x.a", "y.a", "a.z"]
    assert [layout.slots[name] for name in layout.slots] == [0, 1, 2, 3]
    assert dict(layout.plc_of) == {"x.b": "one", "x.a": "one", "y.a": "two", "a.z": "two"}
    for unknown in ("", "a", "x.aa", "zz"):
        assert unknown not in layout.slots
        with pytest.raises(KeyError):
            layout.plc_of[unknown]
    assert [layout.group_of(n) for n in range(4)] == [0, 0, 1, 1]
    for slot in (-1, 4):
        with pytest.raises(IndexError):
            layout.group_of(slot)
    tag = layout.tags[0]
    with pytest.raises(AssertionError, match=r"x\.b is in two read groups"):
        Layout([("one", [ReadGroup("fast", (tag,)), ReadGroup("fast", (tag,))])], {"fast": 1})


def test_link_loss_takes_only_its_plc_and_drops_readings_from_before_it(plant: Plant) -> None:
    put(plant, 1.0, True, at=1)
    put(plant, 7, at=1, plc="two")
    plant.image.latch(1, plant.buffer)
    put(plant, 2.0, True, at=2)
    plant.buffer.link(LinkReport("one", False, "reset by peer"))
    links, _ = plant.image.latch(3, plant.buffer)
    assert links == [LinkReport("one", False, "reset by peer")]
    assert plant.image.bad[2] is None
    assert not level(plant).ok
    assert (plant.image.up["one"], plant.image.down_since["one"]) == (False, 3)
    plant.buffer.link(LinkReport("one", False, "refused"))
    plant.image.latch(9, plant.buffer)
    assert (plant.image.down_reason["one"], plant.image.down_since["one"]) == ("refused", 3)


def test_up_again_is_not_good_before_it_was_read_again(plant: Plant) -> None:
    values = (1.0, True)
    plant.buffer.put("one", 0, Reading(values, 1))
    plant.image.latch(1, plant.buffer)
    plant.buffer.link(LinkReport("one", False, "gone"))
    plant.image.latch(2, plant.buffer)
    plant.buffer.link(LinkReport("one", True))
    plant.image.latch(3, plant.buffer)
    assert plant.image.up["one"]
    assert not level(plant).ok
    plant.buffer.put("one", 0, Reading(values, 4))
    plant.image.latch(4, plant.buffer)
    assert level(plant).value == 1.0


def test_write_reports_come_once_the_latest_per_tag(plant: Plant) -> None:
    plant.buffer.report(WriteReport("x.run", True, Outcome.UNKNOWN, "no answer"))
    plant.buffer.report(WriteReport("x.run", True, Outcome.VERIFIED))
    _, reports = plant.image.latch(1, plant.buffer)
    assert [r.outcome for r in reports] == [Outcome.VERIFIED]
    assert plant.image.latch(2, plant.buffer) == ([], [])


def test_outputs_are_told_when_new_and_when_the_plc_shows_another(plant: Plant) -> None:
    run: Output[bool] = Output(plant.image, "x.run")
    assert run.wanted is None
    run.set(True)
    run.set(True)
    assert plant.image.take_outputs() == {"x.run": True}
    assert plant.image.take_outputs() == {}
    run.set(True)  # unread: nothing new to say
    assert plant.image.take_outputs() == {}
    put(plant, 1.0, True, at=1)
    plant.image.latch(1, plant.buffer)
    run.set(True)
    assert plant.image.take_outputs() == {}
    put(plant, 1.0, False, at=2)  # the PLC restarted with zeroed registers
    plant.image.latch(2, plant.buffer)
    run.set(True)
    assert plant.image.take_outputs() == {"x.run": True}
    run.set(False)
    run.set(True)
    assert plant.image.take_outputs() == {"x.run": True}
    assert run.wanted is True
    assert run.value is False


def test_true_and_one_are_different_outputs(plant: Plant) -> None:
    plant.image.write(1, True)
    plant.image.take_outputs()
    plant.image.write(1, 1)
    assert type(plant.image.take_outputs()["x.run"]) is int


def test_declared_points(plant: Plant) -> None:
    class SomeIO(IO):
        run: Output[bool]
        level: Input[float]
        door: Input[bool] | None

    points = SomeIO.points()
    assert {n: (p.type, p.writable, p.optional) for n, p in points.items()} == {
        "run": (bool, True, False), "level": (float, False, False), "door": (bool, False, True),
    }  # fmt: skip
    io = SomeIO(plant.image, {"run": "x.run", "level": "x.level"})
    assert io.door is None
    assert set(io.outputs) == {"run"}
    with pytest.raises(AssertionError, match="level has no tag"):
        SomeIO(plant.image, {"run": "x.run"})


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("read"), st.lists(st.sampled_from(["", "NaN", "wire break"]), min_size=2, max_size=2)),
        st.tuples(st.just("same"), st.none()),
        st.tuples(st.just("down"), st.none()),
        st.tuples(st.just("up"), st.none()),
        st.tuples(st.just("wait"), st.integers(1, 900)),
    ),
    max_size=30,
)


@given(STEPS)
def test_a_value_is_readable_only_if_the_last_reading_gave_it_and_is_young(steps: list[tuple[str, object]]) -> None:
    plant = Plant({"one": {"x.level": 1.5, "x.run": False}})
    image, now, serial = plant.image, S, 0
    last: Reading | None = None
    held: Reading | None = None  # what the image may show
    for what, detail in steps:
        if what == "read" or (what == "same" and last is not None):
            if what == "read":
                assert isinstance(detail, list)
                serial += 1
                bad = {n: r for n, r in enumerate(detail) if r}
                values = tuple(None if n in bad else float(serial) for n in range(2))
                last = Reading(values, now, bad)
            assert last is not None
            last = Reading(last.values, now, last.bad)
            plant.buffer.put("one", 0, last)
            held = last
        elif what == "down":
            plant.buffer.link(LinkReport("one", False, "gone"))
            held = None
        elif what == "up":
            plant.buffer.link(LinkReport("one", True))
        elif what == "wait":
            assert isinstance(detail, int)
            now += detail * MS
        image.latch(now, plant.buffer)
        if held is not None and now - held.stamp_ns > STALE:
            held = None
        for n, tag in enumerate(("x.level", "x.run")):
            point: Input[float] = Input(image, tag)
            if held is None or n in held.bad:
                assert not point.ok
                assert not point.is_(float(serial))
                with pytest.raises(BadInput):
                    _ = point.value
            else:
                assert point.value == held.values[n]
