"""Clients that no WebSocket reaches: the stock JavaScript SDK over each of its own fallbacks, and bare HTTP.

Four workers, and a TCP connection for each request.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
from collections.abc import AsyncIterator, Iterator
from urllib.parse import urlsplit

import pytest

from tests.e2e import nodejs
from tests.emulated import StreamClient, stream_client
from tests.hubs import HubProcess
from tests.nodes import until
from tests.stores import free_port
from tests.support import async_test

WORKERS = 4
LOG = {"mode": "stream", "subscribe": "anyone", "publish": "anyone", "history": "anyone"}
SETTINGS = {"workers": WORKERS, "namespaces": {"log": LOG}}
FALLBACKS = ("http_stream", "sse")
SDK = (nodejs.NODE, nodejs.PACKAGES)


@pytest.fixture(scope="module")
def hub() -> Iterator[HubProcess]:
    """One hub for all tests that leave it as it was."""
    with HubProcess(SETTINGS) as hub:
        yield hub


def http_url(hub: HubProcess) -> str:
    return f"http://127.0.0.1:{urlsplit(hub.ws_url).port}"


def marked(*marks: pytest.MarkDecorator):
    """Several marks as one decorator."""

    def decorate(test):
        for mark in marks:
            test = mark(test)
        return test

    return decorate


# The SDK.


@marked(*SDK)
@pytest.mark.parametrize("transport", FALLBACKS)
def test_sdk_does_over_http_what_it_does_over_websocket(hub, transport):
    """Identity, commands, errors and 50 publications in order; each command by a request to any of four workers."""
    nodejs.run("fallbacks.mjs", "works", http_url(hub), transport, hub.token("ann"))


@marked(*SDK)
@pytest.mark.parametrize("transport", FALLBACKS)
def test_sdk_with_a_bad_token_stays_away(hub, transport):
    """3500 comes in the stream, upon which the SDK neither comes back nor tries the next transport."""
    nodejs.run("fallbacks.mjs", "isTurnedAway", http_url(hub), transport)


@contextlib.asynccontextmanager
async def no_upgrades(port: int) -> AsyncIterator[str]:
    """The address of a proxy before `port` that knows HTTP only and answers an upgrade with 400, as old ones do."""

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65_536):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, OSError):
            head = await reader.readuntil(b"\r\n\r\n")
            if b"\r\nupgrade:" in head.lower():
                writer.write(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            else:
                there, back = await asyncio.open_connection("127.0.0.1", port)
                back.write(head)
                await asyncio.gather(pump(reader, back), pump(there, writer))
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


@marked(*SDK)
@pytest.mark.parametrize(
    ("transports", "expected"), [("websocket,http_stream,sse", "http_stream"), ("websocket,sse", "sse")]
)
@async_test
async def test_sdk_falls_back_by_itself_where_upgrades_are_blocked(hub, transports, expected):
    """Without a line of the application: the next transport of its list."""
    async with no_upgrades(urlsplit(hub.ws_url).port) as url:
        await asyncio.to_thread(nodejs.run, "fallbacks.mjs", "fallsBack", url, transports, expected)


@marked(*SDK)
def test_sdk_stays_on_websocket_where_it_can(hub):
    """The fallbacks are what they are called."""
    nodejs.run("fallbacks.mjs", "fallsBack", http_url(hub), "websocket,http_stream,sse", "websocket")


@marked(*SDK)
@pytest.mark.parametrize("transport", FALLBACKS)
def test_sdk_misses_nothing_when_its_worker_is_killed(transport):
    """kill -9 of the worker where the session lives: the SDK recovers on another, and the dead session is 404."""
    with HubProcess(SETTINGS) as hub:
        workers = ",".join(map(str, hub.worker_pids()))
        arguments = (http_url(hub), transport, hub.api_url, hub.key, workers)
        nodejs.run("fallbacks.mjs", "missesNothing", *arguments)


@marked(*SDK, nodejs.CHROMIUM)
@pytest.mark.parametrize("transport", FALLBACKS)
def test_a_page_of_an_allowed_origin_gets_in_from_chromium(transport):
    """The browser's own EventSource, fetch and preflights; from another origin, the same page does not get in."""
    origin = f"http://127.0.0.1:{free_port()}"
    with HubProcess({**SETTINGS, "allowed_origins": [origin]}) as hub:
        nodejs.run("fallbacks_page.mjs", origin, http_url(hub), transport)
        with pytest.raises(AssertionError, match="transport closed"):
            nodejs.run("fallbacks_page.mjs", f"http://127.0.0.1:{free_port()}", http_url(hub), transport)


