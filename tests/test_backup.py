"""Backup: what is in Redis is in the archive, each channel and mailbox of one moment, whatever happens meanwhile."""

from __future__ import annotations

import contextlib
import io
from collections.abc import AsyncIterator, Callable, Iterator

import pytest
from redis.asyncio import Redis

from hub import backup
from hub.archive import Channel, Header, Key, MorePublications, MoreValues, Reader, Record, Writer
from hub.errors import HubError
from hub.store import Keys

from .stores import BINARIES, Server, server
from .support import async_test

BOX = "inbox:#42"


@pytest.fixture(scope="module", params=BINARIES)
def either(request: pytest.FixtureRequest) -> Iterator[Server]:
    """The newest and the oldest server that a hub may stand on."""
    with server(request.param) as one:
        yield one


@contextlib.asynccontextmanager
async def connected(url: str) -> AsyncIterator[Redis]:
    redis = Redis.from_url(url)
    try:
        yield redis
    finally:
        await redis.aclose()


async def saved(redis: Redis, keys: Keys, contents: str = "all") -> bytes:
    """An archive of what is there."""
    out = io.BytesIO()
    generation = await backup.generation_number(redis, keys)
    writer = Writer(out, Header("0.1.0", keys.prefix, "2026-01-31T12:00:00Z", contents, generation))
    await backup.save(redis, keys, writer)
    writer.close()
    return out.getvalue()


async def records(redis: Redis, keys: Keys, contents: str = "all") -> list[Record]:
    """What an archive has, in any order of channels and mailboxes."""
    return list(Reader(io.BytesIO(await saved(redis, keys, contents))))


async def put_channel(redis: Redis, keys: Keys, channel: str, offsets: range, body: bytes = b"\xff{}") -> None:
    for offset in offsets:
        await redis.xadd(keys.stream(channel), {"b": body}, id=f"{offset}-0")
    meta = {"o": offsets[-1] if offsets else 0, "e": "4.a", "g": "4.token"}
    await redis.hset(keys.meta(channel), mapping=meta)


async def put_mailbox(redis: Redis, keys: Keys, channel: str = BOX, count: int = 2) -> None:
    """As hub/lua/mailbox.lua has it: the first message was sent once, the others wait."""
    ids = [f"{1_700_000_000_000 + number}-000000" for number in range(count)]
    prefix = keys.prefix
    for one in ids:
        await redis.hset(f"{prefix}:mail:{{{channel}}}", one, b"\xff" * 10)
    await redis.hset(f"{prefix}:box:{{{channel}}}", mapping={"bytes": 266 * count, ids[0]: 1})
    await redis.zadd(f"{prefix}:flight:{{{channel}}}", {ids[0]: 1_700_000_030_000.0})
    await redis.zadd(f"{prefix}:wait:{{{channel}}}", dict.fromkeys(ids[1:], 0))
    await redis.zadd(f"{prefix}:due:{{inbox}}", {channel: 1_700_000_030_000})
    await redis.hincrby(f"{prefix}:mailboxes", "bytes", 266 * count)
    await redis.hincrby(f"{prefix}:mailboxes", "messages", count)
    await redis.hset(f"{prefix}:mailboxes", mapping={"ms": 1_700_000_000_001, "seq": 0, "dead_bytes": 300})
    await redis.xadd(f"{prefix}:dead", {"c": channel, "r": "expired", "b": b"\x80"})


def meddling(monkeypatch: pytest.MonkeyPatch, meddle: Callable, at: tuple[int, ...] = (1,)) -> list[int]:
    """Await `meddle()` before the round trips with the numbers `at`, counted from 0; returns a list of them."""
    read, trips = backup._Source._read, []

    async def meddled(self: object, commands: list) -> list:
        trips.append(len(trips))
        if trips[-1] in at:
            await meddle()
        return await read(self, commands)

    monkeypatch.setattr(backup._Source, "_read", meddled)
    monkeypatch.setattr(backup, "PAGE_BYTES", 1)  # pages of 16
    return trips


