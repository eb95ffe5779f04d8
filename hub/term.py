"""Term: what one leader does, from its lease to its end: the source's batches in, ticks and bars out.

Does: remember where the source stands; pass batches through intake, thinning and bars; publish what comes out of them.
Does not: hold the lease or begin anew (ticker), read sources, spread ticks (broker) or bars (barfeed).
Called by: ticker, one Term for each time that it leads.
Never break: a batch's position, and what the bars became by it, are stored by the script that publishes its ticks, so
that no tick is skipped and no bar differs from the ticks that were published. A batch whose verdict was lost with the
connection may come twice, where the source gives neither `seq` nor `time_ns`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import aclosing
from typing import Any, NamedTuple, TypeVar

import orjson

from .barfeed import BarFeed
from .bars import Bar, Bars
from .broker import BarWrites, Broker, Lease, Receipt
from .channels import Namespace
from .errors import HubError
from .intake import UNREADABLE, Intake, Tally
from .message import Publication, encode_body, unpack
from .sections import TickerSettings
from .sources import Source
from .store import Store
from .thinning import Newest, paced
from .tick import Batch, Clock, Tick, read_body

logger = logging.getLogger(__name__)

RULES = Namespace.model_validate({"mode": "latest"})
"""How ticks are published, whatever else the namespace's rules say of its clients."""
JOURNAL_TICKS = 5000
"""Until the next checkpoint of the bars. A new leader reads so many, and one batch, in some 50 ms."""
Item = TypeVar("Item")


class Place(NamedTuple):
    """Where a source stands, as Redis keeps it: JSON of these names."""

    source: str = ""
    position: str = ""
    session: str = ""
    era: int = 0

    def __str__(self) -> str:
        return orjson.dumps(self._asdict()).decode()

    def moved(self, source: str, batch: Batch) -> Place:
        """Behind `batch`; another source or session is another era."""
        same = (source, batch.session) == (self.source, self.session) or not self.source
        return Place(source, batch.position, batch.session, self.era + (not same))


def read_place(text: str) -> Place:
    """The place that `str` wrote; the beginning for '' and for anything else."""
    try:
        found: dict[str, Any] = orjson.loads(text)
        return Place(**found)
    except (ValueError, TypeError):
        return Place()


