"""Readers: a plane with a fan-out on real sockets, and clients that only receive, whose bytes can be read."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator

from hub.channels import Namespace
from hub.connection import Connection, take_over
from hub.errors import Close
from hub.fanout import Fanout
from hub.message import Publication
from hub.outbox import Limits
from hub.reactor import Reactor

LIMITS = Limits(10_000, 100_000, 1_000_000, 100_000)


class Form:
    """A wire form that counts how often it encodes; frames are '<channel body>'."""

    def __init__(self) -> None:
        self.encoded = 0

    def encode_publication(self, channel: str, body: bytes) -> bytes:
        self.encoded += 1
        return b"<" + channel.encode() + b" " + body + b">"

    def encode_arrival(self, channel: str, body: bytes) -> bytes:
        self.encoded += 1
        return b"<" + channel.encode() + b"! " + body + b">"


class One(Connection):
    """A connection that only receives."""

    __slots__ = ("goes", "wire")

    def __init__(self, fd: int, reactor: Reactor, wire: Form) -> None:
        super().__init__(fd, reactor, LIMITS)
        self.wire = wire
        self.goes = None

    def on_bytes(self, data: bytes) -> None: ...

    def on_deadline(self, now: float) -> None: ...

    def on_gone(self) -> None:
        if self.goes is not None:
            self.goes()

    def last_words(self, close: Close) -> bytes:
        return b"<bye>"


class Rig:
    """A plane with a fan-out, and clients whose received bytes can be read."""

    def __init__(self, send_buffer: int = 0, max_bytes: int = 10**9) -> None:
        loop = asyncio.get_running_loop()
        self.reactor = Reactor(loop, close_timeout_s=0.2)
        self.fanout = Fanout(
            self.reactor.connections, self.reactor.arm_turn, self.reactor.clock, loop.call_later, max_bytes
        )
        self.reactor.batches = self.fanout
        self.reactor.start()
        self.form = Form()
        self.send_buffer = send_buffer
        self.theirs: dict[One, socket.socket] = {}

    def client(self, *channels: str, form: Form | None = None, mode: str = "none", flush_ms: float = 0) -> One:
        ours, theirs = socket.socketpair()
        if self.send_buffer:
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, self.send_buffer)
        theirs.setblocking(False)
        one = One(take_over(ours), self.reactor, form or self.form)
        self.theirs[one] = theirs
        self.reactor.adopt(one)
        for channel in channels:
            self.fanout.join(channel, Namespace(mode=mode, flush_ms=flush_ms), one)
        return one

    def publish(self, *pairs: tuple[str, str]) -> None:
        self.fanout.deliver([Publication(channel, body.encode()) for channel, body in pairs])

    async def settled(self) -> None:
        """Until nothing is on its way."""
        await asyncio.sleep(0)
        while self.fanout.busy or self.reactor._flush_armed:
            await asyncio.sleep(0)

    def read(self, one: One) -> str:
        data = b""
        with contextlib.suppress(BlockingIOError):
            while more := self.theirs[one].recv(1 << 20):
                data += more
        return data.decode()

    async def read_all(self, one: One, size: int) -> str:
        """As many characters as `size` says, and what came with them."""
        text = ""
        while len(text) < size:
            text += self.read(one)
            await asyncio.sleep(0.001)
        return text


@contextlib.asynccontextmanager
async def rig(send_buffer: int = 0, max_bytes: int = 10**9) -> AsyncIterator[Rig]:
    one = Rig(send_buffer, max_bytes)
    try:
        yield one
    finally:
        one.reactor.stop()
        for sock in one.theirs.values():
            sock.close()


def check_board(fanout: Fanout) -> None:
    """Every slot is one audience's or nobody's, and nothing is left of a batch that is done."""
    slots = [audience.slot for line in fanout.lines.by_channel.values() for audience in line.audiences.values()]
    assert sorted(slots + fanout._board._free + fanout._board._retired) == list(range(len(fanout._board.ready)))
    assert not any(fanout._board.ready)
