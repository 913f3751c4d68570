"""The examples of docs/serial-devices.md, each against a device that behaves like the real one, and misbehaves."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable
from pathlib import Path

import pytest
import yaml
from serial_peer import PtyDevice, TcpDevice

from controller.config import load
from controller.config.driver_options import driver_options
from drivers.factory import make_driver
from drivers.port import Driver, ExchangeFailed, Outcome, Reading

pytestmark = [pytest.mark.wire, pytest.mark.usefixtures("no_leaks")]
PAGE = Path(__file__).parents[2] / "docs" / "serial-devices.md"
REST = {"line": {"name": "small"}, "stations": {"s": {"kind": "sequence"}}}


def example(plc: str, folder: Path, **place: object) -> Driver:
    """The driver of the page's example, with its line moved to a place of ours."""
    blocks = [yaml.safe_load(text) for text in re.findall(r"```yaml\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S)]
    (data,) = [block for block in blocks if plc in block["plcs"]]
    device = data["plcs"][plc]
    for key in ("device", "host", "port"):
        device.pop(key, None)
    if "port" in place:
        device.pop("baudrate", None)
    device |= place
    path = folder / "line.yaml"
    path.write_text(yaml.safe_dump(REST | data, sort_keys=False), encoding="utf-8")
    config = load(path)
    assert not [warning for warning in config.warnings if plc in str(warning)]
    options = driver_options(config.file.plcs[plc], folder, config.file.scan_classes)
    return make_driver(plc, options, list(config.tags.values()))


async def until(driver: Driver, index: int, value: object, group: int = 0) -> Reading:
    async with asyncio.timeout(2.0):
        while True:
            reading = await driver.read(group, 0.2)
            if reading.values[index] == value:
                return reading
            await asyncio.sleep(0.002)


async def test_scanner(tmp_path: Path) -> None:
    async with PtyDevice(tmp_path) as scanner:
        driver = example("scanner", tmp_path, device=str(scanner.path))
        await driver.connect(1.0)
        await asyncio.sleep(0.06)
        scanner.say(b"4006381333931\r\nNOREAD\r\nLOT-7\r\nLO")
        assert (await until(driver, 1, 1)).values == ("4006381333931", 1, 0, 0)
        assert (await until(driver, 3, 1)).values == ("4006381333931", 1, 0, 1)
        assert (await until(driver, 1, 2)).values == ("LOT-7", 2, 0, 1)
        scanner.say(b"T\xb78\r\nLOT-9\r\n")
        assert (await until(driver, 1, 3)).values == ("LOT-9", 3, 1, 1)
        await driver.close()


async def test_scale(tmp_path: Path) -> None:
    answers: dict[bytes, Iterable[bytes]] = {b"SI": [b"S S     123.45 g\r\n"], b"T": [b"T S      10.00 g\r\n"]}
    async with PtyDevice(tmp_path, lambda line: answers[line]) as scale:
        driver = example("scale", tmp_path, device=str(scale.path))
        await driver.connect(1.0)
        assert (await driver.read(0, 0.2)).values == (123.45, "S", 0)
        for answer, status, reason in (
            (b"S D      99.10 g\r\n", "D", "not at rest"),
            (b"S I\r\n", "I", "busy"),
            (b"S +\r\n", "+", "overload"),
            (b"S -\r\n", "-", "underload"),
            (b"ES\r\n", None, "did not understand"),
            (b"S S    9999.00 g\r\n", "S", "outside"),
        ):
            answers[b"SI"] = [answer]
            reading = await driver.read(0, 0.2)
            assert reading.values[:2] == (None, status)
            assert reason in reading.bad[0]
        answers[b"SI"] = [b"S S   0.12345 kg\r\n"]
        with pytest.raises(ExchangeFailed, match=r"heard 'S S   0\.12345 kg'"):
            await driver.read(0, 0.05)
        answers[b"SI"] = [b"S S      -0.50 g\r\n"]
        assert (await driver.read(0, 0.2)).values == (-0.5, "S", 0)
        assert (await driver.write("scale.tare", 1, 0.2)).outcome is Outcome.VERIFIED
        answers[b"T"] = [b"T I\r\n"]
        refused = await driver.write("scale.tare", 2, 0.2)
        assert refused.outcome is Outcome.REJECTED
        assert "cannot tare now" in refused.reason
        await driver.close()


class Zebra:
    """A ZPL printer: takes ~HS wherever it stands, prints a format at its end, has a stock of labels."""

    def __init__(self) -> None:
        self.stock, self.busy, self.dead = 10, 0, False
        self.printed: list[str] = []
        self._format = b""

    def told(self, piece: bytes) -> Iterable[bytes]:
        """``piece`` ends before "~HS" or "^XZ"."""
        if self.dead:
            return
        if b"^XA" in piece:
            fields = re.findall(rb"\^FH\^FD(.*?)\^FS", piece)
            texts = [re.sub(rb"_(..)", lambda m: bytes((int(m[1], 16),)), field).decode() for field in fields]
            self.printed.append("|".join(texts))
            self.stock -= 1
            self.busy = 1
            return
        self.busy, waiting = 0, self.busy
        yield b"\x02030,%d,0,1245,%03d,0,0,0,000,0,0,0\x03\r\n" % (self.stock <= 0, waiting)
        yield b"\x02001,0,0,0,1,2,4,0,00000000,1,000\x03\r\n"
        yield b"\x020000,0\x03\r\n"


class ZebraDevice(TcpDevice):
    def hear(self, data: bytes) -> None:
        self._buffer += data
        while match := re.search(rb"\^XZ|~HS", self._buffer):
            piece = bytes(self._buffer[: match.end()])
            del self._buffer[: match.end()]
            for answer in self.told(piece):
                self.say(answer)


async def test_printer(tmp_path: Path) -> None:
    zebra = Zebra()
    async with ZebraDevice(zebra.told) as device:
        driver = example("printer", tmp_path, host="127.0.0.1", port=device.port)
        await driver.connect(1.0)
        slow = next(n for n, group in enumerate(driver.groups) if group.scan_class == "slow")
        assert (await driver.read(slow, 0.2)).values == ("000",)

        async def label(job: int, text: str) -> tuple[Outcome, str]:
            block = {"label.text": text, "label.code": f"C{job}", "label.job": job}
            assert driver.block_problem(list(block)) == ""
            got = await driver.write_block(block, 0.2)
            return got.outcome, got.reason

        assert await label(1, "Wässer 50 % ^XZ~JA_") == (Outcome.VERIFIED, "")
        assert zebra.printed == ["Wässer 50 % ^XZ~JA_|C1"]
        zebra.stock = 0
        outcome, reason = await label(2, "A")
        assert outcome is Outcome.REJECTED
        assert "not sent, out of labels" in reason
        zebra.stock = 5
        assert (await label(2, "A"))[0] is Outcome.VERIFIED
        zebra.stock = 1
        # The last label: the printer is out of labels after it, until somebody fills it up.
        last = asyncio.create_task(label(3, "B"))
        async with asyncio.timeout(2.0):
            while zebra.stock:  # noqa: ASYNC110 - a printer tells nobody
                await asyncio.sleep(0.002)
        zebra.stock = 9
        assert (await last)[0] is Outcome.VERIFIED
        assert zebra.printed[1:] == ["A|C2", "B|C3"]
        device.told = lambda piece: () if b"^XA" in piece else zebra.told(piece)
        await driver.close()


async def test_a_printer_that_dies_with_a_label(tmp_path: Path) -> None:
    zebra = Zebra()
    async with ZebraDevice() as device:

        def told(piece: bytes) -> Iterable[bytes]:
            yield from zebra.told(piece)
            if b"^XA" in piece:
                zebra.dead = True
                for transport in list(device.transports):
                    transport.abort()

        device.told = told
        driver = example("printer", tmp_path, host="127.0.0.1", port=device.port)
        await driver.connect(1.0)
        block = {"label.text": "A", "label.code": "C", "label.job": 1}
        assert (await driver.write_block(block, 0.2)).outcome is Outcome.UNKNOWN
        zebra.dead = False
        for _ in range(2):
            await driver.close()
            await driver.connect(1.0)
            again = await driver.write_block(block, 0.2)
            assert again.outcome is Outcome.UNKNOWN
            assert "give a new number" in again.reason
        assert zebra.printed == ["A|C"]
        reading = await driver.read(0, 0.2)
        assert reading.values == ("A", "C", None)
        await driver.close()
