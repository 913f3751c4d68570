"""What a server has: its variables as tags to choose from (OPC 10000-4, 5.9; OPC 10000-8, 5.3.2)."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from asyncua import ua
from asyncua.ua.attribute_ids import AttributeIds
from asyncua.ua.object_ids import ObjectIds
from asyncua.ua.status_codes import StatusCodes

from drivers.opcua.channel import ChannelLost, ServiceFault
from drivers.opcua.datatypes import our_types
from drivers.opcua.meter import Meter
from drivers.opcua.pki import CertificateProblem
from drivers.opcua.references import Reference, follow
from drivers.opcua.session import Session
from drivers.opcua.values import address_of, resolve
from drivers.options import OpcUaOptions
from drivers.port import DataType, DeviceRefused, LinkDown

BATCH = 500
"""Nodes whose attributes are read at once where the server sets no limit."""
GOODBYE_S = 0.5
_CLASSES = int(ua.NodeClass.Object) | int(ua.NodeClass.Variable)
_SERVER = ua.NodeId(ua.Int32(ObjectIds.Server))


@dataclass(frozen=True, slots=True, kw_only=True)
class BrowsedTag:
    """One variable of a server."""

    address: str
    """As in a tag list: ``nsu=<uri>;s=…``, or ``i=…`` in the standard's own namespace."""
    path: str
    """Browse names from below the root on, joined by ``/``."""
    type: DataType | None
    """``None`` when no tag can hold it; ``problem`` says why."""
    problem: str = ""
    readable: bool
    writable: bool
    """For the user that browsed."""
    unit: str = ""
    low: float | None = None
    high: float | None = None
    """Engineering unit and range, where the variable is an analog item."""
    description: str = ""


@dataclass(slots=True)
class _Found:
    node_id: ua.NodeId
    path: str
    properties: dict[str, ua.NodeId] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Limits:
    """Most nodes in one Browse and one Read; 0: any number."""

    browse: int
    read: int


async def browse(
    options: OpcUaOptions, *, root: str | None = None, depth: int = 20, limit: int = 20_000, timeout_s: float = 60.0
) -> list[BrowsedTag]:
    """All variables at most ``depth`` references below ``root`` (a node id; default: Objects, but not Server).

    Each node once, however many ways lead to it. Raises ``ValueError`` when ``root`` is no node id of the server,
    :class:`~drivers.port.DeviceRefused` when it does not let a node be browsed or has more than ``limit``
    variables, and :class:`~drivers.port.LinkDown`.
    """
    session = Session("browse", options.endpoint, options, Meter())
    where = options.endpoint
    try:
        async with asyncio.timeout(timeout_s):
            await session.open()
            found = await _browse(session, root, depth, limit)
        with contextlib.suppress(ChannelLost, ServiceFault, OSError):
            async with asyncio.timeout(GOODBYE_S):
                await session.close()
    except TimeoutError:
        what = f"browse: not done within {timeout_s:g} s"
        raise LinkDown("browse", what, where=where, hint="choose a root further down", timed_out=True) from None
    except ChannelLost as exc:
        raise LinkDown("browse", exc.what, where=where, hint=exc.hint) from exc
    except CertificateProblem as exc:
        raise LinkDown("browse", exc.what, where=where, hint=exc.hint) from exc
    except ServiceFault as exc:
        raise DeviceRefused("browse", str(exc), where=where) from exc
    except OSError as exc:
        raise LinkDown("browse", str(exc), where=where, hint="check power, network and address") from exc
    finally:
        session.drop(ChannelLost("closed"), polite=True)
    return found


async def _browse(session: Session, root: str | None, depth: int, limit: int) -> list[BrowsedTag]:
    operation = ObjectIds
    asked = (
        operation.Server_NamespaceArray,
        operation.Server_ServerCapabilities_OperationLimits_MaxNodesPerBrowse,
        operation.Server_ServerCapabilities_OperationLimits_MaxNodesPerRead,
    )
    array, *numbers = await session.read([ua.NodeId(ua.Int32(i)) for i in asked])
    namespaces = array.Value.Value if array.Value is not None else None
    if not isinstance(namespaces, list):
        raise ChannelLost("the server does not tell its namespaces", "a server fault")
    limits = _Limits(*(_number(each) for each in numbers))
    try:
        start = resolve(root, namespaces) if root else ua.NodeId(ua.Int32(ObjectIds.ObjectsFolder))
    except LookupError as exc:
        raise ValueError(f"{root}: {exc.args[0]}") from exc
    found = await _walk(session, start, depth, limit, limits, skip=None if root else _SERVER)
    tags: list[BrowsedTag] = []
    size = min(limits.read or BATCH, BATCH)
    for first in range(0, len(found), size):
        tags += await _describe(session, found[first : first + size], namespaces, limits)
    return tags


