"""Visitors: new connections at a steady rate, and what became of each.

Does: connect, upgrade, send the connect command, wait for its reply, go; count by outcome.
Does not: stay: whoever stays is a Client.
Called by: load (the role "visitors").
Never break: each is counted once, as served or by what kept it from that; a visitor that is sent away as a client of a
worker that drains was served.
"""

from __future__ import annotations

import asyncio
import base64
import os
from collections import Counter
from urllib.parse import urlsplit

TIMEOUT_S = 15.0
"""A machine that is busy with everything at once is slow; a refusal is quick."""
CONNECT = b'{"id":1,"connect":{}}'


class Visitors:
    """So many new connections in a second, until `close`."""

    def __init__(self, url: str, rate_hz: float) -> None:
        self.outcomes: Counter[str] = Counter()
        self._parts = urlsplit(url)
        self._rate_hz = rate_hz
        self._running: set[asyncio.Task[None]] = set()
        self._pacer: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._pacer = asyncio.create_task(self._pace())

    async def close(self) -> None:
        """Let nobody else in, and wait for those who are there."""
        if self._pacer is not None:
            self._pacer.cancel()
            await asyncio.gather(self._pacer, return_exceptions=True)
            self._pacer = None
        await asyncio.gather(*self._running)

    async def _pace(self) -> None:
        loop = asyncio.get_running_loop()
        due = loop.time()
        while True:
            due += 1 / self._rate_hz
            await asyncio.sleep(max(0.0, due - loop.time()))
            task = loop.create_task(self._visit())
            self._running.add(task)
            task.add_done_callback(self._running.discard)

    async def _visit(self) -> None:
        try:
            async with asyncio.timeout(TIMEOUT_S):
                outcome = await self._served()
        except TimeoutError:
            outcome = "timeout"
        except (OSError, asyncio.IncompleteReadError) as error:
            outcome = type(error).__name__
        self.outcomes[outcome] += 1

    async def _served(self) -> str:
        parts = self._parts
        reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
        try:
            key = base64.b64encode(os.urandom(16)).decode()
            head = (
                f"GET {parts.path} HTTP/1.1\r\nHost: {parts.netloc}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n"
            )
            writer.write(head.encode())
            answer = await reader.readuntil(b"\r\n\r\n")
            if not answer.startswith(b"HTTP/1.1 101"):
                return answer.partition(b"\r\n")[0].decode()
            # A mask of zeros is a mask (RFC 6455 §5.3).
            writer.write(bytes([0x81, 0x80 | len(CONNECT), 0, 0, 0, 0]) + CONNECT)
            first, _ = await reader.readexactly(2)
            # A close frame comes from a worker that drains: it is a client's goodbye.
            return "served" if first in (0x81, 0x88) else f"opcode {first & 15}"
        finally:
            writer.transport.abort()
