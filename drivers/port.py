"""The port south: what every driver gives to the controller, and nothing more.

A *driver* speaks to one PLC. It is told the tags once, at construction, plans its requests from them,
and then answers four calls: :meth:`Driver.connect`, :meth:`Driver.read`, :meth:`Driver.write`,
:meth:`Driver.close`. When to call them, how often, and what to do when one fails is the business of
the link supervision above (``controller.runtime``). That keeps the port narrow enough for one contract
test suite to hold for every driver.

This module is pure: no asyncio, no clock, no socket.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

Value = bool | int | float | str
"""An engineering value. BOOL is ``bool``, integers are ``int``, scaled or REAL values ``float``, STRING ``str``."""


class Quality(enum.IntEnum):
    """Quality of a value (OPC UA Part 8 severity: Good, Uncertain, Bad)."""

    GOOD = 0
    UNCERTAIN = 1
    BAD = 2


class DataType(enum.StrEnum):
    """Elementary data types (IEC 61131-3, table 10) that a tag may have on the wire."""

    BOOL = "BOOL"
    SINT = "SINT"
    USINT = "USINT"
    INT = "INT"
    UINT = "UINT"
    DINT = "DINT"
    UDINT = "UDINT"
    LINT = "LINT"
    ULINT = "ULINT"
    REAL = "REAL"
    LREAL = "LREAL"
    STRING = "STRING"
    BCD = "BCD"
    """Four decimal digits in one register, 0..9999 (not of the table; common on older PLCs and meters)."""
    LBCD = "LBCD"
    """Eight decimal digits in two registers, 0..99,999,999."""


class WordOrder(enum.StrEnum):
    """Order of the bytes of a value that spans several registers; A is the most significant byte."""

    ABCD = "ABCD"
    CDAB = "CDAB"
    BADC = "BADC"
    DCBA = "DCBA"


class Area(enum.StrEnum):
    """The four Modbus data areas (MODBUS Application Protocol V1.1b3, 4.3)."""

    COIL = "co"
    DISCRETE_INPUT = "di"
    INPUT_REGISTER = "ir"
    HOLDING_REGISTER = "hr"


@dataclass(frozen=True, slots=True)
class ModbusAddress:
    """Where a Modbus tag lives: area, zero-based protocol address 0..65535, and a bit 0..15 inside a register."""

    area: Area
    offset: int
    bit: int | None = None

    def __str__(self) -> str:
        return f"{self.area}:{self.offset}" + ("" if self.bit is None else f".{self.bit}")


@dataclass(frozen=True, slots=True)
class OpcUaAddress:
    """Where an OPC UA tag lives: a node id, with the namespace given by URI (``nsu=…;s=…``) or by index."""

    node_id: str

    def __str__(self) -> str:
        return self.node_id


@dataclass(frozen=True, slots=True)
class SerialAddress:
    """Where a tag of a serial line device lives: ``message.field``, as its protocol declares them."""

    path: str

    def __str__(self) -> str:
        return self.path


Address = ModbusAddress | OpcUaAddress | SerialAddress


@dataclass(frozen=True, slots=True, kw_only=True)
class Tag:
    """One I/O point of a PLC.

    ``raw * scale + offset`` is the engineering value, in ``unit``. ``low``/``high`` bound the engineering
    value: outside of them a value that was *read* is BAD, and one that is to be *written* is refused before
    anything is sent. ``length`` is the number of characters of a STRING. ``mask`` picks a field of bits out of an
    integer in one register: its bits, shifted down to the lowest one, are the raw value (Modbus only).
    """

    name: str
    address: Address
    type: DataType
    word_order: WordOrder = WordOrder.ABCD
    length: int = 0
    scale: float = 1.0
    offset: float = 0.0
    unit: str = ""
    low: float | None = None
    high: float | None = None
    writable: bool = False
    scan_class: str = "fast"
    description: str = ""
    mask: int | None = None

    @property
    def scaled(self) -> bool:
        """Whether the engineering value differs from the raw one; a scaled tag always reads as ``float``."""
        return self.scale != 1.0 or self.offset != 0.0

    @property
    def resolution(self) -> float:
        """Smallest step of the engineering value that survives a write and its read-back (0 = exact compare)."""
        if self.type in (DataType.BOOL, DataType.STRING):
            return 0.0
        if self.type in (DataType.REAL, DataType.LREAL):
            return 0.0
        return abs(self.scale) if self.scaled else 0.0


@dataclass(frozen=True, slots=True)
class ReadGroup:
    """Tags that one call of :meth:`Driver.read` brings in: all tags of the PLC with one scan class."""

    scan_class: str
    tags: tuple[Tag, ...]
    each: bool = False
    """Every reading is a message of its own (a scanned code) and must reach the scan: the group is not read again
    before the last reading was latched.
    """


@dataclass(frozen=True, slots=True)
class Reading:
    """What one read of a group brought.

    ``values`` are in the order of the group's tags. ``bad`` maps an index to the reason why that value must
    not be used (NaN, out of range, an OPC UA Bad status …); the value there is ``None``. ``stamp_ns`` is the
    monotonic time at which the *request* was sent, so that age is never under-stated. A driver may hand out
    the identical ``values`` tuple again when nothing on the wire changed. ``sources`` holds the source timestamps in
    the order of the tags where the protocol has them (OPC UA), UTC in ns since 1970, ``None`` where one is missing; it
    is empty where the protocol has none (Modbus).
    """

    values: Sequence[Value | None]
    stamp_ns: int
    bad: Mapping[int, str] = field(default_factory=dict)
    sources: Sequence[int | None] = ()


class Outcome(enum.StrEnum):
    """How a write ended. There is no fourth way."""

    VERIFIED = "verified"
    """Read back (or acknowledged) equal to what was asked."""
    REJECTED = "rejected"
    """Certainly not executed: refused by the device or by a check before sending."""
    UNKNOWN = "unknown"
    """May or may not have been executed; the caller reads back before anything else."""


@dataclass(frozen=True, slots=True)
class WriteOutcome:
    """The end of one write. ``reason`` is for people and names tag and address when not VERIFIED."""

    outcome: Outcome
    reason: str = ""
    read_back: Value | None = None


class FieldBusError(Exception):
    """The plant's fault: a cable, a PLC, a gateway. Carries where, what and what to look at next."""

    def __init__(
        self,
        plc: str,
        what: str,
        *,
        where: str = "",
        hint: str = "",
        timed_out: bool = False,
        retry_s: float | None = None,
    ) -> None:
        self.plc, self.what, self.where, self.hint, self.timed_out = plc, what, where, hint, timed_out
        self.retry_s = retry_s
        """Where the driver knows: how long to wait before the next :meth:`Driver.connect`."""
        place = f"{plc} ({where})" if where else plc
        super().__init__(f"{place}: {what}" + (f"; {hint}" if hint else ""))


