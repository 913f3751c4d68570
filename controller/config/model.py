"""The shape of line.yaml, as frozen pydantic models. One class per mapping in the file.

These models check shape and local rules (types, ranges, enumerations). What needs the whole line — unknown
tags, overlapping addresses, units, topology — is checked in ``controller.config.check``. Nothing here reads
a file. All durations are in the unit that the field's name ends with.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Discriminator, Field, Tag

from controller.config.base import Expression, Model, Name, Scalar, TagName
from controller.config.plcs import Plc
from drivers.port import DataType, WordOrder


class ScanClass(Model):
    """How often a tag is read, and from what age on it is BAD."""

    period_ms: int = Field(ge=10, le=3_600_000)
    stale_ms: int = Field(ge=20, le=36_000_000)


class TagModel(Model):
    """One tag. The address is ``co:5``, ``di:5``, ``ir:10``, ``hr:10``, ``hr:10.3`` (Modbus), a node id, or
    ``message.field`` (serial line device).
    """

    plc: Name
    address: str = Field(min_length=1)
    type: DataType
    word_order: WordOrder | None = None
    """Default: the PLC's."""
    length: int = Field(0, ge=0, le=240)
    scale: float = 1.0
    offset: float = 0.0
    unit: str = ""
    low: float | None = None
    high: float | None = None
    access: Literal["r", "rw"] = "r"
    scan_class: Name = "fast"
    mask: int | None = Field(None, ge=1, le=0xFFFF)
    """The bits of a register that carry the value (Modbus), e.g. 0x0FF0; they count from the lowest one of them."""
    array: int | None = Field(None, ge=2, le=1000)
    """So many tags of this kind one behind the other, named ``group.point_1`` … ``group.point_n``."""
    description: str = ""


class Interlock(Model):
    """A condition that must hold while the station runs, and what the station does when it does not."""

    require: Expression
    otherwise: Literal["hold", "stop", "abort"] = "hold"
    text: str = Field(min_length=1)
    """What is wrong when it does not hold, and what to do, in the operator's words."""


class Permissive(Model):
    """A condition that must hold for Reset and Start."""

    require: Expression
    text: str = Field(min_length=1)


class Alarm(Model):
    """An alarm (ISA-18.2), with its rationalisation."""

    when: Expression
    text: str = Field(min_length=1)
    priority: Literal["low", "medium", "high", "critical"] = "medium"
    on_delay_ms: int = Field(0, ge=0, le=3_600_000)
    off_delay_ms: int = Field(0, ge=0, le=3_600_000)
    action: Literal["none", "hold", "stop", "abort"] = "none"
    plc_latched: bool = False
    """The PLC keeps this fault until the station's recovery sequence resets it; it then does not bar recovery."""
    cause: str = ""
    consequence: str = ""
    response: str = ""


class Parameter(Model):
    """A recipe parameter of a station: the tag that carries it and the limits of the equipment."""

    tag: TagName
    unit: str = ""
    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] | None = None
    """For STRING tags: the allowed texts; ``None`` allows any that fits."""
    confirm: TagName | None = None
    """A tag on which the equipment reports the value in force (a rail's position, the active label job)."""
    tolerance: float = Field(0.0, ge=0)
    limit_s: float = Field(10.0, gt=0, le=3600)
    """How long the equipment may take to confirm."""
    description: str = ""


class Counts(Model):
    """The PLC's counters of a station (free-running, unsigned) and its bottles in process."""

    infeed: TagName
    good: TagName
    rejected: TagName | None = None
    in_process: TagName | None = None


class Set(Model):
    """Sequence step: drive outputs; they keep their value until set again or the state is left."""

    set: dict[str, Scalar]


class WaitStep(Model):
    """Details of a wait."""

    until: Expression
    limit_s: float = Field(gt=0, le=86_400)
    alarm: Name
    """Name of the alarm to raise when the limit passes; the state then does not complete."""
    text: str = ""
    action: Literal["hold", "stop", "abort"] = "abort"


class Wait(Model):
    """Sequence step: wait for a condition, with a time limit."""

    wait: WaitStep


class Delay(Model):
    """Sequence step: let a time pass."""

    delay_s: float = Field(gt=0, le=86_400)


def _step_kind(value: object) -> str | None:
    """Which step a mapping is, by the key that only that step has: one clear error instead of three."""
    if isinstance(value, dict):
        return next((kind for key, kind in _STEPS.items() if key in value), None)
    return type(value).__name__


