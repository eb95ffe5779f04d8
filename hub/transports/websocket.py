"""WebSocket: the handshake on Tornado, then the native protocol in RFC 6455 frames on the plane.

Does: check an upgrade request, take its socket out of Tornado, turn bytes into messages and messages into frames.
Does not: know commands (session), parse frames (frames), compress (deflate) or poll sockets (reactor).
Called by: worker (routes), acceptor (open_connection), reactor through Connection.
Never break: frames that a client pipelines behind its handshake are not lost; after `detach` Tornado never touches the
socket.

A frame is the same bytes for all connections of one wire form: NATIVE, or a DeflatedForm for all who agreed on
compression with the same window. So each form encodes, and compresses, a publication once.
"""

from __future__ import annotations

import logging
import ssl
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import cast

from tornado import iostream

from .. import deflate, entrance, errors, frames, handshake, httpd, protocol
from ..connection import BUSY_READ_BYTES, READ_BYTES, Connection, take_over
from ..deflate import Agreement
from ..entrance import Entrance, Visitor
from ..errors import Close, HubError
from ..limits import fits
from ..outbox import Limits, Verdict
from ..outgoing import OPEN
from ..reactor import Reactor
from ..sections import ClientSettings
from ..services import Services
from ..session import Session
from ..tls import Descriptor, TlsSocket

logger = logging.getLogger(__name__)

FORBIDDEN = 403
CLOSE_PINGS = Close(errors.CLOSE_POLICY.code, "too many pings")
PONGS = object()
"""Stands for a connection's pongs where the outbox asks for a channel."""
DEFLATED_READ_BYTES = 256
"""In one turn from a client that compresses: they may become a thousand times as many. Of messages that inflate to the
limit of 64 KB these are three, which hold the loop for 1 ms; 4096 bytes were 46, and 15 times as long."""
BUSY_DEFLATED_READ_BYTES = 128
"""The same once it was put off: one such message, or two."""


class NativeForm:
    """Wire form: messages in frames as they are, publications as the native protocol's text."""

    def encode_message(self, message: bytes, opcode: int = frames.TEXT) -> bytes:
        r"""(b'{}', TEXT) -> b'\x81\x02{}'"""
        return frames.encode_frame(opcode, message)

    def encode_publication(self, channel: str, body: bytes) -> bytes:
        r"""b'\x81\x28{"push":{"channel":"a","pub":{"data":1}}}'"""
        return self.encode_message(protocol.encode_publication(channel, body))

    def encode_arrival(self, channel: str, body: bytes) -> bytes:
        r"""b'\x81\x3a{"push":{"channel":"a","join":{"info":{…}}}}'"""
        return self.encode_message(protocol.encode_arrival(channel, body))


NATIVE = NativeForm()


class DeflatedForm(NativeForm):
    """Wire form: the same, compressed where that makes it shorter (permessage-deflate)."""

    def __init__(self, min_bytes: int, level: int, window_bits: int) -> None:
        """min_bytes: shorter messages stay as they are; level, window_bits: as `deflate.compress` has them."""
        self._min_bytes = min_bytes
        self._level = level
        self._window_bits = window_bits

    def encode_message(self, message: bytes, opcode: int = frames.TEXT) -> bytes:
        r"""(b'Hello', TEXT) -> b'\xc1\x07\xf2H\xcd\xc9\xc9\x07\x00', if that were shorter."""
        if len(message) >= self._min_bytes:
            packed = deflate.compress(message, self._level, self._window_bits)
            if len(packed) < len(message):
                return frames.encode_frame(opcode | frames.RSV1, packed)
        return frames.encode_frame(opcode, message)


def deflated_forms(client: ClientSettings) -> Mapping[int, DeflatedForm]:
    """A worker's wire forms with compression, by the window's bits; none where the settings have it off."""
    if not client.deflate:
        return {}
    return {bits: DeflatedForm(client.deflate_min_bytes, client.deflate_level, bits) for bits in deflate.WINDOWS}


