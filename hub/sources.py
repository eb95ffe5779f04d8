"""Sources: where ticks come from. The contract, the simulated market, the producer's stream, and which one is meant.

Does: yield batches of unchecked ticks, each with the position behind it; load a source of the operator's own.
Does not: check ticks, number them (intake) or publish them (term), nor decide which process reads (lease).
Called by: term, in the leader only; ticker (make_source, check_source), serve (check_source, own_source).
Never break: position and rows belong together: whoever begins at a batch's position misses nothing and, but for a batch
whose verdict was lost with the connection, repeats nothing.
A new source is a class with `identity` and `batches`, a branch in `make_source` and its word in values.TICKER_SOURCES.

A source of the operator's own is such a class in a file of theirs, `[ticker] source = "FILE:NAME"`, made by each worker
with the table `[ticker] options` as its one argument; hub/demos/own_source.py is one:

    from hub.tick import Batch, Row

    class Quotes:
        identity = "quotes"

        def __init__(self, options): ...

        async def batches(self, position, last):
            async for number, price in ...:
                yield Batch([Row(f"quote {number}", {"symbol": "ACME", "price": price})], str(number))
"""

from __future__ import annotations

import asyncio
import inspect
import math
import random
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any, NoReturn, Protocol, cast

import orjson
from redis.asyncio import Redis
from redis.exceptions import RedisError, ResponseError

from .app import describe, find
from .errors import BootError, BrokerUnavailable
from .mistakes import short
from .replay import Replay, check_file
from .sections import TickerSettings
from .store import Store
from .tick import Batch, Clock, LastTicks, Row, Sleep

VOLATILITY = 0.0005
"""Standard deviation of one move, as a part of the price."""
SPREAD = 0.0001
"""From the price to bid and to ask, as a part of the price; at least one unit of its last digit."""
PRICE_BOUNDS = (1.0, 10_000.0)
FIRST_PRICE_BOUNDS = (5.0, 500.0)
UNITS = {2: 0.01, 4: 0.0001}
"""One unit of a price's last digit, by the number of digits."""

READ_COUNT = 16
"""Entries in one XREAD: a producer that is ahead is caught up with in few round trips and little memory."""
BLOCK_S = 1.0
BLOCK_MARGIN_S = 2.0
"""What an answer may take beyond the time that XREAD waits; then the connection is taken for dead."""
MAX_ENTRY_BYTES = 4_194_304
MAX_SESSION_LENGTH = 64
MAX_IDENTITY_LENGTH = 1000


class Source(Protocol):
    """What the leader reads from. One object per worker; only the leader's is ever asked for batches."""

    @property
    def identity(self) -> str:
        """What the positions belong to, such as 'replay /srv/day.csv': under another one the source begins anew."""
        ...

    def batches(self, position: str, last: LastTicks) -> AsyncGenerator[Batch, None]:
        """Batches from `position` on ('' at first), without end or until all is read; an `async def` that yields.

        It is asked for the next batch when the one before has been published with its position, and closed when the
        term ends; a new term calls again. It must not hold up the loop beyond a few ms and may wait as long as it
        likes. A row's required fields are symbol and price (tick.make_tick). Within one session, what is older than
        what was published, by `seq` or `time_ns`, is dropped, and always what is ahead of the clock (intake). An
        exception ends the term, and the next one begins at the last published position. With max_source_hz it is asked
        on while earlier batches wait.
        """
        ...


def make_source(settings: TickerSettings, store: Store) -> Source | None:
    """The source that the settings name; None for "none"."""
    if settings.source == "simulate":
        return Simulate(settings, time.monotonic, asyncio.sleep)
    if settings.source == "replay":
        return Replay(settings, time.monotonic, asyncio.sleep)
    if settings.source == "stream":
        return Stream(store, settings.stream_key or f"{store.keys.prefix}:ticks")
    return None if settings.source == "none" else own_source(settings)


