"""What the C server holds: images of a device's memory in which every tag has a good value, another one in each image.

The bytes are made here from the definitions of the types alone, not by the drivers' codec, so that comparing what was
read with :func:`expected` says something.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path

from drivers.port import Area, DataType, ModbusAddress, Tag, Value, WordOrder

BITS, WORDS = 8192, 131072
START = {
    Area.COIL: 0,
    Area.DISCRETE_INPUT: BITS,
    Area.INPUT_REGISTER: 2 * BITS,
    Area.HOLDING_REGISTER: 2 * BITS + WORDS,
}
SIZE = 2 * BITS + 2 * WORDS
COUNT = 8
"""Images, shown in turn."""
CODES = {
    DataType.INT: "h", DataType.UINT: "H", DataType.DINT: "i", DataType.UDINT: "I",
    DataType.LINT: "q", DataType.ULINT: "Q", DataType.REAL: "f", DataType.LREAL: "d",
}  # fmt: skip


def _raw(tag: Tag, index: int, image: int) -> bool | int | float:
    """A raw value within the tag's limits; neighbouring images, the last and the first too, differ in every tag."""
    if tag.type is DataType.BOOL:
        return bool((index + image) & 1)
    low = 10.0 if tag.low is None else tag.low
    high = low + 900.0 * abs(tag.scale) if tag.high is None else tag.high
    share = 0.05 + 0.9 * ((index * 5 + image * 3) % COUNT) / COUNT + (index % 97) / 97 * 0.05
    raw = (low + (high - low) * share - tag.offset) / tag.scale
    if tag.type is DataType.REAL:
        return float(struct.unpack("f", struct.pack("f", raw))[0])
    return raw if tag.type is DataType.LREAL else round(raw)


def expected(tags: Sequence[Tag], image: int) -> list[Value]:
    """The engineering values that the tags have in an image."""
    raws = ((tag, _raw(tag, index, image)) for index, tag in enumerate(tags))
    return [raw * tag.scale + tag.offset if tag.scaled else raw for tag, raw in raws]


def write(path: Path, tags: Sequence[Tag]) -> None:
    """Write the images of a device with these tags."""
    memory = bytearray(SIZE * COUNT)
    for image in range(COUNT):
        for index, tag in enumerate(tags):
            address = tag.address
            assert isinstance(address, ModbusAddress)
            base = image * SIZE + START[address.area]
            raw = _raw(tag, index, image)
            if address.area in (Area.COIL, Area.DISCRETE_INPUT):
                memory[base + address.offset // 8] |= bool(raw) << address.offset % 8
            elif tag.type is DataType.BOOL:
                assert address.bit is not None
                # Bit 0 is in the second byte of its register.
                memory[base + 2 * address.offset + (address.bit < 8)] |= bool(raw) << address.bit % 8
            else:
                data = _ordered(struct.pack(">" + CODES[tag.type], raw), tag.word_order)
                memory[base + 2 * address.offset : base + 2 * address.offset + len(data)] = data
    path.write_bytes(memory)


def _ordered(data: bytes, order: WordOrder) -> bytes:
    words = [data[i : i + 2] for i in range(0, len(data), 2)]
    if order in (WordOrder.CDAB, WordOrder.DCBA):
        words.reverse()
    if order in (WordOrder.BADC, WordOrder.DCBA):
        words = [word[::-1] for word in words]
    return b"".join(words)
