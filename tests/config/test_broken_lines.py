"""Every way to get line.yaml wrong: the error names the line, what is wrong and what to do."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_line import KINDS, LINE, MARK, RECIPE, changed, marked_lines, write

from controller.config import ConfigError, load


def at(new: str) -> str:
    """The (one-line) text with the mark."""
    return f"{new}  {MARK}"


def swap(old: str, new: str) -> tuple[str, str]:
    return old, at(new)


HEARTBEAT = "    heartbeat: {read: wet.heartbeat, write: wet.watchdog}"
GATE = '  infeed.gate: {plc: wet, address: "co:17", type: BOOL, access: rw}'
AMPS = '  infeed.amps: {plc: wet, address: "ir:109", type: INT, scale: 0.01, unit: A}'
RAIL_POS = '  infeed.rail_pos: {plc: wet, address: "ir:110", type: UINT, scale: 0.1, unit: mm}'
COUNT_IN = '  infeed.count_in: {plc: wet, address: "ir:100", type: UDINT}'
WARM = '  infeed.warm: {plc: wet, address: "hr:200.1", type: BOOL}'
CODE = '  checkweigher.code: {plc: inspect, address: "nsu=urn:x;s=Code", type: STRING, length: 16, access: rw}'
RAIL = "rail_width: {tag: infeed.rail_sp, confirm: infeed.rail_pos, tolerance: 0.2, unit: mm, low: 50, high: 80}"
MOTOR = "      motor: {require: infeed.amps < 2.6 A, otherwise: hold, text: Motor overloaded}"
WAIT = "{until: infeed.ready and infeed.warm, limit_s: 5, alarm: not_ready, text: Infeed does not start}"
STEP = "        - set: {infeed.run: true}"
END = "code: {tag: checkweigher.code, choices: [WATER-330, WATER-500]}"
INSPECT = "  inspect:\n    driver: opcua\n    endpoint: opc.tcp://10.0.0.2:4840\n"
MODE = "    clean: {number: 4, disabled_states: [suspended]}"
TCP = "    driver: modbus_tcp\n    host: 10.0.0.1\n    port: 502\n    unit: 1\n"


def tag(text: str) -> tuple[str, str]:
    """Add a tag."""
    return WARM, f"{WARM}\n{at('  ' + text)}"


def station(text: str) -> tuple[str, str]:
    """Add lines at the end of the stations."""
    return END, f"{END}\n{text}"


SHAPE = {
    "yaml": (
        [("  name: small", "  name: [small"), swap("  scan_ms: 100", "  scan_ms: 100")],
        "begun on line 2",
        "brackets",
    ),
    "duplicate key": ([("  name: small", at("  name: small") + "\n" + at("  name: other"))], "given twice", "line 2"),
    "unknown key": ([swap("    port: 502", "    prot: 502")], 'unknown key "prot"', '"port"'),
    "unknown tag key": ([swap(WARM, WARM.replace("type", "tpye"))], 'unknown key "tpye"', '"type"'),
    "unknown step": ([swap(STEP, "        - sett: {infeed.run: true}")], "a step is one of", ""),
    "unknown key in step": ([swap(STEP, STEP + "\n          until: infeed.ready")], 'unknown key "until"', "set"),
    "no is false": ([swap("  name: small", "  name: no")], '"no" means false', 'quote it ("no")'),
    "key off": ([swap(MODE, MODE.replace("clean", "off"))], 'key "off" means false', "quote it"),
    "octal": ([swap("    port: 502", "    port: 0502")], "octal", "write 502"),
    "base 60": ([swap("    port: 502", "    port: 5:02")], "number of another kind", "quote it"),
    "date": ([swap("  recipe: water_330", "  recipe: 2024-01-31")], "read as a date", "quote"),
    "quoted number": ([swap("    port: 502", '    port: "502"')], '"port" must be a number', "without quotes"),
    "text that is a number": ([swap("  recipe: water_330", "  recipe: 330")], "must be a text", 'quote it: "330"'),
    "out of range": ([swap("    port: 502", "    port: 70000")], "less than or equal to 65535", ""),
    "NaN": ([swap(AMPS, AMPS.replace("0.01", ".nan"))], '"scale" must be a finite number', ""),
    "unknown driver": ([swap("    driver: opcua", "    driver: opc_ua")], "unknown driver", '"opcua"'),
    "no driver": ([("  inspect:\n    driver: opcua", at("  inspect:"))], "does not say its", "driver"),
    "unknown type": ([swap(AMPS, AMPS.replace("INT", "INT16"))], '"type" cannot be "INT16"', '"INT"'),
    "missing key": (
        [swap("  inspect:", "  inspect:"), ("    endpoint: opc.tcp://10.0.0.2:4840\n", "")],
        '"endpoint" is missing',
        'add "endpoint',
    ),
    "bad tag name": (
        [tag('Infeed.Warm2: {plc: wet, address: "di:99", type: BOOL}')],
        "not a valid name",
        "group.point",
    ),
}

TAGS = {
    "unknown plc": ([swap(WARM, WARM.replace("wet,", "wat,"))], 'unknown PLC "wat"', '"wet"'),
    "unknown scan class": (
        [tag('a.b: {plc: wet, address: "di:1", type: BOOL, scan_class: fats}')],
        "scan class",
        "fast",
    ),
    "unknown unit": ([swap(AMPS, AMPS.replace("unit: A", "unit: Amp"))], 'unknown unit "Amp"', ""),
    "address": ([tag('a.b: {plc: wet, address: "xx:1", type: BOOL}')], "not a Modbus address", "co:5"),
    "address case": ([tag('a.b: {plc: wet, address: "HR:1", type: UINT}')], "not a Modbus address", "hr:1"),
    "Modicon": ([tag('a.b: {plc: wet, address: "40001", type: UINT}')], "not a Modbus address", "hr:0"),
    "node id": ([swap(CODE, CODE.replace("nsu=urn:x;s=Code", "hr:5"))], "not a node id", "nsu="),
    "address range": ([tag('a.b: {plc: wet, address: "ir:65536", type: UINT}')], "out of range", "65535"),
    "passes the end": ([tag('a.b: {plc: wet, address: "ir:65535", type: REAL}')], "takes 2 registers", "address"),
    "bit 16": ([tag('a.b: {plc: wet, address: "ir:5.16", type: BOOL}')], "no bit 16", "0 … 15"),
    "bit of a coil": ([tag('a.b: {plc: wet, address: "co:5.1", type: BOOL}')], "has no bits", "co:5"),
    "coil type": ([tag('a.b: {plc: wet, address: "co:5", type: INT}')], "single bit", "BOOL"),
    "bit type": ([tag('a.b: {plc: wet, address: "ir:5.1", type: INT}')], "single bit", "whole register ir:5"),
    "BOOL without bit": ([tag('a.b: {plc: wet, address: "ir:5", type: BOOL}')], "needs a bit", "ir:5.0"),
    "input rw": ([tag('a.b: {plc: wet, address: "ir:5", type: INT, access: rw}')], "cannot be written", "hr:"),
    "discrete rw": ([tag('a.b: {plc: wet, address: "di:5", type: BOOL, access: rw}')], "cannot be written", "co:"),
    "string length": ([tag('a.b: {plc: wet, address: "ir:300", type: STRING}')], "needs its length", "add length"),
    "length of INT": ([tag('a.b: {plc: wet, address: "ir:300", type: INT, length: 2}')], "length is for STRING", ""),
    "scale 0": ([swap(AMPS, AMPS.replace("0.01", "0"))], "scale 0", "1 means unscaled"),
    "scaled BOOL": ([tag('a.b: {plc: wet, address: "di:5", type: BOOL, scale: 2}')], "scale is for numbers", ""),
    "low above high": ([tag('a.b: {plc: wet, address: "ir:5", type: INT, low: 5, high: 5}')], "not below", "swap"),
    "range beyond type": ([tag('a.b: {plc: wet, address: "ir:5", type: UINT, high: -5}')], "carries 0 … 65535", ""),
    "overlap": ([tag('a.b: {plc: wet, address: "ir:101", type: UINT}')], "overlaps infeed.count_in", "line.yaml:30"),
    "same coil": ([swap(GATE, GATE.replace("co:17", "co:16"))], "overlaps infeed.run", ""),
    "same bit": ([swap(WARM, WARM.replace("200.1", "200.0"))], "overlaps infeed.ready", ""),
    "word over bits": ([tag('a.b: {plc: wet, address: "hr:200", type: UINT}')], "overlaps infeed.ready", ""),
    "mask of a long type": (
        [tag('a.b: {plc: wet, address: "hr:300", type: DINT, mask: 0x0F}')],
        "a mask is for SINT, USINT, INT, UINT",
        "remove it",
    ),
    "mask of a BOOL": ([tag('a.b: {plc: wet, address: "hr:300.1", type: BOOL, mask: 2}')], "not for BOOL", ""),
    "mask with holes": (
        [tag('a.b: {plc: wet, address: "hr:300", type: UINT, mask: 0x0F0F}')],
        "0x0F0F are not next to each other",
        "a tag for each field",
    ),
    "mask too wide": (
        [tag('a.b: {plc: wet, address: "hr:300", type: USINT, mask: 0x0FF8}')],
        "has 9 bits, a USINT holds 8",
        "narrow",
    ),
    "mask 0": ([tag('a.b: {plc: wet, address: "hr:300", type: UINT, mask: 0}')], '"mask"', ""),
    "mask of a node": (
        [tag('a.b: {plc: inspect, address: "i=5", type: UINT, mask: 0x0F}')],
        "mask is for Modbus",
        "",
    ),
    "masks overlap": (
        [
            tag('a.b: {plc: wet, address: "hr:300", type: UINT, mask: 0x0F0}'),
            ("  infeed.ready:", '  a.c: {plc: wet, address: "hr:300", type: UINT, mask: 0x780}\n  infeed.ready:'),
        ],
        "a.b (UINT at hr:300) overlaps a.c at hr:300",
        "line.yaml:36",
    ),
    "mask over a bit": (
        [tag('a.b: {plc: wet, address: "hr:200", type: UINT, mask: 0x06}')],
        "overlaps infeed.warm",
        "",
    ),
    "beyond the mask": (
        [tag('a.b: {plc: wet, address: "hr:300", type: UINT, mask: 0x0F, low: 16}')],
        "carries 0 … 15, low is 16",
        "",
    ),
    "beyond BCD": ([tag('a.b: {plc: wet, address: "hr:300", type: BCD, low: -2, high: -1}')], "carries 0 … 9999", ""),
    "BCD in a node": ([tag('a.b: {plc: inspect, address: "i=5", type: BCD}')], "BCD is for Modbus registers", ""),
    "array of nodes": (
        [tag('a.b: {plc: inspect, address: "i=5", type: UINT, array: 3}')],
        "array is for Modbus",
        "",
    ),
    "array of one": ([tag('a.b: {plc: wet, address: "hr:300", type: UINT, array: 1}')], "greater than or equal", ""),
    "array behind the end": (
        [tag('a.b: {plc: wet, address: "hr:65530", type: DINT, array: 4}')],
        "a.b_4 would be at hr:65536",
        "correct array or address",
    ),
    "array's last passes the end": (
        [tag('a.b: {plc: wet, address: "hr:65531", type: DINT, array: 3}')],
        "a.b_3: DINT at hr:65535 takes 2 registers",
        "",
    ),
    "array's name": (
        [tag(f'a.{"b" * 38}: {{plc: wet, address: "hr:300", type: DINT, array: 10}}')],
        "_10 is too long for a tag name",
        "shorten",
    ),
    "array's element is there": (
        [
            tag('a.b: {plc: wet, address: "hr:300", type: DINT, array: 3}'),
            ("  infeed.ready:", '  a.b_2: {plc: wet, address: "hr:320", type: UINT}\n  infeed.ready:'),
        ],
        'tag "a.b_2" is given twice: once by the array a.b',
        "line.yaml:36",
    ),
    "array told once": (
        [tag('a.b: {plc: wet, address: "hr:300", type: INT, array: 30, low: 9, high: 1}')],
        "a.b_1: low 9 is not below high 1",
        "",
    ),
    "array without address": ([tag('a.b: {plc: wet, address: "x", type: INT, array: 30}')], "not a Modbus address", ""),
    "array of no PLC": (
        [tag('a.b: {plc: wat, address: "hr:300", type: INT, array: 30}')],
        'unknown PLC "wat"',
        '"wet"',
    ),
    "array overlaps": (
        [tag('a.b: {plc: wet, address: "ir:99", type: UINT, array: 9}')],
        "a.b_2 (UINT at ir:100) overlaps infeed.count_in",
        "line.yaml:30",
    ),
    "arrays overlap": (
        [
            tag('a.b: {plc: wet, address: "hr:300", type: UINT, array: 9}'),
            ("  infeed.ready:", '  a.c: {plc: wet, address: "hr:304", type: REAL, array: 9}\n  infeed.ready:'),
        ],
        "a.b_5 (UINT at hr:304) overlaps a.c_1 at hr:304",
        "line.yaml:36",
    ),
    "same node": ([swap(CODE, CODE.replace("s=Code", "s=Target"))], "are the same node", "checkweigher.target"),
}
TWO = {"word over bits": 2, "unknown tag key": 2, "array overlaps": 2}

PLCS = {
    "stale": (
        [swap("  fast: {period_ms: 100, stale_ms: 500}", "  fast: {period_ms: 100, stale_ms: 100}")],
        "not above period_ms",
        "two periods",
    ),
    "same endpoint": (
        [(INSPECT, INSPECT + "  wet2:\n" + TCP.replace("10.0.0.1\n", at("10.0.0.1") + "\n"))],
        "are the same device 10.0.0.1 502 unit 1",
        "merge",
    ),
    "avoid": (
        [swap("    word_order: CDAB", '    avoid: ["ir:300", "hr:5-9"]')],
        'wet: "hr:5-9" is not a range of Modbus addresses',
        "hr:100..120",
    ),
    "avoid backwards": ([swap("    word_order: CDAB", "    avoid: [hr:9..5]")], "the lower one first", ""),
    "max_write_registers": (
        [
            ("    word_order: CDAB", "    max_write_registers: 1"),
            tag('a.b: {plc: wet, address: "hr:300", type: REAL, access: rw}'),
        ],
        "a.b takes 2 registers, wet takes 1 at most in a write",
        "max_write_registers",
    ),
    "serial shared": (
        [
            (
                INSPECT,
                INSPECT
                + "  a: {driver: modbus_rtu, device: /dev/tty1, unit: 1}\n"
                + at("  b: {driver: modbus_rtu, device: /dev/tty1, unit: 2, baudrate: 9600}")
                + "\n",
            )
        ],
        "b and a share /dev/tty1, but their baudrate differs",
        "the same for both",
    ),
    "serial unit 0": (
        [(INSPECT, INSPECT + at("  a: {driver: modbus_rtu, device: /dev/tty1, unit: 0}") + "\n")],
        "cannot answer on a serial line",
        "1 … 247",
    ),
    "heartbeat tag": (
        [swap(HEARTBEAT, HEARTBEAT.replace("wet.heartbeat", "wet.heartbeet"))],
        'unknown tag "wet.heartbeet"',
        '"wet.heartbeat"',
    ),
    "heartbeat write": (
        [swap(HEARTBEAT, HEARTBEAT.replace("wet.watchdog", "infeed.count_in"))],
        "cannot be written",
        "rw",
    ),
    "heartbeat type": (
        [swap(HEARTBEAT, HEARTBEAT.replace("wet.heartbeat", "infeed.fault"))],
        "unscaled integer",
        "counter",
    ),
    "heartbeat plc": (
        [
            (
                "    endpoint: opc.tcp://10.0.0.2:4840",
                "    endpoint: opc.tcp://10.0.0.2:4840\n" + at("    heartbeat: {read: wet.heartbeat}"),
            )
        ],
        "is a tag of wet",
        "tag of inspect",
    ),
    "heartbeat times": (
        [swap(HEARTBEAT, HEARTBEAT[:-1] + ", period_ms: 500, timeout_ms: 500}")],
        "not above period_ms",
        "several",
    ),
}

STATIONS = {
    "unknown downstream": (
        [swap("    downstream: [checkweigher]", "    downstream: [checkwiegher]")],
        'unknown station "checkwiegher"',
        '"checkweigher"',
    ),
    "self": (
        [swap("    downstream: [checkweigher]", "    downstream: [checkweigher, infeed]")],
        "its own downstream",
        "",
    ),
    "twice": ([swap("    downstream: [checkweigher]", "    downstream: [checkweigher, checkweigher]")], "twice", ""),
    "cycle": (
        [swap("    kind: weigher", "    kind: weigher\n    downstream: [infeed]")],
        "in a circle: infeed → checkweigher → infeed",
        "one way",
    ),
    "lonely": ([station(at("  packer:") + "\n    kind: sequence")], "packer has no neighbour", "downstream"),
    "island": (
        [station(at("  a:") + "\n    kind: sequence\n    downstream: [b]\n  b: {kind: sequence}")],
        "a, b are not connected",
        "downstream",
    ),
    "named line": (
        [
            ("    downstream: [checkweigher]", "    downstream: [checkweigher, line]"),
            station(at("  line:") + "\n    kind: sequence"),
        ],
        'cannot be named "line"',
        "another name",
    ),
    "kind": ([swap("    kind: weigher", "    kind: wiegher")], "unknown station kind", '"weigher"'),
    "setting": ([swap("    settings: {settle_s: 0.2}", "    settings: {setle_s: 0.2}")], "no setting", '"settle_s"'),
    "setting type": ([swap("    settings: {settle_s: 0.2}", "    settings: {retries: 0.2}")], "a whole number", ""),
    "point without tag": (
        [
            ("  checkweigher.weight: ", "  checkweigher.weigt: "),
            ("  checkweigher:\n    kind: weigher", at("  checkweigher:") + "\n    kind: weigher"),
        ],
        'point "weight" of weigher has no tag',
        "weigt",
    ),
    "io point": (
        [swap("    kind: weigher", "    kind: weigher\n    io: {wieght: checkweigher.weight}")],
        'no I/O point "wieght"',
        '"weight"',
    ),
    "io tag": (
        [swap("    kind: weigher", "    kind: weigher\n    io: {weight: checkweigher.wieght}")],
        'unknown tag "checkweigher.wieght"',
        "checkweigher.weight",
    ),
    "io type": (
        [swap("    kind: weigher", "    kind: weigher\n    io: {weight: checkweigher.code}")],
        "is a number, its tag checkweigher.code is STRING",
        "type",
    ),
    "io not writable": (
        [swap("    kind: weigher", "    kind: weigher\n    io: {run: infeed.fault}")],
        "cannot be written",
        "rw",
    ),
    "masked counts": (
        [
            (COUNT_IN, COUNT_IN.replace("UDINT", "UINT, mask: 0xFFF")),
            (
                "    counts: {infeed: infeed.count_in, good: infeed.count_good}",
                at("    counts: {infeed: infeed.count_in, good: infeed.count_good}"),
            ),
        ],
        "is UINT, masked, a counter",
        "roll-over",
    ),
    "counts": (
        [
            swap(COUNT_IN, COUNT_IN.replace("UDINT", "DINT")),
            (
                "    counts: {infeed: infeed.count_in, good: infeed.count_good}",
                at("    counts: {infeed: infeed.count_in, good: infeed.count_good}"),
            ),
        ],
        "unsigned integer",
        "roll-over",
    ),
    "mode number": ([swap(MODE, MODE + "\n    cip: {number: 4}")], "same number 4", "choose another"),
    "mode standard number": ([swap(MODE, MODE.replace("4", "2"))], "is the unit mode maintenance", "4 … 31"),
    "mode state": ([swap(MODE, MODE.replace("suspended", "suspendet"))], 'unknown state "suspendet"', '"suspended"'),
    "mode without idle": ([swap(MODE, MODE.replace("suspended", "idle"))], "cannot do without idle", "stopped"),
}

VALUES = {
    "estop tag": (
        [swap("    - infeed.estop_ok", "    - infeed.estop_okay")],
        'unknown tag "infeed.estop_okay"',
        '"infeed.estop_ok"',
    ),
    "syntax": ([swap("    starved: not infeed.ready", "    starved: not infeed.ready)")], '")" cannot stand here', ""),
    "assignment": ([swap(MOTOR, MOTOR.replace("< 2.6", "= 2.6"))], '"=" is not part', "write =="),
    "unit does not fit": ([swap(MOTOR, MOTOR.replace("2.6 A", "2.6 V"))], "2.6 V is in V", "write it in A"),
    "unknown unit in condition": ([swap(MOTOR, MOTOR.replace("2.6 A", "2.6 Amp"))], 'unknown unit "Amp"', ""),
    "not a condition": (
        [swap("    starved: not infeed.ready", "    starved: infeed.amps")],
        "not a condition",
        "compare",
    ),
    "bool with number": (
        [swap("    starved: not infeed.ready", "    starved: infeed.ready == 0")],
        "true/false",
        "not",
    ),
    "until": (
        [swap("        - wait: " + WAIT, "        - wait: " + WAIT.replace("warm", "worm"))],
        "unknown tag",
        "infeed.warm",
    ),
    "wait alarm": (
        [swap("        - wait: " + WAIT, "        - wait: " + WAIT.replace("not_ready", "fault"))],
        "condition of its own",
        "another name",
    ),
    "set unknown": ([swap(STEP, STEP.replace("infeed.run", "infeed.rum"))], 'unknown tag "infeed.rum"', "infeed.run"),
    "set read-only": ([swap(STEP, STEP.replace("infeed.run", "infeed.fault"))], "cannot be written", "rw"),
    "set type": ([swap(STEP, STEP.replace("true", "1"))], "is true or false, not 1", "true or false"),
    "set range": (
        [swap(STEP, STEP.replace("infeed.run: true", "infeed.speed_sp: 0.6"))],
        "above the limit 0.5 m/s",
        "0 … 0.5",
    ),
    "set resolution": (
        [swap(STEP, STEP.replace("infeed.run: true", "infeed.speed_sp: 0.4005"))],
        "steps of 0.001 m/s",
        "0.4 and 0.401",
    ),
    "set text": (
        [swap(STEP, STEP.replace("infeed.run: true", "infeed.speed_sp: 0.4 m/s"))],
        "is a number",
        "number alone",
    ),
    "safe": ([swap("    safe: {infeed.run: false}", "    safe: {infeed.run: 0}")], "true or false", ""),
    "safe of another": (
        [swap("    safe: {infeed.run: false}", "    safe: {infeed.gate: false}")],
        "infeed.gate is not an output that this station drives",
        "infeed.run",
    ),
    "sequences of a kind": (
        [
            swap(
                "    kind: weigher",
                "    kind: weigher\n    sequences:",
            ),
            ("    settings: {settle_s: 0.2}", "      starting: [{delay_s: 1}]\n    settings: {settle_s: 0.2}"),
        ],
        "sequences would have no effect on a station of kind weigher",
        "kind sequence",
    ),
    "output read-only": ([swap("    outputs: [infeed.run]", "    outputs: [infeed.fault]")], "cannot be written", "rw"),
    "two owners": (
        [swap("    kind: weigher", "    kind: weigher\n    io: {run: infeed.run}")],
        "is written by the station checkweigher and by the station infeed",
        "one owner",
    ),
    "parameter tag": (
        [swap("      " + RAIL, "      " + RAIL.replace("tag: infeed.rail_sp", "tag: infeed.rail_pos"))],
        "cannot be written",
        "rw",
    ),
    "parameter unit": (
        [swap("      " + RAIL, "      " + RAIL.replace("mm", "m"))],
        "is in m, its tag infeed.rail_sp is in mm",
        "same unit",
    ),
    "parameter range": (
        [swap("      " + RAIL, "      " + RAIL.replace("80", "95"))],
        "high 95 does not go with its tag",
        "40 … 90 mm",
    ),
    "parameter step": ([swap("      " + RAIL, "      " + RAIL.replace("50", "50.05"))], "steps of 0.1 mm", "nearest"),
    "parameter low high": ([swap("      " + RAIL, "      " + RAIL.replace("80", "50"))], "not below high", "swap"),
    "confirm unit": (
        [swap("      " + RAIL, "      " + RAIL.replace("confirm: infeed.rail_pos", "confirm: infeed.amps"))],
        "infeed.amps is in A",
        "same unit",
    ),
    "confirm type": (
        [swap("      " + RAIL, "      " + RAIL.replace("confirm: infeed.rail_pos", "confirm: infeed.fault"))],
        "cannot confirm",
        "same value",
    ),
    "choice too long": (
        [swap("      " + END, "      " + END.replace("WATER-500", "WATER-500-ML-LONG"))],
        "at most 16 characters",
        "shorten",
    ),
    "choices of a number": (
        [
            swap(
                "      target: {tag: checkweigher.target, unit: g, low: 100, high: 1000}",
                "      target: {tag: checkweigher.target, choices: [a]}",
            )
        ],
        "choices are for texts",
        "",
    ),
    "recipe at start": (
        [swap("  recipe: water_330", "  recipe: water_333")],
        'unknown recipe "water_333"',
        "water_330",
    ),
}

EVERY = {**SHAPE, **TAGS, **PLCS, **STATIONS, **VALUES}
assert len(EVERY) == sum(map(len, (SHAPE, TAGS, PLCS, STATIONS, VALUES))), "a name is used twice"


@pytest.mark.parametrize("name", EVERY)
def test_broken_line(name: str, tmp_path: Path) -> None:
    changes, what, hint = EVERY[name]
    text = changed(LINE, *changes)
    path = write(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        load(path, kinds=KINDS)
    problems = caught.value.problems
    assert len(problems) == TWO.get(name, 1), str(caught.value)
    problem = next((p for p in problems if what in p.what), problems[0])
    assert what in problem.what, problem
    assert hint in problem.hint, problem
    assert problem.file == str(path)
    assert problem.line in marked_lines(text), f"{problem}\n{text}"
    assert str(problem).startswith(f"{path}:{problem.line}: ")


RECIPES = {
    "unknown station": (
        swap("  infeed: {rail_width: 62 mm}", "  infed: {rail_width: 62 mm}"),
        "no station",
        "infeed",
        2,
    ),
    "unknown parameter": (
        swap("  infeed: {rail_width: 62 mm}", "  infeed: {rail_with: 62 mm}"),
        "no parameter",
        "rail_width",
        2,
    ),
    "too high": (
        swap("  infeed: {rail_width: 62 mm}", "  infeed: {rail_width: 82 mm}"),
        "above the limit 80 mm",
        "50 … 80",
        1,
    ),
    "unit": (swap("  infeed: {rail_width: 62 mm}", "  infeed: {rail_width: 62 g}"), "g does not fit", "mm", 1),
    "unknown unit": (swap("  infeed: {rail_width: 62 mm}", "  infeed: {rail_width: 62 mmm}"), "unknown unit", "mm", 1),
    "step": (swap("  infeed: {rail_width: 62 mm}", "  infeed: {rail_width: 62.05 mm}"), "steps of 0.1", "62.1", 1),
    "NaN": (swap("  infeed: {rail_width: 62 mm}", "  infeed: {rail_width: .nan}"), "not a number", "50 mm", 1),
    "type": (
        swap("  infeed: {rail_width: 62 mm}", "  infeed: {rail_width: true}"),
        "is a number, not true",
        "50 mm",
        1,
    ),
    "choice": (swap("    code: WATER-330", "    code: WATER-331"), 'cannot be "WATER-331"', "WATER-330", 1),
    "number for text": (swap("    code: WATER-330", "    code: 330"), "is a text, not 330", 'quote it: "330"', 1),
    "version": (swap("version: 1.0.0", "version: 1.0"), "must be a text", 'quote it: "1.0"', 1),
    "unknown key": (swap("product: Still water 330 ml", "produkt: x"), 'unknown key "produkt"', "product", 2),
    "duplicate": (swap("    code: WATER-330", f"    code: A {MARK}\n    code: WATER-330"), "given twice", "line", 1),
}


@pytest.mark.parametrize("name", RECIPES)
def test_broken_recipe(name: str, tmp_path: Path) -> None:
    change, what, hint, count = RECIPES[name]
    text = changed(RECIPE, change)
    path = write(tmp_path, recipe=text)
    with pytest.raises(ConfigError) as caught:
        load(path, kinds=KINDS)
    problems = [p for p in caught.value.problems if p.line in marked_lines(text) and what in p.what]
    assert problems, caught.value
    assert hint in problems[0].hint, problems[0]
    assert all(p.file == str(tmp_path / "recipes" / "water_330.yaml") for p in caught.value.problems)
    assert len(caught.value.problems) == count, caught.value
