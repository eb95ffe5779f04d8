"""Fan-out: CPU per delivery of one channel to N subscribers, side by side with the C loop and with the peers.

    python bench/fanout.py [--subscribers 1000] [--bytes 128] [--messages 100] [--rounds 5] [--servers NAME…]
                           [--json] [--save [NAME]]

Does: start every server and its clients once, then go round: in each round each server does the same work, in an order
that moves on by one each time; print medians over the rounds and ratios formed inside a round.
Does not: know how servers are started (rig/servers.py) or how clients count (population.c).
Never break: rounds are interleaved and no figure stands without its spread. On a machine that does other things too,
only the ratios mean something.

The work is a closed loop: a message is published when fewer than `in flight` have not yet reached everybody. With 1 the
server never has two messages to join; with 2 it may.
"""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from rig import report, servers, slots
from rig.population import population
from rig.processes import BenchError, pick_cpus
from rig.server import data
from rig.slots import charge, rotated

IN_FLIGHT = (1, 2)
WARM_UP_MESSAGES = 20
COMPARED = ("c-loop", "bun")
"""What the others are compared with, where they take part."""
MAX_ENVELOPE = 64


Results = dict[int, slots.ByServer]
"""By in flight."""


def run(arguments: argparse.Namespace) -> Results:
    """All rounds of all servers. Raises BenchError when one of them did not deliver everything."""
    server_cpu, load_cpu = pick_cpus()
    body = data(arguments.bytes)
    results: Results = {in_flight: {name: [] for name in arguments.servers} for in_flight in IN_FLIGHT}
    with contextlib.ExitStack() as stack:
        pairs = {}
        for name in arguments.servers:
            server = stack.enter_context(servers.SERVERS[name].start(server_cpu))
            clients = stack.enter_context(population(server.load, arguments.subscribers, load_cpu))
            clients.wait_ready()
            clients.template(server.write(body))
            clients.run(WARM_UP_MESSAGES, 1)
            pairs[name] = (server, clients)
        for number in range(arguments.rounds):
            for in_flight, by_server in results.items():
                for name in rotated(arguments.servers, number):
                    server, clients = pairs[name]
                    work = partial(clients.run, arguments.messages, in_flight)
                    by_server[name].append(charge(server, work))
    _check_same_work(results, len(body))
    return results


def _check_same_work(results: Results, size: int) -> None:
    """Nobody sent less than the data, and nobody more than one of the envelopes around it."""
    for by_server in results.values():
        for name, turns in by_server.items():
            sizes = {slot.payload_bytes for slot in turns}
            if not all(size <= found < size + MAX_ENVELOPE for found in sizes):
                raise BenchError(f"{name} sent messages of {sorted(sizes)} bytes for {size} bytes of data")


# Printing


def text(arguments: argparse.Namespace, found: Mapping[str, Any], results: Results) -> str:
    """The outcome as Markdown."""
    lines = [
        f"Fan-out: 1 channel → {arguments.subscribers} subscribers, {arguments.bytes} bytes of data, "
        f"{arguments.messages} messages a slot, {arguments.rounds} interleaved rounds. "
        "Medians (lowest–highest); ratios are formed inside a round.",
        report.machine_text(found),
    ]
    for in_flight, by_server in results.items():
        lines += ["", f"Closed loop, {in_flight} in flight:", "", *slots.text(by_server, COMPARED)]
    lines += report.missing_text(arguments.missing)
    return "\n".join(lines)


def record(arguments: argparse.Namespace, found: Mapping[str, Any], results: Results) -> dict[str, Any]:
    """The outcome with every slot of every round."""
    figures = {str(in_flight): slots.record(by_server) for in_flight, by_server in results.items()}
    return {"bench": "fanout", "arguments": vars(arguments), "machine": dict(found), "in_flight": figures}


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="CPU per delivery, side by side; see bench/README.md")
    parser.add_argument("--subscribers", type=int, default=1000)
    parser.add_argument("--bytes", type=int, default=128, help="of application data in each message (36 or more)")
    parser.add_argument("--messages", type=int, default=100, help="that each server delivers in a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--servers", nargs="+", choices=servers.BROADCAST, default=servers.BROADCAST)
    report.add_options(parser, "fanout")
    return report.parsed(parser, words)


def main() -> None:
    arguments = parse()
    found = report.machine()
    try:
        results = run(arguments)
    except BenchError as error:
        raise SystemExit(f"bench: {error}") from None
    outcome = text(arguments, found, results)
    report.finish(record(arguments, found, results), outcome, arguments)


if __name__ == "__main__":
    main()
