"""MBAP framing (MODBUS Messaging on TCP/IP V1.0b), and the wires on TCP and TLS. UDP is in ``drivers.modbus.udp``.

An answer is taken only when its transaction id is that of an outstanding request and its protocol id, length, unit,
function, byte count or echo follow from that request. One comparison of bytes says all of this for a plain good
answer; everything else is looked at in words. Any frame that fits neither an outstanding request nor one that was given
up ends the connection with a reset (RST), because nothing that follows it can be trusted.

Ids begin at a random number and go on in steps of a random odd one: a device that invents a frame with "the next id"
does not meet ours. Frames are put together here and not by pymodbus' ``FramerSocket``: it builds every frame anew, and
skips bytes until something looks like a frame, where we must know that something was wrong.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
import socket
import ssl
import struct
from collections.abc import Callable, Sequence
from typing import Any, cast

from drivers.modbus import tls
from drivers.modbus.pdu import GATEWAY, MAX_PDU, BadReply, ExceptionReply
from drivers.modbus.wire import Exchange, OpenFailed, Owner
from drivers.options import ModbusTcpOptions

HEADER = struct.Struct(">HHHB")
LINGER_RESET = struct.pack("ii", 1, 0)
CLOSE_S = 1.0
"""How long a close waits for the event loop to confirm it."""
RECEIVE = 64 * (HEADER.size + MAX_PDU)
"""Bytes of the receive buffer: the answers to as many requests as may be in flight."""
UNSENT = 16_384
"""Bytes that may wait to be sent; more means that the device has stopped reading."""
GIVEN_UP = 1024
"""Given up ids remembered on a connection."""
HALF_OPEN = 3
"""Time-outs in a row without a byte heard after which a shared connection counts as half-open."""
BROKEN = "the device breaks the protocol, or another one answers"


class Transactions:
    """The requests of one socket: their ids, which are outstanding or given up, and one timer for all of them."""

    def __init__(self, owner: Owner, monotonic_ns: Callable[[], int]) -> None:
        self.owner = owner
        self.pending: dict[int, Exchange] = {}
        self.given_up: dict[int, tuple[int, int]] = {}
        """Unit and function of each."""
        self._now = monotonic_ns
        self._loop = asyncio.get_running_loop()
        self._tid = random.randrange(0x10000)
        self._step = random.randrange(3, 0x10000, 2)
        self._timer: asyncio.TimerHandle | None = None
        self._timer_s = math.inf

    def frames(self, exchanges: Sequence[Exchange]) -> list[bytes]:
        """Register these requests as outstanding from now on, and give their frames."""
        sent_ns, now_s = self._now(), self._loop.time()
        tid, step, pending, given_up = self._tid, self._step, self.pending, self.given_up
        earliest_s = self._timer_s
        frames = []
        for exchange in exchanges:
            tid = (tid + step) & 0xFFFF
            while not tid or tid in pending or tid in given_up:  # 0 is what broken servers answer with
                tid = (tid + step) & 0xFFFF
            pending[tid] = exchange
            exchange.sent_ns = sent_ns
            exchange.due_s = due_s = now_s + exchange.timeout_ns * 1e-9
            earliest_s = min(earliest_s, due_s)
            frames.append(tid.to_bytes(2, "big") + (exchange.wire_data or _prepare(exchange))[0])
        self._tid = tid
        if earliest_s < self._timer_s:
            self._arm(earliest_s)
        return frames

    def judge(self, tid: int, unit: int, reply: bytes) -> str:
        """Tell the owner what a whole frame is; or say what is wrong with it."""
        exchange = self.pending.get(tid)
        if exchange is None:
            if self.given_up.get(tid) != (unit, reply[0] & 0x7F):
                return f"a frame that nobody asked for (transaction {tid}, unit {unit})"
            del self.given_up[tid]
            self.owner.late(unit, alive=not (reply[0] & 0x80 and reply[1] in GATEWAY))
            return ""
        if unit != exchange.unit:
            return f"{exchange.call.what}: answered by unit {unit} instead of {exchange.unit}"
        try:
            data = exchange.call.payload(reply)
        except ExceptionReply as exc:
            del self.pending[tid]
            self.owner.refused(exchange, exc)
        except BadReply as exc:
            return str(exc)
        else:
            del self.pending[tid]
            self.owner.answered(exchange, data)
        return ""

    def give_up(self, tid: int) -> Exchange:
        """Wait for this answer no more, but know it when it comes."""
        exchange = self.pending.pop(tid)
        self.given_up[tid] = (exchange.unit, exchange.call.pdu[0])
        if len(self.given_up) > GIVEN_UP:
            del self.given_up[next(iter(self.given_up))]
        return exchange

    def find(self, exchange: Exchange) -> int | None:
        """The id of an outstanding request."""
        return next((tid for tid, other in self.pending.items() if other is exchange), None)

    def forget(self) -> None:
        """The socket is over."""
        self.pending.clear()
        if self._timer is not None:
            self._timer.cancel()
        self._timer, self._timer_s = None, math.inf

    def expired(self, tids: list[int]) -> None:
        """These outstanding requests were not answered in time. For the socket to say."""
        raise NotImplementedError

    def _arm(self, due_s: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer, self._timer_s = self._loop.call_at(due_s, self._due), due_s

    def _due(self) -> None:
        """The timer was set for some request that may be answered by now; it is not moved with each answer."""
        self._timer, self._timer_s = None, math.inf
        now_s = self._loop.time()
        tids = [tid for tid, exchange in self.pending.items() if exchange.due_s <= now_s]
        if tids:
            self.expired(tids)
        if self.pending:
            earliest_s = min(exchange.due_s for exchange in self.pending.values())
            if earliest_s < self._timer_s:
                self._arm(earliest_s)


def _prepare(exchange: Exchange) -> tuple[bytes, bytes | tuple[()], int, int]:
    """The frame after its id; what a good answer's frame begins with after its id, where its data begin, its size."""
    call, unit = exchange.call, exchange.unit
    rest = struct.pack(">HHB", 0, len(call.pdu) + 1, unit) + call.pdu
    expected: bytes | tuple[()] = ()  # nothing begins with it: answers of varying length are looked at in words
    if call.measure is None:
        expected = struct.pack(">HHB", 0, call.size + 1, unit) + call.echo
    exchange.wire_data = prepared = (rest, expected, 2 + len(expected), HEADER.size + call.size)
    return prepared


