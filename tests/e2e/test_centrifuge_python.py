"""The stock Python SDK, PyPI `centrifuge-python`, against a real hub."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import centrifuge
import pytest

from tests.hubs import HubProcess
from tests.nodes import until
from tests.support import async_test

SOON_S = 10.0
NAMESPACES = {
    "closed": {"subscribe": "nobody"},
    "room": {"subscribe": "anyone", "presence": "subscriber", "join_leave": True},
}
GRACE_S = 0.3
CLOCK_S = 60.0
"""How far the clocks of two processes on one machine may be apart; far less than any mistake in the unit."""


@pytest.fixture(scope="module")
def hub() -> Iterator[HubProcess]:
    """One hub of two workers for all tests that leave it as it was."""
    with HubProcess({"namespaces": NAMESPACES, "worker": {"presence_grace_s": 0.5}}) as hub:
        yield hub


class Events(centrifuge.ClientEventHandler, centrifuge.SubscriptionEventHandler):
    """Everything that the SDK tells its application, each kind in its own queue."""

    def __init__(self) -> None:
        self.connected: asyncio.Queue[Any] = asyncio.Queue()
        self.connecting: asyncio.Queue[Any] = asyncio.Queue()
        self.disconnected: asyncio.Queue[Any] = asyncio.Queue()
        self.errors: asyncio.Queue[Any] = asyncio.Queue()
        self.subscribed: asyncio.Queue[Any] = asyncio.Queue()
        self.unsubscribed: asyncio.Queue[Any] = asyncio.Queue()
        self.publications: asyncio.Queue[Any] = asyncio.Queue()
        self.arrivals: asyncio.Queue[tuple[str, str]] = asyncio.Queue()

    async def on_connected(self, ctx: Any) -> None:
        self.connected.put_nowait(ctx)

    async def on_connecting(self, ctx: Any) -> None:
        self.connecting.put_nowait(ctx)

    async def on_disconnected(self, ctx: Any) -> None:
        self.disconnected.put_nowait(ctx)

    async def on_error(self, ctx: Any) -> None:
        self.errors.put_nowait(ctx)

    async def on_subscribed(self, ctx: Any) -> None:
        self.subscribed.put_nowait(ctx)

    async def on_unsubscribed(self, ctx: Any) -> None:
        self.unsubscribed.put_nowait(ctx)

    async def on_join(self, ctx: Any) -> None:
        self.arrivals.put_nowait(("join", ctx.info.user))

    async def on_leave(self, ctx: Any) -> None:
        self.arrivals.put_nowait(("leave", ctx.info.user))

    async def on_publication(self, ctx: Any) -> None:
        self.publications.put_nowait(ctx)


async def soon(queue: asyncio.Queue[Any]) -> Any:
    """The next event of one kind."""
    return await asyncio.wait_for(queue.get(), SOON_S)


@contextlib.asynccontextmanager
async def sdk(hub: HubProcess, **options: Any) -> AsyncIterator[tuple[centrifuge.Client, Events]]:
    """An SDK client that has begun to connect."""
    before = asyncio.all_tasks()
    events = Events()
    client = centrifuge.Client(hub.ws_url, events=events, proxy=None, **options)
    await client.connect()
    try:
        yield client, events
    finally:
        await client.disconnect()
        # It does not wait for its socket's end.
        await until(lambda: asyncio.all_tasks() <= before)


async def subscribe(client: centrifuge.Client, channel: str, **options: Any) -> tuple[centrifuge.Subscription, Events]:
    """Begin to subscribe; the events are this subscription's own."""
    events = Events()
    subscription = client.new_subscription(channel, events=events, **options)
    await subscription.subscribe()
    return subscription, events


async def data_of_next(events: Events) -> object:
    return (await soon(events.publications)).pub.data


# What it is for


@async_test
async def test_a_message_reaches_another_user_with_its_publishers_name(hub):
    """Connect with a token, subscribe, publish, receive."""
    async with sdk(hub, token=hub.token("ann")) as (ann, _), sdk(hub, token=hub.token("bob")) as (bob, told):
        channel = "members:room"
        _, heard = await subscribe(ann, channel)
        assert (await soon(heard.subscribed)).recoverable is False
        await bob.publish(channel, {"text": "hello", "n": [1, 2.5, None]})
        publication = (await soon(heard.publications)).pub
        assert publication.data == {"text": "hello", "n": [1, 2.5, None]}
        assert (publication.info.user, publication.info.client) == ("bob", (await soon(told.connected)).client)


