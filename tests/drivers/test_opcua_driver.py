from __future__ import annotations

import asyncio
import contextlib
import copy
import time
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import pytest
from asyncua import ua
from asyncua.common.connection import SecureConnection
from asyncua.server.internal_session import InternalSession
from opcua_plc import URI, Proxy, UaPlc

from drivers.factory import make_driver
from drivers.opcua import OpcUaDriver
from drivers.opcua.values import resolve
from drivers.options import OpcUaOptions
from drivers.port import DataType, LinkDown, OpcUaAddress, Outcome, Tag

pytestmark = [pytest.mark.wire, pytest.mark.usefixtures("no_leaks")]


def node(name: str, kind: DataType, **more: Any) -> Tag:
    address = OpcUaAddress(more.pop("node", f"nsu={URI};s=PLC.{name}"))
    return Tag(name=f"plc.{name.lower()}", address=address, type=kind, **{"writable": True, **more})


TAGS = [
    node("Speed", DataType.REAL, low=0, high=10, unit="m/s"),
    node("Count", DataType.UDINT),
    node("Rail", DataType.UINT, scale=0.1),
    node("Run", DataType.BOOL, node="ns=3;s=PLC.Run"),
    node("Job", DataType.STRING, length=8),
    node("Total", DataType.ULINT),
    node("Sealed", DataType.UINT),
]
GOOD = (1.5, 7, 6.0, False, "L1", 2**40, 3)
T = 2.0


@pytest.fixture
async def proxy(ua_plc: UaPlc) -> AsyncIterator[Proxy]:
    await ua_plc.reset()
    proxy = Proxy(ua_plc.port)
    await proxy.start()
    yield proxy
    await proxy.stop()


def driver_on(port: int, tags: list[Tag] | None = None, **options: Any) -> OpcUaDriver:
    url = f"opc.tcp://127.0.0.1:{port}"
    driver = make_driver("inspect", OpcUaOptions(endpoint=url, **options), TAGS if tags is None else tags)
    assert isinstance(driver, OpcUaDriver)
    return driver


@pytest.fixture
async def driver(proxy: Proxy) -> AsyncIterator[OpcUaDriver]:
    driver = driver_on(proxy.port)
    await driver.connect(5.0)
    yield driver
    await driver.close()


async def test_one_read_brings_all_types_and_the_same_tuple_again(driver: OpcUaDriver) -> None:
    first = await driver.read(0, T)
    assert first.values == GOOD
    assert [type(v) for v in first.values] == [type(v) for v in GOOD]
    assert not first.bad
    assert (await driver.read(0, T)).values is first.values


async def test_what_is_wrong_with_one_node_spoils_that_tag_only(driver: OpcUaDriver, ua_plc: UaPlc) -> None:
    await ua_plc.put("Speed", ua.DataValue(ua.Variant(float("nan"), ua.VariantType.Float)))
    await ua_plc.put("Rail", ua.DataValue(ua.Variant(None), StatusCode=ua.StatusCode("BadSensorFailure")))
    await ua_plc.put(
        "Count",
        ua.DataValue(ua.Variant(1, ua.VariantType.UInt32), StatusCode=ua.StatusCode("UncertainLastUsableValue")),
    )
    reading = await driver.read(0, T)
    assert reading.values == (None, None, None, False, "L1", 2**40, 3)
    assert {i: r.split(": ")[1] for i, r in reading.bad.items()} == {
        0: "NaN (not a number)",
        1: "UncertainLastUsableValue",
        2: "BadSensorFailure",
    }
    await ua_plc.put("Speed", ua.DataValue(ua.Variant(10.5, ua.VariantType.Float)))
    assert "10.5 m/s is outside 0..10" in (await driver.read(0, T)).bad[0]


async def test_wrong_type_and_missing_node_are_named(proxy: Proxy) -> None:
    driver = driver_on(
        proxy.port, [node("Speed", DataType.LREAL), node("Nothing", DataType.INT), node("Job", DataType.STRING)]
    )
    await driver.connect(5.0)
    reading = await driver.read(0, T)
    assert reading.values == (None, None, "L1")
    assert "the server has Float, the tag says LREAL (Double)" in reading.bad[0]
    assert "BadNodeIdUnknown" in reading.bad[1]
    assert "PLC.Nothing" in reading.bad[1]
    got = await driver.write("plc.speed", 1.0, T)
    assert got.outcome is Outcome.REJECTED
    assert "BadTypeMismatch" in got.reason
    got = await driver.write("plc.nothing", 1, T)
    assert got.outcome is Outcome.REJECTED
    assert "Bad" in got.reason
    await driver.close()


