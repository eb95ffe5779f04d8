"""Draining: an even pace, in random order, or all at once."""

from __future__ import annotations

import asyncio
import itertools

import pytest

from hub.drain import CLOSES_PER_STEP, drain
from tests.support import async_test


class One:
    def __init__(self, number: int, closed: list) -> None:
        self.number = number
        self.closed = closed

    def close(self, close: object) -> None:
        self.closed.append((self.number, close.code, asyncio.get_running_loop().time()))


@async_test
async def test_clients_are_closed_evenly_over_the_window():
    """400 clients over 0.8 s: each quarter of the window closes about a quarter, all with 3001, not in their order."""
    loop, closed = asyncio.get_running_loop(), []
    begun = loop.time()
    await drain([One(i, closed) for i in range(400)], 0.8, asyncio.Event(), loop.time)
    assert {code for _, code, _ in closed} == {3001}
    assert sorted(number for number, _, _ in closed) == list(range(400))
    assert [number for number, _, _ in closed] != list(range(400))
    quarters = [sum(1 for *_, at in closed if 0.2 * q <= at - begun < 0.2 * (q + 1)) for q in range(4)]
    assert all(count <= 100 * 1.5 for count in quarters), quarters


@async_test
async def test_a_hurry_closes_the_rest_at_once():
    """Once hurried, a window of an hour is over in no time, in slices."""
    loop, closed, hurried = asyncio.get_running_loop(), [], asyncio.Event()
    task = asyncio.create_task(drain([One(i, closed) for i in range(2000)], 3600, hurried, loop.time))
    await asyncio.sleep(0.01)
    assert len(closed) < 10
    hurried.set()
    await asyncio.wait_for(task, 5)
    assert len(closed) == 2000


@pytest.mark.parametrize("window_s", [0.0, 0.02])
@async_test
async def test_ten_thousand_are_closed_in_slices_whatever_the_window(window_s):
    """A window too short for its clients, and none at all: between two slices the loop serves everybody else."""
    loop, closed, slices = asyncio.get_running_loop(), [], []

    def serve() -> None:
        slices.append(len(closed))
        loop.call_soon(serve)

    serve()
    await drain([One(i, closed) for i in range(10_000)], window_s, asyncio.Event(), loop.time)
    slices.append(len(closed))
    assert sorted(number for number, _, _ in closed) == list(range(10_000))
    assert max(after - before for before, after in itertools.pairwise(slices)) <= CLOSES_PER_STEP


@async_test
async def test_no_clients_and_no_window_take_no_time():
    """An empty worker and a window of 0 are done at once."""
    loop, closed = asyncio.get_running_loop(), []
    await asyncio.wait_for(drain([], 3600, asyncio.Event(), loop.time), 1)
    await asyncio.wait_for(drain([One(1, closed)], 0, asyncio.Event(), loop.time), 1)
    assert len(closed) == 1
