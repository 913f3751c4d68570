"""Serial line devices pass the suite that every driver passes: a device whose points are asked for and set by lines."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Any

import pytest
import test_driver_contract as suite
from serial_peer import PtyDevice, TcpDevice
from test_driver_contract import *  # noqa: F403 - the tests themselves

from drivers.options import SerialDeviceOptions, SerialOptions, TcpLineOptions
from drivers.port import SerialAddress
from drivers.serial.protocol import Framing, LineProtocol, Message

pytestmark = suite.pytestmark
POINTS = {"Count": r"\d+", "Rail": r"\d+", "Run": "[01]", "Speed": r"\d+\.\d+"}
PROTOCOL = LineProtocol(
    framing=Framing(end=b"\r\n", max_length=40),
    messages={
        name.lower(): Message(pattern=f"{name}=(?P<v>{text})", ask=f"{name}?\r\n", write=f"{name}={{v}}\r\n")
        for name, text in POINTS.items()
    },
)


class SerialRig(suite.Rig):
    """The device on a pty or behind TCP."""

    def __init__(self, device: PtyDevice | TcpDevice) -> None:
        self.device = device
        self.held = {"Count": "7", "Rail": "60", "Run": "0", "Speed": "1.5"}
        device.told = self._told
        line: SerialOptions | TcpLineOptions
        if isinstance(device, PtyDevice):
            line = SerialOptions(device=str(device.path), baudrate=115200)
        else:
            line = TcpLineOptions(host="127.0.0.1", port=device.port)
        self.options = SerialDeviceOptions(line=line, protocol=PROTOCOL)
        self.addresses = {name: SerialAddress(f"{name.lower()}.v") for name in POINTS}

    def _told(self, line: bytes) -> Iterable[bytes]:
        text = line.decode()
        name, _, value = text.partition("=")
        if value:
            self.held[name] = value
            return []
        name = text.removesuffix("?")
        return [f"{name}={self.held[name]}\r\n".encode()]

    async def pull(self) -> None:
        if isinstance(self.device, PtyDevice):
            self.device.pull()
        else:
            await self.device.pull()

    async def plug(self) -> None:
        self.device.mute = False
        if isinstance(self.device, PtyDevice):
            self.device.plug()
        else:
            await self.device.plug()

    async def mute(self) -> None:
        self.device.mute = True

    async def get(self, name: str) -> Any:
        return int(self.held[name])

    async def put(self, name: str, raw: Any) -> None:
        self.held[name] = str(raw)

    def connections(self) -> int:
        return len(self.device.transports) if isinstance(self.device, TcpDevice) else 0


@pytest.fixture(params=["serial_pty", "serial_tcp"])
async def rig(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[suite.Rig]:
    if request.param == "serial_pty":
        async with PtyDevice(tmp_path) as pty:
            yield SerialRig(pty)
    else:
        async with TcpDevice() as tcp:
            yield SerialRig(tcp)
