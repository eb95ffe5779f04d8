"""Tickets: who a client is, for once: the server API writes it down, and the client's first request takes it.

Does: keep claims in Redis under the digest of a random text, for a minute at most; give them to whoever shows the text
first, on any worker of any machine.
Does not: judge claims (auth), or know requests (entrance) and the server API's words (api).
Called by: entrance (redeem), api (issue).
Never break: a ticket opens one door once (GETDEL); from what stands in Redis no ticket can be made.

For those who can send no header and whose token must not stand in a URL, which proxies log: a ticket that was used is
worth nothing.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from hashlib import sha256
from typing import Any

import orjson
from redis.exceptions import RedisError

from . import errors
from .auth import Authenticator, Claims
from .errors import BrokerUnavailable, CommandError, ProtocolError
from .store import Store

DEFAULT_TTL_S = 30
MAX_TTL_S = 60
MAX_CLAIMS_BYTES = 4096
MAX_TICKET_LENGTH = 64
RANDOM_BYTES = 32


class Tickets:
    """Of one worker; all hubs of one Redis and prefix have the same."""

    def __init__(
        self,
        store: Store,
        authenticator: Authenticator,
        new_text: Callable[[], str] = lambda: secrets.token_urlsafe(RANDOM_BYTES),
        now: Callable[[], float] = time.time,
    ) -> None:
        """now: seconds since 1970."""
        self._store = store
        self._authenticator = authenticator
        self._new_text = new_text
        self._now = now
        self._redis = store.commands()

    async def issue(self, claims: dict[str, Any], ttl_s: float = DEFAULT_TTL_S) -> str:
        """A new ticket, good for `ttl_s` seconds. claims: as a token has them; without `exp` they never end.

        They are issued now unless their `iat` says otherwise: a user of whom all tokens until now are revoked can be
        let in anew. Raises CommandError 106, 107, and BrokerUnavailable.
        """
        if not 0 < ttl_s <= MAX_TTL_S:
            raise CommandError(errors.BAD_REQUEST, f"ttl: allowed are seconds above 0, to {MAX_TTL_S}")
        claims = {"iat": self._now(), **claims}
        try:
            self._authenticator.vouch(claims)
        except ProtocolError as error:
            raise CommandError(errors.BAD_REQUEST, str(error)) from None
        body = orjson.dumps(claims)
        if len(body) > MAX_CLAIMS_BYTES:
            raise CommandError(errors.LIMIT_EXCEEDED, f"claims: found {len(body)} bytes; allowed: {MAX_CLAIMS_BYTES}")
        ticket = self._new_text()
        try:
            await self._redis.set(self._key(ticket), body, px=max(1, round(ttl_s * 1000)))
        except RedisError as error:
            raise BrokerUnavailable(str(error)) from None
        return ticket

    async def redeem(self, ticket: str) -> Claims:
        """Whom it speaks for; it is used now. Raises ProtocolError 3500, as Authenticator.verify, BrokerUnavailable."""
        if not ticket or len(ticket) > MAX_TICKET_LENGTH or not ticket.isascii():
            raise ProtocolError(errors.CLOSE_INVALID_TOKEN, "no ticket of ours")
        try:
            body = await self._redis.getdel(self._key(ticket))
        except RedisError as error:
            raise BrokerUnavailable(str(error)) from None
        if body is None:
            raise ProtocolError(errors.CLOSE_INVALID_TOKEN, "the ticket has been used, or has ended")
        try:
            payload = orjson.loads(body)
        except orjson.JSONDecodeError:
            raise ProtocolError(errors.CLOSE_INVALID_TOKEN, "what the ticket stands for can't be read") from None
        return self._authenticator.vouch(payload)

    async def close(self) -> None:
        """Let go of Redis."""
        await self._redis.aclose()

    def _key(self, ticket: str) -> str:
        return self._store.keys.ticket(sha256(ticket.encode()).hexdigest())
