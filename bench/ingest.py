"""Ingest: how many messages a worker takes in from Redis, when nearly nobody wants them.

    python bench/ingest.py [--messages 4000] [--batch 500] [--turns 25] [--rounds 5] [--bytes 80]
                           [--json] [--save [NAME]]

Does: write blocks of pipelined PUBLISHes to Redis, the next block when fewer than 2 are under way; the last message of
each block is for the one subscriber, so that its arrival says that the worker has taken in all before it.
Does not: count what Valkey and the publisher cost, but it shows both: on one CPU they share it with the worker.
Never break: every message passes the whole way into the fan-out (read, unpack, look up who is subscribed).

Two works: single, one message in each PUBLISH; batches, as the ticker publishes, so many ticks in each.
"""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rig import report
from rig.hub import hub
from rig.population import Population, population
from rig.processes import cpu_s, pick_cpus
from rig.server import Batch, Server, Topics

WATCHED = "watched"
IN_FLIGHT = 2


@dataclass(frozen=True, slots=True)
class Intake:
    """One turn: messages per CPU second of the worker and per second of wall time; µs of Valkey's CPU per message."""

    per_cpu_s: float
    per_s: float
    worker_share: float
    valkey_us: float


Results = dict[str, list[Intake]]


def block(topics: Topics, messages: int, batch: int, size: int) -> bytes:
    """PUBLISHes of `batch` messages each, and one for the subscriber."""
    every: Batch = [(f"S{i}", _body(f"S{i}", size)) for i in range(messages)]
    parts = [topics.write(every[i : i + batch]) for i in range(0, messages, batch)]
    return b"".join(parts) + topics.write([(WATCHED, _body(WATCHED, size))])


def _body(symbol: str, size: int) -> bytes:
    return (b'{"s":"%s","p":"' % symbol.encode()).ljust(size - 2, b"1") + b'"}'


@contextlib.contextmanager
def _started() -> Iterator[tuple[Server, Population, Topics]]:
    server_cpu, load_cpu = pick_cpus()
    with hub(server_cpu) as server:
        topics = server.ticker
        assert topics is not None
        load = replace(server.load, sends=(topics.greet([WATCHED]),), each=topics.each)
        with population(load, 1, load_cpu) as clients:
            clients.wait_ready()
            yield server, clients, topics


def run(arguments: argparse.Namespace) -> Results:
    """All rounds of both works, at one hub."""
    works = {"single": 1, f"batches of {arguments.batch}": arguments.batch}
    results: Results = {name: [] for name in works}
    with _started() as (server, clients, topics):
        for _ in range(arguments.rounds):
            for name, batch in works.items():
                clients.template(block(topics, arguments.messages, batch, arguments.bytes))
                clients.run(2, 1)
                results[name].append(measure(server, clients, arguments.turns, arguments.messages + 1))
    return results


def measure(server: Server, clients: Population, turns: int, messages: int) -> Intake:
    """Let `turns` blocks of `messages` pass."""
    valkey = server.apart["valkey"]
    before_s, before_valkey_s = server.cpu_s(), cpu_s(valkey)
    counts = clients.run(turns, IN_FLIGHT)
    used_s, total = server.cpu_s() - before_s, turns * messages
    return Intake(
        per_cpu_s=total / used_s,
        per_s=total / counts.seconds,
        worker_share=used_s / counts.seconds,
        valkey_us=(cpu_s(valkey) - before_valkey_s) / total * 1e6,
    )


def text(arguments: argparse.Namespace, found: dict[str, Any], results: Results) -> str:
    """The outcome as Markdown."""
    title = (
        f"Ingest: messages of {arguments.bytes} bytes of data from Redis into the fan-out of one worker, of which it "
        f"delivers one in {arguments.messages:,}; {arguments.rounds} rounds."
    )
    head = ["PUBLISH", "per worker's CPU second", "per second", "worker's CPU %", "Valkey's CPU µs per message"]
    rows = [_row(name, turns) for name, turns in results.items()]
    return "\n".join([title, report.machine_text(found), "", report.table(head, rows)])


def _row(name: str, turns: Sequence[Intake]) -> list[str]:
    return [
        name,
        report.spread([turn.per_cpu_s for turn in turns]).text(0),
        report.spread([turn.per_s for turn in turns]).text(0),
        f"{report.spread([turn.worker_share for turn in turns]).median * 100:.0f}",
        report.spread([turn.valkey_us for turn in turns]).text(3),
    ]


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="messages per second from Redis; see bench/README.md")
    parser.add_argument("--messages", type=int, default=4000, help="in one block")
    parser.add_argument("--batch", type=int, default=500, help="messages in one PUBLISH of the second work")
    parser.add_argument("--turns", type=int, default=25, help="blocks in a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--bytes", type=int, default=80, help="of application data in each message")
    report.add_options(parser, "ingest")
    return parser.parse_args(words)


def main() -> None:
    report.bench("ingest", parse(), run, text, lambda results: {"works": report.turns(results)})


if __name__ == "__main__":
    main()
