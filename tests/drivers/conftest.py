from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest
from opcua_plc import UaPlc


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
