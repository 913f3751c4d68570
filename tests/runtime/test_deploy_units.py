"""The unit files of deploy/: known keys only, the promises of docs/deploy.md, and what systemd itself says of them."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
UNITS = sorted((ROOT / "deploy").glob("*.service"))
KNOWN = {
    "Unit": "Description Wants After StartLimitIntervalSec StartLimitBurst",
    "Service": """
        Type NotifyAccess EnvironmentFile ExecStart WatchdogSec Restart RestartSec TimeoutStartSec
        TimeoutStopSec KillMode User Group UMask StateDirectory StateDirectoryMode RuntimeDirectory
        RuntimeDirectoryMode RuntimeDirectoryPreserve Nice OOMScoreAdjust LimitNOFILE MemoryMax TasksMax
        NoNewPrivileges CapabilityBoundingSet AmbientCapabilities ProtectSystem ProtectHome PrivateTmp
        PrivateDevices DevicePolicy PrivateUsers ProtectClock ProtectHostname ProtectKernelLogs
        ProtectKernelModules ProtectKernelTunables ProtectControlGroups ProtectProc ProcSubset RemoveIPC
        RestrictAddressFamilies RestrictNamespaces RestrictRealtime RestrictSUIDSGID LockPersonality
        MemoryDenyWriteExecute SystemCallArchitectures SystemCallFilter SystemCallErrorNumber
    """,
    "Install": "WantedBy",
}


def parse(path: Path) -> dict[str, dict[str, list[str]]]:
    """Sections, keys and values (systemd.syntax(7)); anything else in the file is an error."""
    sections: dict[str, dict[str, list[str]]] = {}
    section = ""
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line or line.startswith(("#", ";")):
            continue
        if match := re.fullmatch(r"\[(\w+)\]", line):
            section = match[1]
            sections[section] = {}
        elif match := re.fullmatch(r"(\w+)=(.*[^\\])?", line):
            sections[section].setdefault(match[1], []).append(match[2] or "")
        else:
            pytest.fail(f"{path.name}:{number}: {line}")
    return sections


@pytest.mark.parametrize("path", UNITS, ids=lambda p: p.name)
def test_only_known_sections_and_keys_each_once(path: Path) -> None:
    for section, keys in parse(path).items():
        assert section in KNOWN
        unknown = set(keys) - set(KNOWN[section].split())
        assert not unknown, f"[{section}] {unknown}"
        for key, values in keys.items():
            assert len(values) == 1 or key == "SystemCallFilter", key


def test_the_controllers_unit_keeps_its_promises() -> None:
    unit = parse(ROOT / "deploy/linewright@.service")
    service = {key: values[0] for key, values in unit["Service"].items()}
    assert (service["Type"], service["WatchdogSec"], service["Restart"]) == ("notify", "5", "on-failure")
    assert "--no-gateways" in service["ExecStart"]
    assert int(service["TimeoutStopSec"]) > 20 + 2 + 6  # orderly stop, safe outputs, record
    assert service["StateDirectory"] == service["RuntimeDirectory"] == "linewright/%i"
    burst, interval = int(unit["Unit"]["StartLimitBurst"][0]), int(unit["Unit"]["StartLimitIntervalSec"][0])
    # Starts that never get ready and have to be killed must reach the limit within its interval too.
    slowest = sum(int(service[key]) for key in ("RestartSec", "TimeoutStartSec", "TimeoutStopSec"))
    assert burst * slowest < interval


def test_the_gateway_is_another_user_and_outlives_the_controller() -> None:
    gateway = {k: v[0] for k, v in parse(ROOT / "deploy/linewright-opcua@.service")["Service"].items()}
    controller = {k: v[0] for k, v in parse(ROOT / "deploy/linewright@.service")["Service"].items()}
    assert gateway["User"] != controller["User"]
    assert gateway["Group"] == controller["Group"]  # the socket is 0660
    assert "RuntimeDirectory" not in gateway  # it would be removed under the controller when the gateway stops
    assert f"/run/{controller['RuntimeDirectory']}/north.sock" in gateway["ExecStart"]
    assert gateway["Restart"] == "always"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze here")
@pytest.mark.parametrize("path", UNITS, ids=lambda p: p.name)
def test_systemd_finds_nothing_to_say(path: Path, tmp_path: Path) -> None:
    for unit in UNITS:
        text = re.sub(r"(?m)^ExecStart=\S+", "ExecStart=/bin/true", unit.read_text(encoding="utf-8"))
        (tmp_path / unit.name.replace("@", "@test")).write_text(text, encoding="utf-8")
    copy = tmp_path / path.name.replace("@", "@test")
    verify = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", "--recursive-errors=one", str(copy)],
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
        env={"SYSTEMD_UNIT_PATH": f"{tmp_path}:", "PATH": "/usr/bin:/bin"},
    )
    about = [line for line in (verify.stdout + verify.stderr).splitlines() if "linewright" in line]
    assert about == []  # it exits with 0 even on an unknown key: any word is too many
    security = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--threshold=14", str(copy)],
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    assert security.returncode == 0, security.stdout


_UNDER_MDWE = """
import ctypes, os, sys
if ctypes.CDLL(None).prctl(65, 1, 0, 0, 0) != 0:  # PR_SET_MDWE, PR_MDWE_REFUSE_EXEC_GAIN of prctl(2)
    sys.exit(77)
os.execv(sys.executable, [sys.executable, "-c", sys.argv[1]])
"""
_TIMER = """
import asyncio, time
from controller.runtime.journal import Journal
from controller.runtime.timer import TimerFd
async def main():
    timer = TimerFd(time.monotonic_ns() + 1_000_000, 1_000_000)
    await timer.tick()
    timer.close()
asyncio.run(main())
"""


def test_the_timer_works_where_memory_may_not_be_written_and_executed() -> None:
    """ctypes is known to fail under MemoryDenyWriteExecute= on some platforms."""
    done = subprocess.run([sys.executable, "-c", _UNDER_MDWE, _TIMER], capture_output=True, text=True, check=False)
    if done.returncode == 77:
        pytest.skip("this kernel has no PR_SET_MDWE")
    assert (done.returncode, done.stderr) == (0, "")
