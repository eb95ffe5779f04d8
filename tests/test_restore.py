"""Restore: what was in one Redis is in another, and every position is judged by what the backup has."""

from __future__ import annotations

import io
import time

import pytest
from redis.asyncio import Redis

from hub import restore as room
from hub.archive import Reader
from hub.channels import Namespace
from hub.errors import ConfigError
from hub.history import ALL
from hub.message import PublishOptions
from hub.position import Position, survives
from hub.restore import restore
from hub.store import Keys

from .stores import BINARIES, Link, Server, link, server
from .support import async_test
from .test_backup import BOX, connected, put_channel, put_mailbox, records, saved

LONG = Namespace(mode="stream", history_size=10_000)


@pytest.fixture(scope="module", params=BINARIES)
def either(request: pytest.FixtureRequest):
    """The newest and the oldest server that a hub may stand on."""
    with server(request.param) as one:
        yield one


async def put_back(redis: Redis, keys: Keys, data: bytes, **options: object) -> None:
    await restore(redis, keys, Reader(io.BytesIO(data)), **options)


async def everything(redis: Redis, prefix: str) -> dict[str, object]:
    """All keys of a prefix with their values, without times to live."""
    found = {}
    async for name in redis.scan_iter(f"{prefix}:*"):
        kind = await redis.type(name)
        own = name.decode().removeprefix(prefix)
        if kind == b"hash":
            found[own] = await redis.hgetall(name)
        elif kind == b"zset":
            found[own] = await redis.zrange(name, 0, -1, withscores=True)
        elif kind == b"stream":
            found[own] = await redis.xrange(name)
        else:
            found[own] = await redis.get(name)
    return found


# There and back


@pytest.mark.parametrize("binary", BINARIES)
def test_another_server_has_the_same_afterwards(either: Server, binary, prefix):
    """Valkey or Redis, from either to either, under another prefix: publications, messages, dead letters, totals."""

    @async_test
    async def check() -> None:
        keys, others = Keys(prefix), Keys(f"{prefix}-2")
        async with connected(either.url) as redis:
            await put_channel(redis, keys, "chat:a", range(3, 6), b"\xff\x00\r\n")
            await put_channel(redis, keys, "chat:b", range(0))
            for user in (BOX, "inbox:#43"):
                await put_mailbox(redis, keys, user, 3)
            data = await saved(redis, keys)
            before = await everything(redis, prefix)
        with server(binary) as target:
            async with connected(target.url) as redis:
                await put_back(redis, others, data)
                after = await everything(redis, others.prefix)
        assert after.pop(":generation") == {b"identity": b"", b"number": b"0"}
        for channel in ("chat:a", "chat:b"):
            assert [after[f":meta:{{{channel}}}"].pop(field) for field in (b"g", b"i")] == [b"", b""]
            assert before[f":meta:{{{channel}}}"].pop(b"g") == b"4.token"
        # Due now: whoever looks finds out when next.
        assert {score for _, score in after.pop(":due:{inbox}")} == {0.0}
        assert len(before.pop(":due:{inbox}")) == 2
        assert after == before

    check()


@async_test
async def test_what_hubs_publish_is_read_after_a_restore(either, prefix):
    """Through the doors of a hub: history with its offsets, the version guard, and the next offset."""
    rules = Namespace(mode="stream", history_size=3)
    async with link(either.url, prefix) as one, connected(either.url) as redis:
        for number in range(5):
            await one.publish("chat:a", str(number), rules, PublishOptions(version=number))
        before = await one.history.read("chat:a", rules, limit=ALL)
        data = await saved(redis, one.store.keys)
        await redis.flushall()
        await put_back(redis, one.store.keys, data)
        after = await one.history.read("chat:a", rules, limit=ALL)
        assert (after.offset, after.publications) == (5, before.publications)
        assert after.epoch.startswith(f"{before.epoch}@5,2.")
        assert (await one.publish("chat:a", "old", rules, PublishOptions(version=4))).offset == 5
        assert (await one.publish("chat:a", "new", rules, PublishOptions(version=5))).offset == 6


