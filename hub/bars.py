"""Bars: open, high, low, close of each symbol and interval, made of the ticks of one leader.

Does: form bars of ticks, close them, write the forming ones as bytes and read them back, or form them once more.
Does not: wait, publish (barfeed) or store; the state goes to Redis with the ticks it was made of (term).
Called by: term.
Never break: the same ticks in the same batches give the same bars, whatever the clock and however many leaders they
went through.

Time is the ticks' own. A bar is closed by its symbol's next tick beyond it; that of a silent symbol, once ticks of
others are `wait` beyond its end; and when an era ends. So nothing is closed while the whole source is silent. A tick of
a bar that is closed is late: it is published as a tick, but changes no bar. An interval without a tick has no bar.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import orjson

from .message import encode_body
from .tick import MAX_NUMBER, Tick

SECOND_NS = 10**9
INTERVALS_NS = {
    "1s": SECOND_NS,
    "5s": 5 * SECOND_NS,
    "1m": 60 * SECOND_NS,
    "5m": 300 * SECOND_NS,
    "1h": 3600 * SECOND_NS,
    "1d": 86_400 * SECOND_NS,
}
"""Each begins at a multiple of its length since 1970, so that days are those of UTC. Those of values.BAR_INTERVALS."""
FIRST_INDEX = -(10**10)
"""Of a bar of 1 s at the earliest `time_ns` that a tick can have (tick.NANOSECONDS)."""
VERSIONS_PER_ERA = 2 * 10**10 + 1
ERAS_PER_EPOCH = 400_000
"""So many eras' versions fit below 2^53."""


class Bar(NamedTuple):
    """A closed bar, as it is published: once in its channel, because `version` grows with era and time."""

    channel: str
    version: int
    epoch: str
    """Of the version, for those many eras whose versions are numbers that JSON and Lua can hold."""
    body: bytes

    def entry(self) -> bytes:
        """Four lines; a body is one line."""
        return b"\n".join((self.channel.encode(), b"%d" % self.version, self.epoch.encode(), self.body))


def read_entry(entry: bytes) -> Bar:
    """The bar of `Bar.entry`. Raises ValueError."""
    channel, version, epoch, body = entry.split(b"\n", 3)
    return Bar(channel.decode(), int(version), epoch.decode(), body)


def version_of(era: int, index: int) -> tuple[int, str]:
    """The version of the bar `index` of its interval, and the version's epoch."""
    epoch, within = divmod(era, ERAS_PER_EPOCH)
    return within * VERSIONS_PER_ERA + index - FIRST_INDEX + 1, str(epoch)


class _Forming:
    """A bar that is not closed. index: its start, in intervals since 1970. partial: some of its ticks are unknown."""

    __slots__ = ("close", "count", "first_seq", "high", "index", "last_seq", "low", "open", "partial", "volume")

    def __init__(self, index: int, tick: Tick, partial: bool) -> None:
        self.index = index
        self.open = self.high = self.low = self.close = tick["price"]
        self.volume = tick["volume"]
        self.count = 1
        self.first_seq = self.last_seq = tick["seq"]
        self.partial = partial

    def row(self) -> tuple[Any, ...]:
        return (
            self.index,
            self.open,
            self.high,
            self.low,
            self.close,
            _whole_or_float(self.volume),
            self.count,
            self.first_seq,
            self.last_seq,
            self.partial,
        )

    @classmethod
    def of_row(cls, row: Sequence[Any]) -> _Forming:
        bar = cls.__new__(cls)
        (
            bar.index,
            bar.open,
            bar.high,
            bar.low,
            bar.close,
            bar.volume,
            bar.count,
            bar.first_seq,
            bar.last_seq,
            bar.partial,
        ) = row
        return bar


