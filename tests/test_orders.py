"""Orders on one worker: whom they mean, in which slices, and what is none."""

from __future__ import annotations

import asyncio
from math import inf

import orjson
import pytest

from hub import orders as rooms
from hub.auth import Claims
from hub.channels import Channels, Namespace
from hub.errors import CommandError, HubError, ProtocolError
from hub.grants import Grant
from hub.orders import Orders, parse_met, parse_rows
from hub.revocation import ISSUED, TOKEN, USER, Entry
from hub.users import Users
from tests.support import async_test

ANN = {"user": "ann"}


class Revocations:
    """Those that the test names, without Redis."""

    def __init__(self) -> None:
        self.learned: list[Entry] = []
        self.bad: set[str] = set()

    def __len__(self) -> int:
        return len(self.bad)

    def learn(self, entry: Entry) -> None:
        self.learned.append(entry)
        self.bad.add(entry.name)

    def check(self, user: str, claims: Claims) -> None:
        self.check_token(user, claims.jti, 0.0)

    def check_token(self, user: str, jti: str, issued_at: float) -> None:
        if {user, jti} & self.bad:
            raise ProtocolError(rooms.errors.CLOSE_INVALID_TOKEN)


class Connection:
    """Writes down what is done to it."""

    kind, address, age_s, session_name, waiting_bytes = "websocket", "203.0.113.7", 1.5, "", 17

    def __init__(self, client: str, user: str = "ann", *channels: str, jti: str = "") -> None:
        self.client, self.user = client, user
        self.claims = Claims(user, inf, jti=jti)
        self.connected = self.open = True
        self.grants: dict[str, Grant] | None = None
        self.done: list = []
        self._channels = channels

    def holds(self, channel: str) -> bool:
        return channel in self._channels

    def channels(self) -> tuple[str, ...]:
        return self._channels

    def end_by(self, close: object) -> None:
        self.done.append(("end", close.code))
        self.open = False

    def expire(self, at: float) -> None:
        self.done.append(("expire", at))

    def lapse(self, channel: str) -> None:
        self.done.append(("lapse", channel))

    def leave(self, channel: str) -> None:
        self.done.append(("leave", channel))

    def join(self, channel: str, namespace: Namespace, done: object) -> None:
        self.done.append(("join", channel))


class Poll:
    def __init__(self, user: str, channel: str) -> None:
        self.user, self.claims = user, Claims(user, inf)
        self.channel = channel
        self.answered: object = None

    def holds(self, channel: str) -> bool:
        return channel == self.channel

    def channels(self) -> tuple[str, ...]:
        return (self.channel,)

    def send_back(self) -> None:
        self.answered = "sent back"

    def turn_away(self, error: HubError) -> None:
        self.answered = error


class Rig:
    def __init__(self, *connections: Connection, polls: tuple[Poll, ...] = ()) -> None:
        self.users, self.revocations = Users(), Revocations()
        for one in connections:
            self.users.enter(one)
        channels = Channels({"a": Namespace()})
        self.orders = Orders(self.users, channels, self.revocations, lambda: polls)

    async def order(self, ask: str, /, **params: object) -> dict:
        """What is answered; through JSON, as between workers."""
        answer = await self.orders.answers[ask](orjson.loads(orjson.dumps(params)))
        return orjson.loads(orjson.dumps(answer))


DISCONNECT = {"code": 3503, "reason": "", "whitelist": []}


@async_test
async def test_an_order_means_those_of_whom_all_holds():
    """The anonymous are nobody's devices; who has begun to end counts no more."""
    connections = [Connection("1"), Connection("2"), Connection("3", "bob"), Connection("4", "")]
    rig = Rig(*connections)
    assert await rig.order("disconnect", client="3", **ANN, **DISCONNECT) == {"met": 0}
    assert await rig.order("disconnect", client="3", user="bob", **DISCONNECT) == {"met": 1}
    assert await rig.order("disconnect", **ANN, **{**DISCONNECT, "whitelist": ["2"]}) == {"met": 1}
    assert await rig.order("disconnect", **ANN, **DISCONNECT) == {"met": 1}
    assert await rig.order("disconnect", **ANN, **DISCONNECT) == {"met": 0}
    assert [one.done for one in connections] == [[("end", 3503)]] * 3 + [[]]


@async_test
async def test_a_client_and_a_session_are_one_or_none():
    """Both given, they have to be the same connection's."""
    one, other = Connection("1"), Connection("2")
    one.session_name, other.session_name = "s1", "s2"
    rig = Rig(one, other)
    assert await rig.order("disconnect", client="1", session="s2", **DISCONNECT) == {"met": 0}
    assert await rig.order("disconnect", client="1", session="s1", **DISCONNECT) == {"met": 1}
    assert await rig.order("disconnect", session="s2", **DISCONNECT) == {"met": 1}


