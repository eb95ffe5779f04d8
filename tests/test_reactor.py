"""The plane: many sockets on one epoll, descriptors that come back, an end for all of them."""

from __future__ import annotations

import asyncio
import os
import socket

import pytest

from hub.connection import take_over
from hub.errors import CLOSE_SHUTDOWN
from hub.reactor import EVENTS_PER_TURN, Reactor
from tests.support import async_test
from tests.test_connection import Recorder, until


def crowd(reactor: Reactor, size: int) -> tuple[list[Recorder], list[socket.socket]]:
    """Connections on the plane, and the clients' ends."""
    ours, theirs = [], []
    for _ in range(size):
        one, other = socket.socketpair()
        connection = Recorder(take_over(one), reactor)
        reactor.adopt(connection)
        ours.append(connection)
        theirs.append(other)
    return ours, theirs


@async_test
async def test_more_ready_clients_than_one_turn_takes_are_all_served():
    """Level-triggered: what one turn leaves, the next ones take, and a timer of the loop runs in between."""
    reactor = Reactor(asyncio.get_running_loop())
    reactor.start()
    ours, theirs = crowd(reactor, EVENTS_PER_TURN * 2 + 10)
    for sock in theirs:
        sock.send(b"x")
    turns = 0
    while not all(connection.received for connection in ours):
        turns += 1
        await asyncio.sleep(0)
    assert turns >= 2
    reactor.stop()
    for sock in theirs:
        sock.close()


@async_test
async def test_a_descriptor_is_closed_only_after_the_batch():
    """A connection that goes inside a batch frees its number later: no other client gets it, and its events, before."""
    reactor = Reactor(asyncio.get_running_loop())
    reactor.start()
    (one, two), theirs = crowd(reactor, 2)
    seen = []

    def on_bytes(data: bytes) -> None:
        victim = two if not two.gone else one
        victim.abort()
        seen.append(os.fstat(victim.fd))  # still ours: fstat would fail on a closed one

    class Aborting(Recorder):
        __slots__ = ()

        def on_bytes(self, data: bytes) -> None:
            on_bytes(data)

    one.__class__ = two.__class__ = Aborting
    for sock in theirs:
        sock.send(b"x")
    await until(lambda: seen)
    assert one.gone + two.gone == 1, "the one that was gone must not be called with its pending event"
    fd = (one if one.gone else two).fd
    await asyncio.sleep(0.01)
    with pytest.raises(OSError):
        os.fstat(fd)
    reactor.stop()
    for sock in theirs:
        sock.close()


@async_test
async def test_when_empty_tells_at_once_or_with_the_last():
    """The worker's end waits for it."""
    reactor = Reactor(asyncio.get_running_loop(), close_timeout_s=0.05)
    reactor.start()
    told = []
    reactor.when_empty(lambda: told.append("at once"))
    assert told == ["at once"]
    ours, theirs = crowd(reactor, 3)
    reactor.when_empty(lambda: told.append("last"))
    for connection in ours:
        assert told == ["at once"]
        connection.close(CLOSE_SHUTDOWN)
    await until(lambda: len(told) == 2)
    reactor.stop()
    for sock in theirs:
        sock.close()


@async_test
async def test_stop_closes_every_descriptor():
    """Nothing of the plane is left open, and every connection is told."""
    reactor = Reactor(asyncio.get_running_loop())
    reactor.start()
    before = len(os.listdir("/proc/self/fd"))
    ours, theirs = crowd(reactor, 5)
    reactor.stop()
    assert all(connection.gone == 1 for connection in ours)
    for sock in theirs:
        assert sock.recv(1) == b""
        sock.close()
    assert len(os.listdir("/proc/self/fd")) == before - 1  # the epoll itself
