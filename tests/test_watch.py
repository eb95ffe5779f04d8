"""Watch lists: what comes in, goes out and changes, while answers are missing and when they are errors."""

from __future__ import annotations

import itertools

from hub.audience import Terms
from hub.channels import Namespace
from hub.errors import BrokerUnavailable
from hub.recovery import Joined
from hub.stream import GIVEN_UP
from hub.watch import WatchList

RULES = Namespace(mode="latest", watch=10)
PAUSED, FAST, SLOW = object(), object(), object()


class Subscriptions:
    """Who is in on which terms; answers come when the test says so, or at once."""

    paused = PAUSED

    def __init__(self) -> None:
        self.inside: dict[str, Terms] = {}
        self.waiting: dict[str, tuple] = {}
        self.at_once = False
        self.known: set[str] = set()
        self.told_of: list[str] = []

    def subscribe(self, channel, namespace, subscriber, done, since, terms) -> None:
        assert namespace is RULES and since is None and terms.pace is PAUSED
        if channel in self.waiting:
            self.waiting.pop(channel)[0](GIVEN_UP)
        self.waiting[channel] = (done, terms)
        if self.at_once:
            self.answer(channel)

    def knows(self, channels, namespace) -> bool:
        return self.known.issuperset(channels)

    def enter(self, channel, namespace, subscriber, terms) -> bytes:
        assert channel not in self.inside and channel not in self.waiting and terms.pace is not PAUSED
        self.inside[channel] = terms
        return b"value of " + channel.encode()

    def answer(self, channel: str, error: Exception | None = None) -> None:
        done, terms = self.waiting.pop(channel)
        if error is None:
            self.inside[channel] = terms
        done(error or Joined())

    def unsubscribe(self, channel, namespace, subscriber, terms) -> None:
        assert self.inside.pop(channel) == terms

    def join_new(self, channel, namespace, subscriber, terms) -> None:
        assert channel not in self.inside
        self.inside[channel] = terms

    def change(self, channel, namespace, subscriber, old, new, told=False) -> None:
        assert self.inside[channel] == old
        self.inside[channel] = new
        assert told == (channel in self.told_of)

    def bundle(self, channels, terms) -> tuple:
        assert all(self.inside[channel] == terms for channel in channels)
        return tuple(channels), terms

    def change_all(self, bundle, namespace, subscriber, new) -> tuple:
        channels, old = bundle
        assert sorted(channels) == sorted(channel for channel, terms in self.inside.items() if terms == old)
        self.inside.update(dict.fromkeys(channels, new))
        return channels, new

    def told(self, channel: str, terms: Terms) -> bytes | None:
        self.told_of.append(channel)
        return None if channel == "t:NONE" else b"value of " + channel.encode()


class Rig:
    def __init__(self) -> None:
        self.subscriptions = Subscriptions()
        self.terms = Terms("view", False, FAST)
        self.list = WatchList(self.subscriptions, "t", RULES, object(), self.terms)
        self.told: list = []

    def add(self, *symbols: str) -> None:
        self.list.add(symbols, self.told.append)

    def answer(self, *symbols: str) -> None:
        for symbol in symbols:
            self.subscriptions.answer(f"t:{symbol}")


def test_all_are_told_at_once_when_the_last_answer_is_there():
    """Until then nothing is sent of any; a symbol without a value is in as well."""
    rig = Rig()
    rig.add("A", "NONE", "A")
    rig.answer("NONE")
    assert rig.told == [] and rig.subscriptions.inside["t:NONE"].pace is PAUSED
    rig.answer("A")
    assert rig.told == [[b"value of t:A"]] and len(rig.list) == 2
    assert rig.subscriptions.inside == {"t:A": rig.terms, "t:NONE": rig.terms}


def test_nothing_new_is_answered_at_once():
    """An empty list, and one of which all are there."""
    rig = Rig()
    rig.add()
    rig.subscriptions.at_once = True
    rig.add("A")
    rig.add("A")
    assert rig.told == [[], [b"value of t:A"], []]


def test_an_error_takes_back_what_was_to_be_added_and_nothing_else():
    """Also those that were in already of the same call."""
    rig, error = Rig(), BrokerUnavailable("away")
    rig.add("OLD")
    rig.answer("OLD")
    rig.add("A", "B")
    rig.answer("A")
    rig.subscriptions.answer("t:B", error)
    assert rig.told == [[b"value of t:OLD"], error]
    assert rig.list.symbols == ("OLD",) and rig.subscriptions.inside == {"t:OLD": rig.terms}


def test_what_is_removed_while_it_is_asked_is_left_when_the_answer_comes():
    """The others of the call come in."""
    rig = Rig()
    rig.add("A", "B")
    rig.list.remove(["A", "not there"])
    rig.answer("A", "B")
    assert rig.told == [[b"value of t:B"]] and rig.subscriptions.inside == {"t:B": rig.terms}
    rig.list.remove(["B"])
    assert rig.subscriptions.inside == {} and len(rig.list) == 0