def no_answer(exchange: Exchange) -> str:
    """For people."""
    return f"{exchange.call.what}: no answer within {exchange.timeout_ns / 1e9:g} s"


class Connection(Transactions, asyncio.BufferedProtocol):
    """One TCP or TLS connection of a wire."""

    def __init__(self, wire: MbapWire, owner: Owner, monotonic_ns: Callable[[], int]) -> None:
        super().__init__(owner, monotonic_ns)
        self._wire = wire
        self._transport: asyncio.Transport
        self.closed: asyncio.Future[None] = self._loop.create_future()
        self.lost = ""
        """Why the connection is over; empty while it stands."""
        self.hint = ""
        self._view = memoryview(bytearray(RECEIVE))
        self._held = 0
        self._heard = False
        self._unheard = 0
        self._silent: set[int] = set()

    # --- part of ``asyncio.BufferedProtocol``

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Part of the protocol."""
        # Not by isinstance: the transports of other event loops do not inherit from asyncio's.
        transport = cast(asyncio.Transport, transport)
        self._transport = transport
        transport.set_write_buffer_limits(high=UNSENT)
        self._wire.sockets.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """Part of the protocol."""
        self._wire.sockets.discard(self)
        if not self.closed.done():
            self.closed.set_result(None)
        self._over(exc)

    def eof_received(self) -> bool:
        """Part of the protocol. The PLC closed its half; so do we."""
        self._over(None)
        return False

    def _over(self, exc: Exception | None) -> None:
        if isinstance(exc, ssl.SSLError):
            self._end(*tls.explain(exc))
        else:
            what = "connection closed by the PLC" if exc is None else f"connection lost: {exc}"
            self._end(what, "" if self._heard else self._wire.unsure())

    def pause_writing(self) -> None:
        """Part of the protocol."""
        self._end("the PLC does not read what is sent", "check that the PLC runs", timed_out=True)

    def get_buffer(self, sizehint: int) -> memoryview:
        """Part of the protocol. Never empty: a whole frame is taken out as soon as it is there."""
        return self._view[self._held :] if self._held else self._view

    def buffer_updated(self, nbytes: int) -> None:
        """Part of the protocol."""
        if self.lost:
            return
        end = self._held + nbytes
        chunk = bytes(self._view[:end])
        pending, answered, at = self.pending, self.owner.answered, 0
        self._unheard = 0
        self._heard = self._wire.receiving = True
        while end - at > HEADER.size:
            tid = chunk[at] << 8 | chunk[at + 1]
            exchange = pending.get(tid)
            if exchange is not None:
                _, expected, skip, size = exchange.wire_data
                if chunk.startswith(expected, at + 2):
                    if at + size > end:
                        break
                    del pending[tid]
                    answered(exchange, chunk[at + skip : at + size])
                    at += size
                    continue
            stop = self._other(chunk, at, end)
            if stop == at:
                break
            at = stop
        self._held = end - at
        if self._held and not self.lost:
            self._view[: self._held] = chunk[at:]
            if not pending and not self.given_up:
                self._end("bytes that nobody asked for", BROKEN, stray=True)
        self._wire.received()

    def _other(self, chunk: bytes, at: int, end: int) -> int:
        """A frame that is not the plain good answer: where the next one begins, or ``at`` when there is none yet."""
        tid, protocol, length, unit = HEADER.unpack_from(chunk, at)
        exchange = self.pending.get(tid)
        stop: int = at + 6 + length
        # Checked before the rest of the frame is waited for: a wrong length could otherwise keep us waiting.
        if protocol or not 3 <= length <= MAX_PDU + 1:
            doubt = f"not a Modbus frame (protocol id {protocol}, length {length})"
        elif exchange is None and tid not in self.given_up:
            doubt = f"a frame that nobody asked for (transaction {tid}, unit {unit})"
        elif stop <= end:
            doubt = self.judge(tid, unit, chunk[at + HEADER.size : stop])
        elif exchange is not None and exchange.call.measure is None and length - 1 not in (2, exchange.call.size):
            doubt = f"{exchange.call.what}: expected {exchange.call.size} bytes, an answer of {length - 1} begins"
        else:
            return at
        if doubt:
            self._end(doubt, BROKEN, stray=True)
            return at
        return stop

    # --- requests

    def send(self, exchanges: Sequence[Exchange]) -> None:
        """Send these, in one piece."""
        frames = self.frames(exchanges)
        self._transport.write(frames[0] if len(frames) == 1 else b"".join(frames))

    def expired(self, tids: list[int]) -> None:
        """Alone on the link nobody can say what the next frame will be; with others, they must not suffer."""
        first = self.pending[tids[0]]
        if not self.owner.shared:
            self._end(no_answer(first), "check that the PLC runs", timed_out=True)
            return
        if self._transport.get_write_buffer_size():
            self._end(f"{no_answer(first)}, and the PLC does not read what is sent", timed_out=True)
            return
        units = {self.pending[tid].unit for tid in tids if not self.pending[tid].probe}
        if units:
            self._silent = self._silent | units if self._unheard else units
            self._unheard += 1
            if self._unheard >= HALF_OPEN and len(self._silent) > 1:
                what = f"nothing heard through {self._unheard} time-outs, the last: {no_answer(first)}"
                self._end(what, "check power and network of the gateway", timed_out=True)
                return
        for exchange in [self.give_up(tid) for tid in tids]:
            self.owner.failed(exchange, no_answer(exchange), timed_out=True)

    def doubt(self, what: str) -> None:
        """Give the connection up."""
        self._end(what)

    def reset(self) -> None:
        """Close at once with a reset, dropping what is not sent yet."""
        self.lost = self.lost or "closed"
        self.forget()
        sock: socket.socket | None = self._transport.get_extra_info("socket")
        if sock is not None and sock.fileno() >= 0:
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_RESET)
        self._transport.abort()

    def close(self) -> None:
        """Close; with a reset where an answer may still come."""
        if self.lost or self.pending or self.given_up or self._transport.get_write_buffer_size():
            self.reset()
        else:
            self.lost = "closed"
            self.forget()
            self._transport.close()

    def _end(self, what: str, hint: str = "", *, timed_out: bool = False, stray: bool = False) -> None:
        if self.lost:
            return
        self.lost, self.hint = what, hint
        if stray:
            self.owner.stray(what)
        self._wire.lose(what, hint, timed_out)


class MbapWire:
    """TCP or TLS: ``connections`` of them, each with ``in_flight`` requests; losing one loses all."""

    single_writes = True

    def __init__(self, options: ModbusTcpOptions, monotonic_ns: Callable[[], int]) -> None:
        self._options, self._now = options, monotonic_ns
        self.endpoint = f"{options.host}:{options.port}"
        self.window = options.in_flight * options.connections
        self.sockets: set[Connection] = set()
        """All that are not closed yet."""
        self.receiving = False
        self._connections: list[Connection] = []
        self._outbox: list[Exchange] = []
        self._owner: Owner

    @property
    def under_way(self) -> int:
        """Exchanges started and not ended."""
        if len(self._connections) == 1:
            return len(self._connections[0].pending) + len(self._outbox)
        return sum(len(connection.pending) for connection in self._connections) + len(self._outbox)

    async def open(self, timeout_s: float, owner: Owner) -> None:
        """Connect. Raises :class:`OpenFailed`."""
        await self.close()
        self._owner, self.receiving = owner, False
        options, loop = self._options, asyncio.get_running_loop()
        secure: dict[str, Any] = {}
        if options.tls is not None:
            secure["ssl"] = tls.context(options.tls)
            secure["server_hostname"] = options.tls.server_name or options.host
            secure["ssl_shutdown_timeout"] = CLOSE_S
        made: list[Connection] = []
        try:
            async with asyncio.timeout(timeout_s):
                while len(made) < options.connections:
                    _, connection = await loop.create_connection(
                        lambda: Connection(self, owner, self._now), options.host, options.port, **secure
                    )
                    made.append(connection)
            if gone := [connection for connection in made if connection.lost]:
                raise OpenFailed(f"{gone[0].lost} at once", gone[0].hint or self._hint(made))
            self._connections = made
        except TimeoutError:
            hint = tls.UNSURE if secure else "check power, network and address"
            raise OpenFailed(f"no connection within {timeout_s:g} s", hint, timed_out=True) from None
        except ssl.SSLError as exc:
            raise OpenFailed(*tls.explain(exc)) from exc
        except OSError as exc:
            raise OpenFailed(f"cannot connect: {exc}", self._hint(made)) from exc
        finally:
            if not self._connections:
                for connection in list(self.sockets):
                    connection.reset()

    def unsure(self) -> str:
        """What to look at when a connection ends before anything was heard on it."""
        if self._options.connections > 1:
            return f"the PLC may take fewer than connections: {self._options.connections}"
        return tls.UNSURE if self._options.tls is not None else ""

    def _hint(self, made: list[Connection]) -> str:
        return (self.unsure() if made or self._options.tls else "") or "check power, network, address and port"

    def start(self, exchanges: Sequence[Exchange]) -> None:
        """Send these: at once, or after the bytes at hand are looked through, as none of those can answer them."""
        if self.receiving:
            self._outbox += exchanges
        elif len(self._connections) == 1:
            self._connections[0].send(exchanges)
        else:
            room = {connection: self._options.in_flight - len(connection.pending) for connection in self._connections}
            shares: dict[Connection, list[Exchange]] = {}
            for exchange in exchanges:
                freest = max(room, key=room.__getitem__)
                room[freest] -= 1
                shares.setdefault(freest, []).append(exchange)
            for connection, share in shares.items():
                if not connection.lost:
                    connection.send(share)

    def received(self) -> None:
        """The bytes at hand are looked through."""
        self.receiving = False
        if self._outbox and self._connections:
            outbox, self._outbox = self._outbox, []
            self.start(outbox)

    def abandon(self, exchange: Exchange) -> None:
        """Nobody waits for this one: alone on the link that ends the connection, with others its id is remembered."""
        if exchange in self._outbox:
            self._outbox.remove(exchange)
            return
        for connection in self._connections:
            tid = connection.find(exchange)
            if tid is not None:
                connection.give_up(tid)
                if not self._owner.shared:
                    connection.doubt(f"{exchange.call.what}: given up while waiting for the answer")
                return

    def lose(self, what: str, hint: str, timed_out: bool) -> None:
        """A connection is over, and so is the wire."""
        connections, self._connections = self._connections, []
        if not connections:
            return  # not open yet, or not any more
        self._outbox.clear()
        for connection in connections:
            connection.reset()
        self._owner.lost(what, hint=hint, timed_out=timed_out)

    async def close(self) -> None:
        """Close all connections, and wait until they are."""
        connections, self._connections = self._connections, []
        self._outbox.clear()
        for connection in connections:
            connection.close()
        for connection in list(self.sockets):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(CLOSE_S):
                    await asyncio.shield(connection.closed)
            if not connection.closed.done():
                connection.reset()
