"""The rolls in a real Valkey: what the scripts count, tell and hold back, and that doing it twice changes nothing."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis.asyncio import Redis

from hub.errors import BrokerUnavailable
from hub.message import ClientInfo, unpack_arrivals
from hub.roll import LEASE_S, MAX_DEPARTURES, Entry, Rolls, parse_roll, parse_scan, parse_term
from hub.scripts import load_script
from hub.sections import RedisSettings
from hub.store import Store
from tests.ear import Ear, listen
from tests.nodes import own_valkey
from tests.support import async_test

CHANNEL = "chat:room"
ODD = 'O\'Neil "x"\n\\ ü🙂 /'


class Rig:
    """Rolls, and an ear on the pushes of one channel."""

    def __init__(self, rolls: Rolls, redis: Redis, topic: str, ear: Ear) -> None:
        self.rolls, self.redis, self.topic, self.ear = rolls, redis, topic, ear

    async def run(self, command: tuple) -> object:
        [answer] = await self.rolls.run([command])
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def join(self, *clients: tuple[str, str], uid: str = "w1", name: str = "", topic: str | None = None) -> list:
        """clients: user and client id. Returns the names."""
        entries = [Entry(ClientInfo(*client), name) for client in clients]
        names = await self.run(self.rolls.join(CHANNEL, self.topic if topic is None else topic, uid, entries))
        return [name.decode() for name in names]

    async def leave(self, *clients: tuple[str, str], uid: str = "w1", grace_s: float = 0.0, hold: bool = True) -> int:
        leaves = [(ClientInfo(*client), hold) for client in clients]
        return await self.run(self.rolls.leave(CHANNEL, self.topic, uid, grace_s, leaves))

    async def depart(self) -> int:
        return await self.run(self.rolls.depart(CHANNEL, self.topic))

    async def counts(self) -> tuple[int, int]:
        roll = parse_roll(await self.run(self.rolls.read(CHANNEL, 0)), 0)
        return roll.clients, roll.users

    async def members(self, most: int = 1000) -> dict | None:
        body = parse_roll(await self.run(self.rolls.read(CHANNEL, most)), most).body
        return None if body is None else orjson.loads(body)

    async def pushes(self, count: int) -> list[tuple[str, str, str]]:
        """The next so many pushes, and no more than that: kind, user, client."""
        found = await self.ear.pushes()
        assert len(found) == count, found
        return found


@contextlib.asynccontextmanager
async def rig(url: str, prefix: str, lease_s: float = LEASE_S) -> AsyncIterator[Rig]:
    store = Store(RedisSettings(prefix=prefix), url)
    rolls, topic = Rolls(store, lease_s), store.keys.topic(CHANNEL, "none")
    async with Redis.from_url(url) as redis, listen(url, topic) as ear:
        try:
            yield Rig(rolls, redis, topic, ear)
        finally:
            await rolls.close()


# Who is there


@async_test
async def test_a_roll_counts_and_lists_clients_and_users(valkey_url, prefix):
    """Users once each; nobody of the anonymous ones; of all workers."""
    async with rig(valkey_url, prefix) as one:
        await one.join(("ann", "1"), ("ann", "2"), ("", "3"))
        await one.join((ODD, "4"), ("", "5"), uid="w2")
        assert await one.counts() == (5, 2)
        assert (await one.members())["4"] == {"user": ODD, "client": "4"}
        assert sorted(await one.members()) == list("12345")
        await one.leave(("ann", "1"))
        assert await one.counts() == (4, 2)
        await one.leave(("ann", "2"), ("", "3"))
        assert await one.counts() == (2, 1)


@async_test
async def test_an_empty_roll_is_no_key(valkey_url, prefix):
    """After the last client nothing of the channel is left in Redis."""
    async with rig(valkey_url, prefix) as one:
        await one.join(("ann", "1"), ("", "2"))
        await one.leave(("ann", "1"), ("", "2"), grace_s=0.01)
        await asyncio.sleep(0.02)  # Redis' own clock
        assert await one.depart() == 1
        assert [key async for key in one.redis.scan_iter(f"{prefix}:*")] == []


@async_test
async def test_doing_it_twice_changes_and_tells_nothing(valkey_url, prefix):
    """A batch that may have been carried out can be sent again."""
    async with rig(valkey_url, prefix) as one:
        for _ in range(2):
            assert await one.join(("ann", "1"), ("bob", "2")) == ["1", "2"]
        assert [await one.leave(("ann", "1")) for _ in range(2)] == [1, 0]
        assert await one.counts() == (1, 1)
        assert await one.pushes(3) == [("join", "ann", "1"), ("join", "bob", "2"), ("leave", "ann", "1")]


@async_test
async def test_a_client_can_pass_to_another_worker_but_not_be_removed_by_the_old_one(valkey_url, prefix):
    """So that clearing up after an old uid never takes out who has been entered under the new one."""
    async with rig(valkey_url, prefix) as one:
        await one.join(("ann", "1"), uid="old")
        await one.join(("ann", "1"), uid="new")
        assert await one.leave(("ann", "1"), uid="old") == 0
        assert await one.counts() == (1, 1)
        touched = [await one.run(one.rolls.touch(CHANNEL, uid)) for uid in ("old", "new")]
        assert touched == [0, 1]
        _, found = parse_scan(await one.run(one.rolls.scan(CHANNEL, 0)), "new")
        assert found == [ClientInfo("ann", "1")]
        assert parse_scan(await one.run(one.rolls.scan(CHANNEL, 0)), "old")[1] == []


@async_test
async def test_more_clients_than_may_be_listed_are_counted(valkey_url, prefix):
    """The answer has the numbers and no list."""
    async with rig(valkey_url, prefix) as one:
        await one.join(("ann", "1"), ("bob", "2"), ("bob", "3"))
        assert await one.members(most=2) is None
        assert len(await one.members(most=3)) == 3
        assert await one.counts() == (3, 2)


@async_test
async def test_a_roll_nobody_touches_vanishes(valkey_url, prefix):
    """Every key has an end, and a touch puts it off."""
    async with rig(valkey_url, prefix) as one:
        await one.join(("ann", "1"), ("bob", "2"))
        await one.leave(("bob", "2"), grace_s=10)
        await one.run(one.rolls.renew("w1"))
        await one.rolls.run(one.rolls.attend("w1", [CHANNEL]))
        keys = [key async for key in one.redis.scan_iter(f"{prefix}:*")]
        assert len(keys) == 4
        assert all([await one.redis.pttl(key) > 0 for key in keys])
        attended = next(key for key in keys if b":attended:" in key)
        await one.redis.pexpire(attended, 1000)
        await one.run(one.rolls.renew("w1"))
        assert await one.redis.pttl(attended) > 50_000
        roll = next(key for key in keys if b":roll:" in key)
        await one.redis.pexpire(roll, 1000)
        await one.run(one.rolls.touch(CHANNEL, "w1"))
        assert await one.redis.pttl(roll) > 50_000


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.tuples(st.booleans(), st.sampled_from(["w1", "w2"]), st.sampled_from("1234"), st.integers(0, 2)), max_size=30
    )
)
def test_counts_always_fit_the_entries(valkey_url, prefix, steps):
    """Against a model, with clients that pass between workers and leaves that come twice or from the wrong one."""

    @async_test
    async def run() -> None:
        async with rig(valkey_url, prefix) as one:
            await one.redis.delete(*[f"{prefix}:roll:{{{CHANNEL}}}", f"{prefix}:away:{{{CHANNEL}}}"])
            owners: dict[str, str] = {}
            users = {"1": "ann", "2": "ann", "3": "bob", "4": ""}
            for joins, uid, client, grace_s in steps:
                if joins:
                    owners[client] = uid
                    await one.join((users[client], client), uid=uid)
                else:
                    if owners.get(client) == uid:
                        del owners[client]
                    await one.leave((users[client], client), uid=uid, grace_s=grace_s)
                assert set(await one.members()) == set(owners)
                assert await one.counts() == (len(owners), len({users[client] for client in owners} - {""}))
                for worker in ("w1", "w2"):
                    mine = sum(owner == worker for owner in owners.values())
                    assert await one.run(one.rolls.touch(CHANNEL, worker)) == mine

    run()


# Pushes


@async_test
async def test_a_quick_return_tells_watchers_nothing(valkey_url, prefix):
    """The user's next client stands in under the old one's name, and presence shows its own id at once."""
    async with rig(valkey_url, prefix) as one:
        await one.join((ODD, "1"))
        await one.leave((ODD, "1"), grace_s=20)
        assert await one.counts() == (0, 0)
        assert await one.join((ODD, "2"), uid="w2") == ["1"]
        assert list(await one.members()) == ["2"]
        assert await one.depart() == 0
        await one.leave((ODD, "2"), uid="w2")
        assert await one.pushes(2) == [("join", ODD, "1"), ("leave", ODD, "1")]


@async_test
async def test_a_held_leave_is_told_once_when_its_time_has_come(valkey_url, prefix):
    """Not before, and by one of all who try."""
    async with rig(valkey_url, prefix) as one:
        await one.join((ODD, "1"), (ODD, "2"))
        await one.leave((ODD, "1"), (ODD, "2"), grace_s=0.2)
        assert await one.depart() == 0
        await asyncio.sleep(0.25)  # Redis' own clock
        assert sum([await one.depart() for _ in range(2)]) == 2
        pushes = await one.pushes(4)
        assert sorted(pushes[2:]) == [("leave", ODD, "1"), ("leave", ODD, "2")]
        assert await one.join((ODD, "3")) == ["3"]


@async_test
async def test_each_return_takes_back_one_leave(valkey_url, prefix):
    """Two connections lost and one back: the other's leave is told."""
    async with rig(valkey_url, prefix) as one:
        await one.join(("ann", "1"), ("ann", "2"))
        await one.leave(("ann", "1"), ("ann", "2"), grace_s=0.1)
        assert await one.join(("ann", "3")) == ["1"]
        await asyncio.sleep(0.15)  # Redis' own clock
        assert await one.depart() == 1
        assert (await one.pushes(3))[2] == ("leave", "ann", "2")


