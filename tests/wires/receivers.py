"""Receivers: the room's messages on the hub's other wires, so that one publication is seen to reach all of them.

Does: hear a room over the native WebSocket, an event stream, or long polls; each poll on a connection of its own.
Does not: emit, or come back: who is cut off says so.
Called by: load, in place of engine.Client.
Never break: a receiver hears from the moment at which `open` has returned, and leaves out nothing that it was sent.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import orjson
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import WebSocketException

from tests.eventsource import Event, Parser

from .engine import OnEvent, OnLost, ProtocolFault, Server
from .wires_app import ROOM

POLL_WAIT_S = 20


class Receiver:
    """One that listens. As engine.Client has it."""

    def __init__(self, server: Server, wire: str, on_event: OnEvent, on_lost: OnLost) -> None:
        self._server = server
        self._on_event = on_event
        self._on_lost = on_lost
        self._life: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Be subscribed. Raises ProtocolFault, WebSocketException, OSError, TimeoutError."""
        raise NotImplementedError

    async def _listen(self) -> None:
        """Hear whatever comes, until cancelled."""
        raise NotImplementedError

    async def close(self) -> None:
        """Hear no more."""
        if self._life is not None:
            self._life.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._life

    def _begin(self) -> None:
        self._life = asyncio.create_task(self._live())

    async def _live(self) -> None:
        try:
            await self._listen()
        except (ProtocolFault, WebSocketException, OSError, TimeoutError) as error:
            self._on_lost(error)

    def _hear(self, data: Any) -> None:
        self._on_event("publication", [{"data": data}])


class Native(Receiver):
    """The native protocol on a WebSocket."""

    _socket: ClientConnection

    async def open(self) -> None:
        uri = f"ws://{self._server.host}:{self._server.port}/connection/websocket"
        self._socket = await connect(uri, proxy=None, compression=None)
        for number, command in enumerate(({"connect": {}}, {"subscribe": {"channel": ROOM}}), 1):
            await self._socket.send(orjson.dumps({"id": number, **command}).decode())
            if "error" in (reply := orjson.loads(await self._socket.recv())):
                raise ProtocolFault(f"{reply}")
        self._begin()

    async def _listen(self) -> None:
        while True:
            for line in str(await self._socket.recv()).split("\n"):
                message = orjson.loads(line)
                if not message:
                    await self._socket.send("{}")
                elif pub := message.get("push", {}).get("pub"):
                    self._hear(pub["data"])
                else:
                    raise ProtocolFault(f"out of place: {line!r}")

    async def close(self) -> None:
        await super().close()
        await self._socket.close()


class EventStream(Receiver):
    """Plain SSE."""

    _reader: asyncio.StreamReader
    _writer: asyncio.StreamWriter

    async def open(self) -> None:
        self._reader, self._writer = await asyncio.open_connection(sock=await self._server.dial())
        self._writer.write(f"GET /sse?channel={ROOM} HTTP/1.1\r\nHost: {self._server.host}\r\n\r\n".encode())
        head = await self._reader.readuntil(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 200 "):
            raise ProtocolFault(f"{head!r}")
        self._events = self._parsed(Parser())
        if (first := await anext(self._events)).type != "open":
            raise ProtocolFault(f"{first}")
        self._begin()

    async def _parsed(self, parser: Parser) -> AsyncIterator[Event]:
        while data := await self._reader.read(65_536):
            for event in parser.feed(data):
                yield event
        raise ProtocolFault("the stream ended")

    async def _listen(self) -> None:
        async for event in self._events:
            if event.type == "message":
                self._hear(event.json["pub"]["data"])
            elif event.type != "cursor":
                raise ProtocolFault(f"{event}")

    async def close(self) -> None:
        await super().close()
        self._writer.close()


class LongPoll(Receiver):
    """Plain long polling: each poll on a connection of its own, on whatever worker."""

    _cursor = ""

    async def open(self) -> None:
        await self._ask(0)
        self._begin()

    async def _ask(self, wait_s: int) -> None:
        since = f"&since={self._cursor}" if self._cursor else ""
        answer = await self._server.exchange("GET", f"/poll?channel={ROOM}&wait={wait_s}{since}")
        self._cursor = answer.headers["hub-cursor"]
        found = orjson.loads(answer.body or b"{}")
        if "lost" in found:
            raise ProtocolFault(f"{found}")
        for message in found.get("messages", ()):
            self._hear(message["pub"]["data"])

    async def _listen(self) -> None:
        while True:
            await self._ask(POLL_WAIT_S)


RECEIVERS: dict[str, type[Receiver]] = {"native": Native, "sse": EventStream, "poll": LongPoll}
