"""The scripts in real servers: what they number and keep, and what becomes of an epoch when the store changes."""

from __future__ import annotations

import asyncio

import orjson
import pytest
from redis.asyncio import Redis

from hub.channels import Namespace
from hub.errors import BrokerUnavailable
from hub.message import PublishOptions, StreamPublication, unpack_stream
from hub.position import MAX_EPOCH_LENGTH, MAX_GENERATIONS, MAX_OFFSET, Position, lineage, survives
from hub.scripts import Nonces, Scripts, load_script
from tests.stores import BINARIES, STREAM, Link, link, server
from tests.support import async_test

both = pytest.mark.parametrize("binary", BINARIES)


async def position(of: Link, channel: str = "c") -> Position:
    page = await of.history.read(channel, STREAM)
    return Position(page.epoch, page.offset)


async def good(at: Position, of: Link, channel: str = "c") -> bool:
    """Whether a subscriber at `at` would be told so there."""
    now = await position(of, channel)
    return survives(at, now.epoch, now.offset)


async def publish(to: Link, count: int, channel: str = "c") -> Position:
    for _ in range(count):
        receipt = await to.publish(channel)
    return Position(receipt.epoch, receipt.offset)


# Publishing.


@async_test
async def test_a_publication_is_numbered_kept_and_spread_with_the_same_bytes(valkey_url, prefix):
    """Its receipt, its entry in the stream, and what subscribers of the Redis channel receive agree."""
    async with link(valkey_url, prefix) as one, Redis.from_url(valkey_url) as redis, redis.pubsub() as ear:
        await ear.subscribe(one.store.keys.channel("c"))
        await ear.get_message(timeout=5)
        first, second = await one.publish("c", "one"), await one.publish("c", "two")
        assert (first.offset, second.offset, first.epoch) == (1, 2, second.epoch)
        assert (first.ack, first.duplicate) == ("memory", False)
        heard = [unpack_stream((await ear.get_message(timeout=5))["data"])[0] for _ in range(2)]
        bodies = [b'{"offset":1,"data":"one"}', b'{"offset":2,"data":"two"}']
        assert heard == [StreamPublication("c", bodies[i], first.epoch, i + 1) for i in range(2)]
        page = await one.history.read("c", STREAM, limit=-1)
        assert page == (first.epoch, 2, [(1, bodies[0]), (2, bodies[1])])


@async_test
async def test_a_stream_keeps_its_size_and_its_time(valkey_url, prefix):
    """history_size publications; both times are counted anew from each publication, the meta's from each read too."""
    rules = Namespace(mode="stream", history_size=3, history_ttl_s=100, history_meta_ttl_s=1000)
    async with link(valkey_url, prefix) as one, Redis.from_url(valkey_url) as redis:
        for _ in range(5):
            await one.publish("c", rules=rules)
        page = await one.history.read("c", rules, limit=-1)
        assert [offset for offset, _ in page.publications] == [3, 4, 5]
        meta, stream = one.store.keys.meta("c"), one.store.keys.stream("c")
        # Up to a second longer, so that what is written often gets a new end once a second.
        assert 99_000 < await redis.pttl(stream) <= 101_000 and 999_000 < await redis.pttl(meta) <= 1_001_000
        await redis.persist(meta)
        await one.history.read("c", rules)
        assert 999_000 < await redis.pttl(meta) <= 1_001_000
        await redis.persist(meta)
        await one.publish("c", rules=rules)
        assert 999_000 < await redis.pttl(meta) <= 1_001_000


@both
@async_test
async def test_offsets_are_exact_up_to_the_largest(binary, prefix):
    """At 2^53 - 1 no digit is lost: in receipt, body, entry and page; nor where Lua's tostring begins to round."""
    with server(binary) as one:
        async with link(one.url, prefix) as worker, Redis.from_url(one.url) as redis:
            await worker.publish("c")
            for top in (10**14 - 1, 10**15 - 1, MAX_OFFSET - 1):
                await redis.hset(worker.store.keys.meta("c"), "o", top)
                receipt = await worker.publish("c")
                assert receipt.offset == top + 1
                ((offset, body),) = (await worker.history.read("c", STREAM, since=top, limit=-1)).publications
                assert (offset, orjson.loads(body)["offset"]) == (top + 1, top + 1)
                assert (await worker.history.read("c", STREAM, since=top + 1, limit=-1)).publications == []
                assert (await position(worker)).offset == top + 1


