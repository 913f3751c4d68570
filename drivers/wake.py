"""What one task waits for and a callback of the event loop brings about.

An ``asyncio.Future`` wakes its task in the next turn of the loop: one more look at all sockets, which for a quick
exchange costs as much as the exchange. A :class:`Wake` can resume its task at once, on the stack of the callback. It is
a future to the task (the ``_asyncio_future_blocking`` protocol of PEP 3156) and nothing more: one waiter, no result.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator
from contextvars import Context


class Wake:
    """Awaited once, by one task, on the loop given. A cancellation of the task ends it, too."""

    __slots__ = ("_asyncio_future_blocking", "_callback", "_cancelled", "_context", "_done", "_loop")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._done = self._cancelled = self._asyncio_future_blocking = False
        self._callback: Callable[[Wake], object] | None = None
        self._context: Context | None = None

    def __await__(self) -> Generator[Wake, None, None]:
        if not self._done:
            self._asyncio_future_blocking = True
            yield self
        self.result()

    def done(self) -> bool:
        """Whether it has ended."""
        return self._done

    def end(self) -> None:
        """Have the task go on in the next turn of the loop. Safe in every place, and more than once."""
        if not self._done:
            self._done = True
            self._soon()

    def resume(self) -> None:
        """Have the task go on before this returns; or soon, where another task is under way.

        For the last act of a callback: the task may do anything in between.
        """
        if self._done:
            return
        self._done = True
        callback, context = self._callback, self._context
        if callback is None:
            return  # nobody waits yet, and nobody will have to
        if context is None or asyncio.current_task(self._loop) is not None:
            self._soon()
            return
        self._callback = None
        context.run(callback, self)

    def _soon(self) -> None:
        callback, self._callback = self._callback, None
        if callback is not None:
            self._loop.call_soon(callback, self, context=self._context)

    # --- what the task asks of a future

    def add_done_callback(self, callback: Callable[[Wake], object], *, context: Context | None = None) -> None:
        """By the task that awaits it."""
        self._callback, self._context = callback, context
        if self._done:
            self._soon()

    def remove_done_callback(self, callback: Callable[[Wake], object]) -> int:
        """Not used by tasks; part of a future."""
        found = self._callback is not None and self._callback == callback
        if found:
            self._callback = None
        return int(found)

    def get_loop(self) -> asyncio.AbstractEventLoop:
        """The loop given."""
        return self._loop

    def cancel(self, msg: object = None) -> bool:
        """By the task that is cancelled while it waits."""
        if self._done:
            return False
        self._done = self._cancelled = True
        self._soon()
        return True

    def cancelled(self) -> bool:
        """Whether the task was cancelled first."""
        return self._cancelled

    def exception(self) -> None:
        """There never is one; part of a future."""

    def result(self) -> None:
        """Raises ``CancelledError`` when the task was cancelled first."""
        if self._cancelled:
            raise asyncio.CancelledError
