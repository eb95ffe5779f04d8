"""The proxy that faults are made with: each kind of misbehaviour, seen from both ends."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from tests.chaos.proxy import Address, Proxy
from tests.nodes import until
from tests.support import async_test

SILENCE_S = 0.1
"""Nothing came for so long: the only way to see that something is held."""


class Far:
    """A server that keeps what it gets and answers each chunk with its length in a line."""

    def __init__(self) -> None:
        self.got = b""
        self.connections = 0
        self.writers: list[asyncio.StreamWriter] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.writers.append(writer)
        with contextlib.suppress(OSError):
            while chunk := await reader.read(65_536):
                self.got += chunk
                writer.write(b"%d\n" % len(chunk))
                await writer.drain()
        writer.close()


@contextlib.asynccontextmanager
async def between() -> AsyncIterator[tuple[Proxy, Far]]:
    """A proxy in front of a server."""
    far = Far()
    server = await asyncio.start_server(far.serve, "127.0.0.1", 0)
    proxy = Proxy(Address(host="127.0.0.1", port=server.sockets[0].getsockname()[1]))
    await proxy.start()
    try:
        yield proxy, far
    finally:
        await proxy.close()
        server.close()


async def link(proxy: Proxy, first: bytes = b"*1\r\n$4\r\nPING\r\n") -> tuple:
    """A connection that has said something and has its answer."""
    reader, writer = await asyncio.open_connection(proxy.address.host, proxy.address.port)
    writer.write(first)
    assert await asyncio.wait_for(reader.readline(), 5) == b"%d\n" % len(first)
    return reader, writer


async def is_silent(reader: asyncio.StreamReader) -> bool:
    try:
        await asyncio.wait_for(reader.readline(), SILENCE_S)
    except TimeoutError:
        return True
    return False


SUBSCRIBE = b"*2\r\n$9\r\nsubscribe\r\n$1\r\nx\r\n"


@async_test
async def test_bytes_pass_complete_and_in_order():
    """A megabyte up, and the sum of the answers down."""
    async with between() as (proxy, far):
        reader, writer = await link(proxy, b"0")
        sent = bytes(range(256)) * 4096
        writer.write(sent)
        total = 0
        while total < len(sent):
            total += int(await asyncio.wait_for(reader.readline(), 5))
        assert far.got == b"0" + sent
        writer.close()


@async_test
async def test_links_are_told_apart_by_what_they_say():
    """In lower case, behind other commands, in pieces."""
    async with between() as (proxy, _):
        _, command = await link(proxy)
        reader, pubsub = await link(proxy, b"*1\r\n$5\r\nHELLO\r\n")
        assert (proxy.count("command"), proxy.count("pubsub")) == (2, 0)
        for part in (SUBSCRIBE[:10], SUBSCRIBE[10:]):
            pubsub.write(part)
            await reader.readline()
        _, replica = await link(proxy, b"*3\r\n$8\r\nREPLCONF\r\n")
        assert (proxy.count("command"), proxy.count("pubsub"), proxy.count("replication")) == (1, 1, 1)
        for writer in (command, pubsub, replica):
            writer.close()
        await until(lambda: proxy.count() == 0)


@async_test
async def test_a_held_kind_is_silent_until_it_is_released_and_others_go_on():
    """Nothing is lost by it."""
    async with between() as (proxy, far):
        commands, command = await link(proxy)
        messages, pubsub = await link(proxy, SUBSCRIBE)
        proxy.hold("pubsub")
        pubsub.write(b"ping")
        command.write(b"again")
        assert await commands.readline() == b"5\n"
        assert await is_silent(messages) and b"ping" not in far.got
        proxy.release()
        assert await asyncio.wait_for(messages.readline(), 5) == b"4\n"
        command.close(), pubsub.close()


@async_test
async def test_one_direction_can_be_held():
    """The store has got it; its answer waits."""
    async with between() as (proxy, far):
        reader, writer = await link(proxy)
        proxy.hold("command", "down")
        writer.write(b"one")
        await until(lambda: far.got.endswith(b"one"))
        assert await is_silent(reader)
        proxy.release()
        assert await asyncio.wait_for(reader.readline(), 5) == b"3\n"
        writer.close()


@async_test
async def test_a_delay_is_added():
    """Measured, as it is what a delay is."""
    async with between() as (proxy, _):
        reader, writer = await link(proxy)
        proxy.delay(0.05, direction="up")
        began_s = asyncio.get_running_loop().time()
        writer.write(b"late")
        await reader.readline()
        assert asyncio.get_running_loop().time() - began_s >= 0.045  # uvloop counts in whole ms
        writer.close()


@async_test
async def test_dropped_links_end_and_new_ones_come():
    """Only those of the kind; the store sees the end too."""
    async with between() as (proxy, far):
        commands, command = await link(proxy)
        messages, pubsub = await link(proxy, SUBSCRIBE)
        assert proxy.drop("pubsub") == 1
        assert await messages.read() == b""
        command.write(b"still here")
        assert await commands.readline() == b"10\n"
        _, another = await link(proxy, SUBSCRIBE)
        assert far.connections == 3
        for writer in (command, pubsub, another):
            writer.close()


@async_test
async def test_a_reset_is_a_reset():
    """ECONNRESET, also while bytes are held."""
    async with between() as (proxy, _):
        reader, writer = await link(proxy)
        proxy.hold()
        writer.write(b"swallowed")
        assert proxy.reset() == 1
        with pytest.raises(ConnectionResetError):
            await reader.read()
        writer.close()


@async_test
async def test_refused_links_are_refused_and_old_ones_stay():
    """ECONNREFUSED until it accepts again, at the same address."""
    async with between() as (proxy, _):
        reader, writer = await link(proxy)
        await proxy.refuse()
        with pytest.raises(ConnectionRefusedError):
            await link(proxy)
        writer.write(b"old")
        assert await reader.readline() == b"3\n"
        await proxy.accept()
        _, another = await link(proxy)
        writer.close(), another.close()


@async_test
async def test_a_new_target_is_for_new_links():
    """Both stay open side by side: what a failover looks like to a client whose old link was forgotten."""
    async with between() as (proxy, far), between() as (elsewhere, other):
        reader, old = await link(proxy, b"old")
        proxy.target = elsewhere.target
        _, new = await link(proxy, b"new")
        old.write(b"er")
        await reader.readline()
        assert (far.got, other.got) == (b"older", b"new")
        old.close(), new.close()


@async_test
async def test_a_store_that_ends_ends_its_links():
    """Its last answer comes before the end."""
    async with between() as (proxy, far):
        reader, writer = await link(proxy)
        far.writers[0].write(b"bye\n")
        far.writers[0].close()
        assert await asyncio.wait_for(reader.read(), 5) == b"bye\n"
        writer.close()
