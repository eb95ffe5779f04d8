"""Seat: what is kept of one client of an application, and the application's way to it.

Does: say what the gate needs of a session; keep a Client, its waiting commands and acks; carry out what the application
does to that one client: emit, call, join, leave, disconnect.
Does not: ask handlers (app_gate) or know wires (transports).
Called by: app_gate, and by applications through Client.
Never break: what is done to a client that has gone is no mistake of the application's, unless it waits for an answer.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NoReturn, Protocol

import orjson

from . import errors, tasks
from .app import App, Client
from .audience import Subscriber
from .auth import is_user
from .channels import Channels, Namespace
from .errors import Close, CommandError, HubError
from .grants import Grant
from .manifest import Entry
from .protocol import Command
from .socketio_protocol import RESERVED

logger = logging.getLogger(__name__)


class Transport(Subscriber, Protocol):
    """A session's connection."""

    @property
    def ready(self) -> bool:
        """It would take more at once: its socket is not full, or its poll waits."""

    def close(self, close: Close) -> None: ...


class Holder(Protocol):
    """Whose seat it is: a session, or a client of plain HTTP."""

    client: str
    user: str

    @property
    def transport(self) -> Transport: ...

    def join(self, channel: str, namespace: Namespace, done: Callable[[HubError | None], None]) -> None: ...

    def leave(self, channel: str) -> None: ...

    def dismiss(self) -> None: ...

    def emit_event(self, name: str, args: tuple[Any, ...], number: int | None = None) -> None: ...


class Member(Holder, Protocol):
    """A session, as seen from here: one that gives commands."""

    connected: bool

    def perform(self, command: Command) -> None: ...

    def carry_out(self, command: Command) -> None: ...

    def resolve(self, command: Command) -> tuple[str, Namespace]: ...

    def check(self, action: str, channel: str, namespace: Namespace) -> None: ...

    def may_subscribe(self, command: Command, channel: str, namespace: Namespace) -> Grant | None: ...

    def begin(self) -> None: ...

    def end(self) -> None: ...

    def reply(self, command_id: int, method: str, result: dict[str, Any] | None = None) -> None: ...

    def fail(self, command_id: int, error: HubError) -> None: ...

    def returns(self) -> bool: ...

    def comes_back(self) -> bool: ...

    def when_back(self, done: Callable[[None], None]) -> None: ...

    def tell_displaced(self, channel: str, code: int, reason: str) -> None: ...


class EventMember(Member, Protocol):
    """One of which the client emits events."""

    def acknowledge(self, number: int, args: tuple[Any, ...]) -> None: ...

    def fail_event(self, name: str, number: int | None, error: HubError) -> None: ...


