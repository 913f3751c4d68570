from __future__ import annotations

import asyncio
import contextlib
import json
import os
import resource
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from controller.core.commands import Command
from controller.core.events import (
    AlarmChanged,
    AnyEvent,
    ChangeoverChanged,
    CommandDone,
    CountsChanged,
    Note,
    OutputFailed,
    StopRecorded,
    Transition,
)
from controller.runtime.clock import ManualClock, SystemClock
from controller.runtime.journal import (
    KINDS,
    Journal,
    JournalError,
    last_counts,
    last_recipe,
    read,
    verify,
)
from controller.runtime.record import open_checked


def note(n: int, station: str = "", at: int = 0) -> Note:
    return Note(at=at or n, station=station, text=f"note {n}")


def counts(station: str, good: int) -> CountsChanged:
    return CountsChanged(at=good, station=station, product="cola", infeed=good, good=good, rejected=0, in_process=0)


async def until(condition: Callable[[], object], what: str, limit_s: float = 10.0) -> None:
    try:
        async with asyncio.timeout(limit_s):
            while not condition():  # noqa: ASYNC110 - of another thread or process
                await asyncio.sleep(0.005)
    except TimeoutError:
        pytest.fail(f"not within {limit_s} s: {what}")


@contextlib.asynccontextmanager
async def opened(path: Path, **options: float) -> AsyncIterator[Journal]:
    journal = Journal(path, SystemClock(), **options)  # type: ignore[arg-type]
    journal.open()
    try:
        yield journal
    finally:
        await journal.close(2.0)


