"""The scripts of mailboxes on a real Valkey, call by call and under a state machine that accounts for every message."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from redis import Redis

from hub.broker import Receipt
from hub.channels import Namespace
from hub.errors import BAD_REQUEST, LIMIT_EXCEEDED, CommandError
from hub.mailbox import ID, Letter, Mailboxes, id_of, kept
from hub.message import ClientInfo, unpack
from hub.scripts import load_script
from hub.sections import MailboxSettings
from hub.store import Keys
from tests.stores import BINARIES, server

CHANNEL = "inbox:#42"
OVERHEAD = 256
RULES = Namespace(mailbox=True)


class Direct:
    """A broker without a loop: every script runs at once."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self.acks: list[str] = []
        self.outcomes: list[object] = []

    def count(self, outcome: object) -> None:
        self.outcomes.append(outcome)

    def script(self, name: str, keys: list, arguments: list, replied: Any, ack: str = "memory") -> None:
        self.acks.append(ack)
        replied(self._redis.eval(load_script(name), len(keys), *keys, *arguments))


class Post:
    """All mailboxes of one prefix, and the devices of the user 42."""

    def __init__(self, url: str, prefix: str, outbox_bytes: int = 1_048_576, **bounds: int) -> None:
        self.redis = Redis.from_url(url)
        self.keys = Keys(prefix)
        self.broker = Direct(self.redis)
        self.boxes = Mailboxes(self.broker, self.keys, MailboxSettings(**bounds), outbox_bytes, jitter=lambda: 0.0)
        self.ear: Any = None

    def close(self) -> None:
        self.disconnect()
        self.redis.close()

    def connect(self) -> None:
        """A device subscribes; without `open`, so it has nothing yet."""
        self.ear = self.redis.pubsub()
        self.ear.subscribe(self.keys.channel(CHANNEL))
        assert self.ear.get_message(timeout=5)["type"] == "subscribe"

    def disconnect(self) -> None:
        if self.ear is not None:
            self.ear.close()
            self.ear = None
            # Redis has seen the end once it has answered a later connection's question.
            while self.redis.pubsub_numsub(self.keys.channel(CHANNEL))[0][1]:
                pass

    def heard(self) -> list[dict]:
        """What has been sent live since the last call."""
        found: list[dict] = []
        if self.ear is None:
            return found
        mark = b"1\n%s\n{}" % CHANNEL.encode()
        self.redis.publish(self.keys.channel(CHANNEL), mark)
        while (message := self.ear.get_message(timeout=5))["data"] != mark:
            found += [orjson.loads(one.body) for one in unpack(message["data"])]
        return found

    def put(self, data: object = 1, rules: Namespace = RULES, key: str = "", tags: dict | None = None) -> Any:
        return self._told(self.boxes.put, CHANNEL, rules, kept(data, None, tags), key=key)

    def _told(self, call: Any, *arguments: Any, key: str = "") -> Any:
        told: list = []
        call(*arguments, told.append, *([key] if key else []))
        (outcome,) = told
        return outcome

    def open(self, rules: Namespace = RULES) -> list[dict]:
        return [orjson.loads(body) for body in self._told(self.boxes.open, CHANNEL, rules)]

    def ack(self, *ids: str, rules: Namespace = RULES) -> int:
        return self._told(self.boxes.acknowledge, CHANNEL, rules, ids)

    def visit(self, rules: Namespace = RULES) -> None:
        self._told(self.boxes.visit, CHANNEL, rules)

    def stats(self) -> Any:
        return self._told(self.boxes.stats, CHANNEL, RULES)

    def letters(self, after: str = "", limit: int = 100) -> list[Letter]:
        return self._told(self.boxes.letters, after, limit)

    def requeue(self, letter: str, rules: Namespace = RULES) -> Any:
        return self._told(self.boxes.requeue, letter, CHANNEL, rules)

    def claim(self) -> list[bytes]:
        return self._told(self.boxes.claim, "inbox")

    def names(self) -> set[str]:
        """Keys that are left of this user's mailbox."""
        return {name for name in self.keys.mailbox(CHANNEL) if self.redis.exists(name)}


