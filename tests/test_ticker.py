"""The ticker over a real Valkey: one leader, what follows what, and what happens when a leader is gone or late."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import AsyncExitStack
from itertools import pairwise
from pathlib import Path

import orjson
import pytest
from redis.asyncio import Redis
from vega_datasets import data

from hub.broker import Broker, Lease
from hub.errors import BootError
from hub.message import unpack
from hub.sections import RedisSettings, TickerSettings
from hub.store import Store
from hub.term import RULES, read_place
from hub.tick import Batch, LastTicks, Row
from hub.ticker import Ticker
from tests.support import async_test, tell_child

STOCKS = Path(data.stocks.filepath)
NOW_NS = 2 * 10**18
"""Behind all that is replayed here: what is yet to come is dropped."""
# A child that leads with a source of its own: a tick of price 1 every ms, without end.
CHILD = """
import asyncio, sys, uvloop
from hub.broker import Broker
from hub.sections import RedisSettings, TickerSettings
from hub.store import Store
from hub.ticker import Ticker
from tests.test_ticker import Counting

async def main(url, prefix, lease_ttl_s, *bars):
    store = Store(RedisSettings(prefix=prefix), url)
    settings = TickerSettings(lease_ttl_s=lease_ttl_s, bars=list(bars))
    Ticker(settings, store, Broker(store, 100), Counting(1, 0.001)).start()
    await asyncio.Event().wait()

uvloop.run(main(*sys.argv[1:]))
"""


class Counting:
    """A source whose position is the number of its batches; each is one tick of the symbol A."""

    identity = "counting"

    def __init__(self, price: float, pause_s: float, end: int | None = None) -> None:
        self._price = price
        self._pause_s = pause_s
        self._end = end

    async def batches(self, position: str, last: LastTicks) -> AsyncGenerator[Batch, None]:
        number = int(position or 0)
        while self._end is None or number < self._end:
            number += 1
            yield Batch([Row("", {"symbol": "A", "price": self._price, "volume": number})], str(number))
            await asyncio.sleep(self._pause_s)


class Given:
    """A source of the given batches; it begins behind the one whose position it is told."""

    identity = "given"

    def __init__(self, *batches: Batch | Exception) -> None:
        self._batches = batches

    async def batches(self, position: str, last: LastTicks) -> AsyncGenerator[Batch, None]:
        behind = not position
        for batch in self._batches:
            if isinstance(batch, Exception):
                raise batch
            if behind:
                yield batch
            behind = behind or batch.position == position


class Hub:
    """What the tests share: a store, what the feed brings, and tickers that are closed in the end."""

    def __init__(self, url: str, prefix: str) -> None:
        self.url, self.prefix = url, prefix
        self.store = Store(RedisSettings(prefix=prefix), url)
        self.redis = Redis.from_url(url)
        self.ticks: list[dict] = []
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Hub:
        pubsub = self.redis.pubsub()
        await pubsub.subscribe(self.store.keys.feed("ticker"))
        await pubsub.get_message(timeout=5)
        self._stack.push_async_callback(self.redis.aclose)
        self._stack.push_async_callback(pubsub.aclose)
        self._listener = asyncio.create_task(self._listen(pubsub))
        return self

    async def __aexit__(self, *_: object) -> None:
        self._listener.cancel()
        await asyncio.gather(self._listener, return_exceptions=True)
        await self._stack.aclose()

    async def _listen(self, pubsub) -> None:
        while True:
            message = await pubsub.get_message(timeout=1)
            if message and message["type"] == "message":
                for channel, body in unpack(message["data"]):
                    tick = orjson.loads(body)["data"]
                    assert channel == f"ticker:{tick['symbol']}"
                    self.ticks.append(tick)

    def ticker(self, reader: object = None, store: Store | None = None, **settings: object) -> Ticker:
        """A started one; `reader` is its source, where `settings` name none."""
        store = store or self.store
        broker = Broker(store, 100)
        settings = {"lease_ttl_s": 0.5} | settings
        ticker = Ticker(TickerSettings(**settings), store, broker, reader, now_ns=lambda: NOW_NS)
        self._stack.push_async_callback(broker.close)
        self._stack.push_async_callback(ticker.close)
        ticker.start()
        return ticker

    def column(self, name: str, symbol: str = "A") -> list:
        return [tick[name] for tick in self.ticks if tick["symbol"] == symbol]

    async def position(self) -> str:
        """The source and where it stands, such as "given 2"; '' before the first batch."""
        place = read_place(((await self.redis.hget(self.store.keys.source("ticker"), "position")) or b"").decode())
        return f"{place.source} {place.position}".strip()


async def until(met: Callable[[], object]) -> None:
    """Return once `met()` is true; the test's own deadline bounds it."""
    while not met():
        await asyncio.sleep(0.005)