@async_test
async def test_a_subscription_publishes_and_hears_itself(hub):
    """In order; `Subscription.publish` is the same door."""
    async with sdk(hub) as (client, _):
        subscription, heard = await subscribe(client, "chat:self")
        await soon(heard.subscribed)
        for number in range(20):
            await subscription.publish(number)
        assert [await data_of_next(heard) for _ in range(20)] == list(range(20))


@async_test
async def test_the_hubs_clock_can_be_called(hub):
    """rpc hub.time answers with nanoseconds since 1970, as text."""
    async with sdk(hub) as (client, _):
        answer = (await client.rpc("hub.time", {})).data
        assert abs(int(answer["time_ns"]) / 1e9 - time.time()) < CLOCK_S


@async_test
async def test_after_unsubscribe_nothing_more_comes(hub):
    """A message on the channel that was left is not among those that came before a later one on another."""
    async with sdk(hub) as (client, _):
        left, heard_left = await subscribe(client, "chat:left")
        _, heard_kept = await subscribe(client, "chat:kept")
        await soon(heard_left.subscribed)
        await soon(heard_kept.subscribed)
        await left.unsubscribe()
        assert (await soon(heard_left.unsubscribed)).code == 0
        await client.publish("chat:left", "unheard")
        await client.publish("chat:kept", "heard")
        assert await data_of_next(heard_kept) == "heard"
        assert heard_left.publications.empty()
        await left.subscribe()
        await soon(heard_left.subscribed)
        await client.publish("chat:left", "heard again")
        assert await data_of_next(heard_left) == "heard again"


@async_test
async def test_who_is_there_and_who_comes_and_goes(hub):
    """presence and presence_stats for a subscriber; join and leave of another connection, the leave after the grace."""
    async with sdk(hub, token=hub.token("ann")) as (ann, _):
        room, heard = await subscribe(ann, "room:a", join_leave=True)
        assert await soon(heard.arrivals) == ("join", "ann")
        async with sdk(hub, token=hub.token("bob")) as (bob, _):
            await subscribe(bob, "room:a")
            assert await soon(heard.arrivals) == ("join", "bob")
            clients = (await room.presence()).clients
            assert all(name == info.client for name, info in clients.items())
            assert sorted(info.user for info in clients.values()) == ["ann", "bob"]
            stats = await room.presence_stats()
            assert (stats.num_clients, stats.num_users) == (2, 2)
        assert await soon(heard.arrivals) == ("leave", "bob")
        assert (await room.presence_stats()).num_clients == 1


# What is refused


@pytest.mark.parametrize(("channel", "code"), [("closed:a", 103), ("members:a", 103), ("nowhere:a", 102)])
@async_test
async def test_a_forbidden_subscription_ends_with_its_code(hub, channel, code):
    """The SDK gives the subscription up, and the connection lives."""
    async with sdk(hub) as (client, told):
        _, heard = await subscribe(client, channel)
        assert (await soon(heard.unsubscribed)).code == code
        await client.rpc("hub.time", {})
        assert told.disconnected.empty()


CALLS: dict[str, tuple[int, Callable[[centrifuge.Client], Any]]] = {
    "publish where nobody may": (103, lambda client: client.publish("closed:a", 1)),
    "publish where only users may": (103, lambda client: client.publish("members:a", 1)),
    "publish to nowhere": (102, lambda client: client.publish("nowhere:a", 1)),
    "publish to what is no name": (107, lambda client: client.publish("not a name", 1)),
    "history": (108, lambda client: client.history("chat:a", limit=10)),
    "presence of what it is not in": (103, lambda client: client.presence("room:a")),
    "presence": (108, lambda client: client.presence("chat:a")),
    "presence_stats": (108, lambda client: client.presence_stats("chat:a")),
    "rpc of nothing": (104, lambda client: client.rpc("nothing", {})),
}


@async_test
async def test_each_refused_call_has_its_code(hub):
    """As the SDK's own ReplyError, never temporary; the connection lives."""
    async with sdk(hub) as (client, told):
        for name, (code, call) in CALLS.items():
            with pytest.raises(centrifuge.ReplyError) as refused:
                await call(client)
            assert (refused.value.code, refused.value.temporary) == (code, False), name
        assert told.disconnected.empty()


