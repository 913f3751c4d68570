"""One gateway process, in front of a scripted north server, for all tests that only look at it from outside."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from fake_north import NODES, FakeNorth, accept
from opcua_helpers import Running, end, launch, wait_ready


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
