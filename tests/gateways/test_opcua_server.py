"""The gateway process seen by real OPC UA clients, in front of a scripted controller."""

from __future__ import annotations

import asyncio
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from asyncua import ua
from fake_north import NODES
from opcua_helpers import BOWL, Running, Seen, eventually

from controller.north.frames import Reply

pytestmark = pytest.mark.wire


async def test_every_north_node_is_a_variable_with_its_path_as_node_id(gateway: Running) -> None:
    async with gateway.client() as client:
        assert (await client.get_namespace_array())[2] == "urn:linewright:bottling"
        wanted = [Running.node(client, path) for path in NODES]
        values = await client.read_attributes(wanted)
        for (path, (node, value)), seen in zip(NODES.items(), values, strict=True):
            if value is None:
                assert seen.StatusCode.name == "BadWaitingForInitialData", path
            else:
                assert seen.StatusCode.is_good(), path
                assert seen.Value.Value == value, path
                assert type(seen.Value.Value) is {"bool": bool, "int": int, "float": float, "str": str}[node.type]


async def test_browsing_leads_from_objects_to_every_variable(gateway: Running) -> None:
    async with gateway.client() as client:
        line = await client.nodes.objects.get_child("2:bottling")
        for names, path in (
            (["2:Status", "2:StateCurrent"], "line.state_current"),
            (["2:Admin", "2:Good"], "line.good"),
            (["2:Alarms", "2:AlarmList"], "line.alarm_list"),
            (["2:Stations", "2:filler", "2:Status", "2:StateCurrent"], "stations.filler.state_current"),
            (["2:Stations", "2:filler", "2:Admin", "2:ProdProcessedCount"], "stations.filler.prod_processed_count"),
            (["2:Stations", "2:filler", "2:Alarms", "2:low", "2:Active"], "stations.filler.alarms.low.active"),
            (["2:Links", "2:wet", "2:Up"], "plcs.wet.up"),
        ):
            found = await line.get_child(names)
            assert found.nodeid == ua.NodeId(path, 2)
        found_ids, todo = set(), [line]
        while todo:
            parent = todo.pop()
            children = await parent.get_children()
            assert len(children) <= 100, parent
            found_ids |= {str(child.nodeid.Identifier) for child in children}
            todo += [child for child in children if str(child.nodeid.Identifier) not in NODES]
        assert set(NODES) <= found_ids


async def test_types_units_ranges_and_texts(gateway: Running) -> None:
    async with gateway.client() as client:
        bowl = Running.node(client, BOWL)
        assert await bowl.read_data_type_as_variant_type() == ua.VariantType.Double
        assert (await bowl.read_description()).Text == "Level in the bowl"
        unit = await (await bowl.get_child("0:EngineeringUnits")).read_value()
        assert (unit.DisplayName.Text, unit.UnitId) == ("%", int.from_bytes(b"P1", "big"))
        limits = await (await bowl.get_child("0:EURange")).read_value()
        assert (limits.Low, limits.High) == (0.0, 100.0)
        state = Running.node(client, "line.state_current")
        assert await state.read_data_type_as_variant_type() == ua.VariantType.Int32
        texts = await (await state.get_child("0:EnumValues")).read_value()
        assert {each.Value: each.DisplayName.Text for each in texts}[9] == "Aborted"
        assert (await (await state.get_child("0:ValueAsText")).read_value()).Text == "Stopped"
        assert await Running.node(client, "line.scan_count").read_data_type_as_variant_type() == ua.VariantType.Int64
        assert await Running.node(client, "line.Recipes").read_value() == ["water-500", "cola-330"]


async def test_changes_arrive_with_the_time_of_the_scan(gateway: Running) -> None:
    seen = Seen()
    async with gateway.client() as client:
        subscription = await client.create_subscription(50, seen)
        await subscription.subscribe_data_change([Running.node(client, p) for p in (BOWL, "line.state_current")])
        await seen.until(lambda path, value, _: path == BOWL and value == 61.5)
        at = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
        gateway.north.put({BOWL: 44.25, "line.state_current": 6}, at=int(at.timestamp() * 1e9))
        await seen.until(lambda path, value, _: path == BOWL and value == 44.25)
        await seen.until(lambda path, value, _: path == "line.state_current" and value == 6)
        shown = await Running.node(client, BOWL).read_data_value()
        assert shown.SourceTimestamp == at
        assert abs((datetime.now(UTC) - shown.ServerTimestamp).total_seconds()) < 5
        assert (await Running.node(client, "line.state_current.ValueAsText").read_value()).Text == "Execute"
        await subscription.delete()


