"""Bench publish: what publishes for `hub bench`: the server API, or clients of the native protocol.

Does: send what it is given as soon as the hub takes it, each channel's in order; count what became of it.
Does not: decide when a message is due (bench_run).
Called by: bench_run.
Never break: a message counts once, as published or as failed; what waits is bounded.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol
from urllib.parse import urlsplit

import orjson

from .bench_crew import Plan
from .bench_figures import Outcome, add_reason
from .bench_wires import Client, WebSocketClient, encode_message
from .errors import HubError
from .urls import Endpoint

CONNECTIONS = 4
"""To the server API; the channels are divided among them, so that the messages of one stay in order."""
BATCH = 64
"""Publications in one request."""
IN_FLIGHT = 128
"""Publications of one publishing client without an answer; client.pending_commands allows 256 by default."""
CLIENT_HZ = 500
"""Of one publishing client; limits.commands_per_s allows 1000 by default."""
MAX_DUE = 100_000
"""Publications that wait to be sent; those behind them fail."""
ANSWER_S = 10.0
"""For an answer of the hub."""


@dataclass(frozen=True)
class Wanted:
    """What `hub bench` was asked for. plans: one for each load process."""

    plans: list[Plan]
    rate_hz: float
    seconds: float
    size: int
    lossy: bool
    api: Endpoint | None = None
    """None: clients publish."""
    key: str = ""

    @property
    def clients(self) -> int:
        return sum(plan.clients for plan in self.plans)


class Publisher(Protocol):
    """Sends what is due; the outcome has what became of it."""

    async def start(self) -> None: ...
    def put(self, channel: int, sequence: int, due_ns: int) -> bool:
        """Send it as soon as it goes; False: too many wait."""

    @property
    def busy(self) -> bool:
        """Something was not answered yet."""

    async def close(self) -> None: ...


class ApiPublisher:
    """Over the server API, on connections that are kept."""

    def __init__(self, wanted: Wanted, outcome: Outcome) -> None:
        assert wanted.api is not None
        self._endpoint, self._key = wanted.api, wanted.key
        self._wanted, self._outcome = wanted, outcome
        self._run, self._names = wanted.plans[0].run, wanted.plans[0].channels
        self._due: list[deque[tuple[int, int, int]]] = [deque() for _ in range(min(CONNECTIONS, len(self._names)))]
        self._wake = [asyncio.Event() for _ in self._due]
        self._under_way = 0
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        for queue, wake in zip(self._due, self._wake, strict=True):
            self._tasks.append(asyncio.get_running_loop().create_task(self._work(queue, wake)))

    def put(self, channel: int, sequence: int, due_ns: int) -> bool:
        queue = self._due[channel % len(self._due)]
        if len(queue) >= MAX_DUE // len(self._due):
            return False
        queue.append((channel, sequence, due_ns))
        self._wake[channel % len(self._due)].set()
        return True

    @property
    def busy(self) -> bool:
        return self._under_way > 0 or any(self._due)

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _work(self, queue: deque[tuple[int, int, int]], wake: asyncio.Event) -> None:
        link: _Link | None = None
        try:
            while True:
                await wake.wait()
                wake.clear()
                while queue:
                    batch = [queue.popleft() for _ in range(min(BATCH, len(queue)))]
                    self._under_way += len(batch)
                    try:
                        link = link or await _Link.open(self._endpoint, self._key)
                        async with asyncio.timeout(ANSWER_S):
                            self._count(await link.post("batch", self._body(batch)))
                    except (OSError, EOFError, ValueError) as error:  # TimeoutError is an OSError
                        self._fail(f"publish: {type(error).__name__} {error}".rstrip(), len(batch))
                        if link is not None:
                            link.close()
                        link = None
                    finally:
                        self._under_way -= len(batch)
        finally:
            if link is not None:
                link.close()

    def _body(self, batch: list[tuple[int, int, int]]) -> bytes:
        commands = [
            b'{"publish":{"channel":%b,"data":%b}}'
            % (
                orjson.dumps(self._names[channel]),
                encode_message(self._run, channel, number, due_ns, self._wanted.size),
            )
            for channel, number, due_ns in batch
        ]
        return b'{"parallel":true,"commands":[%b]}' % b",".join(commands)

    def _count(self, answer: dict[str, Any]) -> None:
        if "replies" not in answer:
            raise ValueError(f"error {answer.get('error', {}).get('code')}: {answer.get('error', {}).get('message')}")
        for reply in answer["replies"]:
            if error := reply.get("error"):
                self._fail(f"publish: error {error.get('code')}: {error.get('message')}", 1)
            else:
                self._outcome.published += 1

    def _fail(self, reason: str, number: int) -> None:
        self._outcome.unpublished += number
        add_reason(self._outcome.publish_errors, reason, number)


class _Link:
    """One connection to the server API."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, path: str, key: str) -> None:
        self._reader, self._writer = reader, writer
        self._path, self._key = path, key

    @classmethod
    async def open(cls, endpoint: Endpoint, key: str) -> _Link:
        parts = urlsplit(endpoint.url)
        tls = parts.scheme == "https"
        async with asyncio.timeout(ANSWER_S):
            if endpoint.unix_path:
                reader, writer = await asyncio.open_unix_connection(endpoint.unix_path)
            else:
                port = parts.port or (443 if tls else 80)
                reader, writer = await asyncio.open_connection(parts.hostname, port, ssl=tls or None)
        return cls(reader, writer, parts.path.rstrip("/"), key)

    async def post(self, method: str, body: bytes) -> dict[str, Any]:
        """Raises OSError, EOFError and ValueError."""
        head = f"POST {self._path}/{method} HTTP/1.1\r\nHost: hub\r\nX-API-Key: {self._key}\r\n"
        self._writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        lines = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower().split("\r\n")
        sizes = [line.partition(":")[2] for line in lines if line.startswith("content-length:")]
        if not sizes:
            raise ValueError(f"{lines[0]}: no answer of the server API")
        found = orjson.loads(await self._reader.readexactly(int(sizes[0])))
        if not isinstance(found, dict):
            raise ValueError("no answer of the server API")
        return found

    def close(self) -> None:
        self._writer.transport.abort()


