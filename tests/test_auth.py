"""Connection tokens: who is let in as whom."""

from __future__ import annotations

import base64
import json

import jwt
import pytest

from hub import auth, errors
from hub.errors import CommandError, ProtocolError

SECRET = "a secret for tests, long enough for the larger hashes too: 64 bytes and more"
NOW = 1_000_000.0


def token(secret: str = SECRET, algorithm: str = "HS256", **claims: object) -> str:
    return jwt.encode({"sub": "42", "exp": NOW + 60, **claims}, secret, algorithm=algorithm)


def test_a_token_that_we_made_names_its_user():
    """make and verify agree."""
    assert auth.verify(auth.make("42", SECRET, 60, NOW), SECRET, NOW) == auth.Claims("42", NOW + 60, issued_at=NOW)


def test_an_empty_user_is_anonymous():
    """sub '' is allowed, as in Centrifugo."""
    assert auth.verify(token(sub=""), SECRET, NOW).user == ""


def test_a_token_is_expired_from_its_exp_on():
    """exp in the past is 109, so that an SDK fetches a new token; a second before it is still good."""
    assert auth.verify(token(), SECRET, NOW + 59).user == "42"
    with pytest.raises(CommandError) as refused:
        auth.verify(token(), SECRET, NOW + 60)
    assert refused.value.reply == errors.TOKEN_EXPIRED


def unsigned() -> str:
    parts = [json.dumps(part).encode() for part in ({"alg": "none"}, {"sub": "42", "exp": NOW + 60})]
    return ".".join([*(base64.urlsafe_b64encode(part).decode().rstrip("=") for part in parts), ""])


@pytest.mark.parametrize(
    "bad",
    [
        token(secret="another secret, also long enough for the larger hashes: 64 bytes and more"),
        token(algorithm="HS384"),
        unsigned(),
        token()[:-2],
        "x.y.z",
        "",
        7,
        None,
        "a" * 5000,
        jwt.encode({"exp": NOW + 60}, SECRET),
        jwt.encode({"sub": "42"}, SECRET),
        token(sub="u" * 300),
        token(sub="\ud800"),
        token(nbf=NOW + 30),
        token(channel="room:7"),
        token(jti="j" * 256),
        token(jti=7),
        token(iat="now"),
        token(caps=[{"channels": ["a"], "match": "regex", "allow": ["sub"]}]),
    ],
    ids=range(19),
)
def test_a_token_that_is_not_ours_ends_the_connection(bad):
    """Wrong key, algorithm, shape, size or claims: 3500, whatever else the token says."""
    with pytest.raises(ProtocolError) as refused:
        auth.verify(bad, SECRET, NOW)
    assert refused.value.close == errors.CLOSE_INVALID_TOKEN


@pytest.mark.parametrize("value", ["1", True, [1], {"a": 1}, float("nan"), 10**400])
def test_claims_of_the_wrong_type_are_refused(value):
    """exp and nbf must be numbers; nothing of it raises anything else."""
    for claims in ({"exp": value}, {"nbf": value}):
        raw = {"sub": "42", "exp": NOW + 60, **claims}
        header, body = ({"alg": "HS256", "typ": "JWT"}, raw)
        text = jwt.api_jws.encode(json.dumps(body).encode(), SECRET, algorithm="HS256", headers=header)
        with pytest.raises(ProtocolError):
            auth.verify(text, SECRET, NOW)


def test_without_a_secret_no_token_is_good():
    """A hub without auth.hmac_secret refuses every token rather than trusting the empty key."""
    with pytest.raises(ProtocolError):
        auth.verify(token(secret=" " * 32), "", NOW)


def test_further_claims_are_read():
    """By id and time of issue a token can be revoked; caps add to the rules."""
    caps = [{"channels": ["game:*"], "match": "wildcard", "allow": ["pub"]}]
    claims = auth.verify(token(jti="j1", iat=NOW - 5, caps=caps), SECRET, NOW)
    assert (claims.token_id, claims.issued_at) == ("j1", NOW - 5)
    assert [(one.patterns, one.allow) for one in claims.capabilities] == [((("game:", ""),), {"pub"})]


def channel_token(secret: str = SECRET, **claims: object) -> str:
    return token(secret, **{"channel": "room:7", **claims})


def test_a_channel_token_gives_one_channel_to_one_user():
    """As its claims say."""
    grant = auth.verify_subscription(channel_token(allow=["pub"], jti="j"), "42", SECRET, NOW)
    assert grant == auth.Grant("room:7", NOW + 60, frozenset({"pub"}), "j")


@pytest.mark.parametrize(
    ("bad", "user", "reply"),
    [
        (channel_token(), "77", errors.PERMISSION_DENIED),
        (channel_token(), "", errors.PERMISSION_DENIED),
        (token(), "42", errors.PERMISSION_DENIED),
        (channel_token(SECRET + "x"), "42", errors.PERMISSION_DENIED),
        (channel_token()[:-2], "42", errors.PERMISSION_DENIED),
        (channel_token(override={"presence": {"value": True}}), "42", errors.PERMISSION_DENIED),
        (channel_token(nbf=NOW + 5), "42", errors.PERMISSION_DENIED),
        (["x"], "42", errors.PERMISSION_DENIED),
        (channel_token(exp=NOW), "42", errors.TOKEN_EXPIRED),
        (channel_token(expire_at=NOW), "42", errors.TOKEN_EXPIRED),
    ],
    ids=range(10),
)
def test_a_channel_token_for_somebody_else_or_not_ours_is_refused(bad, user, reply):
    """The connection lives; 109 makes SDKs ask for another."""
    with pytest.raises(CommandError) as refused:
        auth.verify_subscription(bad, user, SECRET, NOW)
    assert refused.value.reply == reply
