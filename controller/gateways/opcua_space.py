"""The address space of the line: built from the north Hello, then kept up to date from its frames.

Every value that a north frame changes is written in one synchronous pass, straight into the address space and
the queues of the monitored items: no coroutine, lock or copy per value.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import structlog
from asyncua import ua
from asyncua.server.address_space import AddressSpace, AttributeValue, NodeManagementService

from controller.gateways import opcua_model as model
from controller.gateways.opcua_subscriptions import put_value
from controller.gateways.opcua_ua import AttributeIds, ObjectIds, StatusCodes, status, std
from controller.north.frames import Delta, Hello, Node, Scalar

log = structlog.get_logger("controller.gateways.opcua")

_INT32 = range(-(2**31), 2**31)
_INT64 = range(-(2**63), 2**63)
_NULL = ua.Variant(None, ua.VariantType.Null)
_CEFACT = "http://www.opcfoundation.org/UA/units/un/cefact"
NEVER_READ = "not read yet"
_NO_LINK = ("is not connected", "stale")


def variant_type(node: Node) -> ua.VariantType:
    """The OPC UA type of a north node: Boolean, String, Double, and Int32 or Int64 (see ``INT32_NAMES``)."""
    if node.type == "bool":
        return ua.VariantType.Boolean
    if node.type == "str":
        return ua.VariantType.String
    if node.type == "float":
        return ua.VariantType.Double
    ranged = node.low is not None and node.high is not None and node.low >= -(2**31) and node.high < 2**31
    small = node.enum is not None or ranged or node.path.rpartition(".")[2] in model.INT32_NAMES
    return ua.VariantType.Int32 if small else ua.VariantType.Int64


def judge(value: Scalar, wanted: ua.VariantType) -> int:
    """0 if the value fits the type, else the status code to show instead of it."""
    if value is None:
        return 0 if wanted is ua.VariantType.String else StatusCodes.BadWaitingForInitialData
    if wanted is ua.VariantType.Boolean:
        return 0 if isinstance(value, bool) else StatusCodes.BadTypeMismatch
    if wanted is ua.VariantType.String:
        return 0 if isinstance(value, str) else StatusCodes.BadTypeMismatch
    if isinstance(value, bool | str):
        return StatusCodes.BadTypeMismatch
    if wanted is ua.VariantType.Double:
        return 0 if abs(value) <= sys.float_info.max else StatusCodes.BadOutOfRange  # NaN is not
    if not isinstance(value, int):
        return StatusCodes.BadTypeMismatch
    return 0 if value in (_INT32 if wanted is ua.VariantType.Int32 else _INT64) else StatusCodes.BadOutOfRange


def bad_code(reason: str) -> int:
    """The status code for a north reason; the words themselves are in the station's and PLC's text nodes."""
    if reason == NEVER_READ:
        return StatusCodes.BadWaitingForInitialData
    if any(word in reason for word in _NO_LINK):
        return StatusCodes.BadNoCommunication
    return StatusCodes.Bad


class _Slot:
    """Where the value of one north node lives."""

    __slots__ = ("attribute", "path", "text", "texts", "type", "warned")

    def __init__(self, path: str, type_: ua.VariantType, attribute: AttributeValue) -> None:
        self.path, self.type, self.attribute = path, type_, attribute
        self.texts: dict[int, str] | None = None
        self.text: AttributeValue | None = None
        self.warned = False


class Space:
    """Nodes of one line in the namespace number ``ns``.

    Everything is Bad (BadWaitingForInitialData) until the first snapshot, and Bad (BadNoCommunication) whenever
    the controller cannot be heard.
    """

    def __init__(self, aspace: AddressSpace, service: NodeManagementService, ns: int) -> None:
        self._aspace, self._service, self.ns = aspace, service, ns
        self._slots: list[_Slot] = []
        self._values: list[Scalar] = []
        self._bad: dict[int, str] = {}

    def id(self, path: str) -> ua.NodeId:
        """The NodeId of a path: ``ns=<ns>;s=<path>``."""
        return ua.NodeId(ua.String(path), ua.Int16(self.ns))

    # -- building --------------------------------------------------------------------------------------------

    async def build(self, hello: Hello) -> None:
        """Make all nodes. Yields to the loop now and then, so that a signal is seen meanwhile.

        Raises:
            ValueError: the model cannot be shown (``opcua_model.check``).
        """
        slots: dict[int, _Slot] = {}
        folders: set[str] = set()
        for count, item in enumerate(model.tree(hello)):
            if count % 200 == 0:
                await asyncio.sleep(0)
            parent = self.id(item.parent) if item.parent else std(ObjectIds.ObjectsFolder)
            organized = not item.parent or item.parent in folders
            if item.kind == "variable":
                slots[item.index] = self._add_node(hello.nodes[item.index], parent, item.name)
            else:
                if item.kind == "folder":
                    folders.add(item.id)
                self.add_object(item.id, parent, item.name, folder=item.kind == "folder", organized=organized)
        self._slots = [slots[i] for i in range(len(hello.nodes))]
        self._values = [None] * len(self._slots)
        self._bad = dict.fromkeys(range(len(self._slots)), NEVER_READ)
        self._describe(hello)
        self._write(range(len(self._slots)), datetime.now(UTC))

    def _describe(self, hello: Hello) -> None:
        self.add_property(model.LINE_ID, "Description", hello.description)
        self.add_property(model.LINE_ID, "Version", hello.version)
        self.add_property(model.LINE_ID, "ConfigHash", hello.config_hash)
        self.add_property(model.LINE_ID, "Recipes", list(hello.recipes))
        for station in hello.stations:
            path = model.target_path(station.name)
            self.add_property(path, "Kind", station.kind)
            self.add_property(path, "Description", station.description)
            self.add_property(path, "Upstream", list(station.upstream))
            self.add_property(path, "Downstream", list(station.downstream))
            self.add_property(path, "Plcs", list(station.plcs))

    def add_object(
        self, path: str, parent: ua.NodeId, name: str, *, folder: bool = False, organized: bool = False
    ) -> ua.NodeId:
        """An object or folder; returns its NodeId."""
        attributes = ua.ObjectAttributes()
        attributes.EventNotifier = ua.Byte(0)
        self._add(
            path, parent, name, ua.NodeClass.Object, attributes,
            ObjectIds.Organizes if organized else ObjectIds.HasComponent,
            ObjectIds.FolderType if folder else ObjectIds.BaseObjectType,
        )  # fmt: skip
        return self.id(path)

    def add_variable(
        self, path: str, parent: ua.NodeId, name: str, value: ua.Variant, *,
        description: str = "", writable: bool = False, type_definition: int = ObjectIds.BaseDataVariableType,
    ) -> AttributeValue:  # fmt: skip
        """A scalar variable; returns the place of its value."""
        attributes = _variable(value, std(value.VariantType.value), description)
        if writable:
            mask = ua.AccessLevel.CurrentRead.mask | ua.AccessLevel.CurrentWrite.mask
            attributes.AccessLevel = attributes.UserAccessLevel = ua.Byte(mask)
        self._add(path, parent, name, ua.NodeClass.Variable, attributes, ObjectIds.HasComponent, type_definition)
        return self._aspace[self.id(path)].attributes[AttributeIds.Value]

    def add_property(self, owner: str, name: str, value: Any, data_type: int | None = None) -> AttributeValue:
        """A property ``<owner>.<name>``; text and lists of text need no type."""
        if data_type is None:
            variant = ua.Variant(value, ua.VariantType.String, is_array=isinstance(value, list))
            data_type = ObjectIds.String
        else:
            variant = ua.Variant(value, ua.VariantType.ExtensionObject, is_array=isinstance(value, list))
        path = f"{owner}.{name}"
        standard = name in _STANDARD_PROPERTIES
        self._add(
            path, self.id(owner), name, ua.NodeClass.Variable, _variable(variant, std(data_type)),
            ObjectIds.HasProperty, ObjectIds.PropertyType, ns=0 if standard else None,
        )  # fmt: skip
        return self._aspace[self.id(path)].attributes[AttributeIds.Value]

    def _add(
        self, path: str, parent: ua.NodeId, name: str, kind: ua.NodeClass, attributes: Any, reference: int,
        type_definition: int | None, ns: int | None = None,
    ) -> None:  # fmt: skip
        attributes.DisplayName = ua.LocalizedText(ua.String(name))
        if not attributes.Description.Text:
            attributes.Description = ua.LocalizedText(ua.String(""))
        attributes.WriteMask = attributes.UserWriteMask = ua.UInt32(0)
        item = ua.AddNodesItem()
        item.RequestedNewNodeId = self.id(path)
        item.BrowseName = ua.QualifiedName(ua.String(name), ua.UInt16(self.ns if ns is None else ns))
        item.NodeClass = kind
        item.ParentNodeId = parent
        item.ReferenceTypeId = std(reference)
        if type_definition is not None:
            item.TypeDefinition = std(type_definition)
        item.NodeAttributes = attributes
        result = self._service.add_nodes([item])[0]
        if not result.StatusCode.is_good():
            raise ValueError(f"node {path!r} cannot be added: {result.StatusCode.name}")

    def add_method(
        self, path: str, parent: ua.NodeId, name: str, description: str,
        inputs: list[ua.Argument], outputs: list[ua.Argument],
    ) -> ua.NodeId:  # fmt: skip
        """A method; what it does when called is the desk's business."""
        attributes = ua.MethodAttributes()
        attributes.Executable = attributes.UserExecutable = True
        attributes.Description = ua.LocalizedText(ua.String(description))
        self._add(path, parent, name, ua.NodeClass.Method, attributes, ObjectIds.HasComponent, None)
        if inputs:
            self.add_property(path, "InputArguments", inputs, ObjectIds.Argument)
        self.add_property(path, "OutputArguments", outputs, ObjectIds.Argument)
        return self.id(path)

    def _add_node(self, node: Node, parent: ua.NodeId, name: str) -> _Slot:
        wanted = variant_type(node)
        numeric = node.type in ("int", "float") and node.enum is None
        ranged = numeric and node.low is not None and node.high is not None
        kind = ObjectIds.BaseDataVariableType
        if ranged:
            kind = ObjectIds.AnalogItemType
        elif numeric and node.unit:
            kind = ObjectIds.AnalogUnitType
        elif node.enum:
            kind = ObjectIds.MultiStateValueDiscreteType
        value = ua.Variant(None, wanted) if wanted is ua.VariantType.String else ua.Variant(0, wanted)
        attribute = self.add_variable(
            node.path, parent, name, value, description=node.description, type_definition=kind
        )
        slot = _Slot(node.path, wanted, attribute)
        if node.unit:
            self.add_property(node.path, "EngineeringUnits", _unit(node.unit), ObjectIds.EUInformation)
        if ranged:
            limits = ua.Range(ua.Double(node.low), ua.Double(node.high))  # type: ignore[arg-type]
            self.add_property(node.path, "EURange", limits, ObjectIds.Range)
        if node.enum:
            slot.texts = node.enum
            entries = [_enum_value(number, text) for number, text in sorted(node.enum.items())]
            self.add_property(node.path, "EnumValues", entries, ObjectIds.EnumValueType)
            slot.text = self._value_as_text(node.path)
        return slot

    def _value_as_text(self, owner: str) -> AttributeValue:
        path = f"{owner}.ValueAsText"
        variant = ua.Variant(ua.LocalizedText(ua.String("")), ua.VariantType.LocalizedText)
        self._add(
            path, self.id(owner), "ValueAsText", ua.NodeClass.Variable,
            _variable(variant, std(ObjectIds.LocalizedText)), ObjectIds.HasProperty, ObjectIds.PropertyType, ns=0,
        )  # fmt: skip
        return self._aspace[self.id(path)].attributes[AttributeIds.Value]

    # -- keeping up to date ----------------------------------------------------------------------------------

    def load(self, values: Sequence[Scalar], bad: Mapping[int, str], at: int) -> None:
        """Take over all values, ``bad`` by index, as of ``at`` (UTC in ns)."""
        assert len(values) == len(self._slots), f"{len(values)} values for {len(self._slots)} nodes"
        self._values, self._bad = list(values), dict(bad)
        self._write(range(len(self._slots)), _time(at))

    def delta(self, frame: Delta) -> None:
        """Take over what changed."""
        touched = dict.fromkeys((*frame.values, *frame.bad, *frame.good))
        for index, value in frame.values.items():
            self._values[index] = value
        for index in frame.good:
            self._bad.pop(index, None)
        self._bad.update(frame.bad)
        self._write(touched, _time(frame.at))

    def lost(self) -> None:
        """The controller cannot be heard: every value is Bad (BadNoCommunication) from now on."""
        now: Any = datetime.now(UTC)
        value = ua.DataValue(_NULL, status(StatusCodes.BadNoCommunication), now, now)
        for slot in self._slots:
            put_value(slot.attribute, value)
            if slot.text is not None:
                put_value(slot.text, value)

    def _write(self, indexes: Iterable[int], at: Any) -> None:
        now: Any = datetime.now(UTC)
        good = status(StatusCodes.Good)
        for index in indexes:
            slot, value = self._slots[index], self._values[index]
            reason = self._bad.get(index)
            code = bad_code(reason) if reason is not None else judge(value, slot.type)
            if code:
                if reason is None and value is not None and not slot.warned:
                    slot.warned = True
                    log.error("the controller sent a value that its node cannot have", path=slot.path, value=value)
                shown = ua.DataValue(_NULL, status(code), at, now)
                put_value(slot.attribute, shown)
                if slot.text is not None:
                    put_value(slot.text, shown)
                continue
            put_value(slot.attribute, ua.DataValue(ua.Variant(value, slot.type), good, at, now))
            if slot.text is not None and slot.texts is not None and isinstance(value, int):
                text = ua.LocalizedText(ua.String(slot.texts.get(value, "")))
                put_value(slot.text, ua.DataValue(ua.Variant(text, ua.VariantType.LocalizedText), good, at, now))