@async_test
async def test_an_order_begins_at_once_and_goes_on_in_slices():
    """So many connections in one turn of the loop; who awaits no answer has it done all the same."""
    rig = Rig(*(Connection(str(number)) for number in range(rooms.ACTS_AT_ONCE * 2 + 1)))
    rig.orders.disconnect({**ANN, **DISCONNECT})
    ended = []
    for _ in range(3):
        await asyncio.sleep(0)
        ended.append(sum(not one.open for one in rig.users.everybody()))
    assert ended == [rooms.ACTS_AT_ONCE, rooms.ACTS_AT_ONCE * 2, rooms.ACTS_AT_ONCE * 2 + 1]


@pytest.mark.expects_log
@async_test
async def test_a_fault_in_one_end_keeps_nobody_else_here(caplog):
    """It is logged, and not counted."""
    first, second, third = Connection("1"), Connection("2"), Connection("3")
    second.end_by = lambda close: 1 / 0
    assert await Rig(first, second, third).order("disconnect", **ANN, **DISCONNECT) == {"met": 2}
    assert (first.open, third.open) == (False, False)
    assert "an order failed, client 2" in caplog.text


@async_test
async def test_polls_end_with_what_they_are_told():
    """Refused where their client is not to come back; of those who are meant by a client's id they are none."""
    polls = Poll("ann", "a:x"), Poll("bob", "a:x")
    rig = Rig(polls=polls)
    assert await rig.order("disconnect", client="1", **DISCONNECT) == {"met": 0}
    assert await rig.order("unsubscribe", **ANN, channel="a:y") == {"met": 0}
    assert polls[0].answered is None
    assert await rig.order("unsubscribe", **ANN, channel="a:x") == {"met": 1}
    assert polls[0].answered == "sent back"
    assert await rig.order("disconnect", **ANN, **DISCONNECT) == {"met": 1}
    assert isinstance(polls[0].answered, CommandError)
    assert polls[1].answered is None


@async_test
async def test_channels_are_joined_and_left():
    """Only who holds one leaves it; who can't be had in one is counted apart."""
    inside, outside = Connection("1", "ann", "a:x"), Connection("2")
    outside.join = lambda channel, namespace, done: done(CommandError(rooms.errors.LIMIT_EXCEEDED))
    rig = Rig(inside, outside)
    assert await rig.order("unsubscribe", **ANN, channel="a:x") == {"met": 1}
    assert await rig.order("subscribe", **ANN, channel="a:x") == {"met": 1, "refused": 1}
    assert inside.done == [("leave", "a:x"), ("join", "a:x")]


@async_test
async def test_an_end_is_moved_or_now():
    one = Connection("1")
    rig = Rig(one)
    assert await rig.order("refresh", **ANN, expire_at=99.5) == {"met": 1}
    assert await rig.order("refresh", **ANN, expire_at=None) == {"met": 1}
    assert one.done == [("expire", 99.5), ("end", 3005)]


@async_test
async def test_who_is_on_the_list_goes():
    """Of a token everybody is looked at; a channel token takes its channel along and nothing else."""
    shown, other, granted = Connection("1", jti="j"), Connection("2", "bob"), Connection("3", "cy", "a:x", "a:y")
    granted.grants = {"a:x": Grant("a:x", jti="g"), "a:y": Grant("a:y", jti="h")}
    poll = Poll("ann", "a:x")
    rig = Rig(shown, other, granted, polls=(poll,))
    assert await rig.order("revoke", **Entry(TOKEN, "j").params()) == {"met": 1}
    assert await rig.order("revoke", **Entry(TOKEN, "g").params()) == {"met": 1}
    assert await rig.order("revoke", **Entry(USER, "bob").params()) == {"met": 1}
    assert await rig.order("revoke", **Entry(ISSUED, "ann").params()) == {"met": 1}
    assert await rig.order("revoke", **Entry(USER, "cy", gone=True).params()) == {"met": 0}
    assert [one.done for one in (shown, other, granted)] == [[("end", 3500)], [("end", 3500)], [("lapse", "a:x")]]
    assert isinstance(poll.answered, ProtocolError)
    assert len(rig.revocations.learned) == 5


@async_test
async def test_all_are_judged_when_the_list_has_been_read():
    """Where it is empty nobody is looked at."""
    ann, bob = Connection("1"), Connection("2", "bob")
    rig = Rig(ann, bob)
    rig.orders.judge_all()
    assert not rig.orders._tasks
    rig.revocations.bad.add("bob")
    rig.orders.judge_all()
    await asyncio.gather(*rig.orders._tasks)
    assert (ann.open, bob.open) == (True, False)


