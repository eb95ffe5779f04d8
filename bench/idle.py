"""Idle: user memory of one connection that is open, subscribed to one channel and silent.

    python bench/idle.py [--connections 10000] [--watch 5] [--servers NAME…] [--json] [--save [NAME]]

Does: start each server, read its PSS without clients and with them, divide the difference.
Does not: count what the kernel keeps for a socket; that is the same for every server.
Never break: the population and the server are different processes, and only the server's memory is read.
"""

from __future__ import annotations

import argparse
import contextlib
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from rig import report, servers
from rig.population import population
from rig.processes import BenchError, memory_bytes, pick_cpus

SETTLE_S = 2.0
"""After the last handshake: lets timers of the opening run out, as an idle server's have."""


class Idle(NamedTuple):
    """One server with its connections; bytes for each connection, CPU in ms per second of silence.

    private_bytes can exceed pss_bytes: pages that a worker shared with its supervisor become its own when it writes to
    them, once for each worker and not for each connection.
    """

    connections: int
    empty_bytes: int
    pss_bytes: float
    private_bytes: float
    cpu_ms_per_s: float
    pings: int
    """That the clients have answered since they began."""


def measure(name: str, connections: int, watch_s: float) -> Idle:
    """Start one server, fill it, watch it for `watch_s` seconds."""
    server_cpu, load_cpu = pick_cpus()
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(servers.SERVERS[name].start(server_cpu))
        empty = memory_bytes(server.pids[0])
        clients = stack.enter_context(population(server.load, connections, load_cpu))
        clients.wait_ready()
        time.sleep(SETTLE_S)
        began_s, began_cpu_s = time.monotonic(), server.cpu_s()
        time.sleep(watch_s)
        busy_ms = (server.cpu_s() - began_cpu_s) / (time.monotonic() - began_s) * 1000
        full = memory_bytes(server.pids[0])
        counts = clients.stats()
        if counts.ready != connections:
            raise BenchError(f"{name} lost some of {connections} connections")
        return Idle(
            connections,
            empty["pss"],
            (full["pss"] - empty["pss"]) / connections,
            (full["private"] - empty["private"]) / connections,
            busy_ms,
            counts.pings,
        )


def text(arguments: argparse.Namespace, found: dict[str, Any], results: dict[str, Idle]) -> str:
    """The outcome as Markdown."""
    head = ["server", "KB PSS each", "KB private each", "KB PSS empty", "CPU ms/s", "pings answered"]
    rows = [
        [
            name,
            f"{idle.pss_bytes / 1024:.2f}",
            f"{idle.private_bytes / 1024:.2f}",
            f"{idle.empty_bytes / 1024:,.0f}",
            f"{idle.cpu_ms_per_s:.1f}",
            f"{idle.pings:,}",
        ]
        for name, idle in results.items()
    ]
    connections = next(iter(results.values())).connections
    title = (
        f"Idle: {connections:,} connections, the hub's subscribed to one channel, against the same server with none."
    )
    return "\n".join(
        [title, report.machine_text(found), "", report.table(head, rows), *report.missing_text(arguments.missing)]
    )


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="memory of an idle connection; see bench/README.md")
    parser.add_argument("--connections", type=int, default=10_000)
    parser.add_argument(
        "--watch",
        type=float,
        default=5.0,
        help="seconds of silence over which CPU is read; 25 or more: with the hub's heartbeats",
    )
    parser.add_argument("--servers", nargs="+", choices=servers.COMING, default=servers.COMING)
    report.add_options(parser, "idle")
    return report.parsed(parser, words)


def main() -> None:
    arguments = parse()
    found = report.machine()
    try:
        results = {name: measure(name, arguments.connections, arguments.watch) for name in arguments.servers}
    except BenchError as error:
        raise SystemExit(f"bench: {error}") from None
    figures = {name: idle._asdict() for name, idle in results.items()}
    outcome = {"bench": "idle", "arguments": vars(arguments), "machine": found, "servers": figures}
    report.finish(outcome, text(arguments, found, results), arguments)


if __name__ == "__main__":
    main()
