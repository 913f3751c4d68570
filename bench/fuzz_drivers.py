"""Many thousand exchanges with a server that lies: is a wrong value ever taken, a write doubled or falsely verified?

Run: ``python -m bench.fuzz_drivers [--exchanges 100000] [--seed 1] [--json]``. Every value that a driver calls good
is judged against what the server held when it was asked; every write against the log of what it executed. The last
line is one JSON object; the exit code is 1 when anything was wrong.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field

from bench.adversary import ODDITIES, WRITABLE, AdversaryTcp, AdversaryUdp, Liar, Memory, register
from bench.adversary_rtu import AdversaryRtu
from drivers.factory import make_driver
from drivers.options import DriverOptions, ModbusSerialOptions, ModbusTcpOptions, ModbusUdpOptions, SerialOptions
from drivers.port import (
    Area,
    DataType,
    DeviceRefused,
    Driver,
    ExchangeFailed,
    LinkDown,
    ModbusAddress,
    Outcome,
    Reading,
    Tag,
)

TIMEOUT_S = 0.012
HUNG_S = 2.0
"""No call may take longer: a group of at most 9 requests, each at most a time-out and its rest."""
PIPELINED = tuple(name for name in ODDITIES if name not in ("wrong_tid", "next_tid"))
"""With several requests outstanding the id alone tells two of one shape apart: nobody can tell a lie about it."""


def tags() -> list[Tag]:
    """Six groups: one register, 125, several blocks, input registers, coils, and the register that is written."""
    made = [_word("one", 0, "a")] + [_word(f"wide{n}", 200 + n, "b") for n in range(125)]
    made += [_word(f"far{n}", 1000 * (n // 40 + 1) + n % 40, "c") for n in range(360)]
    made += [_word(f"input{n}", 32 + n, "d", Area.INPUT_REGISTER) for n in range(64)]
    coils = [
        Tag(name=f"bit{n}", address=ModbusAddress(Area.COIL, 40 + n), type=DataType.BOOL, scan_class="e")
        for n in range(99)
    ]
    pulse = Tag(
        name="pulse",
        address=ModbusAddress(Area.HOLDING_REGISTER, WRITABLE),
        type=DataType.UDINT,
        writable=True,
        scan_class="f",
    )
    return [*made, *coils, pulse]


def _word(name: str, offset: int, scan_class: str, area: Area = Area.HOLDING_REGISTER) -> Tag:
    return Tag(name=name, address=ModbusAddress(area, offset), type=DataType.UINT, scan_class=scan_class)


@dataclass
class Score:
    """What one run saw."""

    exchanges: int = 0
    values: int = 0
    wrong: int = 0
    hung: int = 0
    lost: int = 0
    writes: Counter[str] = field(default_factory=Counter)
    doubled: int = 0
    falsely_verified: int = 0
    falsely_rejected: int = 0
    longest_s: float = 0.0
    notes: list[str] = field(default_factory=list)

    @property
    def sound(self) -> bool:
        return not (self.wrong or self.hung or self.doubled or self.falsely_verified or self.falsely_rejected)


def judge(score: Score, driver: Driver, group: int, reading: Reading, before: int, memory: Memory) -> None:
    """Every good value of a reading against what the server held between the asking and now."""
    for index, (tag, value) in enumerate(zip(driver.groups[group].tags, reading.values, strict=True)):
        if index in reading.bad:
            continue
        score.values += 1
        assert isinstance(tag.address, ModbusAddress)
        offset = tag.address.offset
        if offset >= WRITABLE:
            right = value == memory.word(offset) << 16 | memory.word(offset + 1)
        elif tag.type is DataType.BOOL:
            right = value == bool(register(offset) & 1)
        elif offset % 16 > 1:
            right = value == register(offset)
        elif offset % 16 == 1:
            # The number of the request, low word: later than the asking, not later than now.
            assert isinstance(value, int)
            right = 0 < value - before & 0xFFFF <= memory.received - before
        else:
            right = value in (before >> 16 & 0xFFFF, memory.received >> 16 & 0xFFFF)
        if not right:
            score.wrong += 1
            score.notes.append(
                f"{tag.name} at {tag.address}: {value!r} taken; asked at {before}, now {memory.received}"
            )


async def run(driver: Driver, memory: Memory, exchanges: int, rng: random.Random) -> Score:
    """Read and write at random until the server has seen so many requests."""
    score = Score()
    written = 0
    connected = False
    while memory.received < exchanges:
        before, start = memory.received, time.monotonic()
        try:
            if not connected:
                await driver.connect(1.0)
                connected = True
            if rng.random() < 0.1:
                written += 1
                await _write(score, driver, memory, written)
            else:
                group = rng.randrange(len(driver.groups))
                judge(score, driver, group, await driver.read(group, TIMEOUT_S), before, memory)
        except LinkDown:
            score.lost += 1
            connected = False
            await driver.close()
        except (ExchangeFailed, DeviceRefused):
            score.lost += 1
        took = time.monotonic() - start
        score.longest_s = max(score.longest_s, took)
        score.hung += took > HUNG_S
    await driver.close()
    score.exchanges = memory.received
    score.doubled = sum(1 for times in memory.executed.values() if times > 1)
    return score


async def _write(score: Score, driver: Driver, memory: Memory, number: int) -> None:
    result = await driver.write("pulse", number, TIMEOUT_S)
    score.writes[result.outcome.value] += 1
    done = memory.executed[number]
    if result.outcome is Outcome.VERIFIED and done != 1:
        score.falsely_verified += 1
    if result.outcome is Outcome.REJECTED and done:
        score.falsely_rejected += 1
        score.notes.append(f"write {number} rejected but executed: {result.reason}")
    if result.outcome is Outcome.UNKNOWN and driver.stats().breaker == "closed" and "not connected" in result.reason:
        score.notes.append(f"write {number}: {result.reason}")


class _Tcp(AbstractAsyncContextManager[DriverOptions]):
    def __init__(self, memory: Memory, rng: random.Random, share: float, in_flight: int) -> None:
        only = ODDITIES if in_flight == 1 else PIPELINED
        self._in_flight = in_flight
        self.server = AdversaryTcp(Liar(memory, rng, share, late_s=1.2 * TIMEOUT_S, only=only))

    async def __aenter__(self) -> DriverOptions:
        await self.server.__aenter__()
        return ModbusTcpOptions(host="127.0.0.1", port=self.server.port, unit=3, in_flight=self._in_flight)

    async def __aexit__(self, *exc: object) -> None:
        await self.server.__aexit__(*exc)


class _Udp(AbstractAsyncContextManager[DriverOptions]):
    def __init__(self, memory: Memory, rng: random.Random, share: float) -> None:
        only = tuple(name for name in ODDITIES if name not in ("bytewise", "cut", "reset", "next_tid"))
        self.server = AdversaryUdp(Liar(memory, rng, share, late_s=1.2 * TIMEOUT_S, only=only))

    async def __aenter__(self) -> DriverOptions:
        await self.server.__aenter__()
        return ModbusUdpOptions(host="127.0.0.1", port=self.server.port, unit=3)

    async def __aexit__(self, *exc: object) -> None:
        await self.server.__aexit__(*exc)


class _Rtu(AbstractAsyncContextManager[DriverOptions]):
    def __init__(self, memory: Memory, rng: random.Random, share: float) -> None:
        self.server = AdversaryRtu(memory, rng, share, late_s=1.05 * TIMEOUT_S)

    async def __aenter__(self) -> DriverOptions:
        await self.server.__aenter__()
        return ModbusSerialOptions(line=SerialOptions(device=self.server.device, baudrate=115200), unit=17)

    async def __aexit__(self, *exc: object) -> None:
        await self.server.__aexit__(*exc)


RUNS: dict[str, tuple[float, Callable[[Memory, random.Random], AbstractAsyncContextManager[DriverOptions]]]] = {
    "tcp": (0.4, lambda memory, rng: _Tcp(memory, rng, 0.2, 1)),
    "tcp, 16 in flight": (0.4, lambda memory, rng: _Tcp(memory, rng, 0.04, 16)),
    "udp": (0.1, lambda memory, rng: _Udp(memory, rng, 0.1)),
    "rtu": (0.1, lambda memory, rng: _Rtu(memory, rng, 0.1)),
}
"""Share of the exchanges, and how to serve."""


async def fuzz(name: str, exchanges: int, seed: int) -> Score:
    """One run by name. A driver's task that is left over counts as hung."""
    memory = Memory()
    tasks: set[asyncio.Task[object]] = set(asyncio.all_tasks())
    async with RUNS[name][1](memory, random.Random(f"{seed} {name} server")) as options:
        driver = make_driver("fuzzed", options, tags())
        score = await run(driver, memory, exchanges, random.Random(f"{seed} {name} client"))
        score.hung += len(asyncio.all_tasks() - tasks)
    return score


