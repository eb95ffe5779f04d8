"""Revocation: who is kept out, for how long, and that every worker comes to know it."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from math import inf

import orjson
import pytest
from redis.asyncio import Redis

from hub.auth import ANONYMOUS, Claims
from hub.errors import CommandError, ProtocolError
from hub.revocation import ISSUED, TOKEN, USER, Entry, Revocations, parse
from hub.sections import RedisSettings
from hub.store import Keys, Store
from tests.nodes import own_valkey, until
from tests.support import FakeClock, async_test

NOW = 2_000_000_000.0
"""Later than Redis' clock, so that nothing ends for it."""


@contextlib.asynccontextmanager
async def revocations(url: str, prefix: str, start: bool = True, **options: object) -> AsyncIterator[Revocations]:
    one = Revocations(Store(RedisSettings(prefix=prefix), url), **{"wall_clock": FakeClock(NOW), **options})
    if start:
        one.start()
        await one.ready(5)
    try:
        yield one
    finally:
        await one.close()


def code(one: Revocations, user: str = "", **claims: object) -> int:
    """0, or that with which somebody is kept out."""
    try:
        one.check(user, Claims(**{"user": user, "expires_at": inf, **claims}))
    except ProtocolError as error:
        return error.close.code
    return 0


@async_test
async def test_a_blocked_user_is_kept_out_whatever_it_shows(valkey_url, prefix):
    """3507: by its token, and where an application has said who it is."""
    async with revocations(valkey_url, prefix) as one:
        one.learn(Entry(USER, "ann"))
        assert (code(one, "ann"), code(one, "bob"), code(one)) == (3507, 0, 0)
        with pytest.raises(ProtocolError):
            one.check("ann", ANONYMOUS)
        with pytest.raises(ProtocolError):
            one.check("bob", Claims("ann", inf))
        one.learn(Entry(USER, "ann", gone=True))
        assert code(one, "ann") == 0


@async_test
async def test_a_revoked_token_is_good_no_more(valkey_url, prefix):
    """3500, that token alone; tokens without an id can't be named."""
    async with revocations(valkey_url, prefix) as one:
        one.learn(Entry(TOKEN, "j1"))
        assert [code(one, "ann", jti=name) for name in ("j1", "j2", "")] == [3500, 0, 0]


@async_test
async def test_older_tokens_of_a_user_are_good_no_more(valkey_url, prefix):
    """By `iat`; one without it was issued before any time. The same second counts as before."""
    async with revocations(valkey_url, prefix) as one:
        one.learn(Entry(ISSUED, "ann", before=500.5))
        assert [code(one, "ann", issued_at=at) for at in (0.0, 500.0, 501.0)] == [3500, 3500, 0]
        assert code(one, "bob", issued_at=0.0) == 0
        one.check("ann", ANONYMOUS)  # an application's word is no token


@async_test
async def test_of_two_calls_for_older_tokens_the_stronger_holds(valkey_url, prefix):
    """The later time and the later end, in Redis and in memory, in whatever order; what has ended counts no more."""
    name = 'a","expires_at":1,"before":1,"gone":false}'
    early, late = Entry(ISSUED, name, NOW + 9.25, before=500.123456), Entry(ISSUED, name, before=1764000000.123457)
    short, older = Entry(ISSUED, "b", NOW + 1, before=9.0), Entry(ISSUED, "b", NOW + 60.5, before=5.0)
    for first, second in ((early, late), (late, early), (short, older), (older, short)):
        merged = first._replace(
            expires_at=max(first.expires_at, second.expires_at), before=max(first.before, second.before)
        )
        async with revocations(valkey_url, prefix) as one, revocations(valkey_url, prefix) as two:
            for entry in (first, second):
                await one.store(entry, b"{}")
                one.learn(entry)
            two.reread()
            await until(lambda two=two: two._entries)
            assert one._entries == two._entries == {first.key: merged}
            await one._redis.delete(*one._keys)
    clock = FakeClock(NOW)
    async with revocations(valkey_url, prefix, wall_clock=clock) as one:
        one.learn(short)
        clock.advance(2)
        one.learn(older)
        assert one._entries == {"issued b": older}


