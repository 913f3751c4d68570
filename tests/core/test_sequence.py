"""Sequences stepped once per scan."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from controller.core.io import BadInput
from controller.core.sequence import Delay, Fail, Progress, Runner, Steps, Until

S = 1_000_000_000
RUNNING, DONE, FAILED = Progress.RUNNING, Progress.DONE, Progress.FAILED


def test_yield_waits_for_the_next_scan() -> None:
    seen: list[int] = []

    def steps() -> Steps:
        for n in range(2):
            seen.append(n)
            yield None

    runner = Runner(steps())
    assert [runner.step(0), runner.step(0), runner.step(0)] == [RUNNING, RUNNING, DONE]
    assert seen == [0, 1]
    assert runner.step(0) is DONE


def test_delay_counts_from_the_scan_that_began_it() -> None:
    def steps() -> Steps:
        yield Delay(2.0)

    runner = Runner(steps())
    assert runner.step(10 * S) is RUNNING
    assert runner.waiting_for == "a set time"
    assert runner.step(12 * S - 1) is RUNNING
    assert runner.step(12 * S) is DONE


def test_until_goes_on_in_the_same_scan_when_it_holds_already() -> None:
    def steps() -> Steps:
        yield Until(lambda: True, 1, "late", "now")
        yield Until(lambda: True, 1, "late", "now")

    assert Runner(steps()).step(0) is DONE


def test_until_fails_after_its_limit_with_alarm_text_and_action() -> None:
    def steps() -> Steps:
        yield Until(lambda: False, 2.5, "late", "valve open", "hold")

    runner = Runner(steps())
    assert runner.step(0) is RUNNING
    assert runner.waiting_for == "valve open"
    assert runner.step(int(2.5 * S)) is RUNNING
    assert runner.step(int(2.5 * S) + 1) is FAILED
    assert runner.failure == Fail("late", "valve open: not within 2.5 s", "hold")


def test_a_condition_that_holds_in_the_scan_of_its_limit_is_in_time() -> None:
    answers: Iterator[bool] = iter([False, True])

    def steps() -> Steps:
        yield Until(lambda: next(answers), 1, "late", "x")

    runner = Runner(steps())
    assert runner.step(0) is RUNNING
    assert runner.step(5 * S) is DONE


def test_a_bad_input_does_not_hold_and_is_named_when_the_limit_passes() -> None:
    def bad() -> bool:
        raise BadInput("filler.level", "wire break", 0)

    def steps() -> Steps:
        yield Until(bad, 1, "late", "bowl filled")

    runner = Runner(steps())
    assert runner.step(0) is RUNNING
    assert runner.step(2 * S) is FAILED
    assert runner.failure is not None
    assert runner.failure.text == "bowl filled: not within 1 s (filler.level is BAD: wire break)"


def test_a_bad_input_used_by_a_step_fails_it() -> None:
    def steps() -> Steps:
        yield None
        raise BadInput("filler.level", "wire break", 0)

    runner = Runner(steps())
    assert [runner.step(0), runner.step(0)] == [RUNNING, FAILED]
    assert runner.failure is not None
    assert (runner.failure.alarm, runner.failure.action) == ("bad_input", "abort")
    assert "filler.level is BAD: wire break" in runner.failure.text


def test_fail_gives_up_at_once() -> None:
    def steps() -> Steps:
        yield Fail("jam", "jammed", "stop")
        raise AssertionError("not reached")

    runner = Runner(steps())
    assert runner.step(0) is FAILED
    assert runner.failure == Fail("jam", "jammed", "stop")
    runner.close()


def test_a_sequence_that_never_waits_does_not_stall_the_scan() -> None:
    rounds = 0

    def steps() -> Steps:
        nonlocal rounds
        while True:
            rounds += 1
            yield Until(lambda: True, 1, "x", "x")

    runner = Runner(steps())
    assert runner.step(0) is RUNNING
    first = rounds
    assert 0 < first < 100
    assert runner.step(1) is RUNNING
    assert rounds > first
    runner.close()


def test_close_runs_finally_and_a_software_fault_is_not_swallowed() -> None:
    closed: list[str] = []

    def steps() -> Steps:
        try:
            yield None
            raise ZeroDivisionError
        finally:
            closed.append("safe")

    runner = Runner(steps())
    runner.step(0)
    runner.close()
    assert closed == ["safe"]
    other = Runner(steps())
    other.step(0)
    with pytest.raises(ZeroDivisionError):
        other.step(0)