@async_test
async def test_all_of_a_channel_and_a_mailbox_is_there(either, prefix):
    """Positions, bodies, messages, dead letters, totals, with the time that is left; any bytes; nothing else."""
    keys = Keys(prefix)
    async with connected(either.url) as redis:
        await put_channel(redis, keys, "chat:a", range(3, 6))
        await redis.pexpire(keys.stream("chat:a"), 100_000)
        await redis.pexpire(keys.meta("chat:a"), 900_000)
        await put_mailbox(redis, keys)
        for name in (keys.last("ticker", "ticker:A"), keys.once("chat:a", "k"), keys.lease("t"), keys.generation):
            await redis.hset(name, "x", "y")
        await put_channel(redis, Keys(prefix + "x"), "chat:b", range(1, 2))
        channel, *others = await records(redis, keys)
    meta = {b"o": b"5", b"e": b"4.a", b"g": b"4.token"}
    assert channel == ("chat:a", meta, channel.meta_ttl_ms, channel.ttl_ms, [(n, b"\xff{}") for n in (3, 4, 5)])
    assert 890_000 < channel.meta_ttl_ms <= 900_000
    assert 90_000 < channel.ttl_ms <= 100_000
    ids = b"1700000000000-000000", b"1700000000001-000000"
    body = b"\xff" * 10
    mail, box, flight, wait, dead, totals = others
    assert mail == Key(f"mail:{{{BOX}}}", "hash", -1, [ids[0], body, ids[1], body])
    assert box == Key(f"box:{{{BOX}}}", "hash", -1, [b"bytes", b"532", ids[0], b"1"])
    assert flight == Key(f"flight:{{{BOX}}}", "zset", -1, [ids[0], b"1700000030000"])
    assert wait == Key(f"wait:{{{BOX}}}", "zset", -1, [ids[1], b"0"])
    assert dead[:3] == ("dead", "stream", -1)
    assert dead.values[1:] == [b"6", b"c", BOX.encode(), b"r", b"expired", b"b", b"\x80"]
    assert (totals.name, dict(zip(totals.values[::2], totals.values[1::2], strict=True))[b"messages"]) == (
        "mailboxes",
        b"2",
    )


@async_test
async def test_mailboxes_may_go_alone(valkey_url, prefix):
    """Without any channel."""
    keys = Keys(prefix)
    async with connected(valkey_url) as redis:
        await put_channel(redis, keys, "chat:a", range(1, 3))
        await put_mailbox(redis, keys)
        assert {type(each) for each in await records(redis, keys, "mailboxes")} == {Key}


@async_test
async def test_an_empty_store_gives_an_empty_archive(either, prefix):
    """Which is a whole one."""
    async with connected(either.url) as redis:
        assert await records(redis, Keys(prefix)) == []


@async_test
async def test_a_channel_that_has_no_position_is_none(valkey_url, prefix):
    """An evicted meta leaves a stream, whose offsets mean nothing; half a meta is not ours."""
    keys = Keys(prefix)
    async with connected(valkey_url) as redis:
        await put_channel(redis, keys, "chat:a", range(1, 3))
        await redis.delete(keys.meta("chat:a"))
        await redis.hset(keys.meta("chat:b"), "v", "1")
        await put_channel(redis, keys, "chat:c", range(0))
        (only,) = await records(redis, keys)
    assert (only.name, only.publications, only.ttl_ms) == ("chat:c", [], -1)


def offsets(found: list[Record]) -> list[list[int]]:
    """Of each time that the channel comes."""
    groups: list[list[int]] = []
    for record in found:
        if isinstance(record, Channel):
            groups.append([])
        groups[-1] += [offset for offset, _ in record.publications]
    return groups


