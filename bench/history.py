"""History: what numbering and keeping a publication costs Redis, beside one that is only spread.

    python bench/history.py [--messages 4000] [--channels 200] [--turns 25] [--rounds 5] [--bytes 80]
                            [--json] [--save [NAME]]

Does: write blocks of the commands that hub/broker.py makes to the private Valkey, pipelined, and read all replies.
Does not: measure workers (ingest.py does) or the network; nobody is subscribed, so spreading is free.
Never break: every reply is counted and none is an error; Valkey runs as the hub starts it, with its append-only file.

Three works: none, a bare PUBLISH; stream, the script that numbers, keeps and spreads; stream with keys, the same with
an idempotency key of its own for each message, which Valkey remembers besides.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import socket
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hiredis
from rig import report
from rig.processes import BenchError, cpu_s, pick_cpus

from hub.broker import stream_command
from hub.channels import Namespace
from hub.config import Settings
from hub.embedded import Embedded
from hub.message import Publication, PublishOptions, pack
from hub.scripts import Nonces, Scripts
from hub.store import Keys

READY_TIMEOUT_S = 10.0
REPLY_TIMEOUT_S = 60.0
READ_BYTES = 1_048_576
RULES = Namespace.model_validate({"mode": "stream"})


@dataclass(frozen=True, slots=True)
class Intake:
    """One turn: messages per second of wall time; Valkey's share of its CPU, and its CPU µs per message."""

    per_s: float
    valkey_share: float
    valkey_us: float


Results = dict[str, list[Intake]]


class Link:
    """A connection to Valkey that writes whole blocks."""

    def __init__(self, path: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(REPLY_TIMEOUT_S)
        self._socket.connect(path)
        self._reader = hiredis.Reader()

    def send(self, block: bytes, replies: int) -> None:
        """Write a block and read its replies. Raises BenchError for an error among them."""
        self._socket.sendall(block)
        while replies:
            if not (read := self._socket.recv(READ_BYTES)):
                raise BenchError("Valkey ended")
            self._reader.feed(read)
            while (reply := self._reader.gets()) is not False:
                if isinstance(reply, hiredis.ReplyError):
                    raise BenchError(f"Valkey: {reply}")
                replies -= 1

    def close(self) -> None:
        self._socket.close()


class Blocks:
    """The commands of each work; `make` gives the next block of one."""

    def __init__(self, messages: int, channels: int, size: int) -> None:
        self._keys, self._nonces, self._scripts = Keys("hub"), Nonces(), Scripts("publish_stream")
        body = b'{"data":"%s"}' % (b"x" * (size - 2))
        self._batch = [Publication(f"bench:{i % channels}", body) for i in range(messages)]
        self._made = 0

    def load(self) -> bytes:
        return hiredis.pack_command(("SCRIPT", "LOAD", self._scripts.text("publish_stream")))

    def make(self, work: str) -> bytes:
        return b"".join(hiredis.pack_command(self._command(work, publication)) for publication in self._batch)

    def _command(self, work: str, publication: Publication) -> tuple[Any, ...]:
        if work == "none":
            return ("PUBLISH", self._keys.channel(publication.channel), pack([publication]))
        self._made += 1
        options = PublishOptions(idempotency_key=str(self._made) if work == "stream with keys" else "")
        return stream_command(self._scripts, self._keys, RULES, publication, options, self._nonces())


@contextlib.contextmanager
def _started() -> Iterator[tuple[Embedded, Link]]:
    server_cpu, load_cpu = pick_cpus()
    with tempfile.TemporaryDirectory(prefix="hub-bench-") as directory, contextlib.ExitStack() as stack:
        embedded = Embedded(Settings(), Path(directory))
        stack.callback(embedded.stop)
        embedded.wait_ready(READY_TIMEOUT_S)
        if embedded.pid is None:
            raise BenchError("Valkey ended")
        os.sched_setaffinity(embedded.pid, {server_cpu})
        usable = os.sched_getaffinity(0)
        stack.callback(os.sched_setaffinity, 0, usable)
        os.sched_setaffinity(0, {load_cpu})
        link = Link(embedded.url.removeprefix("unix://"))
        stack.callback(link.close)
        yield embedded, link


def run(arguments: argparse.Namespace) -> Results:
    """All rounds of all works, at one Valkey."""
    results: Results = {"none": [], "stream": [], "stream with keys": []}
    blocks = Blocks(arguments.messages, arguments.channels, arguments.bytes)
    with _started() as (embedded, link):
        link.send(blocks.load(), 1)
        for _ in range(arguments.rounds):
            for work, turns in results.items():
                made = [blocks.make(work) for _ in range(arguments.turns)]
                link.send(blocks.make(work), arguments.messages)
                turns.append(measure(embedded, link, made, arguments.messages))
    return results


def measure(embedded: Embedded, link: Link, blocks: Sequence[bytes], messages: int) -> Intake:
    """Let all blocks pass."""
    assert embedded.pid is not None
    before_s, began_s = cpu_s(embedded.pid), time.monotonic()
    for block in blocks:
        link.send(block, messages)
    seconds, used_s, total = time.monotonic() - began_s, cpu_s(embedded.pid) - before_s, len(blocks) * messages
    return Intake(per_s=total / seconds, valkey_share=used_s / seconds, valkey_us=used_s / total * 1e6)


def text(arguments: argparse.Namespace, found: dict[str, Any], results: Results) -> str:
    """The outcome as Markdown."""
    title = (
        f"History: messages of {arguments.bytes} bytes of data to {arguments.channels:,} channels, "
        f"{arguments.messages:,} in a pipeline, into one Valkey with its append-only file; {arguments.rounds} rounds."
    )
    head = ["mode", "per second", "Valkey's CPU µs per message", "Valkey's CPU %"]
    rows = [_row(name, turns) for name, turns in results.items()]
    return "\n".join([title, report.machine_text(found), "", report.table(head, rows)])


def _row(name: str, turns: Sequence[Intake]) -> list[str]:
    return [
        name,
        report.spread([turn.per_s for turn in turns]).text(0),
        report.spread([turn.valkey_us for turn in turns]).text(2),
        f"{report.spread([turn.valkey_share for turn in turns]).median * 100:.0f}",
    ]


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="publications that Redis numbers and keeps; see bench/README.md")
    parser.add_argument("--messages", type=int, default=4000, help="in one block")
    parser.add_argument("--channels", type=int, default=200, help="the messages go round")
    parser.add_argument("--turns", type=int, default=25, help="blocks in a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--bytes", type=int, default=80, help="of application data in each message")
    report.add_options(parser, "history")
    return parser.parse_args(words)


def main() -> None:
    report.bench("history", parse(), run, text, lambda results: {"works": report.turns(results)})


if __name__ == "__main__":
    main()
