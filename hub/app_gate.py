"""Gate: where an application meets the clients of one worker.

Does: ask its handlers about a client's connect, commands and events, in order; keep a Client for each session; carry
out what the application does: publish, emit, join, leave, calls that wait for an ack.
Does not: run handlers (app_runner), check the namespaces' rules (channels) or know wires (transports).
Called by: session and transports.socketio, where an application is configured; worker builds it.
Never break: every command, connect and event that wants it has one answer; commands of one client are carried out in
their order, so while the application thinks about one, those behind wait (at most `pending`), and nobody else's do.
Events of a client begin in their order, and one does not wait for another.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Coroutine, Mapping
from functools import partial
from typing import Any, Protocol

import orjson

from . import app as apps
from . import emission, errors, tasks
from .app import Call, Client, Handler
from .app_runner import Runner
from .audience import Subscriber
from .auth import is_user
from .channels import Channels, Namespace, may_publish, may_subscribe, may_use
from .errors import Close, CommandError, HubError, ProtocolError
from .protocol import Command
from .publish import Publisher
from .socketio_protocol import RESERVED

logger = logging.getLogger(__name__)

Refuse = Callable[[HubError], None]


class Transport(Subscriber, Protocol):
    """A session's connection."""

    def close(self, close: Close) -> None: ...


class Member(Protocol):
    """A session, as seen from here."""

    client: str
    user: str
    connected: bool

    @property
    def transport(self) -> Transport: ...

    def perform(self, command: Command) -> None: ...

    def carry_out(self, command: Command) -> None: ...

    def resolve(self, command: Command) -> tuple[str, Namespace]: ...

    def holds(self, channel: str) -> bool: ...

    def begin(self) -> None: ...

    def end(self) -> None: ...

    def reply(self, command_id: int, method: str, result: dict[str, Any] | None = None) -> None: ...

    def fail(self, command_id: int, error: HubError) -> None: ...

    def join(self, channel: str, namespace: Namespace, done: Callable[[HubError | None], None]) -> None: ...

    def leave(self, channel: str) -> None: ...

    def dismiss(self) -> None: ...

    def emit_event(self, name: str, args: tuple[Any, ...], number: int | None = None) -> None: ...

    def tell_displaced(self, channel: str, code: int, reason: str) -> None: ...


class EventMember(Member, Protocol):
    """One of which the client emits events."""

    def acknowledge(self, number: int, args: tuple[Any, ...]) -> None: ...

    def fail_event(self, name: str, number: int | None, error: HubError) -> None: ...


class _Seat:
    """What is kept of one session: its Client, and the Client's way back to it."""

    __slots__ = ("_gate", "_last_number", "accepted", "acks", "busy", "client", "gone", "queue", "rooms", "session")

    def __init__(self, gate: Gate, session: Member, namespace: str) -> None:
        self._gate = gate
        self._last_number = 0
        self.session = session
        self.client = Client(gate.runner.app, self, session.client, session.user, namespace)
        self.busy = True
        """The application is asked about its connect or a command of it."""
        self.queue: deque[Command] = deque()
        self.acks: dict[int, asyncio.Future[list[Any]]] = {}
        self.rooms: set[str] = set()
        """Channels that the application has it in."""
        self.accepted = self.gone = False

    # As the Client's Peer.

    def emit(self, name: str, args: tuple[Any, ...]) -> None:
        _check_event(name)
        if self.gone:
            return  # it may go at any time, so this is nobody's mistake
        if not self.accepted:
            raise RuntimeError("the client is not connected yet; emit in a handler of on_connected")
        self.session.emit_event(name, args)

    async def ask(self, name: str, args: tuple[Any, ...], timeout_s: float) -> Any:
        _check_event(name)
        self._check_here()
        if len(self.acks) >= self._gate.pending:
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
        namespace = self._gate.channels.resolve(channel)
        await self._gate.let_in(self, channel, namespace)
        self.rooms.add(channel)

    async def exit(self, channel: str) -> None:
        self.rooms.discard(channel)
        self.session.leave(channel)

    def end(self) -> None:
        self.session.dismiss()

    def _check_here(self) -> None:
        if self.gone or not self.accepted:
            raise ConnectionError("the client is not connected")


