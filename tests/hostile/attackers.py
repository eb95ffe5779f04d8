"""`python -m tests.hostile.attackers NAME HOST:PORT FROM`: one attack, as fast as one core can, until SIGTERM.

Does: say `ready` once it is in place, attack, and say in a line of JSON at the end what it did, by `Counts`.
Does not: measure what it costs others (normals, rig).
Called by: rig, as a process of its own.
All raw sockets: no library would send this. They come from one address, for which limits hold, or from many in turn, so
that none is reached. A new attack needs its function in ATTACKS and its row in rig.ATTACKS.
"""

from __future__ import annotations

import itertools
import json
import random
import select
import signal
import socket
import struct
import sys
import time
import zlib
from collections import Counter
from collections.abc import Callable

from .normals import CHANNEL, REQUEST, frame

SOURCES = {"one": ["127.0.0.66"], "many": [f"127.1.0.{number}" for number in range(1, 201)]}
"""Addresses of loopback, none of which the hub of the rig trusts as a proxy's."""
KEY = b"\0\0\0\0"
DEFLATE = b"Sec-WebSocket-Extensions: permessage-deflate; client_no_context_takeover\r\n\r\n"
GREET = frame(b'{"id":1,"connect":{}}')
FLOODERS = 8
"""Connections of one flood."""
DRIP_S = 0.5
SLOW_HEADS = 1000
SLOW_BODIES = 500
SLOW_READERS = 1000
STORM = 64
"""Connections that are being made at a time."""
FAT_BYTES = 32_000
FAT_FIRST = 60
"""Publications until every reader has as much waiting as it may have: 2 MB each."""
FAT_HZ = 10.0
FIRST_HZ = 40.0
TIMEOUT_S = 10.0
ESTABLISHED = 1
"""State of TCP."""
AGAIN_S = 0.2
"""Behind a refused connection: a flood of refusals is the reconnect storm's business."""


class Stopped(Exception):
    """SIGTERM."""


def _stop(*_: object) -> None:
    raise Stopped


class Attack:
    """What all attacks share. counts: what was done, and what the hub did about it."""

    def __init__(self, address: str, sources: list[str]) -> None:
        host, _, port = address.rpartition(":")
        self.address = host, int(port)
        self._sources = itertools.cycle(sources)
        self.counts: Counter[str] = Counter()

    def connect(self) -> socket.socket:
        """A connection that ends with a reset: it leaves no port behind that waits for a minute."""
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.settimeout(TIMEOUT_S)
        sock.bind(self.source())
        sock.connect(self.address)
        self.counts["connections"] += 1
        return sock

    def source(self) -> tuple[str, int]:
        """From where the next connection comes."""
        return next(self._sources), 0

    def upgraded(self, greet: bytes = GREET, extension: bytes = b"\r\n") -> socket.socket:
        """A WebSocket whose connect command has been answered. Raises OSError."""
        sock = self.connect()
        sock.sendall(REQUEST[:-2] + extension)
        answer = b""
        while b"\r\n\r\n" not in answer:
            if not (chunk := sock.recv(4096)):
                raise ConnectionError(answer[:20])
            answer += chunk
        if not answer.startswith(b"HTTP/1.1 101 "):
            self.counts[f"HTTP {answer[9:12].decode()}"] += 1
            raise ConnectionError(answer[:20])
        if greet:
            sock.sendall(greet)
            if not sock.recv(4096):
                raise ConnectionError("no answer")
        return sock

    def ready(self) -> None:
        print("ready", flush=True)

    def closed(self, sock: socket.socket, last: bytes = b"") -> None:
        """Count how a connection ended."""
        at = last.rfind(b"\x88")
        code = int.from_bytes(last[at + 2 : at + 4], "big") if 0 <= at <= len(last) - 4 else 0
        self.counts[f"closed {code}" if code else "cut"] += 1
        sock.close()

    def flood(self, blocks: list[bytes], connections: int, reads: bool = True, extension: bytes = b"\r\n") -> None:
        """Send `blocks` over and over on each connection, as fast as each is taken; connect again when it ends."""
        streams: dict[int, tuple[socket.socket, itertools.cycle[bytes], bytes]] = {}
        poll = select.epoll()
        events = select.EPOLLOUT | (select.EPOLLIN if reads else 0)

        def add(offset: int) -> None:
            try:
                sock = self.upgraded(extension=extension)
            except OSError:
                self.counts["refused"] += 1
                time.sleep(AGAIN_S)
                return
            sock.setblocking(False)
            source = itertools.cycle(blocks[offset % len(blocks) :] + blocks[: offset % len(blocks)])
            streams[sock.fileno()] = sock, source, b""
            poll.register(sock.fileno(), events)

        for offset in range(connections):
            add(offset)
        self.ready()
        while True:
            for fd, event in poll.poll(1.0):
                sock, source, rest = streams[fd]
                try:
                    last = b""
                    if event & select.EPOLLIN and not (last := sock.recv(65_536)):
                        raise ConnectionError
                    if (at := last.find(b"\x88")) >= 0 and len(last) - at < 130:
                        raise ConnectionError
                    if event & select.EPOLLOUT:
                        data = rest or next(source)
                        sent = sock.send(data)
                        self.counts["bytes"] += sent
                        streams[fd] = sock, source, data[sent:]
                except BlockingIOError:
                    pass
                except OSError:
                    poll.unregister(fd)
                    del streams[fd]
                    self.closed(sock, last)
            while len(streams) < connections:
                add(random.randrange(connections))
                if not streams:
                    break


