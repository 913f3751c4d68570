"""What strangers, guessers and broken clients can and cannot do to the gateway."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import struct
from collections.abc import AsyncIterator
from urllib.parse import urlsplit

import pytest
from asyncua import Client, ua
from asyncua.ua.uaerrors import UaStatusCodeError
from opcua_helpers import BOWL, Running, Seen, eventually

pytestmark = pytest.mark.wire


@contextlib.asynccontextmanager
async def channel(gateway: Running) -> AsyncIterator[Client]:
    """A client with a secure channel and no session."""
    client = gateway.client()
    await client.connect_socket()
    try:
        await client.send_hello()
        await client.open_secure_channel()
        yield client
    finally:
        with contextlib.suppress(Exception):
            await client.close_secure_channel()
        client.disconnect_socket()


def activation(user: str, password: str) -> ua.ActivateSessionParameters:
    params = ua.ActivateSessionParameters()
    token = ua.UserNameIdentityToken()
    token.PolicyId, token.UserName, token.Password = "username", user, password.encode()
    params.UserIdentityToken = token
    return params


def anonymous() -> ua.ActivateSessionParameters:
    params = ua.ActivateSessionParameters()
    params.UserIdentityToken = ua.AnonymousIdentityToken()
    params.UserIdentityToken.PolicyId = "anonymous"
    return params


async def connect_raw(gateway: Running) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    parts = urlsplit(gateway.url)
    return await asyncio.open_connection(parts.hostname, parts.port)


HELLO_BODY = struct.pack("<IIIIIi", 0, 65535, 65535, 0, 0, -1)
HELLO_FRAME = struct.pack("<3scI", b"HEL", b"F", 8 + len(HELLO_BODY)) + HELLO_BODY


async def error_and_end(reader: asyncio.StreamReader) -> str:
    """The status of the ERR that the server closes with; checks that it does close."""
    async with asyncio.timeout(5):
        data = await reader.read()
    frames = []
    while data:
        size = struct.unpack_from("<I", data, 4)[0]
        frames.append(data[:size])
        data = data[size:]
    assert frames, "closed without a word"
    assert frames[-1][:3] == b"ERR"
    return ua.StatusCode(struct.unpack_from("<I", frames[-1], 8)[0]).name


async def test_anonymous_reads_but_neither_writes_nor_calls(gateway: Running) -> None:
    async with gateway.client() as client:
        assert await Running.node(client, BOWL).read_value() == 61.5
        number = Running.node(client, "line.command.cntrl_cmd")
        with pytest.raises(UaStatusCodeError, match="BadUserAccessDenied"):
            await number.write_value(2, ua.VariantType.Int32)
        with pytest.raises(UaStatusCodeError, match="BadUserAccessDenied"):
            await Running.node(client, "line.command").call_method("2:Start")
        start = Running.node(client, "line.command.Start")
        executable = await start.read_attribute(ua.AttributeIds.UserExecutable)
        assert executable.Value.Value is False
        level = await number.read_attribute(ua.AttributeIds.UserAccessLevel)
        assert level.Value.Value == ua.AccessLevel.CurrentRead.mask
        with pytest.raises(UaStatusCodeError):
            await client.delete_nodes([Running.node(client, BOWL)])
        with pytest.raises(UaStatusCodeError):
            await client.nodes.objects.add_object(2, "mine")
        with pytest.raises(UaStatusCodeError, match="BadUserAccessDenied"):
            await Running.node(client, BOWL).write_attribute(
                ua.AttributeIds.DisplayName, ua.DataValue(ua.LocalizedText("x"))
            )
    assert gateway.north.commands.empty()
    async with gateway.operator() as client:
        shown = await Running.node(client, "line.command.Start").read_attribute(ua.AttributeIds.UserExecutable)
        assert shown.Value.Value is True


@pytest.mark.parametrize("login", [("operator", "wrong"), ("admin", ""), ("admin", "admin"), ("", "x")])
async def test_wrong_passwords_and_asyncuas_built_in_admin_are_refused(
    gateway: Running, login: tuple[str, str]
) -> None:
    async with channel(gateway) as client:
        await client.create_session()
        with pytest.raises(UaStatusCodeError, match="BadUserAccessDenied"):
            await client.uaclient.activate_session(activation(*login))
        with pytest.raises(UaStatusCodeError):
            await Running.node(client, BOWL).read_value()


async def test_tokens_cannot_be_guessed(gateway: Running) -> None:
    async with gateway.client() as one, gateway.client() as two:
        tokens = [c.uaclient.session.authentication_token for c in (one, two)]
        assert all(len(t.Identifier) == 32 and isinstance(t.Identifier, bytes) for t in tokens)
        assert tokens[0] != tokens[1]


async def test_a_session_cannot_be_taken_over(gateway: Running) -> None:
    seen = Seen()
    async with gateway.operator() as victim:
        subscription = await victim.create_subscription(50, seen)
        await subscription.subscribe_data_change(Running.node(victim, BOWL))
        await seen.until(lambda _, value, __: value == 61.5)
        stolen = victim.uaclient.session.authentication_token
        for token, attempt in (
            (stolen, activation("operator", "wrong")),
            (stolen, activation("admin", "admin")),
            (stolen, anonymous()),
            (ua.NodeId(secrets.token_bytes(32), 0, ua.NodeIdType.ByteString), activation("operator", "wrong")),
            (ua.NodeId(1001), anonymous()),
        ):
            async with channel(gateway) as thief:
                thief.uaclient.session.restore_authentication_token(token)
                with pytest.raises(UaStatusCodeError):
                    await thief.uaclient.activate_session(attempt)
                with pytest.raises(UaStatusCodeError):
                    await Running.node(thief, BOWL).read_value()
                with pytest.raises(UaStatusCodeError):
                    await Running.node(thief, "line.command").call_method("2:Start")
        async with gateway.client() as thief:  # an activated session of one's own does not help either
            thief.uaclient.session.restore_authentication_token(stolen)
            with pytest.raises(UaStatusCodeError, match="BadSessionIdInvalid"):
                await Running.node(thief, "line.command").call_method("2:Start")
        gateway.north.put({BOWL: 12.0})
        await seen.until(lambda _, value, __: value == 12.0)
        assert gateway.north.commands.empty()
        assert (await Running.node(victim, "line.command").call_method("2:Stop"))[0] is True
        await subscription.delete()


async def test_its_own_user_can_move_a_session_to_a_new_channel(gateway: Running) -> None:
    async with channel(gateway) as old, channel(gateway) as new:
        await old.create_session()
        await old.uaclient.activate_session(activation(gateway.user, gateway.password))
        assert await Running.node(old, BOWL).read_value() == 61.5
        new.uaclient.session.restore_authentication_token(old.uaclient.session.authentication_token)
        await new.uaclient.activate_session(activation(gateway.user, gateway.password))
        assert (await Running.node(new, "line.command").call_method("2:Stop"))[0] is True
        with pytest.raises(UaStatusCodeError, match="BadSessionIdInvalid"):
            await Running.node(old, BOWL).read_value()
        old.disconnect_socket()
        assert await Running.node(new, BOWL).read_value() == 61.5
        await new.close_session()


async def test_one_channel_holds_one_session(gateway: Running) -> None:
    async with channel(gateway) as client:
        await client.create_session()
        with pytest.raises(UaStatusCodeError, match="BadTooManySessions"):
            await client.create_session()


async def test_a_stranger_cannot_touch_anothers_subscription(gateway: Running) -> None:
    seen = Seen()
    async with gateway.client() as owner, gateway.operator() as other:
        subscription = await owner.create_subscription(50, seen)
        await subscription.subscribe_data_change(Running.node(owner, BOWL))
        number = subscription.subscription_id
        deleted = await other.uaclient.delete_subscriptions([number])
        assert deleted[0].name == "BadSubscriptionIdInvalid"
        moved = await other.uaclient.transfer_subscriptions(ua.TransferSubscriptionsParameters([number], False))
        assert moved[0].StatusCode.name == "BadUserAccessDenied"
        with pytest.raises(UaStatusCodeError, match="BadSubscriptionIdInvalid"):
            await other.uaclient.create_monitored_items(ua.CreateMonitoredItemsParameters(number, ItemsToCreate=[
                ua.MonitoredItemCreateRequest()
            ]))  # fmt: skip
        gateway.north.put({BOWL: 13.0})
        await seen.until(lambda _, value, __: value == 13.0)
        await subscription.delete()


async def test_one_session_cannot_use_up_all_subscriptions(gateway: Running) -> None:
    async with gateway.client() as greedy, gateway.client() as other:
        made = []
        with pytest.raises(UaStatusCodeError, match="BadTooManySubscriptions"):
            for _ in range(50):
                asked = ua.CreateSubscriptionParameters(1000, 1000, 10, 0, True, 0)
                made.append((await greedy.uaclient.create_subscription(asked, lambda _: None)).SubscriptionId)
        assert len(made) == 20
        subscription = await other.create_subscription(50, Seen())
        await subscription.delete()
        await greedy.uaclient.delete_subscriptions(made)


async def test_republish_of_what_is_gone_says_so(gateway: Running) -> None:
    async with gateway.client() as client:
        subscription = await client.create_subscription(50, Seen())
        for number, status in (
            (subscription.subscription_id, "BadMessageNotAvailable"),
            (9, "BadSubscriptionIdInvalid"),
        ):
            with pytest.raises(UaStatusCodeError, match=status):
                await client.uaclient.session.republish(number, 4711)
        await subscription.delete()


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", "BadTcpMessageTypeInvalid"),
        (struct.pack("<3scI", b"HEL", b"F", 2**32 - 1), "BadTcpMessageTooLarge"),
        (struct.pack("<3scI", b"HEL", b"F", 8), "BadTcpMessageTypeInvalid"),
        (struct.pack("<3scI", b"MSG", b"F", 64) + bytes(56), "BadTcpMessageTypeInvalid"),
        (struct.pack("<3scI", b"HEL", b"F", 32) + struct.pack("<IIIIIi", 0, 25, 25, 0, 0, -1), "BadConnectionRejected"),
        (HELLO_FRAME + struct.pack("<3scI", b"OPN", b"F", 2**31), "BadTcpMessageTooLarge"),
        (HELLO_FRAME + HELLO_FRAME, "BadTcpMessageTypeInvalid"),
        (HELLO_FRAME + struct.pack("<3scI", b"MSG", b"F", 64) + bytes(56), "BadTcpSecureChannelUnknown"),
        (HELLO_FRAME + struct.pack("<3scI", b"OPN", b"F", 64) + b"\xff" * 56, "BadSecurityChecksFailed"),
    ],
)
async def test_a_protocol_error_ends_the_connection_with_its_reason(gateway: Running, data: bytes, status: str) -> None:
    reader, writer = await connect_raw(gateway)
    try:
        writer.write(data)
        await writer.drain()
        assert await error_and_end(reader) == status
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def test_garbage_in_an_open_channel_ends_it_and_others_do_not_notice(gateway: Running) -> None:
    async with gateway.client() as client:
        async with channel(gateway) as broken:
            transport = broken.uaclient.protocol.transport
            transport.write(struct.pack("<3scIIIII", b"MSG", b"F", 44, 4711, 1, 1, 1) + b"\xee" * 20)

            async def cut() -> bool:
                return bool(transport.is_closing())

            await eventually(cut)
        assert await Running.node(client, BOWL).read_value() == 61.5


async def test_nobody_registers_servers_here_and_history_is_not_pretended(gateway: Running) -> None:
    async with gateway.client() as client:
        with pytest.raises(UaStatusCodeError, match="BadServiceUnsupported"):
            await client.uaclient.register_server(ua.RegisteredServer())
        with pytest.raises(UaStatusCodeError, match="BadHistoryOperationUnsupported"):
            await Running.node(client, BOWL).read_raw_history()


async def test_limits_of_one_request(gateway: Running) -> None:
    async with gateway.operator() as client:
        number = ua.WriteValue(ua.NodeId("line.command.cntrl_cmd", 2), ua.AttributeIds.Value, None, ua.DataValue(0))
        with pytest.raises(UaStatusCodeError, match="BadTooManyOperations"):
            await client.uaclient.write(ua.WriteParameters([number] * 101))
        limit = client.get_node(ua.ObjectIds.Server_ServerCapabilities_OperationLimits_MaxNodesPerWrite)
        assert await limit.read_value() == 100


async def test_a_client_that_does_not_read_is_cut_off_and_delays_nobody(gateway: Running) -> None:
    async with gateway.client() as quick, channel(gateway) as stuck:
        await stuck.create_session()
        await stuck.uaclient.activate_session(anonymous())
        transport = stuck.uaclient.protocol.transport
        transport.pause_reading()
        texts = ua.ReadParameters()
        texts.NodesToRead = [ua.ReadValueId(ua.NodeId("line.alarm_list", 2), ua.AttributeIds.Value)] * 1000
        gateway.north.put({"line.alarm_list": "x" * 2000})
        requests = [asyncio.create_task(stuck.uaclient.read(texts)) for _ in range(12)]
        worst = 0.0
        loop = asyncio.get_running_loop()
        for _ in range(30):
            began = loop.time()
            await Running.node(quick, BOWL).read_value()
            worst = max(worst, loop.time() - began)
            await asyncio.sleep(0.02)
        assert worst < 1.0
        assert "client does not read, disconnected" in gateway.log.read_text()
        for request in requests:
            request.cancel()
        await asyncio.gather(*requests, return_exceptions=True)