@pytest.mark.parametrize(
    ("tag", "value", "raw"),
    [
        ("speed", 0.1, pytest.approx(0.1, rel=1e-7)),
        ("count", 4_000_000_000, 4_000_000_000),
        ("rail", 33.1, 331),
        ("run", True, True),
        ("job", "é-9", "é-9"),
        ("total", 2**63, 2**63),
    ],
)
async def test_verified_writes(driver: OpcUaDriver, ua_plc: UaPlc, tag: str, value: Any, raw: Any) -> None:
    got = await driver.write(f"plc.{tag}", value, T)
    assert got.outcome is Outcome.VERIFIED, got.reason
    assert got.read_back == pytest.approx(value) if isinstance(value, float) else got.read_back == value
    assert await ua_plc.get(tag.capitalize()) == raw


async def test_refused_writes(driver: OpcUaDriver, ua_plc: UaPlc) -> None:
    got = await driver.write("plc.sealed", 4, T)
    assert got.outcome is Outcome.REJECTED
    assert "BadUserAccessDenied" in got.reason or "BadNotWritable" in got.reason
    for tag, value in (("speed", 11.0), ("speed", float("inf")), ("job", "123456789"), ("run", 1), ("no", 1)):
        assert (await driver.write(f"plc.{tag}", value, T)).outcome is Outcome.REJECTED
    assert await ua_plc.get("Speed") == 1.5


async def test_unknown_namespace_names_the_tag(proxy: Proxy) -> None:
    driver = driver_on(proxy.port, [node("X", DataType.INT, node="nsu=urn:other;s=X")])
    with pytest.raises(LinkDown, match=r"plc\.x: the server has no namespace urn:other"):
        await driver.connect(5.0)
    await driver.close()


def test_node_ids() -> None:
    spaces = ["http://opcfoundation.org/UA/", "urn:a", URI]
    assert resolve(f"nsu={URI};s=PLC.X", spaces) == ua.NodeId("PLC.X", 2)
    assert resolve("ns=2;s=a;b=c", spaces) == ua.NodeId("a;b=c", 2)
    assert resolve("i=2258", spaces) == ua.NodeId(2258, 0)
    assert resolve(f"nsu={URI};i=5", spaces) == ua.NodeId(5, 2)
    with pytest.raises(LookupError, match="urn:b"):
        resolve("nsu=urn:b;s=x", spaces)
    with pytest.raises(ValueError, match="not a node id"):
        driver_on(1, [node("X", DataType.INT, node="nsu=urn:a")])
    with pytest.raises(ValueError, match="not a node id"):
        driver_on(1, [node("X", DataType.INT, node="PLC.X")])


async def test_a_frozen_server_is_a_lost_link_within_the_deadline(driver: OpcUaDriver, ua_plc: UaPlc) -> None:
    ua_plc.freeze(1.0)
    start = time.monotonic()
    got = await driver.write("plc.count", 99, 0.2)
    assert time.monotonic() - start < 0.6
    assert got.outcome is Outcome.UNKNOWN
    assert "no answer within 0.2 s" in got.reason
    with pytest.raises(LinkDown):
        await driver.read(0, 0.2)
    got = await driver.write("plc.count", 98, 0.2)
    assert got.outcome is Outcome.REJECTED, "nothing can have been sent"
    await driver.connect(5.0)
    # The server executes what it had received, which is why the outcome is unknown.
    assert (await driver.read(0, T)).values[1] in (7, 99)


async def test_swallowed_answer_to_a_write_is_unknown_and_executed_once(
    driver: OpcUaDriver, proxy: Proxy, ua_plc: UaPlc
) -> None:
    proxy.swallow_down = True
    got = await driver.write("plc.count", 99, 0.2)
    assert got.outcome is Outcome.UNKNOWN
    assert await ua_plc.get("Count") == 99
    proxy.swallow_down = False
    await driver.connect(5.0)
    assert (await driver.read(0, T)).values[1] == 99


async def test_the_channel_is_renewed_by_the_reads(proxy: Proxy) -> None:
    """Also by a server whose clock is far off: the age of a token is counted here."""
    driver = driver_on(proxy.port, channel_lifetime_s=0.4)
    await driver.connect(5.0)
    until = time.monotonic() + 1.2
    while time.monotonic() < until:
        assert (await driver.read(0, T)).values == GOOD
        await asyncio.sleep(0.02)
    assert proxy.connections == 1
    await driver.close()


