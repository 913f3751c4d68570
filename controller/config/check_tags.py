"""Checks of PLCs, scan classes and tags; resolves every tag to what the drivers take."""

from __future__ import annotations

from collections.abc import Mapping

from controller.config.address import AddressError, parse_range
from controller.config.context import Context
from controller.config.model import LineFile, TagModel
from controller.config.plcs import (
    ModbusOptions,
    ModbusSerialPlc,
    ModbusTcpPlc,
    ModbusUdpPlc,
    OpcUaPlc,
    Plc,
    PlcBase,
)
from controller.config.resolve import resolve_tags
from controller.config.values import is_integer
from recipes.problem import Path


def check_tags(context: Context) -> None:
    """Resolve all tags into ``context.tags`` and check them, the PLCs and the scan classes."""
    _check_scan_classes(context)
    resolve_tags(context)
    for name, plc in context.file.plcs.items():
        _check_plc(context, name, plc)
        if isinstance(plc, ModbusOptions):
            _check_avoid(context, name, plc)
        elif isinstance(plc, OpcUaPlc) and plc.reading != "poll":
            _check_subscribed(context, name)
    check_endpoints(context, context.file.plcs)


def _check_avoid(context: Context, name: str, plc: ModbusOptions) -> None:
    for n, text in enumerate(plc.avoid):
        try:
            parse_range(text)
        except AddressError as error:
            context.error(("plcs", name, "avoid", n), f"{name}: {error}", error.hint)


def _check_scan_classes(context: Context) -> None:
    scan_ms = context.file.line.scan_ms
    for name, scan_class in context.file.scan_classes.items():
        path: Path = ("scan_classes", name)
        if scan_class.stale_ms <= scan_class.period_ms:
            what = f"scan class {name}: stale_ms {scan_class.stale_ms} is not above period_ms {scan_class.period_ms}"
            hint = "every value would turn BAD between two reads: allow at least two periods"
            context.error((*path, "stale_ms"), what, hint)
        if scan_class.period_ms < scan_ms:
            what = f"scan class {name} is read every {scan_class.period_ms} ms, the scan only runs every {scan_ms} ms"
            context.warn((*path, "period_ms"), what, "raise period_ms, or lower line.scan_ms")


def _check_subscribed(context: Context, name: str) -> None:
    """What an OPC UA server tells by itself may be two and a half periods old (docs/opcua-client.md)."""
    used = {model.scan_class for model in context.models.values() if model.plc == name}
    for scan_class, times in context.file.scan_classes.items():
        if scan_class in used and times.period_ms < times.stale_ms < 3 * times.period_ms:
            path: Path = ("scan_classes", scan_class, "stale_ms")
            what = f"scan class {scan_class}: stale_ms {times.stale_ms} is below three periods of {times.period_ms} ms"
            hint = (
                f"what {name} tells by itself may be that old and turn BAD: raise it, or read {name} with reading: poll"
            )
            context.warn(path, what, hint)


def _check_plc(context: Context, name: str, plc: Plc) -> None:
    path: Path = ("plcs", name)
    if not any(model.plc == name for model in context.models.values()):
        context.warn(path, f"PLC {name} has no tags", "it is connected for nothing", key=True)
    if isinstance(plc, ModbusSerialPlc) and not 1 <= plc.unit <= 247:
        what = f"{name}: unit {plc.unit} cannot answer on a serial line"
        context.error((*path, "unit"), what, "1 … 247 (0 is the broadcast, 248 … 255 are reserved)")
    elif isinstance(plc, ModbusTcpPlc) and plc.unit == 0:
        what = f"{name}: unit 0 is the broadcast address behind a gateway"
        context.warn((*path, "unit"), what, "write the device's own unit; a PLC without units usually takes 255 or 1")
    beat = plc.heartbeat
    if beat is None:
        return
    if beat.timeout_ms <= beat.period_ms:
        what = f"{name}: heartbeat timeout_ms {beat.timeout_ms} is not above period_ms {beat.period_ms}"
        context.error((*path, "heartbeat", "timeout_ms"), what, "allow several periods")
    for key, wanted in (("read", beat.read), ("write", beat.write)):
        if wanted is not None:
            _check_beat(context, (*path, "heartbeat", key), name, wanted, key == "write")


