"""Loopback: whether what is published still arrives here, and whether the store is still the same one.

Does: every 1.5 s publish a token through the command connection to a Redis channel of this worker's own, and wait
for it on the subscriber connection; have that connection dropped where it fails to come; tell when the store's
generation has changed.
Does not: read positions (streams does then), reconnect (ingest) or publish by itself (history.probe).
Called by: building, worker (start, close); ingest (heard).
Never break: no alarm while Redis itself is away, as nobody could publish then, and the link tells of its own end.

A half-open link, or one to an old primary that nobody publishes to any more, stays silent and looks well; TCP and PINGs
don't show it. See reliability.md, "Detecting loss that nobody reports".
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Protocol

from . import tasks
from .errors import BrokerUnavailable
from .histogram import SLOW_S, Histogram

logger = logging.getLogger(__name__)

PERIOD_S = 1.5
MISSES = 3
"""Tokens in a row that fail to come. A link that dies right behind one is dropped when the fourth is due: 6 s later."""


class Link(Protocol):
    """The subscriber connection; ingest.Ingest."""

    connected: bool

    def drop(self, reason: str) -> None:
        """Connect anew."""


class Loopback:
    """The watch over one worker's link."""

    def __init__(
        self,
        link: Link,
        probe: Callable[[str], Awaitable[str]],
        on_generation: Callable[[], None],
        name: str,
        period_s: float = PERIOD_S,
        *,
        on_heard: Callable[[float], None] = lambda sent_at: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """probe: publish this token to where `heard` gets it, and return the store's generation.

        name: begins our tokens, of A-Z a-z 0-9, and is no other worker's. on_heard: a token is there that was
        published then, by the clock; between publications.
        """
        self._name = name
        self._link = link
        self._probe = probe
        self._on_generation = on_generation
        self._period_s = period_s
        self._sent = 0
        self._heard = 0
        self._generation = ""
        self._runner: asyncio.Task[None] | None = None
        self.lag_s = 0.0
        """From sending the last token to its arrival."""
        self.lag = Histogram(SLOW_S)
        """The same of all tokens."""
        self.missed = 0
        """Times that the link was dropped."""
        self.generations = 0
        """Times that the store's generation has changed."""
        self._on_heard = on_heard
        self._clock = clock
        self._sent_at = 0.0

    def start(self) -> None:
        """Watch until `close`."""
        self._runner = asyncio.get_running_loop().create_task(self._run())

    async def close(self) -> None:
        if self._runner is not None:
            await tasks.end(self._runner)

    def heard(self, payload: bytes) -> None:
        """A message of our own channel. Whoever reaches Redis can write there: what is no token of ours is nothing."""
        name, _, number = payload.partition(b"-")
        token = int(number) if name == self._name.encode() and number.isdigit() and len(number) < 20 else 0
        if self._heard < token <= self._sent:
            self._heard = token
            self.lag_s = self._clock() - self._sent_at
            self.lag.observe(self.lag_s)
            self._on_heard(self._sent_at)

    async def _run(self) -> None:
        while True:
            try:
                await self._step()
            except Exception:
                # A fault of ours in one step: without this watch a silent loss could last for long.
                logger.exception("loopback: a step failed")
            await asyncio.sleep(self._period_s)

    async def _step(self) -> None:
        if not self._link.connected:
            self._heard = self._sent
            return
        if self._sent - self._heard >= MISSES:
            self._heard = self._sent
            self.missed += 1
            self._link.drop(f"nothing published arrives any more ({MISSES} tokens missed)")
            return
        self._sent += 1
        self._sent_at = self._clock()
        try:
            generation = await self._probe(f"{self._name}-{self._sent}")
        except BrokerUnavailable as error:
            logger.debug("loopback: %s", error)
            self._sent -= 1
            return
        if generation != self._generation:
            known, self._generation = self._generation, generation
            if known:
                self.generations += 1
                logger.warning("the store's generation is %s now, after %s: positions are checked", generation, known)
            # Also for the first one: a position may have been read before it, and of another one.
            self._on_generation()
