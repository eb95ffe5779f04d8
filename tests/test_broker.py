"""Publications into a real Valkey: order, batches, leases, and what happens without it."""

from __future__ import annotations

import asyncio

import pytest
from redis.asyncio import Redis

from hub.broker import Broker, Lease
from hub.config import RedisSettings
from hub.errors import BrokerUnavailable, CommandError
from hub.message import Publication, unpack
from hub.store import Store
from tests.support import async_test


def store_of(url: str, prefix: str, **settings: object) -> Store:
    return Store(RedisSettings(prefix=prefix, **settings), url)


class Verdicts(list):
    """Collects what `done` is told, and waits for a number of them."""

    async def of(self, count: int) -> list:
        while len(self) < count:
            await asyncio.sleep(0.001)
        return list(self)


async def listening(redis: Redis, *channels: str):
    pubsub = redis.pubsub()
    await pubsub.subscribe(*channels)
    for _ in channels:
        await pubsub.get_message(timeout=5)
    return pubsub


@async_test
async def test_publications_reach_redis_in_the_order_of_the_calls(valkey_url, prefix):
    """A thousand calls without waiting arrive complete and in order, each with its verdict."""
    store = store_of(valkey_url, prefix)
    broker, redis = Broker(store, 10_000), Redis.from_url(valkey_url)
    pubsub = await listening(redis, store.keys.channel("a"))
    verdicts = Verdicts()
    for i in range(1000):
        broker.publish("none", "default", [Publication("a", b"%d" % i)], verdicts.append)
    assert await verdicts.of(1000) == [None] * 1000
    received = []
    while len(received) < 1000:
        message = await pubsub.get_message(timeout=5)
        received += [body for _, body in unpack(message["data"])]
    assert received == [b"%d" % i for i in range(1000)]
    await pubsub.aclose()
    await redis.aclose()
    await broker.close()


@async_test
async def test_a_latest_batch_is_one_publish_and_leaves_the_newest_values(valkey_url, prefix):
    """Many symbols come as one message on the feed; `last` has each one's newest body, None for an unknown one."""
    store = store_of(valkey_url, prefix)
    broker, redis = Broker(store, 10), Redis.from_url(valkey_url)
    pubsub = await listening(redis, store.keys.feed("t"))
    batch = [Publication("t:A", b"1"), Publication("t:B", b"2"), Publication("t:A", b"3")]
    verdicts = Verdicts()
    broker.publish("latest", "t", batch, verdicts.append)
    assert await verdicts.of(1) == [None]
    assert unpack((await pubsub.get_message(timeout=5))["data"]) == batch
    assert await broker.last("t", ["t:A", "t:B", "t:C"]) == [b"3", b"2", None]
    await pubsub.aclose()
    await redis.aclose()
    await broker.close()


@async_test
async def test_a_batch_whose_lease_has_passed_on_does_nothing(valkey_url, prefix):
    """The fencing token is compared in the same step: an old leader neither stores, publishes nor moves the source."""
    store = store_of(valkey_url, prefix)
    broker, redis = Broker(store, 10), Redis.from_url(valkey_url)
    await redis.hset(store.keys.lease("t"), "token", "7")
    verdicts = Verdicts()
    broker.publish("latest", "t", [Publication("t:A", b"old")], verdicts.append, Lease("6", "row 1"))
    broker.publish("latest", "t", [Publication("t:A", b"new")], verdicts.append, Lease("7", "row 2"))
    broker.publish("latest", "t", [Publication("t:A", b"older")], verdicts.append, Lease("", "row 0"))
    refused, taken, free = await verdicts.of(3)
    assert isinstance(refused, CommandError) and refused.reply.code == 103
    assert taken is None and free is None
    assert await redis.hget(store.keys.source("t"), "position") == b"row 2"
    await redis.aclose()
    await broker.close()


@async_test
async def test_a_flushed_script_is_loaded_again(valkey_url, prefix):
    """SCRIPT FLUSH between two batches, as a restart does: the second one arrives all the same."""
    broker, redis = Broker(store_of(valkey_url, prefix), 10), Redis.from_url(valkey_url)
    await broker.ping()
    await redis.script_flush()
    verdicts = Verdicts()
    broker.publish("latest", "t", [Publication("t:A", b"1")], verdicts.append)
    assert await verdicts.of(1) == [None]
    await redis.aclose()
    await broker.close()


@async_test
async def test_without_redis_publishes_fail_as_temporary_and_later_ones_succeed_again(valkey_url, prefix, tmp_path):
    """Nothing is kept for later: each publish is told at once that Redis is away."""
    broker = Broker(store_of("unix:///nonexistent/valkey.sock", prefix), 10)
    verdicts = Verdicts()
    broker.publish("none", "default", [Publication("a", b"1")], verdicts.append)
    assert isinstance((await verdicts.of(1))[0], BrokerUnavailable)
    with pytest.raises(BrokerUnavailable, match="Redis at unix:/nonexistent"):
        await broker.ping()
    with pytest.raises(BrokerUnavailable):
        await broker.last("t", ["t:A"])
    await broker.close()


@async_test
async def test_what_redis_refuses_is_told_to_its_publisher_alone(valkey_url, prefix):
    """An error of one command is no error of the others in the batch."""
    store = store_of(valkey_url, prefix)
    broker, redis = Broker(store, 10), Redis.from_url(valkey_url)
    await redis.set(store.keys.lease("t"), "not a hash")
    verdicts = Verdicts()
    broker.publish("latest", "t", [Publication("t:A", b"1")], verdicts.append, Lease("7", ""))
    broker.publish("none", "default", [Publication("a", b"1")], verdicts.append)
    wrong, fine = await verdicts.of(2)
    assert isinstance(wrong, BrokerUnavailable) and "WRONGTYPE" in str(wrong)
    assert fine is None
    await redis.aclose()
    await broker.close()


@async_test
async def test_more_than_may_wait_is_told_to_come_later(valkey_url, prefix):
    """Over pending_publishes: 111, and what was in the queue goes on."""
    broker = Broker(store_of(valkey_url, prefix), 3)
    verdicts = Verdicts()
    for _ in range(5):
        broker.publish("none", "default", [Publication("a", b"1")], verdicts.append)
    told = await verdicts.of(5)
    assert sorted(v.reply.code if v else 0 for v in told) == [0, 0, 0, 111, 111]
    await broker.close()


@pytest.mark.expects_log
@async_test
async def test_a_publisher_that_fails_on_its_verdict_hurts_nobody(valkey_url, prefix, caplog):
    """The others of the batch are told theirs; the fault is logged."""
    broker, verdicts = Broker(store_of(valkey_url, prefix), 10), Verdicts()

    def failing(verdict: object) -> None:
        raise RuntimeError("mine")

    broker.publish("none", "default", [Publication("a", b"1")], failing)
    broker.publish("none", "default", [Publication("a", b"2")], verdicts.append)
    assert await verdicts.of(1) == [None]
    assert "a publisher failed on its verdict" in caplog.text
    await broker.close()


@async_test
async def test_close_sends_what_waits(valkey_url, prefix):
    """A worker that drains loses no publish that it has taken."""
    broker, verdicts = Broker(store_of(valkey_url, prefix), 2000), Verdicts()
    for _ in range(1500):
        broker.publish("none", "default", [Publication("a", b"1")], verdicts.append)
    await broker.close()
    assert verdicts == [None] * 1500
