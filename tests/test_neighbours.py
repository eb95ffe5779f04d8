"""Neighbours: workers of two hubs that share a Redis, each with its internal listener, on this test's own loop."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest
from redis.asyncio import Redis
from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets

from hub import httpd
from hub import neighbours as neighbours_module
from hub.errors import OwnerFailed, OwnerGone, OwnerSlow
from hub.neighbours import KNOWN_S, LEASE_S, MISSED_S, Neighbours
from hub.relay import Home, Limits, Owner, Relay
from hub.sections import RedisSettings
from hub.store import Store
from tests.emulated import http, request
from tests.nodes import until
from tests.support import FakeClock, async_test

SECRET = "a secret of all machines, of more than 32 bytes"


@dataclass
class Machine:
    """One worker of one hub."""

    relay: Relay
    neighbours: Neighbours
    server: HTTPServer
    url: str
    redis: Redis
    key: str


@contextlib.asynccontextmanager
async def machine(
    valkey_url: str, prefix: str, hub: str, secret: str = SECRET, **limits: object
) -> AsyncIterator[Machine]:
    """Reachable, and known to the others."""
    store = Store(RedisSettings(prefix=prefix), valkey_url)
    relay = Relay(Home(hub * 16, ""), 0, 1, Limits(**limits))
    (sock,) = bind_sockets(0, "127.0.0.1")
    url = f"http://127.0.0.1:{sock.getsockname()[1]}"
    neighbours = Neighbours(store, relay, url, secret, FakeClock())
    server = HTTPServer(httpd.application(neighbours.routes()))
    server.add_sockets([sock])
    redis, key = store.commands(), store.keys.neighbour(relay.owner.hub)
    neighbours.start()
    try:
        await until(lambda: redis.exists(key))
        yield Machine(relay, neighbours, server, url, redis, key)
    finally:
        await neighbours.close()
        server.stop()
        await server.close_all_connections()
        await redis.aclose()


async def upper(payload: bytes) -> bytes:
    return payload.upper()


@async_test
async def test_a_worker_of_another_machine_answers(valkey_url, prefix):
    """By the ids' own words; what is asked and answered are any bytes."""
    async with machine(valkey_url, prefix, "a") as one, machine(valkey_url, prefix, "b") as two:
        two.relay.serve("loud", upper)
        for payload in (b"", b"abc\r\n\r\n\0", b"x" * 100_000):
            assert await one.relay.ask(two.relay.owner, "loud", payload) == payload.upper()


@async_test
async def test_an_unknown_hub_and_an_unknown_worker_are_gone(valkey_url, prefix):
    """A hub that never was, or was long ago; another worker of a living one; the next hub at the same address."""
    async with machine(valkey_url, prefix, "a") as one, machine(valkey_url, prefix, "b") as two:
        await one.redis.set(two.key.replace("b" * 16, "d" * 16), two.url)
        for owner in (Owner("c" * 16, 0, 1), two.relay.owner._replace(generation=2), Owner("d" * 16, 0, 1)):
            with pytest.raises(OwnerGone):
                await one.relay.ask(owner, "loud", b"")


@async_test
async def test_a_machine_that_serves_no_more_is_gone(valkey_url, prefix):
    """Its address is still known, and nobody listens there."""
    async with machine(valkey_url, prefix, "a") as one, machine(valkey_url, prefix, "b") as two:
        two.server.stop()
        with pytest.raises(OwnerGone):
            await one.relay.ask(two.relay.owner, "loud", b"")


@async_test
async def test_an_address_is_kept_for_a_while_and_leased(valkey_url, prefix):
    """So that a storm of requests is no storm on Redis, and a dead hub's is forgotten."""
    async with machine(valkey_url, prefix, "a") as one, machine(valkey_url, prefix, "b") as two:
        two.relay.serve("loud", upper)
        assert 0 < await one.redis.ttl(two.key) <= LEASE_S
        assert await one.relay.ask(two.relay.owner, "loud", b"a") == b"A"
        await one.redis.delete(two.key)
        assert await one.relay.ask(two.relay.owner, "loud", b"b") == b"B"
        one.neighbours._clock.advance(KNOWN_S)
        with pytest.raises(OwnerGone):
            await one.relay.ask(two.relay.owner, "loud", b"c")


