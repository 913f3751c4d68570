"""Typed access to a station's tags.

A station kind declares its I/O as a class with annotations::

    class FillerIO(IO):
        run: Output[bool]
        bowl_level: Input[float]
        air_ok: Input[bool] | None     # optional

Reading a BAD input raises :class:`BadInput`: logic cannot see a stale value as a good one.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, cast

from controller.core.image import ProcessImage
from drivers.port import DataType

V = TypeVar("V", bool, int, float, str)


class BadInput(Exception):
    """An input was used while it was BAD. The plant's fault; says which tag, why and since when."""

    def __init__(self, tag: str, reason: str, since_ns: int) -> None:
        self.tag, self.reason, self.since_ns = tag, reason, since_ns
        super().__init__(f"{tag} is BAD: {reason}")


class Input(Generic[V]):
    """One tag to read."""

    __slots__ = ("_image", "slot", "tag")

    def __init__(self, image: ProcessImage, tag: str) -> None:
        self._image, self.tag, self.slot = image, tag, image.layout.slots[tag]

    @property
    def value(self) -> V:
        """The value latched for this scan. Raises :class:`BadInput`."""
        image, slot = self._image, self.slot
        reason = image.bad[slot]
        if reason is not None:
            raise BadInput(self.tag, reason, image.since[slot])
        return cast(V, image.values[slot])

    @property
    def ok(self) -> bool:
        """Whether the value is good."""
        return self._image.bad[self.slot] is None

    @property
    def stamp(self) -> int:
        """Monotonic time of the request that last read it (0 = not read, or lost)."""
        return self._image.stamp_of(self.slot)

    def is_(self, wanted: V) -> bool:
        """Whether the value is good and equal to ``wanted``: the safe way to ask."""
        return self._image.bad[self.slot] is None and self._image.values[self.slot] == wanted


class Output(Input[V]):
    """One tag to drive; :attr:`value` is what the PLC says it holds (read-back)."""

    __slots__ = ()

    def set(self, value: V) -> None:
        """Want ``value`` from this scan on, until set again."""
        self._image.write(self.slot, value)

    @property
    def wanted(self) -> V | None:
        """What was last asked for; ``None`` before the first time."""
        return cast("V | None", self._image.out.get(self.slot))

    @property
    def type(self) -> DataType:
        """The type on the wire."""
        return self._image.layout.tags[self.slot].type

    def goes_with(self, number: Output[int]) -> bool:
        """Whether the PLC gets this one only together with ``number``, in one piece, when that one changes."""
        return self._image.layout.commands.get(self.tag) == number.tag


@dataclass(frozen=True, slots=True)
class Point:
    """One declared I/O point of a kind: its value type, direction and whether a line may leave it out."""

    name: str
    type: type[bool] | type[int] | type[float] | type[str]
    writable: bool
    optional: bool


class IO:
    """Base of a kind's I/O class; see the module's text."""

    @classmethod
    def points(cls) -> dict[str, Point]:
        """The declared points, by name."""
        found: dict[str, Point] = {}
        for name, hint in typing.get_type_hints(cls).items():
            args = typing.get_args(hint)
            optional = isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union
            if optional:
                hint = next(a for a in args if a is not type(None))  # noqa: PLW2901
            origin = typing.get_origin(hint)
            assert origin in (Input, Output), f"{cls.__name__}.{name} is neither Input[…] nor Output[…]"
            found[name] = Point(name, typing.get_args(hint)[0], origin is Output, optional)
        return found

    def __init__(self, image: ProcessImage, tags: Mapping[str, str]) -> None:
        """``tags`` maps point to tag name; a missing optional point becomes ``None``."""
        self.outputs: dict[str, Output[Any]] = {}
        for name, point in self.points().items():
            tag = tags.get(name)
            assert tag is not None or point.optional, f"point {name} has no tag"
            made: Input[Any] | None = None
            if tag is not None:
                made = Output(image, tag) if point.writable else Input(image, tag)
                if isinstance(made, Output):
                    self.outputs[name] = made
            setattr(self, name, made)
