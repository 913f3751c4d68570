from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import stat
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import msgspec
import pytest

from controller.core.commands import Command, CommandQueue, Reply
from controller.core.events import Note
from controller.north.client import NorthClient, NorthClosed
from controller.north.frames import (
    PROTOCOL,
    Answer,
    CommandInfo,
    Delta,
    Events,
    Goodbye,
    Hello,
    Node,
    Request,
    ServerFrame,
    Snapshot,
)
from controller.north.publisher import Publisher, encode
from controller.north.server import FLOOD, MAX_REQUEST, NorthError, NorthServer

NODES = 50


def hello(protocol: int = PROTOCOL) -> Hello:
    commands = [CommandInfo("start"), CommandInfo("stop"), CommandInfo("abort")]
    return Hello(
        protocol=protocol,
        line="test",
        description="",
        version="0",
        config_hash="",
        stations=[],
        nodes=[Node("line.count", "int"), Node("line.text", "str"), *(Node(f"line.n{i}", "int") for i in range(NODES))],
        commands={"line": commands},
        recipes=[],
    )


class Line:
    """A line that scans when told, behind a real socket."""

    def __init__(self, path: Path, **options: float) -> None:
        self.queue = CommandQueue()
        self.publisher = Publisher(hello(), self.queue.put, time.monotonic_ns)
        self.server = NorthServer(self.publisher, path, **options)  # type: ignore[arg-type]
        self.count = 0
        self.seen: list[Command] = []

    def scan(self, text: str = "") -> None:
        self.count += 1
        for command in self.queue.drain():
            self.seen.append(command)
            self.publisher.answer(Reply(id=command.id, accepted=True, reason=f"done in scan {self.count}"))
        self.publisher.publish([self.count, text, *range(NODES)], {}, self.count)

    async def run(self, period_s: float = 0.005) -> None:
        while True:
            self.scan()
            await asyncio.sleep(period_s)


@contextlib.asynccontextmanager
async def running(path: Path, **options: float) -> AsyncIterator[Line]:
    line = Line(path, **options)
    async with line.server, asyncio.TaskGroup() as group:
        task = group.create_task(line.run())
        try:
            yield line
        finally:
            task.cancel()
    assert line.publisher.sessions == set()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "north.sock"


@contextlib.asynccontextmanager
async def raw(path: Path) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_unix_connection(str(path))
    try:
        yield reader, writer
    finally:
        writer.transport.abort()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def frame_of(reader: asyncio.StreamReader) -> ServerFrame:
    async with asyncio.timeout(5):
        size = int.from_bytes(await reader.readexactly(4), "big")
        frame: ServerFrame = msgspec.msgpack.decode(await reader.readexactly(size), type=ServerFrame)
        return frame


async def goodbye_of(reader: asyncio.StreamReader) -> str:
    while True:
        frame = await frame_of(reader)
        if isinstance(frame, Goodbye):
            assert await reader.read() == b""
            return frame.reason


async def until(condition: Callable[[], object], limit_s: float = 5.0) -> None:
    async with asyncio.timeout(limit_s):
        while not condition():  # noqa: ASYNC110 - of several objects
            await asyncio.sleep(0.005)


def mode_of(path: Path) -> int | None:
    return stat.S_IMODE(path.stat().st_mode) if path.exists() else None


