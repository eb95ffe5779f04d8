"""Presence over the real workers of one hub: on which worker a client is makes no difference, and a killed worker's
clients are neither there nor in the way of their users' return.
"""

from __future__ import annotations

import os
import signal
import time

import pytest

from tests.e2e.test_workers import a_client_in_each, worker_of
from tests.hubs import HubProcess
from tests.nodes import until
from tests.plane import Client, client
from tests.support import async_test

WORKERS = 2
ROOM = {"subscribe": "anyone", "presence": "anyone", "join_leave": True}
GONE_S = 5.0
"""The promise for a killed worker's clients."""
CHANNELS = [f"room:{number}" for number in range(20)]


async def present(one: Client, channel: str) -> set[str]:
    """The client ids in a channel."""
    reply = await one.command(presence={"channel": channel})
    assert "error" not in reply, reply
    return set(reply["presence"]["presence"])


async def subscribe_all(one: Client) -> None:
    """Subscribe to all channels, and watch them."""
    for channel in CHANNELS:
        await one.subscribe(channel, join_leave=True)


@pytest.mark.parametrize("grace_s", [0.5, 5.0])
@async_test
async def test_a_killed_workers_clients_vanish_within_five_seconds(grace_s):
    """kill -9 of one of two: from all its channels, for clients of the other; the others stay, pushes follow."""
    settings = {"workers": WORKERS, "namespaces": {"room": ROOM}, "worker": {"presence_grace_s": grace_s}}
    # The survivor asks of all channels as often as it can: on a quick machine more than 1,000 times a second.
    with HubProcess({**settings, "limits": {"commands_per_s": 0}}) as hub:
        async with a_client_in_each(hub) as clients:
            (survivor, one), (victim, other) = clients.items()
            assert survivor != victim
            mine, theirs = one.id, other.id
            await subscribe_all(one)
            await subscribe_all(other)
            for channel in CHANNELS:

                async def both_are_there(channel: str = channel) -> bool:
                    return await present(one, channel) == {mine, theirs}

                await until(both_are_there)
            os.kill(victim, signal.SIGKILL)
            killed_at = time.monotonic()

            async def is_gone() -> bool:
                return all([await present(one, channel) == {mine} for channel in CHANNELS])

            await until(is_gone, GONE_S)
            assert time.monotonic() - killed_at < GONE_S
            stats = (await one.command(presence_stats={"channel": CHANNELS[-1]}))["presence_stats"]
            assert stats == {"num_clients": 1, "num_users": 0}
            left: set[str] = set()
            while left != set(CHANNELS):
                push = await one.push()
                if "leave" in push:
                    assert push["leave"]["info"]["client"] == theirs
                    left.add(push["channel"])
            await until(lambda: len(hub.worker_pids()) == WORKERS)


@async_test
async def test_a_user_of_a_killed_worker_who_comes_back_never_seems_away():
    """Presence soon has the new connection alone; to watchers one or the other is there, until the last leave."""
    with HubProcess({"workers": WORKERS, "namespaces": {"room": ROOM}, "worker": {"presence_grace_s": 1}}) as hub:
        async with a_client_in_each(hub) as watchers, client(hub.ws_url, hub.token("ann")) as ann:
            await ann.subscribe("room:0")
            victim = worker_of(hub, ann)
            (watcher,) = [one for pid, one in watchers.items() if pid != victim]
            await watcher.subscribe("room:0", join_leave=True)
            os.kill(victim, signal.SIGKILL)
            await ann.socket.wait_closed()
            async with client(hub.ws_url, hub.token("ann")) as again:
                await again.subscribe("room:0")

                async def only_the_new_one_is_there() -> bool:
                    return await present(watcher, "room:0") == {watcher.id, again.id}

                await until(only_the_new_one_is_there, GONE_S)
                assert [await arrival(watcher) for _ in range(3)] == [
                    ("join", watcher.id),
                    ("join", again.id),  # it came before anybody knew that the old one was lost
                    ("leave", ann.id),
                ]
            assert await arrival(watcher) == ("leave", again.id)


async def arrival(watcher: Client) -> tuple[str, str]:
    """The next arrival that a watcher is told of: kind and client id."""
    push = await watcher.push()
    [(kind, info)] = [(kind, push[kind]["info"]) for kind in ("join", "leave") if kind in push]
    return kind, info["client"]
