"""Worker: one real worker process in its seat, without a supervisor above it, on a Valkey that the test stops."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
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
from tornado.httpclient import AsyncHTTPClient, HTTPResponse

from hub.worker import SUBSCRIBER_WAIT_S
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


@async_test
async def test_a_worker_waits_for_its_subscriber_connection(valkey_url):
    """However late that is where Redis answers: it beats meanwhile, and the first who comes may subscribe."""
    asked, may_go_on = asyncio.Event(), asyncio.Event()

    async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65_536):
                if b"SUBSCRIBE" in data:
                    asked.set()
                    await may_go_on.wait()
                writer.write(data)
        writer.close()

    async def between(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        redis = await asyncio.open_unix_connection(valkey_url.removeprefix("unix://"))
        await asyncio.gather(pass_on(reader, redis[1]), pass_on(redis[0], writer))

    async with await asyncio.start_server(between, "127.0.0.1", 0) as server:
        with worker(f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}") as program:
            await asyncio.wait_for(asked.wait(), SOON_S)
            beats = program.beats.count(b".")
            # Eight in a second, by the worker's own clock: four times as long as it waits where nobody answers.
            enough = beats + int(4 * SUBSCRIBER_WAIT_S * 8)
            await asyncio.to_thread(program.hear, lambda heard: heard.count(b".") >= enough)
            assert b"R" not in program.beats
            may_go_on.set()
            await asyncio.to_thread(program.wait_ready)
            async with client(program.ws_url) as one:
                await one.subscribe("chat:a")
            program.terminate()
            assert await asyncio.to_thread(program.status) == 0


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
