"""What an OPC UA server says of itself and of its nodes, for engineers: reads only, one short session, no retry."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from urllib.parse import urlsplit

from asyncua import ua
from asyncua.crypto import security_policies
from asyncua.ua.attribute_ids import AttributeIds
from asyncua.ua.object_ids import ObjectIds

from drivers.opcua.channel import Channel, ChannelLost, ServiceFault
from drivers.opcua.meter import Meter
from drivers.opcua.pki import CertificateProblem
from drivers.opcua.session import Session
from drivers.opcua.values import resolve, status_name
from drivers.options import OpcUaOptions
from drivers.port import DataType, LinkDown

TYPES = {
    ObjectIds.Boolean: DataType.BOOL, ObjectIds.SByte: DataType.SINT, ObjectIds.Byte: DataType.USINT,
    ObjectIds.Int16: DataType.INT, ObjectIds.UInt16: DataType.UINT, ObjectIds.Int32: DataType.DINT,
    ObjectIds.UInt32: DataType.UDINT, ObjectIds.Int64: DataType.LINT, ObjectIds.UInt64: DataType.ULINT,
    ObjectIds.Float: DataType.REAL, ObjectIds.Double: DataType.LREAL, ObjectIds.String: DataType.STRING,
}  # fmt: skip
"""Built-in types (OPC 10000-6, 5.1.2) that a tag may have."""
BUILD = ("ProductUri", "ManufacturerName", "ProductName", "SoftwareVersion", "BuildNumber", "BuildDate")
MAX_NODES = 500
"""Nodes asked for in one Read."""


@dataclass(frozen=True)
class EndpointFact:
    """One way to reach a server: security and who may log in."""

    url: str
    policy: str
    mode: str
    level: int
    """The server's own rank of its endpoints; higher is safer."""
    users: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class ServerFacts:
    """What a server says of itself. ``problem`` tells why there is nothing but the endpoints."""

    endpoints: tuple[EndpointFact, ...]
    state: str = ""
    level: int | None = None
    """Service level, 0..255."""
    started: datetime | None = None
    now: datetime | None = None
    """The server's clock, UTC."""
    build: dict[str, str] = field(default_factory=dict)
    namespaces: tuple[str, ...] = ()
    problem: str = ""


@dataclass(frozen=True)
class NodeFact:
    """What a tag of this node must be. ``type`` is ``None`` when it cannot be one; ``problem`` says why."""

    type: DataType | None
    writable: bool = False
    description: str = ""
    problem: str = ""


async def survey(options: OpcUaOptions, timeout_s: float) -> ServerFacts:
    """Endpoints, and with a session: state, build and namespaces. ``timeout_s`` is for all of it.

    Raises :class:`~drivers.port.LinkDown` when not even the endpoints are to be had.
    """
    try:
        async with asyncio.timeout(timeout_s):
            endpoints = await _endpoints(options.endpoint)
    except (ChannelLost, ServiceFault, OSError) as exc:  # TimeoutError is one
        raise _down(options, exc, timeout_s) from exc
    try:
        async with _session(options, timeout_s) as session:
            return await _facts(session, endpoints)
    except LinkDown as exc:
        return ServerFacts(endpoints=endpoints, problem=str(exc))


async def describe(options: OpcUaOptions, node_ids: Sequence[str], timeout_s: float) -> dict[str, NodeFact]:
    """Type and access of these nodes (as in line.yaml). Raises :class:`~drivers.port.LinkDown`."""
    async with _session(options, timeout_s) as session:
        namespaces = await _namespaces(session)
        found: dict[str, NodeFact] = {}
        known: dict[str, ua.NodeId] = {}
        for text in node_ids:
            try:
                known[text] = resolve(text, list(namespaces))
            except LookupError as exc:
                found[text] = NodeFact(None, problem=str(exc.args[0]))
        names = list(known)
        for first in range(0, len(names), MAX_NODES):
            part = names[first : first + MAX_NODES]
            nodes = [known[name] for name in part]
            answers = [await session.read(nodes, attribute) for attribute in (
                AttributeIds.DataType, AttributeIds.Value, AttributeIds.UserAccessLevel,
                AttributeIds.Description)]  # fmt: skip
            found |= {name: _node(*each) for name, *each in zip(part, *answers, strict=True)}
        return found


