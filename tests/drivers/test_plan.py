from __future__ import annotations

import itertools
import struct
from collections.abc import Iterator
from dataclasses import replace

import pytest
from honest_modbus import SIZE, Memory
from hypothesis import given, settings
from hypothesis import strategies as st

from drivers import codec
from drivers.codec import EncodeError
from drivers.plan import BITS, ModbusPlan, PlanOptions, Range, Request
from drivers.port import Area, DataType, ModbusAddress, Tag, Value, WordOrder

FUNCTION = {Area.COIL: 1, Area.DISCRETE_INPUT: 2, Area.HOLDING_REGISTER: 3, Area.INPUT_REGISTER: 4}


def serve(memory: Memory, request: Request) -> bytes:
    reply = memory.answer(struct.pack(">BHH", FUNCTION[request.area], request.offset, request.count))
    assert reply[0] < 0x80, f"{request} was refused with exception {reply[1]}"
    return reply[2:]


def serve_group(memory: Memory, plan: ModbusPlan, group: int) -> list[bytes]:
    return [serve(memory, request) for request in plan.requests(group)]


def make(name: str, where: str, kind: str, **more: object) -> Tag:
    area, _, rest = where.partition(":")
    offset, _, bit = rest.partition(".")
    address = ModbusAddress(Area(area), int(offset), int(bit) if bit else None)
    return Tag(name=name, address=address, type=DataType(kind), **more)  # type: ignore[arg-type]


@st.composite
def tag_sets(draw: st.DrawFn) -> list[Tag]:
    """Tags anywhere, overlapping ones included, over a range small enough that blocks are shared."""
    tags = []
    for i in range(draw(st.integers(1, 25))):
        area = draw(st.sampled_from(list(Area)))
        kind = DataType.BOOL if area in BITS else draw(st.sampled_from(list(DataType)))
        bit = draw(st.integers(0, 15)) if kind is DataType.BOOL and area not in BITS else None
        address = ModbusAddress(area, draw(st.integers(0, 200)), bit)
        length = draw(st.integers(1, 9)) if kind is DataType.STRING else 0
        scale = draw(st.sampled_from([1.0, 0.1])) if kind in codec.STRUCT_CODE else 1.0
        low = draw(st.sampled_from([None, 0.0, 10.0])) if kind in codec.STRUCT_CODE else None
        mask = None
        if kind in codec.MASKABLE and draw(st.booleans()):
            first, width = draw(st.integers(0, 11)), draw(st.integers(1, 5))
            mask, low = (1 << width) - 1 << first, None
        tags.append(
            Tag(
                name=f"t.n{i}",
                address=address,
                type=kind,
                word_order=draw(st.sampled_from(list(WordOrder))),
                length=length,
                scale=scale,
                low=low,
                mask=mask,
                scan_class=draw(st.sampled_from(["fast", "slow"])),
            )
        )
    return tags


OPTIONS = st.builds(
    PlanOptions,
    max_registers=st.integers(5, 125),
    max_bits=st.integers(1, 200),
    max_gap=st.integers(0, 30),
    avoid=st.lists(
        st.builds(
            lambda area, first, more: Range(area, first, first + more),
            st.sampled_from(list(Area)),
            st.integers(0, 200),
            st.integers(0, 20),
        ),
        max_size=4,
    ).map(tuple),
)


def fill(memory: Memory, random: bytes) -> None:
    words = struct.unpack(f">{len(random) // 2}H", random)
    for n, word in enumerate(words):
        memory.ir[n], memory.hr[n] = word, word ^ 0x5A5A
        memory.co[n], memory.di[n] = bool(word & 1), bool(word & 2)


