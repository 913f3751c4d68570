"""Values and status codes of OPC UA, as this driver reads and writes them."""

from __future__ import annotations

from typing import Any

from asyncua import ua
from asyncua.ua.status_codes import StatusCodes
from asyncua.ua.uaerrors import UaError

from drivers import codec
from drivers.opcua.datum import Datum
from drivers.port import DataType, Tag, Value

VARIANT = {
    DataType.BOOL: ua.VariantType.Boolean,
    DataType.SINT: ua.VariantType.SByte,
    DataType.USINT: ua.VariantType.Byte,
    DataType.INT: ua.VariantType.Int16,
    DataType.UINT: ua.VariantType.UInt16,
    DataType.DINT: ua.VariantType.Int32,
    DataType.UDINT: ua.VariantType.UInt32,
    DataType.LINT: ua.VariantType.Int64,
    DataType.ULINT: ua.VariantType.UInt64,
    DataType.REAL: ua.VariantType.Float,
    DataType.LREAL: ua.VariantType.Double,
    DataType.STRING: ua.VariantType.String,
}
"""The built-in type of each data type (OPC 30000, IEC 61131-3 mapping, table 23)."""

MAYBE_EXECUTED = frozenset(
    {
        StatusCodes.BadTimeout,
        StatusCodes.BadRequestTimeout,
        StatusCodes.BadCommunicationError,
        StatusCodes.BadNoCommunication,
        StatusCodes.BadDeviceFailure,
        StatusCodes.BadUnexpectedError,
        StatusCodes.BadInternalError,
    }
)
"""Status codes of a write after which it may have reached the device behind the server all the same."""

SESSION_LOST = frozenset(
    {
        StatusCodes.BadSessionIdInvalid,
        StatusCodes.BadSessionClosed,
        StatusCodes.BadSessionNotActivated,
        StatusCodes.BadSecureChannelIdInvalid,
        StatusCodes.BadSecureChannelClosed,
        StatusCodes.BadSecureChannelTokenUnknown,
        StatusCodes.BadServerHalted,
        StatusCodes.BadShutdown,
        StatusCodes.BadConnectionClosed,
        StatusCodes.BadTcpInternalError,
        StatusCodes.BadTimeout,
        StatusCodes.BadRequestTimeout,
    }
)
"""Service results after which only a new connection helps."""


class NodeValue:
    """How one tag's DataValue becomes an engineering value. Limits are worked out once."""

    __slots__ = ("_high", "_low", "_numeric", "_scaled", "_variant", "kind", "tag")

    def __init__(self, tag: Tag) -> None:
        self.tag = tag
        self._variant = VARIANT[tag.type]
        self.kind: int = self._variant.value
        """Number of the built-in type."""
        self._numeric, self._scaled = tag.type not in (DataType.BOOL, DataType.STRING), tag.scaled
        self._low, self._high = codec.bounds(tag) if self._numeric else (0.0, 0.0)

    def raw(self, data: Datum) -> tuple[Value | None, str]:
        """The raw value, or the reason why there is none. Uncertain counts as bad: nobody vouches for it."""
        if data.status >> 30:
            return None, status_text(data.status)
        if data.kind != self.kind:
            kind = data.type_name or ua.VariantType(data.kind).name
            return None, f"wrong type: the server has {kind}, the tag says {self.tag.type} ({self._variant.name})"
        raw: Value = data.value
        return raw, ""

    def value(self, data: Datum) -> tuple[Value | None, str]:
        """The engineering value, or ``None`` and the reason why there is none."""
        if data.status >> 30 or data.kind != self.kind:
            return self.raw(data)
        raw: Any = data.value
        if not self._numeric:
            return raw, ""
        if self._low <= raw <= self._high:
            return (raw * self.tag.scale + self.tag.offset if self._scaled else raw), ""
        return codec.judge(self.tag, raw)

    def data_value(self, raw: Value) -> ua.DataValue:
        """What to send: the value alone. Many PLCs refuse a write that brings a status or a timestamp."""
        return ua.DataValue(ua.Variant(raw, self._variant), StatusCode=None)


def resolve(node_id: str, namespaces: list[str]) -> ua.NodeId:
    """A node id of the server at hand; ``nsu=<uri>;…`` through its namespace array.

    Raises ``ValueError`` when the text is no node id, ``LookupError`` when the server lacks the namespace.
    """
    if node_id.startswith("nsu="):
        uri, _, rest = node_id[4:].partition(";")
        if uri not in namespaces:
            raise LookupError(f"the server has no namespace {uri}")
        node_id = f"ns={namespaces.index(uri)};{rest}"
    return parse(node_id)


def address_of(node_id: ua.NodeId, namespaces: list[str]) -> str:
    """The text of a node id that survives a renumbered server; the reverse of :func:`resolve`."""
    rest = node_id.to_string().removeprefix(f"ns={node_id.NamespaceIndex};")
    if node_id.NamespaceIndex == 0:
        return rest
    uri = namespaces[node_id.NamespaceIndex] if node_id.NamespaceIndex < len(namespaces) else ""
    return f"nsu={uri};{rest}" if uri and ";" not in uri else f"ns={node_id.NamespaceIndex};{rest}"


def parse(node_id: str) -> ua.NodeId:
    """``ns=2;s=…``, ``i=…`` (namespace 0), or with ``nsu=`` only its shape. Raises ``ValueError``."""
    text = "ns=0;" + node_id.partition(";")[2] if node_id.startswith("nsu=") else node_id
    try:
        return ua.NodeId.from_string(text)
    except (UaError, ValueError) as exc:
        raise ValueError(f"{node_id!r} is not a node id (nsu=<uri>;s=<name>, ns=2;s=<name>, i=<number>)") from exc


def status_name(code: int) -> str:
    """Name of a status code, without its info bits (OPC 10000-4, 7.39: they say more about a value, not what it is)."""
    return ua.StatusCode(ua.UInt32(code & 0xFFFF_0000)).name


def status_text(code: int) -> str:
    """Name and meaning of a status code."""
    status = ua.StatusCode(ua.UInt32(code & 0xFFFF_0000))
    return f"{status.name}: {status.doc}"


def overflowed(code: int) -> bool:
    """Whether a notification's status says that values before this one were lost (OPC 10000-4, 7.39.1)."""
    return code & 0x0C00 == 0x0400 and bool(code & 0x80)
