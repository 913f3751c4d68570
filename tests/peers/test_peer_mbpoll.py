"""A foreign client, mbpoll, works our virtual PLCs over TCP and over a serial line."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from hil.plc import VirtualPlc, World
from hil.wire.modbus_rtu import ModbusRtuServer
from hil.wire.modbus_tcp import ModbusTcpServer

pytestmark = [pytest.mark.peer, pytest.mark.wire]
VALUE = re.compile(r"^\[(\d+)\]:\s+(-?[\d.]+)", re.MULTILINE)


class Client:
    """mbpoll, asked once a call. ``order`` is its word for the order of the words in a number of two registers."""

    def __init__(self, program: Path, where: list[str], unit: int, order: list[str]) -> None:
        self._program, self._where, self._unit, self._order = program, where, unit, order

    async def __call__(self, *words: str, unit: int | None = None, fails: bool = False) -> str:
        """Run it; what it printed. ``fails`` says whether it is to end with an error."""
        *options, target = self._where
        command = [*options, "-0", "-1", "-o", "2", "-a", str(unit or self._unit), *words[:-1]]
        values = words[-1].split()  # what is to be written comes behind the target
        process = await asyncio.create_subprocess_exec(
            self._program, *command, target, *values, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
        )
        async with asyncio.timeout(20):
            text = (await process.communicate())[0].decode()
        assert (process.returncode != 0) is fails, f"mbpoll {command} {values}: exit {process.returncode}\n{text}"
        return text

    async def read(self, kind: str, first: int, count: int = 1) -> list[float]:
        """Values from the table ``kind`` (0 coils, 1 discrete inputs, 3 input and 4 holding registers)."""
        order = self._order if ":" in kind else []
        text = await self("-t", kind, "-r", str(first), "-c", str(count), *order, "")
        found = [float(value) for _, value in VALUE.findall(text)]
        assert len(found) == count, text
        return found

    async def write(self, kind: str, first: int, values: str) -> None:
        """Write one value or several."""
        await self("-t", kind, "-r", str(first), *(self._order if ":" in kind else []), values)


@asynccontextmanager
async def tcp(world: World, mbpoll: Path, folder: Path) -> AsyncIterator[tuple[Client, VirtualPlc]]:
    plc = world.plcs["wet"]
    server = ModbusTcpServer(plc, 10, lambda: None, "127.0.0.1", 0)
    await server.start()
    try:
        yield Client(mbpoll, ["-m", "tcp", "-p", str(server.port), server.host], 10, []), plc
    finally:
        await server.stop()


@asynccontextmanager
async def rtu(world: World, mbpoll: Path, folder: Path) -> AsyncIterator[tuple[Client, VirtualPlc]]:
    plc = world.plcs["dry"]
    server = ModbusRtuServer(plc, 17, lambda: None, folder / "dry")
    await server.start()
    try:
        yield Client(mbpoll, ["-m", "rtu", "-b", "19200", "-P", "none", str(server.device)], 17, ["-B"]), plc
    finally:
        await server.stop()


@pytest.fixture(params=[tcp, rtu], ids=["tcp", "rtu"])
async def line(
    request: pytest.FixtureRequest, mbpoll: Path, tmp_path: Path
) -> AsyncIterator[tuple[Client, VirtualPlc, World]]:
    make: Callable[..., object] = request.param
    world = World(seed=1)
    async with make(world, mbpoll, tmp_path) as (client, plc):
        yield client, plc, world


Line = tuple[Client, VirtualPlc, World]


async def test_every_area_is_read_as_the_plc_holds_it(line: Line) -> None:
    client, plc, _ = line
    machine = "infeed" if "infeed.run" in plc.points else "capper"
    names = [f"{machine}.{name}" for name in ("running", "fault", "door_closed", "estop_ok", "motor_ok")]
    assert await client.read("1", 16, 5) == [float(plc.get(name)) for name in names]
    assert await client.read("3", 2) == [1], "the version of the map"
    for value in (0, 70_000, 0x01020304):
        plc.setter(f"{machine}.count_in")(value)
        assert await client.read("3:int", 100) == [value]
    plc.set(f"{machine}.rail_sp", 65.6)
    assert await client.read("4", 101) == [656]
    assert await client.read("0", 16, 2) == [float(plc.get(f"{machine}.{name}")) for name in ("run", "reset")]


async def test_what_it_writes_arrives(line: Line) -> None:
    client, plc, _ = line
    machine, first = ("infeed", "speed_sp") if "infeed.run" in plc.points else ("capper", "torque_sp")
    scale = plc.points[f"{machine}.{first}"].scale
    for state in ("1", "0"):
        await client.write("0", 16, state)
        assert plc.get(f"{machine}.run") is (state == "1")
    await client.write("0", 16, "1 0 1")
    third = "gate" if machine == "infeed" else "feeder"
    assert [plc.get(f"{machine}.{name}") for name in ("run", "reset", third)] == [True, False, True]
    await client.write("4", 100, "123")
    assert plc.get(f"{machine}.{first}") == pytest.approx(123 * scale)
    await client.write("4", 100, "150 702")
    assert plc.get(f"{machine}.{first}") == pytest.approx(150 * scale)
    assert plc.get(f"{machine}.rail_sp") == pytest.approx(70.2)


async def test_it_is_told_what_is_not_there(line: Line) -> None:
    client, plc, _ = line
    before = plc.digest()
    assert "Illegal data address" in await client("-t", "3", "-r", "9000", "-c", "2", "", fails=True)
    assert "Illegal data address" in await client("-t", "4", "-r", "9000", "7", fails=True)
    assert plc.digest() == before


async def test_a_unit_that_is_not_there(line: Line) -> None:
    """A gateway says so at once; on a serial line nobody answers."""
    client, _, _ = line
    text = await client("-t", "3", "-r", "2", "", unit=99, fails=True)
    assert re.search(r"Target device failed to respond|timed out", text), text


async def test_many_questions_at_once(mbpoll: Path, tmp_path: Path) -> None:
    """Eight clients with connections of their own each see the whole truth."""
    async with tcp(World(seed=1), mbpoll, tmp_path) as (client, plc):
        plc.setter("infeed.count_in")(123_456)
        assert await asyncio.gather(*(client.read("3:int", 100) for _ in range(8))) == [[123_456]] * 8
