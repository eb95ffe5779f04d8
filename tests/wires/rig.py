"""Rig: a hub of several workers, processes of clients, and whoever publishes to the room; one wire after another.

Does: start them, let everybody in before anything is said, publish by the clients' own progress, gather the logs.
Does not: judge (checker).
Called by: __main__, test_short.
Never break: the room's messages are published one behind the other, so that their order is known, and only while all
are in it; what was started is ended, by its pid.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import signal
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, NamedTuple

from tests.hubs import HubProcess
from tests.support import tell_child

from . import events
from .checker import Checker, Figures
from .load import Spec
from .receivers import RECEIVERS
from .wires_app import ROOM

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
NPM_CLIENT = ROOT / "tests/e2e/node_modules/socket.io-client"
NAMES = {"polling": "polling", "upgrade": "polling, then WebSocket", "websocket": "WebSocket"}
"""Of the wires, in the table; npm's transports are those of TRANSPORTS."""
TRANSPORTS = {"polling": "polling", "upgrade": "polling,websocket", "websocket": "websocket"}
CLIENTS_EACH = 500
"""In one process. A client has three connections at the most, and a process the descriptors for ten times as many; but
one process of either kind keeps a core busy."""
END_TIMEOUT_S = 10.0
ENTRY_TIMEOUT_S = 600.0
MAX_PAUSE_S = 1.0
"""Between two messages of the room, however few acks come: those of clients that were cut off never do."""


ERROR = re.compile(r"[\d-]+ [\d:,]+ (?:ERROR|CRITICAL) |Traceback")
WARNING = re.compile(r"[\d-]+ [\d:,]+ (?:WARNING|ERROR|CRITICAL) |Traceback")
ENDED = re.compile(r"code=(\d+) reason=(?:'[^']*'|\S+)")
NORMAL = {"1000", "1001", "3000"}
MAX_TOLD = 20
PING_TIMEOUT_MS = 120_000
"""Four thousand events are on their way at a time, and a pong waits behind some of them. What a busy machine makes of
its time is not what is looked for here."""


class Size(NamedTuple):
    """How much. npm: of the clients, so many are stock ones. receivers: on each of the hub's other wires.

    window: events without an ack, of one client at a time. patience_s: without any progress; what is missing then is
    lost.
    """

    clients: int
    npm: int
    events: int
    messages: int
    receivers: int
    workers: int = 4
    window: int = 4
    patience_s: float = 60.0


class Counts(NamedTuple):
    """What clients have come to: acks, messages heard, clients that have left."""

    acked: int = 0
    heard: int = 0
    left: int = 0


class Outcome(NamedTuple):
    """Of one wire. seconds: from the first event to the last ack and message."""

    groups: dict[str, Figures]
    findings: list[str]
    seconds: float


Progress = Callable[[str], None]


