"""The shape of a serial line device in line.yaml."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from controller.config.base import Model, Name
from controller.config.plc_base import PlcBase
from drivers.serial.protocol import MAX_LENGTH, Checksum, Command, Framing, LineProtocol, Message

Mark = Annotated[str, Field(max_length=8, pattern=r"^[\x00-\xFF]*$")]
"""Bytes as characters, in double quotes for the control ones: ``"\\x02"``, ``"\\r\\n"``."""


class ChecksumModel(Model):
    """A check over the text between the marks; ``crc16`` is that of Modbus."""

    kind: Literal["xor", "sum8", "crc16"]
    form: Literal["hex", "binary"] = "hex"
    after_end: bool = False
    """It follows the end mark and covers it (STX text ETX BCC)."""
    with_start: bool = False
    """It covers the start mark."""


class FramingModel(Model):
    """How messages are told apart: by an end mark, a fixed length, or silence alone (``end: ""``)."""

    start: Mark = ""
    end: Mark = "\r\n"
    length: int | None = Field(default=None, ge=1, le=MAX_LENGTH)
    """Bytes of every message; then there is no end mark."""
    max_length: int = Field(default=256, ge=1, le=MAX_LENGTH)
    gap_ms: int = Field(default=1000, ge=1, le=60_000)
    """This long a silence ends a message that has neither end nor length, and else spoils what was begun before it."""
    checksum: ChecksumModel | None = None
    encoding: Literal["ascii", "latin-1", "utf-8"] = "ascii"
    frame_sends: bool = False
    """What is sent gets marks and checksum, too."""


class MessageModel(Model):
    """One kind of message that the device sends."""

    pattern: str = Field(min_length=1, max_length=500)
    """Regular expression for the whole message; its named groups ``(?P<weight>…)`` are the fields."""
    ask: str = Field(default="", max_length=500)
    """What is sent to get it; without, it comes by itself."""
    lines: int = Field(default=1, ge=1, le=16)
    """Messages that make up the answer; the pattern sees them with \\n between."""
    write: str = Field(default="", max_length=500)
    """What is sent to change one field, ``"LIMIT={limit}\\r\\n"``; it is then asked for to verify."""
    bad: dict[str, dict[str, str]] = Field(default_factory=dict)
    """By field and text the reason why the message must not be used; ``"*"`` is any other text, ``""`` is good."""
    keep: Literal["each", "newest"] = "each"
    queue: int = Field(default=64, ge=1, le=1024)
    """Messages that may wait for the scan."""
    every_ms: int = Field(default=0, ge=0, le=3_600_000)
    """It comes at least this often by itself; when it does not, it is BAD."""


class CommandModel(Model):
    """One text with fields, sent once per job number."""

    send: str = Field(min_length=1, max_length=8000)
    escape: Literal["refuse", "zpl"] = "refuse"
    """What happens to characters of a field that could be commands: refused, or escaped for ZPL printers."""
    check: str = ""
    """Message that is asked for before, and until it is good after."""
    answer: str = ""
    """Message that acknowledges."""
    timeout_ms: int = Field(default=0, ge=0, le=600_000)
    """How long the acknowledgement may take; 0: the PLC's timeout_ms."""


class LineProtocolModel(Model):
    """What the device says, and what it is told (docs/serial-devices.md)."""

    framing: FramingModel = FramingModel()
    messages: dict[Name, MessageModel] = Field(default_factory=dict)
    commands: dict[Name, CommandModel] = Field(default_factory=dict)


class SerialDevice(PlcBase):
    """A scanner, scale or printer on a serial line, or behind a device server (``host`` and ``port``)."""

    driver: Literal["serial"]
    device: str | None = Field(default=None, min_length=1)
    host: str | None = Field(default=None, min_length=1)
    port: int | None = Field(default=None, ge=1, le=65535)
    baudrate: int = Field(default=9600, ge=300, le=4_000_000)
    bytesize: Literal[7, 8] = 8
    parity: Literal["N", "E", "O"] = "N"
    stopbits: Literal[1, 2] = 1
    protocol: LineProtocolModel


def line_flaws(plc: SerialDevice) -> list[tuple[str, str, str]]:
    """What contradicts itself in where the device is: the key (empty for all of it), what is wrong, what to write."""
    if (plc.device is None) == (plc.host is None):
        what = f"{'neither device nor host is' if plc.device is None else 'both device and host are'} given"
        return [("", what, "device: a port of this machine, or host: and port: of a device server")]
    if (plc.host is None) != (plc.port is None):
        return [("", "host and port go together", "give both, or device: alone")]
    if plc.device is not None:
        return []
    given = [key for key in ("baudrate", "bytesize", "parity", "stopbits") if key in plc.model_fields_set]
    return [(key, f"{key} is set in the device server", "remove it here") for key in given]


def line_protocol(model: LineProtocolModel) -> LineProtocol:
    """The declared protocol as the driver takes it."""
    framing = model.framing
    given = framing.model_dump(exclude={"start", "end", "length", "checksum"})
    # A length tells by itself where a message ends, unless an end mark is asked for all the same.
    end = "" if framing.length is not None and "end" not in framing.model_fields_set else framing.end
    return LineProtocol(
        framing=Framing(
            start=framing.start.encode("latin-1"),
            end=end.encode("latin-1"),
            length=framing.length or 0,
            checksum=None if framing.checksum is None else Checksum(**framing.checksum.model_dump()),
            **given,
        ),
        messages={name: Message(**message.model_dump()) for name, message in model.messages.items()},
        commands={name: Command(**command.model_dump()) for name, command in model.commands.items()},
    )
