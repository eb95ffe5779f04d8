"""Admin keys: who may look into the hub by its admin page.

Does: judge what a page shows, the API key or a token that was made with it; bound the guesses of an address; make
such tokens.
Does not: know connections (admin) or HTTP (api).
Called by: admin (judge), api (make).
Never break: keys are compared in constant time; an address that has guessed too often is told nothing about its next
guess, be it the right one.

A token is a JSON Web Token (RFC 7519) signed with what is derived from the API key, for an hour at the most: it can be
given to somebody who is not to have the key, opens the page and no other door, and ends with the key that made it.
"""

from __future__ import annotations

import hashlib
import hmac
from collections import OrderedDict
from collections.abc import Callable
from math import inf

from . import auth, errors
from .auth import Authenticator, Claims
from .errors import Close, CommandError, ProtocolError

NAME = "admin"
"""Whom the tokens name, and what the log calls whoever is in."""
AUDIENCE = "hub-admin"
DEFAULT_TTL_S = 900
MAX_TTL_S = 3600
MOST_WRONG = 10
"""Wrong keys of one address within WRONG_S; then it waits for the rest of that time."""
WRONG_S = 60.0
REMEMBERED = 1000
"""Addresses."""
CLOSE_OFF = Close(errors.CLOSE_INVALID_TOKEN.code, "api.key is not set, so there is no admin page")
CLOSE_WRONG = Close(errors.CLOSE_INVALID_TOKEN.code, "wrong key")
CLOSE_TOO_OFTEN = Close(errors.CLOSE_INVALID_TOKEN.code, "too many wrong keys from here; wait a minute")


class AdminKeys:
    """Of one worker."""

    def __init__(self, key: str, clock: Callable[[], float], wall_clock: Callable[[], float]) -> None:
        """key: of the server API, '' lets nobody in. clock: in seconds; wall_clock: in seconds since 1970."""
        self._clock = clock
        self._wall_clock = wall_clock
        self.retune(key)
        self._wrong: OrderedDict[str, tuple[int, float]] = OrderedDict()
        """How many, and since when, by address; the newest last."""

    def retune(self, key: str) -> None:
        """Another key from now on; a page that is in stays in."""
        self._key = key
        rules = auth.Rules(audience=AUDIENCE)
        self._tokens = Authenticator(_secret(key), self._wall_clock, rules, cache=0) if key else None

    def judge(self, shown: object, address: str) -> Claims:
        """What a page shows -> until when it may look. Raises ProtocolError 3500; its text says why."""
        if self._tokens is None:
            raise ProtocolError(CLOSE_OFF)
        count, since = self._wrong.get(address, (0, self._clock()))
        if self._clock() >= since + WRONG_S:
            count, since = 0, self._clock()
        if count >= MOST_WRONG:
            raise ProtocolError(CLOSE_TOO_OFTEN)
        if isinstance(shown, str) and hmac.compare_digest(_bytes(shown), self._key.encode()):
            return Claims(NAME, inf)
        try:
            return self._tokens.verify(shown)
        except (ProtocolError, CommandError):
            # Of one that has ended, too: nothing but a new one helps.
            self._note(address, count + 1, since)
            raise ProtocolError(CLOSE_WRONG) from None

    def _note(self, address: str, count: int, since: float) -> None:
        self._wrong[address] = (count, since)
        self._wrong.move_to_end(address)
        if len(self._wrong) > REMEMBERED:
            self._wrong.popitem(last=False)


def make(key: str, ttl_s: float, now: float) -> str:
    """A token for the admin page, good for `ttl_s` seconds from `now`. key: of the server API, not ''."""
    return auth.make(NAME, _secret(key), ttl_s, now, aud=AUDIENCE)


def _secret(key: str) -> str:
    """Another one than the key: what it signs is good for nothing else, and says nothing about the key."""
    return hmac.new(key.encode(), b"hub admin page token 1", hashlib.sha256).hexdigest()


def _bytes(text: str) -> bytes:
    # What is no text in UTF-8 (a lone surrogate) is no key either.
    return text.encode("utf-8", "replace")
