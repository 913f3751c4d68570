"""From the tags of the files to what the drivers take, with every check that concerns one tag or two of a PLC."""

from __future__ import annotations

import sys

from controller.config.address import AddressError, parse_modbus, parse_node_id, registers
from controller.config.check_serial import serial_address
from controller.config.context import Context
from controller.config.model import TagModel
from controller.config.plcs import ModbusOptions, OpcUaPlc, Plc
from controller.config.serial_model import SerialDevice
from controller.config.values import mask_problem, raw_range
from drivers.port import Address, Area, DataType, ModbusAddress, OpcUaAddress, Tag, WordOrder
from recipes.problem import Path, nearest
from recipes.units import SYMBOLS, UnitError, canonical

BITS = (Area.COIL, Area.DISCRETE_INPUT)
DECIMAL = (DataType.BCD, DataType.LBCD)


def resolve_tags(context: Context) -> None:
    """Resolve the tags into ``context.tags``. What is wrong with an array is told once, at its declaration."""
    faulty: set[str] = set()
    for name, model in context.models.items():
        declared, before = context.declared(name), len(context.errors)
        tag = None if declared in faulty else _resolve(context, name, model)
        if len(context.errors) > before:
            faulty.add(declared)
        if tag is None:
            faulty.add(declared)
            context.broken.add(("tags", name))
        else:
            context.tags[name] = tag
    _check_overlaps(context)


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
        scale=context.one(model.scale) or 1.0,
        offset=context.one(model.offset) or 0.0,
        unit=sys.intern(unit),
        low=context.one(model.low),
        high=context.one(model.high),
        writable=model.access == "rw",
        scan_class=sys.intern(model.scan_class),
        description=model.description,
        mask=model.mask,
    )


def _check_numbers(context: Context, name: str, model: TagModel) -> None:
    path: Path = ("tags", name)
    numeric = model.type not in (DataType.BOOL, DataType.STRING)
    if model.mask is not None and (problem := mask_problem(model.type, model.mask)):
        context.error((*path, "mask"), f"{name}: {problem[0]}", problem[1])
        return
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
    low, high = raw_range(model.type, model.scale, model.offset, model.mask)
    for key, beyond in (("low", model.low is not None and model.low > high), ("high", (model.high or 0.0) < low)):
        if beyond and getattr(model, key) is not None:
            what = f"{name}: {model.type} with this scale carries {low:g} … {high:g}, {key} is {getattr(model, key):g}"
            context.error((*path, key), what, "every value would be out of range: correct it, scale or offset")


def _address(context: Context, name: str, model: TagModel, plc: Plc) -> Address | None:
    path: Path = ("tags", name)
    if model.type in DECIMAL and not isinstance(plc, ModbusOptions):
        what = f"{name}: {model.type} is for Modbus registers, {model.plc} is {plc.driver}"
        context.error((*path, "type"), what, "declare the type that the device has")
        return None
    if isinstance(plc, SerialDevice):
        return serial_address(context, name, model)
    try:
        if isinstance(plc, OpcUaPlc):
            return _node(context, name, model)
        address = parse_modbus(model.address)
    except AddressError as error:
        context.error((*path, "address"), f"{name}: {error}", error.hint)
        return None
    problems = len(context.errors)
    _check_bits(context, name, model, address)
    _check_width(context, name, model, address, plc)
    return address if len(context.errors) == problems else None


def _node(context: Context, name: str, model: TagModel) -> OpcUaAddress | None:
    given = {"mask": model.mask, "array": model.array}
    for key in (key for key, value in given.items() if value is not None):
        context.error(("tags", name, key), f"{name}: {key} is for Modbus addresses", "declare tags of their own")
    return None if any(value is not None for value in given.values()) else parse_node_id(model.address)


def _check_bits(context: Context, name: str, model: TagModel, address: ModbusAddress) -> None:
    """Type and access suit the area, and the bit the type."""
    path: Path = ("tags", name)
    bits = address.area in BITS
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


def _check_width(context: Context, name: str, model: TagModel, address: ModbusAddress, plc: ModbusOptions) -> None:
    """The value fits behind its address, and into one request."""
    path: Path = ("tags", name)
    width = registers(model.type, model.length)
    if address.offset + width > 65536:
        what = f"{name}: {model.type} at {address} takes {width} registers and passes 65535"
        context.error((*path, "address"), what, "correct the address or the type")
    if width > plc.max_registers:
        what = f"{name} takes {width} registers, {model.plc} reads {plc.max_registers} at most at a time"
        context.error((*path, "length"), what, f"shorten it or raise max_registers of {model.plc}")
    if model.access == "rw" and width > plc.max_write_registers:
        what = f"{name} takes {width} registers, {model.plc} takes {plc.max_write_registers} at most in a write"
        context.error((*path, "access"), what, f"access r, or raise max_write_registers of {model.plc}")


def _check_overlaps(context: Context) -> None:
    """No two tags of a PLC share a register, except by different bits of it; no two are one node."""
    taken: dict[tuple[str, Area, int], list[tuple[int, str]]] = {}
    nodes: dict[tuple[str, str], str] = {}
    reported: set[tuple[str, str]] = set()
    for name, tag in context.tags.items():
        plc, address = context.models[name].plc, tag.address
        if isinstance(address, OpcUaAddress):
            first = nodes.setdefault((plc, address.node_id), name)
            if first != name:
                what = f"{name} and {first} are the same node {address}"
                context.error(("tags", name, "address"), what, f"use {first} for both or correct one")
        if not isinstance(address, ModbusAddress):
            continue
        bits = tag.mask if tag.mask is not None else 0xFFFF if address.bit is None else 1 << address.bit
        for register in range(address.offset, address.offset + registers(tag.type, tag.length)):
            there = taken.setdefault((plc, address.area, register), [])
            for others, other in there:
                pair = context.declared(name), context.declared(other)
                if bits & others and pair not in reported:
                    reported.add(pair)
                    what = f"{name} ({tag.type} at {address}) overlaps {other} at {context.tags[other].address}"
                    there_at = context.place(("tags", other), True)
                    hint = f"correct one of them; {other} is at {there_at.file}:{there_at.line}"
                    context.error(("tags", name, "address"), what, hint)
            there.append((bits, name))
