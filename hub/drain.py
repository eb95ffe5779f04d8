"""Draining: all clients of a worker are sent away, evenly over a window.

Does: close connections in random order at an even pace, at once when hurried.
Does not: stop accepting (leaving) or end the process (worker).
Called by: leaving.
Never break: closing is sliced, so that the clients still here are served meanwhile.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from typing import Protocol

from .errors import CLOSE_SHUTDOWN, Close

STEP_S = 0.05
CLOSES_PER_STEP = 500
"""About 3 ms of closing at a time, also where the window is too short for its clients."""


class Drained(Protocol):
    """A connection of the plane, or a poll that waits. One that has gone meanwhile is closed in vain."""

    def close(self, close: Close) -> None: ...


async def drain(
    connections: Sequence[Drained], window_s: float, hurried: asyncio.Event, clock: Callable[[], float]
) -> None:
    """Close `connections` with 3001, the last of them after `window_s` seconds, or as fast as it goes once `hurried`
    is set.

    Random order: those that connected together would otherwise come back together.
    """
    order = random.sample(connections, len(connections))
    begun, done = clock(), 0
    while True:
        late = hurried.is_set() or clock() - begun >= window_s
        due = len(order) if late else int(len(order) * (clock() - begun) / window_s)
        step = order[done : min(due, done + CLOSES_PER_STEP)]
        for connection in step:
            connection.close(CLOSE_SHUTDOWN)
        done += len(step)
        if done == len(order):
            return
        await _pause(hurried, behind=done < due)


async def _pause(hurried: asyncio.Event, behind: bool) -> None:
    if hurried.is_set() or behind:
        await asyncio.sleep(0)
        return
    try:
        async with asyncio.timeout(STEP_S):
            await hurried.wait()
    except TimeoutError:
        pass  # nobody is in a hurry: on with the next step
