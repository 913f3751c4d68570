"""The handshake with a PLC in virtual time: identity, restarts, and commands that are taken once and in time."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given
from link_rig import MS, Bench, FakeDriver, LoopClock, VirtualLoop, tag, virtual

from controller.core.image import LinkReport, WriteReport
from controller.runtime.bus_commands import BlockOptions, Commands, valid_until
from controller.runtime.bus_peer import Peer
from drivers import codec
from drivers.port import (
    DataType,
    DeviceRefused,
    ExchangeFailed,
    LinkDown,
    Outcome,
    ReadGroup,
    Reading,
    Value,
    WordOrder,
    WriteOutcome,
)
from hil.plc.commands import Arrival, NumberedCommand

TAGS = (
    tag("p.heart", 0),
    tag("p.boot", 1),
    tag("p.version", 2),
    tag("p.pattern", 3, DataType.UDINT),
    tag("p.clock", 5, DataType.UDINT),
    tag("p.ack", 7, DataType.UDINT),
    tag("p.run", 9, writable=True),
    tag("p.cmd", 10, writable=True),
    tag("p.arg", 11, writable=True),
    tag("p.until", 12, DataType.UDINT, writable=True),
    tag("p.id", 14, DataType.UDINT, writable=True),
)
SLOW = (tag("p.temp", 20, scan_class="slow"), tag("p.rail", 21, scan_class="slow", writable=True))
BLOCK = BlockOptions(
    id="p.id", tags=("p.cmd", "p.arg"), ack="p.ack", valid_until="p.until", clock="p.clock", valid_ms=1000
)
PATTERN = 0x01020304


class Plc(FakeDriver):
    """A PLC that keeps the contract."""

    def __init__(self) -> None:
        super().__init__((ReadGroup("fast", TAGS), ReadGroup("slow", SLOW)))
        self.memory |= {"p.boot": 1, "p.version": 3, "p.pattern": PATTERN}
        self.since = self.kept = 0
        self.command = NumberedCommand()
        self.done: list[tuple[Value | None, Value | None, Value | None]] = []
        self.late: list[Value | None] = []
        self.clocked = True

    @property
    def clock(self) -> int:
        return (self.kept + (LoopClock().monotonic_ns() - self.since) // MS) % 2**32

    def program(self, now: int) -> None:
        if self.clocked:
            self.memory["p.clock"] = self.clock

    def executed(self, values: Mapping[str, Value]) -> None:
        super().executed(values)
        number, until = self.memory["p.id"], self.memory["p.until"]
        assert isinstance(number, int)
        assert isinstance(until, int)
        arrival = self.command.arrived(number, until, self.clock)
        if arrival is Arrival.NEW:
            self.done.append((number, self.memory["p.cmd"], self.memory["p.arg"]))
        elif arrival is Arrival.LATE:
            self.late.append(number)
        self.memory["p.ack"] = self.command.last

    def restart(self) -> None:
        """Everything zeroed but the boot counter and what is burnt in; the clock jumps ahead."""
        boots = self.memory["p.boot"]
        assert isinstance(boots, int)
        self.memory = dict.fromkeys(self.memory, 0) | {"p.boot": boots + 1, "p.version": 3, "p.pattern": PATTERN}
        self.kept, self.since = self.clock + 120_000, LoopClock().monotonic_ns()
        self.command.restart()


def run(test: Any, **options: Any) -> tuple[Bench, Plc]:
    plc = Plc()

    async def main(bench: Bench) -> None:
        await asyncio.sleep(0.25)
        await test(bench, plc)

    given = {"blocks": (BLOCK,), "boot_counter": "p.boot", "identity": {"p.version": 3, "p.pattern": PATTERN}}
    return virtual(main, driver=plc, **given | options), plc


def give(bench: Bench, number: int, cmd: int = 2, arg: int = 7) -> None:
    bench.link.set_outputs({"p.cmd": cmd, "p.arg": arg, "p.id": number})


def told(bench: Bench) -> list[tuple[Value, str]]:
    return [(r.value, r.outcome.value) for r in bench.reports if r.tag == "p.id"]


# --- commands


def test_a_command_is_one_write_with_its_validity_and_is_taken_once() -> None:
    async def test(b: Bench, plc: Plc) -> None:
        give(b, 5)
        await asyncio.sleep(0.1)
        blocks = plc.said("block", "write")
        assert len(blocks) == 1
        assert blocks[0].startswith("block p.cmd=2 p.arg=7 p.until=")
        assert blocks[0].endswith(" p.id=5"), "the number last, where there is an order"
        ahead = int(blocks[0].split("p.until=")[1].split()[0]) - plc.clock
        assert 800 <= ahead <= 1000, "never longer than valid_ms from the sending on"
        await asyncio.sleep(2.0)
        assert plc.done == [(5, 2, 7)]
        b.link.set_outputs({"p.id": 5})
        await asyncio.sleep(0.5)
        assert len(plc.said("block")) == 1, "the same number is no new command"
        give(b, 6, cmd=3)
        await asyncio.sleep(0.1)
        assert plc.done == [(5, 2, 7), (6, 3, 7)]
        assert told(b) == [(5, "verified"), (6, "verified")]

    run(test)


def test_what_is_commanded_waits_for_its_number() -> None:
    async def test(b: Bench, plc: Plc) -> None:
        b.link.set_outputs({"p.cmd": 2, "p.arg": 1})
        await asyncio.sleep(0.5)
        assert plc.said("block", "write") == []
        b.link.set_outputs({"p.id": 1})
        b.link.set_outputs({"p.cmd": 9})  # of the next one
        await asyncio.sleep(0.1)
        assert plc.done == [(1, 2, 1)]
        b.link.set_outputs({"p.id": 0})
        await asyncio.sleep(0.1)
        assert len(plc.said("block")) == 1, "0 is no command"

    run(test)


def test_a_command_without_all_its_values_is_refused_and_says_which() -> None:
    async def test(b: Bench, plc: Plc) -> None:
        b.link.set_outputs({"p.cmd": 2, "p.id": 1})
        await asyncio.sleep(3.0)
        assert plc.said("block") == []
        assert {r.outcome for r in b.reports} == {Outcome.REJECTED}
        assert "nobody has asked for a value of p.arg" in b.reports[0].reason

    run(test)


def test_levels_wanted_before_a_command_are_written_before_it() -> None:
    async def test(b: Bench, plc: Plc) -> None:
        plc.write_s = 0.01
        b.link.set_outputs({"p.run": 1})
        b.link.set_outputs({"p.cmd": 2, "p.arg": 1, "p.id": 1, "p.rail": 3})
        b.link.set_outputs({"p.run": 2})
        await asyncio.sleep(0.2)
        order = ["write p.rail=3", "block p.cmd=2", "write p.run=2"]
        assert [" ".join(text.split()[:2]) for text in plc.said("block", "write")] == order

    run(test)


def test_an_unknown_command_that_was_taken_is_found_by_read_back_and_not_sent_again() -> None:
    async def test(b: Bench, plc: Plc) -> None:
        plc.blocks.append("executed")
        give(b, 5)
        await asyncio.sleep(2.0)
        assert len(plc.said("block")) == 1
        assert plc.done == [(5, 2, 7)]
        assert b.link.stats().unknown == 1

    b, _ = run(test)
    assert [o for _, o in told(b)][-1] == "verified"


def test_an_unknown_command_that_was_not_taken_is_sent_again_with_its_number_and_a_new_validity() -> None:
    async def test(b: Bench, plc: Plc) -> None:
        plc.blocks.append(Outcome.UNKNOWN)
        plc.write_s = 0.2
        give(b, 5)
        await asyncio.sleep(1.0)
        first, second = plc.said("block")
        assert first.split()[-1] == second.split()[-1] == "p.id=5"
        assert first != second
        assert plc.done == [(5, 2, 7)]

    b, _ = run(test)
    assert [o for _, o in told(b)][-1] == "verified"


def test_a_command_that_arrives_twice_is_executed_once() -> None:
    """The first one hangs in the network and arrives after the second."""

    async def test(b: Bench, plc: Plc) -> None:
        plc.blocks.append(Outcome.UNKNOWN)
        give(b, 5)
        await asyncio.sleep(0.3)
        text = plc.said("block")[0]
        late = {part.split("=")[0]: int(part.split("=")[1]) for part in text.split()[1:]}
        plc.executed(late)
        plc.executed(late)
        await asyncio.sleep(0.3)
        assert plc.done == [(5, 2, 7)]

    run(test)


def test_a_command_that_arrives_too_late_is_dropped_by_the_plc() -> None:
    async def test(b: Bench, plc: Plc) -> None:
        write = plc._write

        async def frozen(values: Any, words: Any) -> Any:
            await asyncio.sleep(1.2)
            return await write(values, words)

        plc._write = frozen  # type: ignore[method-assign]
        give(b, 5)
        await asyncio.sleep(2.0)
        assert plc.late == [5]
        assert plc.done == []
        assert plc.memory["p.ack"] == 5, "it answers all the same"

    run(test)


def test_a_rejected_command_is_tried_as_long_as_it_is_valid_and_never_after() -> None:
    async def test(b: Bench, plc: Plc) -> None:
        plc.blocks.extend([Outcome.REJECTED] * 100)
        give(b, 5)
        await asyncio.sleep(30.0)
        assert len(plc.said("block")) <= 2
        count = len(plc.said("block"))
        plc.blocks.clear()
        await asyncio.sleep(30.0)
        assert len(plc.said("block")) == count
        assert plc.done == []
        give(b, 6)
        await asyncio.sleep(0.1)
        assert plc.done == [(6, 2, 7)]

    run(test, blocks=(replace(BLOCK, valid_ms=1500),))


def test_a_command_is_not_sent_without_the_plcs_clock() -> None:
    async def test(b: Bench, plc: Plc) -> None:
        plc.clocked = False
        plc.memory["p.clock"] = None
        await asyncio.sleep(0.2)
        give(b, 5)
        await asyncio.sleep(3.0)
        assert plc.said("block") == []
        assert "clock p.clock cannot be read" in b.reports[-1].reason

    run(test)


def test_without_a_clock_number_and_acknowledgement_are_enough() -> None:
    async def test(b: Bench, plc: Plc) -> None:
        plc.command.arrived = lambda number, until, clock: Arrival.OLD  # type: ignore[method-assign]
        plc.blocks.append(Outcome.UNKNOWN)
        give(b, 5)
        await asyncio.sleep(0.5)
        assert plc.said("block") == ["block p.cmd=2 p.arg=7 p.id=5"] * 2
        plc.blocks.append(Outcome.UNKNOWN)
        give(b, 6)
        await asyncio.sleep(0.001)
        plc.memory["p.ack"] = 6  # the answer was lost, and the acknowledgement tells
        await asyncio.sleep(0.5)
        assert len(plc.said("block")) == 3

    b, _ = run(test, blocks=(replace(BLOCK, valid_until=None, clock=None),))
    assert [o for _, o in told(b)][-1] == "verified"


def test_a_command_is_never_sent_again_after_a_loss() -> None:
    async def test(b: Bench, plc: Plc) -> None:
        plc.blocks.append("lost")
        give(b, 5)
        await asyncio.sleep(3.0)
        assert [r.up for r in b.links] == [True, False, True]
        assert len(plc.said("block")) == 1
        assert told(b)[-1] == (5, "unknown")
        assert "is not sent again" in b.reports[-1].reason
        give(b, 6)
        await asyncio.sleep(0.1)
        assert plc.done == [(6, 2, 7)]

    run(test)


def test_a_command_given_while_the_link_is_down_is_refused_at_once_and_for_good() -> None:
    async def test(b: Bench, plc: Plc) -> None:
        plc.connected = False
        plc.connects.extend([LinkDown("wet", "refused")] * 2)
        await asyncio.sleep(0.15)
        assert not b.image.up["wet"]
        give(b, 5)
        await asyncio.sleep(3.0)
        assert b.image.up["wet"]
        assert plc.said("block") == []
        report = next(r for r in b.reports if r.tag == "p.id")
        assert report.outcome is Outcome.REJECTED
        assert "never sent" in report.reason

    run(test)


def test_shutdown_writes_no_part_of_a_command() -> None:
    async def test(b: Bench, plc: Plc) -> None:
        got = await b.link.write_now({"p.run": 0, "p.cmd": 0}, 0.5)
        assert got["p.run"].outcome is Outcome.VERIFIED
        assert got["p.cmd"].outcome is Outcome.REJECTED
        assert plc.said("block", "write") == ["write p.run=0"]

    run(test)


INTEGERS = (DataType.UINT, DataType.INT, DataType.UDINT, DataType.DINT)


@given(st.sampled_from(INTEGERS), st.data())
def test_validity_wraps_around_with_the_plcs_clock(kind: DataType, data: st.DataObject) -> None:
    """The PLC subtracts in its own width; the sign of the difference says whether the time has come."""
    low, high = codec.INTEGER_RANGE[kind]
    span = high - low + 1
    valid_ms = data.draw(st.integers(50, min(60_000, span // 4)))
    clock = data.draw(st.integers(low, high))
    age_ms = data.draw(st.integers(0, 5_000))
    until = valid_until(clock, age_ms * MS + data.draw(st.integers(0, MS - 1)), valid_ms, kind)
    assert low <= until <= high
    for after, valid in ((0, True), (valid_ms, True), (valid_ms + 1, False), (valid_ms + span // 4, False)):
        now = (clock + age_ms + after - low) % span + low
        difference = (until - now) % span
        assert (difference < span // 2) is valid, (clock, age_ms, until, after)


def test_commands_of_blocks_that_cannot_be_are_refused() -> None:
    plc = Plc()
    for block, text in (
        (replace(BLOCK, tags=("p.version",)), "p.version cannot be"),
        (replace(BLOCK, ack="p.none"), "p.none cannot be"),
        (replace(BLOCK, tags=("p.rail",)), "there is a gap"),
    ):
        with pytest.raises(ValueError, match=text):
            Bench(driver=plc, blocks=(block,))


# --- who it is


def test_another_device_after_a_reconnection_is_never_written_to() -> None:
    async def test(b: Bench, plc: Plc) -> None:
        b.link.set_outputs({"p.run": 1})
        await asyncio.sleep(0.5)
        plc.memory |= {"p.version": 4, "p.run": 0}
        plc.connected = False
        await asyncio.sleep(30.0)
        assert plc.said("write") == ["write p.run=1"]
        reason = b.links[-1].reason
        for part in ("p.version at hr:2 is 4; it must be 3", "another device", "nothing is written"):
            assert part in reason
        assert [r.up for r in b.links] == [True, False, False], "lost, then recognised as another one; told once"
        tries = plc.times("connect")[2:]
        assert {y - x for x, y in itertools.pairwise(tries)} <= set(range(2000, 2020)), "at reconnect_max_s"
        plc.memory["p.version"] = 3
        await asyncio.sleep(2.5)
        assert b.image.up["wet"]
        assert plc.said("write") == ["write p.run=1"] * 2

    run(test, reconnect_max_s=2.0)


def test_an_identity_that_changes_under_way_is_a_loss() -> None:
    async def test(b: Bench, plc: Plc) -> None:
        plc.memory["p.version"] = 9
        await asyncio.sleep(0.2)
        assert [r.up for r in b.links] == [True, False]
        assert "identity: p.version" in b.links[-1].reason
        b.link.set_outputs({"p.run": 1})
        await asyncio.sleep(10)
        assert plc.said("write") == []

    run(test)


@pytest.mark.parametrize("kind", [DataType.UDINT, DataType.REAL, DataType.LREAL])
@pytest.mark.parametrize("order", list(WordOrder))
def test_a_wrong_word_order_is_named(kind: DataType, order: WordOrder) -> None:
    mine = tag("p.pattern", 3, kind)
    expected: Value = PATTERN if kind is DataType.UDINT else 12.375
    value, why = codec.decode(mine, codec.encode(replace(mine, word_order=order), expected))
    peer = Peer({"p.pattern": expected}, None, {"p.pattern": mine}, {"p.pattern": (0, 0)})
    text = peer.stranger([Reading((value,), 0, {0: why} if why else {})])
    if order is WordOrder.ABCD:
        assert text == ""
    else:
        assert f"word_order: {order} would fit" in text
        assert "p.pattern at hr:3" in text


def test_identity_compares_by_value_and_takes_no_bad_one() -> None:
    real = tag("p.real", 0, DataType.REAL)
    text = tag("p.serial", 2, DataType.STRING, length=8)
    scaled = tag("p.scaled", 6, DataType.INT, scale=0.1)
    tags = {t.name: t for t in (real, text, scaled)}
    place = {name: (0, n) for n, name in enumerate(tags)}
    peer = Peer({"p.real": 0.1, "p.serial": "A7", "p.scaled": 2}, None, tags, place)
    as_read = codec.decode(real, codec.encode(real, 0.1))[0]
    assert peer.stranger([Reading((as_read, "A7", 2.0), 0)]) == ""
    assert "p.serial at hr:2 is 'B7'" in peer.stranger([Reading((as_read, "B7", 2.0), 0)])
    assert "p.scaled" in peer.stranger([Reading((as_read, "A7", 2.1), 0)])
    bad = Reading((None, "A7", 2.0), 0, {0: "exception 2"})
    assert "cannot be used (exception 2)" in peer.stranger([bad])
    assert peer.changed(0, bad) == "", "on a connection that was recognised, not to be read is not to be another"


# --- restarts


def test_a_restart_between_two_connections_is_told() -> None:
    async def test(b: Bench, plc: Plc) -> None:
        plc.connected = False
        await asyncio.sleep(2.0)
        plc.restart()
        plc.connected = False
        await asyncio.sleep(2.0)
        assert [(r.up, r.restarted) for r in b.links] == [
            (True, False), (False, False), (True, False), (False, False), (True, True),
        ]  # fmt: skip

    run(test)


def test_a_restart_that_breaks_no_connection_is_a_loss_and_outputs_are_compared_anew() -> None:
    async def test(b: Bench, plc: Plc) -> None:
        b.link.set_outputs({"p.run": 1, "p.rail": 4})
        await asyncio.sleep(0.5)
        b.latching = False
        plc.restart()
        await asyncio.sleep(1.0)
        assert plc.said("write") == ["write p.run=1", "write p.rail=4"], "not before the scan has seen it"
        assert plc.times("connect") == plc.times("connect")[:1]
        b.link.set_outputs({"p.run": 0})  # what a scan wants that has seen the loss
        b.latching = True
        await asyncio.sleep(0.5)
        assert plc.said("write")[2:] == ["write p.rail=4"]
        assert [(r.up, r.restarted) for r in b.links] == [(True, False), (False, False), (True, True)]
        assert "restarted: its boot counter p.boot went from 1 to 2" in b.links[1].reason
        assert b.link.stats().restarts == 1

    run(test)


# --- reads and writes at once


def test_a_reading_from_before_a_write_says_nothing_about_it() -> None:
    async def test(b: Bench, plc: Plc) -> None:
        read = plc.read

        async def old(group: int, timeout_s: float) -> Reading:
            before = dict(plc.memory)
            reading = await read(group, timeout_s)
            return replace(reading, values=tuple(before[t.name] for t in plc.groups[group].tags))

        plc.read = old  # type: ignore[method-assign]
        plc.read_s = 0.09
        for n in range(1, 40):
            b.link.set_outputs({"p.run": n})
            await asyncio.sleep(0.037)
            b.link.set_outputs({"p.run": n})  # would be written again if it were held for changed
            await asyncio.sleep(0.11)
        assert plc.said("write") == [f"write p.run={n}" for n in range(1, 40)]

    run(test)


def test_an_unknown_write_is_settled_by_a_reading_from_after_it_only() -> None:
    async def test(b: Bench, plc: Plc) -> None:
        plc.read_s = 0.08
        await asyncio.sleep(0.2)
        while "read" not in plc._busy:  # noqa: ASYNC110 - virtual time
            await asyncio.sleep(0.001)
        plc.writes.append("executed")
        at = len(plc.log)
        b.link.set_outputs({"p.run": 3})
        await asyncio.sleep(0.5)
        assert plc.said("write") == ["write p.run=3"]
        reads = [text for _, text in plc.log[at:] if text == "read 0"]
        assert reads

    b, _ = run(test)
    assert b.reports[-1] == WriteReport("p.run", 3, Outcome.VERIFIED, "found in force by read-back")


class OneWire(Plc):
    """A driver with one wire: a group takes 40 requests, and writes go before what is left of them."""

    def __init__(self) -> None:
        super().__init__()
        self.free = asyncio.Condition()
        self.writing = self.taken = 0

    async def _alone(self, what: str, seconds: float) -> None:
        self.writing += what == "write"
        for _ in range(40 if what == "read" else 1):
            async with self.free:
                while self.taken or (what == "read" and self.writing):
                    await self.free.wait()
                self.taken = 1
            await asyncio.sleep(seconds)
            async with self.free:
                self.taken = 0
                self.writing -= what == "write"
                self.free.notify_all()


def test_writes_do_not_wait_for_a_poll_of_forty_requests() -> None:
    took: list[float] = []

    async def test(b: Bench) -> None:
        plc = b.driver
        await asyncio.sleep(1.0)
        plc.read_s = plc.write_s = 0.01
        loop = asyncio.get_running_loop()
        for n in range(1, 150):
            begun = loop.time()
            b.link.set_outputs({"p.run": n, "p.rail": n})
            while (plc.memory["p.run"], plc.memory["p.rail"]) != (n, n):  # noqa: ASYNC110 - virtual time
                await asyncio.sleep(0.001)
            took.append(loop.time() - begun)
            await asyncio.sleep(0.0733)

    virtual(test, driver=OneWire(), periods_s={"fast": 0.5, "slow": 5.0})
    took.sort()
    assert took[int(len(took) * 0.99)] <= 0.065, "two writes, one request before each and a rest between: not the poll"


def test_a_flood_of_outputs_leaves_half_of_the_wire_to_a_poll_that_is_late() -> None:
    async def test(b: Bench) -> None:
        plc = b.driver
        await asyncio.sleep(1.0)
        plc.read_s = plc.write_s = 0.01
        before = len(plc.times("read"))
        for n in range(1, 4000):
            b.link.set_outputs({"p.run": n, "p.rail": n})
            await asyncio.sleep(0.005)
        # 20 s; a group alone takes 0.4 s
        assert len(plc.times("read")) - before >= 18
        assert len(plc.times("write")) >= 600

    virtual(test, driver=OneWire(), periods_s={"fast": 0.1, "slow": 1.0})


def test_a_fault_in_the_writing_task_ends_the_link_loudly_and_leaves_nothing() -> None:
    async def main() -> None:
        bench = Bench(driver=Plc())

        async def broken(tag: str, value: Value, timeout_s: float) -> Any:
            raise AssertionError("codec bug")

        bench.driver.write = broken  # type: ignore[method-assign]
        bench.link.set_outputs({"p.run": 1})
        with pytest.raises(AssertionError, match="codec bug"):
            await bench.link.run()
        assert not bench.driver.connected
        assert not bench.link.stats().up
        assert asyncio.all_tasks() == {asyncio.current_task()}

    loop = VirtualLoop()
    loop.run_until_complete(main())
    loop.close()


def test_cancelled_at_any_time_with_everything_under_way_nothing_is_left() -> None:
    async def main(after: float) -> None:
        bench = Bench(driver=Plc(), blocks=(BLOCK,), boot_counter="p.boot", identity={"p.version": 3})
        bench.driver.read_s = bench.driver.write_s = 0.013
        task = asyncio.create_task(bench.link.run())
        for n in range(int(after * 100)):
            bench.image.latch(LoopClock().monotonic_ns(), bench.buffer)
            bench.link.set_outputs({"p.run": n, "p.cmd": 1, "p.arg": 2, "p.id": n})
            await asyncio.sleep(0.01)
        await asyncio.sleep(after % 0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert bench.driver.said("")[-1] == "close"
        assert asyncio.all_tasks() == {asyncio.current_task()}

    for n in range(80):
        loop = VirtualLoop()
        loop.run_until_complete(main(n * 0.0047))
        loop.close()


# --- what the driver says


def test_the_driver_may_name_the_pause_before_the_next_attempt() -> None:
    async def test(b: Bench, plc: Plc) -> None:
        plc.connects.extend([LinkDown("wet", "breaker open", retry_s=0.7)] * 5)
        plc.connected = False
        await asyncio.sleep(6.0)
        tries = plc.times("connect")[1:]
        gaps = [y - x for x, y in itertools.pairwise(tries)]
        assert gaps == [701] * 5

    run(test)


def test_a_group_of_messages_is_read_again_only_when_the_last_one_was_latched() -> None:
    async def test(b: Bench) -> None:
        await asyncio.sleep(0.3)
        b.latching = False
        await asyncio.sleep(0.2)
        count = len(b.driver.times("read 1"))
        await asyncio.sleep(2.0)
        assert len(b.driver.times("read 1")) == count
        assert len(b.driver.times("read 0")) > 20, "others go on"
        b.latching = True
        await asyncio.sleep(0.5)
        assert len(b.driver.times("read 1")) > count
        assert b.link.stats().skipped == 0

    plc = Plc()
    plc.groups = (plc.groups[0], ReadGroup("slow", SLOW, each=True))
    virtual(test, driver=plc, periods_s={"fast": 0.1, "slow": 0.05})


def test_links_and_groups_do_not_poll_at_the_same_instant() -> None:
    first: set[int] = set()

    async def test(b: Bench) -> None:
        await asyncio.sleep(0.5)
        first.add(b.driver.times("read 0")[1])

    for n in range(8):
        plc = Plc()
        plc.name, plc.read_s = f"plc_{n}", 0.0
        virtual(test, driver=plc)
    assert len(first) >= 3, "at four points of the period"


def test_figures_of_the_wire_are_in_the_links() -> None:
    async def test(b: Bench, plc: Plc) -> None:
        for _ in range(80):
            await asyncio.sleep(0.1)
            stats = b.link.stats()
        assert stats.requests_per_s == pytest.approx(11.0, abs=1.0)
        assert (stats.breaker, stats.late, stats.strays, stats.missed) == ("closed", 0, 0, 0)

    run(test)


def test_a_link_without_blocks_asks_nothing_of_its_driver() -> None:
    assert Commands((), {}, {}).next_end() is None
    assert LinkReport("wet", True) == LinkReport("wet", True, "", restarted=False)


# --- everything at once


class Hostile(Plc):
    """Fails in every way that the contract of drivers allows; a write of unknown outcome may arrive seconds later."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.lots = random.Random(seed)
        self.calm = False
        self.under_way: set[asyncio.Task[None]] = set()
        self.stranger = False
        self.insults = 0

    async def read(self, group: int, timeout_s: float) -> Reading:
        self.read_s = self.lots.choice((0.001, 0.02, 0.15))
        if not self.calm and self.lots.random() < 0.02:
            self.reads.append(self.lots.choice((ExchangeFailed("wet", "noise"), DeviceRefused("wet", "exception 6"))))
        if not self.calm and self.lots.random() < 0.01:
            self.connected = False
        return await super().read(group, timeout_s)

    async def _write(self, values: Mapping[str, Value], words: Any) -> WriteOutcome:
        self.insults += self.stranger and self.connected
        luck = 1.0 if self.calm else self.lots.random()
        if luck < 0.05:
            words.append(Outcome.REJECTED)
        elif luck < 0.10:
            words.append("executed")
        elif luck < 0.15:
            words.append("lost")
        elif luck < 0.25:
            words.append(Outcome.UNKNOWN)
            self.under_way.add(asyncio.create_task(self._later(dict(values), self.lots.uniform(0.0, 3.0))))
        self.write_s = self.lots.choice((0.001, 0.03, 0.2))
        return await super()._write(values, words)

    async def _later(self, values: Mapping[str, Value], seconds: float) -> None:
        await asyncio.sleep(seconds)
        self.executed(values)


