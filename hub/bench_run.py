"""Bench run: one run of `hub bench`: load processes, publications at a steady rate, and what came of it.

Does: start load processes, wait for their clients, publish on time whatever the hub does, wait for what is under way,
add up.
Does not: read arguments or print (benching), hold clients (bench_crew).
Called by: benching.
Never break: the time in a message is when it was due, not when it was sent: a hub that holds the publisher up is late
for its subscribers too. Whatever ends the run, its processes are gone.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

import orjson

from .bench_crew import Plan
from .bench_figures import Crew, Outcome, add_reason
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
TICK_S = 0.005
SETTLE_S = 0.5
"""Between the last subscription and the first message: an event stream opens before its channels are joined."""
QUIET_S = 1.0
"""Without a delivery for so long, nothing more is under way."""
DRAIN_S = 10.0
"""At most, until everything has arrived."""
START_S = 30.0
ANSWER_S = 10.0
LINE_BYTES = 2**26


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


class Progress(Protocol):
    """What shows how far it is."""

    def connecting(self, ready: int, failed: int, wanted: int) -> None: ...
    def publishing(self, seconds: float, wanted_s: float, received: int, per_s: float) -> None: ...


class Process:
    """One load process."""

    def __init__(self) -> None:
        self.state: dict[str, int] = {"ready": 0, "failed": 0, "closed": 0, "received": 0}
        self.final: asyncio.Future[Crew] = asyncio.get_running_loop().create_future()
        self._process: asyncio.subprocess.Process | None = None
        self._reading: asyncio.Task[None] | None = None

    async def start(self, plan: Plan) -> None:
        # A session of its own: Ctrl-C is for the command, which asks for what was found so far.
        package_root = str(Path(__file__).parent.parent)
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "hub.bench_crew",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            start_new_session=True,
            limit=LINE_BYTES,
            env={**os.environ, "PYTHONPATH": os.pathsep.join([package_root, os.environ.get("PYTHONPATH", "")])},
        )
        self.send(asdict(plan))
        self._reading = asyncio.get_running_loop().create_task(self._read())

    def send(self, command: dict[str, Any]) -> None:
        assert self._process is not None and self._process.stdin is not None
        self._process.stdin.write(orjson.dumps(command) + b"\n")

    async def _read(self) -> None:
        assert self._process is not None and self._process.stdout is not None
        while line := await self._process.stdout.readline():
            found = orjson.loads(line)
            if "final" in found:
                self.final.set_result(Crew.of(found["final"]))
            else:
                self.state = found
        if not self.final.done():
            self.final.set_exception(HubError("a load process has ended; its errors stand above"))

    @property
    def ended(self) -> bool:
        """Before its time."""
        return self.final.done() and self.final.exception() is not None

    async def close(self) -> None:
        if self._process is None:
            return
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            async with asyncio.timeout(ANSWER_S):
                await self._process.wait()
        except TimeoutError:
            self._process.kill()
            await self._process.wait()
        if self._reading is not None:
            await self._reading
        if not self.final.cancel() and not self.final.cancelled():
            self.final.exception()  # told already, where it mattered


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


class Run:
    """One run; `go` gives its outcome, also after Ctrl-C."""

    def __init__(self, wanted: Wanted, progress: Progress, idle: Callable[[], tuple[int, int]]) -> None:
        """idle: idle and all CPU time of this machine so far."""
        self._wanted, self._progress, self._idle = wanted, progress, idle
        self._outcome = Outcome(wanted.clients, wanted.rate_hz, lossy=wanted.lossy)
        self._processes: list[Process] = []
        self._sequences = [0] * len(wanted.plans[0].channels)

    async def go(self) -> Outcome:
        """Raises HubError where it can't even begin."""
        make = ApiPublisher if self._wanted.api is not None else ClientPublisher
        publisher: Publisher = make(self._wanted, self._outcome)
        task = asyncio.current_task()
        assert task is not None
        try:
            try:
                await publisher.start()
                await self._connect()
                await self._publish(publisher)
            except asyncio.CancelledError:
                # Ctrl-C: what was found so far is the result; the next one is not caught.
                task.uncancel()
                self._outcome.interrupted = True
            await self._collect(publisher)
        finally:
            await publisher.close()
            await asyncio.gather(*(process.close() for process in self._processes))
        return self._outcome

    def _sum(self, name: str) -> int:
        if any(process.ended for process in self._processes):
            raise HubError("a load process has ended; its errors stand above")
        return sum(process.state.get(name, 0) for process in self._processes)

    async def _connect(self) -> None:
        for plan in self._wanted.plans:
            process = Process()
            self._processes.append(process)
            await process.start(plan)
        began = time.monotonic()
        first = 0.0
        while (ready := self._sum("ready")) + (failed := self._sum("failed")) < self._wanted.clients:
            first = first or (time.monotonic() if ready or failed else 0.0)
            if not first and time.monotonic() - began > START_S:
                raise HubError(f"no client was ready within {START_S:g} s")
            self._outcome.connect_s = time.monotonic() - began
            self._progress.connecting(ready, failed, self._wanted.clients)
            await asyncio.sleep(0.05)
        self._outcome.connect_s = time.monotonic() - began
        self._progress.connecting(ready, failed, self._wanted.clients)
        if not ready:
            return
        await asyncio.sleep(SETTLE_S)

    async def _publish(self, publisher: Publisher) -> None:
        if not self._sum("ready"):
            return
        for process in self._processes:
            process.send({"measure": True})
        outcome, rate = self._outcome, self._wanted.rate_hz
        cpu, idle = time.process_time(), self._idle()
        began_ns = time.monotonic_ns()
        total = round(rate * self._wanted.seconds)
        shown_s, shown = 0.0, 0
        try:
            while outcome.wanted < total:
                await asyncio.sleep(TICK_S)
                seconds = (time.monotonic_ns() - began_ns) / 1e9
                while outcome.wanted < total and outcome.wanted <= seconds * rate:
                    self._put(publisher, began_ns + int(outcome.wanted / rate * 1e9))
                if seconds - shown_s >= 0.25:
                    received = self._sum("received")
                    per_s = (received - shown) / (seconds - shown_s)
                    shown_s, shown = seconds, received
                    self._progress.publishing(seconds, self._wanted.seconds, received, per_s)
            outcome.publish_s = (time.monotonic_ns() - began_ns) / 1e9
            await self._drain(publisher)
        finally:
            passed_s = (time.monotonic_ns() - began_ns) / 1e9
            outcome.publish_s = outcome.publish_s or passed_s
            outcome.deliver_s = passed_s if not outcome.deliver_s else outcome.deliver_s
            outcome.cpu_publisher = (time.process_time() - cpu) / passed_s
            after = self._idle()
            outcome.idle = (after[0] - idle[0]) / max(1, after[1] - idle[1])

    def _put(self, publisher: Publisher, due_ns: int) -> None:
        outcome = self._outcome
        channel = outcome.wanted % len(self._sequences)
        outcome.wanted += 1
        if publisher.put(channel, self._sequences[channel] + 1, due_ns):
            self._sequences[channel] += 1
        else:
            outcome.unpublished += 1
            add_reason(outcome.publish_errors, f"publish: {MAX_DUE} publications wait to be sent")

    async def _drain(self, publisher: Publisher) -> None:
        """Until everything has come, nothing comes any more, or it takes too long."""
        began = last_at = time.monotonic()
        received = -1
        while (now := time.monotonic()) - began < DRAIN_S:
            if (found := self._sum("received")) != received:
                received, last_at = found, now
                self._outcome.deliver_s = self._outcome.publish_s + now - began
            elif now - last_at >= QUIET_S and not publisher.busy:
                return
            await asyncio.sleep(0.05)

    async def _collect(self, publisher: Publisher) -> None:
        """The reports of all. What was not acknowledged may not have been published, and is not held against it."""
        outcome = self._outcome
        # After Ctrl-C some are still under way: then only what was passed over is lost.
        wanted = [0] * len(self._sequences) if outcome.interrupted else self._sequences
        for process in self._processes:
            process.send({"stop": True, "sequences": wanted})
        async with asyncio.timeout(START_S):
            for process in self._processes:
                outcome.crew.add(await process.final)
        doubtful = sum(self._sequences) - outcome.published
        if doubtful:
            each = max(1, -(-outcome.crew.ready * self._wanted.plans[0].per_client // len(self._sequences)))
            outcome.crew.lost = max(0, outcome.crew.lost - doubtful * each)


def _same(client: WebSocketClient) -> WebSocketClient:
    """A protocol that is there already, for a loop that wants to have one made."""
    return client


def machine_cpu() -> tuple[int, int]:
    """Idle and all CPU time of this machine since its start, in ticks (proc_stat(5))."""
    with open("/proc/stat", "rb") as file:
        ticks = [int(word) for word in file.readline().split()[1:9]]
    return ticks[3] + ticks[4], sum(ticks)
