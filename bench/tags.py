"""What a tag costs without a wire: unchanged, and in memory. docs/bench.md says what exactly is measured."""

from __future__ import annotations

import gc
import time
import tracemalloc

from bench import images
from bench.common import mixed_tags
from bench.modbus import IN_FLIGHT, STALE_NS, TAGS, Ours
from bench.ratio import Row, median
from bench.setting import Setting
from controller.core.image import InputBuffer, Layout, ProcessImage
from drivers.plan import ModbusPlan, Request
from drivers.port import Area, Reading


def unchanged(setting: Setting) -> list[Row]:
    """Answers with the same bytes as the last ones, in other objects: decoded, put and latched; ns per tag."""
    tags, path = mixed_tags(TAGS), setting.folder / "unchanged"
    images.write(path, tags)
    memory = path.read_bytes()
    plan = ModbusPlan(tags)
    layout = Layout([("plc", plan.groups)], {"fast": STALE_NS})
    buffer, image = InputBuffer(layout), ProcessImage(layout)
    answers = [_answer(memory, request) for request in plan.requests(0)]

    def take(data: list[bytes]) -> None:
        stamp = time.monotonic_ns()
        values, bad = plan.decode(0, data)
        buffer.put("plc", 0, Reading(values, stamp, bad))
        image.latch(stamp, buffer)

    take(answers)
    assert not any(image.bad), "the images hold good values only"
    before, spent = image.versions[0], []
    for _ in range(setting.rounds * 3):
        turns = [[bytes(bytearray(answer)) for answer in answers] for _ in range(50)]
        start = time.process_time()
        for data in turns:
            take(data)
        spent.append((time.process_time() - start) / len(turns) / TAGS * 1e9)
    assert image.versions[0] == before, "something was taken for a change"
    value = median(spent)
    return [Row("unchanged_ns_per_tag", "an unchanged tag, ns", value, "≤ 5", "1.5", f"{value:.2f} ns")]


def _answer(memory: bytes, request: Request) -> bytes:
    """What the device of the first image would answer."""
    start = images.START[request.area]
    if request.area in (Area.COIL, Area.DISCRETE_INPUT):
        word = int.from_bytes(memory[start : start + images.BITS], "little") >> request.offset
        return (word & (1 << request.count) - 1).to_bytes(request.size, "little")
    return memory[start + 2 * request.offset : start + 2 * (request.offset + request.count)]


async def memory(setting: Setting) -> list[Row]:
    """What 10,000 tags weigh with plan, driver, image and values: bytes per tag."""
    async with setting.device(mixed_tags(TAGS)) as device:
        port = device.port()
        small = Ours(mixed_tags(50), port, IN_FLIGHT)  # loads what is loaded once only
        await small.driver.connect(5.0)
        await small.scan()
        await small.driver.close()
        del small
        gc.collect()
        tracemalloc.start()
        before = tracemalloc.get_traced_memory()[0]
        tags = mixed_tags(TAGS)
        ours = Ours(tags, port, IN_FLIGHT)
        await ours.driver.connect(5.0)
        await ours.scan()
        await ours.scan()
        gc.collect()
        value = (tracemalloc.get_traced_memory()[0] - before) / TAGS
        tracemalloc.stop()
        assert None not in ours.values(tags)
        await ours.driver.close()
    return [Row("bytes_per_tag", "memory, bytes per tag", value, "≤ 400", "300", f"{value:.0f} B")]
