"""Draining: all clients of a worker are sent away, evenly over a window.

Does: close connections in random order at an even pace, at once when hurried.
Does not: stop accepting or end the process; worker does.
Called by: worker.
Never break: closing is sliced, so that the clients still here are served meanwhile.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence

from .errors import CLOSE_SHUTDOWN
from .reactor import Pollable

STEP_S = 0.05
CLOSES_PER_STEP = 500
"""When hurried: about 3 ms of closing at a time."""


async def drain(
    connections: Sequence[Pollable], window_s: float, hurried: asyncio.Event, clock: Callable[[], float]
) -> None:
    """Close `connections` with 3001, the last of them after `window_s` seconds, or as fast as it goes once `hurried`
    is set.

    Random order: those that connected together would otherwise come back together.
    """
    order = random.sample(connections, len(connections))
    begun, done = clock(), 0
    while done < len(order):
        if hurried.is_set() or window_s <= 0:
            due = done + CLOSES_PER_STEP
        else:
            due = int(len(order) * min(1.0, (clock() - begun) / window_s))
        for connection in order[done:due]:
            connection.close(CLOSE_SHUTDOWN)
        done = max(done, min(due, len(order)))
        if done < len(order):
            await _pause(hurried)


async def _pause(hurried: asyncio.Event) -> None:
    if hurried.is_set():
        await asyncio.sleep(0)
        return
    try:
        async with asyncio.timeout(STEP_S):
            await hurried.wait()
    except TimeoutError:
        pass  # nobody is in a hurry: on with the next step
