"""Membership: what a client asks, what it holds of it, and what is kept of it, without Redis.

What is answered over a real socket stands in transports/test_websocket_market.py, the commands' codes in test_session.
"""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from hub import errors, membership, wants
from hub.audience import Terms
from hub.channels import Namespace
from hub.errors import BrokerUnavailable, CommandError, HubError
from hub.membership import Attempt, Held
from hub.protocol import Command
from hub.recovery import Joined
from hub.sections import ClientSettings
from hub.wants import EVERY, PLAIN, Wants

NAMESPACES = {
    "plain": Namespace(subscribe="anyone"),
    "t": Namespace(mode="latest", subscribe="anyone", watch=3),
    "slow": Namespace(mode="latest", subscribe="anyone", watch=3, max_hz=2),
    "short": Namespace(mode="latest", subscribe="anyone", resume_s=0),
}
WATCH = "t:$watch"


class Subscriptions:
    """Who is in on which terms; answers come at once, or when the test says so."""

    paused = "paused"

    def __init__(self) -> None:
        self.inside: dict[str, Terms | None] = {}
        self.waiting: list[tuple] = []
        self.at_once = True

    def subscribe(self, channel, namespace, subscriber, done, since=None, terms=None) -> None:
        self.waiting.append((channel, terms, done))
        if self.at_once:
            self.answer()

    def answer(self, error: HubError | None = None) -> None:
        channel, terms, done = self.waiting.pop(0)
        if error is None:
            assert channel not in self.inside
            self.inside[channel] = terms
        done(error or Joined())

    def knows(self, channels, namespace) -> bool:
        return False

    def unsubscribe(self, channel, namespace, subscriber, terms=None) -> None:
        assert self.inside.pop(channel) == terms

    def terms(self, wire, wants, shown="") -> Terms:
        return Terms((shown, wants.fields, wants.marks), wants.raw, wants.hz)

    def change(self, channel, namespace, subscriber, old, new, told=False) -> None:
        assert self.inside[channel] == old
        self.inside[channel] = new

    def bundle(self, channels, terms) -> tuple:
        return tuple(channels), terms

    def change_all(self, bundle, namespace, subscriber, new) -> tuple:
        channels, old = bundle
        for channel in channels:
            self.change(channel, namespace, subscriber, old, new)
        return channels, new

    def told(self, channel, terms) -> bytes | None:
        return None


class Remembered:
    """What is kept by name; what is asked is answered when the test says so."""

    def __init__(self) -> None:
        self.kept: dict[str, tuple[bytes, float]] = {}
        self.later: dict[str, tuple] = {}
        self.asked: list[tuple] = []

    def save(self, name, text, seconds) -> None:
        self.later.pop(name, None)
        if name:
            self.kept[name] = (text, seconds)

    def save_later(self, name, text, seconds) -> None:
        self.later[name] = (text, seconds)

    def save_now(self, name) -> None:
        if name in self.later:
            text, seconds = self.later[name]
            self.save(name, text(), seconds)

    def recall(self, name, found) -> None:
        self.asked.append((name, found))


class Presence:
    def __init__(self) -> None:
        self.inside: list[str] = []

    def enter(self, channel, namespace, info, subscriber, watch) -> None:
        self.inside.append(channel)

    def exit(self, channel, client, hold) -> None:
        self.inside.remove(channel)


class Member:
    """A client that may do all, and writes down what it is told."""

    def __init__(self, user: str = "ann", max_hz: float = EVERY) -> None:
        self.client, self.user, self.max_hz = "client-1", user, max_hz
        self.entries: dict = {}
        self.transport = SimpleNamespace(wire="wire")
        self.services = SimpleNamespace(
            client=ClientSettings(),
            subscriptions=Subscriptions(),
            remembered=Remembered(),
            presence=Presence(),
            redelivery=None,
        )
        self.pending = 0
        self.said: list = []
        self.resubscribed: list = []

    def resolve(self, command):
        channel = command.params["channel"]
        return channel, NAMESPACES[channel.partition(":")[0]]

    def may_subscribe(self, command, channel, namespace):
        return None

    def may_watch(self, channel, namespace, symbols) -> None:
        pass

    def ttl_s(self, channel):
        return None

    def begin(self) -> None:
        self.pending += 1

    def end(self) -> None:
        self.pending -= 1

    def reply(self, command_id, method, result=None) -> None:
        self.said.append((command_id, result))

    def fail(self, command_id, error) -> None:
        self.said.append((command_id, error.reply.code if isinstance(error, CommandError) else type(error)))

    def on_subscribed(self, *told) -> None:
        self.subscribed = told

    def on_left(self, channel) -> None:
        pass

    def resubscribe(self, channel) -> None:
        self.resubscribed.append(channel)

    def subscribe(self, channel: str, recover: bool = False, **data: object) -> None:
        params: dict = {"channel": channel, "recover": recover, "epoch": "client-0", "offset": 0}
        membership.subscribe(self, Command(7, "subscribe", params | ({"data": data} if data else {})))

    def kept(self) -> list[tuple[Wants, float]]:
        """What is kept of it, or will be soon, whatever the name."""
        for name in list(self.services.remembered.later):
            self.services.remembered.save_now(name)
        return [
            (wants.unpack(text, NAMESPACES["t"], True, PLAIN), seconds)
            for text, seconds in self.services.remembered.kept.values()
        ]


