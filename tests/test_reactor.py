"""The plane: many sockets on one epoll, descriptors that come back, an end for all of them."""

from __future__ import annotations

import asyncio
import os
import select
import socket

import pytest

from hub.connection import READ_BYTES, take_over
from hub.errors import CLOSE_SHUTDOWN
from hub.reactor import BRISK_S, EVENTS_PER_TURN, LIVELY_S, SLICE_S, NoBatches, Reactor
from tests.support import FakeClock, async_test
from tests.test_connection import Recorder, until


class Ear(Recorder):
    """One of which a test takes a method's place; a Recorder has no room for that."""


def crowd(reactor: Reactor, size: int, kind: type[Recorder] = Recorder) -> tuple[list[Recorder], list[socket.socket]]:
    """Connections on the plane, and the clients' ends."""
    ours, theirs = [], []
    for _ in range(size):
        one, other = socket.socketpair()
        connection = kind(take_over(one), reactor)
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
async def test_clients_that_flood_do_not_keep_others_from_their_turn():
    """Each read takes a good part of the slice and the next bytes are already there: all the same everybody is read
    once before anybody is read twice, and the loop serves others after two reads.
    """
    clock = FakeClock()
    reactor = Reactor(asyncio.get_running_loop(), clock=clock)
    ours, theirs = crowd(reactor, 20)
    order: list[object] = []

    class Busy(Recorder):
        __slots__ = ()

        def on_bytes(self, data: bytes) -> None:
            assert len(data) <= READ_BYTES
            clock.advance(SLICE_S * 0.6)
            order.append(self)

    for connection, sock in zip(ours, theirs, strict=True):
        connection.__class__ = Busy
        sock.send(b"x" * READ_BYTES * 5)
    reactor.start()
    while len(order) < 100:
        before = len(order)
        await asyncio.sleep(0)
        assert len(order) - before <= 2
    for begin in range(0, 100, 20):
        assert set(order[begin : begin + 20]) == set(ours)
    reactor.stop()
    for sock in theirs:
        sock.close()


@async_test
async def test_who_was_left_over_by_a_slice_and_is_gone_is_not_called():
    """Nor is the newcomer that has its descriptor's number by then."""
    clock = FakeClock()
    reactor = Reactor(asyncio.get_running_loop(), clock=clock)
    ours, theirs = crowd(reactor, 2)
    read: list[Recorder] = []

    class Busy(Recorder):
        __slots__ = ()

        def on_bytes(self, data: bytes) -> None:
            clock.advance(SLICE_S)
            read.append(self)

    class Deaf(Recorder):
        __slots__ = ()

        def on_readable(self) -> None:
            raise AssertionError("an event of somebody else")

    for connection, sock in zip(ours, theirs, strict=True):
        connection.__class__ = Busy
        sock.send(b"x")
    reactor._drain()
    [served] = read
    [left] = set(ours) - {served}
    number = left.fd
    left.abort()
    reactor._bury()
    [newcomer], more = crowd(reactor, 1)
    assert newcomer.fd == number
    newcomer.__class__ = Deaf
    reactor._drain()
    assert read == [served] and left.gone == 1
    reactor.stop()
    for sock in theirs + more:
        sock.close()


@async_test
async def test_a_copy_of_a_descriptor_elsewhere_keeps_no_events_in_the_epoll():
    """close() alone would leave the socket registered as long as a copy lives, and its events would spin the loop."""
    reactor = Reactor(asyncio.get_running_loop())
    reactor.start()
    (one,), (sock,) = crowd(reactor, 1)
    number, copy = one.fd, os.dup(one.fd)
    one.abort()
    await until(lambda: not os.path.exists(f"/proc/self/fd/{number}"))
    sock.send(b"for nobody")
    assert select.select([copy], [], [], 5)[0]
    assert reactor._ready.epoll.poll(0) == []
    os.close(copy)
    sock.close()
    reactor.stop()


@async_test
async def test_what_was_queued_for_one_that_is_gone_never_reaches_the_next_with_its_number():
    """Put, armed, aborted: the number comes free only when all that was queued in that turn has been thrown away."""
    reactor = Reactor(asyncio.get_running_loop())
    reactor.start()
    (one,), (sock,) = crowd(reactor, 1)
    number = one.fd
    reactor.schedule(one, reactor.clock())
    one.put(b"for the first")
    one.abort()
    (early,), (early_sock,) = crowd(reactor, 1)
    assert early.fd != number, "free before the end of the turn"
    await until(lambda: not os.path.exists(f"/proc/self/fd/{number}"))
    (late,), (late_sock,) = crowd(reactor, 1)
    assert late.fd == number
    late.put(b"for the second")
    await asyncio.sleep(reactor._wheel.tick_s * 2.5)  # the deadline of the first, which must not fire on anybody
    assert late_sock.recv(100) == b"for the second" and late.deadlines == one.deadlines == 0
    reactor.stop()
    for each in (sock, early_sock, late_sock):
        each.close()


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
    assert len(os.listdir("/proc/self/fd")) == before - 2  # the epolls themselves


