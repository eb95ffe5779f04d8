"""Workers that know of each other over a real Valkey: leases, surveys, and what must not disturb them."""

from __future__ import annotations

import asyncio
import itertools
import signal
import sys
import time

import orjson
import pytest
from redis.asyncio import Redis

from hub import registry as rooms
from hub.control import EMIT, Errand, Notice, encode_errand
from hub.errors import BrokerUnavailable, CommandError
from hub.notice import Notices
from hub.sections import RedisSettings
from hub.store import Keys, Store
from tests.nodes import is_listed, node, own_valkey, until
from tests.support import async_test, tell_child
from tests.test_notice import Form, Listener

CHILD = """
import asyncio, sys
from hub.sections import RedisSettings
from hub.registry import Registry
from hub.store import Store

async def live(url, prefix, lease_s):
    registry = Registry(Store(RedisSettings(prefix=prefix), url), 7, dict, dict, lease_s=float(lease_s))
    registry.start()
    print(registry.uid, flush=True)
    await asyncio.Event().wait()

asyncio.run(live(*sys.argv[1:]))
"""
SURVEY = "ab" * 16


def survey(ask: str = "node", **more: object) -> bytes:
    return orjson.dumps({"do": "survey", "id": SURVEY, "ask": ask, **more})


@async_test
async def test_two_workers_see_each_other_with_their_counts(valkey_url, prefix):
    """Each lists both, by name, with version and what stats and counts gave."""
    stats = {"num_clients": 5, "num_users": 3, "num_subs": 6, "num_channels": 2}
    async with (
        node(valkey_url, prefix, 0, stats=lambda: stats) as one,
        node(valkey_url, prefix, 1) as other,
    ):
        nodes = await one.nodes()
        assert nodes == await other.nodes()
        assert [n.uid for n in nodes] == [one.uid, other.uid]
        assert [n.name.rpartition(":")[2] for n in nodes] == ["0", "1"]
        first, second = nodes
        assert (first.num_clients, first.num_users, first.num_subs, first.num_channels) == (5, 3, 6, 2)
        assert (second.num_clients, second.version) == (0, first.version)


@async_test
async def test_hubs_of_different_prefixes_do_not_see_each_other(valkey_url, prefix):
    """The prefix separates them."""
    async with node(valkey_url, prefix) as one, node(valkey_url, prefix + "-other") as other:
        assert [n.uid for n in await one.nodes()] == [one.uid]
        assert [n.uid for n in (await other.fresh_nodes()).nodes] == [other.uid]


@async_test
async def test_a_closed_worker_is_gone_at_once(valkey_url, prefix):
    """When `close` has returned, nobody lists it any more."""
    async with node(valkey_url, prefix, 0) as one:
        async with node(valkey_url, prefix, 1) as other:
            assert await is_listed(one, other.uid)
        assert not await is_listed(one, other.uid)


@async_test
async def test_a_killed_worker_vanishes_with_its_lease_and_leaves_nothing(valkey_url, prefix):
    """After kill -9 its entry is there until the lease ends, then neither in the list nor in Redis."""
    async with node(valkey_url, prefix, 0) as one, Redis.from_url(valkey_url) as redis:
        command = [sys.executable, "-c", CHILD, valkey_url, prefix, "0.6"]
        child = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
        try:
            uid = (await child.stdout.readline()).decode().strip()
            await until(lambda: is_listed(one, uid))
        finally:
            tell_child(child, signal.SIGKILL)
            await child.wait()
        killed_at = time.monotonic()
        await until(lambda: is_missing(one, uid))
        assert time.monotonic() - killed_at < 2.0
        keys = Keys(prefix)
        assert await redis.hkeys(keys.nodes) == await redis.zrange(keys.leases, 0, -1) == [one.uid.encode()]


async def is_missing(registry, uid: str) -> bool:
    return not await is_listed(registry, uid)


def test_the_default_lease_fits_the_promise():
    """A dead worker's entry vanishes within 5 s."""
    assert rooms.LEASE_S < 5


@async_test
async def test_a_live_worker_stays_in_the_list_for_many_leases(valkey_url, prefix):
    """A lease of 0.4 s is kept for a whole second, and its numbers move on."""
    clients = itertools.count()
    async with (
        node(valkey_url, prefix, stats=lambda: {"num_clients": next(clients)}, lease_s=0.4) as one,
        node(valkey_url, prefix, 1) as other,
    ):
        end = time.monotonic() + 1.0
        while time.monotonic() < end:
            assert await is_listed(other, one.uid)
            await asyncio.sleep(0.02)
        numbers = {n.uid: n.num_clients for n in await other.nodes()}
        assert numbers[one.uid] > 0


