"""Pure: from a stream of bytes, in pieces of any size, to the payloads of messages.

What cannot be a whole, sound message is never handed out: a line that began before we listened, one that is too long,
cut off or fails its checksum. It becomes a :class:`Broken`, once.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from drivers.serial.protocol import Checksum, Framing

_SAMPLE = 40


@dataclass(frozen=True, slots=True)
class Broken:
    """Bytes that were thrown away: why, and the first of them."""

    what: str
    sample: bytes = b""

    def __str__(self) -> str:
        return self.what + (f" ({self.sample[:_SAMPLE]!r}{'…' * (len(self.sample) > _SAMPLE)})" if self.sample else "")


Found = bytes | Broken


def checksum(check: Checksum, data: bytes) -> bytes:
    """The checksum over ``data`` as it goes on the wire (hex: upper case)."""
    if check.kind == "crc16":
        value = 0xFFFF
        for byte in data:
            value ^= byte
            for _ in range(8):
                value = value >> 1 ^ 0xA001 if value & 1 else value >> 1
        return value.to_bytes(2, "little") if check.form == "binary" else b"%04X" % value
    value = 0
    for byte in data:
        value = value ^ byte if check.kind == "xor" else (value + byte) & 0xFF
    return bytes((value,)) if check.form == "binary" else b"%02X" % value


class Framer:
    """Cuts messages out of one connection's bytes. Holds little more than one message of the longest kind.

    The result does not depend on the pieces in which the bytes come; only :meth:`silence` brings time in.
    """

    def __init__(self, framing: Framing) -> None:
        self._framing = framing
        self._start, self._end, self._check = framing.start, framing.end, framing.checksum
        size = self._check.size if self._check else 0
        after = self._check is not None and self._check.after_end
        self._tail = size if after else 0
        self._most = framing.max_length + (0 if after else size)
        self._exact = framing.length + size if framing.length else 0
        self._buffer = bytearray()
        self._inside = not self._start
        self._broken = False
        """What is inside now is thrown away up to its end."""
        self._noise = False
        """Bytes outside of marks were reported already."""

    @property
    def begun(self) -> bool:
        """Whether something has come that is not a whole message yet."""
        return bool(self._buffer) or self._broken

    def wrap(self, payload: bytes) -> bytes:
        """The payload as a message of this framing."""
        check = self._check
        if check is None:
            return self._start + payload + self._end
        covered = (self._start if check.with_start else b"") + payload
        if check.after_end:
            return self._start + payload + self._end + checksum(check, covered + self._end)
        return self._start + payload + checksum(check, covered) + self._end

    def feed(self, data: bytes) -> list[Found]:
        """The messages, and what was thrown away, that these bytes complete."""
        self._buffer += data
        return list(self._cut())

    def silence(self) -> list[Found]:
        """Nothing has come for the gap time."""
        broken, self._broken, data = self._broken, False, bytes(self._buffer)
        if not self._end and not self._exact:
            self._buffer.clear()
            return [data] if data and not broken else []
        if self._end and not self._start:
            # What follows may be the rest of what was begun, and look like a message: wait for its end.
            self._broken = broken or bool(data)
            del self._buffer[: max(0, len(data) - len(self._end) + 1)]
            return [Broken("a message stopped in the middle", data)] if data and not broken else []
        inside, self._inside = self._inside, not self._start
        self._buffer.clear()
        return [Broken("a message stopped in the middle", data)] if data and inside and not broken else []

    def resync(self) -> None:
        """What is arriving began before we listened, or is not to be used any more: throw it away up to its end."""
        if self._start:
            self._buffer.clear()
            self._inside = self._broken = False
        else:
            self._broken = True
            del self._buffer[: max(0, len(self._buffer) - max(len(self._end) - 1, 0))]

    def _cut(self) -> Iterator[Found]:
        while self._buffer:
            if not self._inside:
                yield from self._find_start()
                if not self._inside:
                    return
            before = len(self._buffer)
            if self._end:
                yield from self._cut_end()
            elif self._exact:
                yield from self._cut_exact()
            else:
                yield from self._cut_gap()
            if len(self._buffer) == before and self._inside:
                return

    def _find_start(self) -> Iterator[Found]:
        at = self._buffer.find(self._start)
        keep = at
        if at < 0:
            sizes = range(min(len(self._start) - 1, len(self._buffer)), 0, -1)
            part = next((size for size in sizes if self._buffer.endswith(self._start[:size])), 0)
            keep = len(self._buffer) - part
        outside = bytes(self._buffer[:keep])
        del self._buffer[:keep]
        if outside.strip(b"\r\n\0") and not self._noise:
            self._noise = True
            yield Broken("bytes outside of start and end")
        if at >= 0:
            del self._buffer[: len(self._start)]
            self._inside, self._noise = True, False

    def _cut_end(self) -> Iterator[Found]:
        buffer, mark = self._buffer, max(len(self._end), len(self._start)) - 1
        at = buffer.find(self._end)
        again = buffer.find(self._start) if self._start else -1
        stop = again if again >= 0 and (at < 0 or again < at) else at
        known = stop if stop >= 0 else len(buffer) - mark
        if known > self._most and not self._broken:
            self._broken = True
            yield self._too_long()
        if stop < 0:
            if self._broken:
                del buffer[: max(0, known)]
        elif stop == again:
            if not self._broken:
                yield Broken("a new message begins inside the last", bytes(buffer[:again]))
            del buffer[: again + len(self._start)]
            self._broken = False
        else:
            yield from self._end_at(at)

    def _end_at(self, at: int) -> Iterator[Found]:
        whole = at + len(self._end) + self._tail
        if len(self._buffer) < whole:
            if self._broken:
                del self._buffer[:at]
            return
        payload, tail = bytes(self._buffer[:at]), bytes(self._buffer[whole - self._tail : whole])
        del self._buffer[:whole]
        broken, self._broken = self._broken, False
        self._inside = not self._start
        if not broken and (payload or self._start):
            yield self._verified(payload, tail)

    def _too_long(self) -> Broken:
        return Broken(f"a message longer than {self._framing.max_length} bytes", bytes(self._buffer[: self._most]))

    def _cut_exact(self) -> Iterator[Found]:
        if self._broken:
            self._buffer.clear()
            return
        if len(self._buffer) >= self._exact:
            payload = bytes(self._buffer[: self._exact])
            del self._buffer[: self._exact]
            self._inside = not self._start
            yield self._verified(payload, b"")

    def _cut_gap(self) -> Iterator[Found]:
        if not self._broken and len(self._buffer) > self._most:
            self._broken = True
            yield self._too_long()
        if self._broken:
            self._buffer.clear()

    def _verified(self, payload: bytes, tail: bytes) -> Found:
        check = self._check
        if check is None:
            return payload
        if not check.after_end:
            if len(payload) < check.size:
                return Broken("a message too short for its checksum", payload)
            payload, tail = payload[: -check.size], payload[-check.size :]
        covered = (self._start if check.with_start else b"") + payload + (self._end if check.after_end else b"")
        expected = checksum(check, covered)
        if (tail.upper() if check.form == "hex" else tail) != expected:
            return Broken(f"{check.kind} checksum wrong: {tail!r} instead of {expected!r}", payload)
        return payload
