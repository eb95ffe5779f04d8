"""Ticker: the leader, which runs the source of live prices for the whole cluster, and its loop in every worker.

Does: wait for the lease, lead for a term, keep the lease meanwhile; count what was published and what was not.
Does not: hold the lease in Redis (lease), or do what a leader does (term).
Called by: worker (start, close, report).
Never break: whatever goes wrong ends the term, and the next one, here or in another worker, goes on from what Redis
has. Nothing that a source or Redis raises leaves the loop.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import socket
import time
from collections.abc import Callable
from typing import Any

from . import tasks
from .broker import Broker, Lease
from .channels import Namespace
from .errors import BrokerUnavailable, HubError
from .intake import Tally
from .lease import Candidate
from .log import Brake
from .sections import TickerSettings
from .sources import Source, check_source, make_source
from .store import Store
from .term import Term

logger = logging.getLogger(__name__)

POLL_S = 0.5
"""Between two attempts to lead: the most that a takeover adds to the lease's end, at 2 commands a second and worker."""
RENEWALS_PER_TTL = 3
BAR_RULES = Namespace.model_validate({"mode": "stream"})


class Ticker:
    """The source's part in one worker: a candidate for the lease, and the leader once it has it."""

    def __init__(
        self,
        settings: TickerSettings,
        store: Store,
        broker: Broker,
        source: Source | None = None,
        now_ns: Callable[[], int] = time.time_ns,
        bar_rules: Namespace | None = None,
    ) -> None:
        """source: instead of the one that the settings name. now_ns: the time of ticks that bring none.

        bar_rules: of the bars' namespace. Raises BootError for a source of somebody's own that can't be loaded.
        """
        self._settings = settings
        self._namespace = settings.namespace
        self._store = store
        self._broker = broker
        self._source = source or make_source(settings, store)
        self._now_ns = now_ns
        self._task: asyncio.Task[None] | None = None
        self.bar_rules = bar_rules or BAR_RULES
        self._trouble = Brake()
        self.tally = Tally()
        self._reported = self.tally.losses()
        self.is_leader = 0

    def check(self) -> None:
        """Return if the source can be read on this machine. Raises BootError."""
        check_source(self._settings)

    def start(self) -> None:
        """Wait for the lease, lead, until `close`; nothing with source "none"."""
        if self._source is not None:
            self._task = asyncio.get_running_loop().create_task(self._run(self._source))

    async def close(self) -> None:
        """Stop; a leader gives the lease back, so that another one takes over at once."""
        task, self._task = self._task, None
        if task is not None:
            # Longer than the pump may take to end, which it waits for.
            await tasks.end(task, again_s=1.0)

    def report(self) -> str:
        """A line on what was published and what was not, since the start; '' if nothing was left out since the last."""
        losses, self._reported = self._reported, self.tally.losses()
        return "" if losses == self._reported else f"ticker: {self.tally}"

    def about(self) -> dict[str, Any] | None:
        """For the figures; None where there is no source.

        {"leader":1,"ticks":{"published":900,"merged":3,"unreadable":0,…},"bars":12}
        """
        if self._source is None:
            return None
        tally = self.tally
        ticks = {"published": tally.published, "merged": tally.merged, **tally.dropped}
        return {"leader": self.is_leader, "ticks": ticks, "bars": tally.bars}

    # The lease.

    async def _run(self, source: Source) -> None:
        # Host and process are for the eye of whoever reads the lease; the random part makes the name unique.
        owner = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(8)}"
        candidate = Candidate(self._store, self._namespace, owner, self._settings.lease_ttl_s)
        try:
            while True:
                try:
                    lease = await candidate.acquire()
                except BrokerUnavailable as error:
                    self._trouble.warning(logger, "the ticker waits for its lease: %s", error)
                else:
                    if lease is not None:
                        await self._lead(source, candidate, lease)
                await asyncio.sleep(POLL_S)
        finally:
            await candidate.close()

    async def _lead(self, source: Source, candidate: Candidate, lease: Lease) -> None:
        """One term, from its lease to its end for whatever reason."""
        logger.info("leads the ticker, source %s, token %s", source.identity, lease.token)
        self.is_leader = 1
        term = Term(
            self._settings,
            self._store,
            self._broker,
            source,
            lease,
            self.tally,
            self._now_ns,
            time.monotonic,
            self.bar_rules,
        )
        # A second task, for this term and not per tick: the source may wait for hours, and the lease may not.
        pump = asyncio.get_running_loop().create_task(term.run())
        try:
            await self._keep(candidate, lease.token, pump)
        except (HubError, OSError) as error:
            self._trouble.warning(logger, "the ticker's term ends: %s", error)
        except Exception as error:
            # A source may be anybody's code, and its fault must not end the ticker.
            self._trouble.warning(logger, "the ticker's term ends, its source %s failed: %r", source.identity, error)
        finally:
            await tasks.end(pump)
            self.is_leader = 0
            await self._release(candidate, lease.token)

    async def _keep(self, candidate: Candidate, token: str, pump: asyncio.Task[None]) -> None:
        """Renew the lease until it is lost, or can't be renewed, or the pump has failed: all of that raises."""
        period_s = self._settings.lease_ttl_s / RENEWALS_PER_TTL
        while True:
            await asyncio.wait([pump], timeout=period_s)
            if pump.done():
                return pump.result()
            if not await candidate.renew(token):
                raise BrokerUnavailable("the lease has expired or passed to another worker")

    async def _release(self, candidate: Candidate, token: str) -> None:
        try:
            await candidate.release(token)
        except BrokerUnavailable:
            pass  # it expires by itself