async def test_large_groups_are_split_where_the_server_asks_for_it(proxy: Proxy, ua_plc: UaPlc) -> None:
    limit = ua_plc.server.get_node(ua.NodeId(ua.ObjectIds.Server_ServerCapabilities_OperationLimits_MaxNodesPerRead))
    await ua_plc.ado(limit.write_value(3, ua.VariantType.UInt32))
    driver = driver_on(proxy.port)
    try:
        await driver.connect(5.0)
        requests = driver.stats().requests
        assert (await driver.read(0, T)).values == GOOD
        assert driver.stats().requests == requests + 3, "3 + 3 + 1 nodes"
    finally:
        await ua_plc.ado(limit.write_value(0, ua.VariantType.UInt32))
        await driver.close()


async def test_close_takes_leave_of_the_server(proxy: Proxy, ua_plc: UaPlc) -> None:
    """PLCs have few sessions; one that is left open is missing until it times out."""

    def sessions() -> int:
        clients = ua_plc.server.bserver.clients
        return len(clients)

    before = sessions()
    driver = driver_on(proxy.port)
    for _ in range(3):
        await driver.connect(5.0)
        await driver.read(0, T)
        await driver.close()
    await asyncio.sleep(0.05)
    assert sessions() == before


async def test_the_password_is_not_shown() -> None:
    options = OpcUaOptions(endpoint="opc.tcp://127.0.0.1:1", user="lw", password="s3cret")
    assert "s3cret" not in repr(options)


async def test_a_block_is_written_in_order_with_one_request(
    driver: OpcUaDriver, ua_plc: UaPlc, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[Any]] = []
    write = InternalSession.write

    async def spy(self: Any, parameters: Any) -> Any:
        asked.append([item.NodeId.Identifier for item in parameters.NodesToWrite])
        return await write(self, parameters)

    monkeypatch.setattr(InternalSession, "write", spy)
    got = await driver.write_block({"plc.rail": 33.1, "plc.run": True, "plc.job": "B-7", "plc.count": 9}, T)
    assert got.outcome is Outcome.VERIFIED, got.reason
    assert asked == [["PLC.Rail", "PLC.Run", "PLC.Job", "PLC.Count"]]
    assert (await driver.read(0, T)).values == (1.5, 9, pytest.approx(33.1), True, "B-7", 2**40, 3)


async def test_nothing_of_a_block_is_sent_when_one_value_does_not_fit(driver: OpcUaDriver, ua_plc: UaPlc) -> None:
    got = await driver.write_block({"plc.count": 9, "plc.speed": 11.0}, T)
    assert got.outcome is Outcome.REJECTED
    assert "plc.speed" in got.reason
    assert (await driver.read(0, T)).values == GOOD


async def test_a_block_that_was_taken_in_part_is_unknown(driver: OpcUaDriver, ua_plc: UaPlc) -> None:
    """No server promises all or nothing."""
    got = await driver.write_block({"plc.count": 9, "plc.sealed": 4}, T)
    assert got.outcome is Outcome.UNKNOWN
    assert "plc.sealed" in got.reason
    assert await ua_plc.get("Count") == 9


def test_which_blocks_can_be_written() -> None:
    driver = driver_on(1)
    assert driver.block_problem(["plc.count", "plc.job"]) == ""
    assert "plc.nothing" in driver.block_problem(["plc.count", "plc.nothing"])
    assert "twice" in driver.block_problem(["plc.count", "plc.count"])
    assert driver.block_problem([])


async def test_a_block_larger_than_the_server_takes_is_not_sent(proxy: Proxy, ua_plc: UaPlc) -> None:
    limit = ua_plc.server.get_node(ua.NodeId(ua.ObjectIds.Server_ServerCapabilities_OperationLimits_MaxNodesPerWrite))
    await ua_plc.ado(limit.write_value(2, ua.VariantType.UInt32))
    driver = driver_on(proxy.port)
    try:
        await driver.connect(5.0)
        assert "takes 2 values" in driver.block_problem(["plc.count", "plc.job", "plc.run"])
        got = await driver.write_block({"plc.count": 9, "plc.job": "x", "plc.run": True}, T)
        assert got.outcome is Outcome.REJECTED
        assert await ua_plc.get("Count") == 7
    finally:
        await ua_plc.ado(limit.write_value(0, ua.VariantType.UInt32))
        await driver.close()


async def test_a_write_goes_between_the_requests_of_a_read(proxy: Proxy, ua_plc: UaPlc) -> None:
    limit = ua_plc.server.get_node(ua.NodeId(ua.ObjectIds.Server_ServerCapabilities_OperationLimits_MaxNodesPerRead))
    await ua_plc.ado(limit.write_value(2, ua.VariantType.UInt32))
    driver = driver_on(proxy.port)
    try:
        await driver.connect(5.0)
        reading = asyncio.ensure_future(driver.read(0, T))
        await asyncio.sleep(0)
        got = await driver.write("plc.sealed", 3, T)
        assert not reading.done(), "the write did not wait for the read"
        assert got.outcome is Outcome.REJECTED
        assert (await reading).values == GOOD
    finally:
        await ua_plc.ado(limit.write_value(0, ua.VariantType.UInt32))
        await driver.close()


