from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import pytest

from controller.core.commands import Command, CommandQueue, Reply
from controller.core.events import AnyEvent, CommandDone, Note, ScanOverrun
from controller.core.image import InputBuffer, Layout, WriteReport
from controller.north.client import LocalNorth
from controller.north.frames import PROTOCOL, CommandInfo, Hello, Node, Scalar
from controller.north.publisher import Publisher
from controller.runtime.clock import ManualClock
from controller.runtime.journal import UNAUDITED, Health, OnSettled
from controller.runtime.scan_loop import ScanFailed, ScanLoop
from controller.runtime.timer import Tick
from drivers.port import Outcome, Value

MS = 1_000_000
PERIOD = 100 * MS


@dataclass
class FakeResult:
    events: list[AnyEvent] = field(default_factory=list)
    replies: list[Reply] = field(default_factory=list)
    outputs: dict[str, Value] = field(default_factory=dict)


class FakeLogic:
    """Takes every command, and does in a scan what ``on_scan`` says."""

    def __init__(self, clock: ManualClock, log: list[str]) -> None:
        self.clock, self.log = clock, log
        self.seen: list[Command] = []
        self.times: list[tuple[int, int]] = []
        self.on_scan: Callable[[FakeResult], None] = lambda result: None
        self.takes_ns = 0
        self.concerns: list[tuple[str, str]] = []

    def concern(self, name: str, text: str) -> None:
        self.concerns.append((name, text))

    def scan(self, now_ns: int, utc_ns: int, buffer: InputBuffer, commands: Iterable[Command]) -> FakeResult:
        self.times.append((now_ns, utc_ns))
        result = FakeResult()
        for command in commands:
            self.seen.append(command)
            done = CommandDone(
                at=utc_ns, id=command.id, command=command.name, user=command.user, client=command.client, accepted=True
            )
            result.events.append(done)
            result.replies.append(Reply(id=command.id, accepted=True, reason=command.name))
        self.on_scan(result)
        self.clock.advance(self.takes_ns)
        self.log.append("scan")
        return result

    def safe_outputs(self) -> Mapping[str, Value]:
        return {"filler.run": False, "capper.run": False}


class FakeView:
    def __init__(self) -> None:
        self.values: list[Scalar] = [0]
        self.broken = False

    def collect(self) -> tuple[Sequence[Scalar], Mapping[int, str]]:
        if self.broken:
            raise RuntimeError("no view")
        return self.values, {}


class FakeLink:
    def __init__(self, name: str, log: list[str]) -> None:
        self.name, self.log = name, log
        self.outputs: dict[str, Value] = {}
        self.beats: list[int] = []
        self.broken = False

    def set_outputs(self, outputs: Mapping[str, Value]) -> None:
        if self.broken:
            raise RuntimeError("link is broken")
        self.outputs.update(outputs)
        self.log.append(f"{self.name} outputs")

    def beat(self, counter: int) -> None:
        self.beats.append(counter)

    async def write_now(self, outputs: Mapping[str, Value], timeout_s: float) -> Mapping[str, WriteReport]:
        if self.broken:
            raise RuntimeError("link is broken")
        self.outputs.update(outputs)
        outcome = Outcome.REJECTED if self.name == "dry" else Outcome.VERIFIED
        return {tag: WriteReport(tag, value, outcome, "down") for tag, value in outputs.items()}


class FakeJournal:
    """A record that becomes durable when the test says so."""

    def __init__(self, log: list[str]) -> None:
        self.log = log
        self.rows: list[AnyEvent] = []
        self.health = Health(True, "", 0, 0)
        self.waiting: list[tuple[int, OnSettled]] = []
        self.broken = False

    def append(self, events: Sequence[AnyEvent], on_settled: OnSettled | None = None) -> int:
        if self.broken:
            raise RuntimeError("no journal")
        self.log.append("journal")
        first = len(self.rows) + 1
        self.rows += events
        if on_settled is not None:
            if self.health.healthy:
                self.waiting.append((first, on_settled))
            else:
                on_settled(first, False)
        return first

    def commit(self) -> None:
        waiting, self.waiting = self.waiting, []
        for first, tell in waiting:
            tell(first, True)

    def poll(self) -> Health:
        return self.health

    def refusal(self, command: Command) -> str | None:
        return None if self.health.healthy or command.name in UNAUDITED else "no record"

    def texts(self) -> list[str]:
        return [e.text for e in self.rows if isinstance(e, Note)]


