"""Gate: where an application meets the clients of one worker.

Does: ask its handlers about a client's connect, commands and events, in order; tell it of their end, also of those who
went with another worker; carry out what it does to all: publish, emit.
Does not: run handlers (app_runner), act on one client (app_seat), decide what the rules allow (permissions) or know
wires (transports).
Called by: session, transports.socketio and app_guest, where an application is configured; building builds it.
Never break: every command, connect and event that wants it has one answer; commands of one client are carried out in
their order, so while the application thinks about one, those behind wait (at most `pending`), and nobody else's do.
Events of a client begin in their order, and one does not wait for another.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator
from itertools import islice
from typing import Any

import orjson

from . import app as apps
from . import emission, errors, tasks
from .app import Call, Client, Handler
from .app_runner import Runner
from .app_seat import EventMember, Holder, Member, Seat, check_event, departed
from .audience import Subscriber
from .capabilities import PUBLISH
from .channels import Channels, Namespace
from .errands import Errands
from .errors import CommandError, HubError, ProtocolError
from .manifest import Entry, Manifest
from .message import PLAIN, PublishOptions
from .protocol import Command
from .publish import Publisher

logger = logging.getLogger(__name__)

Refuse = Callable[[HubError], None]
ROOM_S = 0.05
"""Until the runner is asked again whether it has room."""
UNKEPT = PublishOptions(skip_history=True)
AWAY_AT_ONCE = 100
"""Connections closed in one turn of the loop."""


class Gate:
    """The application of one worker. Build it with a running loop."""

    def __init__(
        self,
        runner: Runner,
        channels: Channels,
        publisher: Publisher,
        send: Callable[[bytes], Awaitable[None]],
        pending: int,
        claims_bytes: int = 4096,
        everyone: Namespace = emission.EVERYONE,
    ) -> None:
        """send: a control message to all workers.

        pending: of one client, commands that wait for their turn, and acks that are awaited.

        claims_bytes: of one client's claims, as JSON. everyone: the rules for what is emitted to a whole namespace.
        """
        self.runner = runner
        self.manifest: Manifest | None = None
        """Where the application wants to hear of the end of killed workers' clients; set by worker."""
        self.channels = channels
        self.pending = pending
        self._publisher = publisher
        self._app = runner.app
        self._seats: dict[Holder, Seat] = {}
        self._by_client: dict[str, Seat] = {}
        self.claims_bytes = claims_bytes
        self._everyone = everyone
        self._ended: deque[Seat] = deque()
        """Those of which the application is to be told once it has room."""
        self.errands = Errands(send, self._by_client.get)
        self._app.bind(self)

    def retune(self, pending: int, everyone: Namespace) -> None:
        """As the constructor has them, from now on."""
        self.pending, self._everyone = pending, everyone

    def find(self, client: str) -> Subscriber | None:
        """The connection of one of this worker's clients, for the fan-out."""
        seat = self._by_client.get(client)
        return seat.session.transport if seat is not None else None

    async def close(self) -> None:
        """End: the application hears of those who have gone, as far as it does so in time; other workers go on."""
        if self.manifest is not None:
            await self.manifest.rest()
        await self.runner.close()
        await self.errands.close()
        if self.manifest is not None:
            await self.manifest.close()

    # What sessions call.

    def asks_to_connect(
        self, session: Member, namespace: str, data: Any, accept: Callable[[], None], refuse: Refuse
    ) -> None:
        """Whether a client may come in; one of the two is called, later, unless it goes before.

        namespace: of Socket.IO, or ''. data: what the client sent along. Raises CommandError 111.
        """
        seat = self.seat(session, namespace)
        self._begin(seat, self._connect(seat, session, data, accept, refuse))
        self._enter(seat)

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
        self._begin(seat, self._ask(seat, session, command, handler, call))
        seat.busy = True
        return True

    def gone(self, session: Holder) -> None:
        """A session is over."""
        seat = self._seats.get(session)
        if seat is None:
            return
        self._remove(seat)
        if seat.accepted and self._app.handler(apps.DISCONNECT, seat.client.namespace) is not None:
            self._ended.append(seat)
            if len(self._ended) == 1:
                self._tell_ended()
        elif seat.listed:
            self._strike_off(seat)

    def _tell_ended(self) -> None:
        """In their order; as many as the runner takes now, for all clients of a worker may go at once."""
        while self._ended:
            try:
                self._begin(self._ended[0], self._disconnect(self._ended[0]))
            except CommandError:
                asyncio.get_running_loop().call_later(ROOM_S, self._tell_ended)
                return
            self._ended.popleft()

    async def _disconnect(self, seat: Seat) -> None:
        handler = self._app.handler(apps.DISCONNECT, seat.client.namespace)
        await self._tell(seat.client, handler, Call(apps.DISCONNECT, "", ()))
        if seat.listed:
            self._strike_off(seat)

    def _strike_off(self, seat: Seat) -> None:
        seat.listed = False
        if self.manifest is not None:
            self.manifest.exit(seat.client.id)

    def displaced(self, session: Member, channel: str) -> bool:
        """A session was put out of a channel; True: it is the application's room, and the gate lets it in again."""
        seat = self._seats.get(session)
        if seat is None or channel not in self.rooms(session):
            return False

        def done(error: HubError | None) -> None:
            if error is not None and not seat.gone:
                seat.rooms.discard(channel)
                session.tell_displaced(channel, errors.UNSUBSCRIBE_CODE, errors.CLOSE_INSUFFICIENT_STATE.reason)

        session.join(channel, self.rules(channel), done)
        return True

    def rules(self, channel: str) -> Namespace:
        """Of a channel that a client may be in. Raises CommandError."""
        return self._everyone if channel.startswith(emission.EVERYONE_HEAD) else self.channels.resolve(channel)

    def rooms(self, session: Member) -> frozenset[str]:
        """The channels in which the application has a session, that of its whole namespace included."""
        seat = self._seats.get(session)
        if seat is None or not seat.client.namespace:
            return frozenset(seat.rooms if seat is not None else ())
        return frozenset({*seat.rooms, emission.everyone(seat.client.namespace)})

    def resumed(self, session: Member, rooms: Iterable[str]) -> None:
        """A session is about to be in the rooms again in which it was."""
        seat = self._seats[session]
        seat.rooms |= {room for room in rooms if not room.startswith(emission.EVERYONE_HEAD)}

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

    # What guests call.

    def seat(self, session: Holder, namespace: str = "") -> Seat:
        """One for a client that the application has yet to be asked about."""
        return Seat(self._app, session, namespace, self.channels, self.pending)

    async def let_in(self, seat: Seat, accept: Callable[[], bool]) -> bool:
        """A client that may come in and stays until it is `gone`. False: it could not be let in any more.

        accept: begins what it came for, unless that can't be done any more. Returns once the application has been told.
        """
        if await self._list(seat):
            self._enter(seat)
            seat.accepted = accept() and not seat.gone
        if seat.accepted:
            await self._tell_connected(seat, None)
        else:
            self._remove(seat)
            if seat.listed:
                self._strike_off(seat)
        return seat.accepted

    # Calls under way.

    def _begin(self, seat: Seat, work: Coroutine[Any, Any, None]) -> None:
        """Have it run. Raises CommandError 111."""
        try:
            self.runner.begin(self._guard(seat, work))
        except CommandError:
            work.close()
            raise

    async def _guard(self, seat: Seat, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except Exception:
            # A fault of ours: what waits for an answer would wait for ever, so this one client is told to come back.
            logger.exception("a call of the application, client %s", seat.client.id)
            if not seat.gone:
                seat.session.transport.close(errors.CLOSE_SERVER_ERROR)

    async def _connect(
        self, seat: Seat, session: Member, data: Any, accept: Callable[[], None], refuse: Refuse
    ) -> None:
        client = seat.client
        handler = self._app.handler(apps.CONNECT, client.namespace)
        client.recovered = session.returns()
        try:
            seat.claim(await self.runner.run(handler, client, Call(apps.CONNECT, "", (data,))), self.claims_bytes)
            client.recovered = session.comes_back()
            if client.namespace and not seat.gone and not client.recovered:
                await seat.let_in(emission.everyone(client.namespace), self._everyone)
        except HubError as error:
            if not seat.gone:
                waits = bool(seat.queue)
                self._remove(seat)
                refuse(error)
                if waits:  # commands of a client that is not in, as without an application
                    session.transport.close(errors.CLOSE_BAD_REQUEST)
            return
        if seat.gone or not await self._list(seat):
            return
        seat.accepted = True
        accept()
        if client.recovered:
            await tasks.reply(session.when_back)
        if session.connected:
            # Before what waits: its effects are to find a client that has been told so.
            await self._tell_connected(seat, data)
        self._resume(seat, session)

    async def _tell_connected(self, seat: Seat, data: Any) -> None:
        handler = self._app.handler(apps.CONNECTED, seat.client.namespace)
        if handler is not None:
            await self._tell(seat.client, handler, Call(apps.CONNECTED, "", (data,)))

    async def _list(self, seat: Seat) -> bool:
        """Note a client that is let in where its end must not be forgotten. False: it has gone meanwhile.

        Before it is told so, as it may be that this worker's next moment is its last.
        """
        if self.manifest is None or self._app.handler(apps.DISCONNECT, seat.client.namespace) is None:
            return True
        seat.listed = True
        entry = seat.entry()
        if entry is not None:
            await self.manifest.enter(entry)
        return not seat.gone

    async def _ask(self, seat: Seat, session: Member, command: Command, handler: Handler, call: Call) -> None:
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
        self._resume(seat, session)

    async def _handle(self, seat: Seat, session: EventMember, call: Call, number: int | None) -> None:
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

    async def _tell(self, client: Client, handler: Handler | None, call: Call) -> None:
        try:
            await self.runner.run(handler, client, call)
        except CommandError as error:
            # Nobody waits for an answer; failures are in the log already.
            logger.debug("the application's %s, client %s: %s", call.kind, client.id, error)

    def _resume(self, seat: Seat, session: Member) -> None:
        """Go on with the commands that waited, until the application is asked about one."""
        seat.busy = False
        while seat.queue and not seat.busy and not seat.gone:
            try:
                session.perform(seat.queue.popleft())
            except ProtocolError as error:
                session.transport.close(error.close)

    def _enter(self, seat: Seat) -> None:
        self._seats[seat.session] = self._by_client[seat.client.id] = seat

    def _remove(self, seat: Seat) -> None:
        seat.lose()
        self._seats.pop(seat.session, None)
        self._by_client.pop(seat.client.id, None)

    # What the manifest calls.

    async def tell_of(self, entry: Entry) -> None:
        """Tell the application of a client that went with its worker."""
        handler = self._app.handler(apps.DISCONNECT, entry.namespace)
        if handler is not None:
            await self._tell(departed(self._app, entry), handler, Call(apps.DISCONNECT, "", ()))

    def clients(self) -> list[str]:
        """Those who are here."""
        return list(self._by_client)

    def entry_of(self, client: str) -> Entry | None:
        """What the manifest has of one of them."""
        seat = self._by_client.get(client)
        return seat.entry() if seat is not None else None

    def send_away(self) -> None:
        """Others have told of these clients: they have to come in anew."""
        self._send_away(iter([seat for seat in self._seats.values() if seat.accepted]))

    def _send_away(self, seats: Iterator[Seat]) -> None:
        some = list(islice(seats, AWAY_AT_ONCE))
        for seat in some:
            if not seat.gone:
                seat.session.transport.close(errors.CLOSE_FORCE_RECONNECT)
        if some:
            asyncio.get_running_loop().call_soon(self._send_away, seats)

    # What the application does; as the App's Hub.

    async def publish(self, channel: str, data: Any, tags: dict[str, str] | None) -> None:
        await self._publish(channel, self.channels.resolve(channel), data, tags)

    async def emit(
        self, name: str, args: tuple[Any, ...], to: str, namespace: str, skip: str, volatile: bool = False
    ) -> None:
        if apps.CLIENT_ID.fullmatch(to):
            await self.errands.emit(to, name, args, volatile)
            return
        check_event(name)
        data, tags = emission.encode(name, args, skip, volatile)
        channel = to or emission.everyone(namespace)
        rules = self.channels.resolve(to) if to else self._everyone
        # A history would hand on to those who come back what was only meant for this moment.
        kept = rules.mode != "stream" or not volatile
        await self._publish(channel, rules, data, tags, PLAIN if kept else UNKEPT)

    async def call(self, client: str, name: str, args: tuple[Any, ...], timeout_s: float) -> Any:
        return await self.errands.call(client, name, args, timeout_s)

    async def disconnect(self, client: str) -> None:
        await self.errands.disconnect(client)

    async def _publish(
        self,
        channel: str,
        namespace: Namespace,
        data: Any,
        tags: dict[str, str] | None,
        options: PublishOptions = PLAIN,
    ) -> None:
        outcome = await tasks.reply(
            lambda done: self._publisher.publish(channel, namespace, data, done, tags=tags, options=options)
        )
        if isinstance(outcome, HubError):
            raise outcome


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
    session.may_subscribe(command, channel, rules)
    return handler, Call(apps.SUBSCRIBE, channel, (channel,))


def _publish(app: apps.App, session: Member, command: Command, namespace: str) -> Found:
    handler = app.handler(apps.PUBLISH, namespace)
    if handler is None:
        return None
    channel, rules = session.resolve(command)
    session.check(PUBLISH, channel, rules)
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
