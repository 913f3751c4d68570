"""A real OPC UA server for the tests, in a thread of its own, and a proxy that pulls the cable."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from asyncua import Server, ua
from asyncua.crypto.permission_rules import User, UserRole

from drivers.opcua.pki import Identity
from drivers.options import UaSecurity

URI = "urn:linewright:test:plc"
APPLICATION = "urn:linewright:test:application"
SECURE = [
    ua.SecurityPolicyType.Basic256Sha256_Sign,
    ua.SecurityPolicyType.Basic256Sha256_SignAndEncrypt,
    ua.SecurityPolicyType.Aes128Sha256RsaOaep_Sign,
    ua.SecurityPolicyType.Aes128Sha256RsaOaep_SignAndEncrypt,
    ua.SecurityPolicyType.Aes256Sha256RsaPss_Sign,
    ua.SecurityPolicyType.Aes256Sha256RsaPss_SignAndEncrypt,
]
VARIABLES = {
    "Speed": (1.5, ua.VariantType.Float),
    "Count": (7, ua.VariantType.UInt32),
    "Rail": (60, ua.VariantType.UInt16),
    "Run": (False, ua.VariantType.Boolean),
    "Job": ("L1", ua.VariantType.String),
    "Total": (2**40, ua.VariantType.UInt64),
    "Sealed": (3, ua.VariantType.UInt16),
}


class Users:
    """Knows lw with the password s3cret and the certificates in ``known``; remembers who came."""

    def __init__(self) -> None:
        self.known: set[bytes] = set()
        self.seen: list[tuple[str | None, bool]] = []

    def get_user(
        self, _: Any, username: str | None = None, password: str | None = None, certificate: Any = None
    ) -> User | None:
        by_certificate = certificate in self.known
        self.seen.append((username, by_certificate))
        if username is not None and (username, password) != ("lw", "s3cret"):
            return None
        return User(role=UserRole.User)


class UaPlc:
    """Start once, use from any loop: everything goes through :meth:`do`.

    With an ``identity`` it offers all policies, else none.
    """

    def __init__(
        self, identity: Identity | None = None, application_uri: str = APPLICATION, tokens: tuple[type, ...] = ()
    ) -> None:
        self.identity, self.application_uri, self.tokens = identity, application_uri, tokens
        self.users = Users()
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, name="opcua-plc")
        self.nodes: dict[str, Any] = {}
        self.port = 0

    def start(self) -> None:
        self.thread.start()
        self.do(self._start())

    def stop(self) -> None:
        self.do(self.server.stop())
        self.do(self._end_tasks())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.close()

    def do(self, job: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(job, self.loop).result(20)

    async def ado(self, job: Coroutine[Any, Any, Any]) -> Any:
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(job, self.loop))

    def freeze(self, seconds: float) -> None:
        """The PLC's program hangs: nothing is answered, everything is answered afterwards."""
        import time

        self.loop.call_soon_threadsafe(time.sleep, seconds)

    async def reset(self) -> None:
        for name, (value, kind) in VARIABLES.items():
            await self.ado(self.nodes[name].write_value(ua.DataValue(ua.Variant(value, kind))))

    async def put(self, name: str, value: object) -> None:
        await self.ado(self.nodes[name].write_value(value))

    async def get(self, name: str) -> Any:
        return await self.ado(self.nodes[name].read_value())

    async def _start(self) -> None:
        self.server = Server(user_manager=self.users)
        await self.server.init()
        await self.server.set_application_uri(self.application_uri)
        if self.tokens:
            self.server.set_identity_tokens(list(self.tokens))
        self.server.set_endpoint("opc.tcp://127.0.0.1:0")
        policies = [ua.SecurityPolicyType.NoSecurity]
        if self.identity is not None:
            self.server.iserver.certificate = self.identity.certificate
            self.server.iserver.private_key = self.identity.key
            policies += SECURE
        self.server.set_security_policy(policies)
        await self.server.register_namespace("urn:linewright:test:another")
        index = await self.server.register_namespace(URI)
        for name, (value, kind) in VARIABLES.items():
            node = await self.server.nodes.objects.add_variable(
                ua.NodeId(f"PLC.{name}", index), name, ua.Variant(value, kind)
            )
            self.nodes[name] = node
            if name != "Sealed":
                await node.set_writable()
        await self.server.start()
        self.port = self.server.bserver._server.sockets[0].getsockname()[1]

    async def _end_tasks(self) -> None:
        left = asyncio.all_tasks() - {asyncio.current_task()}
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)


def trusting(plc: UaPlc, folder: Path) -> UaSecurity:
    """What a controller needs to connect to that server; its own certificate is made by the driver."""
    assert plc.identity is not None
    trusted = folder / "trusted"
    trusted.mkdir(parents=True)
    (trusted / "plc.der").write_bytes(plc.identity.der)
    own = folder / "own"
    return UaSecurity(
        policy="Basic256Sha256", certificate=own / "controller.der", key=own / "controller.key.pem", trusted=trusted
    )


class Proxy:
    """Carries bytes between a client and ``target``; cuts, refuses and swallows them on demand."""

    def __init__(self, target: int) -> None:
        self.target, self.port = target, 0
        self.swallow_up = self.swallow_down = self.twice = False
        self.flowing = asyncio.Event()
        """Cleared, what the server sends lies in the network; set, it arrives."""
        self.flowing.set()
        self.delay_s = 0.0
        self.connections = 0
        self._server: asyncio.Server | None = None
        self.pairs: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self.seen: Callable[[bytes], None] = lambda _: None

    async def start(self) -> None:
        self.swallow_up = self.swallow_down = False
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    def reset(self) -> None:
        """Every connection is reset, as by a switch that loses power; new ones are taken at once."""
        for writer in list(self.pairs):
            writer.transport.abort()

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()
            self._server = None
        self.reset()
        for task in list(self._tasks):
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.connections += 1
        writers = {writer}
        try:
            up_reader, up_writer = await asyncio.open_connection("127.0.0.1", self.target)
            writers.add(up_writer)
            self.pairs |= writers
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pump(reader, up_writer, True))
                group.create_task(self._pump(up_reader, writer, False))
        except (OSError, asyncio.CancelledError, ExceptionGroup):
            pass
        finally:
            self._tasks.discard(task)
            self.pairs -= writers
            for each in writers:
                each.transport.abort()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, up: bool) -> None:
        while data := await reader.read(65536):
            self.seen(data)
            if not up:
                await self.flowing.wait()
                await asyncio.sleep(self.delay_s)
            if not (self.swallow_up if up else self.swallow_down):
                if self.twice and not up:
                    self.twice = False
                    data += data
                writer.write(data)
                await writer.drain()
        raise ConnectionError("closed")
