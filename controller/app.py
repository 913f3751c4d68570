"""Wiring of the controller process: everything is made here, once, and handed to whoever needs it."""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import structlog

from controller.build import build_line, kind_infos
from controller.config.driver_options import driver_options
from controller.config.line import LineConfig
from controller.config.load import load
from controller.config.overrides import Overrides
from controller.core.commands import CommandQueue
from controller.core.image import InputBuffer
from controller.core.line import LineLogic
from controller.north.publisher import Publisher
from controller.north.server import NorthServer
from controller.north.view import LineView
from controller.runtime import record
from controller.runtime.bus import Link
from controller.runtime.bus_options import link_options
from controller.runtime.bus_wait import Ticker
from controller.runtime.clock import Clock, SystemClock
from controller.runtime.instance import InstanceLock, runtime_dir, state_dir
from controller.runtime.journal import Journal
from controller.runtime.scan_loop import ScanLoop
from controller.runtime.service import GatewaySpec, Notifier, Part, Service, Supervisor
from controller.runtime.timer import Timer, periodic
from drivers.factory import Links, make_driver
from drivers.port import Driver

_log = structlog.get_logger("app")


@dataclass(frozen=True, slots=True)
class RunOptions:
    """How to run a line. Paths that are ``None`` take systemd's directories, else the user's state directory.

    ``endpoints`` is a JSON file ``{"plc": {"host": …, "port": …}}`` that replaces where PLCs are (the HIL bench
    writes one). ``opcua`` is the endpoint of the OPC UA gateway; with ``gateways`` off none is started here.
    """

    line: Path
    endpoints: Path | None = None
    state_dir: Path | None = None
    socket: Path | None = None
    opcua: str | None = "opc.tcp://127.0.0.1:4840"
    opcua_users: Path | None = None
    gateways: bool = True
    stop_limit_s: float = 20.0


def read_endpoints(path: Path | None) -> Mapping[str, Mapping[str, Any]] | None:
    """The overrides of an endpoints file. Raises ``ValueError`` naming the file when it is not one."""
    return None if path is None else Overrides.read(path)


def make_drivers(config: LineConfig, clock: Clock) -> dict[str, Driver]:
    """One driver per PLC of the line, not connected yet. Units of one physical link share its owner."""
    drivers: dict[str, Driver] = {}
    links = Links()
    for name, plc in config.file.plcs.items():
        tags = [tag for tag in config.tags.values() if config.tag_plc[tag.name] == name]
        options = driver_options(plc, config.path.parent, config.file.scan_classes)
        drivers[name] = make_driver(name, options, tags, links=links, monotonic_ns=clock.monotonic_ns)
    return drivers


def make_link(config: LineConfig, driver: Driver, buffer: InputBuffer, clock: Clock, ticker: Ticker) -> Link:
    """The supervised link of one PLC."""
    options = link_options(config.file.plcs[driver.name], config.file.scan_classes)
    # Jitter of reconnections only: nothing that the scan sees depends on it.
    return Link(driver, buffer, clock, options, random.Random(), ticker)


_FIGURES = {
    "requests": "requests", "timeouts": "timeouts", "failed": "failed", "refused": "refused", "rejected": "rejected",
    "unknown": "unknown", "reconnects": "reconnects", "restarts": "restarts", "skipped": "skipped", "late": "late",
    "strays": "strays", "missed": "missed", "breaker": "breaker", "round_trip": "last_round_trip_ms",
    "requests_per_s": "requests_per_s", "p50": "p50_ms", "p99": "p99_ms",
}  # fmt: skip
"""Figures of a link: name north, field of ``LinkStats``."""
_UNITS = {"round_trip": "ms", "p50": "ms", "p99": "ms", "requests_per_s": "1/s"}
FIGURES_NS = 20_000_000


def link_extras(links: Mapping[str, Link], clock: Clock) -> dict[str, Any]:
    """Diagnostics of the links for the view."""
    extras: dict[str, Any] = {}
    for name, link in links.items():
        figures = _Figures(link, clock)
        for short, field in _FIGURES.items():
            kind = "str" if short == "breaker" else "float" if short in _UNITS else "int"
            extras[f"plcs.{name}.{short}"] = (kind, _UNITS.get(short, ""), partial(figures.get, field))
    return extras


