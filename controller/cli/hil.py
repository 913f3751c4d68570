"""``linewright hil …``: the bench. A shift in virtual time, or a line behind real servers, and its faults."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import tempfile
from collections.abc import Callable, Coroutine
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from controller.cli import console
from controller.cli.processes import end_with_parent

if TYPE_CHECKING:
    from hil.wire import ControlClient

app = typer.Typer(no_args_is_help=True, help="The hardware-in-the-loop bench: plants, virtual PLCs, faults.")
LineArg = Annotated[str, typer.Argument(metavar="LINE", help="A reference line, e.g. bottling.")]
Control = Annotated[
    Path,
    typer.Option(metavar="SOCKET", envvar="LINEWRIGHT_HIL_CONTROL", help="Control socket of `hil serve`."),
]
Params = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", show_default=False)]
Seed = Annotated[int, typer.Option(help="Seed of everything that is drawn by lot.")]
CONTROL = Path(os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir()) / f"linewright-hil-{os.getuid()}.sock"


class Tier(StrEnum):
    """Virtual time without sockets, or real time with them."""

    BENCH = "bench"
    WIRE = "wire"


@app.command("run")
@console.command
def run(
    line: LineArg = "bottling",
    tier: Annotated[Tier, typer.Option(help="bench: virtual time; wire: real servers, real time.")] = Tier.BENCH,
    hours: Annotated[float, typer.Option(min=0.001, max=1000, help="bench: simulated hours.")] = 8.0,
    minutes: Annotated[float, typer.Option(min=0.1, max=100_000, help="wire: real minutes.")] = 10.0,
    seed: Seed = 1,
    scan_ms: Annotated[int | None, typer.Option(min=10, help="bench: another scan period.", show_default=False)] = None,
    log: Annotated[Path | None, typer.Option(metavar="FILE", help="bench: write the event log here.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object as the last line of stdout.")] = False,
) -> None:
    """Run a shift of a reference line, with an operator, a technician and faults. Exit 1 when it does not add up."""
    _known(line)
    if tier is Tier.WIRE:
        from controller.cli.demo import run_wire  # noqa: PLC0415

        run_wire(line, minutes=minutes, seed=seed, as_json=as_json)
        return
    from hil.bench import run_shift  # noqa: PLC0415

    result = run_shift(line, hours, seed, scan_ms, log)
    if as_json:
        console.emit(result)
    else:
        facts = msgspec.to_builtins(result)
        for key, value in facts.items():
            print(f"{key.replace('_', ' '):<18} {value}")
    ours = {"infeed": result.infeed, "good": result.good, "rejected": result.rejected, "in_process": result.in_process}
    if not result.balanced or ours != result.plant:
        console.fail(f"the counts do not add up: controller {ours}, plant {result.plant}")


@app.command("serve")
@console.command
def serve(
    line: LineArg = "bottling",
    seed: Seed = 1,
    endpoints: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write here where each PLC listens, for `run --endpoints`.")
    ] = None,
    control: Control = CONTROL,
    port: Annotated[
        list[str] | None, typer.Option(metavar="PLC=PORT", help="A fixed TCP port; others are free ones.")
    ] = None,
    rate: Annotated[float, typer.Option(min=0.01, max=100, help="Plant seconds per second.")] = 1.0,
) -> None:
    """Serve a line's PLCs at real time (Modbus TCP, RTU on a pty, OPC UA), on loopback, until SIGTERM or Ctrl-C."""
    from hil.wire import run_wire  # noqa: PLC0415

    end_with_parent()
    _known(line)
    ports = {name: int(value) for name, value in _pairs(port, "PLC=PORT", str.isdecimal)}

    async def serve_line() -> None:
        async with run_wire(
            line, seed=seed, ports=ports, endpoints_file=endpoints, control_socket=control, rate=rate
        ) as wire:
            where = f"endpoints {endpoints}, " if endpoints else ""
            console.say(f"serving {line}: {where}control socket {control}; Ctrl-C ends")
            for name, fields in wire.endpoints.items():
                console.say(f"  {name}: " + ", ".join(f"{key} {value}" for key, value in fields.items()))
            await wire.stopping.wait()

    async def until_signalled() -> None:
        task = asyncio.ensure_future(serve_line())
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, task.cancel)
        with contextlib.suppress(asyncio.CancelledError):
            await task

    try:
        console.run(until_signalled())
    except ValueError as error:
        console.fail(str(error), console.Exit.USAGE)
    except OSError as error:
        console.fail(f"{line} cannot be served: {error}; free the port or path, or give another")


