"""Terms over a real Valkey, whose connection fails where hypothesis says so: what was published, and the bars of it."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import AsyncExitStack
from fractions import Fraction
from functools import partial

import orjson
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from redis.asyncio import Redis

from hub import tasks, term
from hub.bars import INTERVALS_NS
from hub.broker import BarWrites, Broker
from hub.channels import Namespace
from hub.errors import BrokerUnavailable, CommandError
from hub.intake import Tally
from hub.lease import Candidate
from hub.sections import RedisSettings, TickerSettings
from hub.store import Store
from hub.term import Place, Term, read_place
from hub.tick import Batch, LastTicks, Row
from tests.nodes import until
from tests.support import async_test

SECOND = 10**9
BAR_RULES = Namespace(mode="stream", history="anyone", history_size=10_000)
NAMES = itertools.count()


class Listed:
    """A source of the given batches; a position is how many are done."""

    identity = "listed"

    def __init__(self, batches: list[Batch], pause_s: float = 0) -> None:
        self.list = [batch._replace(position=str(number)) for number, batch in enumerate(batches, 1)]
        self.pause_s = pause_s
        self.asked = 0

    async def batches(self, position: str, last: LastTicks) -> AsyncGenerator[Batch, None]:
        for batch in self.list[int(position or 0) :]:
            self.asked += 1
            await asyncio.sleep(self.pause_s)
            yield batch


class Failing(Broker):
    """A broker some of whose publishes are refused, or are taken and yet reported as failed."""

    faults: list[str]
    """For one publish after the other, while they last: '', 'refused' or 'lost'."""
    ticks_only = False
    """Whether bars are let through."""
    taken: list[dict]
    """The ticks that Redis has published."""

    def publish(self, rules, namespace, publications, done, lease=None, **options) -> None:
        spared = self.ticks_only and rules.mode != "latest"
        fault = self.faults.pop(0) if self.faults and not spared else ""
        error = BrokerUnavailable(f"made up: {fault}")
        if fault == "refused":
            asyncio.get_running_loop().call_soon(done, error)
            return

        def told(outcome: object) -> None:
            if rules.mode == "latest" and not isinstance(outcome, Exception):
                self.taken += [orjson.loads(body)["data"] for _, body in publications]
            done(error if fault == "lost" else outcome)

        super().publish(rules, namespace, publications, told, lease, **options)


class Cluster:
    """One leader after the other over one Redis."""

    def __init__(self, url: str, prefix: str, **ticker: object) -> None:
        self.prefix = f"{prefix}-{next(NAMES)}"
        self.store = Store(RedisSettings(prefix=self.prefix), url)
        self.settings = TickerSettings(**ticker)
        self.tally = Tally()
        self.redis = Redis.from_url(url)
        self.broker = Failing(self.store, 10_000)
        self.broker.faults, self.broker.taken = [], []
        self.owners = itertools.count()
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Cluster:
        self._stack.push_async_callback(self.redis.aclose)
        self._stack.push_async_callback(self.broker.close)
        self.candidate = Candidate(self.store, "ticker", "one", 60)
        self._stack.push_async_callback(self.candidate.close)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def lead(self, source: object, met: Callable, now_ns: Callable[[], int] = time.time_ns) -> bool:
        """One term, until `met()`, or until it ends of itself: False then."""
        lease = await self.candidate.acquire()
        one = Term(self.settings, self.store, self.broker, source, lease, self.tally, now_ns, time.monotonic, BAR_RULES)
        running = asyncio.ensure_future(one.run())
        waiting = asyncio.ensure_future(until(met, 20))
        await asyncio.wait([running, waiting], return_when=asyncio.FIRST_COMPLETED)
        ended = running.done()
        outcome = running.exception() if ended else None
        failed = waiting.exception() if waiting.done() else None
        for task in (running, waiting):
            await tasks.end(task)
        if failed:
            raise failed
        assert isinstance(outcome, BrokerUnavailable | None), outcome
        return not ended

    async def place(self) -> Place:
        return read_place(((await self.redis.hget(self.store.keys.source("ticker"), "position")) or b"").decode())

    async def stands_at(self, position: object) -> bool:
        return (await self.place()).position == str(position)

    async def stands_at_source(self, source: str, position: object) -> bool:
        return (await self.place())[:2] == (source, str(position))

    async def bars(self) -> list[dict]:
        """All bars of all channels, each channel's in order."""
        found = []
        for key in sorted(await self.redis.keys(f"{self.prefix}:stream:*")):
            channel = key.decode().partition("{")[2].rstrip("}")
            for _, entry in await self.redis.xrange(key):
                bar = orjson.loads(entry[b"b"])["data"]
                assert channel == f"bars:{bar['interval']}:{bar['symbol']}" and bar["final"] is True
                found.append(bar)
        return found

    async def run_all(self, source: Listed) -> None:
        """Leaders, one after the other, until all is published and all bars that are closed have come."""
        while not await self.lead(source, lambda: self.stands_at(len(source.list))):
            pass  # each fault ends one term at most
        self.broker.faults.clear()
        # A further one publishes what is still due.
        key = self.store.keys.due_bars("ticker")
        due = await self.redis.llen(key)
        before = self.tally.bars
        assert await self.lead(source, lambda: self.tally.bars >= before + due)


