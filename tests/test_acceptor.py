"""Accepting: both ways in, newcomers that say nothing, full processes and too many handshakes at a time."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import socket

import pytest

from hub import acceptor as room
from hub.errors import CLOSE_SHUTDOWN
from tests.plane import client, plane
from tests.support import async_test
from tests.transports.test_websocket import head, raw


async def until(condition: object) -> None:
    while not condition():
        await asyncio.sleep(0.001)


@pytest.mark.parametrize("fast", [True, False])
@async_test
async def test_a_request_in_pieces_is_upgraded_all_the_same(valkey_url, prefix, fast):
    """The first piece is no whole head, so Tornado gets the connection, with every byte."""
    async with plane(valkey_url, prefix, fast=fast) as hub:
        reader, writer = await asyncio.open_connection("127.0.0.1", hub.port)
        request = head()
        for i in range(0, len(request), 40):
            writer.write(request[i : i + 40])
            await asyncio.sleep(0.002)
        assert (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)).startswith(b"HTTP/1.1 101 ")
        writer.close()


@pytest.mark.parametrize("fast", [True, False])
@async_test
async def test_other_addresses_are_served_on_the_same_listener(valkey_url, prefix, fast):
    """Tornado answers them, kept alive or not."""
    async with plane(valkey_url, prefix, fast=fast) as hub:
        _, writer, answer = await raw(hub.port, b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 200 ")
        writer.close()


@async_test
async def test_a_newcomer_that_says_nothing_is_closed_at_its_deadline(valkey_url, prefix):
    """And one that goes without a word leaves nothing behind."""
    async with plane(valkey_url, prefix) as hub:
        reader, writer = await asyncio.open_connection("127.0.0.1", hub.port)
        _, gone = await asyncio.open_connection("127.0.0.1", hub.port)
        await until(lambda: len(hub.reactor.connections) == 2)
        gone.close()
        await until(lambda: len(hub.reactor.connections) == 1)
        assert await asyncio.wait_for(reader.read(-1), 5) == b""
        assert not hub.reactor.connections
        writer.close()


@async_test
async def test_a_newcomer_that_has_left_can_be_closed_again(valkey_url, prefix):
    """A drain goes through a list that it made earlier: who became a client or went meanwhile is not harmed by it."""
    async with plane(valkey_url, prefix) as hub:
        reader, writer = await asyncio.open_connection("127.0.0.1", hub.port)
        await until(lambda: hub.reactor.connections)
        [newcomer] = hub.reactor.connections.values()
        writer.write(head())
        assert (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)).startswith(b"HTTP/1.1 101 ")
        newcomer.close(CLOSE_SHUTDOWN)
        newcomer.abort()
        newcomer.on_timer(0.0)
        [connection] = hub.reactor.connections.values()
        assert connection.open
        writer.close()


@pytest.mark.parametrize("fast", [True, False])
@async_test
async def test_too_many_handshakes_in_a_second_are_answered_503(valkey_url, prefix, fast):
    """Retry-After says when to come back; those who are in stay in."""
    async with plane(valkey_url, prefix, fast=fast, handshakes_per_s=2) as hub, client(hub.url) as one:
        answers = []
        for _ in range(3):
            _, writer, answer = await raw(hub.port, head())
            answers.append(answer)
            writer.close()
        assert answers[-1].startswith(b"HTTP/1.1 503 ") and b"\r\nRetry-After: 1\r\n" in answers[-1]
        assert "rpc" in await one.command(rpc={"method": "hub.time"})


@pytest.mark.expects_log
@async_test
async def test_a_full_process_answers_503_and_does_not_spin(valkey_url, prefix, monkeypatch):
    """At the margin below the descriptor limit: 503 with Retry-After; the clients that are in go on."""
    used = len(os.listdir("/proc/self/fd"))
    monkeypatch.setattr(room.resource, "getrlimit", lambda which: (used + 40 + room.DESCRIPTOR_MARGIN, 0))
    gc.collect()  # so that no garbage gives a descriptor back in between
    async with plane(valkey_url, prefix) as hub, client(hub.url) as one:
        with contextlib.ExitStack() as held:
            while True:
                sock = held.enter_context(socket.create_connection(("127.0.0.1", hub.port)))
                if sock.fileno() > hub.acceptor._most_fd:
                    break
            for _ in range(3):
                _, writer, answer = await raw(hub.port, head())
                assert answer.startswith(b"HTTP/1.1 503 ") and b"\r\nRetry-After: 5\r\n" in answer
                writer.close()
        assert "rpc" in await one.command(rpc={"method": "hub.time"})


@pytest.mark.expects_log
@async_test
async def test_without_any_descriptor_the_reserve_makes_room_for_an_answer(valkey_url, prefix, monkeypatch):
    """accept() fails with EMFILE: one connection is taken on the reserve descriptor, answered and closed."""
    async with plane(valkey_url, prefix) as hub:
        calls = 0

        class Exhausted:
            """The listener, whose accept fails once as at the limit."""

            def __init__(self, listener: socket.socket) -> None:
                self.listener = listener

            def accept(self) -> tuple:
                nonlocal calls
                calls += 1
                if calls % 2:
                    raise OSError(room.errno.EMFILE, "Too many open files")
                return self.listener.accept()

        acceptor = hub.acceptor
        listener = acceptor._listeners[0]
        loop = asyncio.get_running_loop()
        loop.remove_reader(listener.fileno())
        loop.add_reader(listener.fileno(), acceptor._accept, Exhausted(listener))
        before = len(os.listdir("/proc/self/fd"))
        reader, writer = await asyncio.open_connection("127.0.0.1", hub.port)
        assert (await asyncio.wait_for(reader.read(-1), 5)).startswith(b"HTTP/1.1 503 ")
        writer.close()
        await until(lambda: len(os.listdir("/proc/self/fd")) == before)
        assert acceptor.turned_away == 1