class Gate:
    """The application of one worker. Build it with a running loop."""

    def __init__(self, runner: Runner, channels: Channels, publisher: Publisher, pending: int) -> None:
        """pending: of one client, commands that wait for their turn, and acks that are awaited."""
        self.runner = runner
        self.channels = channels
        self.pending = pending
        self._publisher = publisher
        self._app = runner.app
        self._seats: dict[Member, _Seat] = {}
        self._by_client: dict[str, _Seat] = {}
        self._app.bind(self)

    def find(self, client: str) -> Subscriber | None:
        """The connection of one of this worker's clients, for the fan-out."""
        seat = self._by_client.get(client)
        return seat.session.transport if seat is not None else None

    # What sessions call.

    def asks_to_connect(
        self, session: Member, namespace: str, data: Any, accept: Callable[[], None], refuse: Refuse
    ) -> None:
        """Whether a client may come in; one of the two is called, later, unless it goes before.

        namespace: of Socket.IO, or ''. data: what the client sent along. Raises CommandError 111.
        """
        seat = _Seat(self, session, namespace)
        self._begin(seat, self._connect(seat, data, accept, refuse))
        self._seats[session] = self._by_client[session.client] = seat

    def connecting(self, session: Member) -> bool:
        """The application is being asked."""
        seat = self._seats.get(session)
        return seat is not None and not seat.accepted

    def holds_back(self, session: Member, command: Command) -> bool:
        """Keep a command whose turn has not come. Raises CommandError 111."""
        seat = self._seats.get(session)
        if seat is None or not seat.busy:
            return False
        if len(seat.queue) >= self.pending:
            raise CommandError(errors.TOO_MANY_REQUESTS, f"{len(seat.queue)} commands are waiting")
        seat.queue.append(command)
        return True

    def asks(self, session: Member, command: Command) -> bool:
        """Whether the application is being asked about a command; then it is carried out, or fails, later.

        Raises CommandError for one that the rules refuse anyway.
        """
        seat = self._seats.get(session)
        wanted = WANTED.get(command.method)
        if seat is None or wanted is None:
            return False
        found = wanted(self._app, session, command, seat.client.namespace)
        if found is None:
            return False
        handler, call = found
        self._begin(seat, self._ask(seat, command, handler, call))
        seat.busy = True
        return True

    def gone(self, session: Member) -> None:
        """A session is over."""
        seat = self._seats.get(session)
        if seat is None:
            return
        self._remove(seat)
        for answer in seat.acks.values():
            if not answer.done():
                answer.set_exception(ConnectionError("the client is gone"))
        handler = self._app.handler(apps.DISCONNECT, seat.client.namespace)
        if seat.accepted and handler is not None:
            try:
                self._begin(seat, self._tell(seat, handler, Call(apps.DISCONNECT, "", ())))
            except CommandError as error:
                logger.warning("no disconnect handler for client %s: %s", seat.client.id, error)

    def displaced(self, session: Member, channel: str) -> bool:
        """A session was put out of a channel; True: it is the application's room, and the gate lets it in again."""
        seat = self._seats.get(session)
        if seat is None or channel not in seat.rooms:
            return False

        def done(error: HubError | None) -> None:
            if error is not None and not seat.gone:
                seat.rooms.discard(channel)
                session.tell_displaced(channel, errors.UNSUBSCRIBE_CODE, errors.CLOSE_INSUFFICIENT_STATE.reason)

        session.join(channel, self.channels.resolve(channel), done)
        return True

    def takes(self, session: Member, name: str) -> bool:
        """Whether the application has a handler for an event of this session."""
        seat = self._seats.get(session)
        return seat is not None and self._app.handler(apps.EVENT, seat.client.namespace, name) is not None

    def event(self, session: EventMember, name: str, args: tuple[Any, ...], number: int | None) -> None:
        """An event that the application takes. number: of the ack that is wanted, or None."""
        seat = self._seats[session]
        try:
            session.begin()
            try:
                self._begin(seat, self._handle(seat, session, Call(apps.EVENT, name, args), number))
            except CommandError:
                session.end()
                raise
        except CommandError as error:
            session.fail_event(name, number, error)

    def acked(self, session: Member, number: int, args: list[Any]) -> None:
        """An ack of the client's. One that nobody awaits, as after a timeout, is passed over."""
        seat = self._seats.get(session)
        answer = seat.acks.get(number) if seat is not None else None
        if answer is not None and not answer.done():
            answer.set_result(args)

    # Calls under way.

    def _begin(self, seat: _Seat, work: Coroutine[Any, Any, None]) -> None:
        """Have it run. Raises CommandError 111."""
        try:
            self.runner.begin(self._guard(seat, work))
        except CommandError:
            work.close()
            raise

    async def _guard(self, seat: _Seat, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except Exception:
            # A fault of ours: what waits for an answer would wait for ever, so this one client is told to come back.
            logger.exception("a call of the application, client %s", seat.client.id)
            if not seat.gone:
                seat.session.transport.close(errors.CLOSE_SERVER_ERROR)

    async def _connect(self, seat: _Seat, data: Any, accept: Callable[[], None], refuse: Refuse) -> None:
        client, session = seat.client, seat.session
        handler = self._app.handler(apps.CONNECT, client.namespace)
        try:
            claims = await self.runner.run(handler, client, Call(apps.CONNECT, "", (data,)))
            if claims is not None:
                self._claim(seat, claims)
            if client.namespace and not seat.gone:
                await self.let_in(seat, emission.everyone(client.namespace), emission.EVERYONE)
        except HubError as error:
            if not seat.gone:
                waits = bool(seat.queue)
                self._remove(seat)
                refuse(error)
                if waits:  # commands of a client that is not in, as without an application
                    session.transport.close(errors.CLOSE_BAD_REQUEST)
            return
        if seat.gone:
            return
        seat.accepted = True
        accept()
        if session.connected:
            # Before what waits: its effects are to find a client that has been told so.
            handler = self._app.handler(apps.CONNECTED, client.namespace)
            if handler is not None:
                await self._tell(seat, handler, Call(apps.CONNECTED, "", (data,)))
        self._resume(seat)

    def _claim(self, seat: _Seat, claims: object) -> None:
        user = claims.get("user", seat.client.user) if isinstance(claims, Mapping) else None
        if not isinstance(claims, Mapping) or not isinstance(user, str) or not is_user(user):
            logger.warning("the application's connect handler returned neither None nor claims with a user's name")
            raise CommandError(errors.INTERNAL, "the application failed")
        seat.client.claims = claims
        seat.client.user = seat.session.user = user

    async def _ask(self, seat: _Seat, command: Command, handler: Handler, call: Call) -> None:
        session = seat.session
        try:
            result = await self.runner.run(handler, seat.client, call)
            if seat.gone:
                return
            if call.kind == apps.RPC:
                session.reply(command.id, command.method, {"data": orjson.Fragment(_json(result))})
            else:
                if call.kind == apps.PUBLISH and result is not None:
                    command.params["data"] = result
                session.carry_out(command)
        except CommandError as error:
            if not seat.gone:
                session.fail(command.id, error)
        self._resume(seat)

    async def _handle(self, seat: _Seat, session: EventMember, call: Call, number: int | None) -> None:
        handler = self._app.handler(apps.EVENT, seat.client.namespace, call.name)
        try:
            result = await self.runner.run(handler, seat.client, call)
            if number is not None and not seat.gone:
                args = () if result is None else result if isinstance(result, tuple) else (result,)
                try:
                    session.acknowledge(number, args)
                except (TypeError, ValueError) as error:
                    logger.warning("the application's event %r: its ack can't be sent: %s", call.name, error)
                    raise CommandError(errors.INTERNAL, "the application failed") from None
        except CommandError as error:
            if not seat.gone:
                session.fail_event(call.name, number, error)
        session.end()

    async def _tell(self, seat: _Seat, handler: Handler, call: Call) -> None:
        try:
            await self.runner.run(handler, seat.client, call)
        except CommandError as error:
            # Nobody waits for an answer; failures are in the log already.
            logger.debug("the application's %s, client %s: %s", call.kind, seat.client.id, error)

    def _resume(self, seat: _Seat) -> None:
        """Go on with the commands that waited, until the application is asked about one."""
        seat.busy = False
        while seat.queue and not seat.busy and not seat.gone:
            try:
                seat.session.perform(seat.queue.popleft())
            except ProtocolError as error:
                seat.session.transport.close(error.close)

    def _remove(self, seat: _Seat) -> None:
        seat.gone = True
        seat.queue.clear()
        self._seats.pop(seat.session, None)
        self._by_client.pop(seat.client.id, None)

    async def let_in(self, seat: _Seat, channel: str, namespace: Namespace) -> None:
        """Have a session in a channel. Raises HubError."""
        error = await tasks.reply(partial(seat.session.join, channel, namespace))
        if error is not None:
            raise error

    # What the application does; as the App's Hub.

    async def publish(self, channel: str, data: Any, tags: dict[str, str] | None) -> None:
        await self._publish(channel, self.channels.resolve(channel), data, tags)

    async def emit(self, name: str, args: tuple[Any, ...], to: str, namespace: str, skip: str) -> None:
        _check_event(name)
        data, tags = emission.encode(name, args, skip)
        if to:
            await self._publish(to, self.channels.resolve(to), data, tags)
        else:
            await self._publish(emission.everyone(namespace), emission.EVERYONE, data, tags)

    async def _publish(self, channel: str, namespace: Namespace, data: Any, tags: dict[str, str] | None) -> None:
        outcome = await tasks.reply(
            lambda done: self._publisher.publish(channel, namespace, data, done, tags=tags)  # in one call, one result
        )
        if isinstance(outcome, HubError):
            raise outcome


def _check_event(name: object) -> None:
    if not isinstance(name, str) or name in RESERVED:
        raise ValueError(f"event: found {name!r}; allowed: a text that is none of {', '.join(sorted(RESERVED))}")


def _json(result: object) -> bytes:
    try:
        return orjson.dumps(result)
    except TypeError as error:
        logger.warning("the application's rpc handler returned what is no JSON: %s", error)
        raise CommandError(errors.INTERNAL, "the application failed") from None


Found = tuple[Handler, Call] | None


def _subscribe(app: apps.App, session: Member, command: Command, namespace: str) -> Found:
    handler = app.handler(apps.SUBSCRIBE, namespace)
    if handler is None:
        return None
    channel, rules = session.resolve(command)
    may_use(channel, session.user)
    may_subscribe(rules.subscribe, session.user)
    return handler, Call(apps.SUBSCRIBE, channel, (channel,))


def _publish(app: apps.App, session: Member, command: Command, namespace: str) -> Found:
    handler = app.handler(apps.PUBLISH, namespace)
    if handler is None:
        return None
    channel, rules = session.resolve(command)
    may_use(channel, session.user)
    may_publish(rules.publish, session.user, session.holds(channel))
    if "data" not in command.params:
        raise CommandError(errors.BAD_REQUEST, "data is missing")
    return handler, Call(apps.PUBLISH, channel, (channel, command.params["data"]))


def _rpc(app: apps.App, session: Member, command: Command, namespace: str) -> Found:
    method = command.params.get("method")
    handler = app.handler(apps.RPC, namespace, method) if isinstance(method, str) else None
    if handler is None or not isinstance(method, str):
        return None
    return handler, Call(apps.RPC, method, (command.params.get("data"),))


WANTED: dict[str, Callable[[apps.App, Member, Command, str], Found]] = {
    "subscribe": _subscribe,
    "publish": _publish,
    "rpc": _rpc,
}
"""The commands that applications are asked about."""
