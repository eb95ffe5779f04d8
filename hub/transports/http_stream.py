r"""HTTP streams: the native protocol where WebSockets are blocked, as npm `centrifuge` falls back to it.

Does: check a request whose body or query holds the first commands, take its socket out of Tornado, write everything for
this client into an answer that never ends.
Does not: take further commands: they come as requests of their own (transports.emulation), wherever they land.
Called by: worker (routes), reactor through Connection.
Never break: a stream is closed to the client's words: what comes behind its request is read and forgotten.

    POST /connection/http_stream   {"id":1,"connect":{}}    ->   200, one message a line: {"id":1,"connect":{…}}\n
    GET  /connection/sse?cf_connect={"id":1,"connect":{}}   ->   200, one message an event: data: {…}\n\n   (POST too)

The reply to connect has `session` and `node` besides what a WebSocket client gets; every request to /emulation names
them. The last message says why the stream ends: {"push":{"disconnect":{"code":3001,"reason":"shutdown"}}}.
The answer has no length and no chunks, its end is the connection's: so a frame is the same bytes for all, also through
proxies that speak HTTP/1.0 to us (nginx, unless it is told otherwise).
Before the stream begins: 400 no commands that can be read, or none to connect; 403 a foreign page; 405; 413; 415;
429 and 503 with Retry-After, too many of one address, or of all; 401 for a bad token of the request (entrance). A bad
one in the connect command is told in the stream, as 3500, upon which SDKs give up; so is a user's connection too many,
as 3504.
Source: https://centrifugal.dev/docs/transports/sse and /http_stream
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from .. import cors, httpd, protocol
from ..audience import WireForm
from ..connection import DEAF_BYTES, Connection
from ..cors import CorsHandler
from ..entrance import Visitor
from ..entrance import refusal as refuse_token
from ..errors import Close, HubError, ProtocolError
from ..outgoing import CLOSING
from ..session import Session
from ..tls import Descriptor
from .emulation import PATH as EMULATION_PATH
from .emulation import Emulation, EmulationHandler
from .websocket import leave_tornado, shown_in_query

logger = logging.getLogger(__name__)

LINES_PATH = "/connection/http_stream"
EVENTS_PATH = "/connection/sse"
QUERY = "cf_connect"


class LinesForm:
    """Wire form: one message a line."""

    def encode_message(self, message: bytes) -> bytes:
        r"""b'{}' -> b'{}\n'"""
        return flat(message) + b"\n"

    def encode_publication(self, channel: str, body: bytes) -> bytes:
        r"""b'{"push":{"channel":"a","pub":{"data":1}}}\n'"""
        return self.encode_message(protocol.encode_publication(channel, body))

    def encode_arrival(self, channel: str, body: bytes) -> bytes:
        r"""b'{"push":{"channel":"a","join":{"info":{…}}}}\n'"""
        return self.encode_message(protocol.encode_arrival(channel, body))


class EventsForm(LinesForm):
    """Wire form: one message an event of an event stream (HTML §9.2)."""

    def encode_message(self, message: bytes) -> bytes:
        r"""b'{}' -> b'data: {}\n\n'"""
        return b"data: " + flat(message) + b"\n\n"


def flat(message: bytes) -> bytes:
    r"""One line: b'{\n}' -> b'{ }'. Between two JSON tokens CR and LF are blanks, and within one they can't stand.

    Nothing of ours is written so; it is for bodies that another program has put into Redis.
    """
    if b"\n" in message or b"\r" in message:
        return message.replace(b"\r", b" ").replace(b"\n", b" ")
    return message


LINES = LinesForm()
EVENTS = EventsForm()
KINDS: dict[WireForm, str] = {LINES: "http_stream", EVENTS: "sse"}
CONTENT_TYPES: dict[WireForm, str] = {LINES: "application/json", EVENTS: "text/event-stream"}


def encode_head(wire: WireForm, allowed: str, cookies: bool = False) -> bytes:
    """Of the answer, up to and with its empty line. allowed: the page's origin, '' without one. cookies: as cors has
    it.
    """
    fields = {
        "Server": "hub",
        "Content-Type": CONTENT_TYPES[wire],
        # A stream is no document: nobody may keep it, compress it (which waits for more) or gather it (nginx).
        "Cache-Control": "no-store, no-transform",
        "X-Accel-Buffering": "no",
        "Connection": "close",
        **cors.headers(allowed, cookies),
    }
    lines = ["HTTP/1.1 200 OK", *(f"{name}: {value}" for name, value in fields.items())]
    return "\r\n".join([*lines, "", ""]).encode()


class EmulatedSession(Session):
    """A session whose commands come in requests of their own."""

    __slots__ = ("id", "node")

    id: str
    node: str

    @property
    def session_name(self) -> str:
        return self.id

    def greeting(self) -> dict[str, Any]:
        """What the client puts into those requests, besides."""
        return {**super().greeting(), "session": self.id, "node": self.node}


class StreamConnection(Connection):
    """A client that speaks the native protocol over a stream and requests to /emulation."""

    __slots__ = ("_due_at", "_session", "_sessions", "wire")

    def __init__(self, fd: Descriptor, emulation: Emulation, wire: WireForm, visitor: Visitor) -> None:
        super().__init__(fd, emulation.reactor, emulation.services.outbox)
        self.wire = wire
        self._sessions = emulation.sessions
        meter = emulation.services.quotas.open(visitor.address, self)
        self._session = EmulatedSession(emulation.services, self, visitor, meter)
        self._session.node = str(self._sessions.owner)
        self._session.id = self._sessions.enter(self)

    def begin(self, head: bytes, message: bytes) -> None:
        """Join the plane: send the answer's head, then handle the first commands."""
        self.enter()
        self._due_at = self._session.first_deadline(self.opened_at)
        self.reactor.schedule(self, self._due_at)
        self.put(head)
        self.hear(message)

    # What emulation calls.

    @property
    def user(self) -> str:
        """By its token, as those of requests name it, and not by the application's word."""
        return self._session.claims.user

    def hear(self, message: bytes) -> None:
        self.heard_at = self.reactor.clock()
        self.messages += 1
        if self.trace is not None:
            self.trace.heard(message)
        try:
            self._session.handle(message)
        except Exception:
            self._fail()

    # What the session and streams call.

    @property
    def kind(self) -> str:
        return KINDS[self.wire]

    def reply(self, message: bytes) -> None:
        self.put(self.wire.encode_message(message))

    def wake(self, at: float) -> None:
        if at < self._due_at and self.open:
            self._due_at = at
            self.reactor.schedule(self, at)

    def displaced(self, channel: str) -> None:
        self._session.on_displaced(channel)

    def close(self, close: Close) -> None:
        super().close(close)
        if self.state == CLOSING:
            # No client answers last words here: our side ends behind them, and then it goes.
            self._deaf = DEAF_BYTES

    # What the plane calls.

    def on_bytes(self, data: bytes) -> None:
        """Of a client that has been told `Connection: close`: forgotten."""

    def on_deadline(self, now: float) -> None:
        self._due_at = self._session.on_deadline(now)
        if self.open:
            self.reactor.schedule(self, self._due_at)

    def on_caught_up(self, dropped: int) -> None:
        self.reply(protocol.encode_message({"hub": {"dropped": dropped}}))

    def last_words(self, close: Close) -> bytes:
        return self.wire.encode_message(protocol.encode_disconnect(close.code, close.reason))

    def on_gone(self) -> None:
        session = self._session
        session.meter.close()
        self._sessions.leave(session.id)
        session.on_gone()

    def about(self) -> Mapping[str, object]:
        return self._session.about()


