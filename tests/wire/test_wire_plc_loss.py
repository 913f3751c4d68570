"""Each of the three PLCs loses its power in the middle of production, on real sockets and a real serial line."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from wire_rig import STATIONS, Rig, rig

pytestmark = pytest.mark.wire
PLCS = ("wet", "dry", "inspect")


async def read_rates(line: Rig, plcs: list[str], seconds: float) -> dict[str, float]:
    """Requests per second to each PLC, as its link counts them (writes of the life sign among them)."""
    loop = asyncio.get_running_loop()
    begin, before = loop.time(), {p: line.value(f"plcs.{p}.requests") for p in plcs}
    await asyncio.sleep(seconds)
    return {p: (line.value(f"plcs.{p}.requests") - before[p]) / (loop.time() - begin) for p in plcs}


def bad_tags(line: Rig, plcs: list[str]) -> list[str]:
    names = tuple(f"stations.{n}.tags." for n, plc in STATIONS.items() if plc in plcs)
    return [path for path in line.north.bad if path.startswith(names)]


@pytest.mark.parametrize("plc", PLCS)
async def test_a_plc_loses_power_and_comes_back(plc: str, tmp_path: Path) -> None:
    mine = [name for name, owner in STATIONS.items() if owner == plc]
    others = [name for name in PLCS if name != plc]
    async with rig(tmp_path) as line:
        await line.run_controller()
        await line.bring_up(1)
        usual = await read_rates(line, others, 1.5)

        await line.plant.kill(plc)
        await line.line_is("Held", 10)
        assert {line.state_of(name) for name in mine} == {"Aborted"}
        assert any(name in line.value("line.stop_reason") for name in mine)
        assert f"PLC {plc} " in line.value("line.alarm_list")
        assert line.value(f"plcs.{plc}.up") is False
        rates, moving = await asyncio.gather(read_rates(line, others, 1.5), line.moving(1.5))
        assert not moving
        assert bad_tags(line, others) == []
        for name in others:
            assert rates[name] == pytest.approx(usual[name], rel=0.15), (rates, usual)
        accepted, reason = await line.order("line", "unhold")
        assert not accepted
        assert any(name in reason for name in mine)

        await line.plant.restart(plc)
        await line.until(lambda: bool(line.value(f"plcs.{plc}.up")), 10, f"{plc} connected again")
        assert not await line.moving()
        assert {line.state_of(name) for name in mine} == {"Aborted"}, "it starts nothing by itself"
        await line.recover(*mine)
        await line.must("line", "unhold")
        await line.line_is("Execute")
        await line.produce(4)
        counts = await line.hold_and_compare()
        assert counts["infeed"] >= 6
        assert line.value("line.good") == counts["good"]
