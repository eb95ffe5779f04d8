"""Identity: who a connection token speaks for, and for which channel a channel token.

Does: check JSON Web Tokens (RFC 7515, RFC 7519, with the advice of RFC 8725) for connections and for subscriptions,
remember what was good, make tokens.
Does not: read settings or the clock (both are passed in), hold or find keys (keys, keyfiles, jwks), say what a user may
do (permissions), or know where in a request a token stands (entrance).
Called by: session and entrance (check), tickets (claims without a token), cli (make).
Never break: key and algorithm are ours to choose, never the token's; claims count for nothing before the signature
holds; whoever is remembered is judged by the clock and the revocations of now.
"""

from __future__ import annotations

import binascii
import re
from collections import OrderedDict
from collections.abc import Callable, Mapping
from functools import lru_cache
from hashlib import sha256
from math import inf, nan
from types import MappingProxyType
from typing import Any, NamedTuple

import jwt
import orjson

from . import capabilities, errors, grants, keys
from .capabilities import Capabilities
from .errors import CommandError, ProtocolError
from .grants import Grant, is_time
from .keys import KeyRing

ALGORITHM = "HS256"
"""Of the tokens that are made with a secret."""
MAX_TOKEN_BYTES = 4096
MAX_USER_LENGTH = 255
HEADERS = 64
"""Of tokens, that are not read again each time; each at most MAX_TOKEN_BYTES."""
TOKEN = re.compile(r"([A-Za-z0-9_\-]+)\.([A-Za-z0-9_\-]+)\.([A-Za-z0-9_\-]+)")
"""JWS Compact Serialization (RFC 7515 §7.1); an empty signature is that of `none`."""
PADDING = ("", "===", "==", "=")
TO_BASE64 = str.maketrans("-_", "+/")
NOTHING: Mapping[str, Any] = MappingProxyType({})
KNOWN = frozenset({"sub", "exp", "nbf", "iat", "iss", "aud", "jti", "max_hz", "caps"})
CONNECTION, SUBSCRIPTION = b"c", b"s"
"""Kinds of tokens: a good one of the one kind is not remembered as one of the other."""
NO_GRANT = Grant("")
NOT_YET = errors.Reply(errors.INTERNAL.code, "the keys for this token are being fetched; try again", temporary=True)


class Claims(NamedTuple):
    """What a good token says. Shared by all who show it: not to be changed."""

    user: str
    """'' is nobody in particular."""
    expires_at: float
    """Seconds since 1970; inf for never, which only a ticket can say."""
    max_hz: float = inf
    """Claim `max_hz`: values of one `latest` channel that it may get per second, 0 for none."""
    jti: str = ""
    """The token's own name, by which it can be revoked."""
    issued_at: float = 0.0
    """Claim `iat`, seconds since 1970; 0 where it has none."""
    capabilities: Capabilities = ()
    """Claim `caps`: what it may do besides what the rules allow."""
    extra: Mapping[str, Any] = NOTHING
    """All other claims."""


ANONYMOUS = Claims("", inf)
"""Of who shows no token."""


class Rules(NamedTuple):
    """What a token must say, besides who it is for."""

    audience: str = ""
    """Must be among `aud`; '': a token must name no audience (RFC 7519 §4.1.3)."""
    issuer: str = ""
    """`iss`; '': any."""
    leeway_s: float = 0.0
    """For clocks that differ."""


