"""Several requests outstanding, several connections, several units behind one gateway: on real sockets."""

from __future__ import annotations

import asyncio
import random
import socket
import time
from collections.abc import AsyncIterator, Sequence

import pytest
from mbap_peer import Gateway, HandServer, Seen, frame, registers

from drivers.factory import Links, make_driver
from drivers.modbus import ModbusDriver, pdu
from drivers.modbus.mbap import Connection, MbapWire
from drivers.options import ModbusTcpOptions, ModbusUdpOptions
from drivers.plan import Request
from drivers.port import Area, DataType, DeviceRefused, ExchangeFailed, LinkDown, ModbusAddress, Outcome, Tag

pytestmark = [pytest.mark.wire, pytest.mark.usefixtures("no_leaks")]
T = 0.2


def tags(count: int) -> list[Tag]:
    """One request each."""
    return [
        Tag(
            name=f"a.t{i}",
            address=ModbusAddress(Area.HOLDING_REGISTER, 100 * i),
            type=DataType.UINT,
            writable=True,
        )
        for i in range(count)
    ]


def make(
    port: int, *, requests: int = 4, in_flight: int = 4, connections: int = 1, unit: int = 3, links: Links | None = None
) -> ModbusDriver:
    options = ModbusTcpOptions(host="127.0.0.1", port=port, unit=unit, in_flight=in_flight, connections=connections)
    driver = make_driver(f"plc{unit}", options, tags(requests), links=links)
    assert isinstance(driver, ModbusDriver)
    return driver


def connection(driver: ModbusDriver) -> Connection:
    wire = driver._unit._bus.wire
    assert isinstance(wire, MbapWire)
    return wire._connections[0]


@pytest.fixture
async def server() -> AsyncIterator[HandServer]:
    async with HandServer() as server:
        yield server


@pytest.fixture
async def driver(server: HandServer) -> AsyncIterator[ModbusDriver]:
    driver = make(server.port)
    await driver.connect(1.0)
    yield driver
    await driver.close()


def expected(count: int = 4) -> tuple[int, ...]:
    return tuple(100 * i for i in range(count))


# --- answers


async def test_answers_in_any_order(server: HandServer, driver: ModbusDriver) -> None:
    for order in ([3, 2, 1, 0], [1, 3, 0, 2]):
        done = len(server.requests)
        task = asyncio.create_task(driver.read(0, 2.0))
        seen = (await server.until(done + 4))[done:]
        for i in order:
            server.say(registers(seen[i]))
        assert (await task).values == expected()


async def test_requests_started_together_arrive_together_and_never_more_than_allowed(server: HandServer) -> None:
    driver = make(server.port, requests=10, in_flight=3)
    await driver.connect(1.0)
    task = asyncio.create_task(driver.read(0, 2.0))
    for answered in range(8):
        await server.until(3 + answered)
        await asyncio.sleep(0.002)
        assert len(server.requests) == min(10, 3 + answered)
        server.say(registers(server.requests[answered]))
    await server.until(10)
    server.say(*(registers(seen) for seen in server.requests[8:]))
    assert (await task).values == expected(10)
    await driver.close()


