"""Bench wires: the clients of `hub bench`: WebSocket and plain event streams, as thin as Python allows.

Does: one client's way in (request, connect and subscribe) and its messages; pick bench messages out of bytes; publish.
Does not: come back (a client that is gone is a finding), open sockets or add up (bench_crew).
Called by: bench_crew; bench_publish, for publishing by clients.
Never break: a message of this run is counted once for each client, whatever reads it was cut into; after the way in no
JSON is parsed for a publication.

A message is a publication whose data begins with four numbers: the run's own, the channel's, its sequence in the
channel from 1 on, and when it was due, in ns of CLOCK_MONOTONIC, which all processes of one machine share:

    {"hub_bench":[81236,0,17,35117023842216],"pad":"xxxx"}
"""

from __future__ import annotations

import asyncio
import base64
import os
import re
import struct
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol
from urllib.parse import urlencode, urlsplit

import orjson

from .frames import CLOSE, FIN, MASKED, MAX_CONTROL_BYTES, PING, PONG, TEXT

MARK = re.compile(rb'"hub_bench":\[(\d+),(\d+),(\d+),(\d+)\]')
HEAD_BYTES = 65_536
"""Of the answer to the first request; more is no hub's."""
SSE_PATH = "/sse"


class Crew(Protocol):
    """bench_crew.Crew, as seen from here."""

    run: int

    def on_ready(self, client: Any) -> None:
        """It is connected and subscribed to all of its channels."""

    def on_end(self, client: Any, reason: str) -> None:
        """It is over, called once; '': it was told to stop."""

    def on_message(self, client: Any, channel: int, sequence: int, due_ns: int, now_ns: int) -> None:
        """One message of this run."""


def encode_message(run: int, channel: int, sequence: int, due_ns: int, size: int) -> bytes:
    """The data of a publication, `size` bytes of JSON where that is enough."""
    head = b'{"hub_bench":[%d,%d,%d,%d],"pad":"' % (run, channel, sequence, due_ns)
    return head + b"x" * max(0, size - len(head) - 2) + b'"}'


class Client(asyncio.Protocol):
    """One client of either wire. `ready`: it counts; `last`: the newest sequence it has, by channel."""

    __slots__ = ("_buffer", "_crew", "_head", "_stopped", "began_ns", "last", "names", "ready", "transport")

    def __init__(self, crew: Crew, names: Sequence[str], channels: Sequence[int]) -> None:
        """names: of its channels; channels: their numbers."""
        self._crew = crew
        self.names = names
        self.last = dict.fromkeys(channels, 0)
        self.ready = False
        self.began_ns = time.monotonic_ns()
        self.transport: asyncio.Transport | None = None
        self._buffer = b""
        self._head = False
        self._stopped = False

    def stop(self) -> None:
        """Go, without a word."""
        self._stopped = True
        if self.transport is not None:
            self.transport.abort()

    def fail(self, reason: str) -> None:
        """Go, and say why."""
        if not self._stopped:
            self._stopped = True
            self._crew.on_end(self, reason)
            if self.transport is not None:
                self.transport.abort()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        if self._stopped:
            transport.abort()
            return
        self.transport = transport
        transport.write(self.request())

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport = None
        if not self._stopped:
            self._stopped = True
            self._crew.on_end(self, "connection lost")

    def data_received(self, data: bytes) -> None:
        if self._stopped:
            return
        now_ns = time.monotonic_ns()
        data = self._buffer + data if self._buffer else data
        if self._head:
            self.read(data, now_ns)
            return
        head, separator, rest = data.partition(b"\r\n\r\n")
        if not separator:
            self._buffer = data
            if len(data) > HEAD_BYTES:
                self.fail("an answer that is no hub's")
            return
        status = head[:15].split(b" ")[1:2]
        if status != [self.status]:
            self.fail(f"HTTP {status[0].decode(errors='replace')}" if status else "an answer that is no hub's")
            return
        self._head, self._buffer = True, b""
        self.on_head()
        if rest:
            self.read(rest, now_ns)

    status = b"200"
    """Of the answer that lets it in."""

    def request(self) -> bytes:
        """The first bytes."""
        raise NotImplementedError

    def on_head(self) -> None:
        """It was let in."""

    def read(self, data: bytes, now_ns: int) -> None:
        """All that has not been read yet; what is not whole is to be left in `_buffer`."""
        raise NotImplementedError

    def be_ready(self) -> None:
        self.ready = True
        self._crew.on_ready(self)

    def take(self, payload: bytes, now_ns: int) -> bool:
        """Hand on the messages in it; False: there was none."""
        marks = MARK.findall(payload)
        for run, channel, sequence, due_ns in marks:
            # Not of this run: what a channel keeps of an earlier one.
            if int(run) == self._crew.run:
                self._crew.on_message(self, int(channel), int(sequence), int(due_ns), now_ns)
        return bool(marks)


