"""Bench crew: one load process of `hub bench`, with its share of the clients.

Does: open connections at a steady rate, hold them, count what comes; say how far it is, and at the end everything.
Does not: publish or know the other processes (bench_run), speak to the hub (bench_wires).
Called by: bench_run, as a process of its own: `python -m hub.bench_crew`, a plan on standard input, lines on standard
output.
Never break: it ends when its standard input does, so that none is left when its parent is killed; what it counts was
counted before it says so.

    -> {"run":81236,"wire":"websocket","url":"ws://…","clients":500,…}      the plan, see Plan
    <- {"ready":120,"failed":0,"received":0}                                every TELL_S
    -> {"measure":true}                                                     CPU time counts from now on
    -> {"stop":true,"sequences":[400,400]}                                  of each channel the last one that was sent
    <- {"final":{…}}                                                        bench_figures.Crew
"""

from __future__ import annotations

import asyncio
import errno
import os
import resource
import ssl
import sys
import time
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import orjson

from .bench_figures import Crew, add_reason
from .bench_wires import WIRES, Client

TELL_S = 0.2
TICK_S = 0.01
OPENING = 500
"""Handshakes under way at a time; more would measure how long they wait for each other."""
CONNECT_TIMEOUT_S = 15.0
PLAN_BYTES = 2**28
"""Of a line: 20,000 tokens of the longest kind."""
SPARE_FILES = 64


@dataclass
class Plan:
    """What one load process is to do. first: the number of its first client; token: one for all, or one for each.

    channels: all names; each client has `per_client` of them, the next ones for the next client. sources: addresses of
    loopback that its clients come from, 0 for whatever the kernel takes.
    """

    run: int
    wire: str
    url: str
    unix_path: str
    first: int
    clients: int
    ramp_hz: float
    channels: list[str]
    per_client: int
    tokens: list[str]
    sources: int

    def numbers(self, client: int) -> list[int]:
        """Of the channels of one client."""
        count = len(self.channels)
        return [(client * self.per_client + i) % count for i in range(min(self.per_client, count))]

    def source(self, client: int) -> tuple[str, int] | None:
        """Where a client comes from: ('127.0.0.2', 0)."""
        if not self.sources:
            return None
        number = client % self.sources + 1
        return f"127.0.{number // 250}.{number % 250 + 1}", 0


