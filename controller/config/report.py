"""Problems for people (with the line of the file and a caret) and for programs (plain dicts)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import groupby

from controller.config.problems import in_order
from recipes.problem import Problem

MAX_SOURCE = 160
"""Characters of a source line shown at most."""


def render(
    problems: Iterable[Problem],
    sources: Mapping[str, str] | None = None,
    warnings: Iterable[Problem] = (),
) -> str:
    """The problems as text, grouped by file, each with its source line and a caret under the column.

    ``sources`` are the texts as they were read (:attr:`ConfigError.sources`): what is shown is what was checked.
    """
    texts = dict(sources or {})
    warnings = tuple(warnings)
    marked = {id(w) for w in warnings}
    every = in_order((*problems, *warnings), tuple(texts))
    lines = {file: text.splitlines() for file, text in texts.items()}
    parts: list[str] = []
    for file, group in groupby(every, key=lambda p: p.file):
        parts.append(file)
        for p in group:
            parts += _one(p, lines.get(file, []), "warning" if id(p) in marked else "error")
    errors = len(every) - sum(id(p) in marked for p in every)
    parts.append(summary(errors, len(every) - errors))
    return "\n".join(parts) + "\n"


def summary(errors: int, warnings: int) -> str:
    """``2 errors, 1 warning``."""
    return f"{errors} error{'s' * (errors != 1)}, {warnings} warning{'s' * (warnings != 1)}"


def as_dicts(problems: Iterable[Problem], severity: str = "error") -> list[dict[str, str | int]]:
    """The problems as plain dicts for ``--json``."""
    return [
        {
            "severity": severity,
            "file": p.file,
            "line": p.line,
            "column": p.column,
            "path": p.path,
            "what": p.what,
            "hint": p.hint,
        }
        for p in problems
    ]


def _one(p: Problem, lines: list[str], severity: str) -> list[str]:
    parts = [f"  {p.line}:{p.column}  {severity}: {p.what}"]
    if 1 <= p.line <= len(lines):
        number = f"{p.line:>6} | "
        source = lines[p.line - 1]
        start = 0 if p.column <= MAX_SOURCE else p.column - MAX_SOURCE // 2
        shown = source[start : start + MAX_SOURCE]
        before = shown[: p.column - 1 - start]
        # Tabs stay tabs under the source, so that the caret stands where the column is.
        pad = "".join("\t" if c == "\t" else " " for c in before)
        parts += [number + shown, " " * (len(number) - 2) + "| " + pad + "^"]
    if p.hint:
        parts.append(f"         hint: {p.hint}")
    return parts
