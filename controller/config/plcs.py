"""The shape of ``plcs`` in line.yaml: one class per driver."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from controller.config.base import Model
from controller.config.plc_base import CommandBlock, Heartbeat, PlcBase
from controller.config.serial_model import SerialDevice
from drivers.port import WordOrder

__all__ = [
    "CommandBlock", "Heartbeat", "ModbusAsciiPlc", "ModbusOptions", "ModbusRtuPlc",
    "ModbusRtuTcpPlc", "ModbusTcpPlc", "ModbusTlsPlc", "ModbusUdpPlc", "OpcUaPlc", "Plc", "PlcBase", "SerialDevice",
]  # fmt: skip


class ModbusOptions(PlcBase):
    """Options of every Modbus PLC."""

    unit: int = Field(ge=0, le=255)
    word_order: WordOrder = WordOrder.ABCD
    max_registers: int = Field(125, ge=1, le=125)
    max_bits: int = Field(2000, ge=1, le=2000)
    max_write_registers: int = Field(123, ge=1, le=123)
    max_gap: int = Field(8, ge=0, le=124)
    """Unused registers that a read may bridge to save a request."""
    avoid: tuple[str, ...] = ()
    """Addresses that no request may touch unless a tag lies there: ``hr:100..120``, ``ir:7``."""


class ModbusTcpPlc(ModbusOptions):
    """A PLC that speaks Modbus TCP. PLCs with the same host and port are units of one gateway and share it."""

    driver: Literal["modbus_tcp"]
    host: str = Field(min_length=1)
    port: int = Field(502, ge=1, le=65535)
    in_flight: int = Field(1, ge=1, le=64)
    """Requests that may be outstanding on a connection at once; many PLCs take one only."""
    connections: int = Field(1, ge=1, le=8)
    """Connections to share the requests among; many PLCs take one or two only."""


class Tls(Model):
    """Certificates of Modbus/TCP Security; PEM files, relative to line.yaml."""

    ca: str = Field(min_length=1)
    certificate: str = Field(min_length=1)
    key: str = Field(min_length=1)
    server_name: str | None = None
    """Name in the device's certificate; default is the host."""


class ModbusTlsPlc(ModbusOptions):
    """A PLC that speaks Modbus/TCP Security."""

    driver: Literal["modbus_tls"]
    host: str = Field(min_length=1)
    port: int = Field(802, ge=1, le=65535)
    in_flight: int = Field(1, ge=1, le=64)
    connections: int = Field(1, ge=1, le=8)
    tls: Tls


class ModbusUdpPlc(ModbusOptions):
    """A PLC that speaks Modbus in UDP datagrams."""

    driver: Literal["modbus_udp"]
    host: str = Field(min_length=1)
    port: int = Field(502, ge=1, le=65535)
    in_flight: int = Field(1, ge=1, le=64)


class ModbusSerialPlc(ModbusOptions):
    """A PLC on a serial line. PLCs on the same line share it, with the same settings."""

    echo: bool = False
    """The adapter hands back what was sent (two-wire RS-485 without echo suppression)."""


class ModbusRtuPlc(ModbusSerialPlc):
    """A PLC on a serial line that speaks Modbus RTU."""

    driver: Literal["modbus_rtu"]
    device: str = Field(min_length=1)
    baudrate: int = Field(19200, ge=300, le=4_000_000)
    parity: Literal["N", "E", "O"] = "E"
    stopbits: Literal[1, 2] = 1


class ModbusAsciiPlc(ModbusSerialPlc):
    """A PLC on a serial line that speaks Modbus ASCII."""

    driver: Literal["modbus_ascii"]
    device: str = Field(min_length=1)
    baudrate: int = Field(19200, ge=300, le=4_000_000)
    bytesize: Literal[7, 8] = 7
    parity: Literal["N", "E", "O"] = "E"
    stopbits: Literal[1, 2] = 1


class ModbusRtuTcpPlc(ModbusSerialPlc):
    """A PLC that speaks Modbus RTU behind a serial device server that hands bytes through over TCP."""

    driver: Literal["modbus_rtu_tcp"]
    host: str = Field(min_length=1)
    port: int = Field(ge=1, le=65535)


class UaSecurityModel(Model):
    """Security of an OPC UA connection; files are relative to line.yaml."""

    policy: Literal["Basic256Sha256", "Aes128_Sha256_RsaOaep", "Aes256_Sha256_RsaPss"] = "Basic256Sha256"
    mode: Literal["sign", "sign_and_encrypt"] = "sign_and_encrypt"
    certificate: str = "pki/own/controller.der"
    """The controller's application certificate; made, with its key, when neither is there."""
    key: str = "pki/own/controller.key.pem"
    trusted: str = "pki/trusted"
    """Folder of trusted server certificates; an unknown one is put into ``rejected`` beside it."""


class OpcUaPlc(PlcBase):
    """A PLC with an OPC UA server."""

    driver: Literal["opcua"]
    endpoint: str = Field(pattern=r"^opc\.tcp://.+")
    backups: tuple[Annotated[str, Field(pattern=r"^opc\.tcp://.+")], ...] = ()
    """Further servers of a redundant set with the same address space."""
    user: str | None = None
    password_file: str | None = None
    """File that holds the password; never the password itself."""
    user_certificate: str | None = None
    user_key: str | None = None
    security: UaSecurityModel | None = None
    reading: Literal["auto", "subscribe", "poll"] = "auto"
    """``subscribe``: the server tells changes; ``poll``: all is read; ``auto``: subscribe to what the server lets."""


Plc = Annotated[
    ModbusTcpPlc
    | ModbusTlsPlc
    | ModbusUdpPlc
    | ModbusRtuPlc
    | ModbusAsciiPlc
    | ModbusRtuTcpPlc
    | OpcUaPlc
    | SerialDevice,
    Field(discriminator="driver"),
]
