"""The condition language of line.yaml: ``filler.bowl_level >= 20 % and not filler.fault``.

``and``, ``or``, ``not``; ``== != < <= > >=`` (not chained); ``+ - * /`` and unary ``-``; parentheses;
``abs()``, ``min()``, ``max()``; true, false, texts in quotes, tags as ``group.point``; numbers with an optional
unit. A number with a unit is converted to the unit of the tag beside it; one without is in the tag's unit.

An :class:`Expr` is parsed, then checked against the tags, then compiled to a Python function. The function
answers ``None`` when any tag that the expression names is BAD, whatever the others say, and when arithmetic
has no answer (a division by zero, an overflow).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from controller.core.expr_check import Checker, Finding, Lookup, TagInfo
from controller.core.expr_tree import (
    COMPARISONS,
    FUNCTIONS,
    Binary,
    Call,
    Const,
    ExprError,
    Logic,
    Node,
    Ref,
    Unary,
    children,
)
from drivers.port import Value
from recipes.problem import nearest
from recipes.units import SYMBOLS, UNITS, canonical

__all__ = ["Expr", "ExprError", "Finding", "Lookup", "TagInfo", "Test", "parse"]

Test = Callable[[Sequence[Value | None], Sequence[str | None]], bool | None]
"""A compiled condition over the image's (values, bad)."""
MAX_TEXT = 2000
MAX_DEPTH = 40
"""Nesting of an expression at most; a sum of 40 terms is nested 40 deep, ``and``/``or`` of any number is one."""

_NUMBER = re.compile(r"\d+(?:\.\d+)?(?:[eE][+-]?\d+)?")
_WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(?:\.[A-Za-z0-9_]+)*")
_TAG = re.compile(r"[a-z][a-z0-9_]{0,39}\.[a-z][a-z0-9_]{0,39}")
_UNIT = re.compile(r"\s*(1/[a-z]+|[A-Za-z%‰°℃µμ·³]+(?:/[A-Za-z³][A-Za-z0-9³]*)?(?![\w.(]))")
_UNIT_ALONE = re.compile(r"\s*([A-Za-z%‰°℃µμ·³][A-Za-z%‰°℃µμ·³0-9]*)(?![\w.])")
_OPERATOR = re.compile(r"==|!=|<=|>=|[<>+\-*/(),]")
_INSTEAD = {
    "=": "write ==", "&&": "write and", "&": "write and", "||": "write or", "|": "write or", "!": "write not",
    "<>": "write !=", "≥": "write >=", "≤": "write <=", "≠": "write !=", "×": "write *", "^": "multiply instead",
}  # fmt: skip
_KEYWORDS = ("and", "or", "not", "true", "false")
TokenKind = Literal["number", "text", "word", "op", "end"]


@dataclass(frozen=True, slots=True)
class _Token:
    kind: TokenKind
    text: str
    column: int
    value: Value = ""
    unit: str = ""


class Expr:
    """A parsed condition."""

    __slots__ = ("_checked", "root", "tags", "text")

    def __init__(self, text: str, root: Node) -> None:
        self.text = text
        self.root = root
        self.tags: tuple[str, ...] = tuple(dict.fromkeys(_tags(root)))
        """The tags that it names, in order of first use."""
        self._checked: Node | None = None

    def __repr__(self) -> str:
        return f"Expr({self.text!r})"

    def check(self, lookup: Lookup, names: Sequence[str] = ()) -> list[str]:
        """What is wrong with it, given the tags: unknown ones, types and units that do not go together.

        ``lookup`` gives a tag's type and unit, or ``None``; ``names`` are the tags to suggest from. The items
        are :class:`Finding`: texts that know their column and a hint. Empty means that it can be compiled.
        """
        checker = Checker(lookup, names)
        checked = checker.condition(self.root)
        self._checked = None if checker.findings else checked
        return list(checker.findings)

    def compile(self, slots: Mapping[str, int], lookup: Lookup | None = None) -> Test:
        """A function of (values, bad), see the module. ``slots`` gives each tag's place in both.

        The expression must have passed :meth:`check`, or ``lookup`` is given and it is checked now. Raises
        :class:`ExprError` when it did not pass, ``KeyError`` for a tag without a slot.
        """
        if lookup is not None:
            findings = self.check(lookup)
            if findings:
                raise ExprError("; ".join(findings), 1)
        if self._checked is None:
            raise ExprError("not checked against the tags", 1, "call check() first, or hand in a lookup")
        tags = tuple(dict.fromkeys(_tags(self._checked)))
        return _generate(self._checked, [slots[t] for t in self.tags], {t: slots[t] for t in tags})


def parse(text: str) -> Expr:
    """Parse a condition. Raises :class:`ExprError` with the column (from 1)."""
    if len(text) > MAX_TEXT:
        raise ExprError(f"longer than {MAX_TEXT} characters", MAX_TEXT, "split it")
    return Expr(text, _Parser(_tokens(text)).whole())


