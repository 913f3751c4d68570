"""The scan: one pure step of the whole line.

``scan(now, buffer, commands)`` latches the image, looks at safety, takes commands, steps the line, the changeover
and the stations, counts, and returns what happened and what the PLCs are to be told. It never awaits, never reads
a clock, never does I/O. Everything that leaves it is a frozen value or a copy.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from controller.core.alarms import Alarm, AlarmBook, AlarmSpec, Change
from controller.core.changeover import Changeover
from controller.core.commands import LINE, Command, CommandRejected, Reply
from controller.core.events import (
    AlarmChanged,
    AnyEvent,
    CommandDone,
    CountsChanged,
    LinkChanged,
    ModeChanged,
    Note,
    OutputFailed,
)
from controller.core.image import InputBuffer, LinkReport, ProcessImage, WriteReport
from controller.core.losses import LossLedger
from controller.core.packml import COMMAND_BY_NAME, State, Trigger
from controller.core.parameters import ParameterSet
from controller.core.station import ScanContext, Station
from drivers.port import Outcome, Value
from recipes.model import ControlRecipe

S, T = State, Trigger
COUNTS_EVERY_NS = 30_000_000_000
"""Longest time between two records of counts that change; the PLC values in them make up for what follows."""
PRODUCING = frozenset({S.EXECUTE, S.HOLDING, S.HELD, S.UNHOLDING, S.SUSPENDING, S.SUSPENDED, S.UNSUSPENDING})
AT_REST = frozenset({S.STOPPED, S.ABORTED, S.IDLE, S.COMPLETE})
STANDING = frozenset({S.SUSPENDING, S.SUSPENDED, S.HOLDING, S.HELD})
"""States of the line in which no station resumes by itself, though its work and room are back."""


@dataclass(frozen=True, slots=True)
class ScanResult:
    """What a scan produced: events for the journal, replies to commands, outputs (tag → value) that changed."""

    events: Sequence[AnyEvent]
    replies: Sequence[Reply]
    outputs: Mapping[str, Value]


@dataclass(slots=True)
class LineParts:
    """What a line is composed of; ``stations`` in the order of the product's flow."""

    name: str
    image: ProcessImage
    context: ScanContext
    alarms: AlarmBook
    line: Station
    stations: Mapping[str, Station]
    parameters: ParameterSet
    recipes: Mapping[str, ControlRecipe]
    downstream: Mapping[str, Sequence[str]] = field(default_factory=dict)
    station_of_tag: Mapping[str, str] = field(default_factory=dict)
    """Station that drives an output tag, for its alarm."""
    endpoints: Mapping[str, str] = field(default_factory=dict)
    """Where each PLC is, for its alarm's text."""


