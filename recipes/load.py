"""Recipe files: text handed in, a master recipe out, every problem with its line."""

from __future__ import annotations

from recipes.document import read_yaml
from recipes.model import MasterRecipe, Quantity, RecipeError, RecipeFile, Setpoint
from recipes.validate import validate


def read_recipe(text: str, file: str) -> MasterRecipe:
    """The master recipe in ``text``; ``file`` is named in messages. Raises :class:`RecipeError`."""
    document = read_yaml(text, file)
    problems = list(document.problems)
    parsed: RecipeFile | None = None
    if document.data is not None:
        parsed, found = validate(RecipeFile, document)
        problems += [p for _, p in found]
    if problems or parsed is None:
        raise RecipeError(problems)
    setpoints: list[Setpoint] = []
    for station, parameters in parsed.parameters.items():
        for name, value in parameters.items():
            where = document.place(("parameters", station, name))
            if isinstance(value, Quantity):
                setpoints.append(Setpoint(station, name, value.value, value.unit, where))
            else:
                setpoints.append(Setpoint(station, name, value, "", where))
    return MasterRecipe(
        parsed.recipe,
        parsed.version,
        parsed.product,
        parsed.description,
        tuple(setpoints),
        document.place(("recipe",), key=True),
    )
