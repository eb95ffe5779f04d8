"""Identity: who a connection token speaks for.

Does: check and make HS256 JSON Web Tokens (RFC 7519).
Does not: read settings or the clock (both are passed in), or say what a user may do (channels).
Called by: session and entrance (check), cli (make).
Never break: the algorithm is ours to choose, never the token's; claims count for nothing before the signature holds.
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from typing import NamedTuple

import jwt

from . import errors
from .errors import CommandError, ProtocolError

ALGORITHM = "HS256"
MAX_TOKEN_BYTES = 4096
MAX_USER_LENGTH = 255
MAX_TIME = 2**53
"""Seconds; beyond this a float can't tell one from the next."""


class Claims(NamedTuple):
    """What a good token says: the user ('' is nobody in particular) and when it ends, in seconds since 1970."""

    user: str
    expires_at: float
    max_hz: float = inf
    """Claim `max_hz`: values of one `latest` channel that it may get per second, 0 for none."""


def verify(token: object, secret: str, now: float) -> Claims:
    """Check a token that a client sent.

    now: seconds since 1970. Raises ProtocolError 3500 for a token that is not ours, CommandError 109 for one that has
    ended.
    """
    if not isinstance(token, str) or len(token) > MAX_TOKEN_BYTES or not secret:
        raise ProtocolError(errors.CLOSE_INVALID_TOKEN)
    options: jwt.types.Options = {
        "require": ["exp", "sub"],
        "verify_exp": False,
        "verify_nbf": False,
        "verify_iat": False,
    }
    try:
        # Expiry is compared here and not by the library: its clock can't be passed in.
        claims = jwt.decode(token, secret, algorithms=[ALGORITHM], options=options)
    except jwt.InvalidTokenError as error:
        raise ProtocolError(errors.CLOSE_INVALID_TOKEN, str(error)) from None
    user, expires_at, valid_from = claims["sub"], claims["exp"], claims.get("nbf", 0)
    if not isinstance(user, str) or not is_user(user):
        raise ProtocolError(errors.CLOSE_INVALID_TOKEN, f"sub must be text of at most {MAX_USER_LENGTH} characters")
    if not _is_time(expires_at) or not _is_time(valid_from):
        raise ProtocolError(errors.CLOSE_INVALID_TOKEN, "exp and nbf must be numbers")
    if expires_at <= now:
        raise CommandError(errors.TOKEN_EXPIRED)
    if valid_from > now:
        raise ProtocolError(errors.CLOSE_INVALID_TOKEN, "not valid yet")
    max_hz = claims.get("max_hz", inf)
    if isinstance(max_hz, bool) or not isinstance(max_hz, int | float) or not max_hz >= 0:
        raise ProtocolError(errors.CLOSE_INVALID_TOKEN, "max_hz must be a number from 0 on")
    return Claims(user, float(expires_at), float(max_hz))


class Authenticator:
    """Judges the tokens of one hub."""

    __slots__ = ("_now", "_secret")

    def __init__(self, secret: str, now: Callable[[], float]) -> None:
        """secret: auth.hmac_secret, '' where there is none. now: seconds since 1970."""
        self._secret = secret
        self._now = now

    @property
    def enabled(self) -> bool:
        """It knows a key, so that a token can be good."""
        return bool(self._secret)

    def verify(self, token: object) -> Claims:
        """What a token says. Raises as `verify` does."""
        return verify(token, self._secret, self._now())


def _is_time(value: object) -> bool:
    """A NumericDate of RFC 7519 §2; NaN, which Python's JSON reads, is before and after nothing, and fails here."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < MAX_TIME


def is_user(text: str) -> bool:
    """Whether a text can name a user: short, and UTF-8, which lone surrogates are not."""
    try:
        return len(text) <= MAX_USER_LENGTH and bool(text.encode() or not text)
    except UnicodeEncodeError:
        return False


def make(user: str, secret: str, ttl_s: float, now: float) -> str:
    """A token for `user`, good for `ttl_s` seconds from `now`."""
    return jwt.encode({"sub": user, "exp": int(now + ttl_s), "iat": int(now)}, secret, algorithm=ALGORITHM)