_STEPS = {"set": "Set", "wait": "Wait", "delay_s": "Delay"}
Step = Annotated[
    Annotated[Set, Tag("Set")] | Annotated[Wait, Tag("Wait")] | Annotated[Delay, Tag("Delay")],
    Discriminator(
        _step_kind,
        custom_error_type="step_kind",
        custom_error_message="a step is one of set: {…}, wait: {…} or delay_s: …",
    ),
]
ActingState = Literal[
    "clearing", "starting", "execute", "stopping", "aborting", "holding", "unholding", "suspending",
    "unsuspending", "resetting", "completing",
]  # fmt: skip


class UnitMode(Model):
    """A user-defined unit mode (numbers 4..31) or a mask on a standard one."""

    number: int = Field(ge=1, le=31)
    disabled_states: tuple[str, ...] = ()
    """States the mode lacks (never Stopped, Idle, Execute, Aborted)."""


class Station(Model):
    """One station: kind, place in the line, I/O, and the conditions around it."""

    kind: Name
    description: str = ""
    downstream: tuple[Name, ...] = ()
    io: dict[Name, TagName] = {}
    """The kind's I/O points that are not simply ``<station>.<point>``."""
    settings: dict[str, Scalar] = {}
    """Options of the kind (times, speeds); each kind documents its own."""
    counts: Counts | None = None
    starved: Expression | None = None
    blocked: Expression | None = None
    suspend_delay_ms: int = Field(1000, ge=0, le=600_000)
    """How long starved or blocked must last before the station suspends, and be gone before it resumes."""
    outputs: tuple[TagName, ...] = ()
    """Writable tags that a ``sequence`` station drives, besides those that its steps name."""
    safe: dict[str, Scalar] = {}
    """Values of outputs when no state drives them; default false, 0 and (for set-points) unchanged."""
    interlocks: dict[Name, Interlock] = {}
    permissives: dict[Name, Permissive] = {}
    alarms: dict[Name, Alarm] = {}
    parameters: dict[Name, Parameter] = {}
    sequences: dict[ActingState, tuple[Step, ...]] = {}
    mach_speed: float | None = Field(None, gt=0)
    """Nominal primary packages per minute."""


class PackmlOptions(Model):
    """Choices that the editions of ISA-TR88.00.02 leave open; defaults are the 2015 core."""

    edition: Literal["2015", "2022"] = "2015"
    hold_from_suspended: bool = True
    hold_from_acting: bool = False
    """Hold also from Starting, Unholding, Suspending, Unsuspending (footnote *b)."""
    complete_from_held: bool = False
    complete_from_suspended: bool = False
    execute_state_complete: bool = False
    """Execute also ends by itself, into Completing, when its sequence has (footnote *c; drawn in 2008 and 2015)."""


class LineHead(Model):
    """The line as a whole."""

    name: Name
    description: str = ""
    scan_ms: int = Field(100, ge=10, le=10_000)
    estop: tuple[Expression, ...] = ()
    """Conditions that must hold; when one does not, every station aborts in the same scan."""
    estop_on_loss: Literal["abort", "station"] = "abort"
    """What an emergency stop input does that cannot be read: ``abort`` the line, or, as long as another one is read
    and good, leave it to ``on_loss`` of the PLC that is lost (``station``)."""
    packml: PackmlOptions = PackmlOptions()
    modes: dict[Name, UnitMode] = {}
    start_limit_s: float = Field(60.0, gt=0, le=3600)
    """How long the line may take to bring its stations to Execute, to stop or to hold them."""
    run_out_limit_s: float = Field(300.0, gt=0, le=86_400)
    on_station_abort: Literal["none", "hold", "stop", "abort"] = "hold"
    """What the running line does when one of its stations aborts or is stopped on its own."""
    on_station_hold: Literal["none", "hold", "stop", "abort"] = "none"
    """What the running line does when one of its stations holds; by default its neighbours starve or block."""
    recipe: str | None = None
    """Recipe to load at start-up; none leaves the line without a product until one is loaded."""


class LineFile(Model):
    """A whole line.yaml."""

    line: LineHead
    plcs: dict[Name, Plc] = Field(min_length=1)
    scan_classes: dict[Name, ScanClass] = {
        "fast": ScanClass(period_ms=100, stale_ms=500),
        "slow": ScanClass(period_ms=1000, stale_ms=3000),
    }
    tags: dict[TagName, TagModel] = {}
    tag_files: tuple[str, ...] = ()
    """CSV files with more tags, relative to line.yaml."""
    recipes: str = "recipes"
    """Folder of recipe files, relative to line.yaml."""
    stations: dict[Name, Station] = Field(min_length=1)
