"""Serves a reference line at real time: the world's clock, a server per PLC, the control socket."""

from __future__ import annotations

import asyncio
import json
import os
import tempfile
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from hil.plc import PlcOffline, World
from hil.wire.control import ControlServer
from hil.wire.modbus_rtu import ModbusRtuServer
from hil.wire.modbus_tcp import ModbusTcpServer
from hil.wire.opcua import OpcUaServer

HOST = "127.0.0.1"
TICK_S = 0.01
MAX_STEP_NS = 200_000_000
"""After a stall at most this much real time is caught up; the rest the plant loses, see ``Wire.lost_ns``."""
PlcServer = ModbusTcpServer | ModbusRtuServer | OpcUaServer


class Wire:
    """A line being served. ``endpoints`` are, per PLC, the fields of line.yaml to override."""

    def __init__(self, world: World, rate: float, ports: Mapping[str, int], serial_folder: Path) -> None:
        if not 0.0 < rate <= 100.0:
            raise ValueError(f"rate is plant seconds per second, above 0 and up to 100, not {rate}")
        unknown = ports.keys() - world.plcs.keys()
        if unknown:
            raise ValueError(f"no PLC {', '.join(sorted(unknown))}; there are: {', '.join(world.plcs)}")
        self.world = world
        self.lost_ns = 0
        """Real time that the plant did not follow because the process was held up."""
        self.stopping = asyncio.Event()
        self._rate = rate
        self._last = time.monotonic_ns()
        self._power_changed = asyncio.Event()
        self._settling = asyncio.Lock()
        self._serving = dict.fromkeys(world.plcs, 0)
        """Boot count under which each PLC is being served; 0 while it is not."""
        package = import_module(f"hil.lines.{world.line}")
        self._device_ids: Mapping[str, int] = package.DEVICE_IDS
        self.servers: dict[str, PlcServer] = {}
        for name, plc in world.plcs.items():
            port = ports.get(name, 0)
            if plc.protocol == "opcua":
                self.servers[name] = OpcUaServer(plc, self.sync, HOST, port)
            elif name in package.SERIAL:
                device = serial_folder / name
                self.servers[name] = ModbusRtuServer(plc, self._device_ids[name], self.sync, device)
            else:
                self.servers[name] = ModbusTcpServer(plc, self._device_ids[name], self.sync, HOST, port)

    @property
    def endpoints(self) -> dict[str, dict[str, str | int]]:
        """Where each PLC is, complete once everything listens."""
        found: dict[str, dict[str, str | int]] = {}
        for name, server in self.servers.items():
            if isinstance(server, OpcUaServer):
                found[name] = {"endpoint": server.endpoint}
            elif isinstance(server, ModbusRtuServer):
                found[name] = {"device": str(server.device), "unit": self._device_ids[name], "parity": "N"}
            else:
                found[name] = {"host": server.host, "port": server.port, "unit": self._device_ids[name]}
        return found

    def sync(self) -> None:
        """Bring the plant up to the present."""
        now = time.monotonic_ns()
        step = now - self._last
        self._last = now
        if step > MAX_STEP_NS:
            self.lost_ns += step - MAX_STEP_NS
            step = MAX_STEP_NS
        self.world.advance(self.world.now + round(step * self._rate))

    def start_clock(self) -> None:
        """Plant time follows the monotonic clock from now on."""
        self._last = time.monotonic_ns()

    async def tick(self) -> None:
        """Keep the plant going; runs until cancelled."""
        while True:
            self.sync()
            await asyncio.sleep(TICK_S)

    async def settle(self) -> None:
        """Bring every server into line with its PLC's power: a PLC that lost it drops its connections, one that has
        it again listens at the same port. A serial line stays open; without power it is silent. Raises ``OSError``.
        """
        async with self._settling:
            for name, server in self.servers.items():
                plc = self.world.plcs[name]
                while self._serving[name] != (wanted := plc.boot_count if plc.alive else 0):
                    if self._serving[name] and not isinstance(server, ModbusRtuServer):
                        await server.stop()
                    self._serving[name] = 0
                    if wanted:
                        try:
                            await server.start()
                        except PlcOffline:
                            continue  # lost its power again while its server was being built
                        self._serving[name] = wanted

    async def follow_power(self) -> None:
        """Settle after every change of power; runs until cancelled."""
        for plc in self.world.plcs.values():
            plc.on_power.append(self._tell_power)
        try:
            while True:
                await self._power_changed.wait()
                self._power_changed.clear()
                await self.settle()
        finally:
            for plc in self.world.plcs.values():
                plc.on_power.remove(self._tell_power)

    async def stop(self) -> None:
        """Stop every server."""
        async with self._settling:
            for server in self.servers.values():
                await (server.close() if isinstance(server, OpcUaServer) else server.stop())

    def _tell_power(self, _on: bool) -> None:
        self._power_changed.set()

    async def handle(self, request: dict[str, Any]) -> dict[str, Any]:
        """Answer a control request. Raises ``ValueError`` for a wrong one."""
        self.sync()
        world, op = self.world, request.get("op")
        if op == "ping":
            return {"line": world.line, "seed": world.seed, "now_s": world.now / 1e9, "lost_s": self.lost_ns / 1e9}
        if op == "truth":
            return {"truth": world.truth()}
        if op == "faults":
            return {"active": world.faults(), "known": world.known_faults()}
        if op == "inject":
            world.inject(str(request.get("fault")), **_params(request))
            await self.settle()
            return {}
        if op == "clear":
            fault = request.get("fault")
            world.clear(None if fault is None else str(fault), **_params(request))
            await self.settle()
            return {}
        if op in ("kill", "restart"):
            world.inject(f"plc_{op}", plc=str(request.get("plc")))
            await self.settle()
            return {}
        if op == "shutdown":
            self.stopping.set()
            return {}
        known = "ping, truth, faults, inject, clear, kill, restart, shutdown"
        raise ValueError(f"unknown op {op!r}; there are: {known}")