def _node(kind: ua.DataValue, value: ua.DataValue, access: ua.DataValue, text: ua.DataValue) -> NodeFact:
    status = kind.StatusCode
    if kind.Value is None or (status is not None and status.is_bad()):
        what = status_name(status.value) if status is not None else "no data type"
        return NodeFact(None, problem=f"{what}: not a variable of this server")
    description = getattr(text.Value.Value, "Text", "") if text.Value is not None else ""
    level = access.Value.Value if access.Value is not None else 0
    writable = isinstance(level, int) and bool(level & 2)
    if value.Value is not None and value.Value.is_array:
        return NodeFact(None, writable, description or "", "an array; a tag is a single value")
    node: Any = kind.Value.Value
    type_ = TYPES.get(node.Identifier) if node.NamespaceIndex == 0 else None
    if type_ is None and value.Value is not None:  # an enumeration, say: what it is on the wire
        type_ = TYPES.get(int(getattr(value.Value.VariantType, "value", 0)))
    if type_ is None:
        return NodeFact(
            None, writable, description or "", f"its data type {node.to_string()} is none that a tag can have"
        )
    return NodeFact(type_, writable, description or "")


async def _facts(session: Session, endpoints: tuple[EndpointFact, ...]) -> ServerFacts:
    ids = (
        ObjectIds.Server_ServerStatus_State, ObjectIds.Server_ServiceLevel, ObjectIds.Server_ServerStatus_StartTime,
        ObjectIds.Server_ServerStatus_CurrentTime,
        *(getattr(ObjectIds, f"Server_ServerStatus_BuildInfo_{name}") for name in BUILD),
    )  # fmt: skip
    answers = await session.read([ua.NodeId(ua.Int32(i)) for i in ids])
    state, level, started, now, *build = [a.Value.Value if a.Value is not None else None for a in answers]
    names = {each.value: each.name for each in ua.ServerState}
    return ServerFacts(
        endpoints=endpoints,
        state="" if state is None else names.get(int(state), str(state)),
        level=level if isinstance(level, int) else None,
        started=started if isinstance(started, datetime) else None,
        now=now if isinstance(now, datetime) else None,
        build={name: str(value) for name, value in zip(BUILD, build, strict=True) if value},
        namespaces=await _namespaces(session),
    )


async def _namespaces(session: Session) -> tuple[str, ...]:
    [answer] = await session.read([ua.NodeId(ua.Int32(ObjectIds.Server_NamespaceArray))])
    array = answer.Value.Value if answer.Value is not None else None
    if not isinstance(array, list):
        raise ChannelLost("the server does not tell its namespaces", "a server fault")
    return tuple(map(str, array))


async def _endpoints(url: str) -> tuple[EndpointFact, ...]:
    address = urlsplit(url)
    if not address.hostname:
        raise ChannelLost(f"{url!r} names no host", "write opc.tcp://host:4840")
    policy: Any = security_policies.SecurityPolicyNone  # not typed in the library
    channel = Channel(policy(), Meter(), time.monotonic_ns)
    try:
        await channel.open(address.hostname, address.port or 4840, url, 60_000)
        request = ua.GetEndpointsRequest()
        request.Parameters.EndpointUrl = url
        offered = (await channel.request(request, ua.GetEndpointsResponse)).Endpoints or []
        channel.goodbye()
    finally:
        channel.drop(ChannelLost("not connected"))
    return tuple(
        EndpointFact(
            each.EndpointUrl or "",
            (each.SecurityPolicyUri or "").rpartition("#")[2],
            each.SecurityMode.name,
            each.SecurityLevel,
            tuple(dict.fromkeys(token.TokenType.name for token in each.UserIdentityTokens or [])),
        )
        for each in offered
    )


@contextlib.asynccontextmanager
async def _session(options: OpcUaOptions, timeout_s: float) -> AsyncIterator[Session]:
    """A session for so long; whatever goes wrong on the way is a :class:`~drivers.port.LinkDown`."""
    try:
        session = Session("survey", options.endpoint, options, Meter())
    except ValueError as exc:
        raise LinkDown("survey", str(exc), hint="write opc.tcp://host:4840") from exc
    try:
        async with asyncio.timeout(timeout_s):
            await session.open()
            yield session
            await session.close()
    except (ChannelLost, ServiceFault, CertificateProblem, OSError) as exc:
        raise _down(options, exc, timeout_s) from exc
    finally:
        session.drop(ChannelLost("not connected"))


def _down(options: OpcUaOptions, exc: Exception, timeout_s: float) -> LinkDown:
    if isinstance(exc, TimeoutError):
        what, hint = f"no answer within {timeout_s:g} s", "check that the server runs, address and port"
        return LinkDown("survey", what, where=options.endpoint, hint=hint, timed_out=True)
    what, hint = getattr(exc, "what", "") or str(exc), getattr(exc, "hint", "") or "check power, network and address"
    return LinkDown("survey", what, where=options.endpoint, hint=hint)