class TestClient:
    async def test_values_commands_and_events(self, path: Path) -> None:
        async with running(path) as line, NorthClient(path) as client:
            assert client.hello.line == "test"
            assert client.values["line.n7"] == 7
            now = client.values["line.count"]
            assert isinstance(now, int)
            later = await client.wait_for("line.count", lambda v: isinstance(v, int) and v > now + 3, 5)
            assert isinstance(later, int) and later > now + 3
            reply = await client.command("line", "start", {}, user="anna", client="test")
            assert reply.accepted and reply.reason.startswith("done in scan")
            assert (line.seen[0].user, line.seen[0].name) == ("anna", "start")
            with client.frames() as frames:
                line.publisher.events(5, [Note(at=1, text="hello")])
                async for frame in frames:
                    if isinstance(frame, Events):
                        assert frame.first == 5
                        break
            with pytest.raises(TimeoutError, match=r"line.text is not 'x' within 0.05 s; it is ''"):
                await client.wait_for("line.text", "x", 0.05)
            with pytest.raises(KeyError, match="publishes no"):
                await client.wait_for("line.nothing", 1, 0.05)
            with pytest.raises(ZeroDivisionError):
                await client.wait_until(lambda: client.mirror.at > 10**9 or 1 // (line.count - line.count) > 0, 5)

    async def test_two_clients_get_their_own_answers(self, path: Path) -> None:
        async with running(path) as line, NorthClient(path) as one, NorthClient(path) as two:
            answers = await asyncio.gather(
                *(c.command("line", "start", user=str(i), client="t") for i in range(20) for c in (one, two))
            )
            assert all(a.accepted for a in answers)
            assert len({a.id for a in answers}) == 40
            assert len(line.seen) == 40

    async def test_a_client_inside_the_process(self, path: Path) -> None:
        async with running(path) as line:
            theirs = await line.server.attach()
            async with NorthClient(theirs) as client:
                reply = await client.command("line", "stop", user="u", client="local")
                assert reply.accepted

    async def test_no_controller_is_said_clearly(self, path: Path) -> None:
        with pytest.raises(NorthClosed, match=r"north\.sock.*is the line's controller running"):
            async with NorthClient(path):
                pass

    async def test_a_controller_that_never_answers(self, path: Path) -> None:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))
            listener.listen()
            with pytest.raises(NorthClosed, match="no answer"):
                async with NorthClient(path, timeout_s=0.1):
                    pass

    async def test_the_end_of_the_controller_reaches_everybody_who_waits(self, path: Path) -> None:
        async with NorthServer(Publisher(hello(), lambda c: None, time.monotonic_ns), path) as server:
            server._publisher.publish([0, "", *range(NODES)], {}, 1)
            async with NorthClient(path) as client:
                with client.frames() as frames:
                    waits = [
                        asyncio.create_task(client.command("line", "start", user="", client="")),
                        asyncio.create_task(client.wait_for("line.count", 5, 10)),
                        asyncio.create_task(anext(frames)),
                    ]
                    await asyncio.sleep(0.05)
                    await server.__aexit__(None, None, None)
                    done, _ = await asyncio.wait(waits, timeout=5)
                    assert len(done) == 3
                    for task in done:
                        assert isinstance(task.exception(), NorthClosed)
                        assert "the controller ends" in str(task.exception())
                with pytest.raises(NorthClosed):
                    await client.command("line", "start", user="", client="")
                with pytest.raises(NorthClosed):
                    await client.wait_for("line.count", 5, 1)
                assert client.values["line.count"] == 0  # what was seen last stays readable
        assert mode_of(path) is None

    async def test_silence_is_the_end(self, path: Path) -> None:
        publisher = Publisher(hello(), lambda c: None, time.monotonic_ns)
        async with NorthServer(publisher, path):
            publisher.publish([0, "", *range(NODES)], {}, 1)
            async with NorthClient(path, silence_s=0.1) as client:
                with pytest.raises(NorthClosed, match=r"nothing heard for 0\.1 s"):
                    await client.wait_for("line.count", 5, 5)

    async def test_no_answer_says_what_that_means(self, path: Path) -> None:
        publisher = Publisher(hello(), lambda c: None, time.monotonic_ns)
        async with NorthServer(publisher, path):
            publisher.publish([0, "", *range(NODES)], {}, 1)
            async with NorthClient(path) as client:
                with pytest.raises(TimeoutError, match="it may have been carried out"):
                    await client.command("line", "start", user="", client="", timeout_s=0.05)

    async def test_another_protocol_is_refused(self, path: Path) -> None:
        publisher = Publisher(hello(protocol=2), lambda c: None, time.monotonic_ns)
        async with NorthServer(publisher, path):
            publisher.publish([0, "", *range(NODES)], {}, 1)
            with pytest.raises(NorthClosed, match="protocol 2"):
                async with NorthClient(path):
                    pass

    async def test_a_slow_reader_in_the_client_gets_everything_or_a_note(self, path: Path) -> None:
        line = Line(path)
        line.scan()
        async with line.server, NorthClient(path) as client:
            with client.frames(limit=4) as frames:
                for n in range(1, 5001):  # far more than sockets and queues hold
                    line.publisher.events(n, [Note(at=n, text=f"note {n} " + "x" * 2000)])
                    if n % 10 == 0:
                        line.scan()
                        await asyncio.sleep(0)
                line.scan("last")
                seen: list[int] = []
                dropped = 0
                async with asyncio.timeout(10):
                    async for frame in frames:
                        if isinstance(frame, Events):
                            for event in frame.events:
                                assert isinstance(event, Note)
                                if event.text.startswith("gap: "):
                                    dropped += int(event.text.split("(")[1].split(")")[0])
                                else:
                                    seen.append(event.at)
                        if client.values["line.text"] == "last" and len(seen) + dropped == 5000:
                            break
                assert dropped > 0
                assert seen == sorted(seen)
                assert len(set(seen)) == len(seen)
                assert client.mirror.resync >= 1