def row(symbol: str, price: object = 1, **fields: object) -> Row:
    return Row("here", {"symbol": symbol, "price": price, **fields})


@async_test
async def test_one_of_many_leads(valkey_url, prefix):
    """Of three candidates one publishes; the numbers on the feed are without gap or repetition."""
    async with Hub(valkey_url, prefix) as hub:
        tickers = [hub.ticker(Counting(1, 0.001)) for _ in range(3)]
        await until(lambda: len(hub.ticks) >= 300)
        assert sorted(ticker.is_leader for ticker in tickers) == [0, 0, 1]
        assert [t.tally.published > 0 for t in tickers] == [t.is_leader == 1 for t in tickers]
        assert hub.column("seq") == list(range(1, len(hub.ticks) + 1))


@async_test
async def test_after_a_clean_release_another_goes_on_at_once(valkey_url, prefix):
    """The lease has a minute to live, and yet the next leader is there within a poll; source and numbers go on."""
    async with Hub(valkey_url, prefix) as hub:
        first = hub.ticker(Counting(1, 0.001), lease_ttl_s=60)
        await until(lambda: len(hub.ticks) >= 50)
        second = hub.ticker(Counting(2, 0.001), lease_ttl_s=60)
        await first.close()
        released_at = time.monotonic()
        await until(lambda: 2 in hub.column("price"))
        assert time.monotonic() - released_at < 2
        assert (first.is_leader, second.is_leader) == (0, 1)
        await second.close()
        assert hub.column("volume") == hub.column("seq") == list(range(1, len(hub.ticks) + 1))


@async_test
async def test_after_a_leader_is_killed_another_goes_on(valkey_url, prefix):
    """The lease runs out and the next one takes it; nothing is missing and nothing comes twice."""
    async with Hub(valkey_url, prefix) as hub:
        child = await asyncio.create_subprocess_exec(sys.executable, "-c", CHILD, valkey_url, prefix, "0.5")
        try:
            await until(lambda: len(hub.ticks) >= 50)
            hub.ticker(Counting(2, 0.001))
        finally:
            tell_child(child, signal.SIGKILL)
            await child.wait()
        killed_at = time.monotonic()
        await until(lambda: 2 in hub.column("price"))
        assert time.monotonic() - killed_at < 0.5 + 0.5 + 1.5  # lease, poll, a busy machine
        assert hub.column("volume") == hub.column("seq") == list(range(1, len(hub.ticks) + 1))


@async_test
async def test_a_suspended_leader_publishes_nothing_after_the_takeover(valkey_url, prefix):
    """Stopped in the middle of its ticks and woken after its lease has passed on, it gets not one of them through."""
    async with Hub(valkey_url, prefix) as hub:
        # So long a lease that the child does not ask for it before its next tick; its end is made below.
        child = await asyncio.create_subprocess_exec(sys.executable, "-c", CHILD, valkey_url, prefix, "60")
        try:
            await until(lambda: len(hub.ticks) >= 50)
            os.kill(child.pid, signal.SIGSTOP)
            await hub.redis.delete(hub.store.keys.lease("ticker"))
            hub.ticker(Counting(2, 0.001))
            await until(lambda: 2 in hub.column("price"))
            refused = await refusals(hub)
            os.kill(child.pid, signal.SIGCONT)
            # It is awake once Redis has refused it.
            while await refusals(hub) == refused:
                await asyncio.sleep(0.01)
            count = len(hub.ticks)
            await until(lambda: len(hub.ticks) > count + 100)
        finally:
            tell_child(child, signal.SIGKILL)
            await child.wait()
        prices = hub.column("price")
        assert 1 not in prices[prices.index(2) :]
        assert hub.column("volume") == hub.column("seq") == list(range(1, len(prices) + 1))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