@async_test
async def test_a_listing_is_bounded():
    """By connections, by the channels that are named of one, and by bytes; what is left out shows."""
    many = [f"a:{number}" for number in range(rooms.MAX_LISTED + 5)]
    connections = [Connection(f"{number:03}", "ann", *many) for number in range(10)]
    rig = Rig(*reversed(connections))
    asked = {"channel": "", "after": "001", "limit": 3}
    rows, cut = parse_rows(await rig.order("connections", **asked))
    assert [row.client for row in rows] == ["002", "003", "004"] and cut
    assert rows[0].outbox_bytes == 17
    assert (len(rows[0].channels), rows[0].num_channels) == (rooms.MAX_LISTED, rooms.MAX_LISTED + 5)
    rows, cut = parse_rows(await rig.order("connections", **{**asked, "limit": 8}))
    assert len(rows) == 8 and not cut
    rows, _ = parse_rows(await rig.order("connections", **{**asked, "channel": "a:nowhere"}))
    assert rows == []
    rows, _ = parse_rows(await rig.order("connections", **{**asked, "address": "203.0.113.7"}))
    assert len(rows) == 3
    rows, _ = parse_rows(await rig.order("connections", **{**asked, "address": "203.0.113.8"}))
    assert rows == []


@async_test
async def test_what_is_under_way_ends_with_the_worker():
    rig = Rig(*(Connection(str(number)) for number in range(rooms.ACTS_AT_ONCE * 3)))
    rig.orders.disconnect({**ANN, **DISCONNECT})
    await asyncio.sleep(0)
    await rig.orders.close()
    assert sum(not one.open for one in rig.users.everybody()) == rooms.ACTS_AT_ONCE


@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("disconnect", {}),
        ("disconnect", {**DISCONNECT}),
        ("disconnect", {"user": 7, **DISCONNECT}),
        ("disconnect", {**ANN, **DISCONNECT, "code": 1000}),
        ("disconnect", {**ANN, **DISCONNECT, "code": "3503"}),
        ("disconnect", {**ANN, **DISCONNECT, "reason": "é" * 61}),
        ("disconnect", {**ANN, **DISCONNECT, "whitelist": [7]}),
        ("disconnect", {**ANN, **DISCONNECT, "whitelist": "1"}),
        ("unsubscribe", {**ANN, "channel": 7}),
        ("subscribe", {**ANN, "channel": "nowhere:x"}),
        ("subscribe", {"channel": "a:x"}),
        ("refresh", {**ANN, "expire_at": "now"}),
        ("revoke", {"kind": "all", "name": "x"}),
        ("connections", {"limit": 0}),
        ("connections", {"limit": 1001}),
        ("connections", {"limit": 10, "after": 7}),
        ("connections", {"limit": 10, "address": 7}),
    ],
)
def test_what_is_no_order_is_a_value_error(name, params):
    """Whoever reaches Redis can write there; nobody is ended for it."""

    @async_test
    async def run() -> None:
        one = Connection("1")
        with pytest.raises(ValueError):
            Rig(one).orders.answers[name](params)
        assert one.done == []

    run()


ROW = ["1", "ann", "websocket", "", 1.5, [], 0, 0]


@pytest.mark.parametrize(
    "answer",
    [{}, {"connections": [ROW]}, {"connections": [ROW], "cut": 1}, {"connections": [7], "cut": False}]
    + [{"connections": [[*ROW[:at], None, *ROW[at + 1 :]]], "cut": False} for at in range(len(ROW))]
    + [{"connections": [ROW[:-1]], "cut": False}],
)
def test_a_forged_listing_is_a_value_error(answer):
    with pytest.raises(ValueError, match=r"connection"):
        parse_rows(answer)


@pytest.mark.parametrize("answer", [{}, {"met": -1}, {"met": "1"}, {"met": True}, {"met": 1, "refused": 1.5}])
def test_forged_counts_are_a_value_error(answer):
    with pytest.raises(ValueError, match="counts"):
        parse_met(answer)


@async_test
async def test_namespaces_that_are_gone_are_left_by_all_who_are_in_one():
    """And by nobody else; who waits for one of their channels comes again."""
    away, home = Connection("a", "ann", "old:1", "new:1", "old:2"), Connection("b", "bob", "new:1")
    poll, other = Poll("ann", "old:9"), Poll("ann", "new:9")
    rig = Rig(away, home, polls=(poll, other))
    rig.orders.close_namespaces({"old"})
    await asyncio.sleep(0)
    assert away.done == [("leave", "old:1"), ("leave", "old:2")] and home.done == []
    assert (poll.answered, other.answered) == ("sent back", None)
    await rig.orders.close()