@async_test
async def test_ids_that_somebody_makes_up_do_not_reach_redis(valkey_url, prefix, monkeypatch):
    """A hub that was not found is not looked for again for a moment; of others, so many in a second."""
    monkeypatch.setattr(neighbours_module, "LOOKUPS_PER_S", 3)
    async with machine(valkey_url, prefix, "a") as one, machine(valkey_url, prefix, "b") as two:
        two.relay.serve("loud", upper)
        asked = []
        get = one.neighbours._redis.get

        def counted(key: str) -> object:
            asked.append(key)
            return get(key)

        monkeypatch.setattr(one.neighbours._redis, "get", counted)
        assert await one.relay.ask(two.relay.owner, "loud", b"a") == b"A"
        for _ in range(5):
            with pytest.raises(OwnerGone):
                await one.relay.ask(Owner("c" * 16, 0, 1), "loud", b"")
        assert len(asked) == 2
        with pytest.raises(OwnerGone):
            await one.relay.ask(Owner("d" * 16, 0, 1), "loud", b"")
        with pytest.raises(OwnerSlow):
            await one.relay.ask(Owner("e" * 16, 0, 1), "loud", b"")
        monkeypatch.setattr(one.neighbours, "_known", {two.relay.owner.hub: (two.url, 0.0)})
        assert await one.relay.ask(two.relay.owner, "loud", b"b") == b"B"  # by its old address
        assert len(asked) == 3
        one.neighbours._clock.advance(MISSED_S)
        with pytest.raises(OwnerGone):
            await one.relay.ask(Owner("c" * 16, 0, 1), "loud", b"")
        assert len(asked) == 4


@async_test
async def test_who_asked_and_goes_away_has_it_cancelled_there(valkey_url, prefix):
    """By its own deadline, or because its client has gone."""
    async with machine(valkey_url, prefix, "a") as one, machine(valkey_url, prefix, "b") as two:
        asked, ended = asyncio.Event(), []

        async def hold(payload: bytes) -> bytes:
            asked.set()
            try:
                return await asyncio.Future()
            finally:
                ended.append(payload)

        two.relay.serve("hold", hold)
        with pytest.raises(OwnerSlow):
            await one.relay.ask(two.relay.owner, "hold", b"slow", timeout_s=0.2)
        await until(lambda: ended == [b"slow"])
        asked.clear()
        waiting = asyncio.create_task(one.relay.ask(two.relay.owner, "hold", b"left", timeout_s=30))
        await asked.wait()
        waiting.cancel()
        await until(lambda: ended == [b"slow", b"left"])


@pytest.mark.expects_log
@async_test
async def test_what_fails_there_fails_here(valkey_url, prefix):
    """A handler that raises, none at all, and an answer that is too large."""
    async with (
        machine(valkey_url, prefix, "a", message_bytes=1000) as one,
        machine(valkey_url, prefix, "b", message_bytes=10_000) as two,
    ):

        async def broken(payload: bytes) -> bytes:
            raise ZeroDivisionError

        two.relay.serve("broken", broken)
        two.relay.serve("large", lambda payload: asyncio.sleep(0, b"x" * 1001))
        for kind in ("broken", "nothing", "large"):
            with pytest.raises(OwnerFailed):
                await one.relay.ask(two.relay.owner, kind, b"")


@pytest.mark.expects_log
@async_test
async def test_without_the_secret_nobody_is_served(valkey_url, prefix):
    """401, before the request is looked at; between hubs of different secrets too."""
    async with (
        machine(valkey_url, prefix, "a", secret="another secret, of more than 32 bytes, too") as one,
        machine(valkey_url, prefix, "b") as two,
    ):
        two.relay.serve("loud", upper)
        with pytest.raises(OwnerFailed):
            await one.relay.ask(two.relay.owner, "loud", b"a")
        target = f"/relay/{two.relay.owner}/loud"
        for secret in (None, "", SECRET[:-1], SECRET + "x", "\xe9"):
            assert (await request(two.url, http("POST", target, b"{}", X_Relay_Secret=secret)))[0] == 401


@async_test
async def test_malformed_requests_have_their_status(valkey_url, prefix):
    """400 for what is no worker or no time, 405 for GET, 404 for other addresses."""
    async with machine(valkey_url, prefix, "b") as two:
        two.relay.serve("loud", upper)
        name = str(two.relay.owner)
        cases = [
            ("POST", f"/relay/{name}/loud", "5", 200),
            ("POST", f"/relay/{name}/loud", "nan", 200),
            ("POST", f"/relay/{name}/loud", "-1", 200),
            ("POST", f"/relay/{name}/loud", "soon", 400),
            ("POST", "/relay/x.y.z/loud", "5", 400),
            ("GET", f"/relay/{name}/loud", "5", 405),
            ("POST", f"/relay/{name}/../loud", "5", 404),
        ]
        for method, target, timeout, status in cases:
            text = http(method, target, b"{}", X_Relay_Secret=SECRET, X_Relay_Timeout=timeout)
            assert (await request(two.url, text))[0] == status, (method, target, timeout)


@pytest.mark.parametrize(
    "answer", [b"", b"\r\n\r\n", b"SSH-2.0\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nx"]
)
@async_test
async def test_an_address_that_does_not_speak_http_fails_one_request(valkey_url, prefix, answer):
    """Whatever stands there now."""

    async def nonsense(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        writer.close()

    server = await asyncio.start_server(nonsense, "127.0.0.1", 0)
    async with server, machine(valkey_url, prefix, "a") as one:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        await one.redis.set(one.key.replace("a" * 16, "b" * 16), url)
        with pytest.raises((OwnerFailed, OwnerSlow)):
            await one.relay.ask(Owner("b" * 16, 0, 1), "loud", b"")