class TestServer:
    async def test_a_client_that_reads_nothing_disturbs_nobody(self, path: Path) -> None:
        async with running(path, stall_s=0.3) as line, raw(path) as (_, writer), NorthClient(path) as good:
            writer.transport.pause_reading()  # type: ignore[attr-defined]
            longest = 0.0
            for n in range(300):
                line.publisher.events(n, [Note(at=n, text="x" * 10_000)])
                begin = time.monotonic()
                line.scan(text := f"{n} " + "y" * 10_000)
                longest = max(longest, time.monotonic() - begin)
                await good.wait_until(lambda n=line.count: good.mirror.at >= n, 5)  # type: ignore[misc]
                assert good.values["line.text"] in (text, "")
            assert longest < 0.1
            assert {s.resyncs for s in line.publisher.sessions} <= {0, 1}
            await until(lambda: len(line.publisher.sessions) == 1)  # cut off after stall_s
            assert good.mirror.resync == 0
            assert (await good.command("line", "stop", user="", client="")).accepted

    async def test_a_burst_of_ten_thousand_events_arrives_whole_at_both(self, path: Path) -> None:
        async with running(path) as line, NorthClient(path) as one, NorthClient(path) as two:
            with one.frames() as first, two.frames() as second:
                line.publisher.events(1, [Note(at=n, text=f"note {n}") for n in range(1, 10_001)])
                for frames in (first, second):
                    seen: list[int] = []
                    async with asyncio.timeout(10):
                        while len(seen) < 10_000:
                            frame = await anext(frames)
                            if isinstance(frame, Events):
                                seen += [e.at for e in frame.events]
                    assert seen == list(range(1, 10_001))

    @pytest.mark.parametrize(
        ("data", "reason"),
        [
            (b"GET / HTTP/1.1\r\n\r\n", "is not a request"),
            (b"\0\0\0\0", "a frame of 0 bytes"),
            ((MAX_REQUEST + 1).to_bytes(4, "big"), "a frame of 65537 bytes"),
            (b"\0\0\0\3abc", "not a request"),
            (b"\0\0\0\5\xc1\xff\xff\xff\xff", "not a request"),
            (encode(Answer(reply=Reply(id="1", accepted=True))), "not a request"),
            (encode(Request(command=Command(id="1", target="line", name="stop")))[:-1] + b"\xff", "not a request"),
        ],
    )
    async def test_garbage_gets_a_reason_and_the_end(self, path: Path, data: bytes, reason: str) -> None:
        async with running(path) as line, raw(path) as (reader, writer), NorthClient(path) as good:
            writer.write(data)
            assert reason in await goodbye_of(reader)
            assert line.seen == []
            assert (await good.command("line", "start", user="", client="")).accepted

    async def test_a_request_in_single_bytes_and_a_client_that_dies_in_one(self, path: Path) -> None:
        data = encode(Request(command=Command(id="1", target="line", name="start")))
        async with running(path) as line:
            async with raw(path) as (reader, writer):
                for byte in data:
                    writer.write(bytes([byte]))
                    await asyncio.sleep(0)
                while not isinstance(await frame_of(reader), Answer):
                    pass
                writer.write(data[:7])
            await until(lambda: not line.publisher.sessions)
            assert len(line.seen) == 1

    async def test_a_flood_is_cut_off_and_the_line_goes_on(self, path: Path) -> None:
        data = b"".join(
            encode(Request(command=Command(id=f"{n}", target="line", name="start"))) for n in range(int(FLOOD) * 2)
        )
        async with running(path) as line, NorthClient(path) as good, raw(path) as (reader, writer):
            writer.write(data)
            with contextlib.suppress(ConnectionResetError):
                assert "requests a second" in await goodbye_of(reader)
            await until(lambda: len(line.publisher.sessions) == 1)
            assert len(line.seen) <= 300  # the queue's bound, and the client's allowance
            assert (await good.command("line", "stop", user="", client="")).accepted

    async def test_too_many_clients(self, path: Path) -> None:
        async with running(path, max_clients=2), NorthClient(path), NorthClient(path):
            with pytest.raises(NorthClosed, match="2 clients are connected already"):
                async with NorthClient(path):
                    pass

    async def test_frames_in_order_hello_snapshot_delta(self, path: Path) -> None:
        async with running(path), raw(path) as (reader, _):
            assert isinstance(await frame_of(reader), Hello)
            snapshot = await frame_of(reader)
            assert isinstance(snapshot, Snapshot)
            delta = await frame_of(reader)
            assert isinstance(delta, Delta) and delta.seq == snapshot.seq + 1

    async def test_a_client_may_come_before_the_first_scan(self, path: Path) -> None:
        line = Line(path)
        async with line.server:
            connecting = asyncio.create_task(NorthClient(path).__aenter__())
            await until(lambda: line.publisher.sessions)
            assert not connecting.done()
            line.scan()
            client = await connecting
            assert client.values["line.count"] == 1
            await client.__aexit__(None, None, None)


