"""Headroom: what a full store still takes, at a server of 8 MB; and what is asked of it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from math import inf
from types import SimpleNamespace
from typing import Any

import pytest
from redis.exceptions import ConnectionError, ResponseError

from hub import tasks
from hub.broker import KNOWN_BYTES, Broker, Receipt
from hub.channels import Namespace
from hub.errors import HubError, StoreFull, error_body
from hub.headroom import KEY_BYTES, PERIOD_S, Headroom
from hub.mailbox import Mailboxes
from hub.message import PLAIN, PublishOptions
from hub.publish import Publisher
from hub.refusals import Refusals
from hub.revocation import Entry, Revocations
from hub.sections import MailboxSettings, RedisSettings
from hub.store import Store
from tests.stores import BINARIES, Server, server
from tests.support import async_test

MEGABYTE = 1 << 20
BOUNDED = ("--maxmemory", f"{8 * MEGABYTE}", "--maxmemory-policy")
LATEST, STREAM, NONE, MAILBOX = (
    Namespace(mode="latest"),
    Namespace(mode="stream"),
    Namespace(),
    Namespace(mailbox=True),
)
KEYED = PublishOptions(idempotency_key="k")


@pytest.fixture(params=BINARIES)
def small(request: pytest.FixtureRequest) -> Iterator[Server]:
    with server(request.param, *BOUNDED, "noeviction") as one:
        yield one


def fill(small: Server, percent: int) -> None:
    """Until so much of its memory is used."""
    with small.commands() as commands:
        number = 0
        while commands.info("memory")["used_memory"] * 100 < percent * 8 * MEGABYTE:
            number += 1
            commands.set(f"fill:{number}", "x" * 60_000)


class Rig:
    """Who publishes, at a server."""

    def __init__(self, url: str, prefix: str, percent: int = 90) -> None:
        self.store = Store(RedisSettings(prefix=prefix), url)
        self.broker = Broker(self.store, 1000)
        self.refusals = Refusals()
        self.headroom = Headroom(self.store, percent, self.refusals)
        mailboxes = Mailboxes(self.broker, self.store.keys, MailboxSettings(), MEGABYTE)
        self.publisher = Publisher(self.broker, 32, mailboxes, self.headroom)

    async def __aenter__(self) -> Rig:
        await self.broker.ping()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.headroom.close()
        await self.broker.close()

    async def publish(
        self, channel: str, rules: Namespace, data: Any = 1, options: PublishOptions = PLAIN
    ) -> Receipt | HubError:
        return await tasks.reply(lambda done: self.publisher.publish(channel, rules, data, done, options=options))


@pytest.mark.expects_log
@async_test
async def test_a_full_store_keeps_nothing_more_for_clients_and_all_for_the_hub(small, prefix, caplog):
    """Told apart from a Redis that is away, counted, one line; values that need no more room still change."""
    async with Rig(small.url, prefix) as rig:
        assert isinstance(await rig.publish("t:known", LATEST, "x" * KNOWN_BYTES), Receipt)
        assert isinstance(await rig.publish("t:long", LATEST, "x" * 2000), Receipt)
        fill(small, 91)
        await rig.headroom.look()
        assert rig.headroom.full
        refused = [
            await rig.publish("chat:a", STREAM),
            await rig.publish("t:new", LATEST),
            await rig.publish("t:known", LATEST, "x" * (KNOWN_BYTES + 1)),
            await rig.publish("t:long", LATEST, "x" * 2001),
            await rig.publish("inbox:#a", MAILBOX),
            await rig.publish("room:a", NONE, options=KEYED),
        ]
        assert [type(one) for one in refused] == [StoreFull] * 6
        assert error_body(refused[0]) == {"code": 100, "message": "the store is full; try again", "temporary": True}
        assert rig.refusals.counts["store"] == 6 == rig.broker.outcomes["refused"]
        [line] = [record for record in caplog.records if record.levelno >= logging.WARNING]
        assert "the store is full" in line.getMessage() and "redis.full_percent" in line.getMessage()
        taken = [
            await rig.publish("t:known", LATEST, 2),
            await rig.publish("t:known", LATEST, "y" * 200),
            await rig.publish("t:long", LATEST, "y" * 2000),
            await rig.publish("room:a", NONE),
            await rig.publish("chat:a", STREAM, options=PublishOptions(skip_history=True)),
        ]
        assert [type(one) for one in taken] == [Receipt] * 5
        revocations = Revocations(rig.store)
        assert await revocations.store(Entry("user", "bad", inf, 0.0), b"{}") == 0
        await revocations.close()
        with small.commands() as commands:
            assert commands.get(rig.store.keys.last("t", "t:known")) == '{"data":"' + "y" * 200 + '"}'
            assert not commands.exists(rig.store.keys.last("t", "t:new"))
            commands.delete(*commands.keys("fill:*"))
        await rig.headroom.look()
        assert not rig.headroom.full and isinstance(await rig.publish("chat:a", STREAM), Receipt)


@async_test
async def test_what_redis_itself_refuses_is_told_as_a_full_store(small, prefix):
    """Between two looks it may be filled by others."""
    async with Rig(small.url, prefix, percent=0) as rig:
        await rig.headroom.look()
        with small.commands() as commands:
            commands.config_set("maxmemory", 1)
        for channel, rules, options in (("t:a", LATEST, PLAIN), ("a", NONE, KEYED), ("i:#a", MAILBOX, PLAIN)):
            assert type(await rig.publish(channel, rules, options=options)) is StoreFull, channel
        assert rig.broker.outcomes["refused"] == 3 and rig.refusals.counts["store"] == 0


@pytest.mark.parametrize(
    ("percent", "policy", "bound"), [(0, "noeviction", 8), (90, "allkeys-lru", 8), (90, "noeviction", 0)]
)
@async_test
async def test_nothing_is_refused_where_nobody_wants_it_or_redis_makes_room(prefix, percent, policy, bound):
    with server(BINARIES[0].values[0], *BOUNDED, policy) as one:
        fill(one, 95)
        with one.commands() as commands:
            commands.config_set("maxmemory", bound * MEGABYTE)
        async with Rig(one.url, prefix, percent) as rig:
            await rig.headroom.look()
            assert not rig.headroom.full and rig.headroom.takes(1 << 40)


class Memory:
    """A Redis that says so."""

    def __init__(self, rig: Headroom, *answers: Any) -> None:
        self._answers = list(answers)
        rig._redis = SimpleNamespace(info=self.info, aclose=self.aclose)  # type: ignore[assignment]

    async def info(self, section: str) -> Any:
        assert section == "memory"
        answer = self._answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return {
            "maxmemory": 1_000_000,
            "maxmemory_policy": "noeviction",
            "mem_not_counted_for_evict": 100_000,
            **answer,
        }

    async def aclose(self) -> None:
        """Nothing to let go of."""


def headroom(percent: int = 90, workers: int = 1) -> Headroom:
    return Headroom(Store(RedisSettings(), "redis://127.0.0.1:1"), percent, Refusals(), workers)


@async_test
async def test_what_is_published_between_two_looks_counts():
    """With what it takes besides its body, and by this worker's share: nobody can fill it within a second."""
    one = headroom(workers=2)
    Memory(one, {"used_memory": 800_000}, {"used_memory": 1_000_000})
    await one.look()
    # 100000 for each of two; buffers that Redis does not count are no reason.
    assert one.takes(40_000 - KEY_BYTES) and not one._wake.is_set()
    assert one.takes(8_000 - KEY_BYTES) and one._wake.is_set()
    assert not one.takes(40_000) and one.takes(30_000) and not one.takes(4000)
    assert not one.full
    one._wake.clear()
    await one.look()
    assert one.full and not one.takes(1) and not one._wake.is_set()


