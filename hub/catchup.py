"""Catch-up: positions and missed publications read from Redis for all stream channels of a worker.

Does: gather what is asked for while a round trip is under way, and send it as the next one.
Does not: read by itself (history does) or judge what comes.
Called by: streams (read); building, worker (close).
Never break: one Task for the whole worker, however many clients come back at once; every read is answered.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from itertools import islice

from . import tasks
from .errors import BrokerUnavailable, HubError
from .history import Asked, History, Page

logger = logging.getLogger(__name__)

Done = Callable[[Page | HubError], None]
_Read = tuple[Asked, Done]
BATCH = 128
"""Reads in one round trip."""
BATCH_PUBLICATIONS = 4096
"""Asked for in one round trip, but for a single read; of 128 bytes each they are half a megabyte, of 64 KiB 256."""
TELL_AT_ONCE = 512
"""Of those who wait where Redis is away, about a millisecond's work."""


class Catchup:
    """The reads of one worker."""

    def __init__(self, history: History) -> None:
        self._history = history
        self._waiting: deque[_Read] = deque()
        self._sender: asyncio.Task[None] | None = None
        self.reads = 0
        """Asked of Redis, since the start."""

    def read(self, asked: Asked, done: Done) -> None:
        """`done` is called later, never from within this call, with the page or BrokerUnavailable."""
        self._waiting.append((asked, done))
        if self._sender is None:
            self._sender = asyncio.get_running_loop().create_task(self._send())

    async def close(self) -> None:
        """Ask no more; who waits is not answered, as the worker ends."""
        self._waiting.clear()
        if self._sender is not None:
            await tasks.end(self._sender)

    async def _send(self) -> None:
        try:
            while self._waiting:
                batch = self._next_batch()
                try:
                    self.reads += len(batch)
                    answers = await self._history.read_many([asked for asked, _ in batch])
                except BrokerUnavailable as error:
                    await self._refuse(batch, error)
                except Exception:
                    # A fault of ours: who waits must not wait for ever.
                    logger.exception("reading positions failed")
                    await self._refuse(batch, BrokerUnavailable("reading positions failed"))
                else:
                    for (_, done), answer in zip(batch, answers, strict=True):
                        _tell(done, answer)
        finally:
            self._sender = None

    async def _refuse(self, batch: list[_Read], error: BrokerUnavailable) -> None:
        """Tell all who wait by now: were each batch to try for itself, the last would wait for many timeouts."""
        count = len(self._waiting)
        while batch:
            for _, done in batch:
                _tell(done, error)
            batch = self._next(min(TELL_AT_ONCE, count))
            count -= len(batch)
            await asyncio.sleep(0)

    def _next_batch(self) -> list[_Read]:
        count = publications = 0
        for asked, _ in islice(self._waiting, BATCH):
            publications += asked.limit
            if count and publications > BATCH_PUBLICATIONS:
                break
            count += 1
        return self._next(count)

    def _next(self, most: int) -> list[_Read]:
        return [self._waiting.popleft() for _ in range(min(most, len(self._waiting)))]


def _tell(done: Done, answer: Page | HubError) -> None:
    try:
        done(answer)
    except Exception:
        # One channel's fault must not keep their pages from all others.
        logger.exception("a stream failed on its page")
