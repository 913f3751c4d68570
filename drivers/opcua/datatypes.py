"""Which of our types a node's data type is (OPC 10000-3, 5.8.3; OPC 10000-5, 12)."""

from __future__ import annotations

from collections.abc import Iterable

from asyncua import ua
from asyncua.ua.object_ids import ObjectIds

from drivers.opcua.references import follow
from drivers.opcua.session import Session
from drivers.opcua.values import VARIANT
from drivers.port import DataType

BUILT_IN = {ua.NodeId(ua.Int32(variant.value)): kind for kind, variant in VARIANT.items()}
"""The data types that are the built-in types themselves."""
ENUMERATION = ua.NodeId(ua.Int32(ObjectIds.Enumeration))
DEPTH = 12
"""Steps up the tree of types; the standard's own tree has six."""


async def our_types(
    session: Session, data_types: Iterable[ua.NodeId], most: int = 0
) -> dict[ua.NodeId, DataType | None]:
    """Our type of each data type: of itself, or of the built-in one it is derived from (Duration is a Double).

    Enumerations are Int32 on the wire. ``None`` for structures, abstract types and what the server does not say.
    ``most`` nodes go into one request (0: any number).
    """
    known: dict[ua.NodeId, DataType | None] = {**BUILT_IN, ENUMERATION: DataType.DINT}
    chains = {each: [each] for each in set(data_types)}
    for _ in range(DEPTH):
        ends = sorted({chain[-1] for chain in chains.values() if chain[-1] not in known}, key=str)
        if not ends:
            break
        answers = await follow(session, ends, ObjectIds.HasSubtype, inverse=True, most=most)
        parents = {end: next((each.node_id for each in found), None) for end, found in zip(ends, answers, strict=True)}
        for chain in chains.values():
            if chain[-1] in known:
                continue
            parent = parents[chain[-1]]
            if parent is None or parent in chain:
                known[chain[-1]] = None
            else:
                chain.append(parent)
    return {each: known.get(chain[-1]) for each, chain in chains.items()}