@app.command("inject")
@console.command
def inject(
    fault: Annotated[str, typer.Argument(help="Name of the fault; `hil faults` lists them.")],
    params: Params = None,
    control: Control = CONTROL,
) -> None:
    """Make something go wrong in the plant."""
    values = _values(params)
    _with(control, lambda client: client.inject(fault, **values))


@app.command("clear")
@console.command
def clear(
    fault: Annotated[str | None, typer.Argument(help="Name of the fault; none: all there are.")] = None,
    params: Params = None,
    control: Control = CONTROL,
) -> None:
    """Mend a fault, as a technician would."""
    values = _values(params)
    _with(control, lambda client: client.clear(fault, **values))


@app.command("truth")
@console.command
def truth(control: Control = CONTROL) -> None:
    """What really is where in the plant, as one JSON object."""
    console.emit(_with(control, lambda client: client.truth()))


@app.command("faults")
@console.command
def faults(
    control: Control = CONTROL,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """The faults there are now, and those there could be."""
    answer = _with(control, lambda client: client.call("faults"))
    if as_json:
        console.emit({"active": answer["active"], "known": answer["known"]})
        return
    for fault in answer["active"]:
        print("active  " + " ".join(f"{key}={value}" for key, value in fault.items()))
    for name, text in answer["known"].items():
        print(f"known   {name:<16} {text}")


def line_file(line: str) -> Path:
    """line.yaml of a reference line. Raises :class:`console.CliError` (usage) for an unknown one."""
    _known(line)
    return _lines() / line / "line.yaml"


def _lines() -> Path:
    from hil import lines  # noqa: PLC0415

    return Path(lines.__file__).parent


def _known(line: str) -> None:
    known = sorted(path.parent.name for path in _lines().glob("*/line.yaml"))
    if line not in known:
        console.fail(f"there is no reference line {line!r}; there are: {', '.join(known)}", console.Exit.USAGE)


def _with(socket: Path, act: Callable[[ControlClient], Coroutine[Any, Any, Any]]) -> Any:
    """Do something at the control socket. Exit 3 when nobody listens there, 1 when it is refused."""
    from hil.wire import ControlClient, ControlError  # noqa: PLC0415

    async def go() -> Any:
        client = ControlClient(socket)
        try:
            await client.connect()
        except ControlError as error:
            console.fail(f"{error}\nstart `linewright hil serve`, or name its socket with --control",
                         console.Exit.NO_CONNECTION)  # fmt: skip
        try:
            return await act(client)
        except ControlError as error:
            console.fail(str(error))
        finally:
            await client.close()

    return console.run(go())


def _pairs(texts: list[str] | None, form: str, fits: Callable[[str], bool]) -> list[tuple[str, str]]:
    found = []
    for text in texts or []:
        key, equals, value = text.partition("=")
        if not key or not equals or not fits(value):
            console.fail(f"{text!r} is not of the form {form}", console.Exit.USAGE)
        found.append((key, value))
    return found


def _values(texts: list[str] | None) -> dict[str, bool | float | str]:
    """Parameters of a fault: true/false, numbers, else texts."""
    found: dict[str, bool | float | str] = {}
    for key, text in _pairs(texts, "key=value", bool):
        if text in ("true", "false"):
            found[key] = text == "true"
            continue
        found[key] = text
        for kind in (float, int):  # an integer stays one
            with contextlib.suppress(ValueError):
                found[key] = kind(text)
    return found
