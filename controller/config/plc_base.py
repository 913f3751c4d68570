"""What all kinds of PLC have in common in line.yaml: life signs, identity, restarts, command blocks."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from controller.config.base import Model, Scalar, TagName


class Heartbeat(Model):
    """Life signs both ways between controller and PLC."""

    read: TagName | None = None
    """Counter in the PLC that must keep changing."""
    write: TagName | None = None
    """Counter in the PLC written once per ``period_ms`` by completed scans only."""
    period_ms: int = Field(200, ge=10, le=10_000)
    timeout_ms: int = Field(1000, ge=50, le=60_000)
    """A ``read`` counter that has not changed for this long makes every tag of the PLC BAD."""


class CommandBlock(Model):
    """Outputs that make one command: written in one request, taken by the PLC once and in time or not at all.

    The PLC executes ``tags`` when ``id`` changes, answers with the same number in ``ack``, and drops a command
    whose ``valid_until`` lies before its own ``clock`` (docs/plc-contract.md).
    """

    id: TagName
    """Number of the command; a new one for each, never 0."""
    tags: tuple[TagName, ...] = Field(min_length=1)
    """What is commanded."""
    ack: TagName | None = None
    """Where the PLC repeats the id of the last command that it took or dropped."""
    valid_until: TagName | None = None
    """Where the controller writes up to which value of ``clock`` the command is valid."""
    clock: TagName | None = None
    """Free-running milliseconds of the PLC, wrapping at the end of its type."""
    valid_ms: int = Field(2000, ge=50, le=60_000)


class PlcBase(Model):
    """What all kinds of PLC have in common."""

    description: str = ""
    timeout_ms: int = Field(500, ge=10, le=60_000)
    reconnect_max_s: float = Field(5.0, ge=0.1, le=300)
    on_loss: Literal["hold", "stop", "abort"] = "abort"
    """What the stations that use this PLC do when its link is lost."""
    heartbeat: Heartbeat | None = None
    identity: dict[TagName, Scalar] = {}
    """Tags and the values they must have, looked at on every connection: map version, serial number, a pattern that
    shows a wrong word order. Another value means another device or program, and nothing is written to it.
    """
    boot_counter: TagName | None = None
    """A number in the PLC that changes with every restart; a change is treated as a loss of the link."""
    command_blocks: tuple[CommandBlock, ...] = ()
