"""Streams: whatever is lost between Redis and here, nobody inside misses a publication without being told."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from hub import streams
from hub.channels import Namespace
from hub.errors import BrokerUnavailable, HubError
from hub.history import Page
from hub.message import Publication, StreamPublication
from hub.position import Position, survives
from hub.recovery import judge
from hub.store import Keys
from hub.stream import GIVEN_UP
from hub.streams import CHECK_AT_ONCE, CHECK_S, LEAVE_AT_ONCE, LET_IN_AT_ONCE, MAX_HELD, PAGE, TICK_S, Streams
from tests.support import FakeClock

NS = Namespace(mode="stream", subscribe="anyone")
AWAY = BrokerUnavailable("away")


class Fanout:
    """Gives everybody inside what is delivered, at once."""

    def __init__(self) -> None:
        self.inside: dict[str, list[Client]] = {}

    def join(self, channel: str, namespace: Namespace, client: Client) -> None:
        assert client not in self.inside.setdefault(channel, [])
        self.inside[channel].append(client)

    def leave(self, channel: str, client: Client) -> None:
        self.inside[channel].remove(client)

    def deliver(self, publications: list[Publication]) -> None:
        for channel, body in publications:
            for client in self.inside.get(channel, []):
                client.receive(body)


class Ingest:
    """Confirms at once unless told otherwise."""

    def __init__(self) -> None:
        self.connected = True
        self.confirms: HubError | None = None
        self.held: set[str] = set()

    def hold(self, name: str, ready: object) -> None:
        self.held.add(name)
        ready(self.confirms)

    def release(self, name: str) -> None:
        self.held.remove(name)


class Client:
    """An SDK: keeps its position, comes back when it is displaced."""

    def __init__(self, streams: Streams, channel: str = "c") -> None:
        self.streams = streams
        self.channel = channel
        self.position: Position | None = None
        self.got: list[bytes] = []
        self.answers: list = []
        self.inside = False
        self.told_lost = 0
        self.returns = True

    def subscribe(self) -> Client:
        self.streams.subscribe(self.channel, NS, self, self.position, self._joined)
        return self

    def unsubscribe(self) -> None:
        self.inside = False
        self.streams.unsubscribe(self.channel, self)

    def _joined(self, outcome: object) -> None:
        self.answers.append(outcome)
        if isinstance(outcome, HubError):
            return
        self.inside = True
        if outcome.recovered:
            for body in outcome.publications:
                self.got.append(body)
            assert self.position.offset + len(outcome.publications) == outcome.offset, "partial"
        elif self.position is not None:
            assert outcome.recovered is False
            assert not outcome.publications
            self.told_lost += 1
            self.got = []
        self.position = Position(outcome.epoch, outcome.offset)

    def receive(self, body: bytes) -> None:
        self.got.append(body)
        self.position = Position(self.position.epoch, self.position.offset + 1)

    def displaced(self, channel: str) -> None:
        self.inside = False
        if self.returns:
            self.subscribe()


class Redis:
    """One channel of a store, and the reads that wait for their answer."""

    def __init__(self, size: int = 1000) -> None:
        self.size = size
        self.epoch, self.log = "1.a", []
        self.generation = 1
        self.trimmed = 0
        self.reads: list = []
        self.asked = 0

    @property
    def top(self) -> int:
        return len(self.log)

    def publish(self, body: bytes | None = None) -> StreamPublication:
        self.log.append(body if body is not None else b"%d" % (self.top + 1))
        self.trimmed = max(self.trimmed, self.top - self.size)
        return StreamPublication("c", self.log[-1], self.epoch, self.top)

    def fail_over(self, lost: int = 0) -> None:
        """The next touch is under a new generation, with the last `lost` publications and all behind them gone."""
        del self.log[self.top - lost :]
        self.trimmed = min(self.trimmed, self.top)
        self.generation += 1
        touches = self.epoch.split(",")
        while len(touches) > 1 and int(touches[-2].partition("@")[2]) > self.top:
            touches.pop()  # it came behind a publication that is gone
            touches[-1] = touches[-1].partition("@")[0]
        self.epoch = f"{','.join(touches)}@{self.top},{self.generation}.g"

    def read(self, wanted: object, done: object) -> None:
        """Executed now or later, answered later."""
        self.asked += 1
        self.reads.append([wanted, done, None])

    def execute(self) -> None:
        for read in self.reads:
            if read[2] is None:
                read[2] = self._page(read[0])

    def answer(self, error: HubError | None = None) -> None:
        self.execute()
        reads, self.reads = self.reads, []
        for _, done, page in reads:
            done(error or page)

    def answer_all(self) -> None:
        while self.reads:
            self.answer()

    def _page(self, wanted: object) -> Page:
        kept = [(i + 1, self.log[i]) for i in range(self.trimmed, self.top)]
        if wanted.newest:
            found = kept[max(0, len(kept) - wanted.limit) :] if wanted.limit else []
        else:
            found = [each for each in kept if each[0] > wanted.since][: wanted.limit]
        return Page(self.epoch, self.top, found)


class Rig:
    def __init__(self, size: int = 1000, **options: object) -> None:
        self.fanout, self.ingest, self.redis, self.clock = Fanout(), Ingest(), Redis(size), FakeClock()
        self.soon: list = []
        self.streams = Streams(
            self.fanout,
            self.ingest,
            self.redis,
            Keys("hub"),
            self.clock,
            lambda *call: self.soon.append(call),
            **{"most": 300, **options},
        )

    def client(self) -> Client:
        return Client(self.streams)

    def inside(self) -> Client:
        """One that has subscribed and is in."""
        client = self.client().subscribe()
        self.settle()
        assert client.inside
        return client

    def settle(self) -> None:
        """Let everything happen that is under way."""
        while self.soon or self.redis.reads:
            self.run_soon()
            self.redis.answer_all()

    def run_soon(self) -> None:
        soon, self.soon = self.soon, []
        for call, *arguments in soon:
            call(*arguments)

    def publish(self, *lost: int, count: int = 1) -> None:
        """Publish, and have it arrive but for those numbered in `lost`, from 0."""
        published = [self.redis.publish() for _ in range(count)]
        self.streams.receive([each for i, each in enumerate(published) if i not in lost])

    def tick(self, seconds: float = TICK_S) -> None:
        for _ in range(round(seconds / TICK_S)):
            self.clock.advance(TICK_S)
            self.streams.tick()
            self.settle()


def numbers(client: Client) -> list[int]:
    return [int(body) for body in client.got]


def test_a_subscriber_is_told_where_the_channel_is_and_gets_what_comes():
    """What came while its position was being read is within the position."""
    rig = Rig()
    rig.publish(count=3)
    client = rig.client().subscribe()
    rig.redis.execute()
    rig.publish()
    assert not client.answers
    rig.redis.answer()
    assert client.answers == [(True, True, "1.a", 4, None, ())]
    rig.publish()
    assert numbers(client) == [5]


def test_who_comes_back_gets_what_it_missed_from_the_ring():
    """No read for anybody but the first."""
    rig = Rig()
    rig.inside()
    away = rig.inside()
    away.unsubscribe()
    asked = rig.redis.asked
    rig.publish(count=3)
    away.subscribe()
    assert away.inside and numbers(away) == [1, 2, 3] and rig.redis.asked == asked
    rig.publish()
    assert numbers(away) == [1, 2, 3, 4]


def test_a_storm_costs_one_read_for_each_channel():
    """A worker that has just been started: thousands come back with different positions."""
    rig = Rig()
    for _ in range(200):
        rig.redis.publish()
    clients = [rig.client() for _ in range(1000)]
    for i, client in enumerate(clients):
        client.position = Position("1.a", i % 200)
        client.subscribe()
    rig.redis.answer()
    rig.settle()
    assert rig.redis.asked == 1
    assert all(client.answers[0].recovered for client in clients)
    assert numbers(clients[150]) == list(range(151, 201))


def test_a_storm_is_answered_in_slices():
    """What comes between two of them reaches everybody once, those of the next slice too; the ring holds nothing."""
    rig = Rig(ring_bytes=0)
    rig.inside()
    rig.publish(count=3)
    clients = [rig.client() for _ in range(2 * LET_IN_AT_ONCE + 1)]
    for client in clients:
        client.position = Position("1.a", 1)
        client.subscribe()
    # The first one's read was asked for before the others came, and serves it alone.
    rig.redis.answer()
    rig.redis.answer()
    assert sum(client.inside for client in clients) == 1 + LET_IN_AT_ONCE
    asked = rig.redis.asked
    rig.publish()
    rig.settle()
    assert all(numbers(client) == [2, 3, 4] for client in clients) and rig.redis.asked == asked


def test_who_waits_for_a_read_is_not_judged_again_for_each_who_comes(monkeypatch):
    """Thousands of thousands, were it so."""
    rig, judged = Rig(ring_bytes=0), []
    rig.inside()
    rig.publish(count=3)
    monkeypatch.setattr(streams, "judge", lambda *known: judged.append(1) or judge(*known))
    for _ in range(100):
        client = rig.client()
        client.position = Position("1.a", 1)
        client.subscribe()
    assert len(judged) == 100


@pytest.mark.parametrize("since", [None, Position("1.a", 1)])
def test_who_gives_up_and_asks_anew_is_in_once(since):
    """The answer to the first question takes a read. It must neither let it in twice nor take it out again."""
    rig = Rig(ring_bytes=0)
    rig.inside()
    rig.publish(count=3)
    client = rig.client()
    client.position = Position("1.a", 2)
    client.subscribe()
    assert not client.answers
    client.position = since
    client.subscribe()
    assert client.answers.pop(0) is GIVEN_UP
    rig.settle()
    rig.publish()
    assert len(client.answers) == 1 and numbers(client) == ([4] if since is None else [2, 3, 4])
    client.unsubscribe()


@pytest.mark.parametrize("from_ring", [True, False])
def test_too_many_bytes_to_recover_are_lost_too(from_ring):
    """Just as many as may be are recovered, from the ring or from Redis; and one publication, however large it is."""
    for most_bytes, missed, recovered in ((3, 3, True), (3, 4, False), (0, 1, True), (0, 0, True), (0, 2, False)):
        rig = Rig(most_bytes=most_bytes, ring_bytes=1000 if from_ring else 0)
        if from_ring:
            rig.inside()
        rig.publish(count=9)  # of one byte each
        client = rig.client()
        client.position = Position("1.a", 9 - missed)
        client.subscribe()
        rig.settle()
        [answer] = client.answers
        assert (answer.recovered, len(answer.publications)) == (recovered, missed if recovered else 0)


def test_too_much_to_recover_is_lost_and_never_partial():
    """301 missed, 300 allowed."""
    rig = Rig()
    for _ in range(301):
        rig.redis.publish()
    near, far = rig.client(), rig.client()
    near.position, far.position = Position("1.a", 1), Position("1.a", 0)
    near.subscribe()
    far.subscribe()
    rig.settle()
    assert near.answers[0].recovered is True and len(near.got) == 300 == rig.streams.recovered_publications
    assert far.answers[0].recovered is False and far.answers[0].publications == ()


def test_what_is_no_longer_kept_is_lost():
    """History of 10; the position is 11 back."""
    rig = Rig(size=10)
    for _ in range(20):
        rig.redis.publish()
    near, far = rig.client(), rig.client()
    near.position, far.position = Position("1.a", 10), Position("1.a", 9)
    near.subscribe()
    far.subscribe()
    rig.settle()
    assert near.answers[0].recovered is True and far.answers[0].recovered is False


def test_a_ring_that_may_hold_nothing_asks_redis():
    """ring_bytes = 0 is allowed; nothing is lost for it, also not what comes while it is read."""
    rig = Rig(ring_bytes=0)
    rig.inside()
    away = rig.inside()
    away.unsubscribe()
    rig.publish(count=3)
    away.subscribe()
    rig.redis.execute()
    rig.publish()
    rig.settle()
    assert away.answers[-1].recovered is True and numbers(away) == [1, 2, 3, 4]


def test_a_gap_is_filled_once_for_everybody():
    """What arrives behind the gap waits for it."""
    rig = Rig()
    clients = [rig.inside() for _ in range(5)]
    asked = rig.redis.asked
    rig.publish(0, 1, count=3)
    rig.publish()
    assert clients[0].got == []
    rig.settle()
    assert all(numbers(client) == [1, 2, 3, 4] for client in clients)
    assert rig.redis.asked == asked + 1 and rig.streams.gaps == 1
    assert rig.streams.checks == {"ok": 0, "behind": 1, "lost": 0}


def test_a_gap_of_many_pages_is_filled():
    """More than a page, and more than a recovery may bring: those inside have no such limit."""
    rig = Rig(size=10_000)
    client = rig.inside()
    count = PAGE * 3 + 7
    rig.publish(*range(count - 1), count=count)
    rig.settle()
    assert numbers(client) == list(range(1, count + 1)) and client.told_lost == 0


def test_many_pages_are_read_also_when_nothing_arrives_behind_them():
    """The link was down while more than a page was published, and then it is quiet."""
    rig = Rig(size=10_000)
    client = rig.inside()
    for _ in range(PAGE + 5):
        rig.redis.publish()
    rig.streams.check_all()
    rig.settle()
    assert len(client.got) == PAGE + 5


def test_who_comes_back_while_much_is_missing_is_served_behind_it():
    """More than a recovery's worth is missing here; nobody who is within one is told that it is lost."""
    rig = Rig(size=10_000, most=10)
    rig.inside()
    for _ in range(PAGE + 5):
        rig.redis.publish()
    client = rig.client()
    client.position = Position("1.a", PAGE)
    client.subscribe()
    rig.settle()
    assert client.answers[0].recovered is True and numbers(client) == list(range(PAGE + 1, PAGE + 6))


