"""One client of the native protocol, without sockets and without Redis: replies, codes, pings, ends."""

from __future__ import annotations

import orjson
import pytest

from hub import __version__, auth
from hub.asking import Histories
from hub.auth import Authenticator
from hub.broker import Receipt
from hub.channels import Channels
from hub.errors import TOO_MANY_REQUESTS, BrokerUnavailable, Close, CommandError
from hub.message import ClientInfo
from hub.publish import Publisher
from hub.recovery import Joined
from hub.remembered import Remembered
from hub.sections import ClientSettings
from hub.services import Services
from hub.session import Session
from hub.store import Keys
from hub.users import Users
from tests.plane import NAMESPACES, SECRET
from tests.support import FakeClock


class Transport:
    """Writes down what the session says."""

    wire = None

    def __init__(self, clock: FakeClock) -> None:
        self.clock = clock
        self.heard_at = clock()
        self.unread = False
        self.said: list = []
        self.closed: Close | None = None
        self.woken: list[float] = []

    def reply(self, message: bytes) -> None:
        self.said.append(orjson.loads(message))

    def put(self, frame: bytes) -> None:
        raise AssertionError("a session speaks through reply")

    def close(self, close: Close) -> None:
        self.closed = self.closed or close

    def wake(self, at: float) -> None:
        self.woken.append(at)


class Subscriptions:
    """Confirms at once, or when the test says so."""

    def __init__(self) -> None:
        self.waiting: list = []
        self.inside: list = []
        self.at_once = True
        self.joined = Joined()

    def subscribe(
        self, channel: str, namespace: object, subscriber: object, done: object, since: object, terms: object
    ) -> None:
        self.since = since
        if self.at_once:
            self.confirm(channel, done)
        else:
            self.waiting.append((channel, done))

    def confirm(self, channel: str, done: object) -> None:
        self.inside.append(channel)
        done(self.joined)

    def unsubscribe(self, channel: str, namespace: object, subscriber: object) -> None:
        self.inside.remove(channel)


class Broker:
    """Takes publications; the verdict is the test's."""

    def __init__(self) -> None:
        self.taken: list = []

    def publish(self, rules: object, namespace: str, publications: list, done: object, **more: object) -> None:
        self.taken.append((publications[0], done))


class Presence:
    """Notes who is where; what is asked waits for the test's answer."""

    def __init__(self) -> None:
        self.noted: list = []
        self.asked: list = []

    def enter(self, channel: str, namespace: object, info: object, subscriber: object, watch: bool) -> None:
        self.noted.append(("enter", channel, info, watch))

    def exit(self, channel: str, client: str, hold: bool) -> None:
        self.noted.append(("exit", channel, client, hold))

    def ask(self, channel: str, full: bool, done: object) -> None:
        self.asked.append((channel, full, done))


class Redelivery:
    """Writes down whose mailbox was opened."""

    def __init__(self) -> None:
        self.opened_by: list = []

    def opened(self, channel: str, namespace: object, device: object) -> None:
        self.opened_by.append((channel, device))


class Rig:
    def __init__(self, **client: object) -> None:
        self.clock = FakeClock()
        self.wall = FakeClock(1_000_000.0)
        self.transport = Transport(self.clock)
        self.subscriptions, self.broker, self.presence = Subscriptions(), Broker(), Presence()
        self.reads: list = []
        self.services = Services(
            ClientSettings(**client),
            None,
            Authenticator(SECRET, self.wall),
            Channels(NAMESPACES),
            Publisher(self.broker, 32),
            self.subscriptions,
            self.presence,
            Histories(lambda asked, done: self.reads.append((asked, done)), 300, 1000),
            Redelivery(),
            Remembered(None, Keys("hub")),
            Users(),
            self.clock,
            self.wall,
            lambda: "client-1",
            lambda: 0.5,
        )
        self.session = Session(self.services, self.transport)

    def say(self, *commands: dict) -> list:
        """Send commands in one message; what was answered to it."""
        before = len(self.transport.said)
        self.session.handle(b"\n".join(orjson.dumps(command) for command in commands))
        return self.transport.said[before:]

    def connect(self, user: str = "") -> Rig:
        params = {"token": auth.make(user, SECRET, 60, self.wall())} if user else {}
        self.say({"id": 1, "connect": params})
        assert self.session.connected
        return self

    def code(self, command: dict) -> int:
        """The error code with which a command is answered."""
        [reply] = self.say({"id": 9, **command})
        return reply["error"]["code"]