def _params(request: dict[str, Any]) -> dict[str, bool | int | float | str]:
    params = request.get("params") or {}
    if not isinstance(params, dict) or not all(isinstance(v, bool | int | float | str) for v in params.values()):
        raise ValueError("params is an object of texts, numbers and booleans")
    return {str(name): value for name, value in params.items()}


@asynccontextmanager
async def run_wire(
    line: str = "bottling",
    *,
    seed: int = 1,
    ports: Mapping[str, int] | None = None,
    endpoints_file: Path | None = None,
    control_socket: Path | None = None,
    serial_folder: Path | None = None,
    rate: float = 1.0,
) -> AsyncIterator[Wire]:
    """Serve a line while the context lasts; on entry everything listens and ``endpoints_file`` is written.

    ``ports`` gives fixed TCP ports by PLC; others take a free one. Serial devices appear as links in
    ``serial_folder`` (default: the folder of ``endpoints_file``, else a temporary one). ``rate`` is plant seconds
    per second. Raises ``ValueError`` for unknown names, ``OSError`` for a port or path that cannot be had.
    """
    async with AsyncExitStack() as stack:
        folder = serial_folder or (endpoints_file.parent if endpoints_file else None)
        if folder is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="linewright-hil-")))
        wire = Wire(World(line, seed), rate, ports or {}, folder)
        stack.push_async_callback(wire.stop)
        await wire.settle()
        if control_socket is not None:
            control = ControlServer(control_socket, wire.handle)
            stack.push_async_callback(control.stop)
            await control.start()
        wire.start_clock()
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(wire.tick()), group.create_task(wire.follow_power())]
            try:
                if endpoints_file is not None:
                    _publish(endpoints_file, wire.endpoints)
                    stack.callback(endpoints_file.unlink, missing_ok=True)
                yield wire
            finally:
                for task in tasks:
                    task.cancel()


async def serve(
    line: str,
    seed: int,
    ports: Mapping[str, int],
    endpoints_file: Path | None,
    control_socket: Path | None,
    rate: float,
) -> None:
    """Serve a line until it is cancelled or told to shut down; see :func:`run_wire`."""
    async with run_wire(
        line, seed=seed, ports=ports, endpoints_file=endpoints_file, control_socket=control_socket, rate=rate
    ) as wire:
        await wire.stopping.wait()


def _publish(path: Path, endpoints: dict[str, dict[str, str | int]]) -> None:
    """Write the endpoints in one piece: a reader finds all of them or no file."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_text(json.dumps(endpoints, indent=1) + "\n", encoding="utf-8")
    draft.replace(path)