def own_source(settings: TickerSettings) -> Source:
    """The source 'FILE:NAME' in `ticker.directory`, made with `ticker.options`.

    Raises BootError: one line that says what is wrong and where.
    """
    found = f"ticker.source: found {settings.source!r} in {settings.directory}"
    kind = find("ticker.source", settings.source, settings.directory)
    if not isinstance(kind, type) or not inspect.isasyncgenfunction(getattr(kind, "batches", None)):
        raise BootError(f"{found}; allowed: a class with `identity` and `async def batches(self, position, last)`")
    try:
        source: Any = kind(dict(settings.options))
        identity: object = source.identity
    except (Exception, SystemExit) as error:
        # Anybody's code: the operator gets one line and the place.
        raise BootError(f"{found}: {describe(error)}") from None
    if not isinstance(identity, str) or not identity.isprintable() or not 0 < len(identity) <= MAX_IDENTITY_LENGTH:
        allowed = f"a line of 1 to {MAX_IDENTITY_LENGTH} characters"
        raise BootError(f"{found}, whose identity is {short(identity)}; allowed: {allowed}")
    return cast(Source, source)


def check_source(settings: TickerSettings) -> None:
    """Return if the source can be read on this machine. Raises BootError, a line that names the setting."""
    if settings.source == "replay":
        check_file(settings.file)


class Metronome:
    """Beats at start + k × period: no drift, and beats that are missed are left out and not made up for."""

    def __init__(self, period_s: float, clock: Clock, sleep: Sleep) -> None:
        self._period_s = period_s
        self._clock = clock
        self._sleep = sleep
        self._due = clock() - period_s

    async def beat(self) -> None:
        """Return at the next beat; the first is at once."""
        self._due += self._period_s
        late_s = self._clock() - self._due
        if late_s >= self._period_s:
            self._due += late_s // self._period_s * self._period_s
        elif late_s < 0:
            await self._sleep(-late_s)


class Simulate:
    """A random walk of all symbols; its position is the number of batches so far.

    Each batch's moves follow from the seed and the batch's number alone, and the prices go on from the published ones:
    the same seed gives the same walk, whoever leads. Many symbols take turns in groups of `batch`, so that no more than
    that many are computed at once; the whole round has the time of one beat. Volume is that of one trade.
    """

    identity = "simulate"

    def __init__(self, settings: TickerSettings, clock: Clock, sleep: Sleep) -> None:
        symbols = list(dict.fromkeys(settings.symbols))
        count = math.ceil(len(symbols) / settings.batch)
        self._groups = [symbols[i::count] for i in range(count)]
        self._period_s = 1 / settings.rate_hz
        self._share = settings.share
        self._seed = settings.seed
        self._clock = clock
        self._sleep = sleep

    async def batches(self, position: str, last: LastTicks) -> AsyncGenerator[Batch, None]:
        """See Source.batches."""
        prices: dict[str, float] = {}
        for group in self._groups:
            ticks = await last(group)
            prices.update((s, ticks[s]["price"] if s in ticks else self._first_price(s)) for s in group)
        metronome = Metronome(self._period_s, self._clock, self._sleep)
        number = int(position or 0)
        while True:
            index = number % len(self._groups)
            if index == 0:
                await metronome.beat()
            rows = self._move(self._groups[index], number, prices)
            number += 1
            yield Batch(rows, str(number))

    def _first_price(self, symbol: str) -> float:
        return round(random.Random(f"{self._seed} {symbol}").uniform(*FIRST_PRICE_BOUNDS), 2)

    def _move(self, symbols: Sequence[str], number: int, prices: dict[str, float]) -> list[Row]:
        dice = random.Random(f"{self._seed} {number}")
        rows = []
        for symbol in dice.sample(symbols, max(1, round(self._share * len(symbols)))):
            prices[symbol] = price = next_price(prices[symbol], dice)
            rows.append(Row(symbol, _quote(symbol, price, dice)))
        return rows


