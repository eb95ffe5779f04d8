"""SSE: plain event streams, `GET /sse?channel=…&channel=…`, for any EventSource or curl.

Does: answer the request, take its socket out of Tornado, subscribe it, write events and heartbeats on the plane until
one of both ends it.
Does not: word events (eventstream) or cursors (cursor), check requests (plain), poll sockets (reactor).
Called by: worker (routes), reactor through Connection, streams (displaced).
Never break: a cursor that is written never claims a publication which is not in front of it in the stream; so a client
that comes back with it, on any worker, is sent everything behind it or is told what is lost.

    GET /sse?channel=chat:a&channel=ticker:ACME[&since=CURSOR][&token=…][&join_leave=true]      Last-Event-ID: CURSOR
    GET /sse?channel=ticker:$watch&symbols=ACME,BOLT[&hz=5][&fields=price,bid][&marks=true]      market has these

On connect `latest` channels send their newest value, `stream` channels what was missed since the cursor or a `lost`
event. The body ends with the connection (RFC 9112 §6.3): chunks would cost bytes, and all who read event streams take
an end as a reason to come back. Before the end there is a `retry:`, jittered, so that they don't all come at once.

An EventSource gives up for good on any status but 200. So to one who can't be let in now, as too many come at a time,
this worker drains or its application has failed, the stream says so: 200, `retry:`, `closed`. Others are answered 503.

An application is asked before the stream begins: `on_connect`, then `on_subscribe` for each channel. Then it is told of
a client that is connected, and of its end (app_guest).

How positions are kept: see the head of eventstream, and sse_stamps for a connection with several `stream` channels.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Collection, Mapping
from functools import partial
from math import inf

from tornado import httputil

from .. import cursor, errors, eventstream, httpd
from ..app_gate import Gate
from ..app_guest import Guest
from ..auth import Claims
from ..channels import Namespace
from ..connection import DEAF_BYTES, Connection
from ..errors import Close, CommandError, HubError, ProtocolError, Reply
from ..eventstream import PLAIN, PlainForm, PositionedForm
from ..grants import Grant
from ..message import ClientInfo
from ..outgoing import OPEN
from ..patterns import Follower
from ..position import Position
from ..reactor import Reactor
from ..recovery import Joined
from ..services import Services
from ..tls import Descriptor
from .market import Holdings
from .plain import BUSY, PlainHandler, Wish
from .sse_stamps import STAMPED, StampedConnection
from .websocket import Door, leave_tornado

logger = logging.getLogger(__name__)

PATH = "/sse"
RETRY_MS = (1000, 3000)
"""A client waits so long before it comes back: a time between the two, another for each."""
FROM_THE_START = Position("", 0)
"""Where somebody stands who wants the newest value of a `latest` channel."""
NOT_ACCEPTABLE = Reply(errors.BAD_REQUEST.code, "Accept: allowed is text/event-stream")
TRY_AGAIN = Close(errors.CLOSE_SERVER_ERROR.code, "temporarily unavailable")
TOO_MUCH = {errors.TOO_MANY_REQUESTS: errors.CLOSE_TOO_MANY_REQUESTS, BUSY: errors.CLOSE_SHUTDOWN}
"""Of a request that the entrance does not let in: how its stream ends."""
HEADERS = {
    "Content-Type": "text/event-stream",
    # no-transform keeps proxies from compressing, which holds events back; X-Accel-Buffering is nginx's own switch.
    "Cache-Control": "no-store, no-transform",
    "X-Accel-Buffering": "no",
    "Connection": "close",
}


class EventStreamConnection(StampedConnection):
    """A client that listens to an event stream."""

    __slots__ = (
        "_ended",
        "_ends_at",
        "_guest",
        "_holdings",
        "_meter",
        "_services",
        "_watch",
        "address",
        "claims",
        "client",
        "connected",
        "grants",
        "user",
        "wire",
    )

    kind = "event_stream"
    wire: PlainForm

    def __init__(
        self,
        fd: Descriptor,
        reactor: Reactor,
        services: Services,
        caller: Claims,
        watch: bool,
        guest: Guest | None = None,
        address: str = "",
        shown: Claims | None = None,
    ) -> None:
        """watch: it is told who comes to its channels and goes. guest: what it is to the application, or None.

        address: where it comes from. shown: what its token says, where the caller is by another name; None: the same.
        """
        super().__init__(fd, reactor, services.outbox)
        self._services = services
        self._meter = services.quotas.open(address, self)
        self._watch = watch
        self._ends_at = caller.expires_at + services.authenticator.grace_s
        self._ended = errors.CLOSE_EXPIRED
        self._holdings: Holdings | None = None
        """Those of them that it does not take as they come."""
        self.wire = PLAIN
        self._guest = guest
        self.client = services.new_id() if guest is None else guest.client
        self.connected = True
        self.user = caller.user
        self.claims = shown or caller
        self.grants: Mapping[str, Grant] = {}
        self.address = address

    def begin(self, head: bytes, wish: Wish, positioned: PositionedForm) -> None:
        """Join the plane: send the answer's head, then ask for all channels."""
        streams = [channel for channel, namespace in wish.channels.items() if namespace.mode == "stream"]
        if len(streams) == 1:
            self.wire = positioned
        elif streams:
            self.wire, self._streams = STAMPED, len(streams)
            # What it came with stays true of a channel until that one has been joined.
            known = ((channel, wish.since.position(channel)) for channel in streams)
            self._positions = {channel: position for channel, position in known if position is not None}
        if wish.wants:
            self._holdings = Holdings(self._services, self, wish.wants)
        self.grants = wish.grants
        if wish.ends_at < self._ends_at:
            self._ends_at, self._ended = wish.ends_at, errors.CLOSE_SUBSCRIPTION_EXPIRED
        self.enter()
        self._services.users.enter(self, self)
        # The first heartbeat at another time for each, so that clients that came together don't stay in step.
        self._schedule(self._services.jitter() * self._services.client.ping_interval_s)
        opening = eventstream.encode_open(self.client, self._services.client.ping_interval_s)
        self.put(head + eventstream.encode_retry(self._retry_ms()) + opening)
        # Now: what it has missed, which may come at once, finds an empty outbox, where it may be as large as it is.
        Connection.flush(self)
        try:
            self._services.check_access(self.user, self.claims)
        except ProtocolError as error:
            self.close(error.close)
        for name, namespace in wish.channels.items():
            if self.state != OPEN:
                return
            # One text for all who name the channel; each request brings a copy.
            self._ask(sys.intern(name), namespace, wish.since.position(name))

    def _ask(self, channel: str, namespace: Namespace, since: Position | None) -> None:
        if namespace.mode == "latest":
            since = FROM_THE_START
        done = partial(self._joined, channel, namespace)
        if self._holdings is not None and channel in self._holdings:
            follower = partial(Follower, channel, self, partial(self.close, TRY_AGAIN))
            self._holdings.subscribe(channel, namespace, follower, done)
        else:
            self._services.subscriptions.subscribe(channel, namespace, self, done, since)

    def _leave(self, channel: str, namespace: Namespace) -> None:
        if self._holdings is not None and channel in self._holdings:
            self._holdings.unsubscribe(channel, namespace)
        else:
            self._services.subscriptions.unsubscribe(channel, namespace, self)

    def _joined(self, channel: str, namespace: Namespace, outcome: Joined | HubError) -> None:
        if isinstance(outcome, HubError):
            # Not a status any more: the stream has begun, so that one that comes back needs but one round trip.
            logger.debug("client %s: %s", self.client, outcome)
            self.close(TRY_AGAIN)
            return
        if self.state != OPEN:
            self._leave(channel, namespace)
            return
        self._channels[channel] = namespace
        info = ClientInfo(self.user, self.client)
        self._services.presence.enter(channel, namespace, info, self, self._watch)
        self._catch_up(channel, namespace, outcome)

    def _catch_up(self, channel: str, namespace: Namespace, joined: Joined) -> None:
        """Queue what it has missed as one frame, so that its size alone does not make the client a slow one."""
        frames = [eventstream.encode_lost(channel)] if joined.recovered is False else []
        frames += [self.wire.encode_publication(channel, body) for body in joined.publications]
        if namespace.mode == "stream":
            position = Position(joined.epoch, joined.offset)
            if self._positions is None:
                # Now, before any publication: later it could claim less than those have.
                frames.append(eventstream.encode_cursor(cursor.encode({channel: position})))
        if frames:
            Connection.put(self, b"".join(frames))
        if namespace.mode == "stream" and self._positions is not None and self.state == OPEN:
            self._moved(channel, position)

    # What the plane calls.

    def on_bytes(self, data: bytes) -> None:
        """A second request behind the first can't be answered, as this answer ends with the connection."""
        self.close(errors.CLOSE_BAD_REQUEST)

    def on_deadline(self, now: float) -> None:
        left_s = self._left_s()
        if left_s <= 0:
            self.close(self._ended)
            return
        self.put(eventstream.HEARTBEAT)
        self._schedule(self._services.client.ping_interval_s)

    def _schedule(self, in_s: float) -> None:
        self.reactor.schedule(self, self.reactor.clock() + min(in_s, self._left_s()))

    def _left_s(self) -> float:
        if self._ends_at == inf:
            return inf
        return self._ends_at - self._services.wall_clock()

    def close(self, close: Close) -> None:
        super().close(close)
        # The client says nothing to that: our side ends behind the last words, and it ends its own.
        self._deaf = DEAF_BYTES

    def last_words(self, close: Close) -> bytes:
        return self._take_stamp() + eventstream.encode_closed(close, self._retry_ms())

    def on_caught_up(self, dropped: int) -> None:
        self.put(eventstream.encode_dropped(dropped))

    def on_gone(self) -> None:
        self.connected = False
        self._meter.close()
        self._services.users.leave(self)
        channels, self._channels = self._channels, {}
        for channel, namespace in channels.items():
            self._leave(channel, namespace)
            self._services.presence.exit(channel, self.client, hold=True)
        if self._guest is not None:
            self._guest.on_gone()

    def about(self) -> Mapping[str, object]:
        address = self._services.shown(self.address)
        return {"wire": self.kind, "client": self.client, "user": self.user, "address": address}

    # What streams and users call.

    def displaced(self, channel: str) -> None:
        """It comes back by itself, with its cursor, which recovers it or tells of the loss."""
        if self._channels.pop(channel, None) is not None:
            self._services.presence.exit(channel, self.client, hold=True)
            self.close(errors.CLOSE_INSUFFICIENT_STATE)

    def holds(self, channel: str) -> bool:
        """The client is subscribed to it."""
        return channel in self._channels

    # What orders ask and do.

    @property
    def session_name(self) -> str:
        return ""

    @property
    def age_s(self) -> float:
        return self.reactor.clock() - self.opened_at

    def channels(self) -> Collection[str]:
        """Those that it is in."""
        return self._channels.keys()

    def end_by(self, close: Close) -> None:
        self.close(close)

    def expire(self, at: float) -> None:
        """It is to end then, in seconds since 1970; an order knows no grace."""
        self._ends_at, self._ended = at, errors.CLOSE_EXPIRED
        self._schedule(self._left_s())

    def lapse(self, channel: str) -> None:
        """It can't go on with the other channels, as its cursor knows all of them."""
        self.close(errors.CLOSE_SUBSCRIPTION_EXPIRED)

    def leave(self, channel: str) -> None:
        """Likewise; and it is not to come back for it."""
        self.close(errors.CLOSE_FORCE_DISCONNECT)

    def join(self, channel: str, namespace: Namespace, done: Callable[[HubError | None], None]) -> None:
        """Its cursor knows the channels that its request names, and no others."""
        done(CommandError(errors.NOT_AVAILABLE, "an event stream has the channels that its request names"))

    def _retry_ms(self) -> int:
        return retry_ms(self._services)


