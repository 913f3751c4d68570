"""OPC UA client driver on asyncua."""

from drivers.opcua.driver import OpcUaDriver

__all__ = ["OpcUaDriver"]