def test_what_is_removed_and_added_again_while_it_is_asked_is_in_once():
    """The call that was overtaken says so, and takes nothing of the other one away."""
    rig = Rig()
    rig.add("A")
    rig.list.remove(["A"])
    rig.add("A")
    assert rig.told == [GIVEN_UP]
    rig.answer("A")
    assert rig.told[1] == [b"value of t:A"] and rig.subscriptions.inside == {"t:A": rig.terms}


def test_one_appears_by_itself_on_the_terms_of_the_list():
    """Without a question, and it goes like all others."""
    rig = Rig()
    rig.list.appear("A")
    assert rig.subscriptions.inside == {"t:A": rig.terms} and rig.list.symbols == ("A",) and rig.told == []
    rig.list.remove(["A"])
    assert rig.subscriptions.inside == {}


def test_a_change_takes_away_and_adds():
    """What is named in it holds from then on."""
    rig = Rig()
    rig.subscriptions.at_once = True
    rig.add("A", "B")
    rig.list.alter(["C"], ["A", "none"], rig.told.append)
    assert rig.told[1] == [b"value of t:C"] and rig.list.asked == ("B", "C")
    assert set(rig.subscriptions.inside) == {"t:B", "t:C"}


def test_terms_change_for_all_also_for_those_on_their_way():
    """What is at the entrance goes in on the new ones."""
    rig = Rig()
    rig.add("A")
    rig.answer("A")
    rig.subscriptions.told_of.clear()
    rig.add("B")
    other = Terms("view", False, SLOW)
    rig.list.change(other)
    rig.answer("B")
    assert rig.subscriptions.inside == {"t:A": other, "t:B": other}


def test_the_end_leaves_all_and_those_on_their_way_when_they_come():
    """Nobody is forgotten inside."""
    rig = Rig()
    rig.add("A")
    rig.answer("A")
    rig.add("B")
    rig.list.close()
    assert rig.subscriptions.inside == {}
    rig.answer("B")
    assert rig.subscriptions.inside == {} and len(rig.list) == 0


def test_what_this_worker_knows_comes_in_at_once_and_redis_is_not_asked():
    """All of a call or none: its values come together."""
    rig = Rig()
    rig.subscriptions.known = {"t:A", "t:B"}
    rig.add("A", "B")
    assert rig.told == [[b"value of t:A", b"value of t:B"]] and rig.subscriptions.waiting == {}
    assert rig.subscriptions.inside == {"t:A": rig.terms, "t:B": rig.terms} and rig.list.symbols == ("A", "B")
    rig.list.remove(["A"])
    rig.add("A", "C")
    assert sorted(rig.subscriptions.waiting) == ["t:A", "t:C"] and len(rig.told) == 1


def test_what_is_known_meanwhile_waits_for_what_is_on_its_way():
    """The same symbol, asked for before and taken away again: it would be in twice. Also behind an error it goes on."""
    for error in (None, BrokerUnavailable("away")):
        rig = Rig()
        rig.add("A")
        rig.list.remove(["A"])
        rig.subscriptions.known = {"t:A", "t:B"}
        rig.add("B")
        assert rig.told == [] and "t:B" not in rig.subscriptions.inside
        rig.subscriptions.answer("t:A", error)
        rig.answer("B")
        rig.add("A")
        assert rig.told[-1] == [b"value of t:A"] and sorted(rig.subscriptions.inside) == ["t:A", "t:B"]


def test_who_is_paused_comes_in_by_the_entrance():
    """Its terms are those of the entrance, so it is counted once there."""
    rig = Rig()
    rig.list.change(Terms("view", False, PAUSED))
    rig.subscriptions.known = {"t:A"}
    rig.add("A")
    assert list(rig.subscriptions.waiting) == ["t:A"]


def test_terms_change_again_and_again_whatever_came_and_went_between():
    """Those that are in, and no others."""
    rig = Rig()
    others = itertools.cycle([Terms("view", False, SLOW), rig.terms])
    rig.subscriptions.known = {"t:A", "t:B"}
    for step in (
        lambda: rig.add("A", "B"),
        lambda: None,
        lambda: rig.list.remove(["A"]),
        lambda: rig.add("C"),
        lambda: rig.answer("C"),
        lambda: rig.add("A"),
    ):
        step()
        rig.list.change(other := next(others))
        assert {channel: terms for channel, terms in rig.subscriptions.inside.items() if terms.pace is not PAUSED} == {
            f"t:{symbol}": other for symbol in rig.list.symbols if f"t:{symbol}" not in rig.subscriptions.waiting
        }
