from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from opcua_plc import APPLICATION, UaPlc

from drivers.opcua.channel import Channel
from drivers.opcua.pki import make_identity


@pytest.fixture
async def no_leaks() -> AsyncIterator[None]:
    """Fails a test that leaves a task behind or makes the event loop complain."""
    complaints: list[str] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: complaints.append(repr(context)))
    before = asyncio.all_tasks()
    yield
    await asyncio.sleep(0.01)  # a cancelled task needs one more turn of the loop to be gone
    left = {task for task in asyncio.all_tasks() if not task.done()} - before - {asyncio.current_task()}
    assert not left, f"left behind: {left}"
    assert not complaints, complaints


@pytest.fixture(scope="session")
def ua_plc() -> Iterator[UaPlc]:
    """One OPC UA server for all tests: it takes seconds to start. Use ``await ua_plc.reset()`` first."""
    plc = UaPlc()
    plc.start()
    yield plc
    plc.stop()


@pytest.fixture(scope="session")
def secure_ua_plc() -> Iterator[UaPlc]:
    """One that offers every security policy too."""
    plc = UaPlc(make_identity(APPLICATION, ["127.0.0.1"], "Test PLC"))
    plc.start()
    yield plc
    plc.stop()


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Names of the OPC UA services that our clients ask for."""
    names: list[str] = []
    send = Channel.send

    def spy(self: Channel, service: str, *args: Any, **more: Any) -> int:
        names.append(service)
        return send(self, service, *args, **more)

    monkeypatch.setattr(Channel, "send", spy)
    yield names