@async_test
async def test_times_to_live_go_on_from_where_they_were(either, prefix):
    """What had 100 s left when the backup was made has them again; what had none has none."""
    keys = Keys(prefix)
    async with connected(either.url) as redis:
        await put_channel(redis, keys, "c", range(1, 3))
        await put_channel(redis, keys, "d", range(1, 3))
        await put_mailbox(redis, keys)
        timed = {keys.stream("c"): 100_000, keys.meta("c"): 200_000, f"{prefix}:mail:{{{BOX}}}": 300_000}
        for name, ttl_ms in timed.items():
            await redis.pexpire(name, ttl_ms)
        data = await saved(redis, keys)
        await put_back(redis, keys, data, replace=True)
        for name, ttl_ms in timed.items():
            assert ttl_ms - 10_000 < await redis.pttl(name) <= ttl_ms
        assert [await redis.pttl(name) for name in (keys.stream("d"), keys.meta("d"))] == [-1, -1]


@async_test
async def test_a_long_channel_is_there_as_a_whole(either, prefix, monkeypatch):
    """Filled aside, with its time to live or without; a live publisher never meets a part of it."""
    monkeypatch.setattr("hub.backup.PAGE_BYTES", 1000)
    monkeypatch.setattr(room, "BATCH_COMMANDS", 50)
    keys = Keys(prefix)
    async with connected(either.url) as redis:
        for channel, ttl_ms in (("c", 100_000), ("d", None)):
            await put_channel(redis, keys, channel, range(7, 1007), b"x" * 50)
            if ttl_ms:
                await redis.pexpire(keys.stream(channel), ttl_ms)
        data = await saved(redis, keys)
        before = await everything(redis, prefix)
        await put_back(redis, keys, data, replace=True)
        after = await everything(redis, prefix)
        assert 90_000 < await redis.pttl(keys.stream("c")) <= 100_000
        assert await redis.pttl(keys.stream("d")) == -1
    del after[":generation"]
    for found in (before, after):
        for channel in ("c", "d"):
            for field in (b"g", b"i"):
                found[f":meta:{{{channel}}}"].pop(field, None)
    assert after == before


@async_test
async def test_a_restore_that_breaks_off_leaves_nothing_half_filled(valkey_url, prefix, monkeypatch):
    """The channel is not there; what was collected aside vanishes by itself, or with the next restore."""
    monkeypatch.setattr("hub.backup.PAGE_BYTES", 1000)
    monkeypatch.setattr(room, "BATCH_COMMANDS", 50)
    keys = Keys(prefix)
    async with connected(valkey_url) as redis:
        await put_channel(redis, keys, "c", range(1, 1001), b"x" * 50)
        data = await saved(redis, keys)

        def break_off() -> None:
            nonlocal left
            left -= 1
            if not left:
                raise ConnectionError

        left = 20
        with pytest.raises(ConnectionError):
            await put_back(redis, keys, data, replace=True, on_progress=break_off)
        assert not await redis.exists(keys.stream("c"), keys.meta("c"))
        assert 0 < await redis.ttl(keys.restored("c")) <= room.FILLING_TTL_S
        await put_back(redis, keys, data)
        assert await redis.xlen(keys.stream("c")) == 1000
        assert not await redis.exists(keys.restored("c"))


@async_test
async def test_ten_thousand_channels_are_quick(either, prefix):
    """Out and in, well under the minute that a test may take."""
    keys = Keys(prefix)
    async with connected(either.url) as redis:
        async with redis.pipeline(transaction=False) as pipeline:
            for number in range(10_000):
                for offset in range(1, 6):
                    pipeline.xadd(keys.stream(f"chat:{number}"), {"b": b"x" * 100}, id=f"{offset}-0")
                pipeline.hset(keys.meta(f"chat:{number}"), mapping={"o": 5, "e": "1.a", "g": "1.b"})
            await pipeline.execute()
        began_s = time.monotonic()
        data = await saved(redis, keys)
        await put_back(redis, keys, data, replace=True)
        assert time.monotonic() - began_s < 30.0
        again = await records(redis, keys)
    assert len(again) == 10_000
    assert sum(len(each.publications) for each in again) == 50_000


