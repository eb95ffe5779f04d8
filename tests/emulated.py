"""A client of the native protocol over an HTTP stream: bare sockets, and a TCP connection for each request."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from urllib.parse import quote, urlsplit

import orjson

WIRES = ("lines", "events", "events by GET")


async def request(url: str, text: bytes) -> tuple[int, dict[str, str], bytes]:
    """Send one request over a new connection and read the answer to its end: status, headers in lower case, body."""
    reader, writer = await asyncio.open_connection("127.0.0.1", urlsplit(url).port)
    try:
        writer.write(text)
        status, headers = await read_head(reader)
        size = headers.get("content-length")
        body = await asyncio.wait_for(reader.readexactly(int(size)) if size else reader.read(), 10)
        return status, headers, body
    finally:
        writer.close()


async def read_head(reader: asyncio.StreamReader) -> tuple[int, dict[str, str]]:
    head = (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)).decode()
    first, *lines = head.strip().split("\r\n")
    return int(first.split()[1]), {
        name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)
    }


def http(method: str, target: str, body: bytes = b"", **headers: str | None) -> bytes:
    """A request; headers by name with _ for -, those with None are left out."""
    fields: dict[str, str | None] = {"Host": "127.0.0.1", "Connection": "close"}
    if body:
        fields |= {"Content-Type": "application/json", "Content-Length": str(len(body))}
    fields |= {name.replace("_", "-"): value for name, value in headers.items()}
    lines = [f"{name}: {value}" for name, value in fields.items() if value is not None]
    return "\r\n".join([f"{method} {target} HTTP/1.1", *lines, "", ""]).encode() + body


def opening(wire: str, commands: bytes, **headers: str | None) -> bytes:
    """The request that begins a stream."""
    if wire == "lines":
        return http("POST", "/connection/http_stream", commands, **headers)
    if wire == "events":
        return http("POST", "/connection/sse", commands, **headers)
    return http("GET", f"/connection/sse?cf_connect={quote(commands)}", **headers)


class StreamClient:
    """One client. Its replies and pushes come in the stream, its commands go by POST /emulation."""

    def __init__(self, url: str, wire: str) -> None:
        self.url = url
        self.wire = wire
        self.headers: dict[str, str] = {}
        self.session = self.node = self.id = ""
        self._next_id = 0
        self._messages: list[dict] = []

    async def open(self, commands: bytes, **headers: str | None) -> None:
        self.reader, self.writer = await asyncio.open_connection("127.0.0.1", urlsplit(self.url).port)
        self.writer.write(opening(self.wire, commands, **headers))
        self.status, self.headers = await read_head(self.reader)

    async def connect(self, token: str | None = None, **headers: str | None) -> None:
        self._next_id = 1
        await self.open(orjson.dumps({"id": 1, "connect": {} if token is None else {"token": token}}), **headers)
        reply = await self.first(lambda message: message.get("id") == 1)
        assert "connect" in reply, reply
        self.id, self.session, self.node = (reply["connect"][name] for name in ("client", "session", "node"))

    async def message(self) -> dict:
        """The next one; asyncio.IncompleteReadError at the stream's end."""
        if self.wire == "lines":
            return orjson.loads(await asyncio.wait_for(self.reader.readuntil(b"\n"), 10))
        event = await asyncio.wait_for(self.reader.readuntil(b"\n\n"), 10)
        assert event.startswith(b"data: ") and event.count(b"\n") == 2
        return orjson.loads(event[6:])

    async def first(self, wanted: object) -> dict:
        """The first message for which `wanted` holds, of those that nobody has taken yet."""
        while True:
            for message in self._messages:
                if wanted(message):
                    self._messages.remove(message)
                    return message
            self._messages.append(await self.message())

    async def push(self) -> dict:
        return (await self.first(lambda message: "push" in message))["push"]

    async def ending(self) -> dict:
        """The disconnect push, behind which the stream is at its end."""
        push = await self.first(lambda message: "disconnect" in message.get("push", {}))
        assert await asyncio.wait_for(self.reader.read(), 10) == b""
        return push["push"]["disconnect"]

    def emulation(self, data: str) -> bytes:
        return orjson.dumps({"session": self.session, "node": self.node, "data": data})

    async def send(self, data: str, **headers: str | None) -> int:
        """POST commands; the status."""
        status, _, _ = await request(self.url, http("POST", "/emulation", self.emulation(data), **headers))
        return status

    async def command(self, **command: object) -> dict:
        self._next_id += 1
        number = self._next_id
        assert await self.send(orjson.dumps({"id": number, **command}).decode()) == 204
        return await self.first(lambda message: message.get("id") == number)

    async def subscribe(self, channel: str, **options: object) -> dict:
        reply = await self.command(subscribe={"channel": channel, **options})
        assert "subscribe" in reply, reply
        return reply["subscribe"]

    def close(self) -> None:
        self.writer.close()


@contextlib.asynccontextmanager
async def stream_client(url: str, wire: str = "lines", token: str | None = None) -> AsyncIterator[StreamClient]:
    """A client that has connected."""
    one = StreamClient(url, wire)
    await one.connect(token)
    try:
        yield one
    finally:
        one.close()
