"""Who is trusted with what: policies, certificates, passwords. Every refusal says what to do."""

from __future__ import annotations

import asyncio
import stat
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from asyncua import ua
from asyncua.server.internal_session import InternalSession
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from opcua_plc import APPLICATION, URI, Proxy, UaPlc

from drivers.opcua import OpcUaDriver
from drivers.opcua.pki import CertificateProblem, Identity, check_server, make_identity, own_identity, write_identity
from drivers.options import OpcUaOptions, UaSecurity
from drivers.port import DataType, LinkDown, OpcUaAddress, Outcome, Tag

T = 3.0
TAGS = [
    Tag(
        name="plc.count", address=OpcUaAddress(f"nsu={URI};s=PLC.Count"), type=DataType.UDINT, writable=True,
    ),
    Tag(name="plc.job", address=OpcUaAddress(f"nsu={URI};s=PLC.Job"), type=DataType.STRING, writable=True),
]  # fmt: skip


@pytest.fixture
def plc(secure_ua_plc: UaPlc) -> UaPlc:
    return secure_ua_plc


@pytest.fixture
def server_identity(plc: UaPlc) -> Identity:
    assert plc.identity is not None
    return plc.identity


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The controller's certificate and key, made once: a key takes a while."""
    folder = tmp_path_factory.mktemp("own")
    own_identity(folder / "controller.der", folder / "controller.key.pem")
    return folder / "controller.der", folder / "controller.key.pem"


@pytest.fixture
def security(tmp_path: Path, own: tuple[Path, Path], server_identity: Identity) -> UaSecurity:
    """Everything in order: the server is trusted."""
    trusted = tmp_path / "pki" / "trusted"
    trusted.mkdir(parents=True)
    (trusted / "plc.der").write_bytes(server_identity.der)
    return UaSecurity(policy="Basic256Sha256", certificate=own[0], key=own[1], trusted=trusted)


@pytest.fixture
async def proxy(plc: UaPlc) -> AsyncIterator[Proxy]:
    await plc.reset()
    plc.users.seen.clear()
    proxy = Proxy(plc.port)
    await proxy.start()
    yield proxy
    await proxy.stop()


def driver_on(port: int, security: UaSecurity | None, host: str = "127.0.0.1", **more: Any) -> OpcUaDriver:
    return OpcUaDriver("inspect", TAGS, OpcUaOptions(endpoint=f"opc.tcp://{host}:{port}", security=security, **more))


async def refused(driver: OpcUaDriver) -> str:
    with pytest.raises(LinkDown) as caught:
        await driver.connect(5.0)
    await driver.close()
    return str(caught.value)


@pytest.mark.parametrize("policy", ["Basic256Sha256", "Aes128_Sha256_RsaOaep", "Aes256_Sha256_RsaPss"])
@pytest.mark.parametrize("mode", ["sign", "sign_and_encrypt"])
@pytest.mark.wire
@pytest.mark.usefixtures("no_leaks")
async def test_every_policy_reads_writes_and_renews(
    proxy: Proxy, plc: UaPlc, security: UaSecurity, policy: Any, mode: Any
) -> None:
    seen = bytearray()
    proxy.seen = seen.extend
    driver = driver_on(proxy.port, replace(security, policy=policy, mode=mode), channel_lifetime_s=0.4)
    await driver.connect(5.0)
    until = time.monotonic() + 0.8
    while time.monotonic() < until:
        assert (await driver.read(0, T)).values == (7, "L1")
        await asyncio.sleep(0.02)
    got = await driver.write("plc.job", "SECRET-7", T)
    assert got.outcome is Outcome.VERIFIED, got.reason
    assert await plc.get("Job") == "SECRET-7"
    await driver.close()
    assert proxy.connections == 2, "one to ask for the endpoints, one for all the rest"
    assert (b"SECRET-7" in seen) is (mode == "sign")


@pytest.mark.wire
@pytest.mark.usefixtures("no_leaks")
async def test_subscriptions_work_encrypted(proxy: Proxy, plc: UaPlc, security: UaSecurity) -> None:
    driver = driver_on(proxy.port, security, reading="subscribe", periods_s={"fast": 0.1})
    await driver.connect(5.0)
    await plc.put("Count", ua.DataValue(ua.Variant(70, ua.VariantType.UInt32)))
    async with asyncio.timeout(3.0):
        while (await driver.read(0, T)).values[0] != 70:  # noqa: ASYNC110 - the PLC knows of no event
            await asyncio.sleep(0.01)
    await driver.close()


@pytest.mark.wire
@pytest.mark.usefixtures("no_leaks")
async def test_an_unknown_server_is_refused_until_its_certificate_is_moved(
    proxy: Proxy, security: UaSecurity, server_identity: Identity
) -> None:
    (security.trusted / "plc.der").unlink()
    driver = driver_on(proxy.port, security)
    for _ in range(2):
        text = await refused(driver)
        assert "is not trusted" in text
    (kept,) = (security.trusted.parent / "rejected").iterdir()
    assert kept.read_bytes() == server_identity.der
    assert f"move {kept} to {security.trusted}" in text
    assert server_identity.certificate.fingerprint(hashes.SHA1()).hex(":") in text
    kept.rename(security.trusted / kept.name)
    await driver.connect(5.0)
    assert (await driver.read(0, T)).values == (7, "L1")
    await driver.close()


