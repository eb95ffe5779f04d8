"""Narrowing: what a client holds and may have no more, once it has shown another token.

Does: take it out of channels that the token before allowed and this one does not, and slow down what it now may have
more slowly only.
Does not: read tokens (auth), decide (permissions), or widen anything: what a token allows more is to be asked for.
Called by: session, with each refresh.
Never break: where nothing is taken away it costs two comparisons; a channel that the client is in by a channel token,
or that the server API or the application has put it in, stays.

    ← {"push":{"channel":"desk:a","unsubscribe":{"code":2500,"reason":"permission denied"}}}

Upon this SDKs subscribe anew, and hear from the hub as everybody does why not: 103. A watch list goes as a whole if any
of its symbols may not be had: whoever asks for it anew chooses what to do without.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple, Protocol

from . import errors, membership
from .auth import Claims
from .capabilities import SUBSCRIBE, Capabilities
from .channels import Namespace
from .errors import CommandError
from .grants import Grant
from .membership import Attempt, Held
from .permissions import Identity, decide, decide_symbols


class Holder(membership.Member, Identity, Protocol):
    """A session, as seen from here."""

    user: str
    grants: dict[str, Grant] | None

    def tell_displaced(self, channel: str, code: int, reason: str) -> None: ...


class _Who(NamedTuple):
    """Somebody, as a token has it."""

    user: str
    capabilities: Capabilities


def narrow(holder: Holder, before: Claims) -> None:
    """It has another token. before: what the one before it said."""
    if holder.capabilities != before.capabilities:
        was, now = _Who(holder.user, before.capabilities), _Who(holder.user, holder.capabilities)
        for channel in [name for name in holder.entries if _is_taken(holder, name, was, now)]:
            _end(holder, channel)
    if holder.max_hz < before.max_hz:
        for channel in list(holder.entries):
            try:
                membership.narrow_rate(holder, channel)
            except CommandError:
                _end(holder, channel)


def _end(holder: Holder, channel: str) -> None:
    if membership.leave(holder, channel):  # else its answer is still to come, and says so
        holder.tell_displaced(channel, errors.UNSUBSCRIBE_CODE, errors.PERMISSION_DENIED.text)


def _is_taken(holder: Holder, channel: str, was: _Who, now: _Who) -> bool:
    entry = holder.entries[channel]
    symbols: tuple[str, ...] = ()
    grant = holder.grants.get(channel) if holder.grants is not None else None
    if isinstance(entry, Attempt):
        grant, symbols = entry.grant, entry.began.symbols
    elif isinstance(entry, Held) and entry.watch_list is not None:
        symbols = entry.watch_list.asked
    namespace = entry if isinstance(entry, Namespace) else entry.namespace
    return not _may(now, channel, namespace, grant, symbols) and _may(was, channel, namespace, grant, symbols)


def _may(who: _Who, channel: str, namespace: Namespace, grant: Grant | None, symbols: Iterable[str]) -> bool:
    try:
        decide(SUBSCRIBE, who, channel, namespace, grant=grant)
        decide_symbols(who, channel.partition(":")[0], namespace, symbols)
    except CommandError:
        return False
    return True
