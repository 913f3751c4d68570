"""``linewright plc id``: who a PLC says that it is. Read-only: functions 43/14 and 17, or the server's own nodes."""

from __future__ import annotations

from controller.cli import console
from controller.cli.plc.asker import NOBODY_THERE, Asker, Pace, Refused, Silent
from controller.cli.plc.target import Target
from drivers.options import OpcUaOptions

NAMES = {
    0: "vendor name", 1: "product code", 2: "revision", 3: "vendor URL", 4: "product name", 5: "model name",
    6: "application name",
}  # fmt: skip
"""Identification objects (MODBUS Application Protocol V1.1b3, 6.21); from 128 on they are the maker's own."""
MAX_ANSWERS = 40
"""Answers of 43/14 taken for one device at most: one that always says that more follows must end."""
NOTHING = "the device identifies itself neither by function 43/14 nor by 17"


async def identify(asker: Asker) -> dict[str, str]:
    """What the unit says of itself, by name; and ``server id`` from function 17."""
    from drivers.modbus.pdu import server_id_call  # noqa: PLC0415

    found = await _objects(asker)
    answer = await asker.ask(server_id_call())
    if isinstance(answer, bytes):
        body = answer[1:]  # after the byte count
        text = "".join(chr(b) if 32 <= b < 127 else "·" for b in body)
        found["server id (17)"] = f"{body.hex(' ')}  {text}".rstrip()
    return found


async def _objects(asker: Asker) -> dict[str, str]:
    from drivers.modbus.pdu import identification, identification_call  # noqa: PLC0415

    found: dict[str, str] = {}
    for category in (3, 2, 1):  # extended where the device has it; a lesser one answers with what it has, or refuses
        first = 0
        for _ in range(MAX_ANSWERS):
            answer = await asker.ask(identification_call(category, first))
            if not isinstance(answer, bytes):
                break
            objects, follows = identification(answer)
            found |= {NAMES.get(number, f"object {number}"): _text(data) for number, data in objects.items()}
            if follows is None or follows <= first:
                break
            first = follows
        if found or isinstance(answer, Silent) or (isinstance(answer, Refused) and answer.code == 1):
            break
    return found


def _text(data: bytes) -> str:
    text = data.decode("utf-8", "replace").rstrip("\0 ")
    return "".join(c if c.isprintable() else "·" for c in text)


async def show(target: Target, *, as_json: bool) -> None:
    """Print it."""
    if isinstance(target.options, OpcUaOptions):
        from controller.cli.plc.scan_opcua import server_facts  # noqa: PLC0415

        facts = await server_facts(target.options, target.timeout_s)
    else:
        async with Asker(target, target.modbus.unit, Pace(1000)) as asker:
            await reach(asker)
            facts = {"endpoint": asker.endpoint, **await identify(asker)}
    if as_json:
        console.emit(facts)
        return
    for name, value in facts.items():
        print(f"{name:<18} {value}")
    if len(facts) == 1:
        console.say(NOTHING)


async def reach(asker: Asker) -> None:
    """Connect, and see that the unit answers anything. Raises :class:`console.CliError` (no connection)."""
    from drivers.port import FieldBusError  # noqa: PLC0415

    try:
        await asker.connect()
    except FieldBusError as error:
        console.fail(str(error), console.Exit.NO_CONNECTION)
    answer = await asker.knock()
    if isinstance(answer, Silent):
        what = f"{asker.endpoint}: no answer: {answer.what}; check unit and cable, or look with `linewright plc scan`"
        console.fail(what, console.Exit.NO_CONNECTION)
    if isinstance(answer, Refused) and answer.code in NOBODY_THERE:
        what = f"{asker.endpoint}: the gateway answers for the unit: {answer.what}; look with `linewright plc scan`"
        console.fail(what, console.Exit.NO_CONNECTION)
