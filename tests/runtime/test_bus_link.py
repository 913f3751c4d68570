"""The link over a driver that does as it is told, in virtual time: the event loop's clock jumps to the next timer."""

from __future__ import annotations

import asyncio
import itertools
import random
from dataclasses import replace
from typing import Any

import pytest
from link_rig import GROUPS, Bench, FakeDriver, LoopClock, VirtualLoop, virtual

from controller.core.image import InputBuffer, Layout, LinkReport, WriteReport
from controller.runtime.bus import Link, LinkOptions
from controller.runtime.bus_state import HeartbeatOptions
from drivers.port import DeviceRefused, ExchangeFailed, LinkDown, Outcome, Reading

HEART = HeartbeatOptions(read="p.heart", write="p.life", period_s=0.2, timeout_s=0.5)


def test_up_only_after_every_group_was_read() -> None:
    async def test(b: Bench) -> None:
        b.driver.memory["p.temp"] = 21
        b.link.set_outputs({"p.run": 1})
        await asyncio.sleep(0.05)
        assert b.driver.said("")[:3] == ["connect", "read 0", "read 1"]
        assert b.driver.said("write") == ["write p.run=1"]
        assert b.driver.times("write")[0] >= b.driver.times("read 1")[0]
        assert b.links == [LinkReport("wet", True)]
        assert b.value("p.temp") == 21
        assert b.image.up["wet"]

    b = virtual(test)
    assert b.buffer.links["wet"] == LinkReport("wet", False, "the link was shut down")


def test_polls_keep_to_an_absolute_schedule() -> None:
    async def test(b: Bench) -> None:
        b.driver.read_s = 0.03
        await asyncio.sleep(5.0)
        fast = b.driver.times("read 0")[1:]
        assert len(fast) in (49, 50)
        late = [(at - fast[0]) % 100 for at in fast]
        assert max(late) <= 30, "a poll may wait for the one before it, but the schedule does not drift"
        assert len(b.driver.times("read 1")) in (5, 6)
        assert b.link.stats().skipped == 0

    virtual(test)


def test_missed_periods_are_skipped_counted_and_never_caught_up() -> None:
    async def test(b: Bench) -> None:
        await asyncio.sleep(1.05)
        b.driver.read_s = 0.35
        await asyncio.sleep(0.5)
        b.driver.read_s = 0.001
        await asyncio.sleep(1.0)
        skipped = b.link.stats().skipped
        assert 3 <= skipped <= 8
        recent = [at for at in b.driver.times("read 0") if at > 1700]
        assert all(b - a == 100 for a, b in itertools.pairwise(recent)), recent

    virtual(test)


def test_reconnects_with_growing_jittered_capped_delays() -> None:
    async def test(b: Bench) -> None:
        b.driver.connects.extend([LinkDown("wet", "refused")] * 1000)
        await asyncio.sleep(60)
        times = b.driver.times("connect")
        gaps = [y - x for x, y in itertools.pairwise(times)]
        assert gaps[0] < 1000
        assert max(gaps) <= 2001
        assert len(set(gaps[5:])) > 5, "without jitter all links of a plant knock at once"
        assert len(times) < 80
        assert b.links == [LinkReport("wet", False, "wet: refused")], "one report, not one per attempt"
        b.driver.connects.clear()
        await asyncio.sleep(2.1)
        assert b.links[1:] == [LinkReport("wet", True)]
        stats = b.link.stats()
        assert (stats.up, stats.failed, stats.reconnects) == (True, len(times), 0)

    virtual(test, reconnect_max_s=2.0)


def test_after_a_loss_only_differences_are_written() -> None:
    async def test(b: Bench) -> None:
        b.link.set_outputs({"p.run": 1, "p.speed": 0.1, "p.rail": 7})
        await asyncio.sleep(0.5)
        assert len(b.driver.said("write")) == 3
        b.driver.memory["p.speed"] = 0.10000000149011612  # what a REAL gives back
        b.driver.memory["p.run"] = 0  # the PLC restarted
        b.driver.connected = False
        await asyncio.sleep(2.0)
        assert b.driver.said("write")[3:] == ["write p.run=1"]
        assert [r.up for r in b.links] == [True, False, True]
        assert "cable pulled" in b.links[1].reason
        assert b.link.stats().reconnects == 1

    virtual(test)


