"""What one client is sent, through real sockets: in one piece, in order whatever the socket takes, and bounded."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import socket

import pytest

from hub.connection import take_over
from tests.support import async_test
from tests.test_connection import Recorder, named, pair, read, told, until


class Audience:
    """As much of one as a connection looks at."""

    def __init__(self, mode: str) -> None:
        self.mode = mode


@async_test
async def test_frames_of_one_turn_leave_in_one_piece():
    """Two puts in the same loop turn are one write, in order."""
    async with pair() as (connection, theirs, _):
        connection.put(b"one,")
        connection.put(b"two")
        with pytest.raises(BlockingIOError):
            theirs.recv(100)  # nothing before the turn's end
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert theirs.recv(100) == b"one,two"


@async_test
async def test_a_torn_write_is_finished_before_anything_else():
    """More than the socket takes: the rest follows byte for byte, then what was put meanwhile."""
    async with pair() as (connection, theirs, _):
        large = bytes(range(256)) * 1000
        connection.put(large)
        await asyncio.sleep(0.01)
        connection.put(b"|later")
        assert await read(theirs, len(large) + 6) == large + b"|later"


@async_test
async def test_the_rest_of_a_torn_write_comes_before_what_waited_behind_it():
    """More frames than are joined for one write, of which the socket takes a part of the first."""
    async with pair() as (connection, theirs, _):
        frames = [bytes([number]) * 60_000 for number in range(10)]
        for frame in frames:
            connection.put(frame)
        assert await read(theirs, 600_000) == b"".join(frames)


@async_test
async def test_a_slow_socket_is_not_given_what_grows_old_before_it_can_go():
    """It takes a few KB now and then: what waits for it stays one value of each of 50 channels, however many came."""
    channels = [Audience("latest") for _ in range(50)]
    async with pair(conflate_bytes=0) as (connection, theirs, _):
        connection.put(bytes(100_000))
        await until(lambda: not connection.ready)
        wire, most = b"", 0
        for number in range(400):
            for channel, audience in enumerate(channels):
                connection.offer(audience, b"<%d %06d>" % (channel, number) + b"." * 200)
            if number >= 50:  # the large frame has gone by then
                most = max(most, connection._outbox.size)
            with contextlib.suppress(BlockingIOError):
                wire += theirs.recv(2500)
            await asyncio.sleep(0)
        assert most < 2 * 50 * 212
        while wire.count(b" 000399>") < 50:
            wire += await asyncio.get_running_loop().sock_recv(theirs, 65_536)
    values = re.findall(rb"<(\d+) (\d+)>", wire)
    for channel in range(50):
        numbers = [int(number) for one, number in values if int(one) == channel]
        assert numbers == sorted(set(numbers)) and numbers[-1] == 399


@async_test
async def test_finish_writes_everything_first():
    """A peer that has ended still gets what waits for it."""
    async with pair() as (connection, theirs, _):
        connection.put(b"x" * 300_000)
        connection.finish()
        assert await read(theirs, 300_000) == b"x" * 300_000
        await until(lambda: connection.gone)


@async_test
async def test_a_full_outbox_closes_as_slow():
    """Over outbox_bytes the connection closes with 3008, not within the put: it could be inside a fan-out."""
    async with pair(outbox_bytes=100_000, close_timeout_s=0.05) as (connection, _, _reactor):
        for _ in range(100):
            connection.put(b"x" * 10_000)
            assert not connection.gone
            await asyncio.sleep(0)
        assert connection.closed_with.code == 3008
        await until(lambda: connection.gone)


@async_test
async def test_over_the_workers_bound_the_largest_backlog_goes():
    """Two stuck readers: the one that holds more is sent away, the other stays; the sum is within the bound again."""
    async with pair(backlog_bytes=500_000) as (large, _, reactor):
        ours, theirs = socket.socketpair()
        small = Recorder(take_over(ours), reactor)
        reactor.adopt(small)
        for _ in range(60):
            large.put(b"x" * 10_000)
            if _ % 3 == 0:
                small.put(b"x" * 30_000 if not _ else b"x")
            await asyncio.sleep(0)
        assert large.gone == 1 and large.closed_with.code == 3008 and reactor.backlog.slow == 1
        assert small.open and reactor.backlog.bytes <= 500_000
        theirs.close()


@async_test
async def test_a_slow_reader_is_told_of_at_debug(caplog):
    """When it blocks, with what waits, and when it has caught up; not the frames."""
    caplog.set_level(logging.DEBUG, "hub.connection")
    async with named() as (connection, theirs):
        connection.put(b"x" * 500_000)
        await until(lambda: told(caplog))
        received = 0
        while received < 500_000:
            try:
                received += len(theirs.recv(65_536))
            except BlockingIOError:
                await asyncio.sleep(0)
        await until(lambda: len(told(caplog)) == 2)
        (level, blocked, fields), (_, drained, _) = told(caplog)
        assert (level, blocked, drained) == ("DEBUG", "blocked", "drained")
        assert set(fields) == {"wire", "client", "waiting"} and fields["waiting"] > 0
