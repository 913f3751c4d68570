"""What is wrong with an endpoints file is told at its place in that file, in words."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_line import KINDS, LINE, changed, write

from controller.config import ConfigError, load
from controller.config.overrides import Overrides
from controller.config.plcs import OpcUaPlc


def problems(folder: Path, text: str) -> list[tuple[str, int, int, str, str]]:
    line, file = write(folder), folder / "endpoints.json"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load(line, Overrides.read(file), KINDS)
    assert caught.value.sources[str(file)] == text, "the line with the fault cannot be shown"
    return [(Path(p.file).name, p.line, p.column, p.what, p.hint) for p in caught.value.problems]


@pytest.mark.parametrize(
    ("text", "line", "column", "what", "hint"),
    [
        ('{"wat": {}}', 1, 2, 'unknown PLC "wat"', '"wet"'),
        ('{\n "wet": {"host": "127.0.0.1",\n  "prot": 1502}}', 3, 3, 'unknown key "prot"', '"port"'),
        ('{\n "wet":\n  {"port": 70000}}', 3, 12, "less than or equal to 65535", ""),
        ('{\n "wet": {"port": "1502"}}', 2, 18, "must be a number", "without quotes"),
        ('{"wet": {"driver": "opcua", "endpoint": "opc.tcp://h:1"}}', 1, 20, "cannot become opcua", "protocol"),
        ('{"wet": {"driver": "modbus_rtu"}}', 1, 2, '"device" is missing', "device"),
    ],
)
def test_a_fault_is_told_where_it_is(tmp_path: Path, text: str, line: int, column: int, what: str, hint: str) -> None:
    (found,) = problems(tmp_path, text)
    assert found[:3] == ("endpoints.json", line, column), found
    assert what in found[3], found
    assert hint in found[4], found


def test_every_fault_at_once(tmp_path: Path) -> None:
    found = problems(tmp_path, '{"wat": {},\n "wet": {"port": 0, "unit": -1}}')
    assert [each[1] for each in found] == [1, 2, 2]


def test_a_file_that_is_none(tmp_path: Path) -> None:
    for text in ("[1]", "{", '{"wet": 1}'):
        path = tmp_path / "x.json"
        path.write_text(text, encoding="utf-8")
        with pytest.raises(ValueError, match=r"x\.json"):
            Overrides.read(path)


@pytest.mark.parametrize(
    ("fields", "backups"),
    [
        ('{"endpoint": "opc.tcp://127.0.0.1:1"}', ()),
        ('{"endpoint": "opc.tcp://127.0.0.1:1", "backups": ["opc.tcp://127.0.0.1:2"]}', ("opc.tcp://127.0.0.1:2",)),
        ('{"timeout_ms": 900}', ("opc.tcp://10.0.0.3:4840",)),
    ],
)
def test_another_endpoint_leaves_no_backups(tmp_path: Path, fields: str, backups: tuple[str, ...]) -> None:
    """On the bench a lost link must never lead to the second server of the real line."""
    ours = "    endpoint: opc.tcp://10.0.0.2:4840\n"
    line = write(tmp_path, changed(LINE, (ours, ours + "    backups: [opc.tcp://10.0.0.3:4840]\n")))
    file = tmp_path / "endpoints.json"
    file.write_text(f'{{"inspect": {fields}}}', encoding="utf-8")
    plc = load(line, Overrides.read(file), KINDS).file.plcs["inspect"]
    assert isinstance(plc, OpcUaPlc) and plc.backups == backups