@async_test
async def test_nothing_in_redis_outlives_the_hub(valkey_url, prefix):
    """All keys of the registry expire, also when every worker is gone without a word."""
    async with node(valkey_url, prefix) as one, Redis.from_url(valkey_url) as redis:
        one.on_control(survey())
        answers = Keys(prefix).answers(SURVEY)
        await until(lambda: redis.exists(answers))
        keys = [key async for key in redis.scan_iter(f"{prefix}:*")]
        assert len(keys) == 3
        for key in keys:
            assert 0 < await redis.pttl(key) <= 60_000
        assert 0 < await redis.ttl(answers) <= rooms.ANSWER_TTL_S


@async_test
async def test_a_survey_sums_the_channels_of_all_workers(valkey_url, prefix):
    """Subscribers of one channel in two workers are added; a pattern chooses channels."""
    async with (
        node(valkey_url, prefix, 0, counts=lambda: {"news": 1, "ticker:ACME": 2}) as one,
        node(valkey_url, prefix, 1, counts=lambda: {"ticker:ACME": 3, "ticker:BETA": 4}),
    ):
        assert await one.channels() == ({"news": 1, "ticker:ACME": 5, "ticker:BETA": 4}, [])
        assert await one.channels("ticker:*") == ({"ticker:ACME": 5, "ticker:BETA": 4}, [])
        assert await one.channels("t*:[!B]*") == ({"ticker:ACME": 5}, [])
        assert await one.channels("new?") == ({"news": 1}, [])
        assert await one.channels("ticker") == ({}, [])


@async_test
async def test_fresh_nodes_tell_the_counts_of_the_moment(valkey_url, prefix):
    """A survey sees at once what the lease will show only with a later renewal."""
    stats = {"num_clients": 1}
    async with node(valkey_url, prefix, 0, stats=lambda: stats) as one, node(valkey_url, prefix, 1) as other:
        stats["num_clients"] = 2
        nodes, silent = await other.fresh_nodes()
        assert [(n.uid, n.num_clients) for n in nodes] == [(one.uid, 2), (other.uid, 0)]
        assert silent == []


@async_test
async def test_a_notice_reaches_every_worker(valkey_url, prefix):
    """The one that sends it too, each once."""
    first, second = [], []
    async with (
        node(valkey_url, prefix, 0, on_notice=first.append) as one,
        node(valkey_url, prefix, 1, on_notice=second.append),
    ):
        notice = Notice("42", "inbox:#42", {"text": "hi"})
        await one.announce(notice)
        await until(lambda: first and second)
        assert (first, second) == ([notice], [notice])


@async_test
async def test_listeners_that_are_no_workers_do_not_delay_a_survey(valkey_url, prefix):
    """Somebody who watches the control channel is not waited for."""
    async with node(valkey_url, prefix) as one, Redis.from_url(valkey_url) as redis, redis.pubsub() as watcher:
        await watcher.subscribe(Keys(prefix).control)
        await watcher.get_message(timeout=5)
        began_at = time.monotonic()
        assert len((await one.fresh_nodes()).nodes) == 1
        assert time.monotonic() - began_at < rooms.SURVEY_S / 2


@async_test
async def test_a_worker_that_just_died_is_named_and_not_waited_for(valkey_url, prefix):
    """It holds a lease still, but Redis has handed the question to nobody there."""
    dead = rooms.Registry(Store(RedisSettings(prefix=prefix), valkey_url), 1, dict, dict)
    async with node(valkey_url, prefix, 0, counts=lambda: {"a": 1}) as one:
        dead.start()
        try:
            await until(lambda: is_listed(one, dead.uid))
            began_at = time.monotonic()
            assert await one.channels() == ({"a": 1}, [dead.uid])
            assert time.monotonic() - began_at < rooms.SURVEY_S / 2
        finally:
            await dead.close()


@async_test
async def test_a_worker_that_does_not_answer_is_named_after_a_bounded_time(valkey_url, prefix):
    """The answers of the others come after SURVEY_S, with the uid of the silent one."""
    async with (
        node(valkey_url, prefix, 0, counts=lambda: {"a": 1}) as one,
        node(valkey_url, prefix, 1, deaf=True) as deaf,
    ):
        began_at = time.monotonic()
        assert await one.channels() == ({"a": 1}, [deaf.uid])
        assert rooms.SURVEY_S <= time.monotonic() - began_at < rooms.SURVEY_S + 1