def slow_heads(attack: Attack) -> None:
    """Slowloris: many heads that never end."""
    _drip(attack, SLOW_HEADS, b"GET /poll HTTP/1.1\r\nHost: h\r\n", b"A: b\r\n")


def slow_bodies(attack: Attack) -> None:
    """R.U.D.Y.: many bodies that never end."""
    begin = b"POST /publish HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\nContent-Length: 1000000\r\n\r\n"
    _drip(attack, SLOW_BODIES, begin + b" " * 8000, b"  ")


def _drip(attack: Attack, most: int, begin: bytes, drop: bytes) -> None:
    socks: list[socket.socket] = []
    said = False
    while True:
        began = time.monotonic()
        for sock in list(socks):
            try:
                sock.send(drop)
                attack.counts["drips"] += 1
            except OSError:
                socks.remove(sock)
                attack.closed(sock)
        while len(socks) < most:
            try:
                sock = attack.connect()
                sock.sendall(begin)
                socks.append(sock)
            except OSError:
                attack.counts["refused"] += 1
                break
        if not said:
            attack.counts["held"] = len(socks)
            attack.ready()
            said = True
        time.sleep(max(0.05, DRIP_S - (time.monotonic() - began)))


def pings(attack: Attack) -> None:
    """Pings, of which the pongs are not read."""
    attack.flood([(b"\x89\x80" + KEY) * 600, (b"\x89\xfd" + KEY + b"x" * 125) * 30], FLOODERS, reads=False)


def fragments(attack: Attack) -> None:
    """Messages in as many frames as may be, and in more."""
    piece = b"\x00\x81" + KEY + b" "
    legal = b"\x01\x81" + KEY + b"{" + piece * 62 + b"\x80\x81" + KEY + b"}"
    attack.flood([legal * 8, legal * 8, legal * 8, b"\x01\x80" + KEY + (b"\x00\x80" + KEY) * 100], FLOODERS)


def deflate_bombs(attack: Attack) -> None:
    """Few bytes that become many: a message within the limit over and over, and one of ten million."""

    def packed(payload: bytes) -> bytes:
        packer = zlib.compressobj(9, wbits=-15)
        data = (packer.compress(payload) + packer.flush(zlib.Z_SYNC_FLUSH))[:-4]
        head = b"\xc1" + (bytes((0x80 | len(data),)) if len(data) < 126 else b"\xfe" + len(data).to_bytes(2, "big"))
        return head + KEY + data

    legal = packed(b"{" + b" " * 65_000 + b"}")
    attack.flood([legal * 20, legal * 20, packed(b" " * 10_000_000)], FLOODERS, extension=DEFLATE)


def json_bombs(attack: Attack) -> None:
    """Small texts that are large or deep when they are parsed."""

    def publish(data: bytes) -> bytes:
        return frame(b'{"id":3,"publish":{"channel":"open:bombs","data":%b}}' % data)

    deep, wide = b"[" * 1000 + b"]" * 1000, b"[" + b"[]," * 20_000 + b"1]"
    keys = b"{" + b",".join(b'"%d":{}' % number for number in range(5000)) + b"}"
    numbers = b"[" + b"1e308," * 10_000 + b"1]"
    too_deep = b"[" * 30_000
    attack.flood([publish(data) for data in (deep, wide, keys, numbers, deep, wide, too_deep)], FLOODERS)


