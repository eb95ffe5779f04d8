"""Subscribing: which Redis channels are held, and when a subscriber is let in."""

from __future__ import annotations

import asyncio

import pytest

from hub import subscribe
from hub.audience import Terms
from hub.channels import Namespace
from hub.errors import BrokerUnavailable
from hub.fanout import Fanout
from hub.message import Publication
from hub.position import Position
from hub.recovery import Joined
from hub.store import Keys
from hub.stream import GIVEN_UP
from hub.subscribe import CACHED, IN, Subscriptions
from hub.symbols import Symbols
from hub.views import View
from hub.wants import Wants
from tests.nodes import until
from tests.support import FakeClock, async_test

NONE, LATEST, STREAM = Namespace(), Namespace(mode="latest"), Namespace(mode="stream")


class Form:
    def encode_publication(self, channel: str, body: bytes) -> bytes:
        return body


class One:
    """A subscriber that is never written to: no batch is ever swept here."""

    group, place, open, direct = None, -1, True, True

    def __init__(self, wire: object) -> None:
        self.wire = wire

    def left(self, *audiences: object) -> None: ...


class Ingest:
    """Confirms when the test says so."""

    connected = True

    def __init__(self) -> None:
        self.held: list[str] = []
        self.released: list[str] = []
        self.ready: dict = {}

    def hold(self, channel: str, ready: object) -> None:
        self.held.append(channel)
        self.ready[channel] = ready

    def release(self, channel: str) -> None:
        self.released.append(channel)


class Snapshots:
    """Answers when the test does."""

    busy = False

    def __init__(self) -> None:
        self.asked: list = []
        self.seen: list = []

    def ask(self, channel: str, done: object) -> None:
        self.asked.append((channel, done))

    def passed(self, publications: list) -> None:
        self.seen += publications


class Streams:
    def __init__(self) -> None:
        self.calls: list = []

    def subscribe(self, *call: object) -> None:
        self.calls.append(call)

    def unsubscribe(self, *call: object) -> None:
        self.calls.append(call)


class Rig:
    def __init__(self) -> None:
        self.ingest, self.fanout, self.form = Ingest(), Fanout({}, lambda: None, FakeClock(), None), Form()
        self.snapshots, self.streams = Snapshots(), Streams()
        self.symbols = Symbols(None, Keys("hub"), None)
        self.subscriptions = Subscriptions(
            self.fanout, self.ingest, Keys("hub"), self.streams, self.snapshots, self.symbols
        )
        self.told: list = []

    def subscribe(self, channel: str, namespace: Namespace = NONE) -> One:
        one = One(self.form)
        self.subscriptions.subscribe(channel, namespace, one, self.told.append)
        return one


def test_a_subscriber_is_let_in_when_redis_has_confirmed():
    """Before the confirmation nobody is in the audience and nobody has been told."""
    rig = Rig()
    rig.subscribe("a")
    assert rig.ingest.held == ["hub:pub:{a}"] and not rig.told and rig.fanout.lines.counts() == {}
    rig.ingest.ready["hub:pub:{a}"](None)
    assert rig.told == [IN] and rig.fanout.lines.counts() == {"a": 1}


def test_a_channel_is_held_once_for_all_its_subscribers():
    """Those who come while it is being confirmed wait with the first; later ones are in at once."""
    rig = Rig()
    rig.subscribe("a")
    rig.subscribe("a")
    rig.ingest.ready["hub:pub:{a}"](None)
    rig.subscribe("a")
    assert rig.ingest.held == ["hub:pub:{a}"]
    assert rig.told == [IN] * 3 and rig.fanout.lines.counts() == {"a": 3}


def test_a_channel_is_released_after_its_last_subscriber_and_held_again():
    """Not before the last; a later subscriber makes it held anew."""
    rig = Rig()
    one, two = rig.subscribe("a"), rig.subscribe("a")
    rig.ingest.ready["hub:pub:{a}"](None)
    rig.subscriptions.unsubscribe("a", NONE, one)
    assert rig.ingest.released == []
    rig.subscriptions.unsubscribe("a", NONE, two)
    assert rig.ingest.released == ["hub:pub:{a}"]
    rig.subscribe("a")
    assert rig.ingest.held == ["hub:pub:{a}"] * 2


