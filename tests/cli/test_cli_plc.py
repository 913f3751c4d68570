"""plc read and write, against real servers; what is wrong is told before anything is sent."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from plc_rig import Served, Terminal, endpoints

from controller.cli.plc import guard
from controller.runtime.instance import InstanceLock, state_dir
from hil import lines
from tests.drivers.honest_modbus import AsciiServer, RtuServer, RtuTcpServer, TcpServer

BOTTLING = Path(lines.__file__).parent / "bottling" / "line.yaml"
pytestmark = pytest.mark.wire


@pytest.fixture(autouse=True)
def own_state(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No line of this machine may have a say here."""
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


@pytest.fixture
def url(plc: TcpServer) -> str:
    return f"modbus-tcp://127.0.0.1:{plc.port}/3"


# --- what is meant ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("modbus-tpc://h/1", 'did you mean "modbus-tcp"'),
        ("modbus-tcp:///1", "no host"),
        ("modbus-tcp://h:70000/1", '"70000" is no port'),
        ("modbus-tcp://h:abc/1", '"abc" is no port'),
        ("modbus-tcp://h", "no unit"),
        ("modbus-tcp://h/x", '"x" is no unit'),
        ("modbus-tcp://h/300", "0 to 255"),
        ("modbus-tcp://h/1?unit=2", "given twice"),
        ("modbus-tcp://h/1?in_flght=2", 'did you mean "in_flight"'),
        ("modbus-tcp://h/1?in_flight=99", "1 to 64"),
        ("modbus-tcp://h/1?in_flight=two", "must be a number"),
        ("modbus-tcp://h/1#x", "has no meaning"),
        ("modbus-tls://h/1?ca=a", "certificate, key missing"),
        ("modbus-rtu-tcp://h/1", "no port"),
        ("modbus-rtu://dev/ttyUSB0?unit=1", "three slashes"),
        ("modbus-rtu:///dev/x?unit=250", "1 to 247"),
        ("modbus-rtu:///dev/x?unit=1&parity=X", "one of N, E, O"),
        ("modbus-rtu:///dev/x?unit=1&baud=fast", "baud must be a number"),
        ("opc.tcp://", "no host"),
        ("opc.tcp://joe:secret@h", "--password-file"),
    ],
)
def test_every_part_of_a_url_is_told_when_it_is_wrong(cli, target: str, said: str) -> None:
    result = cli("plc", "read", target, "hr:1")
    assert result.code == 2
    assert said in result.err, result.err


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("hr:100:REEL", 'did you mean "REAL"'),
        ("hr:100:REAL:INT", "two of type"),
        ("hr:1:STRING", "needs its length"),
        ("hr:10..13:DINT:scale=x", "scale must be a number"),
        ("hr:10..12:DINT", "no multiple"),
        ("hr:20..10", "the lower one first"),
        ("co:3:INT", "single bit"),
        ("hr:1.16", "0 … 15"),
        ("hr:65535:REAL", "0 to 65535"),
        ("40001", "hr:0"),
        ("xx:1", "write co:5"),
    ],
)
def test_every_part_of_an_address_is_told_when_it_is_wrong(cli, word: str, said: str) -> None:
    result = cli("plc", "read", "modbus-tcp://127.0.0.1:1/1", word)
    assert result.code == 2
    assert said in result.err, result.err


def test_nobody_there_is_exit_3(cli, served: Served[TcpServer], url: str) -> None:
    served.do(served.server.stop())
    for argv in (("read", "hr:1"), ("id",), ("bench", "--yes"), ("scan", "--yes"), ("write", "hr:1=1", "--yes")):
        result = cli("plc", argv[0], url, *argv[1:])
        assert (result.code, "cannot connect" in result.err) == (3, True), (argv, result.err)


# --- read --------------------------------------------------------------------------------------------------------


