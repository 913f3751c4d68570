"""A north server for tests: a real Unix socket in a thread of its own, scripted by the test."""

from __future__ import annotations

import contextlib
import queue
import socket
import struct
import threading
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from controller.north.frames import (
    PROTOCOL,
    Answer,
    CommandInfo,
    Delta,
    Hello,
    Node,
    Reply,
    Request,
    Scalar,
    ServerFrame,
    Snapshot,
    StationInfo,
)

STATES = {2: "Stopped", 4: "Idle", 6: "Execute", 9: "Aborted"}
NODES: dict[str, tuple[Node, Scalar]] = {
    node.path: (node, value)
    for node, value in [
        (Node("line.state_current", "int", enum=STATES, description="PackML state"), 2),
        (Node("line.product", "str"), "water-500"),
        (Node("line.good", "int"), 0),
        (Node("line.active_alarms", "int"), 1),
        (Node("line.alarm_list", "str"), "filler.low: Bowl low"),
        (Node("line.scan_count", "int"), 5_000_000_000),
        (Node("line.heartbeat", "int"), 0),
        (Node("stations.filler.state_current", "int", enum=STATES), 4),
        (Node("stations.filler.prod_processed_count", "int"), 17),
        (Node("stations.filler.starved", "bool"), False),
        (Node("stations.filler.tags.bowl_level", "float", "%", "Level in the bowl", 0.0, 100.0), 61.5),
        (Node("stations.filler.tags.torque", "float", "N·m"), 1.5),
        (Node("stations.filler.parameters.volume.setpoint", "float", "ml"), None),
        (Node("stations.filler.alarms.low.active", "bool"), True),
        (Node("stations.filler.alarms.low.acknowledged", "bool"), False),
        (Node("plcs.wet.up", "bool"), True),
        (Node("plcs.wet.reason", "str"), ""),
        *((Node(f"stations.filler.tags.spare_{i}", "int"), i) for i in range(230)),
    ]
}
INDEX = {path: i for i, path in enumerate(NODES)}
PACKML = [CommandInfo(n) for n in ("reset", "start", "stop", "abort", "clear")]
HELLO = Hello(
    protocol=PROTOCOL,
    line="bottling",
    description="Test line",
    version="1.2.3",
    config_hash="abc",
    stations=[StationInfo("filler", "Filler", "Fills", [], [], ["wet"])],
    nodes=[node for node, _ in NODES.values()],
    commands={
        "line": [
            *PACKML,
            CommandInfo("set_mode", {"mode": "str"}),
            CommandInfo("changeover", {"recipe": "str", "start": "bool"}),
            CommandInfo("set_mach_speed", {"speed": "float"}),
            CommandInfo("shelve", {"minutes": "int"}),
        ],
        "filler": PACKML,
    },
    recipes=["water-500", "cola-330"],
)

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Request).decode


def accept(request: Request) -> Reply | None:
    """What a willing controller answers."""
    return Reply(id=request.command.id, accepted=True, reason="on its way")


class FakeNorth:
    """Serves one Hello and its values; ``answer`` decides the reply to a command (``None``: none)."""

    def __init__(self, path: Path, hello: Hello = HELLO, *, life_sign_s: float | None = 0.5) -> None:
        self.path, self.hello = path, hello
        self.values: dict[str, Scalar] = {path: value for path, (_, value) in NODES.items()}
        self.bad: dict[int, str] = {}
        self.answer: Callable[[Request], Reply | None] = accept
        self.commands: queue.Queue[Request] = queue.Queue()
        self.connected = threading.Event()
        self.silent = False
        self._life_sign_s = life_sign_s
        self._lock = threading.RLock()
        self._seq = 0
        self._clients: set[socket.socket] = set()
        self._listener: socket.socket | None = None
        self._threads: list[threading.Thread] = []
        self._ended = threading.Event()
        self.start()

    def start(self) -> None:
        self.path.unlink(missing_ok=True)
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(self.path))
        self._listener.listen()
        self._ended.clear()
        self._threads = [threading.Thread(target=self._accept, args=(self._listener,))]
        if self._life_sign_s is not None:
            self._threads.append(threading.Thread(target=self._live))
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """As when the controller dies: listener and connections are gone."""
        self._ended.set()
        self.connected.clear()
        if self._listener is not None:
            with contextlib.suppress(OSError):
                self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()
        self.drop()
        for thread in self._threads:
            thread.join(5)
            assert not thread.is_alive()
        self.path.unlink(missing_ok=True)

    def drop(self) -> None:
        with self._lock:
            for client in self._clients:
                with contextlib.suppress(OSError):
                    client.shutdown(socket.SHUT_RDWR)

    def put(self, values: dict[str, Scalar], *, bad: dict[str, str] | None = None, at: int | None = None) -> None:
        """Publish a delta; a path that was bad and is given a value is good again."""
        now_bad = {INDEX[p]: reason for p, reason in (bad or {}).items()}
        with self._lock:
            good = [INDEX[p] for p in values if INDEX[p] in self.bad and INDEX[p] not in now_bad]
            self.values.update(values)
            for index in good:
                del self.bad[index]
            self.bad.update(now_bad)
            by_index = {INDEX[p]: value for p, value in values.items()}
            self._delta(time.time_ns() if at is None else at, by_index, now_bad, good)

    def _delta(self, at: int, values: dict[int, Scalar], bad: dict[int, str], good: list[int]) -> None:
        with self._lock:
            if not self.silent:
                self._seq += 1
                self.send(Delta(self._seq, at, values, bad, good))

    def send(self, frame: ServerFrame) -> None:
        body = _encode(frame)
        with self._lock:
            for client in tuple(self._clients):
                with contextlib.suppress(OSError):
                    client.sendall(struct.pack(">I", len(body)) + body)

    def next_command(self, timeout_s: float = 5.0) -> Request:
        return self.commands.get(timeout=timeout_s)

    def _accept(self, listener: socket.socket) -> None:
        while not self._ended.is_set():
            try:
                client, _ = listener.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._serve, args=(client,))
            self._threads.append(thread)
            thread.start()

    def _serve(self, client: socket.socket) -> None:
        with contextlib.closing(client), contextlib.suppress(OSError):
            while self.silent and not self._ended.wait(0.02):
                pass
            with self._lock:
                values = [self.values.get(node.path, 0) for node in self.hello.nodes]
                snapshot = Snapshot(self._seq, time.time_ns(), values, dict(self.bad))
                for frame in (self.hello, snapshot):
                    body = _encode(frame)
                    client.sendall(struct.pack(">I", len(body)) + body)
                self._clients.add(client)
            self.connected.set()
            try:
                while (head := self._exactly(client, 4)) is not None:
                    body_in = self._exactly(client, struct.unpack(">I", head)[0])
                    assert body_in is not None
                    request = _decode(body_in)
                    self.commands.put(request)
                    reply = self.answer(request)
                    if reply is not None:
                        self.send(Answer(reply))
            finally:
                with self._lock:
                    self._clients.discard(client)

    @staticmethod
    def _exactly(client: socket.socket, count: int) -> bytes | None:
        data = b""
        while len(data) < count:
            part = client.recv(count - len(data))
            if not part:
                return None
            data += part
        return data

    def _live(self) -> None:
        assert self._life_sign_s is not None
        while not self._ended.wait(self._life_sign_s):
            self._delta(time.time_ns(), {}, {}, [])
