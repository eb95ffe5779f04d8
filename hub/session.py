"""Session: one connected client of the native protocol, whatever its wire.

Does: handle its commands, hold its identity and subscriptions, ping it, end it with a code.
Does not: know frames or sockets (its Transport does), keep audiences, talk to Redis.
Called by: transports (handle, on_deadline, on_gone).
Never break: nothing a client sends may raise out of `handle`; after `on_gone` the session is in no audience.
A new command needs a row in COMMANDS and in protocol.METHODS.
"""

from __future__ import annotations

import logging
import random
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from math import inf
from typing import Any, Protocol

from . import __version__, auth, errors, protocol
from .audience import Subscriber
from .channels import Channels, Namespace, may_publish, may_subscribe
from .config import ClientSettings
from .errors import Close, CommandError, HubError, ProtocolError
from .message import ClientInfo
from .outbox import Limits
from .protocol import Command
from .publish import Publisher
from .subscribe import Subscriptions

logger = logging.getLogger(__name__)


class Transport(Subscriber, Protocol):
    """The connection under a session."""

    heard_at: float
    """When the client's last byte came, in seconds of `Services.clock`."""

    def reply(self, message: bytes) -> None:
        """Queue one message of the native protocol, in order with everything else."""

    def close(self, close: Close) -> None:
        """End the connection in order."""


class Users:
    """Who has connected to this worker: all sessions, and how many each user has.

    The anonymous user '' is nobody in particular, so it counts as a session and not as a user.
    """

    __slots__ = ("_sessions", "sessions")

    def __init__(self) -> None:
        self._sessions: dict[str, int] = {}
        self.sessions = 0

    def __len__(self) -> int:
        return len(self._sessions)

    def enter(self, user: str) -> None:
        self.sessions += 1
        if user:
            self._sessions[user] = self._sessions.get(user, 0) + 1

    def leave(self, user: str) -> None:
        """The opposite of an `enter` before."""
        self.sessions -= 1
        if user:
            left = self._sessions[user] - 1
            if left:
                self._sessions[user] = left
            else:
                del self._sessions[user]


@dataclass(frozen=True, slots=True)
class Services:
    """What all sessions of a worker share."""

    client: ClientSettings
    outbox: Limits
    hmac_secret: str
    channels: Channels
    publisher: Publisher
    subscriptions: Subscriptions
    users: Users = field(default_factory=Users)
    clock: Callable[[], float] = time.monotonic
    wall_clock: Callable[[], float] = time.time
    new_id: Callable[[], str] = lambda: str(uuid.uuid4())
    jitter: Callable[[], float] = random.random


class _Asked:
    """Stands for a subscription that Redis has yet to confirm.

    One object for each attempt, so that two can't be mixed up.
    """

    __slots__ = ()


