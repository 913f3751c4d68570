"""Where a PLC is, written as a URL: ``modbus-tcp://10.0.0.5:502/1``, ``modbus-rtu:///dev/ttyUSB0?unit=17``.

Pure. Everything that is wrong is told with the part it is wrong in and what to write there; nothing is guessed:
a port and serial settings have the defaults of line.yaml, a unit has none.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from controller.cli import console
from drivers.options import (
    DriverOptions,
    ModbusSerialOptions,
    ModbusTcpOptions,
    ModbusUdpOptions,
    OpcUaOptions,
    SerialOptions,
    TcpLineOptions,
    TlsOptions,
)
from recipes.problem import nearest

EXAMPLES: Mapping[str, str] = {
    "modbus-tcp": "modbus-tcp://192.168.1.10:502/1",
    "modbus-tls": "modbus-tls://192.168.1.10:802/1?ca=ca.pem&certificate=me.pem&key=me.key",
    "modbus-udp": "modbus-udp://192.168.1.10:502/1",
    "modbus-rtu": "modbus-rtu:///dev/ttyUSB0?unit=17&baud=19200&parity=E",
    "modbus-ascii": "modbus-ascii:///dev/ttyUSB0?unit=17&baud=9600&bytesize=7",
    "modbus-rtu-tcp": "modbus-rtu-tcp://192.168.1.20:4001/17",
    "opc.tcp": "opc.tcp://192.168.1.30:4840",
}
"""One URL of each kind, for messages and help."""
_PORTS = {"modbus-tcp": 502, "modbus-tls": 802, "modbus-udp": 502}
_LIMITS = ("max_registers", "max_bits", "max_gap", "max_write_registers")
_SERIAL = ("unit", "baud", "parity", "stopbits", "echo")
_KEYS: Mapping[str, tuple[str, ...]] = {
    "modbus-tcp": ("unit", "in_flight", "connections", *_LIMITS),
    "modbus-tls": ("unit", "in_flight", "connections", "ca", "certificate", "key", "server_name", *_LIMITS),
    "modbus-udp": ("unit", "in_flight", *_LIMITS),
    "modbus-rtu": (*_SERIAL, *_LIMITS),
    "modbus-ascii": (*_SERIAL, "bytesize", *_LIMITS),
    "modbus-rtu-tcp": ("unit", "echo", *_LIMITS),
}
_CHOICES: Mapping[str, Mapping[str, Any]] = {
    "parity": {"N": "N", "E": "E", "O": "O"},
    "stopbits": {"1": 1, "2": 2},
    "bytesize": {"7": 7, "8": 8},
    "echo": {"true": True, "false": False},
}


@dataclass(frozen=True, kw_only=True)
class UaLogin:
    """What an OPC UA server must be told besides its URL."""

    user: str | None = None
    password_file: Path | None = None
    security: str | None = None
    """``Basic256Sha256`` or ``Basic256Sha256:sign``."""
    pki: Path = Path("pki")
    """Folder with ``own/controller.der``, ``own/controller.key.pem`` and ``trusted/``."""


def is_url(text: str) -> bool:
    """Whether this is meant as a URL and not as a file."""
    return "://" in text


def parse_url(text: str, *, unit_needed: bool = True, login: UaLogin | None = None) -> DriverOptions:
    """The driver's options. Raises :class:`console.CliError` (usage)."""
    scheme = text.partition("://")[0].lower()
    if scheme not in EXAMPLES:
        _wrong(text, f'"{scheme}" is no kind of PLC', nearest(scheme, EXAMPLES))
    if scheme == "opc.tcp":
        return _opcua(text, login or UaLogin())
    try:
        parts = urlsplit(text)
    except ValueError as error:
        _wrong(text, str(error), f"write {EXAMPLES[scheme]}")
    query = _query(text, scheme, parts)
    common: dict[str, Any] = {key: _number(text, key, query[key]) for key in _LIMITS if key in query}
    unit = _unit(text, scheme, parts, query, needed=unit_needed)
    build = _serial if scheme in ("modbus-rtu", "modbus-ascii") else _network
    try:
        return build(text, scheme, parts, query, {"unit": unit, **common})
    except ValueError as error:
        _wrong(text, str(error), f"write {EXAMPLES[scheme]}")


def unit_given(text: str) -> bool:
    """Whether the URL names a unit."""
    parts = urlsplit(text)
    path = "" if parts.scheme in ("modbus-rtu", "modbus-ascii") else parts.path.strip("/")
    return bool(path or dict(parse_qsl(parts.query)).get("unit"))


def _network(
    text: str, scheme: str, parts: SplitResult, query: Mapping[str, str], common: Mapping[str, Any]
) -> DriverOptions:
    host = parts.hostname
    if not host:
        _wrong(text, "no host", f"write {EXAMPLES[scheme]}")
    try:
        port = parts.port if parts.port is not None else _PORTS.get(scheme)
    except ValueError:
        _wrong(text, f'"{parts.netloc.rpartition(":")[2]}" is no port', "a port is a number from 1 to 65535")
    if not port:
        _wrong(text, "no port", f"a device server has no usual one; write {EXAMPLES[scheme]}")
    more: dict[str, Any] = {k: _number(text, k, query[k]) for k in ("in_flight", "connections") if k in query}
    if scheme == "modbus-udp":
        return ModbusUdpOptions(host=host, port=port, **more, **common)
    if scheme == "modbus-rtu-tcp":
        echo = _choice(text, "echo", query.get("echo", "false"))
        return ModbusSerialOptions(line=TcpLineOptions(host=host, port=port), echo=echo, **common)
    tls = None
    if scheme == "modbus-tls":
        missing = [key for key in ("ca", "certificate", "key") if not query.get(key)]
        if missing:
            _wrong(text, f"{', '.join(missing)} missing", f"three PEM files: {EXAMPLES[scheme]}")
        files = {key: Path(query[key]) for key in ("ca", "certificate", "key")}
        tls = TlsOptions(server_name=query.get("server_name"), **files)
    return ModbusTcpOptions(host=host, port=port, tls=tls, **more, **common)


