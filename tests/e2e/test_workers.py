"""Four workers of one hub, and clients that are not ours in each of them: who hears what, and what a worker's death or
a stop signal does to whom.

Which worker serves a connection is read from the kernel: its sockets (/proc/net/tcp) and who holds them (/proc/PID/fd).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import time
from collections.abc import AsyncIterator, Iterator
from datetime import datetime
from pathlib import Path
from urllib.parse import urlsplit

import cent
import centrifuge
import pytest
from websockets.exceptions import ConnectionClosed, InvalidHandshake

from tests.hubs import HubProcess, run_hub
from tests.nodes import until
from tests.plane import Client, client
from tests.support import async_test

WORKERS = 4
NAMESPACES = {"board": {"mode": "latest", "subscribe": "anyone", "publish": "anyone"}}
CHANNELS = ("chat:lobby", "board:ACME")
MOST_CLIENTS = 200
"""The kernel chooses the worker of each connection by chance: one in 10^24 times, so many leave one of four out."""
SLOT_BACK_S = 1.0
NEWCOMER_SERVED_S = 20.0
"""With everything that a test adds: four processes and the test itself on the cores of a small machine."""


@pytest.fixture(scope="module")
def hub() -> Iterator[HubProcess]:
    """One hub for all tests here that leave four workers behind."""
    with HubProcess({"workers": WORKERS, "namespaces": NAMESPACES}) as hub:
        yield hub


def worker_of(hub: HubProcess, one: Client) -> int:
    """The pid of the worker that serves a connection."""
    here, there = urlsplit(hub.ws_url).port, one.socket.local_address[1]
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    ends = (f":{here:04X}", f":{there:04X}")
    found = {row[9] for row in rows if row[1].endswith(ends[0]) and row[2].endswith(ends[1])}
    (inode,) = found - {"0"}  # nobody's: an earlier connection with the same ports, in TIME_WAIT
    return next(pid for pid in hub.worker_pids() if f"socket:[{inode}]" in descriptors(pid))


def descriptors(pid: int) -> set[str]:
    """What a process has open: 'socket:[4711]', 'pipe:[12]', …"""
    names = set()
    for path in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            names.add(os.readlink(path))
    return names


@contextlib.asynccontextmanager
async def a_client_in_each(hub: HubProcess) -> AsyncIterator[dict[int, Client]]:
    """One connected client for each worker, by its pid."""
    pids = set(hub.worker_pids())
    assert len(pids) == hub.settings["workers"]
    async with contextlib.AsyncExitStack() as stack:
        found: dict[int, Client] = {}
        for _ in range(MOST_CLIENTS):
            one = await stack.enter_async_context(client(hub.ws_url))
            found.setdefault(worker_of(hub, one), one)
            if set(found) == pids:
                break
        assert set(found) == pids
        yield found


async def publish_by_sdk(hub: HubProcess, channel: str, data: object) -> None:
    before = asyncio.all_tasks()
    sdk = centrifuge.Client(hub.ws_url, proxy=None)
    await sdk.connect()
    try:
        await sdk.publish(channel, data)
    finally:
        await sdk.disconnect()
        # It does not wait for its socket's end.
        await until(lambda: asyncio.all_tasks() <= before)


async def publish_by_api(hub: HubProcess, channel: str, data: object) -> None:
    async with cent.AsyncClient(hub.api_url, hub.key) as api:
        await api.publish(cent.PublishRequest(channel=channel, data=data))


async def publish_by_cli(hub: HubProcess, channel: str, data: object) -> None:
    command = ("publish", channel, f'"{data}"', "--url", hub.api_url, "--key", hub.key)
    done = await asyncio.to_thread(run_hub, *command)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("publish", [publish_by_sdk, publish_by_api, publish_by_cli])
@async_test
async def test_a_publish_reaches_subscribers_in_all_workers(hub, publish):
    """From centrifuge-python, cent and `hub publish`, on a `none` and on a `latest` channel: everybody, once."""
    async with a_client_in_each(hub) as clients:
        for channel in CHANNELS:
            for one in clients.values():
                await one.subscribe(channel)
        for channel in CHANNELS:
            await publish(hub, channel, f"{publish.__name__} on {channel}")
            for one in clients.values():
                push = await one.push()
                assert (push["channel"], push["pub"]["data"]) == (channel, f"{publish.__name__} on {channel}")
        # What came twice would come before this.
        await publish_by_api(hub, CHANNELS[0], "the last")
        assert [(await one.push())["pub"]["data"] for one in clients.values()] == ["the last"] * WORKERS


# kill -9


def seconds_without(hub: HubProcess, killed: int) -> float:
    """From the supervisor's line about a worker's end to the one about the start of its slot's next worker."""
    stamp = r"^(\S+ [\d:,]+) \w+ \d+ hub\.supervisor: "
    ended = re.search(stamp + rf"worker (\d+) \(pid {killed}\) was ended by SIGKILL", hub.stderr, re.MULTILINE)
    assert ended, hub.stderr
    begun = re.compile(stamp + rf"worker {ended[2]} started", re.MULTILINE).search(hub.stderr, ended.end())
    assert begun, hub.stderr
    return (log_time(begun[1]) - log_time(ended[1])).total_seconds()


