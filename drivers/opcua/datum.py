"""A DataValue as this driver handles it."""

from __future__ import annotations

from typing import Any, NamedTuple

OTHER = -1
"""Kind of a value that is no scalar of the built-in types Boolean to String."""


class Datum(NamedTuple):
    """One DataValue: ``kind`` is the number of the built-in type, ``source`` the source time in ticks (0: none)."""

    kind: int
    value: Any
    status: int
    source: int
    type_name: str = ""
    """Name of what is no scalar, for people."""
