"""From the paths of the north port to the tree of the OPC UA address space. Pure: no OPC UA library, no I/O.

Every north node becomes a variable whose string NodeId *is* its path (``stations.filler.tags.bowl_level``), so
that an HMI's references survive any change of the line's configuration. Folders and objects have identifiers
of their own with a capital in them (``stations.filler.Status``), which no north path has, so they never clash.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from controller.north.frames import Hello

LINE_ID = "line"
STATIONS_ID = "stations"
LINKS_ID = "plcs"
MAX_CHILDREN = 100
"""Children of one folder at most; more are put into sub-folders (adding to a folder costs its square)."""

Kind = Literal["object", "folder", "variable"]

_COLLECTIONS = frozenset({"stations", "groups", "tags", "parameters", "alarms", "plcs"})
"""Segments whose next segment is a name out of line.yaml; such a name is shown as it is written there."""

_ADMIN = frozenset(
    {
        "prod_processed_count", "prod_defective_count", "prod_consumed_count", "infeed", "good", "rejected",
        "stop_reason", "state_time_s", "state_time", "lost_time", "infeed_count", "good_count",
        "changeovers", "changeover_step", "changeover_detail", "scan_count", "overruns",
        "scan_ms", "heartbeat", "journal_ok",
    }
)  # fmt: skip
_ALARMS = frozenset({"active_alarms", "unacknowledged_alarms", "alarm_list", "alarm_table"})

INT32_NAMES = frozenset(
    {
        "state_current", "unit_mode_current", "prod_processed_count", "prod_defective_count",
        "prod_consumed_count", "infeed", "good", "rejected", "in_process", "stop_reason", "active_alarms",
        "unacknowledged_alarms", "priority", "state_time", "lost_time", "infeed_count", "good_count",
        "changeovers", "heartbeat",
    }
)  # fmt: skip
"""Last path segments whose ``int`` is an Int32, as in ISA-TR88.00.02 and OPC 30050. Others are Int64 unless
their range fits, because a counter that outgrows its type would have to be shown as Bad."""

# UNECE Recommendation 20 common codes (OPC UA Part 8, 5.6.3). A unit that is not here has UnitId -1.
_UNECE = {
    "%": "P1", "°C": "CEL", "°F": "FAH", "K": "KEL", "bar": "BAR", "mbar": "MBR", "Pa": "PAL", "kPa": "KPA",
    "MPa": "MPA", "mm": "MMT", "cm": "CMT", "m": "MTR", "ms": "C26", "s": "SEC", "min": "MIN", "h": "HUR",
    "g": "GRM", "kg": "KGM", "ml": "MLT", "mL": "MLT", "l": "LTR", "L": "LTR", "l/min": "L2", "l/h": "E32",
    "m³/h": "MQH", "m/min": "2X", "m/s": "MTS", "mm/s": "C16", "V": "VLT", "A": "AMP", "mA": "4K", "W": "WTT",
    "kW": "KWT", "kWh": "KWH", "Hz": "HTZ", "rpm": "RPM", "1/min": "C94", "/min": "C94", "1/s": "C97", "N": "NEW",
    "kN": "B47", "Nm": "NU", "N·m": "NU", "kW·h": "KWH", "°": "DD", "deg": "DD", "pcs": "H87",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Item:
    """One node of the tree. ``index`` is the number of the north node, -1 for objects and folders."""

    id: str
    parent: str
    """Identifier of the parent; empty for the line's object, which goes below Objects."""
    name: str
    kind: Kind
    index: int = -1


def camel(name: str) -> str:
    """``unit_mode_current`` → ``UnitModeCurrent``: the PackTags spelling of a north name."""
    return "".join(part[:1].upper() + part[1:] for part in name.split("_"))


def browse_name(segments: list[str]) -> str:
    """Browse name of the path's last segment: line.yaml's own names as written, our words in CamelCase."""
    if len(segments) >= 2 and segments[-2] in _COLLECTIONS:
        return segments[-1]
    return "Links" if segments == ["plcs"] else camel(segments[-1])