def test_a_publication_of_another_life_that_arrives_during_a_read_is_not_passed_over():
    """The page is older than the failover, and the next one may be long in coming."""
    rig = Rig()
    client = rig.inside()
    rig.publish()
    rig.streams.check_all()
    rig.redis.execute()
    rig.redis.fail_over()
    rig.publish()
    rig.redis.answer()
    rig.settle()
    rig.tick()
    assert numbers(client) == [1, 2] and client.position.epoch == rig.redis.epoch


def test_a_store_that_knows_less_than_before_has_lost_something():
    """Whatever its epoch says."""
    rig = Rig()
    client = rig.inside()
    rig.publish(count=3)
    rig.redis.log.pop()
    rig.streams.check_all()
    rig.settle()
    rig.tick()
    assert client.told_lost == 1 and client.position == ("1.a", 2)
    assert rig.streams.checks["lost"] == 1


def test_a_gap_that_is_no_longer_kept_displaces_everybody():
    """They come back with their positions and are told that something is lost."""
    rig = Rig(size=5)
    client = rig.inside()
    rig.publish()
    rig.publish(*range(9), count=10)
    rig.settle()
    assert not rig.fanout.inside["c"]
    rig.publish()
    rig.tick()
    assert client.told_lost == 1 and client.position == ("1.a", 12)
    assert rig.streams.checks["lost"] == 1


