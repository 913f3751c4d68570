"""Which PLC is meant, and which of its tags: by line.yaml, or by a URL and addresses."""

from __future__ import annotations

import contextlib
import dataclasses
import fnmatch
import re
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from controller.cli import console
from controller.cli.plc.url import UaLogin, is_url, parse_url
from controller.config.address import AddressError, parse_modbus, parse_node_id
from controller.config.line import LineConfig
from drivers import codec
from drivers.factory import make_driver
from drivers.options import (
    DriverOptions,
    ModbusSerialOptions,
    ModbusTcpOptions,
    ModbusUdpOptions,
    OpcUaOptions,
    SerialDeviceOptions,
)
from drivers.port import Area, DataType, Driver, FieldBusError, LinkDown, ModbusAddress, Tag, WordOrder
from recipes.problem import nearest

TIMEOUT_MS = 1000
"""For each request, where neither line.yaml nor the command line says."""
MAX_TAGS = 20_000
Modbus = ModbusTcpOptions | ModbusUdpOptions | ModbusSerialOptions
_ADDRESS = re.compile(r"(co|di|ir|hr):(\d{1,5})\.\.(\d{1,5})")


@dataclass(frozen=True, kw_only=True)
class Target:
    """One PLC and the tags that were named. ``line`` is there when line.yaml was given."""

    name: str
    options: DriverOptions
    tags: tuple[Tag, ...]
    timeout_s: float
    line: LineConfig | None = None

    @property
    def modbus(self) -> Modbus:
        """The options of a Modbus PLC. Raises :class:`console.CliError` for another."""
        if not isinstance(self.options, Modbus):
            console.fail(f"{self.name} does not speak Modbus", console.Exit.USAGE)
        return self.options


@dataclass(frozen=True, kw_only=True)
class Asked:
    """The command line's words about the target, as they are."""

    target: str
    words: Sequence[str]
    endpoints: Path | None = None
    timeout_ms: int | None = None
    type: DataType | None = None
    exact: bool = False
    """Each word is one tag (for writing): no patterns, no ranges."""
    login: UaLogin = field(default_factory=UaLogin)


def resolve(asked: Asked, *, unit_needed: bool = True, tags_needed: bool = True) -> Target:
    """The PLC and tags that are meant. Raises :class:`console.CliError`."""
    if is_url(asked.target):
        return _by_url(asked, unit_needed=unit_needed, tags_needed=tags_needed)
    return _by_line(asked)


# --- by line.yaml --------------------------------------------------------------------------------------------


def _by_line(asked: Asked) -> Target:
    from controller.build import kind_infos  # noqa: PLC0415
    from controller.cli.check import must_be_file, overrides  # noqa: PLC0415
    from controller.config.driver_options import driver_options  # noqa: PLC0415
    from controller.config.load import load  # noqa: PLC0415
    from controller.config.problems import ConfigError  # noqa: PLC0415
    from controller.config.report import render  # noqa: PLC0415

    path = Path(asked.target)
    must_be_file(path)
    try:
        config = load(path, overrides(asked.endpoints), kinds=kind_infos())
    except ConfigError as error:
        console.fail(render(error.problems, error.sources).rstrip())
    plcs = config.file.plcs
    if not asked.words:
        console.fail(f"{path}: say which PLC: {', '.join(plcs)}", console.Exit.USAGE)
    name, *patterns = asked.words
    if name not in plcs:
        console.fail(f"{path}: there is no PLC {name!r}; {nearest(name, plcs)}", console.Exit.USAGE)
    if asked.exact and len(set(patterns)) < len(patterns):
        twice = next(p for p in patterns if patterns.count(p) > 1)
        console.fail(f"two values for {twice}; remove one", console.Exit.USAGE)
    if asked.type is not None:
        console.fail("--type is for addresses; the tags of line.yaml have theirs", console.Exit.USAGE)
    try:
        options = driver_options(plcs[name], config.path.parent, config.file.scan_classes)
    except OSError as error:
        console.fail(f"{name}: {error.filename}: cannot be read: {error.strerror}")
    if isinstance(options, OpcUaOptions):  # what is shown was asked for now
        options = dataclasses.replace(options, reading="poll")
    timeout_ms = asked.timeout_ms or plcs[name].timeout_ms
    tags = _named(config, name, patterns, exact=asked.exact)
    return Target(name=name, options=options, tags=tags, timeout_s=timeout_ms / 1000, line=config)