# Positions


async def judged(one: Link, position: Position, channel: str = "chat:a") -> bool:
    page = await one.history.read(channel, LONG)
    return survives(position, page.epoch, page.offset)


@pytest.mark.parametrize("replace", [True, False], ids=["replace", "flushed"])
def test_positions_within_the_backup_survive_and_those_beyond_it_do_not(either, prefix, replace):
    """Exactly: with offset 20 in the backup and 30 published, 20 survives and 21 does not, now and after more came."""

    @async_test
    async def check() -> None:
        async with link(either.url, prefix) as one, connected(either.url) as redis:
            for _ in range(20):
                await one.publish("chat:a", rules=LONG)
            data = await saved(redis, one.store.keys)
            for _ in range(10):
                receipt = await one.publish("chat:a", rules=LONG)
            unknown = await one.publish("chat:b", rules=LONG)
            if not replace:
                await redis.flushall()
            await put_back(redis, one.store.keys, data, replace=replace)
            for _ in range(2):
                assert [await judged(one, Position(receipt.epoch, n)) for n in (0, 1, 20, 21, 30)] == [
                    True,
                    True,
                    True,
                    False,
                    False,
                ]
                assert not await judged(one, Position(unknown.epoch, 1), "chat:b")
                for _ in range(15):
                    after = await one.publish("chat:a", rules=LONG)
            assert await judged(one, Position(after.epoch, after.offset))

    check()


@async_test
async def test_the_same_backup_twice_and_what_was_published_between(either, prefix):
    """The lineages part at the same offset, and don't meet again."""
    async with link(either.url, prefix) as one, connected(either.url) as redis:
        first = await one.publish("chat:a", rules=LONG)
        data = await saved(redis, one.store.keys)
        await put_back(redis, one.store.keys, data, replace=True)
        between = await one.publish("chat:a", "between", LONG)
        await put_back(redis, one.store.keys, data, replace=True)
        again = await one.publish("chat:a", "again", LONG)
        assert between.offset == again.offset == 2
        assert not await judged(one, Position(between.epoch, 2))
        assert await judged(one, Position(between.epoch, 1))
        assert await judged(one, Position(first.epoch, 1))
        assert await judged(one, Position(again.epoch, 2))


@async_test
async def test_each_worker_hears_of_a_new_generation(either, prefix):
    """The probe of the store gives another token, whose number goes on from the larger one, here or in the backup."""
    async with link(either.url, prefix) as one, connected(either.url) as redis:
        await one.publish("chat:a", rules=LONG)
        data = await saved(redis, one.store.keys)
        before = await one.history.probe("loop", "n1")
        await put_back(redis, one.store.keys, data, replace=True)
        after = await one.history.probe("loop", "n2")
        assert (before.partition(".")[0], after.partition(".")[0]) == ("1", "2")
        await put_back(redis, one.store.keys, data, replace=True)
        assert (await one.history.probe("loop", "n3")).startswith("3.")
        await redis.flushall()
        # The archive's number is read from its header: as if made in the fourth generation.
        reader = Reader(io.BytesIO(data))
        reader.header = reader.header._replace(generation=4)
        await restore(redis, one.store.keys, reader)
        assert (await one.history.probe("loop", "n4")).startswith("5.")


@async_test
async def test_generations_end_before_and_after(valkey_url, prefix, monkeypatch):
    """Before: a restore that breaks off has been heard of. After: so has the rest, by who asked in the middle."""
    write = room._write_all
    tokens = []

    async def ask_and_write(*arguments: object) -> None:
        tokens.append(await one.history.probe("loop", "n2"))
        await write(*arguments)

    monkeypatch.setattr(room, "_write_all", ask_and_write)
    async with link(valkey_url, prefix) as one, connected(valkey_url) as redis:
        tokens.append(await one.history.probe("loop", "n1"))
        await put_back(redis, one.store.keys, await saved(redis, one.store.keys), replace=True)
        tokens.append(await one.history.probe("loop", "n3"))
    assert len(set(tokens)) == 3