def test_what_arrives_twice_is_dropped():
    """After a resubscription, or from two links."""
    rig = Rig()
    client = rig.inside()
    publication = rig.redis.publish()
    rig.streams.receive([publication, publication])
    rig.streams.receive([publication])
    assert numbers(client) == [1] and rig.streams.duplicates == 2


def test_an_intact_channel_moves_to_the_new_generation():
    """Everybody is told to subscribe anew, gets the rest, and loses nothing; no read for each of them."""
    rig = Rig()
    clients = [rig.inside() for _ in range(50)]
    rig.publish(count=3)
    rig.redis.fail_over()
    asked = rig.redis.asked
    rig.publish()
    rig.settle()
    rig.publish()
    rig.tick()
    assert all(numbers(client) == [1, 2, 3, 4, 5] and not client.told_lost for client in clients)
    assert clients[0].position.epoch == rig.redis.epoch
    assert rig.redis.asked - asked <= 2


def test_those_beyond_what_survived_are_told_and_only_they():
    """Two clients at 5 and at 3; the store comes back with 3."""
    rig = Rig()
    ahead, behind = rig.inside(), rig.inside()
    rig.publish(count=3)
    behind.unsubscribe()
    rig.publish(count=2)
    rig.redis.fail_over(lost=2)
    rig.streams.check_all()
    rig.settle()
    rig.publish(count=2)
    rig.tick()
    behind.subscribe()
    rig.settle()
    assert ahead.told_lost == 1
    assert behind.told_lost == 0 and numbers(behind) == [1, 2, 3, 4, 5]


