"""Bridges: a TLS client in a thread at one side, a plain descriptor at the other, a real plane between them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import socket
import ssl
from collections.abc import AsyncIterator

import pytest

from hub.certificates import Certificates
from hub.errors import CLOSE_SHUTDOWN
from hub.reactor import Reactor
from hub.tls import TlsSocket
from hub.tls_bridge import plain_descriptor
from tests.nodes import until
from tests.pki import Authority
from tests.support import async_test


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("pki"))


@pytest.fixture(scope="module")
def certificates(authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates([authority.issue().write(tmp_path_factory.mktemp("pair"))])


class Sides:
    """client: speaks TLS, blocking. far: what stands for it."""

    def __init__(self, reactor: Reactor, client: ssl.SSLSocket, far: socket.socket) -> None:
        self.reactor = reactor
        self.client = client
        self.far = far

    async def heard(self, size: int) -> bytes:
        """By the client, with its end where that comes first."""

        def read() -> bytes:
            data = bytearray()
            while len(data) < size and (piece := self.client.recv(size - len(data))):
                data += piece
            return bytes(data)

        return await asyncio.to_thread(read)


@contextlib.asynccontextmanager
async def bridge(
    authority: Authority, certificates: Certificates, early: bytes = b"", close_timeout_s: float = 5.0
) -> AsyncIterator[Sides]:
    loop = asyncio.get_running_loop()
    reactor = Reactor(loop, close_timeout_s)
    reactor.start()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        plain = socket.create_connection(listener.getsockname())
        plain.settimeout(20)
        accepted, _ = listener.accept()
    accepted.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)

    def shake() -> ssl.SSLSocket:
        sock = authority.client().wrap_socket(plain, server_hostname="localhost", suppress_ragged_eofs=False)
        if early:
            sock.sendall(early)
        return sock

    shaking = asyncio.create_task(asyncio.to_thread(shake))
    secure = await asyncio.to_thread(certificates.context.wrap_socket, accepted, server_side=True)
    client = await shaking
    secure.setblocking(False)
    far = socket.socket(fileno=plain_descriptor(reactor, TlsSocket(secure)))
    try:
        yield Sides(reactor, client, far)
    finally:
        client.close()
        far.close()
        reactor.stop()


@async_test
async def test_bytes_pass_both_ways_in_order(authority, certificates):
    """Megabytes at once, each side as slow as the other reads."""
    async with bridge(authority, certificates) as sides:
        loop = asyncio.get_running_loop()
        there, back = random.randbytes(3_000_000), random.randbytes(3_000_000)
        sending = [
            asyncio.create_task(asyncio.to_thread(sides.client.sendall, there)),
            asyncio.create_task(loop.sock_sendall(sides.far, back)),
        ]
        received = bytearray()
        while len(received) < len(there):
            received += await loop.sock_recv(sides.far, 50_000)
        assert received == there
        await sending[0]
        assert await sides.heard(len(back)) == back
        await sending[1]


@async_test
async def test_what_is_decrypted_already_is_not_forgotten(authority, certificates):
    """A record that came before, and is longer than one read."""
    early = random.randbytes(16_000)
    async with bridge(authority, certificates, early) as sides:
        received = bytearray()
        while len(received) < len(early):
            received += await asyncio.get_running_loop().sock_recv(sides.far, 65_536)
        assert received == early


@async_test
async def test_last_words_come_before_the_end(authority, certificates):
    """Of the far side: more than the sockets hold, then close_notify, and everything is free again."""
    words = random.randbytes(1_000_000)
    async with bridge(authority, certificates) as sides:
        sending = asyncio.create_task(asyncio.get_running_loop().sock_sendall(sides.far, words))
        assert await sides.heard(100) == words[:100]
        await asyncio.sleep(0)
        rest = asyncio.create_task(sides.heard(len(words)))
        await sending
        sides.far.close()
        assert await rest == words[100:]
        assert len(sides.reactor.connections) == 1  # it waits for the client's own end
        await asyncio.to_thread(sides.client.close)
        await until(lambda: not sides.reactor.connections)


@async_test
async def test_the_clients_end_is_passed_on(authority, certificates):
    """Behind what it has said; the answer still comes where it has only ended its own side."""
    async with bridge(authority, certificates) as sides:
        loop = asyncio.get_running_loop()
        sides.client.sendall(b"last")
        sides.client.setblocking(False)
        with contextlib.suppress(ssl.SSLWantReadError):
            sides.client.unwrap()
        sides.client.settimeout(10)
        assert await loop.sock_recv(sides.far, 100) == b"last"
        assert await loop.sock_recv(sides.far, 100) == b""
        await loop.sock_sendall(sides.far, b"answer")
        sides.far.close()
        assert await sides.heard(6) == b"answer"
        await until(lambda: not sides.reactor.connections)


@async_test
async def test_a_reset_ends_the_other_side(authority, certificates):
    """Whoever's it is."""
    async with bridge(authority, certificates) as sides:
        sides.client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
        socket.socket(fileno=sides.client.detach()).close()
        assert await asyncio.get_running_loop().sock_recv(sides.far, 100) == b""
        sides.far.close()
        await until(lambda: not sides.reactor.connections)
    async with bridge(authority, certificates) as sides:
        sides.client.sendall(b"unread")
        sides.far.close()
        assert await sides.heard(1) == b""


@async_test
async def test_who_reads_nothing_is_cut_once_the_other_has_ended(authority, certificates):
    """After close_timeout_s, with what is left unread; a plane that span meanwhile would use all of it on the CPU."""
    async with bridge(authority, certificates, close_timeout_s=0.3) as sides:
        sides.far.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                sides.far.send(bytes(65_536))
                await asyncio.sleep(0.001)
        sides.far.close()
        began = os.times().user + os.times().system
        await until(lambda: not sides.reactor.connections)
        assert os.times().user + os.times().system - began < 0.15


@async_test
async def test_the_plane_ends_both_sides(authority, certificates):
    """A worker that drains, as with a tunnel."""
    async with bridge(authority, certificates) as sides:
        next(iter(sides.reactor.connections.values())).close(CLOSE_SHUTDOWN)
        assert not sides.reactor.connections
        assert await sides.heard(1) == b""
        assert await asyncio.get_running_loop().sock_recv(sides.far, 100) == b""


@async_test
async def test_a_plain_descriptor_stays_as_it_is(authority, certificates):
    """Nothing is put between."""
    assert plain_descriptor(Reactor(asyncio.get_running_loop()), 17) == 17
