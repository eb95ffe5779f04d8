"""One client's socket on the plane, with real sockets: ends of every kind, the line that it leaves, faults that stay
inside.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import struct
from collections.abc import AsyncIterator

import pytest

from hub import connection as room
from hub import journal
from hub.connection import DEAF_BYTES, DEAF_READ_BYTES, Connection, take_over
from hub.errors import CLOSE_NORMAL, CLOSE_SHUTDOWN, Close
from hub.log import PatientHandler
from hub.outbox import Limits
from hub.reactor import Reactor
from tests.support import async_test


class Recorder(Connection):
    """A wire that writes down what happens."""

    __slots__ = ("deadlines", "gone", "raises", "received", "wire")

    def __init__(
        self, fd: int, reactor: Reactor, outbox_bytes: int = 1_000_000, conflate_bytes: int = 1_000_000
    ) -> None:
        super().__init__(fd, reactor, Limits(conflate_bytes, outbox_bytes, outbox_bytes, 100_000))
        self.received = b""
        self.gone = 0
        self.deadlines = 0
        self.raises = False

    def on_bytes(self, data: bytes) -> None:
        if self.raises:
            raise RuntimeError("a fault of ours")
        self.received += data

    def on_deadline(self, now: float) -> None:
        self.deadlines += 1

    def on_gone(self) -> None:
        self.gone += 1

    def last_words(self, close: Close) -> bytes:
        return f"bye {close.code}".encode()


@contextlib.asynccontextmanager
async def pair(
    outbox_bytes: int = 1_000_000,
    close_timeout_s: float = 5.0,
    backlog_bytes: int = 10**9,
    conflate_bytes: int = 1_000_000,
) -> AsyncIterator[tuple[Recorder, socket.socket, Reactor]]:
    """A connection on a running plane, and the client's end of it."""
    reactor = Reactor(asyncio.get_running_loop(), close_timeout_s, backlog_bytes)
    reactor.start()
    ours, theirs = socket.socketpair()
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
    theirs.setblocking(False)
    connection = Recorder(take_over(ours), reactor, outbox_bytes, conflate_bytes)
    reactor.adopt(connection)
    try:
        yield connection, theirs, reactor
    finally:
        theirs.close()
        reactor.stop()


async def until(condition: object) -> None:
    """Let the loop turn until the condition holds; bounded by the test's own limit."""
    while not condition():
        await asyncio.sleep(0.001)


async def read(sock: socket.socket, size: int) -> bytes:
    loop, data = asyncio.get_running_loop(), b""
    while len(data) < size and (more := await loop.sock_recv(sock, 65_536)):
        data += more
    return data


@async_test
async def test_bytes_reach_the_wire_and_count_as_life():
    """on_bytes gets what the client sent; heard_at moves; until then they are known to wait."""
    async with pair() as (connection, theirs, reactor):
        before = reactor.clock()
        assert not connection.unread
        theirs.send(b"hello")
        assert connection.unread and not connection.held_up
        await until(lambda: connection.received == b"hello")
        assert connection.heard_at >= before and not connection.unread


@async_test
async def test_a_peer_that_goes_ends_the_connection_once():
    """End of file and reset are ordinary ends: on_gone once, the descriptor closed, the plane empty."""
    for reset in (False, True):
        async with pair() as (connection, theirs, reactor):
            if reset:
                theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            theirs.close()
            await until(lambda c=connection: c.gone)
            assert connection.gone == 1 and not reactor.connections
            assert connection.closed_with == CLOSE_NORMAL
            connection.put(b"into the void")
            connection.close(CLOSE_SHUTDOWN)
            connection.finish()
            connection.abort()
            await asyncio.sleep(0.01)
            assert connection.gone == 1


@async_test
async def test_close_says_last_words_and_waits_for_the_peer():
    """The words come behind what waited; nothing can be put behind them; the end comes with the peer's."""
    async with pair() as (connection, theirs, _):
        connection.put(b"data,")
        connection.close(CLOSE_SHUTDOWN)
        connection.put(b"too late")
        assert await read(theirs, 13) == b"data,bye 3001"
        assert not connection.gone
        connection.finish()
        await until(lambda: connection.gone)
        assert connection.closed_with == CLOSE_SHUTDOWN


@async_test
async def test_a_peer_that_never_answers_a_close_is_cut():
    """After close_timeout_s the connection goes without the peer."""
    async with pair(close_timeout_s=0.05) as (connection, _, _reactor):
        connection.close(CLOSE_SHUTDOWN)
        await until(lambda: connection.gone)


@pytest.mark.expects_log
@async_test
async def test_a_fault_of_ours_ends_that_connection_alone(caplog):
    """An exception in a wire is logged with its trace and closes with 3004; the plane goes on."""
    async with pair(close_timeout_s=0.05) as (connection, theirs, reactor):
        ours, others = socket.socketpair()
        beside = Recorder(take_over(ours), reactor)
        reactor.adopt(beside)
        connection.raises = True
        theirs.send(b"boom")
        await until(lambda: connection.gone)
        assert connection.closed_with.code == 3004
        assert "a fault of ours" in caplog.text
        others.send(b"fine")
        await until(lambda: beside.received == b"fine")
        others.close()


