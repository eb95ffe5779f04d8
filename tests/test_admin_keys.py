"""Who may look into the hub: the key, tokens made with it, and how often one may guess."""

from __future__ import annotations

import time
from math import inf

import pytest

from hub import auth
from hub.admin_keys import MAX_TTL_S, MOST_WRONG, REMEMBERED, WRONG_S, AdminKeys, make
from hub.errors import ProtocolError
from tests.support import FakeClock

KEY = "a key for tests, ключ"
LONG = KEY * 2
NOW = time.time()


def new(key: str = KEY, clock: FakeClock | None = None, now: float = NOW) -> AdminKeys:
    return AdminKeys(key, clock or FakeClock(), lambda: now)


def refused(keys: AdminKeys, shown: object, address: str = "192.0.2.1") -> str:
    with pytest.raises(ProtocolError) as raised:
        keys.judge(shown, address)
    assert raised.value.close.code == 3500
    return raised.value.close.reason


def test_the_key_lets_in_for_as_long_as_one_likes() -> None:
    assert new().judge(KEY, "") == auth.Claims("admin", inf)


@pytest.mark.parametrize("shown", ["", "wrong", KEY + "x", KEY[:-1], None, 7, ["x"], "\udcff", "eyJ.x.y"])
def test_nothing_else_does(shown: object) -> None:
    assert refused(new(), shown) == "wrong key"


@pytest.mark.parametrize("shown", ["", None, "x"])
def test_without_a_key_nobody_is_let_in(shown: object) -> None:
    """An empty key is none, and not one that is known to all."""
    assert "api.key is not set" in refused(new(""), shown)


def test_a_token_lets_in_until_it_ends() -> None:
    """And for no longer than the key that it was made with is this hub's."""
    token = make(KEY, 60, NOW)
    assert new().judge(token, "").expires_at == int(NOW + 60)
    assert refused(new(now=NOW + 61), token) == "wrong key"
    assert refused(new("another key"), token) == "wrong key"
    assert MAX_TTL_S == 3600


def test_a_clients_token_is_none_for_admins_and_the_other_way_round() -> None:
    """Signed with the key itself, or for another audience, it is no admin's; the derived secret signs for no client."""
    assert refused(new(LONG), auth.make("admin", LONG, 60, NOW, aud="hub-admin")) == "wrong key"
    with pytest.raises(ProtocolError):
        auth.Authenticator(LONG, lambda: NOW).verify(make(LONG, 60, NOW))


def test_whoever_guesses_too_often_waits_whatever_it_shows() -> None:
    """The right key, too, or the answer would say which one was right; other addresses are let in."""
    clock = FakeClock()
    keys = new(clock=clock)
    for _ in range(MOST_WRONG):
        assert refused(keys, "wrong") == "wrong key"
    assert "too many" in refused(keys, KEY)
    assert keys.judge(KEY, "192.0.2.2").user == "admin"
    clock.advance(WRONG_S - 1)
    assert "too many" in refused(keys, KEY)
    clock.advance(1)
    assert keys.judge(KEY, "192.0.2.1").user == "admin"


def test_so_many_addresses_are_remembered() -> None:
    keys = new()
    for number in range(REMEMBERED + 50):
        refused(keys, "wrong", str(number))
    assert len(keys._wrong) == REMEMBERED
