"""Conditions bound to the process image: interlocks, permissives, starved, blocked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from controller.core.image import ProcessImage
from drivers.port import Value

Test = Callable[[Sequence[Value | None], Sequence[str | None]], bool | None]
"""A compiled expression over (values, bad): ``None`` when an input that it needs is BAD."""


class Condition:
    """An expression over the image. ``True``, ``False``, or ``None`` when it cannot be known."""

    __slots__ = ("_bad", "_image", "_slots", "_test", "_values", "text")

    def __init__(self, image: ProcessImage, text: str, test: Test, tags: Sequence[str]) -> None:
        self._image, self._test, self.text = image, test, text
        self._values, self._bad = image.values, image.bad
        self._slots = [image.layout.slots[t] for t in tags]

    def __call__(self) -> bool | None:
        """Whether it holds in this scan."""
        return self._test(self._values, self._bad)

    def bad(self) -> list[int]:
        """Slots of its inputs that are BAD now."""
        return [slot for slot in self._slots if self._bad[slot] is not None]

    def why(self) -> str:
        """Why it does not hold, in words: the BAD input, or the expression with the values it saw."""
        image = self._image
        for slot in self._slots:
            reason = image.bad[slot]
            if reason is not None:
                return f"{image.layout.tags[slot].name} is BAD: {reason}"
        seen = ", ".join(
            f"{image.layout.tags[s].name} = {shown(image.values[s], image.layout.tags[s].unit)}" for s in self._slots
        )
        return f"needs {self.text}; {seen}"


def shown(value: Value | None, unit: str = "") -> str:
    """A value as people read it."""
    if value is None:
        return "unknown"
    if isinstance(value, bool):
        return "on" if value else "off"
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return f"{text} {unit}" if unit else text


def explained(name: str, text: str, value: bool | None, evidence: str) -> str:
    """Why a condition of this name does not hold; an unknown one is not told as if it were known."""
    return f"{name} is not known: {evidence}" if value is None else f"{text} ({evidence})"


@dataclass(frozen=True, slots=True)
class Interlock:
    """Must hold while the station runs; ``otherwise`` is ``hold``, ``stop`` or ``abort``."""

    name: str
    condition: Callable[[], bool | None]
    otherwise: str
    text: str
    why: Callable[[], str]
    alarmed: bool = True
    """Whether losing it while it acts raises an alarm of its own (not where another alarm names the cause)."""

    def explain(self) -> str:
        """The operator's text, then the evidence; where an input is BAD, that and nothing about what it would say."""
        return explained(self.name, self.text, self.condition(), self.why())


@dataclass(frozen=True, slots=True)
class Permissive:
    """Must hold for Reset and Start."""

    name: str
    condition: Callable[[], bool | None]
    text: str
    why: Callable[[], str]

    def explain(self) -> str:
        """The operator's text, then the evidence; where an input is BAD, that and nothing about what it would say."""
        return explained(self.name, self.text, self.condition(), self.why())


class Debounce:
    """On- and off-delay of one condition (IEC 61131-3 TON and TOF in one), in ns."""

    __slots__ = ("_delay_ns", "_since_ns", "value")

    def __init__(self, delay_ns: int) -> None:
        self._delay_ns = delay_ns
        self._since_ns: int | None = None
        self.value = False

    def __call__(self, now: bool | None, now_ns: int) -> bool:
        """The delayed value, given the condition of this scan; an unknown one keeps it and restarts the delay."""
        if now is None or now == self.value:
            self._since_ns = None
        else:
            if self._since_ns is None:
                self._since_ns = now_ns
            if now_ns - self._since_ns >= self._delay_ns:
                self.value, self._since_ns = now, None
        return self.value
