"""One read request at a time to one Modbus unit, at a bounded rate, through every loss of the connection."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from typing import TYPE_CHECKING

from controller.cli import console
from controller.cli.plc.explore import without
from controller.cli.plc.target import Target
from drivers.factory import Links, make_driver
from drivers.plan import Request
from drivers.port import Area, DataType, DeviceRefused, DriverStats, ExchangeFailed, FieldBusError, ModbusAddress, Tag

if TYPE_CHECKING:
    from drivers.modbus import ModbusDriver
    from drivers.modbus.pdu import Call

ILLEGAL_FUNCTION, ILLEGAL_ADDRESS, ILLEGAL_VALUE = 1, 2, 3
NOBODY_THERE = (10, 11)
"""A gateway's exceptions for a unit that it cannot reach."""


@dataclasses.dataclass(frozen=True)
class Refused:
    """The device's exception answer."""

    code: int
    what: str


@dataclasses.dataclass(frozen=True)
class Silent:
    """No usable answer."""

    what: str


class Pace:
    """At most ``rate`` requests a second, counted over all units."""

    def __init__(self, rate: float) -> None:
        self._period_s, self._due = 1 / rate, 0.0
        self.requests = 0

    async def wait(self) -> None:
        """Until the next request may go out."""
        now = time.monotonic()
        self._due = max(self._due + self._period_s, now)
        self.requests += 1
        if self._due > now:
            await asyncio.sleep(self._due - now)


class Asker:
    """Of one unit; an async context manager. Askers made with the same ``links`` share one connection."""

    def __init__(self, target: Target, unit: int, pace: Pace, links: Links | None = None, *, first: int = 0) -> None:
        from drivers.modbus import ModbusDriver  # noqa: PLC0415 - the Modbus library takes its time

        options = dataclasses.replace(target.modbus, unit=unit)
        spans = [(r.first, r.last) for r in options.avoid if r.area is Area.HOLDING_REGISTER]
        free = without((first, 65535), spans)
        if not free:
            console.fail("--avoid leaves no holding register to ask for", console.Exit.USAGE)
        self._alive = ModbusAddress(Area.HOLDING_REGISTER, free[0][0])
        # The driver asks for its first tag when it has to know whether a silent unit is back.
        tag = Tag(name="first", address=self._alive, type=DataType.UINT)
        driver = make_driver(f"unit {unit}", options, [tag], links=links)
        assert isinstance(driver, ModbusDriver)
        self._driver: ModbusDriver = driver
        self._pace, self._timeout_s, self._connected = pace, target.timeout_s, False
        self.slowest_ms = 0.0

    async def __aenter__(self) -> Asker:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close; :meth:`ask` connects anew."""
        self._connected = False
        await self._driver.close()

    @property
    def endpoint(self) -> str:
        """Where the unit is, for people."""
        return self._driver.endpoint

    def stats(self) -> DriverStats:
        """The driver's counters."""
        return self._driver.stats()

    async def connect(self) -> None:
        """Connect if there is no connection. Raises :class:`~drivers.port.LinkDown`."""
        if not self._connected:
            await self._driver.connect(max(1.0, self._timeout_s))
            self._connected = True

    async def ask(self, call: Call) -> bytes | Refused | Silent:
        """Send it once, at the pace; connects anew after a loss."""
        from drivers.modbus.pdu import ExceptionReply  # noqa: PLC0415

        await self._pace.wait()
        try:
            await self.connect()
            began = time.monotonic()
            data: bytes = await self._driver.execute(call, self._timeout_s)
        except DeviceRefused as error:
            reply = error.__cause__
            assert isinstance(reply, ExceptionReply), "a refusal carries the exception it was made from"
            return Refused(reply.code, reply.what)
        except ExchangeFailed as error:
            return Silent(error.what)
        except FieldBusError as error:
            await self.close()
            return Silent(error.what)
        self.slowest_ms = max(self.slowest_ms, (time.monotonic() - began) * 1e3)
        return data

    async def knock(self) -> bytes | Refused | Silent:
        """Read one holding register, the first that is not to be avoided: any answer but a gateway's shows life."""
        return await self.read(self._alive.area, self._alive.offset, 1)

    async def read(self, area: Area, first: int, count: int) -> bytes | Refused | Silent:
        """Read so many addresses of an area."""
        from drivers.modbus.pdu import read_call  # noqa: PLC0415

        return await self.ask(read_call(Request(area, first, count)))
