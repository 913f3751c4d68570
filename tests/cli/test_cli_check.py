"""check and schema."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from hil import lines

BOTTLING = Path(lines.__file__).parent / "bottling"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(BOTTLING, tmp_path / "line", ignore=shutil.ignore_patterns("*.py", "__pycache__")))


def test_a_sound_line_says_what_it_is(cli) -> None:
    result = cli("check", BOTTLING / "line.yaml")
    assert (result.code, result.err) == (0, "")
    assert "infeed → filler → capper → labeler → checkweigher → packer" in result.out
    assert "requests per scan" in result.out
    data = json.loads(cli("check", BOTTLING / "line.yaml", "--json").out)
    assert data["ok"] is True
    facts = data["summary"]
    assert set(facts["plcs"]) == {"wet", "dry", "inspect"}
    assert facts["tags"] == sum(p["tags"] for p in facts["plcs"].values())
    assert facts["plcs"]["wet"]["requests"]["fast"] >= 1


def test_every_problem_with_file_line_and_hint(cli, folder: Path) -> None:
    text = (folder / "line.yaml").read_text(encoding="utf-8")
    text = text.replace("blocked: filler.blocked", "blocked: filler.bloked").replace("kind: capper", "kind: caper")
    (folder / "line.yaml").write_text(text, encoding="utf-8")
    wrong = [n for n, row in enumerate(text.splitlines(), 1) if "bloked" in row or "kind: caper" in row]
    result = cli("check", folder / "line.yaml")
    assert result.code == 1
    assert "filler.blocked" in result.out, "no hint at the right name"
    assert "2 errors" in result.out
    data = json.loads(cli("check", folder / "line.yaml", "--json").out)
    assert data["ok"] is False
    assert [p["line"] for p in data["problems"]] == wrong
    assert all(p["file"].endswith("line.yaml") and p["hint"] for p in data["problems"])


def test_a_recipe_outside_its_limits_is_found(cli, folder: Path) -> None:
    recipe = folder / "recipes" / "water_330.yaml"
    recipe.write_text(recipe.read_text(encoding="utf-8").replace("target: 330 g", "target: 3300 g"), encoding="utf-8")
    problems = json.loads(cli("check", folder / "line.yaml", "--json").out)["problems"]
    assert [Path(p["file"]).name for p in problems] == ["water_330.yaml"]


def test_endpoints_are_checked_too(cli, tmp_path: Path) -> None:
    endpoints = tmp_path / "ep.json"
    endpoints.write_text('{"wet": {"port": 70000}}', encoding="utf-8")
    assert cli("check", BOTTLING / "line.yaml", "--endpoints", endpoints).code == 1
    endpoints.write_text('{"wet": {"port": 1502}}', encoding="utf-8")
    assert cli("check", BOTTLING / "line.yaml", "--endpoints", endpoints).code == 0
    endpoints.write_text("[1", encoding="utf-8")
    broken = cli("check", BOTTLING / "line.yaml", "--endpoints", endpoints)
    assert (broken.code, str(endpoints) in broken.err) == (2, True)


def test_a_file_that_is_not_there_is_a_usage_error(cli, tmp_path: Path) -> None:
    for command in ("check", "run"):
        result = cli(command, tmp_path / "none.yaml")
        assert (result.code, str(tmp_path / "none.yaml") in result.err) == (2, True)
        result = cli(command, tmp_path)
        assert (result.code, "is a folder" in result.err) == (2, True)
        result = cli(command, BOTTLING / "line.yaml", "--endpoints", tmp_path / "none.json")
        assert (result.code, "hil serve" in result.err) == (2, True)


def test_schema_is_a_json_schema(cli) -> None:
    line, recipe = json.loads(cli("schema").out), json.loads(cli("schema", "recipe").out)
    assert {"line", "plcs", "stations"} <= set(line["properties"])
    assert {"recipe", "version", "parameters"} <= set(recipe["properties"])


def test_version_and_unknown_commands(cli) -> None:
    assert cli("--version").out.startswith("linewright ")
    assert cli("frobnicate").code == 2
