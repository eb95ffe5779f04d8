"""A Socket.IO client in raw requests, for tests of polling and of the way to a WebSocket."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import orjson
from tornado.httpclient import AsyncHTTPClient, HTTPRequest, HTTPResponse
from websockets.asyncio.client import ClientConnection, connect

from tests.plane import Plane

QUERY = "EIO=4&transport=polling"


async def request(
    hub: Plane, query: str, method: str = "GET", body: bytes | None = None, path: str = "/socket.io/", **options
) -> HTTPResponse:
    """One request on a connection of its own, whatever its answer."""
    client = AsyncHTTPClient(force_instance=True, defaults={"request_timeout": 5, "connect_timeout": 5})
    url = f"http://127.0.0.1:{hub.port}{path}?{query}"
    one = HTTPRequest(url, method, body=body, allow_nonstandard_methods=True, **options)
    try:
        return await client.fetch(one, raise_error=False)
    finally:
        client.close()


def fault(response: HTTPResponse) -> tuple[int, int]:
    """Status and Engine.IO code of a refusal."""
    return response.code, orjson.loads(response.body)["code"]


class Polls:
    """One session that polls."""

    def __init__(self, hub: Plane, sid: str) -> None:
        self.hub = hub
        self.sid = sid
        self.query = f"{QUERY}&sid={sid}"

    async def get(self, **options) -> HTTPResponse:
        return await request(self.hub, self.query, **options)

    async def packets(self) -> list[bytes]:
        response = await self.get()
        assert response.code == 200, response.body
        return response.body.split(b"\x1e")

    async def post(self, *packets: bytes, **options) -> HTTPResponse:
        return await request(self.hub, self.query, "POST", b"\x1e".join(packets), **options)

    async def gone(self) -> bool:
        return fault(await self.get()) == (400, 1)


async def polls(hub: Plane, **options) -> Polls:
    """A session, in no namespace yet."""
    response = await request(hub, QUERY, **options)
    assert response.code == 200, response.body
    assert response.body[:1] == b"0"
    return Polls(hub, orjson.loads(response.body[1:])["sid"])


async def joined(hub: Plane) -> Polls:
    """A session in the namespace `/`."""
    session = await polls(hub)
    assert (await session.post(b"40")).body == b"ok"
    (packet,) = await session.packets()
    assert packet.startswith(b'40{"sid":"')
    return session


@contextlib.asynccontextmanager
async def websocket(hub: Plane, sid: str = "", **options) -> AsyncIterator[ClientConnection]:
    """A WebSocket of its own session, or of one that polls."""
    url = f"ws://127.0.0.1:{hub.port}/socket.io/?EIO=4&transport=websocket" + (f"&sid={sid}" if sid else "")
    async with connect(url, proxy=None, compression=None, **options) as socket:
        yield socket


@contextlib.asynccontextmanager
async def member(hub: Plane, namespace: str = "", auth: dict | None = None) -> AsyncIterator[ClientConnection]:
    """A WebSocket session that has joined a namespace: '' is `/`, '/admin,' another one."""
    async with websocket(hub) as socket:
        assert (await receive(socket)).startswith("0{")
        await socket.send(f"40{namespace}" + (orjson.dumps(auth).decode() if auth is not None else ""))
        assert (await receive(socket)).startswith(f'40{namespace}{{"sid":"')
        yield socket


async def receive(socket: ClientConnection) -> str | bytes:
    """The next message."""
    return await asyncio.wait_for(socket.recv(), 5)