@pytest.fixture(scope="module", params=BINARIES)
def store_url(request: pytest.FixtureRequest) -> Iterator[str]:
    """The newest and the oldest store that a hub may stand on."""
    with server(request.param) as one:
        yield one.url


@pytest.fixture
def post(store_url: str, prefix: str) -> Iterator[Post]:
    one = Post(store_url, prefix)
    yield one
    one.close()


def rules(**changed: object) -> Namespace:
    """Namespace rules, past their bounds too: an ack_timeout_s of 0 is always over."""
    return RULES.model_copy(update=changed)


def ids_of(publications: list[dict]) -> list[str]:
    return [one["tags"]["id"] for one in publications]


def deliveries_of(publications: list[dict]) -> list[str]:
    return [one["tags"]["deliveries"] for one in publications]


# The shape.


@pytest.mark.parametrize("tags", [None, {}, {"a": "b"}, {"q": '"}}', "tags": "{"}])
@pytest.mark.parametrize("data", [1, {"tags": {"a": "b"}}, {"a": {"x": 1, "tags": {"q": 1}, "z": "x"}}, "}}", None])
def test_a_message_is_kept_so_that_two_tags_can_be_added(data, tags):
    """Whatever its data and tags look like, with the two of a delivery it is the publication that was meant."""
    info = ClientInfo("u", "c")
    body = kept(data, info, tags) + b'"id":"1764000000000-000007","deliveries":"3"}}'
    own = {"id": "1764000000000-000007", "deliveries": "3"}
    expected = {"data": data, "info": {"user": "u", "client": "c"}, "tags": {**(tags or {}), **own}}
    assert orjson.loads(body) == expected
    assert id_of(body) == "1764000000000-000007"


def test_tags_that_the_mailbox_sets_are_refused():
    """A publisher's own `id` would stand beside the mailbox's."""
    for name in ("id", "deliveries"):
        with pytest.raises(CommandError) as refused:
            kept(1, None, {name: "x"})
        assert refused.value.reply is BAD_REQUEST


@pytest.mark.parametrize("body", [b"", b"{}", b'{"data":1}', b'{"data":1,"tags":{"id":"x","deliveries":"1"}}'])
def test_a_publication_that_is_no_message_has_no_id(body):
    """Whoever reaches Redis can publish anything on a mailbox's channel."""
    assert id_of(body) == ""


# Delivery.


def test_a_message_waits_for_its_user(post):
    """Stored while nobody listens, it does not count as sent; it comes when a device subscribes."""
    receipt = post.put("hi", tags={"a": "b"})
    assert ID.fullmatch(receipt.id) and receipt.ack == "memory" and not receipt.duplicate
    assert post.stats()[:3] == (1, len(kept("hi", None, {"a": "b"})) + OVERHEAD, 0)
    post.connect()
    assert post.open() == []
    assert post.heard() == [{"data": "hi", "tags": {"a": "b", "id": receipt.id, "deliveries": "1"}}]
    assert post.stats().in_flight == 1


def test_a_message_reaches_a_device_at_once(post):
    """Live, in order, each with its id."""
    post.connect()
    ids = [post.put(n).id for n in range(5)]
    assert ids == sorted(set(ids))
    heard = post.heard()
    assert (ids_of(heard), [one["data"] for one in heard]) == (ids, [0, 1, 2, 3, 4])


def test_what_is_in_flight_comes_again_on_subscribe(post):
    """In order, as one more delivery; a device that is there already is not bothered."""
    post.connect()
    ids = [post.put(n).id for n in range(3)]
    post.heard()
    again = post.open()
    assert (ids_of(again), deliveries_of(again)) == (ids, ["2"] * 3)
    assert post.heard() == []


def test_what_is_in_flight_comes_in_its_order_whatever_is_due_first(post):
    """A message that was sent twice has the longer pause, and is still the older one."""
    post.connect()
    first = post.put(1).id
    post.open()
    second = post.put(2).id
    assert ids_of(post.open()) == [first, second]