@settings(max_examples=80, deadline=None)  # the machine may be busy
@given(tag_sets(), OPTIONS)
def test_every_tag_is_read_once_within_the_limits(tags: list[Tag], options: PlanOptions) -> None:
    plan = ModbusPlan(tags, options)
    assert sorted(t.name for g in plan.groups for t in g.tags) == sorted(t.name for t in tags)
    for number, group in enumerate(plan.groups):
        requests = plan.requests(number)
        for request in requests:
            assert 1 <= request.count <= (options.max_bits if request.area in BITS else options.max_registers)
            used = sorted(
                {
                    a
                    for t in group.tags
                    if isinstance(t.address, ModbusAddress) and t.address.area is request.area
                    for a in range(t.address.offset, t.address.offset + codec.register_count(t))
                    if request.offset <= a < request.offset + request.count
                }
            )
            assert (used[0], used[-1]) == (request.offset, request.offset + request.count - 1)
            assert all(b - a - 1 <= options.max_gap for a, b in itertools.pairwise(used))
            for place in options.avoid:
                touched = set(range(request.offset, request.offset + request.count)) - set(used)
                assert place.area is not request.area or not touched & set(range(place.first, place.last + 1))


@settings(max_examples=80, deadline=None)  # the machine may be busy
@given(tag_sets(), OPTIONS, st.data())
def test_a_plan_reads_what_the_codec_reads_tag_by_tag(
    tags: list[Tag], options: PlanOptions, data: st.DataObject
) -> None:
    """Whatever the memory held before, and whichever requests were refused before: same values, same reasons."""
    plan, memory = ModbusPlan(tags, options), Memory()
    for _ in range(data.draw(st.integers(1, 4))):
        fill(memory, data.draw(st.binary(min_size=440, max_size=440)))
        for number, group in enumerate(plan.groups):
            answers: list[bytes | str] = list(serve_group(memory, plan, number))
            refused = set()
            for n, request in enumerate(plan.requests(number)):
                if data.draw(st.integers(0, 4)) == 0:
                    refused.add(request)
                    answers[n] = f"{request} refused"
            values, bad = plan.decode(number, answers)
            assert (values, bad) == plan.decode(number, answers)
            where = iter_requests(plan, number)
            for index, t in enumerate(group.tags):
                value, reason = oracle(memory, t)
                if where[index] in refused:
                    value, reason = None, f"{where[index]} refused"
                assert repr(values[index]) == repr(value)
                assert bad.get(index, "") == reason


def iter_requests(plan: ModbusPlan, number: int) -> list[Request]:
    """The request that brings each tag: the tags lie in their order, each in the last request that holds it whole
    and begins no later than the next one's first tag.
    """
    found, requests = [], iter(plan.requests(number))
    request = next(requests)
    for t in plan.groups[number].tags:
        assert isinstance(t.address, ModbusAddress)
        stop = t.address.offset + codec.register_count(t)
        while t.address.area is not request.area or stop > request.offset + request.count:
            request = next(requests)
        found.append(request)
    return found


def oracle(memory: Memory, t: Tag) -> tuple[Value | None, str]:
    """One tag, read alone and decoded by the codec."""
    assert isinstance(t.address, ModbusAddress)
    data = serve(memory, Request(t.address.area, t.address.offset, codec.register_count(t)))
    return (bool(data[0] & 1), "") if t.address.area in BITS else codec.decode(t, data)


SPANS = st.lists(st.tuples(st.integers(0, 24), st.sampled_from([1, 1, 2, 4])), min_size=1, max_size=6, unique=True)
SMALL = st.builds(
    PlanOptions,
    max_registers=st.integers(4, 12),
    max_gap=st.integers(0, 6),
    avoid=st.lists(st.integers(0, 24), max_size=3).map(
        lambda places: tuple(Range(Area.INPUT_REGISTER, place, place + 1) for place in places)
    ),
)
KINDS = {1: DataType.UINT, 2: DataType.REAL, 4: DataType.LREAL}


def partitions(things: list[tuple[int, int]]) -> Iterator[list[list[tuple[int, int]]]]:
    """Every way to put the things into any number of boxes."""
    if not things:
        yield []
        return
    for rest in partitions(things[1:]):
        yield [[things[0]], *rest]
        for n, box in enumerate(rest):
            yield [*rest[:n], [things[0], *box], *rest[n + 1 :]]


