"""Which server of a redundant set to use (OPC 10000-4, 6.6.2): one at a time, the healthy one."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from drivers.opcua.channel import ChannelLost, ServiceFault
from drivers.opcua.pki import CertificateProblem
from drivers.opcua.session import HEALTHY, Session
from drivers.options import OpcUaOptions


class Servers:
    """The endpoints in order, the one in use, and whether the next connection should go to the next one."""

    def __init__(self, options: OpcUaOptions) -> None:
        self._urls = (options.endpoint, *options.backups)
        self._at = 0
        self._go_on = False

    @property
    def url(self) -> str:
        """The endpoint in use, or tried last."""
        return self._urls[self._at]

    def lost(self) -> None:
        """The link to this server failed: the next connection goes to the next one."""
        self._go_on = True

    async def connect(
        self, open_: Callable[[str], Awaitable[Session]], bye: Callable[[Session], Awaitable[None]], timeout_s: float
    ) -> Session:
        """A session with the next server, or with the healthiest where that one is not healthy.

        One that cannot be reached raises, as ``open_`` does; the caller reports it lost, and the next connection tries
        the next. Before a session is opened the other is closed: never are there two.
        """
        if self._go_on:
            self._at, self._go_on = (self._at + 1) % len(self._urls), False
        session = await open_(self.url)
        first, levels = self._at, {self._at: session.level}
        share_s = timeout_s / (len(self._urls) + 1)
        for step in range(1, len(self._urls)):
            if session.level >= HEALTHY:
                return session
            await bye(session)
            self._at = (first + step) % len(self._urls)
            try:
                async with asyncio.timeout(share_s):
                    session = await open_(self.url)
            except (ChannelLost, ServiceFault, CertificateProblem, OSError):
                continue
            levels[self._at] = session.level
        best = max(levels, key=lambda at: (levels[at], at == self._at))
        if best != self._at or len(levels) < len(self._urls):
            await bye(session)
            self._at = best
            session = await open_(self.url)
        return session
