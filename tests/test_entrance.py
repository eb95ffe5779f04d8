"""Entrance: whose token a request shows, where it comes from, and whether one more may come in."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tornado.httputil import HTTPHeaders, HTTPServerRequest, RequestStartLine

from hub import auth, errors
from hub.auth import Authenticator, Claims
from hub.entrance import BUSY, NOBODY, Entrance, bearer, query_token, refusal
from hub.errors import BrokerUnavailable, CommandError, ProtocolError
from hub.forwarded import Proxies
from hub.origin import Origins
from tests.openings import GOOD, OPENINGS, status_of
from tests.plane import plane
from tests.support import async_test

SECRET = "a secret for tests, of more than 32 bytes"
NOW = 1_764_000_000.0
TOKEN = auth.make("ann", SECRET, 60, NOW)
ANN = Claims("ann", NOW + 60, issued_at=NOW)
BOB = Claims("bob", NOW + 60)
PEER = ("203.0.113.7", 4711)
PAGE = {"origin": "https://app.example", "host": "hub.example"}


class Tickets:
    async def redeem(self, ticket: str) -> Claims:
        if ticket != "good":
            raise ProtocolError(errors.CLOSE_INVALID_TOKEN)
        return BOB


def entrance(admits=lambda: True, draining=lambda: False, now=lambda: NOW, origins=(), **options) -> Entrance:
    return Entrance(Origins(origins), Authenticator(SECRET, now), admits, draining, **options)


@pytest.mark.parametrize("headers", [{"authorization": f"Bearer {TOKEN}"}, {"authorization": f"bearer  {TOKEN} "}, {}])
@async_test
async def test_a_visitor_is_whom_its_token_names(headers):
    """The header's token counts before the query's, which stands in the logs of proxies, and before a ticket."""
    rest = ("rubbish", "rubbish") if headers else (TOKEN, "rubbish")
    one = entrance(tickets=Tickets())
    assert one.visitor("203.0.113.7", headers, rest[0]) == await one.visit(PEER, headers, *rest)
    visitor = await one.visit(PEER, HTTPHeaders(headers), *rest)
    assert visitor == ("203.0.113.7", TOKEN, ANN) and visitor.user == "ann"


@async_test
async def test_who_shows_nothing_is_nobody():
    """Another scheme than Bearer is no token of ours; of a Unix listener's clients no address is known."""
    assert await entrance().visit("", {"authorization": "Basic dTpw"}) == NOBODY
    assert NOBODY.user == "" and bearer({}) == "" and bearer({"authorization": "Bearer"}) == ""


@async_test
async def test_a_bad_token_is_told():
    """Shown, it must be good: nobody is let in as nobody with it."""
    one, late = entrance(), entrance(now=lambda: NOW + 61)
    with pytest.raises(ProtocolError):
        one.visitor("", {}, TOKEN + "x")
    with pytest.raises(CommandError, match="token expired"):
        await late.visit(None, {}, TOKEN)
    one.visitor("", {}, TOKEN)
    assert one.quotas.refusals.counts["tokens"] == late.quotas.refusals.counts["tokens"] == 1


@async_test
async def test_a_ticket_speaks_for_its_client():
    """What was shown is kept for the requests that follow; a bad one is told; where there are none, all are bad."""
    assert await entrance(tickets=Tickets()).visit(PEER, {}, "", "good") == ("203.0.113.7", "good", BOB)
    for one in (entrance(tickets=Tickets()), entrance()):
        with pytest.raises(ProtocolError):
            await one.visit(PEER, {}, "", "bad")
        assert one.quotas.refusals.counts["tokens"] == 1


@async_test
async def test_a_ticket_that_cannot_be_looked_up_is_nobodys_fault():
    """Redis is away: it may be as good as any."""

    class Away:
        async def redeem(self, ticket: str) -> Claims:
            raise BrokerUnavailable("away")

    one = entrance(tickets=Away())
    with pytest.raises(BrokerUnavailable):
        await one.visit(PEER, {}, "", "good")
    assert one.quotas.refusals.counts["tokens"] == 0


COOKIE = {"cookie": f"a=1; hub={TOKEN};b=2"}


