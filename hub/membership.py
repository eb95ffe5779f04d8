"""Membership: the channels of one client, and how it comes into them and out.

Does: carry out subscribe and unsubscribe, keep what each of a client's channels is to it: asked for, held plainly, held
with wishes of its own, or a watch list; change such wishes.
Does not: know wires, read Redis or keep audiences (subscribe, watch); which wishes there are stands in wants.
Called by: session, from its table of commands and for whoever ends or displaces a client; rpc (rate, watch).
Never break: every command has one answer, perhaps later; a channel that is left while Redis is still asked is left when
the answer comes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from functools import partial
from sys import intern
from typing import Any, Protocol

from . import errors, log, protocol, wants, wishes
from .audience import Terms, WireForm
from .channels import Channels, Namespace
from .errors import CommandError, HubError
from .grants import Grant
from .message import ClientInfo
from .patterns import Follower, new_list
from .position import Position
from .presence import Presence
from .protocol import Command
from .recovery import Joined
from .redelivery import Redelivery
from .remembered import Remembered
from .sections import ClientSettings
from .stream import StreamSubscriber
from .subscribe import CACHED, Subscriptions
from .wants import PLAIN, Wants
from .watch import WatchList

logger = logging.getLogger(__name__)

KEPT_S = 3600.0
"""So long what a client changed is kept without it having gone, as a killed worker can't say so."""


class Attempt:
    """A subscription that Redis has yet to confirm, with what was asked.

    One object for each attempt, so that two can't be mixed up.
    """

    __slots__ = ("began", "channel", "command_id", "grant", "max_hz", "namespace", "since", "watch")

    def __init__(
        self,
        channel: str,
        namespace: Namespace,
        since: Position | None = None,
        command_id: int = 0,
        watch: bool = False,
        began: Wants = PLAIN,
        grant: Grant | None = None,
        max_hz: float = wants.EVERY,
    ) -> None:
        self.channel = channel
        self.namespace = namespace
        self.since = since
        """Where it was, of one that comes back."""
        self.command_id = command_id
        """0: no command asked for it, so none is answered."""
        self.watch = watch
        """It is to be told who comes and goes."""
        self.began = began
        """What it asks for, which it may get less of."""
        self.grant = grant
        """Of the channel token that came along."""
        self.max_hz = max_hz
        """What the client's token allowed when it asked."""


class Held:
    """A channel that a client holds with wishes of its own."""

    __slots__ = ("began", "changed", "name", "namespace", "terms", "wants", "watch_list")

    def __init__(
        self,
        namespace: Namespace,
        wants: Wants,
        terms: Terms | None,
        watch_list: WatchList | None,
        began: Wants,
        changed: bool = True,
    ) -> None:
        self.namespace = namespace
        self.began = began
        """What it asked for when it came."""
        self.changed = changed
        """It has other wishes since, which are kept for when it comes back."""
        self.wants = wants
        """As granted; the symbols are the watch list's to tell."""
        self.terms = terms
        self.watch_list = watch_list
        self.name: str | None = None
        """Under which its changes are kept, once there are any."""

    def pack(self) -> bytes:
        """What is kept of it."""
        if self.watch_list is None:
            return wants.pack(self.wants)
        return wants.pack(self.wants._replace(symbols=self.watch_list.asked))


Entry = Namespace | Held | Attempt
"""Held plainly, held with wishes, or asked for."""


class Services(Protocol):
    """What this needs of the worker."""

    @property
    def client(self) -> ClientSettings: ...
    @property
    def channels(self) -> Channels: ...
    @property
    def subscriptions(self) -> Subscriptions: ...
    @property
    def presence(self) -> Presence: ...
    @property
    def redelivery(self) -> Redelivery: ...
    @property
    def remembered(self) -> Remembered: ...


