"""What several test files share: a fake clock, and a decorator that runs a coroutine test on the hub's own loop."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import signal
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable

import uvloop
from tornado.netutil import add_accept_handler

from hub import httpd


def async_test(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    """Run a coroutine test on uvloop, at most 60 s: a test that hangs fails and does not stall the suite."""

    @functools.wraps(test)
    def run(*args: object, **kwargs: object) -> None:
        async def bounded() -> None:
            async with asyncio.timeout(60):
                await test(*args, **kwargs)

        uvloop.run(bounded())

    return run


def tell_child(child: asyncio.subprocess.Process, number: signal.Signals) -> None:
    """Send a signal to a child of asyncio that may just be ending by itself.

    Not by the child's own methods: they reap one that has ended, and asyncio's thread that waits for it then warns
    that it does not know it.
    """
    if child.returncode is None:
        with contextlib.suppress(ProcessLookupError):  # it has ended
            os.kill(child.pid, number)


class FakeClock:
    """A clock that moves only when told to; call it for the time in seconds."""

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


@contextlib.asynccontextmanager
async def serving(
    server: httpd.Server, listeners: Iterable[socket.socket], head_s: float = 10.0
) -> AsyncIterator[None]:
    """Accept for `server` as acceptor does, without its deadline and its fast way."""

    def take(sock: socket.socket, address: object) -> None:
        stream = httpd.Stream(sock, max_buffer_size=server.max_buffer_size, read_chunk_size=server.read_chunk_size)
        server.take(stream, address, head_s)

    listeners = list(listeners)
    stops = [add_accept_handler(listener, take) for listener in listeners]
    try:
        yield
    finally:
        for stop in stops:
            stop()
        for listener in listeners:
            listener.close()
        await server.close_all_connections()
