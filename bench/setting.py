"""Where measurements take place: the programs, a folder for files, and which core is whose."""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from bench import images
from bench.peers.build import Peer, compile_peer
from drivers.port import Tag

HOST = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class Setting:
    """Made once; all clients share a core, and all servers another one if there is one."""

    server: Path
    """The C server that is never the bottleneck."""
    client: Path
    """The libmodbus client."""
    folder: Path
    quick: bool
    client_core: int
    server_core: int | None

    @property
    def rounds(self) -> int:
        """How many rounds a comparison has."""
        return 3 if self.quick else 7

    @asynccontextmanager
    async def device(self, tags: list[Tag]) -> AsyncIterator[Peer]:
        """A C server that holds these tags."""
        path = self.folder / f"images-{len(tags)}"
        images.write(path, tags)
        with Peer([self.server, path], core=self.server_core) as peer:
            yield peer


def prepare(folder: Path, quick: bool) -> Setting:
    """Compile the programs, and keep this process to its core.

    A device is another machine: while it works the client sleeps. On one core the two would run in turns without
    ever waking each other, which costs a third of the time; left to itself the kernel does now one, now the other.

    Raises :class:`~bench.peers.build.PeerMissing`.
    """
    server, client = compile_peer("mbap_server", folder), compile_peer("modbus_client", folder)
    available = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, available[:1])
    return Setting(server, client, folder, quick, available[0], available[-1] if len(available) > 1 else None)


async def cost(work: Callable[[], Awaitable[object]], count: int) -> float:
    """Processor time of one of ``count`` turns of ``work``, s."""
    start = time.process_time()
    for _ in range(count):
        await work()
    return (time.process_time() - start) / count