@async_test
async def test_an_idempotency_key_publishes_once(valkey_url, prefix):
    """Concurrent retries give one entry and one position; other keys, other channels and a later time are their own."""
    options = PublishOptions(idempotency_key="k")
    async with link(valkey_url, prefix) as one, link(valkey_url, prefix) as two, Redis.from_url(valkey_url) as redis:
        receipts = await asyncio.gather(*(worker.publish("c", options=options) for worker in [one, two] * 5))
        assert {(r.offset, r.epoch) for r in receipts} == {(1, receipts[0].epoch)}
        assert sorted(r.duplicate for r in receipts) == [False] + [True] * 9
        assert not (await one.publish("c", options=PublishOptions(idempotency_key="other"))).duplicate
        assert not (await one.publish("d", options=options)).duplicate
        assert (await position(one)).offset == 2
        key = one.store.keys.once("c", "k")
        assert 299_000 < await redis.pttl(key) <= 300_000
        await redis.delete(key)
        assert (await one.publish("c", options=options)).offset == 3


@async_test
async def test_an_idempotency_key_holds_where_nothing_is_kept(valkey_url, prefix):
    """In a `none` namespace the second one is told duplicate, and subscribers hear one."""
    options = PublishOptions(idempotency_key="k")
    async with link(valkey_url, prefix) as one, Redis.from_url(valkey_url) as redis, redis.pubsub() as ear:
        await ear.subscribe(one.store.keys.channel("c"))
        await ear.get_message(timeout=5)
        receipts = [await one.publish("c", "x", Namespace(), options) for _ in range(2)]
        assert [(r.duplicate, r.offset, r.ack) for r in receipts] == [(False, 0, ""), (True, 0, "")]
        await one.publish("c", "last", Namespace())
        heard = [(await ear.get_message(timeout=5))["data"] for _ in range(2)]
        assert b"last" in heard[1]


@async_test
async def test_an_older_version_publishes_nothing(valkey_url, prefix):
    """The same or an older one of the same version epoch is told where the channel is; another epoch begins anew."""
    async with link(valkey_url, prefix) as one:
        offsets = []
        for version, epoch in [
            (5, ""),
            (5, ""),
            (4, ""),
            (6, ""),
            (1, "b"),
            (1, "b"),
            (6, ""),
            (7, ""),
            (8, "b"),
            (7, "b"),
        ]:
            offsets.append((await one.publish("c", options=PublishOptions("", version, epoch))).offset)
        assert offsets == [1, 1, 1, 2, 3, 3, 4, 5, 6, 6]
        assert (await one.publish("c")).offset == 7
        big = MAX_OFFSET
        assert (await one.publish("c", options=PublishOptions("", big - 1))).offset == 8
        assert (await one.publish("c", options=PublishOptions("", big))).offset == 9
        assert (await one.publish("c", options=PublishOptions("", big - 1))).offset == 9


@async_test
async def test_a_full_memory_refuses_publications_but_no_reader(prefix):
    """Nothing is numbered that is not kept; positions can be read, in a new generation too; no channel begins."""
    with server(BINARIES[0].values[0], "--maxmemory-policy", "noeviction") as one:
        async with link(one.url, prefix) as worker:
            before = await publish(worker, 2)
            with one.commands() as commands:
                commands.config_set("maxmemory", 1)
                with pytest.raises(BrokerUnavailable, match="used memory"):
                    await worker.publish("c")
                with pytest.raises(BrokerUnavailable, match="used memory"):
                    await worker.history.read("new", STREAM)
                assert await position(worker) == before
                commands.config_set("maxmemory", 0)
                for key, field in ((worker.store.keys.generation, "identity"), (worker.store.keys.meta("c"), "i")):
                    commands.hset(key, field, "another")
                commands.config_set("maxmemory", 1)
                now = await position(worker)
                assert lineage(now.epoch)[0] == (before.epoch, 2) and now.offset == 2
                with pytest.raises(BrokerUnavailable, match="used memory"):
                    await worker.publish("c")
                commands.config_set("maxmemory", 0)
            assert (await worker.publish("c")).offset == 3


# Generations.


@both
@async_test
async def test_a_replica_that_lagged_ends_the_generation_where_it_was(binary, prefix):
    """Failover: whoever saw what it has is good, whoever saw more is not; the number goes up by one."""
    with server(binary) as a, server(binary) as b:
        async with link(a.url, prefix) as old, link(b.url, prefix) as new:
            b.follow(a)
            at_3 = await publish(old, 3)
            b.catch_up(a)
            b.lose_touch()
            at_5 = await publish(old, 2)
            with pytest.raises(BrokerUnavailable, match="a replica numbers nothing"):
                await new.history.read("c", STREAM)
            with pytest.raises(BrokerUnavailable, match="a replica numbers nothing"):
                await new.history.probe("loop", "n")
            b.promote()
            assert await good(at_3, new) and not await good(at_5, new)
            now = await position(new)
            (first, end), (second, _) = lineage(now.epoch)
            assert (first, end, now.offset) == (at_3.epoch, 3, 3)
            assert int(second.partition(".")[0]) == int(first.partition(".")[0]) + 1
            # As far as the old one had got, and beyond: what is there now is not what they saw.
            await publish(new, 4)
            assert await good(at_3, new) and not await good(at_5, new)