async def test_the_publishing_interval_has_a_floor_and_the_lifetime_too(gateway: Running) -> None:
    async with gateway.client() as client:
        for interval, revised in ((0.0, 50.0), (1.0, 50.0), (float("nan"), 50.0), (70.0, 70.0), (1e9, 60_000.0)):
            asked = ua.CreateSubscriptionParameters(interval, 3, 1, 0, True, 0)
            result = await client.uaclient.create_subscription(asked, lambda _: None)
            assert result.RevisedPublishingInterval == revised
            assert result.RevisedLifetimeCount * revised >= 300_000 or result.RevisedLifetimeCount == 15_000
            await client.uaclient.delete_subscriptions([result.SubscriptionId])


async def test_a_bad_value_is_bad_and_passes_every_deadband(gateway: Running) -> None:
    seen = Seen()
    async with gateway.client() as client:
        subscription = await client.create_subscription(50, seen)
        await subscription.deadband_monitor(Running.node(client, BOWL), 5.0)
        await seen.until(lambda _, value, __: value == 61.5)
        for step in range(1, 9):  # a slow ramp: each step below the deadband, the sum above it
            gateway.north.put({BOWL: 61.5 + step})
            await asyncio.sleep(0.01)
        await seen.until(lambda _, value, __: value == 67.5)
        gateway.north.put({}, bad={BOWL: "wet is not connected: timed out"})
        await seen.until(lambda _, __, status: status.name == "BadNoCommunication")
        gateway.north.put({BOWL: 68.0})
        await seen.until(lambda _, value, status: value == 68.0 and status.is_good())
        assert [value for _, value, _ in seen.values] == [61.5, 67.5, None, 68.0]
        await subscription.delete()


@pytest.mark.parametrize(
    ("path", "value", "status"),
    [
        (BOWL, float("nan"), "BadOutOfRange"),
        (BOWL, "61", "BadTypeMismatch"),
        ("line.good", 2**31, "BadOutOfRange"),
        ("line.scan_count", 2**63, "BadOutOfRange"),
        ("plcs.wet.up", 1, "BadTypeMismatch"),
    ],
)
async def test_a_value_that_a_node_cannot_have_is_bad_and_harms_no_other(
    gateway: Running, path: str, value: Any, status: str
) -> None:
    async with gateway.client() as client:
        gateway.north.put({path: value, "line.product": f"after {path}"})

        async def arrived() -> bool:
            return bool(await Running.node(client, "line.product").read_value() == f"after {path}")

        await eventually(arrived)
        shown = await Running.node(client, path).read_data_value(raise_on_bad_status=False)
        assert shown.StatusCode.name == status


async def test_without_controller_everything_is_bad_within_a_second_and_comes_back(gateway: Running) -> None:
    seen = Seen()
    async with gateway.client() as client, gateway.operator() as operator:
        subscription = await client.create_subscription(50, seen)
        await subscription.subscribe_data_change(Running.node(client, BOWL))
        await seen.until(lambda _, value, __: value == 61.5)
        level = client.get_node(ua.ObjectIds.Server_ServiceLevel)
        assert await level.read_value() == 255
        gateway.north.stop()
        try:
            await seen.until(lambda _, __, status: status.name == "BadNoCommunication", limit_s=1)
            values = await client.read_attributes([Running.node(client, p) for p in NODES])
            assert {v.StatusCode.name for v in values} == {"BadNoCommunication"}
            assert await level.read_value() == 1
            with pytest.raises(ua.UaStatusCodeError, match="BadNoCommunication"):
                await Running.node(operator, "line.command").call_method("2:Stop")
            assert "nothing was sent" in await Running.node(operator, "line.command.reply").read_value()
        finally:
            seen.forget()
            gateway.north.start()
        await seen.until(lambda _, value, status: value == 61.5 and status.is_good())
        assert await level.read_value() == 255
        await subscription.delete()


async def test_a_controller_that_falls_silent_counts_as_lost(gateway: Running) -> None:
    async with gateway.client() as client:
        bowl = Running.node(client, BOWL)
        began = time.monotonic()
        gateway.north.silent = True

        async def bad() -> bool:
            shown = await bowl.read_data_value(raise_on_bad_status=False)
            return bool(shown.StatusCode.name == "BadNoCommunication")

        await eventually(bad, limit_s=6)
        assert time.monotonic() - began > 1.5
        gateway.north.silent = False

        async def good() -> bool:
            return bool((await bowl.read_data_value(raise_on_bad_status=False)).StatusCode.is_good())

        await eventually(good)


