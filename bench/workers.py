"""Workers: what a delivery costs when the same clients are spread over several processes on the same CPUs.

    python bench/workers.py [--workers 1 2 4 8] [--subscribers 5000] [--bytes 128] [--messages 30] [--rounds 5]
                            [--in-flight 1] [--json] [--save [NAME]]

Does: run a hub for each number of workers, with equally many clients, in turns; charge all workers of one together.
Does not: look for more deliveries per second: two CPUs carry the workers, Valkey, and the load too.
Never break: the CPU time of Valkey and of the supervisor stands apart; Valkey's grows with the workers.
"""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Sequence
from functools import partial
from typing import Any

from rig import report, slots
from rig.hub import hub
from rig.population import population
from rig.processes import pick_cpus
from rig.server import data
from rig.slots import ByServer, charge, rotated

WARM_UP_MESSAGES = 10


def run(arguments: argparse.Namespace) -> ByServer:
    """All rounds; the workers may run on every CPU."""
    _, load_cpu = pick_cpus()
    names = [_name(count) for count in arguments.workers]
    results: ByServer = {name: [] for name in names}
    with contextlib.ExitStack() as stack:
        works = {}
        for count in arguments.workers:
            server = stack.enter_context(hub(None, count))
            clients = stack.enter_context(population(server.load, arguments.subscribers, load_cpu))
            clients.wait_ready()
            clients.template(server.write(data(arguments.bytes)))
            clients.run(WARM_UP_MESSAGES, 1)
            works[_name(count)] = (server, partial(clients.run, arguments.messages, arguments.in_flight))
        for number in range(arguments.rounds):
            for name in rotated(names, number):
                results[name].append(charge(*works[name]))
    return results


def _name(count: int) -> str:
    return f"{count} worker" + "s" * (count > 1)


def text(arguments: argparse.Namespace, found: dict[str, Any], results: ByServer) -> str:
    """The outcome as Markdown."""
    title = (
        f"Workers: 1 channel → {arguments.subscribers:,} subscribers, {arguments.bytes} bytes of data, closed loop "
        f"with {arguments.in_flight} in flight, {arguments.messages} messages a slot, {arguments.rounds} interleaved "
        "rounds; CPU of all workers together."
    )
    compared = [_name(arguments.workers[0])]
    return "\n".join([title, report.machine_text(found), "", *slots.text(results, compared)])


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="CPU per delivery by the number of workers; see bench/README.md")
    parser.add_argument("--workers", nargs="+", type=int, default=[1, 2, 4, 8])
    parser.add_argument("--subscribers", type=int, default=5000)
    parser.add_argument("--bytes", type=int, default=128, help="of application data in each message (36 or more)")
    parser.add_argument("--messages", type=int, default=30, help="that each hub delivers in a round")
    parser.add_argument("--in-flight", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    report.add_options(parser, "workers")
    return parser.parse_args(words)


def main() -> None:
    slots.bench("workers", parse(), run, text)


if __name__ == "__main__":
    main()
