"""Workers that tell each other by a real Valkey who is there: in time, after deaths, and after the store was lost."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator

import orjson
import pytest
from redis.asyncio import Redis

from hub import presence as rooms
from hub.channels import Channels, Namespace
from hub.errors import BrokerUnavailable, CommandError
from hub.message import ClientInfo
from hub.presence import Presence
from hub.roll import LEASE_S, Entry, Roll
from hub.sections import RedisSettings
from hub.store import Store
from tests.ear import Ear, listen
from tests.nodes import own_valkey, until
from tests.support import async_test

NAMESPACES = {
    "room": Namespace(presence="anyone", join_leave=True),
    "quiet": Namespace(presence="anyone"),
    "ticker": Namespace(mode="latest", presence="anyone", join_leave=True),
}
CHANNEL = "room:a"


class Fanout:
    """Lets everybody in and out."""

    def watch(self, channel: str, subscriber: object) -> None: ...

    def unwatch(self, channel: str, subscriber: object) -> None: ...


class Worker:
    """The presence of one worker, and what a test does with it."""

    def __init__(self, presence: Presence) -> None:
        self.presence = presence

    def enter(self, user: str, client: str, channel: str = CHANNEL) -> None:
        namespace = Channels(NAMESPACES).resolve(channel)
        self.presence.enter(channel, namespace, ClientInfo(user, client), None)

    def exit(self, client: str, channel: str = CHANNEL, hold: bool = True) -> None:
        self.presence.exit(channel, client, hold)

    async def ask(self, channel: str = CHANNEL, full: bool = True) -> Roll:
        """Raises what the answer is where it is an error."""
        verdict = asyncio.get_running_loop().create_future()
        self.presence.ask(channel, full, verdict.set_result)
        if isinstance(found := await verdict, Exception):
            raise found
        return found

    async def clients(self, channel: str = CHANNEL) -> set[str]:
        return set(orjson.loads((await self.ask(channel)).body))

    async def sees(self, *clients: str, channel: str = CHANNEL) -> None:
        """Return once exactly these are there, for presence and its counts alike."""

        async def are_there() -> bool:
            try:
                return await self.clients(channel) == set(clients)
            except BrokerUnavailable:
                return False

        await until(are_there)
        assert (await self.ask(channel, full=False)).clients == len(clients)

    def die(self) -> None:
        """As by kill -9: nothing more is sent, nothing cleared up."""
        self.presence._runner.cancel()


@contextlib.asynccontextmanager
async def worker(url: str, prefix: str, **options: object) -> AsyncIterator[Worker]:
    """One that runs; a lease of 0.8 s unless the test says otherwise."""
    store = Store(RedisSettings(prefix=prefix, command_timeout_s=1), url)
    options = {"lease_s": 0.8, "grace_s": 0.3, "jitter": lambda: 0.0} | options
    presence = Presence(store, Fanout(), Channels(NAMESPACES), **options)
    presence.start()
    try:
        yield Worker(presence)
    finally:
        if presence._runner.cancelled() or presence._runner.cancelling():
            await presence._rolls.close()
        else:
            await presence.close()


@contextlib.asynccontextmanager
async def hearing(url: str, prefix: str, channel: str = CHANNEL) -> AsyncIterator[Ear]:
    """An ear on the pushes of one channel."""
    topic = Store(RedisSettings(prefix=prefix), url).keys.topic(channel, NAMESPACES[channel.partition(":")[0]].mode)
    async with listen(url, topic) as ear:
        yield ear


# Who is there


@async_test
async def test_workers_see_each_others_clients(valkey_url, prefix):
    """Who asks sees all that its own worker noted before, and soon what the others did."""
    async with worker(valkey_url, prefix) as one, worker(valkey_url, prefix) as other:
        one.enter("ann", "1")
        assert await one.clients() == {"1"}
        other.enter("ann", "2")
        other.enter("", "3")
        await one.sees("1", "2", "3")
        roll = await other.ask()
        assert (roll.clients, roll.users) == (3, 1)
        assert orjson.loads(roll.body)["2"] == {"user": "ann", "client": "2"}
        one.exit("1")
        await other.sees("2", "3")


@async_test
async def test_namespaces_without_presence_cost_nothing(valkey_url, prefix):
    """Not a key in Redis, not an entry here."""
    async with worker(valkey_url, prefix) as one, Redis.from_url(valkey_url) as redis:
        one.presence.enter("off:a", Namespace(), ClientInfo("ann", "1"), None)
        one.exit("1", "off:a")
        await one.ask()
        assert [key async for key in redis.scan_iter(f"{prefix}:roll:*")] == []
        assert not one.presence._attendance.rooms


@async_test
async def test_more_clients_than_fit_in_an_answer_are_106_and_counted(valkey_url, prefix):
    """The text names the limit."""
    async with worker(valkey_url, prefix, most_clients=2) as one:
        for client in "123":
            one.enter("ann", client)
        with pytest.raises(CommandError, match="3 clients; allowed in one answer: 2") as caught:
            await one.ask()
        assert caught.value.reply.code == 106
        assert (await one.ask(full=False)).clients == 3


@async_test
async def test_many_who_ask_at_once_cost_one_read(valkey_url, prefix, monkeypatch):
    """Equal questions share an answer; too many different ones are 111."""
    monkeypatch.setattr(rooms, "MAX_ASKS", 2)
    async with worker(valkey_url, prefix) as one, Redis.from_url(valkey_url) as redis:
        one.enter("ann", "1")
        await one.ask()
        before = (await redis.info("commandstats"))["cmdstat_evalsha"]["calls"]
        rolls = await asyncio.gather(*[one.ask() for _ in range(1000)], one.ask(full=False))
        assert {roll.clients for roll in rolls} == {1}
        # Those two, and perhaps a renewal or two of the lease.
        assert (await redis.info("commandstats"))["cmdstat_evalsha"]["calls"] - before <= 4
        answers = await asyncio.gather(*[one.ask(f"room:{n}") for n in range(3)], return_exceptions=True)
        assert [getattr(answer, "reply", None) and answer.reply.code for answer in answers] == [None, None, 111]


@async_test
async def test_many_clients_of_many_channels_are_told_in_batches(valkey_url, prefix):
    """All of them, also of a channel with more than one batch takes; and all go again."""
    async with worker(valkey_url, prefix) as one, Redis.from_url(valkey_url) as redis:
        for number in range(300):
            one.enter(f"u{number}", f"c{number}", "quiet:large")
            one.enter("ann", "1", f"quiet:{number}")
        await until(lambda: not one.presence._attendance.dirty)
        assert (await one.ask("quiet:large")).users == 300
        assert await one.clients("quiet:299") == {"1"}
        for number in range(300):
            one.exit(f"c{number}", "quiet:large")
            one.exit("1", f"quiet:{number}")

        async def nothing_is_left() -> bool:
            return not [key for kind in ("roll", "attended") async for key in redis.scan_iter(f"{prefix}:{kind}:*")]

        await until(nothing_is_left)


# Deaths


def test_the_default_lease_fits_the_promise():
    """A killed worker's clients are gone within 5 s: its lease, and the time until somebody looks."""
    assert LEASE_S * (1 + 1 / rooms.RENEWALS_PER_LEASE) <= 4.6


