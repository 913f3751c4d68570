"""Pure: rows of somebody else's tag list -> columns of ours. What cannot be mapped is a problem, never a guess."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from controller.config.address import AddressError, parse_modbus, parse_node_id
from controller.config.tagfile import COLUMNS
from drivers.port import Area, DataType, WordOrder
from recipes.problem import nearest

FIELDS = tuple(COLUMNS)
SYNONYMS: Mapping[str, tuple[str, ...]] = {
    "name": ("tag", "tagname", "symbol", "symbolname", "variable", "variablename"),
    "plc": ("device", "controller"),
    "address": ("logicaladdress", "modbusaddress", "register", "nodeid", "adr"),
    "type": ("datatype",),
    "word_order": ("wordorder", "byteorder"),
    "length": ("stringlength",),
    "scale": ("factor", "gain", "multiplier"),
    "offset": (),
    "unit": ("units", "engunits", "engineeringunit", "engineeringunits"),
    "low": ("min", "minimum", "lowlimit"),
    "high": ("max", "maximum", "highlimit"),
    "access": ("clientaccess", "rw", "accesslevel"),
    "scan_class": ("scanclass",),
    "description": ("comment", "kommentar"),
}
"""Other names of our columns, in lower case without blanks and signs. Only those that mean one thing."""
RAW_SCALING = ("scaling", "rawlow", "rawhigh", "scaledlow", "scaledhigh")
"""Columns of two-point scaling, as OPC servers export them."""
TYPES: Mapping[str, DataType] = {
    **{t.lower(): t for t in DataType},
    "boolean": DataType.BOOL, "bit": DataType.BOOL,
    "int8": DataType.SINT, "sbyte": DataType.SINT, "uint8": DataType.USINT, "byte": DataType.USINT,
    "int16": DataType.INT, "uint16": DataType.UINT, "word": DataType.UINT,
    "int32": DataType.DINT, "uint32": DataType.UDINT, "dword": DataType.UDINT,
    "int64": DataType.LINT, "uint64": DataType.ULINT, "lword": DataType.ULINT, "qword": DataType.ULINT,
    "float32": DataType.REAL, "float64": DataType.LREAL, "double": DataType.LREAL,
}  # fmt: skip
"""Types by name, where the name says width and sign."""
KEPWARE_TYPES: Mapping[str, DataType] = {
    "short": DataType.INT, "long": DataType.DINT, "float": DataType.REAL, "llong": DataType.LINT, "char": DataType.SINT,
}  # fmt: skip
"""What else an export in the style of Kepware calls its types; elsewhere these names have other widths."""
ACCESS = {
    "r": "r", "ro": "r", "readonly": "r", "read": "r", "rw": "rw", "readwrite": "rw", "r/w": "rw",
}  # fmt: skip
_MODICON = re.compile(r"([0134])(\d{4,5})(?:\.(\d{1,2}))?")
_MODICON_TEXT = re.compile(r"(4\d{4,5})\.(\d{1,3})([HL])", re.IGNORECASE)
_RULE = re.compile(r"(\d{1,5})(?:\.(\d{1,2}))?")
_AREAS = {"0": Area.COIL, "1": Area.DISCRETE_INPUT, "3": Area.INPUT_REGISTER, "4": Area.HOLDING_REGISTER}
_LETTERS = str.maketrans({"ä": "ae", "ö": "oe", "ü": "ue", "ß": "ss", "ø": "o", "æ": "ae", "ł": "l", "µ": "u"})


class MapError(ValueError):
    """A cell that cannot be mapped: what is wrong, and what to do."""

    def __init__(self, what: str, hint: str = "") -> None:
        self.hint = hint
        super().__init__(what)


@dataclass(frozen=True, kw_only=True)
class Rules:
    """What the person said about the list. Nothing here has a meaning that was not said."""

    plc: str | None = None
    group: str | None = None
    """Group of names that have none; else the PLC's name."""
    modicon: int | None = None
    """What the first register is called: 40001 (1) or 40000 (0). ``None``: such addresses are refused."""
    area: Area | None = None
    """The area of addresses that are numbers alone, counted from 0."""
    rules: Mapping[str, tuple[Area, int]] = field(default_factory=dict)
    """``%MW`` -> holding registers from 0 on."""
    kepware: bool = False
    word_order: WordOrder | None = None
    scan_class: str | None = None
    access: str | None = None
    units: Mapping[str, str] = field(default_factory=dict)
    """Spelling of units: theirs -> ours."""
    columns: Mapping[str, str] = field(default_factory=dict)
    """Field -> column, as said with ``--map``."""


