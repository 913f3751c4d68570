"""Pure: requests of the MODBUS Application Protocol V1.1b3 and the only answers that are accepted to them.

Requests are encoded by pymodbus. Answers are not decoded by it: its decoders take an answer with a wrong byte
count, a write echo of another address, or another function's exception for good. Here an answer's length, byte
count and echo follow from the request, and anything else is a :class:`BadReply`.
"""

from __future__ import annotations

from dataclasses import dataclass

from pymodbus.pdu import ModbusPDU
from pymodbus.pdu.bit_message import (
    ReadCoilsRequest,
    ReadDiscreteInputsRequest,
    WriteMultipleCoilsRequest,
    WriteSingleCoilRequest,
)
from pymodbus.pdu.register_message import (
    MaskWriteRegisterRequest,
    ReadHoldingRegistersRequest,
    ReadInputRegistersRequest,
    WriteMultipleRegistersRequest,
    WriteSingleRegisterRequest,
)

from drivers.plan import Request, WriteRequest
from drivers.port import Area

READS: dict[Area, type[ModbusPDU]] = {
    Area.COIL: ReadCoilsRequest,
    Area.DISCRETE_INPUT: ReadDiscreteInputsRequest,
    Area.INPUT_REGISTER: ReadInputRegistersRequest,
    Area.HOLDING_REGISTER: ReadHoldingRegistersRequest,
}

ILLEGAL_FUNCTION = 1
EXCEPTIONS = {
    1: ("illegal function", "the device does not know this function; check the area of the address"),
    2: ("illegal data address", "the device has no such address; compare its register list with the tags"),
    3: ("illegal data value", "the device does not take this value or count; check limits and max_registers"),
    4: ("server device failure", "the device failed while it worked on the request; look at its own diagnostics"),
    5: ("acknowledge", "the device is still at work on the request"),
    6: ("server device busy", "the device is at work on something else; poll it less often"),
    7: ("negative acknowledge", "the device cannot do this now"),
    8: ("memory parity error", "the device's memory is faulty; replace it"),
    10: ("gateway path unavailable", "the gateway is misconfigured or overloaded; check its routes"),
    11: ("gateway target device failed to respond", "check power, cable and device id behind the gateway"),
}
"""Exception codes (section 7): name, and what to look at. Others break the protocol."""
NOT_EXECUTED = frozenset({1, 2, 3, 6, 7, 10})
"""Exception codes after which a write certainly was not executed; after the others it may have been."""


class BadReply(Exception):
    """An answer that does not belong to the request; the text says in what."""


class ExceptionReply(Exception):
    """The device's exception answer."""

    def __init__(self, code: int) -> None:
        self.code = code
        self.what, self.hint = EXCEPTIONS[code]
        super().__init__(f"exception {code}, {self.what}")


@dataclass(frozen=True, slots=True)
class Call:
    """A request as bytes (function code and data), and what its good answer must look like."""

    pdu: bytes
    size: int
    """Bytes of the good answer's PDU. An exception answer has 2."""
    echo: bytes
    """What a good answer begins with."""
    what: str
    """For people: ``read hr:100..101``."""

    def payload(self, reply: bytes) -> bytes:
        """The data of a good answer. Raises :class:`ExceptionReply` or :class:`BadReply`."""
        if len(reply) == self.size and reply.startswith(self.echo):
            return reply[len(self.echo) :]
        if len(reply) == 2 and reply[0] == self.pdu[0] | 0x80:
            if reply[1] in EXCEPTIONS:
                raise ExceptionReply(reply[1])
            raise BadReply(f"{self.what}: answered with exception {reply[1]}, which does not exist")
        raise BadReply(
            f"{self.what}: expected {self.size} bytes beginning {self.echo.hex(' ')},"
            f" got {len(reply)} beginning {reply[:5].hex(' ')}"
        )


def read_call(request: Request) -> Call:
    """Functions 1 to 4."""
    pdu = _encode(READS[request.area](address=request.offset, count=request.count))
    return Call(pdu, 2 + request.size, bytes((pdu[0], request.size)), f"read {request}")


def write_call(write: WriteRequest, *, single: bool) -> Call:
    """Functions 5, 15, 6, 16 and 22.

    ``single`` allows 5 and 6. On a serial line they are not used: their good answer equals the request, so that
    an echoing adapter would acknowledge for a dead device.
    """
    what = f"write {write.tag.name} at {write.tag.address}"
    if write.mask is not None:
        pdu = _encode(MaskWriteRegisterRequest(write.offset, *write.mask))
        return Call(pdu, 7, pdu, what)
    if write.area is Area.COIL:
        bits = [write.payload == b"\x01"]
        if single:
            pdu = _encode(WriteSingleCoilRequest(address=write.offset, bits=bits))
            return Call(pdu, 5, pdu, what)
        pdu = _encode(WriteMultipleCoilsRequest(address=write.offset, bits=bits))
        return Call(pdu, 5, pdu[:5], what)
    words = [int.from_bytes(write.payload[i : i + 2], "big") for i in range(0, len(write.payload), 2)]
    if single and write.count == 1:
        pdu = _encode(WriteSingleRegisterRequest(address=write.offset, registers=words))
        return Call(pdu, 5, pdu, what)
    pdu = _encode(WriteMultipleRegistersRequest(address=write.offset, count=write.count, registers=words))
    return Call(pdu, 5, pdu[:5], what)


def _encode(request: ModbusPDU) -> bytes:
    return bytes((request.function_code,)) + request.encode()
