"""The queue into the scan: abort first, stop next, bounded."""

from __future__ import annotations

import hypothesis.strategies as st
from hypothesis import given

from controller.core.commands import Command, CommandQueue


def command(n: int, name: str, target: str = "line") -> Command:
    return Command(id=str(n), target=target, name=name)


@given(st.lists(st.tuples(st.sampled_from(["abort", "stop", "start", "reset", "hold"]), st.sampled_from("ab"))))
def test_abort_then_stop_then_the_rest_in_order(asked: list[tuple[str, str]]) -> None:
    queue = CommandQueue()
    commands = [command(n, name, target) for n, (name, target) in enumerate(asked)]
    assert all(queue.put(c) is None for c in commands)
    drained = queue.drain()
    assert sorted(c.id for c in drained) == sorted(c.id for c in commands)
    ranks = [{"abort": 0, "stop": 1}.get(c.name, 2) for c in drained]
    assert ranks == sorted(ranks)
    rest = [int(c.id) for c in drained if c.name not in ("abort", "stop")]
    assert rest == sorted(rest)
    assert queue.drain() == []


def test_full_queue_refuses_and_counts_but_stop_and_abort_always_fit() -> None:
    queue = CommandQueue(limit=3)
    assert [queue.put(command(n, "start")) for n in range(3)] == [None] * 3
    refused = queue.put(command(3, "start"))
    assert refused is not None
    assert not refused.accepted
    assert refused.id == "3"
    assert "3 commands are already waiting" in refused.reason
    assert queue.refused == 1
    assert queue.put(command(4, "stop")) is None
    assert queue.put(command(5, "abort")) is None
    assert [c.id for c in queue.drain()] == ["5", "4", "0", "1", "2"]
    assert queue.put(command(6, "start")) is None


def test_a_storm_of_one_stop_is_bounded_and_every_asker_is_answered() -> None:
    queue = CommandQueue()
    replies = [queue.put(command(n, "stop")) for n in range(1000)]
    waiting = [r for r in replies if r is None]
    joined = [r for r in replies if r is not None]
    assert len(waiting) == len(queue.drain()) == 64
    assert all(r.accepted and "already on its way" in r.reason for r in joined)


def test_made_up_targets_cannot_fill_the_memory_nor_keep_the_line_s_stop_out() -> None:
    queue = CommandQueue(limit=10)
    replies = [queue.put(command(n, "abort", f"nobody_{n}")) for n in range(500)]
    assert sum(r is None for r in replies) == 10
    assert all(r is None or not r.accepted for r in replies)
    assert queue.refused == 490
    assert queue.put(command(501, "abort")) is None
    assert queue.put(command(502, "stop")) is None
    assert {"501", "502"} < {c.id for c in queue.drain()}