async def test_two_clients_and_one_that_stops_asking(gateway: Running) -> None:
    first, second = Seen(), Seen()
    async with gateway.client() as one, gateway.client() as two:
        slow = await one.create_subscription(50, first)
        await slow.subscribe_data_change(Running.node(one, BOWL))
        quick = await two.create_subscription(50, second)
        await quick.subscribe_data_change(Running.node(two, BOWL))
        await second.until(lambda _, value, __: value == 61.5)
        for value in range(20):
            gateway.north.put({BOWL: float(value)})
        await second.until(lambda _, value, __: value == 19.0)
        await first.until(lambda _, value, __: value == 19.0)
        await slow.delete()
        gateway.north.put({BOWL: 20.0})
        await second.until(lambda _, value, __: value == 20.0)
        assert all(value != 20.0 for _, value, _ in first.values)
        await quick.delete()


async def test_a_method_goes_north_with_user_and_client(gateway: Running) -> None:
    async with gateway.operator() as client:
        command = Running.node(client, "stations.filler.command")
        assert await command.call_method("2:Start") == [True, "on its way"]
        sent = gateway.north.next_command().command
        assert (sent.target, sent.name, sent.args, sent.user) == ("filler", "start", {}, "operator")
        assert "127.0.0.1" in sent.client
        gateway.north.answer = lambda request: Reply(id=request.command.id, accepted=False, reason="guard open")
        assert await command.call_method("2:Start") == [False, "guard open"]
        assert await Running.node(client, "stations.filler.command.reply").read_value() == "start: refused: guard open"
        line = Running.node(client, "line.command")
        await line.call_method("2:Changeover", "cola-330", True)
        assert [gateway.north.next_command() for _ in range(2)][1].command.args == {"recipe": "cola-330", "start": True}
        await line.call_method("2:SetMachSpeed", 120.5)
        await line.call_method("2:Shelve", ua.Variant(15, ua.VariantType.Int16))
        assert gateway.north.next_command().command.args == {"speed": 120.5}
        assert gateway.north.next_command().command.args == {"minutes": 15}


@pytest.mark.parametrize(
    ("method", "args", "status"),
    [
        ("2:Start", ["x"], "BadTooManyArguments"),
        ("2:SetMode", [], "BadArgumentsMissing"),
        ("2:Changeover", ["cola-330"], "BadArgumentsMissing"),
        ("2:SetMode", [1], "BadInvalidArgument"),
        ("2:SetMode", [["production"]], "BadInvalidArgument"),
        ("2:SetMode", ["x" * 300], "BadInvalidArgument"),
        ("2:Changeover", ["cola-330", 1], "BadInvalidArgument"),
        ("2:SetMachSpeed", ["120"], "BadInvalidArgument"),
        ("2:SetMachSpeed", [float("nan")], "BadInvalidArgument"),
        ("2:SetMachSpeed", [True], "BadInvalidArgument"),
        ("2:Shelve", [2**40], "BadInvalidArgument"),
        ("2:Shelve", [1.0], "BadInvalidArgument"),
    ],
)
async def test_wrong_arguments_never_go_north(gateway: Running, method: str, args: list[Any], status: str) -> None:
    async with gateway.operator() as client:
        with pytest.raises(ua.UaStatusCodeError, match=status):
            await Running.node(client, "line.command").call_method(method, *args)
        await Running.node(client, "line.command").call_method("2:Stop")  # what comes north next is this one
        assert gateway.north.next_command().command.name == "stop"


async def test_which_argument_is_wrong_is_said(gateway: Running) -> None:
    async with gateway.operator() as client:
        request = ua.CallMethodRequest(
            ua.NodeId("line.command", 2), ua.NodeId("line.command.Changeover", 2), [ua.Variant("x"), ua.Variant("y")]
        )
        result = (await client.uaclient.call([request]))[0]
        assert [s.name for s in result.InputArgumentResults] == ["Good", "BadTypeMismatch"]
        request.ObjectId = ua.NodeId("stations.filler.command", 2)
        assert (await client.uaclient.call([request]))[0].StatusCode.name == "BadMethodInvalid"


async def test_a_stop_does_not_wait_behind_a_call_without_answer(gateway: Running) -> None:
    gateway.north.answer = lambda r: None if r.command.name == "start" else Reply(id=r.command.id, accepted=True)
    async with gateway.operator() as client:
        command = Running.node(client, "line.command")
        start = asyncio.create_task(command.call_method("2:Start"))
        await asyncio.to_thread(gateway.north.next_command)
        began = time.monotonic()
        assert (await command.call_method("2:Stop"))[0] is True
        assert time.monotonic() - began < 1
        start.cancel()
        await asyncio.gather(start, return_exceptions=True)