class ClientPublisher:
    """By clients of the native protocol, as many as the rate takes; each has its channels."""

    def __init__(self, wanted: Wanted, outcome: Outcome) -> None:
        plan = wanted.plans[0]
        self.run = plan.run
        self._plan, self._wanted, self._outcome = plan, wanted, outcome
        count = min(len(plan.channels), max(1, round(wanted.rate_hz / CLIENT_HZ)))
        token = plan.tokens[0] if plan.tokens else ""
        self._clients = [WebSocketClient(self, plan.url, token, [], []) for _ in range(count)]
        self._due: list[deque[tuple[int, int, int]]] = [deque() for _ in self._clients]
        self._in_flight = [0] * count
        self._ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def start(self) -> None:
        loop, parts = asyncio.get_running_loop(), urlsplit(self._plan.url)
        tls = parts.scheme == "wss"
        try:
            for client in self._clients:
                made = partial(_same, client)
                if self._plan.unix_path:
                    await loop.create_unix_connection(made, self._plan.unix_path)
                else:
                    port = parts.port or (443 if tls else 80)
                    await loop.create_connection(made, parts.hostname or "", port, ssl=tls or None)
            async with asyncio.timeout(ANSWER_S):
                await self._ready
        except OSError as error:
            raise HubError(f"a publishing client cannot connect: {error}") from None

    def put(self, channel: int, sequence: int, due_ns: int) -> bool:
        number = channel % len(self._clients)
        if len(self._due[number]) >= MAX_DUE // len(self._clients):
            return False
        self._due[number].append((channel, sequence, due_ns))
        self._send(number)
        return True

    def _send(self, number: int) -> None:
        client, due = self._clients[number], self._due[number]
        while due and self._in_flight[number] < IN_FLIGHT:
            channel, sequence, due_ns = due.popleft()
            data = encode_message(self.run, channel, sequence, due_ns, self._wanted.size)
            self._in_flight[number] += 1
            client.publish(self._plan.channels[channel], data, lambda reply: self._answered(number, reply))

    def _answered(self, number: int, reply: dict[str, Any]) -> None:
        self._in_flight[number] -= 1
        if error := reply.get("error"):
            self._outcome.unpublished += 1
            add_reason(self._outcome.publish_errors, f"publish: error {error.get('code')}: {error.get('message')}")
        else:
            self._outcome.published += 1
        self._send(number)

    @property
    def busy(self) -> bool:
        return any(self._in_flight) or any(self._due)

    async def close(self) -> None:
        for client in self._clients:
            client.stop()

    # As the crew of its clients.

    def on_ready(self, client: Client) -> None:
        if not self._ready.done() and all(client.ready for client in self._clients):
            self._ready.set_result(None)

    def on_end(self, client: Client, reason: str) -> None:
        if not self._ready.done():
            self._ready.set_exception(HubError(f"a publishing client: {reason}"))
            return
        number = next(i for i, own in enumerate(self._clients) if own is client)
        gone = self._in_flight[number] + len(self._due[number])
        self._in_flight[number] = 0
        self._due[number].clear()
        self._outcome.unpublished += gone
        add_reason(self._outcome.publish_errors, f"publishing client: {reason}", max(1, gone))

    def on_message(self, client: Client, channel: int, sequence: int, due_ns: int, now_ns: int) -> None:
        """It has no subscriptions."""


def _same(client: WebSocketClient) -> WebSocketClient:
    """A protocol that is there already, for a loop that wants to have one made."""
    return client