class Member(Protocol):
    """A session, as seen from here."""

    client: str
    user: str
    max_hz: float
    entries: dict[str, Entry]

    @property
    def services(self) -> Services: ...
    @property
    def transport(self) -> StreamSubscriber: ...
    def resolve(self, command: Command) -> tuple[str, Namespace]: ...
    def holds(self, channel: str) -> bool: ...
    @property
    def wire(self) -> WireForm: ...
    def put(self, frame: bytes) -> None: ...
    def may_subscribe(self, command: Command, channel: str, namespace: Namespace) -> Grant | None: ...
    def may_watch(self, channel: str, namespace: Namespace, symbols: Iterable[str]) -> None: ...
    def is_good(self, grant: Grant) -> bool:
        """Still, as orders look at those alone that are kept."""

    def keep_grant(self, channel: str, grant: Grant) -> None: ...
    def ttl_s(self, channel: str) -> int | None: ...
    def push(self, channel: str, body: bytes) -> None: ...
    def resubscribe(self, channel: str) -> None: ...
    def on_subscribed(self, command_id: int, channel: str, watch: bool, joined: Joined) -> None: ...
    def on_left(self, channel: str) -> None: ...
    def too_many_channels(self) -> None: ...
    def begin(self) -> None: ...
    def end(self) -> None: ...
    def reply(self, command_id: int, method: str, result: dict[str, Any] | None = None) -> None: ...
    def fail(self, command_id: int, error: HubError) -> None: ...


# Coming.


def subscribe(member: Member, command: Command) -> None:
    """The subscribe command. Raises CommandError."""
    channel, namespace = member.resolve(command)
    services = member.services
    if channel in member.entries:
        raise CommandError(errors.ALREADY_SUBSCRIBED)
    if len(member.entries) >= services.client.channels:
        member.too_many_channels()
        raise CommandError(
            errors.LIMIT_EXCEEDED, f"{len(member.entries)} channels; allowed: {services.client.channels}"
        )
    grant = member.may_subscribe(command, channel, namespace)
    channel = intern(channel)  # kept for as long as it is held, by thousands the same one
    watch, since = False, None
    if len(command.params) > 1:  # more than the channel
        wishes.check(namespace.mode, command.params)
        watch = bool(command.params.get("join_leave"))
        if watch and not namespace.join_leave:
            raise CommandError(errors.NOT_AVAILABLE, "join_leave is not available in this namespace")
        since = wishes.position(command.params) if command.params.get("recover") else None
    if namespace.mode != "latest":  # what clients say there is not for the hub
        member.begin()
        asked = member.entries[channel] = Attempt(channel, namespace, since, command.id, watch, grant=grant)
        _enter(member, asked, namespace)
        return
    began = wants.read(command.params.get("data"), namespace, wants.is_watch(channel, namespace))
    granted = wants.capped(began, namespace, member.max_hz)
    member.may_watch(channel, namespace, began.symbols)
    member.begin()
    asked = member.entries[channel] = Attempt(channel, namespace, since, command.id, watch, began, grant, member.max_hz)
    # Of those who come back, by their own word, and who are somebody: all others cost Redis nothing.
    if namespace.resume_s and (since is not None or began.client):
        # With a token, the epoch says which of the user's connections it was. Others may be here and have changed
        # theirs, which is nothing to this one; and what went without a name is the last one's that has gone.
        was = began.client or (since.epoch if since is not None and member.user else "")
        kept = wants.digest(member.user, was, channel, began)
        if kept:
            services.remembered.recall(kept, partial(_remembered, member, asked, granted))
            return
    _enter_with(member, asked, granted)


def _remembered(member: Member, asked: Attempt, granted: Wants, text: object) -> None:
    """What it had changed before it went is known, or nothing is. granted: of what it asks for now."""
    channel, namespace, began = asked.channel, asked.namespace, asked.began
    if member.entries.get(channel) is not asked:
        member.end()
        member.fail(asked.command_id, _unsubscribed())
        return
    changed = wants.unpack(text, namespace, wants.is_watch(channel, namespace), began)
    try:
        kept = wants.capped(changed, namespace, member.max_hz)
        member.may_watch(channel, namespace, changed.symbols)
    except CommandError:
        # Settings and tokens change, and whoever reaches Redis can write there: neither is this client's mistake.
        # What it asks for now was looked at when it asked.
        changed, kept = began, granted
    if changed is not began:
        name = wants.digest(member.user, member.client, channel, began)
        member.services.remembered.save(name, wants.pack(changed), KEPT_S)
    _enter_with(member, asked, kept, changed is not began)


