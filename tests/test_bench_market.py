"""The market benches: what the population makes of ticks, the feed's clock, and every work on small figures."""

from __future__ import annotations

import importlib
import json
import socket
import tomllib
from collections.abc import Iterator
from typing import Any

import pytest

from bench.feed_source import Clock
from bench.rig import feed as rig_feed
from bench.rig import hub as rig_hub
from bench.rig.population import Load, Population, population
from bench.rig.processes import BenchError
from tests.support import FakeClock, async_test
from tests.test_bench import ROOT, TIMEOUT_S, bench, frame, processed, read_frame, two_cpus
from tests.test_bench import Server as Server_
from tests.test_bench import server as server  # the fixture

pytestmark = pytest.mark.needs("cc", "apt-get install gcc libc6-dev")
MS = 1_000_000


def tick(symbol: int, seq: int, time_ns: int = 1) -> bytes:
    """A push as a watch list's client gets it."""
    return frame(
        b'{"push":{"channel":"m:$watch","pub":{"data":{"symbol":"S%d","price":1.0,"seq":%d,"time_ns":"%d"}}}}'
        % (symbol, seq, time_ns)
    )


def watching(server: Server_, *watches: list[int], thin: int = 0) -> Any:
    """Clients of a market of ten symbols."""
    return population(Load(server.address, symbols=10, watches=watches, thin=thin), len(watches))


def begin(clients: Population) -> None:
    """Count anew: before what is sent next, since it answers what comes behind the command."""
    clients.reset()
    clients.stats()


@pytest.fixture
def one(server: Server_) -> Iterator[tuple[Population, Any]]:
    """A client that watches 3 and 5, with 7 as its spare."""
    with watching(server, [3, 5, 7]) as clients:
        peer = server.accept_client()
        clients.wait_ready(TIMEOUT_S)
        begin(clients)
        yield clients, peer


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        ([(3, 1), (3, 2), (5, 1)], {"delivered": 3}),
        ([(3, 1), (3, 5), (3, 6)], {"delivered": 3, "merged": 3}),
        ([(3, 2), (3, 1)], {"delivered": 2, "merged": 1, "older": 1}),
        ([(3, 2), (3, 1), (3, 2)], {"delivered": 3, "merged": 1, "older": 1, "repeated": 1}),
        ([(3, 1), (5, 1), (3, 1)], {"delivered": 3, "repeated": 1}),
        ([(3, 1), (4, 1)], {"delivered": 1, "foreign": 1}),
        ([(3, 1), (7, 1)], {"delivered": 2, "foreign": 1}),
        ([(3, 1), (99, 1)], {"delivered": 1, "foreign": 1}),
    ],
)
def test_each_tick_is_held_against_what_its_client_has(one, sent, expected):
    """Merged values are counted by the jump; older, repeated and unwanted ones are found, symbol by symbol."""
    clients, peer = one
    peer.sendall(b"".join(tick(*what) for what in sent))
    processed(peer)
    ticks = clients.ticks()
    found = {name: getattr(ticks, name) for name in ("delivered", "merged", "older", "repeated", "foreign")}
    assert {name: count for name, count in found.items() if count} == expected


def test_ages_run_from_the_ticks_time_and_from_that_of_the_value_before(one):
    """Two values of one symbol and one of another: three are late, one took the place of another."""
    clients, peer = one
    peer.sendall(tick(3, 1, 1_000 * MS) + tick(5, 1, 3_000 * MS) + tick(3, 2, 2_000 * MS))
    processed(peer)
    late, held, newest = clients.ticks().fast
    assert (late.count, held.count, newest.count) == (3, 1, 2)
    # The first tick is the oldest, and the only one that was replaced; the newest of all was that of the other symbol.
    assert late.max_us == held.max_us == newest.max_us > newest.p50_us
    assert late.mean_us == pytest.approx(late.max_us - 1_000_000, rel=1e-3)
    begin(clients)
    peer.sendall(tick(3, 3, 9_000 * MS))
    processed(peer)
    late, held, newest = clients.ticks().fast
    assert (late.count, held.count, newest.count) == (1, 0, 0), "what was held before the slot has no age in it"


