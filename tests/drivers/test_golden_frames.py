"""The exact bytes of every type, word order and write function, worked out by hand from the standards' definitions.

REAL and LREAL are IEC 60559 (sign, exponent + 127 or 1023, fraction): -2.5 is -1.25 * 2^1, so C0 20 00 00, and
C0 04 00 .. with eleven bits of exponent. BCD is a digit in four bits. Nothing here is computed by the code under test.
"""

from __future__ import annotations

import math

import pytest

from drivers.codec import EncodeError
from drivers.modbus import pdu
from drivers.plan import ModbusPlan, PlanOptions
from drivers.port import Area, DataType, ModbusAddress, Tag, Value, WordOrder

ORDERS = ("ABCD", "CDAB", "BADC", "DCBA")

# type, value, and the registers from the lowest address on, as they go over the wire: ABCD, CDAB, BADC, DCBA
WORDS: list[tuple[str, Value, str, str, str, str]] = [
    ("SINT", -1, "FFFF", "FFFF", "FFFF", "FFFF"),
    ("SINT", 127, "007F", "007F", "007F", "007F"),
    ("USINT", 255, "00FF", "00FF", "00FF", "00FF"),
    ("INT", -2, "FFFE", "FFFE", "FFFE", "FFFE"),
    ("INT", 0x0102, "0102", "0102", "0102", "0102"),
    ("UINT", 65535, "FFFF", "FFFF", "FFFF", "FFFF"),
    ("UINT", 0xA1B2, "A1B2", "A1B2", "A1B2", "A1B2"),
    ("DINT", 0x01020304, "01020304", "03040102", "02010403", "04030201"),
    ("DINT", -3, "FFFFFFFD", "FFFDFFFF", "FFFFFDFF", "FDFFFFFF"),
    ("UDINT", 0xA1B2C3D4, "A1B2C3D4", "C3D4A1B2", "B2A1D4C3", "D4C3B2A1"),
    ("LINT", 0x0102030405060708, "0102030405060708", "0708050603040102", "0201040306050807", "0807060504030201"),
    ("LINT", -4, "FFFFFFFFFFFFFFFC", "FFFCFFFFFFFFFFFF", "FFFFFFFFFFFFFCFF", "FCFFFFFFFFFFFFFF"),
    ("ULINT", 0xF1E2D3C4B5A69788, "F1E2D3C4B5A69788", "9788B5A6D3C4F1E2", "E2F1C4D3A6B58897", "8897A6B5C4D3E2F1"),
    ("REAL", -2.5, "C0200000", "0000C020", "20C00000", "000020C0"),
    ("REAL", 1.00000011920928955078125, "3F800001", "00013F80", "803F0100", "0100803F"),
    ("REAL", 3.4028234663852886e38, "7F7FFFFF", "FFFF7F7F", "7F7FFFFF", "FFFF7F7F"),
    ("REAL", 1.401298464324817e-45, "00000001", "00010000", "00000100", "01000000"),
    ("LREAL", -2.5, "C004000000000000", "000000000000C004", "04C0000000000000", "00000000000004C0"),
    ("LREAL", 1.0000000000000002, "3FF0000000000001", "0001000000003FF0", "F03F000000000100", "010000000000F03F"),
    ("BCD", 1234, "1234", "1234", "1234", "1234"),
    ("BCD", 9, "0009", "0009", "0009", "0009"),
    ("BCD", 9999, "9999", "9999", "9999", "9999"),
    ("LBCD", 12345678, "12345678", "56781234", "34127856", "78563412"),
    ("LBCD", 90, "00000090", "00900000", "00009000", "90000000"),
    ("STRING", "LOT-7é", "4C4F542D37E9", "4C4F542D37E9", "4F4C2D54E937", "4F4C2D54E937"),
    ("STRING", "A", "410000000000", "410000000000", "004100000000", "004100000000"),
]
CASES = [
    (WordOrder(order), kind, value, wire)
    for kind, value, *wires in WORDS
    for order, wire in zip(ORDERS, wires, strict=True)
]


def tag(area: str, place: int, kind: str, bit: int | None = None, **more: object) -> Tag:
    address = ModbusAddress(Area(area), place, bit)
    length = 6 if kind == "STRING" else 0
    return Tag(name="t.x", address=address, type=DataType(kind), length=length, **more)  # type: ignore[arg-type]


