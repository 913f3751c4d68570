"""What the benches share: tag lists such as real lines have."""

from __future__ import annotations

import random

from drivers import codec
from drivers.plan import ModbusPlan
from drivers.port import Area, DataType, ModbusAddress, Tag, WordOrder

CDAB = WordOrder.CDAB


class _Maker:
    """Makes the tags of one PLC, machine by machine. Equal numbers are one object, as in a configuration."""

    def __init__(self, seed: int) -> None:
        self.tags: list[Tag] = []
        self._random = random.Random(seed)
        self._next = {Area.COIL: 0, Area.DISCRETE_INPUT: 0, Area.INPUT_REGISTER: 0, Area.HOLDING_REGISTER: 0}
        self._numbers = list(range(65536))

    def skip(self, area: Area, most: int) -> None:
        """Leave up to ``most`` addresses unused."""
        self._next[area] += self._random.randint(0, most)

    def add(
        self, name: str, area: Area, kind: DataType, bit: int | None = None, width: int = 1, **more: object
    ) -> None:
        """A tag at the next address of the area; a bit stays on its register."""
        offset = self._next[area] - (bit is not None)
        address = ModbusAddress(area, self._numbers[offset], bit)
        self.tags.append(Tag(name=name, address=address, type=kind, **more))  # type: ignore[arg-type]
        if bit is None:
            self._next[area] += width

    def machine(self, n: int) -> None:
        """100 tags: 30 bits (coils, inputs, status words), 20 whole numbers, 20 scaled ones, 30 REALs."""
        m, ir, hr = f"m{n:03d}", Area.INPUT_REGISTER, Area.HOLDING_REGISTER
        for k in range(6):
            self.add(f"{m}.out_{k}", Area.COIL, DataType.BOOL, writable=True)
        for k in range(10):
            self.add(f"{m}.in_{k}", Area.DISCRETE_INPUT, DataType.BOOL)
        self.skip(Area.COIL, 6)
        self.skip(Area.DISCRETE_INPUT, 6)
        self._next[ir] += 1
        for k in range(8):
            self.add(f"{m}.state_{k}", ir, DataType.BOOL, k)
        for k in (8, 10, 11, 12, 13, 15):
            self.add(f"{m}.alarm_{k}", ir, DataType.BOOL, k)
        for k in range(6):
            self.add(f"{m}.count_{k}", ir, DataType.UDINT, width=2, word_order=CDAB)
        for k in range(4):
            self.add(f"{m}.step_{k}", ir, DataType.UINT)
        for k in range(8):
            self.add(f"{m}.temp_{k}", ir, DataType.INT, scale=0.1, unit="°C")
        for k in range(4):
            self.add(f"{m}.amps_{k}", ir, DataType.UINT, scale=0.01, unit="A", low=0.0, high=100.0)
        self.skip(ir, 5)
        for k in range(16):
            self.add(f"{m}.flow_{k}", ir, DataType.REAL, width=2, word_order=CDAB, unit="l/min")
        for k in range(8):
            self.add(f"{m}.press_{k}", ir, DataType.REAL, width=2, word_order=CDAB, unit="bar", low=-1.0, high=16.0)
        self.skip(ir, 5)
        for k in range(6):
            self.add(f"{m}.preset_{k}", hr, DataType.DINT, width=2, word_order=CDAB, writable=True)
        for k in range(4):
            self.add(f"{m}.mode_{k}", hr, DataType.UINT, writable=True)
        for k in range(8):
            self.add(f"{m}.set_{k}", hr, DataType.INT, scale=0.1, unit="mm", low=0.0, high=2000.0, writable=True)
        for k in range(6):
            self.add(f"{m}.gain_{k}", hr, DataType.REAL, width=2, word_order=CDAB, writable=True)
        self.skip(hr, 5)


def mixed_tags(n: int, seed: int = 1) -> list[Tag]:
    """``n`` Modbus tags of one scan class, 100 a machine: 30 % BOOL, 40 % integers (half of them scaled), 30 % REAL.

    They lie in all four areas, machine after machine with gaps of a few addresses, two registers with the low word
    first. 65,536 input registers hold some 55,000 tags; more raise ``ValueError`` in the plan.
    """
    maker = _Maker(seed)
    for machine in range((n + 99) // 100):
        maker.machine(machine)
    return maker.tags[:n]


def answers(plan: ModbusPlan, seed: int, group: int = 0) -> list[bytes]:
    """Good answers to a group's requests: every REAL finite and every value within its limits, random otherwise.

    Two seeds give answers that differ in nearly every value.
    """
    source = random.Random(seed)
    memory: dict[tuple[Area, int], bytes] = {}
    for tag in plan.groups[group].tags:
        address = tag.address
        assert isinstance(address, ModbusAddress)
        if tag.type is DataType.BOOL:
            continue
        low, high = (0 if tag.low is None else tag.low, 1000 if tag.high is None else tag.high)
        fraction = tag.scaled or tag.type in codec.REALS
        data = codec.encode(tag, round(source.uniform(low, high), 1) if fraction else source.randrange(1000))
        for k in range(0, len(data), 2):
            memory[address.area, address.offset + k // 2] = data[k : k + 2]
    found = []
    for request in plan.requests(group):
        if request.area in (Area.COIL, Area.DISCRETE_INPUT):
            found.append(source.randbytes(request.size))
            continue
        span = range(request.offset, request.offset + request.count)
        found.append(b"".join(memory.get((request.area, a)) or source.randbytes(2) for a in span))
    return found