def _check_beat(context: Context, path: Path, plc: str, name: str, write: bool) -> None:
    tag = context.tag(path, name, f"heartbeat of {plc}")
    if tag is None:
        return
    beat = context.file.plcs[plc].heartbeat
    assert beat is not None
    if context.models[name].plc != plc:
        hint = f"name a tag of {plc}"
        context.error(path, f"heartbeat of {plc}: {name} is a tag of {context.models[name].plc}", hint)
    if not is_integer(tag.type) or tag.scaled:
        context.error(path, f"heartbeat of {plc}: {name} must be an unscaled integer", "it is a counter")
    if write and not tag.writable:
        context.error(path, f"heartbeat of {plc}: {name} cannot be written", "give the tag access: rw")
    scan_class = context.file.scan_classes.get(tag.scan_class)
    if not write and scan_class is not None and scan_class.period_ms >= beat.timeout_ms:
        what = f"heartbeat of {plc}: {name} is read every {scan_class.period_ms} ms, timeout_ms is {beat.timeout_ms}"
        context.error(path, what, "use a faster scan class or a longer timeout_ms")


_OF_UNIT = frozenset(PlcBase.model_fields) | {
    "unit", "word_order", "max_registers", "max_bits", "max_write_registers", "max_gap", "avoid",
}  # fmt: skip
"""Options that each unit of a shared link has for itself; all others belong to the link."""


def check_endpoints(context: Context, plcs: Mapping[str, Plc]) -> None:
    """No two PLCs are one device; units of one gateway or serial line agree on what belongs to the link."""
    devices: dict[tuple[object, ...], str] = {}
    links: dict[tuple[object, ...], str] = {}
    for name, plc in plcs.items():
        key = "endpoint" if isinstance(plc, OpcUaPlc) else "device" if getattr(plc, "device", None) else "host"
        path: Path = ("plcs", name, key)
        place: tuple[object, ...] = (str(getattr(plc, key)).lower() if key == "host" else getattr(plc, key),)
        place += (getattr(plc, "port", None), "udp" if isinstance(plc, ModbusUdpPlc) else "")
        unit = f" unit {plc.unit}" if isinstance(plc, ModbusOptions) else ""
        first = devices.setdefault((*place, unit), name)
        where = " ".join(str(part) for part in place[:2] if part is not None)
        if first != name:
            context.error(path, f"{name} and {first} are the same device {where}{unit}", "merge them or correct one")
            continue
        owner = links.setdefault(place, name)
        if owner != name:
            _check_shared(context, name, owner, where)


def _check_shared(context: Context, name: str, owner: str, where: str) -> None:
    """Two PLCs on one physical link."""
    plc, other = context.file.plcs[name], context.file.plcs[owner]
    if plc.driver != other.driver:
        what = f"{name} ({plc.driver}) and {owner} ({other.driver}) share {where}"
        context.error(("plcs", name, "driver"), what, "one link has one owner: use the same driver for both")
        return
    for key in type(plc).model_fields:
        if key not in _OF_UNIT and getattr(plc, key) != getattr(other, key):
            what = f"{name} and {owner} share {where}, but their {key} differs"
            path: Path = ("plcs", name, key) if key in plc.model_fields_set else ("plcs", name)
            context.error(path, what, f"make {key} the same for both")


def tag_plcs(file: LineFile, models: Mapping[str, TagModel]) -> dict[str, str]:
    """The PLC of every tag."""
    return {name: model.plc for name, model in models.items() if model.plc in file.plcs}
