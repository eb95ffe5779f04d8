"""An EventSource after the letter of WHATWG HTML §9.2.6, and plain HTTP requests, for tests of /sse and /poll."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator
from typing import NamedTuple

import orjson


class Event(NamedTuple):
    """As a browser dispatches it."""

    type: str
    data: str
    id: str

    @property
    def json(self) -> dict:
        return orjson.loads(self.data)


class Parser:
    """Bytes → events, by the specification's own steps."""

    def __init__(self) -> None:
        self.last_id = ""
        self.retry_ms: int | None = None
        self.comments = 0
        self._text = ""
        self._data = self._type = self._id = ""

    def feed(self, data: bytes) -> list[Event]:
        """Whole lines only; the stream is UTF-8."""
        self._text += data.decode()
        # A CR at the end may be the first half of a CRLF.
        *lines, self._text = re.split(r"\r\n|\n|\r(?!\Z)", self._text)
        return [event for line in lines if (event := self._line(line)) is not None]

    def _line(self, line: str) -> Event | None:
        if not line:
            return self._dispatch()
        if line.startswith(":"):
            self.comments += 1
            return None
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "event":
            self._type = value
        elif name == "data":
            self._data += value + "\n"
        elif name == "id" and "\0" not in value:
            self._id = value
        elif name == "retry" and re.fullmatch(r"[0-9]+", value):
            self.retry_ms = int(value)
        return None

    def _dispatch(self) -> Event | None:
        self.last_id = self._id
        data, kind, self._data, self._type = self._data, self._type, "", ""
        return Event(kind or "message", data.removesuffix("\n"), self.last_id) if data else None


class Stream:
    """One GET that is answered by an event stream, or by a status."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.status = 0
        self.headers: dict[str, str] = {}
        self.parser = Parser()
        self.events: list[Event] = []

    async def begin(self) -> None:
        head = (await asyncio.wait_for(self.reader.readuntil(b"\r\n\r\n"), 5)).decode("latin-1")
        first, *lines = head.strip().split("\r\n")
        self.status = int(first.split()[1])
        self.headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}

    async def next(self, kind: str = "message") -> Event:
        """The next event of a type; those of others that come before are passed over."""
        while True:
            while self.events:
                event = self.events.pop(0)
                if event.type == kind:
                    return event
            await self.more()

    async def more(self) -> None:
        """Read on; EOFError at the end."""
        data = await asyncio.wait_for(self.reader.read(65_536), 10)
        if not data:
            raise EOFError
        self.events += self.parser.feed(data)

    async def messages(self, count: int) -> list:
        """The data of so many publications."""
        return [(await self.next()).json["pub"]["data"] for _ in range(count)]

    async def end(self) -> list[Event]:
        """All events up to the end of the stream."""
        with contextlib.suppress(EOFError):
            while True:
                await self.more()
        events, self.events = self.events, []
        return events


@contextlib.asynccontextmanager
async def stream(port: int, query: str, **headers: str) -> AsyncIterator[Stream]:
    """GET /sse?QUERY on a connection of its own."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    one = Stream(reader, writer)
    try:
        lines = [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        head = [f"GET /sse?{query} HTTP/1.1", "Host: hub.test", *lines, "", ""]
        writer.write("\r\n".join(head).encode())
        await one.begin()
        yield one
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


class Answer(NamedTuple):
    """Of a plain request."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> dict:
        return orjson.loads(self.body)

    @property
    def code(self) -> int:
        """Of the error that it is."""
        return self.json["error"]["code"]

    @property
    def cursor(self) -> str:
        return self.headers["hub-cursor"]


async def request(port: int, method: str, target: str, body: bytes = b"", **headers: str) -> Answer:
    """One request on a new TCP connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        lines = [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        if body:
            lines.append(f"Content-Length: {len(body)}")
            if "Content_Type" not in headers:
                lines.append("Content-Type: application/json")
        head = [f"{method} {target} HTTP/1.1", "Host: hub.test", "Connection: close", *lines, "", ""]
        writer.write("\r\n".join(head).encode() + body)
        data = await asyncio.wait_for(reader.read(), 30)
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
    text, _, rest = data.partition(b"\r\n\r\n")
    first, *fields = text.decode("latin-1").split("\r\n")
    pairs = (line.partition(": ") for line in fields)
    return Answer(int(first.split()[1]), {name.lower(): value for name, _, value in pairs}, rest)
