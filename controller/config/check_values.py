"""Checks of conditions, and of everything that is written to tags: parameters, sequence steps, safe values."""

from __future__ import annotations

from collections.abc import Iterator

from controller.config.base import Scalar
from controller.config.context import Context
from controller.config.model import Parameter, Set, Station, Wait
from controller.config.values import spec_of
from controller.core.expr import ExprError, Finding, TagInfo, parse
from drivers.port import Tag
from recipes.bind import Misfit, fit
from recipes.problem import Path, nearest
from recipes.units import SYMBOLS, UnitError, canonical


def check_values(context: Context) -> None:
    """Check all of this module's matters; fills ``context.exprs`` and ``context.specs``."""
    for path, text in _conditions(context):
        _check_condition(context, path, text)
    for name, station in context.file.stations.items():
        _check_alarm_names(context, name, station)
        for parameter_name, parameter in station.parameters.items():
            _check_parameter(context, name, parameter_name, parameter)
        for path, target, value in _writes(name, station):
            _check_write(context, name, path, target, value)
        for n, output in enumerate(station.outputs):
            _writable(context, ("stations", name, "outputs", n), output, f"output of {name}")
    _check_owners(context)


def _conditions(context: Context) -> Iterator[tuple[Path, str]]:
    for n, text in enumerate(context.file.line.estop):
        yield ("line", "estop", n), text
    for name, station in context.file.stations.items():
        path: Path = ("stations", name)
        for key, condition in (("starved", station.starved), ("blocked", station.blocked)):
            if condition is not None:
                yield (*path, key), condition
        for item, interlock in station.interlocks.items():
            yield (*path, "interlocks", item, "require"), interlock.require
        for item, permissive in station.permissives.items():
            yield (*path, "permissives", item, "require"), permissive.require
        for item, alarm in station.alarms.items():
            yield (*path, "alarms", item, "when"), alarm.when
        for state, steps in station.sequences.items():
            for n, step in enumerate(steps):
                if isinstance(step, Wait):
                    yield (*path, "sequences", state, n, "wait", "until"), step.wait.until


def _check_condition(context: Context, path: Path, text: str) -> None:
    try:
        expr = parse(text)
    except ExprError as error:
        context.error_inside(path, error.column, error.message, error.hint)
        return
    if any(("tags", tag) in context.broken for tag in expr.tags):
        return
    findings = expr.check(context.info, tuple(context.models))
    for finding in findings:
        assert isinstance(finding, Finding)
        context.error_inside(path, finding.column, finding, finding.hint)
    if not findings:
        context.exprs[text] = expr


def _check_alarm_names(context: Context, name: str, station: Station) -> None:
    for state, steps in station.sequences.items():
        for n, step in enumerate(steps):
            if isinstance(step, Wait) and step.wait.alarm in station.alarms:
                path: Path = ("stations", name, "sequences", state, n, "wait", "alarm")
                what = f"{name}: the alarm {step.wait.alarm} has a condition of its own under alarms:"
                context.error(path, what, "a wait raises its alarm itself: choose another name")


def _writable(context: Context, path: Path, name: str, user: str, *, key: bool = False) -> Tag | None:
    tag = context.tag(path, name, user)
    if tag is not None and not tag.writable:
        context.error(path, f"{user}: {name} cannot be written", "give the tag access: rw", key=key)
    return tag


def _check_parameter(context: Context, station: str, name: str, parameter: Parameter) -> None:
    path: Path = ("stations", station, "parameters", name)
    user = f"parameter {station}.{name}"
    tag = _writable(context, (*path, "tag"), parameter.tag, user)
    if tag is None:
        context.broken.add(path)
        return
    sound = len(context.errors)
    numeric = TagInfo.of(tag).type == "number"
    if parameter.unit:
        _check_unit(context, (*path, "unit"), user, parameter.unit, tag)
    if parameter.choices is not None and TagInfo.of(tag).type != "text":
        context.error((*path, "choices"), f"{user}: choices are for texts, {tag.name} is {tag.type}", "remove them")
    for key in ("low", "high", "tolerance"):
        if getattr(parameter, key) not in (None, 0.0) and not numeric:
            context.error((*path, key), f"{user}: {key} is for numbers, {tag.name} is {tag.type}", "remove it")
    if len(context.errors) == sound:
        _check_limits(context, path, user, parameter, tag)
    if parameter.confirm is not None:
        _check_confirm(context, path, user, parameter, tag)
    if len(context.errors) != sound:
        context.broken.add(path)
        return
    spec = spec_of(tag, station, name, low=parameter.low, high=parameter.high, choices=parameter.choices)
    context.specs.append(spec)


def _check_unit(context: Context, path: Path, user: str, unit: str, tag: Tag) -> None:
    try:
        symbol = canonical(unit)
    except UnitError as error:
        context.error(path, f"{user}: {error}", nearest(unit, SYMBOLS))
        return
    if symbol != tag.unit:
        of = f"is in {tag.unit}" if tag.unit else "has no unit"
        what = f"{user} is in {symbol}, its tag {tag.name} {of}"
        context.error(path, what, "both need the same unit; a recipe may use any that fits")


