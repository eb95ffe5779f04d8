"""Thinning: a source that is faster than `ticker.max_source_hz` is published at that pace, newest values only.

Does: say when what has come is due; keep the newest tick of each symbol until then, and how many it stands for.
Does not: read, check or publish; the slow clients of a fast feed are the outbox's.
Called by: term.
Never break: what waits is published in one go with the position behind it, all symbols together: a takeover loses no
last value and repeats none. So the pace is one beat for all symbols, and not a timer for each.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from .tick import Batch, Clock, Tick


async def paced(
    batches: AsyncGenerator[Batch, None], period_s: float, clock: Clock
) -> AsyncGenerator[tuple[Batch | None, bool], None]:
    """Each batch as it comes, and whether all that has come is due now: (None, True) where only the time has come.

    period_s: between two times that something is due, at least; 0: with each batch. The source is asked on meanwhile.
    The first batch after a pause is due at once. Closes `batches`.
    """
    async with aclosing(batches):
        if not period_s:
            async for batch in batches:
                yield batch, True
            return
        due_at, waiting = clock(), False
        reading: asyncio.Task[Batch] | None = None
        try:
            while True:
                reading = reading or asyncio.ensure_future(_next(batches))
                await asyncio.wait([reading], timeout=max(0.0, due_at - clock()) if waiting else None)
                due, found = clock() >= due_at, None
                if reading.done():
                    try:
                        found = reading.result()
                    except StopAsyncIteration:
                        break
                    reading = None
                elif not due:
                    continue  # woken a little early
                if due:
                    due_at = clock() + period_s
                waiting = not due
                yield found, due
        finally:
            if reading is not None:
                reading.cancel()
                # Ended before the source is closed, which can't be closed while it runs.
                # Looked at, so that the loop does not report it as never retrieved.
                await asyncio.gather(reading, return_exceptions=True)
    yield None, True


async def _next(batches: AsyncGenerator[Batch, None]) -> Batch:
    return await anext(batches)


class Newest:
    """The newest tick of each symbol, in the order in which the symbols came first."""

    def __init__(self) -> None:
        self._ticks: dict[str, Tick] = {}

    def __len__(self) -> int:
        return len(self._ticks)

    def put(self, ticks: Sequence[Tick]) -> int:
        """Keep these; returns how many were merged away. At most a tick for each of the intake's symbols is kept."""
        merged = 0
        for tick in ticks:
            before = self._ticks.get(tick["symbol"])
            if before is not None:
                tick["merged"] = before.get("merged", 0) + 1
                merged += 1
            self._ticks[tick["symbol"]] = tick
        return merged

    def take(self) -> list[Tick]:
        """All of them; none is kept."""
        ticks = list(self._ticks.values())
        self._ticks.clear()
        return ticks
