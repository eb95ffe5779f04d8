"""Subscribing: which Redis channels are held, and when a subscriber is let in."""

from __future__ import annotations

from hub.channels import Namespace
from hub.errors import BrokerUnavailable
from hub.fanout import Fanout
from hub.store import Keys
from hub.subscribe import Subscriptions
from tests.support import FakeClock

NONE, LATEST = Namespace(), Namespace(mode="latest")


class One:
    """A subscriber that is never written to: no batch is ever swept here."""

    group, place, open, direct = None, -1, True, True

    def __init__(self, wire: object) -> None:
        self.wire = wire

    def left(self, audience: object) -> None: ...


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


class Rig:
    def __init__(self) -> None:
        self.ingest, self.fanout, self.form = Ingest(), Fanout({}, lambda: None, FakeClock(), None), object()
        self.subscriptions = Subscriptions(self.fanout, self.ingest, Keys("hub"))
        self.told: list = []

    def subscribe(self, channel: str, namespace: Namespace = NONE) -> One:
        one = One(self.form)
        self.subscriptions.subscribe(channel, namespace, one, self.told.append)
        return one


def test_a_subscriber_is_let_in_when_redis_has_confirmed():
    """Before the confirmation nobody is in the audience and nobody has been told."""
    rig = Rig()
    rig.subscribe("a")
    assert rig.ingest.held == ["hub:pub:{a}"] and not rig.told and rig.fanout.counts() == {}
    rig.ingest.ready["hub:pub:{a}"](None)
    assert rig.told == [None] and rig.fanout.counts() == {"a": 1}


def test_a_channel_is_held_once_for_all_its_subscribers():
    """Those who come while it is being confirmed wait with the first; later ones are in at once."""
    rig = Rig()
    rig.subscribe("a")
    rig.subscribe("a")
    rig.ingest.ready["hub:pub:{a}"](None)
    rig.subscribe("a")
    assert rig.ingest.held == ["hub:pub:{a}"]
    assert rig.told == [None] * 3 and rig.fanout.counts() == {"a": 3}


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
    assert rig.ingest.held == ["hub:feed:{t}"] and rig.fanout.counts() == {"t:A": 1, "t:B": 1}
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
    assert rig.told == [error, error] and rig.fanout.counts() == {}
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
    assert rig.ingest.released == ["hub:pub:{a}"] and rig.fanout.counts() == {}


def test_subscribe_unsubscribe_subscribe_before_the_confirmation_ends_up_inside():
    """The first of those who wait leaves inside its own `done`; the channel stays held for the second, and works."""
    rig = Rig()
    first, second = One(rig.form), One(rig.form)

    def leave(error: object) -> None:
        rig.subscriptions.unsubscribe("a", NONE, first)

    rig.subscriptions.subscribe("a", NONE, first, leave)
    rig.subscriptions.subscribe("a", NONE, second, rig.told.append)
    rig.ingest.ready["hub:pub:{a}"](None)
    assert rig.told == [None] and rig.ingest.released == [] and rig.fanout.counts() == {"a": 1}
    rig.subscribe("a")
    assert rig.ingest.held == ["hub:pub:{a}"] and rig.fanout.counts() == {"a": 2}
    rig.subscriptions.unsubscribe("a", NONE, second)
    assert rig.ingest.released == []


def test_while_the_link_is_down_nobody_is_let_in():
    """Also into a channel that others are in: until it is held again, something could be missed after `done`."""
    rig = Rig()
    rig.subscribe("a")
    rig.ingest.ready["hub:pub:{a}"](None)
    rig.ingest.connected = False
    rig.subscribe("a")
    assert isinstance(rig.told[1], BrokerUnavailable) and rig.fanout.counts() == {"a": 1}
