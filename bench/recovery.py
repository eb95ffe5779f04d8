"""Recovery: everybody comes back at once, and wants what was published meanwhile.

    python bench/recovery.py [--connections 15000] [--workers 1 4] [--channels 100 1] [--missed 5] [--bytes 128]
                             [--rounds 3] [--json] [--save [NAME]]

Does: in each round let as many clients connect and subscribe without a position (`plain`), come back to workers that
have served them before (`back`), and to workers that have just been forked after a SIGKILL (`respawned`); charge the
workers' CPU time, count the commands that Redis gets and which channel they are for.
Does not: use TLS.
Never break: a client is ready when its own reply says that it has recovered and holds, byte for byte, what Redis keeps
behind its position, and nothing else; afterwards each gets the next message of its channel, once. Else there is no
figure.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from rig import report
from rig.hub import hub
from rig.kept import Kept, Watched
from rig.population import LINE, Load, Population, population
from rig.processes import BenchError, children, cpu_s, pick_cpus
from rig.server import Server, wait_until_left
from rig.slots import rotated

PLAIN, BACK, RESPAWNED = "plain", "back", "respawned"
KINDS = [PLAIN, BACK, RESPAWNED]
CONNECT = '{"id":1,"connect":{}}\n'
PROBES = 64
"""Clients for each worker by which one finds out that all workers accept: that one gets none is one in 10^8."""
TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True)
class Storm:
    """One storm. worker_us: CPU time of all workers for each client. seconds: until everybody was ready.

    reads, subscribes: commands that Redis got for each channel and worker, on average; most_reads: of the channel with
    the most. others: commands that name no channel, by name: leases, heartbeats, loopback.
    """

    worker_us: float
    valkey_us: float
    seconds: float
    reads: float
    most_reads: float
    subscribes: float
    others: dict[str, int]
    bytes_each: float


class Hub:
    """One hub with its channels, and the storms that it goes through."""

    def __init__(self, server: Server, workers: int, channels: int, arguments: argparse.Namespace) -> None:
        self.server = server
        self._workers = workers
        self._arguments = arguments
        self._kept = Kept(server.load.publish.removeprefix("unix:"), [f"kept:{i}" for i in range(channels)])
        _, self._load_cpu = pick_cpus()

    def storm(self, kind: str) -> Storm:
        """One turn."""
        if kind == PLAIN:
            lines = [channel.replace("kept:", "rooms:") for channel in self._kept.channels]
            return self._measure(self._load(_subscribe(), lines), lines)
        if kind == BACK:
            self._come_and_go()
        missed = self._kept.miss(self._arguments.missed, self._arguments.bytes)
        # Not all were cut at the same moment: as many positions in each channel as messages.
        absences = [absence.later(count + 1) for count in range(self._arguments.missed) for absence in missed]
        if kind == RESPAWNED:
            self._respawn()
        load = self._load(CONNECT + LINE, [absence.greeting() for absence in absences])
        answers = self._spread([absence.answer() for absence in absences])
        return self._measure(replace(load, answers=answers), self._kept.channels)

    def _come_and_go(self) -> None:
        """The clients' first visit, so that the workers know the channels and somebody was there to be cut."""
        files = self.server.open_files()
        with population(self._load(_subscribe(), self._kept.channels), *self._crowd()) as clients:
            clients.wait_ready()
        wait_until_left(self.server, files)

    def _measure(self, load: Load, channels: Sequence[str]) -> Storm:
        server, valkey = self.server, self.server.apart["valkey"]
        files, watch = server.open_files(), self._kept.watch(channels)
        before_s, before_valkey_s = server.cpu_s(), cpu_s(valkey)
        with population(load, *self._crowd()) as clients:
            counts = clients.wait_ready()
            used_s, valkey_s = server.cpu_s() - before_s, cpu_s(valkey) - before_valkey_s
            watched = watch.end()
            if load.answers:
                self._go_on(clients)
        wait_until_left(server, files)
        each = 1e6 / self._arguments.connections
        return Storm(
            worker_us=used_s * each,
            valkey_us=valkey_s * each,
            seconds=counts.seconds,
            bytes_each=counts.wire_bytes / counts.connections,
            **self._charged(watched),
        )

    def _charged(self, watched: Watched) -> dict[str, Any]:
        pairs = len(self._kept.channels) * self._workers
        return {
            "reads": sum(watched.reads.values()) / pairs,
            "most_reads": max(watched.reads.values(), default=0) / self._workers,
            "subscribes": sum(watched.subscribes.values()) / pairs,
            "others": dict(watched.others),
        }

    def _go_on(self, clients: Population) -> None:
        """Everybody is in: each gets the next message, and has been pushed nothing else since it was ready."""
        self._kept.miss(1, self._arguments.bytes)
        deadline = time.monotonic() + TIMEOUT_S
        while (counts := clients.stats()).least != 1 or counts.most != 1:
            if counts.most > 1 or time.monotonic() > deadline:
                raise BenchError(f"1 published, received from {counts.least} to {counts.most}: {counts}")
            time.sleep(0.05)  # the population tells on demand only

    def _respawn(self) -> None:
        """Kill the workers; return when the next ones accept. Their boot is not what a storm costs."""
        killed = set(self.server.pids)
        for pid in killed:
            os.kill(pid, signal.SIGKILL)
        not_workers = {*killed, self.server.apart["valkey"]}
        deadline = time.monotonic() + TIMEOUT_S
        while len(pids := set(children(self.server.apart["supervisor"])) - not_workers) < self._workers:
            if time.monotonic() > deadline:
                raise BenchError(f"{len(pids)} of {self._workers} workers are back {TIMEOUT_S:g} s later")
            time.sleep(0.05)  # the supervisor gives no other sign
        self.server = replace(self.server, pids=tuple(pids))
        with population(self.server.load, PROBES * self._workers, self._load_cpu) as clients:
            clients.wait_ready()
            files = self.server.open_files() - PROBES * self._workers
        wait_until_left(self.server, files)

    def _load(self, send: str, lines: Sequence[str]) -> Load:
        return replace(self.server.load, sends=(send,), lines=self._spread(lines))

    def _spread(self, lines: Sequence[str]) -> list[str]:
        """Client i has line i modulo the lines, so that all channels have equally many."""
        return [lines[i % len(lines)] for i in range(self._arguments.connections)]

    def _crowd(self) -> tuple[int, int, int]:
        return self._arguments.connections, self._load_cpu, self._arguments.opening