class LinkDown(FieldBusError):
    """No connection, or it was lost or given up: every tag of the PLC is BAD until it is re-established."""


class DeviceRefused(FieldBusError):
    """The device answered, and said no (a Modbus exception code, an OPC UA Bad service result)."""


class ExchangeFailed(FieldBusError):
    """One exchange failed on a bus that survives it (RTU: no answer, noise): nothing was read, go on.

    A driver that keeps failing turns this into :class:`LinkDown` by itself.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class DriverStats:
    """What a driver has seen on the wire since it was made. Counts never reset."""

    requests: int = 0
    """Requests sent (Modbus PDUs, OPC UA service calls, lines of a serial device)."""
    answered: int = 0
    """Good answers taken."""
    timeouts: int = 0
    refused: int = 0
    """Exception answers, Bad service results."""
    late: int = 0
    """Answers to a request that had been given up: dropped."""
    strays: int = 0
    """Frames that fit no request, or not the one they claim to answer: never used."""
    missed: int = 0
    """Changes that a subscription lost (queue overflow, gap in its sequence), each reported and read anew."""
    breaker: str = "closed"
    """``closed``: in use; ``open``: silent on a shared link, probed within its budget."""
    p50_ms: float = 0.0
    """Median round trip of the last some hundred answers."""
    p99_ms: float = 0.0


class Driver(Protocol):
    """One PLC. Any await may be cancelled at any point.

    One task connects, reads and closes; writes come from one other task at most, and may begin while a read is
    under way: they go on the wire before the requests of that read which are not sent yet. After :class:`LinkDown`
    or a cancelled read or write the driver is to be closed and connected anew; it never reconnects, retries a
    write or polls by itself. A ``close`` during a read or write ends that with :class:`LinkDown` or UNKNOWN.
    """

    @property
    def name(self) -> str:
        """The PLC's name in line.yaml."""

    @property
    def endpoint(self) -> str:
        """Where the PLC is, for people: ``192.168.1.10:502 unit 3``."""

    @property
    def groups(self) -> tuple[ReadGroup, ...]:
        """The read groups, one per scan class in use; fixed at construction."""

    async def connect(self, timeout_s: float) -> None:
        """Open the connection. Raises :class:`LinkDown`."""

    async def read(self, group: int, timeout_s: float) -> Reading:
        """Read one group; ``timeout_s`` bounds each request on the wire.

        Raises :class:`LinkDown` (then close), or, with the connection still sound, :class:`DeviceRefused` or
        :class:`ExchangeFailed`.
        """

    async def write(self, tag: str, value: Value, timeout_s: float) -> WriteOutcome:
        """Write one tag and verify it. Never re-sends. Raises nothing but ``CancelledError``."""

    async def write_block(self, values: Mapping[str, Value], timeout_s: float) -> WriteOutcome:
        """Write several tags in one request, so that the PLC takes over all of them or none, and verify them.

        In the order of their addresses on Modbus, where they must be registers that follow each other without a
        gap; in the order given on OPC UA. Otherwise as :meth:`write`.
        """

    def block_problem(self, tags: Sequence[str]) -> str:
        """Why :meth:`write_block` cannot write these tags together; empty when it can."""

    def stats(self) -> DriverStats:
        """A snapshot of the counters; cheap enough for every second."""

    async def close(self) -> None:
        """Close and forget; safe at any time and more than once."""
