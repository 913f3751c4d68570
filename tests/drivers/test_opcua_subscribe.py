"""Subscriptions: nothing missed unreported, no value younger than it says, no silence taken for life."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import pytest
from asyncua import ua
from asyncua.common.utils import ServiceError
from asyncua.server.internal_session import InternalSession
from asyncua.server.internal_subscription import InternalSubscription
from asyncua.server.monitored_item_service import MonitoredItemService
from asyncua.server.uaprocessor import UaProcessor
from opcua_plc import URI, Proxy, UaPlc

from drivers.opcua import OpcUaDriver
from drivers.options import OpcUaOptions
from drivers.port import DataType, LinkDown, OpcUaAddress, Outcome, Reading, Tag

pytestmark = [pytest.mark.wire, pytest.mark.usefixtures("no_leaks")]
PERIOD = 0.1
T = 2.0
S = 1_000_000_000


def node(name: str, kind: DataType, scan_class: str = "fast") -> Tag:
    address = OpcUaAddress(f"nsu={URI};s=PLC.{name}")
    return Tag(name=f"plc.{name.lower()}", address=address, type=kind, writable=True, scan_class=scan_class)


TAGS = [
    node("Speed", DataType.REAL),
    node("Count", DataType.UDINT),
    node("Run", DataType.BOOL),
    node("Job", DataType.STRING),
    node("Total", DataType.ULINT, "slow"),
]
GOOD = (1.5, 7, False, "L1")


@pytest.fixture
async def proxy(ua_plc: UaPlc) -> AsyncIterator[Proxy]:
    await ua_plc.reset()
    proxy = Proxy(ua_plc.port)
    await proxy.start()
    yield proxy
    await proxy.stop()


def driver_on(port: int, reading: Any = "subscribe", tags: list[Tag] | None = None, **periods: float) -> OpcUaDriver:
    options = OpcUaOptions(
        endpoint=f"opc.tcp://127.0.0.1:{port}", reading=reading, periods_s={"fast": PERIOD, "slow": 0.4, **periods}
    )
    return OpcUaDriver("inspect", TAGS if tags is None else tags, options)


@pytest.fixture
async def driver(proxy: Proxy) -> AsyncIterator[OpcUaDriver]:
    driver = driver_on(proxy.port)
    await driver.connect(5.0)
    yield driver
    await driver.close()


async def until(
    driver: OpcUaDriver, good: Callable[[Reading], bool], group: int = 0, seconds: float = 3.0
) -> list[Reading]:
    """Read every few ms until a reading is as wanted; all of them."""
    readings: list[Reading] = []
    async with asyncio.timeout(seconds):
        while not readings or not good(readings[-1]):
            await asyncio.sleep(0.005)
            readings.append(await driver.read(group, T))
    return readings


async def settled(driver: OpcUaDriver) -> None:
    """Until what is read comes from the subscription."""
    first = await driver.read(0, T)
    await until(driver, lambda reading: reading.stamp_ns > first.stamp_ns)


async def lost(call: Callable[[], Awaitable[object]], seconds: float = 3.0) -> LinkDown:
    async with asyncio.timeout(seconds):
        while True:
            try:
                await call()
            except LinkDown as exc:
                return exc
            await asyncio.sleep(0.01)


async def test_changes_arrive_without_being_asked_for(driver: OpcUaDriver, ua_plc: UaPlc, sent: list[str]) -> None:
    assert (await driver.read(0, T)).values == GOOD, "the first reading is a Read of everything"
    await settled(driver)
    sent.clear()
    before = time.monotonic_ns()
    await ua_plc.put("Count", ua.DataValue(ua.Variant(8, ua.VariantType.UInt32)))
    await ua_plc.put("Job", "L2")
    readings = await until(driver, lambda r: r.values == (1.5, 8, False, "L2"))
    assert time.monotonic_ns() - before < 10 * PERIOD * S
    assert set(sent) <= {"Publish"}, "the state of the server may be read once a second, but not within this time"
    assert not readings[-1].bad
    again = await driver.read(0, T)
    assert again.values is readings[-1].values
    assert again.sources is readings[-1].sources
    source = again.sources[3]
    assert source is not None
    assert abs(time.time_ns() - source) < 2 * S
    await until(driver, lambda r: r.values == (2**40,), group=1)


async def test_the_age_stays_within_two_periods_and_the_stamp_never_goes_back(driver: OpcUaDriver) -> None:
    await settled(driver)
    end = time.monotonic() + 10 * PERIOD
    stamp, ages = 0, []
    while time.monotonic() < end:
        reading = await driver.read(0, T)
        ages.append((time.monotonic_ns() - reading.stamp_ns) / S)
        assert reading.stamp_ns >= stamp
        stamp = reading.stamp_ns
        await asyncio.sleep(0.01)
    assert sorted(ages)[len(ages) // 2] < 2 * PERIOD, "the median: a busy machine may be late now and then"


async def test_what_lay_in_the_network_is_as_old_as_it_is(driver: OpcUaDriver, proxy: Proxy, ua_plc: UaPlc) -> None:
    """Notifications made before a change arrive after it: their values must not be stamped as newer than it."""
    await settled(driver)
    proxy.flowing.clear()
    await asyncio.sleep(2 * PERIOD)
    changed_ns = time.monotonic_ns()
    await ua_plc.put("Count", ua.DataValue(ua.Variant(9, ua.VariantType.UInt32)))
    await asyncio.sleep(3 * PERIOD)
    proxy.flowing.set()
    proven = set()
    async with asyncio.timeout(2.0):
        while (reading := await driver.read(0, T)).values[1] != 9:  # every turn of the loop, to see what comes first
            proven.add(reading.stamp_ns)
    assert len(proven) >= 2, "what lay in the network was seen"
    assert max(proven) <= changed_ns


async def test_a_slow_network_delays_but_does_not_stop(proxy: Proxy, ua_plc: UaPlc) -> None:
    """A round trip as long as a period, and two subscriptions that share the publish requests."""
    proxy.delay_s = PERIOD
    driver = driver_on(proxy.port)
    await driver.connect(10.0)
    for count in (31, 32):
        await ua_plc.put("Count", ua.DataValue(ua.Variant(count, ua.VariantType.UInt32)))
        await ua_plc.put("Total", ua.DataValue(ua.Variant(count, ua.VariantType.UInt64)))
        await until(driver, lambda r, count=count: r.values[1] == count)  # type: ignore[misc]
        await until(driver, lambda r, count=count: r.values == (count,), group=1)  # type: ignore[misc]
    reading = await driver.read(0, T)
    assert time.monotonic_ns() - reading.stamp_ns < 10 * PERIOD * S
    await driver.close()


async def test_a_silent_subscription_is_a_lost_link(driver: OpcUaDriver, proxy: Proxy) -> None:
    await settled(driver)
    proxy.swallow_down = True
    start = time.monotonic()
    exc = await lost(lambda: driver.read(0, 0.3))
    assert time.monotonic() - start < 1.0
    assert exc.timed_out
    assert "silent" in str(exc) or "no answer" in str(exc)


@pytest.mark.parametrize("gap_s", [0.05, 0.3])
async def test_two_resets_leave_no_dead_subscription(
    driver: OpcUaDriver, proxy: Proxy, ua_plc: UaPlc, gap_s: float
) -> None:
    """What kills asyncua's own subscriptions for good."""
    for count in (100, 200):
        proxy.reset()
        with pytest.raises(LinkDown):
            async with asyncio.timeout(1.0):
                while True:
                    await driver.read(0, T)
                    await asyncio.sleep(0.01)
        await driver.connect(5.0)
        await asyncio.sleep(gap_s)
        await ua_plc.put("Count", ua.DataValue(ua.Variant(count, ua.VariantType.UInt32)))
        await until(driver, lambda r, count=count: r.values[1] == count)  # type: ignore[misc]
    await settled(driver)
    await ua_plc.put("Count", ua.DataValue(ua.Variant(300, ua.VariantType.UInt32)))
    await until(driver, lambda r: r.values[1] == 300)


