"""Connections of all workers together, with a real Redis; workers are a Census each."""

from __future__ import annotations

import contextlib
from collections import Counter

import pytest

from hub import census
from hub.census import QUIET, Census
from hub.errors import CLOSE_CONNECTION_LIMIT
from hub.refusals import Refusals
from hub.sections import RedisSettings
from hub.store import Store
from tests.nodes import own_valkey, until
from tests.support import async_test


class One:
    """A connection."""

    def __init__(self) -> None:
        self.closed = []

    def close(self, close) -> None:
        self.closed.append(close)


class Node:
    """A worker: its own numbers, and its census."""

    def __init__(self, url, prefix, uid, **options) -> None:
        self.store = Store(RedisSettings(prefix=prefix), url)
        self.counts = Counter()
        self.refusals = Refusals()
        limits = options.pop("limits", {"user": 3, "ip": 1000})
        self.census = Census(self.store, uid, limits, self.everything, self.refusals, **options)

    def everything(self):
        return [(kind, key, count) for (kind, key), count in self.counts.items() if count]

    def come(self, key, kind="user") -> One:
        one = One()
        self.counts[kind, key] += 1
        self.census.note(kind, key, self.counts[kind, key], one)
        return one

    def go(self, key, kind="user") -> None:
        self.counts[kind, key] -= 1
        self.census.note(kind, key, self.counts[kind, key], None)

    async def totals(self) -> dict:
        redis = self.store.commands()
        found = await redis.hgetall(self.store.keys.census)
        await redis.aclose()
        return {name.decode(): int(number) for name, number in found.items()}

    async def told(self) -> bool:
        return not self.census._changed and not self.census._newcomers

    @property
    def idle(self) -> bool:
        """All is told and heard."""
        return not self.census._changed and not self.census._wake.is_set()


@contextlib.asynccontextmanager
async def nodes(url, prefix, number=2, **options):
    found = [Node(url, prefix, f"uid-{place}", **options) for place in range(number)]
    for one in found:
        one.census.start()
    try:
        yield found
    finally:
        for one in found:
            await one.census.close()


@async_test
async def test_the_newcomer_that_is_one_too_many_is_closed_wherever_it_came(valkey_url, prefix):
    """Three are allowed: the fourth goes, whichever worker it is on, and those who were in stay."""
    async with nodes(valkey_url, prefix) as (here, there):
        early = [here.come("ann"), here.come("ann"), there.come("ann")]

        async def all_told():
            return await here.totals() == {"user ann": 3}

        await until(all_told)
        late = there.come("ann")
        await until(lambda: late.closed)
        assert late.closed == [CLOSE_CONNECTION_LIMIT] and not any(one.closed for one in early)
        assert there.refusals.counts["user_connections"] == 1 and there.census.elsewhere("user", "ann") == 2
        there.go("ann")
        here.go("ann")

        async def one_less():
            return await here.totals() == {"user ann": 2}

        await until(one_less)
        again = there.come("ann")

        async def back():
            return await here.totals() == {"user ann": 3}

        await until(back)
        assert not again.closed


@async_test
async def test_of_those_who_came_together_the_last_go(valkey_url, prefix):
    """Told in one batch, with room for one of them."""
    async with nodes(valkey_url, prefix, 1) as [there]:
        there.come("ann"), there.come("ann")

        async def two():
            return await there.totals() == {"user ann": 2}

        await until(two)
        here = Node(valkey_url, prefix, "uid-here")
        ones = [here.come("ann") for _ in range(3)]
        await here.census._call()
        assert [len(one.closed) for one in ones] == [0, 1, 1]
        await here.census._redis.aclose()


@async_test
async def test_whoever_leaves_leaves_nothing(valkey_url, prefix):
    """Names vanish with their last connection, and with the end of their worker."""
    async with nodes(valkey_url, prefix) as (here, there):
        here.come("ann"), there.come("bob")

        async def both():
            return await here.totals() == {"user ann": 1, "user bob": 1}

        await until(both)
        here.go("ann")

        async def one():
            return await here.totals() == {"user bob": 1}

        await until(one)
    assert await there.totals() == {}
    redis = there.store.commands()
    assert await redis.keys(f"{prefix}:census*") == []
    await redis.aclose()


@async_test
async def test_what_a_dead_worker_had_goes_with_its_lease(valkey_url, prefix):
    """Also where it had more than is taken out in one call."""
    async with nodes(valkey_url, prefix, 1, lease_s=0.2) as [here]:
        dead = Node(valkey_url, prefix, "uid-dead", lease_s=0.2)
        for number in range(1200):
            dead.come(f"u{number}")
        while dead.census._changed:
            await dead.census._call()
        here.come("ann")

        async def cleared():
            return await here.totals() == {"user ann": 1}

        await until(cleared)
        await dead.census._redis.aclose()