async def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--exchanges", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", choices=list(RUNS))
    parser.add_argument("--json", action="store_true", help="the JSON line alone")
    options = parser.parse_args()
    say: Callable[[str], object] = (lambda _: None) if options.json else print
    say(f"{'':20}{'exchanges':>10}{'values':>10}{'wrong':>7}{'hung':>6}{'lost':>7}  writes")
    total: Counter[str] = Counter()
    sound = True
    for name, (share, _) in RUNS.items():
        if options.only not in (None, name):
            continue
        score = await fuzz(name, int(options.exchanges * (share if options.only is None else 1)), options.seed)
        say(
            f"{name:20}{score.exchanges:10}{score.values:10}{score.wrong:7}{score.hung:6}{score.lost:7}  "
            f"{dict(score.writes)}, doubled {score.doubled}, falsely verified {score.falsely_verified}, "
            f"falsely rejected {score.falsely_rejected}; longest call {score.longest_s * 1e3:.0f} ms"
        )
        for note in score.notes[:5]:
            say(f"    {note}")
        sound = sound and score.sound
        for key in ("exchanges", "values", "wrong", "hung", "lost", "doubled", "falsely_verified", "falsely_rejected"):
            total[key] += getattr(score, key)
    print(json.dumps(dict(total)))
    return 0 if sound else 1


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
