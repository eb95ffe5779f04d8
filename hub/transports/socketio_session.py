"""Socket.IO: one client in one namespace: events become a session's commands, replies acks, publications events.

Does: write everything as packets in frames; know how far its client is, and bring back one that was away.
Does not: know connections and namespaces' comings and goings (socketio), packets' insides (socketio_protocol), or check
rules (session).
Called by: transports.socketio, fanout through the wire form.
Never break: what many receive is encoded once for each Socket.IO namespace, in the frame that goes on a WebSocket; who
is told that it has lost nothing gets all it missed, or hears `unsubscribed` of the channel of which it does not.

    → 40{"token":"…"}                                               ← 40{"sid":"…"}
    → 420["subscribe",{"channel":"chat:room"}]                      ← 430[{"epoch":"4.k3","offset":17,…}]
    → 421["publish",{"channel":"chat:room","data":{"text":"hi"}}]   ← 431[{}]
                                                                    ← 42["publication",{"channel":"chat:room","data":…}]
    → 422["publish",{"channel":"closed:x","data":1}]                ← 432[{"error":{"code":103,"message":"…"}}]

The events' parameters and results are those of the native protocol's commands of the same name. Beside `publication`
the hub emits `join`, `leave`, `unsubscribed` (subscribe anew), `message` (to one user or all) and, for a failed event
that asked for no ack, `error`. Other events are the application's (app_gate); its own go before the hub's.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Protocol

import orjson

from .. import emission, errors, frames
from .. import socketio_protocol as socketio
from ..app_gate import Gate
from ..app_session import Transport
from ..channels import Namespace
from ..entrance import Visitor
from ..errors import Close, CommandError, HubError
from ..position import Position
from ..protocol import Command
from ..quotas import Meter
from ..recovery import Joined
from ..resume import KEPT, NAMES, STEP, Deliveries, Mark, Record, Returning, Stay
from ..sections import SocketIOSettings
from ..services import Services
from ..session import Session
from ..socketio_protocol import ACK, EVENT, MAIN
from .engineio import encode_frame

MESSAGE = b"4"
"""Engine.IO's mark of a message, before every Socket.IO packet."""
OFFSET = b'{"offset":'
"""How the body of a `stream` channel's publication begins, and no other."""
NEWEST = Position("", 0)
"""Where somebody is who comes back to a channel without positions; `latest` ones give their value then."""
EVENTS = frozenset(
    {"subscribe", "unsubscribe", "publish", "presence", "presence_stats", "history", "rpc", "refresh", "sub_refresh"}
)
"""What clients may emit: the session's commands of the same names."""


def encode_packet(kind: int, namespace: str, number: int | None = None, data: bytes = b"") -> bytes:
    r"""A packet in its frame: (EVENT, '/', None, b'["a"]') -> b'\x81\x0742["a"]'."""
    return encode_frame(MESSAGE + socketio.encode(kind, namespace, number, data))


def encode_values(kind: int, namespace: str, number: int | None, values: Iterable[Any]) -> bytes:
    """A packet and its attachments, each in its frame, in one piece, so that nothing comes between.

    Raises TypeError and ValueError as socketio_protocol has it.
    """
    packet, *attachments = socketio.encode_values(kind, namespace, number, values)
    return b"".join([encode_frame(MESSAGE + packet), *(encode_frame(one, frames.BINARY) for one in attachments)])


