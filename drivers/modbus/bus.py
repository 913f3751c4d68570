"""One physical link with its one owner, and the handles by which its units use it.

The :class:`Bus` opens the wire with the first handle and closes it with the last, and decides who asks next:
writes of any unit before all reads that are not sent yet, and the reads of several units in turn, request by
request. It has no task of its own: every submission and every word of the wire moves the queue on.

A unit that twice in a row does not answer (or whose gateway says so) has its *breaker* opened where others share the
link: nothing more is sent to it, and it is looked for with short probes that together take at most a sixth of the
link's time, so that its neighbours keep their pace. Alone on a link, three failures in a row end the connection.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping, Sequence

from drivers.modbus.pdu import GATEWAY, Call, ExceptionReply
from drivers.modbus.wire import Exchange, OpenFailed, Wire
from drivers.port import DriverStats, ExchangeFailed, FieldBusError, LinkDown
from drivers.wake import Wake

READ, WRITE = 0, 1
"""Ranks of a job."""
GIVE_UP_SHARED = 2
GIVE_UP_ALONE = 3
SHORTEST_PROBE_NS = 10_000_000
PROBE_FACTOR = 3
"""A probe waits so many times as long as the slowest answer of late."""
PROBE_SHARE = 6
"""Of the link's time, all probes of all silent units take one part in so many."""
SHORTEST_PAUSE_S = 0.1
"""Between the probes of a unit, also where there is nobody to be protected."""
RING = 256
LATELY = 32


class Job:
    """One call of a driver: exchanges that are answered together, or fail together."""

    __slots__ = (
        "count",
        "data",
        "exchanges",
        "failure",
        "open",
        "probe",
        "rank",
        "refused",
        "started",
        "unit",
        "wake",
    )

    def __init__(self, unit: Unit, exchanges: Sequence[Exchange], rank: int, wake: Wake) -> None:
        self.unit, self.exchanges, self.rank, self.wake = unit, exchanges, rank, wake
        self.data: list[bytes | ExceptionReply] = [b""] * len(exchanges)
        """By the exchanges' index; empty where an exception of the gateway ended the job early."""
        self.count = len(exchanges)
        """Exchanges to be made; an early end sets it to those made already."""
        self.started = self.open = self.refused = 0
        self.probe = False
        self.failure: FieldBusError | None = None


