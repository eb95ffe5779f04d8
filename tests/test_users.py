"""Who is connected, by user."""

from __future__ import annotations

from math import inf

from hub.auth import Claims
from hub.users import Users


class Session:
    session_name = ""

    def __init__(self, user: str, *channels: str, named: str | None = None) -> None:
        self.client = f"{id(self):x}"
        self.user = user
        self.claims = Claims(user if named is None else named, inf)
        self._channels = channels

    def holds(self, channel: str) -> bool:
        return channel in self._channels


def entered(*sessions: Session) -> Users:
    users = Users()
    for session in sessions:
        users.enter(session)
    return users


def test_users_are_counted_by_name_and_the_anonymous_are_not():
    """Two connections of one user are one user; the count follows the end of each."""
    nobody, first, second, other = (Session(user) for user in ("", "a", "a", "b"))
    users = entered(nobody, first, second, other)
    assert (len(users), users.sessions) == (2, 4)
    users.leave(first)
    assert (len(users), users.sessions) == (2, 3)
    users.leave(second)
    users.leave(nobody)
    assert (len(users), users.sessions) == (1, 1)


def test_each_change_of_a_user_is_told():
    """How many there are now, and of whom has come: what can be closed; the anonymous are as many as like."""
    told = []
    users, first, second = Users(lambda *change: told.append(change)), Session("a"), Session("a")
    users.enter(Session(""), 0)
    users.enter(first, 1)
    users.enter(second, 2)
    assert users.counts() == {"a": 2} and users.count("") == users.count("b") == 0
    users.leave(first)
    users.leave(second)
    assert told == [("a", 1, 1), ("a", 2, 2), ("a", 1, None), ("a", 0, None)]
    assert users.counts() == {}


def test_a_users_sessions_are_found():
    """All of them, however many, and none of another user or of those who have left."""
    sessions = [Session("a") for _ in range(3)]
    users = entered(*sessions, Session("b"), Session(""))
    assert set(users.of("a")) == set(sessions)
    users.leave(sessions[0])
    assert set(users.of("a")) == set(sessions[1:])
    users.leave(sessions[1])
    users.leave(sessions[2])
    assert list(users.of("a")) == []
    assert list(users.of("nobody")) == []


def test_the_anonymous_are_no_users_devices():
    """Nothing that is for the user '' reaches all who have no name."""
    users = entered(Session(""))
    assert list(users.of("")) == []


def test_sessions_that_hold_a_channel_can_be_left_out():
    """They get what is meant on that channel."""
    inside, outside, single = Session("a", "inbox:#a"), Session("a"), Session("b", "inbox:#b")
    users = entered(inside, outside, single)
    assert list(users.of("a", "inbox:#a")) == [outside]
    assert list(users.of("b", "inbox:#b")) == []


def test_everybody_is_everybody():
    """Named or not, alone or several of one user; each once."""
    sessions = [Session(user) for user in ("", "", "a", "a", "b")]
    sessions[0].session_name = "also found by this"
    everybody = list(entered(*sessions).everybody())
    assert len(everybody) == 5
    assert set(everybody) == set(sessions)


def test_a_session_is_found_by_its_id_and_its_name():
    """As long as it is here; the name is of the HTTP emulation alone."""
    one, other = Session("a"), Session("")
    other.session_name = "3f9c.2.17.5d1e"
    users = entered(one, other)
    names = (one.client, other.client, other.session_name)
    assert [users.find(name) for name in (*names, "")] == [one, other, other, None]
    users.leave(one)
    users.leave(other)
    assert [users.find(name) for name in names] == [None] * 3


def test_who_goes_by_another_name_is_meant_by_both():
    """The one of its token, and the application's; a token of nobody names nobody."""
    plain, renamed, other = Session("ann"), Session("member", named="ann"), Session("bob", named="")
    users = entered(plain, renamed, other)
    assert [set(users.meant(user)) for user in ("ann", "member", "bob")] == [{plain, renamed}, {renamed}, {other}]
    assert list(users.meant("")) == []
    for session in (renamed, plain, other):
        users.leave(session)
    assert list(users.meant("ann")) == [] and not users._by_token