@both
@async_test
async def test_back_to_the_old_primary_with_both_links_open(binary, prefix):
    """Both take publications at once; each position is good exactly where its messages are, resynced or not."""
    with server(binary) as a, server(binary) as b:
        async with link(a.url, prefix) as old, link(b.url, prefix) as new:
            b.follow(a)
            at_3 = await publish(old, 3)
            b.catch_up(a)
            b.promote()
            on_b, on_a = await publish(new, 2), await publish(old, 2)
            assert (on_a.offset, on_b.offset, on_a.epoch) == (5, 5, at_3.epoch)
            assert await good(on_a, old) and await good(on_b, new)
            assert not await good(on_a, new) and not await good(on_b, old)
            assert await good(at_3, old) and await good(at_3, new)
            # The first one gives up and becomes the other's replica; then it is promoted again.
            a.follow(b)
            a.promote()
            assert await good(on_b, old) and not await good(on_a, old) and await good(at_3, old)
            assert len(lineage((await position(old)).epoch)) == 3


@both
@async_test
async def test_a_crash_that_loses_the_end_is_seen(binary, prefix):
    """kill -9 and an append-only file that lacks the last second: those who saw it are told, the others not."""
    with server(binary, "--appendonly", "yes", "--appendfsync", "always") as one:
        async with link(one.url, prefix) as worker:
            at_3 = await publish(worker, 3)
            size = one.aof_size()
            at_5 = await publish(worker, 2)
            one.kill()
            one.cut_aof(size)
            one.start()
            await worker.reconnect()
            assert (await position(worker)).offset == 3
            assert await good(at_3, worker) and not await good(at_5, worker)
            await publish(worker, 5)
            assert await good(at_3, worker) and not await good(at_5, worker)


@both
@async_test
async def test_a_kill_that_loses_nothing_is_no_loss(binary, prefix):
    """Another generation, and every position goes on in it."""
    with server(binary, "--appendonly", "yes", "--appendfsync", "always") as one:
        async with link(one.url, prefix) as worker:
            at_3 = await publish(worker, 3)
            one.kill()
            one.start()
            await worker.reconnect()
            assert await good(at_3, worker)
            assert (await position(worker)).epoch != at_3.epoch


@both
@async_test
async def test_a_planned_stop_keeps_the_generation_once(binary, prefix):
    """Marked before, found after; the next end without a mark of its own is a crash again."""
    with server(binary, "--appendonly", "yes", "--appendfsync", "always") as one:
        async with link(one.url, prefix) as worker:

            def clean(verb: str, mark: str) -> str | None:
                with one.commands() as commands:
                    return commands.eval(load_script("clean"), 1, worker.store.keys.generation, verb, mark)

            async def restart() -> None:
                one.stop()
                one.start()
                await worker.reconnect()

            assert clean("return", "m0") is None
            first = await publish(worker, 3)
            token = clean("leave", "m1")
            await restart()
            assert clean("return", "m2") is None
            assert clean("return", "m1") == token == await worker.history.probe("loop", "n")
            assert await position(worker) == first
            # The mark is gone, so the second stop is none.
            await restart()
            assert clean("return", "m1") is None
            second = await position(worker)
            assert second.epoch != first.epoch
            # A mark that nobody looked for does not wait for a later start either.
            clean("leave", "m4")
            await restart()
            assert (await publish(worker, 1)).epoch != second.epoch
            await restart()
            assert clean("return", "m4") is None


@both
@async_test
async def test_a_mark_vouches_for_this_process_only(binary, prefix):
    """After a crash, and before anybody touched the store, it is of a new generation, not of the one that ended."""
    with server(binary, "--appendonly", "yes", "--appendfsync", "always") as one:
        async with link(one.url, prefix) as worker:
            await publish(worker, 3)
            size = one.aof_size()
            lost = await publish(worker, 2)
            one.kill()
            one.cut_aof(size)
            for verb in ("leave", "return"):
                one.start()
                with one.commands() as commands:
                    assert commands.eval(load_script("clean"), 1, worker.store.keys.generation, verb, "m")
                one.stop()
            one.start()
            await worker.reconnect()
            await publish(worker, 4)
            assert not await good(lost, worker)


