"""The Unix socket of the north port.

Each client has a task of its own that writes, and waits for a slow reader on its own account; the scan only
fills queues. A client that sends garbage, or far too much, is told why and cut off; the line does not notice.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import stat
import struct
from pathlib import Path
from types import TracebackType

import msgspec
import structlog

from controller.north.frames import Request
from controller.north.publisher import Publisher, Session, TokenBucket

MAX_PATH = 107
"""Bytes of a Unix socket's path at most (``sun_path`` of unix(7), less its final zero)."""
MAX_REQUEST = 64 * 1024
"""Bytes of one request at most."""
FLOOD = 2000.0
"""Requests per second of one client, refused ones included, above which it is cut off."""
_REQUEST: msgspec.msgpack.Decoder[Request] = msgspec.msgpack.Decoder(Request)
_log = structlog.get_logger("north")


class NorthError(Exception):
    """The socket cannot be set up; the text names its path, the reason, and what to do."""


class NorthServer:
    """Serves ``publisher`` on a Unix socket of mode 0660. An async context manager.

    ``max_clients`` at once; a client that takes nothing for ``stall_s`` is cut off. Raises :class:`NorthError`
    on entry.
    """

    def __init__(self, publisher: Publisher, path: Path, *, max_clients: int = 32, stall_s: float = 30.0) -> None:
        self.path = path
        self._publisher = publisher
        self._max_clients, self._stall_s = max_clients, stall_s
        self._server: asyncio.Server | None = None
        self._inode = 0
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> NorthServer:
        sock = _bind(self.path)
        self._inode = self.path.stat().st_ino
        self._server = await asyncio.start_unix_server(self._serve, sock=sock, backlog=self._max_clients)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        with contextlib.suppress(OSError):
            if self.path.stat().st_ino == self._inode:
                self.path.unlink()
        self._publisher.drop_clients("the controller ends")
        try:
            if self._tasks:
                await asyncio.wait(self._tasks, timeout=1.0)
        finally:
            for task in self._tasks:
                task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def run(self) -> None:
        """Serve until cancelled; for use as a task."""
        async with self:
            await asyncio.get_running_loop().create_future()

    async def attach(self) -> socket.socket:
        """A client's end of a new connection without a path; for a gateway inside this process."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        reader, writer = await asyncio.open_unix_connection(sock=ours)
        task = asyncio.create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        theirs.setblocking(False)
        return theirs

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        data = asyncio.Event()
        session = self._publisher.attach(_peer(writer), data.set)
        data.set()
        _log.info("client connected", client=session.name, clients=len(self._publisher.sessions))
        if len(self._publisher.sessions) > self._max_clients:
            session.end(f"{self._max_clients} clients are connected already; end one of them")
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._read(reader, session))
                group.create_task(self._write(writer, session, data))
        except* _Over:
            pass
        except* TimeoutError:
            _log.warning("client cut off, it takes nothing", client=session.name, seconds=self._stall_s)
        except* OSError as lost:
            _log.info("client lost", client=session.name, error=str(lost.exceptions[0]))
        finally:
            session.close()
            await _close(writer, gently=session.ended)
            _log.info("client gone", client=session.name)

    async def _write(self, writer: asyncio.StreamWriter, session: Session, data: asyncio.Event) -> None:
        """Send what there is; this task waits for the client, and nothing else does."""
        writer.write(self._publisher.hello_frame)
        while not session.ended:
            await data.wait()
            data.clear()
            while (frame := session.pull()) is not None:
                writer.write(frame)
                async with asyncio.timeout(self._stall_s):
                    await writer.drain()
        raise _Over

    async def _read(self, reader: asyncio.StreamReader, session: Session) -> None:
        """Take requests until the client leaves, or must go."""
        loop = asyncio.get_running_loop()
        flood = TokenBucket(FLOOD, FLOOD, int(loop.time() * 1e9))
        count = 0
        while True:
            try:
                size = int.from_bytes(await reader.readexactly(4), "big")
                if not 0 < size <= MAX_REQUEST:
                    session.end(f"a frame of {size} bytes is not a request; they have 1 to {MAX_REQUEST} bytes")
                    return
                body = await reader.readexactly(size)
            except asyncio.IncompleteReadError:
                raise _Over from None
            try:
                request = _REQUEST.decode(body)
            except (msgspec.MsgspecError, ValueError) as exc:
                session.end(f"not a request: {exc}")
                return
            session.request(request)
            if not flood.take(int(loop.time() * 1e9)):
                session.end(f"more than {FLOOD:g} requests a second")
                return
            count += 1
            if count % 32 == 0:
                await asyncio.sleep(0)  # what is buffered already must not keep the loop from the scan


class _Over(Exception):
    """One direction of a connection has come to its end, and takes the other with it."""


async def _close(writer: asyncio.StreamWriter, *, gently: bool) -> None:
    """Close, and wait for it; gently lets the last frames go out, for at most a second."""
    if gently:
        writer.close()
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(1.0):
                await writer.wait_closed()
    writer.transport.abort()
    with contextlib.suppress(OSError):
        await writer.wait_closed()


def _peer(writer: asyncio.StreamWriter) -> str:
    """Who it is, as the kernel says (SO_PEERCRED of unix(7))."""
    sock = writer.get_extra_info("socket")
    pid, uid, _ = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return f"pid {pid} uid {uid}"


def _bind(path: Path) -> socket.socket:
    """A socket bound to ``path``, mode 0660 before anybody can connect. Raises :class:`NorthError`."""
    size = len(os.fsencode(path))
    if size > MAX_PATH:
        raise NorthError(
            f"{path}: {size} bytes are too long for a Unix socket's path (at most {MAX_PATH}); "
            "name a shorter directory with RUNTIME_DIRECTORY"
        )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _clear(path)
    except OSError as exc:
        raise NorthError(f"{path}: the socket's directory cannot be used: {exc}") from exc
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.bind(str(path))
        path.chmod(0o660)  # no client gets in before listen()
    except OSError as exc:
        sock.close()
        raise NorthError(f"{path}: the socket cannot be made: {exc}; see that this user may write there") from exc
    sock.setblocking(False)
    return sock


def _clear(path: Path) -> None:
    """Remove a socket that a killed controller left; never anything else, nor one that is in use."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise NorthError(f"{path}: there is something that is not a socket; move it, or name another directory")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            path.unlink(missing_ok=True)
            return
    raise NorthError(f"{path}: another controller serves this socket; stop it first")