class FramedConnection(Connection):
    """A client that speaks RFC 6455, whatever its messages say: pings, the close handshake, unfinished messages."""

    __slots__ = ("_begun_at", "_limits", "_pinged_until", "_reader", "wire")

    wire: NativeForm

    def __init__(self, fd: Descriptor, reactor: Reactor, client: ClientSettings, outbox: Limits) -> None:
        super().__init__(fd, reactor, outbox)
        self._limits = client
        self._reader = frames.FrameReader(client.message_bytes, client.fragments, charged=reactor.fairness)
        self._begun_at: float | None = None
        """When the message began that has not ended yet."""
        self._pinged_until = 0.0
        """Until then its pings and pongs are earned; as limits have it."""
        self.wire = NATIVE

    def compress(self, agreement: Agreement, forms: Mapping[int, DeflatedForm]) -> None:
        """Speak what the handshake agreed on; before `begin`."""
        client = self._limits
        inflater = deflate.Inflater(agreement, client.message_bytes)
        self._reader = frames.FrameReader(client.message_bytes, client.fragments, inflater, self.reactor.fairness)
        self.wire = forms[min(agreement.server_bits, deflate.WINDOWS[-1])]
        self.read_bytes = self.usual_read_bytes

    @property
    def usual_read_bytes(self) -> int:
        return DEFLATED_READ_BYTES if self._reader.inflates else READ_BYTES

    def begin(self, head: bytes, early: bytes) -> None:
        """Join the plane: send the handshake's answer, then handle what was pipelined behind the request."""
        self.enter()
        self._schedule()
        self.answer(head, early)

    def answer(self, head: bytes, early: bytes) -> None:
        """The handshake's answer goes out; what came behind the request is handled, and answered in the same write."""
        self.put(head)
        if early:
            self.hear_early(early)

    # What a protocol fills in.

    @property
    def name(self) -> str:
        """What the log calls this client."""
        raise NotImplementedError

    def on_message(self, opcode: int, message: bytes) -> None:
        """A whole message came, TEXT or BINARY, while OPEN."""
        raise NotImplementedError

    def on_due(self, now: float) -> None:
        """The protocol's own deadline has come, while OPEN."""
        raise NotImplementedError

    def next_due(self) -> float:
        """When `on_due` is to be called, in seconds of the plane's clock."""
        raise NotImplementedError

    def on_flood(self) -> None:
        """It is closed for its pings."""

    # What the plane calls.

    @property
    def busy_read_bytes(self) -> int:
        return BUSY_DEFLATED_READ_BYTES if self._reader.inflates else BUSY_READ_BYTES

    def on_bytes(self, data: bytes) -> None:
        events = self._reader.feed(data)
        if self.trace is not None:
            for opcode, payload in events:
                if opcode < frames.CLOSE:
                    self.trace.heard(payload)
        for opcode, payload in events:
            if opcode == frames.CLOSE:
                self._peer_closes(payload)
                return
            if self.state == OPEN:
                if opcode < frames.CLOSE:
                    self.on_message(opcode, payload)
                else:
                    self._heartbeat(opcode, payload)
        if self._reader.failed is not None:
            logger.debug("client %s: %s", self.name, self._reader.failed)
            self.close(self._reader.failed.close)
            # Its answer could not be read any more: what it sends from here on is no frames to us.
            self.stop_listening()
        elif self._reader.pending:
            # A ping between fragments ends no message: it must not buy the unfinished one more time.
            self._watch_unfinished(begins=any(opcode < frames.CLOSE for opcode, _ in events))
        else:
            self._begun_at = None

    def on_deadline(self, now: float) -> None:
        unfinished = self._begun_at is not None and now >= self._begun_at + self._limits.message_timeout_s
        if unfinished and not self.held_up:
            self.close(Close(errors.CLOSE_POLICY.code, "message not finished in time"))
            return
        if now >= self.next_due():
            self.on_due(now)
        if self.state == OPEN:
            self._schedule()

    def words(self, frame: bytes) -> Iterable[bytes]:
        return frames.payloads(frame)

    def last_words(self, close: Close) -> bytes:
        return frames.encode_close(close.code, close.reason)

    def _heartbeat(self, opcode: int, payload: bytes) -> None:
        """A ping or a pong. Nobody needs more than a few in a second, and each is work of ours."""
        now, per_s = self.heard_at, self._limits.pings_per_s
        if per_s:
            if not fits(self._pinged_until, now, 1 / per_s):
                self.on_flood()
                self.close(CLOSE_PINGS)
                self.stop_listening()
                return
            self._pinged_until = max(self._pinged_until, now) + 1 / per_s
        if opcode == frames.PING:
            self._pong(payload)

    def _pong(self, payload: bytes) -> None:
        """Answer a ping, RFC 6455 §5.5.3: each one, but behind a backlog the newest may stand for those that wait."""
        frame = frames.encode_frame(frames.PONG, payload)
        if self._blocked:
            # By the rule for `latest`: from outbox_conflate_bytes on, in its place. So a flood of pings from a client
            # that does not read is bounded, and does not push the pong to the end again and again.
            verdict = self._outbox.offer(frame, "latest", PONGS)
            self._queued(verdict if verdict is Verdict.SLOW else Verdict.QUEUED)
        else:
            self.put(frame)

    def _peer_closes(self, payload: bytes) -> None:
        """RFC 6455 §5.5.1: answer a close frame with one, then the server closes the connection."""
        self.close(frames.parse_close(payload) or errors.CLOSE_BY_PEER)
        self.finish()

    def _watch_unfinished(self, begins: bool) -> None:
        """A message has begun and not ended; `begins`: only now, as others ended before it."""
        if self._begun_at is None or begins:
            self._begun_at = self.heard_at
            if self.state == OPEN:
                self._schedule()

    def _schedule(self) -> None:
        """One deadline for both: the protocol's next, and that of a message that has begun."""
        at = self.next_due()
        if self._begun_at is not None:
            at = min(at, self._begun_at + self._limits.message_timeout_s)
        self.reactor.schedule(self, at)


