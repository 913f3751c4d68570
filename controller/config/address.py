"""Addresses of tags: from text to :data:`drivers.port.Address`, and how much room a type takes there."""

from __future__ import annotations

import re
from typing import Literal

from drivers.plan import Range
from drivers.port import Area, DataType, ModbusAddress, OpcUaAddress

Protocol = Literal["modbus", "opcua"]

_MODBUS = re.compile(r"(co|di|ir|hr):(\d{1,9})(?:\.(\d{1,3}))?")
_RANGE = re.compile(r"(co|di|ir|hr):(\d{1,5})(?:\.\.(\d{1,5}))?")
_NODE_ID = re.compile(r"(?:ns=\d{1,5};|nsu=[^;]+;)?(?:i=\d{1,10}|s=.+|g=[0-9A-Fa-f-]{36}|b=[A-Za-z0-9+/=]+)")
_REGISTERS = {
    DataType.LBCD: 2, DataType.DINT: 2, DataType.UDINT: 2, DataType.REAL: 2,
    DataType.LINT: 4, DataType.ULINT: 4, DataType.LREAL: 4,
}  # fmt: skip
_MODICON = {"0": "co", "1": "di", "3": "ir", "4": "hr"}


class AddressError(ValueError):
    """A text that is no address: what is wrong (``str``) and what to write (:attr:`hint`)."""

    def __init__(self, what: str, hint: str = "") -> None:
        self.hint = hint
        super().__init__(what)


def parse_modbus(text: str) -> ModbusAddress:
    """``co:5``, ``di:5``, ``ir:10``, ``hr:10`` or ``hr:10.3`` (bit 0 is the least significant).

    Offsets are zero-based protocol addresses 0..65535 (MODBUS Application Protocol V1.1b3, 4.4). Raises
    :class:`AddressError`.
    """
    match = _MODBUS.fullmatch(text)
    if match is None:
        raise AddressError(f'"{text}" is not a Modbus address', _modbus_hint(text))
    area, offset, bit = Area(match[1]), int(match[2]), None if match[3] is None else int(match[3])
    if offset > 65535:
        raise AddressError(f"address {offset} is out of range", "0 … 65535")
    if bit is not None and area in (Area.COIL, Area.DISCRETE_INPUT):
        raise AddressError(f"{text}: a coil or discrete input has no bits", f"write {area}:{offset}")
    if bit is not None and bit > 15:
        raise AddressError(f"{text}: a register has no bit {bit}", "0 … 15, 0 being the least significant")
    return ModbusAddress(area, offset, bit)


def parse_range(text: str) -> Range:
    """``hr:100..120`` or ``ir:7``: addresses of one area, both ends included. Raises :class:`AddressError`."""
    match = _RANGE.fullmatch(text)
    if match is None:
        raise AddressError(f'"{text}" is not a range of Modbus addresses', "write hr:100..120 or ir:7")
    first, last = int(match[2]), int(match[3] or match[2])
    if not first <= last <= 65535:
        raise AddressError(f"{text}: addresses go from 0 to 65535, the lower one first")
    return Range(Area(match[1]), first, last)


def _modbus_hint(text: str) -> str:
    if _MODBUS.fullmatch(text.lower().replace(" ", "")):
        return f"write {text.lower().replace(' ', '')}"
    if re.fullmatch(r"[0134]\d{4,5}", text) and int(text[1:]) > 0:
        area, offset = _MODICON[text[0]], int(text[1:]) - 1
        return f"{text} in Modicon notation is {area}:{offset} here (areas by name, counted from 0)"
    return "write co:5, di:5, ir:10, hr:10 or hr:10.3"


def parse_node_id(text: str) -> OpcUaAddress:
    """A node id in the text form of OPC UA Part 6, 5.3.1.10. Raises :class:`AddressError`."""
    if _NODE_ID.fullmatch(text) is None:
        raise AddressError(f'"{text}" is not a node id', "write nsu=<namespace>;s=<name>, ns=2;s=<name> or i=<number>")
    return OpcUaAddress(text)


def registers(type_: DataType, length: int) -> int:
    """Registers that a value of this type takes; a STRING two characters per register."""
    if type_ is DataType.STRING:
        return max(1, (length + 1) // 2)
    return _REGISTERS.get(type_, 1)
