"""Serial line devices, the pure part: framing, patterns, templates, and what texts mean."""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drivers.port import DataType, SerialAddress, Tag
from drivers.serial.framer import Broken, Framer, checksum
from drivers.serial.pattern import PatternError, compile_pattern
from drivers.serial.plan import PlanError, SerialPlan, text_value, value_of
from drivers.serial.protocol import Checksum, Command, Framing, LineProtocol, Message
from drivers.serial.template import Template, TemplateError

CRLF = Framing(end=b"\r\n", max_length=12)
STX = Framing(start=b"\x02", end=b"\x03", max_length=12)
WIDE = Framing(start=b"<<<", end=b"\r\n", max_length=12)
FIXED = Framing(length=4)
MARKED = Framing(start=b"#", length=4)
BCC = Framing(start=b"\x02", end=b"\x03", max_length=12, checksum=Checksum(kind="xor", form="binary", after_end=True))
HEX = Framing(end=b"\r", max_length=12, checksum=Checksum(kind="sum8"))
GAP = Framing(max_length=12, gap_ms=20)
FRAMINGS = {
    "crlf": CRLF,
    "stx": STX,
    "wide": WIDE,
    "fixed": FIXED,
    "marked": MARKED,
    "bcc": BCC,
    "hex": HEX,
    "gap": GAP,
}


def good(framing: Framing, *pieces: bytes) -> list[bytes]:
    framer = Framer(framing)
    return [found for piece in pieces for found in framer.feed(piece) if isinstance(found, bytes)]


def broken(framing: Framing, *pieces: bytes) -> list[str]:
    framer = Framer(framing)
    return [found.what for piece in pieces for found in framer.feed(piece) if isinstance(found, Broken)]


def test_cuts_at_marks() -> None:
    assert good(CRLF, b"one\r\ntwo\r\n\r\nthr") == [b"one", b"two"]
    assert good(CRLF, b"o", b"ne\r", b"\n") == [b"one"]
    assert good(STX, b"x\x02one\x03\r\n\x02two\x03") == [b"one", b"two"]
    assert broken(STX, b"x\x02one\x03\r\n\x02two\x03") == ["bytes outside of start and end"]
    assert good(WIDE, b"<<<<<one\r\n<<", b"<two\r", b"\n") == [b"<<one", b"two"]
    assert good(FIXED, b"oneAtw", b"oB") == [b"oneA", b"twoB"]
    assert good(MARKED, b"..#oneA..#tw", b"oB") == [b"oneA", b"twoB"]


def test_what_is_too_long_is_thrown_away_whole() -> None:
    assert good(CRLF, b"x" * 5000 + b"\r\nnext\r\n") == [b"next"]
    assert broken(CRLF, b"x" * 5000, b"x\r\nnext\r\n") == ["a message longer than 12 bytes"]
    assert good(CRLF, b"x" * 12 + b"\r\n") == [b"x" * 12]
    framer = Framer(CRLF)
    for _ in range(1000):
        framer.feed(b"x" * 1000)
    assert len(framer._buffer) < 100


def test_a_cut_off_message_is_not_glued_to_the_next() -> None:
    assert good(STX, b"\x02on\x02two\x03") == [b"two"]
    assert broken(STX, b"\x02on\x02two\x03") == ["a new message begins inside the last"]
    assert broken(STX, b"\x02" + b"x" * 50 + b"\x02ok\x03") == ["a message longer than 12 bytes"], "told once"


@pytest.mark.parametrize(("framing", "after"), [(CRLF, [b"next"]), (STX, [b"rest", b"next"]), (FIXED, [b"next"])])
def test_silence_spoils_what_was_begun(framing: Framing, after: list[bytes]) -> None:
    """The rest of it could look like a message of its own: only a mark or silence makes sure again."""
    framer = Framer(framing)
    wrap = framer.wrap
    assert framer.feed(wrap(b"12.5")[:-3]) == []
    begun = wrap(b"12.5")[len(framing.start) : -3]
    assert [str(found) for found in framer.silence()] == [f"a message stopped in the middle ({begun!r})"]
    assert framer.silence() == []
    rest = b"" if framing is FIXED else wrap(b"rest")
    found = [f for f in framer.feed(rest + wrap(b"next")) if isinstance(f, bytes)]
    assert found == after