@pytest.mark.parametrize(
    ("headers", "user"),
    [
        ({**PAGE, **COOKIE}, "ann"),
        ({**COOKIE, "origin": "https://hub.example", "host": "hub.example"}, "ann"),
        ({**COOKIE, "host": "hub.example", "sec-fetch-site": "same-origin"}, "ann"),
        ({**PAGE, "cookie": f'hub="{TOKEN}"'}, "ann"),
        ({**PAGE, "cookie": f"hub={TOKEN}; hub=x"}, "ann"),
        ({**COOKIE, "origin": "https://evil.example", "host": "hub.example"}, ""),
        ({**COOKIE, "origin": "https://evil.example", "sec-fetch-site": "same-origin", "host": "hub.example"}, ""),
        ({**COOKIE, "origin": "null", "host": "hub.example"}, ""),
        ({**COOKIE, "host": "hub.example"}, ""),
        ({**COOKIE, "host": "hub.example", "sec-fetch-site": "cross-site"}, ""),
        ({**COOKIE, "host": "hub.example", "sec-fetch-site": "same-site"}, ""),
        ({**COOKIE, "host": "hub.example", "sec-fetch-site": "none"}, ""),
        ({**PAGE, "cookie": "hubs=x; xhub=x; hub"}, ""),
    ],
    ids=range(13),
)
def test_a_cookie_counts_for_pages_of_known_origins_only(headers, user):
    """From another page's request, or one that does not say whose it is, it is as if there were none."""
    one = entrance(origins=["https://app.example"], cookie="hub")
    assert one.visitor("", headers).user == one.visitor("", HTTPHeaders(headers)).user == user
    assert entrance(origins=["https://app.example"]).visitor("", headers).user == "", "no cookie counts by default"


def test_a_cookie_is_the_last_that_is_asked():
    """A bad one is refused all the same."""
    one = entrance(origins=["https://app.example"], cookie="hub")
    assert one.visitor("", {**PAGE, "cookie": "hub=x"}, TOKEN).user == "ann"
    with pytest.raises(ProtocolError):
        one.visitor("", {**PAGE, "cookie": "hub=x"})


@async_test
async def test_tokens_of_the_application_are_not_judged():
    """Nor is any of them the hub's to keep, or to ask for at each request."""
    one = entrance(judges=False, tickets=Tickets(), cookie="hub", origins=["https://app.example"])
    headers = {**PAGE, "authorization": "Bearer x", "cookie": "hub=x"}
    assert await one.visit(PEER, headers, "x", "x") == ("203.0.113.7", "", None)
    assert one.shown(headers, "x", "x") == ""


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


@pytest.mark.parametrize(
    ("error", "status", "text"),
    [
        (ProtocolError(errors.CLOSE_INVALID_TOKEN, "signed with another key"), 401, "invalid token"),
        (ProtocolError(errors.CLOSE_PERMISSION_DENIED, "blocked"), 403, "permission denied"),
        (CommandError(errors.TOKEN_EXPIRED), 401, "token expired"),
        (CommandError(auth.NOT_YET), 503, "try again"),
        (BrokerUnavailable("10.0.0.7:6379"), 503, "try again"),
    ],
    ids=range(5),
)
def test_a_refused_token_has_its_status(error, status, text):
    """And words that say nothing of why, nor of where Redis is."""
    found = refusal(error)
    assert found.status == status and found.text.endswith(text) and "key" not in found.text
    assert list(found.headers) == {401: ["WWW-Authenticate"], 403: [], 503: ["Retry-After"]}[status]


@pytest.mark.parametrize(
    ("query", "token"),
    [
        ("", ""),
        ("a=1&b", ""),
        ("token=x.y-z_1", "x.y-z_1"),
        ("a=1&token=x&b=2", "x"),
        ("token=", ""),
        ("tokens=x&xtoken=y", ""),
        ("token=x&token=y", None),
        ("ticket=x", None),
        ("token=x&ticket=y", None),
        ("%74oken=x", None),
        ("token=x%41", None),
        ("a=1;token=x", None),
        ("a=+1&token=x", None),
    ],
)
def test_a_plain_query_is_read_in_place(query, token):
    """What is not plain is Tornado's to read."""
    assert query_token(query) == token


@given(st.lists(st.sampled_from(["token", "ticket", "=", "&", "x", "%74", "+", ";", "?", "/", "#", "a"])).map("".join))
def test_the_two_ways_in_read_the_same_token(query):
    """Whatever the fast one takes from a query, Tornado would take as well."""
    found = query_token(query)
    if found is not None:
        line = RequestStartLine("GET", f"/?{query}", "HTTP/1.1")
        arguments = HTTPServerRequest(start_line=line, headers=HTTPHeaders({"Host": "h"})).query_arguments
        assert [found.encode()] == arguments.get("token", [b""])[-1:] and b"".join(arguments.get("ticket", [])) == b""