@pytest.mark.expects_log
@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\xff\x00",
        b"[1]",
        b'{"do":"explode"}',
        b'{"do":["survey"]}',
        survey("everything"),
        survey(id="../x"),
        survey(pattern=[]),
        b'{"do":"notify"}',
        b'{"do":"notify","user":"42","channel":"","data":%s}' % (b"[" * 300 + b"]" * 300),
        b" " * 100_000,
    ],
)
def test_malformed_control_messages_are_counted_and_survived(valkey_url, prefix, caplog, payload):
    """Each counts once, writes one line without its content, and the next survey is answered."""

    @async_test
    async def run() -> None:
        notices = Notices(list, lambda user, channel: [Listener(Form())])
        async with node(valkey_url, prefix, on_notice=notices.tell) as one:
            async with Redis.from_url(valkey_url) as redis:
                await redis.publish(Keys(prefix).control, payload)
            await until(lambda: one.malformed)
            assert one.malformed == 1
            assert len((await one.fresh_nodes()).nodes) == 1

    run()
    (line,) = [r.getMessage() for r in caplog.records if r.name == "hub.registry"]
    assert line.startswith("ignored what came by Redis: ")
    assert "explode" not in line


@pytest.mark.expects_log
@async_test
async def test_forged_answers_and_descriptions_are_ignored(valkey_url, prefix):
    """Nonsense in a survey's list or among the nodes changes nothing but the count of the malformed."""
    ids = (f"{number:032x}" for number in itertools.count(1))
    keys = Keys(prefix)
    async with (
        node(valkey_url, prefix, counts=lambda: {"a": 1}, new_id=lambda: next(ids)) as one,
        Redis.from_url(valkey_url) as redis,
    ):
        # The registry's uid took the first id; its next survey takes the second.
        await redis.rpush(keys.answers(f"{2:032x}"), b"nonsense", b'{"uid":7}')
        await redis.hset(keys.nodes, "forged", b"nonsense")
        assert await one.channels() == ({"a": 1}, [])
        assert one.malformed == 3
        assert [n.uid for n in await one.nodes()] == [one.uid]


@pytest.mark.expects_log
@async_test
async def test_questions_beyond_the_limit_are_dropped(valkey_url, prefix):
    """A flood of surveys costs bounded memory, and the worker answers afterwards."""
    async with node(valkey_url, prefix) as one:
        for _ in range(rooms.MAX_QUESTIONS + 5):
            one.on_control(survey())
        assert one.malformed == 5
        assert len((await one.fresh_nodes()).nodes) == 1


@async_test
async def test_surveys_beyond_the_limit_are_refused_as_temporary(valkey_url, prefix):
    """MAX_SURVEYS at a time are answered, one more is error 111."""
    async with node(valkey_url, prefix, counts=lambda: {"a": 1}) as one:
        surveys = [one.channels() for _ in range(rooms.MAX_SURVEYS + 1)]
        results = await asyncio.gather(*surveys, return_exceptions=True)
        refused = [r for r in results if isinstance(r, CommandError)]
        assert [error.reply.code for error in refused] == [111]
        assert [r for r in results if r not in refused] == [({"a": 1}, [])] * rooms.MAX_SURVEYS
        assert await one.channels() == ({"a": 1}, [])


@async_test
async def test_too_many_channels_for_one_answer_are_an_error(valkey_url, prefix):
    """Rather than a list that looks complete: error 106; a pattern that fits is answered."""
    counts = {f"n:{i}": 1 for i in range(rooms.MAX_CHANNELS + 1)}
    async with node(valkey_url, prefix, counts=lambda: counts) as one:
        with pytest.raises(CommandError) as caught:
            await one.channels()
        assert caught.value.reply.code == 106
        assert len((await one.channels("n:99*")).clients) == 111


@pytest.mark.parametrize("pattern", ["a b", "{a,b}", "a\\*", "*" * 256])
@async_test
async def test_a_pattern_beyond_the_glob_is_refused(pattern, valkey_url, prefix):
    """Error 107, instead of a glob that means something else elsewhere."""
    async with node(valkey_url, prefix) as one:
        with pytest.raises(CommandError) as caught:
            await one.channels(pattern)
        assert caught.value.reply.code == 107


@async_test
async def test_a_pattern_of_many_stars_is_fast(valkey_url, prefix):
    """No backtracking: the worst glob over the longest name takes no noticeable time."""
    async with node(valkey_url, prefix, counts=lambda: {"a" * 255: 1}) as one:
        began_at = time.monotonic()
        assert await one.channels("*a" * 127 + "b") == ({}, [])
        assert time.monotonic() - began_at < rooms.SURVEY_S


