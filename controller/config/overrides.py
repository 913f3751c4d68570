"""Where PLCs are instead of where line.yaml says: the endpoints file, and what may be wrong with it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from controller.config.base import Model, Name
from controller.config.plcs import ModbusOptions, Plc
from controller.config.serial_model import SerialDevice, line_flaws
from recipes.document import Document, read_yaml
from recipes.problem import Path as DataPath
from recipes.problem import Place, Problem, nearest, problem
from recipes.validate import validate_data

_OF_LINK = (
    "host", "port", "device", "baudrate", "bytesize", "parity", "stopbits", "in_flight", "connections", "echo", "tls",
)  # fmt: skip
"""Options that mean nothing, or something else, on another kind of Modbus or serial link."""


class _Plcs(Model):
    """For the check alone: the shape of PLCs."""

    plcs: dict[Name, Plc]


class Overrides(Mapping[str, Mapping[str, Any]]):
    """Fields of PLCs, by PLC, as an endpoints file gives them; remembers where each stands."""

    def __init__(self, fields: Mapping[str, Mapping[str, Any]], text: str = "", file: str = "the overrides") -> None:
        self._fields, self.text, self.file = fields, text, file
        self._document = read_yaml(text, file) if text else Document(file)  # JSON is YAML, with places

    @classmethod
    def read(cls, path: Path) -> Overrides:
        """Read an endpoints file, JSON ``{"plc": {"field": value}}``. Raises ``ValueError`` naming the file."""
        try:
            text = path.read_text(encoding="utf-8")
            data = json.loads(text)
        except (OSError, ValueError) as error:
            raise ValueError(f"{path}: cannot be read as an endpoints file: {error}") from error
        if not isinstance(data, dict) or not all(isinstance(v, dict) for v in data.values()):
            raise ValueError(f'{path}: an endpoints file is {{"plc": {{"field": value}}}}')
        return cls(data, text, str(path))

    def __getitem__(self, name: str) -> Mapping[str, Any]:
        return self._fields[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._fields)

    def __len__(self) -> int:
        return len(self._fields)

    def place(self, path: DataPath, key: bool = False) -> Place:
        """Where it stands in the file; ``path`` begins with the PLC."""
        return self._document.place(path, key=key)


def override(plcs: Mapping[str, Plc], overrides: Overrides) -> tuple[dict[str, Plc], list[Problem]]:
    """The PLCs with their fields replaced, and all that is wrong with that, at its place in the endpoints file."""
    result, problems = dict(plcs), list[Problem]()
    for name, fields in overrides.items():
        if name not in plcs:
            place = overrides.place((name,), True)
            problems.append(problem(place, f'override: unknown PLC "{name}"', nearest(name, plcs, "PLC"), (name,)))
            continue
        old = plcs[name]
        driver = str(fields.get("driver", old.driver))
        if driver != old.driver and not (isinstance(old, ModbusOptions) and driver.startswith("modbus_")):
            what = f"override: {name} speaks {old.driver} and cannot become {driver}"
            place = overrides.place((name, "driver"))
            problems.append(problem(place, what, "its tags have addresses of that protocol", (name, "driver")))
            continue
        kept = old.model_dump(mode="json", exclude_unset=True)
        if driver != old.driver or (driver == "serial" and not fields.keys().isdisjoint(("device", "host"))):
            kept = {key: value for key, value in kept.items() if key not in _OF_LINK}
        if "endpoint" in fields:  # a loss on the bench must never lead to the real line's second server
            kept.pop("backups", None)
        data = {"plcs": {name: {**kept, **fields}}}
        made, found = validate_data(_Plcs, data, lambda path, key: overrides.place(path[1:], key))
        problems += [problem(Place(p.file, p.line, p.column), f"override of {name}: {p.what}", p.hint, path[1:])
                     for path, p in found]  # fmt: skip
        if made is not None:
            plc = result[name] = made.plcs[name]
            if isinstance(plc, SerialDevice):
                place = overrides.place((name,), True)
                problems += [problem(place, f"override of {name}: {what}", hint, (name,))
                             for _, what, hint in line_flaws(plc)]  # fmt: skip
    return result, problems