def _named(config: LineConfig, plc: str, patterns: Sequence[str], *, exact: bool) -> tuple[Tag, ...]:
    own = {name: tag for name, tag in config.tags.items() if config.tag_plc[name] == plc}
    if not patterns:
        return tuple(own.values())
    found: dict[str, Tag] = {}
    for pattern in patterns:
        names = [pattern] if pattern in own else []
        if not exact:
            names = [name for name in own if fnmatch.fnmatchcase(name, pattern)]
        if not names:
            elsewhere = config.tag_plc.get(pattern)
            hint = f"it is a tag of {elsewhere}" if elsewhere else nearest(pattern, own, "tag")
            console.fail(f"{plc} has no tag {pattern!r}; {hint}".rstrip("; "), console.Exit.USAGE)
        found |= {name: own[name] for name in names}
    return tuple(found.values())


# --- by URL --------------------------------------------------------------------------------------------------


def _by_url(asked: Asked, *, unit_needed: bool, tags_needed: bool) -> Target:
    if asked.endpoints is not None:
        console.fail("--endpoints goes with a line.yaml, not with a URL", console.Exit.USAGE)
    options = parse_url(asked.target, unit_needed=unit_needed, login=asked.login)
    tags: list[Tag] = []
    names: set[str] = set()
    for word in asked.words:
        made = [_node(word, asked.type)] if isinstance(options, OpcUaOptions) else parse_tags(word, asked.type)
        if asked.exact:
            if len(made) > 1:
                _bad_tag(word, "a range takes no value", "one address per value")
            if made[0].name in names:
                _bad_tag(word, f"two values for {made[0].name}", "remove one")
        tags += [tag for tag in made if tag.name not in names]
        names |= {tag.name for tag in made}
        if len(tags) > MAX_TAGS:
            console.fail(f"more than {MAX_TAGS} tags; name fewer", console.Exit.USAGE)
    if tags_needed and not tags:
        what = 'node ids: "nsu=urn:plc;s=Speed"' if isinstance(options, OpcUaOptions) else "addresses: hr:100 ir:10..20"
        console.fail(f"say what of {asked.target}; {what}", console.Exit.USAGE)
    timeout_s = (asked.timeout_ms or TIMEOUT_MS) / 1000
    return Target(name=asked.target.partition("?")[0], options=options, tags=tuple(tags), timeout_s=timeout_s)


def _node(word: str, type_: DataType | None) -> Tag:
    """A node; without ``--type`` its type is asked from the server later (see :func:`typed`)."""
    try:
        address = parse_node_id(word)
    except AddressError as error:
        console.fail(f"{error}; {error.hint}", console.Exit.USAGE)
    return Tag(name=word, address=address, type=type_ or DataType.STRING, writable=True, scan_class="all")


def parse_tags(word: str, type_: DataType | None = None) -> list[Tag]:
    """``hr:100``, ``ir:10..20:INT``, ``hr:5:REAL:CDAB:scale=0.1``, ``hr:40:STRING:16``, ``hr:7.3``, ``co:3``.

    A register without a type is a UINT. A range counts in whole values. Raises :class:`console.CliError` (usage).
    """
    area, colon, rest = word.partition(":")
    place, *options = rest.split(":")
    fields = _options(word, options)
    fields.setdefault("type", type_ or DataType.UINT)
    first, last = _place(word, f"{area}{colon}{place}")
    if first.area in (Area.COIL, Area.DISCRETE_INPUT) or first.bit is not None:
        if "type" in _options(word, options) and fields["type"] is not DataType.BOOL:
            _bad_tag(word, f"{first} is a single bit, not a {fields['type']}", "remove the type")
        fields["type"] = DataType.BOOL
    if fields["type"] is DataType.STRING and not fields.get("length"):
        _bad_tag(word, "a STRING needs its length in characters", f"write {area}:{place}:STRING:16")
    writable = first.area in (Area.COIL, Area.HOLDING_REGISTER)
    made: list[Tag] = []
    offset = first.offset
    while True:
        address = ModbusAddress(first.area, offset, first.bit)
        suffix = "" if fields["type"] in (DataType.UINT, DataType.BOOL) else f":{fields['type']}"
        tag = Tag(name=f"{address}{suffix}", address=address, writable=writable, scan_class="all", **fields)
        try:
            codec.check(tag)
            width = codec.register_count(tag)
        except ValueError as error:
            _bad_tag(word, str(error), "correct it")
        made.append(tag)
        offset += width
        if offset > last:
            break
    if offset != last + 1 and last != first.offset:
        _bad_tag(word, f"{fields['type']} takes {width} registers, the range is no multiple of that", "correct its end")
    return made


