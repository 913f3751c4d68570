"""Application certificates: our own, and which servers are trusted.

OPC 10000-4, 6.1.3 (how to judge one); OPC 10000-6, 6.2.2 (what is in one); OPC 10000-12, 7 (trust lists).
Everything here is files and mathematics that block for up to seconds; call it off the event loop.
"""

from __future__ import annotations

import datetime
import hashlib
import ipaddress
import itertools
import os
import re
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

YEARS = 20
"""Life of a certificate made here: a line runs longer than anyone remembers to renew it; the trust list ends it."""
KEY_BITS = (2048, 4096)
"""Lengths of an RSA key that the policies allow (OPC 10000-7)."""
LONGEST_CHAIN = 5


class CertificateProblem(Exception):
    """A certificate that must not be used: what is wrong, and what to do."""

    def __init__(self, what: str, hint: str) -> None:
        self.what, self.hint = what, hint
        super().__init__(f"{what}; {hint}")


@dataclass(frozen=True, slots=True)
class Identity:
    """A certificate with its key."""

    certificate: x509.Certificate
    key: rsa.RSAPrivateKey

    @property
    def uri(self) -> str:
        """The application URI that the certificate is for; empty when it names none."""
        return next(iter(_names(self.certificate, x509.UniformResourceIdentifier)), "")

    @property
    def der(self) -> bytes:
        """The certificate, encoded."""
        return self.certificate.public_bytes(serialization.Encoding.DER)


def own_identity(certificate: Path, key: Path) -> Identity:
    """Our application certificate and key; made when neither file is there. Raises :class:`CertificateProblem`."""
    if not certificate.exists() and not key.exists():
        host = socket.gethostname()
        made = make_identity(f"urn:{host}:linewright:controller", [host], "Linewright controller")
        try:
            write_identity(made, certificate, key)
        except OSError as exc:
            what = f"cannot put our new certificate and key to {certificate} and {key}: {exc}"
            raise CertificateProblem(what, "let the controller write there, or put a pair there") from exc
    identity = load_identity(certificate, key)
    if not identity.uri:
        what = f"our certificate {certificate} names no application URI"
        raise CertificateProblem(what, "make one with a URI in its subject alternative name, or remove it and its key")
    _check_time(identity.certificate, f"our certificate {certificate}", "replace it and its key")
    return identity


def load_identity(certificate: Path, key: Path) -> Identity:
    """Certificate and key from DER or PEM files. Raises :class:`CertificateProblem`."""
    try:
        found = _certificates(certificate.read_bytes())[0]
        data = key.read_bytes()
        load = serialization.load_pem_private_key if b"-----BEGIN" in data else serialization.load_der_private_key
        private = load(data, None)
    except (OSError, ValueError, TypeError, IndexError) as exc:
        raise CertificateProblem(
            f"cannot load {certificate} with {key}: {exc}", "both files are needed, DER or PEM"
        ) from exc
    if not isinstance(private, rsa.RSAPrivateKey) or private.public_key() != found.public_key():
        raise CertificateProblem(f"{key} is not the RSA key of {certificate}", "put the matching pair there")
    return Identity(found, private)


def make_identity(
    uri: str,
    hosts: Sequence[str],
    name: str,
    *,
    issuer: Identity | None = None,
    days: tuple[int, int] = (-1, YEARS * 365),
    authority: bool = False,
) -> Identity:
    """A key of 2048 bits and its certificate for ``uri`` and ``hosts``, signed by ``issuer`` or by itself.

    ``days`` are its first and last day, counted from now.
    """
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(uri)] if uri else []
    names += [_host_name(host) for host in hosts]
    now = datetime.datetime.now(datetime.UTC)
    usage = x509.KeyUsage(
        digital_signature=True, content_commitment=True, key_encipherment=True, data_encipherment=True,
        key_agreement=False, key_cert_sign=authority or issuer is None, crl_sign=authority,
        encipher_only=False, decipher_only=False,
    )  # fmt: skip
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.certificate.subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + datetime.timedelta(days[0]))
        .not_valid_after(now + datetime.timedelta(days[1]))
        .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH]), critical=False
        )
    )
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return Identity(builder.sign(issuer.key if issuer else key, hashes.SHA256()), key)