def test_a_position_that_this_worker_does_not_know_yet_is_read_before_it_is_judged():
    """Another worker was faster: no false alarm."""
    rig = Rig()
    rig.inside()
    for _ in range(3):
        rig.redis.publish()  # this link is late
    faster = rig.client()
    faster.position = Position("1.a", 3)
    faster.subscribe()
    assert not faster.answers
    rig.settle()
    assert faster.answers[0].recovered is True
    rig.redis.fail_over()
    moved = rig.client()
    moved.position = Position(rig.redis.epoch, 3)
    moved.subscribe()
    rig.settle()
    assert moved.answers[0].recovered is True


@pytest.mark.parametrize("position", [("9.z", 0), ("1.a", 7), ("", 7)])
def test_a_foreign_position_is_lost(position):
    """After one read that all who ask share."""
    rig = Rig()
    rig.inside()
    asked = rig.redis.asked
    clients = [rig.client() for _ in range(10)]
    for client in clients:
        client.position = Position(*position)
        client.subscribe()
    rig.settle()
    assert all(client.answers[0].recovered is False for client in clients)
    assert rig.redis.asked - asked <= 2


def test_a_crowd_is_displaced_in_slices_and_told_at_a_pace():
    """Nobody gets a publication of the new generation before all are out of the old audience."""
    rig = Rig(displaced_per_s=2000)
    clients = [rig.inside() for _ in range(LEAVE_AT_ONCE * 2 + 10)]
    rig.redis.fail_over()
    rig.publish()
    rig.redis.answer()
    assert len(rig.fanout.inside["c"]) == LEAVE_AT_ONCE + 10
    rig.publish()
    assert all(not client.got for client in clients)
    rig.settle()
    assert not rig.fanout.inside["c"]
    rig.tick(TICK_S)
    assert sum(len(client.answers) for client in clients) == len(clients) + 100
    rig.tick(1.0)
    assert all(numbers(client) == [1, 2] and not client.told_lost for client in clients)


