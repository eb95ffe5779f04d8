"""Remembered: what is kept of a name, and what becomes of it without Redis."""

from __future__ import annotations

import asyncio

import pytest

from hub import remembered as room
from hub.errors import BrokerUnavailable
from hub.remembered import Remembered
from hub.store import Keys
from tests.support import async_test


class Runner:
    def __init__(self) -> None:
        self.sent: list = []
        self.reply: object = b"OK"

    def command(self, command, size, replied) -> None:
        self.sent.append(command)
        asyncio.get_running_loop().call_soon(replied, self.reply)


def rig() -> tuple[Runner, Remembered, list]:
    runner = Runner()
    return runner, Remembered(runner, Keys("hub")), []


@async_test
async def test_the_newest_of_one_turn_is_sent():
    """Whoever moves a slider all the time costs Redis one command for each turn of the loop."""
    runner, remembered, told = rig()
    for text in (b"1", b"2", b"3"):
        remembered.save("a", text, 60)
    remembered.save("b", b"4", 0.5)
    remembered.save("", b"nobody's", 60)
    assert runner.sent == []
    remembered.recall("a", told.append)
    await asyncio.sleep(0)
    assert runner.sent == [("SET", "hub:wants:a", b"3", "PX", 60_000), ("SET", "hub:wants:b", b"4", "PX", 500)]
    assert told == [b"3"]


@pytest.mark.parametrize(("reply", "found"), [(b"text", b"text"), (None, None), (BrokerUnavailable("away"), None)])
@async_test
async def test_what_is_kept_is_given_out(reply, found):
    """Without Redis it is as if nothing were."""
    runner, remembered, told = rig()
    runner.reply = reply
    remembered.recall("a", told.append)
    assert told == []
    await asyncio.sleep(0)
    assert told == [found] and runner.sent == [("GET", "hub:wants:a")]


@pytest.mark.expects_log
@async_test
async def test_without_redis_nothing_is_kept_and_the_log_says_so():
    """Nobody is told: they would learn it when they come back."""
    runner, remembered, _ = rig()
    runner.reply = BrokerUnavailable("away")
    remembered.save("a", b"1", 60)
    await asyncio.sleep(0)
    await asyncio.sleep(0)


@async_test
async def test_more_than_may_wait_is_not_kept(monkeypatch):
    """Those that wait already may change."""
    monkeypatch.setattr(room, "MAX_WAITING", 1)
    runner, remembered, _ = rig()
    remembered.save("a", b"1", 60)
    remembered.save("b", b"2", 60)
    remembered.save("a", b"3", 60)
    await asyncio.sleep(0)
    assert [command[1:3] for command in runner.sent] == [("hub:wants:a", b"3")]
