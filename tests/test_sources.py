"""Sources: the simulated market, the beat, the producer's stream in a real Valkey, and which source is meant."""

from __future__ import annotations

import asyncio
import random
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path

import orjson
import pytest
from redis.asyncio import Redis

from hub.errors import BootError, BrokerUnavailable
from hub.replay import Replay
from hub.sections import RedisSettings, TickerSettings
from hub.sources import (
    MAX_ENTRY_BYTES,
    Metronome,
    Simulate,
    Stream,
    check_source,
    make_source,
    next_price,
    own_source,
    read_entry,
)
from hub.store import Store
from hub.tick import Batch, Tick, make_tick
from tests.support import FakeClock, async_test

SYMBOLS = ["A", "B", "C", "D"]


async def nothing_published(_: Sequence[str]) -> Mapping[str, Tick]:
    return {}


async def take(batches: AsyncIterator[Batch], count: int) -> list[Batch]:
    return [await anext(batches) for _ in range(count)]


def simulate(clock: FakeClock | None = None, **settings: object) -> Simulate:
    clock = clock or FakeClock()

    async def sleep(seconds: float) -> None:
        clock.advance(seconds)

    return Simulate(TickerSettings(**{"source": "simulate", "symbols": SYMBOLS} | settings), clock, sleep)


# The simulated market.


@async_test
async def test_the_same_seed_gives_the_same_walk_and_another_seed_another():
    """Nothing but the seed decides."""
    first, again, other = [await take(simulate(seed=seed).batches("", nothing_published), 50) for seed in (7, 7, 8)]
    assert first == again != other


@async_test
async def test_a_takeover_does_not_change_the_walk():
    """A leader that begins at a position with the published prices makes the ticks that the old one would have made."""
    whole = await take(simulate().batches("", nothing_published), 40)
    published: dict[str, Tick] = {}
    for batch in whole[:20]:
        published.update((row.fields["symbol"], make_tick(row.fields, 0, 0)) for row in batch.rows)

    async def last(symbols: Sequence[str]) -> Mapping[str, Tick]:
        return {symbol: published[symbol] for symbol in symbols if symbol in published}

    assert await take(simulate().batches(whole[19].position, last), 20) == whole[20:]


@async_test
async def test_each_batch_moves_the_share_of_the_symbols():
    """A quarter of eight symbols are two, in every batch, and each price differs from its last one."""
    symbols = [f"S{i}" for i in range(8)]
    last: dict[str, float] = {}
    for batch in await take(simulate(symbols=symbols, share=0.25).batches("", nothing_published), 200):
        assert len({row.fields["symbol"] for row in batch.rows}) == len(batch.rows) == 2
        for row in batch.rows:
            assert last.get(row.fields["symbol"]) != row.fields["price"]
            last[row.fields["symbol"]] = row.fields["price"]
    assert set(last) == set(symbols)


@async_test
async def test_more_symbols_than_a_batch_take_turns_within_one_beat():
    """Five symbols in batches of two: three batches a beat, every symbol once, and only then a pause."""
    clock = FakeClock(0)
    source = simulate(clock, symbols=["A", "B", "C", "D", "E"], batch=2, share=1, rate_hz=1)
    for beat in range(3):
        batches = source.batches(str(beat * 3), nothing_published)
        found = [row.fields["symbol"] for batch in await take(batches, 3) for row in batch.rows]
        assert sorted(found) == ["A", "B", "C", "D", "E"]
        assert clock() == 0
        await anext(batches)
        assert clock() == 1
        clock.now = 0


@async_test
async def test_quotes_are_around_the_price_and_rounded():
    """Bid < price < ask, with 2 to 4 digits, and the volume is a whole trade's."""
    for batch in await take(simulate(share=1).batches("", nothing_published), 500):
        for row in batch.rows:
            tick = row.fields
            assert tick["bid"] < tick["price"] < tick["ask"]
            assert all(tick[name] == round(tick[name], 4) for name in ("price", "bid", "ask"))
            assert tick["volume"] > 0


@pytest.mark.parametrize("price", [0.002, 1.0, 1.0001, 9.9999, 10.0, 123.45, 9999.99, 10_000.0, 50_000.0])
def test_a_price_always_moves_and_stays_in_its_bounds(price):
    """Also from the bounds, beyond them, and where the number of digits changes."""
    dice = random.Random(1)
    for _ in range(2000):
        moved = next_price(price, dice)
        assert moved != price
        assert 1 <= moved <= 10_000
        price = moved


# The beat.


