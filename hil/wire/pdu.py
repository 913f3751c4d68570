"""The Modbus application layer over a virtual PLC: one request PDU in, one response PDU out.

MODBUS Application Protocol V1.1b3, function codes 1, 2, 3, 4, 5, 6, 15, 16 (section 6) and exceptions (section 7).
Deliberately written anew and not shared with the drivers.
"""

from __future__ import annotations

import struct

from hil.plc import IllegalAddress, IllegalValue, PlcOffline, VirtualPlc

ILLEGAL_FUNCTION, ILLEGAL_ADDRESS, ILLEGAL_VALUE, DEVICE_FAILURE = 1, 2, 3, 4
TARGET_FAILED = 0x0B
"""Gateway target device failed to respond."""
MAX_PDU = 253
_READS = {1: ("co", 2000), 2: ("di", 2000), 3: ("hr", 125), 4: ("ir", 125)}


def exception(function: int, code: int) -> bytes:
    """An exception response."""
    return bytes((function | 0x80, code))


def answer(plc: VirtualPlc, pdu: bytes) -> bytes:
    """The response to a request. Raises :class:`PlcOffline` when the PLC has no power: then nothing answers."""
    function = pdu[0] if pdu else 0
    try:
        if function in _READS:
            return _read(plc, function, pdu)
        if function in (5, 6):
            return _write_one(plc, function, pdu)
        if function in (15, 16):
            return _write_many(plc, function, pdu)
    except PlcOffline:
        raise
    except IllegalAddress:
        return exception(function, ILLEGAL_ADDRESS)
    except IllegalValue:
        return exception(function, ILLEGAL_VALUE)
    return exception(function, ILLEGAL_FUNCTION)


def _read(plc: VirtualPlc, function: int, pdu: bytes) -> bytes:
    area, most = _READS[function]
    if len(pdu) != 5:
        raise IllegalValue(f"a request of function {function} has 5 bytes, not {len(pdu)}")
    offset, count = struct.unpack_from(">HH", pdu, 1)
    if not 1 <= count <= most:
        raise IllegalValue(f"function {function} reads 1..{most}, not {count}")
    data = plc.read_bits(area, offset, count) if function <= 2 else plc.read_registers(area, offset, count)
    return bytes((function, len(data))) + data


def _write_one(plc: VirtualPlc, function: int, pdu: bytes) -> bytes:
    if len(pdu) != 5:
        raise IllegalValue(f"a request of function {function} has 5 bytes, not {len(pdu)}")
    offset, value = struct.unpack_from(">HH", pdu, 1)
    if function == 6:
        plc.write_registers(offset, pdu[3:5])
    elif value in (0x0000, 0xFF00):
        plc.write_bits(offset, (value != 0,))
    else:
        raise IllegalValue(f"a coil is written with 0000 or FF00, not {value:04X}")
    return pdu


def _write_many(plc: VirtualPlc, function: int, pdu: bytes) -> bytes:
    if len(pdu) < 6:
        raise IllegalValue(f"a request of function {function} has at least 6 bytes, not {len(pdu)}")
    offset, count, length = struct.unpack_from(">HHB", pdu, 1)
    data = pdu[6:]
    wanted, most = ((count + 7) // 8, 1968) if function == 15 else (2 * count, 123)
    if not 1 <= count <= most or length != wanted or len(data) != length:
        raise IllegalValue(f"function {function} with count {count} and {len(data)} bytes")
    if function == 16:
        plc.write_registers(offset, data)
    else:
        word = int.from_bytes(data, "little")
        plc.write_bits(offset, [bool(word >> n & 1) for n in range(count)])
    return pdu[:5]