@async_test
async def test_each_bar_comes_once_and_is_of_the_ticks_that_were_published(valkey_url, prefix, number):
    """The leader is killed, or stopped and woken again, in the middle of a second, twice."""
    async with Hub(valkey_url, prefix) as hub:
        children = []
        try:
            for turn in range(3):
                command = [sys.executable, "-c", CHILD, valkey_url, prefix, "60", "1s", "1m"]
                children.append(await asyncio.create_subprocess_exec(*command))
                count = len(hub.ticks)
                await until(lambda count=count: len(hub.ticks) >= count + 300)
                if turn < 2:
                    tell_child(children[-1], number)
                    await hub.redis.delete(hub.store.keys.lease("ticker"))
            for child in children[:2]:
                if number == signal.SIGSTOP:
                    refused = await refusals(hub)
                    tell_child(child, signal.SIGCONT)
                    # Or its link has timed out meanwhile: then its term has ended without another attempt.
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(3):
                            while await refusals(hub) == refused:
                                await asyncio.sleep(0.01)
            last_s, starts = int(hub.ticks[-1]["time_ns"]) // 10**9, [0]
            while starts[-1] <= last_s:
                await asyncio.sleep(0.05)
                entries = await hub.redis.xrange(hub.store.keys.stream("bars:1s:A"))
                found = [orjson.loads(entry[b"b"])["data"] for _, entry in entries]
                starts = [int(bar["time_ns"]) // 10**9 for bar in found] or [0]
        finally:
            for child in children:
                tell_child(child, signal.SIGKILL)
                await child.wait()
        by_second: dict[int, list[dict]] = {}
        for tick in hub.ticks:
            by_second.setdefault(int(tick["time_ns"]) // 10**9, []).append(tick)
        assert starts == [second for second in sorted(by_second) if second <= starts[-1]]
        for bar, start in zip(found, starts, strict=True):
            ticks = by_second[start]
            assert (bar["count"], bar["volume"]) == (len(ticks), sum(tick["volume"] for tick in ticks))
            assert (bar["first_seq"], bar["last_seq"]) == (ticks[0]["seq"], ticks[-1]["seq"])
            assert "partial" not in bar


@async_test
async def test_what_was_left_out_is_reported_once(valkey_url, prefix):
    """A line when something was merged or dropped since the last one; none otherwise."""
    async with Hub(valkey_url, prefix) as hub:
        ticker = hub.ticker(Given(Batch([row("A"), row("A"), row("A")], "1")), max_source_hz=1)
        await until(lambda: ticker.tally.published == 1)
        assert ticker.report() == "ticker: 1 ticks published, 2 merged, 0 dropped, 0 bars, 0 late"
        assert ticker.report() == ""
        about = ticker.about()
        assert about is not None and about["bars"] == 0 and about["leader"] in (0, 1)
        assert {name: count for name, count in about["ticks"].items() if count} == {"published": 1, "merged": 2}
        assert (hub.column("seq"), hub.column("merged")) == ([3], [2])


async def refusals(hub: Hub) -> int:
    """How often the publish script has refused a token on this server so far."""
    stats = await hub.redis.info("errorstats")
    return stats.get("errorstat_LEASELOST", {"count": 0})["count"]


@pytest.mark.expects_log
@async_test
async def test_a_leader_that_lost_its_lease_stands_in_line_again(valkey_url, prefix, caplog):
    """Somebody else holds it: the leader stops, says why, and leads again when the other has gone."""
    async with Hub(valkey_url, prefix) as hub:
        ticker = hub.ticker(Counting(1, 0.001))
        await until(lambda: ticker.is_leader)
        lease = hub.store.keys.lease("ticker")
        await hub.redis.hset(lease, mapping={"owner": "other", "token": "99-other"})
        await until(lambda: not ticker.is_leader)
        count = len(hub.ticks)
        await hub.redis.delete(lease)
        await until(lambda: ticker.is_leader and len(hub.ticks) > count)
        assert "the ticker's term ends: " in caplog.text
        assert hub.column("seq") == list(range(1, len(hub.ticks) + 1))


@pytest.mark.expects_log
@async_test
async def test_without_redis_the_ticker_waits_and_goes_on_when_it_is_back(valkey_url, prefix, caplog):
    """The way to Redis is cut and mended under a leader: few lines, no exception, nothing lost."""
    async with Hub(valkey_url, prefix) as hub, Relay(valkey_url.removeprefix("unix://")) as relay:
        store = Store(RedisSettings(prefix=prefix), f"redis://127.0.0.1:{relay.port}")
        ticker = hub.ticker(Counting(1, 0.001), store)
        await until(lambda: len(hub.ticks) >= 50)
        relay.cut()
        await until(lambda: not ticker.is_leader)
        await until(lambda: "the ticker" in caplog.text)
        relay.mend()
        count = len(hub.ticks)
        await until(lambda: len(hub.ticks) > count + 50)
        await ticker.close()
        # The batch whose verdict was lost with the connection may have come twice; none may be missing.
        numbers = hub.column("volume")
        assert sorted(set(numbers)) == list(range(1, max(numbers) + 1))
        assert len(numbers) - len(set(numbers)) <= 1
        assert len([record for record in caplog.records if record.name == "hub.ticker"]) <= 4


class Relay:
    """A TCP port that leads to a Unix socket and can be cut."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._open = True
        self._writers: set[asyncio.StreamWriter] = set()

    async def __aenter__(self) -> Relay:
        self._server = await asyncio.start_server(self._handle, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self.cut()
        self._server.close()

    def cut(self) -> None:
        self._open = False
        for writer in list(self._writers):
            writer.transport.abort()

    def mend(self) -> None:
        self._open = True

    async def _handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if not self._open:
            writer.transport.abort()
            return
        up_reader, up_writer = await asyncio.open_unix_connection(self._path)
        self._writers |= {writer, up_writer}
        await asyncio.gather(self._copy(reader, up_writer), self._copy(up_reader, writer))

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while chunk := await reader.read(65536):
                writer.write(chunk)
        except ConnectionError:
            pass  # cut
        finally:
            self._writers.discard(writer)
            writer.close()


@async_test
async def test_numbers_go_on_per_symbol_and_missing_fields_are_filled_in(valkey_url, prefix):
    """Two symbols count apart, also across a takeover; a number that the source gives is kept and counted on from."""
    async with Hub(valkey_url, prefix) as hub:
        first, second = Batch([row("A"), row("B"), row("A")], "1"), Batch([row("A"), row("B", seq=40), row("B")], "2")
        ticker = hub.ticker(Given(first))
        await until(lambda: len(hub.ticks) == 3)
        await ticker.close()
        hub.ticker(Given(first, second))
        await until(lambda: len(hub.ticks) == 6)
        assert (hub.column("seq"), hub.column("seq", "B")) == ([1, 2, 3], [1, 40, 41])
        assert hub.ticks[0] == {
            "symbol": "A", "price": 1, "bid": 1, "ask": 1, "volume": 0, "seq": 1, "time_ns": str(NOW_NS),
        }  # fmt: skip


@pytest.mark.expects_log
@async_test
async def test_malformed_ticks_are_dropped_counted_and_named_and_the_others_come(valkey_url, prefix, caplog):
    """Bad ticks cost themselves alone; a batch of nothing but faults still moves the position."""
    async with Hub(valkey_url, prefix) as hub:
        bad = [row("A", "cheap"), row("no symbol"), Row("there", None)]
        ticker = hub.ticker(Given(Batch([row("A"), *bad, row("A")], "1"), Batch([], "2", ["entry 7: not JSON"])))
        await until(lambda: sum(ticker.tally.dropped.values()) == 4 and ticker.tally.published == 2)
        while await hub.position() != "given 2":
            await asyncio.sleep(0.005)
        await until(lambda: hub.column("seq") == [1, 2])
        assert ticker.tally.dropped | {"malformed": 3, "unreadable": 1} == ticker.tally.dropped
        # One line for all of a kind, by its brake.
        lines = [record.getMessage() for record in caplog.records if "dropped" in record.getMessage()]
        assert lines == [
            "the ticker dropped here: price: found 'cheap'; allowed: a number of at most 2^53",
            "the ticker dropped entry 7: not JSON",
        ]


@async_test
async def test_a_batch_is_one_publish_cut_to_the_setting(valkey_url, prefix):
    """Five ticks at two a call are three calls, of which only the last moves the position."""
    async with Hub(valkey_url, prefix) as hub:
        calls = []
        publish = Broker.publish

        class Recording(Broker):
            def publish(self, rules, namespace, publications, done, lease=None) -> None:
                calls.append((len(publications), read_place(lease.position).position))
                publish(self, rules, namespace, publications, done, lease)

        broker = Recording(hub.store, 10)
        ticker = Ticker(TickerSettings(batch=2), hub.store, broker, Given(Batch([row(s) for s in "ABCDE"], "1")))
        ticker.start()
        await until(lambda: len(hub.ticks) == 5)
        assert calls == [(2, ""), (2, ""), (1, "1")]
        await ticker.close()
        await broker.close()


@pytest.mark.expects_log
@async_test
async def test_a_source_that_fails_is_begun_again(valkey_url, prefix, caplog):
    """An exception of a source's own ends the term with a line, not the ticker; nothing is published twice."""
    async with Hub(valkey_url, prefix) as hub:
        ticker = hub.ticker(Given(Batch([row("A")], "1"), ZeroDivisionError("oops")))
        await until(lambda: "its source given failed: ZeroDivisionError('oops')" in caplog.text)
        while int(await hub.redis.hget(hub.store.keys.source("ticker"), "token")) < 3:
            await asyncio.sleep(0.005)
        assert hub.column("seq") == [1]
        await ticker.close()


@async_test
async def test_a_position_counts_for_the_source_that_wrote_it(valkey_url, prefix):
    """After a change of source the new one begins at its own beginning, not at the other's position."""
    async with Hub(valkey_url, prefix) as hub:
        ticker = hub.ticker(Counting(1, 0, end=5))
        await until(lambda: len(hub.ticks) == 5)
        await ticker.close()
        assert await hub.position() == "counting 5"
        hub.ticker(Given(Batch([row("A", 2)], "1")))
        await until(lambda: hub.column("price")[5:] == [2])


@async_test
async def test_a_source_that_has_ended_keeps_its_leader(valkey_url, prefix):
    """Nobody begins it again, neither while the leader is there nor after a takeover."""
    async with Hub(valkey_url, prefix) as hub:
        first, second = hub.ticker(Counting(1, 0, end=3)), hub.ticker(Counting(1, 0, end=3))
        await until(lambda: len(hub.ticks) == 3)
        leader, other = (first, second) if first.is_leader else (second, first)
        await leader.close()
        await until(lambda: other.is_leader)
        await other.close()
        assert hub.column("seq") == [1, 2, 3]


@async_test
async def test_the_vega_stocks_are_replayed_complete_and_in_order(valkey_url, prefix):
    """560 real prices arrive on the feed as the file has them, numbered per symbol; a new leader adds none."""
    expected = [line.split(",") for line in STOCKS.read_text().splitlines()[1:]]
    async with Hub(valkey_url, prefix) as hub:
        settings = {"source": "replay", "file": str(STOCKS), "speed": 0}
        first = hub.ticker(**settings)
        await until(lambda: len(hub.ticks) > 100)
        await first.close()
        hub.ticker(**settings)
        await until(lambda: len(hub.ticks) >= 560)
        assert [(t["symbol"], t["price"]) for t in hub.ticks] == [(row[0], float(row[2])) for row in expected]
        assert hub.column("seq", "AAPL") == list(range(1, 124))
        assert hub.ticks[0]["time_ns"] == "946684800000000000"


@async_test
async def test_a_simulated_market_goes_on_where_it_was(valkey_url, prefix):
    """The next leader's prices and numbers follow the last ones: no price jumps by more than a move."""
    async with Hub(valkey_url, prefix) as hub:
        settings = {"source": "simulate", "symbols": ["A"], "rate_hz": 200, "share": 1}
        first = hub.ticker(**settings)
        await until(lambda: len(hub.ticks) >= 20)
        await first.close()
        count = len(hub.ticks)
        hub.ticker(**settings)
        await until(lambda: len(hub.ticks) >= count + 20)
        assert hub.column("seq") == list(range(1, len(hub.ticks) + 1))
        prices = hub.column("price")
        assert all(abs(b / a - 1) < 0.005 for a, b in pairwise(prices))


@async_test
async def test_no_entry_of_a_stream_is_lost_between_two_leaders(valkey_url, prefix):
    """A producer writes on while nobody leads, from before the first tick on: every entry comes once, in order."""
    async with Hub(valkey_url, prefix) as hub:
        settings = {"source": "stream", "stream_key": f"{prefix}:ticks"}

        async def produce(count: int) -> None:
            for _ in range(count):
                produced.append(len(produced))
                await hub.redis.xadd(
                    f"{prefix}:ticks", {"batch": orjson.dumps([{"symbol": "A", "price": produced[-1]}])}
                )

        produced: list[int] = []
        first = hub.ticker(**settings)
        while not await hub.position():
            await asyncio.sleep(0.005)
        await first.close()  # it has seen no entry, but its beginning is settled
        await produce(30)
        second = hub.ticker(**settings)
        await produce(30)
        await until(lambda: len(hub.ticks) >= 40)
        await second.close()
        await produce(30)
        hub.ticker(**settings)
        await until(lambda: len(hub.ticks) >= 90)
        assert hub.column("price") == produced
        assert hub.column("seq") == list(range(1, 91))


@async_test
async def test_an_old_token_stores_no_position(valkey_url, prefix):
    """A publication of a term that has ended changes neither the position nor the newest ticks."""
    async with Hub(valkey_url, prefix) as hub:
        ticker = hub.ticker(Given(Batch([row("A")], "1")), lease_ttl_s=60)
        await until(lambda: hub.ticks)
        old = (await hub.redis.hget(hub.store.keys.lease("ticker"), "token")).decode()
        await ticker.close()
        broker, verdicts = Broker(hub.store, 1), []
        broker.publish(RULES, "ticker", [], verdicts.append, Lease(old, "given 99"))
        await broker.close()
        assert [str(verdict) for verdict in verdicts] == ["the lease has passed to another worker"]
        assert await hub.position() == "given 1"


@async_test
async def test_without_a_source_nothing_happens(tmp_path):
    """source "none" needs no Redis, starts nothing and closes nothing."""
    store = Store(RedisSettings(), f"unix://{tmp_path}/absent.sock")
    broker = Broker(store, 1)
    ticker = Ticker(TickerSettings(), store, broker)
    tasks = asyncio.all_tasks()
    ticker.check()
    ticker.start()
    assert asyncio.all_tasks() == tasks
    await ticker.close()
    await broker.close()


@async_test
async def test_a_missing_replay_file_is_found_before_the_start(tmp_path):
    """`check` raises; the constructor does not, so that a respawned worker serves without it."""
    store = Store(RedisSettings(), f"unix://{tmp_path}/absent.sock")
    broker = Broker(store, 1)
    ticker = Ticker(TickerSettings(source="replay", file=f"{tmp_path}/absent.csv"), store, broker)
    with pytest.raises(BootError, match=r"^ticker\.file: found No such file or directory at .*absent\.csv"):
        ticker.check()
    await broker.close()
