"""Load: one process of clients, of one wire, told what to do by the rig.

    python -m tests.wires.load '{"host":"127.0.0.1","port":…,"log":"…","group":"…","wire":"polling",…}'

Does: let its clients in, have each emit its events with so many at a time not yet acknowledged, write down all that
happens, leave.
Does not: judge (checker), or publish to the room (rig).
Called by: rig. stock.mjs takes the same words and says the same.
Never break: a client that is cut off stays so and is written down; the process goes on with the others.

Commands on standard input, one a line: `go`, when all clients of all processes are in; `leave`, when all have done.
On standard output, one JSON object a line: {"event":"ready"}, {"event":"progress","acked":…,"heard":…,
"left":…}, {"event":"done"}, when every client has all acks and messages or was cut off, and {"event":"left"}.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import orjson
import uvloop
from websockets.exceptions import WebSocketException

from .engine import Client, ProtocolFault, Refused, Server
from .events import Acked, Emitted, Entered, Gone, Heard, Left, Log
from .events import Refused as RefusedEvent
from .receivers import RECEIVERS

OPENING = 100
"""Clients that come in at a time."""
PROGRESS_S = 0.25
CALL_TIMEOUT_S = 120.0


class Spec(NamedTuple):
    """What a process is told. names: before each client's number. window: events without an ack, of one client.

    wire: of engine.WIRES, or one of receivers.RECEIVERS. messages: of the room, that everybody is to hear.
    """

    host: str
    port: int
    log: str
    group: str
    names: str
    wire: str
    clients: int
    events: int
    messages: int
    window: int


class Totals:
    """What all clients of this process have come to."""

    def __init__(self) -> None:
        self.acked = 0
        self.heard = 0
        self.left = 0


class Worker:
    """One client, and what it does."""

    def __init__(self, name: str, spec: Spec, log: Log, totals: Totals) -> None:
        self.name = name
        self._spec = spec
        self._log = log
        self._totals = totals
        self._next = 0
        self._unheard = spec.messages
        self._heard_all = asyncio.Event()
        self._over = asyncio.Event()
        """It was cut off, or never got in."""
        make: Any = RECEIVERS.get(spec.wire, Client)
        self._client = make(Server(spec.host, spec.port), spec.wire, self._on_event, self._on_lost)
        self._client.on_stray_ack = self._on_stray_ack

    @property
    def _emits(self) -> bool:
        return self._spec.wire not in RECEIVERS

    async def enter(self) -> None:
        """Be in the room."""
        try:
            async with asyncio.timeout(CALL_TIMEOUT_S):
                await self._client.open()
                self._log.write(Entered(self.name, self._spec.group, self._emits))
                if self._emits:
                    await self._client.call("enter")
        except (ProtocolFault, WebSocketException, OSError, TimeoutError) as error:
            if not self._over.is_set():
                self._on_lost(error)

    async def work(self) -> None:
        """Emit everything, and hear everything; or be cut off."""
        if self._over.is_set():
            return
        lost = asyncio.create_task(self._over.wait())
        done = asyncio.create_task(self._work())
        await asyncio.wait((lost, done), return_when=asyncio.FIRST_COMPLETED)
        for task in (lost, done):
            task.cancel()
        await asyncio.gather(lost, done, return_exceptions=True)

    async def _work(self) -> None:
        if self._emits:
            await asyncio.gather(*[self._emit_some() for _ in range(self._spec.window)])
        await self._heard_all.wait()

    async def _emit_some(self) -> None:
        while self._next < self._spec.events:
            number, self._next = self._next, self._next + 1
            self._log.write(Emitted(self.name, number))
            began_s = time.perf_counter()
            (value,) = await self._client.call("work", self.name, number)
            self._log.write(Acked(self.name, number, value, round((time.perf_counter() - began_s) * 1000, 3)))
            self._totals.acked += 1

    async def leave(self) -> None:
        """Be on the wire on which it was to be, ask what the application has seen, and go."""
        if self._over.is_set():
            return
        seen = None
        try:
            async with asyncio.timeout(CALL_TIMEOUT_S):
                if self._emits:
                    await self._client.settled()
                    (seen,) = await self._client.call("leave")
                await self._client.close()
        except (ProtocolFault, WebSocketException, OSError, TimeoutError) as error:
            if not self._over.is_set():
                self._on_lost(error)
            return
        self._log.write(Left(self.name, seen))
        self._totals.left += 1

    def _on_stray_ack(self, number: int, arguments: list[Any]) -> None:
        # The first event asks to be let in, so the one of number 0 has ack 1. Written behind the first ack, which may
        # have come in the same answer, and whose event's task is about to write it.
        event = Acked(self.name, number - 1, arguments, 0.0)
        asyncio.get_running_loop().call_soon(self._log.write, event)

    def _on_event(self, name: str, arguments: list[Any]) -> None:
        if name != "publication":
            return self._on_lost(ProtocolFault(f"an event {name!r} with {arguments!r}"))
        self._log.write(Heard(self.name, arguments[0]["data"]["n"]))
        self._totals.heard += 1
        self._unheard -= 1
        if not self._unheard:
            self._heard_all.set()

    def _on_lost(self, error: Exception) -> None:
        if isinstance(error, Refused):
            self._log.write(RefusedEvent(self.name, error.status, error.code))
        self._log.write(Gone(self.name, f"{type(error).__name__}: {error}"[:300]))
        self._over.set()


def say(**words: Any) -> None:
    sys.stdout.buffer.write(orjson.dumps(words) + b"\n")
    sys.stdout.buffer.flush()


async def report(totals: Totals) -> None:
    while True:
        say(event="progress", acked=totals.acked, heard=totals.heard, left=totals.left)
        await asyncio.sleep(PROGRESS_S)


async def commands() -> asyncio.StreamReader:
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    return reader


async def expect(reader: asyncio.StreamReader, command: bytes) -> None:
    if (line := await reader.readline()) != command + b"\n":
        raise SystemExit(f"found {line!r}, expected {command!r}")  # the rig has ended


def end(log: Log) -> None:
    log.close()
    os._exit(0)


async def run(spec: Spec) -> None:
    """All of it."""
    log, totals, reader = Log(Path(spec.log)), Totals(), await commands()
    # The rig does not wait for ever; what happened until then is not to be lost with this process.
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, end, log)
    workers = [Worker(f"{spec.names}{number}", spec, log, totals) for number in range(spec.clients)]
    gate = asyncio.Semaphore(OPENING)

    async def enter(worker: Worker) -> None:
        async with gate:
            await worker.enter()

    await asyncio.gather(*map(enter, workers))
    say(event="ready")
    await expect(reader, b"go")
    reporting = asyncio.create_task(report(totals))
    await asyncio.gather(*[worker.work() for worker in workers])
    say(event="done")
    await expect(reader, b"leave")
    await asyncio.gather(*[worker.leave() for worker in workers])
    reporting.cancel()
    log.close()
    say(event="left")


if __name__ == "__main__":
    uvloop.run(run(Spec(**orjson.loads(sys.argv[1]))))
