"""Symbols: who is known, who is new, and how a namespace is read while things come, fail and are lost."""

from __future__ import annotations

import asyncio

import pytest

from hub import symbols as room
from hub.broker import Broker
from hub.channels import Namespace
from hub.errors import LIMIT_EXCEEDED, BrokerUnavailable, CommandError
from hub.message import Publication
from hub.sections import RedisSettings
from hub.store import Keys, Store
from hub.symbols import APPEAR_AT_ONCE, LINGER_S, OVERFULL_S, RECHECK_AT_ONCE, RETRY_S, Symbols
from tests.nodes import until
from tests.support import async_test

RULES = Namespace(mode="latest", watch=10, watch_prefixes=True)
AWAY = BrokerUnavailable("away")


class Timer:
    def __init__(self, timers: list, seconds: float, call: object) -> None:
        self.timers, self.seconds, self.call = timers, seconds, call
        timers.append(self)

    def cancel(self) -> None:
        self.timers.remove(self)

    def fire(self) -> None:
        self.timers.remove(self)
        self.call()


class Feeds:
    """Confirms when the test says so, or at once."""

    def __init__(self) -> None:
        self.held: list[str] = []
        self.ready: list = []
        self.at_once = True

    def hold(self, channel: str, namespace: Namespace, ready: object) -> None:
        assert namespace is RULES
        self.held.append(channel)
        self.ready.append(ready)
        if self.at_once:
            self.confirm()

    def confirm(self, error: Exception | None = None) -> None:
        if error is not None:
            self.held.pop()
        self.ready.pop(0)(error)

    def release(self, channel: str, namespace: Namespace) -> None:
        self.held.remove(channel)


class List:
    """A watcher that notes what it is told."""

    def __init__(self, raw: bool = False) -> None:
        self.raw = raw
        self.told: list = []

    def appeared(self, symbol: str) -> None:
        self.told.append(symbol)

    def recheck(self) -> None:
        self.told.append("recheck")

    def overfull(self) -> None:
        self.told.append("overfull")


class Rig:
    def __init__(self) -> None:
        self.timers: list[Timer] = []
        self.asked: list = []
        self.feeds = Feeds()
        self.symbols = Symbols(self, Keys("hub"), self.call_later)
        self.symbols.feeds = self.feeds
        self.ready: list = []

    def call_later(self, seconds: float, call: object, *arguments: object) -> Timer:
        return Timer(self.timers, seconds, lambda: call(*arguments))

    def command(self, command: tuple, size: int, replied: object) -> None:
        assert command[0] == "SCAN" and command[2:4] == ("MATCH", "hub:last:{t}:*")
        self.asked.append((command[1], replied))

    def answer(self, *symbols: str, cursor: int = 0) -> None:
        self.asked.pop(0)[1]((cursor, [f"hub:last:{{t}}:{symbol}".encode() for symbol in symbols]))

    def watch(self, prefix: str = "A", raw: bool = False) -> List:
        one = List(raw)
        self.symbols.watch("t", RULES, one, self.ready.append)
        if "t" in self.symbols._books:
            self.symbols.want("t", one, prefix)
        return one

    def unwatch(self, one: List, prefix: str = "A") -> None:
        self.symbols.unwant("t", one, prefix)
        self.symbols.unwatch("t", one)

    def come(self, *channels: str) -> None:
        assert self.symbols.listening
        self.symbols.heard([Publication(channel, b"{}") for channel in channels])

    def matching(self, prefix: str = "") -> list[str]:
        return self.symbols.matching("t", prefix, 100)


def test_what_there_is_is_read_behind_the_feeds_confirmation():
    """In as many goes as Redis wants; what comes meanwhile is known too, and told to nobody, as nobody is ready."""
    rig = Rig()
    rig.feeds.at_once = False
    assert not rig.symbols.listening
    one = rig.watch()
    assert rig.asked == []
    rig.feeds.confirm()
    assert rig.asked[0][0] == 0
    rig.answer("B", "ACT", cursor=7)
    rig.come("t:ACE", "t:ACT", "t:ACE")
    assert rig.asked[0][0] == 7 and rig.ready == []
    rig.answer("ACE", "B", "A:1", "x y", "A")
    assert rig.ready == [None] and one.told == []
    assert rig.matching() == ["A", "ACE", "ACT", "B"] and rig.matching("AC") == ["ACE", "ACT"]
    assert rig.symbols.matching("t", "A", 2) == ["A", "ACE"] and rig.symbols.count("t", "A") == 3
    assert rig.symbols.knows("t", "ACE") and not rig.symbols.knows("t", "C")


