"""Many: how many connections one machine holds, what each takes, and how long a message to all of them is under way.

    python bench/many.py [--connections 200000] [--workers 12] [--watch 30] [--messages 5] [--json] [--save [NAME]]

Does: fill a hub of several workers from several processes of clients; read its memory and the kernel's; watch it idle;
publish messages to everybody, one after the other.
Does not: pin anything: hub, Valkey, publisher and clients share all CPUs, so a machine that serves only the hub has
more of them for it.
Never break: every client is subscribed, by its own word and by the hub's; a message counts only when all have it, as
often as it was published. Where somebody has not, there is no figure, but who, and what the hub has counted meanwhile.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rig import counters, report
from rig.hub import hub
from rig.population import Counts, Population, population
from rig.processes import BenchError, BenchSilence, memory_bytes
from rig.server import Server, data

CLIENTS_EACH = 18_000
"""In one process of clients; one may hold 20,000 descriptors where nobody has raised the limit."""
SOURCES = 64
"""Addresses that clients connect from; with 8 of them the kernel's search for a free port took most of the time."""
SETTLE_S = 3.0
"""After the last handshake: lets timers of the opening run out."""
READY_TIMEOUT_S = 300.0
SUBSCRIBED_TIMEOUT_S = 10.0
"""For the hub's own figures to show all subscriptions; each worker tells them once a second."""
COUNTERS_POLL_S = 0.2
POLL_S = 0.02
ARRIVAL_TIMEOUT_S = 60.0


class Many(NamedTuple):
    """One machine full of connections.

    workers: connections of the emptiest and of the fullest. hub_bytes: PSS of all workers for each connection;
    machine_bytes: of the machine's memory that was available, for each connection, with both its sockets and the
    clients. idle_cpu_s: CPU seconds of the hub in a second in which nothing is published, heartbeats included.
    latency_us: from the publisher's write to a client's read, of all clients and messages; the last is the largest of
    any.
    """

    connections: int
    opened_s: float
    emptiest: int
    fullest: int
    hub_bytes: float
    machine_bytes: float
    idle_cpu_s: float
    messages: int
    p50_us: float
    p99_us: float
    last_us: float
    cpu_us: float