@async_test
async def test_a_token_that_is_not_the_hubs_ends_for_good(hub):
    """3500: the SDK does not come back."""
    async with sdk(hub, token=forged_token(hub)) as (client, told):
        assert (await soon(told.disconnected)).code == 3500
        assert client.state == centrifuge.ClientState.DISCONNECTED


def forged_token(hub: HubProcess) -> str:
    head, claims, signature = hub.token("ann").split(".")
    return ".".join([head, claims, signature[::-1]])


# Time


@async_test
async def test_an_expired_token_is_renewed(hub):
    """109 at connect: the SDK asks its application for a new token, with which it connects."""
    asked = []

    async def get_token() -> str:
        asked.append(1)
        return hub.token("ann")

    async with sdk(hub, token=hub.token("ann", ttl_s=-60), get_token=get_token) as (client, told):
        assert (await soon(told.errors)).error.code == 109
        await soon(told.connected)
        assert len(asked) == 1
        await client.publish("members:a", "ann may")


@pytest.fixture(scope="module")
def brisk() -> Iterator[HubProcess]:
    """A hub that pings nearly each second."""
    client = {"connect_timeout_s": 0.5, "ping_interval_s": 1.2, "pong_timeout_s": 1.0}
    with HubProcess({"client": client, "auth": {"expire_grace_s": GRACE_S}}) as hub:
        yield hub


@async_test
async def test_a_token_is_refreshed_before_it_ends(brisk):
    """Told when, the SDK gets another by itself and sends it; it is still there when the first is over."""
    asked = asyncio.Event()
    ends_at = time.time() + 2.5 + GRACE_S

    async def get_token() -> str:
        asked.set()
        return brisk.token("ann", 60)

    async with sdk(brisk, token=brisk.token("ann", 3.0), get_token=get_token) as (client, told):
        _, heard = await subscribe(client, "members:a")
        await soon(heard.subscribed)
        await soon(told.connected)
        await asyncio.wait_for(asked.wait(), SOON_S)
        await until(lambda: time.time() > ends_at + 1.0)
        await client.publish("members:a", "still here")
        assert await data_of_next(heard) == "still here"
        assert (await soon(told.connecting)).code == 0 and told.connecting.empty(), "it was never closed"


@async_test
async def test_a_token_that_is_not_refreshed_in_time_ends_the_connection(brisk):
    """3005, behind the grace: the SDK comes back with a new token, is subscribed again and hears what comes then."""
    late, asked = asyncio.Event(), []

    async def get_token() -> str:
        asked.append(1)
        if len(asked) == 1:
            await late.wait()
        return brisk.token("ann", 60)

    async with sdk(brisk, token=brisk.token("ann", 2.0), get_token=get_token) as (client, told):
        _, heard = await subscribe(client, "members:a")
        await soon(heard.subscribed)
        await soon(told.connected)
        assert (await soon(told.connecting)).code == 0
        assert (await soon(told.connecting)).code == 3005
        late.set()
        await soon(told.connected)
        await soon(heard.subscribed)
        await client.publish("members:a", "again")
        assert await data_of_next(heard) == "again"


@async_test
async def test_pings_keep_a_quiet_connection(brisk):
    """The SDK leaves a hub that does not ping in time, the hub a client that does not answer: neither happens."""
    async with sdk(brisk, max_server_ping_delay=1.0) as (client, told):
        await soon(told.connected)
        await soon(told.connecting)
        # The claim is about time, so it has to pass: two intervals, and what is allowed on top of one.
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(told.connecting.get(), 3.5)
        assert told.disconnected.empty()
        await client.rpc("hub.time", {})


# When workers die


@async_test
async def test_sdk_comes_back_after_its_worker_was_killed():
    """kill -9 of all workers: it reconnects by itself, is subscribed again and receives; nobody told it to."""
    with HubProcess({}) as hub:
        async with sdk(hub, token=hub.token("ann")) as (client, told):
            _, heard = await subscribe(client, "chat:a")
            await soon(heard.subscribed)
            first = (await soon(told.connected)).client
            for pid in hub.worker_pids():
                os.kill(pid, signal.SIGKILL)
            assert (await soon(told.connected)).client != first
            await soon(heard.subscribed)
            await until(lambda: len(hub.worker_pids()) == 2)
            await client.publish("chat:a", "after the kill")
            assert await data_of_next(heard) == "after the kill"
            assert told.disconnected.empty()
