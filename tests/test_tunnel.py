"""Tunnels: two hubs that share a Redis on this test's own loop, a client at the one, and its session at the other."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import socket
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from math import inf

import pytest
from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets

from hub import httpd
from hub.errors import CLOSE_SHUTDOWN, OwnerGone, OwnerSlow
from hub.handover import Handover
from hub.neighbours import Neighbours
from hub.reactor import Reactor
from hub.relay import Home, Limits, Owner, Relay
from hub.sections import RedisSettings
from hub.store import Store
from hub.tunnel import Tunnel, Tunnels
from tests.emulated import http, request
from tests.nodes import until
from tests.support import FakeClock, async_test

SECRET = "a secret of all machines, of more than 32 bytes"
KEY = "dGhlIHNhbXBsZSBub25jZQ=="


@dataclass
class Machine:
    """One worker of one hub. taken: sockets that came by a tunnel, and their words."""

    owner: Owner
    neighbours: Neighbours
    tunnels: Tunnels
    reactor: Reactor
    server: HTTPServer
    url: str
    taken: list[tuple[socket.socket, bytes]] = field(default_factory=list)

    async def arrived(self) -> tuple[socket.socket, bytes]:
        """The socket that a tunnel has brought."""
        await until(lambda: self.taken)
        return self.taken.pop()


@contextlib.asynccontextmanager
async def machine(
    valkey_url: str,
    prefix: str,
    hub: str,
    *,
    most: int = 8,
    stalled_s: float = 60.0,
    clock: Callable[[], float] = time.monotonic,
) -> AsyncIterator[Machine]:
    """Reachable, and known to the others."""
    store = Store(RedisSettings(prefix=prefix), valkey_url)
    with tempfile.TemporaryDirectory(prefix="hub-test-") as directory:
        home = Home(hub * 16, directory)
        relay = Relay(home, 0, 1, Limits())
        (sock,) = bind_sockets(0, "127.0.0.1")
        url = f"http://127.0.0.1:{sock.getsockname()[1]}"
        neighbours, handover = Neighbours(store, relay, url, SECRET), Handover(home, relay.owner)
        reactor = Reactor(asyncio.get_running_loop(), close_timeout_s=0.2, clock=clock)
        tunnels = Tunnels(reactor, neighbours, handover, 2.0, stalled_s, most)
        server = HTTPServer(httpd.application(tunnels.routes()))
        server.add_sockets([sock])
        one = Machine(relay.owner, neighbours, tunnels, reactor, server, url)

        def take(fd: int, words: bytes) -> None:
            taken = socket.socket(fileno=fd)
            taken.setblocking(False)
            one.taken.append((taken, words))

        handover.start(take)
        reactor.start()
        neighbours.start()
        redis = store.commands()
        try:
            await until(lambda: redis.exists(store.keys.neighbour(relay.owner.hub)))
            yield one
        finally:
            reactor.stop()
            await until(lambda: not tunnels.open)
            await neighbours.close()
            handover.close()
            server.stop()
            await server.close_all_connections()
            await redis.aclose()
            for left, _ in one.taken:
                left.close()


@contextlib.asynccontextmanager
async def tunnel(here: Machine, there: Machine) -> AsyncIterator[tuple[socket.socket, socket.socket, Tunnel]]:
    """The client's end, the end at its session, and the tunnel between."""
    made = await here.tunnels.dig(there.owner, KEY, b"words")
    client, server = socket.socketpair()
    client.setblocking(False)
    await made.begin(server.detach(), b"")
    far, words = await there.arrived()
    assert words == b"words"
    try:
        yield client, far, made
    finally:
        client.close()
        far.close()


async def read(sock: socket.socket, size: int) -> bytes:
    """So many bytes, fewer where it ends."""
    loop, data = asyncio.get_running_loop(), b""
    async with asyncio.timeout(5):
        while len(data) < size and (some := await loop.sock_recv(sock, size - len(data))):
            data += some
    return data


@async_test
async def test_bytes_arrive_both_ways(valkey_url, prefix):
    """What the client sent with its request comes first; many, at once in both directions, whole and in order."""
    loop = asyncio.get_running_loop()
    async with machine(valkey_url, prefix, "a") as here, machine(valkey_url, prefix, "b") as there:
        made = await here.tunnels.dig(there.owner, KEY, b"some\nwords\n")
        far, words = await there.arrived()
        assert words == b"some\nwords\n"
        await loop.sock_sendall(far, b"101")
        client, server = socket.socketpair()
        client.setblocking(False)
        await made.begin(server.detach(), b"early")
        assert await read(client, 3) == b"101"
        assert await read(far, 5) == b"early"
        up, down = (bytes(range(n, n + 100)) * 30_000 for n in (0, 100))
        sent = [loop.sock_sendall(client, up), loop.sock_sendall(far, down)]
        *_, got_up, got_down = await asyncio.gather(*sent, read(far, len(up)), read(client, len(down)))
        assert (got_up, got_down) == (up, down)
        client.close()
        assert await read(far, 1) == b""
        far.close()
        await until(lambda: not here.tunnels.open)
        assert not here.reactor.connections


@pytest.mark.parametrize("ends", ["client", "session"])
@async_test
async def test_one_end_takes_the_other_behind_its_last_words(valkey_url, prefix, ends):
    """Nothing that was said is lost, and nothing is left of the tunnel."""
    loop = asyncio.get_running_loop()
    async with (
        machine(valkey_url, prefix, "a") as here,
        machine(valkey_url, prefix, "b") as there,
        tunnel(here, there) as (client, far, _),
    ):
        one, other = (client, far) if ends == "client" else (far, client)
        last = b"x" * 100_000
        reading = asyncio.create_task(read(other, len(last) + 1))
        await loop.sock_sendall(one, last)
        one.close()
        assert await reading == last
        await until(lambda: not here.tunnels.open)
        assert not here.reactor.connections


