"""Checks of stations: their place in the line, their kind and I/O, counters, and the line's unit modes."""

from __future__ import annotations

from controller.config.context import Context
from controller.config.kinds import SEQUENCE, KindInfo, PointInfo
from controller.config.model import Set, Station
from controller.config.values import UNSIGNED
from controller.core.commands import LINE
from controller.core.expr import TagInfo
from controller.core.packml import State
from drivers.port import Tag
from recipes.problem import Path, nearest

STANDARD_MODES = {"production": 1, "maintenance": 2, "manual": 3}
"""Unit modes that ISA-TR88.00.02 numbers itself; a line's own are 4..31."""
STATES = tuple(state.name.lower() for state in State)
ALWAYS = ("stopped", "idle", "execute", "aborted")
"""States that no mode may lack."""
_WORDS = {"bool": "true/false", "number": "a number", "text": "a text"}
_TYPES = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}


def check_stations(context: Context) -> None:
    """Check all of this module's matters."""
    _check_topology(context)
    _check_modes(context)
    for name, station in context.file.stations.items():
        if name == LINE:
            hint = "commands to it could not be told from commands to the line: choose another name"
            context.error(("stations", name), f'a station cannot be named "{LINE}"', hint, key=True)
        _check_kind(context, name, station)
        _check_counts(context, name, station)


def _check_topology(context: Context) -> None:
    stations = context.file.stations
    if any(path[0] == "stations" and len(path) == 2 for path in context.broken):
        return  # a station that could not be read would make its neighbours look wrong
    neighbours: dict[str, set[str]] = {name: set() for name in stations}
    sound = len(context.errors)
    for name, station in stations.items():
        for n, other in enumerate(station.downstream):
            path: Path = ("stations", name, "downstream", n)
            if other == name:
                context.error(path, f"{name} is its own downstream neighbour", "name the station that it feeds")
            elif other not in stations:
                hint = nearest(other, stations.keys() - {name})
                context.error(path, f'downstream of {name}: unknown station "{other}"', hint)
            elif other in station.downstream[:n]:
                context.error(path, f"downstream of {name}: {other} is given twice", "remove one")
            else:
                neighbours[name].add(other)
                neighbours[other].add(name)
    sound_edges = len(context.errors) == sound
    _check_cycles(context)
    if len(stations) > 1 and sound_edges:  # a misspelt neighbour would look like a missing one
        _check_connected(context, neighbours)


def _check_cycles(context: Context) -> None:
    """Depth first; the edge that closes a cycle is reported, with the way round."""
    stations = context.file.stations
    done: set[str] = set()
    for start in stations:
        way: list[str] = []
        stack: list[tuple[str, int]] = [(start, 0)]
        while stack:
            name, n = stack.pop()
            if n == 0:
                way.append(name)
            if name in done or n >= len(stations[name].downstream):
                done.add(name)
                way.pop()
                continue
            stack.append((name, n + 1))
            other = stations[name].downstream[n]
            if other in way and other != name:
                round_trip = " → ".join([*way[way.index(other) :], other])
                hint = "material flows one way: remove one of the neighbours"
                context.error(("stations", name, "downstream", n), f"the line runs in a circle: {round_trip}", hint)
            elif other in stations and other not in done and other != name:
                stack.append((other, 0))


def _check_connected(context: Context, neighbours: dict[str, set[str]]) -> None:
    parts: list[set[str]] = []
    left = dict.fromkeys(neighbours)
    while left:
        part, edge = set(), [next(iter(left))]
        while edge:
            name = edge.pop()
            if name not in part:
                part.add(name)
                left.pop(name)
                edge.extend(neighbours[name])
        parts.append(part)
    if len(parts) == 1:
        return
    main = max(parts, key=len)
    for part in parts:
        first = next(name for name in neighbours if name in part)
        if len(part) == 1:
            what = f"{first} has no neighbour in the line"
            context.error(("stations", first), what, "name it in a downstream: list, or give it one", key=True)
        elif part is not main:
            what = f"{', '.join(n for n in neighbours if n in part)} are not connected to the rest of the line"
            context.error(("stations", first), what, "join them by downstream:", key=True)


def _check_modes(context: Context) -> None:
    numbers: dict[int, str] = {}
    for name, mode in context.file.line.modes.items():
        path: Path = ("line", "modes", name)
        standard = STANDARD_MODES.get(name)
        if standard is not None and mode.number != standard:
            what = f"unit mode {name} has number {standard} by the standard, not {mode.number}"
            context.error((*path, "number"), what, f"write {standard}")
        elif standard is None and mode.number in STANDARD_MODES.values():
            known = next(n for n, number in STANDARD_MODES.items() if number == mode.number)
            context.error((*path, "number"), f"number {mode.number} is the unit mode {known}", "choose 4 … 31")
        first = numbers.setdefault(mode.number, name)
        if first != name:
            what = f"unit modes {first} and {name} have the same number {mode.number}"
            context.error((*path, "number"), what, "choose another, 4 … 31")
        for n, state in enumerate(mode.disabled_states):
            if state not in STATES:
                what = f'unit mode {name}: unknown state "{state}"'
                context.error((*path, "disabled_states", n), what, nearest(state.lower(), STATES))
            elif state in ALWAYS:
                what = f"unit mode {name} cannot do without {state}"
                context.error((*path, "disabled_states", n), what, f"every mode has {', '.join(ALWAYS)}")


