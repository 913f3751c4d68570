"""JSON Schema of line.yaml and of recipes, for editors that complete and check while one types.

``python -m controller.config.schema docs/schema`` writes both files.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from controller.config.model import LineFile
from recipes.model import RecipeFile

_DRAFT = "https://json-schema.org/draft/2020-12/schema"


def schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of line.yaml."""
    return {"$schema": _DRAFT, **LineFile.model_json_schema(), "title": "Linewright line.yaml"}


def recipe_schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of a recipe file."""
    return {"$schema": _DRAFT, **RecipeFile.model_json_schema(), "title": "Linewright recipe"}


def text_of(data: dict[str, Any]) -> str:
    """A schema as it is written to a file."""
    return json.dumps(data, indent=2, ensure_ascii=False) + "\n"


def write(folder: Path) -> None:
    """Write line.schema.json and recipe.schema.json into ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "line.schema.json").write_text(text_of(schema()), encoding="utf-8")
    (folder / "recipe.schema.json").write_text(text_of(recipe_schema()), encoding="utf-8")


if __name__ == "__main__":
    write(Path(sys.argv[1] if len(sys.argv) > 1 else "docs/schema"))
