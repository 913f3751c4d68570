"""ASCII framing: the golden frames, and how strict it is."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from honest_modbus import AsciiServer, ascii_frame, lrc
from serial_rig import Recorder, read

from drivers.modbus.ascii import AsciiFraming, AsciiWire
from drivers.modbus.framing import Found
from drivers.options import SerialOptions

GOLDEN = [
    ":010300000001FB",
    ":1103006B00037E",
    ":110306AE4156524340CC",
    ":01060001000AEE",
    ":0A8102" + "73",
]
FRAME = b":110306AE4156524340CC\r\n"
PDU = bytes.fromhex("03 06 ae 41 56 52 43 40")


def find(heard: bytes, units: set[int] | None = None) -> Found | None:
    found, pending = AsciiFraming().find(bytearray(heard), units or {17}, lambda _unit, _head: -1, False)
    assert not pending
    return found


@pytest.mark.parametrize("text", GOLDEN)
def test_golden_frames(text: str) -> None:
    body = bytes.fromhex(text[1:-2])
    assert lrc(body) == int(text[-2:], 16)
    frame = text.encode() + b"\r\n"
    assert AsciiFraming().encode(body[0], body[1:]) == ascii_frame(body[0], body[1:]) == frame
    assert find(frame, {body[0]}) == Found(0, len(frame), body[0], body[1:])


@pytest.mark.parametrize(
    "heard",
    [
        FRAME.lower(),
        b":110306aE4156524340cC\r\n",
        b"\x00noise" + FRAME,
        b":1103" + FRAME,
        b":110306AE4156524340CD\r\n" + FRAME,
        b"\r\n" + FRAME,
        FRAME + FRAME,
        ascii_frame(18, PDU) + FRAME,
    ],
)
def test_what_is_taken(heard: bytes) -> None:
    found = find(heard)
    assert found is not None
    assert (found.unit, found.pdu) == (17, PDU)


@pytest.mark.parametrize(
    "heard",
    [
        FRAME[:-1],
        FRAME[:-2] + b"\n",
        FRAME[:-2] + b"\n\r",
        FRAME[1:],
        b":110306AE4156524340CD\r\n",
        b":11 0306AE4156524340CC\r\n",
        b":1 10306AE4156524340CC\r\n",
        b":110306AE4156524340C\r\n",
        b":110306AE4156524340CC \r\n",
        b":110306AE415652434GCC\r\n",
        b":11EF\r\n",
        b":\r\n",
        bytes((FRAME[0], FRAME[1] | 0x80)) + FRAME[2:],
        b":" + ascii_frame(17, bytes(254))[1:],
    ],
)
def test_what_is_not_taken(heard: bytes) -> None:
    assert find(heard) is None


def test_the_longest_frame() -> None:
    frame = ascii_frame(17, bytes(253))
    assert len(frame) == 513
    found = find(frame)
    assert found is not None
    assert len(found.pdu) == 253


@pytest.mark.wire
@pytest.mark.parametrize("bytesize", [7, 8])
async def test_seven_and_eight_data_bits(tmp_path: Path, no_leaks: None, bytesize: int) -> None:
    async with AsciiServer(tmp_path) as server:
        server.memory.hr[3] = 0xCAFE
        line = SerialOptions(device=str(server.device), bytesize=bytesize, parity="E")  # type: ignore[arg-type]
        wire, owner = AsciiWire(line, echo=False, monotonic_ns=time.monotonic_ns), Recorder()
        assert wire.endpoint.endswith(f" 19200 {bytesize}E1")
        await wire.open(1.0, owner)
        assert (await owner.ask(wire, read(3))).value == 0xCAFE
        await wire.close()
