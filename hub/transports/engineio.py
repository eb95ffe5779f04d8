"""Engine.IO: sessions that live on a WebSocket, or on polls until a WebSocket takes over.

Does: keep the sessions of this worker by their id, ping them, hold what they are sent, move one from polling to its
WebSocket.
Does not: know what messages say (socketio derives from EngineConnection) or HTTP (polling asks here).
Called by: transports.polling, transports.socketio, reactor through Connection.
Never break: a session has one place to be sent to, its socket or the poll that waits; what it is sent leaves in order,
also across the move. An invalid packet, a second poll beside the first, and a poll that is given up end the session.

A session that polls is a connection of the plane like any other, with a negative number for a descriptor and a socket
that takes nothing (`_blocked`): so the rules for slow readers bound what waits between two polls. Frames lie in its
outbox as they would go on a WebSocket, where everybody shares them, and a poll takes them out of their frames again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from math import inf

from .. import engineio_protocol as engineio
from .. import errors, frames, handshake
from ..audience import new_number
from ..entrance import Visitor
from ..errors import Close, ProtocolError
from ..frames import Event
from ..outbox import Limits
from ..outgoing import OPEN
from ..quotas import Meter, Quotas
from ..reactor import Reactor
from ..relay import Owner, new_session_id
from ..sections import ClientSettings, SocketIOSettings
from ..tls import Descriptor
from .engineio_probe import Probe, Superfluous
from .websocket import FramedConnection

logger = logging.getLogger(__name__)

POLL_BYTES = 1_048_576
"""About as much goes into one answer; the rest waits for the next poll."""
CLOSE_ABORTED = Close(errors.CLOSE_PROTOCOL_ERROR.code, "poll aborted")
CLOSE_SECOND_POLL = Close(errors.CLOSE_PROTOCOL_ERROR.code, "a second poll beside the first")
CLOSE_SECOND_POST = Close(errors.CLOSE_PROTOCOL_ERROR.code, "a second post beside the first")
LAST_POLL_S = 0.5
"""A poll that a client sent before its goodbye may be so much later, by way of another worker."""
MAX_LAST_POLLS = 10_000
"""Goodbyes that are remembered for that; beyond, such a poll hears that its session is unknown, which is as true."""
TO_MS = 1000.0
TICKS_PER_TIMEOUT = 20
"""A heartbeat's deadlines are that exact, and as exact as all others of a worker at least."""
Make = Callable[[Descriptor, "Engine", Visitor], "EngineConnection"]
"""A new session: its descriptor or number, where it belongs, who it is by its handshake."""


def tick_s(settings: SocketIOSettings, usual_s: float = 0.1) -> float:
    """What the plane's wheel has to tell apart. usual_s: for all that is counted in seconds."""
    return min(usual_s, settings.ping_timeout_ms / TO_MS / TICKS_PER_TIMEOUT)


@dataclass(slots=True)
class Engine:
    """The sessions of one worker, and what they share."""

    reactor: Reactor
    client: ClientSettings
    """With `message_bytes` as `max_payload_bytes` has it."""
    outbox: Limits
    settings: SocketIOSettings
    owner: Owner
    """This worker."""
    new_id: Callable[[Owner], str] = new_session_id
    quotas: Quotas = field(default_factory=Quotas)
    sessions: dict[str, EngineConnection] = field(default_factory=dict)
    last_polls: dict[str, str] = field(default_factory=dict)
    """Sessions that their clients ended while no poll waited, with their tokens."""
    polling: int = 0
    """Sessions without a socket, of which nothing else bounds the number."""

    @property
    def full(self) -> bool:
        """It takes no more of these."""
        return self.polling >= self.settings.polling_sessions

    def open_polling(self, make: Make, visitor: Visitor) -> EngineConnection:
        """A session without a socket."""
        session = make(new_number(), self, visitor)
        session.begin_polling()
        return session

    def open_websocket(
        self, make: Make, fd: Descriptor, headers: handshake.Headers, early: bytes, visitor: Visitor
    ) -> None:
        """A session on a WebSocket of which the handshake is good."""
        session = make(fd, self, visitor)
        answer, _ = handshake.accept(headers)
        session.begin(answer + encode_frame(session.opening([])), early)

    def probe(self, session: EngineConnection, fd: Descriptor, headers: handshake.Headers, early: bytes) -> None:
        """A WebSocket that is to take over a session that polls."""
        answer, _ = handshake.accept(headers)
        session.probing = True
        Probe(fd, session, self.settings.upgrade_timeout_ms / TO_MS).begin(answer, early)

    def expect_last_poll(self, session: EngineConnection) -> None:
        """A client has ended its session, and may have sent a poll before."""
        if len(self.last_polls) < MAX_LAST_POLLS:
            self.last_polls[session.sid] = session.visitor.token
            asyncio.get_running_loop().call_later(LAST_POLL_S, self.last_polls.pop, session.sid, None)

    def is_last_poll(self, sid: str, token: str) -> bool:
        """It is that poll: there is one for each goodbye."""
        return self.last_polls.get(sid) == token and self.last_polls.pop(sid, None) is not None

    def turn_away(self, fd: Descriptor, headers: handshake.Headers) -> None:
        """A WebSocket for a session that has one, or that another one tries to take over: opened and closed at once."""
        answer, _ = handshake.accept(headers)
        Superfluous(fd, self.reactor, self.client, self.outbox).begin(answer, b"")


