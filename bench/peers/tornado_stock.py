"""Stock Tornado as its documentation has it: a set of WebSocketHandlers and `write_message` to each.

    python bench/peers/tornado_stock.py asyncio|uvloop

Called by: bench/rig/peers.py.  Fair to Tornado: messages come over a plain socket and not as POSTs, they are bytes
already, and neither compression, pings nor an access log are on.
"""

from __future__ import annotations

import asyncio
import logging
import sys

import lines
import uvloop
from tornado import httpserver, netutil, web, websocket


class Client(websocket.WebSocketHandler):
    def initialize(self, clients: set[Client]) -> None:
        self._clients = clients

    def open(self, *_: str) -> None:
        self.set_nodelay(True)
        self._clients.add(self)

    def on_message(self, message: str | bytes) -> None:
        pass

    def on_close(self) -> None:
        self._clients.discard(self)


async def main() -> None:
    logging.getLogger("tornado.access").setLevel(logging.WARNING)
    clients: set[Client] = set()

    def broadcast(line: bytes) -> None:
        for client in clients:
            client.write_message(line)

    sockets = netutil.bind_sockets(0, "127.0.0.1", backlog=4096)
    server = httpserver.HTTPServer(web.Application([("/", Client, {"clients": clients})]))
    server.add_sockets(sockets)
    await lines.serve(sockets[0].getsockname()[1], broadcast)


if __name__ == "__main__":
    if sys.argv[1:] == ["uvloop"]:
        uvloop.run(main())
    else:
        asyncio.run(main())
