"""``linewright demo``: the bottling line on the wire, started, changed over, jammed, mended, run empty, checked."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from controller.cli import console, processes
from controller.cli.hil import Seed, line_file

if TYPE_CHECKING:
    from controller.cli.demo.play import Play
    from controller.cli.demo.verdict import Verdict

LINE = "bottling"
SEED = 11
"""With this one the scale rejects a bottle or so, as in most shifts."""
LIMIT_S = 160.0
"""Seconds that the play may take; with the end of all processes it stays below three minutes."""
Act = Callable[["Play"], Awaitable["Verdict"]]


@console.command
def demo(
    as_json: Annotated[bool, typer.Option("--json", help="No view; one JSON object as the last line.")] = False,
    seed: Seed = SEED,
    bottles: Annotated[int, typer.Option(min=1, max=60, help="Good bottles to make of each product.")] = 50,
    keep: Annotated[bool, typer.Option("--keep", help="Keep the folder with logs and journal.")] = False,
) -> None:
    """Show a whole line at work, in under three minutes, and check that it adds up. Needs nothing but loopback.

    The bench serves the bottling line's PLCs (Modbus TCP, Modbus RTU, OPC UA); the controller runs it at its real
    speed: start, first product, changeover, a jam and its mending, second product, run empty. Exit 0 only when
    infeed = good + rejected + in process holds everywhere and the plant has counted the same.
    """
    from controller.cli.demo.play import Script  # noqa: PLC0415

    perform(lambda play: play.perform(Script(bottles)), seed=seed, keep=keep, as_json=as_json, limit_s=LIMIT_S)


def run_wire(line: str, *, minutes: float, seed: int, as_json: bool) -> None:
    """For ``hil run --tier wire``: the line in production for so many minutes, then run empty and checked."""

    async def shift(play: Play) -> Verdict:
        end = time.monotonic() + minutes * 60
        await play.bring_up()
        await play.produce_until(end)
        await play.finish()
        return await play.verdict(changeovers=0, bottles=0)

    perform(shift, seed=seed, keep=False, as_json=as_json, limit_s=minutes * 60 + 240, line=line)


def perform(act: Act, *, seed: int, keep: bool, as_json: bool, limit_s: float, line: str = LINE) -> None:
    """Set the stage, play, show the result, and put everything away, whatever happens."""
    from controller.cli.demo.stage import Folder  # noqa: PLC0415
    from controller.cli.demo.verdict import as_json as result  # noqa: PLC0415
    from controller.cli.demo.verdict import summary  # noqa: PLC0415

    start = time.monotonic()
    path = line_file(line)
    with Folder(keep=keep) as folder:
        children = processes.Children(folder)
        try:
            verdict = console.run(_play(act, children, folder, path, seed, quiet=as_json, limit_s=limit_s))
        except (KeyboardInterrupt, asyncio.CancelledError):  # Ctrl-C, SIGTERM
            console.fail("interrupted: bench and controller were stopped", console.Exit.INTERRUPTED)
        except Exception as error:
            if as_json:
                wall_s = round(time.monotonic() - start, 3)
                console.emit({"ok": False, "wall_s": wall_s, "failures": list(dict.fromkeys(_words(error)))})
            _report(error, children, folder, keep=keep)
        finally:
            children.kill()  # for what a second Ctrl-C left over
        wall_s = time.monotonic() - start
        if as_json:
            console.emit(result(verdict, wall_s))
        else:
            console.console().print(summary(verdict, wall_s))
        if not verdict.ok:
            console.fail("\n".join(verdict.failures) if as_json else "")


async def _play(
    act: Act, children: processes.Children, folder: Path, line: Path, seed: int, *, quiet: bool, limit_s: float
) -> Verdict:
    from controller.cli.demo.play import Play  # noqa: PLC0415
    from controller.cli.demo.screen import LiveScreen, PlainScreen, Screen  # noqa: PLC0415
    from controller.cli.demo.stage import free_endpoint, set_up  # noqa: PLC0415

    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    endpoint = free_endpoint()
    terminal = console.console(stderr=True)
    screen: Screen = PlainScreen(terminal)
    if terminal.is_terminal and not quiet:
        screen = LiveScreen(terminal, endpoint, limit_s)
    with screen:
        async with children, asyncio.timeout(limit_s):
            screen.tell("demo", f"starts the bench (seed {seed}) and the controller; logs in {folder}")
            async with set_up(children, folder, line, seed, endpoint) as stage:
                screen.tell("demo", f"line {stage.client.hello.line} is there; OPC UA at {endpoint}")
                play = Play(stage, screen)
                async with asyncio.TaskGroup() as group:
                    beside = [group.create_task(children.watch()), group.create_task(play.follow())]
                    verdict = await act(play)
                    for other in beside:
                        other.cancel()
            screen.tell("demo", "stops the controller and the bench")
        return verdict


def _report(error: Exception, children: processes.Children, folder: Path, *, keep: bool) -> NoReturn:
    """Say what failed, with the ends of the logs; they are all that is left of the run."""
    reasons = list(dict.fromkeys(_words(error)))
    console.say(children.tails())
    where = f"logs are in {folder}" if keep else "run again with --keep to keep the whole logs"
    console.fail("failed: " + "; ".join(reasons) + f"\n{where}")


def _words(error: BaseException) -> Iterator[str]:
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _words(inner)
    elif isinstance(error, TimeoutError) and not str(error):
        yield "the time limit passed"
    else:
        yield str(error) or repr(error)