@pytest.mark.parametrize("channel", ["plain:a", "t:A"])
def test_who_asks_for_nothing_shares_the_bytes_of_all_and_reads_no_wishes(channel, monkeypatch):
    """Its rules are all that is kept of it: in a storm this is the way of everybody."""
    monkeypatch.setattr(wants, "describe", None)
    if channel == "plain:a":
        monkeypatch.setattr(wants, "capped", None)
    member = Member()
    member.subscribe(channel)
    assert member.entries[channel] is NAMESPACES[channel.partition(":")[0]]
    assert member.services.subscriptions.inside == {channel: None} and member.pending == 0


def test_all_who_hold_a_channel_keep_one_text_of_its_name():
    """Each client's message brings its own, which would be held for as long as the channel is."""
    names = []
    for member in (Member(), Member()):
        member.subscribe("".join(["plain", ":a"]))
        names += member.entries
    assert names[0] == "plain:a" and names[0] is names[1]


def test_who_only_says_who_it_was_shares_them_too():
    """But it is told what it was granted, and what it changes is kept."""
    member = Member("")
    member.subscribe("t:A", client="client-0")
    [(_, found)] = member.services.remembered.asked
    found(None)
    assert member.services.subscriptions.inside == {"t:A": None}
    assert member.said[0][1]["data"] == {"mode": "merge"}
    assert member.entries["t:A"].began == Wants(client="client-0")


def test_who_is_capped_has_wishes_that_it_did_not_have():
    """By the namespace, or by its token; who asked for nothing is told as well."""
    for member, channel, hz in ((Member(), "slow:A", 2), (Member(max_hz=1.0), "t:A", 1)):
        member.subscribe(channel)
        assert member.said[0][1]["data"] == {"mode": "merge", "hz": hz}
        assert member.services.subscriptions.inside[channel].pace == hz
        assert member.entries[channel].began is PLAIN
        with pytest.raises(CommandError) as caught:
            member.subscribe(channel + "2", mode="raw")
        assert caught.value.reply is errors.PERMISSION_DENIED
        assert list(member.entries) == [channel] and member.pending == 0


def come_back(member: Member, channel: str, text: bytes | None, **data: object) -> None:
    """Subscribe as one who was there before, and have Redis say what is kept."""
    member.subscribe(channel, recover=True, **data)
    [(_, found)] = member.services.remembered.asked
    assert member.pending == 1 and isinstance(member.entries[channel], Attempt)
    found(text)
    assert member.pending == 0


def test_what_was_changed_holds_again_and_is_kept_on():
    """Under the name of the client that it is now."""
    member = Member()
    come_back(member, "t:A", wants.pack(Wants(hz=5.0, marks=True)), marks=True)
    held = member.entries["t:A"]
    assert held.wants == Wants(hz=5.0, marks=True) and held.began == Wants(marks=True) and held.changed
    assert member.kept() == [(Wants(hz=5.0, marks=True), membership.KEPT_S)]


def test_a_rate_that_was_changed_holds_again_for_who_asked_for_nothing():
    """By its token; nobody's is looked for where there is none, nor where it does not say that it comes back."""
    member = Member()
    come_back(member, "t:A", wants.pack(Wants(hz=5.0)))
    assert member.entries["t:A"].wants.hz == 5 and member.said[0][1]["data"] == {"mode": "merge", "hz": 5.0}
    member = Member()
    come_back(member, "t:A", None)
    assert member.services.remembered.asked[0][0] == wants.digest("ann", "client-0", "t:A", PLAIN)
    assert member.said[0][1]["epoch"] == "client-1"
    assert member.entries["t:A"] is NAMESPACES["t"] and member.services.subscriptions.inside == {"t:A": None}
    for member, recover in ((Member(""), True), (Member(), False)):
        member.subscribe("t:A", recover=recover)
        assert member.services.remembered.asked == [] and member.entries["t:A"] is NAMESPACES["t"]


