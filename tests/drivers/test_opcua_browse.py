"""Browsing, and calling methods."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from asyncua import ua, uamethod
from asyncua.server.internal_session import InternalSession
from opcua_plc import URI, UaPlc

from drivers.opcua import BrowsedTag, OpcUaDriver, browse, references
from drivers.opcua.values import resolve
from drivers.options import OpcUaOptions
from drivers.port import DataType, DeviceRefused, LinkDown, OpcUaAddress, Tag

pytestmark = [pytest.mark.wire, pytest.mark.usefixtures("no_leaks")]
ROOT = f"nsu={URI};s=Tank"


@pytest.fixture(scope="module")
def plc(ua_plc: UaPlc) -> UaPlc:
    ua_plc.do(build(ua_plc))
    return ua_plc


@uamethod
def mix(_: Any, amount: float, times: int, label: str, fast: bool) -> tuple[float, str]:
    return amount * times, f"{label}{'!' if fast else '.'}"


async def build(plc: UaPlc) -> None:
    """A tank with what can go wrong: a loop, two ways to one node, an array, a structure, a derived type."""
    server = plc.server
    index = await server.get_namespace_index(URI)
    tank = await server.nodes.objects.add_folder(ua.NodeId("Tank", index), "Tank")
    level = await tank.add_variable(ua.NodeId("Tank.Level", index), "Level", 1.5, ua.VariantType.Float)
    await level.set_writable()
    await level.write_attribute(
        ua.AttributeIds.Description,
        ua.DataValue(ua.Variant(ua.LocalizedText("filling height"), ua.VariantType.LocalizedText)),
    )
    unit = ua.EUInformation(NamespaceUri="http://www.opcfoundation.org/UA/units/un/cefact", UnitId=5066068)
    unit.DisplayName = ua.LocalizedText("mm")
    await level.add_property(ua.NodeId("u", index), ua.QualifiedName("EngineeringUnits", 0), unit)
    await level.add_property(ua.NodeId("r", index), ua.QualifiedName("EURange", 0), ua.Range(Low=0.0, High=250.0))
    valve = await tank.add_folder(ua.NodeId("Tank.Valve", index), "Valve")
    await valve.add_variable(ua.NodeId("Tank.Valve.Open", index), "Open", False)
    await valve.add_variable(
        ua.NodeId("Tank.Valve.Time", index), "Time", 2.0, ua.VariantType.Double, ua.NodeId(ua.ObjectIds.Duration)
    )
    await valve.add_variable(ua.NodeId("Tank.Valve.Curve", index), "Curve", [1, 2, 3], ua.VariantType.Int16)
    await valve.add_variable(ua.NodeId(4711, index), "Info", unit)
    link(plc, valve.nodeid, tank.nodeid, "Tank")  # a loop, which asyncua's own service does not let be made
    link(plc, tank.nodeid, ua.NodeId("Tank.Valve.Open", index), "Open")  # a second way
    many = await tank.add_folder(ua.NodeId("Tank.Many", index), "Many")
    for number in range(30):
        await many.add_variable(ua.NodeId(f"Tank.Many.{number}", index), f"V{number}", number, ua.VariantType.UInt16)
    await tank.add_method(
        ua.NodeId("Tank.Mix", index), "Mix", mix,
        [argument("Amount", ua.ObjectIds.Float), argument("Times", ua.ObjectIds.UInt16),
         argument("Label", ua.ObjectIds.String), argument("Fast", ua.ObjectIds.Boolean)],
        [argument("Sum", ua.ObjectIds.Double), argument("Text", ua.ObjectIds.String)],
    )  # fmt: skip
    await tank.add_method(ua.NodeId("Tank.Idle", index), "Idle", uamethod(lambda _: None), [], [])


def link(plc: UaPlc, source: ua.NodeId, target: ua.NodeId, name: str) -> None:
    variable = name == "Open"
    reference = ua.ReferenceDescription(
        ReferenceTypeId=ua.NodeId(ua.ObjectIds.Organizes),
        IsForward=True,
        NodeId=target,
        BrowseName=ua.QualifiedName(name, target.NamespaceIndex),
        NodeClass=ua.NodeClass.Variable if variable else ua.NodeClass.Object,
    )
    plc.server.iserver.aspace._nodes[source].references.append(reference)


def argument(name: str, kind: int) -> ua.Argument:
    one = ua.Argument()
    one.Name, one.DataType, one.ValueRank = name, ua.NodeId(kind), -1
    return one


def options(plc: UaPlc) -> OpcUaOptions:
    return OpcUaOptions(endpoint=f"opc.tcp://127.0.0.1:{plc.port}")


async def test_everything_below_a_root_once_and_described(plc: UaPlc) -> None:
    found = {tag.path: tag for tag in await browse(options(plc), root=ROOT)}
    assert found["Level"] == BrowsedTag(
        address=f"nsu={URI};s=Tank.Level", path="Level", type=DataType.REAL, readable=True, writable=True, unit="mm",
        low=0.0, high=250.0, description="filling height",
    )  # fmt: skip
    assert found["Valve/Time"].type is DataType.LREAL, "a Duration is a Double"
    assert not found["Valve/Time"].writable
    assert (found["Valve/Curve"].type, found["Valve/Curve"].problem) == (None, "an array")
    assert found["Valve/Info"].type is None
    assert "no tag can hold its data type" in found["Valve/Info"].problem
    assert found["Valve/Info"].address == f"nsu={URI};i=4711"
    addresses = [tag.address for tag in found.values()]
    assert addresses.count(f"nsu={URI};s=Tank.Valve.Open") == 1, "two ways lead there"
    assert sum("Many" in address for address in addresses) == 30
    assert not [path for path in found if "EURange" in path]


async def test_what_was_browsed_can_be_read(plc: UaPlc) -> None:
    found = [tag for tag in await browse(options(plc), root=ROOT) if tag.type is not None]
    tags = [
        Tag(name=f"t.n{number}", address=OpcUaAddress(tag.address), type=tag.type, low=tag.low, high=tag.high)
        for number, tag in enumerate(found)
        if tag.type is not None
    ]
    driver = OpcUaDriver("tank", tags, options(plc))
    await driver.connect(5.0)
    reading = await driver.read(0, 5.0)
    assert not reading.bad
    assert reading.values[0] == 1.5
    await driver.close()


async def test_the_default_root_leaves_the_server_object_out(plc: UaPlc) -> None:
    found = await browse(options(plc))
    paths = {tag.path for tag in found}
    assert {"Tank/Level", "Speed", "Count"} <= paths
    assert not [path for path in paths if path.startswith("Server/")]


async def test_depth_and_limit(plc: UaPlc) -> None:
    assert {tag.path for tag in await browse(options(plc), root=ROOT, depth=1)} == {"Level", "Open"}
    with pytest.raises(DeviceRefused, match="more than 20 variables"):
        await browse(options(plc), root=ROOT, limit=20)


async def test_continuation_points_and_server_limits(plc: UaPlc, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that gives seven references an answer, and has no more than two continuation points."""
    complete = InternalSession.browse
    rest: dict[bytes, list[Any]] = {}

    def cut(result: Any) -> Any:
        if len(result.References) > 7:
            if len(rest) >= 2:
                result.StatusCode, result.References = ua.StatusCode("BadNoContinuationPoints"), []
                return result
            point = f"p{len(rest)}-{len(result.References)}".encode()
            rest[point], result.References = result.References[7:], result.References[:7]
            result.ContinuationPoint = point
        return result

    async def few(self: Any, parameters: Any) -> Any:
        return [cut(result) for result in await complete(self, parameters)]

    async def more(self: Any, parameters: Any) -> Any:
        raise AssertionError("asyncua's server has no BrowseNext")

    monkeypatch.setattr(InternalSession, "browse", few)
    calls = []

    async def go_on(session: Any, nodes: Any, points: dict[int, bytes], found: Any) -> None:
        # asyncua's server does not know BrowseNext: the answers are made here, the loop over them is the driver's.
        async def answer(request: Any, _: type) -> Any:
            calls.append(len(request.Parameters.ContinuationPoints))
            results = []
            for point in request.Parameters.ContinuationPoints:
                result = ua.BrowseResult()
                result.References = rest.pop(point)
                results.append(cut(result))
            response = ua.BrowseNextResponse()
            response.Parameters.Results = results
            return response

        class Answers:
            request = staticmethod(answer)

        await honest(Answers(), nodes, points, found)

    honest = references._go_on
    monkeypatch.setattr(references, "_go_on", go_on)
    found = await browse(options(plc), root=ROOT)
    assert sum("Many" in tag.address for tag in found) == 30
    assert sum(calls) >= 4
    assert not rest


