"""Publish answers off the wire (OPC 10000-4, 5.14.5 and 7.25)."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import NamedTuple

from asyncua.common.utils import Buffer
from asyncua.ua.object_ids import ObjectIds
from asyncua.ua.ua_binary import nodeid_from_binary

from drivers.opcua.channel import ChannelLost
from drivers.opcua.datum import Datum
from drivers.opcua.values import status_name
from drivers.opcua.wire import read_datum

_DATA_CHANGE = int(ObjectIds.DataChangeNotification_Encoding_DefaultBinary)
_STATUS_CHANGE = int(ObjectIds.StatusChangeNotification_Encoding_DefaultBinary)
_MAX_SEQUENCE = 0xFFFF_FFFF


class Message(NamedTuple):
    """One NotificationMessage. Without ``changes`` it is a keep-alive, and its number that of the next message."""

    number: int
    changes: Sequence[tuple[int, Datum]]
    """Client handle and value, in the order of the wire."""
    keep_alive: bool
    more: bool = False
    sent_ns: int = 0
    """When the publish request was sent that this answers: the server made the message after that."""


def following(number: int) -> int:
    """The sequence number after this one; 0 is not used (OPC 10000-4, 7.37)."""
    return number % _MAX_SEQUENCE + 1


def distance(first: int, last: int) -> int:
    """How many steps ``last`` is after ``first``, around the end of the numbers; negative when it is before."""
    steps = (last - first) % _MAX_SEQUENCE
    return steps if steps < _MAX_SEQUENCE // 2 else steps - _MAX_SEQUENCE


def acknowledgements(numbers: Sequence[tuple[int, int]]) -> bytes:
    """Parameters of a Publish request: pairs of subscription and sequence number."""
    return struct.pack("<i", len(numbers)) + b"".join(struct.pack("<II", *pair) for pair in numbers)


def published(body: bytes, at: int, sent_ns: int) -> tuple[int, Message]:
    """A Publish answer: subscription, message. Raises :class:`ChannelLost`, and what decoding raises."""
    subscription, available = struct.unpack_from("<Ii", body, at)
    at += 8 + 4 * max(0, available)
    more = bool(body[at])
    return subscription, notification(body, at + 1, more, sent_ns)


def notification(body: bytes, at: int, more: bool, sent_ns: int) -> Message:
    """A NotificationMessage. Raises :class:`ChannelLost` when it says that the subscription is over."""
    number, _, count = struct.unpack_from("<Iqi", body, at)
    at += 16
    changes: list[tuple[int, Datum]] = []
    for _ in range(max(0, count)):
        kind, at, end = _extension(body, at)
        if kind == _DATA_CHANGE:
            _take_changes(body, at, end, changes)
        elif kind == _STATUS_CHANGE:
            (code,) = struct.unpack_from("<I", body, at)
            raise ChannelLost(f"the server ended a subscription: {status_name(code)}", "see its log")
        else:
            raise ChannelLost(f"a notification of type {kind} that nobody asked for", "a server fault")
        at = end
    return Message(number, changes, count <= 0, more, sent_ns)


def _extension(body: bytes, at: int) -> tuple[int, int, int]:
    """Type, begin and end of an ExtensionObject's body (OPC 10000-6, 5.2.2.15)."""
    if body[at : at + 2] == b"\x01\0":
        kind = int.from_bytes(body[at + 2 : at + 4], "little")
        at += 4
    else:
        buffer = Buffer(body, at)
        kind = int(nodeid_from_binary(buffer).Identifier)
        at = buffer.cur_pos
    encoding, length = struct.unpack_from("<Bi", body, at)
    end = at + 5 + length
    if encoding != 1 or length < 0 or end > len(body):
        raise ChannelLost("a notification without a readable body", "a server fault")
    return kind, at + 5, end


def _take_changes(body: bytes, at: int, end: int, changes: list[tuple[int, Datum]]) -> None:
    (count,) = struct.unpack_from("<i", body, at)
    at += 4
    for _ in range(count):
        (handle,) = struct.unpack_from("<I", body, at)
        data, at = read_datum(body, at + 4)
        changes.append((handle, data))
    if at > end:
        raise ChannelLost("a notification that is longer than it says", "a server fault")