def expected(ticks: list[dict], intervals: list[str]) -> dict[tuple, dict]:
    """The bars of ticks that are in order, by symbol, interval and start: the straightforward way."""
    groups: dict[tuple, list[dict]] = {}
    for tick in ticks:
        for name in intervals:
            start = int(tick["time_ns"]) // INTERVALS_NS[name] * INTERVALS_NS[name]
            groups.setdefault((tick["symbol"], name, str(start), tick.get("era", 0)), []).append(tick)
    return {
        key: {
            "open": group[0]["price"],
            "high": max(tick["price"] for tick in group),
            "low": min(tick["price"] for tick in group),
            "close": group[-1]["price"],
            "volume": sum(tick["volume"] for tick in group),
            "count": len(group),
            "first_seq": group[0]["seq"],
            "last_seq": group[-1]["seq"],
        }
        for key, group in groups.items()
    }


def by_key(bars: list[dict]) -> dict[tuple, dict]:
    """The same of published bars; fails where one came twice or says more than it should."""
    found = {}
    for bar in bars:
        key = (bar.pop("symbol"), bar.pop("interval"), bar.pop("time_ns"), bar.pop("era", 0))
        assert key not in found, f"{key} came twice"
        assert bar.pop("final") is True
        found[key] = bar
    return found


def tick(symbol: str, at_s: float, price: float = 1, **fields: object) -> Row:
    return Row(
        "here", {"symbol": symbol, "price": price, "volume": 1, "time_ns": int(Fraction(at_s) * SECOND), **fields}
    )


END = Batch([tick("END", 10**6)], "")
"""So late that the bars of all others are closed by it."""
steps = st.lists(
    st.lists(
        st.tuples(st.sampled_from("ABC"), st.sampled_from([0, 0, 0.25, 0.5, 1, 7]), st.integers(1, 9)), max_size=7
    ),
    max_size=8,
)
faults = st.lists(st.sampled_from(["", "", "refused", "lost"]), max_size=12)
random_feeds = settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    derandomize=True,
    phases=[Phase.explicit, Phase.generate],
)


def feed(groups: list[list[tuple]], numbered: bool = False) -> list[Batch]:
    """Batches whose times only grow, over all symbols; with `numbered`, the source gives `seq`."""
    at, batches, count = 1000.0, [], itertools.count(1)
    for group in groups:
        rows = []
        for symbol, wait_s, price in group:
            at += wait_s
            rows.append(tick(symbol, at, price, **({"seq": next(count) * 2} if numbered else {})))
        batches.append(Batch(rows, ""))
    return [*batches, END]