class Authenticator:
    """Judges the tokens of one hub."""

    __slots__ = (
        "_cache",
        "_keys",
        "_most",
        "_now",
        "_rules",
        "_subscription_keys",
        "_subscription_rules",
        "expects_keys",
        "grace_s",
        "judge",
        "missing",
    )

    def __init__(
        self,
        keys: KeyRing | str,
        now: Callable[[], float],
        rules: Rules | None = None,
        *,
        cache: int = 10_000,
        grace_s: float = 0.0,
        subscriptions: tuple[KeyRing | None, Rules] | None = None,
    ) -> None:
        """keys: or the one secret of HS tokens, '' for none. now: seconds since 1970.

        cache: so many good tokens are remembered, 0 for none. grace_s: a connection outlives its token by so much.
        subscriptions: keys of subscription tokens, None for the same, and their rules; None for the same of both.
        """
        self._keys = _ring(keys)
        self._now = now
        self._rules = rules or Rules()
        own, self._subscription_rules = subscriptions or (None, self._rules)
        self._subscription_keys = own
        self._most = cache
        self._cache: OrderedDict[bytes, tuple[Claims, Grant]] = OrderedDict()
        """By the digest of a token, so that no token is kept: its claims, and what it gives for a channel."""
        self.grace_s = grace_s + self._rules.leeway_s
        self.expects_keys = False
        """Keys may come later."""
        self.missing: Callable[[str | None], bool] = lambda kid: False
        """Called where no key is known for a token, with the name of its key, if it has one: whether that is being
        looked for.
        """
        self.judge: Callable[[Claims], None] = lambda claims: None
        """Asked about every token that is good otherwise, also about remembered ones; raises ProtocolError 3500 for
        one that is revoked, 3507 for a blocked user.
        """

    @property
    def enabled(self) -> bool:
        """It knows a key, so that a token can be good."""
        return bool(self._keys) or self.expects_keys

    def renew(self, keys: KeyRing) -> None:
        """Judge by these keys from now on; what was signed with another one is not remembered either."""
        self._keys = keys
        self._cache.clear()

    def become(self, other: Authenticator) -> None:
        """Judge by the keys and rules of another one from now on; who is looked for, and who is revoked, stays."""
        self._keys, self._rules = other._keys, other._rules
        self._subscription_keys, self._subscription_rules = other._subscription_keys, other._subscription_rules
        self._most, self.grace_s, self.expects_keys = other._most, other.grace_s, other.expects_keys
        self._cache.clear()

    def forget(self) -> None:
        """Remember nothing."""
        self._cache.clear()

    def verify(self, token: object) -> Claims:
        """What a connection token says.

        Raises ProtocolError 3500 for a token that is not ours or is revoked, 3507 for a blocked user; CommandError 109
        for one that has ended, and 100, which is temporary, where its key is being fetched.
        """
        claims, _ = self._verify(token, self._keys, self._rules, CONNECTION)
        return claims

    def verify_subscription(self, token: object, user: str) -> Grant:
        """What a channel token gives this user; for which channel it is stands in the grant.

        Raises CommandError 103 for one that is not ours, is revoked, or is another user's, 109 and 100 as `verify`.
        """
        keys = self._keys if self._subscription_keys is None else self._subscription_keys
        try:
            claims, grant = self._verify(token, keys, self._subscription_rules, SUBSCRIPTION)
        except ProtocolError as error:
            raise CommandError(errors.PERMISSION_DENIED, f"channel token: {error}") from None
        if claims.user != user:
            raise CommandError(errors.PERMISSION_DENIED, "channel token: it is for another user")
        if grant.expires_at + self._subscription_rules.leeway_s <= self._now():
            # Of a token that is good for longer than what it gives: an SDK would subscribe with it again and again.
            raise CommandError(errors.TOKEN_EXPIRED)
        return grant

    def vouch(self, payload: object) -> Claims:
        """The claims of somebody for whom no token but the server API speaks; `exp` may be missing. Raises as `verify`
        does.
        """
        claims, valid_from = _read(payload, self._rules._replace(audience="", issuer=""), needs_end=False)
        self.check(claims)
        self._check_begun(valid_from, self._rules)
        return claims

    def check(self, claims: Claims) -> None:
        """Claims that were good once are so now. Raises as `verify` does."""
        if claims.expires_at + self._rules.leeway_s <= self._now():
            raise CommandError(errors.TOKEN_EXPIRED)
        self.judge(claims)

    def _check_begun(self, valid_from: float, rules: Rules) -> None:
        if valid_from > self._now() + rules.leeway_s:
            raise ProtocolError(errors.CLOSE_INVALID_TOKEN, "not valid yet")

    def _verify(self, token: object, keys: KeyRing, rules: Rules, kind: bytes) -> tuple[Claims, Grant]:
        if not isinstance(token, str) or len(token) > MAX_TOKEN_BYTES or not token.isascii():
            raise ProtocolError(errors.CLOSE_INVALID_TOKEN, f"allowed: a JSON Web Token of {MAX_TOKEN_BYTES} bytes")
        digest = sha256(kind + token.encode()).digest()
        found = self._cache.get(digest)
        if found is not None:
            self.check(found[0])
            self._cache.move_to_end(digest)
            return found
        payload = _payload(token, keys, self.missing)
        if kind == SUBSCRIPTION:
            claims, valid_from, grant = _read_subscription(payload, rules)
        else:
            (claims, valid_from), grant = _read(payload, rules), NO_GRANT
        self.check(claims)
        self._check_begun(valid_from, rules)
        if self._most:
            self._cache[digest] = claims, grant
            if len(self._cache) > self._most:
                self._cache.popitem(last=False)
        return claims, grant


