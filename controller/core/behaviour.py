"""What a station kind writes: one generator method per acting state it cares for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from controller.core.io import IO
from controller.core.packml import ACTING, State, Trigger
from controller.core.sequence import Steps

ACTING_NAMES = frozenset(s.name.lower() for s in ACTING | {State.EXECUTE})


@dataclass(frozen=True, slots=True)
class Settings:
    """Base of a kind's settings: numbers, flags and texts with defaults."""


class Behaviour:
    """Base of station kinds.

    A subclass names its I/O and settings classes and defines, for each acting state it cares for, a generator
    method of that name in lower case (``starting``, ``execute``, ``completing`` …). A state without a method
    completes by itself. :meth:`watch` is called every scan in every state: it returns ``(trigger name, reason)``
    when the equipment itself asks for a state change, else ``None``.
    """

    IO: ClassVar[type[IO]] = IO
    Settings: ClassVar[type[Settings]] = Settings

    def __init__(self, name: str, io: Any, settings: Any) -> None:
        self.name, self.io, self.settings = name, io, settings
        self.state = State.ABORTED
        """The station's state, kept current by the station for :meth:`watch`."""

    def steps(self, state: State) -> Steps | None:
        """A fresh sequence for an acting state, or ``None``."""
        method = getattr(self, state.name.lower(), None) if state.name.lower() in ACTING_NAMES else None
        return None if method is None else method()

    def obstacles(self, trigger: Trigger) -> list[str]:
        """What the equipment itself has against a command, in words; empty if nothing."""
        return []

    def watch(self, now_ns: int) -> tuple[str, str] | None:
        """See the class."""
        return None

    def complaint(self) -> str:
        """What is wrong with the equipment that no sequence waits for, in words; raises an alarm while not empty."""
        return ""
