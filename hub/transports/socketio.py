"""Socket.IO: connections: which namespaces a client is in, and the answer to one that was away.

Does: take packets to the session of their namespace, let clients into namespaces with their token, have lost ones back
where nothing was lost.
Does not: know polls and upgrades (engineio), parse packets (socketio_protocol) or what events say (socketio_session).
Called by: doors (builds `Door`), transports.engineio.
Never break: a client that breaks the protocol is ended, and no other; a namespace is answered once for each connect.
"""

from __future__ import annotations

import logging
import re
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from math import inf
from typing import Any

import orjson

from .. import errors, expiry
from .. import socketio_protocol as socketio
from ..app_runner import Rejected, Unavailable
from ..audience import ELSEWHERE, Audience, Group, new_number
from ..entrance import Entrance, Visitor
from ..errors import Close, CommandError, HubError, ProtocolError
from ..limits import Account, TokenBucket
from ..protocol import encode_message
from ..recall import Recall
from ..resume import SETTLING, STEP, Returning
from ..services import Services
from ..socketio_protocol import CONNECT, CONNECT_ERROR, DISCONNECT, EVENT
from ..tls import Descriptor
from .engineio import TO_MS, Engine, EngineConnection
from .socketio_return import Return
from .socketio_session import SocketIOForm, SocketSession, encode_packet

logger = logging.getLogger(__name__)

PID = re.compile(r"[A-Za-z0-9_-]{22}")
TOO_OFTEN = CommandError(errors.TOO_MANY_REQUESTS)
DEEP = CommandError(errors.BAD_REQUEST, "nested too deep")
LEAVES_PER_S = 10
"""Of one connection, and as many more as there are namespaces: each has the application called twice, and what a client
has left before its answer is still being worked at, so that one client could have all calls there are to be had."""


class Branch:
    """The second and later namespaces of one connection, as the fan-out sees them: never written to past the outbox."""

    __slots__ = ("_connection", "fd", "group", "place", "session", "wire")

    direct = sealed = False
    kind = "socketio"

    def __init__(self, connection: SocketIOConnection, form: SocketIOForm) -> None:
        self._connection = connection
        # Not the connection's: what the sweep passes over by that is the connection, which may have had its own part.
        self.fd = new_number()
        self.wire = form
        self.group: Group | None = None
        self.place = ELSEWHERE
        self.session: SocketSession | None = None

    @property
    def open(self) -> bool:
        return self._connection.open

    @property
    def ready(self) -> bool:
        return self._connection.ready

    @property
    def heard_at(self) -> float:
        return self._connection.heard_at

    @property
    def unread(self) -> bool:
        return self._connection.unread

    @property
    def waiting_bytes(self) -> int:
        return self._connection.waiting_bytes

    @property
    def socket(self) -> SocketIOConnection:
        return self._connection

    def put(self, frame: bytes) -> None:
        self._connection.put(frame)

    def offer(self, audience: Audience, frame: bytes) -> None:
        self._connection.offer(audience, frame)

    def left(self, *audiences: Audience) -> None:
        self._connection.left(*audiences)

    def catch_up(self) -> None:
        self._connection.reactor.batches.serve_now(self)

    def reply(self, message: bytes) -> None:
        self._connection.reply(message)

    def close(self, close: Close) -> None:
        self._connection.close(close)

    def wake(self, at: float) -> None:
        self._connection.wake(at)

    def displaced(self, channel: str) -> None:
        if self.session is not None:
            self.session.on_displaced(channel)

    def write_past(self, data: bytes) -> int:
        raise NotImplementedError  # only where direct

    def torn(self, rest: bytes) -> None:
        raise NotImplementedError  # of direct writes only

    def broken(self) -> None:
        raise NotImplementedError

    def too_slow(self) -> None:
        self._connection.too_slow()


