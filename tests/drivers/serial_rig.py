"""What the tests of the serial wires share: an owner that notes everything, exchanges, and a line in virtual time."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from typing import Any, NamedTuple, TypeVar

from drivers.line import OnBytes, OnLost
from drivers.modbus.pdu import Call, ExceptionReply, read_call
from drivers.modbus.serial_wire import Framing, SerialWire
from drivers.modbus.wire import Exchange
from drivers.plan import Request
from drivers.port import Area

Result = TypeVar("Result")
T = 0.1
"""Time-out of an exchange, in s."""


class End(NamedTuple):
    """How an exchange ended."""

    kind: str
    exchange: Exchange
    data: bytes = b""
    what: str = ""
    timed_out: bool = False
    sent: bool = True
    rest_ns: int = 0

    @property
    def value(self) -> int:
        assert self.kind == "answered", self
        return int.from_bytes(self.data, "big")


class Recorder:
    """An owner that notes everything it is told."""

    shared = True

    def __init__(self) -> None:
        self.ends: list[End] = []
        self.lates: list[tuple[int, bool]] = []
        self.strays: list[str] = []
        self.losses: list[tuple[str, str]] = []
        self._news = asyncio.Event()

    def answered(self, exchange: Exchange, data: bytes) -> None:
        self._note(End("answered", exchange, data))

    def refused(self, exchange: Exchange, refusal: ExceptionReply) -> None:
        self._note(End("refused", exchange, bytes((refusal.code,))))

    def failed(
        self, exchange: Exchange, what: str, *, timed_out: bool = False, sent: bool = True, rest_ns: int = 0
    ) -> None:
        assert sent == bool(exchange.sent_ns), "what went out has its time, what did not has none"
        self._note(End("failed", exchange, b"", what, timed_out, sent, rest_ns))

    def lost(self, what: str, *, hint: str = "", timed_out: bool = False) -> None:
        self.losses.append((what, hint))
        self._news.set()

    def late(self, unit: int, *, alive: bool = True) -> None:
        self.lates.append((unit, alive))
        self._news.set()

    def stray(self, what: str) -> None:
        self.strays.append(what)

    def _note(self, end: End) -> None:
        self.ends.append(end)
        self._news.set()

    async def until(self, true: Callable[[], object]) -> None:
        async with asyncio.timeout(30):
            while not true():
                self._news.clear()
                await self._news.wait()

    async def ask(self, wire: SerialWire, exchange: Exchange) -> End:
        """One exchange to its end."""
        before = len(self.ends)
        wire.start([exchange])
        await self.until(lambda: len(self.ends) > before)
        assert len(self.ends) == before + 1
        return self.ends[-1]

    async def insist(self, wire: SerialWire, exchange: Exchange, limit: int = 30) -> End:
        """As a bus would: ask again, after the rest, until there is an answer."""
        for _ in range(limit):
            end = await self.ask(wire, exchange)
            if end.kind != "failed":
                return end
            await asyncio.sleep(end.rest_ns / 1e9)
        raise AssertionError(f"no answer in {limit} attempts: {end.what}")


def exchange(call: Call, unit: int = 17, timeout_s: float = T) -> Exchange:
    made = Exchange(call, unit)
    made.timeout_ns = int(timeout_s * 1e9)
    return made


def read(offset: int, unit: int = 17, count: int = 1, timeout_s: float = T) -> Exchange:
    return exchange(read_call(Request(Area.HOLDING_REGISTER, offset, count)), unit, timeout_s)


class Clock(selectors.SelectSelector):
    """Waits by turning the clock on. Nothing real is waited for."""

    def __init__(self) -> None:
        super().__init__()
        self.ns = 1_000_000_000

    def select(self, timeout: float | None = None) -> Any:
        assert timeout is not None, "nothing would ever happen"
        self.ns += int(timeout * 1e9) + (timeout > 0)
        return super().select(0)


def in_virtual_time(work: Callable[[Clock], Coroutine[Any, Any, Result]]) -> Result:
    """Run ``work`` in an event loop whose time is the clock's."""
    clock = Clock()
    loop = asyncio.SelectorEventLoop(clock)
    loop.time = lambda: clock.ns / 1e9  # type: ignore[method-assign]
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        return runner.run(work(clock))


class PaperLine:
    """A line of which the test is the other end."""

    endpoint, char_ns = "paper", 86_000

    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.unsent = 0
        self.on_bytes: OnBytes
        self.on_lost: OnLost
        self.on_write: Callable[[bytes], None] = lambda _: None

    async def open(self, timeout_s: float, on_bytes: OnBytes, on_lost: OnLost) -> None:
        self.on_bytes, self.on_lost = on_bytes, on_lost

    def write(self, data: bytes) -> None:
        self.sent.append(data)
        self.on_write(data)

    def discard(self) -> int:
        return 0

    async def close(self, *, reset: bool = False) -> None:
        pass


async def paper_wire(framing: Framing, clock: Clock, *, echo: bool = False) -> tuple[SerialWire, PaperLine, Recorder]:
    line, owner = PaperLine(), Recorder()
    wire = SerialWire(line, framing, echo=echo, monotonic_ns=lambda: clock.ns)
    await wire.open(1.0, owner)
    clock.ns += 10_000_000  # the gap
    return wire, line, owner