def test_silence_ends_a_message_that_has_no_mark() -> None:
    framer = Framer(GAP)
    assert framer.feed(b"400") + framer.feed(b"638") == []
    assert framer.begun
    assert framer.silence() == [b"400638"]
    assert not framer.begun
    assert framer.silence() == []
    assert [f.what for f in framer.feed(b"x" * 13) if isinstance(f, Broken)] == ["a message longer than 12 bytes"]
    assert framer.feed(b"tail") == framer.silence() == []
    assert framer.feed(b"ok") + framer.silence() == [b"ok"]


@pytest.mark.parametrize("name", FRAMINGS)
def test_what_began_before_is_thrown_away(name: str) -> None:
    framing = FRAMINGS[name]
    framer = Framer(framing)
    message = framer.wrap(b"1234")
    framer.resync()
    found = framer.feed(message[2:])
    if not framing.end:
        found += framer.silence()
    assert not [f for f in found if isinstance(f, bytes)]
    assert [f for f in framer.feed(message) + framer.silence() if isinstance(f, bytes)] == [b"1234"]


def test_checksums_against_published_values() -> None:
    """CRC-16/MODBUS of 123456789 is 4B37h; XOR and sum worked out by hand."""
    digits = b"123456789"
    assert checksum(Checksum(kind="crc16", form="binary"), digits) == b"\x37\x4b"
    assert checksum(Checksum(kind="crc16"), digits) == b"4B37"
    assert checksum(Checksum(kind="xor"), digits) == b"31"
    assert checksum(Checksum(kind="sum8"), digits) == b"DD"  # 0x1DD
    # STX 1 2 ETX: 31h ^ 32h ^ 03h = 00h
    assert Framer(BCC).wrap(b"12") == b"\x0212\x03\x00"


@pytest.mark.parametrize("name", ["bcc", "hex"])
def test_a_wrong_checksum_is_never_handed_out(name: str) -> None:
    message = Framer(FRAMINGS[name]).wrap(b"12.5")
    assert good(FRAMINGS[name], message) == [b"12.5"]
    for bit in range(len(message) * 8):
        changed = bytearray(message)
        changed[bit // 8] ^= 1 << bit % 8
        taken = good(FRAMINGS[name], bytes(changed), message)
        assert set(taken) <= {b"12.5"}, (bit, taken)
    assert good(HEX, b"\r1\r12\r") == []
    assert good(HEX, Framer(HEX).wrap(b"12.5").lower()) == [b"12.5"]


PARTS = st.sampled_from(
    [b"\x02", b"\x03", b"\r", b"\n", b"\r\n", b"#", b"<", b"<<<", b"1", b"12.5", b"x" * 13, b"\0", b"\xff"]
)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(sorted(FRAMINGS)), st.lists(PARTS, max_size=40).map(b"".join), st.data())
def test_pieces_make_no_difference(name: str, stream: bytes, data: st.DataObject) -> None:
    whole, pieces = Framer(FRAMINGS[name]), Framer(FRAMINGS[name])
    found, at = [], 0
    while at < len(stream):
        step = data.draw(st.integers(1, len(stream) - at))
        found += pieces.feed(stream[at : at + step])
        at += step
    assert found == whole.feed(stream)
    assert pieces.silence() == whole.silence()


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(sorted(FRAMINGS)), st.binary(max_size=200), st.lists(st.integers(0, 2), max_size=8))
def test_garbage_never_keeps_the_next_message_out_for_long(name: str, garbage: bytes, silences: list[int]) -> None:
    """Whatever came, two sound messages after a silence give at least the second, and nothing grows."""
    framer = Framer(FRAMINGS[name])
    for place, action in enumerate(silences or [0]):
        framer.feed(garbage[place::8])
        if action == 1:
            framer.silence()
        elif action == 2:
            framer.resync()
        assert len(framer._buffer) <= 64
    framer.silence()
    first = framer.feed(framer.wrap(b"1234")) + framer.silence()
    second = framer.feed(framer.wrap(b"5678")) + framer.silence()
    assert b"5678" in second, (first, second)


