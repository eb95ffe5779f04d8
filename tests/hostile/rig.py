"""Rig: one hub on one core; on the other its normal clients and, in turns, an attacker or a process that only burns.

Does: start the hub, the normal clients and the attackers as processes, pin them, measure a slot with each, read the
worker's memory while it lasts.
Does not: judge or print (__main__), attack (attackers) or measure latency (normals).
Never break: the hub runs with its defaults, but for what SETTINGS opens to the attacks, and trusts the address of the
normal clients alone, who stand for two hundred of their own; and an attack is set beside the
slot that ran right before it, with as many processes at the same priority on the same core.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Self
from urllib.parse import urlsplit

from bench.rig.processes import memory_bytes, pick_cpus, read_line
from tests.hubs import HubProcess

ROOT = Path(__file__).parent.parent.parent
SETTINGS = {
    "workers": 1,
    "trusted_proxies": ["127.0.0.1"],
    "client": {"deflate": True},
    "namespaces": {"open": {"subscribe": "anyone", "publish": "anyone"}},
}
READY_S = 120.0
SLACK_S = 60.0
SAMPLE_S = 0.25
SETTLE_S = 0.5
"""Behind an attack, for the hub to see that its connections are gone."""
ATTACKER_NICE = 19
"""The attacker takes all of its core that the normal clients leave, and does not keep them from reading the clock."""


class Attack(NamedTuple):
    """processes: attackers at a time. budget_mb: by which the worker's memory may grow, and why so much."""

    name: str
    budget_mb: int
    why: str
    did: tuple[str, ...]
    """Counts of attackers.py of which at least one must be there: an attack that does nothing would show nothing."""
    held: int = 0
    """So many connections, at least, the attack must have had in place before its slot began."""
    processes: int = 1
    source: str = "many"
    """From where it comes, as attackers has it. From one limits by address hold, and `held` is not asked for."""

    @property
    def label(self) -> str:
        return f"{self.name}, {self.source}"


ATTACKS = (
    Attack("slow heads", 40, "1,000 connections in Tornado, 40 KB each", ("drips",), held=1000),
    Attack("slow bodies", 40, "500 in Tornado with a part of a body", ("drips",), held=500),
    Attack("ping flood", 24, "8 outboxes at 1 MiB", ("bytes",)),
    Attack("fragment flood", 24, "8 unfinished messages", ("closed 1008",)),
    Attack("deflate bomb", 24, "8 windows and messages", ("closed 1009",)),
    Attack("JSON bomb", 32, "36 bytes for one of 64 KiB, for a moment", ("bytes",)),
    Attack("subscription flood", 32, "the channels of 8 connections", ("bytes",)),
    Attack("reconnect storm", 32, "the connections of a moment", ("handshakes", "HTTP 503", "HTTP 429")),
    Attack("slow readers", 320, "worker.backlog_bytes, and 1,000 connections", ("published",), held=1000),
)


@dataclass
class Slot:
    """What one slot came to; see normals.Measured. peak_mb: by which the worker's memory grew."""

    published: int
    received: int
    missing: int
    refused: int
    lost: int
    p50_ms: float
    p99_ms: float
    most_ms: float
    words: list[str] = field(default_factory=list)
    peak_mb: float = 0.0
    counts: dict[str, int] = field(default_factory=dict)
    cpu: float = 0.0
    """Of the worker, in percent of its core."""


class Pair(NamedTuple):
    """One round of one attack."""

    calm: Slot
    attacked: Slot

    @property
    def ratio(self) -> float:
        return self.attacked.p99_ms / self.calm.p99_ms


