"""The commands of ``linewright plc``: their arguments, and which part does the work."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from controller.cli import console
from controller.cli.plc.target import Asked, Target, resolve, typed
from controller.cli.plc.url import EXAMPLES, UaLogin, is_url, unit_given
from drivers.options import ModbusSerialOptions, OpcUaOptions
from drivers.port import DataType

app = typer.Typer(
    no_args_is_help=True,
    help="Look at, write to, scan and measure one PLC, with or without a line.yaml (docs/tools.md).",
)
Where = Annotated[
    str,
    typer.Argument(metavar="LINE.YAML|URL", help=f"The line, or the PLC itself: {EXAMPLES['modbus-tcp']}",
                   show_default=False),
]  # fmt: skip
What = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[PLC] [TAG]...",
        help="A line: PLC and tags (also filler.*). A URL: hr:100 ir:10..20 hr:5:REAL:CDAB co:3, or node ids.",
        show_default=False,
    ),
]
Which = Annotated[
    list[str] | None, typer.Argument(metavar="[PLC]", help="With a line: the PLC.", show_default=False)
]  # fmt: skip
Endpoints = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Other addresses per PLC, as `hil serve` writes.", show_default=False),
]
TimeoutMs = Annotated[
    int | None, typer.Option(min=10, max=60_000, help="For each request; default: line.yaml's, or 1000.")
]
Type = Annotated[
    DataType | None,
    typer.Option("--type", metavar="REAL", help="Type of addresses that name none.", case_sensitive=False),
]
UaUser = Annotated[str | None, typer.Option("--user", metavar="NAME", help="OPC UA: log in as.")]
Password = Annotated[Path | None, typer.Option(metavar="FILE", help="OPC UA: file that holds the password.")]
Security = Annotated[
    str | None, typer.Option(metavar="POLICY", help="OPC UA: Basic256Sha256, or with :sign behind it.")
]
Pki = Annotated[Path, typer.Option(metavar="DIR", help="OPC UA: certificates, own/ and trusted/.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON object per line.")]
Yes = Annotated[bool, typer.Option("--yes", help="Do not ask.")]
Anyway = Annotated[bool, typer.Option("--anyway", help="Although a controller runs.")]
PKI = Path("pki")


@app.command("read")
@console.command
def read(
    target: Where, what: What = None, endpoints: Endpoints = None, timeout_ms: TimeoutMs = None, type_: Type = None,
    orders: Annotated[bool, typer.Option("--orders", help="Show registers in all four word orders.")] = False,
    as_json: Json = False, user: UaUser = None, password_file: Password = None, security: Security = None,
    pki: Pki = PKI,
) -> None:  # fmt: skip
    """Read tags once. Exit 0 when all are good, 1 when one is bad."""
    from controller.cli.plc import read as reading  # noqa: PLC0415

    login = UaLogin(user=user, password_file=password_file, security=security, pki=pki)
    asked = Asked(target=target, words=what or [], endpoints=endpoints, timeout_ms=timeout_ms, type=type_, login=login)
    meant = resolve(asked)

    async def go() -> bool:
        full = await typed(meant, type_)
        if orders:
            await reading.orders(full, as_json=as_json)
            return True
        return await reading.read(full, as_json=as_json)

    if not console.run(go()):
        raise typer.Exit(console.Exit.FAILED)


@app.command("write")
@console.command
def write(
    target: Where,
    what: Annotated[
        list[str] | None,
        typer.Argument(metavar="[PLC] TAG=VALUE...", help="As `read` names them, with a value.", show_default=False),
    ] = None,
    value: Annotated[str | None, typer.Option(metavar="TEXT", help="The value, for one tag; may contain =.")] = None,
    endpoints: Endpoints = None, timeout_ms: TimeoutMs = None, type_: Type = None, yes: Yes = False,
    anyway: Anyway = False,
    block: Annotated[bool, typer.Option("--block", help="All in one request: all of them or none.")] = False,
    state_dir: Annotated[Path | None, typer.Option(metavar="DIR", help="Where the line's controller keeps its state.")]
    = None,
    as_json: Json = False, user: UaUser = None, password_file: Password = None, security: Security = None,
    pki: Pki = PKI,
) -> None:  # fmt: skip
    """Write tags: shown, asked, written once, read back. Never while a controller runs, unless --anyway.

    Exit 0 verified; 1 rejected, nothing was changed by the last one; 2 unknown, look before anything else;
    3 no connection, nothing was sent. Several are written in order, up to the first that is not verified.
    """
    from controller.cli.plc.write import How, parse_changes, split  # noqa: PLC0415
    from controller.cli.plc.write import write as writing  # noqa: PLC0415

    login = UaLogin(user=user, password_file=password_file, security=security, pki=pki)
    try:
        words, texts = split(what or [], value, by_url=is_url(target))
        asked = Asked(target=target, words=words, endpoints=endpoints, timeout_ms=timeout_ms, type=type_,
                      exact=True, login=login)  # fmt: skip
        meant = console.run(typed(resolve(asked), type_))
        changes = parse_changes(meant, texts)
    except console.CliError as error:  # nothing was sent; exit code 2 is for the unknown alone
        code = error.code if error.code is console.Exit.NO_CONNECTION else console.Exit.FAILED
        console.fail(f"rejected, nothing was sent: {error}", code)
    how = How(yes=yes, anyway=anyway, block=block, as_json=as_json, state=state_dir)
    raise typer.Exit(writing(meant, changes, how))


@app.command("watch")
@console.command
def watch(
    target: Where, what: What = None, endpoints: Endpoints = None, timeout_ms: TimeoutMs = None, type_: Type = None,
    every: Annotated[float, typer.Option(min=0.01, max=3600, help="Seconds from read to read.")] = 0.5,
    seconds: Annotated[float | None, typer.Option("--for", min=0.0, help="End after so many seconds.")] = None,
    as_json: Json = False, user: UaUser = None, password_file: Password = None, security: Security = None,
    pki: Pki = PKI,
) -> None:  # fmt: skip
    """Show values as they change until Ctrl-C, then a summary; through every loss of the connection."""
    from controller.cli.plc.watch import watch as watching  # noqa: PLC0415

    login = UaLogin(user=user, password_file=password_file, security=security, pki=pki)
    asked = Asked(target=target, words=what or [], endpoints=endpoints, timeout_ms=timeout_ms, type=type_, login=login)
    watching(console.run(typed(resolve(asked), type_)), every, seconds, as_json=as_json)


@app.command("id")
@console.command
def identify(
    target: Where, what: Which = None, endpoints: Endpoints = None, timeout_ms: TimeoutMs = None, as_json: Json = False,
    user: UaUser = None, password_file: Password = None, security: Security = None, pki: Pki = PKI,
) -> None:  # fmt: skip
    """Who the PLC says that it is: device identification (43/14) and server id (17), or the OPC UA server's status."""
    from controller.cli.plc.identify import show  # noqa: PLC0415

    login = UaLogin(user=user, password_file=password_file, security=security, pki=pki)
    asked = Asked(target=target, words=what or [], endpoints=endpoints, timeout_ms=timeout_ms, login=login)
    console.run(show(resolve(asked, tags_needed=False), as_json=as_json))


