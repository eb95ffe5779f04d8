"""PyPI websockets and its own `broadcast`, which exists for this work.

Called by: bench/rig/peers.py.  At its fastest: uvloop, no compression, no pings, no log.
"""

from __future__ import annotations

import logging

import lines
import uvloop
from websockets.asyncio.server import ServerConnection, broadcast, serve


async def main() -> None:
    logging.getLogger("websockets").setLevel(logging.CRITICAL)
    clients: set[ServerConnection] = set()

    async def keep(client: ServerConnection) -> None:
        clients.add(client)
        try:
            await client.wait_closed()
        finally:
            clients.discard(client)

    async with serve(keep, "127.0.0.1", 0, compression=None, ping_interval=None, backlog=4096) as server:
        port = next(iter(server.sockets)).getsockname()[1]
        await lines.serve(port, lambda line: broadcast(clients, line.decode()))


if __name__ == "__main__":
    uvloop.run(main())