def plain(text: str) -> str:
    """A column's name or a type, for comparison: lower case, letters and digits alone."""
    return re.sub(r"[^a-z0-9/]", "", text.lower())


def columns_of(header: Sequence[str], rules: Rules) -> tuple[dict[str, int], list[str]]:
    """Index of each field's column, and the columns that are not used. Raises :class:`MapError`."""
    by_plain: dict[str, list[int]] = {}
    for index, name in enumerate(header):
        by_plain.setdefault(plain(name), []).append(index)
    found: dict[str, int] = {}
    for key, column in rules.columns.items():
        exact = [i for i, name in enumerate(header) if name == column] or by_plain.get(plain(column), [])
        if len(exact) != 1:
            what = f'--map {key}={column}: there is {"no" if not exact else "more than one"} column "{column}"'
            raise MapError(what, nearest(column, [h for h in header if h]))
        found[key] = exact[0]
    for key in (*FIELDS, *RAW_SCALING):
        if key in found:
            continue
        names = dict.fromkeys([plain(key), *SYNONYMS.get(key, ())])
        fitting = [i for name in names for i in by_plain.get(name, []) if i not in found.values()]
        if len(fitting) > 1:
            both = " and ".join(f'"{header[i]}"' for i in fitting)
            raise MapError(f"{both} could both be {key}", f'say which: --map "{key}={header[fitting[0]]}"')
        if fitting:
            found[key] = fitting[0]
    missing = [key for key in ("name", "address", "type") if key not in found]
    if missing:
        what = f"no column for {', '.join(missing)} among {', '.join(h for h in header if h)}"
        raise MapError(what, f'say which it is: --map "{missing[0]}=COLUMN"')
    if "plc" not in found and rules.plc is None:
        raise MapError("there is no column for the PLC", "say its name in line.yaml: --plc NAME")
    return found, [name for i, name in enumerate(header) if name and i not in found.values()]


def row_of(cells: Mapping[str, str], rules: Rules) -> dict[str, str]:
    """One row in our columns. Raises :class:`MapError`."""
    given = {key: text for key, text in cells.items() if text}
    row: dict[str, str] = {"plc": given.get("plc") or rules.plc or ""}
    if not given.get("name"):
        raise MapError("no name", "every row needs one")
    row["name"] = legal_name(given["name"], rules.group or row["plc"])
    kind, words = type_of(given.get("type", ""), rules)
    row |= address_of(given.get("address", ""), kind, rules)
    row["type"] = kind
    row |= words
    if "access" in given:
        access = ACCESS.get(plain(given["access"]))
        if access is None:
            raise MapError(f'access "{given["access"]}" is unknown', "r or rw")
        row["access"] = access
    elif rules.access:
        row["access"] = rules.access
    row |= scaling_of(given)
    for key in ("low", "high", "length", "mask", "array", "description"):
        if key in given:
            row.setdefault(key, given[key])
    if "unit" in given:
        row["unit"] = rules.units.get(given["unit"], given["unit"])
    order = given.get("word_order", "").upper() or (rules.word_order or "")
    if order and order not in WordOrder.__members__:
        raise MapError(f'word order "{given["word_order"]}" is unknown', "ABCD, CDAB, BADC or DCBA")
    if order and "word_order" not in row and ("word_order" in given or wide(kind)):
        row["word_order"] = order
    row["scan_class"] = given.get("scan_class") or rules.scan_class or ""
    return {key: text for key, text in row.items() if text}


def wide(kind: DataType) -> bool:
    """Whether a word order means anything for it."""
    return kind not in (DataType.BOOL, DataType.SINT, DataType.USINT, DataType.INT, DataType.UINT, DataType.BCD)


def type_of(text: str, rules: Rules) -> tuple[DataType, dict[str, str]]:
    """The type, and what its name says besides: ``STRING[20]`` has a length. Raises :class:`MapError`."""
    match = re.fullmatch(r"\s*string\s*[\[(](\d+)[\])]\s*", text, re.IGNORECASE)
    if match:
        return DataType.STRING, {"length": match[1]}
    name = plain(text)
    kind = TYPES.get(name) or (KEPWARE_TYPES.get(name) if rules.kepware else None)
    if kind is not None:
        return kind, {}
    if not text:
        raise MapError("no type", "every row needs one")
    hint = nearest(text.upper(), DataType)
    if name in KEPWARE_TYPES or name in ("float", "integer", "long", "number"):
        hint = "that name has no fixed width; write INT, DINT, REAL …" + ("" if rules.kepware else ", or say --kepware")
    raise MapError(f'type "{text}" is none of ours', hint)