# Bare HTTP.


@async_test
async def test_every_command_may_land_in_any_worker(hub):
    """A hundred commands of one session, each over a connection of its own, and each with its one answer."""
    async with stream_client(http_url(hub)) as one, stream_client(http_url(hub), "events") as two:
        for client in (one, two):
            await client.subscribe("chat:room")
        for number in range(50):
            assert "publish" in await one.command(publish={"channel": "chat:room", "data": number})
            for client in (one, two):
                assert (await client.push())["pub"]["data"] == number


@async_test
async def test_commands_sent_at_once_are_all_answered(hub):
    """Many at a time, through many workers, into one session."""
    async with stream_client(http_url(hub)) as one:
        sent = [json.dumps({"id": number, "rpc": {"method": "hub.time"}}) for number in range(100, 200)]
        assert set(await asyncio.gather(*map(one.send, sent))) == {204}
        answers = [await one.message() for _ in sent]
        assert sorted(answer["id"] for answer in answers) == list(range(100, 200))


def owner_pid(hub: HubProcess, one: StreamClient) -> int:
    """Of the worker in which a session lives; only before any of them was replaced."""
    return hub.worker_pids()[int(one.node.split(".")[1])]


@async_test
async def test_a_killed_worker_takes_its_sessions_with_it_and_no_others():
    """Its stream ends, its session is 404 at once and after the slot's next worker is there; other sessions go on."""
    with HubProcess(SETTINGS) as hub:
        async with contextlib.AsyncExitStack() as stack:
            made = [await stack.enter_async_context(stream_client(http_url(hub))) for _ in range(12)]
            lost, victim = made[0], owner_pid(hub, made[0])
            others = [one for one in made if one.node != lost.node]
            os.kill(victim, signal.SIGKILL)
            assert await asyncio.wait_for(lost.reader.read(), 10) == b""
            assert {await lost.send("{}") for _ in range(8)} == {404}
            await until(lambda: len(set(hub.worker_pids()) - {victim}) == WORKERS)
            await until(lambda: hub.stderr.count("started, pid") > WORKERS)
            assert {await lost.send("{}") for _ in range(16)} == {404}
            for one in others:
                assert await one.command(rpc={"method": "hub.time"})


@async_test
async def test_sigterm_tells_every_stream_and_ends_with_0():
    """3001 as the last message of each, over both wires, and nothing is left behind."""
    with HubProcess({**SETTINGS, "drain_window_s": 0.5}) as hub:
        async with contextlib.AsyncExitStack() as stack:
            wires = ("lines", "events") * 4
            made = [await stack.enter_async_context(stream_client(http_url(hub), wire)) for wire in wires]
            hub.process.send_signal(signal.SIGTERM)
            endings = await asyncio.gather(*(one.ending() for one in made))
            assert endings == [{"code": 3001, "reason": "shutdown"}] * len(made)
        assert await asyncio.to_thread(hub.process.wait, 10) == 0


# Between machines.


@contextlib.contextmanager
def a_machine(valkey_url: str, prefix: str, **more: object) -> Iterator[HubProcess]:
    """A hub of two workers that shares its Redis with others, and says where they reach it."""
    internal = f"127.0.0.1:{free_port()}"
    relay = {"url": f"http://{internal}", "secret": "a secret of both machines, of 32 bytes or more"}
    redis = {"url": valkey_url, "prefix": prefix}
    with HubProcess({**SETTINGS, "workers": 2, "internal": [internal], "redis": redis, "relay": relay, **more}) as hub:
        yield hub


@async_test
async def test_commands_may_land_on_another_machine(valkey_url, prefix):
    """A balancer that knows no sessions spreads them over two hubs; when one is stopped, its sessions are 404."""
    with a_machine(valkey_url, prefix) as here, a_machine(valkey_url, prefix) as there:
        async with stream_client(http_url(here)) as one, stream_client(http_url(there), "events") as two:
            one.url, two.url = two.url, one.url
            for client in (one, two):
                await client.subscribe("chat:room")
            for number in range(10):
                assert "publish" in await one.command(publish={"channel": "chat:room", "data": number})
                for client in (one, two):
                    assert (await client.push())["pub"]["data"] == number
            there.process.send_signal(signal.SIGTERM)
            assert (await two.ending())["code"] == 3001
            assert await asyncio.to_thread(there.process.wait, 10) == 0
            assert await two.send("{}") == 404