def unit_id(unit: str) -> int:
    """OPC UA Part 8, 5.6.3.3: the characters of the UNECE common code as one number; -1 when not known."""
    code = _UNECE.get(unit)
    return -1 if code is None else int.from_bytes(code.encode("ascii"), "big")


def _group(leaf: str) -> str:
    return "Admin" if leaf in _ADMIN else "Alarms" if leaf in _ALARMS else "Status"


class _Tree:
    """Collects items, parents before children, each identifier once."""

    def __init__(self, hello: Hello) -> None:
        self.index = {node.path: i for i, node in enumerate(hello.nodes)}
        self.items: dict[str, Item] = {}
        self._add(LINE_ID, "", hello.line, "object")

    def _add(self, id_: str, parent: str, name: str, kind: Kind, index: int = -1) -> str:
        if id_ not in self.items:
            self.items[id_] = Item(id_, parent, name, kind, index)
        return id_

    def place(self, path: str) -> str:
        """Make sure that ``path`` is in the tree, with everything above it; returns its identifier."""
        if path in self.items:
            return path
        segments = path.split(".")
        head, leaf = path.rpartition(".")[0], path in self.index
        name = browse_name(segments)
        owner = self.place(head) if head else LINE_ID
        station = len(segments) == 2 and segments[0] == STATIONS_ID
        if leaf and (owner == LINE_ID or (owner.startswith(STATIONS_ID + ".") and owner.count(".") == 1)):
            group = _group(segments[-1])
            owner = self._add(f"{owner}.{group}", owner, group, "folder")
        return self._add(
            path,
            owner,
            name,
            "variable" if leaf else "object" if station else "folder",
            self.index.get(path, -1),
        )


def _split(items: list[Item]) -> list[Item]:
    """Put the children of an overfull parent into sub-folders of :data:`MAX_CHILDREN`, in their order."""
    children: dict[str, int] = {}
    for item in items:
        children[item.parent] = children.get(item.parent, 0) + 1
    placed: dict[str, int] = {}
    result: list[Item] = []
    for item in items:
        total = children[item.parent]
        if not item.parent or total <= MAX_CHILDREN:
            result.append(item)
            continue
        n = placed[item.parent] = placed.get(item.parent, 0) + 1
        part = (n - 1) // MAX_CHILDREN
        folder = f"{item.parent}.Part{part + 1}"
        if (n - 1) % MAX_CHILDREN == 0:
            last = min(total, (part + 1) * MAX_CHILDREN)
            result.append(Item(folder, item.parent, f"{n} to {last}", "folder"))
        result.append(Item(item.id, folder, item.name, item.kind, item.index))
    return result


def check(hello: Hello) -> None:
    """Refuse a model that cannot be shown without ambiguity.

    Raises:
        ValueError: a path is empty, malformed, there twice, or taken by the gateway (``<target>.command``).
    """
    seen: set[str] = set()
    targets = {LINE_ID if t == "line" else f"{STATIONS_ID}.{t}" for t in hello.commands}
    for node in hello.nodes:
        if node.path in seen:
            raise ValueError(f"north node {node.path!r} is there twice")
        seen.add(node.path)
        segments = node.path.split(".")
        if len(segments) < 2 or not all(segments) or node.path != node.path.lower():
            raise ValueError(f"north node {node.path!r}: a path is two or more lower-case names joined by dots")
        for target in targets:
            if node.path == f"{target}.command" or node.path.startswith(f"{target}.command."):
                raise ValueError(f"north node {node.path!r}: {target}.command is the gateway's own")


def tree(hello: Hello) -> list[Item]:
    """All nodes of the line's address space, parents before children.

    Raises:
        ValueError: see :func:`check`.
    """
    check(hello)
    built = _Tree(hello)
    for station in hello.stations:
        built.place(f"{STATIONS_ID}.{station.name}")
    for target in hello.commands:
        built.place(target_path(target))
    for node in hello.nodes:
        built.place(node.path)
    return _split(list(built.items.values()))


def target_path(target: str) -> str:
    """Path of a command target: ``line`` or ``stations.<name>``."""
    return LINE_ID if target == "line" else f"{STATIONS_ID}.{target}"