@async_test
async def test_some_leaves_are_never_held(valkey_url, prefix):
    """That of the anonymous user, that of an unsubscribe, and all without a grace."""
    async with rig(valkey_url, prefix) as one:
        await one.join(("", "1"), ("ann", "2"), ("bob", "3"))
        await one.leave(("", "1"), grace_s=20)
        await one.leave(("ann", "2"), grace_s=20, hold=False)
        await one.leave(("bob", "3"), grace_s=0)
        assert [push[0] for push in await one.pushes(6)] == ["join"] * 3 + ["leave"] * 3


@async_test
async def test_who_was_announced_before_is_entered_again_in_silence(valkey_url, prefix):
    """After the store was lost; and a leave of the same name that waits is taken back, no other."""
    async with rig(valkey_url, prefix) as one:
        assert await one.join(("ann", "1"), name="0") == ["0"]
        await one.leave(("ann", "1"), grace_s=20)
        assert await one.join(("ann", "9"), name="9") == ["9"]
        assert await one.join(("ann", "1"), name="0") == ["0"]
        assert await one.run(one.rolls.depart(CHANNEL, one.topic)) == 0
        assert await one.redis.zcard(f"{prefix}:away:{{{CHANNEL}}}") == 0
        await one.pushes(0)


@async_test
async def test_a_channel_without_pushes_tells_nobody(valkey_url, prefix):
    """And several joins of one call are one message."""
    async with rig(valkey_url, prefix) as one:
        await one.join(("ann", "1"), topic="")
        await one.pushes(0)
        await one.join(("bob", "2"), ("cid", "3"))
        assert len(unpack_arrivals(await one.ear.message())) == 2


