"""``linewright plc bench``: what a PLC takes and how fast it answers, and the settings that follow. Reads only."""

from __future__ import annotations

import asyncio
import dataclasses
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from rich.table import Table
from rich.text import Text

from controller.cli import console
from controller.cli.picture import QUIET
from controller.cli.plc.asker import Asker, Pace, Refused, Silent
from controller.cli.plc.identify import reach
from controller.cli.plc.scan import Progress
from controller.cli.plc.target import Target, opened
from drivers.options import ModbusTcpOptions, ModbusUdpOptions
from drivers.plan import BITS
from drivers.port import FieldBusError, ModbusAddress

IN_FLIGHT = (1, 2, 4, 8, 16)
CONNECTIONS = (1, 2, 4)
FAST = 1e9
"""No pace: this is what is measured."""
WORTH = 0.9
"""The smallest setting that reaches so much of the best throughput is recommended."""
TIMEOUT_FACTOR, SHORTEST_TIMEOUT_MS = 4, 100


@dataclass
class Run:
    """One setting, measured."""

    connections: int
    in_flight: int
    seconds: float = 0.0
    trips_ms: list[float] = field(default_factory=list)
    refused: int = 0
    faults: list[str] = field(default_factory=list)

    @property
    def rate(self) -> float:
        """Good answers a second."""
        return len(self.trips_ms) / self.seconds if self.seconds else 0.0

    def part(self, share: float) -> float:
        """The round trip that this share of the answers does not exceed, in ms."""
        ordered = sorted(self.trips_ms)
        return ordered[min(len(ordered) - 1, int(len(ordered) * share))] if ordered else math.nan

    @property
    def sound(self) -> bool:
        """Whether everything was answered."""
        return bool(self.trips_ms) and not self.faults

    def as_json(self) -> dict[str, object]:
        """For ``--json``."""
        return {
            "connections": self.connections, "in_flight": self.in_flight, "requests_per_s": round(self.rate, 1),
            "p50_ms": self.part(0.5), "p99_ms": self.part(0.99), "max_ms": self.part(1.0),
            "answers": len(self.trips_ms), "refused": self.refused,
            "faults": self.faults[:3], "fault_count": len(self.faults),
        }  # fmt: skip


@dataclass(frozen=True)
class Result:
    """Everything that was measured. ``block`` is the most addresses of one request; 0 where that has no meaning."""

    runs: Sequence[Run]
    block: int = 0
    block_end: str = ""
    """What the device said to one more."""

    def advice(self) -> dict[str, int]:
        """Settings for line.yaml; empty when nothing was sound."""
        sound = [run for run in self.runs if run.sound]
        if not sound:
            return {}
        best = max(run.rate for run in sound)
        chosen = min(
            (run for run in sound if run.rate >= WORTH * best),
            key=lambda run: (run.connections * run.in_flight, run.connections),
        )
        slowest = max(chosen.part(1.0) * TIMEOUT_FACTOR, SHORTEST_TIMEOUT_MS)
        found = {"timeout_ms": math.ceil(slowest / 50) * 50}
        if self.block:
            found = {"in_flight": chosen.in_flight, "connections": chosen.connections, **found}
        return found


async def measure(target: Target, seconds: float, progress: Progress) -> Result:
    """Measure it. Raises :class:`console.CliError` when it does not answer at all."""
    if not hasattr(target.options, "unit"):
        return await _by_groups(target, seconds, progress)
    address = target.tags[0].address
    assert isinstance(address, ModbusAddress)
    modbus = target.modbus
    top = modbus.max_bits if address.area in BITS else modbus.max_registers
    progress("largest block")
    async with Asker(target, modbus.unit, Pace(FAST)) as asker:
        await reach(asker)
        block, end = await largest(asker, address, min(top, 65536 - address.offset))
    runs: list[Run] = []
    for connections in CONNECTIONS if isinstance(modbus, ModbusTcpOptions) else (1,):
        for in_flight in IN_FLIGHT if isinstance(modbus, ModbusTcpOptions | ModbusUdpOptions) else (1,):
            if connections * in_flight > max(IN_FLIGHT) * 2:
                continue
            progress(f"{connections} connections, {in_flight} in flight on each")
            run = await _run(target, address, block, Run(connections, in_flight), seconds)
            runs.append(run)
            if run.faults:
                break  # it does not take so many; more would only disturb it
        if runs[-1].in_flight == 1 and runs[-1].faults:
            break
    return Result(runs, block, end)


