"""Bench run: one run of `hub bench`: load processes, publications at a steady rate, and what came of it.

Does: start load processes, wait for their clients, have messages published on time whatever the hub does, wait for what
is under way, add up.
Does not: read arguments or print (benching), hold clients (bench_crew), speak to the hub (bench_publish).
Called by: benching.
Never break: the time in a message is when it was due, not when it was sent: a hub that holds the publisher up is late
for its subscribers too. Whatever ends the run, its processes are gone.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import orjson

from .bench_crew import Plan
from .bench_figures import Crew, Outcome, add_reason
from .bench_publish import MAX_DUE, ApiPublisher, ClientPublisher, Publisher, Wanted
from .errors import HubError

TICK_S = 0.005
SETTLE_S = 0.5
"""Between the last subscription and the first message: an event stream opens before its channels are joined."""
QUIET_S = 1.0
"""Without a delivery for so long, nothing more is under way."""
DRAIN_S = 10.0
"""At most, until everything has arrived."""
START_S = 30.0
LEAVE_S = 10.0
"""For a load process to end."""
LINE_BYTES = 2**26


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
            async with asyncio.timeout(LEAVE_S):
                await self._process.wait()
        except TimeoutError:
            self._process.kill()
            await self._process.wait()
        if self._reading is not None:
            await self._reading
        if not self.final.cancel() and not self.final.cancelled():
            self.final.exception()  # told already, where it mattered


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


def machine_cpu() -> tuple[int, int]:
    """Idle and all CPU time of this machine since its start, in ticks (proc_stat(5))."""
    with open("/proc/stat", "rb") as file:
        ticks = [int(word) for word in file.readline().split()[1:9]]
    return ticks[3] + ticks[4], sum(ticks)
