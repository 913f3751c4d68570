"""Serial line devices in line.yaml: every way to get one wrong, with its line and what to do."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_line import MARK, changed, marked_lines, write

from controller.config import ConfigError, load
from controller.config.driver_options import driver_options
from drivers.options import SerialDeviceOptions, SerialOptions, TcpLineOptions
from drivers.port import SerialAddress
from drivers.serial.protocol import Checksum, Framing

LINE = """\
line: {name: small}
plcs:
  scale:
    driver: serial
    device: /dev/ttyUSB0
    parity: E
    command_blocks:
      - id: scale.job
        tags: [scale.text]
    protocol:
      framing:
        end: "\\r\\n"
        max_length: 40
      messages:
        weight:
          ask: "SI\\r\\n"
          pattern: '(?P<status>[SD]) +(?P<net>\\d+\\.\\d+) g'
          bad:
            status: {D: not at rest}
        code:
          pattern: 'C(?P<text>.*)'
        limit:
          ask: "L?\\r\\n"
          pattern: 'L(?P<high>\\d+)'
          write: "L={high}\\r\\n"
      commands:
        show:
          send: "D {text}\\r\\n"
          check: weight
tags:
  scale.net: {plc: scale, address: weight.net, type: REAL, unit: g}
  scale.code: {plc: scale, address: code.text, type: STRING, length: 20}
  scale.codes: {plc: scale, address: code.count, type: UDINT}
  scale.high: {plc: scale, address: limit.high, type: UINT, access: rw}
  scale.text: {plc: scale, address: show.text, type: STRING, length: 20, access: rw}
  scale.job: {plc: scale, address: show.job, type: UDINT, access: rw}
stations:
  s: {kind: sequence}
