"""The line and its people: who presses when, who wins; and the scan itself: same inputs, same outputs."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
from scenario_bench import STATIONS, Scene

from controller.build import build_line
from controller.core.commands import Command, CommandQueue
from controller.core.events import CommandDone
from controller.core.image import InputBuffer
from controller.core.packml import State
from hil.bench import line_folder, run_shift

# --- two people, one scan


@pytest.mark.parametrize(
    "presses", [("start", "stop"), ("stop", "start"), ("start", "start", "stop"), ("start", "abort")]
)
def test_start_and_stop_in_one_scan(presses: Sequence[str]) -> None:
    """Stop and Abort go first, whoever was first at the button."""
    scene = Scene(seed=41)
    scene.to_idle()
    ids = scene.at_once([("line", name) for name in presses])
    scene.step()
    for number, name in zip(ids, presses, strict=True):
        assert scene.replies[number].accepted is (name != "start"), scene.replies[number]
    loser = scene.replies[ids[presses.index("start")]].reason
    assert "Start is not possible in" in loser, loser
    for _ in range(100):
        scene.step()
        assert (scene.running(), scene.run_bits()) == ([], []), "not even for a moment"
    assert scene.line is (State.ABORTED if "abort" in presses else State.STOPPED)
    told = {e.id: (e.user, e.accepted) for e in scene.events if isinstance(e, CommandDone) and e.id in ids}
    assert set(told) == set(ids), "each press is in the record with its person"


def test_two_people_start_at_once() -> None:
    scene = Scene(seed=42)
    scene.to_idle()
    first, second = scene.at_once([("line", "start"), ("line", "start")])
    scene.step()
    assert scene.replies[first].accepted
    assert not scene.replies[second].accepted
    assert "Start is not possible in Starting" in scene.replies[second].reason
    scene.produce(2)


@pytest.mark.parametrize("after", [1, 5, 12, 20, 30])
def test_stop_during_starting(after: int) -> None:
    scene = Scene(seed=43)
    scene.to_idle()
    scene.must("line", "start")
    for _ in range(after):
        scene.step()
    if after < 20:
        assert scene.line is State.STARTING
    scene.must("line", "stop")
    scene.until(lambda: scene.line is State.STOPPED, 30, "the line Stopped")
    assert set(scene.states.values()) == {State.STOPPED}
    scene.step()
    assert (scene.running(), scene.run_bits()) == ([], [])
    scene.to_idle()
    scene.start()
    scene.produce(3)
    scene.finish()


def test_abort_during_completing() -> None:
    scene = Scene(seed=44)
    scene.bring_up()
    scene.must("line", "complete")
    scene.until(lambda: scene.states["infeed"] is State.COMPLETE, 30, "the infeed run out")
    assert scene.line is State.COMPLETING
    scene.must("line", "abort")
    assert {scene.line, *scene.states.values()} == {State.ABORTED}, "in the scan that took it"
    assert scene.run_bits() == []
    assert scene.running() in ([], ["checkweigher"])
    scene.until(lambda: not scene.running(), 1, "the handshake with the PLC that runs PackML itself")
    assert scene.settled_counts()["in_process"] > 0
    scene.to_idle()
    scene.start()
    scene.produce(3)
    scene.finish()


def test_a_storm_of_commands_loses_no_stop() -> None:
    """A thousand commands a second for three seconds; the Stop in the middle of a burst is taken in the next scan."""
    scene = Scene(seed=45)
    scene.bring_up()
    nonsense = [(t, n) for t in ("line", *STATIONS, "nowhere") for n in ("start", "clear", "reset", "dance")]
    sent: list[str] = []
    for _ in range(30):
        sent += scene.at_once(nonsense[n % len(nonsense)] for n in range(100))
        scene.step()
        assert scene.line is State.EXECUTE
    burst = [nonsense[n % len(nonsense)] for n in range(1000)]
    burst.insert(600, ("line", "stop"))
    ids = scene.at_once(burst)
    sent += ids
    scene.step()
    assert scene.replies[ids[600]].accepted
    assert scene.line is State.STOPPING
    assert set(scene.replies) >= set(sent), "everybody is answered"
    full = [i for i in ids if "256 commands are already waiting" in scene.replies[i].reason]
    assert len(full) == 1000 - 256
    scene.until(lambda: scene.line is State.STOPPED, 30, "the line Stopped")
    assert (scene.running(), scene.run_bits()) == ([], [])
    scene.settled_counts()


def test_a_hostile_flood_of_stops_for_stations_that_do_not_exist_leaves_the_lines_own() -> None:
    queue = CommandQueue()
    for n in range(5000):
        queue.put(Command(id=f"f{n}", target=f"nowhere{n}", name="stop"))
    assert queue.put(Command(id="mine", target="line", name="stop")) is None
    assert queue.put(Command(id="also", target="line", name="abort")) is None
    drained = queue.drain()
    assert drained[0].id == "also"
    assert "mine" in {c.id for c in drained}
    assert len(drained) <= 258


# --- determinism


def test_the_same_seed_gives_the_same_event_log_in_any_process(tmp_path: Path) -> None:
    """Whatever the order of Python's sets: byte for byte, with a changeover and the shift's faults in it."""
    program = "import sys; from hil.bench import run_shift; from pathlib import Path; "
    program += "run_shift('bottling', 0.2, 7, log=Path(sys.argv[1]))"
    logs = [tmp_path / name for name in ("a", "b")]
    children = [
        subprocess.Popen([sys.executable, "-c", program, str(log)], env={**os.environ, "PYTHONHASHSEED": seed})
        for log, seed in zip(logs, ("1", "4242"), strict=True)
    ]
    try:
        assert [child.wait(60) for child in children] == [0, 0]
    finally:
        for child in children:
            child.kill()
            child.wait()
    first, second = (log.read_bytes() for log in logs)
    assert first == second
    assert b'"committed"' in first
    assert len(first.splitlines()) > 300


def test_another_seed_gives_another_day() -> None:
    one, again, other = (run_shift("bottling", 0.03, seed) for seed in (1, 1, 2))
    assert one.event_log_sha256 == again.event_log_sha256
    assert one.event_log_sha256 != other.event_log_sha256
    assert one.balanced
    assert other.balanced


def test_the_scan_is_a_function_of_its_inputs() -> None:
    """A recorded sequence of inputs, faults and all, replayed on two fresh lines gives what it gave the first time."""
    scene = Scene(seed=46)
    logic, buffer = scene.bench.logic, scene.bench.buffer
    recorded: list[tuple[Any, ...]] = []
    given: list[bytes] = []
    scan = logic.scan

    def said(result: Any) -> bytes:
        return msgspec.msgpack.encode((result.events, result.replies, list(result.outputs.items())))

    def recording(now_ns: int, utc_ns: int, source: InputBuffer, commands: Any = ()) -> Any:
        recorded.append(
            (now_ns, utc_ns, list(source.readings), dict(source.links), dict(source.reports), list(commands))
        )
        result = scan(now_ns, utc_ns, source, commands)
        given.append(said(result))
        return result

    logic.scan = recording  # type: ignore[method-assign]
    scene.bring_up()
    scene.bench.world.inject("jam", station="labeler")
    scene.run(20)
    scene.bench.world.clear("jam")
    scene.must("labeler", "unhold")
    scene.run(5)
    scene.bench.world.inject("plc_kill", plc="dry")
    scene.run(5)
    scene.bench.world.clear()
    scene.run(5)
    scene.must("line", "stop")
    scene.until(lambda: scene.bench.logic.at_rest, 30, "everything at rest")
    scene.to_idle()
    scene.must("line", "changeover", recipe="water_500")  # refused later on: bottles are on the line
    scene.run(5)
    assert len(recorded) > 400

    config = scene.bench.config
    groups = {link.name: link._memory.groups for link in scene.bench.links}
    for replay in range(2):
        fresh, empty = build_line(config, groups)
        assert fresh is not logic
        for number, row in enumerate(recorded):
            now_ns, utc_ns, readings, links, reports, commands = copy.deepcopy(row) if replay else row
            empty.readings[:] = readings
            empty.links.update(links)
            empty.reports.update(reports)
            assert said(fresh.scan(now_ns, utc_ns, empty, commands)) == given[number], (
                f"scan {number} of replay {replay}"
            )
    assert buffer is not empty


def test_the_bench_runs_the_configuration_that_ships() -> None:
    scene = Scene(seed=47)
    assert scene.bench.config.path == line_folder("bottling") / "line.yaml"
    assert set(scene.bench.logic.recipes) == {"water_330", "water_500"}
