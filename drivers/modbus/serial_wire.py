"""Exchanges on a serial line with many units (MODBUS over Serial Line V1.02, 2.4): one at a time, driven by callbacks.

A frame on a serial line carries no transaction id: a late answer looks like the answer to the next request of that
kind. What keeps the two apart, from the cheapest on:

* Only a frame of the asked unit, with the asked function and of the asked length, is an answer. What another unit, or
  another function, still says to a request that was given up is dropped, and the wait goes on.
* A unit that left a request unanswered rests for one and a half time-outs; its neighbours are asked at once.
* Then, before a function is asked again that it still owes an answer to, it must return a number drawn for the purpose
  (function 8, sub-function 0), or refuse as many of these as it was sent. A unit answers in the order it was asked:
  having answered this, it owes nothing older.
* A unit that does not answer even that may be one that ignores function 8, or be dead. It is asked directly when it has
  said nothing for so long that no answer can be under way any more; how long depends on what is known of it.
"""

from __future__ import annotations

import asyncio
import enum
import random
from collections.abc import Callable, Sequence

from drivers.line import Line, LineFailed
from drivers.modbus.debts import ANYTHING, Debts
from drivers.modbus.framing import LOOPBACK, Framing, pdu_size
from drivers.modbus.pdu import GATEWAY, BadReply, Call, ExceptionReply, loopback_call
from drivers.modbus.wire import Exchange, OpenFailed, Owner

REST_FACTOR = 1.5
"""Rest of a unit after a request was given up, in time-outs."""
DRAIN_FACTOR = 2.5
"""Rest of a unit that may be about to refuse more loop-backs, in its longest time-outs: a longer pause ends the row."""
TCP_GAP_NS = 4_010_417
"""Silence before a request through a device server, whose baud rate is not known here: 3.5 characters at 9600."""
POLL_NS = 5_000_000
"""How often to look whether the last request has gone out."""
SETTLE_NS = 50_000_000
"""After so long without a byte, what looks like the beginning of a frame is not waited for any more."""
MOST_HEARD = 600
"""Bytes kept while no frame is found in them: two of the longest RTU frames; an ASCII frame has 513 at most."""
MISSING_ECHO = "echo is true, but what is sent does not come back; check the adapter, or set echo: false"
UNDECLARED_ECHO = "the line hands our own bytes back; set echo: true, or switch the adapter's echo off"


class State(enum.Enum):
    """What the wire is at."""

    CLOSED = 0
    IDLE = 1
    WAITING = 2
    """An exchange is to be sent as soon as the line, its unit, and the last request's bytes allow."""
    RECEIVING = 3


