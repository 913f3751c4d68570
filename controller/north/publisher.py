"""The publisher: what the line shows, handed to every client without ever waiting for one.

After each scan :meth:`Publisher.publish` works out once what changed, encodes it once, and puts it into each
client's bounded queue. A client that reads too slowly finds its queue emptied and gets a new snapshot, with
``resync`` counted up and, where events had to go, a note in their place that says which. Answers to commands are
never dropped while their client lives.

Nothing here awaits; a :class:`Session` is one client's end, whether a socket is behind it or a test.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence

import msgspec
import structlog

from controller.core.commands import Command, Reply
from controller.core.events import AnyEvent, Note
from controller.north.frames import (
    MAX_FRAME,
    Answer,
    Delta,
    Events,
    Goodbye,
    Hello,
    Request,
    Scalar,
    ServerFrame,
    Snapshot,
)

EVENTS_PER_FRAME = 500
LIFE_SIGN_NS = 1_000_000_000
"""An empty delta is sent when nothing changed for this long, so that silence always means trouble."""
NOT_FINITE = "not a finite number"
URGENT = frozenset({"stop", "abort"})
MAX_UNANSWERED = 1000
"""Commands of one client that may wait for their answers; stop and abort beyond that are still taken."""
MAX_UNREAD = 2000
"""Answers that a client may leave unread before it is sent away."""
MAX_ID = 100
"""Characters of a command's id at most."""
_log = structlog.get_logger("north")

Submit = Callable[[Command], Reply | None]
"""Queues a command for the scan, or returns the refusal at once."""


def encode(frame: ServerFrame | Request) -> bytes:
    """A frame as it goes over the stream. Raises :class:`ValueError` when it is longer than ``MAX_FRAME``."""
    body = msgspec.msgpack.encode(frame)
    if len(body) > MAX_FRAME:
        raise ValueError(f"a {type(frame).__name__} frame of {len(body)} bytes is over the limit of {MAX_FRAME}")
    return len(body).to_bytes(4, "big") + body


class TokenBucket:
    """At most ``rate`` per second on average and ``burst`` at once."""

    def __init__(self, rate: float, burst: float, now_ns: int) -> None:
        self._rate, self._burst = rate, burst
        self._tokens, self._at_ns = burst, now_ns

    def take(self, now_ns: int) -> bool:
        """Take one token; ``False`` when there is none."""
        self._tokens = min(self._burst, self._tokens + (now_ns - self._at_ns) * 1e-9 * self._rate)
        self._at_ns = now_ns
        if self._tokens < 1.0:
            return False
        self._tokens -= 1.0
        return True


