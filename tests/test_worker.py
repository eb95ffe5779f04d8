"""Worker: one real worker process in its seat, without a supervisor above it, on a Valkey that the test stops."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import orjson
import pytest
from redis import Redis
from tornado.httpclient import AsyncHTTPClient, HTTPResponse
from websockets.exceptions import ConnectionClosed, InvalidStatus

from hub.seat import RETIRE
from tests.hubs import KEY, clean_environment
from tests.nodes import OwnValkey, own_valkey, until
from tests.plane import client
from tests.support import async_test

PROGRAM = """
import json, logging, os, sys
from hub import worker
from hub.config import Settings
from hub.errors import BootError
from hub.heartbeat import Heartbeat
from hub.listeners import Listeners
from hub.relay import Home
from hub.seat import Seat

settings = Settings(**json.loads(sys.argv[1]))
listeners = Listeners.open(settings, 1)
ports = [address.port for address in (*listeners.public, *listeners.internal)]
print(json.dumps(ports), flush=True)
heartbeat = Heartbeat(sys.stdout.fileno())
seat = Seat(
    slot=listeners.slots[0], workers=1, generation=1, respawned=sys.argv[2] == "respawned",
    redis_url=settings.redis.url, heartbeat=heartbeat, home=Home.make(os.environ),
)
try:
    sys.exit(worker.main(settings, seat))
except BootError as error:
    heartbeat.boot_failed(str(error))
    sys.exit(3)
finally:
    seat.home.remove()
