"""Rig: the rig of tests/chaos with short lives on all wires besides, without faults, and samples of memory meanwhile.

Does: start it, run cycles of load and rest, sample processes under load, have everything counted at rest.
Does not: judge slopes (slope, __main__) or messages (chaos's checker).
Called by: __main__, test_short.
Never break: a sample is taken under load and nothing else, so that all samples are of the same thing; what is counted
at rest is counted when the hub itself has seen the last of the short lives go.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

from tests.chaos.events import Level, now_s
from tests.chaos.rig import LoadProcess, Rig, Size
from tests.hubs import SECRET, merged

from .churn import CHANNELS, USERS

MB = 1_000_000
SAMPLE_S = 1.0
GONE_S = 80.0
"""Until the hub has seen that a client went without a word: Socket.IO's ping interval and timeout, and a margin."""
RING_BYTES = 200_000
TOKENS = 100
"""Both small, so that they are full before the samples count: nearly each life shows a token that is new."""
TTL_S = 20.0
"""Of histories, keys and mailboxes: what the store keeps reaches its height within it."""
KEPT = CHANNELS + 3 * USERS + 2
"""Keys without an end of their own: newest values of `latest` channels; three of a mailbox that is not empty, which its
messages' ends take away, and two of all."""
STALLED, RECONNECTED = 3, 3
"""Of the clients that recover, in each cycle."""

LONG = Size(2, 40, 60, 6, 3, 50.0, 1, 60.0, 1.0)
SHORT = Size(2, 20, 20, 2, 1, 30.0, 1, 60.0, 1.0)


class Soak(NamedTuple):
    """How long and how much. warm_s: before samples count; lives: at a time, of the churn."""

    size: Size
    minutes: float
    cycle_s: float
    warm_s: float
    lives: int


class Sample(NamedTuple):
    """t in s; bytes."""

    t: float
    name: str
    rss: int