@async_test
async def test_a_dead_workers_clients_vanish_with_its_lease(valkey_url, prefix):
    """From all its channels, and its keys with them; those of the others stay."""
    async with (
        Redis.from_url(valkey_url) as redis,
        worker(valkey_url, prefix) as one,
        worker(valkey_url, prefix) as other,
    ):
        one.enter("ann", "1")
        for number in range(600):
            other.enter("bob", "2", f"quiet:{number}")
        other.enter("bob", "2")
        await one.sees("1", "2")
        await until(lambda: not other.presence._attendance.dirty)
        other.die()
        died_at = time.monotonic()
        await one.sees("1")
        assert time.monotonic() - died_at < 3
        await until(lambda: not one.presence._dead)
        assert await one.clients("quiet:599") == set()
        assert not [key async for key in redis.scan_iter(f"{prefix}:attended:*{other.presence.uid}")]


@async_test
async def test_a_dead_workers_leaves_are_told_by_another(valkey_url, prefix):
    """Those of its clients after the grace, and those that it held back itself; none of who came back."""
    async with (
        hearing(valkey_url, prefix) as ear,
        worker(valkey_url, prefix) as one,
        worker(valkey_url, prefix, grace_s=1) as other,
    ):
        for user, client in (("ann", "1"), ("bob", "2"), ("cid", "3")):
            other.enter(user, client)
        assert [(await ear.push())[2] for _ in range(3)] == ["1", "2", "3"]
        other.exit("2")
        await one.sees("1", "3")
        other.die()
        await one.sees()
        one.enter("cid", "4")
        assert {await ear.push() for _ in range(2)} == {("leave", "ann", "1"), ("leave", "bob", "2")}
        one.exit("4", hold=False)
        assert await ear.push() == ("leave", "cid", "3")


