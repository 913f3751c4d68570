"""DataValues off the wire, fast: scalars by own hands, anything unusual by asyncua's decoder (OPC 10000-6, 5.2.2.17).

A DataValue is a mask byte, then as the mask says value, status, source time, server time. Of a scalar value the mask
and the type byte together fix how the bytes lie; :data:`FORMS` has one compiled form for each such pair.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from asyncua import ua
from asyncua.common.utils import Buffer
from asyncua.ua.attribute_ids import AttributeIds
from asyncua.ua.ua_binary import struct_from_binary, struct_to_binary

from drivers.opcua.channel import EPOCH_TICKS, ChannelLost
from drivers.opcua.datum import OTHER, Datum

SCALARS = {1: "?", 2: "b", 3: "B", 4: "h", 5: "H", 6: "i", 7: "I", 8: "q", 9: "Q", 10: "f", 11: "d"}
"""``struct`` codes of the built-in types of fixed size, Boolean to Double (OPC 10000-6, table 1)."""
STRING = 12
ARRAY = 0x80
_TRAILERS = ((0x02, "I"), (0x04, "q"), (0x10, "H"), (0x08, "q"), (0x20, "H"))
"""What follows the value, in the order of the wire: mask bit and ``struct`` code."""


class Form(NamedTuple):
    """How the bytes after mask and type byte lie: value first, status and source time at these indices (−1: absent)."""

    unpack: Callable[[Any, int], tuple[Any, ...]]
    size: int
    kind: int
    status: int
    source: int


def _form(mask: int, kind: int) -> Form:
    present = [(bit, code) for bit, code in _TRAILERS if mask & bit]
    compiled = struct.Struct("<" + SCALARS[kind] + "".join(code for _, code in present))
    bits = [bit for bit, _ in present]
    status, source = (bits.index(bit) + 1 if bit in bits else -1 for bit in (0x02, 0x04))
    return Form(compiled.unpack_from, compiled.size, kind, status, source)


FORMS = {mask | kind << 8: _form(mask, kind) for mask, kind in itertools.product(range(1, 64, 2), SCALARS)}


def read_datum(data: bytes, at: int) -> tuple[Datum, int]:
    """One DataValue and where the next begins. Raises ``IndexError``, ``struct.error`` or another on a broken one."""
    form = FORMS.get(data[at] | data[at + 1] << 8)
    if form is None:
        return _odd(data, at)
    fields = form.unpack(data, at + 2)
    return datum(form, fields), at + 2 + form.size


def datum(form: Form, fields: tuple[Any, ...]) -> Datum:
    """The fields of a form by name."""
    status = fields[form.status] if form.status >= 0 else 0
    return Datum(form.kind, fields[0], status, fields[form.source] if form.source >= 0 else 0)


def _odd(data: bytes, at: int) -> tuple[Datum, int]:
    """A string, no value at all, an array, a structure: told apart by name, never guessed at."""
    mask = data[at]
    if mask & 0xC1 == 1 and data[at + 1] == STRING:
        return _string(data, at)
    buffer = Buffer(data, at)
    found = struct_from_binary(ua.DataValue, buffer)
    status = 0 if found.StatusCode is None else found.StatusCode.value
    source = _ticks(found.SourceTimestamp)
    variant = found.Value if mask & 1 else None
    end = buffer.cur_pos
    if end > len(data):
        raise IndexError("the answer ends in the middle of a value")
    if variant is None:
        return Datum(OTHER, None, status, source, "nothing"), end
    name = variant.VariantType.name + (" array" if variant.is_array else "")
    return Datum(OTHER, None, status, source, "nothing" if name == "Null" else name), end


def _string(data: bytes, at: int) -> tuple[Datum, int]:
    mask = data[at]
    (length,) = struct.unpack_from("<i", data, at + 2)
    end = at + 6 + max(0, length)
    if end > len(data) or length < -1:
        raise IndexError(f"a string of {length} bytes does not fit in the answer")
    # A null String is an empty one (OPC 10000-6, 5.2.2.4).
    text = data[at + 6 : end].decode("utf-8", "surrogateescape")
    status = source = 0
    for bit, code in _TRAILERS:
        if mask & bit:
            (field,) = struct.unpack_from("<" + code, data, end)
            end += struct.calcsize("<" + code)
            if bit == 0x02:
                status = field
            elif bit == 0x04:
                source = field
    return Datum(STRING, text, status, source), end


def _ticks(moment: datetime | None) -> int:
    return 0 if moment is None else int(ua.datetime_to_win_epoch(moment))


def utc_ns(ticks: int) -> int | None:
    """Ticks since 1601 as UTC in ns since 1970; ``None`` when the server gave no time."""
    return (ticks - EPOCH_TICKS) * 100 if ticks > 0 else None


def read_parameters(node_ids: Sequence[ua.NodeId], attribute: AttributeIds = AttributeIds.Value) -> bytes:
    """The encoded parameters of a Read of one attribute of these nodes, with source timestamps, not older than now."""
    parameters = ua.ReadParameters()
    parameters.MaxAge = 0
    parameters.TimestampsToReturn = ua.TimestampsToReturn.Source
    for node_id in node_ids:
        item = ua.ReadValueId()
        item.NodeId = node_id
        item.AttributeId = attribute
        parameters.NodesToRead.append(item)
    return bytes(struct_to_binary(parameters))


def read_data(body: bytes, at: int, count: int) -> list[Datum]:
    """The results of a Read. Raises :class:`ChannelLost` when they are not ``count`` readable values."""
    at = array_at(body, at, count)
    data = []
    try:
        for _ in range(count):
            one, at = read_datum(body, at)
            data.append(one)
    except Exception as exc:
        raise ChannelLost(f"unreadable values ({exc!r})", "a server fault") from exc
    return data


def array_at(body: bytes, at: int, count: int) -> int:
    """Where the elements of an array begin. Raises :class:`ChannelLost` when it has not ``count`` of them."""
    found = int.from_bytes(body[at : at + 4], "little", signed=True)
    if found != count:
        raise ChannelLost(f"{found} results for {count} nodes", "a server fault")
    return at + 4
