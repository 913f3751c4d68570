from __future__ import annotations

import math
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drivers import codec
from drivers.port import Area, DataType, ModbusAddress, OpcUaAddress, Tag, Value, WordOrder

HR = ModbusAddress(Area.HOLDING_REGISTER, 10)


def tag(kind: DataType, **more: object) -> Tag:
    return Tag(name="filler.value", type=kind, **{"address": HR, "writable": True, **more})  # type: ignore[arg-type]


GOLDEN = [
    # type, value, and the registers as seen on the wire in ABCD, CDAB, BADC, DCBA
    (DataType.SINT, -2, "FFFE", "FFFE", "FFFE", "FFFE"),
    (DataType.USINT, 200, "00C8", "00C8", "00C8", "00C8"),
    (DataType.INT, -12345, "CFC7", "CFC7", "CFC7", "CFC7"),
    (DataType.UINT, 0x1234, "1234", "1234", "1234", "1234"),
    (DataType.DINT, -2, "FFFFFFFE", "FFFEFFFF", "FFFFFEFF", "FEFFFFFF"),
    (DataType.UDINT, 0x11223344, "11223344", "33441122", "22114433", "44332211"),
    (
        DataType.ULINT,
        0x1122334455667788,
        "1122334455667788",
        "7788556633441122",
        "2211443366558877",
        "8877665544332211",
    ),
    (DataType.LINT, -2, "FFFFFFFFFFFFFFFE", "FFFEFFFFFFFFFFFF", "FFFFFFFFFFFFFEFF", "FEFFFFFFFFFFFFFF"),
    (DataType.REAL, 123.456, "42F6E979", "E97942F6", "F64279E9", "79E9F642"),
    (
        DataType.LREAL,
        123.456,
        "405EDD2F1A9FBE77",
        "BE771A9FDD2F405E",
        "5E402FDD9F1A77BE",
        "77BE9F1A2FDD5E40",
    ),
]


@pytest.mark.parametrize("golden", GOLDEN, ids=lambda g: g[0])
@pytest.mark.parametrize(("order", "column"), [("ABCD", 2), ("CDAB", 3), ("BADC", 4), ("DCBA", 5)])
def test_golden_numbers(golden: tuple[DataType, int | float, str], order: str, column: int) -> None:
    t = tag(golden[0], word_order=WordOrder(order))
    wire = bytes.fromhex(golden[column])  # type: ignore[arg-type]
    assert codec.encode(t, golden[1]) == wire
    value, reason = codec.decode(t, wire)
    assert reason == ""
    assert value == pytest.approx(golden[1], rel=1e-7)
    assert isinstance(value, float) == (golden[0] in codec.REALS)


@pytest.mark.parametrize(
    ("order", "wire"), [("ABCD", b"L1\xe9\0\0\0"), ("CDAB", b"L1\xe9\0\0\0"), ("BADC", b"1L\0\xe9\0\0")]
)
def test_golden_text(order: str, wire: bytes) -> None:
    t = tag(DataType.STRING, length=5, word_order=WordOrder(order))
    assert codec.encode(t, "L1é") == wire
    assert codec.decode(t, wire) == ("L1é", "")


def test_text_ends_at_nul_and_at_its_length() -> None:
    t = tag(DataType.STRING, length=3)
    assert codec.decode(t, b"A\0BC") == ("A", "")
    assert codec.decode(t, b"ABCD") == ("ABC", "")
    for wrong in ("ABCD", "A\0", "€", 3, True):
        with pytest.raises(codec.EncodeError):
            codec.encode(t, wrong)


def test_bit_in_register() -> None:
    t = Tag(name="a.b", address=ModbusAddress(Area.HOLDING_REGISTER, 1, 9), type=DataType.BOOL)
    assert codec.decode(t, b"\x02\x00") == (True, "")
    assert codec.decode(t, b"\xfd\xff") == (False, "")


@pytest.mark.parametrize(("value", "raw"), [(1.25, 12), (1.75, 18), (1.34, 13), (-1.25, -12), (-1.26, -13), (0, 0)])
def test_rounds_half_to_even(value: float, raw: int) -> None:
    assert codec.to_raw(tag(DataType.INT, scale=0.1), value) == raw