class StreamHandler(CorsHandler):
    """POST of the first commands; answers with a stream."""

    def initialize(self, emulation: Emulation, wire: WireForm) -> None:
        self._emulation = emulation
        self._wire = wire
        self.allowed_origins = emulation.entrance.origins
        self.refusals = emulation.entrance.quotas.refusals
        self.takes_cookies = bool(emulation.entrance.cookie)

    async def post(self) -> None:
        if self.is_json():
            await self.open_stream(self.request.body)

    async def open_stream(self, message: bytes) -> None:
        """Answer with a stream if the commands are to connect."""
        client, entrance, headers = self._emulation.services.client, self._emulation.entrance, self.request.headers
        if len(message) > client.message_bytes:
            self.plain(413, f"the commands: allowed are {client.message_bytes} bytes")
        elif not _connects(message, client.commands_per_message):
            self.plain(400, "allowed are commands of the native protocol, the first of them connect")
        elif (refusal := entrance.admit(entrance.address_of(self.peer, headers))) is not None:
            self.turn_away(refusal)
        else:
            try:
                visitor = await entrance.visit(self.peer, headers, *shown_in_query(self))
            except HubError as error:
                self.turn_away(refuse_token(error))
            else:
                self._begin(message, visitor._replace(token=""))

    def _begin(self, message: bytes, visitor: Visitor) -> None:
        stream = self.request.connection.stream if self.request.connection else None  # type: ignore[attr-defined]
        if stream is None or stream.closed():
            return  # it sent a request and went: nothing is left to be detached
        # The path without its query, which holds the token.
        logger.debug("%s %s 200", self.request.method, self.request.path)
        fd, _ = leave_tornado(self.detach())
        head = encode_head(self._wire, self.allowed or "", self.takes_cookies)
        StreamConnection(fd, self._emulation, self._wire, visitor).begin(head, message)


class EventsHandler(StreamHandler):
    """The same by GET, as EventSource does it: the commands are in the query."""

    METHODS = ("GET", "POST")

    async def get(self) -> None:
        await self.open_stream(self.get_query_argument(QUERY, "").encode())


def _connects(message: bytes, most: int) -> bool:
    try:
        return protocol.decode(message, most)[0].method == "connect"
    except ProtocolError:
        return False


def routes(emulation: Emulation) -> httpd.Routes:
    """Of both kinds of streams, and of the requests that belong to them."""
    return [
        (LINES_PATH, StreamHandler, {"emulation": emulation, "wire": LINES}),
        (EVENTS_PATH, EventsHandler, {"emulation": emulation, "wire": EVENTS}),
        (EMULATION_PATH, EmulationHandler, {"emulation": emulation}),
    ]