class SocketIOForm:
    """Wire form of one Socket.IO namespace: everything is an event."""

    def __init__(self, namespace: str, deliveries: Deliveries | None = None) -> None:
        """deliveries: where lost clients can come back; publications of `stream` channels are marked then."""
        self.namespace = namespace
        self.deliveries = deliveries
        self._head = MESSAGE + socketio.encode(EVENT, namespace)

    def encode_event(self, name: str, data: bytes) -> bytes:
        r"""('message', b'1') -> b'\x81\x0f42["message",1]'; data: JSON, ready made."""
        return encode_frame(b'%b["%b",%b]' % (self._head, name.encode(), data))

    def encode_publication(self, channel: str, body: bytes) -> bytes:
        """42["publication",{"channel":"a","data":1}]; a body is an object with one key at least."""
        if self.deliveries is None or not body.startswith(OFFSET):
            return self._encode(channel, body)
        return self._encode(channel, body, self.deliveries.note(channel, _offset(body)))

    def encode_missed(self, channel: str, body: bytes, count: int) -> bytes:
        """The same for one client alone, that comes back; the `count`th thing that it is sent so."""
        if self.deliveries is None or not body.startswith(OFFSET):
            return self._encode(channel, body)
        return self._encode(channel, body, self.deliveries.alone(count, channel, _offset(body)))

    def _encode(self, channel: str, body: bytes, mark: Mark | None = None) -> bytes:
        data = b'{"channel":' + orjson.dumps(channel) + b"," + body[1:]
        # A channel's name holds nothing that JSON would escape.
        return self.encode_event("publication", data if mark is None else data + b',"%b"' % str(mark).encode())

    def encode_arrival(self, channel: str, body: bytes) -> bytes:
        """42["join",{"channel":"a","info":{"user":"42","client":"…"}}]"""
        ((name, arrival),) = orjson.loads(b"{" + body + b"}").items()
        return self.encode_event(name, orjson.dumps({"channel": channel, **arrival}))

    def encode_message(self, message: bytes) -> bytes:
        """The native protocol's {"push":{"message":{"data":…}}} -> 42["message",…]"""
        return self.encode_event("message", orjson.dumps(orjson.loads(message)["push"]["message"]["data"]))


class ApplicationForm(SocketIOForm):
    """The wire form of a namespace where an application is: its emissions are events of their own names."""

    def _encode(self, channel: str, body: bytes, mark: Mark | None = None) -> bytes:
        """{"data":"hi","tags":{"event":"said"}} -> 42["said","hi"]

        Where lost clients can come back each has a mark as its last argument, as with the stock server: clients report
        the last text that they were sent, whatever it says.
        """
        event = emission.parse(body)
        if event is None or event.name in socketio.RESERVED:
            return super()._encode(channel, body, mark)
        if mark is None and self.deliveries is not None:
            mark = self.deliveries.passing(channel)
        values = [event.name, *event.args] if mark is None else [event.name, *event.args, str(mark)]
        try:
            return encode_values(EVENT, self.namespace, None, values)
        except ValueError:  # more attachments than a packet may have, of another publisher's making
            return super()._encode(channel, body, mark)


def _offset(body: bytes) -> int:
    return int(body[len(OFFSET) : body.index(b",")])


class SocketTransport(Transport, Protocol):
    """The connection under it."""

    def catch_up(self) -> None:
        """Have what the batch under way holds for it before what is put now."""


class Namespaces(Protocol):
    """A connection of several sessions."""

    def dismiss(self, session: SocketSession) -> None:
        """Put one client out of its namespace; the others, and the connection, stay."""

    def end_by(self, session: SocketSession, close: Close) -> None:
        """End one client."""