def test_an_acknowledged_message_is_gone_for_good(post):
    """Once, by id; the second time it counts for nothing, and nothing is left of an empty mailbox."""
    post.connect()
    first, second = post.put(1).id, post.put(2).id
    assert post.ack(second) == 1
    assert post.ack(second, second) == 0
    assert ids_of(post.open()) == [first]
    assert post.ack(first, "9999999999999-000000") == 1
    assert post.names() == set()
    assert post.redis.zcard(post.keys.due("inbox")) == 0
    assert post.stats().totals["bytes"] == post.stats().totals["messages"] == 0


def test_what_was_never_sent_cannot_be_acknowledged(post):
    """An id that somebody guessed, or knows from elsewhere, takes nothing away."""
    unsent = post.put(1).id
    assert post.ack(unsent) == 0
    assert post.stats().messages == 1


def test_no_more_than_the_window_is_in_flight(post):
    """Each acknowledgement lets the next one go, in order."""
    few = rules(mailbox_window=2)
    post.connect()
    ids = [post.put(n, few).id for n in range(5)]
    assert ids_of(post.heard()) == ids[:2]
    assert post.ack(ids[1], rules=few) == 1
    assert ids_of(post.heard()) == ids[2:3]
    assert post.ack(ids[0], ids[2], rules=few) == 2
    assert ids_of(post.heard()) == ids[3:]


def test_the_window_is_bounded_in_bytes_too(valkey_url, prefix):
    """All that is in flight fits a device's outbox several times; a single message always goes."""
    post = Post(valkey_url, prefix, outbox_bytes=4000)
    post.connect()
    ids = [post.put("x" * 600).id for _ in range(3)]
    large = post.put("y" * 3000).id
    assert ids_of(post.heard()) == ids[:1]
    post.ack(ids[0])
    post.ack(ids[1])
    post.ack(ids[2])
    assert ids_of(post.heard()) == [*ids[1:], large]
    post.close()


def test_what_is_not_acknowledged_in_time_comes_again(post):
    """As one more delivery, and not before its time."""
    post.connect()
    one = post.put(1).id
    post.heard()
    post.visit()
    assert post.heard() == []
    post.ack(one)
    soon = rules(ack_timeout_s=0)
    two = post.put(2, soon).id
    post.heard()
    post.visit(soon)
    again = post.heard()
    assert (ids_of(again), deliveries_of(again)) == ([two], ["2"])


def test_each_pause_is_twice_as_long_up_to_an_hour(post):
    """From the setting on; the jitter adds at most a quarter."""
    slow = rules(ack_timeout_s=100.0, mailbox_deliveries=20)
    post.connect()
    post.put(1, slow)
    flight = post.keys.mailbox(CHANNEL)[3]
    pauses = []
    for _ in range(8):
        ((_, due),) = post.redis.zrange(flight, 0, -1, withscores=True)
        seconds, micros = post.redis.time()
        pauses.append(round((due / 1000 - seconds - micros / 1e6) / 100))
        post.open(slow)
    assert pauses == [1, 2, 4, 8, 16, 32, 36, 36]


def test_where_nobody_listens_nothing_is_in_flight(post):
    """A visit takes everything back, without a delivery counted, and the next device gets it all in order."""
    soon = rules(ack_timeout_s=0)
    post.connect()
    ids = [post.put(n).id for n in range(2)] + [post.put(2, soon).id]
    post.disconnect()
    post.visit()
    assert post.stats().in_flight == 0
    post.connect()
    assert post.open() == []
    heard = post.heard()
    assert (ids_of(heard), deliveries_of(heard)) == (ids, ["2"] * 3)


def test_a_key_stores_a_message_once(post):
    """The same id comes back, and nothing is sent again."""
    post.connect()
    first = post.put(1, key="k")
    again = post.put(2, key="k")
    assert (again.id, again.duplicate, first.duplicate) == (first.id, True, False)
    assert len(post.heard()) == 1
    assert 0 < post.redis.pttl(post.keys.once(CHANNEL, "k")) <= 300_000


def test_what_a_success_means_is_the_namespaces(post):
    """Storing waits as the namespace says; what follows from it does not."""
    receipt = post.put(1, rules(ack="replicas:1"))
    post.open()
    post.ack(receipt.id)
    assert (receipt.ack, post.broker.acks) == ("replicas:1", ["replicas:1", "memory", "memory"])


