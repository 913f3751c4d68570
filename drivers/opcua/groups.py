"""The values of a read group: kept as they last came, decoded only where they changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from asyncua import ua

from drivers.opcua.channel import Channel, ChannelLost, results_at
from drivers.opcua.datum import Datum
from drivers.opcua.values import NodeValue
from drivers.opcua.wire import FORMS, Form, array_at, datum, read_datum, read_parameters, utc_ns
from drivers.port import Reading, Value

NOTHING_YET = "the server has not sent a value yet"


class GroupState:
    """Engineering values, reasons and source times of one group, in the order of its tags."""

    def __init__(self, nodes: Sequence[NodeValue]) -> None:
        self.nodes = nodes
        self._values: list[Value | None] = [None] * len(nodes)
        self._bad = {index: f"{node.tag.address}: {NOTHING_YET}" for index, node in enumerate(nodes)}
        self._ticks = [0] * len(nodes)
        self._values_out: tuple[Value | None, ...] = tuple(self._values)
        self._bad_out: Mapping[int, str] = dict(self._bad)
        self._sources_out: tuple[int | None, ...] = (None,) * len(nodes)
        self._values_new = self._bad_new = self._ticks_new = False

    def set(self, index: int, data: Datum) -> None:
        """Take over one value."""
        node = self.nodes[index]
        value, reason = node.value(data)
        if value != self._values[index]:
            self._values[index] = value
            self._values_new = True
        if data.source != self._ticks[index]:
            self._ticks[index] = data.source
            self._ticks_new = True
        if reason or self._bad:
            self.explain(index, reason)

    def explain(self, index: int, reason: str) -> None:
        """Why the value must not be used; empty when it may."""
        if reason:
            reason = f"{self.nodes[index].tag.address}: {reason}"
            if self._bad.get(index) != reason:
                self._bad[index] = reason
                self._bad_new = True
        elif index in self._bad:
            del self._bad[index]
            self._bad_new = True

    def reading(self, stamp_ns: int) -> Reading:
        """What the group holds; the identical tuples as before where nothing changed."""
        if self._values_new:
            values = tuple(self._values)
            self._values_out, self._values_new = values, False
        if self._bad_new:
            self._bad_out, self._bad_new = dict(self._bad), False
        if self._ticks_new:
            self._sources_out, self._ticks_new = tuple(map(utc_ns, self._ticks)), False
        return Reading(self._values_out, stamp_ns, self._bad_out, self._sources_out)


class Part:
    """One Read request of some tags of a group, encoded once, and its last answer."""

    def __init__(self, state: GroupState, indexes: Sequence[int], node_ids: Sequence[ua.NodeId]) -> None:
        self.parameters = read_parameters(node_ids)
        self.indexes = tuple(indexes)
        self._state = state
        self._body = b""
        self._forms: list[Form | None] = [None] * len(indexes)
        self._fields: list[tuple[Any, ...]] = [()] * len(indexes)

    async def read(self, channel: Channel) -> None:
        """Read and take over. Raises as :meth:`Channel.call`."""
        self.take(await channel.call("Read", self.parameters))

    def take(self, body: bytes) -> None:
        """Take an answer over; values whose bytes did not change are not looked at.

        Raises :class:`ChannelLost` when the answer is not the values of these nodes.
        """
        at = results_at(body)
        if body[at:] == self._body:
            return
        self._body = b""
        start = array_at(body, at, len(self.indexes))
        try:
            self._decode(body, start)
        except Exception as exc:
            # Whatever a malformed answer makes the decoders raise.
            raise ChannelLost(f"unreadable values ({exc!r})", "a server fault") from exc
        self._body = body[at:]

    def _decode(self, body: bytes, at: int) -> None:
        forms, fields, state = self._forms, self._fields, self._state
        known = FORMS.get
        for place, index in enumerate(self.indexes):
            form = known(body[at] | body[at + 1] << 8)
            if form is None:
                forms[place] = None
                data, at = read_datum(body, at)
                state.set(index, data)
                continue
            found = form.unpack(body, at + 2)
            at += 2 + form.size
            # The form too: 1, True and 1.0 are equal.
            if found != fields[place] or form is not forms[place]:
                forms[place], fields[place] = form, found
                state.set(index, datum(form, found))


def parts(state: GroupState, indexes: Sequence[int], node_ids: Sequence[ua.NodeId], most: int) -> list[Part]:
    """The Reads of these tags, of at most ``most`` nodes each (0: any number)."""
    size = most or max(1, len(indexes))
    slices = [indexes[first : first + size] for first in range(0, len(indexes), size)]
    return [Part(state, each, [node_ids[index] for index in each]) for each in slices]
