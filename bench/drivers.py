"""What the drivers cost, each figure beside its baseline: libmodbus in C, stock pymodbus, stock asyncua.

    python bench/drivers.py [--json] [--quick] [--only NAME ...]

Ratios of processor time, medians of rounds in which the sides take turns. docs/bench.md says what exactly is measured.
With ``--json`` the last line is one JSON object. Exit codes: 0 measured, 1 something went wrong on the way,
2 a program to compare with is not installed. Everything is on 127.0.0.1; every process it starts ends with it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine
from pathlib import Path

# The folder of this file would hide the package `drivers` behind this file.
sys.path[0] = str(Path(__file__).resolve().parent.parent)

from bench import devices, modbus, opcua, tags  # noqa: E402
from bench.peers.build import PeerMissing  # noqa: E402
from bench.ratio import Row  # noqa: E402
from bench.setting import Setting, prepare  # noqa: E402

KEYS = (
    "scan_10k_vs_pymodbus",
    "request_vs_libmodbus",
    "pipelined_rps_vs_libmodbus",
    "hundred_devices_vs_pymodbus",
    "unchanged_ns_per_tag",
    "opcua_read_1000_vs_asyncua",
    "bytes_per_tag",
)
CASES: dict[str, Callable[[Setting], list[Row] | Coroutine[None, None, list[Row]]]] = {
    "scan": modbus.scan_10k,
    "requests": modbus.requests,
    "devices": devices.hundred_devices,
    "unchanged": tags.unchanged,
    "opcua": opcua.read_1000,
    "memory": tags.memory,
}


def measure(chosen: list[str], quick: bool) -> list[Row]:
    """Run the chosen cases one after the other, each in an event loop of its own. Raises :class:`PeerMissing`."""
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="linewright-bench-") as folder:
        setting = prepare(Path(folder), quick)
        for case in chosen:
            found = CASES[case](setting)
            rows += asyncio.run(found) if asyncio.iscoroutine(found) else found
    return rows


def show(rows: list[Row]) -> None:
    """The table."""
    line = "{:44} {:>14} {:>14} {:>8} {:>7} {:>6}"
    print(line.format("", "Linewright", "baseline", "value", "target", "goal"))
    for row in rows:
        print(line.format(row.title, row.ours, row.baseline, f"{row.value:.3g}", row.target, row.goal))


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    parser.add_argument("--quick", action="store_true", help="fewer and shorter rounds, for a first look")
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(CASES), metavar="NAME", help=", ".join(CASES))
    options = parser.parse_args()
    start = time.monotonic()
    try:
        rows = measure(options.only, options.quick)
    except PeerMissing as missing:
        print(f"{missing}\nWithout it there is nothing to compare with, and no figure is made up.", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 1
    show(rows)
    print(f"{time.monotonic() - start:.0f} s")
    if options.json:
        found = {row.key: row.value for row in rows if row.key}
        print(json.dumps({key: float(f"{found[key]:.4g}") for key in KEYS if key in found}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