@async_test
async def test_a_worker_that_ends_takes_its_clients_along_and_hands_its_leaves_over(valkey_url, prefix):
    """At `close` they are out at once; what it held back is told by another in time."""
    async with worker(valkey_url, prefix) as one, hearing(valkey_url, prefix) as ear:
        async with worker(valkey_url, prefix, lease_s=30) as other:
            other.enter("ann", "1")
            await one.sees("1")
            other.exit("1")
        assert await one.clients() == set()
        assert [await ear.push(), await ear.push()] == [("join", "ann", "1"), ("leave", "ann", "1")]


@async_test
async def test_a_worker_that_hung_enters_its_clients_again(valkey_url, prefix):
    """It was taken for dead; its clients come back in silence, for nobody was told of their leave."""
    async with (
        worker(valkey_url, prefix, grace_s=5) as one,
        worker(valkey_url, prefix, grace_s=5) as other,
        hearing(valkey_url, prefix) as ear,
    ):
        other.enter("ann", "1")
        assert await ear.push() == ("join", "ann", "1")
        await one.sees("1")
        # As if stopped: it comes to nothing until the lease has ended and the other one has cleared up.
        run = other.presence._rolls.run
        gate = asyncio.Event()

        async def hang(commands: list) -> list:
            await gate.wait()
            return await run(commands)

        other.presence._rolls.run = hang
        await one.sees()
        gate.set()
        await one.sees("1")
        one.enter("bob", "2")
        assert await ear.push() == ("join", "bob", "2")
        other.exit("1", hold=False)
        assert await ear.push() == ("leave", "ann", "1")


# The store


@async_test
async def test_after_a_flush_everybody_is_there_again(valkey_url, prefix):
    """At once, in silence; the counts fit."""
    with own_valkey() as valkey:
        async with (
            worker(valkey.url, prefix) as one,
            worker(valkey.url, prefix) as other,
            Redis.from_url(valkey.url) as redis,
            hearing(valkey.url, prefix) as ear,
        ):
            one.enter("ann", "1")
            other.enter("ann", "2")
            await one.sees("1", "2")
            assert {await ear.push() for _ in range(2)} == {("join", "ann", "1"), ("join", "ann", "2")}
            await redis.flushall()
            await one.sees("1", "2")
            assert (await one.ask()).users == 1
            one.enter("bob", "3")
            assert await ear.push() == ("join", "bob", "3")


@pytest.mark.expects_log
@async_test
async def test_a_store_that_comes_back_with_an_older_state_is_told_again(prefix):
    """As after a failover to a replica that lagged: the lease stands there, but not the last who entered."""
    with own_valkey() as valkey:
        async with worker(valkey.url, prefix, lease_s=4) as one:
            one.enter("ann", "1")
            await one.sees("1")
            async with Redis.from_url(valkey.url) as redis:
                await redis.save()
            one.enter("bob", "2")
            one.exit("1")
            await one.sees("2")
            valkey.stop()
            valkey.start()
            await until(lambda: one.presence._down is None)
            await one.sees("2")


@async_test
async def test_a_roll_that_was_evicted_is_written_again(valkey_url, prefix, monkeypatch):
    """The touch finds entries missing."""
    monkeypatch.setattr(rooms, "TOUCH_S", 0.2)
    async with worker(valkey_url, prefix) as one, Redis.from_url(valkey_url) as redis:
        one.enter("ann", "1")
        await one.sees("1")
        await redis.delete(f"{prefix}:roll:{{{CHANNEL}}}")
        await one.sees("1")


@pytest.mark.expects_log
@async_test
async def test_what_is_in_the_way_of_one_roll_costs_no_other_channel(valkey_url, prefix, monkeypatch):
    """That channel alone has no presence, for this worker and for who clears up after it; and has it once it can."""
    monkeypatch.setattr(rooms, "TOUCH_S", 0.2)
    async with (
        worker(valkey_url, prefix) as dead,
        worker(valkey_url, prefix) as one,
        Redis.from_url(valkey_url) as redis,
    ):
        dead.enter("bob", "9", "quiet:b")
        await one.sees("9", channel="quiet:b")
        await redis.set(f"{prefix}:roll:{{{CHANNEL}}}", "something else")
        dead.enter("bob", "9")
        one.enter("ann", "1")
        one.enter("ann", "1", "quiet:b")
        await one.sees("1", "9", channel="quiet:b")
        with pytest.raises(BrokerUnavailable):
            await one.ask()
        dead.die()
        await one.sees("1", channel="quiet:b")
        await redis.delete(f"{prefix}:roll:{{{CHANNEL}}}")
        await one.sees("1")