@pytest.mark.parametrize("seed", range(25))
def test_whatever_happens_commands_are_taken_once_in_time_and_levels_hold_in_the_end(seed: int) -> None:
    plc = Hostile(seed)
    asked: dict[Value, int] = {}
    taken: list[tuple[Value | None, int]] = []
    execute = plc.executed

    def noting(values: Mapping[str, Value]) -> None:
        before = len(plc.done)
        execute(values)
        taken.extend((number, LoopClock().monotonic_ns()) for number, _, _ in plc.done[before:])

    plc.executed = noting  # type: ignore[method-assign]

    async def test(b: Bench) -> None:
        lots = random.Random(-seed)
        plc.calm = True
        await asyncio.sleep(0.5)
        asked[1] = LoopClock().monotonic_ns()
        give(b, 1)
        await asyncio.sleep(0.5)
        assert taken
        plc.calm = False
        for number in range(2, 120):
            b.link.set_outputs({"p.run": number % 7, "p.rail": number // 10})
            if lots.random() < 0.5:
                asked[number] = LoopClock().monotonic_ns()
                give(b, number)
            if not plc.stranger and lots.random() < 0.02:
                plc.restart()
            if lots.random() < 0.02:
                plc.stranger = not plc.stranger
                plc.memory["p.version"] = 9 if plc.stranger else 3
                plc.connected = False
            b.latching = lots.random() < 0.95
            await asyncio.sleep(lots.choice((0.02, 0.1, 0.5)))
        plc.stranger, plc.memory["p.version"] = False, 3
        plc.calm = b.latching = True
        await asyncio.sleep(20.0)
        b.link.set_outputs({"p.run": 5, "p.rail": 4})
        await asyncio.sleep(35.0)
        assert (plc.memory["p.run"], plc.memory["p.rail"]) == (5, 4)
        assert b.image.up["wet"]
        assert not [task for task in plc.under_way if not task.done()]

    virtual(test, driver=plc, blocks=(BLOCK,), boot_counter="p.boot", identity={"p.version": 3}, reconnect_max_s=1.0)
    assert plc.insults == 0, "nothing was written to another PLC"
    assert len({number for number, _ in taken}) == len(taken)
    worst = max(at - asked[number] for number, at in taken if number is not None)
    assert worst <= 2 * BLOCK.valid_ms * MS + 50 * MS, "sent within valid_ms, and valid for as long"


def test_a_restart_is_told_even_when_the_link_is_lost_again_before_the_scan_looks() -> None:
    async def test(b: Bench, plc: Plc) -> None:
        plc.restart()
        while not (b.links and not b.links[-1].up):  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        b.latching = False
        while not b.link.stats().up:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        plc.connected = False
        while b.link.stats().up:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        b.latching = True
        await asyncio.sleep(3.0)
        assert [(r.up, r.restarted) for r in b.links[-2:]] == [(False, False), (True, True)]
        plc.connected = False
        await asyncio.sleep(3.0)
        assert [(r.up, r.restarted) for r in b.links[-2:]] == [(False, False), (True, False)], "once"

    run(test)


def test_a_command_once_in_doubt_is_never_called_certainly_not_executed() -> None:
    async def test(b: Bench, plc: Plc) -> None:
        plc.blocks.append(Outcome.UNKNOWN)
        plc.blocks.extend([Outcome.REJECTED] * 5)
        give(b, 5)
        await asyncio.sleep(5.0)
        assert told(b)[-1] == (5, "unknown")
        assert "an earlier attempt may still be executed" in b.reports[-1].reason

    run(test)


def test_no_command_goes_out_after_the_safe_values_of_a_shutdown() -> None:
    async def test(b: Bench, plc: Plc) -> None:
        plc.blocks.append(Outcome.REJECTED)
        give(b, 5)
        await asyncio.sleep(0.3)
        got = await b.link.write_now({"p.run": 0}, 0.5)
        assert got["p.run"].outcome is Outcome.VERIFIED
        await asyncio.sleep(3.0)
        assert plc.done == []
        assert plc.said("write", "block")[-1] == "write p.run=0"

    run(test, blocks=(replace(BLOCK, valid_ms=2000),))
