"""What a running hub's processes consist of, as the kernel shows it: their threads and their descriptors."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import cent
import pytest

from tests.hubs import HubProcess
from tests.nodes import until
from tests.plane import client
from tests.support import async_test


@contextlib.asynccontextmanager
async def by_name(unix_url: str) -> AsyncIterator[str]:
    """The same Redis by a name that has to be looked up: a TCP door to the Unix socket."""

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):  # either end may go first
            while data := await reader.read(65_536):
                writer.write(data)
        writer.close()

    async def door(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        redis = await asyncio.open_unix_connection(unix_url.removeprefix("unix://"))
        await asyncio.gather(pump(reader, redis[1]), pump(redis[0], writer))

    async with await asyncio.start_server(door, "127.0.0.1", 0) as server:
        yield f"redis://localhost:{server.sockets[0].getsockname()[1]}"


@contextlib.asynccontextmanager
async def running(redis_url: str, prefix: str) -> AsyncIterator[HubProcess]:
    """A hub of one worker that has done a bit of everything; clients of each kind are still there."""
    settings = {"workers": 1, "redis": {"url": redis_url, "prefix": prefix}, "ticker": {"source": "simulate"}}
    with contextlib.ExitStack() as stack:
        hub = await asyncio.to_thread(stack.enter_context, HubProcess(settings))
        try:
            async with (
                client(hub.ws_url) as fast,
                client(hub.ws_url.replace("127.0.0.1", "localhost"), compression=None) as other,
                cent.AsyncClient(hub.api_url, hub.key) as api,
            ):
                for one in (fast, other):
                    await one.subscribe("chat:a")
                    await one.subscribe("ticker:ACME")
                await fast.command(publish={"channel": "chat:a", "data": 1})
                await api.publish(cent.PublishRequest(channel="chat:a", data=2))
                await api.info(cent.InfoRequest())
                for one in (fast, other):
                    await one.push()
                yield hub
        finally:
            await asyncio.to_thread(stack.close)


def threads(pid: int) -> set[str]:
    return {path.name for path in Path(f"/proc/{pid}/task").iterdir()}


def descriptors(pid: int) -> list[tuple[str, int]]:
    """All that a process has open beyond the standard three: what it is, as 'socket:[4711]', and its flags."""
    found = []
    for path in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            info = Path(f"/proc/{pid}/fdinfo/{path.name}").read_text()
            if int(path.name) > 2:
                flags = re.search(r"^flags:\s+([0-7]+)$", info, re.MULTILINE)[1]
                found.append((os.readlink(path), int(flags, 8)))
    return found


@async_test
async def test_a_worker_is_one_thread(valkey_url, prefix):
    """After handshakes, subscriptions, publishes, the API and the ticker, there is no other in it, of whatever kind."""
    async with running(valkey_url, prefix) as hub:
        [pid] = hub.worker_pids()
        assert threads(pid) == {str(pid)} and threads(hub.pid) == {str(hub.pid)}


@pytest.mark.expects_log
@async_test
async def test_looking_up_redis_by_name_starts_no_python_thread(valkey_url, prefix):
    """getaddrinfo waits, so libuv does it on its own four threads, in C: they never ask for the interpreter, and so
    never hold up a sweep. The dump of SIGABRT has all threads that could.
    """
    async with by_name(valkey_url) as url, running(url, prefix) as hub:
        [pid] = hub.worker_pids()
        assert len(threads(pid)) <= 1 + 4
        os.kill(pid, signal.SIGABRT)
        await until(lambda: "Aborted" in hub.stderr and pid not in hub.worker_pids())
        assert len(re.findall(r"^(?:Current thread|Thread) 0x", hub.stderr, re.MULTILINE)) == 1


@async_test
async def test_no_descriptor_outlives_an_exec_and_the_supervisor_holds_no_connection(valkey_url, prefix):
    """Each but the standard three closes on exec: whatever is started later holds no client's connection open. And
    workers are forked before anybody is accepted.
    """
    async with running(valkey_url, prefix) as hub:
        [worker] = hub.worker_pids()
        rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
        established = {f"socket:[{row[9]}]" for row in rows if row[3] == "01"}
        held = {}
        for pid in (worker, hub.pid):
            found = descriptors(pid)
            assert found and not [name for name, flags in found if not flags & os.O_CLOEXEC]
            held[pid] = {name for name, _ in found}
        assert held[worker] & established and not held[hub.pid] & established
