"""Checks of serial line devices: their line, their protocol, and their tags on it."""

from __future__ import annotations

from controller.config.context import Context
from controller.config.model import TagModel
from controller.config.serial_model import SerialDevice, line_flaws, line_protocol
from drivers.port import SerialAddress
from drivers.serial.plan import PlanError, SerialPlan, source_of
from drivers.serial.protocol import JOB, LineProtocol
from recipes.problem import Path


def serial_address(context: Context, name: str, model: TagModel) -> SerialAddress | None:
    """The address of a serial device's tag; reports keys that only Modbus tags have."""
    path: Path = ("tags", name)
    given = {"word_order": model.word_order, "mask": model.mask, "array": model.array}
    for key, value in given.items():
        if value is not None:
            context.error((*path, key), f"{name}: {key} is for Modbus registers", "remove it")
    return None if any(value is not None for value in given.values()) else SerialAddress(model.address)


def check_serial(context: Context) -> None:
    """Check every serial device; its tags must be resolved."""
    for name, plc in context.file.plcs.items():
        if isinstance(plc, SerialDevice):
            _check_line(context, name, plc)
            protocol = line_protocol(plc.protocol)
            flaws = protocol.flaws()
            for flaw in flaws:
                what = f"{name}: {'.'.join(flaw.path)}: {flaw.what}" if flaw.path else f"{name}: {flaw.what}"
                context.error(("plcs", name, "protocol", *flaw.path), what, flaw.hint)
            if not flaws:
                _check_tags(context, name, protocol)
                _check_commands(context, name, plc, protocol)
                _check_blocks(context, name, plc, protocol)


def _check_line(context: Context, name: str, plc: SerialDevice) -> None:
    for key, what, hint in line_flaws(plc):
        path: Path = ("plcs", name, key) if key else ("plcs", name)
        context.error(path, f"{name}: {what}", hint, key=not key)


def _check_tags(context: Context, name: str, protocol: LineProtocol) -> None:
    tags = [tag for tag in context.tags.values() if context.models[tag.name].plc == name]
    before = len(context.errors)
    for tag in tags:
        try:
            source_of(protocol, tag)
        except PlanError as exc:
            context.error(("tags", tag.name, exc.key), str(exc), exc.hint)
        except ValueError as exc:  # the tag contradicts itself
            context.error(("tags", tag.name), str(exc))
    broken = any(model.plc == name and ("tags", tag) in context.broken for tag, model in context.models.items())
    if len(context.errors) == before and not broken:
        try:
            SerialPlan(protocol, tags)
        except PlanError as exc:
            path: Path = ("tags", exc.tag, exc.key) if exc.tag else ("plcs", name, "protocol", *exc.path)
            context.error(path, str(exc), exc.hint)


def _check_commands(context: Context, name: str, plc: SerialDevice, protocol: LineProtocol) -> None:
    blocks = [{block.id, *block.tags} for block in plc.command_blocks]
    at = {
        context.models[tag.name].address: tag.name
        for tag in context.tags.values()
        if context.models[tag.name].plc == name
    }
    for command, declared in protocol.commands.items():
        path: Path = ("plcs", name, "protocol", "commands", command)
        job = at.get(f"{command}.{JOB}")
        if job is None:
            continue
        if not declared.check and not declared.answer:
            what = f"{name}: command {command} is never acknowledged, so the outcome of every job is unknown"
            context.warn(path, what, "declare check: or answer: if the device can tell", key=True)
        fields = {at[f"{command}.{field}"] for field in protocol.fields(command) if f"{command}.{field}" in at}
        if len(fields) > 1 and not any(fields <= block for block in blocks):
            others = ", ".join(sorted(fields - {job}))
            what = f"{name}: job {job} could be sent before its new {others}"
            hint = f"add to {name}: command_blocks: [{{id: {job}, tags: [{others}]}}]"
            context.warn(path, what, hint, key=True)


def _check_blocks(context: Context, name: str, plc: SerialDevice, protocol: LineProtocol) -> None:
    """A command block is the job of one command, with its fields."""
    for n, block in enumerate(plc.command_blocks):
        path: Path = ("plcs", name, "command_blocks", n)
        of = {tag: context.models[tag].address for tag in (block.id, *block.tags) if tag in context.models}
        command, _, field = of.get(block.id, "").partition(".")
        if block.id in of and (command not in protocol.commands or field != JOB):
            hint = f"name the tag of one of {', '.join(f'{c}.{JOB}' for c in protocol.commands) or 'no command'}"
            context.error((*path, "id"), f"command block of {name}: {block.id} at {of[block.id]} is no job", hint)
            continue
        for m, tag in enumerate(block.tags):
            if tag in of and of[tag].partition(".")[0] != command:
                what = f"command block {block.id} of {name}: {tag} at {of[tag]} is no field of {command}"
                context.error((*path, "tags", m), what, "a block is the job of one command and its fields")
        for key in ("valid_until", "clock"):
            if getattr(block, key) is not None:
                what = f"command block {block.id} of {name}: a serial device has no {key}"
                context.error((*path, key), what, "remove it; a job is never sent twice")
