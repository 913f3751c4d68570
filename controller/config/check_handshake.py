"""Checks of the handshake with a PLC: identity, boot counter, command blocks. See docs/plc-contract.md."""

from __future__ import annotations

from itertools import pairwise

from controller.config.address import registers
from controller.config.context import Context
from controller.config.plc_base import CommandBlock
from controller.config.plcs import ModbusOptions, Plc
from controller.config.values import is_integer, raw_range
from drivers import codec
from drivers.port import Area, DataType, ModbusAddress, Tag
from recipes.problem import Path

BYTES = (DataType.SINT, DataType.USINT)


def check_handshake(context: Context) -> None:
    """Check what each PLC shows of itself, and how it is commanded. Needs the resolved tags."""
    for name, plc in context.file.plcs.items():
        path: Path = ("plcs", name)
        for tag_name, value in plc.identity.items():
            _check_identity(context, (*path, "identity", tag_name), name, tag_name, value)
        if plc.boot_counter is not None:
            _check_boot(context, (*path, "boot_counter"), name, plc.boot_counter)
        owners: dict[str, str] = {}
        for n, block in enumerate(plc.command_blocks):
            _Block(context, (*path, "command_blocks", n), name, plc, block).check(owners)
        if plc.heartbeat is not None and plc.heartbeat.write in owners:
            what = f"{plc.heartbeat.write} is part of the command {owners[plc.heartbeat.write]}, and no life sign"
            context.error((*path, "heartbeat", "write"), what, "give the life sign a tag of its own")
        _check_users(context, owners)
        _check_givers(context, owners, {b.valid_until for b in plc.command_blocks})


def _own(context: Context, path: Path, plc: str, name: str, user: str) -> Tag | None:
    """The tag, if it is one of this PLC; reports it otherwise."""
    tag = context.tag(path, name, user)
    if tag is not None and context.models[name].plc != plc:
        context.error(path, f"{user}: {name} is a tag of {context.models[name].plc}", f"name a tag of {plc}")
        return None
    return tag


def _check_identity(context: Context, path: Path, plc: str, name: str, value: bool | int | float | str) -> None:
    tag = _own(context, path, plc, name, f"identity of {plc}")
    if tag is None:
        return
    try:
        codec.to_raw(tag, value)
    except codec.EncodeError as error:
        what = f"identity of {plc}: {name} ({tag.type}) can never be {value!r}: {error.limit}"
        context.error(path, what, "write the value that the PLC shows")


def _check_boot(context: Context, path: Path, plc: str, name: str) -> None:
    user = f"boot counter of {plc}"
    tag = _own(context, path, plc, name, user)
    if tag is None:
        return
    if not is_integer(tag.type) or tag.scaled:
        context.error(path, f"{user}: {name} must be an unscaled integer", "it is a counter")
    elif tag.low is not None or tag.high is not None or tag.mask is not None:
        what = f"{user}: {name} has limits or a mask, and may restart unseen beyond them"
        context.error(path, what, "it is a counter: remove low, high and mask of the tag")
    classes = context.file.scan_classes
    mine = {context.models[t].scan_class for t in context.tags if context.models[t].plc == plc}
    fastest = min((c for c in mine if c in classes), key=lambda c: classes[c].period_ms, default=tag.scan_class)
    if tag.scan_class in classes and classes[tag.scan_class].period_ms > classes[fastest].period_ms:
        what = f"{user}: {name} is read every {classes[tag.scan_class].period_ms} ms, other tags of {plc} more often"
        hint = f"a restart must not show later than what it zeroes: give the tag scan_class: {fastest}"
        context.error(path, what, hint)


