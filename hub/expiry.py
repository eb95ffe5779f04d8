"""Expiry: the channels that a client holds by channel tokens, and what happens when those end.

Does: keep a session's grants, renew them (sub_refresh), end the subscriptions whose token has not been renewed.
Does not: check tokens (auth), or keep timers: the session's own deadline comes early enough (`left_s`).
Called by: session.
Never break: a subscription that a token gave ends `client.subscription_grace_s` after the token at the latest; a client
that renews it in time notices nothing.

    → {"id":2,"subscribe":{"channel":"room:7","token":"…"}}   ← {"id":2,"subscribe":{"expires":true,"ttl":60}}
    → {"id":3,"sub_refresh":{"channel":"room:7","token":"…"}} ← {"id":3,"sub_refresh":{"expires":true,"ttl":60}}
                                  else, after the grace:     ← {"push":{"channel":"room:7","unsubscribe":{"code":2501}}}

SDKs renew when `ttl` is over, hence the grace. Upon 2501 they subscribe anew, with a new token.
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from typing import Any, Protocol

from . import errors, membership
from .capabilities import SUBSCRIBE
from .errors import CommandError
from .grants import Grant
from .permissions import Identity, decide
from .protocol import Command

MAX_TTL_S = 2**31 - 1
"""What SDKs read into an integer."""


class Services(membership.Services, Protocol):
    """What this needs of the worker."""

    @property
    def clock(self) -> Callable[[], float]: ...
    @property
    def wall_clock(self) -> Callable[[], float]: ...


class Transport(Protocol):
    """Its connection."""

    def wake(self, at: float) -> None:
        """Have its deadline called at this time of the clock, or earlier."""


class Holder(membership.Member, Identity, Protocol):
    """A session, as seen from here."""

    user: str
    grants: dict[str, Grant] | None

    @property
    def services(self) -> Services: ...
    @property
    def transport(self) -> Any: ...
    def verify_grant(self, token: object) -> Grant: ...
    def tell_displaced(self, channel: str, code: int, reason: str) -> None: ...


def keep(holder: Holder, channel: str, grant: Grant) -> None:
    """From now on it holds the channel by this."""
    if holder.grants is None:
        holder.grants = {}
    holder.grants[channel] = grant
    if grant.expires_at != inf:
        holder.transport.wake(holder.services.clock() + _left_s(holder, grant))


def forget(holder: Holder, channel: str) -> None:
    """It has left a channel."""
    if holder.grants is not None:
        holder.grants.pop(channel, None)
        if not holder.grants:
            holder.grants = None


def ttl_s(holder: Holder, channel: str) -> int | None:
    """Whole seconds until its token for this channel ends, 1 at least; None where that never is."""
    grant = holder.grants.get(channel) if holder.grants is not None else None
    if grant is None or grant.expires_at == inf:
        return None
    return max(1, min(int(grant.expires_at - holder.services.wall_clock()), MAX_TTL_S))


def left_s(holder: Holder) -> float:
    """Seconds until the first of its subscriptions has to end; of those that it will not have renewed by then."""
    return min((_left_s(holder, grant) for grant in (holder.grants or {}).values()), default=inf)


def end_subscriptions(holder: Holder) -> None:
    """End those that are over."""
    if holder.grants is None:
        return
    over = [channel for channel, grant in holder.grants.items() if _left_s(holder, grant) <= 0]
    for channel in over:
        end(holder, channel)


def end(holder: Holder, channel: str) -> None:
    """Take it out of a channel for which its token is good no more."""
    membership.leave(holder, channel, hold=True)
    holder.tell_displaced(channel, errors.UNSUBSCRIBE_EXPIRED_CODE, errors.CLOSE_SUBSCRIPTION_EXPIRED.reason)


def refresh(holder: Holder, command: Command) -> None:
    """The sub_refresh command. Raises CommandError: 103 for a bad token or a channel that it does not hold, 109."""
    channel, namespace = holder.resolve(command)
    if not holder.holds(channel):
        raise CommandError(errors.PERMISSION_DENIED, "not subscribed to this channel")
    grant = holder.verify_grant(command.params.get("token"))
    decide(SUBSCRIBE, holder, channel, namespace, grant=grant)
    keep(holder, channel, grant)
    ttl = ttl_s(holder, channel)
    holder.reply(command.id, "sub_refresh", {} if ttl is None else {"expires": True, "ttl": ttl})


def _left_s(holder: Holder, grant: Grant) -> float:
    return grant.expires_at + holder.services.client.subscription_grace_s - holder.services.wall_clock()