def _check_kind(context: Context, name: str, station: Station) -> None:
    path: Path = ("stations", name)
    if context.kinds is None:
        for point, tag in station.io.items():
            context.tag((*path, "io", point), tag, f"I/O point {name}.{point}")
        return
    kind = context.kinds.get(station.kind)
    if kind is None:
        what = f'{name}: unknown station kind "{station.kind}"'
        context.error((*path, "kind"), what, nearest(station.kind, context.kinds))
        return
    for key in ("sequences", "outputs"):
        if getattr(station, key) and station.kind != SEQUENCE:
            what = f"{name}: {key} would have no effect on a station of kind {station.kind}"
            context.error((*path, key), what, f"they are for the kind {SEQUENCE}: remove them", key=True)
    for point in station.io.keys() - kind.points.keys():
        what = f'{name}: the kind {station.kind} has no I/O point "{point}"'
        context.error((*path, "io", point), what, nearest(point, kind.points), key=True)
    for point, info in kind.points.items():
        _check_point(context, name, station, point, info)
    _check_settings(context, name, station, kind)
    _check_safe(context, name, station, kind)


def _check_point(context: Context, name: str, station: Station, point: str, info: PointInfo) -> None:
    named = point in station.io
    path: Path = ("stations", name, "io", point) if named else ("stations", name)
    tag_name = context.point_tag(name, point)
    if not named and tag_name not in context.tags:
        if not info.optional and ("tags", tag_name) not in context.broken:
            hint = f"add a tag {tag_name}, or io: {{{point}: <tag>}}"
            near = nearest(tag_name, context.models)
            hint = f"{hint}; {near}" if near.startswith("did you") else hint
            context.error(path, f'{name}: the I/O point "{point}" of {station.kind} has no tag', hint, key=True)
        return
    tag = context.tag(path, tag_name, f"I/O point {name}.{point}")
    if tag is None:
        return
    place: Path = path if named else ("tags", tag_name, "type")
    type_ = TagInfo.of(tag).type
    if type_ != info.type:
        what = f"I/O point {name}.{point} is {_WORDS[info.type]}, its tag {tag_name} is {tag.type}"
        context.error(place, what, "name another tag or correct its type")
    if info.writable and not tag.writable:
        place = path if named else ("tags", tag_name)
        what = f"I/O point {name}.{point} is driven by the station, its tag {tag_name} cannot be written"
        context.error(place, what, "give the tag access: rw", key=not named)


def _check_settings(context: Context, name: str, station: Station, kind: KindInfo) -> None:
    for key, value in station.settings.items():
        path: Path = ("stations", name, "settings", key)
        wanted = kind.settings.get(key)
        if wanted is None:
            what = f'{name}: the kind {station.kind} has no setting "{key}"'
            context.error(path, what, nearest(key, kind.settings, "setting"), key=True)
        elif type(value) is not wanted and not (wanted is float and type(value) is int):
            context.error(path, f"{name}: the setting {key} is {_TYPES[wanted]}, not {value!r}")


def _check_safe(context: Context, name: str, station: Station, kind: KindInfo) -> None:
    driven = {context.point_tag(name, point) for point, info in kind.points.items() if info.writable}
    driven.update(station.outputs)
    for steps in station.sequences.values():
        driven.update(context.point_tag(name, t) for step in steps if isinstance(step, Set) for t in step.set)
    for target in station.safe:
        tag = context.tags.get(context.point_tag(name, target))
        if tag is not None and tag.writable and tag.name not in driven:
            what = f"{name}: safe: {tag.name} is not an output that this station drives"
            context.error(("stations", name, "safe", target), what, nearest(tag.name, driven, "output"), key=True)


def _check_counts(context: Context, name: str, station: Station) -> None:
    if station.counts is None:
        return
    counts = station.counts
    given = {"infeed": counts.infeed, "good": counts.good}
    optional = {"rejected": counts.rejected, "in_process": counts.in_process}
    for key, tag_name in {**given, **optional}.items():
        if tag_name is None:
            continue
        path: Path = ("stations", name, "counts", key)
        tag: Tag | None = context.tag(path, tag_name, f"counts of {name}")
        if tag is not None and (tag.type not in UNSIGNED or tag.scaled or tag.mask is not None):
            scaled = ", scaled" if tag.scaled else ", masked" if tag.mask is not None else ""
            what = f"counts of {name}: {tag_name} is {tag.type}{scaled}, a counter is an unsigned integer"
            context.error(path, what, "UINT, UDINT or ULINT without scale: its roll-over must be known")