def test_channels_of_a_latest_namespace_share_their_feed():
    """Two symbols, one Redis channel, released after both."""
    rig = Rig()
    one = rig.subscribe("t:A", LATEST)
    rig.ingest.ready["hub:feed:{t}"](None)
    two = rig.subscribe("t:B", LATEST)
    for _, done in rig.snapshots.asked:
        done(None)
    assert rig.ingest.held == ["hub:feed:{t}"] and rig.fanout.lines.counts() == {"t:A": 1, "t:B": 1}
    rig.subscriptions.unsubscribe("t:A", LATEST, one)
    assert rig.ingest.released == []
    rig.subscriptions.unsubscribe("t:B", LATEST, two)
    assert rig.ingest.released == ["hub:feed:{t}"]


def test_a_channel_that_cannot_be_held_is_told_to_all_who_wait():
    """Redis away: every one of them gets the error, and the next subscriber tries again."""
    rig = Rig()
    rig.subscribe("a")
    rig.subscribe("a")
    error = BrokerUnavailable("away")
    rig.ingest.ready["hub:pub:{a}"](error)
    assert rig.told == [error, error] and rig.fanout.lines.counts() == {}
    rig.subscribe("a")
    assert rig.ingest.held == ["hub:pub:{a}"] * 2


def test_a_subscriber_that_leaves_as_soon_as_it_is_told_releases_the_channel():
    """The session of a client that has gone meanwhile unsubscribes inside `done`."""
    rig = Rig()
    one = One(rig.form)

    def leave(error: object) -> None:
        rig.subscriptions.unsubscribe("a", NONE, one)

    rig.subscriptions.subscribe("a", NONE, one, leave)
    rig.ingest.ready["hub:pub:{a}"](None)
    assert rig.ingest.released == ["hub:pub:{a}"] and rig.fanout.lines.counts() == {}


def test_subscribe_unsubscribe_subscribe_before_the_confirmation_ends_up_inside():
    """The first of those who wait leaves inside its own `done`; the channel stays held for the second, and works."""
    rig = Rig()
    first, second = One(rig.form), One(rig.form)

    def leave(error: object) -> None:
        rig.subscriptions.unsubscribe("a", NONE, first)

    rig.subscriptions.subscribe("a", NONE, first, leave)
    rig.subscriptions.subscribe("a", NONE, second, rig.told.append)
    rig.ingest.ready["hub:pub:{a}"](None)
    assert rig.told == [IN] and rig.ingest.released == [] and rig.fanout.lines.counts() == {"a": 1}
    rig.subscribe("a")
    assert rig.ingest.held == ["hub:pub:{a}"] and rig.fanout.lines.counts() == {"a": 2}
    rig.subscriptions.unsubscribe("a", NONE, second)
    assert rig.ingest.released == []


def test_while_the_link_is_down_nobody_is_let_in():
    """Also into a channel that others are in: until it is held again, something could be missed after `done`."""
    rig = Rig()
    rig.subscribe("a")
    rig.ingest.ready["hub:pub:{a}"](None)
    rig.ingest.connected = False
    rig.subscribe("a")
    assert isinstance(rig.told[1], BrokerUnavailable) and rig.fanout.lines.counts() == {"a": 1}


def test_stream_channels_are_handed_on():
    """With the position; nothing of them is kept here."""
    rig, one = Rig(), object()
    since = Position("4.a", 17)
    rig.subscriptions.subscribe("s:a", STREAM, one, rig.told.append, since)
    rig.subscriptions.unsubscribe("s:a", STREAM, one)
    assert rig.streams.calls == [("s:a", STREAM, one, since, rig.told.append), ("s:a", one)]
    assert rig.ingest.held == [] and rig.told == []


def test_who_comes_back_to_a_latest_channel_gets_its_newest_value():
    """Whatever position it had, and so does who comes for the first time; Redis is asked by the first of them only."""
    rig = Rig()
    rig.subscribe("t:A", LATEST)
    rig.ingest.ready["hub:feed:{t}"](None)
    [(channel, done)] = rig.snapshots.asked
    assert channel == "t:A" and rig.told == [] and rig.fanout.lines.counts() == {}
    done(b"newest")
    assert rig.told == [CACHED._replace(publications=[b"newest"])] and rig.fanout.lines.counts() == {"t:A": 1}
    rig.subscriptions.deliver([Publication("t:A", b"newer")])
    back = One(rig.form)
    rig.subscriptions.subscribe("t:A", LATEST, back, rig.told.append, Position("", 0))
    assert rig.told[1] == CACHED._replace(recovered=True, publications=[b"newer"])
    assert rig.fanout.lines.counts() == {"t:A": 2} and len(rig.snapshots.asked) == 1
    rig.subscriptions.unsubscribe("t:A", LATEST, back)
    assert rig.ingest.released == []


