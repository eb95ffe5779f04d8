"""Headroom: how much of the store's memory publications may still take, so that the hub's own keys find room there.

Does: ask Redis every second, or sooner, for its memory, say whether a publication that is kept may be stored, count and
tell of those that may not.
Does not: know which those are (publish), or measure keys: what clients have filled is emptied by ttl and by operators.
Called by: publish (takes, refuse), building, worker, retune; health reads it.
Never break: a full store refuses every write, also that of a blocked user or of a leave. So beyond `redis.full_percent`
of maxmemory only the hub itself writes. Where Redis has no bound, evicts or does not tell, nothing is refused.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Mapping
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import RedisError, ResponseError

from . import tasks
from .errors import BrokerUnavailable, StoreFull
from .log import Brake
from .refusals import Refusals
from .store import Store

logger = logging.getLogger(__name__)

PERIOD_S = 1.0
SOONEST_S = 0.05
"""Between two questions, where a flood has taken half of what there was."""
KEY_BYTES = 512
"""That a publication takes besides its body and a quarter of that: keys, fields, the allocator's rounding."""
REASON = "store"
KEEPS_ALL = "noeviction"
"""The policy of a Redis that refuses writes when it is full; with any other one it throws keys away, and takes them."""


class Headroom:
    """Of one worker."""

    def __init__(self, store: Store, percent: int, refusals: Refusals, workers: int = 1) -> None:
        """percent: redis.full_percent; 0: nothing is ever refused. workers: who share the room until they ask again."""
        self.percent = percent
        self._redis: Redis = store.commands()
        self._refusals = refusals
        self._workers = workers
        self._wake = asyncio.Event()
        self._low = 0
        """With less room Redis is asked at once."""
        self._task: asyncio.Task[None] | None = None
        self._room: int | None = None
        """Bytes that publications may take until Redis is asked again; None: as many as they like."""
        self._found = (0, 0)
        """Used and most bytes, as Redis told them last."""
        self._trouble = Brake()

    def start(self) -> None:
        """Ask from now on."""
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def close(self) -> None:
        """Ask no more."""
        if self._task is not None:
            await tasks.end(self._task)
        await self._redis.aclose()

    @property
    def full(self) -> bool:
        """Whether the store had no room for publications when it was asked last."""
        return self._room is not None and self._room <= 0

    def takes(self, size: int) -> bool:
        """Whether a body of so many bytes may be stored; it counts until Redis is asked again."""
        room = self._room
        if room is None:
            return True
        cost = size + (size >> 2) + KEY_BYTES
        if cost <= room:
            self._room = room - cost
        if room > 0 and room - cost < self._low:
            self._wake.set()
        return cost <= room

    def overrun(self) -> None:
        """Redis itself has refused a write for want of memory."""
        if self._room is not None:
            self._room = 0
        self.refuse()

    def refuse(self) -> StoreFull:
        """A publication found no room: counted, and told the log."""
        self._refusals.count(REASON)
        used, most = self._found
        self._trouble.warning(
            logger,
            "the store is full, %d of %d bytes: publications that are kept are refused beyond %d %% of them "
            "(redis.full_percent)",
            used,
            most,
            self.percent,
        )
        return StoreFull("the store is full")

    async def look(self) -> None:
        """Ask once."""
        if not self.percent:
            self._room = None
            return
        try:
            self._read(await self._redis.info("memory"))
        except ResponseError as error:
            self._room = None
            logger.debug("Redis does not tell its memory: %s", error)
        except (RedisError, BrokerUnavailable, OSError) as error:
            # It is away: what is sent meanwhile takes none of its room, so that is not counted down. One that was full
            # may be so when it is back.
            if not self.full:
                self._room = None
            logger.debug("Redis was not asked for its memory: %s", error)

    def _read(self, memory: Mapping[str, Any]) -> None:
        # As Redis itself compares them: buffers of its own copies are no reason to refuse a write.
        used = int(memory.get("used_memory", 0)) - int(memory.get("mem_not_counted_for_evict", 0))
        most = int(memory.get("maxmemory", 0))
        self._found = used, most
        bounded = most and memory.get("maxmemory_policy") == KEEPS_ALL
        room = most * self.percent // 100 - used
        if room > 0:
            room = max(room // self._workers, 1)
        self._room, self._low = room if bounded else None, room // 2

    async def _run(self) -> None:
        while True:
            await self.look()
            await asyncio.sleep(SOONEST_S)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(PERIOD_S):
                    await self._wake.wait()
            self._wake.clear()
