"""Seeded noise: one generator per station, so that an event in one does not shift the noise of another."""

from __future__ import annotations

from hashlib import sha256
from random import Random


def generator(seed: int, name: str) -> Random:
    """The generator of ``name`` in the line with ``seed``; the same in every process and on every machine."""
    return Random(int.from_bytes(sha256(f"{seed}/{name}".encode()).digest()[:8], "big"))
