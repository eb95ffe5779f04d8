"""Engine.IO's address: `/socket.io/`, its handshakes, polls and posts, and the way to its WebSocket.

Does: judge each request in Engine.IO's words, bring it to the worker in which its session lives, hold a poll until
there is something to say, hand upgrades to engineio.
Does not: know sessions' insides (engineio), packets, or how workers reach each other (relay, handover).
Called by: worker (routes), relay (`Address.answer`), handover (`Address.take`).
Never break: every request has an answer; a bad one changes no session but the one that it is of. Whoever is not told
what a poll took out has no session any more.

    GET  ?EIO=4&transport=polling                 a new session: `0{"sid":…}`
    GET  ?EIO=4&transport=polling&sid=…           a poll: packets, joined by 0x1e
    POST ?EIO=4&transport=polling&sid=…           packets from the client; `ok`
    GET  ?EIO=4&transport=websocket[&sid=…]       a WebSocket: a new session, or one that polls moves there
    OPTIONS                                       the CORS preflight

A token may come as entrance has it, where the client can't send it when it joins a namespace; one that is not good is
401. Then all requests of the session must carry the same, or one of the same user: the session's id alone is not
enough. A ticket is used by the first of them, and shown again by the others, as clients do with their query. A session
that began without one is known by its id, of 128 bits of chance; a request with a token of somebody else is refused all
the same.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
from collections.abc import Mapping
from typing import NamedTuple

from .. import cors, handshake, httpd
from .. import engineio_protocol as engineio
from ..engineio_protocol import Fault
from ..entrance import NOBODY, Visitor
from ..entrance import refusal as refuse_token
from ..errors import CLOSE_TOO_BIG, HubError, OwnerGone, OwnerSlow, RelayError
from ..handover import Handover
from ..relay import Relay, owner_of
from ..tls import Descriptor, discard
from ..tls_bridge import plain_descriptor
from ..tunnel import Tunnel, Tunnels
from .engineio import CLOSE_ABORTED, CLOSE_SECOND_POLL, TO_MS, Engine, EngineConnection, Make
from .socketio import Door
from .websocket import leave_tornado, shown_in_query

logger = logging.getLogger(__name__)

KIND = "engineio"
"""Of the relay's requests."""
PROBE = "PROBE"
"""Beside GET and POST: may a WebSocket try to take over?"""
TAKEN = b"taken"
"""The answer where the session has one already, or is about to."""
SOCKETIO_PATH = "/socket.io/"
UPGRADES = ["websocket"]
FAULTS = {fault.status: fault for fault in (engineio.UNAUTHORIZED, engineio.FORBIDDEN, engineio.TOO_MANY)}
"""By the status of a refusal of the entrance."""
GRACE_S = 5.0
"""A poll is answered by a ping, or by the session's end, after pingInterval and pingTimeout; so much later, its worker
is hung."""


class Request(NamedTuple):
    """A poll or a post. For other workers: four fields between line ends, of which only the last may hold any."""

    method: str
    sid: str
    token: str
    body: bytes

    def pack(self) -> bytes:
        """b'POST\\nSID\\nTOKEN\\n4hello'"""
        return f"{self.method}\n{self.sid}\n{self.token}\n".encode() + self.body

    @classmethod
    def unpack(cls, payload: bytes) -> Request:
        """The opposite."""
        method, sid, token, body = payload.split(b"\n", 3)
        return cls(method.decode(), sid.decode(), token.decode(), body)


class Probing(NamedTuple):
    """A WebSocket that is to take over: what its answer is made of, and what came behind its request."""

    sid: str
    token: str
    key: str
    protocol: str
    early: bytes

    def pack(self) -> bytes:
        """b'SID\\nTOKEN\\nKEY\\nPROTOCOL\\n…'; headers hold no line ends."""
        return "\n".join([*self[:4], ""]).encode() + self.early

    @classmethod
    def unpack(cls, words: bytes) -> Probing:
        """The opposite."""
        sid, token, key, protocol, early = words.split(b"\n", 4)
        return cls(sid.decode(), token.decode(), key.decode(), protocol.decode(), early)


