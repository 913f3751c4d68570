"""asyncua's types, in the few shapes that the gateway needs them in."""

from __future__ import annotations

from asyncua import ua
from asyncua.ua.attribute_ids import AttributeIds
from asyncua.ua.object_ids import ObjectIds
from asyncua.ua.status_codes import StatusCodes
from asyncua.ua.uaerrors import UaStatusCodeError

__all__ = ["AttributeIds", "ObjectIds", "StatusCodes", "UaStatusCodeError", "status", "std"]

_STATUS: dict[int, ua.StatusCode] = {}


def status(code: int) -> ua.StatusCode:
    """The StatusCode of that number; shared, as it is never changed."""
    found = _STATUS.get(code)
    if found is None:
        found = _STATUS[code] = ua.StatusCode(ua.UInt32(code))
    return found


def std(number: int) -> ua.NodeId:
    """The NodeId ``i=<number>`` of the standard namespace 0."""
    return ua.NodeId(ua.Int32(number))
