"""Pure: requests of the MODBUS Application Protocol V1.1b3 and the only answers that are accepted to them.

Requests are encoded by pymodbus. Answers are not decoded by it: its decoders take an answer with a wrong byte
count, a write echo of another address, or another function's exception for good. Here an answer's length, byte
count and echo follow from the request, and anything else is a :class:`BadReply`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pymodbus.pdu import ModbusPDU
from pymodbus.pdu.bit_message import (
    ReadCoilsRequest,
    ReadDiscreteInputsRequest,
    WriteMultipleCoilsRequest,
    WriteSingleCoilRequest,
)
from pymodbus.pdu.diag_message import ReturnQueryDataRequest
from pymodbus.pdu.file_message import ReadFifoQueueRequest
from pymodbus.pdu.mei_message import ReadDeviceInformationRequest
from pymodbus.pdu.other_message import ReportDeviceIdRequest
from pymodbus.pdu.register_message import (
    MaskWriteRegisterRequest,
    ReadHoldingRegistersRequest,
    ReadInputRegistersRequest,
    ReadWriteMultipleRegistersRequest,
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
GATEWAY = frozenset({10, 11})
"""Exception codes that a gateway gives in the place of a device that it does not reach."""
WRITES = frozenset({5, 6, 15, 16, 22, 23})
"""Functions that change something in the device."""
MAX_PDU = 253
"""Bytes of the longest PDU (section 4.1)."""


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
    """Bytes of the good answer's PDU; the most it may have where ``measure`` is given. An exception answer has 2."""
    echo: bytes
    """What a good answer begins with."""
    what: str
    """For people: ``read hr:100..101``."""
    measure: Callable[[bytes], int] | None = None
    """For answers of varying length: from the beginning of one to its size, 0 while it is too short to tell, -1 when it
    cannot be a good one.
    """

    def length(self, head: bytes) -> int:
        """Bytes of the answer's PDU that begins with ``head``; 0 while that is too short to tell, -1 for a bad one."""
        if not head:
            return 0
        if head[0] == self.pdu[0] | 0x80:
            return 2
        return self.size if self.measure is None else self.measure(head)

    def payload(self, reply: bytes) -> bytes:
        """The data of a good answer, after ``echo``. Raises :class:`ExceptionReply` or :class:`BadReply`."""
        size = self.size if self.measure is None else self.measure(reply)
        if len(reply) == size and reply.startswith(self.echo):
            return reply[len(self.echo) :]
        if len(reply) == 2 and reply[0] == self.pdu[0] | 0x80:
            if reply[1] in EXCEPTIONS:
                raise ExceptionReply(reply[1])
            raise BadReply(f"{self.what}: answered with exception {reply[1]}, which does not exist")
        expected = f"{size} bytes" if size > 0 else "an answer"
        raise BadReply(
            f"{self.what}: expected {expected} beginning {self.echo.hex(' ')},"
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
    what = f"write {write.what}"
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


def read_write_call(read: Request, offset: int, words: Sequence[int]) -> Call:
    """Function 23 (6.17): writes 1..121 holding registers from ``offset`` on, then reads 1..125 of them."""
    request = ReadWriteMultipleRegistersRequest(
        read_address=read.offset, read_count=read.count, write_address=offset, write_registers=words
    )
    what = f"write {Area.HOLDING_REGISTER}:{offset}..{offset + len(words) - 1} and read {read}"
    return Call(_encode(request), 2 + read.size, bytes((23, read.size)), what)


def loopback_call(data: bytes) -> Call:
    """Function 8, sub-function 0 (6.8): the device returns ``data``, an even number of bytes."""
    pdu = _encode(ReturnQueryDataRequest(data))
    return Call(pdu, len(pdu), pdu, "diagnostics, return query data")


def server_id_call() -> Call:
    """Function 17 (6.13): the answer's data is the byte count and the id as its maker chose it, mostly with a run state
    (FF runs, 00 stopped) at its end.
    """
    return Call(_encode(ReportDeviceIdRequest()), MAX_PDU, b"\x11", "report server id", _counted)


def fifo_call(offset: int) -> Call:
    """Function 24 (6.18): up to 31 registers of the queue whose count is at ``offset``.

    The answer's data is the byte count (2 bytes), the register count (2 bytes), and the registers.
    """
    what = f"read FIFO queue {Area.HOLDING_REGISTER}:{offset}"
    return Call(_encode(ReadFifoQueueRequest(offset)), 5 + 62, b"\x18", what, _fifo)


def identification_call(category: int, first: int = 0) -> Call:
    """Function 43 / 14 (6.21): identification objects from ``first`` on.

    ``category`` is 1 basic, 2 regular, 3 extended, 4 the one object ``first``. :func:`identification` reads the data.
    """
    pdu = _encode(ReadDeviceInformationRequest(category, first))
    what = f"read device identification {category} from object {first}"
    return Call(pdu, MAX_PDU, bytes((0x2B, 0x0E, category)), what, _objects)


def identification(data: bytes) -> tuple[dict[int, bytes], int | None]:
    """The objects in the data of an answer to :func:`identification_call`, and where to go on when more follow."""
    follows = data[2] if data[1] == 0xFF else None
    objects, at = {}, 4
    for _ in range(data[3]):
        stop = at + 2 + data[at + 1]
        objects[data[at]] = data[at + 2 : stop]
        at = stop
    return objects, follows


def _counted(head: bytes) -> int:
    """An answer with one byte count, of at least one byte."""
    if len(head) < 2:
        return 0
    return 2 + head[1] if 1 <= head[1] <= MAX_PDU - 2 else -1


def _fifo(head: bytes) -> int:
    """The byte count covers the register count and the registers, at most 31."""
    if len(head) < 5:
        return 0
    size, count = int.from_bytes(head[1:3], "big"), int.from_bytes(head[3:5], "big")
    return 3 + size if count <= 31 and size == 2 + 2 * count else -1


def _objects(head: bytes) -> int:
    """The header, and so many objects with their lengths as it says."""
    if len(head) < 7:
        return 0
    if head[3] & 0x7F not in (1, 2, 3) or head[4] not in (0, 0xFF):
        return -1
    at = 7
    for _ in range(head[6]):
        if len(head) < at + 2:
            return 0
        at += 2 + head[at + 1]
    return at if at <= MAX_PDU else -1


def _encode(request: ModbusPDU) -> bytes:
    return bytes((request.function_code,)) + request.encode()