# Ends.


def test_an_expired_message_is_dead(post):
    """With its reason; nobody gets it, not on subscribe and not live."""
    gone = rules(mailbox_ttl_s=0)
    one = post.put({"n": 1}, tags={"a": "b"}).id
    post.visit(gone)
    (letter,) = post.letters()
    expected = Letter(letter.id, CHANNEL, "expired", one, 0, {"data": {"n": 1}, "tags": {"a": "b"}})
    assert letter == expected
    assert (post.names(), post.stats().messages) == (set(), 0)


def test_a_message_that_waits_behind_a_full_window_expires(post):
    """Though nothing can be sent, and what is in flight is not due yet."""
    one = rules(mailbox_window=1)
    post.connect()
    post.put(1, one)
    late = post.put(2, one).id
    post.visit(rules(mailbox_window=1, mailbox_ttl_s=0))
    assert [letter.message for letter in post.letters()] == [late]


def test_a_message_in_flight_expires_too(post):
    """When it is due, and on the next subscribe."""
    post.connect()
    post.put(1)
    assert post.open(rules(mailbox_ttl_s=0)) == []
    post.put(2, rules(ack_timeout_s=0))
    post.visit(rules(mailbox_ttl_s=0))
    assert [(one.reason, one.publication) for one in post.letters()] == [
        ("expired", {"data": 1}),
        ("expired", {"data": 2}),
    ]


def test_a_message_that_was_sent_too_often_is_dead(post):
    """After so many deliveries, however they came about."""
    few = rules(mailbox_deliveries=3, ack_timeout_s=0)
    post.connect()
    post.put(1, few)
    post.visit(few)
    assert deliveries_of(post.open(few)) == ["3"]
    post.visit(few)
    assert [(one.reason, one.deliveries) for one in post.letters()] == [("max_deliveries", 3)]
    assert deliveries_of(post.heard()) == ["1", "2"]


def test_a_full_mailbox_rejects(post):
    """106 to the publisher; nothing changes."""
    two = rules(mailbox_size=2)
    kept_ids = [post.put(n, two).id for n in range(2)]
    refused = post.put(2, two)
    assert (refused.reply, str(refused)) == (LIMIT_EXCEEDED, "the mailbox is full")
    post.connect()
    post.open(two)
    assert ids_of(post.heard()) == kept_ids


def test_a_full_mailbox_makes_room_where_it_is_told_to(post):
    """The oldest one is dead, sent or not, with the reason overflow."""
    two = rules(mailbox_size=2, mailbox_full="drop_oldest")
    ids = [post.put(n, two).id for n in range(4)]
    assert [(one.reason, one.message) for one in post.letters()] == [("overflow", ids[0]), ("overflow", ids[1])]
    post.connect()
    post.open(two)
    ids.append(post.put(4, two).id)
    assert [one.message for one in post.letters()] == ids[:3]
    assert ids_of(post.heard()) == ids[2:]


def test_a_mailbox_is_bounded_in_bytes(post):
    """Each message counts with what it costs besides; one that is larger than the whole can't be kept at all."""
    size = len(kept("x", None, None)) + OVERHEAD
    assert isinstance(post.put("x", rules(mailbox_bytes=2 * size)), Receipt)
    assert isinstance(post.put("x", rules(mailbox_bytes=2 * size)), Receipt)
    assert str(post.put("x", rules(mailbox_bytes=2 * size))) == "the mailbox is full"
    assert str(post.put("x" * size, rules(mailbox_bytes=size))) == "the message is larger than a mailbox may be"
    assert post.stats().bytes == 2 * size


def test_expired_messages_make_room(post):
    """A mailbox full of what nobody may get any more is not full."""
    one = rules(mailbox_size=1)
    post.put(1, one)
    assert isinstance(post.put(2, rules(mailbox_size=1, mailbox_ttl_s=0)), Receipt)
    assert post.letters()[0].publication == {"data": 1}