def test_a_token_that_allows_less_meanwhile_fails_nobody_in_the_answer_of_redis():
    """What it asked for was granted when it asked; it has to ask anew, and is told then."""
    member = Member()
    member.subscribe("t:A", recover=True, mode="raw")
    [(_, found)] = member.services.remembered.asked
    member.max_hz = 1.0
    found(None)
    assert member.said[0][1]["data"] == {"mode": "raw"} and member.pending == 0
    assert member.resubscribed == ["t:A"]


@pytest.mark.parametrize("text", [None, b"", b"{", wants.pack(Wants(raw=True)), b'{"mode":"raw","hz":5}'])
@pytest.mark.parametrize("channel", ["slow:A", "slow:$watch"])
def test_what_is_kept_and_not_to_be_had_any_more_is_passed_over(channel, text):
    """The namespace caps now, or somebody wrote there: it has what it asks for now, and nothing raises."""
    member = Member()
    come_back(member, channel, text, hz=1)
    held = member.entries[channel]
    assert held.wants == held.began and held.wants.hz == 1 and not held.changed
    assert member.said[0][1]["data"] == {"mode": "merge", "hz": 1.0} and member.kept() == []


def test_who_goes_while_it_is_asked_what_is_kept_is_answered_and_not_let_in():
    """Also where it asks for the same again meanwhile: that is another attempt."""
    member = Member()
    for again in (False, True):
        member.subscribe("t:A", recover=True, hz=5)
        membership.leave(member, "t:A")
        if again:
            member.subscribe("t:A", hz=1)
        _, found = member.services.remembered.asked.pop()
        found(wants.pack(Wants(hz=2.0)))
        assert (7, errors.BAD_REQUEST.code) in member.said
        assert sorted(member.services.subscriptions.inside) == (["t:A"] if again else [])
        assert member.services.presence.inside == sorted(member.services.subscriptions.inside)
    assert member.entries["t:A"].wants.hz == 1 and member.pending == 0


@pytest.mark.parametrize("channel", ["plain:a", "t:A", WATCH])
@pytest.mark.parametrize("leave", [membership.leave_all, lambda member: membership.leave(member, *member.entries)])
def test_who_goes_while_redis_is_asked_is_out_when_the_answer_comes(channel, leave):
    """In no audience, present nowhere, and its command has its answer."""
    member = Member()
    member.services.subscriptions.at_once = False
    member.subscribe(channel, **({"symbols": ["A", "B"]} if channel == WATCH else {}))
    leave(member)
    assert member.entries == {} and member.said == []
    while member.services.subscriptions.waiting:
        member.services.subscriptions.answer()
    assert member.said == [(7, errors.BAD_REQUEST.code)] and member.pending == 0
    assert member.services.subscriptions.inside == {} and member.services.presence.inside == []


@pytest.mark.parametrize("channel", ["plain:a", "t:A", WATCH])
def test_what_redis_does_not_confirm_is_not_held(channel):
    """It may ask again at once."""
    member = Member()
    member.services.subscriptions.at_once = False
    data = {"symbols": ["A"]} if channel == WATCH else {}
    member.subscribe(channel, **data)
    member.services.subscriptions.answer(BrokerUnavailable("away"))
    assert member.entries == {} and member.said == [(7, BrokerUnavailable)] and member.pending == 0
    member.subscribe(channel, **data)
    member.services.subscriptions.answer()
    assert not isinstance(member.entries[channel], Attempt) and member.services.presence.inside == [channel]


def test_a_rate_may_be_had_for_what_is_held_plainly():
    """It is kept for when it comes back, and what it takes is left on the new terms."""
    member = Member()
    member.subscribe("t:A")
    assert membership.change_rate(member, "t:A", 5) == 5
    assert member.services.subscriptions.inside["t:A"].pace == 5
    assert [kept.hz for kept, _ in member.kept()] == [5]
    membership.leave(member, "t:A")
    assert member.services.subscriptions.inside == {} and member.entries == {}


@pytest.mark.parametrize("channel", ["plain:a", "t:B", "t:A"])
def test_a_rate_is_of_what_is_held_and_has_newest_values(channel):
    """Not of what is still being asked, nor of what is not there."""
    member = Member()
    member.subscribe("plain:a")
    member.services.subscriptions.at_once = False
    member.subscribe("t:A")
    with pytest.raises(CommandError) as caught:
        membership.change_rate(member, channel, 5)
    assert caught.value.reply is errors.BAD_REQUEST and member.kept() == []


