"""The record: the journal's file as it lies on disk, and how to read and check it.

Everything here works on a closed or a running journal; only :mod:`controller.runtime.journal` writes.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import sqlite3
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import msgspec

from controller.core.events import AnyEvent, ChangeoverChanged, CountsChanged, Note

SCHEMA_VERSION = 1
QUICK_CHECK_BYTES = 256 * 1024 * 1024
"""Files up to this size are checked page by page at start (about a second), larger ones by their last rows."""
TAIL_ROWS = 1000
"""How many of the last rows have their hash chain checked at start."""
KINDS: dict[type, str] = {t: str(t.__struct_config__.tag) for t in get_args(AnyEvent)}
"""Event classes and the names of their kinds in the record."""
GENESIS = bytes(32)
"""What the first row's hash is chained to."""

DbRow = tuple[int, int, str, str, bytes, bytes]
"""seq, at, kind, station, payload, hash."""

_LENGTHS = struct.Struct(">qqHHI")
_COLUMNS = "seq, at, kind, station, payload, hash"
# An index of SQLite ends with the row's number, which is seq: each of these is also an order by seq.
_SCHEMA = f"""
BEGIN IMMEDIATE;
CREATE TABLE journal (
    seq INTEGER PRIMARY KEY, at INTEGER NOT NULL, kind TEXT NOT NULL, station TEXT NOT NULL,
    payload BLOB NOT NULL, hash BLOB NOT NULL
);
CREATE INDEX journal_kind ON journal (kind);
CREATE INDEX journal_station ON journal (station);
CREATE INDEX journal_kind_station ON journal (kind, station);
CREATE INDEX journal_at ON journal (at);
PRAGMA user_version = {SCHEMA_VERSION};
COMMIT;
"""
_DECODER: msgspec.json.Decoder[AnyEvent] = msgspec.json.Decoder(AnyEvent)


class JournalError(Exception):
    """The journal cannot be opened, read or trusted; the text names file and reason and says what to do."""


@dataclass(frozen=True, slots=True)
class Row:
    """One row: its sequence number, its hash in hexadecimal, and the event."""

    seq: int
    hash: str
    event: AnyEvent


@dataclass(frozen=True, slots=True)
class Verdict:
    """Result of :func:`verify`: rows found sound, and the first fault (empty = the chain is whole).

    ``last_seq`` and ``last_hash`` are of the last sound row; noted elsewhere, they also prove later that
    nothing was cut off at the end.
    """

    rows: int
    fault: str
    last_seq: int
    last_hash: str


# ------------------------------------------------------------------------------------------- rows and chain


def make_row(previous: bytes, seq: int, event: AnyEvent) -> DbRow:
    """The row of ``event``, chained to the hash before it. Never fails: see :func:`_payload`."""
    kind, payload = _payload(event)
    station = event.station.encode("utf-8", "backslashreplace").decode()
    row = (seq, event.at, kind, station, payload)
    return (*row, _chain(previous, row))


def gap(first: int, last: int, at: int, reason: str) -> Note:
    """The note that stands, under number ``last``, for the lost events ``first`` to ``last``."""
    return Note(at=at, text=f"gap: events {first} to {last} ({last - first + 1}) were lost: {reason}")


def _chain(previous: bytes, row: tuple[int, int, str, str, bytes]) -> bytes:
    """sha256 over the hash before and the row, with the lengths of its texts, so that nothing can slide."""
    seq, at, kind, station, payload = row
    k, s = kind.encode(), station.encode()
    lengths = _LENGTHS.pack(seq, at, len(k), len(s), len(payload))
    return hashlib.sha256(previous + lengths + k + s + payload).digest()


def _payload(event: AnyEvent) -> tuple[str, bytes]:
    """Kind and JSON of an event, such that it can be read back.

    JSON has no NaN: where the field allows a text, "nan" or "inf" is recorded. An event that cannot be
    encoded at all must not stop the record, so a note with its text takes its place.
    """
    try:
        payload = msgspec.json.encode(event)
        if b"null" in payload:
            payload = msgspec.json.encode(_finite(msgspec.to_builtins(event)))
        _DECODER.decode(payload)
    except (TypeError, ValueError, OverflowError, msgspec.MsgspecError) as exc:
        text = f"event could not be encoded ({exc}): {event!r}".encode("ascii", "backslashreplace").decode()
        return KINDS[Note], msgspec.json.encode(Note(at=event.at, text=text))
    return KINDS[type(event)], payload


def _finite(value: object) -> object:
    if isinstance(value, float) and not math.isfinite(value):
        return repr(value)
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    return value