class Rig:
    def __init__(self) -> None:
        self.log: list[str] = []
        self.clock = ManualClock()
        self.logic = FakeLogic(self.clock, self.log)
        self.view = FakeView()
        self.links = {"wet": FakeLink("wet", self.log), "dry": FakeLink("dry", self.log)}
        self.journal = FakeJournal(self.log)
        self.completed: list[int] = []
        self.due = self.clock.monotonic_ns()
        self.queue = CommandQueue()
        hello = Hello(
            protocol=PROTOCOL,
            line="t",
            description="",
            version="",
            config_hash="",
            stations=[],
            nodes=[Node("line.n", "int")],
            commands={"line": [CommandInfo("start"), CommandInfo("stop")]},
            recipes=[],
        )
        # The two know each other: commands come in through the publisher, answers go out through it.
        self.publisher = Publisher(hello, self._submit, self.clock.monotonic_ns)
        self.loop = ScanLoop(
            logic=self.logic,
            view=self.view,
            clock=self.clock,
            buffer=InputBuffer(Layout([], {})),
            queue=self.queue,
            links=self.links,
            plc_of={"filler.run": "wet", "filler.sp": "wet", "capper.run": "dry"},
            journal=self.journal,
            north=self.publisher,
            on_completed=self.completed.append,
        )
        self.client = LocalNorth(self.publisher)

    def _submit(self, command: Command) -> Reply | None:
        return self.loop.submit(command)

    def scans(self, count: int = 1, skipped: int = 0) -> None:
        """Let scans come at their time, the first after ``skipped`` periods that were left out."""
        for _ in range(count):
            due = self.due + PERIOD
            self.due += (skipped + 1) * PERIOD
            self.clock.advance(max(0, self.due - self.clock.monotonic_ns()))
            self.loop.step(due, skipped)
            skipped = 0


@pytest.fixture
def rig() -> Rig:
    return Rig()


class TestOrder:
    def test_outputs_go_out_at_once_to_their_plcs_and_before_the_record(self, rig: Rig) -> None:
        def on_scan(result: FakeResult) -> None:
            result.outputs |= {"filler.run": True, "filler.sp": 12, "capper.run": True}
            result.events.append(Note(at=1, text="x"))

        rig.logic.on_scan = on_scan
        rig.scans()
        assert rig.links["wet"].outputs == {"filler.run": True, "filler.sp": 12}
        assert rig.links["dry"].outputs == {"capper.run": True}
        assert rig.log == ["scan", "wet outputs", "dry outputs", "journal"]

    def test_an_answer_waits_until_its_record_is_durable(self, rig: Rig) -> None:
        number = rig.client.command("line", "start", user="anna")
        rig.scans()
        rig.client.poll()
        assert rig.logic.seen[0].user == "anna"
        assert rig.client.replies == {} and not rig.client.events
        rig.scans(3)
        rig.client.poll()
        assert rig.client.replies == {}
        rig.journal.commit()
        rig.client.poll()
        assert rig.client.replies[number].accepted
        assert [type(e) for e in rig.client.events] == [CommandDone]

    def test_stop_goes_before_what_came_earlier(self, rig: Rig) -> None:
        for name in ("start", "start", "stop"):
            rig.client.command("line", name)
        rig.scans()
        assert [c.name for c in rig.logic.seen] == ["stop", "start", "start"]

    def test_heartbeat_and_watchdog_come_from_completed_scans(self, rig: Rig) -> None:
        rig.scans(3)
        assert rig.links["wet"].beats == rig.links["dry"].beats == [1, 2, 3]
        assert len(rig.completed) == 3
        rig.logic.on_scan = lambda result: 1 // 0 and None
        with pytest.raises(ScanFailed):
            rig.scans()
        assert rig.links["wet"].beats == [1, 2, 3]
        assert len(rig.completed) == 3

    def test_a_quiet_scan_writes_nothing_to_the_record(self, rig: Rig) -> None:
        rig.scans(10)
        assert rig.journal.rows == [] and "journal" not in rig.log

    def test_values_are_published_after_each_scan(self, rig: Rig) -> None:
        for n in range(3):
            rig.view.values = [n]
            rig.scans()
            rig.client.poll()
            assert rig.client.mirror.values == {"line.n": n}

    async def test_completed_waits_for_a_whole_scan(self, rig: Rig) -> None:
        waits = [asyncio.create_task(rig.loop.completed()) for _ in range(2)]
        await asyncio.sleep(0)
        waits[1].cancel()
        await asyncio.sleep(0)
        assert not waits[0].done()
        rig.scans()
        await waits[0]
        again = asyncio.create_task(rig.loop.completed())
        await asyncio.sleep(0)
        assert not again.done()
        rig.scans()
        await again


