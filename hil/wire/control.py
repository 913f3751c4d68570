"""The control socket of a wire-tier line: one JSON object per line in, one per line out, over a Unix socket.

Requests carry ``op``: ``ping``, ``truth``, ``faults`` (those there are, and those there could be), ``inject`` and
``clear`` (``fault``, ``params``), ``kill`` and ``restart`` (``plc``), ``shutdown``. Answers carry ``ok``; with
``false`` comes ``error``, which says what to mend.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

MAX_LINE = 1 << 20
MAX_CLIENTS = 16
Handler = Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]


class ControlError(Exception):
    """The line refused a request, or is gone; the text says why."""


class ControlServer:
    """Serves the control socket. ``handle`` answers a request or raises ``ValueError`` for one that is wrong."""

    def __init__(self, path: Path, handle: Handler) -> None:
        self._path, self._handle = path, handle
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Listen; the socket is for its owner alone. Raises ``OSError``."""
        self._path.unlink(missing_ok=True)
        self._server = await asyncio.start_unix_server(self._client, self._path, limit=MAX_LINE)
        self._path.chmod(0o600)

    async def stop(self) -> None:
        """Stop listening, end every connection, take the socket away."""
        if self._server is not None:
            self._server.close()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            await self._server.wait_closed()
            self._server = None
            self._path.unlink(missing_ok=True)

    async def _client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        if len(self._tasks) >= MAX_CLIENTS:
            writer.close()
            return
        self._tasks.add(task)
        try:
            await self._converse(reader, writer)
        except (ConnectionError, ValueError):
            pass  # the client is gone, or its line exceeds the limit: nobody to answer
        except asyncio.CancelledError:
            pass  # stop() ends us; asyncio's stream server would report a cancelled client as an error
        finally:
            self._tasks.discard(task)
            writer.close()

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            try:
                request = json.loads(line)
                fields = request if isinstance(request, dict) else {}
                response: dict[str, Any] = {"ok": True, **await self._handle(fields)}
            except (ValueError, OSError) as error:
                response = {"ok": False, "error": str(error)}
            writer.write(json.dumps(response).encode() + b"\n")
            await writer.drain()


class ControlClient:
    """A client of the control socket; an async context manager::

    async with ControlClient(path) as control:
        await control.inject("jam", station="capper")
    """

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._one_at_a_time = asyncio.Lock()

    async def connect(self, timeout_s: float = 5.0) -> None:
        """Connect. Raises :class:`ControlError` when nobody listens."""
        try:
            async with asyncio.timeout(timeout_s):
                self._reader, self._writer = await asyncio.open_unix_connection(self._path, limit=MAX_LINE)
        except (OSError, TimeoutError) as error:
            raise ControlError(f"no line listens at {self._path}: {error}; is it being served?") from error

    async def close(self) -> None:
        """Close; safe at any time."""
        writer, self._reader, self._writer = self._writer, None, None
        if writer is not None:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()

    async def call(self, op: str, *, timeout_s: float = 10.0, **fields: Any) -> dict[str, Any]:
        """One request. Raises :class:`ControlError` when it is refused or not answered."""
        async with self._one_at_a_time:
            if self._reader is None or self._writer is None:
                raise ControlError(f"not connected to {self._path}")
            try:
                async with asyncio.timeout(timeout_s):
                    self._writer.write(json.dumps({"op": op, **fields}).encode() + b"\n")
                    await self._writer.drain()
                    line = await self._reader.readline()
            except (OSError, TimeoutError) as error:
                await self.close()
                raise ControlError(f"{op}: no answer from {self._path}: {error}") from error
            if not line:
                await self.close()
                raise ControlError(f"{op}: {self._path} hung up")
        response: dict[str, Any] = json.loads(line)
        if not response.get("ok"):
            raise ControlError(f"{op}: {response.get('error', 'refused')}")
        return response

    async def truth(self) -> dict[str, Any]:
        """What really is where."""
        result: dict[str, Any] = (await self.call("truth"))["truth"]
        return result

    async def inject(self, fault: str, **params: bool | float | str) -> None:
        """Make a fault."""
        await self.call("inject", fault=fault, params=params)

    async def clear(self, fault: str | None = None, **params: bool | float | str) -> None:
        """Mend a fault, or all of them."""
        await self.call("clear", fault=fault, params=params)

    async def kill(self, plc: str) -> None:
        """Cut a PLC's power."""
        await self.call("kill", plc=plc)

    async def restart(self, plc: str) -> None:
        """Give it back; returns when its server listens again."""
        await self.call("restart", plc=plc, timeout_s=20.0)

    async def __aenter__(self) -> Self:
        await self.connect()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()