@pytest.mark.parametrize(
    ("t", "value", "limit"),
    [
        (tag(DataType.UINT), 65536, "65535"),
        (tag(DataType.UINT), -1, "0..65535"),
        (tag(DataType.INT, scale=0.1), 3276.8, "32767"),
        (tag(DataType.INT), 1.5, "whole numbers"),
        (tag(DataType.INT), True, "takes a number"),
        (tag(DataType.INT), "1", "takes a number"),
        (tag(DataType.BOOL), 1, "true or false"),
        (tag(DataType.REAL), math.nan, "finite"),
        (tag(DataType.UINT, scale=0.1), math.inf, "finite"),
        (tag(DataType.UINT), -math.inf, "finite"),
        (tag(DataType.REAL), 1e39, "too large"),
        (tag(DataType.REAL), 10**400, "too large"),
        (tag(DataType.ULINT), 10**400, "too large"),
        (tag(DataType.LREAL, scale=1e-10), 1e307, "too large"),
        (tag(DataType.REAL, low=0, high=10, unit="bar"), 10.001, "high 10 bar"),
        (tag(DataType.REAL, low=0, high=10), -0.001, "low 0"),
        (tag(DataType.UINT, scale=0.1, high=0.27), 0.27, "outside 0..2"),
        (tag(DataType.BCD), 10000, "0..9999 of BCD"),
        (tag(DataType.BCD), -1, "0..9999 of BCD"),
        (tag(DataType.LBCD), 1.5, "whole numbers"),
        (tag(DataType.LBCD, scale=0.01), 1e6, "0..99999999 of LBCD"),
        (tag(DataType.SINT, mask=0x00F0), 8, "-8..7"),
        (tag(DataType.ULINT, scale=1e300), 1.75e308, "outside 0..169999999"),
    ],
)
def test_refuses_and_never_clamps(t: Tag, value: Value, limit: str) -> None:
    with pytest.raises(codec.EncodeError) as caught:
        codec.encode(t, value)
    assert limit in str(caught.value)
    assert caught.value.tag == "filler.value"
    assert caught.value.value is value


@pytest.mark.parametrize(
    ("t", "wire", "reason"),
    [
        (tag(DataType.REAL), "7FC00000", "NaN"),
        (tag(DataType.REAL), "FFC00001", "NaN"),
        (tag(DataType.REAL), "7F800000", "infinite"),
        (tag(DataType.LREAL), "FFF0000000000000", "infinite"),
        (tag(DataType.LREAL, scale=1e10), "7FE0000000000000", "out of range"),
        (tag(DataType.INT, scale=0.1, high=100, unit="°C"), "03E9", "100.1 °C is outside ..100"),
        (tag(DataType.INT, low=4), "0003", "out of range"),
        (tag(DataType.INT, scale=-1, low=-5, high=5), "0006", "-6"),
        (tag(DataType.USINT), "0100", "out of range"),
        (tag(DataType.SINT), "0080", "out of range"),
        (tag(DataType.REAL, scale=1e300), "7F7FFFFF", "out of range"),
        (tag(DataType.ULINT, scale=1e300), "FFFFFFFFFFFFFFFF", "out of range"),
    ],
)
def test_doubtful_values_are_bad(t: Tag, wire: str, reason: str) -> None:
    value, why = codec.decode(t, bytes.fromhex(wire))
    assert value is None
    assert reason in why


def test_limits_that_the_format_cannot_hold_are_reachable() -> None:
    """0.1 as REAL and 3 * 0.1 are a little above the limits written in the configuration."""
    t = tag(DataType.REAL, low=-0.1, high=0.1)
    assert codec.decode(t, codec.encode(t, 0.1))[1] == ""
    assert codec.decode(t, codec.encode(t, -0.1))[1] == ""
    t = tag(DataType.UINT, scale=0.1, low=0.3, high=0.7)
    assert codec.decode(t, codec.encode(t, 0.3)) == (3 * 0.1, "")
    assert codec.decode(t, codec.encode(t, 0.7))[1] == ""
    assert codec.decode(t, b"\0\x02")[0] is None
    assert codec.decode(t, b"\0\x08")[0] is None


@pytest.mark.parametrize(
    ("t", "text"),
    [
        (tag(DataType.INT, scale=0.0), "scale not 0"),
        (tag(DataType.INT, low=math.nan), "finite"),
        (tag(DataType.INT, low=5, high=4), "no INT lies"),
        (tag(DataType.UINT, high=-1), "no UINT lies"),
        (tag(DataType.STRING), "needs a length"),
        (tag(DataType.STRING, length=4, scale=2.0), "has no scale"),
        (tag(DataType.BOOL), "needs a bit"),
        (tag(DataType.INT, address=ModbusAddress(Area.COIL, 1), writable=False), "is a BOOL"),
        (tag(DataType.BOOL, address=ModbusAddress(Area.HOLDING_REGISTER, 1, 16)), "bits 0 to 15"),
        (tag(DataType.DINT, address=ModbusAddress(Area.HOLDING_REGISTER, 65535)), "0 to 65535"),
        (tag(DataType.INT, address=ModbusAddress(Area.INPUT_REGISTER, 1)), "cannot be written"),
        (tag(DataType.DINT, mask=1), "for SINT, USINT, INT, UINT"),
        (tag(DataType.BCD, mask=1), "for SINT, USINT, INT, UINT"),
        (tag(DataType.BOOL, mask=1), "has no mask"),
        (tag(DataType.UINT, mask=0), "0x0001 to 0xFFFF"),
        (tag(DataType.UINT, mask=0x10000), "0x0001 to 0xFFFF"),
        (tag(DataType.UINT, mask=0x0FF1), "not next to each other"),
        (tag(DataType.SINT, mask=0x01FF), "has 9 bits, a SINT holds 8"),
        (tag(DataType.UINT, mask=0x00F0, low=16), "no UINT lies"),
        (tag(DataType.UINT, mask=0x00F0, address=OpcUaAddress("i=1")), "for Modbus registers"),
        (tag(DataType.LBCD, address=OpcUaAddress("i=1")), "for Modbus registers"),
        (tag(DataType.LBCD, high=-1), "no LBCD lies"),
    ],
)
def test_contradictory_tags_are_named(t: Tag, text: str) -> None:
    with pytest.raises(ValueError, match=text) as caught:
        codec.check(t)
    assert "filler.value" in str(caught.value)


