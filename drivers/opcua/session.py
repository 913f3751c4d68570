"""A session with one OPC UA server: secure channel, identity, state of the server (OPC 10000-4, 5.6 and 5.7)."""

from __future__ import annotations

import asyncio
import ipaddress
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar
from urllib.parse import urlsplit

from asyncua import ua
from asyncua.common.utils import create_nonce
from asyncua.crypto import security_policies as _policies
from asyncua.ua.attribute_ids import AttributeIds
from asyncua.ua.object_ids import ObjectIds

from drivers.opcua.channel import Channel, ChannelLost, ServiceFault, results_at
from drivers.opcua.datum import Datum
from drivers.opcua.meter import Meter
from drivers.opcua.pki import CertificateProblem, Identity, check_server, load_identity, own_identity
from drivers.opcua.tokens import identity_token
from drivers.opcua.wire import read_data, read_parameters
from drivers.options import OpcUaOptions, UaSecurity

T = TypeVar("T")
security_policies: Any = _policies  # has no types
NO_POLICY = security_policies.SecurityPolicyNone.URI
POLICIES: dict[str, Any] = {
    "Basic256Sha256": security_policies.SecurityPolicyBasic256Sha256,
    "Aes128_Sha256_RsaOaep": security_policies.SecurityPolicyAes128Sha256RsaOaep,
    "Aes256_Sha256_RsaPss": security_policies.SecurityPolicyAes256Sha256RsaPss,
}
MODES = {"sign": ua.MessageSecurityMode.Sign, "sign_and_encrypt": ua.MessageSecurityMode.SignAndEncrypt}
WORKING = (ua.ServerState.Running, ua.ServerState.CommunicationFault, ua.ServerState.Unknown)
"""States in which values count: with a communication fault each value has its own status. In test state the outputs
are disconnected from the machine, so it is not among these.
"""
MAINTENANCE, NO_DATA, HEALTHY = 0, 1, 200
"""Service levels (OPC 10000-4, 6.6.2.4.2): 0 and 1 are of no use, 200 and above is a healthy server."""


