"""RTU framing: the golden frames, and the serial port with a driver on top."""

from __future__ import annotations

import pytest
from honest_modbus import crc, rtu_frame

from drivers.modbus.framing import pdu_size
from drivers.modbus.pdu import identification_call
from drivers.modbus.rtu import RtuFraming

GOLDEN = [  # published examples; the first of the standard itself (6.2.2)
    "02 07 41 12",
    "11 01 00 13 00 25 0e 84",
    "11 01 05 cd 6b b2 0e 1b 45 e6",
    "11 02 00 c4 00 16 ba a9",
    "11 02 03 ac db 35 20 18",
    "11 03 00 6b 00 03 76 87",
    "11 03 06 ae 41 56 52 43 40 49 ad",
    "11 04 00 08 00 01 b2 98",
    "11 04 02 00 0a f8 f4",
    "11 0f 00 13 00 0a 02 cd 01 bf 0b",
    "11 0f 00 13 00 0a 26 99",
    "11 10 00 01 00 02 04 00 0a 01 02 c6 f0",
    "11 10 00 01 00 02 12 98",
    "0a 81 02 b0 53",
]


@pytest.mark.parametrize("text", GOLDEN)
def test_golden_frames(text: str) -> None:
    frame = bytes.fromhex(text)
    unit, pdu = frame[0], frame[1:-2]
    assert crc(frame[:-2]) == frame[-2:], "the test server's checksum is worked bit by bit"
    framing = RtuFraming()
    assert framing.encode(unit, pdu) == frame
    found, pending = framing.find(bytearray(frame), {unit}, lambda _unit, _head: len(pdu), False)
    assert found is not None
    assert (found.unit, found.pdu, found.noise, found.end, pending) == (unit, pdu, 0, len(frame), False)


def test_frames_of_other_units_are_passed_over_and_beginnings_are_waited_for() -> None:
    framing = RtuFraming()
    other, ours = rtu_frame(18, b"\x03\x02\x00\x01"), rtu_frame(17, b"\x03\x02\x00\x02")

    def size(_unit: int, head: bytes) -> int:
        return pdu_size(head, None)

    found, _ = framing.find(bytearray(other + ours), {17}, size, False)
    assert found is not None
    assert (found.noise, found.pdu) == (len(other), b"\x03\x02\x00\x02")
    for end in range(1, len(ours)):
        assert framing.find(bytearray(ours[:end]), {17}, size, False) == (None, True)
        assert framing.find(bytearray(ours[:end]), {17}, size, True) == (None, False)
    assert framing.find(bytearray(other), {17}, size, False) == (None, False)


@pytest.mark.parametrize(
    ("head", "size"),
    [
        ("", 0),
        ("83", 2),
        ("03", 0),
        ("03 02", 4),
        ("03 00", -1),
        ("03 ff", -1),
        ("05", 5),
        ("06", 5),
        ("08", 5),
        ("0f", 5),
        ("10", 5),
        ("16", 7),
        ("11 05", 7),
        ("17 04", 6),
        ("2b 0e", -1),
        ("41", -1),
    ],
)
def test_the_length_of_an_answer_follows_from_its_function(head: str, size: int) -> None:
    assert pdu_size(bytes.fromhex(head), None) == size


def test_an_answer_of_varying_length_is_measured_by_its_request() -> None:
    call = identification_call(1)
    answer = bytes.fromhex("2b 0e 01 01 00 00 02 00 03 41 42 43 01 01 44")
    assert pdu_size(answer[:10], call) == 0
    assert pdu_size(answer, call) == len(answer)
    found, _ = RtuFraming().find(bytearray(rtu_frame(17, answer)), {17}, lambda _, head: pdu_size(head, call), False)
    assert found is not None
    assert found.pdu == answer
