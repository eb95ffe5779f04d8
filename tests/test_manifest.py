"""Manifests over a real Valkey: who tells of whose clients, and when nobody does."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest
from redis.asyncio import Redis

from hub.manifest import MAX_FIELDS, Entry, Manifest, unpack
from hub.sections import RedisSettings
from hub.store import Keys, Store
from tests.nodes import own_valkey
from tests.nodes import until as until_patiently
from tests.support import async_test

LEASE_S = 0.8
PAUSE_S = 0.4
"""A loop that has no time for so long is taken for a store that was away, which only postpones what is awaited."""
PATIENCE_S = 20.0


async def until(condition) -> None:
    await until_patiently(condition, PATIENCE_S)


class Worker:
    """One worker's manifest, and what it told and lost. here: its clients."""

    def __init__(self, url: str, prefix: str, lease_s: float = LEASE_S) -> None:
        self.told: list[Entry] = []
        self.lost = 0
        self.here: dict[str, Entry] = {}
        self.go = asyncio.Event()
        self.go.set()
        self.telling = 0
        self.manifest = Manifest(
            Store(RedisSettings(prefix=prefix), url),
            self.tell,
            lambda: self.here,
            self.here.get,
            self.on_lost,
            lease_s,
            PAUSE_S,
        )

    async def tell(self, entry: Entry) -> None:
        self.telling += 1
        await self.go.wait()
        self.told.append(entry)

    def on_lost(self) -> None:
        self.lost += 1

    async def enter(self, client: str, user: str = "ann", claims: bytes = b'{"a":1}') -> None:
        entry = self.here[client] = Entry(client, user, "/", claims)
        await self.manifest.enter(entry)

    async def die(self) -> None:
        """As by kill -9: nothing more is written."""
        for task in (self.manifest._runner, self.manifest._teller):
            if task is not None:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
        self.manifest._runner = None


@contextlib.asynccontextmanager
async def workers(url: str, prefix: str, count: int, lease_s: float = LEASE_S) -> AsyncIterator[list[Worker]]:
    """Some that hold their leases."""
    made = [Worker(url, prefix, lease_s) for _ in range(count)]
    for one in made:
        one.manifest.start()
    try:
        await until(lambda: all(not one.manifest._down for one in made))
        yield made
    finally:
        for one in made:
            one.go.set()
            await one.manifest.close()


def test_an_entry_is_read_as_it_was_packed():
    """By another worker."""
    entry = Entry("c1", "42", "/admin", b'{"user":"42","role":[1,"x"]}')
    assert unpack(b"c1", entry.pack()) == entry


@async_test
async def test_a_dead_workers_clients_are_told_of_once(valkey_url, prefix):
    """By one of the others, each once; not those who had gone before, nor anybody else's; nothing is left behind."""
    async with workers(valkey_url, prefix, 3) as (dead, one, other):
        for number in range(MAX_FIELDS + 100):
            await asyncio.gather(*(dead.enter(f"c{number}.{i}") for i in range(2)))
            dead.manifest.exit(f"c{number}.0")
        await one.enter("alive")
        await until(lambda: not dead.manifest._changes)
        uid = dead.manifest.uid
        await dead.die()
        expected = {f"c{number}.1" for number in range(MAX_FIELDS + 100)}
        await until(lambda: len(one.told) + len(other.told) >= len(expected))
        redis = Redis.from_url(valkey_url)
        keys = Keys(prefix)
        await until(lambda: _gone(redis, keys.manifest(uid)))
        told = [entry.client for entry in one.told + other.told]
        assert sorted(told) == sorted(expected)
        assert {entry.claims for entry in one.told + other.told} == {b'{"a":1}'}
        members = [member.decode() for member in await redis.zrange(keys.manifests, 0, -1)]
        assert sorted(members) == sorted(["#born", "#since", one.manifest.uid, other.manifest.uid])
        assert (one.lost, other.lost) == (0, 0)
        await redis.aclose()


async def _gone(redis: Redis, key: str) -> bool:
    return not await redis.exists(key)


@async_test
async def test_the_end_of_the_one_who_tells_is_survived(valkey_url, prefix):
    """Those of whom nobody has heard yet are told of by the next one; so are its own clients."""
    async with workers(valkey_url, prefix, 3) as (dead, first, last):
        await dead.enter("c1")
        await first.enter("c2")
        last.manifest._resting = True
        first.go.clear()
        await dead.die()
        await until(lambda: first.telling)
        last.manifest._resting = False
        await first.die()
        await until(lambda: {entry.client for entry in last.told} == {"c1", "c2"})
        assert first.told == []