class TestOverruns:
    def test_skipped_periods_are_counted_and_recorded(self, rig: Rig) -> None:
        rig.scans(20)
        rig.scans(1, skipped=3)
        events = [e for e in rig.journal.rows if isinstance(e, ScanOverrun)]
        assert [(e.skipped, e.late_ms) for e in events] == [(3, 300.0)]
        rig.scans(20)
        assert (rig.loop.stats.overruns, rig.loop.stats.skipped) == (1, 3)
        assert rig.loop.stats.late_max_ms == 300.0

    def test_a_loop_that_is_always_late_records_once_a_second(self, rig: Rig) -> None:
        for _ in range(100):
            rig.scans(1, skipped=1)  # 20 s of it
        events = [e for e in rig.journal.rows if isinstance(e, ScanOverrun)]
        assert 19 <= len(events) <= 21
        rig.scans(10)
        events = [e for e in rig.journal.rows if isinstance(e, ScanOverrun)]
        assert sum(e.skipped for e in events) == 100  # none is forgotten

    def test_scan_times(self, rig: Rig) -> None:
        rig.logic.takes_ns = 2 * MS
        rig.scans(98)
        rig.logic.takes_ns = 50 * MS
        rig.scans(2)
        rig.logic.takes_ns = 2 * MS
        rig.scans(20)
        stats = rig.loop.stats
        assert (stats.p50_ms, stats.p99_ms, stats.max_ms) == (2.0, 50.0, 50.0)
        getters = {path: getter() for path, (_, _, getter) in ScanLoop.extras_of(lambda: rig.loop).items()}
        assert getters["line.scan_time_max"] == 50.0
        assert getters["line.journal_healthy"] is True

    def test_a_step_of_the_wall_clock_is_recorded_and_moves_no_timer(self, rig: Rig) -> None:
        rig.scans(2)
        rig.clock.step_utc(-3_600_000_000_000)
        rig.scans(2)
        rig.clock.step_utc(86_400_000_000_000)
        rig.scans(2)
        rig.clock.step_utc(1_000_000)  # a millisecond of NTP is not worth a word
        rig.scans(2)
        steps = [t for t in rig.journal.texts() if "wall clock" in t]
        assert [t.split(" by ")[1].split(";")[0] for t in steps] == ["-3600.0 s", "+86400.0 s"]
        assert [b[0] - a[0] for a, b in zip(rig.logic.times, rig.logic.times[1:], strict=False)] == [PERIOD] * 7


