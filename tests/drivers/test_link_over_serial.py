"""The link's supervision over serial line devices, in real time: no code lost, no label twice."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager

import pytest
from serial_peer import TcpDevice

from controller.core.image import InputBuffer, Layout, ProcessImage, WriteReport
from controller.runtime.bus import Link
from controller.runtime.bus_commands import BlockOptions
from controller.runtime.bus_options import LinkOptions
from controller.runtime.clock import SystemClock
from drivers.factory import make_driver
from drivers.options import SerialDeviceOptions, TcpLineOptions
from drivers.port import DataType, Outcome, SerialAddress, Tag
from drivers.serial.protocol import Command, Framing, LineProtocol, Message

pytestmark = [pytest.mark.wire, pytest.mark.usefixtures("no_leaks")]
CRLF = Framing(end=b"\r\n", max_length=40)
S = 1_000_000_000


def tag(name: str, address: str, kind: DataType, *, writable: bool = False) -> Tag:
    return Tag(name=name, address=SerialAddress(address), type=kind, writable=writable)


class Scan:
    """A scan that only latches, keeps the reports, and shows each image to ``look``."""

    def __init__(self, link: Link, image: ProcessImage, buffer: InputBuffer) -> None:
        self.link, self.image, self.buffer = link, image, buffer
        self.reports: list[WriteReport] = []
        self.ups: list[bool] = []
        self.look: Callable[[], None] = lambda: None

    async def until(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(10.0):
            while not condition():
                links, reports = self.image.latch(SystemClock().monotonic_ns(), self.buffer)
                self.ups += [report.up for report in links]
                self.reports += reports
                self.look()
                await asyncio.sleep(0.005)

    def value(self, name: str) -> object:
        slot = self.buffer.layout.slots[name]
        return None if self.image.bad[slot] else self.image.values[slot]


@asynccontextmanager
async def running(
    device: TcpDevice, protocol: LineProtocol, tags: list[Tag], *blocks: BlockOptions
) -> AsyncIterator[Scan]:
    options = SerialDeviceOptions(line=TcpLineOptions(host="127.0.0.1", port=device.port), protocol=protocol)
    driver = make_driver("dev", options, tags)
    layout = Layout([("dev", driver.groups)], {"fast": 5 * S})
    buffer = InputBuffer(layout)
    link_options = LinkOptions(periods_s={"fast": 0.02}, timeout_s=0.1, reconnect_max_s=0.2, blocks=blocks)
    link = Link(driver, buffer, SystemClock(), link_options, random.Random(7))
    task = asyncio.create_task(link.run())
    try:
        yield Scan(link, ProcessImage(layout), buffer)
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_every_code_of_a_burst_is_seen_by_a_scan() -> None:
    protocol = LineProtocol(framing=CRLF, messages={"code": Message(pattern=r"(?P<text>\w+)")})
    tags = [tag("s.code", "code.text", DataType.STRING), tag("s.count", "code.count", DataType.UDINT)]
    async with TcpDevice() as device, running(device, protocol, tags) as scan:
        await scan.until(lambda: scan.ups == [True] and device.transports)
        await asyncio.sleep(0.06)  # the line is only listened to at first
        device.say(b"".join(b"N%d\r\n" % n for n in range(1, 31)))
        seen: dict[object, object] = {}
        scan.look = lambda: seen.update({scan.value("s.count"): scan.value("s.code")})
        await scan.until(lambda: 30 in seen)
        assert {n: seen[n] for n in range(1, 31)} == {n: f"N{n}" for n in range(1, 31)}


async def test_a_label_is_never_printed_twice() -> None:
    """The printer takes the first label and dies; the link comes back, and the number is still wanted."""
    ready = Message(pattern=r"R(?P<paper>\d)", ask="?\r\n", bad={"paper": {"0": "", "*": "out of paper"}})
    command = Command(send="PRINT {text}\r\n", check="ready")
    protocol = LineProtocol(framing=CRLF, messages={"ready": ready}, commands={"label": command})
    tags = [
        tag("l.text", "label.text", DataType.STRING, writable=True),
        tag("l.job", "label.job", DataType.UDINT, writable=True),
        tag("l.paper", "ready.paper", DataType.BOOL),
    ]
    printed: list[bytes] = []

    async with TcpDevice() as device:

        def told(line: bytes) -> Iterable[bytes]:
            if line.startswith(b"PRINT"):
                printed.append(line)
                if len(printed) == 1:
                    for transport in list(device.transports):
                        transport.abort()
            return [b"R0\r\n"] if line == b"?" and device.transports else []

        device.told = told
        async with running(device, protocol, tags, BlockOptions(id="l.job", tags=("l.text",))) as scan:
            await scan.until(lambda: scan.ups == [True])
            scan.link.set_outputs({"l.text": "A", "l.job": 1})
            await scan.until(lambda: scan.ups == [True, False, True])
            for _ in range(3):  # the scan wants the same, all the while
                scan.link.set_outputs({"l.text": "A", "l.job": 1})
                count = len(device.heard)
                await scan.until(lambda: len(device.heard) > count + 10)  # noqa: B023 - awaited at once
            assert printed == [b"PRINT A"]
            assert [r.outcome for r in scan.reports if r.tag == "l.job"][-1] is Outcome.UNKNOWN
            assert scan.value("l.job") is None
            scan.link.set_outputs({"l.text": "B", "l.job": 2})
            await scan.until(lambda: scan.value("l.job") == 2)
            assert printed == [b"PRINT A", b"PRINT B"]
            assert [r.outcome for r in scan.reports if r.tag == "l.job"][-1] is Outcome.VERIFIED
