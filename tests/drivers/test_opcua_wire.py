"""Own decoding of DataValues: the same as asyncua's for every shape, and never anything but a clear end on rubbish."""

from __future__ import annotations

import itertools
import random
from datetime import UTC, datetime
from typing import Any

import pytest
from asyncua import ua
from asyncua.ua.ua_binary import struct_to_binary

from drivers.opcua.channel import EPOCH_TICKS, ChannelLost, results_at
from drivers.opcua.groups import GroupState, Part
from drivers.opcua.meter import Meter
from drivers.opcua.notification import Message, distance, following, notification
from drivers.opcua.subscribe import Feed
from drivers.opcua.values import NodeValue
from drivers.opcua.wire import read_data, read_datum, utc_ns
from drivers.port import DataType, OpcUaAddress, Tag

MOMENT = datetime(2026, 3, 4, 5, 6, 7, 123456, tzinfo=UTC)
SCALARS = [
    (True, "Boolean"), (-5, "SByte"), (200, "Byte"), (-30000, "Int16"), (60000, "UInt16"), (-(2**31), "Int32"),
    (2**32 - 1, "UInt32"), (-(2**63), "Int64"), (2**64 - 1, "UInt64"), (1.5, "Float"), (1e300, "Double"),
    ("Füller", "String"), ("", "String"),
]  # fmt: skip


def value(raw: Any, kind: str, **more: Any) -> ua.DataValue:
    return ua.DataValue(ua.Variant(raw, ua.VariantType[kind]), **{"StatusCode": None, **more})


@pytest.mark.parametrize(("raw", "kind"), SCALARS)
def test_every_scalar_with_everything_that_may_follow(raw: Any, kind: str) -> None:
    parts = {
        "StatusCode": ua.StatusCode("UncertainLastUsableValue"), "SourceTimestamp": MOMENT, "SourcePicoseconds": 7,
        "ServerTimestamp": datetime(2020, 1, 1, tzinfo=UTC), "ServerPicoseconds": 9,
    }  # fmt: skip
    for count in range(len(parts) + 1):
        for names in itertools.combinations(parts, count):
            data = struct_to_binary(value(raw, kind, **{name: parts[name] for name in names}))
            found, end = read_datum(b"xx" + data + b"yy", 2)
            assert end == 2 + len(data)
            assert (found.kind, found.value) == (ua.VariantType[kind].value, raw)
            assert type(found.value) is type(raw)
            assert found.status == (parts["StatusCode"].value if "StatusCode" in names else 0)
            assert utc_ns(found.source) == (1772600767123456000 if "SourceTimestamp" in names else None)


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (value([1, 2], "Int16"), "Int16 array"),
        (value([], "String"), "String array"),
        (value([True], "Boolean"), "Boolean array"),
        (value(MOMENT, "DateTime"), "DateTime"),
        (value(ua.Range(0, 1), "ExtensionObject"), "ExtensionObject"),
        (value(None, "Null"), "nothing"),
        (value(b"x", "ByteString"), "ByteString"),
        (value(ua.LocalizedText("x"), "LocalizedText"), "LocalizedText"),
    ],
)
def test_what_is_no_scalar_is_told_by_name(data: ua.DataValue, name: str) -> None:
    encoded = struct_to_binary(data)
    found, end = read_datum(encoded + b"zz", 0)
    assert end == len(encoded)
    assert found.type_name == name
    tag = Tag(name="t.x", address=OpcUaAddress("ns=2;s=x"), type=DataType.INT)
    assert NodeValue(tag).value(found)[0] is None
    assert f"the server has {name}" in NodeValue(tag).value(found)[1]


def test_a_value_left_out_is_not_the_last_one() -> None:
    data = struct_to_binary(ua.DataValue(None, StatusCode=ua.StatusCode("BadSensorFailure")))
    found, _ = read_datum(data, 0)
    tag = Tag(name="t.x", address=OpcUaAddress("ns=2;s=x"), type=DataType.INT)
    assert NodeValue(tag).value(found) == (None, f"BadSensorFailure: {ua.StatusCode('BadSensorFailure').doc}")
    assert "nothing" in NodeValue(tag).value(read_datum(b"\0zz", 0)[0])[1]