class Session:
    """One client's end. Whoever serves it calls :meth:`pull` until ``None``, and again when ``on_data`` is called.

    :meth:`request` takes what the client sends. ``name`` is for the log.
    """

    def __init__(self, publisher: Publisher, name: str, on_data: Callable[[], None]) -> None:
        self.name = name
        self.resyncs = 0
        self.limited = 0
        """Commands refused for coming too fast."""
        self._publisher, self._on_data = publisher, on_data
        self._answers: deque[bytes] = deque()
        self._queue: deque[tuple[bytes, int, int]] = deque()
        """Encoded frame, and first and last number of the events in it (0, -1: none)."""
        self._bytes = 0
        self._gap: tuple[int, int, int] | None = None
        """First and last number, and count, of events that were dropped."""
        self._snapshot_due = True
        self._goodbye: bytes | None = None
        self._bucket = publisher.bucket()
        self.pending: set[str] = set()
        """Ids of commands that wait for their answer, as the client gave them."""

    @property
    def ending(self) -> bool:
        """Whether a Goodbye is due or was sent."""
        return self._goodbye is not None

    @property
    def ended(self) -> bool:
        """Whether all has been pulled, the Goodbye too."""
        return self._goodbye == b"" and not self._answers

    def pull(self) -> bytes | None:
        """The next frame to send, or ``None`` when there is nothing (or nothing more) to send now."""
        if self._answers:
            return self._answers.popleft()
        if self._goodbye is not None:
            last, self._goodbye = self._goodbye, b""
            return last or None
        if self._gap is not None:
            first, until, count = self._gap
            self._gap = None
            text = f"gap: events {first} to {until} ({count}) were dropped, this client reads too slowly"
            note = Note(at=self._publisher.at, text=text)
            return encode(Events(first=first, events=[note]))
        if self._snapshot_due:
            # Encoded only now that the client is ready for it: one that hangs costs the scan nothing.
            snapshot = self._publisher.snapshot(self.resyncs)
            if snapshot is not None:  # else there was no scan yet; events may come before it
                self._snapshot_due = False
                return snapshot
        if self._queue:
            frame, _, _ = self._queue.popleft()
            self._bytes -= len(frame)
            return frame
        return None

    def request(self, request: Request) -> None:
        """A command from this client; its answer comes with :meth:`pull`."""
        self._publisher.take(self, request.command, self._bucket)

    def close(self) -> None:
        """The client is gone; answers for it are dropped from now on."""
        self._publisher.detach(self)

    # -- for the publisher

    def put_delta(self, frame: bytes) -> None:
        """Queue a delta; while a snapshot is due it is not needed."""
        if not self._snapshot_due and not self.ending:
            self._put(frame, 0, -1)

    def put_events(self, frame: bytes, first: int, count: int) -> None:
        """Queue an Events frame."""
        if not self.ending:
            self._put(frame, first, first + count - 1)

    def put_answer(self, frame: bytes) -> None:
        """Queue an answer, ahead of everything else. A client that never reads its answers is sent away."""
        if self.ending:
            return
        if len(self._answers) >= MAX_UNREAD:
            self._answers.clear()
            self.end(f"{MAX_UNREAD} answers were not read; the client hangs")
            return
        self._answers.append(frame)
        self.wake()

    def end(self, reason: str) -> None:
        """Say goodbye after the answers; nothing follows, and no more commands are taken."""
        if self._goodbye is None:
            self._queue.clear()
            self._goodbye = encode(Goodbye(reason=reason))
            self.wake()

    def wake(self) -> None:
        """There is something to pull."""
        self._on_data()

    def _put(self, frame: bytes, first: int, last: int) -> None:
        frames, size = self._publisher.queue_limits
        if len(self._queue) >= frames or self._bytes + len(frame) > size:
            self._overflow()
            if first <= last:
                self._lose(first, last)
        else:
            self._queue.append((frame, first, last))
            self._bytes += len(frame)
        self.wake()

    def _overflow(self) -> None:
        for _, first, last in self._queue:
            if first <= last:
                self._lose(first, last)
        self._queue.clear()
        self._bytes = 0
        if not self._snapshot_due:
            self._snapshot_due = True
            self.resyncs += 1
            _log.warning("client reads too slowly; it gets a new snapshot", client=self.name, resync=self.resyncs)

    def _lose(self, first: int, last: int) -> None:
        begin, _, count = self._gap or (first, 0, 0)
        self._gap = (begin, last, count + last - first + 1)


