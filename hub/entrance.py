"""Entrance: what is known of a client before anything is built for it, and whether it may come in.

Does: say where a request comes from and whose token it shows, wherever that stands; count it; refuse it.
Does not: answer (each wire says no in its own words), read HTTP, check tokens (auth) or keep tickets (tickets), or
judge what a client may do once it is in (channels).
Called by: every wire's handler and the acceptor, before a session is made.
Never break: nothing that a client can choose is trusted here unless it has been checked; what is shown must be good:
nobody is let in as nobody with a bad token.

A request shows one of these, and the first that is there counts:

    Authorization: Bearer TOKEN
    ?token=TOKEN            for who can send no header; it stands in the logs of proxies, so it should be short-lived
    ?ticket=TICKET          of the server API, good for one request within a minute
    Cookie: NAME=TOKEN      where auth.cookie names it, and for pages of the hub's own host and of allowed_origins only

A browser sends a cookie along for every page that asks, of whatever site; so without an Origin header that has been
found good it is as if there were none (cross-site WebSocket hijacking). Same-origin requests that browsers send no
Origin with say so in Sec-Fetch-Site, which pages can't set.

Where an application is configured and the hub has no keys, tokens are the application's, and are not judged here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

from . import errors, origin
from .auth import Authenticator, Claims
from .errors import CommandError, HubError, ProtocolError
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
TOKEN, TICKET = "token", "ticket"
"""Parameters of the query."""
ODD = frozenset("%+;")
"""In a query: whether there is a token in it is then for a whole parser to say."""


class Redeemer(Protocol):
    """Keeps tickets."""

    async def redeem(self, ticket: str) -> Claims:
        """Whom a ticket speaks for. Raises HubError."""


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

    __slots__ = ("_admits", "_tickets", "authenticator", "cookie", "draining", "judges", "origins", "proxies", "quotas")

    def __init__(
        self,
        origins: Origins,
        authenticator: Authenticator,
        admits: Callable[[], bool],
        draining: Callable[[], bool] = lambda: False,
        *,
        cookie: str = "",
        tickets: Redeemer | None = None,
        judges: bool = True,
        proxies: Proxies | None = None,
        quotas: Quotas | None = None,
    ) -> None:
        """admits: counts one more handshake; False: not now.

        draining: the worker is about to end: who was let in by an application just now comes too late. cookie: its
        name, '' for none. tickets: None where there are none. judges: tokens are the hub's, and not the application's.

        proxies: those that are believed; None: none. quotas: None: no limits.
        """
        self.origins = origins
        """Web origins besides the hub's own host, as `origin.allowed` takes them."""
        self.authenticator = authenticator
        self.draining = draining
        self.cookie = cookie
        self.judges = judges
        self.proxies = proxies or Proxies()
        self.quotas = quotas or Quotas()
        self._admits = admits
        self._tickets = tickets

    def address_of(self, peer: object, headers: Headers) -> str:
        """Where a request comes from: '203.0.113.7'. peer: as `socket.accept` has it; headers: of the request."""
        return self.proxies.client(peer, headers.get("x-forwarded-for", ""))

    def shown(self, headers: Headers, token: str = "", ticket: str = "") -> str:
        """What a request shows, '' for nothing. token, ticket: of its query."""
        return (bearer(headers) or token or ticket or self._of_cookie(headers)) if self.judges else ""

    def visitor(self, address: str, headers: Headers, token: str = "", *, keep: bool = True) -> Visitor:
        """Who asks, by a request without a ticket. address: as `address_of` has it. keep: with what it has shown.

        Raises HubError for a token that is not good, as auth has it.
        """
        found = self.shown(headers, token)
        try:
            return Visitor(address, found if keep else "", self.authenticator.verify(found) if found else None)
        except HubError as error:
            self._note(error)
            raise

    async def visit(self, peer: object, headers: Headers, token: str = "", ticket: str = "") -> Visitor:
        """Who asks; only where it shows a ticket, which is used then, this waits. Raises as `visitor` does, and
        CommandError 111 where others took its place meanwhile.
        """
        address = self.address_of(peer, headers)
        if not ticket or not self.judges or bearer(headers) or token:
            return self.visitor(address, headers, token)
        try:
            if self._tickets is None:
                raise ProtocolError(errors.CLOSE_INVALID_TOKEN, "there are no tickets here")
            claims = await self._tickets.redeem(ticket)
        except HubError as error:
            self._note(error)
            raise
        if reason := self.quotas.no_room(address):
            raise CommandError(errors.TOO_MANY_REQUESTS, REFUSALS[reason].text)
        return Visitor(address, ticket, claims)

    def _note(self, error: HubError) -> None:
        """Count who showed what is not good; not where that can't be told now."""
        if not errors.is_temporary(error) or isinstance(error, ProtocolError):
            self.quotas.refusals.count("tokens")

    def _of_cookie(self, headers: Headers) -> str:
        if not self.cookie or not (text := headers.get("cookie", "")):
            return ""
        page = headers.get("origin", "")
        if page:
            trusted = origin.allowed(page, headers.get("host", ""), self.origins)
        else:
            trusted = headers.get("sec-fetch-site", "") == "same-origin"
        return _cookie(text, self.cookie) if trusted else ""

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


def refusal(error: HubError) -> Refusal:
    """The answer to a request whose token or ticket is not good, or can't be judged now."""
    if isinstance(error, ProtocolError) and error.close is errors.CLOSE_PERMISSION_DENIED:  # a blocked user
        return Refusal(403, error.close.reason, {})
    if isinstance(error, ProtocolError):
        return Refusal(401, error.close.reason, {"WWW-Authenticate": 'Bearer error="invalid_token"'})
    if isinstance(error, CommandError) and error.reply is errors.TOO_MANY_REQUESTS:
        return Refusal(429, str(error), TOO_MANY.headers)
    if errors.is_temporary(error):
        return Refusal(503, "who this is can't be told now; try again", {"Retry-After": "1"})
    text = error.reply.text if isinstance(error, CommandError) else errors.UNAUTHORIZED.text
    return Refusal(401, text, {"WWW-Authenticate": 'Bearer error="invalid_token"'})


def bearer(headers: Headers) -> str:
    """The token of `Authorization: Bearer`; '' where there is none (RFC 6750 §2.1)."""
    text = headers.get("authorization", "")
    if not text:
        return ""
    scheme, _, token = text.partition(" ")
    return token.strip() if scheme.lower() == BEARER else ""


def query_token(query: str) -> str | None:
    """The token of a plain query, '' for none; None for one that shows a ticket, or that only Tornado understands.

    'a=1&token=eyJ…' -> 'eyJ…'
    """
    if not ODD.isdisjoint(query):
        return None
    parts = [part.partition("=") for part in query.split("&")]
    tokens = [value for name, _, value in parts if name == TOKEN]
    return None if len(tokens) > 1 or any(name == TICKET for name, _, _ in parts) else tokens[0] if tokens else ""


def _cookie(text: str, name: str) -> str:
    """('a=1; t=2', 't') -> '2'. Of several the first: browsers send the most specific path first (RFC 6265 §5.4)."""
    for part in text.split(";"):
        key, _, value = part.strip().partition("=")
        if key == name:
            return value.strip('"')
    return ""
