"""Who we are to the server: nobody, a user with a password, or one with a certificate (OPC 10000-4, 7.40)."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

from asyncua import ua
from asyncua.crypto import security_policies as _policies

from drivers.opcua.channel import ChannelLost
from drivers.opcua.pki import Identity, server_certificate
from drivers.options import OpcUaOptions

security_policies: Any = _policies  # has no types
STRONG = {
    each.URI
    for each in (
        security_policies.SecurityPolicyBasic256Sha256,
        security_policies.SecurityPolicyAes128Sha256RsaOaep,
        security_policies.SecurityPolicyAes256Sha256RsaPss,
    )
}
"""Policies a secret is entrusted to."""
CONFIGURE = "configure the server's users, or those of the PLC"


def identity_token(
    options: OpcUaOptions,
    user: Identity | None,
    offered: Sequence[Any],
    channel_policy: str,
    certificate: bytes,
    nonce: bytes,
    private: bool,
) -> tuple[Any, Any]:
    """Token and its signature. ``offered`` are the endpoint's token policies; ``private`` says that nobody can
    listen: the channel is encrypted or does not leave this computer. Raises :class:`ChannelLost`.
    """
    signature = ua.SignatureData()
    if user is not None:
        policy = _policy(offered, ua.UserTokenType.Certificate, channel_policy, "users with a certificate")
        uri = policy.SecurityPolicyUri or channel_policy
        if uri not in STRONG:
            what = f"the server takes users with a certificate only under {uri.rpartition('#')[2]}"
            raise ChannelLost(what, CONFIGURE)
        proof = ua.X509IdentityToken()
        proof.PolicyId, proof.CertificateData = policy.PolicyId, user.der
        signed, algorithm = security_policies.sign_asymmetric(user.key, certificate + nonce, uri)
        signature.Signature, signature.Algorithm = signed, algorithm
        return proof, signature
    if options.user is not None:
        return _password(options, offered, channel_policy, certificate, nonce, private), signature
    token = ua.AnonymousIdentityToken()
    if offered:
        token.PolicyId = _policy(offered, ua.UserTokenType.Anonymous, channel_policy, "anonymous users").PolicyId
    return token, signature


def _password(
    options: OpcUaOptions, offered: Sequence[Any], channel_policy: str, certificate: bytes, nonce: bytes, private: bool
) -> Any:
    policy = _policy(offered, ua.UserTokenType.UserName, channel_policy, "users with a password")
    uri = policy.SecurityPolicyUri or channel_policy
    token = ua.UserNameIdentityToken()
    token.PolicyId, token.UserName = policy.PolicyId, options.user
    password = (options.password or "").encode()
    if uri in STRONG and certificate:
        secret = struct.pack("<I", len(password) + len(nonce)) + password + nonce
        try:
            key = server_certificate(certificate).public_key()
            token.Password, token.EncryptionAlgorithm = security_policies.encrypt_asymmetric(key, secret, uri)
        except ValueError as exc:
            raise ChannelLost(f"the password cannot be encrypted: {exc}", "use a shorter one") from exc
    elif private and uri not in STRONG:
        token.Password, token.EncryptionAlgorithm = password, None
    else:
        what = "the password would cross the network in clear, and is not sent"
        hint = "give the PLC a `security` section, or have the server take passwords under Basic256Sha256"
        raise ChannelLost(what, hint)
    return token


def _policy(offered: Sequence[Any], kind: ua.UserTokenType, channel_policy: str, who: str) -> Any:
    """The token policy to use: one that encrypts where there is one."""
    fitting = [each for each in offered if each.TokenType == kind]
    if not fitting:
        raise ChannelLost(f"the server takes no {who} at this endpoint", CONFIGURE)
    return max(fitting, key=lambda each: (each.SecurityPolicyUri or channel_policy) in STRONG)
