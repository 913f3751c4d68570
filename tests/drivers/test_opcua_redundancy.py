"""A redundant set of servers: the next after a loss, the healthier of two, never both at once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from asyncua import ua
from opcua_plc import URI, Proxy, UaPlc

from drivers.opcua import OpcUaDriver
from drivers.options import OpcUaOptions
from drivers.port import DataType, LinkDown, OpcUaAddress, Outcome, Tag

pytestmark = [pytest.mark.wire, pytest.mark.usefixtures("no_leaks")]
T = 2.0
TAGS = [Tag(name="plc.count", address=OpcUaAddress(f"nsu={URI};s=PLC.Count"), type=DataType.UDINT, writable=True)]


class Pair:
    """Two servers, each behind its own cable; Count is 1 on the first and 2 on the second."""

    def __init__(self, plcs: tuple[UaPlc, UaPlc]) -> None:
        self.plcs = plcs
        self.proxies = tuple(Proxy(plc.port) for plc in plcs)

    async def start(self) -> None:
        for number, (plc, proxy) in enumerate(zip(self.plcs, self.proxies, strict=True), 1):
            await plc.reset()
            await plc.put("Count", ua.DataValue(ua.Variant(number, ua.VariantType.UInt32)))
            await self.level(number - 1, 255)
            await proxy.start()

    async def stop(self) -> None:
        for proxy in self.proxies:
            await proxy.stop()
        for number in (0, 1):
            await self.level(number, 255)

    async def level(self, number: int, level: int) -> None:
        plc = self.plcs[number]
        node = plc.server.get_node(ua.NodeId(ua.ObjectIds.Server_ServiceLevel))
        await plc.ado(node.write_value(level, ua.VariantType.Byte))

    def driver(self) -> OpcUaDriver:
        first, second = (f"opc.tcp://127.0.0.1:{proxy.port}" for proxy in self.proxies)
        return OpcUaDriver("inspect", TAGS, OpcUaOptions(endpoint=first, backups=(second,)))

    def open(self) -> tuple[int, int]:
        """Connections that each cable carries (two ends each)."""
        first, second = (len(proxy.pairs) // 2 for proxy in self.proxies)
        return first, second


@pytest.fixture
async def pair(ua_plc: UaPlc, secure_ua_plc: UaPlc) -> AsyncIterator[Pair]:
    pair = Pair((ua_plc, secure_ua_plc))
    await pair.start()
    yield pair
    await pair.stop()


async def count(driver: OpcUaDriver) -> object:
    return (await driver.read(0, T)).values[0]


async def test_after_a_loss_the_next_server_and_round_again(pair: Pair) -> None:
    driver = pair.driver()
    await driver.connect(5.0)
    assert await count(driver) == 1
    first = driver.endpoint
    await pair.proxies[0].stop()
    with pytest.raises(LinkDown) as caught:
        await count(driver)
    assert first in str(caught.value), "the report names the server that was lost"
    await driver.connect(5.0)
    assert driver.endpoint != first
    assert await count(driver) == 2
    await pair.proxies[0].start()
    await asyncio.sleep(0.02)
    assert await count(driver) == 2, "no change without a reason"
    assert pair.open() == (0, 1)
    await pair.proxies[1].stop()
    with pytest.raises(LinkDown):
        await count(driver)
    await driver.connect(5.0)
    assert (driver.endpoint, await count(driver)) == (first, 1)
    await driver.close()


async def test_a_server_that_cannot_be_reached_is_passed_over_by_the_next_connect(pair: Pair) -> None:
    await pair.proxies[0].stop()
    driver = pair.driver()
    with pytest.raises(LinkDown):
        await driver.connect(5.0)
    await driver.connect(5.0)
    assert await count(driver) == 2
    await driver.close()


async def test_an_orderly_close_is_no_reason_to_change(pair: Pair) -> None:
    driver = pair.driver()
    for _ in range(2):
        await driver.connect(5.0)
        assert await count(driver) == 1
        await driver.close()


async def test_the_healthier_one_is_preferred(pair: Pair) -> None:
    driver = pair.driver()
    await pair.level(0, 100)
    await driver.connect(5.0)
    assert await count(driver) == 2
    await driver.close()
    await pair.level(1, 90)
    await driver.connect(5.0)
    assert await count(driver) == 1, "both are ill: the better one"
    await driver.close()
    await pair.proxies[1].stop()
    await driver.connect(5.0)
    assert await count(driver) == 1, "an ill one is better than none"
    assert pair.open() == (1, 0)
    await driver.close()


async def test_a_server_without_data_is_left(pair: Pair) -> None:
    driver = pair.driver()
    await driver.connect(5.0)
    assert await count(driver) == 1
    await pair.level(0, 1)
    with pytest.raises(LinkDown, match="service level 1"):
        async with asyncio.timeout(3.0):
            while True:
                await count(driver)
                await asyncio.sleep(0.05)
    await driver.connect(5.0)
    assert await count(driver) == 2
    await driver.close()


async def test_never_two_sessions_and_every_write_goes_to_one(pair: Pair) -> None:
    driver = pair.driver()
    await pair.level(0, 50)
    for number in range(3):
        await driver.connect(5.0)
        async with asyncio.timeout(1.0):
            while sum(pair.open()) != 1:  # noqa: ASYNC110 - the other end knows of no event
                await asyncio.sleep(0.005)
        got = await driver.write("plc.count", 100 + number, T)
        assert got.outcome is Outcome.VERIFIED
        assert await pair.plcs[1].get("Count") == 100 + number
        assert await pair.plcs[0].get("Count") == 1
        await driver.close()