def test_a_watch_list_has_one_rate_for_all_its_symbols():
    """And those that come later have it too."""
    member = Member()
    member.subscribe(WATCH, symbols=["A", "B"])
    membership.change_rate(member, WATCH, 5)
    watch_list = membership.watch_list_of(member, WATCH)
    watch_list.add(["C"], lambda outcome: membership.list_changed(member, WATCH))
    watch_list.remove(["A"])
    membership.list_changed(member, WATCH)
    assert {channel: terms.pace for channel, terms in member.services.subscriptions.inside.items()} == {
        "t:B": 5,
        "t:C": 5,
    }
    assert member.kept() == [(Wants(hz=5, symbols=("B", "C")), membership.KEPT_S)]


@pytest.mark.parametrize("channel", ["t:A", "plain:a", WATCH, "t:B"])
def test_only_a_watch_list_that_is_held_is_one(channel):
    """Its name alone does not do, nor does a list that is still being asked for."""
    member = Member()
    member.subscribe("t:A", hz=5)
    member.subscribe("plain:a")
    member.services.subscriptions.at_once = False
    member.subscribe(WATCH, symbols=["A"])
    with pytest.raises(CommandError) as caught:
        membership.watch_list_of(member, channel)
    assert caught.value.reply is errors.BAD_REQUEST
    membership.list_changed(member, channel)
    assert member.kept() == []


def test_who_goes_has_kept_what_it_changed_for_so_long_as_the_namespace_says():
    """Of a channel that it changed nothing of, nothing is; nor of one that it left by its own wish."""
    member = Member()
    for channel in ("t:A", "t:B", "t:C"):
        member.subscribe(channel, marks=True)
    for channel in ("t:A", "t:C"):
        membership.change_rate(member, channel, 5)
    membership.leave(member, "t:C")
    member.services.remembered.kept.clear()
    membership.leave_all(member)
    # Under its own name, and under its user's.
    assert member.kept() == [(Wants(hz=5, marks=True), NAMESPACES["t"].resume_s)] * 2
    assert member.services.subscriptions.inside == {} and member.services.presence.inside == []


def test_who_leaves_a_list_by_its_own_wish_has_kept_it_as_it_was():
    """What was to be saved soon is saved before the list is empty."""
    member = Member()
    member.subscribe(WATCH, symbols=["A", "B"])
    membership.change_rate(member, WATCH, 5)
    assert member.services.remembered.kept == {}
    membership.leave(member, WATCH)
    as_it_was = Wants(hz=5, symbols=("A", "B"))
    assert member.kept() == [(as_it_was, membership.KEPT_S), (as_it_was, NAMESPACES["t"].resume_s)]


def test_where_nothing_is_kept_redis_is_not_asked():
    """resume_s = 0; and of somebody who says neither by a token nor by an id who it is."""
    member = Member()
    member.subscribe("short:A", recover=True, hz=5)
    membership.change_rate(member, "short:A", 1)
    anybody = Member("")
    anybody.subscribe("t:A", recover=True, hz=5)
    for one in (member, anybody):
        assert one.services.remembered.asked == [] and all(isinstance(held, Held) for held in one.entries.values())
        assert "epoch" not in one.said[0][1]
    membership.leave_all(member)
    assert member.kept() == [] and member.services.remembered.kept == {}


def test_who_is_displaced_holds_it_no_more():
    """False where it did not: such as one that is still being asked for, whose answer counts for nothing then."""
    member = Member()
    member.subscribe("plain:a")
    assert membership.displaced(member, "plain:a") and not membership.displaced(member, "plain:a")
    assert member.services.presence.inside == []
    member.services.subscriptions.inside.clear()
    member.services.subscriptions.at_once = False
    member.subscribe("plain:a")
    assert not membership.displaced(member, "plain:a")
    member.services.subscriptions.answer()
    assert member.services.subscriptions.inside == {} and member.said[-1] == (7, errors.BAD_REQUEST.code)


def test_the_servers_own_joins_answer_no_command():
    """As an application has them: the caller is told, once, and nothing is counted as waiting."""
    member, told = Member(), []
    member.services.subscriptions.at_once = False
    membership.join(member, "plain:a", NAMESPACES["plain"], told.append)
    assert told == [] and member.pending == 0
    member.services.subscriptions.answer()
    assert told == [Joined()] and member.entries == {"plain:a": NAMESPACES["plain"]}
    membership.join(member, "plain:b", NAMESPACES["plain"], told.append)
    membership.leave(member, "plain:b")
    member.services.subscriptions.answer()
    assert isinstance(told[1], CommandError) and list(member.services.subscriptions.inside) == ["plain:a"]
    assert member.said == []