async def largest(asker: Asker, address: ModbusAddress, top: int) -> tuple[int, str]:
    """Most addresses from ``address`` on that one request may read, and what the device said to one more.

    Raises :class:`console.CliError` when not even one can be read.
    """
    low, high, said = 0, top, "" if top >= 125 else "the last address"
    size = top
    while low < high:
        answer = await asker.read(address.area, address.offset, size)
        if isinstance(answer, Silent):
            console.fail(f"{address}: {answer.what}", console.Exit.NO_CONNECTION)
        if isinstance(answer, Refused):
            high, said = size - 1, f"exception {answer.code}, {answer.what}"
        else:
            low = size
        size = (low + high + 1) // 2
    if low == 0:
        console.fail(f"{address}: {said}; name an address that can be read (`linewright plc scan` finds them)")
    return low, said


async def _run(target: Target, address: ModbusAddress, block: int, run: Run, seconds: float) -> Run:
    options = target.modbus
    if isinstance(options, ModbusTcpOptions):
        options = dataclasses.replace(options, in_flight=run.in_flight, connections=run.connections)
    elif isinstance(options, ModbusUdpOptions):
        options = dataclasses.replace(options, in_flight=run.in_flight)
    here = dataclasses.replace(target, options=options)
    async with Asker(here, options.unit, Pace(FAST)) as asker:
        try:
            await asker.connect()
        except FieldBusError as error:
            run.faults.append(error.what)
            return run
        began = time.monotonic()

        async def one() -> None:
            while not run.faults and time.monotonic() - began < seconds:
                sent = time.monotonic()
                answer = await asker.read(address.area, address.offset, block)
                if isinstance(answer, bytes):
                    run.trips_ms.append((time.monotonic() - sent) * 1e3)
                elif isinstance(answer, Refused):
                    run.refused += 1
                    run.faults.append(f"exception {answer.code}, {answer.what}")
                else:
                    run.faults.append(answer.what)

        async with asyncio.TaskGroup() as group:
            for _ in range(run.in_flight * run.connections):
                group.create_task(one())
        run.seconds = time.monotonic() - began
    return run


async def _by_groups(target: Target, seconds: float, progress: Progress) -> Result:
    """Reads of the tags named, one after the other: all that a driver without single requests can be asked."""
    run = Run(1, 1)
    progress(f"{len(target.tags)} tags")
    async with opened(target, target.tags) as driver:
        began = time.monotonic()
        while time.monotonic() - began < seconds:
            for number in range(len(driver.groups)):
                sent = time.monotonic()
                await driver.read(number, target.timeout_s)
                run.trips_ms.append((time.monotonic() - sent) * 1e3)
        run.seconds = time.monotonic() - began
    return Result([run])


def show(target: Target, result: Result, *, as_json: bool) -> bool:
    """Print it. Whether there is something to recommend."""
    advice = result.advice()
    if as_json:
        for run in result.runs:
            console.emit(run.as_json())
        console.emit({"block": result.block, "one_more": result.block_end, "recommended": advice})
        return bool(advice)
    grid = Table(box=None, pad_edge=False, header_style=QUIET)
    for name in ("connections", "in flight", "requests/s", "p50 ms", "p99 ms", "max ms"):
        grid.add_column(name, justify="right", no_wrap=True)
    grid.add_column("", overflow="fold")
    for run in result.runs:
        figures = [f"{run.rate:.0f}", *(f"{run.part(share):.2f}" for share in (0.5, 0.99, 1.0))]
        fault = Text(run.faults[0], style="bold red") if run.faults else Text("")
        grid.add_row(str(run.connections), str(run.in_flight), *(figures if run.trips_ms else ["–"] * 4), fault)
    console.console().print(grid)
    if result.block:
        more = f"; to one more: {result.block_end}" if result.block_end else ", the most that the protocol allows"
        print(f"largest block: {result.block} at {target.tags[0].address}{more}")
    if not advice:
        console.say("nothing to recommend: no setting was answered without a fault")
        return False
    print("for line.yaml (the smallest setting with 90 % of the best throughput, four times the slowest answer):")
    for key, value in advice.items():
        print(f"    {key}: {value}")
    if "illegal data value" in result.block_end:
        print(f"    max_registers: {result.block}" if result.block <= 125 else f"    max_bits: {result.block}")
    return True
