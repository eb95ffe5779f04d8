"""Paces and the fan-out's part in them: what each client saw of the feed, held against the feed itself."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable
from operator import itemgetter
from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from hub.audience import ELSEWHERE, Audience, Group, Terms, new_number
from hub.channels import Namespace
from hub.fanout import Fanout
from hub.message import Publication, encode_body
from hub.outbox import Limits, Outbox, Verdict
from hub.pace import Paces
from hub.views import Views, numbering
from hub.wants import RATES_HZ

LATEST = Namespace(mode="latest", stale_ms=3000)
NARROW = Limits(conflate_bytes=1, drop_bytes=10**9, max_bytes=10**9, max_frames=10**9)


class Time:
    """A clock that stands still until it is moved, and calls what is due then."""

    def __init__(self) -> None:
        self.now = 1000.0
        self._due: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._numbers = itertools.count()
        self.calls = 0

    def call_later(self, delay_s: float, call: Callable[..., None], *args: Any) -> Time:
        heapq.heappush(self._due, (self.now + delay_s, next(self._numbers), call, args))
        self.calls += 1
        return self

    def cancel(self) -> None:
        raise NotImplementedError

    def move(self, seconds: float) -> None:
        until = self.now + seconds
        while self._due and self._due[0][0] <= until:
            self.now, _, call, args = heapq.heappop(self._due)
            call(*args)
        self.now = until


class Form:
    """A wire on which a frame is its publication and a newline."""

    def encode_publication(self, channel: str, body: bytes) -> bytes:
        return orjson.dumps([channel, orjson.Fragment(body)]) + b"\n"


class Client:
    """A subscriber whose socket takes everything, or nothing while it is `slow`."""

    direct = sealed = False
    open = True

    def __init__(self, wire: Form) -> None:
        self.fd = new_number()
        self.wire = wire
        self.group: Group | None = None
        self.place = ELSEWHERE
        self.slow = False
        self.outbox = Outbox(NARROW)
        self.data = b""
        self.too_slows = 0

    def offer(self, audience: Audience, frame: bytes) -> None:
        assert self.outbox.offer(frame, audience.mode, audience) in (Verdict.QUEUED, Verdict.CONFLATED)

    def put(self, frame: bytes) -> None:
        assert self.outbox.put(frame) is Verdict.QUEUED

    def left(self, *audiences: Audience) -> None:
        self.outbox.unkey(*audiences)

    def too_slow(self) -> None:
        self.too_slows += 1

    def flush(self) -> None:
        if not self.slow:
            self.data += self.outbox.take(10**9)

    def seen(self) -> list[tuple[str, dict[str, Any]]]:
        """(channel, publication) of all that came since."""
        data, self.data = self.data, b""
        return [tuple(orjson.loads(line)) for line in data.splitlines()]


class Rig:
    def __init__(self, max_bytes: int = 10**9) -> None:
        self.time = Time()
        self.form = Form()
        self.views = Views(lambda: 5)
        self.fanout = Fanout({}, lambda: None, lambda: self.time.now, self.time.call_later, max_bytes)
        self.fanout.lines.numbering = numbering
        self.seqs: dict[str, int] = {}
        self.newest: dict[str, bytes] = {}
        self.clients: list[Client] = []

    def client(self) -> Client:
        self.clients.append(Client(self.form))
        return self.clients[-1]

    def terms(self, hz: float = 100, marks: bool = True, raw: bool = False, fields: tuple[str, ...] = ()) -> Terms:
        return Terms(self.views.of(self.form, "", fields, marks), raw, self.fanout.paces.at(hz))

    def change_all(self, channels: list[str], client: Client, old: Terms, new: Terms) -> None:
        bundle = self.fanout.change_all(self.fanout.bundle(channels, old), LATEST, client, new)
        again = self.fanout.bundle(channels, new)
        assert (bundle.terms, bundle.lines, bundle.audiences) == (new, again.lines, again.audiences)

    def publish(self, channel: str = "t:A", gap: int = 0, thinned: int = 0) -> int:
        seq = self.seqs[channel] = self.seqs.get(channel, 0) + 1 + gap + thinned
        self.newest[channel] = encode_body({"seq": seq, "price": 1.5, "time_ns": "7", "merged": thinned})
        self.fanout.deliver([Publication(channel, self.newest[channel])])
        return seq

    def turn(self) -> None:
        """The end of a turn of the loop."""
        while self.fanout.busy:
            self.fanout.begin()
            self.fanout.run()
        for client in self.clients:
            client.flush()

    def wait(self, seconds: float) -> None:
        self.turn()
        self.time.move(seconds)
        self.turn()


def prices(client: Client) -> list[int]:
    return [publication["data"]["seq"] for _, publication in client.seen()]


@pytest.mark.parametrize(("wish", "hz"), [(0, 0), (0.01, 0.1), (0.5, 0.5), (7, 5), (5, 5), (60, 60)])
def test_a_wish_is_rounded_down_to_a_rate_that_others_have_too(wish, hz):
    """So the bytes of all who wish for about the same are the same."""
    paces = Paces(lambda pace: None, lambda: 0.0, lambda *_: None)
    assert paces.at(wish).hz == hz and paces.at(wish) is paces.at(hz)


def test_above_the_highest_rate_every_value_comes():
    """There is no timer for what nobody could tell from the feed."""
    assert Paces(lambda pace: None, lambda: 0.0, lambda *_: None).at(RATES_HZ[-1] + 1) is None


def test_the_newest_goes_out_at_the_rate_and_the_last_value_always():
    """5 Hz, a value every 50 ms: one in 200 ms, the first at once, and what came last after the feed has stopped."""
    rig = Rig()
    client = rig.client()
    rig.fanout.join("t:A", LATEST, client, rig.terms(hz=5))
    came = []
    for _ in range(10):
        rig.publish()
        rig.wait(0.05)
        came.append(prices(client))
    assert came == [[1], [], [], [], [5], [], [], [], [9], []]
    rig.wait(10)
    assert prices(client) == [10]


def test_one_timer_serves_all_channels_and_clients_of_a_rate():
    """A thousand subscriptions at 5 Hz: one call for each moment, and none while the feed rests."""
    rig = Rig()
    for _ in range(10):
        client = rig.client()
        for i in range(100):
            rig.fanout.join(f"t:{i}", LATEST, client, rig.terms(hz=5))
    for i in range(100):
        rig.publish(f"t:{i}")
    assert rig.time.calls == 1
    rig.wait(10)
    assert rig.time.calls == 1
    assert all(len(client.seen()) == 100 for client in rig.clients)


def test_paced_subscribers_of_the_same_channels_share_their_bytes():
    """After its first moment a client stands with the others in one group."""
    rig = Rig()
    for _ in range(3):
        client = rig.client()
        for channel in ("t:A", "t:B"):
            rig.fanout.join(channel, LATEST, client, rig.terms(hz=5))
    rig.publish("t:A")
    rig.wait(1)
    assert len({id(client.group) for client in rig.clients}) == 1 and rig.clients[0].group is not None


def test_who_changes_between_two_moments_and_has_missed_nothing_is_one_of_the_others_at_once():
    """It need not wait for the next moment, which may be a long way off, nor have a frame of its own then."""
    rig = Rig()
    for hz in (5, 1, 5):
        rig.fanout.join("t:A", LATEST, rig.client(), rig.terms(hz=hz))
        rig.fanout.join("t:B", LATEST, rig.clients[-1], rig.terms(hz=hz))
    rig.publish("t:A")
    rig.wait(2)
    assert [len(client.seen()) for client in rig.clients] == [1, 1, 1]
    rig.change_all(["t:A", "t:B"], rig.clients[1], rig.terms(hz=1), rig.terms(hz=5))
    rig.turn()
    assert len({id(client.group) for client in rig.clients}) == 1 and rig.clients[1].group is not None
    rig.publish("t:B")
    rig.wait(2)
    assert [len(client.seen()) for client in rig.clients] == [1, 1, 1]


def test_changes_in_one_turn_that_lead_back_change_nothing():
    """A slider that is moved to and fro."""
    rig = Rig()
    client = rig.client()
    for channel in ("t:A", "t:B"):
        rig.fanout.join(channel, LATEST, client, rig.terms(hz=5))
    rig.turn()
    group, there, back = client.group, rig.terms(hz=1), rig.terms(hz=5)
    rig.change_all(["t:A", "t:B"], client, back, there)
    rig.change_all(["t:A", "t:B"], client, there, back)
    rig.publish()
    rig.wait(1)
    assert prices(client) == [1] and client.group is not None and group is not None
    assert {audience.pace.hz for audience in client.group.audiences} == {5}
    assert len(rig.fanout.lines.by_channel["t:A"].audiences) == 1


def test_all_are_changed_in_the_middle_of_what_is_being_taken_up():
    """It has its part of that, and the rest on the new terms."""
    rig = Rig()
    client, other = rig.client(), rig.client()
    for channel in ("t:A", "t:B"):
        rig.fanout.join(channel, LATEST, client, rig.terms())
        rig.fanout.join(channel, LATEST, other, rig.terms())
    rig.turn()
    for channel in ("t:A", "t:B"):
        rig.publish(channel)
    rig.change_all(["t:A", "t:B"], client, rig.terms(), rig.terms(hz=1))
    for channel in ("t:A", "t:B"):
        rig.publish(channel)
    rig.wait(0)
    rig.wait(2)
    assert [(channel, pub["data"]["seq"]) for channel, pub in sorted(client.seen(), key=itemgetter(0))] == [
        ("t:A", 1),
        ("t:A", 2),
        ("t:B", 1),
        ("t:B", 2),
    ]
    # A slow reader's outbox has merged both.
    assert {(pub["data"]["seq"], pub["tags"]["merged"]) for _, pub in other.seen()} == {(2, "1")}


def taken_up(rig: Rig) -> tuple[Client, Client]:
    """Two clients at 5 Hz, of whom others are at 20 Hz, and a value of which both rates have had their moment."""
    ones = [rig.client() for _ in range(4)]
    for channel in ("t:A", "t:B"):
        for i, one in enumerate(ones):
            rig.fanout.join(channel, LATEST, one, rig.terms(hz=20 if i % 2 else 5))
    rig.wait(1)
    rig.publish()
    rig.time.move(1)
    return ones[0], ones[1]


def test_who_changes_while_the_same_is_on_its_way_at_both_rates_gets_it_once():
    """With the others of its new rate, and nothing is set aside for it."""
    rig = Rig()
    slow, fast = taken_up(rig)
    rig.change_all(["t:A", "t:B"], slow, rig.terms(hz=5), rig.terms(hz=20))
    rig.turn()
    assert prices(slow) == prices(fast) == [1] and slow.group is fast.group is not None
    rig.publish()
    rig.wait(1)
    assert prices(slow) == prices(fast) == [2]


def test_who_has_been_given_what_is_on_its_way_is_not_given_it_again_at_another_rate():
    """Back in the same turn to the one where it came from."""
    rig = Rig()
    slow, _ = taken_up(rig)
    rig.fanout.change("t:A", LATEST, slow, rig.terms(hz=5), rig.terms(hz=20))
    rig.change_all(["t:A"], slow, rig.terms(hz=20), rig.terms(hz=5))
    rig.turn()
    assert prices(slow) == [1]
    rig.publish()
    rig.wait(1)
    assert prices(slow) == [2]


def test_who_comes_late_to_a_rate_is_told_though_nothing_new_comes_any_more():
    """The others have had it at their last moment."""
    rig = Rig()
    late, there = rig.client(), rig.client()
    rig.fanout.join("t:A", LATEST, late, rig.terms(hz=0))
    rig.fanout.join("t:A", LATEST, there, rig.terms(hz=5))
    rig.publish()
    rig.wait(9)
    assert [prices(client) for client in rig.clients] == [[], [1]]
    rig.change_all(["t:A"], late, rig.terms(hz=0), rig.terms(hz=5))
    rig.wait(9)
    assert [prices(client) for client in rig.clients] == [[1], []]


def test_who_comes_late_to_a_rate_and_goes_on_to_another_is_told_there():
    """What it lacks goes with it, though all others of both rates have the same."""
    rig = Rig()
    late = rig.client()
    for hz in (0, 1, 5):
        rig.fanout.join("t:A", LATEST, late if not hz else rig.client(), rig.terms(hz=hz))
    rig.publish()
    rig.wait(9)
    for old, new in ((0, 5), (5, 1)):
        rig.change_all(["t:A"], late, rig.terms(hz=old), rig.terms(hz=new))
    rig.wait(9)
    rig.publish()
    rig.wait(9)
    assert [prices(client) for client in rig.clients] == [[1, 2]] * 3
    assert late.group is rig.clients[1].group is not rig.clients[2].group


@pytest.mark.parametrize(("old", "new"), [(5, 1), (1, 5)])
def test_who_goes_to_a_rate_that_is_behind_or_before_its_own_is_told_each_value_once(old: float, new: float):
    """The moments of 5 Hz have told the second value, and that of 1 Hz is yet to come."""
    rig = Rig()
    one = rig.client()
    for channel in ("t:A", "t:B"):
        for client, hz in ((one, old), (rig.client(), 5), (rig.client(), 1)):
            rig.fanout.join(channel, LATEST, client, rig.terms(hz=hz))
    for _ in range(2):
        rig.publish()
        rig.wait(0.3)
    rig.change_all(["t:A", "t:B"], one, rig.terms(hz=old), rig.terms(hz=new))
    rig.wait(9)
    assert prices(one) == [1, 2]
    rig.publish()
    rig.wait(9)
    assert prices(one) == [3]


def test_what_waits_of_a_list_is_not_replaced_once_its_terms_have_changed_to_and_fro():
    """A newer value in the place of the first one would come before the second."""
    rig = Rig()
    client = rig.client()
    client.slow = True
    every, other = rig.terms(), rig.terms(fields=("seq",))
    for one in (client, rig.client()):  # without anybody else an audience would be another one when it comes back
        rig.fanout.join("t:A", LATEST, one, every)
    for old, new in ((every, other), (other, every), (every, other)):
        rig.publish()
        rig.turn()
        rig.change_all(["t:A"], client, old, new)
    client.slow = False
    rig.turn()
    assert prices(client) == [1, 2, 3]


def test_nothing_comes_while_paused_and_the_newest_when_it_goes_on():
    """0 Hz; what was missed is counted."""
    rig = Rig()
    client = rig.client()
    rig.fanout.join("t:A", LATEST, client, rig.terms(hz=0))
    for _ in range(5):
        rig.publish()
        rig.wait(1)
    assert client.seen() == []
    rig.fanout.change("t:A", LATEST, client, rig.terms(hz=0), rig.terms())
    rig.wait(0)
    [(_, publication)] = client.seen()
    assert publication["data"]["seq"] == 5 and publication["tags"]["merged"] == "4"


def test_marks_say_what_a_value_stands_for():
    """Merged values, those that the source has numbered and that never came, and both clocks."""
    rig = Rig()
    client = rig.client()
    rig.fanout.join("t:A", LATEST, client, rig.terms(hz=1))
    rig.publish()
    rig.wait(1)
    rig.publish()
    rig.publish(gap=3)
    rig.wait(1)
    tags = [publication["tags"] for _, publication in client.seen()]
    assert tags == [
        {"merged": "0", "hub": "5", "time": "7"},
        {"merged": "1", "hub": "5", "time": "7", "gap": "3"},
    ]


def test_a_frame_that_takes_anothers_place_in_an_outbox_says_so():
    """A slow reader of every value: what it gets stands for those that it did not."""
    rig = Rig()
    client = rig.client()
    rig.fanout.join("t:A", LATEST, client, rig.terms())
    client.slow = True
    for gap in (0, 2, 0, 0):
        rig.publish(gap=gap)
        rig.turn()
    client.slow = False
    rig.turn()
    [(_, publication)] = client.seen()
    assert publication["data"]["seq"] == 6
    assert (publication["tags"]["merged"], publication["tags"]["gap"]) == ("3", "2")


def test_a_raw_subscription_gets_every_value_also_when_it_is_slow():
    """Or it is closed, which is the outbox' to say."""
    rig = Rig()
    client = rig.client()
    rig.fanout.join("t:A", LATEST, client, rig.terms(raw=True))
    client.slow = True
    for _ in range(4):
        rig.publish()
        rig.turn()
    client.slow = False
    rig.turn()
    assert prices(client) == [1, 2, 3, 4]


