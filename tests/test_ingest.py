"""The subscriber connection, against a real Valkey: confirmation, order, reconnects, and links that only look alive."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import time
from collections.abc import AsyncIterator

import hiredis
import pytest
from redis.asyncio import Redis

from hub import ingest
from hub.errors import BrokerUnavailable
from hub.ingest import HOLD_S, RESUBSCRIBE_BATCH, Ingest
from hub.message import Arrival, Publication, pack
from hub.sections import RedisSettings
from hub.store import Store
from tests.support import async_test


class Rig:
    """An ingest and what it delivered."""

    def __init__(self, url: str, prefix: str) -> None:
        self.store = Store(RedisSettings(prefix=prefix), url)
        self.batches: list[list[Publication]] = []
        self.control: list[bytes] = []
        self.events: list[str] = []
        self.arrivals: list[Arrival] = []
        self.ingest = Ingest(self.store, self.on_publications, self.control.append, on_arrivals=self.arrivals.extend)

    def on_publications(self, batch: list[Publication]) -> None:
        self.batches.append(batch)
        self.events += [p.body.decode() for p in batch]

    async def connected(self) -> None:
        await until(lambda: self.ingest.connected)

    async def hold(self, channel: str) -> object:
        """Hold, and return what `ready` was told."""
        told: list = []

        def ready(verdict: object) -> None:
            told.append(verdict)
            self.events.append("ready")

        self.ingest.hold(channel, ready)
        await until(lambda: told)
        return told[0]


async def until(condition: object) -> None:
    while not condition():
        await asyncio.sleep(0.001)


@contextlib.asynccontextmanager
async def rig(url: str, prefix: str) -> AsyncIterator[tuple[Rig, Redis]]:
    one, redis = Rig(url, prefix), Redis.from_url(url)
    one.ingest.start()
    await one.connected()
    try:
        yield one, redis
    finally:
        await one.ingest.close()
        await redis.aclose()


@async_test
async def test_ready_comes_before_the_first_publication(valkey_url, prefix):
    """Everything published after the confirmation arrives, in order, behind it."""
    async with rig(valkey_url, prefix) as (one, redis):
        assert await one.hold(f"{prefix}:a") is None
        for i in range(100):
            await redis.publish(f"{prefix}:a", pack([Publication("a", b"%d" % i)]))
        await until(lambda: len(one.events) == 101)
        assert one.events == ["ready", *map(str, range(100))]


@pytest.mark.expects_log
@async_test
async def test_arrivals_come_on_the_channel_of_the_publications(valkey_url, prefix):
    """And go their own way; what is malformed is dropped with a warning, and the rest goes on."""
    async with rig(valkey_url, prefix) as (one, redis):
        await one.hold(f"{prefix}:a")
        join, leave = b'"join":{"info":{"client":"1"}}', b'"leave":{"info":{"client":"1"}}'
        for payload in (b"3\na\n%b\na\n%b" % (join, leave), b"3\na", b"3\n\xff\n{}", pack([Publication("a", b"end")])):
            await redis.publish(f"{prefix}:a", payload)
        await until(lambda: one.events == ["ready", "end"])
        assert one.arrivals == [Arrival("a", join), Arrival("a", leave)]


@async_test
async def test_what_one_read_brings_is_one_batch(valkey_url, prefix):
    """A pipeline of publishes is handed on in far fewer batches than publications."""
    async with rig(valkey_url, prefix) as (one, redis):
        await one.hold(f"{prefix}:a")
        async with redis.pipeline(transaction=False) as pipeline:
            for i in range(500):
                pipeline.publish(f"{prefix}:a", pack([Publication("a", b"%d" % i)]))
            await pipeline.execute()
        await until(lambda: len(one.events) == 501)
        assert len(one.batches) < 100


@async_test
async def test_a_released_channel_is_no_longer_received(valkey_url, prefix):
    """After release Redis sends nothing more of it; another hold brings it back."""
    async with rig(valkey_url, prefix) as (one, redis):
        await one.hold(f"{prefix}:a")
        await one.hold(f"{prefix}:b")
        one.ingest.release(f"{prefix}:a")
        while await redis.publish(f"{prefix}:a", pack([Publication("a", b"unheard")])):
            await asyncio.sleep(0.001)
        await one.hold(f"{prefix}:a")
        await redis.publish(f"{prefix}:a", pack([Publication("a", b"heard")]))
        await until(lambda: "heard" in one.events)


@pytest.mark.expects_log
@async_test
async def test_after_a_lost_link_everything_held_is_held_again(valkey_url, prefix):
    """CLIENT KILL, with more channels than one SUBSCRIBE carries: publications arrive again on all of them."""
    names = [f"{prefix}:{i}" for i in range(RESUBSCRIBE_BATCH + 5)]
    async with rig(valkey_url, prefix) as (one, redis):
        await asyncio.gather(*(one.hold(name) for name in names))
        await redis.client_kill_filter(_type="pubsub")
        await until(lambda: not one.ingest.connected)
        await one.connected()
        for name in names:
            while not await redis.publish(name, pack([Publication("a", name.encode())])):
                await asyncio.sleep(0.001)
        await until(lambda: set(names) <= set(one.events))


@pytest.mark.expects_log
@async_test
async def test_without_a_link_hold_fails_as_temporary(prefix):
    """Redis away: `ready` is told so, and nothing is held in secret."""
    one = Rig("unix:///nonexistent/valkey.sock", prefix)
    one.ingest.start()
    assert isinstance(await one.hold("a"), BrokerUnavailable)
    await one.ingest.close()


@pytest.mark.expects_log
@async_test
async def test_a_hold_that_the_lost_link_left_unconfirmed_fails(valkey_url, prefix):
    """The link dies between SUBSCRIBE and its answer: `ready` is told, and the reconnect does not hold the channel."""
    async with rig(valkey_url, prefix) as (one, redis):
        told: list = []
        one.ingest.hold(f"{prefix}:a", told.append)
        one.ingest._link.close()
        await until(lambda: told)
        assert isinstance(told[0], BrokerUnavailable)
        await until(lambda: one.ingest.connected)
        await redis.ping()
        assert await redis.publish(f"{prefix}:a", b"") == 0


@pytest.mark.expects_log
@async_test
async def test_what_is_not_ours_is_dropped_and_the_rest_delivered(valkey_url, prefix, caplog):
    """A foreign publisher on our channel: one braked warning that names the channel, and no harm."""
    async with rig(valkey_url, prefix) as (one, redis):
        await one.hold(f"{prefix}:a")
        for _ in range(3):
            await redis.publish(f"{prefix}:a", b"garbage")
        await redis.publish(f"{prefix}:a", pack([Publication("a", b"fine")]))
        await until(lambda: "fine" in one.events)
        [line] = [r.getMessage() for r in caplog.records if "dropped" in r.getMessage()]
        assert f"{prefix}:a" in line and "not a feed payload of version 1: b'garbage'" in line


@async_test
async def test_the_control_channel_has_its_own_door(valkey_url, prefix):
    """What comes on it goes to on_control as it is, and never to the fan-out."""
    async with rig(valkey_url, prefix) as (one, redis):
        await redis.publish(one.store.keys.control, b"anything")
        await until(lambda: one.control == [b"anything"])
        assert one.batches == []


@pytest.mark.expects_log
@async_test
async def test_a_fault_in_the_fan_out_does_not_cost_the_link(valkey_url, prefix, caplog):
    """An exception on one batch is logged; the next batch arrives on the same link."""
    async with rig(valkey_url, prefix) as (one, redis):
        await one.hold(f"{prefix}:a")
        one.ingest._on_publications = lambda batch: 1 / 0
        await redis.publish(f"{prefix}:a", pack([Publication("a", b"1")]))
        await until(lambda: "could not be delivered" in caplog.text)
        one.ingest._on_publications = one.on_publications
        await redis.publish(f"{prefix}:a", pack([Publication("a", b"2")]))
        await until(lambda: "2" in one.events)


@pytest.mark.expects_log
@async_test
async def test_a_link_that_only_looks_alive_is_dropped(prefix, monkeypatch, caplog):
    """A server that answers the first command and then nothing more, not even PING: found after three of those."""
    monkeypatch.setattr(ingest, "PING_INTERVAL_S", 0.02)
    accepted = 0

    async def answer_once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal accepted
        accepted += 1
        await reader.read(1000)
        writer.write(b"*3\r\n$9\r\nsubscribe\r\n$%d\r\n%s\r\n:1\r\n" % (len(control), control))
        await reader.read(-1)
        writer.close()

    control = f"{prefix}:control".encode()
    async with await asyncio.start_server(answer_once, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        one = Rig(f"redis://127.0.0.1:{port}", prefix)
        one.ingest.start()
        await until(lambda: accepted >= 2)
        assert "no answer to 3 PINGs" in caplog.text
        await one.ingest.close()


@async_test
async def test_a_worker_that_stood_still_keeps_its_link_and_what_came_meanwhile(prefix, monkeypatch):
    """For many times the silence that ends a link: what it has not read yet is no silence of Redis'."""
    monkeypatch.setattr(ingest, "PING_INTERVAL_S", 0.02)
    writers: list[asyncio.StreamWriter] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        commands = hiredis.Reader()
        writers.append(writer)
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(1000):
                commands.feed(data)
                while command := commands.gets():
                    confirmed = [hiredis.pack_command((b"subscribe", name, b"1")) for name in command[1:]]
                    writer.write(b"".join(confirmed) or hiredis.pack_command((b"pong", b"")))
        writer.close()

    def stand_still() -> None:
        """With a publication on its way. Not in a task: behind those the loop reads before it looks at its timers."""
        bell.recv(1)
        message = hiredis.pack_command((b"message", f"{prefix}:a", pack([Publication("a", b"meanwhile")])))
        os.write(writers[0].get_extra_info("socket").fileno(), message)
        time.sleep(10 * ingest.PINGS * ingest.PING_INTERVAL_S)

    bell, ringer = socket.socketpair()
    asyncio.get_running_loop().add_reader(bell, stand_still)
    # A server on the same loop, and so as late as the worker is: how quick the machine is decides nothing here.
    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        one = Rig(f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}", prefix)
        one.ingest.start()
        await one.connected()
        await one.hold(f"{prefix}:a")
        for times in (1, 2):
            ringer.send(b"!")
            await until(lambda times=times: one.events.count("meanwhile") == times)
        assert one.ingest.links == len(writers) == 1
        await one.ingest.close()
    asyncio.get_running_loop().remove_reader(bell)
    bell.close()
    ringer.close()


