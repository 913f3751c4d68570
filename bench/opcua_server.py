"""An OPC UA server with 1,000 nodes, in a process of its own, for the measurement of clients.

Run by bench/opcua.py as ``python -m bench.opcua_server COUNT``. Prints ``port N``; every line of its input writes
another value to every node and is answered with ``done``. Listens on 127.0.0.1 only, and ends when its input does.
"""

from __future__ import annotations

import asyncio
import logging
import sys

from asyncua import Node, Server, ua

URI = "urn:linewright:bench"
KINDS = (
    ua.VariantType.Boolean, ua.VariantType.Boolean, ua.VariantType.Boolean,
    ua.VariantType.Int16, ua.VariantType.UInt16, ua.VariantType.Int32, ua.VariantType.UInt32,
    ua.VariantType.Float, ua.VariantType.Float, ua.VariantType.Double,
)  # fmt: skip
"""Of ten nodes: 3 BOOL, 4 integers, 3 reals."""
FOLDER = 100
"""Nodes in one folder; asyncua takes a time that grows with the square of it to add them."""


def value(index: int, turn: int) -> bool | int | float:
    """What node ``index`` holds after ``turn`` changes."""
    kind = KINDS[index % len(KINDS)]
    if kind is ua.VariantType.Boolean:
        return bool((index + turn) & 1)
    number = (index * 7 + turn * 13) % 1000
    return number + 0.5 if kind in (ua.VariantType.Float, ua.VariantType.Double) else number


async def build(server: Server, count: int) -> list[Node]:
    namespace = await server.register_namespace(URI)
    nodes: list[Node] = []
    for index in range(count):
        if index % FOLDER == 0:
            folder = await server.nodes.objects.add_folder(namespace, f"folder{index // FOLDER}")
        variant = ua.Variant(value(index, 0), KINDS[index % len(KINDS)])
        nodes.append(await folder.add_variable(ua.NodeId(f"n{index}", namespace), f"n{index}", variant))
    return nodes


async def serve(count: int) -> None:
    server = Server()
    await server.init()
    server.set_endpoint("opc.tcp://127.0.0.1:0")
    server.set_security_policy([ua.SecurityPolicyType.NoSecurity])
    nodes = await build(server, count)
    loop, lines = asyncio.get_running_loop(), asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    async with server:
        print("port", server.bserver._server.sockets[0].getsockname()[1], flush=True)
        turn = 0
        while await lines.readline():
            turn += 1
            for index, node in enumerate(nodes):
                variant = ua.Variant(value(index, turn), KINDS[index % len(KINDS)])
                await server.write_attribute_value(node.nodeid, ua.DataValue(variant))
            print("done", flush=True)


if __name__ == "__main__":
    logging.disable(logging.WARNING)
    asyncio.run(serve(int(sys.argv[1])))