class SocketSession(Session):
    """A client in one namespace: a session of which commands come as events and replies go as acks."""

    __slots__ = (
        "_alone",
        "_back",
        "_came",
        "_catch_up",
        "_connection",
        "_events",
        "_ids",
        "_put",
        "_rejoining",
        "_resuming",
        "_stays",
        "_told_out",
        "_watches",
        "confirmed",
        "form",
        "named",
        "pid",
        "returning",
    )

    def __init__(
        self,
        services: Services,
        transport: SocketTransport,
        form: SocketIOForm,
        connection: Namespaces,
        visitor: Visitor,
        meter: Meter,
    ) -> None:
        """connection: the one that has the namespace and the meter, and `transport` as its own or a branch."""
        super().__init__(services, transport, visitor, meter)
        self.form = form
        self._catch_up = transport.catch_up
        self._put = transport.put
        self._connection = connection
        self._events: dict[int, str] = {}
        """Names of events that asked for no ack and are not done, by command id; below 0, so that no ack has one."""
        self.pid = ""
        """The name under which it may come back; '' where it may not."""
        self.confirmed = -1
        """It has everything up to this batch."""
        self._came = ""
        self._ids: Sequence[str] = ()
        """Those that it had before, the newest last."""
        self._stays: dict[str, Stay] = {}
        self._told_out: dict[str, int] = {}
        """Channels of which it was told to subscribe anew and has not, by the batch: it may never have heard of it."""
        self._watches = False
        self._resuming: dict[int, str] = {}
        """Channels that it is being let into again, by command id."""
        self._rejoining: set[str] = set()
        """The same of the application's rooms."""
        self._back: Callable[[None], None] | None = None
        """Called when it is in all of them."""
        self._alone = 0
        """Publications that it was sent by itself."""
        self.named = ""
        """The user that its token names."""
        self.returning: Returning | None = None
        """What it may have back, until it is in."""

    def handle_event(self, packet: socketio.Packet) -> None:
        """One event of the client; `packet.data` is its name and arguments."""
        name, *arguments = packet.data
        number = packet.id
        gate = self.services.gate
        if gate is not None and gate.takes(self, name):
            gate.event(self, name, tuple(arguments), number)
            return
        if number is None:
            number = self._new_id()
            self._events[number] = name
        if name not in EVENTS:
            self.fail(number, CommandError(errors.METHOD_NOT_FOUND, "no such event"))
        elif len(arguments) != 1 or not isinstance(arguments[0], dict):
            self.fail(number, CommandError(errors.BAD_REQUEST, f"{name}: allowed is one argument, an object"))
        else:
            self.perform(Command(number, name, arguments[0]))

    def _new_id(self) -> int:
        return min(min(self._events, default=0), min(self._resuming, default=0)) - 1

    def reply(self, command_id: int, method: str, result: dict[str, Any] | None = None) -> None:
        if command_id not in self._resuming and self._events.pop(command_id, None) is None:
            self._ack(command_id, result or {})

    def fail(self, command_id: int, error: HubError) -> None:
        if command_id in self._resuming:
            self._not_resumed(self._resuming.pop(command_id))
            return
        body = errors.error_body(error)
        name = self._events.pop(command_id, None)
        if name is None:
            self._ack(command_id, {"error": body})
        elif name in EVENTS and self.connected:
            self._put(self.form.encode_event("error", orjson.dumps({"event": name, **body})))

    def _ack(self, number: int, result: dict[str, Any]) -> None:
        if not self.connected:
            return  # it has left, and may be in again: then this number is that of another event by now
        self._put(encode_packet(ACK, self.form.namespace, number, orjson.dumps([result])))

    # What the application says, and hears.

    def handle_ack(self, packet: socketio.Packet) -> None:
        """An ack. The hub's own events ask for none, so without an application it is one too many."""
        gate = self.services.gate
        if gate is not None and packet.id is not None:
            gate.acked(self, packet.id, packet.data)

    def emit_event(self, name: str, args: tuple[Any, ...], number: int | None = None) -> None:
        values, deliveries = (name, *args), self.form.deliveries
        if number is None and deliveries is not None:
            self._catch_up()
            values = (*values, str(deliveries.alone(self._alone)))
        self._put_values(EVENT, number, values)

    def acknowledge(self, number: int, args: tuple[Any, ...]) -> None:
        """The ack of an event. Raises TypeError and ValueError as `emit_event`: for what can't be sent."""
        self._put_values(ACK, number, args)

    def dismiss(self) -> None:
        self._connection.dismiss(self)

    def end_by(self, close: Close) -> None:
        self._connection.end_by(self, close)

    def fail_event(self, name: str, number: int | None, error: HubError) -> None:
        """The same of one that failed."""
        body = errors.error_body(error)
        if number is None:
            self._put(self.form.encode_event("error", orjson.dumps({"event": name, **body})))
        else:
            self._ack(number, {"error": body})

    def _put_values(self, kind: int, number: int | None, values: tuple[Any, ...]) -> None:
        self._put(encode_values(kind, self.form.namespace, number, values))

    def tell_joined(self, channel: str, joined: Joined) -> None:
        """Of rooms Socket.IO clients know nothing; but what it has missed of one is sent to it."""
        if joined.recovered is False:
            self._start_anew()
        elif self.form.deliveries is not None:
            self._stay(self.form.deliveries, channel, joined, joined.publications)

    def tell_left(self, channel: str) -> None:
        """Likewise."""

    # Coming back.

    def on_subscribed(self, command_id: int, channel: str, watch: bool, joined: Joined) -> None:
        deliveries = self.form.deliveries
        resumed = self._resuming.pop(command_id, None) is not None
        if deliveries is None or not self.holds(channel):
            return
        self._watches |= watch
        self._told_out.pop(channel, None)
        if resumed and joined.recovered is False:
            number = self._resume_id(channel)
            self.perform(Command(number, "unsubscribe", {"channel": channel}))
            del self._resuming[number]
            self._not_resumed(channel)
            return
        self._stay(deliveries, channel, joined, joined.publications if resumed else ())

    def _stay(self, deliveries: Deliveries, channel: str, joined: Joined, missed: Sequence[bytes]) -> None:
        """It is in a channel from now on. missed: what it is sent by itself."""
        if missed:
            self._catch_up()
        batches = []
        for body in missed:
            self._alone += 1  # also for what it is not sent: the mark of what it is sent next is behind that
            if not emission.is_skipping(body, self._ids):
                self._put(self.form.encode_missed(channel, body, self._alone))
            batches.append(deliveries.alone(self._alone).batch)
        if self._alone > STEP - 2:
            self.pid = ""  # what it has could not be told any more
        if joined.positioned:
            self._stays[channel] = Stay(joined.epoch, joined.offset - len(missed), deliveries.count, batches)

    def on_left(self, channel: str) -> None:
        super().on_left(channel)
        self._stays.pop(channel, None)

    def _resume_id(self, channel: str) -> int:
        number = self._new_id()
        self._resuming[number] = channel
        return number

    def _not_resumed(self, channel: str) -> None:
        """It was told that it is in; now it learns that it has to start anew in this channel."""
        self.tell_displaced(channel, errors.UNSUBSCRIBE_CODE, errors.CLOSE_INSUFFICIENT_STATE.reason)

    def _start_anew(self) -> None:
        """The same of one that would not know what it lost: it comes back once more, and is told so."""
        self.pid = ""
        self._transport.close(errors.CLOSE_INSUFFICIENT_STATE)

    def rules(self, channel: str) -> Namespace:
        """Of a channel that it may have been in. Raises CommandError."""
        gate = self.services.gate
        return self.services.channels.resolve(channel) if gate is None else gate.rules(channel)

    def returns(self) -> bool:
        return self.returning is not None

    def comes_back(self) -> bool:
        return self.returning is not None and self.returning.record.user == self.user

    def resume(self, returning: Returning) -> None:
        """Let a client that was told so into its channels again, behind its positions."""
        record = returning.record
        self._came, self.confirmed, self._ids = returning.came, -1, record.ids
        if self.services.gate is not None:
            self.services.gate.resumed(self, record.rooms)
        rooms = set(record.rooms)
        self._rejoining |= rooms
        for channel in record.others:
            self._resume(channel, None)
        for channel, offset in returning.positions.items():
            since = Position(record.streams[channel][0], offset)
            if channel in rooms:
                self._rejoin(channel, since)
            else:
                self._resume(channel, since)
        for channel in rooms - returning.positions.keys():
            self._rejoin(channel, NEWEST)

    def _resume(self, channel: str, since: Position | None) -> None:
        """since: None of a channel without positions."""
        params: dict[str, Any] = {"channel": channel}
        try:
            if since is not None or self.rules(channel).mode == "latest":
                params |= {"recover": True, **(since or NEWEST)._asdict()}
        except CommandError:  # of a namespace that is no more
            self._not_resumed(channel)
            return
        self.perform(Command(self._resume_id(channel), "subscribe", params))

    def _rejoin(self, channel: str, since: Position) -> None:
        try:
            self.join(channel, self.rules(channel), partial(self._rejoined, channel), since)
        except CommandError as error:
            self._rejoined(channel, error)

    def _rejoined(self, channel: str, error: HubError | None) -> None:
        self._rejoining.discard(channel)
        if error is not None and self.connected:
            self._start_anew()
        self._tell_back()

    def when_back(self, done: Callable[[None], None]) -> None:
        self._back = done
        self._tell_back()

    def _tell_back(self) -> None:
        back = self._back
        if back is not None and not (self._rejoining and self.connected):
            self._back = None
            back(None)

    def on_gone(self) -> None:
        super().on_gone()
        self._tell_back()

    def record(self) -> Record | None:
        """What to keep of a client that has gone; None where it can't come back to all that it had."""
        deliveries, gate = self.form.deliveries, self.services.gate
        if deliveries is None or not self.pid or self._watches or self._resuming or self._rejoining:
            return None
        if any(batch > self.confirmed for batch in self._told_out.values()):
            return None
        rooms = gate.rooms(self) if gate is not None else frozenset()
        streams, others, left = {}, [], KEPT
        for channel, namespace in self.entries.items():
            if isinstance(namespace, Namespace) and namespace.mode != "stream":
                if channel in rooms:
                    continue  # of mode none: what is told to it meanwhile is gone, as that mode has it
                if namespace.mode == "latest" or namespace.mailbox:
                    others.append(channel)
                    continue
            stay = self._stays.get(channel)
            if stay is None or not isinstance(namespace, Namespace) or namespace.flush_ms:
                return None  # nobody can say what was missed of it
            offset = stay.base + len(stay.batches)
            found = deliveries.behind(channel, offset, stay.sent, left)
            if found is None:
                return None
            top, batches = found
            # What it was sent by itself counts only where nothing behind it is left out.
            early = stay.batches if len(batches) == top - offset else ()
            streams[channel] = (stay.epoch, stay.base, top, [*early, *batches])
            left -= len(batches)
        inside = [channel for channel in rooms if channel in self.entries]
        ids = [*self._ids, self.client][-NAMES:]
        form, came = deliveries.form, self._came
        return Record(self.user, form, came, self.confirmed, streams, others, inside, self.named, ids)

    def tell_displaced(self, channel: str, code: int, reason: str) -> None:
        self._stays.pop(channel, None)
        super().tell_displaced(channel, code, reason)

    def say_displaced(self, channel: str, code: int, reason: str) -> None:
        if self.form.deliveries is not None:
            self._told_out = {name: batch for name, batch in self._told_out.items() if batch > self.confirmed}
            self._told_out[channel] = self.form.deliveries.turn()
        body = {"channel": channel, "code": code, "reason": reason}
        self._put(self.form.encode_event("unsubscribed", orjson.dumps(body)))


def new_forms(
    settings: SocketIOSettings, turn: Callable[[], int], gate: Gate | None = None
) -> Mapping[str, SocketIOForm]:
    """A worker's wire forms, by namespace. turn: as `Door` has it."""
    names, make = {MAIN, *settings.namespaces}, SocketIOForm
    if gate is not None:
        names |= gate.runner.app.namespaces()
        make = ApplicationForm
    if not settings.recovery_ms:
        return {name: make(name) for name in names}
    return {name: make(name, Deliveries(secrets.token_hex(8), lambda: turn() * STEP)) for name in names}
