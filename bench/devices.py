"""100 Modbus TCP devices with 100 registers each, polled ten times a second. docs/bench.md says what is measured."""

from __future__ import annotations

import asyncio
import gc
import random
import time
from contextlib import AsyncExitStack

from pymodbus.client import AsyncModbusTcpClient

from bench.modbus import STALE_NS, words
from bench.ratio import Row, in_turns, median
from bench.setting import HOST, Setting
from controller.core.image import InputBuffer, Layout
from controller.runtime.bus import Link, LinkOptions
from controller.runtime.bus_wait import Ticker
from controller.runtime.clock import SystemClock
from drivers.factory import make_driver
from drivers.options import ModbusTcpOptions

DEVICES = 100
REGISTERS = 100
PERIOD_S = 0.1


async def hundred_devices(setting: Setting) -> list[Row]:
    """Links with our drivers into input buffers, against as many stock clients."""
    seconds = 2.0 if setting.quick else 5.0
    async with setting.device(words(REGISTERS)) as device, AsyncExitStack() as stack:
        port = device.port()
        clients = [AsyncModbusTcpClient(HOST, port=port, timeout=5, retries=0) for _ in range(DEVICES)]
        for client in clients:
            stack.callback(client.close)
            assert await client.connect()
        gc.collect()
        times, ratio = await in_turns(
            1 if setting.quick else 2,
            lambda: _ours(port, seconds),
            lambda: _stock(clients, seconds, 0.0),
            lambda: _stock(clients, seconds, PERIOD_S / DEVICES),
            warm_up=0,
        )
    ours, stock, spread = (f"{median(side) * 1e6:.0f} µs/poll" for side in times)
    title = f"{DEVICES} devices × {REGISTERS} registers, 10 Hz"
    return [
        Row("hundred_devices_vs_pymodbus", title, ratio[0], "≤ 0.36", "0.15", ours, stock),
        Row("", "  the same, stock polls spread over the period", ratio[1], "", "", ours, spread),
    ]


async def _stock(clients: list[AsyncModbusTcpClient], seconds: float, apart_s: float) -> float:
    """Processor time per poll of the stock clients, s; ``apart_s`` is between the polls of one and the next.

    When all are due together they cost least: the loop wakes once for all of them.
    """
    loop = asyncio.get_running_loop()
    begin, spent = loop.time(), time.process_time()

    async def poll(client: AsyncModbusTcpClient, number: int) -> int:
        done, due = 0, begin + number * apart_s
        while due < begin + seconds:
            await asyncio.sleep(due - loop.time())
            assert len((await client.read_holding_registers(0, count=REGISTERS)).registers) == REGISTERS
            done, due = done + 1, due + PERIOD_S
        return done

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(poll(client, number)) for number, client in enumerate(clients)]
    return (time.process_time() - spent) / _enough(sum(task.result() for task in tasks), seconds)


async def _ours(port: int, seconds: float) -> float:
    """Processor time per poll of links with drivers, s, from when all are up."""
    tags, links, buffers, ticker = words(REGISTERS), list[Link](), list[InputBuffer](), Ticker()
    for number in range(DEVICES):
        driver = make_driver(f"plc{number}", ModbusTcpOptions(host=HOST, port=port), tags)
        buffers.append(InputBuffer(Layout([(driver.name, driver.groups)], {"fast": STALE_NS})))
        options = LinkOptions(periods_s={"fast": PERIOD_S})
        links.append(Link(driver, buffers[-1], SystemClock(), options, random.Random(number), ticker))
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(link.run()) for link in links]
        async with asyncio.timeout(10):
            while not all(link.stats().up for link in links):  # noqa: ASYNC110 - links tell the scan and nobody else
                await asyncio.sleep(0.05)
        before, spent = sum(link.stats().requests for link in links), time.process_time()
        await asyncio.sleep(seconds)
        spent = time.process_time() - spent
        polls = _enough(sum(link.stats().requests for link in links) - before, seconds)
        assert all(buffer.readings[0] is not None for buffer in buffers)
        for task in tasks:
            task.cancel()
    return spent / polls


def _enough(polls: int, seconds: float) -> int:
    """Polls that were left out must not make a side cheaper unnoticed."""
    assert polls >= 0.8 * DEVICES * seconds / PERIOD_S, f"only {polls} polls in {seconds:g} s"
    return polls