@pytest.mark.expects_log
@async_test
async def test_a_wrong_password_is_named_in_the_log(valkey_url, prefix, caplog):
    """AUTH refused: the cause stands in the warning, and it goes on trying."""
    async with rig(valkey_url, prefix):
        wrong = Rig(valkey_url.replace("unix://", "unix://:secret@"), prefix)
        wrong.ingest.start()
        await until(lambda: "AUTH" in caplog.text)
        assert not wrong.ingest.connected and "secret" not in caplog.text
        await wrong.ingest.close()


@async_test
async def test_what_one_turn_asks_for_is_one_command(valkey_url, prefix):
    """A storm of clients, each to a channel of their own; a release in between keeps its place."""
    async with rig(valkey_url, prefix) as (one, redis):
        before = await subscribes(redis)
        told: list = []
        for number in range(300):
            one.ingest.hold(f"{prefix}:many:{number}", told.append)
        one.ingest.release(f"{prefix}:many:0")
        one.ingest.hold(f"{prefix}:many:0", told.append)
        await until(lambda: len(told) == 301)
        assert told == [None] * 301 and await subscribes(redis) - before == 2
        assert await redis.publish(f"{prefix}:many:0", b"1") == 1


async def subscribes(redis: Redis) -> int:
    """SUBSCRIBE commands that this Redis has carried out."""
    return (await redis.info("commandstats"))["cmdstat_subscribe"]["calls"]


@async_test
async def test_what_a_channel_costs_is_told_when_it_is_asked_for(valkey_url, prefix):
    """While the one who asks is being read, as the answer comes later."""
    async with rig(valkey_url, prefix) as (one, _):
        told: list[float] = []
        one.ingest.on_cost = told.append
        for name in "ab":
            one.ingest.hold(f"{prefix}:{name}", lambda error: None)
        assert told == [HOLD_S] * 2
