"""The bus over a paper wire, in virtual time: who is asked next, and what a silent unit costs its neighbours."""

from __future__ import annotations

import asyncio
import functools
import random
import selectors
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from typing import Any

import pytest

from drivers.modbus.bus import READ, WRITE, Bus, Unit
from drivers.modbus.pdu import Call, ExceptionReply
from drivers.modbus.wire import Exchange, OpenFailed, Owner
from drivers.port import ExchangeFailed, LinkDown

MS = 1_000_000
TIMEOUT_NS = 100 * MS


class Skipping(selectors.SelectSelector):
    """Does not wait: moves the clock to the next timer."""

    now = 1000.0

    def select(self, timeout: float | None = None) -> list[Any]:
        ready = super().select(0)
        if not ready:
            assert timeout is not None, "everything waits for something that never comes"
            self.now += timeout
        return ready


class Virtual(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self.clock = Skipping()
        super().__init__(self.clock)

    def time(self) -> float:
        return self.clock.now


def virtual(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run a test on its own virtual clock; it must leave no task behind."""

    @functools.wraps(test)
    def run_it(*args: Any, **kwargs: Any) -> None:
        async def main() -> None:
            await test(*args, **kwargs)
            await asyncio.sleep(0)
            assert asyncio.all_tasks() == {asyncio.current_task()}, "left behind"

        with asyncio.Runner(loop_factory=Virtual) as runner:
            runner.run(main())

    return run_it


def now() -> float:
    return asyncio.get_running_loop().time()


def now_ns() -> int:
    return round(now() * 1e9)


class PaperWire:
    """Answers each request after ``answer_s``, one after the other when ``window`` is 1; ``silent`` units do not."""

    endpoint = "paper"
    single_writes = True

    def __init__(self, window: int = 1, answer_s: float = 0.005) -> None:
        self.window, self.answer_s = window, answer_s
        self.silent: set[int] = set()
        self.refusing: dict[int, int] = {}
        self.rest_ns = 0
        self.asked: list[tuple[int, str]] = []
        self.asked_at: list[float] = []
        self.opened = self.closed = 0
        self.opening: Callable[[], Awaitable[None]] | None = None
        self._timers: dict[Exchange, asyncio.TimerHandle] = {}
        self.owner: Owner

    @property
    def under_way(self) -> int:
        return len(self._timers)

    async def open(self, timeout_s: float, owner: Owner) -> None:
        self.owner = owner
        self.opened += 1
        if self.opening is not None:
            await self.opening()

    def start(self, exchanges: Sequence[Exchange]) -> None:
        assert len(exchanges) <= self.window - self.under_way
        for exchange in exchanges:
            self.asked.append((exchange.unit, exchange.call.what))
            self.asked_at.append(now())
            exchange.sent_ns = now_ns()
            silent = exchange.unit in self.silent
            wait = exchange.timeout_ns / 1e9 if silent else self.answer_s
            self._timers[exchange] = asyncio.get_running_loop().call_later(wait, self._end, exchange, silent)

    def _end(self, exchange: Exchange, silent: bool) -> None:
        del self._timers[exchange]
        if exchange.job is None:
            self.owner.late(exchange.unit)
        elif silent:
            self.owner.failed(exchange, f"{exchange.call.what}: silence", timed_out=True, rest_ns=self.rest_ns)
        elif exchange.unit in self.refusing:
            self.owner.refused(exchange, ExceptionReply(self.refusing[exchange.unit]))
        else:
            self.owner.answered(exchange, exchange.call.what.encode())

    def abandon(self, exchange: Exchange) -> None:
        """Stays occupied, as a serial line does."""

    def fail(self, exchange: Exchange, *, sent: bool) -> None:
        self._timers.pop(exchange).cancel()
        self.owner.failed(exchange, "failed", sent=sent)

    def cut(self) -> None:
        self._drop()
        self.owner.lost("cut")

    async def close(self) -> None:
        self.closed += 1
        self._drop()

    def _drop(self) -> None:
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()


def call(what: str) -> Call:
    return Call(b"\x03\0\0\0\1", 4, b"\x03\2", what)


def exchanges(unit: Unit, what: str, count: int = 1) -> list[Exchange]:
    made = [Exchange(call(f"{what}{i}" if count > 1 else what), unit.number) for i in range(count)]
    for i, exchange in enumerate(made):
        exchange.index = i
    return made


async def run(unit: Unit, what: str, count: int = 1, rank: int = READ, timeout_ns: int = TIMEOUT_NS) -> list[str]:
    job = await unit.run(exchanges(unit, what, count), timeout_ns, rank)
    return [str(reply) if isinstance(reply, ExceptionReply) else reply.decode() for reply in job.data]


async def line(count: int, wire: PaperWire) -> tuple[Bus, list[Unit]]:
    bus = Bus(wire, "look at it", now_ns)
    units = [bus.unit(n, f"plc{n}") for n in range(1, count + 1)]
    for unit in units:
        await unit.open(1.0, call("probe"))
    return bus, units


# --- whose turn it is


@virtual
async def test_units_take_turns_request_by_request() -> None:
    wire = PaperWire()
    _, (one, two, three) = await line(3, wire)
    await asyncio.gather(run(one, "a", 3), run(two, "b", 2), run(three, "c"))
    # a0 is on the wire before b and c come; a1 has its turn before them then, and no other of a has.
    assert [what for _, what in wire.asked] == ["a0", "a1", "b0", "c", "a2", "b1"]


@virtual
async def test_a_write_is_the_next_request_on_the_wire() -> None:
    wire = PaperWire()
    _, (one, two) = await line(2, wire)
    reading = asyncio.create_task(run(one, "r", 80))
    await asyncio.sleep(wire.answer_s * 3.5)
    await run(two, "w2", rank=WRITE)
    await asyncio.gather(run(one, "w1", rank=WRITE), run(two, "w3", rank=WRITE))
    assert [what for _, what in wire.asked[4:7]] == ["w2", "r4", "w1"], "each as soon as the wire is free"
    assert wire.asked[7][1] == "w3"
    assert len(await reading) == 80


@virtual
async def test_as_many_under_way_as_the_window_allows() -> None:
    wire = PaperWire(window=4)
    _, (one, two) = await line(2, wire)
    start = now()
    got = await asyncio.gather(run(one, "a", 8), run(two, "b", 8))
    assert [len(data) for data in got] == [8, 8]
    assert got[0] == [f"a{i}" for i in range(8)]
    assert now() - start == pytest.approx(4 * wire.answer_s)


@virtual
async def test_a_cancelled_job_asks_no_more_and_the_line_goes_on() -> None:
    wire = PaperWire()
    _, (one, two) = await line(2, wire)
    task = asyncio.create_task(run(one, "a", 9))
    other = asyncio.create_task(run(two, "b", 2))
    await asyncio.sleep(wire.answer_s * 1.5)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await other == ["b0", "b1"]
    assert [what for _, what in wire.asked] == ["a0", "a1", "b0", "b1"]
    assert one.stats().late == 1


@virtual
async def test_a_resting_unit_waits_and_its_neighbours_do_not() -> None:
    wire = PaperWire()
    wire.rest_ns = 150 * MS
    _, (one, two) = await line(2, wire)
    wire.silent.add(1)
    with pytest.raises(ExchangeFailed):
        await run(one, "a")
    wire.silent.clear()
    start = now()
    slow = asyncio.create_task(run(one, "late", rank=WRITE))
    await run(two, "b", 3)
    assert now() - start == pytest.approx(3 * wire.answer_s)
    assert await slow == ["late"]
    assert now() - start == pytest.approx(0.15 + wire.answer_s)
    wire.silent.add(1)
    with pytest.raises(ExchangeFailed):
        await run(one, "a")
    wire.silent.clear()
    start = now()
    assert await run(one, "nobody else asks anything") == ["nobody else asks anything"]
    assert now() - start == pytest.approx(0.15 + wire.answer_s)


@virtual
async def test_what_the_wire_could_not_send_is_known_not_to_be_sent() -> None:
    wire = PaperWire()
    _, (one, _) = await line(2, wire)
    write = exchanges(one, "w")
    task = asyncio.create_task(one.run(write, TIMEOUT_NS, WRITE))
    await asyncio.sleep(0.001)
    assert write[0].sent_ns
    wire.fail(write[0], sent=False)
    with pytest.raises(ExchangeFailed):
        await task
    assert write[0].sent_ns == 0


# --- one wire, many users


@virtual
async def test_units_that_open_together_share_one_attempt() -> None:
    wire = PaperWire()
    wire.opening = lambda: asyncio.sleep(0.1)
    bus = Bus(wire, "", now_ns)
    units = [bus.unit(n, f"plc{n}") for n in range(5)]
    await asyncio.gather(*(unit.open(1.0, call("probe")) for unit in units))
    assert wire.opened == 1
    assert now() == pytest.approx(1000.1)
    for unit in units[:-1]:
        await unit.close()
    assert wire.closed == 0, "somebody still uses it"
    await units[-1].close()
    assert wire.closed == 1


@virtual
async def test_a_failed_attempt_fails_for_all_who_waited_for_it() -> None:
    wire = PaperWire()

    async def fail() -> None:
        await asyncio.sleep(0.1)
        raise OpenFailed("nobody there", "check it")

    wire.opening = fail
    bus = Bus(wire, "", now_ns)
    units = [bus.unit(n, f"plc{n}") for n in range(16)]
    results = await asyncio.gather(*(unit.open(1.0, call("probe")) for unit in units), return_exceptions=True)
    assert [str(r) for r in results] == [f"plc{n} (paper unit {n}): nobody there; check it" for n in range(16)]
    assert (wire.opened, now()) == (1, pytest.approx(1000.1))
    with pytest.raises(LinkDown):
        await units[0].open(1.0, call("probe"))
    assert wire.opened == 2, "who comes later tries anew"


@virtual
async def test_a_cancelled_opener_does_not_cancel_the_others() -> None:
    wire = PaperWire()
    wire.opening = lambda: asyncio.sleep(0.1)
    bus = Bus(wire, "", now_ns)
    one, two = bus.unit(1, "one"), bus.unit(2, "two")
    first = asyncio.create_task(one.open(1.0, call("probe")))
    second = asyncio.create_task(two.open(1.0, call("probe")))
    await asyncio.sleep(0.05)
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    assert first.cancelled()
    await one.close()
    await second
    assert await run(two, "b") == ["b"]
    await two.close()


@virtual
async def test_an_attempt_bounds_the_wait_of_the_next() -> None:
    wire = PaperWire()
    wire.opening = lambda: asyncio.sleep(5.0)
    bus = Bus(wire, "", now_ns)
    one, two = bus.unit(1, "one"), bus.unit(2, "two")
    first = asyncio.create_task(one.open(9.0, call("probe")))
    await asyncio.sleep(0)
    with pytest.raises(LinkDown, match="another unit of the link was connecting") as caught:
        await two.open(0.2, call("probe"))
    assert caught.value.timed_out
    await first
    await two.open(0.2, call("probe"))


@virtual
async def test_a_lost_wire_ends_every_job_at_once_and_nothing_is_sent_again() -> None:
    wire = PaperWire(answer_s=1.0)
    _, units = await line(3, wire)
    tasks = [asyncio.create_task(run(unit, f"u{unit.number}", 4)) for unit in units]
    write = asyncio.create_task(run(units[0], "w", rank=WRITE))
    await asyncio.sleep(0.01)
    asked = len(wire.asked)
    wire.cut()
    start = now()
    for result in await asyncio.gather(*tasks, write, return_exceptions=True):
        assert isinstance(result, LinkDown)
        assert "cut" in str(result)
        assert result.retry_s is None
    assert now() == start
    with pytest.raises(LinkDown, match="cut"):
        await run(units[1], "more")
    assert len(wire.asked) == asked
    await units[0].open(1.0, call("probe"))
    with pytest.raises(LinkDown, match="cut"):
        await run(units[1], "still not: it has to open, too")
    assert wire.opened == 2
    await units[1].open(1.0, call("probe"))
    assert wire.opened == 2
    wire.answer_s = 0.005
    assert await run(units[1], "again") == ["again"]
    assert await run(units[0], "again") == ["again"]


@virtual
async def test_close_during_a_job_ends_it() -> None:
    wire = PaperWire(answer_s=1.0)
    _, (one, two) = await line(2, wire)
    task = asyncio.create_task(run(one, "a", 3))
    neighbour = asyncio.create_task(run(two, "b"))
    await asyncio.sleep(0.01)
    await one.close()
    with pytest.raises(LinkDown, match="closed"):
        await task
    assert await neighbour == ["b"]


@virtual
async def test_a_unit_is_lent_once() -> None:
    bus, _ = await line(2, PaperWire())
    with pytest.raises(ValueError, match=r"new and plc2 are the same device paper unit 2"):
        bus.unit(2, "new")


# --- the breaker


@virtual
async def test_alone_on_the_link_three_failures_in_a_row_end_it() -> None:
    wire = PaperWire()
    _, (one,) = await line(1, wire)
    wire.silent.add(1)
    for _ in range(2):
        with pytest.raises(ExchangeFailed):
            await run(one, "a")
    with pytest.raises(LinkDown, match="3 times in a row; look at it") as caught:
        await run(one, "a")
    assert caught.value.retry_s is None
    assert one.stats().breaker == "closed", "there is nobody to protect"
    await one.close()
    with pytest.raises(LinkDown, match="still silent: probe"):
        await one.open(1.0, call("probe"))
    await one.close()
    wire.silent.clear()
    await one.open(1.0, call("probe"))
    assert await run(one, "a") == ["a"]


@virtual
async def test_two_failures_open_the_breaker_and_nothing_more_is_sent() -> None:
    wire = PaperWire()
    _, (one, two) = await line(2, wire)
    await run(two, "b", 3)
    wire.silent.add(1)
    with pytest.raises(ExchangeFailed):
        await run(one, "a", 9)
    with pytest.raises(LinkDown, match="a0: silence, 2 times in a row; look at it") as caught:
        await run(one, "a", 9)
    assert caught.value.retry_s == pytest.approx(0.015), "three times the slowest answer"
    assert caught.value.timed_out
    assert one.stats().breaker == "open"
    asked = len(wire.asked)
    for rank in (READ, WRITE):
        with pytest.raises(LinkDown, match="2 times in a row"):
            await run(one, "more", rank=rank)
    assert len(wire.asked) == asked
    assert two.stats().breaker == "closed"


@virtual
async def test_a_good_answer_in_between_keeps_it_closed() -> None:
    wire = PaperWire()
    _, (one, two) = await line(2, wire)
    await run(two, "b")
    for _ in range(5):
        wire.silent.add(1)
        with pytest.raises(ExchangeFailed):
            await run(one, "a")
        wire.silent.clear()
        await run(one, "a")


@pytest.mark.parametrize("code", [10, 11])
@virtual
async def test_a_gateway_that_reaches_nobody_opens_it_too(code: int) -> None:
    wire = PaperWire()
    _, (one, two) = await line(2, wire)
    await run(two, "b")
    wire.refusing[1] = code
    assert "exception" in (await run(one, "a", 3))[0]
    assert len(wire.asked) == 2, "the gateway would say so to the others as well"
    with pytest.raises(LinkDown, match=f"exception {code}.*2 times in a row"):
        await run(one, "a", 3)
    await one.close()
    with pytest.raises(LinkDown, match="still silent"):
        await one.open(1.0, call("probe"))
    await one.close()
    wire.refusing[1] = 2
    await one.open(1.0, call("probe"))
    assert "exception 2" in (await run(one, "a"))[0], "a refusal of its own proves life"


@virtual
async def test_a_refusal_of_the_unit_itself_is_no_failure() -> None:
    wire = PaperWire()
    _, (one, _) = await line(2, wire)
    wire.refusing[1] = 4
    for _ in range(5):
        assert "exception 4" in (await run(one, "a"))[0]
    assert one.stats().breaker == "closed"


@virtual
async def test_a_late_answer_proves_life() -> None:
    wire = PaperWire()
    bus, (one, two) = await line(2, wire)
    await run(two, "b")
    wire.silent.add(1)
    for _ in range(2):
        with pytest.raises((ExchangeFailed, LinkDown)):
            await run(one, "a")
    await one.close()
    bus.late(1, alive=False)
    assert one.stats().breaker == "open", "a gateway's late exception is none"
    bus.late(1)
    assert one.stats().breaker == "closed"
    asked = len(wire.asked)
    await one.open(1.0, call("probe"))
    assert len(wire.asked) == asked, "no probe needed"


@virtual
async def test_the_late_excuse_of_a_gateway_has_the_cost_of_its_own_probe() -> None:
    """And of no earlier one: a unit must not be locked out because it was probed long ago."""
    wire = PaperWire()
    bus, (one, two) = await line(2, wire)
    await run(two, "b")

    async def fall_silent() -> None:
        wire.silent.add(1)
        for _ in range(2):
            with pytest.raises((ExchangeFailed, LinkDown)):
                await run(one, "a")
        await one.close()

    await fall_silent()
    with pytest.raises(LinkDown) as caught:
        await one.open(1.0, call("probe"))
    assert caught.value.retry_s == pytest.approx(0.1)
    await asyncio.sleep(0.05)
    bus.late(1, alive=False)
    with pytest.raises(LinkDown) as caught:
        await run(one, "a")
    assert caught.value.retry_s == pytest.approx(5 * (0.05 + 0.015)), "the probe has kept the gateway busy for so long"
    wire.silent.clear()
    await one.open(1.0, call("probe"))
    await asyncio.sleep(3600.0)
    await fall_silent()
    bus.late(1, alive=False)
    with pytest.raises(LinkDown) as caught:
        await run(one, "a")
    assert caught.value.retry_s is not None
    assert caught.value.retry_s < 0.2


@virtual
async def test_a_wire_that_cannot_be_opened_leaves_the_pace_to_the_caller() -> None:
    wire = PaperWire()
    _, (one, two) = await line(2, wire)
    await run(two, "b")
    wire.silent.add(1)
    for _ in range(2):
        with pytest.raises((ExchangeFailed, LinkDown)):
            await run(one, "a")
    wire.cut()
    await one.close()
    await two.close()

    async def fail() -> None:
        raise OpenFailed("nobody there", "check it")

    wire.opening = fail
    with pytest.raises(LinkDown, match="nobody there") as caught:
        await one.open(1.0, call("probe"))
    assert caught.value.retry_s is None


@virtual
async def test_a_write_queued_for_a_unit_that_is_given_up_is_not_sent() -> None:
    wire = PaperWire()
    _, (one, two) = await line(2, wire)
    await run(two, "b")
    wire.silent.add(1)
    with pytest.raises(ExchangeFailed):
        await run(one, "a")
    reading = asyncio.create_task(run(one, "a"))
    await asyncio.sleep(0.01)
    write = exchanges(one, "w")
    writing = asyncio.create_task(one.run(write, TIMEOUT_NS, WRITE))
    for result in await asyncio.gather(reading, writing, return_exceptions=True):
        assert isinstance(result, LinkDown)
    assert write[0].sent_ns == 0
    assert (1, "w") not in wire.asked


class Poller:
    """What a link does, as far as it matters here: poll as fast as it can, and come back when it is told to."""

    def __init__(self, unit: Unit, period_s: float = 0.0) -> None:
        self.unit, self.period_s = unit, period_s
        self.good: list[float] = []
        self.task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        while True:
            try:
                await self.unit.open(3.0, call("probe"))
                while True:
                    start = now()
                    await run(self.unit, "poll")
                    self.good.append(now())
                    await asyncio.sleep(max(0.0, start + self.period_s - now()))
            except ExchangeFailed:
                continue
            except LinkDown as exc:
                await self.unit.close()
                await asyncio.sleep(0.25 if exc.retry_s is None else exc.retry_s)


@pytest.fixture
def pollers() -> Iterator[list[Poller]]:
    made: list[Poller] = []
    yield made
    assert all(poller.task.cancelled() for poller in made)


async def stop(pollers: list[Poller]) -> None:
    for poller in pollers:
        poller.task.cancel()
    await asyncio.gather(*(poller.task for poller in pollers), return_exceptions=True)
    for poller in pollers:
        await poller.unit.close()


@pytest.mark.parametrize("silent", [1, 3, 8])
@virtual
async def test_neighbours_of_silent_units_keep_their_pace(pollers: list[Poller], silent: int) -> None:
    """16 units on one line, polled as fast as it goes: with some of them silent, the others have ≤ 1.2 × the cycle."""
    wire = PaperWire(answer_s=0.005)
    _, units = await line(16, wire)
    pollers += [Poller(unit) for unit in units]
    await asyncio.sleep(2.0)
    healthy = pollers[silent:]
    wire.silent = set(range(1, silent + 1))
    await asyncio.sleep(3.0 + silent * 0.2)
    since, before = now(), [len(poller.good) for poller in healthy]
    await asyncio.sleep(10.0)
    done = [len(poller.good) - n for poller, n in zip(healthy, before, strict=True)]
    fair = 10.0 / (0.005 * (16 - silent))
    assert min(done) >= fair / 1.21, f"{done} cycles of {fair}"
    assert not [t for poller in pollers[:silent] for t in poller.good if t > since]
    assert sum(1 for unit, what in wire.asked if unit <= silent and what == "probe") > 10, "they are looked for"
    await stop(pollers)


@pytest.mark.parametrize("silent", [1, 4])
@virtual
async def test_a_unit_is_back_within_two_scans(pollers: list[Poller], silent: int) -> None:
    wire = PaperWire(answer_s=0.005)
    _, units = await line(16, wire)
    pollers += [Poller(unit, 0.2) for unit in units]
    await asyncio.sleep(1.0)
    worst = 0.0
    for n in range(25):
        wire.silent = set(range(1, silent + 1))
        await asyncio.sleep(2.0 + 0.017 * n)
        wire.silent = set()
        answering = now()
        await asyncio.sleep(0.6)
        worst = max(worst, *(min(t for t in p.good if t > answering) - answering for p in pollers[:silent]))
    assert worst <= 0.4, worst
    await stop(pollers)


@virtual
async def test_all_units_silent_and_back(pollers: list[Poller]) -> None:
    """Nobody is there to be protected then: each is looked for in turn."""
    wire = PaperWire(answer_s=0.005)
    wire.silent = set(range(1, 17))
    bus = Bus(wire, "", now_ns)
    pollers += [Poller(bus.unit(n, f"plc{n}"), 0.2) for n in range(1, 17)]
    await asyncio.sleep(20.0)
    wire.silent = set()
    answering = now()
    await asyncio.sleep(5.0)
    assert max(min(t for t in p.good if t > answering) - answering for p in pollers) < 2.0
    await stop(pollers)


@virtual
async def test_statistics() -> None:
    wire = PaperWire(answer_s=0.004)
    _, (one, two) = await line(2, wire)
    assert (one.stats().requests, one.stats().p50_ms) == (0, 0.0)
    for _ in range(300):
        await run(one, "a", 2)
    wire.answer_s = 0.050
    for _ in range(2):
        await run(one, "a", 2)
    wire.silent.add(2)
    with pytest.raises(ExchangeFailed):
        await run(two, "b")
    stats = one.stats()
    assert (stats.requests, stats.answered, stats.timeouts) == (604, 604, 0)
    assert (stats.p50_ms, stats.p99_ms) == (pytest.approx(4.0), pytest.approx(50.0))
    assert (two.stats().requests, two.stats().timeouts) == (1, 1)


@pytest.mark.parametrize("seed", range(6))
@virtual
async def test_whatever_happens_every_job_ends_and_nothing_is_mixed_up(seed: int) -> None:
    """Random reads, writes, cancellations, closes, silences, refusals, rests and lost wires: no answer of another's, no
    queue left behind, and every unit usable at the end.
    """
    rng = random.Random(seed)
    wire = PaperWire(window=rng.choice([1, 1, 3]), answer_s=0.003)
    wire.rest_ns = rng.choice([0, 20 * MS])
    bus, units = await line(5, wire)
    until = now() + 30.0
    counts = dict.fromkeys(("good", "failed", "down", "cancelled"), 0)

    async def use(unit: Unit, rank: int) -> None:
        while now() < until:
            await asyncio.sleep(rng.random() * 0.02)
            if unit.down and rank == READ:
                await unit.close()
                try:
                    async with asyncio.timeout(rng.choice([0.001, 0.05, 5.0])):
                        await unit.open(2.0, call("probe"))
                except (LinkDown, TimeoutError) as exc:
                    await asyncio.sleep(getattr(exc, "retry_s", None) or 0.05)
                continue
            what = f"{unit.number}:{rng.random()}:"
            count = rng.randint(1, 6) if rank == READ else 1
            try:
                async with asyncio.timeout(rng.choice([0.004, 0.02, 1.0, 1.0, 1.0])):
                    got = await run(unit, what, count, rank, timeout_ns=50 * MS)
            except TimeoutError:
                counts["cancelled"] += 1
            except ExchangeFailed:
                counts["failed"] += 1
            except LinkDown:
                counts["down"] += 1
            else:
                counts["good"] += 1
                wanted = [f"{what}{i}" for i in range(count)] if count > 1 else [what]
                assert all(g in (w, "") or g.startswith("exception") for g, w in zip(got, wanted, strict=True)), got
                assert "" not in got or any("exception 11" in g for g in got)

    async def break_things() -> None:
        while now() < until:
            await asyncio.sleep(rng.random() * 0.3)
            wire.silent = set(rng.sample(range(1, 6), rng.choice([0, 0, 1, 2, 5])))
            wire.refusing = {n: rng.choice([2, 6, 11]) for n in rng.sample(range(1, 6), rng.choice([0, 1, 2]))}
            chance = rng.random()
            if chance < 0.1:
                wire.cut()
            elif chance < 0.3:
                await rng.choice(units).close()

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(break_things())
        for unit in units:
            tasks.create_task(use(unit, READ))
            tasks.create_task(use(unit, WRITE))
    assert min(counts.values()) > 20, counts
    wire.silent, wire.refusing = set(), {}
    await asyncio.sleep(3.0)
    assert not any(bus._lanes)
    assert not any(unit.jobs or any(unit.queues) for unit in units)
    for unit in units:
        await unit.close()
        await unit.open(10.0, call("probe"))
        assert await run(unit, "x", 3) == ["x0", "x1", "x2"]
    assert wire.under_way == 0
    for unit in units:
        await unit.close()
    assert not bus.users
