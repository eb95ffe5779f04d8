"""Pace: how late messages are at a given rate, in an open loop.

    python bench/pace.py [--subscribers 5000] [--rate 60000] [--seconds 5] [--rounds 5] [--bytes 128] [--servers NAME…]
                         [--json] [--save [NAME]]

Does: publish by the clock, whatever has arrived; measure from the moment at which a message was due to each client's
read.
Does not: send faster than the servers can; a server that falls behind shows it by its latencies, which then grow with
the seconds.
Never break: a publisher that is late counts against the server's figures, never in their favour.
"""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Sequence
from functools import partial
from typing import Any

from rig import report, servers, slots
from rig.population import population
from rig.processes import pick_cpus
from rig.server import data
from rig.slots import ByServer, Slot, charge, rotated

COMPARED = ("c-loop", "bun")
WARM_UP_MESSAGES = 5


def run(arguments: argparse.Namespace) -> ByServer:
    """All rounds of all servers."""
    server_cpu, load_cpu = pick_cpus()
    per_second = arguments.rate / arguments.subscribers
    messages = max(1, round(per_second * arguments.seconds))
    results: ByServer = {name: [] for name in arguments.servers}
    with contextlib.ExitStack() as stack:
        works = {}
        for name in arguments.servers:
            server = stack.enter_context(servers.SERVERS[name].start(server_cpu))
            clients = stack.enter_context(population(server.load, arguments.subscribers, load_cpu))
            clients.wait_ready()
            clients.template(server.write(data(arguments.bytes)))
            clients.run(WARM_UP_MESSAGES, 1)
            works[name] = (server, partial(clients.pace, messages, per_second))
        for number in range(arguments.rounds):
            for name in rotated(arguments.servers, number):
                results[name].append(charge(*works[name]))
    return results


def rows(results: ByServer) -> list[list[str]]:
    """Latencies with their ratios, and what they cost."""
    return [_row(name, results) for name in results]


def _row(name: str, results: ByServer) -> list[str]:
    own = results[name]
    cells = [name]
    cells += [
        report.spread([getattr(slot, figure) / 1000 for slot in own]).text(1)
        for figure in ("p50_us", "p99_us", "p999_us")
    ]
    cells += [_ratio(own, results[other]) for other in COMPARED if other in results]
    return [
        *cells,
        f"{slots.median(own, 'deliveries_per_s'):,.0f}",
        f"{slots.median(own, 'server_us'):.2f}",
        f"{slots.median(own, 'server_share') * 100:.0f}",
        f"{slots.median(own, 'population_share') * 100:.0f}",
    ]


def _ratio(own: Sequence[Slot], others: Sequence[Slot]) -> str:
    return report.paired([slot.p99_us for slot in own], [slot.p99_us for slot in others]).text()


def text(arguments: argparse.Namespace, found: dict[str, Any], results: ByServer) -> str:
    """The outcome as Markdown."""
    title = (
        f"Open loop: {arguments.rate:,} deliveries per second to {arguments.subscribers:,} clients, {arguments.bytes} "
        f"bytes of data, {arguments.seconds:g} s a slot, {arguments.rounds} interleaved rounds."
    )
    head = ["server", "p50 ms", "p99 ms", "p99.9 ms", *[f"p99 × {other}" for other in COMPARED if other in results]]
    head += ["deliveries/s", "CPU µs per delivery", "server's CPU %", "population's CPU %"]
    lines = [title, report.machine_text(found), "", report.table(head, rows(results))]
    return "\n".join([*lines, *report.missing_text(arguments.missing)])


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="latencies at a given rate; see bench/README.md")
    parser.add_argument("--subscribers", type=int, default=5000)
    parser.add_argument("--rate", type=int, default=60_000, help="deliveries per second, to all together")
    parser.add_argument("--seconds", type=float, default=5.0, help="that each server takes in a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--bytes", type=int, default=128, help="of application data in each message (36 or more)")
    parser.add_argument("--servers", nargs="+", choices=servers.BROADCAST, default=servers.BROADCAST)
    report.add_options(parser, "pace")
    return report.parsed(parser, words)


def main() -> None:
    slots.bench("pace", parse(), run, text)


if __name__ == "__main__":
    main()
