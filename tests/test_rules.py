"""Rules of the house, as tests: sizes, words, dead modules, the schema of documentation."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("controller", "drivers", "recipes", "hil")
SOURCES = sorted(p for package in PACKAGES for p in (ROOT / package).rglob("*.py"))
MAX_FILE = 560
MAX_FUNCTION = 75


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_files_and_functions_stay_readable(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.count("\n") <= MAX_FILE, f"{path}: a file is read in one sitting"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            size = (node.end_lineno or 0) - node.lineno + 1
            assert size <= MAX_FUNCTION, f"{path}:{node.lineno} {node.name}: {size} lines; a function fits on a screen"


def test_no_wait_for_and_no_bare_except() -> None:
    """wait_for swallows cancellation on Python 3.11; a bare except swallows it everywhere."""
    offenders = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in SOURCES
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if re.search(r"asyncio\.wait_for\(|^\s*except( BaseException)?:", line)
    ]
    assert not offenders


def test_every_module_is_used() -> None:
    """A module that nobody imports, and that is no entry point, is dead."""
    texts = {p: p.read_text(encoding="utf-8") for p in SOURCES}
    tests = "\n".join(p.read_text(encoding="utf-8") for p in (ROOT / "tests").rglob("*.py"))
    everything = "\n".join(texts.values()) + (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    dead = []
    for path in SOURCES:
        if path.name in ("__init__.py", "__main__.py"):
            continue
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        package, _, name = module.rpartition(".")
        used = re.search(rf"\b{re.escape(module)}\b", everything) or re.search(
            rf"from {re.escape(package)} import [^\n]*\b{name}\b", everything
        )
        if not used:
            dead.append(module + (" (used by tests only)" if module in tests else ""))
    assert not dead


def test_links_in_the_documentation_lead_somewhere() -> None:
    broken = []
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8")):
            if "://" not in target and not (page.parent / target).exists():
                broken.append(f"{page.relative_to(ROOT)}: {target}")
    assert not broken