async def test_a_wrong_root_and_a_dead_server_are_told(plc: UaPlc) -> None:
    with pytest.raises(ValueError, match="urn:nowhere"):
        await browse(options(plc), root="nsu=urn:nowhere;s=x")
    with pytest.raises(DeviceRefused, match="BadNodeId"):
        await browse(options(plc), root=f"nsu={URI};s=Nothing")
    taken: list[asyncio.StreamWriter] = []
    silent = await asyncio.start_server(lambda _, writer: taken.append(writer), "127.0.0.1", 0)
    port = silent.sockets[0].getsockname()[1]
    with pytest.raises(LinkDown, match=r"not done within 0\.2 s"):
        await browse(OpcUaOptions(endpoint=f"opc.tcp://127.0.0.1:{port}"), timeout_s=0.2)
    for writer in taken:
        writer.transport.abort()
    silent.close()
    await silent.wait_closed()


# --- methods


@pytest.fixture
async def driver(plc: UaPlc) -> Any:
    driver = OpcUaDriver(
        "tank", [Tag(name="t.level", address=OpcUaAddress(f"nsu={URI};s=Tank.Level"), type=DataType.REAL)], options(plc)
    )
    await driver.connect(5.0)
    yield driver
    await driver.close()


MIX = f"nsu={URI};s=Tank.Mix"