@pytest.mark.expects_log
@random_feeds
@given(steps, faults, st.integers(1, 6))
def test_bars_are_those_of_the_published_ticks_whatever_fails(valkey_url, prefix, groups, faults, journal_ticks):
    """Publishes of ticks and bars fail before or after Redis took them: each bar once, equal to the model."""

    async def run() -> None:
        intervals = ["1s", "5s"]
        async with Cluster(valkey_url, prefix, bars=intervals, bars_wait_s=2, batch=3) as cluster:
            cluster.broker.faults = list(faults)
            await cluster.run_all(Listed(feed(groups)))
            model = expected(cluster.broker.taken, intervals)
            assert by_key(await cluster.bars()) == {key: bar for key, bar in model.items() if key[0] != "END"}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(term, "JOURNAL_TICKS", journal_ticks)
        async_test(run)()


@pytest.mark.expects_log
@random_feeds
@given(steps, faults)
def test_bars_of_a_thinned_source_are_those_of_all_its_ticks(valkey_url, prefix, groups, faults):
    """What is merged away counts in highs, lows, volumes and counts; and what is merged is what is not published."""

    async def run() -> None:
        intervals = ["1s", "1m"]
        rate = {"max_source_hz": 500}
        async with Cluster(valkey_url, prefix, bars=intervals, bars_wait_s=2, batch=2, **rate) as cluster:
            cluster.broker.faults = list(faults)
            source = Listed(feed(groups, numbered=True))
            await cluster.run_all(source)
            rows = [{**row.fields, "seq": row.fields.get("seq", 1)} for batch in source.list for row in batch.rows]
            model = expected(rows, intervals)
            assert by_key(await cluster.bars()) == {key: bar for key, bar in model.items() if key[0] != "END"}
            for symbol in "ABC":
                published = [tick for tick in cluster.broker.taken if tick["symbol"] == symbol]
                sent = [row["seq"] for row in rows if row["symbol"] == symbol]
                assert [tick["seq"] for tick in published][-1:] == sent[-1:]
                assert sum(1 + tick.get("merged", 0) for tick in published) == len(sent)
                numbers = [tick["seq"] for tick in published]
                assert numbers == sorted(set(numbers))

    async_test(run)()


@pytest.mark.expects_log
@random_feeds
@given(steps, faults)
def test_a_source_with_numbers_is_published_once_whatever_fails(valkey_url, prefix, groups, faults):
    """Each tick comes once and in order, though batches are read again whose verdict was lost."""

    async def run() -> None:
        async with Cluster(valkey_url, prefix, batch=2) as cluster:
            cluster.broker.faults = list(faults)
            source = Listed(feed(groups, numbered=True))
            await cluster.run_all(source)
            sent = [row.fields for batch in source.list[:-1] for row in batch.rows]
            assert [(t["symbol"], t["seq"]) for t in cluster.broker.taken if t["symbol"] != "END"] == [
                (row["symbol"], row["seq"]) for row in sent
            ]

    async_test(run)()