class Publisher:
    """The line's side of the north port. ``submit`` takes commands, ``monotonic_ns`` is the clock for limits.

    ``rate`` commands per second and client, stop and abort not counted; ``queue_frames`` and ``queue_bytes``
    bound each client's queue.
    """

    def __init__(
        self,
        hello: Hello,
        submit: Submit,
        monotonic_ns: Callable[[], int],
        *,
        queue_frames: int = 256,
        queue_bytes: int = 4 * 1024 * 1024,
        rate: float = 50.0,
    ) -> None:
        self.hello = hello
        self.hello_frame = encode(hello)
        self.queue_limits = (queue_frames, queue_bytes)
        self.at = 0
        """UTC of the values last published."""
        self.sessions: set[Session] = set()
        self._submit, self._monotonic_ns, self._rate = submit, monotonic_ns, rate
        self._commands = {target: {c.name for c in infos} for target, infos in hello.commands.items()}
        self._routes: dict[str, tuple[Session, str]] = {}
        self._count = 0
        self._seq = 0
        self._raw: list[Scalar] | None = None
        self._values: list[Scalar] = []
        self._bad: dict[int, str] = {}
        self._odd: dict[int, str] = {}
        """Values set aside by :func:`_odd`, and why."""
        self._sent_ns = 0

    # ------------------------------------------------------------------------------------ from the scan

    def publish(self, values: Sequence[Scalar], bad: Mapping[int, str], at: int) -> None:
        """The values after a scan, in the order of ``hello.nodes``; ``at`` is UTC in ns.

        A float that is not finite is published as bad. Raises :class:`ValueError` on a wrong number of values.
        """
        if len(values) != len(self.hello.nodes):
            raise ValueError(f"{len(values)} values for {len(self.hello.nodes)} nodes")
        now = self._monotonic_ns()
        first = self._raw is None
        if self._raw is None:
            changed = dict(enumerate(values))
            self._values = list(values)
        else:
            changed = {
                i: new
                for i, (new, old) in enumerate(zip(values, self._raw, strict=True))
                if new is not old and (new != old or type(new) is not type(old))
            }
        self._raw = list(values)
        self.at = at
        self._set_aside_odd(changed, first)
        self._values_take(changed)
        newly_bad, good = self._bad_take(bad)
        if first:
            self._seq, self._sent_ns = 1, now
            for session in self.sessions:
                session.wake()  # its snapshot can be made now
            return
        if not (changed or newly_bad or good) and now - self._sent_ns < LIFE_SIGN_NS:
            return
        self._seq += 1
        self._sent_ns = now
        if self.sessions:
            frame = encode(Delta(seq=self._seq, at=at, values=changed, bad=newly_bad, good=good))
            for session in self.sessions:
                session.put_delta(frame)

    def events(self, first: int, events: Sequence[AnyEvent]) -> None:
        """Events of the record, from number ``first`` on."""
        if not self.sessions:
            return
        for start in range(0, len(events), EVENTS_PER_FRAME):
            part = list(events[start : start + EVENTS_PER_FRAME])
            try:
                frame = encode(Events(first=first + start, events=part))
            except (ValueError, TypeError, OverflowError):
                frame = encode(Events(first=first + start, events=[_encodable(e) for e in part]))
            for session in self.sessions:
                session.put_events(frame, first + start, len(part))

    def answer(self, reply: Reply) -> None:
        """The answer to a command; dropped when its client is gone or it was not a client's."""
        route = self._routes.pop(reply.id, None)
        if route is not None:
            session, own_id = route
            session.pending.discard(own_id)
            _answer(session, own_id, reply)

    def drop_clients(self, reason: str) -> None:
        """Say goodbye to all."""
        for session in self.sessions:
            session.end(reason)

    # ----------------------------------------------------------------------------------- for the sessions

    def attach(self, name: str, on_data: Callable[[], None] = lambda: None) -> Session:
        """A new client; ``on_data`` is called when there is something to pull. The Hello is not part of it."""
        session = Session(self, name, on_data)
        self.sessions.add(session)
        return session

    def detach(self, session: Session) -> None:
        """The client is gone; its commands that are queued are still carried out."""
        self.sessions.discard(session)
        for key in [k for k, (s, _) in self._routes.items() if s is session]:
            del self._routes[key]

    def bucket(self) -> TokenBucket:
        """A new client's allowance of commands."""
        return TokenBucket(self._rate, max(1.0, self._rate), self._monotonic_ns())

    def snapshot(self, resync: int) -> bytes | None:
        """The present values, encoded; ``None`` before the first scan."""
        if self._raw is None:
            return None
        return encode(Snapshot(seq=self._seq, at=self.at, values=self._values, bad=self._bad, resync=resync))

    def take(self, session: Session, command: Command, bucket: TokenBucket) -> None:
        """A command from a client: queued for the scan, or refused at once with the reason.

        One that repeats the id of a command still waiting is left to that one's answer; a stop or an abort is
        always passed on.
        """
        urgent = command.name in URGENT
        if not urgent and (session.ending or command.id in session.pending):
            return
        refusal = self._refusal(session, command, bucket)
        if refusal:
            _answer(session, command.id[:MAX_ID], Reply(id="", accepted=False, reason=refusal))
            return
        key = command.id
        while key in self._routes:  # two clients may have chosen the same id
            self._count += 1
            key = f"{command.id}~{self._count}"
        reply = self._submit(command if key == command.id else msgspec.structs.replace(command, id=key))
        if reply is not None:
            _answer(session, command.id, reply)
        elif not session.ending:
            self._routes[key] = (session, command.id)
            session.pending.add(command.id)

    def _refusal(self, session: Session, command: Command, bucket: TokenBucket) -> str:
        urgent = command.name in URGENT
        if not 0 < len(command.id) <= MAX_ID:
            return f"a command's id has 1 to {MAX_ID} characters"
        if not urgent and not bucket.take(self._monotonic_ns()):
            session.limited += 1
            return f"more than {self._rate:g} commands a second from this client; stop and abort are always taken"
        known = self._commands.get(command.target)
        if known is None:
            there = ", ".join(self._commands)
            return f"there is no {command.target[:60]!r} to command; there are {there}"
        if not urgent and command.name not in known:
            return f"{command.target} knows no command {command.name[:60]!r}"
        if not urgent and len(session.pending) >= MAX_UNANSWERED:
            return f"{MAX_UNANSWERED} commands of this client wait for their answers; wait for them"
        return ""

    # ------------------------------------------------------------------------------------------- inside

    def _set_aside_odd(self, changed: dict[int, Scalar], first: bool) -> None:
        """Values that cannot or must not be sent become ``None`` and bad."""
        for i in list(changed):
            reason = _odd(changed[i])
            if reason:
                self._odd[i] = reason
                changed[i] = None
                if not first and self._values[i] is None:
                    del changed[i]  # NaN is not even equal to itself
            elif self._odd:
                self._odd.pop(i, None)

    def _values_take(self, changed: Mapping[int, Scalar]) -> None:
        for i, value in changed.items():
            self._values[i] = value

    def _bad_take(self, bad: Mapping[int, str]) -> tuple[dict[int, str], list[int]]:
        """What became bad, or bad for another reason, and what is good again."""
        now = {**self._odd, **bad} if self._odd else bad
        newly = {i: reason for i, reason in now.items() if self._bad.get(i) != reason}
        good = [i for i in self._bad if i not in now]
        if newly or good:
            self._bad = dict(now)
        return newly, good


def _answer(session: Session, own_id: str, reply: Reply) -> None:
    session.put_answer(encode(Answer(reply=msgspec.structs.replace(reply, id=own_id))))


def _odd(value: Scalar) -> str:
    """Why a value cannot be published, or nothing."""
    if isinstance(value, float):
        return "" if math.isfinite(value) else NOT_FINITE
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            return "not a valid text"
    elif isinstance(value, int) and not -(2**63) <= value < 2**64:
        return "an integer of more than 64 bits"
    return ""


def _encodable(event: AnyEvent) -> AnyEvent:
    """The event, or a note with its text when it cannot be encoded."""
    try:
        msgspec.msgpack.encode(event)
    except (ValueError, TypeError, OverflowError) as exc:
        text = f"event could not be encoded ({exc}): {event!r}".encode("ascii", "backslashreplace").decode()
        return Note(at=event.at, text=text)
    return event