def _enter_with(member: Member, asked: Attempt, granted: Wants, changed: bool = False) -> None:
    """Into a `latest` channel. changed: it has other wishes than it began with."""
    channel, namespace, subscriptions = asked.channel, asked.namespace, member.services.subscriptions
    if granted is PLAIN:  # and so is what it began with
        _enter(member, asked, namespace)
    elif wants.is_watch(channel, namespace):
        terms = subscriptions.terms(member.transport.wire, granted, channel)
        name = channel.partition(":")[0]
        follower = Follower(channel, member, partial(member.resubscribe, channel))
        watch_list = new_list(
            subscriptions, name, namespace, member.transport, terms, follower, asked.since is not None
        )
        held = Held(namespace, granted, terms, watch_list, asked.began, changed)
        watch_list.alter(granted.symbols, (), partial(_watching, member, asked, held))
    else:
        # Who it says that it was is no wish: with nothing else it shares its bytes with those who have none.
        plain = granted._replace(client="") == PLAIN
        terms_or_none = None if plain else subscriptions.terms(member.transport.wire, granted)
        held = Held(namespace, granted, terms_or_none, None, asked.began, changed)
        _enter(member, asked, held, terms_or_none)


def _enter(member: Member, asked: Attempt, entry: Namespace | Held, terms: Terms | None = None) -> None:
    done = partial(_subscribed, member, asked, entry)
    member.services.subscriptions.subscribe(asked.channel, asked.namespace, member.transport, done, asked.since, terms)


def _subscribed(member: Member, asked: Attempt, entry: Namespace | Held, outcome: Joined | HubError) -> None:
    member.end()
    error = _settle(member, asked, entry, outcome)
    if error is not None or isinstance(outcome, HubError):
        member.fail(asked.command_id, error or CommandError(errors.INTERNAL))
        return
    granted = None
    if isinstance(entry, Held):
        granted = wants.describe(entry.wants)
        if entry.changed and entry.watch_list is not None:  # it gets another list than it asks for
            granted["symbols"] = entry.watch_list.asked
    device = member.client if member.user and asked.namespace.mode == "latest" and asked.namespace.resume_s else ""
    result = wishes.subscribe_result(outcome, granted, member.ttl_s(asked.channel), device)
    member.reply(asked.command_id, "subscribe", result)
    opened(member, asked.channel, asked.namespace)
    if member.max_hz < asked.max_hz:
        _narrow_newcomer(member, asked.channel)
    member.on_subscribed(asked.command_id, asked.channel, asked.watch, outcome)


def _watching(member: Member, asked: Attempt, held: Held, outcome: list[bytes] | HubError) -> None:
    joined = outcome if isinstance(outcome, HubError) else CACHED._replace(publications=outcome)
    _subscribed(member, asked, held, joined)


def _settle(member: Member, asked: Attempt, entry: Namespace | Held, outcome: Joined | HubError) -> HubError | None:
    """The answer to an attempt: the client is in now, or this is why not."""
    channel = asked.channel
    wanted = member.entries.get(channel) is asked
    if isinstance(outcome, HubError):
        if wanted:
            del member.entries[channel]
        return outcome
    if not wanted:
        # Unsubscribed or gone while Redis was asked. Every command has its reply, so this one too.
        _out(member, channel, entry)
        return _unsubscribed()
    if asked.grant is not None and not member.is_good(asked.grant):
        del member.entries[channel]
        _out(member, channel, entry)
        return CommandError(errors.PERMISSION_DENIED, "channel token: it is revoked")
    member.entries[channel] = entry
    if asked.grant is not None:
        member.keep_grant(channel, asked.grant)
    info = ClientInfo(member.user, member.client)
    member.services.presence.enter(channel, asked.namespace, info, member.transport, asked.watch)
    if logger.isEnabledFor(logging.DEBUG):
        log.event(logger, logging.DEBUG, "subscribed", client=member.client, user=member.user, channel=channel)
    return None


