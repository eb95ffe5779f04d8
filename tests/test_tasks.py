"""Ending a task that does not want to; awaiting what is known."""

from __future__ import annotations

import asyncio

from hub.tasks import end, settled
from tests.support import async_test


@async_test
async def test_a_task_that_swallows_a_cancellation_is_cancelled_again():
    """As asyncio.wait_for of Python 3.11 can: after the second attempt it has ended."""
    swallowed = 0

    async def stubborn() -> None:
        nonlocal swallowed
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            swallowed += 1
        await asyncio.sleep(3600)

    task = asyncio.create_task(stubborn())
    await asyncio.sleep(0)
    await asyncio.wait_for(end(task, again_s=0.01), 5)
    assert task.cancelled() and swallowed == 1


@async_test
async def test_a_task_that_has_failed_or_ended_is_no_obstacle():
    """Whatever it raised is dropped."""

    async def fail() -> None:
        raise RuntimeError("gone")

    for coroutine in (fail(), asyncio.sleep(0)):
        task = asyncio.create_task(coroutine)
        await asyncio.sleep(0.001)
        await asyncio.wait_for(end(task), 5)
        assert task.done()


@async_test
async def test_what_is_known_can_be_awaited_or_not():
    """Whoever does not wait for it hears no complaint."""
    assert await settled(7) == 7
    settled(8)