class Unit:
    """A unit's handle on its bus. One task opens, reads and closes; writes may come from another."""

    def __init__(self, bus: Bus, number: int, name: str) -> None:
        self._bus, self.number, self.name = bus, number, name
        self.down = "not connected"
        """Why nothing can be sent now; empty when it can."""
        self.suspect = False
        """The breaker: the unit is silent, and is to be probed before it is used again."""
        self.first = False
        """Whether its next read goes before those of others: a probe, and the first one after the silence."""
        self.failures = 0
        """In a row."""
        self.rest_until_s = self.probe_at_s = 0.0
        """Loop times before which it must not be asked, and should not be probed."""
        self.probed_ns = self.timeout_ns = 0
        self.jobs: dict[Job, None] = {}
        self.queues: tuple[deque[Job], deque[Job]] = (deque(), deque())
        self.requests = self.answered = self.timeouts = self.refused = self.late = 0
        self.ring = [0] * RING
        self.ring_at = 0

    @property
    def endpoint(self) -> str:
        """Where the unit is, for people."""
        return f"{self._bus.wire.endpoint} unit {self.number}"

    async def open(self, timeout_s: float, probe: Call) -> None:
        """Open the wire, or join those who use it. A unit known to be silent must answer ``probe`` first.

        Raises :class:`LinkDown`; with ``retry_s`` where the next attempt has its time.
        """
        await self.close()
        bus = self._bus
        bus.users.add(self)
        until_s = asyncio.get_running_loop().time() + timeout_s
        try:
            await bus.connect(until_s)
        except OpenFailed as exc:
            raise self.link_down(exc.what, exc.hint, timed_out=exc.timed_out) from None
        self.down = ""
        lives = False
        try:
            if self.suspect:
                await self._probe(probe, until_s)
            lives = True
        finally:
            self.down = self.down if lives or self.down else "not connected"
        if self.down:  # the wire was lost in the moment between the answer and this line
            raise self.link_down(self.down)

    async def run(self, exchanges: Sequence[Exchange], timeout_ns: int, rank: int = READ) -> Job:
        """Exchange all of these; ``timeout_ns`` is for each. Exception answers are in the job's ``data``.

        Raises :class:`LinkDown` and :class:`ExchangeFailed`. An exchange that was never sent has ``sent_ns`` 0.
        """
        if self.down:
            raise self.silent(self.down) if self.suspect else self.link_down(self.down)
        self.timeout_ns = timeout_ns
        job = self._bus.submit(self, exchanges, timeout_ns, rank)
        try:
            await job.wake
        except asyncio.CancelledError:
            self._bus.give_up(job)
            raise
        if job.failure is not None:
            raise job.failure
        return job

    async def close(self) -> None:
        """End what is under way, and close the wire when nobody else uses it. Safe at any time."""
        self.down = "not connected"
        await self._bus.leave(self)

    def link_down(self, what: str, hint: str = "", *, timed_out: bool = False) -> LinkDown:
        """The exception for the driver above; when to come back is up to it."""
        return LinkDown(self.name, what, where=self.endpoint, hint=hint, timed_out=timed_out)

    def silent(self, what: str, *, timed_out: bool = True) -> LinkDown:
        """The same for a unit that does not answer; on a shared link it says when the next probe has its time."""
        exc = self.link_down(what, self._bus.hint, timed_out=timed_out)
        if self._bus.shared:
            wait_s = max(self.rest_until_s, self.probe_at_s) - asyncio.get_running_loop().time()
            exc.retry_s = max(wait_s, SHORTEST_PROBE_NS / 1e9)
        return exc

    def slowest_ns(self) -> int:
        """The longest round trip of late but for a few hiccups (a tenth); 0 without any."""
        at = self.ring_at
        lately = self.ring[at - LATELY : at] if at >= LATELY else self.ring[:at] + self.ring[at - LATELY :]
        known = sorted(filter(None, lately))
        return known[-1 - len(known) // 10] if known else 0

    def stats(self) -> DriverStats:
        """A snapshot of the counters."""
        trips = sorted(self.ring)[-min(self.answered, RING) :] if self.answered else [0]
        return DriverStats(
            requests=self.requests,
            answered=self.answered,
            timeouts=self.timeouts,
            refused=self.refused,
            late=self.late,
            strays=self._bus.strays,
            breaker="open" if self.suspect and self._bus.shared else "closed",
            p50_ms=trips[len(trips) // 2] / 1e6,
            p99_ms=trips[len(trips) * 99 // 100] / 1e6,
        )

    async def _probe(self, call: Call, until_s: float) -> None:
        """One short exchange; any answer of the unit itself closes the breaker. Raises :class:`LinkDown`."""
        bus, loop = self._bus, asyncio.get_running_loop()
        exchange = Exchange(call, self.number)
        exchange.probe = bus.shared
        self.rest_until_s = max(self.rest_until_s, self.probe_at_s)
        self.first = True
        job = bus.submit(self, (exchange,), bus.probe_ns(self, max(until_s - loop.time(), 0.0)), READ)
        job.probe = True
        try:
            async with asyncio.timeout_at(until_s):
                await job.wake
        except TimeoutError:
            job.failure = self.silent("had no turn for a probe: the link is busy, or the unit rests")
        finally:
            bus.give_up(job)
            if exchange.sent_ns:
                self.probed_ns = exchange.sent_ns
                bus.pause(self)
        reply = job.data[0]
        if job.failure is None and not (isinstance(reply, ExceptionReply) and reply.code in GATEWAY):
            self.alive()
            return
        if isinstance(job.failure, LinkDown):
            raise job.failure
        what = f"{call.what}: {reply!s}" if job.failure is None else job.failure.what
        raise self.silent(f"still silent: {what}")

    def alive(self) -> None:
        """The unit was heard."""
        self.suspect, self.failures, self.probed_ns = False, 0, 0


class Bus:
    """The owner of one wire. ``hint`` says what to look at when a unit does not answer; ``settings`` is what all units
    of the link must agree about.
    """

    def __init__(
        self, wire: Wire, hint: str, monotonic_ns: Callable[[], int], settings: Mapping[str, object] | None = None
    ) -> None:
        self.wire, self.hint, self.settings = wire, hint, settings or {}
        self.strays = 0
        self.users: set[Unit] = set()
        """Handles between their ``open`` and their ``close``."""
        self._now = monotonic_ns
        self._units: dict[int, Unit] = {}
        self._lanes: tuple[deque[Unit], deque[Unit]] = (deque(), deque())
        """By rank: the units that have something to send, in the order of their turns."""
        self._lock = asyncio.Lock()
        self._open = False
        self._attempts = 0
        self._refusal: OpenFailed | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._loop: asyncio.AbstractEventLoop

    @property
    def shared(self) -> bool:
        """Whether several units were lent."""
        return len(self._units) > 1

    def unit(self, number: int, name: str) -> Unit:
        """Lend the handle of a unit. Raises ``ValueError`` when it is lent already."""
        if number in self._units:
            other = self._units[number].name
            raise ValueError(f"{name} and {other} are the same device {self._units[number].endpoint}; merge them")
        unit = self._units[number] = Unit(self, number, name)
        return unit

    # --- opening and closing

    async def connect(self, until_s: float) -> None:
        """Have the wire open. Who comes while another tries, waits for that attempt and takes its result.

        Raises :class:`OpenFailed`. When the one who tries is cancelled, the next one tries anew.
        """
        self._loop = asyncio.get_running_loop()
        attempts = self._attempts
        try:
            async with asyncio.timeout_at(until_s):
                await self._lock.acquire()
        except TimeoutError:
            raise OpenFailed(
                "no connection in time", "another unit of the link was connecting", timed_out=True
            ) from None
        try:
            if self._open:
                return
            if (refusal := self._refusal) is not None and self._attempts != attempts:
                raise OpenFailed(refusal.what, refusal.hint, timed_out=refusal.timed_out)
            try:
                await self.wire.open(max(until_s - self._loop.time(), 0.001), self)
            except OpenFailed as exc:
                self._attempts, self._refusal = self._attempts + 1, exc
                raise
            self._open, self._refusal = True, None
        finally:
            self._lock.release()

    async def leave(self, unit: Unit) -> None:
        """A unit needs the wire no more."""
        self.users.discard(unit)
        if self.users or not self._open:
            self._end(unit, "closed")
            return
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._open = False  # from here on, what is under way ends with the wire, not each for itself
        self._end(unit, "closed")
        async with self._lock:
            if not self._open:
                await self.wire.close()

    def _end(self, unit: Unit, what: str, hint: str = "", *, timed_out: bool = False) -> None:
        """All jobs of a unit end with LinkDown."""
        for job in list(unit.jobs):
            if job.failure is None or not isinstance(job.failure, LinkDown):
                job.failure = unit.link_down(what, hint, timed_out=timed_out)
            self.give_up(job)

    # --- jobs

    def submit(self, unit: Unit, exchanges: Sequence[Exchange], timeout_ns: int, rank: int) -> Job:
        """Queue a job; its ``wake`` ends with it."""
        job = Job(unit, exchanges, rank, Wake(self._loop))
        if exchanges[0].timeout_ns != timeout_ns:
            for exchange in exchanges:
                exchange.timeout_ns = timeout_ns
        unit.jobs[job] = None
        reads, writes = self._lanes
        if job.count == 1 and not (reads or writes or unit.rest_until_s) and self.wire.under_way < self.wire.window:
            # Nobody waits: the queue below would come to the same, in twice the time.
            exchanges[0].job = job
            job.started = job.open = 1
            unit.requests += 1
            self.wire.start(exchanges)
            return job
        queue = unit.queues[rank]
        if not queue and unit.first and rank is READ:
            self._lanes[rank].appendleft(unit)
        elif not queue:
            self._lanes[rank].append(unit)
        unit.first = False
        queue.append(job)
        self._pump()
        return job

    def give_up(self, job: Job) -> None:
        """End a job now: what is not sent is not sent any more, and nobody waits for the rest."""
        job.unit.jobs.pop(job, None)
        self._unqueue(job)
        for exchange in job.exchanges[: job.started] if job.open else ():
            if exchange.job is job:
                exchange.job = None
                if self._open:
                    self.wire.abandon(exchange)
        job.open = 0
        job.wake.end()
        if self._open:
            self._pump()

    def _unqueue(self, job: Job) -> None:
        """Send no more of this job."""
        if job.started == job.count:
            return
        job.count = job.started
        queue = job.unit.queues[job.rank]
        queue.remove(job)
        if not queue:
            self._lanes[job.rank].remove(job.unit)

    def _finish(self, job: Job) -> None:
        """All that was sent of a job has ended."""
        unit = job.unit
        unit.jobs.pop(job, None)
        if not job.probe:
            if job.failure is None and not job.refused:
                unit.failures = 0
            else:
                self._judge(job)
        job.wake.end()

    def _judge(self, job: Job) -> None:
        """Whether a job's failure is the one too many."""
        unit, what, timed_out = job.unit, "", False
        if job.failure is not None:
            what, timed_out = job.failure.what, job.failure.timed_out
        elif self.shared:
            for exchange, reply in zip(job.exchanges, job.data, strict=True):
                if isinstance(reply, ExceptionReply) and reply.code in GATEWAY:
                    what = f"{exchange.call.what}: {reply}"
                    break
        unit.failures = unit.failures + 1 if what else 0
        unit.first = bool(what)  # whether it was one lost answer or a dead unit is to be known soon
        if unit.failures < (GIVE_UP_SHARED if self.shared else GIVE_UP_ALONE):
            return
        unit.suspect, unit.probed_ns = True, 0
        unit.probe_at_s = self._loop.time() + self.probe_ns(unit, unit.timeout_ns / 1e9) / 1e9
        unit.down = f"{what}, {unit.failures} times in a row"
        job.failure = unit.silent(unit.down, timed_out=timed_out)
        for other in [job for job in unit.jobs if not job.started]:
            other.failure = unit.silent(unit.down, timed_out=timed_out)
            self.give_up(other)

    def _pump(self) -> None:
        """Hand the wire as much as it takes. Nothing here looks at the queues after the wire was called."""
        reads, writes = self._lanes
        if not (reads or writes):
            return
        free = self.wire.window - self.wire.under_way
        if free <= 0:
            return
        batch: list[Exchange] = []
        for rank, lane in ((WRITE, writes), (READ, reads)):
            aside: list[Unit] = []
            while lane and free:
                unit = lane.popleft()
                if unit.rest_until_s and self._rests(unit):
                    aside.append(unit)
                    continue
                queue = unit.queues[rank]
                job = queue[0]
                exchange = job.exchanges[job.started]
                exchange.job = job
                job.started += 1
                job.open += 1
                unit.requests += 1
                if job.started == job.count:
                    queue.popleft()
                if queue:
                    lane.append(unit)
                batch.append(exchange)
                free -= 1
            if aside:
                lane.extendleft(reversed(aside))
        if batch:
            self.wire.start(batch)

    def _rests(self, unit: Unit) -> bool:
        """Whether a unit must not be asked yet; if so, the queue moves on when it may."""
        if unit.rest_until_s <= self._loop.time():
            unit.rest_until_s = 0.0
            return False
        if self._timer is None or self._timer.when() > unit.rest_until_s:
            if self._timer is not None:
                self._timer.cancel()
            self._timer = self._loop.call_at(unit.rest_until_s, self._rested)
        return True

    def _rested(self) -> None:
        self._timer = None
        if self._open:
            self._pump()

    # --- the breaker

    def probe_ns(self, unit: Unit, at_most_s: float) -> int:
        """How long a probe waits: short where the link's answers are known to be quick."""
        limit = min(unit.timeout_ns or int(at_most_s * 1e9), int(at_most_s * 1e9)) or 1
        slowest = max(u.slowest_ns() for u in self._units.values()) if self.shared else 0
        return min(limit, max(SHORTEST_PROBE_NS, PROBE_FACTOR * slowest)) if slowest else limit

    def pause(self, unit: Unit) -> None:
        """A probe has cost the link time: it is not repeated before the neighbours had five times as much for each."""
        if not self.shared:
            return
        silent = sum(u.suspect for u in self._units.values())
        factor = PROBE_SHARE * silent - 1 if any(not u.suspect for u in self.users) else 1
        cost_ns = self._now() - unit.probed_ns
        unit.probe_at_s = self._loop.time() + max(SHORTEST_PAUSE_S, factor * cost_ns / 1e9)

    # --- what the wire tells (:class:`drivers.modbus.wire.Owner`)

    def answered(self, exchange: Exchange, data: bytes) -> None:
        """Part of ``Owner``."""
        job: Job = exchange.job
        exchange.job = None
        unit = job.unit
        unit.answered += 1
        at = unit.ring_at
        unit.ring[at] = self._now() - exchange.sent_ns
        unit.ring_at = (at + 1) % RING
        job.data[exchange.index] = data
        job.open -= 1
        if job.open or job.started != job.count:
            self._pump()
        elif job.failure is not None or job.refused:
            self._finish(job)
            self._pump()
        else:
            unit.jobs.pop(job, None)
            if not job.probe:
                unit.failures = 0
            self._pump()
            job.wake.resume()

    def refused(self, exchange: Exchange, refusal: ExceptionReply) -> None:
        """Part of ``Owner``. A gateway that does not reach its device would say so to every further request."""
        job: Job = exchange.job
        exchange.job = None
        unit = job.unit
        unit.refused += 1
        job.refused += 1
        job.data[exchange.index] = refusal
        job.open -= 1
        if refusal.code in GATEWAY:
            self._unqueue(job)
        if not job.open and job.started == job.count:
            self._finish(job)
        self._pump()

    def failed(
        self, exchange: Exchange, what: str, *, timed_out: bool = False, sent: bool = True, rest_ns: int = 0
    ) -> None:
        """Part of ``Owner``."""
        unit = self._units[exchange.unit]
        if rest_ns:
            unit.rest_until_s = max(unit.rest_until_s, self._loop.time() + rest_ns / 1e9)
        unit.timeouts += timed_out
        if not sent:
            exchange.sent_ns = 0
        job: Job | None = exchange.job
        exchange.job = None
        if job is not None:
            if job.failure is None:
                job.failure = ExchangeFailed(unit.name, what, where=unit.endpoint, hint=self.hint, timed_out=timed_out)
            self._unqueue(job)
            job.open -= 1
            if not job.open:
                self._finish(job)
        self._pump()

    def lost(self, what: str, *, hint: str = "", timed_out: bool = False) -> None:
        """Part of ``Owner``. Nothing is sent again: what a lost connection has executed nobody knows."""
        self._open = False
        for unit in self.users:
            unit.down = unit.down or what
            unit.timeouts += timed_out and any(job.open for job in unit.jobs)
            self._end(unit, what, hint, timed_out=timed_out)

    def late(self, unit: int, *, alive: bool = True) -> None:
        """Part of ``Owner``."""
        known = self._units.get(unit)
        if known is not None:
            known.late += 1
            if alive:
                known.alive()
            elif known.suspect and known.probed_ns:
                self.pause(known)
        self._pump()

    def stray(self, what: str) -> None:
        """Part of ``Owner``."""
        self.strays += 1