def test_no_output_before_the_scan_has_seen_the_loss() -> None:
    """Else a run command from before would start a PLC that restarted meanwhile, between two scans."""

    async def test(b: Bench) -> None:
        b.link.set_outputs({"p.run": 1})
        await asyncio.sleep(0.5)
        b.latching = False
        b.driver.memory["p.run"] = 0
        b.driver.connected = False
        await asyncio.sleep(3.0)
        assert b.driver.connected, "the connection itself may come back"
        assert b.driver.said("write") == ["write p.run=1"]
        b.latching = True
        b.link.set_outputs({"p.run": 0})  # what a scan that has seen the loss wants
        await asyncio.sleep(1.0)
        assert b.driver.said("write") == ["write p.run=1"]
        assert b.image.up["wet"]

    virtual(test)


def test_levels_are_written_once_and_only_the_latest() -> None:
    async def test(b: Bench) -> None:
        await asyncio.sleep(0.2)
        b.driver.write_s = 0.02
        b.link.set_outputs({"p.run": 1})
        await asyncio.sleep(0.005)
        b.link.set_outputs({"p.run": 2})
        b.link.set_outputs({"p.run": 3})
        await asyncio.sleep(0.5)
        b.link.set_outputs({"p.run": 3})
        await asyncio.sleep(0.5)
        assert b.driver.said("write") == ["write p.run=1", "write p.run=3"]
        assert b.reports[-1] == WriteReport("p.run", 3, Outcome.VERIFIED)

    virtual(test)


def test_a_rejected_write_is_reported_and_tried_again_after_a_growing_pause() -> None:
    async def test(b: Bench) -> None:
        await asyncio.sleep(0.2)
        b.driver.writes.extend([Outcome.REJECTED] * 3)
        b.link.set_outputs({"p.run": 9})
        await asyncio.sleep(10)
        times = b.driver.times("write")
        assert [round((y - x) / 1000) for x, y in itertools.pairwise(times)] == [1, 2, 4]
        assert [r.outcome for r in b.reports] == [Outcome.REJECTED] * 3 + [Outcome.VERIFIED]
        assert b.reports[0].reason == "as told: rejected"
        b.driver.writes.extend([Outcome.REJECTED])
        b.link.set_outputs({"p.run": 10})
        await asyncio.sleep(0.1)
        b.link.set_outputs({"p.run": 11})
        await asyncio.sleep(0.1)
        assert b.driver.memory["p.run"] == 11, "a new value does not wait for the old one's pause"

    virtual(test)


def test_nan_wanted_for_ever_is_no_flood() -> None:
    async def test(b: Bench) -> None:
        await asyncio.sleep(0.2)
        b.driver.writes.extend([Outcome.REJECTED] * 1000)
        for _ in range(500):
            b.link.set_outputs({"p.speed": float("nan")})
            await asyncio.sleep(0.01)
        assert len(b.driver.said("write")) <= 4

    virtual(test)


@pytest.mark.parametrize(("word", "writes"), [("executed", 1), (Outcome.UNKNOWN, 2)])
def test_an_unknown_write_is_read_back_before_anything_else(word: Any, writes: int) -> None:
    async def test(b: Bench) -> None:
        await asyncio.sleep(0.25)
        b.driver.writes.append(word)
        b.link.set_outputs({"p.rail": 5})
        await asyncio.sleep(0.1)
        after = b.driver.said("")[b.driver.said("").index("write p.rail=5") :]
        assert after[1] == "read 1", "the group of the tag, not the one that is due"
        assert len(b.driver.said("write")) == writes
        assert b.driver.memory["p.rail"] == 5
        assert b.link.stats().unknown == 1

    b = virtual(test)
    assert b.reports[-1].outcome is Outcome.VERIFIED


def test_an_unknown_write_that_was_not_executed_is_made_up_for_as_soon_as_the_link_is_back() -> None:
    async def test(b: Bench) -> None:
        await asyncio.sleep(0.25)
        b.driver.writes.append("lost")
        b.link.set_outputs({"p.rail": 5})
        await asyncio.sleep(2)
        assert b.driver.said("write") == ["write p.rail=5"] * 2
        up = next(at for at, what in reversed(b.driver.log) if what == "connect")
        assert b.driver.times("write")[1] - up < 50

    virtual(test)