def _serial(
    text: str, scheme: str, parts: SplitResult, query: Mapping[str, str], common: Mapping[str, Any]
) -> DriverOptions:
    device = unquote(parts.path)
    if parts.netloc or not device:
        _wrong(text, "no serial port", f"three slashes, then its path: {EXAMPLES[scheme]}")
    ascii_ = scheme == "modbus-ascii"
    line = SerialOptions(
        device=device,
        baudrate=_number(text, "baud", query.get("baud", "19200")),
        bytesize=_choice(text, "bytesize", query.get("bytesize", "7" if ascii_ else "8")),
        parity=_choice(text, "parity", query.get("parity", "E").upper()),
        stopbits=_choice(text, "stopbits", query.get("stopbits", "1")),
    )
    echo = _choice(text, "echo", query.get("echo", "false"))
    return ModbusSerialOptions(line=line, framing="ascii" if ascii_ else "rtu", echo=echo, **common)


def _opcua(text: str, login: UaLogin) -> OpcUaOptions:
    from drivers.options import UaSecurity  # noqa: PLC0415

    if not text.partition("://")[2].strip("/"):
        _wrong(text, "no host", f"write {EXAMPLES['opc.tcp']}")
    if "@" in text.partition("://")[2].split("/")[0]:
        _wrong(text, "a user in the URL would be seen by everybody", "use --user and --password-file")
    password = None
    if login.password_file is not None:
        try:
            password = login.password_file.read_text(encoding="utf-8").strip()
        except OSError as error:
            console.fail(f"{login.password_file}: cannot be read: {error.strerror}", console.Exit.USAGE)
    security = None
    if login.security is not None:
        policies = ("Basic256Sha256", "Aes128_Sha256_RsaOaep", "Aes256_Sha256_RsaPss")
        policy, _, mode = login.security.partition(":")
        by_name = {p.lower(): p for p in policies}
        if policy.lower() not in by_name or mode not in ("", "sign", "sign_and_encrypt"):
            what = f"--security {login.security}: one of {', '.join(policies)}, or one with :sign behind it"
            console.fail(what, console.Exit.USAGE)
        security = UaSecurity(
            policy=by_name[policy.lower()],  # type: ignore[arg-type]
            mode=mode or "sign_and_encrypt",  # type: ignore[arg-type]
            certificate=login.pki / "own/controller.der",
            key=login.pki / "own/controller.key.pem",
            trusted=login.pki / "trusted",
        )
    return OpcUaOptions(endpoint=text, user=login.user, password=password, security=security, reading="poll")


def _query(text: str, scheme: str, parts: SplitResult) -> dict[str, str]:
    found: dict[str, str] = {}
    try:
        pairs = parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query))
    except ValueError:
        _wrong(text, f'"?{parts.query}" is not of the form ?key=value&key=value', f"write {EXAMPLES[scheme]}")
    for key, value in pairs:
        if key not in _KEYS[scheme]:
            _wrong(text, f'unknown option "{key}"', nearest(key, _KEYS[scheme]) or f"known: {', '.join(_KEYS[scheme])}")
        if key in found:
            _wrong(text, f"{key} is given twice", "remove one")
        found[key] = value
    if parts.fragment:
        _wrong(text, f'"#{parts.fragment}" has no meaning here', "remove it")
    return found


def _unit(text: str, scheme: str, parts: SplitResult, query: Mapping[str, str], *, needed: bool) -> int:
    serial = scheme in ("modbus-rtu", "modbus-ascii")
    path = "" if serial else parts.path.strip("/")
    if path and "unit" in query:
        _wrong(text, "the unit is given twice", "remove one")
    given = path or query.get("unit", "")
    if not given:
        if needed:
            how = "?unit=17" if serial else "/1 at the end; a PLC without units mostly takes 255 or 1"
            _wrong(text, "no unit (device id)", f"write {how}; `linewright plc scan` finds it")
        return 1
    if not given.isascii() or not given.isdecimal():
        _wrong(text, f'"{given}" is no unit', f"a number: {EXAMPLES[scheme]}")
    return int(given)


def _number(text: str, key: str, value: str) -> int:
    if not value.isascii() or not value.isdecimal():
        _wrong(text, f'{key} must be a number, not "{value}"', "digits only")
    return int(value)


def _choice(text: str, key: str, value: str) -> Any:
    if value not in _CHOICES[key]:
        _wrong(text, f'{key} cannot be "{value}"', f"one of {', '.join(_CHOICES[key])}")
    return _CHOICES[key][value]


def _wrong(text: str, what: str, hint: str) -> NoReturn:
    console.fail(f"{text}: {what}; {hint}", console.Exit.USAGE)