def test_who_is_new_is_told_once_to_those_whose_patterns_begin_so():
    """A list with several of them too; other namespaces, and names that no list can hold, are passed over."""
    rig = Rig()
    one, other, every = rig.watch("A"), rig.watch("B"), rig.watch("")
    rig.symbols.want("t", one, "AC")
    rig.answer("AOLD")
    rig.come("t:AOLD", "t:ACE", "t:ACE", "u:ACE", "t:A:C", "AAA", "t:BAD", "t:")
    assert (one.told, other.told, every.told) == (["ACE"], ["BAD"], ["ACE", "BAD"])
    rig.symbols.unwant("t", one, "A")
    rig.come("t:AX", "t:ACX")
    assert one.told == ["ACE", "ACX"] and rig.matching("A") == ["ACE", "ACX", "AOLD", "AX"]


def test_a_namespace_is_read_once_for_all_its_lists_and_kept_for_a_while():
    """Then it is forgotten, and its feed let go."""
    rig = Rig()
    one = rig.watch()
    rig.answer("A")
    other = rig.watch()
    assert rig.ready == [None, None] and rig.asked == [] and rig.feeds.held == ["t:"]
    rig.unwatch(one)
    rig.unwatch(other)
    rig.come("t:AB")
    assert one.told == other.told == [] and [timer.seconds for timer in rig.timers] == [LINGER_S]
    again = rig.watch()
    assert rig.timers == [] and rig.ready == [None] * 3 and rig.matching() == ["A", "AB"]
    rig.unwatch(again)
    rig.timers[0].fire()
    assert not rig.symbols.listening and rig.feeds.held == []
    rig.watch()
    assert len(rig.asked) == 1 and not rig.symbols.knows("t", "A")


def test_who_leaves_before_the_answer_hears_nothing():
    """And the next one does."""
    rig = Rig()
    rig.unwatch(rig.watch())
    rig.watch()
    rig.answer("A")
    assert rig.ready == [None] and rig.timers == []


def test_a_feed_that_cant_be_had_is_an_error():
    """The next list tries again. One that comes late is let go, where nobody waits for it any more."""
    rig = Rig()
    rig.feeds.at_once = False
    rig.watch()
    rig.feeds.confirm(AWAY)
    assert rig.ready == [AWAY] and not rig.symbols.listening
    rig.unwatch(rig.watch())
    rig.timers[0].fire()
    assert rig.feeds.held == ["t:"]
    rig.feeds.confirm()
    assert rig.feeds.held == [] and rig.asked == []


def test_redis_refusing_is_an_error_for_who_comes_and_tried_again_for_who_is_there():
    """What was known is known meanwhile."""
    rig = Rig()
    rig.watch()
    rig.asked.pop(0)[1](AWAY)
    assert rig.ready == [AWAY] and not rig.symbols.listening and rig.feeds.held == []

    one = rig.watch()
    rig.answer("A")
    rig.symbols.check_all()
    late = rig.watch()
    rig.asked.pop(0)[1](AWAY)
    assert rig.ready == [AWAY, None, AWAY] and late.told == one.told == []
    assert rig.matching() == ["A"] and [timer.seconds for timer in rig.timers] == [RETRY_S]
    rig.timers[0].fire()
    assert len(rig.asked) == 1 and rig.timers == []
    rig.asked.pop(0)[1](AWAY)
    rig.unwatch(one)
    assert rig.timers == [] and not rig.symbols.listening and rig.feeds.held == []


