"""Wires: what a delivery and an idle connection cost a worker on each wire of the hub, 1 or 5 channels → N subscribers.

    python bench/wires.py [--subscribers 1000] [--bytes 128] [--messages 100] [--rounds 5] [--json] [--save [NAME]]

Does: start a hub for each wire, connect N raw sockets, publish in a closed loop to one channel after the other, go
round; print CPU per delivery and proportional memory (PSS) per idle connection, and ratios formed inside a round, to
WebSocket and to event streams of one `stream` channel.
Does not: measure latency or peers (fanout does), nor parse what comes: it counts how often MARK does.
Never break: a message is published when everybody has the one before; who has more than was sent fails the run.

A row is one of WIRES, whose `enter` makes a connected socket listen. Who polls does so on one kept connection, as
browsers do, and asks again at once; the worker is charged for that.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import itertools
import json
import os
import re
import select
import socket
import ssl
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import NamedTuple

import hiredis
from rig import report
from rig.hub import KEYS, LAST_ID, SOCKETIO_PATH, greet, hub
from rig.processes import BenchError, memory_bytes, pick_cpus
from rig.server import CHANNEL, Server, data
from rig.slots import rotated

from hub.broker import stream_command
from hub.channels import Namespace
from hub.message import Publication, PublishOptions, encode_body
from hub.scripts import Nonces, Scripts

WARM_UP_CONNECTIONS = 100
"""Before memory is read: what a worker sets up once is not any connection's."""
WARM_UP_MESSAGES = 20
BREATH = 50
"""Clients that connect before the others are looked after."""
PATIENCE_S = 30.0
BREATH_S = 0.01
SETTLE_S = 1.0
"""Of idle clients, in which the worker ends what it began for their connecting."""
READ_BYTES = 65_536


@dataclass(frozen=True, slots=True)
class Turn:
    """One wire in one round."""

    server_us: float
    bytes: float


class Wire(NamedTuple):
    """How one of its sockets listens.

    enter: makes a connected socket listen; what it returns asks for the next messages, b'' where these come by
    themselves. mark: once in each message, which comes in one read, as it was written at once and nothing else is on
    its way. ping: finds one in a read; pong: the answer to it.
    """

    enter: Callable[[socket.socket], bytes]
    mark: bytes
    ping: re.Pattern[bytes]
    pong: Callable[[bytes], bytes]
    """Of what `enter` returned."""
    channels: tuple[str, ...] = (CHANNEL,)
    """That are published to in turn."""
    tls: bool = False
    share: float = 1.0
    """Of a turn's messages: fewer will do where each takes long."""


def frame(text: str) -> bytes:
    """With a mask of zeros, which leaves the text as it is."""
    assert len(text) < 126  # a frame with the shortest head
    return bytes([0x81, 0x80 | len(text)]) + bytes(4) + text.encode()


def request(method: str, path: str, *headers: str, body: str = "") -> bytes:
    """Of HTTP."""
    lines = [f"{method} {path} HTTP/1.1", "Host: bench", *headers]
    if method == "POST":
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", body]).encode()


def upgrade(path: str) -> bytes:
    """The handshake of a WebSocket."""
    key = base64.b64encode(bytes(16)).decode()
    headers = ("Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Version: 13", f"Sec-WebSocket-Key: {key}")
    return request("GET", path, *headers)


def ask(sock: socket.socket, sends: bytes, answer: bytes) -> bytes:
    """Send something, and read until `answer` is in what was read. Raises BenchError."""
    sock.sendall(sends)
    found = b""
    while answer not in found:
        if not (some := sock.recv(READ_BYTES)):
            raise BenchError(f"a client was turned away: {found!r}")
        found += some
    return found


SUBSCRIBE = f'420["subscribe",{{"channel":"{CHANNEL}"}}]'


def enter_websocket(sock: socket.socket) -> bytes:
    ask(sock, upgrade("/connection/websocket") + frame(greet([CHANNEL])), b'"id":%d,' % LAST_ID)
    return b""


def enter_sse(channels: tuple[str, ...], sock: socket.socket) -> bytes:
    query = "&".join(f"channel={channel}" for channel in channels)
    ask(sock, request("GET", f"/sse?{query}"), b"event: open")
    return b""


def enter_socketio(sock: socket.socket) -> bytes:
    ask(sock, upgrade(SOCKETIO_PATH + "websocket") + frame("40") + frame(SUBSCRIBE), b"430[")
    return b""


def enter_polling(sock: socket.socket) -> bytes:
    path = SOCKETIO_PATH + "polling"
    found = ask(sock, request("GET", path), b"}")
    path += "&sid=" + json.loads(found.partition(b"\r\n\r\n0")[2])["sid"]
    poll = request("GET", path)
    for packet, answer in (("40", b"40{"), (SUBSCRIBE, b"430[")):
        ask(sock, request("POST", path, body=packet), b"ok")
        ask(sock, poll, answer)
    sock.sendall(poll)
    return poll


def pong_by_post(poll: bytes) -> bytes:
    path = poll.split(b" ", 2)[1].decode()
    return request("POST", path, body="3")


