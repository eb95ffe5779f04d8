"""Slow readers: what a few clients that stopped reading cost all others, and what they cost in memory.

    python bench/slow.py [--subscribers 1000] [--stalled 10] [--rate 100000] [--bytes 1024] [--seconds 3] [--rounds 5]
                         [--json] [--save [NAME]]

Does: run two hubs for each mode of a channel, one of them with stalled clients, in turns at the same rate in an open
loop; compare the latencies of those who read, and the workers' memory.
Does not: measure peers. Most keep everything for a stalled client without a bound.
Never break: those who stall do it before the first round and stay so, with a backlog that is as large as it gets.
"""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import Any

from rig import report, slots
from rig.hub import hub
from rig.population import Population, population
from rig.processes import BenchError, memory_bytes, pick_cpus
from rig.server import Server, data
from rig.slots import ByServer, charge, rotated

MODES = ("none", "latest")
WARM_UP_BYTES = 3_000_000
"""For each client, before the first round: fills kernel buffers and outbox of one that does not read."""
IN_FLIGHT = 8


@contextlib.contextmanager
def filled(mode: str, arguments: argparse.Namespace, stalled: int) -> Iterator[tuple[Server, Population, int]]:
    """A hub whose clients are subscribed to a channel of that mode, some of them stalled; its memory before that."""
    server_cpu, load_cpu = pick_cpus()
    with hub(server_cpu) as server:
        load, write = _work(server, mode)
        with population(load, arguments.subscribers, load_cpu) as clients:
            clients.wait_ready()
            clients.template(write(data(arguments.bytes)))
            clients.run(100, 1)
            before = memory_bytes(server.pids[0])["pss"]
            if stalled:
                clients.stall(stalled)
            clients.run(WARM_UP_BYTES // arguments.bytes, IN_FLIGHT)
            yield server, clients, before


def _work(server: Server, mode: str) -> tuple[Any, Callable[[bytes], bytes]]:
    if mode == "none":
        return server.load, server.write
    topics = server.ticker
    assert topics is not None
    load = replace(server.load, sends=(topics.greet(["0"]),), each=topics.each)
    return load, lambda body: topics.write([("0", body)])


def run(arguments: argparse.Namespace) -> tuple[ByServer, dict[str, int]]:
    """Slots by work, and bytes by which each worker grew since before anybody stalled."""
    per_second = arguments.rate / arguments.subscribers
    messages = round(per_second * arguments.seconds)
    with contextlib.ExitStack() as stack:
        works = {}
        for mode in MODES:
            for stalled in (0, arguments.stalled):
                name = f"{mode}, {stalled} stalled"
                works[name] = stack.enter_context(filled(mode, arguments, stalled))
        results: ByServer = {name: [] for name in works}
        for number in range(arguments.rounds):
            for name in rotated(list(works), number):
                server, clients, _ = works[name]
                results[name].append(charge(server, partial(clients.pace, messages, per_second)))
        grown = {name: memory_bytes(server.pids[0])["pss"] - before for name, (server, _, before) in works.items()}
    return results, grown


def text(arguments: argparse.Namespace, found: dict[str, Any], results: ByServer, grown: dict[str, int]) -> str:
    """The outcome as Markdown."""
    title = (
        f"Slow readers: {arguments.stalled} of {arguments.subscribers:,} clients read nothing; {arguments.rate:,} "
        f"deliveries per second, {arguments.bytes} bytes of data, {arguments.seconds:g} s a slot, {arguments.rounds} "
        "interleaved rounds. Latencies of those who read; memory against before anybody stalled."
    )
    head = ["mode of the channel", "p50 ms", "p99 ms", "p99 × none stalled", "CPU µs per delivery", "KB PSS grown"]
    rows = [_row(name, results, grown) for name in results]
    return "\n".join([title, report.machine_text(found), "", report.table(head, rows)])


def _row(name: str, results: ByServer, grown: dict[str, int]) -> list[str]:
    own = results[name]
    others = results[f"{name.split(',')[0]}, 0 stalled"]
    return [
        name,
        report.spread([slot.p50_us / 1000 for slot in own]).text(1),
        report.spread([slot.p99_us / 1000 for slot in own]).text(1),
        report.paired([slot.p99_us for slot in own], [slot.p99_us for slot in others]).text(),
        f"{slots.median(own, 'server_us'):.2f}",
        f"{grown[name] / 1024:,.0f}",
    ]


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="the cost of stalled clients; see bench/README.md")
    parser.add_argument("--subscribers", type=int, default=1000)
    parser.add_argument("--stalled", type=int, default=10)
    parser.add_argument("--rate", type=int, default=100_000, help="deliveries per second, to all together")
    parser.add_argument("--bytes", type=int, default=1024, help="of application data in each message (36 or more)")
    parser.add_argument("--seconds", type=float, default=3.0, help="of each slot")
    parser.add_argument("--rounds", type=int, default=5)
    report.add_options(parser, "slow")
    return parser.parse_args(words)


def main() -> None:
    arguments = parse()
    found = report.machine()
    try:
        results, grown = run(arguments)
    except BenchError as error:
        raise SystemExit(f"bench: {error}") from None
    figures = {
        name: {"slots": [asdict(slot) for slot in turns], "grown": grown[name]} for name, turns in results.items()
    }
    outcome = {"bench": "slow", "arguments": vars(arguments), "machine": found, "works": figures}
    report.finish(outcome, text(arguments, found, results, grown), arguments)


if __name__ == "__main__":
    main()
