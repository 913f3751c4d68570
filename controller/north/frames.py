"""Frames of the north port.

A local stream (Unix socket). Each frame is a 4-byte big-endian length and a msgpack body. The server sends
:class:`Hello` (who, and the whole static model), one :class:`Snapshot`, then :class:`Delta` of what changed and
:class:`Events`; the client sends :class:`Request` and gets :class:`Answer` with the same id. A client that
reads too slowly loses deltas, never silently: its queue is emptied and it gets a new :class:`Snapshot` with
``resync`` counted up. Nodes are numbered by their place in ``Hello.nodes``; paths are the stable names.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from controller.core.commands import Arg, Command, Reply
from controller.core.events import AnyEvent

PROTOCOL = 1
MAX_FRAME = 8 * 1024 * 1024
"""Bytes of one frame's body at most; a longer one closes the connection."""

Scalar = bool | int | float | str | None


class Node(msgspec.Struct, frozen=True, array_like=True):
    """One published variable. ``path`` is stable and dotted: ``stations.filler.state_current``."""

    path: str
    type: Literal["bool", "int", "float", "str"]
    unit: str = ""
    description: str = ""
    low: float | None = None
    high: float | None = None
    enum: dict[int, str] | None = None


class StationInfo(msgspec.Struct, frozen=True):
    """What a client must know of a station to draw it: its place in the line and what it can be told."""

    name: str
    kind: str
    description: str
    upstream: list[str]
    downstream: list[str]
    plcs: list[str]


class CommandInfo(msgspec.Struct, frozen=True):
    """A command that the target takes, with the types of its arguments."""

    name: str
    args: dict[str, Literal["bool", "int", "float", "str"]] = {}
    description: str = ""


class Hello(msgspec.Struct, frozen=True, tag="hello"):
    """First frame from the server."""

    protocol: int
    line: str
    description: str
    version: str
    config_hash: str
    stations: list[StationInfo]
    nodes: list[Node]
    commands: dict[str, list[CommandInfo]]
    """By target: ``"line"`` and every station."""
    recipes: list[str]


class Snapshot(msgspec.Struct, frozen=True, tag="snapshot"):
    """All values. ``bad`` maps a node's index to why its value must not be trusted."""

    seq: int
    at: int
    values: list[Scalar]
    bad: dict[int, str]
    resync: int = 0


class Delta(msgspec.Struct, frozen=True, tag="delta"):
    """What changed since the frame before; ``good`` lists nodes that are no longer bad."""

    seq: int
    at: int
    values: dict[int, Scalar]
    bad: dict[int, str]
    good: list[int]


class Events(msgspec.Struct, frozen=True, tag="events"):
    """Journaled events, in order; ``first`` is the journal's sequence number of the first one."""

    first: int
    events: list[AnyEvent]


class Request(msgspec.Struct, frozen=True, tag="request"):
    """A command. The publisher fills in nothing: user and client are the gateway's word."""

    command: Command


class Answer(msgspec.Struct, frozen=True, tag="answer"):
    """The reply, sent once the record of it is durable."""

    reply: Reply


class Goodbye(msgspec.Struct, frozen=True, tag="goodbye"):
    """The server ends the stream, and why."""

    reason: str


ServerFrame = Hello | Snapshot | Delta | Events | Answer | Goodbye
ClientFrame = Request

__all__ = [
    "MAX_FRAME",
    "PROTOCOL",
    "Answer",
    "Arg",
    "ClientFrame",
    "Command",
    "CommandInfo",
    "Delta",
    "Events",
    "Goodbye",
    "Hello",
    "Node",
    "Reply",
    "Request",
    "Scalar",
    "ServerFrame",
    "Snapshot",
    "StationInfo",
]
