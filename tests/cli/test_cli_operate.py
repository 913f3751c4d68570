"""status, alarms, command, ack, changeover: against the real logic of a line behind a real socket."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest


def wait_state(cli, line, target: str, state: str, limit_s: float = 15.0) -> None:
    path = "line.state_text" if target == "line" else f"stations.{target}.state_text"
    end = time.monotonic() + limit_s
    while (now := json.loads(cli("status", "--json", "--socket", line.socket).out)["values"][path]["value"]) != state:
        assert time.monotonic() < end, f"{target} is {now}, not {state}"
        time.sleep(0.05)


def bring_up(cli, line) -> None:
    end = time.monotonic() + 15
    while not json.loads(cli("status", "--json", "--socket", line.socket).out)["values"]["line.recipe"]["value"]:
        assert time.monotonic() < end, "no recipe was loaded"
        time.sleep(0.05)
    for name, state in (("clear", "Stopped"), ("reset", "Idle"), ("start", "Execute")):
        done = cli("command", "line", name, "--socket", line.socket, "--user", "anna")
        assert done.code == 0, done.err
        wait_state(cli, line, "line", state)


def test_status_shows_every_station_and_json_every_value(cli, line) -> None:
    shown = cli("status", "--socket", line.socket)
    assert shown.code == 0
    for name in ("infeed", "filler", "capper", "labeler", "checkweigher", "packer", "Aborted", "wet ✓"):
        assert name in shown.out
    data = json.loads(cli("status", "--json", "--socket", line.socket).out)
    assert data["line"] == "bottling"
    assert data["values"]["plcs.wet.up"] == {"value": True, "quality": "good"}
    assert set(data["values"]) == {n.path for n in line._publisher.hello.nodes}
    assert all(entry["quality"] in ("good", "bad") for entry in data["values"].values())


def test_bad_values_are_called_bad_with_the_reason(cli, line) -> None:
    def torque(quality: str) -> dict[str, Any]:
        end = time.monotonic() + 10
        while True:
            data = json.loads(cli("status", "--json", "--socket", line.socket).out)["values"]
            if data["stations.capper.tags.torque"]["quality"] == quality:
                return data
            assert time.monotonic() < end, f"the values never become {quality}"
            time.sleep(0.05)

    torque("good")  # a PLC is up once its life sign was seen to count
    line.bench.world.inject("plc_kill", plc="dry")
    data = torque("bad")
    assert data["stations.capper.tags.torque"]["reason"]
    assert "dry ✗ not connected" in cli("status", "--socket", line.socket).out
    listed = json.loads(cli("alarms", "--json", "--socket", line.socket).out)["alarms"]
    assert any("dry" in alarm["id"] for alarm in listed)


def test_a_refused_command_exits_1_with_the_reason_on_stderr(cli, line) -> None:
    refused = cli("command", "line", "start", "--socket", line.socket)
    assert refused.code == 1
    assert refused.out == ""
    assert "refused" in refused.err
    assert "Aborted" in refused.err
    as_json = cli("command", "line", "start", "--json", "--socket", line.socket)
    assert as_json.code == 1
    assert json.loads(as_json.out)["accepted"] is False


@pytest.mark.parametrize(
    ("argv", "fragment"),
    [
        (("fillr", "hold"), "there is no 'fillr'"),
        (("filler", "explode"), "does not know the command 'explode'"),
        (("filler", "changeover", "recipe=water_500"), "does not know the command"),
        (("line", "set_mode"), "needs mode="),
        (("line", "start", "--user", "x" * 65), "at most 64"),
        (("line", "set_mode", "modus=manual"), "is no argument"),
        (("line", "changeover", "recipe=water_500", "start=maybe"), "wants a bool"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_anything_is_sent(cli, line, argv, fragment) -> None:
    result = cli("command", *argv, "--socket", line.socket)
    assert result.code == 2
    assert fragment in result.err
    assert line._ids == {}, "a command was sent all the same"


def test_a_shift_by_hand(cli, line) -> None:
    """Up, a station held and back, changed over and waited for, an alarm acknowledged."""
    bring_up(cli, line)
    assert cli("command", "filler", "hold", "--socket", line.socket).code == 0
    wait_state(cli, line, "filler", "Held")
    assert cli("command", "filler", "unhold", "--socket", line.socket).code == 0
    wait_state(cli, line, "filler", "Execute")

    done = cli("changeover", "water_500", "--start", "--wait", "--json", "--timeout", "60", "--socket", line.socket)
    assert done.code == 0, done.err
    last = json.loads(done.out.splitlines()[-1])
    assert (last["step"], last["recipe"]) == ("committed", "water_500")
    assert [s.split(":")[0] for s in done.err.splitlines()] == [
        "planned", "running out", "staging", "verified", "committed", "the line is in Execute",
    ]  # fmt: skip

    line.bench.world.inject("jam", station="infeed")
    wait_state(cli, line, "infeed", "Held")
    listed = json.loads(cli("alarms", "--json", "--socket", line.socket).out)["alarms"]
    assert [(a["id"], a["active"], a["acknowledged"]) for a in listed] == [("infeed.jam", True, False)]
    assert cli("ack", "infeed.jam", "--socket", line.socket).code == 0
    again = cli("ack", "infeed.jam", "--socket", line.socket)
    assert again.code == 1
    assert "already acknowledged" in again.err
    shown = cli("alarms", "--socket", line.socket).out
    assert "● infeed.jam" in shown
    assert "unacknowledged" not in shown


def test_a_changeover_that_fails_exits_1_and_says_why(cli, line) -> None:
    bring_up(cli, line)
    unknown = cli("changeover", "water_3000", "--wait", "--socket", line.socket)
    assert unknown.code == 1
    assert "water_330" in unknown.err, "the recipes there are are not named"
    assert cli("command", "line", "stop", "--socket", line.socket).code == 0
    wait_state(cli, line, "line", "Stopped")
    failed = cli("changeover", "water_500", "--wait", "--json", "--timeout", "60", "--socket", line.socket)
    assert failed.code == 1, "bottles of the old product are still on the line"
    assert json.loads(failed.out.splitlines()[-1])["step"] == "failed"
    assert "left on the line" in failed.err


def test_nobody_there_is_exit_3_and_names_the_socket(cli, tmp_path: Path) -> None:
    path = tmp_path / "none.sock"
    for argv in (("status",), ("alarms",), ("command", "line", "stop"), ("changeover", "x"), ("ack", "--all")):
        result = cli(*argv, "--socket", path)
        assert result.code == 3, argv
        assert str(path) in result.err
        assert "linewright run" in result.err


def test_without_a_name_the_only_line_here_is_meant(cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("STATE_DIRECTORY", "RUNTIME_DIRECTORY", "LINEWRIGHT_SOCKET", "LINEWRIGHT_LINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("controller.cli.connect.SYSTEM_RUN", tmp_path / "run")
    nothing = cli("status")
    assert (nothing.code, "there is no line running here" in nothing.err) == (3, True)
    for folder in (tmp_path / "home" / "linewright" / "one", tmp_path / "run" / "two"):
        folder.mkdir(parents=True)
        (folder / "north.sock").touch()
    several = cli("status")
    assert (several.code, "one, two" in several.err) == (2, True)
    named = cli("status", "--line", "two")
    assert (named.code, "run/two/north.sock" in named.err) == (3, True)


def test_ack_needs_an_alarm_or_all(cli, tmp_path: Path) -> None:
    assert cli("ack", "--socket", tmp_path / "s").code == 2
    assert cli("ack", "a.b", "--all", "--socket", tmp_path / "s").code == 2


def test_watch_and_json_contradict_each_other(cli, tmp_path: Path) -> None:
    assert cli("status", "--watch", "--json", "--socket", tmp_path / "s").code == 2