class _Series:
    """The bars of one interval."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.length_ns = INTERVALS_NS[name]
        self.forming: dict[str, _Forming] = {}
        self.by_index: dict[int, set[str]] = {}
        """The symbols whose forming bar has this index, so that nobody looks at all of them in search of the silent."""
        self.settled: dict[str, int] = {}
        """The last bar of a symbol that was closed without a tick of its own behind it."""

    def put(self, symbol: str, bar: _Forming) -> None:
        self.forming[symbol] = bar
        self.by_index.setdefault(bar.index, set()).add(symbol)

    def pop(self, symbol: str) -> _Forming:
        bar = self.forming.pop(symbol)
        symbols = self.by_index[bar.index]
        symbols.discard(symbol)
        if not symbols:
            del self.by_index[bar.index]
        return bar


class Bars:
    """The bars of one leader; bounded by its symbols (intake.MAX_SYMBOLS) times the intervals."""

    def __init__(self, namespace: str, intervals: Sequence[str], wait_ns: int, era: int) -> None:
        """wait_ns: for how long after its end a bar waits for ticks of its own symbol, in the source's time."""
        self._namespace = namespace
        self._series = [_Series(name) for name in dict.fromkeys(intervals)]
        self._wait_ns = wait_ns
        self._era = era
        self._before: dict[str, int] = {}
        self._touched: dict[str, None] = {}
        """Symbols whose forming bars have changed since `take_states` told them; in order."""
        self._closed: dict[str, list[Bar]] = {}
        """What was closed since `take_closed` told it, by symbol."""
        self._time_ns: int | None = None
        """The source's: that of the newest tick since the bars were settled last."""
        self.late = 0
        self.opened_partial = False
        """Since this was set to False. That a bar is partial can't be told from its ticks once more."""

    def restore(self, symbol: str, state: bytes) -> None:
        """Go on with what another leader had formed of a symbol. Raises ValueError or TypeError."""
        for name, row in orjson.loads(state).items():
            for series in self._series:
                if series.name == name:
                    series.put(symbol, _Forming.of_row(row))

    def know(self, symbol: str, time_ns: int) -> None:
        """A tick of this time was published before; where its bar is not known, that bar is partial."""
        self._before[symbol] = time_ns

    def take(self, ticks: Iterable[Tick]) -> None:
        """Form bars of these ticks, which are in order."""
        newest_ns = self._time_ns
        for tick in ticks:
            symbol, time_ns = tick["symbol"], int(tick["time_ns"])
            self._touched[symbol] = None
            if newest_ns is None or time_ns > newest_ns:
                newest_ns = time_ns
            for series in self._series:
                index = time_ns // series.length_ns
                bar = series.forming.get(symbol)
                if bar is None or index != bar.index:
                    self._turn(series, index, tick)
                    continue
                price = bar.close = tick["price"]
                if price > bar.high:
                    bar.high = price
                elif price < bar.low:
                    bar.low = price
                bar.volume += tick["volume"]
                bar.count += 1
                bar.last_seq = tick["seq"]
        self._time_ns = newest_ns

    def _turn(self, series: _Series, index: int, tick: Tick) -> None:
        """A tick of another bar than the forming one."""
        symbol, bar = tick["symbol"], series.forming.get(tick["symbol"])
        settled = series.settled.get(symbol)
        if (bar is not None and index < bar.index) or (settled is not None and index <= settled):
            self.late += 1
            return
        partial = False
        if bar is not None:
            self._close(series, symbol)
        elif (before_ns := self._before.get(symbol)) is not None:
            partial = before_ns // series.length_ns == index and settled is None
            self.opened_partial = self.opened_partial or partial
        series.put(symbol, _Forming(index, tick, partial))

    def settle(self) -> None:
        """Close the bars of silent symbols, by the time of the ticks since the last call."""
        if self._time_ns is None:
            return
        for series in self._series:
            limit = (self._time_ns - self._wait_ns) // series.length_ns
            for index in [index for index in series.by_index if index < limit]:
                for symbol in sorted(series.by_index[index]):
                    series.settled[symbol] = index
                    self._close(series, symbol)
        self._time_ns = None

    def begin(self, era: int) -> None:
        """Close all that was formed in the era before, as times begin anew."""
        for series in self._series:
            for symbol in list(series.forming):
                self._close(series, symbol)
            series.settled.clear()
        self._before.clear()
        self._time_ns = None
        self._era = era

    def replay(self, ticks: Iterable[Tick]) -> None:
        """Form bars of ticks of a leader before, once more; what they close was closed then."""
        self.take(ticks)
        self._closed.clear()
        self._time_ns, self.late = None, 0

    def touched(self) -> list[str]:
        """The symbols that `take_states` would tell."""
        return list(self._touched)

    def closing(self) -> list[str]:
        """The symbols that `take_closed` would tell."""
        return list(self._closed)

    def take_states(self, symbols: Iterable[str] | None = None) -> list[tuple[str, bytes]]:
        """The forming bars of each symbol where they have changed since the last call, b'' for none.

        symbols: of these only; the others' stay for a later call.
        """
        found = list(self._touched) if symbols is None else [s for s in dict.fromkeys(symbols) if s in self._touched]
        for symbol in found:
            del self._touched[symbol]
        return [(symbol, self._state(symbol)) for symbol in found]

    def take_closed(self, symbols: Iterable[str]) -> list[Bar]:
        """The bars of these symbols that were closed since the last call; each symbol's in order."""
        return [bar for symbol in dict.fromkeys(symbols) for bar in self._closed.pop(symbol, ())]

    def _state(self, symbol: str) -> bytes:
        rows = {s.name: s.forming[symbol].row() for s in self._series if symbol in s.forming}
        return orjson.dumps(rows) if rows else b""

    def _close(self, series: _Series, symbol: str) -> None:
        bar = series.pop(symbol)
        data: dict[str, Any] = {
            "symbol": symbol,
            "interval": series.name,
            "time_ns": str(bar.index * series.length_ns),
            "open": bar.open,
            "high": bar.high,
            "low": bar.low,
            "close": bar.close,
            "volume": _whole_or_float(bar.volume),
            "count": bar.count,
            "first_seq": bar.first_seq,
            "last_seq": bar.last_seq,
            "final": True,
        }
        if bar.partial:
            data["partial"] = True
        if self._era:
            data["era"] = self._era
        channel = f"{self._namespace}:{series.name}:{symbol}"
        closed = Bar(channel, *version_of(self._era, bar.index), encode_body(data))
        self._touched[symbol] = None
        self._closed.setdefault(symbol, []).append(closed)


def _whole_or_float(volume: float) -> float:
    """A sum of whole volumes may outgrow what a JavaScript number and orjson can hold."""
    return float(volume) if volume > MAX_NUMBER else volume