class _Block:
    """The checks of one command block."""

    def __init__(self, context: Context, path: Path, plc: str, model: Plc, block: CommandBlock) -> None:
        self.context, self.path, self.plc, self.model, self.block = context, path, plc, model, block
        self.user = f"command block {block.id} of {plc}"

    def check(self, owners: dict[str, str]) -> None:
        """All of them; ``owners`` collects whose tags are whose."""
        block, path = self.block, self.path
        places: list[tuple[Path, str]] = [((*path, "tags", n), tag) for n, tag in enumerate(block.tags)]
        places.append(((*path, "id"), block.id))
        if block.valid_until is not None:
            places.append(((*path, "valid_until"), block.valid_until))
        written = []
        for place, name in places:
            first = owners.setdefault(name, block.id)
            if first != block.id or [n for _, n in places].count(name) > 1:
                self.error(place, f"{name} is in a command more than once", "every output is part of one command, once")
            tag = self.own(place, name)
            if tag is None:
                continue
            if not tag.writable:
                self.error(place, f"{name} cannot be written", "give the tag access: rw")
            written.append((place, tag))
        if len(written) == len(places):
            self.check_together(written)
        self.check_number()
        self.check_validity()

    def own(self, path: Path, name: str) -> Tag | None:
        return _own(self.context, path, self.plc, name, self.user)

    def error(self, path: Path, what: str, hint: str) -> None:
        self.context.error(path, f"{self.user}: {what}", hint)

    def check_together(self, written: list[tuple[Path, Tag]]) -> None:
        """On Modbus, one request writes registers that follow each other."""
        placed: list[tuple[int, int, Path, Tag]] = []
        for path, tag in written:
            address = tag.address
            if not isinstance(address, ModbusAddress):
                return  # of a serial line device: check_serial
            if address.area is not Area.HOLDING_REGISTER or address.bit is not None or tag.mask is not None:
                self.error(
                    path, f"{tag.name} at {address} is no whole holding register", "use hr: addresses without bits"
                )
                return
            placed.append((address.offset, registers(tag.type, tag.length), path, tag))
        placed.sort(key=lambda each: each[0])
        for (offset, size, _, before), (there, _, path, tag) in pairwise(placed):
            if there != offset + size:
                what = (
                    f"{tag.name} at {tag.address} does not follow {before.name}, which ends at hr:{offset + size - 1}"
                )
                self.error(path, what, "one request writes registers without a gap: move the tags together")
        total = sum(size for _, size, _, _ in placed)
        limit = self.model.max_write_registers if isinstance(self.model, ModbusOptions) else total
        if total > limit:
            what = f"its {total} registers are more than the {limit} that {self.plc} takes in one request"
            self.error((*self.path, "tags"), what, f"shorten it or raise max_write_registers of {self.plc}")

    def counter(self, path: Path, name: str) -> Tag | None:
        """A tag that must hold every value of an integer type of 16 bits or more."""
        tag = self.own(path, name)
        if tag is None:
            return None
        plain = not tag.scaled and tag.low is None and tag.high is None and tag.mask is None
        if not is_integer(tag.type) or tag.type in (*BYTES, *codec.DECIMAL) or not plain:
            what = f"{name} must be an integer of 16 bits or more, unscaled and without limits"
            self.error(path, what, "UDINT is best; UINT repeats a number after 65535 commands")
            return None
        self.check_speed(path, tag)
        return tag

    def check_speed(self, path: Path, tag: Tag) -> None:
        scan_class = self.context.file.scan_classes.get(tag.scan_class)
        if scan_class is not None and scan_class.period_ms >= self.block.valid_ms:
            what = f"{tag.name} is read every {scan_class.period_ms} ms, valid_ms is {self.block.valid_ms}"
            self.error(path, what, "use a faster scan class or a longer valid_ms")

    def check_number(self) -> None:
        """The acknowledgement repeats the number."""
        number = self.counter((*self.path, "id"), self.block.id)
        if number is not None and codec.INTEGER_RANGE[number.type][0] < 0:
            what = (
                f"{number.name} is {number.type}: 1 is older than the largest number before it, and is never executed"
            )
            self.error((*self.path, "id"), what, "numbers must be unsigned: UDINT, or UINT")
        if self.block.ack is None:
            return
        ack = self.counter((*self.path, "ack"), self.block.ack)
        if number is not None and ack is not None and ack.type is not number.type:
            what = f"{ack.name} is {ack.type}, {number.name} is {number.type}"
            self.error((*self.path, "ack"), what, "give both the same type")

    def check_validity(self) -> None:
        """Validity and clock: both or neither, of one type, wide enough for the difference to have a sign."""
        block, path = self.block, self.path
        if (block.valid_until is None) != (block.clock is None):
            given, lacks = ("clock", "valid_until") if block.valid_until is None else ("valid_until", "clock")
            self.error((*path, given), f"{given} needs {lacks}", f"name the tag of {lacks} too, or remove {given}")
            return
        if block.valid_until is None or block.clock is None:
            return
        until = self.counter((*path, "valid_until"), block.valid_until)
        clock = self.counter((*path, "clock"), block.clock)
        if until is None or clock is None:
            return
        if until.type is not clock.type:
            what = f"{until.name} is {until.type}, {clock.name} is {clock.type}"
            self.error((*path, "valid_until"), what, "give both the same type")
        low, high = raw_range(clock.type, 1.0, 0.0)
        if 2 * block.valid_ms > (high - low) / 2:
            what = f"valid_ms {block.valid_ms} is too long for a clock of type {clock.type}, which wraps around"
            self.error((*path, "valid_ms"), what, "use a clock of 32 bits or a shorter valid_ms")
        elif high - low < 1 << 16:
            what = (
                f"{self.user}: what hangs in the network for over 32 s counts as valid again by a clock of {clock.type}"
            )
            self.context.warn((*path, "clock"), what, "use a clock of 32 bits")


def _check_users(context: Context, owners: dict[str, str]) -> None:
    """A part of a command goes out with its number only: nothing else may want to write it by itself."""
    hint = "leave it out of command_blocks, or let the station give it with its number"
    for name, station in context.file.stations.items():
        path: Path = ("stations", name)
        for point in station.safe:
            tag = context.point_tag(name, point)
            if tag in owners:
                what = f"{tag} is part of the command {owners[tag]}, and has no safe value of its own"
                context.error((*path, "safe", point), what, hint)
        for parameter, spec in station.parameters.items():
            if spec.tag in owners:
                what = f"{spec.tag} is part of the command {owners[spec.tag]} and cannot be a recipe parameter"
                context.error((*path, "parameters", parameter, "tag"), what, hint)


def _check_givers(context: Context, owners: dict[str, str], validities: set[str | None]) -> None:
    """Who drives a part of a command gives its number, too: without a new number it would never be written."""
    for name, station in context.file.stations.items():
        path: Path = ("stations", name)
        driven: dict[str, Path] = {tag: (*path, "outputs", n) for n, tag in enumerate(station.outputs)}
        kind = (context.kinds or {}).get(station.kind)
        for point, info in kind.points.items() if kind else ():
            if info.writable:
                place = (*path, "io", point) if point in station.io else path
                driven.setdefault(context.point_tag(name, point), place)
        for tag, place in driven.items():
            if tag in validities:
                what = f"{tag} is the validity of the command {owners[tag]}, which the link works out by itself"
                context.error(place, what, f"{name} must not drive it")
            elif tag in owners and owners[tag] not in driven:
                what = f"{tag} is part of the command {owners[tag]}, whose number {name} does not give: never written"
                context.error(place, what, f"leave it out of command_blocks, or let {name} drive {owners[tag]} too")