def legal(box: list[tuple[int, int]], options: PlanOptions) -> bool:
    """Whether one request may read these spans (start, width)."""
    used = {a for start, width in box for a in range(start, start + width)}
    first, last = min(used), max(used)
    unused = set(range(first, last + 1)) - used
    gaps = max(b - a - 1 for a, b in itertools.pairwise([first, *sorted(used)]))
    avoided = {a for place in options.avoid for a in range(place.first, place.last + 1)}
    return last - first < options.max_registers and gaps <= options.max_gap and not unused & avoided


@settings(max_examples=150, deadline=None)
@given(SPANS, SMALL)
def test_no_plan_has_fewer_requests(spans: list[tuple[int, int]], options: PlanOptions) -> None:
    """Against every way to share the tags, overlapping ones included, among requests."""
    tags = [make(f"a.n{n}", f"ir:{start}", KINDS[width]) for n, (start, width) in enumerate(spans)]
    best = min(len(boxes) for boxes in partitions(spans) if all(legal(box, options) for box in boxes))
    assert len(ModbusPlan(tags, options).requests(0)) == best


def test_avoided_addresses_are_only_read_where_a_tag_lies() -> None:
    tags = [make("a.x", "ir:9", "UINT"), make("a.y", "ir:12", "UDINT"), make("a.z", "ir:16", "UINT")]
    wide = ModbusPlan(tags)
    assert [str(r) for r in wide.requests(0)] == ["ir:9..16"]
    narrow = ModbusPlan(tags, PlanOptions(avoid=(Range(Area.INPUT_REGISTER, 11, 13),)))
    assert [str(r) for r in narrow.requests(0)] == ["ir:9", "ir:12..16"], "12 and 13 are a tag's own"
    elsewhere = ModbusPlan(tags, PlanOptions(avoid=(Range(Area.HOLDING_REGISTER, 0, 99),)))
    assert len(elsewhere.requests(0)) == 1
    beside = [make("a.x", "ir:2", "LREAL"), make("a.y", "ir:6", "UINT")]
    plan = ModbusPlan(beside, PlanOptions(avoid=(Range(Area.INPUT_REGISTER, 5, 6),)))
    assert [str(r) for r in plan.requests(0)] == ["ir:2..6"], "nothing lies between them"
    tags[1] = replace(tags[1], scan_class="slow")
    own = ModbusPlan(tags, PlanOptions(avoid=(Range(Area.INPUT_REGISTER, 12, 12),)))
    assert [str(r) for r in own.requests(0)] == ["ir:9", "ir:16"], "a tag that is not asked for here excuses nothing"


def test_a_refused_request_takes_only_its_own_tags() -> None:
    tags = [make("a.x", "ir:0", "UINT"), make("a.y", "ir:300", "REAL"), make("a.z", "ir:302", "REAL")]
    plan = ModbusPlan(tags)
    one = b"\x3f\x80\0\0"
    assert plan.decode(0, [b"\0\1", "ir:300..303: no such address"]) == (
        (1, None, None), {1: "ir:300..303: no such address", 2: "ir:300..303: no such address"},
    )  # fmt: skip
    assert plan.decode(0, [b"\0\2", one + one]) == ((2, 1.0, 1.0), {})
    values, bad = plan.decode(0, ["off", b"\x7f\xc0\0\0" + one])
    assert (values, dict(bad)) == ((None, None, 1.0), {0: "off", 1: "NaN (not a number)"})
    assert plan.decode(0, [b"\0\2", one + one]) == ((2, 1.0, 1.0), {})


def test_an_answer_is_known_only_together_with_what_it_means() -> None:
    """Should decoding ever fail half way, the same answers must not pass for decoded the next time."""
    plan = ModbusPlan([make("a.x", "ir:0", "UINT"), make("a.y", "ir:300", "UINT")])
    assert plan.decode(0, [b"\0\1", b"\0\1"])[0] == (1, 1)
    second = plan._compiled[0]._blocks[1]
    working, second._swift = second._swift, lambda data: 1 // 0  # type: ignore[assignment, return-value]
    with pytest.raises(ZeroDivisionError):
        plan.decode(0, [b"\0\2", b"\0\2"])
    second._swift = working
    assert plan.decode(0, [b"\0\2", b"\0\2"])[0] == (2, 2)


