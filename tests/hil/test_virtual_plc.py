"""The virtual PLCs: memory by the register list, programs, watchdog, faults, power."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from line_operator import ABORT, CLEAR, COMPLETE, MACHINES, P330, RESET, START, STOP, Operator

from hil.lines.bottling import REGISTERS
from hil.plc import FaultError, IllegalAddress, IllegalValue, PlcOffline, World, load_points
from hil.plc.packml import COMMANDS, DONE

HEAD = "plc,point,area,address,type,word_order,scale,unit,access,description,length\n"


@pytest.fixture
def operator() -> Operator:
    return Operator(World(seed=1))


@pytest.fixture
def running() -> Operator:
    operator = Operator(World(seed=1))
    operator.start(P330)
    operator.wait(20)
    return operator


# ---- the register list


def test_the_register_list_is_sound() -> None:
    points = load_points(REGISTERS)
    assert {name: len(listed) for name, listed in points.items()} == {"wet": 77, "dry": 52, "inspect": 36}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("p,a.b,hr,0,UDINT,ABCD,1,,rw,,\np,a.c,hr,1,UINT,ABCD,1,,rw,,\n", "p hr:1 is taken by a.b and by a.c"),
        ("p,a.b,hr,0,UINT,ABCD,1,,rw,,\np,a.b,hr,1,UINT,ABCD,1,,rw,,\n", "already listed in line 2"),
        ("p,a.b,xx,0,UINT,ABCD,1,,rw,,\n", "area 'xx' is unknown"),
        ("p,a.b,hr,0,WORD,ABCD,1,,rw,,\n", "type 'WORD' is unknown"),
        ("p,a.b,hr,0,BOOL,,1,,rw,,\n", "BOOL cannot be in area hr"),
        ("p,a.b,hr,0,STRING,ABCD,1,,rw,,\n", "needs a length"),
    ],
)
def test_a_register_list_that_contradicts_itself_is_refused(tmp_path: Path, rows: str, message: str) -> None:
    path = tmp_path / "registers.csv"
    path.write_text(HEAD + rows)
    with pytest.raises(ValueError, match=message):
        load_points(path)


@pytest.mark.parametrize("order", ["ABCD", "CDAB", "BADC", "DCBA"])
def test_word_orders(tmp_path: Path, order: str) -> None:
    path = tmp_path / "registers.csv"
    path.write_text(HEAD + f"p,a.u,hr,0,UDINT,{order},1,,rw,,\np,a.r,hr,2,REAL,{order},1,,rw,,\n")
    u, r = load_points(path)["p"]
    bytes_of = {"ABCD": "01020304", "CDAB": "03040102", "BADC": "02010403", "DCBA": "04030201"}
    assert u.encode(0x01020304).hex() == bytes_of[order]
    assert u.decode(u.encode(0x01020304)) == 0x01020304
    assert r.decode(r.encode(-1.5)) == -1.5
    with pytest.raises(IllegalValue):
        u.encode(-1)
    with pytest.raises(IllegalValue):
        u.encode(1.0)


# ---- memory


def test_only_listed_addresses_answer(operator: Operator) -> None:
    wet = operator.world.plcs["wet"]
    assert len(wet.read_registers("ir", 100, 11)) == 22
    assert wet.read_registers("ir", 0, 3)[2:4] == b"\x00\x01", "boot_count 1"
    for area, offset, count in (("ir", 5, 1), ("ir", 99, 2), ("ir", 110, 2), ("hr", 65535, 1), ("di", 16, 1)):
        with pytest.raises(IllegalAddress):
            wet.read_registers(area, offset, count)
    with pytest.raises(IllegalAddress):
        wet.read_bits("di", 26, 1)
    with pytest.raises(IllegalAddress):
        wet.write_registers(102, b"\0\0")
    with pytest.raises(IllegalAddress):
        wet.set("infeed.amps", 1.0)
    with pytest.raises(IllegalValue):
        wet.write_registers(100, b"\0")
    with pytest.raises(IllegalAddress):
        wet.read_nodes(("nsu=x;s=y",))


def test_a_small_gap_inside_a_block_reads_zero_and_cannot_be_written(tmp_path: Path) -> None:
    from hil.plc.memory import ModbusMemory

    path = tmp_path / "registers.csv"
    path.write_text(
        HEAD + "p,a.b,hr,0,UINT,ABCD,1,,rw,,\np,a.c,hr,9,UINT,ABCD,1,,rw,,\np,a.d,hr,19,UINT,ABCD,1,,rw,,\n"
    )
    memory = ModbusMemory("p", load_points(path)["p"])
    assert memory.read_registers("hr", 0, 10) == bytes(20)
    with pytest.raises(IllegalAddress):
        memory.read_registers("hr", 0, 20)
    with pytest.raises(IllegalAddress):
        memory.write_registers(0, bytes(20))
    before = memory.version("hr", 19)
    memory.write_registers(0, b"\x00\x05")
    assert memory.version("hr", 19) == before
    assert memory.version("hr", 3) == 1


def test_a_write_is_all_or_nothing(operator: Operator) -> None:
    wet = operator.world.plcs["wet"]
    wet.set("infeed.speed_sp", 0.1)
    with pytest.raises(IllegalAddress):
        wet.write_registers(101, b"\x02\x6c\x00\x00")
    assert wet.get("infeed.rail_sp") == 0.0
    wet.write_bits(16, (False, True, False))
    assert wet.read_bits("co", 16, 3) == b"\x02"


def test_versions_rise_with_changes_only(operator: Operator) -> None:
    wet = operator.world.plcs["wet"]
    operator.wait(5)
    before = wet.version("ir", 140), wet.version("di"), wet.version("ir", 0)
    operator.wait(5)
    assert (wet.version("ir", 140), wet.version("di")) == before[:2], "a line at rest costs a reader nothing"
    assert wet.version("ir", 0) > before[2], "the heartbeat"
    wet.set("infeed.rail_sp", 70.0)
    operator.wait(0.3)
    assert wet.version("ir", 100) > 0
    assert wet.get("infeed.rail_pos") == pytest.approx(63.2, abs=0.11)


def test_nodes_take_what_fits_their_type(operator: Operator) -> None:
    inspect = operator.world.plcs["inspect"]
    node = inspect.points["checkweigher.limit_low"].node_id
    inspect.write_node(node, 325.3)
    assert inspect.read_nodes((node,)) == [pytest.approx(325.3, rel=1e-7)]
    assert inspect.read_nodes((node,)) != [325.3], "REAL has 24 bits"
    for bad in ("x", True, 1e300):
        with pytest.raises(IllegalValue):
            inspect.write_node(node, bad)
    with pytest.raises(IllegalAddress):
        inspect.write_node(inspect.points["checkweigher.weight"].node_id, 1.0)
    with pytest.raises(IllegalValue):
        inspect.set("inspect.watchdog", 70000)


# ---- life signs


def test_heartbeat_and_boot_counter(operator: Operator) -> None:
    operator.wait(12.3)
    for name in ("wet", "dry", "inspect"):
        assert operator.get(f"{name}.heartbeat") == 123
        assert operator.get(f"{name}.boot_count") == 1
        assert operator.get(f"{name}.map_version") == 1


def test_watchdog_is_not_armed_before_its_first_change(running: Operator) -> None:
    running.wait(10)
    assert running.get("filler.running")
    running.set("wet.watchdog", 0)
    running.wait(10)
    assert running.get("filler.running")


def test_watchdog_trips_after_one_second_and_needs_a_reset_and_a_new_run(running: Operator) -> None:
    word = 0
    for _ in range(20):
        word += 1
        running.set("wet.watchdog", word)
        running.wait(0.9)
    assert running.get("filler.running")
    running.set("wet.watchdog", word)
    running.wait(0.05)
    assert running.get("filler.running")
    running.wait(0.1)
    assert not running.get("filler.running")
    assert {running.get(f"{n}.fault_code") for n, p in MACHINES.items() if p == "wet"} == {9}
    assert running.get("capper.fault_code") == 0, "the other PLC has a watchdog of its own"
    running.set("filler.reset", True)
    assert running.get("filler.fault_code") == 9, "the cause is still there"
    running.set("wet.watchdog", word + 1)
    assert running.get("filler.fault_code") == 9, "a life sign alone resets nothing"
    running.set("filler.reset", False)
    running.set("filler.reset", True)
    assert running.get("filler.fault_code") == 0
    assert not running.get("filler.running"), "a reset never starts a machine"
    running.set("filler.run", False)
    running.set("filler.run", True)
    assert running.get("filler.running")


def test_checkweigher_aborts_on_its_watchdog(running: Operator) -> None:
    running.set("inspect.watchdog", 1)
    running.wait(0.99)
    assert running.get("checkweigher.state_current") == 6
    running.wait(0.3)
    assert running.get("checkweigher.state_current") == 9
    assert running.get("checkweigher.fault_code") == 9
    assert running.command(CLEAR) == 2
    running.set("inspect.watchdog", 2)
    assert running.command(CLEAR) == 1


# ---- run, reset, faults


def test_reset_is_an_edge(running: Operator) -> None:
    running.set("capper.reset", True)
    running.world.inject("door_open", station="capper")
    assert running.get("capper.fault_code") == 4
    assert not running.get("capper.running")
    running.world.clear("door_open", station="capper")
    running.wait(5)
    assert running.get("capper.fault_code") == 4, "reset stood at true all the time"
    running.set("capper.reset", False)
    running.set("capper.reset", True)
    assert running.get("capper.fault_code") == 0


@pytest.mark.parametrize("name", list(MACHINES))
@pytest.mark.parametrize(("fault", "code"), [("door_open", 4), ("motor_trip", 2)])
def test_guards_and_motors_stop_at_once(running: Operator, name: str, fault: str, code: int) -> None:
    running.world.inject(fault, station=name)
    assert not running.get(f"{name}.running")
    assert running.get(f"{name}.fault_code") == code
    assert running.get(f"{name}.fault")


def test_estop_stops_the_whole_line_at_once(running: Operator) -> None:
    running.world.inject("estop")
    before = running.world.truth()["stations"]
    for name in MACHINES:
        assert running.get(f"{name}.fault_code") == 5
        assert not running.get(f"{name}.running")
        assert not running.get(f"{name}.estop_ok")
    assert running.get("checkweigher.state_current") == 8
    running.wait(5)
    assert running.get("checkweigher.state_current") == 9
    assert running.get("checkweigher.fault_code") == 5
    assert running.world.truth()["stations"] == before
    running.world.clear("estop")
    running.wait(5)
    assert not any(running.get(f"{name}.running") for name in MACHINES), "nothing starts by itself"
    running.recover()
    running.wait(30)
    assert running.world.truth()["line"]["good"] > 10


def test_a_jam_overloads_the_drive_and_latches_after_a_second(running: Operator) -> None:
    calm = running.get("infeed.amps")
    running.world.inject("jam", station="infeed")
    seen = []
    for _ in range(60):
        running.wait(0.1)
        seen.append((float(running.get("infeed.amps")), running.get("infeed.fault_code")))
        if seen[-1][1]:
            break
    loud = [amps for amps, code in seen if amps > float(calm) + 0.9]  # type: ignore[arg-type]
    assert 8 <= len(loud) <= 12, "about 1 s of overload"
    assert seen[-1] == (0.0, 1)
    running.set("infeed.reset", True)
    assert running.get("infeed.fault_code") == 1, "the bottle still sticks"
    inside = running.world.truth()["line"]["in_process"]
    running.world.clear("jam", station="infeed")
    assert running.world.truth()["line"]["in_process"] == inside, "the bottle went back into the flow"
    running.recover()
    running.wait(30)
    assert running.get("infeed.running")
    assert running.world.truth()["line"]["good"] > 10


@pytest.mark.parametrize("name", ["filler", "capper", "labeler", "checkweigher", "packer"])
def test_every_station_can_jam(running: Operator, name: str) -> None:
    running.world.inject("jam", station=name)
    running.wait(8)
    assert running.get(f"{name}.fault_code") == 1
    good = running.world.truth()["stations"][name]["good"]
    running.wait(10)
    assert running.world.truth()["stations"][name]["good"] == good
    running.world.clear("jam", station=name)
    running.recover()
    running.wait(20)
    assert running.world.truth()["stations"][name]["good"] > good


def test_a_machine_without_set_points_does_not_run(operator: Operator) -> None:
    operator.run()
    codes = {name: operator.get(f"{name}.fault_code") for name in MACHINES}
    assert codes == {"infeed": 0, "filler": 7, "packer": 7, "capper": 7, "labeler": 7}
    assert operator.get("infeed.running")
    assert operator.get("infeed.speed") == 0.0


def test_rails_move_only_at_rest_and_never_for_an_absurd_set_point(operator: Operator) -> None:
    operator.download(P330)
    operator.set("infeed.run", True)
    operator.set("infeed.rail_sp", 72.0)
    operator.wait(5)
    assert operator.get("infeed.rail_pos") == 62.0
    operator.set("infeed.run", False)
    operator.wait(1)
    assert operator.get("infeed.rail_pos") == pytest.approx(66.0, abs=0.1)
    operator.world.inject("door_open", station="infeed")
    operator.wait(5)
    assert operator.get("infeed.rail_pos") == pytest.approx(66.0, abs=0.1)
    operator.world.clear()
    operator.wait(2)
    assert operator.get("infeed.rail_pos") == 72.0
    operator.set("infeed.rail_sp", 0.0)
    operator.wait(5)
    assert operator.get("infeed.rail_pos") == 72.0


def test_a_label_job_is_taken_over_at_rest_only(running: Operator) -> None:
    running.set("labeler.job", "OTHER")
    running.wait(5)
    assert running.get("labeler.job_active") == "WATER-330"
    running.set("labeler.run", False)
    running.wait(1.5)
    assert running.get("labeler.job_active") == "OTHER"
    with pytest.raises(IllegalValue):
        running.set("labeler.job", "x" * 21)


def test_wrong_label_is_rejected(running: Operator) -> None:
    running.set("labeler.run", False)
    running.set("labeler.job", "OTHER")
    running.wait(1.5)
    running.set("labeler.run", True)
    running.wait(5)
    before = running.world.truth()["stations"]["checkweigher"]
    running.wait(20)
    after = running.world.truth()["stations"]["checkweigher"]
    assert after["good"] == before["good"]
    assert after["rejected"] > before["rejected"] + 20


def test_process_faults_show_where_they_should(running: Operator) -> None:
    world = running.world
    world.inject("web_break")
    assert running.get("labeler.fault_code") == 3
    assert not running.get("labeler.web_ok")
    world.inject("hopper_empty")
    assert running.get("capper.hopper_low")
    world.clear("web_break")
    running.recover()
    running.wait(40)
    assert running.get("capper.fault_code") == 3, "the chute has run empty"
    world.clear("hopper_empty")
    running.recover()
    world.inject("air_loss")
    running.wait(10)
    assert float(running.get("utility.air_pressure")) < 4.5
    assert running.get("filler.fault_code") == 3
    assert not running.get("filler.air_ok")
    world.clear()
    running.wait(10)
    assert running.get("filler.air_ok")
    running.recover()
    running.wait(30)
    assert running.get("filler.running")
    assert running.get("capper.running")
    world.inject("vision_offline")
    running.wait(1)
    assert running.get("checkweigher.state_current") == 9
    assert running.get("checkweigher.fault_code") == 8
    assert running.command(CLEAR) == 2


def test_a_clogged_nozzle_and_a_drifting_scale_make_light_bottles(running: Operator) -> None:
    running.world.inject("clogged_nozzle", nozzle=2, share=0.5)
    running.wait(10)
    assert float(running.get("filler.weight_2")) < 320 < float(running.get("filler.weight_1"))
    before = running.world.truth()["stations"]["checkweigher"]
    running.wait(60)
    after = running.world.truth()["stations"]["checkweigher"]
    share = (after["rejected"] - before["rejected"]) / (after["infeed"] - before["infeed"])
    assert 0.2 < share < 0.3
    running.world.clear("clogged_nozzle")
    running.world.inject("scale_drift", rate=3.0)
    running.wait(60)
    assert float(running.get("filler.weight_1")) == pytest.approx(330, abs=2)
    assert float(running.get("checkweigher.weight")) == pytest.approx(327.2, abs=1.6)


def test_a_stuck_eye_stays_and_its_bottles_are_missing_in_the_count(running: Operator) -> None:
    running.world.inject("sensor_stuck", value=True)
    count = running.get("infeed.count_good")
    for _ in range(50):
        running.wait(0.1)
        assert running.get("infeed.eye_out") is True
    assert running.get("infeed.count_good") == count
    assert running.world.truth()["stations"]["infeed"]["good"] > count  # type: ignore[operator]


def test_a_full_reject_bin_blocks(running: Operator) -> None:
    running.world.inject("reject_full")
    assert running.get("checkweigher.reject_full")
    running.set("checkweigher.limit_low", 400.0)
    running.set("checkweigher.limit_high", 500.0)
    running.wait(10)
    assert running.get("checkweigher.blocked")
    count = running.get("checkweigher.count_reject")
    running.wait(10)
    assert running.get("checkweigher.count_reject") == count
    running.world.clear("reject_full")
    running.wait(10)
    assert running.get("checkweigher.count_reject") > count  # type: ignore[operator]


# ---- inject and clear


def test_unknown_faults_and_parameters_are_refused_with_what_there_is(operator: Operator) -> None:
    world = operator.world
    with pytest.raises(FaultError, match=r"there are: .*jam.*vision_offline"):
        world.inject("earthquake")
    with pytest.raises(FaultError, match="one of infeed, filler"):
        world.inject("jam", station="oven")
    with pytest.raises(FaultError, match="it has: station"):
        world.inject("jam", where="capper")
    with pytest.raises(FaultError, match=r"within 1\.\.4"):
        world.inject("clogged_nozzle", nozzle=5)
    with pytest.raises(FaultError, match="within"):
        world.inject("scale_drift", rate=math.nan)
    with pytest.raises(FaultError, match="type str"):
        world.clear("jam", station=3)
    assert world.faults() == []


def test_inject_and_clear_are_idempotent(running: Operator) -> None:
    world = running.world
    world.inject("door_open", station="capper")
    world.inject("door_open", station="capper")
    world.inject("door_open", station="filler")
    assert world.faults() == [
        {"fault": "door_open", "station": "capper"},
        {"fault": "door_open", "station": "filler"},
    ]
    world.clear("door_open", station="capper")
    world.clear("door_open", station="capper")
    assert world.faults() == [{"fault": "door_open", "station": "filler"}]
    world.clear()
    world.clear()
    assert world.faults() == []
    world.inject("plc_kill", plc="dry")
    world.inject("plc_restart", plc="dry")
    assert world.faults() == []
    assert running.get("dry.boot_count") == 2
    world.clear("plc_kill", plc="dry")
    assert running.get("dry.boot_count") == 2


# ---- power


def test_power_loss_drops_outputs_zeroes_set_points_and_keeps_counts(running: Operator) -> None:
    world = running.world
    counts = {p: running.get(f"capper.{p}") for p in ("count_in", "count_good", "in_process")}
    assert counts["count_good"]
    world.inject("plc_kill", plc="dry")
    dry = world.plcs["dry"]
    with pytest.raises(PlcOffline):
        dry.read_registers("ir", 0, 1)
    with pytest.raises(PlcOffline):
        dry.version("ir")
    with pytest.raises(PlcOffline):
        dry.set("capper.run", True)
    running.wait(10)
    world.clear("plc_kill", plc="dry")
    assert running.get("dry.boot_count") == 2
    assert running.get("dry.heartbeat") == 0
    assert {p: running.get(f"capper.{p}") for p in counts} == counts
    assert running.get("capper.torque_sp") == 0.0
    assert running.get("labeler.job_active") == ""
    assert running.get("capper.rail_pos") == 62.0
    running.wait(10)
    assert not running.get("capper.running")
    running.download(P330)
    running.recover()
    running.set("capper.feeder", True)
    running.set("labeler.vacuum", True)
    running.wait(30)
    assert running.world.truth()["stations"]["labeler"]["good"] > 10


def test_inspect_comes_up_aborted(running: Operator) -> None:
    count = running.get("checkweigher.count_in")
    running.world.inject("plc_restart", plc="inspect")
    assert running.get("checkweigher.state_current") == 9
    assert running.get("inspect.boot_count") == 2
    assert running.get("checkweigher.count_in") == count
    assert running.get("utility.compressor_run") is True
    assert running.get("checkweigher.limit_high") == 0.0
    assert running.get("checkweigher.recipe_active") == ""


# ---- the checkweigher's PackML


def test_commands_are_taken_once_per_id_and_answered(operator: Operator) -> None:
    operator.download(P330)
    assert operator.get("checkweigher.state_current") == 9
    assert operator.command(START) == 2
    assert operator.get("checkweigher.state_current") == 9
    assert operator.command(CLEAR) == 1
    assert operator.get("checkweigher.state_current") == 1
    operator.wait(1)
    assert operator.get("checkweigher.state_current") == 2
    operator.set("checkweigher.cntrl_cmd", RESET)
    operator.set("checkweigher.cmd_id", operator.get("checkweigher.cmd_ack"))
    operator.wait(1)
    assert operator.get("checkweigher.state_current") == 2, "an id that was taken is not taken again"
    assert operator.command(RESET) == 1
    operator.wait(1)
    assert operator.command(START) == 1
    operator.wait(1)
    assert operator.get("checkweigher.state_current") == 6
    assert operator.command(ABORT) == 1
    operator.wait(1)
    assert operator.get("checkweigher.state_current") == 9
    assert operator.command(99) == 2


def test_start_needs_limits_and_a_code(operator: Operator) -> None:
    for number in (CLEAR, RESET):
        operator.command(number)
        operator.wait(1)
    assert operator.command(START) == 2
    operator.download(P330)
    operator.set("checkweigher.limit_high", math.nan)
    assert operator.command(START) == 2
    operator.set("checkweigher.limit_high", 337.0)
    assert operator.command(START) == 1


def test_completing_lasts_until_it_is_empty(running: Operator) -> None:
    running.wait(0.5)
    running.set("labeler.run", False)
    assert running.command(COMPLETE) == 1
    running.wait(0.2)
    assert running.get("checkweigher.state_current") == 16
    running.wait(5)
    assert running.get("checkweigher.state_current") == 17
    assert running.get("checkweigher.empty")


def test_code_is_taken_over_outside_of_execute_only(running: Operator) -> None:
    running.set("checkweigher.recipe_id", "OTHER")
    running.wait(2)
    assert running.get("checkweigher.recipe_active") == "WATER-330"
    running.command(STOP)
    running.wait(1)
    assert running.get("checkweigher.recipe_active") == "OTHER"


def test_the_packml_table_is_whole() -> None:
    states = set(range(1, 18))
    assert {s for s, _ in COMMANDS} | set(DONE) == states
    assert {s for s, c in COMMANDS if c == ABORT} == states - {8, 9}
    assert {s for s, c in COMMANDS if c == STOP} == states - {1, 2, 7, 8, 9}
    assert set(COMMANDS.values()) | set(DONE.values()) <= states
    assert len(COMMANDS) == 15 + 12 + 10