def _ring(found: KeyRing | str) -> KeyRing:
    if isinstance(found, str):
        return KeyRing([keys.of_secret(found)] if found else [])
    return found


def _payload(token: str, ring: KeyRing, missing: Callable[[str | None], bool]) -> object:
    """What a token carries, once its signature holds. Raises ProtocolError, CommandError 100."""
    parts = TOKEN.fullmatch(token)
    if parts is None:
        raise ProtocolError(errors.CLOSE_INVALID_TOKEN, "found no JSON Web Token")
    algorithm, kid = _header(parts[1])
    try:
        signature = _decode(parts[3])
    except ValueError:
        raise ProtocolError(errors.CLOSE_INVALID_TOKEN, "its signature can't be read") from None
    candidates = ring.candidates(kid, algorithm)
    if candidates:
        check, signed = keys.CHECKS[algorithm], token[: parts.end(2)].encode()
        if any(check.verify(signed, material, signature) for material in candidates):
            try:
                return orjson.loads(_decode(parts[2]))
            except ValueError:
                raise ProtocolError(errors.CLOSE_INVALID_TOKEN, "its claims can't be read") from None
    if algorithm in keys.CHECKS and (kid is None or not ring.knows(kid)) and missing(kid):
        raise CommandError(NOT_YET)
    found = "no key for it" if not candidates else "signed with another key"
    raise ProtocolError(errors.CLOSE_INVALID_TOKEN, found)


@lru_cache(HEADERS)
def _header(segment: str) -> tuple[str, str | None]:
    """Algorithm and name of the key; of one issuer all tokens begin alike. Raises ProtocolError."""
    try:
        header = orjson.loads(_decode(segment))
    except ValueError:
        raise ProtocolError(errors.CLOSE_INVALID_TOKEN, "its header can't be read") from None
    # Nothing else in it counts: no jku, x5u or jwk of a token's own.
    if not isinstance(header, dict) or "crit" in header:
        raise ProtocolError(errors.CLOSE_INVALID_TOKEN, "a header that asks for extensions (crit), or is none")
    algorithm, kid = header.get("alg"), header.get("kid")
    if not isinstance(algorithm, str) or not isinstance(kid, str | None):
        raise ProtocolError(errors.CLOSE_INVALID_TOKEN, "alg and kid must be texts")
    return algorithm, kid


def _decode(segment: str) -> bytes:
    """Base64url without padding (RFC 7515 §2). Raises ValueError for another spelling of the same bytes.

    Otherwise a token would have several texts, and the property that each change of one makes it bad would not hold.
    """
    text = segment.translate(TO_BASE64) + PADDING[len(segment) % 4]
    data = binascii.a2b_base64(text, strict_mode=True)
    if binascii.b2a_base64(data, newline=False).decode() != text:
        raise ValueError("not canonical")
    return data


