"""A station declared in line.yaml: sequences of set, wait and delay; no Python."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from controller.core.behaviour import Behaviour
from controller.core.io import Output
from controller.core.packml import State
from controller.core.sequence import Delay, Steps, Until
from drivers.port import Value


@dataclass(frozen=True, slots=True)
class SetStep:
    """Drive outputs."""

    outputs: tuple[tuple[Output[Any], Value], ...]


@dataclass(frozen=True, slots=True)
class WaitStep:
    """Wait for a condition; an unknown one (BAD input) does not hold."""

    condition: Callable[[], bool | None]
    limit_s: float
    alarm: str
    text: str
    action: str


Step = SetStep | WaitStep | Delay


class SequenceStation(Behaviour):
    """Runs the steps of the acting state; a state without steps completes at once."""

    def __init__(self, name: str, sequences: Mapping[State, Sequence[Step]]) -> None:
        super().__init__(name, None, None)
        self._sequences = sequences

    def steps(self, state: State) -> Steps | None:
        """The declared steps of this state, as a fresh sequence."""
        declared = self._sequences.get(state)
        return None if declared is None else self._run(declared)

    @staticmethod
    def _run(steps: Sequence[Step]) -> Steps:
        for step in steps:
            if isinstance(step, SetStep):
                for output, value in step.outputs:
                    output.set(value)
            elif isinstance(step, Delay):
                yield step
            else:
                condition = step.condition
                yield Until(lambda c=condition: c() is True, step.limit_s, step.alarm, step.text, step.action)  # type: ignore[misc]
