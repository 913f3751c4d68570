"""Loading whole lines: what comes out, overrides, the hash, warnings, unreadable files, and speed."""

from __future__ import annotations

import csv
import dataclasses
import io
import shutil
import time
from pathlib import Path

import pytest
from small_line import KINDS, LINE, MARK, RECIPE, changed, marked_lines, write

from controller.config import ConfigError, load
from controller.config.plcs import ModbusRtuPlc, ModbusTcpPlc
from drivers.plan import ModbusPlan
from drivers.port import Area, DataType, ModbusAddress, OpcUaAddress, WordOrder

REGISTERS = Path(__file__).parents[2] / "hil" / "lines" / "bottling" / "registers.csv"


def errors(path: Path, **arguments: object) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        load(path, kinds=KINDS, **arguments)  # type: ignore[arg-type]
    return tuple(str(p) for p in caught.value.problems)


def test_valid_line(tmp_path: Path) -> None:
    path = write(tmp_path)
    line = load(path, kinds=KINDS)
    assert line.warnings == ()
    rail = line.tags["infeed.rail_sp"]
    assert (rail.address, rail.word_order) == (ModbusAddress(Area.HOLDING_REGISTER, 101), WordOrder.CDAB)
    assert (rail.unit, rail.low, rail.high, rail.writable) == ("mm", 40, 90, True)
    assert line.tags["infeed.warm"].address == ModbusAddress(Area.HOLDING_REGISTER, 200, 1)
    assert line.tags["checkweigher.code"].address == OpcUaAddress("nsu=urn:x;s=Code")
    assert line.tags["checkweigher.code"].word_order is WordOrder.ABCD
    assert line.tag_plc["checkweigher.code"] == "inspect" and len(line.tag_plc) == len(line.tags)
    assert [s.label for s in line.specs] == ["infeed.rail_width", "checkweigher.target", "checkweigher.code"]
    assert line.control_recipes["water_330"].values == {
        ("infeed", "rail_width"): 62.0,
        ("checkweigher", "target"): 330.0,
        ("checkweigher", "code"): "WATER-330",
    }
    assert line.recipes["water_330"].product == "Still water 330 ml"
    slots = {name: n for n, name in enumerate(line.tags)}
    motor = line.exprs["infeed.amps < 2.6 A"].compile(slots)
    values: list[float | bool | int | str | None] = [0.0] * len(slots)
    values[slots["infeed.amps"]] = 2.7
    assert motor(values, [None] * len(slots)) is False
    assert line.tag_of("infeed", "run") == "infeed.run" and line.tag_of("infeed", "a.b") == "a.b"
    file, number = line.where("stations", "infeed", "interlocks", "motor")
    assert file == str(path) and LINE.splitlines()[number - 1].lstrip().startswith("motor:")
    with pytest.raises(dataclasses.FrozenInstanceError):
        line.path = tmp_path  # type: ignore[misc]


def test_all_errors_at_once_and_none_that_only_follows(tmp_path: Path) -> None:
    """One error in each part of the file. What is broken does not make what uses it look wrong as well."""
    text = changed(
        LINE,
        ("  scan_ms: 100", f"  scan_ms: fast {MARK}"),
        ("    port: 502", f"    prot: 502 {MARK}"),
        ('  infeed.warm: {plc: wet, address: "hr:200.1", type: BOOL}',
         f'  infeed.warm: {{plc: wet, address: "hr:200.99", type: BOOL}} {MARK}'),
        ('  infeed.ready: {plc: wet, address: "hr:200.0", type: BOOL}',
         f'  infeed.ready: {{plc: wet, address: "hr:200.0", type: BOOOL}} {MARK}'),
        ("      motor: {require: infeed.amps < 2.6 A, otherwise: hold, text: Motor overloaded}",
         f"      motor: {{require: infeed.amps < 2.6 V, otherwise: hold, text: Motor}} {MARK}"),
        ("      fault: {when: infeed.fault, text: Infeed fault, priority: high, action: abort}",
         f"      fault: {{when: infeed.fault, text: Infeed fault, priority: huge}} {MARK}"),
        ("    settings: {settle_s: 0.2}", f"    settings: {{settle_s: soon}} {MARK}"),
    )  # fmt: skip
    recipe = changed(RECIPE, ("    code: WATER-330", "    code: MILK"))
    path = write(tmp_path, text, recipe)
    found = errors(path)
    line_errors = [int(e.removeprefix(f"{path}:").split(":")[0]) for e in found if e.startswith(f"{path}:")]
    # The PLC that cannot be read hides its tags' addresses, and so the bit 99, but nothing else.
    expected = [n for n in marked_lines(text) if "200.99" not in text.splitlines()[n - 1]]
    expected = [n for n in expected if "2.6 V" not in text.splitlines()[n - 1]]
    assert line_errors == expected, "\n".join(found)
    assert len(found) == len(expected) + 1 and "MILK" in found[-1]

    sound_plc = changed(text, (f"    prot: 502 {MARK}", "    port: 502"))
    found = errors(write(tmp_path, sound_plc, recipe))
    line_errors = [int(e.removeprefix(f"{path}:").split(":")[0]) for e in found if e.startswith(f"{path}:")]
    assert line_errors == marked_lines(sound_plc), "\n".join(found)