@async_test
async def test_beats_are_at_absolute_times():
    """Work of 30 ms at 10 Hz does not add up: the hundredth beat comes 9.9 s after the first."""
    clock, pauses = FakeClock(0), []

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)
        clock.advance(seconds)

    metronome = Metronome(0.1, clock, sleep)
    for _ in range(100):
        await metronome.beat()
        beat_at = clock()
        clock.advance(0.03)
    assert beat_at == pytest.approx(9.9)
    assert len(pauses) == 99


@async_test
async def test_missed_beats_are_skipped():
    """After 5.5 s at 1 Hz one beat comes at once, and the next ones where they would have been."""
    clock, came = FakeClock(0), []

    async def sleep(seconds: float) -> None:
        clock.advance(seconds)

    metronome = Metronome(1.0, clock, sleep)
    await metronome.beat()
    clock.advance(5.5)
    for _ in range(3):
        await metronome.beat()
        came.append(clock())
    assert came == [5.5, 6.0, 7.0]


# The producer's stream.


@pytest.fixture
def store(valkey_url, prefix):
    return Store(RedisSettings(prefix=prefix), valkey_url)


def entry(*ticks: object) -> dict[str, bytes]:
    return {"batch": orjson.dumps(ticks)}


@async_test
async def test_a_first_reader_begins_with_what_is_added_from_then_on(valkey_url, prefix, store):
    """The end is a concrete id, which comes as a batch of its own before anything is read; older entries don't come."""
    redis, key = Redis.from_url(valkey_url), f"{prefix}:ticks"
    old = await redis.xadd(key, entry({"symbol": "OLD", "price": 1}))
    batches = Stream(store, key).batches("", nothing_published)
    assert await anext(batches) == Batch((), old.decode())
    new = await redis.xadd(key, entry({"symbol": "A", "price": 1}, {"symbol": "B", "price": 2}))
    batch = await anext(batches)
    assert batch.position == new.decode()
    assert [row.fields["symbol"] for row in batch.rows] == ["A", "B"]
    await batches.aclose()
    await redis.aclose()


@async_test
async def test_a_stream_that_is_not_there_yet_is_waited_for(valkey_url, prefix, store):
    """Its first entry arrives, because the reader begins before all ids."""
    redis, key = Redis.from_url(valkey_url), f"{prefix}:ticks"
    batches = Stream(store, key).batches("", nothing_published)
    assert (await anext(batches)).position == "0-0"
    reading = asyncio.ensure_future(anext(batches))
    added = await redis.xadd(key, entry({"symbol": "A", "price": 1}))
    assert (await reading).position == added.decode()
    await batches.aclose()
    await redis.aclose()


@async_test
async def test_every_entry_behind_a_position_comes_once_and_in_order(valkey_url, prefix, store):
    """A hundred entries, more than one read holds, from the twentieth on."""
    redis, key = Redis.from_url(valkey_url), f"{prefix}:ticks"
    ids = [(await redis.xadd(key, entry({"symbol": "A", "price": i}))).decode() for i in range(100)]
    batches = Stream(store, key).batches(ids[19], nothing_published)
    found = await take(batches, 80)
    assert [batch.position for batch in found] == ids[20:]
    assert [row.fields["price"] for batch in found for row in batch.rows] == list(range(20, 100))
    await batches.aclose()
    await redis.aclose()


@pytest.mark.parametrize(
    ("fields", "fault"),
    [
        ({}, "entry 5-0: no field `batch`"),
        ({b"other": b"[]"}, "entry 5-0: no field `batch`"),
        ({b"batch": b"[{"}, "entry 5-0: not JSON: "),
        ({b"batch": b'[{"symbol":"A","price":NaN}]'}, "entry 5-0: not JSON: "),
        ({b"batch": b"\xff"}, "entry 5-0: not JSON: "),
        ({b"batch": b'{"symbol":"A"}'}, "entry 5-0: found dict; allowed: an array of ticks"),
        ({b"batch": b"[" + b" " * MAX_ENTRY_BYTES + b"]"}, "entry 5-0: found 4194306 bytes; allowed: 4194304"),
    ],
)
def test_a_malformed_entry_is_a_fault_that_names_it(fields, fault):
    """It has no rows, and its position moves on."""
    batch = read_entry("5-0", fields)
    assert (batch.rows, batch.position) == ((), "5-0")
    assert len(batch.faults) == 1
    assert batch.faults[0].startswith(fault)