def test_one_who_leaves_while_it_waits_to_be_told_is_forgotten():
    """Its session ends it as it would any subscription."""
    rig = Rig()
    client = rig.inside()
    rig.redis.fail_over()
    rig.streams.check_all()
    rig.settle()
    client.unsubscribe()
    rig.tick()
    assert len(client.answers) == 1 and not client.inside


def test_redis_away_while_a_position_is_read_is_told_to_who_waits_only():
    """Those inside stay; the next tick reads again, and fills what was missed."""
    rig = Rig()
    client = rig.inside()
    rig.publish(0, count=2)
    joiner = rig.client().subscribe()
    rig.redis.answer(AWAY)
    assert joiner.answers == [AWAY] and client.inside and client.got == []
    rig.publish()
    rig.redis.answer(AWAY)
    rig.tick()
    assert numbers(client) == [1, 2, 3]


def test_a_channel_that_cannot_be_held_or_read_is_tried_anew_by_the_next():
    """The first subscriber gets the error."""
    rig = Rig()
    rig.ingest.confirms = AWAY
    client = rig.client().subscribe()
    assert client.answers == [AWAY] and len(rig.streams) == 0
    rig.ingest.confirms = None
    client.subscribe()
    rig.redis.answer(AWAY)
    assert client.answers == [AWAY, AWAY] and len(rig.streams) == 0
    client.subscribe()
    rig.settle()
    assert client.inside


