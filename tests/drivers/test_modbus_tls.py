"""Modbus/TCP Security: certificates on both sides, and errors that say what to do."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from mbap_peer import Authority, HandServer, TlsServer

from drivers.factory import make_driver
from drivers.options import ModbusTcpOptions, TlsOptions
from drivers.port import Area, DataType, Driver, LinkDown, ModbusAddress, Outcome, Tag

pytestmark = [pytest.mark.wire, pytest.mark.usefixtures("no_leaks")]
TAGS = [Tag(name="s.one", address=ModbusAddress(Area.HOLDING_REGISTER, 0), type=DataType.UINT, writable=True)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pki")
    ours = Authority(path)
    ours.issue("device")
    ours.issue("named", "filler.plant.example")
    ours.issue("expired", days=-1)
    ours.issue("controller")
    ours.issue("locked", password=b"secret")
    Authority(path, "foreign").issue("stranger")
    (path / "text.pem").write_text("this is no certificate\n")
    return path


def tls(folder: Path, *, certificate: str = "controller", ca: str = "ca", key: str = "") -> TlsOptions:
    return TlsOptions(
        ca=folder / f"{ca}.pem", certificate=folder / f"{certificate}.pem", key=folder / f"{key or certificate}.key"
    )


def driver(port: int, options: TlsOptions) -> Driver:
    return make_driver("wet", ModbusTcpOptions(host="127.0.0.1", port=port, unit=3, tls=options), TAGS)


async def test_reads_writes_and_comes_back(folder: Path) -> None:
    async with TlsServer(folder, "device", "ca") as server:
        plc = driver(server.port, tls(folder))
        for _ in range(2):
            await plc.connect(2.0)
            assert (await plc.write("s.one", 77, 1.0)).outcome is Outcome.VERIFIED
            assert (await plc.read(0, 1.0)).values == (77,)
            await plc.close()
        await plc.connect(2.0)
        await plc.read(0, 1.0)
        await server.stop()
        with pytest.raises(LinkDown):
            await plc.read(0, 0.5)
        await plc.close()


async def test_any_doubt_ends_the_connection_here_too(folder: Path) -> None:
    async with TlsServer(folder, "device", "ca") as server:
        plc = driver(server.port, tls(folder))
        await plc.connect(2.0)
        server.script.append("wrong_tid")
        with pytest.raises(LinkDown, match="nobody asked"):
            await plc.read(0, 0.5)
        await plc.close()


@pytest.mark.parametrize(
    ("device", "ours", "text"),
    [
        ("stranger", {}, "put the certificate of its issuer"),
        ("expired", {}, "renew the device's certificate"),
        ("named", {}, "tls.server_name"),
        ("device", {"ca": "missing"}, r"tls.ca .*missing.pem: No such file"),
        ("device", {"ca": "text"}, r"tls.ca .*text.pem: .* must hold PEM certificates"),
        ("device", {"certificate": "missing"}, r"missing.pem .*: No such file"),
        ("device", {"key": "device"}, "belong together"),
        ("device", {"certificate": "locked"}, "the key without a password"),
    ],
)
async def test_certificates_that_do_not_do(folder: Path, device: str, ours: dict[str, str], text: str) -> None:
    async with TlsServer(folder, device, "ca") as server:
        plc = driver(server.port, tls(folder, **ours))
        with pytest.raises(LinkDown, match=text):
            await plc.connect(2.0)
        await plc.close()
        assert not server.requests


async def test_the_name_in_the_certificate_may_be_another_than_the_host(folder: Path) -> None:
    async with TlsServer(folder, "named", "ca") as server:
        plc = driver(server.port, replace(tls(folder), server_name="filler.plant.example"))
        await plc.connect(2.0)
        assert (await plc.read(0, 1.0)).values == (0,)
        await plc.close()


@contextlib.contextmanager
def strict_server(folder: Path, *, newest: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3) -> Iterator[int]:
    """One connection of plain OpenSSL, which sends its alerts (asyncio's servers do not); it knows only ``foreign``."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version, context.maximum_version = ssl.TLSVersion.MINIMUM_SUPPORTED, newest
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_cert_chain(folder / "device.pem", folder / "device.key")
    context.load_verify_locations(folder / "foreign.pem")
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(5.0)

        def serve() -> None:
            connection, _ = listening.accept()
            with context.wrap_socket(connection, server_side=True, do_handshake_on_connect=False) as secure:
                with contextlib.suppress(OSError):
                    secure.do_handshake()
                with contextlib.suppress(OSError):
                    secure.shutdown(socket.SHUT_WR)
                    while secure.recv(1000):  # what is unread would turn the close into a reset, and lose the alert
                        pass

        thread = threading.Thread(target=serve)
        thread.start()
        yield listening.getsockname()[1]
        thread.join()


@pytest.mark.parametrize("newest", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_a_device_that_does_not_know_us_says_so(folder: Path, newest: ssl.TLSVersion) -> None:
    """With TLS 1.3 its refusal comes after the handshake: at the latest the first read has to name it."""
    with strict_server(folder, newest=newest) as port:
        plc = driver(port, tls(folder))
        with pytest.raises(LinkDown, match=r"the device refused us: .*unknown ca") as caught:
            await plc.connect(2.0)
            await plc.read(0, 1.0)
        assert "known to the device" in str(caught.value)
        await plc.close()


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
async def test_tls_1_1_is_too_old(folder: Path) -> None:
    with strict_server(folder, newest=ssl.TLSVersion.TLSv1_1) as port:
        plc = driver(port, tls(folder))
        with pytest.raises(LinkDown, match=r"TLS 1\.2"):
            await plc.connect(2.0)
        await plc.close()


async def test_no_tls_on_the_port(folder: Path) -> None:
    async with HandServer() as server:
        plc = driver(server.port, tls(folder))
        with pytest.raises(LinkDown, match="speaks TLS"):
            await plc.connect(0.3)
        await plc.close()
        await server.until_lost()