@async_test
async def test_a_deadline_is_told_while_open_and_not_after_close():
    """on_deadline fires at its time; closing takes the deadline over."""
    async with pair(close_timeout_s=0.3) as (connection, _, reactor):
        reactor.schedule(connection, reactor.clock() + 0.01)
        await until(lambda: connection.deadlines == 1)
        reactor.schedule(connection, reactor.clock() + 0.01)
        connection.close(CLOSE_SHUTDOWN)
        await until(lambda: connection.gone)
        assert connection.deadlines == 1


class Named(Recorder):
    """One whose events are worth a line."""

    __slots__ = ("fails",)

    def __init__(self, fd: int, reactor: Reactor, outbox_bytes: int = 1_000_000) -> None:
        super().__init__(fd, reactor, outbox_bytes)
        self.fails = False

    def about(self):
        if self.fails:
            raise RuntimeError("a fault of ours")
        return {"wire": "test", "client": "c"}


@contextlib.asynccontextmanager
async def named() -> AsyncIterator[tuple[Named, socket.socket]]:
    """Such a one, and the client's end."""
    async with pair() as (_, _, reactor):
        ours, theirs = socket.socketpair()
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
        theirs.setblocking(False)
        connection = Named(take_over(ours), reactor)
        reactor.adopt(connection)
        with theirs:
            yield connection, theirs


def told(caplog: pytest.LogCaptureFixture) -> list[tuple[str, str, dict]]:
    """Level, event and fields of the lines of connections."""
    return [
        (record.levelname, record.msg, getattr(record, journal.FIELDS))
        for record in caplog.records
        if hasattr(record, journal.FIELDS)
    ]


@async_test
async def test_who_goes_leaves_one_line(caplog):
    """At info, once, with the reason; who has no name, such as a probe, leaves none."""
    caplog.set_level(logging.INFO, "hub.connection")
    async with named() as (connection, theirs), pair() as (nameless, _, _):
        connection.close(Close(4001, "enough"))
        theirs.close()
        await until(lambda: connection.gone)
        connection.abort()
        nameless.abort()
        assert nameless.gone
        [(level, event, fields)] = told(caplog)
        assert (level, event) == ("INFO", "closed")
        expected = {"wire": "test", "client": "c", "code": 4001, "reason": "enough", "messages": 0}
        assert fields == {**expected, "seconds": fields["seconds"]}


@async_test
async def test_of_many_who_go_at_once_the_kernel_is_asked_for_as_many_as_are_told_of(caplog, monkeypatch):
    """Lines beyond log_burst are counted and not made."""
    caplog.set_level(logging.INFO, "hub.connection")
    asked: list[int] = []
    monkeypatch.setattr(room, "tcp_traffic", asked.append)
    with open("/dev/null", "w") as nowhere:  # a stream that can be polled
        handler = PatientHandler(nowhere, burst=2)
        monkeypatch.setattr(logging.getLogger(), "handlers", [handler])
        async with contextlib.AsyncExitStack() as stack:
            for connection, _ in [await stack.enter_async_context(named()) for _ in range(5)]:
                connection.abort()
                assert connection.gone == 1
    assert len(asked) == 2
    handler._throttle.end_period()
    assert handler._throttle.take_held() == {("hub.connection", "closed"): 3}


@pytest.mark.expects_log
@async_test
async def test_a_line_that_fails_does_not_keep_a_client(caplog):
    """Its own end is carried out all the same: rooms behind it would count it for ever."""
    caplog.set_level(logging.INFO, "hub.connection")
    async with named() as (connection, _):
        connection.fails = True
        connection.abort()
        assert connection.gone == 1
        assert "a connection's end failed" in caplog.text


@async_test
async def test_who_goes_on_sending_to_deaf_ears_is_cut(monkeypatch):
    """What comes behind a broken wire is read for the sake of the last words, and not without end."""
    monkeypatch.setattr("hub.connection.DEAF_S", 600.0)
    async with pair(close_timeout_s=60) as (connection, theirs, _):
        connection.close(CLOSE_NORMAL)
        connection.stop_listening()
        sent = 0
        while not connection.gone:
            with contextlib.suppress(BlockingIOError, BrokenPipeError, ConnectionResetError):
                sent += theirs.send(b"x" * 4096)
            await asyncio.sleep(0)
        assert sent >= DEAF_BYTES and connection.received == b""


@async_test
async def test_what_goes_to_deaf_ears_is_read_in_large_pieces(monkeypatch):
    """Each read is a turn of the plane, and nothing is done with any of it."""
    monkeypatch.setattr("hub.connection.DEAF_S", 600.0)
    sizes = []
    async with pair(close_timeout_s=60) as (connection, theirs, _):
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 262_144)
        connection.read_bytes = 100
        connection.close(CLOSE_NORMAL)
        connection.stop_listening()
        theirs.send(b"x" * (DEAF_BYTES - 1))
        read_some = os.read
        monkeypatch.setattr(os, "read", lambda fd, size: sizes.append(size) or read_some(fd, size))
        await until(lambda: connection._deaf == 1)
    assert len(sizes) == -(-DEAF_BYTES // DEAF_READ_BYTES) and not connection.received