class Session:
    """A client: plain data, so that it could be handed to another process."""

    __slots__ = (
        "_channels",
        "_expires_at",
        "_pending",
        "_ping_due",
        "_pinged_at",
        "_services",
        "_spread",
        "_transport",
        "client",
        "connected",
        "user",
    )

    def __init__(self, services: Services, transport: Transport) -> None:
        self._services = services
        self._transport = transport
        self.client = services.new_id()
        self.user = ""
        self.connected = False
        """The connect command has succeeded."""
        self._expires_at: float | None = None
        self._channels: dict[str, Namespace | _Asked] = {}
        self._pinged_at: float | None = None
        self._ping_due = 0.0
        self._spread = False
        """The time of the first ping has been spread, so that clients that came together don't stay in step."""
        self._pending = 0

    @property
    def channel_count(self) -> int:
        return len(self._channels)

    # What the transport calls.

    def handle(self, message: bytes) -> None:
        """One message from the client: a command or several."""
        try:
            for command in protocol.decode(message, self._services.client.commands_per_message):
                self._handle(command)
        except ProtocolError as error:
            logger.debug("client %s: %s", self.client, error)
            self._transport.close(error.close)

    def first_deadline(self, now: float) -> float:
        """When `on_deadline` is to be called first."""
        return now + self._services.client.connect_timeout_s

    def on_deadline(self, now: float) -> float:
        """Ping, judge silence and expiry. Returns when to be called next."""
        if not self.connected:
            self._transport.close(errors.CLOSE_STALE)
            return now
        left_s = inf if self._expires_at is None else self._expires_at - self._services.wall_clock()
        if left_s <= 0:
            self._transport.close(errors.CLOSE_EXPIRED)
            return now
        if now >= self._ping_due:
            self._ping_due = self._ping(now)
        return min(self._ping_due, now + left_s)

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
            self._transport.close(errors.CLOSE_NO_PONG)
        else:
            pinged_at, self._pinged_at = self._pinged_at, None
            return pinged_at + self._services.client.ping_interval_s
        return now + self._services.client.ping_interval_s

    def on_gone(self) -> None:
        """The connection is over: leave every channel."""
        if self.connected:
            self._services.users.leave(self.user)
        self.connected = False
        channels, self._channels = self._channels, {}
        for channel, namespace in channels.items():
            # A channel that is still being subscribed to is left when its answer comes.
            if isinstance(namespace, Namespace):
                self._services.subscriptions.unsubscribe(channel, namespace, self._transport)

    # Commands.

    def _handle(self, command: Command) -> None:
        if not command.method:
            return  # a pong; that bytes came is what counts, and the transport has seen it
        if not self.connected and command.method != "connect":
            raise ProtocolError(errors.CLOSE_BAD_REQUEST, f"{command.method} before connect")
        if not command.id and command.method != "send":
            raise ProtocolError(errors.CLOSE_BAD_REQUEST, f"{command.method} without an id")
        try:
            COMMANDS[command.method](self, command)
        except CommandError as error:
            self._fail(command.id, error)

    def _connect(self, command: Command) -> None:
        if self.connected:
            raise ProtocolError(errors.CLOSE_BAD_REQUEST, "connect after connect")
        services = self._services
        token = command.params.get("token", "")
        if token not in ("", None):
            self.user, self._expires_at = auth.verify(token, services.hmac_secret, services.wall_clock())
        self.connected = True
        services.users.enter(self.user)
        logger.debug("client %s: connected as user %r", self.client, self.user)
        result = {
            "client": self.client,
            "version": __version__,
            "ping": _whole(services.client.ping_interval_s),
            "pong": True,
        }
        self._transport.reply(protocol.encode_reply(command.id, "connect", result))

    def _subscribe(self, command: Command) -> None:
        channel, namespace = self._resolve(command)
        if channel in self._channels:
            raise CommandError(errors.ALREADY_SUBSCRIBED)
        if len(self._channels) >= self._services.client.channels:
            raise CommandError(
                errors.LIMIT_EXCEEDED, f"{len(self._channels)} channels; allowed: {self._services.client.channels}"
            )
        may_subscribe(namespace.subscribe, self.user)
        for wish in ("token", "recover", "recoverable", "positioned", "join_leave"):
            if command.params.get(wish):
                raise CommandError(errors.NOT_AVAILABLE, f"{wish} is not available")
        self._begin()
        asked = self._channels[channel] = _Asked()
        done = partial(self._subscribed, command.id, channel, namespace, asked)
        self._services.subscriptions.subscribe(channel, namespace, self._transport, done)

    def _subscribed(
        self, command_id: int, channel: str, namespace: Namespace, asked: _Asked, error: HubError | None
    ) -> None:
        self._pending -= 1
        wanted = self._channels.get(channel) is asked
        if error is not None:
            if wanted:
                del self._channels[channel]
            self._fail(command_id, error)
        elif not wanted:
            # Unsubscribed or gone while Redis was asked. Every command has its reply, so this one too.
            self._services.subscriptions.unsubscribe(channel, namespace, self._transport)
            self._fail(command_id, CommandError(errors.BAD_REQUEST, "unsubscribed meanwhile"))
        else:
            self._channels[channel] = namespace
            self._reply(command_id, "subscribe")

    def _unsubscribe(self, command: Command) -> None:
        channel, namespace = self._resolve(command)
        if isinstance(self._channels.pop(channel, None), Namespace):
            self._services.subscriptions.unsubscribe(channel, namespace, self._transport)
        self._reply(command.id, "unsubscribe")

    def _publish(self, command: Command) -> None:
        channel, namespace = self._resolve(command)
        may_publish(namespace.publish, self.user, isinstance(self._channels.get(channel), Namespace))
        if "data" not in command.params:
            raise CommandError(errors.BAD_REQUEST, "data is missing")
        info = ClientInfo(self.user, self.client)
        done = partial(self._published, command.id)
        self._begin()
        try:
            self._services.publisher.publish(channel, namespace, command.params["data"], done, info)
        except CommandError:
            self._pending -= 1
            raise

    def _published(self, command_id: int, error: HubError | None) -> None:
        self._pending -= 1
        if error is not None:
            self._fail(command_id, error)
        else:
            self._reply(command_id, "publish")

    def _rpc(self, command: Command) -> None:
        method = command.params.get("method", "")
        answer = RPC_METHODS.get(method) if isinstance(method, str) else None
        if answer is None:
            raise CommandError(errors.METHOD_NOT_FOUND)
        self._reply(command.id, "rpc", {"data": answer(self)})

    def _time(self) -> dict[str, str]:
        """`hub.time`: the hub's clock, with which a client can tell how old a tick is."""
        return {"time_ns": str(int(self._services.wall_clock() * 1e9))}

    def _send(self, command: Command) -> None:
        """A message without an answer goes to server code; where there is none it ends here, as the protocol allows."""

    def _not_available(self, command: Command) -> None:
        raise CommandError(errors.NOT_AVAILABLE, f"{command.method} is not available")

    def _unknown(self, command: Command) -> None:
        raise CommandError(errors.METHOD_NOT_FOUND)

    # Small parts.

    def _resolve(self, command: Command) -> tuple[str, Namespace]:
        channel = command.params.get("channel")
        namespace = self._services.channels.resolve(channel)
        return str(channel), namespace

    def _time_to_first_ping(self) -> float:
        """What is left of the first ping interval when `on_deadline` is called first."""
        client = self._services.client
        return max(0.0, client.ping_interval_s - client.connect_timeout_s)

    def _begin(self) -> None:
        """One more command that waits for Redis."""
        if self._pending >= self._services.client.pending_commands:
            raise CommandError(errors.TOO_MANY_REQUESTS, f"{self._pending} commands are waiting")
        self._pending += 1

    def _reply(self, command_id: int, method: str, result: dict[str, Any] | None = None) -> None:
        self._transport.reply(protocol.encode_reply(command_id, method, result or {}))

    def _fail(self, command_id: int, error: HubError) -> None:
        if isinstance(error, CommandError):
            self._transport.reply(protocol.encode_error(command_id, error.reply, str(error)))
        else:
            # The cause is ours and may hold addresses: the client learns that trying again may help, the log has the
            # rest.
            logger.debug("client %s: %s", self.client, error)
            self._transport.reply(protocol.encode_error(command_id, errors.INTERNAL))


def _whole(seconds: float) -> float | int:
    """25.0 as 25: some SDKs read `ping` into an integer."""
    return int(seconds) if seconds == int(seconds) else seconds


RPC_METHODS: dict[str, Callable[[Session], Any]] = {"hub.time": Session._time}

COMMANDS: dict[str, Callable[[Session, Command], None]] = {
    "connect": Session._connect,
    "subscribe": Session._subscribe,
    "unsubscribe": Session._unsubscribe,
    "publish": Session._publish,
    "rpc": Session._rpc,
    "send": Session._send,
    "presence": Session._not_available,
    "presence_stats": Session._not_available,
    "history": Session._not_available,
    "refresh": Session._not_available,
    "sub_refresh": Session._not_available,
    "ping": Session._unknown,
    "unknown": Session._unknown,
}