INTEGERS = st.sampled_from(sorted(codec.INTEGER_RANGE))
ORDERS = st.sampled_from(list(WordOrder))


@given(INTEGERS, ORDERS, st.data())
def test_integers_survive(kind: DataType, order: WordOrder, data: st.DataObject) -> None:
    low, high = codec.INTEGER_RANGE[kind]
    value = data.draw(st.integers(low, high))
    t = tag(kind, word_order=order)
    assert codec.decode(t, codec.encode(t, value)) == (value, "")


@given(st.sampled_from([DataType.BCD, DataType.LBCD]), ORDERS, st.binary(min_size=4, max_size=4))
def test_decimal_digits_and_nothing_else(kind: DataType, order: WordOrder, random: bytes) -> None:
    t = tag(kind, word_order=order)
    data = random[: 2 * codec.register_count(t)]
    digits = {
        WordOrder.ABCD: data, WordOrder.CDAB: data[2:] + data[:2],
        WordOrder.DCBA: data[::-1], WordOrder.BADC: data[1::-1] + data[:1:-1],
    }[order if kind is DataType.LBCD else WordOrder.ABCD].hex()  # fmt: skip
    value, reason = codec.decode(t, data)
    if digits.isdecimal():
        assert (value, reason) == (int(digits), "")
        assert codec.encode(t, int(digits)) == data
    else:
        assert value is None
        assert f"not BCD: 0x{digits.upper()}" in reason


@given(ORDERS, st.floats(allow_nan=False, allow_infinity=False, width=32))
def test_reals_survive(order: WordOrder, value: float) -> None:
    t = tag(DataType.REAL, word_order=order)
    assert codec.decode(t, codec.encode(t, value)) == (value, "")


@given(ORDERS, st.floats(-1e300, 1e300))
def test_lreals_survive(order: WordOrder, value: float) -> None:
    t = tag(DataType.LREAL, word_order=order)
    assert codec.decode(t, codec.encode(t, value)) == (value, "")


@given(ORDERS, st.text(st.characters(min_codepoint=1, max_codepoint=255), max_size=31))
def test_texts_survive(order: WordOrder, value: str) -> None:
    t = tag(DataType.STRING, length=31, word_order=order)
    assert codec.decode(t, codec.encode(t, value)) == (value, "")


@given(
    st.sampled_from([DataType.INT, DataType.UINT, DataType.DINT, DataType.UDINT, DataType.REAL, DataType.LREAL]),
    st.sampled_from([1.0, 0.1, 0.001, -0.5, 2.5, 1e-6]),
    st.sampled_from([0.0, -40.0, 100.5]),
    st.data(),
)
def test_what_is_read_is_the_same_as_what_was_written(
    kind: DataType, scale: float, offset: float, data: st.DataObject
) -> None:
    t = tag(kind, scale=scale, offset=offset)
    low, high = codec.INTEGER_RANGE.get(kind, (-30000, 30000))
    raw = data.draw(st.integers(low, high))
    wanted = raw * scale + offset
    found, reason = codec.decode(t, codec.encode(t, wanted))
    assert reason == ""
    assert isinstance(found, float | int)
    assert abs(found - wanted) <= abs(scale) * 0.5000001 + 1e-6 * abs(wanted)
    assert codec.same(t, wanted, found)
    if kind in codec.INTEGER_RANGE and low < raw < high:
        assert not codec.same(t, wanted, (raw + 1) * scale + offset)


def test_same_is_about_the_wire() -> None:
    real = tag(DataType.REAL)
    assert codec.same(real, 0.1, struct.unpack(">f", struct.pack(">f", 0.1))[0])
    assert not codec.same(real, 0.1, 0.1001)
    assert not codec.same(real, 0.1, None)
    assert not codec.same(real, math.nan, 0.1)
    assert not codec.same(tag(DataType.BOOL), True, 1)
    assert codec.same(tag(DataType.BOOL), True, True)
    assert not codec.same(tag(DataType.INT), 1, True)