def test_an_unknown_write_on_a_lost_link_is_settled_by_the_reconnection() -> None:
    async def test(b: Bench) -> None:
        await asyncio.sleep(0.25)
        b.driver.writes.append("lost")
        b.link.set_outputs({"p.rail": 5})
        await asyncio.sleep(0.01)
        b.driver.memory["p.rail"] = 5  # it had been executed all the same
        await asyncio.sleep(2)
        assert b.driver.said("write") == ["write p.rail=5"]
        assert [r.up for r in b.links] == [True, False, True]

    virtual(test)


def test_a_refused_group_is_bad_with_its_reason_and_the_others_go_on() -> None:
    async def test(b: Bench) -> None:
        await asyncio.sleep(0.25)
        b.driver.reads.append(DeviceRefused("wet", "exception 2, illegal data address"))
        await asyncio.sleep(0.1)
        assert "illegal data address" in (b.why("p.level") or "")
        assert b.why("p.temp") is None
        await asyncio.sleep(0.1)
        assert b.why("p.level") is None
        assert b.link.stats().refused == 1
        assert b.links == [LinkReport("wet", True)]

    virtual(test)


def test_a_failed_exchange_is_survived_and_goes_stale_if_it_lasts() -> None:
    async def test(b: Bench) -> None:
        await asyncio.sleep(0.25)
        b.driver.reads.append(ExchangeFailed("wet", "no answer", timed_out=True))
        await asyncio.sleep(0.3)
        assert b.why("p.level") is None
        assert b.links == [LinkReport("wet", True)]
        assert b.link.stats().timeouts == 1
        b.driver.reads.extend([ExchangeFailed("wet", "no answer")] * 20)
        await asyncio.sleep(0.7)
        assert "stale" in (b.why("p.level") or "")

    virtual(test)


def test_writes_do_not_starve_polls_nor_polls_writes() -> None:
    async def test(b: Bench) -> None:
        await asyncio.sleep(0.2)
        b.driver.read_s, b.driver.write_s = 0.3, 0.25
        for n in range(400):
            b.link.set_outputs({"p.run": n, "p.rail": n})
            await asyncio.sleep(0.05)
        reads, writes = len(b.driver.times("read 0")), len(b.driver.times("write"))
        assert reads > 15
        assert writes > 15

    virtual(test)


def test_life_signs_come_from_completed_scans_only() -> None:
    async def test(b: Bench) -> None:
        await asyncio.sleep(0.5)
        assert b.driver.said("write") == []
        b.beating = True
        await asyncio.sleep(2.0)
        times = b.driver.times("write p.life")
        assert len(times) in (10, 11)
        assert all(200 <= y - x <= 230 for x, y in itertools.pairwise(times))
        written = [int(w.split("=")[1]) for w in b.driver.said("write p.life")]
        assert written == sorted(set(written))
        b.beating = False
        await asyncio.sleep(0.3)
        before = len(b.driver.times("write"))
        await asyncio.sleep(2.0)
        assert len(b.driver.times("write")) == before, "a stalled scan must be seen by the PLC"
        assert b.reports == []

    virtual(test, heartbeat=HEART)


def test_life_sign_wraps_and_an_old_one_is_not_written_to_a_new_connection() -> None:
    async def test(b: Bench) -> None:
        b.link.beat(65536 * 3 + 5)
        await asyncio.sleep(0.3)
        assert b.driver.said("write") == []
        b.link.beat(65536 * 3 + 6)
        await asyncio.sleep(0.3)
        assert b.driver.said("write") == ["write p.life=6"]
        b.driver.writes.extend([Outcome.REJECTED] * 2)
        for n in (7, 8, 9, 10):
            b.link.beat(n)
            await asyncio.sleep(0.25)
        told = [("p.life", Outcome.REJECTED), ("p.life", Outcome.VERIFIED)]
        assert [(r.tag, r.outcome) for r in b.reports] == told, "its beginning and its end only"

    virtual(test, heartbeat=HEART)


