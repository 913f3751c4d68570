"""Pure: what a driver must be told about its PLC, besides the tags. One dataclass per kind of driver."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from drivers.plan import PlanOptions
from drivers.serial.protocol import LineProtocol

Parity = Literal["N", "E", "O"]


@dataclass(frozen=True, kw_only=True)
class ModbusOptions(PlanOptions):
    """Any Modbus PLC. ``unit`` (0..255) matters behind a gateway; devices without one mostly take 1 or 255.

    PLCs whose options have the same :meth:`link` are units of one physical link and share it.
    """

    unit: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.unit <= 255:
            raise ValueError(f"unit is {self.unit}; it must be 0 to 255")

    def link(self) -> tuple[object, ...]:
        """What identifies the physical link: equal for two units of one gateway or serial line."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class TlsOptions:
    """Modbus/TCP Security (V21): TLS 1.2 or newer, with certificates on both sides. All files are PEM."""

    ca: Path
    """Certificates that the device's own must be signed by."""
    certificate: Path
    key: Path
    server_name: str | None = None
    """Name that the device's certificate must carry; default is the host."""


@dataclass(frozen=True, kw_only=True)
class ModbusTcpOptions(ModbusOptions):
    """A Modbus TCP server, or with ``tls`` a Modbus/TCP Security one.

    ``in_flight`` requests may be outstanding on a connection (many PLCs take one only), on ``connections`` of them.
    """

    host: str
    port: int = 502
    in_flight: int = 1
    connections: int = 1
    tls: TlsOptions | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.in_flight <= 64:
            raise ValueError(f"in_flight is {self.in_flight}; it must be 1 to 64")
        if not 1 <= self.connections <= 8:
            raise ValueError(f"connections is {self.connections}; it must be 1 to 8")

    def link(self) -> tuple[object, ...]:
        """Host and port."""
        return ("tcp", self.host.lower(), self.port)


@dataclass(frozen=True, kw_only=True)
class ModbusUdpOptions(ModbusOptions):
    """A Modbus server on UDP: MBAP frames in datagrams, one each."""

    host: str
    port: int = 502
    in_flight: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.in_flight <= 64:
            raise ValueError(f"in_flight is {self.in_flight}; it must be 1 to 64")

    def link(self) -> tuple[object, ...]:
        """Host and port."""
        return ("udp", self.host.lower(), self.port)


@dataclass(frozen=True, kw_only=True)
class SerialOptions:
    """A serial port. A by-id path (``/dev/serial/by-id/…``) survives replugging."""

    device: str
    baudrate: int = 19200
    bytesize: Literal[7, 8] = 8
    parity: Parity = "E"
    stopbits: Literal[1, 2] = 1


@dataclass(frozen=True, kw_only=True)
class TcpLineOptions:
    """A serial line behind a device server: its bytes over TCP."""

    host: str
    port: int


@dataclass(frozen=True, kw_only=True)
class ModbusSerialOptions(ModbusOptions):
    """A Modbus device on a serial line, RTU or ASCII framing (MODBUS over Serial Line V1.02).

    ``unit`` is 1..247 (2.2: 0 is a broadcast, which nobody answers). With ``echo`` the adapter hands back every byte
    sent (two-wire RS-485 without echo suppression), which is checked and taken away.
    """

    line: SerialOptions | TcpLineOptions
    framing: Literal["rtu", "ascii"] = "rtu"
    echo: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.unit <= 247:
            raise ValueError(f"unit is {self.unit}; on a serial line it must be 1 to 247")

    def link(self) -> tuple[object, ...]:
        """The device, or host and port."""
        line = self.line
        return ("serial", line.device) if isinstance(line, SerialOptions) else ("line", line.host.lower(), line.port)


@dataclass(frozen=True, kw_only=True)
class UaSecurity:
    """Secure channel and application certificates (OPC 10000-7 profiles, OPC 10000-12 for the trust list)."""

    policy: Literal["Basic256Sha256", "Aes128_Sha256_RsaOaep", "Aes256_Sha256_RsaPss"]
    mode: Literal["sign", "sign_and_encrypt"] = "sign_and_encrypt"
    certificate: Path
    """Our application certificate (DER or PEM); made, with its key, when neither is there."""
    key: Path
    trusted: Path
    """Folder of trusted server and issuer certificates; a server that is not among them is refused and its
    certificate put into ``rejected`` beside it, for an engineer to move over.
    """


@dataclass(frozen=True, kw_only=True)
class OpcUaOptions:
    """An OPC UA server, or a redundant set of them: ``backups`` are tried in order when ``endpoint`` fails.

    ``password`` is given by the caller, never stored. ``reading``: ``subscribe`` has the server tell changes,
    ``poll`` reads every scan class, ``auto`` subscribes and polls what the server does not let be monitored.
    """

    endpoint: str
    backups: tuple[str, ...] = ()
    user: str | None = None
    password: str | None = field(default=None, repr=False)
    user_certificate: Path | None = None
    user_key: Path | None = None
    security: UaSecurity | None = None
    reading: Literal["auto", "subscribe", "poll"] = "auto"
    periods_s: dict[str, float] = field(default_factory=dict)
    """Period of each scan class, from which sampling and publishing intervals follow; needed to subscribe."""
    session_timeout_s: float = 120.0
    """How long the server keeps a session it hears nothing from; must exceed the slowest scan class when that
    is the only one.
    """
    channel_lifetime_s: float = 3600.0
    """Lifetime asked for the secure channel; it is renewed after three quarters of it."""


@dataclass(frozen=True, kw_only=True)
class SerialDeviceOptions:
    """A serial line device (scanner, scale, printer) that speaks a declared line protocol."""

    line: SerialOptions | TcpLineOptions
    protocol: LineProtocol


DriverOptions = ModbusTcpOptions | ModbusUdpOptions | ModbusSerialOptions | OpcUaOptions | SerialDeviceOptions