class WebSocketClient(Client):
    """The native protocol; `publish` is for those that publish."""

    __slots__ = ("_answers", "_asked", "_next_id", "_token", "_url")

    status = b"101"

    def __init__(self, crew: Crew, url: str, token: str, names: Sequence[str], channels: Sequence[int]) -> None:
        super().__init__(crew, names, channels)
        self._url = url
        self._token = token
        self._asked = 0
        """Replies that its way in still waits for."""
        self._next_id = 0
        self._answers: dict[int, Callable[[dict[str, Any]], None]] = {}

    def request(self) -> bytes:
        parts = urlsplit(self._url)
        target = parts.path + (f"?{parts.query}" if parts.query else "")
        key = base64.b64encode(os.urandom(16)).decode()
        return (
            f"GET {target} HTTP/1.1\r\nHost: {parts.netloc}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n"
        ).encode()

    def on_head(self) -> None:
        connect = {"token": self._token} if self._token else {}
        commands: list[dict[str, Any]] = [{"id": 1, "connect": connect}]
        commands += [{"id": 2 + i, "subscribe": {"channel": name}} for i, name in enumerate(self.names)]
        self._asked = self._next_id = len(commands)
        self.send(TEXT, b"\n".join(map(orjson.dumps, commands)))

    def read(self, data: bytes, now_ns: int) -> None:
        """Frames as a hub sends them: unmasked, whole."""
        at, size = 0, len(data)
        while size - at >= 2:
            length, body = data[at + 1], at + 2
            if length > MAX_CONTROL_BYTES:
                body += 2 if length == 126 else 8
                if size < body:
                    break
                length = int.from_bytes(data[at + 2 : body], "big")
            end = body + length
            if size < end:
                break
            self._on_frame(data[at] & 15, data[body:end], now_ns)
            if self._stopped:
                return
            at = end
        self._buffer = data[at:]

    def _on_frame(self, opcode: int, payload: bytes, now_ns: int) -> None:
        if opcode == TEXT:
            # Among publications there may be a ping, or a reply to one who publishes, in lines of their own.
            if not self.take(payload, now_ns) or not self.ready or self._answers or b"\n{}" in payload:
                for line in payload.split(b"\n"):
                    self._on_line(line)
        elif opcode == CLOSE:
            code = int.from_bytes(payload[:2], "big")
            self.fail(f"closed with {code}: {payload[2:].decode(errors='replace')}")
        elif opcode == PING:
            self.send(PONG, payload)

    def _on_line(self, line: bytes) -> None:
        if line == b"{}":
            self.send(TEXT, b"{}")
        elif line.startswith(b'{"id":') or (not self.ready and b'"id":' in line):
            self._on_reply(orjson.loads(line))
        elif line.startswith(b'{"push":{"channel":') and b'"unsubscribe":{' in line:
            self.fail("unsubscribed by the hub")

    def _on_reply(self, reply: dict[str, Any]) -> None:
        answer = self._answers.pop(reply.get("id", 0), None)
        if answer is not None:
            answer(reply)
        elif error := reply.get("error"):
            what = "connect" if reply.get("id") == 1 else "subscribe"
            self.fail(f"{what}: error {error.get('code')}: {error.get('message')}")
        elif reply.get("id") and not self.ready:
            self._asked -= 1
            if not self._asked:
                self.be_ready()

    def publish(self, channel: str, data: bytes, answer: Callable[[dict[str, Any]], None]) -> None:
        """One message; `answer` gets the reply, which never comes if the connection ends before."""
        self._next_id += 1
        self._answers[self._next_id] = answer
        self.send(TEXT, b'{"id":%d,"publish":{"channel":%b,"data":%b}}' % (self._next_id, orjson.dumps(channel), data))

    def send(self, opcode: int, payload: bytes) -> None:
        if self.transport is None:
            return
        size = len(payload)
        head = bytes((FIN | opcode, MASKED | size)) if size <= MAX_CONTROL_BYTES else b""
        if not head:
            long = size > 0xFFFF
            head = struct.pack("!BBQ" if long else "!BBH", FIN | opcode, MASKED | (127 if long else 126), size)
        # A mask of zeros is a mask (RFC 6455 §5.3), and leaves the payload as it is.
        self.transport.write(head + b"\0\0\0\0" + payload)


class EventStreamClient(Client):
    """`GET /sse`."""

    __slots__ = ("_token", "_url")

    def __init__(self, crew: Crew, url: str, token: str, names: Sequence[str], channels: Sequence[int]) -> None:
        super().__init__(crew, names, channels)
        self._url = url
        self._token = token

    def request(self) -> bytes:
        query = [("channel", name) for name in self.names]
        # In a header: a query stands in the logs of proxies.
        token = f"Authorization: Bearer {self._token}\r\n" if self._token else ""
        head = f"GET {SSE_PATH}?{urlencode(query)} HTTP/1.1\r\nHost: {urlsplit(self._url).netloc}\r\n"
        return f"{head}Accept: text/event-stream\r\n{token}\r\n".encode()

    def read(self, data: bytes, now_ns: int) -> None:
        whole, separator, self._buffer = data.rpartition(b"\n\n")
        if not separator:
            return
        if not self.ready and b"event: open" in whole:
            self.be_ready()
        self.take(whole, now_ns)
        if b"event: closed" in whole:
            self.fail(f"closed: {_close_text(whole)}")


def _close_text(text: bytes) -> str:
    """The code and reason of an event that ends a stream."""
    found = re.search(rb'"code":(\d+),"reason":"([^"]*)"', text.partition(b"event: closed")[2])
    return f"{found[1].decode()}: {found[2].decode(errors='replace')}" if found else "without a code"


WIRES: dict[str, Callable[..., Client]] = {"websocket": WebSocketClient, "sse": EventStreamClient}
"""Called with crew, URL, token, names and numbers of channels."""
