"""Server: the record that describes what is measured, and how the work's bytes are made.

Does not: start anything (hub, peers) or measure.
Called by: hub and peers, which fill it in; the benches, which read it.
Never break: the same work. Where a server's wire leaves the choice, it sends the hub's bytes, envelope included; where
it does not (Socket.IO, NATS), it sends the application's data in its own envelope.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from hub import protocol

from .population import STAMP, Load
from .processes import BenchError, cpu_s, open_files, process, read_line

CHANNEL = "bench:all"
READY_TIMEOUT_S = 30.0
LEAVE_TIMEOUT_S = 30.0
OWN_FILES = 16
"""Descriptors that a process may open for itself while clients come, such as further connections to Redis."""
Batch = Sequence[tuple[str, bytes]]
"""Messages that are published together: topic and body of each."""


@dataclass(frozen=True, slots=True)
class Topics:
    """How the clients of one server get and send what belongs to some of them only.

    greet: the text with which a client subscribes; ready_text: in the last answer to it. write: a batch, as the
    publisher writes it. post: the text with which a client publishes one body. each: Load.each.
    """

    greet: Callable[[Sequence[str]], str]
    ready_text: str
    write: Callable[[Batch], bytes]
    post: Callable[[str, bytes], str]
    each: str = ""


@dataclass(frozen=True, slots=True)
class Server:
    """A running server.

    load: clients that all receive everything. pids: whose CPU and memory count. apart: further processes that belong to
    it, by name. write: one message, as the publisher writes it, for one body (JSON with STAMP in it). ticker, chat:
    None where the server's program offers no topics. metrics: the URL of a hub's own counters, '' where there are none.
    """

    load: Load
    pids: tuple[int, ...]
    write: Callable[[bytes], bytes]
    apart: Mapping[str, int] = field(default_factory=dict)
    ticker: Topics | None = None
    chat: Topics | None = None
    metrics: str = ""

    def cpu_s(self) -> float:
        """CPU seconds of all its processes that count."""
        return sum(map(cpu_s, self.pids))

    def open_files(self) -> int:
        """Descriptors that these processes have open."""
        return sum(map(open_files, self.pids))


def wait_until_left(server: Server, files: int) -> None:
    """Return when a server that had `files` open has let go of its clients: leaving is not the next round's work."""
    deadline = time.monotonic() + LEAVE_TIMEOUT_S
    while (now := server.open_files()) > files + OWN_FILES * len(server.pids):
        if time.monotonic() > deadline:
            raise BenchError(f"{now - files} connections are left {LEAVE_TIMEOUT_S:g} s later")
        time.sleep(0.05)  # the server gives no other sign


def data(size: int, stamp: bytes = STAMP) -> bytes:
    """What an application publishes: JSON of `size` bytes with the time in it. Raises BenchError below 36."""
    body = b"{" + stamp + b',"p":""}'
    if size < len(body):
        raise BenchError(f"found a message of {size} bytes; allowed: {len(body)} or more")
    return body[:-2] + b"x" * (size - len(body)) + body[-2:]


def wire_text(body: bytes, channel: str = CHANNEL) -> bytes:
    """The text that clients of every server receive: the hub's push, {"push":{"channel":"bench:all","pub":{…}}}."""
    return protocol.encode_publication(channel, b'{"data":' + body + b"}")


@contextmanager
def line_server(
    command: Sequence[str],
    cpu: int | None,
    describe: Callable[[Mapping[str, int], int], Server],
) -> Iterator[Server]:
    """A program that prints {"port":…,"control":…}, which `describe` gets with its pid; its input's end is its end."""
    with process(command, cpu, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0) as started:
        ports = json.loads(read_line(started.stdout, READY_TIMEOUT_S, " ".join(command)))
        yield describe(ports, started.pid)


def broadcaster(ports: Mapping[str, int], pid: int) -> Server:
    """One that sends each line of its control connection to all clients as it is."""
    load = Load(f"127.0.0.1:{ports['port']}", publish=f"127.0.0.1:{ports['control']}")
    return Server(load, (pid,), lambda body: wire_text(body) + b"\n")
