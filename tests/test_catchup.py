"""Catch-up: one round trip at a time, every read answered."""

from __future__ import annotations

import asyncio

import pytest

from hub.catchup import BATCH, BATCH_PUBLICATIONS, TELL_AT_ONCE, Catchup
from hub.channels import Namespace
from hub.errors import BrokerUnavailable
from hub.history import Asked, Page
from tests.support import async_test

NS = Namespace(mode="stream")


def wanted(channel: str) -> Asked:
    return Asked(channel, NS)


class History:
    def __init__(self) -> None:
        self.batches: list = []
        self.error: Exception | None = None

    async def read_many(self, many: list) -> list:
        self.batches.append([one.channel for one in many])
        await asyncio.sleep(0)
        if self.error:
            raise self.error
        return [Page(one.channel, 1, []) for one in many]


@async_test
async def test_what_is_asked_meanwhile_goes_with_the_next_round_trip():
    """In order, and never answered from within the call."""
    history, told = History(), []
    catchup = Catchup(history)

    def first(page: Page) -> None:
        told.append(page.epoch)
        for i in range(BATCH + 1):
            catchup.read(wanted(f"b{i}"), lambda page: told.append(page.epoch))

    catchup.read(wanted("a"), first)
    assert told == []
    while len(told) < BATCH + 2:
        await asyncio.sleep(0)
    assert [len(batch) for batch in history.batches] == [1, BATCH, 1]
    assert told == ["a", *(f"b{i}" for i in range(BATCH + 1))] and catchup.reads == BATCH + 2
    await catchup.close()


@async_test
async def test_a_round_trip_asks_for_so_many_publications():
    """Long pages come a few at a time, and the longest alone: what is read at once is held at once."""
    history, told = History(), []
    catchup = Catchup(history)
    for limit in (BATCH_PUBLICATIONS - 1, 1, 1, BATCH_PUBLICATIONS + 1, 0):
        catchup.read(Asked(str(limit), NS, limit=limit), told.append)
    while len(told) < 5:
        await asyncio.sleep(0)
    assert [len(batch) for batch in history.batches] == [2, 1, 1, 1]


@async_test
async def test_redis_away_is_everybodys_answer():
    """At once, also those of later round trips, who would wait for one timeout after the other; then it goes on."""
    history, told = History(), []
    catchup = Catchup(history)
    history.error = BrokerUnavailable("away")
    for _ in range(2 * BATCH + TELL_AT_ONCE + 1):
        catchup.read(wanted("a"), told.append)
    while len(told) < 2 * BATCH + TELL_AT_ONCE + 1:
        await asyncio.sleep(0)
    assert set(told) == {history.error} and len(history.batches) == 1
    history.error = None
    catchup.read(wanted("a"), told.append)
    while len(history.batches) < 2:
        await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert told[-1] == Page("a", 1, [])


@async_test
async def test_who_asks_because_of_a_refusal_is_not_refused_for_it():
    """It is asked of Redis anew; otherwise the two would go round for ever."""
    history, told = History(), []
    catchup = Catchup(history)
    history.error = BrokerUnavailable("away")

    def again(answer: object) -> None:
        history.error = None
        catchup.read(wanted("a"), told.append)

    catchup.read(wanted("a"), again)
    while not told:
        await asyncio.sleep(0)
    assert told == [Page("a", 1, [])]


@pytest.mark.expects_log
@async_test
async def test_a_stream_that_fails_on_its_page_hurts_nobody(caplog):
    """The others of its round trip are told theirs."""
    told: list = []
    catchup = Catchup(History())
    catchup.read(wanted("a"), lambda page: 1 / 0)
    catchup.read(wanted("b"), told.append)
    while not told:
        await asyncio.sleep(0)
    assert "failed on its page" in caplog.text


@pytest.mark.expects_log
@async_test
async def test_a_fault_of_the_library_is_an_answer_too(caplog):
    """Otherwise the channel would stand still for good; the next read works."""
    history, told = History(), []
    history.error = ValueError("never seen before")
    catchup = Catchup(history)
    catchup.read(wanted("a"), told.append)
    while not told:
        await asyncio.sleep(0)
    assert isinstance(told[0], BrokerUnavailable) and "never seen before" in caplog.text
    history.error = None
    catchup.read(wanted("a"), told.append)
    while len(told) < 2:
        await asyncio.sleep(0)
    assert told[1] == Page("a", 1, [])