def log_time(text: str) -> datetime:
    return datetime.strptime(text, "%Y-%m-%d %H:%M:%S,%f").astimezone()


@async_test
async def test_a_killed_worker_is_missed_by_nobody_else_and_its_slot_serves_again(hub):
    """kill -9: the others' clients stay connected and receive the next message; within 1 s there is a new worker."""
    async with a_client_in_each(hub) as clients:
        for one in clients.values():
            await one.subscribe("chat:kill")
        killed, lost = clients.popitem()
        os.kill(killed, signal.SIGKILL)
        began_s = time.monotonic()
        publisher = next(iter(clients.values()))
        assert "publish" in await publisher.command(publish={"channel": "chat:kill", "data": "right after"})
        for one in clients.values():
            assert (await one.push())["pub"]["data"] == "right after"
        with pytest.raises(ConnectionClosed):
            await lost.push()
        # Its sockets are closed a moment before the process itself has ended.
        await until(lambda: len(set(hub.worker_pids()) - {killed}) == WORKERS)
        async with a_client_in_each(hub) as newcomers:
            assert time.monotonic() - began_s < NEWCOMER_SERVED_S
            await check_that_all_hear(newcomers, clients)
    assert seconds_without(hub, killed) <= SLOT_BACK_S


async def check_that_all_hear(newcomers: dict[int, Client], old: dict[int, Client]) -> None:
    """Those in the new worker and those who were there before are in one hub; the latter are still subscribed."""
    (pid,) = set(newcomers) - set(old)
    for one in newcomers.values():
        await one.subscribe("chat:kill")
    await newcomers[pid].command(publish={"channel": "chat:kill", "data": "from the new worker"})
    for one in [*newcomers.values(), *old.values()]:
        assert (await one.push())["pub"]["data"] == "from the new worker"


# SIGTERM


async def close_of(one: Client) -> tuple[int, str, float]:
    """Code, reason and time (of the monotonic clock) with which the hub ends a connection."""
    with contextlib.suppress(ConnectionClosed):
        while True:
            await one.socket.recv()
    return one.socket.close_code, one.socket.close_reason, time.monotonic()


async def until_refused(hub: HubProcess) -> None:
    """Connect until nobody accepts any more; who comes through meanwhile is told 503, or 3001 like everybody."""
    async with asyncio.timeout(5):
        while True:
            try:
                async with client(hub.ws_url):
                    pass
            except ConnectionRefusedError:
                return
            except (InvalidHandshake, ConnectionClosed, OSError):
                continue


@async_test
async def test_sigterm_sends_everybody_away_within_the_window_and_ends_with_0():
    """Each client gets 3001, not all of them at once; newcomers are refused meanwhile; nothing is left running."""
    with HubProcess({"workers": 2, "drain_window_s": 1.5}) as hub:
        async with contextlib.AsyncExitStack() as stack:
            clients = [await stack.enter_async_context(client(hub.ws_url)) for _ in range(12)]
            began_s = time.monotonic()
            hub.process.send_signal(signal.SIGTERM)
            closing = asyncio.gather(*map(close_of, clients))
            await until_refused(hub)
            assert hub.process.poll() is None
            closes = await closing
        assert {(code, reason) for code, reason, _ in closes} == {(3001, "shutdown")}
        times_s = sorted(at - began_s for _, _, at in closes)
        # The last one of each worker goes with the window's end, the first one soon after its beginning.
        assert times_s[0] < 1.0 < times_s[-1] < 1.5 + 2.0
        assert await asyncio.to_thread(hub.process.wait, 5) == 0


@async_test
async def test_a_second_sigterm_is_fast():
    """With an hour to drain: clients stay after the first one, and get 3001 at once after the second."""
    with HubProcess({"workers": 2, "drain_window_s": 3600}) as hub:
        async with contextlib.AsyncExitStack() as stack:
            clients = [await stack.enter_async_context(client(hub.ws_url)) for _ in range(6)]
            hub.process.send_signal(signal.SIGTERM)
            # Nobody accepts any more: every worker has taken the first signal, so the second is not one with it.
            await until_refused(hub)
            assert "rpc" in await clients[0].command(rpc={"method": "hub.time"})
            began_s = time.monotonic()
            hub.process.send_signal(signal.SIGTERM)
            closes = await asyncio.gather(*map(close_of, clients))
        assert {code for code, _, _ in closes} == {3001}
        assert await asyncio.to_thread(hub.process.wait, 5) == 0
        assert time.monotonic() - began_s < 3.0