def check_chain(con: sqlite3.Connection, after: int = 0) -> Verdict:
    """Walk the chain from the row after ``after`` on; that row's own hash is taken as given."""
    seq, previous, rows = 0, GENESIS, 0
    if after:
        start = con.execute("SELECT seq, hash FROM journal WHERE seq = ?", (after,)).fetchone()
        if start is not None:
            seq, previous = int(start[0]), bytes(start[1])
    found: DbRow
    for found in con.execute(f"SELECT {_COLUMNS} FROM journal WHERE seq > ? ORDER BY seq", (seq,)):
        n, digest = found[0], found[5]
        if n != seq + 1 and not _explained(seq, n, found[4]):
            return Verdict(rows, f"rows {seq + 1} to {n - 1} are missing", seq, previous.hex())
        try:
            sound = _chain(previous, found[:5]) == digest
        except (TypeError, AttributeError, struct.error):  # a column was overwritten with another type
            sound = False
        if not sound:
            return Verdict(rows, f"row {n} does not match its hash", seq, previous.hex())
        seq, previous, rows = n, digest, rows + 1
    return Verdict(rows, "", seq, previous.hex())


def _explained(seq: int, n: int, payload: bytes) -> bool:
    """Whether row ``n`` is the note that stands for the lost rows ``seq + 1`` to ``n``."""
    try:
        event = _DECODER.decode(payload)
    except (msgspec.MsgspecError, TypeError):
        return False
    return isinstance(event, Note) and event.text.startswith(f"gap: events {seq + 1} to {n} ")


def tail(con: sqlite3.Connection) -> tuple[int, bytes]:
    """Number and hash of the last row; ``(0, GENESIS)`` when there is none."""
    row = con.execute("SELECT seq, hash FROM journal ORDER BY seq DESC LIMIT 1").fetchone()
    return (0, GENESIS) if row is None else (int(row[0]), bytes(row[1]))


# ------------------------------------------------------------------------------------------------- the file


def open_for_writing(path: Path, *, create: bool) -> sqlite3.Connection:
    """A connection whose commits survive a power cut. Raises :class:`sqlite3.Error`."""
    uri = f"{path.absolute().as_uri()}?mode={'rwc' if create else 'rw'}"
    con = sqlite3.connect(uri, uri=True, isolation_level=None, check_same_thread=False, timeout=2.0)
    try:
        mode = con.execute("PRAGMA journal_mode=WAL").fetchone()[0]
        if mode != "wal":
            raise sqlite3.OperationalError(f"the file system cannot do write-ahead logging ({mode})")
        con.execute("PRAGMA synchronous=FULL")
        con.execute("PRAGMA journal_size_limit=67108864")
    except sqlite3.Error:
        con.close()
        raise
    return con


