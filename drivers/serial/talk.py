"""One conversation with a serial line device: what it says by itself, and one question at a time.

Answers carry no number. So there is never more than one question; and after any doubt - a time-out, a cancelled wait,
an answer that nobody asked for - nothing is asked before the device was silent for 1.5 time-outs. What answers come
in that time are late, and dropped. Messages that come by themselves are taken all the while.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NoReturn

from drivers.line import LineFailed, make_line
from drivers.options import SerialDeviceOptions
from drivers.port import DriverStats, ExchangeFailed, LinkDown
from drivers.serial.framer import Broken, Framer
from drivers.serial.plan import Fields, SerialPlan, match

GIVE_UP_AFTER = 3
REST_FACTOR = 1.5
"""Silence after doubt, in time-outs."""
LISTEN_NS = 50_000_000
"""After opening the line is only listened to: what comes now may have begun before."""
WRAP = 1 << 32
MS = 1_000_000


class NotSent(ExchangeFailed):
    """The exchange failed before anything was sent."""


@dataclass(slots=True)
class _Question:
    """The message that is waited for."""

    message: str
    lines: int
    answer: asyncio.Future[Fields]
    heard: deque[str] = field(default_factory=deque)


@dataclass(slots=True)
class Taken:
    """A message that was taken, its number, and when it came (monotonic ns)."""

    fields: Fields
    number: int
    stamp_ns: int


class Talk:
    """The line, the framing and the matching of one device. One owner; hold :attr:`turn` to ask or send."""

    def __init__(
        self, name: str, options: SerialDeviceOptions, plan: SerialPlan, monotonic_ns: Callable[[], int]
    ) -> None:
        self._name, self._plan, self._now = name, plan, monotonic_ns
        self._protocol = plan.protocol
        self._line = make_line(options.line)
        self.endpoint = self._line.endpoint
        self.turn = asyncio.Lock()
        self.down = "not connected"
        """Why nothing can be asked; empty when it can."""
        self._hint = ""
        self._framer = Framer(self._protocol.framing)
        self._gap_ns = self._protocol.framing.gap_ms * MS
        self._timer: asyncio.TimerHandle | None = None
        self._heard_ns = self._listen_ns = self._rest_until_ns = self._rest_ns = 0
        self._fresh = True
        """Nothing was heard yet on this connection."""
        self._question: _Question | None = None
        self._ended = asyncio.Event()
        self._failures: Counter[str] = Counter()
        self._row = 0
        self.last_stray = ""
        """What could not be used last, on this connection; for people."""
        self.latest: dict[str, Taken] = {}
        """The newest message of every kind that is not queued, of this connection."""
        self._queues: dict[int, deque[tuple[str, Taken]]] = {}
        self.counts: Counter[str] = Counter()
        self.lost: Counter[str] = Counter()
        self._requests = self._answered = self._timeouts = self._late = self._strays = self._missed = 0
        self._trips_ns: deque[int] = deque(maxlen=256)

    # --- opening and closing

    async def open(self, timeout_s: float) -> None:
        """Open the line. Raises :class:`LinkDown`."""
        await self.close()
        self._framer = Framer(self._protocol.framing)
        self._fresh, self._listen_ns = True, 1 << 62
        self._ended.clear()
        self._failures.clear()
        self._row, self.last_stray, self._hint = 0, "", ""
        try:
            await self._line.open(timeout_s, self._on_bytes, self._on_lost)
        except LineFailed as exc:
            await self.close()
            raise LinkDown(self._name, exc.what, where=self.endpoint, hint=exc.hint, timed_out=exc.timed_out) from exc
        except asyncio.CancelledError:
            await self.close()
            raise
        self.down = ""
        self._listen_ns = self._now() + LISTEN_NS
        self._rest(LISTEN_NS)

    async def close(self) -> None:
        """Close and forget what was not handed over (counted as lost); safe at any time and more than once."""
        asked = self._question is not None
        self._end("not connected", "")
        self.down = "not connected"
        await self._line.close(reset=asked)

    def check(self) -> None:
        """Raises :class:`LinkDown` when the line is not open."""
        if self.down:
            raise self._link_down()

    def stats(self) -> DriverStats:
        """A snapshot of the counters."""
        trips = sorted(self._trips_ns)
        p50, p99 = (trips[int(len(trips) * part)] / MS if trips else 0.0 for part in (0.5, 0.99))
        return DriverStats(
            requests=self._requests,
            answered=self._answered,
            timeouts=self._timeouts,
            late=self._late,
            strays=self._strays,
            missed=self._missed,
            p50_ms=p50,
            p99_ms=p99,
        )

    # --- asking

    async def ask(self, message: str, timeout_s: float) -> Taken:
        """Ask for a message. Hold :attr:`turn`.

        Raises :class:`LinkDown`, :class:`ExchangeFailed`, and of the latter :class:`NotSent` when nothing was sent.
        """
        await self.settle(message, timeout_s)
        sent_ns = self.send(self.framed(self._protocol.messages[message].ask))
        return await self.answer(message, timeout_s, sent_ns)

    def framed(self, text: str) -> bytes:
        """The bytes of a text to send."""
        return self.framed_bytes(text.encode(self._protocol.framing.encoding))

    def framed_bytes(self, data: bytes) -> bytes:
        """The bytes to send, with marks and checksum where the protocol has them on both ways."""
        return self._framer.wrap(data) if self._protocol.framing.frame_sends else data

    async def settle(self, message: str, timeout_s: float) -> None:
        """Wait until no answer to an earlier question can come any more. Raises :class:`LinkDown`, :class:`NotSent`."""
        limit = self._now() + 2 * max(self._rest_ns, LISTEN_NS) + int(timeout_s * 1e9)
        while True:
            self.check()
            now = self._now()
            if now >= self._rest_until_ns:
                return
            if now > limit:
                self._fail(message, f"the device does not fall silent; it says {self.last_stray}", NotSent)
            try:
                async with asyncio.timeout((self._rest_until_ns - now) / 1e9):
                    await self._ended.wait()
            except TimeoutError:
                pass

    def send(self, data: bytes) -> int:
        """Send after :meth:`settle`; returns when (monotonic ns)."""
        self._requests += 1
        sent_ns = self._now()
        self._line.write(data)
        return sent_ns

    async def answer(self, message: str, timeout_s: float, sent_ns: int) -> Taken:
        """Wait for the answer to what was just sent. Raises :class:`LinkDown`, :class:`ExchangeFailed`."""
        lines = self._protocol.messages[message].lines
        question = _Question(message, lines, asyncio.get_running_loop().create_future())
        self._question, self.last_stray = question, ""
        good = False
        try:
            async with asyncio.timeout(timeout_s):
                fields = await question.answer
            good = True
        except TimeoutError:
            heard = f"; heard {self.last_stray} instead" if self.last_stray else ""
            self._timeouts += 1
            self._fail(message, f"{message}: no answer within {timeout_s:g} s{heard}", timed_out=True)
        finally:
            self._question = None
            if not good:
                self._doubt(timeout_s)
        now = self._now()
        self._answered += 1
        self._trips_ns.append(now - sent_ns)
        self._failures[message] = self._row = 0
        self._rest_ns = int(REST_FACTOR * timeout_s * 1e9)
        self.counts[message] = (self.counts[message] + 1) % WRAP
        self.latest[message] = taken = Taken(fields, self.counts[message], sent_ns)
        return taken

    def next_message(self, group: int) -> tuple[str, Taken] | None:
        """The oldest message of the group that waits, which is thereby handed over."""
        queue = self._queues.get(group)
        return queue.popleft() if queue else None

    # --- hearing

    def _on_bytes(self, data: bytes) -> None:
        now = self._heard_ns = self._now()
        if self._fresh and now < self._listen_ns:
            self._framer.resync()
            self._stray("bytes of a message that may have begun before the line was opened")
        self._fresh = False
        for found in self._framer.feed(data):
            self._found(found)
        if self._framer.begun and self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._gap_ns / 1e9, self._on_gap)

    def _on_gap(self) -> None:
        self._timer = None
        left = self._heard_ns + self._gap_ns - self._now()
        if left > 0:
            self._timer = asyncio.get_running_loop().call_later(left / 1e9, self._on_gap)
            return
        for found in self._framer.silence():
            self._found(found)

    def _found(self, found: bytes | Broken) -> None:
        if isinstance(found, Broken):
            self._stray(str(found))
            return
        if b"\0" in found:
            # A port hands over a character of wrong parity as NUL; a loose pattern would take it.
            self._stray(f"{found[:40]!r}, with a zero byte or a character of wrong parity")
            return
        try:
            text = found.decode(self._protocol.framing.encoding)
        except UnicodeDecodeError:
            self._stray(f"{found[:40]!r}, which is not {self._protocol.framing.encoding}")
            return
        if not self._is_answer(text) and not self._is_other(text):
            self._answer_of_several(text)

    def _is_answer(self, text: str) -> bool:
        question = self._question
        if question is None or question.lines > 1 or question.answer.done():
            return False
        fields = match(self._protocol, question.message, text)
        if fields is not None:
            question.answer.set_result(fields)
        return fields is not None

    def _is_other(self, text: str) -> bool:
        for name, declared in self._protocol.messages.items():
            if declared.lines > 1 or (fields := match(self._protocol, name, text)) is None:
                continue
            if self._protocol.pushed(name):
                self._take(name, fields)
            else:
                resting = self._now() < self._rest_until_ns
                self._late += resting
                self._strays += not resting
                self.last_stray = f"{text[:40]!r}, which nobody asked for"
                self._rest(max(self._rest_ns, LISTEN_NS))
            return True
        return False

    def _answer_of_several(self, text: str) -> None:
        question = self._question
        if question is None or question.lines == 1 or question.answer.done():
            self._stray(f"{text[:40]!r}, which fits no message")
            return
        question.heard.append(text)
        if len(question.heard) > question.lines:
            self._stray(f"{question.heard.popleft()[:40]!r}, which fits no message")
        if len(question.heard) == question.lines:
            fields = match(self._protocol, question.message, "\n".join(question.heard))
            if fields is not None:
                question.answer.set_result(fields)
        self.last_stray = f"{text[:40]!r}"

    def _take(self, name: str, fields: Fields) -> None:
        group = self._plan.group_of.get(name)
        if group is None:
            return
        self.counts[name] = (self.counts[name] + 1) % WRAP
        taken = Taken(fields, self.counts[name], self._now())
        if not self._plan.queued(name):
            self.latest[name] = taken
            return
        queue = self._queues.setdefault(group, deque())
        queue.append((name, taken))
        if sum(1 for kind, _ in queue if kind == name) > self._protocol.messages[name].queue:
            oldest = next(n for n, (kind, _) in enumerate(queue) if kind == name)
            del queue[oldest]
            self._lose(name)

    def _stray(self, what: str) -> None:
        """Bytes that cannot be used. Each may have been a message that came by itself."""
        self._strays += 1
        self.last_stray = what
        for name in self._protocol.messages:
            if self._plan.queued(name):
                self._lose(name)
        if self._now() < self._rest_until_ns:
            self._rest(max(self._rest_ns, LISTEN_NS))

    def _lose(self, name: str) -> None:
        self._missed += 1
        self.lost[name] = (self.lost[name] + 1) % WRAP

    # --- doubt and loss

    def _rest(self, rest_ns: int) -> None:
        self._rest_until_ns = max(self._rest_until_ns, self._now() + rest_ns)

    def _doubt(self, timeout_s: float) -> None:
        """An answer may still come: it must not be taken for the next one's, nor what is left of it for a message."""
        self._line.discard()
        if self._framer.begun:
            self._framer.resync()
            self._stray("the beginning of a message that came too late")
        self._rest_ns = int(REST_FACTOR * timeout_s * 1e9)
        self._rest(self._rest_ns)

    def _on_lost(self, what: str, hint: str) -> None:
        self._end(what, hint)

    def _end(self, what: str, hint: str) -> None:
        """Nothing more comes. What waits for the scan is lost with the link, and counted."""
        if not self.down:
            self.down, self._hint = what, hint
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for queue in self._queues.values():
            for name, _ in queue:
                self._lose(name)
            queue.clear()
        self.latest.clear()
        question = self._question
        if question is not None and not question.answer.done():
            question.answer.set_exception(self._link_down())
            question.answer.exception()  # the one who waits may be cancelled in this very moment
        self._ended.set()

    def _fail(
        self, message: str, what: str, kind: type[ExchangeFailed] = ExchangeFailed, *, timed_out: bool = False
    ) -> NoReturn:
        self._failures[message] += 1
        self._row += 1
        hint = "check power, cable, baud rate, parity and the device's protocol settings"
        row = max(self._row, self._failures[message])
        if row >= GIVE_UP_AFTER:
            self._end(f"{what}, {row} times in a row", hint)
            raise LinkDown(self._name, self.down, where=self.endpoint, hint=hint, timed_out=timed_out) from None
        raise kind(self._name, what, where=self.endpoint, hint=hint, timed_out=timed_out) from None

    def _link_down(self) -> LinkDown:
        return LinkDown(self._name, self.down, where=self.endpoint, hint=self._hint)