@app.command("scan")
@console.command
def scan(
    target: Where, what: Which = None, endpoints: Endpoints = None,
    timeout_ms: Annotated[int, typer.Option(min=10, max=60_000, help="For each request.")] = 300,
    units: Annotated[str | None, typer.Option(metavar="1..247", help="Units; default: the URL's, or all.")] = None,
    areas: Annotated[str, typer.Option(help="Areas to look into.")] = "hr,ir,co,di",
    addresses: Annotated[str, typer.Option(metavar="FIRST..LAST", help="Addresses to look at.")] = "0..9999",
    avoid: Annotated[list[str] | None, typer.Option(metavar="hr:100..120", help="Never touch these.")] = None,
    requests: Annotated[int, typer.Option(min=1, max=100_000, help="At most, per unit and area.")] = 300,
    rate: Annotated[float, typer.Option(min=0.1, max=10_000, help="Requests a second at most.")] = 50.0,
    limit: Annotated[float, typer.Option(min=1, max=86_400, help="Seconds it may take at most.")] = 600.0,
    depth: Annotated[int, typer.Option(min=1, max=50, help="OPC UA: levels of the tree.")] = 6,
    nodes: Annotated[int, typer.Option(min=1, max=100_000, help="OPC UA: variables at most.")] = 5000,
    yes: Yes = False, anyway: Anyway = False, as_json: Json = False,
    user: UaUser = None, password_file: Password = None, security: Security = None, pki: Pki = PKI,
) -> None:  # fmt: skip
    """Find out what is there: units, addresses, identification; or endpoints, namespaces, variables. Reads only.

    Not on a running line. Exit 0 when something answers, 1 when nothing does.
    """
    from controller.cli.plc import scan as scanning  # noqa: PLC0415
    from controller.cli.plc import scope  # noqa: PLC0415

    login = UaLogin(user=user, password_file=password_file, security=security, pki=pki)
    asked = Asked(target=target, words=what or [], endpoints=endpoints, timeout_ms=timeout_ms, login=login)
    meant = resolve(asked, unit_needed=False, tags_needed=False)
    line = meant.line.file.line.name if meant.line else None
    if isinstance(meant.options, OpcUaOptions):
        from controller.cli.plc import scan_opcua  # noqa: PLC0415 - the OPC UA library takes its time

        scanning.allowed(scan_opcua.WORDS.format(depth=depth, limit=nodes), line=line, yes=yes, anyway=anyway)
        with scanning.progress() as tell:
            found = console.run(scan_opcua.scan_opcua(meant, depth=depth, limit=nodes, as_json=as_json, progress=tell))
        code = console.Exit.OK if found else console.Exit.FAILED
    else:
        meant = scope.avoiding(meant, avoid or [])
        known = meant.line is not None or unit_given(target)
        serial = isinstance(meant.options, ModbusSerialOptions)
        wanted = scope.scope(units=scope.units(units, meant.modbus.unit if known else None, serial=serial), areas=areas,
                             addresses=addresses, budget=requests, rate=rate, limit_s=limit)  # fmt: skip
        scanning.allowed(wanted.words(meant), line=line, yes=yes, anyway=anyway)
        code = scanning.scan_modbus(meant, wanted, as_json=as_json)
    raise typer.Exit(code)