def subscriptions(attack: Attack) -> None:
    """Channels that nobody else has, each left as soon as it is held."""
    numbers = itertools.count(random.randrange(10**9))

    def block() -> bytes:
        lines = []
        for number in itertools.islice(numbers, 60):
            lines.append(b'{"id":2,"subscribe":{"channel":"open:s%d"}}' % number)
            lines.append(b'{"id":3,"unsubscribe":{"channel":"open:s%d"}}' % number)
        return frame(b"\n".join(lines))

    attack.flood([block() for _ in range(500)], FLOODERS)


def storm(attack: Attack) -> None:
    """Connect, subscribe, go, and again."""
    greet = frame(b'{"id":1,"connect":{}}\n{"id":2,"subscribe":{"channel":"%b"}}' % CHANNEL.encode())
    poll = select.epoll()
    opening: dict[int, socket.socket] = {}
    attack.ready()
    while True:
        while len(opening) < STORM:
            sock = socket.socket()
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            sock.bind(attack.source())
            sock.setblocking(False)
            sock.connect_ex(attack.address)
            opening[sock.fileno()] = sock
            poll.register(sock.fileno(), select.EPOLLOUT)
        for fd, event in poll.poll(1.0):
            sock = opening[fd]
            try:
                if event & select.EPOLLIN:
                    data = sock.recv(4096)
                    attack.counts["handshakes" if b" 101 " in data else f"HTTP {data[9:12].decode('latin-1')}"] += 1
                elif event & select.EPOLLOUT and not event & select.EPOLLERR:
                    sock.send(REQUEST + greet)
                    attack.counts["connections"] += 1
                    poll.modify(fd, select.EPOLLIN)
                    continue
            except OSError:
                attack.counts["refused"] += 1
            poll.unregister(fd)
            del opening[fd]
            sock.close()


def slow_readers(attack: Attack) -> None:
    """A thousand who subscribe and don't read, and one who publishes to them."""
    greet = frame(b'{"id":1,"connect":{}}\n{"id":2,"subscribe":{"channel":"open:fat"}}')
    readers = []
    for _ in range(SLOW_READERS):
        try:
            readers.append(attack.upgraded(greet))
        except OSError:
            attack.counts["refused"] += 1
    publish = frame(b'{"id":3,"publish":{"channel":"open:fat","data":"%b"}}' % (b"x" * FAT_BYTES))
    writer: socket.socket | None = None
    for number in itertools.count():
        if number == FAT_FIRST:
            attack.counts["held"] = sum(map(_lives, readers))
            attack.ready()
        if writer is None:
            try:
                writer = attack.upgraded()
                writer.setblocking(False)
            except OSError:
                attack.counts["refused"] += 1
                time.sleep(AGAIN_S)
                continue
        time.sleep(1 / (FIRST_HZ if number < FAT_FIRST else FAT_HZ))
        try:
            writer.send(publish)
            attack.counts["published"] += 1
            writer.recv(65_536)
        except BlockingIOError:
            continue
        except OSError:
            attack.closed(writer)
            time.sleep(AGAIN_S)
            writer = None


def _lives(sock: socket.socket) -> bool:
    """The hub has not ended it; told without reading."""
    return sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == ESTABLISHED


def burn(attack: Attack) -> None:
    """No attack: as busy as one, without the hub."""
    attack.ready()
    while True:
        attack.counts["turns"] += 1


ATTACKS: dict[str, Callable[[Attack], None]] = {
    "slow heads": slow_heads,
    "slow bodies": slow_bodies,
    "ping flood": pings,
    "fragment flood": fragments,
    "deflate bomb": deflate_bombs,
    "JSON bomb": json_bombs,
    "subscription flood": subscriptions,
    "reconnect storm": storm,
    "slow readers": slow_readers,
    "burn": burn,
}


def main(name: str, address: str, sources: str) -> None:
    attack = Attack(address, SOURCES[sources])
    signal.signal(signal.SIGTERM, _stop)
    try:
        ATTACKS[name](attack)
    except Stopped:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    print(json.dumps(attack.counts), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
