"""Proxy: a network between the hub and its store that misbehaves on request.

Does: pass bytes between a client and the store; hold, delay, cut, reset or refuse them, per kind of link and direction,
while it runs; send new links to another store.
Does not: understand RESP. A link's kind is read from what its client sends first: SUBSCRIBE makes it `pubsub`, PSYNC
`replication`, everything else is `command`.
Called by: rig and the tests; all calls on the loop that runs it.
Never break: what was let through is in order and complete; a held direction also stops reading, so that the sender's
kernel buffer fills as it would behind a network that swallows everything.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

Kind = Literal["command", "pubsub", "replication"]
Direction = Literal["up", "down"]
"""up: from the client to the store."""

CHUNK_BYTES = 65_536
CLASSIFY_BYTES = 4096
"""Of what a client sends, so much is looked at: the handshake comes first, whatever it is made of."""
# redis-py opens with HELLO or CLIENT SETINFO, a replica with PING and REPLCONF: the first command alone does not tell.
MARKS: dict[bytes, Kind] = {b"SUBSCRIBE": "pubsub", b"PSYNC": "replication", b"REPLCONF": "replication"}
KINDS: tuple[Kind, ...] = ("command", "pubsub", "replication")
DIRECTIONS: tuple[Direction, ...] = ("up", "down")


class Address(NamedTuple):
    """A Unix path, or host and port."""

    path: str = ""
    host: str = ""
    port: int = 0


@dataclass(eq=False)
class _Link:
    """One accepted connection and its way on."""

    kind: Kind = "command"
    seen: bytes = b""
    writers: list[asyncio.StreamWriter] = field(default_factory=list)
    task: asyncio.Task | None = None


class Proxy:
    """One door in front of one store. `target` may be changed at any time; links that exist stay where they are."""

    def __init__(self, target: Address) -> None:
        self.target = target
        self.address = Address()
        """Where it listens, once `start` was called."""
        self.accepted = 0
        self._links: set[_Link] = set()
        self._server: asyncio.Server | None = None
        self._open: dict[tuple[Kind, Direction], asyncio.Event] = {}
        self._delay_s: dict[tuple[Kind, Direction], float] = {}
        for kind in KINDS:
            for direction in DIRECTIONS:
                event = self._open[kind, direction] = asyncio.Event()
                event.set()

    async def start(self, address: Address = Address(host="127.0.0.1")) -> None:  # noqa: B008 - a tuple
        """Listen at `address`; port 0 leaves the choice to the kernel."""
        if address.path:
            self._server = await asyncio.start_unix_server(self._accept, address.path)
            self.address = address
        else:
            self._server = await asyncio.start_server(self._accept, address.host, address.port)
            self.address = Address(host=address.host, port=self._server.sockets[0].getsockname()[1])

    async def close(self) -> None:
        """Stop listening and cut everything."""
        self._stop_listening()
        self.drop()
        tasks = [link.task for link in self._links if link.task is not None]
        await asyncio.gather(*tasks, return_exceptions=True)

    def count(self, kind: Kind | None = None) -> int:
        """Links that are open now."""
        return len(self._chosen(kind))

    # Faults.

    def hold(self, kind: Kind | None = None, direction: Direction | None = None) -> None:
        """Let nothing through any more, of links that exist and of new ones. None: every kind, both directions."""
        for gate in self._gates(kind, direction):
            self._open[gate].clear()

    def release(self) -> None:
        """End every `hold` and `delay`; what was held goes on its way now."""
        self._delay_s.clear()
        for event in self._open.values():
            event.set()

    def delay(self, seconds: float, kind: Kind | None = None, direction: Direction | None = None) -> None:
        """Each chunk waits so long, one after another: a slow link rather than a long one."""
        for gate in self._gates(kind, direction):
            self._delay_s[gate] = seconds

    def drop(self, kind: Kind | None = None) -> int:
        """End links in an orderly way, with what is on them lost. Returns how many."""
        return self._cut(kind, reset=False)

    def reset(self, kind: Kind | None = None) -> int:
        """End links with a TCP reset at both ends. Returns how many."""
        return self._cut(kind, reset=True)

    async def refuse(self) -> None:
        """Refuse new links (ECONNREFUSED) until `accept`; those that exist stay."""
        self._stop_listening()

    async def accept(self) -> None:
        """Listen again at the same address."""
        if self._server is None:
            await self.start(self.address)

    # Small parts.

    def _stop_listening(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None

    def _gates(self, kind: Kind | None, direction: Direction | None) -> list[tuple[Kind, Direction]]:
        return [gate for gate in self._open if kind in (None, gate[0]) and direction in (None, gate[1])]

    def _chosen(self, kind: Kind | None) -> list[_Link]:
        return [link for link in self._links if kind in (None, link.kind)]

    def _cut(self, kind: Kind | None, reset: bool) -> int:
        chosen = self._chosen(kind)
        for link in chosen:
            for writer in link.writers:
                sock = writer.get_extra_info("socket")
                if reset and sock.family != socket.AF_UNIX:
                    # Linger 0 makes close() send RST instead of FIN (socket(7)).
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                writer.transport.abort()
            if link.task is not None:
                link.task.cancel()
        return len(chosen)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        link = _Link(writers=[writer], task=asyncio.current_task())
        self._links.add(link)
        try:
            await self._serve(link, reader, writer)
        except (OSError, asyncio.CancelledError):
            pass  # either end went away, or `drop`: a link's end is an ordinary event here
        finally:
            self._links.discard(link)
            for one in link.writers:
                one.transport.abort()

    async def _serve(self, link: _Link, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        target = self.target
        if target.path:
            far_reader, far_writer = await asyncio.open_unix_connection(target.path)
        else:
            far_reader, far_writer = await asyncio.open_connection(target.host, target.port)
        link.writers.append(far_writer)
        pumps = [
            asyncio.create_task(self._pump(link, "up", reader, far_writer)),
            asyncio.create_task(self._pump(link, "down", far_reader, writer)),
        ]
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)

    async def _pump(
        self, link: _Link, direction: Direction, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        while chunk := await reader.read(CHUNK_BYTES):
            if direction == "up" and len(link.seen) < CLASSIFY_BYTES:
                _classify(link, chunk)
            if seconds := self._delay_s.get((link.kind, direction)):
                await asyncio.sleep(seconds)
            await self._open[link.kind, direction].wait()
            writer.write(chunk)
            await writer.drain()
        with contextlib.suppress(OSError):
            # The far end closed: what was passed before is still on its way.
            await writer.drain()


def _classify(link: _Link, chunk: bytes) -> None:
    link.seen += chunk
    head = link.seen[:CLASSIFY_BYTES].upper()
    for mark, kind in MARKS.items():
        if mark in head:
            link.kind = kind
            return