def test_a_tab_is_named_as_the_reason(tmp_path: Path) -> None:
    (found,) = errors(write(tmp_path, changed(LINE, ("  name: small", "\tname: small"))))
    assert "with spaces, never with tabs" in found


@pytest.mark.parametrize("wrong", ["the only PLC", "the only station", "both"])
def test_a_mistake_in_the_only_plc_or_station_hides_nothing_else(tmp_path: Path, wrong: str) -> None:
    """Whoever begins with one PLC and one station is told everything at once, too."""
    unit = 300 if wrong != "the only station" else 1
    key = "downstreams" if wrong != "the only PLC" else "downstream"
    text = f"""\
line: {{name: one, estop: [a.nowhere]}}
plcs:
  wet: {{driver: modbus_tcp, host: 127.0.0.1, unit: {unit}}}
tags:
  a.run: {{plc: wet, address: "co:1", type: BOOLEAN}}
stations:
  a: {{kind: sequence, {key}: []}}
"""
    path = tmp_path / "line.yaml"
    path.write_text(text, encoding="utf-8")
    found = "\n".join(errors(path))
    assert "BOOLEAN" in found and "a.nowhere" in found
    assert ("300" in found, "downstreams" in found) == (unit == 300, key == "downstreams")
    assert "unnamed" not in found, "the stand-in shows"


CSV_HEAD = "name,plc,address,type,scale,unit,access,description"


def test_tags_from_csv(tmp_path: Path) -> None:
    moved = '  infeed.amps: {plc: wet, address: "ir:109", type: INT, scale: 0.01, unit: A}\n'
    line = changed(LINE, (moved, ""), ("stations:\n", "tag_files: [tags.csv]\nstations:\n"))
    rows = f'\ufeff{CSV_HEAD}\r\n# belt\r\ninfeed.amps,wet,ir:109,INT,0.01,A,,"Motor current,\r\nmeasured"\r\n\r\n'
    loaded = load(write(tmp_path, line, tags=rows), kinds=KINDS)
    amps = loaded.tags["infeed.amps"]
    assert (amps.scale, amps.unit, amps.type, amps.word_order) == (0.01, "A", DataType.INT, WordOrder.CDAB)
    assert amps.description == "Motor current,\r\nmeasured" and not amps.writable
    assert loaded.where("tags", "infeed.amps") == (str(tmp_path / "tags.csv"), 3)
    semicolons = load(write(tmp_path, line, tags=rows.replace("current,", "current").replace(",", ";")), kinds=KINDS)
    assert semicolons.tags["infeed.amps"].address == amps.address


