"""The OPC UA measurement. What exactly is measured is written in docs/bench.md."""

from __future__ import annotations

import asyncio
import gc
import logging
import sys
import time
from pathlib import Path

from asyncua import Client, ua

from bench.opcua_server import KINDS, URI, value
from bench.peers.build import Peer
from bench.ratio import Row, in_turns, median
from bench.setting import Setting
from drivers.factory import make_driver
from drivers.options import OpcUaOptions
from drivers.port import DataType, OpcUaAddress, Tag, Value

NODES = 1000
ROOT = Path(__file__).resolve().parent.parent
TYPES = {
    ua.VariantType.Boolean: DataType.BOOL,
    ua.VariantType.Int16: DataType.INT,
    ua.VariantType.UInt16: DataType.UINT,
    ua.VariantType.Int32: DataType.DINT,
    ua.VariantType.UInt32: DataType.UDINT,
    ua.VariantType.Float: DataType.REAL,
    ua.VariantType.Double: DataType.LREAL,
}
cpu = time.process_time


def tags() -> list[Tag]:
    """One tag per node."""
    return [
        Tag(name=f"n.{n}", address=OpcUaAddress(f"nsu={URI};s=n{n}"), type=TYPES[KINDS[n % len(KINDS)]])
        for n in range(NODES)
    ]


def check(values: list[Value | None], turn: int) -> None:
    """Whether these are the values of the turn."""
    assert values == [value(n, turn) for n in range(NODES)], f"not the values of turn {turn}"


async def read_1000(setting: Setting) -> list[Row]:
    """1,000 nodes whose values change before every read, by our driver and by the stock client."""
    logging.getLogger("asyncua").setLevel(logging.ERROR)
    reads = 4 if setting.quick else 8
    command = [sys.executable, "-m", "bench.opcua_server", str(NODES)]
    with Peer(command, cwd=ROOT, core=setting.server_core) as server:
        endpoint = f"opc.tcp://127.0.0.1:{server.port()}"
        driver = make_driver("ua", OpcUaOptions(endpoint=endpoint, reading="poll", periods_s={"fast": 1.0}), tags())
        client = Client(endpoint, timeout=10)
        turn = 0

        async def change() -> None:
            nonlocal turn
            await asyncio.to_thread(server.ask, "next")
            turn += 1

        async def ours() -> float:
            spent = 0.0
            for _ in range(reads):
                await change()
                start = cpu()
                reading = await driver.read(0, 5.0)
                spent += cpu() - start
                assert not reading.bad, reading.bad
                check(list(reading.values), turn)
            return spent / reads

        async def stock() -> float:
            spent = 0.0
            for _ in range(reads):
                await change()
                start = cpu()
                answers = await client.uaclient.read(wanted)
                values = [answer.Value.Value for answer in answers]
                spent += cpu() - start
                check(values, turn)
            return spent / reads

        await driver.connect(10.0)
        await client.connect()
        try:
            namespace = await client.get_namespace_index(URI)
            # What read_values does for each call is done once here: the client is given its best.
            wanted = ua.ReadParameters(
                NodesToRead=[
                    ua.ReadValueId(NodeId=ua.NodeId(f"n{n}", namespace), AttributeId=ua.AttributeIds.Value)
                    for n in range(NODES)
                ]
            )
            gc.collect()
            times, ratio = await in_turns(setting.rounds, ours, stock)
        finally:
            await client.disconnect()
            await driver.close()
    mine, theirs = (f"{median(side) * 1e3:.2f} ms" for side in times)
    return [Row("opcua_read_1000_vs_asyncua", "OPC UA: read 1,000 nodes", ratio[0], "≤ 0.5", "0.2", mine, theirs)]
