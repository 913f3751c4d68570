"""What holds for every test: no task may outlive it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest_asyncio


@pytest_asyncio.fixture(autouse=True)
async def no_task_left_behind(request: object) -> AsyncIterator[None]:
    """A task that outlives its test fails it: whoever starts one has to end it."""
    before = asyncio.all_tasks()
    yield
    for _ in range(3):  # let what was just cancelled come to its end
        await asyncio.sleep(0)
    leaked = [t for t in asyncio.all_tasks() - before if not t.done() and t is not asyncio.current_task()]
    names = [f"{t.get_name()}: {t.get_coro()}" for t in leaked]
    for task in leaked:
        task.cancel()
    await asyncio.gather(*leaked, return_exceptions=True)
    assert not names, f"tasks left behind: {names}"
