"""One gateway process, in front of a scripted north server, for all tests that only look at it from outside."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from asyncua import Client, Node

sys.path.insert(0, str(Path(__file__).parent))

from fake_north import NODES, FakeNorth, accept

sys.path.pop(0)


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


@pytest.fixture(scope="session")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    directory = tmp_path_factory.mktemp("opcua")
    north = FakeNorth(directory / "north.sock")
    process = launch(directory)
    try:
        url = wait_ready(directory, process)
        user, _, password = (directory / "north.sock.opcua-operator").read_text().strip().partition(":")
        yield Running(north, process, url, user, password, directory / "log")
        assert process.poll() is None, "the gateway died during the tests"
    finally:
        end(process)
        north.stop()


@pytest.fixture
def gateway(running: Running) -> Iterator[Running]:
    """The shared gateway, with north as it was at the start."""
    north = running.north
    while not north.commands.empty():
        north.commands.get_nowait()
    yield running
    north.answer, north.silent = accept, False
    north.put({path: value for path, (_, value) in NODES.items()})