@async_test
async def test_a_client_that_reads_nothing_holds_its_session_up_and_is_cut(valkey_url, prefix):
    """What waits is bounded, and so is the time; also where its session has ended, which can't be seen meanwhile."""
    async with (
        machine(valkey_url, prefix, "a", stalled_s=0.5) as here,
        machine(valkey_url, prefix, "b") as there,
        tunnel(here, there) as (_, far, made),
    ):
        sent = waits = 0
        while made in here.tunnels.open:
            try:
                sent += far.send(b"x" * 65_536)
            except BlockingIOError:
                waits = made._near._transport.get_write_buffer_size()
            except ConnectionError:
                break
            assert sent < 50_000_000
            await asyncio.sleep(0)
        assert 0 < waits < 1_000_000
        await until(lambda: not here.tunnels.open)


@async_test
async def test_a_client_that_reads_slowly_is_not_cut(valkey_url, prefix):
    """It stalls longer in all than is allowed at a time, but goes on again and again; then it stalls for too long."""
    loop, clock = asyncio.get_running_loop(), FakeClock()
    async with (
        machine(valkey_url, prefix, "a", stalled_s=10.0, clock=clock) as here,
        machine(valkey_url, prefix, "b") as there,
        tunnel(here, there) as (client, far, made),
    ):
        end = made._near
        sending = asyncio.create_task(loop.sock_sendall(far, b"x" * 50_000_000))
        for _ in range(5):
            await until(lambda: end.stalled_at < inf)
            since = end.stalled_at
            clock.advance(9)
            await until(lambda: here.reactor._wheel._now_tick >= int((clock() - 1000) / here.reactor._wheel.tick_s))
            assert made in here.tunnels.open
            while end.stalled_at == since:
                await read(client, 65_536)
        await until(lambda: end.stalled_at < inf)
        clock.advance(11)
        await until(lambda: made not in here.tunnels.open)
        with pytest.raises(ConnectionError):
            await sending


@async_test
async def test_a_tunnel_is_drained_like_a_connection(valkey_url, prefix):
    """It stands on the plane; both ends are closed."""
    async with (
        machine(valkey_url, prefix, "a") as here,
        machine(valkey_url, prefix, "b") as there,
        tunnel(here, there) as (client, far, made),
    ):
        assert list(here.reactor.connections.values()) == [made]
        made.close(CLOSE_SHUTDOWN)
        assert not here.reactor.connections
        assert await read(client, 1) == b""
        assert await read(far, 1) == b""


@async_test
async def test_what_ends_before_the_client_is_there_ends_for_the_client(valkey_url, prefix):
    """The worker drains in between, or the other machine closes at once."""
    async with machine(valkey_url, prefix, "a") as here, machine(valkey_url, prefix, "b") as there:
        for by_us in (True, False):
            made = await here.tunnels.dig(there.owner, KEY, b"")
            far, _ = await there.arrived()
            made.abort() if by_us else far.close()
            client, server = socket.socketpair()
            client.setblocking(False)
            await made.begin(server.detach(), b"")
            assert await read(client, 1) == b""
            client.close()
            far.close()
            await until(lambda: not here.tunnels.open)


@async_test
async def test_there_may_be_no_way(valkey_url, prefix):
    """No such machine; one that does not serve; too many at a time; a machine that takes no connection in time."""
    async with (
        machine(valkey_url, prefix, "a", most=1) as here,
        machine(valkey_url, prefix, "b") as there,
    ):
        with pytest.raises(OwnerGone):
            await here.tunnels.dig(Owner("c" * 16, 0, 1), KEY, b"")
        async with tunnel(here, there):
            with pytest.raises(OwnerSlow, match="allowed: 1"):
                await here.tunnels.dig(there.owner, KEY, b"")
        await until(lambda: not here.tunnels.open)
        there.server.stop()
        with pytest.raises(OwnerGone):
            await here.tunnels.dig(there.owner, KEY, b"")
        with socket.create_server(("127.0.0.1", 0), backlog=0) as full:
            address = full.getsockname()
            waiting = [socket.socket() for _ in range(4)]
            for one in waiting:
                one.setblocking(False)
                one.connect_ex(address)
            here.neighbours._known[there.owner.hub] = (f"http://127.0.0.1:{address[1]}", float("inf"))
            here.tunnels._timeout_s = 0.2
            with pytest.raises(OwnerSlow):
                await here.tunnels.dig(there.owner, KEY, b"")
            for one in waiting:
                one.close()
        assert not here.tunnels.open and not here.reactor.connections


def knock(there: Machine, owner: object = None, **headers: str | None) -> bytes:
    headers = {"X_Relay_Secret": SECRET, "X_Relay_Words": base64.b64encode(b"words").decode(), **headers}
    return http("GET", f"/tunnel/{owner or there.owner}", **headers)


@async_test
async def test_refusals_have_their_status(valkey_url, prefix):
    """401 without the secret, before anything else; 400 for what is malformed, 404 for a worker that is gone."""
    async with machine(valkey_url, prefix, "b") as there:
        for secret in (None, "", SECRET[:-1], SECRET + "x"):
            assert (await request(there.url, knock(there, X_Relay_Secret=secret)))[0] == 401
        assert (await request(there.url, knock(there, "x.y.z")))[0] == 400
        assert (await request(there.url, knock(there, X_Relay_Words="%%")))[0] == 400
        assert (await request(there.url, knock(there, Owner("c" * 16, 0, 1))))[0] == 404
        assert (await request(there.url, knock(there, there.owner._replace(generation=2))))[0] == 404
        assert not there.taken
