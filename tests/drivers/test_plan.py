from __future__ import annotations

import itertools
import struct
from dataclasses import replace

import pytest
from honest_modbus import SIZE, Memory
from hypothesis import given, settings
from hypothesis import strategies as st

from drivers import codec
from drivers.codec import EncodeError
from drivers.plan import BITS, ModbusPlan, PlanOptions, Request
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
        tags.append(
            Tag(
                name=f"t.n{i}",
                address=address,
                type=kind,
                word_order=draw(st.sampled_from(list(WordOrder))),
                length=length,
                scale=scale,
                low=low,
                scan_class=draw(st.sampled_from(["fast", "slow"])),
            )
        )
    return tags


OPTIONS = st.builds(
    PlanOptions,
    max_registers=st.integers(5, 125),
    max_bits=st.integers(1, 200),
    max_gap=st.integers(0, 30),
)


def fill(memory: Memory, random: bytes) -> None:
    words = struct.unpack(f">{len(random) // 2}H", random)
    for n, word in enumerate(words):
        memory.ir[n], memory.hr[n] = word, word ^ 0x5A5A
        memory.co[n], memory.di[n] = bool(word & 1), bool(word & 2)


@settings(max_examples=80)
@given(tag_sets(), OPTIONS, st.binary(min_size=440, max_size=440))
def test_every_tag_is_read_once_within_the_limits_and_rightly(
    tags: list[Tag], options: PlanOptions, random: bytes
) -> None:
    plan = ModbusPlan(tags, options)
    memory = Memory()
    fill(memory, random)
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
        values, bad = plan.decode(number, serve_group(memory, plan, number))
        for index, t in enumerate(group.tags):
            value, reason = oracle(memory, t)
            assert repr(values[index]) == repr(value)
            assert bad.get(index, "") == reason


def oracle(memory: Memory, t: Tag) -> tuple[Value | None, str]:
    """One tag, read alone and decoded by the codec."""
    assert isinstance(t.address, ModbusAddress)
    data = serve(memory, Request(t.address.area, t.address.offset, codec.register_count(t)))
    return (bool(data[0] & 1), "") if t.address.area in BITS else codec.decode(t, data)


@settings(max_examples=50)
@given(tag_sets(), OPTIONS)
def test_no_plan_has_fewer_requests(tags: list[Tag], options: PlanOptions) -> None:
    """Against a search over all ways to cut the tags, sorted by address, into runs."""
    plan = ModbusPlan([replace(t, scan_class="one") for t in tags], options)
    for area in Area:
        spans = sorted(
            (t.address.offset, t.address.offset + codec.register_count(t))
            for t in tags
            if isinstance(t.address, ModbusAddress) and t.address.area is area
        )
        limit = options.max_bits if area in BITS else options.max_registers
        best = [0] + [10**6] * len(spans)
        for stop in range(1, len(spans) + 1):
            for start in range(stop):
                run, end, ok = spans[start:stop], spans[start][1], True
                for first, last in run:
                    ok = ok and first - end <= options.max_gap
                    end = max(end, last)
                if ok and end - run[0][0] <= limit:
                    best[stop] = min(best[stop], best[start] + 1)
        assert sum(r.area is area for r in plan.requests(0)) == best[-1]


def test_unchanged_bytes_give_the_identical_tuple() -> None:
    tags = [make("a.x", "ir:0", "UDINT"), make("a.y", "co:3", "BOOL"), make("a.z", "hr:5", "REAL")]
    plan, memory = ModbusPlan(tags), Memory()
    first, bad = plan.decode(0, serve_group(memory, plan, 0))
    assert (first, dict(bad)) == ((0, False, 0.0), {})
    assert plan.decode(0, serve_group(memory, plan, 0))[0] is first
    memory.co[3] = True
    second, _ = plan.decode(0, serve_group(memory, plan, 0))
    assert second == (0, True, 0.0)
    assert first == (0, False, 0.0)


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
    for wrong in ([b"\0\0\0\1"], [b"\0\0\0", b"\0\2"], [b"\0\0\0\1", b""], [], [b"", b""]):
        with pytest.raises(ValueError, match="bytes, expected"):
            plan.decode(0, wrong)


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
    assert ModbusPlan([]).groups == ()


def test_addresses_at_the_end_of_the_server() -> None:
    plan, memory = ModbusPlan([make("a.x", f"hr:{SIZE - 2}", "UDINT")]), Memory()
    memory.put("hr", SIZE - 2, b"\0\1\0\2")
    assert plan.decode(0, serve_group(memory, plan, 0))[0] == (0x10002,)
