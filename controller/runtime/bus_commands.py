"""Pure: commands of several outputs that a PLC takes once and in time, or not at all. No I/O, no clock.

See docs/plc-contract.md for the PLC's side. A command is what its outputs were when a new number (``id``) was asked
for. It is sent only on a link that was up then; it is sent again only with the same number, which the PLC executes
once, and only until ``valid_ms`` have passed since it was asked for. What is then not sent never will be.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from controller.core.image import WriteReport
from controller.runtime.bus_state import Place
from drivers import codec
from drivers.port import DataType, Outcome, Reading, Tag, Value, WriteOutcome

MS = 1_000_000
RETRY_NS = 1_000 * MS
"""Pause after a rejected command."""


@dataclass(frozen=True, kw_only=True)
class BlockOptions:
    """One command block; see ``command_blocks`` in line.yaml."""

    id: str
    tags: tuple[str, ...]
    ack: str | None = None
    valid_until: str | None = None
    clock: str | None = None
    valid_ms: int = 2000

    @property
    def written(self) -> tuple[str, ...]:
        """The outputs in the order of writing, where the protocol has one: the number last."""
        return (*self.tags, *([self.valid_until] if self.valid_until else []), self.id)


def valid_until(clock: int, age_ns: int, valid_ms: int, kind: DataType) -> int:
    """The value of the PLC's clock up to which a command is valid that is sent now.

    ``clock`` (ms) was read ``age_ns`` ago, counted from the request, so that the validity is rather too short than too
    long. Wraps around as the clock's integer type does.
    """
    low, high = codec.INTEGER_RANGE[kind]
    return (clock + age_ns // MS + valid_ms - low) % (high - low + 1) + low


@dataclass(slots=True)
class Command:
    """One command on its way. ``values`` are those to send, without the validity."""

    block: BlockOptions
    values: dict[str, Value]
    asked_ns: int
    problem: str = ""
    """Why it cannot be sent at all."""
    outcome: Outcome | None = None
    """How its last attempt ended; UNKNOWN from its beginning on, ``None`` before the first."""
    maybe: bool = False
    """Whether any attempt was of unknown outcome: it may still arrive, whatever became of the later ones."""
    doubt: set[str] = field(default_factory=set)
    """Tags that must be read anew before it may be sent again."""

    @property
    def id(self) -> str:
        """The tag that numbers it."""
        return self.block.id

    @property
    def tags(self) -> tuple[str, ...]:
        """Tags of which a reading from before its end says nothing."""
        return (*self.block.written, *([self.block.ack] if self.block.ack else []))

    @property
    def number(self) -> Value:
        """Its number."""
        return self.values[self.block.id]

    @property
    def ends_ns(self) -> int:
        """From when on it is not sent any more."""
        return self.asked_ns + self.block.valid_ms * MS

    def report(self, outcome: Outcome, reason: str) -> WriteReport:
        """A report of it, under the tag that numbers it. REJECTED is said only where no attempt can still arrive."""
        if outcome is Outcome.REJECTED and self.maybe:
            outcome, reason = Outcome.UNKNOWN, f"{reason}; an earlier attempt may still be executed"
        return WriteReport(self.id, self.number, outcome, reason)

    def given_up(self, why: str) -> WriteReport | None:
        """The last report, when it is given up; ``None`` when what is known was reported before."""
        if self.outcome is None:
            why = self.problem or f"{why}; never sent, and never will be: give the command again"
            return self.report(Outcome.REJECTED, why)
        if self.outcome is Outcome.UNKNOWN:
            why = f"{why}; it may have been executed, and is not sent again: look at the PLC"
            return self.report(Outcome.UNKNOWN, why)
        return None


class Commands:
    """The command blocks of one PLC, and the command under way in each. Bounded by the blocks.

    Raises ``ValueError`` at construction when a block names what is no (writable) tag of the PLC.
    """

    def __init__(self, blocks: Sequence[BlockOptions], tags: Mapping[str, Tag], place: Place) -> None:
        for block in blocks:
            wrong = [t for t in block.written if t not in tags or not tags[t].writable]
            wrong += [t for t in (block.ack, block.clock) if t is not None and t not in tags]
            if wrong:
                raise ValueError(f"command block {block.id}: {', '.join(wrong)} cannot be read or written on this PLC")
        self._tags, self._place = tags, place
        self._blocks = {block.id: block for block in blocks}
        self.members = frozenset(t for block in blocks for t in block.written)
        """Outputs that are written with their block only."""
        self._wanted: dict[str, Value] = {}
        self._open: dict[str, Command] = {}

    def ask(self, outputs: Mapping[str, Value], now: int) -> list[Command]:
        """Want these values of :attr:`members`; returns the commands that come of it. A number of 0 is none."""
        fresh = [t for t, v in outputs.items() if t in self._blocks and v and repr(v) != repr(self._wanted.get(t))]
        self._wanted.update(outputs)
        asked = []
        for name in fresh:
            block = self._blocks[name]
            missing = [t for t in block.tags if t not in self._wanted]
            values = {t: self._wanted[t] for t in (*block.tags, block.id) if t in self._wanted}
            problem = f"nobody has asked for a value of {', '.join(missing)} yet" if missing else ""
            self._open[name] = Command(block, values, now, problem)
            asked.append(self._open[name])
        return asked

    @property
    def open(self) -> bool:
        """Whether any command is under way."""
        return bool(self._open)

    def get(self, name: str) -> Command | None:
        """The open command of a block."""
        return self._open.get(name)

    def next_end(self) -> int | None:
        """When the next open command is over."""
        return min((c.ends_ns for c in self._open.values()), default=None)

    def over(self, now: int) -> list[Command]:
        """Give up, and return, what is too old by now."""
        return [self._open.pop(c.id) for c in list(self._open.values()) if c.ends_ns <= now]

    def drop(self) -> list[Command]:
        """Give up, and return, every command: the link is lost."""
        return [self._open.pop(c.id) for c in list(self._open.values())]

    def begin(self, command: Command, latest: Sequence[Reading | None], now: int) -> dict[str, Value] | str:
        """What to write now, in order, or why that is not possible."""
        block = command.block
        if command.problem:
            return command.problem
        values = dict(command.values)
        if block.valid_until is not None and block.clock is not None:
            group, index = self._place[block.clock]
            reading = latest[group]
            clock = None if reading is None else reading.values[index]
            if reading is None or not isinstance(clock, int):
                return f"the PLC's clock {block.clock} cannot be read, so no validity can be given"
            kind = self._tags[block.clock].type
            values[block.valid_until] = valid_until(clock, now - reading.stamp_ns, block.valid_ms, kind)
        command.outcome = Outcome.UNKNOWN
        return {tag: values[tag] for tag in block.written if tag in values}

    def ended(self, command: Command, outcome: WriteOutcome) -> bool:
        """An attempt ended. Returns whether this is still the command that counts."""
        command.outcome = outcome.outcome
        command.maybe = command.maybe or outcome.outcome is Outcome.UNKNOWN
        if self._open.get(command.id) is not command:
            return False
        if outcome.outcome is Outcome.VERIFIED:
            del self._open[command.id]
        elif outcome.outcome is Outcome.UNKNOWN:
            command.doubt = {t for t in (command.id, command.block.ack) if t is not None}
        return True

    def doubtful(self) -> list[str]:
        """Tags whose fresh reading would settle a command."""
        return [tag for command in self._open.values() for tag in command.doubt]

    def settle(self, tag: str, found: Value | None) -> tuple[Command, bool] | None:
        """A fresh reading of such a tag: the command that it settles, and whether the PLC has it; ``None`` for none.

        One BAD value proves nothing. The PLC has the command when it holds or has acknowledged its number.
        """
        if found is None:
            return None
        for command in self._open.values():
            if tag not in command.doubt:
                continue
            if codec.same(self._tags[tag], command.number, found):
                del self._open[command.id]
                return command, True
            command.doubt.discard(tag)
            return None if command.doubt else (command, False)
        return None
