"""Snapshots: one question for all who ask at the same time, and nothing older than what passed."""

from __future__ import annotations

import asyncio

import pytest

from hub.errors import BrokerUnavailable
from hub.message import Publication
from hub.snapshots import TELL_AT_ONCE, Snapshots
from tests.support import async_test


class Values:
    """Answers when the test lets it."""

    def __init__(self) -> None:
        self.asked: list = []
        self.go = asyncio.Event()
        self.error: Exception | None = None

    async def last(self, namespace: str, channels: list) -> list:
        self.asked.append((namespace, list(channels)))
        await self.go.wait()
        if self.error:
            raise self.error
        return [b"value of " + channel.encode() if channel != "t:none" else None for channel in channels]


async def asked(values: Values, times: int = 1) -> None:
    while len(values.asked) < times:
        await asyncio.sleep(0)


@async_test
async def test_all_who_ask_at_once_share_a_question():
    """Those who come while it is under way too; another namespace's is the next."""
    values, told = Values(), []
    snapshots = Snapshots(values)
    assert not snapshots.busy
    for channel in ("t:A", "t:A", "u:B", "t:none"):
        snapshots.ask(channel, lambda value, channel=channel: told.append((channel, value)))
    await asked(values)
    snapshots.ask("t:A", lambda value: told.append(("late", value)))
    values.go.set()
    await asked(values, 2)
    while snapshots.busy:
        await asyncio.sleep(0)
    assert values.asked == [("t", ["t:A", "t:none"]), ("u", ["u:B"])]
    a = b"value of t:A"
    assert told == [("t:A", a), ("t:A", a), ("late", a), ("t:none", None), ("u:B", b"value of u:B")]


@async_test
async def test_what_passes_meanwhile_is_newer():
    """The subscriber is not inside yet, so it would miss it."""
    values, told = Values(), []
    snapshots = Snapshots(values)
    snapshots.ask("t:A", told.append)
    await asked(values)
    snapshots.passed([Publication("t:A", b"new"), Publication("t:B", b"other"), Publication("t:A", b"newer")])
    values.go.set()
    while snapshots.busy:
        await asyncio.sleep(0)
    assert told == [b"newer"]


@async_test
async def test_redis_away_is_told_to_all_who_ask():
    """And the next one asks anew."""
    values, told = Values(), []
    snapshots = Snapshots(values)
    values.go.set()
    values.error = BrokerUnavailable("away")
    snapshots.ask("t:A", told.append)
    snapshots.ask("t:A", told.append)
    while snapshots.busy:
        await asyncio.sleep(0)
    assert told == [values.error, values.error]
    values.error = None
    snapshots.ask("t:A", told.append)
    while snapshots.busy:
        await asyncio.sleep(0)
    assert told[2:] == [b"value of t:A"]
    await snapshots.close()


@pytest.mark.parametrize("error", [BrokerUnavailable("away"), ZeroDivisionError()])
@pytest.mark.expects_log
@async_test
async def test_what_cannot_be_read_leaves_nobody_waiting(error):
    """Nor those whose question would be the next one; later ones are asked anew."""
    values, told = Values(), []
    snapshots = Snapshots(values)
    for channel in ("t:A", "u:B"):
        snapshots.ask(channel, told.append)
    await asked(values)
    values.error = error
    values.go.set()
    while snapshots.busy:
        await asyncio.sleep(0)
    assert len(told) == 2 and all(isinstance(one, BrokerUnavailable) for one in told) and len(values.asked) == 1
    values.error = None
    snapshots.ask("t:A", told.append)
    while len(told) < 3:
        await asyncio.sleep(0)
    assert told[2] == b"value of t:A"


@pytest.mark.expects_log
@async_test
async def test_who_fails_on_a_value_hurts_nobody(caplog):
    """The others are told theirs."""
    values, told = Values(), []
    snapshots = Snapshots(values)
    values.go.set()
    snapshots.ask("t:A", lambda value: 1 / 0)
    snapshots.ask("t:A", told.append)
    while not told:
        await asyncio.sleep(0)
    assert told == [b"value of t:A"] and "failed on its value" in caplog.text


@async_test
async def test_a_storm_is_told_in_slices_and_nobody_an_old_value():
    """What passes between two slices is the newest for those of the second, and for who asks then."""
    values, told = Values(), []
    snapshots = Snapshots(values)
    values.go.set()
    for _ in range(TELL_AT_ONCE + 1):
        snapshots.ask("t:A", told.append)
    while not told:
        await asyncio.sleep(0)
    assert len(told) == TELL_AT_ONCE and snapshots.busy
    snapshots.passed([Publication("t:A", b"newer")])
    snapshots.ask("t:A", told.append)
    while snapshots.busy:
        await asyncio.sleep(0)
    assert told[TELL_AT_ONCE:] == [b"newer"] * 2 and len(values.asked) == 1
    values.go.clear()
    snapshots.ask("t:A", told.append)
    values.go.set()
    while snapshots.busy:
        await asyncio.sleep(0)
    assert told[-1] == b"value of t:A"