@both
@async_test
async def test_flushall_and_evictions_end_what_they_took(binary, prefix):
    """Everything gone: all are told. The meta gone: its channel's are. The stream or the record gone: nobody is."""
    with server(binary) as one:
        async with link(one.url, prefix) as worker:
            keys = worker.store.keys
            with one.commands() as commands:
                at = await publish(worker, 3)
                commands.delete(keys.generation)
                assert await good(at, worker)
                commands.delete(keys.stream("c"))
                assert await good(at, worker) and (await worker.history.read("c", STREAM, limit=-1)).publications == []
                assert (await worker.publish("c")).offset == 4
                other = await publish(worker, 1, "d")
                commands.delete(keys.meta("c"))
                assert not await good(at, worker) and await good(other, worker, "d")
                # The entries of the channel's earlier life are gone too: their offsets are given anew.
                assert (await worker.history.read("c", STREAM, limit=-1)).publications == []
                at = await publish(worker, 1)
                assert at.offset == 1
                commands.flushall()
                assert not await good(at, worker) and not await good(other, worker, "d")


@async_test
async def test_an_epoch_keeps_the_newest_generations(valkey_url, prefix):
    """MAX_GENERATIONS of them, in order, in bounds at the largest offsets; a position of one that fell off is lost."""
    async with link(valkey_url, prefix) as worker, Redis.from_url(valkey_url) as redis:
        positions = [await publish(worker, 1)]
        await redis.hset(worker.store.keys.meta("c"), "o", MAX_OFFSET - 100)
        for i in range(MAX_GENERATIONS + 2):
            await redis.hset(worker.store.keys.generation, mapping={"identity": f"gone{i}", "number": 10**6 + i})
            await redis.hset(worker.store.keys.meta("c"), "i", f"gone{i}")
            positions.append(await publish(worker, 1))
        epoch = positions[-1].epoch
        assert len(lineage(epoch)) == MAX_GENERATIONS and len(epoch) <= MAX_EPOCH_LENGTH
        numbers = [int(token.partition(".")[0]) for token, _ in lineage(epoch)]
        assert numbers == list(range(10**6 + 3, 10**6 + 3 + MAX_GENERATIONS))
        ends = [end for _, end in lineage(epoch)]
        assert ends == [*range(MAX_OFFSET - 100 + 3, MAX_OFFSET - 100 + 2 + MAX_GENERATIONS), None]
        assert [await good(at, worker) for at in positions] == [False] * 3 + [True] * MAX_GENERATIONS


# Loading.


@async_test
async def test_scripts_that_redis_lost_are_loaded_again(valkey_url, prefix):
    """Each one by itself, in the midst of commands that need none; all run once and in order."""
    scripts = Scripts("history", "publish_once", "loopback")
    async with Redis.from_url(valkey_url) as redis:
        await redis.script_flush()
        once = scripts.call("publish_once", [f"{prefix}:once"], ["t", "x", 1000])
        loop = scripts.call("loopback", [f"{prefix}:g"], ["t", "n"])
        replies = await scripts.execute(redis, [("INCR", f"{prefix}:n"), once, loop, once, ("INCR", f"{prefix}:n")])
        assert replies == [1, b"published", b"1.n", b"duplicate", 2]
        await redis.script_flush()
        confirmed = await scripts.execute_confirmed(redis, [once, ("INCR", f"{prefix}:n")], ("WAIT", 0, 1))
        assert confirmed == [(b"duplicate", 0), (3, 0)]


def test_the_prelude_and_the_model_keep_the_same_number_of_generations():
    """One constant, in two languages."""
    assert f"local GENERATIONS = {MAX_GENERATIONS}\n" in load_script("history")
    assert "GENERATIONS" not in load_script("publish_once")


def test_no_two_nonces_are_the_same():
    """Within a process by number, between processes by chance of 2^64."""
    one, two = Nonces(), Nonces()
    made = [make() for make in (one, two) for _ in range(100)]
    assert len(set(made)) == 200 and all(nonce.replace("-", "").isalnum() for nonce in made)


@async_test
async def test_a_publication_that_cannot_be_kept_uses_up_no_number(valkey_url, prefix):
    """Somebody else's key where the channel's publications should be: refused, and the next one follows."""
    async with link(valkey_url, prefix) as worker, Redis.from_url(valkey_url) as redis:
        before = await publish(worker, 2)
        stream = worker.store.keys.stream("c")
        await redis.set(stream, "not a stream")
        for options in (PublishOptions(), PublishOptions(version=5)):
            with pytest.raises(BrokerUnavailable, match="WRONGTYPE"):
                await worker.publish("c", options=options)
        assert await position(worker) == before
        await redis.delete(stream)
        assert (await worker.publish("c", options=PublishOptions(version=5))).offset == 3