# --- patterns


@pytest.mark.parametrize(
    "pattern",
    [
        r"(?P<text>.+)",
        r"S (?P<status>[SDI+-])(?: +(?P<weight>-?\d+(?:\.\d+)?) +(?P<unit>\w+))?",
        r"(?P<error>E[STL])|W(?P<weight>\d{1,8})",
        r"(?P<a>\d+),(?P<b>\d+),(?P<c>\d+),(?P<d>\d+),(?P<e>\d+),(?P<f>\d+)",
        r"(?:\d{2},)*(?P<last>\d{2})",
    ],
)
def test_usual_patterns_are_taken_and_quick(pattern: str) -> None:
    compiled = compile_pattern(pattern, 256)
    for text in ("1" * 256, "1," * 128, "S S" + " " * 253, "12," * 85):
        start = time.perf_counter()
        compiled.fullmatch(text)
        assert time.perf_counter() - start < 0.1


@pytest.mark.parametrize(
    ("pattern", "what"),
    [
        (r"(?:a+)+b", "repeat inside a repeat"),
        (r"(?:a|aa)+", "repeat inside a repeat"),
        (r"(?:(?:ab)?)*", "repeat inside a repeat"),
        (r".*.*.*x", "ways"),
        (r"\d*(?:,?)\d*\d*", "ways"),
        ("a?" * 20 + "a" * 20, "combinations"),
        ("a{0,3}" * 20, "ways"),
        ("(?:a|a)" * 20, "combinations"),
        (r"(a)\1", "back references"),
        (r"(?=a)a", "looking ahead"),
        (r"(?i)a", "flags"),
        (r"(?i:a)", "flags"),
        (r"(?P<a>", "not a regular expression"),
        (r"[", "not a regular expression"),
    ],
)
def test_patterns_that_could_stop_the_controller_are_refused(pattern: str, what: str) -> None:
    with pytest.raises(PatternError, match=re.escape(what)) as caught:
        compile_pattern(pattern, 256)
    assert caught.value.hint


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet="a1 .*+?()|[]\\dw{},-^$", max_size=12), st.text(alphabet="a1 .", max_size=64))
def test_whatever_pattern_is_taken_is_quick(pattern: str, text: str) -> None:
    try:
        compiled = compile_pattern(pattern, 64)
    except PatternError:
        return
    start = time.process_time()
    compiled.fullmatch(text)
    assert time.process_time() - start < 0.2


# --- templates


def test_fills_in_values() -> None:
    template = Template("T{name} {count} {weight:.2}{{x}}", "refuse", "ascii")
    assert template.fields == ("name", "count", "weight")
    assert template.fill({"name": "A-1", "count": 7, "weight": 1.005}) == b"TA-1 7 1.00{x}"
    assert Template("{w}", "refuse", "ascii").fill({"w": 1e-7}) == b"0.0000001"
    assert Template("{w}", "refuse", "ascii").fill({"w": True}) == b"1"


@pytest.mark.parametrize("text", ["a\r\nb", "\x1b", "^XA", "~JA", 'a"b', "\\", "ü"])
def test_refuses_texts_that_could_be_commands(text: str) -> None:
    with pytest.raises(ValueError, match="name: "):
        Template("T{name}", "refuse", "ascii").fill({"name": text})