def test_arrays_masks_and_decimals(tmp_path: Path) -> None:
    rows = (
        "name,plc,address,type,mask,array,scale,unit,length\n"
        "a.level,wet,ir:300,INT,0x0FF0,,0.5,mm,\n"
        "a.temp,wet,ir:301,DINT,,3,0.1,°C,\n"
        "a.on,wet,ir:310.14,BOOL,,4,,,\n"
        "a.valve,wet,co:500,BOOL,,2,,,\n"
        "a.name,wet,ir:320,STRING,,2,,,5\n"
        "a.meter,wet,ir:330,LBCD,,,,,\n"
        "a.low,wet,ir:340,UINT,255,,,,\n"
        "a.high,wet,ir:340,SINT,0xff00,,,,\n"
    )
    line = changed(LINE, ("stations:\n", "tag_files: [tags.csv]\nstations:\n"))
    line = changed(line, ("starved: not infeed.ready", "starved: not infeed.ready or a.temp_2 > 20 °C"))
    loaded = load(write(tmp_path, line, tags=rows), kinds=KINDS)
    made = {n.removeprefix("a."): str(t.address) for n, t in loaded.tags.items() if n.startswith("a.")}
    assert made == {
        "level": "ir:300",
        "temp_1": "ir:301", "temp_2": "ir:303", "temp_3": "ir:305",
        "on_1": "ir:310.14", "on_2": "ir:310.15", "on_3": "ir:311.0", "on_4": "ir:311.1",
        "valve_1": "co:500", "valve_2": "co:501",
        "name_1": "ir:320", "name_2": "ir:323",
        "meter": "ir:330", "low": "ir:340", "high": "ir:340",
    }  # fmt: skip
    assert [t for t in loaded.tags if t.startswith("a.")] == ["a." + n for n in made], "in the order of the file"
    temp = loaded.tags["a.temp_3"]
    assert (temp.name, temp.scale, temp.unit, temp.mask) == ("a.temp_3", 0.1, "°C", None)
    assert [loaded.tags[f"a.{n}"].mask for n in ("level", "low", "high")] == [0x0FF0, 0xFF, 0xFF00]
    assert loaded.tag_plc["a.temp_3"] == "wet" and "a.temp" not in loaded.tag_plc
    assert loaded.where("tags", "a.temp_3") == (str(tmp_path / "tags.csv"), 3)
    plan = ModbusPlan([t for n, t in loaded.tags.items() if loaded.tag_plc[n] == "wet"])
    assert {t.name for g in plan.groups for t in g.tags} >= {f"a.{n}" for n in made}


def test_an_unknown_element_of_an_array_is_told_with_its_neighbours(tmp_path: Path) -> None:
    line = changed(
        LINE,
        ("  infeed.ready:", '  a.temp: {plc: wet, address: "ir:300", type: INT, array: 3}\n  infeed.ready:'),
        ("starved: not infeed.ready", "starved: not infeed.ready or a.temp_4 > 20"),
    )
    (found,) = errors(write(tmp_path, line))
    assert 'unknown tag "a.temp_4"' in found and '"a.temp_' in found.split("did you mean")[1]
    broken = changed(line, ("type: INT, array: 3", "type: INT, array: 4, scale: 0"))
    (found,) = errors(write(tmp_path, broken))
    assert "a.temp_1: scale 0" in found, "what uses an array that is broken is not also wrong"


@pytest.mark.parametrize(
    ("rows", "at", "what", "hint"),
    [
        ("name,plc,adress,type", 1, 'unknown column "adress"', '"address"'),
        ("name,plc,address,type,type", 1, '"type" is given twice', ""),
        ("name,plc,address", 1, '"type" is missing', "name, plc"),
        ("", 1, "no header row", "name"),
        (f"{CSV_HEAD}\na.b,wet,ir:300,INT,,,,\na.b,wet,ir:301,INT,,,,", 3, "given twice", "line 2"),
        (f"{CSV_HEAD}\ninfeed.run,wet,ir:300,INT,,,,", 2, '"infeed.run" is given twice', "line.yaml:26"),
        (f"{CSV_HEAD}\nA.b,wet,ir:300,INT,,,,", 2, "not a valid tag name", "group.point"),
        (f"{CSV_HEAD}\n\na.b,wet,ir:300,INT", 3, "4 cells in this row, 8 columns", "separators"),
        (f"{CSV_HEAD.replace(',', ';')}\na.b;wet;ir:300;INT;0,1;;;", 2, 'not "0,1"', "0.1"),
        (f"{CSV_HEAD}\na.b,wet,ir:300,INTEGER,,,,", 2, '"type" cannot be "INTEGER"', '"INT"'),
        (f"{CSV_HEAD}\na.b,wet,ir:300,,,,,", 2, '"type" is missing', "type"),
        (f"{CSV_HEAD}\na.b,wet,ir:300,INT,nan,,,", 2, "must be a number", "number alone"),
        (f"{CSV_HEAD}\na.b,wet,ir:100,INT,,,,", 2, "overlaps infeed.count_in", ""),
        (f"{CSV_HEAD}\na.b,wat,ir:300,INT,,,,", 2, 'unknown PLC "wat"', "wet"),
        (f'{CSV_HEAD}\na.b,wet,ir:300,INT,,,,"x', 2, "not valid CSV", "quotes"),
    ],
)
def test_broken_csv(tmp_path: Path, rows: str, at: int, what: str, hint: str) -> None:
    path = write(tmp_path, changed(LINE, ("stations:\n", "tag_files: [tags.csv]\nstations:\n")), tags=rows)
    with pytest.raises(ConfigError) as caught:
        load(path, kinds=KINDS)
    places = {(p.line, Path(p.file).name) for p in caught.value.problems if what in p.what and hint in p.hint}
    assert places == {(at, "tags.csv")}, caught.value