def test_who_lacks_a_last_value_is_found(server: Server_):
    """One of two clients has everything; the other lacks the newest of one symbol, then holds what was never sent."""
    with watching(server, [3, 5, 7], [3, 9]) as clients:
        peers = [server.accept_client(), server.accept_client()]
        clients.wait_ready(TIMEOUT_S)
        peers[0].sendall(tick(3, 2) + tick(5, 4))
        peers[1].sendall(tick(3, 1))
        for peer in peers:
            processed(peer)
        newest = [0, 0, 0, 2, 0, 4, 0, 8, 0, 8]  # spares are nobody's yet
        assert clients.held(newest) == (2, 1, 0, 1)
        peers[1].sendall(tick(3, 3))
        processed(peers[1])
        assert clients.held(newest) == (2, 0, 1, 0)


def test_a_change_of_lists_swaps_the_spare(one):
    """Out goes the first symbol and in comes the spare, then back; the value that comes with it may be a known one."""
    clients, peer = one
    text = '{"id":7,"in":"%IN%","out":"%OUT%"}'
    peer.sendall(tick(3, 5))
    processed(peer)
    clients.change([text], 1, 1)
    assert read_frame(peer) == (0x81, b'{"id":7,"in":"S7","out":"S3"}')
    # Of what leaves one is on its way; the answer and a tick come in one message; then one comes of what has left.
    peer.sendall(tick(7, 1) + tick(3, 6) + frame(b'{"id":7,"rpc":{}}\n' + tick(7, 2)[2:]) + tick(3, 7))
    changes = clients.changed(TIMEOUT_S)
    assert (changes.asked, changes.sent, changes.missed, changes.answers.count) == (1, 1, 0, 1)
    clients.change([text], 1, 1)
    assert read_frame(peer) == (0x81, b'{"id":7,"in":"S3","out":"S7"}')
    peer.sendall(tick(3, 7) + frame(b'{"id":7,"rpc":{}}'))
    clients.changed(TIMEOUT_S)
    ticks = clients.ticks()
    assert (ticks.delivered, ticks.added, ticks.foreign, ticks.older, ticks.repeated) == (4, 2, 1, 0, 0)
    assert clients.held([0, 0, 0, 7, 0, 1, 0, 9, 0, 0]) == (1, 1, 0, 1), "3 is there, of 5 nothing, and 7 has left"


def test_texts_take_turns_and_one_that_could_not_be_sent_is_counted(one):
    """Two are due at the same moment: the second finds the first unanswered, and its turn passes."""
    clients, peer = one
    for text in (b"first", b"second"):
        clients.change(["first", "second"], 1000, 0.002)
        assert read_frame(peer) == (0x81, text)
        peer.sendall(frame(b'{"id":1}'))
        changes = clients.changed(TIMEOUT_S)
        assert (changes.asked, changes.sent, changes.missed) == (2, 1, 1)


def test_changes_may_be_over_before_they_are_waited_for(one):
    """Where the feed ends after them: what is asked meanwhile is answered behind that they are."""
    clients, peer = one
    clients.change(["ask"], 1, 1)
    read_frame(peer)
    peer.sendall(tick(3, 1) + frame(b'{"id":1}'))
    processed(peer)
    assert clients.ticks().delivered == 1
    assert clients.changed(TIMEOUT_S).answers.count == 1


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b'{"id":1,"error":{"code":107}}', "a change was refused"),
        (b'{"push":{"channel":"m:$watch"}}', "no tick"),
    ],
)
def test_what_is_neither_a_tick_nor_a_good_answer_ends_the_measurement(one, answer: bytes, reason: str):
    """An error, or a push without a tick, leaves no figure."""
    clients, peer = one
    clients.change(["ask"], 1, 1)
    read_frame(peer)
    peer.sendall(frame(answer))
    with pytest.raises(BenchError, match=reason):
        clients.changed(TIMEOUT_S)


