"""Grants: what a channel token gives for one channel, and until when.

Does: read the claims of a token whose signature is good.
Does not: check signatures and times of tokens (auth), or decide what a grant is worth (permissions).
Called by: auth.
Never break: a grant is for the one channel that its token names and for the one user, and for nobody else.

    {"sub":"42","channel":"room:7","exp":1764000000}      sub: '' or left out is a client without a token
     "expire_at":1764003600                               the subscription ends then, and not with the token; 0: never
     "allow":["pub","prs","hst"]                          what else the client may do in the channel while it is in it
     "jti":"…","iat":1763999000                           by which it can be revoked

As in Centrifugo (https://centrifugal.dev/docs/server/channel_token_auth). Its `override` is refused, for what it asks
is not done; `info` is passed over like any claim that is not ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import inf
from typing import Any, NamedTuple

from . import capabilities

MAX_TIME = 2**53
"""Seconds; beyond this a float can't tell one from the next."""
MAX_ID_LENGTH = 255


class Grant(NamedTuple):
    """Of a good token. Times are in seconds since 1970."""

    channel: str
    expires_at: float = inf
    allow: frozenset[str] = frozenset()
    jti: str = ""
    issued_at: float = 0.0


def read(claims: Mapping[str, Any], user: str) -> Grant:
    """The grant for this user. Raises ValueError where it is for another one, or can't be understood."""
    channel = claims["channel"]
    if not isinstance(channel, str) or claims.get("sub", "") != user:
        raise ValueError("it is for another user, or for no channel")
    if claims.get("override"):
        raise ValueError("override is not available")
    jti, issued_at = read_identity(claims)
    expire_at = claims.get("expire_at", claims["exp"])
    if not is_time(expire_at) or expire_at < 0:
        raise ValueError("expire_at: allowed are seconds since 1970, or 0")
    allow = capabilities.read_actions(claims["allow"]) if "allow" in claims else frozenset()
    return Grant(channel, float(expire_at) or inf, allow, jti, issued_at)


def read_identity(claims: Mapping[str, Any]) -> tuple[str, float]:
    """`jti` and `iat` of any token: '' and 0 where it has none. Raises ValueError."""
    jti, issued_at = claims.get("jti", ""), claims.get("iat", 0)
    if not isinstance(jti, str) or len(jti) > MAX_ID_LENGTH:
        raise ValueError(f"jti: allowed is a text of at most {MAX_ID_LENGTH} characters")
    if not is_time(issued_at):
        raise ValueError("iat: allowed are seconds since 1970")
    return jti, float(issued_at)


def is_time(value: object) -> bool:
    """A NumericDate of RFC 7519 §2; NaN, which Python's JSON reads, is before and after nothing, and fails here."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < MAX_TIME