@async_test
async def test_a_long_channel_comes_in_pages(either, prefix, monkeypatch):
    """All of it, once, in order."""
    keys = Keys(prefix)
    trips = meddling(monkeypatch, lambda: None, at=())
    async with connected(either.url) as redis:
        await put_channel(redis, keys, "c", range(5, 105))
        found = await records(redis, keys)
    assert [type(each) for each in found] == [Channel, *[MorePublications] * 6]
    assert offsets(found) == [[*range(5, 105)]]
    assert len(trips) == 8  # seven for the channel, one for the mailboxes


@async_test
async def test_what_is_published_meanwhile_is_not_in(valkey_url, prefix, monkeypatch):
    """The publications end at the offset that the meta says."""
    keys = Keys(prefix)
    async with connected(valkey_url) as redis:
        await put_channel(redis, keys, "c", range(1, 41))
        meddling(monkeypatch, lambda: put_channel(redis, keys, "c", range(41, 45)), at=(2,))
        assert offsets(await records(redis, keys)) == [[*range(1, 41)]]


@pytest.mark.parametrize(("first", "found"), [(16, [[*range(1, 41)]]), (35, [[*range(1, 17)], [*range(35, 41)]])])
def test_a_channel_that_is_trimmed_beyond_the_reader_begins_anew(valkey_url, prefix, monkeypatch, first, found):
    """Else there would be a gap in the middle. Trimmed up to the reader, which is at 16, it goes on."""

    @async_test
    async def check() -> None:
        keys = Keys(prefix)
        async with connected(valkey_url) as redis:
            await put_channel(redis, keys, "c", range(1, 41))
            meddling(monkeypatch, lambda: redis.xtrim(keys.stream("c"), minid=f"{first}-0", approximate=False))
            assert offsets(await records(redis, keys)) == found

    check()


@async_test
async def test_a_history_removed_meanwhile_is_not_kept_in_part(valkey_url, prefix, monkeypatch):
    """A part that does not reach up to the channel's offset would hide a loss."""
    keys = Keys(prefix)
    async with connected(valkey_url) as redis:
        await put_channel(redis, keys, "c", range(1, 41))
        meddling(monkeypatch, lambda: redis.delete(keys.stream("c")))
        assert offsets(await records(redis, keys)) == [[*range(1, 17)], []]


@async_test
async def test_an_epoch_that_ends_meanwhile_begins_the_channel_anew(valkey_url, prefix, monkeypatch):
    """Its offsets are given a second time in the next one."""
    keys = Keys(prefix)
    async with connected(valkey_url) as redis:
        await put_channel(redis, keys, "c", range(1, 41))
        meddling(monkeypatch, lambda: redis.hset(keys.meta("c"), "e", "4.a@20,5.b"))
        found = [each for each in await records(redis, keys) if isinstance(each, Channel)]
    assert [each.meta[b"e"] for each in found] == [b"4.a", b"4.a@20,5.b"]


@async_test
async def test_a_channel_that_vanishes_meanwhile_keeps_its_position_alone(valkey_url, prefix, monkeypatch):
    """What was read of its publications does not reach up to it."""
    keys = Keys(prefix)
    async with connected(valkey_url) as redis:
        await put_channel(redis, keys, "c", range(1, 41))
        meddling(monkeypatch, lambda: redis.delete(keys.meta("c"), keys.stream("c")))
        found = await records(redis, keys)
    assert offsets(found) == [[*range(1, 17)], []]
    assert found[-1].meta[b"o"] == b"40"


@async_test
async def test_a_channel_that_never_holds_still_fails_the_backup(valkey_url, prefix, monkeypatch):
    """After some tries, with its name."""
    keys = Keys(prefix)
    async with connected(valkey_url) as redis:
        await put_channel(redis, keys, "c", range(1, 41))
        epochs = iter(range(1000))
        meddling(monkeypatch, lambda: redis.hset(keys.meta("c"), "e", next(epochs)), at=tuple(range(1, 1000)))
        with pytest.raises(HubError, match="channel c changed 5 times while it was read; try again"):
            await records(redis, keys)