def test_read_shows_value_quality_registers_and_age(cli, plc: TcpServer, url: str) -> None:
    plc.memory.put("hr", 200, bytes.fromhex("000043a6"))
    plc.memory.put("hr", 40, b"LABEL-7\0")
    plc.memory.ir[10:13] = [1, 2, 0xFFFF]
    plc.memory.co[3] = True
    words = ["hr:200:REAL:CDAB:unit=g", "ir:10..12:INT", "co:3", "hr:40:STRING:8", "ir:11.1"]
    rows = [json.loads(row) for row in cli("plc", "read", url, *words, "--json").out.splitlines()]
    by = {row["tag"]: row for row in rows}
    assert by["hr:200:REAL"]["value"] == 332.0
    assert by["hr:200:REAL"]["raw"] == ["0000", "43A6"]
    assert [by[f"ir:{n}:INT"]["value"] for n in (10, 11, 12)] == [1, 2, -1]
    assert (by["co:3"]["value"], by["hr:40:STRING"]["value"], by["ir:11.1"]["value"]) == (True, "LABEL-7", True)
    assert all(row["quality"] == "good" and 0 <= row["age_ms"] < 5000 for row in rows)
    shown = cli("plc", "read", url, *words)
    assert shown.code == 0
    assert "332 g" in shown.out
    assert "0000 43A6" in shown.out
    assert "7 values, all good" in shown.out


def test_a_bad_value_is_never_shown_as_one_and_ends_with_1(cli, plc: TcpServer, url: str) -> None:
    plc.memory.put("hr", 10, bytes.fromhex("7fc00000"))
    plc.memory.hr[20] = 500
    result = cli("plc", "read", url, "hr:10:REAL", "hr:20:UINT:high=100", "hr:5000", "hr:1", "--json")
    rows = {row["tag"]: row for row in map(json.loads, result.out.splitlines())}
    assert result.code == 1
    assert [rows[t]["value"] for t in ("hr:10:REAL", "hr:20", "hr:5000", "hr:1")] == [None, None, None, 0]
    assert "NaN" in rows["hr:10:REAL"]["reason"]
    assert "outside" in rows["hr:20"]["reason"]
    assert "illegal data address" in rows["hr:5000"]["reason"]
    assert rows["hr:20"]["raw"] == ["01F4"], "the registers show what the device really said"


def test_orders_show_the_one_that_makes_sense(cli, plc: TcpServer, url: str) -> None:
    plc.memory.put("hr", 200, bytes.fromhex("000043a6"))
    plc.memory.put("hr", 300, bytes.fromhex("00000000c0004074"))
    orders = json.loads(cli("plc", "read", url, "hr:200", "--orders", "--json").out)["orders"]
    assert orders["CDAB"]["REAL"] == 332.0
    assert orders["ABCD"]["UDINT"] == 0x43A6
    assert orders["BADC"]["UDINT"] == 0xA643
    assert orders["DCBA"]["UDINT"] == 0xA6430000
    wide = json.loads(cli("plc", "read", url, "hr:300:LREAL", "--orders", "--json").out)["orders"]
    assert wide["CDAB"]["LREAL"] == 332.0
    assert cli("plc", "read", url, "co:1", "--orders").code == 2


def test_read_by_line_yaml_with_patterns(cli, tmp_path: Path) -> None:
    with Served(lambda: TcpServer(10)) as rig:
        rig.server.memory.hr[120] = 3310  # scale 0.1
        where = endpoints(tmp_path, f'{{"wet": {{"port": {rig.server.port}}}}}')
        argv = ("plc", "read", BOTTLING, "wet", "filler.target", "filler.bowl_*", "--endpoints", where)
        rows = [json.loads(row) for row in cli(*argv, "--json").out.splitlines()]
        assert [row["tag"] for row in rows] == ["filler.target", "filler.bowl_level", "filler.bowl_temp"]
        assert (rows[0]["value"], rows[0]["unit"]) == (331, "g")
        assert rows[0]["description"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "say which PLC: wet, dry, inspect"),
        (("wat",), "wet"),
        (("wet", "filler.traget"), "filler.target"),
        (("dry", "filler.target"), "it is a tag of wet"),
        (("wet", "nothing.*"), "no tag"),
    ],
)
def test_a_plc_or_tag_that_is_not_there_is_told_with_the_nearest(cli, words: tuple[str, ...], said: str) -> None:
    result = cli("plc", "read", BOTTLING, *words)
    assert result.code == 2
    assert said in result.err, result.err


@pytest.mark.parametrize("way", ["rtu", "ascii", "rtu-tcp"])
def test_a_serial_line_by_url(cli, tmp_path: Path, way: str) -> None:
    makes = {
        "rtu": lambda: RtuServer(tmp_path, 17),
        "ascii": lambda: AsciiServer(tmp_path, 17),
        "rtu-tcp": RtuTcpServer,
    }
    with Served(makes[way]) as rig:
        rig.server.memory.hr[5] = 77
        where = f"127.0.0.1:{rig.server.port}/17" if way == "rtu-tcp" else f"{rig.server.device}?unit=17&baud=115200"
        if way == "ascii":
            where += "&bytesize=8"  # a pty opened for the second time refuses 7
        result = cli("plc", "read", f"modbus-{way}://{where}", "hr:5", "--json")
        assert json.loads(result.out)["value"] == 77, result.err
        assert cli("plc", "write", f"modbus-{way}://{where}", "hr:5=78", "--yes").code == 0
        assert rig.server.memory.hr[5] == 78