def test_a_plc_that_stops_counting_is_down_until_it_counts_again() -> None:
    async def test(b: Bench) -> None:
        b.link.set_outputs({"p.run": 1})
        await asyncio.sleep(1.0)
        assert b.image.up["wet"]
        b.driver.counting = False
        await asyncio.sleep(1.0)
        assert not b.image.up["wet"]
        assert "PLC stopped counting: p.heart has been" in b.links[-1].reason
        assert "stopped counting" in (b.why("p.temp") or "")
        reads = len(b.driver.times("read 0"))
        b.driver.memory["p.run"] = 0
        await asyncio.sleep(1.0)
        assert len(b.driver.times("read 0")) - reads >= 9, "it must be polled on, to see it come back"
        assert b.why("p.level") is not None, "its values are not to be used meanwhile"
        assert b.driver.said("write") == ["write p.run=1"]
        b.driver.counting = True
        await asyncio.sleep(0.5)
        assert [r.up for r in b.links] == [True, False, True]
        assert b.why("p.level") is None
        assert b.driver.said("write") == ["write p.run=1"] * 2, "it may have restarted: compared and written again"
        assert b.driver.times("connect") == b.driver.times("connect")[:1]

    virtual(test, heartbeat=HEART)


def test_a_plc_that_never_counts_never_comes_up() -> None:
    async def test(b: Bench) -> None:
        b.driver.counting = False
        b.link.set_outputs({"p.run": 1})
        await asyncio.sleep(5.0)
        assert [r.up for r in b.links] == [False]
        assert b.driver.said("write") == []

    virtual(test, heartbeat=HEART)


def test_write_now_reports_every_tag_within_the_deadline() -> None:
    async def test(b: Bench) -> None:
        b.link.set_outputs({"p.run": 1, "p.rail": 3})
        await asyncio.sleep(0.5)
        b.driver.writes.extend([Outcome.VERIFIED, Outcome.REJECTED])
        got = await b.link.write_now({"p.run": 0, "p.rail": 3}, 0.5)
        assert got["p.run"] == WriteReport("p.run", 0, Outcome.VERIFIED)
        assert got["p.rail"].outcome is Outcome.REJECTED
        assert b.driver.said("write")[2:] == ["write p.run=0", "write p.rail=3"], "also what is confirmed already"
        b.driver.write_s = 0.3
        got = await b.link.write_now({"p.run": 0, "p.rail": 0, "p.speed": 0.0}, 0.4)
        assert [r.outcome for r in got.values()] == [Outcome.VERIFIED, Outcome.UNKNOWN, Outcome.REJECTED]
        assert "not done within 0.4 s" in got["p.rail"].reason

    virtual(test)


def test_write_now_takes_no_answer_meant_for_an_older_value() -> None:
    async def test(b: Bench) -> None:
        await asyncio.sleep(0.3)
        b.driver.write_s = 0.05
        b.link.set_outputs({"p.run": 1})
        await asyncio.sleep(0.01)
        got = await b.link.write_now({"p.run": 0}, 1.0)
        assert got["p.run"] == WriteReport("p.run", 0, Outcome.VERIFIED)
        assert b.driver.memory["p.run"] == 0

    virtual(test)


def test_write_now_without_a_link_says_so_at_once() -> None:
    async def test(b: Bench) -> None:
        b.driver.connects.extend([LinkDown("wet", "refused")] * 100)
        await asyncio.sleep(1.0)
        before = asyncio.get_running_loop().time()
        got = await b.link.write_now({"p.run": 0}, 5.0)
        assert asyncio.get_running_loop().time() == before
        assert got["p.run"].outcome is Outcome.REJECTED
        assert "refused" in got["p.run"].reason

    virtual(test)


def test_a_fault_of_ours_ends_the_task_loudly_and_closes() -> None:
    async def main() -> None:
        bench = Bench()
        bench.driver.reads.extend([None, None, AssertionError("decoder bug")])
        with pytest.raises(AssertionError, match="decoder bug"):
            await bench.link.run()
        assert not bench.driver.connected
        assert not bench.link.stats().up

    loop = VirtualLoop()
    loop.run_until_complete(main())
    loop.close()


def test_wiring_faults_are_refused() -> None:
    driver, buffer = FakeDriver(), InputBuffer(Layout([("wet", GROUPS)], {"fast": 1, "slow": 1}))
    options = LinkOptions(periods_s={"fast": 0.1, "slow": 1.0})
    link = Link(driver, buffer, LoopClock(), options, random.Random(1))
    for name in ("p.level", "p.other"):
        with pytest.raises(KeyError):
            link.set_outputs({name: 1})
    for heartbeat, text in (
        (HeartbeatOptions(read="p.none"), "not a tag of this PLC"),
        (HeartbeatOptions(write="p.level"), "writable, unscaled integer"),
        (HeartbeatOptions(write="p.speed"), "writable, unscaled integer"),
        (HeartbeatOptions(read="p.temp", timeout_s=1.0), "too seldom"),
    ):
        with pytest.raises(ValueError, match=text):
            Link(driver, buffer, LoopClock(), replace(options, heartbeat=heartbeat), random.Random(1))