@pytest.mark.parametrize("seed", range(4))
async def test_any_split_of_the_stream(server: HandServer, driver: ModbusDriver, seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(10):
        done = len(server.requests)
        task = asyncio.create_task(driver.read(0, 2.0))
        seen = (await server.until(done + 4))[done:]
        rng.shuffle(seen)
        stream = b"".join(registers(s) if rng.random() < 0.8 else frame(s.tid, s.unit, b"\x83\2") for s in seen)
        refused = stream.count(b"\x83\2")
        while stream:
            size = 1 if seed == 0 else rng.randint(1, 40)
            server.say(stream[:size])
            stream = stream[size:]
            await asyncio.sleep(0)
        if refused == 4:
            with pytest.raises(DeviceRefused):
                await task
            continue
        reading = await task
        assert len(reading.bad) == refused
        assert all(value in (None, want) for value, want in zip(reading.values, expected(), strict=True))


def doubled(seen: Sequence[Seen]) -> bytes:
    return registers(seen[0]) * 2


def foreign(seen: Sequence[Seen]) -> bytes:
    return frame((max(s.tid for s in seen) + 7) & 0xFFFF or 1, 3, b"\3\2\0\1")


def swapped_units(seen: Sequence[Seen]) -> bytes:
    return frame(seen[0].tid, 4, b"\3\2\0\1")


def too_long(seen: Sequence[Seen]) -> bytes:
    return registers(seen[0])[:4] + b"\0\x50\3\3\2\0\1"


BAD = [doubled, foreign, swapped_units, too_long]


@pytest.mark.parametrize("bad", BAD)
async def test_one_wrong_frame_among_good_ones_ends_the_connection(
    server: HandServer, driver: ModbusDriver, bad: object
) -> None:
    assert callable(bad)
    task = asyncio.create_task(driver.read(0, 2.0))
    seen = await server.until(4)
    server.say(registers(seen[1]), bad(seen), registers(seen[2]), registers(seen[3]))
    with pytest.raises(LinkDown):
        await task
    await server.until_lost()
    assert driver.stats().strays == 1
    await driver.close()
    await driver.connect(1.0)
    task = asyncio.create_task(driver.read(0, 2.0))
    seen = (await server.until(8))[4:]
    server.say(*(registers(s) for s in seen))
    assert (await task).values == expected()


async def test_a_frame_that_was_there_before_the_request_is_not_its_answer(server: HandServer) -> None:
    """The device guesses the next id rightly, and its frame comes in one piece with the answer before."""
    driver = make(server.port, in_flight=1)
    await driver.connect(1.0)
    task = asyncio.create_task(driver.read(0, 2.0))
    (first,) = await server.until(1)
    step = connection(driver)._step
    server.say(registers(first), frame((first.tid + step) & 0xFFFF, 3, b"\3\2\x66\x66"))
    with pytest.raises(LinkDown, match="nobody asked"):
        await task
    assert len(server.requests) == 1
    await driver.close()


async def test_time_outs_are_each_requests_own(server: HandServer, driver: ModbusDriver) -> None:
    """The timer is set for the oldest request; answers do not move it, and the next request has its whole time."""
    for _ in range(3):
        done = len(server.requests)
        task = asyncio.create_task(driver.read(0, T))
        seen = (await server.until(done + 4))[done:]
        await asyncio.sleep(0.7 * T)
        server.say(*(registers(s) for s in seen))
        assert (await task).values == expected()
    start = time.monotonic()
    with pytest.raises(LinkDown, match=r"no answer within 0\.2 s") as caught:
        await driver.read(0, T)
    assert T * 0.95 < time.monotonic() - start < T * 1.5
    assert caught.value.timed_out


async def test_a_write_goes_before_the_polls_that_are_not_sent_yet(server: HandServer) -> None:
    driver = make(server.port, requests=80, in_flight=1)
    await driver.connect(1.0)
    polling = asyncio.create_task(driver.read(0, 2.0))
    for n in range(3):
        server.say(registers((await server.until(n + 1))[n]))
    await server.until(4)
    writing = asyncio.create_task(driver.write("a.t5", 77, 2.0))
    await asyncio.sleep(0.005)
    assert len(server.requests) == 4
    server.say(registers(server.requests[3]))
    write = (await server.until(5))[4]
    assert write.pdu == bytes.fromhex("06 01f4 004d")
    server.say(frame(write.tid, 3, write.pdu))
    # One poll goes out while the writer takes note of the answer.
    server.say(registers((await server.until(6))[5]))
    back = (await server.until(7))[6]
    assert (back.pdu[0], back.offset) == (3, 500)
    server.say(registers(back, 77))
    assert (await writing).outcome is Outcome.VERIFIED
    for n in range(7, 82):
        server.say(registers((await server.until(n + 1))[n]))
    assert (await polling).values == expected(80)
    await driver.close()


async def test_two_reads_at_once_are_our_own_mistake(server: HandServer, driver: ModbusDriver) -> None:
    task = asyncio.create_task(driver.read(0, T))
    await server.until(4)
    with pytest.raises(RuntimeError, match="two reads at once"):
        await driver.read(0, T)
    server.say(*(registers(s) for s in server.requests))
    await task


async def test_bytes_that_nobody_asked_for_end_the_connection_at_once(server: HandServer) -> None:
    """Also when they are no whole frame: nothing is waited for that cannot be an answer."""
    driver = make(server.port, requests=1)
    for n, extra in enumerate((b"\0", frame(1, 3, b"\3\2\0\1")[:8])):
        await driver.connect(1.0)
        task = asyncio.create_task(driver.read(0, 2.0))
        server.say(registers((await server.until(n + 1))[n]), extra)
        await asyncio.gather(task, return_exceptions=True)
        await server.until_lost(n + 1)
        with pytest.raises(LinkDown, match="nobody asked"):
            await driver.read(0, T)
        await driver.close()


async def test_the_beginning_of_a_foreign_frame_is_enough(server: HandServer, driver: ModbusDriver) -> None:
    task = asyncio.create_task(driver.read(0, 5.0))
    server.say(foreign(await server.until(4))[:8])
    async with asyncio.timeout(1.0):
        with pytest.raises(LinkDown, match="nobody asked"):
            await task


async def test_an_id_is_not_used_again_while_its_answer_may_come(server: HandServer) -> None:
    one, two = (make(server.port, unit=unit, links=links, in_flight=8) for links in [Links()] for unit in (3, 4))
    await asyncio.gather(one.connect(1.0), two.connect(1.0))
    ours = connection(one)
    blocked = [(ours._tid + n * ours._step) & 0xFFFF for n in range(1, 6)]
    ours.given_up.update(dict.fromkeys(blocked, (4, 3)))
    task = asyncio.create_task(one.read(0, 2.0))
    seen = await server.until(4)
    assert not {s.tid for s in seen} & set(blocked)
    server.say(frame(blocked[0], 4, b"\3\2\0\1"), *(registers(s) for s in seen))
    assert (await task).values == expected()
    assert (one.stats().late, two.stats().late) == (0, 1)
    await one.close()
    await two.close()


# --- connections


async def test_connections_share_the_requests_and_fall_together(server: HandServer) -> None:
    driver = make(server.port, requests=6, in_flight=2, connections=3)
    await driver.connect(1.0)
    assert server.connections == 3
    task = asyncio.create_task(driver.read(0, 2.0))
    await server.until(6)
    assert sorted(server.by_connection) == [0, 0, 1, 1, 2, 2]
    for seen, which in zip(server.requests, server.by_connection, strict=True):
        server.say(registers(seen), connection=which)
    assert (await task).values == expected(6)
    task = asyncio.create_task(driver.read(0, 2.0))
    await server.until(12)
    server.transports[1].abort()
    with pytest.raises(LinkDown, match="connection"):
        await task
    await server.until_lost(3)
    await driver.close()


async def test_a_plc_that_takes_fewer_connections_is_named() -> None:
    """It answers the first and closes the second: said in the connect, or, when the close came later, by the read."""

    class OneOnly(HandServer):
        def accepted(self, transport: asyncio.Transport) -> None:
            super().accepted(transport)
            if len(self.transports) > 1:
                transport.abort()

    async with OneOnly() as server:
        driver = make(server.port, connections=3)
        with pytest.raises(LinkDown, match="the PLC may take fewer than connections: 3"):
            await driver.connect(1.0)
            await driver.read(0, T)
        await driver.close()
        await server.until_lost(server.connections)


# --- cancellation


async def test_cancelled_alone_on_the_link_resets_it(server: HandServer, driver: ModbusDriver) -> None:
    task = asyncio.create_task(driver.read(0, 2.0))
    await server.until(4)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await server.until_lost()
    with pytest.raises(LinkDown, match="given up"):
        await driver.read(0, T)


async def test_cancelled_on_a_shared_link_leaves_the_neighbour_alone(server: HandServer) -> None:
    links = Links()
    one, two = (make(server.port, unit=unit, links=links, in_flight=8) for unit in (3, 4))
    await asyncio.gather(one.connect(1.0), two.connect(1.0))
    assert server.connections == 1
    first = asyncio.create_task(one.read(0, 2.0))
    second = asyncio.create_task(two.read(0, 2.0))
    seen = await server.until(8)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    server.say(*(registers(s) for s in seen))
    assert (await second).values == expected()
    assert one.stats().late == 4
    assert two.stats().late == 0
    again = asyncio.create_task(one.read(0, 2.0))
    seen = (await server.until(12))[8:]
    server.say(*(registers(s, 7) for s in seen))
    assert (await again).values == (7, 7, 7, 7)
    await one.close()
    await two.close()
    await server.until_lost()


@pytest.mark.parametrize("outstanding", [True, False])
async def test_closing_resets_when_an_answer_may_still_come(server: HandServer, outstanding: bool) -> None:
    driver = make(server.port, requests=1)
    await driver.connect(1.0)
    task = asyncio.create_task(driver.read(0, 2.0))
    (seen,) = await server.until(1)
    if not outstanding:
        server.say(registers(seen))
        await task
    await driver.close()
    await asyncio.gather(task, return_exceptions=True)
    await server.until_lost()
    assert isinstance(server.lost_by[0], ConnectionResetError) == outstanding


async def test_a_write_that_waits_its_turn_when_the_link_is_lost_was_not_sent(server: HandServer) -> None:
    driver = make(server.port, in_flight=1)
    await driver.connect(1.0)
    reading = asyncio.create_task(driver.read(0, 2.0))
    await server.until(1)
    writing = asyncio.create_task(driver.write("a.t0", 5, 2.0))
    await asyncio.sleep(0.005)
    server.transports[0].abort()
    with pytest.raises(LinkDown):
        await reading
    got = await writing
    assert got.outcome is Outcome.REJECTED
    assert "a.t0 at hr:0" in got.reason
    assert "not sent, connection" in got.reason
    assert len(server.requests) == 1
    await driver.close()


# --- a gateway


def behind(gateway: Gateway, *, requests: int = 1, in_flight: int = 1) -> list[ModbusDriver]:
    links = Links()
    return [
        make(gateway.port, unit=unit, links=links, requests=requests, in_flight=in_flight) for unit in gateway.memories
    ]


async def test_units_share_one_connection_which_closes_with_the_last() -> None:
    async with Gateway(1, 2, 3) as gateway:
        plcs = behind(gateway, requests=3)
        await asyncio.gather(*(plc.connect(1.0) for plc in plcs))
        for unit, memory in gateway.memories.items():
            memory.hr[:] = [unit] * len(memory.hr)
        readings = await asyncio.gather(*(plc.read(0, T) for plc in plcs))
        assert [reading.values for reading in readings] == [(1,) * 3, (2,) * 3, (3,) * 3]
        for plc in plcs[:-1]:
            await plc.close()
        assert (await plcs[-1].read(0, T)).values == (3, 3, 3)
        assert (gateway.connections, gateway.lost) == (1, 0)
        await plcs[-1].close()
        await gateway.until_lost()


async def test_a_time_out_does_not_end_a_shared_connection_and_the_late_answer_is_known() -> None:
    async with Gateway(1, 2) as gateway:
        gateway.serial = False
        one, two = behind(gateway, in_flight=4)
        await asyncio.gather(one.connect(1.0), two.connect(1.0))
        gateway.answer_s = 0.15
        with pytest.raises(ExchangeFailed, match=r"no answer within 0\.1 s"):
            await one.read(0, 0.1)
        gateway.memories[1].hr[0] = 5
        assert (await one.read(0, 0.5)).values == (5,)
        stats = one.stats()
        assert (stats.late, stats.timeouts, stats.strays) == (1, 1, 0)
        assert gateway.connections == 1
        await one.close()
        await two.close()


async def test_a_stray_frame_ends_a_shared_connection_too() -> None:
    async with Gateway(1, 2) as gateway:
        one, two = behind(gateway)
        await asyncio.gather(one.connect(1.0), two.connect(1.0))
        await asyncio.gather(one.read(0, T), two.read(0, T))
        gateway.say(frame(gateway.requests[-1].tid, 2, b"\3\2\0\1"))
        await gateway.until_lost()
        for plc in (one, two):
            with pytest.raises(LinkDown, match="nobody asked"):
                await plc.read(0, T)
            await plc.close()


async def test_a_connection_on_which_nothing_is_heard_is_given_up() -> None:
    async with Gateway(1, 2, 3) as gateway:
        plcs = behind(gateway)
        await asyncio.gather(*(plc.connect(1.0) for plc in plcs))
        await asyncio.gather(*(plc.read(0, T) for plc in plcs))
        gateway.silent = {1, 2, 3}
        results = await asyncio.gather(*(plc.read(0, 0.05) for plc in plcs), return_exceptions=True)
        assert any(isinstance(result, LinkDown) and "nothing heard" in str(result) for result in results), results
        await gateway.until_lost()
        for plc in plcs:
            with pytest.raises(LinkDown, match="nothing heard through 3 time-outs"):
                await plc.read(0, T)
            await plc.close()


async def test_one_silent_unit_does_not_end_the_connection_of_an_idle_neighbour() -> None:
    """The neighbour is polled rarely: that nothing is heard meanwhile means nothing."""
    async with Gateway(1, 2) as gateway:
        gateway.serial = False
        one, two = behind(gateway, requests=3, in_flight=8)
        await asyncio.gather(one.connect(1.0), two.connect(1.0))
        await two.read(0, T)
        gateway.silent = {1}
        with pytest.raises(ExchangeFailed):
            await one.read(0, 0.03)
        with pytest.raises(LinkDown):
            await one.read(0, 0.03)
        for _ in range(5):
            await one.close()
            with pytest.raises(LinkDown) as caught:
                await one.connect(1.0)
            assert caught.value.retry_s is not None
        assert (await two.read(0, T)).values == (0, 0, 0)
        assert (gateway.connections, gateway.lost) == (1, 0)
        await one.close()
        await two.close()


async def test_time_outs_of_one_unit_alone_say_nothing_about_the_connection() -> None:
    async with Gateway(1, 2) as gateway:
        gateway.serial = False
        one, two = behind(gateway, in_flight=8)
        await asyncio.gather(one.connect(1.0), two.connect(1.0))
        await two.read(0, T)
        gateway.silent = {1}
        call = pdu.read_call(Request(Area.HOLDING_REGISTER, 0, 1))
        tasks = []
        for _ in range(4):
            tasks.append(asyncio.create_task(one.execute(call, 0.06)))
            await asyncio.sleep(0.01)
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert all("no answer" in str(result) for result in results), results
        assert one.stats().timeouts == 4
        assert (await two.read(0, T)).values == (0,)
        assert (gateway.connections, gateway.lost) == (1, 0)
        await one.close()
        await two.close()


async def test_time_outs_with_answers_in_between_are_not_in_a_row() -> None:
    async with Gateway(1, 2, 3, 4) as gateway:
        gateway.serial = False
        plcs = behind(gateway, in_flight=8)
        await asyncio.gather(*(plc.connect(1.0) for plc in plcs))
        gateway.silent = {1, 2, 3}
        for plc in plcs[:3]:
            with pytest.raises(ExchangeFailed):
                await plc.read(0, 0.03)
            await plcs[3].read(0, T)
        assert (gateway.connections, gateway.lost) == (1, 0)
        for plc in plcs:
            await plc.close()


async def test_a_short_time_out_is_kept_while_a_long_one_runs() -> None:
    async with Gateway(1, 2) as gateway:
        gateway.serial = False
        one, two = behind(gateway, in_flight=8)
        await asyncio.gather(one.connect(1.0), two.connect(1.0))
        gateway.silent = {1, 2}
        long = asyncio.create_task(one.read(0, 5.0))
        await asyncio.sleep(0.005)
        start = time.monotonic()
        with pytest.raises(ExchangeFailed):
            await two.read(0, 0.05)
        assert time.monotonic() - start < 0.5
        await one.close()
        with pytest.raises(LinkDown, match="closed"):
            await long
        await two.close()


async def test_a_gateways_late_excuse_is_no_sign_of_life() -> None:
    async with Gateway(1, 2, patience_s=0.06) as gateway:
        gateway.serial, gateway.gives_up = False, 11
        one, two = behind(gateway, in_flight=8)
        await asyncio.gather(one.connect(1.0), two.connect(1.0))
        await two.read(0, T)
        gateway.silent = {1}
        for _ in range(2):
            with pytest.raises((ExchangeFailed, LinkDown)):
                await one.read(0, 0.02)
        await asyncio.sleep(0.1)
        assert (one.stats().late, one.stats().breaker) == (2, "open")
        await one.close()
        await two.close()


@pytest.mark.parametrize("gives_up", [None, 11])
async def test_sixteen_units_of_which_one_is_silent(gives_up: int | None) -> None:
    """In real time: the others keep their pace, and it is back at once when it answers."""
    async with Gateway(*range(1, 17), answer_s=0.002, patience_s=0.006) as gateway:
        plcs = behind(gateway)
        await asyncio.gather(*(plc.connect(1.0) for plc in plcs))
        await asyncio.gather(*(plc.read(0, T) for plc in plcs))
        gateway.silent, gateway.gives_up = {5}, gives_up
        for _ in range(2):
            with pytest.raises((ExchangeFailed, DeviceRefused, LinkDown)):
                await plcs[4].read(0, 0.1)
        got = await plcs[4].write("a.t0", 1, T)
        assert got.outcome is Outcome.REJECTED
        assert "not sent" in got.reason
        assert not gateway.memories[5].writes

        async def come_back() -> float:
            while True:
                await plcs[4].close()
                try:
                    await plcs[4].connect(1.0)
                    await plcs[4].read(0, T)
                    return time.monotonic()
                except LinkDown as exc:
                    assert exc.retry_s is not None
                    await asyncio.sleep(exc.retry_s)

        async def poll(plc: ModbusDriver, until: float) -> int:
            count = 0
            while time.monotonic() < until:
                await plc.read(0, T)
                count += 1
            return count

        back = asyncio.create_task(come_back())
        healthy = [plc for plc in plcs if plc is not plcs[4]]
        counts = await asyncio.gather(*(poll(plc, time.monotonic() + 0.8) for plc in healthy))
        assert max(counts) - min(counts) <= 1, "they take turns"
        probes = sum(1 for seen in gateway.requests if seen.unit == 5)
        assert sum(counts) > 8 * probes, "most of the time is theirs"
        assert not back.done()
        gateway.silent = set()
        answering = time.monotonic()
        await asyncio.gather(*(poll(plc, time.monotonic() + 0.4) for plc in healthy))
        assert await back - answering < 2.0, "how quick it is to the millisecond is seen in virtual time"
        assert gateway.connections == 1
        for plc in plcs:
            await plc.close()


async def test_a_peer_that_stops_reading_ends_bounded(server: HandServer) -> None:
    """Requests pile up on a shared link only as far as the write buffer's limit."""
    links = Links()
    one, two = (make(server.port, unit=unit, links=links, in_flight=64) for unit in (3, 4))
    await asyncio.gather(one.connect(1.0), two.connect(1.0))
    ours: socket.socket = connection(one)._transport.get_extra_info("socket")
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
    server.transports[0].pause_reading()
    call = pdu.read_call(Request(Area.HOLDING_REGISTER, 0, 1))
    sent = 0
    with pytest.raises(LinkDown, match="does not read what is sent"):
        while sent < 200_000:
            tasks = [asyncio.create_task(one.execute(call, 5.0)) for _ in range(64)]
            await asyncio.sleep(0)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            sent += 64
            if two._unit.down:
                await two.read(0, T)
    await one.close()
    await two.close()


# --- one link, one owner


def test_units_must_agree_about_their_link() -> None:
    links = Links()
    make_driver("one", ModbusTcpOptions(host="plc", unit=1), tags(1), links=links)
    with pytest.raises(ValueError, match="two: in_flight is 4, but other units of the link plc:502 have 1"):
        make_driver("two", ModbusTcpOptions(host="PLC", unit=2, in_flight=4), tags(1), links=links)
    with pytest.raises(ValueError, match="again and one are the same device plc:502 unit 1"):
        make_driver("again", ModbusTcpOptions(host="plc", unit=1, max_registers=10), tags(1), links=links)
    make_driver("udp", ModbusUdpOptions(host="plc", unit=1), tags(1), links=links)
    make_driver("three", ModbusTcpOptions(host="plc", unit=3, max_registers=10), tags(1), links=links)
