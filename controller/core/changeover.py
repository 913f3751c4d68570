"""A changeover: plan → run out → stage on every station → read back → commit, or all goes back to what it was."""

from __future__ import annotations

from collections.abc import Mapping

from controller.core.commands import CommandRejected
from controller.core.coordination import LineBehaviour
from controller.core.events import ChangeoverChanged
from controller.core.packml import State, Trigger
from controller.core.parameters import Key, ParameterSet
from controller.core.sequence import Fail, Progress, Runner, Steps, Until
from controller.core.station import ScanContext, Station
from drivers.port import Value
from recipes.model import Change, ControlRecipe, plan

S, T = State, Trigger

AT_REST = frozenset({S.STOPPED, S.IDLE, S.COMPLETE, S.ABORTED})
RUNNABLE = frozenset({S.EXECUTE, S.SUSPENDED, S.UNSUSPENDING, S.SUSPENDING})


class Changeover:
    """One changeover in progress. ``step`` and ``detail`` are for people; ``finished`` tells when it is over.

    After it ended, ``block`` says why the line must not run (empty after success), and ``recipe`` is the
    recipe that every station was read back to hold (``None`` if that could not be reached).
    """

    def __init__(
        self,
        number: int,
        old: ControlRecipe | None,
        new: ControlRecipe,
        line: Station,
        parameters: ParameterSet,
        context: ScanContext,
        *,
        start: bool,
        made: ControlRecipe | None = None,
    ) -> None:
        self.number, self.old, self.new, self.start = number, old, new, start
        self._wants_start = start
        self._made = old or made
        """To which recipe product that is left on the line was made, also when none is in force."""
        self._line, self._parameters, self._context = line, parameters, context
        assert isinstance(line.behaviour, LineBehaviour)
        self._coordination = line.behaviour
        self.changes: tuple[Change, ...] = plan(old, new)
        self.step, self.detail = "", ""
        self.finished = False
        self.block = ""
        self.recipe: ControlRecipe | None = old
        self.committed = False
        self._staged = False
        self._stood_ns = -1
        """Since when the line stood as staging began: who moves it afterwards does not want it started for him."""
        self._runner = Runner(self._go())
        self._why = ""
        self._tell("planned", f"{len(self.changes)} parameters change")

    def keep_stopped(self) -> None:
        """Somebody gave Stop or Abort: the line is not started afterwards, whatever was asked for before."""
        self.start = False

    def scan(self) -> None:
        """One step."""
        try:
            progress = self._runner.step(self._context.now_ns)
        except CommandRejected as refused:  # the line did not take its Complete, Reset or Start
            text = str(refused)
        else:
            if progress is not Progress.FAILED:
                self.finished = progress is Progress.DONE
                return
            assert self._runner.failure is not None
            text = self._runner.failure.text
        self._runner.close()
        if self.committed:  # the recipe is in force; only the start after it failed, and the line's own alarm tells why
            self.finished = True
            self._tell("committed", f"{self.new.id} is in force, but the line did not start: {text}")
        elif self.step == "rolling_back":
            self.recipe, self.finished = None, True
            self.block = (
                f"changeover to {self.new.id} failed ({self._why}) and the way back failed too ({text}): "
                f"the stations hold a mix of recipes; repair, then change over again"
            )
            self._tell("failed", self.block)
        elif not self._staged:
            self.finished = True
            self._tell(
                "failed",
                f"{text}; nothing was written, {self.old.id if self.old else 'no recipe'} stays in force",
            )
        else:
            self._why = text
            self._runner = Runner(self._back())

    def _go(self) -> Steps:
        line = self._line
        if line.state in RUNNABLE:
            self._tell("running_out", "the line runs empty")
            yield Until(lambda: line.state in (S.EXECUTE, *AT_REST), 30, "run_out", "the line in Execute, to run out")
            if line.state is S.EXECUTE:
                line.command(T.COMPLETE, f"changeover to {self.new.id}")
            limit = self._coordination.settings.run_out_limit_s
            yield Until(lambda: line.state in (S.HELD, *AT_REST), limit, "run_out", "the line run out")
            if line.state is not S.COMPLETE:
                yield Fail("run_out", f"the line became {line.state.text} during run-out")
        if missing := self._parameters.not_connected():
            yield Fail("not_connected", f"PLC {', '.join(missing)} is not connected")
        left = [text for s in self._coordination.stations if s.parts.tally and (text := s.parts.tally.left(s.name))]
        if left and self._made is not None and plan(self._made, self.new):
            yield Fail("not_empty", f"product of {self._made.id} is left on the line: {', '.join(left)}; run out first")
        self._stood_ns = line.machine.entered_ns
        self._tell("staging", f"{len(self.changes)} parameters")
        self._staged = True
        yield from self._write(self.new.values)  # all of it: what a PLC has lost meanwhile is no change of recipe
        self._tell("verified", "every station reads back the new recipe")
        self.recipe, self.committed = self.new, True
        self._tell("committed", f"{self.new.id} {self.new.version} is in force")
        if self._wants_start:
            yield None  # the line takes note of the recipe first, and forgets what blocked it before
            yield from self._restart()

    def _back(self) -> Steps:
        self._tell("rolling_back", self._why)
        if self.old is not None:
            yield from self._write(self.old.values)
        if self.old is None:
            self.recipe = None
            self.block = f"loading {self.new.id} failed: {self._why}; no recipe is in force; repair, then load again"
        else:
            self.block = (
                f"changeover to {self.new.id} failed: {self._why}; every station is back on {self.old.id}; "
                f"change over again, to {self.old.id} if it is to run on"
            )
        self._tell("rolled_back", self.block)

    def _write(self, values: Mapping[Key, Value]) -> Steps:
        """Stage the values on their PLCs and wait until each is read back, and confirmed where it can be."""
        parameters, staged_ns = self._parameters, self._context.now_ns
        parameters.stage(values)
        for key in values:
            limit = parameters.all[key].limit_s
            started = self._context.now_ns
            while (refused := parameters.refused(values)) or (short := parameters.difference(key, staged_ns)):
                if refused:
                    yield Fail("parameter", refused)
                if self._context.now_ns - started > limit * 1e9:
                    yield Fail("parameter", f"{short} (waited {limit:g} s)")
                self.detail = f"waiting for {key[0]}.{key[1]}"
                yield None

    def _restart(self) -> Steps:
        line = self._line
        if not self.start or line.machine.entered_ns != self._stood_ns:  # somebody, or an interlock, was there
            yield Fail("start", f"it was given another command or stopped meanwhile, and is {line.state.text}")
        if line.state in (S.COMPLETE, S.STOPPED):
            line.command(T.RESET, f"changeover to {self.new.id}")
            yield Until(lambda: line.state is not S.RESETTING, 60, "start", "the line Idle after the changeover")
        if line.state is not S.IDLE or not self.start:
            yield Fail("start", f"the line is {line.state.text}")
        line.command(T.START, f"changeover to {self.new.id}")

    def _tell(self, step: str, detail: str) -> None:
        self.step, self.detail = step, detail
        self._context.events.append(
            ChangeoverChanged(
                at=self._context.utc_ns,
                station="line",
                id=self.number,
                source=self.old.id if self.old else "",
                target=self.new.id,
                step=step,
                detail=detail,
            )
        )