def next_price(price: float, dice: random.Random) -> float:
    """Another price nearby, always a different one, with 4 digits below 10 and 2 from there on."""
    moved = min(max(price * math.exp(dice.gauss(0, VOLATILITY)), PRICE_BOUNDS[0]), PRICE_BOUNDS[1])
    digits = _digits(moved)
    moved = round(moved, digits)
    if moved != price:
        return moved
    up = price < PRICE_BOUNDS[1] and (price <= PRICE_BOUNDS[0] or dice.random() < 0.5)
    return round(price + (UNITS[digits] if up else -UNITS[digits]), digits)


def _digits(price: float) -> int:
    return 2 if price >= 10 else 4


def _quote(symbol: str, price: float, dice: random.Random) -> dict[str, object]:
    digits = _digits(price)
    half = max(UNITS[digits], round(price * SPREAD, digits))
    bid, ask = round(price - half, digits), round(price + half, digits)
    return {"symbol": symbol, "price": price, "bid": bid, "ask": ask, "volume": dice.randint(1, 50) * 10}


class Stream:
    """What an outside producer XADDs: entries of a field `batch`, a JSON array of ticks; a position is an entry's id.

    A field `session` beside it is the batch's session. At the very first it begins with what is added from then on.
    """

    def __init__(self, store: Store, key: str) -> None:
        self.identity = f"stream {key}"
        self._store = store
        self._key = key

    async def batches(self, position: str, last: LastTicks) -> AsyncGenerator[Batch, None]:
        """See Source.batches. Raises BrokerUnavailable."""
        # A connection of its own, because a blocking XREAD would hold up every other command on it.
        redis = self._store.commands(BLOCK_S + BLOCK_MARGIN_S)
        try:
            if not position:
                position = await self._end(redis)
                # Published without ticks, so that the id is stored: a next leader that asked for the end again would
                # miss what came in between.
                yield Batch((), position)
            while True:
                for entry_id, fields in await self._read(redis, position):
                    position = str(entry_id, "ascii")
                    yield read_entry(position, fields)
        finally:
            await redis.aclose()

    async def _end(self, redis: Redis) -> str:
        """The id that was given last, also if that entry is deleted; '0-0' before the first."""
        try:
            info: Any = await redis.xinfo_stream(self._key)
        except ResponseError as error:
            if "no such key" in str(error):
                return "0-0"
            self._unavailable(error)
        except (RedisError, OSError) as error:
            self._unavailable(error)
        found = info["last-generated-id"]
        return str(found, "ascii") if isinstance(found, bytes) else str(found)

    async def _read(self, redis: Redis, position: str) -> list[tuple[bytes, dict[bytes, bytes]]]:
        try:
            answer: Any = await redis.xread({self._key: position}, count=READ_COUNT, block=int(BLOCK_S * 1000))
        except (RedisError, OSError) as error:
            self._unavailable(error)
        return list(answer[0][1]) if answer else []

    def _unavailable(self, error: Exception) -> NoReturn:
        raise BrokerUnavailable(f"stream {self._key} in Redis at {self._store.describe()}: {error}") from None


def read_entry(entry_id: str, fields: Mapping[bytes, bytes]) -> Batch:
    """One entry of the stream as a batch; a malformed one as a batch of no rows and one fault."""
    where = f"entry {entry_id}"
    raw = fields.get(b"batch")
    if raw is None:
        return Batch((), entry_id, [f"{where}: no field `batch`"])
    if len(raw) > MAX_ENTRY_BYTES:
        return Batch((), entry_id, [f"{where}: found {len(raw)} bytes; allowed: {MAX_ENTRY_BYTES}"])
    try:
        ticks = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        return Batch((), entry_id, [f"{where}: not JSON: {error}"])
    if not isinstance(ticks, list):
        return Batch((), entry_id, [f"{where}: found {type(ticks).__name__}; allowed: an array of ticks"])
    session = fields.get(b"session", b"")
    if len(session) > MAX_SESSION_LENGTH or not session.isascii():
        allowed = f"at most {MAX_SESSION_LENGTH} ASCII characters"
        return Batch((), entry_id, [f"{where}: session: found {short(session)}; allowed: {allowed}"])
    return Batch([Row(f"{where} tick {i}", tick) for i, tick in enumerate(ticks)], entry_id, (), session.decode())