def test_machines_that_are_alike_share_their_decoders() -> None:
    """Memory: a thousand blocks of the same shape have one function."""
    tags = [make(f"a.n{n}", f"ir:{n * 20}", "INT", scale=0.1) for n in range(50)]
    blocks = ModbusPlan(tags)._compiled[0]._blocks
    assert len(blocks) == 50
    assert len({id(block._swift) for block in blocks}) == 1


def member(name: str, where: str, kind: str, **more: object) -> Tag:
    return make(name, where, kind, writable=True, **more)


@pytest.mark.parametrize(
    ("names", "problem"),
    [
        ([], "nothing is to be written"),
        (["c.no"], "c.no: no such tag on this PLC"),
        (["c.a", "c.ro"], "c.ro: the tag is read-only"),
        (["c.a", "c.coil"], "c.coil at co:1 is no whole holding register"),
        (["c.a", "c.bit"], "c.bit at hr:20.3 is no whole holding register"),
        (["c.a", "c.field"], "c.field at hr:21 is no whole holding register"),
        (["c.a", "c.c"], "c.c at hr:13 does not follow c.a at hr:10; a block has no gaps"),
        (["c.a", "c.over"], "c.over at hr:11 overlaps c.a at hr:10"),
        (["c.c", "c.b", "c.a", "c.d"], "it takes 5 registers, the PLC takes 4 at once"),
        (["c.c", "c.a", "c.b"], ""),
        (["c.d"], ""),
    ],
)
def test_what_makes_a_block(names: list[str], problem: str) -> None:
    tags = [
        member("c.a", "hr:10", "UDINT"),
        member("c.over", "hr:11", "INT"),
        member("c.b", "hr:12", "INT"),
        member("c.c", "hr:13", "INT"),
        member("c.d", "hr:14", "INT"),
        member("c.bit", "hr:20.3", "BOOL"),
        member("c.field", "hr:21", "INT", mask=0xF0),
        member("c.coil", "co:1", "BOOL"),
        make("c.ro", "hr:12", "INT"),
    ]
    for options in (PlanOptions(max_write_registers=4), PlanOptions(max_registers=4)):
        plan = ModbusPlan(tags, options)
        assert plan.block_problem(names).startswith(problem)
        assert bool(plan.block_problem(names)) == bool(problem)
        if problem:
            with pytest.raises(EncodeError) as caught:
                plan.encode_block(dict.fromkeys(names, 1))
            assert problem in str(caught.value)
    if not problem:
        with pytest.raises(EncodeError, match=names[0]):
            plan.encode_block(dict.fromkeys(names, 1) | {names[0]: 1e30})


def test_unchanged_bytes_give_the_identical_tuple() -> None:
    tags = [make("a.x", "ir:0", "UDINT"), make("a.y", "co:3", "BOOL"), make("a.z", "hr:5", "REAL")]
    plan, memory = ModbusPlan(tags), Memory()
    first, bad = plan.decode(0, serve_group(memory, plan, 0))
    assert [t.name for t in plan.groups[0].tags] == ["a.y", "a.x", "a.z"], "by area and address"
    assert (first, dict(bad)) == ((False, 0, 0.0), {})
    assert plan.decode(0, serve_group(memory, plan, 0))[0] is first
    memory.co[3] = True
    second, _ = plan.decode(0, serve_group(memory, plan, 0))
    assert second == (True, 0, 0.0)
    assert first == (False, 0, 0.0)


def test_bad_comes_and_goes_with_its_block_only() -> None:
    tags = [make("a.x", "ir:0", "REAL"), make("a.y", "hr:0", "UINT", high=10)]
    plan, memory = ModbusPlan(tags), Memory()
    memory.put("ir", 0, bytes.fromhex("7FC00000"))
    memory.hr[0] = 11
    values, bad = plan.decode(0, serve_group(memory, plan, 0))
    assert values == (None, None)
    assert "NaN" in bad[0]
    assert "11 is outside ..10" in bad[1]
    memory.hr[0] = 10
    values, bad = plan.decode(0, serve_group(memory, plan, 0))
    assert values == (None, 10)
    assert set(bad) == {0}
    memory.put("ir", 0, bytes.fromhex("3F800000"))
    assert plan.decode(0, serve_group(memory, plan, 0)) == ((1.0, 10), {})


