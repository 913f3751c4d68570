"""What the configuration must know of a station kind to check a line against it.

The registry of kinds lives with the stations; it is handed to :func:`controller.config.load`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

SEQUENCE = "sequence"
"""The one kind that is declared in line.yaml itself, by ``sequences`` and ``outputs``, and needs no code."""
PointType = Literal["bool", "number", "text"]
SettingType = type[bool] | type[int] | type[float] | type[str]


@dataclass(frozen=True, slots=True)
class PointInfo:
    """One I/O point of a kind. It needs a tag of this type, a writable one if the kind drives it."""

    type: PointType
    writable: bool = False
    optional: bool = False


@dataclass(frozen=True, slots=True)
class KindInfo:
    """A station kind: its I/O points and its settings, all of which have defaults."""

    points: Mapping[str, PointInfo] = field(default_factory=dict)
    settings: Mapping[str, SettingType] = field(default_factory=dict)