def test_missing_files_are_named_where_they_are_asked_for(tmp_path: Path) -> None:
    assert "cannot read" in errors(tmp_path / "none.yaml")[0]
    text = changed(LINE, ("stations:\n", f"tag_files:\n  - none.csv  {MARK}\nrecipes: products  {MARK}\nstations:\n"))
    path = write(tmp_path, text, recipe=None)
    asked, _ = marked_lines(text)
    assert errors(path) == (
        f"{path}:{asked}: cannot read {tmp_path / 'none.csv'}: No such file or directory; check name and rights",
    )
    found = errors(write(tmp_path, changed(text, (f"tag_files:\n  - none.csv  {MARK}\n", "")), recipe=None))
    assert any("recipe folder" in e and "does not exist" in e for e in found)


def test_not_utf8(tmp_path: Path) -> None:
    path = write(tmp_path)
    path.write_bytes(LINE.replace("Motor overloaded", "Motor überlastet").encode("latin-1"))
    number = next(n for n, line in enumerate(LINE.splitlines(), 1) if "overloaded" in line)
    assert errors(path) == (f'{path}:{number}: not UTF-8: byte 0xfc cannot be read; save the file as "UTF-8"',)


@pytest.mark.parametrize("text", ["", "- a\n- b\n", "just text\n", "line: {name: x}\n", "[" * 100_000, "a: &a [*a]\n"])
def test_not_a_line(tmp_path: Path, text: str) -> None:
    assert errors(write(tmp_path, text))


def test_overrides(tmp_path: Path) -> None:
    path = write(tmp_path)
    plain = load(path, kinds=KINDS)
    line = load(path, {"wet": {"host": "127.0.0.1", "port": 5020}, "inspect": {"endpoint": "opc.tcp://h:1"}}, KINDS)
    wet = line.file.plcs["wet"]
    assert isinstance(wet, ModbusTcpPlc) and (wet.host, wet.port, wet.unit) == ("127.0.0.1", 5020, 1)
    assert wet.heartbeat is not None and line.tags == plain.tags
    assert line.config_hash == plain.config_hash
    serial = load(path, {"wet": {"driver": "modbus_rtu", "device": "/dev/pts/9"}}, KINDS).file.plcs["wet"]
    assert isinstance(serial, ModbusRtuPlc) and serial.unit == 1 and serial.heartbeat == wet.heartbeat


@pytest.mark.parametrize(
    ("overrides", "what"),
    [
        ({"wat": {"port": 1}}, 'unknown PLC "wat"'),
        ({"wet": {"port": 70000}}, '"port" must be less than or equal to 65535, not 70000'),
        ({"wet": {"prot": 1}}, 'unknown key "prot"'),
        ({"wet": {"driver": "opcua", "endpoint": "opc.tcp://h:1"}}, "cannot become opcua"),
    ],
)
def test_wrong_overrides(tmp_path: Path, overrides: dict[str, dict[str, object]], what: str) -> None:
    found = errors(write(tmp_path), overrides=overrides)
    assert len(found) == 1 and what in found[0], found


def test_overrides_that_collide(tmp_path: Path) -> None:
    more = "  wet2: {driver: modbus_tcp, host: 10.0.0.3, unit: 1}\nscan_classes:\n"
    path = write(tmp_path, changed(LINE, ("scan_classes:\n", more)))
    assert len(load(path, kinds=KINDS).warnings) == 1
    found = errors(path, overrides={"wet2": {"host": "10.0.0.1"}})
    assert len(found) == 1 and "are the same device" in found[0]


def test_hash_follows_content_not_place(tmp_path: Path) -> None:
    path = write(tmp_path)
    first = load(path, kinds=KINDS).config_hash
    shutil.copytree(tmp_path, tmp_path / "elsewhere", ignore=shutil.ignore_patterns("elsewhere"))
    assert load(tmp_path / "elsewhere" / "line.yaml", kinds=KINDS).config_hash == first
    write(tmp_path, recipe=RECIPE + "# a remark\n")
    assert load(path, kinds=KINDS).config_hash != first


