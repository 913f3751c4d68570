"""Programs of others on the other end of the wire. ``make peers`` installs them.

Without them these tests are skipped, and say what to do; with LINEWRIGHT_PEERS=require they fail instead, so that a
machine that has to have them cannot pass by not having them.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from bench.peers.build import REMEDY, PeerMissing, compile_peer, tool

OPCUA = Path(__file__).parent / "opcua"


def need(look: Callable[[], Path]) -> Path:
    """What ``look`` finds; else this test is skipped, or fails where peers are required."""
    try:
        return look()
    except PeerMissing as missing:
        if os.environ.get("LINEWRIGHT_PEERS") == "require":
            pytest.fail(str(missing), pytrace=False)
        pytest.skip(str(missing))


@pytest.fixture(scope="session")
def modbus_server(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Modbus device made of libmodbus (bench/peers/modbus_server.c)."""
    return need(lambda: compile_peer("modbus_server", tmp_path_factory.mktemp("peers")))


@pytest.fixture(scope="session")
def mbpoll() -> Path:
    """A Modbus client for the command line."""
    return need(lambda: Path(tool("mbpoll")))


@pytest.fixture(scope="session")
def node_opcua() -> list[str | Path]:
    """The command that runs the OPC UA server of tests/peers/opcua, without its arguments."""

    def look() -> Path:
        if not (OPCUA / "node_modules" / "node-opcua-server").is_dir():
            raise PeerMissing(f"node-opcua is not installed; {REMEDY}")
        return Path(tool("node"))

    return [need(look), OPCUA / "server.mjs"]


@pytest.fixture(scope="session")
def socat() -> Path:
    """Joins two pseudo-terminals."""
    return need(lambda: Path(tool("socat")))


@pytest.fixture
def serial_pair(socat: Path, tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    """The two ends of a serial line."""
    with joined(socat, tmp_path / "ours", tmp_path / "theirs") as ends:
        yield ends


@contextmanager
def joined(socat: Path, ours: Path, theirs: Path) -> Iterator[tuple[Path, Path]]:
    # -T: it ends by itself when nothing was said for so long, even if we are killed.
    ends = [f"pty,raw,echo=0,link={end}" for end in (ours, theirs)]
    process = subprocess.Popen([socat, "-T", "60", *ends], stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 10
        while not (ours.exists() and theirs.exists()):
            assert process.poll() is None, f"socat ended with {process.returncode}"
            assert time.monotonic() < deadline, "socat made no pseudo-terminals within 10 s"
            time.sleep(0.01)
        yield ours, theirs
    finally:
        process.terminate()
        process.wait(5)


@pytest.fixture(scope="session")
def server_certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Certificate and key (PEM) of the OPC UA server."""
    folder = tmp_path_factory.mktemp("certificate")
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    openssl = need(lambda: Path(tool("openssl")))
    subprocess.run(
        [openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "30", "-subj", "/CN=peer",
         "-keyout", key, "-out", certificate,
         "-addext", "subjectAltName=URI:urn:linewright:peer:server,IP:127.0.0.1",
         "-addext", "keyUsage=critical,digitalSignature,nonRepudiation,keyEncipherment,dataEncipherment",
         "-addext", "extendedKeyUsage=serverAuth,clientAuth"],
        check=True, capture_output=True, timeout=30,
    )  # fmt: skip
    return certificate, key
