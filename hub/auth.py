"""Identity: who a connection token speaks for, and for which channel a channel token.

Does: check and make HS256 JSON Web Tokens (RFC 7519).
Does not: read settings or the clock (both are passed in), or say what a user may do (permissions).
Called by: session and entrance (check), cli (make).
Never break: the algorithm is ours to choose, never the token's; claims count for nothing before the signature holds.
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from typing import Any, NamedTuple

import jwt

from . import capabilities, errors, grants
from .capabilities import Capabilities
from .errors import CommandError, ProtocolError
from .grants import Grant, is_time

ALGORITHM = "HS256"
MAX_TOKEN_BYTES = 4096
MAX_USER_LENGTH = 255


class Claims(NamedTuple):
    """What a good token says: the user ('' is nobody in particular) and when it ends, in seconds since 1970."""

    user: str
    expires_at: float
    max_hz: float = inf
    """Claim `max_hz`: values of one `latest` channel that it may get per second, 0 for none."""
    token_id: str = ""
    """Claim `jti`, by which it can be revoked."""
    issued_at: float = 0.0
    """Claim `iat`, in seconds since 1970; 0 where it has none."""
    capabilities: Capabilities = ()
    """Claim `caps`."""


ANONYMOUS = Claims("", inf)
"""Of who shows no token."""


def verify(token: object, secret: str, now: float) -> Claims:
    """Check a token that a client sent.

    now: seconds since 1970. Raises ProtocolError 3500 for a token that is not ours, CommandError 109 for one that has
    ended.
    """
    claims = _decode(token, secret, now, "sub")
    user = claims["sub"]
    if "channel" in claims:
        # Signed with the same key for whoever may have one channel: that one must not come in as the user with it.
        raise ProtocolError(errors.CLOSE_INVALID_TOKEN, "a channel token is no connection token")
    if not isinstance(user, str) or not is_user(user):
        raise ProtocolError(errors.CLOSE_INVALID_TOKEN, f"sub must be text of at most {MAX_USER_LENGTH} characters")
    max_hz = claims.get("max_hz", inf)
    if isinstance(max_hz, bool) or not isinstance(max_hz, int | float) or not max_hz >= 0:
        raise ProtocolError(errors.CLOSE_INVALID_TOKEN, "max_hz must be a number from 0 on")
    try:
        token_id, issued_at = grants.read_identity(claims)
        caps = capabilities.read(claims["caps"]) if "caps" in claims else ()
    except ValueError as error:
        raise ProtocolError(errors.CLOSE_INVALID_TOKEN, str(error)) from None
    return Claims(user, float(claims["exp"]), float(max_hz), token_id, issued_at, caps)


def verify_subscription(token: object, user: str, secret: str, now: float) -> Grant:
    """Check a channel token that this user's client sent; for which channel it is stands in the grant.

    Raises CommandError 103 for one that is not ours or for another user, 109 for one that has ended.
    """
    try:
        grant = grants.read(_decode(token, secret, now, "channel"), user)
    except (ProtocolError, ValueError) as error:
        raise CommandError(errors.PERMISSION_DENIED, f"channel token: {error}") from None
    if grant.expires_at <= now:
        # Of a token that is good for longer than what it gives: an SDK would subscribe with it again and again.
        raise CommandError(errors.TOKEN_EXPIRED)
    return grant


def _decode(token: object, secret: str, now: float, required: str) -> dict[str, Any]:
    """The claims of a token that is ours and holds now. Raises as `verify`."""
    if not isinstance(token, str) or len(token) > MAX_TOKEN_BYTES or not secret:
        raise ProtocolError(errors.CLOSE_INVALID_TOKEN)
    options: jwt.types.Options = {
        "require": ["exp", required],
        "verify_exp": False,
        "verify_nbf": False,
        "verify_iat": False,
        # Checked where they are read: the library's words and bounds are not ours.
        "verify_sub": False,
        "verify_jti": False,
    }
    try:
        # Expiry is compared here and not by the library: its clock can't be passed in.
        claims: dict[str, Any] = jwt.decode(token, secret, algorithms=[ALGORITHM], options=options)
    except jwt.InvalidTokenError as error:
        raise ProtocolError(errors.CLOSE_INVALID_TOKEN, str(error)) from None
    expires_at, valid_from = claims["exp"], claims.get("nbf", 0)
    if not is_time(expires_at) or not is_time(valid_from):
        raise ProtocolError(errors.CLOSE_INVALID_TOKEN, "exp and nbf must be numbers")
    if expires_at <= now:
        raise CommandError(errors.TOKEN_EXPIRED)
    if valid_from > now:
        raise ProtocolError(errors.CLOSE_INVALID_TOKEN, "not valid yet")
    return claims


class Authenticator:
    """Judges the tokens of one hub."""

    __slots__ = ("_check", "_now", "_secret")

    def __init__(
        self,
        secret: str,
        now: Callable[[], float],
        check: Callable[[str, str, float], None] = lambda user, token_id, issued_at: None,
    ) -> None:
        """secret: auth.hmac_secret, '' where there is none. now: seconds since 1970.

        check: whether a good token has been revoked, by its user, `jti` and `iat`; raises ProtocolError.
        """
        self._secret = secret
        self._now = now
        self._check = check

    @property
    def enabled(self) -> bool:
        """It knows a key, so that a token can be good."""
        return bool(self._secret)

    def verify(self, token: object) -> Claims:
        """What a token says. Raises as `verify` does, and ProtocolError for one that is revoked."""
        claims = verify(token, self._secret, self._now())
        self._check(claims.user, claims.token_id, claims.issued_at)
        return claims

    def verify_subscription(self, token: object, user: str) -> Grant:
        """What a channel token gives this user. Raises as `verify_subscription` does, and 103 for a revoked one."""
        grant = verify_subscription(token, user, self._secret, self._now())
        try:
            self._check(user, grant.token_id, grant.issued_at)
        except ProtocolError as error:
            raise CommandError(errors.PERMISSION_DENIED, f"channel token: {error}") from None
        return grant


def is_user(text: str) -> bool:
    """Whether a text can name a user: short, and UTF-8, which lone surrogates are not."""
    try:
        return len(text) <= MAX_USER_LENGTH and bool(text.encode() or not text)
    except UnicodeEncodeError:
        return False


def make(user: str, secret: str, ttl_s: float, now: float, **claims: Any) -> str:
    """A token for `user`, good for `ttl_s` seconds from `now`. claims: further ones, such as channel or caps."""
    claims = {"sub": user, "exp": int(now + ttl_s), "iat": int(now), **claims}
    return jwt.encode(claims, secret, algorithm=ALGORITHM)