def test_all_mailboxes_together_are_bounded(valkey_url, prefix):
    """Whoever is over it may drop its own, and never another's."""
    size = len(kept("x", None, None)) + OVERHEAD
    post = Post(valkey_url, prefix, total_bytes=1024)
    told: list = []
    for _ in range(3):
        post.boxes.put("inbox:#77", RULES, kept("x", None, None), told.append)
    assert 3 * size < 1024 < 4 * size
    refused = post.put("x", rules(mailbox_full="drop_oldest"))
    assert (refused.reply, str(refused)) == (LIMIT_EXCEEDED, "all mailboxes together are full")
    assert post.stats().totals["messages"] == 3
    post.boxes.put("inbox:#77", rules(mailbox_full="drop_oldest"), kept("y", None, None), told.append)
    assert isinstance(told[-1], Receipt)
    assert [one.message for one in post.letters()] == [told[0].id]
    post.close()


# Dead letters.


def test_dead_letters_are_read_in_pages(post):
    """Oldest first, each page behind the last one's end."""
    for n in range(5):
        post.put(n)
    post.visit(rules(mailbox_ttl_s=0))
    first = post.letters(limit=2)
    rest = post.letters(after=first[-1].id)
    assert [one.publication["data"] for one in first + rest] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("bounds", [{"dead_letters": 2}, {"dead_bytes": 1024}])
def test_dead_letters_are_bounded(valkey_url, prefix, bounds):
    """By number and by bytes; the oldest are forgotten, and counted."""
    post = Post(valkey_url, prefix, **bounds)
    for n in range(5):
        post.put(str(n) * 200)
    post.visit(rules(mailbox_ttl_s=0))
    left = [one.publication["data"][0] for one in post.letters()]
    assert left == ["3", "4"]
    totals = post.stats().totals
    size = len(kept("0" * 200, None, None)) + OVERHEAD
    assert (totals["dead_bytes"], totals["dead_forgotten"], totals["dead_expired"]) == (2 * size, 3, 5)
    post.close()


def test_a_dead_letter_lives_again(post):
    """As a new message, with a new id and no deliveries; then it is no dead letter any more."""
    old = post.put({"n": 1}, tags={"a": "b"}).id
    post.visit(rules(mailbox_ttl_s=0))
    (letter,) = post.letters()
    post.connect()
    receipt = post.requeue(letter.id)
    assert receipt.id > old
    assert post.heard() == [{"data": {"n": 1}, "tags": {"a": "b", "id": receipt.id, "deliveries": "1"}}]
    assert (post.letters(), post.stats().totals["dead_bytes"]) == ([], 0)
    assert post.requeue(letter.id).reply is BAD_REQUEST


def test_a_dead_letter_stays_where_there_is_no_room(post):
    """It does not push others out, whatever the namespace says of new messages."""
    one = rules(mailbox_size=1, mailbox_full="drop_oldest")
    post.put(1, one)
    post.put(2, one)
    (letter,) = post.letters()
    assert post.requeue(letter.id, one).reply is LIMIT_EXCEEDED
    assert post.letters() == [letter]


def test_a_dead_letter_goes_back_to_its_own_mailbox_only(post):
    """Another channel's name beside its id is a mistake."""
    post.put(1)
    post.visit(rules(mailbox_ttl_s=0))
    (letter,) = post.letters()
    told: list = []
    post.boxes.requeue(letter.id, "inbox:#77", RULES, told.append)
    assert (told[0].reply, post.letters()) == (BAD_REQUEST, [letter])


# What is due.


def test_what_is_due_is_claimed_by_one(post):
    """The next one to ask gets nothing, until the claim has ended."""
    post.connect()
    post.put(1, rules(ack_timeout_s=0))
    assert post.claim() == [CHANNEL.encode()]
    assert post.claim() == []


def test_nothing_is_due_before_its_time(post):
    """A message that waits is due when it expires, one in flight when it is sent again; the earlier one counts."""
    due = post.keys.due("inbox")
    one = post.put(1).id
    assert post.redis.zscore(due, CHANNEL) == int(one[:13]) + 604_800_000
    post.connect()
    post.open()
    assert 29_000 < post.redis.zscore(due, CHANNEL) - int(one[:13]) < 60_000
    post.put(2, rules(mailbox_window=1))
    assert 29_000 < post.redis.zscore(due, CHANNEL) - int(one[:13]) < 60_000
    assert post.claim() == []


