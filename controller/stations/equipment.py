"""Steps that many kinds share: a machine with a run bit, its feedback, and a fault that its PLC latches."""

from __future__ import annotations

from dataclasses import dataclass

from controller.core.behaviour import Settings
from controller.core.io import IO, Input, Output
from controller.core.sequence import Fail, Steps, Until

FAULTS = {
    1: "jam", 2: "motor protection tripped", 3: "material or air ran out", 4: "guard door open", 5: "emergency stop",
    6: "mixed product", 7: "set-point missing", 8: "vision offline", 9: "the PLC lost the controller's life sign",
}  # fmt: skip


class MachineIO(IO):
    """A machine that its PLC runs while ``run`` is set."""

    run: Output[bool]
    running: Input[bool]
    reset: Output[bool] | None
    fault: Input[bool] | None
    fault_code: Input[int] | None
    empty: Input[bool] | None


def fault_text(io: MachineIO) -> str:
    """What the PLC's fault code says."""
    code = io.fault_code.value if io.fault_code and io.fault_code.ok else None
    return FAULTS.get(code, f"fault code {code}") if code else "a fault without a code"


def reset_fault(name: str, io: MachineIO, limit_s: float, action: str) -> Steps:
    """Pulse ``reset`` until the PLC's fault is gone. Reset is an edge: a cause still present keeps the fault."""
    if io.fault is None or io.reset is None or io.fault.is_(False):
        return
    fault, reset = io.fault, io.reset
    try:
        reset.set(False)
        yield Until(lambda: reset.is_(False), limit_s, "reset_not_taken", f"{reset.tag} read back off", action)
        reset.set(True)
        yield Until(
            lambda: reset.is_(True) or fault.is_(False),
            limit_s,
            "reset_not_taken",
            f"{reset.tag} read back on",
            action,
        )
        text = f"{name}: fault gone after reset ({fault_text(io)}; remove its cause first)"
        yield Until(lambda: fault.is_(False), limit_s, "fault_remains", text, action)
    finally:
        reset.set(False)


def run_up(name: str, io: MachineIO, limit_s: float, action: str = "abort") -> Steps:
    """Clear a latched fault, set ``run`` and wait for the feedback."""
    yield from reset_fault(name, io, limit_s, action)
    io.run.set(True)
    yield Until(lambda: io.running.is_(True), limit_s, "does_not_start", f"{name} running after run was set", action)


def run_down(name: str, io: MachineIO, limit_s: float) -> Steps:
    """Take ``run`` away and wait until the machine is seen to stand.

    A machine that cannot be seen (its PLC is not connected) is not waited for: the PLC's own watchdog stops it,
    and no recovery is possible before its feedback is there again.
    """
    io.run.set(False)
    text = f"{name} standing after run was taken away"
    yield Until(lambda: not io.running.ok or not io.running.value, limit_s, "does_not_stop", text, "abort")


def run_empty(name: str, io: MachineIO, limit_s: float) -> Steps:
    """Let the machine run until it is empty; without an ``empty`` input there is nothing to wait for."""
    if io.empty is not None:
        empty = io.empty
        yield Until(lambda: empty.is_(True), limit_s, "does_not_empty", f"{name} empty", "stop")


def supervise(name: str, io: MachineIO) -> Steps:
    """Execute: the feedback must stay. A fault that the PLC latched says why it went."""
    while True:
        if io.fault is not None and io.fault.value:
            yield Fail("machine_fault", f"{name}: {fault_text(io)}", "hold")
        if not io.running.value:
            yield Until(
                lambda: io.running.is_(True),
                1.0,
                "stopped_by_itself",
                f"{name} running while it should",
                "hold",
            )
        yield None


@dataclass(frozen=True, slots=True)
class MachineSettings(Settings):
    """Time limits in seconds: ``limit_s`` to start, stop or reset, ``empty_limit_s`` to run empty."""

    limit_s: float = 5.0
    empty_limit_s: float = 120.0