def test_an_entry_may_name_its_session():
    """In a field beside the batch; one that is too long costs the entry."""
    batch = read_entry("5-0", {b"batch": b"[]", b"session": b"2026-11-20"})
    assert batch.session == "2026-11-20"
    for session in (b"x" * 65, b"\xff"):
        (fault,) = read_entry("5-0", {b"batch": b"[]", b"session": session}).faults
        assert fault.startswith("entry 5-0: session: found ") and fault.endswith("at most 64 ASCII characters")


def test_rows_of_an_entry_say_where_they_are():
    """The id and the place in the array."""
    batch = read_entry("5-0", {b"batch": b'[{"symbol":"A"},17]'})
    assert batch.rows == [("entry 5-0 tick 0", {"symbol": "A"}), ("entry 5-0 tick 1", 17)]


@async_test
async def test_without_redis_or_with_a_key_of_another_type_the_reader_says_so(valkey_url, prefix, store, tmp_path):
    """Both are errors that end a term and may pass; the key is named."""
    redis, key = Redis.from_url(valkey_url), f"{prefix}:ticks"
    await redis.set(key, "text")
    absent = Store(RedisSettings(prefix=prefix), f"unix://{tmp_path}/absent.sock")
    for reachable, position, found in (
        (store, "", "WRONGTYPE"),
        (store, "0-0", "WRONGTYPE"),
        (absent, "0-0", "absent"),
    ):
        with pytest.raises(BrokerUnavailable, match=f"^stream {key} in Redis at unix:.*{found}"):
            await anext(Stream(reachable, key).batches(position, nothing_published))
    await redis.aclose()


# Which source.


def test_the_settings_name_the_source(store):
    """Each word has its class, and an identity that tells apart what the positions belong to; none has no source."""
    kinds = {"simulate": Simulate, "replay": Replay, "stream": Stream}
    sources = {kind: make_source(TickerSettings(source=kind, file="/x", stream_key="k"), store) for kind in kinds}
    assert {kind: type(source) for kind, source in sources.items()} == kinds
    assert [source.identity for source in sources.values()] == ["simulate", "replay /x", "stream k"]
    assert make_source(TickerSettings(source="none"), store) is None


def test_only_a_replay_needs_its_file():
    """A missing file stops the start, unless another source is chosen."""
    with pytest.raises(BootError, match=r"^ticker.file: found No such file or directory at '/no/such.csv'"):
        check_source(TickerSettings(source="replay", file="/no/such.csv"))
    check_source(TickerSettings(source="simulate", file="/no/such.csv"))


# A source of the operator's own.


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A directory for modules, which are forgotten afterwards."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]


def own(place: Path, text: str, name: str = "own_feed") -> TickerSettings:
    (place / f"{name}.py").write_text(text)
    return TickerSettings(source=f"{name}:Quotes", directory=str(place), options={"n": 3})


GOOD = """
from hub.tick import Batch
class Quotes:
    def __init__(self, options):
        self.identity = f"quotes {options['n']}"
    async def batches(self, position, last):
        yield Batch([], "1")
"""


@async_test
async def test_a_source_of_ones_own_is_made_with_its_options(place, store):
    """And read as any other."""
    source = make_source(own(place, GOOD), store)
    assert source.identity == "quotes 3"
    assert await take(source.batches("", nothing_published), 1) == [Batch([], "1")]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("", "allowed: a class with `identity` and `async def batches"),
        ("Quotes = 3", "allowed: a class with"),
        ("class Quotes: pass", "allowed: a class with"),
        (GOOD.replace('yield Batch([], "1")', "return []"), "allowed: a class with"),
        (GOOD.replace("options['n']", "options['m']"), r"KeyError: 'm' \(own_feed.py, line 5\)"),
        (GOOD.replace("self.identity", "self.name"), "AttributeError: 'Quotes' object has no attribute 'identity'"),
        (GOOD.replace("quotes {", "two\\nlines {"), r"whose identity is 'two\\nlines 3'; allowed: a line of 1 to 1000"),
        ("1/0", r"ZeroDivisionError: division by zero \(own_feed.py, line 1\)"),
        ("import nothing_of_that_name", "ModuleNotFoundError"),
    ],
)
def test_a_source_that_cannot_be_loaded_is_named_in_one_line(place, text, wanted):
    """With the setting, what was found, and where the mistake is."""
    with pytest.raises(BootError, match=wanted) as caught:
        own_source(own(place, text))
    assert str(caught.value).startswith("ticker.source: found 'own_feed:Quotes' in ")
    assert "\n" not in str(caught.value)
