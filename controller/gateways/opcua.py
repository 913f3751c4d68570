"""The OPC UA server of a line: a process of its own between the north port and the HMIs.

It knows nothing but the north port. It builds its address space from the Hello, shows the values of the
snapshots and deltas, and sends what users call or write back north as commands. When the controller cannot be
heard, every value is Bad (BadNoCommunication) at once and the gateway reconnects for as long as it runs; when
the controller comes back as another line (other nodes, commands or configuration), the gateway ends with
:data:`EXIT_CHANGED` so that whoever supervises it starts it anew.

Security of this first version: policy None only. Anonymous clients may browse, read and subscribe. Passwords
travel in clear, so they are taken from this computer (loopback) only.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import structlog
from asyncua import ua

from controller.gateways import opcua_model as model
from controller.gateways.opcua_commands import CommandDesk
from controller.gateways.opcua_guard import (
    GuardedInternalServer,
    GuardedServer,
    check_asyncua,
    is_loopback,
)
from controller.gateways.opcua_session import MAX_COMMANDS_PER_REQUEST
from controller.gateways.opcua_space import Space
from controller.gateways.opcua_subscriptions import put_value
from controller.gateways.opcua_ua import AttributeIds, ObjectIds, StatusCodes, status, std
from controller.gateways.opcua_users import Users, UsersError, generated_operator, load_users
from controller.north.client import NorthClient, NorthClosed
from controller.north.frames import Delta, Hello, Snapshot

log = structlog.get_logger("controller.gateways.opcua")

EXIT_USAGE = 2
EXIT_CANNOT_LISTEN = 3
EXIT_CHANGED = 75
"""The line is another one than at start (sysexits EX_TEMPFAIL): start the gateway again."""

PARENT_POLL_S = 0.5
DEFAULT_ENDPOINT = "opc.tcp://127.0.0.1:4840"
SILENCE_S = 3.0
"""A controller that has scanned once shows a sign of life every second; silent for this long, it counts as lost."""
_FIRST_RETRY_S, _LAST_RETRY_S = 0.05, 2.0
_NO_DATA, _HEALTHY = 1, 255
"""ServiceLevel (Part 4, 6.6.2.4.2): no data from the controller; everything in order."""


class GatewayError(Exception):
    """Why the gateway cannot go on, and the exit code that says so."""

    def __init__(self, text: str, code: int) -> None:
        super().__init__(text)
        self.code = code


def parse_endpoint(endpoint: str) -> tuple[str, int]:
    """Host and port (0..65535; 0 takes a free one) of ``opc.tcp://host:port``.

    Raises:
        GatewayError: it is not of that form.
    """
    try:
        parts = urlsplit(endpoint)
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if host is None or port is None or parts.scheme != "opc.tcp" or parts.path not in ("", "/"):
        raise GatewayError(f"endpoint {endpoint!r} is not of the form opc.tcp://host:port", EXIT_USAGE)
    return ("127.0.0.1" if host == "localhost" else host), port


def choose_users(host: str, north: Path, users_file: Path | None) -> Users:
    """The accounts: from the file, or on loopback a generated operator beside the north socket.

    Raises:
        GatewayError: another than a loopback address without a users file, or the file is wrong.
    """
    try:
        if users_file is not None:
            users = load_users(users_file)
        elif is_loopback(host):
            path = north.with_name(f"{north.name}.opcua-operator")
            users = generated_operator(path)
            log.info("no users file: user 'operator', password in a file for its owner only", path=str(path))
        else:
            raise GatewayError(
                f"{host} can be reached from other computers: give a users file (--users), or listen on 127.0.0.1",
                EXIT_USAGE,
            )
    except UsersError as error:
        raise GatewayError(str(error), EXIT_USAGE) from error
    if not is_loopback(host):
        log.warning(
            "listening on the network without encryption: other computers can read but not log in, because a "
            "password would travel in clear", host=host,
        )  # fmt: skip
    return users


class Gateway:
    """One line's OPC UA server, following one north port."""

    def __init__(
        self,
        north: Path,
        endpoint: str,
        users_file: Path | None,
        ready_file: Path | None,
        on_ready: Callable[[str], None],
    ) -> None:
        self._north, self._ready_file, self._on_ready = north, ready_file, on_ready
        self._host, self._port = parse_endpoint(endpoint)
        self._users = choose_users(self._host, north, users_file)
        self._desk = CommandDesk()
        self._server: GuardedServer | None = None
        self._space: Space
        self._hello: Hello | None = None
        """Set once the address space is built and the server listens."""
        self.endpoint = ""
        """Where the server listens, once it does."""

    async def run(self) -> None:
        """Serve until cancelled; while there is no controller, try again and again.

        Raises:
            GatewayError: the port is taken, the model cannot be shown, or the line has changed.
        """
        wait, complained = _FIRST_RETRY_S, False
        try:
            while True:
                try:
                    async with NorthClient(self._north, silence_s=SILENCE_S) as client:
                        wait, complained = _FIRST_RETRY_S, False
                        await self._attend(client)
                except NorthClosed as closed:
                    if not complained:
                        log.warning("waiting for the controller", reason=str(closed))
                        complained = True
                await asyncio.sleep(wait)
                wait = min(2 * wait, _LAST_RETRY_S)
        finally:
            if self._hello is not None and self._ready_file is not None:
                with contextlib.suppress(OSError):
                    self._ready_file.unlink(missing_ok=True)
            if self._server is not None:
                await self._server.stop()

    async def _attend(self, client: NorthClient) -> None:
        """Follow one connection until it is over; the first one decides what is shown. Raises ``NorthClosed``."""
        if self._hello is None:
            await self._build(client.hello)
            assert self._server is not None
            await self._listen(self._server.start())
            self.endpoint = self._server.endpoint.geturl()
            log.info("listening", endpoint=self.endpoint, line=client.hello.line)
            self._hello = client.hello
            self._announce()
        elif client.hello != self._hello:
            raise GatewayError("the line has changed: start again to show it", EXIT_CHANGED)
        else:
            log.info("controller is back")
        try:
            with client.frames() as frames:
                # No await from here to the first frame, so that nothing falls between mirror and frames.
                self._space.load(list(client.values.values()), self._by_index(client), client.mirror.at)
                self._desk.client = client
                self._standard(ObjectIds.Server_ServiceLevel, _HEALTHY, ua.VariantType.Byte)
                async for frame in frames:
                    if isinstance(frame, Delta):
                        self._space.delta(frame)
                    elif isinstance(frame, Snapshot):
                        log.warning("this gateway was too slow and missed changes", resync=frame.resync)
                        self._space.load(frame.values, frame.bad, frame.at)
        except NorthClosed as closed:
            self._space.lost()
            self._standard(ObjectIds.Server_ServiceLevel, _NO_DATA, ua.VariantType.Byte)
            log.error("controller lost, all values are bad", reason=str(closed))  # noqa: TRY400
            raise
        finally:
            self._desk.client = None

    @staticmethod
    def _by_index(client: NorthClient) -> dict[int, str]:
        return {i: client.bad[node.path] for i, node in enumerate(client.hello.nodes) if node.path in client.bad}

    async def _build(self, hello: Hello) -> None:
        try:
            model.check(hello)
        except ValueError as error:
            raise GatewayError(f"the controller's model cannot be shown: {error}", EXIT_USAGE) from error
        iserver = GuardedInternalServer(self._users, self._desk)
        self._server = server = GuardedServer(iserver, self._host, self._port)
        server.name = f"Linewright {hello.line}"
        server.product_uri, server.manufacturer_name = "urn:linewright:gateway:opcua", "Linewright"
        server._application_uri = f"urn:{socket.gethostname()}:linewright:{hello.line}"
        await self._listen(server.take_port())
        await server.init()
        built: Any = datetime.now(UTC)
        await server.set_build_info(
            server.product_uri, server.manufacturer_name, server.name, hello.version, hello.config_hash, built
        )
        ns = await server.register_namespace(f"urn:linewright:{hello.line}")
        self._space = Space(iserver.aspace, iserver.node_mgt_service, ns)
        await self._space.build(hello)
        self._desk.build(self._space, hello)
        self._standard(ObjectIds.Server_ServerCapabilities_OperationLimits_MaxNodesPerWrite, MAX_COMMANDS_PER_REQUEST,
                       ua.VariantType.UInt32)  # fmt: skip
        self._standard(ObjectIds.Server_ServerCapabilities_OperationLimits_MaxNodesPerMethodCall,
                       MAX_COMMANDS_PER_REQUEST, ua.VariantType.UInt32)  # fmt: skip
        self._standard(ObjectIds.Server_ServiceLevel, _NO_DATA, ua.VariantType.Byte)

    async def _listen(self, act: Awaitable[None]) -> None:
        """Await one of the two steps to a listening socket. Raises ``GatewayError`` when the port is another's."""
        try:
            await act
        except OSError as error:
            raise GatewayError(
                f"cannot listen on {self._host}:{self._port}: {error.strerror or error}; is another server running?",
                EXIT_CANNOT_LISTEN,
            ) from error

    def _announce(self) -> None:
        if self._ready_file is not None:
            try:
                draft = self._ready_file.with_name(f"{self._ready_file.name}.{os.getpid()}")
                draft.write_text(self.endpoint + "\n", encoding="ascii")
                draft.replace(self._ready_file)
            except OSError as error:
                raise GatewayError(f"the ready file cannot be written: {error}", EXIT_USAGE) from error
        self._on_ready(self.endpoint)

    def _standard(self, number: int, value: int, kind: ua.VariantType) -> None:
        """Set a variable of the standard namespace."""
        assert self._server is not None
        now: Any = datetime.now(UTC)
        attribute = self._server.iserver.aspace[std(number)].attributes[AttributeIds.Value]
        put_value(attribute, ua.DataValue(ua.Variant(value, kind), status(StatusCodes.Good), now, now))