def test_connect_answers_with_what_sdks_read():
    """client, version, ping in whole seconds and pong."""
    rig = Rig()
    assert rig.say({"id": 1, "connect": {}}) == [
        {"id": 1, "connect": {"client": "client-1", "version": __version__, "ping": 25, "pong": True}}
    ]
    assert rig.session.user == ""


@pytest.mark.parametrize("token", ["", None])
def test_an_empty_token_is_no_token(token):
    """Some SDKs send the field always."""
    rig = Rig()
    rig.say({"id": 1, "connect": {"token": token}})
    assert rig.session.connected


def test_a_token_gives_the_user_and_a_bad_one_ends_the_connection():
    """3500 for a token that is not ours."""
    assert Rig().connect("42").session.user == "42"
    rig = Rig()
    rig.say({"id": 1, "connect": {"token": "a.b.c"}})
    assert rig.transport.closed.code == 3500 and not rig.session.connected


@pytest.mark.parametrize(
    "command", [{"id": 1, "subscribe": {"channel": "open:a"}}, {"send": {"data": 1}}, {"id": 1, "x": {}}]
)
def test_a_command_before_connect_is_a_bad_request(command):
    """Whatever it is: 3501."""
    rig = Rig()
    assert rig.say(command) == []
    assert rig.transport.closed.code == 3501


def test_a_second_connect_and_a_command_without_id_are_bad_requests():
    """3501, as Centrifugo has it."""
    for command in ({"id": 2, "connect": {}}, {"subscribe": {"channel": "open:a"}}):
        rig = Rig().connect()
        rig.say(command)
        assert rig.transport.closed.code == 3501


def test_commands_behind_a_broken_one_are_not_done():
    """The connection ends at the fault."""
    rig = Rig().connect()
    rig.session.handle(b'{"id":2,"publish":[]}\n{"id":3,"subscribe":{"channel":"open:a"}}')
    assert rig.transport.closed.code == 3501 and rig.subscriptions.inside == []


@pytest.mark.parametrize(
    ("command", "code"),
    [
        ({"subscribe": {}}, 107),
        ({"subscribe": {"channel": ""}}, 107),
        ({"subscribe": {"channel": 7}}, 107),
        ({"subscribe": {"channel": "a b"}}, 107),
        ({"subscribe": {"channel": "a" * 256}}, 107),
        ({"subscribe": {"channel": "nowhere:a"}}, 102),
        ({"subscribe": {"channel": "closed:a"}}, 103),
        ({"subscribe": {"channel": "users:a"}}, 103),
        ({"subscribe": {"channel": "plain"}}, 103),
        ({"subscribe": {"channel": "tokens:a"}}, 103),
        ({"subscribe": {"channel": "open:a", "token": "x"}}, 103),
        ({"subscribe": {"channel": "open:a", "recover": True}}, 108),
        ({"subscribe": {"channel": "open:a", "positioned": True}}, 108),
        ({"subscribe": {"channel": "open:a", "join_leave": True}}, 108),
        ({"publish": {"channel": "closed:a", "data": 1}}, 103),
        ({"publish": {"channel": "users:a", "data": 1}}, 103),
        ({"publish": {"channel": "own:a", "data": 1}}, 103),
        ({"publish": {"channel": "tokens:a", "data": 1}}, 103),
        ({"publish": {"channel": "open:a"}}, 107),
        ({"publish": {"data": 1}}, 107),
        ({"unsubscribe": {}}, 107),
        ({"presence": {"channel": "open:a"}}, 108),
        ({"subscribe": {"channel": "quiet:a", "join_leave": True}}, 108),
        ({"presence_stats": {"channel": "open:a"}}, 108),
        ({"history": {"channel": "open:a"}}, 108),
        ({"refresh": {}}, 107),
        ({"sub_refresh": {"channel": "open:a", "token": "x"}}, 103),
        ({"rpc": {"method": "nonsense"}}, 104),
        ({"rpc": {"method": ["x"]}}, 104),
        ({"rpc": {}}, 104),
        ({"nonsense": {}}, 104),
        ({"ping": {}}, 104),
    ],
)
def test_a_command_that_fails_has_its_code_and_the_connection_lives(command, code):
    """One table of what an anonymous client is refused."""
    rig = Rig().connect()
    assert rig.code(command) == code
    assert rig.transport.closed is None and rig.subscriptions.inside == [] and rig.broker.taken == []