"""
BASE: dict[str, Any] = {
    "listen": ["127.0.0.1:0"],
    "internal": ["127.0.0.1:0"],
    "heartbeat_timeout_s": 1,  # eight beats in each
    "drain_window_s": 1.5,
    "api": {"key": KEY},
    "namespaces": {"chat": {"subscribe": "anyone", "publish": "anyone"}},
}
SOON_S = 8.0


class WorkerProgram:
    """The program; its standard output is the ports, then the heartbeat's bytes."""

    def __init__(self, settings: dict[str, Any], seat: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, json.dumps(settings), seat],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=clean_environment(),
        )
        self._heard = b""
        self.public, *rest = json.loads(self.hear(lambda heard: b"\n" in heard).partition(b"\n")[0])
        self.internal = rest[0] if rest else self.public

    @property
    def ws_url(self) -> str:
        return f"ws://127.0.0.1:{self.public}/connection/websocket"

    @property
    def beats(self) -> bytes:
        """What the supervisor would have heard so far."""
        return self._heard.partition(b"\n")[2]

    def hear(self, enough: Any) -> bytes:
        """Read standard output until `enough(all of it)`, or to its end."""
        deadline = time.monotonic() + SOON_S
        fd = self.process.stdout.fileno()
        while not enough(self._heard):
            assert select.select([fd], [], [], max(0.0, deadline - time.monotonic()))[0], self._heard
            if not (data := os.read(fd, 4096)):
                break
            self._heard += data
        return self._heard

    def wait_ready(self) -> None:
        self.hear(lambda heard: b"R" in heard)
        assert b"R" in self.beats, self.process.stderr.read()

    def terminate(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    def status(self) -> int:
        """The exit status, once it has ended."""
        return self.process.wait(SOON_S)

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()


@contextlib.contextmanager
def worker(url: str, seat: str = "first", **settings: Any) -> Iterator[WorkerProgram]:
    redis = {"url": url, "start_timeout_s": 5.0, "command_timeout_s": 2.0, **settings.pop("redis", {})}
    program = WorkerProgram({**BASE, "redis": redis, **settings}, seat)
    try:
        yield program
    finally:
        program.end()


@pytest.fixture
def no_valkey() -> Iterator[OwnValkey]:
    """One that does not run yet."""
    with own_valkey() as valkey:
        valkey.stop()
        yield valkey


async def get(port: int, path: str, **options: Any) -> HTTPResponse:
    return await AsyncHTTPClient().fetch(f"http://127.0.0.1:{port}{path}", raise_error=False, **options)


async def call_api(port: int, method: str, body: object) -> HTTPResponse:
    headers = {"X-API-Key": KEY}
    return await get(port, f"/api/{method}", method="POST", body=orjson.dumps(body), headers=headers)


# The boot


@async_test
async def test_a_worker_is_ready_when_it_serves_and_not_before(no_valkey):
    """Without Redis it beats, and accepts nobody; with it who waited is served, and a first subscription succeeds."""
    with worker(no_valkey.url) as program, socket.create_connection(("127.0.0.1", program.public)) as early:
        early.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        await asyncio.to_thread(program.hear, lambda heard: heard.count(b".") >= 4)
        assert b"R" not in program.beats
        assert not select.select([early], [], [], 0)[0]
        no_valkey.start()
        await asyncio.to_thread(program.wait_ready)
        async with client(program.ws_url) as one:
            await one.subscribe("chat:a")
        early.settimeout(SOON_S)
        assert (await asyncio.to_thread(early.recv, 100)).startswith(b"HTTP/1.1 200 OK")


def test_a_worker_that_finds_no_redis_says_so_in_one_line(no_valkey):
    """Address, cause and how long it has tried reach the supervisor; exit status 3, and it was never ready."""
    began_s = time.monotonic()
    with worker(no_valkey.url, redis={"start_timeout_s": 0.3}) as program:
        assert program.status() == 3
        assert time.monotonic() - began_s >= 0.3
        program.hear(lambda heard: False)
        beats, _, text = program.beats.partition(b"E")
        assert set(beats) == {ord(".")}
        assert text.decode().startswith(f"Redis at unix:{no_valkey.url.removeprefix('unix://')}: ")
        assert text.endswith(b"; tried for 0.3 s (redis.start_timeout_s)")


@async_test
async def test_a_respawned_worker_serves_without_redis(no_valkey):
    """It is ready, clients connect and are told to try again; once Redis is there they subscribe and publish."""
    with worker(no_valkey.url, "respawned") as program:
        await asyncio.to_thread(program.wait_ready)
        async with client(program.ws_url) as one:
            for command in ({"subscribe": {"channel": "chat:a"}}, {"publish": {"channel": "chat:a", "data": 1}}):
                assert (await one.command(**command))["error"]["temporary"] is True
            assert "rpc" in await one.command(rpc={"method": "hub.time"})
            no_valkey.start()

            async def subscribed() -> bool:
                return "subscribe" in await one.command(subscribe={"channel": "chat:a"})

            await until(subscribed)
            await one.command(publish={"channel": "chat:a", "data": "at last"})
            assert (await one.push())["pub"]["data"] == "at last"


# What is served where


@async_test
async def test_each_listener_serves_its_own_pages(valkey_url, prefix):
    """Clients' addresses know no API, internal ones no clients."""
    with worker(valkey_url, redis={"prefix": prefix}) as program:
        await asyncio.to_thread(program.wait_ready)
        assert (await get(program.public, "/")).code == 200
        assert (await call_api(program.public, "info", {})).code == 404
        assert (await call_api(program.internal, "info", {})).code == 200
        assert (await get(program.internal, "/connection/websocket")).code == 404


@async_test
async def test_an_address_of_both_kinds_serves_everything(valkey_url, prefix):
    """Page, clients and server API on one port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    with worker(valkey_url, redis={"prefix": prefix}, listen=[address], internal=[address]) as program:
        await asyncio.to_thread(program.wait_ready)
        assert program.internal == program.public
        assert (await get(program.public, "/")).code == 200
        async with client(program.ws_url) as one:
            await one.subscribe("chat:a")
            response = await call_api(program.public, "publish", {"channel": "chat:a", "data": "by the API"})
            assert (response.code, response.body) == (200, b'{"result":{}}')
            assert (await one.push())["pub"]["data"] == "by the API"


# The end


@contextlib.contextmanager
def hung(url: str) -> Iterator[None]:
    """Redis answers nobody meanwhile."""
    with Redis.from_url(url) as redis:
        pid = redis.info()["process_id"]
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


async def until_refused(program: WorkerProgram) -> None:
    """Nobody new is let in: 503 for who has come before the listeners were closed, then no connection at all."""

    async def refused() -> bool:
        try:
            async with client(program.ws_url):
                pass  # the stop has not come through yet
        except ConnectionRefusedError:
            return True
        except InvalidStatus as error:
            assert error.response.status_code == 503
        return False

    await until(refused)


@async_test
async def test_what_was_published_before_the_stop_is_answered():
    """A publish that waits for Redis when the stop comes: its reply, then 3001, then exit status 0."""
    with own_valkey() as valkey, worker(valkey.url) as program:
        await asyncio.to_thread(program.wait_ready)
        async with client(program.ws_url) as one:
            await one.subscribe("chat:a")
            with hung(valkey.url):
                await one.socket.send('{"id":99,"publish":{"channel":"chat:a","data":"in flight"}}')
                # Answered behind it, so the publish is on its way.
                await one.command(rpc={"method": "hub.time"})
                program.terminate()
                await until_refused(program)
            lines: list[dict[str, Any]] = []
            with pytest.raises(ConnectionClosed):
                async for message in one.socket:
                    lines += map(orjson.loads, message.split("\n"))
            assert {"id": 99, "publish": {}} in lines
            assert "in flight" in [line["push"]["pub"]["data"] for line in lines if "push" in line]
            assert (one.socket.close_code, one.socket.close_reason) == (3001, "shutdown")
        assert await asyncio.to_thread(program.status) == 0


def api_request(body: bytes) -> bytes:
    head = f"POST /api/publish HTTP/1.1\r\nHost: a\r\nX-API-Key: {KEY}\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


async def answer(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    """The status line and body of the next response."""
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), SOON_S)
    (length,) = re.findall(rb"(?i)content-length: (\d+)", head)
    return head.partition(b"\r\n")[0], await reader.readexactly(int(length))


@async_test
async def test_an_api_request_is_answered_though_nobody_else_is_there():
    """A request that waits for Redis when the stop comes, and no client to drain: its answer, then the end."""
    with own_valkey() as valkey, worker(valkey.url) as program:
        await asyncio.to_thread(program.wait_ready)
        reader, writer = await asyncio.open_connection("127.0.0.1", program.internal)
        writer.write(api_request(b"{}"))
        assert (await answer(reader))[1].startswith(b'{"error":')
        with hung(valkey.url):
            # On a connection that the worker has already, so that a later request on a new one is answered behind it.
            writer.write(api_request(b'{"channel":"chat:a","data":1}'))
            assert (await get(program.internal, "/")).code == 404
            program.terminate()
            await until_refused(program)
        assert await answer(reader) == (b"HTTP/1.1 200 OK", b'{"result":{}}')
        writer.close()
        assert await asyncio.to_thread(program.status) == 0


@async_test
async def test_a_worker_that_retires_accepts_no_more_and_waits_for_its_siblings(valkey_url, prefix):
    """The first RETIRE: it says that it rests, and who is in is served. The second: they go, and it ends with 0.

    Here nobody else holds its listeners, so who comes is refused; in a deploy a new generation takes them.
    """
    with worker(valkey_url, redis={"prefix": prefix}, drain_window_s=0.5) as program:
        await asyncio.to_thread(program.wait_ready)
        with socket.create_connection(("127.0.0.1", program.public)) as silent:
            # Behind it in the accept queue, so both have been accepted.
            async with client(program.ws_url) as one:
                program.process.send_signal(RETIRE)
                await asyncio.to_thread(program.hear, lambda heard: b"S" in heard.partition(b"R")[2])
                await until_refused(program)
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(one.socket.recv(), 0.8)  # longer than the window: nobody is sent away
                assert "rpc" in await one.command(rpc={"method": "hub.time"})
                # Accepted before it retired, asked after that: a client like the others.
                assert await upgrade(silent)
                program.process.send_signal(RETIRE)
                with pytest.raises(ConnectionClosed) as closed:
                    await asyncio.wait_for(one.socket.recv(), SOON_S)
                assert closed.value.rcvd.code == 3001
        assert await asyncio.to_thread(program.status) == 0
        assert program.process.stderr.read() == b""


async def upgrade(sock: socket.socket) -> bool:
    """Whether a WebSocket handshake on this connection is answered with 101."""
    sock.settimeout(SOON_S)
    head = "GET /connection/websocket HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    fields = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    await asyncio.to_thread(sock.sendall, (head + fields).encode())
    return (await asyncio.to_thread(sock.recv, 4096)).startswith(b"HTTP/1.1 101 ")


@async_test
async def test_a_worker_without_clients_does_not_wait_for_its_window(valkey_url, prefix):
    """Connections without a request in progress don't hold it up either."""
    with worker(valkey_url, redis={"prefix": prefix}, drain_window_s=3600) as program:
        await asyncio.to_thread(program.wait_ready)
        with socket.create_connection(("127.0.0.1", program.public)) as idle:
            idle.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            assert await asyncio.to_thread(idle.recv, 100)
            program.terminate()
            assert await asyncio.to_thread(program.status) == 0
            assert program.process.stderr.read() == b""