@async_test
async def test_whoever_comes_when_a_worker_is_ready_is_noted_before_it_is_told(valkey_url, prefix):
    """A kill right behind that loses nobody's end; without Redis a worker is ready all the same."""
    worker, keys = Worker(valkey_url, prefix), Keys(prefix)
    worker.manifest.start()
    await worker.manifest.ready(PATIENCE_S)
    await worker.enter("c1")
    async with Redis.from_url(valkey_url) as redis:
        assert await redis.hkeys(keys.manifest(worker.manifest.uid)) == [b"c1"]
    await worker.die()
    away = Worker("unix:///nowhere.sock", prefix)
    await away.manifest.ready(0.01)
    await away.enter("c2")


@async_test
async def test_an_orderly_end_leaves_nothing_or_hands_it_on(valkey_url, prefix):
    """Without waiting for the lease: a long one is none's hindrance."""
    async with workers(valkey_url, prefix, 2, lease_s=2.0) as (one, other):
        await one.enter("told")
        one.manifest.exit("told")
        await one.enter("not told")
        ended = asyncio.get_running_loop().time()
        await one.manifest.close()
        await until(lambda: other.told)
        assert [entry.client for entry in other.told] == ["not told"]
        one.manifest = other.manifest  # closed once
        assert asyncio.get_running_loop().time() - ended < 5


@async_test
async def test_who_was_taken_for_dead_sends_its_clients_away(valkey_url, prefix, caplog):
    """Hung for longer than its lease while another one was not; its clients are on a new list from then on."""
    async with workers(valkey_url, prefix, 2) as (hung, other):
        await hung.enter("c1")
        runner = hung.manifest._runner
        uid = hung.manifest.uid
        await hung.die()
        await until(lambda: other.told)
        assert runner.cancelled()
        hung.manifest.start()
        await until(lambda: hung.lost)
        assert hung.manifest.uid != uid
        await until(lambda: not hung.manifest._again and not hung.manifest._changes)
        await hung.die()
        await until(lambda: len(other.told) == 2)
        assert [entry.client for entry in other.told] == ["c1", "c1"]
    assert "took this worker for dead" in caplog.text
    caplog.clear()


@pytest.mark.expects_log
@async_test
async def test_without_redis_nobody_is_dead_and_nobody_waits(prefix):
    """After an outage that outlasts all leases everybody goes on; what a new store lost is written again."""
    with own_valkey() as valkey:
        async with workers(valkey.url, prefix, 2) as (one, other):
            await one.enter("c1")
            valkey.stop()
            await until(lambda: one.manifest._down and other.manifest._down)
            await one.enter("c2")
            one.manifest.exit("c1")
            del one.here["c1"]
            await asyncio.sleep(2 * LEASE_S)  # longer than any lease: there is no event to wait for
            valkey.start()
            await until(lambda: not one.manifest._down and not one.manifest._changes and not one.manifest._again)
            await until(lambda: not other.manifest._down)
            assert (one.lost, other.lost, one.told, other.told) == (0, 0, [], [])
            await one.die()
            await until(lambda: other.told)
            assert [entry.client for entry in other.told] == ["c2"]


@async_test
async def test_after_a_pause_of_all_everybody_has_a_whole_lease(valkey_url, prefix):
    """As when Redis hung: whoever renews first takes nobody for dead who comes within a lease; then, who does not."""
    async with workers(valkey_url, prefix, 3) as (first, late, dead):
        await late.enter("late")
        await dead.enter("dead")
        for one in (first, late, dead):
            await one.die()
        await asyncio.sleep(2 * LEASE_S)  # all leases have ended; there is no event to wait for
        first.manifest.start()
        await until(lambda: not first.manifest._down and first.manifest._identity)
        await asyncio.sleep(LEASE_S / 4)  # some renewals of the first
        late.manifest.start()
        await until(lambda: first.told or late.told)
        assert [entry.client for entry in first.told + late.told] == ["dead"]
        assert (first.lost, late.lost) == (0, 0)


@pytest.mark.expects_log
@async_test
async def test_what_redis_did_not_take_is_written_again(valkey_url, prefix):
    """Those who came and those who went; what was noted since is newer."""
    async with workers(valkey_url, prefix, 1) as (one,):
        await one.enter("goes")
        manifest = one.manifest
        execute, failed = manifest._scripts.execute, []

        async def failing(redis, commands):
            if commands[0][0] == "EVALSHA" or failed:
                return await execute(redis, commands)
            failed.append(commands)
            manifest.exit("came and went")
            raise ConnectionError("cut")

        manifest._scripts.execute = failing

        async def goes() -> None:
            manifest.exit("goes")

        await asyncio.gather(one.enter("comes"), one.enter("came and went"), goes())
        await until(lambda: failed and not manifest._changes and not manifest._down)
        redis = Redis.from_url(valkey_url)
        assert await redis.hkeys(Keys(prefix).manifest(manifest.uid)) == [b"comes"]
        await redis.aclose()
