"""The gateway as a process, and clients that wait for what they want to see."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from asyncua import Client, Node, ua
from fake_north import FakeNorth

BOWL = "stations.filler.tags.bowl_level"


@dataclass
class Running:
    north: FakeNorth
    process: subprocess.Popen[str]
    url: str
    user: str
    password: str
    log: Path

    def client(self, user: str | None = None, password: str | None = None) -> Client:
        client = Client(self.url, timeout=4)
        if user is not None:
            client.set_user(user)
            client.set_password(password or "")
        return client

    def operator(self) -> Client:
        return self.client(self.user, self.password)

    @staticmethod
    def node(client: Client, path: str) -> Node:
        return client.get_node(f"ns=2;s={path}")


def launch(directory: Path, *args: str, endpoint: str = "opc.tcp://127.0.0.1:0") -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "controller.gateways.opcua", "--north", str(directory / "north.sock")]
    command += ["--endpoint", endpoint, "--ready-file", str(directory / "ready"), *args]
    with (directory / "log").open("a") as log:
        return subprocess.Popen(command, stderr=log, text=True)


def wait_ready(directory: Path, process: subprocess.Popen[str], limit_s: float = 30) -> str:
    deadline = time.monotonic() + limit_s
    while not (directory / "ready").exists():
        assert process.poll() is None, (directory / "log").read_text()
        assert time.monotonic() < deadline, (directory / "log").read_text()
        time.sleep(0.02)
    return (directory / "ready").read_text().strip()


def end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait(10)


class Seen:
    """Collects notifications and lets a test wait for one."""

    def __init__(self) -> None:
        self.values: list[tuple[str, Any, ua.StatusCode]] = []
        self._news = asyncio.Event()
        self._from = 0

    def forget(self) -> None:
        """What has been seen so far does not count for the next ``until``."""
        self._from = len(self.values)

    def datachange_notification(self, node: Node, value: Any, data: Any) -> None:
        self.values.append((str(node.nodeid.Identifier), value, data.monitored_item.Value.StatusCode))
        self._news.set()

    async def until(self, right: Callable[[str, Any, ua.StatusCode], bool], limit_s: float = 5) -> None:
        done = self._from
        async with asyncio.timeout(limit_s):
            while True:
                if any(right(*seen) for seen in self.values[done:]):
                    return
                done = len(self.values)
                await self._news.wait()
                self._news.clear()


async def eventually(get: Callable[[], Awaitable[bool]], limit_s: float = 5) -> None:
    async with asyncio.timeout(limit_s):
        while not await get():  # noqa: ASYNC110 - what it waits for is in another process
            await asyncio.sleep(0.02)