def test_ids_grow_though_the_clock_steps_back(post):
    """And though the mailbox was empty in between: an old acknowledgement must never fit a new message."""
    post.redis.hset(post.keys.mail_totals, mapping={"ms": 9_000_000_000_000, "seq": 999_998})
    assert [post.put(1).id, post.put(2).id] == ["9000000000000-999999", "9000000000001-000000"]


def test_a_mailbox_of_which_the_store_evicted_a_part_goes_on(post):
    """What is gone is gone, and counted; the rest is not stuck behind it."""
    lost = post.put(1).id
    post.redis.hdel(post.keys.mailbox(CHANNEL)[1], lost)
    post.connect()
    left = post.put(2).id
    assert ids_of(post.heard()) == [left]
    assert post.stats().totals["evicted"] == 1


def test_what_the_store_evicted_does_not_fill_the_mailboxes(post):
    """The sums are those of what is left, once the mailbox has been emptied."""
    post.put("x" * 1000)
    post.redis.delete(post.keys.mailbox(CHANNEL)[1])
    post.connect()
    left = post.put(2).id
    assert ids_of(post.heard()) == [left]
    assert post.ack(left) == 1
    totals = post.stats().totals
    assert (totals["messages"], totals["bytes"], totals["evicted"]) == (0, 0, 1)


@pytest.mark.parametrize("part", [2, 3])
def test_messages_whose_place_the_store_evicted_are_sent_again(post, part):
    """Those that waited and those in flight: they are still kept, so they must come."""
    if part == 3:
        post.connect()
    sent = post.put(1).id
    post.heard()
    post.redis.delete(post.keys.mailbox(CHANNEL)[part])
    post.visit()
    if part == 2:
        post.connect()
    post.visit()
    assert ids_of(post.heard()) == [sent]
    assert post.ack(sent) == 1
    assert post.stats().totals["messages"] == 0


@pytest.mark.parametrize("binary", BINARIES)
def test_a_mailbox_outlives_its_store(binary, prefix):
    """kill -9 of a store that syncs each write: what was kept is there, with its deliveries, and the books agree."""
    with server(binary, "--appendonly", "yes", "--appendfsync", "always") as store:
        post = Post(store.url, prefix)
        post.connect()
        gone, sent = post.put(1).id, post.put(2).id
        post.heard()
        post.ack(gone)
        post.put(3, rules(mailbox_window=1))
        before = (post.stats(), post.redis.zscore(post.keys.due("inbox"), CHANNEL))
        store.kill()
        store.start()
        post.redis.close()
        post.ear = None
        post = Post(store.url, prefix)
        assert (post.stats(), post.redis.zscore(post.keys.due("inbox"), CHANNEL)) == before
        post.connect()
        again = post.open()
        assert (ids_of(again), deliveries_of(again)) == ([sent], ["2"])
        assert deliveries_of(post.heard()) == ["1"]
        post.close()


# Every message is accounted for.