def shown(plan: ModbusPlan, *answers: str) -> tuple[object, ...]:
    """Types and values that the answers mean, or the reasons why not."""
    values, bad = plan.decode(0, [bytes.fromhex(answer) for answer in answers])
    return tuple(bad[n] if n in bad else (type(value).__name__, value) for n, value in enumerate(values))


@pytest.mark.parametrize("area", ["ir", "hr"])
@pytest.mark.parametrize(("order", "kind", "value", "wire"), CASES)
def test_registers(order: WordOrder, kind: str, value: Value, wire: str, area: str) -> None:
    t = tag(area, 300, kind, word_order=order, writable=area == "hr")
    plan = ModbusPlan([t])
    (request,) = plan.requests(0)
    assert (request.area, request.offset, request.count) == (Area(area), 300, len(wire) // 4)
    assert shown(plan, wire) == ((type(value).__name__, value),)
    if area == "hr":
        write = plan.encode_write("t.x", value)
        assert (write.area, write.offset, write.count, write.mask) == (Area.HOLDING_REGISTER, 300, len(wire) // 4, None)
        assert write.payload == bytes.fromhex(wire)
        assert plan.confirm(write, bytes.fromhex(wire)) == (True, value)
        other = bytes.fromhex(wire[:-1] + ("1" if wire[-1] == "0" else "0"))
        if value != "A":  # there the last character is behind the end
            assert not plan.confirm(write, other)[0]


@pytest.mark.parametrize("area", ["co", "di"])
def test_bits_are_packed_from_the_lowest(area: str) -> None:
    """Ten bits from address 20 on: 1 0 1 1 0 0 1 1, 0 1 (MODBUS Application Protocol V1.1b3, 6.1)."""
    bits = [1, 0, 1, 1, 0, 0, 1, 1, 0, 1]
    tags = [Tag(name=f"t.b{n}", address=ModbusAddress(Area(area), 20 + n), type=DataType.BOOL) for n in range(10)]
    plan = ModbusPlan(tags)
    assert str(plan.requests(0)[0]) == f"{area}:20..29"
    assert plan.decode(0, [bytes.fromhex("CD02")]) == (tuple(map(bool, bits)), {})
    assert plan.decode(0, [bytes.fromhex("CDFE")])[0] == tuple(map(bool, bits)), (
        "bits behind the last count for nothing"
    )


@pytest.mark.parametrize("area", ["ir", "hr"])
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("bit", range(16))
def test_a_bit_of_a_register(area: str, order: str, bit: int) -> None:
    """Bit 0 is the least significant, and the second byte on the wire; the word order is for numbers only."""
    plan = ModbusPlan([tag(area, 7, "BOOL", bit, word_order=WordOrder(order))])
    assert shown(plan, f"{1 << bit:04X}") == (("bool", True),)
    assert shown(plan, f"{0xFFFF ^ 1 << bit:04X}") == (("bool", False),)


# type, mask, value, register that shows it among other bits, and_mask, or_mask
MASKS = [
    ("UINT", 0x0FF0, 0x5A, "F5AF", 0xF00F, 0x05A0),
    ("UINT", 0x8000, 1, "8000", 0x7FFF, 0x8000),
    ("UINT", 0x0001, 0, "FFFE", 0xFFFE, 0x0000),
    ("UINT", 0xFFFF, 0xA1B2, "A1B2", 0x0000, 0xA1B2),
    ("USINT", 0xFF00, 200, "C837", 0x00FF, 0xC800),
    ("INT", 0x00F0, -3, "FFDF", 0xFF0F, 0x00D0),
    ("INT", 0x00F0, 7, "0F7F", 0xFF0F, 0x0070),
    ("SINT", 0x0700, -4, "FCFF", 0xF8FF, 0x0400),
]


@pytest.mark.parametrize(("kind", "mask", "value", "register", "and_mask", "or_mask"), MASKS)
def test_a_field_of_bits(kind: str, mask: int, value: int, register: str, and_mask: int, or_mask: int) -> None:
    plan = ModbusPlan([tag("hr", 7, kind, mask=mask, writable=True)])
    assert shown(plan, register) == (("int", value),)
    write = plan.encode_write("t.x", value)
    assert (write.mask, write.payload) == ((and_mask, or_mask), or_mask.to_bytes(2, "big"))
    assert plan.confirm(write, bytes.fromhex(register)) == (True, value)
    wrong = int(register, 16) ^ (mask & -mask)
    assert not plan.confirm(write, wrong.to_bytes(2, "big"))[0]


@pytest.mark.parametrize(("kind", "mask", "low", "high"), [("UINT", 0x0FF0, 0, 255), ("INT", 0x00F0, -8, 7)])
def test_a_field_takes_what_its_bits_hold(kind: str, mask: int, low: int, high: int) -> None:
    plan = ModbusPlan([tag("hr", 7, kind, mask=mask, writable=True)])
    plan.encode_write("t.x", low)
    plan.encode_write("t.x", high)
    for beyond in (low - 1, high + 1):
        with pytest.raises(EncodeError, match=rf"outside {low}\.\.{high}"):
            plan.encode_write("t.x", beyond)


REFUSED = [
    ("BCD", {}, "12A4", "not BCD: 0x12A4 has digits above 9"),
    ("BCD", {}, "F000", "not BCD: 0xF000"),
    ("LBCD", {}, "1234567B", "not BCD: 0x1234567B"),
    ("LBCD", {"word_order": WordOrder.CDAB}, "567B1234", "not BCD: 0x1234567B"),
    ("BCD", {"high": 99.0}, "0100", "100 is outside ..99"),
    ("REAL", {}, "7FC00000", "NaN"),
    ("REAL", {}, "FFFFFFFF", "NaN"),
    ("REAL", {"word_order": WordOrder.CDAB}, "00007F80", "infinite (inf)"),
    ("REAL", {"scale": 2.0}, "FF800000", "infinite (-inf)"),
    ("REAL", {"low": 0.0, "high": 1.0}, "7F800001", "NaN"),
    ("LREAL", {}, "7FF8000000000000", "NaN"),
    ("LREAL", {"word_order": WordOrder.DCBA}, "000000000000F0FF", "infinite (-inf)"),
    ("SINT", {}, "0080", "128 is outside -128..127"),
    ("SINT", {}, "FF7F", "-129 is outside"),
    ("USINT", {}, "0100", "256 is outside 0..255"),
    ("INT", {"low": -5.0}, "FFFA", "-6 is outside -5.."),
    ("UINT", {"mask": 0x0F00, "high": 9.0}, "FAFF", "10 is outside ..9"),
    ("DINT", {"scale": 0.5, "high": 1.0, "unit": "bar"}, "00000003", "1.5 bar is outside ..1"),
]


@pytest.mark.parametrize(("kind", "more", "wire", "reason"), REFUSED)
def test_what_must_not_be_used(kind: str, more: dict[str, object], wire: str, reason: str) -> None:
    (found,) = shown(ModbusPlan([tag("ir", 7, kind, **more)]), wire)
    assert isinstance(found, str), found
    assert reason in found


@pytest.mark.parametrize(
    ("kind", "more", "wire", "value"),
    [
        ("INT", {"scale": 0.5, "offset": -10.0}, "FFFE", -11.0),
        ("UINT", {"scale": -1.0}, "0000", 0.0),
        ("REAL", {"scale": 2.0, "offset": 1.0}, "C0200000", -4.0),
        ("LREAL", {"scale": 2.0, "offset": 1.0}, "C004000000000000", -4.0),
        ("BCD", {"scale": 0.25}, "0010", 2.5),
        ("INT", {"mask": 0x00F0, "scale": 10.0}, "FFDF", -30.0),
        ("REAL", {"low": -3.0, "high": 1.0}, "C0200000", -2.5),
    ],
)
def test_scaled(kind: str, more: dict[str, object], wire: str, value: float) -> None:
    plan = ModbusPlan([tag("hr", 7, kind, writable=True, **more)])
    assert shown(plan, wire) == (("float", value),)
    assert math.copysign(1.0, plan.decode(0, [bytes.fromhex(wire)])[0][0]) == math.copysign(1.0, value)  # type: ignore[arg-type]
    if "mask" not in more:
        assert plan.encode_write("t.x", value).payload == bytes.fromhex(wire)


@pytest.mark.parametrize(
    ("t", "value", "single", "frame"),
    [
        (tag("co", 172, "BOOL", writable=True), True, True, "05 00AC FF00"),
        (tag("co", 172, "BOOL", writable=True), False, True, "05 00AC 0000"),
        (tag("hr", 1, "UINT", writable=True), 3, True, "06 0001 0003"),
        (tag("co", 19, "BOOL", writable=True), True, False, "0F 0013 0001 01 01"),
        (tag("co", 19, "BOOL", writable=True), False, False, "0F 0013 0001 01 00"),
        (tag("hr", 1, "UINT", writable=True), 3, False, "10 0001 0001 02 0003"),
        (tag("hr", 1, "REAL", writable=True), -2.5, True, "10 0001 0002 04 C0200000"),
        (tag("hr", 4, "UINT", mask=0x0070, writable=True), 5, True, "16 0004 FF8F 0050"),
        (tag("hr", 4, "BOOL", 15, writable=True), True, True, "16 0004 7FFF 8000"),
        (tag("hr", 4, "BOOL", 0, writable=True), False, False, "16 0004 FFFE 0000"),
    ],
)
def test_write_frames(t: Tag, value: Value, single: bool, frame: str) -> None:
    """Functions 5, 6, 15, 16 and 22 (MODBUS Application Protocol V1.1b3, 6.5, 6.6, 6.11, 6.12, 6.16)."""
    call = pdu.write_call(ModbusPlan([t]).encode_write("t.x", value), single=single)
    assert call.pdu == bytes.fromhex(frame)


def test_a_block_is_one_frame() -> None:
    def member(name: str, offset: int, kind: str, **more: object) -> Tag:
        address = ModbusAddress(Area.HOLDING_REGISTER, offset)
        return Tag(name=name, address=address, type=DataType(kind), writable=True, **more)  # type: ignore[arg-type]

    tags = [
        member("c.id", 14, "UINT"),
        member("c.target", 10, "REAL", word_order=WordOrder.CDAB),
        member("c.speed", 12, "INT", scale=0.5),
        member("c.mode", 13, "BCD"),
    ]
    plan = ModbusPlan(tags, PlanOptions(max_write_registers=5))
    write = plan.encode_block({"c.id": 7, "c.speed": -1.0, "c.target": -2.5, "c.mode": 42})
    assert write.what == "c.target and 3 more at hr:10..14"
    assert pdu.write_call(write, single=True).pdu == bytes.fromhex("10 000A 0005 0A 0000C020 FFFE 0042 0007")
    assert str(write.read_back) == "hr:10..14"
    assert plan.confirm(write, bytes.fromhex("0000C020FFFE00420007")) == (True, None)
    found = plan.confirm(write, bytes.fromhex("0000C0200000004A0007"))
    assert found == (False, "c.speed = 0.0, c.mode = not BCD: 0x004A has digits above 9")


def test_neighbours_of_every_kind_in_one_request() -> None:
    """One answer with bits, masks, texts and numbers of both word orders side by side, and again with one bad digit."""

    def member(n: int, place: int, kind: str, **more: object) -> Tag:
        bit = more.pop("bit", None)
        address = ModbusAddress(Area.INPUT_REGISTER, place, bit)  # type: ignore[arg-type]
        return Tag(name=f"t.n{n:02d}", address=address, type=DataType(kind), **more)  # type: ignore[arg-type]

    members = [
        member(0, 0, "STRING", length=3),
        member(1, 2, "STRING", length=4),
        member(2, 4, "STRING", length=4, word_order=WordOrder.BADC),
        *(member(3 + bit, 6, "BOOL", bit=bit) for bit in range(16)),
        member(19, 7, "USINT", mask=0x00FF),
        member(20, 7, "BOOL", bit=8),
        member(21, 7, "INT", mask=0xF000),
        member(22, 8, "REAL", word_order=WordOrder.CDAB),
        member(23, 10, "REAL"),
        member(24, 13, "LBCD", word_order=WordOrder.DCBA),
        member(25, 15, "UINT", scale=0.5),
    ]
    plan = ModbusPlan(members)
    (request,) = plan.requests(0)
    assert str(request) == "ir:0..15"
    wire = "41420043 5152002A 52510041 80C1 B17F 0000C020 C0200000 FFFF {} 0003"
    bits = [True, False, False, False, False, False, True, True] + [False] * 7 + [True]
    rest = [0x7F, True, -5, -2.5, -2.5]
    expected = ["AB", "QR", "QRA", *bits, *rest, 12345678, 1.5]
    values, bad = plan.decode(0, [bytes.fromhex(wire.format("78563412"))])
    assert (list(values), bad) == (expected, {})
    values, bad = plan.decode(0, [bytes.fromhex(wire.format("785634A2"))])
    assert list(values) == [None if value == 12345678 else value for value in expected]
    assert bad == {24: "not BCD: 0xA2345678 has digits above 9"}
