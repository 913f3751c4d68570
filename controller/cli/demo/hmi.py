"""The demo's own look at the OPC UA gateway: what an HMI would show must be what the controller counts."""

from __future__ import annotations

from controller.cli.demo.verdict import KEYS
from drivers.factory import make_driver
from drivers.options import OpcUaOptions
from drivers.port import DataType, FieldBusError, OpcUaAddress, Tag

TIMEOUT_S = 5.0


async def counts_over_opcua(endpoint: str, line: str) -> dict[str, int]:
    """The line's counts as the gateway at ``endpoint`` publishes them. Raises :class:`FieldBusError`."""
    tags = [
        Tag(
            name=f"line.{key}",
            address=OpcUaAddress(f"nsu=urn:linewright:{line};s=line.{key}"),
            type=DataType.DINT,
        )
        for key in KEYS
    ]
    driver = make_driver("gateway", OpcUaOptions(endpoint=endpoint), tags)
    try:
        await driver.connect(TIMEOUT_S)
        reading = await driver.read(0, TIMEOUT_S)
    finally:
        await driver.close()
    if reading.bad:
        reasons = ", ".join(f"line.{KEYS[index]} is {reason}" for index, reason in reading.bad.items())
        raise FieldBusError("gateway", reasons, where=endpoint)
    return {key: int(value) for key, value in zip(KEYS, reading.values, strict=True) if value is not None}