@async_test
async def test_a_clean_stop_does_not_vouch_for_what_was_replaced(valkey_url, prefix):
    """The mark of a planned stop goes with the record that it was part of."""
    async with link(valkey_url, prefix) as one, connected(valkey_url) as redis:
        keys = one.store.keys
        await one.publish("chat:a", rules=LONG)
        data = await saved(redis, keys)
        await redis.hset(keys.generation, "clean", await redis.hget(keys.generation, "identity"))
        before = await redis.hget(keys.generation, "token")
        await put_back(redis, keys, data, replace=True)
        assert (await one.history.probe("loop", "n")).encode() != before


@async_test
async def test_a_message_whose_publication_was_replaced_is_no_duplicate(valkey_url, prefix):
    """Its idempotency key goes with it: a retry publishes it again."""
    options = PublishOptions(idempotency_key="k")
    async with link(valkey_url, prefix) as one, connected(valkey_url) as redis:
        await one.publish("chat:a", rules=LONG)
        data = await saved(redis, one.store.keys)
        assert (await one.publish("chat:a", "two", LONG, options)).offset == 2
        assert (await one.publish("chat:a", "two", LONG, options)).duplicate
        await put_back(redis, one.store.keys, data, replace=True)
        again = await one.publish("chat:a", "two", LONG, options)
        assert (again.offset, again.duplicate) == (2, False)


# What is there before


@pytest.mark.parametrize("kind", ["meta:{c}", "stream:{c}", "mail:{inbox:#1}", "dead"])
def test_what_is_there_is_not_mixed_with_a_backup(valkey_url, prefix, kind):
    """Refused with its name, and nothing is changed."""

    @async_test
    async def check() -> None:
        keys = Keys(prefix)
        async with connected(valkey_url) as redis:
            await put_channel(redis, keys, "chat:a", range(1, 3))
            await put_mailbox(redis, keys)
            data = await saved(redis, keys)
            await redis.delete(*[name async for name in redis.scan_iter(f"{prefix}:*")])
            await redis.hset(f"{prefix}:{kind}", "a", "b")
            await redis.hset(keys.generation, "number", "3")
            before = await everything(redis, prefix)
            with pytest.raises(ConfigError, match=f"found {prefix}:{kind} in Redis; allowed: nothing"):
                await put_back(redis, keys, data)
            assert await everything(redis, prefix) == before

    check()


@async_test
async def test_a_store_that_was_only_used_is_empty_enough(valkey_url, prefix):
    """Totals of emptied mailboxes, idempotency keys and latest values are in nobody's way; other prefixes neither."""
    keys = Keys(prefix)
    async with connected(valkey_url) as redis:
        await put_channel(redis, keys, "chat:a", range(1, 3))
        data = await saved(redis, keys)
        await redis.delete(keys.meta("chat:a"), keys.stream("chat:a"))
        await redis.hset(f"{prefix}:mailboxes", "bytes", 0)
        await redis.set(keys.once("chat:a", "k"), "")
        await redis.set(keys.last("ticker", "ticker:A"), "x")
        await put_channel(redis, Keys(f"{prefix}x"), "chat:a", range(1, 3))
        await put_back(redis, keys, data)
        assert await redis.xlen(keys.stream("chat:a")) == 2


@async_test
async def test_a_replacement_leaves_what_is_not_its_own(valkey_url, prefix):
    """Channels and mailboxes that the backup lacks are gone; latest values, leases and other prefixes stay."""
    keys, other = Keys(prefix), Keys(f"{prefix}x")
    async with connected(valkey_url) as redis:
        await put_channel(redis, keys, "chat:a", range(1, 3))
        data = await saved(redis, keys)
        await put_channel(redis, keys, "chat:b", range(1, 3))
        await put_channel(redis, other, "chat:b", range(1, 3))
        await put_mailbox(redis, keys)
        await redis.set(keys.last("ticker", "ticker:A"), "x")
        await redis.set(keys.lease("ticker"), "x")
        await put_back(redis, keys, data, replace=True)
        found = await everything(redis, prefix)
        assert sorted(found) == [
            ":generation",
            ":last:{ticker}:A",
            ":lease:{ticker}",
            ":meta:{chat:a}",
            ":stream:{chat:a}",
        ]
        assert len(await everything(redis, other.prefix)) == 2