class SerialWire:
    """Part of :class:`drivers.modbus.wire.Wire`. Knows its units across ``close`` and ``open``: they do not notice."""

    window = 1
    single_writes = False

    def __init__(self, line: Line, framing: Framing, *, echo: bool, monotonic_ns: Callable[[], int]) -> None:
        self.endpoint = line.endpoint
        self._line, self._framing, self._echo, self._now = line, framing, echo, monotonic_ns
        # 3.5 characters of 11 bits between frames; above 19200 baud a fixed 1.75 ms (2.5.1.1).
        self._gap_ns = max(1_750_000, line.char_ns * 7 // 2) if line.char_ns else TCP_GAP_NS
        self._settle_ns = max(SETTLE_NS, 10 * line.char_ns)
        self._units: dict[int, Debts] = {}
        self._owner: Owner | None = None
        self._state = State.CLOSED
        self._exchange: Exchange | None = None
        self._abandoned = self._direct = self._backlog = self._again = False
        self._call: Call | None = None
        """What is waited for: the exchange's call, or the loop-back before it."""
        self._frame = b""
        self._echo_left = b""
        self._sent_ns = self._deadline_ns = self._until_ns = self._heard_ns = self._scan_ns = 0
        self._buffer = bytearray()
        self._timer: asyncio.TimerHandle | None = None
        self._timer_ns = 0
        self._number = random.getrandbits(16)

    @property
    def under_way(self) -> int:
        """0 or 1."""
        return int(self._exchange is not None)

    async def open(self, timeout_s: float, owner: Owner) -> None:
        """Open the line. Raises :class:`OpenFailed`."""
        await self.close()
        self._buffer.clear()
        try:
            await self._line.open(timeout_s, self._on_bytes, self._on_lost)
        except LineFailed as exc:
            raise OpenFailed(exc.what, exc.hint, timed_out=exc.timed_out) from exc
        self._owner, self._state, self._heard_ns = owner, State.IDLE, self._now()

    def start(self, exchanges: Sequence[Exchange]) -> None:
        """Send this one, as soon as the line has been silent for the gap and its unit has rested."""
        (exchange,) = exchanges
        if self._state is not State.IDLE:
            raise RuntimeError(f"{self.endpoint}: an exchange was started while the wire is {self._state.name}")
        unit = self._units.get(exchange.unit)
        if unit is None:
            unit = self._units[exchange.unit] = Debts()
        unit.longest_ns = max(unit.longest_ns, exchange.timeout_ns)
        exchange.sent_ns = 0
        self._exchange, self._abandoned, self._call = exchange, False, None
        self._state = State.WAITING
        # Time enough to rest, and for a loop-back; a line that is never silent must not hold it for ever.
        self._until_ns = max(self._now(), unit.rest_until_ns) + 2 * exchange.timeout_ns + 2 * self._gap_ns
        self._advance()

    def abandon(self, exchange: Exchange) -> None:
        """Drop its answer. The wire stays occupied until that, or the time-out; then it says ``late`` or ``failed``.

        What is not sent yet never is, and ends here, without a word.
        """
        if exchange is not self._exchange:
            return
        if self._state is State.WAITING and self._call is None:
            self._end()
        else:
            self._abandoned = True

    async def close(self) -> None:
        """Close the line. A unit that was asked and has not answered still owes that answer afterwards."""
        outstanding = self._shut()
        await self._line.close(reset=outstanding)

    # --- sending

    def _advance(self) -> None:
        """Send, or say when to look again."""
        exchange = self._exchange
        assert exchange is not None
        unit, now = self._units[exchange.unit], self._now()
        at = max(self._heard_ns + self._gap_ns, unit.rest_until_ns)
        if now >= at:
            if not self._line.unsent:
                self._send(exchange, unit, now)
                return
            at = now + POLL_NS
        if now < self._until_ns:
            self._arm(min(at, self._until_ns))
        elif self._line.unsent:
            self._line.discard()
            self._fail("not sent: the bytes of the last request have not gone out", sent=False)
        else:
            self._fail(f"not sent: the line does not fall silent{self._sample()}", sent=False)

    def _send(self, exchange: Exchange, unit: Debts, now: int) -> None:
        self._drop_noise("before a request")
        call = exchange.call
        owing = unit.may_owe(call.pdu[0])
        self._direct = owing and unit.mute and now >= unit.direct_ns
        if owing and not self._direct:
            self._number = self._number + 1 & 0xFFFF
            call = loopback_call(self._number.to_bytes(2, "big"))
            unit.unreturned += 1
            frame = self._framing.encode(exchange.unit, call.pdu)
        else:
            exchange.sent_ns = now
            frame = exchange.wire_data if isinstance(exchange.wire_data, bytes) else b""
            if not frame:
                frame = exchange.wire_data = self._framing.encode(exchange.unit, call.pdu)
        self._call, self._frame, self._sent_ns = call, frame, now
        self._echo_left = frame if self._echo else b""
        self._deadline_ns = now + exchange.timeout_ns
        self._state = State.RECEIVING
        self._line.write(frame)
        self._arm(self._deadline_ns)

    # --- hearing

    def _on_bytes(self, data: bytes) -> None:
        now = self._now()
        pause, self._heard_ns = now - self._heard_ns, now
        if self._framing.char_gap_ns and pause > self._framing.char_gap_ns:
            self._drop_noise("after which the line paused")
        if self._echo_left:
            size = min(len(data), len(self._echo_left))
            if data[:size] != self._echo_left[:size]:
                self._buffer += data
                self._fail("the echo differs from what was sent: a collision or noise", rest=True)
                return
            self._echo_left, data = self._echo_left[size:], data[size:]
        self._buffer += data
        if self._state is not State.CLOSED:
            self._scan(settled=False)

    def _scan(self, *, settled: bool) -> None:
        """Take the frames out of what was heard."""
        pending = False
        while self._buffer and self._state is not State.CLOSED:  # whoever takes an answer may close
            if self._undeclared_echo():
                self._fail(UNDECLARED_ECHO, rest=True)
                return
            found, pending = self._framing.find(self._buffer, self._units, self._measure, settled)
            if found is None:
                break
            if found.noise:
                self._stray(f"noise before an answer{self._sample(found.noise)}")
            del self._buffer[: found.end]
            self._frame_heard(found.unit, found.pdu)
        if self._state is State.RECEIVING and self._buffer:
            assert self._exchange is not None
            assert self._call is not None
            if pending:
                self._scan_ns = self._now() + self._settle_ns
                self._arm(self._scan_ns)
            elif not self._frame.startswith(bytes(self._buffer)) and self._framing.damaged(
                self._buffer, self._exchange.unit, self._call
            ):
                self._fail(f"an answer with a wrong checksum{self._sample()}")
        if len(self._buffer) > MOST_HEARD:
            del self._buffer[:-MOST_HEARD]

    def _frame_heard(self, number: int, pdu: bytes) -> None:
        exchange, owner, unit, function = self._exchange, self._owner, self._units[number], pdu[0] & 0x7F
        assert owner is not None
        if function == LOOPBACK and not _gateway(pdu):
            unit.loops = True
        unit.mute = False
        waiting = self._state is State.RECEIVING and exchange is not None and exchange.unit == number
        if exchange is not None and self._call is not None and waiting and function == self._call.pdu[0]:
            self._answered(exchange, self._call, pdu)
            return
        if function == LOOPBACK and unit.returned(refused=pdu[0] != LOOPBACK):
            owner.stray(f"unit {number} refuses more loop-backs than it was thought to owe")
            if waiting:
                self._fail("an older request is only being answered now", rest=True)
                return
        known = function == LOOPBACK or unit.may_owe(function)
        if exchange is not None and waiting and self._call is exchange.call and not known:
            self._stray(f"unit {number} answers with function {pdu[0]}, which was not asked")
            self._fail(f"answered with function {pdu[0]} ({pdu[:8].hex(' ')})")
            return
        unit.be_patient(self._now())
        if known:
            owner.late(number, alive=not _gateway(pdu))
            return
        unit.owes[ANYTHING] = None
        owner.stray(f"unit {number}: an answer that nobody waits for ({pdu[:8].hex(' ')})")

    def _answered(self, exchange: Exchange, call: Call, pdu: bytes) -> None:
        """The asked unit answers with the asked function."""
        owner, unit = self._owner, self._units[exchange.unit]
        assert owner is not None
        if call is not exchange.call:
            self._looped_back(exchange, call, pdu)
            return
        if self._direct:
            unit.loops = False  # until it answers one after all
        try:
            data = call.payload(pdu)
        except BadReply as exc:
            self._stray(str(exc))
            self._fail(str(exc).removeprefix(f"{call.what}: "))
        except ExceptionReply as exc:
            if _gateway(pdu):
                self._owe(exchange)  # the device itself may still answer
            else:
                unit.owe_nothing()
            self._conclude(exchange, exc)
        else:
            unit.owe_nothing()
            self._conclude(exchange, data)

    def _looped_back(self, exchange: Exchange, call: Call, pdu: bytes) -> None:
        """The unit returns the number, or says that it cannot: it owes nothing older, and is asked the real thing."""
        owner, unit = self._owner, self._units[exchange.unit]
        assert owner is not None
        if _gateway(pdu):
            self._fail(f"not sent: the loop-back that must come first got exception {pdu[1]} of a gateway", rest=True)
            return
        unit.unreturned -= 1
        if pdu != call.pdu:
            if pdu[0] == LOOPBACK:
                owner.late(exchange.unit)  # an earlier number
                return
            if unit.unreturned:  # the refusal of this one, or of an earlier one: wait for more
                self._backlog = True
                return
        unit.owe_nothing()
        if self._abandoned:
            self._end()
            owner.late(exchange.unit)
        else:
            self._call, self._state = None, State.WAITING
            self._advance()

    def _conclude(self, exchange: Exchange, result: bytes | ExceptionReply) -> None:
        owner, abandoned = self._owner, self._abandoned
        assert owner is not None
        self._end()
        if abandoned:
            owner.late(exchange.unit, alive=not (isinstance(result, ExceptionReply) and result.code in GATEWAY))
        elif isinstance(result, ExceptionReply):
            owner.refused(exchange, result)
        else:
            owner.answered(exchange, result)

    def _measure(self, number: int, head: bytes) -> int:
        """How long the PDU of ``number`` that begins with ``head`` is, if it is one."""
        exchange, unit, call = self._exchange, self._units.get(number), None
        if head and self._call and exchange and exchange.unit == number and self._call.pdu[0] == head[0]:
            call = self._call
        elif head and unit is not None:
            call = unit.owes.get(head[0])
        return pdu_size(head, call)

    def _undeclared_echo(self) -> bool:
        """Our own request is heard, where no answer could look like it."""
        if self._state is not State.RECEIVING or self._echo or not self._buffer.startswith(self._frame):
            return False
        assert self._call is not None
        return self._call.echo != self._call.pdu

    # --- ending

    def _tick(self) -> None:
        self._timer = None
        if self._state is State.WAITING:
            self._advance()
        elif self._state is State.RECEIVING:
            now = self._now()
            if now >= self._deadline_ns:
                exchange = self._exchange
                self._scan(settled=True)
                # The scan may have led to a sending, even of the same exchange; that one has its own time.
                if self._exchange is exchange and self._state is State.RECEIVING and now >= self._deadline_ns:
                    self._time_out()
                return
            if self._scan_ns and now >= self._scan_ns:
                self._scan_ns = 0
                if now - self._heard_ns >= self._settle_ns:
                    self._scan(settled=True)
                else:
                    self._scan_ns = self._heard_ns + self._settle_ns
            if self._state is State.RECEIVING:
                self._arm(min(self._deadline_ns, self._scan_ns or self._deadline_ns))

    def _time_out(self) -> None:
        exchange, call, owner = self._exchange, self._call, self._owner
        assert exchange is not None
        assert call is not None
        assert owner is not None
        wait = f"within {exchange.timeout_ns / 1e9:g} s"
        unsent = self._line.unsent
        never = self._line.discard() if unsent else 0
        if unsent and never >= len(self._frame):
            self._call = None  # as if it had never been tried
            self._fail(f"not sent: the port took nothing {wait}: flow control, or a dead adapter", sent=False)
            return
        if unsent:
            what = f"no answer {wait}, and {unsent} bytes have not gone out: a dead adapter or device server"
        elif self._echo_left:
            got = len(self._frame) - len(self._echo_left)
            what = f"no echo {wait} ({got} of {len(self._frame)} bytes): {MISSING_ECHO}"
        elif self._backlog:
            # It refused fewer loop-backs than were sent. Either the others never reached it, or it is slow to refuse
            # them: then it does so while it rests.
            unit = self._units[exchange.unit]
            unit.unreturned = 0
            if not (owner.shared or self._abandoned or self._again):
                self._again, self._backlog, self._call, self._state = True, False, None, State.WAITING
                unit.rest_until_ns = self._now() + int(DRAIN_FACTOR * unit.longest_ns) + self._gap_ns
                self._until_ns = unit.rest_until_ns + 2 * exchange.timeout_ns + 2 * self._gap_ns
                self._advance()
                return
            what = f"not sent: the unit speaks again, but may owe more answers; none came {wait}"
        elif call is not exchange.call:
            self._units[exchange.unit].mute = True
            what = f"not sent: an answer is still owed, and no answer {wait} to the loop-back that must come first"
        else:
            what = f"no answer {wait}{self._explain()}"
        self._fail(what, timed_out=True, rest=True)

    def _explain(self) -> str:
        """What can be said of what was heard instead of an answer."""
        assert self._exchange is not None
        assert self._call is not None
        if not self._buffer:
            took = self._line.char_ns * (len(self._frame) + self._call.size + 3)
            slow = took > self._exchange.timeout_ns
            return f" (the line alone needs {took / 1e9:.2g} s for request and answer)" if slow else ""
        found, _ = self._framing.find(self._buffer, range(1, 248), self._measure, settled=True)
        if found is not None:
            return f"; unit {found.unit} answers instead of {self._exchange.unit}"
        few = f", only{self._sample()}"
        return few if len(self._buffer) < 5 else f"{few}; check baud rate, parity, wiring and termination"

    def _fail(self, what: str, *, timed_out: bool = False, sent: bool = True, rest: bool = False) -> None:
        """The exchange is over, without a usable answer; the unit may still give one."""
        exchange, owner = self._exchange, self._owner
        assert exchange is not None
        assert owner is not None
        unit, now = self._units[exchange.unit], self._now()
        self._drop_noise("instead of an answer")
        if not sent:
            exchange.sent_ns = 0
        self._owe(exchange)
        if rest:
            unit.rest_until_ns = now + self._rest_ns(exchange)
        if exchange.probe and self._call is not None:
            exchange.sent_ns = (
                self._sent_ns
            )  # the loop-back, if it did not come to more, was the probe, and has its cost
        sent = sent and exchange.sent_ns != 0
        self._end()
        rest_ns = max(0, unit.rest_until_ns - now)
        owner.failed(exchange, f"{exchange.call.what}: {what}", timed_out=timed_out, sent=sent, rest_ns=rest_ns)

    def _owe(self, exchange: Exchange) -> None:
        """Its unit may still answer it, if it was sent."""
        if exchange.sent_ns:
            unit = self._units[exchange.unit]
            unit.owes[exchange.call.pdu[0]] = exchange.call
            unit.be_patient(self._now())

    def _rest_ns(self, exchange: Exchange) -> int:
        if self._backlog:
            return int(DRAIN_FACTOR * self._units[exchange.unit].longest_ns) + self._gap_ns
        return int(REST_FACTOR * exchange.timeout_ns) + self._gap_ns

    def _end(self) -> None:
        self._exchange, self._call, self._echo_left, self._scan_ns = None, None, b"", 0
        self._state, self._backlog, self._again = State.IDLE, False, False

    def _on_lost(self, what: str, hint: str) -> None:
        owner = self._owner
        self._shut()
        if owner is not None:
            owner.lost(what, hint=hint)

    def _shut(self) -> bool:
        """Forget the owner and the exchange, but not what its unit owes. Whether a request was outstanding."""
        exchange, outstanding = self._exchange, self._call is not None
        if exchange is not None:
            self._owe(exchange)
            if outstanding:
                unit = self._units[exchange.unit]
                unit.rest_until_ns = max(unit.rest_until_ns, self._deadline_ns + self._rest_ns(exchange))
        self._end()
        self._owner, self._state = None, State.CLOSED
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        return outstanding

    # --- small things

    def _arm(self, at: int) -> None:
        """Have :meth:`_tick` called at ``at`` or earlier; it looks at the clock, so one timer does for everything."""
        if self._timer is not None:
            if self._timer_ns <= at:
                return
            self._timer.cancel()
        self._timer_ns = at
        self._timer = asyncio.get_running_loop().call_later(max(0, at - self._now()) / 1e9, self._tick)

    def _drop_noise(self, where: str) -> None:
        if self._buffer:
            self._stray(f"noise {where}{self._sample()}")
            self._buffer.clear()

    def _stray(self, what: str) -> None:
        if self._owner is not None:
            self._owner.stray(f"{self.endpoint}: {what}")

    def _sample(self, size: int = MOST_HEARD) -> str:
        heard = bytes(self._buffer[:size])
        more = f" … ({len(heard)} bytes)" if len(heard) > 16 else ""
        return f" {heard[:16].hex(' ')}{more}" if heard else ""


def _gateway(pdu: bytes) -> bool:
    """Whether a gateway speaks in the place of the unit."""
    return len(pdu) == 2 and pdu[0] >= 0x80 and pdu[1] in GATEWAY
