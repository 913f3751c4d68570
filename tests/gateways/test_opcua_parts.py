"""The parts of the gateway that need no connection: the tree, values and types, arguments, users."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import msgspec
import pytest
from asyncua import ua
from asyncua.common.utils import ServiceError
from fake_north import HELLO
from hypothesis import given
from hypothesis import strategies as st

from controller.gateways import opcua_model as model
from controller.gateways.opcua_commands import CommandDesk, check_argument
from controller.gateways.opcua_guard import GuardedInternalServer
from controller.gateways.opcua_space import bad_code, judge, variant_type
from controller.gateways.opcua_ua import StatusCodes
from controller.gateways.opcua_users import (
    Account,
    Role,
    Users,
    UsersError,
    check_password,
    hash_password,
    load_users,
    main,
)
from controller.north.frames import CommandInfo, Hello, Node, StationInfo

NAME = st.from_regex(r"[a-z][a-z0-9_]{0,6}", fullmatch=True)
PATHS = st.lists(
    st.one_of(
        st.builds("line.{}".format, NAME.filter(lambda n: n != "command")),
        st.builds("stations.{}.{}".format, NAME, NAME.filter(lambda n: n != "command")),
        st.builds("stations.{}.tags.{}".format, NAME, NAME),
        st.builds("stations.{}.alarms.{}.{}".format, NAME, NAME, NAME),
        st.builds("plcs.{}.{}".format, NAME, NAME),
        st.builds("{}.{}".format, NAME.filter(lambda n: n not in ("line", "stations")), NAME),
    ),
    unique=True,
    max_size=150,
)


def hello(paths: list[str], commands: dict[str, list[CommandInfo]] | None = None) -> Hello:
    return msgspec.structs.replace(HELLO, nodes=[Node(p, "int") for p in paths], stations=[], commands=commands or {})


@given(PATHS)
def test_any_set_of_paths_becomes_a_tree(paths: list[str]) -> None:
    items = model.tree(hello(paths))
    ids = [item.id for item in items]
    assert len(set(ids)) == len(ids)
    assert {item.id for item in items if item.kind == "variable"} == set(paths)
    assert all(paths[item.index] == item.id for item in items if item.kind == "variable")
    known = {""}
    for item in items:
        assert item.parent in known, "parents come before their children"
        known.add(item.id)
    assert max(Counter(item.parent for item in items).values()) <= 101
    assert len({(item.parent, item.name) for item in items if item.kind != "variable"}) == sum(
        item.kind != "variable" for item in items
    )


def test_stations_and_targets_without_nodes_are_there_too() -> None:
    stations = [StationInfo("capper", "Capper", "", [], [], [])]
    built = model.tree(msgspec.structs.replace(hello([], {"line": [], "labeller": []}), stations=stations))
    assert {"line", "stations", "stations.capper", "stations.labeller"} <= {item.id for item in built}


@pytest.mark.parametrize("path", ["", "line", "line.", ".x", "line.Good", "line..x", "line.command", "line.command.x"])
def test_paths_that_would_be_ambiguous_are_refused(path: str) -> None:
    with pytest.raises(ValueError, match="north node"):
        model.check(hello([path], {"line": []}))


def test_unece_codes() -> None:
    assert model.unit_id("°C") == 0x43454C  # CEL, OPC UA Part 8, 5.6.3.3
    assert model.unit_id("%") == 20529
    assert model.unit_id("bottles/furlong") == -1


@pytest.mark.parametrize(
    ("node", "wanted"),
    [
        (Node("line.x", "int"), ua.VariantType.Int64),
        (Node("line.x", "int", low=0, high=65535), ua.VariantType.Int32),
        (Node("line.x", "int", low=0, high=2**32 - 1), ua.VariantType.Int64),
        (Node("line.x", "int", enum={1: "a"}), ua.VariantType.Int32),
        (Node("stations.f.prod_processed_count", "int"), ua.VariantType.Int32),
        (Node("line.x", "float"), ua.VariantType.Double),
        (Node("line.x", "bool"), ua.VariantType.Boolean),
        (Node("line.x", "str"), ua.VariantType.String),
    ],
)
def test_types(node: Node, wanted: ua.VariantType) -> None:
    assert variant_type(node) is wanted


@given(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text()),
    st.sampled_from(["bool", "int", "float", "str"]),
)
def test_what_is_judged_right_can_be_encoded(value: bool | float | str | None, kind: str) -> None:
    from asyncua.ua.ua_binary import variant_from_binary, variant_to_binary

    wanted = variant_type(Node("line.x", kind))  # type: ignore[arg-type]
    if judge(value, wanted):
        return
    decoded = variant_from_binary(ua.utils.Buffer(variant_to_binary(ua.Variant(value, wanted))))
    assert decoded.Value == (float(value) if kind == "float" else value)  # type: ignore[arg-type]
    assert decoded.VariantType is wanted


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf"), 10**400])
def test_what_is_no_real_number_is_bad(value: float) -> None:
    assert judge(value, ua.VariantType.Double) == StatusCodes.BadOutOfRange


def test_bad_reasons() -> None:
    assert bad_code("not read yet") == StatusCodes.BadWaitingForInitialData
    assert bad_code("wet is not connected: refused") == StatusCodes.BadNoCommunication
    assert bad_code("stale: last read 2.00 s ago") == StatusCodes.BadNoCommunication
    assert bad_code("NaN") == StatusCodes.Bad


@pytest.mark.parametrize(
    ("value", "wanted", "code"),
    [
        (ua.Variant(True), "bool", 0),
        (ua.Variant(1, ua.VariantType.Int32), "bool", StatusCodes.BadTypeMismatch),
        (ua.Variant(True), "int", StatusCodes.BadTypeMismatch),
        (ua.Variant(2**31 - 1, ua.VariantType.UInt64), "int", 0),
        (ua.Variant(2**31, ua.VariantType.UInt64), "int", StatusCodes.BadOutOfRange),
        (ua.Variant(1, ua.VariantType.Int32), "float", StatusCodes.BadTypeMismatch),
        (ua.Variant(1.5, ua.VariantType.Float), "float", 0),
        (ua.Variant(float("inf"), ua.VariantType.Double), "float", StatusCodes.BadOutOfRange),
        (ua.Variant("x" * 256), "str", 0),
        (ua.Variant("x" * 257), "str", StatusCodes.BadOutOfRange),
        (ua.Variant(None, ua.VariantType.String), "str", StatusCodes.BadTypeMismatch),
        (ua.Variant(["x"]), "str", StatusCodes.BadTypeMismatch),
        (None, "str", StatusCodes.BadTypeMismatch),
    ],
)
def test_arguments(value: ua.Variant | None, wanted: str, code: int) -> None:
    assert check_argument(value, wanted)[0] == code


def test_passwords() -> None:
    encoded = hash_password("Abfüller 7")
    assert check_password("Abfüller 7", encoded)
    assert not check_password("Abfüller 8", encoded)
    assert not check_password("", encoded)
    assert hash_password("Abfüller 7") != encoded
    for wrong in ("", "x" * 257):
        with pytest.raises(ValueError, match="characters"):
            hash_password(wrong)


async def test_users_file(tmp_path: Path) -> None:
    path = tmp_path / "users.yaml"
    path.write_text(f'users:\n  anna: {{role: observer, password: "{hash_password("secret")}"}}\n')
    users = load_users(path)
    account = await users.verify("anna", "secret")
    assert account is not None
    assert (account.role, account.role.commands) == (Role.OBSERVER, False)
    assert await users.verify("anna", "Secret") is None
    assert await users.verify("bert", "secret") is None
    assert await Users({}).verify("", "") is None


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "expected one mapping"),
        ("users: {}", "expected one mapping"),
        ("users: [a]", "expected one mapping"),
        ("user: {a: {}}", "expected one mapping"),
        ("users: {a: {role: operator}}", "exactly 'role' and 'password'"),
        ("users: {a: {role: king, password: x}}", "none of observer, operator"),
        ("users: {a: {role: operator, password: plain}}", "opcua_users"),
        ("users: {a: {role: operator, password: scrypt$1000000$8$1$c2FsdHNhbHQ=$aGFzaA==}}", "power of 2"),
        ("users: {a: 1, a: 2}", "line 1: 'a' is there twice"),
        ("users: {yes: {}}", "must be text"),
        ("users: {a: {", "not valid YAML"),
        ("users: !!python/object/apply:os.system [true]", "not valid YAML"),
    ],
)
def test_users_files_with_mistakes(tmp_path: Path, text: str, problem: str) -> None:
    path = tmp_path / "users.yaml"
    path.write_text(text)
    with pytest.raises(UsersError, match=problem) as error:
        load_users(path)
    assert str(path) in str(error.value)
    with pytest.raises(UsersError, match="cannot be read"):
        load_users(tmp_path / "missing.yaml")


def test_the_helper_prints_an_entry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import io

    monkeypatch.setattr("sys.stdin", io.StringIO("geheim\n"))
    assert main(["anna", "engineer"]) == 0
    path = tmp_path / "users.yaml"
    path.write_text("users:\n" + capsys.readouterr().out)
    account = load_users(path).accounts["anna"]
    assert account.role is Role.ENGINEER
    assert check_password("geheim", account.password)
    monkeypatch.setattr("sys.stdin", io.StringIO("\n"))
    assert main(["anna", "engineer"]) == 1


@pytest.mark.parametrize(
    ("allowed", "password", "code"),
    [
        (False, "secret", StatusCodes.BadIdentityTokenRejected),  # from another computer it would be in clear
        (True, "wrong", StatusCodes.BadUserAccessDenied),
        (True, "secret", 0),
    ],
)
async def test_a_password_is_only_looked_at_where_it_may_travel(allowed: bool, password: str, code: int) -> None:
    users = Users({"anna": Account("anna", Role.OPERATOR, hash_password("secret"))})
    session = GuardedInternalServer(users, CommandDesk()).create_session("test", external=True)
    params = ua.ActivateSessionParameters()
    params.UserIdentityToken = ua.UserNameIdentityToken("username", "anna", password.encode())
    if code:
        with pytest.raises(ServiceError) as error:
            await session.identify(params, password_allowed=allowed)
        assert error.value.code == code
    else:
        assert await session.identify(params, password_allowed=allowed) == users.accounts["anna"]
    assert session.account is None
    assert not session.is_activated()
