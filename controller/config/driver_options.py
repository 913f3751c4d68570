"""From a PLC in line.yaml to what its driver must be told. Reads the password file, nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from controller.config.address import parse_range
from controller.config.model import ScanClass
from controller.config.plcs import (
    ModbusAsciiPlc,
    ModbusRtuPlc,
    ModbusRtuTcpPlc,
    ModbusTcpPlc,
    ModbusTlsPlc,
    ModbusUdpPlc,
    OpcUaPlc,
    Plc,
)
from controller.config.serial_model import line_protocol
from drivers.options import (
    DriverOptions,
    ModbusSerialOptions,
    ModbusTcpOptions,
    ModbusUdpOptions,
    OpcUaOptions,
    SerialDeviceOptions,
    SerialOptions,
    TcpLineOptions,
    TlsOptions,
    UaSecurity,
)


def driver_options(plc: Plc, folder: Path, scan_classes: Mapping[str, ScanClass]) -> DriverOptions:
    """The driver's options; files are relative to ``folder``. Raises ``OSError`` when a password file is unreadable."""
    if isinstance(plc, OpcUaPlc):
        return _opcua(plc, folder, scan_classes)
    line: SerialOptions | TcpLineOptions
    if isinstance(plc, ModbusTcpPlc | ModbusTlsPlc | ModbusUdpPlc | ModbusRtuPlc | ModbusAsciiPlc | ModbusRtuTcpPlc):
        common: dict[str, Any] = {
            "unit": plc.unit, "max_registers": plc.max_registers, "max_bits": plc.max_bits, "max_gap": plc.max_gap,
            "max_write_registers": plc.max_write_registers, "avoid": tuple(parse_range(text) for text in plc.avoid),
        }  # fmt: skip
        if isinstance(plc, ModbusUdpPlc):
            return ModbusUdpOptions(host=plc.host, port=plc.port, in_flight=plc.in_flight, **common)
        if isinstance(plc, ModbusTcpPlc | ModbusTlsPlc):
            common |= {"in_flight": plc.in_flight, "connections": plc.connections}
            tls = None
            if isinstance(plc, ModbusTlsPlc):
                files = {name: folder / getattr(plc.tls, name) for name in ("ca", "certificate", "key")}
                tls = TlsOptions(server_name=plc.tls.server_name, **files)
            return ModbusTcpOptions(host=plc.host, port=plc.port, tls=tls, **common)
        if isinstance(plc, ModbusRtuTcpPlc):
            line = TcpLineOptions(host=plc.host, port=plc.port)
            return ModbusSerialOptions(line=line, echo=plc.echo, **common)
        ascii_ = isinstance(plc, ModbusAsciiPlc)
        line = SerialOptions(
            device=plc.device,
            baudrate=plc.baudrate,
            bytesize=plc.bytesize if isinstance(plc, ModbusAsciiPlc) else 8,
            parity=plc.parity,
            stopbits=plc.stopbits,
        )
        return ModbusSerialOptions(line=line, framing="ascii" if ascii_ else "rtu", echo=plc.echo, **common)
    if plc.device is not None:
        line = SerialOptions(
            device=plc.device,
            baudrate=plc.baudrate,
            bytesize=plc.bytesize,
            parity=plc.parity,
            stopbits=plc.stopbits,
        )
    else:
        assert plc.host is not None
        assert plc.port is not None
        line = TcpLineOptions(host=plc.host, port=plc.port)
    return SerialDeviceOptions(line=line, protocol=line_protocol(plc.protocol))


def _opcua(plc: OpcUaPlc, folder: Path, scan_classes: Mapping[str, ScanClass]) -> OpcUaOptions:
    password = None
    if plc.password_file:
        password = (folder / plc.password_file).read_text(encoding="utf-8").strip()
    security = None
    if plc.security is not None:
        files = {name: folder / getattr(plc.security, name) for name in ("certificate", "key", "trusted")}
        security = UaSecurity(policy=plc.security.policy, mode=plc.security.mode, **files)
    return OpcUaOptions(
        endpoint=plc.endpoint,
        backups=plc.backups,
        user=plc.user,
        password=password,
        user_certificate=folder / plc.user_certificate if plc.user_certificate else None,
        user_key=folder / plc.user_key if plc.user_key else None,
        security=security,
        reading=plc.reading,
        periods_s={name: scan_class.period_ms / 1000 for name, scan_class in scan_classes.items()},
    )
