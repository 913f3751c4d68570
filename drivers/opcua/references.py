"""From nodes to the nodes they refer to: Browse and BrowseNext, in batches (OPC 10000-4, 5.9)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from asyncua import ua
from asyncua.ua.object_ids import ObjectIds
from asyncua.ua.status_codes import StatusCodes

from drivers.opcua.channel import ChannelLost, ServiceFault
from drivers.opcua.session import Session
from drivers.opcua.values import status_name

BATCH = 100
"""Nodes in one request where the server sets no limit."""
PER_NODE = 1000
"""References of one node that one answer may bring; the rest comes with a continuation point."""


class Reference(NamedTuple):
    """One reference: the node it leads to, and as what."""

    node_id: ua.NodeId
    name: str
    namespace: int
    """Of the browse name."""
    node_class: ua.NodeClass
    is_property: bool


async def follow(
    session: Session, nodes: Sequence[ua.NodeId], kind: int, *, inverse: bool = False, classes: int = 0, most: int = 0
) -> list[list[Reference]]:
    """References of a kind (and its subtypes) of each node, in their order; ``classes`` masks the node classes.

    Raises :class:`ServiceFault` when the server does not let a node be browsed, or has no continuation point left
    even for one node alone.
    """
    found: dict[int, list[Reference]] = {}
    todo, size = list(range(len(nodes))), min(most or BATCH, BATCH)
    while todo:
        batch, todo = todo[:size], todo[size:]
        request = ua.BrowseRequest()
        request.Parameters.RequestedMaxReferencesPerNode = PER_NODE
        request.Parameters.NodesToBrowse = [_description(nodes[at], kind, inverse, classes) for at in batch]
        results = _checked((await session.request(request, ua.BrowseResponse)).Results, len(batch))
        again, points = [], {}
        for at, result in zip(batch, results, strict=True):
            if result.StatusCode.value == StatusCodes.BadNoContinuationPoints and len(batch) > 1:
                again.append(at)
                continue
            found[at] = _references(result, nodes[at])
            if result.ContinuationPoint:
                points[at] = result.ContinuationPoint
        await _go_on(session, nodes, points, found)
        if again:
            todo, size = again + todo, max(1, size // 2)
    return [found[at] for at in range(len(nodes))]


async def _go_on(
    session: Session, nodes: Sequence[ua.NodeId], points: dict[int, bytes], found: dict[int, list[Reference]]
) -> None:
    """Fetch what did not fit in the answer."""
    while points:
        request = ua.BrowseNextRequest()
        request.Parameters.ReleaseContinuationPoints = False
        request.Parameters.ContinuationPoints = list(points.values())
        answer = await session.request(request, ua.BrowseNextResponse)
        results = _checked(answer.Parameters.Results, len(points))
        following: dict[int, bytes] = {}
        for at, result in zip(points, results, strict=True):
            found[at] += _references(result, nodes[at])
            if result.ContinuationPoint:
                following[at] = result.ContinuationPoint
        points = following


def _description(node: ua.NodeId, kind: int, inverse: bool, classes: int) -> ua.BrowseDescription:
    what = ua.BrowseDescription()
    what.NodeId = node
    what.BrowseDirection = ua.BrowseDirection.Inverse if inverse else ua.BrowseDirection.Forward
    what.ReferenceTypeId, what.IncludeSubtypes = ua.NodeId(ua.Int32(kind)), True
    what.NodeClassMask = ua.UInt32(classes)
    wanted = ua.BrowseResultMask.ReferenceTypeId | ua.BrowseResultMask.NodeClass | ua.BrowseResultMask.BrowseName
    what.ResultMask = ua.UInt32(int(wanted))
    return what


def _references(result: Any, node: ua.NodeId) -> list[Reference]:
    if result.StatusCode.is_bad():
        code = result.StatusCode.value
        raise ServiceFault(code, f"{node.to_string()}: {status_name(code)}")
    has_property = ua.NodeId(ua.Int32(ObjectIds.HasProperty))
    return [
        Reference(
            plain(each.NodeId),
            each.BrowseName.Name or "",
            each.BrowseName.NamespaceIndex,
            each.NodeClass,
            each.ReferenceTypeId == has_property,
        )
        for each in result.References or []
        if not getattr(each.NodeId, "ServerIndex", None)  # a node of another server
    ]


def plain(node_id: Any) -> ua.NodeId:
    """A node id of this server out of an expanded one."""
    return ua.NodeId(node_id.Identifier, node_id.NamespaceIndex, node_id.NodeIdType)


def _checked(results: Any, count: int) -> list[Any]:
    if results is None or len(results) != count:
        raise ChannelLost(f"{len(results or [])} results for {count} nodes to browse", "a server fault")
    return list(results)
