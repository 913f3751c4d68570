"""Reads a line's files and returns a :class:`LineConfig`, or raises with everything that is wrong."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from controller.config.arrays import ArrayError, element_names, expand
from controller.config.check import check
from controller.config.check_tags import check_endpoints, tag_plcs
from controller.config.context import Context
from controller.config.kinds import KindInfo
from controller.config.line import LineConfig
from controller.config.model import LineFile, TagModel
from controller.config.overrides import Overrides, override
from controller.config.plcs import ModbusOptions
from controller.config.problems import ConfigError, in_order
from controller.config.tagfile import read_tags
from recipes.bind import bind
from recipes.document import Document, read_yaml
from recipes.load import read_recipe
from recipes.model import ControlRecipe, MasterRecipe, RecipeError
from recipes.problem import Path as DataPath
from recipes.problem import Place, Problem, nearest, problem
from recipes.validate import validate_data

MAX_BYTES = 4_000_000
"""Bytes of one file at most."""
_ITEMS = ("interlocks", "permissives", "alarms", "parameters", "sequences")
_STAND_IN = "unnamed"
_STAND_INS: Mapping[str, Mapping[str, str | int]] = {
    "plcs": {"driver": "modbus_tcp", "host": "unnamed", "unit": 1},
    "stations": {"kind": "unnamed"},
}
"""What takes the place of the only PLC or station while it is broken, so that the rest is checked as well."""


def load(
    path: Path,
    overrides: Mapping[str, Mapping[str, Any]] | None = None,
    kinds: Mapping[str, KindInfo] | None = None,
) -> LineConfig:
    """Load a line from ``path`` (line.yaml), its tag files and its recipes.

    ``overrides`` replaces fields of PLCs, ``{"wet": {"host": "127.0.0.1", "port": 5020}}``, after the files
    themselves have been checked. Without ``kinds`` station kinds, I/O points and settings are not checked.
    Raises :class:`ConfigError` with all problems, unreadable files among them.
    """
    return _Load(Path(path), kinds).run(overrides or {})


class _Load:
    """One loading: the files read so far, the problems found so far."""

    def __init__(self, path: Path, kinds: Mapping[str, KindInfo] | None) -> None:
        self._path, self._kinds = path, kinds
        self._problems: list[Problem] = []
        self._sources: dict[str, str] = {}
        self._hash = hashlib.sha256()
        self._models: dict[str, TagModel] = {}
        self._tag_places: dict[DataPath, Place] = {}
        self._broken: set[DataPath] = set()
        self._array_of: dict[str, str] = {}
        self._document = Document(str(path))

    def run(self, overrides: Mapping[str, Mapping[str, Any]]) -> LineConfig:
        text = self._read(self._path, Place(str(self._path), 1, 1))
        if text is not None:
            self._document = read_yaml(text, str(self._path))
            self._problems += self._document.problems
        file = self._parse()
        if file is None:
            raise self._error()
        self._models.update(file.tags)
        for n, name in enumerate(file.tag_files):
            self._read_tag_file(name, self._document.place(("tag_files", n)))
        if ("tag_files",) in self._broken:  # every tag of the missing file would only be called unknown
            raise self._error()
        self._expand_arrays(file)
        context = Context(
            file=file,
            place=self._place,
            inside=self._document.inside,
            models=self._models,
            kinds=self._kinds,
            array_of=self._array_of,
            broken=self._broken,
            errors=self._problems,
        )
        check(context)
        recipes, control_recipes = self._recipes(context)
        if self._problems:
            raise self._error()
        if overrides:
            context.file = file = self._override(context, overrides)
        return LineConfig(
            file=file,
            path=self._path,
            tags=context.tags,
            tag_plc=tag_plcs(file, self._models),
            exprs=context.exprs,
            specs=tuple(context.specs),
            recipes=recipes,
            control_recipes=control_recipes,
            config_hash=self._hash.hexdigest(),
            warnings=in_order(context.warnings, tuple(self._sources)),
            sources=self._sources,
            where=self._where,
        )

    def _error(self) -> ConfigError:
        """All problems, but where YAML itself already reads something else than is meant, only that."""
        said = {(p.file, p.line, p.column): p for p in reversed(self._document.problems)}
        problems = [p for p in self._problems if said.get((p.file, p.line, p.column), p) is p]
        return ConfigError(problems, self._sources)

    def _where(self, *path: str | int) -> tuple[str, int]:
        place = self._place(path, True)
        return place.file, place.line

    def _place(self, path: DataPath, key: bool = False, /) -> Place:
        if path[:1] == ("tags",) and len(path) > 1 and path[1] in self._array_of:
            path = ("tags", self._array_of[str(path[1])], *path[2:])
        if path[:2] in self._tag_places:
            return self._tag_places.get(path[:3]) or self._tag_places[path[:2]]
        return self._document.place(path, key=key)

    def _read(self, path: Path, asked: Place) -> str | None:
        """The text of a file; a problem at the place that asks for it when it cannot be read."""
        name = str(path)
        try:
            with path.open("rb") as file:
                data = file.read(MAX_BYTES + 1)
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            self._problems.append(problem(asked, f"cannot read {name}: {reason}", "check name and rights"))
            return None
        if len(data) > MAX_BYTES:
            self._problems.append(problem(asked, f"{name} is larger than {MAX_BYTES} bytes", "is it the right file?"))
            return None
        self._hash.update(len(data).to_bytes(8, "big") + data)
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            line = data.count(b"\n", 0, error.start) + 1
            what = f"not UTF-8: byte 0x{data[error.start]:02x} cannot be read"
            self._problems.append(problem(Place(name, line, 1), what, 'save the file as "UTF-8"'))
            return None
        self._sources[name] = text
        return text

    def _parse(self) -> LineFile | None:
        """The file as a model. What is broken is reported and left out, so that the rest is checked as well."""
        data = copy.deepcopy(self._document.data)
        stands_in: set[str] = set()
        first = True
        for _ in range(8):
            if not isinstance(data, dict):
                if self._document.data is not None:
                    place = Place(str(self._path), 1, 1)
                    what = "the file must be a mapping with line:, plcs:, tags: and stations:"
                    self._problems.append(problem(place, what, "see docs/configuration.md"))
                return None
            file, found = validate_data(LineFile, data, self._place)
            if file is not None:
                return file.model_copy(update={part: {} for part in stands_in})
            if first:
                self._problems += [p for _, p in found]
            first = False
            for path, _ in found:
                if path:
                    self._remove(data, self._unit_of(path))
                else:
                    return None
            for part, item in _STAND_INS.items():
                if data.get(part) == {} and any(path[:1] == (part,) for path in self._broken):
                    data[part] = {_STAND_IN: dict(item)}
                    stands_in.add(part)
        return None

    @staticmethod
    def _unit_of(path: DataPath) -> DataPath:
        """The smallest part of the file around ``path`` that can be left out without misleading later checks."""
        if path[0] in ("tags", "plcs", "scan_classes"):
            return path[:2]
        if path[0] == "stations":
            return path[:4] if len(path) >= 4 and path[2] in _ITEMS else path[:2]
        return path[:2] if path[0] == "line" else path[:1]

    def _remove(self, data: dict[str, Any], path: DataPath) -> None:
        self._broken.add(path)
        here: Any = data
        for part in path[:-1]:
            here = here.get(part) if isinstance(here, dict) else None
        if isinstance(here, dict):
            here.pop(path[-1], None)
        if path == ("line", "name"):
            data["line"]["name"] = "unnamed"

    def _read_tag_file(self, name: str, asked: Place) -> None:
        path = self._path.parent / name
        if str(path) in self._sources:
            self._problems.append(problem(asked, f"the file {name} is named twice", "remove one"))
            return
        text = self._read(path, asked)
        if text is None:
            self._broken.add(("tag_files",))
            return
        found = read_tags(text, str(path))
        self._problems += found.problems
        if found.problems and not found.tags:
            self._broken.add(("tag_files",))
        self._broken |= {("tags", tag) for tag in found.broken}
        for tag, model in found.tags.items():
            if tag in self._models:
                first = self._place(("tags", tag), True)
                what = f'tag "{tag}" is given twice'
                hint = f"first at {first.file}:{first.line}: remove one"
                self._problems.append(problem(found.places["tags", tag], what, hint))
                continue
            self._models[tag] = model
            self._tag_places |= {p: place for p, place in found.places.items() if p[:2] == ("tags", tag)}

    def _expand_arrays(self, file: LineFile) -> None:
        """Put the tags of an array in its place. An array that cannot be is told here or with its address."""
        models: dict[str, TagModel] = {}
        for name, model in self._models.items():
            if model.array is None:
                models[name] = model
                continue
            elements: dict[str, TagModel] = {}
            asked = self._place(("tags", name, "array"))
            try:
                if not isinstance(file.plcs.get(model.plc), ModbusOptions):
                    models[name] = model
                else:
                    elements = expand(name, model)
            except ArrayError as error:
                self._problems.append(problem(asked, str(error), error.hint))
            if not elements:
                self._broken |= {("tags", element) for element in (name, *element_names(name, model.array))}
            for element in elements:
                if element in self._models:
                    first = self._place(("tags", element), True)
                    what = f'tag "{element}" is given twice: once by the array {name}'
                    self._problems.append(problem(asked, what, f"the other is at {first.file}:{first.line}"))
            self._array_of |= dict.fromkeys(elements.keys() - self._models.keys(), name)
            models |= elements
        self._models = models

    def _recipes(self, context: Context) -> tuple[dict[str, MasterRecipe], dict[str, ControlRecipe]]:
        file = context.file
        folder = self._path.parent / file.recipes
        asked = self._place(("recipes",))
        masters: dict[str, MasterRecipe] = {}
        bound: dict[str, ControlRecipe] = {}
        if not folder.is_dir():
            if self._document.has(("recipes",)):
                self._problems.append(problem(asked, f"the recipe folder {folder} does not exist", "create it"))
            elif context.specs:
                context.warn(("recipes",), f"there is no recipe folder {folder}", "the line cannot load a product")
        unreadable = False
        for path in sorted(p for p in folder.glob("*") if p.suffix in (".yaml", ".yml")):
            text = self._read(path, asked)
            try:
                master = read_recipe(text, str(path)) if text is not None else None
            except RecipeError as error:
                self._problems += error.problems
                master = None
            if master is None:
                unreadable = True
                continue
            if master.id in masters:
                other = masters[master.id].where
                what = f'recipe "{master.id}" is given twice'
                self._problems.append(problem(master.where, what, f"first at {other.file}:{other.line}"))
                continue
            masters[master.id] = master
            self._bind(master, context, bound)
        start = file.line.recipe
        if start is not None and start not in masters and not unreadable:
            hint = nearest(start, masters, "recipe")
            self._problems.append(problem(self._place(("line", "recipe")), f'unknown recipe "{start}"', hint))
        return masters, bound

    def _bind(self, master: MasterRecipe, context: Context, bound: dict[str, ControlRecipe]) -> None:
        """Bind, leaving out what belongs to stations and parameters that are broken and reported themselves."""
        try:
            bound[master.id] = bind(master, context.specs)
        except RecipeError as error:
            for found in error.problems:
                _, station, parameter, *_ = [*found.path.split("."), "", ""]
                here = {("stations", station), ("stations", station, "parameters", parameter)}
                if not here & self._broken:
                    self._problems.append(found)

    def _override(self, context: Context, given: Mapping[str, Mapping[str, Any]]) -> LineFile:
        overrides = given if isinstance(given, Overrides) else Overrides(given)
        if overrides.text:
            self._sources[overrides.file] = overrides.text
        plcs, problems = override(context.file.plcs, overrides)
        self._problems += problems
        if not self._problems:
            check_endpoints(context, plcs)
        if self._problems:
            raise self._error()
        return context.file.model_copy(update={"plcs": plcs})
