"""Intake: which of a source's rows become ticks, with which number and time, and what became of all the others.

Does: look up each symbol's newest published tick, check rows (tick), number them, drop what is a duplicate or out of
order; count what is dropped by reason.
Does not: read sources, merge (thinning) or publish (term).
Called by: term, one Intake each; ticker and worker (Tally).
Never break: within one era a symbol's published `seq` only grows, whoever leads; a number that the source gives is kept
as it is, so that a jump in it stays visible.

The order within one era, by what the row brings:

    seq         above the last one, else dropped: the same is a duplicate, a lower one out of order; the time may be any
    time_ns     not before the last one's, else dropped as out of order; the same is kept, it may be another trade's
    neither     always kept; the time is this machine's

One wrong row must not make all good ones behind it old. So what is ahead of this machine's clock is dropped, and so is
a `seq` that jumps far, unless the next one jumps as well. What gets through for all that, such as the first row of an
era, holds until the source begins another session.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any, cast

from .log import Brake
from .tick import LastTicks, Row, Tick, make_tick, symbol_of

logger = logging.getLogger(__name__)

MAX_SYMBOLS = 100_000
"""Whose newest ticks a leader keeps; a source that invents more symbols would fill the memory, and Redis too."""
CLOCK_SKEW_NS = 60 * 10**9
"""A source's clock may be ahead of this machine's by so much; a tick beyond is dropped. And a leader's may be behind
the one before it: ticks without a time take that one's until it has caught up. A newest tick beyond was wrong, and must
not hold all later ones."""
MAX_JUMP = 10**9
"""Of `seq` from one tick to the next; a source that numbers one symbol a million times a second was cut off for a
quarter of an hour by then."""

UNREADABLE, MALFORMED, SYMBOLS, DUPLICATE, OUT_OF_ORDER, AHEAD = (
    "unreadable",  # a line, entry or batch that did not even become a row
    "malformed",
    "symbols",  # of a new symbol beyond MAX_SYMBOLS
    "duplicate",
    "out_of_order",
    "ahead",  # a time that is yet to come, or a number that no source can have reached
)


class Refused(ValueError):
    """A row that is no tick to publish. reason: one of the words above."""

    def __init__(self, reason: str, text: str) -> None:
        super().__init__(text)
        self.reason = reason


class Tally:
    """What the ticker of one worker has done so far, in all its terms."""

    def __init__(self) -> None:
        self.published = 0
        self.merged = 0
        """Ticks that were left out for a newer one of their symbol, see max_source_hz."""
        self.bars = 0
        self.late = 0
        """Ticks, once for each interval, that came when their bar was closed."""
        self.dropped = dict.fromkeys((UNREADABLE, MALFORMED, SYMBOLS, DUPLICATE, OUT_OF_ORDER, AHEAD), 0)
        # One each, so that a flood of one kind does not hide the first of another.
        self._brakes = {reason: Brake() for reason in self.dropped}

    def drop(self, reason: str, text: str) -> None:
        """Count one, and say so in the log if no such line was there lately."""
        self.dropped[reason] += 1
        self._brakes[reason].warning(logger, "the ticker dropped %s", text)

    def losses(self) -> tuple[int, ...]:
        """The counts of what was not published, or not in a bar."""
        return (self.merged, self.late, *self.dropped.values())

    def __str__(self) -> str:
        """'900 ticks published, 3 merged, 2 dropped (1 malformed, 1 duplicate), 12 bars, 0 late'."""
        reasons = ", ".join(f"{count} {reason}" for reason, count in self.dropped.items() if count)
        dropped = f"{sum(self.dropped.values())} dropped" + (f" ({reasons})" if reasons else "")
        return f"{self.published} ticks published, {self.merged} merged, {dropped}, {self.bars} bars, {self.late} late"


class Intake:
    """The newest ticks of one term's symbols, and what may follow them."""

    def __init__(self, last: LastTicks, now_ns: Callable[[], int], tally: Tally) -> None:
        """last: looks up what was published before this term. now_ns: the time of ticks that bring none."""
        self._lookup = last
        self._now_ns = now_ns
        self._tally = tally
        self._newest: dict[str, Tick | None] = {}
        """Not kept from term to term: a tick of an earlier one may not have been published."""
        self._doubtful: dict[str, int] = {}
        """Numbers that jumped, of symbols whose newest tick is from before that."""

    async def learn(self, rows: Sequence[Row]) -> dict[str, Tick]:
        """Look up the symbols that this term has not seen yet; returns what was published of them.

        Raises BrokerUnavailable.
        """
        newest = self._newest
        new = dict.fromkeys(symbol for symbol in map(_symbol_or_none, rows) if symbol and symbol not in newest)
        if not new:
            return {}
        symbols = list(new)[: MAX_SYMBOLS - len(newest)]
        found = dict(await self._lookup(symbols))
        newest.update((symbol, found.get(symbol)) for symbol in symbols)
        return found

    def take(self, rows: Sequence[Row], era: int) -> list[Tick]:
        """Rows as ticks, in order and numbered; those that can't be are dropped. After `learn` of the same rows."""
        now_ns = self._now_ns()
        ticks = []
        for where, fields in rows:
            try:
                tick = self._tick(fields, era, now_ns)
            except Refused as error:
                self._tally.drop(error.reason, f"{where}: {error}")
            except ValueError as error:
                self._tally.drop(MALFORMED, f"{where}: {error}")
            else:
                self._newest[tick["symbol"]] = tick
                ticks.append(tick)
        return ticks

    def _tick(self, fields: object, era: int, now_ns: int) -> Tick:
        symbol = symbol_of(fields)
        try:
            before = self._newest[symbol]
        except KeyError:  # still unknown after `learn`
            raise Refused(SYMBOLS, f"{symbol}, a new symbol beyond {MAX_SYMBOLS}") from None
        tick = make_tick(fields, before["seq"] if before else 0, now_ns)
        if era:
            tick["era"] = era
        given = cast(dict[str, Any], fields)
        if given.get("time_ns") is not None and (ahead_ns := int(tick["time_ns"]) - now_ns) > CLOCK_SKEW_NS:
            ahead_s = ahead_ns / 1e9
            raise Refused(AHEAD, f"{symbol}: time_ns {tick['time_ns']}, {ahead_s:.0f} s ahead of this machine's clock")
        if before and before.get("era", 0) == era:
            self._follow(tick, before, given, now_ns)
        self._doubtful.pop(symbol, None)
        return tick

    def _follow(self, tick: Tick, before: Tick, given: dict[str, Any], now_ns: int) -> None:
        """Return if `tick` may follow `before` in one era; its time may be moved. Raises Refused."""
        if given.get("seq") is not None:
            self._follow_by_number(tick, before)
            return
        before_ns = int(before["time_ns"])
        if int(tick["time_ns"]) >= before_ns or before_ns > now_ns + CLOCK_SKEW_NS:
            return
        if given.get("time_ns") is not None:
            raise Refused(OUT_OF_ORDER, f"{tick['symbol']}: time_ns {tick['time_ns']} after {before['time_ns']}")
        tick["time_ns"] = before["time_ns"]

    def _follow_by_number(self, tick: Tick, before: Tick) -> None:
        symbol, seq, last = tick["symbol"], tick["seq"], before["seq"]
        if seq <= last:
            raise Refused(DUPLICATE if seq == last else OUT_OF_ORDER, f"{symbol}: seq {seq} after {last}")
        if seq - last <= MAX_JUMP:
            return
        # A second one that goes on from there is no accident: without it, a source that does jump would be refused for
        # good.
        if seq <= self._doubtful.get(symbol, seq):
            self._doubtful[symbol] = seq
            raise Refused(AHEAD, f"{symbol}: seq {seq} after {last}, taken if the next is above it")


def _symbol_or_none(row: Row) -> str | None:
    try:
        return symbol_of(row.fields)
    except ValueError:
        return None
