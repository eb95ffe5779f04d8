"""Thinning: what is due when, what is merged away, and that the last value always comes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

import pytest

from hub.thinning import Newest, paced
from hub.tick import Batch, make_tick
from tests.support import async_test


def tick(symbol: str, seq: int) -> dict:
    return make_tick({"symbol": symbol, "price": 1, "seq": seq}, 0, 0)


async def source(gate: asyncio.Event, count: int, closed: list) -> AsyncGenerator[Batch, None]:
    """`count` batches at once, then, behind the gate, one more."""
    try:
        for number in range(count):
            yield Batch((), str(number))
        await gate.wait()
        yield Batch((), "last")
    finally:
        closed.append(True)


@async_test
async def test_without_a_period_each_batch_is_due():
    """As they come, and once more at the end, where nothing may be left."""
    gate, closed = asyncio.Event(), []
    gate.set()
    found = [(batch.position, due) async for batch, due in paced(source(gate, 2, closed), 0, lambda: 0)]
    assert found == [("0", True), ("1", True), ("last", True)]
    assert closed


@async_test
async def test_a_burst_is_absorbed_and_its_end_comes_though_nothing_follows():
    """The first batch is due at once; those behind it one period later, while the source is silent."""
    gate, closed = asyncio.Event(), []
    clock = asyncio.get_running_loop().time
    turns = paced(source(gate, 50, closed), 0.2, clock)
    began = clock()
    first = await anext(turns)
    assert (first[0].position, first[1]) == ("0", True)
    rest = [await anext(turns) for _ in range(50)]
    assert [due for _, due in rest] == [False] * 49 + [True]
    assert rest[-1][0] is None and clock() - began >= 0.2 - 1e-6
    await asyncio.sleep(0.25)  # a whole period of silence: the next is due at once
    gate.set()
    batch, due = await anext(turns)
    assert (batch.position, due) == ("last", True)
    assert await anext(turns) == (None, True)
    with pytest.raises(StopAsyncIteration):
        await anext(turns)
    assert closed


@async_test
async def test_a_source_that_waits_can_be_left():
    """It is closed, though it is being read."""
    closed: list = []
    turns = paced(source(asyncio.Event(), 2, closed), 0.01, asyncio.get_running_loop().time)
    while (await anext(turns))[0] is not None:
        pass
    waiting = asyncio.ensure_future(anext(turns))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    await turns.aclose()
    assert closed


@async_test
async def test_what_a_source_raises_comes_through():
    """And ends it."""

    async def broken() -> AsyncGenerator[Batch, None]:
        yield Batch((), "1")
        raise ZeroDivisionError

    turns = paced(broken(), 0.01, asyncio.get_running_loop().time)
    assert (await anext(turns))[1]
    with pytest.raises(ZeroDivisionError):
        while True:
            await anext(turns)


def test_the_newest_says_how_many_it_stands_for():
    """Per symbol; and after they were taken the count begins anew."""
    newest = Newest()
    assert newest.put([tick("A", 1), tick("B", 1), tick("A", 2)]) == 1
    assert newest.put([tick("A", 9)]) == 1
    assert [(t["symbol"], t["seq"], t.get("merged")) for t in newest.take()] == [("A", 9, 2), ("B", 1, None)]
    assert len(newest) == 0
    newest.put([tick("A", 10)])
    assert newest.take() == [tick("A", 10)]