def address_of(text: str, kind: DataType, rules: Rules) -> dict[str, str]:
    """The address in our notation. Raises :class:`MapError`."""
    if not text:
        raise MapError("no address", "every row needs one")
    if text.partition("=")[0] in ("ns", "nsu", "i", "s", "g", "b"):
        try:
            return {"address": str(parse_node_id(text))}
        except AddressError as error:
            raise MapError(str(error), error.hint) from None
    for prefix, (area, first) in rules.rules.items():
        if text.upper().startswith(prefix.upper()) and (match := _RULE.fullmatch(text[len(prefix) :])):
            return _modbus(area, first + int(match[1]), match[2], text)
    if rules.kepware and rules.modicon is not None and (match := _MODICON_TEXT.fullmatch(text)):
        if kind is not DataType.STRING:
            raise MapError(f"{text} is a text, its type {kind}", "make its type STRING")
        order = "BADC" if match[3].upper() == "L" else "ABCD"
        place = _modbus(Area.HOLDING_REGISTER, int(match[1][1:]) - rules.modicon, None, text)
        return {**place, "length": match[2], "word_order": order}
    if match := _MODICON.fullmatch(text):
        if rules.modicon is None:
            what = f"{text} looks like Modicon notation, which counts from 1 in some lists and from 0 in others"
            raise MapError(what, "look into the device's manual, then say --modicon 1 (40001 is hr:0) or --modicon 0")
        return _modbus(_AREAS[match[1]], int(match[2]) - rules.modicon, match[3], text)
    if text.isascii() and text.isdecimal():
        if rules.modicon is not None:
            hint = "a spreadsheet drops leading zeros: 00001, 10001"
            raise MapError(f"{text} is too short for Modicon notation", hint)
        if rules.area is None:
            raise MapError(f"{text} does not say its area", "say it for all of them: --area hr (counted from 0)")
        return _modbus(rules.area, int(text), None, text)
    if text.startswith("%"):
        what = f"{text} is an address inside the PLC; which Modbus address it has, its program decides"
        raise MapError(what, "say it: --rule %MW=hr:0")
    try:
        return {"address": str(parse_modbus(text.lower().replace(" ", "")))}
    except AddressError as error:
        raise MapError(str(error), error.hint) from None


def _modbus(area: Area, offset: int, bit: str | None, text: str) -> dict[str, str]:
    if not 0 <= offset <= 65535:
        raise MapError(f"{text} would be {area}:{offset}", "addresses go from 0 to 65535: is the base right?")
    if bit is not None and (area in (Area.COIL, Area.DISCRETE_INPUT) or int(bit) > 15):
        raise MapError(f"{text}: there is no such bit", "a register has bits 0 to 15, a coil none")
    return {"address": f"{area}:{offset}" + ("" if bit is None else f".{int(bit)}")}


def scaling_of(given: Mapping[str, str]) -> dict[str, str]:
    """Scale and offset, also from two points. Raises :class:`MapError`."""
    found = {key: given[key] for key in ("scale", "offset") if key in given}
    way = plain(given.get("scaling", "none"))
    if way in ("none", ""):
        return found
    if way != "linear":
        raise MapError(f'scaling "{given["scaling"]}" has no counterpart', "scale it in the PLC, or leave it raw")
    if found:
        raise MapError("both a scale and two points are given", "remove one")
    points: list[float] = []
    for key in RAW_SCALING[1:]:
        try:
            points.append(float(given.get(key, "")))
        except ValueError:
            raise MapError(f'{key} must be a number, not "{given.get(key, "")}"', "decimal point, no unit") from None
    raw_low, raw_high, low, high = points
    if raw_low == raw_high or low == high:
        raise MapError("two equal points make no scale", "correct the raw or the scaled ones")
    scale = (high - low) / (raw_high - raw_low)
    return {"scale": repr(scale), "offset": repr(low - raw_low * scale)}


def legal_name(text: str, group: str) -> str:
    """``group.point`` in lower-case letters, digits and _. Raises :class:`MapError`."""
    *lead, point = [part for part in re.split(r"[./\\]", text.strip().strip('"')) if part.strip()] or [""]
    parts = [_legal("_".join(lead) if lead else group), _legal(point)]
    if not all(parts):
        raise MapError(f'"{text}" makes no name', "letters and digits, as group.point; --group names the group")
    for part in parts:
        if len(part) > 40:
            raise MapError(f'"{part}" is longer than 40 characters', "shorten it in the list")
    return ".".join(parts)


def _legal(text: str) -> str:
    text = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", text).lower().translate(_LETTERS)
    text = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    text = re.sub(r"[^a-z0-9]+", "_", text).strip("_")
    return f"n{text}" if text[:1].isdigit() else text
