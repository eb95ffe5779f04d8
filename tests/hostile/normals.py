"""`python -m tests.hostile.normals HOST:PORT CLIENTS`: clients who do nothing wrong, and how late they hear.

Does: connect clients to one channel, publish to it through another client by the clock, measure from the moment at
which a publication was due to each client's receipt; count what is missing and who was disconnected.
Does not: come back: who is disconnected stays so and is counted.
Called by: rig, as a process of its own, with `measure SECONDS` per line on standard input; each is answered by a line
of JSON, see `Measured`.
"""

from __future__ import annotations

import asyncio
import re
import sys
import time
from dataclasses import asdict, dataclass
from typing import cast

import orjson
import uvloop

CHANNEL = "open:normal"
PERIOD_S = 0.05
"""Between two publications: of ten seconds, 200 to each client."""
LATE_S = 20.0
"""What has not come so long after the last publication is missing."""
CONNECT_S = 30.0
REQUEST = (
    b"GET /connection/websocket HTTP/1.1\r\nHost: h\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)
AT = re.compile(rb'"at":(\d+)')
PONG = b"\x81\x82\0\0\0\0{}"


@dataclass
class Measured:
    """Of one slot. lost: clients that were disconnected in it; missing: receipts; refused: publications."""

    published: int = 0
    received: int = 0
    missing: int = 0
    refused: int = 0
    lost: int = 0
    p50_ms: float = 0.0
    p99_ms: float = 0.0
    most_ms: float = 0.0


def frame(payload: bytes) -> bytes:
    """A masked text frame, with the key 0, which changes nothing."""
    size = len(payload)
    head = bytes((0x81, 0x80 | size)) if size < 126 else b"\x81\xfe" + size.to_bytes(2, "big")
    return head + b"\0\0\0\0" + payload


class Normal(asyncio.Protocol):
    """One client; calls `heard` with each text."""

    def __init__(self, crowd: Crowd, channel: str) -> None:
        self._crowd = crowd
        self._held = b""
        self._upgraded = False
        self._channel = channel
        self.transport: asyncio.WriteTransport | None = None
        self.ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.WriteTransport", transport)
        self.transport.write(REQUEST)

    def data_received(self, data: bytes) -> None:
        self._held += data
        if not self._upgraded:
            head, end, self._held = self._held.partition(b"\r\n\r\n")
            if not end:
                self._held = head
                return
            self._upgraded = True
            self._greet()
        while (text := self._frame()) is not None:
            for line in text.split(b"\n"):
                self._heard(line)

    def _greet(self) -> None:
        commands: list[dict[str, object]] = [{"id": 1, "connect": {}}]
        if self._channel:
            commands.append({"id": 2, "subscribe": {"channel": self._channel}})
        self.send(b"\n".join(map(orjson.dumps, commands)))

    def _frame(self) -> bytes | None:
        held = self._held
        if len(held) < 2:
            return None
        size, start = held[1], 2
        if size == 126:
            size, start = int.from_bytes(held[2:4], "big"), 4
        elif size == 127:
            size, start = int.from_bytes(held[2:10], "big"), 10
        if len(held) < start + size:
            return None
        self._held = held[start + size :]
        if held[0] == 0x88:
            self._crowd.words.append(held[start + 2 : start + size])
        return held[start : start + size] if held[0] == 0x81 else b""

    def _heard(self, line: bytes) -> None:
        assert self.transport is not None
        if line == b"{}":
            self.transport.write(PONG)
        elif found := AT.search(line):
            self._crowd.received(int(found[1]))
        elif line.startswith((b'{"id":2,', b'{"id":1,')):
            if (line.startswith(b'{"id":2,') or not self._channel) and not self.ready.done():
                self.ready.set_result(None)
        elif b'"error"' in line:
            self._crowd.slot.refused += 1

    def send(self, payload: bytes) -> None:
        assert self.transport is not None
        self.transport.write(frame(payload))

    def connection_lost(self, exc: Exception | None) -> None:
        self._crowd.slot.lost += 1
        if not self.ready.done():
            self.ready.set_exception(ConnectionError("lost before it was connected"))


class Crowd:
    """All clients, and the slot that is being measured."""

    def __init__(self) -> None:
        self.slot = Measured()
        self.clients: list[Normal] = []
        self.words: list[bytes] = []
        """The reasons with which clients were closed."""
        self._late_ns: list[int] = []
        self._publisher: Normal | None = None
        self._number = 2

    async def connect(self, host: str, port: int, count: int) -> None:
        loop = asyncio.get_running_loop()
        for index in range(count + 1):
            channel = CHANNEL if index else ""
            _, client = await loop.create_connection(lambda channel=channel: Normal(self, channel), host, port)
            await client.ready
            self.clients.append(client)
        self._publisher = self.clients[0]
        self.slot = Measured()

    def received(self, at_ns: int) -> None:
        self._late_ns.append(time.monotonic_ns() - at_ns)

    async def measure(self, seconds: float) -> Measured:
        """Publish by the clock, wait for what is late, and sum up."""
        assert self._publisher is not None
        self._late_ns.clear()
        # What was lost between two slots, as an attack began, is of this one.
        self.slot = slot = Measured(lost=self.slot.lost)
        listening = sum(not client.transport.is_closing() for client in self.clients[1:])
        begin = time.monotonic()
        for index in range(max(1, round(seconds / PERIOD_S))):
            due = begin + index * PERIOD_S
            await asyncio.sleep(due - time.monotonic())
            self._number += 1
            publish = {"channel": CHANNEL, "data": {"at": int(due * 1e9)}}
            self._publisher.send(orjson.dumps({"id": self._number, "publish": publish}))
            slot.published += 1
        expected = slot.published * listening
        deadline = time.monotonic() + LATE_S
        while len(self._late_ns) < expected and time.monotonic() < deadline:
            await asyncio.sleep(0.01)
        late = sorted(self._late_ns) or [0]
        slot.received = len(self._late_ns)
        slot.missing = expected - slot.received
        slot.p50_ms, slot.p99_ms, slot.most_ms = (
            round(late[min(len(late) - 1, int(len(late) * part))] / 1e6, 3) for part in (0.5, 0.99, 1.0)
        )
        self.slot = Measured()
        return slot


async def main(address: str, count: int) -> None:
    host, _, port = address.rpartition(":")
    crowd = Crowd()
    async with asyncio.timeout(CONNECT_S):
        await crowd.connect(host, int(port), count)
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    print("ready", flush=True)
    while line := await reader.readline():
        measured = await crowd.measure(float(line.split()[1]))
        words = sorted({text.decode(errors="replace") for text in crowd.words})
        print(orjson.dumps({**asdict(measured), "words": words}).decode(), flush=True)


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1], int(sys.argv[2])))
