"""Method calls, strict in what they send (OPC 10000-4, 5.12)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from asyncua import ua
from asyncua.ua.object_ids import ObjectIds

from drivers import codec
from drivers.opcua.channel import ChannelLost, ServiceFault
from drivers.opcua.datatypes import our_types
from drivers.opcua.references import follow
from drivers.opcua.session import Session
from drivers.opcua.values import VARIANT, resolve, status_name
from drivers.port import OpcUaAddress, Tag, Value

SCALAR_RANKS = (ua.ValueRank.Scalar, ua.ValueRank.ScalarOrOneDimension, ua.ValueRank.Any)


async def call_method(session: Session, object_id: str, method_id: str, args: Sequence[Value]) -> tuple[Value, ...]:
    """Call a method with arguments of exactly the declared types. See ``OpcUaDriver.call`` for what it raises."""
    (namespaces,) = await session.read([ua.NodeId(ua.Int32(ObjectIds.Server_NamespaceArray))])
    names = namespaces.Value.Value if namespaces.Value is not None else None
    if not isinstance(names, list):
        raise ChannelLost("the server does not tell its namespaces", "a server fault")
    try:
        target, method = resolve(object_id, names), resolve(method_id, names)
    except LookupError as exc:
        raise ValueError(f"{method_id}: {exc.args[0]}") from exc
    arguments = await _convert(session, method, method_id, args)
    request = ua.CallRequest()
    one = ua.CallMethodRequest()
    one.ObjectId, one.MethodId, one.InputArguments = target, method, arguments
    request.Parameters.MethodsToCall = [one]
    results = (await session.request(request, ua.CallResponse)).Results
    if len(results) != 1:
        raise ChannelLost(f"{len(results)} results for one call", "a server fault")
    result = results[0]
    if result.StatusCode.is_bad():
        wrong = [
            f"argument {number}: {status_name(status.value)}"
            for number, status in enumerate(result.InputArgumentResults or [], 1)
            if status.is_bad()
        ]
        text = "; ".join([f"{method_id}: {status_name(result.StatusCode.value)}", *wrong])
        raise ServiceFault(result.StatusCode.value, text)
    return tuple(_scalar(method_id, each) for each in result.OutputArguments or [])


async def _convert(session: Session, method: ua.NodeId, method_id: str, args: Sequence[Value]) -> list[ua.Variant]:
    declared = await _input_arguments(session, method)
    if len(declared) != len(args):
        names = ", ".join(each.Name or "?" for each in declared) or "none"
        raise ValueError(f"{method_id} takes {len(declared)} arguments ({names}), not {len(args)}")
    types = await our_types(session, [each.DataType for each in declared])
    converted = []
    for each, value in zip(declared, args, strict=True):
        kind = types[each.DataType]
        if kind is None or each.ValueRank not in SCALAR_RANKS:
            raise ValueError(f"{method_id}: argument {each.Name} is no scalar of a type that can be given")
        raw = codec.to_raw(Tag(name=f"{method_id} {each.Name}", address=OpcUaAddress(method_id), type=kind), value)
        converted.append(ua.Variant(raw, VARIANT[kind]))
    return converted


async def _input_arguments(session: Session, method: ua.NodeId) -> list[Any]:
    """What the method declares; nothing when it takes no arguments."""
    (properties,) = await follow(session, [method], ObjectIds.HasProperty)
    for each in properties:
        if (each.namespace, each.name) == (0, "InputArguments"):
            (data,) = await session.read([each.node_id])
            arguments = data.Value.Value if data.Value is not None else None
            if not isinstance(arguments, list) or not all(hasattr(one, "ValueRank") for one in arguments):
                raise ChannelLost("the input arguments of the method are unreadable", "a server fault")
            return arguments
    return []


def _scalar(method_id: str, variant: ua.Variant) -> Value:
    if not isinstance(variant.Value, bool | int | float | str) or variant.is_array:
        raise ChannelLost(f"{method_id} was executed, but gives back a {variant.VariantType.name}, which is no scalar")
    return variant.Value
