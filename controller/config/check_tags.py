"""Checks of PLCs, scan classes and tags; resolves every tag to what the drivers take."""

from __future__ import annotations

from collections.abc import Mapping

from controller.config.address import AddressError, parse_modbus, parse_node_id, registers
from controller.config.context import Context
from controller.config.model import LineFile, ModbusOptions, ModbusRtuPlc, ModbusTcpPlc, OpcUaPlc, Plc, TagModel
from controller.config.values import is_integer, raw_range
from drivers.port import Area, DataType, ModbusAddress, OpcUaAddress, Tag, WordOrder
from recipes.problem import Path, nearest
from recipes.units import SYMBOLS, UnitError, canonical


def check_tags(context: Context) -> None:
    """Resolve all tags into ``context.tags`` and check them, the PLCs and the scan classes."""
    _check_scan_classes(context)
    for name, model in context.models.items():
        tag = _resolve(context, name, model)
        if tag is None:
            context.broken.add(("tags", name))
        else:
            context.tags[name] = tag
    _check_overlaps(context)
    for name, plc in context.file.plcs.items():
        _check_plc(context, name, plc)
    check_endpoints(context, context.file.plcs)


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


def _resolve(context: Context, name: str, model: TagModel) -> Tag | None:
    path: Path = ("tags", name)
    plc = context.file.plcs.get(model.plc)
    if plc is None and ("plcs", model.plc) not in context.broken:
        hint = nearest(model.plc, context.file.plcs, "PLC")
        context.error((*path, "plc"), f'{name}: unknown PLC "{model.plc}"', hint)
    if model.scan_class not in context.file.scan_classes and ("scan_classes", model.scan_class) not in context.broken:
        hint = nearest(model.scan_class, context.file.scan_classes)
        context.error((*path, "scan_class"), f'{name}: unknown scan class "{model.scan_class}"', hint)
    try:
        unit = canonical(model.unit)
    except UnitError as error:
        context.error((*path, "unit"), f"{name}: {error}", nearest(model.unit, SYMBOLS))
        return None
    _check_numbers(context, name, model)
    if plc is None:
        return None
    address = _address(context, name, model, plc)
    if address is None:
        return None
    order = plc.word_order if isinstance(plc, ModbusOptions) else WordOrder.ABCD
    return Tag(
        name=name,
        address=address,
        type=model.type,
        word_order=model.word_order or order,
        length=model.length,
        scale=model.scale or 1.0,
        offset=model.offset,
        unit=unit,
        low=model.low,
        high=model.high,
        writable=model.access == "rw",
        scan_class=model.scan_class,
        description=model.description,
    )


def _check_numbers(context: Context, name: str, model: TagModel) -> None:
    path: Path = ("tags", name)
    numeric = model.type not in (DataType.BOOL, DataType.STRING)
    if model.length and model.type is not DataType.STRING:
        context.error((*path, "length"), f"{name}: length is for STRING, not for {model.type}", "remove it")
    if not numeric:
        given = {"scale": model.scale != 1.0, "offset": model.offset != 0.0}
        given |= {"low": model.low is not None, "high": model.high is not None, "unit": bool(model.unit)}
        for key, present in given.items():
            if present:
                context.error((*path, key), f"{name}: {key} is for numbers, not for {model.type}", "remove it")
        return
    if model.scale == 0.0:
        context.error((*path, "scale"), f"{name}: scale 0 makes every value the same", "1 means unscaled")
        return
    if model.low is not None and model.high is not None and model.low >= model.high:
        context.error((*path, "low"), f"{name}: low {model.low:g} is not below high {model.high:g}", "swap them")
        return
    low, high = raw_range(model.type, model.scale, model.offset)
    for key, beyond in (("low", model.low is not None and model.low > high), ("high", (model.high or 0.0) < low)):
        if beyond and getattr(model, key) is not None:
            what = f"{name}: {model.type} with this scale carries {low:g} … {high:g}, {key} is {getattr(model, key):g}"
            context.error((*path, key), what, "every value would be out of range: correct it, scale or offset")


