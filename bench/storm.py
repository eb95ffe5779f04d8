"""Storm: everybody connects at once; connections per second of the server's CPU.

    python bench/storm.py [--connections 5000] [--rounds 5] [--servers NAME…] [--json] [--save [NAME]]

Does: in each round let a fresh population connect to each server, and charge the server's CPU time from the first
connect to the last client that is ready.
Does not: use TLS.
Never break: ready is what a client needs: at the hub the handshake, connect and subscribe are answered; at a plain
WebSocket server the handshake is. The rows say which.
"""

from __future__ import annotations

import argparse
import contextlib
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

from rig import report, servers
from rig.hub import SECRET, greet
from rig.population import LINE, Load, population
from rig.processes import pick_cpus
from rig.server import CHANNEL, Server, wait_until_left

from hub import auth

WITH_TOKENS = "hub-token"
TOKEN_TTL_S = 3600


@dataclass(frozen=True, slots=True)
class Storm:
    """One server's turn: connections ready per CPU second of the server and per second of wall time; both shares."""

    per_cpu_s: float
    per_s: float
    server_share: float
    population_share: float


def measure(server: Server, load: Load, connections: int, opening: int, load_cpu: int) -> Storm:
    """Let `connections` clients come, at most `opening` of them unfinished at a time."""
    before_s, before_files = server.cpu_s(), server.open_files()
    with population(load, connections, load_cpu, opening) as clients:
        counts = clients.wait_ready()
        used_s = server.cpu_s() - before_s
    wait_until_left(server, before_files)
    return Storm(
        connections / used_s, connections / counts.seconds, used_s / counts.seconds, counts.cpu_seconds / counts.seconds
    )


Results = dict[str, list[Storm]]


def _start(name: str, cpu: int) -> AbstractContextManager[Server]:
    return servers.SERVERS["hub" if name == WITH_TOKENS else name].start(cpu)


def with_tokens(load: Load, connections: int) -> Load:
    """The same with an HS256 token of its own for each client, made before anybody connects."""
    now = time.time()
    tokens = [auth.make(f"user-{i}", SECRET, TOKEN_TTL_S, now) for i in range(connections)]
    return replace(load, sends=(greet([CHANNEL], LINE),), lines=tokens)


def run(arguments: argparse.Namespace) -> Results:
    """All rounds of all servers, the order moving on by one each time."""
    server_cpu, load_cpu = pick_cpus()
    results: Results = {name: [] for name in arguments.servers}
    with contextlib.ExitStack() as stack:
        started = {name: stack.enter_context(_start(name, server_cpu)) for name in arguments.servers}
        for number in range(arguments.rounds):
            cut = number % len(arguments.servers)
            for name in [*arguments.servers[cut:], *arguments.servers[:cut]]:
                server = started[name]
                load = with_tokens(server.load, arguments.connections) if name == WITH_TOKENS else server.load
                storm = measure(server, load, arguments.connections, arguments.opening, load_cpu)
                results[name].append(storm)
    return results


def text(arguments: argparse.Namespace, found: dict[str, Any], results: Results) -> str:
    """The outcome as Markdown."""
    head = [
        "server",
        "per CPU second",
        f"× {next(iter(results))}",
        "per second",
        "server's CPU %",
        "population's CPU %",
    ]
    first = [storm.per_cpu_s for storm in next(iter(results.values()))]
    rows = [_row(name, storms, first) for name, storms in results.items()]
    title = (
        f"Storm: {arguments.connections:,} clients connect at once, {arguments.rounds} interleaved rounds. Hub, Bun "
        "and NATS: handshake and subscribe (hub-token: with a token of its own for each client); Socket.IO: "
        "handshake and namespace; the others: the handshake alone."
    )
    return "\n".join(
        [title, report.machine_text(found), "", report.table(head, rows), *report.missing_text(arguments.missing)]
    )


def _row(name: str, storms: Sequence[Storm], first: Sequence[float]) -> list[str]:
    own = [storm.per_cpu_s for storm in storms]
    return [
        name,
        report.spread(own).text(0),
        report.paired(own, first).text(),
        report.spread([storm.per_s for storm in storms]).text(0),
        f"{report.spread([storm.server_share for storm in storms]).median * 100:.0f}",
        f"{report.spread([storm.population_share for storm in storms]).median * 100:.0f}",
    ]


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="connections per CPU second; see bench/README.md")
    parser.add_argument("--connections", type=int, default=5000)
    parser.add_argument("--opening", type=int, default=512, help="clients in their handshake at a time")
    parser.add_argument("--rounds", type=int, default=5)
    names = ["hub", WITH_TOKENS, *servers.COMING[1:]]
    parser.add_argument("--servers", nargs="+", choices=names, default=names)
    report.add_options(parser, "storm")
    return report.parsed(parser, words)


def main() -> None:
    report.bench("storm", parse(), run, text, lambda results: {"servers": report.turns(results)})


if __name__ == "__main__":
    main()
