"""The Modbus drivers: a plan of requests, over a channel that exchanges them strictly."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Protocol

from drivers.codec import EncodeError
from drivers.modbus import pdu
from drivers.modbus.rtu import NotSent, RtuChannel
from drivers.modbus.tcp import TcpChannel
from drivers.options import ModbusRtuOptions, ModbusTcpOptions
from drivers.plan import ModbusPlan, WriteRequest
from drivers.port import (
    DeviceRefused,
    FieldBusError,
    Outcome,
    ReadGroup,
    Reading,
    Tag,
    Value,
    WriteOutcome,
)


class Channel(Protocol):
    """What a transport gives to the driver."""

    single_writes: bool
    """Whether functions 5 and 6 may be used."""
    endpoint: str

    def down(self) -> str:
        """Why no request can be sent now; empty when one can."""

    async def open(self, timeout_s: float) -> None:
        """Open it. Raises ``LinkDown``."""

    async def exchange(self, call: pdu.Call, timeout_s: float) -> bytes:
        """One request and its answer's data. Raises ``LinkDown``, ``ExchangeFailed``, ``ExceptionReply``."""

    async def close(self) -> None:
        """Close it; safe at any time."""


class ModbusDriver:
    """One unit of a Modbus server (see :class:`drivers.port.Driver` for the calls)."""

    def __init__(
        self, name: str, tags: Sequence[Tag], plan: ModbusPlan, channel: Channel, monotonic_ns: Callable[[], int]
    ) -> None:
        self._name = name
        self._plan = plan
        self._channel = channel
        self._now = monotonic_ns
        self._calls = [[pdu.read_call(r) for r in plan.requests(n)] for n in range(len(plan.groups))]

    @property
    def name(self) -> str:
        """The PLC's name."""
        return self._name

    @property
    def endpoint(self) -> str:
        """Where the PLC is, for people."""
        return self._channel.endpoint

    @property
    def groups(self) -> tuple[ReadGroup, ...]:
        """The read groups, one per scan class."""
        return self._plan.groups

    async def connect(self, timeout_s: float) -> None:
        """Open the connection. Raises :class:`~drivers.port.LinkDown`."""
        await self._channel.open(timeout_s)

    async def read(self, group: int, timeout_s: float) -> Reading:
        """Read one group with the plan's requests, one after the other."""
        stamp_ns = self._now()
        data: list[bytes] = []
        for call in self._calls[group]:
            try:
                data.append(await self._channel.exchange(call, timeout_s))
            except pdu.ExceptionReply as exc:
                raise DeviceRefused(self._name, f"{call.what}: {exc}", where=self.endpoint, hint=exc.hint) from None
        values, bad = self._plan.decode(group, data)
        return Reading(values, stamp_ns, bad)

    async def write(self, tag: str, value: Value, timeout_s: float) -> WriteOutcome:
        """Write one tag, read it back and compare the raw values. Never sends twice.

        VERIFIED: the value reads back. REJECTED: not sent, refused, or acknowledged but another value reads back.
        UNKNOWN: no, or no clear, answer to the write or to the read-back.
        """
        try:
            write = self._plan.encode_write(tag, value)
        except EncodeError as exc:
            return WriteOutcome(Outcome.REJECTED, str(exc))
        where = f"{tag} at {write.tag.address} of {self._name} ({self.endpoint})"
        if down := self._channel.down():
            return WriteOutcome(Outcome.REJECTED, f"{where}: not sent, {down}")
        call = pdu.write_call(write, single=self._channel.single_writes)
        try:
            await self._channel.exchange(call, timeout_s)
        except pdu.ExceptionReply as exc:
            return self._refused(exc, write, where)
        except NotSent as exc:
            return WriteOutcome(Outcome.REJECTED, f"{where}: not sent, {exc.what}")
        except FieldBusError as exc:
            return WriteOutcome(Outcome.UNKNOWN, f"{where}: {exc.what}")
        try:
            data = await self._channel.exchange(pdu.read_call(write.read_back), timeout_s)
        except pdu.ExceptionReply as exc:
            return WriteOutcome(Outcome.UNKNOWN, f"{where}: acknowledged, but not readable: {exc}")
        except FieldBusError as exc:
            return WriteOutcome(Outcome.UNKNOWN, f"{where}: acknowledged, but the read-back failed: {exc.what}")
        equal, found = self._plan.confirm(write, data)
        if equal:
            return WriteOutcome(Outcome.VERIFIED, read_back=found)
        reason = f"{where}: {value!r} was acknowledged, but {found!r} reads back"
        return WriteOutcome(Outcome.REJECTED, reason, found)

    async def close(self) -> None:
        """Close and forget; safe at any time and more than once."""
        await self._channel.close()

    def _refused(self, exc: pdu.ExceptionReply, write: WriteRequest, where: str) -> WriteOutcome:
        hint = exc.hint
        if exc.code == pdu.ILLEGAL_FUNCTION and write.mask is not None:
            # Reading the register, changing the bit and writing it back would undo what the PLC, or
            # somebody else, writes to its neighbours in between.
            hint = "the device cannot write single bits of a register (function 22); use a coil or a whole register"
        outcome = Outcome.REJECTED if exc.code in pdu.NOT_EXECUTED else Outcome.UNKNOWN
        return WriteOutcome(outcome, f"{where}: {exc}; {hint}")


class ModbusTcpDriver(ModbusDriver):
    """Modbus TCP."""

    def __init__(
        self,
        name: str,
        tags: Sequence[Tag],
        options: ModbusTcpOptions,
        *,
        monotonic_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        channel = TcpChannel(name, options.host, options.port, options.unit)
        super().__init__(name, tags, ModbusPlan(tags, options), channel, monotonic_ns)


class ModbusRtuDriver(ModbusDriver):
    """Modbus RTU, one device on the serial line."""

    def __init__(
        self,
        name: str,
        tags: Sequence[Tag],
        options: ModbusRtuOptions,
        *,
        monotonic_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        channel = RtuChannel(
            name,
            options.device,
            options.unit,
            baudrate=options.baudrate,
            parity=options.parity,
            stopbits=options.stopbits,
            monotonic_ns=monotonic_ns,
        )
        super().__init__(name, tags, ModbusPlan(tags, options), channel, monotonic_ns)