def _unsubscribed() -> CommandError:
    return CommandError(errors.BAD_REQUEST, "unsubscribed meanwhile")


def join(
    member: Member,
    channel: str,
    namespace: Namespace,
    done: Callable[[Joined | HubError], None],
    since: Position | None = None,
) -> None:
    """Let it into a channel that it is not in, whatever the rules say; `done` tells once."""
    asked = member.entries[channel] = Attempt(channel, namespace, since)

    def joined(outcome: Joined | HubError) -> None:
        done(_settle(member, asked, namespace, outcome) or outcome)

    member.services.subscriptions.subscribe(channel, namespace, member.transport, joined, since)


def opened(member: Member, channel: str, namespace: Namespace) -> None:
    """It is in a channel, and has been told so."""
    if namespace.mailbox:
        member.services.redelivery.opened(channel, namespace, member)


# Going.


def unsubscribe(member: Member, command: Command) -> None:
    """The unsubscribe command. Raises CommandError."""
    channel, _ = member.resolve(command)
    leave(member, channel)
    member.reply(command.id, "unsubscribe")


def leave(member: Member, channel: str, hold: bool = False) -> bool:
    """Out of a channel, if it holds it or is about to. hold: not by its own wish, so it may soon be back.

    True: it held it.
    """
    entry = member.entries.pop(channel, None)
    if not isinstance(entry, Namespace | Held):
        return False
    if isinstance(entry, Held) and entry.name:
        member.services.remembered.save_now(entry.name)
        _leave_behind(member, channel, entry)
    _out(member, channel, entry)
    member.services.presence.exit(channel, member.client, hold)
    log.event(logger, logging.DEBUG, "unsubscribed", client=member.client, user=member.user, channel=channel)
    return True


def leave_all(member: Member) -> None:
    """The connection is over."""
    entries, member.entries = member.entries, {}
    for channel, entry in entries.items():
        # A channel that is still being subscribed to is left when its answer comes.
        if not isinstance(entry, Attempt):
            if isinstance(entry, Held) and entry.changed:
                member.services.remembered.save(_name(member, channel, entry), entry.pack(), entry.namespace.resume_s)
                _leave_behind(member, channel, entry)
            _out(member, channel, entry)
            member.services.presence.exit(channel, member.client, True)


def displaced(member: Member, channel: str) -> bool:
    """It was taken out of a channel's audience. False: it did not hold it."""
    if not isinstance(member.entries.pop(channel, None), Namespace | Held):
        return False
    member.on_left(channel)
    member.services.presence.exit(channel, member.client, hold=True)
    log.event(logger, logging.DEBUG, "displaced", client=member.client, user=member.user, channel=channel)
    return True


def _out(member: Member, channel: str, entry: Namespace | Held) -> None:
    member.on_left(channel)
    if isinstance(entry, Namespace):
        member.services.subscriptions.unsubscribe(channel, entry, member.transport)
    elif entry.watch_list is not None:
        entry.watch_list.close()
    else:
        member.services.subscriptions.unsubscribe(channel, entry.namespace, member.transport, entry.terms)


def namespace_of(entry: Namespace | Held) -> Namespace:
    """The rules of a channel that is held."""
    return entry if isinstance(entry, Namespace) else entry.namespace


# Other wishes.


