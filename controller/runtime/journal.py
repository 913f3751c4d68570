"""The journal: the durable truth about what happened.

One SQLite file (WAL, ``synchronous=FULL``: a commit survives a power cut), appended to by one thread of its
own, so that a slow disk never holds up a scan. Rows are numbered and chained by hash, so that one changed,
removed or inserted afterwards is found by :func:`verify`.

When the disk is full, read-only or broken, control goes on: the journal turns unhealthy with a reason, events
wait in memory, bounded, and are written as soon as the disk is back in order. Only when that memory is full
are the oldest lost, and then a row in their place says how many. See docs/journal.md.
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from controller.core.commands import Command
from controller.core.events import AnyEvent
from controller.runtime.clock import Clock
from controller.runtime.record import (
    GENESIS,
    KINDS,
    DbRow,
    JournalError,
    Row,
    Verdict,
    gap,
    last_counts,
    last_recipe,
    make_row,
    open_checked,
    open_for_writing,
    read,
    tail,
    verify,
)

__all__ = [
    "KINDS",
    "UNAUDITED",
    "Health",
    "Journal",
    "JournalError",
    "OnSettled",
    "Row",
    "Verdict",
    "last_counts",
    "last_recipe",
    "read",
    "verify",
]

UNAUDITED = frozenset({"stop", "abort", "hold"})
"""Commands that are obeyed even when they cannot be recorded: the ones that make a line quieter."""
OnSettled = Callable[[int, bool], None]
"""Called once, in order, on the event loop: the first event's sequence number, and whether the record is
durable. ``False`` means that the journal is unhealthy; the events still wait to be written."""

_INSERT = "INSERT INTO journal (seq, at, kind, station, payload, hash) VALUES (?, ?, ?, ?, ?, ?)"
_REPLACED = "the file was removed or replaced while in use; put the original back, or start the program anew"


@dataclass(frozen=True, slots=True)
class Health:
    """Whether the record is being kept, and if not, why.

    ``waiting`` events are not durable yet; ``lost`` never will be (since the program started).
    """

    healthy: bool
    reason: str
    waiting: int
    lost: int


@dataclass(slots=True)
class _Unsettled:
    """An append that its sender has not been told about yet."""

    first: int
    last: int
    since_ns: int
    tell: OnSettled | None


class Journal:
    """The writer; its public side is for the event loop's thread alone.

    At most ``limit`` events wait, and one ``batch`` is being committed; at the bound the oldest are lost and
    counted, and a note takes their place. ``retry_s`` is the pause after a failed write. A commit that has
    not come back after ``stall_s`` makes the journal unhealthy as well: a disk that hangs gives no error.
    """

    def __init__(
        self,
        path: Path,
        clock: Clock,
        *,
        limit: int = 50_000,
        batch: int = 500,
        retry_s: float = 1.0,
        stall_s: float = 1.0,
    ) -> None:
        if limit < 1 or batch < 1:
            raise ValueError("limit and batch must be at least 1")
        self.path = path
        self._clock = clock
        self._limit, self._batch = limit, batch
        self._retry_s, self._stall_ns = retry_s, int(stall_s * 1e9)
        self._unsettled: deque[_Unsettled] = deque()
        self._stalled = ""
        self._next = 1
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ended: asyncio.Event | None = None
        self._thread: threading.Thread | None = None
        # Shared with the writer thread, under this lock, which is never held during I/O:
        self._wake = threading.Condition()
        self._queue: deque[tuple[int, AnyEvent]] = deque()
        self._inflight = 0
        self._durable = 0
        self._failure = ""
        self._lost = 0
        self._gap: tuple[int, int, str] | None = None
        self._stopping = self._give_up = False
        # The writer thread's own:
        self._con: sqlite3.Connection | None = None
        self._file: tuple[int, int] = (0, 0)
        self._tail: tuple[int, bytes] = (0, GENESIS)

    # ------------------------------------------------------------------------------------------- life

    def open(self) -> None:
        """Open or make the file, check it, and start the writer thread. Call it with the event loop running.

        Raises :class:`JournalError` when the file cannot be used; the program is then to refuse to start.
        """
        self._loop = asyncio.get_running_loop()
        self._con = open_checked(self.path)
        self._file = self._identity()
        self._tail = tail(self._con)
        self._durable = self._tail[0]
        self._next = self._tail[0] + 1
        self._ended = asyncio.Event()
        self._thread = threading.Thread(target=self._write_all, name="journal", daemon=True)
        self._thread.start()

    async def close(self, timeout_s: float = 5.0) -> int:
        """Write what waits, then end the thread; returns how many events could not be written in time.

        A disk that hangs inside a write keeps its thread (a daemon) until the process ends.
        """
        if self._thread is None or self._ended is None:
            return 0
        with self._wake:
            self._stopping = True
            self._wake.notify()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._ended.wait()
        with self._wake:
            self._give_up = True
            self._wake.notify()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1.0):
                await self._ended.wait()
        if self._ended.is_set():
            self._thread.join()
        self._thread = None
        self._settle_all(durable=False)
        with self._wake:
            return len(self._queue) + self._inflight

    # --------------------------------------------------------------------------- the event loop's side

    def append(self, events: Sequence[AnyEvent], on_settled: OnSettled | None = None) -> int:
        """Queue events for writing; returns the sequence number of the first. Never waits for the disk.

        ``on_settled`` is told once the events, and all before them, are durable, or at once that they are not
        when the journal is unhealthy.
        """
        first = self._next
        self._next += len(events)
        with self._wake:
            self._queue.extend(enumerate(events, first))
            self._drop_oldest()
            self._wake.notify()
        self._unsettled.append(_Unsettled(first, self._next - 1, self._clock.monotonic_ns(), on_settled))
        if not self.healthy:
            self._settle_all(durable=False)
        elif not events:
            self._settle()
        return first

    def _drop_oldest(self) -> None:
        over = len(self._queue) - self._limit
        if over <= 0:
            return
        dropped = [self._queue.popleft()[0] for _ in range(over)]
        if not self._failure:
            self._failure = f"{self.path}: {self._limit} events wait for a disk that is too slow"
        # Always the oldest, so that what is lost between two batches is one range.
        self._gap = (self._gap[0] if self._gap else dropped[0], dropped[-1], self._failure)
        self._lost += over

    def poll(self) -> Health:
        """Health now. To be called every scan: this is where a disk that hangs without an error is noticed."""
        self._settle()
        if self._unsettled and not self._stalled:
            age = self._clock.monotonic_ns() - self._unsettled[0].since_ns
            if age > self._stall_ns:
                self._stalled = f"{self.path}: the disk has not answered for {age / 1e9:.1f} s"
        if self._thread is not None and not self._thread.is_alive() and not self._stopping:
            self._stalled = f"{self.path}: the writer has died, a fault of this program; start it anew, report it"
        if not self.healthy:
            self._settle_all(durable=False)
        with self._wake:
            reason = self._failure or self._stalled
            return Health(not reason, reason, len(self._queue) + self._inflight, self._lost)

    @property
    def healthy(self) -> bool:
        """Whether, as far as is known, events become durable."""
        return not (self._failure or self._stalled)

    def refusal(self, command: Command) -> str | None:
        """Why a command must not be queued now, or ``None``.

        While no record can be kept, what must be audited is refused; stop, abort and hold never are.
        """
        reason = self._failure or self._stalled
        if not reason or command.name in UNAUDITED:
            return None
        return (
            f"{command.name} is refused while no record can be kept ({reason}); stop, abort and hold still "
            "work; have the disk of the journal put in order"
        )

    def _settle(self) -> None:
        """Tell the senders of what has become durable."""
        with self._wake:
            durable = self._durable
        while self._unsettled and self._unsettled[0].last <= durable:
            done = self._unsettled.popleft()
            if done.tell is not None:
                done.tell(done.first, True)

    def _settle_all(self, *, durable: bool) -> None:
        while self._unsettled:
            done = self._unsettled.popleft()
            if done.tell is not None:
                done.tell(done.first, durable)

    def _committed(self) -> None:
        """On the event loop, after each commit: the disk answers."""
        self._stalled = ""
        self._settle()

    # ------------------------------------------------------------------------------ the writer thread

    def _write_all(self) -> None:
        """Body of the writer thread: batch after batch until told to stop."""
        try:
            while batch := self._take_batch():
                rows: list[DbRow] = []
                for seq, event in batch:
                    rows.append(make_row(rows[-1][5] if rows else self._tail[1], seq, event))
                while not self._commit(rows):
                    if self._pause():
                        return
                with self._wake:
                    self._inflight = 0
                    self._durable = self._tail[0]
                    self._failure = ""
                self._call(self._committed)
        finally:
            self._disconnect()
            if self._ended is not None:
                self._call(self._ended.set)

    def _call(self, function: Callable[[], None]) -> None:
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                self._loop.call_soon_threadsafe(function)

    def _take_batch(self) -> list[tuple[int, AnyEvent]]:
        """The next events to commit; empty when it is time to end."""
        with self._wake:
            self._wake.wait_for(lambda: self._queue or self._stopping)
            batch: list[tuple[int, AnyEvent]] = []
            if self._gap is not None:
                first, last, reason = self._gap
                self._gap = None
                batch.append((last, gap(first, last, self._clock.utc_ns(), reason)))
            while self._queue and len(batch) < self._batch:
                batch.append(self._queue.popleft())
            self._inflight = len(batch)
            return batch

    def _commit(self, rows: list[DbRow]) -> bool:
        """One attempt. A commit that failed may yet have happened: the file's last row decides, not the error."""
        try:
            con = self._con if self._con is not None else self._reconnect()
            if tail(con) != (rows[-1][0], rows[-1][5]):
                self._check_file(con)
                con.execute("BEGIN IMMEDIATE")
                con.executemany(_INSERT, rows)
                con.execute("COMMIT")
        except (sqlite3.Error, OSError) as exc:
            self._disconnect()
            with self._wake:
                self._failure = f"{self.path}: {exc}"
            return False
        self._tail = (rows[-1][0], rows[-1][5])
        return True

    def _identity(self) -> tuple[int, int]:
        stat = self.path.stat()
        return stat.st_dev, stat.st_ino

    def _check_file(self, con: sqlite3.Connection) -> None:
        """A file that was deleted or swapped takes rows without an error, and nobody would ever see them."""
        if self._identity() != self._file:
            raise OSError(_REPLACED)
        if tail(con) != self._tail:
            raise OSError("its last row is not the one written last: another program wrote to it")

    def _reconnect(self) -> sqlite3.Connection:
        if self._identity() != self._file:
            raise OSError(_REPLACED)
        con = open_for_writing(self.path, create=False)
        try:
            # After a failed fsync, pages may count as clean without being on the disk: have them written again.
            if con.execute("PRAGMA wal_checkpoint(FULL)").fetchone()[0]:
                raise sqlite3.OperationalError("another program keeps the file busy")
        except sqlite3.Error:
            con.close()
            raise
        self._con = con
        return con

    def _disconnect(self) -> None:
        if self._con is not None:
            with contextlib.suppress(sqlite3.Error):
                self._con.close()  # rolls back what is open
            self._con = None

    def _pause(self) -> bool:
        """Wait before the next attempt; whether to give up instead."""
        with self._wake:
            pause = min(self._retry_s, 0.1) if self._stopping else self._retry_s
            was_stopping = self._stopping
            self._wake.wait_for(lambda: self._give_up or self._stopping != was_stopping, pause)
            return self._give_up
