"""Snapshots: one question for all who ask at the same time, and a value in its place among the publications."""

from __future__ import annotations

import asyncio

import pytest

from hub import snapshots as room
from hub.broker import Broker
from hub.channels import Namespace
from hub.errors import BrokerUnavailable
from hub.ingest import Ingest
from hub.message import Publication
from hub.sections import RedisSettings
from hub.snapshots import BATCH, TELL_AT_ONCE, Snapshots
from hub.store import Keys, Store
from tests.nodes import until
from tests.support import async_test


class Runner:
    """Keeps the questions; the test answers them."""

    def __init__(self) -> None:
        self.asked: list = []

    def script(self, name: str, keys: list, arguments: list, replied: object) -> None:
        assert name == "newest" and arguments[0] == "hub:newest:w"
        self.asked.append((keys, arguments[1], replied))


class Rig:
    def __init__(self) -> None:
        self.runner = Runner()
        self.snapshots = Snapshots(self.runner, Keys("hub"), "hub:newest:w")
        self.told: list = []

    def ask(self, *channels: str) -> None:
        for channel in channels:
            self.snapshots.ask(channel, lambda value, channel=channel: self.told.append((channel, value)))

    def answer(self, *values: bytes) -> None:
        _, token, replied = self.runner.asked.pop(0)
        replied(1)
        self.snapshots.heard(b"\n".join([token, *values]))


@async_test
async def test_all_who_ask_at_once_share_a_question():
    """Those who come while it is under way too; each namespace has its own."""
    rig = Rig()
    rig.ask("t:A", "t:A", "u:B", "t:none")
    assert rig.runner.asked == []
    await asyncio.sleep(0)
    assert [keys for keys, _, _ in rig.runner.asked] == [
        ["hub:last:{t}:A", "hub:last:{t}:none"],
        ["hub:last:{u}:B"],
    ]
    rig.ask("t:A")
    await asyncio.sleep(0)
    assert len(rig.runner.asked) == 2
    rig.answer(b"a", b"")
    rig.answer(b"b")
    assert rig.told == [("t:A", b"a")] * 3 + [("t:none", None), ("u:B", b"b")]


@async_test
async def test_a_question_has_a_bounded_size():
    """Thousands of channels are several messages of Redis."""
    rig = Rig()
    rig.ask(*(f"t:{i}" for i in range(BATCH + 1)))
    await asyncio.sleep(0)
    assert [len(keys) for keys, _, _ in rig.runner.asked] == [BATCH, 1]


@async_test
async def test_too_many_channels_at_a_time_are_told_to_try_again(monkeypatch):
    """And those that wait already are not."""
    monkeypatch.setattr(room, "MAX_ASKED", 1)
    rig = Rig()
    rig.ask("t:A", "t:B", "t:A")
    await asyncio.sleep(0)
    [(channel, error)] = rig.told
    assert channel == "t:B" and isinstance(error, BrokerUnavailable)
    rig.answer(b"a")
    assert rig.told[1:] == [("t:A", b"a")] * 2


@pytest.mark.parametrize("payload", [b"", b"9\na", b"1", b"1\na\nb", b"x\na"])
@async_test
async def test_what_was_not_asked_for_is_nothing(payload):
    """Whoever reaches Redis can write on the worker's channel."""
    rig = Rig()
    rig.ask("t:A")
    await asyncio.sleep(0)
    rig.snapshots.heard(payload)
    assert rig.told == []
    rig.answer(b"a")
    assert rig.told == [("t:A", b"a")]


@async_test
async def test_redis_away_and_a_lost_link_are_told_to_those_whom_they_concern():
    """Whoever asks behind that is asked for anew."""
    rig, error = Rig(), BrokerUnavailable("away")
    rig.ask("t:A", "u:B")
    await asyncio.sleep(0)
    rig.runner.asked[0][2](error)
    assert rig.told == [("t:A", error)]
    rig.snapshots.lost()
    assert isinstance(rig.told[1][1], BrokerUnavailable) and rig.told[1][0] == "u:B"
    rig.runner.asked.clear()
    rig.ask("t:A")
    await asyncio.sleep(0)
    rig.answer(b"a")
    assert rig.told[2:] == [("t:A", b"a")]


@pytest.mark.expects_log
@async_test
async def test_who_fails_on_a_value_hurts_nobody():
    """The others have theirs."""
    rig = Rig()
    rig.snapshots.ask("t:A", lambda value: 1 / 0)
    rig.ask("t:A")
    await asyncio.sleep(0)
    rig.answer(b"a")
    assert rig.told == [("t:A", b"a")]


@async_test
async def test_a_storm_is_told_in_slices_and_nobody_an_old_value():
    """What passes between two slices is what those behind it are told."""
    rig = Rig()
    rig.ask(*["t:A"] * (TELL_AT_ONCE + 1))
    await asyncio.sleep(0)
    assert not rig.snapshots.busy
    rig.answer(b"old")
    assert len(rig.told) == TELL_AT_ONCE and rig.snapshots.busy
    rig.snapshots.passed([Publication("t:A", b"new"), Publication("t:B", b"other")])
    rig.ask("t:A")
    await asyncio.sleep(0)
    assert rig.told[TELL_AT_ONCE:] == [("t:A", b"new")] * 2 and not rig.snapshots.busy


@async_test
async def test_nobody_is_asked_after_the_end():
    """The worker has no Redis any more."""
    rig = Rig()
    rig.ask("t:A")
    rig.snapshots.close()
    await asyncio.sleep(0)
    assert rig.runner.asked == [] and rig.told == []


@async_test
async def test_the_value_comes_in_its_place_among_the_publications(valkey_url, prefix):
    """On a real link, under a feed that never rests: whoever joins at its value sees each one behind it, once."""
    store = Store(RedisSettings(prefix=prefix), valkey_url)
    broker = Broker(store, 10_000)

    rules, joined, wrong = Namespace(mode="latest"), [], []
    last = {"seen": 0, "told": 0}

    def deliver(publications: list[Publication]) -> None:
        for _, body in publications:
            last["seen"] = int(body)

    def told(value: bytes) -> None:
        # Everything up to the value has been delivered before it, and nothing behind it.
        if int(value or 0) != last["seen"]:
            wrong.append((value, last["seen"]))
        joined.append(value)

    ingest = Ingest(store, deliver, lambda payload: None)
    snapshots = Snapshots(broker, store.keys, store.keys.newest("w"))
    ingest.listen(store.keys.newest("w"), snapshots.heard)
    ingest.start()
    try:
        await until(lambda: ingest.connected)
        held = asyncio.Event()
        ingest.hold(store.keys.feed("t"), lambda error: held.set())
        await held.wait()
        for number in range(1, 2001):
            broker.publish(rules, "t", [Publication("t:A", b"%d" % number)], lambda outcome: None)
            if number % 10 == 0:
                snapshots.ask("t:A", told)
                await asyncio.sleep(0)
            if number == 1000:  # a busy machine would have all of it in one reading
                await until(lambda: len(joined) == 100)
        await until(lambda: last["seen"] == 2000 and len(joined) == 200)
        assert wrong == [] and len(set(joined)) > 1
    finally:
        await ingest.close()
        await broker.close()