def _nothing(endpoint: str) -> None:
    """Nobody wants to know."""


async def serve(
    north_path: Path,
    endpoint: str = DEFAULT_ENDPOINT,
    *,
    users_file: Path | None = None,
    ready_file: Path | None = None,
    on_ready: Callable[[str], None] = _nothing,
) -> None:
    """Serve a line over OPC UA until cancelled.

    Args:
        north_path: the controller's Unix socket; it may not be there yet.
        endpoint: ``opc.tcp://host:port``; port 0 takes a free one.
        users_file: accounts (``opcua_users``); needed for any but a loopback address.
        ready_file: gets the endpoint once the server listens, and is removed at the end.
        on_ready: called with the endpoint once the server listens.

    Raises:
        GatewayError: it cannot start or go on; ``code`` is the exit code for it.
    """
    check_asyncua()
    await Gateway(north_path, endpoint, users_file, ready_file, on_ready).run()


def _freeze(endpoint: str) -> None:
    """What is built now stays: the garbage collector need not walk its objects again and again."""
    gc.collect()
    gc.freeze()


class _Throttle(logging.Filter):
    """At most 20 records a second from asyncua: a hostile client must not fill the disk with its own errors."""

    def __init__(self, per_second: int = 20) -> None:
        super().__init__()
        self._most, self._second, self._count = per_second, 0, 0

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the record is written; says once how many were not."""
        second = int(time.monotonic())
        if second != self._second:
            if self._count > self._most:
                log.warning("asyncua log lines dropped", count=self._count - self._most)
            self._second, self._count = second, 0
        self._count += 1
        return self._count <= self._most


def configure_logging() -> None:
    """Log lines of this process to stderr: ours from INFO, asyncua's from ERROR and throttled."""
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.KeyValueRenderer(key_order=["timestamp", "level", "event"]),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.addFilter(_Throttle())
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.getLogger("asyncua").setLevel(logging.ERROR)
    logging.getLogger().addHandler(handler)