def measure(arguments: argparse.Namespace) -> Many:
    """Fill a hub, watch it, publish to all."""
    count = -(-arguments.connections // CLIENTS_EACH)
    shares = [arguments.connections // count + (i < arguments.connections % count) for i in range(count)]
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(hub(None, arguments.workers))
        stack.enter_context(_explained(server))
        empty = sum(map(_pss, server.pids))
        available = _available_bytes()
        groups: list[Population] = []
        began_s = time.monotonic()
        for number in range(count):
            groups.append(stack.enter_context(population(server.load, shares[number], sources=SOURCES)))
            groups[-1].wait_ready(READY_TIMEOUT_S)
            if sys.stderr.isatty():
                sys.stderr.write(f"\r{sum(shares[: number + 1]):,} connections")
        opened_s = time.monotonic() - began_s
        time.sleep(SETTLE_S)
        idle_cpu_s = _idle(server, arguments.watch)
        # Before the hub is asked what it counts, which takes a worker some memory.
        hub_bytes = (sum(map(_pss, server.pids)) - empty) / arguments.connections
        machine_bytes = (available - _available_bytes()) / arguments.connections
        _wait_subscribed(server, arguments.connections)
        held = counters.by_worker(server.metrics, "hub_connections")
        return Many(
            arguments.connections,
            opened_s,
            int(min(held)),
            int(max(held)),
            hub_bytes,
            machine_bytes,
            idle_cpu_s,
            arguments.messages,
            *_tell_all(server, groups, arguments),
        )


@contextlib.contextmanager
def _explained(server: Server) -> Iterator[None]:
    """Put behind the text of an error what the hub has counted since."""
    before = counters.read(server.metrics)
    try:
        yield
    except BenchError as error:
        try:
            grown = counters.grown(counters.read(server.metrics), before)
        except OSError as unread:
            grown = [f"{server.metrics}: {unread}"]
        raise BenchError("; ".join([str(error), *(grown or ["the hub has counted no reason"])])) from None


def _wait_subscribed(server: Server, connections: int) -> None:
    deadline = time.monotonic() + SUBSCRIBED_TIMEOUT_S
    while (found := counters.read(server.metrics)["hub_subscriptions"]) != connections:
        if time.monotonic() > deadline:
            raise BenchError(f"{connections:,} clients are subscribed, and {found:,.0f} by the hub's count")
        time.sleep(COUNTERS_POLL_S)


def _tell_all(server: Server, groups: Sequence[Population], arguments: argparse.Namespace) -> tuple[float, ...]:
    """Publish one message after the other; the last one's latency is the largest of all."""
    for group in groups:
        # Also to those that only read: by it they know where the time stands in a message.
        group.template(server.write(data(arguments.bytes)))
        _begin_anew(group)
    began_cpu_s = server.cpu_s()
    deliveries, weighed, largest = 0, [0.0, 0.0], 0.0
    for _ in range(arguments.messages):
        for seen in _tell_once(groups):
            deliveries += seen.latencies
            # Of groups of equal size: the mean of their percentiles, and the largest of all.
            weighed[0] += seen.p50_us * seen.latencies
            weighed[1] += seen.p99_us * seen.latencies
            largest = max(largest, seen.max_us)
    cpu_us = (server.cpu_s() - began_cpu_s) / deliveries * 1e6
    return weighed[0] / deliveries, weighed[1] / deliveries, largest, cpu_us


def _tell_once(groups: Sequence[Population]) -> list[Counts]:
    """Publish one message, by the first group; what each has counted of it."""
    publisher, others = groups[0], groups[1:]
    deadline = time.monotonic() + ARRIVAL_TIMEOUT_S
    try:
        counts = [publisher.run(1, 1, timeout_s=ARRIVAL_TIMEOUT_S)]
    except BenchSilence:
        counts = [publisher.stats()]
    counts += [_wait_arrived(group, deadline) for group in others]
    if any(seen.most > 1 for seen in counts):
        raise BenchError("a message has reached somebody twice")
    if missing := [(number, seen) for number, seen in enumerate(counts) if seen.least < 1]:
        total = sum(seen.connections - seen.messages for _, seen in missing)
        where = ", ".join(f"{seen.connections - seen.messages:,} of group {number}" for number, seen in missing)
        raise BenchError(f"a message has not reached {total:,} clients after {ARRIVAL_TIMEOUT_S:g} s: {where}")
    for group in others:
        _begin_anew(group)
    return counts


def _begin_anew(group: Population) -> None:
    """Return when it has: what came before that would count as missed."""
    group.reset()
    group.stats()


def _wait_arrived(group: Population, deadline: float) -> Counts:
    """What the group has counted when all of it have the message, or at the deadline."""
    while (seen := group.stats()).least < 1 and time.monotonic() < deadline:
        time.sleep(POLL_S)
    return seen


def _idle(server: Server, watch_s: float) -> float:
    began_s, began_cpu_s = time.monotonic(), server.cpu_s()
    time.sleep(watch_s)
    return (server.cpu_s() - began_cpu_s) / (time.monotonic() - began_s)


def _pss(pid: int) -> int:
    return memory_bytes(pid)["pss"]


def _available_bytes() -> int:
    lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    return int(lines["MemAvailable"].split()[0]) * 1024


def text(arguments: argparse.Namespace, found: Mapping[str, Any], many: Many) -> str:
    """The outcome as Markdown."""
    head = ["what", "found"]
    rows = [
        ["connections, each subscribed", f"{many.connections:,}"],
        ["workers; connections of the emptiest, of the fullest", _workers(arguments, many)],
        ["opened, subscribed, in", f"{many.opened_s:.1f} s, {many.connections / many.opened_s:,.0f} a second"],
        ["KB of the hub's memory (PSS) for each", f"{many.hub_bytes / 1024:.2f}"],
        [
            "KB of the machine's memory for each, both sockets and the client included",
            f"{many.machine_bytes / 1024:.2f}",
        ],
        ["CPU of the hub while nothing is published, heartbeats included", f"{many.idle_cpu_s:.0%} of one"],
        [f"one message to all, of {many.messages}: half have it in", f"{many.p50_us / 1000:,.0f} ms"],
        ["99 % have it in", f"{many.p99_us / 1000:,.0f} ms"],
        ["the last one has it in", f"{many.last_us / 1000:,.0f} ms"],
        ["CPU of the hub for each delivery", f"{many.cpu_us:.1f} µs"],
    ]
    title = (
        f"Many: {many.connections:,} WebSocket clients of one machine's hub, {arguments.bytes} bytes of data in a "
        f"message; hub, Valkey and clients on {os.cpu_count()} CPUs."
    )
    return "\n".join([title, report.machine_text(dict(found)), "", report.table(head, rows)])


def _workers(arguments: argparse.Namespace, many: Many) -> str:
    return f"{arguments.workers}; {many.emptiest:,}, {many.fullest:,}"


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="how many connections a machine holds; see bench/README.md")
    parser.add_argument("--connections", type=int, default=200_000)
    parser.add_argument("--workers", type=int, default=12, help="each holds what its limit of open files admits")
    parser.add_argument("--watch", type=float, default=30.0, help="seconds in which nothing is published")
    parser.add_argument("--messages", type=int, default=5)
    parser.add_argument("--bytes", type=int, default=128, help="of application data in each message (36 or more)")
    report.add_options(parser, "many")
    return parser.parse_args(words)


def main() -> None:
    arguments = parse()
    found = report.machine()
    try:
        many = measure(arguments)
    except BenchError as error:
        raise SystemExit(f"bench: {error}") from None
    outcome = {"bench": "many", "arguments": vars(arguments), "machine": found, "servers": {"hub": many._asdict()}}
    report.finish(outcome, text(arguments, found, many), arguments)


if __name__ == "__main__":
    main()