@pytest.mark.expects_log
@async_test
async def test_another_session_begins_anew_and_closes_the_bars(valkey_url, prefix):
    """Times and numbers may go back; ticks and bars say so by `era`, and a next leader knows it."""
    first = Batch([tick("A", 100, 5, seq=7), tick("B", 100)], "")
    second = Batch([tick("A", 50, 6, seq=1), tick("A", 51, 7, seq=2)], "", session="tuesday")
    third = Batch(
        [tick("B", 49, 8), tick("A", 52, 9, seq=2), tick("A", 52, 9, seq=3), tick("B", 99)], "", (), "tuesday"
    )
    async with Cluster(valkey_url, prefix, bars=["1s"]) as cluster:
        source = Listed([first, second, third])
        assert await cluster.lead(Listed([first, second]), lambda: cluster.stands_at(2))
        assert await cluster.lead(source, lambda: cluster.stands_at(3))
        assert await cluster.place() == Place("listed", "3", "tuesday", 1)
        seen = [(t["symbol"], t["price"], t["seq"], t.get("era", 0)) for t in cluster.broker.taken]
        # B's number is the hub's own, and goes on.
        assert seen == [
            ("A", 5, 7, 0), ("B", 1, 1, 0), ("A", 6, 1, 1), ("A", 7, 2, 1),
            ("B", 8, 2, 1), ("A", 9, 3, 1), ("B", 1, 3, 1),
        ]  # fmt: skip
        await cluster.run_all(source)
        bars = [(bar["symbol"], int(bar["time_ns"]) // SECOND, bar.get("era", 0)) for bar in await cluster.bars()]
        assert bars == [("A", 100, 0), ("A", 50, 1), ("A", 51, 1), ("A", 52, 1), ("B", 100, 0), ("B", 49, 1)]
        assert cluster.tally.dropped["duplicate"] == 1


@async_test
async def test_another_source_is_another_era(valkey_url, prefix):
    """What it brings is not measured by what another one has published, nor is what comes after a takeover."""
    async with Cluster(valkey_url, prefix) as cluster:
        assert await cluster.lead(
            Listed([Batch([tick("A", 100, seq=90), tick("B", 100, seq=90)], "")]), lambda: cluster.stands_at(1)
        )
        batches = [Batch([tick("A", 5, 2, seq=1)], ""), Batch([tick("B", 6, 3, seq=1)], "")]
        for other in (Listed(batches[:1]), Listed(batches)):
            other.identity = "other"
            assert await cluster.lead(other, partial(cluster.stands_at_source, "other", len(other.list)))
        assert [(t["price"], t["seq"], t.get("era")) for t in cluster.broker.taken[2:]] == [(2, 1, 1), (3, 1, 1)]


@async_test
async def test_bars_that_begin_in_the_middle_say_so(valkey_url, prefix):
    """A ticker that had no bars gets some: the first one lacks ticks that were published, the next one does not."""
    batches = [Batch([tick("A", at, at)], "") for at in (100, 101, 102, 103, 161, 300)]
    async with Cluster(valkey_url, prefix) as cluster:
        assert await cluster.lead(Listed(batches[:2]), lambda: cluster.stands_at(2))
        cluster.settings = TickerSettings(bars=["1m"])
        source = Listed(batches)
        # The mark outlives a leader.
        assert await cluster.lead(Listed(batches[:4]), lambda: cluster.stands_at(4))
        await cluster.run_all(source)
        bars = [(b["time_ns"], b["count"], b.get("partial")) for b in await cluster.bars()]
        assert bars == [(str(60 * SECOND), 2, True), (str(120 * SECOND), 1, None)]


@async_test
async def test_a_bar_that_cannot_be_published_ends_the_term(valkey_url, prefix):
    """Though the source is silent; the next leader publishes it."""
    async with Cluster(valkey_url, prefix, bars=["1s"]) as cluster:
        source = Listed([Batch([tick("A", 1)], ""), Batch([tick("A", 2)], "")])
        cluster.broker.faults = ["", "", "refused"]
        assert not await cluster.lead(source, lambda: False)
        assert await cluster.bars() == []
        assert await cluster.lead(source, lambda: cluster.tally.bars == 1)
        assert [bar["time_ns"] for bar in await cluster.bars()] == [str(SECOND)]


@async_test
async def test_late_ticks_are_published_and_counted_and_change_no_bar(valkey_url, prefix):
    """A silent symbol's bar is closed by the others' time, and what comes for it then is late."""
    batches = [[tick("A", 100, 1)], [tick("B", 104)], [tick("A", 100.5, 9)], [tick("A", 105)]]
    async with Cluster(valkey_url, prefix, bars=["1s"], bars_wait_s=2) as cluster:
        await cluster.run_all(Listed([Batch(rows, "") for rows in batches]))
        assert (cluster.tally.late, cluster.tally.published) == (1, 4)
        (bar,) = await cluster.bars()
        assert (bar["high"], bar["count"]) == (1, 1)


@async_test
async def test_a_failure_between_the_bars_of_silent_symbols_loses_none(valkey_url, prefix, monkeypatch):
    """They leave in several calls; a checkpoint before the last one would forget those that are not stored yet."""
    monkeypatch.setattr(term, "JOURNAL_TICKS", 0)
    for working in range(4, 8):
        async with Cluster(valkey_url, prefix, bars=["1s"], batch=1) as cluster:
            cluster.broker.ticks_only = True
            cluster.broker.faults = [""] * working + ["refused"]
            await cluster.run_all(Listed([Batch([tick(symbol, 100) for symbol in "ABC"], ""), END]))
            assert [bar["symbol"] for bar in await cluster.bars()] == ["A", "B", "C"]


@pytest.mark.expects_log
@async_test
async def test_a_failure_within_the_first_batch_of_an_era_mixes_no_bars(valkey_url, prefix):
    """Whoever finds the first of its ticks published knows that they are of the new era."""
    second = Batch([tick("A", 50, 2, seq=1), tick("A", 50.5, 3, seq=2)], "", session="x")
    third = Batch([tick("A", 60, seq=3)], "", session="x")
    for working in range(1, 5):
        async with Cluster(valkey_url, prefix, bars=["1s"], batch=1) as cluster:
            cluster.broker.ticks_only = True
            cluster.broker.faults = [""] * working + ["refused"]
            await cluster.run_all(Listed([Batch([tick("A", 100, seq=9)], ""), second, third]))
            bars = [(int(b["time_ns"]) // SECOND, b["count"], b.get("era", 0)) for b in await cluster.bars()]
            assert bars == [(100, 1, 0), (50, 2, 1)]


@async_test
async def test_what_waits_in_a_thinned_source_is_of_its_own_era(valkey_url, prefix):
    """The last value of a session comes, though the next session begins before it is due."""
    batches = [Batch([tick("A", 1, n, seq=n)], "") for n in (1, 2, 3)]
    batches.append(Batch([tick("A", 1, 7, seq=1)], "", session="x"))
    async with Cluster(valkey_url, prefix, max_source_hz=1) as cluster:
        assert await cluster.lead(Listed(batches), lambda: cluster.stands_at(4))
        seen = [(t["price"], t["seq"], t.get("merged"), t.get("era")) for t in cluster.broker.taken]
        assert seen == [(1, 1, None, None), (3, 3, 1, None), (7, 1, None, 1)]


@async_test
async def test_as_many_due_bars_go_as_were_published(valkey_url, prefix):
    """Those behind them stay; and a lease that has passed on changes none of it."""
    async with Cluster(valkey_url, prefix) as cluster:
        lease = await cluster.candidate.acquire()

        async def publish(writes: BarWrites, token: str) -> object:
            verdict = asyncio.get_running_loop().create_future()
            cluster.broker.publish(
                term.RULES, "ticker", [], verdict.set_result, lease._replace(token=token, bars=writes)
            )
            return await verdict

        key = cluster.store.keys.due_bars("ticker")
        await publish(BarWrites([b"1", b"2", b"3"], 0, [("A", b"{}")], True), lease.token)
        await publish(BarWrites([b"4"], 2, [], False), lease.token)
        assert await cluster.redis.lrange(key, 0, -1) == [b"3", b"4"]
        assert isinstance(await publish(BarWrites([b"5"], 2, [("A", b"")], True), "0-other"), CommandError)
        assert await cluster.redis.lrange(key, 0, -1) == [b"3", b"4"]
        assert await cluster.redis.hkeys(cluster.store.keys.forming("ticker")) == [b"A"]


@async_test
async def test_nothing_is_kept_that_is_not_needed(valkey_url, prefix, monkeypatch):
    """After a checkpoint the journal is empty; published bars leave the list; closed bars leave the hash."""
    monkeypatch.setattr(term, "JOURNAL_TICKS", 1)
    async with Cluster(valkey_url, prefix, bars=["1s"], bars_wait_s=0) as cluster:
        groups = [[tick(f"S{n}", at) for n in range(50)] for at in range(100, 300)]
        source = Listed([*(Batch(rows, "") for rows in groups), END], pause_s=0.001)
        await cluster.run_all(source)
        assert len(await cluster.bars()) == 50 * 200
        keys = cluster.store.keys
        assert await cluster.redis.llen(keys.journal("ticker")) == 0
        assert await cluster.redis.hkeys(keys.forming("ticker")) == [b"END"]
        assert await cluster.redis.llen(keys.due_bars("ticker")) < 1000


def test_a_place_is_read_back_and_what_is_none_is_the_beginning():
    """Also what an earlier version or another program has written."""
    place = Place("replay /srv/a b.csv", "1:2:3", "1", 4)
    assert read_place(str(place)) == place
    for text in ("", "given 2", "[]", '{"source":"x","colour":1}', "17"):
        assert read_place(text) == Place()