class Load:
    """The clients of one process."""

    def __init__(self, plan: Plan) -> None:
        self.run = plan.run
        self.found = Crew()
        self._plan = plan
        self._clients: list[Client] = []
        self._opening = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._tls = ssl.create_default_context() if urlsplit(plan.url).scheme in ("wss", "https") else None
        self._cpu_from = self._from = 0.0
        self.measure()

    def measure(self) -> None:
        """Begin to count CPU time."""
        self._cpu_from, self._from = time.process_time(), time.monotonic()

    # What clients tell.

    def on_ready(self, client: Client) -> None:
        self._opening -= 1
        self.found.ready += 1
        self.found.connects.add((time.monotonic_ns() - client.began_ns) // 1000)

    def on_end(self, client: Client, reason: str) -> None:
        if client.ready:
            self.found.closed += 1
        else:
            self._opening -= 1
            self.found.failed += 1
        add_reason(self.found.errors, reason)

    def on_message(self, client: Client, channel: int, sequence: int, due_ns: int, now_ns: int) -> None:
        found, last = self.found, client.last.get(channel, 0)
        if sequence <= last:
            found.duplicates += 1
            return
        found.received += 1
        found.lost += sequence - last - 1
        client.last[channel] = sequence
        found.latencies.add((now_ns - due_ns) // 1000)

    # What it does.

    async def open_all(self) -> None:
        """Have every client on its way, at the plan's rate."""
        clock = asyncio.get_running_loop().time
        began, opened = clock(), 0
        while opened < self._plan.clients:
            due = min(self._plan.clients, int((clock() - began) * self._plan.ramp_hz) + 1)
            while opened < due and self._opening < OPENING:
                self._open(self._plan.first + opened)
                opened += 1
            await asyncio.sleep(TICK_S)

    def _open(self, number: int) -> None:
        plan = self._plan
        numbers = plan.numbers(number)
        token = plan.tokens[(number - plan.first) % len(plan.tokens)] if plan.tokens else ""
        client = WIRES[plan.wire](self, plan.url, token, [plan.channels[i] for i in numbers], numbers)
        self._clients.append(client)
        self._opening += 1
        task = asyncio.get_running_loop().create_task(self._connect(client, number))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _connect(self, client: Client, number: int) -> None:
        loop, plan, parts = asyncio.get_running_loop(), self._plan, urlsplit(self._plan.url)
        loop.call_later(CONNECT_TIMEOUT_S, _give_up, client)
        try:
            if plan.unix_path:
                await loop.create_unix_connection(lambda: client, plan.unix_path, ssl=self._tls)
            else:
                port = parts.port or (443 if self._tls else 80)
                source = plan.source(number)
                await loop.create_connection(
                    lambda: client, parts.hostname or "", port, ssl=self._tls, local_addr=source
                )
        except OSError as error:
            client.fail(_cause(error))

    def final(self, sequences: list[int]) -> Crew:
        """Everything, with what was sent and has not come. sequences: of each channel the last one sent."""
        for client in self._clients:
            if client.ready:
                self.found.lost += sum(max(0, sequences[channel] - last) for channel, last in client.last.items())
        self.found.cpu = (time.process_time() - self._cpu_from) / max(1e-9, time.monotonic() - self._from)
        return self.found

    def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        for client in self._clients:
            client.stop()


def _give_up(client: Client) -> None:
    if not client.ready:
        client.fail(f"no answer within {CONNECT_TIMEOUT_S:g} s")


def _cause(error: OSError) -> str:
    if error.errno == errno.EADDRNOTAVAIL:
        return "no local port left (net.ipv4.ip_local_port_range)"
    return os.strerror(error.errno) if error.errno and error.errno > 0 else str(error) or type(error).__name__


def raise_open_files(needed: int) -> bool:
    """Allow this process so many descriptors; False: its hard limit does not."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < needed:
        return False
    if soft != resource.RLIM_INFINITY and soft < needed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
    return True


async def run(reader: asyncio.StreamReader) -> None:
    """Do what comes on `reader`, until its end."""
    plan = Plan(**orjson.loads(await reader.readline()))
    raise_open_files(plan.clients + SPARE_FILES)
    load = Load(plan)
    loop = asyncio.get_running_loop()
    opening, telling = loop.create_task(load.open_all()), loop.create_task(_tell(load))
    try:
        while line := await reader.readline():
            command: dict[str, Any] = orjson.loads(line)
            if "measure" in command:
                load.measure()
            else:
                telling.cancel()
                opening.cancel()
                _say({"final": load.final(command["sequences"]).record()})
                return
    finally:
        telling.cancel()
        opening.cancel()
        load.close()
        await asyncio.sleep(0)  # what was cancelled ends


async def _tell(load: Load) -> None:
    while True:
        found = load.found
        _say({name: getattr(found, name) for name in ("ready", "failed", "closed", "received")})
        await asyncio.sleep(TELL_S)


def _say(line: dict[str, Any]) -> None:
    # Small ones but for the last; the parent reads all the time.
    sys.stdout.buffer.write(orjson.dumps(line) + b"\n")
    sys.stdout.buffer.flush()


async def _main() -> None:
    reader = asyncio.StreamReader(limit=PLAN_BYTES)
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    try:
        await run(reader)
    except BrokenPipeError:
        pass  # the parent is gone, and with it whoever would read


if __name__ == "__main__":
    import uvloop

    uvloop.run(_main())