@async_test
async def test_a_client_that_is_in_the_roll_but_not_here_goes(valkey_url, prefix, monkeypatch):
    """As a worker's mistake would leave it: the touch finds one too many, and it goes with the lease of the old uid."""
    monkeypatch.setattr(rooms, "TOUCH_S", 0.2)
    async with worker(valkey_url, prefix) as one:
        one.enter("ann", "1")
        await one.sees("1")
        info = ClientInfo("bob", "2")
        await one.presence._rolls.run([one.presence._rolls.join(CHANNEL, "", one.presence.uid, [Entry(info, "")])])
        assert await one.clients() == {"1", "2"}
        await one.sees("1")


@pytest.mark.expects_log
@async_test
async def test_while_redis_is_away_asking_fails_and_noting_does_not(prefix, caplog):
    """Who comes and goes meanwhile is told once it is back; those who only passed by are not."""
    with own_valkey() as valkey:
        async with worker(valkey.url, prefix) as one:
            one.enter("ann", "1")
            one.enter("ann", "2")
            await one.sees("1", "2")
            valkey.stop()
            with pytest.raises(BrokerUnavailable):
                await one.ask()
            asked_at = time.monotonic()
            for _ in range(100):
                with pytest.raises(BrokerUnavailable):
                    await one.ask()
            assert time.monotonic() - asked_at < rooms.RETRY_S, (
                "who asks while it is known to be away waits for nothing"
            )
            one.enter("bob", "3")
            one.enter("cid", "4")
            one.exit("4")
            one.exit("2")
            valkey.start()
            await one.sees("1", "3")
            assert (await one.ask()).users == 2
    assert any("presence: Redis at" in record.message for record in caplog.records)


@pytest.mark.expects_log
@async_test
async def test_a_store_that_refuses_writes_is_tried_until_it_takes_them(prefix):
    """As when it is out of memory or a replica."""
    with own_valkey() as valkey:
        async with worker(valkey.url, prefix) as one, Redis.from_url(valkey.url) as redis:
            one.enter("ann", "1")
            await one.sees("1")
            await redis.execute_command("REPLICAOF", "127.0.0.1", "1")
            one.enter("ann", "2")
            one.enter("ann", "2", "quiet:a")
            with pytest.raises(BrokerUnavailable):
                await one.ask()
            await redis.execute_command("REPLICAOF", "NO", "ONE")
            await one.sees("1", "2")
            await one.sees("2", channel="quiet:a")
            # Where another worker would have to clear up.
            noted = await redis.smembers(f"{prefix}:attended:{{nodes}}:{one.presence.uid}")
            assert noted == {CHANNEL.encode(), b"quiet:a"}


# Pushes


@async_test
async def test_a_return_within_the_grace_is_not_told(valkey_url, prefix):
    """By another worker and connection; when the user has really gone, the leave carries the name of then."""
    async with (
        worker(valkey_url, prefix, grace_s=2) as one,
        worker(valkey_url, prefix, grace_s=0.1) as other,
        hearing(valkey_url, prefix) as ear,
    ):
        one.enter("ann", "1")
        await other.sees("1")
        one.exit("1")
        await other.sees()
        other.enter("ann", "2")
        await one.sees("2")
        other.exit("2")
        assert [await ear.push(), await ear.push()] == [("join", "ann", "1"), ("leave", "ann", "1")]


@async_test
async def test_an_unsubscribe_is_told_at_once(valkey_url, prefix):
    """It is no loss, so nobody waits for a return."""
    async with worker(valkey_url, prefix, grace_s=30) as one, hearing(valkey_url, prefix) as ear:
        one.enter("ann", "1")
        assert await ear.push() == ("join", "ann", "1")
        one.exit("1", hold=False)
        assert await ear.push() == ("leave", "ann", "1")


@async_test
async def test_pushes_of_latest_channels_come_on_their_feed(valkey_url, prefix):
    """Which each worker with a subscriber holds."""
    async with worker(valkey_url, prefix) as one, hearing(valkey_url, prefix, "ticker:a") as ear:
        one.enter("ann", "1", "ticker:a")
        one.enter("bob", "2", "quiet:a")
        one.exit("1", "ticker:a", hold=False)
        one.enter("cid", "3", "ticker:b")
        assert [await ear.push()] == [("join", "cid", "3")]


@pytest.mark.expects_log
@async_test
async def test_a_fault_of_ours_costs_one_step_and_not_presence(valkey_url, prefix, monkeypatch):
    """It is logged, who asked is told to come again, and the next step goes on."""
    monkeypatch.setattr(rooms, "RETRY_S", 0.1)
    async with worker(valkey_url, prefix) as one:
        one.enter("ann", "1")
        await one.sees("1")
        renew = one.presence._renew
        failed = asyncio.Event()

        async def fail() -> None:
            one.presence._renew = renew
            failed.set()
            raise RuntimeError("a mistake")

        one.presence._renew = fail
        await failed.wait()
        one.enter("bob", "2")
        await one.sees("1", "2")
