"""A parsed document against a pydantic model: errors with their lines, in words, with the nearest names."""

from __future__ import annotations

import json
import types
import typing
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from recipes.document import Document
from recipes.problem import Path, Place, Problem, nearest, problem

M = TypeVar("M", bound=BaseModel)
PlaceOf = Callable[[Path, bool], Place]
"""Where the value at a path stands; with ``True``, where its key stands."""
_SCALARS = {"bool", "int", "float", "str"}


def validate(model: type[M], document: Document) -> tuple[M | None, list[tuple[Path, Problem]]]:
    """The model of the document's data, or ``None`` and every problem with the path to blame."""
    return validate_data(model, document.data, lambda path, key: document.place(path, key=key))


def validate_data(model: type[M], data: Any, place: PlaceOf) -> tuple[M | None, list[tuple[Path, Problem]]]:
    """As :func:`validate`, for data that come from elsewhere.

    Strict: a text is never taken for a number, nor a number for a text.
    """
    try:
        return model.model_validate_json(json.dumps(data), strict=True), []
    except ValidationError as error:
        details = error.errors(include_url=False)
    found: dict[Path, list[Any]] = {}
    for detail in details:
        found.setdefault(_path_in(data, detail["loc"]), []).append(detail)
    problems: list[tuple[Path, Problem]] = []
    for path, group in found.items():
        if len(group) > 1 and {d["loc"][-1] for d in group} <= _SCALARS:
            what, hint = f'"{path[-1]}" must be a number, a text or true/false', ""
            problems.append((path, problem(place(path, False), what, hint, path)))
            continue
        for detail in group:
            problems.append(_explain(model, detail, path, place))
    return None, problems


def _path_in(data: Any, loc: Sequence[int | str]) -> Path:
    """pydantic's location as a path into the data: without union tags and marks."""
    path: list[str | int] = []
    here = data
    for n, part in enumerate(loc):
        there = part in here if isinstance(here, dict) else isinstance(here, list) and isinstance(part, int)
        if there and (isinstance(here, dict) or int(part) < len(here)):
            here = here[part]
        elif n != len(loc) - 1 or not isinstance(here, dict) or part == "[key]" or part in _SCALARS:
            continue  # a union's tag or a mark; else it is what is missing
        path.append(part)
    return tuple(path)


def _explain(model: type[BaseModel], detail: Any, path: Path, place: PlaceOf) -> tuple[Path, Problem]:
    kind, loc, context = detail["type"], detail["loc"], detail.get("ctx", {})
    name = path[-1] if path else "the file"
    if kind == "missing":
        hint = f'add "{name}: …"'
        return path[:-1], problem(place(path[:-1], True), f'"{name}" is missing', hint, path)
    if kind == "extra_forbidden":
        hint = nearest(str(name), _keys_at(model, loc[:-1])) or "remove it"
        return path, problem(place(path, True), f'unknown key "{name}"', hint, path)
    if loc and loc[-1] == "[key]":
        hint = "lower-case letters, digits and _, beginning with a letter, at most 40"
        if "\\." in str(context.get("pattern", "")):
            hint = f"a tag is written group.point, each of {hint}"
        elif kind == "literal_error":
            hint = nearest(str(name), _options(context.get("expected", "")))
        return path, problem(place(path, True), f'"{name}" is not a valid name here', hint, path)
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        key = str(context["discriminator"]).strip("'")
        if kind == "union_tag_not_found":
            return path, problem(place(path, True), f'"{name}" does not say its {key}', f"add {key}: …", path)
        path, hint = (*path, key), nearest(str(context["tag"]), _options(str(context["expected_tags"])))
        return path, problem(place(path, False), f"unknown {key} {_shown(context['tag'])}", hint, path)
    what, hint = _words(detail, name, context)
    return path, problem(place(path, False), what, hint, path)


def _words(detail: Any, name: str | int, context: dict[str, Any]) -> tuple[str, str]:
    kind, given = detail["type"], detail.get("input")
    label = f'"{name}"' if isinstance(name, str) else f"item {name}"
    if kind in ("literal_error", "enum"):
        options = _options(str(context.get("expected", "")))
        return f"{label} cannot be {_shown(given)}", nearest(str(given), options) or f"one of {', '.join(options)}"
    if kind == "string_pattern_mismatch":
        pattern = str(context["pattern"])
        if pattern.startswith("^[a-z]"):
            dotted = "group.point, " if "\\." in pattern else ""
            return (
                f"{_shown(given)} is not a valid name",
                f"{dotted}lower-case letters, digits and _, letter first",
            )
        return f"{label} cannot be {_shown(given)}", f"it must match {pattern}"
    if given is None:
        return f"{label} is empty", "give it content or remove the key"
    if kind == "string_type":
        return f"{label} must be a text, not {_shown(given)}", f'quote it: "{given}"' if _is_number(given) else ""
    if kind in ("int_type", "int_from_float", "float_type") and isinstance(given, str):
        return (
            f"{label} must be a number, not {_shown(given)}",
            "write the number alone, without quotes or unit",
        )
    message = str(detail["msg"])
    message = message.removeprefix("Input should be ").removeprefix("Value error, ")
    if message == detail["msg"]:
        return f"{label}: {message[:1].lower()}{message[1:]}", ""
    return f"{label} must be {message}, not {_shown(given)}", ""


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    if isinstance(value, bool):
        return str(value).lower()
    text = str(value)
    text = text if len(text) <= 60 else text[:57] + "…"
    return f'"{text}"' if isinstance(value, str) else text


def _options(expected: str) -> list[str]:
    """The names in pydantic's "'a', 'b' or 'c'"."""
    return [part.strip().strip("'") for part in expected.replace(" or ", ", ").split(",") if part.strip()]


def _keys_at(model: type[BaseModel], loc: Sequence[int | str]) -> list[str]:
    """The keys that the model at a location allows."""
    here = _flat(model)
    for part in loc:
        tagged = [a for a in here if _is_model(a) and part in _tags(a)]
        here = tagged or [b for a in here for b in _below(a, part)]
    return [name for a in here if _is_model(a) for name in a.model_fields]


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _tags(model: Any) -> set[Any]:
    """What pydantic may call this model in a location inside a tagged union."""
    tags: set[Any] = {model.__name__}
    for field in model.model_fields.values():
        if typing.get_origin(field.annotation) is typing.Literal and field.is_required():
            tags.update(typing.get_args(field.annotation))
    return tags


def _flat(annotation: Any) -> list[Any]:
    origin = typing.get_origin(annotation)
    if origin is typing.Annotated:
        return _flat(typing.get_args(annotation)[0])
    if origin in (typing.Union, types.UnionType):
        return [b for a in typing.get_args(annotation) for b in _flat(a)]
    return [annotation]


def _below(annotation: Any, part: int | str) -> list[Any]:
    if _is_model(annotation):
        field = annotation.model_fields.get(part)
        return [] if field is None else _flat(field.annotation)
    args = typing.get_args(annotation)
    origin = typing.get_origin(annotation)
    if origin is dict:
        return _flat(args[1])
    if origin in (tuple, list):
        return _flat(args[0])
    return []
