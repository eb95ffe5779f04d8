"""Identity: who a session's client is, until when, and what it may do.

Does: take the word of tokens, of the request and of the connect command; refresh; ask the rules.
Does not: judge tokens (auth) or decide (permissions), or carry out commands (session, which derives from this).
Called by: session, membership, watch, rpc, asking, transports.
Never break: a client never becomes another user by a token; and whatever it may do is asked of `permissions` alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import inf
from typing import Any, cast

from . import __version__, auth, errors, narrowing, permissions
from .app_session import AppSession
from .capabilities import SUBSCRIBE, Capabilities
from .channels import Namespace
from .entrance import Visitor
from .errors import CommandError, ProtocolError
from .grants import Grant
from .protocol import Command
from .services import Services


class IdentifiedSession(AppSession):
    """The part of a session that knows its client."""

    __slots__ = ("_ends_at", "_services", "_transport", "claims", "grants", "max_hz", "user", "visitor")

    _services: Services
    client: str
    """The hub's name for it."""
    visitor: Visitor
    """Who came, by the request."""
    user: str
    """'' is nobody in particular."""
    claims: auth.Claims
    """Of its token."""
    max_hz: float
    """What its token allows of each channel, a second."""
    grants: dict[str, Grant] | None
    """Those that it holds by a channel token; None for none, as most have it."""
    _ends_at: float
    """When it ends unless it refreshes, in seconds since 1970: its token and a grace, or what an order says."""

    def reply(self, command_id: int, method: str, result: dict[str, Any] | None = None) -> None:
        """Answer a command."""
        raise NotImplementedError

    # Who it is.

    def identify(self, token: object) -> None:
        """The client is the user that its token names, or else that of its request; without both nobody in particular.

        Where both have one it must be the same user: otherwise a page could be somebody else than its cookie says. Of
        the two it is the token here that counts, as it is the newer one. Raises as Authenticator.verify does.
        """
        shown = self.visitor.claims
        if token not in ("", None):
            claims = self._services.authenticator.verify(token)
            if shown is not None and shown.user != claims.user:
                raise ProtocolError(errors.CLOSE_INVALID_TOKEN, "another user than the request's own token names")
            self._take(claims)
        elif shown is not None:
            self._services.authenticator.check(shown)
            self._take(shown)
        self.user = self.claims.user

    def _take(self, claims: auth.Claims) -> None:
        self.claims, self.max_hz = claims, claims.max_hz
        self._ends_at = claims.expires_at + self._services.authenticator.grace_s

    def refresh(self, command: Command) -> None:
        """{"token"}: another one of the same user, whom the application may have given another name meanwhile.

        Answered with client, version and the new end. Raises ProtocolError 3500, also for another user's token, and
        3507; CommandError 109, and then the old one still counts.
        """
        token = command.params.get("token", "")
        if token in ("", None):
            raise CommandError(errors.BAD_REQUEST, "token is missing")
        claims = self._services.authenticator.verify(token)
        if claims.user != self.claims.user:
            raise ProtocolError(errors.CLOSE_INVALID_TOKEN, "another user's token")
        before = self.claims
        self._take(claims)
        narrowing.narrow(cast(narrowing.Holder, self), before)
        # It may end earlier than the one before.
        self._transport.wake(self._services.clock() + self.left_s)
        self.reply(command.id, "refresh", {"client": self.client, "version": __version__, **self._term()})

    # Until when.

    @property
    def left_s(self) -> float:
        """Seconds until it ends, unless it refreshes."""
        return inf if self._ends_at == inf else self._ends_at - self._services.wall_clock()

    def _term(self) -> dict[str, Any]:
        """When its token ends: SDKs get another one by themselves by then, and refresh with it."""
        if self.claims.expires_at == inf:
            return {}
        return {"expires": True, "ttl": max(1, int(self.claims.expires_at - self._services.wall_clock()))}

    def expire(self, at: float) -> None:
        """It is to end then, in seconds since 1970, unless its client refreshes; an order knows no grace."""
        self._ends_at = at
        self._transport.wake(self._services.clock() + self.left_s)

    # What it may do.

    @property
    def capabilities(self) -> Capabilities:
        return self.claims.capabilities

    def check(self, action: str, channel: str, namespace: Namespace) -> None:
        """Whether it may do this; raises CommandError 103."""
        grant = self.grants.get(channel) if self.grants is not None else None
        permissions.decide(action, self, channel, namespace, self.holds(channel), grant)

    def may_subscribe(self, command: Command, channel: str, namespace: Namespace) -> Grant | None:
        """Whether a subscribe command is granted, and what its channel token gives. Raises CommandError 103, 109."""
        token = command.params.get("token")
        grant = self.verify_grant(token) if token not in ("", None) else None
        permissions.decide(SUBSCRIBE, self, channel, namespace, grant=grant)
        return grant

    def may_watch(self, channel: str, namespace: Namespace, symbols: Iterable[str]) -> None:
        """Whether a watch list may have these symbols; raises CommandError 103."""
        permissions.decide_symbols(self, channel.partition(":")[0], namespace, symbols)

    def verify_grant(self, token: object) -> Grant:
        """What a channel token gives this client. Raises CommandError 103, 109."""
        return self._services.authenticator.verify_subscription(token, self.user)

    def is_good(self, grant: Grant) -> bool:
        """Its token has not been revoked since it was looked at."""
        try:
            self._services.authenticator.judge(auth.Claims(self.user, inf, jti=grant.jti, issued_at=grant.issued_at))
        except ProtocolError:
            return False
        return True