@async_test
async def test_many_held_leaves_are_told_in_steps(valkey_url, prefix):
    """MAX_DEPARTURES at a time: the caller sees that there may be more."""
    async with rig(valkey_url, prefix) as one:
        clients = [(f"u{number}", f"c{number}") for number in range(MAX_DEPARTURES + 1)]
        await one.join(*clients)
        await one.leave(*clients, grace_s=0.001)
        await asyncio.sleep(0.01)  # Redis' own clock
        assert [await one.depart() for _ in range(3)] == [MAX_DEPARTURES, 1, 0]


# Leases


@async_test
async def test_an_ended_lease_is_handed_to_one_worker_after_another(valkey_url, prefix):
    """First to who notices, and if that one does not finish in time to the next; never while it lives."""
    async with rig(valkey_url, prefix, lease_s=0.2) as one:

        async def renew(uid: str) -> object:
            return parse_term(await one.run(one.rolls.renew(uid)))

        first = await renew("w1")
        assert (first.held, first.dead) == (False, [])
        assert (await renew("w1")).held
        assert (await renew("w2")).dead == []
        await asyncio.sleep(0.25)  # Redis' own clock
        assert (await renew("w2")).dead == ["w1"]
        assert (await renew("w3")).dead == []
        await asyncio.sleep(0.25)
        assert sorted((await renew("w3")).dead) == ["w1", "w2"]
        await one.rolls.run([*one.rolls.cleared("w1"), *one.rolls.cleared("w2")])
        await asyncio.sleep(0.25)
        again = await renew("w2")
        assert (again.held, again.dead, again.identity) == (False, ["w3"], first.identity)


@async_test
async def test_a_retired_lease_ends_at_once(valkey_url, prefix):
    """Whoever looks next clears up."""
    async with rig(valkey_url, prefix) as one:
        await one.run(one.rolls.renew("w1"))
        await one.run(one.rolls.retire("w1"))
        assert parse_term(await one.run(one.rolls.renew("w2"))).dead == ["w1"]


# Trouble


@async_test
async def test_lost_scripts_are_loaded_and_the_whole_batch_runs_in_order(valkey_url, prefix):
    """A read behind a join sees it, also where only the read's script was known."""
    async with rig(valkey_url, prefix) as one:
        await one.redis.script_flush()
        await one.redis.script_load(load_script("presence_read"))
        join = one.rolls.join(CHANNEL, "", "w1", [Entry(ClientInfo("ann", "1"), "")])
        names, answer = await one.rolls.run([join, one.rolls.read(CHANNEL, 10)])
        assert (names, parse_roll(answer, 10).clients) == ([b"1"], 1)


@async_test
async def test_redis_away_is_a_temporary_error():
    """And not one of redis-py."""
    with own_valkey() as valkey:
        async with rig(valkey.url, "hub") as one:
            valkey.stop()
            with pytest.raises(BrokerUnavailable):
                await one.counts()
