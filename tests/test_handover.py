"""Handover: descriptors between workers."""

from __future__ import annotations

import asyncio
import os
import socket
import tempfile
from collections.abc import Callable

import pytest

from hub.errors import OwnerFailed, OwnerGone, OwnerSlow
from hub.handover import MAX_BYTES, Handover
from hub.relay import Home, Owner
from tests.nodes import until
from tests.support import async_test

HUB = "0123456789abcdef"
FIRST, SECOND, THIRD = (Owner(HUB, slot, slot + 1) for slot in range(3))


@async_test
async def test_a_socket_goes_to_its_owner():
    """With its words; what is written there comes out at the client's end, also once the sender's copy is closed."""
    taken: list[tuple[int, bytes]] = []
    with tempfile.TemporaryDirectory(prefix="hub-test-") as directory:
        home = Home(HUB, directory)
        one, other = Handover(home, FIRST), Handover(home, SECOND)
        other.start(lambda fd, words: taken.append((fd, words)))
        client, server = socket.socketpair()
        one.send(SECOND, server.fileno(), b"words")
        server.close()
        await until(lambda: taken)
        ((fd, words),) = taken
        assert words == b"words"
        assert not os.get_inheritable(fd)
        os.write(fd, b"hello")
        assert client.recv(10) == b"hello"
        os.close(fd)
        assert client.recv(10) == b""
        client.close()
        one.close()
        other.close()
        assert not os.listdir(directory)


@async_test
async def test_many_at_once_all_arrive():
    """More than are taken in one turn."""
    taken: list[bytes] = []

    def take(fd: int, words: bytes) -> None:
        os.close(fd)
        taken.append(words)

    with tempfile.TemporaryDirectory(prefix="hub-test-") as directory:
        home = Home(HUB, directory)
        one, other = Handover(home, FIRST), Handover(home, SECOND)
        other.start(take)
        for i in range(100):
            one.send(SECOND, 0, b"%d" % i)
            if i % 5 == 0:  # a queue of ten is the least that a kernel has
                await asyncio.sleep(0)
        await until(lambda: len(taken) == 100)
        assert taken == [b"%d" % i for i in range(100)]
        one.close()
        other.close()


def fill(one: Handover, owner: Owner) -> int:
    """Hand over more than any kernel keeps for a worker that takes nothing; how many."""
    count = 0
    while not one.waiting:
        one.send(owner, 0, b"%d" % count)
        count += 1
    return count


@async_test
async def test_what_finds_a_full_queue_waits_and_arrives():
    """A storm of upgrades, far beyond net.unix.max_dgram_qlen, in one turn: none is lost, and no other worker waits."""
    taken: dict[Owner, list[bytes]] = {SECOND: [], THIRD: []}

    def taker(owner: Owner) -> Callable[[int, bytes], None]:
        def take(fd: int, words: bytes) -> None:
            os.close(fd)
            taken[owner].append(words)

        return take

    with tempfile.TemporaryDirectory(prefix="hub-test-") as directory:
        home = Home(HUB, directory)
        one, other, third = (Handover(home, owner) for owner in (FIRST, SECOND, THIRD))
        other.start(taker(SECOND))
        third.start(taker(THIRD))
        count = fill(one, SECOND)
        for i in range(count, count + 100):
            one.send(SECOND, 0, b"%d" % i)
        one.send(THIRD, 0, b"third")
        await until(lambda: len(taken[SECOND]) == count + 100)
        assert sorted(taken[SECOND], key=int) == [b"%d" % i for i in range(count + 100)]
        assert taken[THIRD] == [b"third"]
        assert not one.waiting
        for worker in (one, other, third):
            worker.close()


@async_test
async def test_what_waits_for_a_worker_that_goes_is_closed():
    """So is what waits when this one ends: the client sees its end, and no descriptor is left."""
    with tempfile.TemporaryDirectory(prefix="hub-test-") as directory:
        home = Home(HUB, directory)
        before = os.listdir("/proc/self/fd")
        for goes in (SECOND, FIRST):
            one, other = Handover(home, FIRST), Handover(home, SECOND)
            other.start(lambda fd, words: os.close(fd))
            fill(one, SECOND)
            client, server = socket.socketpair()
            one.send(SECOND, server.fileno(), b"")
            server.close()
            (other if goes == SECOND else one).close()
            await until(lambda one=one: not one.waiting)
            assert client.recv(1) == b""
            client.close()
            (one if goes == SECOND else other).close()
        assert os.listdir("/proc/self/fd") == before


@async_test
async def test_a_worker_that_takes_nothing_is_not_waited_for_for_ever(monkeypatch):
    """Nor is more kept than the bound."""
    monkeypatch.setattr("hub.handover.WAIT_S", 0.0)
    monkeypatch.setattr("hub.handover.MAX_WAITING", 3)
    with tempfile.TemporaryDirectory(prefix="hub-test-") as directory:
        home = Home(HUB, directory)
        one = Handover(home, FIRST)
        deaf = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        deaf.bind(home.path(1, 2).removesuffix(".sock") + "-fds.sock")
        fill(one, SECOND)
        for _ in range(2):
            one.send(SECOND, 0, b"")
        with pytest.raises(OwnerSlow):
            one.send(SECOND, 0, b"")
        await until(lambda: not one.waiting)
        deaf.close()
        one.close()


@async_test
async def test_what_can_not_be_passed_on_is_said():
    """Another hub's session, a worker that is gone, too many words: the descriptor stays the caller's."""
    with tempfile.TemporaryDirectory(prefix="hub-test-") as directory:
        home = Home(HUB, directory)
        one, other = Handover(home, FIRST), Handover(home, SECOND)
        other.start(lambda fd, words: os.close(fd))
        with pytest.raises(OwnerGone):
            one.send(SECOND._replace(hub="f" * 16), 0, b"")
        with pytest.raises(OwnerGone):
            one.send(SECOND._replace(generation=3), 0, b"")
        with pytest.raises(OwnerFailed):
            one.send(SECOND, 0, bytes(MAX_BYTES + 1))
        other.close()
        with pytest.raises(OwnerGone):
            one.send(SECOND, 0, b"")
        one.close()