def change_rate(member: Member, channel: str, hz: float) -> float:
    """Another rate for a channel that it holds; returns what is granted. Raises CommandError 103, 107."""
    entry = member.entries.get(channel)
    if not isinstance(entry, Namespace | Held) or namespace_of(entry).mode != "latest":
        raise CommandError(errors.BAD_REQUEST, "a rate is of a `latest` channel that this client is subscribed to")
    namespace = namespace_of(entry)
    held = entry if isinstance(entry, Held) else Held(namespace, PLAIN, None, None, PLAIN)
    if held.wants.raw:
        raise CommandError(errors.BAD_REQUEST, "raw is every value: subscribe with mode merge for a rate")
    granted = wants.capped(held.wants._replace(hz=hz), namespace, member.max_hz)
    _go_on_with(member, channel, held, granted)
    held.changed = True
    _remember(member, channel, held)
    return granted.hz


def narrow_rate(member: Member, channel: str) -> None:
    """Hold a channel at the rate that its client may have now, if that is less, and tell it which that is. Raises
    CommandError 103 where it has every value, and may not.

        {"push":{"message":{"data":{"hub":{"rate":{"channel":"ticker:$watch","hz":5.0}}}}}}
    """
    entry = member.entries.get(channel)
    if not isinstance(entry, Namespace | Held) or namespace_of(entry).mode != "latest":
        return
    held = entry if isinstance(entry, Held) else Held(entry, PLAIN, None, None, PLAIN, changed=False)
    granted = wants.capped(held.wants, held.namespace, member.max_hz)
    if granted.hz < held.wants.hz:
        _go_on_with(member, channel, held, granted)
        notice = {"hub": {"rate": {"channel": channel, "hz": granted.hz}}}
        member.put(member.wire.encode_message(protocol.encode_message(notice)))


def _narrow_newcomer(member: Member, channel: str) -> None:
    """Its client has shown a token that allows less, while Redis was asked."""
    try:
        narrow_rate(member, channel)
    except CommandError:
        member.resubscribe(channel)  # it asks anew, and is told why not


def _go_on_with(member: Member, channel: str, held: Held, granted: Wants) -> None:
    """Hold a `latest` channel with these wishes from now on."""
    namespace, subscriptions = held.namespace, member.services.subscriptions
    shown = channel if held.watch_list is not None else ""
    terms = subscriptions.terms(member.transport.wire, granted, shown)
    if held.watch_list is not None:
        held.watch_list.change(terms)
    else:
        subscriptions.change(channel, namespace, member.transport, held.terms, terms)
    held.wants, held.terms = granted, terms
    member.entries[channel] = held


def list_changed(member: Member, channel: str) -> None:
    """The symbols of a watch list that it holds are other ones now."""
    entry = member.entries.get(channel)
    if isinstance(entry, Held) and entry.watch_list is not None:
        entry.changed = True
        _remember(member, channel, entry)


def _remember(member: Member, channel: str, held: Held) -> None:
    """Keep what it changed, soon."""
    if name := _name(member, channel, held):
        member.services.remembered.save_later(name, held.pack, KEPT_S)


def _leave_behind(member: Member, channel: str, held: Held) -> None:
    """It has gone: what it changed is also for a connection of its user that comes back and does not say which it was.

    Not earlier, or a second device would have what the first one does meanwhile.
    """
    if member.user and held.namespace.resume_s:
        name = wants.digest(member.user, "", channel, held.began)
        member.services.remembered.save(name, held.pack(), held.namespace.resume_s)


def _name(member: Member, channel: str, held: Held) -> str:
    """By its id, which it has to show when it comes back. '': nothing is kept."""
    if held.name is None:
        kept = held.namespace.resume_s
        held.name = wants.digest(member.user, member.client, channel, held.began) if kept else ""
    return held.name


def watch_list_of(member: Member, channel: str) -> WatchList:
    """The watch list of this name that it holds. Raises CommandError 107."""
    entry = member.entries.get(channel)
    if not isinstance(entry, Held) or entry.watch_list is None:
        raise CommandError(
            errors.BAD_REQUEST, f"channel: allowed is a watch list, NAMESPACE:{wants.WATCH}, subscribed to"
        )
    return entry.watch_list
