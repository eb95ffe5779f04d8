"""Tasks: how a background task of a room is ended, and how it waits for what is called back.

Does: cancel a task until it has really ended; make a future of a callback, or of what is known
already.
Does not: start tasks or decide which there are; each room has its own, and one for each worker at most.
Called by: ingest, ticker, redelivery, api_mailbox, admin, trace.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, TypeVar

Value = TypeVar("Value")


async def end(task: asyncio.Task[None], again_s: float = 0.1) -> None:
    """Cancel a task until it has ended; what it raised is dropped, because its room is going.

    Once is not enough: before Python 3.12 `asyncio.wait_for`, in which redis-py sends, swallows a cancellation that
    comes just as the send ends, and the task would go on for ever. again_s: between two attempts, in which a task
    that is ending must get done.
    """
    while not task.done():
        task.cancel()
        await asyncio.wait([task], timeout=again_s)
    # Looked at, so that the loop does not report it as never retrieved.
    await asyncio.gather(task, return_exceptions=True)


def reply(begin: Callable[[Callable[[Any], None]], None]) -> asyncio.Future[Any]:
    """What `begin(done)` tells `done`, errors included; `begin` is called at once, so the calls' order is kept."""
    future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    def done(outcome: Any) -> None:
        # Cancelled where whoever asked has gone.
        if not future.done():
            future.set_result(outcome)

    begin(done)
    return future


def settled(value: Value) -> asyncio.Future[Value]:
    """What can be awaited and is there already; nobody has to."""
    future: asyncio.Future[Value] = asyncio.get_running_loop().create_future()
    future.set_result(value)
    return future
