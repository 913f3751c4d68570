"""What holds for every test: no task may outlive it."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio


@pytest.fixture(autouse=True)
def leaks_fail(request: pytest.FixtureRequest) -> None:
    """Watch every asynchronous test."""
    function = getattr(request, "function", None)
    if inspect.iscoroutinefunction(
        (getattr(function, "hypothesis", None) and function.hypothesis.inner_test) or function
    ):
        request.getfixturevalue("no_task_left_behind")


@pytest_asyncio.fixture
async def no_task_left_behind() -> AsyncIterator[None]:
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
