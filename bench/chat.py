"""Chat: many small rooms; every member posts through its own socket, and every member of the room gets it.

    python bench/chat.py [--rooms 1000] [--members 10] [--posts 3] [--rounds 5] [--bytes 128] [--servers NAME…]
                         [--json] [--save [NAME]]

Does: let every client post in a closed loop of its own, the next message when it has everything that its room posted
with its last one; charge the server for reading the posts and for delivering them.
Does not: use names or tokens: everybody is anonymous.
Never break: the poster gets its own message too, at every server.

The hub publishes each post through Redis, as several processes need; the others hand it on in memory. Valkey's CPU time
stands apart.
"""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from rig import report, servers, slots
from rig.population import LINE, Load, population
from rig.processes import pick_cpus
from rig.server import Server, data
from rig.slots import ByServer, charge, rotated

COMPARED = ("c-topics", "bun")


def load_of(server: Server, rooms: int, members: int, size: int) -> Load:
    """Clients in their rooms, neighbours in different ones."""
    chat = server.chat
    assert chat is not None, "servers.TOPICS have it"
    lines = [str(i % rooms) for i in range(rooms * members)]
    post = chat.post(LINE, data(size))
    if size_field := _size_field(post):
        # NATS says how long the text is; the room's name is not part of it.
        assert size_field == size
    return replace(
        server.load, sends=(chat.greet([LINE]),), post=post, lines=lines, ready_text=chat.ready_text, each=chat.each
    )


def _size_field(post: str) -> int:
    return int(post.split()[2]) if post.startswith("PUB ") else 0


def run(arguments: argparse.Namespace) -> ByServer:
    """All rounds of all servers."""
    server_cpu, load_cpu = pick_cpus()
    results: ByServer = {name: [] for name in arguments.servers}
    with contextlib.ExitStack() as stack:
        works = {}
        for name in arguments.servers:
            server = stack.enter_context(servers.SERVERS[name].start(server_cpu))
            load = load_of(server, arguments.rooms, arguments.members, arguments.bytes)
            clients = stack.enter_context(population(load, len(load.lines), load_cpu))
            clients.wait_ready()
            clients.post(1, arguments.members)
            works[name] = (server, partial(clients.post, arguments.posts, arguments.members))
        for number in range(arguments.rounds):
            for name in rotated(arguments.servers, number):
                results[name].append(charge(*works[name]))
    return results


def text(arguments: argparse.Namespace, found: dict[str, Any], results: ByServer) -> str:
    """The outcome as Markdown."""
    title = (
        f"Chat: {arguments.rooms:,} rooms of {arguments.members}, each member posts {arguments.posts} messages of "
        f"{arguments.bytes} bytes a slot through its own socket, {arguments.rounds} interleaved rounds."
    )
    lines = [title, report.machine_text(found), "", *slots.text(results, COMPARED)]
    return "\n".join([*lines, *report.missing_text(arguments.missing)])


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="CPU per delivery in small rooms; see bench/README.md")
    parser.add_argument("--rooms", type=int, default=1000)
    parser.add_argument("--members", type=int, default=10)
    parser.add_argument("--posts", type=int, default=3, help="of each member in a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--bytes", type=int, default=128, help="of application data in each message (36 or more)")
    parser.add_argument("--servers", nargs="+", choices=servers.TOPICS, default=servers.TOPICS)
    report.add_options(parser, "chat")
    return report.parsed(parser, words)


def main() -> None:
    slots.bench("chat", parse(), run, text)


if __name__ == "__main__":
    main()
