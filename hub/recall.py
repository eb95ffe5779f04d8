"""Recall: records of Socket.IO clients that have gone, in Redis, so that any worker can welcome them back.

Does: save a record for a while, give it out once; many in one round trip.
Does not: know what stands in a record (resume), or judge it.
Called by: transports.socketio (save, take), links (builds it, closes), worker (start).
Never break: a record is given out once. What Redis did not take, or too much at a time, is lost: such a client starts
anew, and is told so.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable

from redis.exceptions import RedisError

from .log import Brake
from .store import Store

logger = logging.getLogger(__name__)

MAX_WAITING = 50_000
"""Saves and takes that wait for Redis; beyond, a save is dropped and a take finds nothing."""
MAX_BYTES = 67_108_864
"""Of records that wait. One with all its positions has some 20 KB, so their number alone is no bound."""
AT_ONCE = 256
"""In one round trip."""

Found = Callable[[bytes | None], None]


class Recall:
    """The records that one worker saves and asks for."""

    def __init__(
        self,
        store: Store,
        ttl_ms: int,
        most_bytes: int = 67_108_864,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """ttl_ms: how long a record is kept; 0: nothing is ever saved. most_bytes: of all that Redis keeps for us."""
        self.ttl_ms = ttl_ms
        self.most_bytes = most_bytes
        self._clock = clock
        self._kept: deque[tuple[float, int]] = deque()
        """When each ends that was saved, and its size; that one was taken by another worker is not known here."""
        self._kept_bytes = 0
        self._redis = store.commands()
        self._key = store.keys.socket
        self._waiting: list[tuple[str, bytes | Found]] = []
        self._bytes = 0
        self._wake = asyncio.Event()
        self._closing = False
        self._runner: asyncio.Task[None] | None = None
        self._trouble = Brake()
        self._full = Brake()

    def start(self) -> None:
        """Talk to Redis until `close`."""
        self._runner = asyncio.get_running_loop().create_task(self._run())

    async def close(self) -> None:
        """Save what waits, as far as Redis takes it."""
        self._closing = True
        self._wake.set()
        if self._runner is not None:
            await self._runner
        await self._redis.aclose()

    def save(self, pid: str, record: bytes) -> None:
        """Keep a record under a name that cannot be guessed, where there is room. Never waits."""
        now = self._clock()
        while self._kept and self._kept[0][0] <= now:
            self._kept_bytes -= self._kept.popleft()[1]
        if self._kept_bytes + len(record) > self.most_bytes:
            self._full.warning(logger, "recall: no room for lost clients' records (socketio.recovery_bytes)")
        elif self._add(pid, record):
            self._kept.append((now + self.ttl_ms / 1000, len(record)))
            self._kept_bytes += len(record)

    def take(self, pid: str, found: Found) -> None:
        """Have a record, which is gone then; `found(None)` where there is none. Called later, once."""
        if not self._add(pid, found):
            asyncio.get_running_loop().call_soon(found, None)

    def _add(self, pid: str, what: bytes | Found) -> bool:
        size = _size(what)
        if len(self._waiting) >= MAX_WAITING or self._bytes + size > MAX_BYTES:
            return False
        self._bytes += size
        self._waiting.append((pid, what))
        self._wake.set()
        return True

    async def _run(self) -> None:
        while self._waiting or not self._closing:
            if not self._waiting:
                await self._wake.wait()
                self._wake.clear()
                continue
            batch, self._waiting = self._waiting[:AT_ONCE], self._waiting[AT_ONCE:]
            self._bytes -= sum(_size(what) for _, what in batch)
            answers: list[object] = [None] * len(batch)
            try:
                answers = await self._round_trip(batch)
            except (RedisError, OSError) as error:
                self._trouble.warning(logger, "recall: %s", error)
            for (_, what), answer in zip(batch, answers, strict=True):
                if not isinstance(what, bytes):
                    self._tell(what, answer)

    async def _round_trip(self, batch: list[tuple[str, bytes | Found]]) -> list[object]:
        pipeline = self._redis.pipeline(transaction=False)
        for pid, what in batch:
            if isinstance(what, bytes):
                pipeline.set(self._key(pid), what, px=self.ttl_ms)
            else:
                pipeline.getdel(self._key(pid))
        return list(await pipeline.execute(raise_on_error=False))

    def _tell(self, found: Found, answer: object) -> None:
        try:
            found(answer if isinstance(answer, bytes) else None)
        except Exception:
            # The border of one client: a fault in its return must not cost the others theirs.
            logger.exception("a client's return failed")


def _size(what: bytes | Found) -> int:
    return len(what) if isinstance(what, bytes) else 0
