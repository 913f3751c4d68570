"""A station whose PLC runs PackML itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest
from helpers.core_rig import Plant, StationRig

from controller.core.commands import CommandRejected
from controller.core.conditions import Interlock
from controller.core.packml import ACTING, Machine, Options, State, Trigger
from controller.core.station import Parts
from controller.stations.packml_plc import PackmlIO, PackmlPlc, PackmlSettings
from drivers.port import DataType, Value

CLEAR, RESET, START, STOP, HOLD, UNHOLD, COMPLETE, ABORT = (
    Trigger.CLEAR, Trigger.RESET, Trigger.START, Trigger.STOP, Trigger.HOLD, Trigger.UNHOLD, Trigger.COMPLETE,
    Trigger.ABORT,
)  # fmt: skip
UP = (CLEAR, RESET, START)


class PackmlProgram:
    """The PLC: takes a command once per new id, acting states last ``lasts`` cycles."""

    def __init__(self, plant: Plant, state: State = State.ABORTED) -> None:
        self.memory = plant.memory
        self.machine = Machine(Options(), state=state)
        self.lasts = 3
        self.deaf = False
        self.frozen = False
        self.taken: list[tuple[int, Trigger | None, bool]] = []
        self._since = 0
        self._last_id = 0
        plant.programs.append(self)
        self._show()

    def __call__(self) -> None:
        cmd_id = int(self.memory["x.cmd_id"])
        if not self.deaf and cmd_id != self._last_id:
            self._last_id = cmd_id
            number = int(self.memory["x.cntrl_cmd"])
            trigger = Trigger(number) if number else None
            fits = trigger is not None and self.machine.target(trigger) is not None
            self.taken.append((cmd_id, trigger, fits))
            if trigger is not None and fits and not self.frozen:
                self.go(trigger)
            self.memory |= {"x.cmd_ack": cmd_id, "x.cmd_result": 1 if fits else 2}
        self._since += 1
        if self.machine.state in ACTING and self._since > self.lasts and not self.frozen:
            self.go(Trigger.STATE_COMPLETE)
        self._show()

    def go(self, trigger: Trigger) -> None:
        self.machine.fire(trigger, 0)
        self._since = 0
        self._show()

    def be(self, state: State) -> None:
        """Whatever happened: it is in that state now."""
        self.machine = Machine(Options(), state=state)
        self._since = 0
        self._show()

    def restart(self) -> None:
        self.be(State.ABORTED)
        self._last_id = 0
        self.memory |= {"x.cmd_id": 0, "x.cntrl_cmd": 0, "x.cmd_ack": 0, "x.cmd_result": 0}

    def _show(self) -> None:
        self.memory["x.state_current"] = int(self.machine.state)


def tags(**values: int) -> dict[str, int]:
    names = ("state_current", "cntrl_cmd", "cmd_id", "cmd_ack", "cmd_result")
    return {f"x.{n}": values.get(n, 0) for n in names}


def made(
    state: State = State.ABORTED, plant: Plant | None = None, **settings: object
) -> tuple[StationRig, PackmlProgram]:
    plant = plant or Plant({"one": tags()})
    program = plant.programs[0] if plant.programs else PackmlProgram(plant, state)
    assert isinstance(program, PackmlProgram)
    io = PackmlIO(plant.image, {p: f"x.{p}" for p in PackmlIO.points()})
    chosen = PackmlSettings(**{"ack_limit_s": 1.0, "limit_s": 2.0, "empty_limit_s": 3.0, **settings})  # type: ignore[arg-type]
    rig = StationRig(plant, PackmlPlc("x", io, chosen), Parts(outputs=io.outputs))
    rig.scan()
    return rig, program


def test_the_whole_way_every_command_once_and_taken() -> None:
    rig, plc = made()
    rig.drive(*UP, HOLD, UNHOLD, COMPLETE, RESET, START, STOP)
    assert [t for _, t, _ in plc.taken] == [*UP, HOLD, UNHOLD, COMPLETE, RESET, START, STOP]
    assert all(fits for _, _, fits in plc.taken)
    assert [n for n, _, _ in plc.taken] == list(range(1, 10))
    assert plc.machine.state is State.STOPPED
    assert rig.active() == []


def test_ours_waits_for_the_plc_s_state() -> None:
    rig, plc = made()
    plc.lasts = 10
    rig.scan(CLEAR)
    while plc.machine.state is not State.STOPPED:
        assert rig.state is State.CLEARING
        rig.scan()
    rig.until(State.STOPPED, 2)


def test_a_plc_that_is_there_already_gets_no_command() -> None:
    rig, plc = made()
    rig.drive(CLEAR)
    count = len(plc.taken)
    plc.be(State.IDLE)
    rig.drive(RESET)
    assert len(plc.taken) == count


def test_refused() -> None:
    rig, plc = made()
    rig.drive(CLEAR, RESET)
    plc.be(State.RESETTING)  # it has gone elsewhere between two readings
    plc.frozen = True
    rig.scan(START)
    rig.until(State.ABORTED)
    assert rig.active()[0] == "x.plc_refused: x: Start was refused by its PLC in Resetting"


def test_no_answer() -> None:
    rig, plc = made()
    rig.drive(CLEAR)
    plc.deaf = True
    rig.scan(RESET)
    rig.until(State.STOPPED)  # where the PLC is still, so nothing more is needed
    assert any("x: Reset acknowledged by its PLC: not within 1 s" in a for a in rig.active())


def test_accepted_but_not_followed() -> None:
    rig, plc = made()
    rig.drive(CLEAR, RESET)
    plc.frozen = True
    rig.scan(START)
    rig.until(State.ABORTED)
    assert any("x.plc_does_not_follow: x: its PLC in Execute: not within 2 s" in a for a in rig.active())


@pytest.mark.parametrize(
    ("plc_state", "end"),
    [
        (State.ABORTING, State.ABORTED), (State.ABORTED, State.ABORTED), (State.STOPPING, State.STOPPED),
        (State.STOPPED, State.STOPPED), (State.HOLDING, State.HELD), (State.HELD, State.HELD),
        (State.SUSPENDING, State.SUSPENDED), (State.SUSPENDED, State.SUSPENDED), (State.COMPLETING, State.COMPLETE),
        (State.COMPLETE, State.COMPLETE), (State.IDLE, State.STOPPED), (State.RESETTING, State.STOPPED),
    ],
)  # fmt: skip
def test_ours_follows_what_the_plc_does_by_itself(plc_state: State, end: State) -> None:
    rig, plc = made()
    rig.drive(*UP)
    plc.be(plc_state)
    rig.scan()
    assert rig.state is not State.EXECUTE
    assert f"its PLC went to {plc.machine.state.text} by itself" in rig.station.stop_reason
    if rig.state is not end:
        rig.until(end)
    for _ in range(10):
        rig.scan()
    assert rig.state is end
    assert plc.machine.state in (end, State.STOPPED)
    assert rig.active() == []
    assert all(fits for _, _, fits in plc.taken)  # nothing was commanded that the PLC was doing already


@pytest.mark.parametrize("forward", [False, True])
def test_a_plc_that_suspends_itself_is_resumed_with(forward: bool) -> None:
    rig, plc = made(forward_suspend=forward)
    rig.drive(*UP)
    plc.go(Trigger.SUSPEND)
    rig.until(State.SUSPENDED)
    for _ in range(5):
        assert rig.scan() is State.SUSPENDED
    plc.go(Trigger.UNSUSPEND)
    rig.until(State.EXECUTE)
    assert rig.active() == []


@pytest.mark.parametrize("way", [(CLEAR,), (CLEAR, RESET), (*UP, HOLD), (*UP, COMPLETE)])
def test_a_plc_that_moves_without_our_command_is_aborted(way: tuple[Trigger, ...]) -> None:
    rig, plc = made()
    rig.drive(*way)
    plc.be(State.EXECUTE)
    rig.until(State.ABORTED, 3)
    assert "its PLC went to Execute by itself" in rig.station.first_out
    for _ in range(20):
        rig.scan()
    assert plc.machine.state is State.ABORTED


@pytest.mark.parametrize("number", [0, 18, 255])
def test_a_state_that_does_not_exist_is_alarmed_and_not_run_on(number: int) -> None:
    rig, plc = made()
    rig.drive(*UP)
    rig.plant.programs.clear()
    rig.plant.memory["x.state_current"] = number
    rig.until(State.ABORTED, 3)
    assert rig.active() == [f"x.equipment: x: PackML state {number} of its PLC is none of 1..17"]
    with pytest.raises(CommandRejected, match="its PLC is in an unknown state, not in Aborted"):
        rig.scan(CLEAR)
    rig.plant.programs.append(plc)
    for _ in range(20):
        rig.scan()
    assert rig.active() == []


def test_a_plc_restart_while_ours_executes() -> None:
    rig, plc = made()
    rig.drive(*UP)
    plc.restart()
    rig.until(State.ABORTED, 3)
    count = len(plc.taken)
    for _ in range(20):
        rig.scan()
    assert rig.state is State.ABORTED
    assert len(plc.taken) == count  # it is Aborted already, and nothing starts it again
    rig.drive(*UP)
    assert all(fits for _, _, fits in plc.taken)


def test_a_plc_restart_while_ours_is_stopped_is_followed() -> None:
    rig, plc = made()
    rig.drive(CLEAR)
    plc.restart()
    rig.until(State.ABORTED, 3)
    rig.drive(*UP)


def test_abort_is_driven_until_the_plc_follows() -> None:
    rig, plc = made()
    rig.drive(*UP)
    plc.deaf = True
    rig.scan(ABORT)
    rig.until(State.ABORTED)
    for _ in range(25):
        rig.scan()
    assert "x: Abort acknowledged by its PLC: not within 1 s" in rig.active()[0]
    with pytest.raises(CommandRejected, match="its PLC is in Execute, not in Aborted"):
        rig.scan(CLEAR)
    plc.deaf = False
    for _ in range(20):
        rig.scan()
    assert plc.machine.state is State.ABORTED
    assert rig.active() == []
    assert len({n for n, _, _ in plc.taken}) == len(plc.taken)


def test_a_plc_found_running_at_start_up_is_aborted_and_nothing_else() -> None:
    rig, plc = made(State.EXECUTE)
    for _ in range(20):
        rig.scan()
    assert (rig.state, plc.machine.state) == (State.ABORTED, State.ABORTED)
    assert [t for _, t, _ in plc.taken] == [ABORT]


def test_ids_never_repeat_over_a_restart_of_the_controller() -> None:
    rig, plc = made()
    rig.drive(*UP)
    plant = rig.plant
    fresh = Plant({"one": tags()})
    fresh.memory, fresh.programs = plant.memory, plant.programs
    again, _ = made(plant=fresh)
    for _ in range(20):
        again.scan()
    again.drive(*UP)
    ids = [n for n, _, _ in plc.taken]
    assert ids == sorted(set(ids))
    assert [t for _, t, _ in plc.taken] == [*UP, ABORT, *UP]


def test_a_command_overtaken_in_flight_gets_an_id_of_its_own() -> None:
    """A second command before the first id is read back must not look already done."""
    rig, plc = made()
    rig.drive(CLEAR, RESET)
    for scans in range(1, 5):
        rig.scan(START)
        for _ in range(scans):
            rig.scan()
        rig.scan(STOP)
        rig.until(State.STOPPED)
        assert plc.machine.state is State.STOPPED
        rig.drive(RESET)
    ids = [n for n, _, _ in plc.taken]
    assert ids == sorted(set(ids))


def test_an_abort_in_the_scan_after_the_id_was_sent_reaches_the_plc() -> None:
    rig, plc = made()
    rig.drive(CLEAR, RESET)
    rig.scan(START)
    while rig.station.behaviour.io.cmd_id.wanted == plc.memory["x.cmd_id"]:
        rig.scan()
    rig.scan(ABORT)  # the id of Start is on its way
    for _ in range(20):
        rig.scan()
    assert (rig.state, plc.machine.state) == (State.ABORTED, State.ABORTED)
    ids = [n for n, _, _ in plc.taken]
    assert ids == sorted(set(ids))


def test_nothing_is_sent_on_an_unreadable_state_and_the_handshake_says_what_is_bad() -> None:
    rig, plc = made()
    rig.drive(CLEAR)
    rig.plant.bad["x.cmd_ack"] = "BadNodeIdUnknown"
    count = len(plc.taken)
    rig.scan(RESET)
    rig.until(State.ABORTED)
    assert any("x.cmd_ack is BAD: BadNodeIdUnknown" in a for a in rig.active())
    assert len(plc.taken) == count


class LaggingPlant(Plant):
    """Writes arrive three scans later, in order."""

    def tick(self, outputs: Mapping[str, Value]) -> None:
        self.line = [*getattr(self, "line", [{}, {}, {}]), outputs]
        super().tick(self.line.pop(0))


@pytest.mark.parametrize("wait", range(1, 12))
def test_a_stop_while_the_start_is_still_on_its_way_is_not_taken_for_done(wait: int) -> None:
    rig, plc = made(plant=LaggingPlant({"one": tags()}), ack_limit_s=2.0)
    rig.drive(CLEAR, RESET)
    rig.scan(START)
    for _ in range(wait):
        rig.scan()
    rig.scan(STOP)
    rig.until(State.STOPPED)
    assert plc.machine.state is State.STOPPED
    ids = [n for n, _, _ in plc.taken]
    assert ids == sorted(set(ids))
    assert rig.active() == []


@pytest.mark.parametrize("way", [UP[:1], UP[:2], UP])
def test_a_restarted_plc_does_not_take_the_last_command_again(way: tuple[Trigger, ...]) -> None:
    """Its link writes the wanted levels, id and command, as soon as it is back and before the scan has seen it."""
    rig, plc = made()
    up = rig.image.up
    rig.station.parts.interlocks = (Interlock("link", lambda: up["one"], "abort", "link lost", lambda: "cut"),)
    rig.drive(*way)
    rig.plant.cut("one")
    rig.until(State.ABORTED, 3)
    plc.restart()
    plc.be({1: State.ABORTED, 2: State.STOPPED, 3: State.IDLE}[len(way)])  # where the same command would be taken
    before = plc.machine.state
    plc.taken.clear()
    wanted = {t: rig.image.out[n] for t, n in rig.plant.layout.slots.items() if n in rig.image.out}
    rig.plant.memory |= {t: v for t, v in wanted.items() if v is not None}
    plc()
    assert plc.machine.state is before
    assert [(trigger, fits) for _, trigger, fits in plc.taken] == [(None, False)]
    rig.plant.join("one")
    for _ in range(10):
        rig.scan()
    rig.drive(*UP)


class BlockPlant(Plant):
    """``cntrl_cmd`` and ``cmd_id`` are one command block: they reach the PLC together, when the number changes."""

    def __init__(self) -> None:
        super().__init__({"one": tags()})
        self.layout.commands = {"x.cntrl_cmd": "x.cmd_id", "x.cmd_id": "x.cmd_id"}
        self.wanted: dict[str, Value] = {}

    def tick(self, outputs: Mapping[str, Value]) -> None:
        self.wanted |= outputs
        super().tick(dict(self.wanted) if "x.cmd_id" in outputs else {})


def test_a_command_block_takes_one_write_and_fewer_scans() -> None:
    rig, plc = made(plant=BlockPlant())
    rig.drive(*UP, STOP)
    assert [t for _, t, fits in plc.taken if fits] == [*UP, STOP]
    scans_of = {}
    for name, plant in (("block", BlockPlant()), ("two writes", Plant({"one": tags()}))):
        rig, plc = made(plant=plant)
        begun = plant.now
        rig.scan(CLEAR)
        while not plc.taken:
            rig.scan()
        scans_of[name] = (plant.now - begun) // 100_000_000
    assert scans_of == {"block": 2, "two writes": 3}


def test_a_command_that_the_plc_dropped_as_too_late_says_so() -> None:
    rig, plc = made(plant=BlockPlant())
    rig.drive(CLEAR)
    plc.deaf = True
    rig.scan(RESET)
    rig.scan()
    rig.plant.memory |= {"x.cmd_ack": rig.plant.memory["x.cmd_id"], "x.cmd_result": 3}
    rig.until(State.STOPPED)
    assert "x.plc_refused: x: Reset reached its PLC too late and was dropped there" in rig.active()


@pytest.mark.parametrize(
    ("kind", "largest"),
    [
        (DataType.UINT, 65535),
        (DataType.INT, 32767),
        (DataType.UDINT, 2**32 - 1),
        (DataType.DINT, 2**31 - 1),
        (DataType.BCD, 9999),
        (DataType.LBCD, 99_999_999),
        (DataType.ULINT, 2**64 - 1),
    ],
)
def test_numbers_of_commands_wrap_around_to_one_and_skip_those_in_use(kind: DataType, largest: int) -> None:
    plant = Plant({"one": tags(cmd_id=largest - 1, cmd_ack=largest - 1)})
    plant.layout.tags = tuple(replace(t, type=kind) for t in plant.layout.tags)
    program = PackmlProgram(plant)
    program._last_id = largest - 1
    rig, plc = made(plant=plant)
    rig.drive(CLEAR, RESET, START, STOP)
    assert [n for n, _, _ in plc.taken] == [largest, 1, 2, 3]


def test_a_result_read_before_its_acknowledgement_is_not_taken_for_a_refusal() -> None:
    """The readings of both are not one instant: the id may be new and the result that of the command before."""
    rig, plc = made(plant=BlockPlant())
    plc.frozen = True
    rig.scan(CLEAR)
    while not plc.taken:
        rig.scan()
    rig.plant.memory["x.cmd_result"] = 2
    rig.scan()
    rig.plant.memory["x.cmd_result"] = 1
    plc.frozen = False
    plc.go(CLEAR)
    rig.until(State.STOPPED)
    assert not [alarm for alarm in rig.active() if "plc_refused" in alarm]