class _Process:
    """One process of clients."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._said: dict[str, asyncio.Event] = {word: asyncio.Event() for word in ("ready", "done", "left")}
        self.counts = Counts()
        self._reading = asyncio.create_task(self._read())

    async def _read(self) -> None:
        assert self._process.stdout is not None
        while line := await self._process.stdout.readline():
            words = json.loads(line)
            if words["event"] == "progress":
                self.counts = Counts(words["acked"], words["heard"], words["left"])
            else:
                self._said[words["event"]].set()

    def tell(self, command: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(command.encode() + b"\n")

    async def said(self, word: str) -> None:
        """Return once it has. Raises ChildProcessError where it ended before."""
        waiting = asyncio.create_task(self._said[word].wait())
        await asyncio.wait((waiting, self._reading), return_when=asyncio.FIRST_COMPLETED)
        if not self._said[word].is_set():
            waiting.cancel()
            raise ChildProcessError(f"a process of clients ended before it was {word}")

    async def end(self) -> None:
        if self._process.returncode is None:
            tell_child(self._process, signal.SIGTERM)  # it may be ending by itself just now
            try:
                await asyncio.wait_for(self._process.wait(), END_TIMEOUT_S)
            except TimeoutError:
                tell_child(self._process, signal.SIGKILL)
                await self._process.wait()
        self._reading.cancel()


class Run:
    """One wire: its hub and its clients."""

    def __init__(self, hub: HubProcess, wire: str, size: Size, directory: Path, progress: Progress) -> None:
        self._hub = hub
        self._wire = wire
        self._size = size
        self._directory = directory
        self._progress = progress
        self._processes: list[_Process] = []
        self._published = 0

    def specs(self) -> list[tuple[list[str], Spec]]:
        """The processes: command and what it is told."""
        python = [sys.executable, "-m", "tests.wires.load"]
        node = ["node", str(HERE / "stock.mjs")]
        name = NAMES[self._wire]
        size = self._size
        found = self._shares(python, name, self._wire, size.clients - size.npm)
        found += self._shares(node, f"{name}, npm", TRANSPORTS[self._wire], size.npm)
        for receiver in RECEIVERS:
            found += self._shares(python, f"hears by {receiver}", receiver, size.receivers)
        return found

    def _shares(self, command: list[str], group: str, wire: str, clients: int) -> list[tuple[list[str], Spec]]:
        """As many processes as `clients` need, in equal shares."""
        count = -(-clients // CLIENTS_EACH)
        host, _, port = self._hub.ws_url.removeprefix("ws://").partition("/")[0].rpartition(":")
        found = []
        for number in range(count):
            share = clients // count + (number < clients % count)
            names = f"{group} {number}-"
            log = str(self._directory / f"{group}-{number}.jsonl".replace(" ", "-"))
            size = self._size
            spec = Spec(host, int(port), log, group, names, wire, share, size.events, size.messages, size.window)
            found.append((command, spec))
        return found

    async def run(self) -> float:
        """Everything; seconds of work. Raises TimeoutError where not everybody got in, or was refused, in time."""
        specs = self.specs()
        try:
            for command, spec in specs:
                self._processes.append(_Process(await _start(command, spec)))
            async with asyncio.timeout(ENTRY_TIMEOUT_S):
                await self._all("ready")
            self._say("everybody is in")
            began_s = time.monotonic()
            self._tell("go")
            await self._while_it_goes_on(asyncio.gather(self._publish(), self._all("done")))
            seconds = time.monotonic() - began_s
            self._tell("leave")
            await self._while_it_goes_on(self._all("left"))
            return seconds
        finally:
            await asyncio.gather(*[process.end() for process in self._processes])

    async def _while_it_goes_on(self, work: Awaitable[Any]) -> None:
        """Wait for it as long as clients get anywhere; what is missing then is lost, says the checker."""
        task = asyncio.ensure_future(work)
        before: Counts | None = None
        while not task.done() and before != (now := self._progress_made()):
            before = now
            await asyncio.wait((task,), timeout=self._size.patience_s)
        if not task.done():
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    def _progress_made(self) -> Counts:
        counts = [process.counts for process in self._processes]
        return Counts(*(sum(getattr(one, name) for one in counts) for name in Counts._fields))

    async def _all(self, word: str) -> None:
        await asyncio.gather(*[process.said(word) for process in self._processes])

    def _tell(self, command: str) -> None:
        for process in self._processes:
            process.tell(command)

    async def _publish(self) -> None:
        """Message k when the clients have k of so many parts of their acks: spread over the run, whatever its speed."""
        size = self._size
        log = events.Log(self._directory / "published.jsonl")
        said_s = published_s = time.monotonic()
        try:
            while self._published < size.messages:
                acked = self._progress_made().acked
                due = size.messages * acked // (size.clients * size.events) + 1
                if self._published >= min(due, size.messages) and time.monotonic() - published_s < MAX_PAUSE_S:
                    await asyncio.sleep(0.01)
                else:
                    await asyncio.to_thread(self._publish_one, self._published)
                    log.write(events.Published(self._published))
                    self._published += 1
                    published_s = time.monotonic()
                if time.monotonic() - said_s > 5.0:
                    said_s = time.monotonic()
                    self._say("at work")
        finally:
            log.close()

    def _publish_one(self, number: int) -> None:
        body = json.dumps({"channel": ROOM, "data": {"n": number}}).encode()
        headers = {"X-API-Key": self._hub.key, "Content-Type": "application/json"}
        request = urllib.request.Request(f"{self._hub.api_url}/publish", body, headers)
        with urllib.request.urlopen(request, timeout=30) as response:
            answer = json.loads(response.read())
        if "error" in answer:
            raise RuntimeError(f"a message was refused: {answer}")

    def _say(self, what: str) -> None:
        acked, heard, _ = self._progress_made()
        total = self._size.clients * self._size.events
        self._progress(f"{NAMES[self._wire]}: {what}; {acked:,} of {total:,} acks, {heard:,} messages heard")


async def _start(command: list[str], spec: Spec) -> asyncio.subprocess.Process:
    pipe = asyncio.subprocess.PIPE
    return await asyncio.create_subprocess_exec(*command, json.dumps(spec._asdict()), stdin=pipe, stdout=pipe, cwd=ROOT)


def settings(size: Size) -> dict[str, Any]:
    """Of the hub, over those of tests.hubs."""
    room = {"mode": "stream", "subscribe": "anyone"}
    app = {"module": "wires_app:app", "directory": str(HERE)}
    return {
        "workers": size.workers,
        "namespaces": {"room": room},
        "app": app,
        "worker": {"handshakes_per_s": 0},
        "socketio": {"ping_timeout_ms": PING_TIMEOUT_MS},
    }


async def run_wire(wire: str, size: Size, directory: Path, progress: Progress, module: str = "hub") -> Outcome:
    """One wire from start to end. directory: empty, for its logs. module: as HubProcess has it."""
    with HubProcess(settings(size), module=module) as hub:
        run = Run(hub, wire, size, directory, progress)
        seconds = await run.run()
        log = hub.stderr
    checker = Checker(size.messages, size.events, NAMES[wire])
    checker.read(events.read(sorted(directory.glob("*.jsonl"))))
    checker.finish()
    return Outcome(checker.groups, checker.findings + told(log, checker.failed), seconds)


def told(log: str, failed: bool) -> list[str]:
    """What the hub itself says: errors; of a run that failed also warnings, and why it ended sessions."""
    found = [f"the hub: {line}" for line in log.splitlines() if (WARNING if failed else ERROR).match(line)]
    ends = Counter(end[0] for end in ENDED.finditer(log) if failed and end[1] not in NORMAL)
    return found[:MAX_TOLD] + [f"the hub: {count} × {end}" for end, count in ends.most_common(MAX_TOLD)]
