"""tags import: other people's lists, with everything told that does not fit."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest
from openpyxl import Workbook

from controller.cli.tagmap import MapError, Rules, address_of, legal_name
from controller.config.tagfile import read_tags
from drivers.port import Area, DataType
from hil import lines
from tests.drivers.opcua_plc import URI, UaPlc

BOTTLING = Path(lines.__file__).parent / "bottling"
OWN = "name,plc,address,type,access,unit,scale\nfiller.target,wet,hr:120,UINT,rw,g,0.1\nfiller.run,wet,co:48,BOOL,,,\n"
KEPWARE = (
    "Tag Name,Address,Data Type,Respect Data Type,Client Access,Scan Rate,Scaling,Raw Low,Raw High,Scaled Low,"
    "Scaled High,Eng Units,Description\n"
    '"Filler.Target Weight",400121,Word,1,R/W,100,Linear,0,1000,0,100,g,"Target"\n'
    '"Filler.Speed",400130,Float,1,RO,100,None,,,,,,""\n'
    '"Filler.Label",400200.20H,String,1,RO,100,,,,,,,\n'
    '"Filler.Bit",400140.3,Boolean,1,RO,100,,,,,,,\n'
    '"Filler.Root",400150,Word,1,RO,100,Square Root,0,1,0,1,,\n'
)


def put(folder: Path, text: str, name: str = "list.csv", encoding: str = "utf-8") -> Path:
    path = folder / name
    path.write_bytes(text.encode(encoding))
    return path


def rows(text: str) -> dict[str, dict[str, str]]:
    return {row["name"]: row for row in csv.DictReader(io.StringIO(text))}


def test_our_own_list_comes_through_and_is_a_tag_file(cli, tmp_path: Path) -> None:
    result = cli("tags", "import", put(tmp_path, OWN))
    assert result.code == 0, result.err
    found = read_tags(result.out, "x.csv")
    assert not found.problems
    assert found.tags["filler.target"].scale == 0.1
    assert found.tags["filler.run"].access == "r"
    for path in BOTTLING.glob("tags_*.csv"):
        again = cli("tags", "import", path)
        assert again.code == 0, again.err
        assert read_tags(again.out, "x").tags == read_tags(path.read_text(encoding="utf-8"), "x").tags


def test_other_names_of_columns_and_types(cli, tmp_path: Path) -> None:
    text = "Symbol;Modbus Address;Data Type;Comment;Engineering Units\nFüll_Höhe;ir:5;Int16;Füllstand;°C\n"
    result = cli("tags", "import", put(tmp_path, text, encoding="cp1252"), "--plc", "wet", "--encoding", "cp1252",
                 "--group", "filler")  # fmt: skip
    assert result.code == 0, result.err
    row = rows(result.out)["filler.fuell_hoehe"]
    assert (row["address"], row["type"], row["unit"], row["description"]) == ("ir:5", "INT", "°C", "Füllstand")
    assert "Füll_Höhe" in result.err, "a rename that nobody was told of"
    wrong = cli("tags", "import", put(tmp_path, text, encoding="cp1252"), "--plc", "wet")
    assert (wrong.code, "--encoding" in wrong.err) == (2, True)


def test_a_kepware_list(cli, tmp_path: Path) -> None:
    path = put(tmp_path, KEPWARE)
    argv = ("tags", "import", path, "--plc", "wet", "--kepware", "--modicon", "1", "--word-order", "CDAB")
    whole = cli(*argv)
    assert (whole.code, whole.out) == (1, "")
    assert f"{path}:6: Filler.Root: scaling" in whole.err
    assert "columns not taken over: Respect Data Type, Scan Rate" in whole.err
    part = cli(*argv, "--partial")
    assert part.code == 1, "a list that does not fit as a whole is never a success"
    found = rows(part.out)
    target, speed, label, bit = (found[f"filler.{n}"] for n in ("target_weight", "speed", "label", "bit"))
    assert (target["address"], float(target["scale"]), float(target["offset"])) == ("hr:120", 0.1, 0.0)
    assert (target["access"], target["word_order"]) == ("rw", "")
    assert (speed["type"], speed["word_order"]) == ("REAL", "CDAB")
    assert (label["address"], label["length"], label["word_order"]) == ("hr:199", "20", "ABCD")
    assert (bit["address"], bit["type"]) == ("hr:139.3", "BOOL")


@pytest.mark.parametrize(
    ("cell", "rules", "expected"),
    [
        ("40001", Rules(modicon=1), "hr:0"),
        ("40001", Rules(modicon=0), "hr:1"),
        ("465536", Rules(modicon=1), "hr:65535"),
        ("00001", Rules(modicon=1), "co:0"),
        ("10017", Rules(modicon=1), "di:16"),
        ("30005", Rules(modicon=1), "ir:4"),
        ("HR:7", Rules(), "hr:7"),
        ("7", Rules(area=Area.INPUT_REGISTER), "ir:7"),
        ("%MW7", Rules(rules={"%MW": (Area.HOLDING_REGISTER, 100)}), "hr:107"),
        ("%mw7.15", Rules(rules={"%MW": (Area.HOLDING_REGISTER, 0)}), "hr:7.15"),
        ("nsu=urn:a;s=b.c", Rules(), "nsu=urn:a;s=b.c"),
    ],
)
def test_addresses(cell: str, rules: Rules, expected: str) -> None:
    kind = DataType.BOOL if "." in expected and expected[0] == "h" else DataType.UINT
    assert address_of(cell, kind, rules) == {"address": expected}


@pytest.mark.parametrize(
    ("cell", "rules", "hint"),
    [
        ("40001", Rules(), "--modicon"),
        ("7", Rules(), "--area"),
        ("1", Rules(modicon=1), "leading zeros"),
        ("%MW7", Rules(), "--rule"),
        ("%I0.0", Rules(rules={"%MW": (Area.HOLDING_REGISTER, 0)}), "--rule"),
        ("40000", Rules(modicon=1), "base"),
        ("40001.16", Rules(modicon=1), "bits 0 to 15"),
        ("00001.1", Rules(modicon=1), "a coil none"),
        ("DB1.DBW4", Rules(), "hr:10"),
        ("", Rules(), "needs one"),
    ],
)
def test_an_address_is_never_guessed(cell: str, rules: Rules, hint: str) -> None:
    with pytest.raises(MapError) as caught:
        address_of(cell, DataType.UINT, rules)
    assert hint in caught.value.hint


def test_names_are_made_legal() -> None:
    assert legal_name("Line1.Filler.TargetWeight", "g") == "line1_filler.target_weight"
    assert legal_name("2nd pump (°C)", "wet") == "wet.n2nd_pump_c"
    assert legal_name("filler/speed", "g") == "filler.speed"
    for wrong in ("日本", "a." + "x" * 41):
        with pytest.raises(MapError):
            legal_name(wrong, "g")


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("a.b,wet,hr:1,float,,", "no fixed width"),
        ("a.b,wet,hr:1,REEL,,", '"REAL"'),
        ("a.b,wet,hr:1,,,", "no type"),
        (",wet,hr:1,INT,,", "no name"),
        ("a.b,wet,ir:1,INT,rw,", "cannot be written"),
        ("a.b,wet,hr:1,INT,maybe,", "access"),
        ("a.b,wet,hr:1,INT,,furlong", "furlong"),
        ("a.b,wet,co:1,INT,,", "single bit"),
        ("a.b,wet,hr:65535,DINT,,", "65535"),
        ("a.b,wet,hr:0,INT,,", "overlaps"),
        ("A.X,wet,hr:9,INT,,", "and so does row 2"),
        ("a.b,wet,hr:1,INT,,,x", "cells"),
    ],
)
def test_every_row_that_does_not_fit_is_told_with_its_place(cli, tmp_path: Path, row: str, said: str) -> None:
    path = put(tmp_path, f"name,plc,address,type,access,unit\na.x,wet,hr:0,INT,,\n# a remark\n{row}\n")
    result = cli("tags", "import", path, "--partial")
    assert result.code == 1
    assert f"{path}:4: " in result.err, result.err
    assert said in result.err, result.err
    assert list(rows(result.out)) == ["a.x"]


def test_columns_that_cannot_be_told_are_asked_for(cli, tmp_path: Path) -> None:
    path = put(tmp_path, "Punkt,Register,Address,Data Type\nx,hr:1,5,INT\n")
    both = cli("tags", "import", path, "--plc", "wet")
    assert (both.code, "could both be address" in both.err) == (2, True)
    missing = cli("tags", "import", path, "--plc", "wet", "--map", "address=Register")
    assert (missing.code, "no column for name" in missing.err) == (2, True)
    mapped = cli("tags", "import", path, "--plc", "wet", "--map", "address=Register", "--map", "name=Punkt")
    assert mapped.code == 0, mapped.err
    assert rows(mapped.out)["wet.x"]["address"] == "hr:1"
    assert "columns not taken over: Address" in mapped.err
    assert cli("tags", "import", path, "--plc", "wet", "--map", "name=Punct").code == 2
    assert cli("tags", "import", path, "--map", "address=Register", "--map", "name=Punkt").code == 2, "no PLC"


def test_a_file_is_never_overwritten_unasked(cli, tmp_path: Path) -> None:
    out = tmp_path / "tags.csv"
    assert cli("tags", "import", put(tmp_path, OWN), "--out", out, "--dry-run").code == 0
    assert not out.exists()
    assert cli("tags", "import", put(tmp_path, OWN), "--out", out).code == 0
    first = out.read_text(encoding="utf-8")
    again = cli("tags", "import", put(tmp_path, OWN.replace("120", "121")), "--out", out)
    assert (again.code, out.read_text(encoding="utf-8")) == (2, first)
    assert cli("tags", "import", put(tmp_path, OWN.replace("120", "121")), "--out", out, "--force").code == 0
    assert "hr:121" in out.read_text(encoding="utf-8")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["list.csv", "tags.csv"]


def test_against_a_line(cli, tmp_path: Path) -> None:
    line = BOTTLING / "line.yaml"
    taken = cli("tags", "import", put(tmp_path, OWN), "--line", line)
    assert (taken.code, "filler.target is in" in taken.err) == (1, True)
    text = "name,plc,address,type,scan_class\nfiller.spare,wat,hr:900,INT,fast\nfiller.more,wet,hr:901,INT,fats\n"
    wrong = cli("tags", "import", put(tmp_path, text), "--line", line)
    assert wrong.code == 1
    assert "wat" in wrong.err
    assert "fats" in wrong.err


def test_a_workbook(cli, tmp_path: Path) -> None:
    book = Workbook()
    sheet = book.active
    sheet.title = "IO"
    sheet.append(["Tag", "Register", "Type", "Scale"])
    sheet.append(["filler.speed", 40001, "INT", 0.1])
    sheet.append(["filler.on", "40002.10", "BOOL", None])
    sheet.append(["filler.off", 40002.1, "BOOL", None])
    sheet.append(["filler.sum", 40003, "INT", "=1/10"])
    path = tmp_path / "io.xlsx"
    book.save(path)
    result = cli("tags", "import", path, "--plc", "wet", "--modicon", "1", "--partial")
    assert result.code == 1
    found = rows(result.out)
    assert set(found) == {"filler.speed", "filler.on"}
    assert (found["filler.speed"]["address"], found["filler.speed"]["scale"]) == ("hr:0", "0.1")
    assert found["filler.on"]["address"] == "hr:1.10"
    assert f"{path}:4: filler.off: 40002.1 may have been 40002.10" in result.err
    assert f"{path}:5: filler.sum: a formula without a value" in result.err
    book.create_sheet("Other")
    book.save(path)
    asked = cli("tags", "import", path, "--plc", "wet", "--modicon", "1")
    assert (asked.code, "IO, Other" in asked.err) == (2, True)
    assert cli("tags", "import", put(tmp_path, "no zip", "x.xlsx"), "--plc", "wet").code == 2


def test_a_list_that_is_not_there_or_empty(cli, tmp_path: Path) -> None:
    assert cli("tags", "import", tmp_path / "none.csv", "--plc", "wet").code == 2
    assert cli("tags", "import", put(tmp_path, ""), "--plc", "wet").code == 2
    assert cli("tags", "import", put(tmp_path, 'name,address,type\n"a,hr:1,INT\n'), "--plc", "wet").code == 2
    assert cli("tags", "import", "modbus-tcp://127.0.0.1/1", "--plc", "wet").code == 2


@pytest.mark.wire
def test_from_an_opcua_server(cli) -> None:
    server = UaPlc()
    server.start()
    try:
        url = f"opc.tcp://127.0.0.1:{server.port}"
        result = cli("tags", "import", url, "--plc", "inspect", "--partial")
        found = rows(result.out)
        speed = next(row for row in found.values() if row["address"] == f"nsu={URI};s=PLC.Speed")
        assert (speed["type"], speed["access"], speed["plc"]) == ("REAL", "rw", "inspect")
        assert not read_tags(result.out, "x").problems
        assert cli("tags", "import", url).code == 2, "no PLC"
    finally:
        server.stop()
    gone = cli("tags", "import", url, "--plc", "inspect")
    assert gone.code == 3