def test_while_the_link_is_down_nobody_is_let_in_and_nobody_put_out():
    """What was published meanwhile is read when it is up again."""
    rig = Rig()
    client = rig.inside()
    rig.ingest.connected = False
    rig.redis.publish()
    joiner = rig.client().subscribe()
    assert isinstance(joiner.answers[0], BrokerUnavailable)
    rig.ingest.connected = True
    rig.streams.check_all()
    rig.settle()
    assert numbers(client) == [1] and client.told_lost == 0


def test_a_check_that_was_under_way_before_the_link_came_back_is_repeated():
    """Its page may be older than the gap."""
    rig = Rig()
    client = rig.inside()
    rig.streams.check_all()
    rig.redis.execute()
    rig.redis.publish()
    rig.streams.check_all()
    rig.redis.answer()
    rig.settle()
    assert numbers(client) == [1]


def test_a_silent_channel_is_checked_now_and_then():
    """A publication that was lost on the way, with none behind it, is found within 40 s."""
    rig = Rig()
    client = rig.inside()
    rig.redis.publish()
    rig.tick(CHECK_S * 2)
    assert numbers(client) == [1]
    asked = rig.redis.asked
    for _ in range(80):
        rig.publish()
        rig.tick(0.5)
    assert rig.redis.asked == asked, "a channel that lives needs no check"


def test_a_channel_lingers_and_is_released():
    """Who comes back within linger_s finds it as it was; after it nothing is left."""
    rig = Rig(linger_s=5.0)
    client = rig.inside()
    rig.publish()
    client.unsubscribe()
    rig.tick(4.9)
    client.subscribe()
    assert client.inside
    client.unsubscribe()
    rig.tick(4.9)
    assert len(rig.streams) == 1
    rig.tick(0.2)
    assert len(rig.streams) == 0 and rig.ingest.held == set() and rig.streams.ring_bytes == 0


def test_more_than_may_be_held_is_read_instead():
    """While a position is read thousands arrive."""
    rig = Rig(size=100_000)
    client = rig.inside()
    rig.publish(0, count=2)
    rig.redis.execute()
    rig.publish(count=MAX_HELD + 10)
    rig.settle()
    rig.publish()
    assert numbers(client) == list(range(1, MAX_HELD + 14))


def test_large_ones_are_bounded_by_their_bytes(monkeypatch):
    """So a channel that is read while megabytes arrive holds no more than that; nothing of it is lost."""
    monkeypatch.setattr(streams, "MAX_HELD_BYTES", 100)
    rig = Rig()
    client = rig.inside()
    rig.publish(0, count=2)
    rig.redis.execute()
    for _ in range(20):
        rig.streams.receive([rig.redis.publish(b"x" * 30)])
        stream = rig.streams._streams["c"]
        assert sum(len(each.body) for each in stream.held) <= 100
    rig.settle()
    assert len(client.got) == 22 and client.told_lost == 0


def test_an_overloaded_audience_starts_anew():
    """The fan-out dropped a publication: everybody is displaced and recovers it."""
    rig = Rig()
    client = rig.inside()
    client.receive = lambda body: None  # what the fan-out could not take up
    rig.publish()
    rig.streams.overloaded("c")
    rig.run_soon()
    del client.receive
    rig.tick()
    assert numbers(client) == [1]


def test_all_channels_are_checked_some_at_a_time():
    """After a reconnect; a slice at once, the others by the next ticks."""
    rig = Rig()
    for i in range(CHECK_AT_ONCE + 1):
        Client(rig.streams, f"c{i}").subscribe()
    rig.settle()
    rig.streams.check_all()
    assert len(rig.redis.reads) == CHECK_AT_ONCE
    rig.redis.answer_all()
    asked = rig.redis.asked
    rig.tick()
    assert rig.redis.asked > asked and not rig.streams._due


