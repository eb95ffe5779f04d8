"""Publishers: over the server API with idempotency keys and retry, and over client connections without.

Does: send at a steady rate, one at a time for each channel, again until it is acked; write down each step.
Does not: catch up: what could not be sent during an outage is not sent afterwards.
Called by: load.
Never break: an id is logged before its first byte leaves, and an ack only after the hub's answer was read; publications
of one ApiPublisher to one channel never overlap, so that the store's order can be held against it.
"""

from __future__ import annotations

import asyncio
import random
from typing import Any
from urllib.parse import urlsplit

import orjson

from .client import Client
from .events import Acked, Failed, Log, Published, now_s

ATTEMPT_TIMEOUT_S = 4.0
"""Above redis.command_timeout_s, so that the hub's own answer comes first."""
GIVE_UP_S = 120.0
PAD = "x" * 64


class Refused(Exception):
    """An answer that no further try can mend."""


class Pace:
    """What the publishers of one process share: whether to publish, and how many are at it."""

    def __init__(self) -> None:
        self.running = asyncio.Event()
        self.running.set()
        self.busy = 0

    async def wait(self, seconds: float) -> None:
        """Sleep, then wait until publishing is allowed."""
        await asyncio.sleep(max(0.0, seconds))
        await self.running.wait()


class ApiPublisher:
    """One HTTP connection; `channels` are its alone."""

    def __init__(self, name: str, url: str, key: str, channels: list[str], log: Log, rng: random.Random) -> None:
        self._name = name
        self._parts = urlsplit(url)
        self._key = key
        self._channels = channels
        self._log = log
        self._rng = rng
        self._number = 0
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None
        self.refused: list[str] = []

    async def run(self, rate_hz: float, pace: Pace) -> None:
        """Publish until cancelled."""
        clock = asyncio.get_running_loop().time
        due = clock() + self._rng.random() / rate_hz
        try:
            while True:
                await pace.wait(due - clock())
                pace.busy += 1
                try:
                    await self.publish(self._rng.choice(self._channels))
                finally:
                    pace.busy -= 1
                due = max(due + 1 / rate_hz, clock() - 1 / rate_hz)
        finally:
            self.close()

    async def publish(self, channel: str, pad: str = PAD) -> None:
        """One message, until it is acked or has failed for too long."""
        self._number += 1
        message = f"{self._name}-{self._number}"
        body = {"channel": channel, "data": {"id": message, "pad": pad}, "idempotency_key": message}
        self._log.write(Published(now_s(), channel, message))
        give_up_s = asyncio.get_running_loop().time() + GIVE_UP_S
        while asyncio.get_running_loop().time() < give_up_s:
            try:
                async with asyncio.timeout(ATTEMPT_TIMEOUT_S):
                    result = await self._post("publish", body)
            except Refused as error:
                self.refused.append(f"{message} to {channel}: {error}")
                return
            except (OSError, EOFError, ValueError) as error:
                # OSError has TimeoutError below it; EOFError the worker's death in the middle of an answer.
                self._log.write(Failed(now_s(), channel, message, repr(error)))
                self.close()
                await asyncio.sleep(0.05 + 0.2 * self._rng.random())
                continue
            self._log.write(Acked(now_s(), channel, message, result.get("epoch", ""), result.get("offset", 0)))
            return
        self.refused.append(f"{message} to {channel}: not acked within {GIVE_UP_S:g} s")

    async def _post(self, method: str, body: dict[str, Any]) -> dict[str, Any]:
        if self._writer is None:
            self._reader, self._writer = await asyncio.open_connection(self._parts.hostname, self._parts.port)
        assert self._reader is not None
        payload = orjson.dumps(body)
        head = f"POST {self._parts.path.rstrip('/')}/{method} HTTP/1.1\r\nHost: hub\r\nX-API-Key: {self._key}\r\n"
        self._writer.write(f"{head}Content-Length: {len(payload)}\r\n\r\n".encode() + payload)
        answer = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        status = int(answer[0].split()[1])
        sizes = [line.partition(":")[2] for line in answer[1:] if line.lower().startswith("content-length:")]
        found = orjson.loads(await self._reader.readexactly(int(sizes[0])))
        if "result" in found:
            return found["result"]
        error = found["error"]
        if status == 503 or error.get("temporary") or error.get("code") == 100:
            raise ValueError(f"{status} {error}")
        raise Refused(f"{status} {error}")

    def close(self) -> None:
        """Leave the connection; the next attempt makes another."""
        if self._writer is not None:
            self._writer.transport.abort()
        self._reader = self._writer = None


class ClientPublisher:
    """Over a client connection: sent once, as a client's publish has no idempotency key."""

    def __init__(self, client: Client, channels: list[str], log: Log, rng: random.Random) -> None:
        self._client = client
        self._channels = channels
        self._log = log
        self._rng = rng
        self._number = 0
        self.refused: list[str] = []

    async def run(self, rate_hz: float, pace: Pace) -> None:
        """Publish until cancelled, in an open loop: without waiting for answers."""
        clock = asyncio.get_running_loop().time
        due = clock() + self._rng.random() / rate_hz
        while True:
            await pace.wait(due - clock())
            if self._client.connected:
                self._publish(self._rng.choice(self._channels), pace)
            due = max(due + 1 / rate_hz, clock() - 1 / rate_hz)

    def _publish(self, channel: str, pace: Pace) -> None:
        self._number += 1
        message = f"{self._client.name}-{self._number}"
        self._log.write(Published(now_s(), channel, message))

        def answer(reply: dict[str, Any]) -> None:
            pace.busy -= 1
            error = reply.get("error")
            if "publish" in reply:
                result = reply["publish"]
                self._log.write(Acked(now_s(), channel, message, result.get("epoch", ""), result.get("offset", 0)))
            else:
                self._log.write(Failed(now_s(), channel, message, str(error or "disconnected")))
                if error and not error.get("temporary") and error.get("code") != 100:
                    self.refused.append(f"{message} to {channel}: {error}")

        pace.busy += 1
        if not self._client.publish(channel, {"id": message, "pad": PAD}, answer):
            answer({})
