"""From options to a driver."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from drivers.options import (
    DriverOptions,
    ModbusSerialOptions,
    ModbusTcpOptions,
    ModbusUdpOptions,
    OpcUaOptions,
)
from drivers.port import Driver, Tag

if TYPE_CHECKING:
    from drivers.modbus.bus import Bus


class Links:
    """The physical links of one controller, each with its one owner; units of one link are lent it from here."""

    def __init__(self) -> None:
        self._buses: dict[tuple[object, ...], Bus] = {}

    def bus(self, key: tuple[object, ...], make: Callable[[], Bus]) -> Bus:
        """The owner of the link that ``key`` identifies; made when nobody asked for it before."""
        bus = self._buses.get(key)
        if bus is None:
            bus = self._buses[key] = make()
        return bus


def make_driver(
    name: str,
    options: DriverOptions,
    tags: Sequence[Tag],
    *,
    links: Links | None = None,
    monotonic_ns: Callable[[], int] = time.monotonic_ns,
) -> Driver:
    """The driver for ``options``, not connected yet. Only the library it needs is loaded.

    Drivers made with the same ``links`` share physical links. Raises ``ValueError`` when a tag does not suit the
    driver, or two units of a link disagree about it; the text says which and what to change.
    """
    # The protocol libraries take a second to load on a small machine; a line mostly needs one of them.
    if isinstance(options, ModbusTcpOptions | ModbusUdpOptions | ModbusSerialOptions):
        from drivers.modbus.driver import make_modbus  # noqa: PLC0415

        return make_modbus(name, tags, options, links or Links(), monotonic_ns)
    if isinstance(options, OpcUaOptions):
        from drivers.opcua.driver import OpcUaDriver  # noqa: PLC0415

        return OpcUaDriver(name, tags, options, monotonic_ns=monotonic_ns)
    from drivers.serial.driver import SerialDeviceDriver  # noqa: PLC0415

    return SerialDeviceDriver(name, tags, options, monotonic_ns=monotonic_ns)