def _tags(node: Node) -> list[str]:
    if isinstance(node, Ref):
        return [node.tag]
    return [tag for child in children(node) for tag in _tags(child)]


def _tokens(text: str) -> list[_Token]:
    tokens: list[_Token] = []
    at = 0
    while at < len(text):
        if text[at].isspace():
            at += 1
            continue
        column = at + 1
        if match := _NUMBER.match(text, at):
            token, at = _number(text, match, column)
        elif match := _WORD.match(text, at):
            token, at = _Token("word", match.group(), column), match.end()
        elif text[at] in "\"'":
            end = text.find(text[at], at + 1)
            if end < 0:
                raise ExprError("a text without its closing quote", column, f"add {text[at]}")
            token, at = _Token("text", text[at : end + 1], column, text[at + 1 : end]), end + 1
        elif (match := _OPERATOR.match(text, at)) and text[at : at + 2] != "<>":
            token, at = _Token("op", match.group(), column), match.end()
        else:
            wrong = next((w for w in (text[at : at + 2], text[at]) if w in _INSTEAD), text[at])
            hint = _INSTEAD.get(wrong, "a number is written 0.5" if wrong == "." else "")
            raise ExprError(f'"{wrong}" is not part of a condition', column, hint)
        tokens.append(token)
    tokens.append(_Token("end", "the end", len(text) + 1))
    return tokens


def _number(text: str, match: re.Match[str], column: int) -> tuple[_Token, int]:
    digits, at = match.group(), match.end()
    value: int | float = int(digits) if digits.isdigit() and len(digits) < 20 else float(digits)
    if not math.isfinite(value):
        raise ExprError(f"{digits} is too large", column)
    unit = _UNIT.match(text, at)
    found = unit.group(1) if unit else ""
    if unit and found in UNITS:
        return _Token("number", digits, column, value, canonical(found)), unit.end()
    alone = None if "/" in found else _UNIT_ALONE.match(text, at)
    symbol = alone.group(1) if alone else found
    if alone and symbol in UNITS:
        return _Token("number", digits, column, value, canonical(symbol)), alone.end()
    if symbol and symbol not in _KEYWORDS and not (symbol.lower() in _KEYWORDS or "." in symbol):
        start = (alone or unit or match).start(1 if alone or unit else 0) + 1
        raise ExprError(f'unknown unit "{found or symbol}"', start, nearest(found or symbol, SYMBOLS))
    return _Token("number", digits, column, value), at


