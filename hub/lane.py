"""Lane: commands of one worker on their way to Redis over one connection after the other.

Does: collect what is put, send it in round trips of many commands, tell each what Redis said; have it confirmed.
Does not: know what the commands do; broker makes them and reads the replies.
Called by: broker, which has one lane for most and one for each `ack` that takes a wait, so that nobody else waits.
Never break: one round trip at a time, so that order holds; what waits is bounded by `redis.pending_publishes` and
`redis.pending_bytes`, in each lane.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import NamedTuple

from redis.asyncio import Redis
from redis.exceptions import RedisError

from .histogram import SLOW_S, Histogram
from .scripts import Command, Outcome, Scripts

logger = logging.getLogger(__name__)

Tell = Callable[[Outcome], None]
"""Hears what became of one command."""
MAX_BATCH_BYTES = 4_194_304
"""In one round trip, with one command at least: a slow link must not keep a batch longer than a command may take."""
MAX_BATCH = 512
"""Commands in one round trip: beyond this a batch gains nothing, and Redis serves nobody else meanwhile."""
MAX_CONFIRMED_BATCH = 4096
"""The same where the round trip ends with a wait, which may be a second for the disk."""


class _Waiting(NamedTuple):
    command: Command
    size: int
    tell: Tell


class Lane:
    """Commands in order; from `put` to the reply."""

    def __init__(
        self,
        redis: Redis,
        scripts: Scripts,
        most_waiting: int,
        most_bytes: int,
        confirm: Command | None = None,
        seconds: Histogram | None = None,
    ) -> None:
        """redis: this lane's own client, which `close` closes. confirm: WAIT or WAITAOF, run behind each round trip.

        seconds: counts how long the round trips take.
        """
        self._seconds = seconds or Histogram(SLOW_S)
        self._redis = redis
        self._scripts = scripts
        self.most_waiting = most_waiting
        self.most_bytes = most_bytes
        self._confirm = confirm
        self._most_at_once = MAX_CONFIRMED_BATCH if confirm else MAX_BATCH
        self._waiting: list[_Waiting] = []
        self.bytes = 0
        """Of bodies that wait or are on their way."""
        self._sender: asyncio.Task[None] | None = None

    def has_room(self, size: int) -> bool:
        """Whether commands with bodies of `size` bytes may be put; a single one always may where none waits."""
        return len(self._waiting) < self.most_waiting and (not self.bytes or self.bytes + size <= self.most_bytes)

    def put(self, command: Command, size: int, tell: Tell) -> None:
        """Send a command; `tell` is called later, never from within this call."""
        self.bytes += size
        self._waiting.append(_Waiting(command, size, tell))
        if self._sender is None:
            self._sender = asyncio.get_running_loop().create_task(self._send())

    async def close(self) -> None:
        """Send what waits, as far as Redis takes it, then let go of the connections."""
        while self._sender is not None:
            await self._sender
        await self._redis.aclose()

    async def _send(self) -> None:
        """Round trip after round trip, until nothing waits. The one Task here, and none for each publication."""
        try:
            while self._waiting:
                batch = self._next_batch()
                for waiting, outcome in zip(batch, await self._round_trip(batch), strict=True):
                    self.bytes -= waiting.size
                    self._tell(waiting.tell, outcome)
        finally:
            self._sender = None

    def _next_batch(self) -> list[_Waiting]:
        count = size = 0
        for waiting in self._waiting[: self._most_at_once]:
            size += waiting.size
            if count and size > MAX_BATCH_BYTES:
                break
            count += 1
        batch, self._waiting = self._waiting[:count], self._waiting[count:]
        return batch

    async def _round_trip(self, batch: list[_Waiting]) -> list[Outcome]:
        commands, began_at = [waiting.command for waiting in batch], time.monotonic()
        try:
            return await self._scripts.execute_confirmed(self._redis, commands, self._confirm)
        except (RedisError, OSError) as error:
            return [Outcome(error, None)] * len(batch)
        except Exception as error:
            # A fault of ours or of the library: whoever waits must be answered all the same, and the lane go on.
            logger.exception("a round trip failed")
            return [Outcome(error, None)] * len(batch)
        finally:
            self._seconds.observe(time.monotonic() - began_at)

    def _tell(self, tell: Tell, outcome: Outcome) -> None:
        try:
            tell(outcome)
        except Exception:
            # One publisher's fault must not keep the verdicts from all others.
            logger.exception("a publisher failed on its verdict")