@async_test
async def test_mailboxes_alone_touch_no_channel(valkey_url, prefix):
    """Neither replaced nor moved to another generation, and not in the way."""
    keys = Keys(prefix)
    async with link(valkey_url, prefix) as one, connected(valkey_url) as redis:
        await put_mailbox(redis, keys)
        data = await saved(redis, keys, "mailboxes")
        receipt = await one.publish("chat:a", rules=LONG)
        with pytest.raises(ConfigError, match=":mail:"):
            await put_back(redis, keys, data)
        await redis.delete(f"{prefix}:dead", *[name async for name in redis.scan_iter(f"{prefix}:mail:*")])
        await put_back(redis, keys, data)
        await redis.set(keys.once(BOX, "k"), "the id of a message that is gone then")
        await put_back(redis, keys, data, replace=True)
        assert not await redis.exists(keys.once(BOX, "k"))
        assert (await one.publish("chat:a", rules=LONG)).epoch == receipt.epoch
        assert await redis.hlen(f"{prefix}:mail:{{{BOX}}}") == 2


@async_test
async def test_a_message_that_comes_while_its_mailbox_is_restored_is_kept(valkey_url, prefix):
    """Both are there afterwards, in the mailbox and in the totals."""
    keys = Keys(prefix)
    name = f"{{{BOX}}}"
    async with connected(valkey_url) as redis:
        await put_mailbox(redis, keys, count=3)
        data = await saved(redis, keys)
        await redis.delete(*[each async for each in redis.scan_iter(f"{prefix}:*")])
        # A hub that serves meanwhile: put between the check for an empty store and the first transaction.
        new = b"1800000000000-000000"
        check = room._expect_nothing

        async def put(*arguments: object) -> None:
            await check(*arguments)
            await redis.hset(f"{prefix}:mail:{name}", new, b"new")
            await redis.hset(f"{prefix}:box:{name}", "bytes", 259)
            await redis.zadd(f"{prefix}:wait:{name}", {new: 0})
            await redis.hset(f"{prefix}:mailboxes", mapping={"bytes": 259, "messages": 1, "ms": 1_800_000_000_000})

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(room, "_expect_nothing", put)
            await put_back(redis, keys, data)
        found = await everything(redis, prefix)
    assert len(found[f":mail:{name}"]) == 4
    assert [member for member, _ in found[f":wait:{name}"]][-1] == new
    assert found[f":box:{name}"][b"bytes"] == b"%d" % (3 * 266 + 259)
    totals = found[":mailboxes"]
    assert (totals[b"bytes"], totals[b"messages"]) == (b"%d" % (3 * 266 + 259), b"4")
    assert (totals[b"ms"], totals[b"dead_bytes"]) == (b"1800000000000", b"300")


@async_test
async def test_a_mailbox_appears_in_one_transaction(valkey_url, prefix, monkeypatch):
    """However small the batches: a message that waits before it is kept would be buried."""
    monkeypatch.setattr(room, "BATCH_COMMANDS", 1)
    monkeypatch.setattr(room, "BATCH_BYTES", 1)
    keys = Keys(prefix)
    async with connected(valkey_url) as redis:
        for user in range(3):
            await put_mailbox(redis, keys, f"inbox:#{user}", 50)
        data = await saved(redis, keys)
        sent: list[list[str]] = []
        send = room._Batch.send

        async def watched(self: room._Batch) -> None:
            sent.append([str(command[1]) for command in self._commands])
            await send(self)

        monkeypatch.setattr(room._Batch, "send", watched)
        await put_back(redis, keys, data, replace=True)
    for user in range(3):
        name = f"{{inbox:#{user}}}"
        assert sum(any(name in key for key in batch) for batch in sent) == 1