def test_a_subscription_is_answered_when_it_is_in():
    """No reply before Redis has confirmed; a second attempt meanwhile and later is 105."""
    rig = Rig().connect()
    rig.subscriptions.at_once = False
    assert rig.say({"id": 2, "subscribe": {"channel": "open:a"}}) == []
    assert rig.code({"subscribe": {"channel": "open:a"}}) == 105
    [(channel, done)] = rig.subscriptions.waiting
    rig.subscriptions.confirm(channel, done)
    assert rig.transport.said[-1] == {"id": 2, "subscribe": {}}
    assert rig.code({"subscribe": {"channel": "open:a"}}) == 105


def test_a_subscription_that_redis_does_not_confirm_is_a_temporary_error():
    """100 with temporary, upon which SDKs try again; the cause stays inside."""
    rig = Rig().connect()
    rig.subscriptions.at_once = False
    rig.say({"id": 2, "subscribe": {"channel": "open:a"}})
    rig.subscriptions.waiting[0][1](BrokerUnavailable("Redis at 10.0.0.1"))
    assert rig.transport.said[-1] == {
        "id": 2,
        "error": {"code": 100, "message": "internal server error", "temporary": True},
    }
    rig.subscriptions.at_once = True
    assert rig.say({"id": 3, "subscribe": {"channel": "open:a"}}) == [{"id": 3, "subscribe": {}}]


def test_unsubscribe_and_subscribe_again_while_the_first_is_pending_end_up_subscribed_once():
    """Each attempt keeps apart from the other, in whatever order the answers are read."""
    rig = Rig().connect()
    rig.subscriptions.at_once = False
    rig.say({"id": 2, "subscribe": {"channel": "open:a"}})
    assert rig.say({"id": 3, "unsubscribe": {"channel": "open:a"}}) == [{"id": 3, "unsubscribe": {}}]
    rig.say({"id": 4, "subscribe": {"channel": "open:a"}})
    for channel, done in rig.subscriptions.waiting:
        rig.subscriptions.confirm(channel, done)
    assert rig.subscriptions.inside == ["open:a"]
    replies = {reply["id"]: reply for reply in rig.transport.said}
    assert replies[2]["error"]["code"] == 107 and replies[4] == {"id": 4, "subscribe": {}}


def test_unsubscribe_leaves_the_channel_and_is_answered_also_when_there_was_nothing():
    """As Centrifugo: an unknown subscription is no error."""
    rig = Rig().connect()
    rig.say({"id": 2, "subscribe": {"channel": "open:a"}})
    assert rig.say({"id": 3, "unsubscribe": {"channel": "open:a"}}) == [{"id": 3, "unsubscribe": {}}]
    assert rig.say({"id": 4, "unsubscribe": {"channel": "open:a"}}) == [{"id": 4, "unsubscribe": {}}]
    assert rig.subscriptions.inside == []


def test_a_client_that_goes_leaves_all_channels_also_those_still_pending():
    """on_gone leaves what is joined; an answer that comes later is undone."""
    rig = Rig().connect()
    rig.say({"id": 2, "subscribe": {"channel": "open:a"}})
    rig.subscriptions.at_once = False
    rig.say({"id": 3, "subscribe": {"channel": "open:b"}})
    rig.session.on_gone()
    assert rig.subscriptions.inside == []
    rig.subscriptions.confirm(*rig.subscriptions.waiting[0])
    assert rig.subscriptions.inside == []