class SocketIOConnection(EngineConnection):
    """A client of any number of namespaces. The first is this very object to the fan-out, the others are branches."""

    __slots__ = (
        "_connect_by",
        "_decoder",
        "_door",
        "_joining",
        "_leaves",
        "_main",
        "_pinged",
        "_sessions",
        "_unfinished_since",
        "wire",
    )

    kind = "socketio"
    wire: SocketIOForm  # type: ignore[assignment]  # the base's own, of native messages, is never asked here

    def __init__(self, fd: Descriptor, engine: Engine, visitor: Visitor, door: Door) -> None:
        super().__init__(fd, engine, visitor)
        self._door = door
        limits = engine.client
        self._decoder = socketio.Decoder(engine.settings.max_payload_bytes, limits.json_depth, limits.json_values)
        self._sessions: dict[str, SocketSession] = {}
        self._joining: dict[str, SocketSession] = {}
        """Those about which the application is being asked."""
        self._leaves: TokenBucket | None = None
        self._main: SocketSession | None = None
        self._pinged = -1
        self._connect_by = self.opened_at + engine.settings.connect_timeout_ms / TO_MS
        self._unfinished_since = inf

    # What engineio calls.

    @property
    def users(self) -> set[str]:
        # Who began without a token is whoever joined, by its token, and nobody in particular until then.
        if self.visitor.token or not self._sessions:
            return {self.visitor.user}
        return {one.named for one in self._sessions.values()}

    @property
    def max_packets(self) -> int:
        return self.engine.settings.max_packets if self._sessions else super().max_packets

    def on_packet(self, data: bytes, binary: bool) -> None:
        # Attachments are part of a command, which its text has counted.
        within = self.meter.spend(self.heard_at, 0 if binary else 1, len(data), self._payer)
        if not within and self.meter.sustained(self.heard_at, 1):
            self.close(errors.CLOSE_TOO_MANY_REQUESTS)
            return
        if binary:
            packet = self._decoder.feed_bytes(data)
        else:
            packet = self._decoder.feed_text(data)
            if self._decoder.pending:
                self._await_attachments()
        if packet is not None:
            if self._unfinished_since != inf:
                self._unfinished_since = inf
            if within and not packet.too_deep:
                self._handle_packet(packet)
            else:
                self._refuse_packet(packet, DEEP if within else TOO_OFTEN)

    @property
    def _payer(self) -> Account | None:
        """Of the user of the namespace that it is in for longest."""
        session = next(iter(self._sessions.values()), None)
        return session.account if session is not None else None

    def _refuse_packet(self, packet: socketio.Packet, error: CommandError) -> None:
        """One of too many, or one that is nested too deep: an event fails; what takes nothing from anybody passes."""
        session = self._sessions.get(packet.namespace)
        if packet.too_deep:
            self.engine.quotas.refusals.count("json")
        if packet.kind == EVENT and session is not None:
            session.fail_event(packet.data[0], packet.id, error)
        elif packet.kind == CONNECT:
            self.close(errors.CLOSE_TOO_MANY_REQUESTS if error is TOO_OFTEN else errors.CLOSE_BAD_REQUEST)
        elif not packet.too_deep:
            self._handle_packet(packet)

    def _await_attachments(self) -> None:
        if not self._sessions:
            raise ProtocolError(errors.CLOSE_PROTOCOL_ERROR, "attachments before a namespace is joined")
        self._unfinished_since = self.heard_at
        self._schedule()

    def app_due(self) -> float:
        at = self._connect_by
        if self._unfinished_since != inf:
            at = min(at, self._unfinished_since + self.engine.settings.attachment_timeout_ms / TO_MS)
        left_s = min((session.due_s for session in self._sessions.values()), default=inf)
        return at if left_s == inf else min(at, self.reactor.clock() + left_s)

    def on_app_due(self, now: float) -> None:
        if now >= self._connect_by:
            self.close(errors.CLOSE_STALE)
        elif any(session.left_s <= 0 for session in self._sessions.values()):
            self.close(errors.CLOSE_EXPIRED)
        elif now >= self._unfinished_since + self.engine.settings.attachment_timeout_ms / TO_MS:
            self.close(Close(errors.CLOSE_POLICY.code, "attachments not finished in time"))
        else:
            for session in self._sessions.values():
                expiry.end_subscriptions(session)

    def farewell(self, close: Close) -> bytes:
        # Upon a disconnect from the server, stock clients don't come back by themselves; without it they do.
        if close.reconnect:
            return b""
        return b"".join([encode_packet(DISCONNECT, name) for name in self._sessions])

    def on_gone(self) -> None:
        super().on_gone()
        self._decoder.forget()
        joining, self._joining = self._joining, {}
        for session in joining.values():
            session.on_gone()
        sessions, self._sessions = self._sessions, {}
        for session in sessions.values():
            record = session.record()
            if record is not None:
                self._door.recall.save(session.pid, record.pack())
            session.on_gone()

    def about(self) -> Mapping[str, object]:
        return {
            **super().about(),
            "clients": ",".join(one.client for one in self._sessions.values()),
            "address": self._door.services.shown(self.visitor.address),
        }

    def on_caught_up(self, dropped: int) -> None:
        for namespace in self._sessions:
            self.put(self._door.forms[namespace].encode_message(encode_message({"hub": {"dropped": dropped}})))

    # What the main session calls.

    def reply(self, message: bytes) -> None:
        """The native protocol's own messages; a SocketSession has none."""
        raise NotImplementedError

    def wake(self, at: float) -> None:
        """What each session calls; when the first of them is due is asked of all."""
        self._schedule()

    def catch_up(self) -> None:
        """Have what the batch under way holds for it before what is put now."""
        self.reactor.batches.serve_now(self)

    def displaced(self, channel: str) -> None:
        """What streams calls."""
        if self._main is not None:
            self._main.on_displaced(channel)

    # Packets.

    def _handle_packet(self, packet: socketio.Packet) -> None:
        session = self._sessions.get(packet.namespace)
        if packet.kind == CONNECT and session is None and packet.namespace not in self._joining:
            self._connect(packet.namespace, packet.data or {})
        elif packet.kind == DISCONNECT and packet.namespace in self._joining:
            self._count_leave()
            self._joining.pop(packet.namespace).on_gone()
        elif session is None or packet.kind == CONNECT:
            raise ProtocolError(
                errors.CLOSE_PROTOCOL_ERROR, "a packet of a namespace that is not joined, or is already"
            )
        elif packet.kind == EVENT:
            session.handle_event(packet)
        elif packet.kind == DISCONNECT:
            self._count_leave()
            self._leave(session)
        else:
            session.handle_ack(packet)

    def _count_leave(self) -> None:
        if self._leaves is None:
            self._leaves = TokenBucket(LEAVES_PER_S + len(self._door.forms), self.reactor.clock)
        if not self._leaves.take():
            raise ProtocolError(errors.CLOSE_TOO_MANY_REQUESTS, "namespaces are left too often")

    def _leave(self, session: SocketSession) -> None:
        del self._sessions[session.form.namespace]
        session.on_gone()
        if session is self._main:
            self._main = None

    def dismiss(self, session: SocketSession) -> None:
        """What its session calls. Upon that packet stock clients don't come back by themselves."""
        namespace = session.form.namespace
        if self._sessions.get(namespace) is session:
            self.put(encode_packet(DISCONNECT, namespace))
            self._leave(session)
        elif self._joining.get(namespace) is session:
            session.on_gone()
            self._reject(session, CommandError(errors.PERMISSION_DENIED))

    def end_by(self, session: SocketSession, close: Close) -> None:
        """What its session calls. No packet of a namespace has a code, so the whole connection ends with it, unless
        others are here that are nobody's business.
        """
        if close.reconnect or all(one.user == session.user for one in self._sessions.values()):
            self.close(close)
        else:
            self.dismiss(session)

    def _connect(self, namespace: str, claims: Mapping[str, Any]) -> None:
        form = self._door.forms.get(namespace)
        if form is None:
            self._refuse(namespace, {"message": "Invalid namespace"})
            return
        session = self._new_session(form)
        try:
            if self._door.services.gate is None or self._door.services.authenticator.enabled:
                # Otherwise the hub knows no tokens, and what the application's clients call so is the application's.
                session.identify(claims.get("token"))
        except (ProtocolError, CommandError) as error:
            self._reject(session, error)
            return
        session.named = session.user
        self._joining[namespace] = session
        pid, came = claims.get("pid"), claims.get("offset", "")
        if form.deliveries is not None and isinstance(pid, str) and PID.fullmatch(pid) and isinstance(came, str):
            back = partial(self._looked_up, session, claims)
            self._door.recall.take(pid, Return(self._door, session, pid, came, back).recalled)
        else:
            self._admit(session, claims)

    def _looked_up(self, session: SocketSession, claims: Mapping[str, Any], returning: Returning | None) -> None:
        """What is kept of a client that says that it comes back; None: it starts anew."""
        if self._joining.get(session.form.namespace) is session:
            session.returning = returning
            self._admit(session, claims)

    def _admit(self, session: SocketSession, claims: Mapping[str, Any]) -> None:
        gate, namespace = self._door.services.gate, session.form.namespace
        if gate is None:
            self._enter(session)
            return
        try:
            gate.asks_to_connect(
                session, namespace, dict(claims), partial(self._enter, session), partial(self._reject, session)
            )
        except CommandError as error:
            self._reject(session, error)

    def _reject(self, session: SocketSession, error: HubError) -> None:
        self._joining.pop(session.form.namespace, None)
        if session is self._main:
            self._main = None
        if _passes(error):
            # Upon a connect_error stock clients stay away for good; upon a connection that ends they come back.
            logger.debug("session %s: %s", self.name, error)
            self.close(errors.CLOSE_SERVER_ERROR)
            return
        if isinstance(error, ProtocolError):
            words: dict[str, Any] = {"message": error.close.reason, "data": {"code": error.close.code}}
        else:
            body = errors.error_body(error)
            data = error.data if isinstance(error, Rejected) and error.data is not None else {"code": body["code"]}
            words = {"message": body["message"], "data": data}
        self._refuse(session.form.namespace, words)

    def _enter(self, session: SocketSession) -> None:
        form, returning = session.form, session.returning
        if not session.enter():
            session.on_gone()
            self._reject(session, ProtocolError(errors.CLOSE_CONNECTION_LIMIT))
            return
        self._joining.pop(form.namespace, None)
        self._sessions[form.namespace] = session
        self._connect_by = inf
        if returning is not None and session.comes_back():
            self._welcome(session, returning.pid)
            session.resume(returning)
        else:
            self._welcome(session)
        session.returning = None
        if session.due_s != inf:
            self._schedule()

    def _welcome(self, session: SocketSession, pid: str = "") -> None:
        """Tell it that it is in. pid: its own, where it has lost nothing."""
        words = {"sid": session.client}
        form = session.form
        if form.deliveries is not None:
            words["pid"] = session.pid = pid or secrets.token_urlsafe(16)
        self.put(encode_packet(CONNECT, form.namespace, data=orjson.dumps(words)))

    def on_ping(self) -> None:
        self._pinged = (self._door.turn() - SETTLING) * STEP

    def on_pong(self) -> None:
        for session in self._sessions.values():
            session.confirmed = max(session.confirmed, self._pinged)

    def _new_session(self, form: SocketIOForm) -> SocketSession:
        if self._main is None and self.group is None:
            self.wire = form
            self._main = SocketSession(self._door.services, self, form, self, self.visitor, self.meter)
            return self._main
        branch = Branch(self, form)
        branch.session = SocketSession(self._door.services, branch, form, self, self.visitor, self.meter)
        return branch.session

    def _refuse(self, namespace: str, reason: dict[str, Any]) -> None:
        # An application's words may be anything; what is no JSON is told as text.
        self.put(encode_packet(CONNECT_ERROR, namespace, data=orjson.dumps(reason, default=str)))


def _passes(error: HubError) -> bool:
    """Whether a client was kept out by what has nothing to do with it, and soon will be over."""
    if isinstance(error, CommandError):
        return isinstance(error, Unavailable) or error.reply is errors.TOO_MANY_REQUESTS
    return not isinstance(error, ProtocolError)


@dataclass(slots=True)
class Door:
    """What Socket.IO needs of its worker. Other services are for sessions to come."""

    services: Services
    forms: Mapping[str, SocketIOForm]
    """By namespace."""
    entrance: Entrance
    recall: Recall
    turn: Callable[[], int]
    """The fan-out's batches, counted."""

    def new_connection(self, fd: Descriptor, engine: Engine, visitor: Visitor) -> SocketIOConnection:
        """A session, for `Engine.make`."""
        return SocketIOConnection(fd, engine, visitor, self)
