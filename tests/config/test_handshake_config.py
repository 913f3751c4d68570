"""Identity, boot counter and command blocks in line.yaml: every way to get them wrong names the line."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_line import KINDS, LINE, MARK, changed, marked_lines, write

from controller.config import ConfigError, load
from controller.runtime.bus_options import link_options

HEARTBEAT = "    heartbeat: {read: wet.heartbeat, write: wet.watchdog}"
WARM = '  infeed.warm: {plc: wet, address: "hr:200.1", type: BOOL}'
SAFE = "    safe: {infeed.run: false}"
RAIL = "rail_width: {tag: infeed.rail_sp,"
TAGS = """\
  wet.boot: {plc: wet, address: "ir:1", type: UINT}
  wet.version: {plc: wet, address: "ir:2", type: UINT}
  wet.pattern: {plc: wet, address: "ir:3", type: UDINT}
  wet.clock: {plc: wet, address: "ir:5", type: UDINT}
  wet.ack: {plc: wet, address: "ir:7", type: UDINT}
  wet.slow: {plc: wet, address: "ir:9", type: UDINT, scan_class: slow}
  wet.small: {plc: wet, address: "ir:11", type: UINT}
  wet.cmd: {plc: wet, address: "hr:10", type: INT, access: rw}
  wet.until: {plc: wet, address: "hr:11", type: UDINT, access: rw}
  wet.id: {plc: wet, address: "hr:13", type: UDINT, access: rw}
  wet.far: {plc: wet, address: "hr:16", type: UINT, access: rw}
  wet.coil: {plc: wet, address: "co:40", type: BOOL, access: rw}
  wet.byte: {plc: wet, address: "hr:15", type: USINT, access: rw}
  wet.signed: {plc: wet, address: "hr:20", type: DINT, access: rw}
  wet.decimal: {plc: wet, address: "hr:22", type: LBCD, access: rw}
  wet.limited: {plc: wet, address: "ir:12", type: UINT, high: 100}