async def test_a_close_ends_what_is_under_way(driver: OpcUaDriver, proxy: Proxy) -> None:
    proxy.flowing.clear()
    reading = asyncio.ensure_future(driver.read(0, T))
    writing = asyncio.ensure_future(driver.write("plc.count", 9, T))
    await asyncio.sleep(0.05)
    await driver.close()
    with pytest.raises(LinkDown):
        await reading
    assert (await writing).outcome is Outcome.UNKNOWN
    proxy.flowing.set()
    await driver.connect(5.0)
    assert (await driver.read(0, T)).values[1] == 9, "it was executed, which is why it is unknown"


async def test_a_late_failure_of_an_old_connection_leaves_the_new_one_alone(driver: OpcUaDriver, proxy: Proxy) -> None:
    proxy.flowing.clear()
    writing = asyncio.ensure_future(driver.write("plc.count", 9, 0.4))
    await asyncio.sleep(0.02)
    await driver.close()
    proxy.flowing.set()
    await driver.connect(5.0)
    assert (await writing).outcome is Outcome.UNKNOWN
    await asyncio.sleep(0.5)
    assert (await driver.read(0, T)).values[0] == 1.5


async def test_an_answer_told_twice_ends_the_connection(driver: OpcUaDriver, proxy: Proxy) -> None:
    proxy.twice = True
    with contextlib.suppress(LinkDown):
        await driver.read(0, T)
    with pytest.raises(LinkDown):
        await driver.read(0, T)
    assert driver.stats().strays >= 1
    await driver.connect(5.0)
    assert (await driver.read(0, T)).values == GOOD


@pytest.mark.parametrize("hours", [-2, 2])
async def test_a_server_whose_clock_is_wrong(proxy: Proxy, monkeypatch: pytest.MonkeyPatch, hours: int) -> None:
    """Renewals while notifications under the old token are on their way; asyncua's own client ends there."""
    honest = SecureConnection.open

    def skewed(self: Any, *args: Any) -> Any:
        result = copy.deepcopy(honest(self, *args))
        result.SecurityToken.CreatedAt += timedelta(hours=hours)
        return result

    monkeypatch.setattr(SecureConnection, "open", skewed)
    driver = driver_on(proxy.port, reading="subscribe", periods_s={"fast": 0.02}, channel_lifetime_s=0.2)
    await driver.connect(5.0)
    until = time.monotonic() + 1.2
    while time.monotonic() < until:
        assert (await driver.read(0, T)).values == GOOD
        await asyncio.sleep(0.005)
    assert proxy.connections == 1
    await driver.close()


async def test_source_times_are_utc(driver: OpcUaDriver, ua_plc: UaPlc) -> None:
    await ua_plc.put("Job", "L7")
    reading = await driver.read(0, T)
    source = reading.sources[4]
    assert source is not None
    assert abs(source - time.time_ns()) < 5_000_000_000


async def test_stats_count_what_was_on_the_wire(driver: OpcUaDriver, proxy: Proxy) -> None:
    before = driver.stats()
    for _ in range(10):
        await driver.read(0, T)
    after = driver.stats()
    assert (after.requests - before.requests, after.answered - before.answered) == (10, 10)
    assert 0 < after.p50_ms <= after.p99_ms
    proxy.swallow_down = True
    with pytest.raises(LinkDown):
        await driver.read(0, 0.1)
    assert driver.stats().timeouts == before.timeouts + 1


def test_what_opc_ua_cannot_hold_is_refused_at_once() -> None:
    with pytest.raises(ValueError, match="BCD"):
        driver_on(1, [node("X", DataType.BCD)])
    with pytest.raises(ValueError, match="mask"):
        driver_on(1, [node("X", DataType.UINT, mask=0xF0)])
    with pytest.raises(ValueError, match="needs a period"):
        driver_on(1, reading="subscribe")
    with pytest.raises(ValueError, match="is no endpoint"):
        driver_on(1, backups=("http://127.0.0.1:1",))


async def test_garbage_instead_of_an_answer(ua_plc: UaPlc) -> None:
    async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n" * 4)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    driver = driver_on(server.sockets[0].getsockname()[1])
    with pytest.raises(LinkDown):
        await driver.connect(1.0)
    await driver.close()
    server.close()
    await server.wait_closed()