def _place(word: str, text: str) -> tuple[ModbusAddress, int]:
    """The first address, and the last offset."""
    if match := _ADDRESS.fullmatch(text):
        first, last = int(match[2]), int(match[3])
        if not first <= last <= 65535:
            _bad_tag(word, "addresses go from 0 to 65535, the lower one first", "write ir:10..20")
        return ModbusAddress(Area(match[1]), first), last
    try:
        address = parse_modbus(text)
    except AddressError as error:
        _bad_tag(word, str(error), error.hint)
    return address, address.offset


def _options(word: str, options: Sequence[str]) -> dict[str, Any]:
    numbers = {"scale": float, "offset": float, "low": float, "high": float, "length": int}
    fields: dict[str, Any] = {}

    def put(key: str, value: object) -> None:
        if key in fields:
            _bad_tag(word, f"two of {key}", "remove one")
        fields[key] = value

    for option in options:
        key, equals, value = option.partition("=")
        if option.upper() in DataType.__members__:
            put("type", DataType(option.upper()))
        elif option.upper() in WordOrder.__members__:
            put("word_order", WordOrder(option.upper()))
        elif option.isascii() and option.isdecimal():
            put("length", int(option))
        elif equals and key == "unit":
            put("unit", value)
        elif equals and key == "mask":
            try:
                put("mask", int(value, 0))
            except ValueError:
                _bad_tag(word, f'mask cannot be "{value}"', "write mask=0x0FF0")
        elif equals and key in numbers:
            try:
                put(key, numbers[key](value))
            except ValueError:
                _bad_tag(word, f'{key} must be a number, not "{value}"', "decimal point, no unit")
        else:
            types, orders = ", ".join(DataType.__members__), ", ".join(WordOrder.__members__)
            near = nearest(option.upper(), [*DataType.__members__, *WordOrder.__members__])
            hint = near or f"types: {types}; orders: {orders}; or scale=, offset=, low=, high=, length=, unit=, mask="
            _bad_tag(word, f'"{option}" is no type, word order or option', hint)
    return fields


def _bad_tag(word: str, what: str, hint: str) -> NoReturn:
    text = f"{what}; {hint}" if hint else what
    console.fail(text if text.startswith(word) else f"{word}: {text}", console.Exit.USAGE)


# --- on the wire -----------------------------------------------------------------------------------------------


async def typed(target: Target, given: DataType | None) -> Target:
    """Nodes named without a type get the one that the server says. Raises :class:`console.CliError`."""
    if target.line is not None or given is not None or not isinstance(target.options, OpcUaOptions):
        return target
    from drivers.opcua.survey import describe  # noqa: PLC0415 - the OPC UA library takes its time

    try:
        found = await describe(target.options, [str(t.address) for t in target.tags], target.timeout_s)
    except FieldBusError as error:
        console.fail(str(error), console.Exit.NO_CONNECTION)
    tags: list[Tag] = []
    for tag in target.tags:
        node = found[str(tag.address)]
        if node.type is None:
            console.fail(f"{tag.address}: {node.problem}")
        tags.append(dataclasses.replace(tag, type=node.type, writable=node.writable, description=node.description))
    return dataclasses.replace(target, tags=tuple(tags))


@contextlib.asynccontextmanager
async def opened(target: Target, tags: Sequence[Tag]) -> AsyncIterator[Driver]:
    """A connected driver for these tags; closed at the end, whatever that is. Raises :class:`console.CliError`."""
    driver = make(target, tags)
    try:
        await driver.connect(max(3.0, target.timeout_s))
        yield driver
    except LinkDown as error:
        console.fail(str(error), console.Exit.NO_CONNECTION)
    except FieldBusError as error:
        console.fail(str(error))
    finally:
        await driver.close()


def make(target: Target, tags: Sequence[Tag]) -> Driver:
    """The driver, not connected. Raises :class:`console.CliError` when a tag does not suit it."""
    try:
        return make_driver(target.name, target.options, tags)
    except ValueError as error:
        console.fail(str(error), console.Exit.USAGE)


def is_message_device(target: Target) -> bool:
    """A scanner or scale: what it says comes when it comes."""
    return isinstance(target.options, SerialDeviceOptions)