@pytest.mark.parametrize("names", [1, 1000])
def test_the_keys_of_a_mailbox_come_together(valkey_url, prefix, monkeypatch, names):
    """In one step, in the order of their restore, however few names fit into memory; each mailbox once."""

    @async_test
    async def check() -> None:
        monkeypatch.setattr(backup, "MAX_NAMES", names)
        keys = Keys(prefix)
        async with connected(valkey_url) as redis:
            for user in range(20):
                await put_mailbox(redis, keys, f"inbox:#{user}")
            found = [each.name.partition(":") for each in await records(redis, keys)]
        mailboxes = [found[start : start + 4] for start in range(0, 80, 4)]
        assert all([kind for kind, _, _ in one] == ["mail", "box", "flight", "wait"] for one in mailboxes)
        assert all(len({tag for _, _, tag in one}) == 1 for one in mailboxes)
        assert {one[0][2] for one in mailboxes} == {f"{{inbox:#{user}}}" for user in range(20)}
        assert [kind for kind, _, _ in found[80:]] == ["dead", "mailboxes"]

    check()


@async_test
async def test_a_large_key_is_read_page_by_page(either, prefix, monkeypatch):
    """With the same values, scores included."""
    monkeypatch.setattr(backup, "LARGE_BYTES", 100_000)
    monkeypatch.setattr(backup, "PAGE_BYTES", 1000)
    keys = Keys(prefix)
    name = f"{{{BOX}}}"
    async with connected(either.url) as redis:
        fields = {b"%d" % n: b"\xff" * 50 for n in range(3000)}
        scores = {b"%030d" % n: n * 1.1 for n in range(3000)}
        await redis.hset(f"{prefix}:mail:{name}", mapping=fields)
        await redis.zadd(f"{prefix}:wait:{name}", scores)
        for n in range(3000):
            await redis.xadd(f"{prefix}:dead", {"b": b"%050d" % n}, id=f"{n + 1}-0")
        found = await records(redis, keys)
    values: dict[str, list[bytes]] = {}
    for record in found:
        if isinstance(record, Key):
            values[record.name] = last = []
        assert isinstance(record, Key | MoreValues)
        assert sum(map(len, record.values)) < 2000
        last += record.values
    mail, wait = values[f"mail:{name}"], values[f"wait:{name}"]
    assert dict(zip(mail[::2], mail[1::2], strict=True)) == fields
    assert {member: float(score) for member, score in zip(wait[::2], wait[1::2], strict=True)} == scores
    assert values["dead"][::4] == [b"%d-0" % (n + 1) for n in range(3000)]
    assert values["dead"][3::4] == [b"%050d" % n for n in range(3000)]


@async_test
async def test_a_key_of_another_type_fails_the_backup(valkey_url, prefix):
    """It is not ours, and no restore would take it."""
    async with connected(valkey_url) as redis:
        await redis.set(f"{prefix}:dead", "x")
        with pytest.raises(HubError, match="dead: found a string; allowed: a stream"):
            await records(redis, Keys(prefix))


@async_test
async def test_scripts_that_redis_forgets_come_back(valkey_url, prefix, monkeypatch):
    """A restart in the middle of a backup costs nothing."""
    keys = Keys(prefix)
    async with connected(valkey_url) as redis:
        await put_channel(redis, keys, "c", range(1, 41))
        meddling(monkeypatch, redis.script_flush)
        assert offsets(await records(redis, keys)) == [[*range(1, 41)]]


@async_test
async def test_the_number_of_the_generation_is_known(valkey_url, prefix):
    """0 before the first."""
    keys = Keys(prefix)
    async with connected(valkey_url) as redis:
        assert await backup.generation_number(redis, keys) == 0
        await redis.hset(keys.generation, "number", "7")
        assert await backup.generation_number(redis, keys) == 7
