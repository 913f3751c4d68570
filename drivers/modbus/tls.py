"""Modbus/TCP Security (MB-TCP-Security V21): the TLS side. The MBAP frames inside are those of plain Modbus TCP."""

from __future__ import annotations

import ssl

from drivers.modbus.wire import OpenFailed
from drivers.options import TlsOptions

UNSURE = (
    "check power, network, address, that the port (802) speaks TLS 1.2 or newer, and that the device knows the issuer"
    " of tls.certificate"
)
"""What to look at when the other end says nothing."""


def context(options: TlsOptions) -> ssl.SSLContext:
    """A client context: TLS 1.2 or newer, our certificate, the device's checked for issuer and name.

    The files are read at every call, so that renewed ones are used from the next connection on. Raises
    :class:`OpenFailed` when one of them cannot be used; the text says which and why.
    """
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # checks the name, requires a certificate
    made.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        made.load_verify_locations(cafile=options.ca)
    except (OSError, ssl.SSLError) as exc:
        raise OpenFailed(f"tls.ca {options.ca}: {_reason(exc)}", "it must hold PEM certificates") from exc
    try:
        # Without a password given, OpenSSL would ask for one on the terminal, and wait.
        made.load_cert_chain(options.certificate, options.key, password="")
    except (OSError, ssl.SSLError, ValueError) as exc:
        raise OpenFailed(
            f"tls.certificate {options.certificate} with tls.key {options.key}: {_reason(exc)}",
            "both must be PEM files that belong together, the key without a password and readable for us alone",
        ) from exc
    return made


def explain(exc: ssl.SSLError) -> tuple[str, str]:
    """What went wrong between us and the device, and what to do about it."""
    if isinstance(exc, ssl.SSLCertVerificationError):
        what = f"the device's certificate is refused: {exc.verify_message}"
        if "match" in exc.verify_message:
            return what, "check host, or give the name in the certificate as tls.server_name"
        if "expired" in exc.verify_message or "not yet valid" in exc.verify_message:
            return what, "renew the device's certificate, and check the clocks of both"
        return what, "put the certificate of its issuer (or its own, when self-signed) into tls.ca"
    reason = _reason(exc)
    if "ALERT" in reason.upper():
        return (
            f"the device refused us: {reason}",
            "make the issuer of tls.certificate known to the device, check its date and role, and for TLS 1.2 there",
        )
    return f"TLS: {reason}", "check that the port speaks Modbus/TCP Security (802) with TLS 1.2 or newer"


def _reason(exc: Exception) -> str:
    if isinstance(exc, ssl.SSLError) and exc.reason:
        return exc.reason.lower().replace("_", " ")
    return (exc.strerror or str(exc)) if isinstance(exc, OSError) else str(exc)
