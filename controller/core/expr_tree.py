"""The syntax tree of a condition (see :mod:`controller.core.expr`). Columns count from 1 in the expression's text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from drivers.port import Value

Arithmetic = Literal["+", "-", "*", "/"]
Comparison = Literal["==", "!=", "<", "<=", ">", ">="]
COMPARISONS: tuple[str, ...] = ("==", "!=", "<=", ">=", "<", ">")
FUNCTIONS = {"abs": (1, 1), "min": (2, 8), "max": (2, 8)}
"""Functions with the fewest and the most arguments that they take."""


class ExprError(ValueError):
    """The text is not a condition; says what is wrong at which column, and what to write instead."""

    def __init__(self, message: str, column: int, hint: str = "") -> None:
        self.message, self.column, self.hint = message, column, hint
        super().__init__(f"column {column}: {message}" + (f"; {hint}" if hint else ""))


@dataclass(frozen=True, slots=True)
class Const:
    """true, false, a text, or a number with its unit (canonical symbol, empty when none was written)."""

    value: Value
    unit: str
    column: int


@dataclass(frozen=True, slots=True)
class Ref:
    """A tag."""

    tag: str
    column: int


@dataclass(frozen=True, slots=True)
class Unary:
    """``not`` or ``-``."""

    op: Literal["not", "-"]
    operand: Node
    column: int


@dataclass(frozen=True, slots=True)
class Binary:
    """Arithmetic or a comparison; ``column`` is the operator's."""

    op: str
    left: Node
    right: Node
    column: int


@dataclass(frozen=True, slots=True)
class Logic:
    """``and`` or ``or`` over two or more."""

    op: Literal["and", "or"]
    operands: tuple[Node, ...]
    column: int


@dataclass(frozen=True, slots=True)
class Call:
    """A function's call."""

    function: str
    args: tuple[Node, ...]
    column: int


Node = Const | Ref | Unary | Binary | Logic | Call


def children(node: Node) -> tuple[Node, ...]:
    """The nodes directly below."""
    match node:
        case Unary():
            return (node.operand,)
        case Binary():
            return (node.left, node.right)
        case Logic():
            return node.operands
        case Call():
            return node.args
        case _:
            return ()


def show(node: Node) -> str:
    """The node as people write it."""
    match node:
        case Const(value=bool()):
            return str(node.value).lower()
        case Const(value=str()):
            return f'"{node.value}"'
        case Const():
            return f"{node.value} {node.unit}".rstrip()
        case Ref():
            return node.tag
        case Unary():
            return f"not {show(node.operand)}" if node.op == "not" else f"-{show(node.operand)}"
        case Binary():
            return f"({show(node.left)} {node.op} {show(node.right)})"
        case Logic():
            return "(" + f" {node.op} ".join(show(n) for n in node.operands) + ")"
        case Call():
            return f"{node.function}({', '.join(show(a) for a in node.args)})"