class TestSocketFile:
    async def test_mode_and_removal(self, path: Path) -> None:
        async with running(path):
            assert mode_of(path) == 0o660
        assert mode_of(path) is None

    async def test_a_path_too_long_is_said_so(self, tmp_path: Path) -> None:
        long = tmp_path / ("x" * 100) / "north.sock"
        with pytest.raises(NorthError, match=r"too long for a Unix socket's path \(at most 107\)"):
            async with NorthServer(Publisher(hello(), lambda c: None, time.monotonic_ns), long):
                pass

    async def test_the_longest_path_works(self, tmp_path: Path) -> None:
        room = 107 - len(os.fsencode(tmp_path)) - 1
        longest = tmp_path / ("s" * room)
        async with running(longest), NorthClient(longest) as client:
            assert client.hello.line == "test"

    async def test_what_a_killed_controller_left_is_replaced(self, path: Path) -> None:
        left = socket.socket(socket.AF_UNIX)
        left.bind(str(path))
        left.close()
        async with running(path), NorthClient(path):
            pass

    async def test_a_socket_in_use_is_left_alone(self, path: Path) -> None:
        async with running(path):
            with pytest.raises(NorthError, match="another controller serves this socket"):
                async with NorthServer(Publisher(hello(), lambda c: None, time.monotonic_ns), path):
                    pass
            async with NorthClient(path) as client:
                assert client.closed is None

    async def test_anything_else_there_is_left_alone(self, path: Path) -> None:
        await asyncio.to_thread(path.write_text, "precious")
        with pytest.raises(NorthError, match="not a socket"):
            async with NorthServer(Publisher(hello(), lambda c: None, time.monotonic_ns), path):
                pass
        assert await asyncio.to_thread(path.read_text) == "precious"

    async def test_a_directory_that_cannot_be_made(self, tmp_path: Path) -> None:
        await asyncio.to_thread((tmp_path / "file").write_text, "")
        with pytest.raises(NorthError, match="directory cannot be used"):
            async with NorthServer(
                Publisher(hello(), lambda c: None, time.monotonic_ns), tmp_path / "file" / "north.sock"
            ):
                pass