async def test_a_command_whose_answer_is_lost_is_reported_as_unknown(gateway: Running) -> None:
    gateway.north.answer = lambda _: None
    async with gateway.operator() as client:
        call = asyncio.create_task(Running.node(client, "line.command").call_method("2:Start"))
        await asyncio.to_thread(gateway.north.next_command)
        gateway.north.drop()
        with pytest.raises(ua.UaStatusCodeError, match="BadTimeout"):
            await call
        reply = await Running.node(client, "line.command.reply").read_value()
        assert "may have been carried out" in reply
        level = client.get_node(ua.ObjectIds.Server_ServiceLevel)

        async def back() -> bool:
            return bool(await level.read_value() == 255)

        await eventually(back)


async def test_command_variables(gateway: Running) -> None:
    async with gateway.operator() as client:
        number = Running.node(client, "stations.filler.command.cntrl_cmd")
        await number.write_value(2, ua.VariantType.Int32)
        assert gateway.north.next_command().command.name == "start"
        await number.write_value(2, ua.VariantType.Int32)  # the same again is a command again
        assert gateway.north.next_command().command.name == "start"
        assert await number.read_value() == 0
        await number.write_value(0, ua.VariantType.Int32)
        for value, kind, status in (
            (11, ua.VariantType.Int32, "BadOutOfRange"),
            (4, ua.VariantType.Int32, "BadOutOfRange"),  # Hold, which this target does not take
            (2.0, ua.VariantType.Double, "BadTypeMismatch"),
            ("2", ua.VariantType.String, "BadTypeMismatch"),
        ):
            with pytest.raises(ua.UaStatusCodeError, match=status):
                await number.write_value(value, kind)
        gateway.north.answer = lambda r: Reply(id=r.command.id, accepted=False, reason="already running")
        with pytest.raises(ua.UaStatusCodeError, match="BadInvalidState"):
            await number.write_value(2, ua.VariantType.Int32)
        assert gateway.north.next_command().command.name == "start"
        assert "already running" in await Running.node(client, "stations.filler.command.reply").read_value()
        gateway.north.answer = lambda r: Reply(id=r.command.id, accepted=True)
        await Running.node(client, "line.command.changeover").write_value("cola-330")
        sent = gateway.north.next_command().command
        assert (sent.target, sent.name, sent.args) == ("line", "changeover", {"recipe": "cola-330"})
        assert await Running.node(client, "line.command.changeover").read_value() == "cola-330"
        with pytest.raises(ua.UaStatusCodeError, match="BadNotWritable"):
            await Running.node(client, "line.state_current").write_value(6, ua.VariantType.Int32)
        assert gateway.north.commands.empty()


async def tool(name: str, *args: str, limit_s: float = 15, until: bytes = b"") -> str:
    """Run one of asyncua's command-line tools, to its end or until it has printed something."""
    process = await asyncio.create_subprocess_exec(
        str(Path(sys.executable).parent / name), *args, stdout=-1, stderr=-1, env={"PYTHONUNBUFFERED": "1"}
    )
    try:
        async with asyncio.timeout(limit_s):
            if not until:
                out, err = await process.communicate()
                assert process.returncode == 0, (out, err)
                return out.decode()
            assert process.stdout is not None
            out = b""
            while until not in out:
                part = await process.stdout.read(4096)
                assert part, out
                out += part
            return out.decode()
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()


async def test_command_line_tools_of_others_work_with_it(gateway: Running) -> None:
    url = ["-u", gateway.url]
    login = ["--user", gateway.user, "--password", gateway.password]
    async with asyncio.TaskGroup() as group:
        runs = [
            group.create_task(tool(*command, until=until))
            for command, until in (
                (["uals", *url, "-n", "ns=2;s=stations.filler", "-d", "2"], b""),
                (["uaread", *url, "-n", f"ns=2;s={BOWL}"], b""),
                (["uacall", *url, *login, "-n", "ns=2;s=line.command", "-m", "2:SetMode", "-t", "string", "x"], b""),
                (["uasubscribe", *url, "-n", f"ns=2;s={BOWL}"], b"61.5"),
            )
        ]
    listed, read, called, subscribed = (run.result() for run in runs)
    assert "state_current" in listed
    assert read.strip() == "61.5"
    assert "True" in called
    assert gateway.north.next_command().command.args == {"mode": "x"}
    assert "61.5" in subscribed
