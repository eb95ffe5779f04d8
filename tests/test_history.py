"""What a channel keeps, read in every way, one channel or many; and the probe of the store."""

from __future__ import annotations

import pytest
from redis.asyncio import Redis

from hub.channels import Namespace
from hub.errors import BrokerUnavailable
from hub.history import ALL, READS_AT_ONCE, Asked, History, Page
from hub.sections import RedisSettings
from hub.store import Store
from tests.stores import STREAM, Link, link
from tests.support import async_test

KEPT = Namespace(mode="stream", history_size=5)


async def fill(one: Link, count: int, channel: str = "c") -> str:
    """Publish `count` to a channel that keeps 5; returns its epoch."""
    for _ in range(count):
        receipt = await one.publish(channel, rules=KEPT)
    return receipt.epoch


@pytest.mark.parametrize(
    ("since", "limit", "reverse", "found"),
    [
        (None, 0, False, []),
        (None, 0, True, []),
        (None, ALL, False, [4, 5, 6, 7, 8]),
        (None, ALL, True, [8, 7, 6, 5, 4]),
        (None, 2, False, [4, 5]),
        (None, 2, True, [8, 7]),
        (0, ALL, False, [4, 5, 6, 7, 8]),
        (0, ALL, True, []),
        (1, ALL, True, []),
        (6, ALL, False, [7, 8]),
        (6, ALL, True, [5, 4]),
        (6, 1, False, [7]),
        (6, 1, True, [5]),
        (8, ALL, False, []),
        (9, ALL, True, [8, 7, 6, 5, 4]),
        (2**53 - 1, ALL, False, []),
        (3, 1000, False, [4, 5, 6, 7, 8]),
    ],
)
def test_a_read_finds_what_was_asked_for(valkey_url, prefix, since, limit, reverse, found):
    """Of the offsets 1 to 8 the newest 5 are kept; `since` itself is never among what comes."""

    @async_test
    async def read() -> None:
        async with link(valkey_url, prefix) as one:
            epoch = await fill(one, 8)
            page = await one.history.read("c", KEPT, since, limit, reverse)
            assert page == Page(epoch, 8, [(offset, b'{"offset":%d,"data":"x"}' % offset) for offset in found])

    read()


@async_test
async def test_the_newest_come_oldest_first(valkey_url, prefix):
    """What a late joiner is shown."""
    async with link(valkey_url, prefix) as one:
        await fill(one, 8)
        page = await one.history.newest("c", KEPT, 3)
        assert (page.offset, [offset for offset, _ in page.publications]) == (8, [6, 7, 8])


@async_test
async def test_a_channel_that_nobody_has_used_has_an_epoch_from_then_on(valkey_url, prefix):
    """Who reads first begins it, and the first publication belongs to it."""
    async with link(valkey_url, prefix) as one:
        page = await one.history.read("c", STREAM)
        assert page.epoch and page[1:] == (0, [])
        assert (await one.publish("c")).epoch == page.epoch == (await one.history.read("c", STREAM)).epoch


@async_test
async def test_many_channels_are_read_in_their_order(valkey_url, prefix):
    """More than one round trip of them, each with its own bounds."""
    async with link(valkey_url, prefix) as one:
        await fill(one, 3, "a")
        await fill(one, 2, "b")
        pages = await one.history.read_many([Asked("a", KEPT, 1, ALL), Asked("b", KEPT, 0, 1), Asked("new", KEPT)])
        assert [(page.offset, [offset for offset, _ in page.publications]) for page in pages] == [
            (3, [2, 3]),
            (2, [1]),
            (0, []),
        ]
        channels = ["a", *(f"n{i}" for i in range(READS_AT_ONCE)), "b"]
        pages = await one.history.read_many([Asked(channel, KEPT) for channel in channels])
        assert [page.offset for page in pages] == [3, *[0] * READS_AT_ONCE, 2]
        assert len({page.epoch for page in pages}) == len(channels)
        assert await one.history.read_many([]) == []