@pytest.mark.expects_log
@async_test
async def test_without_redis_calls_fail_and_with_it_the_lease_is_back(prefix):
    """Redis away: BrokerUnavailable for whoever asks; Redis back: the worker renews by itself."""
    with own_valkey() as valkey:
        async with node(valkey.url, prefix, lease_s=0.4) as one:
            valkey.stop()
            for ask in (one.nodes, one.fresh_nodes, one.channels):
                with pytest.raises(BrokerUnavailable):
                    await ask()
            await until(lambda: not one.reachable)
            valkey.start()
            await until(lambda: is_listed(one, one.uid))
            assert one.reachable
            await until(lambda: answers_itself(one))


async def answers_itself(registry) -> bool:
    return (await registry.fresh_nodes()).silent == []


@pytest.mark.expects_log
@async_test
async def test_a_worker_closes_without_redis(prefix):
    """`close` returns although nobody takes the farewell."""
    with own_valkey() as valkey:
        async with node(valkey.url, prefix) as one:
            valkey.stop()
        assert one.malformed == 0


@pytest.mark.expects_log
@async_test
async def test_a_fault_in_the_counts_does_not_end_the_background_task(valkey_url, prefix):
    """The worker is listed as soon as its callables work again."""
    faults = [ZeroDivisionError(), ZeroDivisionError()]

    def stats() -> dict:
        if faults:
            raise faults.pop()
        return {"num_clients": 1}

    async with node(valkey_url, prefix, stats=stats, lease_s=0.4) as one:
        assert [n.num_clients for n in await one.nodes()] == [1]


@async_test
async def test_a_registry_that_was_never_started_closes(valkey_url, prefix):
    """Building takes no lease; closing it then is quiet and leaves no trace."""
    one = rooms.Registry(Store(RedisSettings(prefix=prefix), valkey_url), 0, dict, dict)
    await one.close()
    async with node(valkey_url, prefix, 1) as other:
        assert await is_missing(other, one.uid)


@pytest.mark.expects_log
@async_test
async def test_errands_reach_every_worker(valkey_url, prefix):
    """The sender's own included; nonsense is counted and ignored."""
    heard: dict[str, list] = {"one": [], "other": []}

    def refusing(errand: Errand) -> None:
        heard["other"].append(errand)
        raise ValueError("not to any client")

    async with (
        node(valkey_url, prefix, 0, on_errand=heard["one"].append) as one,
        node(valkey_url, prefix, 1, on_errand=refusing) as other,
    ):
        errand = Errand(EMIT, "c1", "said", ["hi"])
        await one.send(encode_errand(errand))
        await until(lambda: heard["one"] and heard["other"])
        assert heard == {"one": [errand], "other": [errand]}
        await until(lambda: other.malformed == 1)
        one.on_control(b'{"do":"errand","what":"nonsense"}')
        assert (one.malformed, len(heard["one"])) == (1, 1)


async def met(params: dict) -> dict:
    return {"met": params["count"]}


@async_test
async def test_an_order_is_carried_out_by_all_workers(valkey_url, prefix):
    """Each answers by itself; one that does not know it is named as silent."""
    async with (
        node(valkey_url, prefix, 0, orders={"end": met}) as one,
        node(valkey_url, prefix, 1, orders={"end": met}),
        node(valkey_url, prefix, 2, deaf=True) as deaf,
    ):
        answers, silent = await one.order("end", {"count": 3})
        assert ([answer["met"] for answer in answers], silent) == ([3, 3], [deaf.uid])


@async_test
async def test_an_order_may_be_sent_another_way(valkey_url, prefix):
    """Which says how many have heard it."""
    async with node(valkey_url, prefix, orders={"end": met}) as one:
        sent = []

        async def send(message: bytes) -> int:
            sent.append(message)
            one.on_control(message)
            return 1

        assert (await one.order("end", {"count": 1}, send)).answers[0]["met"] == 1
        assert len(sent) == 1


@pytest.mark.expects_log
@async_test
async def test_an_order_that_nobody_can_be_told_of_is_carried_out(valkey_url, prefix):
    """It begins as it is heard, however many questions wait; a malformed one is counted."""
    begun = []

    def begin(params: dict) -> asyncio.Future:
        begun.append(params)
        return asyncio.ensure_future(met(params))

    def refuse(params: dict) -> asyncio.Future:
        raise ValueError("nonsense")

    async with node(valkey_url, prefix, orders={"end": begin, "bad": refuse}) as one:
        for _ in range(rooms.MAX_QUESTIONS):
            one.on_control(survey())
        one.on_control(survey("end", params={"count": 1}))
        assert (begun, one.malformed) == ([{"count": 1}], 1)
        one.on_control(survey("bad"))
        assert one.malformed == 2
        assert len((await one.fresh_nodes()).nodes) == 1
