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


async def sent(runner: Runner, count: int) -> list:
    """As many commands as `count` says, once they are there."""
    async with asyncio.timeout(5):
        while len(runner.sent) < count:
            await asyncio.sleep(0.001)
    return runner.sent


@async_test
async def test_what_may_wait_is_saved_once_with_what_is_newest_then(monkeypatch):
    """A slider that is moved all the time: its time is counted from the first change, so that it has an end."""
    monkeypatch.setattr(room, "STEP_S", 0.05)
    runner, remembered, _ = rig()
    texts = [b"0"]
    begun = asyncio.get_running_loop().time()
    while not runner.sent:
        texts[0] = b"%d" % (int(texts[0]) + 1)
        remembered.save_later("a", lambda: texts[0], 60)
        assert asyncio.get_running_loop().time() < begun + 5
        await asyncio.sleep(0.001)
    assert asyncio.get_running_loop().time() >= begun + 0.04
    assert len(runner.sent) == 1 and int(runner.sent[0][2]) > 1 and runner.sent[0][1:2] == ("hub:wants:a",)


@async_test
async def test_many_that_wait_go_in_steps(monkeypatch):
    """The newest source of each name; all are saved in the end, and who changes again waits behind the others."""
    monkeypatch.setattr(room, "STEP_S", 0.0)
    monkeypatch.setattr(room, "SAVED_AT_ONCE", 2)
    runner, remembered, _ = rig()

    def last_of_the_first_step() -> bytes:
        remembered.save_later("0", lambda: b"newer", 60)
        return b"new"

    for text in (b"old", b"new"):
        for i in range(5):
            remembered.save_later(f"{i}", lambda text=text: text, 60)
    remembered.save_later("1", last_of_the_first_step, 60)
    expected = [(f"hub:wants:{i}", b"new") for i in range(5)] + [("hub:wants:0", b"newer")]
    assert [command[1:3] for command in await sent(runner, 6)] == expected


@async_test
async def test_what_waits_is_given_out_and_saved_before_its_time():
    """Whoever comes back to the same worker before its old connection has ended misses nothing."""
    runner, remembered, told = rig()
    remembered.save_later("a", lambda: b"1", 60)
    remembered.recall("a", told.append)
    await asyncio.sleep(0)
    assert told == [b"1"] and [command[0] for command in runner.sent] == ["SET"]
    remembered.save_later("b", lambda: b"2", 60)
    remembered.save_now("b")
    remembered.save_now("b")
    remembered.save_now("nobody")
    assert len(await sent(runner, 2)) == 2


@async_test
async def test_one_timer_is_enough_however_often_nothing_waits_any_more(monkeypatch):
    """A client that changes something and goes, again and again, leaves no timer behind each time."""
    monkeypatch.setattr(room, "STEP_S", 0.01)
    fired = 0

    class Counting(Remembered):
        def _save_due(self) -> None:
            nonlocal fired
            fired += 1
            super()._save_due()

    runner, _, _ = rig()
    remembered = Counting(runner, Keys("hub"))
    for i in range(100):
        remembered.save_later(f"{i}", lambda: b"1", 60)
        remembered.save_now(f"{i}")
    remembered.save_later("last", lambda: b"2", 60)
    assert (await sent(runner, 101))[-1][1:3] == ("hub:wants:last", b"2")
    assert fired == 1
    remembered.save_later("again", lambda: b"3", 60)
    assert (await sent(runner, 102))[-1][1:3] == ("hub:wants:again", b"3")


@async_test
async def test_what_is_saved_at_once_is_not_saved_again_by_what_waited():
    """The end of a connection says it last: what it kept for an hour is kept for resume_s now."""
    runner, remembered, _ = rig()
    remembered.save_later("a", lambda: b"1", 3600)
    remembered.save("a", b"2", 60)
    remembered.save_now("a")
    assert [command[2:] for command in await sent(runner, 1)] == [(b"2", "PX", 60_000)]


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
    remembered.save_later("c", lambda: b"4", 60)
    remembered.save_later("d", lambda: b"5", 60)
    remembered.save_later("", lambda: b"nobody's", 60)
    await asyncio.sleep(0)
    assert [command[1:3] for command in runner.sent] == [("hub:wants:a", b"3")]
    for name in "cd":
        remembered.save_now(name)
    assert [command[1:3] for command in await sent(runner, 2)] == [("hub:wants:a", b"3"), ("hub:wants:c", b"4")]