def encode_frame(packet: bytes, opcode: int = frames.TEXT) -> bytes:
    r"""One packet as it goes on a WebSocket: b'2' -> b'\x81\x012'."""
    return frames.encode_frame(opcode, packet)


PING_FRAME = encode_frame(engineio.ENCODED_PING)
CLOSE_FRAME = encode_frame(engineio.ENCODED_CLOSE)


def unframe(data: bytes) -> Iterator[bytes]:
    r"""Our own frames as packets of a polling body: b'\x81\x012\x82\x01\xff' -> b'2', b'b/w=='."""
    at = 0
    while at < len(data):
        length, start = data[at + 1], at + 2
        if length > frames.MAX_CONTROL_BYTES:
            start += 2 if length == 126 else 8
            length = int.from_bytes(data[at + 2 : start], "big")
        payload = data[start : start + length]
        yield payload if data[at] & 0x0F == frames.TEXT else engineio.encode_bytes(payload)
        at = start + length


class EngineConnection(FramedConnection):
    """One session."""

    meter: Meter

    __slots__ = (
        "_ping_due",
        "_poll",
        "_polled_bytes",
        "_pong_due",
        "_posted_bytes",
        "_posting",
        "engine",
        "probed",
        "probing",
        "sid",
        "visitor",
    )

    kind = "engineio"

    def __init__(self, fd: Descriptor, engine: Engine, visitor: Visitor) -> None:
        """fd: negative for a session that polls. visitor: of the handshake."""
        super().__init__(fd, engine.reactor, engine.client, engine.outbox)
        self.engine = engine
        self.sid = engine.new_id(engine.owner)
        self.visitor = visitor
        self.meter = engine.quotas.open(visitor.address, self)
        self.account = self.meter.account
        self.probing = False
        """A WebSocket is trying to take over."""
        self.probed = False
        """It has been answered: the client waits for its poll to end."""
        self._posting = False
        """A post is being handled."""
        self._posted_bytes = self._polled_bytes = 0
        self._blocked = self.polls
        self._poll: asyncio.Future[bytes] | None = None
        """The one that waits."""
        self._ping_due = self.heard_at + engine.settings.ping_interval_ms / TO_MS
        self._pong_due = inf
        engine.sessions[self.sid] = self

    @property
    def polls(self) -> bool:
        """It has no socket of its own."""
        return self.fd < 0

    @property
    def ready(self) -> bool:
        return self.held if self.polls else super().ready

    @property
    def users(self) -> set[str]:
        """Whose session it is: a request with a token must have one of theirs."""
        return {self.visitor.user}

    @property
    def max_packets(self) -> int:
        """In one post, while there is nothing to tell a client from anybody."""
        return engineio.MAX_PACKETS

    @property
    def name(self) -> str:
        # Not the whole id: whoever reads the log could take the session over.
        return self.sid.rpartition(".")[2][:8]

    def opening(self, upgrades: list[str]) -> bytes:
        """The handshake's packet."""
        settings = self.engine.settings
        return engineio.encode_open(
            self.sid, upgrades, settings.ping_interval_ms, settings.ping_timeout_ms, settings.max_payload_bytes
        )

    # What a protocol fills in.

    def on_packet(self, data: bytes, binary: bool) -> None:
        """A message came, while OPEN. Raises ProtocolError."""
        raise NotImplementedError

    def on_app_due(self, now: float) -> None:
        """The protocol's own deadline has come, while OPEN."""
        raise NotImplementedError

    def app_due(self) -> float:
        """When that is; inf for never."""
        raise NotImplementedError

    def on_ping(self) -> None:
        """A ping is about to be queued."""

    def on_pong(self) -> None:
        """The ping was answered: whatever was sent before it has come."""

    def farewell(self, close: Close) -> bytes:
        """Frames that go before the end, where the protocol has them."""
        raise NotImplementedError

    # What polling calls.

    def begin_polling(self) -> None:
        """Join the plane without a socket."""
        self.engine.polling += 1
        self.enter()
        self._schedule()

    def check_due(self) -> None:
        """Meet deadlines that have passed: a request is not to find a session that is over but for the wheel's tick."""
        now = self.reactor.clock()
        if self.state == OPEN and now >= self.next_due():
            self.on_timer(now)

    def begin_poll(self) -> bytes | asyncio.Future[bytes]:
        """What waits, as a body, or a promise of it where nothing does. Only while `polls` and no poll waits."""
        if self._outbox.size:
            return self._take_body()
        if self.probed:
            return engineio.ENCODED_NOOP
        self._poll = asyncio.get_running_loop().create_future()
        return self._poll

    @property
    def held(self) -> bool:
        """A poll waits."""
        return self._poll is not None

    async def post(self, body: bytes) -> bool:
        """What a client has posted. False: it was no good, and the session is over. Cancelled, it is over too.

        Many packets are handled over several turns of the loop; a second post meanwhile would come between them.
        """
        if self._posting:
            self.close(CLOSE_SECOND_POST)
            return False
        self.heard_at = self.reactor.clock()
        self._posting = True
        self._posted_bytes += len(body)
        if self.trace is not None:
            self.trace.heard(body)
        try:
            for at, packet in enumerate(engineio.decode_payload(body, self.max_packets)):
                if at and not at % engineio.MAX_PACKETS:
                    await asyncio.sleep(0)
                if self.state != OPEN:
                    break
                self._handle(packet)
        except asyncio.CancelledError:
            self.end(CLOSE_ABORTED)
            raise
        except ProtocolError as error:
            logger.debug("session %s: %s", self.name, error)
            self.close(error.close)
            return False
        except Exception:
            # The border of one connection, as in Connection.receive.
            self._fail()
            return False
        finally:
            self._posting = False
        return True

    def end(self, close: Close) -> None:
        """Go now, without a word."""
        if self.state == OPEN:
            self.closed_with = close
        self.abort()

    # What the plane calls.

    def on_message(self, opcode: int, message: bytes) -> None:
        try:
            if opcode == frames.BINARY:
                self.messages += 1
                self.on_packet(message, True)
            else:
                self._handle(engineio.decode_text(message))
        except ProtocolError as error:
            logger.debug("session %s: %s", self.name, error)
            self.close(error.close)

    def _handle(self, packet: engineio.Packet) -> None:
        if packet.kind == engineio.MESSAGE:
            self.messages += 1
            self.on_packet(packet.data, packet.binary)
        elif packet.kind == engineio.PONG:
            if self._pong_due != inf:
                settings = self.engine.settings
                # From ping to ping: counted from the pong, the way to the client and back would be added each time.
                from_pong_due_ms = settings.ping_interval_ms - settings.ping_timeout_ms
                self._ping_due = max(self.reactor.clock(), self._pong_due + from_pong_due_ms / TO_MS)
                self._pong_due = inf
                self.on_pong()
                self._schedule()
        elif packet.kind == engineio.CLOSE:
            self._peer_ends()
        elif packet.kind != engineio.NOOP:
            raise ProtocolError(errors.CLOSE_PROTOCOL_ERROR, "a packet that only the server sends, or out of place")

    def _peer_ends(self) -> None:
        if not self.polls:
            self.close(errors.CLOSE_BY_PEER)
            return
        if self._poll is None:
            self.engine.expect_last_poll(self)
        self._answer_poll(engineio.ENCODED_NOOP)
        self.end(errors.CLOSE_BY_PEER)

    def on_due(self, now: float) -> None:
        if now >= self._pong_due and self.held_up:
            self._pong_due = now + self.engine.settings.ping_timeout_ms / TO_MS  # it may be there, unread
        elif now >= self._pong_due:
            self.close(errors.CLOSE_NO_PONG)
        elif now >= self._ping_due:
            # Counted from when the ping was due, as clients count. Half of it is theirs though the loop was held up.
            timeout_s = self.engine.settings.ping_timeout_ms / TO_MS
            self._ping_due, self._pong_due = inf, max(self._ping_due + timeout_s, now + timeout_s / 2)
            self.on_ping()
            self.put(PING_FRAME)
        if self.state == OPEN and now >= self.app_due():
            self.on_app_due(now)

    def next_due(self) -> float:
        return min(self._ping_due, self._pong_due, self.app_due())

    def last_words(self, close: Close) -> bytes:
        return self.farewell(close) + super().last_words(close)

    def close(self, close: Close) -> None:
        if not self.polls:
            super().close(close)
            return
        self.reactor.batches.serve_now(self)
        if self.state == OPEN:
            self._outbox.put_last(self.farewell(close) + CLOSE_FRAME)
            self._answer_poll(self._take_body(self._outbox.size))
            self.end(close)

    def flush(self) -> None:
        if not self.polls:
            super().flush()
            return
        self._armed = False
        if self._poll is not None and self._outbox.size:
            self._answer_poll(self._take_body())

    def _arm(self) -> None:
        # What a session that polls is sent can only leave where a poll waits.
        if not self.polls or self._poll is not None:
            super()._arm()

    def _account(self) -> None:
        super()._account()
        if self.polls and self.state == OPEN:
            self._arm()

    def on_flood(self) -> None:
        self.engine.quotas.refusals.count("pings")

    def about(self) -> Mapping[str, object]:
        return {
            "wire": self.kind,
            "transport": "polling" if self.polls else "websocket",
            "session": self.name,
            "user": ",".join(sorted(self.users)),
        }

    def traffic(self) -> tuple[int, int] | None:
        """Of its polls the bodies, as each has a connection of its own; and what its WebSocket has carried."""
        came, left = (0, 0) if self.polls else super().traffic() or (0, 0)
        return came + self._posted_bytes, left + self._polled_bytes

    def on_gone(self) -> None:
        self.meter.close()
        self.engine.sessions.pop(self.sid, None)
        self.engine.polling -= self.polls
        self._answer_poll(engineio.ENCODED_CLOSE)

    # Polls.

    def _take_body(self, most: int = POLL_BYTES) -> bytes:
        body = engineio.encode_payload(unframe(self._outbox.take(most)))
        self._polled_bytes += len(body)
        self.reactor.backlog.holds(self, self._outbox.size)
        return body

    def _answer_poll(self, body: bytes) -> None:
        poll, self._poll = self._poll, None
        if poll is not None and not poll.done():
            poll.set_result(body)

    # The move to a WebSocket.

    def release_poll(self) -> None:
        """End the poll that waits, so that the client can move to the WebSocket that has answered its probe."""
        self.probed = True
        self._answer_poll(engineio.ENCODED_NOOP)

    def take_over(self, probe: Probe, fd: int, reader: frames.FrameReader, rest: list[Event]) -> None:
        """Live on a WebSocket from now on. rest: what came on it behind the upgrade packet."""
        self._answer_poll(engineio.ENCODED_NOOP)
        self.note("upgraded")
        number, self.fd, self._tls = self.fd, fd, probe._tls
        self.engine.polling -= 1
        self.reactor.move(self, number)
        self._reader = reader
        self._blocked = self.probing = self.probed = False
        self._account()
        self.reactor.batches.replace(self)
        self._arm()
        if self._tls is not None and self._tls.pending:
            self.reactor.read_on(self)
        for opcode, payload in rest:
            if opcode == frames.CLOSE:
                self._peer_closes(payload)
                return
            if self.state == OPEN:
                if opcode < frames.CLOSE:
                    self.on_message(opcode, payload)
                else:
                    self._heartbeat(opcode, payload)
        if self.state == OPEN:
            self.on_bytes(b"")  # for what is unfinished, or was found broken, behind those
