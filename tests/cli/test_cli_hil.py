"""hil run on the bench, hil serve and its control."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest


def test_a_run_on_the_bench_ends_with_one_json_object_and_repeats(cli) -> None:
    first = cli("hil", "run", "bottling", "--tier", "bench", "--hours", "0.02", "--seed", "7", "--json")
    assert first.code == 0, first.err
    data = json.loads(first.out.splitlines()[-1])
    assert {"sim_s", "wall_s", "scans", "overruns", "good", "rejected", "event_log_sha256"} <= set(data)
    assert (data["sim_s"], data["scans"]) == (72.0, 720)
    assert data["good"] > 0
    again = json.loads(cli("hil", "run", "--hours", "0.02", "--seed", "7", "--json").out.splitlines()[-1])
    other = json.loads(cli("hil", "run", "--hours", "0.02", "--seed", "8", "--json").out.splitlines()[-1])
    assert again["event_log_sha256"] == data["event_log_sha256"]
    assert other["event_log_sha256"] != data["event_log_sha256"]


@pytest.mark.parametrize("command", [("hil", "run"), ("hil", "serve")])
def test_an_unknown_line_is_a_usage_error_that_names_those_there_are(cli, command) -> None:
    result = cli(*command, "canning")
    assert (result.code, "bottling" in result.err) == (2, True)


def test_nobody_at_the_control_socket_is_exit_3(cli, tmp_path: Path) -> None:
    for argv in (("truth",), ("faults",), ("inject", "jam"), ("clear",)):
        result = cli("hil", *argv, "--control", tmp_path / "none")
        assert (result.code, str(tmp_path / "none") in result.err) == (3, True)


@pytest.mark.wire
def test_serve_inject_clear_and_stop(cli, tmp_path: Path) -> None:
    endpoints, control = tmp_path / "ep.json", tmp_path / "c"
    server = subprocess.Popen(
        [sys.executable, "-m", "controller.cli", "hil", "serve", f"--endpoints={endpoints}", f"--control={control}"],
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert server.stderr is not None
        while not (said := server.stderr.readline()).startswith("serving"):
            assert said, "it ended"
        assert endpoints.exists(), "it says that it serves before it does"
        assert set(json.loads(endpoints.read_text())) == {"wet", "dry", "inspect"}
        assert json.loads(cli("hil", "truth", "--control", control).out)["line"]["infeed"] == 0
        assert cli("hil", "inject", "jam", "station=infeed", "--control", control).code == 0
        active = json.loads(cli("hil", "faults", "--json", "--control", control).out)["active"]
        assert active == [{"fault": "jam", "station": "infeed"}]
        refused = cli("hil", "inject", "jamm", "--control", control)
        assert (refused.code, "jam" in refused.err) == (1, True)
        assert cli("hil", "inject", "jam", "infeed", "--control", control).code == 2
        assert cli("hil", "clear", "jam", "station=infeed", "--control", control).code == 0
        assert "active" not in cli("hil", "faults", "--control", control).out
    finally:
        server.terminate()
        server.communicate(timeout=15)
    assert server.returncode == 0
    assert not control.exists()
    assert not endpoints.exists()
