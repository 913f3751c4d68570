"""The error of this room: everything that is wrong with a configuration, at once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from recipes.problem import Problem


class ConfigError(Exception):
    """The engineer's to mend. Carries all problems, in the order of files and lines, and the texts they are in."""

    def __init__(self, problems: Iterable[Problem], sources: Mapping[str, str] | None = None) -> None:
        self.sources: dict[str, str] = dict(sources or {})
        """Text of every file read, by the name used in the problems."""
        self.problems: tuple[Problem, ...] = in_order(problems, tuple(self.sources))
        super().__init__("\n".join(str(p) for p in self.problems))


def in_order(problems: Iterable[Problem], files: tuple[str, ...] = ()) -> tuple[Problem, ...]:
    """Without repetitions, ordered by file (those given first, in that order), line and column."""
    rank = {file: n for n, file in enumerate(files)}

    def key(p: Problem) -> tuple[int, str, int, int]:
        return rank.get(p.file, len(rank)), p.file, p.line, p.column

    once = {(p.file, p.line, p.column, p.what): p for p in problems}
    return tuple(sorted(once.values(), key=key))