NATIVE_PING = re.compile(rb"\x81\x02\{\}")
NO_PING = re.compile(rb"(?!)")
"""Heartbeats of event streams are not answered."""
STREAMS = tuple(f"kept:{number}" for number in range(5))


def event_stream(*channels: str) -> Wire:
    return Wire(partial(enter_sse, channels), b'"pub":', NO_PING, lambda _: b"", channels)


WIRES = {
    "websocket": Wire(enter_websocket, b'"pub":', NATIVE_PING, lambda _: frame("{}")),
    "wss": Wire(enter_websocket, b'"pub":', NATIVE_PING, lambda _: frame("{}"), tls=True),
    "sse": event_stream(CHANNEL),
    "sse 1 stream": event_stream(*STREAMS[:1]),
    "sse 5 streams": event_stream(*STREAMS),
    "socketio": Wire(enter_socketio, b'"publication",', re.compile(rb"\x81\x012"), lambda _: frame("3")),
    "socketio-polling": Wire(
        enter_polling, b'"publication",', re.compile(rb"(?:\r\n\r\n|\x1e)2(?:\x1e|\Z)"), pong_by_post, share=0.1
    ),
}


def trusting() -> ssl.SSLContext:
    """Of a client that asks nobody who the hub is."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


class Listeners:
    """Raw sockets of one wire, and how many messages each has received."""

    def __init__(self, server: Server, wire: str) -> None:
        host, _, port = server.load.server.partition(":")
        self._address = (host, int(port))
        self._name, self._wire = wire, WIRES[wire]
        self._tls = trusting() if self._wire.tls else None
        self._asks: dict[int, bytes] = {}
        self._epoll = select.epoll()
        self._sockets: dict[int, socket.socket] = {}
        self._received: dict[int, int] = {}
        self.size = 0
        """Of the last read with a message, in bytes."""

    def __len__(self) -> int:
        return len(self._sockets)

    def connect(self, count: int) -> None:
        """So many more, each answered before the next."""
        for _ in range(count):
            sock = socket.create_connection(self._address, PATIENCE_S)
            if self._tls is not None:
                sock = self._tls.wrap_socket(sock)
            self._asks[sock.fileno()] = self._wire.enter(sock)
            sock.setblocking(False)
            self._sockets[sock.fileno()] = sock
            self._epoll.register(sock.fileno(), select.EPOLLIN)

    def breathe(self) -> None:
        """Answer pings that have come."""
        self._read(0)

    def drain(self, seconds: float) -> None:
        """Read for so long whatever comes, and count anew from then on."""
        stop_at = time.monotonic() + seconds
        while (left := stop_at - time.monotonic()) > 0:
            self._read(left)
        self._received = dict.fromkeys(self._sockets, 0)

    def wait(self, total: int) -> None:
        """Return when everybody has received `total` messages. Raises BenchError for too many, or after PATIENCE_S."""
        stop_at = time.monotonic() + PATIENCE_S
        while (least := min(self._received.values())) < total:
            if time.monotonic() > stop_at:
                raise BenchError(f"found a client with {least} messages of {total}")
            self._read(1.0)
        if max(self._received.values()) > total:
            raise BenchError(f"found a client with more than the {total} messages that were sent")

    def _read(self, timeout_s: float) -> None:
        for fd, _ in self._epoll.poll(timeout_s):
            sock = self._sockets[fd]
            try:
                some = sock.recv(READ_BYTES)
            except ssl.SSLWantReadError:
                continue  # a part of a record
            if not some:
                raise BenchError(f"the hub closed a client of {self._name}")
            pinged, messages = self._wire.ping.search(some), some.count(self._wire.mark)
            if pinged:
                sock.send(self._wire.pong(self._asks[fd]))
            if messages:
                self._received[fd] = self._received.get(fd, 0) + messages
                self.size = len(some)
            if (pinged or messages) and self._asks[fd]:
                sock.send(self._asks[fd])

    def close(self) -> None:
        for sock in self._sockets.values():
            sock.close()
        self._epoll.close()


class Work:
    """A hub, its listeners on one wire, and the way in for messages."""

    def __init__(self, server: Server, wire: str, arguments: argparse.Namespace, breathe: Callable[[], None]) -> None:
        """breathe: lets the clients of all works answer pings, for which the hub does not wait long."""
        self._server = server
        self._breathe = breathe
        self.listeners = Listeners(server, wire)
        self._share = WIRES[wire].share
        self._redis = socket.socket(socket.AF_UNIX)
        self._redis.connect(server.load.publish.removeprefix("unix:"))
        self._messages = itertools.cycle(self._commands(WIRES[wire].channels, data(arguments.bytes)))
        self.listeners.connect(WARM_UP_CONNECTIONS)
        self._subscribers = arguments.subscribers
        self._bytes_before = 0
        self.idle_bytes = 0.0

    def fill(self) -> None:
        """Connect everybody; before and behind it, the worker has to settle."""
        self._bytes_before = memory_bytes(self._server.pids[0])["pss"]
        for _ in range(0, self._subscribers, BREATH):
            self.listeners.connect(min(BREATH, self._subscribers + WARM_UP_CONNECTIONS - len(self.listeners)))
            self._breathe()

    def weigh(self) -> None:
        """Read what they take, before anything is published."""
        self.idle_bytes = (memory_bytes(self._server.pids[0])["pss"] - self._bytes_before) / self._subscribers

    def _commands(self, channels: tuple[str, ...], body: bytes) -> list[bytes]:
        if channels == (CHANNEL,):
            return [self._server.write(body)]
        scripts, nonces, rules = Scripts("publish_stream"), Nonces(), Namespace(mode="stream", subscribe="anyone")
        self._ask(hiredis.pack_command(("SCRIPT", "LOAD", scripts.text("publish_stream"))))
        publications = [Publication(channel, encode_body(json.loads(body))) for channel in channels]
        commands = (stream_command(scripts, KEYS, rules, one, PublishOptions(), nonces()) for one in publications)
        return [hiredis.pack_command(command) for command in commands]

    def _publish(self) -> None:
        self._ask(next(self._messages))

    def _ask(self, command: bytes) -> None:
        self._redis.sendall(command)
        if not re.match(rb"[:*$]\d+\r\n", reply := self._redis.recv(4096)):
            raise BenchError(f"Valkey answered {reply!r}")

    def turn(self, messages: int) -> Turn:
        """Publish so many, or the wire's share of them, one at a time."""
        messages = max(1, round(messages * self._share))
        self.listeners.drain(0)
        before = self._server.cpu_s()
        for number in range(messages):
            self._publish()
            self.listeners.wait(number + 1)
            self._breathe()
        used_s = self._server.cpu_s() - before
        return Turn(used_s / messages / len(self.listeners) * 1e6, self.listeners.size)

    def close(self) -> None:
        self.listeners.close()
        self._redis.close()