def test_cancelled_at_any_time_it_closes_and_leaves_nothing() -> None:
    async def main(after: float) -> None:
        bench = Bench(heartbeat=HEART)
        task = asyncio.create_task(bench.link.run())
        bench.link.set_outputs({"p.run": 1})
        for n in range(int(after * 100)):
            bench.image.latch(LoopClock().monotonic_ns(), bench.buffer)
            bench.link.beat(n)
            await asyncio.sleep(0.01)
        await asyncio.sleep(after % 0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert bench.driver.said("")[-1] == "close"
        assert asyncio.all_tasks() == {asyncio.current_task()}

    for n in range(60):
        loop = VirtualLoop()
        loop.run_until_complete(main(n * 0.0067))
        loop.close()


def test_what_the_plc_changed_by_itself_is_written_again_only_when_asked_again() -> None:
    async def test(b: Bench) -> None:
        await asyncio.sleep(0.2)
        b.link.set_outputs({"p.run": 7})
        await asyncio.sleep(0.3)
        b.driver.memory["p.run"] = 5  # somebody at the PLC's panel
        await asyncio.sleep(1.0)
        assert b.value("p.run") == 5
        assert b.driver.said("write") == ["write p.run=7"], "nobody asked: it is not fought over"
        b.link.set_outputs({"p.run": 7})
        await asyncio.sleep(0.3)
        assert b.driver.said("write") == ["write p.run=7"] * 2
        assert b.value("p.run") == 7

    virtual(test)


def test_a_write_that_the_plc_lost_before_the_next_poll_is_not_held_for_confirmed() -> None:
    """Between two polls nothing changed on the wire, so the driver hands out the very tuple of before the write."""

    async def test(b: Bench) -> None:
        read, last = b.driver.read, dict[int, Reading]()
        b.driver.counting = False

        async def same_tuple(group: int, timeout_s: float) -> Reading:
            reading, before = await read(group, timeout_s), last.get(group)
            if before is not None and before.values == reading.values:
                reading = replace(reading, values=before.values)
            last[group] = reading
            return reading

        b.driver.read = same_tuple  # type: ignore[method-assign]
        await asyncio.sleep(0.35)
        b.link.set_outputs({"p.run": 7})
        await asyncio.sleep(0.005)
        b.driver.memory["p.run"] = 0
        await asyncio.sleep(0.5)
        b.link.set_outputs({"p.run": 7})  # the scan sees 0 and asks again
        await asyncio.sleep(0.5)
        assert b.value("p.run") == 7
        assert b.driver.said("write") == ["write p.run=7"] * 2

    virtual(test)


def test_a_link_that_was_up_for_a_while_is_tried_again_at_once_and_a_flapping_one_is_not() -> None:
    async def test(b: Bench) -> None:
        await asyncio.sleep(1.0)
        b.driver.connected = False
        await asyncio.sleep(0.2)
        assert [r.up for r in b.links] == [True, False, True], (
            "a single lost answer must not cost a quarter of a second"
        )
        before = len(b.driver.times("connect"))
        end = asyncio.get_running_loop().time() + 2.0
        while asyncio.get_running_loop().time() < end:
            if b.link.stats().up:
                b.driver.connected = False
            await asyncio.sleep(0.001)
        assert 5 < len(b.driver.times("connect")) - before <= 41, "at most one connection in 50 ms"

    virtual(test)


def test_a_newer_value_that_waits_is_not_lost_when_the_plc_changes_the_older_one() -> None:
    async def test(b: Bench) -> None:
        await asyncio.sleep(0.25)
        b.link.set_outputs({"p.run": 1})
        await asyncio.sleep(0.3)
        b.driver.write_s = 0.3
        b.link.set_outputs({"p.rail": 5})  # keeps the writer busy over a poll
        await asyncio.sleep(0.02)
        b.driver.memory["p.run"] = 9  # somebody at the PLC's panel
        b.link.set_outputs({"p.run": 2})
        await asyncio.sleep(2.0)
        assert b.driver.said("write") == ["write p.run=1", "write p.rail=5", "write p.run=2"]
        assert b.driver.memory["p.run"] == 2

    virtual(test)