@async_test
async def test_a_call_that_was_forged_in_redis_is_overwritten(valkey_url, prefix):
    """What there is to keep of it can't be told."""
    entry = Entry(ISSUED, "b", before=5.0)
    async with revocations(valkey_url, prefix) as one:
        for text in ("", "null", '{"x":1,"expires_at":{},"before":7,"gone":false}'):
            await one._redis.hset(one._keys[1], entry.key, text)
            await one.store(entry, b"{}")
            assert orjson.loads(await one._redis.hget(one._keys[1], entry.key)) == entry.params()


@async_test
async def test_entries_end(valkey_url, prefix):
    """At their time, to the second."""
    clock = FakeClock(NOW)
    async with revocations(valkey_url, prefix, wall_clock=clock) as one:
        one.learn(Entry(USER, "ann", NOW + 10))
        clock.advance(9.9)
        assert code(one, "ann") == 3507
        clock.advance(0.2)
        assert code(one, "ann") == 0


@async_test
async def test_what_one_noted_all_know_that_start_later(valkey_url, prefix):
    """Redis has it; what was struck off is gone, and names are told apart by their kind."""
    async with revocations(valkey_url, prefix) as one:
        for entry in (Entry(USER, "ann"), Entry(TOKEN, "bob", NOW + 60), Entry(ISSUED, "cy", before=9.0)):
            await one.store(entry, b"{}")
        await one.store(Entry(USER, "dan"), b"{}")
        await one.store(Entry(USER, "dan", gone=True), b"{}")
        assert len(one) == 0  # it learns by the control channel, as all do
    async with revocations(valkey_url, prefix) as other:
        assert len(other) == 3
        assert [code(other, user) for user in ("ann", "bob", "cy", "dan")] == [3507, 0, 3500, 0]
        assert code(other, "x", jti="bob") == 3500


@async_test
async def test_the_message_goes_out_with_the_entry(valkey_url, prefix):
    """In one step, so that nobody can hear of it who would not find it, and it is known how many heard."""
    async with revocations(valkey_url, prefix) as one, Redis.from_url(valkey_url) as redis, redis.pubsub() as ear:
        assert await one.store(Entry(USER, "ann"), b"hello") == 0
        await ear.subscribe(Keys(prefix).control)
        await ear.get_message(timeout=5)
        assert await one.store(Entry(USER, "bob"), b"hello") == 1
        assert (await ear.get_message(ignore_subscribe_messages=True, timeout=5))["data"] == b"hello"


@async_test
async def test_there_is_room_for_so_many(valkey_url, prefix):
    """106 then; one that is there already may change, and what has ended makes room."""
    async with revocations(valkey_url, prefix, most=2) as one:
        await one.store(Entry(USER, "ann"), b"{}")
        await one.store(Entry(USER, "bob", 1000.0), b"{}")  # over, by Redis' clock
        await one.store(Entry(USER, "cy"), b"{}")
        await one.store(Entry(USER, "cy", NOW), b"{}")
        with pytest.raises(CommandError) as refused:
            await one.store(Entry(USER, "dan"), b"{}")
        assert refused.value.reply.code == 106


@async_test
async def test_in_memory_there_are_no_more_than_in_redis(valkey_url, prefix):
    """Those that have ended are forgotten when there are too many."""
    async with revocations(valkey_url, prefix, most=2) as one:
        for name, ends in (("a", NOW - 1), ("b", NOW - 1), ("c", inf)):
            one.learn(Entry(USER, name, ends))
        assert len(one) == 1 and code(one, "c") == 3507


