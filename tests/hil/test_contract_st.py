"""The Structured Text of docs/plc-contract.md, run: no value leaves its type, and it does what the contract says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
from hypothesis import given

from controller.runtime.bus_commands import valid_until
from drivers.port import DataType
from hil.plc.commands import Arrival, NumberedCommand

PAGE = Path(__file__).parents[2] / "docs" / "plc-contract.md"
TOP = 2**32
WORDS = {"AND": "and", "OR": "or", "NOT": "not", "TRUE": "True", "FALSE": "False", "<>": "!=", "=": "=="}


class Udint(int):
    """An unsigned integer of 32 bits that refuses to overflow."""

    def __new__(cls, value: int) -> Udint:
        assert 0 <= value < TOP, f"overflow: {value}"
        return super().__new__(cls, value)

    def __add__(self, other: int) -> Udint:
        return Udint(int(self) + other)

    def __sub__(self, other: int) -> Udint:
        return Udint(int(self) - other)


class Block:
    """A function block of the page: its variables by name; calling it is one cycle."""

    def __init__(self, name: str) -> None:
        text = re.sub(r"\(\*.*?\*\)", "", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
        found = re.search(rf"FUNCTION_BLOCK {name}\b(.*?)END_FUNCTION_BLOCK", text, re.DOTALL)
        assert found is not None, name
        head, _, body = found[1].rpartition("END_VAR")
        self.vars: dict[str, Any] = {}
        for names, kind, start in re.findall(r"([\w, ]+?)\s*:\s*(\w+)(?:\s*:=\s*(\w+))?;", head):
            for variable in names.split(","):
                self.vars[variable.strip()] = start == "TRUE" if kind == "BOOL" else Udint(0)
        self._code = compile(_python(body), name, "exec")

    def __call__(self, **inputs: int) -> dict[str, Any]:
        assert inputs.keys() <= self.vars.keys()
        self.vars |= {name: Udint(value) for name, value in inputs.items()}
        exec(self._code, {"Udint": Udint}, self.vars)
        return self.vars


def _python(body: str) -> str:
    """The few statements of the page as Python: assignments and IF."""
    lines, depth = [], 0
    for statement in re.findall(r"(?:ELS)?IF\b.*?THEN|ELSE|END_IF;|\w+ := .*?;", body, re.DOTALL):
        if statement == "END_IF;":
            depth -= 1
            continue
        keyword = statement.split()[0]
        if keyword in ("ELSIF", "ELSE"):
            depth -= 1
        if " := " in statement:
            target, _, value = statement.rstrip(";").partition(" := ")
            lines.append("    " * depth + f"{target} = {_expression(value)}")
            continue
        condition = _expression(statement.removeprefix(keyword).removesuffix("THEN"))
        lines.append(
            "    " * depth + {"IF": f"if {condition}:", "ELSIF": f"elif {condition}:", "ELSE": "else:"}[keyword]
        )
        depth += 1
    assert depth == 0
    return "\n".join(lines)


def _expression(text: str) -> str:
    text = re.sub(r"(?:UDINT#)?\b(\d+)\b", r"Udint(\1)", text)
    return re.sub(r"\b[A-Z]+\b|<>|(?<![<>])=", lambda m: WORDS.get(m[0], m[0]), " ".join(text.split()))


@given(st.sampled_from([0, 2**31, 1000]), st.integers(0, TOP - 1), st.lists(st.integers(0, 900), max_size=30))
def test_the_clock_uses_its_whole_type_whatever_the_tick_does(modulus: int, start: int, steps: list[int]) -> None:
    clock, wrap = Block("FB_LW_Clock"), modulus or TOP
    clock.vars["Clock"] = Udint(TOP - 1000)
    tick = start % wrap
    clock(Tick=tick, Modulus=modulus)
    passed = 0
    for step in steps:
        passed += step
        shown = clock(Tick=(tick + passed) % wrap, Modulus=modulus)["Clock"]
        assert shown == (TOP - 1000 + 120_000 + passed) % TOP, "retained, and 120 s ahead since the start"


@given(st.integers(0, TOP - 1), st.integers(0, 5000), st.integers(50, 60_000), st.integers(-100_000, 2**30))
def test_a_command_is_executed_in_time_or_dropped(clock: int, age_ms: int, valid_ms: int, after_ms: int) -> None:
    until = valid_until(clock, age_ms * 1_000_000, valid_ms, DataType.UDINT)
    now = (clock + age_ms + valid_ms + after_ms) % TOP
    block = Block("FB_LW_Command")
    block(Number=0, ValidUntil=0, Clock=clock)
    block(Number=9, ValidUntil=until, Clock=now)
    out = block(Number=9, ValidUntil=until, Clock=now)
    assert (out["Execute"], out["Dropped"], out["Ack"]) == (after_ms <= 0, after_ms > 0, 9)
    arrival = NumberedCommand().arrived(9, until, now)
    assert (arrival is Arrival.NEW) is (after_ms <= 0), "the virtual PLCs do the same"


NUMBERS = st.sampled_from([0, 1, 2, 3, 2**31, 2**31 + 2, TOP - 1])


@given(NUMBERS, st.lists(NUMBERS, max_size=40))
def test_every_number_is_executed_once_and_none_that_is_older(first: int, numbers: list[int]) -> None:
    """Against the rule in words: it stands for two cycles, is not 0, and is newer than the last."""
    block = Block("FB_LW_Command")
    block(Number=first, ValidUntil=100, Clock=0)
    last, before = first, first
    for number in numbers:
        executed = block(Number=number, ValidUntil=100, Clock=0)["Execute"]
        newer = last == 0 or 0 < (number - last) % TOP < TOP // 2
        counts = number == before and number != 0 and newer
        assert executed is counts
        before, last = number, number if counts else last


def test_a_number_that_stands_at_the_start_is_neither_executed_nor_acknowledged() -> None:
    block = Block("FB_LW_Command")
    for _ in range(5):
        out = block(Number=7, ValidUntil=100, Clock=0)
        assert (out["Execute"], out["Dropped"], out["Ack"]) == (False, False, 0)
    block(Number=8, ValidUntil=100, Clock=0)
    assert block(Number=8, ValidUntil=100, Clock=0)["Execute"]
    assert not block(Number=8, ValidUntil=100, Clock=0)["Execute"], "for one cycle"


def test_without_validity_no_command_is_too_late() -> None:
    block = Block("FB_LW_Command")
    block.vars["Validity"] = False
    block(Number=0, ValidUntil=0, Clock=5)
    block(Number=1, ValidUntil=0, Clock=5)
    assert block(Number=1, ValidUntil=0, Clock=5)["Execute"]
