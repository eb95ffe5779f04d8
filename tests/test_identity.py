"""Who a session's client is: its request's token and its own, refreshing, and the end with the grace behind it."""

from __future__ import annotations

from math import inf

import pytest

from hub import __version__, auth, errors
from hub.auth import Authenticator, Claims
from hub.entrance import Visitor
from hub.errors import ProtocolError
from hub.session import Session

from .plane import SECRET
from .test_session import Rig


def rig(visitor: Visitor | None = None, grace_s: float = 25.0) -> Rig:
    """Whose request has shown what `visitor` has."""
    one = Rig()
    object.__setattr__(one.services, "authenticator", Authenticator(SECRET, one.wall, grace_s=grace_s))
    one.session = Session(one.services, one.transport, *([visitor] if visitor else []))
    return one


def token(one: Rig, user: str = "ann", ttl_s: float = 60, **claims: object) -> str:
    return auth.make(user, SECRET, ttl_s, one.wall(), **claims)


def connect(one: Rig, text: str = "") -> dict:
    """The reply to a connect command."""
    replies = one.say({"id": 1, "connect": {"token": text} if text else {}})
    return replies[0] if replies else {}


def visitor(user: str = "ann", expires_at: float = 1_000_060.0) -> Visitor:
    return Visitor("203.0.113.7", "", Claims(user, expires_at, 3.0))


def test_the_token_of_the_request_names_the_user():
    """Where the connect command has none; with all that it says."""
    one = rig(visitor())
    assert connect(one)["connect"]["ttl"] == 60
    assert (one.session.user, one.session.max_hz, one.session.claims.expires_at) == ("ann", 3.0, 1_000_060.0)


def test_of_two_tokens_of_one_user_the_command_s_counts():
    """It is the newer one."""
    one = rig(visitor())
    assert connect(one, token(one, ttl_s=600, max_hz=7))["connect"]["ttl"] == 600
    assert (one.session.user, one.session.max_hz) == ("ann", 7.0)


def test_two_tokens_of_two_users_are_one_too_many():
    """3500: a page is nobody else than its cookie says; neither anybody where the request's token is nobody's."""
    for shown, said in (("ann", "bob"), ("", "bob"), ("ann", "")):
        one = rig(visitor(shown))
        connect(one, token(one, said))
        assert one.transport.closed.code == 3500 and not one.session.connected and one.session.user == ""


def test_a_request_s_token_may_end_before_its_client_connects():
    """109 then, upon which SDKs bring another; and revoked meanwhile is 3500."""
    one = rig(visitor(expires_at=1_000_000.0))
    assert connect(one)["error"]["code"] == 109 and one.transport.closed is None
    assert connect(one, token(one))["connect"]["expires"] is True
    two = rig(visitor())

    def judge(claims: Claims) -> None:
        raise ProtocolError(errors.CLOSE_INVALID_TOKEN, "revoked")

    two.services.authenticator.judge = judge
    connect(two)
    assert two.transport.closed.code == 3500


def test_sdks_are_told_when_the_token_ends():
    """In whole seconds and at least one, as they wait so long before they refresh; nothing where there is no end."""
    one = rig()
    assert connect(one, token(one, ttl_s=600))["connect"].items() >= {"expires": True, "ttl": 600}.items()
    almost = rig(visitor(expires_at=1_000_000.3))
    assert connect(almost)["connect"]["ttl"] == 1
    for endless in (rig(), rig(visitor(expires_at=inf))):
        assert not {"expires", "ttl"} & connect(endless)["connect"].keys()
        assert endless.session.left_s == inf


def refresh(one: Rig, text: object) -> list:
    return one.say({"id": 2, "refresh": {"token": text}})


def test_a_refresh_moves_the_end():
    """And what the new token says counts from now on."""
    one = rig()
    connect(one, token(one, ttl_s=60))
    one.wall.advance(50)
    said = {"client": "client-1", "version": __version__, "expires": True, "ttl": 600}
    assert refresh(one, token(one, ttl_s=600, max_hz=2, jti="new")) == [{"id": 2, "refresh": said}]
    assert (one.session.max_hz, one.session.claims.jti, one.session.left_s) == (2.0, "new", 625)


def test_a_refresh_may_bring_the_end_nearer():
    """The connection is told, as it would otherwise ask no sooner than for its next ping."""
    one = rig()
    connect(one, token(one, ttl_s=600))
    one.transport.woken.clear()
    refresh(one, token(one, ttl_s=5))
    assert one.transport.woken == [one.clock() + 30]


def test_an_order_knows_no_grace_and_a_refresh_outdoes_it():
    """Whose end the server API has set ends then, unless its client shows a token that is good for longer."""
    one = rig()
    connect(one, token(one, ttl_s=600))
    one.session.expire(one.wall() + 10)
    assert one.session.left_s == 10 and one.transport.woken[-1] == one.clock() + 10
    refresh(one, token(one, ttl_s=60))
    assert one.session.left_s == 85
    one.session.expire(one.wall())
    one.session.on_deadline(one.clock())
    assert one.transport.closed == errors.CLOSE_EXPIRED


def test_a_connection_outlives_its_token_by_the_grace():
    """In which it can refresh; then it is 3005. An SDK that refreshes at the very end is in time."""
    one = rig()
    connect(one, token(one, ttl_s=60))
    one.wall.advance(84)
    assert one.session.on_deadline(one.clock()) == one.clock() + 1 and one.transport.closed is None
    assert refresh(one, token(one, ttl_s=60))[0]["refresh"]["ttl"] == 60
    one.wall.advance(84.9)
    one.session.on_deadline(one.clock())
    assert one.transport.closed is None
    one.wall.advance(0.1)
    one.session.on_deadline(one.clock())
    assert one.transport.closed == errors.CLOSE_EXPIRED


@pytest.mark.parametrize(
    ("text", "code"),
    [(lambda one: "", 107), (lambda one: None, 107), (lambda one: token(one, ttl_s=0), 109)],
    ids=["empty", "null", "ended"],
)
def test_a_refresh_that_fails_changes_nothing(text, code):
    """The token that it has still counts, and so does its end."""
    one = rig()
    connect(one, token(one, ttl_s=60))
    assert refresh(one, text(one))[0]["error"]["code"] == code
    assert one.transport.closed is None and one.session.left_s == 85


@pytest.mark.parametrize("text", [lambda one: "x.y.z", lambda one: token(one, "bob"), lambda one: 7])
def test_a_refresh_as_somebody_else_ends_the_connection(text):
    """3500, as Centrifugo does it; as does what is no token."""
    one = rig()
    connect(one, token(one))
    assert refresh(one, text(one)) == [] and one.transport.closed.code == 3500
    assert one.session.user == "ann"


def test_who_came_without_a_token_stays_nobody():
    """A token of nobody in particular is the one it can refresh with."""
    one = rig()
    connect(one)
    assert refresh(one, token(one, "", 60))[0]["refresh"]["ttl"] == 60
    refresh(one, token(one, "ann"))
    assert one.transport.closed.code == 3500


def test_an_application_s_name_for_the_user_is_no_hindrance():
    """A refresh is compared with the token that the client came with, not with what the application calls it."""
    one = rig()
    connect(one, token(one))
    one.session.user = "Ann of Green Gables"
    assert "refresh" in refresh(one, token(one))[0]
    assert one.session.user == "Ann of Green Gables"