"""
BLOCK = {
    "id": "wet.id",
    "tags": "[wet.cmd]",
    "ack": "wet.ack",
    "valid_until": "wet.until",
    "clock": "wet.clock",
    "valid_ms": "2000",
}
END = "stations:"


def line(marked: str = "", **changes: str | None) -> str:
    """The small line with a handshake; keys of the block as given, the line of ``marked`` with the mark."""
    block = {k: v for k, v in (BLOCK | changes).items() if v is not None and k in BLOCK}
    identity = changes.get("identity") or "wet.version: 3"
    rows = {
        "identity": f"    identity:\n      {identity}",
        "boot": f"    boot_counter: {changes.get('boot') or 'wet.boot'}",
        "blocks": "    command_blocks:\n      -",
    }
    rows |= {key: f"        {key}: {value}" for key, value in block.items()}
    if marked:
        rows[marked] += f"  {MARK}"
    rows["extra"] = changes.get("extra") or ""
    return changed(
        LINE, (HEARTBEAT, HEARTBEAT + "\n" + "\n".join(r for r in rows.values() if r)), (WARM, f"{WARM}\n{TAGS}")
    )


def test_the_whole_handshake(tmp_path: Path) -> None:
    config = load(
        write(
            tmp_path, line(identity="{wet.version: 3, wet.pattern: 0x01020304}".strip("{}").replace(", ", "\n      "))
        ),
        kinds=KINDS,
    )
    options = link_options(config.file.plcs["wet"], config.file.scan_classes)
    assert options.identity == {"wet.version": 3, "wet.pattern": 0x01020304}
    assert options.boot_counter == "wet.boot"
    (block,) = options.blocks
    assert block.written == ("wet.cmd", "wet.until", "wet.id")
    assert (block.ack, block.clock, block.valid_ms) == ("wet.ack", "wet.clock", 2000)


def test_a_small_handshake_is_enough(tmp_path: Path) -> None:
    load(write(tmp_path, line(ack=None, valid_until=None, clock=None, tags="[wet.until, wet.cmd]")), kinds=KINDS)


WRONG = {
    "identity of nobody": ("identity", {"identity": "wet.versoin: 3"}, 'unknown tag "wet.versoin"', "wet.version"),
    "identity of another": ("identity", {"identity": "checkweigher.code: A"}, "is a tag of inspect", "tag of wet"),
    "identity out of range": ("identity", {"identity": "wet.version: 70000"}, "can never be 70000", "the PLC shows"),
    "identity of another type": ("identity", {"identity": "wet.version: true"}, "can never be True", "the PLC shows"),
    "boot counter of nobody": ("boot", {"boot": "wet.boots"}, 'unknown tag "wet.boots"', "wet.boot"),
    "boot counter is a bit": ("boot", {"boot": "infeed.ready"}, "must be an unscaled integer", "counter"),
    "boot counter too slow": ("boot", {"boot": "wet.slow"}, "read every 1000 ms", "scan_class: fast"),
    "boot counter with limits": ("boot", {"boot": "wet.limited"}, "has limits or a mask", "remove low, high and mask"),
    "id is signed": ("id", {"id": "wet.signed", "ack": None}, "1 is older than the largest", "unsigned"),
    "id is decimal": ("id", {"id": "wet.decimal", "ack": None}, "16 bits or more", "UDINT"),
    "id read-only": ("id", {"id": "wet.ack", "ack": None}, "cannot be written", "access: rw"),
    "id of nobody": ("id", {"id": "wet.idd"}, 'unknown tag "wet.idd"', "wet.id"),
    "id is a byte": ("id", {"id": "wet.byte", "ack": None}, "16 bits or more", "UDINT"),
    "ack of another type": ("ack", {"ack": "wet.small"}, "wet.small is UINT, wet.id is UDINT", "same type"),
    "ack too slow": ("ack", {"ack": "wet.slow", "valid_ms": "900"}, "read every 1000 ms", "faster scan class"),
    "gap": ("tags", {"tags": "[wet.cmd, wet.far]"}, "does not follow wet.id, which ends at hr:14", "without a gap"),
    "coil": ("tags", {"tags": "[wet.cmd, wet.coil]"}, "no whole holding register", "hr:"),
    "twice": ("tags", {"tags": "[wet.cmd, wet.cmd]"}, "more than once", "once"),
    "no clock": ("valid_until", {"clock": None}, "valid_until needs clock", "clock"),
    "no validity": ("clock", {"valid_until": None}, "clock needs valid_until", "valid_until"),
    "clock of another type": ("valid_until", {"clock": "wet.small"}, "wet.until is UDINT, wet.small is UINT", "same"),
    "valid for too long": (
        "valid_ms",
        {"clock": "wet.small", "valid_until": "wet.far", "valid_ms": "20000"},
        "too long for a clock of type UINT",
        "32 bits",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_handshake(name: str, tmp_path: Path) -> None:
    marked, changes, what, hint = WRONG[name]
    text = line(marked, **changes)
    path = write(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        load(path, kinds=KINDS)
    problem = next((p for p in caught.value.problems if what in p.what), None)
    assert problem is not None, str(caught.value)
    assert hint in problem.hint
    near = {n for line in marked_lines(text) for n in (line, line + 1)}  # the identity's entries are below its key
    assert problem.line in near, f"{problem}\n{text}"


def test_a_part_of_a_command_is_nothing_by_itself(tmp_path: Path) -> None:
    text = changed(line(), (SAFE, f"    safe: {{wet.cmd: 0}}  {MARK}"), ("{tag: infeed.rail_sp,", "{tag: wet.until,"))
    with pytest.raises(ConfigError) as caught:
        load(write(tmp_path, text), kinds=KINDS)
    found = [p for p in caught.value.problems if "part of the command wet.id" in p.what]
    assert {p.line in marked_lines(text) for p in found} == {True, False}
    assert any("cannot be a recipe parameter" in p.what for p in found)


def test_who_drives_a_part_of_a_command_drives_its_number(tmp_path: Path) -> None:
    outputs = "    outputs: [infeed.run]"
    for driven, what in (
        ("wet.cmd", "whose number infeed does not give: never written"),
        ("wet.id, wet.until", "which the link works out by itself"),
    ):
        text = changed(line(), (outputs, f"    outputs: [infeed.run, {driven}]  {MARK}"))
        with pytest.raises(ConfigError) as caught:
            load(write(tmp_path, text), kinds=KINDS)
        (found,) = [p for p in caught.value.problems if what in p.what]
        assert found.line in marked_lines(text)
    load(write(tmp_path, changed(line(), (outputs, "    outputs: [infeed.run, wet.cmd, wet.id]"))), kinds=KINDS)


def test_a_life_sign_is_no_part_of_a_command(tmp_path: Path) -> None:
    text = changed(line(), ("write: wet.watchdog", "write: wet.cmd"))
    with pytest.raises(ConfigError, match=r"part of the command wet\.id, and no life sign"):
        load(write(tmp_path, text), kinds=KINDS)


def test_a_clock_of_16_bits_is_warned_of(tmp_path: Path) -> None:
    config = load(
        write(tmp_path, line(clock="wet.small", valid_until="wet.far", tags="[wet.until, wet.cmd, wet.byte]")),
        kinds=KINDS,
    )
    assert any("counts as valid again" in w.what for w in config.warnings)