def run(arguments: argparse.Namespace) -> tuple[dict[str, list[Turn]], dict[str, float]]:
    """Turns by wire, and bytes of memory for each idle connection."""
    server_cpu, load_cpu = pick_cpus()
    os.sched_setaffinity(0, {load_cpu})
    results: dict[str, list[Turn]] = {wire: [] for wire in WIRES}
    with contextlib.ExitStack() as stack:
        # All hubs before any client: the rig waits for a hub by select(2), which knows no descriptor beyond 1023.
        servers = {wire: stack.enter_context(hub(server_cpu, tls=WIRES[wire].tls)) for wire in WIRES}
        works: dict[str, Work] = {}

        def breathe() -> None:
            for work in works.values():
                work.listeners.breathe()

        def settle() -> None:
            stop_at = time.monotonic() + SETTLE_S
            while time.monotonic() < stop_at:
                breathe()
                time.sleep(BREATH_S)

        for wire, server in servers.items():
            works[wire] = stack.enter_context(contextlib.closing(Work(server, wire, arguments, breathe)))
        settle()
        for work in works.values():
            work.fill()
        settle()
        for work in works.values():
            work.weigh()
        for work in works.values():
            work.turn(WARM_UP_MESSAGES)
        for number in range(arguments.rounds):
            for wire in rotated(list(WIRES), number):
                results[wire].append(works[wire].turn(arguments.messages))
        return results, {wire: one.idle_bytes for wire, one in works.items()}


def text(arguments: argparse.Namespace, found: dict, results: dict[str, list[Turn]], idle: dict[str, float]) -> str:
    """The outcome as Markdown."""
    bases = [[turn.server_us for turn in results[wire]] for wire in ("websocket", "sse 1 stream")]
    rows = []
    for wire, turns in results.items():
        own = [turn.server_us for turn in turns]
        ratios = [report.paired(own, base).text() for base in bases]
        cells = [report.spread(own).text(), *ratios, f"{turns[0].bytes:.0f}"]
        rows.append([wire, *cells, f"{idle[wire]:,.0f}"])
    head = ["wire", "CPU µs per delivery", "× websocket", "× 1 stream", "bytes", "PSS per idle connection, bytes"]
    work = f"1 or 5 channels → {arguments.subscribers} subscribers, {arguments.bytes} bytes of data, closed loop"
    title = f"Wires: {work}"
    return "\n".join([title, "", report.machine_text(found), "", report.table(head, rows)])


def main() -> None:
    """Measure, print and keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--subscribers", type=int, default=1000)
    parser.add_argument("--bytes", type=int, default=128)
    parser.add_argument("--messages", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=5)
    report.add_options(parser, "wires")
    arguments = parser.parse_args()
    found = report.machine()
    try:
        results, idle = run(arguments)
    except BenchError as error:
        raise SystemExit(f"bench: {error}") from None
    wires = {wire: [asdict(turn) for turn in turns] for wire, turns in results.items()}
    record = {"bench": "wires", "arguments": vars(arguments), "machine": found, "wires": wires, "idle_bytes": idle}
    report.finish(record, text(arguments, found, results, idle), arguments)


if __name__ == "__main__":
    main()