def _subscribe() -> str:
    return CONNECT + '{"id":1000,"subscribe":{"channel":"' + LINE + '"}}'


Results = dict[str, dict[str, list[Storm]]]
"""By hub, then by kind of storm; one for each round."""


def run(arguments: argparse.Namespace) -> Results:
    """All rounds; each hub has its turn alone, so that no other's workers share its CPU. One worker is pinned."""
    server_cpu, _ = pick_cpus()
    results: Results = {}
    for workers in arguments.workers:
        with contextlib.ExitStack() as stack:
            server = stack.enter_context(hub(server_cpu if workers == 1 else None, workers))
            for channels in arguments.channels:
                tried = Hub(server, workers, channels, arguments)
                storms = results[_name(workers, channels)] = {kind: [] for kind in KINDS}
                for number in range(arguments.rounds):
                    for kind in rotated(KINDS, number):
                        storms[kind].append(tried.storm(kind))
                server = tried.server
    return results


def _name(workers: int, channels: int) -> str:
    return f"{workers} worker{'s' * (workers > 1)}, {channels} channel{'s' * (channels > 1)}"


def text(arguments: argparse.Namespace, found: dict[str, Any], results: Results) -> str:
    """The outcome as Markdown."""
    head = ["storm", "CPU µs per client", "× plain", "s until all are ready", "bytes each"]
    head += ["Redis: reads", "of the busiest channel", "subscribes", "others", "Valkey µs per client"]
    rows = [_row(f"{name}: {kind}", storms[kind], storms[PLAIN]) for name, storms in results.items() for kind in KINDS]
    title = (
        f"Recovery: {arguments.connections:,} clients connect at once, {arguments.rounds} interleaved rounds. plain: "
        "subscribe without a position to a channel without a history. back, respawned: come back to stream channels "
        f"with positions 1 to {arguments.missed} messages of {arguments.bytes} bytes ago, to workers that have served "
        "them, and to new ones after kill -9; each reply is compared with what Redis keeps. reads, subscribes: "
        "commands that Redis got for each channel and worker; others: all commands meanwhile that name no channel."
    )
    return "\n".join([title, report.machine_text(found), "", report.table(head, rows)])


def _row(name: str, storms: Sequence[Storm], plain: Sequence[Storm]) -> list[str]:
    own = [storm.worker_us for storm in storms]
    return [
        name,
        report.spread(own).text(1),
        report.paired(own, [storm.worker_us for storm in plain]).text(),
        report.spread([storm.seconds for storm in storms]).text(),
        f"{report.spread([storm.bytes_each for storm in storms]).median:,.0f}",
        f"{max(storm.reads for storm in storms):.2f}",
        f"{max(storm.most_reads for storm in storms):.2f}",
        f"{max(storm.subscribes for storm in storms):.2f}",
        f"{max(sum(storm.others.values()) for storm in storms)}",
        f"{report.spread([storm.valkey_us for storm in storms]).median:.2f}",
    ]


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="what a storm of recovering clients costs; see bench/README.md")
    parser.add_argument("--connections", type=int, default=15_000)
    parser.add_argument("--workers", nargs="+", type=int, default=[1, 4])
    parser.add_argument("--channels", nargs="+", type=int, default=[100, 1])
    parser.add_argument("--missed", type=int, default=5, help="messages of each channel, at most, of a client")
    parser.add_argument("--bytes", type=int, default=128, help="of application data in each, and some 30")
    parser.add_argument("--opening", type=int, default=512, help="clients in their handshake at a time")
    parser.add_argument("--rounds", type=int, default=3)
    report.add_options(parser, "recovery")
    return parser.parse_args(words)


def main() -> None:
    report.bench(
        "recovery",
        parse(),
        run,
        text,
        lambda results: {"works": {name: report.turns(kinds) for name, kinds in results.items()}},
    )


if __name__ == "__main__":
    main()