def _check_limits(context: Context, path: Path, user: str, parameter: Parameter, tag: Tag) -> None:
    if parameter.low is not None and parameter.high is not None and parameter.low >= parameter.high:
        what = f"{user}: low {parameter.low:g} is not below high {parameter.high:g}"
        context.error((*path, "low"), what, "swap them")
        return
    whole = spec_of(tag, "tag", tag.name)
    for key in ("low", "high"):
        limit: float | None = getattr(parameter, key)
        if limit is None:
            continue
        try:
            fit(whole, limit)
        except Misfit as misfit:
            what = f"{user}: {key} {limit:g} does not go with its tag: {str(misfit).removeprefix('tag.')}"
            hint = misfit.hint.replace(", or change the equipment's limit in line.yaml", ", or correct the tag")
            context.error((*path, key), what, hint)
    for n, choice in enumerate(parameter.choices or ()):
        try:
            fit(whole, choice)
        except Misfit as misfit:
            what = f"{user}: {str(misfit).removeprefix('tag.')}"
            context.error((*path, "choices", n), what, misfit.hint)


def _check_confirm(context: Context, path: Path, user: str, parameter: Parameter, tag: Tag) -> None:
    assert parameter.confirm is not None
    path = (*path, "confirm")
    confirm = context.tag(path, parameter.confirm, f"confirmation of {user}")
    if confirm is None:
        return
    if TagInfo.of(confirm).type != TagInfo.of(tag).type:
        what = f"{user}: {confirm.name} is {confirm.type} and cannot confirm {tag.name}, which is {tag.type}"
        context.error(path, what, "name the tag that reports the same value")
    elif confirm.unit != tag.unit:
        what = f"{user}: {confirm.name} is in {confirm.unit or 'no unit'}, {tag.name} in {tag.unit or 'no unit'}"
        context.error(path, what, "both need the same unit")
    elif confirm.resolution > tag.resolution and parameter.tolerance < confirm.resolution / 2:
        what = f"{user}: {confirm.name} only shows steps of {confirm.resolution:g}, finer than tolerance allows"
        hint = f"a tolerance of at least {confirm.resolution / 2:g} {tag.unit}".rstrip()
        context.warn(path, what.replace("finer than tolerance allows", f"tolerance is {parameter.tolerance:g}"), hint)


def _writes(name: str, station: Station) -> Iterator[tuple[Path, str, Scalar]]:
    path: Path = ("stations", name)
    for target, value in station.safe.items():
        yield (*path, "safe", target), target, value
    for state, steps in station.sequences.items():
        for n, step in enumerate(steps):
            if isinstance(step, Set):
                for target, value in step.set.items():
                    yield (*path, "sequences", state, n, "set", target), target, value


def _check_write(context: Context, station: str, path: Path, target: str, value: Scalar) -> None:
    user = f"{station}: {path[2]}"
    name = context.point_tag(station, target)
    tag = context.tags.get(name)
    if tag is None:
        if ("tags", name) not in context.broken:
            context.error(path, f'{user}: unknown tag "{name}"', nearest(name, context.models), key=True)
        return
    if not tag.writable:
        context.error(path, f"{user}: {name} cannot be written", "give the tag access: rw", key=True)
        return
    group, _, point = name.partition(".")
    spec = spec_of(tag, group, point)
    if isinstance(value, str) and spec.kind in ("int", "float"):
        unit = f" (in {tag.unit})" if tag.unit else ""
        context.error(path, f'{user}: {name} is a number, not "{value}"', f"write the number alone{unit}")
        return
    try:
        fit(spec, value)
    except Misfit as misfit:
        hint = misfit.hint.replace("the equipment's limit in line.yaml", "the tag's")
        context.error(path, f"{user}: {misfit}", hint)


def _check_owners(context: Context) -> None:
    """Every writable tag has one owner: two that write the same output would fight without anyone noticing."""
    owners: dict[str, str] = {}

    def claim(tag: str, owner: str, path: Path) -> None:
        first = owners.setdefault(tag, owner)
        if first != owner:
            context.error(path, f"{tag} is written by {owner} and by {first}", "an output has one owner: remove one")

    for plc_name, plc in context.file.plcs.items():
        if plc.heartbeat is not None and plc.heartbeat.write is not None:
            claim(plc.heartbeat.write, f"the heartbeat of {plc_name}", ("plcs", plc_name, "heartbeat", "write"))
    for name, station in context.file.stations.items():
        path: Path = ("stations", name)
        for item, parameter in station.parameters.items():
            claim(parameter.tag, f"the parameter {name}.{item}", (*path, "parameters", item, "tag"))
        driven: list[tuple[Path, str]] = [((*path, "outputs", n), tag) for n, tag in enumerate(station.outputs)]
        driven += [(p, context.point_tag(name, t)) for p, t, _ in _writes(name, station) if p[2] == "sequences"]
        kind = (context.kinds or {}).get(station.kind)
        for point, info in kind.points.items() if kind else ():
            if info.writable:
                driven.append(((*path, "io", point), context.point_tag(name, point)))
        for place, tag in driven:
            claim(tag, f"the station {name}", place)