class Session:
    """One session on one channel. Make it, ``open`` it, ``drop`` it at any time; it is never used again after that."""

    def __init__(
        self,
        name: str,
        url: str,
        options: OpcUaOptions,
        meter: Meter,
        monotonic_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._name, self.url, self._options = name, url, options
        self._meter, self._now = meter, monotonic_ns
        self._host, self._port = host_and_port(url)
        self._renew_at_ns = 0
        self._channel: Channel | None = None
        self._over: ChannelLost | None = None
        self.timeout_s = 0.0
        """How long the server keeps the session when it hears nothing."""
        self.level = 255
        """The server's service level as it was last read; 255 when it tells none."""

    @property
    def channel(self) -> Channel:
        """The secure channel. Raises :class:`ChannelLost` when there is none."""
        if self._channel is None:
            raise self._over or ChannelLost("not connected")
        return self._channel

    async def open(self) -> None:
        """Find the endpoint, open the channel, create and activate the session.

        Raises :class:`ChannelLost`, :class:`ServiceFault`, :class:`CertificateProblem` or ``OSError``.
        """
        security, endpoints, own = self._options.security, [], None
        policy: Any = security_policies.SecurityPolicyNone()
        server = b""
        if security is not None:
            own = await asyncio.to_thread(own_identity, security.certificate, security.key)
            endpoints = await self._endpoints()
            policy, server = await self._policy(security, own, endpoints)
        channel = await self._connect(policy)
        self._renew_later(channel)
        created = await self._create(channel, policy, own, server)
        if security is not None:
            self._check_not_downgraded(endpoints, created)
        await self._activate(channel, policy, created)

    async def request(self, request: Any, answer: type[T]) -> T:
        """One service call. Raises as :meth:`Channel.call`."""
        return await self.channel.request(request, answer)

    async def read(self, node_ids: Sequence[ua.NodeId], attribute: AttributeIds = AttributeIds.Value) -> list[Any]:
        """One attribute of these nodes, as asyncua's DataValues (for what is no scalar)."""
        request = ua.ReadRequest()
        request.Parameters.TimestampsToReturn = ua.TimestampsToReturn.Neither
        for node_id in node_ids:
            item = ua.ReadValueId()
            item.NodeId, item.AttributeId = node_id, attribute
            request.Parameters.NodesToRead.append(item)
        results = (await self.request(request, ua.ReadResponse)).Results
        if len(results) != len(node_ids):
            raise ChannelLost(f"{len(results)} values for {len(node_ids)} nodes", "a server fault")
        return list(results)

    async def read_scalars(self, node_ids: Sequence[ua.NodeId]) -> list[Datum]:
        """The values of these nodes."""
        body = await self.channel.call("Read", read_parameters(node_ids))
        return read_data(body, results_at(body), len(node_ids))

    async def check_state(self) -> None:
        """Read ServerState and ServiceLevel. Raises :class:`ChannelLost` in a state in which values do not count.

        A server that does not tell them is taken to run.
        """
        nodes = [ua.NodeId(ua.Int32(i)) for i in (ObjectIds.Server_ServerStatus_State, ObjectIds.Server_ServiceLevel)]
        state, level = await self.read_scalars(nodes)
        if not state.status >> 30 and isinstance(state.value, int) and state.value not in WORKING:
            names = [each.name for each in ua.ServerState if each == state.value]
            what = f"the server is in state {names[0] if names else state.value}"
            raise ChannelLost(what, "start its program, or see its log")
        if not level.status >> 30 and isinstance(level.value, int):
            self.level = level.value
        if self._options.backups and self.level <= NO_DATA:
            raise ChannelLost(f"service level {self.level}: the server is in maintenance or has no data", "see its log")

    async def renew_if_due(self) -> None:
        """A new security token when three quarters of the old one's life are over."""
        if self._now() >= self._renew_at_ns:
            channel = self.channel
            await channel.renew()
            self._renew_later(channel)

    async def close(self) -> None:
        """Take leave of the server."""
        channel = self.channel
        request = ua.CloseSessionRequest()
        request.DeleteSubscriptions = True
        await channel.request(request, ua.CloseSessionResponse)
        channel.goodbye()

    def drop(self, why: ChannelLost, *, polite: bool = False) -> None:
        """Let go of the connection at once, with a reset. Safe at any time.

        ``polite`` is for a sound connection that is of no use: the server is told, without waiting for it, so that
        it does not keep the session until that times out. PLCs have few.
        """
        self._over = self._over or why
        channel, self._channel = self._channel, None
        if channel is not None:
            if polite:
                channel.goodbye(session=True)
            channel.drop(why)

    # --- the steps of opening

    async def _connect(self, policy: Any) -> Channel:
        if self._over is not None:
            raise self._over
        channel = self._channel = Channel(policy, self._meter, self._now)
        await channel.open(self._host, self._port, self.url, int(self._options.channel_lifetime_s * 1000))
        return channel

    def _renew_later(self, channel: Channel) -> None:
        self._renew_at_ns = self._now() + int(channel.lifetime_ms * 0.75e6)

    async def _endpoints(self) -> list[Any]:
        """What the server offers, asked on a channel of its own without security."""
        channel = await self._connect(security_policies.SecurityPolicyNone())
        request = ua.GetEndpointsRequest()
        request.Parameters.EndpointUrl = self.url
        endpoints = (await channel.request(request, ua.GetEndpointsResponse)).Endpoints
        channel.goodbye()
        return list(endpoints)

    async def _policy(self, security: UaSecurity, own: Identity, endpoints: Sequence[Any]) -> tuple[Any, bytes]:
        """The policy for the channel, and the server's certificate, which is trusted from here on."""
        kind, mode = POLICIES[security.policy], MODES[security.mode]
        fitting = [each for each in endpoints if (each.SecurityPolicyUri, each.SecurityMode) == (kind.URI, mode)]
        if not fitting:
            offered = {f"{e.SecurityPolicyUri.rpartition('#')[2]} {e.SecurityMode.name}" for e in endpoints}
            what = (
                f"the server offers no {security.policy} {security.mode}, but {', '.join(sorted(offered)) or 'nothing'}"
            )
            raise ChannelLost(what, "configure the server, or the policy and mode of the PLC")
        endpoint = max(fitting, key=lambda each: each.SecurityLevel)
        chain, uri = endpoint.ServerCertificate or b"", endpoint.Server.ApplicationUri
        certificate = await asyncio.to_thread(check_server, chain, security.trusted, self._host, uri)
        policy = kind(certificate, own.certificate, own.key, mode)
        return policy, policy.peer_certificate

    async def _create(self, channel: Channel, policy: Any, own: Identity | None, server: bytes) -> Any:
        request = ua.CreateSessionRequest()
        parameters = request.Parameters
        description = ua.ApplicationDescription()
        description.ApplicationUri = own.uri if own else "urn:linewright:controller"
        description.ProductUri = "urn:linewright"
        description.ApplicationName = ua.LocalizedText(f"Linewright {self._name}")
        description.ApplicationType = ua.ApplicationType.Client
        nonce = create_nonce(32)
        parameters.ClientDescription, parameters.ClientNonce = description, nonce
        parameters.ClientCertificate = own.der if own else None
        parameters.EndpointUrl, parameters.SessionName = self.url, f"Linewright {self._name}"
        parameters.RequestedSessionTimeout = self._options.session_timeout_s * 1000
        created = (await channel.request(request, ua.CreateSessionResponse)).Parameters
        if own is not None:
            shown = created.ServerCertificate or b""
            if shown[: len(server)] != server:
                raise ChannelLost("the session's certificate is not the channel's", "somebody may be in between")
            try:
                policy.asymmetric_cryptography.verify(own.der + nonce, created.ServerSignature.Signature)
            except Exception as exc:
                what = f"the server does not prove that it has its certificate's key ({exc!r})"
                raise ChannelLost(what, "somebody may be in between") from exc
            if len(created.ServerNonce or b"") < 32:
                raise ChannelLost("the server's nonce is shorter than 32 bytes", "a server fault")
        self.timeout_s = created.RevisedSessionTimeout / 1000
        channel.token = ua.ua_binary.nodeid_to_binary(created.AuthenticationToken)
        return created

    def _check_not_downgraded(self, offered: Sequence[Any], created: Any) -> None:
        """What was offered without security must be what the secured session confirms (OPC 10000-4, 5.7.2.2)."""
        if _essence(offered) != _essence(created.ServerEndpoints or []):
            what = "the endpoints that were offered differ from those the session confirms"
            raise ChannelLost(what, "somebody may be in between, or the server was just reconfigured: try again")

    async def _activate(self, channel: Channel, policy: Any, created: Any) -> None:
        options, secured = self._options, policy.URI != NO_POLICY
        endpoint = next(
            (
                each
                for each in created.ServerEndpoints or []
                if (each.SecurityPolicyUri, each.SecurityMode) == (policy.URI, policy.Mode)
            ),
            None,
        )
        offered = list(endpoint.UserIdentityTokens or []) if endpoint is not None else []
        certificate = policy.peer_certificate if secured else created.ServerCertificate
        user = None
        if options.user_certificate is not None and options.user_key is not None:
            user = await asyncio.to_thread(load_identity, options.user_certificate, options.user_key)
        request = ua.ActivateSessionRequest()
        parameters = request.Parameters
        parameters.LocaleIds = ["en"]
        nonce = created.ServerNonce or b""
        if secured:
            parameters.ClientSignature.Algorithm = policy.AsymmetricSignatureURI
            parameters.ClientSignature.Signature = policy.asymmetric_cryptography.signature(certificate + nonce)
        private = policy.Mode == ua.MessageSecurityMode.SignAndEncrypt or _is_loopback(self._host)
        parameters.UserIdentityToken, parameters.UserTokenSignature = identity_token(
            options, user, offered, policy.URI, certificate or b"", nonce, private
        )
        try:
            await channel.request(request, ua.ActivateSessionResponse)
        except ServiceFault as exc:
            raise ChannelLost(
                f"log in: {exc}", "check user, password and the server's list of trusted clients"
            ) from exc


def host_and_port(url: str) -> tuple[str, int]:
    """Where ``opc.tcp://host:port/…`` leads; 4840 is the default port. Raises ``ValueError``."""
    address = urlsplit(url)
    if address.scheme != "opc.tcp" or not address.hostname:
        raise ValueError(f"{url!r} is no endpoint (opc.tcp://host:port)")
    return address.hostname, address.port or 4840


def _essence(endpoints: Sequence[Any]) -> set[tuple[object, ...]]:
    """What servers are to repeat of their endpoints; the certificate is checked by itself."""
    return {
        (
            each.SecurityMode, each.SecurityPolicyUri, each.SecurityLevel,
            tuple((t.PolicyId, t.TokenType, t.SecurityPolicyUri) for t in each.UserIdentityTokens or []),
        )
        for each in endpoints
    }  # fmt: skip


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


__all__ = ["HEALTHY", "CertificateProblem", "Session"]