async def _until_signalled(args: argparse.Namespace) -> int:
    task = asyncio.create_task(
        serve(args.north, args.endpoint, users_file=args.users, ready_file=args.ready_file, on_ready=_freeze)
    )
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, task.cancel)
    watch = asyncio.create_task(_parent_gone(args.parent)) if args.parent is not None else None
    if watch is not None:
        watch.add_done_callback(lambda _: task.cancel())
    try:
        await task
    except asyncio.CancelledError:
        log.info("closed")
    except GatewayError as error:
        log.error("the gateway ends", reason=str(error), exit_code=error.code)  # noqa: TRY400
        return error.code
    finally:
        if watch is not None:
            watch.cancel()
    return 0


async def _parent_gone(parent: int) -> None:
    """Until the controller that started this process is gone, however it went: the next one brings its own."""
    while os.getppid() == parent:  # noqa: ASYNC110 - nobody tells an orphan
        await asyncio.sleep(PARENT_POLL_S)
    log.warning("the controller that started this gateway is gone", pid=parent)


def main(argv: Sequence[str] | None = None) -> int:
    """OPC UA server of a line. Exit codes: 0 asked to end, 2 configuration, 3 cannot listen, 75 start again."""
    parser = argparse.ArgumentParser(prog="python -m controller.gateways.opcua", description=main.__doc__)
    parser.add_argument("--north", type=Path, required=True, help="the controller's Unix socket")
    parser.add_argument("--endpoint", default=DEFAULT_ENDPOINT, help=f"default {DEFAULT_ENDPOINT}")
    parser.add_argument("--users", type=Path, help="users file (YAML); needed for any but a loopback address")
    parser.add_argument("--ready-file", type=Path, help="gets the endpoint once the server listens")
    parser.add_argument("--parent", type=int, help="process id; the gateway ends when it is no longer its parent")
    args = parser.parse_args(argv)
    configure_logging()
    return asyncio.run(_until_signalled(args))


if __name__ == "__main__":
    sys.exit(main())