class _Past:
    """Stands for the session of a connection that is over.

    A connection and its session hold each other. Left so, they would be there until the interpreter looks for garbage
    in cycles, which in a reconnect storm was seven times a second, for 3 ms each time.
    """

    client = ""

    def about(self) -> Mapping[str, object]:
        return {}

    def on_displaced(self, channel: str) -> None:
        """It has left all of its channels."""


PAST = cast(Session, _Past())


class WebSocketConnection(FramedConnection):
    """A client that speaks the native protocol over WebSocket."""

    __slots__ = ("_replies", "_session", "_session_due")

    kind = "websocket"

    def __init__(
        self, fd: Descriptor, reactor: Reactor, services: Services, visitor: Visitor = entrance.NOBODY
    ) -> None:
        super().__init__(fd, reactor, services.client, services.outbox)
        self.meter = services.quotas.open(visitor.address, self)
        self.account = self.meter.account
        self._session = Session(services, self, visitor, self.meter)
        self._replies: list[bytes] | None = None
        """Of the read at hand; None outside of one."""
        self._session_due = self._session.first_deadline(self.opened_at)

    @property
    def name(self) -> str:
        return self._session.client

    def reply(self, message: bytes) -> None:
        """What the session calls."""
        if self._replies is not None:
            self._replies.append(message)
        else:
            self.put(self.wire.encode_message(message))

    def answer(self, head: bytes, early: bytes) -> None:
        if early:
            super().answer(head, early)
        else:
            # Nothing can be waiting, and nothing else will leave with it: it need not go by way of the turn's end.
            self._write(head)

    def put(self, frame: bytes) -> None:
        if self._replies:
            # What is sent to this client alone comes behind the answers of before it: values of a list, say, behind the
            # one that let the client in.
            self._send_replies()
            self._replies = []
        FramedConnection.put(self, frame)

    def close(self, close: Close) -> None:
        self._send_replies()
        super().close(close)

    def on_bytes(self, data: bytes) -> None:
        self._replies = []
        try:
            FramedConnection.on_bytes(self, data)  # not super(), which takes 50 ns more of the 700 that a pong costs
        finally:
            if self._replies:
                self._send_replies()
            self._replies = None

    def on_message(self, opcode: int, message: bytes) -> None:
        self.messages += 1
        if opcode == frames.TEXT:
            self._session.handle(message)
        else:
            self.close(Close(errors.CLOSE_UNSUPPORTED.code, "the native protocol is JSON in text frames"))

    def on_due(self, now: float) -> None:
        self._session_due = self._session.on_deadline(now)

    def next_due(self) -> float:
        return self._session_due

    def wake(self, at: float) -> None:
        """What the session calls."""
        if at < self._session_due:
            self._session_due = at
            self._schedule()

    def displaced(self, channel: str) -> None:
        """What streams calls."""
        try:
            self._session.on_displaced(channel)
        except Exception:
            # Out of the audience and not told, it would miss everything silently; and others wait to be told.
            self._fail()

    def on_flood(self) -> None:
        self._session.services.quotas.refusals.count("pings")

    def on_gone(self) -> None:
        session, self._session = self._session, PAST
        session.meter.close()
        session.on_gone()

    def about(self) -> Mapping[str, object]:
        return self._session.about()

    def on_caught_up(self, dropped: int) -> None:
        self.reply(protocol.encode_message({"hub": {"dropped": dropped}}))

    def _send_replies(self) -> None:
        """What one read was answered at once, in one frame: the protocol joins messages by newlines."""
        replies, self._replies = self._replies, None
        if replies:
            self.put(self.wire.encode_message(replies[0] if len(replies) == 1 else b"\n".join(replies)))


