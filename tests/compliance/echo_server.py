"""Echo server: the hub's plane with an echo in the place of the native protocol, for other people's conformance suites.

Does: send every message back, text as text and binary as binary, at any path of ws://127.0.0.1:PORT; print one line
once it accepts; end at SIGTERM.
Does not: greet, check Origin or token, limit rates, fragments, pings or what waits unsent; messages have up to 16 MiB.
Called by: people (python tests/compliance/echo_server.py PORT [--deflate]; port 0: any), test_echo.
Never break: reactor, connection, frames, handshake and both ways in are the hub's own; only what a message does is not.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import socket
import time
from typing import Any, cast

import uvloop
from tornado.netutil import bind_sockets

from hub import handshake, httpd
from hub.acceptor import Acceptor
from hub.auth import Authenticator
from hub.entrance import Entrance, Visitor
from hub.origin import Origins
from hub.outbox import Limits
from hub.reactor import Reactor
from hub.sections import ClientSettings, HttpSettings
from hub.transports.websocket import Door, FramedConnection, WebSocketHandler, deflated_forms

NO_LIMIT = 1 << 62
NO_DEADLINE = 1e9
"""Thirty years after the machine was started."""
# Past the settings' own bounds, which are for a hub that serves strangers.
CLIENT = ClientSettings(message_bytes=16 << 20, pings_per_s=0).model_copy(
    update={"fragments": NO_LIMIT, "message_timeout_s": 3600.0}
)
OUTBOX = Limits(NO_LIMIT, NO_LIMIT, NO_LIMIT, NO_LIMIT)


class Anywhere(Origins):
    """Every Origin is in it."""

    def __contains__(self, origin: object) -> bool:
        return True


class EchoConnection(FramedConnection):
    """Sends back what comes."""

    __slots__ = ()

    @property
    def name(self) -> str:
        return str(self.fd)

    def on_message(self, opcode: int, message: bytes) -> None:
        self.put(self.wire.encode_message(message, opcode))

    def next_due(self) -> float:
        return NO_DEADLINE

    def on_gone(self) -> None:
        """Nothing is to be left."""


class EchoDoor(Door):
    """The way in, to an echo."""

    __slots__ = ()

    def new_connection(self, fd: int, visitor: Visitor) -> FramedConnection:
        return EchoConnection(fd, self.reactor, CLIENT, OUTBOX)


async def serve(port: int, compress: bool) -> None:
    """Serve until SIGTERM or SIGINT."""
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    reactor = Reactor(asyncio.get_running_loop(), CLIENT.close_timeout_s, NO_LIMIT)
    # Each message that gets shorter by it, so that suites meet compression from the first byte on.
    forms = deflated_forms(CLIENT.model_copy(update={"deflate": compress, "deflate_min_bytes": 0}))
    door = EchoDoor(reactor, cast(Any, None), Entrance(Anywhere(), Authenticator("", time.time), lambda: True), forms)
    # The fast way is for the hub's own path; all others come through Tornado.
    routes = [(path, WebSocketHandler, {"door": door}) for path in (handshake.PATH, "/.*")]
    server = httpd.Server(httpd.application(routes), HttpSettings())
    acceptor = Acceptor(reactor, server, door, HttpSettings().header_timeout_s, fast=True)
    listeners = bind_sockets(port, "127.0.0.1")
    for listener in listeners:
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    reactor.start()
    acceptor.listen(listeners)
    print(f"echo on ws://127.0.0.1:{listeners[0].getsockname()[1]}", flush=True)
    await stopping.wait()
    acceptor.stop()
    server.stop()
    reactor.stop()
    await server.close_all_connections()


def main() -> None:
    parser = argparse.ArgumentParser(description="Echo WebSocket messages on the hub's plane.")
    parser.add_argument("port", type=int)
    parser.add_argument("--deflate", action="store_true", help="agree to permessage-deflate where it is offered")
    arguments = parser.parse_args()
    uvloop.run(serve(arguments.port, arguments.deflate))


if __name__ == "__main__":
    main()
