"""The wire tier: a line's plant and PLCs at real time, behind real Modbus and OPC UA servers."""

from hil.wire.control import ControlClient, ControlError
from hil.wire.server import Wire, run_wire, serve

__all__ = ["ControlClient", "ControlError", "Wire", "run_wire", "serve"]