class Truth(RuleBasedStateMachine):
    """Anything may happen to the link, the store and the clients; judged by what the store has in the end."""

    @initialize(
        size=st.sampled_from([5, 1000]),
        ring_bytes=st.sampled_from([0, 20, 10**6]),
        most=st.sampled_from([3, 300]),
        at_once=st.sampled_from([1, LET_IN_AT_ONCE]),
    )
    def begin(self, size: int, ring_bytes: int, most: int, at_once: int) -> None:
        streams.LET_IN_AT_ONCE = streams.LEAVE_AT_ONCE = at_once
        self.rig = Rig(size, ring_bytes=ring_bytes, most=most, linger_s=0.2)
        self.link: list[StreamPublication] = []
        self.clients: list[Client] = []
        self.serial = 0
        self.most = most

    @rule(arrives=st.sampled_from(["yes", "late", "never"]))
    def publish(self, arrives: str) -> None:
        self.serial += 1
        publication = self.rig.redis.publish(b"m%d" % self.serial)
        if arrives != "never":
            self.link.append(publication)
        if arrives == "yes":
            self.arrive()

    @rule()
    def arrive(self) -> None:
        link, self.link = self.link, []
        self.rig.streams.receive(link)

    @rule()
    def execute(self) -> None:
        self.rig.redis.execute()

    @rule()
    def answer(self) -> None:
        self.rig.redis.answer()

    @rule()
    def fail_to_answer(self) -> None:
        self.rig.redis.answer(AWAY)

    @rule()
    def soon(self) -> None:
        self.rig.run_soon()

    @rule()
    def tick(self) -> None:
        self.rig.clock.advance(TICK_S)
        self.rig.streams.tick()

    @rule(lost=st.integers(0, 4))
    def fail_over(self, lost: int) -> None:
        if len(self.rig.redis.epoch) < 300 and self.rig.redis.epoch.count(",") < 6:
            self.rig.redis.fail_over(min(lost, self.rig.redis.top))

    @rule()
    def come(self) -> None:
        self.clients.append(self.rig.client().subscribe())

    @precondition(lambda self: self.clients)
    @rule(data=st.data())
    def go(self, data: st.DataObject) -> None:
        client = data.draw(st.sampled_from(self.clients))
        if client.inside:
            client.unsubscribe()

    @precondition(lambda self: self.clients)
    @rule(data=st.data())
    def come_back(self, data: st.DataObject) -> None:
        client = data.draw(st.sampled_from(self.clients))
        # Its last question has been answered, and it is neither inside nor waiting to be told.
        waits = ("c", client) in self.rig.streams._displaced
        if not client.inside and client.answers and not waits and not self.asks(client):
            client.subscribe()

    @precondition(lambda self: self.clients)
    @rule(data=st.data(), remembers=st.booleans())
    def ask_anew(self, data: st.DataObject, remembers: bool) -> None:
        """It gives up what it has asked, and perhaps its position."""
        client = data.draw(st.sampled_from(self.clients))
        if self.asks(client):
            if not remembers:
                client.position, client.got = None, []
            client.subscribe()

    def asks(self, client: Client) -> bool:
        stream = self.rig.streams._streams.get("c")
        return stream is not None and client in stream.joiners

    @rule()
    def reconnect(self) -> None:
        """The link was down: what was on it is gone."""
        self.link = []
        self.rig.streams.check_all()

    @invariant()
    def those_inside_have_a_contiguous_piece_of_one_life(self) -> None:
        for client in getattr(self, "clients", ()):
            serials = [int(body[1:]) for body in client.got]
            assert serials == sorted(set(serials)), "reordered or twice"

    def teardown(self) -> None:
        streams.LET_IN_AT_ONCE, streams.LEAVE_AT_ONCE = LET_IN_AT_ONCE, LEAVE_AT_ONCE
        if not hasattr(self, "rig"):
            return
        self.link = []
        self.rig.streams.check_all()
        for _ in range(20):
            self.rig.tick()
        log = self.rig.redis.log
        for client in self.clients:
            if client.inside and client.position is not None:
                assert survives(client.position, self.rig.redis.epoch, len(log))
                assert client.position == (self.rig.redis.epoch, len(log)), "silent loss"
                # All since it came, or since it was told that something is lost.
                assert client.got == log[len(log) - len(client.got) :], "something else than the store has"


TestTruth = Truth.TestCase
TestTruth.settings = settings(
    max_examples=150, stateful_step_count=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)
