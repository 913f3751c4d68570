"""What holds for Modbus on every serial line: RTU and ASCII on a port, RTU through a device server."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from honest_modbus import AsciiServer, PtySide, RtuServer, RtuTcpServer, SerialBus
from serial_rig import Recorder, T, exchange, read

from drivers.modbus.ascii import AsciiWire
from drivers.modbus.pdu import loopback_call, write_call
from drivers.modbus.rtu import RtuWire
from drivers.modbus.serial_wire import SerialWire
from drivers.modbus.wire import OpenFailed
from drivers.options import SerialOptions, TcpLineOptions
from drivers.plan import ModbusPlan
from drivers.port import Area, DataType, ModbusAddress, Tag

pytestmark = [pytest.mark.wire, pytest.mark.usefixtures("no_leaks")]
KINDS = ("rtu", "ascii", "tcp")


class Rig:
    """A line with its units, and a wire to it."""

    def __init__(self, kind: str, folder: Path) -> None:
        self.kind = kind
        self.server: SerialBus
        if kind == "tcp":
            self.server = RtuTcpServer()
        else:
            self.server = RtuServer(folder) if kind == "rtu" else AsciiServer(folder)
        self.owner = Recorder()
        self.wires: list[SerialWire] = []

    async def wire(self, *, echo: bool = False, owner: Recorder | None = None) -> SerialWire:
        server, line = self.server, None
        if isinstance(server, RtuTcpServer):
            line = TcpLineOptions(host="127.0.0.1", port=server.port)
        else:
            assert isinstance(server, PtySide)
            line = SerialOptions(device=str(server.device), baudrate=115200)
        make = AsciiWire if self.kind == "ascii" else RtuWire
        wire = make(line, echo=echo, monotonic_ns=time.monotonic_ns)
        self.wires.append(wire)
        await wire.open(1.0, owner or self.owner)
        return wire


@pytest.fixture(params=KINDS)
async def rig(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Rig]:
    rig = Rig(request.param, tmp_path)
    async with rig.server:
        for offset in range(100):
            rig.server.memory.hr[offset] = 1000 + offset
        yield rig
        for wire in rig.wires:
            await wire.close()


async def test_values_and_refusals(rig: Rig) -> None:
    wire = await rig.wire()
    assert (wire.window, wire.single_writes, wire.under_way) == (1, False, 0)
    reading = read(3)
    for _ in range(3):
        before = time.monotonic_ns()
        assert (await rig.owner.ask(wire, reading)).value == 1003
        assert before <= reading.sent_ns <= time.monotonic_ns()
    assert len((await rig.owner.ask(wire, read(0, count=100))).data) == 200
    refused = await rig.owner.ask(wire, read(5000))
    assert (refused.kind, refused.data) == ("refused", b"\x02")
    assert rig.owner.strays == []
    assert rig.server.loopbacks == 0


async def test_one_exchange_at_a_time(rig: Rig) -> None:
    wire = await rig.wire()
    wire.start([read(1)])
    assert wire.under_way == 1
    with pytest.raises(RuntimeError, match="an exchange was started while"):
        wire.start([read(2)])
    await rig.owner.until(lambda: rig.owner.ends)
    assert rig.owner.ends[0].value == 1001
    assert wire.under_way == 0


@pytest.mark.parametrize(
    ("loopback", "delay"), [("refuse", 1.2), ("return", 1.9), ("refuse", 2.6), ("return", 4.0), ("refuse", 6.5)]
)
async def test_a_late_answer_is_never_taken_for_another_registers(rig: Rig, loopback: str, delay: float) -> None:
    """The two requests differ in the address alone, which the answer does not carry."""
    wire = await rig.wire()
    rig.server.loopback = loopback
    rig.server.script.append(f"late{delay * T}")
    failed = await rig.owner.ask(wire, read(1))
    assert (failed.kind, failed.timed_out, failed.sent) == ("failed", True, True)
    assert failed.what.endswith("no answer within 0.1 s")
    assert 1.4 * T < failed.rest_ns / 1e9 < 1.6 * T
    await asyncio.sleep(failed.rest_ns / 1e9)
    assert (await rig.owner.insist(wire, read(2))).value == 1002
    assert (17, True) in rig.owner.lates
    assert rig.server.loopbacks >= 1
    loopbacks = rig.server.loopbacks
    assert (await rig.owner.ask(wire, read(3))).value == 1003
    assert rig.server.loopbacks == loopbacks, "one proof is enough"


async def test_a_unit_that_returns_loop_backs_is_back_with_its_first_answer(rig: Rig) -> None:
    wire = await rig.wire()
    rig.server.loopback, rig.server.dead = "return", True
    for _ in range(3):
        assert (await rig.owner.ask(wire, read(1, timeout_s=0.03))).kind == "failed"
        await asyncio.sleep(0.05)
    rig.server.dead = False
    assert (await rig.owner.ask(wire, read(1))).value == 1001
    assert [pdu[0] for pdu in rig.server.heard] == [3, 8, 8, 8, 3]


async def test_a_refusal_too_many_shows_that_older_answers_are_still_to_come(rig: Rig) -> None:
    wire = await rig.wire()
    rig.server.script.append("silence")
    assert (await rig.owner.ask(wire, read(1, timeout_s=0.03))).kind == "failed"
    rig.server.script.append("silence")
    await asyncio.sleep(0.05)
    wire.start([read(2)])
    await asyncio.sleep(0.05)
    assert [pdu[0] for pdu in rig.server.heard] == [3, 8, 3]
    rig.server.say(rig.server.frame(17, b"\x88\x01") + rig.server.frame(17, b"\x03\x02\x03\xe9"))
    await rig.owner.until(lambda: len(rig.owner.ends) == 2)
    assert rig.owner.ends[1].what == "read hr:2: an older request is only being answered now"
    await asyncio.sleep(rig.owner.ends[1].rest_ns / 1e9)
    assert (await rig.owner.insist(wire, read(3))).value == 1003


async def test_alone_on_its_line_a_unit_that_refuses_them_is_back_with_its_first_answer_too(rig: Rig) -> None:
    wire = await rig.wire()
    rig.owner.shared, rig.server.dead = False, True
    for _ in range(3):
        assert (await rig.owner.ask(wire, read(1, timeout_s=0.03))).kind == "failed"
        await asyncio.sleep(0.05)
    rig.server.dead = False
    assert (await rig.owner.ask(wire, read(1, timeout_s=0.03))).value == 1001
    assert [pdu[0] for pdu in rig.server.heard] == [3, 8, 8, 8, 8, 3]


async def test_another_function_needs_no_loop_back(rig: Rig) -> None:
    wire = await rig.wire()
    rig.server.memory.ir[7] = 77
    rig.server.script.append(f"late{1.5 * T}")
    assert (await rig.owner.ask(wire, read(1))).kind == "failed"
    tag = Tag(name="v", address=ModbusAddress(Area.HOLDING_REGISTER, 50), type=DataType.UINT, writable=True)
    call = write_call(ModbusPlan([tag]).encode_write("v", 5), single=False)
    assert (await rig.owner.ask(wire, exchange(call))).kind == "answered"
    assert rig.server.loopbacks == 0
    assert rig.owner.lates == [(17, True)], "the write was answered after the read that was given up"
    assert (await rig.owner.ask(wire, read(50))).value == 5
    assert rig.server.loopbacks == 0, "what answered a later request owes nothing older"


async def test_neighbours_are_asked_at_once_and_late_answers_do_not_disturb_them(rig: Rig) -> None:
    wire = await rig.wire()
    rig.server.add(18)
    rig.server.units[18].memory.hr[1] = 1801
    rig.server.units[18].delay = 0.6 * T
    rig.server.script.append(f"late{1.3 * T}")
    assert (await rig.owner.ask(wire, read(1))).kind == "failed"
    start = time.monotonic()
    assert (await rig.owner.ask(wire, read(1, unit=18, timeout_s=1))).value == 1801
    assert time.monotonic() - start < 1.4 * T
    assert rig.owner.lates == [(17, True)]
    assert rig.owner.strays == []


async def test_sixteen_units_one_silent(rig: Rig) -> None:
    wire = await rig.wire()
    rig.server.add(*range(1, 16))
    for number, unit in rig.server.units.items():
        unit.memory.hr[0] = number
    rig.server.units[5].dead = True
    for _ in range(3):
        for number in range(1, 16):
            end = await rig.owner.ask(wire, read(0, unit=number, timeout_s=0.04 if number == 5 else 1.0))
            if number == 5:
                assert end.kind == "failed"
            else:
                assert end.value == number
    rig.server.units[5].dead = False
    await asyncio.sleep(0.07)
    start = time.monotonic()
    back = await rig.owner.insist(wire, read(0, unit=5, timeout_s=0.04))
    assert back.value == 5
    assert time.monotonic() - start < 0.5, "one more time-out, and a rest: its refusals are all alike"
    assert rig.owner.strays == []


@pytest.mark.parametrize(
    ("word", "text", "quick"),
    [
        ("crc", "an answer with a wrong checksum", True),
        ("wrong_unit", "no answer within 0.25 s; unit 18 answers instead of 17", False),
        ("half", "no answer within 0.25 s, only ", False),
        ("short", "expected 6 bytes beginning 03 04, got 4 beginning 03 02", True),
        ("long", "expected 6 bytes beginning 03 04, got 8 beginning 03 06", True),
        ("wrong_fc", "answered with function 4", True),
        ("exc255", "answered with exception 255, which does not exist", True),
        ("echo", "the line hands our own bytes back; set echo: true", True),
    ],
)
async def test_a_wrong_answer_fails_and_is_survived(rig: Rig, word: str, text: str, quick: bool) -> None:
    wire = await rig.wire()
    rig.server.script.append(word)
    start = time.monotonic()
    end = await rig.owner.ask(wire, read(8, count=2, timeout_s=0.25))
    assert end.kind == "failed"
    assert end.what.startswith("read hr:8..9: ")
    assert text in end.what
    assert end.timed_out is not quick
    assert (time.monotonic() - start < 0.24) is quick
    if word != "echo":
        assert rig.owner.strays
    await asyncio.sleep(end.rest_ns / 1e9)
    assert (await rig.owner.insist(wire, read(9))).value == 1009


async def test_noise_around_an_answer_costs_nothing(rig: Rig) -> None:
    wire = await rig.wire()
    start = time.monotonic()
    for word in ("noise_before", "noise_after", "noise_before"):
        rig.server.script.append(word)
        assert (await rig.owner.ask(wire, read(4, timeout_s=1))).value == 1004
    assert time.monotonic() - start < 0.9
    assert [text for text in rig.owner.strays if "noise" in text]
    assert "ff 00" in rig.owner.strays[0]


async def test_an_unasked_answer_makes_its_unit_prove_itself(rig: Rig) -> None:
    wire = await rig.wire()
    assert (await rig.owner.ask(wire, read(1))).value == 1001
    rig.server.say(rig.server.frame(17, b"\x03\x02\x00\x63"))
    await asyncio.sleep(0.03)
    assert "unit 17: an answer that nobody waits for (03 02 00 63)" in rig.owner.strays[0]
    assert (await rig.owner.ask(wire, read(2))).value == 1002
    assert rig.server.loopbacks == 1


async def test_a_unit_that_says_everything_twice_is_read_rightly(rig: Rig) -> None:
    wire = await rig.wire()
    rig.server.script.extend(["dup"] * 6)
    for offset in range(6):
        assert (await rig.owner.ask(wire, read(offset))).value == 1000 + offset
    assert rig.server.loopbacks >= 4


@pytest.mark.parametrize("answer", ["ok", "exc2", "silence"])
async def test_an_abandoned_exchange_occupies_the_wire_until_its_end(rig: Rig, answer: str) -> None:
    wire = await rig.wire()
    assert (await rig.owner.ask(wire, read(1))).value == 1001
    rig.server.delay = 0.3 * T
    rig.server.script.append(answer)
    await asyncio.sleep(0.01)
    given_up = read(2)
    wire.start([given_up])
    wire.abandon(given_up)
    wire.abandon(read(3))
    assert wire.under_way == 1
    if answer == "silence":
        await rig.owner.until(lambda: len(rig.owner.ends) == 2)
        assert rig.owner.ends[1].rest_ns > T * 1e9
    else:
        await rig.owner.until(lambda: rig.owner.lates)
        assert len(rig.owner.ends) == 1
    assert wire.under_way == 0
    assert (await rig.owner.insist(wire, read(4))).value == 1004


async def test_what_is_abandoned_before_its_turn_is_never_sent(rig: Rig) -> None:
    wire = await rig.wire()
    given_up = read(2)
    wire.start([given_up])  # within the gap after opening
    wire.abandon(given_up)
    assert wire.under_way == 0
    assert (await rig.owner.ask(wire, read(4))).value == 1004
    assert len(rig.server.requests) == 1
    assert rig.owner.lates == []


async def test_what_is_owed_is_remembered_across_close_and_open(rig: Rig) -> None:
    wire = await rig.wire()
    rig.server.script.append(f"late{0.5 * T}")
    wire.start([read(1)])
    await asyncio.sleep(0.2 * T)
    await wire.close()
    await wire.close()
    assert wire.under_way == 0
    start = time.monotonic()
    await wire.open(1.0, rig.owner)
    assert (await rig.owner.ask(wire, read(2))).value == 1002
    assert time.monotonic() - start > 2 * T, "and the unit has its rest"
    assert rig.server.loopbacks == 1
    assert len(rig.owner.ends) == 1


async def test_pulling_the_plug_is_seen_at_once_and_does_not_spin(rig: Rig) -> None:
    wire = await rig.wire()
    rig.server.script.append("silence")
    wire.start([read(1, timeout_s=0.3)])
    await asyncio.sleep(0.05)
    start, busy = time.monotonic(), time.process_time()
    await rig.server.stop()
    await rig.owner.until(lambda: rig.owner.losses)
    assert time.monotonic() - start < 0.5
    what, hint = rig.owner.losses[0]
    assert ("connection" if rig.kind == "tcp" else "serial port lost: ") in what
    assert ("device server" if rig.kind == "tcp" else "plugged in") in hint
    await asyncio.sleep(0.1)
    assert time.process_time() - busy < 0.1
    with pytest.raises(OpenFailed, match="cannot"):
        await wire.open(1.0, rig.owner)
    await rig.server.start()
    await wire.open(1.0, rig.owner)
    assert (len(rig.owner.losses), rig.owner.ends, wire.under_way) == (1, [], 0)
    assert (await rig.owner.insist(wire, read(2))).value == 1002


async def test_an_echo_is_checked_and_taken_away(rig: Rig) -> None:
    rig.server.echo = True
    wire = await rig.wire(echo=True)
    for pieces in (0, 1, 3):
        rig.server.pieces = pieces
        assert (await rig.owner.ask(wire, read(6, timeout_s=1))).value == 1006
    assert rig.owner.strays == []
    rig.server.pieces = 0
    rig.server.dead = True
    tag = Tag(name="v", address=ModbusAddress(Area.HOLDING_REGISTER, 50, 3), type=DataType.BOOL, writable=True)
    mask = write_call(ModbusPlan([tag]).encode_write("v", True), single=False)
    assert mask.pdu == mask.echo, "the one write whose good answer is its echo"
    end = await rig.owner.ask(wire, exchange(mask))
    assert (end.kind, end.timed_out) == ("failed", True), "a dead device is not acknowledged by its adapter"


async def test_a_missing_or_wrong_echo_is_a_failure_that_says_so(rig: Rig) -> None:
    wire = await rig.wire(echo=True)
    rig.server.dead = True
    end = await rig.owner.ask(wire, read(6))
    size = 17 if rig.kind == "ascii" else 8
    assert f"no echo within 0.1 s (0 of {size} bytes): echo is true, but what is sent does not come back" in end.what
    assert end.rest_ns
    await asyncio.sleep(end.rest_ns / 1e9)
    rig.server.dead = False
    end = await rig.owner.ask(wire, read(6))
    assert "the echo differs from what was sent: a collision or noise" in end.what


async def test_a_gateway_that_answers_for_its_device_proves_nothing(rig: Rig) -> None:
    wire = await rig.wire()
    rig.server.script.append("exc11")
    end = await rig.owner.ask(wire, read(1))
    assert (end.kind, end.data) == ("refused", b"\x0b")
    assert (await rig.owner.ask(wire, read(2))).value == 1002
    assert rig.server.loopbacks == 1, "the device behind it may still answer"


async def test_a_probe_that_only_came_to_its_loop_back_has_its_cost(rig: Rig) -> None:
    wire = await rig.wire()
    rig.server.dead = True
    assert (await rig.owner.ask(wire, read(1))).kind == "failed"
    probe = read(1, timeout_s=0.02)
    probe.probe = True
    end = await rig.owner.ask(wire, probe)
    assert (end.kind, end.sent) == ("failed", True)
    assert probe.sent_ns
    assert [pdu[0] for pdu in rig.server.heard] == [3, 8]


async def test_the_loop_back_of_an_engineer_is_an_exchange_like_others(rig: Rig) -> None:
    wire = await rig.wire()
    rig.server.loopback = "return"
    assert (await rig.owner.ask(wire, exchange(loopback_call(b"\x12\x34")))).kind == "answered"
    rig.server.loopback = "refuse"
    assert (await rig.owner.ask(wire, exchange(loopback_call(b"\x12\x34")))).kind == "refused"


@pytest.mark.parametrize("pieces", [1, 2, 7])
async def test_answers_in_pieces(rig: Rig, pieces: int) -> None:
    wire = await rig.wire()
    rig.server.pieces = pieces
    for offset in (1, 2, 3):
        assert (await rig.owner.ask(wire, read(offset, timeout_s=1))).value == 1000 + offset
    assert rig.owner.strays == []