def _read(payload: object, rules: Rules, needs_end: bool = True) -> tuple[Claims, float]:
    """What a connection token says, and from when on it holds. Raises ProtocolError."""
    claims = _object(payload, rules)
    if "channel" in claims:
        # Signed with the same key for whoever may have one channel: that one must not come in as the user with it.
        raise ProtocolError(errors.CLOSE_INVALID_TOKEN, "a channel token is no connection token")
    max_hz = claims.get("max_hz", inf)
    if isinstance(max_hz, bool) or not isinstance(max_hz, int | float) or not max_hz >= 0:
        raise ProtocolError(errors.CLOSE_INVALID_TOKEN, "max_hz must be a number from 0 on")
    found, valid_from = _who(claims, claims.get("sub"), needs_end)
    try:
        allowed = capabilities.read(claims["caps"]) if "caps" in claims else ()
    except ValueError as error:
        raise ProtocolError(errors.CLOSE_INVALID_TOKEN, str(error)) from None
    extra = {name: value for name, value in claims.items() if name not in KNOWN} or NOTHING
    return found._replace(max_hz=float(max_hz), capabilities=allowed, extra=extra), valid_from


def _read_subscription(payload: object, rules: Rules) -> tuple[Claims, float, Grant]:
    """What a channel token says, from when on it holds, and what it gives. Raises ProtocolError."""
    claims = _object(payload, rules)
    if "channel" not in claims:
        raise ProtocolError(errors.CLOSE_INVALID_TOKEN, "channel is missing")
    found, valid_from = _who(claims, claims.get("sub", ""), needs_end=True)
    try:
        return found, valid_from, grants.read(claims, found.user)
    except ValueError as error:
        raise ProtocolError(errors.CLOSE_INVALID_TOKEN, str(error)) from None


def _object(payload: object, rules: Rules) -> dict[str, Any]:
    if not isinstance(payload, dict):
        raise ProtocolError(errors.CLOSE_INVALID_TOKEN, "allowed: an object of claims")
    _check_origin(payload, rules)
    return payload


def _who(claims: dict[str, Any], user: object, needs_end: bool) -> tuple[Claims, float]:
    """What all tokens say, and from when on this one holds. Raises ProtocolError."""
    if not isinstance(user, str) or not is_user(user):
        raise ProtocolError(errors.CLOSE_INVALID_TOKEN, f"sub must be text of at most {MAX_USER_LENGTH} characters")
    expires_at, valid_from = claims.get("exp", nan if needs_end else inf), claims.get("nbf", 0)
    if not (is_time(expires_at) or expires_at is inf) or not is_time(valid_from):
        raise ProtocolError(errors.CLOSE_INVALID_TOKEN, "exp and nbf must be numbers")
    try:
        jti, issued_at = grants.read_identity(claims)
    except ValueError as error:
        raise ProtocolError(errors.CLOSE_INVALID_TOKEN, str(error)) from None
    return Claims(user, float(expires_at), jti=jti, issued_at=issued_at), float(valid_from)


def _check_origin(payload: dict[str, Any], rules: Rules) -> None:
    """Who made it, and for whom."""
    named = payload.get("aud", [])
    audience = [named] if isinstance(named, str) else named
    # A token for somebody else must not open our door, also where we have not been told our own name.
    if not isinstance(audience, list) or (rules.audience not in audience if rules.audience else audience):
        raise ProtocolError(errors.CLOSE_INVALID_TOKEN, "aud: it is for another audience")
    if rules.issuer and payload.get("iss") != rules.issuer:
        raise ProtocolError(errors.CLOSE_INVALID_TOKEN, "iss: it is another issuer's")


def is_user(text: str) -> bool:
    """Whether a text can name a user: short, and UTF-8, which lone surrogates are not."""
    try:
        return len(text) <= MAX_USER_LENGTH and bool(text.encode() or not text)
    except UnicodeEncodeError:
        return False


def make(
    user: str, key: Any, ttl_s: float, now: float, algorithm: str = ALGORITHM, kid: str = "", **claims: object
) -> str:
    """A token for `user`, good for `ttl_s` seconds from `now`.

    key: a secret, or a private key (in PEM, or as keys.private has it). claims: more of them, such as `aud`, `caps`.
    """
    payload = {"sub": user, "exp": int(now + ttl_s), "iat": int(now), **claims}
    return jwt.encode(payload, key, algorithm=algorithm, headers={"kid": kid} if kid else None)
