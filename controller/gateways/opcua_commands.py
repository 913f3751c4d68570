"""Commands over OPC UA: methods and command variables of the line and every station, checked and sent north.

Per target (``line``, ``stations.<name>``) there is an object ``<target>.command`` with

* one method for each command that the target takes (``<target>.command.Start`` …), answering ``Accepted`` and
  ``Reason``;
* ``cntrl_cmd`` (Int32, writable): the PackML command by its ISA-TR88.00.02 number, for HMIs that cannot call
  methods; it always reads 0, writing 0 does nothing;
* ``changeover`` (String, writable), where the target takes it: the recipe to change over to;
* ``reply`` (String): the answer to the last command over OPC UA, in words.

Nothing is sent unless the number and types of all arguments are right.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import structlog
from asyncua import ua
from asyncua.server.address_space import AttributeValue

from controller.gateways.opcua_model import camel, target_path
from controller.gateways.opcua_session import Caller
from controller.gateways.opcua_space import Space
from controller.gateways.opcua_subscriptions import put_value
from controller.gateways.opcua_ua import StatusCodes, status, std
from controller.north.client import NorthClient, NorthClosed
from controller.north.frames import Arg, CommandInfo, Hello

log = structlog.get_logger("controller.gateways.opcua")

CNTRL_CMD = {
    1: "reset", 2: "start", 3: "stop", 4: "hold", 5: "unhold", 6: "suspend", 7: "unsuspend", 8: "abort",
    9: "clear", 10: "complete",
}  # fmt: skip
"""ISA-TR88.00.02: numbers of Command.CntrlCmd."""
REPLY_S = 5.0
"""How long the controller may take to answer a command (it answers once the record of it is durable)."""
MAX_TEXT = 256

_TYPES = {
    "bool": ua.VariantType.Boolean,
    "int": ua.VariantType.Int32,
    "float": ua.VariantType.Double,
    "str": ua.VariantType.String,
}
_INTEGERS = frozenset(
    {
        ua.VariantType.SByte, ua.VariantType.Byte, ua.VariantType.Int16, ua.VariantType.UInt16,
        ua.VariantType.Int32, ua.VariantType.UInt32, ua.VariantType.Int64, ua.VariantType.UInt64,
    }
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Method:
    target: str
    owner: ua.NodeId
    info: CommandInfo


@dataclass(frozen=True, slots=True)
class _Variable:
    target: str
    command: str
    """``cntrl_cmd`` or ``changeover``."""
    attribute: AttributeValue


def check_argument(value: ua.Variant | None, wanted: str) -> tuple[int, Arg]:
    """The status code (0: right) and the plain value of one argument of type bool, int, float or str.

    An integer may come in any of OPC UA's integer types, if it fits into Int32; a real number as Float or
    Double, finite; text has 256 characters at most. Arrays and nulls are BadTypeMismatch.
    """
    if value is None or value.Value is None or value.is_array or isinstance(value.Value, list):
        return StatusCodes.BadTypeMismatch, False
    kind, plain = value.VariantType, value.Value
    if wanted == "bool" and kind is ua.VariantType.Boolean:
        return 0, bool(plain)
    if wanted == "str" and kind is ua.VariantType.String:
        return (0 if len(plain) <= MAX_TEXT else StatusCodes.BadOutOfRange), str(plain)
    if wanted == "int" and kind in _INTEGERS:
        return (0 if -(2**31) <= plain < 2**31 else StatusCodes.BadOutOfRange), int(plain)
    if wanted == "float" and kind in (ua.VariantType.Float, ua.VariantType.Double):
        return (0 if math.isfinite(plain) else StatusCodes.BadOutOfRange), float(plain)
    return StatusCodes.BadTypeMismatch, False


class CommandDesk:
    """Takes calls and writes from the sessions, and sends them to the controller as commands."""

    def __init__(self) -> None:
        self.client: NorthClient | None = None
        """The connection to the controller; ``None`` while there is none."""
        self._methods: dict[ua.NodeId, _Method] = {}
        self._variables: dict[ua.NodeId, _Variable] = {}
        self._replies: dict[str, AttributeValue] = {}

    def build(self, space: Space, hello: Hello) -> None:
        """Make the nodes for every target of the Hello."""
        for target, commands in hello.commands.items():
            path = f"{target_path(target)}.command"
            parent = space.add_object(path, space.id(target_path(target)), "Command")
            self._replies[target] = space.add_variable(
                f"{path}.reply", parent, "Reply", ua.Variant("", ua.VariantType.String),
                description="Answer to the last command that came over OPC UA",
            )  # fmt: skip
            for info in commands:
                self._add_method(space, path, parent, target, info)
            names = {info.name for info in commands}
            if names & set(CNTRL_CMD.values()):
                numbers = ", ".join(f"{n} {camel(name)}" for n, name in CNTRL_CMD.items() if name in names)
                self._add_variable(space, f"{path}.cntrl_cmd", parent, target, "CntrlCmd", numbers)
            if "changeover" in names:
                text = "Write the recipe to change over to"
                self._add_variable(space, f"{path}.changeover", parent, target, "ChangeoverTo", text)

    def _add_method(self, space: Space, path: str, parent: ua.NodeId, target: str, info: CommandInfo) -> None:
        inputs = [_argument(camel(name), _TYPES[kind], "") for name, kind in info.args.items()]
        outputs = [
            _argument("Accepted", ua.VariantType.Boolean, "Whether the controller took the command"),
            _argument("Reason", ua.VariantType.String, "Why not, or what was started"),
        ]
        node = space.add_method(
            f"{path}.{camel(info.name)}", parent, camel(info.name), info.description, inputs, outputs
        )
        self._methods[node] = _Method(target, parent, info)

    def _add_variable(
        self, space: Space, path: str, parent: ua.NodeId, target: str, name: str, description: str
    ) -> None:
        number = name == "CntrlCmd"
        empty = ua.Variant(0, ua.VariantType.Int32) if number else ua.Variant("", ua.VariantType.String)
        attribute = space.add_variable(path, parent, name, empty, description=description, writable=True)
        self._variables[space.id(path)] = _Variable(target, "cntrl_cmd" if number else "changeover", attribute)

    # -- from the sessions -----------------------------------------------------------------------------------

    def takes_write(self, node: ua.NodeId) -> bool:
        """Whether the node is a command variable."""
        return node in self._variables

    def takes_call(self, method: ua.NodeId) -> bool:
        """Whether the node is one of our methods."""
        return method in self._methods

    async def call(self, request: ua.CallMethodRequest, caller: Caller) -> ua.CallMethodResult:
        """One method call (Part 4, 5.11.2): who may, which object, how many arguments, which types; then north."""
        result = ua.CallMethodResult()
        method = self._methods[request.MethodId]
        given: Sequence[ua.Variant] = request.InputArguments or ()
        wanted = method.info.args
        code = 0
        if request.ObjectId != method.owner:
            code = StatusCodes.BadMethodInvalid
        elif not caller.may_command:
            code = StatusCodes.BadUserAccessDenied
        elif len(given) < len(wanted):
            code = StatusCodes.BadArgumentsMissing
        elif len(given) > len(wanted):
            code = StatusCodes.BadTooManyArguments
        if code:
            result.StatusCode = status(code)
            return result
        checked = [check_argument(value, kind) for value, kind in zip(given, wanted.values(), strict=True)]
        result.InputArgumentResults = [status(each) for each, _ in checked]
        if any(each for each, _ in checked):
            result.StatusCode = status(StatusCodes.BadInvalidArgument)
            return result
        args = {name: plain for name, (_, plain) in zip(wanted, checked, strict=True)}
        code, accepted, reason = await self._send(method.target, method.info.name, args, caller)
        result.StatusCode = status(code)
        if not code:
            result.OutputArguments = [
                ua.Variant(accepted, ua.VariantType.Boolean),
                ua.Variant(reason, ua.VariantType.String),
            ]
        return result

    async def write(self, node: ua.NodeId, value: ua.Variant | None, caller: Caller) -> ua.StatusCode:
        """A write to a command variable: Good when the controller accepted it, BadInvalidState when it refused."""
        variable = self._variables[node]
        if not caller.may_command:
            return status(StatusCodes.BadUserAccessDenied)
        code, plain = check_argument(value, "int" if variable.command == "cntrl_cmd" else "str")
        if code:
            return status(code)
        name, args = variable.command, {}
        if variable.command == "changeover":
            args = {"recipe": plain}
        elif plain == 0:
            return status(StatusCodes.Good)
        else:
            name = CNTRL_CMD.get(int(plain), "")
            if not any(m.target == variable.target and m.info.name == name for m in self._methods.values()):
                return status(StatusCodes.BadOutOfRange)
        code, accepted, _ = await self._send(variable.target, name, args, caller)
        if accepted and variable.command == "changeover":
            put_value(variable.attribute, _now(ua.Variant(plain, ua.VariantType.String)))
        return status(code or (StatusCodes.Good if accepted else StatusCodes.BadInvalidState))

    async def _send(self, target: str, name: str, args: dict[str, Arg], caller: Caller) -> tuple[int, bool, str]:
        """Status code (0: answered), whether accepted, and the reason in words."""
        north, code, accepted = self.client, 0, False
        if north is None or north.closed is not None:
            code, reason = StatusCodes.BadNoCommunication, "the controller is not connected; nothing was sent"
        else:
            try:
                reply = await north.command(
                    target, name, args, user=caller.user, client=caller.client, timeout_s=REPLY_S
                )
                accepted, reason = reply.accepted, reply.reason
            except TimeoutError as error:
                code, reason = StatusCodes.BadTimeout, str(error)
            except NorthClosed as closed:
                code = StatusCodes.BadTimeout
                reason = f"{closed}; it may have been carried out: look at the state before repeating it"
        outcome = "accepted" if accepted else "no answer" if code else "refused"
        text = f"{name}: {outcome}" + (f": {reason}" if reason else "")
        put_value(self._replies[target], _now(ua.Variant(text, ua.VariantType.String)))
        log.info(
            "command", target=target, command=name, args=args, user=caller.user, client=caller.client,
            outcome=outcome, reason=reason,
        )  # fmt: skip
        return code, accepted, reason


def _now(value: ua.Variant) -> ua.DataValue:
    now: Any = datetime.now(UTC)
    return ua.DataValue(value, status(StatusCodes.Good), now, now)


def _argument(name: str, kind: ua.VariantType, description: str) -> ua.Argument:
    argument = ua.Argument()
    argument.Name = ua.String(name)
    argument.DataType = std(kind.value)
    argument.ValueRank = ua.Int32(-1)
    argument.ArrayDimensions = []
    argument.Description = ua.LocalizedText(ua.String(description))
    return argument