@contextlib.contextmanager
def full_disk() -> Iterator[None]:
    """No file may grow beyond 32 kB, which the journal has reached: the kernel's own error, without root."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (32768, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


async def fill_log(journal: Journal) -> None:
    """Bring the journal past the size at which :func:`full_disk` cuts off."""
    settled: list[bool] = []
    journal.append([Note(at=1, text="x" * 60_000)], lambda _, durable: settled.append(durable))
    await until(lambda: settled == [True], "first row durable")


class TestWriting:
    async def test_rows_come_back_in_order_with_all_kinds(self, tmp_path: Path) -> None:
        path = tmp_path / "state" / "journal.db"
        events: list[AnyEvent] = [
            Transition(at=1, station="filler", source="idle", target="starting", cause="start", reason="öl"),
            CommandDone(at=2, id="1", command="start", args={"a": 1.5, "b": True}, user="u", client="c", accepted=True),
            AlarmChanged(at=3, station="filler", alarm="jam", change="active", priority=3, text="Jam"),
            counts("filler", 7),
        ]
        settled: list[tuple[int, bool]] = []
        async with opened(path) as journal:
            assert journal.append(events, lambda first, durable: settled.append((first, durable))) == 1
            assert journal.append([note(5)], lambda first, durable: settled.append((first, durable))) == 5
            await until(lambda: len(settled) == 2, "both settled")
            assert settled == [(1, True), (5, True)]
            assert [r.event for r in read(path)] == [*events, note(5)]  # beside the running writer
        assert [r.seq for r in read(path)] == [1, 2, 3, 4, 5]
        verdict = verify(path)
        assert (verdict.rows, verdict.fault, verdict.last_seq) == (5, "", 5)
        assert verdict.last_hash == read(path)[-1].hash

    async def test_close_writes_what_waits_and_numbers_go_on_after_a_restart(self, tmp_path: Path) -> None:
        path = tmp_path / "journal.db"
        journal = Journal(path, SystemClock())
        journal.open()
        journal.append([note(n) for n in range(3000)])
        assert await journal.close() == 0
        assert await journal.close() == 0
        async with opened(path) as again:
            assert again.append([note(3000)]) == 3001
        assert verify(path).rows == 3001

    async def test_durable_means_on_disk_before_the_sender_is_told(self, tmp_path: Path) -> None:
        path = tmp_path / "journal.db"
        seen: list[int] = []

        def check(first: int, durable: bool) -> None:
            with contextlib.closing(sqlite3.connect(path)) as con:
                seen.append(con.execute("SELECT max(seq) FROM journal").fetchone()[0] - first)

        async with opened(path) as journal:
            for n in range(50):
                journal.append([note(n)], check)
                await asyncio.sleep(0)
            await until(lambda: len(seen) == 50, "all settled")
        assert min(seen) >= 0

    async def test_an_append_without_events_is_settled_in_its_turn(self, tmp_path: Path) -> None:
        order: list[str] = []
        async with opened(tmp_path / "journal.db") as journal:
            journal.append([], lambda _, durable: order.append(f"empty {durable}"))
            assert order == ["empty True"]
            journal.append([note(1)], lambda _, durable: order.append("one"))
            journal.append([], lambda _, durable: order.append("after"))
            assert order == ["empty True"]
            await until(lambda: len(order) == 3, "settled")
        assert order == ["empty True", "one", "after"]

    async def test_not_a_number_and_broken_text_are_recorded_readably(self, tmp_path: Path) -> None:
        path = tmp_path / "journal.db"
        nan = float("nan")
        async with opened(path) as journal:
            journal.append(
                [
                    OutputFailed(at=1, station="f", tag="f.sp", value=nan, outcome="rejected", reason="null"),
                    StopRecorded(at=2, station="f", reason="r", cause_station="f", started=0, seconds=float("inf")),
                    Note(at=3, text="half a \ud83d pair"),
                    Note(at=4, station="\ud83d", text="the word null is fine"),
                ]
            )
        rows = read(path)
        assert isinstance(rows[0].event, OutputFailed) and rows[0].event.value == "nan"
        assert isinstance(rows[1].event, Note) and "could not be encoded" in rows[1].event.text
        assert isinstance(rows[2].event, Note) and "\\ud83d" in rows[2].event.text
        assert verify(path).fault == ""

    async def test_two_writers_cannot_fork_the_chain(self, tmp_path: Path) -> None:
        path = tmp_path / "journal.db"
        async with opened(path, retry_s=0.02) as first, opened(path, retry_s=0.02) as second:
            settled: list[bool] = []
            first.append([note(1)], lambda _, durable: settled.append(durable))
            await until(lambda: settled, "first writer's row")
            second.append([note(2)])
            await until(lambda: not second.poll().healthy, "second writer sees it")
            assert "another program" in second.poll().reason
        assert verify(path).rows == 1


class TestReading:
    @pytest.fixture
    async def path(self, tmp_path: Path) -> Path:
        path = tmp_path / "journal.db"
        async with opened(path) as journal:
            journal.append([note(n, "filler" if n % 2 else "capper") for n in range(1, 101)])
            journal.append(
                [Transition(at=200 + n, station="filler", source="a", target="b", cause="c") for n in range(5)]
            )
        return path

    def test_filters(self, path: Path) -> None:
        assert [r.seq for r in read(path, limit=2)] == [104, 105]
        assert [r.seq for r in read(path, kinds=["transition"], limit=3)] == [103, 104, 105]
        assert len(read(path, kinds=["note"], station="filler")) == 50
        assert [r.seq for r in read(path, since_ns=203)] == [104, 105]
        assert read(path, since_ns=10**9) == []
        assert [r.seq for r in read(path, after_seq=103)] == [104, 105]
        assert read(path, station="") == []
        with pytest.raises(ValueError, match=r"no such kind of event: nots; there are .*note"):
            read(path, kinds=["nots"])

    def test_every_event_class_has_a_kind(self) -> None:
        assert {"transition", "command", "alarm", "counts", "changeover", "overrun", "note"} <= set(KINDS.values())
        assert len(set(KINDS.values())) == len(KINDS)

    def test_queries_use_an_index(self, path: Path) -> None:
        with contextlib.closing(sqlite3.connect(path)) as con:
            for where in ("kind = 'x'", "station = 'x'", "kind = 'x' AND station = 'y'"):
                plan = con.execute(f"EXPLAIN QUERY PLAN SELECT max(seq) FROM journal WHERE {where}").fetchall()
                assert "USING COVERING INDEX" in plan[0][3], (where, plan)

    async def test_counts_and_recipe_for_going_on_after_a_crash(self, tmp_path: Path) -> None:
        path = tmp_path / "journal.db"
        assert last_counts(path) == {}
        assert last_recipe(path) is None

        def changeover(n: int, target: str, step: str) -> ChangeoverChanged:
            return ChangeoverChanged(at=n, id=n, source="", target=target, step=step)

        async with opened(path) as journal:
            journal.append([counts("filler", n) for n in range(10)])
            journal.append([counts("capper", 4), counts("", 3)])
            journal.append([changeover(1, "cola", "committed"), changeover(2, "lemon", "staging")])
        assert {k: v.good for k, v in last_counts(path).items()} == {"filler": 9, "capper": 4, "": 3}
        recipe = last_recipe(path)
        assert recipe is not None and recipe.target == "cola"

    def test_a_missing_journal_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(JournalError, match=r"no\.db: there is no journal here"):
            read(tmp_path / "no.db")

    def test_reading_leaves_no_files_behind(self, path: Path) -> None:
        before = sorted(p.name for p in path.parent.iterdir())
        assert len(read(path)) == 105
        assert sorted(p.name for p in path.parent.iterdir()) == before


class TestTampering:
    @pytest.fixture
    async def path(self, tmp_path: Path) -> Path:
        path = tmp_path / "journal.db"
        async with opened(path) as journal:
            journal.append([note(n) for n in range(20)])
        return path

    @pytest.mark.parametrize(
        ("sql", "fault"),
        [
            ("UPDATE journal SET payload = replace(payload, 'note 4', 'note 5') WHERE seq = 5", "row 5 does not match"),
            ("UPDATE journal SET at = 77 WHERE seq = 5", "row 5 does not match"),
            ("UPDATE journal SET station = 'filler' WHERE seq = 5", "row 5 does not match"),
            ("UPDATE journal SET hash = zeroblob(32) WHERE seq = 5", "row 5 does not match"),
            ("UPDATE journal SET kind = x'00' WHERE seq = 5", "row 5 does not match"),
            ("DELETE FROM journal WHERE seq = 5", "rows 5 to 5 are missing"),
            ("DELETE FROM journal WHERE seq < 3", "rows 1 to 2 are missing"),
        ],
    )
    async def test_it_is_found_and_a_start_is_refused(self, path: Path, sql: str, fault: str) -> None:
        with contextlib.closing(sqlite3.connect(path)) as con:
            con.execute(sql)
            con.commit()
        assert fault in verify(path).fault
        journal = Journal(path, SystemClock())
        with pytest.raises(JournalError, match=r"journal\.db: the journal is damaged: .*move it aside.*--journal"):
            journal.open()
        assert await journal.close() == 0

    @pytest.mark.parametrize("how", ["garbage", "empty", "truncated", "page"])
    def test_a_corrupt_file_is_refused_and_left_as_it_is(self, path: Path, how: str) -> None:
        content = path.read_bytes()
        broken = {
            "garbage": b"this is not a database, but it is long enough to look at" * 100,
            "empty": b"",
            "truncated": content[: len(content) // 2],
            "page": content[:4096] + bytes(4096) + content[8192:],
        }[how]
        path.write_bytes(broken)
        with pytest.raises(JournalError, match=r"journal\.db.*damaged"):
            open_checked(path)
        assert path.read_bytes() == broken

    async def test_a_journal_of_another_version_is_refused(self, path: Path) -> None:
        with contextlib.closing(sqlite3.connect(path)) as con:
            con.execute("PRAGMA user_version = 99")
        with pytest.raises(JournalError, match="schema 99"):
            Journal(path, SystemClock()).open()
        with pytest.raises(JournalError, match="schema 99"):
            read(path)

    async def test_a_place_that_cannot_be_written_is_refused(self, tmp_path: Path) -> None:
        await asyncio.to_thread((tmp_path / "file").write_text, "")
        with pytest.raises(JournalError, match="--journal"):
            Journal(tmp_path / "file" / "journal.db", SystemClock()).open()
        (tmp_path / "dir.db").mkdir()
        with pytest.raises(JournalError, match="--journal"):
            Journal(tmp_path / "dir.db", SystemClock()).open()


class TestFaults:
    async def test_disk_full_control_goes_on_and_all_is_written_later(self, tmp_path: Path) -> None:
        path = tmp_path / "journal.db"
        settled: list[tuple[int, bool]] = []
        async with opened(path, retry_s=0.02) as journal:
            await fill_log(journal)
            with full_disk():
                first = journal.append([Note(at=2, text="y" * 60_000)], lambda n, ok: settled.append((n, ok)))
                await until(lambda: not journal.poll().healthy, "unhealthy")
                health = journal.poll()
                assert "journal.db" in health.reason and health.waiting >= 1 and health.lost == 0
                assert settled == [(first, False)]
                journal.append([note(3)], lambda n, ok: settled.append((n, ok)))
                assert settled[-1] == (first + 1, False)  # told at once, nobody waits for a full disk
                assert journal.refusal(Command(id="1", target="line", name="start")) is not None
                assert journal.refusal(Command(id="2", target="line", name="changeover")) is not None
                for name in ("stop", "abort", "hold"):
                    assert journal.refusal(Command(id="3", target="line", name=name)) is None
            await until(lambda: journal.poll().healthy, "healthy again")
            assert journal.refusal(Command(id="1", target="line", name="start")) is None
            await until(lambda: journal.poll().waiting == 0, "all written")
            assert len(settled) == 2  # each was told once
        assert [r.seq for r in read(path)] == [1, 2, 3]
        assert verify(path).fault == ""

    async def test_when_the_queue_is_full_the_oldest_are_lost_with_a_note(self, tmp_path: Path) -> None:
        path = tmp_path / "journal.db"
        async with opened(path, retry_s=0.02, limit=100, batch=10) as journal:
            await fill_log(journal)
            with full_disk():
                journal.append([Note(at=2, text="y" * 60_000)])  # seq 2, held by the writer
                await until(lambda: not journal.poll().healthy, "unhealthy")
                for n in range(3, 253):
                    journal.append([note(n)])
                health = journal.poll()
                assert (health.lost, health.waiting) == (150, 101)
            await until(lambda: journal.poll().waiting == 0, "all written")
            assert journal.poll().healthy
        rows = read(path)
        assert [r.seq for r in rows] == [1, 2, 152, *range(153, 253)]
        gap = rows[2].event
        assert isinstance(gap, Note) and gap.text.startswith("gap: events 3 to 152 (150) were lost")
        assert verify(path).fault == ""

    async def test_a_burst_beyond_the_queue_is_counted_not_hidden(self, tmp_path: Path) -> None:
        path = tmp_path / "journal.db"
        async with opened(path, limit=100) as journal:
            settled: list[bool] = []
            journal.append([note(n) for n in range(1000)], lambda _, ok: settled.append(ok))
            assert settled == [False]
            assert journal.poll().lost == 900
            await until(lambda: journal.poll().healthy, "healthy")
        assert [r.seq for r in read(path)] == list(range(900, 1001))
        assert verify(path).fault == ""

    async def test_a_deleted_file_is_noticed(self, tmp_path: Path) -> None:
        path = tmp_path / "journal.db"
        async with opened(path, retry_s=0.02) as journal:
            await fill_log(journal)
            aside = path.with_name("aside.db")
            path.rename(aside)
            journal.append([note(2)])
            await until(lambda: not journal.poll().healthy, "unhealthy")
            aside.rename(path)
            await until(lambda: journal.poll().healthy, "healthy after it was put back")
        assert [r.seq for r in read(path)] == [1, 2]

    async def test_a_locked_or_hanging_disk_is_noticed_without_an_error(self, tmp_path: Path) -> None:
        path = tmp_path / "journal.db"
        clock = ManualClock()
        journal = Journal(path, clock)
        journal.open()
        settled: list[bool] = []
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as con:
            con.execute("BEGIN IMMEDIATE")  # the writer's commit hangs behind this for two seconds
            journal.append([note(1)], lambda _, ok: settled.append(ok))
            assert journal.poll().healthy
            clock.advance(1_100_000_000)
            health = journal.poll()
            assert not health.healthy and "not answered for 1.1 s" in health.reason
            assert settled == [False]
            con.execute("ROLLBACK")
        await until(lambda: journal.poll().healthy, "healthy again")
        assert await journal.close() == 0
        assert len(read(path)) == 1

    async def test_close_gives_up_on_a_full_disk_and_says_how_many(self, tmp_path: Path) -> None:
        path = tmp_path / "journal.db"
        journal = Journal(path, SystemClock(), retry_s=10)
        journal.open()
        await fill_log(journal)
        with full_disk():
            journal.append([Note(at=2, text="y" * 60_000), note(3)])
            await until(lambda: not journal.poll().healthy, "unhealthy")
            journal.append([note(4)])
            begin = time.monotonic()
            assert await journal.close(0.3) == 3
            assert time.monotonic() - begin < 1.5

    async def test_kill_9_loses_no_acknowledged_row(self, tmp_path: Path) -> None:
        path = tmp_path / "journal.db"
        for turn in range(3):
            acked = await asyncio.to_thread(_write_until_killed, path, 150 + 100 * turn)
            verdict = verify(path)
            assert verdict.fault == ""
            assert verdict.last_seq >= acked > 0
            texts = {r.seq: r.event.text for r in read(path, limit=10**6) if isinstance(r.event, Note)}
            assert all(texts[n] == f"row {n}" for n in range(1, acked + 1))
            async with opened(path) as journal:  # and it opens again, and goes on
                assert journal.append([Note(at=0, text=f"row {verdict.last_seq + 1}")]) == verdict.last_seq + 1


_WRITER = """
import asyncio, pathlib, sys
from controller.core.events import Note
from controller.runtime.clock import SystemClock
from controller.runtime.journal import Journal

