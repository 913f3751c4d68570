"""Pure: what a driver must be told about its PLC, besides the tags. One dataclass per kind of driver."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from drivers.plan import PlanOptions


@dataclass(frozen=True, kw_only=True)
class ModbusTcpOptions(PlanOptions):
    """A Modbus TCP server. ``unit`` (0..255) matters behind a gateway; devices without one mostly take 1 or 255."""

    host: str
    port: int = 502
    unit: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.unit <= 255:
            raise ValueError(f"unit is {self.unit}; it must be 0 to 255")


@dataclass(frozen=True, kw_only=True)
class ModbusRtuOptions(PlanOptions):
    """A Modbus RTU device. ``unit`` is 1..247 (Serial Line V1.02, 2.2: 0 is a broadcast, which nobody answers)."""

    device: str
    """The port; a by-id path (``/dev/serial/by-id/…``) survives replugging."""
    unit: int
    baudrate: int = 19200
    parity: Literal["N", "E", "O"] = "E"
    stopbits: Literal[1, 2] = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.unit <= 247:
            raise ValueError(f"unit is {self.unit}; on a serial line it must be 1 to 247")


@dataclass(frozen=True, kw_only=True)
class OpcUaOptions:
    """An OPC UA server. Only SecurityPolicy None so far; ``password`` is given by the caller, never stored."""

    endpoint: str
    user: str | None = None
    password: str | None = field(default=None, repr=False)
    session_timeout_s: float = 120.0
    """How long the server keeps a session it hears nothing from; must exceed the slowest scan class when that
    is the only one.
    """
    channel_lifetime_s: float = 3600.0
    """Lifetime asked for the secure channel; it is renewed after three quarters of it."""


DriverOptions = ModbusTcpOptions | ModbusRtuOptions | OpcUaOptions