@async_test
async def test_what_may_have_been_missed_is_read_anew_and_all_look_again():
    """In slices; an answer that was overtaken counts for nothing; newcomers wait for that as well."""
    rig = Rig()
    lists = [rig.watch() for _ in range(RECHECK_AT_ONCE + 1)]
    rig.answer("A")
    rig.symbols.check_all()
    rig.symbols.check_all()
    rig.answer("AWRONG")
    rig.come("t:ANEW")
    assert rig.symbols.knows("t", "ANEW") and rig.matching() == ["A"]
    late = rig.watch()
    rig.answer("A", "ALOST")
    assert rig.matching() == ["A", "ALOST", "ANEW"] and rig.ready[-1] is None
    await asyncio.sleep(0)
    assert [one.told for one in lists] == [["recheck"]] * RECHECK_AT_ONCE + [[]] and late.told == []
    rig.unwatch(lists[-1])
    await asyncio.sleep(0)
    assert lists[-1].told == []


@async_test
async def test_a_newcomer_for_very_many_lists_comes_to_some_of_them_a_little_later():
    """But to those that want every value at once, all of them."""
    rig = Rig()
    lists = [rig.watch() for _ in range(APPEAR_AT_ONCE + 1)]
    raw = rig.watch(raw=True)
    rig.answer()
    rig.come("t:A")
    assert [one.told for one in lists] == [["A"]] * APPEAR_AT_ONCE + [[]] and raw.told == ["A"]
    await asyncio.sleep(0)
    assert lists[-1].told == ["recheck"]


@pytest.mark.expects_log
def test_too_many_symbols_are_a_verdict_that_holds_for_a_while(monkeypatch):
    """Whoever asks again hears it at once, and Redis is not read for it; behind that it is looked at anew."""
    monkeypatch.setattr(room, "MAX_SYMBOLS", 2)
    rig = Rig()
    rig.watch()
    rig.answer("A", "B", "C", cursor=7)
    for _ in range(3):
        rig.watch()
    assert [(type(error), error.reply) for error in rig.ready] == [(CommandError, LIMIT_EXCEEDED)] * 4
    assert rig.asked == [] and rig.feeds.held == [] and not rig.symbols.listening
    (timer,) = rig.timers
    assert timer.seconds == OVERFULL_S
    timer.fire()
    rig.watch()
    rig.answer("A", "B")
    assert rig.ready[-1] is None and rig.matching() == ["A", "B"]


@pytest.mark.expects_log
def test_one_symbol_too_many_ends_the_lists_that_there_are(monkeypatch):
    """And they come again to the same verdict."""
    monkeypatch.setattr(room, "MAX_SYMBOLS", 2)
    rig = Rig()
    one = rig.watch()
    rig.answer("A", "B")
    rig.come("t:B")
    assert one.told == []
    rig.come("t:C", "t:D")
    assert one.told == ["overfull"] and not rig.symbols.listening and rig.feeds.held == []
    rig.watch()
    assert rig.ready[-1].reply is LIMIT_EXCEEDED and rig.asked == []
    rig.symbols.close()
    assert rig.timers == []


def test_the_end_leaves_no_timer():
    """And hears no answer."""
    rig = Rig()
    one = rig.watch()
    rig.unwatch(one)
    rig.symbols.close()
    rig.answer("A")
    assert rig.timers == [] and not rig.symbols.listening


@async_test
async def test_it_is_read_from_a_real_store(valkey_url, prefix):
    """Whatever else is there."""
    store = Store(RedisSettings(prefix=prefix), valkey_url)
    broker = Broker(store, 10_000)
    symbols = Symbols(broker, store.keys, asyncio.get_running_loop().call_later)
    symbols.feeds = Feeds()
    try:
        for name in "t", "tt", "u":
            for number in range(1500):
                broker.publish(RULES, name, [Publication(f"{name}:{name}{number}", b"{}")], lambda outcome: None)
        ready: list = []
        symbols.watch("t", RULES, List(), ready.append)
        await until(lambda: ready == [None])
        assert symbols.matching("t", "", 2000) == sorted(f"t{number}" for number in range(1500))
    finally:
        symbols.close()
        await broker.close()
