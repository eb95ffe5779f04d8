"""Entrance: what is known of a client before anything is built for it, and whether it may come in.

Does: say where a request comes from and whose token it shows; count it; refuse it.
Does not: answer (each wire says no in its own words), read HTTP, or judge what a client may do once it is in
(channels).
Called by: every wire's handler and the acceptor, before a session is made.
Never break: nothing that a client can choose is trusted here unless it has been checked.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from .auth import Authenticator, Claims
from .forwarded import Proxies
from .handshake import Headers, Refusal
from .origin import Origins
from .quotas import Quotas

BUSY = Refusal(503, "too many handshakes at a time, or shutting down", {"Retry-After": "1"})
TOO_OFTEN = Refusal(429, "too many handshakes from this address", {"Retry-After": "1"})
TOO_MANY = Refusal(429, "too many connections from this address", {"Retry-After": "10"})
FULL = Refusal(503, "this process has all the clients that it may have", {"Retry-After": "5"})
REFUSALS = {"ip_handshakes": TOO_OFTEN, "ip_connections": TOO_MANY, "connections": FULL}
"""By the reason that quotas give."""
BEARER = "bearer"


class Visitor(NamedTuple):
    """A client, as far as it is known from its request alone."""

    address: str = ""
    """Its IP address; '' for one of a Unix listener."""
    token: str = ""
    """What the request showed, '' for nothing: only for the one session that every request of it must show it for."""
    claims: Claims | None = None
    """Of that token, which was good."""

    @property
    def user(self) -> str:
        """'' for nobody in particular."""
        return self.claims.user if self.claims is not None else ""


NOBODY = Visitor()


class Entrance:
    """Of one worker."""

    __slots__ = ("_admits", "authenticator", "draining", "origins", "proxies", "quotas")

    def __init__(
        self,
        origins: Origins,
        authenticator: Authenticator,
        admits: Callable[[], bool],
        draining: Callable[[], bool] = lambda: False,
        *,
        proxies: Proxies | None = None,
        quotas: Quotas | None = None,
    ) -> None:
        """admits: counts one more handshake; False: not now.

        draining: the worker is about to end: who was let in by an application just now comes too late.

        proxies: those that are believed; None: none. quotas: None: no limits.
        """
        self.origins = origins
        """Web origins besides the hub's own host, as `origin.allowed` takes them."""
        self.authenticator = authenticator
        self.draining = draining
        self.proxies = proxies or Proxies()
        self.quotas = quotas or Quotas()
        self._admits = admits

    def address_of(self, peer: object, headers: Headers) -> str:
        """Where a request comes from: '203.0.113.7'. peer: as `socket.accept` has it; headers: of the request."""
        return self.proxies.client(peer, headers.get("x-forwarded-for", ""))

    def visitor(self, peer: object, headers: Headers, query_token: str = "") -> Visitor:
        """Who asks; the header's token before the query's. Raises HubError for one that is not good, as auth has it."""
        token = bearer(headers) or query_token
        claims = self.authenticator.verify(token) if token else None
        return Visitor(self.address_of(peer, headers), token, claims)

    def admit(self, address: str) -> Refusal | None:
        """Count one more client of this address; why it can't come in now, None if it may."""
        # Its own limits first: what an address is refused must not count against all others.
        reason = self.quotas.admit(address)
        if reason:
            return REFUSALS[reason]
        if self._admits() and not self.draining():
            return None
        self.quotas.refusals.count("draining" if self.draining() else "handshakes")
        return BUSY


def bearer(headers: Headers) -> str:
    """The token of `Authorization: Bearer`; '' where there is none (RFC 6750 §2.1)."""
    scheme, _, token = headers.get("Authorization", "").partition(" ")
    return token.strip() if scheme.lower() == BEARER else ""
