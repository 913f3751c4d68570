"""The seam between a bus (who asks next) and a wire (how bytes go out and come back).

A *wire* is one physical link: TCP, TLS, UDP, or a serial line with RTU or ASCII framing. It starts the exchanges it
is given, and tells its owner exactly once how each ended. It is driven by the event loop's callbacks and has no
task of its own; it never repeats a request and never decides what comes next. A *bus* owns one wire, queues
the exchanges of all its units, writes before reads, and keeps each unit's breaker.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from drivers.modbus.pdu import Call, ExceptionReply


class Exchange:
    """One request to one unit. Made once per planned request and used again; at most once under way at a time."""

    __slots__ = ("call", "due_s", "index", "job", "probe", "sent_ns", "timeout_ns", "unit", "wire_data")

    def __init__(self, call: Call, unit: int) -> None:
        self.call, self.unit = call, unit
        self.timeout_ns = 0
        """How long the wire waits for the answer, from the sending on."""
        self.sent_ns = 0
        """Monotonic time of the sending, set by the wire; 0 before."""
        self.probe = False
        """A short look whether a silent unit lives again: its time-out says nothing about the wire."""
        self.job: Any = None
        self.index = 0
        """The owner's own notes."""
        self.wire_data: Any = None
        self.due_s = 0.0
        """The wire's own notes (the frame prepared once; the loop's time at which the answer is overdue)."""


class Owner(Protocol):
    """What a wire tells its owner. Called from the event loop; calls back into the wire are allowed."""

    @property
    def shared(self) -> bool:
        """Whether several units use the wire: then one of them falling silent is no reason to give it up."""

    def answered(self, exchange: Exchange, data: bytes) -> None:
        """The good answer's data (after ``call.echo``). The exchange is over."""

    def refused(self, exchange: Exchange, refusal: ExceptionReply) -> None:
        """The exception answer. The exchange is over, the wire is sound."""

    def failed(
        self, exchange: Exchange, what: str, *, timed_out: bool = False, sent: bool = True, rest_ns: int = 0
    ) -> None:
        """No answer or no usable one, and the wire goes on. ``sent`` is false when nothing of it went out.

        The unit must not be asked again for ``rest_ns``: its late answer could be taken for the next one's.
        """

    def lost(self, what: str, *, hint: str = "", timed_out: bool = False) -> None:
        """The wire is over; every exchange under way is, too. Told once per ``open``, not after ``close``."""

    def late(self, unit: int, *, alive: bool = True) -> None:
        """An answer to a request that was given up: dropped. The unit lives, unless it was a gateway that answered."""

    def stray(self, what: str) -> None:
        """A frame or bytes that fit no request: dropped, or the reason for the ``failed`` or ``lost`` that follows."""


class Wire(Protocol):
    """One physical link. All calls from the event loop's thread."""

    endpoint: str
    """For people, without the unit: ``192.168.1.10:502``, ``/dev/ttyUSB0 19200 8E1``."""
    window: int
    """Exchanges that may be under way at once, over all units."""
    single_writes: bool
    """Whether functions 5 and 6 may be used: not where an echo could pass for their good answer."""

    @property
    def under_way(self) -> int:
        """Exchanges started and not ended, given up ones that still occupy the wire among them."""

    async def open(self, timeout_s: float, owner: Owner) -> None:
        """Open it. Raises :class:`OpenFailed` (then it is closed); a cancellation leaves it closed too."""

    def start(self, exchanges: Sequence[Exchange]) -> None:
        """Send these, in order, as far as the medium allows at once. At most ``window - under_way`` of them."""

    def abandon(self, exchange: Exchange) -> None:
        """Nobody waits for this one any more: its answer is dropped. A wire without transaction ids stays occupied
        until the answer or its time-out, and then says so with ``late`` or ``failed`` (with ``rest_ns`` where the
        medium needs a rest), so that its owner goes on.
        """

    async def close(self) -> None:
        """Close it, with a reset where a request is outstanding; safe at any time and more than once. Silent."""


class OpenFailed(Exception):
    """A wire that cannot be opened: what happened, and what to look at."""

    def __init__(self, what: str, hint: str, *, timed_out: bool = False) -> None:
        self.what, self.hint, self.timed_out = what, hint, timed_out
        super().__init__(what)
