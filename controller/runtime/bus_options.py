"""Pure: how a link is run, and that taken from line.yaml."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from controller.config.model import ScanClass
from controller.config.plcs import Plc
from controller.runtime.bus_commands import BlockOptions
from controller.runtime.bus_state import HeartbeatOptions
from drivers.port import Value


@dataclass(frozen=True, kw_only=True)
class LinkOptions:
    """How a link is run. ``periods_s`` gives the period of every scan class in use."""

    periods_s: Mapping[str, float]
    timeout_s: float = 0.5
    """For each request on the wire."""
    connect_timeout_s: float = 3.0
    reconnect_max_s: float = 5.0
    heartbeat: HeartbeatOptions = field(default_factory=HeartbeatOptions)
    identity: Mapping[str, Value] = field(default_factory=dict)
    boot_counter: str | None = None
    blocks: tuple[BlockOptions, ...] = ()


def link_options(plc: Plc, scan_classes: Mapping[str, ScanClass]) -> LinkOptions:
    """The options of one PLC's link."""
    life = plc.heartbeat
    heartbeat = HeartbeatOptions()
    if life is not None:
        heartbeat = HeartbeatOptions(
            read=life.read, write=life.write, period_s=life.period_ms / 1000, timeout_s=life.timeout_ms / 1000
        )
    return LinkOptions(
        periods_s={name: scan_class.period_ms / 1000 for name, scan_class in scan_classes.items()},
        timeout_s=plc.timeout_ms / 1000,
        reconnect_max_s=plc.reconnect_max_s,
        heartbeat=heartbeat,
        identity=plc.identity,
        boot_counter=plc.boot_counter,
        blocks=tuple(BlockOptions(**block.model_dump()) for block in plc.command_blocks),
    )
