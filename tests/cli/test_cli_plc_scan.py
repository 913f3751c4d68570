"""plc watch, scan, id and bench; and all of them on OPC UA."""

from __future__ import annotations

import json
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plc_rig import CLI, Served, Terminal, identifies

from controller.cli.plc import explore, guard
from controller.cli.plc.explore import Explorer, spans, without
from tests.drivers.honest_modbus import SIZE, RtuServer, TcpServer
from tests.drivers.opcua_plc import URI, UaPlc

pytestmark = pytest.mark.wire
READS = {1, 2, 3, 4, 17, 43}
PATIENT = ("--timeout-ms", "5000", "--yes")
"""Where everything is answered, a busy machine must not look like a silent PLC."""


@pytest.fixture(autouse=True)
def own_state(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("STATE_DIRECTORY", "RUNTIME_DIRECTORY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setattr(guard, "SYSTEM_RUN", tmp_path / "run")
    monkeypatch.setattr(guard, "SYSTEM_STATE", tmp_path / "var")


@pytest.fixture
def served() -> Iterator[Served[TcpServer]]:
    with Served(lambda: TcpServer(3)) as rig:
        yield rig


@pytest.fixture
def plc(served: Served[TcpServer]) -> TcpServer:
    return served.server


def only(
    memory_answer: Callable[[bytes], bytes], present: dict[int, set[int]], most: int = 125
) -> Callable[[bytes], bytes]:
    """A device that has these addresses only (by function), and takes so many in one request."""

    def answer(pdu: bytes) -> bytes:
        if pdu[0] <= 4:
            first, count = int.from_bytes(pdu[1:3], "big"), int.from_bytes(pdu[3:5], "big")
            if count > most:
                return bytes((pdu[0] | 0x80, 3))
            if not set(range(first, first + count)) <= present.get(pdu[0], set()):
                return bytes((pdu[0] | 0x80, 2))
        return memory_answer(pdu)

    return answer


# --- watch ---------------------------------------------------------------------------------------------------


class Lines:
    """A command's stdout, line by line, with a limit on waiting."""

    def __init__(self, *argv: object) -> None:
        self.process = subprocess.Popen(
            [*CLI, *map(str, argv)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True
        )
        self.seen: list[str] = []
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._changed:
                self.seen.append(line.rstrip("\n"))
                self._changed.notify_all()

    def until(self, text: str, since: int = 0) -> int:
        """Wait for a line with this text after the first ``since`` ones; the number of lines up to it."""
        with self._changed:
            assert self._changed.wait_for(lambda: any(text in row for row in self.seen[since:]), 20), self.seen
            return next(n for n, row in enumerate(self.seen) if n >= since and text in row) + 1

    def __enter__(self) -> Lines:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        self._thread.join(10)
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        self.process.stdout.close()
        self.process.stderr.close()


def test_watch_tells_changes_goes_through_a_loss_and_sums_up(served: Served[TcpServer], plc: TcpServer) -> None:
    url = f"modbus-tcp://127.0.0.1:{plc.port}/3"
    with Lines("plc", "watch", url, "hr:1", "hr:2", "--every", "0.05") as watch:
        at = watch.until("hr:2 0")
        plc.memory.hr[1] = 5
        at = watch.until("hr:1 5", at)
        served.do(served.server.stop())
        at = watch.until("no connection", at)
        plc.memory.hr[1] = 9
        served.do(served.server.start())
        at = watch.until("connected to", at)
        watch.until("hr:1 9", at)
        watch.process.send_signal(signal.SIGINT)
        assert watch.process.wait(10) == 0
        watch._thread.join(10)
        text = "\n".join(watch.seen)
    assert "1 losses of connection" in text, text
    assert any(row.startswith("hr:1: ") and "0 … 9" in row and "last 9" in row for row in watch.seen)


def test_watch_ends_after_its_time_with_json(cli, plc: TcpServer) -> None:
    plc.memory.put("hr", 1, bytes.fromhex("7fc00000"))
    result = cli("plc", "watch", f"modbus-tcp://127.0.0.1:{plc.port}/3", "hr:1:REAL", "--for", "0.2", "--every", "0.05",
                 "--json")  # fmt: skip
    rows = [json.loads(row) for row in result.out.splitlines()]
    assert result.code == 0
    assert rows[-1]["value"] is None
    assert "NaN" in rows[-1]["reason"]


@pytest.mark.parametrize("width", [80, 120])
def test_watch_draws_on_a_terminal_until_ctrl_c(plc: TcpServer, width: int) -> None:
    argv = ("plc", "watch", f"modbus-tcp://127.0.0.1:{plc.port}/3", "hr:1", "hr:2:INT", "--every", "0.05")
    with Terminal(*argv, width=width) as screen:
        screen.until("✓ connected")
        plc.memory.hr[1] = 4711
        screen.until("● 4711")
        screen.process.send_signal(signal.SIGINT)
        assert screen.end() == 0
        assert "did not change" in screen.seen


# --- scan -----------------------------------------------------------------------------------------------------


def test_scan_finds_units_ranges_and_identity_with_reads_alone(cli, plc: TcpServer) -> None:
    plc.memory.answer = identifies(  # type: ignore[method-assign]
        only(plc.memory.answer, {3: {*range(100, 140), *range(500, 900)}, 1: set(range(64))})
    )
    url = f"modbus-tcp://127.0.0.1:{plc.port}"
    result = cli(
        "plc",
        "scan",
        url,
        "--units",
        "1..4",
        "--addresses",
        "0..1999",
        "--rate",
        "10000",
        "--timeout-ms",
        "5000",
        "--yes",
        "--json",
    )
    unit, end = map(json.loads, result.out.splitlines())
    assert result.code == 0
    assert (end["answering"], end["gateway_answers"]) == ([3], [1, 2, 4])
    areas = {area["area"]: area for area in unit["areas"]}
    assert areas["hr"]["readable"] == [[100, 139], [500, 899]]
    assert areas["hr"]["largest_block"] == 125
    assert areas["co"]["readable"] == [[0, 63]]
    assert areas["ir"]["readable"] == []
    assert unit["identity"]["vendor name"] == "Maker"
    assert unit["identity"]["object 128"] == "own"
    assert "PLC7" in unit["identity"]["server id (17)"]
    assert {pdu[0] for pdu in plc.requests} <= READS
    assert end["requests"] == len(plc.requests)
    assert "at most 10000 a second" in result.err
    assert "Do not do this on a running line" in result.err


def test_scan_keeps_its_budget_its_rate_and_what_is_to_be_avoided(cli, plc: TcpServer) -> None:
    url = f"modbus-tcp://127.0.0.1:{plc.port}/3"
    began = time.monotonic()
    result = cli("plc", "scan", url, "--areas", "hr", "--requests", "12", "--rate", "40", "--avoid", "hr:100..299",
                 "--avoid", "hr:0", *PATIENT, "--json")  # fmt: skip
    took = time.monotonic() - began
    unit, end = map(json.loads, result.out.splitlines())
    asked = [(int.from_bytes(pdu[1:3], "big"), int.from_bytes(pdu[3:5], "big")) for pdu in plc.requests if pdu[0] == 3]
    touched = {n for first, count in asked for n in range(first, first + count)}
    assert not touched & {0, *range(100, 300)}
    assert unit["areas"][0]["requests"] == 12
    assert "stopped after 12 requests" in unit["areas"][0]["note"]
    assert took >= (end["requests"] - 1) / 40


def test_a_device_that_takes_few_at_once_is_still_read(cli, plc: TcpServer) -> None:
    plc.memory.answer = only(plc.memory.answer, {3: set(range(300))}, most=40)  # type: ignore[method-assign]
    result = cli("plc", "scan", f"modbus-tcp://127.0.0.1:{plc.port}/3", "--areas", "hr", "--addresses", "0..299",
                 "--rate", "10000", *PATIENT, "--json")  # fmt: skip
    area = json.loads(result.out.splitlines()[0])["areas"][0]
    assert area["readable"] == [[0, 299]]
    assert area["largest_block"] <= 40


def test_scan_of_a_serial_line_where_most_are_silent(cli, tmp_path: Path) -> None:
    with Served(lambda: RtuServer(tmp_path, 17)) as rig:
        url = f"modbus-rtu://{rig.server.device}?baud=115200"
        result = cli("plc", "scan", url, "--units", "15..18", "--areas", "co", "--addresses", "0..99", "--rate", "1000",
                     "--timeout-ms", "250", "--yes", "--json")  # fmt: skip
    unit, end = map(json.loads, result.out.splitlines())
    assert (end["answering"], end["silent"]) == ([17], [15, 16, 18])
    assert unit["areas"][0]["readable"] == [[0, 99]]


def test_a_device_that_does_not_look_at_the_unit_is_shown_once(cli, plc: TcpServer) -> None:
    class Every(int):
        def __ne__(self, _other: object) -> bool:
            return False

    plc.unit = Every(3)
    result = cli("plc", "scan", f"modbus-tcp://127.0.0.1:{plc.port}", "--areas", "hr", "--addresses", "0..99", "--rate",
                 "1000", *PATIENT)  # fmt: skip
    assert result.code == 0
    assert "does not look at the unit" in result.out
    assert result.out.count("slowest answer") == 1
    assert len(plc.requests) < 30, "247 units were asked although eight said it all"


def test_ctrl_c_shows_what_was_found_so_far(plc: TcpServer) -> None:
    url = f"modbus-tcp://127.0.0.1:{plc.port}/3"
    with Terminal("plc", "scan", url, "--areas", "hr,co", "--rate", "20", "--yes", width=120) as screen:
        screen.until("hr:")
        screen.process.send_signal(signal.SIGINT)
        assert screen.end() == 130
        assert "unit 3 answers" in screen.seen
        assert "interrupted" in screen.seen


def test_nobody_answers_is_exit_1(cli, plc: TcpServer) -> None:
    result = cli("plc", "scan", f"modbus-tcp://127.0.0.1:{plc.port}", "--units", "5,6", *PATIENT)
    assert (result.code, "none of 2 units answers" in result.out) == (1, True)


@pytest.mark.parametrize(
    "words",
    [("--units", "0..300"), ("--units", "x"), ("--areas", "hx"), ("--addresses", "9..1"), ("--avoid", "hr:x")],
)
def test_a_scope_that_makes_no_sense_is_a_usage_error(cli, words: tuple[str, str]) -> None:
    assert cli("plc", "scan", "modbus-tcp://127.0.0.1:1/1", *words, "--yes").code == 2


@settings(max_examples=150, deadline=None)
@given(
    runs=st.lists(st.tuples(st.integers(0, 350), st.integers(1, 150)), max_size=5),
    most=st.integers(1, 125),
    avoid=st.lists(st.tuples(st.integers(0, 399), st.integers(0, 60)), max_size=3),
    budget=st.integers(0, 200),
)
def test_what_the_explorer_says_is_true(
    runs: list[tuple[int, int]], most: int, avoid: list[tuple[int, int]], budget: int
) -> None:
    present = {n for first, count in runs for n in range(first, min(400, first + count))}
    taboo = [(first, min(399, first + count)) for first, count in avoid]
    forbidden = {n for first, last in taboo for n in range(first, last + 1)}
    explorer, asked_for = Explorer(0, 399, 125, taboo), 0

    def sets() -> tuple[set[int], set[int], set[int]]:
        found = explorer.found(0, 399)
        three = [{n for a, b in part for n in range(a, b + 1)} for part in
                 (found.readable, found.absent, found.unsettled)]  # fmt: skip
        assert sum(map(len, three)) == 400
        assert set.union(*three) == set(range(400))
        return three[0], three[1], three[2]

    while (span := explorer.next()) is not None:
        asked = set(range(span[0], span[1] + 1))
        assert not asked & forbidden
        explorer.tell(readable=len(asked) <= most and asked <= present, too_many=len(asked) > most)
        asked_for += 1
        assert asked_for <= 1000
        if asked_for == budget:
            readable, absent, _ = sets()
            assert readable <= present - forbidden
            assert not absent & present
    assert sets() == (present - forbidden, set(range(400)) - present - forbidden, forbidden)


def test_small_lists_at_round_addresses_are_found_within_the_budget() -> None:
    lists = [(0, 3), (100, 104), (4000, 4009), (7300, 7300)]
    present = {n for first, last in lists for n in range(first, last + 1)}
    explorer = Explorer(0, 9999, 125)
    for _ in range(300):
        span = explorer.next()
        assert span is not None
        explorer.tell(readable=set(range(span[0], span[1] + 1)) <= present)
    assert list(explorer.found(0, 9999).readable) == lists


def test_spans_and_what_is_left_of_them() -> None:
    assert without((0, 9), [(3, 4), (8, 20)]) == [(0, 2), (5, 7)]
    assert without((0, 9), [(0, 9)]) == []
    assert explore.text(spans({1, 2, 3, 7}), "hr") == "hr:1..3 hr:7"


# --- id and bench -------------------------------------------------------------------------------------------------


def test_id_takes_all_that_follows_and_says_when_there_is_nothing(cli, plc: TcpServer) -> None:
    url = f"modbus-tcp://127.0.0.1:{plc.port}/3"
    silent = cli("plc", "id", url)
    assert (silent.code, "identifies itself neither" in silent.err) == (0, True)
    plc.memory.answer = identifies(plc.memory.answer)  # type: ignore[method-assign]
    facts = json.loads(cli("plc", "id", url, "--json").out)
    assert [facts[k] for k in ("vendor name", "product code", "revision", "product name", "object 128")] == [
        "Maker", "P-100", "v2.1", "Pump drive", "own"]  # fmt: skip
    other = cli("plc", "id", f"modbus-tcp://127.0.0.1:{plc.port}/9")
    assert (other.code, "gateway" in other.err) == (3, True)


def test_bench_finds_the_block_and_recommends(cli, plc: TcpServer) -> None:
    plc.memory.answer = only(plc.memory.answer, {3: set(range(SIZE))}, most=40)  # type: ignore[method-assign]
    url = f"modbus-tcp://127.0.0.1:{plc.port}/3"
    result = cli("plc", "bench", url, "--seconds", "0.05", "--yes", "--json")
    *runs, end = map(json.loads, result.out.splitlines())
    assert result.code == 0, result.err
    assert {(r["connections"], r["in_flight"]) for r in runs} >= {(1, 1), (1, 16), (2, 8), (4, 4)}
    assert all(r["requests_per_s"] > 0 and r["p50_ms"] <= r["p99_ms"] <= r["max_ms"] and not r["faults"] for r in runs)
    assert end["block"] == 40
    assert set(end["recommended"]) == {"in_flight", "connections", "timeout_ms"}
    assert {pdu[0] for pdu in plc.requests} == {3}
    shown = cli("plc", "bench", url, "--seconds", "0.05", "--yes")
    assert "max_registers: 40" in shown.out


def test_bench_needs_something_to_read(cli, plc: TcpServer) -> None:
    result = cli("plc", "bench", f"modbus-tcp://127.0.0.1:{plc.port}/3", "hr:5000", "--yes")
    assert (result.code, "scan" in result.err) == (1, True)


# --- OPC UA ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ua() -> Iterator[UaPlc]:
    server = UaPlc()
    server.start()
    yield server
    server.stop()


def node(name: str) -> str:
    return f"nsu={URI};s=PLC.{name}"


def test_nodes_are_read_with_the_type_that_the_server_says(cli, ua: UaPlc) -> None:
    url = f"opc.tcp://127.0.0.1:{ua.port}"
    names = ("Speed", "Count", "Job", "Run", "Total")
    result = cli("plc", "read", url, *map(node, names), "i=2259", "--json")
    rows = [json.loads(row) for row in result.out.splitlines()]
    assert [row["type"] for row in rows] == ["REAL", "UDINT", "STRING", "BOOL", "ULINT", "DINT"]
    assert [row["value"] for row in rows] == [1.5, 7, "L1", False, 2**40, 0]
    assert all(row["source_time"] for row in rows[:5])
    unknown = cli("plc", "read", url, "nsu=urn:other;s=a")
    assert (unknown.code, "no namespace urn:other" in unknown.err) == (1, True)
    missing = cli("plc", "read", url, node("Sped"))
    assert (missing.code, "BadNodeIdUnknown" in missing.err) == (1, True)


def test_nodes_are_written_where_the_server_lets_them(cli, ua: UaPlc) -> None:
    url = f"opc.tcp://127.0.0.1:{ua.port}"
    result = cli("plc", "write", url, f"{node('Rail')}=61", "--yes")
    assert result.code == 0, result.err
    assert ua.do(ua.nodes["Rail"].read_value()) == 61
    sealed = cli("plc", "write", url, f"{node('Sealed')}=4", "--yes")
    assert (sealed.code, "nothing was sent" in sealed.err) == (1, True)
    assert ua.do(ua.nodes["Sealed"].read_value()) == 3
    assert cli("plc", "write", url, f"{node('Rail')}=70000", "--yes").code == 1


def test_scan_and_id_of_a_server(cli, ua: UaPlc) -> None:
    url = f"opc.tcp://127.0.0.1:{ua.port}"
    facts = json.loads(cli("plc", "scan", url, "--yes", "--json").out)
    assert facts["state"] == "Running"
    assert URI in facts["namespaces"]
    assert facts["endpoints"][0]["policy"] == "None"
    assert {node("Speed"), node("Job")} <= {each["address"] for each in facts["variables"]}
    shown = cli("plc", "scan", url, "--yes")
    assert "read requests only" in shown.err
    assert "Speed" in shown.out
    assert json.loads(cli("plc", "id", url, "--json").out)["state"] == "Running"
    assert cli("plc", "scan", "opc.tcp://127.0.0.1:1", "--yes").code == 3


def test_bench_of_a_server(cli, ua: UaPlc) -> None:
    result = cli("plc", "bench", f"opc.tcp://127.0.0.1:{ua.port}", "--seconds", "0.1", "--yes", "--json")
    run, end = map(json.loads, result.out.splitlines())
    assert run["answers"] > 0
    assert set(end["recommended"]) == {"timeout_ms"}
