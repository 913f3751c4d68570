"""The play: an operator brings the line up, changes it over, runs it empty; a technician frees a jam.

Every step waits for what the line shows, with a time limit, and fails with the line's own reason. Nothing here
knows more than the north port and the bench's control socket tell.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from controller.cli.connect import picture
from controller.cli.demo.screen import Screen, worth_telling
from controller.cli.demo.stage import Stage
from controller.cli.demo.verdict import Verdict, judge, numbers
from controller.cli.journal import sentence
from controller.cli.picture import Picture
from controller.core.events import AnyEvent
from controller.north.frames import Arg, Events, Reply
from controller.runtime.journal import read
from drivers.port import FieldBusError

MARGIN = 4
"""Bottles let in beyond what is wanted: about one in a hundred is rejected."""
JAMMED = "infeed"
LOST = frozenset({"Held", "Holding", "Stopped", "Stopping", "Aborted", "Aborting"})
NEXT = {"Aborted": "clear", "Stopped": "reset", "Complete": "reset", "Idle": "start"}
"""What brings the line one step nearer to Execute."""
UNDONE = ("rolling_back", "rolled_back", "failed")
DRAW_S = 0.25
SETTLE_S = 6.0
"""Seconds in which the last counts must have come up from the PLCs: a few of their slowest reads."""


class PlayFailed(Exception):
    """The line did not do what it was asked to; the text says what and the line's own reason."""


@dataclass(frozen=True)
class Script:
    """What is to be played: good bottles per product, and whether with the jam and the changeover."""

    bottles: int
    jam: bool = True