def open_checked(path: Path) -> sqlite3.Connection:
    """Make a new journal or open an old one, checked. Raises :class:`JournalError`; changes no damaged file."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and path.stat().st_size == 0 and not _wal(path).exists():
            raise damaged(path, "the file is empty")
        con = open_for_writing(path, create=True)
        try:
            _prepare(con, path)
        except (sqlite3.Error, JournalError, OSError):
            con.close()
            raise
    except sqlite3.OperationalError as exc:
        raise JournalError(
            f"{path}: cannot be opened for writing: {exc}; see that its directory is writable for this user "
            "and has space, and that no other program has it open, or name another file with --journal"
        ) from exc
    except sqlite3.DatabaseError as exc:
        raise damaged(path, str(exc)) from exc
    except OSError as exc:
        raise JournalError(f"{path}: cannot be used: {exc}; name another file with --journal") from exc
    return con


def _wal(path: Path) -> Path:
    return path.with_name(path.name + "-wal")


def _prepare(con: sqlite3.Connection, path: Path) -> None:
    version = con.execute("PRAGMA user_version").fetchone()[0]
    tables = [str(r[0]) for r in con.execute("SELECT name FROM sqlite_master WHERE type='table'")]
    if version == 0 and not tables:
        con.executescript(_SCHEMA)
        return
    if version != SCHEMA_VERSION or "journal" not in tables:
        raise JournalError(
            f"{path}: not a journal of this version (schema {version}, this program writes "
            f"{SCHEMA_VERSION}); start the version that wrote it, or name another file with --journal"
        )
    if path.stat().st_size <= QUICK_CHECK_BYTES:
        found = str(con.execute("PRAGMA quick_check(1)").fetchone()[0])
        if found != "ok":
            raise damaged(path, found)
    fault = check_chain(con, after=max(0, tail(con)[0] - TAIL_ROWS)).fault
    if fault:
        raise damaged(path, fault)


def damaged(path: Path, what: str) -> JournalError:
    """The refusal of a damaged file."""
    return JournalError(
        f"{path}: the journal is damaged: {what}. It was left as it is. Keep it for the record: move it "
        "aside (with its -wal and -shm files) and start anew, or name another file with --journal"
    )


# ---------------------------------------------------------------------------------------------- the readers


def _connect(path: Path) -> sqlite3.Connection:
    base = f"{path.absolute().as_uri()}?mode=ro"
    # A resting journal is read as an unchanging file: SQLite would otherwise leave -wal and -shm files behind
    # that belong to whoever looked, and the controller could then not open them.
    resting = not _wal(path).exists()
    con = sqlite3.connect(base + "&immutable=1" if resting else base, uri=True, timeout=2.0)
    if resting and _wal(path).exists():  # a writer came in between
        con.close()
        con = sqlite3.connect(base, uri=True, timeout=2.0)
    return con


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[sqlite3.Connection]:
    """A read-only connection, in one view of the file. Raises :class:`JournalError`."""
    if not path.exists():
        raise JournalError(f"{path}: there is no journal here; name its file with --journal")
    try:
        con = _connect(path)
        try:
            version = con.execute("PRAGMA user_version").fetchone()[0]
            if version != SCHEMA_VERSION:
                raise JournalError(
                    f"{path}: not a journal of this version (schema {version}, not {SCHEMA_VERSION}); read it "
                    "with the version that wrote it, or move the file aside if it is not a journal at all"
                )
            yield con
        finally:
            con.close()
    except sqlite3.Error as exc:
        raise JournalError(f"{path}: cannot be read: {exc}") from exc


def _event(row: DbRow) -> AnyEvent:
    seq, at, _, station, payload, _ = row
    try:
        return _DECODER.decode(payload)
    except (msgspec.MsgspecError, TypeError) as exc:
        return Note(at=at, station=station, text=f"row {seq} cannot be decoded ({exc}): {payload!r}")


def read(
    path: Path,
    *,
    kinds: Iterable[str] = (),
    station: str | None = None,
    since_ns: int | None = None,
    after_seq: int = 0,
    limit: int = 1000,
) -> list[Row]:
    """The newest ``limit`` rows that match, oldest first. Safe beside a running writer.

    ``kinds`` are event tags (``transition``, ``alarm`` …; empty = all), ``station`` a name (``""`` = the line
    itself), ``since_ns`` UTC nanoseconds, ``after_seq`` a sequence number to follow on from. Raises
    :class:`JournalError`, and :class:`ValueError` for an unknown kind.
    """
    wanted = sorted(set(kinds))
    known = sorted(KINDS.values())
    unknown = [k for k in wanted if k not in known]
    if unknown:
        raise ValueError(f"no such kind of event: {', '.join(unknown)}; there are {', '.join(known)}")
    where = ["seq > ?"]
    args: list[int | str] = [after_seq]
    if wanted:
        where.append(f"kind IN ({', '.join('?' * len(wanted))})")
        args += wanted
    if station is not None:
        where.append("station = ?")
        args.append(station)
    if since_ns is not None:
        # The clock may have been stepped: time bounds the search from below but does not order it.
        first = "SELECT min(seq) FROM journal INDEXED BY journal_at WHERE at >= ?"
        where.append(f"seq >= coalesce(({first}), {2**63 - 1}) AND at >= ?")
        args += [since_ns, since_ns]
    sql = f"SELECT {_COLUMNS} FROM journal WHERE {' AND '.join(where)} ORDER BY seq DESC LIMIT ?"
    with _reading(path) as con:
        found: list[DbRow] = con.execute(sql, (*args, max(0, limit))).fetchall()
    return [Row(row[0], row[5].hex(), _event(row)) for row in reversed(found)]


def verify(path: Path) -> Verdict:
    """Check the hash chain over all rows. Raises :class:`JournalError` when the file cannot be read."""
    with _reading(path) as con:
        return check_chain(con)


def last_counts(path: Path) -> dict[str, CountsChanged]:
    """The latest counts of every station that ever counted; empty when there is no journal yet."""
    if not path.exists():
        return {}
    # One step per station along the index, not one per row.
    sql = """
        WITH RECURSIVE names(station) AS (
            SELECT min(station) FROM journal WHERE kind = 'counts'
            UNION ALL
            SELECT (SELECT min(station) FROM journal WHERE kind = 'counts' AND station > names.station)
            FROM names WHERE names.station IS NOT NULL
        )
        SELECT payload FROM names JOIN journal ON journal.seq =
            (SELECT max(seq) FROM journal WHERE kind = 'counts' AND station = names.station)
        WHERE names.station IS NOT NULL
    """
    with _reading(path) as con:
        events = [_DECODER.decode(payload) for (payload,) in con.execute(sql)]
    return {e.station: e for e in events if isinstance(e, CountsChanged)}


def last_recipe(path: Path) -> ChangeoverChanged | None:
    """The changeover that was committed last (its ``target`` is the recipe in force), or ``None``."""
    if not path.exists():
        return None
    with _reading(path) as con:
        for (payload,) in con.execute("SELECT payload FROM journal WHERE kind = 'changeover' ORDER BY seq DESC"):
            event = _DECODER.decode(payload)
            if isinstance(event, ChangeoverChanged) and event.step == "committed":
                return event
    return None