def test_a_raw_subscription_of_a_hub_that_is_behind_ends():
    """What could not be taken up can't be sent, and the others get the newest."""
    rig = Rig(max_bytes=200)
    raw, merging = rig.client(), rig.client()
    rig.fanout.join("t:A", LATEST, raw, rig.terms(raw=True))
    rig.fanout.join("t:A", LATEST, merging, rig.terms())
    rig.turn()
    for _ in range(9):
        rig.publish()
    rig.wait(0)
    assert raw.too_slows == 1 and merging.too_slows == 0
    seen = [publication for _, publication in merging.seen()]
    assert seen[-1]["data"]["seq"] == 9
    assert len(seen) + sum(int(publication["tags"]["merged"]) for publication in seen) == 9


def test_a_raw_subscription_ends_where_values_did_not_come():
    """A lost link: others go on with the newest value, and that is all that they asked for."""
    rig = Rig()
    raw, merging, elsewhere = rig.client(), rig.client(), rig.client()
    rig.fanout.join("t:A", LATEST, raw, rig.terms(raw=True))
    rig.fanout.join("t:A", LATEST, merging, rig.terms())
    rig.fanout.join("t:B", LATEST, elsewhere, rig.terms(raw=True))
    rig.turn()
    rig.fanout.missed("t:A")
    rig.fanout.missed("t:NOBODYS")
    rig.wait(0)
    assert [one.too_slows for one in (raw, merging, elsewhere)] == [1, 0, 0]


