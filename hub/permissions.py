"""Permissions: whether a client may subscribe to a channel, publish there, or ask for its history or presence.

Does: decide by the users that the channel is limited to, by a channel token, by the capabilities of the connection's
token and by the namespace's rules.
Does not: read tokens (auth, grants, capabilities) or settings (channels), nor judge what the server API and an
application do.
Called by: session for all its wires, transports.plain and transports.publishing for those without one.
Never break: `decide` is the only place that says yes. A channel that is limited to users is theirs alone, whatever
else a client holds.

    limited to other users (inbox:#42)             no
    a channel token for this very channel          yes to sub, and to what its claim `allow` lists
    capabilities: the first entry that names it    yes to what it allows
    the namespace's rule                           nobody, anyone, user, subscriber; token is the rule that says no here

So tokens add to the rules and never take away. A watch list is asked for by its own name, 'ticker:$watch', and by each
of its symbols' channels. A new action needs a row in RULES.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol

from . import capabilities, errors
from .capabilities import HISTORY, PRESENCE, PUBLISH, SUBSCRIBE, Capabilities
from .channels import Namespace, limited_to
from .errors import CommandError
from .grants import Grant

ANYTHING = "*"


class Identity(Protocol):
    """Who wants it. user: '' is nobody in particular."""

    @property
    def user(self) -> str: ...
    @property
    def capabilities(self) -> Capabilities: ...


RULES: dict[str, Callable[[Namespace], str]] = {
    SUBSCRIBE: lambda namespace: namespace.subscribe,
    PUBLISH: lambda namespace: namespace.publish,
    HISTORY: lambda namespace: namespace.history,
    PRESENCE: lambda namespace: namespace.presence,
}


def decide(
    action: str,
    who: Identity,
    channel: str,
    namespace: Namespace,
    subscribed: bool = False,
    grant: Grant | None = None,
) -> None:
    """Return if `who` may do it, raise CommandError 103 otherwise.

    channel, namespace: as `Channels.resolve` took and gave them. subscribed: this connection holds the channel.
    grant: of a channel token of this user's, which was good; one for another channel is refused, and not passed over.
    """
    check_users(channel, who.user)
    if grant is not None:
        if grant.channel != channel:
            raise CommandError(errors.PERMISSION_DENIED, "channel token: it is for another channel")
        if action == SUBSCRIBE or action in grant.allow:
            return
    if who.capabilities and capabilities.allows(who.capabilities, action, channel):
        return
    if not _ruled(action, who, namespace, subscribed):
        raise CommandError(errors.PERMISSION_DENIED)


def decide_symbols(who: Identity, name: str, namespace: Namespace, symbols: Iterable[str]) -> None:
    """The same of subscribing to each symbol of a watch list, and to all that begin as its patterns do.

    name: of the namespace. symbols: 'ACME', or 'AC*' for all that begin so.
    """
    # No symbol is limited to users, as none has a '#'; so where the rule says yes it does so for all, in one look.
    if not _ruled(SUBSCRIBE, who, namespace, False):
        for symbol in symbols:
            channel = f"{name}:{symbol}"
            if not symbol.endswith(ANYTHING):
                decide(SUBSCRIBE, who, channel, namespace)
            elif not capabilities.allows_all(who.capabilities, SUBSCRIBE, channel.removesuffix(ANYTHING)):
                raise CommandError(errors.PERMISSION_DENIED)


def _ruled(action: str, who: Identity, namespace: Namespace, subscribed: bool) -> bool:
    """What the namespace's rule says."""
    rule = RULES[action](namespace)
    return rule == "anyone" or (rule == "user" and bool(who.user)) or (rule == "subscriber" and subscribed)


def check_users(channel: str, user: str) -> None:
    """Return unless the channel is limited to other users; raises CommandError 103. The other rules hold besides."""
    users = limited_to(channel)
    if users is not None and user not in users:
        raise CommandError(errors.PERMISSION_DENIED)