@async_test
async def test_a_worker_that_was_taken_for_dead_tells_everything_again(valkey_url, prefix):
    """Its numbers are back within a renewal, and count once."""
    async with nodes(valkey_url, prefix, lease_s=0.2) as (here, there):
        here.come("ann"), here.come("bob"), there.come("ann")

        async def right():
            return await there.totals() == {"user ann": 2, "user bob": 1}

        await until(right)
        redis = here.store.commands()
        await redis.delete(here.store.keys.census_of("uid-0"), here.store.keys.census)
        await redis.delete(here.store.keys.census_of("uid-1"))
        await redis.aclose()
        await until(right)


@async_test
async def test_the_first_few_of_an_address_are_not_told(valkey_url, prefix):
    """One 64th of the limit in each worker; from there on all of them, and nothing once they are back there."""
    async with nodes(valkey_url, prefix) as (here, _):
        quiet = 1000 // QUIET
        for _ in range(quiet):
            here.come("203.0.113.7", "ip")
        assert not here.census._changed
        here.come("203.0.113.7", "ip")

        async def told():
            return await here.totals() == {"ip 203.0.113.7": quiet + 1}

        await until(told)
        here.go("203.0.113.7", "ip")

        async def nothing():
            return await here.totals() == {}

        await until(nothing)
        here.go("203.0.113.7", "ip")
        assert not here.census._changed and here.census.elsewhere("ip", "203.0.113.7") == 0


@async_test
async def test_a_worker_whose_lease_had_ended_tells_everything_again(valkey_url, prefix):
    """Somebody else may have taken out a part of what it had."""
    node = Node(valkey_url, prefix, "uid", lease_s=0.01)
    node.come("ann"), node.come("bob")
    await node.census._call()
    redis = node.store.commands()
    await redis.hdel(node.store.keys.census, "user ann")
    await redis.hdel(node.store.keys.census_of("uid"), "user ann")
    await redis.zadd(node.store.keys.census_leases, {"uid": 1})
    for _ in range(2):
        await node.census._call()
    assert await node.totals() == {"user ann": 1, "user bob": 1}
    await redis.aclose()
    await node.census._redis.aclose()


@pytest.mark.expects_log
@async_test
async def test_without_redis_newcomers_stay_and_are_told_later(prefix):
    """Each worker goes by its own numbers; nothing piles up but the numbers."""
    with own_valkey() as valkey:
        async with nodes(valkey.url, prefix, 1) as [here]:
            await until(lambda: here.census._renew_at)
            valkey.stop()
            ones = [here.come("ann") for _ in range(5)]
            await until(lambda: here.census._changed and not here.census._newcomers)
            valkey.start()

            async def told():
                return await here.totals() == {"user ann": 5}

            await until(told)
            assert not any(one.closed for one in ones)


@async_test
async def test_what_waits_for_redis_is_bounded(valkey_url, prefix, monkeypatch):
    """Beyond, all is compared: who has gone meanwhile, who has come, and who has stayed."""
    monkeypatch.setattr(census, "MAX_CHANGED", 20)
    async with nodes(valkey_url, prefix, 1) as [here]:
        for key in ("gone away", "stayed", "more"):
            here.come(key)

        async def three():
            return await here.totals() == {"user gone away": 1, "user stayed": 1, "user more": 1}

        await until(three)
        # Without a moment for Redis, as where it is away.
        here.go("gone away")
        here.come("more")
        for number in range(50):
            here.come(f"{number}")
            here.go(f"{number}")
            assert len(here.census._changed) <= 20 and len(here.census._newcomers) <= 20
        assert here.census._overrun

        async def compared():
            return await here.totals() == {"user stayed": 1, "user more": 2}

        await until(compared)
        assert not here.census._overrun


@async_test
async def test_a_limit_of_nothing_tells_nothing(valkey_url, prefix):
    """0 is no limit."""
    node = Node(valkey_url, prefix, "uid", limits={"user": 0, "ip": 0})
    node.come("ann")
    assert not node.census.needed and not node.census._changed
    await node.census.close()


@async_test
async def test_a_limit_that_is_lowered_counts_those_who_are_here(valkey_url, prefix):
    """They stay; whoever comes on another worker is one too many."""
    async with nodes(valkey_url, prefix, limits={"user": 1000}) as (here, there):
        stay = [here.come("ann") for _ in range(3)]
        await until(lambda: here.idle)
        assert await here.totals() == {}, "so few of a thousand are kept quiet"
        for one in (here, there):
            one.census.retune({"user": 3})
        await until(lambda: here.idle)
        newcomer = there.come("ann")
        await until(lambda: newcomer.closed)
        assert newcomer.closed == [CLOSE_CONNECTION_LIMIT] and not any(one.closed for one in stay)


@async_test
async def test_a_limit_that_is_lifted_leaves_nothing_told(valkey_url, prefix):
    """What stood in Redis would count against them once there is a limit again."""
    async with nodes(valkey_url, prefix, number=1) as (here,):
        here.come("ann")
        await until(lambda: here.idle)
        assert await here.totals() == {"user ann": 1}
        here.census.retune({"user": 0})
        await until(lambda: here.idle)
        assert await here.totals() == {} and not here.census.needed
