"""The condition language of line.yaml: ``filler.bowl_level >= 20 % and not filler.fault``.

``and``, ``or``, ``not``; ``== != < <= > >=`` (not chained); ``+ - * /`` and unary ``-``; parentheses;
``abs()``, ``min()``, ``max()``; true, false, texts in quotes, tags as ``group.point``; numbers with an optional
unit. A number with a unit is converted to the unit of the tag beside it; one without is in the tag's unit.

An :class:`Expr` is parsed, then checked against the tags, then compiled to a Python function. The function
answers ``None`` when any tag that the expression names is BAD, whatever the others say, and when arithmetic
has no answer (a division by zero, an overflow).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from controller.core.expr_check import Checker, Finding, Lookup, TagInfo
from controller.core.expr_tree import Binary, Call, Const, ExprError, Logic, Node, Ref, Unary, depth
from drivers.port import Value
from recipes.problem import nearest
from recipes.units import SYMBOLS, UNITS