def test_more_channels_than_allowed_are_refused():
    """client.channels bounds subscriptions, pending ones included."""
    rig = Rig(channels=2).connect()
    for name in "ab":
        rig.say({"id": 2, "subscribe": {"channel": f"open:{name}"}})
    assert rig.code({"subscribe": {"channel": "open:c"}}) == 106


def test_a_publish_is_answered_with_redis_verdict():
    """{} when taken; 100 temporary when Redis is away; the broker's own 111 as it is."""
    rig = Rig().connect("42")
    rig.say({"id": 2, "publish": {"channel": "users:a", "data": {"x": None}}})
    publication, done = rig.broker.taken[0]
    assert orjson.loads(publication.body) == {"data": {"x": None}, "info": {"user": "42", "client": "client-1"}}
    done(Receipt())
    assert rig.transport.said[-1] == {"id": 2, "publish": {}}
    done(BrokerUnavailable("x"))
    assert rig.transport.said[-1]["error"]["temporary"] is True
    done(CommandError(TOO_MANY_REQUESTS))
    assert rig.transport.said[-1]["error"]["code"] == 111


def test_subscribers_may_publish_where_the_namespace_says_so():
    """publish = "subscriber": only on a channel that this connection is in."""
    rig = Rig().connect()
    rig.say({"id": 2, "subscribe": {"channel": "own:a"}})
    rig.say({"id": 3, "publish": {"channel": "own:a", "data": None}})
    assert len(rig.broker.taken) == 1
    assert rig.code({"publish": {"channel": "own:b", "data": 1}}) == 103


def test_commands_that_wait_for_redis_are_bounded():
    """Over pending_commands: 111, until an answer makes room."""
    rig = Rig(pending_commands=2).connect()
    for i in range(2):
        rig.say({"id": i + 2, "publish": {"channel": "open:a", "data": i}})
    assert rig.code({"publish": {"channel": "open:a", "data": 1}}) == 111
    assert rig.code({"subscribe": {"channel": "open:a"}}) == 111
    rig.broker.taken[0][1](Receipt())
    assert rig.say({"id": 5, "publish": {"channel": "open:a", "data": 1}}) == []


def test_data_that_cannot_be_published_leaves_no_command_pending():
    """107 for nesting; the place in the bound is free again."""
    rig = Rig(pending_commands=1).connect()
    deep = 1
    for _ in range(40):
        deep = [deep]
    assert rig.code({"publish": {"channel": "open:a", "data": deep}}) == 107
    assert rig.say({"id": 5, "publish": {"channel": "open:a", "data": 1}}) == []


def test_send_without_server_code_is_taken_without_an_answer():
    """The protocol has no reply to it."""
    rig = Rig().connect()
    assert rig.say({"send": {"data": 1}}) == [] and rig.transport.closed is None


def test_the_hubs_clock_can_be_asked():
    """rpc hub.time answers with decimal nanoseconds as text."""
    assert Rig().connect().say({"id": 2, "rpc": {"method": "hub.time"}}) == [
        {"id": 2, "rpc": {"data": {"time_ns": "1000000000000000"}}}
    ]


def test_pings_come_at_their_interval_and_any_byte_answers_them():
    """The first is spread over the interval; silence until pong_timeout_s after a ping is 3012."""
    rig = Rig(connect_timeout_s=10, ping_interval_s=25, pong_timeout_s=10)
    due = rig.session.first_deadline(rig.clock())
    assert due == rig.clock() + 10
    rig.connect()
    rig.clock.now = due
    due = rig.session.on_deadline(due)
    assert due == rig.clock() + 7.5 and {} not in rig.transport.said
    rig.clock.now = due
    due = rig.session.on_deadline(due)
    assert due == rig.clock() + 10 and rig.transport.said[-1] == {}
    rig.transport.heard_at = rig.clock() + 1
    rig.clock.now = due
    due = rig.session.on_deadline(due)
    assert due == rig.clock() + 15 and rig.transport.closed is None
    rig.clock.now = due
    due = rig.session.on_deadline(due)
    assert rig.transport.said[-1] == {}
    rig.clock.now = due
    rig.session.on_deadline(due)
    assert rig.transport.closed.code == 3012