def _address(context: Context, name: str, model: TagModel, plc: Plc) -> ModbusAddress | OpcUaAddress | None:
    path: Path = ("tags", name)
    try:
        if isinstance(plc, OpcUaPlc):
            return parse_node_id(model.address)
        address = parse_modbus(model.address)
    except AddressError as error:
        context.error((*path, "address"), f"{name}: {error}", error.hint)
        return None
    problems = len(context.errors)
    bits = address.area in (Area.COIL, Area.DISCRETE_INPUT)
    if bits and model.type is not DataType.BOOL:
        what = f"{name}: {address} is a single bit, its type cannot be {model.type}"
        context.error((*path, "type"), what, "BOOL, or a register address (ir:, hr:)")
    if not bits and model.type is DataType.BOOL and address.bit is None:
        hint = f"write {address}.0 for its lowest bit"
        context.error((*path, "address"), f"{name}: a BOOL in a register needs a bit", hint)
    if address.bit is not None and model.type is not DataType.BOOL:
        what = f"{name}: {address} is a single bit, its type cannot be {model.type}"
        context.error((*path, "type"), what, f"BOOL, or the whole register {address.area}:{address.offset}")
    if address.area in (Area.DISCRETE_INPUT, Area.INPUT_REGISTER) and model.access == "rw":
        area, other = ("a discrete input", "co:") if bits else ("an input register", "hr:")
        what = f"{name}: {address} is {area}, which cannot be written"
        context.error((*path, "access"), what, f"access r, or a {other} address")
    if model.type is DataType.STRING and model.length == 0:
        context.error((*path, "type"), f"{name}: a STRING needs its length", "add length: (in characters)", key=True)
    width = registers(model.type, model.length)
    if address.offset + width > 65536:
        what = f"{name}: {model.type} at {address} takes {width} registers and passes 65535"
        context.error((*path, "address"), what, "correct the address or the type")
    if width > plc.max_registers:
        what = f"{name} takes {width} registers, {model.plc} reads {plc.max_registers} at most at a time"
        context.error((*path, "length"), what, f"shorten it or raise max_registers of {model.plc}")
    return address if len(context.errors) == problems else None


def _check_overlaps(context: Context) -> None:
    """No two tags of a PLC share a register, except as different bits of it."""
    taken: dict[tuple[str, str, int], list[tuple[int | None, str]]] = {}
    nodes: dict[tuple[str, str], str] = {}
    reported: set[tuple[str, str]] = set()
    for name, tag in context.tags.items():
        plc = context.models[name].plc
        address = tag.address
        if isinstance(address, OpcUaAddress):
            first = nodes.setdefault((plc, address.node_id), name)
            if first != name:
                what = f"{name} and {first} are the same node {address}"
                context.error(("tags", name, "address"), what, f"use {first} for both or correct one")
            continue
        for register in range(address.offset, address.offset + registers(tag.type, tag.length)):
            there = taken.setdefault((plc, address.area, register), [])
            for bit, other in there:
                clash = bit is None or address.bit is None or bit == address.bit
                if clash and (name, other) not in reported:
                    reported.add((name, other))
                    what = f"{name} ({tag.type} at {address}) overlaps {other} at {context.tags[other].address}"
                    there_at = context.place(("tags", other), True)
                    hint = f"correct one of them; {other} is at {there_at.file}:{there_at.line}"
                    context.error(("tags", name, "address"), what, hint)
            there.append((address.bit, name))


def _check_plc(context: Context, name: str, plc: Plc) -> None:
    path: Path = ("plcs", name)
    if not any(model.plc == name for model in context.models.values()):
        context.warn(path, f"PLC {name} has no tags", "it is connected for nothing", key=True)
    if isinstance(plc, ModbusRtuPlc) and not 1 <= plc.unit <= 247:
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


def check_endpoints(context: Context, plcs: Mapping[str, Plc]) -> None:
    """No two PLCs are one device, and a serial device has one owner."""
    seen: dict[tuple[object, ...], str] = {}
    for name, plc in plcs.items():
        path: Path = ("plcs", name)
        key: tuple[object, ...]
        if isinstance(plc, ModbusTcpPlc):
            key, path = (plc.host.lower(), plc.port, plc.unit), (*path, "host")
        elif isinstance(plc, ModbusRtuPlc):
            key, path = (plc.device,), (*path, "device")
        else:
            key, path = (plc.endpoint,), (*path, "endpoint")
        first = seen.setdefault(key, name)
        if first == name:
            continue
        if isinstance(plc, ModbusRtuPlc):
            other = plcs[first]
            assert isinstance(other, ModbusRtuPlc)
            same = (plc.baudrate, plc.parity, plc.stopbits) == (other.baudrate, other.parity, other.stopbits)
            differ = "" if same else ", and their line settings differ"
            what = f"{name} and {first} share the serial device {plc.device}{differ}"
            context.error(path, what, "several units on one serial line are not supported yet: one device per PLC")
        else:
            where = " ".join(str(part) for part in key[:2])
            unit = f" unit {plc.unit}" if isinstance(plc, ModbusTcpPlc) else ""
            context.error(path, f"{name} and {first} are the same device {where}{unit}", "merge them or correct one")


def tag_plcs(file: LineFile, models: Mapping[str, TagModel]) -> dict[str, str]:
    """The PLC of every tag."""
    return {name: model.plc for name, model in models.items() if model.plc in file.plcs}