async def _walk(
    session: Session, root: ua.NodeId, depth: int, limit: int, limits: _Limits, skip: ua.NodeId | None
) -> list[_Found]:
    """Breadth first; a node that was seen is not entered again, so that loops end."""
    seen = {root} | ({skip} if skip is not None else set())
    variables: dict[ua.NodeId, _Found] = {}
    frontier = [_Found(root, "")]
    for _ in range(depth):
        nodes = [each.node_id for each in frontier]
        answers = await follow(session, nodes, ObjectIds.HierarchicalReferences, classes=_CLASSES, most=limits.browse)
        below: list[_Found] = []
        for parent, references in zip(frontier, answers, strict=True):
            for reference in references:
                _enter(parent, reference, seen, variables, below)
            if len(variables) > limit:
                what = f"more than {limit} variables; choose a root further down, or raise the limit"
                raise ServiceFault(StatusCodes.BadTooManyMatches, what)
        frontier = below
        if not frontier:
            break
    return list(variables.values())


def _enter(
    parent: _Found, reference: Reference, seen: set[ua.NodeId], variables: dict[ua.NodeId, _Found], below: list[_Found]
) -> None:
    if reference.is_property and parent.node_id in variables:
        # What a variable's property says belongs to the variable; it is no tag of its own.
        if reference.namespace == 0:
            parent.properties[reference.name] = reference.node_id
        return
    if reference.node_id in seen:
        return
    seen.add(reference.node_id)
    one = _Found(reference.node_id, f"{parent.path}/{reference.name}".lstrip("/"))
    if reference.node_class == ua.NodeClass.Variable:
        variables[reference.node_id] = one
    below.append(one)


async def _describe(
    session: Session, found: Sequence[_Found], namespaces: list[str], limits: _Limits
) -> list[BrowsedTag]:
    """Type, access, unit and range of some variables, all read in batches."""
    nodes = [each.node_id for each in found]
    types = [_value(each) for each in await session.read(nodes, AttributeIds.DataType)]
    ranks = [_value(each) for each in await session.read(nodes, AttributeIds.ValueRank)]
    access = [_value(each) for each in await session.read(nodes, AttributeIds.UserAccessLevel)]
    texts = [_value(each) for each in await session.read(nodes, AttributeIds.Description)]
    units = await _properties(session, found, "EngineeringUnits")
    ranges = await _properties(session, found, "EURange")
    known = await our_types(session, [each for each in types if isinstance(each, ua.NodeId)], limits.browse)
    tags = []
    for at, each in enumerate(found):
        kind = known.get(types[at]) if isinstance(types[at], ua.NodeId) else None
        problem = "" if kind is not None else f"no tag can hold its data type {types[at]}"
        if isinstance(ranks[at], int) and ranks[at] >= 0:
            kind, problem = None, "an array"
        rights = access[at] if isinstance(access[at], int) else 0
        low, high = _range(ranges[at])
        tags.append(
            BrowsedTag(
                address=address_of(each.node_id, namespaces),
                path=each.path,
                type=kind,
                problem=problem,
                readable=bool(rights & 1),
                writable=bool(rights & 2),
                unit=_unit(units[at]),
                low=low,
                high=high,
                description=texts[at].Text or "" if isinstance(texts[at], ua.LocalizedText) else "",
            )
        )
    return tags


async def _properties(session: Session, found: Sequence[_Found], name: str) -> list[Any]:
    """The values of a property of some variables; ``None`` where there is none."""
    places = [at for at, each in enumerate(found) if name in each.properties]
    values: list[Any] = [None] * len(found)
    if places:
        data = await session.read([found[at].properties[name] for at in places])
        for at, each in zip(places, data, strict=True):
            values[at] = _value(each)
    return values


def _value(data: Any) -> Any:
    """What a DataValue holds, ``None`` when it is not good."""
    status = data.StatusCode
    if data.Value is None or (status is not None and status.value >> 30):
        return None
    return data.Value.Value


def _number(data: Any) -> int:
    value = _value(data)
    return value if isinstance(value, int) else 0


def _unit(value: Any) -> str:
    name = getattr(value, "DisplayName", None)
    return str(name.Text or "") if name is not None else ""


def _range(value: Any) -> tuple[float | None, float | None]:
    """Low and high, when they are a range: both 0 is what servers give that never set it."""
    low, high = getattr(value, "Low", None), getattr(value, "High", None)
    if not isinstance(low, int | float) or not isinstance(high, int | float):
        return None, None
    good = math.isfinite(low) and math.isfinite(high) and low < high
    return (float(low), float(high)) if good else (None, None)