class Seat:
    """What is kept of one session: its Client, and the Client's way back to it."""

    __slots__ = (
        "_channels",
        "_last_number",
        "_pending",
        "accepted",
        "acks",
        "busy",
        "client",
        "gone",
        "listed",
        "queue",
        "rooms",
        "session",
    )

    def __init__(self, app: App, session: Holder, namespace: str, channels: Channels, pending: int) -> None:
        """namespace: of Socket.IO, or ''. pending: acks that are awaited."""
        self._channels = channels
        self._last_number = 0
        self._pending = pending
        self.session = session
        self.client = Client(app, self, session.client, session.user, namespace)
        self.busy = True
        """The application is asked about its connect or a command of it."""
        self.queue: deque[Command] = deque()
        self.acks: dict[int, asyncio.Future[list[Any]]] = {}
        self.rooms: set[str] = set()
        """Channels that the application has it in."""
        self.accepted = self.gone = False
        self.listed = False
        """It stands on this worker's manifest."""

    # As the Client's Peer.

    def emit(self, name: str, args: tuple[Any, ...], volatile: bool = False) -> None:
        check_event(name)
        if self.gone:
            return  # it may go at any time, so this is nobody's mistake
        if not self.accepted:
            raise RuntimeError("the client is not connected yet; emit in a handler of on_connected")
        if not volatile or self.session.transport.ready:
            self.session.emit_event(name, args)

    async def ask(self, name: str, args: tuple[Any, ...], timeout_s: float) -> Any:
        check_event(name)
        self._check_here()
        if len(self.acks) >= self._pending:
            raise CommandError(errors.TOO_MANY_REQUESTS, f"{len(self.acks)} acks of this client are awaited")
        self._last_number = number = self._last_number + 1
        answer: asyncio.Future[list[Any]] = asyncio.get_running_loop().create_future()
        self.session.emit_event(name, args, number)
        self.acks[number] = answer
        try:
            async with asyncio.timeout(timeout_s):
                args_back = await answer
        finally:
            self.acks.pop(number, None)
        return args_back if len(args_back) > 1 else args_back[0] if args_back else None

    async def enter(self, channel: str) -> None:
        self._check_here()
        await self.let_in(channel, self._channels.resolve(channel))
        self.rooms.add(channel)

    async def exit(self, channel: str) -> None:
        self.rooms.discard(channel)
        self.session.leave(channel)

    def send(self, data: str | bytes) -> None:
        raise TypeError("a client of this kind is sent events: emit")

    def end(self) -> None:
        self.session.dismiss()

    # What the gate does.

    async def let_in(self, channel: str, namespace: Namespace) -> None:
        """Have the session in a channel. Raises HubError."""
        error = await tasks.reply(partial(self.session.join, channel, namespace))
        if error is not None:
            raise error

    def claim(self, claims: object, most_bytes: int) -> None:
        """Take what the connect handler has returned; None is nothing. Raises CommandError 100 for what it must not."""
        if claims is None:
            return
        user = claims.get("user", self.client.user) if isinstance(claims, Mapping) else None
        if not isinstance(claims, Mapping) or not isinstance(user, str) or not is_user(user):
            _fault("returned neither None nor claims with a user's name")
        try:
            size = len(orjson.dumps(claims))
        except TypeError as error:
            _fault(f"returned claims that are no JSON: {error}")
        if size > most_bytes:
            _fault(f"returned claims of {size} bytes; allowed: {most_bytes} (app.claims_bytes)")
        self.client.claims = claims
        self.client.user = self.session.user = user

    def lose(self) -> None:
        """Its session is over: nobody is asked or answered any more."""
        self.gone = True
        self.queue.clear()
        for answer in self.acks.values():
            if not answer.done():
                answer.set_exception(ConnectionError("the client is gone"))

    def entry(self) -> Entry | None:
        """For the manifest; None where the application has been told of its end, or need not be."""
        client = self.client
        return Entry(client.id, client.user, client.namespace, orjson.dumps(client.claims)) if self.listed else None

    def _check_here(self) -> None:
        if self.gone or not self.accepted:
            raise ConnectionError("the client is not connected")


def _fault(text: str) -> NoReturn:
    logger.warning("the application's connect handler %s", text)
    raise CommandError(errors.INTERNAL, "the application failed")


class Departed:
    """The Peer of a client that went with its worker."""

    def emit(self, name: str, args: tuple[Any, ...], volatile: bool = False) -> None:
        raise ConnectionError("the client is gone")

    async def ask(self, name: str, args: tuple[Any, ...], timeout_s: float) -> Any:
        raise ConnectionError("the client is gone")

    async def enter(self, channel: str) -> None:
        raise ConnectionError("the client is gone")

    async def exit(self, channel: str) -> None:
        """It is in no room any more."""

    def send(self, data: str | bytes) -> None:
        raise ConnectionError("the client is gone")

    def end(self) -> None:
        """It has ended."""


def departed(app: App, entry: Entry) -> Client:
    """A client of a worker that was killed, for its disconnect handler."""
    client = Client(app, Departed(), entry.client, entry.user, entry.namespace)
    client.claims = orjson.loads(entry.claims)
    return client


def check_event(name: object) -> None:
    """Raises ValueError for what is no name of an application's event."""
    if not isinstance(name, str) or name in RESERVED:
        raise ValueError(f"event: found {name!r}; allowed: a text that is none of {', '.join(sorted(RESERVED))}")