@app.command("bench")
@console.command
def bench(
    target: Where, what: What = None, endpoints: Endpoints = None, timeout_ms: TimeoutMs = None,
    seconds: Annotated[float, typer.Option(min=0.05, max=60, help="For each setting.")] = 1.0,
    yes: Yes = False, anyway: Anyway = False, as_json: Json = False,
    user: UaUser = None, password_file: Password = None, security: Security = None, pki: Pki = PKI,
) -> None:  # fmt: skip
    """Measure throughput and latency, and say what to put into line.yaml. Reads only; not on a running line."""
    from controller.cli.plc import bench as measuring  # noqa: PLC0415
    from controller.cli.plc import scan as scanning  # noqa: PLC0415

    login = UaLogin(user=user, password_file=password_file, security=security, pki=pki)
    opcua = target.lower().startswith("opc.tcp")
    words = what or ((["i=2259"] if opcua else ["hr:0"]) if is_url(target) else [])
    asked = Asked(target=target, words=words, endpoints=endpoints, timeout_ms=timeout_ms, login=login)
    meant = console.run(typed(resolve(asked), None))
    scanning.allowed(_bench_words(meant, seconds), line=meant.line.file.line.name if meant.line else None, yes=yes,
                     anyway=anyway)  # fmt: skip
    with scanning.progress() as tell:
        result = console.run(measuring.measure(meant, seconds, tell))
    if not measuring.show(meant, result, as_json=as_json):
        raise typer.Exit(console.Exit.FAILED)


def _bench_words(target: Target, seconds: float) -> str:
    first = target.tags[0].address if hasattr(target.options, "unit") else f"{len(target.tags)} tags"
    return (
        f"This reads {first} as fast as {target.name} answers, for {seconds:g} s with each setting. Do not do it on a\n"
        "running line: it takes the PLC's and the bus's time from the controller."
    )