def test_zpl_has_no_way_out_of_its_field() -> None:
    template = Template("^XA^FO20,20^FH^FD{text}^FS^XZ", "zpl", "utf-8")
    assert template.fill({"text": "50 % ^XZ~JA_\\ü"}) == b"^XA^FO20,20^FH^FD50 % _5EXZ_7EJA_5F_5C_C3_BC^FS^XZ"


@given(st.text(alphabet=st.characters(codec="utf-8"), max_size=30))
def test_zpl_field_data_decodes_to_what_was_given(text: str) -> None:
    data = Template("^FH^FD{text}^FS", "zpl", "utf-8").fill({"text": text})[6:-3]
    assert not set(data) & (set(range(32)) | set(b"^~\\\x7f"))
    assert re.sub(rb"_([0-9A-F]{2})", lambda m: bytes((int(m[1], 16),)), data).decode() == text


@pytest.mark.parametrize(
    ("send", "what"),
    [
        ("^XA^FO10,10^FD{text}^FS^XZ", "escaped field data"),
        ("^XA^FH^FDa^FS^FD{text}^FS^XZ", "escaped field data"),
        ("^XA^FD^FH{text}^FS^XZ", "escaped field data"),
        ("^XA^FH^FDa^FS{text}^XZ", "escaped field data"),
        ("^XA^FH^FD^FO1{text}^FS", "escaped field data"),
        ("{text}", "escaped field data"),
        ("^XA^FHx^FD{text}^FS^XZ", "escape character of its own"),
    ],
)
def test_zpl_fields_must_stand_in_escaped_field_data(send: str, what: str) -> None:
    with pytest.raises(TemplateError, match=what):
        Template(send, "zpl", "ascii")


@pytest.mark.parametrize("send", ["{", "}", "{Name}", "{a b}", "{a:.x}", "{}"])
def test_broken_templates(send: str) -> None:
    with pytest.raises(TemplateError, match="is no field"):
        Template(send, "refuse", "ascii")


# --- values


def tag(kind: str, address: str = "m.f", **more: object) -> Tag:
    return Tag(name="t.t", address=SerialAddress(address), type=DataType(kind), **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        ("STRING", " 40063 ", " 40063 "), ("INT", "-12", -12), ("INT", "+ 12", 12), ("UDINT", "4294967295", 4294967295),
        ("REAL", "123.45", 123.45), ("REAL", "-  .5", -0.5), ("REAL", " 1e3 ", 1000.0), ("REAL", "7", 7.0),
        ("BOOL", "1", True), ("BOOL", "0", False),
    ],
)  # fmt: skip
def test_texts_as_values(kind: str, text: str, value: object) -> None:
    assert repr(text_value(tag(kind), text)) == repr((value, ""))


@pytest.mark.parametrize(
    ("kind", "text", "why"),
    [
        ("INT", "12.0", "whole number"), ("INT", "40000", "range"), ("INT", "", "whole number"),
        ("INT", "1_0", "whole number"), ("INT", "٣", "whole number"), ("UDINT", "-1", "range"),
        ("INT", "9" * 5000, "whole number"),
        ("REAL", "nan", "no number"), ("REAL", "inf", "no number"), ("REAL", "1e999", "infinite"),
        ("REAL", "1,5", "no number"),
        ("REAL", "1 2", "no number"), ("BOOL", "2", "neither"), ("BOOL", "true", "neither"),
    ],
)  # fmt: skip
def test_texts_that_are_no_values_have_a_reason(kind: str, text: str, why: str) -> None:
    value, reason = text_value(tag(kind), text)
    assert value is None
    assert why in reason


def test_scale_limits_and_length() -> None:
    assert text_value(tag("INT", scale=0.5, offset=1.0), "3") == (2.5, "")
    assert "outside" in text_value(tag("REAL", high=10.0), "10.5")[1]
    assert text_value(tag("STRING", length=3), "abcd")[0] is None