def test_silence_of_the_source_is_told_with_the_last_value_again_and_its_end_with_the_next():
    """Once each; without marks nobody is told."""
    rig = Rig()
    marked, paced, plain = rig.client(), rig.client(), rig.client()
    rig.fanout.join("t:A", LATEST, marked, rig.terms())
    rig.fanout.join("t:A", LATEST, paced, rig.terms(hz=1))
    rig.fanout.join("t:A", LATEST, plain)
    rig.publish()
    rig.wait(5)
    for client in rig.clients:
        assert prices(client) == [1]
    rig.fanout.check_silence()
    rig.fanout.check_silence()
    rig.wait(5)
    for client in (marked, paced):
        [(_, publication)] = client.seen()
        assert publication["data"]["seq"] == 1
        assert publication["tags"]["state"] == "stale" and publication["tags"]["repeat"] == "1"
    rig.publish()
    rig.wait(5)
    for client in (marked, paced):
        seen = [publication for _, publication in client.seen()]
        assert [publication["tags"].get("state") for publication in seen if "state" in publication["tags"]] == ["live"]
        assert seen[-1]["data"]["seq"] == 2
    assert prices(plain) == [2]


def test_silence_is_counted_from_the_last_value_also_where_nobody_wanted_marks():
    """A newcomer is told at once; values that came before it count."""
    rig = Rig()
    plain, newcomer = rig.client(), rig.client()
    rig.fanout.join("t:A", LATEST, plain)
    rig.publish()
    rig.wait(2)
    rig.publish()
    rig.wait(2)
    rig.fanout.join("t:A", LATEST, newcomer, rig.terms())
    assert b"state" not in rig.fanout.lines.told("t:A", rig.terms())
    rig.fanout.leave("t:A", newcomer, rig.terms())
    rig.wait(2)
    rig.fanout.join("t:A", LATEST, newcomer, rig.terms())
    assert b'"state":"stale"' in rig.fanout.lines.told("t:A", rig.terms())
    rig.fanout.check_silence()
    rig.wait(1)
    assert newcomer.seen() == []
    rig.publish()
    rig.wait(1)
    [(_, publication)] = newcomer.seen()
    assert publication["tags"]["state"] == "live"


