"""Commands into the scan, their answers, and the queue between.

Everything that crosses into the scan is queued and bounded. Abort and Stop have a lane of their own, with room
for every target, so that they always fit and cannot be lost; it is drained first.
"""

from __future__ import annotations

from collections import deque

import msgspec

Arg = str | int | float | bool
LINE = "line"
"""The target that means the line itself."""


class CommandRejected(Exception):
    """The operator's to mend: the command is not possible now; the text says why and what to do."""


class Command(msgspec.Struct, frozen=True, kw_only=True):
    """A request from north.

    ``target`` is ``"line"`` or a station's name. ``name`` is a PackML command in lower case (``start``,
    ``stop``, ``reset``, ``hold``, ``unhold``, ``suspend``, ``unsuspend``, ``abort``, ``clear``, ``complete``)
    or, on the line, ``set_mode`` (args ``mode``), ``changeover`` (``recipe``, and ``start``: whether to start again
    afterwards), ``acknowledge`` (``alarm``: id) and ``acknowledge_all``.
    """

    id: str
    target: str
    name: str
    args: dict[str, Arg] = {}
    user: str = ""
    client: str = ""


class Reply(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to a command; ``reason`` says in words why it was refused, or what was started."""

    id: str
    accepted: bool
    reason: str = ""


class CommandQueue:
    """Bounded queue from any number of producers to the one scan; not thread-safe, all on one loop."""

    def __init__(self, limit: int = 256) -> None:
        self._limit = limit
        self._urgent: dict[tuple[str, str], list[Command]] = {}
        self._normal: deque[Command] = deque()
        self.refused = 0

    def put(self, command: Command) -> Reply | None:
        """Queue a command. Returns ``None`` when queued, or a refusal when the queue is full.

        A Stop or Abort that repeats one already waiting joins it: both get the same answer, and at most 64
        such requests per key are kept, the rest being answered at once as already pending. Of targets other than
        the line, as many as the limit may wait; more can only be names that do not exist.
        """
        if command.name in ("abort", "stop"):
            key = (command.name, command.target)
            if key not in self._urgent and len(self._urgent) >= self._limit and command.target != LINE:
                return self._refuse(command)
            waiting = self._urgent.setdefault(key, [])
            if len(waiting) < 64:
                waiting.append(command)
                return None
            return Reply(id=command.id, accepted=True, reason=f"{command.name} is already on its way to the next scan")
        if len(self._normal) >= self._limit:
            return self._refuse(command)
        self._normal.append(command)
        return None

    def _refuse(self, command: Command) -> Reply:
        self.refused += 1
        return Reply(
            id=command.id,
            accepted=False,
            reason=f"{self._limit} commands are already waiting for the next scan; try again in a second",
        )

    def drain(self) -> list[Command]:
        """All that waits: aborts first, then stops, then the rest in order of arrival."""
        if not self._urgent and not self._normal:
            return []
        first = [c for (name, _), cs in self._urgent.items() if name == "abort" for c in cs]
        second = [c for (name, _), cs in self._urgent.items() if name == "stop" for c in cs]
        commands = first + second + list(self._normal)
        self._urgent.clear()
        self._normal.clear()
        return commands