async def test_a_change_while_disconnected_is_in_the_first_reading(
    driver: OpcUaDriver, proxy: Proxy, ua_plc: UaPlc
) -> None:
    await settled(driver)
    await proxy.stop()
    await lost(lambda: driver.read(0, T))
    await ua_plc.put("Count", ua.DataValue(ua.Variant(55, ua.VariantType.UInt32)))
    await proxy.start()
    await driver.connect(5.0)
    assert (await driver.read(0, T)).values[1] == 55


async def test_nothing_is_left_on_the_server(proxy: Proxy, ua_plc: UaPlc) -> None:
    subscriptions = ua_plc.server.iserver.subscription_service.subscriptions
    before = set(subscriptions)
    driver = driver_on(proxy.port)
    await driver.connect(5.0)
    await settled(driver)
    mine = set(subscriptions) - before
    assert len(mine) == 2
    await driver.close()
    await asyncio.sleep(0.05)
    assert not mine & set(subscriptions)


# --- messages that are lost


@pytest.fixture
def lose(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Put ``keep`` or ``forget`` in: the server loses the next data message, and has it for Republish, or not.

    To be asked for before the driver: a subscription keeps the function that it was made with.
    """
    orders: list[str] = []
    forward = UaProcessor.forward_publish_response

    async def spy(self: UaProcessor, result: ua.PublishResult, request: Any) -> None:
        if orders and result.NotificationMessage.NotificationData:
            if orders.pop(0) == "forget":
                subs = self.iserver.subscription_service.subscriptions
                subs[result.SubscriptionId]._not_acknowledged_results.clear()
            self._publish_requests.appendleft(request)  # only the message is lost, the request is as if never used
            return
        await forward(self, result, request)

    monkeypatch.setattr(UaProcessor, "forward_publish_response", spy)
    yield orders


async def test_a_lost_message_is_fetched_again(
    lose: list[str], driver: OpcUaDriver, ua_plc: UaPlc, sent: list[str]
) -> None:
    await settled(driver)
    sent.clear()
    lose.append("keep")
    await ua_plc.put("Count", ua.DataValue(ua.Variant(10, ua.VariantType.UInt32)))
    await until(driver, lambda r: r.values[1] == 10)
    assert not lose
    assert sent.count("Republish") == 1
    assert driver.stats().missed == 0


async def test_order_is_kept_while_a_lost_message_is_fetched(
    lose: list[str], driver: OpcUaDriver, ua_plc: UaPlc
) -> None:
    """The message after the lost one is newer and must win."""
    await settled(driver)
    lose.append("keep")
    await ua_plc.put("Count", ua.DataValue(ua.Variant(10, ua.VariantType.UInt32)))
    async with asyncio.timeout(2.0):
        while lose:  # noqa: ASYNC110 - the server is in another thread
            await asyncio.sleep(0.005)
    await ua_plc.put("Count", ua.DataValue(ua.Variant(11, ua.VariantType.UInt32)))
    await until(driver, lambda r: r.values[1] == 11)
    await asyncio.sleep(3 * PERIOD)
    assert (await driver.read(0, T)).values[1] == 11


async def test_a_message_that_is_gone_is_counted_and_read_anew(
    lose: list[str], driver: OpcUaDriver, ua_plc: UaPlc, sent: list[str]
) -> None:
    await settled(driver)
    sent.clear()
    lose.append("forget")
    await ua_plc.put("Count", ua.DataValue(ua.Variant(12, ua.VariantType.UInt32)))
    await until(driver, lambda r: r.values[1] == 12)
    assert driver.stats().missed == 1
    assert "Read" in sent
    await asyncio.sleep(4 * PERIOD)
    assert (await driver.read(0, T)).values[1] == 12, "the lost change is in no later notification"


async def test_an_overflow_is_counted_and_read_anew(driver: OpcUaDriver, ua_plc: UaPlc, sent: list[str]) -> None:
    await settled(driver)
    sent.clear()
    overflow = ua.StatusCode(ua.UInt32(0x0480))
    await ua_plc.put("Count", ua.DataValue(ua.Variant(13, ua.VariantType.UInt32), StatusCode=overflow))
    await until(driver, lambda r: r.values[1] == 13)
    assert driver.stats().missed == 1
    await driver.read(0, T)
    assert "Read" in sent


async def test_the_end_of_a_subscription_is_a_lost_link(driver: OpcUaDriver, ua_plc: UaPlc, sent: list[str]) -> None:
    await settled(driver)
    subs = ua_plc.server.iserver.subscription_service.subscriptions

    async def end() -> None:
        for sub in subs.values():
            await sub.enqueue_statuschange(ua.StatusCode("BadTimeout"))

    await ua_plc.ado(end())
    exc = await lost(lambda: driver.read(0, T))
    assert "BadTimeout" in str(exc)
    assert sent[-1] == "CloseSession", "the connection is sound: take leave of the server"


async def test_deleted_subscriptions_are_a_lost_link(driver: OpcUaDriver, ua_plc: UaPlc) -> None:
    await settled(driver)
    service = ua_plc.server.iserver.subscription_service
    await ua_plc.ado(service.delete_subscriptions(list(service.subscriptions)))
    await lost(lambda: driver.read(0, 0.2))
    await driver.connect(5.0)
    await settled(driver)


# --- what the server does not let be monitored


@pytest.fixture
def refuse_count(monkeypatch: pytest.MonkeyPatch) -> None:
    create = MonitoredItemService._create_data_change_monitored_item

    async def spy(self: Any, params: Any) -> Any:
        if "Count" in str(params.ItemToMonitor.NodeId.Identifier):
            result = ua.MonitoredItemCreateResult()
            result.StatusCode = ua.StatusCode("BadFilterNotAllowed")
            return result
        return await create(self, params)

    monkeypatch.setattr(MonitoredItemService, "_create_data_change_monitored_item", spy)


@pytest.mark.usefixtures("refuse_count")
async def test_auto_polls_what_is_not_monitored(proxy: Proxy, ua_plc: UaPlc, sent: list[str]) -> None:
    driver = driver_on(proxy.port, "auto")
    await driver.connect(5.0)
    await settled(driver)
    sent.clear()
    await ua_plc.put("Count", ua.DataValue(ua.Variant(21, ua.VariantType.UInt32)))
    assert (await driver.read(0, T)).values == (1.5, 21, False, "L1"), "read, not waited for"
    assert "Read" in sent
    await ua_plc.put("Run", True)
    await until(driver, lambda r: r.values == (1.5, 21, True, "L1"))
    await driver.close()


@pytest.mark.usefixtures("refuse_count")
async def test_subscribe_reports_what_is_not_monitored(proxy: Proxy) -> None:
    driver = driver_on(proxy.port, "subscribe")
    await driver.connect(5.0)
    for reading in [await driver.read(0, T), *await until(driver, lambda r: r.values[0] == 1.5)]:
        assert reading.values == (1.5, None, False, "L1")
        assert "not monitored: BadFilterNotAllowed" in reading.bad[1]
        assert "PLC.Count" in reading.bad[1]
    await driver.close()


async def test_a_server_that_publishes_too_slowly_is_polled_or_refused(
    proxy: Proxy, ua_plc: UaPlc, monkeypatch: pytest.MonkeyPatch, sent: list[str]
) -> None:
    init = InternalSubscription.__init__

    def slow(self: Any, data: Any, *args: Any, **more: Any) -> None:
        data.RevisedPublishingInterval = max(data.RevisedPublishingInterval, 150.0)
        init(self, data, *args, **more)

    monkeypatch.setattr(InternalSubscription, "__init__", slow)
    driver = driver_on(proxy.port, "auto")
    await driver.connect(5.0)
    sent.clear()
    assert (await driver.read(0, T)).values == GOOD
    assert (await driver.read(0, T)).values == GOOD
    assert sent.count("Read") == 2
    await until(driver, lambda r: r.values == (2**40,), group=1)
    await driver.close()
    driver = driver_on(proxy.port, "subscribe")
    with pytest.raises(LinkDown, match=r"scan class fast: the server publishes every 0\.15 s"):
        await driver.connect(5.0)
    await driver.close()


# --- the rest of the port


async def test_writes_are_verified_by_reading_and_go_on_beside(driver: OpcUaDriver, ua_plc: UaPlc) -> None:
    await settled(driver)
    got, _ = await asyncio.gather(driver.write("plc.count", 77, T), driver.read(0, T))
    assert got.outcome is Outcome.VERIFIED
    assert await ua_plc.get("Count") == 77
    await until(driver, lambda r: r.values[1] == 77)


async def test_a_reading_never_goes_back_behind_a_write(driver: OpcUaDriver, ua_plc: UaPlc) -> None:
    """A write that was confirmed and then seems undone would be taken for a change by the PLC."""
    await settled(driver)
    for count in range(20, 30):
        assert (await driver.write("plc.count", count, T)).outcome is Outcome.VERIFIED
        for _ in range(10):
            assert (await driver.read(0, T)).values[1] == count
            await asyncio.sleep(0.005)


async def test_after_an_unknown_write_the_plc_is_asked(
    driver: OpcUaDriver, ua_plc: UaPlc, sent: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    await settled(driver)

    write = InternalSession.write

    async def fail(session: InternalSession, params: Any) -> Any:
        if params.NodesToWrite[0].NodeId.NamespaceIndex == 0:  # a server's own clock, perhaps another server's
            return await write(session, params)
        raise ServiceError(ua.StatusCodes.BadInternalError)

    monkeypatch.setattr(InternalSession, "write", fail)
    assert (await driver.write("plc.count", 5, T)).outcome is Outcome.UNKNOWN
    sent.clear()
    now = time.monotonic_ns()
    reading = await driver.read(0, T)
    assert "Read" in sent
    assert reading.stamp_ns >= now
    assert reading.values[1] == 7


@pytest.mark.parametrize(("state", "text"), [(1, "Failed"), (3, "Suspended"), (4, "Shutdown")])
async def test_a_server_that_does_not_run_is_a_lost_link(proxy: Proxy, ua_plc: UaPlc, state: int, text: str) -> None:
    node_ = ua_plc.server.get_node(ua.NodeId(ua.ObjectIds.Server_ServerStatus_State))
    driver = driver_on(proxy.port)
    await driver.connect(5.0)
    await settled(driver)
    await ua_plc.ado(node_.write_value(state, ua.VariantType.Int32))
    try:
        exc = await lost(lambda: driver.read(0, T))
        assert f"the server is in state {text}" in str(exc)
        with pytest.raises(LinkDown, match=text):
            await driver.connect(5.0)
    finally:
        await ua_plc.ado(node_.write_value(0, ua.VariantType.Int32))
        await driver.close()


async def test_cancelled_read_and_connect_leave_nothing(proxy: Proxy) -> None:
    driver = driver_on(proxy.port)
    for turns in (1, 3, 10, 30):
        for call in (lambda: driver.connect(5.0), lambda: driver.read(0, T)):
            task = asyncio.ensure_future(call())
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        await driver.close()
    async with asyncio.timeout(1.0):
        while proxy.pairs:  # noqa: ASYNC110 - the other end knows of no event
            await asyncio.sleep(0.005)
    await driver.connect(5.0)
    await settled(driver)
    await driver.close()
