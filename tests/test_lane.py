"""One lane: what waits, what may wait, and how a round trip is confirmed."""

from __future__ import annotations

import asyncio

import pytest
from redis.asyncio import Redis

from hub.lane import Lane
from hub.scripts import Outcome, Scripts
from tests.support import async_test


@async_test
async def test_a_confirmation_stands_behind_each_round_trip(valkey_url, prefix):
    """Its reply comes with every command of the trip; an error of one command is that command's alone."""
    lane = Lane(Redis.from_url(valkey_url), Scripts("publish_once"), 10, 1000, ("WAIT", 0, 1))
    told: list[Outcome] = []
    lane.put(("INCR", f"{prefix}:n"), 1, told.append)
    lane.put(("NOSUCH",), 1, told.append)
    await lane.close()
    assert told[0] == (1, 0) and told[1].confirmed == 0 and "unknown command" in str(told[1].reply)


@async_test
async def test_a_lane_has_room_for_so_many_and_so_much(valkey_url, prefix):
    """Until they have been told; a single command larger than the bound may go where none waits."""
    lane = Lane(Redis.from_url(valkey_url), Scripts("publish_once"), 2, 100)
    told: list[Outcome] = []
    assert lane.has_room(1000)
    lane.put(("INCR", f"{prefix}:n"), 60, told.append)
    assert lane.has_room(40) and not lane.has_room(41)
    lane.put(("INCR", f"{prefix}:n"), 40, told.append)
    assert not lane.has_room(0)
    while len(told) < 2:
        await asyncio.sleep(0)
    assert lane.has_room(1000) and [outcome.reply for outcome in told] == [1, 2]
    await lane.close()


@pytest.mark.expects_log
@async_test
async def test_one_who_fails_on_being_told_leaves_the_others_theirs(valkey_url, prefix, caplog):
    """Logged, once."""
    lane = Lane(Redis.from_url(valkey_url), Scripts("publish_once"), 10, 1000)
    told: list[Outcome] = []

    def fail(_outcome: Outcome) -> None:
        raise RuntimeError("mine")

    for tell in (fail, told.append):
        lane.put(("INCR", f"{prefix}:n"), 1, tell)
    await lane.close()
    assert told == [Outcome(2, None)] and "a publisher failed on its verdict" in caplog.text


@pytest.mark.expects_log
@async_test
async def test_a_fault_of_the_library_is_an_answer_too(caplog):
    """Whoever waits is told, and the lane goes on."""

    class Broken:
        def pipeline(self, transaction: bool) -> object:
            raise ValueError("never seen before")

        async def aclose(self) -> None: ...

    lane = Lane(Broken(), Scripts("publish_once"), 10, 1000)
    told: list[Outcome] = []
    for _ in range(2):
        lane.put(("PING",), 1, told.append)
        await asyncio.sleep(0)
    await lane.close()
    assert [type(outcome.reply) for outcome in told] == [ValueError] * 2 and "never seen before" in caplog.text
