"""Whatever is done to the files, loading ends in a line or in a ConfigError with places inside the files."""

from __future__ import annotations

import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st
from small_line import KINDS, LINE, RECIPE, write

from controller.config import ConfigError, load
from controller.config.tagfile import read_tags

WORDS = (
    "", "~", "no", "010", "1:30", "2024-01-31", ".nan", "-.inf", "1e400", "[]", "{}", "[1, {a: b}]", "*x", "&x 1",
    "!!int x", "'", '"', "- a", "infeed", "infeed.run", "true", "-1", "99999999999999999999999", "a b", "\t", "é",
    "5 kg", "wet",
)  # fmt: skip


@st.composite
def broken(draw: st.DrawFn, text: str) -> str:
    """The text with a few of its words replaced, and lines lost, doubled or moved in or out."""
    lines = text.splitlines()
    for _ in range(draw(st.integers(1, 3))):
        n = draw(st.integers(0, len(lines) - 1))
        line = lines[n]
        match draw(st.sampled_from(("word", "lose", "double", "indent", "cut"))):
            case "word":
                parts = line.split(" ")
                at = draw(st.integers(0, len(parts) - 1))
                parts[at] = draw(st.sampled_from(WORDS)) + (parts[at][-1:] if draw(st.booleans()) else "")
                lines[n] = " ".join(parts)
            case "lose":
                lines[n] = ""
            case "double":
                lines.insert(n, line)
            case "indent":
                lines[n] = draw(st.sampled_from((line.strip(), "  " + line, line[2:])))
            case _:
                lines[n] = line[: draw(st.integers(0, len(line)))]
    return "\n".join(lines) + "\n"


@settings(deadline=None)  # the machine may be busy
@given(broken(LINE), st.one_of(st.just(RECIPE), broken(RECIPE)))
def test_any_damage_ends_in_problems_with_places(line: str, recipe: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = write(Path(folder), line, recipe)
        try:
            load(path, kinds=KINDS)
        except ConfigError as error:
            assert error.problems
            for problem in error.problems:
                text = error.sources[problem.file]
                assert 1 <= problem.line <= max(1, text.count("\n") + 1), problem
                assert problem.column >= 1 and problem.what, problem


@settings(deadline=None)  # the machine may be busy
@given(st.text(alphabet='namepltyrs,;\t"\n\r#.0123_:e-\x00é', max_size=200))
def test_any_csv_text_is_read_or_reported(text: str) -> None:
    for head in ("", "name,plc,address,type,scale\n"):
        found = read_tags(head + text, "t.csv")
        assert found.problems or found.tags or head
        assert all(p.file == "t.csv" and p.line >= 1 for p in found.problems)
