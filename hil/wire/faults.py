"""What a bad network does to the bytes of one direction, drawn from a seed. The proxies are in ``hil.wire.proxy``."""

from __future__ import annotations

import asyncio
import heapq
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, fields

WAITING_LIMIT = 65_536
"""Bytes that may wait inside one direction before its sender is not read any more."""
REMEMBERED = 16
"""Frames that a stale one is drawn from."""

Splitter = Callable[[bytearray], list[bytes]]
"""Takes the whole frames off the front of a buffer."""


@dataclass(frozen=True, kw_only=True)
class Faults:
    """What happens to the frames of one direction. Chances are 0..1 and drawn for each frame; times in seconds."""

    latency_s: float = 0.0
    jitter_s: float = 0.0
    """Up to so much more, evenly drawn. Frames stay in order, except datagrams."""
    loss: float = 0.0
    swallow: bool = False
    """Nothing arrives, not even the end of the connection: half open."""
    stall: bool = False
    """The sender is not read: its window closes."""
    duplicate: float = 0.0
    stale: float = 0.0
    """An earlier frame of this direction arrives in place of this one."""
    garbage: float = 0.0
    """Up to 16 random bytes arrive before the frame."""
    reset: float = 0.0
    """The connection is reset instead (TCP), the line pulled (pty), the datagram lost."""
    split: int = 0
    """Bytes of the pieces that a frame arrives in, ``split_gap_s`` apart; 0: whole. Not for datagrams."""
    split_gap_s: float = 0.0
    bytes_per_s: float = 0.0
    """Throttled to this rate; 0: not."""

    def __post_init__(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            chance = each.name in ("loss", "duplicate", "stale", "garbage", "reset")
            if value < 0 or (chance and value > 1):
                raise ValueError(f"{each.name} is {value}; {'0 to 1' if chance else '0 or more'}")


@dataclass
class Counts:
    """What was done in one direction. ``frames`` came in; ``delivered`` bytes went out."""

    frames: int = 0
    delivered: int = 0
    lost: int = 0
    swallowed: int = 0
    duplicated: int = 0
    stale: int = 0
    garbage: int = 0
    split: int = 0
    resets: int = 0


HONEST = Faults()


class Direction:
    """The faults, the chance and the counters of one direction, over all its connections."""

    def __init__(self, seed: str, splitter: Splitter | None) -> None:
        self.faults, self.counts, self.splitter = HONEST, Counts(), splitter
        self.rng = random.Random(seed)
        self.sent: deque[bytes] = deque(maxlen=REMEMBERED)

    def happens(self, chance: float) -> bool:
        """Draw."""
        return chance > 0 and self.rng.random() < chance


class Pipe:
    """One direction of one connection. ``out`` takes bytes, or ``None`` for the sender's end; ``reset`` ends it all."""

    def __init__(
        self, direction: Direction, out: Callable[[bytes | None], None], reset: Callable[[], None], *, stream: bool
    ) -> None:
        self._direction, self._out, self._reset, self._stream = direction, out, reset, stream
        self._buffer = bytearray()
        self._waiting: list[tuple[float, int, bytes | None]] = []
        self._number = 0
        self._last = self._free = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()
        self.waiting = 0
        """Bytes under way."""
        self.drained: Callable[[], None] = lambda: None

    def put(self, data: bytes) -> None:
        """Bytes of the sender, or a datagram."""
        splitter = self._direction.splitter
        if splitter is None or not self._stream:
            self._frame(data)
            return
        self._buffer += data
        for frame in splitter(self._buffer):
            self._frame(frame)

    def end(self) -> None:
        """The sender is done. What it began goes on as it is."""
        if self._direction.faults.swallow:
            self._direction.counts.swallowed += 1
            return
        if self._buffer:
            self._send(bytes(self._buffer), 0.0)
            self._buffer.clear()
        self._put_off(None, 0.0)

    def close(self) -> None:
        """Forget what is under way."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._waiting.clear()
        self.waiting = 0

    def _frame(self, frame: bytes) -> None:
        faults, counts, happens = self._direction.faults, self._direction.counts, self._direction.happens
        counts.frames += 1
        sent = self._direction.sent
        if happens(faults.reset):
            counts.resets += 1
            self._reset()
            return
        if faults.swallow:
            counts.swallowed += 1
            return
        if happens(faults.loss):
            counts.lost += 1
            return
        delay = faults.latency_s + (self._direction.rng.uniform(0, faults.jitter_s) if faults.jitter_s else 0.0)
        arriving = frame
        if sent and happens(faults.stale):
            counts.stale += 1
            arriving = self._direction.rng.choice(sent)
        sent.append(frame)
        if happens(faults.garbage):
            counts.garbage += 1
            self._send(self._direction.rng.randbytes(self._direction.rng.randint(1, 16)), delay)
        self._send(arriving, delay)
        if happens(faults.duplicate):
            counts.duplicated += 1
            self._send(arriving, delay)

    def _send(self, data: bytes, delay: float) -> None:
        faults = self._direction.faults
        if not (self._stream and 0 < faults.split < len(data)):
            self._put_off(data, delay)
            return
        self._direction.counts.split += 1
        for place in range(0, len(data), faults.split):
            self._put_off(data[place : place + faults.split], delay + place // faults.split * faults.split_gap_s)

    def _put_off(self, data: bytes | None, delay: float) -> None:
        now = self._loop.time()
        due = now + delay
        rate = self._direction.faults.bytes_per_s
        if rate and data:
            self._free = due = max(due, self._free) + len(data) / rate
        if self._stream:
            self._last = due = max(due, self._last)
        if due <= now and not self._waiting:
            self._deliver(data)
            return
        self._number += 1
        self.waiting += len(data or b"")
        heapq.heappush(self._waiting, (due, self._number, data))
        self._arm()

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_at(self._waiting[0][0], self._due) if self._waiting else None

    def _due(self) -> None:
        self._timer = None
        now = self._loop.time()
        while self._waiting and self._waiting[0][0] <= now:
            _, _, data = heapq.heappop(self._waiting)
            self.waiting -= len(data or b"")
            self._deliver(data)
        if self._timer is None:
            self._arm()
        self.drained()

    def _deliver(self, data: bytes | None) -> None:
        # A line cut off now cuts off what is on its way, too.
        if self._direction.faults.swallow:
            self._direction.counts.swallowed += 1
            return
        self._direction.counts.delivered += len(data or b"")
        self._out(data)


def mbap_frames(buffer: bytearray) -> list[bytes]:
    """Whole Modbus TCP frames (MODBUS Messaging on TCP/IP V1.0b, 3.1.3); what is none is handed on as it is."""
    frames = []
    while len(buffer) >= 6:
        size = 6 + int.from_bytes(buffer[4:6], "big")
        if buffer[2:4] != b"\0\0" or not 8 <= size <= 260:
            size = len(buffer)
        if len(buffer) < size:
            break
        frames.append(bytes(buffer[:size]))
        del buffer[:size]
    return frames
