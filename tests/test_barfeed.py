"""Barfeed: in which groups bars go, and what a failure leaves for the next leader."""

from __future__ import annotations

import pytest

from hub.barfeed import GROUP, MOST_DUE, BarFeed
from hub.bars import Bar, version_of
from hub.broker import Receipt
from hub.channels import Namespace
from hub.errors import BrokerUnavailable
from hub.intake import Tally
from hub.sections import RedisSettings
from hub.store import Store
from tests.support import async_test


class Holding:
    """A broker that keeps what it is given until the test answers."""

    def __init__(self) -> None:
        self.held: list = []
        self.rules: list[Namespace] = []

    def publish(self, rules, namespace, publications, done, lease=None, options=None) -> None:
        (publication,) = publications
        assert namespace == "bars"
        self.rules.append(rules)
        self.held.append((publication.channel, options.version, done))

    def answer(self, outcome: object = Receipt(), count: int | None = None) -> list[tuple[str, int]]:
        """Answer the oldest; returns what they were."""
        now, self.held = self.held[:count], self.held[count:] if count else []
        for _, _, done in now:
            done(outcome)
        return [(channel, version) for channel, version, _ in now]


def bar(symbol: str, index: int) -> Bar:
    return Bar(f"bars:1s:{symbol}", *version_of(0, index), b"{}")


def new() -> tuple[Holding, BarFeed, Tally]:
    broker, tally = Holding(), Tally()
    return broker, BarFeed(broker, Namespace(mode="stream", ack="fsync"), tally), tally


@async_test
async def test_bars_go_in_groups_and_the_next_one_follows_the_last_answer():
    """So that ticks find their turn in between; and none waits for the disk, in another lane than the ticks."""
    broker, feed, tally = new()
    feed.add([bar(f"S{i}", 1) for i in range(GROUP + 5)])
    assert len(broker.held) == GROUP
    broker.answer(count=GROUP - 1)
    assert len(broker.held) == 1
    broker.answer()
    assert len(broker.held) == 5
    broker.answer()
    assert (feed.take_published(), feed.take_published(), tally.bars) == (GROUP + 5, 0, GROUP + 5)
    assert {rules.ack for rules in broker.rules} == {"memory"}


@async_test
async def test_a_later_bar_of_a_channel_waits_for_the_earlier_one():
    """Arriving alone it would keep the earlier one out for ever, as that is the older version."""
    broker, feed, _ = new()
    feed.add([bar("A", 1), bar("B", 1), bar("A", 2), bar("B", 2)])
    base = version_of(0, 0)[0]
    assert broker.answer() == [("bars:1s:A", base + 1), ("bars:1s:B", base + 1)]
    assert broker.answer() == [("bars:1s:A", base + 2), ("bars:1s:B", base + 2)]


@async_test
async def test_a_failure_ends_the_feed():
    """What was published before it counts; nothing more is sent, and nothing behind it counts."""
    broker, feed, _ = new()
    feed.add([bar("A", 1), bar("B", 1), bar("C", 1), bar("A", 2)])
    broker.answer(count=1)
    broker.answer(BrokerUnavailable("gone"), count=1)
    broker.answer()
    assert broker.held == [] and feed.take_published() == 1
    with pytest.raises(BrokerUnavailable, match="gone"):
        await feed.failed
    feed.close()


@async_test
async def test_a_closed_feed_sends_no_more():
    """Answers that come later are passed over."""
    broker, feed, tally = new()
    feed.add([bar("A", 1), bar("A", 2)])
    feed.close()
    broker.answer(BrokerUnavailable("gone"))
    assert broker.held == [] and feed.failed.cancelled() and tally.bars == 0


@async_test
async def test_too_many_due_bars_hold_the_source_up():
    """Until there is room again."""
    broker, feed, _ = new()
    feed.add([bar(f"S{i}", 1) for i in range(MOST_DUE + 2 * GROUP)])
    assert not feed._room.is_set()
    broker.answer()
    assert not feed._room.is_set()
    broker.answer()
    await feed.room()


@async_test
async def test_without_redis_a_feed_says_so(tmp_path):
    """No exception of the client library comes through."""
    _, feed, _ = new()
    with pytest.raises(BrokerUnavailable, match=r"^Redis at unix:.*absent\.sock: "):
        await feed.load(Store(RedisSettings(), f"unix://{tmp_path}/absent.sock"), "ticker")
    feed.close()
