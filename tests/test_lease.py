"""Lease: one leader at a time, tokens that never repeat."""

from __future__ import annotations

import asyncio

import pytest
from redis.asyncio import Redis

from hub.broker import Broker, Lease, Receipt
from hub.channels import Namespace
from hub.errors import BrokerUnavailable, CommandError, HubError
from hub.lease import Candidate
from hub.message import Publication
from hub.sections import RedisSettings
from hub.store import Store
from tests.support import async_test

NAMESPACE = "ticker"


def store_of(url: str, prefix: str) -> Store:
    return Store(RedisSettings(prefix=prefix), url)


async def published(broker: Broker, lease: Lease, body: bytes) -> Receipt | HubError:
    """The verdict on one publication under `lease`."""
    verdict: asyncio.Future[Receipt | HubError] = asyncio.get_running_loop().create_future()
    broker.publish(Namespace(mode="latest"), NAMESPACE, [Publication("ticker:A", body)], verdict.set_result, lease)
    return await verdict


@async_test
async def test_only_one_leads_until_it_releases(valkey_url, prefix):
    """While one holds the lease another gets none; after the release it does, at once, with a greater number."""
    store = store_of(valkey_url, prefix)
    first, second = Candidate(store, NAMESPACE, "first", 60), Candidate(store, NAMESPACE, "second", 60)
    lease = await first.acquire()
    assert lease == Lease("1-first", "")
    assert await second.acquire() is None
    await first.release(lease.token)
    assert await second.acquire() == Lease("2-second", "")
    await first.close()
    await second.close()


@async_test
async def test_a_silent_leader_loses_the_lease_and_a_renewing_one_keeps_it(valkey_url, prefix):
    """The lease ends with its ttl; each renewal begins the ttl anew; a lost one can't be renewed or released."""
    store = store_of(valkey_url, prefix)
    first, second = Candidate(store, NAMESPACE, "first", 0.2), Candidate(store, NAMESPACE, "second", 60)
    redis = Redis.from_url(valkey_url)
    lease = await first.acquire()
    assert await first.renew(lease.token)
    assert 0 < await redis.pttl(store.keys.lease(NAMESPACE)) <= 200
    while (taken := await second.acquire()) is None:
        await asyncio.sleep(0.01)
    assert not await first.renew(lease.token)
    await first.release(lease.token)
    assert await second.renew(taken.token)
    for each in (first, second):
        await each.close()
    await redis.aclose()


@async_test
async def test_the_holder_gets_a_new_term_that_fences_its_old_one(valkey_url, prefix):
    """What a leader still had under way when it began anew is refused, and its old token releases nothing."""
    store = store_of(valkey_url, prefix)
    candidate, broker = Candidate(store, NAMESPACE, "first", 60), Broker(store, 10)
    old, new = await candidate.acquire(), await candidate.acquire()
    assert (old.token, new.token) == ("1-first", "2-first")
    await candidate.release(old.token)
    assert isinstance(await published(broker, Lease(old.token, "wrong"), b"{}"), CommandError)
    assert await published(broker, Lease(new.token, "right"), b"{}") == Receipt()
    assert (await candidate.acquire()).position == "right"
    await candidate.close()
    await broker.close()


@async_test
async def test_the_number_and_the_position_outlive_the_lease(valkey_url, prefix):
    """A next leader gets a greater number and the position of the last published batch."""
    store = store_of(valkey_url, prefix)
    first, second, broker = (
        Candidate(store, NAMESPACE, "a", 60),
        Candidate(store, NAMESPACE, "b", 60),
        Broker(store, 10),
    )
    lease = await first.acquire()
    assert await published(broker, lease._replace(position="simulate 17"), b"{}") == Receipt()
    await first.release(lease.token)
    assert isinstance(await published(broker, lease._replace(position="simulate 18"), b"{}"), CommandError)
    assert await second.acquire() == Lease("2-b", "simulate 17")
    for each in (first, second, broker):
        await each.close()


@async_test
async def test_two_leaders_have_different_tokens_even_when_redis_forgot_the_number(valkey_url, prefix):
    """After a failover to a replica that lagged the count begins lower; the owner's name keeps the tokens apart."""
    store = store_of(valkey_url, prefix)
    first, second = Candidate(store, NAMESPACE, "first", 60), Candidate(store, NAMESPACE, "second", 60)
    redis = Redis.from_url(valkey_url)
    old = await first.acquire()
    await redis.delete(store.keys.lease(NAMESPACE), store.keys.source(NAMESPACE))
    assert (await second.acquire()).token != old.token
    assert not await first.renew(old.token)
    for each in (first, second, redis):
        await each.aclose() if each is redis else await each.close()


@async_test
async def test_without_redis_every_call_says_so(tmp_path):
    """No exception of the client library comes through."""
    candidate = Candidate(store_of(f"unix://{tmp_path}/absent.sock", "x"), NAMESPACE, "a", 1)
    for call in (candidate.acquire, lambda: candidate.renew("1-a"), lambda: candidate.release("1-a")):
        with pytest.raises(BrokerUnavailable, match=r"^Redis at unix:.*absent\.sock: "):
            await call()
    await candidate.close()
