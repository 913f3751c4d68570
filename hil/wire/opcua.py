"""An OPC UA server (asyncua) in front of a virtual PLC.

Node ids are those of the register list. A client's write reaches the PLC at once, inside the Write service; what the
PLC changes reaches the nodes every :data:`PERIOD_S`, changed values only.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable
from datetime import UTC, datetime

from asyncua import ua
from asyncua.common.callback import Callback, CallbackService, CallbackType, ServerItemCallback
from asyncua.common.node import Node
from asyncua.server.binary_server_asyncio import BinaryServer
from asyncua.server.server import Server
from asyncua.ua.attribute_ids import AttributeIds
from asyncua.ua.object_ids import ObjectIds
from asyncua.ua.status_codes import StatusCodes

from hil.plc import IllegalAddress, IllegalValue, PlcOffline, Point, Value, VirtualPlc

PERIOD_S = 0.05
_TYPES = {
    "BOOL": ua.VariantType.Boolean, "SINT": ua.VariantType.SByte, "USINT": ua.VariantType.Byte,
    "INT": ua.VariantType.Int16, "UINT": ua.VariantType.UInt16, "DINT": ua.VariantType.Int32,
    "UDINT": ua.VariantType.UInt32, "LINT": ua.VariantType.Int64, "ULINT": ua.VariantType.UInt64,
    "REAL": ua.VariantType.Float, "LREAL": ua.VariantType.Double, "STRING": ua.VariantType.String,
}  # fmt: skip
_log = logging.getLogger(__name__)


class OpcUaServer:
    """Serves one PLC on a loopback address; ``sync`` brings the plant up to the present."""

    def __init__(self, plc: VirtualPlc, sync: Callable[[], None], host: str, port: int) -> None:
        self._plc, self._sync = plc, sync
        self.host, self.port = host, port
        self._server: Server | None = None
        self._listening = False
        self._task: asyncio.Task[None] | None = None
        self._nodes: dict[ua.NodeId, Point] = {}
        self._ids: dict[str, ua.NodeId] = {}
        self._last: dict[str, Value] = {}
        self._version = -1

    @property
    def endpoint(self) -> str:
        """Where clients connect."""
        return f"opc.tcp://{self.host}:{self.port}"

    async def start(self) -> None:
        """Listen; port 0 takes a free one, and keeps it. The first time this builds the address space (seconds).

        Raises ``OSError``, and ``PlcOffline`` when the PLC has no power.
        """
        if self._server is None:
            server = await self._build()
            await server.start()
            self._server = server
            self.port = self._binary().port
        elif not self._listening:
            await self._show(self._server)
            start_time = self._server.get_node(ua.NodeId(ua.Int32(ObjectIds.Server_ServerStatus_StartTime)))
            await start_time.write_value(datetime.now(UTC))
            await self._binary().start()
        if not self._listening:
            self._listening = True
            self._task = asyncio.create_task(self._publish(self._server), name=f"publish {self._plc.name}")

    async def stop(self) -> None:
        """Stop listening and cut every connection, as a loss of power does; the address space is kept."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        if self._listening:
            self._listening = False
            await self._binary().stop()

    async def close(self) -> None:
        """Stop for good."""
        await self.stop()
        server, self._server = self._server, None
        if server is not None:
            await server.iserver.stop()

    def _binary(self) -> BinaryServer:
        assert self._server is not None
        assert self._server.bserver is not None
        return self._server.bserver

    async def _build(self) -> Server:
        server = Server()
        await server.init()
        server.set_endpoint(self.endpoint)
        server.set_server_name(f"virtual PLC {self._plc.name}")
        server.set_security_policy([ua.SecurityPolicyType.NoSecurity])
        self._nodes, self._ids, self._last = {}, {}, {}
        folders: dict[str, Node] = {}
        points = list(self._plc.points.values())
        for point, value in zip(points, self._plc.read_nodes([p.node_id for p in points]), strict=True):
            namespace, _, identifier = point.node_id.removeprefix("nsu=").partition(";s=")
            index = ua.Int16(await server.register_namespace(namespace))
            group = identifier.partition(".")[0]
            if group not in folders:
                folders[group] = await server.nodes.objects.add_object(_node_id(group, index), f"{index}:{group}")
            node_id = _node_id(identifier, index)
            folder = folders[group]
            node = await folder.add_variable(
                node_id, f"{index}:{identifier.rpartition('.')[2]}", value, varianttype=_TYPES[point.type]
            )
            if point.writable:
                await node.set_writable()
            self._nodes[node_id], self._ids[point.name], self._last[point.name] = point, node_id, value
        server.subscribe_server_callback(CallbackType.PostWrite, self._post_write)
        return server

    def _post_write(self, event: Callback, _service: CallbackService) -> None:
        """Hand a client's write on to the PLC; if that refuses, so does the answer, and the node goes back."""
        if not isinstance(event, ServerItemCallback) or not event.is_external:
            return
        self._sync()
        for n, item in enumerate(event.request_params.NodesToWrite):
            point = self._nodes.get(item.NodeId)
            if point is None or item.AttributeId != AttributeIds.Value or not event.response_params[n].is_good():
                continue
            try:
                self._plc.write_node(point.node_id, item.Value.Value.Value)
            except IllegalValue:
                event.response_params[n] = _status(StatusCodes.BadOutOfRange)
            except IllegalAddress:
                event.response_params[n] = _status(StatusCodes.BadNotWritable)
            except PlcOffline:
                event.response_params[n] = _status(StatusCodes.BadShutdown)
            self._last.pop(point.name, None)
            self._version = -1

    async def _publish(self, server: Server) -> None:
        while True:
            await asyncio.sleep(PERIOD_S)
            self._sync()
            if self._plc.alive:
                await self._show(server)

    async def _show(self, server: Server) -> None:
        """Bring the nodes up to what the PLC's memory holds. Raises ``PlcOffline``."""
        version = self._plc.version("ua")
        if version == self._version:
            return
        self._version = version
        now = ua.DateTime.now(UTC)
        points = list(self._plc.points.values())
        for point, value in zip(points, self._plc.read_nodes([p.node_id for p in points]), strict=True):
            if _same(self._last.get(point.name), value):
                continue
            self._last[point.name] = value
            status = await server.iserver.aspace.write_attribute_value(
                self._ids[point.name],
                AttributeIds.Value,
                ua.DataValue(ua.Variant(value, _TYPES[point.type]), SourceTimestamp=now, ServerTimestamp=now),
            )
            if not status.is_good():
                _log.error("%s: node of %s refused %r: %s", self._plc.name, point.name, value, status)


def _status(code: int) -> ua.StatusCode:
    return ua.StatusCode(ua.UInt32(code))


def _node_id(identifier: str, index: ua.Int16) -> ua.NodeId:
    return ua.NodeId(ua.String(identifier), index)


def _same(a: Value | None, b: Value) -> bool:
    if isinstance(a, float) and isinstance(b, float) and math.isnan(a) and math.isnan(b):
        return True
    return a == b and type(a) is type(b)
