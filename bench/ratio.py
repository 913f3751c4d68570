"""How two things are compared: in turns, by processor time, and by the median of the rounds' ratios."""

from __future__ import annotations

import statistics
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table. ``value`` is ours ÷ baseline unless ``unit`` says otherwise."""

    key: str
    """Its name in the JSON object; empty for a line that is there to be read only."""
    title: str
    value: float
    target: str = ""
    goal: str = ""
    ours: str = ""
    baseline: str = ""


async def in_turns(
    rounds: int, *sides: Callable[[], Awaitable[float]], warm_up: int = 1
) -> tuple[list[list[float]], list[float]]:
    """Run every side once a round: their results by side, and the median ratio of the first to each of the others.

    The sides change places every round, so that none always comes when the machine is warm.
    """
    results: list[list[float]] = [[] for _ in sides]
    for number in range(-warm_up, rounds):
        order = list(range(len(sides)))
        for side in order if number % 2 else reversed(order):
            result = await sides[side]()
            if number >= 0:
                results[side].append(result)
    return results, [median_ratio(results[0], other) for other in results[1:]]


def median_ratio(ours: Sequence[float], baseline: Sequence[float]) -> float:
    """The median of ``ours`` ÷ ``baseline``, round by round."""
    return statistics.median(mine / other for mine, other in zip(ours, baseline, strict=True))


def median(values: Sequence[float]) -> float:
    """The median."""
    return statistics.median(values)