def retry_ms(services: Services) -> int:
    """When a client is to come back, jittered."""
    least, most = RETRY_MS
    return round(least + services.jitter() * (most - least))


class EventStreamHandler(PlainHandler):
    """GET /sse."""

    METHODS = "GET, HEAD"
    STREAMED = True

    def initialize(self, door: Door, positioned: PositionedForm) -> None:  # type: ignore[override]
        super().initialize(door)
        self._positioned = positioned

    async def get(self) -> None:
        """A stream, or for HEAD its headers alone; with an application, once that has been asked."""
        if not _accepts(self.request.headers.get("Accept", "")):
            self.refuse(406, NOT_ACCEPTABLE)
            return
        gate = self._door.services.gate
        try:
            caller = await self.caller()
            wish = self.wish(caller) if gate is None else None
        except HubError as error:
            if isinstance(error, CommandError) and error.reply in TOO_MUCH:
                self._turn_away(error, TOO_MUCH[error.reply])
            else:
                self._fail_or_turn_away(error)
            return
        if not self._is_there():
            return
        if (refused := self._too_many(caller.user)) is not None:
            self._turn_away(refused, errors.CLOSE_TOO_MANY_REQUESTS)
        elif gate is not None:
            await self._get_as_guest(gate, caller)
        elif wish is not None:
            self._answer(wish)

    head = get

    def _too_many(self, user: str) -> CommandError | None:
        """The user has too many connections."""
        services = self._door.services
        if services.quotas.full(services.users.count(user)):
            return CommandError(errors.TOO_MANY_REQUESTS, "too many connections of this user")
        return None

    async def _get_as_guest(self, gate: Gate, caller: Claims) -> None:
        try:
            await self.ask(gate, self._answer_guest(gate, caller))
        except HubError as error:
            self._fail_or_turn_away(error)

    def _fail_or_turn_away(self, error: HubError) -> None:
        if not isinstance(error, ProtocolError) and errors.is_temporary(error):
            self._turn_away(error, TRY_AGAIN)
        else:
            self.fail(error)

    async def _answer_guest(self, gate: Gate, caller: Claims) -> None:
        guest, wish = await self.granted(gate, caller)
        if (refused := self._too_many(wish.caller.user)) is not None:
            raise refused

        def begin() -> EventStreamConnection | None:
            entrance = self._door.entrance
            if not self._is_there() or entrance.draining() or entrance.quotas.no_room(self.visitor.address):
                return None
            return self._begin(wish, guest)

        if self.request.method == "HEAD":
            self._answer(wish)
        elif not await guest.stay(begin):
            raise CommandError(BUSY)

    def _is_there(self) -> bool:
        """Its connection is open, so that it can be detached."""
        connection = self.request.connection
        return connection is not None and not connection.stream.closed()  # type: ignore[attr-defined]

    def _answer(self, wish: Wish) -> None:
        if self.request.method == "HEAD":
            self._set_headers()
            self.finish()
        else:
            self._begin(wish)

    def _begin(self, wish: Wish, guest: Guest | None = None) -> EventStreamConnection:
        fd, early = leave_tornado(self.detach())
        logger.debug("GET %s 200", PATH)
        door = self._door
        address = self.visitor.address
        connection = EventStreamConnection(
            fd, door.reactor, door.services, wish.caller, wish.join_leave, guest, address, wish.shown
        )
        connection.begin(self._head(), wish, self._positioned)
        if early:
            connection.receive(early)
        return connection

    def _turn_away(self, error: HubError, close: Close) -> None:
        """Not now: an EventSource is told in a stream, so that it comes back."""
        if self._gone or self._finished or "text/event-stream" not in self.request.headers.get("Accept", ""):
            self.fail(error)
        else:
            self._set_headers()
            self.finish(eventstream.encode_closed(close, retry_ms(self._door.services)))

    def _set_headers(self) -> None:
        for name, value in HEADERS.items():
            self.set_header(name, value)

    def _head(self) -> bytes:
        """The head that Tornado would write, but for a length or chunks."""
        self._set_headers()
        headers = httputil.HTTPHeaders(self._headers)
        headers.pop("Content-Length", None)
        lines = [f"{name}: {value}" for name, value in headers.get_all()]
        return "\r\n".join(["HTTP/1.1 200 OK", *lines, "", ""]).encode("latin-1")


def _accepts(accept: str) -> bool:
    """Whether an Accept header (RFC 9110 §12.5.1) takes event streams; without one all is taken."""
    ranges = [one.partition(";")[0].strip().lower() for one in accept.split(",")]
    return not accept or any(one in ("text/event-stream", "text/*", "*/*") for one in ranges)


def routes(door: Door) -> httpd.Routes:
    """The route, with the one positioned form of this worker."""
    positioned = PositionedForm(door.services.subscriptions.epoch)
    return [(PATH, EventStreamHandler, {"door": door, "positioned": positioned})]
