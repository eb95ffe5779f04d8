"""Ticker: the leader, which runs the source of live prices for the whole cluster, and its loop in every worker.

Does: wait for the lease, run the source for a term, number its ticks and publish them batch by batch.
Does not: read sources (sources, replay), check ticks (tick), hold the lease in Redis (lease) or spread ticks (broker).
Called by: worker (start, close).
Never break: a batch's position is stored by the script that publishes it, so that no tick is skipped; whatever goes
wrong ends the term, and the next one, here or in another worker, goes on from what Redis has. A batch whose verdict was
lost with the connection may come twice. Nothing that a source or Redis raises leaves the loop.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import aclosing

from . import tasks
from .broker import Broker, Lease, Receipt
from .channels import Namespace
from .config import TickerSettings
from .errors import BrokerUnavailable, HubError
from .lease import Candidate
from .log import Brake
from .message import Publication, encode_body
from .sources import Source, check_source, make_source
from .store import Store
from .tick import Batch, Row, Tick, make_tick, read_body, symbol_of

logger = logging.getLogger(__name__)

POLL_S = 0.5
"""Between two attempts to lead: the most that a takeover adds to the lease's end, at 2 commands a second and worker."""
RENEWALS_PER_TTL = 3
RULES = Namespace.model_validate({"mode": "latest"})
"""How ticks are published, whatever else the namespace's rules say of its clients."""
MAX_SYMBOLS = 100_000
"""Whose sequence numbers a leader keeps; a source that invents more symbols would fill the memory, and Redis too."""


class Ticker:
    """The source's part in one worker: a candidate for the lease, and the leader once it has it."""

    def __init__(
        self,
        settings: TickerSettings,
        store: Store,
        broker: Broker,
        source: Source | None = None,
        now_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        """source: instead of the one that the settings name. now_ns: the time of ticks that bring none."""
        self._settings = settings
        self._namespace = settings.namespace
        self._store = store
        self._broker = broker
        self._source = source or make_source(settings, store)
        self._now_ns = now_ns
        self._task: asyncio.Task[None] | None = None
        self._seqs: dict[str, int] = {}
        self._trouble = Brake()
        self._drops = Brake()
        self.ticks_published = 0
        self.ticks_dropped = 0
        """Malformed ticks, and batches or lines that could not be read at all (one each)."""
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
        # Not kept from term to term: a batch of an earlier one may not have been published.
        self._seqs = {}
        # A second task, for this term and not per tick: the source may wait for hours, and the lease may not.
        pump = asyncio.get_running_loop().create_task(self._pump(source, lease))
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

    # The source.

    async def _pump(self, source: Source, lease: Lease) -> None:
        """Publish batch after batch; raises what ends the term."""
        identity, _, position = lease.position.rpartition(" ")
        if identity != source.identity:
            position = ""
        stored = lease.position
        async with aclosing(source.batches(position, self._last)) as batches:
            async for batch in batches:
                position = f"{source.identity} {batch.position}"
                await self._put(batch, Lease(lease.token, stored), Lease(lease.token, position))
                stored = position
        logger.info("the ticker's source %s has ended", source.identity)
        # Stays the leader: a next one would find nothing to read either.
        await asyncio.get_running_loop().create_future()

    async def _put(self, batch: Batch, before: Lease, after: Lease) -> None:
        """Publish one batch in as many calls as it needs; only the last one moves the position."""
        for fault in batch.faults:
            self._drop(fault)
        pieces = list(_pieces(batch.rows, self._settings.batch))
        for piece in pieces[:-1]:
            await self._publish(await self._ticks(piece), before)
        # Also without a tick: a batch of nothing but faults must not be read again by the next leader.
        await self._publish(await self._ticks(pieces[-1]), after)

    async def _ticks(self, rows: Sequence[Row]) -> list[Tick]:
        """Rows as ticks, in order and numbered; those that can't be are dropped."""
        await self._learn(rows)
        now_ns = self._now_ns()
        ticks = []
        for where, fields in rows:
            try:
                # Still unknown after _learn: a symbol too many. A row without a valid symbol raises here.
                known = self._seqs.get(symbol_of(fields))
                if known is None:
                    raise ValueError(f"a new symbol beyond {MAX_SYMBOLS}")
                tick = make_tick(fields, known, now_ns)
            except ValueError as error:
                self._drop(f"{where}: {error}")
                continue
            self._seqs[tick["symbol"]] = tick["seq"]
            ticks.append(tick)
        return ticks

    async def _learn(self, rows: Sequence[Row]) -> None:
        """Look up the sequence numbers of symbols that this term has not seen yet."""
        new = dict.fromkeys(symbol for symbol in map(_symbol_or_none, rows) if symbol and symbol not in self._seqs)
        symbols = list(new)[: MAX_SYMBOLS - len(self._seqs)]
        last = await self._last(symbols)
        self._seqs.update((symbol, last[symbol]["seq"] if symbol in last else 0) for symbol in symbols)

    async def _last(self, symbols: Sequence[str]) -> dict[str, Tick]:
        """The newest published ticks, see tick.LastTicks."""
        if not symbols:
            return {}
        bodies = await self._broker.last(self._namespace, [self._channel(symbol) for symbol in symbols])
        ticks = zip(symbols, map(read_body, bodies), strict=True)
        return {symbol: tick for symbol, tick in ticks if tick is not None}

    def _channel(self, symbol: str) -> str:
        return f"{self._namespace}:{symbol}"

    async def _publish(self, ticks: Sequence[Tick], lease: Lease) -> None:
        """Return once Redis has ticks and position. Raises BrokerUnavailable or CommandError, as broker.publish."""
        publications = [Publication(self._channel(tick["symbol"]), encode_body(tick)) for tick in ticks]
        verdict: asyncio.Future[Receipt | HubError] = asyncio.get_running_loop().create_future()

        def done(outcome: Receipt | HubError) -> None:
            if not verdict.done():  # a term that was ended waits no more
                verdict.set_result(outcome)

        self._broker.publish(RULES, self._namespace, publications, done, lease)
        if isinstance(outcome := await verdict, HubError):
            raise outcome
        self.ticks_published += len(ticks)

    def _drop(self, reason: str) -> None:
        self.ticks_dropped += 1
        self._drops.warning(logger, "the ticker dropped %s", reason)


def _pieces(rows: Sequence[Row], size: int) -> Iterator[Sequence[Row]]:
    """Slices of at most `size`; one empty slice of no rows."""
    for i in range(0, max(len(rows), 1), size):
        yield rows[i : i + size]


def _symbol_or_none(row: Row) -> str | None:
    try:
        return symbol_of(row.fields)
    except ValueError:
        return None