SICS = Message(
    pattern=r"S (?P<status>[SDI+-])(?: +(?P<weight>-?\d+\.\d+) g)?",
    ask="SI\r\n",
    bad={"status": {"S": "", "D": "not at rest", "*": "no weight"}},
)


def test_a_declared_text_makes_the_message_bad() -> None:
    real, text = tag("REAL"), tag("STRING")
    still = {"status": "S", "weight": "1.50"}
    moving = {"status": "D", "weight": "1.50"}
    assert value_of(real, "weight", SICS, still) == (1.5, "")
    assert value_of(real, "weight", SICS, moving) == (None, "not at rest")
    assert value_of(text, "status", SICS, moving) == ("D", ""), "the text that says so can be shown"
    assert value_of(real, "weight", SICS, {"status": "I", "weight": None}) == (None, "no weight")
    assert value_of(real, "weight", SICS, {"status": "S", "weight": None}) == (None, "this message has no weight")


# --- tags on a protocol


PROTOCOL = LineProtocol(
    framing=Framing(end=b"\r\n"),
    messages={"weight": SICS, "code": Message(pattern=r"(?P<text>\d+)")},
    commands={"print": Command(send="P{text}\r\n")},
)


def place(name: str, address: str, kind: str = "STRING", writable: bool = False, scan_class: str = "fast") -> Tag:
    at = SerialAddress(address)
    return Tag(name=name, address=at, type=DataType(kind), writable=writable, scan_class=scan_class)


def test_groups() -> None:
    tags = [
        place("a.code", "code.text", scan_class="scan"),
        place("a.weight", "weight.weight", "REAL"),
        place("a.count", "code.count", "UDINT", scan_class="scan"),
    ]
    plan = SerialPlan(PROTOCOL, tags)
    assert [(g.scan_class, [t.name for t in g.tags], g.each) for g in plan.groups] == [
        ("scan", ["a.code", "a.count"], True),
        ("fast", ["a.weight"], False),
    ]
    assert [plan.asked(n) for n in range(2)] == [[], ["weight"]]


@pytest.mark.parametrize(
    ("tags", "what"),
    [
        ([place("a.a", "wieght.weight")], "no field of a message"),
        ([place("a.a", "weight")], 'has no field ""'),
        ([place("a.a", "weight.wght")], 'has no field "wght"'),
        ([place("a.a", "weight.weight", "BCD")], "no BCD"),
        ([place("a.a", "weight.count", "UINT")], "from 0 to 4294967295"),
        ([place("a.a", "weight.weight", "REAL", True)], "cannot be written"),
        ([place("a.a", "code.text"), place("a.b", "code.text")], "same field"),
        ([place("a.a", "code.text"), place("a.b", "code.count", "UDINT", scan_class="slow")], "one scan class"),
        ([place("a.a", "print.job", "UDINT", True)], "nothing writes print.text"),
        ([place("a.a", "print.text", "STRING", True)], "nothing writes print.job"),
    ],
)
def test_tags_that_do_not_fit(tags: list[Tag], what: str) -> None:
    with pytest.raises(PlanError, match=re.escape(what)):
        SerialPlan(PROTOCOL, tags)


def test_a_value_cannot_end_the_message_it_is_sent_in() -> None:
    """With frame_sends the marks around the text are ours alone, also where they are plain characters."""
    protocol = LineProtocol(
        framing=Framing(start=b"<", end=b"#>", frame_sends=True), commands={"show": Command(send="S{text};")}
    )
    template = protocol.sends["show"]
    assert template.fill({"text": "a#b"}) == b"Sa#b;"
    for text in ("a#><DELETE", "a<b"):
        with pytest.raises(ValueError, match="begins or ends what is sent"):
            template.fill({"text": text})


def test_control_characters_above_ascii_are_refused() -> None:
    with pytest.raises(ValueError, match="could act as a command"):
        Template("T{name}", "refuse", "latin-1").fill({"name": "a\x9b2J"})