"""


def at(new: str) -> str:
    return f"{new}  {MARK}"


def swap(old: str, new: str) -> tuple[str, str]:
    return old, at(new)


NET = "  scale.net: {plc: scale, address: weight.net, type: REAL, unit: g}"
HIGH = "  scale.high: {plc: scale, address: limit.high, type: UINT, access: rw}"
CODES = "  scale.codes: {plc: scale, address: code.count, type: UDINT}"
TEXT = "  scale.text: {plc: scale, address: show.text, type: STRING, length: 20, access: rw}"
DEVICE = "    device: /dev/ttyUSB0"
PATTERN = "          pattern: '(?P<status>[SD]) +(?P<net>\\d+\\.\\d+) g'"
BLOCK = "    command_blocks:\n      - id: scale.job\n        tags: [scale.text]\n"
CASES = {
    "no line": (
        [("  scale:", at("  scale:")), (f"{DEVICE}\n    parity: E\n", "")],
        "neither device nor host",
        "port of",
    ),
    "two lines": (
        [swap("  scale:", "  scale:"), (DEVICE, f"{DEVICE}\n    host: 10.0.0.1")],
        "both device and host",
        "",
    ),
    "host alone": (
        [("  scale:", at("  scale:")), (f"{DEVICE}\n    parity: E", "    host: 10.0.0.1")],
        "go together",
        "",
    ),
    "parity of a server": (
        [(DEVICE, "    host: 10.0.0.1\n    port: 4001"), swap("    parity: E", "    parity: E")],
        "parity is set in the device server",
        "remove",
    ),
    "not a pattern": ([swap(PATTERN, "          pattern: '(?P<net>'")], "not a regular expression", "see docs"),
    "slow pattern": (
        [swap(PATTERN, "          pattern: '(?:(?P<status>[SD])+)+(?P<net>1)'")],
        "inside a repeat",
        "one set",
    ),
    "reserved field": (
        [swap("          pattern: 'C(?P<text>.*)'", "          pattern: 'C(?P<count>.*)'")],
        "has a field",
        "",
    ),
    "unknown bad field": (
        [swap("            status: {D: not at rest}", "            state: {D: moving}")],
        'no field "state"',
        "net",
    ),
    "single quotes": ([swap('        end: "\\r\\n"', "        end: '\\r\\n'")], "backslash", "double quotes"),
    "end and length": ([swap("        max_length: 40", "        length: 4")], "either end or length", "remove one"),
    "lines without ask": (
        [("          pattern: 'C(?P<text>.*)'", "          pattern: 'C(?P<text>.*)'\n" + at("          lines: 2"))],
        "only an answer",
        "ask",
    ),
    "write of no field": (
        [swap('          write: "L={high}\\r\\n"', '          write: "L={low}\\r\\n"')],
        "one field",
        "high",
    ),
    "broken template": (
        [swap('          send: "D {text}\\r\\n"', '          send: "D {text\\r\\n"')],
        "is no field",
        "{name}",
    ),
    "unescaped zpl": (
        [('          send: "D {text}\\r\\n"', at('          send: "^XA^FD{text}^FS^XZ"') + "\n          escape: zpl")],
        "does not stand in escaped",
        "^FH^FD{text}^FS",
    ),
    "unknown check": (
        [swap("          check: weight", "          check: wieght")],
        'no message is called "wieght"',
        "weight",
    ),
    "check not asked": ([swap("          check: weight", "          check: code")], "cannot be asked for", "ask:"),
    "unknown escape": ([("          check: weight", at("          escape: zpi"))], '"escape" cannot be "zpi"', ""),
    "unknown message": ([swap(NET, NET.replace("weight.net", "wieght.net"))], "no field of a message", "weight"),
    "unknown field": ([swap(NET, NET.replace("weight.net", "weight.nett"))], 'no field "nett"', "net"),
    "not writable": ([swap(NET, NET.replace("REAL", "REAL, access: rw"))], "cannot be written", "access r"),
    "count type": ([swap(CODES, CODES.replace("UDINT", "UINT"))], "from 0 to 4294967295", "UDINT"),
    "bcd": ([swap(HIGH, HIGH.replace("UINT", "BCD"))], "BCD is for Modbus registers", "type"),
    "word order": ([swap(HIGH, HIGH.replace("UINT", "UINT, word_order: CDAB"))], "word_order", ""),
    "scan classes": ([swap(CODES, CODES.replace("UDINT", "UDINT, scan_class: slow"))], "one scan class", "same"),
    "same field": ([(HIGH, HIGH + "\n" + at(HIGH.replace("scale.high", "scale.top")))], "the same field", ""),
    "field not written": (
        [
            swap('          send: "D {text}\\r\\n"', '          send: "D {text}\\r\\n"'),
            (TEXT, TEXT.replace(", access: rw", "")),
            (BLOCK, ""),
        ],
        "nothing writes show.text",
        "rw",
    ),
    "block of no job": ([swap("      - id: scale.job", "      - id: scale.high")], "is no job", "show.job"),
    "block of another": (
        [swap("        tags: [scale.text]", "        tags: [scale.high]")],
        "no field of show",
        "one command",
    ),
    "pattern too long": (
        [swap("        max_length: 40", "        max_length: 5000")],
        "less than or equal to 4096",
        "",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_broken_device(tmp_path: Path, name: str) -> None:
    changes, what, hint = CASES[name]
    text = changed(LINE, *changes)
    with pytest.raises(ConfigError) as caught:
        load(write(tmp_path, text, recipe=None))
    problems = caught.value.problems
    assert any(what in p.what and hint in p.hint for p in problems), "\n".join(map(str, problems))
    assert {p.line for p in problems} == set(marked_lines(text)), "\n".join(map(str, problems))


def test_a_whole_device(tmp_path: Path) -> None:
    config = load(write(tmp_path, LINE, recipe=None))
    assert not [w for w in config.warnings if "scale" in str(w)], config.warnings
    options = driver_options(config.file.plcs["scale"], tmp_path, config.file.scan_classes)
    assert isinstance(options, SerialDeviceOptions)
    assert options.line == SerialOptions(device="/dev/ttyUSB0", baudrate=9600, parity="E")
    assert options.protocol.framing == Framing(end=b"\r\n", max_length=40)
    assert options.protocol.messages["weight"].ask == "SI\r\n"
    assert config.tags["scale.net"].address == SerialAddress("weight.net")


def test_a_device_server_and_a_length(tmp_path: Path) -> None:
    text = changed(
        LINE,
        (f"{DEVICE}\n    parity: E", "    host: 10.0.0.1\n    port: 4001"),
        (
            '        end: "\\r\\n"\n        max_length: 40',
            '        length: 8\n        start: "\\x02"\n        checksum: {kind: xor, form: binary}',
        ),
    )
    config = load(write(tmp_path, text, recipe=None))
    options = driver_options(config.file.plcs["scale"], tmp_path, config.file.scan_classes)
    assert isinstance(options, SerialDeviceOptions)
    assert options.line == TcpLineOptions(host="10.0.0.1", port=4001)
    framing = options.protocol.framing
    assert (framing.start, framing.end, framing.length) == (b"\x02", b"", 8)
    assert framing.checksum == Checksum(kind="xor", form="binary")


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (("          check: weight\n", ""), "never acknowledged"),
        (
            ("    command_blocks:\n      - id: scale.job\n        tags: [scale.text]\n", ""),
            "could be sent before its new",
        ),
    ],
)
def test_warnings(tmp_path: Path, change: tuple[str, str], what: str) -> None:
    config = load(write(tmp_path, changed(LINE, change), recipe=None))
    assert [w for w in config.warnings if what in w.what], config.warnings


def test_the_endpoints_file_moves_a_device_behind_a_server(tmp_path: Path) -> None:
    path = write(tmp_path, LINE, recipe=None)
    config = load(path, {"scale": {"host": "127.0.0.1", "port": 4001}})
    options = driver_options(config.file.plcs["scale"], tmp_path, config.file.scan_classes)
    assert isinstance(options, SerialDeviceOptions)
    assert options.line == TcpLineOptions(host="127.0.0.1", port=4001)
    assert options.protocol.messages["weight"].ask == "SI\r\n"
    with pytest.raises(ConfigError, match="override of scale: host and port go together"):
        load(path, {"scale": {"host": "127.0.0.1"}})
