"""Alarms: delays, what cannot be known, acknowledgement."""

from __future__ import annotations

import pytest

from controller.core.alarms import Alarm, AlarmBook, AlarmSpec
from controller.core.commands import CommandRejected


class Book(AlarmBook):
    def __init__(self) -> None:
        super().__init__()
        self.log: list[tuple[str, str, str]] = []
        self.subscribe(lambda alarm, change, user: self.log.append((alarm.id, change, user)))

    def changes(self) -> list[str]:
        return [change for _, change, _ in self.log]


def delayed(on: int = 0, off: int = 0) -> tuple[Book, Alarm]:
    book = Book()
    return book, book.add("filler", AlarmSpec("jam", "jammed", on_delay_ns=on, off_delay_ns=off))


def test_on_delay_needs_the_condition_without_a_break() -> None:
    book, alarm = delayed(on=10)
    for now, condition in ((0, True), (9, True), (10, False), (11, True), (20, True)):
        assert book.evaluate(alarm, condition, now) is False
        assert not alarm.active
    assert book.evaluate(alarm, True, 21) is True
    assert alarm.active
    assert book.evaluate(alarm, True, 22) is False
    assert book.changes() == ["active"]


def test_off_delay_rides_over_chatter() -> None:
    book, alarm = delayed(off=10)
    book.evaluate(alarm, True, 0)
    for now, condition in ((1, False), (10, False), (10, True), (12, False), (21, False)):
        book.evaluate(alarm, condition, now)
        assert alarm.active
    book.evaluate(alarm, False, 22)
    assert not alarm.active
    assert book.changes() == ["active", "cleared"]


def test_what_cannot_be_known_neither_raises_nor_clears_and_restarts_the_delay() -> None:
    book, alarm = delayed(on=10, off=10)
    for now, condition in ((0, True), (5, None), (10, True), (15, True)):
        book.evaluate(alarm, condition, now)
    assert not alarm.active
    book.evaluate(alarm, True, 20)
    assert alarm.active
    for now, condition in ((30, False), (35, None), (41, False), (50, False)):
        book.evaluate(alarm, condition, now)
    assert alarm.active
    book.evaluate(alarm, False, 51)
    assert not alarm.active


def test_acknowledgement() -> None:
    book, alarm = delayed()
    with pytest.raises(CommandRejected, match=r"no alarm 'filler\.nothing'"):
        book.acknowledge("filler.nothing", "anna")
    with pytest.raises(CommandRejected, match="already acknowledged"):
        book.acknowledge("filler.jam", "anna")
    book.evaluate(alarm, True, 0)
    book.acknowledge("filler.jam", "anna")
    assert alarm.listed
    book.evaluate(alarm, False, 1)
    assert not alarm.listed
    book.evaluate(alarm, True, 2)
    book.evaluate(alarm, False, 3)
    assert alarm.listed  # gone, but nobody has seen it
    book.acknowledge("filler.jam", "bert")
    assert not alarm.listed
    assert book.log[-1] == ("filler.jam", "acknowledged", "bert")
    assert book.generation == len(book.log) == 6


def test_a_new_text_is_a_new_occurrence_and_the_same_is_not() -> None:
    book, alarm = delayed()
    book.activate(alarm, "jam at the infeed")
    book.acknowledge(alarm.id, "anna")
    book.activate(alarm, "jam at the infeed")
    assert alarm.acknowledged
    book.activate(alarm, "jam at the outfeed")
    assert not alarm.acknowledged
    assert book.changes() == ["active", "acknowledged", "active"]
    book.clear(alarm)
    book.clear(alarm)
    assert book.changes()[-2:] == ["active", "cleared"]


def test_list_is_by_priority_then_order() -> None:
    book = Book()
    for n, priority in enumerate((1, 4, 2, 4)):
        book.activate(book.add("s", AlarmSpec(f"a{n}", "x", priority=priority)), "x")
    book.add("s", AlarmSpec("quiet", "x", priority=4))
    assert [a.id for a in book.listed()] == ["s.a1", "s.a3", "s.a2", "s.a0"]


def test_get_finds_the_declared_one_and_a_second_definition_is_a_mistake() -> None:
    book, alarm = delayed()
    assert book.get("filler", AlarmSpec("jam", "other text")) is alarm
    made = book.get("", AlarmSpec("late", "late"))
    assert book.alarms["line.late"] is made
    with pytest.raises(AssertionError, match="twice"):
        book.add("filler", AlarmSpec("jam", "again"))