def test_types_that_are_equal_in_python_are_not_taken_for_each_other() -> None:
    """1, True and 1.0 are equal, but a BOOL that became an integer is another program's."""
    part, state = a_part([DataType.BOOL, DataType.INT])
    part.take(body(value(True, "Boolean"), value(1, "Int16")))
    assert state.reading(0).values == (True, 1)
    part.take(body(value(1, "Byte"), value(True, "Boolean")))
    reading = state.reading(0)
    assert reading.values == (None, None)
    assert "the server has Byte" in reading.bad[0]
    assert "the server has Boolean" in reading.bad[1]


def test_a_changed_status_or_time_alone_is_seen() -> None:
    part, state = a_part([DataType.INT])
    part.take(body(value(1, "Int16", SourceTimestamp=MOMENT)))
    first = state.reading(1)
    part.take(body(value(1, "Int16", SourceTimestamp=MOMENT)))
    again = state.reading(2)
    assert (again.values is first.values, again.sources is first.sources) == (True, True)
    part.take(body(value(1, "Int16", SourceTimestamp=datetime(2026, 3, 4, tzinfo=UTC))))
    later = state.reading(3)
    assert later.values is first.values
    assert later.sources != first.sources
    part.take(body(value(1, "Int16", StatusCode=ua.StatusCode("BadOutOfService"))))
    assert "BadOutOfService" in state.reading(4).bad[0]
    part.take(body(value(1, "Int16")))
    assert state.reading(5).values == (1,)
    assert not state.reading(5).bad


def test_not_a_number_stays_bad() -> None:
    part, state = a_part([DataType.REAL])
    for _ in range(2):
        part.take(body(value(float("nan"), "Float", SourceTimestamp=datetime.now(UTC))))
        assert state.reading(0).values == (None,)
        assert "NaN" in state.reading(0).bad[0]


def test_every_cut_and_many_errors_end_clearly() -> None:
    """Rubbish never gives a value of the wrong tag, nor an exception that nobody expects."""
    good = body(*(value(raw, kind, SourceTimestamp=MOMENT) for raw, kind in SCALARS), value([1, 2], "Int16"))
    count = len(SCALARS) + 1
    at = results_at(good)
    assert len(read_data(good, at, count)) == count
    for wrong in (count - 1, count + 1):
        with pytest.raises(ChannelLost, match="results for"):
            read_data(good, at, wrong)
    values_end = len(good) - 4
    for end in range(at, values_end):
        with pytest.raises(ChannelLost):
            read_data(good[:end], at, count)
    lots = random.Random(20260304)
    part, _ = a_part([DataType.INT] * count)
    for _ in range(3000):
        broken = bytearray(good)
        for _ in range(lots.randint(1, 4)):
            broken[lots.randrange(at, len(broken))] = lots.randrange(256)
        try:
            part.take(bytes(broken))
        except ChannelLost:
            continue


def test_times() -> None:
    assert utc_ns(0) is None
    assert utc_ns(EPOCH_TICKS) == 0
    assert utc_ns(EPOCH_TICKS + 1) == 100


# --- sequence numbers


def test_numbers_go_round() -> None:
    assert following(1) == 2
    assert following(0xFFFF_FFFF) == 1, "0 is not used"
    assert distance(5, 8) == 3
    assert distance(8, 5) == -3
    assert distance(0xFFFF_FFFF, 2) == 2
    assert distance(2, 0xFFFF_FFFF) == -2


def feed_of(count: int = 1) -> tuple[Feed, Meter]:
    meter = Meter()
    nodes = [NodeValue(tag(DataType.INT, number)) for number in range(count)]
    feed = Feed("fast", GroupState(nodes), 0.1, meter)
    feed.begin(1, 0.05, 0.0, 0)
    feed.behind = False
    return feed, meter


def message(number: int, raw: int | None = None, *, sent_ns: int = 0, status: int = 0, more: bool = False) -> Message:
    if raw is None:
        return Message(number, [], True, False, sent_ns)
    data, _ = read_datum(struct_to_binary(value(raw, "Int16", StatusCode=ua.StatusCode(ua.UInt32(status)))), 0)
    return Message(number, [(0, data)], False, more, sent_ns)


def test_a_doubled_message_changes_nothing() -> None:
    feed, meter = feed_of()
    assert feed.receive(message(1, 10, sent_ns=100), 0) == 0
    assert feed.receive(message(2, 20, sent_ns=200), 0) == 0
    assert feed.receive(message(1, 10, sent_ns=300), 0) == 0
    assert feed.reading().values == (20,)
    assert feed.proof_ns == 200
    assert meter.strays == 1


