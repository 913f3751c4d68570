"""OPC UA client driver, on the encoding and cryptography of asyncua."""

from drivers.opcua.browse import BrowsedTag, browse
from drivers.opcua.driver import OpcUaDriver

__all__ = ["BrowsedTag", "OpcUaDriver", "browse"]