def write_identity(identity: Identity, certificate: Path, key: Path) -> None:
    """Both files, whole or not at all; the key first, and readable by its owner only."""
    data = identity.key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    for path, content in ((key, data), (certificate, identity.der)):
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch = path.with_name(path.name + ".new")
        scratch.unlink(missing_ok=True)
        with os.fdopen(os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        scratch.replace(path)
    certificate.chmod(0o644)


def server_certificate(chain: bytes) -> x509.Certificate:
    """The first certificate of a chain. Raises ``ValueError``."""
    return _certificates(chain)[0]


def check_server(chain: bytes, trusted: Path, host: str, uri: str) -> x509.Certificate:
    """The server's certificate, when it may be used for ``host`` and the application ``uri``.

    ``chain`` is what the server shows: its certificate, maybe followed by its issuers'. It must itself be in the folder
    ``trusted``, or be signed by an authority that is; issuers between may also lie in ``issuers`` beside, and
    ``*.crl`` in both revoke. Raises :class:`CertificateProblem`; an unknown certificate is put into ``rejected``.
    """
    try:
        shown = _certificates(chain)
        certificate = shown[0]
    except (ValueError, IndexError) as exc:
        raise CertificateProblem(f"the server's certificate is unreadable: {exc}", "a server fault") from exc
    who = f"the server's certificate ({certificate.subject.rfc4514_string()})"
    public = certificate.public_key()
    if not isinstance(public, rsa.RSAPublicKey) or not KEY_BITS[0] <= public.key_size <= KEY_BITS[1]:
        raise CertificateProblem(f"{who} has no RSA key of 2048 to 4096 bits", "make a new one on the server")
    _check_trust(certificate, shown[1:], trusted, who)
    _check_time(certificate, who, "renew it on the server, or set the clock of this computer right")
    uris = _names(certificate, x509.UniformResourceIdentifier)
    if uri not in uris:
        what = f"{who} is for the application {', '.join(uris) or '(none)'}, but the server says it is {uri}"
        raise CertificateProblem(what, "another server's certificate, or its application URI was changed")
    hosts = _names(certificate, x509.DNSName) + _names(certificate, x509.IPAddress)
    if host.lower().strip("[]") not in [each.lower() for each in hosts]:
        what = f"{who} is for the host {', '.join(hosts) or '(none)'}, not {host}"
        raise CertificateProblem(what, "use one of these names in the endpoint, or make a certificate for this one")
    return certificate


def _check_trust(certificate: x509.Certificate, shown: list[x509.Certificate], trusted: Path, who: str) -> None:
    anchors = list(_folder(trusted))
    issuers = [*anchors, *_folder(trusted.parent / "issuers"), *shown]
    one, path = certificate, [certificate]
    while one not in anchors:
        authority = next((each for each in issuers if each not in path and _issued(each, one)), None)
        if authority is None or len(path) > LONGEST_CHAIN:
            raise CertificateProblem(*_reject(certificate, trusted, who))
        one = authority
        path.append(one)
    for signed, authority in itertools.pairwise(path):
        _check_time(authority, f"the authority's certificate ({authority.subject.rfc4514_string()})", "renew it")
        for revoked in _revocations(trusted, trusted.parent / "issuers"):
            if revoked.issuer == authority.subject:
                _check_revoked(signed, authority, revoked, who)


def _check_revoked(
    signed: x509.Certificate, authority: x509.Certificate, revoked: x509.CertificateRevocationList, who: str
) -> None:
    key = authority.public_key()
    if not isinstance(key, rsa.RSAPublicKey) or not revoked.is_signature_valid(key):
        what = f"a revocation list of {authority.subject.rfc4514_string()} is not signed by it"
        raise CertificateProblem(what, "fetch it anew from the authority")
    if revoked.get_revoked_certificate_by_serial_number(signed.serial_number):
        raise CertificateProblem(f"{who} was revoked by its authority", "find out why before anything else")


def _reject(certificate: x509.Certificate, trusted: Path, who: str) -> tuple[str, str]:
    """Keep the unknown certificate for an engineer to look at; what to say."""
    data = certificate.public_bytes(serialization.Encoding.DER)
    common = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    plain = re.sub(r"[^A-Za-z0-9]+", "-", str(common[0].value) if common else "server").strip("-")[:40]
    # Named by its digest: the same certificate is kept once, and no name that a server chose leads elsewhere.
    path = trusted.parent / "rejected" / f"{plain}-{hashlib.sha256(data).hexdigest()[:16]}.der"
    what = f"{who} is not trusted"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            path.write_bytes(data)
    except OSError as exc:
        return f"{what}, and cannot be kept in {path}: {exc}", f"put it into {trusted}"
    print_ = certificate.fingerprint(hashes.SHA1()).hex(":")
    return what, f"compare its SHA-1 fingerprint {print_} with the server's; if it is right, move {path} to {trusted}"


def _check_time(certificate: x509.Certificate, who: str, hint: str) -> None:
    now = datetime.datetime.now(datetime.UTC)
    if now > certificate.not_valid_after_utc:
        raise CertificateProblem(f"{who} expired on {certificate.not_valid_after_utc:%Y-%m-%d %H:%M} UTC", hint)
    if now < certificate.not_valid_before_utc:
        raise CertificateProblem(
            f"{who} is valid only from {certificate.not_valid_before_utc:%Y-%m-%d %H:%M} UTC", hint
        )


def _issued(authority: x509.Certificate, certificate: x509.Certificate) -> bool:
    try:
        if not authority.extensions.get_extension_for_class(x509.BasicConstraints).value.ca:
            return False
        certificate.verify_directly_issued_by(authority)
    except (x509.ExtensionNotFound, ValueError, TypeError, InvalidSignature):
        return False
    return True


def _folder(folder: Path) -> Iterator[x509.Certificate]:
    """All certificates in a folder. One that cannot be read is a problem of its own, not one that is missing."""
    if not folder.is_dir():
        return
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in (".der", ".pem", ".crt", ".cer"):
            try:
                yield from _certificates(path.read_bytes())
            except (OSError, ValueError) as exc:
                raise CertificateProblem(f"{path} is no certificate: {exc}", "replace or remove it") from exc


def _revocations(*folders: Path) -> Iterator[x509.CertificateRevocationList]:
    for path in (path for folder in folders if folder.is_dir() for path in sorted(folder.glob("*.crl"))):
        try:
            data = path.read_bytes()
            yield x509.load_pem_x509_crl(data) if b"-----BEGIN" in data else x509.load_der_x509_crl(data)
        except (OSError, ValueError) as exc:
            raise CertificateProblem(f"{path} is no revocation list: {exc}", "replace or remove it") from exc


def _certificates(data: bytes) -> list[x509.Certificate]:
    """PEM certificates, or DER ones one after the other (OPC 10000-6, 6.2.6)."""
    if b"-----BEGIN" in data:
        return x509.load_pem_x509_certificates(data)
    found = []
    while data:
        size = 4 + int.from_bytes(data[2:4], "big")
        found.append(x509.load_der_x509_certificate(data[:size]))
        data = data[size:]
    return found


def _names(certificate: x509.Certificate, kind: type[x509.GeneralName]) -> list[str]:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, ValueError):
        return []
    return [str(each.value) for each in names if isinstance(each, kind)]


def _host_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)