async def test_a_method_is_called_with_the_declared_types(driver: OpcUaDriver) -> None:
    assert await driver.call(ROOT, MIX, [1.5, 3, "batch", True], 3.0) == (4.5, "batch!")
    assert await driver.call(ROOT, f"nsu={URI};s=Tank.Idle", [], 3.0) == ()


@pytest.mark.parametrize(
    ("args", "text"),
    [
        ([1.5, 3, "batch"], "takes 4 arguments"),
        ([1.5, 70000, "batch", True], "Times"),
        ([1.5, 3.5, "batch", True], "Times"),
        (["1.5", 3, "batch", True], "Amount"),
        ([1.5, 3, "batch", 1], "Fast"),
        ([float("nan"), 3, "batch", True], "Amount"),
    ],
)
async def test_nothing_is_sent_that_does_not_fit(driver: OpcUaDriver, args: list[Any], text: str) -> None:
    requests = driver.stats().requests
    with pytest.raises(ValueError, match=text):
        await driver.call(ROOT, MIX, args, 3.0)
    assert driver.stats().requests - requests <= 3, "the declaration is looked up, no more"
    assert (await driver.read(0, 3.0)).values == (1.5,)


async def test_a_refused_call_leaves_the_connection_sound(driver: OpcUaDriver) -> None:
    with pytest.raises(DeviceRefused, match=r"Tank\.Nothing"):
        await driver.call(ROOT, f"nsu={URI};s=Tank.Nothing", [], 3.0)
    assert (await driver.read(0, 3.0)).values == (1.5,)


async def test_a_call_without_an_answer_may_have_been_executed(plc: UaPlc, driver: OpcUaDriver) -> None:
    plc.freeze(0.5)
    with pytest.raises(LinkDown, match="no answer") as caught:
        await driver.call(ROOT, MIX, [1.5, 3, "batch", True], 0.2)
    assert caught.value.timed_out


def test_addresses_survive_both_ways() -> None:
    from drivers.opcua.values import address_of

    spaces = ["http://opcfoundation.org/UA/", "urn:a", "urn:semi;colon"]
    for text in ("i=85", "nsu=urn:a;s=x;ns=1;y", "nsu=urn:a;i=7", "ns=2;s=x", "nsu=urn:a;b=AQI="):
        assert address_of(resolve(text, spaces), spaces) == text