class Rig:
    """A context manager. clients: normal ones. nice: of the attackers."""

    def __init__(self, clients: int, nice: int = ATTACKER_NICE) -> None:
        self._clients = clients
        self._nice = nice
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        self._hub_cpu, self._other_cpu = pick_cpus()
        with self._stack:
            with _pinned(self._hub_cpu):
                self._hub = self._stack.enter_context(HubProcess(SETTINGS))
            (self._worker,) = self._hub.worker_pids()
            _share_priority(self._hub.process.pid)
            self._address = urlsplit(self._hub.ws_url).netloc
            self._normals = self._start("normals", self._address, str(self._clients), stack=self._stack)
            self._stack = self._stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def calm(self, processes: int, seconds: float) -> Slot:
        """A slot in which as many processes as those of an attack only burn."""
        return self._slot("burn", "one", processes, seconds)

    def attacked(self, attack: Attack, seconds: float) -> Slot:
        """A slot under attack."""
        return self._slot(attack.name, attack.source, attack.processes, seconds)

    def _slot(self, name: str, source: str, processes: int, seconds: float) -> Slot:
        before = self._memory()
        with contextlib.ExitStack() as stack:
            attackers = [
                self._start("attackers", name, self._address, source, nice=self._nice, stack=stack)
                for _ in range(processes)
            ]
            began, cpu_s = time.monotonic(), self._cpu_s()
            text, peak = self._measure(seconds)
            cpu = 100 * (self._cpu_s() - cpu_s) / (time.monotonic() - began)
            counts: dict[str, int] = {}
            for attacker in attackers:
                for key, count in _ended(attacker).items():
                    counts[key] = counts.get(key, 0) + count
        time.sleep(SETTLE_S)
        return Slot(**json.loads(text), peak_mb=round((peak - before) / 2**20, 1), counts=counts, cpu=round(cpu, 1))

    def _measure(self, seconds: float) -> tuple[bytes, int]:
        """What the normal clients say of a slot, and the most memory that the worker took meanwhile."""
        assert self._normals.stdin is not None and self._normals.stdout is not None
        peak = self._memory()
        self._normals.stdin.write(f"measure {seconds}\n".encode())
        self._normals.stdin.flush()
        while not select.select([self._normals.stdout], [], [], SAMPLE_S)[0]:
            peak = max(peak, self._memory())
        return read_line(self._normals.stdout, seconds + SLACK_S, "the normal clients"), max(peak, self._memory())

    def _cpu_s(self) -> float:
        fields = Path(f"/proc/{self._worker}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def _memory(self) -> int:
        return memory_bytes(self._worker)["pss"]

    def _start(self, module: str, *words: str, stack: contextlib.ExitStack, nice: int = 0) -> subprocess.Popen[bytes]:
        """A module of this package on the other core; returns once it is ready."""
        command: Sequence[str] = [sys.executable, "-m", f"tests.hostile.{module}", *words]
        if nice:
            command = ["nice", "-n", str(nice), *command]
        with _pinned(self._other_cpu):
            process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)
        stack.callback(_reap, process)
        line = read_line(process.stdout, READY_S, module)
        if line != b"ready\n":
            raise RuntimeError(f"{module} said {line!r}")
        return process


@contextlib.contextmanager
def _pinned(cpu: int) -> Iterator[None]:
    """What is started in here runs on `cpu`."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {cpu})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _share_priority(hub: int) -> None:
    """Give the hub's children our autogroup's priority: Valkey is in a session, and so a group, of its own.

    Started with a raised priority the rig would measure how the worker starves it.
    """
    try:
        group = Path("/proc/self/autogroup").read_text().split()
        if not group:
            return  # in a control group with shares of its own there is none, and all have the same priority
        for pid in Path(f"/proc/{hub}/task/{hub}/children").read_text().split():
            Path(f"/proc/{pid}/autogroup").write_text(group[-1])
    except OSError:
        pass  # a kernel without autogroups, or no right to: then all have the same priority


def _ended(process: subprocess.Popen[bytes]) -> dict[str, int]:
    """End an attacker; what it did."""
    process.send_signal(signal.SIGTERM)
    return dict(json.loads(read_line(process.stdout, SLACK_S, "an attacker")))


def _reap(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        assert pipe is not None
        pipe.close()