def test_after_a_lost_link_whoever_is_inside_gets_what_it_missed():
    """The newest value is asked for again, and delivered where it is another one."""
    rig, missed = Rig(), []
    rig.fanout.missed = missed.append
    rig.subscribe("t:A", LATEST)
    rig.ingest.ready["hub:feed:{t}"](None)
    rig.snapshots.asked.pop()[1](b"old")
    for value, passes in ((b"old", 0), (None, 0), (b"new", 1), (b"new", 1)):
        rig.subscriptions.check_all()
        [(channel, done)] = rig.snapshots.asked
        rig.snapshots.asked.clear()
        done(value)
        assert channel == "t:A" and rig.fanout.deliveries == passes
        assert missed == ["t:A"] * passes  # also those in between, of which nobody here knows
    assert rig.fanout.lines.newest("t:A") == b"new"


@async_test
async def test_what_cannot_be_asked_for_after_a_lost_link_is_asked_for_again(monkeypatch):
    """While the link is up nobody else would, and the value would be missed until the next one."""
    monkeypatch.setattr(subscribe, "CHECK_AGAIN_S", 0.0)
    rig = Rig()
    rig.subscribe("t:A", LATEST)
    rig.ingest.ready["hub:feed:{t}"](None)
    rig.snapshots.asked.pop()[1](b"old")
    rig.subscriptions.check_all()
    for _ in range(2):
        [(_, done)] = rig.snapshots.asked
        rig.snapshots.asked.clear()
        done(BrokerUnavailable("away"))
        assert rig.snapshots.asked == []
        await until(lambda: len(rig.snapshots.asked) == 1)
    rig.snapshots.asked.pop()[1](b"new")
    assert rig.fanout.deliveries == 1 and rig.fanout.lines.newest("t:A") == b"new"
    rig.ingest.connected = False
    rig.subscriptions.check_all()
    rig.snapshots.asked.pop()[1](BrokerUnavailable("away"))
    await asyncio.sleep(0.01)
    assert rig.snapshots.asked == []


@async_test
async def test_after_a_lost_link_all_channels_are_asked_for_some_at_a_time(monkeypatch):
    """However many there are: who comes meanwhile is not refused for it, and none is left out."""
    monkeypatch.setattr(subscribe, "CHECK_AT_ONCE", 2)
    rig = Rig()
    subscribers = {}
    for name in "ABCDE":
        subscribers[name] = rig.subscribe(f"t:{name}", LATEST)
        rig.ingest.ready["hub:feed:{t}"](None) if name == "A" else None
        rig.snapshots.asked.pop()[1](b"old")
    rig.subscriptions.check_all()
    rig.subscriptions.unsubscribe("t:A", LATEST, subscribers["A"])
    asked = []
    while rig.snapshots.asked:
        assert len(rig.snapshots.asked) <= 2
        channel, done = rig.snapshots.asked.pop(0)
        asked.append(channel)
        done(b"new")
    assert sorted(asked) == ["t:B", "t:C", "t:D", "t:E"] and rig.fanout.deliveries == 4


def test_a_value_that_cannot_be_had_is_told_and_releases_the_feed():
    """No value at all is another thing: nothing was missed."""
    rig, error = Rig(), BrokerUnavailable("away")
    rig.subscriptions.subscribe("t:A", LATEST, One(rig.form), rig.told.append, Position("", 0))
    rig.ingest.ready["hub:feed:{t}"](None)
    rig.snapshots.asked[0][1](error)
    assert rig.told == [error] and rig.ingest.released == ["hub:feed:{t}"] and rig.fanout.lines.counts() == {}
    rig.subscriptions.subscribe("t:A", LATEST, One(rig.form), rig.told.append, Position("", 0))
    rig.ingest.ready["hub:feed:{t}"](None)
    rig.snapshots.asked[1][1](None)
    assert rig.told[1] == CACHED._replace(recovered=True, publications=[])


@pytest.mark.parametrize("since", [None, Position("", 0)])
def test_who_gives_up_a_newest_value_and_asks_anew_is_in_once(since):
    """Its first question neither lets it in twice nor takes it out again; the feed is held once for it."""
    rig, one = Rig(), One(Form())
    rig.subscriptions.subscribe("t:A", LATEST, one, rig.told.append, Position("", 0))
    rig.ingest.ready["hub:feed:{t}"](None)
    rig.subscriptions.subscribe("t:A", LATEST, one, rig.told.append, since)
    assert rig.told[0] is GIVEN_UP
    for _, done in rig.snapshots.asked:
        done(b"newest")
    assert len(rig.told) == 2 and isinstance(rig.told[1], Joined) and rig.fanout.lines.counts() == {"t:A": 1}
    rig.subscriptions.unsubscribe("t:A", LATEST, one)
    assert rig.ingest.released == ["hub:feed:{t}"]