@dataclass(slots=True)
class Door:
    """What the handshake needs to know of its worker. Other services and forms are for connections to come."""

    reactor: Reactor
    services: Services
    entrance: Entrance
    forms: Mapping[int, DeflatedForm]
    """As `deflated_forms` has them; empty: offers of compression are passed over."""

    def new_connection(self, fd: Descriptor, visitor: Visitor) -> FramedConnection:
        """A connection for a client whose handshake is good."""
        return WebSocketConnection(fd, self.reactor, self.services, visitor)

    def most_early(self, headers: handshake.Headers) -> int:
        """Bytes behind a request that are to be taken with it, at the most: the others wait for their turn."""
        return DEFLATED_READ_BYTES if self.forms and headers.get("sec-websocket-extensions", "") else READ_BYTES


class WebSocketHandler(httpd.Handler):
    """GET /connection/websocket: the opening handshake of RFC 6455 §4.2."""

    def initialize(self, door: Door) -> None:
        self._door = door

    async def get(self) -> None:
        headers, door, visitor = self.request.headers, self._door, entrance.NOBODY
        refusal = handshake.refuse(self.request.version, headers, door.entrance.origins, secure=self.secure)
        if refusal is None:
            refusal = door.entrance.admit(door.entrance.address_of(self.peer, headers))
        elif refusal.status == FORBIDDEN:
            door.entrance.quotas.refusals.count("origins")
        if refusal is None:
            try:
                visitor = await door.entrance.visit(self.peer, headers, *shown_in_query(self))
            except HubError as error:
                refusal = entrance.refusal(error)
        if refusal is not None:
            self.turn_away(refusal)
            return
        if not self.request.connection or self.request.connection.stream.closed():  # type: ignore[attr-defined]
            return  # it sent a request and went: nothing is left to be detached
        fd, early = leave_tornado(self.detach())
        open_connection(door, fd, headers, early, visitor._replace(token=""))
        door.reactor.tally.handshakes.observe(self.request.request_time())


def shown_in_query(handler: httpd.Handler) -> tuple[str, str]:
    """Token and ticket of a request's query, as `Entrance.visit` takes them."""
    return handler.get_query_argument(entrance.TOKEN, ""), handler.get_query_argument(entrance.TICKET, "")


def open_connection(door: Door, fd: Descriptor, headers: handshake.Headers, early: bytes, visitor: Visitor) -> None:
    """Answer a request that `handshake.refuse` let pass and put its client on the plane.

    early: what came behind the request.
    """
    # The access log of both ways in; without the query, which may hold a token.
    logger.debug("GET %s 101", handshake.PATH)
    # Nobody knows of compression before our answer, so nobody's bytes are compressed until then; and what is here is
    # read in one go, as larger pieces of compressed bytes must not be.
    answer, agreement = handshake.accept(headers, compress=bool(door.forms) and len(early) <= DEFLATED_READ_BYTES)
    connection = door.new_connection(fd, visitor)
    if agreement is not None:
        connection.compress(agreement, door.forms)
    connection.begin(answer, early)


def leave_tornado(stream: iostream.IOStream) -> tuple[Descriptor, bytes]:
    """Take a detached stream's descriptor, and what had been read beyond the request.

    `_read_buffer` and `socket` are not documented API: Tornado has no door for this, so a test holds them to every
    version.
    """
    early = bytes(stream._read_buffer)
    sock = stream.socket
    if isinstance(stream, httpd.HeadStream):
        stream.place.leave()  # it is counted as a connection from now on
    stream.io_loop.remove_handler(sock)
    stream.socket = None  # type: ignore[assignment]
    if isinstance(sock, ssl.SSLSocket):
        tls = TlsSocket(sock)
        return tls, early + tls.read_pending()
    return take_over(sock), early