class Accounts(RuleBasedStateMachine):
    """Whatever happens in whatever order, each stored message is in the mailbox, acknowledged or dead; once."""

    url = ""
    number = 0
    inbox = rules(mailbox_size=6, mailbox_window=3, mailbox_deliveries=3)

    def __init__(self) -> None:
        super().__init__()
        Accounts.number += 1
        self.post = Post(self.url, f"accounts{Accounts.number}", dead_letters=1000)
        self.stored: set[str] = set()
        self.acknowledged: set[str] = set()
        self.requeued: set[str] = set()
        self.seen: set[str] = set()

    def teardown(self) -> None:
        self.post.close()

    @initialize(full=st.sampled_from(["reject", "drop_oldest"]))
    def begins(self, full: str) -> None:
        self.inbox = self.inbox.model_copy(update={"mailbox_full": full})

    def listen(self) -> None:
        heard = self.post.heard()
        self.seen.update(ids_of(heard))
        assert all(int(count) <= self.inbox.mailbox_deliveries for count in deliveries_of(heard))

    @rule(size=st.integers(0, 40))
    def put(self, size: int) -> None:
        outcome = self.post.put("x" * size, self.inbox)
        if isinstance(outcome, Receipt):
            assert outcome.id not in self.stored
            self.stored.add(outcome.id)
        else:
            assert self.inbox.mailbox_full == "reject" and self.post.stats().messages == 6
        self.listen()

    @precondition(lambda self: self.post.ear is None)
    @rule(opens=st.booleans())
    def connect(self, opens: bool) -> None:
        self.post.connect()
        if opens:
            self.open()

    @precondition(lambda self: self.post.ear is not None)
    @rule()
    def disconnect(self) -> None:
        self.listen()
        self.post.disconnect()

    @precondition(lambda self: self.post.ear is not None)
    @rule()
    def open(self) -> None:
        handed = self.post.open(self.inbox)
        assert ids_of(handed) == sorted(ids_of(handed))
        self.seen.update(ids_of(handed))
        self.listen()

    @rule(data=st.data())
    def ack(self, data: Any) -> None:
        chosen = (
            data.draw(st.lists(st.sampled_from(sorted(self.stored)), max_size=4, unique=True)) if self.stored else []
        )
        inside = set(self.inside())
        taken = self.post.ack(*chosen, rules=self.inbox)
        gone = {one for one in chosen if one in inside and one in self.seen}
        assert taken == len(gone)
        self.acknowledged |= gone
        self.listen()

    @rule(expire=st.sampled_from([False, False, False, True]), due=st.booleans())
    def visit(self, expire: bool, due: bool) -> None:
        changed = {"mailbox_ttl_s": 0} if expire else {}
        if due:  # what is in flight is due now
            flight = self.post.keys.mailbox(CHANNEL)[3]
            for one in self.post.redis.zrange(flight, 0, -1):
                self.post.redis.zadd(flight, {one: 1})
        self.post.visit(self.inbox.model_copy(update=changed))
        self.listen()

    @rule()
    def requeue(self) -> None:
        letters = self.post.letters()
        if letters:
            outcome = self.post.requeue(letters[0].id, self.inbox)
            if isinstance(outcome, Receipt):
                self.requeued.add(letters[0].message)
                self.stored.add(outcome.id)
        self.listen()

    def inside(self) -> list[str]:
        return [str(one, "ascii") for one in self.post.redis.hkeys(self.post.keys.mailbox(CHANNEL)[1])]

    @invariant()
    def nothing_is_unaccounted_for(self) -> None:
        dead = [one.message for one in self.post.letters(limit=1000)]
        places = [*self.inside(), *dead, *self.acknowledged, *self.requeued]
        assert sorted(places) == sorted(self.stored)

    @invariant()
    def the_books_agree(self) -> None:
        redis, (_, mail, wait, flight) = self.post.redis, self.post.keys.mailbox(CHANNEL)
        sizes = [len(one) + OVERHEAD for one in redis.hvals(mail)]
        contents = self.post.stats()
        assert (contents.messages, contents.bytes) == (len(sizes), sum(sizes))
        totals = contents.totals
        assert (totals.get("messages", 0), totals.get("bytes", 0)) == (len(sizes), sum(sizes))
        dead = redis.xrange(self.post.keys.dead_letters)
        assert totals.get("dead_bytes", 0) == sum(len(fields[b"b"]) + OVERHEAD for _, fields in dead)
        waiting, flying = set(redis.zrange(wait, 0, -1)), set(redis.zrange(flight, 0, -1))
        assert (waiting | flying, waiting & flying) == (set(redis.hkeys(mail)), set())
        assert len(flying) <= self.inbox.mailbox_window
        assert (redis.zscore(self.post.keys.due("inbox"), CHANNEL) is not None) == bool(sizes)


def test_every_message_is_accounted_for(store_url):
    """A hundred random lives of a mailbox."""
    Accounts.url = store_url
    bounds = settings(
        max_examples=100,
        stateful_step_count=40,
        deadline=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(Accounts, settings=bounds)
