"""YAML text to plain data, with the line and column of every key and value. Pure: the text is handed in.

Only what a configuration needs is accepted: mappings with text keys, lists, texts, numbers, true/false and
null; anchors, aliases and ``<<`` merges work. What YAML 1.1 silently turns into something else (``no`` and
``off`` into false, ``010`` into 8, ``1:30`` into 90, ``2024-01-31`` into a date) and keys given twice are
reported instead.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

from recipes.problem import Path, Place, Problem, problem

MAX_NODES = 200_000
"""Nodes of one file at most, aliases counted each time: bounds what nested aliases can blow up to."""
MAX_DEPTH = 40
MAX_BYTES = 4_000_000

_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_TAG = "tag:yaml.org,2002:"
_EXPONENT = re.compile(r"[-+]?\d+(?:\.\d*)?[eE][-+]?\d+")


class Document:
    """A parsed file. ``data`` is plain data, ``None`` when the file could not be parsed at all."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.data: Any = None
        self.problems: list[Problem] = []
        self._values: dict[Path, Place] = {}
        self._keys: dict[Path, Place] = {}
        self._text: dict[Path, int] = {}

    def place(self, path: Path, *, key: bool = False) -> Place:
        """Where the value at ``path`` stands (or its key); what is not there is where the nearest above is."""
        first = self._keys if key else self._values
        for end in range(len(path), -1, -1):
            here = path[:end]
            found = first.get(here) if end == len(path) else None
            found = found or self._keys.get(here) or self._values.get(here)
            if found is not None:
                return found
        return Place(self.file, 1, 1)

    def inside(self, path: Path, column: int) -> Place:
        """Where the ``column``-th character (from 1) of the text at ``path`` stands, if it can be said."""
        place = self._values.get(path)
        start = self._text.get(path)
        if place is None or start is None:
            return self.place(path)
        return Place(place.file, place.line, start + column - 1)

    def has(self, path: Path) -> bool:
        """Whether the file says anything at ``path``."""
        return path in self._values


def read_yaml(text: str, file: str) -> Document:
    """Parse ``text``; ``file`` is only named in places. Never raises: see :attr:`Document.problems`."""
    document = Document(file)
    try:
        if len(text) > MAX_BYTES:
            _complain(document, 1, 1, f"the file is longer than {MAX_BYTES} characters", "split it")
            return document
        deep = _too_deep(text)
        if deep is not None:
            _complain(document, deep, 1, f"nested more than {MAX_DEPTH} deep", "check brackets and indentation")
            return document
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line, column = (mark.line + 1, mark.column + 1) if mark else (1, 1)
        what = " ".join(str(part) for part in (error.context, error.problem) if part)
        if error.context_mark and error.context_mark.line + 1 != line:
            what += f" (begun on line {error.context_mark.line + 1})"
        hint = "check indentation, colons, quotes and brackets"
        before = "".join(text.split("\n")[line - 1 : line])[:column]
        if "\t" in before and not before.strip():
            hint = "YAML is indented with spaces, never with tabs"
        _complain(document, line, column, f"not valid YAML: {what}", hint)
        return document
    except yaml.YAMLError as error:  # the reader's: a character that YAML does not allow
        line = text.count("\n", 0, getattr(error, "position", 0) or 0) + 1
        _complain(document, line, 1, f"not valid YAML: {str(error).splitlines()[0]}", "remove the character")
        return document
    if node is None:
        _complain(document, 1, 1, "the file is empty", "")
        return document
    document.data = _Builder(document).build(node, (), ())
    return document


def _too_deep(text: str) -> int | None:
    """The line where nesting passes the limit: composing recurses in C and would take the process down."""
    depth = 0
    for event in yaml.parse(text, Loader=_Loader):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > MAX_DEPTH:
                return event.start_mark.line + 1 if event.start_mark else 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
    return None


def _complain(document: Document, line: int, column: int, what: str, hint: str) -> None:
    document.problems.append(Problem(document.file, line, column, what, hint))