class SoakRig(Rig):
    """Cycles instead of faults."""

    def __init__(self, soak: Soak, directory: Path, *, seed: int = 1, leak: int = 0) -> None:
        """leak: bytes that each worker is to keep about every second; 0 outside of tests of the soak itself."""
        self._counts = directory / "counts"
        self._counts.mkdir(parents=True)
        env = {"SOAK_COUNTS": str(self._counts), "SOAK_LEAK": str(leak)}
        super().__init__("plain", soak.size, directory, seed=seed, module="tests.soak.watched_hub", env=env)
        self.soak = soak
        self.samples: list[Sample] = []
        self.lives: dict[str, int] = {}
        self.slow = 0
        """Short lives that had no answer in time."""
        self.wrong: list[str] = []
        """What went wrong in short lives, in words."""
        self._began = 0.0
        self._base = 0

    def _settings(self) -> dict[str, Any]:
        anyone = {"subscribe": "anyone", "publish": "anyone"}
        mailbox = {"mailbox": True, "subscribe": "user", "mailbox_ttl_s": TTL_S, "mailbox_full": "drop_oldest"}
        stream = {"history_size": 200, "history_ttl_s": 600, "idempotency_ttl_s": TTL_S}
        more = {
            "worker": {"ring_bytes": RING_BYTES},
            "auth": {"cache": TOKENS},
            "socketio": {"ping_interval_ms": 5000, "ping_timeout_ms": 20_000},
            # All lives come from 127.0.0.1.
            "limits": {"ip_connections": 0, "ip_handshakes_per_s": 0},
            "namespaces": {
                "s": stream,
                "none": anyone,
                "latest": {"mode": "latest", **anyone},
                "room": {**anyone, "presence": "anyone", "join_leave": True},
                "inbox": {**mailbox, "mailbox_size": 50},
            },
        }
        return merged(super()._settings(), more)

    async def _start_load(self) -> None:
        await super()._start_load()
        config = {
            "url": self.hub.ws_url,
            "api_url": self.hub.api_url,
            "key": self.hub.key,
            "secret": SECRET,
            "lives": self.soak.lives,
            "seed": 5,
        }
        self.churn = LoadProcess("churn", config, module="tests.soak.churn")
        self._stack.push_async_callback(self.churn.stop)
        await self.churn.start()
        self._base = await self._patiently(self._connections)
        self._began = time.monotonic()

    # Cycles.

    async def run(self) -> None:
        """All cycles; one begun is finished."""
        deadline = self._began + self.soak.minutes * 60
        number = 0
        while not number or time.monotonic() < deadline - self.soak.cycle_s / 2:
            number += 1
            await self.round(f"cycle {number}", True, SoakRig._load_on, 0.0)
            memory = ", ".join(f"{name} {rss_of(pid) / MB:.1f}" for name, pid in self.processes().items())
            found = len(self.checker.findings) + len(self.wrong)
            print(
                f"{time.strftime('%H:%M:%S')} cycle {number}: MB {memory}; {found} findings",
                file=sys.stderr,
                flush=True,
            )

    async def _load_on(self) -> list[int]:
        """The load of one cycle, all of it the rig's own will; whose connections end by it."""
        until = time.monotonic() + self.soak.cycle_s
        await self.churn.ask("resume")
        stalled = await self.clients[0].ask("stall", count=STALLED, seconds=5.0)
        cut = await self.clients[0].ask("reconnect", count=RECONNECTED)
        while time.monotonic() < until:
            self._sample()
            await asyncio.sleep(SAMPLE_S)
        answer = await self.churn.ask("pause")
        self.lives, self.slow = answer["lives"], answer["slow"]
        self.wrong += answer["wrong"]
        return [*stalled["ports"], *cut["ports"]]

    def _sample(self) -> None:
        now = time.monotonic() - self._began
        for name, pid in self.processes().items():
            # A worker that has gone is told by the levels.
            with contextlib.suppress(OSError):
                self.samples.append(Sample(now, name, rss_of(pid)))

    def processes(self) -> dict[str, int]:
        """Pids, by what they are called in the table."""
        workers = {f"worker {i}": pid for i, pid in enumerate(self.hub.worker_pids())}
        return {"supervisor": self.hub.pid, **workers, "Valkey": self.primary.pid}

    # At rest.

    def _measure(self) -> list[Level]:
        deadline = time.monotonic() + GONE_S
        while self._base and self._connections() > self._base and time.monotonic() < deadline:
            time.sleep(0.2)
        usual = [
            level._replace(slack=level.slack + KEPT) if level.name == "keys that never expire" else level
            for level in super()._measure()
        ]
        return [*usual, *self._under_way()]

    def _under_way(self) -> list[Level]:
        """What workers have of their own: tasks, threads, deadlines; the files are a second old."""
        time.sleep(2.0)
        total = {"tasks": 0, "threads": 0, "deadlines": 0}
        for pid in self.hub.worker_pids():
            for name, number in json.loads((self._counts / f"{pid}.json").read_text()).items():
                total[name] += number
        workers = self.size.workers
        # Threads come with the first look-up of a name and the like, and stay; tasks of requests come and go.
        slack = {"tasks": 4 * workers, "threads": 4 * workers, "deadlines": 4 * workers + self._subscriptions}
        return [Level(now_s(), name, number, slack[name]) for name, number in total.items()]


def rss_of(pid: int) -> int:
    """Bytes of anonymous and shared memory that a process has (proc_pid_status(5)).

    Without what is mapped from files, such as libraries, which do not leak. And not the proportional share (PSS): a
    page that a fork shares counts in full from the start, so that it does not look like growth when somebody writes to
    it at last, as a reference count does, or a garbage collection to many of them.
    """
    with open(f"/proc/{pid}/status", "rb") as file:
        return sum(int(line.split()[1]) * 1024 for line in file if line.startswith((b"RssAnon:", b"RssShmem:")))