def test_a_thin_link_brings_no_more_than_its_rate(server: Server_):
    """At 50 bytes a second no tick is there when the link has begun to bring them; as fast as it goes, all are."""
    ticks = b"".join(tick(3, seq) for seq in range(1, 101))
    with watching(server, [3, 5], [3, 5], thin=1) as clients:
        peers = {peer.getpeername()[0]: peer for peer in (server.accept_client(), server.accept_client())}
        clients.wait_ready(TIMEOUT_S)
        clients.thin(50)
        begin(clients)
        thin, fast = (peers[address] for address in sorted(peers))
        for peer in (thin, fast):
            peer.sendall(ticks)
        processed(fast)
        while clients.stats().wire_bytes <= len(ticks) + 2:  # a ping, too, came to the fast one
            pass
        found = clients.ticks()
        assert (found.fast.late.count, found.thin.late.count) == (100, 0)
        clients.thin(1e9)
        processed(thin)  # its pong comes behind the ticks
        assert clients.ticks().thin.late.count == 100


@async_test
async def test_the_feeds_clock_makes_up_for_what_a_busy_hub_did_not_ask_for():
    """Five beats of two ticks; asked late, all that are due come at once, each with the time at which it was due."""
    now = FakeClock(100.0)

    async def sleep(seconds: float) -> None:
        now.advance(seconds)

    clock = Clock(20, 10, 0.5, lambda: round(now() * 1e9), sleep)
    begin = 100_000 * MS
    assert await clock.due() == [begin] * 2
    assert await clock.due() == [begin + 100 * MS] * 2
    now.advance(0.25)
    assert await clock.due() == [begin + at * MS for at in (200, 200, 300, 300)]
    assert await clock.due() == [begin + 400 * MS] * 2
    assert await clock.due() == []
    found = clock.outcome()
    assert (found["ticks"], found["latest_ms"]) == (10, pytest.approx(150))
    assert found["late_ms"] == pytest.approx((150 + 50) / 5)


@pytest.mark.parametrize(
    ("does", "reason"),
    [
        (lambda source: source.close(), "the ticker's term ended"),
        (lambda source: source.send(b'{"ticks":1'), "not loaded as asked: the hub has not taken all ticks"),
    ],
)
def test_a_feed_that_ends_or_falls_behind_leaves_no_figure(monkeypatch, does, reason: str):
    """The source's connection is lost, or its answer does not come in time."""
    monkeypatch.setattr(rig_feed, "MARGIN_S", 0.05)
    with rig_feed.feed(3) as feed, socket.socket(socket.AF_UNIX) as source:
        source.connect(tomllib.loads(feed.settings("m"))["ticker"]["options"]["control"])
        feed.accept()
        feed.start(10, 1, 0.0)
        assert json.loads(source.recv(1000)) == {"per_s": 10, "beats": 1, "seconds": 0.0}
        does(source)
        with pytest.raises(BenchError, match=reason):
            feed.wait()


def test_an_error_tells_what_the_hub_complained_of_last(tmp_path):
    """Three lines at most, from under the information behind them."""
    complaints = [f"2026-11-20 15:01:22,641 WARNING 7 hub.ticker: {number}" for number in range(4)]
    information = ["2026-11-20 15:01:22,642 INFO 7 hub.transports.websocket: closed reason='ERROR'"] * 50
    (tmp_path / "log").write_text("\n".join([*complaints, *information]))
    assert rig_hub.complaints(tmp_path / "log", 0) == complaints[1:]
    assert rig_hub.complaints(tmp_path / "log", 3 * len(complaints[0]) + 3) == complaints[3:]


@two_cpus
@pytest.mark.parametrize(
    "words",
    [
        "watch --symbols 30 --watched 5 --clients 20 --ticks 300 --seconds 0.5 --thin-rate 0.5",
        "changes --symbols 30 --watched 5 --clients 20 --ticks 100 --seconds 1",
        "kilobytes --clients 20 --rate 2000 --seconds 0.5",
    ],
)
def test_every_work_runs_from_start_to_end(words: str):
    """Small figures, one round: a row for each kind of client or change; the same as JSON that a summary can read."""
    text = bench("market.py", *words.split(), "--rounds", "1")
    rows = {
        "watch": ["all fast", "some thin, fast", "some thin, thin"],
        "changes": ["no changes", "rates", "lists"],
        "kilobytes": ["2 workers"],
    }
    for name in rows[words.split()[0]]:
        assert f"| {name} " in text, text


@pytest.fixture
def summary(tmp_path, monkeypatch):
    """The summary of an empty folder."""
    monkeypatch.syspath_prepend(ROOT / "bench")
    found = importlib.import_module("summary")
    monkeypatch.setattr(found, "RESULTS", tmp_path)
    return found


