"""Entrance: whose token a request shows, where it comes from, and whether one more may come in."""

from __future__ import annotations

import pytest

from hub import auth
from hub.auth import Authenticator
from hub.entrance import BUSY, NOBODY, Entrance, bearer
from hub.errors import CommandError, ProtocolError
from hub.forwarded import Proxies
from hub.origin import Origins
from tests.openings import GOOD, OPENINGS, status_of
from tests.plane import plane
from tests.support import async_test

SECRET = "a secret for tests, of more than 32 bytes"
NOW = 1_764_000_000.0
TOKEN = auth.make("ann", SECRET, 60, NOW)


def entrance(admits=lambda: True, draining=lambda: False, now=lambda: NOW) -> Entrance:
    return Entrance(Origins(), Authenticator(SECRET, now), admits, draining)


@pytest.mark.parametrize(
    ("headers", "query"),
    [({"Authorization": f"Bearer {TOKEN}"}, ""), ({"Authorization": f"bearer  {TOKEN}"}, "rubbish"), ({}, TOKEN)],
    ids=["header", "before the query", "query"],
)
def test_a_visitor_is_whom_its_token_names(headers, query):
    """The header's token counts before the query's, which stands in the logs of proxies."""
    visitor = entrance().visitor(("203.0.113.7", 4711), headers, query)
    assert (visitor.user, visitor.address, visitor.token) == ("ann", "203.0.113.7", TOKEN)
    assert visitor.claims == auth.Claims("ann", NOW + 60, issued_at=NOW)


def test_who_shows_nothing_is_nobody():
    """Another scheme than Bearer is no token of ours; of a Unix listener's clients no address is known."""
    assert entrance().visitor("", {"Authorization": "Basic dTpw"}) == NOBODY
    assert NOBODY.user == "" and bearer({}) == ""


def test_a_bad_token_is_told():
    """Shown, it must be good: nobody is let in as nobody with it."""
    with pytest.raises(ProtocolError):
        entrance().visitor(None, {}, TOKEN + "x")
    with pytest.raises(CommandError, match="token expired"):
        entrance(now=lambda: NOW + 61).visitor(None, {}, TOKEN)


def test_too_many_and_too_late_are_told():
    """A worker that drains lets nobody in, and counts nobody for it."""
    assert entrance().admit("") is None
    assert entrance(admits=lambda: False).admit("") == BUSY
    assert entrance(draining=lambda: True).admit("") == BUSY


@pytest.mark.parametrize("fast", [True, False])
@async_test
async def test_all_wires_see_the_address_behind_the_proxy(valkey_url, prefix, monkeypatch, fast):
    """The one that the proxy added, and not what the client wrote in front of it."""
    seen = []

    def admit(self, address):
        seen.append(address)

    monkeypatch.setattr(Entrance, "admit", admit)
    async with plane(valkey_url, prefix, fast=fast, proxies=Proxies(["127.0.0.0/8"])) as hub:
        for wire, request in OPENINGS.items():
            seen.clear()
            assert await status_of(hub.port, request(X_Forwarded_For="192.0.2.1, 203.0.113.7, 127.0.0.9")) in GOOD
            assert seen == ["203.0.113.7"], wire