@pytest.mark.parametrize("width", [80, 120])
def test_a_table_fits_the_terminal(plc: TcpServer, url: str, width: int) -> None:
    plc.memory.hr[100] = 1234
    with Terminal("plc", "read", url, "hr:100", "hr:200:REAL", "ir:10..12", width=width) as screen:
        assert screen.end() == 0
        assert "1234" in screen.seen
        assert "04D2" in screen.seen
        rows = [row for row in screen.seen.replace("\r", "").split("\n") if "hr:100" in row]
        assert len(rows) == 1, "one line per tag"


# --- write -------------------------------------------------------------------------------------------------------


def test_a_verified_write(cli, plc: TcpServer, url: str) -> None:
    result = cli("plc", "write", url, "hr:7:DINT=-5", "co:4=true", "hr:9.3=1", "--yes")
    assert (result.code, result.out.count("verified")) == (0, 3), result.err
    assert plc.memory.hr[7:9] == [0xFFFF, 0xFFFB]
    assert plc.memory.co[4] is True
    assert plc.memory.hr[9] == 8
    assert len(plc.memory.writes) == 3
    assert "FFFF FFFB" in result.err, "what would be written was not shown"


def test_a_value_with_an_equals_sign(cli, plc: TcpServer, url: str) -> None:
    assert cli("plc", "write", url, "hr:40:STRING:8", "--value", "a=b", "--yes").code == 0
    assert plc.memory.hr[40:42] == [0x613D, 0x6200]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("hr:1=70000",), "0..65535"),
        (("hr:1=-1",), "0..65535"),
        (("hr:1:REAL=nan",), "not a finite number"),
        (("hr:1:REAL=inf",), "not a finite number"),
        (("hr:1=1.5",), "whole numbers"),
        (("hr:1=1,5",), "write 1.5"),
        (("hr:1=12 g",), "without unit"),
        (("hr:1:UINT:high=10=11",), "above high 10"),
        (("co:1=2",), "true or false"),
        (("hr:40:STRING:4=ABCDE",), "longer than 4"),
        (("ir:1=1",), "read-only"),
        (("di:1=true",), "read-only"),
        (("hr:1=1", "hr:1=2"), "two values for hr:1"),
        (("hr:1:DINT=1", "hr:2=2"), "the same place"),
        (("hr:1=1", "hr:1.3=true"), "the same place"),
        (("hr:1..3=1",), "a range takes no value"),
        (("hr:1",), "say the value"),
        ((), "say what to write"),
    ],
)
def test_what_must_not_be_written_is_refused_before_anything_is_sent(
    cli, plc: TcpServer, url: str, words: tuple[str, ...], said: str
) -> None:
    result = cli("plc", "write", url, *words, "--yes")
    assert result.code == 1
    assert "nothing was sent" in result.err
    assert said in result.err, result.err
    assert plc.requests == []


def test_a_tag_that_line_yaml_makes_read_only_is_never_written(cli, tmp_path: Path) -> None:
    with Served(lambda: TcpServer(10)) as rig:
        where = endpoints(tmp_path, f'{{"wet": {{"port": {rig.server.port}}}}}')
        argv = ("plc", "write", BOTTLING, "wet", "--endpoints", where, "--yes")
        assert cli(*argv, "filler.bowl_level=50").code == 1
        assert cli(*argv, "filler.target=5000").code == 1
        assert rig.server.requests == []
        assert cli(*argv, "filler.target=330").code == 0
        assert rig.server.memory.hr[120] == 3300


def test_without_a_terminal_it_is_not_written_unasked(cli, plc: TcpServer, url: str) -> None:
    result = cli("plc", "write", url, "hr:1=1")
    assert (result.code, "--yes" in result.err, plc.memory.writes) == (1, True, [])


def test_a_rejected_write_ends_with_1_and_stops_the_rest(cli, plc: TcpServer, url: str) -> None:
    result = cli("plc", "write", url, "hr:5000=1", "hr:1=1", "--yes", "--json")
    rows = [json.loads(row) for row in result.out.splitlines()]
    assert (result.code, [row["outcome"] for row in rows]) == (1, ["rejected", "not sent"])
    assert "illegal data address" in rows[0]["reason"]
    assert plc.memory.writes == []


