"""Pure: who is at the other end of a link, and whether it has restarted. No I/O, no clock."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from controller.runtime.bus_state import Place
from drivers import codec
from drivers.port import ModbusAddress, Reading, Tag, Value, WordOrder


class Peer:
    """The identity that a PLC must show, and its boot counter.

    Raises ``ValueError`` at construction for a name that is no tag of the PLC.
    """

    def __init__(self, identity: Mapping[str, Value], boot_counter: str | None, tags: Mapping[str, Tag], place: Place):
        for name in (*identity, *([] if boot_counter is None else [boot_counter])):
            if name not in place:
                raise ValueError(f"{name}, of the identity or the boot counter, is not a tag of this PLC")
        self._expected: dict[int, list[tuple[int, Tag, Value]]] = {}
        for name, value in identity.items():
            group, index = place[name]
            self._expected.setdefault(group, []).append((index, tags[name], value))
        self._boot_name = boot_counter
        self._boot_group: int | None = None
        self._boot_index = 0
        if boot_counter is not None:
            self._boot_group, self._boot_index = place[boot_counter]
        self._boot: Value | None = None
        self._restarted = False
        self.restarts = 0

        self.groups = frozenset(self._expected) | (set() if self._boot_group is None else {self._boot_group})
        """The groups whose readings are to be looked at."""

    def stranger(self, readings: Sequence[Reading]) -> str:
        """On a new connection: why this is not the PLC that the configuration means; empty when it is.

        A value that cannot be read proves nothing, and so does not pass.
        """
        found = (self._wrong(group, readings[group], strict=True) for group in self._expected)
        return next((text for text in found if text), "")

    def changed(self, group: int, reading: Reading) -> str:
        """The same for a reading on a connection that was recognised; there only another value counts."""
        return self._wrong(group, reading, strict=False)

    def boot(self, group: int, reading: Reading) -> str:
        """How the boot counter shows a restart since it was last seen; empty when it does not. Remembers it.

        What was last seen outlives the connection.
        """
        if group != self._boot_group:
            return ""
        now, before = reading.values[self._boot_index], self._boot
        if now is None:
            return ""
        self._boot = now
        if before is None or before == now:
            return ""
        self._restarted = True
        self.restarts += 1
        return f"restarted: its boot counter {self._boot_name} went from {before} to {now}"

    def take_restarted(self) -> bool:
        """Whether it restarted since this was last asked."""
        was, self._restarted = self._restarted, False
        return was

    def _wrong(self, group: int, reading: Reading, *, strict: bool) -> str:
        for index, tag, expected in self._expected.get(group, ()):
            found = reading.values[index]
            if (found == expected and type(found) is type(expected)) or codec.same(tag, expected, found):
                continue
            if found is None and not strict:
                continue
            reason = reading.bad.get(index, "")
            where = f"{tag.name} at {tag.address}"
            if found is None:
                seen = f"{where} cannot be used ({reason}); it must be {expected!r}"
            else:
                seen = f"{where} is {found!r}; it must be {expected!r}"
            fits = _fitting(tag, expected, found, reason)
            cause = (
                f"word_order: {fits} would fit, correct it in the tag or the PLC"
                if fits
                else "another device, another program version, or wrong word order: compare the tag list with the PLC"
            )
            return f"identity: {seen}; {cause}; nothing is written to it"
        return ""


def _fitting(tag: Tag, expected: Value, found: Value | None, reason: str) -> str:
    """The word order under which the device, holding what is expected, would have been read as it was."""
    if not isinstance(tag.address, ModbusAddress):
        return ""
    for order in WordOrder:
        try:
            seen, why = codec.decode(tag, codec.encode(replace(tag, word_order=order), expected))
        except ValueError:
            return ""  # not a value of this tag at all: the configuration check says so
        if order is not tag.word_order and repr(seen) == repr(found) and why == (reason if found is None else ""):
            return order.value
    return ""
