"""Types and units of a condition, and the conversion of its constants (see :mod:`controller.core.expr`)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from controller.core.expr_tree import COMPARISONS, Binary, Call, Const, Logic, Node, Ref, Unary, show
from drivers.port import DataType, Tag
from recipes.problem import nearest
from recipes.units import UnitError, convert, fits

Type = Literal["bool", "number", "text"]


@dataclass(frozen=True, slots=True)
class TagInfo:
    """What the checker must know of a tag; ``unit`` is a canonical symbol or empty."""

    type: Type
    unit: str = ""

    @classmethod
    def of(cls, tag: Tag) -> TagInfo:
        """What it must know of ``tag``."""
        kinds: dict[DataType, Type] = {DataType.BOOL: "bool", DataType.STRING: "text"}
        return cls(kinds.get(tag.type, "number"), tag.unit)


Lookup = Callable[[str], TagInfo | None]


class Finding(str):
    """A problem in a condition: a text that knows its ``column`` (from 1) and a ``hint``."""

    column: int
    hint: str

    def __new__(cls, what: str, column: int, hint: str = "") -> Finding:
        """``what`` is the text itself."""
        made = super().__new__(cls, what)
        made.column, made.hint = column, hint
        return made


@dataclass(frozen=True, slots=True)
class _Typed:
    """A node after checking. ``type`` is ``None`` after an error; ``unit`` is ``None`` for a bare number, which
    takes the unit of what stands beside it.
    """

    node: Node
    type: Type | None
    unit: str | None = None


_WORDS = {"bool": "true/false", "number": "a number", "text": "a text"}


class Checker:
    """Checks one expression; collects findings instead of stopping at the first."""

    def __init__(self, lookup: Lookup, names: Sequence[str] = ()) -> None:
        self._lookup, self._names = lookup, names
        self.findings: list[Finding] = []

    def condition(self, root: Node) -> Node:
        """Check a whole condition. The node returned has constants folded and converted; use it if no finding."""
        typed = self._visit(root)
        if typed.type not in ("bool", None):
            what = f"{show(root)} is {_WORDS[typed.type]}, not a condition"
            self._find(what, root.column, "compare it with something")
        return typed.node

    def _find(self, what: str, column: int, hint: str = "") -> None:
        self.findings.append(Finding(what, column, hint))

    def _visit(self, node: Node) -> _Typed:
        match node:
            case Const(value=bool()):
                return _Typed(node, "bool")
            case Const(value=str()):
                return _Typed(node, "text")
            case Const():
                return _Typed(node, "number", node.unit or None)
            case Ref():
                return self._ref(node)
            case Unary():
                return self._unary(node)
            case Binary() if node.op in COMPARISONS:
                return self._comparison(node)
            case Binary():
                return self._arithmetic(node)
            case Logic():
                done = [self._visit(n) for n in node.operands]
                for typed in done:
                    self._wants(typed, "bool", node.op)
                return _Typed(Logic(node.op, tuple(t.node for t in done), node.column), "bool")
            case Call():
                return self._call(node)

    def _ref(self, node: Ref) -> _Typed:
        info = self._lookup(node.tag)
        if info is None:
            self._find(f'unknown tag "{node.tag}"', node.column, nearest(node.tag, self._names))
            return _Typed(node, None)
        return _Typed(node, info.type, info.unit)

    def _unary(self, node: Unary) -> _Typed:
        done = self._visit(node.operand)
        made = Unary(node.op, done.node, node.column)
        if node.op == "not":
            self._wants(done, "bool", "not")
            return _Typed(made, "bool")
        if not self._wants(done, "number", "-"):
            return _Typed(made, None)
        if isinstance(done.node, Const) and not isinstance(done.node.value, str):
            return _Typed(Const(-done.node.value, done.node.unit, node.column), "number", done.unit)
        return _Typed(made, "number", done.unit)

    def _wants(self, typed: _Typed, wanted: Type, by: str) -> bool:
        if typed.type in (wanted, None):
            return typed.type is not None
        hint = ""
        if wanted == "bool":
            hint = "compare it with something"
        elif typed.type == "bool":
            hint = "a true/false value stands alone or with not"
        what = f"{by} needs {_WORDS[wanted]}, and {show(typed.node)} is {_WORDS[typed.type]}"
        self._find(what, typed.node.column, hint)
        return False

    def _comparison(self, node: Binary) -> _Typed:
        left, right = self._visit(node.left), self._visit(node.right)
        if left.type is not None and right.type is not None:
            if left.type != right.type:
                what = f"{show(left.node)} is {_WORDS[left.type]} and {show(right.node)} is {_WORDS[right.type]}"
                bool_too = "bool" in (left.type, right.type)
                hint = "write the true/false tag alone or with not" if bool_too else "compare like with like"
                self._find(what, node.column, hint)
            elif left.type == "number":
                left, right = self._unify(left, right, node.column)
            elif node.op not in ("==", "!="):
                self._find(f"{node.op} needs numbers", node.column, "use == or !=")
        return _Typed(Binary(node.op, left.node, right.node, node.column), "bool")

    def _arithmetic(self, node: Binary) -> _Typed:
        left, right = self._visit(node.left), self._visit(node.right)
        sound = [self._wants(left, "number", node.op), self._wants(right, "number", node.op)]
        if not all(sound):
            return _Typed(Binary(node.op, left.node, right.node, node.column), None)
        unit: str | None
        if node.op in ("+", "-"):
            left, right = self._unify(left, right, node.column)
            unit = left.unit if left.unit is not None else right.unit
        elif node.op == "*":
            if left.unit and right.unit:
                self._find(f"{left.unit} times {right.unit} has no unit here", node.column, "one must be a bare number")
            unit = left.unit or right.unit or (None if left.unit is None and right.unit is None else "")
        elif isinstance(right.node, Const) and right.node.value == 0:
            self._find("a division by zero", node.column, "the condition could never hold")
            return _Typed(node, None)
        elif right.unit:
            if left.unit:
                left, right = self._unify(left, right, node.column)
            else:
                self._find(f"dividing by {right.unit} has no unit here", node.column, "divide like by like")
            unit = ""
        else:
            unit = left.unit if left.unit is not None else right.unit
        return self._fold(Binary(node.op, left.node, right.node, node.column), unit)

    def _fold(self, node: Binary, unit: str | None) -> _Typed:
        """A constant for arithmetic on constants, so that it can still be converted as a whole."""
        a, b = node.left, node.right
        if not (isinstance(a, Const) and isinstance(b, Const)):
            return _Typed(node, "number", unit)
        x, y = a.value, b.value
        assert isinstance(x, int | float) and isinstance(y, int | float), "numbers by now"
        try:
            value = x + y if node.op == "+" else x - y if node.op == "-" else x * y if node.op == "*" else x / y
        except ArithmeticError:
            value = math.nan
        if not math.isfinite(value):
            self._find(f"{show(node)} has no answer", node.column, "it divides by zero or is too large")
            return _Typed(node, None)
        return _Typed(Const(value, unit or "", node.column), "number", unit)

    def _call(self, node: Call) -> _Typed:
        done = [self._visit(a) for a in node.args]
        sound = [self._wants(t, "number", f"{node.function}()") for t in done]
        made = Call(node.function, tuple(t.node for t in done), node.column)
        if not all(sound):
            return _Typed(made, None)
        lead = next((t for t in done if t.unit is not None and not isinstance(t.node, Const)), None)
        lead = lead or next((t for t in done if t.unit is not None), done[0])
        same = [self._unify(lead, t, node.column)[1] for t in done]
        values = [t.node.value for t in same if isinstance(t.node, Const) and not isinstance(t.node.value, str)]
        if len(values) == len(same):
            value = abs(values[0]) if node.function == "abs" else min(values) if node.function == "min" else max(values)
            return _Typed(Const(value, lead.unit or "", node.column), "number", lead.unit)
        return _Typed(Call(node.function, tuple(t.node for t in same), node.column), "number", lead.unit)

    def _unify(self, left: _Typed, right: _Typed, column: int) -> tuple[_Typed, _Typed]:
        """Bring two numbers to one unit by converting a constant; a finding when that is not possible."""
        if left.unit is None or right.unit is None or left.unit == right.unit:
            return left, right
        a, b = (f"{show(t.node)} {_in(t.unit)}" for t in (left, right))
        if not fits(left.unit, right.unit):
            constant = next((t for t in (right, left) if isinstance(t.node, Const)), None)
            other = left if constant is right else right
            hint = f"write it in {other.unit}" if constant and other.unit else "compare like with like"
            hint = "the tag has no unit: write the number alone" if constant and not other.unit else hint
            self._find(f"units do not fit: {a}, {b}", column, hint)
            return left, right
        try:
            if isinstance(right.node, Const):
                return left, _converted(right.node, left.unit)
            if isinstance(left.node, Const):
                return _converted(left.node, right.unit), right
        except UnitError as error:
            self._find(str(error), column)
            return left, right
        self._find(f"not in the same unit: {a}, {b}", column, "give both tags the same unit by their scale")
        return left, right


def _converted(node: Const, unit: str) -> _Typed:
    assert isinstance(node.value, int | float)
    return _Typed(Const(convert(node.value, node.unit, unit), unit, node.column), "number", unit)


def _in(unit: str | None) -> str:
    return f"is in {unit}" if unit else "has no unit"
