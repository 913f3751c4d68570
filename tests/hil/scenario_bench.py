"""What a scenario on the bench needs: a line in virtual time, the people at it, and the plant's own word on everything.

Nothing here looks away: a wait that is not fulfilled fails with the states and alarms of the whole line, and
:meth:`Scene.settled_counts` compares every station's books with the bottles that are really there.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

from controller.core.commands import Command, CommandQueue, Reply
from controller.core.events import AnyEvent
from controller.core.packml import State, Trigger
from drivers.port import Value
from hil.bench import SECOND, Bench, line_folder

MACHINES = {"infeed": "wet", "filler": "wet", "capper": "dry", "labeler": "dry", "packer": "wet"}
"""Stations with a run bit, and the PLC that holds it."""
STATIONS = {"infeed": "wet", "filler": "wet", "capper": "dry", "labeler": "dry", "checkweigher": "inspect",
            "packer": "wet"}  # fmt: skip
COLUMNS = ("infeed", "good", "rejected", "in_process")
EXECUTE = 6


class Scene:
    """A bench, every event that it brought forth, and the hands and eyes of the people around it."""

    def __init__(self, seed: int = 1, bench: Bench | None = None) -> None:
        self.bench = bench or Bench("bottling", seed)
        self.events: list[AnyEvent] = []
        self.replies: dict[str, Reply] = {}
        self.each_step: list[Callable[[], None]] = []
        """What must hold after every single scan."""

    # ---- time

    def step(self) -> list[AnyEvent]:
        """One scan; returns its events."""
        happened = list(self.bench.step().events)
        self.events += happened
        for reply in self.bench.replies:
            assert reply.id not in self.replies, f"command {reply.id} was answered twice"
            self.replies[reply.id] = reply
        for check in self.each_step:
            check()
        return happened

    def run(self, seconds: float) -> None:
        """Let plant time pass."""
        end = self.bench.now_ns + round(seconds * SECOND)
        while self.bench.now_ns < end:
            self.step()

    def until(self, condition: Callable[[], bool], limit_s: float, what: str) -> float:
        """Scan until the condition holds; returns how many seconds of plant time that took."""
        begin = self.bench.now_ns
        while not condition():
            waited = (self.bench.now_ns - begin) / SECOND
            assert waited < limit_s, f"{what}: not within {limit_s:g} s\n{self.picture()}"
            self.step()
        return (self.bench.now_ns - begin) / SECOND

    # ---- what is to be seen

    @property
    def line(self) -> State:
        return self.bench.logic.line.state

    @property
    def states(self) -> dict[str, State]:
        return {name: station.state for name, station in self.bench.logic.stations.items()}

    def active(self, station: str | None = None) -> dict[str, str]:
        """Active alarms with their texts, by id."""
        alarms = self.bench.logic.alarms.alarms.values()
        return {a.id: a.text for a in alarms if a.active and station in (None, a.station)}

    def at_plant(self, point: str) -> Value:
        """A point as it is in its PLC, not as the controller believes it to be."""
        return self.bench.world.plcs[STATIONS[point.partition(".")[0]]].get(point)

    def running(self) -> list[str]:
        """Stations whose drive runs, by their PLCs' own word. A PLC without power drives nothing."""
        alive = {name for name, plc in self.bench.world.plcs.items() if plc.alive}
        found = [n for n, plc in MACHINES.items() if plc in alive and self.at_plant(f"{n}.running")]
        if "inspect" in alive and self.at_plant("checkweigher.state_current") in (EXECUTE, 16):
            found.append("checkweigher")
        return found

    def run_bits(self) -> list[str]:
        """Stations whose run bit stands in their PLC."""
        alive = {name for name, plc in self.bench.world.plcs.items() if plc.alive}
        return [n for n, plc in MACHINES.items() if plc in alive and self.at_plant(f"{n}.run")]

    def lost_s(self) -> dict[str, float]:
        """Seconds that the line lost so far, by the station that caused it."""
        return {name: self.bench.logic.losses.caused_by(name) / SECOND for name in STATIONS}

    def picture(self) -> str:
        rows = [f"line {self.line.text}: {self.bench.logic.line.first_out or self.bench.logic.line.stop_reason}"]
        rows += [f"{n} {s.state.text}: {s.stop_reason}" for n, s in self.bench.logic.stations.items()]
        rows += [f"{name}: {text}" for name, text in self.active().items()]
        return "\n".join([*rows, f"block: {self.bench.logic.block}"])

    def counted(self) -> dict[str, dict[str, int]]:
        """Every station's counts in the controller."""
        rows = {}
        for name, station in self.bench.logic.stations.items():
            tally = station.parts.tally
            assert tally is not None
            rows[name] = {**tally.totals, "in_process": tally.in_process or 0}
        return rows

    def settled_counts(self) -> dict[str, int]:
        """The controller's books equal the plant's, station by station and for the line; returns the line's."""
        self.until(lambda: not self.running(), 30, "every machine standing")
        self.run(5)  # the slowest reads come up
        truth = self.bench.world.truth()
        assert self.counted() == truth["stations"]
        line = self.bench.logic.line_counts()
        assert line == {column: truth["line"][column] for column in COLUMNS}
        assert line["infeed"] == line["good"] + line["rejected"] + line["in_process"]
        return line

    # ---- the people

    def order(self, target: str, name: str, user: str = "operator", **args: str | int | float | bool) -> Reply:
        """Give a command; returns the answer."""
        self.bench.command(target, name, user, **args)
        number = str(self.bench._number)
        self.step()
        return self.replies[number]

    def must(self, target: str, name: str, user: str = "operator", **args: str | int | float | bool) -> None:
        """Give a command that has to be accepted."""
        reply = self.order(target, name, user, **args)
        assert reply.accepted, f"{target} {name}: {reply.reason}\n{self.picture()}"

    def at_once(self, commands: Iterable[tuple[str, str]]) -> list[str]:
        """Several people press within one scan period, through the real queue; returns the ids in that order."""
        queue, ids = CommandQueue(), []
        for target, name in commands:
            self.bench._number += 1
            ids.append(str(self.bench._number))
            refused = queue.put(Command(id=ids[-1], target=target, name=name, user=f"person {ids[-1]}"))
            if refused is not None:
                self.replies[refused.id] = refused
        self.bench._commands += queue.drain()
        return ids

    def recover(self, *stations: str) -> None:
        """Bring aborted stations back to Idle, each by its own Clear and Reset."""
        for name in stations:
            if self.states[name] is State.ABORTED:
                self.must(name, "clear", "technician")
        self.until(lambda: all(self.states[n] is State.STOPPED for n in stations), 20, f"{stations} Stopped")
        for name in stations:
            self.must(name, "reset", "technician")
        self.until(lambda: all(self.states[n] is State.IDLE for n in stations), 20, f"{stations} Idle")

    def to_idle(self) -> None:
        """The line from wherever it rests to Idle."""
        logic = self.bench.logic
        self.until(lambda: logic.recipe is not None and logic.changeover is None, 40, "a recipe in force")
        if self.line is State.ABORTED:
            self.until(lambda: not logic.line.obstacles(Trigger.CLEAR), 10, "nothing against Clear")
            self.must("line", "clear")
            self.until(lambda: self.line is State.STOPPED, 20, "the line Stopped")
        aborted = [name for name, state in self.states.items() if state is State.ABORTED]
        for name in aborted:
            self.must(name, "clear", "technician")
        self.until(lambda: State.CLEARING not in self.states.values(), 20, f"{aborted} cleared")
        self.must("line", "reset")
        self.until(lambda: self.line is State.IDLE, 20, "the line Idle")

    def start(self) -> None:
        """From Idle to Execute."""
        self.must("line", "start")
        self.until(lambda: self.line is State.EXECUTE, 40, "the line in Execute")

    def to_recipe(self, recipe: str) -> None:
        """Change the standing line over, or load the recipe again."""
        logic = self.bench.logic
        self.must("line", "changeover", recipe=recipe)
        self.until(lambda: logic.changeover is None, 60, f"{recipe} loaded")
        assert logic.last_changeover is not None
        assert logic.last_changeover.committed, logic.last_changeover.detail

    def bring_up(self, flow: bool = True) -> None:
        """From power-on to bottles at the end of the line."""
        self.to_idle()
        self.start()
        if flow:
            self.produce(3)

    def produce(self, bottles: int) -> None:
        """Until that many more good bottles left the line, with every station in Execute."""
        wanted = self.good() + bottles
        self.until(lambda: self.good() >= wanted, 60 + 3 * bottles, f"{bottles} good bottles")
        self.until(lambda: set(self.states.values()) == {State.EXECUTE}, 30, "every station in Execute")

    def good(self) -> int:
        """Good bottles, by the plant's word."""
        return int(self.bench.world.truth()["line"]["good"])

    def finish(self) -> dict[str, int]:
        """Run the line empty; the books balance and nothing is left. Returns the line's counts."""
        self.must("line", "complete")
        self.until(lambda: self.line is State.COMPLETE, 150, "the line Complete")
        counts = self.settled_counts()
        assert counts["in_process"] == 0
        assert self.run_bits() == []
        return counts


def line_where_a_lost_estop_input_aborts(folder: Path) -> Path:
    """A copy of the bottling line with the default for unreadable emergency stop inputs; returns its line.yaml."""
    shutil.copytree(line_folder("bottling"), folder, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    file = folder / "line.yaml"
    text, count = re.subn(r"(?m)^  estop_on_loss: station.*$", "  estop_on_loss: abort", file.read_text())
    assert count == 1
    file.write_text(text)
    return file