class Term:
    """One leader's work; `run` is all of it."""

    def __init__(
        self,
        settings: TickerSettings,
        store: Store,
        broker: Broker,
        source: Source,
        lease: Lease,
        tally: Tally,
        now_ns: Callable[[], int],
        clock: Clock,
        bar_rules: Namespace,
    ) -> None:
        self._settings = settings
        self._namespace = settings.namespace
        self._store = store
        self._broker = broker
        self._source = source
        self._token = lease.token
        self._tally = tally
        self._clock = clock
        self._stored = self._place = read_place(lease.position)
        self._intake = Intake(self._last, now_ns, tally)
        self._newest = Newest() if settings.max_source_hz else None
        self._ticks: list[Tick] = []
        self._bars: Bars | None = None
        self._feed: BarFeed | None = None
        if settings.bars:
            wait_ns = int(settings.bars_wait_s * 1e9)
            self._bars = Bars(settings.bars_namespace, settings.bars, wait_ns, self._place.era)
            self._feed = BarFeed(broker, bar_rules, tally)
        self._journaled = 0
        """Ticks in the journal."""
        self._checkpoint_due = False

    async def run(self) -> None:
        """Publish until cancelled; raises what ends the term otherwise."""
        if self._feed is None:
            return await self._pump()
        pump = asyncio.ensure_future(self._pump())
        try:
            # A bar that can't be published ends the term also while the source is silent.
            await asyncio.wait([pump, self._feed.failed], return_when=asyncio.FIRST_COMPLETED)
            (pump if pump.done() else self._feed.failed).result()
        finally:
            self._feed.close()
            pump.cancel()
            await asyncio.gather(pump, return_exceptions=True)

    async def _pump(self) -> None:
        if self._bars is not None and self._feed is not None:
            await self._restore(self._bars, self._feed)
        period_s = 1 / self._settings.max_source_hz if self._settings.max_source_hz else 0.0
        batches = self._source.batches(self._position(), self._last)
        async with aclosing(paced(batches, period_s, self._clock)) as turns:
            async for batch, due in turns:
                if batch is not None:
                    await self._take(batch)
                if due:
                    await self._flush()
        logger.info("the ticker's source %s has ended", self._source.identity)
        # Stays the leader: a next one would find nothing to read either.
        await asyncio.get_running_loop().create_future()

    async def _restore(self, bars: Bars, feed: BarFeed) -> None:
        """Go on with the bars of the leader before."""
        found = await feed.load(self._store, self._namespace)
        for symbol, state in found.forming:
            bars.restore(symbol, state)
        for payload in found.journal:
            bars.replay([tick for _, body in unpack(payload) if (tick := read_body(body)) is not None])
            await asyncio.sleep(0)  # a journal may take some 50 ms, and others have their turns in between
        if found.journal:
            await self._publish((), self._stored, (), checkpoint=True)

    def _position(self) -> str:
        """Where the source is to begin; a position of another source is none of its own."""
        return self._place.position if self._place.source == self._source.identity else ""

    # One batch.

    async def _take(self, batch: Batch) -> None:
        place = self._place.moved(self._source.identity, batch)
        if place.era != self._place.era:
            await self._begin_era(place)
        for fault in batch.faults:
            self._tally.drop(UNREADABLE, fault)
        for symbol, tick in (await self._intake.learn(batch.rows)).items():
            if self._bars is not None and tick.get("era", 0) == place.era:
                self._bars.know(symbol, int(tick["time_ns"]))
        ticks = self._intake.take(batch.rows, place.era)
        if self._newest is None:
            self._ticks += ticks
        else:
            if self._bars is not None:
                # Of all ticks: highs, lows and volumes are not merged away.
                self._bars.take(ticks)
            self._tally.merged += self._newest.put(ticks)
        self._place = place

    async def _begin_era(self, place: Place) -> None:
        """Let Redis have the new era, and close the bars of the one before, ahead of its first tick.

        In one step with its ticks it would not do: they may take several calls, and a leader that finds the first of
        them must not take the bars that they began for bars of the era before. What waits to be thinned goes first.
        """
        self._place = place._replace(position=self._position())
        if self._bars is not None:
            self._bars.begin(place.era)
            self._checkpoint_due = True
        await self._flush()

    # What is due.

    async def _flush(self) -> None:
        """Publish all that has come, in as many calls as it needs; only the last one moves the position."""
        ticks = self._ticks if self._newest is None else self._newest.take()
        self._ticks = []
        pieces = list(_pieces(ticks, self._settings.batch))
        bars = self._bars
        for number, piece in enumerate(pieces, 1):
            if bars is not None and self._newest is None:
                # Not earlier: what Redis has of the bars must be of the ticks that it has.
                bars.take(piece)
            # Also without a tick: a batch of nothing but faults must not be read again by the next leader.
            if bars is None or number < len(pieces):
                last = number == len(pieces)
                await self._publish(piece, self._place if last else self._stored, [tick["symbol"] for tick in piece])
        if bars is not None:
            await self._publish_last(bars, pieces[-1])
        self._stored = self._place

    async def _publish_last(self, bars: Bars, piece: Sequence[Tick]) -> None:
        """The last ticks, and before them what changes of the bars of silent symbols, of which there may be many."""
        bars.settle()
        own = dict.fromkeys(tick["symbol"] for tick in piece)
        changed = bars.closing() if self._newest is None else bars.touched()
        others = [symbol for symbol in changed if symbol not in own]
        room = max(0, self._settings.batch - len(own))
        for symbols in _pieces(others[room:], self._settings.batch):
            if symbols:
                await self._publish((), self._stored, symbols)
        await self._publish(piece, self._place, [*own, *others[:room]])

    async def _publish(
        self, ticks: Sequence[Tick], place: Place, symbols: Sequence[str], checkpoint: bool = False
    ) -> None:
        """Return once Redis has ticks, position and the symbols' bars.

        Raises BrokerUnavailable or CommandError, as broker.publish.
        """
        publications = [Publication(self._channel(tick["symbol"]), encode_body(tick)) for tick in ticks]
        lease = Lease(self._token, str(place))
        if self._bars is None or self._feed is None:
            await self._send(publications, lease)
        else:
            await self._feed.room()
            closed = self._bars.take_closed(symbols)
            writes = self._writes(self._bars, self._feed, closed, symbols, len(ticks), checkpoint)
            await self._send(publications, lease._replace(bars=writes))
            self._feed.add(closed)
            self._tally.late, self._bars.late = self._tally.late + self._bars.late, 0
        self._tally.published += len(ticks)

    def _writes(
        self, bars: Bars, feed: BarFeed, closed: list[Bar], symbols: Sequence[str], count: int, checkpoint: bool
    ) -> BarWrites:
        """What to store of the bars with `count` ticks.

        A state for each tick would cost half as much again as all else of it. So the ticks go into the journal, in the
        very bytes that are published, and states are stored now and then; but of merged ticks nothing is published.
        """
        entries = [bar.entry() for bar in closed]
        if self._newest is not None:
            return BarWrites(entries, feed.take_published(), bars.take_states(symbols), True)
        self._journaled += count
        checkpoint = checkpoint or self._checkpoint_due or self._journaled >= JOURNAL_TICKS or bars.opened_partial
        # What is closed and not stored yet would be neither a forming bar nor a due one.
        if not checkpoint or bars.closing():
            return BarWrites(entries, feed.take_published(), (), False)
        self._journaled, self._checkpoint_due, bars.opened_partial = 0, False, False
        return BarWrites(entries, feed.take_published(), bars.take_states(), True)

    async def _send(self, publications: Sequence[Publication], lease: Lease) -> None:
        verdict: asyncio.Future[Receipt | HubError] = asyncio.get_running_loop().create_future()

        def done(outcome: Receipt | HubError) -> None:
            if not verdict.done():  # a term that was ended waits no more
                verdict.set_result(outcome)

        self._broker.publish(RULES, self._namespace, publications, done, lease)
        if isinstance(outcome := await verdict, HubError):
            raise outcome

    # What was published before.

    async def _last(self, symbols: Sequence[str]) -> dict[str, Tick]:
        """The newest published ticks, see tick.LastTicks."""
        if not symbols:
            return {}
        bodies = await self._broker.last(self._namespace, [self._channel(symbol) for symbol in symbols])
        ticks = zip(symbols, map(read_body, bodies), strict=True)
        return {symbol: tick for symbol, tick in ticks if tick is not None}

    def _channel(self, symbol: str) -> str:
        return f"{self._namespace}:{symbol}"


def _pieces(items: Sequence[Item], size: int) -> Iterator[Sequence[Item]]:
    """Slices of at most `size`; one empty slice of no items."""
    for i in range(0, max(len(items), 1), size):
        yield items[i : i + size]