_STANDARD_PROPERTIES = frozenset({"EngineeringUnits", "EURange", "EnumValues", "InputArguments", "OutputArguments"})


def _variable(value: ua.Variant, data_type: ua.NodeId, description: str = "") -> ua.VariableAttributes:
    attributes = ua.VariableAttributes()
    attributes.Description = ua.LocalizedText(ua.String(description))
    attributes.Value = value
    attributes.DataType = data_type
    attributes.ValueRank = ua.Int32(1 if value.is_array else -1)
    attributes.ArrayDimensions = [ua.UInt32(0)] if value.is_array else None  # type: ignore[assignment]
    attributes.MinimumSamplingInterval = ua.Double(0)
    return attributes


def _unit(unit: str) -> ua.EUInformation:
    text = ua.LocalizedText(ua.String(unit))
    return ua.EUInformation(ua.String(_CEFACT), ua.Int32(model.unit_id(unit)), text, text)


def _enum_value(number: int, text: str) -> ua.EnumValueType:
    shown = ua.LocalizedText(ua.String(text))
    return ua.EnumValueType(ua.Int64(number), shown, ua.LocalizedText(ua.String("")))


def _time(at: int) -> Any:
    """UTC nanoseconds since 1970 as a time; what is no such time is now."""
    try:
        return datetime.fromtimestamp(at / 1e9, UTC)
    except (OverflowError, OSError, ValueError):
        return datetime.now(UTC)