CHANNELS = ("t:A", "t:B")
HZ = (0, 1, 5, 100)
STEPS = st.one_of(
    st.tuples(st.just("publish"), st.sampled_from(CHANNELS), st.integers(0, 2), st.integers(0, 2)),
    st.tuples(st.just("turn")),
    st.tuples(st.just("wait"), st.sampled_from((0.05, 0.2, 1.0, 4.0))),
    st.tuples(st.just("moments"), st.sampled_from((0.05, 0.2, 1.0, 4.0))),
    st.tuples(st.just("rate"), st.integers(0, 3), st.sampled_from(CHANNELS), st.sampled_from(HZ)),
    st.tuples(st.just("rates"), st.integers(0, 3), st.sampled_from(HZ)),
    st.tuples(st.just("slow"), st.integers(0, 3), st.booleans()),
    st.tuples(st.just("again"), st.integers(0, 3), st.sampled_from(CHANNELS), st.sampled_from(HZ)),
    st.tuples(st.just("check")),
)


@settings(max_examples=1000, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(STEPS, max_size=60), st.integers(1, 4), st.sampled_from((10**9, 300)))
@example([*[("publish", "t:A", 0, 0)] * 2, ("rate", 0, "t:A", 100), ("publish", "t:A", 0, 0)], 3, 300)
@example(
    [
        ("slow", 1, True),
        ("publish", "t:B", 0, 0),
        ("rate", 1, "t:B", 100),
        ("publish", "t:B", 0, 0),
        ("turn",),
        ("publish", "t:B", 0, 0),
    ],
    3,
    10**9,
)
def test_against_a_model_what_each_client_saw_is_the_feed(steps, count, max_bytes):
    """In order, never an older value behind a newer one; delivered + merged = published; gaps as the source has them;
    and the last value right, once a client goes on at any rate.
    """
    rig = Rig(max_bytes)
    published = {channel: [0] for channel in CHANNELS}
    """Sequence numbers, after the 0 of nothing."""
    thin = {channel: [0] for channel in CHANNELS}
    """How many each stands for beside itself."""
    begun: dict[tuple[int, str], int] = {}
    held: dict[tuple[int, str], Terms] = {}
    seen: dict[tuple[int, str], list[dict[str, Any]]] = {}

    def join(i: int, channel: str, terms: Terms) -> None:
        rig.fanout.join(channel, LATEST, rig.clients[i], terms, newest=rig.newest.get(channel))
        held[i, channel] = terms
        begun[i, channel] = len(published[channel])
        seen[i, channel] = []

    def change(i: int, channel: str, terms: Terms) -> None:
        rig.fanout.change(channel, LATEST, rig.clients[i], held[i, channel], terms)
        held[i, channel] = terms

    def change_all(i: int, terms: Terms) -> None:
        for old in {held[i, channel] for channel in CHANNELS}:
            channels = [channel for channel in CHANNELS if held[i, channel] == old]
            rig.change_all(channels, rig.clients[i], old, terms)
            held.update({(i, channel): terms for channel in channels})

    def collect() -> None:
        for i, client in enumerate(rig.clients):
            for channel, publication in client.seen():
                if (i, channel) in seen:
                    seen[i, channel].append(publication)

    for i in range(count):
        rig.client()
        for channel in CHANNELS:
            join(i, channel, rig.terms(hz=HZ[(i + 1) % 4]))
    for step in steps:
        match step:
            case ("publish", channel, gap, thinned):
                published[channel].append(rig.publish(channel, gap, thinned))
                thin[channel].append(thinned)
            case ("turn",):
                rig.turn()
            case ("wait", seconds):
                rig.wait(seconds)
            case ("moments", seconds):
                rig.time.move(seconds)  # what they take up waits: the turn goes on, or a sweep is under way
            case ("rate", i, channel, hz):
                change(i % count, channel, rig.terms(hz=hz))
            case ("rates", i, hz):
                change_all(i % count, rig.terms(hz=hz))
            case ("slow", i, slow):
                rig.clients[i % count].slow = slow
            case ("again", i, channel, hz):
                i %= count
                rig.fanout.leave(channel, rig.clients[i], held[i, channel])
                rig.clients[i].slow = False
                rig.turn()
                collect()
                join(i, channel, rig.terms(hz=hz))
            case ("check",):
                rig.fanout.check_silence()
        collect()
    for client in rig.clients:
        client.slow = False
    rig.wait(20)
    for (i, channel), terms in list(held.items()):
        if terms.pace is not None and not terms.pace.hz:
            change(i, channel, rig.terms())
    rig.wait(20)
    collect()
    for (i, channel), publications in seen.items():
        due = published[channel][begun[i, channel] :]
        sources = len(due) + sum(thin[channel][begun[i, channel] :])
        before = published[channel][begun[i, channel] - 1]
        fresh = [publication for publication in publications if "repeat" not in publication["tags"]]
        numbers = [publication["data"]["seq"] for publication in fresh]
        merged = [int(publication["tags"]["merged"]) for publication in fresh]
        gaps = [int(publication["tags"].get("gap", 0)) for publication in fresh]
        assert numbers == sorted(set(numbers))
        assert len(numbers) + sum(merged) == sources
        assert numbers[-1:] == due[-1:]
        if due and before:
            assert sum(gaps) == due[-1] - before - sources