class LineLogic:
    """The line's logic with its state. One owner: the scan loop, or the bench."""

    def __init__(self, parts: LineParts, initial_recipe: str | None = None) -> None:
        self.parts = parts
        self.name = parts.name
        self.image, self.context, self.alarms = parts.image, parts.context, parts.alarms
        self.line, self.stations = parts.line, parts.stations
        self.parameters, self.recipes = parts.parameters, parts.recipes
        upstream: dict[str, list[str]] = {n: [] for n in parts.stations}
        for name, nexts in parts.downstream.items():
            for n in nexts:
                upstream[n].append(name)
        self.upstream: Mapping[str, Sequence[str]] = upstream
        self.losses = LossLedger(upstream, parts.downstream)
        self.recipe: ControlRecipe | None = None
        self._made: ControlRecipe | None = None
        """The recipe that was last in force: what is left on the line was made to it."""
        self.changeover: Changeover | None = None
        self.last_changeover: Changeover | None = None
        self.changeovers = 0
        self.block = ""
        self.scans = 0
        self._wanted_recipe = initial_recipe
        self._link_alarms = {
            plc: self.alarms.add("", AlarmSpec(f"plc_{plc}", f"PLC {plc} is not connected", priority=3))
            for plc in self.image.layout.plcs
        }
        self._output_alarms: dict[str, tuple[Alarm, set[str]]] = {}
        self._concerns: dict[str, str] = {}
        self._counted: dict[str, tuple[int, int]] = {}
        self._product_before = ""
        self.alarms_on_change(parts)
        parts.line.line_block = self._line_block
        for name, station in parts.stations.items():
            station.line_block = partial(self._station_block, name)

    # --- the scan -----------------------------------------------------------------------------------------

    def scan(self, now_ns: int, utc_ns: int, buffer: InputBuffer, commands: Iterable[Command] = ()) -> ScanResult:
        """One scan. ``now_ns`` is monotonic, ``utc_ns`` for the record only; ``commands`` as drained."""
        context = self.context
        context.now_ns, context.utc_ns, context.events = now_ns, utc_ns, []
        if not self.scans:
            for unit in (self.line, *self.stations.values()):
                unit.machine.begin(now_ns)
        links, reports = self.image.latch(now_ns, buffer)
        if self._concerns:
            self._tell_concerns()
        for link in links:
            self._link_changed(link)
        for report in reports:
            self._written(report)
        self.line.scan_safety()
        stations = self.stations.values()
        emergency = self.line.lost() if self.scans else ""
        for station in stations:
            if emergency:  # whatever state the line is in: a station may run on its own
                station.trip("abort", emergency)
            station.scan_safety()
        replies = [self._take(command) for command in commands]
        self._drive_changeover()
        self.line.scan_logic()
        for station in stations:
            station.scan_logic()
        if self.line.state is S.ABORTING:  # all stations may have aborted just now: then so has the line
            self.line.scan_logic()
        self._count()
        self.losses.scan(self.line.state in PRODUCING, self.stations, context)
        self.scans += 1
        return ScanResult(context.events, replies, self.image.take_outputs())

    @property
    def product(self) -> str:
        """What is made now; empty when no recipe is in force."""
        return self.recipe.product if self.recipe else ""

    @property
    def at_rest(self) -> bool:
        """Whether line and stations are all in a state in which nothing moves."""
        return self.line.state in AT_REST and all(s.state in AT_REST for s in self.stations.values())

    def safe_outputs(self) -> dict[str, Value]:
        """Every output that has a safe value, with it: what shutdown writes, whatever the states are."""
        return {
            station.parts.outputs[point].tag: value
            for station in self.stations.values()
            for point, value in station.parts.safe.items()
        }

    def concern(self, name: str, text: str) -> None:
        """From the next scan on, an alarm of the line about the controller itself; an empty text clears it."""
        self._concerns[name] = text

    def _tell_concerns(self) -> None:
        for name, text in self._concerns.items():
            alarm = self.alarms.get("line", AlarmSpec(name, text, priority=4))
            if text:
                self.alarms.activate(alarm, text)
            else:
                self.alarms.clear(alarm)
        self._concerns.clear()

    def restore(self, counts: Mapping[str, CountsChanged], recipe: str | None) -> None:
        """Go on from a record: counts with the PLC values that they rest on, and the recipe last in force."""
        for name, counted in counts.items():
            station = self.stations.get(name)
            if station is not None and station.parts.tally is not None:
                totals = {"infeed": counted.infeed, "good": counted.good, "rejected": counted.rejected}
                station.parts.tally.restore(totals, counted.raw, counted.product)
                self._product_before = counted.product
        if recipe is not None and recipe in self.recipes:
            self._wanted_recipe, self._made = recipe, self.recipes[recipe]
        elif recipe is not None:  # what is on the line was made to it: nobody but a person knows what fits
            self._wanted_recipe = None
            self.block = f"recipe {recipe}, last in force, is none of this line's any more: change over to one"

    def line_counts(self) -> dict[str, int]:
        """Counts of the line: in at its first stations, good at its last, rejected and in process everywhere."""
        counts = dict.fromkeys(("infeed", "good", "rejected", "in_process"), 0)
        for name, station in self.stations.items():
            tally = station.parts.tally
            if tally is None:
                continue
            counts["rejected"] += tally.totals["rejected"]
            counts["in_process"] += tally.in_process or 0
            if not self.upstream[name]:
                counts["infeed"] += tally.totals["infeed"]
            if not self.parts.downstream.get(name):
                counts["good"] += tally.totals["good"]
        return counts

    def counts_event(self, name: str) -> CountsChanged | None:
        """The present counts of a station as an event."""
        tally = self.stations[name].parts.tally
        if tally is None:
            return None
        return CountsChanged(
            at=self.context.utc_ns,
            station=name,
            product=self.product or self._product_before,
            in_process=tally.in_process or 0,
            raw=tally.raw(),
            **tally.totals,
        )

    # --- links and outputs ------------------------------------------------------------------------------------

    def _link_changed(self, link: LinkReport) -> None:
        alarm = self._link_alarms[link.plc]
        where = self.parts.endpoints.get(link.plc, "")
        if link.up:
            self.alarms.clear(alarm)
            self._forget_failed(link.plc)
        else:
            place = f" ({where})" if where and where not in link.reason else ""
            self.alarms.activate(alarm, f"PLC {link.plc}{place} is not connected: {link.reason}")
        reason = "the PLC has restarted" if link.up and link.restarted else link.reason
        self.context.events.append(LinkChanged(at=self.context.utc_ns, plc=link.plc, up=link.up, reason=reason))

    def _forget_failed(self, plc: str) -> None:
        """A PLC is back: its link compares every output anew, and reports those again that it cannot write."""
        for alarm, tags in self._output_alarms.values():
            tags -= {t for t in tags if self.image.layout.plc_of[t] == plc}
            if not tags:
                self.alarms.clear(alarm)

    def _written(self, report: WriteReport) -> None:
        self.parameters.report(report)
        station = self.parts.station_of_tag.get(report.tag, "")
        entry = self._output_alarms.get(station)
        if report.outcome is Outcome.VERIFIED:
            if entry is not None:
                entry[1].discard(report.tag)
                if not entry[1]:
                    self.alarms.clear(entry[0])
            return
        if entry is None:
            text = "an output could not be written"
            entry = (self.alarms.get(station, AlarmSpec("output_failed", text, priority=3)), set())
            self._output_alarms[station] = entry
        value = report.value
        lost = not self.image.up[self.image.layout.plc_of[report.tag]]  # then the PLC's own alarm tells the cause
        if not lost and report.tag not in entry[1]:  # repeated attempts are recorded, but are no new alarm
            entry[1].add(report.tag)
            self.alarms.activate(entry[0], f"writing {report.tag} = {value} ended {report.outcome}: {report.reason}")
        self.context.events.append(
            OutputFailed(
                at=self.context.utc_ns,
                station=station,
                tag=report.tag,
                value=value,
                outcome=report.outcome.value,
                reason=report.reason,
            )
        )

    # --- commands ---------------------------------------------------------------------------------------------

    def _take(self, command: Command) -> Reply:
        try:
            done = self._execute(command)
            reply = Reply(id=command.id, accepted=True, reason=done)
        except CommandRejected as refused:
            reply = Reply(id=command.id, accepted=False, reason=str(refused))
        self.context.events.append(
            CommandDone(
                at=self.context.utc_ns,
                station=command.target,
                id=command.id,
                command=command.name,
                args=command.args,
                user=command.user,
                client=command.client,
                accepted=reply.accepted,
                reason=reply.reason,
            )
        )
        return reply

    def _execute(self, command: Command) -> str:
        unit = self.line if command.target == LINE else self.stations.get(command.target)
        if unit is None:
            raise CommandRejected(f"there is no station {command.target!r}; there are line, {', '.join(self.stations)}")
        trigger = COMMAND_BY_NAME.get(command.name)
        if trigger is not None:
            before = unit.state
            reason = f"{trigger.text} by {command.user or 'nobody named'}"
            if trigger in (T.ABORT, T.STOP) and unit is self.line and self.changeover is not None:
                self.changeover.keep_stopped()
            if trigger in (T.ABORT, T.STOP) and unit.machine.target(trigger) is None and self._is_there(unit, trigger):
                also = self._command_all(trigger, f"line {reason}") if unit is self.line else ""
                return f"{command.target} is already {before.text}{also}"
            unit.command(trigger, reason)
            return f"{command.target}: {before.text} → {unit.state.text}"
        if unit is not self.line:
            raise CommandRejected(
                f"{command.target} does not know {command.name!r}; PackML commands only, the rest is the line's"
            )
        match command.name:
            case "set_mode":
                return self._set_mode(str(command.args.get("mode", "")))
            case "changeover":
                start = command.args.get("start", False)
                if not isinstance(start, bool):
                    raise CommandRejected(f"changeover: start is true or false, not {start!r}")
                return self._start_changeover(str(command.args.get("recipe", "")), start)
            case "acknowledge":
                self.alarms.acknowledge(str(command.args.get("alarm", "")), command.user)
                return "acknowledged"
            case "acknowledge_all":
                waiting = [a for a in self.alarms.alarms.values() if not a.acknowledged]
                for alarm in waiting:
                    self.alarms.acknowledge(alarm.id, command.user)
                return f"{len(waiting)} alarms acknowledged"
        raise CommandRejected(f"the line does not know {command.name!r}")

    @staticmethod
    def _is_there(unit: Station, trigger: Trigger) -> bool:
        """Whether a Stop or Abort asks for what already is, so that pressing twice is not an error."""
        there = {T.STOP: (S.STOPPING, S.STOPPED, S.ABORTING, S.ABORTED), T.ABORT: (S.ABORTING, S.ABORTED)}
        return unit.state in there[trigger]

    def _command_all(self, trigger: Trigger, reason: str) -> str:
        """Stop or Abort of a line that stands already still reaches stations that run on their own."""
        if self.line.state is S.STOPPING:  # it is stopping them in order
            return ""
        told = [s for s in self.stations.values() if s.machine.target(trigger) is not None]
        for station in told:
            station.command(trigger, reason)
        return f"; {trigger.text} given to {', '.join(s.name for s in told)}" if told else ""

    def _set_mode(self, name: str) -> str:
        units = [self.line, *self.stations.values()]
        for unit in units:  # all or none: ask everybody first
            refusal = unit.machine.mode_refusal(name)
            if refusal:
                raise CommandRejected(f"{unit.name}: {refusal}")
        for unit in units:
            source = unit.machine.mode.name
            unit.machine.set_mode(name, self.context.now_ns)
            if source != name:
                self.context.events.append(
                    ModeChanged(at=self.context.utc_ns, station=unit.name, source=source, target=name)
                )
        return f"unit mode is {name}"

    # --- recipes ----------------------------------------------------------------------------------------------

    def _start_changeover(self, recipe_id: str, start: bool) -> str:
        new = self.recipes.get(recipe_id)
        if new is None:
            known = ", ".join(self.recipes) or "none"
            raise CommandRejected(f"there is no recipe {recipe_id!r}; recipes are {known}")
        if self.changeover is not None:
            now = self.changeover
            raise CommandRejected(f"changeover {now.number} to {now.new.id} is in progress ({now.step})")
        state = self.line.state
        if state not in AT_REST and state not in (S.EXECUTE, S.SUSPENDED):
            raise CommandRejected(f"a changeover cannot begin while the line is {state.text}")
        moving = [s.name for s in self.stations.values() if s.state not in AT_REST]
        if state in AT_REST and moving:
            raise CommandRejected(f"a changeover needs every station at rest; not so: {', '.join(moving)}")
        self._begin(new, start=start)
        return f"changeover {self.changeovers} to {new.id} has begun"

    def _begin(self, new: ControlRecipe, *, start: bool) -> None:
        self.changeovers += 1
        self._wanted_recipe = None
        self.changeover = Changeover(
            self.changeovers, self.recipe, new, self.line, self.parameters, self.context, start=start, made=self._made
        )

    def _drive_changeover(self) -> None:
        if self.changeover is None:
            self._load_wanted()
        if self.changeover is None:
            return
        before = self.changeover.committed
        self.changeover.scan()
        if self.changeover.committed and not before:
            self._count_all()
            self.recipe, self.block = self.changeover.recipe, ""
            self._made = self.recipe
        if self.changeover.finished:
            done, self.changeover = self.changeover, None
            self.last_changeover = done
            self.recipe = done.recipe
            self.block = done.block or ("" if done.committed else self.block)

    def _load_wanted(self) -> None:
        """The recipe to load at start-up, as soon as every PLC that carries a parameter of it is there."""
        if self._wanted_recipe is None or self.line.state not in AT_REST:
            return
        if not self.parameters.not_connected():
            self._begin(self.recipes[self._wanted_recipe], start=False)

    def _line_block(self, trigger: Trigger) -> str:
        if trigger in (T.CLEAR, T.RESET):
            return ""
        running_out = self.changeover is not None and self.changeover.step == "running_out"
        if running_out and trigger in (T.UNSUSPEND, T.UNHOLD):  # who stood starved or jammed has to go on to run empty
            return ""
        if self.changeover is not None and not self.changeover.committed:
            return f"changeover to {self.changeover.new.id} is in progress ({self.changeover.step})"
        if self.block:
            return self.block
        if self.parameters.all and self.recipe is None:
            wanted = self._wanted_recipe
            return f"recipe {wanted} is not loaded yet" if wanted else "no recipe is loaded: change over to one"
        return ""

    def _station_block(self, name: str, trigger: Trigger) -> str:
        block = self.line.lost() or self._line_block(trigger)
        if not block and trigger is T.UNSUSPEND and self.line.state in STANDING:
            block = f"the line is {self.line.state.text}"
        if block or trigger in (T.CLEAR, T.RESET):
            return block
        differences = self.parameters.differences(name)
        return f"the recipe is not in force: {'; '.join(differences)}" if differences else ""

    # --- counts and alarms --------------------------------------------------------------------------------------

    def _count(self) -> None:
        product = self.product or self._product_before
        now_ns = self.context.now_ns
        for name, station in self.stations.items():
            note = station.scan_counts(product)
            if note:
                self.context.events.append(Note(at=self.context.utc_ns, station=name, text=note))
            tally = station.parts.tally
            if tally is None or not tally.raw():
                continue
            generation, last_ns = self._counted.get(name, (-1, -COUNTS_EVERY_NS))
            resting = station.state in AT_REST
            if tally.generation != generation and (resting or now_ns - last_ns >= COUNTS_EVERY_NS):
                self._count_one(name)

    def _count_all(self) -> None:
        """Close the books of a product: the last counts under its name."""
        for name in self.stations:
            self._count_one(name)

    def _count_one(self, name: str) -> None:
        event = self.counts_event(name)
        tally = self.stations[name].parts.tally
        if event is not None and tally is not None:
            self.context.events.append(event)
            self._counted[name] = (tally.generation, self.context.now_ns)

    def alarms_on_change(self, parts: LineParts) -> None:
        """Make every alarm change an event of the scan in progress."""

        def changed(alarm: Alarm, change: Change, user: str) -> None:
            if change == "active":
                alarm.since_utc = parts.context.utc_ns
            parts.context.events.append(
                AlarmChanged(
                    at=parts.context.utc_ns,
                    station=alarm.station,
                    alarm=alarm.id,
                    change=change,
                    priority=alarm.spec.priority,
                    text=alarm.text,
                    user=user,
                )
            )

        parts.alarms.subscribe(changed)
