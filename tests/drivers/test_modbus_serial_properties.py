"""Never a wrong value: the serial wires in virtual time, against every split, bit error, garbage and tardy unit."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Callable

import pytest
from honest_modbus import ascii_frame, rtu_frame
from hypothesis import given, settings
from hypothesis import strategies as st
from serial_rig import Clock, End, PaperLine, T, in_virtual_time, paper_wire, read

from drivers.modbus.ascii import AsciiFraming
from drivers.modbus.framing import Framing
from drivers.modbus.rtu import RtuFraming

MAKE = {"rtu": rtu_frame, "ascii": ascii_frame}
FRAMING: dict[str, Callable[[], Framing]] = {"rtu": RtuFraming, "ascii": AsciiFraming}
KINDS = pytest.mark.parametrize("kind", ["rtu", "ascii"])
ANSWER = b"\x03\x04\x12\x34\x11\x03"
"""Ends like a frame of unit 17 begins."""


def heard(kind: str, pieces: list[bytes], pause_s: float = 0.0, count: int = 2) -> End:
    """How a read ends when the line says these pieces after the request."""

    async def work(clock: Clock) -> End:
        wire, line, owner = await paper_wire(FRAMING[kind](), clock)
        wire.start([read(1, count=count)])
        assert len(line.sent) == 1
        for piece in pieces:
            line.on_bytes(piece)
            await asyncio.sleep(pause_s)
        await owner.until(lambda: owner.ends)
        assert len(owner.ends) == 1
        await wire.close()
        return owner.ends[0]

    return in_virtual_time(work)


def cut(frame: bytes, cuts: list[int]) -> list[bytes]:
    edges = [0, *sorted(c % (len(frame) + 1) for c in cuts), len(frame)]
    return [frame[a:b] for a, b in itertools.pairwise(edges) if a < b]


@KINDS
@given(data=st.binary(min_size=1, max_size=60), cuts=st.lists(st.integers(0, 400), max_size=12), pause=st.booleans())
@settings(max_examples=150, deadline=None)
def test_any_split_of_an_answer_is_taken(kind: str, data: bytes, cuts: list[int], pause: bool) -> None:
    data += data
    frame = MAKE[kind](17, bytes((3, len(data))) + data)
    end = heard(kind, cut(frame, cuts), 0.006 if pause else 0.0, count=len(data) // 2)
    assert (end.kind, end.data) == ("answered", data)


@KINDS
@pytest.mark.parametrize("pdu", [ANSWER, b"\x83\x02"])
def test_no_single_bit_error_is_taken(kind: str, pdu: bytes) -> None:
    frame = MAKE[kind](17, pdu)
    for bit in range(8 * len(frame)):
        wrong = bytearray(frame)
        wrong[bit // 8] ^= 1 << bit % 8
        end = heard(kind, [bytes(wrong)])
        if kind == "ascii" and wrong.upper() == frame:
            assert end.kind != "failed", "lower case is the same digit"
        else:
            assert end.kind == "failed", (bit, wrong)


@KINDS
@given(before=st.binary(max_size=40), after=st.binary(max_size=40), cuts=st.lists(st.integers(0, 200), max_size=6))
@settings(max_examples=250, deadline=None)
def test_garbage_around_an_answer_never_makes_a_wrong_value(
    kind: str, before: bytes, after: bytes, cuts: list[int]
) -> None:
    end = heard(kind, cut(before + MAKE[kind](17, ANSWER) + after, cuts))
    if end.kind == "answered":
        assert end.data == ANSWER[2:]
    if not before or (17 not in before and b":" not in before):
        assert end.kind == "answered", "the frame is found behind the noise"


@KINDS
@given(noise=st.binary(min_size=1, max_size=700), cuts=st.lists(st.integers(0, 700), max_size=6))
@settings(max_examples=150, deadline=None)
def test_garbage_is_no_answer(kind: str, noise: bytes, cuts: list[int]) -> None:
    assert heard(kind, cut(noise, cuts)).kind == "failed"


@KINDS
def test_noise_that_begins_like_a_long_frame_hides_nothing(kind: str) -> None:
    noise = {"rtu": b"\x11\x03\xf0", "ascii": b":1103F0"}[kind]
    assert heard(kind, [noise + MAKE[kind](17, ANSWER)]).data == ANSWER[2:]


@KINDS
@pytest.mark.parametrize(
    "pdu",
    [
        b"\x04\x04\x12\x34\x56\x78",
        b"\x06\x00\x01\x12\x34",
        b"\x03\x02\x12\x34",
        b"\x03\x06\x12\x34\x56\x78\x9a\xbc",
        b"\x03\x03\x12\x34\x56",
        b"\x03\x04\x12\x34\x56",
        b"\x03\x00",
        b"\x86\x02",
        b"\x83\x00",
        b"\x84\x02",
    ],
)
def test_what_pymodbus_would_take_for_good_is_not_taken(kind: str, pdu: bytes) -> None:
    assert heard(kind, [MAKE[kind](17, pdu)]).kind == "failed"


@KINDS
def test_a_line_that_is_never_silent_is_an_error(kind: str) -> None:
    async def work(clock: Clock) -> None:
        wire, line, owner = await paper_wire(FRAMING[kind](), clock)

        async def babble() -> None:
            while True:
                line.on_bytes(b"\xaa" * 8)
                await asyncio.sleep(0.001)

        task = asyncio.create_task(babble())
        await asyncio.sleep(0.01)
        for _ in range(2):
            end = await owner.ask(wire, read(1))
            assert (end.kind, end.sent, end.rest_ns) == ("failed", False, 0)
            assert end.what.startswith("read hr:1: not sent: the line does not fall silent aa aa")
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await asyncio.sleep(0.01)
        assert line.sent == []
        wire.start([read(1)])
        assert len(line.sent) == 1

    in_virtual_time(work)


@KINDS
def test_nothing_is_sent_after_bytes_that_have_not_gone_out(kind: str) -> None:
    async def work(clock: Clock) -> None:
        wire, line, owner = await paper_wire(FRAMING[kind](), clock)
        line.unsent = 8
        end = await owner.ask(wire, read(1))
        assert end.what == "read hr:1: not sent: the bytes of the last request have not gone out"
        assert (end.sent, line.sent) == (False, [])
        wire.start([read(1)])
        await asyncio.sleep(0.5 * T)
        line.unsent = 0
        await asyncio.sleep(0.1 * T)
        assert len(line.sent) == 1

    in_virtual_time(work)


def test_ascii_a_pause_of_more_than_a_second_ends_a_frame() -> None:
    async def work(clock: Clock) -> None:
        wire, line, owner = await paper_wire(AsciiFraming(), clock)
        frame = ascii_frame(17, ANSWER)
        wire.start([read(1, count=2, timeout_s=3)])
        line.on_bytes(frame[:5])
        await asyncio.sleep(0.9)
        line.on_bytes(frame[5:7])
        await asyncio.sleep(1.1)
        line.on_bytes(frame[7:])
        await asyncio.sleep(0)
        assert owner.ends == []
        line.on_bytes(frame)
        assert owner.ends[0].data == ANSWER[2:]

    in_virtual_time(work)


def test_a_unit_that_ignores_the_loop_back_is_asked_when_it_was_long_silent() -> None:
    async def work(clock: Clock) -> None:
        wire, line, owner = await paper_wire(RtuFraming(), clock)
        dead = False

        def serve(frame: bytes) -> None:
            if frame[1] == 3 and not dead:
                reply = rtu_frame(17, b"\x03\x02\x00" + frame[3:4])
                asyncio.get_running_loop().call_later(0.01, lambda: line.on_bytes(reply))

        line.on_write = serve
        # At first nobody knows whether an answer may yet come; later it is known not to answer loop-backs.
        for least_s, most_s in ((10, 10.5), (4 * T, 8 * T)):
            dead = True
            assert (await owner.ask(wire, read(1))).kind == "failed"
            dead, start = False, clock.ns
            end = await owner.ask(wire, read(2))
            assert end.what == (
                "read hr:2: not sent: an answer is still owed,"
                " and no answer within 0.1 s to the loop-back that must come first"
            )
            assert (end.timed_out, end.sent) == (True, False)
            assert (await owner.insist(wire, read(2), 100)).value == 2
            assert least_s < (clock.ns - start) / 1e9 < most_s
            sent = len(line.sent)
            assert (await owner.ask(wire, read(3))).value == 3
            assert len(line.sent) == sent + 1

    in_virtual_time(work)


def test_a_unit_that_answered_loop_backs_is_asked_directly_after_a_minute_only() -> None:
    """It was replaced by one that ignores them."""

    async def work(clock: Clock) -> None:
        wire, line, owner = await paper_wire(RtuFraming(), clock)
        serve = {3: True, 8: True}

        def answer(frame: bytes) -> None:
            if serve[frame[1]]:
                line.on_bytes(rtu_frame(17, b"\x03\x02\x00\x07" if frame[1] == 3 else b"\x88\x01"))

        line.on_write = lambda frame: asyncio.get_running_loop().call_soon(answer, frame) and None
        serve[3] = False
        assert (await owner.ask(wire, read(1))).kind == "failed"
        serve[3] = True
        assert (await owner.ask(wire, read(1))).value == 7
        serve[3] = serve[8] = False
        assert (await owner.ask(wire, read(1))).kind == "failed"
        serve[3], start = True, clock.ns
        assert (await owner.insist(wire, read(1), 1000)).value == 7
        assert 60 < (clock.ns - start) / 1e9 < 61

    in_virtual_time(work)


class Tardy:
    """A unit that works on one request at a time, in order, and misbehaves at random.

    Its register n holds 1000 times its number, plus n.
    """

    def __init__(self, number: int, dice: random.Random, loopback: str) -> None:
        self.number, self.dice, self.loopback, self.busy = number, dice, loopback, 0.0

    def answer(self, kind: str, pdu: bytes, line: PaperLine) -> None:
        loop, dice = asyncio.get_running_loop(), self.dice
        roll = dice.random()
        if pdu[0] == 8:
            if self.loopback == "ignore":
                return
            reply = pdu if self.loopback == "return" else b"\x88\x01"
        else:
            reply = b"\x03\x02" + (self.number * 1000 + pdu[2]).to_bytes(2, "big")
        if roll < 0.05:
            return
        self.busy = max(self.busy, loop.time()) + 0.002
        if roll < 0.20:
            # What remains possible beyond these delays is in docs/modbus-serial.md.
            most = {"return": 30, "refuse": 2.4 if pdu[0] == 8 else 30, "ignore": 3.4}[self.loopback]
            self.busy += dice.uniform(0.5, most) * T
        frame = MAKE[kind](self.number, reply)
        if roll > 0.97:
            frame = frame[: dice.randrange(len(frame))]
        elif roll > 0.94:
            frame = dice.randbytes(dice.randrange(1, 9)) + frame
        elif roll > 0.91:
            at = dice.randrange(len(frame))
            frame = frame[:at] + bytes((frame[at] ^ 1 << dice.randrange(8),)) + frame[at + 1 :]
        loop.call_at(self.busy, lambda: line.on_bytes(frame))
        if roll > 0.88 and roll < 0.91 and self.loopback != "ignore":
            loop.call_at(self.busy, lambda: line.on_bytes(frame))


@KINDS
@pytest.mark.parametrize("loopback", ["refuse", "return", "ignore"])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_tardy_damaged_and_doubled_answers_never_make_a_wrong_value(kind: str, loopback: str, seed: int) -> None:
    """Two thousand reads that only differ in what their answers do not carry, of three units on one line."""

    async def work(clock: Clock) -> tuple[int, int]:
        wire, line, owner = await paper_wire(FRAMING[kind](), clock)
        dice = random.Random(seed)
        units = {number: Tardy(number, dice, loopback) for number in (1, 17, 40)}
        rests = dict.fromkeys(units, 0.0)

        def serve(frame: bytes) -> None:
            body = frame if kind == "rtu" else bytes.fromhex(frame[1:-2].decode())
            units[body[0]].answer(kind, body[1 : -2 if kind == "rtu" else -1], line)

        line.on_write = serve
        good = 0
        for _ in range(2000):
            number, offset = dice.choice(list(units)), dice.randrange(90)
            await asyncio.sleep(max(0.0, rests[number] - clock.ns / 1e9))
            end = await owner.ask(wire, read(offset, unit=number))
            if end.kind == "answered":
                assert end.value == number * 1000 + offset
                good += 1
            rests[number] = (clock.ns + end.rest_ns) / 1e9
        return good, len(owner.lates)

    good, late = in_virtual_time(work)
    assert good > 400
    assert late > 20
