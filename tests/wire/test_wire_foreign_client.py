"""A client that is not ours: asyncua's command line tools work the line over OPC UA, and its gateway is expendable."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import sys
from pathlib import Path

import pytest
from wire_rig import Rig, free_endpoint, rig

pytestmark = pytest.mark.wire
TOOLS = Path(sys.executable).parent


class Foreigner:
    """Somebody with the tools, an address and a password."""

    def __init__(self, endpoint: str, password: str) -> None:
        self._endpoint = endpoint
        self._login = ("--user", "operator", "--password", password)
        self._ns = ""

    async def __call__(self, tool: str, *args: str, login: bool = False, fails: bool = False) -> str:
        """Run a tool; returns what it printed."""
        process = await self.start(tool, *args, login=login)
        async with asyncio.timeout(20):
            out, _ = await process.communicate()
        text = out.decode()
        failed = process.returncode != 0
        assert failed is fails, f"{tool} {args}: exit {process.returncode}\n{text}"
        return text

    async def start(self, tool: str, *args: str, login: bool = False) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            str(TOOLS / tool), "-u", self._endpoint, *(self._login if login else ()), *args,
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )  # fmt: skip

    async def node(self, path: str) -> str:
        """The node id of a north path, by the server's own namespace table."""
        if not self._ns:
            names = await self("uaread", "-n", "i=2255")
            uris = re.findall(r"(?:urn|http):[^'\"\s,\]]+", names)
            assert "urn:linewright:bottling" in uris, names
            self._ns = str(uris.index("urn:linewright:bottling"))
        return f"ns={self._ns};s={path}"

    async def read(self, path: str) -> str:
        return (await self("uaread", "-n", await self.node(path))).strip().splitlines()[-1]


def gateway_pid(line: Rig) -> int:
    """The one child of the controller."""
    pid = line.controller.process.pid
    found = [p for task in Path(f"/proc/{pid}/task").glob("*/children") for p in task.read_text().split()]
    assert len(found) == 1, found
    return int(found[0])


async def test_the_line_is_worked_with_foreign_tools(tmp_path: Path) -> None:
    endpoint = free_endpoint()
    async with rig(tmp_path) as line:
        await line.run_controller(opcua=endpoint)
        secret = tmp_path / "north.sock.opcua-operator"
        await line.eventually(secret.exists, "the gateway's password")
        host, port = "127.0.0.1", int(endpoint.rpartition(":")[2])

        async def listens() -> bool:
            try:
                _, writer = await asyncio.open_connection(host, port)
            except OSError:
                return False
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
            return True

        async def until_listening() -> None:
            async with asyncio.timeout(20):
                while not await listens():  # noqa: ASYNC110 - of what is outside there is no event
                    await asyncio.sleep(0.05)

        await until_listening()  # then the password is written
        foreign = Foreigner(endpoint, secret.read_text().strip().removeprefix("operator:"))
        line_node = await foreign.node("line")
        browsed, state = await asyncio.gather(
            foreign("uals", "-n", line_node, "-d", "2"), foreign.read("line.state_text")
        )
        for name in ("Status", "Command", "Stations", "Alarms"):
            assert name in browsed, browsed
        assert state == "Aborted"
        await line.until(lambda: bool(line.value("line.recipe")), 20, "a recipe in force")

        cntrl_cmd = await foreign.node("line.command.cntrl_cmd")
        await foreign("uawrite", "-n", cntrl_cmd, "-t", "int32", "9", fails=True)
        assert line.state_of("line") == "Aborted", "whoever has not logged in may only look"
        watcher = await foreign.start("uasubscribe", "-n", await foreign.node("line.state_text"))
        seen: list[str] = []

        async def until_seen(state: str) -> None:
            assert watcher.stdout is not None
            async with asyncio.timeout(20):
                while state not in seen:
                    found = re.search(rb"DataChangeEvent.*? value='(\w+)'", await watcher.stdout.readline())
                    seen.extend([found[1].decode()] if found else [])

        try:
            await until_seen("Aborted")  # from here on it misses nothing
            await foreign("uawrite", "-n", cntrl_cmd, "-t", "int32", "9", login=True)
            await line.line_is("Stopped", 10)
            await foreign("uawrite", "-n", cntrl_cmd, "-t", "int32", "1", login=True)
            await line.line_is("Idle", 10)
            await foreign("uacall", "-n", await foreign.node("line.command"), "-m", "2:Start", login=True)
            await line.line_is("Execute")
            await until_seen("Execute")
            assert seen == ["Aborted", "Clearing", "Stopped", "Resetting", "Idle", "Starting", "Execute"]
        finally:
            watcher.kill()
            await watcher.communicate()
        await killed_gateway_comes_back(line, foreign)
        await until_listening()
        assert await foreign.read("line.state_text") == "Execute"


async def killed_gateway_comes_back(line: Rig, foreign: Foreigner) -> None:
    """SIGKILL of the gateway: not one scan is late or left out for it."""
    await line.until(lambda: line.value("line.scan_count") > 0, 5, "scans")
    loop = asyncio.get_running_loop()
    skipped, overruns = line.value("line.scans_skipped"), line.value("line.scan_overruns")
    old = gateway_pid(line)
    scans, begin = line.value("line.scan_count"), loop.time()
    os.kill(old, signal.SIGKILL)
    await asyncio.sleep(2)
    made, took = line.value("line.scan_count") - scans, loop.time() - begin
    assert made == pytest.approx(took / 0.1, abs=2.5)
    assert line.value("line.scans_skipped") - skipped <= 1, "with two processors for all of it"
    assert line.value("line.scan_overruns") - overruns <= 1
    assert line.state_of("line") == "Execute"
    await line.eventually(lambda: _new_gateway(line, old), "another gateway", 10)


def _new_gateway(line: Rig, old: int) -> bool:
    try:
        return gateway_pid(line) != old
    except AssertionError:
        return False
