"""App session: what an application does with one session, whatever its wire.

Does: let it into channels and out again past the rules, send it events, end it; tell a native client of that.
Does not: ask the application (app_gate), or handle commands (session, which derives from this).
Called by: app_seat, app_gate.
Never break: a client that is let into a channel hears so before the first publication.

Native clients know such a channel as a server-side subscription: stock SDKs raise `subscribed`, `publication` and
`unsubscribed` of the client itself. It lives as long as the connection: one that comes back is in no such channel until
the application has it join again.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Protocol, cast

from . import errors, membership, protocol
from .audience import WireForm
from .channels import Namespace
from .emission import marked
from .errors import Close, CommandError, HubError
from .membership import Entry, Member
from .position import Position
from .recovery import Joined
from .stream import StreamSubscriber

UNSUBSCRIBED_CODE = 2000
"""Ends a subscription by the server's wish: SDKs don't subscribe again."""


class Transport(StreamSubscriber, Protocol):
    """The connection under a session; it hands `displaced` on to it."""

    @property
    def kind(self) -> str:
        """Of its wire: 'websocket'."""

    @property
    def ready(self) -> bool: ...

    @property
    def socket(self) -> Any:
        """The connection that carries it."""

    @property
    def waiting_bytes(self) -> int:
        """In that one's outbox."""

    @property
    def heard_at(self) -> float:
        """When the client's last byte came, in seconds of `Services.clock`."""

    @property
    def unread(self) -> bool:
        """Something of the client's has come that has not been read yet."""

    def reply(self, message: bytes) -> None:
        """Queue one message of the native protocol, in order with everything else."""

    def close(self, close: Close) -> None:
        """End the connection in order."""

    def wake(self, at: float) -> None:
        """Have the session's deadline called at this time of `Services.clock`, or earlier."""


def encode_event(name: str, args: tuple[Any, ...], number: int | None) -> bytes:
    """An event of the application's as a message of the native protocol. Raises as `AppSession.emit_event`."""
    if number is not None:
        raise CommandError(errors.NOT_AVAILABLE, "acks are of Socket.IO clients")
    values, binary = marked(args)
    data: dict[str, Any] = {"event": name, "data": values[0] if len(values) == 1 else values}
    return protocol.encode_message(data | ({"binary": binary} if binary else {}))


class AppSession:
    """The part of a session that an application has to do with."""

    __slots__ = ()

    entries: dict[str, Entry]
    _transport: Transport

    # What the session has.

    @property
    def services(self) -> Any:
        raise NotImplementedError

    @property
    def wire(self) -> WireForm:
        raise NotImplementedError

    def holds(self, channel: str) -> bool:
        raise NotImplementedError

    def returns(self) -> bool:
        """It says that it has been here, and could have everything back that it missed."""
        return False

    def comes_back(self) -> bool:
        """The same, and it is the user that it was; once its user is known."""
        return False

    def when_back(self, done: Callable[[None], None]) -> None:
        """Tell once when it is in all the rooms that it was in; perhaps at once."""
        done(None)

    # What the application does.

    def join(
        self,
        channel: str,
        namespace: Namespace,
        done: Callable[[HubError | None], None],
        since: Position | None = None,
    ) -> None:
        """Let it into a channel, whatever the rules say; `done` tells once whether it is in.

        since: where it was; only where `tell_joined` makes use of what it has missed.
        """
        most = self.services.client.channels
        if channel in self.entries:
            done(None if self.holds(channel) else CommandError(errors.ALREADY_SUBSCRIBED))
        elif len(self.entries) >= most:
            done(CommandError(errors.LIMIT_EXCEEDED, f"allowed: {most} channels"))
        else:
            membership.join(
                cast(Member, self), channel, namespace, partial(self._joined, channel, namespace, done), since
            )

    def _joined(
        self,
        channel: str,
        namespace: Namespace,
        done: Callable[[HubError | None], None],
        outcome: Joined | HubError,
    ) -> None:
        if isinstance(outcome, HubError):
            done(outcome)
            return
        self.tell_joined(channel, outcome)
        membership.opened(cast(Member, self), channel, namespace)
        done(None)

    def tell_joined(self, channel: str, joined: Joined) -> None:
        """It has been let into a channel by the application."""
        # Not as recoverable, or SDKs would come back with its position and miss it in the answer to their connect.
        position = {"positioned": True, "epoch": joined.epoch, "offset": joined.offset} if joined.positioned else {}
        self._transport.reply(protocol.encode_subscribe(channel, position))

    def leave(self, channel: str) -> None:
        """Out of a channel, if it holds it or is about to."""
        if membership.leave(cast(Member, self), channel):
            self.tell_left(channel)

    def tell_left(self, channel: str) -> None:
        """It has been put out of a channel by the application."""
        self._transport.reply(protocol.encode_unsubscribe(channel, UNSUBSCRIBED_CODE, "server unsubscribe"))

    def emit_event(self, name: str, args: tuple[Any, ...], number: int | None = None) -> None:
        """Send it an event of the application's. number: of the ack that is wanted, where the wire has acks.

        Raises TypeError for what is neither JSON nor bytes.
        """
        self._transport.put(self.wire.encode_message(encode_event(name, args, number)))

    def dismiss(self) -> None:
        """End its connection."""
        self._transport.close(errors.CLOSE_FORCE_DISCONNECT)

    @property
    def transport(self) -> Transport:
        return self._transport