def test_who_comes_to_what_is_known_here_may_enter_at_once():
    """Known is what somebody here has a value of, while nothing can be missed; and the feed is held for both."""
    rig, one = Rig(), One(Form())
    terms = rig.subscriptions.terms(one.wire, Wants(hz=5))
    assert not rig.subscriptions.knows([], LATEST) and not rig.subscriptions.knows(["t:A"], LATEST)
    rig.subscribe("t:A", LATEST)
    assert not rig.subscriptions.knows(["t:A"], LATEST)
    rig.ingest.ready["hub:feed:{t}"](None)
    assert not rig.subscriptions.knows(["t:A"], LATEST)
    rig.snapshots.asked.pop()[1](b"newest")
    assert rig.subscriptions.knows(["t:A"], LATEST) and not rig.subscriptions.knows(["t:A", "t:B"], LATEST)
    rig.ingest.connected = False
    assert not rig.subscriptions.knows(["t:A"], LATEST)
    assert rig.subscriptions.enter("t:A", LATEST, one, terms) == b"newest"
    assert rig.fanout.lines.counts() == {"t:A": 2} and rig.snapshots.asked == []
    rig.subscriptions.unsubscribe("t:A", LATEST, one, terms)
    assert rig.ingest.released == []


def test_snapshots_see_what_passes_only_while_somebody_waits():
    """Otherwise the way of a publication is as short as ever."""
    rig = Rig()
    rig.subscriptions.deliver([Publication("t:A", b"1")])
    rig.snapshots.busy = True
    rig.subscriptions.deliver([Publication("t:A", b"2")])
    assert rig.snapshots.seen == [Publication("t:A", b"2")]


class Heard:
    """Instead of symbols: notes what passes, and how much of it had been delivered by then."""

    def __init__(self, fanout: Fanout) -> None:
        self.listening, self.seen, self.checks, self._fanout = False, [], 0, fanout

    def heard(self, publications: list) -> None:
        self.seen.append((*publications, self._fanout.deliveries))

    def check_all(self) -> None:
        self.checks += 1


def test_symbols_see_what_passes_before_it_is_delivered_and_only_where_there_are_patterns():
    """And hear that something may have been missed."""
    rig = Rig()
    rig.subscribe("t:A", LATEST)
    rig.ingest.ready["hub:feed:{t}"](None)
    rig.snapshots.asked.pop()[1](None)
    heard = rig.subscriptions.symbols = Heard(rig.fanout)
    rig.subscriptions.deliver([Publication("t:A", b"1")])
    heard.listening = True
    rig.subscriptions.deliver([Publication("t:A", b"2")])
    assert heard.seen == [(Publication("t:A", b"2"), 1)] and rig.fanout.deliveries == 2
    rig.subscriptions.check_all()
    assert heard.checks == 1


def test_a_feed_is_held_for_whoever_wants_to_hear_it_without_being_in_a_channel():
    """As if it were one more subscriber."""
    rig, ready = Rig(), []
    rig.subscriptions.hold("t:", LATEST, ready.append)
    assert rig.ingest.held == ["hub:feed:{t}"] and ready == []
    rig.ingest.ready["hub:feed:{t}"](None)
    rig.subscriptions.hold("t:", LATEST, ready.append)
    assert ready == [None, None] and len(rig.ingest.held) == 1
    rig.subscriptions.release("t:", LATEST)
    assert rig.ingest.released == []
    rig.subscriptions.release("t:", LATEST)
    assert rig.ingest.released == ["hub:feed:{t}"]


def test_who_joins_a_new_channel_is_in_at_once_and_once():
    """Also one that waits there on the same terms for a value, which it gives up."""
    rig, one, terms = Rig(), One(Form()), Terms(View(Form()))
    rig.subscriptions.subscribe("t:A", LATEST, one, rig.told.append, None, terms)
    rig.ingest.ready["hub:feed:{t}"](None)
    rig.subscriptions.join_new("t:A", LATEST, one, terms)
    rig.subscriptions.deliver([Publication("t:A", b'{"data":1}')])
    rig.snapshots.asked[0][1](b'{"data":1}')
    assert rig.told == [GIVEN_UP] and rig.fanout.lines.counts() == {"t:A": 1} and rig.fanout.deliveries == 1
    rig.subscriptions.unsubscribe("t:A", LATEST, one, terms)
    assert rig.ingest.released == ["hub:feed:{t}"] and rig.fanout.lines.counts() == {}