class _Parser:
    """Recursive descent, one method per level of precedence, loosest first."""

    def __init__(self, tokens: list[_Token]) -> None:
        self._tokens = tokens
        self._at = 0
        self._depth = 0

    def whole(self) -> Node:
        node = self._or()
        token = self._now
        if token.kind != "end":
            raise self._unexpected(token, "an operator, and or or")
        return self._limited(node)

    @property
    def _now(self) -> _Token:
        return self._tokens[self._at]

    def _take(self, *texts: str, kind: TokenKind = "op") -> _Token | None:
        token = self._now
        if token.kind == kind and token.text in texts:
            self._at += 1
            return token
        return None

    def _or(self) -> Node:
        return self._logic("or", self._and)

    def _and(self) -> Node:
        return self._logic("and", self._not)

    def _logic(self, word: Literal["and", "or"], below: Callable[[], Node]) -> Node:
        operands = [below()]
        column = 0
        while token := self._take(word, kind="word"):
            column = column or token.column
            operands.append(below())
        return operands[0] if len(operands) == 1 else Logic(word, tuple(operands), column)

    def _not(self) -> Node:
        if token := self._take("not", kind="word"):
            self._down(token)
            operand = self._not()
            self._depth -= 1
            return Unary("not", operand, token.column)
        return self._comparison()

    def _comparison(self) -> Node:
        left = self._sum()
        token = self._take(*COMPARISONS)
        if token is None:
            return left
        node = Binary(token.text, left, self._sum(), token.column)
        if again := self._take(*COMPARISONS):
            raise ExprError("comparisons cannot be chained", again.column, "write a < b and b < c")
        return node

    def _sum(self) -> Node:
        node = self._product()
        while token := self._take("+", "-"):
            node = Binary(token.text, node, self._product(), token.column)
        return node

    def _product(self) -> Node:
        node = self._minus()
        while token := self._take("*", "/"):
            node = Binary(token.text, node, self._minus(), token.column)
        return node

    def _minus(self) -> Node:
        if token := self._take("-"):
            self._down(token)
            operand = self._minus()
            self._depth -= 1
            return Unary("-", operand, token.column)
        return self._atom()

    def _atom(self) -> Node:
        token = self._now
        self._at += 1
        if token.kind in ("number", "text"):
            return Const(token.value, token.unit, token.column)
        if token.kind == "op" and token.text == "(":
            self._down(token)
            node = self._or()
            self._close(token)
            return node
        if token.kind == "word":
            return self._word(token)
        raise self._unexpected(token, "a tag, a number or (")

    def _word(self, token: _Token) -> Node:
        if token.text in ("true", "false"):
            return Const(token.text == "true", "", token.column)
        if _TAG.fullmatch(token.text):
            return Ref(token.text, token.column)
        if token.text in FUNCTIONS:
            return self._call(token)
        if token.text.lower() in _KEYWORDS:
            hint = f"write {token.text.lower()} in small letters" if token.text != token.text.lower() else ""
            raise ExprError(f'"{token.text}" cannot stand here', token.column, hint)
        if "(" in (self._now.text, token.text):
            raise ExprError(f'unknown function "{token.text}"', token.column, nearest(token.text, FUNCTIONS))
        hint = "a tag is written group.point in lower-case letters; a text stands in quotes"
        raise ExprError(f'"{token.text}" is neither a tag nor a word of the language', token.column, hint)

    def _call(self, name: _Token) -> Node:
        opening = self._take("(")
        if opening is None:
            raise ExprError(f"{name.text} is a function", name.column, f"write {name.text}(…)")
        self._down(opening)
        args = [self._sum()]
        while self._take(","):
            args.append(self._sum())
        self._close(opening)
        fewest, most = FUNCTIONS[name.text]
        if not fewest <= len(args) <= most:
            count = str(fewest) if fewest == most else f"{fewest} to {most}"
            raise ExprError(f"{name.text}() takes {count} numbers, not {len(args)}", name.column)
        return Call(name.text, tuple(args), name.column)

    def _close(self, opening: _Token) -> None:
        if not self._take(")"):
            if self._now.kind == "end":
                raise ExprError("a ( without its )", opening.column, "add )")
            raise self._unexpected(self._now, "an operator or )")
        self._depth -= 1

    def _down(self, token: _Token) -> None:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise ExprError(f"nested more than {MAX_DEPTH} deep", token.column, "split it")

    def _limited(self, root: Node) -> Node:
        level, deep = [root], 0
        while level:
            deep += 1
            if deep > MAX_DEPTH:
                raise ExprError(f"nested more than {MAX_DEPTH} deep", level[0].column, "split it")
            level = [child for node in level for child in children(node)]
        return root

    def _unexpected(self, token: _Token, wanted: str) -> ExprError:
        if token.kind == "end":
            return ExprError("the condition ends too early", token.column, f"here must follow {wanted}")
        hint = f"here must follow {wanted}"
        if token.text == ",":
            hint = "decimals are written with a point"
        elif token.text.lower() in _KEYWORDS and token.text not in _KEYWORDS:
            hint = f"write {token.text.lower()} in small letters"
        return ExprError(f'"{token.text}" cannot stand here', token.column, hint)


def _finite(value: Any) -> Any:
    """The value, or OverflowError when arithmetic ran out of the doubles (inf, NaN)."""
    if value - value != 0:
        raise OverflowError
    return value


def _generate(root: Node, used: Sequence[int], slots: Mapping[str, int]) -> Test:
    """Python for a checked tree. Only numbers, quoted texts, operators of ours and slot numbers enter it."""
    lines = ["def test(v, b):"]
    if used:
        lines += [" if " + " or ".join(f"b[{s}] is not None" for s in used) + ":", "  return None"]
    code = _code(root, slots)
    if "/" in code or "_finite" in code:
        lines += [" try:", f"  return {code}", " except ArithmeticError:", "  return None"]
    else:
        lines.append(f" return {code}")
    scope: dict[str, Any] = {"__builtins__": {}, "abs": abs, "min": min, "max": max}
    scope["ArithmeticError"], scope["_finite"] = ArithmeticError, _finite
    exec("\n".join(lines), scope)
    made: Test = scope["test"]
    return made


def _code(node: Node, slots: Mapping[str, int]) -> str:
    match node:
        case Const():
            return repr(node.value)
        case Ref():
            return f"v[{slots[node.tag]}]"
        case Unary():
            return f"({'not ' if node.op == 'not' else '-'}{_code(node.operand, slots)})"
        case Binary() if node.op in COMPARISONS:
            return f"({_operand(node.left, slots)} {node.op} {_operand(node.right, slots)})"
        case Binary():
            return f"({_code(node.left, slots)} {node.op} {_code(node.right, slots)})"
        case Logic():
            return "(" + f" {node.op} ".join(_code(n, slots) for n in node.operands) + ")"
        case Call():
            return f"{node.function}({', '.join(_operand(a, slots) for a in node.args)})"


def _operand(node: Node, slots: Mapping[str, int]) -> str:
    code = _code(node, slots)
    return f"_finite({code})" if isinstance(node, Binary) else code
