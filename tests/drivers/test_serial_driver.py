"""The driver of serial line devices, against devices of our own on ptys and behind TCP, well-behaved and not."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Iterable
from pathlib import Path

import pytest
from serial_peer import Device, PtyDevice, TcpDevice

from drivers.options import SerialDeviceOptions, SerialOptions, TcpLineOptions
from drivers.port import DataType, ExchangeFailed, LinkDown, Outcome, Reading, SerialAddress, Tag
from drivers.serial.driver import SerialDeviceDriver
from drivers.serial.protocol import Command, Framing, LineProtocol, Message

pytestmark = [pytest.mark.wire, pytest.mark.usefixtures("no_leaks")]
T = 0.15
CRLF = Framing(end=b"\r\n", max_length=40)
CODE = Message(pattern=r"(?P<text>[A-Z0-9-]{1,20})", queue=4)
WEIGHT = Message(
    pattern=r"S (?P<status>[SDI])(?: +(?P<weight>-?\d+\.\d+) g)?",
    ask="SI\r\n",
    bad={"status": {"S": "", "*": "not at rest"}},
)


def tag(name: str, address: str, kind: str = "STRING", *, writable: bool = False, scan_class: str = "fast") -> Tag:
    at = SerialAddress(address)
    return Tag(name=name, address=at, type=DataType(kind), writable=writable, scan_class=scan_class)


def driver_for(device: Device, protocol: LineProtocol, *tags: Tag) -> SerialDeviceDriver:
    line: SerialOptions | TcpLineOptions
    if isinstance(device, PtyDevice):
        line = SerialOptions(device=str(device.path), baudrate=115200, parity="N")
    else:
        assert isinstance(device, TcpDevice)
        line = TcpLineOptions(host="127.0.0.1", port=device.port)
    return SerialDeviceDriver("dev", tags, SerialDeviceOptions(line=line, protocol=protocol))


@pytest.fixture(params=["pty", "tcp"])
async def device(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Device]:
    if request.param == "pty":
        async with PtyDevice(tmp_path) as pty:
            yield pty
    else:
        async with TcpDevice() as tcp:
            yield tcp


async def connected(driver: SerialDeviceDriver) -> None:
    """Connect, and let the time pass in which the line is only listened to."""
    await driver.connect(1.0)
    await asyncio.sleep(0.06)


async def until(driver: SerialDeviceDriver, group: int, index: int, value: object) -> Reading:
    """Read as a scan does, until this value comes."""
    async with asyncio.timeout(2.0):
        while True:
            reading = await driver.read(group, T)
            if reading.values[index] == value:
                return reading
            await asyncio.sleep(0.002)


# --- messages that come by themselves


SCANNER = LineProtocol(framing=CRLF, messages={"code": CODE})
SCAN_TAGS = (tag("s.code", "code.text"), tag("s.count", "code.count", "UDINT"), tag("s.lost", "code.lost", "UDINT"))


async def test_every_code_reaches_the_scan_in_order(device: Device) -> None:
    driver = driver_for(device, SCANNER, *SCAN_TAGS)
    assert driver.groups[0].each
    await connected(driver)
    reading = await driver.read(0, T)
    assert reading.values == (None, 0, 0)
    assert reading.bad == {0: "no code since the connection was made"}
    device.say(b"A-1\r\nA-2\r\nA-2\r\nA-")
    device.say(b"3\r\n")
    assert (await until(driver, 0, 1, 1)).values == ("A-1", 1, 0)
    assert (await driver.read(0, T)).values == ("A-2", 2, 0)
    assert (await driver.read(0, T)).values == ("A-2", 3, 0), "the same code twice is two messages"
    last = await until(driver, 0, 1, 4)
    assert last.values == ("A-3", 4, 0)
    before = time.monotonic_ns()
    again = await driver.read(0, T)
    assert again.values is last.values, "nothing new: the identical tuple"
    assert again.stamp_ns >= before
    await driver.close()


async def test_too_many_codes_are_counted_as_lost_the_oldest_first(device: Device) -> None:
    driver = driver_for(device, SCANNER, *SCAN_TAGS)
    await connected(driver)
    device.say(b"".join(b"N%d\r\n" % n for n in range(1, 8)))
    assert (await until(driver, 0, 0, "N4")).values == ("N4", 4, 3), "the numbers show the gap"
    assert [(await driver.read(0, T)).values[0] for _ in range(3)] == ["N5", "N6", "N7"]
    assert driver.stats().missed == 3
    await driver.close()


@pytest.mark.parametrize(
    ("garbage", "lost"),
    [(b"\xff\xfe\r\n", 1), (b"A\0B\r\n", 1), (b"x" * 4000 + b"\r\n", 1), (b"ab\r\ncd\r\n", 2), (b"\r\n\r\n", 0)],
)
async def test_what_cannot_be_used_is_counted(device: Device, garbage: bytes, lost: int) -> None:
    driver = driver_for(device, SCANNER, *SCAN_TAGS)
    await connected(driver)
    device.say(garbage + b"GOOD\r\n")
    assert (await until(driver, 0, 0, "GOOD")).values == ("GOOD", 1, lost)
    assert driver.stats().strays == lost
    await driver.close()


async def test_the_tail_of_a_code_from_before_is_not_a_code(device: Device) -> None:
    driver = driver_for(device, SCANNER, *SCAN_TAGS)
    await driver.connect(1.0)
    if isinstance(device, TcpDevice):
        async with asyncio.timeout(1.0):
            while not device.transports:  # noqa: ASYNC110 - the server tells nobody
                await asyncio.sleep(0.001)
    device.say(b"638\r\nA-1\r\n")
    assert (await until(driver, 0, 0, "A-1")).values == ("A-1", 1, 1)
    await driver.close()


async def test_a_code_that_stops_in_the_middle_is_lost_and_counted(device: Device) -> None:
    framing = Framing(end=b"\r\n", max_length=40, gap_ms=20)
    driver = driver_for(device, LineProtocol(framing=framing, messages={"code": CODE}), *SCAN_TAGS)
    await connected(driver)
    device.say(b"400")
    await until(driver, 0, 2, 1)
    device.say(b"638\r\nA-1\r\n")
    assert (await until(driver, 0, 0, "A-1")).values == ("A-1", 1, 1)
    await driver.close()


async def test_silence_ends_a_code_without_terminator(device: Device) -> None:
    framing = Framing(max_length=40, gap_ms=30)
    driver = driver_for(device, LineProtocol(framing=framing, messages={"code": CODE}), *SCAN_TAGS)
    await connected(driver)
    device.say(b"400")
    device.say(b"638")
    assert (await until(driver, 0, 1, 1)).values == ("400638", 1, 0)
    await driver.close()


async def test_codes_not_yet_read_are_lost_with_the_link_and_counted(device: Device) -> None:
    driver = driver_for(device, SCANNER, *SCAN_TAGS)
    await connected(driver)
    device.say(b"A-1\r\nA-2\r\n")
    await until(driver, 0, 0, "A-1")
    await driver.close()
    await connected(driver)
    reading = await driver.read(0, T)
    assert reading.values == (None, 1, 1)
    device.say(b"A-3\r\n")
    assert (await until(driver, 0, 0, "A-3")).values == ("A-3", 3, 1)
    await driver.close()


async def test_the_newest_is_enough_where_it_is_declared_so(device: Device) -> None:
    live = Message(pattern=r"W(?P<weight>\d+)", keep="newest", every_ms=60)
    tags = (tag("w.weight", "live.weight", "INT"), tag("w.count", "live.count", "UDINT"))
    driver = driver_for(device, LineProtocol(framing=CRLF, messages={"live": live}), *tags)
    assert not driver.groups[0].each
    await connected(driver)
    device.say(b"W1\r\nW2\r\nW3\r\n")
    assert (await until(driver, 0, 1, 3)).values == (3, 3)
    await asyncio.sleep(0.1)
    reading = await driver.read(0, T)
    assert reading.values == (None, 3)
    assert "no live for 0." in reading.bad[0]
    await driver.close()


async def test_what_was_heard_instead_is_told(device: Device) -> None:
    """The commonest mistake: the scanner ends its codes in another way than declared."""
    framing = Framing(end=b"\r", max_length=40)
    driver = driver_for(device, LineProtocol(framing=framing, messages={"code": CODE}), *SCAN_TAGS)
    await connected(driver)
    device.say(b"\nA-1\r")
    reading = await until(driver, 0, 2, 1)
    assert reading.bad == {0: r"no code since the connection was made; heard '\nA-1', which fits no message"}
    await driver.close()


@pytest.mark.parametrize("seed", range(3))
async def test_a_storm_of_garbage_is_survived(device: Device, seed: int) -> None:
    rng = random.Random(seed)
    driver = driver_for(device, SCANNER, *SCAN_TAGS)
    await connected(driver)
    for _ in range(60):
        device.say(rng.randbytes(rng.randrange(1, 900)))
        reading = await driver.read(0, T)
        assert reading.values[0] is None or isinstance(reading.values[0], str)
        await asyncio.sleep(0)
    device.say(b"\r\nGOOD\r\n")
    await until(driver, 0, 0, "GOOD")
    assert driver.stats().strays > 0
    await driver.close()


# --- messages that are asked for


SCALE = LineProtocol(framing=CRLF, messages={"weight": WEIGHT})
SCALE_TAGS = (tag("w.weight", "weight.weight", "REAL"), tag("w.status", "weight.status"))


async def test_asks_and_takes_the_answer(device: Device) -> None:
    device.told = lambda line: [b"S S    ", b"123.45 g\r", b"\n"]
    driver = driver_for(device, SCALE, *SCALE_TAGS)
    await driver.connect(1.0)
    before = time.monotonic_ns()
    reading = await driver.read(0, T)
    assert reading.values == (123.45, "S")
    assert before <= reading.stamp_ns <= time.monotonic_ns()
    device.told = lambda line: [b"S D    120.00 g\r\n"]
    moving = await driver.read(0, T)
    assert moving.values == (None, "D")
    assert moving.bad == {0: "not at rest"}
    assert device.heard == [b"SI", b"SI"]
    stats = driver.stats()
    assert (stats.requests, stats.answered, stats.strays) == (2, 2, 0)
    assert 0 < stats.p50_ms <= stats.p99_ms
    await driver.close()


async def test_a_late_answer_is_never_the_next_ones(device: Device) -> None:
    answers: list[Iterable[bytes]] = [[], [b"S S 2.0 g\r\n"]]
    device.told = lambda line: answers.pop(0)
    driver = driver_for(device, SCALE, *SCALE_TAGS)
    await connected(driver)
    with pytest.raises(ExchangeFailed, match=r"weight: no answer within 0\.05 s") as caught:
        await driver.read(0, 0.05)
    assert caught.value.timed_out
    device.say(b"S S 1.0 g\r\n")
    assert (await driver.read(0, T)).values == (2.0, "S")
    assert driver.stats().late == 1
    await driver.close()


async def test_the_tail_of_a_late_answer_is_never_a_value(device: Device) -> None:
    """However late it comes. A loose pattern would take "3.0 g", and patience "123.0 g" for the next answer."""
    loose = LineProtocol(framing=CRLF, messages={"weight": Message(pattern=r"(?P<weight>\d+\.\d) g", ask="W\r\n")})
    answers: list[Iterable[bytes]] = [[b"12"], [b"3.0 g\r\n", b"7.0 g\r\n"]]
    device.told = lambda line: answers.pop(0)
    driver = driver_for(device, loose, tag("w.weight", "weight.weight", "REAL"))
    await connected(driver)
    with pytest.raises(ExchangeFailed):
        await driver.read(0, 0.05)
    assert (await driver.read(0, T)).values == (7.0,)
    assert driver.stats().strays == 1
    await driver.close()


async def test_a_character_of_wrong_parity_spoils_its_message(device: Device) -> None:
    """The port hands it over as a zero byte, which a loose pattern would take."""
    loose = LineProtocol(framing=CRLF, messages={"code": Message(pattern="(?P<text>.+)")})
    driver = driver_for(device, loose, *SCAN_TAGS)
    await connected(driver)
    device.say(b"A\0B\r\nGOOD\r\n")
    assert (await until(driver, 0, 1, 1)).values == ("GOOD", 1, 1)
    await driver.close()


async def test_a_doubled_answer_is_a_stray_and_waited_out(device: Device) -> None:
    device.told = lambda line: [b"S S 1.0 g\r\nS S 1.0 g\r\n"]
    driver = driver_for(device, SCALE, *SCALE_TAGS)
    await connected(driver)
    assert (await driver.read(0, T)).values == (1.0, "S")
    device.told = lambda line: [b"S S 2.0 g\r\n"]
    assert (await driver.read(0, T)).values == (2.0, "S")
    assert driver.stats().strays + driver.stats().late == 1
    await driver.close()


async def test_someone_elses_answer_is_named_in_the_reason(device: Device) -> None:
    device.told = lambda line: [b"ES\r\n"]
    driver = driver_for(device, SCALE, *SCALE_TAGS)
    await connected(driver)
    for _ in range(2):
        with pytest.raises(ExchangeFailed, match="heard 'ES', which fits no message instead"):
            await driver.read(0, 0.05)
    with pytest.raises(LinkDown, match="3 times in a row"):
        await driver.read(0, 0.05)
    await driver.close()


async def test_one_message_that_never_answers_takes_the_link_down(device: Device) -> None:
    """Though others are answered between: else the link would wait for it for ever."""
    other = Message(pattern=r"T(?P<temp>\d+)", ask="T\r\n")
    device.told = lambda line: [b"T20\r\n"] if line == b"T" else []
    tags = (tag("w.temp", "other.temp", "INT"), *SCALE_TAGS)
    driver = driver_for(device, LineProtocol(framing=CRLF, messages={"other": other, "weight": WEIGHT}), *tags)
    await connected(driver)
    for _ in range(2):
        with pytest.raises(ExchangeFailed, match="weight: no answer"):
            await driver.read(0, T)
    with pytest.raises(LinkDown, match=r"weight: no answer .* 3 times in a row"):
        await driver.read(0, T)
    await driver.close()


async def test_codes_are_taken_while_an_answer_is_awaited(device: Device) -> None:
    both = LineProtocol(framing=CRLF, messages={"weight": WEIGHT, "code": CODE})
    device.told = lambda line: [b"A-1\r\n", b"S S 1.0 g\r\n", b"A-2\r\n"]
    driver = driver_for(device, both, *SCALE_TAGS, tag("s.code", "code.text", scan_class="scan"))
    await connected(driver)
    assert (await driver.read(0, T)).values == (1.0, "S")
    await until(driver, 1, 0, "A-1")
    await until(driver, 1, 0, "A-2")
    await driver.close()


async def test_an_answer_of_several_messages(device: Device) -> None:
    status = Message(pattern=r"A(?P<paper>\d)\nB(?P<head>\d)", ask="?\r\n", lines=2, bad={"paper": {"1": "no paper"}})
    device.told = lambda line: [b"noise\r\nA0\r\n", b"B1\r\n"]
    tags = (tag("p.paper", "status.paper", "BOOL"), tag("p.head", "status.head", "BOOL"))
    driver = driver_for(device, LineProtocol(framing=CRLF, messages={"status": status}), *tags)
    await connected(driver)
    assert (await driver.read(0, T)).values == (False, True)
    device.told = lambda line: [b"A1\r\nB0\r\n"]
    assert (await driver.read(0, T)).bad == {0: "no paper", 1: "no paper"}
    await driver.close()


async def test_a_device_that_never_falls_silent_is_given_up(device: Device) -> None:
    device.told = lambda line: [b"S S 1.0 g\r\n"]
    driver = driver_for(device, SCALE, *SCALE_TAGS)
    await connected(driver)
    await driver.read(0, 0.1)  # from now on the silence wanted is 0.15 s, far more than between two of these:
    device.told = lambda line: []
    stop = asyncio.Event()

    async def chatter() -> None:
        while not stop.is_set():
            device.say(b"S S 1.0 g\r\n")
            await asyncio.sleep(0.005)

    task = asyncio.create_task(chatter())
    await until_strays(driver)
    start = time.monotonic()
    with pytest.raises(LinkDown, match="does not fall silent"):
        for _ in range(3):
            try:
                await driver.read(0, 0.05)
            except ExchangeFailed as exc:
                assert "does not fall silent" in str(exc) or "no answer" in str(exc)
    assert time.monotonic() - start < 3
    stop.set()
    await task
    await driver.close()


async def until_strays(driver: SerialDeviceDriver) -> None:
    async with asyncio.timeout(1.0):
        while not driver.stats().strays:  # noqa: ASYNC110 - only the counter tells
            await asyncio.sleep(0.001)


# --- writing


LIMIT = Message(pattern=r"LIMIT (?P<limit>\d+)", ask="LIMIT?\r\n", write="LIMIT={limit}\r\n")
WRITING = LineProtocol(framing=CRLF, messages={"limit": LIMIT})
LIMIT_TAG = tag("w.limit", "limit.limit", "UINT", writable=True)


async def test_a_field_is_written_and_read_back(device: Device) -> None:
    held = [5]

    def told(line: bytes) -> Iterable[bytes]:
        if line.startswith(b"LIMIT="):
            held[0] = min(int(line[6:]), 100)
            return [b"OK\r\n"]
        return [b"LIMIT %d\r\n" % held[0]]

    device.told = told
    driver = driver_for(device, WRITING, LIMIT_TAG)
    await connected(driver)
    good = await driver.write("w.limit", 77, T)
    assert (good.outcome, good.read_back) == (Outcome.VERIFIED, 77), good.reason
    other = await driver.write("w.limit", 500, T)
    assert (other.outcome, other.read_back) == (Outcome.REJECTED, 100)
    assert "500" in other.reason
    device.mute = True
    assert (await driver.write("w.limit", 8, 0.05)).outcome is Outcome.UNKNOWN
    assert device.heard.count(b"LIMIT=8") == 1
    await driver.close()
    assert (await driver.write("w.limit", 9, T)).outcome is Outcome.REJECTED
    assert b"LIMIT=9" not in device.heard


async def test_a_write_goes_before_the_questions_of_a_read_that_are_not_sent_yet(device: Device) -> None:
    messages = {f"m{n}": Message(pattern=rf"M{n}=(?P<v>\d)", ask=f"M{n}\r\n") for n in range(5)}
    tags = [tag(f"m.v{n}", f"m{n}.v", "INT") for n in range(5)]
    device.told = lambda line: [b"LIMIT 3\r\n"] if line == b"LIMIT?" else [line + b"=1\r\n"]
    protocol = LineProtocol(framing=CRLF, messages=messages | {"limit": LIMIT})
    driver = driver_for(
        device, protocol, *tags, tag("w.limit", "limit.limit", "UINT", writable=True, scan_class="slow")
    )
    await connected(driver)
    reading = asyncio.create_task(driver.read(0, T))
    await device.told_of(b"M0")
    write = await driver.write("w.limit", 3, T)
    assert write.outcome is Outcome.VERIFIED, write.reason
    assert (await reading).values == (1,) * 5
    assert device.heard.index(b"LIMIT=3") <= 2, device.heard
    await driver.close()


# --- commands


READY = Message(
    pattern=r"R(?P<paper>\d),(?P<left>\d)",
    ask="?\r\n",
    bad={"paper": {"0": "", "*": "out of paper"}, "left": {"0": "", "*": "still printing"}},
)
PRINTER = LineProtocol(
    framing=CRLF,
    messages={"ready": READY},
    commands={"label": Command(send="PRINT {text} {job}\r\n", check="ready", timeout_ms=400)},
)
LABEL_TAGS = (
    tag("l.text", "label.text", writable=True),
    tag("l.job", "label.job", "UDINT", writable=True),
)


def printed(device: Device) -> list[bytes]:
    return [line for line in device.heard if line.startswith(b"PRINT")]


async def job(driver: SerialDeviceDriver, number: int, text: str | None = None) -> tuple[Outcome, str]:
    values: dict[str, int | str] = {"l.job": number}
    if text is not None:
        values["l.text"] = text
    got = await driver.write_block(values, 0.05)
    return got.outcome, got.reason


async def test_a_job_is_sent_once_and_acknowledged_when_the_printer_is_done(device: Device) -> None:
    answers = [b"R0,0\r\n", b"R0,1\r\n", b"R0,0\r\n"]
    device.told = lambda line: [answers.pop(0)] if line == b"?" else []
    driver = driver_for(device, PRINTER, *LABEL_TAGS)
    await connected(driver)
    assert (await driver.read(0, T)).values == (None, 0)
    assert await job(driver, 1, "A") == (Outcome.VERIFIED, "")
    assert device.heard == [b"?", b"PRINT A 1", b"?", b"?"]
    assert (await driver.read(0, T)).values == ("A", 1)
    assert await job(driver, 1, "A") == (Outcome.VERIFIED, ""), "the same job again is done already"
    outcome, reason = await job(driver, 1, "B")
    assert outcome is Outcome.REJECTED
    assert "other contents" in reason
    assert printed(device) == [b"PRINT A 1"]
    await driver.close()


async def test_a_printer_that_is_not_ready_gets_nothing(device: Device) -> None:
    answers = [b"R1,0\r\n", b"R0,0\r\n", b"R0,0\r\n"]
    device.told = lambda line: [answers.pop(0)] if line == b"?" else []
    driver = driver_for(device, PRINTER, *LABEL_TAGS)
    await connected(driver)
    outcome, reason = await job(driver, 1, "A")
    assert (outcome, printed(device)) == (Outcome.REJECTED, [])
    assert "not sent, out of paper" in reason
    assert await job(driver, 1, "A") == (Outcome.VERIFIED, ""), "a rejected job may be tried again"
    assert printed(device) == [b"PRINT A 1"]
    await driver.close()


async def test_a_job_of_unknown_outcome_is_never_sent_again(device: Device) -> None:
    def told(line: bytes) -> Iterable[bytes]:
        if line.startswith(b"PRINT"):
            device.mute = True
        return [b"R0,0\r\n"] if line == b"?" else []

    device.told = told
    driver = driver_for(device, PRINTER, *LABEL_TAGS)
    await connected(driver)
    outcome, reason = await job(driver, 1, "A")
    assert outcome is Outcome.UNKNOWN
    assert "give a new number" in reason
    device.mute = False
    for _ in range(2):
        outcome, reason = await job(driver, 1, "A")
        assert outcome is Outcome.UNKNOWN
        await driver.close()
        await connected(driver)
    reading = await driver.read(0, T)
    assert reading.values == ("A", None)
    assert "not acknowledged" in reading.bad[1]
    assert printed(device) == [b"PRINT A 1"]
    device.told = lambda line: [b"R0,0\r\n"] if line == b"?" else []
    assert (await job(driver, 2, "A"))[0] is Outcome.VERIFIED
    assert printed(device) == [b"PRINT A 1", b"PRINT A 2"]
    await driver.close()


async def test_cancelled_anywhere_a_job_is_sent_at_most_once(device: Device) -> None:
    device.told = lambda line: [b"R0,0\r\n"] if line == b"?" else []
    driver = driver_for(device, PRINTER, *LABEL_TAGS)
    sent = cancelled = 0
    for turns in [*range(1, 12), 16, 24, 40, 80, 160]:
        device.heard.clear()
        await connected(driver)
        task = asyncio.ensure_future(job(driver, turns, "A"))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        cancelled += task.cancelled()
        await driver.close()
        await connected(driver)
        outcome, _ = await job(driver, turns, "A")
        if printed(device):
            sent += 1
        assert len(printed(device)) <= 1
        assert outcome is Outcome.UNKNOWN or len(printed(device)) == 1
        await driver.close()
    assert sent
    assert cancelled


async def test_zero_sends_nothing_and_arms_again(device: Device) -> None:
    device.told = lambda line: [b"R0,0\r\n"] if line == b"?" else []
    driver = driver_for(device, PRINTER, *LABEL_TAGS)
    await connected(driver)
    assert (await job(driver, 0, "A"))[0] is Outcome.VERIFIED
    assert device.heard == []
    for number in (1, 0, 1):
        assert (await job(driver, number, "A"))[0] is Outcome.VERIFIED
    assert printed(device) == [b"PRINT A 1"] * 2
    await driver.close()


async def test_written_one_by_one(device: Device) -> None:
    device.told = lambda line: [b"R0,0\r\n"] if line == b"?" else []
    driver = driver_for(device, PRINTER, *LABEL_TAGS)
    await connected(driver)
    early = await driver.write("l.job", 1, T)
    assert early.outcome is Outcome.REJECTED
    assert "l.text has not been written yet" in early.reason
    assert (await driver.write("l.text", "A", T)).read_back == "A"
    assert (await driver.write("l.job", 1, T)).read_back == 1
    bad = await driver.write("l.text", "A\r\nPRINT", T)
    assert bad.outcome is Outcome.VERIFIED
    refused = await driver.write("l.job", 2, T)
    assert refused.outcome is Outcome.REJECTED
    assert "could act as a command" in refused.reason
    assert printed(device) == [b"PRINT A 1"]
    await driver.close()


async def test_blocks_are_the_job_of_one_command(device: Device) -> None:
    driver = driver_for(device, PRINTER, *LABEL_TAGS, tag("p.paper", "ready.paper", "BOOL"))
    assert driver.block_problem(["l.text", "l.job"]) == ""
    assert driver.block_problem(["l.job"]) == ""
    for tags in (["l.text"], ["l.job", "p.paper"], ["l.job", "x.x"], []):
        assert driver.block_problem(tags), tags
    assert (await driver.write_block({"l.text": "A"}, T)).outcome is Outcome.REJECTED


async def test_a_command_that_is_answered(device: Device) -> None:
    tare = Message(pattern=r"T (?P<status>[SI])(?: +(?P<tare>\d+\.\d+) g)?", bad={"status": {"I": "cannot tare now"}})
    protocol = LineProtocol(
        framing=CRLF, messages={"tared": tare}, commands={"tare": Command(send="T\r\n", answer="tared")}
    )
    tags = (tag("w.job", "tare.job", "UDINT", writable=True), tag("w.tare", "tared.tare", "REAL"))
    answers = [b"T I\r\n", b"T S 12.5 g\r\n"]
    device.told = lambda line: [answers.pop(0)] if answers else []
    driver = driver_for(device, protocol, *tags)
    await connected(driver)
    refused = await driver.write("w.job", 1, T)
    assert refused.outcome is Outcome.REJECTED
    assert "cannot tare now" in refused.reason
    assert (await driver.write("w.job", 1, T)).outcome is Outcome.VERIFIED
    assert (await driver.read(0, T)).values == (1, 12.5)
    assert (await driver.write("w.job", 2, 0.05)).outcome is Outcome.UNKNOWN
    await driver.close()


async def test_a_command_that_nobody_acknowledges_is_unknown(device: Device) -> None:
    protocol = LineProtocol(framing=CRLF, commands={"beep": Command(send="B\r\n")})
    driver = driver_for(device, protocol, tag("b.job", "beep.job", "UDINT", writable=True))
    await connected(driver)
    for _ in range(2):
        got = await driver.write("b.job", 1, T)
        assert got.outcome is Outcome.UNKNOWN
    await device.told_of(b"B")
    assert device.heard == [b"B"]
    await driver.close()


# --- the line


async def test_a_pulled_plug_ends_what_waits_and_says_so(tmp_path: Path) -> None:
    async with PtyDevice(tmp_path) as device:
        driver = driver_for(device, SCALE, *SCALE_TAGS)
        await connected(driver)
        task = asyncio.create_task(driver.read(0, 0.5))
        await device.told_of(b"SI")
        device.pull()
        with pytest.raises(LinkDown, match="serial port lost") as caught:
            await task
        assert str(device.path) in str(caught.value)
        assert "plugged in" in str(caught.value)
        with pytest.raises(LinkDown):
            await driver.read(0, T)
        await driver.close()
        with pytest.raises(LinkDown, match="cannot open the serial port"):
            await driver.connect(T)
        device.told = lambda line: [b"S S 1.0 g\r\n"]
        device.plug()
        await driver.connect(T)
        assert (await driver.read(0, T)).values == (1.0, "S")
        await driver.close()


async def test_a_job_while_the_line_is_being_opened_is_not_sent() -> None:
    """What cannot have been sent must not count as sent."""
    async with TcpDevice(lambda line: [b"R0,0\r\n"] if line == b"?" else []) as device:
        driver = driver_for(device, PRINTER, *LABEL_TAGS)
        opening = asyncio.create_task(driver.connect(1.0))
        await asyncio.sleep(0)
        outcome, reason = await job(driver, 1, "A")
        assert outcome is Outcome.REJECTED
        assert "not connected" in reason
        await opening
        assert (await job(driver, 1, "A"))[0] is Outcome.VERIFIED
        assert printed(device) == [b"PRINT A 1"]
        await driver.close()


async def test_a_close_ends_what_waits(device: Device) -> None:
    driver = driver_for(device, SCALE, *SCALE_TAGS)
    await connected(driver)
    task = asyncio.create_task(driver.read(0, 5.0))
    await device.told_of(b"SI")
    await driver.close()
    with pytest.raises(LinkDown, match="not connected"):
        await task
