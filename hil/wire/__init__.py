"""The wire tier: a line's plant and PLCs at real time, behind real Modbus and OPC UA servers."""

from hil.wire.control import ControlClient, ControlError
from hil.wire.faults import Faults
from hil.wire.proxy import PtyProxy, TcpProxy, UdpProxy
from hil.wire.server import Wire, run_wire, serve

__all__ = [
    "ControlClient",
    "ControlError",
    "Faults",
    "PtyProxy",
    "TcpProxy",
    "UdpProxy",
    "Wire",
    "run_wire",
    "serve",
]