def test_answers_of_the_wrong_length_are_never_decoded() -> None:
    plan = ModbusPlan([make("a.x", "ir:0", "UDINT"), make("a.y", "hr:0", "UINT")])
    plan.decode(0, [b"\0\0\0\1", b"\0\2"][::-1] if plan.requests(0)[0].count == 1 else [b"\0\0\0\1", b"\0\2"])
    good = [b"\0\0\0\1", b"\0\2"]
    for wrong in ([good[0]], [b"\0\0\0", good[1]], [good[0], b""], [], [b"", b""], [*good, b"\0\2"], [*good, "no"]):
        with pytest.raises(ValueError, match="bytes, expected"):
            plan.decode(0, wrong)
    assert plan.decode(0, good) == ((1, 2), {}), "nothing was taken over"


WRITES = [
    (make("a.x", "hr:7", "INT", scale=0.1, writable=True), -12.3, True),
    (make("a.x", "hr:7", "UDINT", word_order=WordOrder.CDAB, writable=True), 0x11223344, True),
    (make("a.x", "hr:7", "STRING", length=7, writable=True), "L-0815", True),
    (make("a.x", "hr:7.15", "BOOL", writable=True), True, True),
    (make("a.x", "hr:7.0", "BOOL", writable=True), False, True),
    (make("a.x", "co:7", "BOOL", writable=True), True, True),
]


@pytest.mark.parametrize(("t", "value", "_ok"), WRITES)
def test_write_and_read_back(t: Tag, value: Value, _ok: bool) -> None:
    plan, memory = ModbusPlan([t]), Memory()
    memory.hr[7] = 0x7FFF
    write = plan.encode_write("a.x", value)
    if write.area is Area.COIL:
        memory.co[write.offset] = write.payload == b"\1"
    elif write.mask is not None:
        and_mask, or_mask = write.mask
        memory.hr[write.offset] = memory.hr[write.offset] & and_mask | or_mask & ~and_mask & 0xFFFF
    else:
        memory.put("hr", write.offset, write.payload)
    ok, found = plan.confirm(write, serve(memory, write.read_back))
    assert ok
    assert found == pytest.approx(value) if isinstance(value, float) else found == value
    if t.address == ModbusAddress(Area.HOLDING_REGISTER, 7, 15):
        assert memory.hr[7] == 0xFFFF
    memory.hr[7], memory.co[7] = 0x5555, False
    if value is not False:
        assert not plan.confirm(write, serve(memory, write.read_back))[0]


def test_writes_that_must_not_happen() -> None:
    plan = ModbusPlan([make("a.ro", "hr:1", "INT"), make("a.rw", "hr:2", "INT", high=5, writable=True)])
    for name, value, text in (("a.ro", 1, "read-only"), ("a.no", 1, "no such tag"), ("a.rw", 6, "above high 5")):
        with pytest.raises(EncodeError, match=text):
            plan.encode_write(name, value)


def test_plans_that_cannot_be_are_refused() -> None:
    text = make("a.t", "hr:0", "STRING", length=64)
    with pytest.raises(ValueError, match="takes 32 registers, the PLC gives 31"):
        ModbusPlan([text], PlanOptions(max_registers=31))
    with pytest.raises(ValueError, match="declared twice"):
        ModbusPlan([text, text])
    with pytest.raises(ValueError, match="max_gap is 125"):
        PlanOptions(max_gap=125)
    with pytest.raises(ValueError, match=r"a\.x takes 2 registers, the PLC takes 1 in a write"):
        ModbusPlan([member("a.x", "hr:0", "REAL")], PlanOptions(max_write_registers=1))
    assert ModbusPlan([]).groups == ()


def test_addresses_at_the_end_of_the_server() -> None:
    plan, memory = ModbusPlan([make("a.x", f"hr:{SIZE - 2}", "UDINT")]), Memory()
    memory.put("hr", SIZE - 2, b"\0\1\0\2")
    assert plan.decode(0, serve_group(memory, plan, 0))[0] == (0x10002,)
