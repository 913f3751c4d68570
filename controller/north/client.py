"""The client's end of the north port: for gateways, the command line, and tests.

:class:`NorthClient` keeps a mirror of all values over the socket; :class:`LocalNorth` does the same inside one
process, step by step, without a loop. Both apply the same frames through the same :class:`Mirror`.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import TypeVar

import msgspec

from controller.core.events import AnyEvent
from controller.north.frames import (
    MAX_FRAME,
    PROTOCOL,
    Answer,
    Arg,
    Command,
    Delta,
    Events,
    Goodbye,
    Hello,
    Reply,
    Request,
    Scalar,
    ServerFrame,
    Snapshot,
)
from controller.north.publisher import Publisher, encode

_FRAME: msgspec.msgpack.Decoder[ServerFrame] = msgspec.msgpack.Decoder(ServerFrame)
T = TypeVar("T", Hello, Snapshot)
SILENCE_S = 5.0
"""Silence after which the controller counts as hanging; it speaks at least once a second."""


class NorthClosed(ConnectionError):
    """The stream from the controller is over, or could not be opened; the values seen last must not be trusted.

    Connect anew with a new client: every stream begins with a full snapshot.
    """


class Mirror:
    """All values of the line by path, as the frames so far tell. ``bad`` says why some must not be trusted.

    A path that is in ``bad`` keeps no value to be used: its entry in ``values`` is what the line sent, often None.
    """

    def __init__(self, hello: Hello) -> None:
        if hello.protocol != PROTOCOL:
            raise NorthClosed(
                f"the controller of line {hello.line} speaks protocol {hello.protocol}, this program {PROTOCOL}; "
                "use programs of the same version"
            )
        self.hello = hello
        self.values: dict[str, Scalar] = {}
        self.bad: dict[str, str] = {}
        self.at = 0
        """UTC in ns of the scan that the values are from."""
        self.resync = 0
        """How often frames were left out because this client read too slowly."""
        self._seq: int | None = None
        self._paths = [n.path for n in hello.nodes]

    def apply(self, frame: Snapshot | Delta) -> None:
        """Take a frame over. Raises :class:`NorthClosed` when one is missing before it."""
        if isinstance(frame, Snapshot):
            if len(frame.values) != len(self._paths):
                raise NorthClosed(f"a snapshot of {len(frame.values)} values for {len(self._paths)} nodes")
            self.values = dict(zip(self._paths, frame.values, strict=True))
            self.bad = {self._paths[i]: reason for i, reason in frame.bad.items()}
            self.resync = frame.resync
        else:
            if self._seq is None or frame.seq != self._seq + 1:
                raise NorthClosed(f"frame {frame.seq} follows frame {self._seq}: one is missing between them")
            for i, value in frame.values.items():
                self.values[self._paths[i]] = value
            for i in frame.good:
                self.bad.pop(self._paths[i], None)
            for i, reason in frame.bad.items():
                self.bad[self._paths[i]] = reason
        self._seq, self.at = frame.seq, frame.at


class Frames:
    """Frames as they come, for one reader: ``async for frame in frames``. Ends with :class:`NorthClosed`."""

    def __init__(self, limit: int) -> None:
        self._queue: asyncio.Queue[Snapshot | Delta | Events | NorthClosed] = asyncio.Queue(limit)

    def __aiter__(self) -> Frames:
        return self

    async def __anext__(self) -> Snapshot | Delta | Events:
        frame = await self._queue.get()
        if isinstance(frame, NorthClosed):
            raise frame
        return frame

    async def put(self, frame: Snapshot | Delta | Events | NorthClosed) -> None:
        """For the client: wait for room."""
        await self._queue.put(frame)

    def close(self, why: NorthClosed) -> None:
        """For the client: the end, after what is queued; when there is no room, instead of the newest."""
        if self._queue.full():
            self._queue.get_nowait()
        self._queue.put_nowait(why)


class NorthClient:
    """A connection to the controller of one line; an async context manager.

    ``where`` is the path of the socket, or a connected socket. On entry Hello and the first snapshot are awaited
    for ``timeout_s``. Any call raises :class:`NorthClosed` once the stream is over, for example when nothing was
    heard for ``silence_s``; reconnecting is the caller's decision.
    """

    def __init__(self, where: Path | socket.socket, *, timeout_s: float = 5.0, silence_s: float = SILENCE_S) -> None:
        self._where = where
        self._timeout_s, self._silence_s = timeout_s, silence_s
        self._mirror: Mirror | None = None
        self._closed: NorthClosed | None = None
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._task: asyncio.Task[None] | None = None
        self._answers: dict[str, asyncio.Future[Reply]] = {}
        self._waiting: list[tuple[Callable[[], bool], asyncio.Future[None]]] = []
        self._frames: list[Frames] = []

    # ------------------------------------------------------------------------------------------- life

    async def __aenter__(self) -> NorthClient:
        try:
            async with asyncio.timeout(self._timeout_s):
                if isinstance(self._where, socket.socket):
                    self._reader, self._writer = await asyncio.open_unix_connection(sock=self._where)
                else:
                    self._reader, self._writer = await asyncio.open_unix_connection(str(self._where))
                hello = await self._receive(Hello)
                self._mirror = Mirror(hello)
                self._mirror.apply(await self._receive(Snapshot))
        except (OSError, NorthClosed) as exc:
            await self._hang_up()
            if isinstance(exc, NorthClosed):
                raise
            what = "no answer" if isinstance(exc, TimeoutError) else str(exc)
            raise NorthClosed(
                f"{self._where}: no controller to be had: {what}; is the line's controller running?"
            ) from exc
        except asyncio.CancelledError:
            await self._hang_up()
            raise
        self._task = asyncio.create_task(self._run(), name="north client")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._task is not None
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task
        self._end(NorthClosed("the connection was closed by this program"))
        await self._hang_up()

    async def _hang_up(self) -> None:
        if self._writer is not None:
            self._writer.transport.abort()
            with contextlib.suppress(OSError):
                await self._writer.wait_closed()

    # ------------------------------------------------------------------------------------------ values

    @property
    def mirror(self) -> Mirror:
        """The values as of the newest frame. Stays readable after the end, for showing what was seen last."""
        assert self._mirror is not None, "use the client as an async context manager"
        return self._mirror

    @property
    def hello(self) -> Hello:
        """Who the controller is, and the static model."""
        return self.mirror.hello

    @property
    def values(self) -> Mapping[str, Scalar]:
        """All values by path; see :class:`Mirror`."""
        return self.mirror.values

    @property
    def bad(self) -> Mapping[str, str]:
        """Why some values must not be trusted, by path."""
        return self.mirror.bad

    @property
    def closed(self) -> NorthClosed | None:
        """Why the stream is over, or ``None``."""
        return self._closed

    @contextlib.contextmanager
    def frames(self, limit: int = 1024) -> Iterator[Frames]:
        """All frames from now on, each after it was taken into the mirror.

        At most ``limit`` wait; then this client stops reading until there is room, answers to commands included,
        and the controller counts it as slow.
        """
        frames = Frames(limit)
        if self._closed is not None:
            frames.close(self._closed)
        self._frames.append(frames)
        try:
            yield frames
        finally:
            self._frames.remove(frames)

    async def wait_until(self, condition: Callable[[], bool], timeout_s: float, what: str = "the condition") -> None:
        """Wait until ``condition()`` holds after some frame. Raises :class:`TimeoutError`, :class:`NorthClosed`."""
        if condition():
            return
        if self._closed is not None:
            raise self._closed
        entry = (condition, asyncio.get_running_loop().create_future())
        self._waiting.append(entry)
        try:
            async with asyncio.timeout(timeout_s):
                await entry[1]
        except TimeoutError:
            raise TimeoutError(f"not within {timeout_s:g} s: {what}") from None
        finally:
            with contextlib.suppress(ValueError):
                self._waiting.remove(entry)

    async def wait_for(self, path: str, want: Scalar | Callable[[Scalar], bool], timeout_s: float) -> Scalar:
        """Wait until the value at ``path`` is good and equals ``want``, or satisfies it. Returns the value.

        Raises :class:`KeyError` for an unknown path, :class:`TimeoutError`, :class:`NorthClosed`.
        """
        if path not in self.values:
            raise KeyError(f"the line publishes no {path!r}")
        seen: list[Scalar] = []

        def holds() -> bool:
            value = self.values[path]
            if path in self.bad or not (want(value) if callable(want) else value == want):
                return False
            seen.append(value)
            return True

        try:
            await self.wait_until(holds, timeout_s)
        except TimeoutError:
            now = f"bad: {self.bad[path]}" if path in self.bad else repr(self.values[path])
            wanted = "as wanted" if callable(want) else repr(want)
            raise TimeoutError(f"{path} is not {wanted} within {timeout_s:g} s; it is {now}") from None
        return seen[-1]

    # ---------------------------------------------------------------------------------------- commands

    async def command(
        self,
        target: str,
        name: str,
        args: Mapping[str, Arg] | None = None,
        *,
        user: str,
        client: str,
        timeout_s: float = 5.0,
    ) -> Reply:
        """Send a command and wait for its answer, which comes when the record of it is durable.

        Raises :class:`NorthClosed`, and :class:`TimeoutError`: the command may then have been carried out.
        """
        if self._closed is not None:
            raise self._closed
        assert self._writer is not None
        number = uuid.uuid4().hex
        command = Command(id=number, target=target, name=name, args=dict(args or {}), user=user, client=client)
        answer: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        self._answers[number] = answer
        try:
            async with asyncio.timeout(timeout_s):
                self._writer.write(encode(Request(command=command)))
                await self._writer.drain()
                return await answer
        except TimeoutError:
            raise TimeoutError(
                f"no answer to {name} of {target} within {timeout_s:g} s; it may have been carried out: look at the "
                "state before repeating it"
            ) from None
        except NorthClosed:
            raise
        except OSError as exc:
            raise NorthClosed(
                f"{self._where}: the connection was lost: {exc}; {name} may have been carried out"
            ) from exc
        finally:
            del self._answers[number]
            if answer.done() and not answer.cancelled():
                answer.exception()  # looked at, also when the sending failed first

    # ------------------------------------------------------------------------------------------- inside

    async def _run(self) -> None:
        """Take frames until the end, and say then to everybody who waits why."""
        try:
            while True:
                try:
                    async with asyncio.timeout(self._silence_s):
                        frame = await self._next()
                except TimeoutError:
                    raise NorthClosed(
                        f"{self._where}: nothing heard for {self._silence_s:g} s; the controller hangs or was stopped"
                    ) from None
                await self._take(frame)
        except NorthClosed as exc:
            self._end(exc)

    async def _take(self, frame: ServerFrame) -> None:
        if isinstance(frame, Answer):
            answer = self._answers.get(frame.reply.id)
            if answer is not None and not answer.done():
                answer.set_result(frame.reply)
            return
        if isinstance(frame, Goodbye):
            raise NorthClosed(f"{self._where}: the controller ended the connection: {frame.reason}")
        if isinstance(frame, Hello):
            raise NorthClosed(f"{self._where}: a second Hello in one stream")
        if not isinstance(frame, Events):
            self.mirror.apply(frame)
            for condition, future in self._waiting:
                if not future.done():
                    _check(condition, future)
        for frames in list(self._frames):
            await frames.put(frame)

    def _end(self, why: NorthClosed) -> None:
        if self._closed is not None:
            return
        self._closed = why
        for future in self._answers.values():
            if not future.done():
                future.set_exception(why)
        for _, waiting in self._waiting:
            if not waiting.done():
                waiting.set_exception(why)
        for frames in self._frames:
            frames.close(why)

    async def _next(self) -> ServerFrame:
        assert self._reader is not None
        try:
            size = int.from_bytes(await self._reader.readexactly(4), "big")
            if not 0 < size <= MAX_FRAME:
                raise NorthClosed(f"{self._where}: a frame of {size} bytes; that is no controller's")
            body = await self._reader.readexactly(size)
        except asyncio.IncompleteReadError as exc:
            raise NorthClosed(f"{self._where}: the controller is gone") from exc
        except TimeoutError:
            raise
        except OSError as exc:
            raise NorthClosed(f"{self._where}: the connection was lost: {exc}") from exc
        try:
            return _FRAME.decode(body)
        except (msgspec.MsgspecError, ValueError) as exc:
            raise NorthClosed(f"{self._where}: a frame cannot be decoded: {exc}; use the same version") from exc

    async def _receive(self, kind: type[T]) -> T:
        """The next frame, which must be of this kind; events may come in between."""
        while isinstance(frame := await self._next(), Events):
            pass
        if isinstance(frame, Goodbye):
            raise NorthClosed(f"{self._where}: the controller ended the connection: {frame.reason}")
        if not isinstance(frame, kind):
            raise NorthClosed(f"{self._where}: expected {kind.__name__}, got {type(frame).__name__}")
        return frame


def _check(condition: Callable[[], bool], future: asyncio.Future[None]) -> None:
    """A condition that raises is its owner's to hear of, and nobody else's."""
    try:
        if condition():
            future.set_result(None)
    except Exception as exc:
        future.set_exception(exc)


class LocalNorth:
    """A client inside the same process, without socket or loop: for tests and the bench.

    Call :meth:`poll` to take what was published since; then read ``mirror``, ``events`` and ``replies``.
    """

    def __init__(self, publisher: Publisher) -> None:
        self._session = publisher.attach("local")
        self._hello = publisher.hello
        self._count = 0
        self.mirror = Mirror(self._hello)
        self.events: deque[AnyEvent] = deque(maxlen=100_000)
        """Events so far, the newest 100,000."""
        self.replies: dict[str, Reply] = {}
        """Answers by the command's id; the caller takes them out."""
        self.goodbye = ""

    def poll(self) -> list[ServerFrame]:
        """Apply all frames that wait, and return them."""
        frames: list[ServerFrame] = []
        while (data := self._session.pull()) is not None:
            frame = _FRAME.decode(data[4:])
            frames.append(frame)
            if isinstance(frame, Answer):
                self.replies[frame.reply.id] = frame.reply
            elif isinstance(frame, Events):
                self.events.extend(frame.events)
            elif isinstance(frame, Goodbye):
                self.goodbye = frame.reason
            elif not isinstance(frame, Hello):
                self.mirror.apply(frame)
        return frames

    def command(
        self, target: str, name: str, args: Mapping[str, Arg] | None = None, *, user: str = "", client: str = "local"
    ) -> str:
        """Send a command; returns its id, under which the answer will be in ``replies``."""
        self._count += 1
        number = f"local-{self._count}"
        command = Command(id=number, target=target, name=name, args=dict(args or {}), user=user, client=client)
        self._session.request(Request(command=command))
        return number

    def close(self) -> None:
        """Leave."""
        self._session.close()
