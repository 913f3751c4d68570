"""journal: reading, filtering, verifying."""

from __future__ import annotations

import json
import sqlite3
from datetime import UTC, datetime
from pathlib import Path

import pytest
import pytest_asyncio

from controller.cli.journal import parse_since, sentence
from controller.core import events as ev
from controller.runtime.clock import SystemClock
from controller.runtime.journal import Journal

AT = 1_767_225_600_000_000_000  # 2026-01-01T00:00:00Z
EVENTS: list[ev.AnyEvent] = [
    ev.Note(at=AT, text="the controller starts"),
    ev.Transition(at=AT + 10**9, station="filler", source="Idle", target="Starting", cause="start", reason="by anna"),
    ev.ModeChanged(at=AT + 10**9, station="filler", source="production", target="manual"),
    ev.CommandDone(
        at=AT + 2 * 10**9,
        station="line",
        id="1",
        command="start",
        user="anna",
        client="hmi",
        accepted=False,
        reason="no",
    ),
    ev.AlarmChanged(at=AT, station="filler", alarm="filler.jam", change="active", priority=3, text="Bottle jam"),
    ev.CountsChanged(at=AT, station="filler", product="water", infeed=3, good=2, rejected=1, in_process=0),
    ev.ChangeoverChanged(at=AT, station="line", id=1, source="a", target="b", step="committed"),
    ev.LinkChanged(at=AT, plc="wet", up=False, reason="cable"),
    ev.OutputFailed(at=AT, station="filler", tag="filler.run", value=True, outcome="rejected", reason="no"),
    ev.StopRecorded(at=AT, station="filler", reason="jam", cause_station="infeed", started=AT, seconds=3.5),
    ev.ScanOverrun(at=AT, skipped=2, late_ms=120.0),
]


@pytest_asyncio.fixture
async def record(tmp_path: Path) -> Path:
    journal = Journal(tmp_path / "journal.db", SystemClock())
    journal.open()
    journal.append(EVENTS)
    assert await journal.close() == 0
    return tmp_path / "journal.db"


def test_rows_are_shown_oldest_first_and_filtered(cli, record: Path) -> None:
    everything = cli("journal", "--journal", record)
    assert (everything.code, len(everything.out.splitlines())) == (0, len(EVENTS))
    assert "the controller starts" in everything.out.splitlines()[0]
    assert "2026-01-01 00:00:01.000Z" in everything.out
    only = cli("journal", "--state-dir", record.parent, "--kind", "alarm", "--kind", "link", "--json")
    assert [json.loads(row)["event"] for row in only.out.splitlines()] == ["alarm", "link"]
    assert len(cli("journal", "--journal", record, "--station", "line").out.splitlines()) == 2
    newest = cli("journal", "--journal", record, "--limit", 1, "--json")
    assert json.loads(newest.out)["seq"] == len(EVENTS)
    assert len(cli("journal", "--journal", record, "--since", "2026-01-01T00:00:02").out.splitlines()) == 1


def test_verify_finds_an_altered_row(cli, record: Path) -> None:
    sound = cli("journal", "--journal", record, "--verify", "--json")
    assert (sound.code, json.loads(sound.out)["rows"]) == (0, len(EVENTS))
    con = sqlite3.connect(record)
    with con:
        con.execute("UPDATE journal SET payload = replace(payload, 'anna', 'otto') WHERE seq = 4")
    con.close()
    altered = cli("journal", "--journal", record, "--verify")
    assert altered.code == 1
    assert "row 4" in altered.err


def test_what_is_wrong_is_said(cli, record: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = cli("journal", "--journal", record, "--kind", "gossip")
    assert (kind.code, "transition" in kind.err) == (2, True)
    assert cli("journal", "--journal", record, "--since", "yesterday").code == 2
    missing = cli("journal", "--journal", tmp_path / "none.db")
    assert (missing.code, "none.db" in missing.err) == (1, True)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "empty"))
    monkeypatch.delenv("STATE_DIRECTORY", raising=False)
    assert cli("journal").code == 2


def test_since_takes_a_time_ago_or_a_date() -> None:
    now = datetime(2026, 1, 2, tzinfo=UTC)
    assert parse_since("90m", now) == AT + (24 * 3600 - 90 * 60) * 10**9
    assert parse_since("1d", now) == AT
    assert parse_since("2026-01-01") == AT
    assert parse_since("2026-01-01T01:00:00+01:00") == AT
    assert parse_since(None) is None


def test_every_kind_of_event_has_words() -> None:
    assert {type(e) for e in EVENTS} == set(ev.AnyEvent.__args__)  # type: ignore[attr-defined]
    texts = [sentence(e) for e in EVENTS]
    assert all(texts)
    assert "REFUSED" in texts[3]
    assert "NOT connected: cable" in texts[7]
