"""Leaving: what becomes of clients, requests and newcomers when a worker stops or retires, in a real worker process."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import socket
from collections.abc import Iterator
from typing import Any

import orjson
import pytest
from redis import Redis
from websockets.exceptions import ConnectionClosed, InvalidStatus

from hub.leaving import Signs
from hub.seat import RETIRE
from tests.hubs import KEY
from tests.nodes import own_valkey, until
from tests.plane import client
from tests.support import async_test
from tests.test_worker import SOON_S, WorkerProgram, get, worker


def said(signs: Signs) -> str:
    """Which of the words have come: s(topping), h(urried), e(nding), l(eaving)."""
    words = {"s": signs.stopping, "h": signs.hurried, "e": signs.ending, "l": signs.leaving}
    return "".join(word for word, event in words.items() if event.is_set())


@pytest.mark.parametrize(
    ("signals", "expected"),
    [
        ([], ""),
        ([RETIRE], "e"),
        ([RETIRE, RETIRE], "el"),
        ([signal.SIGTERM], "sel"),
        ([RETIRE, signal.SIGTERM], "sel"),
        ([signal.SIGTERM, signal.SIGTERM], "shel"),
        ([RETIRE, RETIRE, signal.SIGTERM], "sel"),
        ([signal.SIGTERM, RETIRE], "sel"),
    ],
)
@async_test
async def test_what_the_signals_of_the_supervisor_mean(signals: list[int], expected: str) -> None:
    """A stop is no retirement that waits for siblings; only a second one hurries, whatever else has come."""
    signs, loop = Signs(), asyncio.get_running_loop()
    signs.follow()
    try:
        for number in signals:
            before = asyncio.Event()
            # Handlers are calls of the loop: ours, which came later, runs behind them.
            loop.add_signal_handler(signal.SIGUSR1, before.set)
            signal.raise_signal(number)
            signal.raise_signal(signal.SIGUSR1)
            await before.wait()
        assert said(signs) == expected
    finally:
        for number in (signal.SIGTERM, RETIRE, signal.SIGUSR1):
            loop.remove_signal_handler(number)


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
