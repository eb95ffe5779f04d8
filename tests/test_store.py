"""The way to Redis: addresses, keys, and clients that don't try twice."""

from __future__ import annotations

import asyncio

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError

from hub.errors import BrokerUnavailable
from hub.sections import RedisSettings
from hub.store import Endpoint, Keys, Store
from tests.chaos.proxy import Address, Proxy
from tests.chaos.stores import MASTER, Sentinel, Valkey
from tests.nodes import until
from tests.support import async_test


@pytest.mark.parametrize(
    ("url", "endpoint", "shown"),
    [
        ("redis://db:7000/2", Endpoint("", "db", 7000, False, "", "", "", 2), "db:7000"),
        ("redis://db", Endpoint("", "db", 6379, False, "", "", "", 0), "db:6379"),
        ("rediss://u:p%40@db:1?ssl_ca_certs=/ca", Endpoint("", "db", 1, True, "/ca", "u", "p@", 0), "db:1"),
        ("unix:///run/v.sock", Endpoint("/run/v.sock", "localhost", 6379, False, "", "", "", 0), "unix:/run/v.sock"),
    ],
)
@async_test
async def test_a_url_says_where_to_connect_and_hides_its_password(url, endpoint, shown):
    """Each form of URL gives the subscriber connection its address; the description has no credentials."""
    store = Store(RedisSettings(url=url), url)
    assert await store.endpoint() == endpoint
    assert store.describe() == shown


def test_keys_of_one_channel_or_namespace_share_its_hash_tag():
    """What one script touches lies on one node of a Cluster."""
    keys = Keys("p")
    assert keys.channel("a:b") == "p:pub:{a:b}"
    assert keys.last("ticker", "ticker:ACME") == "p:last:{ticker}:ACME"
    assert {keys.feed("t"), keys.lease("t"), keys.source("t")} == {"p:feed:{t}", "p:lease:{t}", "p:source:{t}"}


@async_test
async def test_a_refused_connection_fails_at_once():
    """No retries: a publish that is sent again could arrive twice, and a client must not wait."""
    store = Store(RedisSettings(), "redis://127.0.0.1:1")
    redis = store.commands()
    begun = asyncio.get_running_loop().time()
    with pytest.raises(RedisConnectionError):
        await redis.ping()
    assert asyncio.get_running_loop().time() - begun < 1.0
    await redis.aclose()


@async_test
async def test_a_reset_connection_fails_as_such(valkey_url):
    """As a RedisError, which callers expect, and not as uvloop's RuntimeError; the next command has a new one."""
    proxy = Proxy(Address(path=valkey_url.removeprefix("unix://")))
    await proxy.start()
    redis = Store(RedisSettings(), f"redis://127.0.0.1:{proxy.address.port}").commands()
    failures = []
    for _ in range(5):
        await redis.ping()
        proxy.reset()
        await until(lambda: proxy.count() == 0)
        try:
            await redis.ping()
        except RedisConnectionError as error:
            failures.append(error)
    assert failures
    assert await redis.ping()
    await redis.aclose()
    await proxy.close()


@async_test
async def test_a_new_primary_is_followed_while_the_old_one_lives(tmp_path):
    """The next command after `follow` goes to the primary that the Sentinel names, over a connection that was open."""
    old, new = Valkey(tmp_path / "old"), Valkey(tmp_path / "new")
    sentinel = Sentinel(tmp_path / "sentinel", old)
    try:
        for process in (old, new):
            process.start()
        new.follow(old.address, old)
        sentinel.start()
        store = Store(RedisSettings(sentinels=[f"127.0.0.1:{sentinel.port}"], master=MASTER), "")
        redis = store.commands()
        await store.follow()
        await redis.set("before", 1)
        sentinel.failover()
        await until(lambda: sentinel.primary_port() == new.port, 10)
        await store.follow()
        await redis.set("after", 1)
        assert (new.redis.exists("before"), new.redis.exists("after"), old.redis.exists("after")) == (1, 1, 0)
        sentinel.stop()
        await store.follow()  # nobody can be asked: the last answer holds
        assert await redis.exists("after")
        await redis.aclose()
    finally:
        for process in (sentinel, old, new):
            process.stop()


@async_test
async def test_sentinels_that_know_no_primary_are_said_so():
    """All Sentinels away: BrokerUnavailable names Sentinel; the description lists them."""
    settings = RedisSettings(sentinels=["127.0.0.1:1"], master="m")
    store = Store(settings, "")
    with pytest.raises(BrokerUnavailable, match="Sentinel"):
        await store.endpoint()
    assert store.describe() == "primary 'm' by Sentinel 127.0.0.1:1"


@async_test
async def test_commands_are_packed_as_redis_reads_them(valkey_url):
    """Names of two words, bytes that are not text, numbers, and what is larger than redis-py's buffer."""
    redis = Store(RedisSettings(), valkey_url).commands()
    values = [b"\x00\xff\r\n", "é".encode(), b"", b"x" * 100_000]
    digest = await redis.script_load("return ARGV")
    assert await redis.evalsha(digest, 0, *values, "é", 17, 1.5) == [*values, "é".encode(), b"17", b"1.5"]
    async with redis.pipeline(transaction=False) as pipeline:
        for value in values:
            pipeline.execute_command("ECHO", value)
        assert await pipeline.execute() == values
    await redis.aclose()