@async_test
async def test_what_is_removed_leaves_its_position(valkey_url, prefix):
    """Publications go, epoch and offset stay, the next one is numbered on."""
    async with link(valkey_url, prefix) as one:
        epoch = await fill(one, 3)
        await one.history.remove("c", KEPT)
        assert await one.history.read("c", KEPT, limit=ALL) == Page(epoch, 3, [])
        assert (await one.publish("c", rules=KEPT)).offset == 4


@pytest.mark.parametrize(
    ("most_bytes", "newest", "limit", "found"),
    [
        (1, False, ALL, [1]),
        (3 * 24, False, ALL, [1, 2, 3]),
        (4 * 24 - 1, True, ALL, [38, 39, 40]),
        (20 * 24, False, 30, [*range(1, 21)]),
        (20 * 24, True, 18, [*range(23, 41)]),
        (20 * 24, False, 0, []),
        (10**9, False, ALL, [*range(1, 41)]),
        (10**9, True, 32, [*range(9, 41)]),
    ],
)
@async_test
async def test_a_page_ends_where_it_would_be_too_large(most_bytes, newest, limit, found, valkey_url, prefix):
    """From where it begins, with one publication whatever its size."""
    async with link(valkey_url, prefix) as one:
        rules = Namespace(mode="stream")
        for _ in range(40):
            await one.publish("c", rules=rules)  # 24 bytes each, those to 9 one less
        asked = Asked("c", rules, None, limit, newest, most_bytes)
        (page,) = await one.history.read_many([asked])
        assert ([offset for offset, _ in page.publications], page.offset) == (found, 40)


@async_test
async def test_a_probe_comes_back_on_its_channel_with_the_generation(valkey_url, prefix):
    """The nonce arrives where it was sent; the token is the same until the store's identity changes."""
    async with link(valkey_url, prefix) as one, Redis.from_url(valkey_url) as redis, redis.pubsub() as ear:
        await ear.subscribe(f"{prefix}:loop")
        await ear.get_message(timeout=5)
        token = await one.history.probe(f"{prefix}:loop", "n-1")
        assert (await ear.get_message(timeout=5))["data"] == b"n-1"
        assert await one.history.probe(f"{prefix}:loop", "n-2") == token == "1.n-1"
        await redis.hset(one.store.keys.generation, "identity", "gone")
        assert await one.history.probe(f"{prefix}:loop", "n-3") == "2.n-3"


@async_test
async def test_without_redis_or_with_a_wrong_key_every_read_is_unavailable(valkey_url, prefix):
    """Never an empty page, and never an exception that the caller does not know."""
    history = History(Store(RedisSettings(prefix=prefix), "unix:///nonexistent/valkey.sock"))
    for asked in (
        history.read("c", STREAM),
        history.read_many([Asked("c", STREAM)]),
        history.newest("c", STREAM, 1),
        history.remove("c", STREAM),
        history.probe("loop", "n"),
    ):
        with pytest.raises(BrokerUnavailable, match="Redis at unix:/nonexistent"):
            await asked
    await history.close()
    async with link(valkey_url, prefix) as one, Redis.from_url(valkey_url) as redis:
        await redis.set(one.store.keys.meta("bad"), "no hash")
        with pytest.raises(BrokerUnavailable, match="wrong kind"):
            await one.history.read("bad", STREAM)


@async_test
async def test_a_read_that_fails_costs_no_other_its_page(valkey_url, prefix):
    """One channel's key is something else: its own answer says so, and who reads others goes on."""
    async with link(valkey_url, prefix) as one, Redis.from_url(valkey_url) as redis:
        await redis.set(one.store.keys.meta("bad"), "no hash")
        good, bad, other = await one.history.read_many([Asked(name, STREAM) for name in ("good", "bad", "other")])
        assert good.offset == other.offset == 0 and good.epoch and other.epoch
        assert isinstance(bad, BrokerUnavailable) and "wrong kind" in str(bad)