def goals(summary: Any) -> dict[str, str]:
    """By work and limit: whether it was reached."""
    rows = [[cell.strip() for cell in line.split("|")] for line in summary.must_reach().splitlines()[2:]]
    return {f"{row[1]} {row[2]}": row[4] for row in rows}


def watch_slot(p99_ms: float, oldest_ms: float, unmet: list[str]) -> dict:
    fast, thin = {"p99_us": p99_ms * 1000, "max_us": 0}, {"p99_us": 0, "max_us": oldest_ms * 1000}
    kinds = {kind: {"late": times, "newest": times} for kind, times in (("fast", fast), ("thin", thin))}
    return {**kinds, "faults": 0, "unmet": unmet}


@pytest.mark.parametrize(
    ("thin_p99_ms", "oldest_ms", "unmet", "expected"),
    [
        (59, 900, [], ["yes"] * 5),
        (61, 900, [], ["yes", "**no**", "yes", "yes", "yes"]),
        (59, 1001, [], ["yes", "yes", "**no**", "**no**", "yes"]),
        (59, 900, ["the hub took 9 ticks/s of 10"], ["**no**"] * 5),
    ],
)
def test_the_oldest_value_decides_and_a_load_that_was_not_there_reaches_nothing(
    summary, tmp_path, thin_p99_ms, oldest_ms, unmet, expected
):
    """p99 is a median over rounds; an age is that of the worst round."""
    thin = [watch_slot(thin_p99_ms, age, unmet) for age in (100, 100, oldest_ms)]
    arguments = {"ticks": 10, "clients": 2, "watched": 5, "symbols": 9, "thin_share": 0.1, "thin_rate": 0.1}
    works = {"all fast": [watch_slot(40, 0, [])] * 3, "some thin": thin}
    outcome = {"arguments": arguments, "works": works, "machine": {}}
    (tmp_path / "2020-01-01-market-watch.json").write_text(json.dumps(outcome))
    assert list(goals(summary).values()) == expected


def test_changes_are_charged_beyond_the_slot_without_them(summary, tmp_path):
    """Round by round: 25 % for rates; lists, 35 %, miss the goal."""
    works = {
        name: [{"worker_share": base + extra, "faults": 0, "unmet": []} for base in (0.2, 0.6, 0.3)]
        for name, extra in (("no changes", 0.0), ("rates", 0.25), ("lists", 0.35))
    }
    outcome = {"arguments": {"clients": 5000}, "works": works, "machine": {}}
    (tmp_path / "2020-01-01-market-changes.json").write_text(json.dumps(outcome))
    assert [cell for limit, cell in goals(summary).items() if "% of a core" in limit] == ["yes", "**no**"]


def test_a_mean_of_fewer_messages_than_asked_for_is_not_enough(summary, tmp_path):
    """60 ms, at nine tenths of the rate."""
    slot = {"mean_us": 60_000, "deliveries_per_s": 90_000}
    outcome = {
        "arguments": {"rate": 100_000, "bytes": 1024, "clients": 5000},
        "works": {"2 workers": [slot]},
        "machine": {},
    }
    (tmp_path / "2020-01-01-market-kilobytes.json").write_text(json.dumps(outcome))
    assert list(goals(summary).values()) == ["yes", "**no**"]


@pytest.mark.parametrize(
    ("ticks", "share", "missed", "words"),
    [
        (1000, 0.5, 0, []),
        (900, 0.5, 0, ["the hub took 900 ticks/s of 1,000"]),
        (1000, 0.97, 0, ["the population took 97% of its core"]),
        (1000, 0.5, 3, ["3 of 10 changes were not sent"]),
    ],
)
def test_a_load_that_was_not_as_asked_is_said(summary, ticks, share, missed, words):
    """By the source, by the clients' own CPU, or by changes that could not be sent."""
    stage, feed, clients = (importlib.import_module(f"rig.{name}") for name in ("stage", "feed", "population"))
    fed = feed.Fed(ticks, 1.0, 0.0, 0.0, [])
    changes = clients.Changes(10, 10 - missed, missed, 1.0, clients.Times(0, 0, 0, 0, 0, 0))
    found = stage.unmet(stage.Pace(1000, 10, 1.0), fed, share, changes)
    assert len(found) == len(words) and all(map(str.startswith, found, words))