def test_a_client_whose_pong_waits_to_be_read_is_not_silent():
    """A worker that stood still for longer than pong_timeout_s looks again a second later; who is silent is ended."""
    rig = Rig(connect_timeout_s=10, ping_interval_s=25, pong_timeout_s=10)
    rig.connect()
    rig.session.on_deadline(rig.clock())
    rig.clock.now += 25
    rig.session.on_deadline(rig.clock())
    assert rig.transport.said[-1] == {}
    rig.clock.now += 60
    rig.transport.unread = True
    assert rig.session.on_deadline(rig.clock()) == rig.clock() + 1.0 and rig.transport.closed is None
    rig.transport.unread, rig.transport.heard_at = False, rig.clock()
    rig.clock.now += 1
    rig.session.on_deadline(rig.clock())  # it has been heard; the next ping is due already
    rig.session.on_deadline(rig.clock())
    assert rig.transport.said[-2:] == [{}, {}] and rig.transport.closed is None
    rig.clock.now += 10
    rig.session.on_deadline(rig.clock())
    assert rig.transport.closed.code == 3012


def test_a_client_that_never_connects_is_stale():
    """At the first deadline without a connect command: 3502."""
    rig = Rig()
    rig.session.on_deadline(rig.session.first_deadline(rig.clock()))
    assert rig.transport.closed.code == 3502


def test_a_connection_ends_with_its_token():
    """3005 at exp, whatever the pings are doing; SDKs come back with a new token. An early call changes nothing."""
    rig = Rig(ping_interval_s=3000, pong_timeout_s=1000).connect("42")
    due = rig.session.on_deadline(rig.clock())
    assert due == rig.clock() + 60
    rig.wall.advance(59)
    assert rig.session.on_deadline(due) == due + 1 and rig.transport.closed is None and {} not in rig.transport.said
    rig.wall.advance(1)
    rig.session.on_deadline(due + 1)
    assert rig.transport.closed.code == 3005


def test_a_session_is_among_the_users_while_it_is_connected():
    """From its connect command to its end."""
    rig = Rig().connect("42")
    assert (list(rig.services.users.of("42")), len(rig.services.users)) == ([rig.session], 1)
    rig.session.on_gone()
    assert (list(rig.services.users.everybody()), rig.services.users.sessions) == ([], 0)


def test_presence_is_told_who_comes_and_how_it_goes():
    """An unsubscribe is no loss, the connection's end is one; who was not in yet is not told of."""
    rig = Rig().connect("ann")
    rig.say(
        {"id": 2, "subscribe": {"channel": "room:a", "join_leave": True}}, {"id": 3, "subscribe": {"channel": "room:b"}}
    )
    rig.say({"id": 4, "unsubscribe": {"channel": "room:a"}})
    rig.subscriptions.at_once = False
    rig.say({"id": 5, "subscribe": {"channel": "room:c"}})
    rig.session.on_gone()
    [(channel, done)] = rig.subscriptions.waiting
    rig.subscriptions.confirm(channel, done)
    info = ClientInfo("ann", "client-1")
    assert rig.presence.noted == [
        ("enter", "room:a", info, True),
        ("enter", "room:b", info, False),
        ("exit", "room:a", "client-1", False),
        ("exit", "room:b", "client-1", True),
    ]


def test_who_is_displaced_is_present_no_more_but_may_soon_be_back():
    """Its leave may be held back, for SDKs subscribe again at once."""
    rig = Rig().connect("ann")
    rig.say({"id": 2, "subscribe": {"channel": "room:a"}})
    rig.session.on_displaced("room:a")
    rig.session.on_displaced("room:b")
    assert rig.presence.noted[1:] == [("exit", "room:a", "client-1", True)]