class _Builder:
    """Turns nodes into data, noting places on the way."""

    def __init__(self, document: Document) -> None:
        self._document = document
        self._count = 0

    def build(self, node: yaml.Node, path: Path, above: tuple[int, ...]) -> Any:
        document = self._document
        document._values[path] = self._place(node)
        self._count += 1
        if self._count > MAX_NODES:
            if self._count == MAX_NODES + 1:
                self._problem(node, path, f"more than {MAX_NODES} values", "do not nest aliases")
            return None
        if id(node) in above:
            self._problem(node, path, "an alias that contains itself", "write the value out")
            return None
        if len(above) > MAX_DEPTH:
            self._problem(node, path, f"nested more than {MAX_DEPTH} deep", "")
            return None
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path, (*above, id(node)))
        if isinstance(node, yaml.SequenceNode):
            return [self.build(n, (*path, i), (*above, id(node))) for i, n in enumerate(node.value)]
        assert isinstance(node, yaml.ScalarNode)
        return self._scalar(node, path)

    def _mapping(self, node: yaml.MappingNode, path: Path, above: tuple[int, ...]) -> dict[str, Any]:
        data: dict[str, Any] = {}
        merged: dict[str, Any] = {}
        document = self._document
        for key_node, value_node in node.value:
            if key_node.tag == _TAG + "merge":
                sources = value_node.value if isinstance(value_node, yaml.SequenceNode) else [value_node]
                for source in sources:
                    if not isinstance(source, yaml.MappingNode):
                        self._problem(source, path, "<< takes a mapping or a list of mappings", "")
                    elif id(source) in above:
                        self._problem(source, path, "an alias that contains itself", "write the value out")
                    else:
                        for key, value in self._mapping(source, path, (*above, id(source))).items():
                            merged.setdefault(key, value)
                continue
            key = self._key(key_node, path)
            if key in data:
                first = document._keys[*path, key].line
                self._problem(key_node, (*path, key), f'"{key}" is given twice', f"first on line {first}: remove one")
                continue
            data[key] = self.build(value_node, (*path, key), above)
            document._keys[*path, key] = self._place(key_node)
        return {**merged, **data}

    def _key(self, node: yaml.Node, path: Path) -> str:
        if not isinstance(node, yaml.ScalarNode):
            self._problem(node, path, "a key must be a name", "")
            return f"?{self._place(node).line}"
        if not node.style and node.tag != _TAG + "str":
            kind = node.tag.removeprefix(_TAG)
            means = {"bool": f"means {_truth(node.value)} in YAML 1.1", "timestamp": "is read as a date"}
            what = f'the key "{node.value}" {means.get(kind, f"is read as {kind}, not as text")}'
            self._problem(node, (*path, node.value), what, f'quote it ("{node.value}") or choose another name')
        return str(node.value)

    def _scalar(self, node: yaml.ScalarNode, path: Path) -> Any:
        text: str = node.value
        assert node.start_mark is not None and node.end_mark is not None
        if node.start_mark.line == node.end_mark.line:
            quoted = 1 if node.style else 0
            width = node.end_mark.column - node.start_mark.column
            if width == len(text) + 2 * quoted:  # else escapes or a tag: columns inside are not ours to know
                self._document._text[path] = node.start_mark.column + 1 + quoted
        if node.style or node.tag == _TAG + "str":
            if node.tag != _TAG + "str":
                self._problem(node, path, f'the type tag of "{text}" is not supported', "remove the tag (!…)")
            elif not node.style and _EXPONENT.fullmatch(text):
                return float(text)
            return text
        return self._plain(node, path, node.tag.removeprefix(_TAG), text)

    def _plain(self, node: yaml.ScalarNode, path: Path, kind: str, text: str) -> Any:
        lower = text.lower()
        if kind == "null":
            return None
        if kind == "bool":
            if lower not in ("true", "false"):
                hint = f'write {_truth(text)}, or quote it ("{text}") if the text is meant'
                self._problem(node, path, f'"{text}" means {_truth(text)} in YAML 1.1', hint)
            return _truth(text) == "true"
        if kind == "timestamp":
            self._problem(node, path, f'"{text}" is read as a date', f'quote it: "{text}"')
            return text
        if kind not in ("int", "float"):
            if kind != "value":
                self._problem(node, path, f'the type tag of "{text}" is not supported', "remove the tag (!…)")
            return text
        if ":" in text or "_" in text:
            self._problem(node, path, f'"{text}" is a number of another kind in YAML 1.1', "quote it or write it out")
            return 0
        digits = lower.lstrip("+-")
        if kind == "float":
            special = {".inf": float("inf"), ".nan": float("nan")}.get(digits)
            number = float(text) if special is None else special
            return -number if special is not None and text.startswith("-") else number
        if digits.startswith(("0x", "0b")):
            return int(text, 0)
        if len(digits) > 1 and digits.startswith("0"):
            hint = f'write {int(digits)}, or quote it ("{text}") if the text is meant'
            self._problem(node, path, f'"{text}" with a leading zero is an octal number in YAML 1.1', hint)
        return int(text) if len(digits) <= 40 else float(text)

    def _place(self, node: yaml.Node) -> Place:
        return Place(self._document.file, node.start_mark.line + 1, node.start_mark.column + 1)

    def _problem(self, node: yaml.Node, path: Path, what: str, hint: str) -> None:
        self._document.problems.append(problem(self._place(node), what, hint, path))


def _truth(text: str) -> str:
    return "true" if text.lower() in ("true", "yes", "on", "y") else "false"