async def main():
    journal = Journal(pathlib.Path(sys.argv[1]), SystemClock(), batch=7)
    journal.open()
    n = journal.append([])
    while True:
        count = n % 5 + 1
        events = [Note(at=n + i, text=f"row {n + i}") for i in range(count)]
        def told(first, durable, last=n + count - 1):
            assert durable
            print(last, flush=True)
        journal.append(events, told)
        n += count
        await asyncio.sleep(0.0005)

asyncio.run(main())
"""


def _write_until_killed(path: Path, acks: int) -> int:
    """Run a writer, kill -9 it after ``acks`` acknowledgements; returns the last one that was seen."""
    argv = [sys.executable, "-c", _WRITER, str(path)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, cwd=Path.cwd()) as process:
        assert process.stdout is not None
        last = 0
        for _ in range(acks):
            last = int(process.stdout.readline())
        os.kill(process.pid, signal.SIGKILL)
        for line in process.stdout:  # what it had said before it died counts too
            if line.endswith("\n"):
                last = int(line)
    assert process.returncode == -signal.SIGKILL
    return last


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 kB, where this user may mount one."""
    where = tmp_path / "tiny"
    where.mkdir()
    argv = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(where)]
    try:
        mounted = subprocess.run(argv, capture_output=True, check=False).returncode == 0
    except OSError:
        mounted = False
    if not mounted:
        pytest.skip("this user may not mount a tmpfs")
    try:
        yield where
    finally:
        subprocess.run(["umount", str(where)], capture_output=True, check=True)


async def test_a_really_full_file_system(tiny_disk: Path) -> None:
    path = tiny_disk / "journal.db"
    async with opened(path, retry_s=0.02) as journal:
        ballast = tiny_disk / "ballast"
        journal.append([note(1)])
        await until(lambda: journal.poll().waiting == 0, "first row")
        with contextlib.suppress(OSError), ballast.open("wb") as out:
            for _ in range(300):
                out.write(bytes(4096))
                out.flush()
        journal.append([Note(at=2, text=json.dumps("z" * 100_000))])
        await until(lambda: not journal.poll().healthy, "unhealthy")
        assert "full" in journal.poll().reason
        assert len(read(path)) == 1  # what is there stays readable
        ballast.unlink()
        await until(lambda: journal.poll().healthy and journal.poll().waiting == 0, "written after all")
    assert [r.seq for r in read(path)] == [1, 2]
    assert verify(path).fault == ""
