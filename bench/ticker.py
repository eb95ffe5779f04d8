"""Ticker: symbols to subscribers of some or all of them; updates delivered per second and core.

    python bench/ticker.py [--work all|some|zipf] [--symbols 100] [--subscribers 1000] [--batches 50] [--rounds 5]
                           [--bytes 80] [--servers NAME…] [--json] [--save [NAME]]

Does: publish ticks, each a batch with one message of every symbol, in a closed loop with one tick in flight; count what
arrives.
Does not: run the hub's own source; its batches reach Redis as the ticker's do, one PUBLISH on the namespace's feed.
Never break: every client of every server has the same symbols, drawn from a fixed seed.

The works: `all`, every subscriber wants every symbol; `some`, each wants 20 drawn evenly; `zipf`, each wants 20 drawn
by popularity, the k-th symbol being k times rarer than the first. The limit, c-topics, sends the same joined bytes.
"""

from __future__ import annotations

import argparse
import contextlib
import random
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from rig import report, servers, slots
from rig.population import LINE, Population, population
from rig.processes import pick_cpus
from rig.server import Server, Topics
from rig.slots import ByServer, charge, rotated

SEED = 1
WANTED = 20
WARM_UP_BATCHES = 5
COMPARED = ("c-topics", "bun")
WORKS = ("all", "some", "zipf")


def watch_lists(work: str, symbols: int, subscribers: int, wanted: int = WANTED) -> list[list[str]]:
    """What each subscriber wants, as topics; `wanted` of them, but for the work `all`."""
    names = [str(i) for i in range(symbols)]
    chance = random.Random(SEED)
    if work == "all":
        return [names] * subscribers
    if work == "some":
        return [chance.sample(names, wanted) for _ in range(subscribers)]
    # Efraimidis and Spirakis: the largest of u^(1/w) are a sample without replacement by weight, here 1/rank.
    return [sorted(names, key=lambda name: -(chance.random() ** (int(name) + 1)))[:wanted] for _ in range(subscribers)]


def clients_of(
    server: Server, lists: Sequence[Sequence[str]], cpu: int
) -> contextlib.AbstractContextManager[Population]:
    """Subscribers of one server, each with its own list."""
    topics = _topics(server)
    lines = [topics.greet(wanted) for wanted in lists]
    load = replace(server.load, sends=(LINE,), lines=lines, ready_text=topics.ready_text, each=topics.each)
    return population(load, len(lists), cpu)


def _topics(server: Server) -> Topics:
    assert server.ticker is not None, "servers.TOPICS have them"
    return server.ticker


def tick(symbols: int, size: int) -> list[tuple[str, bytes]]:
    """One message of every symbol, `size` bytes of data each."""
    return [(str(i), (b'{"s":"%d","p":"' % i).ljust(size - 2, b"1") + b'"}') for i in range(symbols)]


def run(arguments: argparse.Namespace) -> ByServer:
    """All rounds of all servers."""
    server_cpu, load_cpu = pick_cpus()
    lists = watch_lists(arguments.work, arguments.symbols, arguments.subscribers)
    batch = tick(arguments.symbols, arguments.bytes)
    results: ByServer = {name: [] for name in arguments.servers}
    with contextlib.ExitStack() as stack:
        works = {}
        for name in arguments.servers:
            server = stack.enter_context(servers.SERVERS[name].start(server_cpu))
            clients = stack.enter_context(clients_of(server, lists, load_cpu))
            clients.wait_ready()
            clients.template(_topics(server).write(batch))
            clients.run(WARM_UP_BATCHES, 1, len(lists[0]))
            works[name] = (server, partial(clients.run, arguments.batches, 1, len(lists[0])))
        for number in range(arguments.rounds):
            for name in rotated(arguments.servers, number):
                results[name].append(charge(*works[name]))
    return results


def text(arguments: argparse.Namespace, found: dict[str, Any], results: ByServer) -> str:
    """The outcome as Markdown."""
    wants = {"all": "all", "some": f"{WANTED} random", "zipf": f"{WANTED} by Zipf"}[arguments.work]
    title = (
        f"Ticker: {arguments.symbols} symbols → {arguments.subscribers} subscribers of {wants} each, "
        f"{arguments.bytes} bytes of data, {arguments.batches} ticks a slot, {arguments.rounds} interleaved rounds. "
        "A delivery is one update of one symbol at one subscriber."
    )
    lines = [title, report.machine_text(found), "", *slots.text(results, COMPARED, latencies=False)]
    return "\n".join([*lines, *report.missing_text(arguments.missing)])


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="symbol updates per second and core; see bench/README.md")
    parser.add_argument("--work", choices=WORKS, default="all")
    parser.add_argument("--symbols", type=int, default=100)
    parser.add_argument("--subscribers", type=int, default=1000)
    parser.add_argument("--batches", type=int, default=50, help="ticks that each server delivers in a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--bytes", type=int, default=80, help="of application data in each message")
    parser.add_argument("--servers", nargs="+", choices=servers.TOPICS, default=servers.TOPICS)
    report.add_options(parser, "ticker")
    return report.parsed(parser, words)


def main() -> None:
    slots.bench("ticker", parse(), run, text)


if __name__ == "__main__":
    main()