class _Figures:
    """The figures of a link, worked out once for all of them when a scan is published."""

    def __init__(self, link: Link, clock: Clock) -> None:
        self._link, self._clock = link, clock
        self._stats, self._taken_ns = link.stats(), clock.monotonic_ns()

    def get(self, field: str) -> Any:
        now = self._clock.monotonic_ns()
        if now - self._taken_ns >= FIGURES_NS:
            self._stats, self._taken_ns = self._link.stats(), now
        return getattr(self._stats, field)


def gateway_specs(options: RunOptions, socket: Path) -> list[GatewaySpec]:
    """The gateways to run beside the scan."""
    if not options.gateways or options.opcua is None:
        return []
    argv = [sys.executable, "-m", "controller.gateways.opcua", "--north", str(socket), "--endpoint", options.opcua]
    argv += ["--parent", str(os.getpid())]
    if options.opcua_users is not None:
        argv += ["--users", str(options.opcua_users)]
    return [GatewaySpec("opcua", argv)]


def restore(logic: LineLogic, journal: Path) -> str:
    """Go on from the record: counts and the recipe last in force. Returns what was restored, for the record."""
    if not journal.exists():
        return "a new record begins"
    counts = record.last_counts(journal)
    changeover = record.last_recipe(journal)
    logic.restore(counts, changeover.target if changeover else None)
    recipe = changeover.target if changeover else "none"
    return f"counts of {len(counts)} stations restored from the record; recipe last in force: {recipe}"


async def run(options: RunOptions) -> int:
    """Run a line until a signal; returns the exit code of :class:`~controller.runtime.service.Service`.

    Raises ``ConfigError`` for the line's files, ``InstanceError`` when the line runs already, ``JournalError``
    when the record cannot be kept; nothing has been sent to a PLC then.
    """
    config = load(options.line, read_endpoints(options.endpoints), kinds=kind_infos())
    name = config.file.line.name
    state = options.state_dir or state_dir(name)
    socket = options.socket or (options.state_dir or runtime_dir(name)) / "north.sock"
    with InstanceLock(state, name):
        clock = SystemClock()
        drivers = make_drivers(config, clock)
        logic, buffer = build_line(config, {n: d.groups for n, d in drivers.items()})
        logic.parts.endpoints = {n: d.endpoint for n, d in drivers.items()}
        ticker = Ticker()
        links = {n: make_link(config, d, buffer, clock, ticker) for n, d in drivers.items()}
        path = state / "journal.db"
        restored = restore(logic, path)
        journal = Journal(path, clock)
        journal.open()
        return await _serve(options, config, socket, clock, logic, buffer, links, journal, restored)


async def _serve(
    options: RunOptions,
    config: LineConfig,
    socket: Path,
    clock: Clock,
    logic: LineLogic,
    buffer: InputBuffer,
    links: Mapping[str, Link],
    journal: Journal,
    restored: str,
) -> int:
    notifier = Notifier()
    view = LineView(logic, link_extras(links, clock))
    loop = ScanLoop(
        logic=logic,
        view=view,
        clock=clock,
        buffer=buffer,
        queue=CommandQueue(),
        links=links,
        plc_of=config.tag_plc,
        journal=journal,
        on_completed=notifier.completed,
    )
    view.add(ScanLoop.extras_of(lambda: loop))
    hello = view.hello(
        version=version("linewright"), config_hash=config.config_hash, description=config.file.line.description
    )
    publisher = Publisher(hello, loop.submit, clock.monotonic_ns)
    loop.publish_to(publisher)
    loop.note(f"controller {hello.version} starts {logic.name}, configuration {config.config_hash[:12]}; {restored}")
    timer: Timer = periodic(clock, config.file.line.scan_ms * 1_000_000)
    server = NorthServer(publisher, socket)
    supervisor = Supervisor(gateway_specs(options, socket), loop.note, clock)
    parts: dict[str, Part] = {f"link {n}": link.run for n, link in links.items()} | {
        "north": server.run,
        "gateways": supervisor.run,
    }
    service = Service(
        scan=loop,
        run_scan=lambda: loop.run(timer),
        parts=parts,
        at_rest=lambda: logic.at_rest,
        journal=journal,
        notifier=notifier,
        stop_limit_s=options.stop_limit_s,
    )
    try:
        return await service.run()
    finally:
        timer.close()