class Answer(NamedTuple):
    """Status and body: packets where that is 200, else Engine.IO's error in JSON."""

    status: int
    body: bytes

    def pack(self) -> bytes:
        """b'200\\n4hello'"""
        return b"%d\n%b" % self

    @classmethod
    def unpack(cls, payload: bytes) -> Answer:
        """The opposite."""
        status, _, body = payload.partition(b"\n")
        return cls(int(status), body)


def refusal(fault: Fault) -> Answer:
    """The answer that says so."""
    return Answer(fault.status, fault.body())


class Address:
    """Requests of one worker, and those that others bring."""

    def __init__(
        self, engine: Engine, door: Door, relay: Relay, handover: Handover, tunnels: Tunnels | None = None
    ) -> None:
        """tunnels: to sessions of other machines; None where there are none."""
        self.engine = engine
        self.door = door
        self._relay = relay
        self._handover = handover
        self._tunnels = tunnels
        relay.serve(KIND, self.answer)
        settings = engine.settings
        self._poll_s = (settings.ping_interval_ms + settings.ping_timeout_ms) / TO_MS + GRACE_S

    async def handle(self, request: Request) -> Answer:
        """Have a request answered, wherever its session lives. Cancelled, a poll ends its session."""
        try:
            owner = owner_of(request.sid)
        except ValueError:
            return refusal(engineio.UNKNOWN_SID)
        if owner == self._relay.owner:
            return await self._serve(request)
        timeout_s = self._poll_s if request.method == "GET" else None
        try:
            return Answer.unpack(await self._relay.ask(owner, KIND, request.pack(), timeout_s))
        except OwnerGone:
            return refusal(engineio.UNKNOWN_SID)
        except OwnerSlow:
            return refusal(engineio.SLOW)
        except RelayError:
            return refusal(engineio.FAILED)

    async def answer(self, payload: bytes) -> bytes:
        """What the relay calls: a request of another worker."""
        request = Request.unpack(payload)
        packed = (await self._serve(request)).pack()
        if len(packed) > self._relay.limits.message_bytes:
            # It would not get there, and is in no outbox any more.
            logger.warning("a poll's answer of %d bytes is too large for the relay (relay.message_bytes)", len(packed))
            session = self.engine.sessions.get(request.sid)
            if session is not None:
                session.end(CLOSE_TOO_BIG)
            return refusal(engineio.FAILED).pack()
        return packed

    async def _serve(self, request: Request) -> Answer:
        if request.method == "GET" and self.engine.is_last_poll(request.sid, request.token):
            return Answer(200, engineio.ENCODED_NOOP)
        session = self.find(request.sid, request.token)
        if isinstance(session, Fault):
            return refusal(session)
        if request.method == PROBE:
            return Answer(200, b"" if session.polls and not session.probing else TAKEN)
        if not session.polls:
            return refusal(engineio.BAD_REQUEST)
        return await self._poll(session) if request.method == "GET" else await self._post(session, request.body)

    def find(self, sid: str, token: str) -> EngineConnection | Fault:
        """The session, of this worker."""
        session = self.engine.sessions.get(sid)
        if session is not None:
            session.check_due()
        if session is None or not session.open:
            return engineio.UNKNOWN_SID
        # Stock clients can't send along what they joined with, so a session that began without a token needs none.
        if token != session.visitor.token and (not token or self.user(token) not in session.users):
            return engineio.FORBIDDEN
        return session

    def user(self, token: str) -> str | None:
        """Whose token it is; None for one that is no good."""
        try:
            return self.door.entrance.authenticator.verify(token).user
        except HubError:
            return None

    async def reach(self, probe: Probing) -> Tunnel | Fault | None:
        """The way to the machine of the session that a WebSocket, found good, is to take over; None: it is this one."""
        owner = owner_of(probe.sid)
        if owner.hub == self._relay.owner.hub or self._tunnels is None:
            return None
        try:
            return await self._tunnels.dig(owner, probe.key, probe.pack())
        except OwnerGone:
            return engineio.UNKNOWN_SID
        except RelayError:
            return engineio.SLOW

    def probe(self, fd: Descriptor, probe: Probing) -> None:
        """Give a WebSocket, of which the request was found good (PROBE), to the session that it is to take over."""
        owner = owner_of(probe.sid)
        if owner == self._relay.owner:
            self._begin_probe(fd, probe)
            return
        try:
            plain = plain_descriptor(self.engine.reactor, fd)
        except OSError as error:
            logger.debug("a WebSocket was not handed over: %s", error)
            return
        try:
            self._handover.send(owner, plain, probe.pack())
        except RelayError as error:
            # The client sees its WebSocket end, and stays with its polls.
            logger.debug("a WebSocket was not handed over: %s", error)
        os.close(plain)

    def take(self, fd: int, words: bytes) -> None:
        """What the handover calls: a WebSocket from another worker."""
        self._begin_probe(fd, Probing.unpack(words))

    def _begin_probe(self, fd: Descriptor, probe: Probing) -> None:
        session = self.find(probe.sid, probe.token)
        if isinstance(session, Fault) or session.probing or not session.polls:
            discard(fd)  # ended, or moved, since it was asked for
            return
        headers = {"sec-websocket-key": probe.key, "sec-websocket-protocol": probe.protocol}
        self.engine.probe(session, fd, headers, probe.early)

    async def _poll(self, session: EngineConnection) -> Answer:
        if session.held:
            session.close(CLOSE_SECOND_POLL)
            return refusal(engineio.BAD_REQUEST)
        found = session.begin_poll()
        if not isinstance(found, bytes):
            try:
                found = await found
            except asyncio.CancelledError:
                session.end(CLOSE_ABORTED)
                raise
        return Answer(200, found)

    async def _post(self, session: EngineConnection, body: bytes) -> Answer:
        if len(body) > self.engine.settings.max_payload_bytes:
            session.close(CLOSE_TOO_BIG)
            return refusal(engineio.TOO_BIG)
        return Answer(200, b"ok") if await session.post(body) else refusal(engineio.BAD_REQUEST)


