"""A whole line on the wire: the plant's PLCs and the controller as processes of their own, on loopback alone.

The plant is ``linewright hil serve``, the controller ``linewright run``; what a test knows of them comes through
the north port, the bench's control socket and the record. All of it lies in one folder and ends with the test.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import signal
import socket
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from controller.app import make_drivers, read_endpoints
from controller.build import kind_infos
from controller.cli.processes import Child, Children
from controller.config.load import load
from controller.north.client import NorthClient, NorthClosed
from controller.north.frames import Arg
from controller.runtime.clock import SystemClock
from controller.runtime.journal import verify
from drivers.port import Value
from hil.bench import line_folder
from hil.wire import ControlClient

STATIONS = {"infeed": "wet", "filler": "wet", "capper": "dry", "labeler": "dry", "checkweigher": "inspect",
            "packer": "wet"}  # fmt: skip
MACHINES = [name for name in STATIONS if name != "checkweigher"]
COLUMNS = {"infeed": "infeed_count", "good": "good_count", "in_process": "in_process"}
UP_LIMIT_S = 30.0
RATE = 2
"""Plant seconds per second: a bottle then passes the line in eight. The PLCs' watchdogs are as much shorter."""
LOOPBACK = re.compile(r"127\.0\.0\.1$")


def free_endpoint() -> str:
    """An OPC UA endpoint on a loopback port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"opc.tcp://127.0.0.1:{probe.getsockname()[1]}"


@dataclass
class Rig:
    """The processes of one line, and the connections to them."""

    folder: Path
    children: Children
    line: Path
    plant: ControlClient = field(init=False)
    controller: Child = field(init=False)
    _north: NorthClient | None = None
    _stack: contextlib.AsyncExitStack = field(default_factory=contextlib.AsyncExitStack)
    _runs: int = 0

    # ---- processes

    async def serve_plant(self) -> None:
        """Start the plant; on return its servers listen."""
        endpoints, control = self.folder / "endpoints.json", self.folder / "hil.sock"
        argv = [
            "hil",
            "serve",
            "bottling",
            "--seed=3",
            f"--rate={RATE}",
            f"--endpoints={endpoints}",
            f"--control={control}",
        ]
        child = await self.children.start("plant", argv, stop_s=4)
        await self.eventually(lambda: endpoints.exists() or child.process.returncode is not None, "the plant listens")
        for plc in (await asyncio.to_thread(endpoints.read_text)).split('"'):
            assert not re.match(r"\d+\.\d+\.\d+\.\d+$", plc) or LOOPBACK.match(plc), "loopback only"
        self.plant = await self._stack.enter_async_context(ControlClient(control))

    async def run_controller(self, opcua: str = "off", stop_limit_s: float = 20) -> None:
        """Start the controller on the plant's endpoints, and connect to its north port."""
        self._runs += 1
        north = self.folder / "north.sock"
        self.controller = await self.children.start(
            f"controller{self._runs}",
            ["run", str(self.line), f"--endpoints={self.folder / 'endpoints.json'}", f"--state-dir={self.state}",
             f"--socket={north}", f"--opcua={opcua}", f"--stop-limit={stop_limit_s:g}"],
            stop_s=10,
        )  # fmt: skip
        deadline = time.monotonic() + UP_LIMIT_S
        while True:
            try:
                self._north = await self._stack.enter_async_context(NorthClient(north))
            except NorthClosed:
                assert self.controller.process.returncode is None, self.children.tails()
                assert time.monotonic() < deadline, self.children.tails()
                await asyncio.sleep(0.05)
            else:
                return

    async def drop(self) -> None:
        """End what still runs at once: an orderly end takes seconds, and has a test of its own."""
        for child in self.children._children:
            if child.process.returncode is None:
                child.process.kill()
                await child.process.wait()

    async def end_controller(self, number: signal.Signals) -> tuple[int, float]:
        """Send the signal; returns exit code and the seconds that it took to end."""
        begin = time.monotonic()
        self.controller.process.send_signal(number)
        async with asyncio.timeout(30):
            code = await self.controller.process.wait()
        return code, time.monotonic() - begin

    @property
    def state(self) -> Path:
        return self.folder / "state"

    @property
    def journal(self) -> Path:
        return self.state / "journal.db"

    def journal_is_sound(self) -> int:
        """The record's hash chain is whole; returns its number of rows."""
        verdict = verify(self.journal)
        assert verdict.fault == ""
        return verdict.rows

    # ---- what is to be seen

    @property
    def north(self) -> NorthClient:
        assert self._north is not None
        return self._north

    def value(self, path: str) -> Any:
        return self.north.values[path]

    def state_of(self, target: str) -> str:
        return str(self.value("line.state_text" if target == "line" else f"stations.{target}.state_text"))

    def states(self) -> dict[str, str]:
        return {name: self.state_of(name) for name in STATIONS}

    def picture(self) -> str:
        try:
            rows = [f"line {self.state_of('line')}: {self.value('line.why_not_start')}"]
            rows += [f"{n} {s}: {self.value(f'stations.{n}.stop_reason')}" for n, s in self.states().items()]
            rows += [str(self.value("line.alarm_list")), str(self.value("line.block"))]
        except (KeyError, AssertionError) as error:
            rows = [repr(error)]
        return "\n".join([*rows, self.children.tails()])

    async def until(self, condition: Callable[[], bool], limit_s: float, what: str) -> None:
        """Until the line shows it."""
        try:
            await self.north.wait_until(condition, limit_s, what)
        except TimeoutError as error:
            raise AssertionError(f"{error}\n{self.picture()}") from None

    async def line_is(self, state: str, limit_s: float = 20) -> None:
        await self.until(lambda: self.state_of("line") == state, limit_s, f"the line {state}")

    async def eventually(self, condition: Callable[[], bool], what: str, limit_s: float = UP_LIMIT_S) -> None:
        """Until something holds of which nobody tells."""
        deadline = time.monotonic() + limit_s
        while not condition():
            assert time.monotonic() < deadline, f"{what}\n{self.children.tails()}"
            await asyncio.sleep(0.02)

    async def moving(self, seconds: float = 0.8) -> bool:
        """Whether any bottle moves from station to station in that time, by the plant's word."""
        before = (await self.plant.truth())["stations"]
        await asyncio.sleep(seconds)
        return bool((await self.plant.truth())["stations"] != before)

    async def counts_agree(self) -> dict[str, int]:
        """The standing line's counts are the plant's, station by station; returns the plant's for the line."""
        truth = await self.plant.truth()

        def agree() -> bool:
            line = {k: self.value(f"line.{k}") for k in ("infeed", "good", "rejected", "in_process")}
            return line == truth["line"] and all(
                self.value(f"stations.{name}.{path}") == truth["stations"][name][column]
                for name in STATIONS
                for column, path in COLUMNS.items()
            )

        await self.until(agree, 10, f"the plant's counts {truth['line']} {truth['stations']}")
        assert (await self.plant.truth())["stations"] == truth["stations"], "the line was not standing"
        row: dict[str, int] = truth["line"]
        assert row["infeed"] == row["good"] + row["rejected"] + row["in_process"]
        return row

    async def read_plcs(self) -> dict[str, Value | None]:
        """Every tag as it stands in its PLC; not while a controller runs, which has the serial port for itself."""
        config = load(self.line, read_endpoints(self.folder / "endpoints.json"), kinds=kind_infos())
        values: dict[str, Value | None] = {}
        for driver in make_drivers(config, SystemClock()).values():
            try:
                await driver.connect(5)
                for number, group in enumerate(driver.groups):
                    reading = await driver.read(number, 2)
                    values |= zip((tag.name for tag in group.tags), reading.values, strict=True)
            finally:
                await driver.close()
        return values

    # ---- people

    async def order(self, target: str, name: str, **args: Arg) -> tuple[bool, str]:
        reply = await self.north.command(target, name, args, user="operator", client="test")
        return reply.accepted, reply.reason

    async def must(self, target: str, name: str, **args: Arg) -> None:
        accepted, reason = await self.order(target, name, **args)
        assert accepted, f"{target} {name}: {reason}\n{self.picture()}"

    async def to_idle(self) -> None:
        """From wherever the line rests, by its own remedies."""
        plcs = ("wet", "dry", "inspect")
        await self.until(lambda: all(self.value(f"plcs.{p}.up") for p in plcs), 20, "every PLC connected")
        await self.until(lambda: bool(self.value("line.recipe")), 20, "a recipe in force")
        if self.state_of("line") == "Aborted":
            await self.must("line", "clear")
            await self.line_is("Stopped")
        await self.must("line", "reset")
        await self.line_is("Idle")

    async def bring_up(self, bottles: int = 4) -> None:
        """To Idle, then Execute, then bottles on the line."""
        await self.to_idle()
        await self.must("line", "start")
        await self.line_is("Execute")
        await self.produce(bottles)

    async def produce(self, bottles: int) -> None:
        """Let so many more bottles in."""
        wanted = self.value("line.infeed") + bottles
        await self.until(lambda: self.value("line.infeed") >= wanted, 20 + 2 * bottles, f"{bottles} bottles more")

    async def recover(self, *stations: str) -> None:
        """Clear and reset them, each by itself."""
        for command, state in (("clear", "Stopped"), ("reset", "Idle")):
            for name in stations:
                await self.must(name, command)
            await self.until(lambda s=state: {self.state_of(n) for n in stations} == {s}, 15,  # type: ignore[misc]
                             f"{stations} {state}")  # fmt: skip

    async def hold_and_compare(self) -> dict[str, int]:
        """Stand the line in order, and compare the books."""
        await self.must("line", "hold")
        await self.line_is("Held")
        await asyncio.sleep(0.5)  # what coasts comes to rest
        return await self.counts_agree()


@contextlib.asynccontextmanager
async def rig(folder: Path) -> AsyncIterator[Rig]:
    """A plant and nothing else yet; everything is ended on exit."""
    async with Children(folder) as children:
        it = Rig(folder, children, line_folder("bottling") / "line.yaml")
        async with it._stack:
            await it.serve_plant()
            try:
                yield it
            finally:
                await it.drop()


__all__ = ["MACHINES", "STATIONS", "Rig", "free_endpoint", "rig"]
