"""Handover: descriptors between workers."""

from __future__ import annotations

import asyncio
import os
import socket
import tempfile

import pytest

from hub.errors import OwnerFailed, OwnerGone
from hub.handover import MAX_BYTES, Handover
from hub.relay import Home, Owner
from tests.nodes import until
from tests.support import async_test

HUB = "0123456789abcdef"
FIRST, SECOND = Owner(HUB, 0, 1), Owner(HUB, 1, 2)


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