class Play:
    """One performance on a stage."""

    def __init__(self, stage: Stage, screen: Screen) -> None:
        self._stage, self._screen = stage, screen
        self._client = stage.client

    @property
    def now(self) -> Picture:
        """What the line shows."""
        return picture(self._client)

    async def follow(self) -> None:
        """Show the line and tell its events, until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._draw())
            with self._client.frames() as frames:
                async for frame in frames:
                    for event in frame.events if isinstance(frame, Events) else ():
                        self._tell_event(event)

    async def _draw(self) -> None:
        while True:
            self._screen.show(self.now)
            await asyncio.sleep(DRAW_S)

    def _tell_event(self, event: AnyEvent) -> None:
        tell = worth_telling(event)
        if tell is not None:
            self._screen.tell(event.station or "line", sentence(event), detail=not tell)

    # ------------------------------------------------------------------------------------------- the acts

    async def bring_up(self) -> None:
        """From power-on to Execute, as an operator does it."""
        plcs = self.now.plcs
        await self._until(lambda: all(self.now.flag(f"plcs.{p}.up") for p in plcs), 30, "every PLC connected")
        await self._until(lambda: self._client.values["line.recipe"] not in ("", None), 40, "the recipe loaded")
        self._screen.tell("demo", f"recipe {self.now.text('line.recipe')} is loaded and read back on every station")
        if self.now.alarms():
            await self.order("line", "acknowledge_all")
        await self.run_line()

    async def run_line(self) -> None:
        """Give what is needed, in turn, until the line is in Execute."""
        while (state := self.now.state("line")) != "Execute":
            if state in NEXT:
                await self.order("line", NEXT[state])
            await self._until(
                lambda before=state: self.now.state("line") in ({*NEXT, "Execute"} - {before}),  # type: ignore[misc]
                30, f"the line to leave {state}",
            )  # fmt: skip

    async def make(self, wanted: int, since: int) -> None:
        """Until so many more than ``since`` good bottles are out or on their way."""
        enough = since + wanted + MARGIN
        await self._until_running(
            lambda c: (c["good"] or 0) + (c["in_process"] or 0) >= enough, 30 + 2.0 * wanted,
            f"{wanted} bottles",
        )  # fmt: skip

    async def produce_until(self, end: float) -> None:
        """Stay in production until ``end`` (monotonic seconds), or fail with the reason why not."""
        begin = time.monotonic()
        if end > begin:
            await self._until_running(lambda _: time.monotonic() >= end, end - begin + 10, "the end of production")

    async def change_over(self) -> None:
        """To the first other recipe, and on."""
        now = self.now.text("line.recipe")
        other = next((r for r in self.now.hello.recipes if r != now), None)
        if other is None:
            raise PlayFailed(f"the line has no other recipe than {now}")
        await self.order("line", "changeover", recipe=other, start=True)

        def over() -> bool:
            if self.now.text("line.changeover_step") in UNDONE:
                raise PlayFailed(f"the changeover failed: {self.now.text('line.changeover_detail')}")
            return self.now.text("line.recipe") == other and self.now.state("line") == "Execute"

        await self._until(over, 75, f"{other} in force and the line in Execute")

    async def jam(self) -> None:
        """A bottle sticks at the infeed; the operator sees the alarm, the technician frees it, the station goes on."""
        await self._until_running(lambda _: self.now.state(JAMMED) == "Execute", 20, f"{JAMMED} in Execute")
        self._screen.tell("demo", f"a bottle jams at the {JAMMED} now")
        await self._stage.control.inject("jam", station=JAMMED)
        await self._until(lambda: any(self._is_jam(a.id) and a.active for a in self.now.alarms()), 20,
                          f"an alarm that names {JAMMED}")  # fmt: skip
        alarm = next(a for a in self.now.alarms() if self._is_jam(a.id))
        self._screen.tell("operator", f"sees {alarm.id}: {alarm.text}")
        await self.order("line", "acknowledge", alarm=alarm.id)
        await self._until(lambda: self.now.state(JAMMED) == "Held", 20, f"{JAMMED} Held")
        self._screen.tell("technician", f"frees the bottle at the {JAMMED}")
        await self._stage.control.clear("jam", station=JAMMED)
        await self.order(JAMMED, "unhold", user="technician")
        await self._until(lambda: self.now.state(JAMMED) == "Execute", 20, f"{JAMMED} back in Execute")

    async def finish(self) -> None:
        """Run the line empty."""
        await self.order("line", "complete")
        await self._until(lambda: self.now.state("line") == "Complete", 60, "the line Complete")

    async def verdict(self, *, changeovers: int, bottles: int) -> Verdict:
        """Compare with the plant. The line is at rest; its last counts get a moment to come up."""
        end = time.monotonic() + SETTLE_S
        while True:
            rows = read(self._stage.journal, limit=1_000_000)
            truth = await self._stage.control.truth()
            verdict = judge(self.now, truth, [row.event for row in rows])
            if verdict.ok or time.monotonic() > end:
                break
            await asyncio.sleep(DRAW_S)
        failures = list(verdict.failures)
        if verdict.changeovers != changeovers:
            failures.append(f"{verdict.changeovers} changeovers committed, not {changeovers}")
        if len(verdict.products) != changeovers + 1:
            failures.append(f"{len(verdict.products)} products made, not {changeovers + 1}")
        failures += [
            f"only {c['good']} good of {name}, not {bottles}"
            for name, c in verdict.products.items()
            if c["good"] < bottles
        ]
        opcua = await self._over_opcua(failures)
        facts = {
            "sim_s": round(truth["now_s"], 3),
            "scans": self.now.number("line.scan_count"),
            "overruns": self.now.number("line.scan_overruns"),
            "event_log_sha256": rows[-1].hash,  # each row's hash covers all rows before it
        }
        return replace(verdict, opcua=opcua, facts=facts, failures=tuple(failures))

    async def _over_opcua(self, failures: list[str]) -> dict[str, int]:
        """The line's counts as a client of the gateway sees them; what is wrong there is added to the failures."""
        from controller.cli.demo.hmi import counts_over_opcua  # noqa: PLC0415 - the OPC UA library takes its time

        try:
            seen = await counts_over_opcua(self._stage.endpoint, self.now.hello.line)
        except FieldBusError as error:
            failures.append(f"OPC UA: {error}")
            return {}
        ours = numbers(self.now.counts("line"))
        if seen != ours:
            failures.append(f"OPC UA shows {seen}, the controller {ours}")
        return seen

    async def perform(self, script: Script) -> Verdict:
        """The whole play."""
        await self.bring_up()
        await self.make(script.bottles, 0)
        await self.change_over()
        since = self.now.number("line.good")
        if script.jam:
            third = since + max(2, script.bottles // 3)
            await self._until_running(lambda c: (c["good"] or 0) + (c["in_process"] or 0) >= third, 60, "bottles")
            await self.jam()
        await self.make(script.bottles, since)
        await self.finish()
        return await self.verdict(changeovers=1, bottles=script.bottles)

    # ------------------------------------------------------------------------------------------- inside

    @staticmethod
    def _is_jam(alarm: str) -> bool:
        return alarm == f"{JAMMED}.jam"

    async def order(self, target: str, name: str, *, user: str = "operator", **args: Arg) -> None:
        """Give a command and tell of it. Raises :class:`PlayFailed` when it is refused."""
        given = " ".join([name, *(f"{k}={v}" for k, v in args.items())])
        reply = await self._give(target, name, args, user)
        if not reply.accepted and not self.now.flag("line.journal_healthy"):
            # A disk that is busy with something else: what must be recorded is refused until it answers again.
            self._screen.tell("demo", f"{target} refused {given}: {reply.reason}")
            await self._until(lambda: self.now.flag("line.journal_healthy"), 20, "a record that can be kept")
            reply = await self._give(target, name, args, user)
        if not reply.accepted:
            raise PlayFailed(f"{target} refused {given}: {reply.reason}")
        self._screen.tell(user, f"{target}: {given}")

    async def _give(self, target: str, name: str, args: dict[str, Arg], user: str) -> Reply:
        try:
            return await self._client.command(target, name, args, user=user, client="demo")
        except TimeoutError as error:
            raise PlayFailed(str(error)) from error

    async def _until(self, condition: Callable[[], bool], limit_s: float, what: str) -> None:
        try:
            await self._client.wait_until(condition, limit_s, what)
        except TimeoutError as error:
            now = self.now
            reason = now.advice("line") or now.text("line.block")
            alarms = ", ".join(a.id for a in now.alarms()) or "none"
            raise PlayFailed(f"{error}; the line is {now.state('line')} ({reason}); alarms: {alarms}") from error

    async def _until_running(self, enough: Callable[[dict[str, int | None]], bool], limit_s: float, what: str) -> None:
        """As :meth:`_until`, and the line must stay in Execute meanwhile."""

        def condition() -> bool:
            now = self.now
            if now.state("line") in LOST:
                raise PlayFailed(f"waiting for {what}: the line became {now.state('line')}: {now.advice('line')}")
            return enough(now.counts("line"))

        await self._until(condition, limit_s, what)