class TestFaults:
    def test_a_scan_that_raises_makes_all_safe_and_ends(self, rig: Rig) -> None:
        rig.logic.on_scan = lambda result: result.outputs.update({"filler.run": True, "capper.run": True})
        rig.scans()
        rig.logic.on_scan = lambda result: 1 // 0 and None
        with pytest.raises(ScanFailed, match="ZeroDivisionError"):
            rig.scans()
        assert rig.links["wet"].outputs["filler.run"] is False
        assert rig.links["dry"].outputs["capper.run"] is False
        assert "the scan failed" in rig.journal.texts()[-1]

    def test_one_broken_link_does_not_spare_the_others(self, rig: Rig) -> None:
        rig.links["wet"].broken = True
        rig.links["dry"].outputs["capper.run"] = True
        rig.logic.on_scan = lambda result: result.outputs.update({"filler.run": True})
        with pytest.raises(ScanFailed, match="link is broken"):
            rig.scans()
        assert rig.links["dry"].outputs["capper.run"] is False

    def test_an_output_of_no_plc_is_a_fault_and_not_ignored(self, rig: Rig) -> None:
        rig.logic.on_scan = lambda result: result.outputs.update({"nobody.run": True})
        with pytest.raises(ScanFailed, match=r"nobody\.run"):
            rig.scans()

    def test_a_journal_that_raises_is_our_fault_and_ends_it(self, rig: Rig) -> None:
        rig.logic.on_scan = lambda result: result.events.append(Note(at=1, text="x"))
        rig.journal.broken = True
        with pytest.raises(ScanFailed, match="no journal"):
            rig.scans()
        assert rig.links["wet"].outputs == {"filler.run": False}

    def test_a_view_that_raises_disconnects_the_clients_and_the_line_goes_on(self, rig: Rig) -> None:
        rig.scans()
        rig.view.broken = True
        rig.scans(5)
        rig.client.poll()
        assert "fault of the controller" in rig.client.goodbye
        assert len(rig.logic.times) == 6 and len(rig.completed) == 6
        assert sum("publishing failed" in t for t in rig.journal.texts()) == 1
        rig.view.broken = False
        rig.scans(110)
        late = LocalNorth(rig.publisher)
        late.poll()
        assert late.mirror.values == {"line.n": 0}

    async def test_run_ends_with_the_scan(self, rig: Rig) -> None:
        class Ticks:
            async def tick(self) -> Tick:
                await asyncio.sleep(0)
                return Tick(rig.clock.monotonic_ns(), 0)

            def close(self) -> None:
                pass

        def on_scan(result: FakeResult) -> None:
            if len(rig.logic.times) == 5:
                raise ValueError("five")

        rig.logic.on_scan = on_scan
        with pytest.raises(ScanFailed, match="five"):
            await rig.loop.run(Ticks())
        assert len(rig.completed) == 4

    async def test_safe_outputs_are_written_and_counted_when_not_verified(self, rig: Rig) -> None:
        assert await rig.loop.write_safe(1.0) == 1  # the dry PLC rejects
        assert rig.links["wet"].outputs == {"filler.run": False}
        rig.links["wet"].broken = True
        assert await rig.loop.write_safe(1.0) == 2


class TestJournalTrouble:
    def test_only_what_makes_the_line_quieter_is_taken(self, rig: Rig) -> None:
        rig.journal.health = Health(False, "disk full", 0, 0)
        rig.scans()
        start, stop = rig.client.command("line", "start"), rig.client.command("line", "stop")
        rig.client.poll()
        assert rig.client.replies[start].reason == "no record"
        assert stop not in rig.client.replies
        rig.scans()
        rig.client.poll()
        assert [c.name for c in rig.logic.seen] == ["stop"]
        assert rig.client.replies[stop].accepted
        assert "not recorded yet: disk full" in rig.client.replies[stop].reason

    def test_the_trouble_and_its_end_are_in_the_record(self, rig: Rig) -> None:
        rig.scans(2)
        rig.journal.health = Health(False, "disk full", 3, 0)
        rig.scans(5)
        rig.client.command("line", "start")
        rig.journal.health = Health(True, "", 2, 40)
        rig.scans(5)
        texts = rig.journal.texts()
        assert len(texts) == 2
        assert "no record can be kept: disk full" in texts[0]
        assert [name for name, _ in rig.logic.concerns] == ["journal", "journal"]
        assert "make room or mend the disk" in rig.logic.concerns[0][1] and not rig.logic.concerns[1][1]
        assert "2 events were late, 40 are lost" in texts[1] and "1 commands were refused" in texts[1]

    def test_events_still_go_north(self, rig: Rig) -> None:
        rig.journal.health = Health(False, "disk full", 0, 0)
        rig.logic.on_scan = lambda result: result.events.append(Note(at=1, text="alarm"))
        rig.scans()
        rig.client.poll()
        assert "alarm" in [e.text for e in rig.client.events if isinstance(e, Note)]

    def test_losses_in_health_are_told_too(self, rig: Rig) -> None:
        rig.scans()
        rig.journal.health = Health(True, "", 0, 7)
        rig.scans(3)
        assert rig.journal.texts() == ["7 events were lost, the disk was too slow"]


def test_notes_from_outside_are_recorded_and_bounded(rig: Rig) -> None:
    for n in range(1500):
        rig.loop.note(f"note {n}")
    rig.scans()
    assert rig.journal.texts() == [f"note {n}" for n in range(1000)]
    rig.scans()
    assert len(rig.journal.rows) == 1000
