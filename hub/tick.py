"""Tick: one price of one symbol, and what a source hands over.

Does: name the shapes (Row, Batch, Tick) and what a source is given (LastTicks, Clock, Sleep); make a whole tick of what
a source found, or say what is wrong with it.
Does not: read sources (replay, sources), remember what came before (intake) or publish (term).
Called by: replay and sources (Row, Batch), intake (symbol_of, make_tick), term (read_body), bars (Tick).
Never break: every tick that is published went through `make_tick`, whichever source it came from.
A new field of a tick needs its line in Tick, in `make_tick` and in the README's table.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, NamedTuple, NotRequired, TypedDict, cast

import orjson

from .channels import NAMESPACE_NAME
from .mistakes import short

MAX_NUMBER = 2**53
"""Beyond this JavaScript loses whole numbers. NaN and the infinities fail the comparison with it too."""
NANOSECONDS = re.compile(r"-?[0-9]{1,19}")


class Tick(TypedDict):
    """What subscribers see as a publication's data."""

    symbol: str
    price: float
    bid: float
    ask: float
    volume: float
    """Of this tick alone, not of the day."""
    seq: int
    """Per symbol, one more with each tick, after a takeover too; or as the source gives it, jumps included."""
    time_ns: str
    """Nanoseconds since 1970 in UTC as decimal text, because a JavaScript number can't hold them."""
    merged: NotRequired[int]
    """Ticks of this symbol since the one published before that `max_source_hz` has merged away: so much of the step in
    `seq` is no gap. Absent: none."""
    era: NotRequired[int]
    """How often the source's times and numbers have begun anew: `seq` and `time_ns` are comparable within one era only.
    Absent: 0."""


class Row(NamedTuple):
    """One tick as a source found it, unchecked. `where` names the place for a person: 'line 17'."""

    where: str
    fields: object


class Batch(NamedTuple):
    """What belongs together, and where the source stands behind it.

    position: text without spaces, at most a few hundred bytes; a later leader's `batches` begins there.
    faults: what could not even become a row, in words that name the place: 'line 9: 3 columns; allowed: 4'.
    session: such as the trading day, or the round of a replay. With another one than before, times and numbers begin
    anew; within one, what is older than what was published is dropped.
    """

    rows: Sequence[Row]
    position: str
    faults: Sequence[str] = ()
    session: str = ""


LastTicks = Callable[[Sequence[str]], Awaitable[Mapping[str, Tick]]]
"""The newest published ticks of some symbols; those without one are missing. Raises BrokerUnavailable."""
Clock = Callable[[], float]
Sleep = Callable[[float], Awaitable[None]]


def symbol_of(fields: object) -> str:
    """The symbol of an unchecked tick. Raises ValueError in words for a log line."""
    if not isinstance(fields, dict):
        raise ValueError(f"found {short(fields)}; allowed: an object with symbol and price")
    symbol = fields.get("symbol")
    if not isinstance(symbol, str) or not NAMESPACE_NAME.fullmatch(symbol):
        raise ValueError(f"symbol: found {short(symbol)}; allowed: 1 to 64 of A-Z a-z 0-9 _ . -")
    return symbol


def make_tick(fields: object, last_seq: int, now_ns: int) -> Tick:
    """A whole tick of symbol and price, and of whatever else is given; other keys are left out.

    last_seq: of the symbol's tick before this one, 0 for none. now_ns: the time of a tick without its own.
    Defaults: bid and ask the price, volume 0, seq the next. Raises ValueError in words for a log line.
    """
    symbol = symbol_of(fields)
    given = cast(dict[str, Any], fields)
    price = _number(given, "price")
    return Tick(
        symbol=symbol,
        price=price,
        bid=_number(given, "bid", price),
        ask=_number(given, "ask", price),
        volume=_volume(given),
        seq=_seq(given, last_seq),
        time_ns=_time_ns(given, now_ns),
    )


def read_body(body: bytes | None) -> Tick | None:
    """The tick in a publication's body; None where there is none, because others may have published on the channel."""
    try:
        data = orjson.loads(body or b"null")["data"]
        tick = make_tick(data, 0, 0)
    except (ValueError, TypeError, KeyError):  # not JSON, no object, no data; or data that is no tick
        return None
    if isinstance(era := data.get("era"), int):
        tick["era"] = era
    return tick


def _number(given: dict[str, Any], name: str, default: float | None = None) -> float:
    value = given.get(name)
    if value is None and default is not None:
        return default
    # A bool is an int to Python. Text is refused: a source that reads text makes numbers of it.
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not -MAX_NUMBER <= value <= MAX_NUMBER:
        raise ValueError(f"{name}: found {short(value)}; allowed: a number of at most 2^53")
    return value


def _volume(given: dict[str, Any]) -> float:
    volume = _number(given, "volume", 0)
    if volume < 0:
        raise ValueError(f"volume: found {volume}; allowed: 0 or more")
    return volume


def _seq(given: dict[str, Any], last_seq: int) -> int:
    value = given.get("seq")
    if value is None and last_seq < MAX_NUMBER:
        return last_seq + 1
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MAX_NUMBER:
        raise ValueError(f"seq: found {short(value)}; allowed: a whole number from 0 to 2^53")
    return value


def _time_ns(given: dict[str, Any], now_ns: int) -> str:
    value = given.get("time_ns")
    if value is None:
        return str(now_ns)
    text = str(value)
    if isinstance(value, bool) or not isinstance(value, (int, str)) or not NANOSECONDS.fullmatch(text):
        raise ValueError(f"time_ns: found {short(value)}; allowed: nanoseconds since 1970, a number or decimal text")
    return text
