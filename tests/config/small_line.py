"""A small valid line for the tests of this folder, and how to break it."""

from __future__ import annotations

from pathlib import Path

from controller.config import KindInfo, PointInfo

MARK = "# <- error"

LINE = """\
line:
  name: small
  scan_ms: 100
  estop:
    - infeed.estop_ok
  modes:
    clean: {number: 4, disabled_states: [suspended]}
  recipe: water_330
plcs:
  wet:
    driver: modbus_tcp
    host: 10.0.0.1
    port: 502
    unit: 1
    word_order: CDAB
    heartbeat: {read: wet.heartbeat, write: wet.watchdog}
  inspect:
    driver: opcua
    endpoint: opc.tcp://10.0.0.2:4840
scan_classes:
  fast: {period_ms: 100, stale_ms: 500}
  slow: {period_ms: 1000, stale_ms: 3000}
tags:
  wet.heartbeat: {plc: wet, address: "ir:0", type: UINT}
  wet.watchdog: {plc: wet, address: "hr:0", type: UINT, access: rw}
  infeed.run: {plc: wet, address: "co:16", type: BOOL, access: rw}
  infeed.gate: {plc: wet, address: "co:17", type: BOOL, access: rw}
  infeed.fault: {plc: wet, address: "di:17", type: BOOL}
  infeed.estop_ok: {plc: wet, address: "di:19", type: BOOL}
  infeed.count_in: {plc: wet, address: "ir:100", type: UDINT}
  infeed.count_good: {plc: wet, address: "ir:102", type: UDINT}
  infeed.amps: {plc: wet, address: "ir:109", type: INT, scale: 0.01, unit: A}
  infeed.rail_pos: {plc: wet, address: "ir:110", type: UINT, scale: 0.1, unit: mm}
  infeed.rail_sp: {plc: wet, address: "hr:101", type: UINT, scale: 0.1, unit: mm, low: 40, high: 90, access: rw}
  infeed.speed_sp: {plc: wet, address: "hr:102", type: UINT, scale: 0.001, unit: m/s, low: 0, high: 0.5, access: rw}
  infeed.ready: {plc: wet, address: "hr:200.0", type: BOOL}
  infeed.warm: {plc: wet, address: "hr:200.1", type: BOOL}
  checkweigher.run: {plc: inspect, address: "nsu=urn:x;s=Run", type: BOOL, access: rw}
  checkweigher.weight: {plc: inspect, address: "nsu=urn:x;s=Weight", type: REAL, unit: g}
  checkweigher.target: {plc: inspect, address: "nsu=urn:x;s=Target", type: REAL, unit: g, access: rw}
  checkweigher.code: {plc: inspect, address: "nsu=urn:x;s=Code", type: STRING, length: 16, access: rw}
stations:
  infeed:
    kind: sequence
    downstream: [checkweigher]
    outputs: [infeed.run]
    counts: {infeed: infeed.count_in, good: infeed.count_good}
    starved: not infeed.ready
    interlocks:
      motor: {require: infeed.amps < 2.6 A, otherwise: hold, text: Motor overloaded}
    permissives:
      ready: {require: infeed.ready, text: Infeed is not ready}
    alarms:
      fault: {when: infeed.fault, text: Infeed fault, priority: high, action: abort}
    parameters:
      rail_width: {tag: infeed.rail_sp, confirm: infeed.rail_pos, tolerance: 0.2, unit: mm, low: 50, high: 80}
    safe: {infeed.run: false}
    sequences:
      starting:
        - set: {infeed.run: true}
        - wait: {until: infeed.ready and infeed.warm, limit_s: 5, alarm: not_ready, text: Infeed does not start}
        - delay_s: 0.5
  checkweigher:
    kind: weigher
    settings: {settle_s: 0.2}
    parameters:
      target: {tag: checkweigher.target, unit: g, low: 100, high: 1000}
      code: {tag: checkweigher.code, choices: [WATER-330, WATER-500]}
"""

RECIPE = """\
recipe: water_330
version: 1.0.0
product: Still water 330 ml
parameters:
  infeed: {rail_width: 62 mm}
  checkweigher:
    target: {value: 0.33, unit: kg}
    code: WATER-330
"""

KINDS = {
    "sequence": KindInfo(),
    "weigher": KindInfo(
        points={
            "run": PointInfo("bool", writable=True),
            "weight": PointInfo("number"),
            "empty": PointInfo("bool", optional=True),
        },
        settings={"settle_s": float, "retries": int, "strict": bool},
    ),
}


def write(folder: Path, line: str = LINE, recipe: str | None = RECIPE, **files: str) -> Path:
    """Write a line's files; returns the path of its line.yaml."""
    path = folder / "line.yaml"
    path.write_text(line, encoding="utf-8")
    if recipe is not None:
        (folder / "recipes").mkdir(exist_ok=True)
        (folder / "recipes" / "water_330.yaml").write_text(recipe, encoding="utf-8")
    for name, text in files.items():
        (folder / f"{name}.csv").write_text(text, encoding="utf-8", newline="")
    return path


def changed(text: str, *changes: tuple[str, str]) -> str:
    """The text with each ``old`` replaced, which must be there exactly once."""
    for old, new in changes:
        assert text.count(old) == 1, f"{old!r} is there {text.count(old)} times"
        text = text.replace(old, new)
    return text


def marked_lines(text: str) -> list[int]:
    """Numbers of the lines that end in the mark."""
    return [n for n, line in enumerate(text.splitlines(), 1) if line.endswith(MARK)]