class Query(NamedTuple):
    """What a request says of itself."""

    version: str
    transport: str
    sid: str
    token: str


class EngineIOHandler(httpd.Handler):
    """All requests to `/socket.io/`."""

    SUPPORTED_METHODS = ("GET", "POST", "OPTIONS", "HEAD", "PUT", "DELETE", "PATCH")

    def initialize(self, address: Address, make: Make) -> None:
        self._address = address
        self._make = make
        self._waiting: asyncio.Future[Answer] | None = None

    def prepare(self) -> None:
        headers = self.request.headers
        entrance = self._address.door.entrance
        allowed = cors.allowed_origin(
            headers.get("Origin"), headers.get("Host", ""), entrance.origins, secure=self.secure
        )
        self.set_header("Cache-Control", "no-store")
        self.set_header("X-Content-Type-Options", "nosniff")
        for name, value in cors.headers(allowed or "", bool(entrance.cookie)).items():
            self.set_header(name, value)
        if allowed is None:
            self._address.door.entrance.quotas.refusals.count("origins")
            self._answer(refusal(engineio.FORBIDDEN))
            return
        self._query = self._read_query()
        if self.request.method != "OPTIONS":
            fault = engineio.check_query(self._query.version, self._query.transport)
            if fault is not None:
                self._answer(refusal(fault))

    def _read_query(self) -> Query:
        shown = self._address.door.entrance.shown(self.request.headers, *shown_in_query(self))
        names = ("EIO", "transport", "sid")
        version, transport, sid = (self.get_query_argument(name, "", strip=False) for name in names)
        # Behind a line end in it the rest would be taken for another field, on the way to another worker.
        return Query(version, transport, sid, "".join(shown.splitlines()))

    # Methods.

    async def get(self) -> None:
        if self._query.transport == "websocket":
            await self._open_websocket()
        elif self._query.sid:
            await self._carry(b"")
        else:
            await self._open()

    async def post(self) -> None:
        if self._query.sid and self._query.transport == "polling":
            await self._carry(self.request.body)
        else:
            self._answer(refusal(engineio.BAD_METHOD))

    def options(self) -> None:
        self.set_status(204)
        # Also those that are refused: a page is to read why, and not that CORS forbade it to ask.
        self.set_header("Access-Control-Allow-Methods", ", ".join(self.SUPPORTED_METHODS))
        self.set_header("Access-Control-Allow-Headers", cors.REQUEST_HEADERS)
        self.set_header("Access-Control-Max-Age", str(cors.MAX_AGE_S))
        self.finish()

    def _bad_method(self) -> None:
        self._answer(refusal(engineio.BAD_METHOD))

    head = put = delete = patch = _bad_method

    def on_connection_close(self) -> None:
        """The client has gone: a poll that is held for it ends its session."""
        if self._waiting is not None:
            self._waiting.cancel()

    # Parts.

    async def _carry(self, body: bytes) -> None:
        entrance = self._address.door.entrance
        # One command of its address, besides those in it, which count where the session lives.
        if not entrance.quotas.request(entrance.address_of(self.peer, self.request.headers), "", 0):
            self._answer(refusal(engineio.TOO_MANY))
            return
        request = Request(str(self.request.method), self._query.sid, self._query.token, body)
        self._waiting = asyncio.ensure_future(self._address.handle(request))
        try:
            answer = await self._waiting
        except asyncio.CancelledError:
            return  # the client has gone
        self._answer(answer)

    async def _open(self) -> None:
        newcomer = engineio.BUSY if self._address.engine.full else await self._newcomer()
        if isinstance(newcomer, Fault):
            self._answer(refusal(newcomer))
            return
        session = self._address.engine.open_polling(self._make, newcomer)
        self._answer(Answer(200, session.opening(UPGRADES)))

    async def _newcomer(self) -> Visitor | Fault:
        entrance, headers = self._address.door.entrance, self.request.headers
        over = entrance.admit(entrance.address_of(self.peer, headers))
        if over is not None:
            return FAULTS.get(over.status, engineio.BUSY)
        try:
            return await entrance.visit(self.peer, headers, *shown_in_query(self))
        except HubError as error:
            refused = refuse_token(error)
            for name, value in refused.headers.items():
                self.set_header(name, value)
            return FAULTS.get(refused.status, engineio.BUSY)

    async def _open_websocket(self) -> None:
        headers, query = self.request.headers, self._query
        refused = handshake.refuse(
            self.request.version, headers, self._address.door.entrance.origins, secure=self.secure
        )
        answer, visitor = None, NOBODY
        if refused is not None:
            answer = refusal(engineio.BAD_REQUEST)
        elif query.sid:
            answer = await self._address.handle(Request(PROBE, query.sid, query.token, b""))
        elif isinstance(newcomer := await self._newcomer(), Fault):
            answer = refusal(newcomer)
        else:
            visitor = newcomer
        if answer is not None and answer.status != 200:
            self._answer(answer)
            return
        key, protocol = (headers.get(f"Sec-WebSocket-{name}", "") for name in ("Key", "Protocol"))
        probe = Probing(query.sid, query.token, key, protocol, b"")
        taken = answer is not None and answer.body == TAKEN
        tunnel = await self._address.reach(probe) if query.sid and not taken else None
        if isinstance(tunnel, Fault):
            self._answer(refusal(tunnel))
            return
        if not self.request.connection or self.request.connection.stream.closed():  # type: ignore[attr-defined]
            if tunnel is not None:
                tunnel.abort()
            return  # it sent a request and went: nothing is left to be detached
        logger.debug("GET %s 101", self.request.path)
        fd, early = leave_tornado(self.detach())
        if tunnel is not None:
            await tunnel.begin(fd, early)
        elif taken:
            self._address.engine.turn_away(fd, headers)
        elif query.sid:
            self._address.probe(fd, probe._replace(early=early))
        else:
            self._address.engine.open_websocket(self._make, fd, headers, early, visitor)

    def _answer(self, answer: Answer) -> None:
        self.set_status(answer.status)
        kind = "text/plain; charset=UTF-8" if answer.status == 200 else "application/json"
        self.set_header("Content-Type", kind)
        if answer.status in (engineio.BUSY.status, engineio.TOO_MANY.status):
            self.set_header("Retry-After", "1")
        self.finish(answer.body)


def routes(address: Address, others: Mapping[str, Make] | None = None) -> httpd.Routes:
    """Where Socket.IO clients connect. others: more addresses, such as '/engine.io/', and what their sessions are."""
    addresses = {SOCKETIO_PATH: address.door.new_connection, **(others or {})}
    return [
        (re.escape(path) + "?", EngineIOHandler, {"address": address, "make": make}) for path, make in addresses.items()
    ]
