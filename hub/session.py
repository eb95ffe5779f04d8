"""Session: one connected client of the native protocol, whatever its wire.

Does: handle its commands, hold its subscriptions, ping it, end it with a code.
Does not: know who it is and what it may do (identity, from which it derives), know frames or sockets (its Transport
does), keep audiences, talk to Redis.
Called by: transports (handle, on_deadline, on_gone).
Never break: nothing a client sends may raise out of `handle`; after `on_gone` the session is in no audience.
A new command needs a row in COMMANDS and in protocol.METHODS.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from functools import partial
from math import inf
from typing import Any

from . import __version__, asking, auth, errors, expiry, log, membership, protocol, rpc, wants
from .app_session import Transport
from .audience import WireForm
from .broker import Receipt
from .capabilities import PUBLISH
from .channels import Namespace
from .entrance import NOBODY, Visitor
from .errors import Close, CommandError, HubError, ProtocolError, StoreFull
from .grants import Grant
from .identity import IdentifiedSession
from .limits import Account
from .membership import Entry, Held
from .message import ClientInfo
from .presence import Presence
from .protocol import Command
from .quotas import Meter
from .recovery import Joined
from .services import Services

logger = logging.getLogger(__name__)

TOO_OFTEN = CommandError(errors.TOO_MANY_REQUESTS)
UNREAD_S = 1.0
"""For a client whose pong may wait among what has not been read yet: so soon it is looked at again."""


class Session(IdentifiedSession):
    """A client: plain data, so that it could be handed to another process."""

    __slots__ = (
        "_account",
        "_entered_at",
        "_pending",
        "_ping_due",
        "_pinged_at",
        "_spread",
        "client",
        "connected",
        "entries",
        "meter",
    )

    def __init__(
        self, services: Services, transport: Transport, visitor: Visitor = NOBODY, meter: Meter | None = None
    ) -> None:
        """meter: of its connection, which closes it; None: of a session by itself."""
        self._services = services
        self._transport = transport
        self.visitor = visitor
        self.meter = meter or services.quotas.open(visitor.address)
        self._account: Account | None = None
        """Of its user, where users have rates."""
        self.client = services.new_id()
        self.user = ""
        self.claims = auth.ANONYMOUS
        self.connected = False
        """The connect command has succeeded."""
        self._entered_at = 0.0
        self._ends_at = inf
        self.max_hz = wants.EVERY
        self.entries: dict[str, Entry] = {}
        """Its channels; membership has what they mean."""
        self.grants: dict[str, Grant] | None = None
        self._pinged_at: float | None = None
        self._ping_due = 0.0
        self._spread = False
        """The time of the first ping has been spread, so that clients that came together don't stay in step."""
        self._pending = 0

    @property
    def channel_count(self) -> int:
        return len(self.entries)

    @property
    def presence(self) -> Presence:
        return self._services.presence

    @property
    def histories(self) -> asking.Histories:
        return self._services.histories

    @property
    def services(self) -> Services:
        return self._services

    def holds(self, channel: str) -> bool:
        """The client is subscribed to it."""
        return isinstance(self.entries.get(channel), Namespace | Held)

    # What notices and mailboxes send.

    @property
    def wire(self) -> WireForm:
        return self._transport.wire

    def put(self, frame: bytes) -> None:
        """Queue one frame of this client's wire. Never waits, never raises."""
        self._transport.put(frame)

    def push(self, channel: str, body: bytes) -> None:
        """Send this client alone a publication of a channel that it holds."""
        self._transport.put(self._transport.wire.encode_publication(channel, body))

    # What the transport calls.

    def handle(self, message: bytes) -> None:
        """One message from the client: a command or several."""
        limits = self._services.client
        try:
            commands = protocol.decode(message, limits.commands_per_message, limits.json_depth, limits.json_values)
            if self.meter.spend(self._transport.heard_at, len(commands), len(message), self._account):
                for command in commands:
                    self.take(command)
            else:
                self._refuse(commands)
        except ProtocolError as error:
            logger.debug("client %s: %s", self.client, error)
            if error.close is protocol.CLOSE_TOO_MANY_VALUES:
                self._services.quotas.refusals.count("json")
            self._transport.close(error.close)

    def _refuse(self, commands: list[Command]) -> None:
        """They come too often: none is carried out. Raises ProtocolError where that has gone on for too long."""
        if self.meter.sustained(self._transport.heard_at, len(commands)):
            raise ProtocolError(errors.CLOSE_TOO_MANY_REQUESTS)
        for command in commands:
            if command.id:
                self.fail(command.id, TOO_OFTEN)

    def first_deadline(self, now: float) -> float:
        """When `on_deadline` is to be called first."""
        return now + self._services.client.connect_timeout_s

    def on_deadline(self, now: float) -> float:
        """Ping, judge silence and expiry. Returns when to be called next."""
        if not self.connected:
            self._transport.close(errors.CLOSE_STALE)
            return now
        left_s = self.left_s
        if left_s <= 0:
            self._transport.close(errors.CLOSE_EXPIRED)
            return now
        expiry.end_subscriptions(self)
        if now >= self._ping_due:
            self._ping_due = self._ping(now)
        return min(self._ping_due, now + self.due_s)

    @property
    def due_s(self) -> float:
        """Seconds until its token, or a subscription, ends."""
        return min(self.left_s, expiry.left_s(self)) if self.grants else self.left_s

    def _ping(self, now: float) -> float:
        """One step of pinging: spread the first one, ping, look for life since. Returns when the next step is due."""
        if not self._spread:
            self._spread = True
            return now + self._services.jitter() * self._time_to_first_ping()
        elif self._pinged_at is None:
            self._pinged_at = now
            self._transport.reply(protocol.PING)
            return now + self._services.client.pong_timeout_s
        elif self._transport.heard_at < self._pinged_at:
            # A worker that stood still sees its deadlines before it reads what has come meanwhile.
            if self._transport.unread:
                return now + UNREAD_S
            self._transport.close(errors.CLOSE_NO_PONG)
        else:
            pinged_at, self._pinged_at = self._pinged_at, None
            return pinged_at + self._services.client.ping_interval_s
        return now + self._services.client.ping_interval_s

    def on_gone(self) -> None:
        """The connection is over: leave every channel."""
        if self.connected:
            self._services.users.leave(self)
        self.connected = False
        membership.leave_all(self)
        account, self._account = self._account, None
        self._services.quotas.let_go(account)
        if self._services.gate is not None:
            self._services.gate.gone(self)

    def about(self) -> dict[str, object]:
        """Who this is, for the log."""
        address = self._services.shown(self.visitor.address)
        return {"wire": self.kind, "client": self.client, "user": self.user, "address": address}

    def on_displaced(self, channel: str) -> None:
        """It gets no more of a channel: SDKs subscribe anew on this code, with the position that they have."""
        if membership.displaced(self, channel):
            self.tell_displaced(channel, errors.UNSUBSCRIBE_CODE, errors.CLOSE_INSUFFICIENT_STATE.reason)

    def tell_displaced(self, channel: str, code: int, reason: str) -> None:
        """Its client hears of it; unless it is the application's room, into which the gate lets it again."""
        gate = self._services.gate
        if gate is None or not gate.displaced(self, channel):
            self.say_displaced(channel, code, reason)

    def say_displaced(self, channel: str, code: int, reason: str) -> None:
        self._transport.reply(protocol.encode_unsubscribe(channel, code, reason))

    def resubscribe(self, channel: str) -> None:
        """Take it out of a channel that it holds, and have its client subscribe anew."""
        if self.holds(channel):
            membership.leave(self, channel, hold=True)
            self.tell_displaced(channel, errors.UNSUBSCRIBE_CODE, errors.CLOSE_INSUFFICIENT_STATE.reason)

    # Commands.

    def take(self, command: Command) -> None:
        """One command, in its turn. Raises ProtocolError."""
        if not command.method:
            return  # a pong; that bytes came is what counts, and the transport has seen it
        if not self.connected and command.method != "connect" and not self._is_connecting():
            raise ProtocolError(errors.CLOSE_BAD_REQUEST, f"{command.method} before connect")
        if not command.id and command.method != "send":
            raise ProtocolError(errors.CLOSE_BAD_REQUEST, f"{command.method} without an id")
        self.perform(command)

    def perform(self, command: Command) -> None:
        """Carry out one command of a client that may give it; `reply` or `fail` once, perhaps later."""
        gate = self._services.gate
        try:
            # Not the table itself: a page of the hub's own has other commands.
            if gate is None or not (gate.holds_back(self, command) or gate.asks(self, command)):
                self.carry_out(command)
        except CommandError as error:
            self.fail(command.id, error)

    def carry_out(self, command: Command) -> None:
        """The same, once the application has been asked. Raises CommandError, ProtocolError."""
        COMMANDS[command.method](self, command)

    def _connect(self, command: Command) -> None:
        if self.connected:
            raise ProtocolError(errors.CLOSE_BAD_REQUEST, "connect after connect")
        self.identify(command.params.get("token", ""))
        gate = self._services.gate
        if gate is None:
            self.greet(command.id)
        else:
            greet = partial(self.greet, command.id)
            gate.asks_to_connect(self, "", command.params.get("data"), greet, partial(self.fail, command.id))

    def _is_connecting(self) -> bool:
        gate = self._services.gate
        return gate is not None and gate.connecting(self)

    def greet(self, command_id: int) -> None:
        """The client is in, and is told so; unless its user has too many connections."""
        if self.enter():
            self._transport.reply(protocol.encode_reply(command_id, "connect", self.greeting()))
        else:
            self._transport.close(errors.CLOSE_CONNECTION_LIMIT)

    def greeting(self) -> dict[str, Any]:
        """What the reply to connect says; a wire may have more to say."""
        return {
            "client": self.client,
            "version": __version__,
            "ping": _whole(self._services.client.ping_interval_s),
            "pong": True,
            **self._term(),
        }

    def enter(self) -> bool:
        """The client is in; False: its user has too many connections.

        It is ended at once if meanwhile its user was blocked, or is another one by an application's word.
        """
        users, quotas = self._services.users, self._services.quotas
        if quotas.full(users.count(self.user)):
            return False
        self.connected = True
        self._entered_at = self._transport.heard_at
        self._account = quotas.account_of(self.user)
        users.enter(self, self._transport)
        if logger.isEnabledFor(logging.DEBUG):
            log.event(logger, logging.DEBUG, "connected", client=self.client, user=self.user)
        try:
            self._services.check_access(self.user, self.claims)
        except ProtocolError as error:
            self.end_by(error.close)
        return True

    # What orders ask and do.

    @property
    def open(self) -> bool:
        return self._transport.open

    @property
    def kind(self) -> str:
        return self._transport.kind

    @property
    def address(self) -> str:
        return self.visitor.address

    @property
    def age_s(self) -> float:
        return self._services.clock() - self._entered_at

    @property
    def socket(self) -> Any:
        """The connection that carries it."""
        return self._transport.socket

    @property
    def waiting_bytes(self) -> int:
        return self._transport.waiting_bytes

    @property
    def session_name(self) -> str:
        return ""

    def channels(self) -> Collection[str]:
        """Those that it holds, or is about to."""
        return self.entries.keys()

    def end_by(self, close: Close) -> None:
        """End it, and none of another user."""
        self._transport.close(close)

    def lapse(self, channel: str) -> None:
        """Its channel token for this channel is good no more."""
        expiry.end(self, channel)

    def keep_grant(self, channel: str, grant: Grant) -> None:
        """It holds a channel by a channel token, or by another one."""
        expiry.keep(self, channel, grant)

    def ttl_s(self, channel: str) -> int | None:
        """Whole seconds until its channel token ends; None where it does not, or there is none."""
        return expiry.ttl_s(self, channel)

    @property
    def account(self) -> Account | None:
        """Of its user, where users have rates."""
        return self._account

    def too_many_channels(self) -> None:
        """It asks for more channels than it may have; whoever goes on with that is ended."""
        if self.meter.strike(self._transport.heard_at):
            self._transport.close(errors.CLOSE_CHANNEL_LIMIT)

    def on_subscribed(self, command_id: int, channel: str, watch: bool, joined: Joined) -> None:
        """A subscribe command has been answered: it is in. A wire may have more to do. watch: it is told who comes."""

    def on_left(self, channel: str) -> None:
        """It is in a channel no more."""
        expiry.forget(self, channel)

    def _publish(self, command: Command) -> None:
        channel, namespace = self.resolve(command)
        self.check(PUBLISH, channel, namespace)
        if "data" not in command.params:
            raise CommandError(errors.BAD_REQUEST, "data is missing")
        info = ClientInfo(self.user, self.client)
        done = partial(self._published, command.id)
        self.begin()
        try:
            self._services.publisher.publish(channel, namespace, command.params["data"], done, info)
        except CommandError:
            self.end()
            raise

    def _published(self, command_id: int, outcome: Receipt | HubError) -> None:
        self.end()
        if isinstance(outcome, HubError):
            self.fail(command_id, outcome)
        else:
            self.reply(command_id, "publish", {"ack": outcome.ack} if outcome.ack else {})

    def _send(self, command: Command) -> None:
        """A message without an answer goes to server code; where there is none it ends here, as the protocol allows."""

    def _not_available(self, command: Command) -> None:
        raise CommandError(errors.NOT_AVAILABLE, f"{command.method} is not available")

    def _too_deep(self, command: Command) -> None:
        self._services.quotas.refusals.count("json")
        depth = self._services.client.json_depth
        raise CommandError(errors.BAD_REQUEST, f"nested too deep; allowed for data: {depth} levels")

    def _unknown(self, command: Command) -> None:
        raise CommandError(errors.METHOD_NOT_FOUND)

    # Small parts.

    def resolve(self, command: Command) -> tuple[str, Namespace]:
        channel = command.params.get("channel")
        namespace = self._services.channels.resolve(channel)
        return str(channel), namespace

    def _time_to_first_ping(self) -> float:
        """What is left of the first ping interval when `on_deadline` is called first."""
        client = self._services.client
        return max(0.0, client.ping_interval_s - client.connect_timeout_s)

    def begin(self) -> None:
        """One more command that waits for Redis."""
        if self._pending >= self._services.client.pending_commands:
            raise CommandError(errors.TOO_MANY_REQUESTS, f"{self._pending} commands are waiting")
        self._pending += 1

    def end(self) -> None:
        """One of them has its answer."""
        self._pending -= 1

    def reply(self, command_id: int, method: str, result: dict[str, Any] | None = None) -> None:
        self._transport.reply(protocol.encode_reply(command_id, method, result or {}))

    def fail(self, command_id: int, error: HubError) -> None:
        if isinstance(error, CommandError):
            self._transport.reply(protocol.encode_error(command_id, error.reply, str(error)))
        else:
            # The cause is ours and may hold addresses: the client learns that trying again may help, the log has the
            # rest.
            logger.debug("client %s: %s", self.client, error)
            detail = errors.STORE_FULL if isinstance(error, StoreFull) else ""
            self._transport.reply(protocol.encode_error(command_id, errors.INTERNAL, detail))


def _whole(seconds: float) -> float | int:
    """25.0 as 25: some SDKs read `ping` into an integer."""
    return int(seconds) if seconds == int(seconds) else seconds


COMMANDS: dict[str, Callable[[Session, Command], None]] = {
    "connect": Session._connect,
    "subscribe": membership.subscribe,
    "unsubscribe": membership.unsubscribe,
    "publish": Session._publish,
    "rpc": rpc.call,
    "send": Session._send,
    "presence": asking.presence,
    "presence_stats": asking.presence_stats,
    "history": asking.history,
    "refresh": IdentifiedSession.refresh,
    "sub_refresh": expiry.refresh,
    "ping": Session._unknown,
    "too_deep": Session._too_deep,
    "unknown": Session._unknown,
}
