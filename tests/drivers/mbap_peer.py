"""More Modbus peers for the tests: one that the test plays by hand, a gateway with many units, UDP, and TLS."""

from __future__ import annotations

import asyncio
import datetime
import ipaddress
import ssl
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from honest_modbus import Answering, Memory, TcpServer

HEADER = struct.Struct(">HHHB")


def frame(tid: int, unit: int, pdu: bytes, *, protocol: int = 0, length: int | None = None) -> bytes:
    return HEADER.pack(tid, protocol, len(pdu) + 1 if length is None else length, unit) + pdu


@dataclass(frozen=True)
class Seen:
    tid: int
    unit: int
    pdu: bytes

    @property
    def offset(self) -> int:
        return int.from_bytes(self.pdu[1:3], "big")


class _Peer(asyncio.Protocol):
    def __init__(self, server: HandServer) -> None:
        self._server, self._buffer = server, b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._server.accepted(transport)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while len(self._buffer) >= 7 and len(self._buffer) >= 6 + int.from_bytes(self._buffer[4:6], "big"):
            tid, _, length, unit = HEADER.unpack_from(self._buffer)
            seen, self._buffer = Seen(tid, unit, self._buffer[7 : 6 + length]), self._buffer[6 + length :]
            self._server.heard(self._server.transports.index(self.transport), seen)

    @property
    def transport(self) -> asyncio.Transport:
        return next(t for t in self._server.transports if t.get_protocol() is self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._server.lost += 1
        self._server.lost_by.append(exc)
        self._server.changed.set()


class HandServer:
    """Takes requests apart; what comes back, the test says."""

    def __init__(self) -> None:
        self.port = self.connections = self.lost = 0
        self.transports: list[asyncio.Transport] = []
        self.requests: list[Seen] = []
        self.by_connection: list[int] = []
        self.lost_by: list[Exception | None] = []
        self.changed = asyncio.Event()
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> Self:
        self._server = await asyncio.get_running_loop().create_server(lambda: _Peer(self), "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        await self._server.wait_closed()
        for transport in self.transports:
            transport.abort()
        await asyncio.sleep(0)

    def accepted(self, transport: asyncio.Transport) -> None:
        self.transports.append(transport)
        self.connections += 1

    def heard(self, connection: int, seen: Seen) -> None:
        self.requests.append(seen)
        self.by_connection.append(connection)
        self.changed.set()

    async def until(self, count: int) -> list[Seen]:
        """So many requests have come in all."""
        async with asyncio.timeout(2.0):
            while len(self.requests) < count:
                self.changed.clear()
                await self.changed.wait()
        return self.requests[:count]

    async def until_lost(self, count: int = 1) -> None:
        async with asyncio.timeout(2.0):
            while self.lost < count:
                self.changed.clear()
                await self.changed.wait()

    def say(self, *parts: bytes, connection: int = -1) -> None:
        self.transports[connection].write(b"".join(parts))


def registers(seen: Seen, *values: int) -> bytes:
    """The good answer to a request for registers; by default each register holds its address."""
    count = int.from_bytes(seen.pdu[3:5], "big")
    words = values or tuple(range(seen.offset, seen.offset + count))
    return frame(seen.tid, seen.unit, bytes((seen.pdu[0], 2 * count)) + struct.pack(f">{count}H", *words))


class Gateway(HandServer):
    """Units behind a TCP gateway, each with a memory. It serves one request after the other, each in ``answer_s``.

    A unit in ``silent`` holds it for ``patience_s``, after which it answers with exception ``gives_up`` (``None``:
    nothing). Without ``serial`` requests are served side by side.
    """

    def __init__(self, *units: int, answer_s: float = 0.0, patience_s: float = 0.02) -> None:
        super().__init__()
        self.memories = {unit: Memory() for unit in units}
        self.answer_s, self.patience_s = answer_s, patience_s
        self.silent: set[int] = set()
        self.gives_up: int | None = None
        self.serial = True
        self._queue: list[tuple[int, Seen]] = []
        self._busy = False

    def heard(self, connection: int, seen: Seen) -> None:
        super().heard(connection, seen)
        self._queue.append((connection, seen))
        if not self._busy or not self.serial:
            self._next()

    def _next(self) -> None:
        self._busy = bool(self._queue)
        if self._queue:
            connection, seen = self._queue.pop(0)
            silent = seen.unit in self.silent
            wait = self.patience_s if silent else self.answer_s
            asyncio.get_running_loop().call_later(wait, self._answer, connection, seen, silent)

    def _answer(self, connection: int, seen: Seen, silent: bool) -> None:
        reply: bytes | None = None
        if not silent:
            reply = self.memories[seen.unit].answer(seen.pdu)
        elif self.gives_up is not None:
            reply = bytes((seen.pdu[0] | 0x80, self.gives_up))
        if reply is not None:
            self.say(frame(seen.tid, seen.unit, reply), connection=connection)
        if self.serial:
            self._next()


class UdpServer(Answering, asyncio.DatagramProtocol):
    """A server on UDP. Words besides those of ``Answering``: dup, late…, wrong_tid, wrong_unit, pid, runt, glued."""

    def __init__(self, unit: int = 3) -> None:
        super().__init__()
        self.unit, self.port = unit, 0
        self.tids: list[int] = []
        self._transport: asyncio.DatagramTransport | None = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def start(self) -> None:
        loop = asyncio.get_running_loop()
        self._transport, _ = await loop.create_datagram_endpoint(lambda: self, local_addr=("127.0.0.1", self.port))
        self.port = self._transport.get_extra_info("sockname")[1]

    async def stop(self) -> None:
        if self._transport is not None:
            self._transport.close()
            await asyncio.sleep(0)
        self._transport = None

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        tid, _, length, unit = HEADER.unpack_from(data)
        assert length == len(data) - 6
        pdu = data[7:]
        self.requests.append(pdu)
        self.tids.append(tid)
        word = self.script.popleft() if self.script else "ok"
        if word == "ok" and unit != self.unit:
            word = "silence"
        reply = self.reply(pdu, word)
        if reply is None:
            return
        out = frame(
            tid + 1 if word == "wrong_tid" else tid,
            unit ^ 1 if word == "wrong_unit" else unit,
            reply,
            protocol=9 if word == "pid" else 0,
        )
        if word == "runt":
            out = out[:7]
        if word == "glued":
            out += out
        if word.startswith("late"):
            asyncio.get_running_loop().call_later(float(word[4:]), self.say, out, addr)
            return
        for _ in range(2 if word == "dup" else 1):
            self.say(out, addr)

    def say(self, data: bytes, addr: tuple[str, int]) -> None:
        if self._transport is not None:
            self._transport.sendto(data, addr)


class TlsServer(TcpServer):
    """A Modbus/TCP Security server that asks for a client certificate of ``authority``."""

    def __init__(self, folder: Path, certificate: str, authority: str, unit: int = 3) -> None:
        super().__init__(unit)
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.minimum_version = ssl.TLSVersion.TLSv1_2
        self._context.verify_mode = ssl.CERT_REQUIRED
        self._context.load_cert_chain(folder / f"{certificate}.pem", folder / f"{certificate}.key")
        self._context.load_verify_locations(folder / f"{authority}.pem")

    def reset(self, writer: asyncio.StreamWriter) -> None:
        if writer.get_extra_info("socket") is not None:  # None: the TLS layer has let go of it already
            super().reset(writer)

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port, ssl=self._context)
        self.port = self._server.sockets[0].getsockname()[1]


class Authority:
    """Writes ``<name>.pem`` and ``<name>.key`` for itself and those it signs for."""

    def __init__(self, folder: Path, name: str = "ca") -> None:
        self.folder, self.name = folder, name
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        self._write(name, self._key, self._certificate(self._subject, self._key, authority=True))

    def issue(self, name: str, host: str = "127.0.0.1", *, days: int = 30, password: bytes | None = None) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        self._write(name, key, self._certificate(subject, key, host=host, days=days), password)

    def _certificate(
        self,
        subject: x509.Name,
        key: ec.EllipticCurvePrivateKey,
        *,
        host: str = "",
        days: int = 30,
        authority: bool = False,
    ) -> x509.Certificate:
        now = datetime.datetime.now(datetime.UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=60))
            .not_valid_after(now + datetime.timedelta(days=days))
            .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
        )
        if host:
            try:
                name: x509.GeneralName = x509.IPAddress(ipaddress.ip_address(host))
            except ValueError:
                name = x509.DNSName(host)
            builder = builder.add_extension(x509.SubjectAlternativeName([name]), critical=False)
        return builder.sign(self._key, hashes.SHA256())

    def _write(
        self, name: str, key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate, password: bytes | None = None
    ) -> None:
        protection: serialization.KeySerializationEncryption = serialization.NoEncryption()
        if password:
            protection = serialization.BestAvailableEncryption(password)
        (self.folder / f"{name}.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        (self.folder / f"{name}.key").write_bytes(
            key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, protection)
        )