@pytest.mark.parametrize(
    ("old", "new", "what"),
    [
        ("  fast: {period_ms: 100, stale_ms: 500}", "  fast: {period_ms: 50, stale_ms: 500}", "every 50 ms"),
        (
            "  fast: {period_ms: 100, stale_ms: 500}",
            f"  fast: {{period_ms: 100, stale_ms: 299}}  {MARK}",
            "below three periods of 100 ms",
        ),
        ("    unit: 1\n", f"    unit: 0  {MARK}\n", "unit 0 is the broadcast"),
        ("scan_classes:\n", "  spare: {driver: opcua, endpoint: opc.tcp://x:1}\nscan_classes:\n", "spare has no tags"),
        (
            '"ir:110", type: UINT, scale: 0.1',
            '"ir:110", type: UINT, scale: 0.5',
            "infeed.rail_pos only shows steps of 0.5",
        ),
    ],
)
def test_warnings(tmp_path: Path, old: str, new: str, what: str) -> None:
    path = write(tmp_path, changed(LINE, (old, new)))
    (warning,) = load(path, kinds=KINDS).warnings
    assert what in warning.what and warning.file == str(path) and warning.hint


@pytest.mark.parametrize(
    ("fast", "reading", "warned"),
    [("299", "auto", True), ("299", "subscribe", True), ("300", "auto", False), ("299", "poll", False)],
)
def test_values_that_are_told_need_three_periods(tmp_path: Path, fast: str, reading: str, warned: bool) -> None:
    """A value of a sound OPC UA subscription may be two and a half periods old."""
    driver = f"    driver: opcua\n    reading: {reading}\n"
    text = changed(LINE, ("stale_ms: 500}", f"stale_ms: {fast}}}"), ("    driver: opcua\n", driver))
    found = [w.what for w in load(write(tmp_path, text), kinds=KINDS).warnings]
    assert bool(found) is warned, found


def test_the_periods_of_polled_plcs_alone_are_not_warned_of(tmp_path: Path) -> None:
    """Slow is used by the Modbus PLC or by nobody: what it allows is for polling to decide."""
    text = changed(LINE, ("stale_ms: 3000}", "stale_ms: 2500}"))
    assert load(write(tmp_path, text), kinds=KINDS).warnings == ()


def test_the_same_recipe_twice(tmp_path: Path) -> None:
    path = write(tmp_path)
    (tmp_path / "recipes" / "z.yml").write_text(RECIPE)
    found = errors(path)
    assert len(found) == 1 and 'recipe "water_330" is given twice' in found[0] and "z.yml:1" in found[0]


def test_without_kinds_kinds_are_not_checked(tmp_path: Path) -> None:
    assert load(write(tmp_path, changed(LINE, ("    kind: weigher", "    kind: anything")))).tags


def bottling_tags() -> str:
    """The bottling plant's register list as a tag file."""
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(["name", "plc", "address", "type", "word_order", "length", "scale", "unit", "access"])
    with REGISTERS.open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            area = "" if row["area"] == "ua" else row["area"] + ":"
            length = 20 if row["type"] == "STRING" else ""
            name, unit = row["point"], row["unit"]
            values = [name, row["plc"], area + row["address"], row["type"], row["word_order"], length]
            writer.writerow([*values, row["scale"], unit, row["access"]])
    return out.getvalue()


def test_bottling_register_list_loads_fast(tmp_path: Path) -> None:
    names = ("infeed", "filler", "capper", "labeler", "checkweigher", "packer")
    stations = ""
    for name, after in zip(names, (*names[1:], None), strict=True):
        stations += f"  {name}:\n    kind: sequence\n    downstream: [{after or ''}]\n"
        stations += f"    counts: {{infeed: {name}.count_in, good: {name}.count_good}}\n    starved: {name}.starved\n"
        stations += "    interlocks:\n"
        for n in range(20):
            stations += f"      a{n}: {{require: {name}.estop_ok and {name}.in_process < {n} + 5, text: x}}\n"
    line = (
        "line: {name: bottling}\nplcs:\n"
        "  wet: {driver: modbus_tcp, host: a, unit: 1, word_order: CDAB}\n"
        "  dry: {driver: modbus_rtu, device: /dev/x, unit: 1}\n"
        "  inspect: {driver: opcua, endpoint: opc.tcp://b}\n"
        f"tag_files: [tags.csv]\nstations:\n{stations}"
    )
    path = write(tmp_path, line, recipe=None, tags=bottling_tags())
    best = 10.0
    for _ in range(3):
        start = time.perf_counter()
        loaded = load(path, kinds=KINDS)
        best = min(best, time.perf_counter() - start)
    assert len(loaded.tags) >= 160 and len(loaded.exprs) == 126
    assert best < 1.0
