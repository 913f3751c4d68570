"""What a Modbus group costs: planning, decoding (unchanged and changed), and a read over loopback.

Run: ``python bench/drivers_modbus.py``. Prints medians of several rounds; trust ratios, not absolutes.
"""

from __future__ import annotations

import asyncio
import itertools
import statistics
import time
from collections.abc import Callable

from drivers import codec
from drivers.modbus import ModbusTcpDriver
from drivers.options import ModbusTcpOptions
from drivers.plan import ModbusPlan
from drivers.port import Area, DataType, ModbusAddress, Tag, WordOrder

ROUNDS = 7
NUMBERS = (
    (DataType.UDINT, 1.0),
    (DataType.UDINT, 1.0),
    (DataType.UINT, 0.1),
    (DataType.INT, 0.1),
    (DataType.REAL, 1.0),
    (DataType.UINT, 1.0),
)


def tags() -> list[Tag]:
    """80 tags in 10 blocks, of the kinds a line has."""
    made = []
    for block in range(5):
        for i in range(10):
            address = ModbusAddress(Area.DISCRETE_INPUT, block * 64 + i)
            made.append(Tag(name=f"d.{block}_{i}", address=address, type=DataType.BOOL))
        base = 100 + block * 40
        for i, (kind, scale) in enumerate(NUMBERS):
            made.append(
                Tag(
                    name=f"i.{block}_{i}",
                    address=ModbusAddress(Area.INPUT_REGISTER, base + 2 * i),
                    type=kind,
                    scale=scale,
                    word_order=WordOrder.CDAB,
                    high=6000.0 if scale != 1.0 else None,
                )
            )
    return made


def micros(call: Callable[[], object], count: int) -> float:
    rounds = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        for _ in range(count):
            call()
        rounds.append((time.perf_counter() - start) / count * 1e6)
    return statistics.median(rounds)


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A server that holds zeros."""
    try:
        while header := await reader.readexactly(7):
            pdu = await reader.readexactly(int.from_bytes(header[4:6], "big") - 1)
            count = int.from_bytes(pdu[3:5], "big")
            size = (count + 7) // 8 if pdu[0] < 3 else 2 * count
            reply = bytes((pdu[0], size)) + bytes(size)
            writer.write(header[:4] + (len(reply) + 1).to_bytes(2, "big") + header[6:] + reply)
    except asyncio.IncompleteReadError:
        writer.close()


async def wire(count: int) -> float:
    """CPU microseconds of this process (client and the plain server above) per request."""
    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    driver = ModbusTcpDriver("bench", tags(), ModbusTcpOptions(host="127.0.0.1", port=port))
    await driver.connect(1.0)
    start = time.process_time()
    for _ in range(count):
        await driver.read(0, 1.0)
    spent = time.process_time() - start
    await driver.close()
    server.close()
    await server.wait_closed()
    return spent / count / 10 * 1e6


def main() -> None:
    chosen = tags()
    plan = ModbusPlan(chosen)
    requests = plan.requests(0)
    print(f"{len(chosen)} tags in {len(requests)} requests")
    print(f"plan and compile once        {micros(lambda: ModbusPlan(chosen), 5) / 1000:9.2f} ms")
    zeros = [bytes(r.size) for r in requests]
    fresh = [[bytes(bytearray(z)) for z in zeros] for _ in range(2)]
    turns = itertools.cycle(fresh)
    plan.decode(0, zeros)
    print(f"decode, nothing changed      {micros(lambda: plan.decode(0, next(turns)), 20_000):9.2f} µs")
    one = [zeros, [*zeros[:-1], b"\0\1" + zeros[-1][2:]]]
    turns = itertools.cycle(one)
    print(f"decode, one block changed    {micros(lambda: plan.decode(0, next(turns)), 5_000):9.2f} µs")
    every = [zeros, [b"\1" + z[1:] for z in zeros]]
    turns = itertools.cycle(every)
    print(f"decode, every block changed  {micros(lambda: plan.decode(0, next(turns)), 2_000):9.2f} µs")
    numbers = [t for t in chosen if t.type is not DataType.BOOL]
    print(f"one tag by the plain codec   {micros(lambda: codec.decode(numbers[0], bytes(4)), 5_000):9.2f} µs")
    print(f"request over loopback, CPU   {asyncio.run(wire(500)):9.2f} µs (client and server)")


if __name__ == "__main__":
    main()