def test_lost_messages_are_taken_in_order_before_what_came_after() -> None:
    feed, meter = feed_of()
    feed.receive(message(1, 10, sent_ns=100), 0)
    assert feed.receive(message(4, 40, sent_ns=400), 0) == 2
    assert feed.receive(message(5, sent_ns=500), 0) == 0
    assert feed.reading().values == (10,), "nothing newer is shown before the gap is closed"
    assert feed.proof_ns == 100, "and nothing newer is proven"
    assert feed.repair(message(2, 20), 0) == 3
    assert feed.repair(message(3, 30), 0) == 0
    assert feed.reading().values == (40,)
    assert (feed.proof_ns, meter.missed, feed.behind) == (500, 0, False)


def test_a_keep_alive_uncovers_a_gap() -> None:
    feed, meter = feed_of()
    feed.receive(message(1, 10, sent_ns=100), 0)
    assert feed.receive(message(3, sent_ns=300), 0) == 2
    assert feed.repair(None, 0) == 0
    assert (meter.missed, feed.behind) == (1, True)


def test_an_answer_to_republish_that_is_another_message_is_not_used() -> None:
    for wrong in (message(9, 99), message(2)):
        feed, meter = feed_of()
        feed.receive(message(1, 10), 0)
        assert feed.receive(message(3, 30), 0) == 2
        assert feed.repair(wrong, 0) == 0
        assert feed.reading().values == (30,)
        assert (meter.missed, feed.behind) == (1, True)


def test_a_huge_gap_is_not_asked_for_one_by_one() -> None:
    feed, meter = feed_of()
    feed.receive(message(1, 10), 0)
    assert feed.receive(message(5000, 50), 0) == 0
    assert (meter.missed, feed.behind, feed.reading().values) == (4998, True, (50,))


def test_part_of_a_publishing_proves_nothing_yet() -> None:
    feed, _ = feed_of()
    feed.receive(message(1, 10, sent_ns=100, more=True), 0)
    assert feed.proof_ns == 0
    feed.receive(message(2, 20, sent_ns=200), 0)
    assert feed.proof_ns == 200


def test_a_reading_counts_until_something_newer_is_proven() -> None:
    feed, _ = feed_of()
    other = GroupState([NodeValue(tag(DataType.INT, 0))])
    other.set(0, message(1, 77).changes[0][1])
    feed.hold(other.reading(1000))
    feed.receive(message(1, 10, sent_ns=999), 0)
    assert feed.reading().values == (77,), "the notification may be older than what was read"
    feed.receive(message(2, 20, sent_ns=1000), 0)
    assert feed.reading().values == (20,)


def test_what_was_notified_before_a_write_does_not_undo_it() -> None:
    feed, _ = feed_of()
    feed.receive(message(1, 10, sent_ns=100), 0)
    feed.read_back(0, message(9, 20).changes[0][1], 500)
    assert feed.reading().values == (20,)
    feed.receive(message(2, 10, sent_ns=400), 0)
    assert feed.reading().values == (20,), "sampled before the write"
    feed.receive(message(3, 20, sent_ns=450), 0)
    feed.receive(message(4, 30, sent_ns=499), 0)
    assert feed.reading().values == (20,)
    feed.receive(message(5, sent_ns=500), 0)
    assert feed.reading().values == (30,), "and what came after it is not lost"
    feed.receive(message(5, 40, sent_ns=600), 0)
    assert feed.reading().values == (40,)


def test_an_unknown_item_and_a_strange_notification_are_errors() -> None:
    feed, _ = feed_of()
    data = message(1, 10).changes[0][1]
    with pytest.raises(ChannelLost, match="item 5"):
        feed.receive(Message(1, [(5, data)], False), 0)
    events = ua.NotificationMessage()
    events.NotificationData = [ua.EventNotificationList()]
    with pytest.raises(ChannelLost, match="nobody asked for"):
        notification(struct_to_binary(events), 0, False, 0)


# --- helpers


def tag(kind: DataType, number: int) -> Tag:
    return Tag(name=f"t.n{number}", address=OpcUaAddress(f"ns=2;s=n{number}"), type=kind)


def a_part(kinds: list[DataType]) -> tuple[Part, GroupState]:
    state = GroupState([NodeValue(tag(kind, number)) for number, kind in enumerate(kinds)])
    return Part(state, range(len(kinds)), [ua.NodeId(f"n{n}", 2) for n in range(len(kinds))]), state


def body(*values: ua.DataValue) -> bytes:
    response = ua.ReadResponse()
    response.Results = list(values)
    return bytes(struct_to_binary(response))