@async_test
async def test_nothing_stays_in_redis_that_ends(valkey_url, prefix):
    """The keys go with the last entry that ends; what is for ever is for ever."""
    async with revocations(valkey_url, prefix) as one, Redis.from_url(valkey_url) as redis:
        keys = Keys(prefix).revocations
        await one.store(Entry(USER, "ann", NOW), b"{}")
        assert [await redis.expiretime(key) for key in keys] == [int(NOW) + 1] * 2
        await one.store(Entry(USER, "bob"), b"{}")
        assert [await redis.expiretime(key) for key in keys] == [-1, -1]


@async_test
async def test_reading_again_is_what_redis_has(valkey_url, prefix):
    """What another worker noted or struck off unheard; and whoever is here is judged by it."""
    read = []
    async with (
        revocations(valkey_url, prefix) as writer,
        revocations(valkey_url, prefix, on_read=lambda: read.append(1)) as one,
    ):
        one.learn(Entry(USER, "gone"))
        await writer.store(Entry(USER, "ann"), b"{}")
        before = len(read)
        one.reread()
        await until(lambda: len(read) > before)
        assert (code(one, "ann"), code(one, "gone")) == (3507, 0)


@async_test
async def test_what_is_learned_while_the_list_is_read_counts(valkey_url, prefix):
    """It is newer than what was read: neither a block nor its end is undone by the reading."""
    async with revocations(valkey_url, prefix) as writer, revocations(valkey_url, prefix, start=False) as one:
        await writer.store(Entry(USER, "ann"), b"{}")
        scan = one._redis.hscan_iter

        async def slow(*args: object, **options: object):
            async for found in scan(*args, **options):
                yield found
            one.learn(Entry(USER, "ann", gone=True))
            one.learn(Entry(USER, "bob"))

        one._redis.hscan_iter = slow
        one.start()
        await one.ready(5)
        assert (code(one, "ann"), code(one, "bob")) == (0, 3507)


@pytest.mark.expects_log
@async_test
async def test_without_redis_what_was_read_holds(prefix):
    """And it is read again as soon as it can be."""
    with own_valkey() as valkey:
        async with revocations(valkey.url, prefix) as writer, revocations(valkey.url, prefix) as one:
            one.learn(Entry(USER, "ann"))
            valkey.stop()
            one.reread()
            await until(lambda: one._trouble._next)
            assert code(one, "ann") == 3507
            valkey.start()
            await writer.store(Entry(USER, "bob"), b"{}")
            await until(lambda: code(one, "bob") == 3507)


@pytest.mark.expects_log
@async_test
async def test_forged_entries_are_passed_over(valkey_url, prefix, caplog):
    """Whoever reaches Redis can write there; the others count all the same, and no name is logged."""
    good = orjson.dumps(Entry(USER, "ann").params())
    forged = {"user bob": good, "user cy": b"nonsense", "user dan": b"[1]", "user eve": b'{"kind":["user"]}'}
    async with Redis.from_url(valkey_url) as redis:
        await redis.hset(Keys(prefix).revocations[1], mapping={"user ann": good, **forged})
        async with revocations(valkey_url, prefix) as one:
            assert [code(one, user) for user in ("ann", "bob", "cy", "dan", "eve")] == [3507, 0, 0, 0, 0]
    assert "nonsense" not in caplog.text


@pytest.mark.parametrize("entry", [Entry(USER, "ann"), Entry(ISSUED, "a b", 9.5, 3.5), Entry(TOKEN, "j", gone=True)])
def test_an_entry_comes_back_as_it_was(entry):
    """By its params, as JSON."""
    assert parse(orjson.loads(orjson.dumps(entry.params()))) == entry


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "x"},
        {"kind": ["user"]},
        {"name": ""},
        {"name": "n" * 256},
        {"name": 7},
        {"expires_at": "never"},
        {"before": None},
        {"gone": 1},
    ],
)
def test_what_is_no_entry_is_a_value_error(change):
    with pytest.raises(ValueError, match="a revocation"):
        parse({**Entry(USER, "ann").params(), **change})