@async_test
async def test_who_has_more_than_the_epoll_knows_is_read_again_in_turns():
    """Once for each time it was asked for, in slices, and not after its end."""
    clock = FakeClock()
    reactor = Reactor(asyncio.get_running_loop(), clock=clock)
    reactor.start()
    ours, theirs = crowd(reactor, 6, Ear)
    reads: list[int] = []

    def on_readable(at: int) -> None:
        reads.append(at)
        clock.advance(SLICE_S / 2)
        if reads.count(at) < 3:
            reactor.read_on(ours[at])

    for at, connection in enumerate(ours):
        connection.on_readable = lambda at=at: on_readable(at)
        reactor.read_on(connection)
        reactor.read_on(connection)
    ours[5].abort()
    await asyncio.sleep(0)
    assert reads == [0, 1]
    while len(reads) < 15:
        await asyncio.sleep(0)
    assert sorted(reads) == sorted([0, 1, 2, 3, 4] * 3)
    assert set(reads[:5]) == {0, 1, 2, 3, 4}
    for _ in range(5):
        await asyncio.sleep(0)
    assert len(reads) == 15
    reactor.stop()
    for sock in theirs:
        sock.close()


@async_test
async def test_reading_can_wait_and_an_end_that_can_not_be_kept_away_is_said_once():
    """Of a socket that was closed at its other end the kernel would say so again and again."""
    reactor = Reactor(asyncio.get_running_loop())
    reactor.start()
    [one], [other] = crowd(reactor, 1, Ear)
    calls: list[str] = []
    one.on_readable = lambda: calls.append("readable")
    reactor.watch_writes(one, False, reads=False)
    other.send(b"x")
    for _ in range(5):
        await asyncio.sleep(0.001)
    assert calls == []
    other.close()
    for _ in range(5):
        await asyncio.sleep(0.001)
    assert calls == ["readable"]
    reactor.stop()


class Slow(Recorder):
    """One whose every read takes 0.3 ms of the plane's clock."""

    __slots__ = ()

    def on_bytes(self, data: bytes) -> None:
        super().on_bytes(data)
        self.reactor.clock.advance(0.0003)


@pytest.mark.parametrize(("newcomer", "lively", "most"), [(False, False, 7), (False, True, 4), (True, True, 1)])
@async_test
async def test_while_publications_are_on_their_way_slices_are_smaller(newcomer, lively, most):
    """Those of newcomers most of all: they have to wait, and nobody waits for them."""
    clock = FakeClock()
    reactor = Reactor(asyncio.get_running_loop(), clock=clock)
    ours, theirs = [], []
    for _ in range(10):
        one, other = socket.socketpair()
        ours.append(Slow(take_over(one), reactor))
        reactor.adopt(ours[-1], newcomer=newcomer)
        theirs.append(other)
        other.send(b"x")
    reactor.batches.began_at = clock() if lively else clock() - LIVELY_S
    assert reactor.lively == lively
    (reactor._drain_newcomers if newcomer else reactor._drain)()
    assert sum(bool(connection.received) for connection in ours) == most
    # The one room's turn is not the other's.
    (reactor._drain if newcomer else reactor._drain_newcomers)()
    assert sum(bool(connection.received) for connection in ours) == most
    reactor.start()
    await until(lambda: all(connection.received for connection in ours))
    reactor.stop()
    for sock in theirs:
        sock.close()


class Writing(NoBatches):
    """A fan-out that takes a while for each turn's writes."""

    def __init__(self, clock: FakeClock, work_s: float) -> None:
        self.began_at = clock()
        self._clock, self._work_s = clock, work_s

    def run(self) -> None:
        self._clock.advance(self._work_s)


@pytest.mark.parametrize(("wrote_s", "share_s"), [(0.0, BRISK_S), (0.0001, BRISK_S), (0.002, 0.0005)])
@async_test
async def test_where_writing_is_all_that_the_loop_does_newcomers_have_a_share_of_that(wrote_s, share_s):
    """So that a worker that is behind lets them in; without publications they have as much as all others."""
    clock = FakeClock()
    reactor = Reactor(asyncio.get_running_loop(), clock=clock)
    reactor.batches = Writing(clock, wrote_s)
    reactor._flush()
    assert reactor.lively and reactor.newcomers_s == pytest.approx(share_s)
    clock.advance(LIVELY_S)
    assert not reactor.lively and reactor.newcomers_s == SLICE_S
    reactor.start()
    reactor.stop()


@async_test
async def test_a_descriptor_of_a_newcomer_that_went_is_a_clients_next():
    """Numbers come back: it must not stand among the newcomers any more."""
    reactor = Reactor(asyncio.get_running_loop())
    ours, theirs = socket.socketpair()
    newcomer = Recorder(take_over(ours), reactor)
    reactor.adopt(newcomer, newcomer=True)
    reactor.release(newcomer)
    client = Recorder(newcomer.fd, reactor)
    reactor.adopt(client)
    theirs.send(b"x")
    reactor._drain_newcomers()
    assert not client.received
    reactor._drain()
    assert client.received == b"x"
    reactor.stop()
    theirs.close()
