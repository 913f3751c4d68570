"""The link's supervision over a real driver and a real server, in real time."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable

import pytest
from honest_modbus import TcpServer

from controller.core.image import InputBuffer, Layout, ProcessImage
from controller.runtime.bus import Link, LinkOptions
from controller.runtime.clock import SystemClock
from drivers.factory import make_driver
from drivers.options import ModbusTcpOptions
from drivers.port import Area, DataType, ModbusAddress, Tag

pytestmark = [pytest.mark.wire, pytest.mark.usefixtures("no_leaks")]

TAGS = [
    Tag(name="a.level", address=ModbusAddress(Area.INPUT_REGISTER, 0), type=DataType.UINT),
    Tag(name="a.run", address=ModbusAddress(Area.COIL, 0), type=DataType.BOOL, writable=True),
]


class Scan:
    def __init__(self, link: Link, image: ProcessImage, buffer: InputBuffer) -> None:
        self.link, self.image, self.buffer = link, image, buffer
        self.ups: list[bool] = []

    async def until(self, condition: Callable[[], bool], within_s: float = 3.0) -> None:
        async with asyncio.timeout(within_s):
            while not condition():
                links, _ = self.image.latch(SystemClock().monotonic_ns(), self.buffer)
                self.ups += [report.up for report in links]
                await asyncio.sleep(0.005)

    def good(self, name: str) -> bool:
        return self.image.bad[self.image.layout.slots[name]] is None


async def test_values_in_outputs_out_and_back_again_after_a_reset() -> None:
    async with TcpServer(unit=3) as server:
        driver = make_driver("wet", ModbusTcpOptions(host="127.0.0.1", port=server.port, unit=3), TAGS)
        layout = Layout([("wet", driver.groups)], {"fast": 500_000_000})
        buffer, image = InputBuffer(layout), ProcessImage(layout)
        link = Link(
            driver,
            buffer,
            SystemClock(),
            LinkOptions(periods_s={"fast": 0.02}, timeout_s=0.2),
            random.Random(3),
        )
        scan = Scan(link, image, buffer)
        server.memory.ir[0] = 41
        task = asyncio.create_task(link.run())
        await scan.until(lambda: image.up["wet"] and scan.good("a.level"))
        assert image.values[0] == 41
        link.set_outputs({"a.run": True})
        await scan.until(lambda: server.memory.co[0])
        await scan.until(lambda: image.values[1] is True)

        server.memory.co[0] = False
        await server.stop()
        await scan.until(lambda: not image.up["wet"])
        assert not scan.good("a.level")
        await server.start()
        await scan.until(lambda: server.memory.co[0] and image.up["wet"])
        assert scan.ups == [True, False, True]
        assert (await link.write_now({"a.run": False}, 1.0))["a.run"].outcome == "verified"
        assert not server.memory.co[0]
        assert link.stats().reconnects == 1
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not link.stats().up
