"""From options to a driver."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from drivers.options import DriverOptions, ModbusRtuOptions, ModbusTcpOptions
from drivers.port import Driver, Tag


def make_driver(
    name: str,
    options: DriverOptions,
    tags: Sequence[Tag],
    *,
    monotonic_ns: Callable[[], int] = time.monotonic_ns,
) -> Driver:
    """The driver for ``options``, not connected yet. Only the library it needs is loaded.

    Raises ``ValueError`` when a tag does not suit the driver; the text says which and what to change.
    """
    # The protocol libraries take a second to load on a small machine; a line mostly needs one of them.
    if isinstance(options, ModbusTcpOptions | ModbusRtuOptions):
        from drivers.modbus.driver import ModbusRtuDriver, ModbusTcpDriver  # noqa: PLC0415

        if isinstance(options, ModbusTcpOptions):
            return ModbusTcpDriver(name, tags, options, monotonic_ns=monotonic_ns)
        return ModbusRtuDriver(name, tags, options, monotonic_ns=monotonic_ns)
    from drivers.opcua.driver import OpcUaDriver  # noqa: PLC0415

    return OpcUaDriver(name, tags, options, monotonic_ns=monotonic_ns)