def test_acknowledged_but_not_taken_is_rejected(cli, plc: TcpServer, url: str) -> None:
    plc.script.extend(["ok", "ok", "no_exec"])  # two looks before it
    result = cli("plc", "write", url, "hr:1=1", "--yes")
    assert (result.code, "0 reads back" in result.out) == (1, True), result.out


def test_an_unknown_write_ends_with_2_is_sent_once_and_says_what_to_do(cli, plc: TcpServer, url: str) -> None:
    plc.script.extend(["ok", "ok", "exec_silence"])
    result = cli("plc", "write", url, "hr:1=9", "--yes", "--timeout-ms", "1500", "--json")
    assert (result.code, json.loads(result.out)["outcome"]) == (2, "unknown")
    assert "look at the machine" in result.err
    assert "hr:1 reads 9 now" in result.err
    assert len(plc.memory.writes) == 1


def test_a_block_is_one_request(cli, plc: TcpServer, url: str) -> None:
    words = ("hr:10=1", "hr:11=2", "hr:12:REAL=1.5")
    assert cli("plc", "write", url, *words, "--yes", "--block").code == 0
    assert [pdu[0] for pdu in plc.memory.writes] == [16]
    gap = cli("plc", "write", url, "hr:10=1", "hr:20=2", "--yes", "--block")
    assert (gap.code, "--block" in gap.err, len(plc.memory.writes)) == (1, True, 1)


def test_not_while_a_controller_runs(cli, plc: TcpServer, url: str, tmp_path: Path) -> None:
    with InstanceLock(state_dir("bottling"), "bottling"):
        by_url = cli("plc", "write", url, "hr:1=1", "--yes")
        assert (by_url.code, "line bottling is controlled" in by_url.err, plc.memory.writes) == (1, True, [])
        with Served(lambda: TcpServer(10)) as rig:
            where = endpoints(tmp_path, f'{{"wet": {{"port": {rig.server.port}}}}}')
            argv = ("plc", "write", BOTTLING, "wet", "filler.target=330", "--endpoints", where, "--yes")
            assert cli(*argv).code == 1
            assert rig.server.requests == []
            forced = cli(*argv, "--anyway")
            assert (forced.code, "writing anyway" in forced.err, rig.server.memory.hr[120]) == (0, True, 3300)
    assert cli("plc", "write", url, "hr:1=1", "--yes").code == 0


def test_a_controller_cannot_start_while_its_line_is_written(tmp_path: Path) -> None:
    with guard.kept_out("bottling") as reason:
        assert reason == ""
        assert "bottling" in guard.running("bottling")
    assert guard.running("bottling") == ""


def test_somebody_is_asked(plc: TcpServer, url: str) -> None:
    with Terminal("plc", "write", url, "hr:1=5") as screen:
        shown = screen.until("[y/N]")
        assert "0000 → 0005" in shown
        screen.type("n\n")
        assert screen.end() == 1
    assert plc.memory.writes == []
    with Terminal("plc", "write", url, "hr:1=5") as screen:
        screen.until("[y/N]")
        screen.type("y\n")
        assert screen.end() == 0
    assert plc.memory.hr[1] == 5


def test_asked_again_when_the_value_has_changed_meanwhile(plc: TcpServer, url: str) -> None:
    with Terminal("plc", "write", url, "hr:1=5") as screen:
        screen.until("[y/N]")
        plc.memory.hr[1] = 77
        screen.type("y\n")
        assert "77" in screen.until("[y/N]")
        assert plc.memory.writes == []
        screen.type("y\n")
        assert screen.end() == 0
    assert len(plc.memory.writes) == 1


def test_ctrl_c_during_a_write_is_unknown(plc: TcpServer, url: str) -> None:
    plc.script.extend(["ok", "ok", "exec_silence"])
    with Terminal("plc", "write", url, "hr:1=5", "hr:2=6", "--yes", "--timeout-ms", "20000") as screen:
        screen.until("registers now")
        for _ in range(200):
            if plc.memory.writes:
                break
            screen._read(0.05)
        screen.process.send_signal(signal.SIGINT)
        assert screen.end() == 2
        assert "may have been executed" in screen.seen
        assert "not sent: interrupted" in screen.seen
    assert len(plc.memory.writes) == 1
