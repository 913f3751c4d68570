"""How problems are shown, and that the published JSON Schemas and the documentation are current."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from small_line import KINDS, LINE, changed, write

from controller.config import ConfigError, load
from controller.config.report import as_dicts, render
from controller.config.schema import recipe_schema, schema, text_of
from recipes.problem import Problem

DOCS = Path(__file__).parents[2] / "docs"


def test_render_shows_the_line_and_a_caret(tmp_path: Path) -> None:
    path = write(tmp_path, changed(LINE, ("infeed.amps < 2.6 A", "infeed.ampps < 2.6 A")))
    with pytest.raises(ConfigError) as caught:
        load(path, kinds=KINDS)
    text = render(caught.value.problems, caught.value.sources)
    lines = text.splitlines()
    assert lines[0] == str(path)
    source = next(n for n, line in enumerate(lines) if "motor: {require" in line)
    caret = lines[source + 1].index("^")
    assert lines[source][caret:].startswith("infeed.ampps <"), text
    assert 'hint: did you mean "infeed.amps"?' in text
    assert lines[-1] == "1 error, 0 warnings"


def test_render_groups_by_file_and_tells_warnings_apart() -> None:
    a, b = Problem("a.yaml", 2, 3, "wrong"), Problem("b.yaml", 1, 1, "odd", "look")
    text = render([a], {"a.yaml": "x\n\ty: 1\n", "b.yaml": "z"}, warnings=[b])
    assert text == (
        "a.yaml\n  2:3  error: wrong\n     2 | \ty: 1\n       | \t ^\n"
        "b.yaml\n  1:1  warning: odd\n     1 | z\n       | ^\n         hint: look\n"
        "1 error, 1 warning\n"
    )


def test_render_without_the_source_or_beyond_its_end() -> None:
    assert render([Problem("a", 9, 9, "wrong")], {"a": "x"}) == "a\n  9:9  error: wrong\n1 error, 0 warnings\n"


def test_json() -> None:
    (one,) = as_dicts([Problem("a", 1, 2, "what", "hint", "line.name")])
    assert json.loads(json.dumps(one)) == {
        "severity": "error", "file": "a", "line": 1, "column": 2, "path": "line.name", "what": "what", "hint": "hint",
    }  # fmt: skip


def test_committed_schemas_are_current() -> None:
    for name, data in (("line", schema()), ("recipe", recipe_schema())):
        committed = (DOCS / "schema" / f"{name}.schema.json").read_text(encoding="utf-8")
        assert committed == text_of(data), "run: python -m controller.config.schema docs/schema"


def test_documented_example_loads(tmp_path: Path) -> None:
    text = (DOCS / "configuration.md").read_text(encoding="utf-8")
    blocks = dict(re.findall(r"```(?:yaml|csv)\n# ([\w./]+)\n(.*?)```", text, re.DOTALL))
    assert set(blocks) == {"line.yaml", "tags.csv", "recipes/water_330.yaml"}
    (tmp_path / "recipes").mkdir()
    for name, content in blocks.items():
        (tmp_path / name).write_text(content, encoding="utf-8")
    line = load(tmp_path / "line.yaml")
    assert line.warnings == () and line.control_recipes.keys() == {"water_330"}


def test_every_unit_is_documented() -> None:
    from recipes.units import SYMBOLS

    text = (DOCS / "configuration.md").read_text(encoding="utf-8")
    assert [s for s in SYMBOLS if f"`{s}`" not in text] == []


def test_recipe_schema_names_what_is_required() -> None:
    assert recipe_schema()["required"] == ["recipe", "version", "product"]
