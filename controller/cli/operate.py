"""``linewright command``, ``changeover`` and ``ack``: what an operator does, with a name, for the record."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import typer

from controller.cli import console
from controller.cli.connect import LineName, Socket, User, connected, default_user
from controller.cli.status import Json
from controller.core.events import ChangeoverChanged
from controller.north.client import Frames, NorthClient
from controller.north.frames import Arg, CommandInfo, Events, Hello, Reply

CLIENT = "linewright"
"""Name of this client in the record."""
MAX_USER = 64
"""Characters of a user's name at most: it is part of what every view shows."""
ENDED = frozenset({"committed", "rolled_back", "failed"})


@console.command
def command(
    target: Annotated[str, typer.Argument(help="`line` or a station.", show_default=False)],
    name: Annotated[str, typer.Argument(help="start, stop, reset, hold, unhold, abort, clear, complete …",
                                        show_default=False)],
    arguments: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", show_default=False)] = None,
    user: User = "",
    line: LineName = None,
    socket: Socket = None,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Give a command. Exit 0 when it was accepted, 1 when it was refused, with the reason."""

    async def give() -> None:
        async with connected(line, socket) as client:
            args = parse_arguments(client.hello, target, name, arguments or [])
            reply = await send(client, target, name, args, user)
            report(reply, as_json=as_json, target=target, name=name)

    console.run(give())


@console.command
def ack(
    alarm: Annotated[str | None, typer.Argument(metavar="[ID]", help="The alarm, as `alarms` shows it.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="Acknowledge every alarm.")] = False,
    user: User = "",
    line: LineName = None,
    socket: Socket = None,
    as_json: Json = False,
) -> None:
    """Acknowledge an alarm: a person has seen it. It stays listed as long as it is active."""
    if (alarm is None) != everything:
        console.fail("say which alarm (`linewright alarms` lists them), or --all", console.Exit.USAGE)

    async def give() -> None:
        async with connected(line, socket) as client:
            if alarm is None:
                reply = await send(client, "line", "acknowledge_all", {}, user)
            else:
                reply = await send(client, "line", "acknowledge", {"alarm": alarm}, user)
            report(reply, as_json=as_json, target="line", name="acknowledge")

    console.run(give())


@console.command
def changeover(
    recipe: Annotated[str, typer.Argument(help="The recipe to change over to.", show_default=False)],
    start: Annotated[bool, typer.Option("--start", help="Reset and start the line again afterwards.")] = False,
    wait: Annotated[
        bool, typer.Option("--wait", help="Show the progress to its end; with --start, to Execute.")
    ] = False,
    timeout: Annotated[float, typer.Option(min=1, help="With --wait: seconds to wait at most.")] = 900.0,
    user: User = "",
    line: LineName = None,
    socket: Socket = None,
    as_json: Json = False,
) -> None:
    """Change over to another recipe. Exit 0 when committed (without --wait: begun), 1 when refused or rolled back."""

    async def give() -> None:
        async with connected(line, socket) as client:
            with client.frames() as frames:  # from before the command on, so that no step is missed
                before = client.values["line.changeovers"]
                reply = await send(client, "line", "changeover", {"recipe": recipe, "start": start}, user)
                if not wait or not reply.accepted:
                    report(reply, as_json=as_json, target="line", name="changeover")
                    return
                number = (before if isinstance(before, int) else 0) + 1
                end = await _follow(frames, number, timeout)
                if as_json:
                    console.emit({"accepted": True, "step": end.step, "detail": end.detail, "recipe": end.target})
                if end.step != "committed":
                    console.fail("")
                if start:
                    await _started(client, timeout)

    console.run(give())


async def _started(client: NorthClient, timeout_s: float) -> None:
    """Wait until the line runs after its changeover; that it did not start is a failure, the recipe being in force."""

    def over() -> bool:
        return client.values["line.state_text"] == "Execute" or failed()

    def failed() -> bool:
        return "did not start" in str(client.values["line.changeover_detail"])

    try:
        await client.wait_until(over, timeout_s, "the line in Execute after the changeover")
    except TimeoutError as error:
        console.fail(str(error))
    if failed():
        console.fail(str(client.values["line.changeover_detail"]))
    console.say("the line is in Execute")


async def _follow(frames: Frames, number: int, timeout_s: float) -> ChangeoverChanged:
    """Show the steps of changeover ``number`` until its end."""
    import asyncio  # noqa: PLC0415

    last: ChangeoverChanged | None = None
    try:
        async with asyncio.timeout(timeout_s):
            async for frame in frames:
                for event in frame.events if isinstance(frame, Events) else ():
                    if isinstance(event, ChangeoverChanged) and event.id >= number:
                        last = event
                        console.say(f"{event.step.replace('_', ' ')}: {event.detail}")
                        if event.step in ENDED:
                            return event
    except TimeoutError:
        step = last.step if last else "not begun"
        console.fail(f"the changeover is not over after {timeout_s:g} s ({step}); it goes on: see `linewright status`")
    raise AssertionError("the frames end with an exception")


async def send(client: NorthClient, target: str, name: str, args: dict[str, Arg], user: str) -> Reply:
    """Send a command under the user's name. No answer in time is a failure that says what is unknown."""
    if len(user) > MAX_USER:
        console.fail(f"the user's name has {len(user)} characters; at most {MAX_USER}", console.Exit.USAGE)
    try:
        return await client.command(target, name, args, user=user or default_user(), client=CLIENT)
    except TimeoutError as error:
        console.fail(str(error), console.Exit.NO_CONNECTION)


def report(reply: Reply, *, as_json: bool, target: str, name: str) -> None:
    """The answer: data on stdout, a refusal on stderr and in the exit code."""
    if as_json:
        console.emit({"accepted": reply.accepted, "reason": reply.reason, "target": target, "command": name})
    elif reply.accepted:
        print(reply.reason or "accepted")
    if not reply.accepted:
        console.fail(f"refused: {reply.reason}")


def parse_arguments(hello: Hello, target: str, name: str, pairs: list[str]) -> dict[str, Arg]:
    """``key=value`` texts as the command wants them. Raises :class:`console.CliError` (usage), sending nothing."""
    known = hello.commands.get(target)
    if known is None:
        console.fail(f"there is no {target!r} on line {hello.line}; there are {', '.join(hello.commands)}",
                     console.Exit.USAGE)  # fmt: skip
    info = next((c for c in known if c.name == name), None)
    if info is None:
        names = ", ".join(c.name for c in known)
        console.fail(f"{target} does not know the command {name!r}; it knows {names}", console.Exit.USAGE)
    args: dict[str, Arg] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or key not in info.args:
            wanted = ", ".join(f"{k}=<{t}>" for k, t in info.args.items()) or "none"
            console.fail(f"{pair!r} is no argument of {name}; its arguments: {wanted}", console.Exit.USAGE)
        args[key] = _convert(info, key, text)
    missing = [key for key in info.args if key not in args and info.args[key] != "bool"]
    if missing:
        console.fail(f"{name} needs {', '.join(f'{k}=…' for k in missing)}", console.Exit.USAGE)
    return args


def _convert(info: CommandInfo, key: str, text: str) -> Arg:
    kind = info.args[key]
    try:
        if kind == "bool":
            return {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}[text.lower()]
        converters: dict[str, Callable[[str], Arg]] = {"int": int, "float": float, "str": str}
        return converters[kind](text)
    except (KeyError, ValueError):
        console.fail(f"{key}={text!r}: {info.name} wants a {kind} there", console.Exit.USAGE)
