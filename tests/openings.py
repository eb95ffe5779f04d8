"""How a client begins on each wire, as the bytes of its first request: for what holds on all wires alike."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable

from tests.emulated import http, opening, read_head

CONNECT = b'{"id":1,"connect":{}}'
UPGRADE = {
    "Connection": "Upgrade",
    "Upgrade": "websocket",
    "Sec_WebSocket_Version": "13",
    "Sec_WebSocket_Key": "dGhlIHNhbXBsZSBub25jZQ==",
}


def websocket(path: str) -> Callable[..., bytes]:
    return lambda **headers: http("GET", path, **{**UPGRADE, **headers})


OPENINGS: dict[str, Callable[..., bytes]] = {
    "websocket": websocket("/connection/websocket"),
    "http_stream": lambda **headers: opening("lines", CONNECT, **headers),
    "emulated sse": lambda **headers: opening("events by GET", CONNECT, **headers),
    "sse": lambda **headers: http("GET", "/sse?channel=open:a", Accept="text/event-stream", **headers),
    "poll": lambda **headers: http("GET", "/poll?channel=open:a&wait=0", **headers),
    "publish": lambda **headers: http("POST", "/publish", b'{"channel":"open:a","data":1}', **headers),
    "socket.io polling": lambda **headers: http("GET", "/socket.io/?EIO=4&transport=polling", **headers),
    "socket.io websocket": websocket("/socket.io/?EIO=4&transport=websocket"),
}
"""By wire; called with more headers. The channel and the rules are those of tests.plane."""
GOOD = frozenset({101, 200, 204})
HELD = tuple(wire for wire in OPENINGS if wire not in ("poll", "publish", "socket.io polling"))
"""Those whose connection stays."""


class Opened:
    """An answer, with its connection still open."""

    def __init__(self, status: int, headers: dict[str, str], streams: tuple) -> None:
        self.status = status
        self.headers = headers
        self.reader, self.writer = streams

    def close(self) -> None:
        self.writer.close()


async def begin(port: int, request: bytes, trust: ssl.SSLContext | None = None) -> Opened:
    """Send it on a connection of its own. trust: over TLS."""
    streams = await asyncio.open_connection("127.0.0.1", port, ssl=trust)
    streams[1].write(request)
    return Opened(*await read_head(streams[0]), streams)


async def status_of(port: int, request: bytes, trust: ssl.SSLContext | None = None) -> int:
    """The same for who wants to know no more."""
    opened = await begin(port, request, trust)
    opened.close()
    return opened.status
