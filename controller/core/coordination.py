"""The line as a unit: its acting states order the stations about.

The line is a station whose equipment is stations, so it uses the same machine, interlocks and sequences.
Start and unhold go from the last station to the first, so that nothing is sent to where nobody takes it;
stop and hold go from the first to the last; run-out follows the product; abort is everybody at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from controller.core.behaviour import Behaviour, Settings
from controller.core.commands import CommandRejected
from controller.core.packml import State, Trigger
from controller.core.sequence import Fail, Steps, Until
from controller.core.station import Station

S, T = State, Trigger

RUNNING = frozenset({S.EXECUTE, S.SUSPENDING, S.SUSPENDED, S.UNSUSPENDING})
AT_REST = frozenset({S.STOPPED, S.ABORTED})
ABORTED = frozenset({S.ABORTING, S.ABORTED})
STOPPED = frozenset({S.STOPPING, S.STOPPED})
HELD = frozenset({S.HOLDING, S.HELD})
SETTLED_FOR_HOLD = frozenset({S.HELD, S.STOPPED, S.ABORTED, S.IDLE, S.COMPLETE})
LINE_RUNNING = frozenset({S.STARTING, S.EXECUTE, S.UNHOLDING, S.SUSPENDING, S.SUSPENDED, S.UNSUSPENDING, S.COMPLETING})


@dataclass(frozen=True, slots=True)
class LineSettings(Settings):
    """Time limits in seconds, and what the running line does when a station leaves it."""

    limit_s: float = 60.0
    run_out_limit_s: float = 300.0
    on_station_abort: str = "hold"
    on_station_hold: str = "none"


class LineBehaviour(Behaviour):
    """Acting states of the line over ``stations``, which are in the order of the product's flow."""

    settings: LineSettings

    def __init__(self, name: str, settings: LineSettings, stations: Sequence[Station]) -> None:
        super().__init__(name, None, settings)
        self.stations = tuple(stations)

    # --- acting states -----------------------------------------------------------------------------------

    def clearing(self) -> Steps:
        """Clear every aborted station; the line is Stopped when all are."""
        for station in self.stations:
            if station.state is S.ABORTED:
                yield from self._order(station, T.CLEAR, "abort")
        yield from self._bring(lambda s: s.state is not S.CLEARING, "clear", "abort", lost=ABORTED)

    def resetting(self) -> Steps:
        """Reset every stopped or complete station; the line is Idle when all are."""
        for station in self.stations:
            if station.state in (S.STOPPED, S.COMPLETE):
                yield from self._order(station, T.RESET, "stop")
        yield from self._bring(lambda s: s.state is S.IDLE, "reset", "stop", lost=ABORTED | STOPPED)

    def starting(self) -> Steps:
        """Start from the last station to the first."""
        yield from self._bring_up()

    def completing(self) -> Steps:
        """Run-out: each station completes when all before it have, and it is empty."""
        try:
            for station in self.stations:
                station.may_starve = False
            for station in self.stations:
                limit, name = self.settings.run_out_limit_s, station.name
                yield Until(
                    lambda s=station: s.state in (S.EXECUTE, S.COMPLETE),  # type: ignore[misc]
                    limit, f"run_out_{name}", f"{name} in Execute, to run out", "stop",
                )  # fmt: skip
                if station.state is S.EXECUTE:
                    yield from self._order(station, T.COMPLETE, "stop")
                yield Until(
                    lambda s=station: s.state is S.COMPLETE,  # type: ignore[misc]
                    limit, f"run_out_{name}", f"{name} run out and Complete", "stop",
                )  # fmt: skip
        finally:
            for station in self.stations:
                station.may_starve = True

    def stopping(self) -> Steps:
        """Stop from the first station to the last."""
        for station in self.stations:
            if station.machine.target(T.STOP) is not None:
                yield from self._order(station, T.STOP, "abort")
            yield self._until(lambda s: s.state in AT_REST, "stop", "abort", (station,))

    def aborting(self) -> Steps:
        """Abort every station, all in this scan."""
        for station in self.stations:
            if station.machine.target(T.ABORT) is not None:
                station.command(T.ABORT, "line Abort")
        yield self._until(lambda s: s.state is S.ABORTED, "abort", "abort")

    def holding(self) -> Steps:
        """Hold every station that runs, from the first to the last."""
        yield self._drive(
            T.HOLD,
            # an edition without Hold from Suspended leaves a station that waits where it waits
            lambda s: s.state in SETTLED_FOR_HOLD or (s.state is S.SUSPENDED and s.machine.target(T.HOLD) is None),
            "hold",
        )

    def unholding(self) -> Steps:
        """Bring the stations back from the last to the first, those that were reset meanwhile included."""
        yield from self._bring_up()

    def suspending(self) -> Steps:
        """Suspend every station that executes."""
        yield self._drive(T.SUSPEND, lambda s: s.state not in (S.EXECUTE, S.SUSPENDING, S.UNSUSPENDING), "suspend")

    def unsuspending(self) -> Steps:
        """Unsuspend every suspended station."""
        yield self._drive(T.UNSUSPEND, lambda s: s.state is not S.SUSPENDED, "unsuspend")

    # --- what the stations have against it, and what they force -------------------------------------------

    def obstacles(self, trigger: Trigger) -> list[str]:
        """Every station's own obstacles, and stations in a state from which the line cannot take them along."""
        against: list[str] = []
        shared: dict[str, list[str]] = {}  # what several stations say alike is said once
        for station in self.stations:
            name, state = station.name, station.state
            given: list[str] = []
            if trigger is T.CLEAR and state is S.ABORTED:
                given = station.obstacles(T.CLEAR)
            elif trigger is T.RESET:
                if state in (S.STOPPED, S.COMPLETE):
                    given = station.obstacles(T.RESET)
                elif state is not S.IDLE:
                    against.append(f"{name} is {state.text}" + _remedy(state))
            elif trigger in (T.START, T.UNHOLD):
                wanted = T.UNHOLD if state is S.HELD else T.START
                fit = (S.IDLE,) if trigger is T.START else (S.IDLE, S.HELD, *RUNNING)
                if state not in fit:
                    against.append(f"{name} is {state.text}" + _remedy(state))
                elif state not in RUNNING:
                    given = station.obstacles(wanted)
            for text in given:
                shared.setdefault(text, []).append(name)
        return against + [f"{', '.join(names)}: {text}" for text, names in shared.items()]

    def watch(self, now_ns: int) -> tuple[str, str] | None:
        """A station that left the running line makes the line hold, stop or abort, as configured."""
        if self.state not in LINE_RUNNING:
            return None
        for station in self.stations:
            if station.state in (S.ABORTING, S.ABORTED, S.STOPPING, S.STOPPED):
                action = self.settings.on_station_abort
                if self.state in (S.STARTING, S.UNHOLDING) and station.state in (S.STOPPED, S.ABORTED):
                    action = action if station.first_out else "none"
            elif station.state in (S.HOLDING, S.HELD) and self.state in (S.EXECUTE, S.SUSPENDED):
                action = self.settings.on_station_hold
            else:
                continue
            if action == "hold" and self.state not in (S.EXECUTE, S.SUSPENDED):
                action = "stop"
            if action != "none":
                return (
                    action,
                    f"{station.name} is {station.state.text}: {station.stop_reason or station.first_out}",
                )
        return None

    # --- inside --------------------------------------------------------------------------------------------

    def _bring_up(self) -> Steps:
        for station in reversed(self.stations):
            if station.state is S.HELD:
                yield from self._order(station, T.UNHOLD, "stop")
            elif station.state is S.IDLE:
                yield from self._order(station, T.START, "stop")
            yield from self._bring(lambda s: s.state in RUNNING, "start", "stop", (station,), ABORTED | STOPPED | HELD)

    def _bring(
        self,
        settled: Callable[[Station], bool],
        what: str,
        action: str,
        stations: Sequence[Station] = (),
        lost: frozenset[State] = frozenset(),
    ) -> Steps:
        """Wait until the stations have settled; one that falls into a ``lost`` state ends the wait at once."""
        among = stations or self.stations
        wait = self._until(settled, what, action, among)
        yield replace(wait, condition=lambda: any(s.state in lost for s in among) or wait.condition())
        fallen = [s for s in among if s.state in lost]
        if fallen:
            reasons = [f"{s.name} is {s.state.text}: {s.first_out or s.stop_reason}" for s in fallen]
            yield Fail(f"{what}_failed", "; ".join(reasons), action)

    def _order(self, station: Station, trigger: Trigger, action: str) -> Steps:
        try:
            station.command(trigger, f"line {self.state.text}")
        except CommandRejected as refused:
            yield Fail("station_refused", str(refused), action)

    def _drive(self, trigger: Trigger, settled: Callable[[Station], bool], what: str) -> Until:
        """Give ``trigger`` to every station as soon as it takes it, until all are settled."""

        def all_settled() -> bool:
            done = True
            for station in self.stations:
                if not settled(station):
                    done = False
                    if station.machine.target(trigger) is not None and not station.obstacles(trigger):
                        station.command(trigger, f"line {self.state.text}")
            return done

        return Until(all_settled, self.settings.limit_s, f"{what}_timeout", f"every station to {what}", "stop")

    def _until(
        self, settled: Callable[[Station], bool], what: str, action: str, stations: Sequence[Station] = ()
    ) -> Until:
        among = stations or self.stations
        names = ", ".join(s.name for s in among)
        return Until(
            lambda: all(settled(s) for s in among),
            self.settings.limit_s,
            f"{what}_timeout",
            f"{names} to {what}",
            action,
        )


def _remedy(state: State) -> str:
    if state in RUNNING or state is S.HELD:
        return ": give it Stop and Reset"
    return {S.ABORTED: ": give it Clear and Reset", S.STOPPED: ": give it Reset"}.get(state, "")
