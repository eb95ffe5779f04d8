"""Storefacts: what a real Valkey tells, what one tells that forbids questions, and what one that is away does."""

from __future__ import annotations

import json
import re
import time
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from redis import Redis as SyncRedis
from redis.asyncio import Redis

import hub
from hub.config import RedisSettings
from hub.store import Store
from hub.storefacts import COMMANDS, StoreFacts, ask

from .hubs import HubProcess
from .nodes import own_valkey
from .support import async_test

LUA = Path(hub.__file__).parent / "lua"


@asynccontextmanager
async def valkey() -> AsyncIterator[tuple[str, Redis]]:
    """One of this test's own, whose settings it may change."""
    with own_valkey() as own:
        redis = Redis.from_url(own.url)
        try:
            yield own.url, redis
        finally:
            await redis.aclose()


async def facts_of(url: str) -> StoreFacts:
    return await ask(Store(RedisSettings(prefix="hub"), url), embedded=False, local=True)


def test_the_commands_of_all_scripts_are_there() -> None:
    """A script that runs another one needs the right to it."""
    texts = "".join(path.read_text() for path in sorted(LUA.glob("*.lua")))
    run = set(re.findall(r"""redis\.p?call\(\s*['"](\w+)['"]""", texts))
    assert len(run) > 30
    assert {name.upper() for name in run} - COMMANDS.keys() == set()


def test_the_commands_of_a_hub_that_runs_are_there() -> None:
    """Those of its rooms besides: leases, registry, subscriptions, the ticker with its bars, a publication."""
    namespaces = {"bars": {"mode": "stream", "subscribe": "anyone"}, "room": {"mode": "stream", "presence": "anyone"}}
    with own_valkey() as own, SyncRedis.from_url(own.url) as redis:
        # What redis-py asks when it connects, and what this test does.
        redis.config_resetstat()
        ticker = {"source": "stream", "bars": ["1s"]}
        settings = {"redis": {"url": own.url}, "namespaces": namespaces, "ticker": ticker, "workers": 1}
        with HubProcess(settings) as hub:
            for method, params in (
                ("publish", {"channel": "room:a", "data": 1}),
                ("history", {"channel": "room:a", "limit": 5}),
                ("channels", {}),
                ("info", {}),
                ("presence_stats", {"channel": "room:a"}),
            ):
                assert call_api(hub, method, params).get("result") is not None
            deadline = time.monotonic() + 20
            while "XREAD" not in commands_run(redis) and time.monotonic() < deadline:
                time.sleep(0.02)  # nothing else says that the leader has begun to read its source
        run = commands_run(redis)
    assert {"EVALSHA", "SUBSCRIBE", "PUBLISH", "XADD", "XREAD", "BLPOP"} <= run
    assert run - COMMANDS.keys() - {"CLIENT", "CONFIG", "HELLO"} == set()


def commands_run(redis: SyncRedis) -> set[str]:
    return {name.removeprefix("cmdstat_").split("|")[0].upper() for name in redis.info("commandstats")}


def call_api(hub: HubProcess, method: str, params: dict) -> dict:
    headers = {"X-API-Key": hub.key, "Content-Type": "application/json"}
    request = urllib.request.Request(f"{hub.api_url}/{method}", json.dumps(params).encode(), headers)
    with urllib.request.urlopen(request, timeout=10) as answer:
        return json.load(answer)


@async_test
async def test_a_store_tells_all(tmp_path: Path) -> None:
    """And nothing is written there, nor is any command of the table unknown or of another form to it."""
    async with valkey() as (url, redis):
        await redis.config_set("maxmemory", "100mb")
        found = await facts_of(url)
        assert (found.asked, found.problem, found.server) == (True, "", "valkey")
        assert re.fullmatch(r"\d+\.\d+\.\d+", found.version or "")
        assert (found.append_only, found.snapshots, found.policy) == (False, False, "noeviction")
        assert (found.maxmemory, found.max_clients) == (100 * 2**20, 10_000)
        assert found.pubsub_limit == (33_554_432, 8_388_608, 60)
        assert (found.password, found.denied) == (False, ())
        assert found.ping_ms is not None and 0 < found.ping_ms < 1000
        assert found.used is not None and found.used > 0
        assert await redis.dbsize() == 0


@async_test
async def test_what_the_user_may_not_do_is_named() -> None:
    """By command, and by the keys and channels that are not the hub's."""
    async with valkey() as (url, redis):
        base = ["on", "nopass", "+@all"]
        await redis.execute_command("ACL", "SETUSER", "default", "on", ">secret")
        await redis.execute_command("ACL", "SETUSER", "some", *base, "~hub:*", "&hub:*", "-publish", "-xadd")
        await redis.execute_command("ACL", "SETUSER", "other", *base, "~other:*", "&other:*")
        users = {name: await facts_of(url.replace("unix://", f"unix://{name}:x@")) for name in ("some", "other")}
        assert users["some"].denied == ("PUBLISH", "XADD") and users["some"].password is True
        denied = users["other"].denied
        assert denied is not None and {"GET", "XADD", "PUBLISH", "SUBSCRIBE", "EVALSHA"} <= set(denied)
        assert not {"PING", "TIME", "INFO"} & set(denied)


@async_test
async def test_what_it_may_not_be_asked_is_unknown() -> None:
    """As with a rented one: the rest is there all the same."""
    async with valkey() as (url, redis):
        acl = ["SETUSER", "tenant", "on", "nopass", "~*", "&*", "+@all", "-config", "-acl"]
        await redis.execute_command("ACL", *acl)
        found = await facts_of(url.replace("unix://", "unix://tenant:x@"))
        assert (found.snapshots, found.pubsub_limit, found.password, found.denied) == (None, None, None, None)
        assert (found.server, found.append_only, found.policy) == ("valkey", False, "noeviction")


@pytest.mark.parametrize("url", ["redis://127.0.0.1:1", "unix:///nowhere/valkey.sock"])
@async_test
async def test_a_store_that_is_away_is_a_fact(url: str) -> None:
    found = await facts_of(url)
    assert found.asked and found.problem and found.version is None


@async_test
async def test_sentinels_that_are_away_are_a_fact() -> None:
    """In a few words."""
    store = Store(RedisSettings(sentinels=["127.0.0.1:1"], master="m"), "")
    found = await ask(store, embedded=False, local=False)
    assert found.problem == "No master found for 'm'"


@async_test
async def test_a_wrong_password_is_a_fact_without_the_password() -> None:
    async with valkey() as (url, redis):
        await redis.execute_command("ACL", "SETUSER", "default", "on", ">secret", "resetpass", ">right")
        found = await facts_of(url.replace("unix://", "unix://default:hunter2@"))
        assert found.problem and "hunter2" not in repr(found)