@pytest.mark.expects_log
@async_test
async def test_a_write_that_redis_refuses_leaves_no_room():
    """Until it has been asked again."""
    one = headroom()
    Memory(one, {"used_memory": 200_000}, {"used_memory": 200_000})
    await one.look()
    one.overrun()
    assert one.full and one._refusals.counts["store"] == 1
    await one.look()
    assert not one.full


@async_test
async def test_it_is_asked_at_once_when_a_flood_takes_half_of_the_room():
    """And otherwise every second."""
    one = headroom()
    asked = asyncio.Event()

    class Counted(Memory):
        async def info(self, section: str) -> Any:
            asked.set()
            return await super().info(section)

    Counted(one, *[{"used_memory": 200_000}] * 10)
    one.start()
    await asked.wait()
    asked.clear()
    begun = asyncio.get_running_loop().time()
    while one.takes(100_000):
        pass
    await asked.wait()
    assert asyncio.get_running_loop().time() - begun < PERIOD_S
    await one.close()


@async_test
async def test_a_redis_that_is_away_changes_nothing_and_one_that_does_not_tell_refuses_nothing():
    one = headroom()
    Memory(one, {"used_memory": 1_100_000}, ConnectionError("away"), OSError("away"), ResponseError("NOPERM"))
    assert one.takes(1)  # before it was asked
    for full in (True, True, True, False):
        await one.look()
        assert one.full is full


@async_test
async def test_what_is_published_while_redis_is_away_takes_no_room():
    """It comes to nothing, so the answer goes on to be that Redis is away."""
    one = headroom()
    Memory(one, {"used_memory": 200_000}, ConnectionError("away"), {"used_memory": 200_000})
    await one.look()
    await one.look()
    assert all(one.takes(100_000) for _ in range(50)) and not one.full
    await one.look()
    assert one.takes(100_000) and not one.takes(900_000)


@async_test
async def test_another_percentage_holds_from_the_next_look_on():
    one = headroom(50)
    Memory(one, {"used_memory": 900_000}, {"used_memory": 900_000})
    await one.look()
    assert one.full
    one.percent = 90
    await one.look()
    assert not one.full
    one.percent = 0
    await one.look()
    assert one.takes(1 << 40)