@pytest.mark.wire
@pytest.mark.usefixtures("no_leaks")
async def test_another_host_name_is_refused(proxy: Proxy, security: UaSecurity) -> None:
    text = await refused(driver_on(proxy.port, security, host="localhost"))
    assert "is for the host 127.0.0.1, not localhost" in text


@pytest.mark.wire
@pytest.mark.usefixtures("no_leaks")
async def test_a_policy_the_server_has_not_is_named(ua_plc: UaPlc, security: UaSecurity) -> None:
    text = await refused(driver_on(ua_plc.port, security))
    assert "no Basic256Sha256 sign_and_encrypt, but None None_" in text


@pytest.mark.wire
@pytest.mark.usefixtures("no_leaks")
async def test_a_downgrade_is_noticed(
    proxy: Proxy, plc: UaPlc, security: UaSecurity, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody who changes the list of endpoints on its way cannot change what the session confirms."""
    honest = InternalSession.get_endpoints

    async def less(self: Any, *args: Any, **more: Any) -> Any:
        return [each for each in await honest(self, *args, **more) if "Aes256" not in each.SecurityPolicyUri]

    monkeypatch.setattr(InternalSession, "get_endpoints", less)
    assert "differ from those the session confirms" in await refused(driver_on(proxy.port, security))


@pytest.mark.wire
@pytest.mark.usefixtures("no_leaks")
async def test_a_server_without_its_certificates_key_gets_nowhere(
    plc: UaPlc, security: UaSecurity, server_identity: Identity
) -> None:
    """An impostor who shows the trusted certificate, but has another key."""
    impostor = make_identity(APPLICATION, ["127.0.0.1"], "Impostor")
    honest = [factory.private_key for factory in plc.server._policies]
    for factory in plc.server._policies:
        factory.private_key = impostor.key
    try:
        driver = driver_on(plc.port, security)
        with pytest.raises(LinkDown):
            await driver.connect(1.0)
        await driver.close()
    finally:
        for factory, key in zip(plc.server._policies, honest, strict=True):
            factory.private_key = key


@pytest.mark.wire
@pytest.mark.usefixtures("no_leaks")
@pytest.mark.parametrize("mode", ["sign", "sign_and_encrypt"])
async def test_a_password_goes_encrypted(
    proxy: Proxy, plc: UaPlc, security: UaSecurity, mode: Any, sent: list[str]
) -> None:
    seen = bytearray()
    proxy.seen = seen.extend
    driver = driver_on(proxy.port, replace(security, mode=mode), user="lw", password="s3cret")
    await driver.connect(5.0)
    assert (await driver.read(0, T)).values == (7, "L1")
    await driver.close()
    assert ("lw", False) in plc.users.seen
    assert b"s3cret" not in seen
    sent.clear()
    text = await refused(driver_on(proxy.port, replace(security, mode=mode), user="lw", password="wrong"))
    assert sent[-2:] == ["ActivateSession", "CloseSession"], "the server would keep it from others until it times out"
    assert "BadUserAccessDenied" in text
    assert "wrong" not in text


@pytest.mark.wire
@pytest.mark.usefixtures("no_leaks")
async def test_a_password_without_security_is_encrypted_where_the_server_can(proxy: Proxy, plc: UaPlc) -> None:
    seen = bytearray()
    proxy.seen = seen.extend
    driver = driver_on(proxy.port, None, user="lw", password="s3cret")
    await driver.connect(5.0)
    await driver.close()
    assert ("lw", False) in plc.users.seen
    assert b"s3cret" not in seen


@pytest.mark.wire
@pytest.mark.usefixtures("no_leaks")
async def test_a_password_in_clear_goes_to_loopback_only(ua_plc: UaPlc, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = driver_on(ua_plc.port, None, user="lw", password="s3cret")
    await driver.connect(5.0)
    await driver.close()
    # A real address is never dialled in a test; the driver is told that this one is no loopback.
    monkeypatch.setattr("drivers.opcua.session._is_loopback", lambda _: False)
    text = await refused(driver)
    assert "would cross the network in clear, and is not sent" in text
    assert "security" in text


@pytest.mark.wire
@pytest.mark.usefixtures("no_leaks")
async def test_a_user_with_a_certificate(proxy: Proxy, plc: UaPlc, security: UaSecurity, tmp_path: Path) -> None:
    user = make_identity("", [], "operator")
    certificate, key = tmp_path / "user.der", tmp_path / "user.pem"
    write_identity(user, certificate, key)
    plc.users.known.add(user.der)
    driver = driver_on(proxy.port, security, user_certificate=certificate, user_key=key)
    await driver.connect(5.0)
    assert (await driver.read(0, T)).values == (7, "L1")
    await driver.close()
    assert (None, True) in plc.users.seen


@pytest.mark.wire
@pytest.mark.usefixtures("no_leaks")
async def test_an_expired_server_is_refused(security: UaSecurity) -> None:
    identity = make_identity(APPLICATION, ["127.0.0.1"], "Old PLC", days=(-10, -1))
    (security.trusted / "old.der").write_bytes(identity.der)
    plc = UaPlc(identity)
    await asyncio.to_thread(plc.start)
    try:
        text = await refused(driver_on(plc.port, security))
        assert "expired on" in text
        assert "clock" in text
    finally:
        await asyncio.to_thread(plc.stop)


# --- files


def test_own_certificate_is_made_once_and_its_key_is_private(own: tuple[Path, Path]) -> None:
    certificate, key = own
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    first = own_identity(certificate, key)
    assert first.uri.startswith("urn:")
    assert own_identity(certificate, key).der == first.der
    names = first.certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName)
    assert first.key.key_size == 2048
    pem = certificate.with_suffix(".pem")
    pem.write_bytes(first.certificate.public_bytes(serialization.Encoding.PEM))
    assert own_identity(pem, key).der == first.der


def test_half_an_identity_is_a_problem(own: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(CertificateProblem, match="cannot load"):
        own_identity(own[0], tmp_path / "missing.pem")
    assert not (tmp_path / "missing.pem").exists()
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(CertificateProblem, match="cannot put our new certificate"):
        own_identity(tmp_path / "file" / "c.der", tmp_path / "file" / "k.pem")
    other = make_identity("urn:x", [], "x")
    write_identity(other, tmp_path / "x.der", tmp_path / "x.pem")
    with pytest.raises(CertificateProblem, match="is not the RSA key of"):
        own_identity(own[0], tmp_path / "x.pem")


def check(identity: Identity, trusted: Path, *more: Identity, host: str = "127.0.0.1", uri: str = APPLICATION) -> str:
    try:
        check_server(b"".join(each.der for each in (identity, *more)), trusted, host, uri)
    except CertificateProblem as exc:
        return str(exc)
    return ""


def test_what_a_trusted_certificate_must_be(server_identity: Identity, tmp_path: Path) -> None:
    trusted = tmp_path / "trusted"
    trusted.mkdir()
    (trusted / "plc.der").write_bytes(server_identity.der)
    assert not check(server_identity, trusted)
    assert "is for the application" in check(server_identity, trusted, uri="urn:another")
    assert "is for the host 127.0.0.1, not plc.example" in check(server_identity, trusted, host="plc.example")
    (trusted / "notes.der").write_text("hello")
    assert "notes.der is no certificate" in check(server_identity, trusted)
    (trusted / "notes.der").unlink()
    (trusted / "readme.txt").write_text("hello")
    assert not check(server_identity, trusted)
    with pytest.raises(CertificateProblem, match="unreadable"):
        check_server(b"rubbish", trusted, "127.0.0.1", APPLICATION)


def test_authorities(tmp_path: Path) -> None:
    trusted, issuers = tmp_path / "trusted", tmp_path / "issuers"
    trusted.mkdir()
    issuers.mkdir()
    root = make_identity("", [], "Root", authority=True)
    middle = make_identity("", [], "Middle", issuer=root, authority=True)
    leaf = make_identity(APPLICATION, ["127.0.0.1"], "Leaf", issuer=middle)
    (trusted / "root.der").write_bytes(root.der)
    assert "is not trusted" in check(leaf, trusted), "the authority between is missing"
    assert not check(leaf, trusted, middle)
    (issuers / "middle.pem").write_bytes(middle.certificate.public_bytes(serialization.Encoding.PEM))
    assert not check(leaf, trusted)
    # An issuer is no reason for trust by itself; nor is a server's certificate that signs others.
    (trusted / "root.der").unlink()
    assert "is not trusted" in check(leaf, trusted)
    plain = make_identity(APPLICATION, ["127.0.0.1"], "Plain")
    child = make_identity(APPLICATION, ["127.0.0.1"], "Child", issuer=plain)
    (trusted / "plain.der").write_bytes(plain.der)
    assert "is not trusted" in check(child, trusted)


def test_revocation(tmp_path: Path) -> None:
    trusted = tmp_path / "trusted"
    trusted.mkdir()
    root = make_identity("", [], "Root", authority=True)
    leaf = make_identity(APPLICATION, ["127.0.0.1"], "Leaf", issuer=root)
    (trusted / "root.der").write_bytes(root.der)
    assert not check(leaf, trusted)

    def revoke(signer: Identity) -> bytes:
        now = leaf.certificate.not_valid_before_utc
        one = x509.RevokedCertificateBuilder().serial_number(leaf.certificate.serial_number).revocation_date(now)
        builder = x509.CertificateRevocationListBuilder().issuer_name(root.certificate.subject)
        crl = builder.last_update(now).next_update(leaf.certificate.not_valid_after_utc)
        return (
            crl.add_revoked_certificate(one.build())
            .sign(signer.key, hashes.SHA256())
            .public_bytes(serialization.Encoding.DER)
        )

    (trusted / "root.crl").write_bytes(revoke(root))
    assert "was revoked" in check(leaf, trusted)
    (trusted / "root.crl").write_bytes(revoke(leaf))
    assert "is not signed by it" in check(leaf, trusted)
